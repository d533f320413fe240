//! What blocks take of host memory for registers and local memory, and that it does not depend on the host whether it
//! suffices.

use engine::driver::emulator::{DeviceFacts, Emulator, EmulatorError, FaultKind, LaunchConfig, LaunchReport, Params};

use super::body::much_memory;

/// A kernel whose threads have 512 KiB of local memory each: 512 MiB for a block of 1024, so that 7 blocks fit into the
/// 4 GiB that the emulator has. Few of them use it, as untouched memory costs nothing. `%a2` is the thread's element of the
/// buffer (of all blocks), `%r1` its number, `%n` the block.
fn large(body: &str) -> String {
    format!(
        ".version 8.0\n.target sm_80\n.address_size 64\n\
         .visible .entry k(.param .u64 p) {{\n.local .align 16 .b8 big[524288];\n.reg .b64 %a<9>, %l;\n.reg .b32 %r<20>, %n;\n\
         .reg .pred %p<4>;\n\
         ld.param.u64 %a1, [p];\nmov.u32 %r8, %tid.x;\nmov.u32 %n, %ctaid.x;\nmad.lo.u32 %r1, %n, 1024, %r8;\n\
         mad.wide.u32 %a2, %r1, 4, %a1;\nmov.u64 %l, big;\nsetp.eq.u32 %p0, %r8, 77;\n\
         @%p0 st.local.u32 [%l+524284], %r1;\nmov.u32 %r2, %r1;\n{body}\n\
         @%p0 ld.local.u32 %r2, [%l+524284];\nst.global.u32 [%a2], %r2;\nret;\n}}\n"
    )
}

/// Runs that kernel on blocks of 1024 threads; returns what it did, and the buffer.
fn run(
    body: &str,
    blocks: u32,
    threads: usize,
    is_cooperative: bool,
    budget: u64,
) -> (Result<LaunchReport, EmulatorError>, Vec<u32>) {
    let _alone = much_memory();
    let emulator = Emulator::new(DeviceFacts::default()).with_threads(threads).with_budget(budget);
    let module = emulator.load("k.ptx", &large(body)).unwrap();
    let count = blocks as usize * 1024;
    let data = emulator.upload(&vec![0u32; count + 1]).unwrap();
    let config = LaunchConfig { is_cooperative, ..LaunchConfig::new([blocks, 1, 1], [1024, 1, 1]) };
    let result = emulator.launch(&module, "k", config, Params::new().u64(data).as_bytes());
    (result, emulator.download(data, count).unwrap())
}

/// A budget that no test uses up, however the host's threads take turns.
const AMPLE: u64 = 1 << 34;

/// Adds 0 to the first element 1100 times: a block that does it looks as if it waited for another one.
const POLLS: &str = "mov.u32 %r5, 0;\nL:\natom.global.add.u32 %r6, [%a1], 0;\nadd.u32 %r5, %r5, 1;\n\
                     setp.lt.u32 %p1, %r5, 1100;\n@%p1 bra L;";

#[test]
fn large_blocks_run_one_after_the_other_where_threads_are_many() {
    for threads in [1, 2, 16] {
        let (result, found) = run("", 8, threads, false, AMPLE);
        result.unwrap_or_else(|error| panic!("{threads} threads: {error}"));
        assert!(found.iter().enumerate().all(|(index, &value)| value as usize == index), "{threads} threads");
    }
}

#[test]
fn who_polls_starts_no_more_blocks_than_fit() {
    for threads in [1, 2, 16] {
        let (result, found) = run(POLLS, 8, threads, false, AMPLE);
        result.unwrap_or_else(|error| panic!("{threads} threads: {error}"));
        assert!(found[1..].iter().zip(1..).all(|(&value, index)| value == index), "{threads} threads");
    }
}

#[test]
fn a_fault_among_blocks_that_poll_is_the_same_on_any_number_of_threads() {
    let body = format!("{POLLS}\nsetp.gt.u32 %p2, %n, 2;\n@%p2 trap;");
    for threads in [1, 2, 16] {
        match run(&body, 8, threads, false, AMPLE).0 {
            Err(EmulatorError::Fault(fault)) => assert_eq!((&fault.kind, fault.block), (&FaultKind::Trap, [3, 0, 0])),
            other => panic!("{threads} threads: {other:?}"),
        }
    }
}

/// All blocks must be there before one goes on. They count at the end of the buffer.
const MEETING: &str = "mov.u32 %r5, %tid.x;\nsetp.ne.u32 %p1, %r5, 0;\nmov.u32 %r7, %nctaid.x;\n\
                       mad.wide.u32 %a1, %r7, 4096, %a1;\n@%p1 bra DONE;\natom.global.add.u32 %r6, [%a1], 1;\nL:\nld.volatile.global.u32 %r6, [%a1];\n\
                       setp.lt.u32 %p2, %r6, %r7;\n@%p2 bra L;\nDONE:\nbar.sync 0;";

#[test]
fn blocks_that_wait_for_more_than_fit_end_with_a_line_that_says_so() {
    for threads in [1, 2, 16] {
        let (result, _) = run(MEETING, 7, threads, false, AMPLE);
        result.unwrap_or_else(|error| panic!("{threads} threads: {error}"));
        let message = run(MEETING, 8, threads, false, 20_000_000).0.unwrap_err().to_string();
        assert!(
            message.contains("if they wait for other blocks: only 7 fit at the same time into the 4096 MiB"),
            "{message}"
        );
    }
}

#[test]
fn blocks_of_a_cooperative_launch_are_all_resident_or_refused_with_a_line() {
    run(MEETING, 7, 2, true, AMPLE).0.unwrap();
    let message = run(MEETING, 8, 2, true, AMPLE).0.unwrap_err().to_string();
    assert!(message.contains("the blocks that run at the same time need more than the 4096 MiB"), "{message}");
}

#[test]
fn what_the_sanitizer_knows_of_local_memory_counts() {
    let _alone = much_memory();
    let emulator = Emulator::new(DeviceFacts::default());
    let module = emulator.load("k.ptx", &large(MEETING)).unwrap();
    let sanitize = |blocks| {
        let data = emulator.upload(&vec![0u32; 1024 * blocks as usize + 1]).unwrap();
        let config = LaunchConfig { is_cooperative: true, ..LaunchConfig::new([blocks, 1, 1], [1024, 1, 1]) };
        emulator.launch_sanitized(&module, "k", config, Params::new().u64(data).as_bytes()).unwrap().1
    };
    assert_eq!(sanitize(1), []);
    let findings = sanitize(2);
    assert!(findings[0].detail.contains("4096 MiB that the emulator has for their local memory"), "{findings:#?}");
    assert!(findings[0].detail.contains("with what the sanitizer knows of them"), "{findings:#?}");
}

#[test]
fn the_deepest_calls_of_a_kernel_are_measured() {
    let function = |name: &str, bytes: u32, body: &str| {
        format!(".func {name}() {{\n.local .align 16 .b8 own[{bytes}];\n.reg .b64 %f;\n{body}\nret;\n}}\n")
    };
    let through = "mov.u64 %f, leaf;\ncall %f, (), P;\nret;\nP: .callprototype _ ();";
    let text = [
        ".version 8.0\n.target sm_80\n.address_size 64\n".to_owned(),
        ".func leaf();\n.func again();\n".to_owned(),
        function("leaf", 160, ""),
        function("middle", 320, "call leaf, ();"),
        function("again", 64, "call again, ();"),
        function("takes", 32, "alloca.u64 %f, 16;"),
        function("pointer", 640, through),
        ".visible .entry plain() { ret; }\n.visible .entry nested() { call leaf, (); call middle, (); ret; }\n\
         .visible .entry endless() { call middle, (); call again, (); ret; }\n\
         .visible .entry grows() { call takes, (); ret; }\n.visible .entry points() { call pointer, (); ret; }\n"
            .to_owned(),
    ]
    .concat();
    let emulator = Emulator::new(DeviceFacts::default());
    let deepest = |text: &str, name: &str| {
        let module = emulator.load("k.ptx", text).unwrap();
        let kernel = module.kernels().find(|kernel| kernel.name == name).unwrap();
        kernel.deepest.map(|frames| frames.local_bytes)
    };
    assert_eq!(deepest(&text, "plain"), Some(0));
    assert_eq!(deepest(&text, "nested"), Some(480));
    assert_eq!(deepest(&text, "endless"), None);
    assert_eq!(deepest(&text, "grows"), None);
    assert_eq!(deepest(&text, "points"), Some(800));
    // What a variable holds may be called as well.
    let table = text.replacen(".func leaf();", ".func again();\n.func leaf();\n.global .u64 table[1] = {again};", 1);
    assert_eq!(deepest(&table, "points"), None);
    assert_eq!(deepest(&table, "nested"), Some(480));
}
