//! A parameter as a value: for operations that take what others compute, such as the bias of an attention.

use super::run::Run;
use super::{Error, Needs, Operation, ParameterId, Tape, Value};
use crate::ops;
use crate::ops::{Write, add};

struct Parameter;

impl Tape<'_> {
    /// Records a parameter as a value of the same shape; its gradient is the parameter's.
    ///
    /// # Errors
    /// None at present.
    pub fn parameter(&mut self, id: ParameterId) -> Result<Value, Error> {
        let shape = self.parameters.shape(id).to_vec();
        Ok(self.push_node(Parameter, &[], &[id], &[("parameter", shape, false)])?[0])
    }
}

impl Operation for Parameter {
    fn name(&self) -> &'static str {
        "parameter"
    }

    fn backward_needs(&self) -> Option<Needs> {
        Some(Needs::default())
    }

    fn forward(&self, run: &Run<'_>) -> Result<(), ops::Error> {
        add::accumulate(run.device, run.parameter(0), run.output(0), Write::Set)
    }

    fn backward(&self, run: &Run<'_>) -> Result<(), ops::Error> {
        let Some((grad, write)) = run.grad_parameter(0) else { return Ok(()) };
        add::accumulate(run.device, run.grad_output(0), grad, write)
    }
}
