// Appending to a key/value cache: a copy of keys and values out of packed qkv, behind those of earlier tokens.
//
// Where each sequence goes on is known on the host. The positions are passed by value, so that no memory has to hold
// them until the kernel has run.
#include "common.cuh"

using namespace engine;

constexpr unsigned SEQUENCES = 256;

struct Positions {
    unsigned at[SEQUENCES];
};

// cache[b][positions[b] + t] = keys and values of qkv[b][t]
//
// qkv: (B, T, query_columns + columns) f32; cache: (B, capacity, columns) f32, with columns = 2 * HK * D.
// positions: of at most 256 sequences; for more there are more launches, with qkv and cache moved on.
// Launch: grid (T * ceil(columns / 256), B), 256 threads. No shared memory.
// Traffic: keys and values are read once and written once, which is the least.
extern "C" __global__ void __launch_bounds__(256)
    key_value_cache_append(const float* qkv, float* cache, unsigned time, unsigned query_columns, unsigned columns,
                           unsigned capacity, const __grid_constant__ Positions positions) {
    const unsigned pieces = (columns + blockDim.x - 1) / blockDim.x;
    const unsigned t = blockIdx.x / pieces, column = blockIdx.x % pieces * blockDim.x + threadIdx.x;
    const unsigned long long sequence = blockIdx.y;
    if (column >= columns) return;
    const unsigned long long from = (sequence * time + t) * (query_columns + columns) + query_columns;
    const unsigned long long to = (sequence * capacity + positions.at[blockIdx.y] + t) * columns;
    cache[to + column] = qkv[from + column];
}
