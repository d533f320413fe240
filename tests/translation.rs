//! Translation as a user meets it: a small encoder-decoder learns to name digits in another language, and
//! `engine-run translate` uses its checkpoint.

mod common;

use common::Scratch;
use serde_json::Value;
use std::fs;
use std::path::Path;
use std::process::{Command, Output};

const WORDS: [(&str, &str); 6] =
    [("one", "eins"), ("two", "zwei"), ("three", "drei"), ("four", "vier"), ("five", "f\u{fc}nf"), ("six", "sechs")];

/// Some or all pairs of two words, as TSV.
fn rows(keep: impl Fn(usize, usize) -> bool) -> String {
    let mut text = "en\tde\n".to_owned();
    for (i, (a, x)) in WORDS.iter().enumerate() {
        for (j, (b, y)) in WORDS.iter().enumerate() {
            if keep(i, j) {
                text.push_str(&format!("{a} {b}\t{x} {y}\n"));
            }
        }
    }
    text
}

fn succeed(command: &mut Command) -> String {
    let Output { status, stdout, stderr } = command.output().unwrap();
    assert!(status.success(), "{}", String::from_utf8_lossy(&stderr));
    String::from_utf8(stdout).unwrap()
}

fn refused(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let message = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success() && message.trim_end().lines().count() == 1, "{message}");
    message
}

fn train(scratch: &Scratch, more: &[&str]) -> Command {
    let path = |name: &str| scratch.path(name).display().to_string();
    let mut command = Command::new(env!("CARGO_BIN_EXE_engine-train"));
    let settings = [
        format!("data.path={}", path("train.tsv")),
        format!("data.val_path={}", path("val.tsv")),
        format!("data.tokenizer={}", path("tokenizer.json")),
    ];
    let fixed = [
        "model.architecture=encoder-decoder",
        "model.layers=1",
        "model.heads=2",
        "model.channels=32",
        "model.block=12",
        "data.layout=padded",
        "data.buckets=2",
        "data.text=en",
        "data.text_pair=de",
        "train.task=translation",
        "train.batch=8",
        "train.eval_every=100",
        "train.sample_every=0",
        "train.label_smoothing=0.05",
        "optimizer.learning_rate=5e-3",
        "schedule.warmup=20",
    ];
    settings.iter().map(String::as_str).chain(fixed).chain(more.iter().copied()).for_each(|setting| {
        command.args(["--set", setting]);
    });
    command.arg("--out").arg(scratch.path("run"));
    command
}

/// A folder with pairs to learn from, others to evaluate on, and a tokenizer.
fn prepared() -> Scratch {
    let scratch = Scratch::new();
    fs::write(scratch.path("train.tsv"), rows(|i, j| (i + 2 * j) % 5 != 4)).unwrap();
    fs::write(scratch.path("val.tsv"), rows(|i, j| (i + 2 * j) % 5 == 4)).unwrap();
    let tokenizer = scratch.path("tokenizer.json");
    let words = scratch.path("words.txt");
    fs::write(&words, rows(|_, _| true)).unwrap();
    let mut make = Command::new(env!("CARGO_BIN_EXE_engine-data"));
    make.args(["tokenizer", "--model", "wordpiece", "--vocab-size", "90", "--input"]).arg(&words);
    succeed(make.arg("--out").arg(&tokenizer));
    scratch
}

#[test]
fn a_translator_is_trained_judged_and_used() {
    let scratch = prepared();
    succeed(&mut train(&scratch, &["train.steps=300"]));
    let records = common::lines(&scratch.path("run/metrics.jsonl"));
    let last = records.iter().rfind(|record| record.get("val_loss").is_some()).unwrap();
    assert!(last["chrf"].as_f64().unwrap() > 90.0 && last["bleu"].is_number(), "{last}");

    let translate = |more: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_engine-run"));
        command.arg("translate").arg(scratch.path("run")).args(more);
        command
    };
    let beam = succeed(&mut translate(&["five one", "two six"]));
    assert_eq!(beam, "f\u{fc}nf eins\nzwei sechs\n");
    assert_eq!(succeed(&mut translate(&["five one", "two six", "--beam", "1"])), beam);
    check_predictions(&scratch);
    let object: Value = serde_json::from_str(&succeed(&mut translate(&["--text", "four four", "--json"]))).unwrap();
    assert_eq!((&object["translation"], &object["is_complete"]), (&"vier vier".into(), &true.into()));
    let long = "one two three ".repeat(6);
    let message = refused(&mut translate(&["five one", &long]));
    assert!(message.contains("sentence 2") && message.contains("20 tokens"), "{message}");
}

/// `engine-run evaluate` finds what the run found, and both write the translations.
fn check_predictions(scratch: &Scratch) {
    let mut evaluate = Command::new(env!("CARGO_BIN_EXE_engine-run"));
    evaluate.arg("evaluate").arg(scratch.path("run/checkpoints/best")).arg("--data").arg(scratch.path("val.tsv"));
    evaluate.args(["--text-column", "en", "--pair-column", "de", "--beam", "1", "--predictions"]);
    evaluate.arg(scratch.path("found.jsonl"));
    let table = succeed(&mut evaluate);
    assert!(table.contains("bleu ") && table.contains("chrf ") && table.contains("loss "), "{table}");
    let object: Value = serde_json::from_str(&succeed(evaluate.arg("--json"))).unwrap();
    let records = common::lines(&scratch.path("run/metrics.jsonl"));
    let evaluations = records.iter().filter(|record| record.get("val_loss").is_some());
    let best = evaluations.max_by(|a, b| a["chrf"].as_f64().unwrap().total_cmp(&b["chrf"].as_f64().unwrap())).unwrap();
    assert_eq!((&object["bleu"], &object["chrf"]), (&best["bleu"], &best["chrf"]));
    let (ours, theirs) = (object["loss"].as_f64().unwrap(), best["val_loss"].as_f64().unwrap());
    assert!((ours - theirs).abs() <= 1e-4 * theirs.max(0.1), "{ours} is not {theirs}");
    let found = common::lines(&scratch.path("found.jsonl"));
    assert_eq!(found, common::lines(&scratch.path("run/predictions.jsonl")));
    assert_eq!(found.len(), 7);
    assert!(found[0]["source"].is_string() && found[0]["target"].is_string() && found[0]["translation"].is_string());
}

#[test]
fn a_decoder_alone_translates_what_stands_before() {
    let scratch = prepared();
    let sets = ["model.architecture=decoder", "model.block=20", "train.steps=300"];
    for layout in ["data.layout=padded", "data.layout=packed"] {
        let _ = fs::remove_dir_all(scratch.path("run"));
        succeed(&mut train(&scratch, &[&sets[..], &[layout]].concat()));
        let records = common::lines(&scratch.path("run/metrics.jsonl"));
        let last = records.iter().rfind(|record| record.get("val_loss").is_some()).unwrap();
        assert!(last["chrf"].as_f64().unwrap() > 90.0, "{layout}: {last}");
        check_predictions(&scratch);
    }
    for beam in ["1", "4"] {
        let mut translate = Command::new(env!("CARGO_BIN_EXE_engine-run"));
        translate.arg("translate").arg(scratch.path("run")).args(["five one", "two six", "--beam", beam]);
        assert_eq!(succeed(&mut translate), "f\u{fc}nf eins\nzwei sechs\n");
    }
}

/// The first updates by PyTorch and by this engine, from the same weights. All examples are in each batch, so that their
/// order does not matter.
#[test]
fn pytorch_learns_alike() {
    let python = std::env::var("ENGINE_PYTHON").unwrap_or_else(|_| "python3".into());
    let has = Command::new(&python).args(["-c", "import torch, tokenizers, safetensors"]).output();
    if !has.is_ok_and(|output| output.status.success()) {
        println!("skipped: {python} has no torch; set ENGINE_PYTHON to a Python that has");
        return;
    }
    let scratch = prepared();
    fs::write(scratch.path("train.tsv"), rows(|_, _| true)).unwrap();
    let sets = ["model.layers=2", "train.batch=36", "data.buckets=1", "train.log_every=1", "schedule.warmup=2"];
    let first = [&sets[..], &["train.steps=1", "optimizer.learning_rate=1e-30"]].concat();
    succeed(&mut train(&scratch, &first));
    fs::rename(scratch.path("run"), scratch.path("first")).unwrap();
    let weights = format!("model.initial={}", common::checkpoint(&scratch.path("first"), 1).display());
    succeed(&mut train(&scratch, &[&sets[..], &["train.steps=5", &weights]].concat()));
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/pytorch/translate.py");
    let theirs = succeed(Command::new(&python).arg(script).arg(scratch.path("run")).arg("--skip-evaluation"));
    let losses =
        |records: &[Value]| -> Vec<f64> { records.iter().filter_map(|record| record["loss"].as_f64()).collect() };
    let ours = losses(&common::lines(&scratch.path("run/metrics.jsonl")));
    let theirs: Vec<Value> = theirs.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let theirs = losses(&theirs);
    assert_eq!((ours.len(), theirs.len()), (5, 5));
    assert!(ours[4] < 0.99 * ours[0], "{ours:?}");
    for (step, (a, b)) in ours.iter().zip(&theirs).enumerate() {
        assert!((a - b).abs() < 1e-4 * b, "update {step}: {a} here, {b} in PyTorch");
    }
}

#[test]
fn what_translation_cannot_use_is_refused_in_one_line() {
    let scratch = Scratch::new();
    fs::write(scratch.path("train.tsv"), rows(|_, _| true)).unwrap();
    for (setting, expected) in [
        ("data.layout=packed", "set data.layout = \"padded\""),
        ("model.architecture=encoder", "set model.architecture = \"encoder-decoder\""),
        (
            "model.convolution_taps=4",
            "model.convolution_taps is 4, but a window around a position has an odd number of taps",
        ),
        ("model.token_types=2", "set model.token_types = 0"),
    ] {
        let message = refused(&mut train(&scratch, &[setting]));
        assert!(message.contains(expected), "{message}");
    }
}
