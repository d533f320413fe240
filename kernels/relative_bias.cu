// Tables of relative-position biases (H, 2 * radius - 1): a bias for each head and distance of key and query.
//
// T5's buckets (Raffel et al. 2020) are runs of neighbouring columns, computed on the host and passed by value: no
// logarithm here, and the same buckets on every device. ALiBi (Press et al. 2022) is a slope for each head.
#include "common.cuh"

using namespace engine;

constexpr unsigned BUCKETS = 256;
constexpr unsigned THREADS = 128;

// Bucket b has columns begin[b] .. end[b] - 1.
struct Ranges {
    unsigned begin[BUCKETS];
    unsigned end[BUCKETS];
};

// table[h][column] = weight[b][h] for the columns of bucket b
//
// weight: (buckets, H) f32; table: (H, columns) f32, of which the columns of all buckets are written.
// Launch: grid (buckets, H), 128 threads. No shared memory.
// Traffic: weight and table once, which is the least.
extern "C" __global__ void __launch_bounds__(THREADS)
    relative_bias_buckets(const float* weight, float* table, unsigned heads, unsigned columns,
                          const __grid_constant__ Ranges ranges) {
    const unsigned bucket = blockIdx.x, head = blockIdx.y, end = ranges.end[bucket];
    const float value = weight[bucket * heads + head];
    float* const row = table + (unsigned long long)head * columns;
    for (unsigned column = ranges.begin[bucket] + threadIdx.x; column < end; column += THREADS) row[column] = value;
}

// grad_weight[b][h] = sum of grad_table[h][column] over the columns of bucket b
//
// Shapes as above; accumulate: 1 adds to what is there.
// Launch: grid (buckets, H), 32 threads: a warp for each sum. No shared memory.
// Traffic: both once, which is the least.
extern "C" __global__ void __launch_bounds__(WARP)
    relative_bias_buckets_backward(const float* grad_table, float* grad_weight, unsigned heads, unsigned columns,
                                   unsigned accumulate, const __grid_constant__ Ranges ranges) {
    const unsigned bucket = blockIdx.x, head = blockIdx.y, end = ranges.end[bucket];
    const float* const row = grad_table + (unsigned long long)head * columns;
    float sum = 0.0f;
    for (unsigned column = ranges.begin[bucket] + threadIdx.x; column < end; column += WARP) sum += row[column];
    sum = warp_sum(sum);
    if (threadIdx.x == 0) write(grad_weight[bucket * heads + head], sum, accumulate);
}

// table[h][column] = -slope(h) * |column - (radius - 1)|, with slope(h) = 2^(-8 (h + 1) / power) for h < power, else
// 2^(-4 (2 (h - power) + 1) / power)
//
// table: (H, 2 * radius - 1) f32; power: the largest power of two that is at most H.
// Launch: grid (ceil((2 * radius - 1) / 128), H), 128 threads. No shared memory.
// Traffic: the table once, which is the least.
extern "C" __global__ void __launch_bounds__(THREADS)
    relative_bias_alibi(float* table, unsigned radius, unsigned power) {
    const unsigned column = blockIdx.x * THREADS + threadIdx.x, head = blockIdx.y, columns = 2 * radius - 1;
    if (column >= columns) return;
    const unsigned eighths = head < power ? 8 * (head + 1) : 4 * (2 * (head - power) + 1);
    const float slope = exp2f(-(float)eighths / (float)power);
    const unsigned distance = column < radius ? radius - 1 - column : column - (radius - 1);
    table[(unsigned long long)head * columns + column] = -slope * (float)distance;
}
