// What all kernels share: Philox dropout, warp and block reductions, cp.async.
//
// Everything is f32 with IEEE division and roots (no fast-math), reduced in a fixed order: the same bits on every run.
#pragma once

namespace engine {

constexpr unsigned WARP = 32;
constexpr unsigned ALL_LANES = 0xffffffffu;

// Dropout as `ops::Dropout` defines it: element i is kept where its random word is at least `threshold`, and scaled.
// A threshold of 0 keeps everything. Passed by value; 24 bytes, as `gpu::Arguments::dropout` packs it.
struct Dropout {
    unsigned key[2];
    unsigned upper[2];
    unsigned threshold;
    float scale;
};

// Philox 4x32-10 (Salmon et al. 2011), as `ops::philox`.
__device__ __forceinline__ uint4 philox(uint4 counter, unsigned key0, unsigned key1) {
#pragma unroll
    for (int round = 0; round < 10; ++round) {
        const unsigned a_high = __umulhi(0xD2511F53u, counter.x), a_low = 0xD2511F53u * counter.x;
        const unsigned b_high = __umulhi(0xCD9E8D57u, counter.z), b_low = 0xCD9E8D57u * counter.z;
        counter = make_uint4(b_high ^ counter.y ^ key0, b_low, a_high ^ counter.w ^ key1, a_low);
        key0 += 0x9E3779B9u;
        key1 += 0xBB67AE85u;
    }
    return counter;
}

// Random words of the four elements 4 * block .. 4 * block + 3.
__device__ __forceinline__ uint4 random_words(const Dropout& dropout, unsigned long long block) {
    const uint4 counter = make_uint4((unsigned)block, (unsigned)(block >> 32), dropout.upper[0], dropout.upper[1]);
    return philox(counter, dropout.key[0], dropout.key[1]);
}

// What an element is multiplied with: 0, or 1 / (1 - probability).
__device__ __forceinline__ float dropout_factor(const Dropout& dropout, unsigned word) {
    return word >= dropout.threshold ? dropout.scale : 0.0f;
}

// The factor of one element; where neighbours are needed too, `random_words` gives four at a time.
__device__ __forceinline__ float dropout_factor_at(const Dropout& dropout, unsigned long long index) {
    const uint4 words = random_words(dropout, index >> 2);
    const unsigned place = (unsigned)index & 3u;
    const unsigned low = place & 1u ? words.y : words.x, high = place & 1u ? words.w : words.z;
    return dropout_factor(dropout, place & 2u ? high : low);
}

// Sum over the lanes of a full warp, the same in every lane.
__device__ __forceinline__ float warp_sum(float value) {
#pragma unroll
    for (unsigned distance = WARP / 2; distance > 0; distance /= 2) {
        value += __shfl_xor_sync(ALL_LANES, value, distance);
    }
    return value;
}

// Largest value of a full warp's lanes, the same in every lane.
__device__ __forceinline__ float warp_max(float value) {
#pragma unroll
    for (unsigned distance = WARP / 2; distance > 0; distance /= 2) {
        value = fmaxf(value, __shfl_xor_sync(ALL_LANES, value, distance));
    }
    return value;
}

// Sets a target, or adds to it.
__device__ __forceinline__ void write(float& target, float value, unsigned accumulate) {
    target = accumulate ? target + value : value;
}

// Copies 16 bytes from global to shared memory without passing registers; both aligned to 16. The first
// `bytes` (0 to 16) are copied and the rest is zero.
__device__ __forceinline__ void copy_async_16(void* shared, const void* global, unsigned bytes) {
    const unsigned target = (unsigned)__cvta_generic_to_shared(shared);
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(target), "l"(global), "r"(bytes) : "memory");
}

// The same for 4 bytes, aligned to 4; `bytes` is 0 or 4.
__device__ __forceinline__ void copy_async_4(void* shared, const void* global, unsigned bytes) {
    const unsigned target = (unsigned)__cvta_generic_to_shared(shared);
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(target), "l"(global), "r"(bytes) : "memory");
}

__device__ __forceinline__ void copy_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until at most `Pending` of this thread's groups are unfinished.
template <int Pending>
__device__ __forceinline__ void copy_async_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(Pending) : "memory");
}

}  // namespace engine
