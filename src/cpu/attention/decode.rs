//! Forward pass for very few queries, as in decoding from a cache: every key and value is read from memory once, and
//! that is the whole cost.
//!
//! So the cache is read as it lies: tasks over (sequence, part of the keys), each for all heads, row after row. A task
//! per head would read short pieces far apart, which the processor does not foresee (measured: two thirds of the
//! bandwidth, and prefetch instructions did not help). The parts' results are then merged in order by their
//! log-sum-exp, as in Flash-Decoding (Dao et al. 2023). The cut depends on the sizes alone.

use super::scores::FLOOR;
use super::{Problem, Scratch, with_scratch};
use crate::cpu::simd::math::exp2;
use crate::cpu::simd::{Kernel, Vector};
use crate::cpu::{Cpu, Disjoint, scratch};
use std::f32::consts::{LN_2, LOG2_E};

/// Up to this many queries in a sequence, lanes over queries would be mostly empty.
pub(super) const MOST_QUERIES: usize = 4;
/// Keys whose scores are held at once.
const BLOCK: usize = 32;
/// Rows that are worked on together.
const ROWS: usize = 4;
/// Tasks that are enough to leave the keys of a sequence in one part.
const ENOUGH_TASKS: usize = 16;
/// Fewest keys in a part.
const LEAST_PART: usize = 2 * BLOCK;

/// Computes the output of every head. Dropout is not handled: decoding has none.
pub(super) fn run(cpu: &Cpu, problem: &Problem<'_>, output: &mut [f32], log_sum_exp: Option<&mut [f32]>) {
    let shape = &problem.shape;
    let padded = shape.head_size.next_multiple_of(cpu.level().lanes());
    let queries = shape.heads * shape.query_time;
    let wanted = ENOUGH_TASKS.div_ceil(shape.batch).min((shape.key_time / LEAST_PART).max(1));
    let part = shape.key_time.div_ceil(wanted).next_multiple_of(BLOCK).max(BLOCK);
    let parts = shape.key_time.div_ceil(part).max(1);
    let output = Disjoint::new(output);
    let log_sum_exp = log_sum_exp.map(Disjoint::new);
    // What a part leaves for each query: a row of output, the maximum, the sum.
    let size = queries * (padded + 2);
    scratch::with(shape.batch * parts * size, |partial| {
        let partial = Disjoint::new(partial);
        cpu.pool().run(shape.batch * parts, |task| {
            let keys = task % parts * part..shape.key_time.min((task % parts + 1) * part);
            // SAFETY: each task has its own part.
            let result = unsafe { partial.get(task * size..(task + 1) * size) };
            with_scratch([queries * padded, queries * BLOCK, queries], |scratch| {
                cpu.level().run(Part { problem, batch: task / parts, keys, padded, result, scratch });
            });
        });
        cpu.pool().run(shape.batch, |batch| {
            // SAFETY: all tasks that wrote are done.
            let partial = unsafe { partial.get(batch * parts * size..(batch + 1) * parts * size) };
            cpu.level().run(Merge { problem, batch, parts, padded, partial, output, log_sum_exp });
        });
    });
}

/// Some keys of one sequence, for all heads.
struct Part<'a> {
    problem: &'a Problem<'a>,
    batch: usize,
    keys: std::ops::Range<usize>,
    padded: usize,
    /// For each query (of each head, heads innermost) a row of output, then all maxima, then all sums.
    result: &'a mut [f32],
    scratch: [Scratch; 3],
}

impl Kernel for Part<'_> {
    type Output = ();

    #[inline(always)]
    fn run<V: Vector>(self) {
        let Self { problem, batch, padded, .. } = self;
        let shape = &problem.shape;
        let head_size = shape.head_size;
        let [query_rows, scores, rescale] = self.scratch;
        let group = problem.group();
        let queries = shape.heads * shape.query_time;
        let output = self.result.as_mut_ptr();
        let maxima = output.wrapping_add(queries * padded);
        let sums = maxima.wrapping_add(queries);
        let sequence = problem.sequence(batch);
        let key_end = self.keys.end.min(problem.seen(&sequence, shape.query_time - 1));
        // SAFETY: `run` sized the scratch pieces for `queries`; indices of inputs are in bounds because `ops` checked
        // the lengths.
        unsafe {
            for number in 0..queries {
                let source = problem.query_layout.at(&sequence, number / shape.heads, number % shape.heads);
                let source = problem.query.as_ptr().add(source);
                for d in (0..padded).step_by(V::LANES) {
                    let value = V::load_partial(source.add(d), V::LANES.min(head_size - d));
                    value.mul(V::splat(shape.scale * LOG2_E)).store(query_rows.add(number * padded + d));
                    V::zero().store(output.add(number * padded + d));
                }
                *maxima.add(number) = FLOOR;
                *sums.add(number) = 0.0;
            }
            for key in (self.keys.start..key_end).step_by(BLOCK) {
                let count = BLOCK.min(key_end - key);
                let stride = problem.key_layout.row;
                for j in (0..count).step_by(ROWS) {
                    let rows = ROWS.min(count - j);
                    for number in 0..queries {
                        let source = problem.key_layout.at(&sequence, key + j, number % shape.heads / group);
                        let keys = problem.key_value.as_ptr().add(source);
                        let query = query_rows.add(number * padded);
                        dot_products::<V>(query, keys, stride, head_size, rows, scores.add(number * BLOCK + j));
                    }
                }
                for number in 0..queries {
                    let (query, head) = (number / shape.heads, number % shape.heads);
                    let seen = count.min(problem.seen(&sequence, query).saturating_sub(key));
                    let scores = scores.add(number * BLOCK);
                    if let Some(bias) = problem.bias {
                        let bias = bias.as_ptr().add(problem.bias_element(&sequence, head, query, key));
                        for j in 0..seen {
                            *scores.add(j) += LOG2_E * *bias.add(j);
                        }
                    }
                    if let Some(relative) = problem.relative.filter(|_| seen > 0) {
                        let bias = relative.row(shape.mask, &sequence, [head, query, key]);
                        for (j, bias) in bias[..seen].iter().enumerate() {
                            *scores.add(j) += LOG2_E * bias;
                        }
                    }
                    *rescale.add(number) = softmax::<V>(scores, seen, maxima.add(number), sums.add(number));
                }
                for j in (0..count).step_by(ROWS) {
                    let rows = ROWS.min(count - j);
                    for number in 0..queries {
                        let source = problem.value_layout.at(&sequence, key + j, number % shape.heads / group);
                        let values = problem.key_value.as_ptr().add(source);
                        let rescale = if j == 0 { *rescale.add(number) } else { 1.0 };
                        let (scores, output) = (scores.add(number * BLOCK + j), output.add(number * padded));
                        weighted_sum::<V>(scores, values, stride, head_size, rows, rescale, output);
                    }
                }
            }
        }
    }
}

/// Merges the parts of one sequence.
struct Merge<'a> {
    problem: &'a Problem<'a>,
    batch: usize,
    parts: usize,
    padded: usize,
    partial: &'a mut [f32],
    output: Disjoint<'a, f32>,
    log_sum_exp: Option<Disjoint<'a, f32>>,
}

impl Kernel for Merge<'_> {
    type Output = ();

    #[inline(always)]
    fn run<V: Vector>(self) {
        let Self { problem, batch, parts, padded, partial, .. } = self;
        let shape = &problem.shape;
        let queries = shape.heads * shape.query_time;
        let size = queries * (padded + 2);
        let sequence = problem.sequence(batch);
        for number in 0..queries {
            let (query, head) = (number / shape.heads, number % shape.heads);
            let maximum_at = |part: usize| part * size + queries * padded + number;
            let maximum = (0..parts).map(|part| partial[maximum_at(part)]).fold(FLOOR, f32::max);
            let mut sum = 0.0;
            for part in 0..parts {
                // From here on the factor of the part stands in the place of its maximum.
                let factor = (partial[maximum_at(part)] - maximum).exp2();
                partial[maximum_at(part)] = factor;
                sum += factor * partial[maximum_at(part) + queries];
            }
            let row = problem.output(&sequence, head, query);
            for d in (0..shape.head_size).step_by(V::LANES) {
                let mut total = V::zero();
                // SAFETY: rows of `partial` are whole vectors; no other task has this row of the output.
                unsafe {
                    for part in 0..parts {
                        let source = partial.as_ptr().add(part * size + number * padded + d);
                        total = V::splat(partial[maximum_at(part)]).mul_add(V::load(source), total);
                    }
                    let value = total.mul(V::splat(if sum == 0.0 { 0.0 } else { 1.0 / sum }));
                    value.store_partial(self.output.as_ptr().add(row + d), V::LANES.min(shape.head_size - d));
                }
            }
            if let Some(log_sum_exp) = self.log_sum_exp {
                let value = if sum == 0.0 { f32::NEG_INFINITY } else { maximum * LN_2 + sum.ln() };
                let row = problem.statistic(&sequence, head, query);
                // SAFETY: no other task has this row.
                unsafe { *log_sum_exp.as_ptr().add(row) = value };
            }
        }
    }
}

/// `scores[j] = Σ_d query[d] · keys[j][d]`, four keys at a time so that their sums do not wait for one another.
#[inline(always)]
unsafe fn dot_products<V: Vector>(
    query: *const f32,
    keys: *const f32,
    stride: usize,
    head_size: usize,
    count: usize,
    scores: *mut f32,
) {
    // SAFETY: the caller's: `count` rows of keys, scores; `query` is padded with zeros to whole vectors.
    unsafe {
        let mut j = 0;
        while j < count {
            let rows = ROWS.min(count - j);
            let mut sums = [V::zero(); ROWS];
            let mut d = 0;
            while d + V::LANES <= head_size {
                let factor = V::load(query.add(d));
                for (i, sum) in sums.iter_mut().enumerate() {
                    // Fewer than four are left: the last one again.
                    *sum = factor.mul_add(V::load(keys.add((j + i.min(rows - 1)) * stride + d)), *sum);
                }
                d += V::LANES;
            }
            if d < head_size {
                let factor = V::load(query.add(d));
                for (i, sum) in sums.iter_mut().enumerate() {
                    let key = V::load_partial(keys.add((j + i.min(rows - 1)) * stride + d), head_size - d);
                    *sum = factor.mul_add(key, *sum);
                }
            }
            for (i, sum) in sums.iter().enumerate().take(rows) {
                *scores.add(j + i) = sum.reduce_add();
            }
            j += rows;
        }
    }
}

/// Turns the first `count` scores of a block into probabilities relative to the running maximum, and the others into
/// zeros; returns the factor of earlier sums.
#[inline(always)]
unsafe fn softmax<V: Vector>(scores: *mut f32, count: usize, maximum: *mut f32, sum: *mut f32) -> f32 {
    // SAFETY: the caller's: `scores` has `BLOCK` values, a multiple of every number of lanes.
    unsafe {
        for j in count..BLOCK {
            *scores.add(j) = f32::NEG_INFINITY;
        }
        let old = *maximum;
        let mut largest = V::splat(old);
        for j in (0..BLOCK).step_by(V::LANES) {
            largest = largest.max(V::load(scores.add(j)));
        }
        let largest = largest.reduce_max();
        let mut total = V::zero();
        for j in (0..BLOCK).step_by(V::LANES) {
            let probability = exp2(V::load(scores.add(j)).sub(V::splat(largest)));
            probability.store(scores.add(j));
            total = total.add(probability);
        }
        let rescale = (old - largest).exp2();
        *maximum = largest;
        *sum = *sum * rescale + total.reduce_add();
        rescale
    }
}

/// `output = rescale · output + Σ_j probabilities[j] · values[j]`, four vectors of columns at a time.
#[inline(always)]
unsafe fn weighted_sum<V: Vector>(
    probabilities: *const f32,
    values: *const f32,
    stride: usize,
    head_size: usize,
    count: usize,
    rescale: f32,
    output: *mut f32,
) {
    // SAFETY: the caller's: `count` rows of values, an output of whole vectors.
    unsafe {
        let mut d = 0;
        while d + 4 * V::LANES <= head_size {
            let mut sums = [V::zero(); 4];
            for (i, sum) in sums.iter_mut().enumerate() {
                *sum = V::load(output.add(d + i * V::LANES)).mul(V::splat(rescale));
            }
            for j in 0..count {
                let factor = V::splat(*probabilities.add(j));
                for (i, sum) in sums.iter_mut().enumerate() {
                    *sum = factor.mul_add(V::load(values.add(j * stride + d + i * V::LANES)), *sum);
                }
            }
            for (i, sum) in sums.iter().enumerate() {
                sum.store(output.add(d + i * V::LANES));
            }
            d += 4 * V::LANES;
        }
        while d < head_size {
            let lanes = V::LANES.min(head_size - d);
            let mut sum = V::load(output.add(d)).mul(V::splat(rescale));
            for j in 0..count {
                let value = V::load_partial(values.add(j * stride + d), lanes);
                sum = V::splat(*probabilities.add(j)).mul_add(value, sum);
            }
            sum.store(output.add(d));
            d += V::LANES;
        }
    }
}
