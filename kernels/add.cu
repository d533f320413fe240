// Element-wise sum, and accumulation of one gradient into another.
//
// Traffic: 12 bytes per element (forward), 8 or 12 (accumulate); nothing is read twice, so that is the least.
#include "common.cuh"

using namespace engine;

// output = left + right
//
// left, right, output: (count) f32. output may be left or right.
// Launch: any grid of any blocks; threads stride over the elements.
extern "C" __global__ void __launch_bounds__(256)
    add_forward(const float* left, const float* right, float* output, unsigned long long count) {
    const unsigned long long stride = (unsigned long long)gridDim.x * blockDim.x;
    for (unsigned long long i = (unsigned long long)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += stride) {
        output[i] = left[i] + right[i];
    }
}

// target = source, or target += source
//
// source, target: (count) f32.
// Launch: as add_forward.
extern "C" __global__ void __launch_bounds__(256)
    add_accumulate(const float* source, float* target, unsigned accumulate, unsigned long long count) {
    const unsigned long long stride = (unsigned long long)gridDim.x * blockDim.x;
    for (unsigned long long i = (unsigned long long)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += stride) {
        write(target[i], source[i], accumulate);
    }
}
