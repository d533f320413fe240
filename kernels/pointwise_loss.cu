// Losses of each prediction against a number of its own, fused with their gradients, which replace the predictions.
//
//     binary cross-entropy   loss = max(x, 0) - x t + ln(1 + e^-|x|)     grad = sigma(x) - t
//     squared error          loss = (x - t)^2                            grad = 2 (x - t)
//
// A row's loss is the mean over its targets; those that are NaN are not there. A team takes a row: every thread meets
// the same elements in both passes, so nothing is shared but two sums.
#include "row.cuh"

using namespace engine;

namespace engine::pointwise_loss {

// As `gpu::pointwise_loss` numbers them.
constexpr unsigned BINARY_CROSS_ENTROPY = 0;

constexpr unsigned WARP_ROWS = 4;
constexpr unsigned BLOCK_THREADS = 256;

struct Arguments {
    const float* predictions;
    float* gradient;  // where the predictions are, or unused
    const float* targets;
    float* losses;
    float grad_loss;
    unsigned kind, rows, columns;
};

__device__ __forceinline__ bool has_target(float target) { return target == target; }

__device__ __forceinline__ float loss_of(unsigned kind, float x, float t) {
    if (kind == BINARY_CROSS_ENTROPY) {
        // No probability, which must not go unnoticed.
        if (t < 0.0f || t > 1.0f) {
            return __int_as_float(0x7fffffff);
        }
        // NaN stays NaN.
        const float positive = x <= 0.0f ? 0.0f : x;
        return fmaf(-x, t, positive) + log1pf(expf(-fabsf(x)));
    }
    return (x - t) * (x - t);
}

__device__ __forceinline__ float slope_of(unsigned kind, float x, float t) {
    return kind == BINARY_CROSS_ENTROPY ? 1.0f / (1.0f + expf(-x)) - t : 2.0f * (x - t);
}

template <Team TEAM, bool GRADIENT>
__device__ __forceinline__ void loss_of_row(const Arguments& a) {
    const unsigned row = team_index();
    if (row >= a.rows) {
        return;  // whole teams leave
    }
    const unsigned long long start = (unsigned long long)row * a.columns;
    // Sum of the losses, and how many there are.
    float2 sums = make_float2(0.0f, 0.0f);
    for (unsigned column = threadIdx.x; column < a.columns; column += blockDim.x) {
        const float target = a.targets[start + column];
        if (has_target(target)) {
            sums.x += loss_of(a.kind, a.predictions[start + column], target);
            sums.y += 1.0f;
        }
    }
    sums = team_sum<TEAM>(sums);
    const float counted = fmaxf(sums.y, 1.0f);
    if (threadIdx.x == 0) {
        a.losses[row] = sums.x / counted;
    }
    if constexpr (GRADIENT) {
        const float scale = a.grad_loss / counted;
        for (unsigned column = threadIdx.x; column < a.columns; column += blockDim.x) {
            const float target = a.targets[start + column];
            float gradient = 0.0f;
            if (has_target(target)) {
                gradient = slope_of(a.kind, a.predictions[start + column], target) * scale;
            }
            a.gradient[start + column] = gradient;
        }
    }
}

}  // namespace engine::pointwise_loss

using namespace engine::pointwise_loss;

// Losses of all rows.
//
// predictions, targets: (rows, columns) f32; a target that is NaN is not counted. losses: (rows) f32; 0 where nothing is
// counted. kind: 0 binary cross-entropy, 1 squared error.
// Launch: warp: grid (rows / blockDim.y), block (32, 1 to 4); block: grid (rows), block (32 to 256).
// Shared: block: 256 bytes. Traffic: 8 bytes per element, 4 per row, the least.
#define FORWARD(NAME, TEAM, THREADS)                                                                             \
    extern "C" __global__ void __launch_bounds__(THREADS) pointwise_loss_forward_##NAME(                         \
        const float* predictions, const float* targets, float* losses, unsigned kind, unsigned rows,             \
        unsigned columns) {                                                                                      \
        loss_of_row<TEAM, false>({predictions, nullptr, targets, losses, 0.0f, kind, rows, columns});            \
    }

FORWARD(warp, Team::WARP, WARP* WARP_ROWS)
FORWARD(block, Team::BLOCK, BLOCK_THREADS)

// Losses of all rows, and the gradients in place of the predictions, each counted loss having the gradient grad_loss.
//
// predictions: (rows, columns) f32, gradients afterwards, 0 where nothing is counted; the others as above.
// Launch, shared: as above. Traffic: least: 12 bytes per element; moved: 20, 8 of them from the caches but for rows that
// are longer than those.
#define FORWARD_BACKWARD(NAME, TEAM, THREADS)                                                                    \
    extern "C" __global__ void __launch_bounds__(THREADS) pointwise_loss_forward_backward_##NAME(                \
        float* predictions, const float* targets, float* losses, float grad_loss, unsigned kind, unsigned rows,  \
        unsigned columns) {                                                                                      \
        loss_of_row<TEAM, true>({predictions, predictions, targets, losses, grad_loss, kind, rows, columns});    \
    }

FORWARD_BACKWARD(warp, Team::WARP, WARP* WARP_ROWS)
FORWARD_BACKWARD(block, Team::BLOCK, BLOCK_THREADS)
