//! Transformer blocks out of tape operations, shared by every architecture.

use super::config::{ModelConfig, Norm, NormPlace, Positions};
use super::convolution::ConvolutionLayer;
use super::lora::{self, Adapted, LoraOptions};
use crate::ops::attention::Mask;
use crate::ops::gated_conv::Window;
use crate::ops::layer_norm;
use crate::ops::linear::Activation;
use crate::ops::{self, Device};
use crate::tape::{
    AttentionInputs, AttentionOptions, Cache, Error, OutOfMemory, ParameterId, Parameters, RotaryOptions, Tape, Value,
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

/// What a block sees besides its input.
#[derive(Clone, Copy, Default)]
pub struct Surroundings<'a> {
    /// A step of decoding: what is kept of earlier tokens.
    pub cache: Option<&'a BlockCache>,
    /// `(B, T, 2)` ids: the document of each position; see [`AttentionInputs`].
    pub documents: Option<Value>,
    /// `(B, T)` ids: where each token stands in its document.
    pub position_ids: Option<Value>,
    /// `(H, 2·radius - 1)`: what is added to the scores of self-attention by distance.
    pub relative_bias: Option<Value>,
    /// What the cross-attention looks at.
    pub memory: Option<Memory<'a>>,
}

/// What a block keeps of earlier tokens when decoding.
pub struct BlockCache {
    /// Keys and values.
    attention: Arc<Cache>,
    /// What its convolution reads.
    convolution: Option<Arc<Cache>>,
}

impl BlockCache {
    /// Empty, with room for `capacity` tokens of each of `sequences` sequences.
    ///
    /// # Errors
    /// Not enough memory.
    pub fn new(
        device: &Arc<Device>,
        config: &ModelConfig,
        sequences: usize,
        capacity: usize,
    ) -> Result<Self, OutOfMemory> {
        let key_columns = config.kv_heads * config.head_size();
        let convolution = config.convolution.map(|_| Cache::new(device, sequences, capacity, config.channels));
        Ok(Self {
            attention: Cache::new(device, sequences, capacity, key_columns)?,
            convolution: convolution.transpose()?,
        })
    }

    /// See [`Cache::copy_sequence`].
    ///
    /// # Errors
    /// The device failed.
    pub fn copy_sequence(
        &self,
        parameters: &mut Parameters,
        from: usize,
        to: usize,
        tokens: usize,
    ) -> Result<(), ops::Error> {
        let mut caches = std::iter::once(&self.attention).chain(&self.convolution);
        caches.try_for_each(|cache| cache.copy_sequence(parameters, from, to, tokens))
    }
}

/// What a decoder's cross-attention looks at.
#[derive(Clone, Copy)]
pub enum Memory<'a> {
    /// An encoder's result `(B, S, C)`, and `(B)` ids: how many tokens of each are real.
    Encoded { stream: Value, lengths: Value },
    /// A step of decoding: keys and values that [`Block::record_memory`] made of it.
    Cached(&'a Arc<Cache>),
}

/// How a block is recorded.
#[derive(Clone, Copy, Debug)]
pub struct BlockOptions {
    pub mask: Mask,
    /// Computes the hidden layer's activation again in the backward pass instead of keeping it.
    pub recomputes_hidden: bool,
}

/// Cross-attention of a decoder's block.
#[derive(Clone, Copy, Debug)]
struct Cross {
    norm: Affine,
    query: Adapted,
    key_value: Adapted,
    projection: Adapted,
}

/// A block: `x ← x + attention(norm(x))`, `x ← x + ffn(norm(x))` where the norm comes first, and
/// `x ← norm(x + attention(x))`, `x ← norm(x + ffn(x))` where it comes last; with cross-attention between the two in the
/// decoder of an encoder-decoder, and a convolution before both where the configuration has one.
#[derive(Clone, Copy, Debug)]
pub struct Block {
    convolution: Option<(Affine, ConvolutionLayer)>,
    attention_norm: Affine,
    qkv: Adapted,
    projection: Adapted,
    cross: Option<Cross>,
    ffn_norm: Affine,
    up: Adapted,
    down: Adapted,
}

/// Records the norm of `value` that `config` asks for.
pub(super) fn record_norm(
    tape: &mut Tape<'_>,
    config: &ModelConfig,
    value: Value,
    norm: &Affine,
) -> Result<Value, Error> {
    let kind = match config.norm {
        Norm::Layer => layer_norm::Norm::Layer,
        Norm::Rms => layer_norm::Norm::Rms,
    };
    tape.layer_norm(kind, value, norm.weight, norm.bias, config.norm_epsilon)
}

impl Block {
    /// The block whose parameters' names start with `prefix`.
    pub fn find(parameters: &Parameters, prefix: &str, lora: &LoraOptions) -> Self {
        let part = |name: &str| Affine::find(parameters, &format!("{prefix}.{name}"));
        let linear = |name: &str| Adapted::find(parameters, part(name), lora);
        let cross = parameters.find(&format!("{prefix}.cross.query.weight")).map(|_| Cross {
            norm: part("cross_norm"),
            query: linear("cross.query"),
            key_value: linear("cross.key_value"),
            projection: linear("cross.projection"),
        });
        let convolution = ConvolutionLayer::find(parameters, &format!("{prefix}.convolution"));
        Self {
            convolution: convolution.map(|layer| (part("convolution_norm"), layer)),
            attention_norm: part("attention_norm"),
            qkv: linear("attention.qkv"),
            projection: linear("attention.projection"),
            cross,
            ffn_norm: part("ffn_norm"),
            up: linear("ffn.up"),
            down: linear("ffn.down"),
        }
    }

    /// Records the block on `stream`, `(B, T, C)`.
    ///
    /// # Errors
    /// Parameters or options that do not fit together.
    pub fn record(
        &self,
        tape: &mut Tape<'_>,
        stream: Value,
        config: &ModelConfig,
        options: &BlockOptions,
        around: &Surroundings<'_>,
    ) -> Result<Value, Error> {
        let stream = match (&self.convolution, config.convolution) {
            (Some((norm, layer)), Some(convolution)) => {
                branch(tape, config, "convolution", stream, norm, |tape, input, residual| {
                    if let Some(cache) = around.cache.and_then(|cache| cache.convolution.as_ref()) {
                        return layer.record_next(tape, input, convolution, cache, residual);
                    }
                    let window = match options.mask {
                        Mask::Causal => Window::Causal,
                        Mask::Full => Window::Centred { excludes_self: false },
                    };
                    layer.record(tape, input, convolution, window, around.documents, residual)
                })?
            }
            _ => stream,
        };
        let stream = branch(tape, config, "attention", stream, &self.attention_norm, |tape, input, residual| {
            let mixed = self.record_attention(tape, input, config, options, around)?;
            record_adapted(tape, mixed, &self.projection, residual)
        })?;
        let stream = match (&self.cross, around.memory) {
            (Some(cross), Some(memory)) => {
                branch(tape, config, "cross", stream, &cross.norm, |tape, input, residual| {
                    let mixed = cross.record_attention(tape, input, config, memory)?;
                    record_adapted(tape, mixed, &cross.projection, residual)
                })?
            }
            _ => stream,
        };
        branch(tape, config, "ffn", stream, &self.ffn_norm, |tape, input, residual| {
            let recomputes = options.recomputes_hidden;
            lora::record_ffn(tape, input, &self.up, &self.down, config.activation, residual, recomputes)
        })
    }

    /// The linear layers that may have adapters.
    pub(super) fn linears(&self) -> impl Iterator<Item = &Adapted> {
        let cross = self.cross.iter().flat_map(|cross| [&cross.query, &cross.key_value, &cross.projection]);
        [&self.qkv, &self.projection, &self.up, &self.down].into_iter().chain(cross)
    }

    /// Records that the keys and values which the cross-attention sees in an encoder's result go into `cache`.
    ///
    /// # Errors
    /// A block without cross-attention; a training tape.
    pub fn record_memory(&self, tape: &mut Tape<'_>, stream: Value, cache: &Arc<Cache>) -> Result<(), Error> {
        let Some(cross) = &self.cross else {
            let what = "this block has no cross-attention: use an encoder-decoder".to_owned();
            return Err(Error::Shape { operation: "record_memory", what });
        };
        let key_value = record_adapted(tape, stream, &cross.key_value, None)?;
        tape.store_keys_and_values(key_value, cache)
    }

    fn record_attention(
        &self,
        tape: &mut Tape<'_>,
        input: Value,
        config: &ModelConfig,
        options: &BlockOptions,
        around: &Surroundings<'_>,
    ) -> Result<Value, Error> {
        let mut qkv = record_adapted(tape, input, &self.qkv, None)?;
        if let Positions::Rotary { theta } = config.positions {
            let rotary = RotaryOptions {
                heads: config.heads,
                key_value_heads: config.kv_heads,
                rotary_columns: None,
                base: f64::from(theta),
            };
            qkv = tape.rotary(qkv, &rotary, around.position_ids)?;
        }
        let attention = attention_options(config, options.mask);
        match around.cache {
            Some(cache) => tape.attention_cached(qkv, &attention, &cache.attention, around.relative_bias),
            None => {
                let Surroundings { documents, relative_bias, .. } = *around;
                let inputs = AttentionInputs { documents, relative_bias, ..AttentionInputs::default() };
                tape.attention(qkv, &attention, inputs)
            }
        }
    }
}

impl Cross {
    fn record_attention(
        &self,
        tape: &mut Tape<'_>,
        input: Value,
        config: &ModelConfig,
        memory: Memory<'_>,
    ) -> Result<Value, Error> {
        let query = record_adapted(tape, input, &self.query, None)?;
        let attention = attention_options(config, Mask::Full);
        match memory {
            Memory::Cached(cache) => tape.cross_attention_cached(query, &attention, cache),
            Memory::Encoded { stream, lengths } => {
                let key_value = record_adapted(tape, stream, &self.key_value, None)?;
                let inputs = AttentionInputs { key_lengths: Some(lengths), ..AttentionInputs::default() };
                tape.cross_attention(query, key_value, &attention, inputs)
            }
        }
    }
}

fn attention_options(config: &ModelConfig, mask: Mask) -> AttentionOptions {
    AttentionOptions { heads: config.heads, key_value_heads: config.kv_heads, mask, dropout: config.attention_dropout }
}

/// Records a linear layer.
pub(super) fn record_linear(
    tape: &mut Tape<'_>,
    input: Value,
    layer: &Affine,
    residual: Option<Value>,
) -> Result<Value, Error> {
    tape.linear(input, layer.weight, layer.bias, Activation::Identity, residual)
}

/// Records a linear layer that may have an adapter.
fn record_adapted(tape: &mut Tape<'_>, input: Value, layer: &Adapted, residual: Option<Value>) -> Result<Value, Error> {
    lora::record_linear(tape, input, layer, Activation::Identity, residual)
}

/// Records a branch from the stream and back into it, and the norm before or after.
fn branch(
    tape: &mut Tape<'_>,
    config: &ModelConfig,
    name: &str,
    stream: Value,
    norm: &Affine,
    record: impl FnOnce(&mut Tape<'_>, Value, Option<Value>) -> Result<Value, Error>,
) -> Result<Value, Error> {
    tape.scoped(name, |tape| match config.norm_place {
        NormPlace::Pre => {
            let input = record_norm(tape, config, stream, norm)?;
            add_branch(tape, stream, config.residual_dropout, |tape, residual| record(tape, input, residual))
        }
        NormPlace::Post => {
            let sum =
                add_branch(tape, stream, config.residual_dropout, |tape, residual| record(tape, stream, residual))?;
            record_norm(tape, config, sum, norm)
        }
    })
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
