//! `engine-run` on encoders: vectors, masks, classes, answers, and the figures of labelled data; on the tiny models of
//! `tests/goldens`, with a tokenizer of a few words.

mod common;

use common::{copy, succeed};
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

const WORDS: [&str; 18] = [
    "the", "cat", "dog", "sat", "ran", "home", "a", "who", "it", "was", "good", "bad", "##s", "##ly", "猫", "狗", ".",
    "?",
];

/// A copy of a golden model with a tokenizer.
struct Model {
    folder: tempfile::TempDir,
}

impl Model {
    fn new(name: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        copy(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens").join(name), folder.path());
        fs::write(folder.path().join("tokenizer.json"), tokenizer(&WORDS).to_string()).unwrap();
        Self { folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn file(&self, name: &str, text: &str) -> String {
        fs::write(self.path(name), text).unwrap();
        self.path(name).to_str().unwrap().to_owned()
    }

    fn command(&self, subcommand: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_engine-run"));
        command.arg(subcommand).arg(self.folder.path()).args(arguments).stdin(Stdio::null());
        command
    }

    fn text(&self, subcommand: &str, arguments: &[&str]) -> String {
        succeed(self.command(subcommand, arguments)).stdout
    }

    fn objects(&self, subcommand: &str, arguments: &[&str]) -> Vec<Value> {
        let text = self.text(subcommand, &[arguments, &["--json"]].concat());
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    #[track_caller]
    fn refuses(&self, subcommand: &str, arguments: &[&str], parts: &[&str]) {
        let Output { status, stderr, .. } = self.command(subcommand, arguments).output().unwrap();
        let message = String::from_utf8(stderr).unwrap();
        assert_eq!(status.code(), Some(1), "{message}");
        assert!(message.starts_with("engine-run: ") && message.trim_end().lines().count() == 1, "{message}");
        for part in parts {
            assert!(message.contains(part), "{message:?} does not say {part:?}");
        }
    }
}

fn tokenizer(words: &[&str]) -> Value {
    let special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"];
    let added: Vec<Value> = special
        .iter()
        .enumerate()
        .map(|(id, content)| {
            json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": true})
        })
        .collect();
    let all = special.iter().chain(words).enumerate();
    let vocabulary: serde_json::Map<String, Value> = all.map(|(id, word)| (word.to_string(), json!(id))).collect();
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "post_processor": null,
        "normalizer": {"type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true,
            "strip_accents": null, "lowercase": true},
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": true},
        "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100, "vocab": vocabulary},
    })
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|number| number.as_f64().unwrap()).collect()
}

#[track_caller]
fn assert_close(a: &[f64], b: &[f64]) {
    assert_eq!(a.len(), b.len());
    let worst = a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    assert!(worst < 1e-5, "{worst:.2e}: {a:?} {b:?}");
}

const TEXTS: &str = "The cat sat.\nDogs ran home. Who was it?\n猫\na dog was good, a cat was bad\n";

#[test]
fn a_text_has_one_vector_whatever_lies_beside_it() {
    let model = Model::new("bert_cls");
    let file = model.file("texts.txt", TEXTS);
    for pooling in ["mean", "first", "pooler"] {
        let packed = model.objects("embed", &["--input", &file, "--pooling", pooling]);
        let padded = model.objects("embed", &["--input", &file, "--pooling", pooling, "--padded", "--batch", "1"]);
        assert_eq!(packed.len(), 4);
        for ((object, other), text) in packed.iter().zip(&padded).zip(TEXTS.lines()) {
            assert_eq!(object["text"], text);
            assert_close(&numbers(&object["vector"]), &numbers(&other["vector"]));
            let alone = &model.objects("embed", &[text, "--pooling", pooling])[0];
            assert_close(&numbers(&object["vector"]), &numbers(&alone["vector"]));
        }
        assert_ne!(packed[0]["vector"], packed[1]["vector"]);
    }
    let unit = model.objects("embed", &["the cat", "--normalize"]);
    let square: f64 = numbers(&unit[0]["vector"]).iter().map(|value| value * value).sum();
    assert!((square - 1.0).abs() < 1e-5);
}

#[test]
fn vectors_go_into_an_array_and_are_compared() {
    let model = Model::new("bert_cls");
    let (file, out) = (model.file("texts.txt", TEXTS), model.path("vectors.npy"));
    let summary = &model.objects("embed", &["--input", &file, "--out", out.to_str().unwrap()])[0];
    assert_eq!((&summary["texts"], &summary["channels"]), (&json!(4), &json!(10)));
    let array = engine::profile::npy::read(&out).unwrap();
    assert_eq!(array.shape, [4, 10]);
    let found: Vec<f64> =
        array.data.chunks_exact(4).map(|b| f64::from(f32::from_le_bytes(b.try_into().unwrap()))).collect();
    let vectors = model.objects("embed", &["--input", &file]);
    assert_close(&found, &vectors.iter().flat_map(|object| numbers(&object["vector"])).collect::<Vec<f64>>());

    let rows = model.objects("embed", &["--input", &file, "--similarity"]);
    for (i, row) in rows.iter().enumerate() {
        let row = numbers(&row["similarity"]);
        assert!((row[i] - 1.0).abs() < 1e-6);
        let other = numbers(&rows[(i + 1) % 4]["similarity"]);
        assert!((row[(i + 1) % 4] - other[i]).abs() < 1e-6, "as similar one way as the other");
    }
    let table = model.text("embed", &["the cat", "the cat", "--similarity"]);
    assert_eq!(table, "1.0000\t1.0000\tthe cat\n1.0000\t1.0000\tthe cat\n");
}

#[test]
fn masks_are_filled_with_the_likeliest_tokens() {
    let model = Model::new("bert_mlm");
    let text = "The [MASK] sat [MASK].";
    let object = &model.objects("fill", &[text, "--top-k", "3"])[0];
    assert_eq!(object["text"], text);
    let masks = object["masks"].as_array().unwrap();
    assert_eq!(masks.iter().map(|mask| mask["position"].as_u64().unwrap()).collect::<Vec<_>>(), [2, 4]);
    for mask in masks {
        let found: Vec<f64> = mask["predictions"]
            .as_array()
            .unwrap()
            .iter()
            .map(|guess| guess["probability"].as_f64().unwrap())
            .collect();
        assert_eq!(found.len(), 3);
        assert!(found.is_sorted_by(|a, b| a >= b) && found.iter().sum::<f64>() <= 1.0 + 1e-9);
        // Rows of the model's table that are no token of the tokenizer are no guess.
        assert!(mask["predictions"].as_array().unwrap().iter().all(|guess| guess["id"].as_u64().unwrap() < 23));
    }
    let filled = object["filled"].as_str().unwrap();
    assert!(filled.contains("sat") && !filled.contains("[MASK]"), "{filled}");
    assert_eq!(model.text("fill", &[text]).lines().count(), 3);
    model.refuses("fill", &["The cat."], &["text 1", "no [MASK]"]);
    model.refuses("generate", &["--prompt", "The cat"], &["an encoder writes no text", "use fill"]);
    Model::new("bert_cls").refuses("fill", &[text], &["no head that predicts tokens"]);
}

#[test]
fn classes_come_by_name_with_their_probabilities() {
    let model = Model::new("bert_cls");
    let object = &model.objects("classify", &["The cat sat."])[0];
    let probabilities = object["probabilities"].as_object().unwrap();
    assert!(probabilities.keys().all(|name| ["bad", "fair", "good"].contains(&name.as_str())));
    let sum: f64 = probabilities.values().map(|value| value.as_f64().unwrap()).sum();
    assert!((sum - 1.0).abs() < 1e-9 && probabilities.len() == 3);
    let label = object["label"].as_str().unwrap();
    assert_eq!(object["probability"], probabilities[label]);
    assert!(model.text("classify", &["The cat sat."]).starts_with(&format!("{label}\t0.")));

    // A second text is another text, wherever it comes from.
    let pair = &model.objects("classify", &["The cat sat.", "--pair", "Who?"])[0];
    assert_ne!(pair["probabilities"], object["probabilities"]);
    let table = model.file("pairs.tsv", "a\tb\nThe cat sat.\tWho?\n");
    let arguments = ["--input", &table, "--text-column", "a", "--pair-column", "b"];
    assert_eq!(model.objects("classify", &arguments)[0], *pair);
    let labels = &model.objects("classify", &["The cat sat.", "--multi-label", "--threshold", "0"])[0];
    assert_eq!(labels["labels"].as_array().unwrap().len(), 3);
}

#[test]
fn answers_are_parts_of_their_context_also_of_a_long_one() {
    let model = Model::new("bert_qa");
    let context = "The cat sat. 猫 ran home. Dogs ran. It was a good dog. A cat was bad.";
    let questions = json!({"id": "q7", "question": "Who ran home?", "context": context}).to_string() + "\n";
    let file = model.file("questions.jsonl", &questions);
    for more in [&[][..], &["--max-tokens", "12", "--stride", "2"]] {
        let arguments = [&["--input", &file, "--top-k", "2"], more].concat();
        let object = &model.objects("answer", &arguments)[0];
        let place = |name: &str| object[name].as_u64().unwrap() as usize;
        let characters: Vec<char> = context.chars().collect();
        let part: String = characters[place("start")..place("end")].iter().collect();
        assert_eq!((&object["answer"], &object["id"]), (&json!(part), &json!("q7")));
        assert!(object["candidates"].as_array().unwrap().len() == 2);
        let probability = object["probability"].as_f64().unwrap() + object["no_answer_probability"].as_f64().unwrap();
        assert!(probability > 0.0 && probability <= 1.0 + 1e-6);
    }
    let asked = |more: &[&str]| model.text("answer", &[&["--input", &file, "--top-k", "9", "--json"], more].concat());
    let windows = ["2", "0"].map(|stride| asked(&["--max-tokens", "12", "--stride", stride]));
    assert_ne!(windows[0], windows[1]);
    // A folder that says how its contexts were cut.
    let mut config: Value = serde_json::from_slice(&fs::read(model.path("config.json")).unwrap()).unwrap();
    config["engine_texts"] = json!({"max_tokens": 12, "keep": "start", "stride": 2});
    model.file("config.json", &config.to_string());
    assert_eq!(asked(&[]), windows[0]);
    assert_eq!(asked(&["--stride", "0"]), windows[1]);

    let text = model.text("answer", &["--question", "Who?", "--context", "The dog."]);
    assert_eq!(text.lines().count(), 1);
    let nothing = &model.objects("answer", &["--question", "Who?", "--context", "The dog.", "--no-answer"])[0];
    let margin = nothing["candidates"][0]["score"].as_f64().unwrap();
    assert_eq!(nothing["answer"] == "", margin <= 0.0, "{nothing}");
}

#[test]
fn the_figures_of_labelled_data_are_those_of_the_predictions() {
    let model = Model::new("bert_cls");
    let rows = "label\ttext\ngood\tThe cat sat.\nbad\tDogs ran home.\nfair\t猫\ngood\ta dog was good\n";
    let file = model.file("dev.tsv", rows);
    let figures = &model.objects("evaluate", &["--data", &file])[0];
    let predictions = model.objects("classify", &["--input", &file]);
    let truths = rows.lines().skip(1).map(|line| line.split('\t').next().unwrap());
    let right = truths.zip(&predictions).filter(|(truth, object)| object["label"] == *truth).count();
    assert_eq!(figures["accuracy"].as_f64().unwrap(), right as f64 / 4.0, "{figures}");
    assert!(model.text("evaluate", &["--data", &file]).contains("accuracy"));

    let masked = Model::new("bert_mlm");
    let file = masked.file("held-out.txt", TEXTS);
    let figures = &masked.objects("evaluate", &["--data", &file])[0];
    let (loss, perplexity) = (figures["loss"].as_f64().unwrap(), figures["perplexity"].as_f64().unwrap());
    assert!((loss.exp() - perplexity).abs() < 1e-9 * perplexity && loss > 0.0);
    assert_eq!(figures, &masked.objects("evaluate", &["--data", &file, "--padded"])[0].clone(), "the same masks");

    let questions = Model::new("bert_qa");
    let row = json!({"question": "Who sat?", "context": "The cat sat.", "answers": ["cat"], "answer_start": [4]});
    let file = questions.file("dev.jsonl", &format!("{row}\n"));
    let figures = &questions.objects("evaluate", &["--data", &file])[0];
    let answer = &questions.objects("answer", &["--input", &file])[0];
    assert_eq!(figures["exact_match"] == 100.0, answer["answer"] == "cat", "{figures} {answer}");
    assert_eq!(figures["questions"], 1);
}

#[test]
fn what_cannot_be_read_is_refused_in_one_line() {
    let model = Model::new("bert_cls");
    model.refuses("classify", &["The cat", ""], &["text 2", "no tokens"]);
    model.refuses("classify", &["a", "b", "--pair", "c"], &["2 texts, but 1 second"]);
    model.refuses("embed", &["--input", "nowhere.txt"], &["nowhere.txt"]);
    let table = model.file("rows.tsv", "label\treview\ngood\tThe cat\n");
    model.refuses("classify", &["--input", &table], &["rows.tsv", "text", "review"]);
    let unseen = model.file("unseen.tsv", "label\ttext\nsuperb\tThe cat\n");
    model.refuses("evaluate", &["--data", &unseen], &["unseen.tsv", "superb"]);
    model.refuses("answer", &["--question", "Who?", "--context", "The cat."], &["no head that finds answers"]);
    model.refuses("embed", &["a", "--max-tokens", "3"], &["--max-tokens 3"]);
    let bare = Model::new("bert_mlm");
    bare.refuses("embed", &["a", "--pooling", "pooler"], &["no pooler", "mean"]);
    bare.refuses("classify", &["a"], &["no classes"]);

    let words: Vec<String> = (0..40).map(|number| format!("w{number}")).collect();
    let more: Vec<&str> = words.iter().map(String::as_str).collect();
    fs::write(model.path("tokenizer.json"), tokenizer(&more).to_string()).unwrap();
    model.refuses("classify", &["w1"], &["the tokenizer has 45 tokens, the model 23"]);
}

#[test]
fn folders_with_other_tensors_than_their_configuration_are_refused() {
    let (cls, qa) = (Model::new("bert_cls"), Model::new("bert_qa"));
    // A class whose head is not in the file, and a file with a head that the class has not.
    fs::copy(qa.path("model.safetensors"), cls.path("model.safetensors")).unwrap();
    cls.refuses("embed", &["a"], &["bert.pooler.dense.weight", "is missing"]);
    let model = Model::new("bert_cls");
    let config = fs::read_to_string(model.path("config.json")).unwrap();
    model.file("config.json", &config.replace("\"hidden_size\": 10", "\"hidden_size\": 12"));
    model.refuses("embed", &["a"], &["has shape", "but the model expects"]);
    model.file("config.json", &config.replace("BertForSequenceClassification", "BertModel"));
    model.refuses("embed", &["a"], &["classifier", "is no part of the model"]);
}

#[test]
fn texts_come_from_standard_input_and_help_shows_how() {
    let model = Model::new("bert_cls");
    let file = fs::File::open(model.file("texts.txt", TEXTS)).unwrap();
    let output = model.command("classify", &["--json"]).stdin(file).output().unwrap();
    assert_eq!(String::from_utf8(output.stdout).unwrap().lines().count(), 4);
    for subcommand in ["embed", "fill", "classify", "answer", "evaluate"] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_engine-run"));
        command.args([subcommand, "--help"]);
        let help = succeed(command).stdout;
        assert!(help.contains("Examples:") && help.contains(&format!("engine-run {subcommand} ")), "{help}");
    }
    let bad = model.command("embed", &["a", "--pooling", "max"]).output().unwrap();
    assert_eq!(bad.status.code(), Some(2));
}
