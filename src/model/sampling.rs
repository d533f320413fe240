//! Choosing the next token: temperature, top-k and top-p (Holtzman et al. 2020, nucleus sampling), or the likeliest.
//!
//! Which tokens remain is decided by selection, never by sorting the vocabulary: top-k is one selection over the
//! logits; top-p halves the candidates, by selection again, towards the half in which the cut lies, which costs two
//! passes in all. The draw then walks the tokens that remain in the order of their ids, and its random number depends
//! on (seed, sequence, number of the draw) alone: same seed, same text, whatever else is decoded at the same time.
//!
//! Exponentials of a whole vocabulary are SIMD, and they are summed block by block: the draw first finds its block,
//! then its token in there. In f64 and token by token this was a thirtieth of the time of a token of GPT-2 124M.

use crate::cpu::Level;
use crate::cpu::simd::{Kernel, Vector, math};
use crate::ops::philox::{philox, stream};
use std::cmp::Ordering;

/// How the next token is chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// Divides the logits; 0 always takes the likeliest token.
    pub temperature: f64,
    /// Only the `k` likeliest tokens; 0 for all.
    pub top_k: usize,
    /// Only the likeliest tokens that together have this probability; 1 for all.
    pub top_p: f64,
    /// Same seed, same text.
    pub seed: u64,
}

impl Default for Sampling {
    fn default() -> Self {
        Self { temperature: 0.8, top_k: 0, top_p: 1.0, seed: 0 }
    }
}

/// Separates these random numbers from those of dropout.
const SITE: u32 = 0x7361_6D70;

/// A token that may be chosen; `weight` is its logit at first, then its probability without the common factor.
#[derive(Clone, Copy)]
struct Candidate<W> {
    weight: W,
    id: u32,
}

impl Sampling {
    /// Chooses from `logits`; `sequence` and `draw` number the choice, so that each has its own random number.
    ///
    /// Logits that are not finite are never chosen over finite ones by mistake, but the choice is then meaningless:
    /// callers check for them.
    pub fn choose(&self, logits: &[f32], sequence: usize, draw: u64) -> u32 {
        // A wrong ENGINE_SIMD has stopped the program long before; the lowest level would do for anybody else.
        let level = Level::detect().unwrap_or(Level::Portable);
        let highest = level.run(Highest { logits });
        if self.temperature <= 0.0 || self.top_k == 1 || logits.len() < 2 {
            // The first of the largest.
            return logits.iter().position(|&logit| logit == highest).unwrap_or(0) as u32;
        }
        let factor = (1.0 / self.temperature).min(f64::from(f32::MAX)) as f32;
        let random = uniform(stream(self.seed, sequence as u64, SITE), draw);
        let kept = (self.top_k > 0 && self.top_k < logits.len()).then(|| most_likely(logits, self.top_k));
        let kept_logits: Option<Vec<f32>> = kept.as_ref().map(|kept| kept.iter().map(|c| c.weight).collect());
        let weights = Weights::new(level, kept_logits.as_deref().unwrap_or(logits), highest, factor);
        let id_of = |place: usize| kept.as_ref().map_or(place as u32, |kept| kept[place].id);
        if self.top_p < 1.0 {
            let mut candidates: Vec<Candidate<f64>> = weights
                .each
                .iter()
                .enumerate()
                .map(|(place, &weight)| Candidate { weight: f64::from(weight), id: id_of(place) })
                .collect();
            keep_nucleus(&mut candidates, self.top_p);
            return pick(&candidates, random);
        }
        id_of(weights.pick(random))
    }
}

/// `ln Σ e^logit`: what is taken from a logit to get its token's log-probability.
pub fn log_sum_exp(logits: &[f32]) -> f64 {
    let level = Level::detect().unwrap_or(Level::Portable);
    let highest = level.run(Highest { logits });
    let weights = Weights::new(level, logits, highest, 1.0);
    f64::from(highest) + weights.sums.iter().map(|&sum| f64::from(sum)).sum::<f64>().ln()
}

/// Tokens whose weights are summed together: sixteen vectors or more, few enough to walk through.
const BLOCK: usize = 256;

/// Probabilities without the common factor: the likeliest token has 1.
struct Weights {
    each: Vec<f32>,
    /// Of each [`BLOCK`].
    sums: Vec<f32>,
}

impl Weights {
    /// `e^((logit - highest) · factor)` of each logit.
    fn new(level: Level, logits: &[f32], highest: f32, factor: f32) -> Self {
        let mut each = vec![0.0; logits.len()];
        let mut sums = vec![0.0; logits.len().div_ceil(BLOCK)];
        level.run(Exponentials { logits, highest, factor, each: &mut each, sums: &mut sums });
        Self { each, sums }
    }

    /// Place of the token in whose share of the total weight `random`, from `[0, 1)`, falls.
    fn pick(&self, random: f64) -> usize {
        let total: f64 = self.sums.iter().map(|&sum| f64::from(sum)).sum();
        let mut left = random * total;
        let mut block = 0;
        while block + 1 < self.sums.len() && left >= f64::from(self.sums[block]) {
            left -= f64::from(self.sums[block]);
            block += 1;
        }
        let start = block * BLOCK;
        let weights = &self.each[start..self.each.len().min(start + BLOCK)];
        for (place, &weight) in weights.iter().enumerate() {
            left -= f64::from(weight);
            if left < 0.0 {
                return start + place;
            }
        }
        // Rounding left a rest: the last token that has any weight.
        self.each[..start + weights.len()].iter().rposition(|&weight| weight > 0.0).unwrap_or(0)
    }
}

/// The largest of the logits; NaN is passed over.
struct Highest<'a> {
    logits: &'a [f32],
}

impl Kernel for Highest<'_> {
    type Output = f32;

    #[inline(always)]
    fn run<V: Vector>(self) -> f32 {
        // Four chains, because one would wait for itself.
        let mut highest = [V::splat(f32::NEG_INFINITY); 4];
        let chunks = self.logits.chunks_exact(4 * V::LANES);
        let rest = chunks.remainder();
        for chunk in chunks {
            for (i, highest) in highest.iter_mut().enumerate() {
                // SAFETY: the chunk has four vectors.
                *highest = unsafe { V::load(chunk.as_ptr().add(i * V::LANES)) }.max(*highest);
            }
        }
        let [a, b, c, d] = highest;
        let highest = a.max(b).max(c.max(d)).reduce_max();
        rest.iter().fold(highest, |highest, &logit| if logit > highest { logit } else { highest })
    }
}

struct Exponentials<'a> {
    logits: &'a [f32],
    highest: f32,
    factor: f32,
    each: &'a mut [f32],
    sums: &'a mut [f32],
}

impl Kernel for Exponentials<'_> {
    type Output = ();

    #[inline(always)]
    fn run<V: Vector>(self) {
        let (highest, factor) = (V::splat(self.highest), V::splat(self.factor));
        let blocks = self.logits.chunks(BLOCK).zip(self.each.chunks_mut(BLOCK));
        for ((logits, each), sum) in blocks.zip(self.sums) {
            let mut total = V::zero();
            for i in (0..logits.len()).step_by(V::LANES) {
                let count = V::LANES.min(logits.len() - i);
                // SAFETY: `count` values from `i` on are inside both slices, which are equally long.
                unsafe {
                    let logit = V::load_up_to(logits.as_ptr().add(i), count);
                    let weight = math::exp_nonpositive(logit.sub(highest).mul(factor));
                    weight.store_up_to(each.as_mut_ptr().add(i), count);
                    total = total.add(V::select(V::first_lanes(count), weight, V::zero()));
                }
            }
            *sum = total.reduce_add();
        }
    }
}

/// Likelier first; equal ones by id, so that the cut is the same on every machine.
fn descending(a: f64, a_id: u32, b: f64, b_id: u32) -> Ordering {
    b.total_cmp(&a).then(a_id.cmp(&b_id))
}

/// The `count` likeliest tokens, by rising id.
fn most_likely(logits: &[f32], count: usize) -> Vec<Candidate<f32>> {
    let mut all: Vec<Candidate<f32>> =
        logits.iter().zip(0..).map(|(&logit, id)| Candidate { weight: logit, id }).collect();
    all.select_nth_unstable_by(count - 1, |a, b| b.weight.total_cmp(&a.weight).then(a.id.cmp(&b.id)));
    all.truncate(count);
    all.sort_unstable_by_key(|candidate| candidate.id);
    all
}

/// Keeps the fewest, likeliest candidates whose weights make up the fraction `top_p` of all weight. Their order is
/// left as it was.
fn keep_nucleus(candidates: &mut Vec<Candidate<f64>>, top_p: f64) {
    let total: f64 = candidates.iter().map(|candidate| candidate.weight).sum();
    // Whatever weighs less than this is outside: all such candidates together weigh less than what may be cut off.
    // That leaves a few hundred of a vocabulary of fifty thousand where a model is sure of itself.
    let least = (1.0 - top_p) * total / candidates.len() as f64;
    let mut open: Vec<Candidate<f64>> = candidates.iter().copied().filter(|c| c.weight >= least).collect();
    let mut open = open.as_mut_slice();
    // The last candidate inside lies in `open`; all that are likelier weigh too little by `missing`.
    let mut missing = top_p * total;
    while open.len() > 1 {
        let middle = open.len() / 2;
        open.select_nth_unstable_by(middle, |a, b| descending(a.weight, a.id, b.weight, b.id));
        let upper: f64 = open[..middle].iter().map(|candidate| candidate.weight).sum();
        if upper >= missing {
            open = &mut open[..middle];
        } else {
            missing -= upper;
            open = &mut open[middle..];
        }
    }
    if let Some(&Candidate { weight, id }) = open.first() {
        candidates.retain(|other| descending(other.weight, other.id, weight, id) != Ordering::Greater);
    }
}

/// The candidate in whose share of the total weight `random`, from `[0, 1)`, falls.
fn pick(candidates: &[Candidate<f64>], random: f64) -> u32 {
    let total: f64 = candidates.iter().map(|candidate| candidate.weight).sum();
    let mut left = random * total;
    for candidate in candidates {
        left -= candidate.weight;
        if left < 0.0 {
            return candidate.id;
        }
    }
    // Rounding left a rest.
    candidates.last().map_or(0, |candidate| candidate.id)
}

/// A uniform number in `[0, 1)` with 53 bits: 24 would not reach a token of probability 1e-8.
fn uniform((key, upper): ([u32; 2], [u32; 2]), draw: u64) -> f64 {
    let words = philox([draw as u32, (draw >> 32) as u32, upper[0], upper[1]], key);
    let bits = (u64::from(words[0]) << 32 | u64::from(words[1])) >> 11;
    bits as f64 * (1.0 / (1u64 << 53) as f64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::Random;

    fn hot(sampling: Sampling) -> Sampling {
        Sampling { temperature: 1.0, ..sampling }
    }

    #[test]
    fn greedy_takes_the_first_of_the_largest() {
        let sampling = Sampling { temperature: 0.0, ..Sampling::default() };
        assert_eq!(sampling.choose(&[0.0, 3.0, 3.0, -1.0], 0, 0), 1);
        let one = hot(Sampling { top_k: 1, ..Sampling::default() });
        assert_eq!(one.choose(&[0.0, 3.0, 3.0, -1.0], 0, 0), 1);
    }

    #[test]
    fn samples_follow_the_probabilities() {
        let sampling = hot(Sampling { seed: 7, ..Sampling::default() });
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
    fn a_large_vocabulary_is_drawn_from_by_its_probabilities() {
        // More than one block, the last not full, with all weight on a few tokens.
        let mut logits = vec![-200.0f32; 3 * BLOCK + 7];
        let likely = [(0usize, 0.25f64), (255, 0.125), (256, 0.125), (600, 0.25), (3 * BLOCK + 6, 0.25)];
        for (id, probability) in likely {
            logits[id] = probability.ln() as f32;
        }
        let sampling = hot(Sampling { seed: 5, ..Sampling::default() });
        let mut counts = vec![0usize; logits.len()];
        for draw in 0..20_000 {
            counts[sampling.choose(&logits, 0, draw) as usize] += 1;
        }
        for (id, probability) in likely {
            assert!((counts[id] as f64 / 20_000.0 - probability).abs() < 0.015, "token {id}: {}", counts[id]);
        }
        assert_eq!(likely.iter().map(|&(id, _)| counts[id]).sum::<usize>(), 20_000);
    }

    #[test]
    fn a_draw_at_either_end_finds_a_token_that_has_weight() {
        let mut logits = vec![f32::NEG_INFINITY; 2 * BLOCK + 3];
        (logits[3], logits[BLOCK + 1]) = (0.0, 0.0);
        for level in Level::available() {
            let weights = Weights::new(level, &logits, 0.0, 1.0);
            assert_eq!(weights.pick(0.0), 3, "{level:?}");
            assert_eq!(weights.pick(0.499), 3, "{level:?}");
            assert_eq!(weights.pick(0.501), BLOCK + 1, "{level:?}");
            assert_eq!(weights.pick(1.0), BLOCK + 1, "{level:?}");
        }
    }

    #[test]
    fn sequences_and_seeds_draw_different_numbers() {
        let logits = [0.0f32; 64];
        let drawn = |seed, sequence| -> Vec<u32> {
            let sampling = hot(Sampling { seed, ..Sampling::default() });
            (0..32).map(|draw| sampling.choose(&logits, sequence, draw)).collect()
        };
        assert_eq!(drawn(1, 0), drawn(1, 0));
        assert_ne!(drawn(1, 0), drawn(1, 1));
        assert_ne!(drawn(1, 0), drawn(2, 0));
    }

    #[test]
    fn top_k_and_top_p_leave_out_the_unlikely() {
        let logits = [0.0f32, 1.0, 2.0, 3.0];
        for draw in 0..2000 {
            let top_k = hot(Sampling { top_k: 2, seed: 3, ..Sampling::default() });
            assert!(top_k.choose(&logits, 0, draw) >= 2);
            // The likeliest has 64 %, so half the mass is that token alone.
            let top_p = hot(Sampling { top_p: 0.5, seed: 3, ..Sampling::default() });
            assert_eq!(top_p.choose(&logits, 0, draw), 3);
        }
    }

    /// The plain definition: sort, add up, cut.
    fn sorted_nucleus(weights: &[f64], top_p: f64) -> Vec<u32> {
        let mut order: Vec<u32> = (0..weights.len() as u32).collect();
        order.sort_by(|&a, &b| descending(weights[a as usize], a, weights[b as usize], b));
        let limit = top_p * weights.iter().sum::<f64>();
        let mut sum = 0.0;
        let last = order.iter().position(|&id| {
            sum += weights[id as usize];
            sum >= limit
        });
        order.truncate(last.map_or(order.len(), |last| last + 1));
        order.sort_unstable();
        order
    }

    #[test]
    fn the_nucleus_is_that_of_a_sorted_list_ties_included() {
        let mut random = Random::fresh();
        for length in [1, 2, 3, 17, 200, 1023] {
            for top_p in [0.001, 0.3, 0.77, 0.999_999] {
                // Whole numbers, so that sums are exact in any order and there are many ties.
                let weights: Vec<f64> = (0..length).map(|_| random.below(9) as f64).collect();
                if weights.iter().sum::<f64>() == 0.0 {
                    continue;
                }
                let mut candidates: Vec<Candidate<f64>> =
                    weights.iter().zip(0..).map(|(&weight, id)| Candidate { weight, id }).collect();
                keep_nucleus(&mut candidates, top_p);
                let kept: Vec<u32> = candidates.iter().map(|candidate| candidate.id).collect();
                assert_eq!(kept, sorted_nucleus(&weights, top_p), "{length} weights, top-p {top_p}");
            }
        }
    }

    #[test]
    fn top_k_keeps_the_first_of_equal_logits() {
        let logits = [1.0f32, 5.0, 5.0, 5.0, 0.0];
        let kept: Vec<u32> = most_likely(&logits, 2).iter().map(|candidate| candidate.id).collect();
        assert_eq!(kept, [1, 2]);
    }

    #[test]
    fn logits_that_are_not_finite_do_not_panic() {
        for logits in
            [[f32::NAN; 5], [f32::NEG_INFINITY; 5], [f32::INFINITY; 5], [0.0, f32::NAN, 1.0, f32::INFINITY, 2.0]]
        {
            for (top_k, top_p) in [(0, 1.0), (3, 1.0), (0, 0.5), (3, 0.5)] {
                let sampling = hot(Sampling { top_k, top_p, ..Sampling::default() });
                assert!(sampling.choose(&logits, 0, 0) < 5);
            }
        }
    }
}
