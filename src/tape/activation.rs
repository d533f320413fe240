//! An activation by itself on the tape. Its input is kept for the backward pass.

use super::run::Run;
use super::{Error, Needs, Operation, Tape, Value};
use crate::ops;
use crate::ops::activation::{Backward, Forward, Shape};
use crate::ops::linear::Activation;

struct Activate {
    shape: Shape,
}

impl Tape<'_> {
    /// Records `activation(input)`; nothing for the identity. Where the input is one product's result,
    /// [`linear`](Self::linear) does it on the way.
    ///
    /// # Shapes
    /// input `(.., outputs · activation.width())`, result `(.., outputs)`.
    ///
    /// # Errors
    /// An input whose columns are no multiple of the activation's width.
    pub fn activation(&mut self, input: Value, activation: Activation) -> Result<Value, Error> {
        if activation == Activation::Identity {
            return Ok(input);
        }
        let (rows, columns) = self.rows_and_columns("activation", input)?;
        let outputs = columns / activation.width();
        let mut shape = self.shape(input).to_vec();
        *shape.last_mut().expect("checked by rows_and_columns") = outputs;
        if outputs * activation.width() != columns {
            let what = format!("{activation:?} of {columns} columns: it takes two halves");
            return Err(Error::Shape { operation: "activation", what });
        }
        let node = Activate { shape: Shape { rows, outputs, activation } };
        Ok(self.push_node(node, &[input], &[], &[("activation", shape, false)])?[0])
    }
}

impl Operation for Activate {
    fn name(&self) -> &'static str {
        "activation"
    }

    fn backward_needs(&self) -> Option<Needs> {
        Some(Needs { inputs: vec![0], ..Needs::default() })
    }

    fn forward(&self, run: &Run<'_>) -> Result<(), ops::Error> {
        ops::activation::forward(run.device, &self.shape, Forward { input: run.input(0), output: run.output(0) })
    }

    fn backward(&self, run: &Run<'_>) -> Result<(), ops::Error> {
        let Some(grad_input) = run.grad_input(0) else { return Ok(()) };
        let arguments = Backward { input: run.input(0), grad_output: run.grad_output(0), grad_input };
        ops::activation::backward(run.device, &self.shape, arguments)
    }
}
