// Norm of all gradients together (for clipping, Pascanu et al. 2013): squares in f64, which cannot overflow and lose
// nothing, summed over fixed pieces, and the pieces' sums by one block. The host takes the root.
//
// Every thread keeps four sums, so that four multiply-adds of f64, slow on most GPUs, are under way.
#include "pack.cuh"
#include "row.cuh"

using namespace engine;

namespace engine::grad_norm {

constexpr unsigned THREADS = 256;
// Elements of a block.
constexpr unsigned PIECE = 16384;

}  // namespace engine::grad_norm

using namespace engine::grad_norm;

// partials[block] = sum of the squares of a piece of the gradient.
//
// gradient: (count) f32. partials: (count / 16384) f64.
// Launch: grid (count / 16384), block (32 to 256). Shared: 256 bytes.
// Traffic: least and moved: the gradient once, 8 bytes per block.
extern "C" __global__ void __launch_bounds__(THREADS)
    grad_norm_squares(const float* gradient, unsigned long long count, double* partials) {
    const bool is_aligned = is_aligned_16(gradient);
    const unsigned long long start = (unsigned long long)blockIdx.x * PIECE;
    const float* const piece = gradient + start;
    const unsigned length = (unsigned)min((unsigned long long)PIECE, count - start);
    double sums[4] = {};
    for (unsigned i = 4 * threadIdx.x; i < length; i += 4 * blockDim.x) {
        const Pack<4> values = load_up_to(piece + i, length - i, is_aligned);
#pragma unroll
        for (unsigned j = 0; j < 4; ++j) {
            sums[j] += (double)values.at[j] * (double)values.at[j];
        }
    }
    const double total = team_sum<Team::BLOCK>((sums[0] + sums[1]) + (sums[2] + sums[3]));
    if (threadIdx.x == 0) {
        partials[blockIdx.x] = total;
    }
}

// total[0] = sum of the partials.
//
// partials: (parts) f64. total: (1) f64. Launch: one block of 32 to 256 threads. Shared: 256 bytes.
// Traffic: least and moved: the partials once.
extern "C" __global__ void __launch_bounds__(THREADS)
    grad_norm_total(const double* partials, unsigned parts, double* total) {
    double sum = 0.0;
#pragma unroll 4
    for (unsigned i = threadIdx.x; i < parts; i += blockDim.x) {
        sum += partials[i];
    }
    sum = team_sum<Team::BLOCK>(sum);
    if (threadIdx.x == 0) {
        total[0] = sum;
    }
}
