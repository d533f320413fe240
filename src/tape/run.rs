//! What an operation sees while it runs: views of its inputs, outputs, parameters, gradients and scratch memory.

use super::program::{RunOptions, State};
use super::{Kind, ParameterId, Parameters};
use crate::ops::{Device, Dropout, View, ViewMut, Write};
use std::ops::Range;

/// Where a step finds its memory: byte ranges of the arena, by place in the node's lists.
#[derive(Clone, Debug, Default)]
pub(super) struct Places {
    pub(super) inputs: Vec<Range<usize>>,
    /// `None` for an auxiliary output that nobody needs.
    pub(super) outputs: Vec<Option<Range<usize>>>,
    pub(super) grad_outputs: Vec<Option<Range<usize>>>,
    /// The gradient of output 0 where the backward pass adds to it.
    pub(super) completed: Option<(Range<usize>, Write)>,
    pub(super) grad_inputs: Vec<Option<(Range<usize>, Write)>>,
    /// Whether this step is the first of the plan to write the parameter's gradient; `None` where it is frozen.
    pub(super) grad_parameters: Vec<Option<Write>>,
    pub(super) scratch: Range<usize>,
}

/// One step's view of the world.
///
/// The plan never lets two ranges of a step overlap unless it says so, and [`Program::run`](super::Program::run)
/// holds arena and parameters exclusively: that is why the views that are made here are sound.
pub(super) struct Run<'r> {
    pub(super) device: &'r Device,
    pub(super) state: &'r State,
    pub(super) parameters: &'r Parameters,
    pub(super) places: &'r Places,
    pub(super) parameter_ids: &'r [ParameterId],
    /// Gradient of each counted row's loss, where the operation is a loss.
    pub(super) grad_loss: f32,
    pub(super) options: &'r RunOptions,
}

impl<'r> Run<'r> {
    pub(super) fn input(&self, place: usize) -> View<'r, f32> {
        // SAFETY: see the type.
        unsafe { self.state.arena.view(self.places.inputs[place].clone()) }
    }

    pub(super) fn input_ids(&self, place: usize) -> View<'r, i32> {
        // SAFETY: see the type.
        unsafe { self.state.arena.view(self.places.inputs[place].clone()) }
    }

    /// An output to write; `None` for an auxiliary one that nobody needs.
    pub(super) fn output_or_none(&self, place: usize) -> Option<ViewMut<'r, f32>> {
        let range = self.places.outputs[place].clone()?;
        // SAFETY: see the type.
        Some(unsafe { self.state.arena.view_mut(range) })
    }

    pub(super) fn output(&self, place: usize) -> ViewMut<'r, f32> {
        self.output_or_none(place).expect("an output that is not auxiliary has memory")
    }

    /// An output of the forward pass, for the backward pass.
    pub(super) fn saved_output(&self, place: usize) -> View<'r, f32> {
        let range = self.places.outputs[place].clone().expect("an output that the backward pass needs has memory");
        // SAFETY: see the type.
        unsafe { self.state.arena.view(range) }
    }

    pub(super) fn parameter(&self, place: usize) -> View<'r, f32> {
        self.parameters.view(self.parameter_ids[place])
    }

    /// The gradient of an output; `None` where nothing that is differentiated reads it.
    pub(super) fn grad_output_or_none(&self, place: usize) -> Option<View<'r, f32>> {
        let range = self.places.grad_outputs[place].clone()?;
        // SAFETY: see the type.
        Some(unsafe { self.state.arena.view(range) })
    }

    /// The gradient of the only output.
    pub(super) fn grad_output(&self, place: usize) -> View<'r, f32> {
        self.grad_output_or_none(place).expect("a step of the backward pass has its gradient")
    }

    /// The gradient of output 0, to complete before it is passed on.
    pub(super) fn completed_gradient(&self) -> (ViewMut<'r, f32>, Write) {
        let (range, write) = self.places.completed.clone().expect("planned for an operation that completes it");
        // SAFETY: see the type.
        (unsafe { self.state.arena.view_mut(range) }, write)
    }

    /// Where the gradient of an input goes; `None` where nobody wants it.
    pub(super) fn grad_input(&self, place: usize) -> Option<(ViewMut<'r, f32>, Write)> {
        let (range, write) = self.places.grad_inputs[place].clone()?;
        // SAFETY: see the type.
        Some((unsafe { self.state.arena.view_mut(range) }, write))
    }

    /// Where the gradient of a parameter goes; `None` where it is frozen.
    pub(super) fn grad_parameter(&self, place: usize) -> Option<(ViewMut<'r, f32>, Write)> {
        let planned = self.places.grad_parameters[place]?;
        let write = if self.options.accumulate { Write::Add } else { planned };
        // SAFETY: see the type; an operation asks once for each of its parameters.
        let view = unsafe { self.parameters.gradient_view_mut(self.parameter_ids[place]) }?;
        Some((view, write))
    }

    pub(super) fn scratch(&self) -> ViewMut<'r, f32> {
        // SAFETY: see the type.
        unsafe { self.state.arena.view_mut(self.places.scratch.clone()) }
    }

    /// The first `length` floats of scratch memory (which is padded to whole cache lines).
    pub(super) fn scratch_of(&self, length: usize) -> ViewMut<'r, f32> {
        self.scratch().slice(0..length)
    }

    /// Scratch memory as `length` ids.
    pub(super) fn scratch_ids(&self, length: usize) -> ViewMut<'r, i32> {
        let start = self.places.scratch.start;
        // SAFETY: see the type.
        unsafe { self.state.arena.view_mut(start..start + length * size_of::<i32>()) }
    }

    /// Whether the gradient of an input is to be written over the input itself.
    pub(super) fn is_in_place(&self, place: usize) -> bool {
        self.places.grad_inputs[place].as_ref().is_some_and(|(range, _)| *range == self.places.inputs[place])
    }

    /// This run's dropout at a site; `None` where the probability is 0.
    pub(super) fn dropout(&self, probability: f32, site: u32) -> Option<Dropout> {
        (probability > 0.0).then_some(Dropout { probability, seed: self.options.seed, step: self.options.step, site })
    }
}

impl Kind {
    pub(super) fn name(self) -> &'static str {
        match self {
            Kind::Float => "floats",
            Kind::Id => "ids",
        }
    }
}
