//! alloca, stacksave and stackrestore: in programs that nvcc made, and instruction by instruction.

use engine::driver::emulator::{DeviceFacts, Emulator, Finding, FindingKind, LaunchConfig, Params};

use super::body::kernel;

const THREADS: usize = 256;

fn sizes() -> Vec<i32> {
    (0..THREADS as i32).map(|t| (t * 37 + t / 32) % 41).collect()
}

/// Runs a kernel of `stack.ptx` plainly and under the sanitizer, which must find nothing.
fn check(kernel: &str, expected: impl Fn(i32, i32) -> i32) {
    for sanitizes in [false, true] {
        let emulator = Emulator::new(DeviceFacts::default()).with_initialisation_tracking();
        let module = emulator.load("stack.ptx", include_str!("stack.ptx")).unwrap();
        let (input, out) = (emulator.upload(&sizes()).unwrap(), emulator.allocate(4 * THREADS as u64).unwrap());
        let (params, config) = (Params::new().u64(input).u64(out), LaunchConfig::new([2, 1, 1], [128, 1, 1]));
        if sanitizes {
            let (_, findings) = emulator.launch_sanitized(&module, kernel, config, params.as_bytes()).unwrap();
            assert!(findings.is_empty(), "{kernel}: {findings:#?}");
        } else {
            emulator.launch(&module, kernel, config, params.as_bytes()).unwrap();
        }
        let found = emulator.download::<i32>(out, THREADS).unwrap();
        for (t, (size, found)) in sizes().into_iter().zip(found).enumerate() {
            assert_eq!(found, expected(size, t as i32), "{kernel}, thread {t}");
        }
    }
}

#[test]
fn every_lane_takes_a_size_of_its_own() {
    check("own_sizes", |size, t| (0..size).map(|i| i * t * (i + 1)).sum());
}

#[test]
fn recursive_functions_have_stacks_of_their_own() {
    fn nested(n: i32, d: i32) -> i32 {
        (if n <= 0 { d } else { nested(n - 1, d + 1) }) + (0..=n).map(|i| i + d).sum::<i32>()
    }
    check("recursive", nested);
}

#[test]
fn a_loop_gives_back_what_each_turn_took() {
    check("in_a_loop", |size, _| (0..size).map(|k| (0..=k).map(|i| (k - i) * k * i).sum::<i32>()).sum());
}

#[test]
fn who_runs_out_of_a_block_is_found() {
    let find = |extra| -> Vec<Finding> {
        let emulator = Emulator::new(DeviceFacts::default()).with_initialisation_tracking();
        let module = emulator.load("stack.ptx", include_str!("stack.ptx")).unwrap();
        let (input, out) = (emulator.upload(&[5i32; 32]).unwrap(), emulator.allocate(128).unwrap());
        let params = Params::new().u64(input).u64(out).i32(extra);
        emulator
            .launch_sanitized(&module, "too_far", LaunchConfig::new([1, 1, 1], [32, 1, 1]), params.as_bytes())
            .unwrap()
            .1
    };
    assert_eq!(find(0), []);
    let findings = find(1);
    assert!(findings.iter().all(|finding| finding.kind == FindingKind::OutOfBounds));
    // Out of the first block into the gap, out of the second over the end.
    let tells = |text: &str| findings.iter().any(|finding| finding.detail.contains(text));
    assert!(tells("outside the blocks that alloca gave") && tells("bytes of local memory here"), "{findings:#?}");
}

fn run(body: &str) -> (Vec<Finding>, Result<Vec<u32>, String>) {
    let emulator = Emulator::new(DeviceFacts::default());
    let module = emulator.load("k.ptx", &kernel(body)).unwrap_or_else(|error| panic!("{body}: {error}"));
    let data = emulator.upload(&[0u32; 64]).unwrap();
    let (config, params) = (LaunchConfig::new([1, 1, 1], [64, 1, 1]), Params::new().u64(data));
    let (_, findings) = emulator.launch_sanitized(&module, "k", config, params.as_bytes()).unwrap();
    let result = emulator.launch(&module, "k", config, params.as_bytes()).map_err(|error| error.to_string());
    (findings, result.map(|_| emulator.download(data, 64).unwrap()))
}

#[test]
fn blocks_are_aligned_apart_and_come_again_after_a_restore() {
    let (findings, result) = run("stacksave.u64 %a3;\nalloca.u64 %a4, 12, 64;\nalloca.u32 %r1, 4;\n\
         stackrestore.u64 %a3;\nalloca.u64 %a5, 12, 64;\n\
         cvt.u32.u64 %r2, %a4;\nand.b32 %r3, %r2, 63;\nsub.u32 %r4, %r1, %r2;\nmin.u32 %r4, %r4, 12;\n\
         setp.eq.u64 %p1, %a4, %a5;\nselp.b32 %r5, 100, 0, %p1;\nadd.u32 %r3, %r3, %r4;\nadd.u32 %r3, %r3, %r5;\n\
         st.global.u32 [%a2], %r3;");
    assert_eq!(findings, []);
    assert_eq!(result.unwrap(), [112; 64]);
}

#[test]
fn what_was_given_back_or_never_written_is_found() {
    let kinds = |body: &str| run(body).0.iter().map(|finding| finding.kind).collect::<Vec<_>>();
    let after = "stacksave.u64 %a3;\nalloca.u64 %a4, 16;\nst.local.u32 [%a4], 1;\nstackrestore.u64 %a3;\n\
                 ld.local.u32 %r1, [%a4];\nst.global.u32 [%a2], %r1;";
    assert_eq!(kinds(after), [FindingKind::OutOfBounds]);
    let unwritten = "alloca.u64 %a4, 16;\nld.local.u32 %r1, [%a4+8];\nst.global.u32 [%a2], %r1;";
    assert_eq!(kinds(unwritten), [FindingKind::UninitialisedLocal]);
}

#[test]
fn a_stack_that_overflows_or_is_corrupted_stops_the_kernel() {
    let stopped = |body: &str| run(body).1.unwrap_err();
    let message = stopped("L:\nalloca.u64 %a4, 1000;\nbra L;");
    assert!(message.contains("stack overflow: alloca of 1000 bytes where 52"), "{message}");
    let message = stopped("mov.u64 %a3, -1;\nalloca.u64 %a4, %a3;");
    assert!(message.contains("alloca of 18446744073709551615 bytes where 64"), "{message}");
    let message = stopped("mov.u64 %a3, 8;\nstackrestore.u64 %a3;");
    assert!(message.contains("stackrestore of 0x8, which no stacksave"), "{message}");
}

/// Thread 0 stays in the function until thread 1 has called it a thousand times from the same place.
#[test]
fn who_calls_again_while_others_are_inside_starts_with_an_empty_stack() {
    let function = ".func f(.reg .b64 flag, .reg .b32 t) {\n.reg .b64 %a;\n.reg .b32 %r<3>;\n.reg .pred %p;\n\
                    alloca.u64 %a, 600;\nst.local.u32 [%a+596], t;\nL:\nsetp.ne.u32 %p, t, 0;\n@%p bra DONE;\n\
                    ld.volatile.global.u32 %r1, [flag];\nsetp.eq.u32 %p, %r1, 0;\n@%p bra L;\nDONE:\nret;\n}\n";
    let body = "mov.u32 %r1, 0;\nsetp.ne.u32 %p2, %t, 0;\nL:\ncall f, (%a1, %t);\nadd.u32 %r1, %r1, 1;\n\
                setp.lt.and.u32 %p1, %r1, 1000, %p2;\n@%p1 bra L;\n@%p2 st.volatile.global.u32 [%a1], 1;";
    let emulator = Emulator::new(DeviceFacts::default());
    let text = kernel(body).replacen(".visible .entry", &format!("{function}.visible .entry"), 1);
    let module = emulator.load("k.ptx", &text).unwrap();
    let data = emulator.upload(&[0u32; 2]).unwrap();
    let (config, params) = (LaunchConfig::new([1, 1, 1], [2, 1, 1]), Params::new().u64(data));
    emulator.launch(&module, "k", config, params.as_bytes()).unwrap();
    emulator.fill(data, &[0], 8).unwrap();
    let (_, findings) = emulator.launch_sanitized(&module, "k", config, params.as_bytes()).unwrap();
    assert_eq!(findings, []);
}
