//! Multi-head attention on the tape: self-attention over packed qkv, and cross-attention. What is kept for the backward
//! pass: queries, keys and values, the output, and one log-sum-exp a row and head.

use super::run::Run;
use super::{Error, Needs, Operation, Tape, Value};
use crate::ops;
use crate::ops::attention::{Backward, Forward, GradInputs, Inputs, Mask, RelativeBias, Shape};

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
    /// `(B, T, 2)` ids, for self-attention and instead of `key_lengths`: the documents of each row, see
    /// [`Forward::documents`].
    pub documents: Option<Value>,
    /// `(H, query_time, key_time)`: added to the scaled scores of every sequence; has a gradient, but not together
    /// with `documents`.
    pub bias: Option<Value>,
    /// `(H, 2·radius - 1)`, see [`ops::attention::RelativeBias`] and [`Tape::relative_bias`]; has a gradient.
    pub relative_bias: Option<Value>,
}

struct Attention {
    shape: Shape,
    dropout: f32,
    site: u32,
    /// Number of inputs.
    inputs: usize,
    /// Queries are one input, keys and values another.
    is_cross: bool,
    /// Where the optional inputs stand among the inputs.
    key_lengths: Option<usize>,
    documents: Option<usize>,
    bias: Option<usize>,
    relative_bias: Option<usize>,
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
        let AttentionInputs { key_lengths, documents, bias, relative_bias } = inputs;
        if let Some(table) = relative_bias {
            self.relative_radius("attention", table, shape.heads, shape.query_time.max(shape.key_time))?;
        }
        let mut values = sources.to_vec();
        let mut place = |optional: Option<Value>, sizes: &[usize]| -> Result<Option<usize>, Error> {
            let Some(value) = optional else { return Ok(None) };
            self.check_value("attention", value, sizes)?;
            values.push(value);
            Ok(Some(values.len() - 1))
        };
        let key_lengths = place(key_lengths, &[shape.batch])?;
        let documents = place(documents, &[shape.batch, shape.query_time, 2])?;
        let bias = place(bias, &[shape.heads, shape.query_time, shape.key_time])?;
        let relative_bias = relative_bias.map(|table| {
            values.push(table);
            values.len() - 1
        });
        if documents.is_some() && (sources.len() == 2 || key_lengths.is_some()) {
            let what = "documents are for self-attention without key_lengths".to_owned();
            return Err(Error::Shape { operation: "attention", what });
        }
        if documents.is_some() && inputs.bias.is_some_and(|bias| self.values[bias.0].needs_gradient) {
            let what = "a bias has no gradient over documents: use a relative bias".to_owned();
            return Err(Error::Shape { operation: "attention", what });
        }
        let operation = Attention {
            shape,
            dropout: if self.mode() == super::Mode::Inference { 0.0 } else { options.dropout },
            site: self.next_dropout_site(),
            inputs: values.len(),
            is_cross: sources.len() == 2,
            key_lengths,
            documents,
            bias,
            relative_bias,
        };
        let results = [
            ("output", vec![shape.batch, shape.query_time, shape.query_columns()], false),
            ("log_sum_exp", vec![shape.batch, shape.heads, shape.query_time], true),
        ];
        Ok(self.push_node(operation, &values, &[], &results)?[0])
    }

    /// The radius of a table of relative biases, which must reach `longest` positions.
    pub(super) fn relative_radius(
        &self,
        operation: &'static str,
        table: Value,
        heads: usize,
        longest: usize,
    ) -> Result<usize, Error> {
        match *self.shape(table) {
            [rows, columns] if rows == heads && columns % 2 == 1 && columns.div_ceil(2) >= longest => {
                Ok(columns.div_ceil(2))
            }
            ref shape => {
                let name = &self.values[table.0].name;
                let what = format!(
                    "{name} is {shape:?}, expected ({heads}, 2 * radius - 1) with a radius of at least {longest}"
                );
                Err(Error::Shape { operation, what })
            }
        }
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

    fn relative_bias<'r>(&self, run: &Run<'r>) -> Option<RelativeBias<'r>> {
        let table = run.input(self.relative_bias?);
        let radius = (table.len() / self.shape.heads).div_ceil(2);
        Some(RelativeBias { table, radius, queries_are_last: false })
    }
}

impl Operation for Attention {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn backward_needs(&self) -> Option<Needs> {
        Some(Needs { inputs: (0..self.inputs).collect(), outputs: vec![0, 1], ..Needs::default() })
    }

    fn forward(&self, run: &Run<'_>) -> Result<(), ops::Error> {
        let arguments = Forward {
            inputs: self.inputs(run),
            key_lengths: self.key_lengths.map(|place| run.input_ids(place)),
            documents: self.documents.map(|place| run.input_ids(place)),
            bias: self.bias.map(|place| run.input(place)),
            relative_bias: self.relative_bias(run),
            dropout: run.dropout(self.dropout, self.site),
            output: run.output(0),
            log_sum_exp: run.output_or_none(1),
        };
        ops::attention::forward(run.device, &self.shape, arguments)
    }

    fn backward(&self, run: &Run<'_>) -> Result<(), ops::Error> {
        let grad_bias = self.bias.and_then(|place| run.grad_input(place));
        let grad_relative_bias = self.relative_bias.and_then(|place| run.grad_input(place));
        let grad_inputs = match (self.is_cross, run.grad_input(0)) {
            (true, query) => GradInputs::Separate { query, key_value: run.grad_input(1) },
            (false, Some((qkv, write))) => GradInputs::Packed(qkv, write),
            // Frozen up to here: only a bias may still want its gradient, which needs room for the others.
            (false, None) if grad_bias.is_none() && grad_relative_bias.is_none() => return Ok(()),
            (false, None) => {
                let what = "a bias with a gradient over qkv without one: make qkv depend on a trainable parameter";
                return Err(ops::Error { operation: self.name(), what: what.to_owned() });
            }
        };
        let arguments = Backward {
            inputs: self.inputs(run),
            key_lengths: self.key_lengths.map(|place| run.input_ids(place)),
            documents: self.documents.map(|place| run.input_ids(place)),
            bias: self.bias.map(|place| run.input(place)),
            relative_bias: self.relative_bias(run),
            dropout: run.dropout(self.dropout, self.site),
            output: run.saved_output(0),
            log_sum_exp: run.saved_output(1),
            grad_output: run.grad_output(0),
            grad_inputs,
            grad_bias,
            grad_relative_bias,
        };
        ops::attention::backward(run.device, &self.shape, arguments)
    }
}
