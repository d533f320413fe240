//! Linear layer on the tape. What is kept for the backward pass: the input, and the pre-activation where there is an
//! activation. The residual's gradient is the output's, handed on without a copy.

use super::low_rank::{self, AdaptedWeight, LowRank};
use super::run::Run;
use super::{Error, Needs, Operation, ParameterId, Tape, Value};
use crate::ops;
use crate::ops::linear::{Activation, Backward, Forward, Shape};

struct Linear {
    shape: Shape,
    activation: Activation,
    has_bias: bool,
    has_residual: bool,
    adapted: Option<AdaptedWeight>,
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
        self.push_linear(input, weight, bias, activation, residual, None)
    }

    /// Records `input · (weight + s · B · A)ᵀ + bias + residual`. Each pass makes the merged weight anew, which costs little
    /// where the rows are many.
    ///
    /// # Shapes
    /// As [`linear`](Self::linear); those of the matrices as [`LowRank`] says.
    ///
    /// # Errors
    /// Shapes that do not fit together, or matrices of which one alone learns.
    pub fn adapted_linear(
        &mut self,
        input: Value,
        weight: ParameterId,
        low_rank: LowRank,
        bias: Option<ParameterId>,
        residual: Option<Value>,
    ) -> Result<Value, Error> {
        self.push_linear(input, weight, bias, Activation::Identity, residual, Some(low_rank))
    }

    fn push_linear(
        &mut self,
        input: Value,
        weight: ParameterId,
        bias: Option<ParameterId>,
        activation: Activation,
        residual: Option<Value>,
        low_rank: Option<LowRank>,
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
        let values: Vec<Value> = std::iter::once(input).chain(residual).collect();
        let mut parameters: Vec<ParameterId> = std::iter::once(weight).chain(bias).collect();
        let adapted = low_rank
            .map(|low_rank| AdaptedWeight::record(self, "linear", rows, 0, low_rank, &mut parameters))
            .transpose()?;
        let (has_bias, has_residual) = (bias.is_some(), residual.is_some());
        let operation = Linear { shape, activation, has_bias, has_residual, adapted };
        let mut results = vec![("output", output_shape, false)];
        if activation != Activation::Identity {
            // SwiGLU computes by way of its pre-activation, so it is needed in every mode.
            results.push(("pre_activation", vec![rows, z_columns], activation != Activation::SwiGlu));
        }
        Ok(self.push_node(operation, &values, &parameters, &results)?[0])
    }
}

impl Linear {
    fn merged_length(&self) -> usize {
        self.adapted.as_ref().map_or(0, AdaptedWeight::length)
    }
}

impl Operation for Linear {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn forward_scratch(&self, _has_output: &[bool]) -> usize {
        self.merged_length()
    }

    fn backward_needs(&self) -> Option<Needs> {
        Some(Needs {
            inputs: vec![0],
            scratch: self.merged_length(),
            outputs: if self.activation == Activation::Identity { vec![] } else { vec![1] },
            passes_gradient_to: if self.has_residual { vec![1] } else { vec![] },
            ..Needs::default()
        })
    }

    fn forward(&self, run: &Run<'_>) -> Result<(), ops::Error> {
        let arguments = Forward {
            input: run.input(0),
            weight: low_rank::weight(run, 0, self.adapted.as_ref(), run.scratch_of(self.merged_length()))?,
            bias: self.has_bias.then(|| run.parameter(1)),
            residual: self.has_residual.then(|| run.input(1)),
            activation: self.activation,
            pre_activation: if self.activation == Activation::Identity { None } else { run.output_or_none(1) },
            output: run.output(0),
        };
        ops::linear::forward(run.device, &self.shape, arguments)
    }

    fn backward(&self, run: &Run<'_>) -> Result<(), ops::Error> {
        let grad_input = run.grad_input(0);
        // The weight is for the gradient of the input alone.
        let merged = self.adapted.as_ref().filter(|_| grad_input.is_some());
        let arguments = Backward {
            input: run.input(0),
            weight: low_rank::weight(run, 0, merged, run.scratch_of(self.merged_length()))?,
            activation: self.activation,
            pre_activation: (self.activation != Activation::Identity).then(|| run.saved_output(1)),
            grad_output: run.grad_output(0),
            grad_input,
            grad_weight: run.grad_parameter(0),
            grad_bias: if self.has_bias { run.grad_parameter(1) } else { None },
        };
        ops::linear::backward(run.device, &self.shape, arguments)?;
        // An adapted layer has no activation: the gradient of the product is that of the output.
        self.adapted.as_ref().map_or(Ok(()), |adapted| adapted.backward(run, run.input(0), run.grad_output(0)))
    }
}
