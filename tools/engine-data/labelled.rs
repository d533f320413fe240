//! `engine-data labelled`, and what `inspect` and `verify` say of its folders.

use super::{ProgressReport, counted, print, print_json};
use clap::{Args, ValueEnum};
use engine::data::labelled::{self, Description, Empty, Keep, Kind, Long, Options, Summary, Task};
use engine::data::table::Quotes;
use engine::data::{Error, LabelledSet, Tokenizer};
use indicatif::HumanBytes;
use serde_json::json;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

pub const EXAMPLES: &str = "\
Files are .tsv, .csv, .jsonl or .txt (one row a line), each also with .gz. The first line of TSV and CSV names the columns;
of JSONL the keys do. TSV is read without quotes unless --quoted-tsv is given.
The folder gets examples.bin, labels.json and tokenizer.json.

  task            --text      --text-pair   --label
  text            text
  classification  text        (none)        label: the name of a class
  multi-label     text        (none)        label: names parted by --separator, or a JSON array
  regression      text        (none)        label: a number
  span            question    context       answers, with --answer-start in characters, as SQuAD
  pair            source      target

Examples:
  engine-data labelled --task classification --input train.tsv.gz --tokenizer bert/tokenizer.json --max-tokens 256 \\
      --out data/train
  engine-data labelled --task classification --input dev.tsv.gz --classes-from data/train --tokenizer data/train \\
      --max-tokens 256 --out data/dev
  engine-data labelled --task span --input squad.jsonl.gz --id id --stride 128 --max-tokens 384 --tokenizer bert \\
      --out data/squad
  engine-data labelled --task pair --input en_zh.tsv.gz --text en --text-pair zh --tokenizer en-zh.json --max-tokens 64 \\
      --out data/en-zh
  engine-data labelled --task text --input reviews.txt.gz --tokenizer bert --max-tokens 128 --out data/reviews";

/// Names of classes that a summary lists.
const CLASSES_SHOWN: usize = 30;

/// Characters of a sample's text that are shown.
const SAMPLE_CHARACTERS: usize = 200;

#[derive(Args)]
pub struct LabelledArguments {
    /// Files of rows.
    #[arg(long, required = true, num_args = 1.., value_name = "FILE")]
    input: Vec<PathBuf>,
    /// What a row means.
    #[arg(long, value_enum)]
    task: TaskArgument,
    /// Column of the text (span: of the question; pair: of the source).
    #[arg(long, value_name = "COLUMN")]
    text: Option<String>,
    /// Column of the second text (span: of the context; pair: of the target).
    #[arg(long, value_name = "COLUMN")]
    text_pair: Option<String>,
    /// Column of the label (span: of the answers).
    #[arg(long, value_name = "COLUMN")]
    label: Option<String>,
    /// Span: column of the first character of each answer.
    #[arg(long, default_value = "answer_start", value_name = "COLUMN")]
    answer_start: String,
    /// Span: column that names questions.
    #[arg(long, value_name = "COLUMN")]
    id: Option<String>,
    /// Span: tokens that two windows over a context share; a third of --max-tokens where it is not given.
    #[arg(long, value_name = "N")]
    stride: Option<usize>,
    /// Multi-label: what parts labels in text.
    #[arg(long, default_value = ",", value_name = "TEXT")]
    separator: String,
    /// A tokenizer.json, or a folder with one; for --task text also `byte`.
    #[arg(long, value_name = "FILE.json|DIR")]
    tokenizer: String,
    /// Tokens of an example at most, special ones included; of a pair, of each side.
    #[arg(long, default_value_t = 512, value_name = "N")]
    max_tokens: usize,
    /// Text: keep a part of a long document only, instead of cutting it into several examples.
    #[arg(long)]
    truncate: bool,
    /// What is kept of a text that is too long: its `start`, its `end`, or `both` (a quarter and three quarters). Of pairs
    /// and spans it is always the start.
    #[arg(long, default_value = "start", value_name = "PART")]
    keep: Keep,
    /// Leave out rows whose text has no tokens, and count them.
    #[arg(long)]
    skip_empty: bool,
    /// Fields of TSV may be quoted, as in CSV.
    #[arg(long)]
    quoted_tsv: bool,
    /// The names of the classes, in the order of their numbers; else those of the rows, sorted.
    #[arg(long, num_args = 1.., value_name = "NAME", conflicts_with = "classes_from")]
    classes: Option<Vec<String>>,
    /// Take the classes of another folder of labelled examples: that for training.
    #[arg(long, value_name = "DIR")]
    classes_from: Option<PathBuf>,
    /// Folder for the examples; created where it does not exist.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Replace labelled examples that the folder holds.
    #[arg(long)]
    overwrite: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum TaskArgument {
    /// Documents without labels, for pretraining.
    Text,
    /// One class each.
    Classification,
    /// Any number of classes each.
    MultiLabel,
    /// A number each.
    Regression,
    /// Answers within a context.
    Span,
    /// Translations.
    Pair,
}

impl LabelledArguments {
    fn options(&self) -> anyhow::Result<Options> {
        let column = |given: &Option<String>, usual: &str| given.clone().unwrap_or_else(|| usual.into());
        let (text, label) = (|| column(&self.text, "text"), || column(&self.label, "label"));
        let pair = self.text_pair.clone();
        let task = match self.task {
            TaskArgument::Text => {
                Task::Text { text: text(), long: if self.truncate { Long::Truncate } else { Long::Cut } }
            }
            TaskArgument::Classification => Task::Classification { text: text(), pair, label: label() },
            TaskArgument::MultiLabel => {
                Task::MultiLabel { text: text(), pair, label: label(), separator: self.separator.clone() }
            }
            TaskArgument::Regression => Task::Regression { text: text(), pair, label: label() },
            TaskArgument::Span => Task::Span {
                question: column(&self.text, "question"),
                context: column(&self.text_pair, "context"),
                answers: column(&self.label, "answers"),
                answer_start: self.answer_start.clone(),
                id: self.id.clone(),
                stride: self.stride.unwrap_or(self.max_tokens / 3),
            },
            TaskArgument::Pair => {
                Task::Pair { source: column(&self.text, "source"), target: column(&self.text_pair, "target") }
            }
        };
        let unused = [
            (matches!(task, Task::Text { .. } | Task::Pair { .. }) && self.label.is_some(), "--label"),
            (matches!(task, Task::Text { .. }) && self.text_pair.is_some(), "--text-pair"),
            (!matches!(task, Task::Span { .. }) && (self.stride.is_some() || self.id.is_some()), "--stride and --id"),
            (!matches!(task, Task::Text { .. }) && self.truncate, "--truncate"),
        ];
        if let Some((_, option)) = unused.iter().find(|(is_unused, _)| *is_unused) {
            let what = format!("{option} means nothing for --task {}; leave it out", task.kind().name());
            return Err(Error::Argument(what).into());
        }
        let classes = match &self.classes_from {
            Some(folder) => Some(Description::load(folder)?.classes),
            None => self.classes.clone(),
        };
        Ok(Options {
            task,
            max_tokens: self.max_tokens,
            keep: self.keep,
            empty: if self.skip_empty { Empty::Skip } else { Empty::Refuse },
            classes,
            quotes: if self.quoted_tsv { Quotes::InTsv } else { Quotes::InCsv },
        })
    }
}

pub fn labelled_command(arguments: &LabelledArguments, as_json: bool) -> anyhow::Result<ExitCode> {
    let start = Instant::now();
    let options = arguments.options()?;
    let tokenizer = match arguments.tokenizer.as_str() {
        "byte" => Tokenizer::byte(),
        file => Tokenizer::load(file)?,
    };
    let progress = ProgressReport::new("tokenising");
    let show = |done, total| progress.show(done, total);
    let set = labelled::write(&arguments.input, &tokenizer, &options, &arguments.out, arguments.overwrite, &show)?;
    progress.finish();
    let seconds = start.elapsed().as_secs_f64();
    let summary = labelled::summary(&set, None, 0);
    if as_json {
        return print_json(&json!({"out": arguments.out.display().to_string(), "set": summary, "seconds": seconds}));
    }
    let mut text = describe(&summary)?;
    let bytes: u64 = summary.description.sources.iter().map(|source| source.bytes).sum();
    let files = counted(summary.description.sources.len(), "file");
    writeln!(text, "  {files}, {} in {seconds:.2} s", HumanBytes(bytes))?;
    print(&text)
}

pub fn inspect_command(path: &Path, samples: usize, as_json: bool) -> anyhow::Result<ExitCode> {
    let set = LabelledSet::open(path)?;
    let tokenizer = Tokenizer::load(path)?;
    let summary = labelled::summary(&set, Some(&tokenizer), samples);
    if as_json {
        return print_json(&summary);
    }
    let mut text = describe(&summary)?;
    writeln!(text, "  fingerprint {}", summary.description.fingerprint)?;
    for sample in &summary.samples {
        let mut shown: String = sample.text.chars().take(SAMPLE_CHARACTERS).collect();
        if shown.len() < sample.text.len() {
            shown.push('…');
        }
        let label = sample.label.as_ref().map(|label| format!("{label}: ")).unwrap_or_default();
        writeln!(text, "  {label}{shown:?}")?;
    }
    print(&text)
}

pub fn verify_command(path: &Path, vocabulary: Option<usize>, as_json: bool) -> anyhow::Result<ExitCode> {
    let set = LabelledSet::open(path)?;
    let mut findings: Vec<String> = set.verify().iter().map(Error::to_string).collect();
    if let Some(vocabulary) = vocabulary {
        findings.extend(set.check_vocabulary(vocabulary).err().map(|error| error.to_string()));
    }
    let is_good = findings.is_empty();
    let vocabulary = vocabulary.unwrap_or(set.description().vocabulary);
    let code = if as_json {
        print_json(&json!({
            "path": path.display().to_string(), "examples": set.len(), "tokens": set.total_tokens(),
            "vocabulary": vocabulary, "findings": findings,
        }))?
    } else {
        let outcome = if is_good { "good".into() } else { counted(findings.len(), "finding") };
        findings.push(format!(
            "{}: {}, {} tokens, ids checked against {vocabulary}: {outcome}\n",
            path.display(),
            counted(set.len(), "example"),
            set.total_tokens()
        ));
        print(&findings.join("\n"))?
    };
    Ok(if is_good { code } else { ExitCode::from(1) })
}

/// A summary as text.
fn describe(summary: &Summary) -> anyhow::Result<String> {
    let description = &summary.description;
    let mut text = format!(
        "{}: {}, {} of {}, {} tokens\n",
        summary.path.as_deref().unwrap_or("examples in memory"),
        description.kind.name(),
        counted(description.examples, "example"),
        counted(description.rows, "row"),
        description.tokens
    );
    if description.skipped > 0 {
        writeln!(text, "  {} left out: their texts have no tokens", counted(description.skipped, "row"))?;
    }
    if description.truncated > 0 {
        let percent = 100.0 * description.truncated as f64 / description.rows as f64;
        let rows = counted(description.truncated, "row");
        writeln!(text, "  {rows} ({percent:.1} %) cut off at {} tokens", description.max_tokens)?;
    }
    let (shortest, mean, longest) = summary.lengths;
    writeln!(text, "  {shortest} to {longest} tokens, {mean:.1} on average:")?;
    let most = summary.histogram.iter().map(|bucket| bucket.examples).max().unwrap_or(1).max(1);
    for bucket in &summary.histogram {
        let bar = "#".repeat((bucket.examples * 40).div_ceil(most));
        writeln!(text, "    {:>6} to {:>6}  {:>9}  {bar}", bucket.from, bucket.to, bucket.examples)?;
    }
    if matches!(description.kind, Kind::Classification | Kind::MultiLabel) {
        writeln!(text, "  {} classes:", description.classes.len())?;
        for (name, count) in description.classes.iter().zip(&summary.class_counts).take(CLASSES_SHOWN) {
            let percent = 100.0 * *count as f64 / description.examples as f64;
            writeln!(text, "    {count:>9}  {percent:5.1} %  {name}")?;
        }
        let more = description.classes.len().saturating_sub(CLASSES_SHOWN);
        if more > 0 {
            writeln!(text, "    and {more} more")?;
        }
    }
    if let Some([smallest, mean, largest]) = summary.values {
        writeln!(text, "  labels from {smallest} to {largest}, {mean:.4} on average")?;
    }
    if let Some(answered) = summary.answered {
        writeln!(text, "  {} with the answer in them", counted(answered, "window"))?;
    }
    Ok(text)
}
