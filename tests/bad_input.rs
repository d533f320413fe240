//! What a user can type, point at or corrupt: each is refused in one line that says what, where and what to do, with
//! the exit code that the tools promise, and without touching what is there.

mod common;

use common::libcuda::Library;
use common::{Outcome, Scratch, checkpoint, copy, metrics, names, resume, run, snapshot, state, succeed, tiny};
use engine::data::shard::{HEADER_BYTES, MAGIC, TokenType, write_shard};
use engine::model::Transformer;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Failed; bad usage or configuration.
const FAILED: i32 = 1;
const USAGE: i32 = 2;

/// Demands the exit code, one line on standard error that holds all `parts`, and nothing else.
#[track_caller]
fn assert_refused(outcome: &Outcome, code: i32, parts: &[&str]) {
    let Outcome { stderr, stdout, .. } = outcome;
    assert!(!stderr.contains("panicked"), "{stderr}");
    assert_eq!(outcome.code, code, "{stderr}");
    assert_eq!(stdout, "");
    assert!(stderr.starts_with("engine-train: ") && stderr.lines().count() == 1, "one line: {stderr:?}");
    assert!(stderr.len() < 500, "short enough to read: {stderr:?}");
    for part in parts {
        assert!(stderr.contains(part), "{part:?} in {stderr:?}");
    }
}

/// Runs a command that must be refused, and demands that nothing below the scratch folder changed.
#[track_caller]
fn refuse(scratch: &Scratch, command: Command, code: i32, parts: &[&str]) {
    let before = snapshot(&scratch.path(""));
    assert_refused(&run(command), code, parts);
    assert!(snapshot(&scratch.path("")) == before, "files were changed, made or lost");
}

/// A run on a shard with these bytes is refused.
#[track_caller]
fn refuse_shard(bytes: &[u8], sets: &[&str], parts: &[&str]) {
    let scratch = Scratch::new();
    let path = scratch.path("shard.bin");
    fs::write(&path, bytes).unwrap();
    let sets = [&["model.vocabulary=29"], sets].concat();
    refuse(&scratch, tiny(&path, &scratch.path("run"), &sets, &[]), FAILED, &[&["shard.bin"], parts].concat());
}

/// A good shard of 200 tokens below 29.
fn shard() -> Vec<u8> {
    let scratch = Scratch::new();
    let path = scratch.path("good.bin");
    let tokens: Vec<u32> = (0..200).map(|index| index * 7 % 29).collect();
    write_shard(&path, TokenType::U16, &tokens).unwrap();
    fs::read(path).unwrap()
}

// Data.

#[test]
fn a_missing_file() {
    let scratch = Scratch::new();
    for name in ["nowhere.txt", "nowhere.bin", "no/folder/at.all"] {
        let command = tiny(&scratch.path(name), &scratch.path("run"), &["model.vocabulary=29"], &[]);
        refuse(&scratch, command, FAILED, &[name, "no such file", "check the path"]);
    }
}

#[test]
fn a_folder_without_text_or_shards() {
    let scratch = Scratch::new();
    fs::create_dir(scratch.path("empty")).unwrap();
    let command = tiny(&scratch.path("empty"), &scratch.path("run"), &[], &[]);
    refuse(&scratch, command, FAILED, &["empty", "neither .bin shards nor .txt files"]);
}

#[test]
fn an_empty_shard() {
    refuse_shard(&[], &[], &["the file is empty", "engine-data pack"]);
    refuse_shard(&[], &["data.raw_u16=true"], &["the file is empty"]);
}

#[test]
fn a_truncated_shard() {
    let whole = shard();
    for length in [1, 3, 11, HEADER_BYTES - 1, HEADER_BYTES, whole.len() - 2] {
        refuse_shard(&whole[..length], &[], &["cut short"]);
    }
}

#[test]
fn a_shard_of_odd_length() {
    let whole = shard();
    refuse_shard(&whole[..whole.len() - 1], &[], &["the header names 200 u16 tokens", "again"]);
    refuse_shard(&whole[HEADER_BYTES..whole.len() - 1], &["data.raw_u16=true"], &["two bytes each", "399 bytes"]);
}

#[test]
fn a_shard_of_another_magic_or_version() {
    let change = |word: usize, value: i32| {
        let mut bytes = shard();
        bytes[word * 4..word * 4 + 4].copy_from_slice(&value.to_le_bytes());
        bytes
    };
    refuse_shard(&change(0, 20240801), &[], &["it starts with 20240801", &MAGIC.to_string()]);
    refuse_shard(&change(1, 7), &[], &["version 7 is unknown"]);
    refuse_shard(&change(2, -5), &[], &["the header names -5 tokens"]);
    refuse_shard(&change(2, i32::MAX), &[], &["cut short"]);
}

#[test]
fn a_token_beyond_the_vocabulary() {
    let mut bytes = shard();
    let place = HEADER_BYTES + 2 * 123;
    bytes[place..place + 2].copy_from_slice(&29u16.to_le_bytes());
    refuse_shard(&bytes, &[], &["token 29 at position 123", "vocabulary of 29", "larger vocabulary"]);
}

#[test]
fn shards_that_no_vocabulary_belongs_to() {
    let scratch = Scratch::new();
    fs::write(scratch.path("shard.bin"), shard()).unwrap();
    let command = tiny(&scratch.path("shard.bin"), &scratch.path("run"), &[], &[]);
    refuse(&scratch, command, FAILED, &["model.vocabulary", "shard.bin"]);
}

#[test]
fn a_text_shorter_than_one_block() {
    let scratch = Scratch::new();
    for text in ["", "a", "a short text"] {
        fs::write(scratch.text(), text).unwrap();
        refuse(&scratch, scratch.tiny("run", &["data.val_fraction=0"], &[]), FAILED, &[]);
    }
    let command = scratch.tiny("run", &["data.val_fraction=0"], &[]);
    refuse(&scratch, command, FAILED, &["12 tokens", "block of 16", "more text or a smaller block"]);
    refuse(&scratch, scratch.tiny("run", &[], &["--dry-run"]), FAILED, &["block of 16"]);
}

#[test]
fn a_text_that_is_not_utf_8() {
    let scratch = Scratch::new();
    let mut bytes = common::text(500).into_bytes();
    bytes[321] = 0xFF;
    fs::write(scratch.text(), bytes).unwrap();
    for tokenizer in ["char", "byte"] {
        let set = format!("data.tokenizer={tokenizer}");
        refuse(&scratch, scratch.tiny("run", &[&set], &[]), FAILED, &["text.txt", "not UTF-8 at byte 321", "iconv"]);
    }
}

#[test]
fn a_tokenizer_file_that_is_none() {
    let scratch = Scratch::new();
    fs::write(scratch.path("t.json"), "{\"model\":").unwrap();
    let set = format!("data.tokenizer={}", scratch.path("t.json").display());
    refuse(&scratch, scratch.tiny("run", &[&set], &[]), FAILED, &["t.json"]);
    let set = format!("data.tokenizer={}", scratch.path("none.json").display());
    refuse(&scratch, scratch.tiny("run", &[&set], &[]), FAILED, &["none.json"]);
}

#[test]
fn a_prompt_that_the_text_has_no_characters_for() {
    let scratch = Scratch::new();
    let command = scratch.tiny("run", &["train.sample_every=1", "train.sample_prompt=Qu"], &[]);
    refuse(&scratch, command, USAGE, &["train.sample_prompt", "'Q'"]);
}

// Configuration.

#[test]
fn a_key_that_does_not_exist() {
    let scratch = Scratch::new();
    for (set, nearest) in [
        ("model.chanels=8", "model.channels"),
        ("train.learning_rate=1", "optimizer.learning_rate"),
        ("modle.layers=1", "model.layers"),
        ("n_layer=1", "model.layers"),
    ] {
        let key = set.split('=').next().unwrap();
        refuse(&scratch, scratch.tiny("run", &[set], &[]), USAGE, &[key, "did you mean", nearest]);
    }
    let file = scratch.path("a.toml");
    fs::write(&file, "[train]\nsteps = 5\n\n[model]\nlayer = 2\n").unwrap();
    let mut command = Command::new(common::TRAIN);
    command.arg("--config").arg(&file).arg("--out").arg(scratch.path("run"));
    refuse(&scratch, command, USAGE, &["a.toml line 5", "\"model.layer\"", "\"model.layers\""]);
}

#[test]
fn a_value_of_the_wrong_type_or_out_of_range() {
    let scratch = Scratch::new();
    for (set, part) in [
        ("train.steps=many", "the string \"many\""),
        ("train.steps=-5", "train.steps"),
        ("train.steps=1.5", "train.steps"),
        ("train.steps=99999999999999999999", "train.steps"),
        ("model.tied=2", "model.tied"),
        ("optimizer.learning_rate=nan", "optimizer.learning_rate"),
        ("optimizer.name=adam", "optimizer.name"),
        ("model.dropout=1.5", "model.dropout"),
        ("train.batch=0", "train.batch"),
        ("device.kind=tpu", "device.kind"),
        ("steps", "SECTION.KEY=VALUE"),
    ] {
        refuse(&scratch, scratch.tiny("run", &[set], &[]), USAGE, &[part]);
    }
    fs::write(scratch.path("a.toml"), "[train\nsteps = 5\n").unwrap();
    for (file, part) in [("a.toml", "line 1"), ("none.toml", "cannot read")] {
        let mut command = Command::new(common::TRAIN);
        command.arg("--config").arg(scratch.path(file)).arg("--out").arg(scratch.path("run"));
        refuse(&scratch, command, USAGE, &[file, part]);
    }
}

#[test]
fn heads_that_do_not_divide_the_channels() {
    let scratch = Scratch::new();
    let parts = ["model.heads is 3", "does not divide model.channels = 16", "multiple"];
    refuse(&scratch, scratch.tiny("run", &["model.heads=3"], &[]), USAGE, &parts);
}

#[test]
fn a_preset_that_does_not_exist() {
    let scratch = Scratch::new();
    let mut command = Command::new(common::TRAIN);
    command.args(["--preset", "auste"]).current_dir(scratch.path(""));
    refuse(&scratch, command, USAGE, &["\"auste\"", "austen", "--config"]);
}

#[test]
fn a_device_that_is_not_there() {
    let scratch = Scratch::new();
    let library = Library::broken();
    for device in ["cuda", "cuda:3"] {
        let mut command = scratch.tiny("run", &[], &["--device", device]);
        library.lend(&mut command);
        let parts = [&format!("device {device}"), "no libcuda.so.1", "no NVIDIA driver", "; use --device cpu"];
        refuse(&scratch, command, FAILED, &parts);
    }
    let library = Library::emulator();
    let mut command = scratch.tiny("run", &[], &["--device", "cuda:3"]);
    library.lend(&mut command);
    refuse(&scratch, command, FAILED, &["device cuda:3", "this machine has 1 GPU, number 0", "; use --device cpu"]);
    let mut command = scratch.tiny("run", &[], &["--device", "cuda"]);
    library.lend(&mut command).env("ENGINE_EMULATOR_DEVICE", "memory=16KiB");
    refuse(&scratch, command, FAILED, &["needs", "16.0 KiB are available", "lower train.batch"]);
    let mut command = scratch.tiny("run", &[], &[]);
    command.env("ENGINE_SIMD", "avx1024");
    refuse(&scratch, command, FAILED, &["ENGINE_SIMD", "avx1024"]);
}

// Weights.

/// A folder with a finished tiny run in it, `run`.
fn finished() -> Scratch {
    let scratch = Scratch::new();
    succeed(scratch.tiny("run", &[], &[]));
    scratch
}

fn initial(folder: &Path) -> String {
    format!("model.initial={}", folder.display())
}

#[test]
fn weights_of_another_shape_to_start_from() {
    let scratch = finished();
    let set = initial(&scratch.path("run"));
    for (change, parts) in [
        ("model.channels=32", ["has shape (", "the model expects ("]),
        ("model.block=8", ["shape (16, 16)", "the model expects (8, 16)"]),
        ("model.layers=3", ["is missing", "transformer.h.2."]),
        ("model.layers=1", ["is no part of the model", "transformer.h.1."]),
    ] {
        let command = scratch.tiny("other", &[&set, change], &[]);
        refuse(&scratch, command, FAILED, &[&["model.initial"], &parts[..]].concat());
    }
    let set = initial(&scratch.path("nowhere"));
    refuse(&scratch, scratch.tiny("other", &[&set], &[]), FAILED, &["model.initial", "nowhere"]);
}

/// Bytes of a safetensors file with this header.
fn safetensors(header: &str, data_bytes: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(header.as_bytes());
    bytes.resize(bytes.len() + data_bytes, 0);
    bytes
}

#[test]
fn weights_that_are_cut_short_or_made_to_harm() {
    let scratch = finished();
    let model = checkpoint(&scratch.path("run"), 6);
    let whole = fs::read(model.join("model.safetensors")).unwrap();
    let huge =
        "{\"transformer.wte.weight\":{\"dtype\":\"F32\",\"shape\":[4294967296,4294967296],\"data_offsets\":[0,8]}}";
    let outside =
        "{\"transformer.wte.weight\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[99999999990,99999999998]}}";
    let cases: [(&str, Vec<u8>); 9] = [
        ("empty", vec![]),
        ("seven bytes", whole[..7].to_vec()),
        ("half the header", whole[..100].to_vec()),
        ("half the data", whole[..whole.len() / 2].to_vec()),
        ("a header of all memory", [&u64::MAX.to_le_bytes()[..], &whole[8..]].concat()),
        ("a header that is no JSON", safetensors("{\"a\": ", 8)),
        ("a header nested deeply", safetensors(&"{\"a\":".repeat(50_000), 8)),
        ("a shape that overflows", safetensors(huge, 8)),
        ("bytes outside the file", safetensors(outside, 8)),
    ];
    let broken = scratch.path("broken");
    copy(&model, &broken);
    for (what, bytes) in cases {
        println!("{what}");
        fs::write(broken.join("model.safetensors"), bytes).unwrap();
        let command = scratch.tiny("other", &[&initial(&broken)], &[]);
        refuse(&scratch, command, FAILED, &["model.initial", "model.safetensors"]);
    }
}

// Resuming.

#[test]
fn resuming_where_there_is_no_run() {
    let scratch = Scratch::new();
    fs::create_dir(scratch.path("empty")).unwrap();
    for name in ["nowhere", "empty"] {
        refuse(&scratch, resume(&scratch.path(name), &[]), USAGE, &[name, "no run to resume", "--resume"]);
    }
}

#[test]
fn resuming_with_another_model() {
    let scratch = finished();
    for (set, was) in [
        ("model.layers=3", "model.layers was 2 and is now 3"),
        ("model.channels=32", "model.channels was 16 and is now 32"),
        ("model.heads=4", "model.heads was 2 and is now 4"),
        ("model.ffn=20", "model.ffn was 64 and is now 20"),
        ("model.block=8", "model.block was 16 and is now 8"),
        ("model.tied=false", "model.tied was true and is now false"),
        ("model.vocabulary=50", "the vocabulary was"),
        ("train.seed=4", "train.seed was 1337 and is now 4"),
        ("data.order=sequential", "the order of windows was"),
    ] {
        refuse(&scratch, resume(&scratch.path("run"), &[set, "train.steps=9"]), USAGE, &["cannot resume", was]);
    }
}

#[test]
fn resuming_with_another_optimizer() {
    let scratch = finished();
    for sets in [&["optimizer.name=sgd"][..], &["optimizer.name=sgd", "optimizer.momentum=0.9"]] {
        let command = resume(&scratch.path("run"), &[sets, &["train.steps=9"]].concat());
        refuse(&scratch, command, USAGE, &["optimizer.safetensors", "another optimizer", "optimizer.name"]);
    }
}

#[test]
fn resuming_with_other_data() {
    let scratch = finished();
    let text = fs::read_to_string(scratch.text()).unwrap();
    // Of the same characters and length, so that nothing else tells.
    fs::write(scratch.text(), text.replacen("tea", "eat", 1)).unwrap();
    let parts = ["cannot resume", "training data", "put the old data back"];
    refuse(&scratch, resume(&scratch.path("run"), &["train.steps=9"]), USAGE, &parts);
    fs::write(scratch.text(), &text[..4000]).unwrap();
    refuse(&scratch, resume(&scratch.path("run"), &["train.steps=9"]), USAGE, &["cannot resume"]);
    fs::remove_file(scratch.text()).unwrap();
    refuse(&scratch, resume(&scratch.path("run"), &["train.steps=9"]), FAILED, &["text.txt", "no such file"]);
    fs::write(scratch.text(), text).unwrap();
    succeed(resume(&scratch.path("run"), &["train.steps=9"]));
}

#[test]
fn resuming_from_a_damaged_checkpoint() {
    let scratch = finished();
    let folder = checkpoint(&scratch.path("run"), 6);
    for name in ["model.safetensors", "optimizer.safetensors", "trainer.json", "config.json"] {
        let path = folder.join(name);
        let whole = fs::read(&path).unwrap();
        for bytes in [&whole[..whole.len() / 2], &[], b"{}", b"\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF"] {
            fs::write(&path, bytes).unwrap();
            let outcome = run(resume(&scratch.path("run"), &["train.steps=9"]));
            assert!(outcome.code == FAILED || outcome.code == USAGE, "{name}: {}", outcome.stderr);
            assert_refused(&outcome, outcome.code, &[if name == "config.json" { "" } else { name }]);
        }
        fs::remove_file(&path).unwrap();
        let outcome = run(resume(&scratch.path("run"), &["train.steps=9"]));
        assert_refused(&outcome, FAILED, &[name]);
        fs::write(&path, whole).unwrap();
    }
    succeed(resume(&scratch.path("run"), &["train.steps=9"]));
    fs::write(scratch.path("run/config.toml"), "[model]\nlayers = \"two\"\n").unwrap();
    refuse(&scratch, resume(&scratch.path("run"), &[]), USAGE, &["config.toml line 2", "model.layers"]);
}

// The folder of the run.

#[test]
fn a_run_that_another_process_is_going_on_with() {
    let scratch = finished();
    let lock = engine::train::run_folder::lock(&scratch.path("run")).unwrap();
    let more = || resume(&scratch.path("run"), &["train.steps=9"]);
    refuse(&scratch, more(), FAILED, &["run", "in use by another process", "wait", "--out"]);
    drop(lock);
    succeed(more());
}

#[test]
fn a_folder_that_is_in_use_or_none() {
    let scratch = finished();
    refuse(&scratch, scratch.tiny("run", &[], &[]), USAGE, &["run", "not empty", "--out", "--resume"]);
    refuse(&scratch, scratch.tiny("text.txt", &[], &[]), USAGE, &["text.txt", "is not a folder", "--out"]);
}

#[test]
fn a_folder_that_cannot_be_written_to() {
    let scratch = Scratch::new();
    refuse(&scratch, scratch.tiny("text.txt/run", &[], &[]), FAILED, &["text.txt/run", "--out"]);
    refuse(&scratch, tiny(&scratch.text(), Path::new("/proc/run"), &[], &[]), FAILED, &["/proc/run", "--out"]);
}

/// As for a corrected command: what was refused leaves nothing in the way.
#[test]
fn a_command_that_was_refused_can_be_given_again() {
    let scratch = Scratch::new();
    let set = initial(&scratch.path("nowhere"));
    refuse(&scratch, scratch.tiny("run", &[&set], &[]), FAILED, &["nowhere"]);
    succeed(scratch.tiny("run", &[], &[]));
}

/// `command` in a shell after `setting`.
fn in_shell(shell: &mut Command, setting: &str, command: &Command) -> Outcome {
    let quote = |text: &str| format!("'{}'", text.replace('\'', "'\\''"));
    let words: Vec<String> = std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|word| quote(word.to_str().expect("UTF-8")))
        .collect();
    shell.arg("-c").arg(format!("{setting}{}", words.join(" ")));
    shell.output().expect("a shell").into()
}

/// The last line of standard error says why; those before are the run's.
#[track_caller]
fn assert_failed_while_running(outcome: &Outcome, parts: &[&str]) {
    assert_eq!(outcome.code, FAILED, "{}", outcome.stderr);
    assert!(!outcome.stderr.contains("panicked"), "{}", outcome.stderr);
    let last = outcome.stderr.lines().last().unwrap();
    assert!(last.starts_with("engine-train: "), "{last}");
    for part in parts {
        assert!(last.contains(part), "{part:?} in {last:?}");
    }
}

/// Weights of the checkpoint of a step, read back.
fn assert_loads(run: &Path, step: usize) {
    Transformer::load(&common::cpu(), &checkpoint(run, step)).unwrap_or_else(|error| panic!("{error}"));
}

#[test]
fn a_file_beyond_the_largest_size_allowed() {
    let scratch = Scratch::new();
    let folder = scratch.path("run");
    // Blocks of 512 bytes: 20 KiB are less than the weights.
    let command = scratch.tiny("run", &[], &[]);
    let outcome = in_shell(&mut Command::new("sh"), "ulimit -f 40; exec ", &command);
    assert_failed_while_running(&outcome, &["cannot write", ".safetensors", "ulimit -f"]);
    assert_eq!(names(&folder.join("checkpoints")), [""; 0]);
    assert_eq!(metrics(&folder).len(), 3, "two updates and an evaluation");

    // Room for the checkpoints, not for the records or events of all updates.
    let out = scratch.path("long");
    let sets = ["train.steps=5000", "train.eval_every=0", "train.checkpoint_every=100"];
    let command = scratch.tiny("long", &sets, &[]);
    let outcome = in_shell(&mut Command::new("sh"), "ulimit -f 200; exec ", &command);
    assert_failed_while_running(&outcome, &["cannot write", "ulimit -f"]);
    let newest = names(&out.join("checkpoints")).last().unwrap()["step-".len()..].parse::<usize>().unwrap();
    assert_loads(&out, newest);
    let steps = format!("train.steps={}", newest + 2);
    succeed(resume(&out, &[&steps]));
    let updates = metrics(&out).iter().filter(|record| record.get("loss").is_some()).count();
    assert_eq!(updates, newest + 2);
}

/// On a file system of 400 KiB of its own, where that may be mounted.
#[test]
fn a_full_disk() {
    let scratch = Scratch::new();
    let (disk, saved) = (scratch.path("disk"), scratch.path("saved"));
    fs::create_dir(&disk).unwrap();
    let mount = format!("mount -t tmpfs -o size=400k none '{}'", disk.display());
    let mut unshare = Command::new("unshare");
    let can_mount = unshare.args(["--map-root-user", "--mount", "sh", "-c", &mount]).output();
    if !can_mount.is_ok_and(|output| output.status.success()) {
        println!("skipped: this system lets nobody mount a small disk");
        return;
    }
    let command = tiny(&scratch.text(), &disk.join("run"), &["train.steps=500", "train.keep_last=100"], &[]);
    let mut shell = Command::new("unshare");
    shell.args(["--map-root-user", "--mount", "sh"]);
    let setting = format!("{mount}; trap \"cp -a '{}' '{}'\" EXIT; ", disk.display(), saved.display());
    let outcome = in_shell(&mut shell, &setting, &command);
    assert_failed_while_running(&outcome, &["the disk is full", "free some space"]);
    let folder = saved.join("run");
    let checkpoints = names(&folder.join("checkpoints"));
    assert!(checkpoints.iter().all(|name| !name.contains("partial")), "{checkpoints:?}");
    let newest = checkpoints.last().unwrap()["step-".len()..].parse::<usize>().unwrap();
    assert_loads(&folder, newest);
    let steps = format!("train.steps={}", newest + 3);
    succeed(resume(&folder, &[&steps]));
    assert_loads(&folder, newest + 3);
}

// Sizes and numbers.

#[test]
fn more_memory_than_there_is() {
    let scratch = Scratch::new();
    for sets in [
        &["model.channels=4194304"][..],
        &["train.batch=4194304", "model.channels=4096"],
        &["train.batch=4194304", "model.channels=4194304", "model.ffn=16777216"],
        &["model.channels=65536", "model.layers=4096", "model.heads=1"],
        &["model.vocabulary=268435456", "model.channels=4096"],
        &["model.vocabulary=268435456", "train.batch=4194304", "train.chunk_rows=268435456"],
    ] {
        refuse(&scratch, scratch.tiny("run", sets, &[]), FAILED, &["memory"]);
        let dry = run(scratch.tiny("run", sets, &["--dry-run"]));
        assert!(dry.code == FAILED && !dry.stderr.contains("panicked"), "{sets:?}: {}", dry.stderr);
    }
    // A long text for a long block.
    fs::write(scratch.text(), common::text(6 << 20)).unwrap();
    for sets in [
        &["model.block=4194304", "train.batch=262144", "model.channels=4194304"][..],
        &["model.block=4194304", "train.batch=262144", "train.recompute=true", "train.chunk_rows=268435456"],
    ] {
        refuse(&scratch, scratch.tiny("run", sets, &[]), FAILED, &["memory"]);
    }
}

#[test]
fn a_learning_rate_that_ends_in_nan() {
    let scratch = Scratch::new();
    let sets = ["optimizer.weight_decay=0", "schedule.warmup=0", "train.checkpoint_every=1", "train.eval_every=0"];
    for (index, rate) in ["1e30", "1e200"].into_iter().enumerate() {
        let rate = format!("optimizer.learning_rate={rate}");
        let out = format!("run {index}");
        let outcome = run(scratch.tiny(&out, &[&sets[..], &[&rate]].concat(), &[]));
        assert_failed_while_running(&outcome, &["step 2", "the first tensor that holds one is ", "--resume"]);
        let folder = scratch.path(&out);
        assert_loads(&folder, 1);
        assert_eq!(metrics(&folder).len(), 1);
        let report = fs::read_to_string(folder.join("report.html")).unwrap();
        assert!(report.contains("the first tensor that holds one is"), "the report says so too");
    }
}

/// A model that is ruined never becomes the best one, and the last good checkpoint stays.
#[test]
fn a_validation_loss_that_is_nan() {
    let scratch = Scratch::new();
    let sets = ["optimizer.learning_rate=1e-3", "schedule.warmup=0", "schedule.kind=constant"];
    succeed(scratch.tiny("run", &sets, &["--steps", "2"]));
    let folder = scratch.path("run");
    let before = state(&folder, 2);
    let more = ["train.steps=9", "train.eval_every=1", "optimizer.learning_rate=1e30", "optimizer.weight_decay=0"];
    let outcome = run(resume(&folder, &more));
    assert_failed_while_running(&outcome, &["step 3", "validation loss", "first tensor that holds one is "]);
    assert!(state(&folder, 2) == before);
    assert_eq!(fs::read_link(folder.join("checkpoints/best")).unwrap(), PathBuf::from("step-00000002"));
    succeed(resume(&folder, &["optimizer.learning_rate=1e-3", "train.steps=4"]));
}
