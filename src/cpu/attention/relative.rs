//! The bias that depends on the distance of key and query alone: how tiles read it, and its gradient, which is the sum of
//! a tile of gradients of scores along its diagonals.
//!
//! In a tile `S[key][query]` the queries run along the lanes and the distance `j - p` falls as they rise. So every head's
//! row of the table is turned round once a call (and put in units of log 2): a vector of biases is then one load, and
//! the next key's lies one element before it. The gradient is collected in the same direction: lane by lane a vector of
//! sums is a run of diagonals, and each key adds one vector, shifted by one. No element is moved between lanes.

use super::tile::{QUERY_BLOCK, Tile};
use super::{Problem, Sequence};
use crate::cpu::scratch;
use crate::cpu::simd::Vector;
use crate::ops::attention::{Mask, RelativeBias};
use std::f32::consts::LOG2_E;

/// What vectors may touch behind the last element of a row; the most lanes that there are.
const SLACK: usize = 16;

/// The table, and what is made of it for tiles.
#[derive(Clone, Copy)]
pub(super) struct Relative<'a> {
    table: &'a [f32],
    radius: usize,
    queries_are_last: bool,
    /// Rows of [`reversed_row`] elements; empty before [`with_reversed`].
    reversed: &'a [f32],
}

/// Elements of a reversed row.
fn reversed_row(radius: usize) -> usize {
    (2 * radius - 1 + SLACK).next_multiple_of(16)
}

impl<'a> Relative<'a> {
    pub fn new(bias: RelativeBias<'a>) -> Self {
        let RelativeBias { table, radius, queries_are_last } = bias;
        Self { table: table.host(), radius, queries_are_last, reversed: &[] }
    }

    /// Where query 0 stands among the keys.
    fn origin(&self, mask: Mask, sequence: &Sequence) -> isize {
        let before = |end: usize| end as isize - sequence.queries as isize;
        match mask {
            _ if self.queries_are_last => before(sequence.length),
            Mask::Causal => before(sequence.keys),
            Mask::Full => 0,
        }
    }

    /// The biases of query `i` of head `h` for the keys from `j` on, which it must see.
    pub fn row(&self, mask: Mask, sequence: &Sequence, [h, i, j]: [usize; 3]) -> &'a [f32] {
        let first = j as isize - (i as isize + self.origin(mask, sequence)) + self.radius as isize - 1;
        &self.table[h * (2 * self.radius - 1)..][..2 * self.radius - 1][first as usize..]
    }

    /// The bias of query `i` and key `j` of head `h`, in units of log 2; that of the next query lies one element behind
    /// it, that of the next key one before it.
    #[inline(always)]
    pub fn tile(&self, mask: Mask, sequence: &Sequence, [h, i, j]: [usize; 3]) -> *const f32 {
        let at = i as isize + self.origin(mask, sequence) - j as isize + self.radius as isize - 1;
        self.reversed.as_ptr().wrapping_add(h * reversed_row(self.radius)).wrapping_offset(at)
    }
}

/// Calls `body` with a problem whose relative bias, if it has one, can be read by tiles.
pub(super) fn with_reversed<R>(problem: &Problem<'_>, body: impl FnOnce(&Problem<'_>) -> R) -> R {
    let Some(relative) = problem.relative else { return body(problem) };
    let Relative { table, radius, .. } = relative;
    let row = reversed_row(radius);
    scratch::with(problem.shape.heads * row, |reversed| {
        for (source, target) in table.chunks_exact(2 * radius - 1).zip(reversed.chunks_exact_mut(row)) {
            let (values, slack) = target.split_at_mut(2 * radius - 1);
            values.iter_mut().zip(source.iter().rev()).for_each(|(target, source)| *target = LOG2_E * source);
            slack.fill(0.0);
        }
        let relative = Some(Relative { reversed, ..relative });
        body(&Problem { relative, ..*problem })
    })
}

/// Elements of a row of sums along the diagonals of a sequence: that of query `i` and key `j` is `i - j + keys - 1`.
pub(super) fn diagonals(sequence: &Sequence) -> usize {
    (sequence.queries + sequence.keys + SLACK).next_multiple_of(16)
}

/// `target[i - j] += Σ gradients[j][i]` over all pairs of the tile in which the query sees the key.
///
/// # Safety
/// `gradients` must be a tile with a vector's length of readable memory on both sides, `target` valid for all distances
/// of the tile and [`SLACK`] more.
#[inline(always)]
pub(super) unsafe fn add_diagonals<V: Vector>(tile: &Tile, gradients: *const f32, target: *mut f32) {
    let (queries, keys, lanes) = (tile.queries as isize, tile.keys as isize, V::LANES as isize);
    // A mask hides whole diagonals.
    let mut first = (1 - keys).max(1 - tile.diagonal);
    while first < queries {
        // Lane `l` of key `j` is query `first + l + j`. The keys in the middle have one for every lane.
        let start = (1 - lanes - first).max(0);
        let end = keys.min(queries - first);
        let whole_start = (-first).max(0).min(end);
        let whole_end = end.min(queries - lanes - first + 1).max(whole_start);
        // SAFETY: the caller's contract: rows `start..end` are the tile's, and no load begins a vector before it.
        unsafe {
            let row = |j: isize| V::load(gradients.offset(j * QUERY_BLOCK as isize + first + j));
            let rim = |j: isize| {
                let query = first + j;
                let hidden = V::first_lanes((-query).clamp(0, lanes) as usize);
                let inside = V::first_lanes((queries - query).clamp(0, lanes) as usize);
                V::select(hidden, V::zero(), V::select(inside, row(j), V::zero()))
            };
            // Two sums, because one would wait for itself at every key.
            let (mut even, mut odd) = (V::zero(), V::zero());
            for j in start..whole_start {
                even = even.add(rim(j));
            }
            let mut j = whole_start;
            while j + 2 <= whole_end {
                even = even.add(row(j));
                odd = odd.add(row(j + 1));
                j += 2;
            }
            while j < whole_end {
                even = even.add(row(j));
                j += 1;
            }
            for j in whole_end..end {
                odd = odd.add(rim(j));
            }
            let target = target.offset(first);
            V::load(target).add(even.add(odd)).store(target);
        }
        first += lanes;
    }
}

/// Adds sums along a sequence's diagonals to one head's row of the table's gradient.
pub(super) fn add_to_table(problem: &Problem<'_>, sequence: &Sequence, sums: &[f32], gradient: &mut [f32]) {
    let Some(relative) = problem.relative else { return };
    // The element of the table that belongs to the first sum; from there on backwards.
    let last = relative.radius as isize + sequence.keys as isize - 2 - relative.origin(problem.shape.mask, sequence);
    let count = (sequence.queries + sequence.keys).saturating_sub(1);
    let skipped = (last + 1 - gradient.len() as isize).max(0);
    let Ok(end) = usize::try_from(last + 1 - skipped) else { return };
    let sums = sums[..count].iter().skip(skipped as usize);
    gradient[..end].iter_mut().rev().zip(sums).for_each(|(target, sum)| *target += sum);
}
