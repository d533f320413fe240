// Softmax cross-entropy, fused with its gradient, which replaces the logits in place.
//
//     loss = log sum(e^x) - (1 - s) x[target] - s mean(x)        grad = (softmax(x) - (1 - s) [v = target] - s / V) * grad_loss
//
// Where classes have weights w, the terms of each class v are scaled by w[v], and softmax by the sum of all that is
// wanted: (1 - s) w[target] + s mean(w).
//
// One read of a row finds its largest logit and the sum of exponentials together (online softmax, Milakov and
// Gimelshein 2018): every thread corrects its sum when its maximum rises, and the team combines the pairs at the end.
// The gradient's pass takes the row from shared memory where it fits. Where it does not (a vocabulary of 50,257 is
// 196 KiB), it reads it again from its end, of which the caches still hold most.
//
// Rows of a vocabulary of any size start at any multiple of 4 bytes: a row is walked as up to three single values, packs
// of 16 aligned bytes, and up to three single values.
#include "pack.cuh"
#include "row.cuh"

using namespace engine;

extern __shared__ float4 shared_memory[];

namespace engine::softmax_cross_entropy {

constexpr unsigned WARP_ROWS = 4;
constexpr unsigned BLOCK_THREADS = 1024;
// Finite, so that a thread that saw nothing but -infinity adds e^-infinity = 0 rather than e^(infinity - infinity).
constexpr float LOWEST = -3.402823466e38f;

// How a row is cut.
struct Cut {
    // Values before the first pack, packs, and values outside the packs.
    unsigned head, packs, edges;

    __device__ __forceinline__ Cut(const float* row, unsigned length) {
        const unsigned to_boundary = (0u - (unsigned)((size_t)row / sizeof(float))) & 3u;
        head = min(length, to_boundary);
        packs = (length - head) / 4;
        edges = length - 4 * packs;
    }

    // Calls body(index, width) for this thread's part: a Pack<1> or a Pack<4> tells the width.
    template <bool FROM_END, typename Body>
    __device__ __forceinline__ void for_each(Body body) const {
        for (unsigned edge = threadIdx.x; edge < edges; edge += blockDim.x) {
            body(edge < head ? edge : edge + 4 * packs, Pack<1>{});
        }
        for (unsigned pack = threadIdx.x; pack < packs; pack += blockDim.x) {
            body(head + 4 * (FROM_END ? packs - 1 - pack : pack), Pack<4>{});
        }
    }
};

struct Arguments {
    const float* logits;
    float* gradient;  // where the logits are, or unused
    const int* targets;
    const float* class_weights;  // or null
    float* losses;
    float grad_loss, smoothing;
    int ignored;
    unsigned rows, vocabulary;
};

template <Team TEAM, bool GRADIENT, bool CACHED>
__device__ __forceinline__ void loss_of_row(const Arguments& a) {
    const unsigned row = team_index(), vocabulary = a.vocabulary;
    if (row >= a.rows) {
        return;
    }
    const unsigned long long start = (unsigned long long)row * vocabulary;
    const float* logits = a.logits + start;
    float* gradient = a.gradient + start;
    const Cut cut(logits, vocabulary);
    const int target = a.targets[row];
    if (target == a.ignored || target < 0 || (unsigned)target >= vocabulary) {
        // Not counted; or no class, which must not go unnoticed.
        const float value = target == a.ignored ? 0.0f : __int_as_float(0x7fffffff);
        if (threadIdx.x == 0) {
            a.losses[row] = value;
        }
        if constexpr (GRADIENT) {
            cut.for_each<false>([&](unsigned index, auto pack) {
#pragma unroll
                for (unsigned j = 0; j < pack.SIZE; ++j) {
                    pack.at[j] = value;
                }
                store(gradient + index, pack);
            });
        }
        return;
    }
    // What the loss wants of the target, of each class before its weight, and of all together.
    float of_target = 1.0f - a.smoothing, weight = 1.0f, weighted_total = 0.0f;
    const float of_class = a.smoothing / (float)vocabulary;
    const bool weighs_each_class = a.class_weights && a.smoothing != 0.0f;
    if (a.class_weights) {
        of_target *= a.class_weights[target];
        weight = of_target;
    }
    if (weighs_each_class) {
        // A pass of its own, so that the others, which are used a lot more, have nothing to do with it.
        float2 sums = make_float2(0.0f, 0.0f);
        cut.for_each<false>([&](unsigned index, auto pack) {
#pragma unroll
            for (unsigned j = 0; j < pack.SIZE; ++j) {
                const float class_weight = a.class_weights[index + j];
                sums.x += class_weight;
                sums.y = fmaf(class_weight, logits[index + j], sums.y);
            }
        });
        sums = team_sum<TEAM>(sums);
        weight = fmaf(of_class, sums.x, of_target);
        weighted_total = sums.y;
    }
    // Read before any gradient is written over it; one thread computes the loss.
    const float target_logit = threadIdx.x == 0 ? logits[target] : 0.0f;
    team_sync<TEAM>();
    // A row in shared memory is shifted so that its packs are aligned there too.
    float* const cache = reinterpret_cast<float*>(shared_memory) + threadIdx.y * ((vocabulary + 6) / 4 * 4) +
                         ((4 - cut.head) & 3);

    float maximum = LOWEST, sum = 0.0f, total = 0.0f;
    cut.for_each<false>([&](unsigned index, auto pack) {
        constexpr unsigned N = decltype(pack)::SIZE;
        pack = load<N>(logits + index);
        if constexpr (CACHED) {
            store_shared(cache + index, pack);
        }
        float largest = pack.at[0];
#pragma unroll
        for (unsigned j = 1; j < N; ++j) {
            largest = fmaxf(largest, pack.at[j]);
        }
        // Where all are NaN this keeps the old maximum, and the sum becomes NaN.
        if (largest > maximum) {
            sum *= expf(maximum - largest);
            maximum = largest;
        }
#pragma unroll
        for (unsigned j = 0; j < N; ++j) {
            sum += expf(pack.at[j] - maximum);
            total += pack.at[j];
        }
    });
    const float row_maximum = team_max<TEAM>(maximum);
    const float2 sums = team_sum<TEAM>(make_float2(sum * expf(maximum - row_maximum), total));

    if (threadIdx.x == 0) {
        // Without smoothing the mean is not used: it may be infinite where classes are masked.
        float expected = target_logit;
        if (weighs_each_class) {
            expected = weight > 0.0f ? (of_target * target_logit + of_class * weighted_total) / weight : 0.0f;
        } else if (a.smoothing != 0.0f && !a.class_weights) {
            expected = (1.0f - a.smoothing) * target_logit + a.smoothing * (sums.y / (float)vocabulary);
        }
        a.losses[row] = weight * (logf(sums.x) + (row_maximum - expected));
    }
    if constexpr (GRADIENT) {
        const float scale = weight * a.grad_loss / sums.x;
        const float from_class = of_class * a.grad_loss;
        // Classes of different weights get their own in a pass of its own.
        const float from_all = weighs_each_class ? 0.0f : from_class;
        const float from_target = of_target * a.grad_loss;
        cut.for_each<!CACHED>([&](unsigned index, auto pack) {
            constexpr unsigned N = decltype(pack)::SIZE;
            pack = load<N>(CACHED ? cache + index : logits + index);
#pragma unroll
            for (unsigned j = 0; j < N; ++j) {
                const float wanted = index + j == (unsigned)target ? from_all + from_target : from_all;
                pack.at[j] = expf(pack.at[j] - row_maximum) * scale - wanted;
            }
            store(gradient + index, pack);
        });
        if (weighs_each_class) {
            // In the same order as above, so that each thread meets what it wrote itself.
            cut.for_each<!CACHED>([&](unsigned index, auto pack) {
#pragma unroll
                for (unsigned j = 0; j < pack.SIZE; ++j) {
                    gradient[index + j] -= from_class * a.class_weights[index + j];
                }
            });
        }
    }
}

}  // namespace engine::softmax_cross_entropy

using namespace engine::softmax_cross_entropy;

// Losses of all rows.
//
// logits: (rows, V) f32. targets: (rows) i32; a row whose target is `ignored` has loss 0, one whose target is no class
// NaN. class_weights: (V) f32, or null where all are 1. losses: (rows) f32.
// Launch: warp: grid (rows / blockDim.y), block (32, 1 to 4); block: grid (rows), block (32 to 1024).
// Shared: block: 256 bytes. Traffic: least and moved: 4 bytes per logit (none for rows that are not counted), 8 per
// row; with smoothing and weights each logit twice.
#define FORWARD(NAME, TEAM, THREADS)                                                                              \
    extern "C" __global__ void __launch_bounds__(THREADS) softmax_cross_entropy_forward_##NAME(                   \
        const float* logits, const int* targets, const float* class_weights, float* losses, float smoothing,      \
        int ignored, unsigned rows, unsigned vocabulary) {                                                        \
        loss_of_row<TEAM, false, false>(                                                                          \
            {logits, nullptr, targets, class_weights, losses, 0.0f, smoothing, ignored, rows, vocabulary});       \
    }

FORWARD(warp, Team::WARP, WARP* WARP_ROWS)
FORWARD(block, Team::BLOCK, BLOCK_THREADS)

// Losses of all rows, and the gradients in place of the logits, each counted loss having the gradient grad_loss.
//
// logits: (rows, V) f32, gradients afterwards; the others as above. The gradient of a row that is not counted is 0, of
// one whose target is no class NaN.
// Launch: as above. Shared: warp and block: 4 * blockDim.y * (V + 6) bytes, dynamic; long: none. Block, long: 256 bytes.
// Traffic: least: 8 bytes per logit (4 for rows that are not counted), 8 per row; moved: warp and block: that; long: up
// to 12 per logit, by as much of the row as the caches have lost.
#define FORWARD_BACKWARD(NAME, TEAM, CACHED, THREADS)                                                             \
    extern "C" __global__ void __launch_bounds__(THREADS) softmax_cross_entropy_forward_backward_##NAME(          \
        float* logits, const int* targets, const float* class_weights, float* losses, float grad_loss,            \
        float smoothing, int ignored, unsigned rows, unsigned vocabulary) {                                       \
        loss_of_row<TEAM, true, CACHED>(                                                                          \
            {logits, logits, targets, class_weights, losses, grad_loss, smoothing, ignored, rows, vocabulary});   \
    }

FORWARD_BACKWARD(warp, Team::WARP, true, WARP* WARP_ROWS)
FORWARD_BACKWARD(block, Team::BLOCK, true, BLOCK_THREADS)
FORWARD_BACKWARD(long, Team::BLOCK, false, BLOCK_THREADS)
