//! The product with few rows (decoding: one to eight): as many dot products as the weight has rows.
//!
//! Nothing is packed: each weight is used a handful of times, so the time is that of reading the weight once. Four
//! rows of it are read side by side and meet all input rows while they lie in L1. Meanwhile the next four rows are
//! asked for: without that, memory would idle while the second and later input rows are multiplied.

use super::epilogue::{Place, Target, finish, load};
use super::prefetch::prefetch_l2;
use super::{Matrix, Shape};
use crate::cpu::simd::Vector;
use std::ops::Range;

/// Products of at most this many rows come here.
pub const MOST_ROWS: usize = 8;

/// Weight rows taken together.
const GROUP: usize = 4;

/// Columns that a call of [`columns`] starts at must be a multiple of this.
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
    let mut tile = [0.0f32; MOST_ROWS * COLUMN_STEP];
    for column in columns.clone().step_by(COLUMN_STEP) {
        let filled = COLUMN_STEP.min(columns.end - column);
        let mut done = 0;
        while done < filled {
            let group = if filled - done >= GROUP { GROUP } else { 1 };
            let pairs = shape.rows.div_ceil(2);
            for pair in 0..pairs {
                let row = 2 * pair;
                // SAFETY: rows and columns are inside the operands.
                unsafe {
                    // Each pair of input rows asks for its share of the next group. A single pair leaves that to the
                    // machine, which sees the streams by itself (asking cost it 5 to 10 % of the bandwidth).
                    let share = if pairs == 1 { 0..0 } else { pair * GROUP / pairs..(pair + 1) * GROUP / pairs };
                    let w = right.at(0, column + done);
                    let part = Part {
                        depth: shape.depth,
                        x: left.at(row, 0),
                        x_stride: left.stride,
                        w,
                        w_stride: right.stride,
                        ahead: w.wrapping_add((GROUP + share.start) * right.stride),
                        ahead_rows: share.len(),
                    };
                    let out = tile.as_mut_ptr().add(row * COLUMN_STEP + done);
                    match (shape.rows - row, group) {
                        (2.., GROUP) => dots::<V, 2, GROUP>(part, out),
                        (2.., _) => dots::<V, 2, 1>(part, out),
                        (_, GROUP) => dots::<V, 1, GROUP>(part, out),
                        (_, _) => dots::<V, 1, 1>(part, out),
                    }
                }
            }
            done += group;
        }
        let place = Place { row: 0, column, rows: shape.rows, columns: filled, accumulate, complete: true };
        // SAFETY: the tile holds every row, with room for whole vectors; the columns are ours.
        unsafe { finish::<V>(target, place, tile.as_ptr(), COLUMN_STEP) };
    }
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
