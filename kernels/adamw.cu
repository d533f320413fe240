// AdamW (Loshchilov and Hutter 2019), in place, with gradient clipping as a factor of the gradient:
//
//     g = factor * gradient      m = beta1 m + (1 - beta1) g      v = beta2 v + (1 - beta2) g^2
//     p = keep * p - step_size * m / (sqrt(v) * reciprocal_correction + epsilon)
//
// The operations and their order are the CPU's, each rounded (or fused) as there, so both give the same bits. Hence the
// intrinsics: left to itself, the compiler fuses the last subtraction as well.
#include "pack.cuh"

using namespace engine;

namespace engine::adamw {

// What is the same for all parameters, computed in f64 by the host. Passed by value, 9 floats.
struct Factors {
    float grad, keep, beta1, one_minus_beta1, beta2, one_minus_beta2, step_size, reciprocal_correction, epsilon;
};

}  // namespace engine::adamw

using namespace engine::adamw;

// One update.
//
// parameter, first_moment, second_moment, gradient: (count) f32.
// Launch: any grid of blocks of up to 256; threads stride over packs of four. No shared memory.
// Traffic: least and moved: 28 bytes per parameter.
extern "C" __global__ void __launch_bounds__(256)
    adamw_update(float* parameter, const float* gradient, float* first_moment, float* second_moment, Factors factors,
                 unsigned long long count) {
    const bool is_aligned = is_aligned_16(parameter) && is_aligned_16(gradient) && is_aligned_16(first_moment) &&
                            is_aligned_16(second_moment);
    for_each_pack(count, [&](unsigned long long i) {
        const unsigned long long left = count - i;
        const Pack<4> g = load_up_to(gradient + i, left, is_aligned);
        Pack<4> p = load_up_to(parameter + i, left, is_aligned);
        Pack<4> m = load_up_to(first_moment + i, left, is_aligned);
        Pack<4> v = load_up_to(second_moment + i, left, is_aligned);
#pragma unroll
        for (unsigned j = 0; j < 4; ++j) {
            const float scaled = __fmul_rn(g.at[j], factors.grad);
            m.at[j] = __fmaf_rn(scaled, factors.one_minus_beta1, __fmul_rn(m.at[j], factors.beta1));
            const float square = __fmul_rn(scaled, scaled);
            v.at[j] = __fmaf_rn(square, factors.one_minus_beta2, __fmul_rn(v.at[j], factors.beta2));
            const float denominator = __fmaf_rn(__fsqrt_rn(v.at[j]), factors.reciprocal_correction, factors.epsilon);
            const float step = __fdiv_rn(__fmul_rn(m.at[j], factors.step_size), denominator);
            p.at[j] = __fsub_rn(__fmul_rn(p.at[j], factors.keep), step);
        }
        store_up_to(first_moment + i, m, left, is_aligned);
        store_up_to(second_moment + i, v, left, is_aligned);
        store_up_to(parameter + i, p, left, is_aligned);
    });
}
