//! Layer norm on the tape. What is kept for the backward pass: the input, and two numbers a row.

use super::run::Run;
use super::{Error, Needs, Operation, ParameterId, Tape, Value};
use crate::ops;
use crate::ops::layer_norm::{Backward, Forward, Shape};

struct LayerNorm {
    shape: Shape,
    has_bias: bool,
}

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
        let (rows, channels) = self.rows_and_columns("layer_norm", input)?;
        self.check_parameter("layer_norm", weight, &[channels])?;
        if let Some(bias) = bias {
            self.check_parameter("layer_norm", bias, &[channels])?;
        }
        let operation = LayerNorm { shape: Shape { rows, channels, epsilon }, has_bias: bias.is_some() };
        let parameters: Vec<ParameterId> = std::iter::once(weight).chain(bias).collect();
        let results = [
            ("output", self.shape(input).to_vec(), false),
            ("mean", vec![rows], true),
            ("reciprocal_deviation", vec![rows], true),
        ];
        Ok(self.push_node(operation, &[input], &parameters, &results)?[0])
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
