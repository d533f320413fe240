//! The small matrix product that attention is made of, and the geometry of one tile of scores.
//!
//! Scores are kept as `S[key][query]`, queries along the SIMD lanes. With that one choice every product of the forward
//! and the backward pass has the same form, `C[i][·] += A(i, k) · B[k][·]`: rows of `B` are loaded as vectors, single
//! elements of `A` are broadcast, and `C` stays in registers over the whole sum:
//!
//! ```text
//!   S[key][query]    = K[key][d]           · Qᵀ[d][query]        dP likewise, of V and dOᵀ
//!   O[query][d]     += P(query, key)       · V[key][d]           dQ likewise, of dS and K
//!   dV[key][d]      += P[key][query]       · dO[query][d]        dK likewise, of dS and Q
//! ```
//!
//! A broadcast does not care about the direction of its matrix, so `P(query, key)` is read from the same tile, and the
//! only transposes of the whole algorithm are those of `Q` and `dO`, once for each block of queries. Maxima and sums
//! of the softmax run down the lanes: no horizontal operation either.
//!
//! Tiles on the causal diagonal do about half of the work: each block of rows knows the range of its sum that is not
//! masked, and leaves out the rest.

use crate::cpu::simd::Vector;
use crate::ops::Write;
use std::ops::Range;

/// Queries of a tile. 64 queries x 64 keys of scores are 16 KiB; with head size 64 each operand is as large.
pub(super) const QUERY_BLOCK: usize = 64;
/// Keys of a tile.
pub(super) const KEY_BLOCK: usize = 64;

/// Rows that the product keeps in registers at once: with two vectors in each, 16 accumulators of AVX-512's 32
/// registers or 12 of AVX2's 16. Enough to hide the latency of the multiply-add (4 cycles, two units).
#[inline(always)]
pub(super) const fn row_block<V: Vector>() -> usize {
    match V::REGISTERS {
        32.. => 8,
        16.. => 6,
        _ => 2,
    }
}

/// A tile of scores: up to [`QUERY_BLOCK`] queries x [`KEY_BLOCK`] keys, and which of them are masked.
#[derive(Clone, Copy)]
pub(super) struct Tile {
    pub queries: usize,
    pub keys: usize,
    /// Query `i` of the tile sees the first `diagonal + i` keys of the tile. May be negative or beyond the keys.
    pub diagonal: isize,
}

impl Tile {
    /// Number of the tile's keys that query `i` sees.
    #[inline(always)]
    pub fn seen(&self, i: usize) -> usize {
        (self.diagonal + i as isize).clamp(0, self.keys as isize) as usize
    }

    /// First query of the tile that sees key `j`; may be past the last query.
    #[inline(always)]
    pub fn first_query(&self, j: usize) -> usize {
        (j as isize + 1 - self.diagonal).max(0) as usize
    }

    /// For the vector of queries that starts at query `start`: how many keys all its lanes see, and how many rows of
    /// the tile the products may read from it (which must therefore hold a masked value, not leftovers).
    #[inline(always)]
    pub fn rows<V: Vector>(&self, start: usize) -> (usize, usize) {
        // A block of rows reads as far as its last query sees, and may begin in this vector and end in the next.
        (self.seen(start), self.seen(start + V::LANES + row_block::<V>()))
    }
}

/// What a product does with the previous contents of its result.
#[derive(Clone, Copy)]
pub(super) enum Start {
    Zero,
    Keep,
    /// Multiplies row `i` by the `i`-th value first.
    Scale(*const f32),
}

/// Operands of [`product`]; strides are in elements.
#[derive(Clone, Copy)]
pub(super) struct Operands {
    pub a: *const f32,
    pub a_stride: usize,
    pub b: *const f32,
    pub b_stride: usize,
    pub c: *mut f32,
    pub c_stride: usize,
    pub start: Start,
}

/// `C[i][j] (+)= Σ_k A(i, k) · B[k][j]` for `i` in `0..rows`, `j` in `0..vectors * LANES`.
///
/// `A(i, k)` is `a[i * a_stride + k]`, or `a[k * a_stride + i]` if `TRANSPOSED`. For the block of `n` rows from `i`, the
/// sum runs over `depth(i, n)`, and vectors of `C` before `first_vector(i)` are left as they are.
///
/// # Safety
/// The operands must be valid for all of that.
#[inline(always)]
pub(super) unsafe fn product<V: Vector, const TRANSPOSED: bool>(
    operands: &Operands,
    rows: usize,
    vectors: usize,
    first_vector: impl Fn(usize) -> usize,
    depth: impl Fn(usize, usize) -> Range<usize>,
) {
    // Columns outermost: the two vectors' worth of B stay in the first-level cache while the rows of A stream by.
    for pair in (0..vectors).step_by(2) {
        let end = vectors.min(pair + 2);
        let mut row = 0;
        while row < rows {
            let left = rows - row;
            let vector = pair.max(first_vector(row));
            // SAFETY: the caller's contract, for a part of the result.
            row += unsafe {
                if V::REGISTERS >= 32 && left >= 8 {
                    block::<V, 8, TRANSPOSED>(operands, row, vector, end, depth(row, 8))
                } else if V::REGISTERS == 16 && left >= 6 {
                    block::<V, 6, TRANSPOSED>(operands, row, vector, end, depth(row, 6))
                } else if V::REGISTERS >= 16 && left >= 4 {
                    block::<V, 4, TRANSPOSED>(operands, row, vector, end, depth(row, 4))
                } else if left >= 2 {
                    block::<V, 2, TRANSPOSED>(operands, row, vector, end, depth(row, 2))
                } else {
                    block::<V, 1, TRANSPOSED>(operands, row, vector, end, depth(row, 1))
                }
            };
        }
    }
}

/// `ROWS` rows of a product, for vectors `vector..end` (none, one or two); returns `ROWS`.
#[inline(always)]
unsafe fn block<V: Vector, const ROWS: usize, const TRANSPOSED: bool>(
    operands: &Operands,
    row: usize,
    vector: usize,
    end: usize,
    depth: Range<usize>,
) -> usize {
    // SAFETY: the caller's contract.
    unsafe {
        match end.saturating_sub(vector) {
            0 => {}
            1 => registers::<V, ROWS, 1, TRANSPOSED>(operands, row, vector, depth),
            _ => registers::<V, ROWS, 2, TRANSPOSED>(operands, row, vector, depth),
        }
    }
    ROWS
}

/// The innermost loop: `ROWS x VECTORS` accumulators in registers.
#[inline(always)]
unsafe fn registers<V: Vector, const ROWS: usize, const VECTORS: usize, const TRANSPOSED: bool>(
    operands: &Operands,
    row: usize,
    vector: usize,
    depth: Range<usize>,
) {
    let &Operands { a, a_stride, b, b_stride, c, c_stride, start } = operands;
    // SAFETY: the caller's contract; every access is to A(row.., depth), B[depth][vector..] or C[row..][vector..].
    unsafe {
        let c = c.add(row * c_stride + vector * V::LANES);
        let mut sums = [[V::zero(); VECTORS]; ROWS];
        match start {
            Start::Zero => {}
            Start::Keep => {
                for (i, sums) in sums.iter_mut().enumerate() {
                    for (j, sum) in sums.iter_mut().enumerate() {
                        *sum = V::load(c.add(i * c_stride + j * V::LANES));
                    }
                }
            }
            Start::Scale(factors) => {
                for (i, sums) in sums.iter_mut().enumerate() {
                    let factor = V::splat(*factors.add(row + i));
                    for (j, sum) in sums.iter_mut().enumerate() {
                        *sum = factor.mul(V::load(c.add(i * c_stride + j * V::LANES)));
                    }
                }
            }
        }
        let (a_row, a_depth) = if TRANSPOSED { (1, a_stride) } else { (a_stride, 1) };
        let mut a = a.add(row * a_row + depth.start * a_depth);
        let mut b = b.add(depth.start * b_stride + vector * V::LANES);
        for _ in depth {
            let mut vectors = [V::zero(); VECTORS];
            for (j, vector) in vectors.iter_mut().enumerate() {
                *vector = V::load(b.add(j * V::LANES));
            }
            for (i, sums) in sums.iter_mut().enumerate() {
                let factor = V::splat(*a.add(i * a_row));
                for (sum, &vector) in sums.iter_mut().zip(&vectors) {
                    *sum = factor.mul_add(vector, *sum);
                }
            }
            a = a.add(a_depth);
            b = b.add(b_stride);
        }
        for (i, sums) in sums.iter().enumerate() {
            for (j, sum) in sums.iter().enumerate() {
                sum.store(c.add(i * c_stride + j * V::LANES));
            }
        }
    }
}

/// Copies `rows` rows of `columns` values, multiplied by `factor`, to rows `target_stride` apart, which must leave room
/// for whole vectors; what lies between a row's last value and its last vector's end becomes zero.
///
/// # Safety
/// `source` must be valid for reads of that shape, `target` for writes.
#[inline(always)]
pub(super) unsafe fn pack<V: Vector>(
    source: *const f32,
    source_stride: usize,
    [rows, columns]: [usize; 2],
    factor: f32,
    target: *mut f32,
    target_stride: usize,
) {
    let factor = V::splat(factor);
    let whole = columns - columns % V::LANES;
    for row in 0..rows {
        // SAFETY: the caller's contract.
        unsafe {
            let (source, target) = (source.add(row * source_stride), target.add(row * target_stride));
            for column in (0..whole).step_by(V::LANES) {
                V::load(source.add(column)).mul(factor).store(target.add(column));
            }
            if whole < columns {
                V::load_partial(source.add(whole), columns - whole).mul(factor).store(target.add(whole));
            }
        }
    }
}

/// The inverse of [`pack`]: writes `factor` times rows of whole vectors to rows of `columns` values, or adds it.
///
/// # Safety
/// `source` must be valid for reads, `target` for reads and writes of that shape.
#[inline(always)]
pub(super) unsafe fn unpack<V: Vector>(
    source: *const f32,
    source_stride: usize,
    [rows, columns]: [usize; 2],
    factor: f32,
    write: Write,
    target: *mut f32,
    target_stride: usize,
) {
    let factor = V::splat(factor);
    let whole = columns - columns % V::LANES;
    for row in 0..rows {
        // SAFETY: the caller's contract.
        unsafe {
            let (source, target) = (source.add(row * source_stride), target.add(row * target_stride));
            for column in (0..whole).step_by(V::LANES) {
                let to = target.add(column);
                let previous = if write == Write::Add { V::load(to) } else { V::zero() };
                V::load(source.add(column)).mul_add(factor, previous).store(to);
            }
            if whole < columns {
                let (to, lanes) = (target.add(whole), columns - whole);
                let previous = if write == Write::Add { V::load_partial(to, lanes) } else { V::zero() };
                V::load(source.add(whole)).mul_add(factor, previous).store_partial(to, lanes);
            }
        }
    }
}

/// Asks for rows of `columns` values to be brought into the cache while something else is computed. Rows of one head
/// lie whole projections apart, which is too far for the processor to guess.
#[inline(always)]
pub(super) fn prefetch(source: *const f32, stride: usize, [rows, columns]: [usize; 2]) {
    const LINE: usize = 16;
    for row in 0..rows {
        for column in (0..columns).step_by(LINE) {
            let address = source.wrapping_add(row * stride + column);
            // SAFETY: a hint, allowed for any address.
            #[cfg(target_arch = "x86_64")]
            unsafe {
                use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
                _mm_prefetch::<_MM_HINT_T0>(address.cast());
            }
            #[cfg(not(target_arch = "x86_64"))]
            let _ = address;
        }
    }
}

/// Writes `rows x columns` values transposed: `target[column * target_stride + row]`.
///
/// # Safety
/// `source` must be valid for reads of that shape, `target` for writes.
#[inline(always)]
pub(super) unsafe fn transpose<V: Vector>(
    source: *const f32,
    source_stride: usize,
    rows: usize,
    columns: usize,
    target: *mut f32,
    target_stride: usize,
) {
    let whole_rows = rows - rows % V::LANES;
    let whole_columns = columns - columns % V::LANES;
    // SAFETY: the caller's contract; tiles of LANES x LANES cover the whole part, single elements the rim.
    unsafe {
        for row in (0..whole_rows).step_by(V::LANES) {
            for column in (0..whole_columns).step_by(V::LANES) {
                let (from, to) = (row * source_stride + column, column * target_stride + row);
                V::transpose(source.add(from), source_stride, target.add(to), target_stride);
            }
        }
        for row in 0..rows {
            let first = if row < whole_rows { whole_columns } else { 0 };
            for column in first..columns {
                *target.add(column * target_stride + row) = *source.add(row * source_stride + column);
            }
        }
    }
}

/// Packs a block of queries (or of their gradients) for use as `B[d][query]`: `target[d * QUERY_BLOCK + query]`; lanes
/// behind the last query are zero.
///
/// # Safety
/// `source` must be valid for reads of `queries` rows of `head_size`, `target` for writes of `head_size * QUERY_BLOCK`.
#[inline(always)]
pub(super) unsafe fn pack_transposed<V: Vector>(
    source: *const f32,
    source_stride: usize,
    queries: usize,
    head_size: usize,
    target: *mut f32,
) {
    // SAFETY: the caller's contract.
    unsafe {
        transpose::<V>(source, source_stride, queries, head_size, target, QUERY_BLOCK);
        for d in 0..head_size {
            for lane in queries..queries.next_multiple_of(V::LANES) {
                *target.add(d * QUERY_BLOCK + lane) = 0.0;
            }
        }
    }
}
