//! Dropout on the tape, with a fused residual add. Nothing is kept: the backward pass draws the same mask again.

use super::run::Run;
use super::{Error, Needs, Operation, Tape, Value};
use crate::ops;
use crate::ops::dropout::{Backward, Forward};

struct Dropout {
    probability: f32,
    site: u32,
    has_residual: bool,
}

impl Tape<'_> {
    /// Records `dropout(input) + residual`. In inference, and with probability 0, nothing is dropped.
    ///
    /// # Errors
    /// A residual of another shape, or a probability outside `0..1`.
    pub fn dropout(&mut self, input: Value, probability: f32, residual: Option<Value>) -> Result<Value, Error> {
        if !(0.0..1.0).contains(&probability) {
            let what = format!("probability {probability} is not in 0..1");
            return Err(Error::Shape { operation: "dropout", what });
        }
        let probability = if self.mode() == super::Mode::Inference { 0.0 } else { probability };
        match (probability == 0.0, residual) {
            (true, None) => return Ok(input),
            (true, Some(residual)) => return self.add(input, residual),
            _ => {}
        }
        let shape = self.shape(input).to_vec();
        if let Some(residual) = residual {
            self.check_value("dropout", residual, &shape)?;
        }
        let operation = Dropout { probability, site: self.next_dropout_site(), has_residual: residual.is_some() };
        let values: Vec<Value> = std::iter::once(input).chain(residual).collect();
        Ok(self.push_node(operation, &values, &[], &[("dropout", shape, false)])?[0])
    }
}

impl Operation for Dropout {
    fn name(&self) -> &'static str {
        "dropout"
    }

    fn backward_needs(&self) -> Option<Needs> {
        let passes_gradient_to = if self.has_residual { vec![1] } else { vec![] };
        Some(Needs { passes_gradient_to, ..Needs::default() })
    }

    fn forward(&self, run: &Run<'_>) -> Result<(), ops::Error> {
        let dropout = run.dropout(self.probability, self.site).expect("probability 0 is not recorded");
        let residual = self.has_residual.then(|| run.input(1));
        ops::dropout::forward(run.device, &dropout, Forward { input: run.input(0), residual, output: run.output(0) })
    }

    fn backward(&self, run: &Run<'_>) -> Result<(), ops::Error> {
        let dropout = run.dropout(self.probability, self.site).expect("probability 0 is not recorded");
        let Some(grad_input) = run.grad_input(0) else { return Ok(()) };
        ops::dropout::backward(run.device, &dropout, Backward { grad_output: run.grad_output(0), grad_input })
    }
}
