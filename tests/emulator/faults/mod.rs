//! Seeded faults: each is found with the right kind at the right line, and its corrected twin is silent.
//!
//! The line that must be named carries the mark `// !`; where it depends on who comes first, each of them does. Kernels
//! run with 64 threads per block (two warps) on a buffer of 4096 bytes, of which the host has written the first 2048.

mod races;
mod together;
mod unwritten;

use engine::driver::emulator::FindingKind::{self, OutOfBounds, UninitialisedShared, UseAfterFree};
use engine::driver::emulator::{DeviceFacts, Emulator, Finding, LaunchConfig, Params};

use super::body::kernel;

struct Seed {
    what: &'static str,
    kind: FindingKind,
    blocks: u32,
    faulty: &'static str,
    corrected: &'static str,
}

const fn seed(what: &'static str, kind: FindingKind, faulty: &'static str, corrected: &'static str) -> Seed {
    Seed { what, kind, blocks: 1, faulty, corrected }
}

impl Seed {
    const fn over(self, blocks: u32) -> Self {
        Self { blocks, ..self }
    }
}

fn sanitize(body: &str, blocks: u32) -> (String, Vec<Finding>) {
    let emulator = Emulator::new(DeviceFacts::default()).with_initialisation_tracking();
    let text = kernel(body);
    let module = emulator.load("k.ptx", &text).unwrap_or_else(|error| panic!("{body}: {error}"));
    let data = emulator.allocate(4096).unwrap();
    emulator.fill(data, &[0], 2048).unwrap();
    let config = LaunchConfig::new([blocks, 1, 1], [64, 1, 1]);
    let findings = emulator.launch_sanitized(&module, "k", config, Params::new().u64(data).as_bytes()).unwrap().1;
    (text, findings)
}

/// Lines with the mark, from 1.
fn marked_lines(text: &str) -> Vec<u32> {
    (1..).zip(text.lines()).filter(|(_, line)| line.ends_with("// !")).map(|(number, _)| number).collect()
}

fn check(seeds: &[Seed]) {
    for Seed { what, kind, blocks, faulty, corrected } in seeds {
        let (text, findings) = sanitize(faulty, *blocks);
        let lines = marked_lines(&text);
        let found = findings.iter().any(|finding| finding.kind == *kind && lines.contains(&finding.line));
        assert!(found, "{what}: not found at line {lines:?} of\n{text}\nbut {findings:#?}");
        let (text, findings) = sanitize(corrected, *blocks);
        assert!(findings.is_empty(), "{what}, corrected:\n{text}\n{findings:#?}");
    }
}

#[test]
fn races_are_found_and_their_corrections_silent() {
    check(&races::RACES);
}

#[test]
fn reads_of_what_nobody_wrote_are_found_where_they_matter() {
    check(&unwritten::UNWRITTEN);
}

#[test]
fn values_from_nowhere_go_through_calls() {
    let functions = ".func (.param .b32 r) twice(.param .b32 a) {\n.reg .b32 %x<3>;\nld.param.b32 %x1, [a];\nadd.u32 %x2, %x1, %x1;\n\
                     st.param.b32 [r], %x2;\nret;\n}\n\
                     .func (.reg .b32 %d) next(.reg .b32 %a) {\nadd.u32 %d, %a, 1;\nret;\n}\n\
                     .func (.param .b32 r) maybe(.param .b32 a) {\n.reg .b32 %x<3>;\n.reg .pred %q;\nld.param.b32 %x1, [a];\n\
                     setp.lt.u32 %q, %x1, 64;\n@%q mov.u32 %x2, 5;\nst.param.b32 [r], %x2;\nret;\n}\n.visible .entry";
    let call = |name: &str, prepare: &str| {
        format!(
            "{prepare}\n{{\n.param .b32 q;\n.param .b32 w;\nst.param.b32 [q], %r5;\ncall (w), {name}, (q);\n\
             ld.param.b32 %r1, [w];\n}}\nst.global.u32 [%a2], %r1;"
        )
    };
    let by_register = |prepare: &str| format!("{prepare}\ncall (%r1), next, (%r5);\nst.global.u32 [%a2], %r1;");
    for (faulty, corrected) in [
        (call("twice", ""), call("twice", "mov.u32 %r5, %t;")),
        (by_register(""), by_register("mov.u32 %r5, %t;")),
        (call("maybe", "add.u32 %r5, %t, 1;"), call("maybe", "mov.u32 %r5, %t;")),
    ] {
        for (body, is_faulty) in [(&faulty, true), (&corrected, false)] {
            let emulator = Emulator::new(DeviceFacts::default());
            let text = kernel(body).replace(".visible .entry", functions);
            let module = emulator.load("k.ptx", &text).unwrap_or_else(|error| panic!("{body}: {error}"));
            let data = emulator.upload(&[0u32; 64]).unwrap();
            let config = LaunchConfig::new([1, 1, 1], [64, 1, 1]);
            let params = Params::new().u64(data);
            let findings = emulator.launch_sanitized(&module, "k", config, params.as_bytes()).unwrap().1;
            let found = findings.iter().any(|finding| finding.kind == FindingKind::UninitialisedRegister);
            assert_eq!((found, findings.is_empty()), (is_faulty, !is_faulty), "{body}\n{findings:#?}");
        }
    }
}

#[test]
fn what_only_looks_like_a_mistake_is_not_reported() {
    for (what, body) in races::RIGHT.iter().chain(&unwritten::RIGHT) {
        let (text, findings) = sanitize(body, 1);
        assert!(findings.is_empty(), "{what}:\n{text}\n{findings:#?}");
    }
}

#[test]
fn copies_that_nobody_waited_for_are_found() {
    check(&races::COPIES);
}

#[test]
fn lanes_and_warps_that_are_not_together_are_found() {
    check(&together::TOGETHER);
}

#[test]
fn wild_addresses_are_found() {
    check(&together::WILD);
}

#[test]
fn a_use_after_free_is_named_as_such() {
    let emulator = Emulator::new(DeviceFacts::default());
    let text = kernel("ld.global.u32 %r1, [%a2]; // !");
    let module = emulator.load("k.ptx", &text).unwrap();
    let data = emulator.allocate(4096).unwrap();
    emulator.free(data).unwrap();
    let config = LaunchConfig::new([1, 1, 1], [32, 1, 1]);
    let findings = emulator.launch_sanitized(&module, "k", config, Params::new().u64(data).as_bytes()).unwrap().1;
    assert_eq!(findings[0].kind, UseAfterFree);
    assert_eq!((findings[0].line, findings[0].thread), (marked_lines(&text)[0], [0, 0, 0]));
}

#[test]
fn a_finding_says_where_it_is() {
    let body = "setp.ne.u32 %p1, %t, 37;
        setp.ne.u32 %p2, %n, 1;
        or.pred %p1, %p1, %p2;
        @%p1 bra DONE;
        .loc 1 77 0
        ld.shared.u32 %r1, [tile+64]; // !
        st.global.u32 [%a2], %r1;
        .loc 1 78 0
        ld.global.u32 %r1, [%a1+8192];
        DONE:";
    let emulator = Emulator::new(DeviceFacts::default());
    let text = kernel(body) + "\n.file 1 \"tile.cu\"\n";
    let module = emulator.load("k.ptx", &text).unwrap();
    let data = emulator.allocate(4096).unwrap();
    let config = LaunchConfig::new([2, 1, 1], [64, 1, 1]);
    let findings = emulator.launch_sanitized(&module, "k", config, Params::new().u64(data).as_bytes()).unwrap().1;
    let [unwritten, outside] = findings.as_slice() else { panic!("{findings:#?}") };
    assert_eq!((unwritten.kind, unwritten.kernel.as_str()), (UninitialisedShared, "k"));
    assert_eq!((unwritten.block, unwritten.thread, unwritten.address), ([1, 0, 0], [37, 0, 0], 64));
    assert_eq!(
        (unwritten.line, unwritten.source.as_ref()),
        (marked_lines(&text)[0], Some(&("tile.cu".to_owned(), 77)))
    );
    assert_eq!((outside.kind, outside.block, outside.thread), (OutOfBounds, [1, 0, 0], [37, 0, 0]));
    assert_eq!((outside.address, outside.source.as_ref()), (data + 8192, Some(&("tile.cu".to_owned(), 78))));
}
