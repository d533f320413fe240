// Stochastic gradient descent with momentum and weight decay, in place, with clipping as a factor of the gradient:
//
//     d = factor * gradient + decay * p      with momentum: m = d + keep * m, d = m      p = p - rate * d
//
// Fused and rounded as on the CPU, so both give the same bits.
#include "pack.cuh"

using namespace engine;

// One update.
//
// parameter, gradient, momentum: (count) f32; momentum may be null: plain descent.
// Launch: any grid of blocks of up to 256; threads stride over packs of four. No shared memory.
// Traffic: least and moved: 12 bytes per parameter, 20 with momentum.
extern "C" __global__ void __launch_bounds__(256)
    sgd_update(float* parameter, const float* gradient, float* momentum, float factor, float decay, float keep,
               float rate, unsigned long long count) {
    // Null is aligned.
    const bool is_aligned = is_aligned_16(parameter) && is_aligned_16(gradient) && is_aligned_16(momentum);
    for_each_pack(count, [&](unsigned long long i) {
        const unsigned long long left = count - i;
        const Pack<4> g = load_up_to(gradient + i, left, is_aligned);
        Pack<4> p = load_up_to(parameter + i, left, is_aligned);
        Pack<4> direction;
#pragma unroll
        for (unsigned j = 0; j < 4; ++j) {
            direction.at[j] = __fmaf_rn(p.at[j], decay, __fmul_rn(g.at[j], factor));
        }
        if (momentum) {
            const Pack<4> before = load_up_to(momentum + i, left, is_aligned);
            direction = zip(before, direction, [&](float m, float d) { return __fmaf_rn(m, keep, d); });
            store_up_to(momentum + i, direction, left, is_aligned);
        }
        p = zip(direction, p, [&](float d, float x) { return __fmaf_rn(-d, rate, x); });
        store_up_to(parameter + i, p, left, is_aligned);
    });
}
