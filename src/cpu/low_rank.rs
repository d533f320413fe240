//! Low-rank adaptation on the CPU: a product of depth `rank` onto a copy of the weight, and one pass over the rows for the
//! gradients of both matrices.
//!
//! Each of the backward pass's four products is narrow (`rank` is 8 or so): one by one they would read the layer's input and
//! the gradient of its output from memory twice each, for little arithmetic. So a tile of rows takes part in all four while
//! it lies in L2, and the next one is fetched meanwhile:
//!
//! ```text
//!   for each tile of rows:
//!     t = s · x · Aᵀ        u = s · dy · B         lanes are ranks, 16 of them two columns of 8: no sums across lanes but one
//!     dBᵀ += tᵀ · dy        dA += uᵀ · x           lanes are columns
//! ```
//!
//! Ranks are taken eight at a time, and missing ones are zero. A task sums over its own rows; the sums of all tasks are
//! added in order.

use super::gemm::prefetch::{prefetch_l1, prefetch_l2};
use super::gemm::{self, Epilogue, Matrix, Product};
use super::simd::{Kernel, Vector};
use super::{Cpu, Disjoint, scratch};
use crate::ops::low_rank::{Backward, Factors, Shape};
use crate::ops::{View, ViewMut, Write};
use std::ops::Range;

const LINE: usize = 16;
/// Most rows of a tile.
const TILE: usize = 64;
/// Floats of a tile, of which two lie in L2: half a megabyte.
const TILE_FLOATS: usize = 128 << 10;
/// As many tasks as this are made where there are rows enough. Each has gradients of its own to sum up.
const TASKS: usize = 16;
/// Ranks that are computed together.
const RANKS: usize = 8;
/// Rows of the gradients are padded to this many floats, a multiple of every level's vectors.
const PAD: usize = 16;
/// Columns of a task of the last sum.
const COLUMNS: usize = 128;

/// Computes `merged = weight + s · B · A`; see [`crate::ops::low_rank::merge`].
pub fn merge(cpu: &Cpu, shape: &Shape, factors: Factors<'_>, weight: View<'_, f32>, merged: ViewMut<'_, f32>) {
    let Shape { inputs, outputs, rank, .. } = *shape;
    scratch::with(outputs * rank, |scaled| {
        scaled.iter_mut().zip(factors.up.host()).for_each(|(scaled, up)| *scaled = factors.scale * up);
        gemm::run(
            cpu,
            Product {
                shape: gemm::Shape { rows: outputs, columns: inputs, depth: rank },
                left: Matrix::straight(scaled, rank),
                right: Matrix::straight(factors.down.host(), inputs),
                target: merged.host(),
                target_stride: inputs,
                write: Write::Set,
                epilogue: Epilogue { residual: Some(weight.host()), ..Epilogue::default() },
                left_sums: None,
            },
        );
    });
}

/// Computes the gradients of both matrices; see [`crate::ops::low_rank::backward`].
pub fn backward(cpu: &Cpu, shape: &Shape, arguments: Backward<'_>) {
    let Shape { rows, inputs, outputs, rank } = *shape;
    let Backward { factors, input, grad_output, grad_down, grad_up } = arguments;
    let (input, grad_output) = (input.host(), grad_output.host());
    let piece = rows.div_ceil(TASKS).next_multiple_of(TILE);
    let tasks = rows.div_ceil(piece.max(1));
    let group = cpu.level().lanes() / RANKS;
    let ranks = rank.next_multiple_of(RANKS);
    let [down_stride, up_stride] = [inputs, outputs].map(|columns| columns.next_multiple_of(PAD));
    let (down_floats, floats) = (ranks * down_stride, ranks * (down_stride + up_stride));
    scratch::with((1 + tasks) * floats, |memory| {
        let (packed, sums) = memory.split_at_mut(floats);
        let (down, up) = packed.split_at_mut(down_floats);
        pack(factors.down.host(), [rank, inputs], [inputs, 1], group, down);
        pack(factors.up.host(), [rank, outputs], [1, rank], group, up);
        let (down, up) = (&*down, &*up);
        let shared = Disjoint::new(&mut *sums);
        cpu.pool().run_pieces(rows, piece, |task, range| {
            // SAFETY: each task has sums of its own.
            let sums = unsafe { shared.get(task * floats..(task + 1) * floats) };
            let (grad_down, grad_up) = sums.split_at_mut(down_floats);
            let x = &input[range.start * inputs..range.end * inputs];
            let dy = &grad_output[range.start * outputs..range.end * outputs];
            let sides = [
                Side { matrix: x, columns: inputs, factor: down, grad: grad_down, stride: down_stride },
                Side { matrix: dy, columns: outputs, factor: up, grad: grad_up, stride: up_stride },
            ];
            cpu.level().run(Rows { sides, rows: range.len(), rank, scale: factors.scale });
        });
        let parts = Parts { sums, floats, start: 0, stride: down_stride };
        parts.add_up(cpu, [rank, inputs], grad_down.0.host(), [inputs, 1], grad_down.1);
        let parts = Parts { start: down_floats, stride: up_stride, ..parts };
        parts.add_up(cpu, [rank, outputs], grad_up.0.host(), [1, rank], grad_up.1);
    });
}

/// Floats of eight ranks of a packed factor.
fn packed_floats(columns: usize, group: usize) -> usize {
    columns.div_ceil(group) * group * RANKS
}

/// Packs a factor of `rank` and `columns`, whose elements are `strides` apart: eight ranks after the other, of these the
/// groups of columns, of these the ranks. What is missing is zero.
fn pack(factor: &[f32], [rank, columns]: [usize; 2], strides: [usize; 2], group: usize, packed: &mut [f32]) {
    packed.fill(0.0);
    for (block, packed) in packed.chunks_exact_mut(packed_floats(columns, group).max(1)).enumerate() {
        let ranks = block * RANKS..rank.min((block + 1) * RANKS);
        for column in 0..columns {
            let lane = column / group * group * RANKS + column % group;
            for (i, r) in ranks.clone().enumerate() {
                packed[lane + i * group] = factor[r * strides[0] + column * strides[1]];
            }
        }
    }
}

/// Sums of a gradient, each task's `floats` behind those of the one before, as padded rows.
struct Parts<'a> {
    sums: &'a [f32],
    floats: usize,
    start: usize,
    stride: usize,
}

impl Parts<'_> {
    /// Adds them, in the order of tasks, and writes the result where the gradient has it.
    fn add_up(&self, cpu: &Cpu, [rank, columns]: [usize; 2], grad: &mut [f32], strides: [usize; 2], write: Write) {
        assert_eq!(grad.len(), rank * columns);
        let grad = Disjoint::new(grad);
        cpu.pool().run_pieces(columns, COLUMNS, |_, range| {
            for r in 0..rank {
                let mut totals = [0.0f32; COLUMNS];
                for part in self.sums.chunks_exact(self.floats) {
                    let row = &part[self.start + r * self.stride..][range.clone()];
                    totals.iter_mut().zip(row).for_each(|(total, sum)| *total += sum);
                }
                for (i, total) in range.clone().zip(totals) {
                    // SAFETY: inside, by the assertion; pieces have columns of their own.
                    let value = unsafe { &mut *grad.as_ptr().add(r * strides[0] + i * strides[1]) };
                    *value = if write == Write::Add { *value + total } else { total };
                }
            }
        });
    }
}

/// One of the two matrices that rows are given of, with its factor.
struct Side<'a> {
    /// Rows of `columns`.
    matrix: &'a [f32],
    columns: usize,
    /// Packed.
    factor: &'a [f32],
    /// Padded rows, `stride` apart: one for each rank.
    grad: &'a mut [f32],
    stride: usize,
}

/// A row's products with eight ranks.
type Products = [f32; RANKS];

/// The gradients' sums over some rows.
struct Rows<'a> {
    sides: [Side<'a>; 2],
    rows: usize,
    rank: usize,
    scale: f32,
}

impl Kernel for Rows<'_> {
    type Output = ();

    #[inline(always)]
    fn run<V: Vector>(mut self) {
        let blocks = self.rank.div_ceil(RANKS);
        for side in &self.sides {
            assert!(side.matrix.len() >= self.rows * side.columns);
            assert!(side.factor.len() >= blocks * packed_floats(side.columns, V::LANES / RANKS));
            assert!(side.stride >= side.columns.next_multiple_of(V::LANES));
            assert!(side.grad.len() >= blocks * RANKS * side.stride);
        }
        let columns: usize = self.sides.iter().map(|side| side.columns).sum();
        let tile = (TILE_FLOATS / columns.max(1)).clamp(16, TILE) / 16 * 16;
        for first in (0..self.rows).step_by(tile) {
            let rows = first..self.rows.min(first + tile);
            for block in 0..blocks {
                let mut products = [[[0.0f32; RANKS]; TILE]; 2];
                // SAFETY: the assertions above.
                unsafe {
                    for (side, products) in self.sides.iter().zip(&mut products) {
                        side.multiply::<V>(rows.clone(), block, self.scale, products);
                    }
                    // Fetches the next tile, unless there is none, with the first of its blocks.
                    let ahead = if rows.end < self.rows && block == 0 { tile } else { 0 };
                    // The product of either side meets the other side's rows.
                    let [left, right] = &mut self.sides;
                    left.accumulate::<V>(rows.clone(), block, &products[1], ahead);
                    right.accumulate::<V>(rows.clone(), block, &products[0], ahead);
                }
            }
        }
    }
}

impl Side<'_> {
    /// `products[row] = scale · row · factorᵀ` for eight ranks.
    ///
    /// # Safety
    /// The matrix must hold the rows, the factor the ranks.
    #[inline(always)]
    unsafe fn multiply<V: Vector>(
        &self,
        rows: Range<usize>,
        block: usize,
        scale: f32,
        products: &mut [Products; TILE],
    ) {
        let mut row = rows.start;
        while row < rows.end {
            let out = &mut products[row - rows.start..];
            // SAFETY: the caller's contract.
            row += unsafe {
                match (V::REGISTERS, rows.end - row) {
                    (32.., 16..) => self.multiply_rows::<V, 16>(row, block, scale, out),
                    (16.., 8..) => self.multiply_rows::<V, 8>(row, block, scale, out),
                    (_, 4..) => self.multiply_rows::<V, 4>(row, block, scale, out),
                    _ => self.multiply_rows::<V, 1>(row, block, scale, out),
                }
            };
        }
    }

    /// `ROWS` rows of [`multiply`](Self::multiply); returns `ROWS`.
    #[inline(always)]
    unsafe fn multiply_rows<V: Vector, const ROWS: usize>(
        &self,
        row: usize,
        block: usize,
        scale: f32,
        out: &mut [Products],
    ) -> usize {
        let (columns, group) = (self.columns, V::LANES / RANKS);
        let mut sums = [V::zero(); ROWS];
        // SAFETY: the caller's contract: `ROWS` rows of `columns` elements, and a vector of the factor for each group.
        unsafe {
            let x = self.matrix.as_ptr().add(row * columns);
            let mut factor = self.factor.as_ptr().add(block * packed_floats(columns, group));
            let whole = columns / group * group;
            for column in (0..whole).step_by(group) {
                let weights = V::load(factor);
                // A line of each row lasts as many steps as it takes to ask for the next one of all rows.
                let row = column / group * (ROWS * group / LINE) % ROWS;
                for i in 0..ROWS * group / LINE {
                    prefetch_l1(x.wrapping_add((row + i) * columns + column + LINE));
                }
                for (i, sum) in sums.iter_mut().enumerate() {
                    *sum = V::load_repeated(x.add(i * columns + column)).mul_add(weights, *sum);
                }
                factor = factor.add(V::LANES);
            }
            if whole < columns {
                // The lanes of the column that is missing are zero in the factor.
                let weights = V::load(factor);
                for (i, sum) in sums.iter_mut().enumerate() {
                    *sum = V::splat(*x.add(i * columns + whole)).mul_add(weights, *sum);
                }
            }
        }
        for (out, sum) in out.iter_mut().zip(sums) {
            let mut lanes = [0.0f32; 2 * RANKS];
            // SAFETY: no vector has more lanes.
            unsafe { sum.store(lanes.as_mut_ptr()) };
            for (out, lanes) in out.iter_mut().zip(lanes.chunks_exact(group)) {
                *out = scale * lanes.iter().sum::<f32>();
            }
        }
        ROWS
    }

    /// `grad += productsᵀ · rows` for eight ranks; the first rows overwrite. Asks for the rows `ahead` of these.
    ///
    /// # Safety
    /// The matrix must hold the rows, the gradient the ranks.
    #[inline(always)]
    unsafe fn accumulate<V: Vector>(
        &mut self,
        rows: Range<usize>,
        block: usize,
        products: &[Products; TILE],
        ahead: usize,
    ) {
        let products = &products[..rows.len()];
        let mut column = 0;
        while column < self.columns {
            let left = self.columns - column;
            // SAFETY: the caller's contract.
            column += unsafe {
                // The sums of three vectors take 24 registers.
                if V::REGISTERS >= 32 && left >= 3 * V::LANES {
                    self.accumulate_columns::<V, 3, true>(rows.start, block, column, products, ahead)
                } else if left >= V::LANES {
                    self.accumulate_columns::<V, 1, true>(rows.start, block, column, products, ahead)
                } else {
                    self.accumulate_columns::<V, 1, false>(rows.start, block, column, products, ahead)
                }
            };
        }
    }

    /// `VECTORS` vectors of columns of [`accumulate`](Self::accumulate), the last of which is not full unless `WHOLE`;
    /// returns how many columns that are.
    #[inline(always)]
    unsafe fn accumulate_columns<V: Vector, const VECTORS: usize, const WHOLE: bool>(
        &mut self,
        first: usize,
        block: usize,
        column: usize,
        products: &[Products],
        ahead: usize,
    ) -> usize {
        let mut sums = [[V::zero(); VECTORS]; RANKS];
        // SAFETY: the caller's contract; rows of the gradient are padded to whole vectors.
        unsafe {
            let x = self.matrix.as_ptr().add(first * self.columns + column);
            for (row, products) in products.iter().enumerate() {
                let mut values = [V::zero(); VECTORS];
                for (v, value) in values.iter_mut().enumerate() {
                    let at = x.add(row * self.columns + v * V::LANES);
                    *value = if WHOLE { V::load(at) } else { V::load_partial(at, self.columns - column) };
                    prefetch_l2(at.wrapping_add(ahead * self.columns));
                }
                for (sums, &product) in sums.iter_mut().zip(products) {
                    let product = V::splat(product);
                    for (sum, value) in sums.iter_mut().zip(values) {
                        *sum = product.mul_add(value, *sum);
                    }
                }
            }
            for (r, sums) in sums.into_iter().enumerate() {
                let grad = self.grad.as_mut_ptr().add((block * RANKS + r) * self.stride + column);
                for (v, mut sum) in sums.into_iter().enumerate() {
                    let grad = grad.add(v * V::LANES);
                    if first > 0 {
                        sum = sum.add(V::load(grad));
                    }
                    sum.store(grad);
                }
            }
        }
        VECTORS * V::LANES
    }
}
