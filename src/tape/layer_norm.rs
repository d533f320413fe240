//! Layer norm on the tape, alone or with a residual added first. What is kept for the backward pass: what was
//! normalised, and two numbers a row.

use super::run::Run;
use super::{Error, Needs, Operation, ParameterId, Tape, Value};
use crate::ops;
use crate::ops::layer_norm::{Backward, Forward, Shape};

struct LayerNorm {
    shape: Shape,
    has_bias: bool,
}

/// Outputs: the sum, its norm, and the two statistics.
struct LayerNormResidual(LayerNorm);

impl Tape<'_> {
    /// Records a layer norm over the last axis.
    ///
    /// # Errors
    /// Parameters that do not have as many elements as the input has columns.
    pub fn layer_norm(
        &mut self,
        input: Value,
        weight: ParameterId,
        bias: Option<ParameterId>,
        epsilon: f32,
    ) -> Result<Value, Error> {
        let (operation, parameters) = self.new_layer_norm(input, weight, bias, epsilon)?;
        let rows = operation.shape.rows;
        let results = [
            ("output", self.shape(input).to_vec(), false),
            ("mean", vec![rows], true),
            ("reciprocal_deviation", vec![rows], true),
        ];
        Ok(self.push_node(operation, &[input], &parameters, &results)?[0])
    }

    /// Records `input + residual` and the layer norm of that sum, as one operation; returns both, the sum first.
    ///
    /// # Errors
    /// Shapes that do not fit together.
    pub fn layer_norm_residual(
        &mut self,
        input: Value,
        residual: Value,
        weight: ParameterId,
        bias: Option<ParameterId>,
        epsilon: f32,
    ) -> Result<(Value, Value), Error> {
        let shape = self.shape(input).to_vec();
        self.check_value("layer_norm", residual, &shape)?;
        let (operation, parameters) = self.new_layer_norm(input, weight, bias, epsilon)?;
        let rows = operation.shape.rows;
        let results = [
            ("sum", shape.clone(), false),
            ("output", shape, false),
            ("mean", vec![rows], true),
            ("reciprocal_deviation", vec![rows], true),
        ];
        let values = self.push_node(LayerNormResidual(operation), &[input, residual], &parameters, &results)?;
        Ok((values[0], values[1]))
    }

    fn new_layer_norm(
        &self,
        input: Value,
        weight: ParameterId,
        bias: Option<ParameterId>,
        epsilon: f32,
    ) -> Result<(LayerNorm, Vec<ParameterId>), Error> {
        let (rows, channels) = self.rows_and_columns("layer_norm", input)?;
        let parameters: Vec<ParameterId> = std::iter::once(weight).chain(bias).collect();
        for &parameter in &parameters {
            self.check_parameter("layer_norm", parameter, &[channels])?;
        }
        Ok((LayerNorm { shape: Shape { rows, channels, epsilon }, has_bias: bias.is_some() }, parameters))
    }
}

impl Operation for LayerNorm {
    fn name(&self) -> &'static str {
        "layer_norm"
    }

    fn backward_needs(&self) -> Option<Needs> {
        Some(Needs { inputs: vec![0], outputs: vec![1, 2], ..Needs::default() })
    }

    fn forward(&self, run: &Run<'_>) -> Result<(), ops::Error> {
        let arguments = Forward {
            input: run.input(0),
            residual: None,
            weight: run.parameter(0),
            bias: self.has_bias.then(|| run.parameter(1)),
            output: run.output(0),
            statistics: run.output_or_none(1).zip(run.output_or_none(2)),
        };
        ops::layer_norm::forward(run.device, &self.shape, arguments)
    }

    fn backward(&self, run: &Run<'_>) -> Result<(), ops::Error> {
        let arguments = Backward {
            input: run.input(0),
            weight: run.parameter(0),
            mean: run.saved_output(1),
            reciprocal_deviation: run.saved_output(2),
            grad_output: run.grad_output(0),
            grad_input: run.grad_input(0),
            grad_weight: run.grad_parameter(0),
            grad_bias: if self.has_bias { run.grad_parameter(1) } else { None },
        };
        ops::layer_norm::backward(run.device, &self.shape, arguments)
    }
}

impl Operation for LayerNormResidual {
    fn name(&self) -> &'static str {
        "layer_norm_residual"
    }

    fn backward_needs(&self) -> Option<Needs> {
        // Both inputs get the gradient of the sum, which is what arrives there plus what the norm adds.
        let passes_gradient_to = vec![0, 1];
        Some(Needs { outputs: vec![0, 2, 3], passes_gradient_to, completes_gradient: true, ..Needs::default() })
    }

    fn forward(&self, run: &Run<'_>) -> Result<(), ops::Error> {
        let arguments = Forward {
            input: run.input(0),
            residual: Some((run.input(1), run.output(0))),
            weight: run.parameter(0),
            bias: self.0.has_bias.then(|| run.parameter(1)),
            output: run.output(1),
            statistics: run.output_or_none(2).zip(run.output_or_none(3)),
        };
        ops::layer_norm::forward(run.device, &self.0.shape, arguments)
    }

    fn backward(&self, run: &Run<'_>) -> Result<(), ops::Error> {
        let Some(grad_output) = run.grad_output_or_none(1) else {
            let what = "no loss depends on the norm, only on the sum: record an add instead";
            return Err(ops::Error { operation: self.name(), what: what.to_owned() });
        };
        let arguments = Backward {
            input: run.saved_output(0),
            weight: run.parameter(0),
            mean: run.saved_output(2),
            reciprocal_deviation: run.saved_output(3),
            grad_output,
            grad_input: Some(run.completed_gradient()),
            grad_weight: run.grad_parameter(0),
            grad_bias: if self.0.has_bias { run.grad_parameter(1) } else { None },
        };
        ops::layer_norm::backward(run.device, &self.0.shape, arguments)
    }
}
