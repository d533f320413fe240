//! `engine-data labelled` as its users meet it: files in, a folder out, and one line for each thing that can be wrong.

use engine::data::labelled::{Label, LabelledSet, Long, Options, Task};
use engine::data::table::{Quotes, Table};
use engine::data::tokenizer::SpecialTokens;
use engine::data::{Tokenizer, images::Images};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

struct Bench {
    folder: tempfile::TempDir,
}

impl Bench {
    /// A folder with a tokenizer for encoders in it.
    fn new() -> Self {
        let bench = Self { folder: tempfile::tempdir().unwrap() };
        bench.write("words.txt", "a good film, a bad film. the cat sat on the mat\n".repeat(20));
        bench.succeed("tokenizer --model wordpiece --lowercase --input words.txt --vocab-size 60 --out wp.json");
        bench
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, name: &str, content: impl AsRef<[u8]>) {
        std::fs::write(self.path(name), content).unwrap();
    }

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

    /// Runs a command that must fail with one line that holds `expected`, and leave no data behind.
    fn fail(&self, arguments: &str, code: i32, expected: &str) {
        let output = self.run(arguments);
        let message = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{arguments}: {message}");
        assert!(message.contains(expected), "{arguments}: {message:?} does not say {expected:?}");
        assert_eq!(message.trim_end().lines().count(), 1, "{message}");
        assert!(message.starts_with("engine-data: ") && !message.contains("panicked"), "{message}");
    }
}

fn is_empty(folder: &Path) -> bool {
    !folder.exists() || std::fs::read_dir(folder).unwrap().next().is_none()
}

#[test]
fn a_validation_set_takes_its_classes_from_the_training_set() {
    let bench = Bench::new();
    bench.write("train.tsv", "label\ttext\ngood\ta good film\nbad\ta bad film\nbad\tthe bad cat\n");
    bench.write("dev.csv", "text,label\n\"the cat, sat\",good\n");
    let text = bench.succeed("labelled --task classification --input train.tsv --tokenizer wp.json --out train");
    for expected in ["classification, 3 examples of 3 rows", "2 classes:", "66.7 %  bad", "1 file"] {
        assert!(text.contains(expected), "{text}");
    }
    let json = bench.succeed(
        "labelled --task classification --input dev.csv --tokenizer train --classes-from train --out dev --json",
    );
    let json: Value = serde_json::from_str(&json).unwrap();
    assert_eq!((&json["set"]["classes"], &json["set"]["class_counts"]), (&json!(["bad", "good"]), &json!([0, 1])));
    let (train, dev) = (LabelledSet::open(bench.path("train")).unwrap(), LabelledSet::open(bench.path("dev")).unwrap());
    dev.check_same_labels(&train).unwrap();
    assert_eq!(dev.label(0), Label::Class(1));

    let shown = bench.succeed("inspect train --sample 1");
    assert!(shown.contains("good: \"[CLS] a good film [SEP]\"") && shown.contains("fingerprint 3-"), "{shown}");
    let report: Value = serde_json::from_str(&bench.succeed("inspect dev --json")).unwrap();
    assert_eq!((&report["kind"], &report["samples"][0]["label"]), (&json!("classification"), &json!("good")));
    assert!(bench.succeed("verify train").contains("3 examples") && bench.succeed("verify dev").contains("good"));
    assert_eq!(bench.run("verify train --vocab-size 3").status.code(), Some(1));
}

#[test]
fn each_task_makes_its_examples() {
    let bench = Bench::new();
    bench.write(
        "a.jsonl",
        "{\"text\": \"the cat\", \"other\": \"a film\", \"label\": [\"x\", \"y\"], \"score\": 0.5}\n",
    );
    bench.write("q.jsonl", "{\"id\": \"q\", \"question\": \"the cat\", \"context\": \"a film sat on the mat\", \"answers\": [\"mat\"], \"answer_start\": 18}\n");
    bench.write("p.tsv", "en\tzh\nthe cat\ta film\n");
    for (arguments, expected) in [
        ("--task text --input words.txt --max-tokens 8", "text, "),
        ("--task multi-label --input a.jsonl --text-pair other", "2 classes:"),
        ("--task regression --input a.jsonl --label score", "labels from 0.5 to 0.5"),
        ("--task span --input q.jsonl --id id --max-tokens 12 --stride 2", "with the answer in them"),
        ("--task pair --input p.tsv --text en --text-pair zh", "pair, 1 example of 1 row"),
    ] {
        let text = bench.succeed(&format!("labelled {arguments} --tokenizer wp.json --out out --overwrite"));
        assert!(text.contains(expected), "{text}");
        assert!(bench.succeed("verify out").contains("good"));
        assert!(bench.succeed("inspect out").contains("[CLS]"));
    }
}

#[test]
fn bad_rows_are_named_with_file_and_row_and_leave_nothing_behind() {
    let bench = Bench::new();
    bench.write("good.tsv", "label\ttext\ngood\ta good film\nbad\ta bad film\n");
    bench.succeed("labelled --task classification --input good.tsv --tokenizer wp.json --out train");
    bench.write("columns.tsv", "label\tbody\ngood\ta film\n");
    bench.write("label.tsv", "label\ttext\ngood\ta film\n\ta film\n");
    bench.write("unseen.tsv", "label\ttext\ngood\ta film\nugly\ta film\n");
    bench.write("empty.tsv", "label\ttext\ngood\ta film\ngood\t \n");
    bench.write("broken.tsv.gz", "no gz");
    bench.write("odd.tsv", "en\tzh\nthe cat\ta film\nthe cat\n");
    bench.write("side.tsv", "en\tzh\nthe cat\t\n");
    bench.write("nothing.tsv", "");
    bench.write("bytes.tsv", b"label\ttext\ngood\t\xFF\n");
    let span = |start: i32| {
        format!(
            "{{\"question\": \"the cat\", \"context\": \"a film\", \"answers\": [\"film\"], \"answer_start\": {start}}}\n"
        )
    };
    bench.write("span.jsonl", span(2) + &span(3));
    bench.write("json.jsonl", span(2) + "{");
    let classify = "labelled --task classification --tokenizer wp.json --out out --input";
    let ask = "labelled --task span --max-tokens 20 --tokenizer wp.json --out out --input";
    let translate = "labelled --task pair --text en --text-pair zh --tokenizer wp.json --out out --input";
    for (arguments, code, expected) in [
        (format!("{classify} columns.tsv"), 1, "columns.tsv: no column \"text\"; it has \"body\", \"label\""),
        (format!("{classify} label.tsv"), 1, "label.tsv: row 2 (line 3): empty label"),
        (
            format!("{classify} unseen.tsv --classes-from train"),
            1,
            "unseen.tsv: row 2 (line 3): label \"ugly\" is none of the known ones, ",
        ),
        (format!("{classify} empty.tsv"), 1, "empty.tsv: row 2 (line 3): the text in column \"text\" has no tokens"),
        (format!("{classify} broken.tsv.gz"), 1, "broken.tsv.gz: broken gz"),
        (format!("{classify} nothing.tsv"), 1, "nothing.tsv: the file is empty"),
        (format!("{classify} bytes.tsv"), 1, "bytes.tsv: row 1 (line 2): not UTF-8"),
        (format!("{classify} no.tsv"), 1, "no.tsv: no such file"),
        (format!("{classify} words.doc"), 1, "words.doc: its name does not tell the format"),
        (format!("{translate} odd.tsv"), 1, "odd.tsv: row 2 (line 3): 1 fields, but the file has 2 columns"),
        (format!("{translate} side.tsv"), 1, "side.tsv: row 1 (line 2): the text in column \"zh\" has no tokens"),
        (
            format!("{ask} span.jsonl"),
            1,
            "span.jsonl: row 2 (line 2): answer \"film\" at characters 3..7 is outside its context of 6",
        ),
        (format!("{ask} json.jsonl"), 1, "json.jsonl: row 2 (line 2): not JSON"),
        (format!("{classify} good.tsv --max-tokens 2"), 2, "max tokens 2 is not in 3..=16777216"),
        (format!("{classify} good.tsv --truncate"), 2, "--truncate means nothing for --task classification"),
        (format!("{classify} good.tsv --classes-from out"), 1, "has no labels.json"),
        (classify.replace("wp.json", "byte") + " good.tsv", 1, "no [CLS] and [SEP]"),
        ("tokenizer --model wordpiece --input words.txt --vocab-size 8 --out t.json".into(), 2, "different letters"),
        (
            "labelled --task classification --tokenizer wp.json --out train --input good.tsv".into(),
            1,
            "already holds a data set",
        ),
    ] {
        bench.fail(&arguments, code, expected);
        assert!(is_empty(&bench.path("out")), "{arguments} left files behind");
    }
}

/// Where larger data is; None, with a word on it, where it is not.
fn shared_data(test: &str) -> Option<PathBuf> {
    let folder = std::env::var_os("ENGINE_SHARED_DATA").map(PathBuf::from);
    if folder.is_none() {
        println!("{test}: skipped, since ENGINE_SHARED_DATA does not name a folder of data sets");
    }
    folder
}

#[test]
fn real_questions_in_english_and_chinese_have_their_answers_where_the_windows_say() {
    let Some(data) = shared_data("real questions") else { return };
    let bench = Bench::new();
    for language in ["en", "zh"] {
        let file = data.join(format!("xquad_{language}_dev.jsonl.gz"));
        let bpe = format!("{language}.json");
        let file_name = file.display();
        bench.succeed(&format!(
            "tokenizer --model bpe --input {file_name} --column context --vocab-size 2000 --out {bpe}"
        ));
        let tokenizer = Tokenizer::load(bench.path(&bpe)).unwrap();
        let task = Task::Span {
            question: "question".into(),
            context: "context".into(),
            answers: "answers".into(),
            answer_start: "answer_start".into(),
            id: Some("id".into()),
            stride: 64,
        };
        let set = LabelledSet::from_files(&[&file], &tokenizer, &Options::new(task, 256), &|_, _| ()).unwrap();
        let mut answered = vec![false; set.rows()];
        for example in 0..set.len() {
            let Label::Span(Some(answer)) = set.label(example) else { continue };
            let question = set.question(set.row(example)).unwrap();
            let (first, end) = (set.characters(example, answer.start).0, set.characters(example, answer.end - 1).1);
            let text: String = question.context.chars().skip(first).take(end - first).collect();
            assert!(text.contains(&question.answers[0]), "{text:?} does not hold {:?}", question.answers[0]);
            answered[set.row(example)] = true;
        }
        let share = answered.iter().filter(|&&is_answered| is_answered).count() as f64 / set.rows() as f64;
        assert!(share > 0.99, "{language}: only {share} of the answers are whole in some window");
    }
}

#[test]
fn real_reviews_pairs_and_digits_are_read() {
    let Some(data) = shared_data("real data") else { return };
    let mut table = Table::open(data.join("imdb_dev.tsv.gz"), Quotes::InCsv).unwrap();
    assert_eq!(table.columns(), ["label", "text"]);
    assert_eq!(table.next_rows(usize::MAX).unwrap().len(), 5000);
    let bench = Bench::new();
    let pairs = data.join("en_zh_dev.tsv.gz");
    bench.succeed(&format!(
        "labelled --task pair --text en --text-pair zh --input {} --max-tokens 40 --tokenizer wp.json --out pairs",
        pairs.display()
    ));
    let set = LabelledSet::open(bench.path("pairs")).unwrap();
    assert_eq!(set.len(), 1143);
    let special = SpecialTokens::find(&Tokenizer::load(bench.path("wp.json")).unwrap()).unwrap();
    let mut first = vec![0; set.length(0)];
    set.tokens(0).copy_to(&mut first);
    assert_eq!((first[0], first[set.second(0)]), (special.start as i32, special.start as i32));
    let text = Task::Text { text: "text".into(), long: Long::Cut };
    let reviews = LabelledSet::from_files(
        &[data.join("polarity_dev.tsv.gz")],
        &Tokenizer::load(bench.path("wp.json")).unwrap(),
        &Options::new(text, 64),
        &|_, _| (),
    );
    assert!(reviews.unwrap().len() >= 800);
    let digits =
        Images::from_idx(data.join("digits_dev_images.idx.gz"), Some(&data.join("digits_dev_labels.idx.gz"))).unwrap();
    assert_eq!((digits.len(), digits.size(), digits.classes().len()), (1000, (28, 28, 1), 10));
    assert_eq!(digits.patches(7).unwrap(), (16, 49));
}
