//! Which windows of a token stream make up the next batch.
//!
//! A window is `block + 1` tokens: `block` inputs, and the same shifted by one as targets. All three orders are pure
//! functions of the settings and of one counter, the number of windows drawn so far. So the state is a few numbers,
//! needs no memory however large the data, and goes on exactly where it was, across epochs and shards:
//! - `sequential`: window `n` of an epoch starts at `n · block`; what is left at the end is less than a window and is
//!   skipped, so no window mixes the end of the data with its start;
//! - `random`: window `n` starts anywhere, by Philox of (seed, n);
//! - `shuffled`: the windows of `sequential`, each exactly once per epoch, in the order of a random permutation of
//!   (seed, epoch), and shifted as a whole by a random part of what is left at the end.

use super::dataset::Dataset;
use super::error::{Error, Result};
use super::permutation::Permutation;
use crate::ops::philox::philox;
use serde::{Deserialize, Serialize};

/// Marks the random words of this use, so that no other use of the same seed draws the same ones.
const DOMAIN: u32 = 0x7769_6E64;

/// The order in which windows are drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Order {
    /// One after the other.
    Sequential,
    /// Anywhere, with replacement.
    Random,
    /// Each window once per epoch, in a new random order each time.
    Shuffled,
}

/// Where a sampler is; enough to go on exactly from there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SamplerState {
    /// The order.
    pub order: Order,
    /// Number of tokens of the data.
    pub length: usize,
    /// Tokens of a window.
    pub block: usize,
    /// Key of the random orders.
    pub seed: u64,
    /// Windows drawn since the start of the run.
    pub drawn: u64,
}

/// Draws `(B, T)` batches of windows.
#[derive(Clone, Debug)]
pub struct Sampler {
    order: Order,
    length: usize,
    batch: usize,
    block: usize,
    seed: u64,
    drawn: u64,
}

impl Sampler {
    /// A sampler at the start of a stream of `length` tokens, for batches of `batch` windows of `block` tokens.
    ///
    /// # Errors
    /// The stream is shorter than one window, or batch or block is zero.
    pub fn new(length: usize, order: Order, batch: usize, block: usize, seed: u64) -> Result<Self> {
        if batch == 0 || block == 0 {
            let what = format!("batch {batch} and block {block} must be at least 1");
            return Err(Error::Argument(what));
        }
        if length <= block {
            return Err(Error::TooShort { tokens: length, block });
        }
        Ok(Self { order, length, batch, block, seed, drawn: 0 })
    }

    /// Windows of an epoch: as many as fit side by side.
    pub fn windows_per_epoch(&self) -> usize {
        (self.length - 1) / self.block
    }

    /// Whole epochs drawn so far.
    pub fn epoch(&self) -> u64 {
        self.drawn / self.windows_per_epoch() as u64
    }

    /// Position in the stream at which the next window starts.
    pub fn position(&self) -> usize {
        self.start(self.drawn)
    }

    /// Fills the next batch: `ids` and `targets` are `(B, T)`, targets one token ahead.
    ///
    /// # Errors
    /// `dataset` is not the one that the sampler was made for, or a buffer has another size.
    pub fn next_batch(&mut self, dataset: &Dataset, ids: &mut [i32], targets: &mut [i32]) -> Result<()> {
        if dataset.len() != self.length {
            let what = format!("the sampler was made for {} tokens, the data has {}", self.length, dataset.len());
            return Err(Error::Argument(what));
        }
        let size = self.batch * self.block;
        if ids.len() != size || targets.len() != size {
            let what = format!("a batch has {size} tokens, but ids {} and targets {}", ids.len(), targets.len());
            return Err(Error::Argument(what));
        }
        for (ids, targets) in ids.chunks_exact_mut(self.block).zip(targets.chunks_exact_mut(self.block)) {
            let start = self.start(self.drawn);
            dataset.read(start, &mut ids[..1]);
            dataset.read(start + 1, targets);
            ids[1..].copy_from_slice(&targets[..self.block - 1]);
            self.drawn += 1;
        }
        Ok(())
    }

    /// Where the sampler is.
    pub fn state(&self) -> SamplerState {
        let Self { order, length, block, seed, drawn, .. } = *self;
        SamplerState { order, length, block, seed, drawn }
    }

    /// Goes on from a saved state. The batch size may differ: the state counts windows.
    ///
    /// # Errors
    /// The state is of other data or other settings; the sampler stays as it was.
    pub fn restore(&mut self, state: &SamplerState) -> Result<()> {
        let same = |what, saved: String, current: String| {
            if saved == current { Ok(()) } else { Err(Error::Resume { what, saved, current }) }
        };
        same("the number of tokens", state.length.to_string(), self.length.to_string())?;
        same("the block size", state.block.to_string(), self.block.to_string())?;
        same("the order of windows", format!("{:?}", state.order), format!("{:?}", self.order))?;
        same("the seed", state.seed.to_string(), self.seed.to_string())?;
        self.drawn = state.drawn;
        Ok(())
    }

    /// Position at which window `draw` of the run starts.
    fn start(&self, draw: u64) -> usize {
        let windows = self.windows_per_epoch() as u64;
        let (epoch, index) = (draw / windows, draw % windows);
        match self.order {
            Order::Sequential => index as usize * self.block,
            Order::Random => self.below(draw, 0, self.length - self.block),
            Order::Shuffled => {
                let spare = (self.length - 1) % self.block;
                let shift = self.below(epoch, 1, spare + 1);
                shift + Permutation::new(windows, self.seed, epoch).apply(index) as usize * self.block
            }
        }
    }

    /// A random number below `bound`. By multiplication of a 64-bit word: its bias is below `bound / 2^64`.
    fn below(&self, number: u64, purpose: u32, bound: usize) -> usize {
        let counter = [number as u32, (number >> 32) as u32, purpose, DOMAIN];
        let words = philox(counter, [self.seed as u32, (self.seed >> 32) as u32]);
        let random = u64::from(words[0]) << 32 | u64::from(words[1]);
        ((u128::from(random) * bound as u128) >> 64) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::super::shard::Shard;
    use super::*;

    const ORDERS: [Order; 3] = [Order::Sequential, Order::Random, Order::Shuffled];

    /// Tokens equal to their positions, in shards of uneven sizes.
    fn positions(length: usize) -> Dataset {
        let tokens: Vec<u32> = (0..length as u32).collect();
        let cuts = [0, length / 5, length / 5 + 1, length / 2, length];
        Dataset::from_shards(cuts.windows(2).map(|cut| Shard::from_tokens(tokens[cut[0]..cut[1]].to_vec())).collect())
    }

    fn batches(sampler: &mut Sampler, dataset: &Dataset, count: usize) -> Vec<(Vec<i32>, Vec<i32>)> {
        let size = sampler.batch * sampler.block;
        (0..count)
            .map(|_| {
                let (mut ids, mut targets) = (vec![-1; size], vec![-1; size]);
                sampler.next_batch(dataset, &mut ids, &mut targets).unwrap();
                (ids, targets)
            })
            .collect()
    }

    #[test]
    fn windows_are_consecutive_tokens_and_targets_are_one_ahead() {
        let dataset = positions(103);
        for order in ORDERS {
            let mut sampler = Sampler::new(103, order, 3, 8, 1).unwrap();
            for (ids, targets) in batches(&mut sampler, &dataset, 40) {
                for (ids, targets) in ids.chunks(8).zip(targets.chunks(8)) {
                    assert!(ids.windows(2).all(|pair| pair[1] == pair[0] + 1), "{order:?}: {ids:?}");
                    assert!(ids.iter().zip(targets).all(|(id, target)| *target == id + 1), "{order:?}");
                    assert!(ids[0] >= 0 && targets[7] < 103);
                }
            }
        }
    }

    #[test]
    fn resuming_gives_the_batches_of_a_straight_run_across_epochs_and_shards() {
        let dataset = positions(103);
        for order in ORDERS {
            let mut straight = Sampler::new(103, order, 5, 7, 42).unwrap();
            let expected = batches(&mut straight, &dataset, 30);
            assert!(straight.epoch() >= 10);
            for stop in 0..30 {
                let mut first = Sampler::new(103, order, 5, 7, 42).unwrap();
                batches(&mut first, &dataset, stop);
                let saved = serde_json::to_string(&first.state()).unwrap();
                let mut second = Sampler::new(103, order, 5, 7, 42).unwrap();
                second.restore(&serde_json::from_str(&saved).unwrap()).unwrap();
                assert_eq!(batches(&mut second, &dataset, 30 - stop), expected[stop..], "{order:?} stopped at {stop}");
            }
        }
    }

    #[test]
    fn sequential_windows_follow_each_other_and_start_again_without_mixing() {
        let dataset = positions(23);
        let mut sampler = Sampler::new(23, Order::Sequential, 1, 5, 0).unwrap();
        assert_eq!(sampler.windows_per_epoch(), 4);
        let starts: Vec<i32> = batches(&mut sampler, &dataset, 9).iter().map(|(ids, _)| ids[0]).collect();
        assert_eq!(starts, [0, 5, 10, 15, 0, 5, 10, 15, 0]);
        assert_eq!((sampler.epoch(), sampler.position()), (2, 5));
    }

    #[test]
    fn shuffled_visits_each_window_exactly_once_per_epoch_in_a_new_order() {
        for (length, block) in [(103, 8), (1000, 3), (17, 8), (9, 8), (1001, 10)] {
            let dataset = positions(length);
            let mut sampler = Sampler::new(length, Order::Shuffled, 1, block, 7).unwrap();
            let windows = sampler.windows_per_epoch();
            let mut orders = Vec::new();
            for epoch in 0..4 {
                assert_eq!(sampler.epoch(), epoch);
                let starts: Vec<usize> =
                    batches(&mut sampler, &dataset, windows).iter().map(|(ids, _)| ids[0] as usize).collect();
                let mut sorted = starts.clone();
                sorted.sort();
                let expected: Vec<usize> = (0..windows).map(|window| sorted[0] + window * block).collect();
                assert_eq!(sorted, expected, "length {length}, block {block}");
                orders.push(starts);
            }
            if windows > 10 {
                assert!(orders.windows(2).all(|pair| pair[0] != pair[1]));
            }
        }
    }

    #[test]
    fn random_windows_reach_every_position_evenly() {
        let dataset = positions(21);
        let mut sampler = Sampler::new(21, Order::Random, 10, 5, 3).unwrap();
        let mut counts = [0usize; 16];
        for (ids, _) in batches(&mut sampler, &dataset, 1600) {
            ids.chunks(5).for_each(|window| counts[window[0] as usize] += 1);
        }
        // Expected 1000, standard deviation 31: six of them.
        assert!(counts.iter().all(|&count| (810..1190).contains(&count)), "{counts:?}");
    }

    #[test]
    fn seeds_make_different_runs() {
        let dataset = positions(5000);
        for order in [Order::Random, Order::Shuffled] {
            let run = |seed| batches(&mut Sampler::new(5000, order, 4, 8, seed).unwrap(), &dataset, 3);
            assert_eq!(run(1), run(1));
            assert_ne!(run(1), run(2));
        }
    }

    #[test]
    fn data_shorter_than_a_window_is_refused_with_both_figures() {
        let message = Sampler::new(8, Order::Random, 1, 8, 0).unwrap_err().to_string();
        assert!(message.contains("holds 8 tokens, but a block of 8 needs at least 9"), "{message}");
        assert!(Sampler::new(9, Order::Random, 1, 8, 0).is_ok());
        assert!(Sampler::new(9, Order::Random, 0, 8, 0).is_err());
    }

    #[test]
    fn a_state_of_other_data_or_settings_is_refused() {
        let mut sampler = Sampler::new(100, Order::Shuffled, 2, 8, 1).unwrap();
        let state = sampler.state();
        for (changed, expected) in [
            (SamplerState { length: 99, ..state.clone() }, "the number of tokens was 99 and is now 100"),
            (SamplerState { block: 4, ..state.clone() }, "the block size was 4 and is now 8"),
            (SamplerState { order: Order::Random, ..state.clone() }, "the order of windows was Random"),
            (SamplerState { seed: 2, ..state.clone() }, "the seed was 2 and is now 1"),
        ] {
            let message = sampler.restore(&changed).unwrap_err().to_string();
            assert!(message.contains(expected), "{message}");
        }
        let other = positions(99);
        assert!(sampler.next_batch(&other, &mut [0; 16], &mut [0; 16]).is_err());
        assert!(sampler.next_batch(&positions(100), &mut [0; 16], &mut [0; 15]).is_err());
        assert_eq!(sampler.state(), state);
    }
}
