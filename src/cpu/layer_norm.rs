//! Layer norm on the CPU: a row is read from memory once and stays in the first-level cache for the passes over it.
//!
//! Forward: sum, then squares around the mean (a second pass costs nothing there and loses no digits), then scale and
//! shift. Backward, with x̂ = (x - mean) · rstd and g = grad_output · w:
//!
//! ```text
//! grad_input = rstd · (g - mean(g) - x̂ · mean(g · x̂))     grad_weight = Σ_rows grad_output · x̂     grad_bias = Σ_rows grad_output
//! ```
//!
//! The sums over rows are taken per chunk of rows, then over chunks in order; the number of chunks depends on the
//! problem only. Rows are handled four at a time, so that the running sums are loaded and stored once for four, and
//! the last pass over one group of rows asks for the next.

use super::simd::{Kernel, Vector};
use super::{Cpu, Disjoint, scratch};
use crate::ops::Write;
use crate::ops::layer_norm::*;
use std::ops::Range;

/// Values in one task of the forward pass: big enough to hide the cost of claiming it, small enough for a cache.
const TASK_VALUES: usize = 16 * 1024;
/// Rows handled together in the backward pass.
const GROUP: usize = 4;
/// How far ahead the forward pass asks for its input: the processor's own prefetching starts anew with each page, which
/// is hardly more than a row.
const PREFETCH_ROWS: usize = 2;
/// Most chunks that the sums over rows are cut into: bounds the memory for them, and the threads that can help.
const CHUNKS_MAX: usize = 64;
/// Fewest values in a chunk of the backward pass.
const CHUNK_VALUES: usize = 16 * 1024;

/// Outputs larger than this would be out of the caches before anything reads them, so they are written past them:
/// that saves reading each line before it is overwritten.
const STREAMING_VALUES: usize = 4 * 1024 * 1024;

/// Normalises each row.
pub fn forward(cpu: &Cpu, shape: &Shape, arguments: Forward<'_>) {
    let Shape { rows, channels, epsilon } = *shape;
    if channels == 0 {
        return;
    }
    let input = arguments.input.host();
    let residual = arguments.residual.map(|(residual, sum)| (residual.host(), Disjoint::new(sum.host())));
    let (weight, bias) = (arguments.weight.host(), arguments.bias.map(|bias| bias.host()));
    let output = Disjoint::new(arguments.output.host());
    let statistics = arguments.statistics.map(|(mean, rstd)| (Disjoint::new(mean.host()), Disjoint::new(rstd.host())));
    cpu.pool().run_pieces(rows, TASK_VALUES / channels, |_, range| {
        let values = range.start * channels..range.end * channels;
        // SAFETY: the ranges of different tasks do not overlap.
        let part = |target: &Disjoint<'_, f32>, range: &Range<usize>| unsafe { target.get(range.clone()) }.as_mut_ptr();
        let (mean, reciprocal_deviation) = match &statistics {
            Some((mean, rstd)) => (part(mean, &range), part(rstd, &range)),
            None => (std::ptr::null_mut(), std::ptr::null_mut()),
        };
        cpu.level().run(ForwardRows {
            rows: range.len(),
            channels,
            epsilon,
            input: input[values.clone()].as_ptr(),
            residual: residual.as_ref().map(|(residual, sum)| (residual[values.clone()].as_ptr(), part(sum, &values))),
            weight,
            bias,
            output: part(&output, &values),
            statistics: (mean, reciprocal_deviation),
            is_streaming: rows * channels > STREAMING_VALUES,
        });
    });
}

/// Some rows of the forward pass, at the start of each pointer.
struct ForwardRows<'a> {
    rows: usize,
    channels: usize,
    epsilon: f32,
    input: *const f32,
    residual: Option<(*const f32, *mut f32)>,
    weight: &'a [f32],
    bias: Option<&'a [f32]>,
    output: *mut f32,
    /// Null where they are not wanted.
    statistics: (*mut f32, *mut f32),
    is_streaming: bool,
}

impl Kernel for ForwardRows<'_> {
    type Output = ();

    #[inline(always)]
    fn run<V: Vector>(self) {
        let channels = self.channels;
        let is_streaming = self.is_streaming && can_stream::<V>(self.output, channels);
        for row in 0..self.rows {
            let start = row * channels;
            // SAFETY (all pointers): every argument has `rows * channels` values, or `channels`, or `rows`.
            unsafe {
                let input = self.input.add(start);
                let x = match self.residual {
                    None => input,
                    Some((residual, sum)) => {
                        add_rows::<V>(input, residual.add(start), sum.add(start), channels);
                        sum.add(start).cast_const()
                    }
                };
                let mean = row_sum::<V>(x, channels) / channels as f32;
                let variance = row_squares::<V>(x, mean, channels) / channels as f32;
                let reciprocal_deviation = 1.0 / (variance + self.epsilon).sqrt();
                let (mean_lanes, rstd) = (V::splat(mean), V::splat(reciprocal_deviation));
                let output = self.output.add(start);
                for column in (0..channels).step_by(V::LANES) {
                    let left = channels - column;
                    V::prefetch(x.wrapping_add(PREFETCH_ROWS * channels + column));
                    let normalised = V::load_up_to(x.add(column), left).sub(mean_lanes).mul(rstd);
                    let weight = V::load_up_to(self.weight.as_ptr().add(column), left);
                    let result = match self.bias {
                        Some(bias) => normalised.mul_add(weight, V::load_up_to(bias.as_ptr().add(column), left)),
                        None => normalised.mul(weight),
                    };
                    if is_streaming {
                        result.store_streaming(output.add(column));
                    } else {
                        result.store_up_to(output.add(column), left);
                    }
                }
                if !self.statistics.0.is_null() {
                    *self.statistics.0.add(row) = mean;
                    *self.statistics.1.add(row) = reciprocal_deviation;
                }
            }
        }
        V::streaming_fence();
    }
}

/// True where rows of `channels` values from `output` on consist of whole, aligned vectors.
#[inline(always)]
fn can_stream<V: Vector>(output: *const f32, channels: usize) -> bool {
    channels.is_multiple_of(V::LANES) && output.addr().is_multiple_of(4 * V::LANES)
}

/// `sum = a + b` over a row.
///
/// # Safety
/// All three are valid for `length` values.
#[inline(always)]
unsafe fn add_rows<V: Vector>(a: *const f32, b: *const f32, sum: *mut f32, length: usize) {
    for i in (0..length).step_by(V::LANES) {
        // SAFETY: the caller's contract.
        unsafe {
            let left = length - i;
            V::load_up_to(a.add(i), left).add(V::load_up_to(b.add(i), left)).store_up_to(sum.add(i), left);
        }
    }
}

/// Sum of a row, in four interleaved chains that hide the latency of the addition.
///
/// # Safety
/// `x` is valid for reads of `length` values.
#[inline(always)]
unsafe fn row_sum<V: Vector>(x: *const f32, length: usize) -> f32 {
    let mut sums = [V::zero(); 4];
    let mut i = 0;
    // SAFETY: the caller's contract.
    unsafe {
        while i + 4 * V::LANES <= length {
            for (j, sum) in sums.iter_mut().enumerate() {
                *sum = sum.add(V::load(x.add(i + j * V::LANES)));
            }
            i += 4 * V::LANES;
        }
        while i < length {
            sums[0] = sums[0].add(V::load_up_to(x.add(i), length - i));
            i += V::LANES;
        }
    }
    sums[0].add(sums[1]).add(sums[2].add(sums[3])).reduce_add()
}

/// Sum of `(x - mean)²` over a row.
///
/// # Safety
/// `x` is valid for reads of `length` values.
#[inline(always)]
unsafe fn row_squares<V: Vector>(x: *const f32, mean: f32, length: usize) -> f32 {
    let mut sums = [V::zero(); 4];
    let mean = V::splat(mean);
    let mut i = 0;
    // SAFETY: the caller's contract.
    unsafe {
        while i + 4 * V::LANES <= length {
            for (j, sum) in sums.iter_mut().enumerate() {
                let centred = V::load(x.add(i + j * V::LANES)).sub(mean);
                *sum = centred.mul_add(centred, *sum);
            }
            i += 4 * V::LANES;
        }
        while i < length {
            let count = V::LANES.min(length - i);
            let centred = V::load_up_to(x.add(i), count).sub(mean);
            // Lanes behind the row hold -mean.
            let centred = V::select(V::first_lanes(count), centred, V::zero());
            sums[0] = centred.mul_add(centred, sums[0]);
            i += V::LANES;
        }
    }
    sums[0].add(sums[1]).add(sums[2].add(sums[3])).reduce_add()
}

/// Computes the gradients that are asked for.
pub fn backward(cpu: &Cpu, shape: &Shape, arguments: Backward<'_>) {
    let Shape { rows, channels, .. } = *shape;
    let wants_sums = arguments.grad_weight.is_some() || arguments.grad_bias.is_some();
    let chunks = (rows * channels).div_ceil(CHUNK_VALUES).clamp(1, CHUNKS_MAX);
    let chunk_rows = rows.div_ceil(chunks).next_multiple_of(GROUP);
    let chunks = rows.div_ceil(chunk_rows.max(1));
    let (input, weight, grad_output) = (arguments.input.host(), arguments.weight.host(), arguments.grad_output.host());
    let (mean, rstd) = (arguments.mean.host(), arguments.reciprocal_deviation.host());
    let grad_input = arguments.grad_input.map(|(grad, write)| (Disjoint::new(grad.host()), write));
    // A line of padding between the chunks' sums, so that no two threads write to one.
    let stride = channels.next_multiple_of(16);
    scratch::with(if wants_sums { 2 * chunks * stride } else { 0 }, |sums| {
        let sums_of_chunks = Disjoint::new(sums);
        cpu.pool().run_pieces(rows, chunk_rows, |chunk, range| {
            let values = range.start * channels..range.end * channels;
            // SAFETY: chunks do not overlap, neither their rows nor their sums.
            let (grad_input, sums) = unsafe {
                let grad_input =
                    grad_input.as_ref().map(|(grad, write)| (grad.get(values.clone()).as_mut_ptr(), *write));
                let sums = wants_sums.then(|| sums_of_chunks.get(2 * chunk * stride..2 * (chunk + 1) * stride));
                (grad_input, sums)
            };
            let sums = sums.map(|sums| {
                sums.fill(0.0);
                (sums.as_mut_ptr(), sums[stride..].as_mut_ptr())
            });
            cpu.level().run(BackwardRows {
                rows: range.len(),
                channels,
                input: input[values.clone()].as_ptr(),
                weight: weight.as_ptr(),
                mean: &mean[range.clone()],
                reciprocal_deviation: &rstd[range],
                grad_output: grad_output[values].as_ptr(),
                grad_input,
                sums,
                is_streaming: rows * channels > STREAMING_VALUES,
            });
        });
        let targets = [(arguments.grad_weight, 0), (arguments.grad_bias, stride)];
        for (target, offset) in targets {
            let Some((target, write)) = target else { continue };
            let target = Disjoint::new(target.host());
            cpu.pool().run_pieces(channels, 1024, |_, columns| {
                // SAFETY: pieces do not overlap; the loop over chunks has ended, so the sums are only read.
                let (target, sums) = unsafe {
                    (target.get(columns.clone()), sums_of_chunks.as_ptr().add(offset + columns.start).cast_const())
                };
                cpu.level().run(SumChunks { sums, chunks, stride: 2 * stride, target, write });
            });
        }
    });
}

/// Some rows of the backward pass, at the start of each pointer.
struct BackwardRows<'a> {
    rows: usize,
    channels: usize,
    input: *const f32,
    weight: *const f32,
    mean: &'a [f32],
    reciprocal_deviation: &'a [f32],
    grad_output: *const f32,
    grad_input: Option<(*mut f32, Write)>,
    /// Running sums for the gradients of weight and bias.
    sums: Option<(*mut f32, *mut f32)>,
    is_streaming: bool,
}

impl Kernel for BackwardRows<'_> {
    type Output = ();

    #[inline(always)]
    fn run<V: Vector>(self) {
        let whole = self.rows / GROUP * GROUP;
        // SAFETY: rows below `self.rows`.
        unsafe {
            for row in (0..whole).step_by(GROUP) {
                self.group::<V, GROUP>(row);
            }
            for row in whole..self.rows {
                self.group::<V, 1>(row);
            }
        }
        V::streaming_fence();
    }
}

impl BackwardRows<'_> {
    /// `R` rows from `row` on.
    ///
    /// # Safety
    /// `row + R <= rows`, and the pointers are valid for `rows * channels` (the weight and sums: `channels`) values.
    #[inline(always)]
    unsafe fn group<V: Vector, const R: usize>(&self, row: usize) {
        let channels = self.channels;
        let start: [usize; R] = std::array::from_fn(|r| (row + r) * channels);
        let mean: [V; R] = std::array::from_fn(|r| V::splat(self.mean[row + r]));
        let rstd: [V; R] = std::array::from_fn(|r| V::splat(self.reciprocal_deviation[row + r]));
        let mut sum_g = [V::zero(); R];
        let mut sum_g_normalised = [V::zero(); R];
        for column in (0..channels).step_by(V::LANES) {
            let left = channels - column;
            // SAFETY: the caller's contract.
            unsafe {
                let weight = V::load_up_to(self.weight.add(column), left);
                let mut for_weight = V::zero();
                let mut for_bias = V::zero();
                for r in 0..R {
                    let grad = V::load_up_to(self.grad_output.add(start[r] + column), left);
                    let normalised = V::load_up_to(self.input.add(start[r] + column), left).sub(mean[r]).mul(rstd[r]);
                    // Lanes behind the row hold zeros in `grad`, so nothing there reaches a sum.
                    let g = grad.mul(weight);
                    sum_g[r] = sum_g[r].add(g);
                    sum_g_normalised[r] = g.mul_add(normalised, sum_g_normalised[r]);
                    for_weight = grad.mul_add(normalised, for_weight);
                    for_bias = for_bias.add(grad);
                }
                if let Some((weight_sums, bias_sums)) = self.sums {
                    let (weight_sums, bias_sums) = (weight_sums.add(column), bias_sums.add(column));
                    V::load_up_to(weight_sums, left).add(for_weight).store_up_to(weight_sums, left);
                    V::load_up_to(bias_sums, left).add(for_bias).store_up_to(bias_sums, left);
                }
            }
        }
        let Some((grad_input, write)) = self.grad_input else { return };
        let is_streaming = self.is_streaming && can_stream::<V>(grad_input, channels) && write == Write::Set;
        for r in 0..R {
            let mean_g = V::splat(sum_g[r].reduce_add() / channels as f32);
            let mean_g_normalised = V::splat(sum_g_normalised[r].reduce_add() / channels as f32);
            for column in (0..channels).step_by(V::LANES) {
                let left = channels - column;
                // SAFETY: the caller's contract.
                unsafe {
                    let g = V::load_up_to(self.grad_output.add(start[r] + column), left)
                        .mul(V::load_up_to(self.weight.add(column), left));
                    let normalised = V::load_up_to(self.input.add(start[r] + column), left).sub(mean[r]).mul(rstd[r]);
                    let centred = normalised.neg_mul_add(mean_g_normalised, g.sub(mean_g));
                    let target = grad_input.add(start[r] + column);
                    V::prefetch(self.input.wrapping_add(start[r] + R * channels + column));
                    V::prefetch(self.grad_output.wrapping_add(start[r] + R * channels + column));
                    if is_streaming {
                        centred.mul(rstd[r]).store_streaming(target);
                    } else if write == Write::Set {
                        centred.mul(rstd[r]).store_up_to(target, left);
                    } else {
                        centred.mul_add(rstd[r], V::load_up_to(target, left)).store_up_to(target, left);
                    }
                }
            }
        }
    }
}

/// Adds up `chunks` rows that lie `stride` apart, in order.
struct SumChunks<'a> {
    sums: *const f32,
    chunks: usize,
    stride: usize,
    target: &'a mut [f32],
    write: Write,
}

impl Kernel for SumChunks<'_> {
    type Output = ();

    #[inline(always)]
    fn run<V: Vector>(self) {
        let length = self.target.len();
        for column in (0..length).step_by(V::LANES) {
            let left = length - column;
            let mut sum = V::zero();
            // SAFETY: each chunk's row has at least as many values as the target, and `left` bounds the last vector.
            unsafe {
                for chunk in 0..self.chunks {
                    sum = sum.add(V::load_up_to(self.sums.add(chunk * self.stride + column), left));
                }
                let target = self.target.as_mut_ptr().add(column);
                if self.write == Write::Add {
                    sum = sum.add(V::load_up_to(target, left));
                }
                sum.store_up_to(target, left);
            }
        }
    }
}
