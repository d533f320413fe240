//! What programs for sm_90 do in clusters, of which the emulator has those of one block.

use engine::driver::emulator::{DeviceFacts, Emulator, Finding, FindingKind, LaunchConfig, Params};

use super::body::kernel;

/// Runs 64 threads on a buffer of 64 words; the kinds of the findings, and what is in the buffer.
fn run(body: &str) -> (Vec<FindingKind>, Vec<u32>) {
    let (findings, words) = run_for_findings(body);
    (findings.iter().map(|finding| finding.kind).collect(), words)
}

fn run_for_findings(body: &str) -> (Vec<Finding>, Vec<u32>) {
    let emulator = Emulator::new(DeviceFacts::default());
    let module = emulator.load("k.ptx", &kernel(body)).unwrap_or_else(|error| panic!("{body}: {error}"));
    let data = emulator.upload(&[0u32; 64]).unwrap();
    let (config, params) = (LaunchConfig::new([1, 1, 1], [64, 1, 1]), Params::new().u64(data));
    let (_, findings) = emulator.launch_sanitized(&module, "k", config, params.as_bytes()).unwrap();
    emulator.fill(data, &[0], 256).unwrap();
    if findings.is_empty() {
        emulator.launch(&module, "k", config, params.as_bytes()).unwrap();
    }
    (findings, emulator.download(data, 64).unwrap())
}

/// Each thread gives its neighbour in the other warp a number.
const GIVE: &str = "add.u32 %r1, %t, 7;\nst.shared.u32 [%s], %r1;\n";
const TAKE: &str = "xor.b32 %r2, %w, 128;\nmov.u32 %r3, tile;\nadd.u32 %r3, %r3, %r2;\nld.shared.u32 %r4, [%r3];\n\
                    st.global.u32 [%a2], %r4;\n";
const ARRIVE: &str = "barrier.cluster.arrive.release.aligned;\n";
const WAIT: &str = "barrier.cluster.wait.acquire.aligned;\n";

#[test]
fn the_barrier_of_a_cluster_orders_what_it_parts() {
    let expected: Vec<u32> = (0..64).map(|t| (t ^ 32) + 7).collect();
    assert_eq!(run(&format!("{GIVE}{ARRIVE}{WAIT}{TAKE}")), (vec![], expected.clone()));
    // Twice, so that one phase is told from the next.
    assert_eq!(run(&format!("{ARRIVE}{WAIT}{GIVE}{ARRIVE}{WAIT}{TAKE}")), (vec![], expected));
    assert!(run(&format!("{GIVE}{ARRIVE}{TAKE}{WAIT}")).0.contains(&FindingKind::SharedRace));
}

/// Warp 1 arrives, but waits only for what warp 0 does behind its own wait.
#[test]
fn who_has_arrived_at_the_barrier_of_a_cluster_keeps_nobody_waiting() {
    let body = "setp.eq.u32 %p1, %w, 0;\n@%p1 st.volatile.shared.u32 [tile], 0;\nbar.sync 0;\n\
                barrier.cluster.arrive.aligned;\nsetp.lt.u32 %p2, %t, 32;\n@!%p2 bra SPIN;\n\
                barrier.cluster.wait.aligned;\n@%p1 st.volatile.shared.u32 [tile], 1;\nbra DONE;\n\
                SPIN:\nld.volatile.shared.u32 %r1, [tile];\nsetp.eq.u32 %p3, %r1, 0;\n@%p3 bra SPIN;\n\
                barrier.cluster.wait.aligned;\nDONE:\nst.global.u32 [%a2], 5;";
    assert_eq!(run(body), (vec![], vec![5; 64]));
}

/// The line of the text of `kernel` with which the body starts.
fn body_line() -> u32 {
    kernel("").lines().position(|line| line == "// body").unwrap() as u32 + 2
}

/// How a launch of 64 threads ends that is to stop with a fault.
fn fault(body: &str) -> String {
    let emulator = Emulator::new(DeviceFacts::default());
    let module = emulator.load("k.ptx", &kernel(body)).unwrap_or_else(|error| panic!("{body}: {error}"));
    let data = emulator.upload(&[0u32; 64]).unwrap();
    let (config, params) = (LaunchConfig::new([1, 1, 1], [64, 1, 1]), Params::new().u64(data));
    emulator.launch(&module, "k", config, params.as_bytes()).unwrap_err().to_string()
}

#[test]
fn a_wait_without_arrival_is_told_where() {
    let body = "setp.eq.u32 %p1, %t, 0;\n@%p1 barrier.cluster.wait;";
    let findings = run_for_findings(body).0;
    let [Finding { kind: FindingKind::BarrierDivergence, line, detail, .. }] = findings.as_slice() else {
        panic!("{findings:#?}")
    };
    assert_eq!(*line, body_line() + 1);
    assert!(detail.contains("at barrier.cluster.wait"), "{detail}");
    let message = fault(body);
    let start =
        format!("k.ptx:{}: deadlock: every thread of the block waits (at barrier.cluster.wait)", body_line() + 1);
    assert!(message.starts_with(&start), "{message}");
}

#[test]
fn lanes_that_arrive_one_after_the_other_go_on_together() {
    let split = "setp.lt.u32 %p1, %t, 7;\n";
    let end = "bar.sync 0;\nst.global.u32 [%a2], 3;";
    for arrive in ["barrier.cluster.arrive;", "barrier.arrive 1, 128;"] {
        let wait = if arrive.contains("cluster") { "barrier.cluster.wait;\n" } else { "" };
        assert_eq!(run(&format!("{split}@%p1 {arrive}\n@!%p1 {arrive}\n{wait}{end}")), (vec![], vec![3; 64]));
    }
    let waits = "barrier.cluster.arrive;\n@%p1 barrier.cluster.wait;\n@!%p1 barrier.cluster.wait;\n";
    assert_eq!(run(&format!("{split}{waits}{end}")), (vec![], vec![3; 64]));
}

#[test]
fn an_mbarrier_waits_for_the_bytes_that_it_expects() {
    // In bits: done after the arrival, after half of the bytes, after all of them.
    let body = "setp.ne.u32 %p1, %t, 0;\n@%p1 bra DONE;\nmbarrier.init.shared::cta.b64 [tile], 1;\n\
                mbarrier.arrive.expect_tx.release.cta.shared::cta.b64 %a3, [tile], 64;\n\
                mbarrier.test_wait.shared::cta.b64 %p2, [tile], %a3;\nselp.b32 %r1, 1, 0, %p2;\n\
                mbarrier.complete_tx.relaxed.cluster.shared::cluster.b64 [tile], 32;\n\
                mbarrier.test_wait.shared::cta.b64 %p2, [tile], %a3;\n@%p2 or.b32 %r1, %r1, 2;\n\
                mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [tile], 4;\n\
                mbarrier.complete_tx.relaxed.cluster.shared::cluster.b64 [tile], 36;\n\
                mbarrier.test_wait.shared::cta.b64 %p2, [tile], %a3;\n@%p2 or.b32 %r1, %r1, 4;\n\
                st.global.u32 [%a2], %r1;\nDONE:";
    assert_eq!(run(body).1[0], 4);
}

#[test]
fn an_mbarrier_that_expects_too_many_bytes_stops_the_kernel() {
    let body = |sign: &str, bytes: u32| {
        format!(
            "setp.ne.u32 %p1, %t, 0;\n@%p1 bra DONE;\nmbarrier.init.shared::cta.b64 [tile], 1;\n\
             mbarrier.{sign}.relaxed.cta.shared::cta.b64 [tile], 1048575;\n\
             mbarrier.{sign}.relaxed.cta.shared::cta.b64 [tile], {bytes};\nDONE:"
        )
    };
    assert_eq!(run(&body("expect_tx", 0)).0, []);
    assert_eq!(run(&body("complete_tx", 0)).0, []);
    let message = fault(&body("expect_tx", 1));
    assert!(
        message.contains("mbarrier with 1048576 bytes to come; its transaction count goes from -1048575"),
        "{message}"
    );
    assert!(fault(&body("complete_tx", 1)).contains("mbarrier with -1048576 bytes"));
}

#[test]
fn what_names_another_block_or_no_number_of_registers_is_refused() {
    let message = fault("mapa.shared::cluster.u32 %r1, %s, %t;");
    assert!(
        message.contains("mapa to block 1 of a cluster of one block") && message.contains("thread (1,0,0)"),
        "{message}"
    );
    for (text, expected) in [
        ("setmaxnreg.sync.aligned.u32 40;", "expected .inc or .dec"),
        ("setmaxnreg.inc.sync.aligned.u32 41;", "a multiple of 8 from 24 to 256"),
        ("cp.reduce.async.bulk.global.shared::cta.bulk_group.add.u32 [%a1], [%s], 16;", "bulk reductions"),
    ] {
        let Err(error) = Emulator::new(DeviceFacts::default()).load("k.ptx", &kernel(text)) else { panic!("{text}") };
        assert!(error.to_string().contains(expected), "{error}");
    }
}

#[test]
fn special_registers_tell_the_sizes_of_shared_memory() {
    let body = "mov.u32 %r1, %reserved_smem_offset_begin;\nmov.u32 %r2, %reserved_smem_offset_end;\n\
                mov.u32 %r3, %reserved_smem_offset_cap;\nmov.u32 %r4, %aggr_smem_size;\nsub.u32 %r5, %r2, %r1;\n\
                setp.eq.u32 %p1, %r5, %r3;\nsetp.eq.and.u32 %p1, %r4, %r2, %p1;\nselp.b32 %r6, 1, 0, %p1;\n\
                st.global.u32 [%a2], %r6;";
    assert_eq!(run(body), (vec![], vec![1; 64]));
}

#[test]
fn addresses_of_the_only_block_of_a_cluster_are_its_own() {
    let body = "setmaxnreg.dec.sync.aligned.u32 40;\nmapa.shared::cluster.u32 %r1, %s, 0;\nst.shared::cluster.u32 [%r1], %t;\n\
                ld.shared.u32 %r2, [%s];\ngetctarank.shared::cluster.u32 %r3, %r1;\nadd.u32 %r2, %r2, %r3;\n\
                st.global.u32 [%a2], %r2;";
    assert_eq!(run(body), (vec![], (0..64).collect()));
}

#[test]
fn a_kernel_of_larger_clusters_is_refused() {
    let emulator = Emulator::new(DeviceFacts { architecture: 90, ..DeviceFacts::default() });
    let text = ".version 8.0\n.target sm_90\n.address_size 64\n\
                .visible .entry k() .reqnctapercluster 2, 1, 1 { ret; }\n.visible .entry one() .reqnctapercluster 1 { ret; }";
    let module = emulator.load("k.ptx", text).unwrap();
    let launch = |kernel| emulator.launch(&module, kernel, LaunchConfig::new([2, 1, 1], [32, 1, 1]), &[]);
    let message = launch("k").unwrap_err().to_string();
    assert!(message.contains("clusters of [2, 1, 1] blocks; the emulator has clusters of one"), "{message}");
    launch("one").unwrap();
}

/// A kernel that calls what it finds in a variable, where the only function is.
fn through_a_pointer(function: &str) -> String {
    let call = "ld.global.u64 %a3, [table];\ncall %a3, (%a2), P;\nP: .callprototype _ (.reg .b64 _);";
    let functions = format!(
        ".func f(.reg .b64 o) {{\n.reg .b64 %a<3>;\n.reg .b32 %r<5>;\n.reg .pred %p;\n{function}\nret;\n}}\n\
         .global .u64 table[1] = {{f}};\n.visible .entry"
    );
    kernel(call).replacen(".visible .entry", &functions, 1)
}

#[test]
fn what_a_function_needs_its_callers_have_also_through_pointers() {
    let emulator = Emulator::new(DeviceFacts::default());
    let launch = |function: &str| {
        let module = emulator.load("k.ptx", &through_a_pointer(function)).unwrap();
        let data = emulator.upload(&[0u32; 64]).unwrap();
        let (config, params) = (LaunchConfig::new([1, 1, 1], [64, 1, 1]), Params::new().u64(data));
        let (_, findings) = emulator.launch_sanitized(&module, "k", config, params.as_bytes()).unwrap();
        (findings, emulator.download::<u32>(data, 64).unwrap())
    };
    // Shared memory that is the system's, as cooperative groups use it.
    let uses_reserved = "mov.u32 %r1, %tid.x;\nmov.u32 %r2, %reserved_smem_offset_begin;\nshl.b32 %r3, %r1, 2;\n\
                         add.u32 %r2, %r2, %r3;\nst.shared.u32 [%r2], %r1;\nld.shared.u32 %r4, [%r2];\n\
                         st.global.u32 [o], %r4;";
    assert_eq!(launch(uses_reserved), (vec![], (0..64).collect()));
    // The workspace of a cooperative launch, without which grid.sync() traps.
    let synchronises = "mov.u32 %r1, %envreg1;\nmov.u32 %r2, %envreg2;\nor.b32 %r1, %r1, %r2;\nsetp.eq.u32 %p, %r1, 0;\n\
                        @%p trap;";
    let (findings, _) = launch(synchronises);
    let [finding] = findings.as_slice() else { panic!("{findings:#?}") };
    assert!(finding.detail.contains("cuLaunchCooperativeKernel"), "{finding}");
}
