//! Softmax cross-entropy in one pass and in place: the losses of all rows, and the gradient where the logits were.
//!
//! With label smoothing `s` the target distribution is `(1 - s)` on the target and `s / V` on every class, as in
//! PyTorch. A row whose target is the ignored index has loss 0 and gradient 0.
//!
//! Classes may have weights `w`, as in PyTorch: a row's loss is `-Σ w(v) wanted(v) ln p(v)`, so it is scaled by the
//! weight of its target where nothing is smoothed. Whoever takes the mean divides by the sum of the targets' weights.

use super::{Device, Error, View, ViewMut, check_len};
use crate::{cpu, gpu};

const NAME: &str = "softmax_cross_entropy";

/// Sizes and options of the loss.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Shape {
    pub rows: usize,
    /// `V`: classes.
    pub vocabulary: usize,
    pub label_smoothing: f32,
    /// Target that marks a row as not counted; -100 in PyTorch.
    pub ignored: i32,
}

/// Arguments of [`forward`].
pub struct Forward<'a> {
    /// `(rows, V)`
    pub logits: View<'a, f32>,
    /// `(rows)`: in `0..V`, or the ignored index.
    pub targets: View<'a, i32>,
    /// `(V)`: not negative; `None` where all are 1.
    pub class_weights: Option<View<'a, f32>>,
    /// `(rows)`
    pub losses: ViewMut<'a, f32>,
}

/// Arguments of [`forward_backward`].
pub struct ForwardBackward<'a> {
    /// `(rows, V)`: logits before, their gradients after.
    pub logits: ViewMut<'a, f32>,
    /// `(rows)`
    pub targets: View<'a, i32>,
    /// `(V)`
    pub class_weights: Option<View<'a, f32>>,
    /// `(rows)`
    pub losses: ViewMut<'a, f32>,
    /// Gradient of every counted row's loss: `1 / counted rows` for the mean.
    pub grad_loss: f32,
}

/// Fails where a target is outside the classes. A GPU's targets are not read back for that: its kernels give such a row
/// a loss of NaN.
pub(crate) fn check_targets(
    name: &'static str,
    device: &Device,
    shape: &Shape,
    targets: &View<'_, i32>,
) -> Result<(), Error> {
    if let Device::Gpu(_) = device {
        return Ok(());
    }
    let outside = |&id: &i32| id != shape.ignored && (id < 0 || id as usize >= shape.vocabulary);
    let Some(row) = targets.host().iter().position(outside) else { return Ok(()) };
    let (id, classes) = (targets.host()[row], shape.vocabulary);
    Err(Error::new(name, format!("target {id} of row {row} is outside the {classes} classes")))
}

fn check(
    device: &Device,
    shape: &Shape,
    logits: usize,
    targets: &View<'_, i32>,
    class_weights: Option<&View<'_, f32>>,
    losses: usize,
) -> Result<(), Error> {
    check_len(NAME, "logits", logits, shape.rows * shape.vocabulary)?;
    check_len(NAME, "targets", targets.len(), shape.rows)?;
    if let Some(weights) = class_weights {
        check_len(NAME, "class_weights", weights.len(), shape.vocabulary)?;
    }
    check_len(NAME, "losses", losses, shape.rows)?;
    check_targets(NAME, device, shape, targets)
}

/// Computes the loss of every row; the logits stay as they are.
///
/// # Errors
/// An argument's length does not fit `shape`, or a target is outside the classes.
pub fn forward(device: &Device, shape: &Shape, arguments: Forward<'_>) -> Result<(), Error> {
    let Forward { logits, targets, class_weights, losses } = &arguments;
    check(device, shape, logits.len(), targets, class_weights.as_ref(), losses.len())?;
    match device {
        Device::Cpu(cpu) => cpu::softmax_cross_entropy::forward(cpu, shape, arguments),
        Device::Gpu(gpu) => {
            gpu::softmax_cross_entropy::forward(gpu, shape, arguments).map_err(Error::of_device(NAME))?
        }
    }
    Ok(())
}

/// Computes the loss of every row, and replaces the logits by their gradients.
///
/// # Errors
/// An argument's length does not fit `shape`, or a target is outside the classes.
pub fn forward_backward(device: &Device, shape: &Shape, arguments: ForwardBackward<'_>) -> Result<(), Error> {
    let ForwardBackward { logits, targets, class_weights, losses, .. } = &arguments;
    check(device, shape, logits.len(), targets, class_weights.as_ref(), losses.len())?;
    match device {
        Device::Cpu(cpu) => cpu::softmax_cross_entropy::forward_backward(cpu, shape, arguments),
        Device::Gpu(gpu) => {
            gpu::softmax_cross_entropy::forward_backward(gpu, shape, arguments).map_err(Error::of_device(NAME))?
        }
    }
    Ok(())
}

/// Softmax cross-entropy in f64, from the formulas: what every backend is measured against.
pub mod reference {
    use super::Shape;

    /// The row's log-sum-exp, taken around its largest logit.
    fn log_sum_exp(row: &[f64]) -> f64 {
        let largest = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        largest + row.iter().map(|x| (x - largest).exp()).sum::<f64>().ln()
    }

    /// What the loss wants of class `class`, times the class's weight.
    fn wanted(shape: &Shape, class_weights: Option<&[f64]>, target: i32, class: usize) -> f64 {
        let smoothing = f64::from(shape.label_smoothing);
        let of_target = if target as usize == class { 1.0 - smoothing } else { 0.0 };
        class_weights.map_or(1.0, |weights| weights[class]) * (of_target + smoothing / shape.vocabulary as f64)
    }

    /// `(rows)` losses; see [`super::forward`].
    pub fn forward(shape: &Shape, logits: &[f64], targets: &[i32], class_weights: Option<&[f64]>) -> Vec<f64> {
        let loss = |(row, &target): (&[f64], &i32)| {
            if target == shape.ignored {
                return 0.0;
            }
            let total = log_sum_exp(row);
            row.iter().enumerate().map(|(class, x)| wanted(shape, class_weights, target, class) * (total - x)).sum()
        };
        logits.chunks(shape.vocabulary).zip(targets).map(loss).collect()
    }

    /// `(rows, V)` gradient of the logits where each counted row's loss has gradient `grad_loss`.
    pub fn backward(
        shape: &Shape,
        logits: &[f64],
        targets: &[i32],
        class_weights: Option<&[f64]>,
        grad_loss: f64,
    ) -> Vec<f64> {
        let mut gradient = Vec::with_capacity(logits.len());
        for (row, &target) in logits.chunks(shape.vocabulary).zip(targets) {
            let total = log_sum_exp(row);
            let wanted = |class| wanted(shape, class_weights, target, class);
            let weight: f64 = (0..shape.vocabulary).map(wanted).sum();
            gradient.extend(row.iter().enumerate().map(|(class, x)| {
                let difference = (x - total).exp() * weight - wanted(class);
                if target == shape.ignored { 0.0 } else { difference * grad_loss }
            }));
        }
        gradient
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Random, assert_close, assert_gradient, cpu_devices, double, poisoned};
    use super::*;

    fn shape(rows: usize, vocabulary: usize, label_smoothing: f32) -> Shape {
        Shape { rows, vocabulary, label_smoothing, ignored: -100 }
    }

    fn targets(random: &mut Random, shape: &Shape) -> Vec<i32> {
        let one = |row: usize| if row % 5 == 3 { shape.ignored } else { random.below(shape.vocabulary) as i32 };
        (0..shape.rows).map(one).collect()
    }

    /// Weights of classes, one of them 0.
    fn class_weights(random: &mut Random, classes: usize) -> Vec<f32> {
        (0..classes).map(|class| if class == 1 { 0.0 } else { random.below(64) as f32 / 16.0 }).collect()
    }

    #[test]
    fn reference_gradient_matches_finite_differences() {
        let mut random = Random::fresh();
        let weights = double(&class_weights(&mut random, 11));
        for (smoothing, weights) in [(0.0, None), (0.1, None), (0.0, Some(&weights[..])), (0.1, Some(&weights))] {
            let shape = shape(5, 11, smoothing);
            let targets = targets(&mut random, &shape);
            let logits = double(&random.normal(55));
            let gradient = reference::backward(&shape, &logits, &targets, weights, 0.25);
            let loss = |x: &[f64]| 0.25 * reference::forward(&shape, x, &targets, weights).iter().sum::<f64>();
            assert_gradient("logits", loss, &logits, &gradient);
        }
    }

    /// `torch.nn.CrossEntropyLoss(weight=torch.tensor([0.5, 2, 0, 1]), label_smoothing=0.25)` of PyTorch 2, sum and mean.
    #[test]
    fn reference_weighs_classes_as_pytorch_does() {
        let shape = shape(3, 4, 0.25);
        let logits: Vec<f64> = (0..12).map(|i| f64::from(i * i % 7) * 0.5 - 1.0).collect();
        let (targets, weights) = ([1, -100, 0], [0.5, 2.0, 0.0, 1.0]);
        let sum: f64 = reference::forward(&shape, &logits, &targets, Some(&weights)).iter().sum();
        assert!((sum - 4.572047621843).abs() < 1e-9, "{sum}");
        assert!((sum / (2.0 + 0.5) - 1.828819048737).abs() < 1e-9, "{sum}");
    }

    #[test]
    fn losses_and_gradients_match_reference_over_odd_sizes_and_options() {
        let mut random = Random::fresh();
        for (rows, vocabulary) in
            [(1, 1), (3, 3), (17, 17), (113, 65), (9, 203), (5, 1023), (4, 2048), (4, 2049), (3, 50257)]
        {
            for (smoothing, spread, weighs) in
                [(0.0, 1.0, false), (0.1, 1.0, false), (0.0, 30.0, false), (0.0, 1.0, true), (0.1, 1.0, true)]
            {
                let shape = shape(rows, vocabulary, smoothing);
                let targets = targets(&mut random, &shape);
                let weights = weighs.then(|| class_weights(&mut random, vocabulary));
                let weights64 = weights.as_ref().map(|weights| double(weights));
                let logits: Vec<f32> = random.normal(rows * vocabulary).iter().map(|x| x * spread - 3.0).collect();
                let (logits64, weights64) = (double(&logits), weights64.as_deref());
                let expected = reference::forward(&shape, &logits64, &targets, weights64);
                let expected_gradient = reference::backward(&shape, &logits64, &targets, weights64, 0.125);
                for (name, device) in cpu_devices() {
                    let name = format!("{rows}x{vocabulary}, smoothing {smoothing}, spread {spread}, {weighs}, {name}");
                    let [mut losses, mut both] = [0; 2].map(|_| poisoned(rows));
                    let arguments = Forward {
                        logits: (&logits).into(),
                        targets: (&targets).into(),
                        class_weights: weights.as_ref().map(View::from),
                        losses: (&mut losses).into(),
                    };
                    forward(&device, &shape, arguments).unwrap();
                    assert_close(&format!("losses, {name}"), &losses, &expected, 1e-5, 1e-6);
                    let mut gradient = logits.clone();
                    let arguments = ForwardBackward {
                        logits: (&mut gradient).into(),
                        targets: (&targets).into(),
                        class_weights: weights.as_ref().map(View::from),
                        losses: (&mut both).into(),
                        grad_loss: 0.125,
                    };
                    forward_backward(&device, &shape, arguments).unwrap();
                    assert_eq!(losses, both, "both ways give the same losses, {name}");
                    // Where every target is certain, the gradients are what rounding leaves of 1/8 - 1/8.
                    assert_close(&format!("gradient, {name}"), &gradient, &expected_gradient, 1e-5, 2e-8);
                }
            }
        }
    }

    #[test]
    fn gradients_of_a_row_sum_to_zero_and_shifting_the_logits_changes_nothing() {
        let mut random = Random::fresh();
        let shape = shape(7, 5003, 0.1);
        let targets = vec![1; 7];
        // Steps of 1/64 and a shift of 1024 are exact in f32.
        let logits: Vec<f32> = random.normal(7 * 5003).iter().map(|x| (x * 64.0).round() / 64.0).collect();
        let shifted: Vec<f32> = logits.iter().map(|x| x + 1024.0).collect();
        for (name, device) in cpu_devices() {
            let gradient = |logits: &[f32]| {
                let (mut gradient, mut losses) = (logits.to_vec(), poisoned(7));
                let arguments = ForwardBackward {
                    logits: (&mut gradient).into(),
                    targets: (&targets).into(),
                    class_weights: None,
                    losses: (&mut losses).into(),
                    grad_loss: 1.0,
                };
                forward_backward(&device, &shape, arguments).unwrap();
                gradient
            };
            let plain = gradient(&logits);
            assert_eq!(plain, gradient(&shifted), "{name}");
            for row in plain.chunks(5003) {
                let sum: f64 = row.iter().map(|&g| f64::from(g)).sum();
                assert!(sum.abs() < 1e-5, "a row's gradients sum to {sum}, {name}");
            }
        }
    }

    #[test]
    fn masked_huge_and_nan_logits_give_what_they_should() {
        let shape = shape(4, 3000, 0.0);
        let mut logits = vec![0.0f32; 4 * 3000];
        // Row 0: everything in the first block masked. Row 1: huge. Row 2: one NaN. Row 3: an infinite logit.
        logits[..2500].fill(f32::NEG_INFINITY);
        logits[3000..6000].fill(-1e30);
        logits[3000] = 1e30;
        logits[6100] = f32::NAN;
        logits[9100] = f32::INFINITY;
        let targets = [2999, 0, 5, 5];
        for (name, device) in cpu_devices() {
            let (mut gradient, mut losses) = (logits.clone(), poisoned(4));
            let arguments = ForwardBackward {
                logits: (&mut gradient).into(),
                targets: targets[..].into(),
                class_weights: None,
                losses: (&mut losses).into(),
                grad_loss: 1.0,
            };
            forward_backward(&device, &shape, arguments).unwrap();
            assert!((losses[0] - 500f32.ln()).abs() < 1e-5, "{name}: {}", losses[0]);
            assert!(gradient[..2500].iter().all(|&g| g == 0.0) && (gradient[2500] - 0.002).abs() < 1e-8, "{name}");
            assert!(losses[1] == 0.0 && gradient[3000..6000].iter().all(|&g| g == 0.0), "{name}: {}", losses[1]);
            assert!(losses[2].is_nan() && losses[3].is_nan(), "{name}: {losses:?}");
            assert!(gradient[6000].is_nan() && gradient[9000].is_nan(), "{name}");
        }
    }

    #[test]
    fn threads_do_not_change_a_bit() {
        let mut random = Random::fresh();
        let shape = shape(37, 1023, 0.1);
        let targets = targets(&mut random, &shape);
        let (logits, weights) = (random.normal(37 * 1023), class_weights(&mut random, 1023));
        let results: Vec<_> = cpu_devices()
            .into_iter()
            .map(|(name, device)| {
                let (mut gradient, mut losses) = (logits.clone(), poisoned(37));
                let arguments = ForwardBackward {
                    logits: (&mut gradient).into(),
                    targets: (&targets).into(),
                    class_weights: Some((&weights).into()),
                    losses: (&mut losses).into(),
                    grad_loss: 0.1,
                };
                forward_backward(&device, &shape, arguments).unwrap();
                (name, gradient, losses)
            })
            .collect();
        for pair in results.chunks(2) {
            assert!(pair[0].1 == pair[1].1 && pair[0].2 == pair[1].2, "{} and {}", pair[0].0, pair[1].0);
        }
    }

    #[test]
    fn a_target_outside_the_classes_is_named() {
        let (_, device) = cpu_devices().remove(0);
        let (logits, mut losses) = (vec![0.0; 6], vec![0.0; 2]);
        let arguments = Forward {
            logits: (&logits).into(),
            targets: [1, 3][..].into(),
            class_weights: None,
            losses: (&mut losses).into(),
        };
        let message = forward(&device, &shape(2, 3, 0.0), arguments).unwrap_err().to_string();
        assert_eq!(message, "softmax_cross_entropy: target 3 of row 1 is outside the 3 classes");
    }
}
