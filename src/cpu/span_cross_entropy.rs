//! Loss of extractive question answering on the CPU, a task for each span.
//!
//! A span's logits are starts and ends in turn, and so are the lanes of a vector that is loaded at any position: even
//! lanes belong to the softmax over starts, odd ones to that over ends, and both are computed at once. Only where sums
//! and maxima of lanes are taken are the two kept apart.

use super::simd::{Kernel, Vector, math};
use super::{Cpu, Disjoint};
use crate::ops::span_cross_entropy::*;

/// Lanes of the widest vector, at most.
const MOST_LANES: usize = 64;

/// Start and end.
type Pair = [f32; 2];

/// Computes the loss of every span.
pub fn forward(cpu: &Cpu, shape: &Shape, arguments: Forward<'_>) {
    let Forward { logits, spans, targets, losses } = arguments;
    let (logits, spans, targets) = (logits.host(), spans.host(), targets.host());
    let losses = Disjoint::new(losses.host());
    cpu.pool().run_pieces(shape.spans, 1, |index, _| {
        let target = &targets[2 * index..][..2];
        let span = Span::of(&spans[3 * index..][..3]);
        // SAFETY: every task has its own place.
        let loss = unsafe { &mut losses.get(index..index + 1)[0] };
        *loss = 0.0;
        if target[0] != shape.ignored {
            // Only read: there is no gradient to put there.
            let logits = logits.as_ptr().cast_mut();
            *loss = cpu.level().run(OneSpan { logits, span, target: [target[0], target[1]], grad_loss: None });
        }
    });
}

/// Computes the loss of every span, and replaces the logits by their gradients.
pub fn forward_backward(cpu: &Cpu, shape: &Shape, arguments: ForwardBackward<'_>) {
    let ForwardBackward { logits, spans, targets, losses, grad_loss } = arguments;
    let (logits, spans, targets) = (Disjoint::new(logits.host()), spans.host(), targets.host());
    let losses = Disjoint::new(losses.host());
    // The last task has no span: it zeroes what lies behind all of them.
    cpu.pool().run_pieces(shape.spans + 1, 1, |index, _| {
        let behind = if index == 0 { 0 } else { spans[3 * index - 1] as usize };
        // SAFETY: each task writes from the end of the span before to the end of its own, which `ops` checked.
        let zero = |from: usize, to: usize| unsafe { logits.get(2 * from..2 * to) }.fill(0.0);
        if index == shape.spans {
            return zero(behind, shape.positions);
        }
        let target = &targets[2 * index..][..2];
        let span = Span::of(&spans[3 * index..][..3]);
        // SAFETY: every task has its own place.
        let loss = unsafe { &mut losses.get(index..index + 1)[0] };
        if target[0] == shape.ignored {
            *loss = 0.0;
            return zero(behind, span.end);
        }
        let logits = logits.as_ptr();
        let grad_loss = Some(grad_loss);
        *loss = cpu.level().run(OneSpan { logits, span, target: [target[0], target[1]], grad_loss });
        zero(behind, span.start());
        zero(span.no_answer.map_or(span.first, |position| position + 1), span.first);
    });
}

/// A span that counts.
struct OneSpan {
    /// The first logit of all.
    logits: *mut f32,
    span: Span,
    target: [i32; 2],
    /// Where the gradient is wanted.
    grad_loss: Option<f32>,
}

impl Kernel for OneSpan {
    /// The loss.
    type Output = f32;

    #[inline(always)]
    fn run<V: Vector>(self) -> f32 {
        const { assert!(V::LANES.is_multiple_of(2) && V::LANES <= MOST_LANES) };
        let Span { no_answer, first, end } = self.span;
        // SAFETY: `ops` checked that the span and its targets are positions; the caller alone uses them, and may write
        // where there is a gradient.
        unsafe {
            let (range, length) = (self.logits.add(2 * first), 2 * (end - first));
            let pair_at = |position: usize| [0, 1].map(|side| *self.logits.add(2 * position + side));
            let wanted = [0, 1].map(|side| *self.logits.add(2 * self.target[side] as usize + side));
            let alone = no_answer.map(pair_at);

            let mut maxima = largest::<V>(range, length);
            if let Some(alone) = alone {
                // Not `f32::max`: a NaN is left to the sums.
                maxima = [0, 1].map(|side| if alone[side] > maxima[side] { alone[side] } else { maxima[side] });
            }
            let mut sums = sum_of_exponentials::<V>(range, length, maxima);
            if let Some(alone) = alone {
                sums = [0, 1].map(|side| sums[side] + (alone[side] - maxima[side]).exp());
            }
            let loss = |side: usize| sums[side].ln() + (maxima[side] - wanted[side]);
            if let Some(grad_loss) = self.grad_loss {
                let half = 0.5 * grad_loss;
                let scales = sums.map(|sum| half / sum);
                replace_by_gradient::<V>(range, length, maxima, scales);
                if let (Some(alone), Some(position)) = (alone, no_answer) {
                    for side in [0, 1] {
                        *self.logits.add(2 * position + side) = (alone[side] - maxima[side]).exp() * scales[side];
                    }
                }
                for side in [0, 1] {
                    *self.logits.add(2 * self.target[side] as usize + side) -= half;
                }
            }
            0.5 * (loss(0) + loss(1))
        }
    }
}

/// A vector of starts and ends in turn.
#[inline(always)]
fn in_turn<V: Vector>(pair: Pair) -> V {
    let mut lanes = [0.0f32; MOST_LANES];
    for (lane, value) in lanes.iter_mut().enumerate() {
        *value = pair[lane % 2];
    }
    // SAFETY: a vector has no more lanes.
    unsafe { V::load(lanes.as_ptr()) }
}

/// Combines a vector's even lanes, and its odd ones, in order.
#[inline(always)]
fn combined<V: Vector>(vector: V, combine: impl Fn(f32, f32) -> f32) -> Pair {
    let mut lanes = [0.0f32; MOST_LANES];
    // SAFETY: a vector has no more lanes.
    unsafe { vector.store(lanes.as_mut_ptr()) };
    let (pairs, _) = lanes[..V::LANES].as_chunks::<2>();
    let mut result = pairs[0];
    for pair in &pairs[1..] {
        result = [combine(result[0], pair[0]), combine(result[1], pair[1])];
    }
    result
}

/// The largest start and end. Finite, so that a span of nothing but -∞ gives e^-∞ = 0 rather than e^(∞ - ∞).
///
/// # Safety
/// `range` is valid for reads of `length` values.
#[inline(always)]
unsafe fn largest<V: Vector>(range: *const f32, length: usize) -> Pair {
    let mut maxima = V::splat(f32::MIN);
    for i in (0..length).step_by(V::LANES) {
        let count = V::LANES.min(length - i);
        // SAFETY: the caller's contract.
        let x = unsafe { V::load_up_to(range.add(i), count) };
        // Where one is NaN this keeps the old maximum, and the sum becomes NaN.
        maxima = V::select(V::first_lanes(count), x, maxima).max(maxima);
    }
    combined(maxima, |a, b| if b > a { b } else { a })
}

/// `Σ e^(x - maximum)` of starts and of ends.
///
/// # Safety
/// `range` is valid for reads of `length` values.
#[inline(always)]
unsafe fn sum_of_exponentials<V: Vector>(range: *const f32, length: usize, maxima: Pair) -> Pair {
    let (mut sums, maxima) = (V::zero(), in_turn::<V>(maxima));
    for i in (0..length).step_by(V::LANES) {
        let count = V::LANES.min(length - i);
        // SAFETY: the caller's contract.
        let x = unsafe { V::load_up_to(range.add(i), count) };
        let exponential = math::exp_nonpositive(x.sub(maxima));
        sums = sums.add(V::select(V::first_lanes(count), exponential, V::zero()));
    }
    combined(sums, |a, b| a + b)
}

/// `x ← e^(x - maximum) · scale`
///
/// # Safety
/// `range` is valid for `length` values.
#[inline(always)]
unsafe fn replace_by_gradient<V: Vector>(range: *mut f32, length: usize, maxima: Pair, scales: Pair) {
    let (maxima, scales) = (in_turn::<V>(maxima), in_turn::<V>(scales));
    for i in (0..length).step_by(V::LANES) {
        // SAFETY: the caller's contract.
        unsafe {
            let place = range.add(i);
            let exponential = math::exp_nonpositive(V::load_up_to(place, length - i).sub(maxima));
            exponential.mul(scales).store_up_to(place, length - i);
        }
    }
}
