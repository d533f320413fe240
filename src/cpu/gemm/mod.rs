//! The f32 matrix product `C (+)= A · B`, and what a layer does to `C` while its tiles are in registers.
//!
//! The loops are those of Goto and van de Geijn (2008) as BLIS arranges them: a micro-kernel keeps a tile of `C` in
//! registers (`micro`), a panel of `B` that fits L1 meets all row tiles of `A`, whose rows lie in L2 (`pack`). What is
//! different here:
//! - The product is cut into tasks over rows and columns, and each task packs what it needs, just before it uses it,
//!   into its own thread's caches. Tasks share nothing, so there is one loop and no barrier, and a weight goes from
//!   memory to registers without a packed copy ever being written to memory. A weight is packed again by each task
//!   that shares its columns; tasks have enough rows that this is a percent or two. While one panel is multiplied, the
//!   next one is fetched.
//! - `A` is not packed where its rows are contiguous: broadcasts read single elements.
//! - The sum over a very long depth (the vocabulary) is cut into successive loops, so that all tasks use the same
//!   part of the operands at the same time and fetch it once from memory.
//! - Bias, activation, residual and derivative are applied as a tile is stored (`epilogue`); a bias gradient is summed
//!   while its operand is packed.
//! - Up to eight rows take a path of their own (`few_rows`).
//!
//! Everything is cut by the product's shape and the instruction set alone, so the bits are the same for any number of
//! threads. Measurements and what was tried and lost: benches/results/cpu-gemm.md.

pub mod activation;
pub mod epilogue;
mod few_rows;
mod micro;
mod pack;
pub(super) mod prefetch;

pub use epilogue::Epilogue;

use super::simd::{Kernel, Vector};
use super::{Cpu, Disjoint, scratch};
use crate::ops::Write;
use epilogue::{Place, Target, finish, prepare};
use std::ops::Range;

/// A matrix operand, in place: nothing is copied to transpose it.
#[derive(Clone, Copy)]
pub struct Matrix<'a> {
    elements: &'a [f32],
    stride: usize,
    transposed: bool,
}

impl<'a> Matrix<'a> {
    /// Element `(i, j)` is `elements[i * stride + j]`.
    pub fn straight(elements: &'a [f32], stride: usize) -> Self {
        Self { elements, stride, transposed: false }
    }

    /// Element `(i, j)` is `elements[j * stride + i]`.
    pub fn transposed(elements: &'a [f32], stride: usize) -> Self {
        Self { elements, stride, transposed: true }
    }

    /// Address of element `(i, j)`, which need not exist.
    #[inline(always)]
    fn at(&self, i: usize, j: usize) -> *const f32 {
        let (outer, inner) = if self.transposed { (j, i) } else { (i, j) };
        self.elements.as_ptr().wrapping_add(outer * self.stride + inner)
    }

    /// Asserts that elements up to `(rows, columns)` exist.
    fn check(&self, rows: usize, columns: usize) {
        let (outer, inner) = if self.transposed { (columns, rows) } else { (rows, columns) };
        let needed = if outer == 0 || inner == 0 { 0 } else { (outer - 1) * self.stride + inner };
        assert!(self.elements.len() >= needed, "operand of {} elements, {needed} needed", self.elements.len());
    }
}

/// Sizes of a product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Rows of the left operand and of the result.
    pub rows: usize,
    /// Columns of the right operand and of the result.
    pub columns: usize,
    /// Columns of the left operand and rows of the right one.
    pub depth: usize,
}

/// A product to compute.
pub struct Product<'a> {
    pub shape: Shape,
    /// `(rows, depth)`
    pub left: Matrix<'a>,
    /// `(depth, columns)`
    pub right: Matrix<'a>,
    /// `(rows, columns)`, rows `target_stride` apart.
    pub target: &'a mut [f32],
    pub target_stride: usize,
    /// Adding needs an empty epilogue: gradients have none.
    pub write: Write,
    pub epilogue: Epilogue<'a>,
    /// `(rows)`: sums of the left operand over the depth (a bias gradient); the left operand must be transposed.
    pub left_sums: Option<(&'a mut [f32], Write)>,
}

/// Depth of a block: a panel of `B`, 32 columns of 256 floats, takes 32 of the 48 KiB of L1 (AVX-512).
const BLOCK_DEPTH: usize = 256;
/// Most rows of a task: their part of `A` stays in L2 while it is multiplied with one panel of `B` after the other.
const TASK_ROWS: usize = 384;
/// Depth of one parallel loop.
const LOOP_DEPTH: usize = 8 * BLOCK_DEPTH;
/// As many tasks as this are made where there is enough work for them.
const TASKS: usize = 8;
/// Multiply-adds that are worth a task: some ten microseconds.
const TASK_WORK: usize = 3 << 20;
/// Multiply-adds of a task where the product has more than `TASKS` times as many: about a millisecond. Smaller tasks
/// would suit machines with many cores, but cost 5 % in the gradients of weights, whose tasks pack both operands.
const LARGE_TASK_WORK: usize = 128 << 20;

/// Computes the product.
pub fn run(cpu: &Cpu, product: Product<'_>) {
    let Product { shape, left, right, target, target_stride, write, epilogue, left_sums } = product;
    let Shape { rows, columns, depth } = shape;
    left.check(rows, depth);
    right.check(depth, columns);
    Matrix::straight(target, target_stride).check(rows, columns);
    for matrix in [epilogue.residual, epilogue.derivative_at.map(|(_, at)| at)].into_iter().flatten() {
        assert!(matrix.len() >= rows * columns);
    }
    assert!(epilogue.bias.is_none_or(|bias| bias.len() >= columns));
    assert!(epilogue.pre_activation.is_none_or(|pre_activation| pre_activation.len() >= rows * columns));
    assert!(write == Write::Set || epilogue.is_empty(), "adding to a target needs an empty epilogue");
    if rows == 0 || columns == 0 {
        return;
    }
    let target = Target { elements: Disjoint::new(target), stride: target_stride, columns, epilogue };
    let level = cpu.level();
    if rows <= few_rows::MOST_ROWS && right.transposed && !left.transposed {
        assert!(left_sums.is_none());
        // A large weight is cut into fewer, larger tasks: that each is claimed costs as much as reading kilobytes.
        let floats = few_rows::TASK_FLOATS.max(columns * depth / few_rows::MOST_TASKS);
        let piece = floats.div_ceil(depth.max(1)).next_multiple_of(few_rows::COLUMN_STEP);
        cpu.pool().run_streams(columns, piece, |_, columns| {
            level.run(FewRows { shape, left, right, target, accumulate: write == Write::Add, columns });
        });
        return;
    }
    let left_sums = left_sums.map(|(sums, write)| {
        assert!(left.transposed && sums.len() == rows);
        if write == Write::Set {
            sums.fill(0.0);
        }
        Disjoint::new(sums)
    });
    let grid = level.run(Cut { shape, left, right });
    let row_tasks = rows.div_ceil(grid.rows);
    let column_tasks = columns.div_ceil(grid.columns);
    let mut start = 0;
    // At least one loop, so that a product of depth 0 writes its zeros.
    loop {
        let end = depth.min(start + LOOP_DEPTH);
        cpu.pool().run(row_tasks * column_tasks, |task| {
            // Neighbouring tasks share columns of the right operand, which is the one that is costly to fetch.
            let (row, column) = (task % row_tasks * grid.rows, task / row_tasks * grid.columns);
            scratch::with(grid.right_floats + grid.left_floats, |memory| {
                let (right_memory, left_memory) = memory.split_at_mut(grid.right_floats);
                level.run(Task {
                    left,
                    right,
                    target,
                    rows: row..rows.min(row + grid.rows),
                    columns: column..columns.min(column + grid.columns),
                    depth: start..end,
                    accumulate: start > 0 || write == Write::Add,
                    complete: end == depth,
                    left_sums: left_sums.filter(|_| column == 0),
                    right_memory,
                    left_memory,
                });
            });
        });
        start = end;
        if start == depth {
            return;
        }
    }
}

/// Rows and columns of a task, and the memory for its packed operands.
struct Grid {
    rows: usize,
    columns: usize,
    right_floats: usize,
    left_floats: usize,
}

/// Decides how a product is cut into tasks.
struct Cut<'a> {
    shape: Shape,
    left: Matrix<'a>,
    right: Matrix<'a>,
}

impl Kernel for Cut<'_> {
    type Output = Grid;

    /// Halves tasks by rows or by columns until there are enough of them, each time the way that costs less: halving
    /// by rows means that the right operand is packed once more, by columns that the left one is packed (or just
    /// read) once more. The weights are cycles per element, roughly, as measured on Zen 5.
    #[inline(always)]
    fn run<V: Vector>(self) -> Grid {
        let Shape { rows, columns, depth } = self.shape;
        let left_cost = rows * if self.left.transposed { 7 } else { 1 };
        let right_cost = columns * if self.right.transposed { 10 } else { 4 };
        let row_tiles = rows.div_ceil(micro::rows::<V>());
        let column_tiles = columns.div_ceil(micro::columns::<V>());
        let mut row_cuts = rows.div_ceil(TASK_ROWS);
        let mut column_cuts = 1;
        // Of one parallel loop.
        let work = rows * columns * depth.min(LOOP_DEPTH);
        let wanted = (work / TASK_WORK).clamp(1, TASKS).max(work / LARGE_TASK_WORK);
        while row_cuts * column_cuts < wanted {
            let by_rows = right_cost * row_cuts <= left_cost * column_cuts;
            if (by_rows || column_cuts * 2 > column_tiles) && row_cuts * 2 <= row_tiles {
                row_cuts *= 2;
            } else if column_cuts * 2 <= column_tiles {
                column_cuts *= 2;
            } else {
                break;
            }
        }
        let rows = row_tiles.div_ceil(row_cuts) * micro::rows::<V>();
        let columns = column_tiles.div_ceil(column_cuts) * micro::columns::<V>();
        let depth = BLOCK_DEPTH.min(depth);
        Grid {
            rows,
            columns,
            right_floats: depth * micro::columns::<V>(),
            left_floats: if self.left.transposed { pack::left_floats::<V>(rows, depth) } else { 0 },
        }
    }
}

struct FewRows<'a> {
    shape: Shape,
    left: Matrix<'a>,
    right: Matrix<'a>,
    target: Target<'a>,
    accumulate: bool,
    columns: Range<usize>,
}

impl Kernel for FewRows<'_> {
    type Output = ();

    #[inline(always)]
    fn run<V: Vector>(self) {
        // SAFETY: `run` checked the operands, and its tasks have columns of their own.
        unsafe {
            few_rows::run::<V>(self.shape, self.left, self.right, &self.target, self.accumulate, self.columns);
        }
    }
}

/// One task: a rectangle of the result, over a part of the depth.
struct Task<'a> {
    left: Matrix<'a>,
    right: Matrix<'a>,
    target: Target<'a>,
    rows: Range<usize>,
    columns: Range<usize>,
    depth: Range<usize>,
    /// The target holds something to add to.
    accumulate: bool,
    /// The end of this depth is the end of the whole.
    complete: bool,
    left_sums: Option<Disjoint<'a, f32>>,
    right_memory: &'a mut [f32],
    left_memory: &'a mut [f32],
}

impl Kernel for Task<'_> {
    type Output = ();

    #[inline(always)]
    fn run<V: Vector>(self) {
        let mut start = self.depth.start;
        loop {
            let depth = start..self.depth.end.min(start + BLOCK_DEPTH);
            if self.left.transposed {
                // SAFETY: only tasks of the first column are given `left_sums`, and those have rows of their own.
                let sums = self.left_sums.as_ref().map(|sums| unsafe { sums.get(self.rows.clone()) });
                pack::left::<V>(self.left, self.rows.clone(), depth.clone(), self.left_memory, sums);
            }
            for column in self.columns.clone().step_by(micro::columns::<V>()) {
                let columns = column..self.columns.end.min(column + micro::columns::<V>());
                pack::right::<V>(self.right, depth.clone(), columns.clone(), self.right_memory);
                if self.left.transposed {
                    self.tiles::<V, true>(columns, depth.clone());
                } else {
                    self.tiles::<V, false>(columns, depth.clone());
                }
            }
            start = depth.end;
            if start == self.depth.end {
                return;
            }
        }
    }
}

impl Task<'_> {
    /// Multiplies the packed panel of the right operand with all rows of the left one.
    #[inline(always)]
    fn tiles<V: Vector, const PACKED: bool>(&self, columns: Range<usize>, depth: Range<usize>) {
        let mut tile = micro::Tile([0.0; micro::TILE_FLOATS]);
        let accumulate = self.accumulate || depth.start > self.depth.start;
        let complete = self.complete && depth.end == self.depth.end;
        let mut ahead = self.next_panel::<V>(&columns, &depth);
        for (index, row) in self.rows.clone().step_by(micro::rows::<V>()).enumerate() {
            let rows = micro::rows::<V>().min(self.rows.end - row);
            let operands = micro::Operands {
                left: if PACKED {
                    self.left_memory[index * pack::left_panel::<V>(depth.len())..].as_ptr()
                } else {
                    self.left.at(row, depth.start)
                },
                left_stride: self.left.stride,
                right: self.right_memory.as_ptr(),
                depth: depth.len(),
            };
            let (column, width) = (columns.start, columns.len());
            let place = Place { row, column, rows, columns: width, accumulate, complete };
            ahead.fetch();
            prepare(&self.target, place);
            // SAFETY: the operands hold these rows, columns and steps (checked where the product starts and by the
            // packing functions), and this task owns the place.
            unsafe {
                micro::multiply::<V, PACKED>(operands, rows, width <= V::LANES, &mut tile);
                finish::<V>(&self.target, place, tile.0.as_ptr(), micro::columns::<V>());
            }
        }
    }

    /// What will be packed after this panel: the one to its right, or the first one of the next block of the depth.
    #[inline(always)]
    fn next_panel<V: Vector>(&self, columns: &Range<usize>, depth: &Range<usize>) -> pack::Ahead {
        let width = micro::columns::<V>();
        let (columns, depth) = if columns.end < self.columns.end {
            (columns.end..self.columns.end.min(columns.end + width), depth.clone())
        } else {
            let columns = self.columns.start..self.columns.end.min(self.columns.start + width);
            (columns, depth.end..self.depth.end.min(depth.end + BLOCK_DEPTH))
        };
        pack::Ahead::new(self.right, depth, columns, self.rows.len().div_ceil(micro::rows::<V>()))
    }
}
