//! Element-wise sum on the tape. Both inputs get the output's gradient as it is.

use super::run::Run;
use super::{Error, Needs, Operation, Tape, Value};
use crate::ops;

struct Add;

impl Tape<'_> {
    /// Records `left + right`, of one shape.
    ///
    /// # Errors
    /// Shapes that differ.
    pub fn add(&mut self, left: Value, right: Value) -> Result<Value, Error> {
        let shape = self.shape(left).to_vec();
        self.check_value("add", right, &shape)?;
        Ok(self.push_node(Add, &[left, right], &[], &[("sum", shape, false)])?[0])
    }
}

impl Operation for Add {
    fn name(&self) -> &'static str {
        "add"
    }

    fn backward_needs(&self) -> Option<Needs> {
        Some(Needs { passes_gradient_to: vec![0, 1], ..Needs::default() })
    }

    fn forward(&self, run: &Run<'_>) -> Result<(), ops::Error> {
        let arguments = ops::add::Forward { left: run.input(0), right: run.input(1), output: run.output(0) };
        ops::add::forward(run.device, arguments)
    }

    fn backward(&self, _run: &Run<'_>) -> Result<(), ops::Error> {
        // Everything is in `passes_gradient_to`.
        Ok(())
    }
}
