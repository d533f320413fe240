//! Images as sequences as a user has them: a run learns from idx files or from folders of PNG files, gives the same bits for
//! any number of threads and through a resume, its checkpoint classifies, and what cannot be used is refused in one line.

mod common;

use common::{Outcome, Scratch, TRAIN, metrics, names, resume, run, state, succeed};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

const SIDE: usize = 8;
const CORNERS: [&str; 4] = ["north-east", "north-west", "south-east", "south-west"];

/// An image with a bright square in the corner of that number, at a place and of a brightness that differ from one to the
/// next, on noise.
fn image(number: usize, corner: usize) -> Vec<u8> {
    let mut state = number as u64 + 1;
    let mut below = |limit: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % limit
    };
    let mut pixels: Vec<u8> = (0..SIDE * SIDE).map(|_| below(120) as u8).collect();
    let (top, left) = (if corner < 2 { 0 } else { 4 }, if corner.is_multiple_of(2) { 4 } else { 0 });
    let (top, left) = (top + below(3) as usize, left + below(3) as usize);
    for (line, column) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
        pixels[(top + line) * SIDE + left + column] = 150 + below(100) as u8;
    }
    pixels
}

fn idx(sizes: &[usize], bytes: Vec<u8>) -> Vec<u8> {
    let mut file = vec![0, 0, 8, sizes.len() as u8];
    sizes.iter().for_each(|&size| file.extend((size as u32).to_be_bytes()));
    file.extend(bytes);
    file
}

/// Writes images and labels as idx files; the path of the images.
fn write_idx(scratch: &Scratch, name: &str, count: usize, first: usize) -> PathBuf {
    let images = (first..first + count).flat_map(|number| image(number, number % 4)).collect();
    let labels = (first..first + count).map(|number| (number % 4) as u8).collect();
    let path = scratch.path(&format!("{name}-images.idx"));
    fs::write(&path, idx(&[count, SIDE, SIDE], images)).unwrap();
    fs::write(scratch.path(&format!("{name}-labels.idx")), idx(&[count], labels)).unwrap();
    path
}

fn write_png(path: &Path, width: usize, height: usize, pixels: &[u8]) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let mut encoder = png::Encoder::new(fs::File::create(path).unwrap(), width as u32, height as u32);
    encoder.set_color(png::ColorType::Grayscale);
    encoder.set_depth(png::BitDepth::Eight);
    encoder.write_header().unwrap().write_image_data(pixels).unwrap();
}

/// The same images, as a folder with a folder for each class.
fn write_folder(scratch: &Scratch, name: &str, count: usize, first: usize) -> PathBuf {
    for number in first..first + count {
        let file = scratch.path(name).join(CORNERS[number % 4]).join(format!("{number:04}.png"));
        write_png(&file, SIDE, SIDE, &image(number, number % 4));
    }
    scratch.path(name)
}

fn scratch() -> Scratch {
    let scratch = Scratch::new();
    write_idx(&scratch, "train", 120, 0);
    // The last batch is not full.
    write_idx(&scratch, "val", 43, 1000);
    scratch
}

/// A run of a tiny model of images.
fn train(scratch: &Scratch, out: &str, sets: &[&str]) -> Command {
    const TINY: [&str; 16] = [
        "model.layers=2",
        "model.heads=2",
        "model.channels=16",
        "model.ffn=32",
        "model.patch=2",
        "data.shift=0",
        "train.batch=8",
        "train.epochs=0",
        "train.steps=12",
        "train.eval_every=6",
        "train.checkpoint_every=6",
        "train.keep_last=9",
        "train.log_every=1",
        "optimizer.learning_rate=1e-2",
        "schedule.decay_steps=40",
        "schedule.warmup=2",
    ];
    let mut command = Command::new(TRAIN);
    command.arg("--preset").arg("digits").arg("--out").arg(scratch.path(out)).stdin(Stdio::null());
    let path = |key: &str, name: &str| format!("{key}={}", scratch.path(name).display());
    let paths = [path("data.path", "train-images.idx"), path("data.val_path", "val-images.idx")];
    for set in paths.iter().map(String::as_str).chain(TINY).chain(["device.threads=2"]).chain(sets.iter().copied()) {
        command.arg("--set").arg(set);
    }
    command
}

fn engine_run(arguments: &[&str]) -> Outcome {
    let mut command = Command::new(env!("CARGO_BIN_EXE_engine-run"));
    command.args(arguments).stdin(Stdio::null());
    run(command)
}

fn text(path: PathBuf) -> String {
    path.to_str().unwrap().to_owned()
}

#[track_caller]
fn is_refused(outcome: &Outcome, parts: &[&str]) {
    assert!(outcome.code == 1 || outcome.code == 2, "exit code {}\n{}", outcome.code, outcome.stderr);
    let error = outcome.stderr.trim_end();
    assert!(!error.contains('\n') && error.starts_with("engine-"), "not one line: {error}");
    assert!(parts.iter().all(|part| error.contains(part)), "{error:?} lacks one of {parts:?}");
}

#[test]
fn images_give_the_same_bits_for_any_threads_and_through_a_resume() {
    let scratch = scratch();
    let choices: [(&str, &[&str]); 4] = [
        ("mean", &["data.shift=1"]),
        ("first", &["model.pooling=first", "model.dropout=0.1", "data.shift=2", "train.accumulate=2"]),
        ("pixels", &["model.patch=1", "model.positions=sinusoidal", "model.norm_place=post"]),
        ("balanced", &["train.class_weights=balanced", "model.positions=none", "model.pooler=true"]),
    ];
    for (name, sets) in choices {
        let start = |out: &str, more: &[&str]| {
            let out = format!("{name}-{out}");
            succeed(train(&scratch, &out, &[sets, more].concat()));
            scratch.path(&out)
        };
        let whole = start("whole", &["device.threads=1"]);
        let records = metrics(&whole);
        assert_eq!(records.len(), 12 + 2, "{name}: an object for each update and evaluation");
        assert!(records.last().unwrap()["accuracy"].is_number(), "{name}");
        let threads = start("threads", &["device.threads=3"]);
        assert_eq!(state(&whole, 12), state(&threads, 12), "{name}: one thread and three");
        let half = start("half", &["train.steps=6"]);
        succeed(resume(&half, &["train.steps=12"]));
        assert_eq!(state(&whole, 12), state(&half, 12), "{name}: straight and resumed");
        assert_eq!(records, metrics(&half), "{name}: records");
    }
    // 120 images make 15 batches: a run over an epoch's end moves images otherwise than a run without shifts.
    let shifted = metrics(&scratch.path("mean-whole"));
    succeed(train(&scratch, "unshifted", &[]));
    assert_ne!(shifted[0]["loss"], metrics(&scratch.path("unshifted"))[0]["loss"]);
}

#[test]
fn corners_are_learned_from_folders_and_a_checkpoint_knows_them() {
    let scratch = scratch();
    let path = |key: &str, folder: PathBuf| format!("{key}={}", folder.display());
    let sets = [
        path("data.path", write_folder(&scratch, "train", 200, 0)),
        path("data.val_path", write_folder(&scratch, "val", 43, 1000)),
    ];
    let more = ["train.epochs=20", "schedule.decay_steps=500", "train.eval_every=100"];
    let sets: Vec<&str> = sets.iter().map(String::as_str).chain(more).collect();
    let outcome = succeed(train(&scratch, "run", &sets));
    let accuracies: Vec<f64> =
        metrics(&scratch.path("run")).iter().filter_map(|record| record["accuracy"].as_f64()).collect();
    let best = accuracies.iter().copied().fold(0.0, f64::max);
    assert!(best > 0.9, "{accuracies:?}\n{}", outcome.stderr);
    assert!(outcome.stderr.contains("is \\ called"), "the table of the last evaluation: {}", outcome.stderr);
    let report = fs::read_to_string(scratch.path("run/report.html")).unwrap();
    assert!(report.contains("Last evaluation") && report.contains("south-west"));
    assert!(names(&scratch.path("run/checkpoints")).contains(&"best".to_owned()));

    let checkpoint = text(scratch.path("run/checkpoints/best"));
    let judged = engine_run(&["evaluate", &checkpoint, "--data", &text(scratch.path("val")), "--json"]);
    let judged: Value = serde_json::from_str(&judged.stdout).unwrap_or_else(|_| panic!("{}", judged.stderr));
    assert_eq!(judged["accuracy"], best, "as the run that wrote the checkpoint found");

    let classify = |arguments: &[&str]| -> Vec<Value> {
        let outcome = engine_run(&[&["classify", &checkpoint, "--json"], arguments].concat());
        assert_eq!(outcome.code, 0, "{}", outcome.stderr);
        outcome.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    let files: Vec<String> = (1000..1008)
        .map(|number| text(scratch.path("val").join(CORNERS[number % 4]).join(format!("{number:04}.png"))))
        .collect();
    let found = classify(&files.iter().map(String::as_str).collect::<Vec<&str>>());
    let same = classify(&["--input", &text(scratch.path("val-images.idx"))]);
    assert_eq!((found.len(), same.len()), (8, 43));
    for (number, (file, (by_file, by_idx))) in files.iter().zip(found.iter().zip(&same)).enumerate() {
        assert_eq!(by_file["image"], *file);
        assert_eq!(by_idx["image"], format!("{}:{number}", scratch.path("val-images.idx").display()));
        let [a, b] = [by_file, by_idx].map(|found| found["probability"].as_f64().unwrap());
        assert!(by_file["label"] == by_idx["label"] && (a - b).abs() < 1e-5, "{by_file} {by_idx}");
        let sum: f64 = by_file["probabilities"].as_object().unwrap().values().filter_map(Value::as_f64).sum();
        assert!((sum - 1.0).abs() < 1e-6 && by_file["probabilities"].as_object().unwrap().len() == 4);
    }
    let right = found.iter().enumerate().filter(|(number, found)| found["label"] == CORNERS[number % 4]).count();
    assert!(right >= 6, "{found:?}");
    let shown = engine_run(&["classify", &checkpoint, &files[0], "--top-k", "2"]).stdout;
    assert_eq!(shown.trim_end().split('\t').count(), 5, "two classes, their probabilities, the file: {shown}");

    let small = scratch.path("small.png");
    write_png(&small, 4, 5, &[0; 20]);
    let refused = engine_run(&["classify", &checkpoint, &text(small)]);
    is_refused(&refused, &["small.png: images of 4 x 5 pixels, but 8 x 8 are needed; scale them"]);
    let refused = engine_run(&["classify", &checkpoint, "/nowhere/at/all.png"]);
    is_refused(&refused, &["cannot read /nowhere/at/all.png"]);
    let refused = engine_run(&["evaluate", &checkpoint, "--data", &text(scratch.path("val-images.idx"))]);
    is_refused(&refused, &["val-images.idx", "class \"0\"", "north-east"]);
    let refused = engine_run(&["fill", &checkpoint, "a text", "--tokenizer", "byte"]);
    is_refused(&refused, &["256 tokens"]);
}

#[test]
fn images_that_cannot_be_learned_from_are_refused() {
    let scratch = scratch();
    let refused = |sets: &[&str], parts: &[&str]| {
        is_refused(&run(train(&scratch, "refused", sets)), parts);
        assert!(!scratch.path("refused").exists(), "nothing is left behind");
    };
    let path = |key: &str, name: &str| format!("{key}={}", scratch.path(name).display());
    refused(&["model.patch=3"], &["patches of 3 x 3 do not tile images of 8 x 8"]);
    refused(&["model.patch=0"], &["model.patch is 0"]);
    refused(&["model.pixel_deviation=0"], &["model.pixel_deviation is 0"]);
    refused(&["model.architecture=decoder"], &["model.architecture", "image-classification", "encoder"]);
    refused(&[&path("data.path", "gone-images.idx")], &["cannot read", "gone-images.idx"]);
    let images = idx(&[2, SIDE, SIDE], [image(0, 0), image(1, 1)].concat());
    fs::write(scratch.path("bare-images.idx"), &images).unwrap();
    refused(&[&path("data.path", "bare-images.idx")], &["bare-images.idx: the images have no labels", "-labels"]);
    fs::write(scratch.path("bare-labels.idx"), idx(&[2], vec![0, 9])).unwrap();
    refused(&[&path("data.val_path", "bare-images.idx")], &["bare-images.idx", "class \"4\"", "none of those known"]);
    fs::write(scratch.path("wide-images.idx"), idx(&[1, SIDE, 9], vec![0; 72])).unwrap();
    fs::write(scratch.path("wide-labels.idx"), idx(&[1], vec![0])).unwrap();
    refused(&[&path("data.val_path", "wide-images.idx")], &["wide-images.idx: images of 9 x 8 pixels", "8 x 8"]);
    let both = format!("data.path=[\"{0}\", \"{0}\"]", scratch.path("train-images.idx").display());
    refused(&[&both], &["data.path names 2 sets of images; name one"]);
    fs::write(scratch.path("cut-images.idx"), &images[..50]).unwrap();
    refused(&[&path("data.path", "cut-images.idx")], &["cut-images.idx: cut short"]);
}

#[test]
fn a_model_of_images_is_fine_tuned_on_other_classes() {
    let scratch = scratch();
    succeed(train(&scratch, "first", &[]));
    let initial = format!("model.initial={}", scratch.path("first").display());
    let folder = format!("data.path={}", write_folder(&scratch, "two", 22, 0).display());
    fs::remove_dir_all(scratch.path("two/north-east")).unwrap();
    let val = format!("data.val_path={}", scratch.path("two").display());
    succeed(train(&scratch, "second", &[&initial, &folder, &val, "train.steps=6", "model.frozen_layers=1"]));
    let read = |run: &str, step: &str| -> Value {
        let file = scratch.path(run).join("checkpoints").join(step).join("config.json");
        serde_json::from_str(&fs::read_to_string(file).unwrap()).unwrap()
    };
    let (first, second) = (read("first", "step-00000012"), read("second", "step-00000006"));
    assert_eq!(first["image"], second["image"], "pixels are scaled as the first weights know them");
    assert_eq!(second["predictions"]["classes"].as_array().unwrap().len(), 3);
}
