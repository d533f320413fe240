//! Counters against hand-computed values; the sanitizer on seeded faults and their corrected twins.

use engine::driver::emulator::{Counters, DeviceFacts, Emulator, Finding, FindingKind, LaunchConfig, Params};

/// A kernel of one buffer; `%a1` is its address, `%t` the thread, `%w` thread times 4, `%s` the shared address of it.
fn kernel(body: &str) -> String {
    format!(
        ".version 8.0\n.target sm_80\n.address_size 64\n.visible .entry k(.param .u64 p) {{\n\
         .shared .align 16 .b8 tile[8192];\n.reg .b64 %a<9>;\n.reg .b32 %r<20>, %t, %w, %s, %n;\n.reg .pred %p<4>;\n.reg .f32 %f<9>;\n\
         ld.param.u64 %a1, [p];\nmov.u32 %t, %tid.x;\nshl.b32 %w, %t, 2;\nmov.u32 %s, tile;\nadd.u32 %s, %s, %w;\n\
         mad.wide.u32 %a2, %t, 4, %a1;\nmov.u32 %n, %ctaid.x;\n// body\n{body}\nret;\n}}\n"
    )
}

/// Line of the first line of a body.
const BODY_LINE: u32 = 18;

fn count(body: &str, threads: u32) -> Counters {
    let emulator = Emulator::new(DeviceFacts::default());
    let module = emulator.load("k.ptx", &kernel(body)).unwrap_or_else(|error| panic!("{body}: {error}"));
    let data = emulator.allocate(1 << 20).unwrap();
    let config = LaunchConfig::new([1, 1, 1], [threads, 1, 1]);
    emulator.launch_counted(&module, "k", config, Params::new().u64(data).as_bytes()).unwrap().1
}

#[test]
fn coalescing_is_counted_in_sectors() {
    let sectors = |body: &str| {
        let c = count(body, 32);
        assert_eq!(c.global_load_requests, 1, "{body}");
        (c.global_load_sectors, c.dram_read_bytes)
    };
    assert_eq!(sectors("ld.global.u32 %r1, [%a2];"), (4, 128));
    assert_eq!(sectors("add.u64 %a2, %a2, 4;\nld.global.u32 %r1, [%a2];"), (5, 160));
    assert_eq!(sectors("ld.global.u32 %r1, [%a1];"), (1, 32));
    assert_eq!(sectors("mad.wide.u32 %a3, %t, 32, %a1;\nld.global.u32 %r1, [%a3];"), (32, 1024));
    assert_eq!(sectors("mad.wide.u32 %a3, %t, 8, %a1;\nld.global.u32 %r1, [%a3];"), (8, 256));
    assert_eq!(sectors("mad.wide.u32 %a3, %t, 16, %a1;\nld.global.v4.u32 {%r1,%r2,%r3,%r4}, [%a3];"), (16, 512));
}

#[test]
fn stores_and_repeated_reads_count_their_unique_bytes_once() {
    let c = count("ld.global.u32 %r1, [%a2];\nld.global.u32 %r2, [%a2];\nst.global.u32 [%a2+4096], %r1;", 64);
    assert_eq!((c.global_load_requests, c.global_load_sectors, c.dram_read_bytes), (4, 16, 256));
    assert_eq!((c.global_store_requests, c.global_store_sectors, c.dram_write_bytes), (2, 8, 256));
}

#[test]
fn bank_conflicts_follow_the_stride() {
    let wavefronts = |body: &str| {
        let c = count(body, 32);
        (c.shared_wavefronts, c.shared_bank_conflicts)
    };
    assert_eq!(wavefronts("ld.shared.u32 %r1, [%s];"), (1, 0));
    assert_eq!(wavefronts("ld.shared.u32 %r1, [tile];"), (1, 0));
    assert_eq!(
        wavefronts("add.u32 %r1, %w, %w;\nmov.u32 %r2, tile;\nadd.u32 %r1, %r1, %r2;\nld.shared.u32 %r3, [%r1];"),
        (2, 1)
    );
    assert_eq!(wavefronts("shl.b32 %r1, %t, 7;\nld.shared.u32 %r3, [%r1];"), (32, 31));
    assert_eq!(wavefronts("mul.lo.u32 %r1, %t, 132;\nld.shared.u32 %r3, [%r1];"), (1, 0));
    assert_eq!(wavefronts("shl.b32 %r1, %t, 4;\nld.shared.v4.u32 {%r2,%r3,%r4,%r5}, [%r1];"), (4, 0));
    // An XOR swizzle makes a column walk conflict-free again.
    assert_eq!(wavefronts("shl.b32 %r1, %t, 7;\nxor.b32 %r1, %r1, %w;\nld.shared.u32 %r3, [%r1];"), (1, 0));
}

#[test]
fn instructions_branches_barriers_and_tensor_work_are_counted() {
    let plain = count("", 32);
    // The body's frame: ld.param, mov, shl, mov, add, mad, mov, ret.
    assert_eq!((plain.warp_instructions, plain.thread_instructions), (8, 256));
    let c = count("setp.lt.u32 %p1, %t, 10;\n@%p1 bra A;\nadd.u32 %r1, %t, 1;\nA:\nbar.sync 0;", 64);
    // Two warps: the first diverges, the second jumps over nothing.
    assert_eq!(c.divergent_branches, 1);
    assert_eq!(c.barriers, 2);
    assert_eq!(c.opcodes["add.u32"], 2 + 2);
    assert_eq!(c.thread_instructions, 2 * 256 + 64 + 10 + 54 + 64);
    let mma = "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%f1,%f2,%f3,%f4}, {%r1,%r2,%r3,%r4}, {%r5,%r6}, {%f1,%f2,%f3,%f4};";
    assert_eq!(count(mma, 64).tensor_core_flops, 2 * 4096);
}

fn sanitize(body: &str, blocks: u32) -> Vec<Finding> {
    let emulator = Emulator::new(DeviceFacts::default()).with_initialisation_tracking();
    let module = emulator.load("k.ptx", &kernel(body)).unwrap_or_else(|error| panic!("{body}: {error}"));
    let data = emulator.allocate(4096).unwrap();
    emulator.fill(data, &[0], 2048).unwrap();
    let config = LaunchConfig::new([blocks, 1, 1], [64, 1, 1]);
    emulator.launch_sanitized(&module, "k", config, Params::new().u64(data).as_bytes()).unwrap().1
}

/// The fault must be found, at the given line of the body; the twin must be silent.
fn seeded(kind: FindingKind, line: u32, blocks: u32, faulty: &str, corrected: &str) {
    let findings = sanitize(faulty, blocks);
    let found = findings.iter().any(|finding| finding.kind == kind && finding.line == BODY_LINE + line);
    assert!(found, "{faulty}\nfound only {findings:#?}");
    let findings = sanitize(corrected, blocks);
    assert!(findings.is_empty(), "{corrected}\n{findings:#?}");
}

#[test]
fn shared_races_are_found() {
    let exchange = |sync: &str| {
        format!(
            "st.shared.u32 [%s], %t;\n{sync}\nxor.b32 %r1, %w, 128;\nld.shared.u32 %r2, [%r1];\nst.global.u32 [%a2], %r2;"
        )
    };
    seeded(FindingKind::SharedRace, 3, 1, &exchange("mov.u32 %r9, 0;"), &exchange("bar.sync 0;"));
    // Between lanes of one warp.
    let neighbours =
        |sync: &str| format!("st.shared.u32 [%s], %t;\n{sync}\nxor.b32 %r1, %w, 4;\nld.shared.u32 %r2, [%r1];");
    seeded(FindingKind::SharedRace, 3, 1, &neighbours("mov.u32 %r9, 0;"), &neighbours("bar.warp.sync 0xffffffff;"));
    // A write that comes before slower readers are done.
    let reuse = |sync: &str| {
        format!(
            "st.shared.u32 [%s], %t;\nbar.sync 0;\nxor.b32 %r1, %w, 128;\nld.shared.u32 %r2, [%r1];\n{sync}\nst.shared.u32 [%s], %r2;"
        )
    };
    seeded(FindingKind::SharedRace, 5, 1, &reuse("mov.u32 %r9, 0;"), &reuse("bar.sync 0;"));
    let counter = |add: &str| format!("st.shared.u32 [%s], 0;\nbar.sync 0;\n{add}");
    seeded(
        FindingKind::SharedRace,
        3,
        1,
        &counter("ld.shared.u32 %r1, [tile];\nadd.u32 %r1, %r1, 1;\nst.shared.u32 [tile], %r1;")
            .replace("add.u32 %r1, %r1, 1;\n", ""),
        &counter("atom.shared.add.u32 %r1, [tile], 1;"),
    );
}

#[test]
fn global_races_are_found() {
    seeded(
        FindingKind::GlobalRace,
        0,
        2,
        "st.global.u32 [%a2], %n;",
        "mad.wide.u32 %a2, %n, 256, %a2;\nst.global.u32 [%a2], %n;",
    );
    seeded(
        FindingKind::GlobalRace,
        1,
        2,
        "ld.global.u32 %r1, [%a1];\nst.global.u32 [%a1], %r1;",
        "atom.global.add.u32 %r1, [%a1], 1;",
    );
    // A flag orders the data if the writer releases it and the reader polls it with ordered accesses.
    let message = |flag_store: &str| {
        format!(
            "setp.ne.u32 %p1, %t, 0;\n@%p1 bra DONE;\nsetp.ne.u32 %p2, %n, 0;\n@%p2 bra READ;\nst.global.u32 [%a1], 7;\n\
             {flag_store}\nbra DONE;\nREAD:\nld.acquire.gpu.global.u32 %r1, [%a1+64];\nsetp.eq.u32 %p3, %r1, 0;\n@%p3 bra READ;\n\
             ld.global.u32 %r2, [%a1];\nDONE:"
        )
    };
    seeded(
        FindingKind::GlobalRace,
        11,
        2,
        &message("st.global.u32 [%a1+64], 1;"),
        &message("st.release.gpu.global.u32 [%a1+64], 1;"),
    );
}

#[test]
fn uninitialised_memory_is_found() {
    seeded(
        FindingKind::UninitialisedShared,
        0,
        1,
        "ld.shared.u32 %r1, [%s];",
        "st.shared.u32 [%s], 1;\nld.shared.u32 %r1, [%s];",
    );
    seeded(FindingKind::UninitialisedGlobal, 0, 1, "ld.global.u32 %r1, [%a2+2048];", "ld.global.u32 %r1, [%a2+1024];");
    seeded(
        FindingKind::UninitialisedGlobal,
        0,
        1,
        "ld.global.u32 %r1, [%a2+2048];",
        "st.global.u32 [%a2+2048], 1;\nld.global.u32 %r1, [%a2+2048];",
    );
}

#[test]
fn divergent_barriers_and_wild_accesses_are_found() {
    seeded(
        FindingKind::BarrierDivergence,
        2,
        1,
        "setp.lt.u32 %p1, %t, 10;\n@%p1 bra A;\nbar.sync 0;\nbra B;\nA:\nbar.sync 0;\nB:",
        "setp.lt.u32 %p1, %t, 10;\n@%p1 bra A;\nadd.u32 %r1, %t, 1;\nA:\nbar.sync 0;",
    );
    seeded(FindingKind::OutOfBounds, 0, 1, "st.global.u32 [%a2+4000], 1;", "st.global.u32 [%a2+3840], 1;");
    seeded(FindingKind::OutOfBounds, 0, 1, "st.shared.u32 [%s+8000], 1;", "st.shared.u32 [%s+7936], 1;");
    seeded(FindingKind::Misaligned, 0, 1, "ld.global.u32 %r1, [%a2+2];", "ld.global.u32 %r1, [%a2+4];");
}

#[test]
fn a_use_after_free_is_named_as_such() {
    let emulator = Emulator::new(DeviceFacts::default());
    let module = emulator.load("k.ptx", &kernel("ld.global.u32 %r1, [%a2];")).unwrap();
    let data = emulator.allocate(4096).unwrap();
    emulator.free(data).unwrap();
    let config = LaunchConfig::new([1, 1, 1], [32, 1, 1]);
    let findings = emulator.launch_sanitized(&module, "k", config, Params::new().u64(data).as_bytes()).unwrap().1;
    assert_eq!(findings[0].kind, FindingKind::UseAfterFree);
    assert_eq!((findings[0].line, findings[0].thread), (BODY_LINE, [0, 0, 0]));
}

#[test]
fn correct_programs_are_silent() {
    let emulator = Emulator::new(DeviceFacts::default());
    let module = emulator.load("programs.ptx", include_str!("programs.ptx")).unwrap();
    let silent = |name: &str, config, params: Params| {
        let findings = emulator.launch_sanitized(&module, name, config, params.as_bytes()).unwrap().1;
        assert!(findings.is_empty(), "{name}: {findings:#?}");
    };
    let buffer = || emulator.upload(&[1u32; 4096]).unwrap();
    silent("block_sum", LaunchConfig::new([3, 1, 1], [128, 1, 1]), Params::new().u64(buffer()).u64(buffer()).i32(1000));
    silent("histogram", LaunchConfig::new([3, 1, 1], [96, 1, 1]), Params::new().u64(buffer()).u64(buffer()).i32(3000));
    let config = LaunchConfig::new([1, 1, 1], [128, 1, 1]).shared(512);
    silent("inclusive_scan", config, Params::new().u64(buffer()).i32(100));
    silent("bitonic_sort", config, Params::new().u64(buffer()));
    silent("async_copy", LaunchConfig::new([1, 1, 1], [64, 1, 1]), Params::new().u64(buffer()).u64(buffer()));
    silent("group_sums", LaunchConfig::new([1, 1, 1], [64, 1, 1]), Params::new().u64(buffer()).u64(buffer()));
    let zeros = || emulator.upload(&[0u32; 64]).unwrap();
    silent("spin_lock", LaunchConfig::new([2, 1, 1], [32, 1, 1]), Params::new().u64(zeros()).u64(zeros()));
}
