//! Reverse-mode autograd over the operations of [`ops`](crate::ops), in planned memory.
//!
//! Three stages, each its own type:
//! 1. A [`Tape`] records operations on [`Value`]s and [`ParameterId`]s. Nothing is computed; shapes are checked here.
//! 2. [`Tape::finish`] plans: which operations run in which order forward and backward, from when to when each buffer
//!    is needed, and where in one arena it lies. The result is a [`Program`].
//! 3. [`Program::run`] executes the plan as often as wanted: same addresses every time, nothing allocated.
//!
//! This is the only place that knows what backward means. An operation of a training tape that has no backward pass
//! is refused by name as it is recorded.
//!
//! # Example
//!
//! A network of two layers, differentiated and compared with finite differences:
//!
//! ```
//! use engine::ops::{Device, linear::Activation};
//! use engine::tape::{Initial, Mode, Parameters, RunOptions, Specification, Tape};
//!
//! let device = std::sync::Arc::new(Device::Cpu(engine::cpu::Cpu::new()?));
//! let weight = |name: &str, shape: [usize; 2]| Specification::new(name, &shape, Initial::Normal(0.5));
//! let mut parameters = Parameters::new(&device, vec![weight("first", [8, 4]), weight("second", [3, 8])], 42)?;
//! let (first, second) = (parameters.find("first").unwrap(), parameters.find("second").unwrap());
//!
//! let mut tape = Tape::new(device, &parameters, Mode::Training);
//! let input = tape.input("input", &[5, 4]);
//! let targets = tape.input_ids("targets", &[5]);
//! let hidden = tape.linear(input, first, None, Activation::GeluTanh, None)?;
//! let logits = tape.linear(hidden, second, None, Activation::Identity, None)?;
//! let loss = tape.softmax_cross_entropy(logits, targets, 0.0)?;
//! let mut program = tape.finish()?;
//!
//! let data: Vec<f32> = (0..20).map(|i| (i as f32 * 0.7).sin()).collect();
//! let mut loss_at = |parameters: &mut Parameters| -> Result<f64, engine::tape::Error> {
//!     program.write(input, &data)?;
//!     program.write_ids(targets, &[0, 1, 2, 1, 0])?;
//!     program.run(parameters, &RunOptions::default())?;
//!     Ok(program.mean_loss(loss)?.unwrap())
//! };
//! loss_at(&mut parameters)?;
//! let gradient = parameters.gradient(first)?.unwrap().to_vec();
//! for index in [0, 7, 31] {
//!     let before = parameters.values(first)?[index];
//!     let step = 1e-2f32;
//!     parameters.modify(first, |values| values[index] = before + step)?;
//!     let above = loss_at(&mut parameters)?;
//!     parameters.modify(first, |values| values[index] = before - step)?;
//!     let below = loss_at(&mut parameters)?;
//!     parameters.modify(first, |values| values[index] = before)?;
//!     let difference = (above - below) / (2.0 * f64::from(step));
//!     assert!((difference - f64::from(gradient[index])).abs() < 1e-4);
//! }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod activation;
mod add;
mod attention;
mod dropout;
mod embedding;
mod ffn;
mod gated_conv;
mod key_value_cache;
mod layer_norm;
mod linear;
mod linear_cross_entropy;
mod loss;
mod low_rank;
mod mean_rows;
mod memory;
mod parameter;
mod parameters;
mod plan;
mod pointwise_loss;
mod program;
mod programs;
mod relative_bias;
mod rotary;
mod rows;
mod run;
mod scale;
mod softmax_cross_entropy;
mod span_cross_entropy;
#[cfg(test)]
mod tests;

pub use attention::{AttentionInputs, AttentionOptions};
pub use embedding::{EmbeddingInputs, Positions as EmbeddingPositions};
pub use ffn::FfnParameters;
pub use gated_conv::GatedConvOptions;
pub use key_value_cache::Cache;
pub use loss::{Loss, Targets};
pub use low_rank::LowRank;
pub(crate) use memory::Memory;
pub use memory::OutOfMemory;
pub use parameters::{Error as ParameterError, Initial, ParameterId, Parameters, Run as ParameterRun, Specification};
pub use program::{MemoryUse, NonFinite, Program, RunOptions};
pub use programs::Programs;
pub use rotary::RotaryOptions;

use crate::ops::Device;
use loss::LossInfo;
use run::Run;
use std::ops::Range;
use std::sync::Arc;

/// What a tape is recorded for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Forward and backward: gradients of every trainable parameter that the losses depend on.
    Training,
    /// Forward only ("no grad"): nothing is kept for a backward pass.
    Inference,
}

/// What can go wrong while recording, planning or running.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{0} has no backward pass, so it cannot be recorded for training")]
    NoBackward(&'static str),
    #[error("{operation}: {what}")]
    Shape { operation: &'static str, what: String },
    #[error("this tape has no loss, so there is nothing to differentiate")]
    NoLoss,
    #[error("{name} of {shape:?} is larger than any memory: use smaller batches or a smaller model")]
    TooLarge { name: String, shape: Vec<usize> },
    #[error(transparent)]
    Operation(#[from] crate::ops::Error),
    #[error(transparent)]
    OutOfMemory(#[from] OutOfMemory),
    #[error(transparent)]
    Device(#[from] crate::driver::Error),
}

/// A tensor of the recorded computation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Value(usize);

/// An operation as the tape sees it: what it needs, and how to run it in either direction.
trait Operation: Send + Sync {
    /// Name for messages.
    fn name(&self) -> &'static str;
    /// Floats of scratch memory that the forward pass needs, given which outputs have memory of their own.
    fn forward_scratch(&self, _has_output: &[bool]) -> usize {
        0
    }
    /// What the backward pass needs; `None` where there is none.
    fn backward_needs(&self) -> Option<Needs>;
    fn forward(&self, run: &Run<'_>) -> Result<(), crate::ops::Error>;
    /// Only called where `backward_needs` is not `None`. For a loss, computes losses and gradients in one.
    fn backward(&self, run: &Run<'_>) -> Result<(), crate::ops::Error>;
    /// Of a loss: what the rows of these targets weigh together; their number, where each weighs 1.
    fn weigh(&self, _targets: Targets<'_>) -> f64 {
        0.0
    }
}

/// What an operation's backward pass needs besides the gradients of its outputs.
#[derive(Clone, Debug, Default)]
struct Needs {
    /// Which inputs, by place.
    inputs: Vec<usize>,
    /// Which outputs, by place.
    outputs: Vec<usize>,
    /// Floats of scratch memory.
    scratch: usize,
    /// A loss: its backward pass is run instead of its forward pass, when the backward pass reaches it.
    is_loss: bool,
    /// The gradients of these inputs are the gradient of output 0, unchanged.
    passes_gradient_to: Vec<usize>,
    /// The backward pass first adds to the gradient of output 0, which is then passed on.
    completes_gradient: bool,
    /// The gradient of this input may be written over the input itself, where nobody else needs that.
    in_place: Option<usize>,
}

struct Node {
    operation: Box<dyn Operation>,
    inputs: Vec<Value>,
    outputs: Vec<Value>,
    parameters: Vec<ParameterId>,
    needs: Option<Needs>,
    /// The recompute block that it belongs to.
    block: Option<usize>,
}

/// Element type of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Float,
    Id,
}

struct ValueInfo {
    name: String,
    shape: Vec<usize>,
    kind: Kind,
    /// Which node makes it; `None` for inputs of the computation.
    producer: Option<usize>,
    needs_gradient: bool,
    /// Only written for the backward pass: not there in inference.
    auxiliary: bool,
    /// Must still be there after the run.
    kept: bool,
    /// What it holds in every run, where that is known as it is recorded.
    constant: Option<Vec<f32>>,
    /// A range of another value, in elements: no memory of its own.
    part_of: Option<(Value, usize)>,
}

/// Elements of a value, at most: a bound under which no sum of sizes in bytes overflows.
const LARGEST: usize = 1 << 44;

/// Elements of these sizes; beyond all bounds where that overflows, which [`check_size`] refuses.
fn elements(shape: &[usize]) -> usize {
    shape.iter().fold(1, |product, &size| product.saturating_mul(size))
}

impl ValueInfo {
    fn length(&self) -> usize {
        elements(&self.shape)
    }
    fn bytes(&self) -> usize {
        // Both kinds take four bytes.
        self.length() * 4
    }
}

fn check_size(name: &str, shape: &[usize]) -> Result<(), Error> {
    if elements(shape) <= LARGEST {
        return Ok(());
    }
    Err(Error::TooLarge { name: name.to_owned(), shape: shape.to_vec() })
}

/// Records operations. See the module's documentation.
pub struct Tape<'p> {
    device: Arc<Device>,
    parameters: &'p Parameters,
    mode: Mode,
    nodes: Vec<Node>,
    values: Vec<ValueInfo>,
    losses: Vec<LossInfo>,
    /// Node ranges to recompute in the backward pass.
    blocks: Vec<Range<usize>>,
    block: Option<usize>,
    dropout_sites: u32,
    /// Put before the names of recorded values.
    scope: String,
}

impl<'p> Tape<'p> {
    /// An empty tape over `parameters`.
    pub fn new(device: Arc<Device>, parameters: &'p Parameters, mode: Mode) -> Self {
        Self {
            device,
            parameters,
            mode,
            nodes: Vec::new(),
            values: Vec::new(),
            losses: Vec::new(),
            blocks: Vec::new(),
            block: None,
            dropout_sites: 0,
            scope: String::new(),
        }
    }

    /// What the tape is recorded for.
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// The sizes of a value.
    pub fn shape(&self, value: Value) -> &[usize] {
        &self.values[value.0].shape
    }

    /// A float input, written with [`Program::write`] before each run.
    pub fn input(&mut self, name: &str, shape: &[usize]) -> Value {
        self.push_input(name, shape, Kind::Float)
    }

    /// An input of ids (tokens, targets, lengths), written with [`Program::write_ids`] before each run.
    pub fn input_ids(&mut self, name: &str, shape: &[usize]) -> Value {
        self.push_input(name, shape, Kind::Id)
    }

    /// A float input whose gradient is wanted; read it with [`Program::gradient`].
    pub fn input_with_gradient(&mut self, name: &str, shape: &[usize]) -> Value {
        let value = self.push_input(name, shape, Kind::Float);
        self.values[value.0].needs_gradient = true;
        value
    }

    /// A float input that holds `data` in every run and is never written again.
    ///
    /// # Panics
    /// There are more or fewer elements than `shape` says.
    pub fn constant(&mut self, name: &str, shape: &[usize], data: &[f32]) -> Value {
        assert_eq!(data.len(), elements(shape), "elements of {name}");
        let value = self.push_input(name, shape, Kind::Float);
        self.values[value.0].constant = Some(data.to_vec());
        value
    }

    /// Keeps a value after the run, for [`Program::read`].
    pub fn keep(&mut self, value: Value) {
        self.values[value.0].kept = true;
    }

    /// Records what `record` records under names that start with `name`, for messages.
    pub fn scoped<R>(&mut self, name: &str, record: impl FnOnce(&mut Self) -> R) -> R {
        let length = self.scope.len();
        self.scope.push_str(name);
        self.scope.push('.');
        let result = record(self);
        self.scope.truncate(length);
        result
    }

    /// Records a block whose activations are freed after the forward pass and computed again, bit for bit, when the
    /// backward pass needs them (Chen et al. 2016). Blocks do not nest: an inner one belongs to the outer.
    pub fn recomputed<R>(&mut self, record: impl FnOnce(&mut Self) -> R) -> R {
        if self.block.is_some() || self.mode == Mode::Inference {
            return record(self);
        }
        let start = self.nodes.len();
        self.block = Some(self.blocks.len());
        let result = record(self);
        self.block = None;
        self.blocks.push(start..self.nodes.len());
        result
    }

    /// Plans the recorded computation.
    ///
    /// # Errors
    /// A training tape without a loss, or not enough memory.
    pub fn finish(self) -> Result<Program, Error> {
        self.check()?;
        let plan = plan::plan(&self);
        Program::new(self, plan)
    }

    /// Plans as [`finish`](Self::finish) does and tells what memory that takes, without allocating any.
    ///
    /// # Errors
    /// A training tape without a loss.
    pub fn measure(&self) -> Result<MemoryUse, Error> {
        self.check()?;
        Ok(plan::plan(self).memory)
    }

    /// Fails unless the recorded computation can be planned.
    fn check(&self) -> Result<(), Error> {
        if self.mode == Mode::Training && self.losses.is_empty() {
            return Err(Error::NoLoss);
        }
        self.values.iter().try_for_each(|info| check_size(&info.name, &info.shape))
    }

    fn push_input(&mut self, name: &str, shape: &[usize], kind: Kind) -> Value {
        self.push_value(ValueInfo {
            name: name.to_owned(),
            shape: shape.to_vec(),
            kind,
            producer: None,
            needs_gradient: false,
            auxiliary: false,
            kept: false,
            constant: None,
            part_of: None,
        })
    }

    fn push_value(&mut self, info: ValueInfo) -> Value {
        self.values.push(info);
        Value(self.values.len() - 1)
    }

    /// Records an operation. `outputs` are name, shape, and whether only the backward pass needs it.
    fn push_node(
        &mut self,
        operation: impl Operation + 'static,
        inputs: &[Value],
        parameters: &[ParameterId],
        outputs: &[(&str, Vec<usize>, bool)],
    ) -> Result<Vec<Value>, Error> {
        // Before the operation multiplies sizes.
        for &value in inputs {
            check_size(&self.values[value.0].name, self.shape(value))?;
        }
        for (name, shape, _) in outputs {
            check_size(&format!("{}{name}", self.scope), shape)?;
        }
        let needs = operation.backward_needs();
        if self.mode == Mode::Training && needs.is_none() {
            return Err(Error::NoBackward(operation.name()));
        }
        let trains = |id: &ParameterId| self.parameters.specification(*id).trainable;
        let needs_gradient = self.mode == Mode::Training
            && (inputs.iter().any(|value| self.values[value.0].needs_gradient) || parameters.iter().any(trains));
        let producer = Some(self.nodes.len());
        let outputs = outputs
            .iter()
            .map(|(name, shape, auxiliary)| {
                let name = format!("{}{name}", self.scope);
                self.push_value(ValueInfo {
                    name,
                    shape: shape.clone(),
                    kind: Kind::Float,
                    producer,
                    needs_gradient: needs_gradient && !auxiliary,
                    auxiliary: *auxiliary,
                    kept: false,
                    constant: None,
                    part_of: None,
                })
            })
            .collect::<Vec<_>>();
        self.nodes.push(Node {
            operation: Box::new(operation),
            inputs: inputs.to_vec(),
            outputs: outputs.clone(),
            parameters: parameters.to_vec(),
            needs,
            block: self.block,
        });
        Ok(outputs)
    }

    /// A dropout's number on this tape: the same for the same recording order.
    fn next_dropout_site(&mut self) -> u32 {
        self.dropout_sites += 1;
        self.dropout_sites
    }

    /// Fails unless the parameter has these sizes.
    fn check_parameter(&self, operation: &'static str, id: ParameterId, shape: &[usize]) -> Result<(), Error> {
        let specification = self.parameters.specification(id);
        if specification.shape == shape {
            return Ok(());
        }
        let what = format!("parameter {} is {:?}, expected {shape:?}", specification.name, specification.shape);
        Err(Error::Shape { operation, what })
    }

    /// Fails unless the value has these sizes.
    fn check_value(&self, operation: &'static str, value: Value, shape: &[usize]) -> Result<(), Error> {
        let info = &self.values[value.0];
        if info.shape == shape {
            return Ok(());
        }
        Err(Error::Shape { operation, what: format!("{} is {:?}, expected {shape:?}", info.name, info.shape) })
    }

    /// Rows (product of all sizes but the last) and columns of a value.
    fn rows_and_columns(&self, operation: &'static str, value: Value) -> Result<(usize, usize), Error> {
        let info = &self.values[value.0];
        match info.shape.split_last() {
            Some((&columns, rows)) if columns > 0 => Ok((elements(rows), columns)),
            _ => Err(Error::Shape { operation, what: format!("{} is {:?}: no columns", info.name, info.shape) }),
        }
    }
}
