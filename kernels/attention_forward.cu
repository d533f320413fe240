// Attention forward: O = dropout(softmax(scale * Q K' + bias + mask)) V, without a matrix of all scores.
//
// FlashAttention (Dao et al. 2022; the loop order and the deferred division of Dao 2023): a block keeps a tile of
// queries, walks over tiles of keys and values, and carries each row's running maximum and sum (online softmax, Milakov
// and Gimelshein 2018). Only the log-sum-exp of each row is kept for the backward pass. Scores are in units of log 2,
// so that an exponential is one instruction.
//
// Where queries are too few to fill a GPU (decoding), the keys are cut into ranges, one block each, and a second kernel
// merges them in their order: the same bits on every run (Flash-Decoding, Dao et al. 2023).
//
// Traffic: at least queries, keys, values and the output once. Keys and values are read once for every tile of packed
// rows (8 R of them) that sees them, the rest once; keys before and behind all that the rows of a block see are skipped.
#include "attention.cuh"

using namespace engine;

namespace engine {

// Finite, so that subtracting it from minus infinity makes no NaN.
constexpr float FLOOR = -3.402823466e38f;

template <int Padded, int R, int C>
__device__ __forceinline__ void attend(const Attention& problem, float* output, float* log_sum_exp,
                                       unsigned long long partial, unsigned keys_per_split) {
    using Sizes = Tiles<Padded, R, C>;
    constexpr int ROWS = Sizes::ROWS, COLUMNS = Sizes::COLUMNS, STRIDE = Sizes::STRIDE, SHARE = Sizes::SHARE;
    extern __shared__ float4 memory[];
    float* const queries = (float*)memory;
    float* const keys = queries + ROWS * STRIDE;
    float* const values = keys + COLUMNS * STRIDE;
    float* const weights = values + COLUMNS * STRIDE;

    const unsigned x = threadIdx.x % 16, y = threadIdx.x / 16;
    const unsigned head_size = problem.head_size, depth = (head_size + 3) & ~3u;
    const unsigned pairs = problem.batch * problem.key_value_heads;
    const unsigned pair = blockIdx.x % pairs;
    const unsigned batch = pair / problem.key_value_heads, key_head = pair % problem.key_value_heads;
    // Late rows first: under a causal mask they have the most work.
    const unsigned first = ((problem.rows() + ROWS - 1) / ROWS - 1 - blockIdx.x / pairs) * ROWS;
    const unsigned count = min((unsigned)ROWS, problem.rows() - first);
    const unsigned length = problem.key_length(batch);
    const Keys visible = problem.seen_by_rows<ROWS>(batch, first, count);
    const unsigned begin = max(blockIdx.y * keys_per_split, visible.begin);
    const unsigned end = min((blockIdx.y + 1) * keys_per_split, visible.end);

    const float* const key = problem.key + batch * problem.key_sequence + key_head * head_size;
    const float* const value = problem.value + batch * problem.key_sequence + key_head * head_size;
    const bool keys_are_aligned = is_aligned(key, problem.key_row, head_size);
    const bool values_are_aligned = is_aligned(value, problem.key_row, head_size);
    const auto load_keys = [&](float* tile, const float* source, bool is_aligned, unsigned at) {
        load_tile<Padded, COLUMNS>(tile, source, end - at, head_size, is_aligned, [&](unsigned row) {
            return (unsigned long long)(at + row) * problem.key_row;
        });
        copy_async_commit();
    };

    float sums[R], maxima[R], result[R][SHARE];
    Keys seen[R];
    int relative_row[R];
    const int origin = problem.origin(batch);
#pragma unroll
    for (int r = 0; r < R; ++r) {
        sums[r] = 0.0f;
        maxima[r] = FLOOR;
        const unsigned row = y + 8 * r;
        // Tiles need not end where the range of keys does, if they do not begin at a multiple of their width.
        seen[r] = row < count ? problem.seen_by_row(batch, first + row, min(length, end)) : Keys{0, 0};
        relative_row[r] = problem.relative_row(key_head, first + row, origin);
#pragma unroll
        for (int i = 0; i < SHARE; ++i) result[r][i] = 0.0f;
    }
    const unsigned long long bias_row = problem.first_row(0, key_head);
    const unsigned long long first_of_batch = problem.first_row(batch, key_head) + first;
    // A warp all of whose rows lie behind the last one only helps to copy.
    const bool has_rows = (y & ~1u) < count;

    if (begin < end) {
        const float* const query = problem.query + batch * problem.query_sequence + key_head * problem.group * head_size;
        load_tile<Padded, ROWS>(queries, query, count, head_size, is_aligned(query, problem.query_row, head_size),
                                [&](unsigned row) { return problem.offset(first + row, problem.query_row); });
        load_keys(keys, key, keys_are_aligned, begin);
        copy_async_wait<0>();
        __syncthreads();
        load_keys(values, value, values_are_aligned, begin);
    }
    // Keys are copied while weights and values are multiplied, values while queries and keys are.
    for (unsigned at = begin; at < end; at += COLUMNS) {
        float scores[R][C];
        if (problem.dropout.threshold) {
            fill_dropout<Sizes, ROWS, COLUMNS, false>(problem, weights, first_of_batch * problem.key_time + at);
        }
        if (has_rows) multiply_rows<STRIDE>(queries + y * STRIDE, keys + x * STRIDE, depth, scores);
        copy_async_wait<0>();
        __syncthreads();
        if (at + COLUMNS < end) load_keys(keys, key, keys_are_aligned, at + COLUMNS);
        if (has_rows) {
#pragma unroll
            for (int r = 0; r < R; ++r) {
                const unsigned row = y + 8 * r;
                float maximum = maxima[r];
#pragma unroll
                for (int c = 0; c < C; ++c) {
                    const unsigned j = at + x + 16 * c;
                    float score = scores[r][c] * (problem.scale * LOG2_E);
                    if (problem.bias) score += problem.bias_at(bias_row, first + row, j);
                    if (problem.relative) score += problem.relative_at(relative_row[r], j);
                    scores[r][c] = seen[r].has(j) ? score : -INFINITE;
                    maximum = fmaxf(maximum, scores[r][c]);
                }
#pragma unroll
                for (unsigned distance = 8; distance > 0; distance /= 2) {
                    maximum = fmaxf(maximum, __shfl_xor_sync(ALL_LANES, maximum, distance));
                }
                const float rescale = exp2_fast(maxima[r] - maximum);
                maxima[r] = maximum;
                sums[r] *= rescale;
#pragma unroll
                for (int i = 0; i < SHARE; ++i) result[r][i] *= rescale;
#pragma unroll
                for (int c = 0; c < C; ++c) {
                    float& weight = weights[Sizes::weight(row, x + 16 * c)];
                    const float probability = exp2_fast(scores[r][c] - maximum);
                    sums[r] += probability;
                    weight = problem.dropout.threshold ? probability * weight : probability;
                }
            }
            __syncwarp();
            multiply_columns<Sizes>(weights, values, min((unsigned)COLUMNS, end - at), y, x, result);
        }
        copy_async_wait<0>();
        __syncthreads();
        if (at + COLUMNS < end) load_keys(values, value, values_are_aligned, at + COLUMNS);
    }

    // All warps are behind the last barrier: what was loaded is not needed any more.
    float *const normalised = queries, *const row_sums = weights, *const row_maxima = weights + ROWS;
#pragma unroll
    for (int r = 0; r < R; ++r) {
        float sum = sums[r];
#pragma unroll
        for (unsigned distance = 8; distance > 0; distance /= 2) {
            sum += __shfl_xor_sync(ALL_LANES, sum, distance);
        }
        store_share(normalised + (y + 8 * r) * STRIDE, result[r], sum == 0.0f ? 0.0f : 1.0f / sum, x);
        if (x == 0) {
            row_sums[y + 8 * r] = sum;
            row_maxima[y + 8 * r] = maxima[r];
        }
    }
    __syncthreads();
    // One range of several: rows go, in their packed order, to where the merge looks for them.
    const bool is_partial = gridDim.y > 1;
    const unsigned long long range = is_partial ? blockIdx.y * partial : 0;
    const unsigned stride = is_partial ? head_size : problem.heads() * head_size;
    float* const target = output + (is_partial ? (range + first_of_batch) * head_size
                                               : problem.output_start(batch, key_head));
    store_tile<Padded, ROWS>(normalised, target, count, head_size, is_aligned(target, stride, head_size), 0,
                             [&](unsigned row) {
                                 return is_partial ? (unsigned long long)row * stride
                                                   : problem.offset(first + row, stride);
                             });
    if (log_sum_exp && threadIdx.x < count) {
        const float sum = row_sums[threadIdx.x];
        log_sum_exp[range + first_of_batch + threadIdx.x] =
            sum == 0.0f ? -INFINITE : fmaf(row_maxima[threadIdx.x], LN_2, logf(sum));
    }
}

}  // namespace engine

// O = dropout(softmax(scale * Q K' + bias + mask)) V, and the log-sum-exp of the rows of scores.
//
// The number is the largest head size that the entry takes; `attention_decode` is for at most 8 packed rows.
//
// problem: see Attention; f32.
// output: (B, query_time, H * D) f32; a row that sees no key is 0. With several splits, (splits, B, H, query_time, D):
//   each normalised by itself.
// log_sum_exp: (B, H, query_time) f32, or null; minus infinity for a row that sees no key. With several splits,
//   (splits, B, H, query_time), and not null.
// partial: B * H * query_time, used with several splits.
// keys_per_split: block y takes that many keys from y * keys_per_split on.
// Launch: grid (ceil(H / HK * query_time / rows) * B * HK, splits), where rows = 8 R; 128 threads.
// Shared: ((8 R + 32 C) * (number + 4) + 128 R C) * 4 bytes.
#define ENTRY(NAME, PADDED, R, C)                                                                                      \
    extern "C" __global__ void __launch_bounds__(ATTENTION_THREADS, ATTENTION_BLOCKS)                                  \
        NAME(Attention problem, float* output, float* log_sum_exp, unsigned long long partial,                         \
             unsigned keys_per_split) {                                                                                \
        attend<PADDED, R, C>(problem, output, log_sum_exp, partial, keys_per_split);                                   \
    }
ENTRY(attention_forward_32, 32, 8, 4)
ENTRY(attention_forward_64, 64, 8, 4)
ENTRY(attention_forward_128, 128, 8, 2)
ENTRY(attention_forward_256, 256, 4, 1)
ENTRY(attention_decode_32, 32, 1, 2)
ENTRY(attention_decode_64, 64, 1, 2)
ENTRY(attention_decode_128, 128, 1, 2)
ENTRY(attention_decode_256, 256, 1, 1)

// Merges what attention_forward computed over ranges of keys: O = sum of w_s O_s / sum of w_s in the order of the
// ranges, with w_s = exp(l_s - max l), and log-sum-exp = max l + log(sum of w_s).
//
// partial_output: (splits, B, H, query_time, D) f32; partial_log_sum_exp: (splits, B, H, query_time) f32.
// output: (B, query_time, H * D) f32; log_sum_exp: (B, H, query_time) f32, or null.
// Launch: grid (ceil(B * H * query_time / 4)); 128 threads, a warp for each row. No shared memory.
// Traffic: everything once.
extern "C" __global__ void __launch_bounds__(ATTENTION_THREADS)
    attention_merge(const float* partial_output, const float* partial_log_sum_exp, float* output, float* log_sum_exp,
                    unsigned splits, unsigned heads, unsigned query_time, unsigned head_size, unsigned long long rows) {
    const unsigned lane = threadIdx.x % WARP;
    const unsigned long long row = (unsigned long long)blockIdx.x * (ATTENTION_THREADS / WARP) + threadIdx.x / WARP;
    if (row >= rows) return;
    float maximum = FLOOR;
    for (unsigned s = 0; s < splits; ++s) maximum = fmaxf(maximum, partial_log_sum_exp[s * rows + row]);
    float sum = 0.0f;
    for (unsigned s = 0; s < splits; ++s) sum += exp2_fast((partial_log_sum_exp[s * rows + row] - maximum) * LOG2_E);
    const float factor = sum == 0.0f ? 0.0f : 1.0f / sum;
    const unsigned long long sequence = row / query_time / heads;
    const unsigned query = (unsigned)(row % query_time), head = (unsigned)(row / query_time % heads);
    float* const target = output + ((sequence * query_time + query) * heads + head) * head_size;
    for (unsigned d = lane; d < head_size; d += WARP) {
        float result = 0.0f;
        for (unsigned s = 0; s < splits; ++s) {
            const float weight = exp2_fast((partial_log_sum_exp[s * rows + row] - maximum) * LOG2_E);
            result = fmaf(weight, partial_output[(s * rows + row) * head_size + d], result);
        }
        target[d] = factor * result;
    }
    if (log_sum_exp && lane == 0) log_sum_exp[row] = sum == 0.0f ? -INFINITE : maximum + logf(sum);
}
