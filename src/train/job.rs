//! What a run learns: how batches are drawn, what the model makes of them, and how well it does. The loop around it
//! (updates, checkpoints, records) is the [`Trainer`](super::trainer::Trainer)'s and the same for every task.
//!
//! A job comes in two steps. [`Data`] is opened first, and says what model it needs and how much memory; when that is
//! known to be right, it becomes a [`Job`].

mod causal_lm;
mod drawing;
mod examples;
mod objective;
mod translated;
mod translation;

use super::config::{Architecture, Config, DataFacts, Task};
use super::trainer::Error;
use crate::data::{BatcherState, SamplerState, Tokenizer};
use crate::model::Transformer;
use crate::ops::Device;
use crate::tape::{MemoryUse, Parameters, RunOptions};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Data that was opened and checked.
pub(super) trait Data {
    /// What the model has to know of it.
    fn facts(&self) -> &DataFacts;
    /// How much there is.
    fn amount(&self) -> Amount;
    /// Updates that `epochs` passes over the data make.
    fn steps(&self, config: &Config, epochs: f64) -> usize;
    /// Memory of the programs for training, and what evaluation takes besides, in bytes.
    fn measure(
        &self,
        config: &Config,
        device: &Arc<Device>,
        model: &Transformer,
        parameters: &Parameters,
    ) -> Result<(MemoryUse, usize), Error>;
    /// Records the programs.
    fn start(
        self: Box<Self>,
        config: &Config,
        device: &Arc<Device>,
        model: &Transformer,
        parameters: &Parameters,
    ) -> Result<Box<dyn Job>, Error>;
}

/// How much data there is.
#[derive(Clone, Debug, Default)]
pub struct Amount {
    /// Tokens to learn from, and to evaluate on.
    pub train_tokens: usize,
    pub val_tokens: usize,
    /// Bytes of memory that they take.
    pub bytes: u64,
    /// Mean length of what the model sees at once.
    pub time: usize,
    /// How many predictions among the vocabulary are made for each token that is seen.
    pub predicted: f64,
    /// Tokens of an update, padding included.
    pub update_tokens: usize,
    /// A line for a person.
    pub line: String,
    /// What a person should know of it.
    pub warning: Option<String>,
}

/// What a batch gave.
#[derive(Clone, Debug, Default)]
pub(super) struct Learned {
    /// Sum of the losses, and what the counted rows weigh together.
    pub(super) loss_sum: f64,
    pub(super) weight: f64,
    /// Tokens that were learned from; padding does not count.
    pub(super) tokens: usize,
    /// Losses that are learned beside that: name, sum and weight.
    pub(super) beside: Vec<(&'static str, f64, f64)>,
}

/// What an evaluation found.
#[derive(Clone, Debug, Default)]
pub(super) struct Evaluation {
    pub(super) loss: f64,
    /// The task's own figures.
    pub(super) figures: Vec<(&'static str, f64)>,
    /// Which of them says which checkpoint is best, the higher the better; the loss, the lower the better, where none.
    pub(super) best_by: Option<&'static str>,
    /// A part of the report, as HTML.
    pub(super) section: Option<String>,
    /// A table for the terminal.
    pub(super) table: Option<String>,
    /// What was said about each example: see [`prediction`](crate::score::prediction).
    pub(super) predictions: Vec<serde_json::Value>,
}

/// Where the drawing of batches stands.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum DrawState {
    Windows(SamplerState),
    Examples(BatcherState),
    /// Several tasks that are learned together.
    Mixed(Vec<BatcherState>),
}

impl DrawState {
    /// The state of one task with examples.
    fn only(&self) -> Result<&BatcherState, Error> {
        match self {
            Self::Examples(state) => Ok(state),
            _ => Err(Error::Resume("the checkpoint is of another kind of task".into())),
        }
    }
}

/// A task under way.
pub(super) trait Job {
    /// Draws the batches of an update in advance; called where it takes several. What their rows weigh together is known then,
    /// and each row counts alike however the batches are filled. `first` is the number of the first.
    fn draw(&mut self, _first: u64, _count: usize) -> Result<(), Error> {
        Ok(())
    }
    /// Runs the next batch, forward and backward; it is drawn now where it was not in advance.
    fn learn(&mut self, parameters: &mut Parameters, options: &RunOptions) -> Result<Learned, Error>;
    /// Runs the last batch again and says which tensor is the first that is not finite.
    fn find_non_finite(&mut self, parameters: &mut Parameters, options: &RunOptions) -> String;
    /// Mean loss and figures on the same validation data each time; `None` where there is none.
    fn evaluate(
        &mut self,
        model: &Transformer,
        parameters: &mut Parameters,
        step: usize,
    ) -> Result<Option<Evaluation>, Error>;
    /// Some text, to see what the model has learned.
    fn sample(&mut self, _model: &Transformer, _parameters: &mut Parameters) -> Result<Option<String>, Error> {
        Ok(None)
    }
    fn state(&self) -> DrawState;
    fn restore(&mut self, state: &DrawState) -> Result<(), Error>;
    /// Changes when the training data does.
    fn fingerprint(&self) -> String;
    fn tokenizer(&self) -> Option<&Tokenizer>;
}

/// Opens what `config` names.
///
/// # Errors
/// Data that cannot be used.
pub(super) fn open(config: &Config) -> Result<Box<dyn Data>, Error> {
    match config.train.task {
        Task::CausalLm => causal_lm::open(config),
        Task::Translation if config.model.architecture == Architecture::EncoderDecoder => translation::open(config),
        _ => examples::open(config),
    }
}

/// Of a loss that is not finite: that of `step`, and where it comes from.
fn not_finite(step: usize, loss: f64, found: String) -> Error {
    Error::NotFinite { step, what: format!("validation loss is {loss}"), found }
}
