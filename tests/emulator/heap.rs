//! Device-side malloc and free: what kernels get, how it ends, and what the sanitizer says of its misuse.

use engine::driver::emulator::{DeviceFacts, Emulator, EmulatorError, FaultKind, FindingKind, LaunchConfig, Params};

/// A kernel around `body`: `%a1` is the buffer, `%a2` this thread's 8 bytes of it, `%t` the thread, `%n` bytes to ask for.
fn kernel(body: &str) -> String {
    let call = |declaration: &str| format!(".extern .func {declaration};\n");
    format!(
        ".version 8.0\n.target sm_80\n.address_size 64\n{}{}\
         .visible .entry k(.param .u64 p, .param .u64 bytes) {{\n\
         .reg .b64 %a<9>, %n;\n.reg .b32 %r<9>, %t;\n.reg .pred %p<4>;\n\
         ld.param.u64 %a1, [p];\nld.param.u64 %n, [bytes];\nmov.u32 %t, %tid.x;\nmad.wide.u32 %a2, %t, 8, %a1;\n\
         {body}\nret;\n}}\n",
        call("(.param .b64 address) malloc(.param .b64 size)"),
        call("free(.param .b64 address)")
    )
}

/// Asks for `%n` bytes; the address goes to `%a3`.
const MALLOC: &str = "{ .param .b64 size; .param .b64 address; st.param.b64 [size], %n;
    call.uni (address), malloc, (size); ld.param.b64 %a3, [address]; }";
/// Frees `%a3`.
const FREE: &str = "{ .param .b64 address; st.param.b64 [address], %a3; call.uni free, (address); }";

struct Device {
    emulator: Emulator,
    buffer: u64,
}

impl Device {
    fn new() -> Self {
        let emulator = Emulator::new(DeviceFacts::default()).with_initialisation_tracking();
        let buffer = emulator.upload(&[0u64; 1024]).unwrap();
        Self { emulator, buffer }
    }

    fn launch(&self, body: &str, threads: u32, bytes: u64) -> Result<Vec<u64>, EmulatorError> {
        let module = self.emulator.load("k.ptx", &kernel(body)).unwrap();
        let params = Params::new().u64(self.buffer).u64(bytes);
        self.emulator.launch(&module, "k", LaunchConfig::new([1, 1, 1], [threads, 1, 1]), params.as_bytes())?;
        self.emulator.download(self.buffer, threads as usize)
    }

    /// Kind and marked line of the one finding, or none.
    fn sanitize(&self, body: &str) -> Option<(FindingKind, String)> {
        let text = kernel(body);
        let module = self.emulator.load("k.ptx", &text).unwrap();
        let params = Params::new().u64(self.buffer).u64(24);
        let config = LaunchConfig::new([1, 1, 1], [1, 1, 1]);
        let findings = self.emulator.launch_sanitized(&module, "k", config, params.as_bytes()).unwrap().1;
        assert!(findings.len() < 2, "{findings:#?}");
        let finding = findings.first()?;
        assert!(text.lines().nth(finding.line as usize - 1).unwrap().contains("// !"), "{finding}\n{text}");
        Some((finding.kind, finding.detail.clone()))
    }
}

#[test]
fn every_thread_gets_memory_of_its_own_that_outlives_the_kernel() {
    let device = Device::new();
    let addresses = device.launch(&format!("{MALLOC}\nst.u32 [%a3], %t;\nst.global.u64 [%a2], %a3;"), 64, 20).unwrap();
    for (thread, address) in addresses.iter().enumerate() {
        assert!(*address != 0 && address.is_multiple_of(16));
        assert!(addresses[..thread].iter().all(|other| address.abs_diff(*other) >= 20), "{addresses:x?}");
    }
    let body = format!(
        "ld.global.u64 %a3, [%a2];\nld.u32 %r1, [%a3];\n{FREE}\ncvt.u64.u32 %a4, %r1;\nst.global.u64 [%a2], %a4;"
    );
    assert_eq!(device.launch(&body, 64, 0).unwrap(), (0..64).collect::<Vec<u64>>());
}

#[test]
fn what_does_not_fit_is_null_until_something_is_freed() {
    let device = Device::new();
    device.emulator.set_malloc_heap(1 << 20).unwrap();
    let ask = format!("{MALLOC}\nst.global.u64 [%a2], %a3;");
    assert_eq!(device.launch(&ask, 1, (1 << 20) + 1).unwrap(), [0]);
    let addresses = device.launch(&ask, 8, 1 << 18).unwrap();
    assert_eq!(addresses.iter().filter(|&&address| address == 0).count(), 4, "{addresses:x?}");
    // The null pointers among them are freed as well, which does nothing.
    device.launch(&format!("ld.global.u64 %a3, [%a2];\n{FREE}"), 8, 0).unwrap();
    assert_ne!(device.launch(&ask, 1, 1 << 20).unwrap(), [0]);
    assert!(device.emulator.set_malloc_heap(1 << 24).is_err());
}

#[test]
fn a_free_of_what_malloc_did_not_return_stops_the_kernel() {
    let device = Device::new();
    for (body, words) in [
        (format!("mov.u64 %a3, %a1;\n{FREE}"), "which malloc did not return"),
        (format!("{MALLOC}\nadd.u64 %a3, %a3, 16;\n{FREE}"), "which malloc did not return"),
        (format!("{MALLOC}\n{FREE}\n{FREE}"), "whose 24 bytes were freed before"),
    ] {
        let Err(EmulatorError::Fault(fault)) = device.launch(&body, 1, 24) else { panic!("{body}") };
        assert!(matches!(&fault.kind, FaultKind::InvalidFree { detail, .. } if detail == words), "{fault}");
    }
}

#[test]
fn the_sanitizer_knows_the_blocks_of_the_heap() {
    let device = Device::new();
    let sanitize = |body: &str| device.sanitize(body);
    assert_eq!(sanitize(&format!("{MALLOC}\nst.u64 [%a3+16], %n;\nld.u64 %a4, [%a3+16];\n{FREE}")), None);
    let (kind, detail) = sanitize(&format!("{MALLOC}\nst.u32 [%a3+24], %t; // !\n{FREE}")).unwrap();
    assert_eq!(kind, FindingKind::OutOfBounds);
    assert!(detail.contains("4 bytes past the end of the 24 bytes that malloc returned"), "{detail}");
    let (kind, detail) = sanitize(&format!("{MALLOC}\n{FREE}\nst.u32 [%a3+8], %t; // !")).unwrap();
    assert_eq!(kind, FindingKind::UseAfterFree);
    assert!(detail.contains("were freed"), "{detail}");
    let twice = FREE.replace("call.uni free, (address); }", "call.uni free, (address); } // !");
    assert_eq!(sanitize(&format!("{MALLOC}\n{FREE}\n{twice}")).unwrap().0, FindingKind::InvalidFree);
    let unwritten = format!("{MALLOC}\nld.u32 %r1, [%a3]; // !\nst.global.u32 [%a2], %r1;\n{FREE}");
    assert_eq!(sanitize(&unwritten).unwrap().0, FindingKind::UninitialisedGlobal);
}

#[test]
fn memory_that_comes_back_is_no_race_and_holds_nothing() {
    let device = Device::new();
    device.emulator.set_malloc_heap(32).unwrap();
    // The heap has room for one: the second thread gets what the first one freed.
    let body = |read: &str| {
        format!(
            "setp.ne.u32 %p1, %t, 0;\n@%p1 bra SECOND;\n{MALLOC}\nst.u32 [%a3], 7;\n{FREE}\nret;\nSECOND:\n{MALLOC}\n\
             setp.eq.u64 %p2, %a3, 0;\n@%p2 bra SECOND;\n{read}\n{FREE}"
        )
    };
    let run = |read: &str| {
        let module = device.emulator.load("k.ptx", &kernel(&body(read))).unwrap();
        let params = Params::new().u64(device.buffer).u64(32);
        let config = LaunchConfig::new([1, 1, 1], [2, 1, 1]);
        device.emulator.launch_sanitized(&module, "k", config, params.as_bytes()).unwrap().1
    };
    assert_eq!(run("st.u32 [%a3], 8;\nld.u32 %r1, [%a3];\nst.global.u32 [%a2], %r1;"), []);
    let findings = run("ld.u32 %r1, [%a3];\nst.global.u32 [%a2], %r1;");
    assert_eq!(findings.iter().map(|finding| finding.kind).collect::<Vec<_>>(), [FindingKind::UninitialisedGlobal]);
}
