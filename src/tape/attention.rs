//! Multi-head attention on the tape: self-attention over packed qkv, and cross-attention. What is kept for the backward
//! pass: queries, keys and values, the output, and one log-sum-exp a row and head.

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

/// Further inputs of an attention, each optional.
#[derive(Clone, Copy, Debug, Default)]
pub struct AttentionInputs {
    /// `(B)` ids: how many keys of each sequence are real; the rest is masked.
    pub key_lengths: Option<Value>,
    /// `(H, query_time, key_time)`: added to the scaled scores of every sequence; has a gradient.
    pub bias: Option<Value>,
}

struct Attention {
    shape: Shape,
    dropout: f32,
    site: u32,
    /// Queries are one input, keys and values another.
    is_cross: bool,
    has_key_lengths: bool,
    has_bias: bool,
}

impl Tape<'_> {
    /// Records self-attention with scale `1/√D`.
    ///
    /// # Shapes
    /// qkv `(B, T, (H + 2·HK)·D)`; result `(B, T, H·D)`.
    ///
    /// # Errors
    /// Shapes that do not fit together.
    pub fn attention(
        &mut self,
        qkv: Value,
        options: &AttentionOptions,
        inputs: AttentionInputs,
    ) -> Result<Value, Error> {
        let shape = self.self_attention_shape(qkv, options)?;
        self.push_attention(&[qkv], shape, options, inputs)
    }

    /// Records cross-attention with scale `1/√D`: queries from one sequence, keys and values from another.
    ///
    /// # Shapes
    /// query `(B, query_time, H·D)`, key_value `(B, key_time, 2·HK·D)` with the keys first; result
    /// `(B, query_time, H·D)`.
    ///
    /// # Errors
    /// Shapes that do not fit together.
    pub fn cross_attention(
        &mut self,
        query: Value,
        key_value: Value,
        options: &AttentionOptions,
        inputs: AttentionInputs,
    ) -> Result<Value, Error> {
        let AttentionOptions { heads, key_value_heads, mask, .. } = *options;
        let error = |what: String| Err(Error::Shape { operation: "cross_attention", what });
        let (&[batch, query_time, columns], &[_, key_time, _]) = (self.shape(query), self.shape(key_value)) else {
            return error("query and key_value must be (batch, time, columns)".to_owned());
        };
        if heads == 0 || key_value_heads == 0 || !heads.is_multiple_of(key_value_heads) {
            return error(format!("{heads} heads cannot share {key_value_heads} key/value heads"));
        }
        if columns == 0 || !columns.is_multiple_of(heads) {
            return error(format!("{columns} columns, which {heads} heads do not divide"));
        }
        let head_size = columns / heads;
        self.check_value("cross_attention", key_value, &[batch, key_time, 2 * key_value_heads * head_size])?;
        let scale = 1.0 / (head_size as f32).sqrt();
        let shape = Shape { batch, query_time, key_time, heads, key_value_heads, head_size, scale, mask };
        self.push_attention(&[query, key_value], shape, options, inputs)
    }

    fn push_attention(
        &mut self,
        sources: &[Value],
        shape: Shape,
        options: &AttentionOptions,
        inputs: AttentionInputs,
    ) -> Result<Value, Error> {
        if let Some(lengths) = inputs.key_lengths {
            self.check_value("attention", lengths, &[shape.batch])?;
        }
        if let Some(bias) = inputs.bias {
            self.check_value("attention", bias, &[shape.heads, shape.query_time, shape.key_time])?;
        }
        let operation = Attention {
            shape,
            dropout: if self.mode() == super::Mode::Inference { 0.0 } else { options.dropout },
            site: self.next_dropout_site(),
            is_cross: sources.len() == 2,
            has_key_lengths: inputs.key_lengths.is_some(),
            has_bias: inputs.bias.is_some(),
        };
        let values: Vec<Value> = sources.iter().copied().chain(inputs.key_lengths).chain(inputs.bias).collect();
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

impl Attention {
    fn inputs<'r>(&self, run: &Run<'r>) -> Inputs<'r> {
        if !self.is_cross {
            return Inputs::Packed(run.input(0));
        }
        Inputs::Separate {
            query: run.input(0),
            query_row: self.shape.query_columns(),
            key_value: run.input(1),
            capacity: self.shape.key_time,
        }
    }

    /// Where the lengths stand among the inputs.
    fn lengths_place(&self) -> usize {
        1 + usize::from(self.is_cross)
    }

    /// Where the bias stands among the inputs.
    fn bias_place(&self) -> usize {
        self.lengths_place() + usize::from(self.has_key_lengths)
    }
}

impl Operation for Attention {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn backward_needs(&self) -> Option<Needs> {
        let inputs = self.bias_place() + usize::from(self.has_bias);
        Some(Needs { inputs: (0..inputs).collect(), outputs: vec![0, 1], ..Needs::default() })
    }

    fn forward(&self, run: &Run<'_>) -> Result<(), ops::Error> {
        let arguments = Forward {
            inputs: self.inputs(run),
            key_lengths: self.has_key_lengths.then(|| run.input_ids(self.lengths_place())),
            bias: self.has_bias.then(|| run.input(self.bias_place())),
            dropout: run.dropout(self.dropout, self.site),
            output: run.output(0),
            log_sum_exp: run.output_or_none(1),
        };
        ops::attention::forward(run.device, &self.shape, arguments)
    }

    fn backward(&self, run: &Run<'_>) -> Result<(), ops::Error> {
        let grad_bias = if self.has_bias { run.grad_input(self.bias_place()) } else { None };
        let grad_inputs = match (self.is_cross, run.grad_input(0)) {
            (true, query) => GradInputs::Separate { query, key_value: run.grad_input(1) },
            (false, Some((qkv, write))) => GradInputs::Packed(qkv, write),
            // Frozen up to here: only the bias may still want its gradient, which needs room for the others.
            (false, None) if grad_bias.is_none() => return Ok(()),
            (false, None) => {
                let what = "a bias with a gradient over qkv without one: make qkv depend on a trainable parameter";
                return Err(ops::Error { operation: self.name(), what: what.to_owned() });
            }
        };
        let arguments = Backward {
            inputs: self.inputs(run),
            key_lengths: self.has_key_lengths.then(|| run.input_ids(self.lengths_place())),
            bias: self.has_bias.then(|| run.input(self.bias_place())),
            dropout: run.dropout(self.dropout, self.site),
            output: run.saved_output(0),
            log_sum_exp: run.saved_output(1),
            grad_output: run.grad_output(0),
            grad_inputs,
            grad_bias,
        };
        ops::attention::backward(run.device, &self.shape, arguments)
    }
}
