// A tensor times a number.
#include "common.cuh"

using namespace engine;

// target = factor * source, or target += factor * source
//
// source, target: (count) f32.
// Launch: any grid of any blocks; threads stride over the elements.
// Traffic: 8 bytes per element, 12 where it adds; nothing is read twice, so that is the least.
extern "C" __global__ void __launch_bounds__(256)
    scale_forward(const float* source, float* target, float factor, unsigned accumulate, unsigned long long count) {
    const unsigned long long stride = (unsigned long long)gridDim.x * blockDim.x;
    for (unsigned long long i = (unsigned long long)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += stride) {
        write(target[i], factor * source[i], accumulate);
    }
}
