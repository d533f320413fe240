//! Softmax cross-entropy on the CPU: each row of logits is read from memory once, and its gradient written where it
//! was while the row is still in the second-level cache.
//!
//! The first pass goes block by block, a block being what the first-level cache holds: find the block's largest logit,
//! raise the running maximum `m` to it, then add up `e^(x - m)` (online softmax, Milakov and Gimelshein 2018, with one
//! exponential for each logit because the maximum moves only between blocks). When the gradient is wanted, the
//! exponentials are kept where the logits were, and the second pass only multiplies them by `e^(m_block - m) / sum`.
//!
//! While a block's exponentials are computed, the next block is fetched: that took 20 to 25 % off the time of large
//! vocabularies. Fetching the next row during the second pass, which memory has free, made it slower again.

use super::simd::{Kernel, Vector, math};
use super::{Cpu, Disjoint, scratch};
use crate::ops::View;
use crate::ops::softmax_cross_entropy::*;

/// Logits in a block.
const BLOCK: usize = 2048;
/// Values in one task where rows are short.
const TASK_VALUES: usize = 16 * 1024;

/// Rows in a task: several where there are many, since the end of a row fetches the start of the next.
fn rows_of_task(shape: &Shape) -> usize {
    (TASK_VALUES / shape.vocabulary.max(1)).max((shape.rows / 64).min(4))
}

/// Computes the loss of every row.
pub fn forward(cpu: &Cpu, shape: &Shape, arguments: Forward<'_>) {
    let logits = arguments.logits.host();
    let losses = Disjoint::new(arguments.losses.host());
    let targets = arguments.targets.host();
    let class_weights = ClassWeights::new(arguments.class_weights);
    let vocabulary = shape.vocabulary;
    cpu.pool().run_pieces(shape.rows, rows_of_task(shape), |_, range| {
        // SAFETY: the ranges of different tasks do not overlap.
        let losses = unsafe { losses.get(range.clone()) };
        // Only read: `Rows` writes to the logits where there is a gradient to put there.
        let logits = logits[range.start * vocabulary..range.end * vocabulary].as_ptr().cast_mut();
        cpu.level().run(Rows { shape, logits, targets: &targets[range], class_weights, losses, gradient: None });
    });
}

/// Computes the loss of every row, and replaces the logits by their gradients.
pub fn forward_backward(cpu: &Cpu, shape: &Shape, arguments: ForwardBackward<'_>) {
    let logits = Disjoint::new(arguments.logits.host());
    let losses = Disjoint::new(arguments.losses.host());
    let targets = arguments.targets.host();
    let class_weights = ClassWeights::new(arguments.class_weights);
    let vocabulary = shape.vocabulary;
    cpu.pool().run_pieces(shape.rows, rows_of_task(shape), |_, range| {
        // SAFETY: the ranges of different tasks do not overlap.
        let (losses, logits) =
            unsafe { (losses.get(range.clone()), logits.get(range.start * vocabulary..range.end * vocabulary)) };
        scratch::with(vocabulary.div_ceil(BLOCK), |block_maxima| {
            let gradient = Some(Gradient { grad_loss: arguments.grad_loss, block_maxima });
            let logits = logits.as_mut_ptr();
            cpu.level().run(Rows { shape, logits, targets: &targets[range], class_weights, losses, gradient });
        });
    });
}

/// Weights of classes, and their sum.
#[derive(Clone, Copy)]
struct ClassWeights<'a> {
    weights: &'a [f32],
    sum: f32,
}

impl<'a> ClassWeights<'a> {
    fn new(weights: Option<View<'a, f32>>) -> Option<Self> {
        let weights = weights?.host();
        Some(Self { weights, sum: weights.iter().map(|&weight| f64::from(weight)).sum::<f64>() as f32 })
    }
}

/// What the loss wants of a row.
struct Wanted {
    /// Of the target, times its weight.
    of_target: f32,
    /// Of every class before its weight.
    of_class: f32,
    /// Sum over all classes, weights included: what the row's loss is scaled by.
    weight: f32,
    /// Mean of the logits, each as much as it is wanted.
    expected_logit: f32,
}

/// What the gradient needs besides the logits.
struct Gradient<'a> {
    grad_loss: f32,
    /// One for each block of a row: the maximum that its exponentials were taken with.
    block_maxima: &'a mut [f32],
}

/// Some rows, whose first logit `logits` points to.
struct Rows<'a> {
    shape: &'a Shape,
    logits: *mut f32,
    targets: &'a [i32],
    class_weights: Option<ClassWeights<'a>>,
    losses: &'a mut [f32],
    gradient: Option<Gradient<'a>>,
}

impl Kernel for Rows<'_> {
    type Output = ();

    #[inline(always)]
    fn run<V: Vector>(self) {
        let Shape { vocabulary, label_smoothing, ignored, .. } = *self.shape;
        let mut gradient = self.gradient;
        for (row, (&target, loss)) in self.targets.iter().zip(self.losses).enumerate() {
            // SAFETY: `logits` has a row of `vocabulary` values for each target, writable where there is a gradient,
            // and `ops` checked that each target is a class or ignored.
            unsafe {
                let logits = self.logits.add(row * vocabulary);
                if target == ignored {
                    *loss = 0.0;
                    if gradient.is_some() {
                        std::slice::from_raw_parts_mut(logits, vocabulary).fill(0.0);
                    }
                    continue;
                }
                let wanted = wanted::<V>(self.shape, logits, target as usize, self.class_weights);
                let (maximum, sum) = match &mut gradient {
                    Some(gradient) => exponentials::<V, true>(logits, vocabulary, gradient.block_maxima),
                    None => exponentials::<V, false>(logits, vocabulary, &mut []),
                };
                // -Σ wanted(v) ln p(v), with ln p(v) = x(v) - maximum - ln sum.
                *loss = wanted.weight * (sum.ln() + (maximum - wanted.expected_logit));
                if let Some(gradient) = &gradient {
                    // What classes of different weights get is subtracted in a pass of its own.
                    let alike = if self.class_weights.is_some() { 0.0 } else { wanted.of_class };
                    let grad_row = wanted.weight * gradient.grad_loss;
                    for (block, &block_maximum) in gradient.block_maxima.iter().enumerate() {
                        let start = block * BLOCK;
                        let scale = (block_maximum - maximum).exp() / sum * grad_row;
                        let offset = -alike * gradient.grad_loss;
                        scale_block::<V>(logits.add(start), BLOCK.min(vocabulary - start), scale, offset);
                    }
                    if let Some(class_weights) = self.class_weights
                        && label_smoothing != 0.0
                    {
                        let factor = -wanted.of_class * gradient.grad_loss;
                        add_scaled::<V>(logits, class_weights.weights, factor);
                    }
                    *logits.add(target as usize) -= wanted.of_target * gradient.grad_loss;
                }
            }
        }
    }
}

/// What a row's loss wants of its classes.
///
/// # Safety
/// `logits` is valid for reads of a row, and `target` is a class.
#[inline(always)]
unsafe fn wanted<V: Vector>(
    shape: &Shape,
    logits: *const f32,
    target: usize,
    class_weights: Option<ClassWeights<'_>>,
) -> Wanted {
    let Shape { vocabulary, label_smoothing, .. } = *shape;
    let of_class = label_smoothing / vocabulary as f32;
    // SAFETY: the caller's contract; there is a weight for each class.
    unsafe {
        let target_logit = *logits.add(target);
        let Some(ClassWeights { weights, sum }) = class_weights else {
            // Not computed where it is not used: it may be infinite where classes are masked.
            let logit_mean = if label_smoothing == 0.0 {
                target_logit
            } else {
                row_sum::<V>(logits, vocabulary) / vocabulary as f32
            };
            let expected_logit = (1.0 - label_smoothing) * target_logit + label_smoothing * logit_mean;
            return Wanted { of_target: 1.0 - label_smoothing, of_class, weight: 1.0, expected_logit };
        };
        let of_target = (1.0 - label_smoothing) * weights[target];
        if label_smoothing == 0.0 {
            return Wanted { of_target, of_class, weight: of_target, expected_logit: target_logit };
        }
        let weight = of_target + of_class * sum;
        let expected = of_target * target_logit + of_class * weighted_sum::<V>(logits, weights);
        Wanted { of_target, of_class, weight, expected_logit: if weight > 0.0 { expected / weight } else { 0.0 } }
    }
}

/// Largest logit of a row and the sum of `e^(x - largest)`. With `KEEP`, each block of the row is replaced by
/// `e^(x - m)`, where `m` is the entry of `block_maxima`.
///
/// # Safety
/// `logits` is valid for `length` values, for writes too with `KEEP`.
#[inline(always)]
unsafe fn exponentials<V: Vector, const KEEP: bool>(
    logits: *mut f32,
    length: usize,
    block_maxima: &mut [f32],
) -> (f32, f32) {
    // Finite, so that a block of nothing but -∞ gives e^-∞ = 0 rather than e^(∞ - ∞).
    let mut maximum = f32::MIN;
    let mut sum = 0.0f32;
    for start in (0..length).step_by(BLOCK) {
        let count = BLOCK.min(length - start);
        // SAFETY: the block lies within the row.
        unsafe {
            let block = logits.add(start);
            let block_maximum = block_maximum::<V>(block, count);
            // Not `f32::max`: where the maximum is NaN this keeps the old one, and the sum becomes NaN.
            if block_maximum > maximum {
                sum *= (maximum - block_maximum).exp();
                maximum = block_maximum;
            }
            sum += block_exponentials::<V, KEEP>(block, count, maximum);
        }
        if KEEP {
            block_maxima[start / BLOCK] = maximum;
        }
    }
    (maximum, sum)
}

/// # Safety
/// `block` is valid for reads of `length` values.
#[inline(always)]
unsafe fn block_maximum<V: Vector>(block: *const f32, length: usize) -> f32 {
    let mut maxima = [V::splat(f32::NEG_INFINITY); 4];
    let mut i = 0;
    // SAFETY: the caller's contract.
    unsafe {
        while i + 4 * V::LANES <= length {
            for (j, maximum) in maxima.iter_mut().enumerate() {
                *maximum = V::load(block.add(i + j * V::LANES)).max(*maximum);
            }
            i += 4 * V::LANES;
        }
        while i < length {
            let count = V::LANES.min(length - i);
            let x = V::load_up_to(block.add(i), count);
            maxima[0] = V::select(V::first_lanes(count), x, maxima[0]).max(maxima[0]);
            i += V::LANES;
        }
    }
    maxima[0].max(maxima[1]).max(maxima[2].max(maxima[3])).reduce_max()
}

/// Sum of `e^(x - maximum)` over a block, which it may replace.
///
/// # Safety
/// `block` is valid for `length` values, for writes too with `KEEP`.
#[inline(always)]
unsafe fn block_exponentials<V: Vector, const KEEP: bool>(block: *mut f32, length: usize, maximum: f32) -> f32 {
    let mut sums = [V::zero(); 4];
    let maximum = V::splat(maximum);
    let mut i = 0;
    // SAFETY: the caller's contract.
    unsafe {
        while i + 4 * V::LANES <= length {
            for (j, sum) in sums.iter_mut().enumerate() {
                let place = block.add(i + j * V::LANES);
                V::prefetch(place.wrapping_add(BLOCK));
                let e = math::exp_nonpositive(V::load(place).sub(maximum));
                if KEEP {
                    e.store(place);
                }
                *sum = sum.add(e);
            }
            i += 4 * V::LANES;
        }
        while i < length {
            let count = V::LANES.min(length - i);
            let place = block.add(i);
            let e = math::exp_nonpositive(V::load_up_to(place, count).sub(maximum));
            if KEEP {
                e.store_up_to(place, count);
            }
            sums[0] = sums[0].add(V::select(V::first_lanes(count), e, V::zero()));
            i += V::LANES;
        }
    }
    sums[0].add(sums[1]).add(sums[2].add(sums[3])).reduce_add()
}

/// `x ← scale · x + offset`.
///
/// # Safety
/// `block` is valid for `length` values.
#[inline(always)]
unsafe fn scale_block<V: Vector>(block: *mut f32, length: usize, scale: f32, offset: f32) {
    let (scale, offset) = (V::splat(scale), V::splat(offset));
    for i in (0..length).step_by(V::LANES) {
        // SAFETY: the caller's contract.
        unsafe {
            let place = block.add(i);
            V::load_up_to(place, length - i).mul_add(scale, offset).store_up_to(place, length - i);
        }
    }
}

/// # Safety
/// `x` is valid for reads of `length` values.
#[inline(always)]
unsafe fn row_sum<V: Vector>(x: *const f32, length: usize) -> f32 {
    let mut sums = [V::zero(); 4];
    for (j, i) in (0..length).step_by(V::LANES).enumerate() {
        // SAFETY: the caller's contract.
        sums[j % 4] = sums[j % 4].add(unsafe { V::load_up_to(x.add(i), length - i) });
    }
    sums[0].add(sums[1]).add(sums[2].add(sums[3])).reduce_add()
}

/// `Σ x(v) w(v)`
///
/// # Safety
/// `x` is valid for reads of as many values as there are weights.
#[inline(always)]
unsafe fn weighted_sum<V: Vector>(x: *const f32, weights: &[f32]) -> f32 {
    let mut sums = [V::zero(); 4];
    for (j, i) in (0..weights.len()).step_by(V::LANES).enumerate() {
        let left = weights.len() - i;
        // SAFETY: the caller's contract.
        let (x, weight) = unsafe { (V::load_up_to(x.add(i), left), V::load_up_to(weights.as_ptr().add(i), left)) };
        sums[j % 4] = x.mul_add(weight, sums[j % 4]);
    }
    sums[0].add(sums[1]).add(sums[2].add(sums[3])).reduce_add()
}

/// `x ← x + factor · weights`
///
/// # Safety
/// `x` is valid for as many values as there are weights.
#[inline(always)]
unsafe fn add_scaled<V: Vector>(x: *mut f32, weights: &[f32], factor: f32) {
    let factor = V::splat(factor);
    for i in (0..weights.len()).step_by(V::LANES) {
        let left = weights.len() - i;
        // SAFETY: the caller's contract.
        unsafe {
            let weight = V::load_up_to(weights.as_ptr().add(i), left);
            weight.mul_add(factor, V::load_up_to(x.add(i), left)).store_up_to(x.add(i), left);
        }
    }
}
