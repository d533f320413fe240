//! Transformer blocks out of tape operations, shared by every architecture.

use crate::ops::attention::Mask;
use crate::ops::layer_norm::Norm;
use crate::ops::linear::Activation;
use crate::tape::{
    AttentionInputs, AttentionOptions, Cache, Error, FfnParameters, ParameterId, Parameters, Tape, Value,
};
use std::sync::Arc;

/// Weight and bias of a linear layer or a norm.
#[derive(Clone, Copy, Debug)]
pub struct Affine {
    pub weight: ParameterId,
    pub bias: Option<ParameterId>,
}

impl Affine {
    /// The parameters `prefix.weight` and, where there is one, `prefix.bias`.
    ///
    /// # Panics
    /// There is no `prefix.weight`: the parameters were made for another model.
    pub fn find(parameters: &Parameters, prefix: &str) -> Self {
        let weight = parameters.find(&format!("{prefix}.weight"));
        Self {
            weight: weight.unwrap_or_else(|| panic!("the parameters hold no {prefix}.weight")),
            bias: parameters.find(&format!("{prefix}.bias")),
        }
    }
}

/// What a block is made of.
#[derive(Clone, Copy, Debug)]
pub struct BlockOptions {
    pub heads: usize,
    pub key_value_heads: usize,
    pub mask: Mask,
    pub activation: Activation,
    pub norm_epsilon: f32,
    pub attention_dropout: f32,
    pub residual_dropout: f32,
    /// Computes the hidden layer's activation again in the backward pass instead of keeping it.
    pub recomputes_hidden: bool,
}

/// A pre-norm block: `x ← x + attention(norm(x))`, `x ← x + ffn(norm(x))`.
#[derive(Clone, Copy, Debug)]
pub struct Block {
    attention_norm: Affine,
    qkv: Affine,
    projection: Affine,
    ffn_norm: Affine,
    up: Affine,
    down: Affine,
}

impl Block {
    /// The block whose parameters' names start with `prefix`.
    pub fn find(parameters: &Parameters, prefix: &str) -> Self {
        let part = |name: &str| Affine::find(parameters, &format!("{prefix}.{name}"));
        Self {
            attention_norm: part("attention_norm"),
            qkv: part("attention.qkv"),
            projection: part("attention.projection"),
            ffn_norm: part("ffn_norm"),
            up: part("ffn.up"),
            down: part("ffn.down"),
        }
    }

    /// Records the block on `stream`, `(B, T, C)`; with a cache, as a step of decoding.
    ///
    /// # Errors
    /// Parameters or options that do not fit together.
    pub fn record(
        &self,
        tape: &mut Tape<'_>,
        stream: Value,
        options: &BlockOptions,
        cache: Option<&Arc<Cache>>,
    ) -> Result<Value, Error> {
        let norm = |tape: &mut Tape<'_>, value: Value, norm: &Affine| {
            tape.layer_norm(Norm::Layer, value, norm.weight, norm.bias, options.norm_epsilon)
        };
        let attention = AttentionOptions {
            heads: options.heads,
            key_value_heads: options.key_value_heads,
            mask: options.mask,
            dropout: options.attention_dropout,
        };
        let stream = tape.scoped("attention", |tape| {
            let normed = norm(tape, stream, &self.attention_norm)?;
            let qkv = tape.linear(normed, self.qkv.weight, self.qkv.bias, Activation::Identity, None)?;
            let mixed = match cache {
                Some(cache) => tape.attention_cached(qkv, &attention, cache)?,
                None => tape.attention(qkv, &attention, AttentionInputs::default())?,
            };
            let Affine { weight, bias } = self.projection;
            add_branch(tape, stream, options.residual_dropout, |tape, residual| {
                tape.linear(mixed, weight, bias, Activation::Identity, residual)
            })
        })?;
        tape.scoped("ffn", |tape| {
            let normed = norm(tape, stream, &self.ffn_norm)?;
            let parameters = FfnParameters {
                weight_in: self.up.weight,
                bias_in: self.up.bias,
                weight_out: self.down.weight,
                bias_out: self.down.bias,
            };
            add_branch(tape, stream, options.residual_dropout, |tape, residual| {
                tape.ffn(normed, parameters, options.activation, residual, options.recomputes_hidden)
            })
        })
    }
}

/// Adds a branch to the residual stream: inside the branch's last operation, or, where dropout comes between, inside
/// the dropout.
fn add_branch(
    tape: &mut Tape<'_>,
    stream: Value,
    dropout: f32,
    record: impl FnOnce(&mut Tape<'_>, Option<Value>) -> Result<Value, Error>,
) -> Result<Value, Error> {
    if dropout == 0.0 || tape.mode() == crate::tape::Mode::Inference {
        return record(tape, Some(stream));
    }
    let branch = record(tape, None)?;
    tape.dropout(branch, dropout, Some(stream))
}
