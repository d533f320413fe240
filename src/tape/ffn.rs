//! Feed-forward network on the tape: one node, so that its hidden layer never leaves it. What is kept for the
//! backward pass: the input, the pre-activation, and, unless it is recomputed, the hidden activation.

use super::low_rank::{self, AdaptedWeight, LowRank};
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
    /// Beside the first weight.
    pub low_rank_in: Option<LowRank>,
    /// Beside the second weight.
    pub low_rank_out: Option<LowRank>,
}

impl FfnParameters {
    /// Two weights without biases or adapters.
    pub fn plain(weight_in: ParameterId, weight_out: ParameterId) -> Self {
        Self { weight_in, bias_in: None, weight_out, bias_out: None, low_rank_in: None, low_rank_out: None }
    }
}

struct Ffn {
    shape: Shape,
    activation: Activation,
    has_bias_in: bool,
    has_bias_out: bool,
    has_residual: bool,
    recomputes_hidden: bool,
    adapted_in: Option<AdaptedWeight>,
    adapted_out: Option<AdaptedWeight>,
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
        let values: Vec<Value> = std::iter::once(input).chain(residual).collect();
        let mut ids: Vec<ParameterId> = [Some(parameters.weight_in), Some(parameters.weight_out)]
            .into_iter()
            .chain([parameters.bias_in, parameters.bias_out])
            .flatten()
            .collect();
        let mut adapted = |weight: usize, low_rank: Option<LowRank>| {
            low_rank.map(|low_rank| AdaptedWeight::record(self, "ffn", rows, weight, low_rank, &mut ids)).transpose()
        };
        let operation = Ffn {
            adapted_in: adapted(0, parameters.low_rank_in)?,
            adapted_out: adapted(1, parameters.low_rank_out)?,
            shape: Shape { rows, channels, hidden },
            activation,
            has_bias_in: parameters.bias_in.is_some(),
            has_bias_out: parameters.bias_out.is_some(),
            has_residual: residual.is_some(),
            recomputes_hidden,
        };
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

    /// Floats of the two merged weights, where the parameters are not used as they are.
    fn merged_lengths(&self) -> [usize; 2] {
        [&self.adapted_in, &self.adapted_out].map(|adapted| adapted.as_ref().map_or(0, AdaptedWeight::length))
    }

    /// Scratch memory of the forward pass: for what is not kept of `z` and the hidden activation, and merged weights.
    fn forward_lengths(&self, keeps_z: bool, keeps_hidden: bool) -> [usize; 4] {
        let [merged_in, merged_out] = self.merged_lengths();
        let z = if keeps_z { 0 } else { self.z_length() };
        [z, if keeps_hidden { 0 } else { self.hidden_length() }, merged_in, merged_out]
    }

    /// Scratch memory of the backward pass: the gradient of `z`, the hidden activation, merged weights.
    fn backward_lengths(&self) -> [usize; 4] {
        let [merged_in, merged_out] = self.merged_lengths();
        [self.z_length(), if self.recomputes_hidden { self.hidden_length() } else { 0 }, merged_in, merged_out]
    }

    /// Where the biases stand among the node's parameters.
    fn bias_out_place(&self) -> usize {
        2 + usize::from(self.has_bias_in)
    }
}

/// Floats of a cache line: each part of scratch memory starts on one.
const LINE: usize = 16;

fn scratch_length(lengths: [usize; 4]) -> usize {
    lengths.iter().map(|length| length.next_multiple_of(LINE)).sum()
}

/// Cuts scratch memory of [`scratch_length`] into its parts.
fn cut(scratch: ViewMut<'_, f32>, lengths: [usize; 4]) -> [ViewMut<'_, f32>; 4] {
    let mut rest = Some(scratch);
    lengths.map(|length| {
        let (part, behind) = rest.take().expect("put back").split_at(length.next_multiple_of(LINE));
        rest = Some(behind);
        part.slice(0..length)
    })
}

impl Operation for Ffn {
    fn name(&self) -> &'static str {
        "ffn"
    }

    fn forward_scratch(&self, has_output: &[bool]) -> usize {
        scratch_length(self.forward_lengths(has_output[1], has_output[2]))
    }

    fn backward_needs(&self) -> Option<Needs> {
        Some(Needs {
            inputs: vec![0],
            outputs: if self.recomputes_hidden { vec![1] } else { vec![1, 2] },
            scratch: scratch_length(self.backward_lengths()),
            passes_gradient_to: if self.has_residual { vec![1] } else { vec![] },
            ..Needs::default()
        })
    }

    fn forward(&self, run: &Run<'_>) -> Result<(), ops::Error> {
        let (kept_z, kept_hidden) = (run.output_or_none(1), run.output_or_none(2));
        let lengths = self.forward_lengths(kept_z.is_some(), kept_hidden.is_some());
        let [z, hidden, merged_in, merged_out] = cut(run.scratch(), lengths);
        let arguments = Forward {
            input: run.input(0),
            weight_in: low_rank::weight(run, 0, self.adapted_in.as_ref(), merged_in)?,
            bias_in: self.has_bias_in.then(|| run.parameter(2)),
            weight_out: low_rank::weight(run, 1, self.adapted_out.as_ref(), merged_out)?,
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
        let [mut grad_z, mut recomputed, merged_in, merged_out] = cut(run.scratch(), self.backward_lengths());
        let grad_input = run.grad_input(0);
        // The first weight is for the gradient of the input alone.
        let adapted_in = self.adapted_in.as_ref();
        let weight_in = low_rank::weight(run, 0, adapted_in.filter(|_| grad_input.is_some()), merged_in)?;
        let activated = match (&self.adapted_out, self.recomputes_hidden) {
            // The gradients of its adapter need it whether the gradient of the second weight does or not.
            (Some(_), true) => {
                let shape = ops::activation::Shape {
                    rows: self.shape.rows,
                    outputs: self.shape.hidden,
                    activation: self.activation,
                };
                let (input, output) = (run.saved_output(1), recomputed.reborrow());
                ops::activation::forward(run.device, &shape, ops::activation::Forward { input, output })?;
                Hidden::Kept(recomputed.as_view())
            }
            (None, true) => Hidden::Recompute(recomputed.reborrow()),
            (_, false) => Hidden::Kept(run.saved_output(2)),
        };
        let arguments = Backward {
            input: run.input(0),
            weight_in,
            weight_out: low_rank::weight(run, 1, self.adapted_out.as_ref(), merged_out)?,
            activation: self.activation,
            pre_activation: run.saved_output(1),
            activated,
            grad_output: run.grad_output(0),
            grad_pre_activation: grad_z.reborrow(),
            wants_grad_pre_activation: adapted_in.is_some(),
            grad_input,
            grad_weight_in: run.grad_parameter(0),
            grad_bias_in: if self.has_bias_in { run.grad_parameter(2) } else { None },
            grad_weight_out: run.grad_parameter(1),
            grad_bias_out: if self.has_bias_out { run.grad_parameter(self.bias_out_place()) } else { None },
        };
        ops::ffn::backward(run.device, &self.shape, arguments)?;
        if let Some(adapted) = &self.adapted_out {
            let hidden = if self.recomputes_hidden { recomputed.as_view() } else { run.saved_output(2) };
            adapted.backward(run, hidden, run.grad_output(0))?;
        }
        if let Some(adapted) = adapted_in {
            adapted.backward(run, run.input(0), grad_z.as_view())?;
        }
        Ok(())
    }
}
