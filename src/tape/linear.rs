//! Linear layer on the tape. What is kept for the backward pass: the input, and the pre-activation where there is an
//! activation. The residual's gradient is the output's, handed on without a copy.

use super::run::Run;
use super::{Error, Needs, Operation, ParameterId, Tape, Value};
use crate::ops;
use crate::ops::linear::{Activation, Backward, Forward, Shape};

struct Linear {
    shape: Shape,
    activation: Activation,
    has_bias: bool,
    has_residual: bool,
}

impl Tape<'_> {
    /// Records `activation(input · weightᵀ + bias) + residual`.
    ///
    /// # Shapes
    /// input `(.., inputs)`, weight `(outputs · activation.width(), inputs)`, bias as many elements as the weight has
    /// rows, residual and result `(.., outputs)`.
    ///
    /// # Errors
    /// Shapes that do not fit together.
    pub fn linear(
        &mut self,
        input: Value,
        weight: ParameterId,
        bias: Option<ParameterId>,
        activation: Activation,
        residual: Option<Value>,
    ) -> Result<Value, Error> {
        let (rows, inputs) = self.rows_and_columns("linear", input)?;
        let z_columns = self.parameters.shape(weight).first().copied().unwrap_or(0);
        let outputs = z_columns / activation.width();
        self.check_parameter("linear", weight, &[outputs * activation.width(), inputs])?;
        if let Some(bias) = bias {
            self.check_parameter("linear", bias, &[z_columns])?;
        }
        let mut output_shape = self.shape(input).to_vec();
        *output_shape.last_mut().expect("checked by rows_and_columns") = outputs;
        if let Some(residual) = residual {
            self.check_value("linear", residual, &output_shape)?;
        }
        let shape = Shape { rows, inputs, outputs };
        let operation = Linear { shape, activation, has_bias: bias.is_some(), has_residual: residual.is_some() };
        let values: Vec<Value> = std::iter::once(input).chain(residual).collect();
        let parameters: Vec<ParameterId> = std::iter::once(weight).chain(bias).collect();
        let mut results = vec![("output", output_shape, false)];
        if activation != Activation::Identity {
            // SwiGLU computes by way of its pre-activation, so it is needed in every mode.
            results.push(("pre_activation", vec![rows, z_columns], activation != Activation::SwiGlu));
        }
        Ok(self.push_node(operation, &values, &parameters, &results)?[0])
    }
}

impl Operation for Linear {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn backward_needs(&self) -> Option<Needs> {
        Some(Needs {
            inputs: vec![0],
            outputs: if self.activation == Activation::Identity { vec![] } else { vec![1] },
            passes_gradient_to: if self.has_residual { vec![1] } else { vec![] },
            ..Needs::default()
        })
    }

    fn forward(&self, run: &Run<'_>) -> Result<(), ops::Error> {
        let arguments = Forward {
            input: run.input(0),
            weight: run.parameter(0),
            bias: self.has_bias.then(|| run.parameter(1)),
            residual: self.has_residual.then(|| run.input(1)),
            activation: self.activation,
            pre_activation: if self.activation == Activation::Identity { None } else { run.output_or_none(1) },
            output: run.output(0),
        };
        ops::linear::forward(run.device, &self.shape, arguments)
    }

    fn backward(&self, run: &Run<'_>) -> Result<(), ops::Error> {
        let arguments = Backward {
            input: run.input(0),
            weight: run.parameter(0),
            activation: self.activation,
            pre_activation: (self.activation != Activation::Identity).then(|| run.saved_output(1)),
            grad_output: run.grad_output(0),
            grad_input: run.grad_input(0),
            grad_weight: run.grad_parameter(0),
            grad_bias: if self.has_bias { run.grad_parameter(1) } else { None },
        };
        ops::linear::backward(run.device, &self.shape, arguments)
    }
}
