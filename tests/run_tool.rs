//! `engine-run generate` as a user meets it: what it prints, and what it says when something is wrong.

use serde_json::Value;
use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;
use tempfile::TempDir;

const TEXT: &str = "The quick brown fox jumps over the lazy dog.\nA naïve café — so it goes.\n";

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens/gpt2_odd")
}

/// The folder of a run: a small character model after two updates.
fn trained() -> &'static Path {
    static RUN: OnceLock<TempDir> = OnceLock::new();
    let folder = RUN.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        let text = folder.path().join("text.txt");
        fs::write(&text, TEXT.repeat(20)).unwrap();
        let settings = [
            format!("data.path={}", text.display()),
            "data.tokenizer=char".into(),
            "model.layers=1".into(),
            "model.heads=2".into(),
            "model.channels=16".into(),
            "model.block=16".into(),
            "train.batch=2".into(),
            "train.eval_batches=1".into(),
            "train.sample_every=0".into(),
        ];
        let mut command = Command::new(env!("CARGO_BIN_EXE_engine-train"));
        settings.iter().for_each(|setting| {
            command.args(["--set", setting]);
        });
        command.args(["--steps", "2", "--out"]).arg(folder.path().join("run"));
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        folder
    });
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(|| folder.path().join("run"))
}

fn command(model: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_engine-run"));
    command.arg("generate").arg(model).args(arguments).stdin(Stdio::null());
    command
}

fn run(model: &Path, arguments: &[&str]) -> Output {
    command(model, arguments).output().unwrap()
}

/// What a run that must succeed prints.
#[track_caller]
fn printed(model: &Path, arguments: &[&str]) -> String {
    let output = run(model, arguments);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// The objects that a run with --json prints.
#[track_caller]
fn objects(model: &Path, arguments: &[&str]) -> Vec<Value> {
    let text = printed(model, &[arguments, &["--json"]].concat());
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Demands one line on standard error that holds all of `parts`, this exit code, and no text.
#[track_caller]
fn assert_refused(output: &Output, code: i32, parts: &[&str]) {
    let message = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{message}");
    assert_eq!(message.trim_end().lines().count(), 1, "{message}");
    assert!(message.starts_with("engine-run: "), "{message}");
    for part in parts {
        assert!(message.contains(part), "{part:?} is not in {message}");
    }
    assert!(output.stdout.is_empty());
}

/// A copy of the golden model's folder, to damage.
fn copy_of_golden() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for name in ["config.json", "model.safetensors"] {
        fs::copy(golden().join(name), folder.path().join(name)).unwrap();
    }
    folder
}

#[test]
fn a_run_folder_a_checkpoint_and_the_best_one_continue_the_prompt() {
    let run_folder = trained();
    let newest = run_folder.join("checkpoints/step-00000002");
    for folder in [run_folder.to_owned(), run_folder.join("checkpoints"), newest, run_folder.join("checkpoints/best")] {
        let text = printed(&folder, &["--prompt", "The quick", "--max-tokens", "20"]);
        assert!(text.starts_with("The quick") && text.ends_with('\n'), "{text:?}");
        assert_eq!(text.chars().count(), "The quick".len() + 20 + 1, "one character a token: {text:?}");
    }
}

#[test]
fn the_same_command_gives_the_same_text_for_any_number_of_threads_and_other_seeds_give_others() {
    let generate = |threads: &str, arguments: &[&str]| {
        let mut command =
            command(trained(), &[&["--prompt", "A na\u{ef}ve", "--max-tokens", "40"], arguments].concat());
        let output = command.env("ENGINE_THREADS", threads).output().unwrap();
        assert!(output.status.success());
        String::from_utf8(output.stdout).unwrap()
    };
    let first = generate("2", &["--seed", "5"]);
    assert_eq!(first, generate("2", &["--seed", "5"]));
    assert_eq!(first, generate("1", &["--seed", "5"]));
    assert_ne!(first, generate("2", &["--seed", "6"]));
    let greedy = generate("1", &["--temperature", "0", "--seed", "5"]);
    assert_eq!(greedy, generate("2", &["--temperature", "0", "--seed", "6"]));
    assert_eq!(greedy, generate("2", &["--top-k", "1"]));
    assert_eq!(greedy, generate("2", &["--top-p", "1e-9"]));
}

#[test]
fn a_file_of_prompts_is_decoded_together_and_gives_what_each_gives_alone() {
    let folder = tempfile::tempdir().unwrap();
    let prompts = ["The quick brown fox jumps over", "A", "", "so it goes", "dog.", "lazy", "it", "x", "over", "T"];
    let (lines, jsonl) = (folder.path().join("prompts.txt"), folder.path().join("prompts.jsonl"));
    fs::write(&lines, prompts.join("\r\n") + "\n").unwrap();
    let json: String =
        prompts.iter().map(|prompt| serde_json::json!({"prompt": prompt, "id": 1}).to_string() + "\n").collect();
    fs::write(&jsonl, json).unwrap();
    let greedy = ["--temperature", "0", "--max-tokens", "30"];
    let input = |path: &Path, batch: &str| {
        let path = path.to_str().unwrap();
        objects(trained(), &[&["--input", path, "--batch", batch], greedy.as_slice()].concat())
    };
    let together = input(&lines, "8");
    assert_eq!(together.len(), prompts.len());
    let texts = |objects: &[Value]| -> Vec<Value> { objects.iter().map(|object| object["text"].clone()).collect() };
    assert_eq!(texts(&together), texts(&input(&jsonl, "3")));
    for (number, prompt) in prompts.iter().enumerate() {
        let object = &together[number];
        assert_eq!((&object["prompt"], &object["prompt_number"]), (&Value::from(*prompt), &Value::from(number)));
        let alone = objects(trained(), &[&["--prompt", prompt], greedy.as_slice()].concat());
        assert_eq!(object["text"], alone[0]["text"], "prompt {prompt:?}");
        assert_eq!(object["tokens"], alone[0]["tokens"], "prompt {prompt:?}");
    }
    // As text, in the order of the prompts, whatever ends first.
    let text = printed(trained(), &[&["--input", lines.to_str().unwrap()], greedy.as_slice()].concat());
    let expected: Vec<String> = together
        .iter()
        .map(|o| format!("{}{}\n", o["prompt"].as_str().unwrap(), o["text"].as_str().unwrap()))
        .collect();
    assert_eq!(text, expected.join("---\n"));
}

#[test]
fn a_sequence_that_ends_leaves_the_others_alone() {
    // The golden model's end of text is token 0; high temperature meets it early in some of these texts.
    let arguments = |batch| {
        [
            "--tokenizer",
            "byte",
            "--prompt",
            "0123",
            "--samples",
            "12",
            "--temperature",
            "3",
            "--seed",
            "2",
            "--max-tokens",
            "60",
            "--batch",
            batch,
        ]
    };
    let together = objects(&golden(), &arguments("8"));
    let one_by_one = objects(&golden(), &arguments("1"));
    let ends = together.iter().filter(|object| object["finish"] == "end_of_text").count();
    assert!(ends > 0 && ends < 12, "{ends} of 12 ended by themselves");
    for (sample, (a, b)) in together.iter().zip(&one_by_one).enumerate() {
        assert_eq!(a["sample"], sample);
        assert_eq!((&a["tokens"], &a["finish"]), (&b["tokens"], &b["finish"]), "sample {sample}");
        let tokens = a["tokens"].as_array().unwrap();
        assert!(tokens.iter().all(|token| token != 0), "the end of the text is no part of it");
        assert_eq!(tokens.len() == 60, a["finish"] == "length");
    }
    assert_ne!(together[0]["tokens"], together[1]["tokens"], "samples differ");
}

#[test]
fn an_object_tells_all_about_a_text() {
    let object = &objects(trained(), &["--prompt", "The", "--max-tokens", "9"])[0];
    assert_eq!(object["prompt"], "The");
    assert_eq!((&object["prompt_tokens"], &object["generated_tokens"]), (&Value::from(3), &Value::from(9)));
    assert_eq!(object["tokens"].as_array().unwrap().len(), 9);
    assert_eq!(object["text"].as_str().unwrap().chars().count(), 9);
    assert_eq!(object["finish"], "length");
    for rate in ["tokens_per_second", "prompt_tokens_per_second"] {
        assert!(object[rate].as_f64().unwrap() > 0.0, "{rate}");
    }
}

#[test]
fn a_stop_text_ends_the_text_before_it() {
    let full = objects(trained(), &["--prompt", "The", "--max-tokens", "40", "--temperature", "1"])[0].clone();
    let full = full["text"].as_str().unwrap();
    let stop: String = full.chars().skip(10).take(2).collect();
    let expected = &full[..full.find(&stop).unwrap()];
    let arguments =
        ["--prompt", "The", "--max-tokens", "40", "--temperature", "1", "--stop", "no such text", "--stop", &stop];
    let object = &objects(trained(), &arguments)[0];
    assert_eq!((object["text"].as_str().unwrap(), &object["finish"]), (expected, &Value::from("stop")));
    assert_eq!(printed(trained(), &arguments), format!("The{expected}\n"));
}

#[test]
fn prompts_come_from_standard_input_and_may_be_empty() {
    let piped = |text: &[u8]| {
        let mut child = command(trained(), &["--max-tokens", "5", "--json"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(text).unwrap();
        child.wait_with_output().unwrap()
    };
    for (text, prompt) in [("fox\n", "fox"), ("fox\r\n", "fox"), ("the\nfox\n\n", "the\nfox\n"), ("", "")] {
        let output = piped(text.as_bytes());
        let object: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(object["prompt"], prompt);
        assert_eq!(object["generated_tokens"], 5);
    }
    assert_refused(&piped(b"ab\xFF"), 1, &["standard input", "not UTF-8 at byte 2"]);
    assert_eq!(printed(trained(), &["--prompt", "", "--max-tokens", "5"]).chars().count(), 6);
}

#[test]
fn text_comes_while_it_is_generated_and_a_reader_may_leave_early() {
    let many = ["--prompt", "The", "--max-tokens", "100000000"];
    let mut child = command(trained(), &many).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut first = [0u8; 20];
    child.stdout.as_mut().unwrap().read_exact(&mut first).unwrap();
    assert!(first.starts_with(b"The"));
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), String::from_utf8_lossy(&output.stderr).as_ref()), (Some(0), ""));
}

#[test]
fn a_long_prompt_is_cut_with_a_note_and_a_long_text_goes_past_the_block() {
    let prompt = "The quick brown fox jumps over the lazy dog.";
    let output = run(trained(), &["--prompt", prompt, "--max-tokens", "50"]);
    assert!(output.status.success());
    let note = String::from_utf8_lossy(&output.stderr);
    assert!(note.contains("44 tokens") && note.contains("16") && note.contains("last 8"), "{note}");
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.starts_with(prompt));
    assert_eq!(text.chars().count(), 44 + 50 + 1);
}

#[test]
fn figures_of_speed_come_when_asked_for() {
    let output = run(trained(), &["--prompt", "The", "--max-tokens", "5", "--verbose"]);
    let figures = String::from_utf8_lossy(&output.stderr);
    assert!(figures.contains("prompts 3 tokens at") && figures.contains("generated 5 tokens at"), "{figures}");
    assert!(run(trained(), &["--prompt", "The", "--max-tokens", "5"]).stderr.is_empty());
}

#[test]
fn the_benchmark_compares_with_the_bandwidth_of_the_same_run() {
    let object = &objects(&golden(), &["--benchmark", "--max-tokens", "40", "--batch", "2"])[0];
    for name in ["tokens_per_second", "weight_bytes_per_step", "read_bytes_per_second", "percent_of_bandwidth"] {
        assert!(object[name].as_f64().unwrap() > 0.0, "{name}");
    }
    // 67·28 tied embeddings, two blocks of 12·28² + 13·28, and the last norm.
    assert_eq!(object["weight_bytes_per_step"], 4.0 * (67 * 28 + 2 * (12 * 28 * 28 + 13 * 28) + 2 * 28) as f64);
    let text = printed(&golden(), &["--benchmark", "--max-tokens", "5"]);
    assert!(text.contains("tokens/s") && text.contains("GB/s measured"), "{text}");
}

#[test]
fn help_shows_how() {
    for arguments in [vec!["--help"], vec!["generate", "--help"]] {
        let output = Command::new(env!("CARGO_BIN_EXE_engine-run")).args(arguments).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && text.contains("engine-run generate runs/austen --prompt"), "{text}");
    }
}

#[test]
fn folders_that_are_no_model_are_refused_with_the_reason() {
    let folder = tempfile::tempdir().unwrap();
    let prompt = ["--prompt", "x"];
    assert_refused(&run(&folder.path().join("none"), &prompt), 1, &["none", "no such folder", "give a"]);
    assert_refused(&run(folder.path(), &prompt), 1, &["no config.json", "give a"]);
    assert_refused(&run(&golden().join("model.safetensors"), &prompt), 1, &["model.safetensors is a file", "give a"]);
    fs::create_dir(folder.path().join("checkpoints")).unwrap();
    assert_refused(&run(folder.path(), &prompt), 1, &["this run has no checkpoint yet"]);
    fs::write(folder.path().join("config.json"), r#"{"model_type": "t5"}"#).unwrap();
    assert_refused(&run(folder.path(), &["--prompt", "x", "--tokenizer", "byte"]), 1, &["model_type", "t5"]);
}

#[test]
fn damaged_weights_are_refused_with_the_reason() {
    let folder = copy_of_golden();
    let arguments = ["--prompt", "0", "--tokenizer", "byte"];
    let weights = folder.path().join("model.safetensors");
    let bytes = fs::read(&weights).unwrap();
    fs::write(&weights, &bytes[..bytes.len() - 9]).unwrap();
    assert_refused(&run(folder.path(), &arguments), 1, &["model.safetensors", "damaged"]);
    fs::write(&weights, b"").unwrap();
    assert_refused(&run(folder.path(), &arguments), 1, &["model.safetensors", "damaged"]);
    fs::remove_file(&weights).unwrap();
    assert_refused(&run(folder.path(), &arguments), 1, &["no model.safetensors"]);
    // Weights that are whole, but not numbers.
    let mut bytes = bytes;
    let end = bytes.len();
    bytes[end - 400..].fill(0xFF);
    fs::write(&weights, &bytes).unwrap();
    let output = run(folder.path(), &arguments);
    let message = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{message}");
    assert!(message.contains("not finite") && message.contains("use another checkpoint"), "{message}");
}

#[test]
fn tokenizers_that_are_missing_or_do_not_fit_are_refused_with_the_reason() {
    assert_refused(
        &run(&golden(), &["--prompt", "0"]),
        1,
        &["no tokenizer.json", "--tokenizer FILE", "--tokenizer byte"],
    );
    let beyond = run(&golden(), &["--prompt", "abc", "--tokenizer", "byte"]);
    assert_refused(&beyond, 1, &["token 97 is beyond the model's vocabulary of 67", "--tokenizer"]);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("broken.json");
    assert_refused(&run(&golden(), &["--prompt", "0", "--tokenizer", file.to_str().unwrap()]), 1, &["broken.json"]);
    fs::write(&file, "{").unwrap();
    let broken = run(&golden(), &["--prompt", "0", "--tokenizer", file.to_str().unwrap()]);
    assert_refused(&broken, 1, &["broken.json", "not JSON"]);
    let unknown = run(trained(), &["--prompt", "The §"]);
    assert_refused(&unknown, 1, &["line 1, column 5", "'§' (U+00A7)", "leave it out"]);
}

#[test]
fn files_of_prompts_that_cannot_be_read_are_refused_with_the_place() {
    let folder = tempfile::tempdir().unwrap();
    let refused = |name: &str, contents: Option<&[u8]>, parts: &[&str]| {
        let path = folder.path().join(name);
        contents.inspect(|contents| fs::write(&path, contents).unwrap());
        assert_refused(&run(trained(), &["--input", path.to_str().unwrap()]), 1, parts);
    };
    refused("none.txt", None, &["cannot read", "none.txt"]);
    refused("empty.txt", Some(b""), &["empty.txt", "the file is empty"]);
    refused("binary.txt", Some(b"ab\n\xFF"), &["binary.txt", "not UTF-8 at byte 3"]);
    refused("a.jsonl", Some(b"{\"prompt\": \"fox\"}\nfox\n"), &["a.jsonl, line 2", "not JSON"]);
    refused("b.jsonl", Some(b"{\"text\": \"fox\"}\n"), &["b.jsonl, line 1", "\"prompt\""]);
    refused("c.jsonl", Some(b"[1]\n"), &["c.jsonl, line 1", "\"prompt\""]);
    refused("d.txt", Some("fox\ndog\n§\n".as_bytes()), &["prompt 3", "'§'"]);
}

#[test]
fn bad_usage_is_refused_with_code_2() {
    for arguments in [
        vec!["--temperature", "-1"],
        vec!["--temperature", "nan"],
        vec!["--top-p", "0"],
        vec!["--top-p", "1.5"],
        vec!["--top-k", "-3"],
        vec!["--max-tokens", "0"],
        vec!["--samples", "0"],
        vec!["--batch", "0"],
        vec!["--stop", ""],
        vec!["--device", "tpu"],
        vec!["--prompt", "x", "--input", "y"],
        vec!["--benchmark", "--stop", "x"],
        vec!["--no-such-option"],
    ] {
        let output = run(&golden(), &arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

#[test]
fn a_device_that_is_not_there_is_refused() {
    let output = run(&golden(), &["--prompt", "0", "--tokenizer", "byte", "--device", "cuda:7"]);
    assert_refused(&output, 1, &["device cuda:7", "use --device cpu"]);
    let output = command(&golden(), &["--prompt", "0", "--tokenizer", "byte"]).env("ENGINE_THREADS", "many").output();
    assert_refused(&output.unwrap(), 1, &["ENGINE_THREADS", "many"]);
}

#[test]
fn a_prompt_may_look_like_an_option() {
    let output = command(trained(), &["--prompt", "-", "--max-tokens", "3"]).output().unwrap();
    assert_refused(&output, 1, &["'-'"]);
    assert!(printed(trained(), &["--prompt", "A", "--stop", "--", "--max-tokens", "3"]).starts_with('A'));
}
