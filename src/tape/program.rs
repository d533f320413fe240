//! A planned computation, ready to run: the arena, the steps, and ways to write inputs and read results.

use super::memory::Memory;
use super::plan::{Direction, Plan, Step};
use super::run::Run;
use super::{Error, Kind, Loss, LossInfo, Node, Parameters, Tape, Targets, Value, ValueInfo};
use crate::ops::Device;
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
    /// Multiplies the mean losses before they are differentiated: `1 / micro-batches` when gradients are accumulated.
    pub loss_factor: f64,
    /// What a loss is divided by, where that is not the weight of this batch's own rows: the weight of all
    /// micro-batches' rows together, which [`Program::weigh`] tells, makes each row count alike.
    pub loss_weights: Vec<(Loss, f64)>,
    /// Position of each sequence's first token, when decoding from a cache.
    pub positions: Vec<usize>,
    /// First row of the cache that the batch uses.
    pub cache_row: usize,
    /// How many tokens each sequence of an encoder has, when a decoder looks at them in a cache.
    pub memory_lengths: Vec<usize>,
}

impl Default for RunOptions {
    fn default() -> Self {
        Self {
            seed: 0,
            step: 0,
            accumulate: false,
            loss_factor: 1.0,
            loss_weights: Vec::new(),
            positions: Vec::new(),
            cache_row: 0,
            memory_lengths: Vec::new(),
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
    losses: Vec<LossInfo>,
    /// What the rows of each loss weigh, as its targets were written.
    loss_weights: Vec<f64>,
    pub(super) steps: Vec<Step>,
    values: HashMap<Value, Range<usize>>,
    gradients: HashMap<Value, Range<usize>>,
    pub(super) state: State,
    memory: MemoryUse,
}

impl Program {
    pub(super) fn new(tape: Tape<'_>, plan: Plan) -> Result<Self, Error> {
        let arena = Memory::allocate(&tape.device, "the activations", plan.arena_bytes)?;
        let mut program = Self::without_arena(tape, plan);
        program.take_arena(arena)?;
        Ok(program)
    }

    /// A program that cannot run yet.
    pub(super) fn without_arena(tape: Tape<'_>, plan: Plan) -> Self {
        Self {
            device: tape.device,
            nodes: tape.nodes,
            infos: tape.values,
            loss_weights: vec![0.0; tape.losses.len()],
            losses: tape.losses,
            steps: plan.steps,
            values: plan.values,
            gradients: plan.gradients,
            state: State { arena: Memory::none() },
            memory: plan.memory,
        }
    }

    /// Gives the program its memory, which is at least as large as its plan.
    pub(super) fn take_arena(&mut self, arena: Memory) -> Result<(), Error> {
        self.state.arena = arena;
        self.write_constants()
    }

    fn write_constants(&mut self) -> Result<(), Error> {
        for (index, info) in self.infos.iter().enumerate() {
            if let Some(data) = &info.constant {
                self.state.arena.write(self.values[&Value(index)].clone(), data)?;
            }
        }
        Ok(())
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
        self.weigh_targets(value, Targets::Floats(data));
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
        self.weigh_targets(value, Targets::Ids(data));
        self.write_input(value, Kind::Id, data)
    }

    fn weigh_targets(&mut self, value: Value, targets: Targets<'_>) {
        for (loss, weight) in self.losses.iter().zip(&mut self.loss_weights) {
            if loss.targets == value {
                *weight = self.nodes[loss.node].operation.weigh(targets);
            }
        }
    }

    /// What the rows of these targets of a loss weigh together: the number of those that count, unless classes have
    /// weights.
    pub fn weigh(&self, loss: Loss, targets: Targets<'_>) -> f64 {
        self.nodes[self.losses[loss.0].node].operation.weigh(targets)
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
        self.read_range(&self.values[&self.losses[loss.0].losses])
    }

    fn read_range(&self, range: &Range<usize>) -> Result<Cow<'_, [f32]>, Error> {
        // SAFETY: writing takes `&mut self`.
        Ok(unsafe { self.state.arena.read(range.clone()) }?)
    }

    /// Sum of the losses, and what the counted rows weigh together (their number, unless classes have weights), after
    /// a run.
    ///
    /// # Errors
    /// The device failed.
    pub fn loss_sum(&self, loss: Loss) -> Result<(f64, f64), Error> {
        let sum = self.row_losses(loss)?.iter().map(|&value| f64::from(value)).sum();
        Ok((sum, self.loss_weights[loss.0]))
    }

    /// Mean loss over the counted rows, after a run; `None` where no row was counted.
    ///
    /// # Errors
    /// The device failed.
    pub fn mean_loss(&self, loss: Loss) -> Result<Option<f64>, Error> {
        let (sum, weight) = self.loss_sum(loss)?;
        Ok((weight > 0.0).then(|| sum / weight))
    }

    /// What is differentiated, after a run: the sum of the mean losses, each times its factor.
    ///
    /// # Errors
    /// The device failed.
    pub fn total_loss(&self) -> Result<f64, Error> {
        self.losses()
            .zip(&self.losses)
            .try_fold(0.0, |total, (loss, info)| Ok(total + info.factor * self.mean_loss(loss)?.unwrap_or(0.0)))
    }

    /// The losses that were recorded.
    pub fn losses(&self) -> impl Iterator<Item = Loss> + use<> {
        (0..self.losses.len()).map(Loss)
    }

    /// Gradient of each row's loss; 0 where nothing counts.
    fn grad_loss(&self, node: usize, options: &RunOptions) -> f32 {
        let Some(index) = self.losses.iter().position(|loss| loss.node == node) else { return 0.0 };
        let given = options.loss_weights.iter().find(|(loss, _)| loss.0 == index);
        let weight = given.map_or(self.loss_weights[index], |(_, weight)| *weight);
        if weight > 0.0 { (options.loss_factor * self.losses[index].factor / weight) as f32 } else { 0.0 }
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
            grad_loss: self.grad_loss(step.node, options),
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
        self.write_constants().expect("the device works");
    }

    fn non_finite_in(&self, name: &str, range: &Range<usize>) -> Result<Option<NonFinite>, Error> {
        Ok(non_finite(name, &self.read_range(range)?))
    }
}

fn non_finite(name: &str, values: &[f32]) -> Option<NonFinite> {
    let index = values.iter().position(|value| !value.is_finite())?;
    Some(NonFinite { tensor: name.to_owned(), index, value: values[index] })
}
