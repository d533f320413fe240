//! Packing: parts of the operands copied into the order in which the micro-kernel reads them.
//!
//! A panel of the right operand holds, for every step `p`, [`micro::columns`] neighbouring columns; a panel of the
//! left one, [`micro::rows`] neighbouring rows. What is missing at the edges is zero. A weight `(out, in)` read as the
//! transposed right operand goes through `LANES x LANES` transposes in registers.

use super::prefetch::{prefetch_l1, prefetch_l2};
use super::{Matrix, micro};
use crate::cpu::simd::Vector;
use std::ops::Range;

/// Floats between panels of the left operand beyond what they hold. Panels are stored in whole vectors, whose ends need
/// the room; and without it panels would lie a power of two apart, in the same sets of L1.
const GAP: usize = 16;

/// Distance between panels of the left operand.
#[inline(always)]
pub fn left_panel<V: Vector>(depth: usize) -> usize {
    depth * micro::rows::<V>() + GAP
}

/// Floats that [`left`] needs for `rows` rows and `depth` steps.
#[inline(always)]
pub fn left_floats<V: Vector>(rows: usize, depth: usize) -> usize {
    left_panel::<V>(depth) * rows.div_ceil(micro::rows::<V>())
}

/// Packs steps `depth` and columns `columns`, at most a panel's, of the right operand.
#[inline(always)]
pub fn right<V: Vector>(matrix: Matrix<'_>, depth: Range<usize>, columns: Range<usize>, panel: &mut [f32]) {
    let width = micro::columns::<V>();
    assert!(columns.len() <= width && panel.len() >= depth.len() * width);
    matrix.check(depth.end, columns.end);
    if depth.is_empty() || columns.is_empty() {
        return;
    }
    let (source, target) = (matrix.at(depth.start, columns.start), panel.as_mut_ptr());
    // The two vectors of a row.
    let (first, second) = (columns.len().min(V::LANES), columns.len().saturating_sub(V::LANES));
    // SAFETY: `check` says that the matrix holds all of the steps and columns, the assertion that `panel` has room.
    unsafe {
        if matrix.transposed {
            right_transposed::<V>(source, matrix.stride, depth.len(), first, target);
            if second > 0 {
                let source = source.add(V::LANES * matrix.stride);
                right_transposed::<V>(source, matrix.stride, depth.len(), second, target.add(V::LANES));
            }
        } else if second == V::LANES {
            for p in 0..depth.len() {
                let (source, target) = (source.add(p * matrix.stride), target.add(p * width));
                V::load(source).store(target);
                V::load(source.add(V::LANES)).store(target.add(V::LANES));
            }
        } else {
            for p in 0..depth.len() {
                let (source, target) = (source.add(p * matrix.stride), target.add(p * width));
                V::load_partial(source, first).store(target);
                V::load_partial(source.add(first), second).store(target.add(V::LANES));
            }
        }
    }
}

/// Packs one vector of columns, which are rows of the matrix. Where a panel has no second vector, that half of it stays
/// as it is: the micro-kernel does not read it.
#[inline(always)]
unsafe fn right_transposed<V: Vector>(
    source: *const f32,
    stride: usize,
    depth: usize,
    columns: usize,
    panel: *mut f32,
) {
    let width = micro::columns::<V>();
    for p in (0..depth).step_by(V::LANES) {
        let steps = V::LANES.min(depth - p);
        // SAFETY: the caller's contract: `columns` rows of `depth` elements, and a panel of `depth` steps.
        unsafe {
            if steps == V::LANES && columns == V::LANES {
                V::transpose(source.add(p), stride, panel.add(p * width), width);
            } else {
                transpose_edge::<V>(source.add(p), stride, columns, steps, panel.add(p * width), width);
            }
        }
    }
}

/// A rectangle of a matrix that will be packed next, fetched into L2 a few lines at a time while the micro-kernel
/// works: its rows lie far apart, so the machine does not see the pattern by itself.
pub struct Ahead {
    stride: usize,
    rows: usize,
    /// Lines per call.
    share: usize,
    /// First row of the line that is next in each row.
    column: *const f32,
    columns_left: usize,
    next: *const f32,
    rows_left: usize,
}

/// Floats of a cache line.
const LINE: usize = 16;

impl Ahead {
    /// Steps `depth` and columns `columns` of `matrix`, in `calls` calls of [`Ahead::fetch`].
    #[inline(always)]
    pub fn new(matrix: Matrix<'_>, depth: Range<usize>, columns: Range<usize>, calls: usize) -> Self {
        let (rows, length) =
            if matrix.transposed { (columns.len(), depth.len()) } else { (depth.len(), columns.len()) };
        let lines_per_row = length.div_ceil(LINE);
        let start = matrix.at(depth.start, columns.start);
        Self {
            stride: matrix.stride,
            rows,
            share: (rows * lines_per_row).div_ceil(calls.max(1)),
            column: start,
            columns_left: lines_per_row,
            next: start,
            rows_left: rows,
        }
    }

    /// Asks for the next lines: down the rows first, which is the order in which transposes read.
    #[inline(always)]
    pub fn fetch(&mut self) {
        for _ in 0..self.share {
            if self.rows_left == 0 {
                self.columns_left = self.columns_left.saturating_sub(1);
                if self.columns_left == 0 {
                    return;
                }
                self.column = self.column.wrapping_add(LINE);
                (self.next, self.rows_left) = (self.column, self.rows);
            }
            prefetch_l2(self.next);
            self.next = self.next.wrapping_add(self.stride);
            self.rows_left -= 1;
        }
    }
}

/// Transposes `rows x columns` elements, at most `LANES` each way; missing columns of the result are zero.
#[inline(always)]
unsafe fn transpose_edge<V: Vector>(
    source: *const f32,
    source_stride: usize,
    rows: usize,
    columns: usize,
    target: *mut f32,
    target_stride: usize,
) {
    let (mut before, mut after) = ([0.0f32; 256], [0.0f32; 256]);
    // SAFETY: `source` is readable for rows x columns, `target` writable for `columns` rows of LANES.
    unsafe {
        for row in 0..rows {
            V::load_partial(source.add(row * source_stride), columns).store(before.as_mut_ptr().add(row * V::LANES));
        }
        V::transpose(before.as_ptr(), V::LANES, after.as_mut_ptr(), V::LANES);
        for column in 0..columns {
            V::load(after.as_ptr().add(column * V::LANES)).store(target.add(column * target_stride));
        }
    }
}

/// Steps of the left operand copied together, panel after panel. A whole panel at a time would touch a page of the
/// matrix per step, and come back to the same pages for the next panel; one step at a time would write single lines.
const STEPS: usize = 8;

/// Steps between what is copied and what is fetched.
const AHEAD: usize = 2 * STEPS;

/// Packs rows `rows` and steps `depth` of a transposed left operand into panels. Where `sums` is given, adds each
/// row's sum over these steps to it, which is the bias gradient: the operand passes through registers anyway.
#[inline(always)]
pub fn left<V: Vector>(
    matrix: Matrix<'_>,
    rows: Range<usize>,
    depth: Range<usize>,
    packed: &mut [f32],
    mut sums: Option<&mut [f32]>,
) {
    assert!(matrix.transposed && packed.len() >= left_floats::<V>(rows.len(), depth.len()));
    matrix.check(rows.end, depth.end);
    let height = micro::rows::<V>();
    for start in (0..depth.len()).step_by(STEPS) {
        let steps = start..depth.len().min(start + STEPS);
        for row in (0..rows.len()).step_by(height) {
            let filled = height.min(rows.len() - row);
            // SAFETY: `check` says that the matrix holds the rows and steps; `packed` has room for the panels. Vectors
            // reach beyond their step, into the next one, which is stored later, or into the gap.
            let sum = unsafe {
                let source = matrix.elements.as_ptr().add(depth.start * matrix.stride + rows.start + row);
                let target = packed.as_mut_ptr().add(row / height * left_panel::<V>(depth.len()));
                let mut sum = V::zero();
                for p in steps.clone() {
                    let value = V::load_partial(source.add(p * matrix.stride), filled);
                    prefetch_l1(source.wrapping_add((p + AHEAD) * matrix.stride));
                    sum = sum.add(value);
                    value.store(target.add(p * height));
                }
                sum
            };
            if let Some(sums) = sums.as_deref_mut() {
                let part = &mut sums[row..row + filled];
                // SAFETY: `part` has `filled` elements.
                unsafe { V::load_partial(part.as_ptr(), filled).add(sum).store_partial(part.as_mut_ptr(), filled) };
            }
        }
    }
}
