//! A whole training step of a GPT-2 shape, as the trainer makes it: forward, backward, clip to norm 1, AdamW.
//!
//! The tokens are random and the same in every step, which costs as much as real ones. The PyTorch side
//! (`benches/pytorch/train_step.py`) does the same with the same settings.

use crate::model::ModelConfig;
use crate::model::treatment::Treatment;
use crate::model::{LossOptions, Transformer};
use crate::ops::{self, Device, philox};
use crate::tape::{self, Loss, Mode, OutOfMemory, ParameterError, Parameters, Program, RunOptions, Tape, Value};
use crate::train::config;
use crate::train::memory::MemoryTable;
use crate::train::optimizer::Optimizer;
use std::sync::Arc;

const LEARNING_RATE: f64 = 1e-4;
const CLIP: f64 = 1.0;
const SEED: u64 = 1;

/// Sizes of the model and of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    pub layers: usize,
    pub heads: usize,
    pub channels: usize,
    pub vocabulary: usize,
    pub batch: usize,
    /// Tokens of each sequence, and positions of the model.
    pub time: usize,
}

impl Shape {
    /// Tokens of a step.
    pub fn tokens(&self) -> usize {
        self.batch * self.time
    }

    fn model(&self) -> ModelConfig {
        ModelConfig {
            vocabulary: self.vocabulary,
            block: self.time,
            channels: self.channels,
            layers: self.layers,
            heads: self.heads,
            kv_heads: self.heads,
            ffn: 4 * self.channels,
            embedding_dropout: 0.0,
            attention_dropout: 0.0,
            residual_dropout: 0.0,
            ..ModelConfig::gpt2()
        }
    }
}

/// A step cannot be set up or run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Tape(#[from] tape::Error),
    #[error(transparent)]
    Parameters(#[from] ParameterError),
    #[error(transparent)]
    OutOfMemory(#[from] OutOfMemory),
    #[error(transparent)]
    Operation(#[from] ops::Error),
    #[error("the loss is {0}: the engine computes something wrong, or the machine does")]
    NotFinite(f64),
}

/// Model, optimizer and a batch, ready to run.
pub struct TrainingStep {
    device: Arc<Device>,
    model: Transformer,
    parameters: Parameters,
    optimizer: Optimizer,
    program: Program,
    inputs: (Value, Vec<i32>),
    targets: (Value, Vec<i32>),
    loss: Loss,
    steps: u64,
}

impl TrainingStep {
    /// What the step will need; nothing of its size is allocated.
    ///
    /// # Errors
    /// Sizes beyond all memory.
    pub fn memory(shape: &Shape, options: LossOptions, device: &Arc<Device>) -> Result<MemoryTable, Error> {
        let (model, parameters) = Transformer::unallocated(shape.model(), &Treatment::default())?;
        let measured = record(shape, options, device, &model, &parameters)?.0.measure()?;
        Ok(MemoryTable::of_step(&config::Optimizer::default(), &parameters, &measured))
    }

    /// Allocates a model with fresh weights, its optimizer and a random batch.
    ///
    /// # Errors
    /// Not enough memory.
    pub fn new(shape: &Shape, options: LossOptions, device: &Arc<Device>) -> Result<Self, Error> {
        let (model, parameters) = Transformer::new(device, shape.model(), SEED)?;
        let optimizer = Optimizer::new(device, &config::Optimizer::default(), &parameters)?;
        let (tape, inputs, targets, loss) = record(shape, options, device, &model, &parameters)?;
        let program = tape.finish()?;
        let tokens = |sequence| {
            let key = philox::stream(SEED, sequence, 0);
            (0..shape.tokens() as u64).map(|i| (philox::word(key, i) as usize % shape.vocabulary) as i32).collect()
        };
        Ok(Self {
            device: Arc::clone(device),
            inputs: (inputs, tokens(0)),
            targets: (targets, tokens(1)),
            model,
            parameters,
            optimizer,
            program,
            loss,
            steps: 0,
        })
    }

    /// Makes one step; the mean loss before it.
    ///
    /// # Errors
    /// A loss or gradient that is not finite.
    pub fn run(&mut self) -> Result<f64, Error> {
        self.program.write_ids(self.inputs.0, &self.inputs.1)?;
        self.program.write_ids(self.targets.0, &self.targets.1)?;
        let options = RunOptions { seed: SEED, step: self.steps, ..RunOptions::default() };
        self.program.run(&mut self.parameters, &options)?;
        let loss = self.program.mean_loss(self.loss)?.unwrap_or(f64::NAN);
        let update = self.optimizer.update(&self.device, &mut self.parameters, LEARNING_RATE, CLIP)?;
        self.steps += 1;
        if loss.is_finite() && update.is_finite { Ok(loss) } else { Err(Error::NotFinite(loss)) }
    }

    /// The model.
    pub fn model(&self) -> &Transformer {
        &self.model
    }

    /// Number of parameters.
    pub fn parameter_count(&self) -> usize {
        self.parameters.count()
    }
}

fn record<'p>(
    shape: &Shape,
    options: LossOptions,
    device: &Arc<Device>,
    model: &Transformer,
    parameters: &'p Parameters,
) -> Result<(Tape<'p>, Value, Value, Loss), Error> {
    let mut tape = Tape::new(Arc::clone(device), parameters, Mode::Training);
    let sizes = [shape.batch, shape.time];
    let (inputs, targets) = (tape.input_ids("ids", &sizes), tape.input_ids("targets", &sizes));
    let loss = model.record_loss(&mut tape, inputs, targets, options)?;
    Ok((tape, inputs, targets, loss))
}
