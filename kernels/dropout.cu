// Dropout with a fused addition: output = factor * input + addend, where factor is 0 or 1 / (1 - probability).
//
// The mask is never stored: the factor of element i follows from (seed, step, site, i) by Philox (Salmon et al. 2011),
// one call of which serves four neighbours. The backward pass is the same on the gradient.
#include "pack.cuh"

using namespace engine;

// Both passes.
//
// input, addend, output: (count) f32. addend may be null, and may be the output: then it is added to.
// Launch: any grid of blocks of up to 256; threads stride over packs of four. No shared memory.
// Traffic: least and moved: 8 bytes per element, 12 with an addend.
extern "C" __global__ void __launch_bounds__(256)
    dropout_apply(const float* input, const float* addend, float* output, Dropout dropout, unsigned long long count) {
    // Null is aligned.
    const bool is_aligned = is_aligned_16(input) && is_aligned_16(addend) && is_aligned_16(output);
    for_each_pack(count, [&](unsigned long long i) {
        const unsigned long long left = count - i;
        const uint4 words = random_words(dropout, i / 4);
        const Pack<4> factors = {{dropout_factor(dropout, words.x), dropout_factor(dropout, words.y),
                                  dropout_factor(dropout, words.z), dropout_factor(dropout, words.w)}};
        Pack<4> values = load_up_to(input + i, left, is_aligned);
        if (addend) {
            const Pack<4> others = load_up_to(addend + i, left, is_aligned);
#pragma unroll
            for (unsigned j = 0; j < 4; ++j) {
                values.at[j] = __fmaf_rn(values.at[j], factors.at[j], others.at[j]);
            }
        } else {
            values = zip(values, factors, [](float x, float factor) { return x * factor; });
        }
        store_up_to(output + i, values, left, is_aligned);
    });
}
