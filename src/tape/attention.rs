//! Multi-head self-attention over packed qkv on the tape. What is kept for the backward pass: qkv, the output, and
//! one log-sum-exp a row and head.

use super::run::Run;
use super::{Error, Needs, Operation, Tape, Value};
use crate::ops;
use crate::ops::attention::{Backward, Forward, GradInputs, Inputs, Mask, Shape};

/// What an attention needs to know besides its input.
#[derive(Clone, Copy, Debug)]
pub struct AttentionOptions {
    /// `H`
    pub heads: usize,
    /// `HK`, which divides `H`.
    pub key_value_heads: usize,
    pub mask: Mask,
    /// Probability of dropout on the attention weights.
    pub dropout: f32,
}

struct Attention {
    shape: Shape,
    dropout: f32,
    site: u32,
    has_key_lengths: bool,
}

impl Tape<'_> {
    /// Records self-attention with scale `1/√D`.
    ///
    /// # Shapes
    /// qkv `(B, T, (H + 2·HK)·D)`, key_lengths `(B)` ids: how many tokens of each sequence are real; result
    /// `(B, T, H·D)`.
    ///
    /// # Errors
    /// Shapes that do not fit together.
    pub fn attention(
        &mut self,
        qkv: Value,
        options: &AttentionOptions,
        key_lengths: Option<Value>,
    ) -> Result<Value, Error> {
        let shape = self.self_attention_shape(qkv, options)?;
        if let Some(lengths) = key_lengths {
            self.check_value("attention", lengths, &[shape.batch])?;
        }
        let dropout = if self.mode() == super::Mode::Inference { 0.0 } else { options.dropout };
        let site = self.next_dropout_site();
        let operation = Attention { shape, dropout, site, has_key_lengths: key_lengths.is_some() };
        let values: Vec<Value> = std::iter::once(qkv).chain(key_lengths).collect();
        let results = [
            ("output", vec![shape.batch, shape.query_time, shape.query_columns()], false),
            ("log_sum_exp", vec![shape.batch, shape.heads, shape.query_time], true),
        ];
        Ok(self.push_node(operation, &values, &[], &results)?[0])
    }

    /// Sizes of an attention over packed qkv.
    pub(super) fn self_attention_shape(&self, qkv: Value, options: &AttentionOptions) -> Result<Shape, Error> {
        let AttentionOptions { heads, key_value_heads, mask, .. } = *options;
        let name = &self.values[qkv.0].name;
        let error = |what: String| Err(Error::Shape { operation: "attention", what });
        let &[batch, time, columns] = self.shape(qkv) else {
            return error(format!("{name} is {:?}, expected (batch, time, columns)", self.shape(qkv)));
        };
        if heads == 0 || key_value_heads == 0 || !heads.is_multiple_of(key_value_heads) {
            return error(format!("{heads} heads cannot share {key_value_heads} key/value heads"));
        }
        let parts = heads + 2 * key_value_heads;
        if columns == 0 || !columns.is_multiple_of(parts) {
            return error(format!("{name} has {columns} columns, which {parts} heads do not divide"));
        }
        let head_size = columns / parts;
        let scale = 1.0 / (head_size as f32).sqrt();
        Ok(Shape { batch, query_time: time, key_time: time, heads, key_value_heads, head_size, scale, mask })
    }
}

impl Operation for Attention {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn backward_needs(&self) -> Option<Needs> {
        let inputs = if self.has_key_lengths { vec![0, 1] } else { vec![0] };
        Some(Needs { inputs, outputs: vec![0, 1], ..Needs::default() })
    }

    fn forward(&self, run: &Run<'_>) -> Result<(), ops::Error> {
        let arguments = Forward {
            inputs: Inputs::Packed(run.input(0)),
            key_lengths: self.has_key_lengths.then(|| run.input_ids(1)),
            bias: None,
            dropout: run.dropout(self.dropout, self.site),
            output: run.output(0),
            log_sum_exp: run.output_or_none(1),
        };
        ops::attention::forward(run.device, &self.shape, arguments)
    }

    fn backward(&self, run: &Run<'_>) -> Result<(), ops::Error> {
        let Some((grad_qkv, write)) = run.grad_input(0) else { return Ok(()) };
        let arguments = Backward {
            inputs: Inputs::Packed(run.input(0)),
            key_lengths: self.has_key_lengths.then(|| run.input_ids(1)),
            bias: None,
            dropout: run.dropout(self.dropout, self.site),
            output: run.saved_output(0),
            log_sum_exp: run.saved_output(1),
            grad_output: run.grad_output(0),
            grad_inputs: GradInputs::Packed(grad_qkv, write),
            grad_bias: None,
        };
        ops::attention::backward(run.device, &self.shape, arguments)
    }
}
