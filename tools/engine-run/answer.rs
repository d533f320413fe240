//! `engine-run answer`: the part of a context that answers a question.
//!
//! A context that is too long is read through windows that overlap by `--stride` tokens. In each window the best span's
//! margin over the first token, which stands for "no answer", is what counts; over all windows the largest margin wins.

use crate::model::ModelArguments;
use crate::output::Output as Lines;
use crate::texts::{BatchArguments, Framer, WindowArguments, cell, open, run_in_order};
use anyhow::{Context, bail};
use clap::Args;
use engine::data::table::{Quotes, Table};
use engine::model::encode::{Example, Output, SpanOptions, best_spans, softmax};
use serde_json::json;
use std::ops::{ControlFlow, Range};
use std::path::PathBuf;

#[derive(Args)]
pub struct AnswerArguments {
    #[command(flatten)]
    model: ModelArguments,
    #[command(flatten)]
    batch: BatchArguments,
    /// The question.
    #[arg(
        long,
        value_name = "TEXT",
        allow_hyphen_values = true,
        requires = "context",
        required_unless_present = "input"
    )]
    question: Option<String>,
    /// The text that answers it.
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true, requires = "question", conflicts_with = "input")]
    context: Option<String>,
    /// File of rows with the columns question and context, and perhaps id: .jsonl, .tsv or .csv, also with .gz.
    #[arg(long, value_name = "FILE", conflicts_with = "question")]
    input: Option<PathBuf>,
    #[command(flatten)]
    windows: WindowArguments,
    /// Tokens of an answer at most.
    #[arg(long, value_name = "N", default_value_t = 30, value_parser = crate::at_least_one)]
    max_answer_tokens: usize,
    /// Answer nothing where "no answer" is likelier than every span.
    #[arg(long)]
    no_answer: bool,
    /// Other answers to show.
    #[arg(long, value_name = "K", default_value_t = 1, value_parser = crate::at_least_one)]
    top_k: usize,
}

/// A question, and what it is about.
struct Question {
    id: String,
    question: String,
    context: String,
}

/// A part of a context as an example.
struct Window {
    question: usize,
    /// The tokens of the example that are context.
    context: Range<usize>,
    /// First character and end of each of those.
    characters: Vec<(u32, u32)>,
}

/// A span of a context that may be the answer.
struct Found {
    start: usize,
    end: usize,
    /// How much likelier than no answer: the difference of the sums of logits.
    margin: f64,
}

pub fn answer(arguments: &AnswerArguments) -> anyhow::Result<()> {
    let (tokenizer, folder) = open(&arguments.model)?;
    let questions = questions(arguments)?;
    let mut loaded = arguments.model.load(&folder)?;
    let framer = Framer::new(&tokenizer, &loaded, &arguments.batch)?;
    let (mut windows, mut examples) = (Vec::new(), Vec::new());
    let stride = arguments.windows.stride(loaded.model.config());
    for (number, question) in questions.iter().enumerate() {
        cut(&framer, stride, number, question, &mut windows, &mut examples)
            .with_context(|| format!("question {}", question.id))?;
    }
    let options = SpanOptions { most_tokens: arguments.max_answer_tokens, ..SpanOptions::default() };
    let (mut lines, mut found) = (Lines::default(), Vec::new());
    run_in_order(&mut loaded, &examples, Output::Spans, arguments.batch.arrangement(), |number, logits| {
        let window = &windows[number];
        let no_answer = f64::from(logits[0]) + f64::from(logits[1]);
        for span in best_spans(&logits, window.context.clone(), options) {
            let (first, _) = window.characters[span.first - window.context.start];
            let (_, end) = window.characters[span.last - window.context.start];
            found.push(Found { start: first as usize, end: end as usize, margin: span.score - no_answer });
        }
        let is_last = windows.get(number + 1).is_none_or(|next| next.question != window.question);
        if !is_last {
            return Ok(ControlFlow::Continue(()));
        }
        let line = show(arguments, &questions[window.question], std::mem::take(&mut found));
        Ok(lines.print(&format!("{line}\n")))
    })?;
    lines.outcome()
}

fn questions(arguments: &AnswerArguments) -> anyhow::Result<Vec<Question>> {
    if let (Some(question), Some(context)) = (&arguments.question, &arguments.context) {
        return Ok(vec![Question { id: "1".into(), question: question.clone(), context: context.clone() }]);
    }
    let Some(path) = &arguments.input else { bail!("give --question and --context, or --input") };
    let mut table = Table::open(path, Quotes::InCsv)?;
    let (question, context) = (table.column("question")?, table.column("context")?);
    let id = table.column("id").ok();
    let mut questions = Vec::new();
    while let Some(row) = table.next_row()? {
        let id = id.and_then(|column| row.cells[column].text()).unwrap_or_else(|| row.number.to_string());
        questions.push(Question { id, question: cell(&row, question)?, context: cell(&row, context)? });
    }
    if questions.is_empty() {
        bail!("{}: the file has no questions", path.display());
    }
    Ok(questions)
}

/// Cuts a context into windows.
fn cut(
    framer: &Framer<'_>,
    stride: usize,
    number: usize,
    question: &Question,
    windows: &mut Vec<Window>,
    examples: &mut Vec<Example>,
) -> anyhow::Result<()> {
    let question_tokens = framer.tokenizer.encode(&question.question)?;
    let context = framer.tokenizer.encode_with_offsets(&question.context)?;
    if question_tokens.is_empty() || context.ids.is_empty() {
        let which = if question_tokens.is_empty() { "question" } else { "context" };
        bail!("the {which} has no tokens; give it a text");
    }
    let room = framer.room(2).saturating_sub(question_tokens.len());
    let stride = stride.min(room / 2);
    if room == 0 {
        bail!(
            "the question has {} tokens, which leaves no room for the context in {}; shorten it",
            question_tokens.len(),
            framer.most
        );
    }
    let mut start = 0;
    loop {
        let end = context.ids.len().min(start + room);
        let example = framer.frame(&question_tokens, Some(&context.ids[start..end]));
        let first = example.second;
        windows.push(Window {
            question: number,
            context: first..first + end - start,
            characters: context.characters[start..end].to_vec(),
        });
        examples.push(example);
        if end == context.ids.len() {
            return Ok(());
        }
        start = end - stride;
    }
}

/// A line for a question.
fn show(arguments: &AnswerArguments, question: &Question, mut found: Vec<Found>) -> String {
    found.sort_by(|a, b| b.margin.total_cmp(&a.margin).then((a.start, a.end).cmp(&(b.start, b.end))));
    // Windows overlap, so the same answer may have been found twice.
    let mut seen = std::collections::HashSet::new();
    found.retain(|span| seen.insert((span.start, span.end)));
    // "No answer" has the margin 0.
    let margins: Vec<f32> = found.iter().map(|span| span.margin as f32).chain([0.0]).collect();
    let probabilities = softmax(&margins);
    let no_answer_probability = probabilities.last().copied().unwrap_or(1.0);
    let text =
        |span: &Found| -> String { question.context.chars().skip(span.start).take(span.end - span.start).collect() };
    let best = found.first().filter(|span| !arguments.no_answer || span.margin > 0.0);
    if !arguments.batch.json {
        let shown = found.iter().zip(&probabilities).take(arguments.top_k).filter(|_| best.is_some());
        let lines: Vec<String> = shown.map(|(span, probability)| format!("{}\t{probability:.4}", text(span))).collect();
        return if lines.is_empty() { format!("\t{no_answer_probability:.4}") } else { lines.join("\n") };
    }
    let candidates = found.iter().zip(&probabilities).take(arguments.top_k).map(|(span, probability)| {
        json!({
            "answer": text(span), "start": span.start, "end": span.end, "score": span.margin, "probability": probability,
        })
    });
    let mut object = json!({
        "id": question.id,
        "question": question.question,
        "answer": best.map_or(String::new(), &text),
        "no_answer_probability": no_answer_probability,
        "candidates": candidates.collect::<Vec<_>>(),
    });
    if let Some(span) = best {
        object["start"] = json!(span.start);
        object["end"] = json!(span.end);
        object["score"] = json!(span.margin);
        object["probability"] = json!(probabilities[0]);
    }
    object.to_string()
}
