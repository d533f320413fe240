//! Every task with examples as a user runs it: it learns, writes its own figures, gives the same bits for any number of
//! threads and through a resume, and refuses data that it cannot use in one line.

mod common;

use common::{Scratch, TRAIN, checkpoint, metrics, names, resume, run, state, succeed};
use engine::data::Tokenizer;
use serde_json::Value;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

const WORDS: [&str; 12] =
    ["good", "bad", "film", "the", "was", "very", "plot", "dull", "bright", "actor", "story", "slow"];

/// A WordPiece tokenizer of these words.
fn tokenizer(scratch: &Scratch) -> PathBuf {
    let special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"];
    let vocabulary: serde_json::Map<String, Value> =
        special.iter().chain(&WORDS).zip(0..).map(|(word, id)| ((*word).to_owned(), id.into())).collect();
    let added: Vec<Value> = special
        .iter()
        .zip(0..)
        .map(|(token, id)| {
            serde_json::json!({"id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": true})
        })
        .collect();
    let json = serde_json::json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": null,
        "pre_tokenizer": {"type": "Whitespace"}, "post_processor": null, "decoder": {"type": "WordPiece", "prefix": "##",
        "cleanup": true}, "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
        "max_input_chars_per_word": 100, "vocab": vocabulary},
    });
    let path = scratch.path("tokenizer.json");
    fs::write(&path, json.to_string()).unwrap();
    path
}

/// Repeatable choices.
struct Choices(u64);

impl Choices {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % limit
    }

    /// A text of 3 to 9 words.
    fn text(&mut self) -> Vec<&'static str> {
        (0..3 + self.below(7)).map(|_| WORDS[self.below(WORDS.len())]).collect()
    }
}

/// Rows for every task: the class is whether the text says "good".
fn rows(seed: u64, count: usize) -> String {
    let mut choices = Choices(seed);
    let mut table = String::from("text\tlabel\tlabels\tvalue\n");
    for _ in 0..count {
        let text = choices.text();
        let is_good = text.contains(&"good");
        let labels: Vec<&str> = ["film", "plot"].into_iter().filter(|word| text.contains(word)).collect();
        let label = if is_good { "good" } else { "other" };
        let labels = if labels.is_empty() { "neither".to_owned() } else { labels.join(",") };
        writeln!(table, "{}\t{label}\t{labels}\t{}", text.join(" "), text.len()).unwrap();
    }
    table
}

/// Questions whose answer is the word after "the".
fn questions(seed: u64, count: usize) -> String {
    let mut choices = Choices(seed);
    let mut lines = String::new();
    for id in 0..count {
        let before = choices.text().join(" ").replace("the", "was");
        let answer = WORDS[choices.below(3)];
        let context = format!("{before} the {answer} {}", choices.text().join(" ").replace("the", "was"));
        let start = before.len() + " the ".len();
        let object = serde_json::json!({"id": id.to_string(), "question": "the", "context": context,
            "answers": [answer], "answer_start": [start]});
        writeln!(lines, "{object}").unwrap();
    }
    lines
}

/// A run of a tiny encoder on `train` and `val`.
fn encoder(scratch: &Scratch, out: &str, sets: &[&str]) -> Command {
    const TINY: [&str; 25] = [
        "model.architecture=encoder",
        "model.layers=2",
        "model.heads=2",
        "model.channels=16",
        "model.block=32",
        "model.norm_place=post",
        "model.convolution_taps=0",
        "model.activation=gelu",
        "model.embedding_norm=true",
        "model.token_types=2",
        "model.head_transform=true",
        "model.dropout=0.1",
        "data.max_tokens=32",
        "train.batch=4",
        "train.steps=12",
        "train.eval_every=6",
        "train.checkpoint_every=6",
        "train.keep_last=9",
        "train.sample_every=0",
        "train.log_every=1",
        "optimizer.learning_rate=1e-2",
        "schedule.kind=linear",
        "schedule.warmup=2",
        "schedule.decay_steps=40",
        "device.threads=2",
    ];
    let mut command = Command::new(TRAIN);
    command.arg("--preset").arg("masked-lm").arg("--out").arg(scratch.path(out)).stdin(Stdio::null());
    let path = |key: &str, name: &str| format!("{key}={}", scratch.path(name).display());
    let paths =
        [path("data.path", "train.tsv"), path("data.val_path", "val.tsv"), path("data.tokenizer", "tokenizer.json")];
    let given = paths.iter().map(String::as_str).chain(TINY).chain(sets.iter().copied());
    given.for_each(|set| {
        command.arg("--set").arg(set);
    });
    command
}

fn scratch() -> Scratch {
    let scratch = Scratch::new();
    tokenizer(&scratch);
    fs::write(scratch.path("train.tsv"), rows(1, 120)).unwrap();
    // The last batch is not full.
    fs::write(scratch.path("val.tsv"), rows(2, 43)).unwrap();
    fs::write(scratch.path("train.jsonl"), questions(3, 60)).unwrap();
    fs::write(scratch.path("val.jsonl"), questions(4, 20)).unwrap();
    scratch
}

/// Classes, and beside them hidden tokens of the same texts.
fn mixed(scratch: &Scratch) -> Vec<String> {
    let path = scratch.path("train.tsv");
    let mix = format!("train.mix=[{{ task = \"masked-lm\", path = \"{}\", weight = 0.5, batch = 2 }}]", path.display());
    let csm = "train.losses={ masked-lm = 1.0, csm = 0.3 }".into();
    vec!["train.task=classification".into(), "train.accumulate=2".into(), csm, mix]
}

/// Each task: its name, what sets it up, and a figure of its own.
fn tasks(scratch: &Scratch) -> Vec<(&'static str, Vec<String>, Option<&'static str>)> {
    let sets = |sets: &[&str]| sets.iter().map(|&set| set.to_owned()).collect::<Vec<String>>();
    let path = |key: &str, name: &str| format!("{key}={}", scratch.path(name).display());
    let mut answers = sets(&["train.task=question-answering", "data.stride=8"]);
    answers.extend([path("data.path", "train.jsonl"), path("data.val_path", "val.jsonl")]);
    let translation = |architecture: &str| {
        let architecture = format!("model.architecture={architecture}");
        let pairs = [
            "train.task=translation",
            "data.text_pair=labels",
            "model.token_types=0",
            "data.layout=padded",
            "train.accumulate=2",
        ];
        let mut all = sets(&pairs);
        all.extend([architecture, "train.eval_translations=5".to_owned(), "train.label_smoothing=0.1".to_owned()]);
        all
    };
    vec![
        ("translation", translation("encoder-decoder"), Some("chrf")),
        ("translation by a decoder", translation("decoder"), Some("bleu")),
        ("masked-lm", sets(&["train.task=masked-lm"]), None),
        (
            "csm",
            sets(&["train.task=masked-lm", "train.losses={ masked-lm = 1.0, csm = 0.3 }", "model.csm_taps=5"]),
            None,
        ),
        ("convolutions", sets(&["train.task=masked-lm", "model.convolution_taps=3", "train.mask_unit=word"]), None),
        ("classes", sets(&["train.task=classification", "model.pooler=true"]), Some("accuracy")),
        ("padded", sets(&["train.task=classification", "data.layout=padded", "train.accumulate=2"]), Some("macro_f1")),
        ("balanced", sets(&["train.task=classification", "train.class_weights=balanced"]), Some("accuracy")),
        ("lora", sets(&["train.task=classification", "lora.rank=2", "lora.dropout=0.1"]), Some("accuracy")),
        (
            "frozen",
            sets(&["train.task=classification", "model.frozen_layers=1", "optimizer.layer_decay=0.8"]),
            Some("f1"),
        ),
        ("labels", sets(&["train.task=multi-label", "data.label=labels"]), Some("micro_f1")),
        ("numbers", sets(&["train.task=regression", "data.label=value", "model.pooling=mean"]), Some("pearson")),
        ("answers", answers, Some("exact_match")),
        ("mixed", mixed(scratch), Some("accuracy")),
    ]
}

#[test]
fn every_task_gives_the_same_bits_for_any_threads_and_through_a_resume() {
    let scratch = scratch();
    for (name, sets, figure) in tasks(&scratch) {
        let with = |more: &[&'static str]| -> Vec<String> {
            sets.iter().cloned().chain(more.iter().map(|&set| set.to_owned())).collect()
        };
        let start = |out: &str, more: &[&'static str]| {
            let sets = with(more);
            let sets: Vec<&str> = sets.iter().map(String::as_str).collect();
            succeed(encoder(&scratch, &format!("{name}-{out}"), &sets));
            scratch.path(&format!("{name}-{out}"))
        };
        let whole = start("whole", &["device.threads=1"]);
        let records = metrics(&whole);
        assert_eq!(records.len(), 12 + 2, "{name}: an object for each update and evaluation");
        if let Some(figure) = figure {
            let last = records.last().unwrap();
            assert!(last[figure].is_number(), "{name}: {figure} in {last}");
        }
        let threads = start("threads", &["device.threads=3"]);
        assert!(state(&whole, 12) == state(&threads, 12), "{name}: one thread and three");
        let half = start("half", &["train.steps=6"]);
        succeed(resume(&half, &["train.steps=12"]));
        assert!(state(&whole, 12) == state(&half, 12), "{name}: straight and resumed");
        assert_eq!(records, metrics(&half), "{name}: records");
        let predictions = |run: &Path| fs::read_to_string(run.join("predictions.jsonl")).ok();
        assert_eq!(predictions(&whole).is_some(), figure.is_some(), "{name}: predictions where there are labels");
        assert_eq!(predictions(&whole), predictions(&threads), "{name}: predictions");
        assert_eq!(predictions(&whole), predictions(&half), "{name}: predictions of a resumed run");
        let config = fs::read(checkpoint(&whole, 12).join("config.json")).unwrap();
        let config: Value = serde_json::from_slice(&config).unwrap();
        assert_eq!(config["engine_texts"]["stride"] == 8, name == "answers", "{name}: {config}");
    }
}

#[test]
fn classes_that_a_word_decides_are_learned() {
    let scratch = scratch();
    let sets = ["train.task=classification", "train.epochs=20", "model.dropout=0", "schedule.decay_steps=400"];
    let outcome = succeed(encoder(&scratch, "run", &sets));
    let last = metrics(&scratch.path("run")).pop().unwrap();
    assert!(last["accuracy"].as_f64().unwrap() > 0.9, "{last}\n{}", outcome.stderr);
    assert!(outcome.stderr.contains("is \\ called"), "the table of the last evaluation: {}", outcome.stderr);
    let report = fs::read_to_string(scratch.path("run/report.html")).unwrap();
    assert!(report.contains("Last evaluation") && report.contains("good"));
    // The best one by accuracy is kept.
    assert!(names(&scratch.path("run/checkpoints")).contains(&"best".to_owned()));
}

#[test]
fn texts_are_cut_as_in_training_where_a_checkpoint_is_used() {
    let scratch = scratch();
    let sets = ["train.task=classification", "data.max_tokens=6", "data.keep=both", "train.eval_every=12"];
    succeed(encoder(&scratch, "run", &sets));
    let probabilities = |file: &Path| -> Vec<f64> {
        let of_good = |line: &Value| line["probabilities"]["good"].as_f64().unwrap();
        common::lines(file).iter().map(of_good).collect()
    };
    let trained = probabilities(&scratch.path("run/predictions.jsonl"));
    let distance = |options: &[&str]| {
        let mut evaluate = Command::new(env!("CARGO_BIN_EXE_engine-run"));
        evaluate.arg("evaluate").arg(checkpoint(&scratch.path("run"), 12)).arg("--data").arg(scratch.path("val.tsv"));
        evaluate.arg("--predictions").arg(scratch.path("found.jsonl")).args(options);
        succeed(evaluate);
        let found = probabilities(&scratch.path("found.jsonl"));
        assert_eq!(found.len(), trained.len());
        found.iter().zip(&trained).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
    };
    // Batches are others, and with them the order of sums.
    assert!(distance(&[]) < 1e-6);
    assert!(distance(&["--keep", "start"]) > 1e-5);
    assert!(distance(&["--max-tokens", "32"]) > 1e-5);
}

#[test]
fn tasks_that_are_learned_together_share_the_trunk_and_keep_their_own_losses() {
    let scratch = scratch();
    let sets = mixed(&scratch);
    let sets: Vec<&str> = sets.iter().map(String::as_str).collect();
    let outcome =
        succeed(encoder(&scratch, "run", &[&sets[..], &["train.steps=60", "schedule.decay_steps=60"]].concat()));
    let records = metrics(&scratch.path("run"));
    let updates: Vec<_> = records.iter().filter(|record| record["loss"].is_number()).collect();
    for loss in ["masked-lm", "csm"] {
        let at = |update: usize| updates[update]["beside"][loss].as_f64().unwrap();
        // From the logarithm of the vocabulary to nearly the entropy of words that are drawn at random.
        assert!(at(59) < 0.9 * at(0), "{loss}: {} and {}\n{}", at(0), at(59), outcome.stderr);
    }
    for (mix, part) in [
        ("[{ task = \"classification\", path = \"a\" }]", "would share its head"),
        ("[{ task = \"translation\", path = \"a\" }]", "cannot be learned together"),
        ("[{ task = \"masked-lm\", path = \"a\", weight = 0 }]", "weight"),
        ("[{ task = \"masked-lm\" }]", "path"),
        ("7", "a list of tables"),
    ] {
        let mix = format!("train.mix={mix}");
        let refused = run(encoder(&scratch, "refused", &["train.task=classification", &mix]));
        assert_eq!(refused.code, 2, "{}", refused.stderr);
        assert!(refused.stderr.contains(part) && refused.stderr.lines().count() == 1, "{}", refused.stderr);
    }
}

#[test]
fn a_run_without_improvement_stops_early() {
    let scratch = scratch();
    let sets = [
        "train.task=classification",
        "train.steps=400",
        "train.eval_every=1",
        "train.early_stop=3",
        "optimizer.learning_rate=1e-9",
    ];
    succeed(encoder(&scratch, "run", &sets));
    let updates = metrics(&scratch.path("run")).iter().filter(|record| record.get("loss").is_some()).count();
    assert!(updates < 20, "{updates} updates");
}

#[test]
fn a_pretrained_trunk_is_fine_tuned_with_a_new_head() {
    let scratch = scratch();
    succeed(encoder(&scratch, "pretrained", &["train.losses={ masked-lm = 1.0, csm = 0.3 }"]));
    let initial = format!("model.initial={}", scratch.path("pretrained").display());
    let mut command = Command::new(TRAIN);
    command.arg("--preset").arg("imdb").arg("--out").arg(scratch.path("tuned"));
    for set in [
        initial.as_str(),
        &format!("data.path={}", scratch.path("train.tsv").display()),
        &format!("data.val_path={}", scratch.path("val.tsv").display()),
        "model.block=32",
        "data.max_tokens=32",
        "train.batch=4",
        "train.epochs=1",
    ] {
        command.arg("--set").arg(set);
    }
    succeed(command);
    let newest = names(&scratch.path("tuned/checkpoints")).into_iter().rfind(|name| name.starts_with("step-")).unwrap();
    let config = fs::read_to_string(scratch.path("tuned/checkpoints").join(newest).join("config.json")).unwrap();
    let config: Value = serde_json::from_str(&config).unwrap();
    assert_eq!(config["architectures"][0], "BertForSequenceClassification");
    assert_eq!(config["id2label"]["0"], "good");
    assert_eq!((&config["hidden_size"], &config["num_hidden_layers"]), (&16.into(), &2.into()));
}

#[test]
fn adapters_are_merged_in_what_a_checkpoint_shows() {
    let scratch = scratch();
    succeed(encoder(&scratch, "run", &["train.task=classification", "lora.rank=2"]));
    let folder = checkpoint(&scratch.path("run"), 12);
    let (model, parameters) = engine::model::Transformer::load(&common::cpu(), &folder).unwrap();
    assert_eq!(model.adapted().count(), 0, "the folder is a model like any other");
    let frozen = engine::model::weights::WeightFile::open(&folder.join("lora.safetensors")).unwrap();
    let name = "blocks.0.ffn.up.weight";
    let merged = parameters.values(parameters.find(name).unwrap()).unwrap().into_owned();
    assert!(frozen.get(name).unwrap().to_f32().unwrap() != merged, "adapters have learned");
}

#[test]
fn a_correlation_that_is_not_defined_is_zero() {
    let scratch = scratch();
    let all = fs::read_to_string(scratch.path("val.tsv")).unwrap();
    fs::write(scratch.path("val.tsv"), all.lines().take(2).collect::<Vec<_>>().join("\n") + "\n").unwrap();
    let sets = ["train.task=regression", "data.label=value", "train.steps=4", "train.eval_every=2"];
    succeed(encoder(&scratch, "run", &sets));
    let last = metrics(&scratch.path("run")).pop().unwrap();
    assert_eq!((last["pearson"].as_f64(), last["spearman"].as_f64()), (Some(0.0), Some(0.0)), "{last}");
    succeed(resume(&scratch.path("run"), &["train.steps=6"]));
}

#[track_caller]
fn refused(scratch: &Scratch, sets: &[&str], parts: &[&str]) {
    let outcome = run(encoder(scratch, "refused", sets));
    assert!(outcome.code == 1 || outcome.code == 2, "exit code {}\n{}", outcome.code, outcome.stderr);
    let error = outcome.stderr.trim_end();
    assert!(!error.contains('\n') && error.starts_with("engine-train: "), "not one line: {error}");
    assert!(parts.iter().all(|part| error.contains(part)), "{error:?} lacks one of {parts:?}");
    assert!(!scratch.path("refused").exists(), "nothing is left behind");
}

#[test]
fn bad_examples_are_refused_with_file_and_row() {
    let scratch = scratch();
    let write = |name: &str, text: &str| {
        fs::write(scratch.path(name), text).unwrap();
        format!("data.path={}", scratch.path(name).display())
    };
    let classes = "train.task=classification";
    let missing = write("missing.tsv", "words\tlabel\ngood film\tgood\n");
    refused(&scratch, &[classes, &missing], &["missing.tsv", "text", "words"]);
    let empty = write("empty.tsv", "text\tlabel\ngood film\tgood\nbad film\t\n");
    refused(&scratch, &[classes, &empty], &["empty.tsv", "row 2"]);
    let no_tokens = write("tokens.tsv", "text\tlabel\ngood film\tgood\n \tother\n");
    refused(&scratch, &[classes, &no_tokens], &["tokens.tsv", "row 2"]);
    let unseen = write("unseen.tsv", "text\tlabel\ngood film\tgood\nbad film\tother\n");
    fs::write(scratch.path("val.tsv"), "text\tlabel\ngood film\tterrible\n").unwrap();
    refused(&scratch, &[classes, &unseen], &["val.tsv", "row 1", "terrible"]);
    let broken = write("broken.tsv.gz", "this is no gzip");
    refused(&scratch, &[classes, &broken], &["broken.tsv.gz"]);
    let answers = write(
        "answers.jsonl",
        "{\"id\": \"1\", \"question\": \"the\", \"context\": \"the film\", \"answers\": [\"plot\"], \"answer_start\": [4]}\n",
    );
    refused(&scratch, &["train.task=question-answering", &answers], &["answers.jsonl", "row 1"]);
    fs::write(scratch.path("val.tsv"), rows(2, 40)).unwrap();
    let vocabulary = write("small.tsv", &rows(5, 20));
    refused(&scratch, &[classes, &vocabulary, "model.vocabulary=7"], &["the tokenizer has", "and the model 7"]);
    let labels = ["train.task=multi-label", "data.label=labels", "train.label_smoothing=0.1"];
    refused(&scratch, &labels, &["train.label_smoothing is 0.1", "multi-label"]);
    refused(&scratch, &["train.task=masked-lm", "train.class_weights=balanced"], &["train.class_weights", "masked-lm"]);
    assert!(Tokenizer::load(scratch.path("tokenizer.json")).is_ok());
}

#[test]
fn a_network_that_cannot_learn_the_task_is_refused() {
    let scratch = scratch();
    refused(&scratch, &["model.architecture=decoder"], &["model.architecture", "decoder", "masked-lm", "encoder"]);
    refused(&scratch, &["model.csm_taps=4"], &["model.csm_taps is 4", "odd"]);
    let gone = Path::new("/nowhere/at/all");
    refused(&scratch, &[&format!("data.path={}", gone.display())], &["/nowhere/at/all"]);
}
