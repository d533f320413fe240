//! The product with few rows (decoding: one to eight): as many dot products as the weight has rows.
//!
//! Nothing is packed: each weight is used a handful of times, so the time is that of reading the weight once. Four
//! rows of it are read side by side, which keeps four sequential streams going; the input rows stay in L1.

use super::epilogue::{Place, Target, finish};
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
            let mut row = 0;
            while row < shape.rows {
                // SAFETY: rows and columns are inside the operands.
                unsafe {
                    let x = left.elements.as_ptr().add(row * left.stride);
                    let w = right.elements.as_ptr().add((column + done) * right.stride);
                    let out = tile.as_mut_ptr().add(row * COLUMN_STEP + done);
                    let pair = shape.rows - row >= 2;
                    match (pair, group) {
                        (true, GROUP) => dots::<V, 2, GROUP>(shape.depth, x, left.stride, w, right.stride, out),
                        (true, _) => dots::<V, 2, 1>(shape.depth, x, left.stride, w, right.stride, out),
                        (false, GROUP) => dots::<V, 1, GROUP>(shape.depth, x, left.stride, w, right.stride, out),
                        (false, _) => dots::<V, 1, 1>(shape.depth, x, left.stride, w, right.stride, out),
                    }
                    row += if pair { 2 } else { 1 };
                }
            }
            done += group;
        }
        let place = Place { row: 0, column, rows: shape.rows, columns: filled, accumulate, complete: true };
        // SAFETY: the tile holds every row, with room for whole vectors; the columns are ours.
        unsafe { finish::<V>(target, place, tile.as_ptr(), COLUMN_STEP) };
    }
}

/// `out[x][w] = Σ x·w` for `XS` input rows and `WS` weight rows.
#[inline(always)]
unsafe fn dots<V: Vector, const XS: usize, const WS: usize>(
    depth: usize,
    x: *const f32,
    x_stride: usize,
    w: *const f32,
    w_stride: usize,
    out: *mut f32,
) {
    let mut sums = [[V::zero(); WS]; XS];
    // SAFETY: the caller's contract: `XS` and `WS` rows of `depth` elements.
    unsafe {
        let mut p = 0;
        while p < depth {
            let lanes = V::LANES.min(depth - p);
            let mut b = [V::zero(); WS];
            for j in 0..WS {
                let from = w.add(j * w_stride + p);
                b[j] = if lanes == V::LANES { V::load(from) } else { V::load_partial(from, lanes) };
            }
            for i in 0..XS {
                let from = x.add(i * x_stride + p);
                let a = if lanes == V::LANES { V::load(from) } else { V::load_partial(from, lanes) };
                for j in 0..WS {
                    sums[i][j] = a.mul_add(b[j], sums[i][j]);
                }
            }
            p += V::LANES;
        }
        for i in 0..XS {
            for j in 0..WS {
                *out.add(i * COLUMN_STEP + j) = sums[i][j].reduce_add();
            }
        }
    }
}
