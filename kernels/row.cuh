// Teams: the threads that work on one row. A team is a warp, for short rows (several rows to a block, block (32, rows)),
// or a whole block, for long ones (block (threads, 1)). Both read the same way:
//
//     row = team_index();  for (i = threadIdx.x; i < length; i += blockDim.x) ...;  total = team_sum<TEAM>(mine);
//
// Every thread meets the same elements in each pass over its row, so a row that is kept in shared memory needs no
// barrier between the passes.
#pragma once

#include "common.cuh"

namespace engine {

enum class Team { WARP, BLOCK };

// This thread's team, counted over the whole grid: the row it works on, where a team has one.
__device__ __forceinline__ unsigned team_index() { return blockIdx.x * blockDim.y + threadIdx.y; }

// Makes what the team's threads wrote to memory visible to each other.
template <Team TEAM>
__device__ __forceinline__ void team_sync() {
    if constexpr (TEAM == Team::WARP) {
        __syncwarp();
    } else {
        __syncthreads();
    }
}

__device__ __forceinline__ float2 warp_sum(float2 value) { return make_float2(warp_sum(value.x), warp_sum(value.y)); }

__device__ __forceinline__ double warp_sum(double value) {
#pragma unroll
    for (unsigned distance = WARP / 2; distance > 0; distance /= 2) {
        value += __shfl_xor_sync(ALL_LANES, value, distance);
    }
    return value;
}

// Gives lane i of every warp of a block (threads, 1) the value of warp i, or `empty` where there is no such warp.
template <typename T>
__device__ __forceinline__ T value_of_warp(T value, T empty) {
    __shared__ T values[WARP];
    const unsigned warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    // The values of the call before this one have been read.
    __syncthreads();
    if (lane == 0) {
        values[warp] = value;
    }
    __syncthreads();
    return lane < blockDim.x / WARP ? values[lane] : empty;
}

// Sum over the team's threads, the same in each. T is float, float2 or double.
template <Team TEAM, typename T>
__device__ __forceinline__ T team_sum(T value) {
    value = warp_sum(value);
    return TEAM == Team::WARP ? value : warp_sum(value_of_warp(value, T{}));
}

// Largest value of the team's threads, the same in each.
template <Team TEAM>
__device__ __forceinline__ float team_max(float value) {
    value = warp_max(value);
    return TEAM == Team::WARP ? value : warp_max(value_of_warp(value, value));
}

}  // namespace engine
