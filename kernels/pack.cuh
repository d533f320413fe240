// Packs: neighbouring values that move together, in one 16-byte access where their address allows it.
//
// Two uses. Rows whose width and addresses are multiples of 16 bytes are walked with `Pack<4>`, others with `Pack<1>`:
// the width is a template parameter. Flat arrays are always walked in packs of four, so that which thread takes which
// element, and with it every sum's order, does not depend on where the array lies.
//
// A kernel file keeps its helpers in a namespace of its own name, not in an unnamed one: the compiler gives that a hash
// of the file's path, which comes through to the PTX, so that each machine would make another.
#pragma once

#include "common.cuh"

namespace engine {

template <unsigned N>
struct Pack {
    static constexpr unsigned SIZE = N;
    float at[N];
};

__device__ __forceinline__ bool is_aligned_16(const void* address) { return ((size_t)address & 15) == 0; }

template <unsigned N>
__device__ __forceinline__ Pack<N> load(const float* source) {
    static_assert(N == 1 || N == 4, "an access moves 4 or 16 bytes");
    if constexpr (N == 4) {
        const float4 values = *reinterpret_cast<const float4*>(source);
        return {{values.x, values.y, values.z, values.w}};
    } else {
        return {{*source}};
    }
}

// To global memory. Written as an instruction because the compiler takes some 16-byte stores apart again, and four
// stores of 4 bytes touch the same sectors four times (in shared memory, the same banks).
template <unsigned N>
__device__ __forceinline__ void store(float* target, const Pack<N>& pack) {
    static_assert(N == 1 || N == 4, "an access moves 4 or 16 bytes");
    if constexpr (N == 4) {
        asm volatile("st.global.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(target)),
                     "f"(pack.at[0]), "f"(pack.at[1]), "f"(pack.at[2]), "f"(pack.at[3])
                     : "memory");
    } else {
        *target = pack.at[0];
    }
}

// To shared memory.
template <unsigned N>
__device__ __forceinline__ void store_shared(float* target, const Pack<N>& pack) {
    static_assert(N == 1 || N == 4, "an access moves 4 or 16 bytes");
    if constexpr (N == 4) {
        asm volatile("st.shared.v4.f32 [%0], {%1, %2, %3, %4};" ::"r"((unsigned)__cvta_generic_to_shared(target)),
                     "f"(pack.at[0]), "f"(pack.at[1]), "f"(pack.at[2]), "f"(pack.at[3])
                     : "memory");
    } else {
        *target = pack.at[0];
    }
}

// Combines packs value by value.
template <unsigned N, typename F>
__device__ __forceinline__ Pack<N> zip(const Pack<N>& a, const Pack<N>& b, F combine) {
    Pack<N> result;
#pragma unroll
    for (unsigned j = 0; j < N; ++j) {
        result.at[j] = combine(a.at[j], b.at[j]);
    }
    return result;
}

template <unsigned N>
__device__ __forceinline__ Pack<N> operator+(const Pack<N>& a, const Pack<N>& b) {
    return zip(a, b, [](float x, float y) { return x + y; });
}

// Sets a pack in memory, or adds to it.
template <unsigned N>
__device__ __forceinline__ void write(float* target, const Pack<N>& pack, unsigned accumulate) {
    Pack<N> result = pack;
    if (accumulate) {
        result = load<N>(target) + pack;
    }
    store(target, result);
}

// Four values from `source` on, of which `left` exist; those behind the end are zero.
__device__ __forceinline__ Pack<4> load_up_to(const float* source, unsigned long long left, bool is_aligned) {
    if (is_aligned && left >= 4) {
        return load<4>(source);
    }
    Pack<4> pack;
#pragma unroll
    for (unsigned j = 0; j < 4; ++j) {
        pack.at[j] = j < left ? source[j] : 0.0f;
    }
    return pack;
}

__device__ __forceinline__ void store_up_to(float* target, const Pack<4>& pack, unsigned long long left,
                                            bool is_aligned) {
    if (is_aligned && left >= 4) {
        store(target, pack);
        return;
    }
#pragma unroll
    for (unsigned j = 0; j < 4; ++j) {
        if (j < left) {
            target[j] = pack.at[j];
        }
    }
}

// Calls `body(start)` for the first index of each pack of four that is this thread's; threads of all blocks stride
// over the array.
template <typename Body>
__device__ __forceinline__ void for_each_pack(unsigned long long count, Body body) {
    const unsigned long long thread = (unsigned long long)blockIdx.x * blockDim.x + threadIdx.x;
    const unsigned long long stride = 4ull * gridDim.x * blockDim.x;
    for (unsigned long long start = 4 * thread; start < count; start += stride) {
        body(start);
    }
}

}  // namespace engine
