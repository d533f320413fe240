//! Layer norm and RMS norm on the CPU: a row is read from memory once and stays in the first-level cache for the passes
//! over it. An RMS norm is a layer norm whose mean is zero and is not computed.
//!
//! Forward: sum, then squares around the mean (a second pass costs nothing there and loses no digits), then scale and
//! shift. Backward, with x̂ = (x - mean) · rstd and g = grad_output · w:
//!
//! ```text
//! grad_input = rstd · (g - mean(g) - x̂ · mean(g · x̂))     grad_weight = Σ_rows grad_output · x̂     grad_bias = Σ_rows grad_output
//! ```
//!
//! without `mean(g)` for an RMS norm.
//!
//! The sums over rows are taken per chunk of rows, then over chunks in order; the number of chunks depends on the
//! problem only. Rows are handled in groups, so that the running sums are loaded and stored once for all of them, and
//! the last pass over one group of rows asks for the next.

use super::simd::{Kernel, Vector};
use super::{Cpu, Disjoint, scratch};
use crate::ops::Write;
use crate::ops::layer_norm::*;
use std::ops::Range;

/// Values in one task of the forward pass: big enough to hide the cost of claiming it, small enough for a cache.
const TASK_VALUES: usize = 16 * 1024;
/// Most rows handled together in the backward pass.
const GROUP_MAX: usize = 4;
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
    let Shape { kind, rows, channels, epsilon } = *shape;
    if channels == 0 {
        return;
    }
    let input = arguments.input.host();
    let residual = arguments.residual.map(|(residual, sum)| (residual.host(), Disjoint::new(sum.host())));
    let (weight, bias) = (arguments.weight.host(), arguments.bias.map(|bias| bias.host()));
    let output = Disjoint::new(arguments.output.host());
    let statistics = arguments.statistics.map(|Statistics { mean, reciprocal_deviation }| {
        (mean.map(|mean| Disjoint::new(mean.host())), Disjoint::new(reciprocal_deviation.host()))
    });
    cpu.pool().run_pieces(rows, TASK_VALUES / channels, |_, range| {
        let values = range.start * channels..range.end * channels;
        // SAFETY: the ranges of different tasks do not overlap.
        let part = |target: &Disjoint<'_, f32>, range: &Range<usize>| unsafe { target.get(range.clone()) }.as_mut_ptr();
        let statistics =
            statistics.as_ref().map(|(mean, rstd)| (mean.as_ref().map(|mean| part(mean, &range)), part(rstd, &range)));
        cpu.level().run(ForwardRows {
            rows: range.len(),
            channels,
            is_centred: kind == Norm::Layer,
            epsilon,
            input: input[values.clone()].as_ptr(),
            residual: residual.as_ref().map(|(residual, sum)| (residual[values.clone()].as_ptr(), part(sum, &values))),
            weight,
            bias,
            output: part(&output, &values),
            statistics,
            is_streaming: rows * channels > STREAMING_VALUES,
        });
    });
}

/// Some rows of the forward pass, at the start of each pointer.
struct ForwardRows<'a> {
    rows: usize,
    channels: usize,
    /// The mean is taken off first.
    is_centred: bool,
    epsilon: f32,
    input: *const f32,
    residual: Option<(*const f32, *mut f32)>,
    weight: &'a [f32],
    bias: Option<&'a [f32]>,
    output: *mut f32,
    /// Mean, of a layer norm, and reciprocal deviation, where they are wanted.
    statistics: Option<(Option<*mut f32>, *mut f32)>,
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
                let mean = if self.is_centred { row_sum::<V>(x, channels) / channels as f32 } else { 0.0 };
                let variance = row_squares::<V>(x, mean, channels) / channels as f32;
                let reciprocal_deviation = 1.0 / (variance + self.epsilon).sqrt();
                let scale = Scale { row: x, mean: V::splat(mean), rstd: V::splat(reciprocal_deviation) };
                let output = self.output.add(start);
                let whole = channels / V::LANES * V::LANES;
                for column in (0..whole).step_by(V::LANES) {
                    V::prefetch(x.wrapping_add(PREFETCH_ROWS * channels + column));
                    self.scale::<V, true>(&scale, output, column, is_streaming);
                }
                if whole < channels {
                    self.scale::<V, false>(&scale, output, whole, false);
                }
                if let Some((means, reciprocal_deviations)) = self.statistics {
                    if let Some(means) = means {
                        *means.add(row) = mean;
                    }
                    *reciprocal_deviations.add(row) = reciprocal_deviation;
                }
            }
        }
        V::streaming_fence();
    }
}

/// A row and how it is normalised.
struct Scale<V> {
    row: *const f32,
    mean: V,
    rstd: V,
}

impl ForwardRows<'_> {
    /// Writes one vector of a row of the output; a row's last one may not be `WHOLE`.
    ///
    /// # Safety
    /// The row and the output have `channels` values, of which a vector is left from `column` on if it is `WHOLE`.
    #[inline(always)]
    unsafe fn scale<V: Vector, const WHOLE: bool>(
        &self,
        scale: &Scale<V>,
        output: *mut f32,
        column: usize,
        is_streaming: bool,
    ) {
        let left = if WHOLE { V::LANES } else { self.channels - column };
        // SAFETY: the caller's contract; weight and bias have `channels` values too.
        unsafe {
            let normalised = V::load_up_to(scale.row.add(column), left).sub(scale.mean).mul(scale.rstd);
            let weight = V::load_up_to(self.weight.as_ptr().add(column), left);
            let result = match self.bias {
                Some(bias) => normalised.mul_add(weight, V::load_up_to(bias.as_ptr().add(column), left)),
                None => normalised.mul(weight),
            };
            if WHOLE && is_streaming {
                result.store_streaming(output.add(column));
            } else {
                result.store_up_to(output.add(column), left);
            }
        }
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
    let chunk_rows = rows.div_ceil(chunks).next_multiple_of(GROUP_MAX);
    let chunks = rows.div_ceil(chunk_rows.max(1));
    let (input, weight, grad_output) = (arguments.input.host(), arguments.weight.host(), arguments.grad_output.host());
    let Statistics { mean, reciprocal_deviation } = arguments.statistics;
    let (mean, rstd) = (mean.map(|mean| mean.host()), reciprocal_deviation.host());
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
                mean: mean.map(|mean| &mean[range.clone()]),
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
    /// Of a layer norm.
    mean: Option<&'a [f32]>,
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
        // Four rows need 16 registers for their sums and statistics; half of them spilled cost a quarter of the time.
        if V::REGISTERS >= 32 {
            self.groups::<V, GROUP_MAX>();
        } else {
            self.groups::<V, 2>();
        }
        V::streaming_fence();
    }
}

/// Rows that the backward pass handles together.
struct Group<V, const R: usize> {
    /// Where each begins.
    start: [usize; R],
    mean: [V; R],
    rstd: [V; R],
    sum_g: [V; R],
    sum_g_normalised: [V; R],
}

/// How the gradient of the input is written.
#[derive(Clone, Copy)]
enum Store {
    Set,
    Streaming,
    Add,
}

impl BackwardRows<'_> {
    /// All rows, `R` at a time.
    #[inline(always)]
    fn groups<V: Vector, const R: usize>(&self) {
        let whole = self.rows / R * R;
        // SAFETY: rows below `self.rows`.
        unsafe {
            for row in (0..whole).step_by(R) {
                self.group::<V, R>(row);
            }
            for row in whole..self.rows {
                self.group::<V, 1>(row);
            }
        }
    }

    /// `R` rows from `row` on.
    ///
    /// # Safety
    /// `row + R <= rows`, and the pointers are valid for `rows * channels` (the weight and sums: `channels`) values.
    #[inline(always)]
    unsafe fn group<V: Vector, const R: usize>(&self, row: usize) {
        let channels = self.channels;
        let whole = channels / V::LANES * V::LANES;
        let mut group = Group {
            start: std::array::from_fn(|r| (row + r) * channels),
            mean: std::array::from_fn(|r| V::splat(self.mean.map_or(0.0, |mean| mean[row + r]))),
            rstd: std::array::from_fn(|r| V::splat(self.reciprocal_deviation[row + r])),
            sum_g: [V::zero(); R],
            sum_g_normalised: [V::zero(); R],
        };
        // SAFETY: the caller's contract; vectors below `whole` are whole.
        unsafe {
            for column in (0..whole).step_by(V::LANES) {
                self.accumulate::<V, R, true>(&mut group, column);
            }
            if whole < channels {
                self.accumulate::<V, R, false>(&mut group, whole);
            }
            let Some((grad_input, write)) = self.grad_input else { return };
            let store = match write {
                Write::Add => Store::Add,
                Write::Set if self.is_streaming && can_stream::<V>(grad_input, channels) => Store::Streaming,
                Write::Set => Store::Set,
            };
            for r in 0..R {
                let mean_g = if self.mean.is_some() { group.sum_g[r].reduce_add() / channels as f32 } else { 0.0 };
                let mean_g_normalised = group.sum_g_normalised[r].reduce_add() / channels as f32;
                let rstd = self.reciprocal_deviation[row + r];
                let line = Line {
                    start: group.start[r],
                    mean: group.mean[r],
                    rstd: group.rstd[r],
                    slope: V::splat(-rstd * rstd * mean_g_normalised),
                    offset: V::splat(-rstd * mean_g),
                };
                for column in (0..whole).step_by(V::LANES) {
                    let next = line.start + R * channels + column;
                    V::prefetch(self.input.wrapping_add(next));
                    V::prefetch(self.grad_output.wrapping_add(next));
                    self.write::<V, true>(&line, grad_input, column, store);
                }
                if whole < channels {
                    self.write::<V, false>(&line, grad_input, whole, store);
                }
            }
        }
    }

    /// Adds one vector of each row to the running sums.
    ///
    /// # Safety
    /// As [`Self::group`]; a vector is left from `column` on if it is `WHOLE`.
    #[inline(always)]
    unsafe fn accumulate<V: Vector, const R: usize, const WHOLE: bool>(&self, group: &mut Group<V, R>, column: usize) {
        let left = if WHOLE { V::LANES } else { self.channels - column };
        // SAFETY: the caller's contract.
        unsafe {
            let weight = V::load_up_to(self.weight.add(column), left);
            let mut for_weight = V::zero();
            let mut for_bias = V::zero();
            for r in 0..R {
                let place = group.start[r] + column;
                let grad = V::load_up_to(self.grad_output.add(place), left);
                let normalised = V::load_up_to(self.input.add(place), left).sub(group.mean[r]).mul(group.rstd[r]);
                // Lanes behind the row hold zeros in `grad`, so nothing there reaches a sum.
                let g = grad.mul(weight);
                group.sum_g[r] = group.sum_g[r].add(g);
                group.sum_g_normalised[r] = g.mul_add(normalised, group.sum_g_normalised[r]);
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

    /// Writes one vector of a row's gradient.
    ///
    /// # Safety
    /// As [`Self::group`], for `grad_input` too; a vector is left from `column` on if it is `WHOLE`.
    #[inline(always)]
    unsafe fn write<V: Vector, const WHOLE: bool>(
        &self,
        line: &Line<V>,
        grad_input: *mut f32,
        column: usize,
        store: Store,
    ) {
        let left = if WHOLE { V::LANES } else { self.channels - column };
        // SAFETY: the caller's contract.
        unsafe {
            let place = line.start + column;
            let weight = V::load_up_to(self.weight.add(column), left).mul(line.rstd);
            let centred = V::load_up_to(self.input.add(place), left).sub(line.mean);
            let grad = V::load_up_to(self.grad_output.add(place), left);
            let result = centred.mul_add(line.slope, grad.mul_add(weight, line.offset));
            let target = grad_input.add(place);
            match store {
                Store::Streaming if WHOLE => result.store_streaming(target),
                Store::Add => result.add(V::load_up_to(target, left)).store_up_to(target, left),
                _ => result.store_up_to(target, left),
            }
        }
    }
}

/// A row of the gradient of the input as a line over its values, which takes fewer operations than the formula:
/// grad_output · w · rstd + (x - mean) · slope + offset.
struct Line<V> {
    start: usize,
    mean: V,
    rstd: V,
    slope: V,
    offset: V,
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
