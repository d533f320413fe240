//! What an encoder-decoder records (Vaswani et al. 2017): the encoder reads a source, and the decoder, token by token,
//! itself and the source. In training both are one computation. When decoding, the encoder runs once and leaves the keys
//! and values of every cross-attention in caches, so that a step costs the decoder's rows alone.

use super::Transformer;
use super::block::{BlockCache, Memory};
use super::config::Architecture;
use super::transformer::{Inputs, Stack};
use crate::ops::Device;
use crate::tape::{Cache, Error, OutOfMemory, Tape, Value};
use std::sync::Arc;

/// What the blocks of a decoder look at.
#[derive(Clone, Copy)]
pub(super) enum StackMemory<'a> {
    /// See [`Memory::Encoded`]; the same for every block.
    Encoded { stream: Value, lengths: Value },
    /// A cache for each block.
    Cached(&'a [Arc<Cache>]),
}

impl<'a> StackMemory<'a> {
    pub(super) fn of_layer(self, layer: usize) -> Memory<'a> {
        match self {
            Self::Encoded { stream, lengths } => Memory::Encoded { stream, lengths },
            Self::Cached(caches) => Memory::Cached(&caches[layer]),
        }
    }
}

impl Transformer {
    /// Records encoder and decoder; the result, `(B, T, C)`, is what the head predicts tokens from.
    ///
    /// # Shapes
    /// `source` is of `(B, S)` and `target` of `(B, T)`; `source_lengths (B)` counts the tokens of each source that are
    /// no padding.
    ///
    /// # Errors
    /// A model of one stack; more tokens than it has positions.
    pub fn record_translation_trunk(
        &self,
        tape: &mut Tape<'_>,
        source: &Inputs,
        source_lengths: Value,
        target: &Inputs,
        recompute: bool,
    ) -> Result<Value, Error> {
        let (encoder, decoder) = self.encoder_and_decoder()?;
        let stream = tape.scoped("encoder", |tape| self.record_stack(tape, encoder, source, recompute, None, None))?;
        let memory = StackMemory::Encoded { stream, lengths: source_lengths };
        tape.scoped("decoder", |tape| self.record_stack(tape, decoder, target, recompute, None, Some(memory)))
    }

    /// Records the encoder, and that the decoder finds its result in `memory`, a cache for each layer: sequence `b` of the
    /// batch in row `b`.
    ///
    /// # Errors
    /// A model of one stack; more or longer sequences than there is room for; a training tape.
    pub fn record_memory(&self, tape: &mut Tape<'_>, source: &Inputs, memory: &[Arc<Cache>]) -> Result<(), Error> {
        let (encoder, decoder) = self.encoder_and_decoder()?;
        let stream = tape.scoped("encoder", |tape| self.record_stack(tape, encoder, source, false, None, None))?;
        let mut layers = decoder.blocks.iter().zip(memory);
        layers.try_for_each(|(block, cache)| block.record_memory(tape, stream, cache))
    }

    /// An empty cache for the cross-attention of each layer.
    ///
    /// # Errors
    /// Not enough memory.
    pub fn memory(
        &self,
        device: &Arc<Device>,
        sequences: usize,
        capacity: usize,
    ) -> Result<Vec<Arc<Cache>>, OutOfMemory> {
        let key_columns = self.config().kv_heads * self.config().head_size();
        (0..self.config().layers).map(|_| Cache::new(device, sequences, capacity, key_columns)).collect()
    }

    /// Records a step of decoding: the logits, `(N, V)`, that follow the next token, `(N, 1)`, of each hypothesis. Its
    /// earlier tokens are in `caches`; see [`Tape::attention_cached`], and for `memory`
    /// [`Tape::cross_attention_cached`].
    ///
    /// # Errors
    /// A model of one stack; a training tape.
    pub fn record_next_translated(
        &self,
        tape: &mut Tape<'_>,
        ids: Value,
        caches: &[BlockCache],
        memory: &[Arc<Cache>],
    ) -> Result<Value, Error> {
        let (_, decoder) = self.encoder_and_decoder()?;
        let (inputs, memory) = (Inputs::rows(ids), StackMemory::Cached(memory));
        let trunk = tape
            .scoped("decoder", |tape| self.record_stack(tape, decoder, &inputs, false, Some(caches), Some(memory)))?;
        let hypotheses = tape.shape(ids)[0];
        let rows = tape.rows(trunk, 0, hypotheses)?;
        self.record_token_logits(tape, rows)
    }

    fn encoder_and_decoder(&self) -> Result<(&Stack, &Stack), Error> {
        match (self.config().architecture, &self.stacks[..]) {
            (Architecture::EncoderDecoder, [encoder, decoder]) => Ok((encoder, decoder)),
            _ => {
                let what = "this model has one stack of blocks: translation needs an encoder-decoder".to_owned();
                Err(Error::Shape { operation: "encoder_decoder", what })
            }
        }
    }
}
