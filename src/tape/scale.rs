//! A tensor times a number, on the tape. Nothing is kept: the gradient is the same operation.

use super::run::Run;
use super::{Error, Needs, Operation, Tape, Value};
use crate::ops;
use crate::ops::Write;

struct Scale {
    factor: f32,
}

impl Tape<'_> {
    /// Records `factor · input`.
    ///
    /// # Errors
    /// Sizes beyond all memory.
    pub fn scale(&mut self, input: Value, factor: f32) -> Result<Value, Error> {
        let shape = self.shape(input).to_vec();
        Ok(self.push_node(Scale { factor }, &[input], &[], &[("scaled", shape, false)])?[0])
    }
}

impl Operation for Scale {
    fn name(&self) -> &'static str {
        "scale"
    }

    fn backward_needs(&self) -> Option<Needs> {
        Some(Needs::default())
    }

    fn forward(&self, run: &Run<'_>) -> Result<(), ops::Error> {
        ops::scale::forward(run.device, self.factor, run.input(0), run.output(0), Write::Set)
    }

    fn backward(&self, run: &Run<'_>) -> Result<(), ops::Error> {
        let Some((grad_input, write)) = run.grad_input(0) else { return Ok(()) };
        ops::scale::forward(run.device, self.factor, run.grad_output(0), grad_input, write)
    }
}
