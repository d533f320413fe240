//! Generating text: a key/value cache, so that each new token costs one row of every product, and a choice among the
//! likeliest tokens (temperature, top-k, top-p) that depends on the seed alone.

use super::Gpt;
use crate::ops::Device;
use crate::ops::philox::{stream, uniform, word};
use crate::tape::{Cache, Error, Mode, Parameters, Program, RunOptions, Tape, Value};
use std::sync::Arc;

/// How the next token is chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// Divides the logits; 0 always takes the likeliest token.
    pub temperature: f64,
    /// Only the `k` likeliest tokens; 0 for all.
    pub top_k: usize,
    /// Only the likeliest tokens that together have this probability (Holtzman et al. 2020); 1 for all.
    pub top_p: f64,
    /// Same seed, same text.
    pub seed: u64,
}

impl Default for Sampling {
    fn default() -> Self {
        Self { temperature: 0.8, top_k: 0, top_p: 1.0, seed: 0 }
    }
}

impl Sampling {
    /// Chooses from `logits`; `sequence` and `draw` number the choice, so that each has its own random number.
    pub fn choose(&self, logits: &[f32], sequence: usize, draw: u64) -> u32 {
        let likeliest = || (0..logits.len()).fold(0, |best, id| if logits[id] > logits[best] { id } else { best });
        if self.temperature <= 0.0 || self.top_k == 1 {
            return likeliest() as u32;
        }
        let highest = f64::from(logits[likeliest()]);
        let weight = |id: usize| ((f64::from(logits[id]) - highest) / self.temperature).exp();
        let mut candidates: Vec<(usize, f64)> = (0..logits.len()).map(|id| (id, weight(id))).collect();
        // Ties are broken by id, so that the order is the same on every machine.
        let descending = |a: &(usize, f64), b: &(usize, f64)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
        if self.top_k > 0 && self.top_k < candidates.len() {
            candidates.select_nth_unstable_by(self.top_k - 1, descending);
            candidates.truncate(self.top_k);
        }
        if self.top_p < 1.0 {
            candidates.sort_unstable_by(descending);
            let limit = self.top_p * candidates.iter().map(|candidate| candidate.1).sum::<f64>();
            let mut sum = 0.0;
            let enough = candidates.iter().position(|candidate| {
                sum += candidate.1;
                sum >= limit
            });
            candidates.truncate(enough.map_or(candidates.len(), |last| last + 1));
        } else {
            candidates.sort_unstable_by_key(|candidate| candidate.0);
        }
        let total: f64 = candidates.iter().map(|candidate| candidate.1).sum();
        let random = f64::from(uniform(word(stream(self.seed, sequence as u64, 0x7361_6D70), draw)));
        let mut left = random * total;
        for &(id, weight) in &candidates {
            left -= weight;
            if left < 0.0 {
                return id as u32;
            }
        }
        candidates.last().map_or(0, |candidate| candidate.0) as u32
    }
}

/// Decodes a batch of sequences of one model, token by token.
pub struct Generator<'m> {
    model: &'m Gpt,
    device: Arc<Device>,
    caches: Vec<Arc<Cache>>,
    step: Program,
    step_ids: Value,
    step_logits: Value,
    /// All tokens of each sequence, prompt included.
    sequences: Vec<Vec<u32>>,
    /// Tokens of each sequence that are in the cache.
    cached: Vec<usize>,
    /// Logits that follow each sequence.
    logits: Vec<Vec<f32>>,
}

impl<'m> Generator<'m> {
    /// Reads the prompts. A prompt longer than the model's block is read from its last half block on.
    ///
    /// # Panics
    /// An empty prompt: there is nothing that the first token could follow.
    ///
    /// # Errors
    /// A token outside the vocabulary; not enough memory.
    pub fn new(
        device: Arc<Device>,
        model: &'m Gpt,
        parameters: &mut Parameters,
        prompts: &[Vec<u32>],
    ) -> Result<Self, Error> {
        let batch = prompts.len();
        assert!(prompts.iter().all(|prompt| !prompt.is_empty()), "a prompt has at least one token");
        let caches = model.caches(batch, model.config().block)?;
        let (step, step_ids, step_logits) = record(&device, model, parameters, &caches, batch, 1)?;
        let mut generator = Self {
            model,
            device,
            caches,
            step,
            step_ids,
            step_logits,
            sequences: prompts.to_vec(),
            cached: vec![0; batch],
            logits: vec![Vec::new(); batch],
        };
        for sequence in 0..batch {
            generator.read_whole(parameters, sequence)?;
        }
        Ok(generator)
    }

    /// All tokens of a sequence, prompt included.
    pub fn tokens(&self, sequence: usize) -> &[u32] {
        &self.sequences[sequence]
    }

    /// Logits of the token that follows a sequence.
    pub fn logits(&self, sequence: usize) -> &[f32] {
        &self.logits[sequence]
    }

    /// Appends one token to each sequence and computes the logits that follow. A sequence that fills the block goes
    /// on from its last half block, as if nothing had come before.
    ///
    /// # Errors
    /// A token outside the vocabulary; not enough memory.
    pub fn push(&mut self, parameters: &mut Parameters, tokens: &[u32]) -> Result<(), Error> {
        assert_eq!(tokens.len(), self.sequences.len(), "one token for each sequence");
        for (sequence, &token) in tokens.iter().enumerate() {
            self.sequences[sequence].push(token);
        }
        let is_full = |cached: &usize| *cached == self.model.config().block;
        if self.cached.iter().any(is_full) {
            // Rare, once in half a block: every sequence is read anew, which keeps the batch together.
            for sequence in 0..tokens.len() {
                self.read_whole(parameters, sequence)?;
            }
            return Ok(());
        }
        let ids: Vec<i32> = tokens.iter().map(|&token| token as i32).collect();
        self.step.write_ids(self.step_ids, &ids);
        let options = RunOptions { positions: self.cached.clone(), ..RunOptions::default() };
        self.step.run(parameters, &options)?;
        let logits = self.step.read(self.step_logits);
        for (own, logits) in self.logits.iter_mut().zip(logits.chunks(self.model.config().vocabulary)) {
            own.clear();
            own.extend_from_slice(logits);
        }
        self.cached.iter_mut().for_each(|cached| *cached += 1);
        Ok(())
    }

    /// Reads a sequence from the start, or its last half block where it does not fit.
    fn read_whole(&mut self, parameters: &mut Parameters, sequence: usize) -> Result<(), Error> {
        let (tokens, block) = (&self.sequences[sequence], self.model.config().block);
        let start = if tokens.len() <= block { 0 } else { tokens.len() - (block / 2).max(1) };
        let ids: Vec<i32> = tokens[start..].iter().map(|&token| token as i32).collect();
        let (mut program, ids_value, logits_value) =
            record(&self.device, self.model, parameters, &self.caches, 1, ids.len())?;
        program.write_ids(ids_value, &ids);
        let options = RunOptions { positions: vec![0], cache_row: sequence, ..RunOptions::default() };
        program.run(parameters, &options)?;
        self.logits[sequence] = program.read(logits_value).to_vec();
        self.cached[sequence] = ids.len();
        Ok(())
    }
}

/// A program for `time` new tokens of each of `batch` sequences, its ids, and its logits.
fn record(
    device: &Arc<Device>,
    model: &Gpt,
    parameters: &Parameters,
    caches: &[Arc<Cache>],
    batch: usize,
    time: usize,
) -> Result<(Program, Value, Value), Error> {
    let mut tape = Tape::new(Arc::clone(device), parameters, Mode::Inference);
    let ids = tape.input_ids("ids", &[batch, time]);
    let logits = model.record_next(&mut tape, ids, caches)?;
    tape.keep(logits);
    Ok((tape.finish()?, ids, logits))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn greedy_takes_the_first_of_the_largest() {
        let sampling = Sampling { temperature: 0.0, ..Sampling::default() };
        assert_eq!(sampling.choose(&[0.0, 3.0, 3.0, -1.0], 0, 0), 1);
    }

    #[test]
    fn samples_follow_the_probabilities() {
        let sampling = Sampling { temperature: 1.0, seed: 7, ..Sampling::default() };
        let logits = [0.0f32, 1.0, 2.0];
        let mut counts = [0usize; 3];
        for draw in 0..30_000 {
            counts[sampling.choose(&logits, 0, draw) as usize] += 1;
        }
        let total: f64 = logits.iter().map(|&logit| f64::from(logit).exp()).sum();
        for (id, &count) in counts.iter().enumerate() {
            let expected = f64::from(logits[id]).exp() / total;
            assert!((count as f64 / 30_000.0 - expected).abs() < 0.015, "{counts:?}");
        }
    }

    #[test]
    fn top_k_and_top_p_leave_out_the_unlikely() {
        let logits = [0.0f32, 1.0, 2.0, 3.0];
        for draw in 0..2000 {
            let top_k = Sampling { temperature: 1.0, top_k: 2, seed: 3, ..Sampling::default() };
            assert!(top_k.choose(&logits, 0, draw) >= 2);
            // The likeliest has 64 %, so half the mass is that token alone.
            let top_p = Sampling { temperature: 1.0, top_p: 0.5, seed: 3, ..Sampling::default() };
            assert_eq!(top_p.choose(&logits, 0, draw), 3);
        }
    }
}
