//! Devices, memory, copies, launches, events, faults, entry points.

use crate::KERNELS;
use crate::driver::{Session, at, call_at, code, download, get, get_int, launch, ok, symbol, upload};

const INVALID_VALUE: u32 = 1;
const INVALID_CONTEXT: u32 = 201;
const INVALID_HANDLE: u32 = 400;
const NOT_FOUND: u32 = 500;
const ILLEGAL_ADDRESS: u32 = 700;
const OUT_OF_RESOURCES: u32 = 701;
const COOPERATIVE_TOO_LARGE: u32 = 720;
const NOT_SUPPORTED: u32 = 801;

#[test]
fn the_device_is_what_the_emulator_is() {
    ok("cuInit", &[0]);
    assert_eq!(get_int("cuDriverGetVersion", &[]), 13000);
    assert_eq!(get_int("cuDeviceGetCount", &[]), 1);
    let attribute = |number| get_int("cuDeviceGetAttribute", &[number, 0]);
    assert_eq!((attribute(75), attribute(76), attribute(10)), (8, 0, 32));
    assert_eq!((attribute(16), attribute(97)), (108, 163 << 10));
    assert_eq!(get("cuDeviceTotalMem_v2", &[0]), 16 << 30);
    let mut name = [1u8; 8];
    ok("cuDeviceGetName", &[at(&mut name), 8, 0]);
    assert_eq!(&name, b"PTX emu\0");
    assert_eq!(code("cuDeviceGetAttribute", &[at(&mut 0usize), 75, 1]), 101);
    assert_eq!(code("cuDeviceGetCount", &[0]), INVALID_VALUE);
}

#[test]
fn vectors_are_added_through_both_forms_of_parameters() {
    let session = Session::new(KERNELS);
    let n = 1000usize;
    let values: Vec<f32> = (0..n).map(|i| i as f32).collect();
    let (a, b, c) = (upload(&values), upload(&values), upload(&vec![f32::NAN; n]));
    let add = session.function("add");
    assert_eq!(launch(add, 8, 128, 0, &[a, b, c, n]), 0);
    ok("cuCtxSynchronize", &[]);
    let doubled: Vec<f32> = values.iter().map(|value| 2.0 * value).collect();
    assert_eq!(download::<f32>(c, n), doubled);

    let mut buffer = [a, b, b, n];
    let mut bytes = 28usize;
    let mut extra = [1, at(&mut buffer), 2, at(&mut bytes), 0];
    ok("cuLaunchKernel", &[add, 8, 1, 1, 128, 1, 1, 0, 0, 0, at(&mut extra)]);
    assert_eq!(download::<f32>(b, n), doubled);
    let mut too_few = 24usize;
    extra[3] = at(&mut too_few);
    assert_eq!(code("cuLaunchKernel", &[add, 8, 1, 1, 128, 1, 1, 0, 0, 0, at(&mut extra)]), INVALID_VALUE);
}

#[test]
fn launches_in_steps_are_those_of_old() {
    let session = Session::new(KERNELS);
    let n = 1000usize;
    let values: Vec<f32> = (0..n).map(|i| i as f32).collect();
    let doubled: Vec<f32> = values.iter().map(|value| 2.0 * value).collect();
    let (a, c) = (upload(&values), upload(&vec![f32::NAN; n]));
    let add = session.function("add");
    assert_eq!(code("cuLaunchGrid", &[add, 8, 1]), INVALID_VALUE, "no block was set");
    ok("cuFuncSetBlockShape", &[add, 128, 1, 1]);
    assert_eq!(code("cuFuncSetBlockShape", &[add, 128, 0, 1]), INVALID_VALUE);
    ok("cuFuncSetSharedSize", &[add, 16]);
    ok("cuParamSetSize", &[add, 24]);
    ok("cuParamSetv", &[add, 0, at(&mut [a, a, c]), 24]);
    assert_eq!(code("cuLaunchGrid", &[add, 8, 1]), INVALID_VALUE, "a parameter is missing");
    ok("cuParamSeti", &[add, 24, n]);
    ok("cuLaunchGrid", &[add, 4, 2]);
    let first: Vec<f32> = download(c, n);
    assert_eq!(first[..512], doubled[..512], "its blocks are counted along x");
    assert!(first[512..].iter().all(|value| value.is_nan()));
    ok("cuLaunchGridAsync", &[add, 8, 1, 0]);
    assert_eq!(download::<f32>(c, n), doubled);
    ok("cuParamSetv", &[add, 16, at(&mut [a]), 8]);
    ok("cuLaunch", &[add]);
    assert_eq!(download::<f32>(a, n)[..129], [&doubled[..128], &[128.0]].concat());
    for arguments in [[add, usize::MAX, at(&mut [0usize]), 8], [add, 32764, at(&mut [0usize]), 8], [add, 0, 0, 8]] {
        assert_eq!(code("cuParamSetv", &arguments), INVALID_VALUE);
    }
}

#[test]
fn the_extended_launch_takes_attributes() {
    let session = Session::new(KERNELS);
    let data = upload(&[0u32; 33]);
    let mut word = data;
    let mut params = [at(&mut word)];
    // Attributes of 72 bytes: cooperative (2); cluster dimensions (4).
    let mut attributes = [0u32; 36];
    (attributes[0], attributes[2]) = (2, 1);
    (attributes[18], attributes[20], attributes[21], attributes[22]) = (4, 1, 1, 1);
    let mut config = [0u32; 14];
    config[..7].copy_from_slice(&[32, 1, 1, 1, 1, 1, 0]);
    let address = at(&mut attributes);
    (config[10], config[11], config[12]) = (address as u32, (address >> 32) as u32, 2);
    let meet = session.function("meet");
    ok("cuLaunchKernelEx", &[at(&mut config), meet, at(&mut params), 0]);
    assert!(download::<u32>(data + 4, 32).iter().all(|&seen| seen == 32));
    attributes[20] = 2;
    assert_eq!(at(&mut attributes), address);
    assert_eq!(code("cuLaunchKernelEx", &[at(&mut config), meet, at(&mut params), 0]), NOT_SUPPORTED);
}

#[test]
fn cooperative_blocks_wait_for_each_other_and_must_fit() {
    let session = Session::new(KERNELS);
    let data = upload(&[0u32; 101]);
    let mut word = data;
    let mut params = [at(&mut word)];
    let meet = session.function("meet");
    ok("cuLaunchCooperativeKernel", &[meet, 100, 1, 1, 1, 1, 1, 0, 0, at(&mut params)]);
    assert!(download::<u32>(data + 4, 100).iter().all(|&seen| seen == 100));
    let fits = get_int("cuOccupancyMaxActiveBlocksPerMultiprocessor", &[meet, 1, 0]) as usize * 108;
    assert_eq!(fits, 32 * 108);
    let arguments = [meet, fits + 1, 1, 1, 1, 1, 1, 0, 0, at(&mut params)];
    assert_eq!(code("cuLaunchCooperativeKernel", &arguments), COOPERATIVE_TOO_LARGE);
}

#[test]
fn launches_beyond_the_limits_are_refused_at_the_call() {
    let session = Session::new(KERNELS);
    let out = upload(&[0u32; 1]);
    let shared = session.function("shared");
    let mut word = out;
    let mut params = [at(&mut word)];
    let mut launch = |threads: usize, dynamic: usize| {
        code("cuLaunchKernel", &[shared, 1, 1, 1, threads, 1, 1, dynamic, 0, at(&mut params), 0])
    };
    assert_eq!(launch(1, 16), 0);
    assert_eq!(launch(0, 16), INVALID_VALUE);
    assert_eq!(launch(2048, 16), INVALID_VALUE);
    assert_eq!(launch(257, 16), OUT_OF_RESOURCES);
    // 48 KiB less the static 16 are allowed until the kernel opts in.
    assert_eq!(launch(1, 33 << 10), INVALID_VALUE);
    ok("cuFuncSetAttribute", &[shared, 8, 100 << 10]);
    assert_eq!(launch(1, 100 << 10), 0);
    assert_eq!(code("cuFuncSetAttribute", &[shared, 8, 160 << 10]), INVALID_VALUE);
    assert_eq!(get_int("cuFuncGetAttribute", &[8, shared]), 100 << 10);
    assert_eq!(get_int("cuFuncGetAttribute", &[1, shared]), 16 << 10);
    assert_eq!(get_int("cuFuncGetAttribute", &[0, shared]), 256);
    assert_eq!(code("cuLaunchKernel", &[shared + 1, 1, 1, 1, 1, 1, 1, 0, 0, at(&mut params), 0]), INVALID_HANDLE);
}

#[test]
fn occupancy_counts_threads_blocks_and_shared_memory() {
    let session = Session::new(KERNELS);
    let blocks = |function, threads, dynamic| {
        get_int("cuOccupancyMaxActiveBlocksPerMultiprocessor", &[function, threads, dynamic])
    };
    let (add, shared) = (session.function("add"), session.function("shared"));
    assert_eq!([blocks(add, 1024, 0), blocks(add, 256, 0), blocks(add, 32, 0)], [2, 8, 32]);
    // 164 KiB hold nine blocks of 16 KiB and the 1 KiB that each reserves.
    assert_eq!(blocks(shared, 32, 0), 9);
    assert_eq!(blocks(shared, 32, 147 << 10), 1);
    assert_eq!(blocks(shared, 32, 148 << 10), 0);
    let (mut grid, mut block) = (0i32, 0i32);
    ok("cuOccupancyMaxPotentialBlockSize", &[at(&mut grid), at(&mut block), add, 0, 0, 0]);
    assert_eq!((grid, block), (216, 1024));
}

#[test]
fn host_and_device_see_the_same_bytes_of_managed_pinned_and_registered_memory() {
    let session = Session::new(KERNELS);
    let step = session.function("step");
    let managed = get("cuMemAllocManaged", &[64, 1]);
    let pinned = get("cuMemHostAlloc", &[64, 2]);
    let mut own = [5u32; 16];
    ok("cuMemHostRegister_v2", &[at(&mut own), 64, 2]);
    let registered = get("cuMemHostGetDevicePointer_v2", &[at(&mut own), 0]);
    assert_eq!(get("cuMemHostGetDevicePointer_v2", &[pinned + 8, 0]), pinned + 8);
    let (first, second) = (managed as *mut u32, pinned as *mut u32);
    // SAFETY: the driver gave 64 bytes at each.
    unsafe {
        *first.add(3) = 10;
        *second.add(3) = 20;
    }
    for address in [managed, pinned, registered] {
        assert_eq!(launch(step, 1, 16, 0, &[address, 1]), 0);
    }
    ok("cuCtxSynchronize", &[]);
    // SAFETY: as above; the kernels are done.
    unsafe { assert_eq!((*first.add(3), *second.add(3), *first), (11, 21, 1)) };
    // SAFETY: the kernel wrote behind the compiler's back.
    assert_eq!(unsafe { std::ptr::read_volatile(&own) }, [6; 16]);
    let attribute = |number, pointer| get("cuPointerGetAttribute", &[number, pointer]);
    assert_eq!([attribute(2, managed), attribute(2, pinned), attribute(2, at(&mut own))], [2, 1, 1]);
    assert_eq!((attribute(8, managed), attribute(8, pinned)), (1, 0));
    assert_eq!(attribute(3, at(&mut own) + 4), registered + 4);
    assert_eq!(code("cuPointerGetAttribute", &[at(&mut 0usize), 2, at(&mut 0u8)]), INVALID_VALUE);
    ok("cuMemHostUnregister", &[at(&mut own)]);
    ok("cuMemFreeHost", &[pinned]);
    ok("cuMemFree_v2", &[managed]);
    assert_eq!(code("cuMemFreeHost", &[pinned]), INVALID_VALUE);
}

#[test]
fn pitched_copies_move_a_rectangle() {
    let _session = Session::new(KERNELS);
    let (mut device, mut pitch) = (0usize, 0usize);
    ok("cuMemAllocPitch_v2", &[at(&mut device), at(&mut pitch), 100, 7, 4]);
    assert_eq!(pitch, 512);
    ok("cuMemsetD2D8_v2", &[device, pitch, 9, 100, 7]);
    let source: Vec<u8> = (0..40).collect();
    // Words of CUDA_MEMCPY2D: x, y, type, host, device, array, pitch of both sides; width, height.
    let mut copy = [0, 0, 1, source.as_ptr() as usize, 0, 0, 10, 3, 2, 2, 0, device, 0, pitch, 8, 4];
    ok("cuMemcpy2D_v2", &[at(&mut copy)]);
    let mut back = vec![0u8; 100 * 7];
    let mut copy = [0, 0, 2, 0, device, 0, pitch, 0, 0, 1, at(back.as_mut_slice()), 0, 0, 100, 100, 7];
    ok("cuMemcpy2DAsync_v2", &[at(&mut copy), 0]);
    for (index, value) in back.iter().enumerate() {
        let (row, column) = (index / 100, index % 100);
        let inside = (2..6).contains(&row) && (3..11).contains(&column);
        assert_eq!(usize::from(*value), if inside { (row - 2) * 10 + column - 3 } else { 9 }, "({row}, {column})");
    }
    copy[14] = 600;
    assert_eq!(code("cuMemcpy2D_v2", &[at(&mut copy)]), INVALID_VALUE);
    copy[2] = 3;
    copy[14] = 100;
    assert_eq!(code("cuMemcpy2D_v2", &[at(&mut copy)]), NOT_SUPPORTED);
}

#[test]
fn copies_and_fills_outside_an_allocation_are_refused() {
    let _session = Session::new(KERNELS);
    let device = upload(&[0u32; 4]);
    ok("cuMemsetD32_v2", &[device + 4, 0xABCD, 2]);
    ok("cuMemsetD16_v2", &[device, 0x1234, 1]);
    assert_eq!(download::<u32>(device, 4), [0x1234, 0xABCD, 0xABCD, 0]);
    assert_eq!(code("cuMemsetD32_v2", &[device, 1, 5]), INVALID_VALUE);
    assert_eq!(code("cuMemsetD32_v2", &[device + 1, 1, 1]), INVALID_VALUE);
    assert_eq!(code("cuMemcpyDtoD_v2", &[device, device + 4, 16]), INVALID_VALUE);
    assert_eq!(code("cuMemcpyHtoD_v2", &[device, 0, 16]), INVALID_VALUE);
    assert_eq!(code("cuMemFree_v2", &[device + 4]), INVALID_VALUE);
    ok("cuMemFree_v2", &[device]);
    assert_eq!(code("cuMemFree_v2", &[device]), INVALID_VALUE);
    assert_eq!(code("cuMemAlloc_v2", &[at(&mut 0usize), 1 << 45]), 2);
}

#[test]
fn streams_write_values_and_wait_only_for_what_is_there() {
    let _session = Session::new(KERNELS);
    let data = upload(&[0u32; 4]);
    let stream = get("cuStreamCreate", &[1]);
    ok("cuStreamWriteValue32_v2", &[stream, data, 7, 0]);
    ok("cuStreamWriteValue64_v2", &[stream, data + 8, 9 << 32 | 8, 0]);
    assert_eq!(download::<u32>(data, 4), [7, 0, 8, 9]);
    let wait = |value, flags| code("cuStreamWaitValue32_v2", &[stream, data, value, flags]);
    assert_eq!([wait(6, 0), wait(7, 1), wait(1, 2), wait(8, 0), wait(8, 2)], [0, 0, 0, NOT_SUPPORTED, NOT_SUPPORTED]);
}

#[test]
fn a_batch_of_copies_tells_which_failed() {
    let _session = Session::new(KERNELS);
    let (a, b) = (upload(&[1u32, 2]), upload(&[0u32; 2]));
    let (mut targets, mut sources, mut bytes, mut failed) = ([b + 4, b], [a, a + 4], [4usize, 4], 9usize);
    let mut copy = |bytes: &mut [usize; 2]| {
        let (targets, sources) = (at(&mut targets), at(&mut sources));
        code("cuMemcpyBatchAsync", &[targets, sources, at(bytes), 2, 0, 0, 0, at(&mut failed), 0])
    };
    assert_eq!((copy(&mut bytes), download::<u32>(b, 2)), (0, vec![2, 1]));
    bytes[1] = 8;
    assert_eq!(copy(&mut bytes), INVALID_VALUE);
    assert_eq!(failed, 1);
}

#[test]
fn pools_count_what_streams_allocate() {
    let _session = Session::new(KERNELS);
    // CUmemPoolProps: pinned, no handles, on device 0.
    let mut properties = [0u32; 22];
    (properties[0], properties[2]) = (1, 1);
    let pool = get("cuMemPoolCreate", &[at(&mut properties)]);
    let stream = get("cuStreamCreate", &[1]);
    let used = |attribute| {
        let mut value = 0usize;
        ok("cuMemPoolGetAttribute", &[pool, attribute, at(&mut value)]);
        value
    };
    let address = get("cuMemAllocFromPoolAsync", &[1000, pool, stream]);
    assert_eq!((used(7), used(8)), (1000, 1000));
    ok("cuMemFreeAsync", &[address, stream]);
    assert_eq!((used(7), used(8)), (0, 1000));
    ok("cuMemPoolDestroy", &[pool]);
    assert_eq!(code("cuMemPoolDestroy", &[pool]), INVALID_VALUE);
}

#[test]
fn events_measure_time_and_streams_run_host_functions() {
    extern "C" fn bump(data: *mut std::ffi::c_void) {
        // SAFETY: the test passes the address of its counter.
        unsafe { *data.cast::<u32>() += 1 };
    }
    let session = Session::new(KERNELS);
    let stream = get("cuStreamCreateWithPriority", &[1, -1isize as usize]);
    let (start, end) = (get("cuEventCreate", &[0]), get("cuEventCreate", &[0]));
    let data = upload(&[0u32; 32]);
    let mut calls = 0u32;
    let mut milliseconds = 0f32;
    assert_eq!(code("cuEventElapsedTime_v2", &[at(&mut milliseconds), start, end]), INVALID_HANDLE);
    ok("cuEventRecord", &[start, stream]);
    assert_eq!(launch(session.function("step"), 1, 32, stream, &[data, 3]), 0);
    ok("cuLaunchHostFunc", &[stream, bump as *const () as usize, at(&mut calls)]);
    ok("cuEventRecord", &[end, stream]);
    ok("cuStreamWaitEvent", &[0, end, 0]);
    ok("cuEventSynchronize", &[end]);
    ok("cuStreamQuery", &[stream]);
    ok("cuEventElapsedTime_v2", &[at(&mut milliseconds), start, end]);
    assert!(milliseconds > 0.0);
    // SAFETY: the callback wrote behind the compiler's back.
    assert_eq!(unsafe { std::ptr::read_volatile(&calls) }, 1);
    let mut priority = 0i32;
    ok("cuStreamGetPriority", &[stream, at(&mut priority)]);
    assert_eq!(priority, -1);
    ok("cuStreamDestroy_v2", &[stream]);
    ok("cuEventDestroy_v2", &[end]);
    assert_eq!(code("cuStreamQuery", &[stream]), INVALID_HANDLE);
    assert_eq!(code("cuEventQuery", &[end]), INVALID_HANDLE);
    assert_eq!(code("cuStreamQuery", &[12345]), INVALID_HANDLE);
}

#[test]
fn a_fault_kills_its_context_and_no_other() {
    let healthy = Session::new(KERNELS);
    let session = Session::new(KERNELS);
    let step = session.function("step");
    assert_eq!(launch(step, 1, 1, 0, &[4096, 1]), 0);
    assert_eq!(code("cuCtxSynchronize", &[]), ILLEGAL_ADDRESS);
    assert_eq!(code("cuCtxSynchronize", &[]), ILLEGAL_ADDRESS);
    assert_eq!(code("cuMemAlloc_v2", &[at(&mut 0usize), 4]), ILLEGAL_ADDRESS);
    assert_eq!(launch(step, 1, 1, 0, &[4096, 1]), ILLEGAL_ADDRESS);
    ok("cuCtxPushCurrent_v2", &[healthy.context]);
    let data = upload(&[1u32]);
    assert_eq!(launch(healthy.function("step"), 1, 1, 0, &[data, 1]), 0);
    ok("cuCtxSynchronize", &[]);
    let mut popped = 0usize;
    ok("cuCtxPopCurrent_v2", &[at(&mut popped)]);
    assert_eq!(popped, healthy.context);
}

#[test]
fn faults_have_the_code_of_their_kind() {
    for (kernel, parameters, expected) in
        [("trapped", vec![], 719), ("step", vec![4096, 1], 700), ("step", vec![], 716)]
    {
        let session = Session::new(KERNELS);
        let parameters = if expected == 716 { vec![upload(&[0u32; 2]) + 2, 1] } else { parameters };
        assert_eq!(launch(session.function(kernel), 1, 1, 0, &parameters), 0);
        assert_eq!(code("cuCtxSynchronize", &[]), expected, "{kernel}");
    }
}

#[test]
fn contexts_are_a_stack_of_the_thread() {
    ok("cuInit", &[0]);
    assert_eq!(get("cuCtxGetCurrent", &[]), 0);
    assert_eq!(code("cuCtxSynchronize", &[]), INVALID_CONTEXT);
    let first = get("cuCtxCreate_v4", &[0, 0, 0]);
    let second = get("cuCtxCreate_v3", &[0, 0, 0, 0]);
    assert_eq!(get("cuCtxGetCurrent", &[]), second);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            assert_eq!(get("cuCtxGetCurrent", &[]), 0);
            ok("cuCtxSetCurrent", &[second]);
            ok("cuCtxSynchronize", &[]);
        });
    });
    assert_eq!(get("cuCtxAttach", &[0]), second);
    assert_eq!(code("cuCtxAttach", &[at(&mut 0usize), 1]), INVALID_VALUE);
    ok("cuCtxDetach", &[second]);
    ok("cuCtxDetach", &[second]);
    assert_eq!(code("cuCtxDetach", &[second]), INVALID_CONTEXT);
    assert_eq!(get("cuCtxGetCurrent", &[]), first);
    assert_eq!(code("cuCtxSetCurrent", &[second]), INVALID_CONTEXT);
    ok("cuCtxDestroy_v2", &[first]);
    assert_eq!(code("cuCtxDestroy_v2", &[first]), INVALID_CONTEXT);
}

#[test]
fn entry_points_are_found_by_name_and_version() {
    let find = |name: &str, version: usize, flags: usize| {
        let name = std::ffi::CString::new(name).unwrap();
        let (mut function, mut status) = (0usize, 9u32);
        let arguments = [name.as_ptr() as usize, at(&mut function), version, flags, at(&mut status)];
        assert_eq!(code("cuGetProcAddress_v2", &arguments), 0);
        (function, status)
    };
    assert_eq!(find("cuMemAlloc", 13000, 0), (symbol("cuMemAlloc_v2"), 0));
    assert_eq!(find("cuMemAlloc", 2000, 0), (symbol("cuMemAlloc"), 0));
    assert_eq!(find("cuCtxCreate", 12040, 0), (symbol("cuCtxCreate_v3"), 0));
    assert_eq!(find("cuCtxCreate", 12050, 0), (symbol("cuCtxCreate_v4"), 0));
    assert_eq!(find("cuLaunchKernel", 12000, 2), (symbol("cuLaunchKernel_ptsz"), 0));
    assert_eq!(find("cuLaunchKernelEx", 11000, 0), (0, 2));
    assert_eq!(find("cuMakeCoffee", 13000, 0), (0, 1));
    let mut function = 0usize;
    let name = c"cuInit".as_ptr() as usize;
    ok("cuGetProcAddress", &[name, at(&mut function), 11030, 0]);
    assert_eq!(call_at(function, &[0]), 0);
    let name = c"cuMakeCoffee".as_ptr() as usize;
    assert_eq!(code("cuGetProcAddress", &[name, at(&mut function), 11030, 0]), NOT_FOUND);
}

#[test]
fn every_entry_point_of_the_table_exists() {
    let table = include_str!("../../examples/libcuda/symbols.txt");
    let words = table.lines().filter(|line| !line.starts_with('#')).flat_map(|line| line.split_whitespace().skip(1));
    for word in words {
        let (_, name) = word.split_once(':').unwrap();
        assert_ne!(symbol(name), 0, "{name}");
    }
}

#[test]
fn what_is_not_supported_says_so() {
    let _session = Session::new(KERNELS);
    for name in ["cuArrayCreate_v2", "cuTexObjectCreate", "cuMemCreate", "cuGetExportTable", "cuTensorMapEncodeTiled"] {
        assert_eq!(code(name, &[at(&mut [0usize; 16]), at(&mut [0usize; 16])]), NOT_SUPPORTED, "{name}");
    }
    let mut name = 0usize;
    ok("cuGetErrorName", &[801, at(&mut name)]);
    // SAFETY: the interface gives a C string that stays.
    let name = unsafe { std::ffi::CStr::from_ptr(name as *const _) };
    assert_eq!(name, c"CUDA_ERROR_NOT_SUPPORTED");
    assert_eq!(code("cuGetErrorName", &[12345, at(&mut 0usize)]), INVALID_VALUE);
}
