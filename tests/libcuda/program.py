"""A driver-API program as any other: adds two vectors through NVIDIA's Python bindings. Prints [2.0, 4.0, 6.0]."""

import ctypes
import sys

from cuda.bindings import driver


def check(result):
    code, *values = result
    if code != driver.CUresult.CUDA_SUCCESS:
        raise SystemExit(f"failed: {code!r}")
    return values[0] if len(values) == 1 else values


check(driver.cuInit(0))
device = check(driver.cuDeviceGet(0))
context = check(driver.cuDevicePrimaryCtxRetain(device))
check(driver.cuCtxSetCurrent(context))
with open(sys.argv[1], "rb") as file:
    module = check(driver.cuModuleLoadData(file.read() + b"\0"))
add = check(driver.cuModuleGetFunction(module, b"add"))
stream = check(driver.cuStreamCreate(0))
values = (ctypes.c_float * 3)(1, 2, 3)
results = (ctypes.c_float * 3)()
size = ctypes.sizeof(values)
a, b, c = (check(driver.cuMemAlloc(size)) for _ in range(3))
for target in (a, b):
    check(driver.cuMemcpyHtoDAsync(target, ctypes.addressof(values), size, stream))
arguments = ((a, b, c, 3), (None, None, None, ctypes.c_uint32))
check(driver.cuLaunchKernel(add, 1, 1, 1, 32, 1, 1, 0, stream, arguments, 0))
check(driver.cuMemcpyDtoHAsync(ctypes.addressof(results), c, size, stream))
check(driver.cuStreamSynchronize(stream))
print(list(results))
check(driver.cuDevicePrimaryCtxRelease(device))
