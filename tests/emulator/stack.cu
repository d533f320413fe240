// Stacks that grow while the program runs. Compiled by
//   nvcc -ptx -arch=sm_80 stack.cu -o stack.ptx
#include <alloca.h>

extern "C" __global__ void own_sizes(const int* sizes, int* out) {
    int t = blockIdx.x * blockDim.x + threadIdx.x, n = sizes[t], sum = 0;
    int* values = (int*)alloca(n * sizeof(int));
    for (int i = 0; i < n; i++) values[i] = i * t;
    for (int i = n - 1; i >= 0; i--) sum += values[i] * (i + 1);
    out[t] = sum;
}

__device__ __noinline__ int nested(int n, int d) {
    int* values = (int*)alloca((n + 1) * sizeof(int));
    for (int i = 0; i <= n; i++) values[i] = i + d;
    int sum = n <= 0 ? d : nested(n - 1, d + 1);
    for (int i = 0; i <= n; i++) sum += values[i];
    return sum;
}

extern "C" __global__ void recursive(const int* sizes, int* out) {
    int t = blockIdx.x * blockDim.x + threadIdx.x;
    out[t] = nested(sizes[t], t);
}

// Inlined, so that each turn of the loop saves and restores the stack.
__device__ __forceinline__ int turn(int k) {
    int* values = (int*)alloca((k + 1) * sizeof(int));
    int sum = 0;
    for (int i = 0; i <= k; i++) values[i] = i * k;
    for (int i = 0; i <= k; i++) sum += values[k - i] * i;
    return sum;
}

extern "C" __global__ void in_a_loop(const int* sizes, int* out) {
    int t = blockIdx.x * blockDim.x + threadIdx.x, sum = 0;
    for (int k = 0; k < sizes[t]; k++) sum += turn(k);
    out[t] = sum;
}

// Reads `extra` elements behind what it took.
extern "C" __global__ void too_far(const int* sizes, int* out, int extra) {
    int t = threadIdx.x, n = sizes[t], sum = 0;
    int *first = (int*)alloca(n * sizeof(int)), *second = (int*)alloca(n * sizeof(int));
    for (int i = 0; i < n; i++) first[i] = second[i] = i;
    for (int i = 0; i < n + extra; i++) sum += first[i] - second[i];
    out[t] = sum;
}
