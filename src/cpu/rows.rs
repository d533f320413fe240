//! Sums of rows of a matrix, in runs, in order: what gradients of tables and means of rows have in common.

use super::simd::Vector;

/// Rows that are summed before their sum joins the others: the error of a long sum grows with the number of roundings
/// that a value goes through (Higham, "The Accuracy of Floating Point Summation", 1993), here `RUN` and one for each run.
const RUN: usize = 32;

/// Which rows are summed, and which of their columns.
pub struct RowSum<'a, R> {
    /// Rows of `channels` values.
    pub matrix: &'a [f32],
    pub channels: usize,
    /// First column, and how many.
    pub start: usize,
    pub columns: usize,
    /// How many rows, and which is the i-th.
    pub count: usize,
    pub row: R,
}

impl<R: Fn(usize) -> usize> RowSum<'_, R> {
    /// Calls `store(column, sum, left)` for each vector of the sum, where `left` columns or more are left from `column`
    /// on. Four vectors of columns at a time stay in registers while the rows go by.
    #[inline(always)]
    pub fn run<V: Vector>(&self, mut store: impl FnMut(usize, V, usize)) {
        let mut column = 0;
        while column < self.columns {
            let left = self.columns - column;
            let wide = 4 * V::LANES <= left;
            let width = if wide { 4 } else { 1 };
            let mut sums = [V::zero(); 4];
            for first in (0..self.count).step_by(RUN) {
                let mut run = [V::zero(); 4];
                for i in first..self.count.min(first + RUN) {
                    let start = (self.row)(i) * self.channels + self.start + column;
                    let source = &self.matrix[start..][..left.min(width * V::LANES)];
                    // SAFETY: the slice just taken covers what is read.
                    unsafe {
                        if wide {
                            for (j, sum) in run.iter_mut().enumerate() {
                                *sum = sum.add(V::load(source.as_ptr().add(j * V::LANES)));
                            }
                        } else {
                            run[0] = run[0].add(V::load_up_to(source.as_ptr(), left));
                        }
                    }
                }
                for (sum, run) in sums.iter_mut().zip(run).take(width) {
                    *sum = sum.add(run);
                }
            }
            for (j, &sum) in sums.iter().enumerate().take(width) {
                store(column + j * V::LANES, sum, left - j * V::LANES);
            }
            column += width * V::LANES;
        }
    }
}
