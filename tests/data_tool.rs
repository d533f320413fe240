//! `engine-data` as its users meet it: through the built program, by its files, messages and exit codes.

use engine::data::shard::{MAGIC, TokenType, write_shard};
use engine::data::{Dataset, Format, Order, Sampler, Tokenizer};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;
use tempfile::TempDir;

const TEXT: &str =
    "First Citizen:\nBefore we proceed any further, hear me speak.\n\nAll:\nSpeak, speak — naïve 漢字 🦀.\n";

struct Bench {
    folder: TempDir,
}

impl Bench {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        std::fs::write(self.path(name), content).unwrap();
        self.path(name)
    }

    /// Runs `engine-data` in the folder; arguments are parted by spaces.
    fn run(&self, arguments: &str) -> Output {
        Command::new(env!("CARGO_BIN_EXE_engine-data"))
            .args(arguments.split_whitespace())
            .current_dir(self.folder.path())
            .output()
            .unwrap()
    }

    fn succeed(&self, arguments: &str) -> String {
        let output = self.run(arguments);
        assert_eq!(output.status.code(), Some(0), "{arguments}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    fn succeed_json(&self, arguments: &str) -> Value {
        serde_json::from_str(&self.succeed(arguments)).unwrap()
    }

    /// Runs a command that must fail with one line that holds `expected`, and returns the line.
    fn fail(&self, arguments: &str, code: i32, expected: &str) -> String {
        let output = self.run(arguments);
        let message = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{arguments}: {message}");
        assert!(message.contains(expected), "{arguments}: {message:?} does not say {expected:?}");
        assert_eq!(message.trim_end().lines().count(), 1, "{message}");
        assert!(message.starts_with("engine-data: ") && !message.contains("panicked"), "{message}");
        message
    }

    /// Names in a folder, sorted.
    fn names(&self, folder: &str) -> Vec<String> {
        names(&self.path(folder))
    }
}

fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn tokens(dataset: &Dataset) -> Vec<u32> {
    let mut ids = vec![0; dataset.len()];
    dataset.read(0, &mut ids);
    ids.into_iter().map(|id| id as u32).collect()
}

/// The bytes of a shard as llm.c's Python tools write them: 256 little-endian i32, then u16 tokens.
fn llm_c_shard(tokens: &[u16]) -> Vec<u8> {
    let mut header = [0i32; 256];
    (header[0], header[1], header[2]) = (MAGIC, 1, tokens.len() as i32);
    let mut bytes: Vec<u8> = header.iter().flat_map(|word| word.to_le_bytes()).collect();
    bytes.extend(tokens.iter().flat_map(|token| token.to_le_bytes()));
    bytes
}

#[test]
fn text_comes_back_from_packed_shards_for_every_tokenizer() {
    let bench = Bench::new();
    bench.write("text.txt", TEXT.repeat(50));
    bench.succeed("tokenizer --input text.txt --vocab-size 300 --out bpe.json");
    for tokenizer in ["byte", "char", "bpe.json"] {
        let out = format!("out-{tokenizer}");
        let result = bench.succeed_json(&format!(
            "pack --input text.txt --tokenizer {tokenizer} --out {out} --val-fraction 0.2 --shard-tokens 1000 --json"
        ));
        let (train, val) = Dataset::open_splits(bench.path(&out), Format::Shard).unwrap();
        let val = val.unwrap();
        assert!(train.shards().len() > 1, "{tokenizer}: one shard only");
        assert_eq!(result["dataset"]["train"]["tokens"], train.len());
        assert_eq!(result["dataset"]["val"]["fingerprint"], val.fingerprint());
        let tokenizer = Tokenizer::load(bench.path(&out)).unwrap();
        assert_eq!(result["dataset"]["vocabulary"], tokenizer.vocabulary());
        let text =
            [tokens(&train), tokens(&val)].map(|ids| tokenizer.decode(&ids).replace("<|endoftext|>", "")).concat();
        assert_eq!(text, TEXT.repeat(50));
        assert!(bench.succeed(&format!("verify {out}")).contains("good"));
        let report = bench.succeed_json(&format!("inspect {out} --json --sample 20"));
        assert!(TEXT.starts_with(report["splits"][0]["sample"].as_str().unwrap()));
        assert!(bench.succeed(&format!("inspect {out}")).contains("most frequent"));
    }
}

#[test]
fn text_given_to_the_trainer_is_split_as_packed_text_is() {
    let bench = Bench::new();
    bench.write("a.txt", TEXT.repeat(7));
    bench.write("b.txt", TEXT.repeat(3));
    bench.succeed("pack --input a.txt b.txt --tokenizer char --out out --val-fraction 0.1");
    let (train, val) = Dataset::open_splits(bench.path("out"), Format::Shard).unwrap();
    let tokenizer = Tokenizer::load(bench.path("out")).unwrap();
    let inputs = [bench.path("a.txt"), bench.path("b.txt")];
    let (text_train, text_val) = Dataset::from_text_files(&inputs, &tokenizer, 0.1).unwrap();
    assert_eq!(text_train.fingerprint(), train.fingerprint());
    assert_eq!(text_val.fingerprint(), val.unwrap().fingerprint());
}

#[test]
fn the_number_of_threads_does_not_change_a_byte() {
    let bench = Bench::new();
    let text: String = (0..120_000).map(|line| format!("line {line}: {}\n", &TEXT[line % 14..50])).collect();
    bench.write("text.txt", &text);
    bench.write("small.txt", &text[..20_000]);
    bench.succeed("tokenizer --input small.txt --vocab-size 400 --out bpe.json");
    for tokenizer in ["bpe.json", "char"] {
        let pack = |threads: usize| {
            let out = format!("{tokenizer}-{threads}");
            bench.succeed(&format!(
                "pack --input text.txt small.txt --tokenizer {tokenizer} --threads {threads} --out {out} \
                 --document line --val-fraction 0.05 --shard-tokens 700000"
            ));
            names(&bench.path(&out))
                .into_iter()
                .map(|name| {
                    let bytes = std::fs::read(bench.path(&out).join(&name)).unwrap();
                    (name, bytes)
                })
                .collect::<Vec<_>>()
        };
        let serial = pack(1);
        assert!(serial.iter().filter(|(name, _)| name.starts_with("train_")).count() >= 2);
        for threads in [2, 5] {
            assert!(pack(threads) == serial, "{tokenizer} with {threads} threads");
        }
        // Serial through the library in one piece, without the packer.
        let (train, _) = Dataset::open_splits(bench.path(&format!("{tokenizer}-5")), Format::Shard).unwrap();
        let mut start = vec![0; 5000];
        train.read(0, &mut start);
        let end = if tokenizer == "char" { "\n" } else { "<|endoftext|>" };
        let whole = Tokenizer::load(bench.path(&format!("{tokenizer}-5"))).unwrap();
        let whole = whole.encode(&text[..40_000].replace('\n', end)).unwrap();
        assert!(start.iter().zip(&whole).all(|(a, b)| *a as u32 == *b));
    }
}

#[test]
fn shards_of_llm_c_and_nanogpt_work_as_they_are() {
    let bench = Bench::new();
    bench.write("tiny_train.bin", llm_c_shard(&[50256, 1, 2, 3]));
    bench.write("tiny_val.bin", llm_c_shard(&[50256, 9]));
    bench.write("raw.bin", [1, 0, 255, 255]);
    assert!(
        bench.succeed("verify tiny_train.bin --vocab-size 50257").contains("4 tokens, ids checked against 50257: good")
    );
    let report = bench.succeed_json("inspect tiny_train.bin --json");
    assert_eq!(report["splits"][0]["tokens"], 4);
    assert_eq!(report["splits"][0]["token_type"], "u16");
    assert_eq!(report["splits"][0]["largest_token"], 50256);
    assert!(bench.succeed("inspect raw.bin --raw-u16").contains("the largest is 65535"));
    bench.fail("inspect raw.bin", 1, "headerless u16 files as nanoGPT writes them need the raw-u16 format");
    std::fs::remove_file(bench.path("raw.bin")).unwrap();
    let report = bench.succeed_json("inspect . --json");
    assert_eq!((&report["splits"][0]["tokens"], &report["splits"][1]["tokens"]), (&4.into(), &2.into()));
}

#[test]
fn a_large_vocabulary_is_stored_in_four_bytes() {
    let bench = Bench::new();
    write_shard(bench.path("wide.bin"), TokenType::U32, &[1, 70_000]).unwrap();
    assert_eq!(bench.succeed_json("inspect wide.bin --json")["splits"][0]["token_type"], "u32");
    let findings = bench.run("verify wide.bin --vocab-size 70000");
    assert_eq!(findings.status.code(), Some(1));
    let text = String::from_utf8(findings.stdout).unwrap();
    assert!(text.contains("wide.bin: token 70000 at position 1 is not below the vocabulary of 70000"), "{text}");
}

#[test]
fn every_kind_of_bad_shard_is_named_by_inspect_and_found_by_verify() {
    let bench = Bench::new();
    let good = llm_c_shard(&[1, 2, 3, 4]);
    let changed = |index: usize, value: i32| {
        let mut bytes = good.clone();
        bytes[index * 4..index * 4 + 4].copy_from_slice(&value.to_le_bytes());
        bytes
    };
    for (bytes, expected) in [
        (vec![], "the file is empty"),
        (good[..1023].to_vec(), "cut short: 1023 bytes, but the header alone has 1024"),
        (good[..good.len() - 2].to_vec(), "cut short: the header names 4 u16 tokens (8 bytes), but 6 bytes follow it"),
        (good[..good.len() - 1].to_vec(), "but 7 bytes follow it"),
        ([good.clone(), vec![0]].concat(), "length and header differ"),
        (changed(0, 20240801), "not a token shard: it starts with 20240801"),
        (changed(1, 3), "shard version 3 is unknown"),
        (changed(2, 5), "the header names 5 u16 tokens"),
        (changed(2, -4), "the header names -4 tokens"),
        (changed(2, i32::MAX), "the header names 2147483647 u16 tokens"),
    ] {
        bench.write("bad.bin", bytes);
        bench.fail("inspect bad.bin", 1, expected);
        let found = bench.run("verify bad.bin");
        assert_eq!(found.status.code(), Some(1));
        let text = String::from_utf8(found.stdout).unwrap();
        assert!(text.contains(expected) && text.contains("1 finding"), "{text}");
    }
    bench.write("odd.bin", [1, 2, 3]);
    bench.fail("inspect odd.bin --raw-u16", 1, "two bytes each, but the file has 3 bytes");
    bench.fail("inspect none.bin", 1, "none.bin: no such file");
    bench.fail("verify none.bin", 1, "none.bin: no such file");
    std::fs::create_dir(bench.path("empty")).unwrap();
    bench.fail("inspect empty", 1, "no .bin file for training");
}

#[test]
fn every_kind_of_bad_input_to_pack_is_one_line_and_leaves_no_shard() {
    let bench = Bench::new();
    bench.write("good.txt", TEXT);
    bench.write("latin1.txt", b"caf\xE9");
    bench.write("late.txt", [&b"a\n".repeat(1 << 20)[..], b"\xFF"].concat());
    bench.write("empty.txt", "");
    bench.write("ascii.txt", "abc\n");
    bench.write("broken.json", "{\"model\": ");
    bench.succeed("pack --input ascii.txt --tokenizer char --out ascii");
    for (arguments, code, expected) in [
        ("--input none.txt --tokenizer byte", 1, "none.txt: no such file"),
        ("--input . --tokenizer byte", 1, "is a folder, not a text file"),
        ("--input latin1.txt --tokenizer byte", 1, "latin1.txt: not UTF-8 at byte 3"),
        ("--input good.txt late.txt --tokenizer byte", 1, "late.txt: not UTF-8 at byte 2097152"),
        ("--input good.txt latin1.txt --tokenizer char", 1, "latin1.txt: not UTF-8 at byte 3"),
        ("--input empty.txt --tokenizer byte", 2, "hold no text"),
        ("--input empty.txt --tokenizer char", 1, "the text is empty"),
        ("--input good.txt --tokenizer none.json", 1, "none.json: no such file"),
        ("--input good.txt --tokenizer broken.json", 1, "broken.json: not JSON"),
        (
            "--input ascii.txt good.txt --tokenizer ascii/tokenizer.json",
            1,
            "good.txt: line 1, column 1: character 'F' (U+0046)",
        ),
        ("--input good.txt --tokenizer byte --val-fraction 1", 2, "validation fraction 1 is not in 0..1"),
        ("--input good.txt --tokenizer byte --val-fraction NaN", 2, "validation fraction NaN"),
        ("--input good.txt --tokenizer byte --shard-tokens 0", 2, "0 tokens per shard"),
    ] {
        bench.fail(&format!("pack --out out {arguments}"), code, expected);
        assert!(!bench.path("out").exists() || bench.names("out").is_empty(), "{arguments}: {:?}", bench.names("out"));
    }
    bench.fail("tokenizer --input good.txt --vocab-size 100 --out t.json", 2, "at least 257 ids");
    bench.fail("tokenizer --input latin1.txt --vocab-size 300 --out t.json", 1, "not UTF-8 at byte 3");
    bench.fail("tokenizer --input empty.txt --vocab-size 300 --out t.json", 1, "the text is empty");
    bench.fail("tokenizer --input good.txt --vocab-size 300 --out no/t.json", 1, "no/t.json: no such file or folder");
    assert!(!bench.path("t.json").exists());
    for arguments in ["", "pack", "pack --input good.txt", "frobnicate", "inspect", "pack --no-such-option"] {
        assert_eq!(bench.run(arguments).status.code(), Some(2), "{arguments}");
    }
    assert!(bench.succeed("--help").contains("Examples:"));
    assert!(bench.succeed("pack --help").contains("Examples:"));
}

#[test]
fn an_existing_data_set_is_only_replaced_when_asked() {
    let bench = Bench::new();
    bench.write("text.txt", TEXT.repeat(100));
    bench.write("other.txt", "other words\n");
    bench.succeed("pack --input text.txt --tokenizer byte --out out --shard-tokens 1000 --val-fraction 0.1");
    let before = bench.names("out");
    bench.fail("pack --input other.txt --tokenizer byte --out out", 1, "already holds a data set");
    assert_eq!(bench.names("out"), before);
    bench.succeed("verify out");
    // A replacement that fails keeps the old set as well.
    bench.write("latin1.txt", b"caf\xE9");
    bench.fail("pack --input latin1.txt --tokenizer byte --out out --overwrite", 1, "not UTF-8");
    assert_eq!(bench.names("out"), before);
    bench.succeed("pack --input other.txt --tokenizer byte --out out --overwrite");
    assert_eq!(bench.names("out"), ["dataset.json", "tokenizer.json", "train_000000.bin"]);
    bench.succeed("verify out");
    bench.write("file", "");
    bench.fail("pack --input other.txt --tokenizer byte --out file", 1, "cannot write");
    bench.fail("pack --input other.txt --tokenizer byte --out file/under", 1, "cannot write");
    if cfg!(target_os = "linux") {
        bench.fail("pack --input other.txt --tokenizer byte --out /proc/none", 1, "cannot write /proc/none");
    }
    bench.write("out/train.bin", "");
    let expected = "train.bin: lies in the output folder but is not ours to replace";
    bench.fail("pack --input other.txt --tokenizer byte --out out --overwrite", 1, expected);
    std::fs::remove_file(bench.path("out/train.bin")).unwrap();
    bench.write("out/unfinished", "");
    bench.fail("inspect out", 1, "was killed here");
    bench.succeed("pack --input other.txt --tokenizer byte --out out --overwrite");
    bench.succeed("inspect out");
    std::fs::remove_file(bench.path("out/train_000000.bin")).unwrap();
    bench.write("out/train_000000.bin", llm_c_shard(&[1]));
    bench.fail("inspect out", 1, "its shards hold [1, 0] tokens (train, val), but dataset.json names [12, 0]");
}

#[test]
fn verify_finds_what_was_changed_in_a_packed_folder() {
    let bench = Bench::new();
    bench.write("text.txt", TEXT.repeat(100));
    let pack = "pack --input text.txt --tokenizer char --out out --shard-tokens 4000 --val-fraction 0.1 --overwrite";
    let shard = bench.path("out/train_000001.bin");
    let finds = |expected: &str| {
        let output = bench.run("verify out");
        let text = String::from_utf8(output.stdout).unwrap();
        assert_eq!(output.status.code(), Some(1), "{text}");
        assert!(text.contains(expected), "{text:?} does not say {expected:?}");
        let report: Value = serde_json::from_slice(&bench.run("verify out --json").stdout).unwrap();
        assert!(
            report["findings"].as_array().unwrap().iter().any(|finding| finding.as_str().unwrap().contains(expected))
        );
    };
    let edit = |change: &dyn Fn(&mut Vec<u8>)| {
        bench.succeed(pack);
        let mut bytes = std::fs::read(&shard).unwrap();
        change(&mut bytes);
        std::fs::write(&shard, bytes).unwrap();
    };
    edit(&|bytes| bytes[2000] ^= 1);
    finds("train_000001.bin: its content does not match the checksum");
    edit(&|bytes| bytes[2001] = 9);
    finds("train_000001.bin: token 23");
    edit(&|bytes| bytes.truncate(3000));
    finds("train_000001.bin: cut short");
    edit(&|bytes| *bytes = llm_c_shard(&[1, 2]));
    finds("has 2 tokens, but dataset.json names 4000");
    bench.succeed(pack);
    std::fs::remove_file(&shard).unwrap();
    finds("train_000001.bin: no such file");
    bench.succeed(pack);
    bench.write("out/train_000099.bin", llm_c_shard(&[1]));
    finds("train_000099.bin: is not in dataset.json");
    bench.succeed(pack);
    Tokenizer::char_from("abc").unwrap().save(bench.path("out/tokenizer.json")).unwrap();
    finds("but the tokenizer has 3");
    bench.succeed(pack);
    bench.write("out/dataset.json", "{");
    finds("not a description of a data set");
    bench.succeed(pack);
    let text = std::fs::read_to_string(bench.path("out/dataset.json")).unwrap();
    let (train, _) = Dataset::open_splits(bench.path("out"), Format::Shard).unwrap();
    bench.write("out/dataset.json", text.replace(&train.fingerprint(), "1-1-00"));
    finds("not 1-1-00");
}

#[test]
fn a_killed_run_leaves_nothing_under_a_final_name_and_the_next_one_works() {
    let bench = Bench::new();
    bench.write("text.txt", TEXT.repeat(60_000));
    let command = "pack --input text.txt --tokenizer byte --out out --shard-tokens 300000";
    let mut killed = 0;
    for attempt in 0..12 {
        let mut child = Command::new(env!("CARGO_BIN_EXE_engine-data"))
            .args(command.split_whitespace())
            .current_dir(bench.folder.path())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_millis(3 * attempt));
        child.kill().unwrap();
        if child.wait().unwrap().success() {
            std::fs::remove_dir_all(bench.path("out")).unwrap();
            continue;
        }
        killed += 1;
        if bench.path("out").exists() {
            // Whatever opens is the whole set.
            if let Ok(dataset) = Dataset::open(&[bench.path("out")], Format::Shard) {
                assert_eq!(dataset.len(), TEXT.len() * 60_000);
            }
            bench.succeed(&format!("{command} --overwrite"));
            bench.succeed("verify out");
            assert!(bench.names("out").iter().all(|name| !name.starts_with('.')), "{:?}", bench.names("out"));
            std::fs::remove_dir_all(bench.path("out")).unwrap();
        }
    }
    assert!(killed > 0, "every run ended before it was killed");
}

/// A file size limit stands in for a full disk: writing fails in the middle of a shard.
#[test]
#[cfg(unix)]
fn a_write_that_fails_half_way_leaves_nothing_and_says_why() {
    let bench = Bench::new();
    bench.write("text.txt", TEXT.repeat(20_000));
    let program = env!("CARGO_BIN_EXE_engine-data");
    let script = format!(
        "trap '' XFSZ; ulimit -f 200; exec '{program}' pack --input text.txt --tokenizer byte --out out --shard-tokens 90000"
    );
    let output = Command::new("bash").args(["-c", &script]).current_dir(bench.folder.path()).output().unwrap();
    let message = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(0), "shards below the limit are written: {message}");
    std::fs::remove_dir_all(bench.path("out")).unwrap();
    let script = script.replace("--shard-tokens 90000", "");
    let output = Command::new("bash").args(["-c", &script]).current_dir(bench.folder.path()).output().unwrap();
    let message = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{message}");
    assert!(message.contains("train_000000.bin: the file would exceed the largest size allowed"), "{message}");
    assert!(bench.names("out").is_empty(), "{:?}", bench.names("out"));
}

#[test]
#[cfg(target_os = "linux")]
fn a_full_disk_is_called_by_its_name() {
    let bench = Bench::new();
    bench.write("train.bin", llm_c_shard(&[1, 2]));
    let script = format!("exec '{}' inspect train.bin > /dev/full", env!("CARGO_BIN_EXE_engine-data"));
    let output = Command::new("bash").args(["-c", &script]).current_dir(bench.folder.path()).output().unwrap();
    let message = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{message}");
    assert!(message.contains("the disk is full"), "{message}");
}

/// On a file system of 300 kB inside a mount namespace of its own, where the system lets an ordinary user make one.
#[test]
#[cfg(target_os = "linux")]
fn packing_onto_a_full_disk_leaves_nothing_and_says_so() {
    let bench = Bench::new();
    bench.write("text.txt", TEXT.repeat(20_000));
    std::fs::create_dir(bench.path("disk")).unwrap();
    let script = format!(
        "mount -t tmpfs -o size=300k none disk && echo mounted || exit
         '{}' pack --input text.txt --tokenizer byte --out disk/out; code=$?; ls -A disk/out; exit $code",
        env!("CARGO_BIN_EXE_engine-data")
    );
    let output = Command::new("unshare").args(["-rm", "bash", "-c", &script]).current_dir(bench.folder.path()).output();
    let Some(output) = output.ok().filter(|output| output.stdout.starts_with(b"mounted")) else {
        eprintln!("skipped: this system does not let the test mount a small file system (unshare -rm)");
        return;
    };
    let message = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{message}");
    assert!(message.ends_with("train_000000.bin: the disk is full; free some space and run it again\n"), "{message}");
    assert_eq!(output.stdout, b"mounted\n", "left behind: {}", String::from_utf8_lossy(&output.stdout));
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let bench = Bench::new();
    bench.write("train.bin", llm_c_shard(&[1; 100_000]));
    let script = format!(
        "set -o pipefail; '{}' inspect train.bin --sample 100000 | head -c 5",
        env!("CARGO_BIN_EXE_engine-data")
    );
    let output = Command::new("bash").args(["-c", &script]).current_dir(bench.folder.path()).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn a_resumed_sampler_draws_the_same_batches_from_packed_shards() {
    let bench = Bench::new();
    bench.write("text.txt", TEXT.repeat(20));
    bench.succeed("pack --input text.txt --tokenizer byte --out out --shard-tokens 301");
    let dataset = Dataset::open(&[bench.path("out")], Format::Shard).unwrap();
    assert!(dataset.shards().len() > 3);
    for order in [Order::Sequential, Order::Random, Order::Shuffled] {
        let sampler = || Sampler::new(dataset.len(), order, 4, 64, 11).unwrap();
        let draw = |sampler: &mut Sampler| {
            let (mut ids, mut targets) = (vec![0; 256], vec![0; 256]);
            sampler.next_batch(&dataset, &mut ids, &mut targets).unwrap();
            (ids, targets)
        };
        let mut straight = sampler();
        let expected: Vec<_> = (0..40).map(|_| draw(&mut straight)).collect();
        assert!(straight.epoch() >= 2, "the run must cross epochs");
        let mut first = sampler();
        let mut batches: Vec<_> = (0..20).map(|_| draw(&mut first)).collect();
        let mut second = sampler();
        second.restore(&first.state()).unwrap();
        batches.extend((20..40).map(|_| draw(&mut second)));
        assert!(batches == expected, "{order:?}");
    }
}
