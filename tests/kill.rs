//! A run that is killed at random instants, fifty times, loses nothing that a checkpoint held: what stands under a
//! final name is whole, the newest checkpoint resumes, and the end is bit for bit that of a run that was never killed.

mod common;

use common::{Scratch, lines, names, resume, run, state, succeed, tiny};
use engine::data::Tokenizer;
use engine::model::Transformer;
use engine::model::weights::WeightFile;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

const KILLS: usize = 50;
const SETS: [&str; 5] = [
    "train.steps=1000000",
    "train.checkpoint_every=3",
    "train.eval_every=7",
    "schedule.kind=constant",
    "model.dropout=0.1",
];

/// Milliseconds to wait, from a seed that is printed.
struct Delays(u64);

impl Delays {
    fn next(&mut self, from: u64, to: u64) -> Duration {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        Duration::from_millis(from + (self.0 >> 33) % (to - from))
    }
}

/// Kills the run `delay` after it has said what it will do, or after it was started.
fn kill_after(mut command: Command, delay: Duration, waits_for_training: bool) {
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stderr = BufReader::new(child.stderr.take().unwrap());
    let reader = std::thread::spawn(move || {
        let mut text = String::new();
        while waits_for_training && !text.contains("total") && stderr.read_line(&mut text).unwrap() > 0 {}
        (text, stderr)
    });
    let (text, stderr) = reader.join().unwrap();
    std::thread::sleep(delay);
    let ended = child.try_wait().unwrap();
    assert!(ended.is_none(), "it ended by itself: {ended:?}\n{text}");
    child.kill().unwrap();
    child.wait().unwrap();
    drop(stderr);
}

/// Checks everything under a final name, and returns the step of the newest checkpoint.
fn check_whole(folder: &Path) -> Option<usize> {
    let config = folder.join("config.toml");
    if config.exists() {
        toml::from_str::<toml::Table>(&fs::read_to_string(config).unwrap()).expect("a whole configuration");
    }
    let records = folder.join("metrics.jsonl");
    if records.exists() {
        let steps = lines(&records).into_iter().filter(|record| record.get("loss").is_some());
        for (index, record) in steps.enumerate() {
            assert_eq!(record["step"], index + 1, "no update is missing or twice");
        }
    }
    let checkpoints = folder.join("checkpoints");
    let mut newest = None;
    for name in if checkpoints.is_dir() { names(&checkpoints) } else { Vec::new() } {
        if name == "best" {
            let _ = Transformer::load(&common::cpu(), &checkpoints.join(name)).expect("best is a whole checkpoint");
            continue;
        }
        if name.ends_with(".partial") {
            continue;
        }
        let step: usize = name.strip_prefix("step-").expect("a checkpoint").parse().expect("a number");
        let path = checkpoints.join(&name);
        let files = ["config.json", "model.safetensors", "optimizer.safetensors", "tokenizer.json", "trainer.json"];
        assert_eq!(names(&path), files, "{name}");
        Transformer::load(&common::cpu(), &path).unwrap_or_else(|error| panic!("{name}: {error}"));
        WeightFile::open(&path.join("optimizer.safetensors")).unwrap_or_else(|error| panic!("{name}: {error}"));
        Tokenizer::load(path.join("tokenizer.json")).unwrap_or_else(|error| panic!("{name}: {error}"));
        let trainer: serde_json::Value =
            serde_json::from_slice(&fs::read(path.join("trainer.json")).unwrap()).expect("JSON");
        assert_eq!(trainer["step"], step);
        newest = newest.max(Some(step));
    }
    newest
}

#[test]
fn a_run_killed_fifty_times_ends_with_the_bits_of_one_that_never_was() {
    let seed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64;
    println!("seed {seed}");
    let mut delays = Delays(seed);
    let scratch = Scratch::new();
    let folder = scratch.path("run");
    let mut newest = None;
    for kill in 0..KILLS {
        let is_resumable = folder.join("config.toml").exists();
        let command = if is_resumable { resume(&folder, &[]) } else { tiny(&scratch.text(), &folder, &SETS, &[]) };
        // Most kills hit the training; some its start.
        if kill % 5 == 4 {
            kill_after(command, delays.next(1, 300), false);
        } else {
            kill_after(command, delays.next(5, 200), true);
        }
        let after = check_whole(&folder);
        assert!(after >= newest, "kill {kill}: checkpoint {newest:?} was lost, {after:?} is the newest");
        newest = after;
    }
    let newest = newest.expect("a checkpoint after fifty starts");
    println!("{newest} updates in {KILLS} starts");

    let end = newest + 4;
    let steps = format!("train.steps={end}");
    let outcome = succeed(resume(&folder, &[&steps]));
    assert!(outcome.stderr.contains(&format!("resumed after update {newest}")), "{}", outcome.stderr);
    assert_eq!(check_whole(&folder), Some(end));
    assert!(names(&folder).iter().chain(&names(&folder.join("checkpoints"))).all(|name| !name.ends_with(".partial")));

    let straight = scratch.path("straight");
    let sets = [&SETS[..], &[&steps, "train.checkpoint_every=0", "train.keep_best=false"]].concat();
    assert_eq!(run(tiny(&scratch.text(), &straight, &sets, &[])).code, 0);
    let (killed, whole) = (state(&folder, end), state(&straight, end));
    assert!(killed.0 == whole.0, "weights differ");
    assert!(killed.1 == whole.1, "optimizer state differs");
    assert_eq!(killed.2, whole.2, "trainer.json");
    assert_eq!(common::metrics(&folder), common::metrics(&straight));
}
