// Norms with an optional fused residual, s = x + r: layer norm (Ba, Kiros, Hinton 2016), y = (s - mean) / sqrt(var + e)
// * w + b, and RMS norm (Zhang and Sennrich 2019), y = s / sqrt(mean(s * s) + e) * w, which is the former with a mean of
// zero that nobody computes.
//
// A row is read from memory once, kept in shared memory, and its variance taken around its mean in a second pass: that
// loses no digits where the mean is far from zero, and costs nothing where memory is the bound. The backward pass
// computes the gradient of the input and the running sums for those of weight and bias from the same single read; each
// team sums its own rows in order, and a second kernel adds up the sums of all blocks in order.
//
// Variants: rows by a warp, by a block, or by a block that reads a row again for each pass because it does not fit
// shared memory ("long"); _4 moves 16 bytes at a time and needs channels and addresses that are multiples of that.
#include "pack.cuh"
#include "row.cuh"

using namespace engine;

extern __shared__ float4 shared_memory[];

namespace engine::layer_norm {

// Teams of one warp in a block.
constexpr unsigned WARP_ROWS = 4;
// Most threads of a team that is a block.
constexpr unsigned BLOCK_THREADS = 256;
// Threads that share out the partial sums of a column, and columns in a block.
constexpr unsigned FINISH_ROWS = 8;

enum class Norm { LAYER, RMS };

struct ForwardArguments {
    const float *input, *residual, *weight, *bias;
    float *sum, *output, *mean, *reciprocal_deviation;
    float epsilon;
    unsigned rows, channels;
};

template <Norm NORM, Team TEAM, unsigned N, bool CACHED>
__device__ __forceinline__ void forward(const ForwardArguments& a) {
    const unsigned row = team_index(), channels = a.channels;
    if (row >= a.rows) {
        return;
    }
    const unsigned long long start = (unsigned long long)row * channels;
    const float* input = a.input + start;
    const float* residual = a.residual ? a.residual + start : nullptr;
    float* sum = a.sum + start;
    float* cache = reinterpret_cast<float*>(shared_memory) + threadIdx.y * channels;
    const unsigned first = N * threadIdx.x, stride = N * blockDim.x;
    // Where the passes after the first find the row: in shared memory if it is cached, else where it came from.
    const auto value = [&](unsigned c) {
        return CACHED ? load<N>(cache + c) : load<N>((residual ? sum : input) + c);
    };

    float total = 0.0f;  // of the values, or of their squares
    for (unsigned c = first; c < channels; c += stride) {
        Pack<N> x = load<N>(input + c);
        if (residual) {
            x = x + load<N>(residual + c);
            store(sum + c, x);
        }
        if constexpr (CACHED) {
            store_shared(cache + c, x);
        }
#pragma unroll
        for (unsigned j = 0; j < N; ++j) {
            total += NORM == Norm::LAYER ? x.at[j] : x.at[j] * x.at[j];
        }
    }
    float mean = team_sum<TEAM>(total) / (float)channels, variance = mean;
    if constexpr (NORM == Norm::LAYER) {
        float squares = 0.0f;
        for (unsigned c = first; c < channels; c += stride) {
            const Pack<N> x = value(c);
#pragma unroll
            for (unsigned j = 0; j < N; ++j) {
                const float centred = x.at[j] - mean;
                squares += centred * centred;
            }
        }
        variance = team_sum<TEAM>(squares) / (float)channels;
    } else {
        mean = 0.0f;
    }
    const float reciprocal_deviation = 1.0f / sqrtf(variance + a.epsilon);

    for (unsigned c = first; c < channels; c += stride) {
        const Pack<N> x = value(c), weight = load<N>(a.weight + c);
        const Pack<N> bias = NORM == Norm::LAYER && a.bias ? load<N>(a.bias + c) : Pack<N>{};
        Pack<N> y;
#pragma unroll
        for (unsigned j = 0; j < N; ++j) {
            const float scaled = (x.at[j] - mean) * reciprocal_deviation;
            y.at[j] = NORM == Norm::LAYER ? scaled * weight.at[j] + bias.at[j] : scaled * weight.at[j];
        }
        store(a.output + start + c, y);
    }
    if (threadIdx.x == 0 && a.reciprocal_deviation) {
        if constexpr (NORM == Norm::LAYER) {
            a.mean[row] = mean;
        }
        a.reciprocal_deviation[row] = reciprocal_deviation;
    }
}

struct BackwardArguments {
    const float *input, *weight, *mean, *reciprocal_deviation, *grad_output;
    float *grad_input, *partials;
    unsigned accumulate, rows, channels, rows_per_team;
};

template <Norm NORM, Team TEAM, unsigned N, bool CACHED>
__device__ __forceinline__ void backward(const BackwardArguments& a) {
    const unsigned channels = a.channels;
    const unsigned first = N * threadIdx.x, stride = N * blockDim.x;
    // A team's part of shared memory: a row's normalised values and scaled gradients, the sums for weight and bias.
    float* const cache = reinterpret_cast<float*>(shared_memory);
    float* const normalised_cache = cache + 4 * threadIdx.y * channels;
    float* const scaled_cache = normalised_cache + channels;
    float* const partials = a.partials ? a.partials + 2ull * blockIdx.x * channels : nullptr;
    float* const weight_sums = CACHED ? scaled_cache + channels : partials;
    float* const bias_sums = weight_sums + channels;
    const auto store_sum = [](float* target, const Pack<N>& sum) {
        if constexpr (CACHED) {
            store_shared(target, sum);
        } else {
            store(target, sum);
        }
    };
    if (partials) {
        for (unsigned c = first; c < channels; c += stride) {
            store_sum(weight_sums + c, Pack<N>{});
            if constexpr (NORM == Norm::LAYER) {
                store_sum(bias_sums + c, Pack<N>{});
            }
        }
    }

    const unsigned row_start = min(a.rows, team_index() * a.rows_per_team);
    const unsigned row_end = min(a.rows, row_start + a.rows_per_team);
    for (unsigned row = row_start; row < row_end; ++row) {
        const unsigned long long start = (unsigned long long)row * channels;
        const float *input = a.input + start, *grad_output = a.grad_output + start;
        const float mean = NORM == Norm::LAYER ? a.mean[row] : 0.0f;
        const float reciprocal_deviation = a.reciprocal_deviation[row];
        const auto normalise = [&](float x, float) { return (x - mean) * reciprocal_deviation; };
        const auto multiply = [](float x, float y) { return x * y; };

        float2 sums = {};  // of g and of g times the normalised value, where g = grad_output * weight
        for (unsigned c = first; c < channels; c += stride) {
            const Pack<N> x = load<N>(input + c), gradient = load<N>(grad_output + c);
            const Pack<N> normalised = zip(x, x, normalise);
            const Pack<N> scaled = zip(gradient, load<N>(a.weight + c), multiply);
#pragma unroll
            for (unsigned j = 0; j < N; ++j) {
                sums.x += NORM == Norm::LAYER ? scaled.at[j] : 0.0f;
                sums.y += scaled.at[j] * normalised.at[j];
            }
            if constexpr (CACHED) {
                store_shared(normalised_cache + c, normalised);
                store_shared(scaled_cache + c, scaled);
            }
            if (partials) {
                store_sum(weight_sums + c, load<N>(weight_sums + c) + zip(gradient, normalised, multiply));
                if constexpr (NORM == Norm::LAYER) {
                    store_sum(bias_sums + c, load<N>(bias_sums + c) + gradient);
                }
            }
        }
        if (!a.grad_input) {
            continue;
        }
        sums = team_sum<TEAM>(sums);
        const float mean_scaled = sums.x / (float)channels, mean_product = sums.y / (float)channels;
        for (unsigned c = first; c < channels; c += stride) {
            Pack<N> normalised, scaled;
            if constexpr (CACHED) {
                normalised = load<N>(normalised_cache + c);
                scaled = load<N>(scaled_cache + c);
            } else {
                const Pack<N> x = load<N>(input + c);
                normalised = zip(x, x, normalise);
                scaled = zip(load<N>(grad_output + c), load<N>(a.weight + c), multiply);
            }
            const Pack<N> gradient = zip(scaled, normalised, [&](float g, float x) {
                return reciprocal_deviation * (g - mean_scaled - x * mean_product);
            });
            write(a.grad_input + start + c, gradient, a.accumulate);
        }
    }

    if (CACHED && partials) {
        // Of all warps of the block, in order; a team that is a block has its own sums only.
        __syncthreads();
        const unsigned thread = threadIdx.y * blockDim.x + threadIdx.x;
        const unsigned count = (NORM == Norm::LAYER ? 2 : 1) * channels;
        for (unsigned c = N * thread; c < count; c += N * blockDim.x * blockDim.y) {
            Pack<N> total = load<N>(cache + 2 * channels + c);
            for (unsigned team = 1; team < blockDim.y; ++team) {
                total = total + load<N>(cache + (4 * team + 2) * channels + c);
            }
            store(partials + c, total);
        }
    }
}

}  // namespace engine::layer_norm

using namespace engine::layer_norm;

// Normalises rows.
//
// input, residual, sum, output: (rows, channels) f32. residual may be null; else sum = input + residual is normalised.
// weight, bias: (channels) f32; bias may be null. mean, reciprocal_deviation: (rows) f32, or both null. An RMS norm
// (rms_norm_forward_*) reads no bias and writes no mean.
// Launch: warp: grid (rows / blockDim.y), block (32, 1 to 4); block and long: grid (rows), block (32 to 256).
// Shared: warp and block: 4 * blockDim.y * channels bytes, dynamic; long: none. Block and long: 128 bytes for sums.
// Traffic: least and moved: 8 bytes per value (16 with a residual), 8 per row of statistics, weight and bias once.
#define FORWARD(PREFIX, NORM, NAME, TEAM, N, CACHED, THREADS)                                                                      \
    extern "C" __global__ void __launch_bounds__(THREADS)                                                            \
        PREFIX##_forward_##NAME(const float* input, const float* residual, const float* weight, const float* bias,   \
                                float* sum, float* output, float* mean, float* reciprocal_deviation, float epsilon,  \
                                unsigned rows, unsigned channels) {                                                  \
        forward<NORM, TEAM, N, CACHED>({input, residual, weight, bias, sum, output, mean, reciprocal_deviation,      \
                                        epsilon, rows, channels});                                                   \
    }

// Gradient of the input, and each block's sums for the gradients of weight and bias:
//
//     grad_input = rstd * (g - mean(g) - n * mean(g * n)),  n = (input - mean) * rstd,  g = grad_output * weight
//     partials[block] = (sum over rows of grad_output * n, sum over rows of grad_output)
//
// input, grad_output, grad_input: (rows, channels) f32; weight: (channels) f32; mean, reciprocal_deviation: (rows) f32.
// An RMS norm (rms_norm_backward_*) has a mean of zero, no mean(g), and leaves the second half of the partials alone.
//
// partials: (blocks, 2, channels) f32. grad_input and partials may be null: not wanted. accumulate is for grad_input.
// Launch: warp: block (32, 4); block and long: block (32 to 256). Team i takes rows_per_team rows from
// i * rows_per_team on.
// Shared: warp and block: 16 * blockDim.y * channels bytes, dynamic; long: none. Block and long: 256 bytes for sums.
// Traffic: least: 12 bytes per value (16 where accumulated), 8 per row, the weight once; moved: that and the partials.
#define BACKWARD(PREFIX, NORM, NAME, TEAM, N, CACHED, THREADS)                                                                     \
    extern "C" __global__ void __launch_bounds__(THREADS)                                                            \
        PREFIX##_backward_##NAME(const float* input, const float* weight, const float* mean,                         \
                                 const float* reciprocal_deviation, const float* grad_output, float* grad_input,     \
                                 unsigned accumulate, float* partials, unsigned rows, unsigned channels,             \
                                 unsigned rows_per_team) {                                                           \
        backward<NORM, TEAM, N, CACHED>({input, weight, mean, reciprocal_deviation, grad_output, grad_input,         \
                                         partials, accumulate, rows, channels, rows_per_team});                      \
    }

#define VARIANTS(KERNEL, PREFIX, NORM)                                         \
    KERNEL(PREFIX, NORM, warp_1, Team::WARP, 1, true, WARP* WARP_ROWS)         \
    KERNEL(PREFIX, NORM, warp_4, Team::WARP, 4, true, WARP* WARP_ROWS)         \
    KERNEL(PREFIX, NORM, block_1, Team::BLOCK, 1, true, BLOCK_THREADS)         \
    KERNEL(PREFIX, NORM, block_4, Team::BLOCK, 4, true, BLOCK_THREADS)         \
    KERNEL(PREFIX, NORM, long_1, Team::BLOCK, 1, false, BLOCK_THREADS)         \
    KERNEL(PREFIX, NORM, long_4, Team::BLOCK, 4, false, BLOCK_THREADS)

VARIANTS(FORWARD, layer_norm, Norm::LAYER)
VARIANTS(BACKWARD, layer_norm, Norm::LAYER)
VARIANTS(FORWARD, rms_norm, Norm::RMS)
VARIANTS(BACKWARD, rms_norm, Norm::RMS)

// Adds up the blocks' sums in order: grad_weight and grad_bias = sum over parts of partials, set or accumulated.
//
// partials: (parts, 2, channels) f32. grad_weight, grad_bias: (channels) f32; either may be null: not wanted.
// Launch: grid (channels / 32, 2), block (32, 8). Shared: 1 KiB.
// Traffic: least and moved: the partials once, the gradients once (twice where accumulated).
extern "C" __global__ void __launch_bounds__(WARP* FINISH_ROWS)
    layer_norm_backward_finish(const float* partials, unsigned parts, unsigned channels, float* grad_weight,
                               unsigned accumulate_weight, float* grad_bias, unsigned accumulate_bias) {
    __shared__ float sums[FINISH_ROWS][WARP];
    float* const target = blockIdx.y == 0 ? grad_weight : grad_bias;
    if (!target) {
        return;
    }
    const unsigned channel = blockIdx.x * WARP + threadIdx.x;
    const float* const column = partials + (size_t)blockIdx.y * channels + channel;
    float sum = 0.0f;
    if (channel < channels) {
#pragma unroll 4
        for (unsigned part = threadIdx.y; part < parts; part += FINISH_ROWS) {
            sum += column[2ull * part * channels];
        }
    }
    sums[threadIdx.y][threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.y == 0 && channel < channels) {
        float total = sums[0][threadIdx.x];
#pragma unroll
        for (unsigned other = 1; other < FINISH_ROWS; ++other) {
            total += sums[other][threadIdx.x];
        }
        write(target[channel], total, blockIdx.y == 0 ? accumulate_weight : accumulate_bias);
    }
}
