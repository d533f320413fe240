//! Which lanes run next, and where those meet again that went different ways.

use engine::driver::emulator::{DeviceFacts, Emulator, Finding, FindingKind, LaunchConfig, LaunchReport, Params};

use super::body::kernel;

/// Runs `body` on 32 threads, plainly and under the sanitizer.
fn run(body: &str, budget: u64) -> (LaunchReport, Vec<Finding>, Vec<u32>) {
    run_blocks(body, 1, 32, budget)
}

fn run_blocks(body: &str, blocks: u32, threads: u32, budget: u64) -> (LaunchReport, Vec<Finding>, Vec<u32>) {
    let emulator = Emulator::new(DeviceFacts::default()).with_budget(budget);
    let module = emulator.load("k.ptx", &kernel(body)).unwrap_or_else(|error| panic!("{body}: {error}"));
    let data = emulator.upload(&vec![0u32; threads as usize]).unwrap();
    let (config, params) = (LaunchConfig::new([blocks, 1, 1], [threads, 1, 1]), Params::new().u64(data));
    let (_, findings) = emulator.launch_sanitized(&module, "k", config, params.as_bytes()).unwrap();
    emulator.fill(data, &[0], 4 * threads as usize).unwrap();
    let report = emulator.launch(&module, "k", config, params.as_bytes()).unwrap_or_else(|error| panic!("{error}"));
    (report, findings, emulator.download(data, threads as usize).unwrap())
}

#[test]
fn lanes_that_slept_go_on_with_those_they_come_to() {
    // The barrier demands all lanes together.
    let body = "setp.ge.u32 %p1, %t, 16;\n@%p1 bra B;\nnanosleep.u32 20;\nB:\nbar.sync 0;\nst.global.u32 [%a2], %t;";
    assert_eq!(run(body, 1000).1, []);
    // And a long loop is run once, not by each half.
    let body = "setp.ge.u32 %p1, %t, 16;\n@%p1 bra B;\nnanosleep.u32 20;\nB:\nmov.u32 %r1, 0;\nL:\nadd.u32 %r1, %r1, 1;\n\
                setp.lt.u32 %p2, %r1, 1000;\n@%p2 bra L;\nst.global.u32 [%a2], %r1;";
    let (report, findings, values) = run(body, 10_000);
    assert_eq!((findings, values), (vec![], vec![1000; 32]));
    assert!((3000..3100).contains(&report.warp_instructions), "{}", report.warp_instructions);
}

#[test]
fn a_vote_counts_lanes_that_slept_a_while_each() {
    // Each lane sleeps as often as its number says.
    let body = "mov.u32 %r1, %t;\nL:\nsetp.eq.u32 %p1, %r1, 0;\n@%p1 bra DONE;\nnanosleep.u32 10;\nsub.u32 %r1, %r1, 1;\n\
                bra L;\nDONE:\nvote.sync.ballot.b32 %r2, %p1, 0xffffffff;\nst.global.u32 [%a2], %r2;";
    let (report, findings, values) = run(body, 10_000);
    assert_eq!((findings, values), (vec![], vec![u32::MAX; 32]));
    assert!(report.warp_instructions < 400, "{}", report.warp_instructions);
}

#[test]
fn who_waits_for_lanes_further_on_lets_them_run_soon() {
    // Lane 0 waits, at the lowest place, for the others to arrive.
    let body = "setp.ne.u32 %p1, %t, 0;\n@%p1 bra OTHERS;\nmbarrier.init.shared.b64 [tile], 31;\nOTHERS:\nbar.warp.sync -1;\n\
                @%p1 bra ARRIVE;\nL:\nmbarrier.test_wait.parity.shared.b64 %p2, [tile], 0;\n@%p2 bra DONE;\nnanosleep.u32 5;\n\
                bra L;\nARRIVE:\nmbarrier.arrive.shared.b64 %a3, [tile];\nDONE:\nbar.warp.sync -1;\nst.global.u32 [%a2], %t;";
    let (_, findings, values) = run(body, 5000);
    assert_eq!((findings, values), (vec![], (0..32).collect()));
}

#[test]
fn lanes_that_leave_the_kernel_are_not_missed_at_a_barrier() {
    // As `if (thread >= 20) return;` becomes: those that leave are further on than the barrier.
    let body = "setp.ge.u32 %p1, %t, 20;\n@%p1 bra DONE;\nst.shared.u32 [%s], %t;\nbar.sync 0;\n\
                ld.shared.u32 %r1, [tile+4];\nst.global.u32 [%a2], %r1;\nDONE:";
    let (_, findings, values) = run(body, 1000);
    assert_eq!((findings, &values[..20]), (vec![], &[1; 20][..]));
}

#[test]
fn what_warps_wrote_before_they_left_is_there_behind_a_barrier() {
    // The last step of a reduction, for which one warp stays.
    let body = "st.shared.u32 [%s], %t;\nsetp.ge.u32 %p1, %t, 32;\n@%p1 bra DONE;\nbar.sync 0;\nld.shared.u32 %r1, [%s+128];\n\
                st.global.u32 [%a2], %r1;\nDONE:";
    let (_, findings, values) = run_blocks(body, 1, 64, 1000);
    assert_eq!((findings, &values[..32]), (vec![], &(32..64).collect::<Vec<u32>>()[..]));
    // Without the barrier nothing tells the reader that they have left.
    let body = body.replace("bar.sync 0;", "");
    let (_, findings, _) = run_blocks(&body, 1, 64, 1000);
    assert!(findings.iter().any(|finding| finding.kind == FindingKind::SharedRace), "{findings:?}");
}

#[test]
fn lanes_wait_at_a_barrier_for_one_that_waits_for_another_warp() {
    let body = "setp.ne.u32 %p1, %t, 0;\n@%p1 bra NEXT;\nL:\nld.volatile.global.u32 %r1, [%a1];\nsetp.eq.u32 %p2, %r1, 0;\n\
                @%p2 bra L;\nNEXT:\nsetp.ne.u32 %p1, %t, 32;\n@%p1 bra TOGETHER;\nmov.u32 %r2, 0;\nM:\nadd.u32 %r2, %r2, 1;\n\
                setp.lt.u32 %p2, %r2, 100000;\n@%p2 bra M;\nst.volatile.global.u32 [%a1], 1;\nTOGETHER:\nbar.sync 0;";
    assert_eq!(run_blocks(body, 1, 64, 10_000_000).1, []);
}

#[test]
fn lanes_wait_at_a_barrier_for_one_that_waits_for_another_block() {
    // The first block waits for the last one.
    let body = "setp.ne.u32 %p1, %t, 0;\n@%p1 bra TOGETHER;\nL:\nld.volatile.global.u32 %r1, [%a1];\nadd.u32 %r2, %r1, %n;\n\
                setp.ne.u32 %p2, %r2, 5;\n@%p2 bra L;\nadd.u32 %r1, %r1, 1;\nst.volatile.global.u32 [%a1], %r1;\n\
                TOGETHER:\nbar.sync 0;";
    let (_, findings, values) = run_blocks(body, 6, 64, 100_000_000);
    assert_eq!((findings, values[0]), (vec![], 6));
}

#[test]
fn who_waits_for_lanes_behind_a_barrier_is_found() {
    // The rest of the warp must pass the barrier without lane 0, which waits for what they do then.
    let body = "setp.ne.u32 %p1, %t, 0;\n@%p1 bra NEXT;\nL:\nld.volatile.global.u32 %r1, [%a1];\nsetp.eq.u32 %p2, %r1, 0;\n\
                @%p2 bra L;\nNEXT:\nbar.sync 0;\nsetp.eq.u32 %p1, %t, 1;\n@%p1 st.volatile.global.u32 [%a1], 1;";
    let emulator = Emulator::new(DeviceFacts::default()).with_budget(50_000_000);
    let module = emulator.load("k.ptx", &kernel(body)).unwrap();
    let data = emulator.upload(&[0u32; 32]).unwrap();
    let (config, params) = (LaunchConfig::new([1, 1, 1], [32, 1, 1]), Params::new().u64(data));
    let (_, findings) = emulator.launch_sanitized(&module, "k", config, params.as_bytes()).unwrap();
    assert!(findings.iter().any(|finding| finding.kind == FindingKind::BarrierDivergence), "{findings:#?}");
}

#[test]
fn a_fault_ends_those_that_wait_for_who_made_it() {
    let body = "setp.ne.u32 %p1, %n, 0;\n@%p1 trap;\nL:\nld.volatile.global.u32 %r1, [%a1];\nsetp.eq.u32 %p2, %r1, 0;\n\
                @%p2 bra L;";
    for threads in [1, 2] {
        let emulator = Emulator::new(DeviceFacts::default()).with_threads(threads);
        let module = emulator.load("k.ptx", &kernel(body)).unwrap();
        let data = emulator.upload(&[0u32; 32]).unwrap();
        let (config, params) = (LaunchConfig::new([2, 1, 1], [32, 1, 1]), Params::new().u64(data));
        let message = emulator.launch(&module, "k", config, params.as_bytes()).unwrap_err().to_string();
        assert!(message.contains("trap in k, block (1,0,0)"), "{message}");
    }
}
