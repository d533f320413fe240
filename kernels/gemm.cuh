// Matrix product in f32: block tiles in shared memory, filled by cp.async while the previous ones are multiplied, and
// 8 x 8 results per thread in registers (register tiling as in CUTLASS; Kerr et al. 2017).
//
// result (rows, columns) = left (rows, depth) · right (depth, columns). Either operand may lie in memory with the depth
// last (a row of memory is a row of the operand's tile) or first; the tile keeps that order, so that nothing is
// transposed, and each thread reads 16 bytes at a time: along the depth, or along the rows. Both take 4 reads of shared
// memory per 64 multiplications.
//
//   block      warps of 32 x 64 results:    256 threads, 128 x 128  or  64 threads, 64 x 64
//   warp       4 x 8 lanes
//   lane       rows 4 * lane_row + {0..3} + {0, 16}, columns 4 * lane_column + {0..3} + {0, 32}: stores of 16 bytes
//
// The sum of an element runs over the depth in order whatever the tile, so the tile's size does not change a bit.
#pragma once

#include "common.cuh"

namespace engine {

// Depth of a stage. 16 floats of 128 rows, twice for double buffering, for both operands: 32 KiB, two blocks on any
// multiprocessor since sm_80.
constexpr unsigned DEPTH = 16;
constexpr unsigned QUADS = DEPTH / 4;

// Which rows of memory belong to a tile's rows: `first` and those behind it, below `count`. With a partner every second
// 32 rows are those of the 32 before, `partner` further on: the up-projections of SwiGLU beside their gates, where each
// lane finds them in its own registers.
struct Span {
    unsigned first, count, partner;

    __device__ __forceinline__ unsigned outer(unsigned row) const {
        return first + (partner ? row / 64 * 32 + row % 32 : row);
    }
    __device__ __forceinline__ bool contains(unsigned row) const { return outer(row) < count; }
    __device__ __forceinline__ unsigned at(unsigned row) const {
        return outer(row) + (row & 32 ? partner : 0);
    }
};

__device__ __forceinline__ bool aligned_16(const void* address) { return ((unsigned long long)address & 15) == 0; }

// A constant as an argument, and a loop over the first N: what becomes part of an instruction must be known as such.
template <unsigned Value>
struct Constant {
    static constexpr unsigned value = Value;
};
template <unsigned N, unsigned First = 0, class Body>
__device__ __forceinline__ void each(Body body) {
    if constexpr (First < N) {
        body(Constant<First>());
        each<N, First + 1>(body);
    }
}

// 16 bytes of shared memory. Said in PTX: the compiler takes vectors apart and does not always find them again.
template <unsigned Offset>
__device__ __forceinline__ float4 read_quad(unsigned shared) {
    float4 quad;
    asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4+%5];"
                 : "=f"(quad.x), "=f"(quad.y), "=f"(quad.z), "=f"(quad.w)
                 : "r"(shared), "n"(Offset)
                 : "memory");
    return quad;
}

__device__ __forceinline__ unsigned shared_address(const float* shared) {
    return (unsigned)__cvta_generic_to_shared(shared);
}

// Where a lane finds its elements in a tile: at one of two shared addresses, plus a constant.
struct Place {
    unsigned even, odd;
};

// An operand whose memory has the depth last: (count, depth), rows `stride` apart.
//
// The tile is [Extent][DEPTH]. Its 16-byte quads are permuted within 128 bytes (quad ^ row / 4): the 8 lanes that read
// the same quad of rows 4 apart then meet 8 different groups of banks, and a copy still fills whole lines.
template <unsigned Extent, unsigned Threads>
struct DepthLast {
    static constexpr bool DEPTH_IS_LAST = true;
    static constexpr unsigned COPIES = Extent * QUADS / Threads;

    const float* quads[COPIES];  // this thread's next quad of each of its rows
    unsigned bytes[COPIES];      // 16, or 0 for a row outside
    unsigned target;             // where in the tile the first of them goes
    const float* memory;
    Span span;
    unsigned long long stride;
    bool has_quads;  // every row starts at a multiple of 16 bytes

    __device__ __forceinline__ DepthLast(const float* memory, unsigned stride, Span span, unsigned start)
        : target(place(threadIdx.x / QUADS, threadIdx.x % QUADS * 4)), memory(memory), span(span), stride(stride),
          has_quads(aligned_16(memory) && stride % 4 == 0) {
#pragma unroll
        for (unsigned i = 0; i < COPIES; ++i) {
            const unsigned row = threadIdx.x / QUADS + i * (Threads / QUADS);
            const bool is_inside = span.contains(row);
            bytes[i] = is_inside ? 16 : 0;
            // A row outside reads nothing; it points at the first only to point somewhere.
            quads[i] = memory + (is_inside ? span.at(row) * this->stride : 0) + start + threadIdx.x % QUADS * 4;
        }
    }

    // Of element (row, depth), in floats.
    __device__ static __forceinline__ unsigned place(unsigned row, unsigned depth) {
        return (row * DEPTH + depth) ^ row / 4 % 8 * 4;
    }

    // Of the quad at `depth` of a lane's first row, a multiple of 4.
    __device__ static __forceinline__ Place lane(const float* tile, unsigned row, unsigned depth) {
        const unsigned start = shared_address(tile + row * DEPTH), offset = depth * 4 ^ row / 4 % 8 * 16;
        return {start + offset, start + (offset ^ 64)};
    }

    // `Shift` rows further: a multiple of 16, plus up to 3. An odd row and an odd multiple of 16 each flip one bit of
    // the permuted quad.
    template <unsigned Shift>
    __device__ static __forceinline__ float4 read(Place place) {
        return read_quad<(Shift & ~1u) * DEPTH * 4>((Shift ^ Shift >> 4) & 1 ? place.odd : place.even);
    }

    // Copies the stage that starts at `depth`, which is the next; zeros from `end` on.
    __device__ __forceinline__ void copy(float* tile, unsigned depth, unsigned end) {
        if (has_quads) {
            const bool is_inside = depth + threadIdx.x % QUADS * 4 < end;
#pragma unroll
            for (unsigned i = 0; i < COPIES; ++i) {
                // Rows 16 apart flip a bit as in `read`; the large tile's are 64 apart.
                const unsigned flip = Threads / QUADS % 32 ? i % 2 * 16 : 0;
                copy_async_16(tile + (target ^ flip) + i * (Threads / QUADS) * DEPTH, quads[i],
                              is_inside ? bytes[i] : 0);
                quads[i] += DEPTH;
            }
        } else {
            const unsigned column = threadIdx.x % DEPTH;
#pragma unroll 2
            for (unsigned i = 0; i < 4 * COPIES; ++i) {
                const unsigned row = threadIdx.x / DEPTH + i * (Threads / DEPTH);
                const bool is_inside = span.contains(row) && depth + column < end;
                const float* source = memory + (is_inside ? span.at(row) * stride + depth + column : 0);
                copy_async_4(tile + place(row, column), source, is_inside ? 4 : 0);
            }
        }
    }
};

// An operand whose memory has the depth first: (depth, count), rows of memory `stride` apart. The tile is
// [DEPTH][Extent]: 8 lanes read 128 bytes of one row.
template <unsigned Extent, unsigned Threads>
struct DepthFirst {
    static constexpr bool DEPTH_IS_LAST = false;
    static constexpr unsigned COPIES = Extent * QUADS / Threads;
    static constexpr unsigned ROW_QUADS = Extent / 4;
    static constexpr unsigned STEP = Threads / ROW_QUADS;  // depths that the block copies at once

    const float* quad;  // this thread's next
    const float* memory;
    Span span;
    unsigned long long stride;
    bool has_quads, is_inside;

    __device__ __forceinline__ DepthFirst(const float* memory, unsigned stride, Span span, unsigned start)
        : memory(memory), span(span), stride(stride), has_quads(aligned_16(memory) && stride % 4 == 0) {
        const unsigned column = threadIdx.x % ROW_QUADS * 4;
        is_inside = span.contains(column);
        quad = memory + (start + threadIdx.x / ROW_QUADS) * this->stride + (is_inside ? span.at(column) : 0);
    }

    __device__ static __forceinline__ Place lane(const float* tile, unsigned row, unsigned depth) {
        return {shared_address(tile + depth * Extent + row), 0};
    }

    // Four rows from `Shift` on, `Depths` further.
    template <unsigned Shift, unsigned Depths>
    __device__ static __forceinline__ float4 read(Place place) {
        return read_quad<(Depths * Extent + Shift) * 4>(place.even);
    }

    __device__ __forceinline__ void copy(float* tile, unsigned depth, unsigned end) {
        if (has_quads) {
            float* target = tile + threadIdx.x * 4;
            const unsigned row = depth + threadIdx.x / ROW_QUADS;
#pragma unroll
            for (unsigned i = 0; i < COPIES; ++i) {
                copy_async_16(target + i * Threads * 4, quad, is_inside && row + i * STEP < end ? 16 : 0);
                quad += STEP * stride;
            }
        } else {
            const unsigned column = threadIdx.x % Extent;
            const bool has_column = span.contains(column);
#pragma unroll 2
            for (unsigned i = 0; i < 4 * COPIES; ++i) {
                const unsigned row = threadIdx.x / Extent + i * (Threads / Extent);
                const bool is_inside = has_column && depth + row < end;
                const float* source = memory + (is_inside ? (depth + row) * stride + span.at(column) : 0);
                copy_async_4(tile + row * Extent + column, source, is_inside ? 4 : 0);
            }
        }
    }
};

// A block's square tile of results.
template <unsigned Extent>
struct Product {
    static constexpr unsigned ROW_WARPS = Extent / 32, COLUMN_WARPS = Extent / 64;
    static constexpr unsigned THREADS = ROW_WARPS * COLUMN_WARPS * WARP;
    // Per multiprocessor at least: leaves 128 registers to a thread of the large tile, 168 to one of the small.
    static constexpr unsigned BLOCKS = Extent == 128 ? 2 : 6;
    static constexpr unsigned TILE = Extent * DEPTH;     // floats of one operand's stage
    static constexpr unsigned SHARED_FLOATS = 4 * TILE;  // two stages of two operands

    float sums[8][8];

    // This lane's first row and column within the tile.
    __device__ static __forceinline__ unsigned first_row() {
        return threadIdx.x / WARP / COLUMN_WARPS * 32 + threadIdx.x % WARP / 8 * 4;
    }
    __device__ static __forceinline__ unsigned first_column() {
        return threadIdx.x / WARP % COLUMN_WARPS * 64 + threadIdx.x % 8 * 4;
    }

    // Multiplies the depths start .. end of both operands.
    template <class Left, class Right>
    __device__ __forceinline__ void multiply(float* shared, Left& left, Right& right, unsigned start, unsigned end) {
#pragma unroll
        for (unsigned i = 0; i < 64; ++i) sums[i / 8][i % 8] = 0.0f;
        unsigned stage = 0;
        // In turn `depth` fetch its stage, then multiply the one before, which has arrived.
#pragma unroll 1
        for (unsigned depth = start;; depth += DEPTH) {
            copy_async_wait<0>();
            // Makes every thread's copies visible; and all have read the other stage, which is filled now.
            __syncthreads();
            if (depth < end) {
                left.copy(shared + stage, depth, end);
                right.copy(shared + stage + 2 * TILE, depth, end);
                copy_async_commit();
            }
            stage ^= TILE;
            if (depth > start) multiply_stage<Left, Right>(shared + stage, shared + stage + 2 * TILE);
            if (depth >= end) break;
        }
    }

    template <class Left, class Right>
    __device__ __forceinline__ void multiply_stage(const float* left_tile, const float* right_tile) {
        const unsigned row = first_row(), column = first_column();
        // 256 multiplications per turn hide the loop; unrolled further, the forward pass would not fit 128 registers.
#pragma unroll 1
        for (unsigned depth = 0; depth < DEPTH; depth += 4) {
            const Place left_place = Left::lane(left_tile, row, depth);
            const Place right_place = Right::lane(right_tile, column, depth);
            // Four depths of this lane's 8 rows: quads along the depth, or along the rows.
            float left[8][4];
            each<8>([&](auto index) {
                constexpr unsigned i = decltype(index)::value;
                if constexpr (Left::DEPTH_IS_LAST) {
                    const float4 quad = Left::template read<i % 4 + i / 4 * 16>(left_place);
                    left[i][0] = quad.x, left[i][1] = quad.y, left[i][2] = quad.z, left[i][3] = quad.w;
                } else {
                    const float4 quad = Left::template read<i % 2 * 16, i / 2>(left_place);
                    constexpr unsigned first = i % 2 * 4, k = i / 2;
                    left[first][k] = quad.x, left[first + 1][k] = quad.y;
                    left[first + 2][k] = quad.z, left[first + 3][k] = quad.w;
                }
            });
            auto multiply_by = [&](unsigned k, unsigned j, float right) {
#pragma unroll
                for (unsigned i = 0; i < 8; ++i) sums[i][j] = fmaf(left[i][k], right, sums[i][j]);
            };
            each<8>([&](auto index) {
                constexpr unsigned i = decltype(index)::value;
                if constexpr (Right::DEPTH_IS_LAST) {
                    const float4 quad = Right::template read<i % 4 + i / 4 * 32>(right_place);
                    multiply_by(0, i, quad.x), multiply_by(1, i, quad.y);
                    multiply_by(2, i, quad.z), multiply_by(3, i, quad.w);
                } else {
                    const float4 quad = Right::template read<i % 2 * 32, i / 2>(right_place);
                    constexpr unsigned j = i % 2 * 4, k = i / 2;
                    multiply_by(k, j, quad.x), multiply_by(k, j + 1, quad.y);
                    multiply_by(k, j + 2, quad.z), multiply_by(k, j + 3, quad.w);
                }
            });
        }
    }

    // Hands out the results: `finish(row, quads)` for each row of this lane below `rows`, where quads(0) and quads(1)
    // are the results of columns first_column() + {0..3} and + {32..35}.
    //
    // They go through shared memory, each lane to places of its own: so this is a loop, where registers would have to
    // be unrolled (64 activations of code) or put into local memory. Half of them at a time fits the stages' memory.
    template <class Finish>
    __device__ __forceinline__ void each_row(float* shared, unsigned row_offset, unsigned rows, Finish finish) {
        __syncthreads();
        float* own = shared + threadIdx.x;
#pragma unroll 1
        for (unsigned half = 0; half < 2; ++half) {
#pragma unroll
            for (unsigned i = 0; i < 32; ++i) own[i * THREADS] = sums[i / 8][i % 8];
#pragma unroll 1
            for (unsigned i = 0; i < 4; ++i) {
                const unsigned row = row_offset + first_row() + half * 16 + i;
                if (row >= rows) break;
                const float* line = own + i * 8 * THREADS;
                finish(row, [&](unsigned which) {
                    const float* quad = line + which * 4 * THREADS;
                    return make_float4(quad[0], quad[THREADS], quad[2 * THREADS], quad[3 * THREADS]);
                });
            }
#pragma unroll
            for (unsigned i = 0; i < 32; ++i) sums[i / 8][i % 8] = sums[4 + i / 8][i % 8];
        }
    }
};

// Up to four neighbouring elements; as one access where `is_quad`, which needs four and 16-byte alignment. Said in PTX,
// because the compiler sees what both branches have in common and makes single accesses of it.
__device__ __forceinline__ float4 load_quad(const float* source, unsigned count, bool is_quad) {
    float4 quad;
    if (is_quad) {
        asm volatile("ld.global.v4.f32 {%0, %1, %2, %3}, [%4];"
                     : "=f"(quad.x), "=f"(quad.y), "=f"(quad.z), "=f"(quad.w)
                     : "l"(__cvta_generic_to_global(source))
                     : "memory");
        return quad;
    }
    quad = make_float4(source[0], 0.0f, 0.0f, 0.0f);
    if (count > 1) quad.y = source[1];
    if (count > 2) quad.z = source[2];
    if (count > 3) quad.w = source[3];
    return quad;
}

__device__ __forceinline__ void store_quad(float* target, float4 quad, unsigned count, bool is_quad) {
    if (is_quad) {
        asm volatile("st.global.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(target)), "f"(quad.x),
                     "f"(quad.y), "f"(quad.z), "f"(quad.w)
                     : "memory");
        return;
    }
    target[0] = quad.x;
    if (count > 1) target[1] = quad.y;
    if (count > 2) target[2] = quad.z;
    if (count > 3) target[3] = quad.w;
}

__device__ __forceinline__ float4 operator+(float4 a, float4 b) {
    return make_float4(a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w);
}

}  // namespace engine
