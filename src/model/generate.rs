//! Decoding with a key/value cache: each new token costs one row of every product instead of the whole sequence.
//!
//! Sequences are decoded together, one row each, because a step's time is that of reading the weights, whatever the
//! number of rows (while there are few). Sequence `i` of the batch owns row `i` of the cache. They may join and leave
//! at any time: a prompt is read by itself into a free row, and when a sequence leaves, the last one moves into its
//! row. Every product of up to eight rows adds up each row in the same order, so in batches of up to eight a sequence
//! gets the same bits as alone.

pub use super::sampling::Sampling;

use super::Transformer;
use super::block::BlockCache;
use crate::ops::Device;
use crate::tape::{Error, Mode, OutOfMemory, Parameters, Program, RunOptions, Tape, Value};
use std::sync::Arc;

/// Decodes a batch of sequences of one model, token by token.
///
/// After an error the generator is of no further use.
pub struct Generator<'m> {
    model: &'m Transformer,
    device: Arc<Device>,
    /// One for each layer.
    caches: Vec<BlockCache>,
    capacity: usize,
    /// The program that decodes one token of each of `i + 1` sequences; recorded when there are that many.
    steps: Vec<Option<Recorded>>,
    /// The program that read the last prompt, and its number of tokens: the next one may be as long.
    reader: Option<(usize, Recorded)>,
    options: RunOptions,
    sequences: Vec<Sequence>,
    /// `(B, V)`: what follows each sequence.
    logits: Vec<f32>,
}

struct Sequence {
    /// Prompt included.
    tokens: Vec<u32>,
    /// How many of the last tokens are in the cache.
    cached: usize,
}

/// A program that reads or decodes.
pub(super) struct Recorded {
    pub(super) program: Program,
    pub(super) ids: Value,
    pub(super) logits: Value,
}

impl<'m> Generator<'m> {
    /// Reads the prompts; there is room for no more sequences than these.
    ///
    /// # Panics
    /// As [`add`](Self::add).
    ///
    /// # Errors
    /// As [`add`](Self::add).
    pub fn new(
        device: Arc<Device>,
        model: &'m Transformer,
        parameters: &mut Parameters,
        prompts: &[Vec<u32>],
    ) -> Result<Self, Error> {
        let mut generator = Self::with_capacity(device, model, prompts.len())?;
        for prompt in prompts {
            generator.add(parameters, prompt)?;
        }
        Ok(generator)
    }

    /// No sequences yet, and room for `capacity` of them at a time.
    ///
    /// # Errors
    /// Not enough memory.
    pub fn with_capacity(device: Arc<Device>, model: &'m Transformer, capacity: usize) -> Result<Self, OutOfMemory> {
        Ok(Self {
            model,
            caches: model.caches(&device, capacity, model.config().block)?,
            device,
            capacity,
            steps: (0..capacity).map(|_| None).collect(),
            reader: None,
            options: RunOptions::default(),
            sequences: Vec::with_capacity(capacity),
            logits: Vec::with_capacity(capacity * model.config().vocabulary),
        })
    }

    /// How many sequences are being decoded.
    pub fn len(&self) -> usize {
        self.sequences.len()
    }

    /// Whether there are no sequences.
    pub fn is_empty(&self) -> bool {
        self.sequences.is_empty()
    }

    /// How many sequences there is room for.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// All tokens of a sequence, prompt included.
    pub fn tokens(&self, sequence: usize) -> &[u32] {
        &self.sequences[sequence].tokens
    }

    /// Logits of the token that follows a sequence.
    pub fn logits(&self, sequence: usize) -> &[f32] {
        let vocabulary = self.model.config().vocabulary;
        &self.logits[sequence * vocabulary..][..vocabulary]
    }

    /// Tokens that the next step attends to besides the new ones, of all sequences together: the rows of the cache
    /// that it reads in each layer.
    pub fn cached_tokens(&self) -> usize {
        self.sequences.iter().map(|sequence| sequence.cached).sum()
    }

    /// Reads a prompt; its sequence becomes the last. A prompt longer than the model's block is read from
    /// [`first_token_read`] on.
    ///
    /// # Panics
    /// There is no room, or the prompt is empty: nothing that the first token could follow.
    ///
    /// # Errors
    /// A token outside the vocabulary; not enough memory.
    pub fn add(&mut self, parameters: &mut Parameters, prompt: &[u32]) -> Result<(), Error> {
        assert!(self.len() < self.capacity, "no room for more than {} sequences", self.capacity);
        assert!(!prompt.is_empty(), "a prompt has at least one token");
        let start = first_token_read(prompt.len(), self.model.config().block);
        self.read(parameters, self.len(), &prompt[start..])?;
        if let Some((_, reader)) = &self.reader {
            self.logits.extend_from_slice(&reader.program.read(reader.logits)?);
        }
        self.sequences.push(Sequence { tokens: prompt.to_vec(), cached: prompt.len() - start });
        Ok(())
    }

    /// Adds a copy of a sequence as the last, which is cheaper than to read the same prompt again.
    ///
    /// # Panics
    /// There is no room.
    ///
    /// # Errors
    /// The device failed.
    pub fn add_copy(&mut self, parameters: &mut Parameters, sequence: usize) -> Result<(), Error> {
        assert!(self.len() < self.capacity, "no room for more than {} sequences", self.capacity);
        let Sequence { tokens, cached } = &self.sequences[sequence];
        let copy = Sequence { tokens: tokens.clone(), cached: *cached };
        for cache in &self.caches {
            cache.copy_sequence(parameters, sequence, self.sequences.len(), copy.cached)?;
        }
        let vocabulary = self.model.config().vocabulary;
        self.logits.extend_from_within(sequence * vocabulary..(sequence + 1) * vocabulary);
        self.sequences.push(copy);
        Ok(())
    }

    /// Removes a sequence; the last one takes its number.
    ///
    /// # Errors
    /// The device failed.
    pub fn remove(&mut self, parameters: &mut Parameters, sequence: usize) -> Result<(), Error> {
        let (vocabulary, last) = (self.model.config().vocabulary, self.len() - 1);
        if sequence < last {
            for cache in &self.caches {
                cache.copy_sequence(parameters, last, sequence, self.sequences[last].cached)?;
            }
            self.logits.copy_within(last * vocabulary.., sequence * vocabulary);
        }
        self.sequences.swap_remove(sequence);
        self.logits.truncate(last * vocabulary);
        Ok(())
    }

    /// Appends one token to each sequence and computes the logits that follow. A sequence that fills the block goes
    /// on from its last half block, as if nothing had come before: positions are learned, so what is in the cache
    /// cannot be moved to earlier ones.
    ///
    /// # Errors
    /// A token outside the vocabulary; not enough memory.
    pub fn push(&mut self, parameters: &mut Parameters, tokens: &[u32]) -> Result<(), Error> {
        let batch = self.len();
        assert_eq!(tokens.len(), batch, "one token for each sequence");
        if batch == 0 {
            return Ok(());
        }
        let block = self.model.config().block;
        for sequence in 0..batch {
            if self.sequences[sequence].cached == block {
                let tokens = &self.sequences[sequence].tokens;
                let kept = tokens[tokens.len() - block / 2..].to_vec();
                if !kept.is_empty() {
                    self.read(parameters, sequence, &kept)?;
                }
                self.sequences[sequence].cached = kept.len();
            }
        }
        self.options.cache_row = 0;
        self.options.positions.clear();
        self.options.positions.extend(self.sequences.iter().map(|sequence| sequence.cached));
        let step = match &mut self.steps[batch - 1] {
            Some(step) => step,
            empty => empty.insert(record(&self.device, self.model, parameters, &self.caches, batch, 1)?),
        };
        let ids: Vec<i32> = tokens.iter().map(|&token| as_id(token)).collect();
        step.program.write_ids(step.ids, &ids)?;
        step.program.run(parameters, &self.options)?;
        self.logits.copy_from_slice(&step.program.read(step.logits)?);
        for (sequence, &token) in self.sequences.iter_mut().zip(tokens) {
            sequence.tokens.push(token);
            sequence.cached += 1;
        }
        Ok(())
    }

    /// Runs `tokens` from position 0 on into a row of the cache.
    fn read(&mut self, parameters: &mut Parameters, row: usize, tokens: &[u32]) -> Result<(), Error> {
        let reader = match self.reader.take().filter(|(length, _)| *length == tokens.len()) {
            Some((_, reader)) => reader,
            None => record(&self.device, self.model, parameters, &self.caches, 1, tokens.len())?,
        };
        let (_, reader) = self.reader.insert((tokens.len(), reader));
        let ids: Vec<i32> = tokens.iter().map(|&token| as_id(token)).collect();
        reader.program.write_ids(reader.ids, &ids)?;
        self.options.cache_row = row;
        self.options.positions.clear();
        self.options.positions.push(0);
        reader.program.run(parameters, &self.options)
    }
}

/// Index of the first token that is read of a prompt of `length`: 0, or where the last half block begins if the
/// prompt is longer than the block, which leaves room to go on.
pub fn first_token_read(length: usize, block: usize) -> usize {
    if length <= block { 0 } else { length - (block / 2).max(1) }
}

/// Ids beyond `i32` become negative, and the embedding refuses those.
pub(super) fn as_id(token: u32) -> i32 {
    token as i32
}

/// A program for `time` new tokens of each of `batch` sequences.
pub(super) fn record(
    device: &Arc<Device>,
    model: &Transformer,
    parameters: &Parameters,
    caches: &[BlockCache],
    batch: usize,
    time: usize,
) -> Result<Recorded, Error> {
    let mut tape = Tape::new(Arc::clone(device), parameters, Mode::Inference);
    let ids = tape.input_ids("ids", &[batch, time]);
    let logits = model.record_next(&mut tape, ids, caches)?;
    tape.keep(logits);
    Ok(Recorded { program: tape.finish()?, ids, logits })
}
