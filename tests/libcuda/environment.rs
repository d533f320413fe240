//! What environment variables change, and what goes to the standard streams: each in a process of its own.

use crate::KERNELS;
use crate::driver::{Session, at, code, get, get_int, in_child, launch, ok, upload};

#[test]
fn kernels_print_at_the_next_synchronisation() {
    let Some((passed, text)) = in_child("environment::kernels_print_at_the_next_synchronisation", &[]) else {
        let session = Session::new(KERNELS);
        assert_eq!(launch(session.function("print"), 1, 3, 0, &[]), 0);
        ok("cuCtxSynchronize", &[]);
        return;
    };
    assert!(passed, "{text}");
    assert!(text.contains("thread 0\nthread 1\nthread 2\n"), "{text}");
}

#[test]
fn the_device_is_chosen() {
    let device = "name=Some GPU, sm=90,memory=3GiB,multiprocessors=12";
    let Some((passed, text)) = in_child("environment::the_device_is_chosen", &[("ENGINE_EMULATOR_DEVICE", device)])
    else {
        ok("cuInit", &[0]);
        let attribute = |number| get_int("cuDeviceGetAttribute", &[number, 0]);
        assert_eq!((attribute(75), attribute(76), attribute(16), attribute(97)), (9, 0, 12, 227 << 10));
        assert_eq!(get("cuDeviceTotalMem_v2", &[0]), 3 << 30);
        let mut name = [0u8; 20];
        ok("cuDeviceGetName", &[at(&mut name), 20, 0]);
        assert!(name.starts_with(b"Some GPU\0"));
        return;
    };
    assert!(passed, "{text}");
}

#[test]
fn a_misspelt_device_is_told() {
    let name = "environment::a_misspelt_device_is_told";
    let Some((passed, text)) = in_child(name, &[("ENGINE_EMULATOR_DEVICE", "sm=81")]) else {
        assert_eq!(code("cuInit", &[0]), 1);
        assert_eq!(code("cuDeviceGetCount", &[at(&mut 0i32)]), 3);
        return;
    };
    assert!(passed, "{text}");
    assert!(text.contains("ENGINE_EMULATOR_DEVICE: '81': expected an architecture"), "{text}");
}

#[test]
fn a_missing_device_and_an_old_driver_are_pretended() {
    let name = "environment::a_missing_device_and_an_old_driver_are_pretended";
    let Some((passed, text)) = in_child(name, &[("ENGINE_EMULATOR_DEVICE", "count=0,driver=11.8")]) else {
        assert_eq!(get_int("cuDriverGetVersion", &[]), 11_080);
        assert_eq!(code("cuInit", &[0]), 100);
        assert_eq!(code("cuDeviceGetCount", &[at(&mut 0i32)]), 3);
        return;
    };
    assert!(passed, "{text}");
}

#[test]
fn the_heap_of_kernels_has_the_size_that_was_set() {
    const TEXT: &str = ".version 8.0\n.target sm_80\n.address_size 64
        .extern .func (.param .b64 a) malloc(.param .b64 size);
        .visible .entry ask(.param .u64 p) {
        .reg .b64 %a<4>;\n.param .b64 size;\n.param .b64 a;\nld.param.u64 %a1, [p];\nst.param.b64 [size], 6000000;
        call.uni (a), malloc, (size);\nld.param.b64 %a2, [a];\nst.global.u64 [%a1], %a2;\nret;\n}
        .visible .entry odd() { frobnicate; }";
    let name = "environment::the_heap_of_kernels_has_the_size_that_was_set";
    let Some((passed, text)) = in_child(name, &[("ENGINE_EMULATOR_LOG", "1")]) else {
        let session = Session::new(TEXT);
        let ask = session.function("ask");
        // CU_LIMIT_MALLOC_HEAP_SIZE
        assert_eq!(get("cuCtxGetLimit", &[2]), 8 << 20);
        ok("cuCtxSetLimit", &[2, 10 << 20]);
        let result = upload(&[1u64]);
        let mut addresses = [0u64; 2];
        for address in &mut addresses {
            assert_eq!(launch(ask, 1, 1, 0, &[result]), 0);
            ok("cuMemcpyDtoH_v2", &[at(address), result, 8]);
        }
        assert!(addresses[0] != 0 && addresses[1] == 0, "{addresses:x?}");
        assert_eq!(code("cuCtxSetLimit", &[2, 1 << 20]), 1);
        assert_eq!(code("cuModuleGetFunction", &[at(&mut 0usize), session.module, c"odd".as_ptr() as usize]), 801);
        return;
    };
    assert!(passed, "{text}");
    assert!(text.contains("unsupported instruction 'frobnicate', in odd"), "{text}");
}

#[test]
fn the_log_tells_faults_and_what_is_not_supported() {
    let name = "environment::the_log_tells_faults_and_what_is_not_supported";
    let Some((passed, text)) = in_child(name, &[("ENGINE_EMULATOR_LOG", "1")]) else {
        let session = Session::new(KERNELS);
        assert_eq!(code("cuTexObjectCreate", &[0x1234, 5]), 801);
        assert_eq!(code("cuModuleLoadData", &[at(&mut 0usize), c"\x7fELF\x02".as_ptr() as usize]), 209);
        let data = upload(&[0u32; 4]);
        assert_eq!(launch(session.function("step"), 1, 8, 0, &[data, 1]), 0);
        assert_eq!(code("cuCtxSynchronize", &[]), 700);
        return;
    };
    assert!(passed, "{text}");
    for expected in [
        "cuTexObjectCreate answers CUDA_ERROR_NOT_SUPPORTED; asked with (0x1234, 0x5, ",
        "machine code (SASS) cannot be executed: bring PTX",
        "4 bytes past the end of the 16 bytes",
        "in step, block (0,0,0), thread (4,0,0)",
    ] {
        assert!(text.contains(expected), "{expected}: {text}");
    }
}

#[test]
fn the_budget_ends_an_endless_loop() {
    let name = "environment::the_budget_ends_an_endless_loop";
    let Some((passed, text)) = in_child(name, &[("ENGINE_EMULATOR_BUDGET", "100000")]) else {
        let session = Session::new(KERNELS);
        assert_eq!(launch(session.function("endless"), 1, 1, 0, &[]), 0);
        assert_eq!(code("cuStreamSynchronize", &[0]), 702);
        return;
    };
    assert!(passed, "{text}");
}

#[test]
fn the_sanitizer_fails_a_launch_that_reads_what_nobody_wrote() {
    let name = "environment::the_sanitizer_fails_a_launch_that_reads_what_nobody_wrote";
    let Some((passed, text)) = in_child(name, &[("ENGINE_EMULATOR_SANITIZE", "1")]) else {
        let session = Session::new(KERNELS);
        let step = session.function("step");
        let written = upload(&[0u32; 4]);
        assert_eq!(launch(step, 1, 4, 0, &[written, 1]), 0);
        ok("cuCtxSynchronize", &[]);
        let fresh = get("cuMemAlloc_v2", &[16]);
        assert_eq!(launch(step, 1, 4, 0, &[fresh, 1]), 0);
        assert_eq!(code("cuCtxSynchronize", &[]), 719);
        return;
    };
    assert!(passed, "{text}");
    assert!(text.contains("UninitialisedGlobal in step"), "{text}");
}

#[test]
fn counters_go_to_a_file_one_line_per_launch() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("counters.jsonl");
    let name = "environment::counters_go_to_a_file_one_line_per_launch";
    let Some((passed, text)) = in_child(name, &[("ENGINE_EMULATOR_COUNTERS", path.to_str().unwrap())]) else {
        let session = Session::new(KERNELS);
        let data = upload(&[0u32; 64]);
        for _ in 0..2 {
            assert_eq!(launch(session.function("step"), 1, 64, 0, &[data, 1]), 0);
        }
        return;
    };
    assert!(passed, "{text}");
    let lines: Vec<serde_json::Value> =
        std::fs::read_to_string(&path).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 2);
    assert_eq!(lines[1]["kernel"], "step");
    assert_eq!(lines[1]["global_load_sectors"], 8);
    assert_eq!(lines[1]["dram_write_bytes"], 256);
}

#[test]
fn a_global_capture_stops_allocations_in_other_threads() {
    let name = "environment::a_global_capture_stops_allocations_in_other_threads";
    let Some((passed, text)) = in_child(name, &[]) else {
        let session = Session::new(KERNELS);
        let stream = get("cuStreamCreate", &[1]);
        ok("cuStreamBeginCapture_v2", &[stream, 0]);
        let allocate = |mode: u32| {
            let mut mode = mode;
            ok("cuThreadExchangeStreamCaptureMode", &[at(&mut mode)]);
            ok("cuCtxSetCurrent", &[session.context]);
            code("cuMemAlloc_v2", &[at(&mut 0usize), 4])
        };
        let in_thread = |mode| std::thread::scope(|scope| scope.spawn(|| allocate(mode)).join().unwrap());
        assert_eq!((in_thread(2), in_thread(1), in_thread(0)), (0, 0, 900));
        assert_eq!(code("cuStreamEndCapture", &[stream, at(&mut 0usize)]), 901);
        return;
    };
    assert!(passed, "{text}");
}
