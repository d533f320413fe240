// What a GPU can do at best, measured: multiply-adds, and memory read and copied. Percentages of peak are taken against
// these, as against `cpu::peak` on a CPU.
#include "common.cuh"

using namespace engine;

// Independent chains of multiply-adds per thread: enough to hide the latency of one with four warps per scheduler.
constexpr int CHAINS = 8;

// rounds * 16 * CHAINS multiply-adds per thread.
//
// sink: (1) f32, never written: the values stay small, but the compiler cannot know.
// Launch: any grid of blocks of 256.
extern "C" __global__ void __launch_bounds__(256) peak_multiply_add(unsigned rounds, float factor, float* sink) {
    float chain[CHAINS];
#pragma unroll
    for (int i = 0; i < CHAINS; ++i) {
        chain[i] = (float)(threadIdx.x + i) * 1e-3f;
    }
    for (unsigned round = 0; round < rounds; ++round) {
#pragma unroll
        for (int step = 0; step < 16; ++step) {
#pragma unroll
            for (int i = 0; i < CHAINS; ++i) {
                chain[i] = fmaf(chain[i], factor, 1e-3f);
            }
        }
    }
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < CHAINS; ++i) {
        sum += chain[i];
    }
    if (sum == 1e30f) {
        *sink = sum;
    }
}

// Reads (count) float4 of source; sink is never written, as above.
//
// Launch: any grid of blocks of 256; threads stride over the elements.
extern "C" __global__ void __launch_bounds__(256)
    peak_read(const float4* source, unsigned long long count, float* sink) {
    const unsigned long long stride = (unsigned long long)gridDim.x * blockDim.x;
    float sum = 0.0f;
    for (unsigned long long i = (unsigned long long)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += stride) {
        const float4 value = source[i];
        sum += value.x + value.y + value.z + value.w;
    }
    if (sum == 1e30f) {
        *sink = sum;
    }
}

// target = source, (count) float4.
//
// Launch: as peak_read.
extern "C" __global__ void __launch_bounds__(256)
    peak_copy(const float4* source, float4* target, unsigned long long count) {
    const unsigned long long stride = (unsigned long long)gridDim.x * blockDim.x;
    for (unsigned long long i = (unsigned long long)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += stride) {
        target[i] = source[i];
    }
}
