// Rotary positions (Su et al. 2021) on packed queries, keys and values: columns i and i + R/2 of a head are turned by
// position * base^(-2i/R). The backward pass turns back, in place.
//
// A thread has its pairs' sines and cosines once and turns the same pairs of several heads.
#include "pack.cuh"
#include "turn.cuh"

using namespace engine;

namespace engine::rotary {

constexpr unsigned THREADS = 128;

struct Arguments {
    const float* input;
    float* output;
    const int* position_ids;
    unsigned rows, time, heads, turned_heads, heads_of_thread, head_size, pairs, first_position, is_backward;
};

template <unsigned N>
__device__ __forceinline__ void apply(const Arguments& a, const Frequencies& frequencies) {
    // Even where no column is turned, others are copied.
    const unsigned packs = max(a.pairs / N, 1u);
    const unsigned thread = blockIdx.x * blockDim.x + threadIdx.x;
    const unsigned row = thread / packs, pair = N * (thread % packs);
    if (row >= a.rows) {
        return;
    }
    const int position = a.position_ids ? a.position_ids[row] : (int)(a.first_position + row % a.time);
    Pack<N> sine, cosine;
    unsigned long long frequency = frequency_of(frequencies, pair);
#pragma unroll
    for (unsigned j = 0; j < N; ++j) {
        sincospif(half_turns(position, frequency), &sine.at[j], &cosine.at[j]);
        sine.at[j] = position < 0 ? __int_as_float(0x7fffffff) : a.is_backward ? -sine.at[j] : sine.at[j];
        frequency = next_frequency(frequencies, frequency);
    }
    const unsigned first = blockIdx.y * a.heads_of_thread, end = min(a.heads, first + a.heads_of_thread);
    const bool copies = a.input != a.output;
    const unsigned long long start = ((unsigned long long)row * a.heads + first) * a.head_size;
    const float* source = a.input + start;
    float* target = a.output + start;
    for (unsigned head = first; head < end; ++head, source += a.head_size, target += a.head_size) {
        const bool is_turned = head < a.turned_heads;
        if (is_turned && pair < a.pairs) {
            const Pack<N> x = load<N>(source + pair), y = load<N>(source + a.pairs + pair);
            Pack<N> left, right;
#pragma unroll
            for (unsigned j = 0; j < N; ++j) {
                left.at[j] = x.at[j] * cosine.at[j] - y.at[j] * sine.at[j];
                right.at[j] = y.at[j] * cosine.at[j] + x.at[j] * sine.at[j];
            }
            store(target + pair, left);
            store(target + a.pairs + pair, right);
        }
        for (unsigned c = (is_turned ? 2 * a.pairs : 0) + pair; copies && c < a.head_size; c += N * packs) {
            store(target + c, load<N>(source + c));
        }
    }
}

}  // namespace engine::rotary

// Turns the first 2 * pairs columns of the first turned_heads heads of each row, and copies the others where the output
// is not the input.
//
// input, output: (rows, heads, D) f32, may be the same. position_ids: (rows) i32, or null: first_position + row % time.
// A row at a negative position becomes NaN.
// Launch: grid (rows * pairs / N / 128, heads / heads_of_thread), block (128): a thread to N pairs of a row and some heads.
// _4 needs a head size and addresses that are multiples of 16 bytes, and pairs that are a multiple of 4. No shared memory.
// Traffic: least and moved: 8 bytes per value; in place, per value that is turned.
#define APPLY(N)                                                                                                     \
    extern "C" __global__ void __launch_bounds__(engine::rotary::THREADS) rotary_apply_##N(                          \
        const float* input, float* output, const int* position_ids, unsigned rows, unsigned time, unsigned heads,    \
        unsigned turned_heads, unsigned heads_of_thread, unsigned head_size, unsigned pairs,                         \
        unsigned first_position, unsigned is_backward, Frequencies frequencies) {                                    \
        engine::rotary::apply<N>({input, output, position_ids, rows, time, heads, turned_heads, heads_of_thread,     \
                                  head_size, pairs, first_position, is_backward},                                    \
                                 frequencies);                                                                       \
    }

APPLY(1)
APPLY(4)
