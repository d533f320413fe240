//! What the whole-program tests share: a tiny model on a tiny text, runs of `engine-train`, looks into run folders.

// Each test program uses a part of this.
#![allow(dead_code)]

pub mod libcuda;

use engine::cpu::Cpu;
use engine::ops::Device;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;

pub const TRAIN: &str = env!("CARGO_BIN_EXE_engine-train");

/// The CPU, for a test that loads a model itself.
pub fn cpu() -> Arc<Device> {
    Arc::new(Device::Cpu(Cpu::new().unwrap()))
}

/// A model that makes an update in about a millisecond: 2 layers, 16 channels, blocks of 16 characters.
const TINY: [&str; 17] = [
    "model.layers=2",
    "model.heads=2",
    "model.channels=16",
    "model.block=16",
    "data.tokenizer=char",
    "data.val_fraction=0.2",
    "train.batch=4",
    "train.steps=6",
    "train.eval_every=2",
    "train.eval_batches=2",
    "train.checkpoint_every=2",
    "train.sample_every=0",
    "train.log_every=1",
    "schedule.kind=linear",
    "schedule.warmup=2",
    "schedule.decay_steps=40",
    "device.threads=2",
];

/// How a program ended and what it printed.
pub struct Outcome {
    /// Exit code; 128 and the signal's number where one ended it.
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl From<Output> for Outcome {
    fn from(output: Output) -> Self {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let code = output.status.code().or_else(|| output.status.signal().map(|signal| 128 + signal));
        Self { code: code.expect("ended"), stdout: text(&output.stdout), stderr: text(&output.stderr) }
    }
}

/// `engine-train` on the tiny model: the sets given come after those of [`TINY`], so they win.
pub fn tiny(data: &Path, out: &Path, sets: &[&str], options: &[&str]) -> Command {
    let mut command = Command::new(TRAIN);
    command.arg("--preset").arg("shakespeare-char").arg("--out").arg(out);
    command.arg("--set").arg(format!("data.path={}", data.display()));
    TINY.iter().chain(sets).for_each(|set| {
        command.arg("--set").arg(set);
    });
    command.args(options).stdin(Stdio::null());
    command
}

/// Goes on with the run in `out`.
pub fn resume(out: &Path, sets: &[&str]) -> Command {
    let mut command = Command::new(TRAIN);
    command.arg("--resume").arg("--out").arg(out).stdin(Stdio::null());
    sets.iter().for_each(|set| {
        command.arg("--set").arg(set);
    });
    command
}

/// Runs a program to its end.
pub fn run(mut command: Command) -> Outcome {
    command.output().expect("the program starts").into()
}

/// Runs a program that must succeed.
#[track_caller]
pub fn succeed(command: Command) -> Outcome {
    let shown = format!("{command:?}");
    let outcome = run(command);
    assert_eq!(outcome.code, 0, "{shown}\n{}", outcome.stderr);
    outcome
}

/// A text of some thousand characters of 14 kinds, the same each time.
pub fn text(length: usize) -> String {
    let words = ["tea ", "rain ", "letter ", "a ", "no ", "hill ", "\n"];
    let mut state = 1u64;
    let mut text = String::new();
    while text.len() < length {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        text.push_str(words[(state >> 33) as usize % words.len()]);
    }
    text.truncate(length);
    text
}

/// A folder with `text.txt` in it, which goes when it is dropped.
pub struct Scratch {
    folder: tempfile::TempDir,
}

impl Scratch {
    pub fn new() -> Self {
        let scratch = Self { folder: tempfile::tempdir().expect("a folder") };
        fs::write(scratch.text(), text(6000)).expect("written");
        scratch
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn text(&self) -> PathBuf {
        self.path("text.txt")
    }

    /// The text of this folder, and a folder for the run.
    pub fn tiny(&self, out: &str, sets: &[&str], options: &[&str]) -> Command {
        tiny(&self.text(), &self.path(out), sets, options)
    }
}

/// The objects of a file of JSON lines; half a line at the end is left out.
#[track_caller]
pub fn lines(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let whole = &text[..text.rfind('\n').map_or(0, |at| at + 1)];
    whole.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{line}: {error}"))).collect()
}

/// `metrics.jsonl` without the figures of speed, which differ from run to run.
pub fn metrics(run: &Path) -> Vec<Value> {
    let mut records = lines(&run.join("metrics.jsonl"));
    for record in &mut records {
        let object = record.as_object_mut().expect("an object");
        object.remove("tokens_per_second");
        object.remove("mfu");
    }
    records
}

/// The folder of a step's checkpoint.
pub fn checkpoint(run: &Path, step: usize) -> PathBuf {
    run.join(format!("checkpoints/step-{step:08}"))
}

/// All that must be the same bits in two runs' checkpoints of a step: weights, optimizer, and where the run stands
/// but for the seconds that it took.
pub fn state(run: &Path, step: usize) -> (Vec<u8>, Vec<u8>, Value) {
    let read = |name: &str| {
        let path = checkpoint(run, step).join(name);
        fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    };
    let mut trainer: Value = serde_json::from_slice(&read("trainer.json")).expect("JSON");
    trainer.as_object_mut().expect("an object").remove("seconds");
    (read("model.safetensors"), read("optimizer.safetensors"), trainer)
}

/// Every file below a folder with its bytes; links with what they point to.
pub fn snapshot(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if let Ok(target) = fs::read_link(&path) {
            files.insert(path, target.into_os_string().into_encoded_bytes());
        } else if path.is_dir() {
            files.extend(snapshot(&path));
        } else {
            let bytes = fs::read(&path).expect("a file");
            files.insert(path, bytes);
        }
    }
    files
}

/// Names in a folder, sorted.
pub fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut names: Vec<String> =
        entries.map(|entry| entry.expect("an entry").file_name().into_string().expect("UTF-8")).collect();
    names.sort();
    names
}

/// Copies a folder with all that is in it.
pub fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("made");
    for entry in fs::read_dir(from).expect("a folder") {
        let path = entry.expect("an entry").path();
        let target = to.join(path.file_name().expect("a name"));
        if let Ok(link) = fs::read_link(&path) {
            std::os::unix::fs::symlink(link, target).expect("linked");
        } else if path.is_dir() {
            copy(&path, &target);
        } else {
            fs::copy(&path, &target).expect("copied");
        }
    }
}
