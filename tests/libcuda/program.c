/* A driver-API program as any other: adds two vectors. Prints "1000 right". */
#include <cuda.h>
#include <stdio.h>
#include <stdlib.h>

static void check(CUresult result, const char *what) {
    if (result != CUDA_SUCCESS) {
        const char *name = "?";
        cuGetErrorName(result, &name);
        printf("%s: %s\n", what, name);
        exit(1);
    }
}
#define CHECK(call) check(call, #call)

static const char *ptx =
    ".version 7.0\n.target sm_80\n.address_size 64\n"
    ".visible .entry add(.param .u64 a, .param .u64 b, .param .u64 c, .param .u32 n) {\n"
    ".reg .pred %p; .reg .b32 %r<6>; .reg .f32 %f<4>; .reg .b64 %rd<9>;\n"
    "ld.param.u64 %rd1, [a]; ld.param.u64 %rd2, [b]; ld.param.u64 %rd3, [c]; ld.param.u32 %r1, [n];\n"
    "mov.u32 %r2, %ctaid.x; mov.u32 %r3, %ntid.x; mov.u32 %r4, %tid.x; mad.lo.s32 %r5, %r2, %r3, %r4;\n"
    "setp.ge.u32 %p, %r5, %r1; @%p bra DONE; mul.wide.u32 %rd4, %r5, 4;\n"
    "add.u64 %rd5, %rd1, %rd4; add.u64 %rd6, %rd2, %rd4; add.u64 %rd7, %rd3, %rd4;\n"
    "ld.global.f32 %f1, [%rd5]; ld.global.f32 %f2, [%rd6]; add.f32 %f3, %f1, %f2; st.global.f32 [%rd7], %f3;\n"
    "DONE: ret; }\n";

int main(void) {
    enum { N = 1000 };
    CUdevice device;
    CUcontext context;
    CUmodule module;
    CUfunction function;
    CUstream stream;
    CUdeviceptr a, b, c;
    float *pinned, host[N];
    int n = N, right = 0;
    CHECK(cuInit(0));
    CHECK(cuDeviceGet(&device, 0));
    CHECK(cuDevicePrimaryCtxRetain(&context, device));
    CHECK(cuCtxSetCurrent(context));
    CHECK(cuModuleLoadDataEx(&module, ptx, 0, NULL, NULL));
    CHECK(cuModuleGetFunction(&function, module, "add"));
    CHECK(cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));
    CHECK(cuMemAllocHost((void **)&pinned, sizeof host));
    CHECK(cuMemAlloc(&a, sizeof host));
    CHECK(cuMemAllocAsync(&b, sizeof host, stream));
    CHECK(cuMemAllocManaged(&c, sizeof host, CU_MEM_ATTACH_GLOBAL));
    for (int i = 0; i < N; i++) pinned[i] = host[i] = (float)i;
    CHECK(cuMemcpyHtoDAsync(a, pinned, sizeof host, stream));
    CHECK(cuMemcpyHtoDAsync(b, host, sizeof host, stream));
    void *params[] = {&a, &b, &c, &n};
    CUlaunchConfig config = {0};
    config.gridDimX = (N + 127) / 128;
    config.gridDimY = config.gridDimZ = config.blockDimY = config.blockDimZ = 1;
    config.blockDimX = 128;
    config.hStream = stream;
    CHECK(cuLaunchKernelEx(&config, function, params, NULL));
    CHECK(cuStreamSynchronize(stream));
    for (int i = 0; i < N; i++) right += ((float *)c)[i] == 2.0f * i;
    printf("%d right\n", right);
    CHECK(cuMemFree(a));
    CHECK(cuMemFreeAsync(b, stream));
    CHECK(cuMemFree(c));
    CHECK(cuMemFreeHost(pinned));
    CHECK(cuModuleUnload(module));
    CHECK(cuStreamDestroy(stream));
    CHECK(cuDevicePrimaryCtxRelease(device));
    return 0;
}
