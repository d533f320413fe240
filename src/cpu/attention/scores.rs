//! What happens to a tile of scores between two products: masks, bias, exponentials, dropout.
//!
//! Scores are in units of log 2 (the packed keys carry the factor `scale · log2 e`), so that an exponential is
//! a polynomial and an addition to the exponent field ([`exp2`]): 11 instructions a vector, where `exp` needs 26.

use super::tile::{KEY_BLOCK, QUERY_BLOCK, Tile, transpose};
use crate::cpu::simd::Vector;
use crate::cpu::simd::math::{exp2, log};
use crate::ops::{Dropout, philox};
use std::f32::consts::{LN_2, LOG2_E};

/// Stands for minus infinity as the maximum of a row: finite, so that subtracting it makes no NaN.
pub(super) const FLOOR: f32 = f32::MIN;

/// Log-sum-exp of rows from their maximum (in units of log 2) and their sum of exponentials; minus infinity where the
/// sum is zero.
#[inline(always)]
pub(super) fn log_sum_exp<V: Vector>(maximum: V, sum: V) -> V {
    maximum.mul_add(V::splat(LN_2), log(sum))
}

/// Tiles that change the scores, `[key][query]` as the scores themselves.
#[derive(Clone, Copy)]
pub(super) struct Extras {
    /// Added to the scores, in units of log e.
    pub bias: Option<*const f32>,
    /// Added to the scores, in units of log 2: no tile, element `i - j` is that of query `i` and key `j`.
    pub relative: Option<*const f32>,
    /// Factors of the probabilities: 0 or `1 / (1 - p)`.
    pub dropout: Option<*const f32>,
}

/// Running softmax statistics of a block of queries, each of [`QUERY_BLOCK`] values.
#[derive(Clone, Copy)]
pub(super) struct Statistics {
    pub maximum: *mut f32,
    pub sum: *mut f32,
    /// Output: what earlier sums have to be multiplied by.
    pub rescale: *mut f32,
}

/// Turns a tile of scores into probabilities relative to the running maximum, and updates the statistics (online
/// softmax).
///
/// # Safety
/// `scores` and the extras must be tiles; the statistics must be of the tile's block of queries.
#[inline(always)]
pub(super) unsafe fn softmax<V: Vector>(tile: &Tile, scores: *mut f32, extras: Extras, statistics: Statistics) {
    for start in (0..tile.queries).step_by(V::LANES) {
        let (whole, limit) = tile.rows::<V>(start);
        // SAFETY: the caller's contract: rows below `limit` are within the tile.
        unsafe {
            let old = V::load(statistics.maximum.add(start));
            // Two maxima, because one would wait for itself in every row.
            let (mut even, mut odd) = (old, old);
            let mut j = 0;
            while j + 2 <= whole {
                even = even.max(biased_score(scores, extras, j, start));
                odd = odd.max(biased_score(scores, extras, j + 1, start));
                j += 2;
            }
            let mut maximum = even.max(odd);
            while j < limit {
                let score =
                    masked::<V>(tile, j, start, V::splat(f32::NEG_INFINITY), biased_score(scores, extras, j, start));
                score.store(scores.add(j * QUERY_BLOCK + start));
                maximum = maximum.max(score);
                j += 1;
            }
            maximum.store(statistics.maximum.add(start));
            let rescale = exp2(old.sub(maximum));
            rescale.store(statistics.rescale.add(start));
            let mut sum = V::load(statistics.sum.add(start)).mul(rescale);
            for j in 0..limit {
                let at = j * QUERY_BLOCK + start;
                let mut probability = exp2(V::load(scores.add(at)).sub(maximum));
                sum = sum.add(probability);
                if let Some(factors) = extras.dropout {
                    probability = probability.mul(V::load(factors.add(at)));
                }
                probability.store(scores.add(at));
            }
            sum.store(statistics.sum.add(start));
        }
    }
}

/// The score of key `j` for the queries from `start`, with the biases; stored back where there is one.
#[inline(always)]
unsafe fn biased_score<V: Vector>(scores: *mut f32, extras: Extras, j: usize, start: usize) -> V {
    let at = j * QUERY_BLOCK + start;
    // SAFETY: the caller's contract.
    unsafe {
        let mut score = V::load(scores.add(at));
        if extras.bias.is_none() && extras.relative.is_none() {
            return score;
        }
        if let Some(relative) = extras.relative {
            score = score.add(V::load(relative.offset(start as isize - j as isize)));
        }
        if let Some(bias) = extras.bias {
            score = V::load(bias.add(at)).mul_add(V::splat(LOG2_E), score);
        }
        score.store(scores.add(at));
        score
    }
}

/// `value` where query `start + lane` sees key `j`, else `hidden`.
#[inline(always)]
fn masked<V: Vector>(tile: &Tile, j: usize, start: usize, hidden: V, value: V) -> V {
    let lanes = tile.first_query(j).saturating_sub(start).min(V::LANES);
    V::select(V::first_lanes(lanes), hidden, value)
}

/// From scores S and `dP = dO · V` makes the probabilities (with dropout) and `dS = P ⊙ (dP - delta)`, in place.
///
/// `log_sum_exp` is in units of log 2, and plus infinity for rows that see nothing.
///
/// # Safety
/// `scores`, `gradients` and the extras must be tiles; the other two must have [`QUERY_BLOCK`] values.
#[inline(always)]
pub(super) unsafe fn softmax_gradient<V: Vector>(
    tile: &Tile,
    scores: *mut f32,
    gradients: *mut f32,
    extras: Extras,
    log_sum_exp: *const f32,
    delta: *const f32,
) {
    for start in (0..tile.queries).step_by(V::LANES) {
        let (whole, limit) = tile.rows::<V>(start);
        // SAFETY: the caller's contract: rows below `limit` are within the tile.
        unsafe {
            let log_sum_exp = V::load(log_sum_exp.add(start));
            let delta = V::load(delta.add(start));
            for j in 0..limit {
                let at = j * QUERY_BLOCK + start;
                let mut score: V = biased_score(scores, extras, j, start);
                let mut gradient = V::load(gradients.add(at));
                if j >= whole {
                    score = masked(tile, j, start, V::splat(f32::NEG_INFINITY), score);
                    gradient = masked(tile, j, start, V::zero(), gradient);
                }
                let probability = exp2(score.sub(log_sum_exp));
                let mut kept = probability;
                if let Some(factors) = extras.dropout {
                    let factor = V::load(factors.add(at));
                    gradient = gradient.mul(factor);
                    kept = probability.mul(factor);
                }
                kept.store(scores.add(at));
                probability.mul(gradient.sub(delta)).store(gradients.add(at));
            }
        }
    }
}

/// A dropout of probabilities, ready to make masks.
#[derive(Clone, Copy)]
pub(super) struct Mask {
    stream: ([u32; 2], [u32; 2]),
    threshold: u32,
    factor: f32,
}

/// Philox blocks computed side by side; plain loops of this length are what LLVM turns into SIMD.
const SIDE_BY_SIDE: usize = 8;

impl Mask {
    /// The mask of `dropout`, or none if it keeps everything.
    pub fn new(dropout: Dropout) -> Option<Self> {
        (dropout.probability > 0.0).then(|| Self {
            stream: philox::stream(dropout.seed, dropout.step, dropout.site),
            threshold: philox::keep_threshold(dropout.probability),
            factor: 1.0 / (1.0 - dropout.probability),
        })
    }

    /// Writes the factors of the `keys` elements from `first`.
    ///
    /// # Safety
    /// `target` must be valid for writes of `keys` values.
    #[inline(always)]
    unsafe fn row(&self, first: u64, keys: usize, target: *mut f32) {
        let skip = (first & 3) as usize;
        let mut done = 0;
        let mut block = first >> 2;
        let mut position = 0;
        while done < keys {
            let words = self.words(block);
            let from = skip.saturating_sub(position);
            for i in from..(4 * SIDE_BY_SIDE).min(from + keys - done) {
                let word = words[i % 4][i / 4];
                // SAFETY: `done < keys`.
                unsafe { *target.add(done) = if word >= self.threshold { self.factor } else { 0.0 } };
                done += 1;
            }
            block += SIDE_BY_SIDE as u64;
            position += 4 * SIDE_BY_SIDE;
        }
    }

    /// The four words of each of the Philox blocks from `first`, as [`philox::philox`] gives them.
    #[inline(always)]
    fn words(&self, first: u64) -> [[u32; SIDE_BY_SIDE]; 4] {
        let mut counters = [[0u32; SIDE_BY_SIDE]; 4];
        for i in 0..SIDE_BY_SIDE {
            let block = first + i as u64;
            let counter = [block as u32, (block >> 32) as u32, self.stream.1[0], self.stream.1[1]];
            let words = philox::philox(counter, self.stream.0);
            for (lanes, word) in counters.iter_mut().zip(words) {
                lanes[i] = word;
            }
        }
        counters
    }

    /// Fills the tile of factors whose first element has index `first`; consecutive queries are `key_time` apart.
    ///
    /// # Safety
    /// `target` and `rows` must be tiles; `rows` is scratch.
    #[inline(always)]
    pub unsafe fn fill<V: Vector>(&self, tile: &Tile, first: u64, key_time: usize, target: *mut f32, rows: *mut f32) {
        // SAFETY: the caller's contract: at most QUERY_BLOCK x KEY_BLOCK elements.
        unsafe {
            for i in 0..tile.queries {
                self.row(first + (i * key_time) as u64, tile.keys, rows.add(i * KEY_BLOCK));
            }
            transpose::<V>(rows, KEY_BLOCK, tile.queries, tile.keys, target, QUERY_BLOCK);
        }
    }
}
