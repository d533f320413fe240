// Means of ranges of rows, y[m] = 1 / length * sum of x[first .. end], and the gradient, which gives each row its share.
//
// A range of one row is a copy. Ranges do not overlap, so that the gradient's rows have one writer each.
#include "pack.cuh"

using namespace engine;

namespace engine::mean_rows {

// Most warps that share the rows of a range.
constexpr unsigned RANGE_WARPS = 16;

struct Range {
    unsigned first, length;
    // Not empty, and inside.
    bool is_valid;
};

__device__ __forceinline__ Range range_at(const int* ranges, unsigned m, unsigned rows) {
    const int first = ranges[2 * m], end = ranges[2 * m + 1];
    return {(unsigned)first, (unsigned)(end - first), 0 <= first && first < end && (unsigned)end <= rows};
}

template <unsigned N>
__device__ __forceinline__ void forward(const float* input, const int* ranges, float* output, unsigned rows,
                                        unsigned channels) {
    __shared__ float4 sums_of_warps[RANGE_WARPS][WARP];
    const Range range = range_at(ranges, blockIdx.x, rows);
    const unsigned length = range.is_valid ? range.length : 0;
    const unsigned c = N * (blockIdx.y * WARP + threadIdx.x);
    Pack<N> sum{};
    if (c < channels) {
#pragma unroll 4
        for (unsigned i = threadIdx.y; i < length; i += blockDim.y) {
            sum = sum + load<N>(input + (unsigned long long)(range.first + i) * channels + c);
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
        const float count = (float)max(length, 1u);
        store(output + (unsigned long long)blockIdx.x * channels + c,
              zip(sum, sum, [&](float x, float) { return x / count; }));
    }
}

template <unsigned N>
__device__ __forceinline__ void backward(const int* ranges, const float* grad_output, float* grad_input,
                                         unsigned accumulate, unsigned rows, unsigned channels) {
    const Range range = range_at(ranges, blockIdx.x, rows);
    const unsigned c = N * (blockIdx.y * WARP + threadIdx.x);
    if (!range.is_valid || c >= channels) {
        return;
    }
    const Pack<N> gradient = load<N>(grad_output + (unsigned long long)blockIdx.x * channels + c);
    const float count = (float)range.length;
    const Pack<N> share = zip(gradient, gradient, [&](float g, float) { return g / count; });
    for (unsigned i = threadIdx.y; i < range.length; i += blockDim.y) {
        write(grad_input + (unsigned long long)(range.first + i) * channels + c, share, accumulate);
    }
}

}  // namespace engine::mean_rows

using namespace engine::mean_rows;

// output[m] = mean of the rows of range m; zero where it is empty, or not inside.
//
// input: (rows, C) f32. ranges: (M, 2) i32. output: (M, C) f32.
// Launch: grid (M, C / 32 or C / 128), block (32, 1 to 16): warps take every blockDim.y-th row of the range in order, and
// their sums are added in order. _4 needs channels and addresses that are multiples of 16 bytes. Shared: 8 KiB.
// Traffic: least and moved: 4 bytes per value of the ranges' rows and of the output, 8 per range.
#define FORWARD(N)                                                                                                   \
    extern "C" __global__ void __launch_bounds__(WARP* RANGE_WARPS) mean_rows_forward_##N(                           \
        const float* input, const int* ranges, float* output, unsigned rows, unsigned channels) {                    \
        forward<N>(input, ranges, output, rows, channels);                                                           \
    }

FORWARD(1)
FORWARD(4)

// grad_input[n] = grad_output[m] / length of range m for the rows n of each range, set or accumulated; rows in no range
// are left alone.
//
// ranges: (M, 2) i32. grad_output: (M, C) f32. grad_input: (rows, C) f32.
// Launch: as the forward pass. No shared memory.
// Traffic: least and moved: 4 bytes per value of the gradient and of the ranges' rows (twice to accumulate).
#define BACKWARD(N)                                                                                                  \
    extern "C" __global__ void __launch_bounds__(WARP* RANGE_WARPS) mean_rows_backward_##N(                          \
        const int* ranges, const float* grad_output, float* grad_input, unsigned accumulate, unsigned rows,          \
        unsigned channels) {                                                                                         \
        backward<N>(ranges, grad_output, grad_input, accumulate, rows, channels);                                    \
    }

BACKWARD(1)
BACKWARD(4)
