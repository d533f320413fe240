// What the kernels of attention share: the problem, tiles in shared memory, and the two products that everything is
// made of.
//
// A block of 128 threads is 8 groups of 16: thread (y, x) with x fastest. It owns rows y, y + 8, y + 16 ... of a tile
// and, of those, either columns x, x + 16 ... of a tile of scores or a sixteenth of the head's columns. So
//
//   multiply_rows:     scores[row][column] = sum over d of left[row][d] * right[column][d]       (S = Q K', dP = dO V')
//   multiply_columns:  result[row][d]     += sum over columns of weights[row][column] * right[column][d]
//                                                                      (O += P V, dQ += dS K, dV += P' dO, dK += dS' Q)
//
// keep their results in registers, and the weights that pass from the first to the second through shared memory stay
// within one warp: no barrier of the block between them.
//
// Rows of queries are packed: the queries of all heads that share a key/value head are one list, row = (head in the
// group) * query_time + query. Keys and values are so read once for the whole group, also when decoding one token; and
// because heads of a group are neighbours, the row's place in the log-sum-exp, the bias and the dropout mask is linear.
//
// A row of the batch may hold several documents. A tile then walks over the smallest range that holds the documents of
// its rows, wherever that begins, and masks element by element: the cost is that of the documents, not of the row.
#pragma once

#include "common.cuh"

namespace engine {

constexpr unsigned ATTENTION_THREADS = 128;
// Blocks on a multiprocessor, at least: leaves 255 registers to each thread. Left to itself, ptxas aims at more blocks
// and spills.
constexpr unsigned ATTENTION_BLOCKS = 2;
constexpr float LOG2_E = 1.44269504088896340736f;
constexpr float LN_2 = 0.69314718055994530942f;
constexpr float INFINITE = __builtin_huge_valf();

// Positions begin .. end - 1.
struct Keys {
    unsigned begin;
    unsigned end;

    // For begin <= end.
    __device__ __forceinline__ bool has(unsigned position) const { return position - begin < end - begin; }
};

// Sizes and inputs. As `gpu::attention` packs it.
struct Attention {
    const float* query;      // query (b, i, h) at b * query_sequence + i * query_row + h * head_size
    const float* key;        // key (b, j, h) at b * key_sequence + j * key_row + h * head_size
    const float* value;      // as the keys
    const int* key_lengths;  // (B), or null
    const int2* documents;   // (B, T): first position and end of each position's document, (0, 0) in padding; or null
    const float* bias;       // (H, query_time, key_time), or null
    const float* relative;   // (H, 2 * radius - 1): of a key's distance from the query, + radius - 1; or null
    unsigned long long query_sequence, key_sequence;
    Dropout dropout;
    unsigned query_row, key_row;
    unsigned batch, query_time, key_time, key_value_heads;
    unsigned group;  // H / HK
    unsigned head_size;
    float scale;
    unsigned is_causal;
    unsigned radius;
    unsigned queries_are_last;  // the relative bias counts from the end of the sequence's keys

    __device__ __forceinline__ unsigned heads() const { return group * key_value_heads; }

    // Packed rows of queries of one key/value head.
    __device__ __forceinline__ unsigned rows() const { return group * query_time; }

    // Index of packed row 0 in the log-sum-exp; in the bias with batch 0.
    __device__ __forceinline__ unsigned long long first_row(unsigned batch, unsigned key_head) const {
        return ((unsigned long long)batch * key_value_heads + key_head) * rows();
    }

    // The bias of a packed row and a key, in units of log 2. Behind the last row or key, that of the last: to be ignored.
    __device__ __forceinline__ float bias_at(unsigned long long first_row, unsigned row, unsigned key) const {
        return LOG2_E * bias[(first_row + min(row, rows() - 1)) * key_time + min(key, key_time - 1)];
    }

    // Where query 0 of a sequence stands among its keys, for the relative bias.
    __device__ __forceinline__ int origin(unsigned batch) const {
        const unsigned end = queries_are_last ? key_length(batch) : is_causal ? key_time : query_time;
        return (int)(end - query_time);
    }

    // The relative bias of a packed row and key j, in units of log 2, is that of index relative_row(...) + j. Behind the
    // last row or key, that of the last: to be ignored.
    __device__ __forceinline__ int relative_row(unsigned key_head, unsigned row, int origin) const {
        row = min(row, rows() - 1);
        const unsigned head = group == 1 ? 0 : row / query_time;
        const unsigned query = row - head * query_time;
        return (int)((key_head * group + head) * (2 * radius - 1) + radius - 1 - query) - origin;
    }
    __device__ __forceinline__ float relative_at(int relative_row, unsigned key) const {
        // Keys behind a sequence's length may be farther away than the table reaches.
        const unsigned last = key_value_heads * group * (2 * radius - 1) - 1;
        return LOG2_E * relative[min((unsigned)max(relative_row + (int)key, 0), last)];
    }

    // Where a packed row is, from the first query of its key/value head, in a tensor with rows of `stride` elements.
    __device__ __forceinline__ unsigned long long offset(unsigned row, unsigned stride) const {
        const unsigned head = group == 1 ? 0 : row / query_time;
        return (unsigned long long)(row - head * query_time) * stride + head * head_size;
    }

    // The packed rows of a sequence and key/value head in a tensor (B, query_time, H * D).
    __device__ __forceinline__ unsigned long long output_start(unsigned batch, unsigned key_head) const {
        return ((unsigned long long)batch * query_time * key_value_heads + key_head) * group * head_size;
    }

    __device__ __forceinline__ unsigned key_length(unsigned batch) const {
        return key_lengths ? (unsigned)min(max(key_lengths[batch], 0), (int)key_time) : key_time;
    }

    // How many keys the query sees under the mask alone.
    __device__ __forceinline__ unsigned seen_by_query(unsigned query) const {
        return is_causal ? query + 1 + key_time - query_time : key_time;
    }

    // The document of a position: all of the row where there are none.
    __device__ __forceinline__ Keys document(unsigned batch, unsigned position) const {
        if (!documents) return {0, key_time};
        const int2 pair = documents[(unsigned long long)batch * query_time + position];
        // Nobody has checked what a GPU's memory holds.
        return {min((unsigned)max(pair.x, 0), key_time), min((unsigned)max(pair.y, 0), key_time)};
    }

    // The keys that a packed row sees.
    __device__ __forceinline__ Keys seen_by_row(unsigned batch, unsigned row, unsigned length) const {
        const unsigned query = group == 1 ? row : row % query_time;
        const Keys keys = document(batch, query);
        const unsigned end = min(min(keys.end, length), seen_by_query(query));
        return {min(keys.begin, end), end};
    }

    // A range that holds the keys of all of `count` packed rows from `first` on. Called by whole warps.
    template <int Rows>
    __device__ __forceinline__ Keys seen_by_rows(unsigned batch, unsigned first, unsigned count) const {
        const unsigned length = key_length(batch), last = first + count - 1;
        if (!documents) {
            // Rows of several heads include a last query.
            const bool is_one_head = group == 1 || first / query_time == last / query_time;
            return {0, min(length, seen_by_query(is_one_head ? last % query_time : query_time - 1))};
        }
        return union_of<Rows>(count, [&](unsigned row) { return seen_by_row(batch, first + row, length); });
    }

    // The queries of each head that may see any of `count` keys from `first` on. Called by whole warps.
    template <int Rows>
    __device__ __forceinline__ Keys seeing(unsigned batch, unsigned first, unsigned count) const {
        if (first >= key_length(batch)) return {query_time, 0};
        Keys queries = {0, query_time};
        if (documents) {
            queries = union_of<Rows>(count, [&](unsigned key) { return document(batch, first + key); });
        }
        const unsigned before = key_time - query_time;
        if (is_causal && first > before) queries.begin = max(queries.begin, first - before);
        return queries;
    }

   private:
    // The smallest range that holds range(0) .. range(count - 1), but for empty ones.
    template <int Rows, class Range>
    static __device__ __forceinline__ Keys union_of(unsigned count, Range range) {
        Keys all = {~0u, 0};
        for (unsigned i = threadIdx.x % WARP; i < Rows; i += WARP) {
            const Keys keys = i < count ? range(i) : Keys{0, 0};
            if (keys.begin < keys.end) all = {min(all.begin, keys.begin), max(all.end, keys.end)};
        }
#pragma unroll
        for (unsigned distance = WARP / 2; distance > 0; distance /= 2) {
            all.begin = min(all.begin, __shfl_xor_sync(ALL_LANES, all.begin, distance));
            all.end = max(all.end, __shfl_xor_sync(ALL_LANES, all.end, distance));
        }
        return all;
    }
};

// Sizes of tiles for head sizes up to `Padded`, with R x C scores in each thread.
template <int Padded, int R, int C>
struct Tiles {
    static constexpr int ROWS = 8 * R;
    static constexpr int COLUMNS = 16 * C;
    // Rows of 8 neighbouring threads begin 4 banks apart: reads of 16 bytes are free of conflicts.
    static constexpr int STRIDE = Padded + 4;
    // Columns of the head in each thread.
    static constexpr int SHARE = Padded / 16;

    // Where a weight lies. The two rows that a warp writes at once are neighbours and must use different banks.
    static __device__ __forceinline__ unsigned weight(unsigned row, unsigned column) {
        return row * COLUMNS + (C > 1 ? column ^ (row & 1) * 16 : column);
    }
};

// 2^x within 2 units in the last place; 0 for what is below the normal numbers.
__device__ __forceinline__ float exp2_fast(float x) {
    float result;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
    return result;
}

__device__ __forceinline__ bool is_aligned(const void* pointer, unsigned stride, unsigned head_size) {
    return ((unsigned)(unsigned long long)pointer & 15) == 0 && ((stride | head_size) & 3) == 0;
}

// Calls body(row, column) for the pieces of a tile's rows and of the head's columns that each thread takes: pieces of 4
// elements where memory is aligned, else single elements.
template <int Padded, int Rows, class Body>
__device__ __forceinline__ void for_each_piece(bool is_aligned, Body body) {
    const unsigned shift = is_aligned ? 2 : 0;
#pragma unroll 1
    for (unsigned i = threadIdx.x << shift; i < Rows * Padded; i += ATTENTION_THREADS << shift) {
        body(i / Padded, i % Padded);
    }
}

// Begins to copy a tile, row r from `source + offset(r)`. Rows from `count` on and columns behind the head become zero.
template <int Padded, int Rows, class Offset>
__device__ __forceinline__ void load_tile(float* tile, const float* source, unsigned count, unsigned head_size,
                                          bool is_aligned, Offset offset) {
    for_each_piece<Padded, Rows>(is_aligned, [&](unsigned row, unsigned column) {
        const bool is_inside = row < count && column < head_size;
        float* const to = tile + row * (Padded + 4) + column;
        const float* const from = is_inside ? source + offset(row) + column : source;
        if (is_aligned) {
            copy_async_16(to, from, is_inside ? 16 : 0);
        } else {
            copy_async_4(to, from, is_inside ? 4 : 0);
        }
    });
}

// Writes 16 bytes, aligned to 16. The compiler takes some such stores apart, and these then touch every sector four times.
__device__ __forceinline__ void store_four(float* target, float4 four) {
    asm volatile("st.global.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(target)), "f"(four.x),
                 "f"(four.y), "f"(four.z), "f"(four.w)
                 : "memory");
}

// Writes a tile's first `count` rows, row r to `target + offset(r)`, or adds them.
template <int Padded, int Rows, class Offset>
__device__ __forceinline__ void store_tile(const float* tile, float* target, unsigned count, unsigned head_size,
                                           bool is_aligned, unsigned accumulate, Offset offset) {
    for_each_piece<Padded, Rows>(is_aligned, [&](unsigned row, unsigned column) {
        if (row >= count || column >= head_size) return;
        const float* const from = tile + row * (Padded + 4) + column;
        float* const to = target + offset(row) + column;
        if (is_aligned) {
            float4 four = *(const float4*)from;
            if (accumulate) {
                const float4 old = *(const float4*)to;
                four.x += old.x, four.y += old.y, four.z += old.z, four.w += old.w;
            }
            store_four(to, four);
        } else {
            write(*to, *from, accumulate);
        }
    });
}

// result[r][c] = sum over d < depth of left[8 r][d] * right[16 c][d]; the pointers are at the thread's first rows.
template <int Stride, int R, int C>
__device__ __forceinline__ void multiply_rows(const float* left, const float* right, unsigned depth,
                                              float (&result)[R][C]) {
#pragma unroll
    for (int r = 0; r < R; ++r) {
#pragma unroll
        for (int c = 0; c < C; ++c) result[r][c] = 0.0f;
    }
#pragma unroll 1
    for (unsigned d = 0; d < depth; d += 4) {
        float4 b[C];
#pragma unroll
        for (int c = 0; c < C; ++c) b[c] = *(const float4*)(right + 16 * c * Stride + d);
#pragma unroll
        for (int r = 0; r < R; ++r) {
            const float4 a = *(const float4*)(left + 8 * r * Stride + d);
#pragma unroll
            for (int c = 0; c < C; ++c) {
                result[r][c] = fmaf(a.x, b[c].x, result[r][c]);
                result[r][c] = fmaf(a.y, b[c].y, result[r][c]);
                result[r][c] = fmaf(a.z, b[c].z, result[r][c]);
                result[r][c] = fmaf(a.w, b[c].w, result[r][c]);
            }
        }
    }
}

// The thread's share of a row of the head: pairs where the head is at most 32 wide, else quadruples.
template <int Share>
__device__ __forceinline__ void load_share(float (&share)[Share], const float* row, unsigned x) {
    if constexpr (Share == 2) {
        const float2 pair = *(const float2*)(row + 2 * x);
        share[0] = pair.x, share[1] = pair.y;
    } else {
#pragma unroll
        for (int i = 0; i < Share; i += 4) {
            const float4 four = *(const float4*)(row + 16 * i + 4 * x);
            share[i] = four.x, share[i + 1] = four.y, share[i + 2] = four.z, share[i + 3] = four.w;
        }
    }
}

// result[r] += sum over j < columns of weights[y + 8 r][j] * right[j], for the thread's share of the head.
template <class Tiles, int R, int Share>
__device__ __forceinline__ void multiply_columns(const float* weights, const float* right, unsigned columns, unsigned y,
                                                 unsigned x, float (&result)[R][Share]) {
#pragma unroll 1
    for (unsigned j = 0; j < columns; j += 4) {
        const float* const first = weights + Tiles::weight(y, j);
        float b[4][Share];
#pragma unroll
        for (int k = 0; k < 4; ++k) load_share(b[k], right + (j + k) * Tiles::STRIDE, x);
#pragma unroll
        for (int r = 0; r < R; ++r) {
            const float4 a = *(const float4*)(first + 8 * r * Tiles::COLUMNS);
#pragma unroll
            for (int i = 0; i < Share; ++i) {
                result[r][i] = fmaf(a.x, b[0][i], result[r][i]);
                result[r][i] = fmaf(a.y, b[1][i], result[r][i]);
                result[r][i] = fmaf(a.z, b[2][i], result[r][i]);
                result[r][i] = fmaf(a.w, b[3][i], result[r][i]);
            }
        }
    }
}

// Writes the thread's share of a row in shared memory, times a factor.
template <int Share>
__device__ __forceinline__ void store_share(float* row, const float (&share)[Share], float factor, unsigned x) {
    if constexpr (Share == 2) {
        *(float2*)(row + 2 * x) = make_float2(factor * share[0], factor * share[1]);
    } else {
#pragma unroll
        for (int i = 0; i < Share; i += 4) {
            *(float4*)(row + 16 * i + 4 * x) = make_float4(factor * share[i], factor * share[i + 1],
                                                           factor * share[i + 2], factor * share[i + 3]);
        }
    }
}

// Fills a tile of weights with the dropout factors of Rows packed rows x Keys keys; `first` is the index of the first
// row's first element. A random block serves four neighbouring keys. In a transposed tile, rows are keys.
template <class Tiles, int Rows, int Keys, bool IsTransposed>
__device__ __forceinline__ void fill_dropout(const Attention& problem, float* weights, unsigned long long first) {
    // Rows need not begin with a block, so that they touch one more.
    constexpr unsigned BLOCKS = Keys / 4 + 1;
#pragma unroll 1
    for (unsigned i = threadIdx.x; i < Rows * BLOCKS; i += ATTENTION_THREADS) {
        const unsigned row = i / BLOCKS, block = i % BLOCKS;
        const unsigned long long start = first + (unsigned long long)row * problem.key_time;
        const uint4 words = random_words(problem.dropout, (start >> 2) + block);
        const unsigned key = 4 * block - ((unsigned)start & 3);
        const unsigned word[4] = {words.x, words.y, words.z, words.w};
#pragma unroll
        for (unsigned k = 0; k < 4; ++k) {
            // Before the first key wraps around to a large number.
            if (key + k < Keys) {
                const unsigned place = IsTransposed ? Tiles::weight(key + k, row) : Tiles::weight(row, key + k);
                weights[place] = dropout_factor(problem.dropout, word[k]);
            }
        }
    }
}

}  // namespace engine
