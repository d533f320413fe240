// Attention backward: the gradients of queries, keys, values and bias, with the probabilities computed again from the
// log-sum-exp (Dao et al. 2022, Dao 2023).
//
// With P = exp(S - log-sum-exp), f the dropout factors, and delta = rowsum(dO * O):
//
//   dV = (P * f)' dO      dP = f * (dO V')      dS = P * (dP - delta)      dQ = scale * dS K      dK = scale * dS' Q
//   dbias = sum of dS over the batch              drelative = sum of dS over the batch and along diagonals
//
// Every gradient has one block that adds it up in a fixed order, and so a kernel of its own: keys and values (over
// packed rows of queries, head after head), queries (over keys), bias (over the batch). Scores are computed once more
// in each; in return there are no atomics, and the same bits on every run.
//
// The gradient of the relative bias comes from the dS of the queries' kernel: a block adds up the diagonals of its tile
// of rows, key_time + 8 R - 1 numbers that nobody else writes, and one more kernel adds those of all tiles up.
#include "attention.cuh"

using namespace engine;

namespace engine {

// What a row of scores needs: its log-sum-exp in units of log 2, and delta.
struct Row {
    float log_sum_exp;
    float delta;
};

// A row that sees nothing, or is not there, gets plus infinity: its probabilities become 0.
__device__ __forceinline__ Row load_row(const float* log_sum_exp, const float* delta, unsigned long long row,
                                        bool is_inside) {
    if (!is_inside) return {INFINITE, 0.0f};
    const float value = log_sum_exp[row];
    return {value == -INFINITE ? INFINITE : value * LOG2_E, delta[row]};
}

__device__ __forceinline__ float probability(const Attention& problem, float product, unsigned long long bias_row,
                                             int relative_row, unsigned packed, unsigned key, const Row& row) {
    float score = product * (problem.scale * LOG2_E);
    if (problem.bias) score += problem.bias_at(bias_row, packed, key);
    if (problem.relative) score += problem.relative_at(relative_row, key);
    return exp2_fast(score - row.log_sum_exp);
}

// dK and dV of a tile of keys. Rows of the tiles are keys, columns are packed rows of queries.
template <int Padded, int R, int C>
__device__ __forceinline__ void key_value(const Attention& problem, const float* grad_output, const float* log_sum_exp,
                                          const float* delta, float* grad_key, float* grad_value, unsigned accumulate) {
    using Sizes = Tiles<Padded, R, C>;
    constexpr int ROWS = Sizes::ROWS, COLUMNS = Sizes::COLUMNS, STRIDE = Sizes::STRIDE, SHARE = Sizes::SHARE;
    extern __shared__ float4 memory[];
    float* const keys = (float*)memory;
    float* const values = keys + ROWS * STRIDE;
    float* const queries = values + ROWS * STRIDE;
    float* const gradients = queries + COLUMNS * STRIDE;
    float* const weights = gradients + COLUMNS * STRIDE;

    const unsigned x = threadIdx.x % 16, y = threadIdx.x / 16;
    const unsigned head_size = problem.head_size, depth = (head_size + 3) & ~3u;
    const unsigned pairs = problem.batch * problem.key_value_heads, rows = problem.rows();
    const unsigned pair = blockIdx.x % pairs;
    const unsigned batch = pair / problem.key_value_heads, key_head = pair % problem.key_value_heads;
    const unsigned first_key = blockIdx.x / pairs * ROWS;
    const unsigned count = min((unsigned)ROWS, problem.key_time - first_key);
    const unsigned length = problem.key_length(batch);
    const unsigned long long bias_row = problem.first_row(0, key_head);
    const unsigned long long first_of_batch = problem.first_row(batch, key_head);

    const float* const query = problem.query + batch * problem.query_sequence + key_head * problem.group * head_size;
    const float* const gradient = grad_output + problem.output_start(batch, key_head);
    const unsigned stride = problem.heads() * head_size;
    const bool queries_are_aligned = is_aligned(query, problem.query_row, head_size);
    const bool gradients_are_aligned = is_aligned(gradient, stride, head_size);
    const auto load_queries = [&](unsigned first) {
        load_tile<Padded, COLUMNS>(queries, query, rows - first, head_size, queries_are_aligned,
                                   [&](unsigned row) { return problem.offset(first + row, problem.query_row); });
        copy_async_commit();
    };
    const auto load_gradients = [&](unsigned first) {
        load_tile<Padded, COLUMNS>(gradients, gradient, rows - first, head_size, gradients_are_aligned,
                                   [&](unsigned row) { return problem.offset(first + row, stride); });
        copy_async_commit();
    };
    const Keys seeing = problem.seeing<ROWS>(batch, first_key, count);
    const int origin = problem.origin(batch);
    // The first packed row from `first` on whose query may see any of the keys; `rows` where there is none.
    const auto next = [&](unsigned first) {
        if (seeing.begin >= seeing.end || first >= rows) return rows;
        const unsigned head_start = problem.group == 1 ? 0 : first / problem.query_time * problem.query_time;
        const unsigned query = first - head_start;
        if (query >= seeing.end) first = head_start + problem.query_time + seeing.begin;
        else first = head_start + max(query, seeing.begin);
        return min(first, rows);
    };

    const unsigned long long start = batch * problem.key_sequence + key_head * head_size;
    const auto offset = [&](unsigned row) { return (unsigned long long)(first_key + row) * problem.key_row; };
    float key_sums[R][SHARE], value_sums[R][SHARE];
#pragma unroll
    for (int r = 0; r < R; ++r) {
#pragma unroll
        for (int i = 0; i < SHARE; ++i) key_sums[r][i] = value_sums[r][i] = 0.0f;
    }
    unsigned first = next(0);
    if (first < rows) {
        const float *const key = problem.key + start, *const value = problem.value + start;
        load_tile<Padded, ROWS>(keys, key, count, head_size, is_aligned(key, problem.key_row, head_size), offset);
        load_tile<Padded, ROWS>(values, value, count, head_size, is_aligned(value, problem.key_row, head_size), offset);
        load_queries(first);
        load_gradients(first);
    }
    while (first < rows) {
        copy_async_wait<0>();
        __syncthreads();
        const unsigned columns = min((unsigned)COLUMNS, rows - first);
        if (problem.dropout.threshold) {
            fill_dropout<Sizes, COLUMNS, ROWS, true>(problem, weights,
                                                     (first_of_batch + first) * problem.key_time + first_key);
            __syncthreads();
        }
        float probabilities[R][C];
        multiply_rows<STRIDE>(keys + y * STRIDE, queries + x * STRIDE, depth, probabilities);
        Row row[C];
        unsigned kept = 0;
#pragma unroll
        for (int c = 0; c < C; ++c) {
            const unsigned column = first + x + 16 * c;
            const bool is_inside = column < rows;
            row[c] = load_row(log_sum_exp, delta, first_of_batch + column, is_inside);
            const Keys seen = is_inside ? problem.seen_by_row(batch, column, length) : Keys{0, 0};
            const int relative_row = problem.relative_row(key_head, column, origin);
#pragma unroll
            for (int r = 0; r < R; ++r) {
                const unsigned key = first_key + y + 8 * r;
                float& value = probabilities[r][c];
                value = probability(problem, value, bias_row, relative_row, column, key, row[c]);
                if (!seen.has(key)) value = 0.0f;
                float& weight = weights[Sizes::weight(y + 8 * r, x + 16 * c)];
                if (problem.dropout.threshold) {
                    if (weight != 0.0f) kept |= 1u << (r * C + c);
                    weight *= value;
                } else {
                    weight = value;
                }
            }
        }
        __syncwarp();
        multiply_columns<Sizes>(weights, gradients, columns, y, x, value_sums);
        float scores[R][C];
        multiply_rows<STRIDE>(values + y * STRIDE, gradients + x * STRIDE, depth, scores);
        const unsigned following = next(first + COLUMNS);
        __syncthreads();
        if (following < rows) load_gradients(following);
#pragma unroll
        for (int c = 0; c < C; ++c) {
#pragma unroll
            for (int r = 0; r < R; ++r) {
                float factor = 1.0f;
                if (problem.dropout.threshold) factor = kept >> (r * C + c) & 1 ? problem.dropout.scale : 0.0f;
                weights[Sizes::weight(y + 8 * r, x + 16 * c)] =
                    probabilities[r][c] * fmaf(scores[r][c], factor, -row[c].delta);
            }
        }
        __syncwarp();
        multiply_columns<Sizes>(weights, queries, columns, y, x, key_sums);
        __syncthreads();
        if (following < rows) load_queries(following);
        first = following;
    }

    // All warps are behind the last barrier: keys and values are not needed any more.
#pragma unroll
    for (int r = 0; r < R; ++r) {
        store_share(keys + (y + 8 * r) * STRIDE, key_sums[r], problem.scale, x);
        store_share(values + (y + 8 * r) * STRIDE, value_sums[r], 1.0f, x);
    }
    __syncthreads();
    float *const key_target = grad_key + start, *const value_target = grad_value + start;
    store_tile<Padded, ROWS>(keys, key_target, count, head_size, is_aligned(key_target, problem.key_row, head_size),
                             accumulate, offset);
    store_tile<Padded, ROWS>(values, value_target, count, head_size,
                             is_aligned(value_target, problem.key_row, head_size), accumulate, offset);
}

// From tiles of S and dP, whose rows are packed rows of queries: dS.
template <int R, int C>
struct ScoreGradients {
    Row row[R];
    Keys seen[R];
    int relative_row[R];

    __device__ __forceinline__ ScoreGradients(const Attention& problem, const float* log_sum_exp, const float* delta,
                                              unsigned batch, unsigned key_head, unsigned first, unsigned y) {
        const unsigned length = problem.key_length(batch);
        const int origin = problem.origin(batch);
#pragma unroll
        for (int r = 0; r < R; ++r) {
            const unsigned packed = first + y + 8 * r;
            const bool is_inside = packed < problem.rows();
            row[r] = load_row(log_sum_exp, delta, problem.first_row(batch, key_head) + packed, is_inside);
            seen[r] = is_inside ? problem.seen_by_row(batch, packed, length) : Keys{0, 0};
            relative_row[r] = problem.relative_row(key_head, packed, origin);
        }
    }

    // One element; `factor` is its dropout factor.
    __device__ __forceinline__ float at(const Attention& problem, int r, float score, float grad_probability,
                                        float factor, unsigned long long bias_row, unsigned packed,
                                        unsigned key) const {
        const float value = probability(problem, score, bias_row, relative_row[r], packed, key, row[r]);
        return (seen[r].has(key) ? value : 0.0f) * fmaf(grad_probability, factor, -row[r].delta);
    }
};

// Sums along the diagonals of tiles of dS: for each tile of Rows packed rows and each head that has rows in it, a list of
// Rows + key_time - 1 numbers. Number j - i + (last query of that head in the tile) is the sum over queries i and keys j.
template <int Rows>
struct Diagonals {
    static __device__ __forceinline__ unsigned width(const Attention& problem) { return problem.key_time + Rows - 1; }

    // Lists of a tile.
    static __device__ __forceinline__ unsigned lists(const Attention& problem) {
        return problem.group == 1 ? 1 : min(problem.group, (Rows + problem.query_time - 2) / problem.query_time + 1);
    }

    // The first list of the tile that begins with packed row `first`.
    static __device__ __forceinline__ unsigned long long start(const Attention& problem, unsigned first, unsigned pair) {
        const unsigned long long tile = (unsigned long long)(first / Rows) * problem.batch * problem.key_value_heads + pair;
        return tile * lists(problem) * width(problem);
    }

    // Row of the tile behind the last one of the same head as row `row` of it.
    static __device__ __forceinline__ unsigned head_end(const Attention& problem, unsigned first, unsigned row,
                                                        unsigned count) {
        if (problem.group == 1) return count;
        return min(count, ((first + row) / problem.query_time + 1) * problem.query_time - first);
    }
};

// dQ of a tile of packed rows; sums of dS along diagonals.
template <int Padded, int R, int C>
__device__ __forceinline__ void query(const Attention& problem, const float* grad_output, const float* log_sum_exp,
                                      const float* delta, float* grad_query, unsigned accumulate, float* diagonals) {
    using Sizes = Tiles<Padded, R, C>;
    constexpr int ROWS = Sizes::ROWS, COLUMNS = Sizes::COLUMNS, STRIDE = Sizes::STRIDE, SHARE = Sizes::SHARE;
    extern __shared__ float4 memory[];
    float* const queries = (float*)memory;
    float* const gradients = queries + ROWS * STRIDE;
    float* const keys = gradients + ROWS * STRIDE;
    float* const values = keys + COLUMNS * STRIDE;
    float* const weights = values + COLUMNS * STRIDE;

    const unsigned x = threadIdx.x % 16, y = threadIdx.x / 16;
    const unsigned head_size = problem.head_size, depth = (head_size + 3) & ~3u;
    const unsigned pairs = problem.batch * problem.key_value_heads;
    const unsigned pair = blockIdx.x % pairs;
    const unsigned batch = pair / problem.key_value_heads, key_head = pair % problem.key_value_heads;
    const unsigned first = ((problem.rows() + ROWS - 1) / ROWS - 1 - blockIdx.x / pairs) * ROWS;
    const unsigned count = min((unsigned)ROWS, problem.rows() - first);
    const Keys visible = problem.seen_by_rows<ROWS>(batch, first, count);
    const unsigned begin = visible.begin, end = visible.end;
    const unsigned long long query_start =
        batch * problem.query_sequence + (unsigned long long)key_head * problem.group * head_size;

    const unsigned long long key_start = batch * problem.key_sequence + key_head * head_size;
    const float *const key = problem.key + key_start, *const value = problem.value + key_start;
    const bool keys_are_aligned = is_aligned(key, problem.key_row, head_size);
    const bool values_are_aligned = is_aligned(value, problem.key_row, head_size);
    const auto load_keys = [&](float* tile, const float* source, bool is_aligned, unsigned at) {
        load_tile<Padded, COLUMNS>(tile, source, end - at, head_size, is_aligned, [&](unsigned row) {
            return (unsigned long long)(at + row) * problem.key_row;
        });
        copy_async_commit();
    };

    float result[R][SHARE];
#pragma unroll
    for (int r = 0; r < R; ++r) {
#pragma unroll
        for (int i = 0; i < SHARE; ++i) result[r][i] = 0.0f;
    }
    using Sums = Diagonals<ROWS>;
    const unsigned width = Sums::width(problem);
    if (diagonals) {
        diagonals += Sums::start(problem, first, pair);
        for (unsigned i = threadIdx.x; i < Sums::lists(problem) * width; i += ATTENTION_THREADS) diagonals[i] = 0.0f;
    }
    if (begin < end) {
        const float* const query = problem.query + query_start;
        const float* const gradient = grad_output + problem.output_start(batch, key_head);
        const unsigned stride = problem.heads() * head_size;
        load_tile<Padded, ROWS>(queries, query, count, head_size, is_aligned(query, problem.query_row, head_size),
                                [&](unsigned row) { return problem.offset(first + row, problem.query_row); });
        load_tile<Padded, ROWS>(gradients, gradient, count, head_size, is_aligned(gradient, stride, head_size),
                                [&](unsigned row) { return problem.offset(first + row, stride); });
        load_keys(keys, key, keys_are_aligned, begin);
        load_keys(values, value, values_are_aligned, begin);
    }
    const ScoreGradients<R, C> gradients_of_scores(problem, log_sum_exp, delta, batch, key_head, first, y);
    const unsigned long long bias_row = problem.first_row(0, key_head);
    for (unsigned at = begin; at < end; at += COLUMNS) {
        copy_async_wait<0>();
        __syncthreads();
        if (problem.dropout.threshold) {
            const unsigned long long row = problem.first_row(batch, key_head) + first;
            fill_dropout<Sizes, ROWS, COLUMNS, false>(problem, weights, row * problem.key_time + at);
        }
        float scores[R][C], grad_probabilities[R][C];
        multiply_rows<STRIDE>(queries + y * STRIDE, keys + x * STRIDE, depth, scores);
        multiply_rows<STRIDE>(gradients + y * STRIDE, values + x * STRIDE, depth, grad_probabilities);
        __syncthreads();
        if (at + COLUMNS < end) load_keys(values, value, values_are_aligned, at + COLUMNS);
#pragma unroll
        for (int r = 0; r < R; ++r) {
#pragma unroll
            for (int c = 0; c < C; ++c) {
                const unsigned row = y + 8 * r, column = x + 16 * c;
                float& weight = weights[Sizes::weight(row, column)];
                const float factor = problem.dropout.threshold ? weight : 1.0f;
                weight = gradients_of_scores.at(problem, r, scores[r][c], grad_probabilities[r][c], factor,
                                                bias_row, first + row, at + column);
            }
        }
        __syncwarp();
        multiply_columns<Sizes>(weights, keys, min((unsigned)COLUMNS, end - at), y, x, result);
        __syncthreads();
        if (at + COLUMNS < end) load_keys(keys, key, keys_are_aligned, at + COLUMNS);
        // The weights stay until the next barrier. A thread has a diagonal; another has it in the next tile of keys.
        if (diagonals && threadIdx.x < ROWS + COLUMNS - 1) {
            const int shift = (int)threadIdx.x - (ROWS - 1), columns = (int)min((unsigned)COLUMNS, end - at);
            float* list = diagonals;
            for (unsigned row = 0; row < count; list += width) {
                const unsigned head_end = Sums::head_end(problem, first, row, count);
                const int last = min((int)head_end, columns - shift);
                float sum = 0.0f;
#pragma unroll 4
                for (int i = max((int)row, -shift); i < last; ++i) sum += weights[Sizes::weight(i, i + shift)];
                if (max((int)row, -shift) < last) list[(int)(at + head_end) - 1 + shift] += sum;
                row = head_end;
            }
        }
    }
    if (!grad_query) return;

    // All warps are behind the last barrier: queries are not needed any more.
#pragma unroll
    for (int r = 0; r < R; ++r) store_share(queries + (y + 8 * r) * STRIDE, result[r], problem.scale, x);
    __syncthreads();
    float* const target = grad_query + query_start;
    store_tile<Padded, ROWS>(queries, target, count, head_size, is_aligned(target, problem.query_row, head_size),
                             accumulate, [&](unsigned row) { return problem.offset(first + row, problem.query_row); });
}

// One number of the gradient of the relative bias in each thread.
template <int Rows>
__device__ __forceinline__ void add_diagonals(const Attention& problem, const float* diagonals, float* grad_relative,
                                              unsigned accumulate) {
    using Sums = Diagonals<Rows>;
    const unsigned place = blockIdx.x * ATTENTION_THREADS + threadIdx.x, places = 2 * problem.radius - 1;
    if (place >= places) return;
    const unsigned head = blockIdx.y, key_head = head / problem.group, head_of_group = head % problem.group;
    const unsigned width = Sums::width(problem);
    const unsigned head_start = head_of_group * problem.query_time, head_end = head_start + problem.query_time;
    float sum = 0.0f;
    for (unsigned batch = 0; batch < problem.batch; ++batch) {
        // Key minus query, both from the start of their sequence.
        const int distance = (int)place - (int)(problem.radius - 1) + problem.origin(batch);
        const unsigned pair = batch * problem.key_value_heads + key_head;
        for (unsigned first = head_start / Rows * Rows; first < head_end; first += Rows) {
            const int last_query = (int)(min(first + Rows, head_end) - 1 - head_start);
            const int at = distance + last_query;
            if (at < 0 || at >= (int)width) continue;
            const unsigned list = head_of_group - first / problem.query_time;
            sum += diagonals[Sums::start(problem, first, pair) + (unsigned long long)list * width + at];
        }
    }
    write(grad_relative[(unsigned long long)head * places + place], sum, accumulate);
}

// dbias of a tile of packed rows and keys.
template <int Padded, int R, int C>
__device__ __forceinline__ void bias(const Attention& problem, const float* grad_output, const float* log_sum_exp,
                                     const float* delta, float* grad_bias, unsigned accumulate) {
    using Sizes = Tiles<Padded, R, C>;
    constexpr int ROWS = Sizes::ROWS, COLUMNS = Sizes::COLUMNS, STRIDE = Sizes::STRIDE;
    extern __shared__ float4 memory[];
    float* const queries = (float*)memory;
    float* const gradients = queries + ROWS * STRIDE;
    float* const keys = gradients + ROWS * STRIDE;
    float* const values = keys + COLUMNS * STRIDE;
    float* const weights = values + COLUMNS * STRIDE;

    const unsigned x = threadIdx.x % 16, y = threadIdx.x / 16;
    const unsigned head_size = problem.head_size, depth = (head_size + 3) & ~3u;
    const unsigned key_head = blockIdx.x % problem.key_value_heads;
    const unsigned first = blockIdx.x / problem.key_value_heads * ROWS, at = blockIdx.y * COLUMNS;
    const unsigned count = min((unsigned)ROWS, problem.rows() - first);
    const unsigned long long bias_row = problem.first_row(0, key_head);
    const unsigned stride = problem.heads() * head_size;

    float sums[R][C];
#pragma unroll
    for (int r = 0; r < R; ++r) {
#pragma unroll
        for (int c = 0; c < C; ++c) sums[r][c] = 0.0f;
    }
    for (unsigned batch = 0; batch < problem.batch; ++batch) {
        const unsigned end = problem.seen_by_rows<ROWS>(batch, first, count).end;
        if (at >= end) continue;
        const float* const query =
            problem.query + batch * problem.query_sequence + (unsigned long long)key_head * problem.group * head_size;
        const float* const gradient = grad_output + problem.output_start(batch, key_head);
        const unsigned long long start = batch * problem.key_sequence + key_head * head_size;
        const float *const key = problem.key + start, *const value = problem.value + start;
        const auto offset = [&](unsigned row) { return (unsigned long long)(at + row) * problem.key_row; };
        load_tile<Padded, ROWS>(queries, query, count, head_size, is_aligned(query, problem.query_row, head_size),
                                [&](unsigned row) { return problem.offset(first + row, problem.query_row); });
        load_tile<Padded, ROWS>(gradients, gradient, count, head_size, is_aligned(gradient, stride, head_size),
                                [&](unsigned row) { return problem.offset(first + row, stride); });
        load_tile<Padded, COLUMNS>(keys, key, end - at, head_size, is_aligned(key, problem.key_row, head_size), offset);
        load_tile<Padded, COLUMNS>(values, value, end - at, head_size, is_aligned(value, problem.key_row, head_size),
                                   offset);
        copy_async_commit();
        if (problem.dropout.threshold) {
            const unsigned long long row = problem.first_row(batch, key_head) + first;
            fill_dropout<Sizes, ROWS, COLUMNS, false>(problem, weights, row * problem.key_time + at);
        }
        const ScoreGradients<R, C> gradients_of_scores(problem, log_sum_exp, delta, batch, key_head, first, y);
        copy_async_wait<0>();
        __syncthreads();
        float scores[R][C], grad_probabilities[R][C];
        multiply_rows<STRIDE>(queries + y * STRIDE, keys + x * STRIDE, depth, scores);
        multiply_rows<STRIDE>(gradients + y * STRIDE, values + x * STRIDE, depth, grad_probabilities);
#pragma unroll
        for (int r = 0; r < R; ++r) {
#pragma unroll
            for (int c = 0; c < C; ++c) {
                const unsigned row = y + 8 * r, column = x + 16 * c;
                const float factor = problem.dropout.threshold ? weights[Sizes::weight(row, column)] : 1.0f;
                sums[r][c] += gradients_of_scores.at(problem, r, scores[r][c], grad_probabilities[r][c], factor,
                                                     bias_row, first + row, at + column);
            }
        }
        __syncthreads();
    }
#pragma unroll
    for (int r = 0; r < R; ++r) {
#pragma unroll
        for (int c = 0; c < C; ++c) {
            const unsigned row = y + 8 * r, column = at + x + 16 * c;
            if (row < count && column < problem.key_time) {
                write(grad_bias[(bias_row + first + row) * problem.key_time + column], sums[r][c], accumulate);
            }
        }
    }
}

}  // namespace engine

// delta[b, h, i] = sum over d of dO[b, i, h, d] * O[b, i, h, d]
//
// grad_output, output: (B, query_time, H * D) f32; delta: (B, H, query_time) f32. rows = B * H * query_time.
// Launch: grid (ceil(rows / 4)); 128 threads, a warp for each row. No shared memory.
// Traffic: everything once, which is the least.
extern "C" __global__ void __launch_bounds__(ATTENTION_THREADS)
    attention_delta(const float* grad_output, const float* output, float* delta, unsigned heads, unsigned query_time,
                    unsigned head_size, unsigned long long rows) {
    const unsigned lane = threadIdx.x % WARP;
    // Neighbouring warps take neighbouring heads of a query, so that they read neighbouring memory.
    const unsigned long long at = (unsigned long long)blockIdx.x * (ATTENTION_THREADS / WARP) + threadIdx.x / WARP;
    if (at >= rows) return;
    float sum = 0.0f;
    for (unsigned d = lane; d < head_size; d += WARP) {
        sum = fmaf(grad_output[at * head_size + d], output[at * head_size + d], sum);
    }
    sum = warp_sum(sum);
    const unsigned long long query = at / heads, batch = query / query_time;
    const unsigned head = (unsigned)(at - query * heads);
    if (lane == 0) delta[(batch * heads + head) * query_time + (query - batch * query_time)] = sum;
}

// The gradients of keys and values: dV = (P * f)' dO and dK = scale * dS' Q, for a tile of 8 R keys in each block.
//
// The number is the largest head size that the entry takes.
//
// problem: see Attention; f32.
// grad_output: (B, query_time, H * D) f32. log_sum_exp, delta: (B, H, query_time) f32.
// grad_key, grad_value: f32, laid out as the keys and values; key_time rows of each sequence are written.
// accumulate: 1 adds to what is there.
// Launch: grid (ceil(key_time / (8 R)) * B * HK), 128 threads.
// Shared: ((16 R + 32 C) * (number + 4) + 128 R C) * 4 bytes.
// Traffic: at least every input once and both results once; queries and dO are read once for every tile of keys that
//   they see.
#define KEY_VALUE(NAME, PADDED, R, C)                                                                                  \
    extern "C" __global__ void __launch_bounds__(ATTENTION_THREADS, ATTENTION_BLOCKS)                                  \
        NAME(Attention problem, const float* grad_output, const float* log_sum_exp, const float* delta,                \
             float* grad_key, float* grad_value, unsigned accumulate) {                                                \
        key_value<PADDED, R, C>(problem, grad_output, log_sum_exp, delta, grad_key, grad_value, accumulate);           \
    }
KEY_VALUE(attention_backward_key_value_32, 32, 8, 2)
KEY_VALUE(attention_backward_key_value_64, 64, 8, 2)
KEY_VALUE(attention_backward_key_value_128, 128, 4, 2)
KEY_VALUE(attention_backward_key_value_256, 256, 2, 1)

// The gradient of the queries: dQ = scale * dS K, for a tile of 8 R packed rows in each block.
//
// Arguments as above. grad_query: f32, laid out as the queries; H * D columns of each row are written. Or null.
// diagonals: sums of dS along diagonals, f32, see Diagonals<8 R>: (tiles of packed rows, B * HK, lists, width); every
//   number is written. Or null.
// Launch: grid (ceil(H / HK * query_time / (8 R)) * B * HK), 128 threads.
// Shared: as above.
// Traffic: at least every input once and the result once; keys and values are read once for every tile of queries
//   that sees them.
#define QUERY(NAME, PADDED, R, C)                                                                                      \
    extern "C" __global__ void __launch_bounds__(ATTENTION_THREADS, ATTENTION_BLOCKS)                                  \
        NAME(Attention problem, const float* grad_output, const float* log_sum_exp, const float* delta,                \
             float* grad_query, unsigned accumulate, float* diagonals) {                                               \
        query<PADDED, R, C>(problem, grad_output, log_sum_exp, delta, grad_query, accumulate, diagonals);              \
    }
QUERY(attention_backward_query_32, 32, 8, 2)
QUERY(attention_backward_query_64, 64, 8, 2)
QUERY(attention_backward_query_128, 128, 4, 2)
QUERY(attention_backward_query_256, 256, 2, 1)

// The gradient of the bias: dS, summed over the batch in its order, for a tile of 8 R packed rows and 16 C keys in each
// block.
//
// Arguments as above. grad_bias: (H, query_time, key_time) f32.
// Launch: grid (ceil(H / HK * query_time / (8 R)) * HK, ceil(key_time / (16 C))), 128 threads.
// Shared: as above.
// Traffic: at least every input once and the result once; queries and dO are read once for every tile of keys, keys and
//   values once for every tile of queries.
#define BIAS(NAME, PADDED, R, C)                                                                                       \
    extern "C" __global__ void __launch_bounds__(ATTENTION_THREADS, ATTENTION_BLOCKS)                                  \
        NAME(Attention problem, const float* grad_output, const float* log_sum_exp, const float* delta,                \
             float* grad_bias, unsigned accumulate) {                                                                  \
        bias<PADDED, R, C>(problem, grad_output, log_sum_exp, delta, grad_bias, accumulate);                           \
    }
BIAS(attention_backward_bias_32, 32, 8, 2)
BIAS(attention_backward_bias_64, 64, 8, 2)
BIAS(attention_backward_bias_128, 128, 4, 2)
BIAS(attention_backward_bias_256, 256, 2, 1)

// The gradient of the relative bias: what the queries' kernel left of each tile, added up in the order of the batch and
// of the tiles.
//
// The number is that of packed rows in a tile, 8 R.
//
// problem: see Attention; f32. diagonals: as above.
// grad_relative: (H, 2 * radius - 1) f32. accumulate: 1 adds to what is there.
// Launch: grid (ceil((2 * radius - 1) / 128), H), 128 threads. No shared memory.
// Traffic: everything once, which is the least.
#define RELATIVE(NAME, ROWS)                                                                                           \
    extern "C" __global__ void __launch_bounds__(ATTENTION_THREADS)                                                    \
        NAME(Attention problem, const float* diagonals, float* grad_relative, unsigned accumulate) {                   \
        add_diagonals<ROWS>(problem, diagonals, grad_relative, accumulate);                                            \
    }
RELATIVE(attention_backward_relative_64, 64)
RELATIVE(attention_backward_relative_32, 32)
RELATIVE(attention_backward_relative_16, 16)
