//! The contract of `engine-train`: what it writes where, what it prints, and how it ends.

mod common;

use common::{Outcome, Scratch, TRAIN, checkpoint, lines, metrics, names, resume, run, snapshot, succeed};
use engine::data::Tokenizer;
use engine::model::Transformer;
use engine::train::config::{Config, Source};
use serde_json::Value;
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

fn keys(record: &Value) -> BTreeSet<&str> {
    record.as_object().expect("an object").keys().map(String::as_str).collect()
}

#[test]
fn a_run_writes_every_file_of_the_contract() {
    let scratch = Scratch::new();
    let outcome = succeed(scratch.tiny("run", &["train.sample_every=3", "train.sample_tokens=20"], &["--json"]));
    let folder = scratch.path("run");
    for name in ["config.toml", "metrics.jsonl", "notes.jsonl", "loss.svg", "report.html", "checkpoints"] {
        assert!(folder.join(name).exists(), "{name}");
    }
    assert!(names(&folder).iter().any(|name| name.starts_with("events.out.tfevents.")), "{:?}", names(&folder));

    let config = Config::load(Source::File(&folder.join("config.toml")), &[""; 0]).unwrap();
    assert_eq!((config.model.channels, config.train.steps, config.schedule.warmup), (16, 6, 2));

    let records = lines(&folder.join("metrics.jsonl"));
    let (evaluations, updates): (Vec<&Value>, Vec<&Value>) =
        records.iter().partition(|record| record.get("val_loss").is_some());
    assert_eq!(updates.len(), 6);
    for (index, record) in updates.iter().enumerate() {
        assert_eq!(record["step"], index + 1);
        assert_eq!(keys(record), BTreeSet::from(["step", "loss", "lr", "grad_norm", "tokens_per_second", "mfu"]));
        assert!(keys(record).iter().all(|key| record[key].is_number()), "{record}");
    }
    let steps: Vec<u64> = evaluations.iter().map(|record| record["step"].as_u64().unwrap()).collect();
    assert_eq!(steps, [2, 4, 6]);
    for record in evaluations {
        assert_eq!(keys(record), BTreeSet::from(["step", "val_loss", "perplexity"]));
        let (loss, perplexity) = (record["val_loss"].as_f64().unwrap(), record["perplexity"].as_f64().unwrap());
        assert!((loss.exp() - perplexity).abs() < 1e-9 * perplexity);
    }
    let samples = lines(&folder.join("notes.jsonl"));
    assert_eq!(samples.iter().filter(|note| note["kind"] == "sample").count(), 2);

    let svg = fs::read_to_string(folder.join("loss.svg")).unwrap();
    assert!(svg.trim_start().starts_with("<svg") && svg.trim_end().ends_with("</svg>"));
    let report = fs::read_to_string(folder.join("report.html")).unwrap();
    assert!(report.contains("</html>") && report.contains("<svg"));
    assert!(!report.contains("src=\"http") && !report.contains("href=\"http"), "self-contained");

    let summary: Value = serde_json::from_str(&outcome.stdout).expect("one JSON object on standard output");
    assert_eq!((summary["step"].as_u64(), summary["ending"].as_str()), (Some(6), Some("done")));
    assert!(summary["peak_resident_bytes"].as_u64().is_some_and(|bytes| bytes > 1 << 20));
}

#[test]
fn checkpoints_are_whole_model_folders_and_old_ones_go() {
    let scratch = Scratch::new();
    succeed(scratch.tiny("run", &["train.keep_last=2", "train.steps=8", "optimizer.learning_rate=1e-2"], &[]));
    let checkpoints = scratch.path("run/checkpoints");
    let best = fs::read_link(checkpoints.join("best")).unwrap().into_os_string().into_string().unwrap();
    let mut expected: BTreeSet<String> = ["step-00000006", "step-00000008", "best"].map(String::from).into();
    expected.insert(best);
    assert_eq!(names(&checkpoints).into_iter().collect::<BTreeSet<_>>(), expected);
    for step in [6, 8] {
        let folder = checkpoint(&scratch.path("run"), step);
        let files = ["config.json", "model.safetensors", "optimizer.safetensors", "tokenizer.json", "trainer.json"];
        assert_eq!(names(&folder), files);
        let (model, _) = Transformer::load(&common::cpu(), &folder).unwrap();
        let tokenizer = Tokenizer::load(folder.join("tokenizer.json")).unwrap();
        assert_eq!(model.config().vocabulary, tokenizer.vocabulary());
    }
}

/// A run whose evaluations get worse keeps the best checkpoint beside the newest; one that keeps no best has no link.
#[test]
fn the_link_best_points_to_the_lowest_evaluation_or_is_not_there() {
    let scratch = Scratch::new();
    let sets = ["train.steps=12", "train.keep_last=1", "optimizer.learning_rate=0.3", "schedule.kind=constant"];
    succeed(scratch.tiny("run", &sets, &[]));
    let evaluations: Vec<(u64, f64)> = metrics(&scratch.path("run"))
        .iter()
        .filter_map(|record| Some((record["step"].as_u64()?, record.get("val_loss")?.as_f64()?)))
        .collect();
    let best = evaluations.iter().min_by(|a, b| a.1.total_cmp(&b.1)).unwrap().0;
    let link = fs::read_link(scratch.path("run/checkpoints/best")).unwrap();
    assert_eq!(link, Path::new(&format!("step-{best:08}")));
    assert!(Transformer::load(&common::cpu(), &scratch.path("run/checkpoints/best")).is_ok());

    succeed(scratch.tiny("none", &[&sets[..], &["train.keep_best=false"]].concat(), &[]));
    assert_eq!(names(&scratch.path("none/checkpoints")), ["step-00000012"]);
}

#[test]
fn what_is_printed_without_a_terminal_is_plain_lines() {
    let scratch = Scratch::new();
    let Outcome { stdout, stderr, .. } = succeed(scratch.tiny("run", &[], &[]));
    assert_eq!(stdout, "");
    assert!(!stderr.contains('\r') && !stderr.contains('\u{1b}'), "{stderr}");
    for part in ["model    2 layers", "memory\n", "total", "step 1/6", "step 6/6", "validation loss", "done after 6"] {
        assert!(stderr.contains(part), "{part:?} in\n{stderr}");
    }
}

#[test]
fn a_dry_run_shows_memory_and_writes_nothing() {
    let scratch = Scratch::new();
    let before = snapshot(&scratch.path(""));
    let plain = succeed(scratch.tiny("run", &[], &["--dry-run"])).stdout;
    assert!(plain.contains("parameters") && plain.contains("total"), "{plain}");
    let json = succeed(scratch.tiny("run", &[], &["--dry-run", "--json"])).stdout;
    let estimate: Value = serde_json::from_str(&json).expect("one JSON object");
    let rows = estimate["memory_bytes"].as_object().unwrap();
    let total: u64 = rows.values().map(|bytes| bytes.as_u64().unwrap()).sum();
    assert_eq!(estimate["memory_total_bytes"], total);
    assert_eq!(snapshot(&scratch.path("")), before);
}

#[test]
fn all_keys_are_printed_as_a_configuration_that_can_be_read() {
    let mut command = Command::new(TRAIN);
    command.arg("--help-config");
    let scratch = Scratch::new();
    let path = scratch.path("all.toml");
    fs::write(&path, succeed(command).stdout).unwrap();
    let set = format!("data.path={}", scratch.text().display());
    Config::load(Source::File(&path), &[set]).unwrap();
}

#[test]
fn a_reader_that_goes_away_is_no_panic() {
    for options in [&["--help-config"][..], &["--dry-run"], &["--dry-run", "--json"]] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let outcome = Command::new(TRAIN).args(options).stdout(writer).stderr(Stdio::piped()).output().unwrap();
        let outcome = Outcome::from(outcome);
        assert!(!outcome.stderr.contains("panicked") && outcome.code == 0, "{options:?}: {}", outcome.stderr);
    }
    let scratch = Scratch::new();
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let status = scratch.tiny("run", &[], &[]).stdout(Stdio::null()).stderr(writer).status().unwrap();
    assert_eq!(status.code(), Some(0), "a run goes on when nobody reads its progress");
}

#[test]
fn the_default_folder_is_named_after_preset_and_time() {
    let scratch = Scratch::new();
    let mut command = Command::new(TRAIN);
    command.current_dir(scratch.path("")).args(["--preset", "shakespeare-char", "--steps", "1"]);
    for set in ["data.path=text.txt", "model.channels=8", "model.layers=1", "train.sample_every=0"] {
        command.args(["--set", set]);
    }
    succeed(command);
    let runs = names(&scratch.path("runs"));
    assert!(runs.len() == 1 && runs[0].starts_with("shakespeare-char-20"), "{runs:?}");
}

/// Starts a long run, waits for its first updates, sends `signal`.
fn stop(scratch: &Scratch, out: &str, signal: i32) -> Outcome {
    let mut command =
        scratch.tiny(out, &["train.steps=1000000", "train.checkpoint_every=0", "train.eval_every=0"], &[]);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let records = scratch.path(out).join("metrics.jsonl");
    let start = Instant::now();
    while fs::metadata(&records).map_or(0, |data| data.len()) < 1000 {
        assert!(start.elapsed() < Duration::from_secs(60), "no update in a minute");
        std::thread::sleep(Duration::from_millis(5));
    }
    // SAFETY: signals a child that was not waited for yet.
    assert_eq!(unsafe { libc::kill(child.id() as i32, signal) }, 0);
    child.wait_with_output().unwrap().into()
}

#[test]
fn a_signal_stops_the_run_after_a_checkpoint_from_which_it_goes_on() {
    let scratch = Scratch::new();
    for (out, signal, code, name) in
        [("interrupted", libc::SIGINT, 130, "Ctrl-C"), ("terminated", libc::SIGTERM, 143, "SIGTERM")]
    {
        let outcome = stop(&scratch, out, signal);
        assert_eq!(outcome.code, code, "{}", outcome.stderr);
        assert!(outcome.stderr.contains(&format!("stopped by {name} after")), "{}", outcome.stderr);
        let folder = scratch.path(out);
        let last = metrics(&folder).last().unwrap()["step"].as_u64().unwrap() as usize;
        assert!(checkpoint(&folder, last).is_dir(), "a checkpoint of the last update, {last}");
        assert!(fs::read_to_string(folder.join("report.html")).unwrap().contains(name));
        let more = format!("train.steps={}", last + 2);
        let outcome = succeed(resume(&folder, &[&more]));
        assert!(outcome.stderr.contains(&format!("resumed after update {last}")), "{}", outcome.stderr);
        assert_eq!(metrics(&folder).iter().filter(|record| record.get("loss").is_some()).count(), last + 2);
    }
}

#[test]
fn a_run_that_is_done_is_resumed_to_nothing_and_with_more_steps_to_more() {
    let scratch = Scratch::new();
    succeed(scratch.tiny("run", &[], &[]));
    let folder = scratch.path("run");
    let before = metrics(&folder);
    succeed(resume(&folder, &[]));
    assert_eq!(metrics(&folder), before);
    succeed(resume(&folder, &["train.steps=8"]));
    assert_eq!(metrics(&folder)[..before.len()], before);
    assert!(checkpoint(&folder, 8).is_dir());
}

#[test]
fn a_run_that_was_stopped_before_its_first_checkpoint_starts_again() {
    let scratch = Scratch::new();
    succeed(scratch.tiny("run", &[], &[]));
    let folder = scratch.path("run");
    let expected = (metrics(&folder), common::state(&folder, 6));
    fs::remove_dir_all(folder.join("checkpoints")).unwrap();
    let outcome = succeed(resume(&folder, &[]));
    assert!(outcome.stderr.contains("before its first checkpoint"), "{}", outcome.stderr);
    assert_eq!((metrics(&folder), common::state(&folder, 6)), expected);
}

#[test]
fn weights_of_another_run_are_a_place_to_start_from() {
    let scratch = Scratch::new();
    succeed(scratch.tiny("first", &[], &[]));
    for initial in [scratch.path("first"), checkpoint(&scratch.path("first"), 6)] {
        let set = format!("model.initial={}", initial.display());
        let out = initial.file_name().unwrap().to_str().unwrap().to_owned() + " again";
        succeed(scratch.tiny(&out, &[&set, "schedule.warmup=0"], &["--steps", "1"]));
        let first_loss = |run: &str| metrics(&scratch.path(run))[0]["loss"].as_f64().unwrap();
        assert!(first_loss(&out) < first_loss("first"), "it has learned something");
    }
}

#[test]
fn a_text_without_newlines_can_be_sampled_from() {
    let scratch = Scratch::new();
    fs::write(scratch.text(), common::text(3000).replace('\n', ".")).unwrap();
    succeed(scratch.tiny("run", &["train.sample_every=2", "train.sample_tokens=5"], &[]));
    assert_eq!(lines(&scratch.path("run/notes.jsonl")).len(), 3);
}

#[test]
fn a_decoder_with_convolutions_can_be_sampled_from() {
    let scratch = Scratch::new();
    let sets =
        ["train.sample_every=2", "train.sample_tokens=20", "model.convolution_taps=4", "model.convolution_dilation=2"];
    succeed(scratch.tiny("run", &sets, &[]));
    assert_eq!(lines(&scratch.path("run/notes.jsonl")).len(), 3);
}

/// On a model large enough that the program itself does not count.
#[test]
fn the_peak_of_memory_is_what_the_table_says() {
    let scratch = Scratch::new();
    let sets = ["model.channels=512", "model.layers=4", "model.block=64", "train.batch=8", "train.eval_every=0"];
    let estimate = succeed(scratch.tiny("run", &sets, &["--dry-run", "--json"])).stdout;
    let estimate: Value = serde_json::from_str(&estimate).unwrap();
    let outcome: Value =
        serde_json::from_str(&succeed(scratch.tiny("run", &sets, &["--steps", "2", "--json"])).stdout).unwrap();
    let (said, was) =
        (estimate["memory_total_bytes"].as_f64().unwrap(), outcome["peak_resident_bytes"].as_f64().unwrap());
    println!("{said} bytes said, {was} taken: {:.3}", was / said);
    assert!((was / said - 1.0).abs() < 0.1, "{said} bytes said, {was} taken");
}

/// Nothing that a run does outlives it but its folder.
#[test]
fn nothing_is_written_outside_the_runs_folder() {
    let scratch = Scratch::new();
    let before = names(&scratch.path(""));
    let mut command = scratch.tiny("run", &[], &[]);
    command.current_dir(scratch.path(""));
    assert_eq!(run(command).code, 0);
    let added: Vec<String> = names(&scratch.path("")).into_iter().filter(|name| !before.contains(name)).collect();
    assert_eq!(added, ["run"]);
    assert!(snapshot(&scratch.path("run")).keys().all(|path| !path.to_string_lossy().contains("partial")));
}
