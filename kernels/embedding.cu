// Embedding: y[b, t] = tokens[id[b, t]] + positions[p] + types[type[b, t]] with p = position id[b, t] or first_position
// + t, and the gradients of the tables. In place of a table, positions may be sinusoidal (Vaswani et al. 2017).
//
// A row of a table's gradient is the sum over the places where its id occurs. No float atomics: the places
// are sorted by id with a stable radix sort (8 bits a pass, so two passes for 50,257 tokens), and every run of equal ids
// is summed in the order that its length alone decides. That takes time linear in the places, whatever the vocabulary.
// The sort follows Satish, Harris, Garland 2009: count the digits of each block, sum the counts over digits and blocks,
// then every block moves its own keys, ranking equal digits of a warp by a vote.
#include "pack.cuh"
#include "turn.cuh"

using namespace engine;

namespace engine::embedding {

// Rows that a block copies, one to a warp.
constexpr unsigned ROWS = 4;
constexpr unsigned DIGITS = 256;
constexpr unsigned SORT_THREADS = 256;
constexpr unsigned SORT_WARPS = SORT_THREADS / WARP;
// Keys of a block: what a warp takes in eight steps.
constexpr unsigned SORT_PIECE = 8 * SORT_THREADS;
constexpr unsigned WARP_PIECE = SORT_PIECE / SORT_WARPS;
// Most warps that share a run of equal ids.
constexpr unsigned RUN_WARPS = 16;

// An id as a sort key: all that are outside the vocabulary come last.
__device__ __forceinline__ unsigned key_of(unsigned id, unsigned vocabulary) { return min(id, vocabulary); }

__device__ __forceinline__ unsigned digit_of(unsigned key, unsigned shift) { return key >> shift & (DIGITS - 1); }

struct ForwardArguments {
    const int *ids, *position_ids, *type_ids;
    const float *tokens, *positions, *types;
    float* output;
    unsigned places, time, channels, vocabulary, position_count, type_count, first_position;
};

// Columns c .. c + N of a position's vector: the sine of a pair's angle, then the cosine.
template <unsigned N>
__device__ __forceinline__ Pack<N> sinusoid(const Frequencies& frequencies, unsigned position, unsigned c) {
    Pack<N> result;
    unsigned long long frequency = frequency_of(frequencies, c / 2);
    if constexpr (N == 1) {
        const float angle = half_turns(position, frequency);
        result.at[0] = c % 2 == 0 ? sinpif(angle) : cospif(angle);
    } else {
#pragma unroll
        for (unsigned j = 0; j < N; j += 2) {
            sincospif(half_turns(position, frequency), &result.at[j], &result.at[j + 1]);
            frequency = next_frequency(frequencies, frequency);
        }
    }
    return result;
}

template <unsigned N, bool SINUSOIDAL>
__device__ __forceinline__ void forward(const ForwardArguments& a, const Frequencies& frequencies) {
    const unsigned place = blockIdx.x * blockDim.y + threadIdx.y;
    if (place >= a.places) {
        return;
    }
    const unsigned channels = a.channels, id = (unsigned)a.ids[place];
    const unsigned position = a.position_ids ? (unsigned)a.position_ids[place] : a.first_position + place % a.time;
    const unsigned type = a.types ? (unsigned)a.type_ids[place] : 0;
    const bool has_position = SINUSOIDAL || a.positions;
    const bool is_valid = id < a.vocabulary && (!has_position || position < a.position_count) &&
                          (!a.types || type < a.type_count);
    const float* token_row = a.tokens + (unsigned long long)id * channels;
    const float* position_row = a.positions + (unsigned long long)position * channels;
    const float* type_row = a.types + (unsigned long long)type * channels;
    float* target = a.output + (unsigned long long)place * channels;
    for (unsigned c = N * threadIdx.x; c < channels; c += N * WARP) {
        Pack<N> value;
        if (is_valid) {
            value = load<N>(token_row + c);
            if constexpr (SINUSOIDAL) {
                value = value + sinusoid<N>(frequencies, position, c);
            } else if (a.positions) {
                value = value + load<N>(position_row + c);
            }
            if (a.types) {
                value = value + load<N>(type_row + c);
            }
        } else {
#pragma unroll
            for (unsigned j = 0; j < N; ++j) {
                value.at[j] = __int_as_float(0x7fffffff);
            }
        }
        store(target + c, value);
    }
}

// First index whose key is not below `key`.
__device__ __forceinline__ unsigned lower_bound(const unsigned* keys, unsigned count, unsigned key) {
    unsigned low = 0, high = count;
    while (low < high) {
        const unsigned middle = low + (high - low) / 2;
        if (keys[middle] < key) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low;
}

// How many keys from `start` on are `key`; a warp looks at 32 at a time.
__device__ __forceinline__ unsigned run_length(const unsigned* keys, unsigned start, unsigned count, unsigned key) {
    for (unsigned length = 0;; length += WARP) {
        const unsigned i = start + length + threadIdx.x;
        const unsigned others = __ballot_sync(ALL_LANES, i >= count || keys[i] != key);
        if (others) {
            return length + __ffs(others) - 1;
        }
    }
}

template <unsigned N>
__device__ __forceinline__ void table_backward(const unsigned* keys, const unsigned* places, const float* grad_output,
                                               float* grad_table, unsigned accumulate, unsigned is_by_id,
                                                unsigned count, unsigned channels, unsigned vocabulary) {
    __shared__ float4 sums_of_warps[RUN_WARPS][WARP];
    unsigned start = blockIdx.x, key = blockIdx.x;
    if (is_by_id) {
        start = lower_bound(keys, count, key);
    } else {
        key = keys[start];
        if (key >= vocabulary || (start > 0 && keys[start - 1] == key)) {
            return;
        }
    }
    const unsigned length = run_length(keys, start, count, key);
    if (length == 0 && accumulate) {
        return;
    }
    const unsigned c = N * (blockIdx.y * WARP + threadIdx.x);
    Pack<N> sum{};
    if (c < channels) {
#pragma unroll 4
        for (unsigned i = threadIdx.y; i < length; i += blockDim.y) {
            sum = sum + load<N>(grad_output + (unsigned long long)places[start + i] * channels + c);
        }
    }
    if (length > 1) {
        store_shared(reinterpret_cast<float*>(&sums_of_warps[threadIdx.y][threadIdx.x]), sum);
        __syncthreads();
        for (unsigned warp = 1; threadIdx.y == 0 && warp < min(length, blockDim.y); ++warp) {
            sum = sum + load<N>(reinterpret_cast<const float*>(&sums_of_warps[warp][threadIdx.x]));
        }
    }
    if (threadIdx.y == 0 && c < channels) {
        write(grad_table + (unsigned long long)key * channels + c, sum, accumulate);
    }
}

template <unsigned N>
__device__ __forceinline__ void positions_backward(const float* grad_output, float* grad_table, unsigned accumulate,
                                                   unsigned batch, unsigned time, unsigned channels,
                                                   unsigned positions, unsigned first_position) {
    const unsigned position = blockIdx.x * blockDim.y + threadIdx.y;
    // Wraps around, to a large number, before the first.
    const unsigned t = position - first_position;
    const bool is_used = t < time;
    if (position >= positions || (!is_used && accumulate)) {
        return;
    }
    const unsigned long long stride = (unsigned long long)time * channels;
    const float* source = grad_output + (unsigned long long)t * channels;
    float* target = grad_table + (unsigned long long)position * channels;
    for (unsigned c = N * threadIdx.x; c < channels; c += N * WARP) {
        Pack<N> sum{};
#pragma unroll 4
        for (unsigned b = 0; b < (is_used ? batch : 0); ++b) {
            sum = sum + load<N>(source + b * stride + c);
        }
        write(target + c, sum, accumulate);
    }
}

}  // namespace engine::embedding

using namespace engine::embedding;

// output = tokens[ids] + positions + types[type_ids]; a row with an id outside its table becomes NaN.
//
// ids: (B * T) i32. position_ids: (B * T) i32, or null: first_position + t. type_ids: (B * T) i32, read with types.
// tokens: (V, C) f32. positions: (position_count, C) f32, or null. types: (type_count, C) f32, or null.
// output: (B * T, C) f32. The sinusoidal kernels compute the vectors of positions below position_count.
// Launch: grid (places / blockDim.y), block (32, 1 to 4): a warp to a place. _4 needs channels and addresses that are
// multiples of 16 bytes. No shared memory.
// Traffic: least: 4 bytes per place and kind of id, 8 per value of the output, the used positions and types once; moved:
// that where the caches hold rows that occur again.
#define FORWARD(N)                                                                                                   \
    extern "C" __global__ void __launch_bounds__(WARP* ROWS) embedding_forward_##N(                                  \
        const int* ids, const int* position_ids, const int* type_ids, const float* tokens, const float* positions,   \
        const float* types, float* output, unsigned places, unsigned time, unsigned channels, unsigned vocabulary,   \
        unsigned position_count, unsigned type_count, unsigned first_position) {                                     \
        forward<N, false>({ids, position_ids, type_ids, tokens, positions, types, output, places, time, channels,    \
                           vocabulary, position_count, type_count, first_position},                                  \
                          Frequencies{});                                                                            \
    }                                                                                                                \
    extern "C" __global__ void __launch_bounds__(WARP* ROWS) embedding_forward_sinusoidal_##N(                       \
        const int* ids, const int* position_ids, const int* type_ids, const float* tokens, const float* types,       \
        float* output, unsigned places, unsigned time, unsigned channels, unsigned vocabulary,                       \
        unsigned position_count, unsigned type_count, unsigned first_position, Frequencies frequencies) {            \
        forward<N, true>({ids, position_ids, type_ids, tokens, nullptr, types, output, places, time, channels,       \
                          vocabulary, position_count, type_count, first_position},                                   \
                         frequencies);                                                                               \
    }

FORWARD(1)
FORWARD(4)

// Counts the digits of each block's keys: counts[digit][block].
//
// keys: (count) u32, or ids. counts: (256, blocks) u32.
// Launch: grid (count / 2048), block (256). Shared: 1 KiB. Traffic: least and moved: the keys and the counts, once.
extern "C" __global__ void __launch_bounds__(SORT_THREADS)
    embedding_sort_count(const unsigned* keys, unsigned count, unsigned vocabulary, unsigned shift, unsigned* counts) {
    __shared__ unsigned counts_of_block[DIGITS];
    counts_of_block[threadIdx.x] = 0;
    __syncthreads();
    const unsigned start = blockIdx.x * SORT_PIECE;
    for (unsigned i = start + threadIdx.x; i < min(start + SORT_PIECE, count); i += SORT_THREADS) {
        atomicAdd(&counts_of_block[digit_of(key_of(keys[i], vocabulary), shift)], 1u);
    }
    __syncthreads();
    counts[threadIdx.x * gridDim.x + blockIdx.x] = counts_of_block[threadIdx.x];
}

// Replaces each count by the sum of all before it: where the first such key goes.
//
// counts: (256, blocks) u32. Launch: one block of 256 threads, a digit each. Shared: 32 bytes.
// Traffic: least: the counts once each way; moved: read twice, the second time from a cache.
extern "C" __global__ void __launch_bounds__(DIGITS) embedding_sort_offsets(unsigned* counts, unsigned blocks) {
    __shared__ unsigned sums_of_warps[DIGITS / WARP];
    const unsigned lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    unsigned* const row = counts + threadIdx.x * blocks;
    unsigned total = 0;
    for (unsigned block = 0; block < blocks; ++block) {
        total += row[block];
    }
    unsigned sum = total;
#pragma unroll
    for (unsigned distance = 1; distance < WARP; distance *= 2) {
        const unsigned before = __shfl_up_sync(ALL_LANES, sum, distance);
        sum += lane >= distance ? before : 0;
    }
    if (lane == WARP - 1) {
        sums_of_warps[warp] = sum;
    }
    __syncthreads();
    unsigned offset = sum - total;
    for (unsigned before = 0; before < warp; ++before) {
        offset += sums_of_warps[before];
    }
    for (unsigned block = 0; block < blocks; ++block) {
        const unsigned digits = row[block];
        row[block] = offset;
        offset += digits;
    }
}

// Moves keys and places to where their digit goes, keeping the order of those with the same digit.
//
// keys: (count) u32, or ids. places: (count) u32, or null: key i is that of place i. offsets: (256, blocks) u32.
// sorted_keys, sorted_places: (count) u32.
// Launch: as embedding_sort_count. Shared: 8 KiB.
// Traffic: least: 16 bytes per key; moved: that, in scattered sectors.
extern "C" __global__ void __launch_bounds__(SORT_THREADS)
    embedding_sort_scatter(const unsigned* keys, const unsigned* places, unsigned count, unsigned vocabulary,
                           unsigned shift, const unsigned* offsets, unsigned* sorted_keys, unsigned* sorted_places) {
    // First how often each digit occurs in a warp's part, then where the warp's next key with it goes.
    __shared__ unsigned next[SORT_WARPS][DIGITS];
    const unsigned lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    for (unsigned digit = lane; digit < DIGITS; digit += WARP) {
        next[warp][digit] = 0;
    }
    __syncwarp();
    const unsigned start = min(blockIdx.x * SORT_PIECE + warp * WARP_PIECE, count);
    const unsigned end = min(start + WARP_PIECE, count);
    for (unsigned i = start + lane; i < end; i += WARP) {
        atomicAdd(&next[warp][digit_of(key_of(keys[i], vocabulary), shift)], 1u);
    }
    __syncthreads();
    unsigned offset = offsets[threadIdx.x * gridDim.x + blockIdx.x];
#pragma unroll
    for (unsigned other = 0; other < SORT_WARPS; ++other) {
        const unsigned digits = next[other][threadIdx.x];
        next[other][threadIdx.x] = offset;
        offset += digits;
    }
    __syncthreads();
    for (unsigned step = start; step < end; step += WARP) {
        const unsigned i = step + lane;
        const unsigned lanes = __ballot_sync(ALL_LANES, i < end);
        if (i < end) {
            const unsigned key = key_of(keys[i], vocabulary), digit = digit_of(key, shift);
            const unsigned same = __match_any_sync(lanes, digit);
            const unsigned target = next[warp][digit] + __popc(same & ((1u << lane) - 1));
            __syncwarp(lanes);
            if (lane == __ffs(same) - 1) {
                next[warp][digit] = target + __popc(same);
            }
            sorted_keys[target] = key;
            sorted_places[target] = places ? places[i] : i;
        }
        // The next step sees where this one stopped.
        __syncwarp();
    }
}

// grad_table[key] = sum of the gradients of the places with this key, set or accumulated.
//
// keys, places: (count) u32, sorted by key. grad_output: (count, C) f32. grad_table: (V, C) f32.
// Launch: grid (ids or places, C / 32 or C / 128), block (32, 1 to 16). is_by_id: a block for each id, which searches
// its keys, and which sets the rows of ids that do not occur to zero; else a block for each key, of which only the
// first of a run does anything, and those rows are left alone.
// Warps take every blockDim.y-th place of a run in order, and their sums are added in order. Shared: 8 KiB.
// Traffic: least and moved: 4 bytes per value of the gradient, 8 per place, rows that occur once (twice to accumulate).
#define TABLE_BACKWARD(N)                                                                                           \
    extern "C" __global__ void __launch_bounds__(WARP* RUN_WARPS) embedding_table_backward_##N(                     \
        const unsigned* keys, const unsigned* places, const float* grad_output, float* grad_table,                   \
        unsigned accumulate, unsigned is_by_id, unsigned count, unsigned channels, unsigned vocabulary) {            \
        table_backward<N>(keys, places, grad_output, grad_table, accumulate, is_by_id, count, channels, vocabulary); \
    }

TABLE_BACKWARD(1)
TABLE_BACKWARD(4)

// grad_table[first_position + t] = sum over the batch, in order; other rows are zero, or untouched where accumulated.
//
// grad_output: (B, T, C) f32. grad_table: (positions, C) f32.
// Launch: grid (positions / blockDim.y), block (32, 1 to 4): a warp to a position. No shared memory.
// Traffic: least and moved: 4 bytes per value of the gradient, the table once (the used rows twice to accumulate).
#define POSITIONS_BACKWARD(N)                                                                                        \
    extern "C" __global__ void __launch_bounds__(WARP* ROWS) embedding_positions_backward_##N(                       \
        const float* grad_output, float* grad_table, unsigned accumulate, unsigned batch, unsigned time,             \
        unsigned channels, unsigned positions, unsigned first_position) {                                            \
        positions_backward<N>(grad_output, grad_table, accumulate, batch, time, channels, positions, first_position); \
    }

POSITIONS_BACKWARD(1)
POSITIONS_BACKWARD(4)
