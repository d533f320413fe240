// Gated convolution: h = a * sigmoid(g) (Dauphin et al. 2017), y[t, c] = bias[c] + sum of weight[c, k] * h[t + (k - o) *
// dilation, c] (a depthwise convolution, Wu et al. 2019), and its gradients.
//
// A block takes 32 channels and 64 positions that lie a dilation apart: seen so, the window has no holes, and whatever the
// dilation, the tile needs no more than K - 1 positions beyond its own, which are gated once into shared memory. Where
// windows lie whole inside their document, a thread computes four neighbours from registers that slide along, with one
// read of shared memory for each tap's weight and one for its value; at edges one by one, in the same order. The backward
// pass does both of its sums from one tile: for the input, the convolution of the gradient with the taps reversed; for the
// weight, each warp sums four taps over the tile's positions, and a second kernel adds up the blocks' sums in order.
#include "common.cuh"

using namespace engine;

namespace engine::gated_conv {

// Positions of a tile, and warps that share them.
constexpr unsigned TILE = 64;
constexpr unsigned WARPS = 8;
constexpr unsigned TAPS_MAX = 31;
// Positions that a thread computes together, and taps that it sums together.
constexpr unsigned GROUP = 4;
// Rows of a tile with what windows need beyond it, and a few that sliding registers read ahead.
constexpr unsigned ROWS = TILE + TAPS_MAX - 1 + GROUP - 1;
// Threads that share out the partial sums of a column.
constexpr unsigned FINISH_ROWS = 8;

struct Shape {
    unsigned batch, time, channels, taps, dilation, origin;
    // The tap that is left out, or a number that is none.
    unsigned excluded;
};

// Positions first + dilation * i of a row, i from start on, of `count` in all.
struct Tile {
    unsigned row, first, start, count;

    __device__ __forceinline__ Tile(const Shape& shape, unsigned index) {
        const unsigned residues = min(shape.dilation, shape.time);
        const unsigned tiles = ((shape.time - 1) / shape.dilation + TILE) / TILE;
        row = index / (residues * tiles);
        first = index % residues;
        start = TILE * (index / residues % tiles);
        count = (shape.time - 1 - first) / shape.dilation + 1;
    }

    __device__ __forceinline__ bool holds(unsigned i) const { return i < count; }

    // Position i of the sequence, counted over the batch.
    __device__ __forceinline__ unsigned long long place(const Shape& shape, unsigned i) const {
        return (unsigned long long)row * shape.time + first + i * shape.dilation;
    }
};

struct Memory {
    // Gated values.
    float rows[ROWS][WARP];
    float weights[TAPS_MAX][WARP + 1];
    // First tap inside the document and end, of each position; both zero where there is none.
    unsigned char first_tap[TILE], end_tap[TILE];
    unsigned char first_reversed[TILE], end_reversed[TILE];
};

__device__ __forceinline__ float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

// Calls body(row of the tile) for the rows from `before` positions in front of the tile on.
template <typename Value>
__device__ __forceinline__ void fill(float (*rows)[WARP], const Shape& shape, const Tile& tile, unsigned before,
                                     Value value) {
    for (unsigned r = threadIdx.y; r < TILE + shape.taps - 1 + GROUP - 1; r += WARPS) {
        // Wraps around, to a number that no tile holds, in front of the row.
        const unsigned i = tile.start + r - before;
        rows[r][threadIdx.x] = tile.holds(i) ? value(tile.place(shape, i)) : 0.0f;
    }
}

__device__ __forceinline__ void load_weights(Memory& memory, const float* weight, const Shape& shape) {
    const unsigned first = blockIdx.y * WARP, thread = threadIdx.y * WARP + threadIdx.x;
    for (unsigned i = thread; i < WARP * shape.taps; i += WARP * WARPS) {
        const unsigned c = i / shape.taps, tap = i % shape.taps;
        const bool is_used = first + c < shape.channels && tap != shape.excluded;
        memory.weights[tap][c] = is_used ? weight[(unsigned long long)first * shape.taps + i] : 0.0f;
    }
}

// Which taps of each of the tile's positions lie inside its document.
__device__ __forceinline__ void find_taps(Memory& memory, const int* documents, const Shape& shape, const Tile& tile) {
    const unsigned thread = threadIdx.y * WARP + threadIdx.x, i = tile.start + thread;
    if (thread >= TILE) {
        return;
    }
    int first = 0, end = 0;
    const int t = (int)(tile.first + i * shape.dilation);
    if (tile.holds(i)) {
        end = (int)shape.time;
        if (documents) {
            const unsigned long long place = tile.place(shape, i);
            first = documents[2 * place];
            end = documents[2 * place + 1];
        }
    }
    // Padding, and what is no document.
    const bool is_inside = tile.holds(i) && 0 <= first && first <= t && t < end && end <= (int)shape.time;
    const unsigned before = is_inside ? (unsigned)(t - first) / shape.dilation : 0;
    const unsigned behind = is_inside ? (unsigned)(end - 1 - t) / shape.dilation : 0;
    const unsigned reversed = shape.taps - 1 - shape.origin;
    memory.first_tap[thread] = is_inside ? shape.origin - min(shape.origin, before) : 0;
    memory.end_tap[thread] = is_inside ? min(shape.taps, shape.origin + behind + 1) : 0;
    memory.first_reversed[thread] = is_inside ? reversed - min(reversed, before) : 0;
    memory.end_reversed[thread] = is_inside ? min(shape.taps, reversed + behind + 1) : 0;
}

// Sums over the windows of GROUP positions of the tile from i on.
template <bool REVERSED>
__device__ __forceinline__ void convolve(const Memory& memory, const float (*rows)[WARP], unsigned i, unsigned taps,
                                         float start, float (&sums)[GROUP]) {
    const unsigned char* const firsts = REVERSED ? memory.first_reversed : memory.first_tap;
    const unsigned char* const ends = REVERSED ? memory.end_reversed : memory.end_tap;
    const unsigned lane = threadIdx.x;
    bool are_whole = true;
#pragma unroll
    for (unsigned j = 0; j < GROUP; ++j) {
        are_whole &= firsts[i + j] == 0 && ends[i + j] == taps;
        sums[j] = start;
    }
    if (are_whole) {
        float window[GROUP];
#pragma unroll
        for (unsigned j = 0; j + 1 < GROUP; ++j) {
            window[j] = rows[i + j][lane];
        }
#pragma unroll 4
        for (unsigned tap = 0; tap < taps; ++tap) {
            const float weight = memory.weights[REVERSED ? taps - 1 - tap : tap][lane];
            window[GROUP - 1] = rows[i + tap + GROUP - 1][lane];
#pragma unroll
            for (unsigned j = 0; j < GROUP; ++j) {
                sums[j] = fmaf(weight, window[j], sums[j]);
            }
#pragma unroll
            for (unsigned j = 0; j + 1 < GROUP; ++j) {
                window[j] = window[j + 1];
            }
        }
        return;
    }
#pragma unroll
    for (unsigned j = 0; j < GROUP; ++j) {
        for (unsigned tap = firsts[i + j]; tap < ends[i + j]; ++tap) {
            const float weight = memory.weights[REVERSED ? taps - 1 - tap : tap][lane];
            sums[j] = fmaf(weight, rows[i + j + tap][lane], sums[j]);
        }
    }
}

}  // namespace engine::gated_conv

using namespace engine::gated_conv;

// output = bias + weighted sums of the gated values of each position's window; zero where the position is padding.
//
// input: (B, T, 2 * C) f32. weight: (C, K) f32, K up to 31. bias: (C) f32, or null. documents: (B, T, 2) i32, first
// position and end, or null. output: (B, T, C) f32. origin: the tap at the position itself.
// Launch: grid (tiles of 64 positions a dilation apart, over the batch; C / 32), block (32, 8). Shared: 17 KiB.
// Traffic: least: 12 bytes per value of the output, 8 per position of documents, the weights once; moved: the input also
// K - 1 positions beyond each tile, the weights once for each tile.
extern "C" __global__ void __launch_bounds__(WARP* WARPS)
    gated_conv_forward(const float* input, const float* weight, const float* bias, const int* documents, float* output,
                       engine::gated_conv::Shape shape) {
    __shared__ Memory memory;
    const Tile tile(shape, blockIdx.x);
    const unsigned c = blockIdx.y * WARP + threadIdx.x;
    const bool is_channel = c < shape.channels;
    load_weights(memory, weight, shape);
    find_taps(memory, documents, shape, tile);
    fill(memory.rows, shape, tile, shape.origin, [&](unsigned long long place) {
        const float* const value = input + 2 * place * shape.channels + c;
        return is_channel ? value[0] * sigmoid(value[shape.channels]) : 0.0f;
    });
    __syncthreads();
    const float start = bias && is_channel ? bias[c] : 0.0f;
    for (unsigned i = GROUP * threadIdx.y; i < TILE; i += GROUP * WARPS) {
        float sums[GROUP];
        convolve<false>(memory, memory.rows, i, shape.taps, start, sums);
#pragma unroll
        for (unsigned j = 0; j < GROUP; ++j) {
            if (tile.holds(tile.start + i + j) && is_channel) {
                const unsigned long long place = tile.place(shape, tile.start + i + j);
                output[place * shape.channels + c] = memory.end_tap[i + j] ? sums[j] : 0.0f;
            }
        }
    }
}

// Gradient of the input, set or accumulated, and each block's sums for the gradients of weight and bias:
//
//     grad_h[s] = sum of weight[k] * grad_output[s - (k - o) * dilation],  grad_a = grad_h * sigmoid(g),
//     grad_g = grad_h * a * sigmoid'(g)
//     partials[block] = (for each tap, sum over positions of grad_output[t] * h[t + (k - o) * dilation]; sum of grad_output)
//
// input, grad_input: (B, T, 2 * C) f32. weight: (C, K) f32. documents: (B, T, 2) i32, or null. grad_output: (B, T, C)
// f32. partials: (blocks, K + 1, C) f32. grad_input and partials may be null: not wanted.
// Launch: grid (tiles / tiles_per_block, C / 32), block (32, 8). Shared: 29 KiB.
// Traffic: least: 20 bytes per value of the output (28 where accumulated); moved: input and gradient also K - 1 positions
// beyond each tile, and the partials.
extern "C" __global__ void __launch_bounds__(WARP* WARPS, 4)
    gated_conv_backward(const float* input, const float* weight, const int* documents, const float* grad_output,
                        float* grad_input, unsigned accumulate, float* partials, unsigned tiles,
                        unsigned tiles_per_block, engine::gated_conv::Shape shape) {
    __shared__ Memory memory;
    __shared__ float gradients[ROWS][WARP];
    const unsigned c = blockIdx.y * WARP + threadIdx.x, lane = threadIdx.x, first_tap = GROUP * threadIdx.y;
    const bool is_channel = c < shape.channels;
    const unsigned reversed = shape.taps - 1 - shape.origin;
    float sums[GROUP] = {}, bias_sum = 0.0f;
    load_weights(memory, weight, shape);
    const unsigned end = min(tiles, (blockIdx.x + 1) * tiles_per_block);
    for (unsigned index = blockIdx.x * tiles_per_block; index < end; ++index) {
        const Tile tile(shape, index);
        find_taps(memory, documents, shape, tile);
        fill(gradients, shape, tile, reversed, [&](unsigned long long place) {
            return is_channel ? grad_output[place * shape.channels + c] : 0.0f;
        });
        if (partials) {
            fill(memory.rows, shape, tile, shape.origin, [&](unsigned long long place) {
                const float* const value = input + 2 * place * shape.channels + c;
                return is_channel ? value[0] * sigmoid(value[shape.channels]) : 0.0f;
            });
        }
        __syncthreads();
        for (unsigned i = GROUP * threadIdx.y; grad_input && i < TILE; i += GROUP * WARPS) {
            float gated_gradients[GROUP];
            convolve<true>(memory, gradients, i, shape.taps, 0.0f, gated_gradients);
#pragma unroll
            for (unsigned j = 0; j < GROUP; ++j) {
                if (tile.holds(tile.start + i + j) && is_channel) {
                    const unsigned long long place = tile.place(shape, tile.start + i + j);
                    const unsigned long long at = 2 * place * shape.channels + c;
                    const float value = input[at], gate = input[at + shape.channels];
                    const float open = sigmoid(gate);
                    write(grad_input[at], gated_gradients[j] * open, accumulate);
                    // 1 - open, without the cancellation.
                    write(grad_input[at + shape.channels], gated_gradients[j] * value * open * sigmoid(-gate), accumulate);
                }
            }
        }
        if (partials && first_tap < shape.taps) {
            float window[GROUP];
#pragma unroll
            for (unsigned j = 0; j + 1 < GROUP; ++j) {
                window[j] = memory.rows[first_tap + j][lane];
            }
#pragma unroll 4
            for (unsigned i = 0; i < TILE; ++i) {
                const float gradient = gradients[i + reversed][lane];
                const unsigned from = memory.first_tap[i], to = memory.end_tap[i];
                window[GROUP - 1] = memory.rows[i + first_tap + GROUP - 1][lane];
#pragma unroll
                for (unsigned j = 0; j < GROUP; ++j) {
                    const bool is_inside = from <= first_tap + j && first_tap + j < to;
                    sums[j] = is_inside ? fmaf(gradient, window[j], sums[j]) : sums[j];
                }
#pragma unroll
                for (unsigned j = 0; j + 1 < GROUP; ++j) {
                    window[j] = window[j + 1];
                }
                bias_sum += to ? gradient : 0.0f;
            }
        }
        // The next tile is loaded where this one was read.
        __syncthreads();
    }
    if (partials && is_channel) {
        float* const target = partials + (unsigned long long)blockIdx.x * (shape.taps + 1) * shape.channels + c;
#pragma unroll
        for (unsigned j = 0; j < GROUP; ++j) {
            const unsigned tap = first_tap + j;
            if (tap < shape.taps) {
                target[(unsigned long long)tap * shape.channels] = tap == shape.excluded ? 0.0f : sums[j];
            }
        }
        if (threadIdx.y == 0) {
            target[(unsigned long long)shape.taps * shape.channels] = bias_sum;
        }
    }
}

// Adds up the blocks' sums in order: grad_weight and grad_bias = sum over parts of partials, set or accumulated.
//
// partials: (parts, K + 1, C) f32. grad_weight: (C, K) f32. grad_bias: (C) f32. Either may be null: not wanted.
// Launch: grid (C / 32, K + 1), block (32, 8). Shared: 1 KiB.
// Traffic: least and moved: the partials once, the gradients once (twice where accumulated).
extern "C" __global__ void __launch_bounds__(WARP* FINISH_ROWS)
    gated_conv_backward_finish(const float* partials, unsigned parts, unsigned channels, unsigned taps,
                               float* grad_weight, unsigned accumulate_weight, float* grad_bias,
                               unsigned accumulate_bias) {
    __shared__ float sums[FINISH_ROWS][WARP];
    const unsigned tap = blockIdx.y, c = blockIdx.x * WARP + threadIdx.x;
    const bool is_bias = tap == taps;
    if (!(is_bias ? grad_bias : grad_weight)) {
        return;
    }
    float sum = 0.0f;
    if (c < channels) {
#pragma unroll 4
        for (unsigned part = threadIdx.y; part < parts; part += FINISH_ROWS) {
            sum += partials[((unsigned long long)part * (taps + 1) + tap) * channels + c];
        }
    }
    sums[threadIdx.y][threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.y == 0 && c < channels) {
        float total = sums[0][threadIdx.x];
#pragma unroll
        for (unsigned other = 1; other < FINISH_ROWS; ++other) {
            total += sums[other][threadIdx.x];
        }
        if (is_bias) {
            write(grad_bias[c], total, accumulate_bias);
        } else {
            write(grad_weight[(unsigned long long)c * taps + tap], total, accumulate_weight);
        }
    }
}
