// Two matrix products for speed and correctness: f32 with 64x64 tiles and 4x4 register tiles, bf16 through mma.sync.
//   nvcc -ptx -arch=sm_80 gemm.cu -o gemm.ptx
#include <cuda_bf16.h>
extern "C" __global__ void __launch_bounds__(256) gemm_f32(const float* a, const float* b, float* c, int m, int n, int k) {
    __shared__ float as[16][68], bs[16][64];
    int t = threadIdx.x, tx = t % 16, ty = t / 16;
    float sum[4][4] = {};
    a += blockIdx.y * 64 * k; b += blockIdx.x * 64;
    for (int base = 0; base < k; base += 16) {
        float4 va = *(const float4*)(a + (t / 4) * k + base + (t % 4) * 4);
        as[(t % 4) * 4][t / 4] = va.x; as[(t % 4) * 4 + 1][t / 4] = va.y; as[(t % 4) * 4 + 2][t / 4] = va.z; as[(t % 4) * 4 + 3][t / 4] = va.w;
        *(float4*)&bs[t / 16][(t % 16) * 4] = *(const float4*)(b + (base + t / 16) * n + (t % 16) * 4);
        __syncthreads();
#pragma unroll
        for (int i = 0; i < 16; i++) {
            float4 x = *(float4*)&as[i][ty * 4], y = *(float4*)&bs[i][tx * 4];
            float xs[4] = {x.x, x.y, x.z, x.w}, ys[4] = {y.x, y.y, y.z, y.w};
#pragma unroll
            for (int u = 0; u < 4; u++)
#pragma unroll
                for (int v = 0; v < 4; v++) sum[u][v] += xs[u] * ys[v];
        }
        __syncthreads();
    }
    for (int u = 0; u < 4; u++) *(float4*)(c + (blockIdx.y * 64 + ty * 4 + u) * n + blockIdx.x * 64 + tx * 4) = make_float4(sum[u][0], sum[u][1], sum[u][2], sum[u][3]);
}

// C (m, n) = A (m, k) row-major times B (n, k) row-major transposed; 64x64 per block of 4 warps, 32x32 per warp.
extern "C" __global__ void __launch_bounds__(128) gemm_bf16(const __nv_bfloat16* a, const __nv_bfloat16* b, float* c, int m, int n, int k) {
    __shared__ __align__(16) __nv_bfloat16 as[64][40], bs[64][40];
    int t = threadIdx.x, lane = t % 32, warp = t / 32, wm = warp / 2 * 32, wn = warp % 2 * 32;
    float sum[2][4][4] = {};
    for (int base = 0; base < k; base += 32) {
        for (int i = 0; i < 2; i++) {
            int row = (t + i * 128) / 4, column = t % 4 * 8;
            *(uint4*)&as[row][column] = *(const uint4*)(a + (blockIdx.y * 64 + row) * k + base + column);
            *(uint4*)&bs[row][column] = *(const uint4*)(b + (blockIdx.x * 64 + row) * k + base + column);
        }
        __syncthreads();
        for (int kk = 0; kk < 32; kk += 16) {
            unsigned fa[2][4], fb[4][2];
            for (int i = 0; i < 2; i++) {
                unsigned p = (unsigned)__cvta_generic_to_shared(&as[wm + i * 16 + lane % 16][kk + lane / 16 * 8]);
                asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];" : "=r"(fa[i][0]), "=r"(fa[i][1]), "=r"(fa[i][2]), "=r"(fa[i][3]) : "r"(p));
            }
            for (int j = 0; j < 4; j++) {
                unsigned p = (unsigned)__cvta_generic_to_shared(&bs[wn + j * 8 + lane % 8][kk + lane / 8 % 2 * 8]);
                asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0,%1}, [%2];" : "=r"(fb[j][0]), "=r"(fb[j][1]) : "r"(p));
            }
            for (int i = 0; i < 2; i++) for (int j = 0; j < 4; j++)
                asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                    : "+f"(sum[i][j][0]), "+f"(sum[i][j][1]), "+f"(sum[i][j][2]), "+f"(sum[i][j][3])
                    : "r"(fa[i][0]), "r"(fa[i][1]), "r"(fa[i][2]), "r"(fa[i][3]), "r"(fb[j][0]), "r"(fb[j][1]));
        }
        __syncthreads();
    }
    for (int i = 0; i < 2; i++) for (int j = 0; j < 4; j++) {
        float* p = c + (blockIdx.y * 64 + wm + i * 16 + lane / 4) * n + blockIdx.x * 64 + wn + j * 8 + lane % 4 * 2;
        p[0] = sum[i][j][0]; p[1] = sum[i][j][1]; p[8 * n] = sum[i][j][2]; p[8 * n + 1] = sum[i][j][3];
    }
}
