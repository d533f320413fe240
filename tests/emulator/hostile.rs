//! Text that is not PTX, almost PTX, or PTX that never ends: errors with a place, never a panic.

use engine::driver::emulator::{DeviceFacts, Emulator, EmulatorError, FaultKind, LaunchConfig};

use super::body::much_memory;

const HEAD: &str = ".version 8.0\n.target sm_80\n.address_size 64\n";

fn refuse(body: &str) -> String {
    let emulator = Emulator::new(DeviceFacts::default());
    match emulator.load("t.ptx", &format!("{HEAD}{body}")) {
        Ok(_) => panic!("accepted: {body}"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn mutated_and_truncated_programs_never_panic() {
    let emulator = Emulator::new(DeviceFacts { memory_bytes: 64 << 20, ..DeviceFacts::default() });
    let text = include_str!("gemm.ptx");
    let other = include_str!("programs.ptx");
    let mut seed = 12345u64;
    let mut next = |bound: usize| {
        seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (seed >> 33) as usize % bound
    };
    const BITS: [&str; 24] = [
        "{",
        "}",
        "[",
        "]",
        ";",
        ",",
        "%r1",
        "%rd1",
        "%p1",
        ".u32",
        ".f16x2",
        ".global",
        ".v4",
        "0f3F800000",
        "-1",
        "99999999999",
        "bra",
        "call",
        "mma.sync",
        "@",
        "<1000000>",
        "(",
        ".reg .b128 %q<9>;",
        "lop3.b32",
    ];
    for round in 0..1500 {
        let source = if round % 4 == 0 { other } else { text };
        let start = next(source.len() / 2);
        let window = 3000 + next(6000);
        let end = (start + window).min(source.len());
        let mut mutated: Vec<u8> = HEAD
            .bytes()
            .chain(source.as_bytes()[if round % 2 == 0 { 0 } else { start }..end].iter().copied())
            .collect();
        if round % 2 == 0 {
            mutated.drain(..HEAD.len());
        }
        for _ in 0..1 + next(6) {
            let at = next(mutated.len());
            match next(4) {
                0 => mutated[at] = next(256) as u8,
                1 => {
                    mutated.remove(at);
                }
                2 => {
                    let piece = BITS[next(BITS.len())];
                    mutated.splice(at..at, piece.bytes());
                }
                _ => {
                    let length = next(40).min(mutated.len() - at);
                    mutated.drain(at..at + length);
                }
            }
        }
        let text = String::from_utf8_lossy(&mutated);
        if let Ok(module) = emulator.load("mutated.ptx", &text) {
            emulator.unload(module);
        }
    }
}

#[test]
fn single_operands_dropped_from_every_instruction_never_panic() {
    let emulator = Emulator::new(DeviceFacts::default());
    for source in [include_str!("gemm.ptx"), include_str!("programs.ptx")] {
        let lines: Vec<&str> = source.lines().collect();
        for (index, line) in lines.iter().enumerate().step_by(7) {
            let Some(comma) = line.rfind(',') else { continue };
            let mut changed = lines.clone();
            let cut = format!("{};", &line[..comma]);
            changed[index] = &cut;
            if let Ok(module) = emulator.load("cut.ptx", &changed.join("\n")) {
                emulator.unload(module);
            }
        }
    }
}

#[test]
fn errors_name_the_line_and_what_is_wrong() {
    assert_eq!(
        refuse(".visible .entry k() { frobnicate.u32 %r1; }"),
        "t.ptx:4:38: expected a declared register, found '%r1'"
    );
    assert_eq!(
        refuse(".visible .entry k() {\n.reg .b32 %r<3>;\nfrobnicate.u32 %r1;\n}"),
        "t.ptx:6: unsupported instruction 'frobnicate', in k"
    );
    assert_eq!(
        refuse(".visible .entry k() {\n.reg .b32 %r<3>;\nadd.u32.odd %r1, %r2, 1;\n}"),
        "t.ptx:6: unsupported modifier .odd on add, in k"
    );
    assert!(
        refuse(".visible .entry k() {\n.reg .b32 %r<3>;\n.reg .b64 %d;\nadd.u32 %r1, %d, 1;\n}")
            .contains("expected a 32-bit operand, found %d (.b64)")
    );
    assert!(refuse(".visible .entry k() { bra nowhere; }").contains("unknown label 'nowhere'"));
    assert!(refuse(".visible .entry k() { ret }").contains("expected"));
    assert!(refuse(&"{".repeat(100_000)).contains("expected"));
    assert!(refuse(&format!(".global .u32 x = {}1;", "(".repeat(100_000))).contains("nested"));
    assert!(refuse(".global .b8 x[99999999999999];").contains("2^40"));
    let emulator = Emulator::new(DeviceFacts::default());
    assert_eq!(
        emulator.load("t.ptx", "").map(|_| ()).unwrap_err().to_string(),
        "t.ptx:1:1: expected '.version' (every PTX module starts with it), found the end of the text"
    );
}

/// What belongs to later targets is not taken for a mistake.
#[test]
fn instructions_that_are_not_emulated_are_called_what_they_are() {
    for (instruction, what) in [
        ("wgmma.fence.sync.aligned;", "'wgmma.fence.sync' (matrix products of a warp group, sm_90a)"),
        ("tcgen05.ld.sync.aligned.32x32b.x1.b32 {%r1}, [%r2];", "(tensor memory and its matrix products, sm_100a)"),
        (
            "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.tile [%r1], [%d1, {%r2, %r3}], [%r4];",
            "'cp.async.bulk' (bulk and tensor copies by the copy engine, sm_90)",
        ),
        ("cp.async.bulk.commit_group;", "'cp.async.bulk' (bulk"),
        (
            "mma.sp.sync.aligned.m16n8k16.row.col.f16.f16.f16.f16 {%r0,%r1}, {%r0,%r1}, {%r2,%r3}, {%r0,%r1}, %r4, 0x0;",
            "(matrix products with a sparse factor)",
        ),
        (
            "ldmatrix.sync.aligned.m16n16.x1.trans.shared.b8 {%r0,%r1}, [%r2];",
            "(matrices of 8-, 6- and 4-bit elements, sm_100a)",
        ),
        ("suld.b.1d.b32.trap %r1, [%d1, {%r2}];", "(textures and surfaces)"),
    ] {
        let message =
            refuse(&format!(".visible .entry k() {{\n.reg .b32 %r<9>;\n.reg .b64 %d<3>;\n{instruction}\nret;\n}}"));
        assert!(message.starts_with("t.ptx:7: unsupported instruction '"), "{message}");
        assert!(message.contains(what), "{message}");
        assert!(message.contains("the emulator has the PTX of sm_80 and, of later targets, "), "{message}");
    }
}

#[test]
fn an_unknown_instruction_refuses_only_the_kernels_that_reach_it() {
    let text = format!(
        "{HEAD}.visible .entry fine() {{ ret; }}\n\
         .func odd() {{\n.reg .b32 %r<3>;\nfrobnicate.b32 %r1, [%r2, {{%r1, %r2}}], 3;\nret;\n}}\n\
         .func deeper() {{ call odd; ret; }}\n\
         .visible .entry calls() {{ call deeper; ret; }}\n\
         .visible .entry points() {{ .reg .b64 %f; mov.u64 %f, odd; call %f, (), P; ret; P: .callprototype _ (); }}\n"
    );
    let emulator = Emulator::new(DeviceFacts::default());
    let module = emulator.load("t.ptx", &text).unwrap();
    let config = LaunchConfig::new([1, 1, 1], [1, 1, 1]);
    let run = |kernel| emulator.launch(&module, kernel, config, &[]).map(|_| ()).map_err(|error| error.to_string());
    let message = "t.ptx:7: unsupported instruction 'frobnicate', in odd";
    assert_eq!(run("fine"), Ok(()));
    assert_eq!(run("calls"), Err(message.to_owned()));
    assert_eq!(emulator.check_launch(&module, "calls", config, &[]).unwrap_err().to_string(), message);
    assert!(run("points").unwrap_err().contains(message));
    // A text is still wrong as a whole: where a kernel is, where nothing is left that could run.
    assert!(emulator.load("t.ptx", &text.replace("ret; }", "ret }")).is_err());
    let Err(error) = emulator.load(
        "t.ptx",
        &text
            .replace(".visible .entry fine() { ret; }", "")
            .replace("points", "calls2")
            .replace("mov.u64 %f, odd; call %f, (), P;", "call odd;"),
    ) else {
        panic!("accepted")
    };
    assert!(error.to_string().contains("'frobnicate', in odd"), "{error}");
}

#[test]
fn endless_loops_are_stopped_with_their_line() {
    let emulator = Emulator::new(DeviceFacts::default()).with_budget(1_000_000);
    let module = emulator.load("t.ptx", &format!("{HEAD}.visible .entry k() {{\nL:\nbra L;\n}}")).unwrap();
    let error = emulator.launch(&module, "k", LaunchConfig::new([2, 1, 1], [32, 1, 1]), &[]).unwrap_err();
    let EmulatorError::Fault(fault) = &error else { panic!("{error}") };
    assert!(matches!(fault.kind, FaultKind::Budget(1_000_000)) && fault.line == 6, "{error}");
    let recursive = format!("{HEAD}.func f() {{\ncall f;\nret;\n}}\n.visible .entry k() {{\ncall f;\nret;\n}}");
    let module = emulator.load("t.ptx", &recursive).unwrap();
    let error = emulator.launch(&module, "k", LaunchConfig::new([1, 1, 1], [1, 1, 1]), &[]).unwrap_err();
    assert!(
        error.to_string().contains("t.ptx:5")
            && (error.to_string().contains("stack") || error.to_string().contains("budget")),
        "{error}"
    );
}

#[test]
fn launches_that_exceed_the_device_are_refused_with_the_figure() {
    let emulator = Emulator::new(DeviceFacts::default());
    let text = format!(
        "{HEAD}.visible .entry k(.param .u64 p) .maxntid 128 {{\n.shared .b8 s[40000];\nst.shared.u8 [s], 0;\nret;\n}}"
    );
    let module = emulator.load("t.ptx", &text).unwrap();
    let refuse = |config, params: &[u8]| emulator.launch(&module, "k", config, params).unwrap_err().to_string();
    assert!(refuse(LaunchConfig::new([1, 1, 1], [2000, 1, 1]), &[0; 8]).contains("1024"));
    assert!(refuse(LaunchConfig::new([1, 1, 1], [256, 1, 1]), &[0; 8]).contains("128"));
    assert!(refuse(LaunchConfig::new([1, 70000, 1], [32, 1, 1]), &[0; 8]).contains("65535"));
    assert!(refuse(LaunchConfig::new([1, 1, 1], [32, 1, 1]).shared(130_000), &[0; 8]).contains("166912"));
    assert!(refuse(LaunchConfig::new([1, 1, 1], [32, 1, 1]), &[0; 4]).contains("takes 8"));
    assert!(
        emulator
            .launch(&module, "q", LaunchConfig::new([1, 1, 1], [32, 1, 1]), &[])
            .unwrap_err()
            .to_string()
            .contains("the module has k")
    );
}

#[test]
fn wild_addresses_are_faults_with_line_block_and_thread() {
    let emulator = Emulator::new(DeviceFacts::default());
    let text = format!(
        "{HEAD}.visible .entry k(.param .u64 p) {{\n.reg .b64 %a<4>;\n.reg .b32 %r<3>;\nld.param.u64 %a1, [p];\nmov.u32 %r1, %tid.x;\n\
         mad.wide.u32 %a2, %r1, 4, %a1;\nst.global.u32 [%a2], %r1;\nret;\n}}"
    );
    let module = emulator.load("t.ptx", &text).unwrap();
    let data = emulator.allocate(4 * 20).unwrap();
    let run = |address: u64| {
        emulator
            .launch(&module, "k", LaunchConfig::new([1, 1, 1], [32, 1, 1]), &address.to_le_bytes())
            .unwrap_err()
            .to_string()
    };
    let message = run(data);
    assert!(
        message.starts_with("t.ptx:10: write of 4 bytes")
            && message.contains("thread (20,0,0)")
            && message.contains("4 bytes past the end of the 80 bytes"),
        "{message}"
    );
    assert!(run(data + 2).contains("not aligned"));
    assert!(run(0).contains("outside every allocation"));
    emulator.free(data).unwrap();
    assert!(run(data).contains("freed"));
}

#[test]
fn constants_and_special_registers_do_not_pass_for_128_bits() {
    for source in ["%tid.x", "0", "2.5", "g", "%clock64"] {
        let message = refuse(&format!(
            ".global .align 16 .b8 g[16];\n.visible .entry k() {{\n.reg .b64 %d;\nmov.u64 %d, g;\nst.b128 [%d], {source};\nret;\n}}"
        ));
        assert!(message.starts_with("t.ptx:8") && message.contains("128-bit register"), "{message}");
    }
}

/// Pages of this process that are in memory, in bytes; 0 where the system does not tell.
fn resident_bytes() -> u64 {
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    pages.split_whitespace().nth(1).and_then(|pages| pages.parse::<u64>().ok()).unwrap_or(0) * 4096
}

#[test]
fn huge_variables_cost_no_memory_until_they_are_touched() {
    let emulator = Emulator::new(DeviceFacts::default());
    let text = format!(
        "{HEAD}.global .b8 huge[15000000000];\n.visible .entry k() {{\n.reg .b64 %a;\n.reg .b32 %r;\n\
         mov.u64 %a, huge;\nld.global.u32 %r, [%a+14999999996];\nst.global.u32 [%a+14999999996], %r;\nret;\n}}"
    );
    let _alone = much_memory();
    let before = resident_bytes();
    let module = emulator.load("t.ptx", &text).unwrap();
    emulator.launch(&module, "k", LaunchConfig::new([1, 1, 1], [32, 1, 1]), &[]).unwrap();
    assert!(resident_bytes().saturating_sub(before) < 1 << 31);
    assert!(emulator.load("t.ptx", &text).map(|_| ()).unwrap_err().to_string().contains("free"));
    emulator.unload(module);
}

#[test]
fn kernels_that_launch_kernels_are_refused_as_such() {
    let message = refuse(
        ".extern .func (.param .b64 d) __cudaCDP2GetParameterBufferV2(.param .b64 a);\n\
         .visible .entry k() {\n.param .b64 a, d;\ncall (d), __cudaCDP2GetParameterBufferV2, (a);\nret;\n}",
    );
    assert!(message.contains("dynamic parallelism: the emulator has no kernels that launch kernels"), "{message}");
}

#[test]
fn a_budget_is_kept_to_the_instruction() {
    let emulator = Emulator::new(DeviceFacts::default()).with_threads(1);
    let text = format!("{HEAD}.visible .entry k() {{\n.reg .b32 %r;\nadd.u32 %r, 1, 2;\nadd.u32 %r, 1, 2;\nret;\n}}");
    let run = |budget: u64| {
        let emulator = Emulator::new(DeviceFacts::default()).with_threads(1).with_budget(budget);
        let module = emulator.load("t.ptx", &text).unwrap();
        emulator.launch(&module, "k", LaunchConfig::new([4, 1, 1], [32, 1, 1]), &[])
    };
    let module = emulator.load("t.ptx", &text).unwrap();
    let report = emulator.launch(&module, "k", LaunchConfig::new([4, 1, 1], [32, 1, 1]), &[]).unwrap();
    run(report.warp_instructions).unwrap();
    assert!(run(report.warp_instructions / 2).unwrap_err().to_string().contains("instructions"));
}

#[test]
fn endless_recursion_of_a_whole_block_is_stopped_within_bounded_memory() {
    let emulator = Emulator::new(DeviceFacts::default()).with_threads(1);
    let text = format!(
        "{HEAD}.func f(.param .b32 n) {{\n.reg .b32 %r<40>;\n.param .b32 m;\nld.param.u32 %r0, [n];\n\
         add.u32 %r1, %r0, 1;\nst.param.u32 [m], %r1;\ncall f, (m);\nret;\n}}\n\
         .visible .entry k() {{\n.param .b32 m;\nst.param.u32 [m], 0;\ncall f, (m);\nret;\n}}"
    );
    let module = emulator.load("t.ptx", &text).unwrap();
    let _alone = much_memory();
    let before = resident_bytes();
    let error = emulator.launch(&module, "k", LaunchConfig::new([8, 1, 1], [1024, 1, 1]), &[]).unwrap_err();
    assert!(error.to_string().contains("stack overflow"), "{error}");
    assert!(resident_bytes().saturating_sub(before) < 2 << 30);
}
