//! The product with few rows (decoding: one to eight): as many dot products as the weight has rows.
//!
//! Nothing is packed: each weight is used a handful of times, so the time is that of reading the weight once.
//! - With one or two rows the weight is read strictly in order, one row after the other: the machine fetches a single
//!   stream best. A few kilobytes ahead of it are asked for, past the outer caches where the weight is large. Threads
//!   take long runs of neighbouring tasks (`Pool::run_streams`) for the same reason.
//! - With more, four rows of the weight are read side by side and meet all input rows while they lie in L1. Meanwhile
//!   the next four are asked for: without that, memory idles while the third and later input rows are multiplied
//!   (45 against 65 % of the bandwidth for eight rows).
//!
//! Either way each result is one chain of sums along the row. So a row gives the same bits whatever else is in the
//! batch; a second chain would buy nothing, as the next rows' sums are under way meanwhile.

use super::epilogue::{Place, Target, finish, load};
use super::prefetch::{prefetch_l2, prefetch_once};
use super::{Matrix, Shape};
use crate::cpu::simd::Vector;
use std::ops::Range;

/// Products of at most this many rows come here.
pub const MOST_ROWS: usize = 8;

/// How far ahead of a stream of weights memory is asked for.
const AHEAD_FLOATS: usize = 2048;

/// Weights from this size on (2 MiB) are read past the outer caches: the whole model they belong to is larger than
/// those, and would only push itself out of them from token to token. A small model stays in them.
const LARGE_FLOATS: usize = 512 << 10;

/// Weight rows taken together.
const GROUP: usize = 4;

/// As many tasks as this are made of a large weight.
pub const MOST_TASKS: usize = 128;

/// Floats of the weight that a task reads at least.
pub const TASK_FLOATS: usize = 64 << 10;

/// Columns of the result that are finished together; tasks are multiples of it.
pub const COLUMN_STEP: usize = 16;

/// Computes `columns` of the product, whose right operand is transposed and whose left one is not.
///
/// # Safety
/// No other thread may use these columns of the target; the operands must hold the product's shape.
#[inline(always)]
pub unsafe fn run<V: Vector>(
    shape: Shape,
    left: Matrix<'_>,
    right: Matrix<'_>,
    target: &Target<'_>,
    accumulate: bool,
    columns: Range<usize>,
) {
    let is_large = shape.columns * shape.depth >= LARGE_FLOATS;
    let mut tile = [0.0f32; MOST_ROWS * COLUMN_STEP];
    for column in columns.clone().step_by(COLUMN_STEP) {
        let filled = COLUMN_STEP.min(columns.end - column);
        let mut done = 0;
        while done < filled {
            let w = right.at(0, column + done);
            let out = tile.as_mut_ptr().wrapping_add(done);
            // SAFETY: rows and columns are inside the operands.
            done += unsafe {
                match (shape.rows, is_large, filled - done) {
                    (1, true, _) => in_order::<V, 1, true>(shape.depth, left, w, out),
                    (1, false, _) => in_order::<V, 1, false>(shape.depth, left, w, out),
                    (2, true, _) => in_order::<V, 2, true>(shape.depth, left, w, out),
                    (2, false, _) => in_order::<V, 2, false>(shape.depth, left, w, out),
                    (_, _, GROUP..) => side_by_side::<V, GROUP>(shape, left, w, right.stride, out),
                    (_, _, _) => side_by_side::<V, 1>(shape, left, w, right.stride, out),
                }
            };
        }
        let place = Place { row: 0, column, rows: shape.rows, columns: filled, accumulate, complete: true };
        // SAFETY: the tile holds every row, with room for whole vectors; the columns are ours.
        unsafe { finish::<V>(target, place, tile.as_ptr(), COLUMN_STEP) };
    }
}

/// One weight row times `ROWS` input rows; returns 1.
#[inline(always)]
unsafe fn in_order<V: Vector, const ROWS: usize, const LARGE: bool>(
    depth: usize,
    left: Matrix<'_>,
    w: *const f32,
    out: *mut f32,
) -> usize {
    let mut sums = [V::zero(); ROWS];
    let whole = depth / V::LANES * V::LANES;
    let x: [*const f32; ROWS] = std::array::from_fn(|i| left.at(i, 0));
    // SAFETY: the caller's contract: rows of `depth` elements, and a tile to write to.
    unsafe {
        for p in (0..whole).step_by(V::LANES) {
            let ahead = w.wrapping_add(p + AHEAD_FLOATS);
            if LARGE {
                prefetch_once(ahead)
            } else {
                prefetch_l2(ahead)
            }
            let b = V::load(w.add(p));
            for (sum, x) in sums.iter_mut().zip(x) {
                *sum = V::load(x.add(p)).mul_add(b, *sum);
            }
        }
        if whole < depth {
            let b: V = load(w.add(whole), depth - whole);
            for (sum, x) in sums.iter_mut().zip(x) {
                *sum = load::<V>(x.add(whole), depth - whole).mul_add(b, *sum);
            }
        }
        for (i, sum) in sums.into_iter().enumerate() {
            *out.add(i * COLUMN_STEP) = sum.reduce_add();
        }
    }
    1
}

/// `COLUMNS` weight rows times all input rows, two at a time; returns `COLUMNS`.
#[inline(always)]
unsafe fn side_by_side<V: Vector, const COLUMNS: usize>(
    shape: Shape,
    left: Matrix<'_>,
    w: *const f32,
    w_stride: usize,
    out: *mut f32,
) -> usize {
    let pairs = shape.rows.div_ceil(2);
    for pair in 0..pairs {
        // Each pair of input rows asks for its share of the next weight rows.
        let share = pair * COLUMNS / pairs..(pair + 1) * COLUMNS / pairs;
        let part = Part {
            depth: shape.depth,
            x: left.at(2 * pair, 0),
            x_stride: left.stride,
            w,
            w_stride,
            ahead: w.wrapping_add((COLUMNS + share.start) * w_stride),
            ahead_rows: share.len(),
        };
        // SAFETY: the caller's contract.
        unsafe {
            let out = out.add(2 * pair * COLUMN_STEP);
            if shape.rows - 2 * pair >= 2 {
                dots::<V, 2, COLUMNS>(part, out);
            } else {
                dots::<V, 1, COLUMNS>(part, out);
            }
        }
    }
    COLUMNS
}

/// What [`dots`] multiplies: rows of the input and of the weight.
struct Part {
    depth: usize,
    x: *const f32,
    x_stride: usize,
    w: *const f32,
    w_stride: usize,
    /// Weight rows to ask for meanwhile.
    ahead: *const f32,
    ahead_rows: usize,
}

/// `out[x][w] = Σ x·w` for `XS` input rows and `WS` weight rows.
#[inline(always)]
unsafe fn dots<V: Vector, const XS: usize, const WS: usize>(part: Part, out: *mut f32) {
    let Part { depth, x, x_stride, w, w_stride, ahead, ahead_rows } = part;
    let mut sums = [[V::zero(); WS]; XS];
    // SAFETY: the caller's contract: `XS` and `WS` rows of `depth` elements.
    unsafe {
        let mut p = 0;
        while p < depth {
            let lanes = V::LANES.min(depth - p);
            for row in 0..ahead_rows {
                prefetch_l2(ahead.wrapping_add(row * w_stride + p));
            }
            let mut b = [V::zero(); WS];
            for (j, b) in b.iter_mut().enumerate() {
                *b = load(w.add(j * w_stride + p), lanes);
            }
            for (i, sums) in sums.iter_mut().enumerate() {
                let a: V = load(x.add(i * x_stride + p), lanes);
                for (sum, b) in sums.iter_mut().zip(b) {
                    *sum = a.mul_add(b, *sum);
                }
            }
            p += V::LANES;
        }
        for (i, sums) in sums.into_iter().enumerate() {
            for (j, sum) in sums.into_iter().enumerate() {
                *out.add(i * COLUMN_STEP + j) = sum.reduce_add();
            }
        }
    }
}
