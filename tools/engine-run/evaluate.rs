//! `engine-run evaluate`: how good a model's predictions are on labelled data, with the figures of [`engine::score`].

mod translations;

use crate::classify::Meaning;
use crate::images;
use crate::model::{Loaded, ModelArguments, check_vocabulary};
use crate::output::Output as Lines;
use crate::texts::{BatchArguments, WindowArguments, run_in_order};
use crate::translate::parse_penalty;
use anyhow::{Context, bail};
use clap::{Args, ValueEnum};
use engine::data::batch::Placed;
use engine::data::labelled::{Empty, Label, Long, Options, Task};
use engine::data::masking::{Masked, Masker, Masking};
use engine::data::table::{Quotes, Table};
use engine::data::{Batch, LabelledSet, Tokenizer};
use engine::model::config::{Architecture, TextCut};
use engine::model::encode::{Example, Output, SpanOptions, best_spans, top};
use engine::model::image::ImageInput;
use engine::model::translate::is_translator;
use engine::score::classification::{ConfusionMatrix, MultiLabelReport, Report};
use engine::score::prediction::{self, LABEL_THRESHOLD};
use engine::score::{language, regression, squad};
use engine::util::atomic_file::write_atomically;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::Write;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

#[derive(Args)]
pub struct EvaluateArguments {
    #[command(flatten)]
    model: ModelArguments,
    #[command(flatten)]
    batch: BatchArguments,
    /// Labelled rows: .tsv, .csv, .jsonl or .txt, also with .gz; may be repeated. For a model of images an idx file with its
    /// labels beside it, or a folder with a folder of PNG files for each class.
    #[arg(long, value_name = "FILE", required = true)]
    data: Vec<PathBuf>,
    /// What the model is for; from its heads if not given.
    #[arg(long, value_name = "TASK")]
    task: Option<Wanted>,
    /// The column of texts.
    #[arg(long, value_name = "NAME", default_value = "text")]
    text_column: String,
    /// The column of second texts; of the translations, for those.
    #[arg(long, value_name = "NAME")]
    pair_column: Option<String>,
    /// The column of labels.
    #[arg(long, value_name = "NAME", default_value = "label")]
    label_column: String,
    /// What stands between labels, where a text may have several.
    #[arg(long, value_name = "TEXT", default_value = ",")]
    separator: String,
    #[command(flatten)]
    windows: WindowArguments,
    /// Key of the masks of masked-lm: same seed, same masks.
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Hypotheses of each translation that are followed together; 1 takes the likeliest token each time.
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = crate::at_least_one)]
    beam: usize,
    /// Longer translations if higher, as for `translate`.
    #[arg(long, value_name = "A", default_value_t = 0.6, allow_hyphen_values = true, value_parser = parse_penalty)]
    length_penalty: f64,
    /// Write what the model says about each example to this file, a JSON object a line.
    #[arg(long, value_name = "FILE")]
    predictions: Option<PathBuf>,
    /// Leave rows without text out, instead of refusing them.
    #[arg(long)]
    skip_empty: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Wanted {
    Classification,
    MultiLabel,
    Regression,
    QuestionAnswering,
    MaskedLm,
    Translation,
}

/// Figures for people and for programs, and what was said about each example.
struct Figures {
    table: String,
    object: Value,
    predictions: Vec<Value>,
}

pub fn evaluate(arguments: &EvaluateArguments) -> anyhow::Result<()> {
    let folder = arguments.model.folder()?;
    let figures = match images::input(&folder)? {
        Some(input) => judge_images(arguments, &folder, &input)?,
        None => judge_texts(arguments, &folder)?,
    };
    if let Some(path) = &arguments.predictions {
        let text = prediction::lines(&figures.predictions);
        write_atomically(path, |file| file.write_all(text.as_bytes())).context("--predictions")?;
    }
    let mut lines = Lines::default();
    let text = if arguments.batch.json { figures.object.to_string() } else { figures.table.trim_end().to_owned() };
    let _ = lines.print(&format!("{text}\n"));
    lines.outcome()
}

fn judge_images(arguments: &EvaluateArguments, folder: &Path, input: &ImageInput) -> anyhow::Result<Figures> {
    if arguments.task.is_some_and(|task| task != Wanted::Classification) {
        bail!("this model classifies images; leave --task out");
    }
    let mut images = images::read(&arguments.data, input)?;
    let mut loaded = arguments.model.load(folder)?;
    let config = loaded.model.config();
    images.renumber(config.predictions.classes.as_deref().unwrap_or_default())?;
    let set = images.examples(&input.ids(config.pooling))?;
    let examples = images::examples(&images, config, input)?;
    judge_classes(arguments, Wanted::Classification, &mut loaded, &set, &examples)
}

fn judge_texts(arguments: &EvaluateArguments, folder: &Path) -> anyhow::Result<Figures> {
    let tokenizer = arguments.model.tokenizer(folder)?;
    let mut loaded = arguments.model.load(folder)?;
    check_vocabulary(&tokenizer, loaded.model.config())?;
    let wanted = match arguments.task {
        Some(wanted) => wanted,
        None => usual_task(&loaded)?,
    };
    if wanted == Wanted::MaskedLm && arguments.predictions.is_some() {
        bail!("--predictions: masked-lm has no labels to write predictions of; leave it out");
    }
    let set = read(arguments, wanted, &tokenizer, &loaded)?;
    let examples: Vec<Example> = (0..set.len()).map(|example| example_of(&set, example)).collect();
    match wanted {
        Wanted::Classification | Wanted::MultiLabel | Wanted::Regression => {
            judge_classes(arguments, wanted, &mut loaded, &set, &examples)
        }
        Wanted::QuestionAnswering => judge_answers(arguments, &mut loaded, &set, &examples),
        Wanted::MaskedLm => judge_masks(arguments, &mut loaded, &tokenizer, &set, examples),
        Wanted::Translation => translations::judge(arguments, &mut loaded, &tokenizer, &set),
    }
}

/// What a model's heads are for.
fn usual_task(loaded: &Loaded) -> anyhow::Result<Wanted> {
    let config = loaded.model.config();
    let heads = &config.predictions;
    if is_translator(config) {
        return Ok(Wanted::Translation);
    }
    Ok(match (heads.classes.is_some(), heads.spans, heads.language.is_some()) {
        (true, ..) => match Meaning::of(config) {
            Meaning::Classes => Wanted::Classification,
            Meaning::Labels => Wanted::MultiLabel,
            Meaning::Numbers => Wanted::Regression,
        },
        (false, true, _) => Wanted::QuestionAnswering,
        (false, false, true) => Wanted::MaskedLm,
        (false, false, false) => bail!("this model has no head to evaluate; use one that was trained for a task"),
    })
}

fn read(
    arguments: &EvaluateArguments,
    wanted: Wanted,
    tokenizer: &Tokenizer,
    loaded: &Loaded,
) -> anyhow::Result<LabelledSet> {
    let TextCut { max_tokens, keep, .. } = arguments.batch.cut(loaded.model.config());
    let (text, pair) = (arguments.text_column.clone(), arguments.pair_column.clone());
    let label = arguments.label_column.clone();
    let classes = loaded.model.config().predictions.classes.clone();
    let task = match wanted {
        Wanted::Classification => Task::Classification { text, pair, label },
        Wanted::MultiLabel => Task::MultiLabel { text, pair, label, separator: arguments.separator.clone() },
        Wanted::Regression => Task::Regression { text, pair, label },
        Wanted::QuestionAnswering => Task::Span {
            id: has_ids(&arguments.data).then(|| "id".into()),
            question: "question".into(),
            context: "context".into(),
            answers: "answers".into(),
            answer_start: "answer_start".into(),
            stride: arguments.windows.stride(loaded.model.config()).min(max_tokens / 3),
        },
        Wanted::MaskedLm => Task::Text { text, long: Long::Cut },
        Wanted::Translation => {
            let target = pair.context("--pair-column is not given: name the column of the translations")?;
            Task::Pair { source: text, target }
        }
    };
    // A decoder alone has both texts in one row.
    let shares_row = wanted == Wanted::Translation && loaded.model.config().architecture == Architecture::Decoder;
    let max_tokens = if shares_row { max_tokens / 2 } else { max_tokens };
    let mut options = Options::new(task, max_tokens);
    options.keep = keep;
    options.empty = if arguments.skip_empty { Empty::Skip } else { Empty::Refuse };
    if matches!(wanted, Wanted::Classification | Wanted::MultiLabel) {
        options.classes = classes;
    }
    Ok(LabelledSet::from_files(&arguments.data, tokenizer, &options, &|_, _| ())?)
}

/// Whether the questions of these files have names; their numbers stand for them where they have not.
fn has_ids(files: &[PathBuf]) -> bool {
    files.iter().all(|file| Table::open(file, Quotes::InCsv).is_ok_and(|table| table.column("id").is_ok()))
}

fn example_of(set: &LabelledSet, example: usize) -> Example {
    let mut ids = vec![0i32; set.length(example)];
    set.tokens(example).copy_to(&mut ids);
    let ids = ids.into_iter().map(|id| id as u32).collect();
    Example { ids, second: set.second(example), ..Example::default() }
}

fn judge_classes(
    arguments: &EvaluateArguments,
    wanted: Wanted,
    loaded: &mut Loaded,
    set: &LabelledSet,
    examples: &[Example],
) -> anyhow::Result<Figures> {
    let names = loaded.model.config().predictions.classes.clone().unwrap_or_default();
    let mut matrix = ConfusionMatrix::new(names.iter().cloned());
    let (mut truths, mut probabilities) = (Vec::new(), Vec::new());
    let (mut targets, mut numbers) = (Vec::new(), Vec::new());
    let mut predictions = Vec::with_capacity(examples.len());
    run_in_order(loaded, examples, Output::Classes, arguments.batch.arrangement(), |example, logits| {
        match set.label(example) {
            Label::Class(truth) => {
                let figures = Meaning::Classes.figures(&logits);
                matrix.add(truth, top(&figures, 1)[0])?;
                predictions.push(prediction::class(set.row(example), &names, truth, &figures));
            }
            Label::Classes(labels) => {
                let (figures, first) = (Meaning::Labels.figures(&logits), truths.len());
                truths.extend((0..names.len()).map(|class| labels.contains(&class)));
                let line = prediction::labels(set.row(example), &names, &truths[first..], &figures, LABEL_THRESHOLD);
                predictions.push(line);
                probabilities.extend(figures.into_iter().map(|figure| figure as f32));
            }
            Label::Value(target) => {
                let (target_value, number) = (f64::from(target), f64::from(logits[0]));
                predictions.push(prediction::number(set.row(example), target_value, number));
                targets.push(f64::from(target));
                numbers.push(f64::from(logits[0]));
            }
            Label::None | Label::Span(_) => {}
        }
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(match wanted {
        Wanted::Regression => {
            let report = regression::Report::new(&numbers, &targets)?;
            Figures { table: pairs(&json!(report)), object: json!(report), predictions }
        }
        Wanted::MultiLabel => {
            let report = MultiLabelReport::at_threshold(&names, &probabilities, &truths, LABEL_THRESHOLD as f32)?;
            Figures { table: report.to_string(), object: json!(report), predictions }
        }
        _ => {
            let report = Report::from(&matrix);
            Figures { table: report.to_string(), object: json!(report), predictions }
        }
    })
}

fn judge_answers(
    arguments: &EvaluateArguments,
    loaded: &mut Loaded,
    set: &LabelledSet,
    examples: &[Example],
) -> anyhow::Result<Figures> {
    // Of each question: the largest margin over "no answer", and the characters of that span.
    let mut found: BTreeMap<usize, (f64, usize, usize)> = BTreeMap::new();
    run_in_order(loaded, examples, Output::Spans, arguments.batch.arrangement(), |example, logits| {
        let no_answer = f64::from(logits[0]) + f64::from(logits[1]);
        if let Some(span) = best_spans(&logits, set.context(example), SpanOptions::default()).first() {
            let margin = span.score - no_answer;
            let (start, end) = (set.characters(example, span.first).0, set.characters(example, span.last).1);
            let best = found.entry(set.row(example)).or_insert((margin, start, end));
            if margin > best.0 {
                *best = (margin, start, end);
            }
        }
        Ok(ControlFlow::Continue(()))
    })?;
    let questions = (0..set.rows()).map(|row| set.question(row)).collect::<Result<Vec<_>, _>>()?;
    let has_unanswerable = questions.iter().any(|question| question.answers.is_empty());
    let language = squad::Language::of_texts(questions.iter().map(|question| question.context.as_str()));
    let answers: Vec<String> = questions
        .iter()
        .enumerate()
        .map(|(row, question)| match found.get(&row) {
            Some(&(margin, start, end)) if !has_unanswerable || margin > 0.0 => {
                question.context.chars().skip(start).take(end.saturating_sub(start)).collect()
            }
            _ => String::new(),
        })
        .collect();
    let asked = questions.iter().zip(&answers);
    let predictions =
        asked.map(|(question, answer)| prediction::answer(&question.id, answer, &question.answers)).collect();
    let golds: Vec<Vec<String>> = questions.into_iter().map(|question| question.answers).collect();
    let report = squad::Report::new(&answers, &golds, squad::Rules { language, has_unanswerable })?;
    Ok(Figures { table: pairs(&json!(report)), object: json!(report), predictions })
}

fn judge_masks(
    arguments: &EvaluateArguments,
    loaded: &mut Loaded,
    tokenizer: &Tokenizer,
    set: &LabelledSet,
    mut examples: Vec<Example>,
) -> anyhow::Result<Figures> {
    let masker = Masker::new(tokenizer, Masking { seed: arguments.seed, ..Masking::default() })?;
    let (mut targets, mut masked) = (Vec::with_capacity(examples.len()), Masked::default());
    for (number, example) in examples.iter_mut().enumerate() {
        let time = example.ids.len();
        let placed = Placed { example: number, row: 0, start: 0, end: time };
        let ids = example.ids.iter().map(|&id| id as i32).collect();
        let mut batch = Batch { rows: 1, time, ids, examples: vec![placed], ..Batch::default() };
        masker.apply(0, &mut batch, masker.capacity(1, time, 1), &mut masked)?;
        example.ids = batch.ids.iter().map(|&id| id as u32).collect();
        example.positions = masked.positions[..masked.count].iter().map(|&position| position as usize).collect();
        targets.push(masked.targets[..masked.count].to_vec());
    }
    let slots = examples.iter().map(|example| example.positions.len()).max().unwrap_or(0).max(64);
    let vocabulary = loaded.model.config().vocabulary;
    let (mut sum, mut count, mut right) = (0.0, 0u64, 0u64);
    run_in_order(loaded, &examples, Output::Tokens { slots }, arguments.batch.arrangement(), |example, logits| {
        for (&target, row) in targets[example].iter().zip(logits.chunks_exact(vocabulary)) {
            let largest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let weights: f64 = row.iter().map(|&logit| f64::from(logit - largest).exp()).sum();
            sum += weights.ln() + f64::from(largest) - f64::from(row[target as usize]);
            right += u64::from(row[target as usize] == largest);
            count += 1;
        }
        Ok(ControlFlow::Continue(()))
    })?;
    if count == 0 {
        bail!("none of the {} tokens can be masked; give it texts of ordinary tokens", set.total_tokens());
    }
    let object = json!({
        "examples": set.len(),
        "predicted_tokens": count,
        "loss": sum / count as f64,
        "perplexity": language::perplexity(sum, count),
        "accuracy": right as f64 / count as f64,
    });
    Ok(Figures { table: pairs(&object), object, predictions: Vec::new() })
}

/// An object's figures one below the other; those of its parts are indented.
fn pairs(object: &Value) -> String {
    fn add(object: &Value, indent: usize, table: &mut String) {
        for (name, value) in object.as_object().into_iter().flatten() {
            let name = format!("{:indent$}{}", "", name.replace('_', " "));
            match value {
                Value::Object(_) => {
                    table.push_str(&format!("{name}\n"));
                    add(value, indent + 2, table);
                }
                Value::Number(number) if number.is_f64() => {
                    table.push_str(&format!("{name:<24} {:.4}\n", number.as_f64().unwrap_or(f64::NAN)));
                }
                other => table.push_str(&format!("{name:<24} {other}\n")),
            }
        }
    }
    let mut table = String::new();
    add(object, 0, &mut table);
    table
}
