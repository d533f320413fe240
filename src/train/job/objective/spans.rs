//! Extractive question answering: where in its context an answer starts and where it ends (Rajpurkar et al. 2016). A
//! context that is longer than an example is read in windows; of all windows of a question the best span is taken.

use super::{Evaluation, Objective, Recorded, Targets, Wanted, kept_for_judging};
use crate::data::labelled::Label;
use crate::data::masking::IGNORED;
use crate::data::{Batch, LabelledSet};
use crate::model::Transformer;
use crate::model::encode::{SpanOptions, best_spans};
use crate::score::{prediction, squad};
use crate::tape::{Tape, Value};
use crate::train::trainer::Error;
use std::collections::BTreeMap;

/// The best span of a window: example, first token and the one behind the last; and how much better it is than none.
#[derive(Clone, Copy, Debug)]
struct Found {
    example: usize,
    first: usize,
    end: usize,
    score: f64,
}

#[derive(Default)]
pub(super) struct Spans {
    /// The best span of each question, by row of the data.
    found: BTreeMap<usize, Found>,
}

impl Objective for Spans {
    fn capacity(&self, _rows: usize, _time: usize, examples: usize) -> usize {
        examples
    }

    fn record(
        &self,
        tape: &mut Tape<'_>,
        model: &Transformer,
        trunk: Value,
        _documents: Value,
        capacity: usize,
    ) -> Result<Recorded, Error> {
        let (ranges, targets) = (tape.input_ids("spans", &[capacity, 3]), tape.input_ids("targets", &[capacity, 2]));
        let logits = model.record_span_logits(tape, trunk)?;
        let loss = tape.span_cross_entropy(logits, ranges, targets)?;
        let output = kept_for_judging(tape, logits);
        Ok(Recorded { ranges, targets: Targets::Ids(targets), loss, beside: None, output })
    }

    fn prepare(
        &mut self,
        set: &LabelledSet,
        batch: &mut Batch,
        _step: u64,
        capacity: usize,
        wanted: &mut Wanted,
    ) -> Result<(), Error> {
        wanted.clear(0);
        for placed in &batch.examples {
            let first = placed.row * batch.time + placed.start;
            let (context, at) = (set.context(placed.example), |token: usize| (first + token) as i32);
            wanted.ranges.extend([at(0), at(context.start), at(context.end)]);
            wanted.ids.extend(match set.label(placed.example) {
                Label::Span(Some(answer)) => [at(answer.start), at(answer.end - 1)],
                // The first token stands for "no answer in this window".
                _ => [at(0), at(0)],
            });
        }
        let end = (batch.rows * batch.time) as i32;
        while wanted.ranges.len() < 3 * capacity {
            wanted.ranges.extend([-1, end, end]);
        }
        wanted.ids.resize(2 * capacity, IGNORED);
        Ok(())
    }

    fn observe(&mut self, set: &LabelledSet, batch: &Batch, output: &[f32]) {
        for placed in &batch.examples {
            let first = placed.row * batch.time + placed.start;
            let logits = &output[2 * first..];
            let spans = best_spans(logits, set.context(placed.example), SpanOptions::default());
            // As SQuAD's scripts and `engine-run` do it: a window whose best starts and ends make no span has no answer.
            let Some(span) = spans.first() else { continue };
            let none = f64::from(logits[0]) + f64::from(logits[1]);
            let (example, score) = (placed.example, span.score - none);
            let found = Found { example, first: span.first, end: span.last + 1, score };
            let best = self.found.entry(set.row(placed.example)).or_insert(found);
            if found.score > best.score {
                *best = found;
            }
        }
    }

    fn judge(&mut self, set: &LabelledSet) -> Result<Evaluation, Error> {
        let (mut predictions, mut golds) = (Vec::new(), Vec::new());
        let questions: Result<Vec<_>, _> = (0..set.rows()).map(|row| set.question(row)).collect();
        let questions = questions?;
        let has_unanswerable = questions.iter().any(|question| question.answers.is_empty());
        for (row, question) in questions.iter().enumerate() {
            let found = self.found.get(&row).filter(|found| !has_unanswerable || found.score > 0.0);
            predictions.push(found.map_or(String::new(), |found| text_of(set, found, &question.context)));
            golds.push(question.answers.clone());
        }
        self.found.clear();
        let language = squad::Language::of_texts(questions.iter().map(|question| question.context.as_str()));
        let asked = questions.iter().zip(&predictions);
        let lines = asked.map(|(question, found)| prediction::answer(&question.id, found, &question.answers)).collect();
        let report = squad::Report::new(&predictions, &golds, squad::Rules { language, has_unanswerable })?;
        Ok(Evaluation {
            figures: vec![("exact_match", report.all.exact_match), ("f1", report.all.f1)],
            best_by: Some("f1"),
            predictions: lines,
            ..Evaluation::default()
        })
    }
}

/// The characters of the context that a span covers.
fn text_of(set: &LabelledSet, found: &Found, context: &str) -> String {
    let (first, _) = set.characters(found.example, found.first);
    let (_, end) = set.characters(found.example, found.end - 1);
    context.chars().skip(first).take(end.saturating_sub(first)).collect()
}
