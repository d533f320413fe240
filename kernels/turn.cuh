// Angles as fractions of a turn in fixed point, as `ops::turn` defines them: position * base^(-2i/n) radians, where the
// reduction to one turn is a product that wraps around, and exact for any position.
#pragma once

namespace engine {

// base^(-2 * 2^j / n) times 2^64 for each bit j of a pair's number, as `ops::turn::powers` makes them. By value.
struct Frequencies {
    unsigned long long powers[16];
};

// Turns for each position of a pair of columns, times 2^64.
__device__ __forceinline__ unsigned long long frequency_of(const Frequencies& frequencies, unsigned pair) {
    unsigned long long product = 0x28be60db9391054aull;  // 2^64 / 2 pi
#pragma unroll
    for (unsigned bit = 0; bit < 16; ++bit) {
        if (pair >> bit == 0) {
            break;
        }
        if (pair >> bit & 1) {
            product = __umul64hi(product, frequencies.powers[bit]);
        }
    }
    return product;
}

// The frequency of the next pair.
__device__ __forceinline__ unsigned long long next_frequency(const Frequencies& frequencies, unsigned long long of) {
    return __umul64hi(of, frequencies.powers[0]);
}

// The angle at a position, in half turns from -1 to 1, for sinpif and cospif.
__device__ __forceinline__ float half_turns(unsigned position, unsigned long long frequency) {
    return (float)(int)(unsigned)(position * frequency >> 32) * 0x1p-31f;
}

}  // namespace engine
