//! The optimizer: clipping by the global norm, then AdamW or SGD over every trainable parameter.
//!
//! Its state lies like the gradients do, so an update walks the few long runs of [`Parameters::runs`].

use super::config::{self, OptimizerName};
use crate::driver;
use crate::model::huggingface;
use crate::ops::{self, Device, ViewMut};
use crate::tape::{Memory, OutOfMemory, ParameterId, ParameterRun, Parameters};
use std::borrow::Cow;
use std::sync::Arc;

/// Optimizer and its state.
pub struct Optimizer {
    settings: config::Optimizer,
    /// AdamW's mean of gradients, or SGD's momentum.
    first: Memory,
    /// AdamW's mean of squared gradients.
    second: Memory,
    /// Updates made.
    updates: u64,
}

/// What an update did.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Update {
    /// Global norm of the gradient, before clipping.
    pub grad_norm: f64,
    /// Whether the gradient was finite: if not, nothing was changed.
    pub is_finite: bool,
}

impl Optimizer {
    /// A new optimizer for these parameters; its state is zero.
    ///
    /// # Errors
    /// Not enough memory.
    pub fn new(
        device: &Arc<Device>,
        settings: &config::Optimizer,
        parameters: &Parameters,
    ) -> Result<Self, OutOfMemory> {
        let (first, second) = Self::state_bytes(settings, parameters.bytes().1);
        Ok(Self {
            settings: settings.clone(),
            first: Memory::allocate(device, "the optimizer's first moments", first)?,
            second: Memory::allocate(device, "the optimizer's second moments", second)?,
            updates: 0,
        })
    }

    /// Bytes of the two parts of the state, for gradients of so many bytes.
    pub fn state_bytes(settings: &config::Optimizer, gradient_bytes: usize) -> (usize, usize) {
        match settings.name {
            OptimizerName::AdamW => (gradient_bytes, gradient_bytes),
            OptimizerName::Sgd if settings.momentum != 0.0 => (gradient_bytes, 0),
            OptimizerName::Sgd => (0, 0),
        }
    }

    /// Updates made so far.
    pub fn updates(&self) -> u64 {
        self.updates
    }

    /// Clips the gradients to `clip` (0: not at all) and updates all trainable parameters.
    ///
    /// A gradient that holds a NaN or an infinity changes nothing.
    ///
    /// # Errors
    /// Only a bug of ours.
    pub fn update(
        &mut self,
        device: &Device,
        parameters: &mut Parameters,
        learning_rate: f64,
        clip: f64,
    ) -> Result<Update, ops::Error> {
        let grad_norm = ops::grad_norm::forward(device, &[parameters.all_gradients()])?;
        if !grad_norm.is_finite() {
            return Ok(Update { grad_norm, is_finite: false });
        }
        let grad_factor = ops::grad_norm::clip_factor(grad_norm, (clip > 0.0).then_some(clip));
        self.updates += 1;
        for run in parameters.runs().to_vec() {
            let learning_rate = (learning_rate * f64::from(run.learning_rate_factor)) as f32;
            self.update_run(device, parameters, &run, learning_rate, grad_factor)?;
        }
        Ok(Update { grad_norm, is_finite: true })
    }

    fn update_run(
        &mut self,
        device: &Device,
        parameters: &mut Parameters,
        run: &ParameterRun,
        learning_rate: f32,
        grad_factor: f32,
    ) -> Result<(), ops::Error> {
        let settings = &self.settings;
        let weight_decay = if run.decays { settings.weight_decay as f32 } else { 0.0 };
        let (parameter, gradient) = parameters.run_views(run);
        match settings.name {
            OptimizerName::AdamW => {
                let hyper = ops::adamw::Hyper {
                    learning_rate,
                    beta1: settings.beta1 as f32,
                    beta2: settings.beta2 as f32,
                    epsilon: settings.epsilon as f32,
                    weight_decay,
                    step: self.updates,
                    grad_factor,
                };
                let (first_moment, second_moment) = (state(&self.first, run), state(&self.second, run));
                let arguments = ops::adamw::Update { parameter, gradient, first_moment, second_moment };
                ops::adamw::update(device, &hyper, arguments)
            }
            OptimizerName::Sgd => {
                let momentum = settings.momentum as f32;
                let hyper = ops::sgd::Hyper { learning_rate, momentum, weight_decay, grad_factor };
                let momentum = (momentum != 0.0).then(|| state(&self.first, run));
                ops::sgd::update(device, &hyper, ops::sgd::Update { parameter, gradient, momentum })
            }
        }
    }

    /// Names of what the optimizer keeps for each parameter.
    pub fn states(&self) -> &'static [&'static str] {
        match self.settings.name {
            OptimizerName::AdamW => &huggingface::ADAMW_STATES,
            OptimizerName::Sgd if self.settings.momentum != 0.0 => &["momentum"],
            OptimizerName::Sgd => &[],
        }
    }

    fn memory(&self, state: usize) -> &Memory {
        [&self.first, &self.second][state]
    }

    /// What is kept for a parameter under the name `states()[state]`; empty where the parameter is frozen.
    ///
    /// # Errors
    /// The device failed.
    pub fn state(
        &self,
        parameters: &Parameters,
        id: ParameterId,
        state: usize,
    ) -> Result<Cow<'_, [f32]>, driver::Error> {
        let Some(range) = parameters.gradient_bytes(id) else { return Ok(Cow::Borrowed(&[])) };
        // SAFETY: changing the state takes `&mut self`.
        unsafe { self.memory(state).read(range) }
    }

    /// Replaces what is kept for a parameter by what a checkpoint held.
    ///
    /// # Errors
    /// The device failed.
    pub fn set_state(
        &mut self,
        parameters: &Parameters,
        id: ParameterId,
        state: usize,
        values: &[f32],
    ) -> Result<(), driver::Error> {
        let Some(range) = parameters.gradient_bytes(id) else { return Ok(()) };
        [&mut self.first, &mut self.second][state].write(range, values)
    }

    /// Goes on from so many updates, with the state filled in by [`set_state`](Self::set_state).
    pub fn resume_at(&mut self, updates: u64) {
        self.updates = updates;
    }
}

/// The part of the state that belongs to a run.
fn state<'m>(memory: &'m Memory, run: &ParameterRun) -> ViewMut<'m, f32> {
    // SAFETY: the caller holds the optimizer exclusively and asks once for each of its two blocks.
    unsafe { memory.view_mut(run.gradients.start * 4..run.gradients.end * 4) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::Cpu;
    use crate::ops::linear::Activation;
    use crate::tape::{Initial, Mode, RunOptions, Specification, Tape};
    use crate::train::config::Config;
    use crate::train::memory::MemoryTable;

    /// Two layers of which `change` changes the second's specification; what three updates leave of both weights.
    fn trained(name: OptimizerName, change: impl Fn(&mut Specification)) -> [Vec<f32>; 2] {
        let device = Arc::new(Device::Cpu(Cpu::new().unwrap()));
        let mut list = ["first", "second"].map(|name| Specification::new(name, &[8, 8], Initial::Normal(0.3))).to_vec();
        change(&mut list[1]);
        let mut parameters = Parameters::new(&device, list, 3).unwrap();
        let ids: Vec<ParameterId> = parameters.ids().collect();
        let mut tape = Tape::new(Arc::clone(&device), &parameters, Mode::Training);
        let (input, targets) = (tape.input("input", &[4, 8]), tape.input_ids("targets", &[4]));
        let hidden = tape.linear(input, ids[0], None, Activation::Tanh, None).unwrap();
        let logits = tape.linear(hidden, ids[1], None, Activation::Identity, None).unwrap();
        tape.softmax_cross_entropy(logits, targets, 0.0).unwrap();
        let mut program = tape.finish().unwrap();
        let settings = config::Optimizer { name, ..Config::default().optimizer };
        let mut optimizer = Optimizer::new(&device, &settings, &parameters).unwrap();
        for _ in 0..3 {
            let data: Vec<f32> = (0..32).map(|i| (i as f32 * 0.7).sin()).collect();
            program.write(input, &data).unwrap();
            program.write_ids(targets, &[1, 7, 0, 3]).unwrap();
            program.run(&mut parameters, &RunOptions::default()).unwrap();
            optimizer.update(&device, &mut parameters, 0.01, 0.0).unwrap();
        }
        [0, 1].map(|index| parameters.values(ids[index]).unwrap().into_owned())
    }

    #[test]
    fn a_factor_of_the_learning_rate_changes_its_own_parameter_alone_in_the_first_step() {
        for name in [OptimizerName::AdamW, OptimizerName::Sgd] {
            let plain = trained(name, |_| ());
            assert!(plain == trained(name, |second| second.learning_rate_factor = 1.0), "{name:?}");
            let held = trained(name, |second| second.learning_rate_factor = 0.0);
            let frozen = trained(name, |second| second.trainable = false);
            assert!(held[1] == frozen[1] && held[1] != plain[1], "a factor of 0 holds it, {name:?}");
            assert!(held[0] == frozen[0] && held[0] != plain[0], "{name:?}");
        }
    }

    #[test]
    fn frozen_parameters_take_neither_gradients_nor_optimizer_state() {
        let bytes = |trainable| {
            let frozen = Specification { trainable, ..Specification::new("a", &[32, 16], Initial::Constant(0.0)) };
            let other = Specification::new("b", &[16], Initial::Constant(0.0));
            let parameters = Parameters::unallocated(vec![frozen, other]).unwrap();
            let table = MemoryTable::of_step(&Config::default().optimizer, &parameters, &Default::default());
            let of = |name: &str| table.rows().iter().find(|(row, _)| row == name).unwrap().1;
            ["parameters", "gradients", "optimizer state"].map(of)
        };
        assert_eq!(bytes(true), [2112, 2112, 4224]);
        assert_eq!(bytes(false), [2112, 64, 128]);
    }
}
