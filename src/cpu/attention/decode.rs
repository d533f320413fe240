//! Forward pass for very few queries, as in decoding from a cache: each key and value is read from memory once, and
//! that is the whole cost. Tasks over (sequence, key/value head); keys in blocks that stay in the first-level cache
//! while all queries that share them are served.

use super::scores::{FLOOR, exp2};
use super::{Problem, with_scratch};
use crate::cpu::simd::{Kernel, Vector};
use crate::cpu::{Cpu, Disjoint};
use std::f32::consts::{LN_2, LOG2_E};

/// Up to this many queries in a sequence, lanes over queries would be mostly empty.
pub(super) const MOST_QUERIES: usize = 4;
/// Keys whose scores are held at once.
const BLOCK: usize = 64;

/// Computes the output of every head. Dropout is not handled: decoding has none.
pub(super) fn run(cpu: &Cpu, problem: &Problem<'_>, output: &mut [f32], log_sum_exp: Option<&mut [f32]>) {
    let shape = &problem.shape;
    let padded = shape.head_size.next_multiple_of(cpu.level().lanes());
    let queries = problem.group() * shape.query_time;
    let output = Disjoint::new(output);
    let log_sum_exp = log_sum_exp.map(Disjoint::new);
    cpu.pool().run(shape.batch * shape.key_value_heads, |task| {
        let (batch, key_head) = (task / shape.key_value_heads, task % shape.key_value_heads);
        with_scratch([queries * padded, queries * padded, 2 * queries, BLOCK], |scratch| {
            cpu.level().run(Sequence { problem, batch, key_head, output, log_sum_exp, padded, scratch });
        });
    });
}

/// One task.
struct Sequence<'a> {
    problem: &'a Problem<'a>,
    batch: usize,
    key_head: usize,
    output: Disjoint<'a, f32>,
    log_sum_exp: Option<Disjoint<'a, f32>>,
    padded: usize,
    scratch: [super::Scratch; 4],
}

impl Kernel for Sequence<'_> {
    type Output = ();

    #[inline(always)]
    fn run<V: Vector>(self) {
        let Self { problem, batch, key_head, padded, .. } = self;
        let shape = &problem.shape;
        let head_size = shape.head_size;
        let [query_rows, output, statistics, scores] = self.scratch;
        let group = problem.group();
        let queries = group * shape.query_time;
        // Query `i` of head `g` of the group is number `i * group + g`: by rising number of keys seen.
        let head_of = |number: usize| key_head * group + number % group;
        let key_end = problem.seen(batch, shape.query_time - 1);
        // SAFETY: `run` sized the scratch pieces for `queries`; indices of inputs and outputs are in bounds because
        // `ops` checked the lengths, and no other task has these heads of this sequence.
        unsafe {
            for number in 0..queries {
                let source = problem.query_layout.at(batch, number / group, head_of(number));
                let source = problem.query.as_ptr().add(source);
                for d in (0..padded).step_by(V::LANES) {
                    let value = V::load_partial(source.add(d), V::LANES.min(head_size - d));
                    value.mul(V::splat(shape.scale * LOG2_E)).store(query_rows.add(number * padded + d));
                    V::zero().store(output.add(number * padded + d));
                }
                *statistics.add(2 * number) = FLOOR;
                *statistics.add(2 * number + 1) = 0.0;
            }
            for key in (0..key_end).step_by(BLOCK) {
                let keys = problem.key_value.as_ptr().add(problem.key_layout.at(batch, key, key_head));
                let values = problem.key_value.as_ptr().add(problem.value_layout.at(batch, key, key_head));
                for number in 0..queries {
                    let query = number / group;
                    let count = BLOCK.min(problem.seen(batch, query).saturating_sub(key));
                    if count == 0 {
                        continue;
                    }
                    dot_products::<V>(
                        query_rows.add(number * padded),
                        keys,
                        problem.key_layout.row,
                        head_size,
                        count,
                        scores,
                    );
                    if let Some(bias) = problem.bias {
                        let bias = bias.as_ptr().add(problem.element(0, head_of(number), query, key));
                        for j in 0..count {
                            *scores.add(j) += LOG2_E * *bias.add(j);
                        }
                    }
                    let statistics = statistics.add(2 * number);
                    let rescale = softmax::<V>(scores, count, statistics);
                    weighted_sum::<V>(
                        scores,
                        values,
                        problem.value_layout.row,
                        head_size,
                        count,
                        rescale,
                        output.add(number * padded),
                    );
                }
            }
            for number in 0..queries {
                let (query, head) = (number / group, head_of(number));
                let (maximum, sum) = (*statistics.add(2 * number), *statistics.add(2 * number + 1));
                let row = (batch * shape.query_time + query) * shape.query_columns() + head * head_size;
                let factor = V::splat(if sum == 0.0 { 0.0 } else { 1.0 / sum });
                for d in (0..head_size).step_by(V::LANES) {
                    let value = V::load(output.add(number * padded + d)).mul(factor);
                    value.store_partial(self.output.as_ptr().add(row + d), V::LANES.min(head_size - d));
                }
                if let Some(log_sum_exp) = self.log_sum_exp {
                    let value = if sum == 0.0 { f32::NEG_INFINITY } else { maximum * LN_2 + sum.ln() };
                    let row = (batch * shape.heads + head) * shape.query_time + query;
                    *log_sum_exp.as_ptr().add(row) = value;
                }
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
            let rows = 4.min(count - j);
            let mut sums = [V::zero(); 4];
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

/// Turns scores into probabilities relative to the running maximum; returns the factor of earlier sums.
#[inline(always)]
unsafe fn softmax<V: Vector>(scores: *mut f32, count: usize, statistics: *mut f32) -> f32 {
    // SAFETY: the caller's: `count` scores in a block of `BLOCK`, a maximum and a sum.
    unsafe {
        for j in count..count.next_multiple_of(V::LANES) {
            *scores.add(j) = f32::NEG_INFINITY;
        }
        let old = *statistics;
        let mut maximum = V::splat(old);
        for j in (0..count).step_by(V::LANES) {
            maximum = maximum.max(V::load(scores.add(j)));
        }
        let maximum = maximum.reduce_max();
        let mut sum = V::zero();
        for j in (0..count).step_by(V::LANES) {
            let probability = exp2(V::load(scores.add(j)).sub(V::splat(maximum)));
            probability.store(scores.add(j));
            sum = sum.add(probability);
        }
        let rescale = (old - maximum).exp2();
        *statistics = maximum;
        *statistics.add(1) = *statistics.add(1) * rescale + sum.reduce_add();
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
