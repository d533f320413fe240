//! Numbers for a text: a regression, or for each of several labels whether it applies.

use super::{Evaluation, Objective, Predictions, Recorded, Targets, Wanted, in_order, kept_for_judging, pool};
use crate::data::labelled::Label;
use crate::data::{Batch, LabelledSet};
use crate::model::Transformer;
use crate::model::encode::sigmoid;
use crate::score::prediction::{self, LABEL_THRESHOLD};
use crate::score::{classification, regression};
use crate::tape::{Tape, Value};
use crate::train::config::Config;
use crate::train::example_source::ExampleSource;
use crate::train::trainer::Error;

pub(super) struct Values {
    settings: Config,
    /// Numbers of an example: as many as there are labels, or one.
    columns: usize,
    is_regression: bool,
    /// Of the examples that were observed.
    truths: Vec<f64>,
    predictions: Vec<f64>,
    lines: Predictions,
}

impl Values {
    /// A number for each text.
    pub(super) fn numbers(config: &Config) -> Self {
        Self::new(config, 1, true)
    }

    /// Whether each label applies.
    pub(super) fn labels(config: &Config, source: &ExampleSource) -> Self {
        Self::new(config, source.train.classes().len(), false)
    }

    fn new(config: &Config, columns: usize, is_regression: bool) -> Self {
        let settings = config.clone();
        let (truths, predictions, lines) = (Vec::new(), Vec::new(), Predictions::default());
        Self { settings, columns, is_regression, truths, predictions, lines }
    }

    fn targets(&self, label: &Label) -> Vec<f32> {
        match label {
            Label::Value(value) => vec![*value],
            Label::Classes(classes) => (0..self.columns).map(|class| f32::from(classes.contains(&class))).collect(),
            _ => vec![f32::NAN; self.columns],
        }
    }
}

impl Objective for Values {
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
        let ranges = tape.input_ids("ranges", &[capacity, 2]);
        let targets = tape.input("targets", &[capacity, self.columns]);
        let pooled = model.record_pooled(tape, trunk, ranges)?;
        let output = model.record_class_logits(tape, pooled)?;
        let loss = if self.is_regression {
            tape.squared_error(output, targets)?
        } else {
            tape.binary_cross_entropy(output, targets)?
        };
        let output = kept_for_judging(tape, output);
        Ok(Recorded { ranges, targets: Targets::Values(targets), loss, beside: None, output })
    }

    fn prepare(
        &mut self,
        set: &LabelledSet,
        batch: &mut Batch,
        _step: u64,
        capacity: usize,
        wanted: &mut Wanted,
    ) -> Result<(), Error> {
        wanted.clear(capacity);
        pool(&self.settings, batch, wanted);
        for placed in &batch.examples {
            wanted.values.extend(self.targets(&set.label(placed.example)));
        }
        // A target that is NaN is not counted.
        wanted.values.resize(capacity * self.columns, f32::NAN);
        Ok(())
    }

    fn observe(&mut self, set: &LabelledSet, batch: &Batch, output: &[f32]) {
        for (placed, row) in batch.examples.iter().zip(output.chunks_exact(self.columns)) {
            let truths = self.targets(&set.label(placed.example));
            let index = set.row(placed.example);
            let line = if self.is_regression {
                prediction::number(index, f64::from(truths[0]), f64::from(row[0]))
            } else {
                let probabilities: Vec<f64> = row.iter().map(|&logit| sigmoid(logit)).collect();
                let applies: Vec<bool> = truths.iter().map(|&truth| truth > 0.5).collect();
                prediction::labels(index, set.classes(), &applies, &probabilities, LABEL_THRESHOLD)
            };
            self.lines.insert(index, line);
            self.truths.extend(truths.into_iter().map(f64::from));
            self.predictions.extend(row.iter().map(|&value| f64::from(value)));
        }
    }

    fn judge(&mut self, set: &LabelledSet) -> Result<Evaluation, Error> {
        let (truths, predictions) = (std::mem::take(&mut self.truths), std::mem::take(&mut self.predictions));
        let lines = in_order(&mut self.lines);
        if self.is_regression {
            let report = regression::Report::new(&predictions, &truths)?;
            return Ok(Evaluation {
                figures: vec![
                    ("mean_absolute_error", report.mean_absolute_error),
                    ("pearson", defined(report.pearson)),
                    ("spearman", defined(report.spearman)),
                ],
                best_by: Some("pearson"),
                predictions: lines,
                ..Evaluation::default()
            });
        }
        let scores: Vec<f32> = predictions.iter().map(|&logit| sigmoid(logit as f32) as f32).collect();
        let truths: Vec<bool> = truths.iter().map(|&truth| truth > 0.5).collect();
        let report =
            classification::MultiLabelReport::at_threshold(set.classes(), &scores, &truths, LABEL_THRESHOLD as f32)?;
        Ok(Evaluation {
            figures: vec![
                ("subset_accuracy", report.subset_accuracy),
                ("micro_f1", report.micro_f1),
                ("macro_f1", report.macro_f1),
            ],
            best_by: Some("micro_f1"),
            section: Some(report.to_html()),
            table: Some(report.to_string()),
            predictions: lines,
            ..Evaluation::default()
        })
    }
}

/// A correlation, or 0 where there is none: of values that are all the same, or of one.
fn defined(correlation: f64) -> f64 {
    if correlation.is_nan() { 0.0 } else { correlation }
}
