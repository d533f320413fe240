//! Losses of each prediction against a number of its own on the CPU: a row's first pass adds up losses and counts
//! targets, the second, in the first-level cache, replaces the predictions by their gradients.

use super::simd::{Kernel, Vector, math};
use super::{Cpu, Disjoint};
use crate::ops::pointwise_loss::*;

/// Values in one task.
const TASK_VALUES: usize = 16 * 1024;

/// Computes the loss of every row.
pub fn forward(cpu: &Cpu, shape: &Shape, arguments: Forward<'_>) {
    let (predictions, targets) = (arguments.predictions.host(), arguments.targets.host());
    let losses = Disjoint::new(arguments.losses.host());
    cpu.pool().run_pieces(shape.rows, TASK_VALUES / shape.columns.max(1), |_, range| {
        // SAFETY: the ranges of different tasks do not overlap.
        let losses = unsafe { losses.get(range.clone()) };
        let values = range.start * shape.columns..range.end * shape.columns;
        // Only read: `Rows` writes to the predictions where there is a gradient to put there.
        let predictions = predictions[values.clone()].as_ptr().cast_mut();
        cpu.level().run(Rows { shape, predictions, targets: &targets[values], losses, grad_loss: None });
    });
}

/// Computes the loss of every row, and replaces the predictions by their gradients.
pub fn forward_backward(cpu: &Cpu, shape: &Shape, arguments: ForwardBackward<'_>) {
    let (predictions, targets) = (Disjoint::new(arguments.predictions.host()), arguments.targets.host());
    let losses = Disjoint::new(arguments.losses.host());
    cpu.pool().run_pieces(shape.rows, TASK_VALUES / shape.columns.max(1), |_, range| {
        let values = range.start * shape.columns..range.end * shape.columns;
        // SAFETY: the ranges of different tasks do not overlap.
        let (losses, predictions) = unsafe { (losses.get(range), predictions.get(values.clone()).as_mut_ptr()) };
        let grad_loss = Some(arguments.grad_loss);
        cpu.level().run(Rows { shape, predictions, targets: &targets[values], losses, grad_loss });
    });
}

/// Some rows, whose first prediction `predictions` points to.
struct Rows<'a> {
    shape: &'a Shape,
    predictions: *mut f32,
    targets: &'a [f32],
    losses: &'a mut [f32],
    /// Where the gradient is wanted.
    grad_loss: Option<f32>,
}

impl Kernel for Rows<'_> {
    type Output = ();

    #[inline(always)]
    fn run<V: Vector>(self) {
        let Shape { columns, kind, .. } = *self.shape;
        for (row, loss) in self.losses.iter_mut().enumerate() {
            // SAFETY: predictions and targets have `columns` values for each loss, and the predictions are writable
            // where there is a gradient.
            unsafe {
                let predictions = self.predictions.add(row * columns);
                let targets = self.targets.as_ptr().add(row * columns);
                let (sum, counted) = sums::<V>(kind, predictions, targets, columns);
                // Where nothing is counted the sum is 0 too.
                *loss = sum / counted.max(1.0);
                if let Some(grad_loss) = self.grad_loss {
                    replace_by_gradient::<V>(kind, predictions, targets, columns, grad_loss / counted.max(1.0));
                }
            }
        }
    }
}

/// True where there is a target: `ops` has checked that none is infinite.
#[inline(always)]
fn is_counted<V: Vector>(targets: V) -> V::Mask {
    targets.abs().less(V::splat(f32::INFINITY))
}

/// Sum of a row's losses, and how many targets it has.
///
/// # Safety
/// Both are valid for reads of `length` values.
#[inline(always)]
unsafe fn sums<V: Vector>(kind: Kind, predictions: *const f32, targets: *const f32, length: usize) -> (f32, f32) {
    let (mut sum, mut counted) = (V::zero(), V::zero());
    for i in (0..length).step_by(V::LANES) {
        let count = V::LANES.min(length - i);
        // SAFETY: the caller's contract.
        let (x, t) = unsafe { (V::load_up_to(predictions.add(i), count), V::load_up_to(targets.add(i), count)) };
        let inside = |value| V::select(V::first_lanes(count), value, V::zero());
        let has_target = is_counted(t);
        sum = sum.add(inside(V::select(has_target, loss_of(kind, x, t), V::zero())));
        counted = counted.add(inside(V::select(has_target, V::splat(1.0), V::zero())));
    }
    (sum.reduce_add(), counted.reduce_add())
}

#[inline(always)]
fn loss_of<V: Vector>(kind: Kind, x: V, t: V) -> V {
    match kind {
        Kind::BinaryCrossEntropy => {
            // A NaN stays one: max gives its second operand where either is NaN.
            let positive = V::zero().max(x);
            x.neg_mul_add(t, positive).add(log_of_one_plus(math::exp_nonpositive(V::zero().sub(x.abs()))))
        }
        Kind::SquaredError => {
            let difference = x.sub(t);
            difference.mul(difference)
        }
    }
}

/// ln(1 + e) for e in 0..=1, with all digits where e is tiny: what 1 + e loses, `e / ((1 + e) - 1)` gives back.
#[inline(always)]
fn log_of_one_plus<V: Vector>(e: V) -> V {
    let one_plus = e.add(V::splat(1.0));
    let seen = one_plus.sub(V::splat(1.0));
    let result = math::log(one_plus).mul(e.div(seen));
    // NaN is not less than anything, and gives itself.
    V::select(seen.less(V::splat(f32::MIN_POSITIVE)), e, result)
}

/// # Safety
/// Both are valid for `length` values, the predictions for writes too.
#[inline(always)]
unsafe fn replace_by_gradient<V: Vector>(
    kind: Kind,
    predictions: *mut f32,
    targets: *const f32,
    length: usize,
    scale: f32,
) {
    for i in (0..length).step_by(V::LANES) {
        // SAFETY: the caller's contract.
        unsafe {
            let place = predictions.add(i);
            let (x, t) = (V::load_up_to(place, length - i), V::load_up_to(targets.add(i), length - i));
            let slope = match kind {
                Kind::BinaryCrossEntropy => math::sigmoid(x).sub(t),
                Kind::SquaredError => x.sub(t).mul(V::splat(2.0)),
            };
            let gradient = V::select(is_counted(t), slope.mul(V::splat(scale)), V::zero());
            gradient.store_up_to(place, length - i);
        }
    }
}
