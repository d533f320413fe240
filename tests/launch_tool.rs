//! `engine-bench launch` and `roofline` as scripts and newcomers meet them: by files, figures, messages and exit codes.

#[path = "common/libcuda.rs"]
mod libcuda;

use engine::profile::npy::{self, Array, Dtype};
use engine::util::atomic_file::AtomicFile;
use libcuda::Library;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use tempfile::TempDir;

const PROGRAM: &str = env!("CARGO_BIN_EXE_engine-bench");
const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// Kernels of a few lines, whose counts and faults are known by heart.
const SMALL: &str = "\
.version 8.0
.target sm_80
.address_size 64
// y[i] = x[i] * scale + offset
.visible .entry scale(.param .u64 x, .param .u64 y, .param .f32 factor, .param .u32 count) {
    .reg .b64 %a<5>;
    .reg .b32 %r<6>;
    .reg .f32 %f<4>;
    .reg .pred %p;
    ld.param.u64 %a1, [x];
    ld.param.u64 %a2, [y];
    ld.param.f32 %f1, [factor];
    ld.param.u32 %r1, [count];
    mov.u32 %r2, %tid.x;
    setp.ge.u32 %p, %r2, %r1;
    @%p bra DONE;
    mad.wide.u32 %a3, %r2, 4, %a1;
    mad.wide.u32 %a4, %r2, 4, %a2;
    ld.global.f32 %f2, [%a3];
    mul.f32 %f3, %f2, %f1;
    st.global.f32 [%a4], %f3;
DONE:
    ret;
}
.visible .entry accumulate(.param .u64 sum) {
    .reg .b64 %a<3>;
    .reg .b32 %r<3>;
    ld.param.u64 %a1, [sum];
    mov.u32 %r1, %tid.x;
    mad.wide.u32 %a2, %r1, 4, %a1;
    ld.global.u32 %r2, [%a2];
    add.u32 %r2, %r2, %r1;
    st.global.u32 [%a2], %r2;
    ret;
}
.visible .entry race(.param .u64 data) {
    .reg .b64 %a;
    .reg .b32 %r;
    ld.param.u64 %a, [data];
    mov.u32 %r, %ctaid.x;
    st.global.u32 [%a], %r;
    ret;
}
.visible .entry forever() {
LOOP:
    bra LOOP;
}
";

struct Bench {
    folder: TempDir,
}

impl Bench {
    fn new() -> Self {
        let bench = Self { folder: tempfile::tempdir().unwrap() };
        std::fs::write(bench.path("small.ptx"), SMALL).unwrap();
        bench
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, name: &str, dtype: Dtype, shape: &[usize], data: &[u8]) {
        let mut file = AtomicFile::create(self.path(name)).unwrap();
        npy::write_into(&mut file, dtype, shape, data).unwrap();
        file.commit().unwrap();
    }

    fn floats(&self, name: &str, values: &[f32]) {
        self.write(name, Dtype::F32, &[values.len()], bytemuck::cast_slice(values));
    }

    fn read(&self, name: &str) -> Array {
        npy::read(&self.path(name)).unwrap()
    }

    fn read_floats(&self, name: &str) -> Vec<f32> {
        elements(&self.read(name))
    }

    fn json(&self, name: &str) -> Value {
        serde_json::from_slice(&std::fs::read(self.path(name)).unwrap()).unwrap()
    }

    /// Runs `engine-bench` in the folder with arguments parted by spaces.
    fn run(&self, arguments: &str) -> Output {
        Command::new(PROGRAM).current_dir(&self.folder).args(arguments.split_whitespace()).output().unwrap()
    }

    /// Runs it to exit code 0; what it printed.
    fn good(&self, arguments: &str) -> String {
        let output = self.run(arguments);
        assert_eq!(output.status.code(), Some(0), "{arguments}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Asserts that it ends with this code and one line that holds all the texts; the line.
    fn bad(&self, arguments: &str, code: i32, texts: &[&str]) -> String {
        let output = self.run(arguments);
        let message = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{arguments}: {message}");
        assert_eq!(message.trim_end().lines().count(), 1, "{message}");
        for text in texts {
            assert!(message.contains(text), "{arguments}\n{message:?} lacks {text:?}");
        }
        message
    }
}

fn elements<T: bytemuck::AnyBitPattern>(array: &Array) -> Vec<T> {
    array.data.chunks(size_of::<T>()).map(bytemuck::pod_read_unaligned).collect()
}

/// Names of what lies in a folder.
fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn emulator_file(name: &str) -> String {
    format!("{ROOT}/tests/emulator/{name}")
}

const SCALE: &str = "launch small.ptx --entry scale --grid 1 --block 64";

#[test]
fn a_kernel_reads_and_writes_npy_files_and_its_counts_are_exact() {
    let bench = Bench::new();
    let values: Vec<f32> = (0..64).map(|i| i as f32 - 20.5).collect();
    bench.floats("x.npy", &values);
    let text = bench.good(&format!(
        "{SCALE},1,1 --arg in:x.npy --arg out:f32[4,16]:y.npy --arg f32:0.5 --arg u32:64 --json counts.json"
    ));
    let written = bench.read("y.npy");
    assert_eq!((written.dtype, written.shape), (Dtype::F32, vec![4, 16]));
    assert_eq!(bench.read_floats("y.npy"), values.iter().map(|value| value * 0.5).collect::<Vec<_>>());
    let json = bench.json("counts.json");
    for (key, count) in [
        ("warp_instructions", 2 * 13),
        ("thread_instructions", 64 * 12),
        ("global_load_requests", 2),
        ("global_load_sectors", 8),
        ("global_store_requests", 2),
        ("global_store_sectors", 8),
        ("dram_read_bytes", 256),
        ("dram_write_bytes", 256),
        ("shared_wavefronts", 0),
        ("shared_bank_conflicts", 0),
        ("tensor_core_flops", 0),
        ("barriers", 0),
        ("divergent_branches", 0),
    ] {
        assert_eq!(json[key], count, "{key} in {json:#}");
    }
    assert_eq!(json["opcodes"]["mul.f32"], 2);
    assert_eq!(json["opcodes"]["mad.wide.u32"], 4);
    assert_eq!((&json["grid"], &json["block"]), (&serde_json::json!([1, 1, 1]), &serde_json::json!([64, 1, 1])));
    assert!(json.get("findings").is_none() && json.get("roofline").is_none());
    assert!(json["seconds_median"].as_f64().unwrap() > 0.0);
    assert!(text.contains("4.00 per request, 100 % coalesced") && text.contains("mul.f32"), "{text}");
}

#[test]
fn repeated_and_counted_launches_all_start_from_the_same_memory() {
    let bench = Bench::new();
    bench.write("x.npy", Dtype::U32, &[4], bytemuck::cast_slice(&[10u32, 20, 30, 40]));
    bench.good(
        "launch small.ptx --entry accumulate --grid 1 --block 4 --arg inout:x.npy:y.npy --repeat 5 --sanitize --json a.json",
    );
    assert_eq!(bench.read("y.npy").data, bytemuck::cast_slice::<u32, u8>(&[10, 21, 32, 43]));
    assert_eq!(bench.json("a.json")["seconds"].as_array().unwrap().len(), 5);
    // In place: input and output may be one file.
    for _ in 0..2 {
        bench.good("launch small.ptx --entry accumulate --grid 1 --block 4 --arg inout:y.npy:y.npy --repeat 0");
    }
    assert_eq!(bench.read("y.npy").data, bytemuck::cast_slice::<u32, u8>(&[10, 23, 36, 49]));
}

#[test]
fn what_a_kernel_does_not_write_stays_nan_and_is_mentioned() {
    let bench = Bench::new();
    bench.floats("x.npy", &[1.0; 64]);
    let text = bench.good(&format!("{SCALE} --arg in:x.npy out:f32[64]:y.npy f32:2 i32:60 --json a.json"));
    let written = bench.read_floats("y.npy");
    assert!(written[..60].iter().all(|value| *value == 2.0) && written[60..].iter().all(|value| value.is_nan()));
    assert_eq!(bench.json("a.json")["outputs"][0]["unwritten_elements"], 4);
    assert!(text.contains("4 of its elements still all ones"), "{text}");
}

#[test]
fn the_sanitizer_lists_findings_with_place_and_fails() {
    let bench = Bench::new();
    let arguments = "launch small.ptx --entry race --grid 2 --block 1 --arg out:u32[1]:y.npy --sanitize --json a.json";
    bench.bad(arguments, 1, &["a finding"]);
    let text = String::from_utf8(bench.run(arguments).stdout).unwrap();
    let finding = &bench.json("a.json")["findings"][0];
    let line = SMALL.lines().position(|line| line.contains("st.global.u32 [%a], %r;")).unwrap() + 1;
    assert_eq!((&finding["kind"], &finding["line"]), (&"global_race".into(), &line.into()));
    assert_eq!(finding["block"].as_array().unwrap().len() + finding["thread"].as_array().unwrap().len(), 6);
    assert!(finding["address"].as_u64().unwrap() > 0);
    assert!(text.contains(&format!("small.ptx:{line}:5: global_race: ")), "{text}");
    // One block does not race.
    let clean = arguments.replace("--grid 2", "--grid 1");
    bench.good(&clean);
    assert_eq!(bench.json("a.json")["findings"], serde_json::json!([]));
}

#[test]
fn under_the_sanitizer_an_output_is_memory_that_nobody_wrote() {
    let bench = Bench::new();
    let arguments = "launch small.ptx --entry accumulate --grid 1 --block 4 --sanitize --json a.json --arg";
    bench.bad(&format!("{arguments} out:u32[4]"), 1, &["a finding"]);
    assert_eq!(bench.json("a.json")["findings"][0]["kind"], "uninitialised_global");
    bench.good(&format!("{arguments} zeros:u32[4]"));
}

#[test]
fn a_fault_is_one_line_with_its_place_and_writes_nothing() {
    let bench = Bench::new();
    bench.floats("x.npy", &[1.0; 8]);
    let before = names(bench.folder.path());
    let line = SMALL.lines().position(|line| line.contains("ld.global.f32")).unwrap() + 1;
    let arguments = format!("{SCALE} --arg in:x.npy out:f32[64]:y.npy f32:2 i32:64");
    bench.bad(
        &format!("{arguments} --json a.json"),
        1,
        &[
            &format!("small.ptx:{line}:5: read of 4 bytes"),
            "block (0,0,0), thread (8,0,0)",
            "past the end of the 32 bytes",
        ],
    );
    assert_eq!(names(bench.folder.path()), before);
    // Under the sanitizer it is a finding, and the figures are there as far as they go.
    bench.bad(&format!("{arguments} --sanitize --json a.json"), 1, &["a finding"]);
    let json = bench.json("a.json");
    assert_eq!(json["findings"][0]["kind"], "out_of_bounds");
    assert_eq!((&json["findings"][0]["line"], &json["warp_instructions"]), (&line.into(), &Value::Null));
    assert!(!bench.path("y.npy").exists());
}

#[test]
fn an_endless_loop_is_stopped_by_the_budget() {
    let line = SMALL.lines().position(|line| line.contains("bra LOOP")).unwrap() + 1;
    Bench::new().bad(
        "launch small.ptx --entry forever --grid 1 --block 32 --budget 10000",
        1,
        &[&format!("small.ptx:{line}:5: "), "budget of 10000 warp instructions"],
    );
}

#[test]
fn arguments_that_do_not_fit_are_bad_usage() {
    let bench = Bench::new();
    bench.floats("x.npy", &[1.0; 64]);
    let good = "--arg in:x.npy out:f32[64]:y.npy f32:2 i32:64";
    for (arguments, texts) in [
        (
            format!("{SCALE} --arg in:x.npy out:f32[64]"),
            &["scale takes 4 arguments, 2 given", "parameter 3 is .f32 factor"] as &[&str],
        ),
        (format!("{SCALE} {good} null"), &["takes 4 arguments, 5 given", "'null'"]),
        (
            format!("{SCALE} --arg in:x.npy out:f32[64] f64:2 i32:64"),
            &["parameter 3", "(.f32 factor) takes 4 bytes", "'f64:2' has 8"],
        ),
        (format!("{SCALE} --arg i32:5 out:f32[64] f32:2 i32:64"), &["parameter 1", "(.u64 x) takes 8 bytes"]),
        (format!("{SCALE} --arg in:x.npy out:f32[64] f32:2 in:x.npy"), &["parameter 4", "no pointer"]),
        (
            format!("launch small.ptx --entry none --grid 1 --block 1 {good}"),
            &["no kernel 'none'", "scale, accumulate, race, forever"],
        ),
        (format!("launch small.ptx --grid 1 --block 1 {good}"), &["4 kernels", "--entry", "scale, accumulate"]),
        (format!("launch small.ptx --entry scale --grid 1 --block 2048 {good}"), &["block x is 2048", "1 to 1024"]),
        (format!("launch small.ptx --entry scale --grid 1,70000 --block 64 {good}"), &["grid y is 70000", "65535"]),
        (format!("{SCALE} --shared 200000 {good}"), &["200000", "166912 per block"]),
        (format!("{SCALE} --profile RTX-4090 --shared 110000 {good}"), &["101376 per block"]),
        (format!("{SCALE} --arg in:x.npy out:f32[99999999999] f32:2 i32:64"), &["399999999996 bytes; the device has"]),
        (format!("{SCALE} --arg inout:x.npy:y.npy out:f32[64]:y.npy f32:2 i32:64"), &["write the same file"]),
    ] {
        bench.bad(&arguments, 2, texts);
    }
    // Those that the command line's own reading refuses come with a hint on its usage.
    for (arguments, text) in [
        (format!("{SCALE} --arg in:x.npy out:f99[64]"), "unknown type 'f99'"),
        (format!("{SCALE} --arg in:x.npy out:f32[6x4]"), "'6x4' in the shape is not a length"),
        (format!("{SCALE} --arg x.npy"), "in:FILE.npy"),
        (format!("{SCALE} --arg i32:9999999999"), "outside i32"),
        (format!("{SCALE} --profile V100 {good}"), "it has A100-80GB"),
        (format!("{SCALE} --svg a.svg {good}"), "--profile"),
        ("launch small.ptx --entry scale --grid 0 --block 1".into(), "one to three numbers"),
        ("launch small.ptx --entry scale --grid 1,2,3,4 --block 1".into(), "one to three numbers"),
        ("launch small.ptx --entry scale --grid 1".into(), "--block"),
        (format!("{SCALE} --device gpu"), "emulator, cuda or cuda:N"),
    ] {
        let output = bench.run(&arguments);
        let message = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{arguments}: {message}");
        assert!(message.contains(text), "{arguments}\n{message:?} lacks {text:?}");
    }
    assert!(!bench.path("y.npy").exists());
}

#[test]
fn files_that_cannot_be_used_are_named() {
    let bench = Bench::new();
    bench.floats("x.npy", &[1.0; 64]);
    let write = |name: &str, text: &[u8]| std::fs::write(bench.path(name), text).unwrap();
    write("broken.ptx", SMALL.replace("    mov.u32 %r1, %tid.x;", "    mov.u32 %r1 %tid.x;").as_bytes());
    write("unknown.ptx", SMALL.replace("mul.f32", "mulx.f32").as_bytes());
    write("head.ptx", SMALL.replace(".entry scale(", ".entry scale[").as_bytes());
    write("text.ptx", b"hello world\n");
    write("binary.ptx", b"\x7fELF\xff\xfe");
    write("short.npy", &std::fs::read(bench.path("x.npy")).unwrap()[..100]);
    write("zip.npy", b"PK\x03\x04");
    let line = |text: &str| SMALL.lines().position(|line| line.contains(text)).unwrap() + 1;
    let rest = "--grid 1 --block 64 --arg in:x.npy out:f32[64]:y.npy f32:2 i32:64";
    for (file, texts) in [
        ("missing.ptx", &["missing.ptx: no such file"] as &[&str]),
        ("broken.ptx", &[&format!("broken.ptx:{}:17: expected", line("mov.u32 %r1, %tid.x;"))]),
        ("unknown.ptx", &[&format!("unknown.ptx:{}", line("mul.f32")), "mulx"]),
        ("head.ptx", &["head.ptx:5:", "expected"]),
        ("text.ptx", &["text.ptx:1:1: expected"]),
        ("binary.ptx", &["binary.ptx: not text"]),
        (".", &[".: "]),
    ] {
        bench.bad(&format!("launch {file} --entry scale {rest}"), 1, texts);
    }
    for (spec, texts) in [
        ("in:none.npy", &["argument 1: none.npy: no such file"] as &[&str]),
        ("in:short.npy", &["argument 1: short.npy: the file ends within its header"]),
        ("in:zip.npy", &["argument 1: zip.npy: not a .npy file"]),
        ("in:.", &["argument 1: .: not a file"]),
        ("in:small.ptx", &["argument 1: small.ptx: not a .npy file"]),
        ("inout:x.npy:no/such/y.npy", &["cannot write no/such/y.npy", "no such file or folder"]),
    ] {
        bench.bad(&format!("{SCALE} --arg {spec} out:f32[64] f32:2 i32:64"), 1, texts);
    }
    let good = "--arg in:x.npy out:f32[64] f32:2 i32:64";
    bench.bad(&format!("{SCALE} {good} --json no/a.json"), 1, &["--json: cannot write no/a.json"]);
    assert!(!bench.path("y.npy").exists());
}

#[test]
fn a_newer_target_runs_unless_the_named_gpu_is_older() {
    let bench = Bench::new();
    bench.floats("x.npy", &[1.0; 64]);
    std::fs::write(bench.path("hopper.ptx"), SMALL.replace("sm_80", "sm_90a")).unwrap();
    let arguments = "launch hopper.ptx --entry scale --grid 1 --block 64 --arg in:x.npy out:f32[64] f32:2 i32:64";
    assert!(bench.good(arguments).contains("sm_90"));
    bench.bad(&format!("{arguments} --profile a100"), 1, &["sm_90", "sm_80"]);
}

#[test]
fn a_number_of_another_kind_is_mentioned_and_used() {
    let bench = Bench::new();
    bench.floats("x.npy", &[1.0; 64]);
    let output = bench.run(&format!("{SCALE} --arg in:x.npy out:f32[64]:y.npy i32:0x40000000 i32:64"));
    assert_eq!(output.status.code(), Some(0));
    let note = String::from_utf8(output.stderr).unwrap();
    assert!(note.contains("note: parameter 3 of scale (.f32 factor) gets the bits of 'i32:0x40000000'"), "{note}");
    assert_eq!(bench.read_floats("y.npy")[0], 2.0);
}

/// Runs `engine-bench` on the emulator that stands where the driver does.
fn run_on_libcuda(bench: &Bench, arguments: &str) -> Output {
    let library = Library::emulator();
    let mut command = Command::new(PROGRAM);
    command.current_dir(&bench.folder).args(arguments.split_whitespace()).args(["--device", "cuda"]);
    library.lend(&mut command).output().unwrap()
}

#[test]
fn a_launch_through_libcuda_gives_what_the_emulator_gives() {
    let bench = Bench::new();
    bench.floats("x.npy", &(0..64).map(|index| index as f32).collect::<Vec<_>>());
    bench.write("sums.npy", Dtype::U32, &[4], bytemuck::cast_slice(&[10u32, 20, 30, 40]));
    let accumulate = "launch small.ptx --entry accumulate --grid 1 --block 4";
    for (name, arguments) in [
        // 63 of 65 elements are written: the others keep what they had.
        ("scale", format!("{SCALE} --arg in:x.npy out:f32[65]:y.npy f32:2.5 i32:63 --repeat 3")),
        ("bytes", format!("{SCALE} --arg null out:u8[7]:y.npy f32:2.5 i32:0")),
        ("inout", format!("{accumulate} --arg inout:sums.npy:y.npy --repeat 2")),
        ("zeros", format!("{accumulate} --arg zeros:u32[4]:y.npy")),
    ] {
        bench.good(&format!("{arguments} --json here.json"));
        let here = std::fs::read(bench.path("y.npy")).unwrap();
        std::fs::remove_file(bench.path("y.npy")).unwrap();
        let output = run_on_libcuda(&bench, &format!("{arguments} --json there.json"));
        assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(std::fs::read(bench.path("y.npy")).unwrap(), here, "{name}");
        let (here, there) = (bench.json("here.json"), bench.json("there.json"));
        assert_eq!(there["outputs"], here["outputs"], "{name}");
        assert_eq!(there["seconds"].as_array().unwrap().len(), here["seconds"].as_array().unwrap().len());
        assert_eq!((&there["device"], &there["warp_instructions"]), (&"PTX emulator (sm_80)".into(), &Value::Null));
    }
}

#[test]
fn what_a_kernel_prints_comes_before_the_report_on_a_gpu_too() {
    let bench = Bench::new();
    let arguments =
        format!("launch {} --entry say --grid 2 --block 1 --arg random:i32[2]:3", emulator_file("programs.ptx"));
    let (here, there) = (bench.run(&arguments), run_on_libcuda(&bench, &format!("{arguments} --repeat 0")));
    assert!(here.status.success() && there.status.success(), "{}", String::from_utf8_lossy(&there.stderr));
    let first = |output: &Output| String::from_utf8_lossy(&output.stdout).lines().next().unwrap().to_owned();
    assert_eq!(first(&there), first(&here));
}

#[test]
fn what_a_gpu_cannot_do_is_one_line() {
    let bench = Bench::new();
    let accumulate = "launch small.ptx --entry accumulate --grid 1 --block 4";
    let many = accumulate.replace("--grid 1", "--grid 100000");
    let zeros = "--arg zeros:u32[4]";
    for (arguments, code, texts) in [
        (format!("{accumulate} {zeros} --sanitize"), 2, ["--sanitize needs the emulator", "leave out --device cuda"]),
        (format!("{accumulate} {zeros} --profile A100"), 2, ["--profile needs the emulator", ""]),
        (format!("{accumulate} {zeros} --budget 7"), 2, ["--budget needs the emulator", ""]),
        (format!("{accumulate} {zeros} --shared 1000000"), 2, ["1000000 bytes", "CUDA_ERROR_INVALID_VALUE"]),
        (format!("{many} --cooperative {zeros}"), 2, ["grid 100000,1,1", "COOPERATIVE_LAUNCH_TOO_LARGE"]),
        (format!("{accumulate} --arg zeros:u8[20000000000]"), 2, ["20000000000 bytes", "the device has"]),
        (format!("{accumulate} --arg null"), 1, ["CUDA_ERROR_ILLEGAL_ADDRESS", "in accumulate"]),
        (format!("{accumulate} {zeros} --json no/such.json"), 1, ["no/such.json", ""]),
    ] {
        let output = run_on_libcuda(&bench, &arguments);
        let message = String::from_utf8(output.stderr).unwrap();
        assert_eq!((output.status.code(), message.trim_end().lines().count()), (Some(code), 1), "{message}");
        for text in texts {
            assert!(message.contains(text), "{arguments}\n{message:?} lacks {text:?}");
        }
    }
    assert_eq!(names(bench.folder.path()), ["small.ptx"]);
}

#[test]
fn a_gpu_that_is_not_there_is_one_line() {
    let bench = Bench::new();
    let output =
        bench.run("launch small.ptx --entry accumulate --grid 1 --block 4 --device cuda:63 --arg zeros:u32[4]");
    let message = String::from_utf8(output.stderr).unwrap();
    assert_eq!((output.status.code(), message.trim_end().lines().count()), (Some(1), 1), "{message}");
}

#[test]
fn tritons_kernels_run_with_null_for_its_scratch_pointers() {
    let bench = Bench::new();
    let (rows, columns) = (5usize, 203usize);
    let values: Vec<f32> = (0..rows * columns).map(|i| ((i * 37) % 101) as f32 / 20.0 - 2.5).collect();
    bench.write("x.npy", Dtype::F32, &[rows, columns], bytemuck::cast_slice(&values));
    let arguments = format!(
        "launch {} --entry softmax --grid {rows} --block 128 --shared 16 --sanitize --arg in:x.npy --arg out:f32[5,203]:y.npy --arg i32:203",
        emulator_file("triton_softmax.ptx")
    );
    bench.bad(&arguments, 2, &["takes 5 arguments, 3 given", "Triton", "add --arg null --arg null"]);
    bench.good(&format!("{arguments} --arg null --arg null"));
    let forgotten = arguments.replace("--shared 16 --sanitize", "");
    bench.bad(&format!("{forgotten} --arg null --arg null"), 1, &["0 bytes of shared memory", "with --shared"]);
    for (row, got) in values.chunks(columns).zip(bench.read_floats("y.npy").chunks(columns)) {
        let sum: f64 = row.iter().map(|&value| f64::from(value).exp()).sum();
        for (value, got) in row.iter().zip(got) {
            assert!((f64::from(*got) - f64::from(*value).exp() / sum).abs() < 1e-7);
        }
    }
}

#[test]
fn structures_printf_and_half_precision_pass_through() {
    let bench = Bench::new();
    let programs = emulator_file("programs.ptx");
    // struct Big { int n; double scale; float values[8]; char tag; }
    let mut big = Vec::new();
    big.extend(3i64.to_le_bytes());
    big.extend(0.5f64.to_le_bytes());
    (0..8).for_each(|i| big.extend((i as f32).to_le_bytes()));
    big.extend(10i64.to_le_bytes());
    let hexadecimal: String = big.iter().map(|byte| format!("{byte:02x}")).collect();
    bench.good(&format!(
        "launch {programs} --entry by_value --grid 1 --block 32 --arg bytes:{hexadecimal} --arg out:f64[32]:y.npy"
    ));
    let got: Vec<f64> = elements(&bench.read("y.npy"));
    assert!((0..32).all(|i| got[i] == (i % 8) as f64 * 0.5 + 13.0), "{got:?}");

    bench.write("v.npy", Dtype::I32, &[2], bytemuck::cast_slice(&[5i32, -3]));
    let text = bench
        .good(&format!("launch {programs} --entry say --grid 2 --block 32 --arg in:v.npy --repeat 3 --json a.json"));
    let printed: String = (0..2)
        .map(|block| {
            format!("block {block} thread 0: 5 1.250 text 1099511627776\nblock {block} thread 1: -3 -0.750 text 1099511627776\n")
        })
        .collect();
    assert!(text.starts_with(&printed) && text.matches("thread 0: 5").count() == 2, "{text}");
    assert_eq!(bench.json("a.json")["printed"], printed);

    // bf16 goes out as u16 and comes back in.
    let ones = [half::bf16::ONE.to_bits(); 64 * 64];
    bench.write("a.npy", Dtype::Bf16, &[64, 64], bytemuck::cast_slice(&ones));
    assert_eq!(bench.read("a.npy").dtype, Dtype::U16);
    bench.good(&format!(
        "launch {} --entry gemm_bf16 --grid 1,1 --block 128 --arg in:a.npy in:a.npy out:f32[64,64]:c.npy i32:64 i32:64 i32:64 --json g.json",
        emulator_file("gemm.ptx")
    ));
    assert!(bench.read_floats("c.npy").iter().all(|value| *value == 64.0));
    assert_eq!(bench.json("g.json")["tensor_core_flops"], 2 * 64 * 64 * 64);
}

#[test]
fn blocks_wait_for_each_other_in_a_cooperative_launch() {
    let bench = Bench::new();
    let arguments = format!(
        "launch {} --entry grid_wide --grid 4 --block 64 --cooperative --arg zeros:i32[256]:y.npy --arg i32:3",
        emulator_file("programs.ptx")
    );
    bench.good(&arguments);
    let got: Vec<i32> = elements(&bench.read("y.npy"));
    assert_eq!(got, [3; 256]);
    bench.bad(&arguments.replace("--grid 4", "--grid 100000"), 2, &["cooperative", "fit on the device at once"]);
}

#[test]
fn bounds_follow_from_the_counts_and_both_tools_agree() {
    let bench = Bench::new();
    let gemm = emulator_file("gemm.ptx");
    let text = bench.good(&format!(
        "launch {gemm} --entry gemm_f32 --grid 2,2 --block 256 --profile A100 --svg one.svg --json gemm.json \
         --arg random:f32[128,64] random:f32[64,128] out:f32[128,128] i32:128 i32:128 i32:64"
    ));
    let json = bench.json("gemm.json");
    let roofline = &json["roofline"];
    let number = |value: &Value| value.as_f64().unwrap_or_else(|| panic!("{value}"));
    let near = |a: f64, b: f64| (a / b - 1.0).abs() < 1e-9;
    // 4 of 108 multiprocessors have a block.
    let share = 4.0 / 108.0;
    let bytes = number(&json["dram_read_bytes"]) + number(&json["dram_write_bytes"]);
    assert!(near(number(&roofline["bounds"]["dram_bytes"]["seconds"]), bytes / 2039e9));
    let flops = 2.0 * 128.0 * 128.0 * 64.0;
    assert_eq!(number(&roofline["flops"]), flops);
    assert!(near(number(&roofline["bounds"]["f32_operations"]["seconds"]), flops / (19.5e12 * share)));
    let wavefronts = number(&json["shared_wavefronts"]);
    assert!(near(number(&roofline["bounds"]["shared_wavefronts"]["seconds"]), wavefronts / (4.0 * 1.41e9)));
    let issued = number(&json["warp_instructions"]);
    assert!(near(number(&roofline["bounds"]["issue_slots"]["seconds"]), issued / (16.0 * 1.41e9)));
    let ruling = roofline["bound"].as_str().unwrap();
    assert_eq!(roofline["bounds"][ruling]["percent"], 100.0);
    assert!(text.contains("keeps 4 of 108 multiprocessors busy"), "{text}");

    let table = bench.good("roofline gemm.json gemm.json --profile a100 --json all.json --svg all.svg");
    assert_eq!(table.matches("gemm_f32").count(), 2, "{table}");
    let mut again = bench.json("all.json")["launches"][1].clone();
    for key in ["file", "kernel"] {
        again.as_object_mut().unwrap().remove(key);
    }
    assert_eq!(again, *roofline);
    for file in ["one.svg", "all.svg"] {
        let svg = std::fs::read_to_string(bench.path(file)).unwrap();
        assert!(svg.starts_with("<svg") && svg.contains("gemm_f32") && !svg.contains("NaN"), "{file}");
    }

    std::fs::write(bench.path("other.json"), "{\"grid\": 3}").unwrap();
    bench.bad("roofline none.json --profile a100", 1, &["none.json: no such file"]);
    bench.bad("roofline small.ptx --profile a100", 1, &["small.ptx: not JSON"]);
    bench.bad("roofline other.json --profile a100", 1, &["other.json: no ", "launch --json"]);
    assert_eq!(bench.run("roofline gemm.json").status.code(), Some(2));
}

/// What `--help` shows as examples, run by a shell as a newcomer would paste it.
#[test]
#[cfg(unix)]
fn the_examples_of_the_help_work_as_printed() {
    let bench = Bench::new();
    let help = bench.good("launch --help").replace("\\\n", " ");
    let examples: Vec<&str> =
        help.lines().map(str::trim).filter(|line| line.starts_with("engine-bench launch")).collect();
    assert!(examples.len() >= 4, "{help}");
    std::os::unix::fs::symlink(format!("{ROOT}/tests"), bench.path("tests")).unwrap();
    let programs = Path::new(PROGRAM).parent().unwrap().display();
    for example in examples {
        let script = format!("PATH={programs}:$PATH; {example}");
        let output = Command::new("sh").current_dir(&bench.folder).args(["-c", &script]).output().unwrap();
        assert!(output.status.success(), "{example}: {}", String::from_utf8_lossy(&output.stderr));
    }
    let softmax = bench.read_floats("softmax.npy");
    assert!(softmax.chunks(200).all(|row| (row.iter().sum::<f32>() - 1.0).abs() < 1e-5));
    assert!(bench.path("gemm.svg").exists() && bench.path("sum.npy").exists());
}
