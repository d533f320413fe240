use super::*;
use crate::data::testing::wordpiece;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A folder of files, and sets made from them.
struct Bench {
    folder: tempfile::TempDir,
    tokenizer: Tokenizer,
}

impl Bench {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap(), tokenizer: wordpiece() }
    }

    fn file(&self, name: &str, content: &str) -> PathBuf {
        let path = self.folder.path().join(name);
        std::fs::write(&path, content).unwrap();
        path
    }

    fn set(&self, path: &Path, options: &Options) -> Result<LabelledSet> {
        LabelledSet::from_files(&[path], &self.tokenizer, options, &|_, _| ())
    }

    fn fail(&self, path: &Path, options: &Options, expected: &str) {
        let message = self.set(path, options).err().expect("an error").to_string();
        assert!(message.contains(expected), "{message:?} does not say {expected:?}");
        assert!(!message.contains('\n'), "{message}");
    }

    fn decoded(&self, set: &LabelledSet, example: usize) -> String {
        self.tokenizer.decode(&ids(set, example))
    }
}

fn ids(set: &LabelledSet, example: usize) -> Vec<u32> {
    let mut ids = Vec::new();
    set.tokens(example).for_each(|id| ids.push(id));
    ids
}

fn classification(pair: Option<&str>) -> Task {
    Task::Classification { text: "text".into(), pair: pair.map(String::from), label: "label".into() }
}

fn span(stride: usize) -> Task {
    Task::Span {
        question: "question".into(),
        context: "context".into(),
        answers: "answers".into(),
        answer_start: "answer_start".into(),
        id: Some("id".into()),
        stride,
    }
}

#[test]
fn texts_are_framed_and_classes_are_sorted() {
    let bench = Bench::new();
    let path = bench.file("a.tsv", "label\ttext\npos\tthe cat sat\nneg\tthe dog\npos\ta cat\n");
    let set = bench.set(&path, &Options::new(classification(None), 16)).unwrap();
    assert_eq!((set.len(), set.rows(), set.classes()), (3, 3, &["neg".to_string(), "pos".into()][..]));
    assert_eq!(bench.decoded(&set, 0), "[CLS] the cat sat [SEP]");
    assert_eq!([0, 1, 2].map(|example| set.label(example)), [Label::Class(1), Label::Class(0), Label::Class(1)]);
    assert_eq!(set.class_counts(), [1, 2]);
    assert_eq!((set.second(0), set.length(0), set.longest(), set.total_tokens()), (5, 5, 5, 13));
    assert!(set.types(0).all(|token_type| token_type == 0));
}

#[test]
fn numbered_classes_are_sorted_by_value_and_given_ones_keep_their_order() {
    let bench = Bench::new();
    let path = bench.file("a.jsonl", "{\"text\": \"the cat\", \"label\": 10}\n{\"text\": \"a dog\", \"label\": 9}\n");
    let mut options = Options::new(classification(None), 16);
    assert_eq!(bench.set(&path, &options).unwrap().classes(), ["9", "10"]);
    options.classes = Some(vec!["10".into(), "7".into(), "9".into()]);
    let set = bench.set(&path, &options).unwrap();
    assert_eq!((set.classes().len(), set.label(0), set.label(1)), (3, Label::Class(0), Label::Class(2)));
    options.classes = Some(vec!["10".into(), "8".into()]);
    bench.fail(&path, &options, "a.jsonl: row 2 (line 2): label \"9\" is none of the known ones, 8, 10");
    options.classes = Some(vec!["10".into(), "10".into()]);
    bench.fail(&path, &options, "class \"10\" is given twice");
}

#[test]
fn pairs_have_types_and_lose_the_end_of_the_longer_text() {
    let bench = Bench::new();
    let content = "label\ttext\tother\nx\tthe cat sat on the mat\ta dog\ny\ta dog\tthe cat sat on the mat\n";
    let path = bench.file("a.tsv", content);
    let set = bench.set(&path, &Options::new(classification(Some("other")), 9)).unwrap();
    assert_eq!(bench.decoded(&set, 0), "[CLS] the cat sat on [SEP] a dog [SEP]");
    assert_eq!(bench.decoded(&set, 1), "[CLS] a dog [SEP] the cat sat on [SEP]");
    assert_eq!(set.types(1).collect::<Vec<_>>(), [0, 0, 0, 0, 1, 1, 1, 1, 1]);
    assert_eq!(encode::longest_first(10, 10, 7), (3, 4));
    assert_eq!(encode::longest_first(11, 10, 7), (4, 3));
    assert_eq!(encode::longest_first(2, 10, 7), (2, 5));
    assert_eq!(encode::longest_first(3, 4, 7), (3, 4));
}

#[test]
fn several_labels_come_from_text_and_from_lists() {
    let bench = Bench::new();
    let task = Task::MultiLabel { text: "text".into(), pair: None, label: "label".into(), separator: ",".into() };
    let many: Vec<String> = (0..70).map(|class| format!("c{class:02}")).collect();
    let tsv = format!("label\ttext\nc69, c03\ta cat\n\ta dog\n{}\tthe cat\n", many.join(","));
    let set = bench.set(&bench.file("a.tsv", &tsv), &Options::new(task.clone(), 16)).unwrap();
    assert_eq!([0, 1].map(|example| set.label(example)), [Label::Classes(vec![3, 69]), Label::Classes(vec![])]);
    assert_eq!(set.label(2), Label::Classes((0..70).collect()));
    assert_eq!(set.class_counts()[3], 2);
    let jsonl = "{\"text\": \"a cat\", \"label\": [\"b\", \"a\"]}\n{\"text\": \"a dog\", \"label\": \"b\"}";
    let set = bench.set(&bench.file("a.jsonl", jsonl), &Options::new(task, 16)).unwrap();
    assert_eq!([0, 1].map(|example| set.label(example)), [Label::Classes(vec![0, 1]), Label::Classes(vec![1])]);
}

#[test]
fn numbers_are_labels_of_regression() {
    let bench = Bench::new();
    let task = Task::Regression { text: "text".into(), pair: None, label: "label".into() };
    let path = bench.file("a.tsv", "label\ttext\n2.5\ta cat\n-1e3\ta dog\n");
    let set = bench.set(&path, &Options::new(task.clone(), 16)).unwrap();
    assert_eq!([0, 1].map(|example| set.label(example)), [Label::Value(2.5), Label::Value(-1000.0)]);
    for bad in ["much", "nan", "1e300", ""] {
        let path = bench.file("b.tsv", &format!("label\ttext\n1\ta cat\n{bad}\ta dog\n"));
        bench.fail(&path, &Options::new(task.clone(), 16), "b.tsv: row 2 (line 3): the label in column \"label\" is");
    }
}

#[test]
fn long_documents_are_cut_or_truncated() {
    let bench = Bench::new();
    let path = bench.file("a.txt", "the cat sat on the mat\na dog\n");
    for (long, expected) in [
        (Long::Cut, &["[CLS] the cat sat [SEP]", "[CLS] on the mat [SEP]", "[CLS] a dog [SEP]"][..]),
        (Long::Truncate, &["[CLS] the cat sat [SEP]", "[CLS] a dog [SEP]"]),
    ] {
        let set = bench.set(&path, &Options::new(Task::Text { text: "text".into(), long }, 5)).unwrap();
        assert_eq!((0..set.len()).map(|example| bench.decoded(&set, example)).collect::<Vec<_>>(), expected);
        assert_eq!((set.rows(), set.row(set.len() - 1), set.label(0)), (2, 1, Label::None));
    }
    for (keep, expected) in
        [(Keep::End, "[CLS] cat sat on the mat [SEP]"), (Keep::Both, "[CLS] the sat on the mat [SEP]")]
    {
        let task = Task::Text { text: "text".into(), long: Long::Truncate };
        let set = bench.set(&path, &Options { keep, ..Options::new(task, 7) }).unwrap();
        assert_eq!([bench.decoded(&set, 0), bench.decoded(&set, 1)], [expected, "[CLS] a dog [SEP]"]);
    }
    // Characters have nothing to frame a document with, and need nothing.
    let characters = Tokenizer::char_from("the catsonmdg").unwrap();
    let options = Options::new(Task::Text { text: "text".into(), long: Long::Cut }, 5);
    let set = LabelledSet::from_files(&[&path], &characters, &options, &|_, _| ()).unwrap();
    assert_eq!(characters.decode(&ids(&set, 0)), "the c");
}

#[test]
fn translations_keep_both_texts_framed_and_as_they_were() {
    let bench = Bench::new();
    let path = bench.file("a.tsv", "en\tzh\nThe cat\t猫\nthe cat sat on the mat\ta dog\n");
    let task = Task::Pair { source: "en".into(), target: "zh".into() };
    let set = bench.set(&path, &Options::new(task, 6)).unwrap();
    assert_eq!(bench.decoded(&set, 1), "[CLS] the cat sat on [SEP] [CLS] a dog [SEP]");
    assert_eq!((set.second(1), set.length(1)), (6, 10));
    assert_eq!(set.sides(0).unwrap(), Sides { source: "The cat".into(), target: "猫".into() });
    assert!(set.question(0).is_err());
}

#[test]
fn windows_cover_the_context_and_answers_can_be_cut_out_of_it() {
    let bench = Bench::new();
    let context = "The  cat sat on the mat — a 猫 sat on the dog.";
    let start = context.chars().position(|character| character == '猫').unwrap();
    let row = serde_json::json!({"id": "q1", "question": "a cat", "context": context, "answers": ["猫 sat"], "answer_start": start});
    let nothing =
        serde_json::json!({"id": "q2", "question": "a dog", "context": "the cat", "answers": [], "answer_start": []});
    let path = bench.file("a.jsonl", &format!("{row}\n{nothing}\n"));
    let set = bench.set(&path, &Options::new(span(2), 12)).unwrap();
    assert_eq!((set.rows(), set.row(set.len() - 1)), (2, 1));
    let characters: Vec<char> = context.chars().collect();
    let (mut labelled, mut covered) = (0, 0);
    for example in (0..set.len()).filter(|&example| set.row(example) == 0) {
        assert!(bench.decoded(&set, example).starts_with("[CLS] a cat [SEP] "));
        let tokens = ids(&set, example);
        for token in set.context(example) {
            let (first, end) = set.characters(example, token);
            let cut: String = characters[first..end].iter().collect();
            let piece = bench.tokenizer.token_text(tokens[token]).unwrap();
            assert!(cut.to_lowercase() == piece.trim_start_matches("##") || piece == "[UNK]", "{cut} is not {piece}");
            covered = covered.max(end);
        }
        assert_eq!(set.characters(example, 0), (0, 0));
        if let Label::Span(Some(answer)) = set.label(example) {
            let (first, end) = (set.characters(example, answer.start).0, set.characters(example, answer.end - 1).1);
            assert_eq!(characters[first..end].iter().collect::<String>(), "猫 sat");
            labelled += 1;
        }
    }
    assert!(labelled >= 1 && covered == characters.len(), "{labelled} windows with the answer, {covered} covered");
    assert_eq!(set.label(set.len() - 1), Label::Span(None));
    let question = set.question(0).unwrap();
    assert_eq!((question.id.as_str(), question.context.as_str()), ("q1", context));
    assert_eq!((question.answers, question.answer_starts), (vec!["猫 sat".to_string()], vec![start]));
    assert!(set.question(1).unwrap().answers.is_empty());
}

#[test]
fn squad_as_hugging_face_nests_it_reads_too() {
    let bench = Bench::new();
    let row = r#"{"id": "q", "question": "a cat", "context": "the cat sat", "answers": {"text": ["sat", "cat"], "answer_start": [8, 4]}}"#;
    let set = bench.set(&bench.file("a.jsonl", row), &Options::new(span(2), 16)).unwrap();
    assert_eq!((set.label(0), set.question(0).unwrap().answers.len()), (Label::Span(Some(6..7)), 2));
}

#[test]
fn rows_that_make_no_sense_are_named() {
    let bench = Bench::new();
    let classify = Options::new(classification(None), 16);
    for (content, expected) in [
        ("label\ttext\nx\ta cat\n\ta dog\n", "row 2 (line 3): empty label in column \"label\""),
        ("label\ttext\nx\ta cat\nx\t \n", "row 2 (line 3): the text in column \"text\" has no tokens"),
        ("label\ttxt\nx\ta cat\n", "a.tsv: no column \"text\"; it has \"txt\", \"label\""),
        ("label\ttext\nx\ta cat\textra\n", "row 1 (line 2): 3 fields, but the file has 2 columns"),
    ] {
        bench.fail(&bench.file("a.tsv", content), &classify, expected);
    }
    let list = bench.file("b.jsonl", "{\"text\": \"a cat\", \"label\": [1]}");
    bench.fail(&list, &classify, "b.jsonl: row 1 (line 1): the label in column \"label\" is a list, not a name");
    let list = bench.file("c.jsonl", "{\"text\": [\"a cat\"], \"label\": 1}");
    bench.fail(&list, &classify, "c.jsonl: row 1 (line 1): column \"text\" holds a list, not a text");
    for (answer, start, expected) in [
        ("sat", "9", "answer \"sat\" at characters 9..12 is outside its context of 11"),
        ("sat", "7", "answer \"sat\" is not at character 7, where the context has \" sa\""),
        ("sat", "-1", "answer_start -1 is no place in the context"),
        ("sat", "null", "answer_start nothing is no place"),
        ("sat", "[]", "1 answers, but 0 places of answers"),
        ("sat", "[8, 4]", "1 answers, but 2 places of answers"),
    ] {
        let start = if start == "null" { "[null]" } else { start };
        let row = format!(
            "{{\"id\": 1, \"question\": \"a cat\", \"context\": \"the cat sat\", \"answers\": [\"{answer}\"], \"answer_start\": {start}}}"
        );
        bench.fail(&bench.file("q.jsonl", &row), &Options::new(span(2), 16), expected);
    }
    let row = "{\"id\": 1, \"question\": \"the cat sat on the mat\", \"context\": \"a dog\", \"answers\": [], \"answer_start\": []}";
    bench.fail(
        &bench.file("r.jsonl", row),
        &Options::new(span(2), 10),
        "a question of 6 tokens leaves 1 for the context",
    );
    bench.fail(
        &bench.file("d.tsv", "label\ttext\nx\ta\n"),
        &Options::new(classification(None), 2),
        "max tokens 2 is not in 3",
    );
    let byte = LabelledSet::from_files(
        &[bench.file("e.tsv", "label\ttext\nx\ta\n")],
        &Tokenizer::byte(),
        &classify,
        &|_, _| (),
    );
    assert!(byte.err().unwrap().to_string().contains("no [CLS] and [SEP]"));
}

#[test]
fn empty_texts_are_skipped_and_counted_where_asked() {
    let bench = Bench::new();
    let path = bench.file("a.tsv", "label\ttext\nx\ta cat\ny\t \nx\ta dog\n");
    let mut options = Options::new(classification(None), 16);
    options.empty = Empty::Skip;
    let set = bench.set(&path, &options).unwrap();
    assert_eq!((set.len(), set.description().skipped, set.classes().len(), set.row(1)), (2, 1, 1, 1));
    bench.fail(&bench.file("b.tsv", "label\ttext\nx\t \n"), &options, "all rows were skipped");
}

#[test]
fn a_folder_holds_what_memory_holds_for_any_number_of_threads() {
    let bench = Bench::new();
    let words = ["the", "cat", "sat", "on", "mat", "a", "dog"];
    let rows: String = (0..10_000)
        .map(|row| {
            format!(
                "c{}\t{}\n",
                row % 7,
                words.iter().cycle().skip(row % 5).take(1 + row % 11).cloned().collect::<Vec<_>>().join(" ")
            )
        })
        .collect();
    let path = bench.file("a.tsv", &format!("label\ttext\n{rows}"));
    let options = Options::new(classification(None), 9);
    let memory = bench.set(&path, &options).unwrap();
    let last = AtomicUsize::new(0);
    let mut files = Vec::new();
    for threads in [1, 3] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let out = bench.folder.path().join(format!("out{threads}"));
        let progress = |done: u64, _: u64| last.store(done as usize, Ordering::Relaxed);
        let set = pool.install(|| write(&[&path], &bench.tokenizer, &options, &out, false, &progress)).unwrap();
        assert_eq!(last.load(Ordering::Relaxed) as u64, path.metadata().unwrap().len());
        assert_eq!(set.fingerprint(), memory.fingerprint());
        let again = LabelledSet::open(&out).unwrap();
        for example in [0, 1, 4095, 4096, 9999] {
            assert_eq!((ids(&again, example), again.label(example)), (ids(&memory, example), memory.label(example)));
        }
        assert!(again.verify().is_empty());
        files.push(std::fs::read(out.join(EXAMPLES_FILE)).unwrap());
        assert!(write(&[&path], &bench.tokenizer, &options, &out, false, &|_, _| ()).is_err());
        write(&[&path], &bench.tokenizer, &options, &out, true, &|_, _| ()).unwrap();
        let mut names: Vec<_> = std::fs::read_dir(&out).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, [EXAMPLES_FILE, DESCRIPTION_FILE, "tokenizer.json"]);
    }
    assert!(files[0] == files[1]);
}

#[test]
fn damage_anywhere_in_a_folder_is_found_and_never_panics() {
    let bench = Bench::new();
    let rows: String = (0..5).map(|row| format!(
        "{{\"id\": {row}, \"question\": \"a cat\", \"context\": \"the cat sat on the mat\", \"answers\": [\"sat\"], \"answer_start\": 8}}\n"
    )).collect();
    let path = bench.file("a.jsonl", &rows);
    let out = bench.folder.path().join("out");
    write(&[&path], &bench.tokenizer, &Options::new(span(2), 10), &out, false, &|_, _| ()).unwrap();
    let file = out.join(EXAMPLES_FILE);
    let whole = std::fs::read(&file).unwrap();
    let look = |bytes: &[u8]| -> bool {
        std::fs::write(&file, bytes).unwrap();
        let Ok(set) = LabelledSet::open(&out) else { return false };
        for example in 0..set.len() {
            let _ = (ids(&set, example), set.label(example), set.context(example), set.row(example));
        }
        set.verify().is_empty()
    };
    assert!(look(&whole));
    for length in [0, 1, 8, 100, 255, 256, whole.len() - 8, whole.len() - 1] {
        assert!(!look(&whole[..length]), "cut to {length}");
    }
    assert!(!look(&[&whole[..], &[0; 8]].concat()));
    for index in 0..whole.len() {
        // The reserved end of the header means nothing.
        if (56 + 8 * 16..256).contains(&index) {
            continue;
        }
        for bit in [0, 7] {
            let mut damaged = whole.clone();
            damaged[index] ^= 1 << bit;
            assert!(!look(&damaged), "bit {bit} of byte {index} changed unnoticed");
        }
    }
    std::fs::write(&file, &whole).unwrap();
    Tokenizer::byte().save(out.join("tokenizer.json")).unwrap();
    let errors = LabelledSet::open(&out).unwrap().verify();
    assert!(errors[0].to_string().contains("is not the tokenizer that made the examples"));
    std::fs::remove_file(out.join(DESCRIPTION_FILE)).unwrap();
    let message = LabelledSet::open(&out).err().unwrap().to_string();
    assert!(message.contains("has no labels.json"), "{message}");
}
