//! The micro-kernel: a small tile of the product, with all of its sums in registers.
//!
//! ```text
//!   for p in 0..depth:                       per step, AVX-512 (12 x 32):  2 loads of the right operand,
//!     b = right[p][0..VECTORS]                                            12 broadcasts of the left one,
//!     for i in 0..ROWS:                                                   24 multiply-adds = 12 cycles
//!       sums[i] += broadcast(left[i][p]) * b
//! ```
//!
//! The right operand is a packed panel (`depth` rows of [`columns`] values), the left one is either a packed panel
//! or, where its rows are contiguous along `p`, the caller's matrix itself: a broadcast reads a single element, so
//! packing would change nothing but the number of pages touched.

use crate::cpu::simd::Vector;

/// Rows of a full tile: with its two vectors of columns it takes 24 of 32 registers (AVX-512), or 12 of 16 (AVX2).
#[inline(always)]
pub const fn rows<V: Vector>() -> usize {
    match V::REGISTERS {
        32.. => 12,
        16.. => 6,
        _ => 2,
    }
}

/// Columns of a full tile, which is the width of a packed panel of the right operand.
#[inline(always)]
pub const fn columns<V: Vector>() -> usize {
    2 * V::LANES
}

/// Floats that hold a tile of any level.
pub const TILE_FLOATS: usize = 12 * 32;

/// A tile's result, aligned so that no vector of it crosses a cache line.
#[repr(align(64))]
pub struct Tile(pub [f32; TILE_FLOATS]);

/// Where a tile reads its operands.
#[derive(Clone, Copy)]
pub struct Operands {
    /// Element (0, 0) of the left operand.
    pub left: *const f32,
    /// Distance between rows of the left operand; not used where it is packed.
    pub left_stride: usize,
    /// The panel of the right operand.
    pub right: *const f32,
    /// Number of steps.
    pub depth: usize,
}

/// Computes `tile_rows <= rows()` rows of a tile into `tile` (rows of [`columns`] values); only the first vector of
/// each row is computed where `narrow`. `PACKED` says that the left operand is a packed panel.
///
/// # Safety
/// `operands` must be readable for `tile_rows` rows, `columns()` columns and `depth` steps.
#[inline(always)]
pub unsafe fn multiply<V: Vector, const PACKED: bool>(
    operands: Operands,
    tile_rows: usize,
    narrow: bool,
    tile: &mut Tile,
) {
    let mut row = 0;
    // Rows that do not fill a tile are taken in pieces of 8, 4, 2 and 1.
    while row < tile_rows {
        let left = tile_rows - row;
        // SAFETY: rows row .. row + piece are among the `tile_rows` that the caller vouches for.
        unsafe {
            let part = Operands { left: operands.left.add(row * left_row_stride::<PACKED>(&operands)), ..operands };
            let out = tile.0.as_mut_ptr().add(row * columns::<V>());
            row += match V::REGISTERS {
                32.. if left >= 12 => piece::<V, 12, PACKED>(part, narrow, out),
                32.. if left >= 8 => piece::<V, 8, PACKED>(part, narrow, out),
                16..32 if left >= 6 => piece::<V, 6, PACKED>(part, narrow, out),
                16.. if left >= 4 => piece::<V, 4, PACKED>(part, narrow, out),
                _ if left >= 2 => piece::<V, 2, PACKED>(part, narrow, out),
                _ => piece::<V, 1, PACKED>(part, narrow, out),
            };
        }
    }
}

#[inline(always)]
fn left_row_stride<const PACKED: bool>(operands: &Operands) -> usize {
    if PACKED { 1 } else { operands.left_stride }
}

/// Computes `ROWS` rows and returns `ROWS`.
#[inline(always)]
unsafe fn piece<V: Vector, const ROWS: usize, const PACKED: bool>(
    operands: Operands,
    narrow: bool,
    tile: *mut f32,
) -> usize {
    // SAFETY: the caller's contract.
    unsafe {
        if narrow {
            sums::<V, ROWS, 1, PACKED>(operands, tile);
        } else {
            sums::<V, ROWS, 2, PACKED>(operands, tile);
        }
    }
    ROWS
}

#[inline(always)]
unsafe fn sums<V: Vector, const ROWS: usize, const VECTORS: usize, const PACKED: bool>(
    operands: Operands,
    tile: *mut f32,
) {
    let Operands { mut left, mut right, depth, .. } = operands;
    let row_stride = left_row_stride::<PACKED>(&operands);
    let step = if PACKED { rows::<V>() } else { 1 };
    let mut sums = [[V::zero(); VECTORS]; ROWS];
    // SAFETY: reads stay within the operands' rows, columns and steps, writes within the tile.
    unsafe {
        // Four steps at a time make the loop's own cost vanish. Not for rows in place: there LLVM gathers the loads of
        // each row's four steps, runs out of registers, and loses a third of the speed (450 -> 300 GFLOP/s).
        let unrolled = if PACKED { depth / 4 } else { 0 };
        for _ in 0..unrolled {
            for p in 0..4 {
                add_step(left.add(p * step), row_stride, right.add(p * columns::<V>()), &mut sums);
            }
            left = left.add(4 * step);
            right = right.add(4 * columns::<V>());
        }
        for _ in 4 * unrolled..depth {
            add_step(left, row_stride, right, &mut sums);
            left = left.add(step);
            right = right.add(columns::<V>());
        }
        for (i, row) in sums.iter().enumerate() {
            for (v, sum) in row.iter().enumerate() {
                sum.store(tile.add(i * columns::<V>() + v * V::LANES));
            }
        }
    }
}

/// `sums[i] += left[i] · right`
#[inline(always)]
unsafe fn add_step<V: Vector, const ROWS: usize, const VECTORS: usize>(
    left: *const f32,
    row_stride: usize,
    right: *const f32,
    sums: &mut [[V; VECTORS]; ROWS],
) {
    // SAFETY: the caller's: one element of each row, and the vectors.
    unsafe {
        let mut b = [V::zero(); VECTORS];
        for (v, b) in b.iter_mut().enumerate() {
            *b = V::load(right.add(v * V::LANES));
        }
        for (i, row) in sums.iter_mut().enumerate() {
            let a = V::splat(*left.add(i * row_stride));
            for (sum, b) in row.iter_mut().zip(b) {
                *sum = a.mul_add(b, *sum);
            }
        }
    }
}
