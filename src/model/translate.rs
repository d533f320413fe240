//! Translation, one token after the other, the likeliest, by chance, or by beam search: by an encoder-decoder, or by a
//! decoder alone that goes on from `[CLS] source [SEP]`. Both begin a translation with `[CLS]` and end it with `[SEP]`.
//!
//! Sentences are read and decoded in batches, because a step's time is that of reading the weights, whatever the
//! number of rows (while there are few). They are sorted by length for that, and those that have ended leave the batch.
//! A batch may change the last bits of a probability, since products of more rows add up in another order; the same
//! batches give the same bits.

mod beam;
mod decoder;
mod loss;
#[cfg(test)]
mod tests;

use super::Transformer;
use super::config::{Architecture, ModelConfig};
use super::sampling::{Sampling, log_sum_exp};
use crate::ops::Device;
use crate::tape::{self, OutOfMemory, Parameters};
use beam::{Beam, Decision};
use decoder::Decoder;
pub use loss::loss;
use std::sync::Arc;

/// Key and value of [`ModelConfig::other`] that tell a decoder that translates from one that writes.
pub const PURPOSE: (&str, &str) = ("engine_task", "translation");

/// How a translation is looked for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Method {
    /// The likeliest token each time.
    Greedy,
    /// By chance; each sentence has its own random numbers.
    Sample(Sampling),
    /// The best of several hypotheses: the higher `length_penalty`, the longer. 0 compares probabilities as they are.
    Beam { width: usize, length_penalty: f64 },
}

impl Method {
    /// Hypotheses of each sentence.
    pub fn width(&self) -> usize {
        match self {
            Self::Beam { width, .. } => (*width).max(1),
            Self::Greedy | Self::Sample(_) => 1,
        }
    }
}

/// A sentence's translation.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Translation {
    /// Without the token that ends it.
    pub tokens: Vec<u32>,
    /// `ln p` of all tokens and the end.
    pub log_probability: f64,
    /// By what a beam compares it; else the log-probability.
    pub score: f64,
    /// Whether the model ended it; else it is cut at the most tokens that were allowed.
    pub is_complete: bool,
}

/// Whether a model of this configuration translates.
pub fn is_translator(config: &ModelConfig) -> bool {
    match config.architecture {
        Architecture::EncoderDecoder => true,
        Architecture::Decoder => config.other.get(PURPOSE.0).is_some_and(|value| value == PURPOSE.1),
        Architecture::Encoder => false,
    }
}

/// Why there is no translation.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("this model does not translate: use one that was trained with train.task = \"translation\"")]
    Model,
    #[error(
        "sentence {sentence} has {tokens} tokens, special ones included, but the model reads at most {most}; split it"
    )]
    TooLong { sentence: usize, tokens: usize, most: usize },
    #[error(transparent)]
    Tape(#[from] tape::Error),
    #[error(transparent)]
    OutOfMemory(#[from] OutOfMemory),
}

/// What a model reads: the tokens of a text between those that begin and end it.
pub fn framed(config: &ModelConfig, tokens: &[u32]) -> Vec<u32> {
    config.bos.into_iter().chain(tokens.iter().copied()).chain(config.eos).collect()
}

/// Translates sentences with one model.
pub struct Translator<'m> {
    decoder: Decoder<'m>,
    method: Method,
    start: u32,
    end: u32,
    block: usize,
    /// Whether a source takes room in the same block as its translation.
    shares_block: bool,
}

/// A sentence that is being decoded.
struct Active {
    /// Its number among all.
    sentence: usize,
    /// Tokens of its translation at most.
    limit: usize,
    search: Search,
}

enum Search {
    Single { so_far: Translation, sampling: Sampling },
    Beam(Beam),
}

impl<'m> Translator<'m> {
    /// Room for `sentences` at a time.
    ///
    /// # Errors
    /// A model that does not translate, or knows no tokens that begin and end a text; not enough memory.
    pub fn new(device: Arc<Device>, model: &'m Transformer, sentences: usize, method: Method) -> Result<Self, Error> {
        let config = model.config();
        let (true, Some(start), Some(end)) = (is_translator(config), config.bos, config.eos) else {
            return Err(Error::Model);
        };
        let decoder = Decoder::new(device, model, sentences.max(1), method.width())?;
        let shares_block = config.architecture == Architecture::Decoder;
        Ok(Self { decoder, method, start, end, block: config.block, shares_block })
    }

    /// Bytes that a translator of such a model needs: keys and values of the hypotheses and of the sources,
    /// what convolutions keep, and logits.
    pub fn bytes(config: &ModelConfig, sentences: usize, width: usize) -> usize {
        // An encoder's memory counts for all: a decoder's prompts need less.
        let row = 2 * config.kv_heads * config.head_size() * config.block * config.layers;
        let convolution = config.convolution.map_or(0, |_| 2 * config.channels * config.block * config.layers);
        4 * sentences * ((width + 1) * row + width * (convolution + config.vocabulary))
    }

    /// Translates sources, which are [`framed`]; the results are in their order, of at most `max_tokens` tokens each, the
    /// end included.
    ///
    /// # Errors
    /// A source that is too long or has a token outside the vocabulary; not enough memory.
    pub fn translate(
        &mut self,
        parameters: &mut Parameters,
        sources: &[Vec<u32>],
        max_tokens: usize,
    ) -> Result<Vec<Translation>, Error> {
        let most = if self.shares_block { self.block - 1 } else { self.block };
        if let Some(sentence) = sources.iter().position(|source| source.len() > most) {
            return Err(Error::TooLong { sentence, tokens: sources[sentence].len(), most });
        }
        let mut order: Vec<usize> = (0..sources.len()).collect();
        order.sort_by_key(|&sentence| sources[sentence].len());
        let mut translations = vec![Translation::default(); sources.len()];
        for sentences in order.chunks(self.decoder.capacity()) {
            self.translate_batch(parameters, sentences, sources, max_tokens, &mut translations)?;
        }
        Ok(translations)
    }

    fn translate_batch(
        &mut self,
        parameters: &mut Parameters,
        sentences: &[usize],
        sources: &[Vec<u32>],
        max_tokens: usize,
        translations: &mut [Translation],
    ) -> Result<(), Error> {
        let batch: Vec<&[u32]> = sentences.iter().map(|&sentence| &sources[sentence][..]).collect();
        self.decoder.read(parameters, &batch)?;
        let search = |limit: usize| match self.method {
            Method::Greedy => Search::single(Sampling { temperature: 0.0, ..Sampling::default() }),
            Method::Sample(sampling) => Search::single(sampling),
            Method::Beam { length_penalty, .. } => {
                Search::Beam(Beam::new(self.method.width(), length_penalty, self.end, limit))
            }
        };
        let begin = |&sentence: &usize| {
            let taken = if self.shares_block { sources[sentence].len() } else { 0 };
            let limit = max_tokens.clamp(1, self.block - taken);
            Active { sentence, limit, search: search(limit) }
        };
        let mut active: Vec<Active> = sentences.iter().map(begin).collect();
        while !active.is_empty() {
            let width = self.method.width();
            let last = |active: &Active, row: usize| active.search.last_token(row).unwrap_or(self.start);
            let tokens: Vec<u32> =
                active.iter().flat_map(|active| (0..width).map(move |row| last(active, row))).collect();
            self.decoder.step(parameters, &tokens)?;
            let mut decisions = Vec::with_capacity(active.len());
            for (place, active) in active.iter_mut().enumerate() {
                let Active { sentence, limit, search } = active;
                decisions.push(search.advance(self.decoder.logits(place), *sentence, self.end, *limit));
            }
            // From the back, so that what moves into a place that is freed has been looked at.
            for (place, decision) in decisions.iter().enumerate().rev() {
                if decision.is_over {
                    let Active { sentence, search, .. } = active.swap_remove(place);
                    translations[sentence] = search.finish();
                    self.decoder.remove(parameters, place)?;
                    continue;
                }
                for &(from, to) in &decision.copies {
                    self.decoder.copy(parameters, place, from, to)?;
                }
            }
        }
        Ok(())
    }
}

impl Search {
    fn single(sampling: Sampling) -> Self {
        Self::Single { so_far: Translation::default(), sampling }
    }

    fn last_token(&self, row: usize) -> Option<u32> {
        match self {
            Self::Single { so_far, .. } => so_far.tokens.last().copied(),
            Self::Beam(beam) => beam.last_token(row),
        }
    }

    /// Takes the logits that follow each hypothesis of a sentence.
    fn advance(&mut self, logits: &[f32], sentence: usize, end: u32, limit: usize) -> Decision {
        match self {
            Self::Beam(beam) => beam.advance(logits),
            Self::Single { so_far, sampling } => {
                let draw = so_far.tokens.len();
                let token = sampling.choose(logits, sentence, draw as u64);
                so_far.log_probability += f64::from(logits[token as usize]) - log_sum_exp(logits);
                so_far.score = so_far.log_probability;
                so_far.is_complete = token == end;
                if token != end {
                    so_far.tokens.push(token);
                }
                Decision { copies: Vec::new(), is_over: token == end || draw + 1 >= limit }
            }
        }
    }

    fn finish(self) -> Translation {
        match self {
            Self::Single { so_far, .. } => so_far,
            Self::Beam(beam) => beam.finish(),
        }
    }
}
