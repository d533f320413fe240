//! What is to be learned from a batch of examples: which rows of the trunk are looked at, what is predicted there, and how
//! predictions are judged.

mod classes;
mod continuation;
mod masked_lm;
mod spans;
mod values;

use super::Evaluation;
use super::translated::Generating;
use crate::data::{Batch, LabelledSet};
use crate::model::{ModelConfig, Transformer};
use crate::tape::{self, Loss, Mode, Program, Tape, Value};
use crate::train::config::{Config, Task};
use crate::train::example_source::ExampleSource;
use crate::train::trainer::Error;
use std::collections::BTreeMap;

/// What an objective has recorded on top of a trunk.
#[derive(Clone, Copy)]
pub(super) struct Recorded {
    /// `(M, 2)` ids: the rows of the trunk that each prediction looks at.
    pub(super) ranges: Value,
    pub(super) targets: Targets,
    pub(super) loss: Loss,
    /// A second loss over the same targets.
    pub(super) beside: Option<(&'static str, Loss)>,
    /// Kept for judging.
    pub(super) output: Option<Value>,
}

/// Where the targets go.
#[derive(Clone, Copy)]
pub(super) enum Targets {
    Ids(Value),
    Values(Value),
}

/// What is predicted from a batch, as the program takes it.
#[derive(Clone, Debug, Default)]
pub(super) struct Wanted {
    pub(super) ranges: Vec<i32>,
    pub(super) ids: Vec<i32>,
    pub(super) values: Vec<f32>,
}

impl Wanted {
    pub(super) fn write(&self, program: &mut Program, recorded: &Recorded) -> Result<(), tape::Error> {
        program.write_ids(recorded.ranges, &self.ranges)?;
        match recorded.targets {
            Targets::Ids(value) => program.write_ids(value, &self.ids),
            Targets::Values(value) => program.write(value, &self.values),
        }
    }

    /// What the predictions weigh together.
    pub(super) fn weigh(&self, program: &Program, recorded: &Recorded) -> f64 {
        let targets = match recorded.targets {
            Targets::Ids(_) => tape::Targets::Ids(&self.ids),
            Targets::Values(_) => tape::Targets::Floats(&self.values),
        };
        program.weigh(recorded.loss, targets)
    }

    /// Nothing is predicted: as many empty ranges as there is room for.
    fn clear(&mut self, capacity: usize) {
        self.ranges.clear();
        self.ranges.resize(2 * capacity, 0);
        self.ids.clear();
        self.values.clear();
    }
}

/// A task with examples.
pub(super) trait Objective {
    /// Predictions of a batch at most.
    fn capacity(&self, rows: usize, time: usize, examples: usize) -> usize;
    /// Records loss and predictions; `documents` are those of the trunk's positions.
    fn record(
        &self,
        tape: &mut Tape<'_>,
        model: &Transformer,
        trunk: Value,
        documents: Value,
        capacity: usize,
    ) -> Result<Recorded, Error>;
    /// Says what is to be predicted from a batch, whose tokens may be changed for that. `step` is the number of the batch.
    fn prepare(
        &mut self,
        set: &LabelledSet,
        batch: &mut Batch,
        step: u64,
        capacity: usize,
        wanted: &mut Wanted,
    ) -> Result<(), Error>;
    /// Takes note of the predictions for a batch.
    fn observe(&mut self, _set: &LabelledSet, _batch: &Batch, _output: &[f32]) {}
    /// Judges the predictions since the last time; the loss is not known here.
    fn judge(&mut self, _set: &LabelledSet) -> Result<Evaluation, Error> {
        Ok(Evaluation::default())
    }
    /// Bytes that [`judge_generated`](Self::judge_generated) takes for a set of so many examples.
    fn generating_bytes(&self, _model: &ModelConfig, _examples: usize) -> usize {
        0
    }
    /// Judges what the model writes by itself, and adds that to an evaluation.
    fn judge_generated(
        &mut self,
        _with: &mut Generating<'_>,
        _set: &LabelledSet,
        _evaluation: &mut Evaluation,
    ) -> Result<(), Error> {
        Ok(())
    }
    /// Some text, to see what the model has learned.
    fn sample(&mut self, _with: &mut Generating<'_>, _set: &LabelledSet) -> Result<Option<String>, Error> {
        Ok(None)
    }
}

/// What was said about each example, by row of the data: batches bring examples in an order of their own.
type Predictions = BTreeMap<usize, serde_json::Value>;

/// Takes the predictions of an evaluation, in the order of the data.
fn in_order(predictions: &mut Predictions) -> Vec<serde_json::Value> {
    std::mem::take(predictions).into_values().collect()
}

/// The objective of a task.
///
/// # Errors
/// A tokenizer that lacks what the task needs.
pub(super) fn new(config: &Config, source: &ExampleSource) -> Result<Box<dyn Objective>, Error> {
    Ok(match config.train.task {
        Task::MaskedLm => Box::new(masked_lm::MaskedLm::new(config, source)?),
        Task::Classification | Task::ImageClassification => Box::new(classes::Classes::new(config, source)),
        Task::MultiLabel => Box::new(values::Values::labels(config, source)),
        Task::Regression => Box::new(values::Values::numbers(config)),
        Task::QuestionAnswering => Box::new(spans::Spans::default()),
        Task::Translation => Box::new(continuation::Continuation::new(config)),
        Task::CausalLm => unreachable!("a task with a job of its own"),
    })
}

/// Keeps predictions on a tape for evaluation; a training tape has no use for them.
fn kept_for_judging(tape: &mut Tape<'_>, predictions: Value) -> Option<Value> {
    if tape.mode() == Mode::Training {
        return None;
    }
    tape.keep(predictions);
    Some(predictions)
}

/// The ranges of the texts of a batch, for the pooling of `model`'s configuration.
fn pool(config: &Config, batch: &Batch, wanted: &mut Wanted) {
    for (placed, range) in batch.examples.iter().zip(wanted.ranges.chunks_exact_mut(2)) {
        let first = placed.row * batch.time;
        range.copy_from_slice(&config.model.pooling.range(first + placed.start, first + placed.end));
    }
}
