//! Gated convolution on the CPU. A task takes a block of channels of a row: it gates all positions once, into a tile that
//! stays in the second-level cache, and slides the window over the tile. Where a window lies whole inside its document,
//! four positions share each weight that is loaded; at the edges they go one by one, in the same order of additions, so
//! that packed documents give the same bits as documents alone.
//!
//! Backward, the gradient of the gated values is the same convolution of the output's gradient with the taps reversed.
//! The sums for the gradients of weight and bias are taken per chunk of rows, then over chunks in order; the number of
//! chunks depends on the problem only.

use super::simd::math::{sigmoid, sigmoid_gradient};
use super::simd::{Kernel, Vector};
use super::{Cpu, Disjoint, scratch};
use crate::ops::Write;
use crate::ops::gated_conv::*;
use std::ops::Range;

/// Channels of a task: tiles have rows of this many, the last padded with zeros.
const BLOCK: usize = 64;
/// Vectors of channels that are worked on together.
const WIDTH: usize = 2;
/// Positions that share loaded weights, and taps that share a loaded gradient.
const GROUP: usize = 4;
/// Most chunks that the sums over rows are cut into.
const CHUNKS_MAX: usize = 64;

/// Gates and convolves.
pub fn forward(cpu: &Cpu, shape: &Shape, arguments: Forward<'_>) {
    let Shape { batch, time, channels, taps, .. } = *shape;
    let (input, bias) = (arguments.input.host(), arguments.bias.map(|bias| bias.host()));
    let documents = arguments.documents.map(|documents| documents.host());
    let output = Disjoint::new(arguments.output.host());
    let blocks = channels.div_ceil(BLOCK);
    scratch::with(blocks * taps * BLOCK, |weights| {
        copy_weights(shape, arguments.weight.host(), weights, false);
        let weights = &*weights;
        cpu.pool().run(batch * blocks, |task| {
            let part = Part::new(shape, documents, task / blocks, task % blocks);
            scratch::with(time * BLOCK, |gated| {
                cpu.level().run(ForwardPart {
                    input,
                    weights: &weights[task % blocks * taps * BLOCK..][..taps * BLOCK],
                    bias: bias.map(|bias| &bias[part.channel..part.channel + part.width]),
                    gated,
                    output: &output,
                    part,
                });
            });
        });
    });
}

/// Computes the gradients that are asked for.
pub fn backward(cpu: &Cpu, shape: &Shape, arguments: Backward<'_>) {
    let Shape { batch, time, channels, taps, .. } = *shape;
    let (input, grad_output) = (arguments.input.host(), arguments.grad_output.host());
    let documents = arguments.documents.map(|documents| documents.host());
    let grad_input = arguments.grad_input.map(|(grad, write)| (Disjoint::new(grad.host()), write));
    let wants_sums = arguments.grad_weight.is_some() || arguments.grad_bias.is_some();
    let blocks = channels.div_ceil(BLOCK);
    let chunk_rows = batch.div_ceil(CHUNKS_MAX).max(1);
    let chunks = batch.div_ceil(chunk_rows);
    // Of each chunk and block: a row for each tap, and one for the bias.
    let sums_length = (taps + 1) * BLOCK;
    scratch::with(blocks * taps * BLOCK, |weights| {
        copy_weights(shape, arguments.weight.host(), weights, true);
        let weights = &*weights;
        scratch::with(if wants_sums { chunks * blocks * sums_length } else { 0 }, |sums| {
            let all_sums = Disjoint::new(sums);
            cpu.pool().run(chunks * blocks, |task| {
                let (chunk, block) = (task / blocks, task % blocks);
                // SAFETY: a task has its sums to itself.
                let mut sums =
                    wants_sums.then(|| unsafe { all_sums.get(task * sums_length..(task + 1) * sums_length) });
                if let Some(sums) = &mut sums {
                    sums.fill(0.0);
                }
                scratch::with(2 * time * BLOCK, |memory| {
                    let (gated, gradients) = memory.split_at_mut(time * BLOCK);
                    for row in chunk * chunk_rows..batch.min((chunk + 1) * chunk_rows) {
                        cpu.level().run(BackwardPart {
                            part: Part::new(shape, documents, row, block),
                            input,
                            weights: &weights[block * taps * BLOCK..][..taps * BLOCK],
                            grad_output,
                            gated: &mut *gated,
                            gradients: &mut *gradients,
                            grad_input: grad_input.as_ref().map(|(grad, write)| (grad, *write)),
                            sums: sums.as_deref_mut(),
                        });
                    }
                });
            });
            // SAFETY: the loop has ended, and the sums are only read.
            let sums = unsafe { all_sums.get(0..all_sums.len()) };
            let total = |block: usize, tap: usize, c: usize| -> f32 {
                let of_chunk = |chunk: usize| sums[(chunk * blocks + block) * sums_length + tap * BLOCK + c];
                (0..chunks).fold(0.0, |sum, chunk| sum + of_chunk(chunk))
            };
            let put = |target: &mut f32, value: f32, write: Write| match write {
                Write::Set => *target = value,
                Write::Add => *target += value,
            };
            if let Some((grad, write)) = arguments.grad_weight {
                let grad = Disjoint::new(grad.host());
                cpu.pool().run_pieces(channels, BLOCK, |block, columns| {
                    // SAFETY: pieces do not overlap.
                    let grad = unsafe { grad.get(columns.start * taps..columns.end * taps) };
                    for (i, target) in grad.iter_mut().enumerate() {
                        put(target, total(block, i % taps, i / taps), write);
                    }
                });
            }
            if let Some((grad, write)) = arguments.grad_bias {
                for (c, target) in grad.host().iter_mut().enumerate() {
                    put(target, total(c / BLOCK, taps, c % BLOCK), write);
                }
            }
        });
    });
}

/// Lays the weights out as tiles, `(blocks, K, BLOCK)`, the taps in order or reversed; zero where a tap is left out.
fn copy_weights(shape: &Shape, weight: &[f32], tiles: &mut [f32], is_reversed: bool) {
    let taps = shape.taps;
    tiles.fill(0.0);
    for (i, &value) in weight.iter().enumerate() {
        let (c, tap) = (i / taps, i % taps);
        if shape.excluded() != Some(tap) {
            let place = if is_reversed { taps - 1 - tap } else { tap };
            tiles[(c / BLOCK * taps + place) * BLOCK + c % BLOCK] = value;
        }
    }
}

/// A block of channels of a row.
struct Part<'a> {
    shape: &'a Shape,
    /// Of this row.
    documents: Option<&'a [i32]>,
    /// First position of the row, counted over the batch.
    place: usize,
    /// First channel, and how many.
    channel: usize,
    width: usize,
}

impl<'a> Part<'a> {
    fn new(shape: &'a Shape, documents: Option<&'a [i32]>, row: usize, block: usize) -> Self {
        let Shape { time, channels, .. } = *shape;
        let channel = block * BLOCK;
        Self {
            shape,
            documents: documents.map(|documents| &documents[2 * row * time..2 * (row + 1) * time]),
            place: row * time,
            channel,
            width: BLOCK.min(channels - channel),
        }
    }

    /// The document of a position; empty where it is padding.
    #[inline(always)]
    fn document(&self, t: usize) -> Range<usize> {
        self.documents.map_or(0..self.shape.time, |found| found[2 * t] as usize..found[2 * t + 1] as usize)
    }

    /// Calls `body` for each document of the row, and with an empty range at `t` for each position `t` of padding.
    #[inline(always)]
    fn for_each_document(&self, mut body: impl FnMut(Range<usize>)) {
        let mut t = 0;
        while t < self.shape.time {
            let document = self.document(t);
            let document = if document.is_empty() { t..t } else { document };
            t = document.end.max(t + 1);
            body(document);
        }
    }

    /// The columns of a tile that hold channels, in steps of `WIDTH` vectors.
    #[inline(always)]
    fn columns<V: Vector>(&self) -> impl Iterator<Item = usize> + use<V> {
        (0..self.width).step_by(WIDTH * V::LANES)
    }

    /// Fills a tile with `value(t, column, left)`, where `left` channels are left from `column` on.
    #[inline(always)]
    fn fill<V: Vector>(&self, tile: &mut [f32], value: impl Fn(usize, usize, usize) -> V) {
        assert!(tile.len() >= self.shape.time * BLOCK);
        for t in 0..self.shape.time {
            for column in self.columns::<V>() {
                for column in [column, column + V::LANES] {
                    let left = self.width.saturating_sub(column);
                    let value = if left > 0 { value(t, column, left) } else { V::zero() };
                    // SAFETY: a whole vector of the tile.
                    unsafe { value.store(tile.as_mut_ptr().add(t * BLOCK + column)) };
                }
            }
        }
    }

    /// Calls `emit(t, column, left, y)` for all of `y[t] = start + Σ_k weights[k] · tile[t + (k - origin) · dilation]`,
    /// and with zero for padding.
    #[inline(always)]
    fn convolve<V: Vector>(
        &self,
        tile: &[f32],
        weights: &[f32],
        origin: usize,
        start: impl Fn(usize) -> V,
        mut emit: impl FnMut(usize, usize, usize, V),
    ) {
        let Shape { time, taps, dilation, .. } = *self.shape;
        assert!(tile.len() >= time * BLOCK && weights.len() == taps * BLOCK);
        let mut put = |t: usize, column: usize, value: V| {
            if column < self.width {
                emit(t, column, self.width - column, value);
            }
        };
        self.for_each_document(|document| {
            if document.is_empty() {
                for column in (0..self.width).step_by(V::LANES) {
                    put(document.start, column, V::zero());
                }
                return;
            }
            let whole = document.start + origin * dilation
                ..document.end.saturating_sub((taps - 1 - origin).saturating_mul(dilation));
            let mut t = document.start;
            while t < document.end {
                let is_group = whole.start <= t && t + GROUP <= whole.end;
                let inside = if is_group { 0..taps } else { taps_inside(t, &document, taps, origin, dilation) };
                for column in self.columns::<V>() {
                    let starts = [start(column), start(column + V::LANES)];
                    // SAFETY: the taps inside the document are inside the tile, as are two vectors from `column` on.
                    unsafe {
                        let source = tile.as_ptr().add(column);
                        let weights = weights.as_ptr().add(column);
                        let window = Sliding { source, weights, taps: inside.clone(), origin, dilation };
                        if is_group {
                            let sums = window.sum::<V, GROUP>(t, starts);
                            for (i, sums) in sums.into_iter().enumerate() {
                                put(t + i, column, sums[0]);
                                put(t + i, column + V::LANES, sums[1]);
                            }
                        } else {
                            let [sums] = window.sum::<V, 1>(t, starts);
                            put(t, column, sums[0]);
                            put(t, column + V::LANES, sums[1]);
                        }
                    }
                }
                t += if is_group { GROUP } else { 1 };
            }
        });
    }

    /// Adds to `sums[k] = Σ_t gradients[t] · gated[t + (k - origin) · dilation]` for `Q` taps from `tap` on.
    #[inline(always)]
    fn correlate<V: Vector, const Q: usize>(&self, gradients: &[f32], gated: &[f32], tap: usize, sums: &mut [f32]) {
        let Shape { time, taps, dilation, .. } = *self.shape;
        assert!(gradients.len() >= time * BLOCK && gated.len() >= time * BLOCK && sums.len() > taps * BLOCK);
        let origin = self.shape.origin();
        for column in self.columns::<V>() {
            let mut totals = [[V::zero(); WIDTH]; Q];
            self.for_each_document(|document| {
                // Where each tap lies inside the document, and where all do.
                let inside = |tap: usize| {
                    let behind = tap.saturating_sub(origin).saturating_mul(dilation);
                    let before = origin.saturating_sub(tap).saturating_mul(dilation);
                    let start = document.start.saturating_add(before).min(document.end);
                    start..document.end.saturating_sub(behind).max(start)
                };
                let common = inside(tap).start.max(inside(tap + Q - 1).start);
                let common = common..inside(tap).end.min(inside(tap + Q - 1).end).max(common);
                let row = |values: &[f32], t: usize, column: usize| {
                    // SAFETY: positions of the row, and a whole vector of the tile.
                    unsafe { V::load(values.as_ptr().add(t * BLOCK + column)) }
                };
                for t in common.clone() {
                    let gradient = [row(gradients, t, column), row(gradients, t, column + V::LANES)];
                    for (i, total) in totals.iter_mut().enumerate() {
                        let source = t + (tap + i) * dilation - origin * dilation;
                        total[0] = gradient[0].mul_add(row(gated, source, column), total[0]);
                        total[1] = gradient[1].mul_add(row(gated, source, column + V::LANES), total[1]);
                    }
                }
                for (i, total) in totals.iter_mut().enumerate() {
                    let all = inside(tap + i);
                    let edges = if common.is_empty() {
                        [all.clone(), all.end..all.end]
                    } else {
                        [all.start..common.start, common.end..all.end]
                    };
                    for t in edges.into_iter().flatten() {
                        let source = t + (tap + i) * dilation - origin * dilation;
                        for (j, total) in total.iter_mut().enumerate() {
                            let column = column + j * V::LANES;
                            *total = row(gradients, t, column).mul_add(row(gated, source, column), *total);
                        }
                    }
                }
            });
            for (i, total) in totals.iter().enumerate() {
                for (j, total) in total.iter().enumerate() {
                    let place = (tap + i) * BLOCK + column + j * V::LANES;
                    // SAFETY: a whole vector of the sums' row.
                    unsafe {
                        let place = sums[place..place + V::LANES].as_mut_ptr();
                        V::load(place).add(*total).store(place);
                    }
                }
            }
        }
    }
}

/// A window over a tile, from one column of it on.
struct Sliding {
    source: *const f32,
    weights: *const f32,
    taps: Range<usize>,
    origin: usize,
    dilation: usize,
}

impl Sliding {
    /// The sums at `G` positions from `t` on.
    ///
    /// # Safety
    /// The taps of all these positions, and of each `WIDTH` vectors of values and weights, can be read.
    #[inline(always)]
    unsafe fn sum<V: Vector, const G: usize>(&self, t: usize, starts: [V; WIDTH]) -> [[V; WIDTH]; G] {
        let mut sums = [starts; G];
        for tap in self.taps.clone() {
            let row = t + tap * self.dilation - self.origin * self.dilation;
            // SAFETY: the caller's contract.
            unsafe {
                let weights = self.weights.add(tap * BLOCK);
                let weight = [V::load(weights), V::load(weights.add(V::LANES))];
                for (i, sums) in sums.iter_mut().enumerate() {
                    let source = self.source.add((row + i) * BLOCK);
                    sums[0] = weight[0].mul_add(V::load(source), sums[0]);
                    sums[1] = weight[1].mul_add(V::load(source.add(V::LANES)), sums[1]);
                }
            }
        }
        sums
    }
}

/// Reads the input's two halves.
///
/// # Safety
/// `left` channels, up to a vector, are left from `column` of the part on.
#[inline(always)]
unsafe fn halves<V: Vector>(part: &Part<'_>, input: &[f32], t: usize, column: usize, left: usize) -> (V, V) {
    let channels = part.shape.channels;
    let value = &input[(part.place + t) * 2 * channels + part.channel + column..];
    // SAFETY: the caller's contract; the gate's half lies behind.
    unsafe { (V::load_up_to(value.as_ptr(), left), V::load_up_to(value[channels..].as_ptr(), left)) }
}

struct ForwardPart<'a> {
    part: Part<'a>,
    input: &'a [f32],
    weights: &'a [f32],
    bias: Option<&'a [f32]>,
    gated: &'a mut [f32],
    output: &'a Disjoint<'a, f32>,
}

impl Kernel for ForwardPart<'_> {
    type Output = ();

    #[inline(always)]
    fn run<V: Vector>(self) {
        let Self { part, input, weights, bias, gated, output } = self;
        part.fill::<V>(gated, |t, column, left| {
            // SAFETY: `left` channels are left.
            let (value, gate) = unsafe { halves::<V>(&part, input, t, column, left) };
            value.mul(sigmoid(gate))
        });
        let start = |column: usize| match bias {
            Some(bias) if column < bias.len() => {
                // SAFETY: so many values are left.
                unsafe { V::load_up_to(bias[column..].as_ptr(), bias.len() - column) }
            }
            _ => V::zero(),
        };
        let origin = part.shape.origin();
        part.convolve::<V>(gated, weights, origin, start, |t, column, left, value| {
            let place = (part.place + t) * part.shape.channels + part.channel + column;
            // SAFETY: a task has its channels of its row to itself.
            unsafe { value.store_up_to(output.get(place..place + left.min(V::LANES)).as_mut_ptr(), left) };
        });
    }
}

struct BackwardPart<'a> {
    part: Part<'a>,
    input: &'a [f32],
    /// With the taps reversed.
    weights: &'a [f32],
    grad_output: &'a [f32],
    gated: &'a mut [f32],
    /// Room for a tile of the output's gradient.
    gradients: &'a mut [f32],
    grad_input: Option<(&'a Disjoint<'a, f32>, Write)>,
    sums: Option<&'a mut [f32]>,
}

impl Kernel for BackwardPart<'_> {
    type Output = ();

    #[inline(always)]
    fn run<V: Vector>(self) {
        let Self { part, input, weights, grad_output, gated, gradients, grad_input, sums } = self;
        let Shape { channels, taps, .. } = *part.shape;
        part.fill::<V>(gradients, |t, column, left| {
            // What padding's gradient is reaches nothing.
            if part.document(t).is_empty() {
                return V::zero();
            }
            let source = &grad_output[(part.place + t) * channels + part.channel + column..];
            // SAFETY: `left` channels are left.
            unsafe { V::load_up_to(source.as_ptr(), left) }
        });
        let gradients = &*gradients;
        if let Some((grad_input, write)) = grad_input {
            let origin = taps - 1 - part.shape.origin();
            part.convolve::<V>(
                gradients,
                weights,
                origin,
                |_| V::zero(),
                |t, column, left, gradient| {
                    let start = (part.place + t) * 2 * channels + part.channel + column;
                    let count = left.min(V::LANES);
                    // SAFETY: `left` channels are left; a task has its channels of its row to itself.
                    unsafe {
                        let (value, gate) = halves::<V>(&part, input, t, column, left);
                        let for_value = gradient.mul(sigmoid(gate));
                        let for_gate = gradient.mul(value).mul(sigmoid_gradient(gate));
                        for (start, result) in [(start, for_value), (start + channels, for_gate)] {
                            let target = grad_input.get(start..start + count).as_mut_ptr();
                            let result = match write {
                                Write::Set => result,
                                Write::Add => result.add(V::load_up_to(target, left)),
                            };
                            result.store_up_to(target, left);
                        }
                    }
                },
            );
        }
        let Some(sums) = sums else { return };
        part.fill::<V>(gated, |t, column, left| {
            // SAFETY: `left` channels are left.
            let (value, gate) = unsafe { halves::<V>(&part, input, t, column, left) };
            value.mul(sigmoid(gate))
        });
        let whole = taps / GROUP * GROUP;
        for tap in (0..whole).step_by(GROUP) {
            part.correlate::<V, GROUP>(gradients, gated, tap, sums);
        }
        for tap in whole..taps {
            part.correlate::<V, 1>(gradients, gated, tap, sums);
        }
        if let Some(excluded) = part.shape.excluded() {
            sums[excluded * BLOCK..(excluded + 1) * BLOCK].fill(0.0);
        }
        let bias = &mut sums[taps * BLOCK..];
        for row in gradients.chunks_exact(BLOCK).take(part.shape.time) {
            bias[..part.width].iter_mut().zip(row).for_each(|(sum, gradient)| *sum += gradient);
        }
    }
}
