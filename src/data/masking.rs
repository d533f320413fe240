//! Masks for masked language modelling (BERT, Devlin et al. 2019): which tokens of a batch are hidden, and by what.
//!
//! Of the ordinary tokens of each document 15 % are to be predicted: `max(1, round(0.15 n))` of `n`, so that a batch never has
//! more than [`Masker::capacity`]. Of those 80 % become `[MASK]`, 10 % a random ordinary token, 10 % stay. What is chosen:
//! - [`Unit::Token`]: tokens, each with the same chance;
//! - [`Unit::Word`]: whole words, in random order, those that would exceed the number passed over;
//! - [`Unit::Span`]: runs of words of geometric length (p = 0.2, at most 10), hidden all alike (SpanBERT, Joshi et al. 2020).
//!
//! Masks are dynamic: a pure function of (seed, step, example) by Philox, whatever else is in the batch and wherever it lies.

mod words;

use super::batch::Batch;
use super::error::{Error, Result};
use super::tokenizer::{SpecialTokens, Tokenizer};
use crate::ops::philox::{philox, uniform};
use serde::{Deserialize, Serialize};
use words::Piece;

/// Marks the random words of this use, so that no other use of the same seed draws the same ones.
const DOMAIN: u32 = 0x6D61_736B;

/// Lengths of spans: geometric with this chance to end after each word, cut off (SpanBERT, section 3.1).
const SPAN_END: f32 = 0.2;
const LONGEST_SPAN: usize = 10;

/// The target of a place that is not predicted, as the losses ignore it.
pub const IGNORED: i32 = -100;

/// What is hidden as a whole.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Unit {
    /// A token.
    #[default]
    Token,
    /// A word; in Chinese a character.
    Word,
    /// A run of words.
    Span,
}

/// How tokens are masked.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Masking {
    /// Share of the tokens that are predicted.
    pub probability: f32,
    /// Share of those that become `[MASK]`.
    pub mask: f32,
    /// Share of those that become a random token; the rest stays.
    pub random: f32,
    /// What is hidden as a whole.
    pub unit: Unit,
    /// Key of the random choices.
    pub seed: u64,
}

impl Default for Masking {
    fn default() -> Self {
        Self { probability: 0.15, mask: 0.8, random: 0.1, unit: Unit::Token, seed: 0 }
    }
}

/// What is to be predicted in a batch; both lists have the length asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Masked {
    /// Positions, flattened over `(rows, time)`; 0 beyond `count`.
    pub positions: Vec<i32>,
    /// The tokens that stood there; [`IGNORED`] beyond `count`.
    pub targets: Vec<i32>,
    /// How many there are.
    pub count: usize,
}

/// Masks batches.
pub struct Masker {
    masking: Masking,
    mask: i32,
    /// What each id is.
    pieces: Vec<Piece>,
    /// The ids of ordinary tokens.
    ordinary: Vec<i32>,
}

impl Masker {
    /// A masker for the tokens of a tokenizer.
    ///
    /// # Errors
    /// The tokenizer has no `[MASK]`, or a share is out of range.
    pub fn new(tokenizer: &Tokenizer, masking: Masking) -> Result<Self> {
        let Masking { probability, mask, random, .. } = masking;
        let is_share = |share: f32| (0.0..=1.0).contains(&share);
        if !(probability > 0.0 && probability < 1.0 && is_share(mask) && is_share(random) && mask + random <= 1.0001) {
            let what = format!(
                "masking probability {probability} must be above 0 and below 1, \
                 mask {mask} and random {random} shares of at most 1 together"
            );
            return Err(Error::Argument(what));
        }
        let mask = SpecialTokens::find(tokenizer).and_then(|special| special.mask).ok_or_else(|| {
            let what = "it has no [MASK] or <mask>; train one that has with `engine-data tokenizer --model wordpiece`";
            Error::tokenizer(format!("tokenizer {}", tokenizer.name()), what)
        })?;
        let pieces = words::pieces(tokenizer);
        let ordinary: Vec<i32> =
            (0..).zip(&pieces).filter(|(_, piece)| **piece != Piece::Special).map(|(id, _)| id).collect();
        if ordinary.is_empty() {
            return Err(Error::tokenizer("tokenizer", "it has only special tokens"));
        }
        Ok(Self { masking, mask: mask as i32, pieces, ordinary })
    }

    /// The most that batches of `rows * time` tokens with up to `documents` documents can have to predict.
    pub fn capacity(&self, rows: usize, time: usize, documents: usize) -> usize {
        // Rounding adds less than one to each document.
        (f64::from(self.masking.probability) * (rows * time) as f64).ceil() as usize + documents
    }

    /// Hides tokens of a batch: changes its ids, and lists what was there, in the order of positions, at most `capacity`.
    ///
    /// # Errors
    /// An id of the batch is beyond the vocabulary of the tokenizer.
    pub fn apply(&self, step: u64, batch: &mut Batch, capacity: usize, masked: &mut Masked) -> Result<()> {
        masked.positions.clear();
        masked.targets.clear();
        for placed in &batch.examples {
            let first = placed.row * batch.time + placed.start;
            let ids = &mut batch.ids[first..first + placed.end - placed.start];
            let mut chosen = self.choose(step, placed.example, ids)?;
            chosen.sort_unstable_by_key(|&(index, _)| index);
            for (index, id) in chosen {
                if masked.positions.len() == capacity {
                    break;
                }
                masked.positions.push((first + index) as i32);
                masked.targets.push(std::mem::replace(&mut ids[index], id));
            }
        }
        masked.count = masked.positions.len();
        masked.positions.resize(capacity, 0);
        masked.targets.resize(capacity, IGNORED);
        Ok(())
    }

    /// Which tokens of a document are predicted, and what stands there instead.
    fn choose(&self, step: u64, example: usize, ids: &[i32]) -> Result<Vec<(usize, i32)>> {
        let mut draws = Draws::new(self.masking.seed, step, example);
        let words = self.words(ids)?;
        let tokens: usize = words.iter().map(|&(first, end)| end - first).sum();
        if tokens == 0 {
            return Ok(Vec::new());
        }
        let wanted = ((f64::from(self.masking.probability) * tokens as f64).round() as usize).max(1);
        let mut chosen = Vec::with_capacity(wanted);
        if self.masking.unit == Unit::Span {
            self.choose_spans(&words, wanted, ids, &mut draws, &mut chosen);
            return Ok(chosen);
        }
        // A random order of the words, drawn as far as it is needed (Fisher and Yates).
        let mut order: Vec<usize> = (0..words.len()).collect();
        for next in 0..order.len() {
            if chosen.len() == wanted {
                break;
            }
            let other = next + draws.below(order.len() - next);
            order.swap(next, other);
            let (first, end) = words[order[next]];
            if chosen.len() + end - first <= wanted {
                chosen.extend((first..end).map(|index| (index, self.replacement(ids[index], &mut draws))));
            }
        }
        Ok(chosen)
    }

    /// Spans of words that start anywhere, until enough is hidden or it is clear that no more fits.
    fn choose_spans(
        &self,
        words: &[(usize, usize)],
        wanted: usize,
        ids: &[i32],
        draws: &mut Draws,
        chosen: &mut Vec<(usize, i32)>,
    ) {
        let mut is_taken = vec![false; words.len()];
        for _ in 0..8 * words.len() {
            if chosen.len() >= wanted {
                break;
            }
            let mut length = 1;
            while length < LONGEST_SPAN && uniform(draws.word()) >= SPAN_END {
                length += 1;
            }
            let start = draws.below(words.len());
            let kind = uniform(draws.word());
            for word in start..(start + length).min(words.len()) {
                let (first, end) = words[word];
                // A span ends where it meets another, at a gap (a special token), or where enough is hidden.
                let is_gap = word > start && words[word - 1].1 != first;
                if is_taken[word] || is_gap || chosen.len() + end - first > wanted {
                    break;
                }
                is_taken[word] = true;
                chosen.extend((first..end).map(|index| (index, self.replace(kind, ids[index], draws))));
            }
        }
    }

    /// The units of a document, first token and end: words, or tokens, without special ones.
    fn words(&self, ids: &[i32]) -> Result<Vec<(usize, usize)>> {
        let mut words: Vec<(usize, usize)> = Vec::with_capacity(ids.len());
        for (index, &id) in ids.iter().enumerate() {
            let piece = usize::try_from(id).ok().and_then(|id| self.pieces.get(id)).copied().ok_or_else(|| {
                let what = format!("token {id} of the data is not in its vocabulary of {}", self.pieces.len());
                Error::tokenizer("tokenizer for masks", what)
            })?;
            match (piece, words.last_mut()) {
                (Piece::Special, _) => {}
                (Piece::Inside, Some(word)) if self.masking.unit != Unit::Token && word.1 == index => word.1 += 1,
                _ => words.push((index, index + 1)),
            }
        }
        Ok(words)
    }

    fn replacement(&self, id: i32, draws: &mut Draws) -> i32 {
        let kind = uniform(draws.word());
        self.replace(kind, id, draws)
    }

    fn replace(&self, kind: f32, id: i32, draws: &mut Draws) -> i32 {
        if kind < self.masking.mask {
            self.mask
        } else if kind < self.masking.mask + self.masking.random {
            self.ordinary[draws.below(self.ordinary.len())]
        } else {
            id
        }
    }
}

/// The random words of one example at one step.
struct Draws {
    counter: [u32; 4],
    key: [u32; 2],
    words: [u32; 4],
    used: usize,
}

impl Draws {
    fn new(seed: u64, step: u64, example: usize) -> Self {
        let counter = [0, example as u32, step as u32, DOMAIN.wrapping_add((step >> 32) as u32)];
        Self { counter, key: [seed as u32, (seed >> 32) as u32], words: [0; 4], used: 4 }
    }

    fn word(&mut self) -> u32 {
        if self.used == 4 {
            self.words = philox(self.counter, self.key);
            self.counter[0] += 1;
            self.used = 0;
        }
        self.used += 1;
        self.words[self.used - 1]
    }

    /// A number below `bound`, which is below 2^32; its bias is below `bound / 2^32`.
    fn below(&mut self, bound: usize) -> usize {
        ((u64::from(self.word()) * bound as u64) >> 32) as usize
    }
}

#[cfg(test)]
mod tests;
