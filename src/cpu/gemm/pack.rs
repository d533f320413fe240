//! Packing: parts of the operands copied into the order in which the micro-kernel reads them.
//!
//! A panel of the right operand holds, for every step `p`, [`micro::columns`] neighbouring columns; a panel of the
//! left one, [`micro::rows`] neighbouring rows. What is missing at the edges is zero. A weight `(out, in)` read as the
//! transposed right operand goes through `LANES x LANES` transposes in registers.

use super::{Matrix, micro};
use crate::cpu::simd::Vector;
use std::ops::Range;

/// Floats between panels beyond what they hold: a cache line. Without it, panels would lie a power of two apart, in the
/// same sets of L1. The left operand's panels are stored in whole vectors, whose ends need the room.
const GAP: usize = 16;

/// Distance between panels of the right operand.
#[inline(always)]
pub fn right_panel<V: Vector>(depth: usize) -> usize {
    depth * micro::columns::<V>() + GAP
}

/// Distance between panels of the left operand.
#[inline(always)]
pub fn left_panel<V: Vector>(depth: usize) -> usize {
    depth * micro::rows::<V>() + GAP
}

/// Floats that [`right`] needs for `depth` steps and `columns` columns.
#[inline(always)]
pub fn right_floats<V: Vector>(depth: usize, columns: usize) -> usize {
    right_panel::<V>(depth) * columns.div_ceil(micro::columns::<V>())
}

/// Floats that [`left`] needs for `rows` rows and `depth` steps.
#[inline(always)]
pub fn left_floats<V: Vector>(rows: usize, depth: usize) -> usize {
    left_panel::<V>(depth) * rows.div_ceil(micro::rows::<V>())
}

/// Asks for the cache line at `pointer`, which need not be a valid address.
#[inline(always)]
fn prefetch(pointer: *const f32) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: prefetching is a hint that never faults, and part of SSE, which every x86-64 has.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(pointer.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = pointer;
}

/// Packs steps `depth` and columns `columns` of the right operand into panels.
#[inline(always)]
pub fn right<V: Vector>(matrix: Matrix<'_>, depth: Range<usize>, columns: Range<usize>, packed: &mut [f32]) {
    assert!(packed.len() >= right_floats::<V>(depth.len(), columns.len()));
    matrix.check(depth.end, columns.end);
    if depth.is_empty() || columns.is_empty() {
        return;
    }
    // SAFETY: `check` says that the matrix holds all of the steps and columns, the assertion that `packed` has room.
    unsafe {
        if matrix.transposed {
            right_transposed::<V>(matrix, depth, columns, packed.as_mut_ptr());
        } else {
            right_straight::<V>(matrix, depth, columns, packed.as_mut_ptr());
        }
    }
}

/// Steps copied together, panel after panel. A whole panel at a time would touch a page of the matrix per step, and
/// come back to the same pages for the next panel; one step at a time would write single lines.
const STEPS: usize = 8;

/// Steps between what is copied and what is fetched: rows of the matrix lie far apart, so the machine does not see the
/// pattern by itself.
const AHEAD: usize = 2 * STEPS;

#[inline(always)]
unsafe fn right_straight<V: Vector>(matrix: Matrix<'_>, depth: Range<usize>, columns: Range<usize>, packed: *mut f32) {
    let width = micro::columns::<V>();
    for start in (0..depth.len()).step_by(STEPS) {
        let steps = start..depth.len().min(start + STEPS);
        for column in (0..columns.len()).step_by(width) {
            let filled = width.min(columns.len() - column);
            let (first, second) = (filled.min(V::LANES), filled.saturating_sub(V::LANES));
            // SAFETY: the caller's contract.
            unsafe {
                for p in steps.clone() {
                    let source =
                        matrix.elements.as_ptr().add((depth.start + p) * matrix.stride + columns.start + column);
                    let target = packed.add(column / width * right_panel::<V>(depth.len()) + p * width);
                    prefetch(source.wrapping_add(AHEAD * matrix.stride));
                    prefetch(source.wrapping_add(AHEAD * matrix.stride + width / 2));
                    if filled == width {
                        V::load(source).store(target);
                        V::load(source.add(V::LANES)).store(target.add(V::LANES));
                    } else {
                        V::load_partial(source, first).store(target);
                        V::load_partial(source.add(first), second).store(target.add(V::LANES));
                    }
                }
            }
        }
    }
}

#[inline(always)]
unsafe fn right_transposed<V: Vector>(
    matrix: Matrix<'_>,
    depth: Range<usize>,
    columns: Range<usize>,
    packed: *mut f32,
) {
    let width = micro::columns::<V>();
    let panel_floats = right_panel::<V>(depth.len());
    // SAFETY: the caller's contract.
    unsafe {
        for (group, column) in columns.clone().step_by(V::LANES).enumerate() {
            let target = packed.add(group / 2 * panel_floats + group % 2 * V::LANES);
            let source = matrix.elements.as_ptr().add(column * matrix.stride + depth.start);
            let filled = V::LANES.min(columns.end - column);
            for p in (0..depth.len()).step_by(V::LANES) {
                let steps = V::LANES.min(depth.len() - p);
                let (source, target) = (source.add(p), target.add(p * width));
                // The same steps of the next columns.
                for i in 0..V::LANES {
                    prefetch(source.wrapping_add((V::LANES + i) * matrix.stride));
                }
                if steps == V::LANES && filled == V::LANES {
                    V::transpose(source, matrix.stride, target, width);
                } else {
                    transpose_edge::<V>(source, matrix.stride, filled, steps, target, width);
                }
            }
        }
        // The second half of the last panel, where no column reaches it.
        let groups = columns.len().div_ceil(V::LANES);
        if groups % 2 == 1 {
            let target = packed.add(groups / 2 * panel_floats + V::LANES);
            for p in 0..depth.len() {
                V::zero().store(target.add(p * width));
            }
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
                    prefetch(source.wrapping_add((p + AHEAD) * matrix.stride));
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
