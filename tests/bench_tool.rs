//! `engine-bench` as scripts meet it: through the built program, by its figures, messages and exit codes.

use serde_json::Value;
use std::process::{Command, Output};
use tempfile::TempDir;

/// A model that is trained in microseconds.
const TINY: &str = "train --layers 1 --heads 2 --channels 8 --vocab 11 --batch 2 --time 4 --steps 3 --threads 1";

/// Runs `engine-bench` with arguments that are parted by spaces.
fn run(arguments: &str) -> Output {
    Command::new(env!("CARGO_BIN_EXE_engine-bench")).args(arguments.split_whitespace()).output().unwrap()
}

/// Runs it with `--json`; what it printed, and the JSON.
fn measure(arguments: &str) -> (String, Value) {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("figures.json");
    let output = run(&format!("{arguments} --json {}", file.display()));
    assert_eq!(output.status.code(), Some(0), "{arguments}: {}", String::from_utf8_lossy(&output.stderr));
    let json = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
    (String::from_utf8(output.stdout).unwrap(), json)
}

/// Asserts that the arguments are refused by one line that holds `text`.
fn refuse(arguments: &str, code: i32, text: &str) {
    let output = run(arguments);
    let message = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{arguments}: {message}");
    assert_eq!(message.trim_end().lines().count(), 1, "{message}");
    assert!(message.starts_with("engine-bench: ") && message.contains(text), "{message}");
}

#[test]
fn train_gives_the_figures_that_scripts_depend_on() {
    let (text, json) = measure(TINY);
    let number = |key: &str| json[key].as_f64().unwrap_or_else(|| panic!("{key} in {json}"));
    let median = number("step_seconds_median");
    assert!(median > 0.0 && number("step_seconds_min") <= median);
    assert_eq!(json["step_seconds"].as_array().unwrap().len(), 3);
    // Figures follow from each other: 8 tokens a step, 6 FLOPs for each parameter and token, and the attention's.
    assert!((number("tokens_per_second") * median / 8.0 - 1.0).abs() < 1e-9);
    let weights = number("parameters") - (4 * 8) as f64;
    assert_eq!(number("flops_per_token"), 6.0 * (weights + (8 * 4) as f64));
    assert!((number("flops_per_second") * median / (8.0 * number("flops_per_token")) - 1.0).abs() < 1e-9);
    let percent = 100.0 * number("flops_per_second") / number("peak_flops_per_second");
    assert!((number("percent_of_peak") - percent).abs() < 1e-9);
    assert_eq!(json["machine"]["threads"], 1);
    assert_eq!(json["pytorch"], Value::Null);
    let rows: f64 = json["memory_bytes"].as_object().unwrap().values().map(|bytes| bytes.as_f64().unwrap()).sum();
    assert_eq!(rows, number("memory_total_bytes"));
    assert!(text.contains("tokens/s") && text.contains("1 thread,"), "{text}");
}

#[test]
fn recomputing_changes_no_loss() {
    let (_, kept) = measure(TINY);
    let (_, recomputed) = measure(&format!("{TINY} --recompute"));
    assert_eq!(kept["loss_last"], recomputed["loss_last"]);
    assert_ne!(kept["loss_first"], kept["loss_last"], "the steps change the weights");
}

#[test]
fn kernels_gives_a_row_for_each_operation_that_the_filter_lets_through() {
    let arguments = "kernels --filter B12";
    let names = String::from_utf8(run(&format!("{arguments} --list")).stdout).unwrap();
    assert_eq!(names.lines().count(), 2, "{names}");
    let (text, json) = measure(arguments);
    for (row, name) in json["kernels"].as_array().unwrap().iter().zip(names.lines()) {
        assert_eq!(row["name"], name);
        assert_eq!(row["unit"], "GFLOP/s");
        assert!(row["seconds_median"].as_f64().unwrap() > 0.0);
        assert!(row["percent_of_peak"].as_f64().unwrap() > 0.0);
        assert!(text.contains(name), "{text}");
    }
    assert_eq!(json["kernels"].as_array().unwrap().len(), 2);
    assert!(json["peak_copy_bytes_per_second"].as_f64().unwrap() > 0.0);
}

#[test]
fn what_cannot_be_done_is_refused_in_one_line() {
    refuse(&format!("{TINY} --dtype bf16"), 2, "f32 only");
    refuse("train --heads 5", 2, "does not divide");
    refuse("kernels --filter nothing-like-this", 2, "--list");
    for command in ["kernels", TINY] {
        refuse(&format!("{command} --device cuda"), 1, "use --device cpu");
    }
    refuse("train --batch 100000 --time 100000", 1, "use smaller batches");
    refuse("train --batch 10000 --time 1000 --layers 4 --heads 8 --channels 512", 1, "lower --batch");
    refuse("train --layers 10000 --channels 100000 --heads 1000", 1, "make the model smaller");
    refuse(&format!("{TINY} --json no/such/folder/figures.json"), 1, "no/such/folder/figures.json");
}

#[test]
fn a_python_without_pytorch_is_named() {
    let start = |python: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_engine-bench"));
        command.args(TINY.split(' ')).args(["--compare", "pytorch"]).env("ENGINE_PYTHON", python);
        let output = command.output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        String::from_utf8(output.stderr).unwrap()
    };
    let message = start("no-such-python");
    assert!(message.contains("cannot start no-such-python") && message.contains("ENGINE_PYTHON"), "{message}");
    // Any program that ends without a word of its own is not a Python with PyTorch.
    let message = start("true");
    assert!(message.starts_with("engine-bench: train_step.py failed in true"), "{message}");
}

#[test]
fn bad_usage_exits_with_2_and_help_with_0() {
    for arguments in [
        "",
        "nothing",
        "train --layers 0",
        "train --steps -1",
        "train --device gpu",
        "train --compare numpy",
        "kernels --x",
    ] {
        assert_eq!(run(arguments).status.code(), Some(2), "{arguments}");
    }
    let help = run("--help");
    assert_eq!(help.status.code(), Some(0));
    assert!(String::from_utf8(help.stdout).unwrap().contains("engine-bench kernels --filter attention"));
}
