//! Translation as a user meets it: a small encoder-decoder learns to name digits in another language, and
//! `engine-run translate` uses its checkpoint.

mod common;

use common::Scratch;
use serde_json::Value;
use std::fs;
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

#[test]
fn a_translator_is_trained_judged_and_used() {
    let scratch = Scratch::new();
    fs::write(scratch.path("train.tsv"), rows(|i, j| (i + 2 * j) % 5 != 4)).unwrap();
    fs::write(scratch.path("val.tsv"), rows(|i, j| (i + 2 * j) % 5 == 4)).unwrap();
    let tokenizer = scratch.path("tokenizer.json");
    let words = scratch.path("words.txt");
    fs::write(&words, rows(|_, _| true)).unwrap();
    let mut make = Command::new(env!("CARGO_BIN_EXE_engine-data"));
    make.args(["tokenizer", "--model", "wordpiece", "--vocab-size", "90", "--input"]).arg(&words);
    succeed(make.arg("--out").arg(&tokenizer));

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
    let object: Value = serde_json::from_str(&succeed(&mut translate(&["--text", "four four", "--json"]))).unwrap();
    assert_eq!((&object["translation"], &object["is_complete"]), (&"vier vier".into(), &true.into()));
    let long = "one two three ".repeat(6);
    let message = refused(&mut translate(&["five one", &long]));
    assert!(message.contains("sentence 2") && message.contains("20 tokens"), "{message}");
}

#[test]
fn what_translation_cannot_use_is_refused_in_one_line() {
    let scratch = Scratch::new();
    fs::write(scratch.path("train.tsv"), rows(|_, _| true)).unwrap();
    for (setting, expected) in [
        ("data.layout=packed", "set data.layout = \"padded\""),
        ("model.architecture=decoder", "set model.architecture = \"encoder-decoder\""),
    ] {
        let message = refused(&mut train(&scratch, &[setting]));
        assert!(message.contains(expected), "{message}");
    }
}
