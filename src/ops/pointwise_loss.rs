//! Losses of each prediction against a number of its own: binary cross-entropy, for any number of labels at once, and
//! the squared error. A row's loss is the mean over its columns; the gradient replaces the predictions in place.
//!
//! A target that is NaN is not counted: its prediction gets no gradient, and the row's mean is taken over the others.
//! A row without any target has loss 0, and whoever takes the mean over rows leaves it out.

use super::{Device, Error, View, ViewMut, check_len};
use crate::{cpu, gpu};

const NAME: &str = "pointwise_loss";

/// The loss of a prediction `x` against its target `t`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `-t ln σ(x) - (1 - t) ln (1 - σ(x))` for targets in 0..=1, computed as `max(x, 0) - x t + ln(1 + e^-|x|)`, which
    /// neither overflows nor cancels.
    BinaryCrossEntropy,
    /// `(x - t)²`
    SquaredError,
}

impl Kind {
    /// Whether the loss is defined for the target: NaN stands for none.
    fn takes(self, target: f32) -> bool {
        target.is_nan()
            || match self {
                Self::BinaryCrossEntropy => (0.0..=1.0).contains(&target),
                Self::SquaredError => target.is_finite(),
            }
    }

    /// What targets must be, for messages.
    fn domain(self) -> &'static str {
        match self {
            Self::BinaryCrossEntropy => "in 0..=1, or NaN where there is none",
            Self::SquaredError => "finite, or NaN where there is none",
        }
    }
}

/// Sizes of the predictions, and their loss.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    pub rows: usize,
    /// `V`: labels, or numbers to predict.
    pub columns: usize,
    pub kind: Kind,
}

/// Arguments of [`forward`].
pub struct Forward<'a> {
    /// `(rows, V)`
    pub predictions: View<'a, f32>,
    /// `(rows, V)`: NaN where there is none.
    pub targets: View<'a, f32>,
    /// `(rows)`
    pub losses: ViewMut<'a, f32>,
}

/// Arguments of [`forward_backward`].
pub struct ForwardBackward<'a> {
    /// `(rows, V)`: predictions before, their gradients after.
    pub predictions: ViewMut<'a, f32>,
    /// `(rows, V)`: NaN where there is none.
    pub targets: View<'a, f32>,
    /// `(rows)`
    pub losses: ViewMut<'a, f32>,
    /// Gradient of every counted row's loss: `1 / counted rows` for the mean.
    pub grad_loss: f32,
}

/// A GPU's targets are not read back: its kernels give a row with a target that is refused here a loss that is not
/// finite.
fn check(
    device: &Device,
    shape: &Shape,
    predictions: usize,
    targets: &View<'_, f32>,
    losses: usize,
) -> Result<(), Error> {
    check_len(NAME, "predictions", predictions, shape.rows * shape.columns)?;
    check_len(NAME, "targets", targets.len(), shape.rows * shape.columns)?;
    check_len(NAME, "losses", losses, shape.rows)?;
    if let Device::Gpu(_) = device {
        return Ok(());
    }
    let targets = targets.host();
    let Some(place) = targets.iter().position(|&target| !shape.kind.takes(target)) else { return Ok(()) };
    let (row, column) = (place / shape.columns, place % shape.columns);
    let (target, domain) = (targets[place], shape.kind.domain());
    Err(Error::new(NAME, format!("target {target} of row {row}, column {column}: targets are {domain}")))
}

/// Computes the loss of every row; the predictions stay as they are.
///
/// # Errors
/// An argument's length does not fit `shape`, or a target is outside what the loss is defined for.
pub fn forward(device: &Device, shape: &Shape, arguments: Forward<'_>) -> Result<(), Error> {
    check(device, shape, arguments.predictions.len(), &arguments.targets, arguments.losses.len())?;
    match device {
        Device::Cpu(cpu) => cpu::pointwise_loss::forward(cpu, shape, arguments),
        Device::Gpu(gpu) => gpu::pointwise_loss::forward(gpu, shape, arguments).map_err(Error::of_device(NAME))?,
    }
    Ok(())
}

/// Computes the loss of every row, and replaces the predictions by their gradients.
///
/// # Errors
/// As [`forward`].
pub fn forward_backward(device: &Device, shape: &Shape, arguments: ForwardBackward<'_>) -> Result<(), Error> {
    check(device, shape, arguments.predictions.len(), &arguments.targets, arguments.losses.len())?;
    match device {
        Device::Cpu(cpu) => cpu::pointwise_loss::forward_backward(cpu, shape, arguments),
        Device::Gpu(gpu) => {
            gpu::pointwise_loss::forward_backward(gpu, shape, arguments).map_err(Error::of_device(NAME))?
        }
    }
    Ok(())
}

/// The operation in plain f64 loops.
pub mod reference {
    use super::{Kind, Shape};

    /// `(rows)` losses; see [`super::forward`].
    pub fn forward(shape: &Shape, predictions: &[f64], targets: &[f64]) -> Vec<f64> {
        let loss = |(x, t): (&f64, &f64)| match shape.kind {
            Kind::BinaryCrossEntropy => x.max(0.0) - x * t + (-x.abs()).exp().ln_1p(),
            Kind::SquaredError => (x - t).powi(2),
        };
        let of_row = |(row, targets): (&[f64], &[f64])| {
            let counted = targets.iter().filter(|target| !target.is_nan()).count();
            let sum: f64 = row.iter().zip(targets).filter(|(_, target)| !target.is_nan()).map(loss).sum();
            sum / counted.max(1) as f64
        };
        predictions.chunks(shape.columns).zip(targets.chunks(shape.columns)).map(of_row).collect()
    }

    /// `(rows, V)` gradient of the predictions where each counted row's loss has gradient `grad_loss`.
    pub fn backward(shape: &Shape, predictions: &[f64], targets: &[f64], grad_loss: f64) -> Vec<f64> {
        let mut gradient = Vec::with_capacity(predictions.len());
        for (row, targets) in predictions.chunks(shape.columns).zip(targets.chunks(shape.columns)) {
            let counted = targets.iter().filter(|target| !target.is_nan()).count();
            gradient.extend(row.iter().zip(targets).map(|(x, t)| {
                let slope = match shape.kind {
                    Kind::BinaryCrossEntropy => 1.0 / (1.0 + (-x).exp()) - t,
                    Kind::SquaredError => 2.0 * (x - t),
                };
                if t.is_nan() { 0.0 } else { slope * grad_loss / counted as f64 }
            }));
        }
        gradient
    }
}

/// What the tests of every backend try.
pub(crate) mod cases {
    use super::{Kind, Shape};
    use crate::ops::testing::Random;

    /// Less than a vector, more than one; the rows of warps, and those of blocks.
    pub const SIZES: [(usize, usize); 9] =
        [(1, 1), (3, 3), (17, 17), (203, 1), (113, 65), (9, 203), (5, 1023), (4, 1025), (2, 5003)];

    /// Predictions and targets of one case, some of which are not counted: single ones and the whole second row.
    pub fn operands(random: &mut Random, shape: &Shape) -> (Vec<f32>, Vec<f32>) {
        let count = shape.rows * shape.columns;
        let predictions = random.normal(count).iter().map(|x| 4.0 * x).collect();
        let targets = (0..count).map(|place| match shape.kind {
            _ if place / shape.columns == 1 || (shape.columns > 1 && place % 5 == 3) => f32::NAN,
            // Certain labels and uncertain ones.
            Kind::BinaryCrossEntropy => [0.0, 1.0, 0.25, 1.0 / 3.0][random.below(4)],
            Kind::SquaredError => random.below(1000) as f32 / 100.0 - 5.0,
        });
        (predictions, targets.collect())
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Random, assert_close, assert_gradient, cpu_devices, double, poisoned};
    use super::*;

    const KINDS: [Kind; 2] = [Kind::BinaryCrossEntropy, Kind::SquaredError];

    /// Losses of both passes, and the gradients.
    fn run(device: &Device, shape: &Shape, predictions: &[f32], targets: &[f32]) -> [Vec<f32>; 3] {
        let [mut losses, mut both] = [0; 2].map(|_| poisoned(shape.rows));
        let arguments =
            Forward { predictions: predictions.into(), targets: targets.into(), losses: (&mut losses).into() };
        forward(device, shape, arguments).unwrap();
        let mut gradient = predictions.to_vec();
        let arguments = ForwardBackward {
            predictions: (&mut gradient).into(),
            targets: targets.into(),
            losses: (&mut both).into(),
            grad_loss: 0.125,
        };
        forward_backward(device, shape, arguments).unwrap();
        [losses, both, gradient]
    }

    #[test]
    fn reference_gradients_match_finite_differences() {
        let mut random = Random::fresh();
        for kind in KINDS {
            let shape = Shape { rows: 5, columns: 7, kind };
            let (predictions, targets) = cases::operands(&mut random, &shape);
            let (x, t) = (double(&predictions), double(&targets));
            let gradient = reference::backward(&shape, &x, &t, 0.25);
            let loss = |x: &[f64]| 0.25 * reference::forward(&shape, x, &t).iter().sum::<f64>();
            assert_gradient(&format!("{kind:?}"), loss, &x, &gradient);
        }
    }

    #[test]
    fn losses_and_gradients_match_reference_over_odd_sizes() {
        let mut random = Random::fresh();
        for kind in KINDS {
            for (rows, columns) in cases::SIZES {
                let shape = Shape { rows, columns, kind };
                let (predictions, targets) = cases::operands(&mut random, &shape);
                let (x, t) = (double(&predictions), double(&targets));
                let (expected, slopes) =
                    (reference::forward(&shape, &x, &t), reference::backward(&shape, &x, &t, 0.125));
                for (name, device) in cpu_devices() {
                    let name = format!("{kind:?}, {rows}x{columns}, {name}");
                    let [losses, both, gradient] = run(&device, &shape, &predictions, &targets);
                    assert_eq!(losses, both, "both ways give the same losses, {name}");
                    assert_close(&format!("losses, {name}"), &losses, &expected, 1e-5, 0.0);
                    assert_close(&format!("gradient, {name}"), &gradient, &slopes, 1e-5, 0.0);
                }
            }
        }
    }

    #[test]
    fn binary_cross_entropy_keeps_its_digits_far_out() {
        let shape = Shape { rows: 6, columns: 1, kind: Kind::BinaryCrossEntropy };
        let (predictions, targets) = ([100.0, 100.0, -100.0, 20.0, 1e30, -1e30], [1.0, 0.0, 0.0, 1.0, 1.0, 1.0]);
        for (name, device) in cpu_devices() {
            let [losses, _, gradient] = run(&device, &shape, &predictions, &targets);
            assert!(losses[0] < 1e-37 && losses[2] < 1e-37 && losses[4] == 0.0, "{name}: {losses:?}");
            assert!(losses[1] == 100.0 && losses[5] == 1e30, "{name}: {losses:?}");
            let tail = (-20f64).exp().ln_1p();
            assert!((f64::from(losses[3]) / tail - 1.0).abs() < 1e-5, "{name}: {}", losses[3]);
            assert!((gradient[1] - 0.125).abs() < 1e-8 && (gradient[5] + 0.125).abs() < 1e-8, "{name}: {gradient:?}");
        }
    }

    #[test]
    fn a_prediction_that_is_nan_shows_in_its_row_alone() {
        for kind in KINDS {
            let shape = Shape { rows: 2, columns: 3, kind };
            for (name, device) in cpu_devices() {
                let predictions = [0.5, f32::NAN, 1.0, 0.5, f32::NAN, 1.0];
                let [losses, _, gradient] = run(&device, &shape, &predictions, &[0.0, 1.0, 1.0, 0.0, f32::NAN, 1.0]);
                assert!(losses[0].is_nan() && gradient[1].is_nan() && losses[1].is_finite(), "{name}: {losses:?}");
                assert!(gradient[4] == 0.0, "a target that is not there gives no gradient, {name}: {gradient:?}");
            }
        }
    }

    #[test]
    fn threads_do_not_change_a_bit() {
        let mut random = Random::fresh();
        for kind in KINDS {
            let shape = Shape { rows: 203, columns: 1023, kind };
            let (predictions, targets) = cases::operands(&mut random, &shape);
            for pair in cpu_devices().chunks(2) {
                let [one, three] = [0, 1].map(|index| run(&pair[index].1, &shape, &predictions, &targets));
                assert!(one == three, "{} and {}", pair[0].0, pair[1].0);
            }
        }
    }

    #[test]
    fn a_target_outside_the_domain_is_named() {
        let (_, device) = cpu_devices().remove(0);
        let message = |kind, target: f32| {
            let (predictions, mut losses) = (vec![0.0; 6], vec![0.0; 2]);
            let targets = [0.0, 1.0, f32::NAN, 0.0, target, 1.0];
            let arguments = Forward {
                predictions: (&predictions).into(),
                targets: targets[..].into(),
                losses: (&mut losses).into(),
            };
            forward(&device, &Shape { rows: 2, columns: 3, kind }, arguments).unwrap_err().to_string()
        };
        let negative = message(Kind::BinaryCrossEntropy, -1.0);
        let expected = "target -1 of row 1, column 1: targets are in 0..=1, or NaN where there is none";
        assert_eq!(negative, format!("pointwise_loss: {expected}"));
        assert!(message(Kind::SquaredError, f32::INFINITY).contains("target inf of row 1"));
    }
}
