//! Feed-forward network on the tape: one node, so that its hidden layer never leaves it. What is kept for the
//! backward pass: the input, the pre-activation, and, unless it is recomputed, the hidden activation.

use super::run::Run;
use super::{Error, Needs, Operation, ParameterId, Tape, Value};
use crate::ops;
use crate::ops::ViewMut;
use crate::ops::ffn::{Backward, Forward, Hidden, Shape};
use crate::ops::linear::Activation;

/// Parameters of a feed-forward network.
#[derive(Clone, Copy, Debug)]
pub struct FfnParameters {
    /// `(hidden · activation.width(), channels)`
    pub weight_in: ParameterId,
    /// `(hidden · activation.width())`
    pub bias_in: Option<ParameterId>,
    /// `(channels, hidden)`
    pub weight_out: ParameterId,
    /// `(channels)`
    pub bias_out: Option<ParameterId>,
}

struct Ffn {
    shape: Shape,
    activation: Activation,
    has_bias_in: bool,
    has_bias_out: bool,
    has_residual: bool,
    recomputes_hidden: bool,
}

impl Tape<'_> {
    /// Records `activation(input · weight_inᵀ + bias_in) · weight_outᵀ + bias_out + residual`. With
    /// `recomputes_hidden` the hidden activation is not kept but computed again in the backward pass: same bits, less
    /// memory.
    ///
    /// # Shapes
    /// input, residual and result `(.., channels)`; parameters as [`FfnParameters`] says.
    ///
    /// # Errors
    /// Shapes that do not fit together.
    pub fn ffn(
        &mut self,
        input: Value,
        parameters: FfnParameters,
        activation: Activation,
        residual: Option<Value>,
        recomputes_hidden: bool,
    ) -> Result<Value, Error> {
        let (rows, channels) = self.rows_and_columns("ffn", input)?;
        let z_columns = self.parameters.shape(parameters.weight_in).first().copied().unwrap_or(0);
        let hidden = z_columns / activation.width();
        self.check_parameter("ffn", parameters.weight_in, &[hidden * activation.width(), channels])?;
        self.check_parameter("ffn", parameters.weight_out, &[channels, hidden])?;
        if let Some(bias) = parameters.bias_in {
            self.check_parameter("ffn", bias, &[z_columns])?;
        }
        if let Some(bias) = parameters.bias_out {
            self.check_parameter("ffn", bias, &[channels])?;
        }
        let output_shape = self.shape(input).to_vec();
        if let Some(residual) = residual {
            self.check_value("ffn", residual, &output_shape)?;
        }
        let operation = Ffn {
            shape: Shape { rows, channels, hidden },
            activation,
            has_bias_in: parameters.bias_in.is_some(),
            has_bias_out: parameters.bias_out.is_some(),
            has_residual: residual.is_some(),
            recomputes_hidden,
        };
        let values: Vec<Value> = std::iter::once(input).chain(residual).collect();
        let ids: Vec<ParameterId> = [Some(parameters.weight_in), Some(parameters.weight_out)]
            .into_iter()
            .chain([parameters.bias_in, parameters.bias_out])
            .flatten()
            .collect();
        let results = [
            ("output", output_shape, false),
            ("pre_activation", vec![rows, z_columns], true),
            ("hidden", vec![rows, hidden], true),
        ];
        Ok(self.push_node(operation, &values, &ids, &results)?[0])
    }
}

impl Ffn {
    fn z_length(&self) -> usize {
        self.shape.rows * self.shape.hidden * self.activation.width()
    }

    fn hidden_length(&self) -> usize {
        self.shape.rows * self.shape.hidden
    }

    /// Scratch memory that the forward pass needs for what is not kept.
    fn scratch_lengths(&self, keeps_z: bool, keeps_hidden: bool) -> (usize, usize) {
        (if keeps_z { 0 } else { self.z_length() }, if keeps_hidden { 0 } else { self.hidden_length() })
    }

    /// Where the biases stand among the node's parameters.
    fn bias_out_place(&self) -> usize {
        2 + usize::from(self.has_bias_in)
    }
}

/// Cuts scratch memory in two, the first part of `length` elements on a cache line's boundary.
fn split<'a>(scratch: ViewMut<'a, f32>, first: usize, second: usize) -> (ViewMut<'a, f32>, ViewMut<'a, f32>) {
    let (left, right) = scratch.split_at(first.next_multiple_of(16));
    (left.slice(0..first), right.slice(0..second))
}

impl Operation for Ffn {
    fn name(&self) -> &'static str {
        "ffn"
    }

    fn forward_scratch(&self, has_output: &[bool]) -> usize {
        let (z, hidden) = self.scratch_lengths(has_output[1], has_output[2]);
        z.next_multiple_of(16) + hidden
    }

    fn backward_needs(&self) -> Option<Needs> {
        let hidden = if self.recomputes_hidden { self.hidden_length() } else { 0 };
        Some(Needs {
            inputs: vec![0],
            outputs: if self.recomputes_hidden { vec![1] } else { vec![1, 2] },
            scratch: self.z_length().next_multiple_of(16) + hidden,
            passes_gradient_to: if self.has_residual { vec![1] } else { vec![] },
            ..Needs::default()
        })
    }

    fn forward(&self, run: &Run<'_>) -> Result<(), ops::Error> {
        let (kept_z, kept_hidden) = (run.output_or_none(1), run.output_or_none(2));
        let (z_length, hidden_length) = self.scratch_lengths(kept_z.is_some(), kept_hidden.is_some());
        let (z, hidden) = split(run.scratch(), z_length, hidden_length);
        let arguments = Forward {
            input: run.input(0),
            weight_in: run.parameter(0),
            bias_in: self.has_bias_in.then(|| run.parameter(2)),
            weight_out: run.parameter(1),
            bias_out: self.has_bias_out.then(|| run.parameter(self.bias_out_place())),
            residual: self.has_residual.then(|| run.input(1)),
            activation: self.activation,
            pre_activation: kept_z.unwrap_or(z),
            activated: kept_hidden.unwrap_or(hidden),
            output: run.output(0),
        };
        ops::ffn::forward(run.device, &self.shape, arguments)
    }

    fn backward(&self, run: &Run<'_>) -> Result<(), ops::Error> {
        let hidden_length = if self.recomputes_hidden { self.hidden_length() } else { 0 };
        let (grad_pre_activation, hidden) = split(run.scratch(), self.z_length(), hidden_length);
        let arguments = Backward {
            input: run.input(0),
            weight_in: run.parameter(0),
            weight_out: run.parameter(1),
            activation: self.activation,
            pre_activation: run.saved_output(1),
            activated: if self.recomputes_hidden {
                Hidden::Recompute(hidden)
            } else {
                Hidden::Kept(run.saved_output(2))
            },
            grad_output: run.grad_output(0),
            grad_pre_activation,
            grad_input: run.grad_input(0),
            grad_weight_in: run.grad_parameter(0),
            grad_bias_in: if self.has_bias_in { run.grad_parameter(2) } else { None },
            grad_weight_out: run.grad_parameter(1),
            grad_bias_out: if self.has_bias_out { run.grad_parameter(self.bias_out_place()) } else { None },
        };
        ops::ffn::backward(run.device, &self.shape, arguments)
    }
}
