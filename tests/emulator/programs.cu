// Programs of many kinds for the emulator's tests, one kernel each. Compiled by
//   nvcc -ptx -arch=sm_80 programs.cu -o programs.ptx
#include <cstdio>
#include <cassert>
#include <cuda_fp16.h>
#include <cuda_bf16.h>
#include <mma.h>
#include <cooperative_groups.h>
namespace cg = cooperative_groups;

extern "C" __global__ void vector_add(const float* a, const float* b, float* c, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) c[i] = a[i] + b[i];
}

extern "C" __global__ void block_sum(const float* in, float* out, int n) {
    __shared__ float partial[32];
    float sum = 0;
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) sum += in[i];
    for (int offset = 16; offset; offset >>= 1) sum += __shfl_down_sync(~0u, sum, offset);
    if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = sum;
    __syncthreads();
    if (threadIdx.x < 32) {
        sum = threadIdx.x < blockDim.x / 32 ? partial[threadIdx.x] : 0;
        for (int offset = 16; offset; offset >>= 1) sum += __shfl_xor_sync(~0u, sum, offset);
        if (threadIdx.x == 0) out[blockIdx.x] = sum;
    }
}

extern "C" __global__ void histogram(const unsigned char* in, unsigned* bins, int n) {
    __shared__ unsigned local[256];
    for (int i = threadIdx.x; i < 256; i += blockDim.x) local[i] = 0;
    __syncthreads();
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) atomicAdd(&local[in[i]], 1);
    __syncthreads();
    for (int i = threadIdx.x; i < 256; i += blockDim.x) atomicAdd(&bins[i], local[i]);
}

extern "C" __global__ void inclusive_scan(int* data, int n) {
    extern __shared__ int tile[];
    int t = threadIdx.x;
    tile[t] = t < n ? data[t] : 0;
    __syncthreads();
    for (int d = 1; d < blockDim.x; d *= 2) {
        int v = t >= d ? tile[t - d] : 0;
        __syncthreads();
        tile[t] += v;
        __syncthreads();
    }
    if (t < n) data[t] = tile[t];
}

extern "C" __global__ void bitonic_sort(unsigned* data) {
    extern __shared__ unsigned keys[];
    unsigned t = threadIdx.x;
    keys[t] = data[t];
    __syncthreads();
    for (unsigned k = 2; k <= blockDim.x; k *= 2)
        for (unsigned j = k / 2; j; j /= 2) {
            unsigned other = t ^ j;
            if (other > t) {
                bool up = (t & k) == 0;
                if ((keys[t] > keys[other]) == up) { unsigned x = keys[t]; keys[t] = keys[other]; keys[other] = x; }
            }
            __syncthreads();
        }
    data[t] = keys[t];
}

extern "C" __global__ void stencil(const double* in, double* out, int w, int h) {
    int x = blockIdx.x * blockDim.x + threadIdx.x, y = blockIdx.y * blockDim.y + threadIdx.y;
    if (x > 0 && y > 0 && x < w - 1 && y < h - 1)
        out[y * w + x] = 0.25 * (in[y * w + x - 1] + in[y * w + x + 1] + in[(y - 1) * w + x] + in[(y + 1) * w + x]);
}

extern "C" __global__ void say(const int* values) {
    if (threadIdx.x < 2) printf("block %d thread %d: %d %.3f %s %llu\n", blockIdx.x, threadIdx.x, values[threadIdx.x], values[threadIdx.x] / 4.0, "text", 1ull << 40);
}

__device__ __noinline__ int fibonacci(int n) { return n < 2 ? n : fibonacci(n - 1) + fibonacci(n - 2); }
extern "C" __global__ void recurse(int* out) { out[threadIdx.x] = fibonacci(threadIdx.x % 13); }

extern "C" __global__ void spin_lock(unsigned* lock, int* counter) {
    while (atomicCAS(lock, 0u, 1u) != 0u) {}
    __threadfence();
    *(volatile int*)counter += 1;
    __threadfence();
    atomicExch(lock, 0u);
}

extern "C" __global__ void wait_for_next_block(volatile int* flags, int* out) {
    // Block b waits for block b + 1: blocks must take turns.
    if (threadIdx.x == 0) {
        if (blockIdx.x + 1 < gridDim.x) while (flags[blockIdx.x + 1] == 0) {}
        out[blockIdx.x] = blockIdx.x + 1 < gridDim.x ? out[blockIdx.x + 1] + 1 : 1;
        __threadfence();
        flags[blockIdx.x] = 1;
    }
}

extern "C" __global__ void wmma_half(const half* a, const half* b, float* c) {
    using namespace nvcuda::wmma;
    fragment<matrix_a, 16, 16, 16, half, row_major> fa;
    fragment<matrix_b, 16, 16, 16, half, col_major> fb;
    fragment<accumulator, 16, 16, 16, float> fc;
    fill_fragment(fc, 1.0f);
    load_matrix_sync(fa, a, 16);
    load_matrix_sync(fb, b, 16);
    mma_sync(fc, fa, fb, fc);
    for (int i = 0; i < fc.num_elements; i++) fc.x[i] *= 2;
    store_matrix_sync(c, fc, 16, mem_row_major);
}

extern "C" __global__ void switches(const int* in, int* out) {
    int v = in[threadIdx.x], r;
    switch (v) {
        case 0: r = 11; break;
        case 1: r = v * 7 + 3; break;
        case 2: r = v ^ 0x55; break;
        case 3: r = 1000 - v; break;
        case 4: r = v << 4; break;
        case 5: r = -v; break;
        case 6: r = v * v; break;
        case 7: r = 77; break;
        default: r = 5;
    }
    out[threadIdx.x] = r;
}

__device__ __noinline__ int twice(int x) { return 2 * x; }
__device__ __noinline__ int squared(int x) { return x * x; }
__device__ __noinline__ int negated(int x) { return -x; }
typedef int (*function)(int);
__device__ function table[3] = {twice, squared, negated};
extern "C" __global__ void indirect(int* out) { out[threadIdx.x] = table[threadIdx.x % 3](threadIdx.x); }

extern "C" __global__ void mathematics(const double* x, const float* y, double* d, float* f) {
    int i = threadIdx.x;
    double a = x[i];
    d[4 * i] = exp(a); d[4 * i + 1] = log(fabs(a) + 1); d[4 * i + 2] = sin(a) * pow(fabs(a), 0.3); d[4 * i + 3] = tanh(a) + erf(a);
    float b = y[i];
    f[6 * i] = expf(b); f[6 * i + 1] = logf(fabsf(b) + 1); f[6 * i + 2] = sinf(b * 1000); f[6 * i + 3] = tanhf(b); f[6 * i + 4] = rsqrtf(fabsf(b)) + cbrtf(b); f[6 * i + 5] = b / 3.7f + fmodf(b, 0.7f);
}

extern "C" __global__ void long_integers(const long long* a, const long long* b, long long* out) {
    int i = threadIdx.x;
    out[6 * i] = a[i] / b[i]; out[6 * i + 1] = a[i] % b[i]; out[6 * i + 2] = __mul64hi(a[i], b[i]);
    out[6 * i + 3] = (unsigned long long)a[i] / (unsigned)b[i]; out[6 * i + 4] = __popcll(a[i]) + __clzll(b[i]) + __ffsll(a[i]); out[6 * i + 5] = (long long)((__int128)a[i] * b[i] >> 40);
}

extern "C" __global__ void halves(const half2* a, const half2* b, half2* out, const __nv_bfloat162* c, __nv_bfloat162* e) {
    int i = threadIdx.x;
    out[4 * i] = __hadd2(a[i], b[i]); out[4 * i + 1] = __hmul2(a[i], b[i]); out[4 * i + 2] = __hfma2(a[i], b[i], a[i]); out[4 * i + 3] = __hmax2(a[i], __hneg2(b[i]));
    e[2 * i] = __hfma2(c[i], c[i], c[i]); e[2 * i + 1] = __hadd2(c[i], __float2bfloat162_rn(1.5f));
}

extern "C" __global__ void local_arrays(const int* in, int* out) {
    int buffer[16];
    for (int i = 0; i < 16; i++) buffer[(i * in[0] + threadIdx.x) & 15] = i + threadIdx.x;
    int sum = 0;
    for (int i = 0; i < 16; i++) sum = sum * 3 + buffer[(i ^ in[1]) & 15];
    out[threadIdx.x] = sum;
}

struct Big { int n; double scale; float values[8]; char tag; };
extern "C" __global__ void by_value(Big big, double* out) { out[threadIdx.x] = big.values[threadIdx.x % 8] * big.scale + big.n + big.tag; }

extern "C" __global__ void votes(const int* in, unsigned* out) {
    int v = in[threadIdx.x];
    out[5 * threadIdx.x] = __ballot_sync(~0u, v & 1);
    out[5 * threadIdx.x + 1] = __all_sync(~0u, v >= 0) + 2 * __any_sync(~0u, v == 7);
    out[5 * threadIdx.x + 2] = __match_any_sync(~0u, v);
    out[5 * threadIdx.x + 3] = __reduce_add_sync(~0u, v) ^ __reduce_max_sync(~0u, v);
    out[5 * threadIdx.x + 4] = __shfl_up_sync(~0u, v, 3, 8);
}

extern "C" __global__ void group_sums(const int* in, int* out) {
    auto tile = cg::tiled_partition<8>(cg::this_thread_block());
    int v = in[threadIdx.x];
    for (int i = tile.size() / 2; i; i /= 2) v += tile.shfl_down(v, i);
    if (tile.thread_rank() == 0) out[threadIdx.x / 8] = v;
    if (threadIdx.x % 3 == 0) {
        auto active = cg::coalesced_threads();
        if (active.thread_rank() == 0) atomicAdd(&out[100], active.size());
    }
}

extern "C" __global__ void grid_wide(int* data, int rounds) {
    auto grid = cg::this_grid();
    int i = grid.thread_rank(), n = grid.size();
    for (int r = 0; r < rounds; r++) {
        int v = data[(i + 1) % n];
        grid.sync();
        data[i] = v + 1;
        grid.sync();
    }
}

extern "C" __global__ void divergent_barrier_free(int* out) {
    int x = threadIdx.x, steps = 0;
    while (x != 1 && steps < 500) { x = x & 1 ? 3 * x + 1 : x / 2; steps++; if (x == 0) break; }
    out[threadIdx.x] = steps;
}

extern "C" __global__ void asserts(int limit) { assert(threadIdx.x < limit); }

extern "C" __global__ void async_copy(const float4* in, float4* out) {
    __shared__ float4 tile[2][64];
    int t = threadIdx.x;
    for (int stage = 0; stage < 4; stage++) {
        unsigned address = (unsigned)__cvta_generic_to_shared(&tile[stage & 1][t]);
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" :: "r"(address), "l"(in + stage * 64 + t));
        asm volatile("cp.async.commit_group;");
        asm volatile("cp.async.wait_group 0;");
        __syncthreads();
        float4 v = tile[stage & 1][63 - t];
        out[stage * 64 + t] = make_float4(v.w, v.z, v.y, v.x);
    }
}

extern "C" __global__ void float_atomics(float* sum, double* dsum, half2* hsum, int* ints, unsigned long long* longs) {
    atomicAdd(sum, 0.5f); atomicAdd(dsum, 0.25); atomicAdd(hsum, __floats2half2_rn(1.f, 2.f));
    atomicMin(ints, -(int)threadIdx.x); atomicMax(ints + 1, threadIdx.x); atomicXor(ints + 2, 1 << threadIdx.x % 31); atomicInc((unsigned*)ints + 3, 9);
    atomicAdd(longs, 1ull << 33); atomicMax(longs + 1, (unsigned long long)threadIdx.x << 40);
}
