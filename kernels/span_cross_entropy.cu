// Loss of extractive question answering, fused with its gradient, which replaces the logits in place.
//
// Each span of positions has one softmax over its starts and one over its ends, of its own positions alone: those from
// `first` to `end`, and where it has one, the position that stands for "no answer". The loss is the mean of both
// cross-entropies. A block takes a span: maxima, sums, gradient, each a walk over a few hundred positions that stay in
// the caches. It also zeroes what lies between the span before and its own, so every logit is written by one thread.
#include "row.cuh"

using namespace engine;

namespace engine::span_cross_entropy {

constexpr unsigned THREADS = 256;
// Finite, so that a thread that saw nothing but -infinity adds e^-infinity = 0 rather than e^(infinity - infinity).
constexpr float LOWEST = -3.402823466e38f;

struct Arguments {
    const float* logits;
    float* gradient;  // where the logits are, or unused
    const int *spans, *targets;
    float* losses;
    float grad_loss;
    int ignored;
    unsigned positions, count;
};

// Largest value of the block's threads, the same in each.
__device__ __forceinline__ int block_max(int value) {
    const int of_warp = (int)__reduce_max_sync(ALL_LANES, (unsigned)value);
    return (int)__reduce_max_sync(ALL_LANES, (unsigned)value_of_warp(of_warp, of_warp));
}

// Zeroes the gradient from one position to another.
__device__ __forceinline__ void zero(float* gradient, int from, int to) {
    for (long long i = 2ll * from + threadIdx.x; i < 2ll * to; i += blockDim.x) {
        gradient[i] = 0.0f;
    }
}

// Calls body(index) for this thread's part of the span's logits of one side. Their number is that of the positions, and
// one more where there is a position of "no answer", which comes first.
template <typename Body>
__device__ __forceinline__ void for_each(int no_answer, int first, int end, unsigned side, Body body) {
    const int extra = no_answer >= 0 ? 1 : 0, count = end - first + extra;
    for (int i = threadIdx.x; i < count; i += blockDim.x) {
        const int position = i < extra ? no_answer : first + i - extra;
        body(2ull * position + side);
    }
}

template <bool GRADIENT>
__device__ __forceinline__ void loss_of_span(const Arguments& a) {
    const unsigned index = blockIdx.x;
    const int positions = a.positions;
    // Where the furthest of the spans before ends: the block writes from there to its own end, whatever it is given.
    int furthest = 0;
    for (unsigned before = threadIdx.x; before < index; before += blockDim.x) {
        furthest = max(furthest, min(a.spans[3 * before + 2], positions));
    }
    const int behind = block_max(furthest);
    if (index == a.count) {
        // One block more than there are spans, for what lies behind all of them.
        if constexpr (GRADIENT) {
            zero(a.gradient, behind, positions);
        }
        return;
    }
    const int no_answer = a.spans[3 * index], first = a.spans[3 * index + 1], end = a.spans[3 * index + 2];
    const int start = no_answer >= 0 ? no_answer : first;
    const bool is_span = no_answer >= -1 && (no_answer < 0 || no_answer < first) && behind <= start && first <= end &&
                         end <= positions;
    const int of_start = a.targets[2 * index], of_end = a.targets[2 * index + 1];
    const bool is_counted = of_start != a.ignored || of_end != a.ignored;
    const auto is_inside = [&](int target) {
        return (target >= first && target < end) || (target >= 0 && target == no_answer);
    };
    if (!is_span) {
        // No span, which must not go unnoticed; nothing of it is used as an address.
        if (threadIdx.x == 0) {
            a.losses[index] = __int_as_float(0x7fffffff);
        }
        return;
    }
    if constexpr (GRADIENT) {
        zero(a.gradient, behind, start);
        if (no_answer >= 0) {
            zero(a.gradient, no_answer + 1, first);
        }
    }
    if (!is_counted || !is_inside(of_start) || !is_inside(of_end)) {
        // Not counted; or a target outside, which must not go unnoticed.
        const float value = is_counted ? __int_as_float(0x7fffffff) : 0.0f;
        if (threadIdx.x == 0) {
            a.losses[index] = value;
        }
        if constexpr (GRADIENT) {
            for (unsigned side = 0; side < 2; ++side) {
                for_each(no_answer, first, end, side, [&](unsigned long long at) { a.gradient[at] = value; });
            }
        }
        return;
    }
    float loss = 0.0f;
#pragma unroll 1
    for (unsigned side = 0; side < 2; ++side) {
        const unsigned long long target = 2ull * (side == 0 ? of_start : of_end) + side;
        // Read before any gradient is written over it: the reductions have barriers.
        const float target_logit = a.logits[target];
        float maximum = LOWEST;
        for_each(no_answer, first, end, side,
                 [&](unsigned long long at) { maximum = fmaxf(maximum, a.logits[at]); });
        maximum = team_max<Team::BLOCK>(maximum);
        float sum = 0.0f;
        for_each(no_answer, first, end, side,
                 [&](unsigned long long at) { sum += expf(a.logits[at] - maximum); });
        sum = team_sum<Team::BLOCK>(sum);
        loss += logf(sum) + (maximum - target_logit);
        if constexpr (GRADIENT) {
            const float half = 0.5f * a.grad_loss, scale = half / sum;
            for_each(no_answer, first, end, side, [&](unsigned long long at) {
                a.gradient[at] = expf(a.logits[at] - maximum) * scale - (at == target ? half : 0.0f);
            });
        }
    }
    if (threadIdx.x == 0) {
        a.losses[index] = 0.5f * loss;
    }
}

}  // namespace engine::span_cross_entropy

using namespace engine::span_cross_entropy;

// Losses of all spans.
//
// logits: (positions, 2) f32, of a start and of an end. spans: (count, 3) i32: position of "no answer" or -1, first
// position, and the one behind the last, in order and apart. targets: (count, 2) i32: positions of the answer's first and
// last token, or both `ignored`. losses: (count) f32; 0 where the targets are ignored, NaN where the span or its targets
// are not what they must be.
// Launch: grid (count), block (32 to 256). Shared: 256 bytes.
// Traffic: 8 bytes per position of a span, 24 per span, the least; each logit is read twice, from the caches.
extern "C" __global__ void __launch_bounds__(THREADS)
    span_cross_entropy_forward(const float* logits, const int* spans, const int* targets, float* losses, int ignored,
                               unsigned positions, unsigned count) {
    loss_of_span<false>({logits, nullptr, spans, targets, losses, 0.0f, ignored, positions, count});
}

// Losses of all spans, and the gradients in place of the logits, each counted loss having the gradient grad_loss.
//
// logits: (positions, 2) f32, gradients afterwards, 0 outside the spans; the others as above.
// Launch: grid (count + 1), block (32 to 256). Shared: 256 bytes.
// Traffic: 16 bytes per position of a span, 8 per other position, 24 per span, the least.
extern "C" __global__ void __launch_bounds__(THREADS)
    span_cross_entropy_forward_backward(float* logits, const int* spans, const int* targets, float* losses,
                                        float grad_loss, int ignored, unsigned positions, unsigned count) {
    loss_of_span<true>({logits, logits, spans, targets, losses, grad_loss, ignored, positions, count});
}
