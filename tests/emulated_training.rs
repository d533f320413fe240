//! The GPU path, end to end, without a GPU: `engine-train` on the emulator follows the CPU loss for loss, so does
//! `--device cuda` on our driver library, and checkpoints are ordinary checkpoints.

mod common;

use common::libcuda::Library;
use common::{Scratch, metrics, succeed, text};
use serde_json::Value;
use std::path::Path;
use std::process::{Command, Stdio};

const STEPS: usize = 40;

/// Two layers of two heads and 64 channels, blocks of 64 tokens, four at a time.
const SETS: [&str; 14] = [
    "model.layers=2",
    "model.heads=2",
    "model.channels=64",
    "model.block=64",
    "data.tokenizer=char",
    "data.val_fraction=0.1",
    "train.batch=4",
    "train.eval_every=20",
    "train.eval_batches=2",
    "train.checkpoint_every=20",
    "train.sample_every=0",
    "train.log_every=1",
    "schedule.warmup=5",
    "device.threads=2",
];

fn train(data: &Path, out: &Path, device: &str, sets: &[&str], options: &[&str]) -> Command {
    let mut command = Command::new(common::TRAIN);
    command.args(["--preset", "shakespeare-char", "--device", device, "--out"]).arg(out);
    command.arg("--set").arg(format!("data.path={}", data.display()));
    SETS.iter().chain(sets).for_each(|set| {
        command.args(["--set", set]);
    });
    command.args(options).stdin(Stdio::null());
    command
}

/// The numbers under `key` in the records of a run.
fn series(folder: &Path, key: &str) -> Vec<f64> {
    metrics(folder).iter().filter_map(|record| record.get(key).and_then(Value::as_f64)).collect()
}

#[track_caller]
fn assert_follows(what: &str, found: &[f64], expected: &[f64]) {
    assert_eq!(found.len(), expected.len(), "{what}: records");
    for (step, (found, expected)) in found.iter().zip(expected).enumerate() {
        let error = (found - expected).abs() / expected;
        assert!(error <= 1e-4, "{what}: record {step} is {found}, on the CPU {expected}: {error:.1e} apart");
    }
}

#[test]
fn training_on_the_emulator_and_on_libcuda_follows_the_cpu_within_1e_4_at_every_loss() {
    let scratch = Scratch::new();
    let library = Library::emulator();
    let data = scratch.path("long.txt");
    std::fs::write(&data, text(20_000)).unwrap();
    for (name, sets) in [("plain", vec![]), ("dropout", vec!["model.dropout=0.1", "train.accumulate=2"])] {
        let [cpu, emulator, cuda] = ["cpu", "emulator", "cuda"].map(|device| {
            let out = scratch.path(&format!("{name}-{device}"));
            let mut command = train(&data, &out, device, &sets, &["--steps", &last(name).to_string()]);
            library.lend(&mut command);
            succeed(command);
            out
        });
        for key in ["loss", "val_loss"] {
            assert!(!series(&cpu, key).is_empty(), "{key} was recorded");
            assert_follows(&format!("{name} {key}"), &series(&emulator, key), &series(&cpu, key));
            // The same kernels on the same machine: the way to them changes no bit.
            assert_eq!(series(&cuda, key), series(&emulator, key), "{name} {key} through libcuda");
        }
        assert!(common::state(&cuda, last(name)).0 == common::state(&emulator, last(name)).0, "{name} weights");
    }
}

/// The last update of a run.
fn last(name: &str) -> usize {
    if name == "plain" { STEPS } else { 4 }
}

#[test]
fn auto_takes_a_gpu_where_there_is_one_and_says_why_not_where_there_is_none() {
    let scratch = Scratch::new();
    let described = |library: &Library| {
        let mut command = scratch.tiny("never", &[], &["--dry-run", "--device", "auto"]);
        library.lend(&mut command);
        succeed(command).stdout.lines().next().unwrap_or_default().to_owned()
    };
    let without = described(&Library::broken());
    assert!(without.contains("cpu, 2 threads"), "{without}");
    assert!(without.contains("(auto: there is no libcuda.so.1 on this machine"), "{without}");
    let with = described(&Library::emulator());
    assert!(with.contains("cuda:0, PTX emulator (sm_80) (auto: a usable GPU)"), "{with}");
}

#[test]
fn a_run_on_the_emulator_goes_on_from_its_checkpoint_with_the_same_bits() {
    let scratch = Scratch::new();
    let data = scratch.path("long.txt");
    std::fs::write(&data, text(20_000)).unwrap();
    let sets = ["train.checkpoint_every=3", "train.eval_every=0", "model.layers=1"];
    let [straight, resumed] = ["straight", "resumed"].map(|name| scratch.path(name));
    succeed(train(&data, &straight, "emulator", &sets, &["--steps", "6"]));
    succeed(train(&data, &resumed, "emulator", &sets, &["--steps", "3"]));
    let mut command = common::resume(&resumed, &[]);
    command.args(["--device", "emulator", "--steps", "6"]);
    succeed(command);
    assert_eq!(series(&resumed, "loss"), series(&straight, "loss"));
    assert!(common::state(&resumed, 6).0 == common::state(&straight, 6).0, "weights after 6 updates");
}
