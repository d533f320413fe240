//! A planned computation, ready to run: the arena, the steps, and ways to write inputs and read results.

use super::memory::Memory;
use super::plan::{Direction, Plan, Step};
use super::run::Run;
use super::{Error, Kind, Loss, Node, Parameters, Tape, Value, ValueInfo};
use crate::ops::{Device, IGNORED};
use std::borrow::Cow;
use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

pub use super::plan::MemoryUse;

/// What may differ from run to run.
#[derive(Clone, Debug)]
pub struct RunOptions {
    /// Seed of dropout.
    pub seed: u64,
    /// Number of this run among all of the training, which dropout depends on.
    pub step: u64,
    /// Add to the parameters' gradients instead of overwriting them: for the second and later micro-batches.
    pub accumulate: bool,
    /// Multiplies the mean loss before it is differentiated: `1 / micro-batches` when gradients are accumulated.
    pub loss_factor: f64,
    /// How many rows the losses are averaged over, where that is not the number of counted rows of this batch.
    pub counted_rows: Option<u64>,
    /// Position of each sequence's first token, when decoding from a cache.
    pub positions: Vec<usize>,
    /// First row of the cache that the batch uses.
    pub cache_row: usize,
}

impl Default for RunOptions {
    fn default() -> Self {
        Self {
            seed: 0,
            step: 0,
            accumulate: false,
            loss_factor: 1.0,
            counted_rows: None,
            positions: Vec::new(),
            cache_row: 0,
        }
    }
}

/// The memory that steps work on.
pub(super) struct State {
    pub(super) arena: Memory,
}

/// The first tensor, in the order of computation, that holds a value that is not finite.
#[derive(Clone, Debug, PartialEq)]
pub struct NonFinite {
    /// Name of the tensor, for example `blocks.3.attention.output` or `gradient of blocks.0.ffn.weight_in`.
    pub tensor: String,
    /// Index of the first such element.
    pub index: usize,
    /// NaN or an infinity.
    pub value: f32,
}

/// A planned computation. See [`Tape::finish`].
pub struct Program {
    device: Arc<Device>,
    nodes: Vec<Node>,
    infos: Vec<ValueInfo>,
    losses: Vec<Loss>,
    pub(super) steps: Vec<Step>,
    values: HashMap<Value, Range<usize>>,
    /// How many ids of each input of ids are not [`IGNORED`], counted as they were written.
    counted: HashMap<Value, u64>,
    gradients: HashMap<Value, Range<usize>>,
    pub(super) state: State,
    memory: MemoryUse,
}

impl Program {
    pub(super) fn new(tape: Tape<'_>, plan: Plan) -> Result<Self, Error> {
        let arena = Memory::allocate(&tape.device, "the activations", plan.arena_bytes)?;
        Ok(Self {
            device: tape.device,
            nodes: tape.nodes,
            infos: tape.values,
            losses: tape.losses,
            steps: plan.steps,
            values: plan.values,
            counted: HashMap::new(),
            gradients: plan.gradients,
            state: State { arena },
            memory: plan.memory,
        })
    }

    /// Bytes of the arena, by category.
    pub fn memory(&self) -> MemoryUse {
        self.memory
    }

    /// Writes a float input. Inputs do not survive a run: write each before every run.
    ///
    /// # Errors
    /// The device failed.
    ///
    /// # Panics
    /// The value is not a float input of this program, or the length is not its own.
    pub fn write(&mut self, value: Value, data: &[f32]) -> Result<(), Error> {
        self.write_input(value, Kind::Float, data)
    }

    /// Writes an input of ids.
    ///
    /// # Errors
    /// The device failed.
    ///
    /// # Panics
    /// The value is not an input of ids of this program, or the length is not its own.
    pub fn write_ids(&mut self, value: Value, data: &[i32]) -> Result<(), Error> {
        self.counted.insert(value, data.iter().filter(|&&id| id != IGNORED).count() as u64);
        self.write_input(value, Kind::Id, data)
    }

    fn write_input<T: bytemuck::Pod>(&mut self, value: Value, kind: Kind, data: &[T]) -> Result<(), Error> {
        let info = &self.infos[value.0];
        assert!(info.producer.is_none() && info.kind == kind, "{} is no input of {}", info.name, kind.name());
        assert_eq!(info.length(), data.len(), "elements of {}", info.name);
        Ok(self.state.arena.write(self.values[&value].clone(), data)?)
    }

    /// A kept value, after a run.
    ///
    /// # Errors
    /// The device failed.
    ///
    /// # Panics
    /// The value was not kept.
    pub fn read(&self, value: Value) -> Result<Cow<'_, [f32]>, Error> {
        let info = &self.infos[value.0];
        assert!(info.kept && info.kind == Kind::Float, "{} was not kept", info.name);
        self.read_range(&self.values[&value])
    }

    /// The gradient of an input that was recorded with [`Tape::input_with_gradient`], after a run. `None` where no
    /// loss depends on it.
    ///
    /// # Errors
    /// The device failed.
    pub fn gradient(&self, value: Value) -> Result<Option<Cow<'_, [f32]>>, Error> {
        self.gradients.get(&value).map(|range| self.read_range(range)).transpose()
    }

    /// Losses of all rows, after a run; 0 where the target was the ignored index.
    ///
    /// # Errors
    /// The device failed.
    pub fn row_losses(&self, loss: Loss) -> Result<Cow<'_, [f32]>, Error> {
        self.read_range(&self.values[&loss.losses])
    }

    fn read_range(&self, range: &Range<usize>) -> Result<Cow<'_, [f32]>, Error> {
        // SAFETY: writing takes `&mut self`.
        Ok(unsafe { self.state.arena.read(range.clone()) }?)
    }

    /// Sum of the losses, and how many rows were counted, after a run.
    ///
    /// # Errors
    /// The device failed.
    pub fn loss_sum(&self, loss: Loss) -> Result<(f64, u64), Error> {
        let sum = self.row_losses(loss)?.iter().map(|&value| f64::from(value)).sum();
        Ok((sum, self.counted.get(&loss.targets).copied().unwrap_or(0)))
    }

    /// Mean loss over the counted rows, after a run; `None` where no row was counted.
    ///
    /// # Errors
    /// The device failed.
    pub fn mean_loss(&self, loss: Loss) -> Result<Option<f64>, Error> {
        let (sum, counted) = self.loss_sum(loss)?;
        Ok((counted > 0).then(|| sum / counted as f64))
    }

    /// The losses that were recorded.
    pub fn losses(&self) -> &[Loss] {
        &self.losses
    }

    /// Runs all steps: the losses and kept values are there afterwards, and in training the parameters' gradients.
    ///
    /// # Errors
    /// An operation refused its arguments: an id outside its table, for example.
    pub fn run(&mut self, parameters: &mut Parameters, options: &RunOptions) -> Result<(), Error> {
        for step in &self.steps {
            self.run_step(step, parameters, options)?;
        }
        Ok(())
    }

    fn run_step(&self, step: &Step, parameters: &Parameters, options: &RunOptions) -> Result<(), Error> {
        let node = &self.nodes[step.node];
        let run = Run {
            device: &self.device,
            state: &self.state,
            parameters,
            places: &step.places,
            parameter_ids: &node.parameters,
            inputs: &node.inputs,
            counted: &self.counted,
            options,
        };
        match step.direction {
            Direction::Forward => node.operation.forward(&run)?,
            Direction::Backward => node.operation.backward(&run)?,
            Direction::PassGradient(place) => {
                let (target, write) = run.grad_input(place).expect("this step was planned for it");
                crate::ops::add::accumulate(&self.device, run.grad_output(0), target, write)?;
            }
        }
        Ok(())
    }

    /// Runs all steps on inputs that were just written again, and returns the first tensor that holds a NaN or an
    /// infinity: a parameter, an activation, or a gradient. Statistics that an operation keeps for its own backward
    /// pass are passed over: a row of attention that sees no key has a log-sum-exp of minus infinity and is right.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub fn find_non_finite(
        &mut self,
        parameters: &mut Parameters,
        options: &RunOptions,
    ) -> Result<Option<NonFinite>, Error> {
        for id in parameters.ids() {
            if let Some(found) = non_finite(&parameters.specification(id).name, &parameters.values(id)?) {
                return Ok(Some(found));
            }
        }
        for step in &self.steps {
            self.run_step(step, parameters, options)?;
            let node = &self.nodes[step.node];
            let name_of = |value: &Value| self.infos[value.0].name.as_str();
            if step.direction == Direction::Forward || node.needs.as_ref().is_some_and(|needs| needs.is_loss) {
                for (range, value) in step.places.outputs.iter().zip(&node.outputs) {
                    let Some(range) = range.as_ref().filter(|_| !self.infos[value.0].auxiliary) else { continue };
                    if let Some(found) = self.non_finite_in(name_of(value), range)? {
                        return Ok(Some(found));
                    }
                }
            }
            for (grad, value) in step.places.grad_inputs.iter().zip(&node.inputs) {
                let Some((range, _)) = grad else { continue };
                if let Some(found) = self.non_finite_in(&format!("gradient of {}", name_of(value)), range)? {
                    return Ok(Some(found));
                }
            }
            for (write, &id) in step.places.grad_parameters.iter().zip(&node.parameters) {
                if write.is_none() {
                    continue;
                }
                let name = format!("gradient of {}", parameters.specification(id).name);
                if let Some(found) = parameters.gradient(id)?.and_then(|gradient| non_finite(&name, &gradient)) {
                    return Ok(Some(found));
                }
            }
        }
        Ok(None)
    }

    /// Fills the arena with what is neither a number nor an id: whatever a run then reads without having written it
    /// shows. To be called before the inputs are written.
    #[cfg(test)]
    pub(super) fn poison(&mut self) {
        let range = 0..self.state.arena.bytes();
        let poison = vec![0x7FFF_FFFFu32; range.len() / 4];
        self.state.arena.write(range, &poison).expect("the device works");
    }

    fn non_finite_in(&self, name: &str, range: &Range<usize>) -> Result<Option<NonFinite>, Error> {
        Ok(non_finite(name, &self.read_range(range)?))
    }
}

fn non_finite(name: &str, values: &[f32]) -> Option<NonFinite> {
    let index = values.iter().position(|value| !value.is_finite())?;
    Some(NonFinite { tensor: name.to_owned(), index, value: values[index] })
}
