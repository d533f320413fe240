//! Output projection, with a bias where there is one, and cross-entropy as one operation, in chunks of rows: the logits of all positions never exist
//! at once. With gradients, each chunk goes through projection, loss, and both products of the backward pass while
//! its logits are there, so nothing is computed twice.
//!
//! Compare the fused classifier of llm.c and the fused linear cross-entropy of Liger Kernel (Hsu et al. 2024).

use super::softmax_cross_entropy::{self, check_targets};
use super::{Device, Error, View, ViewMut, Write, check_len};
use crate::{cpu, gpu};

const NAME: &str = "linear_cross_entropy";

/// Sizes and options.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Shape {
    /// Rows, classes, smoothing and ignored index of the loss.
    pub loss: softmax_cross_entropy::Shape,
    /// `C`: columns of the input and of the weight.
    pub channels: usize,
    /// Rows whose logits exist at once.
    pub chunk_rows: usize,
}

/// Gradients that are asked for.
pub struct Gradients<'a> {
    /// Gradient of every counted row's loss: `1 / counted rows` for the mean.
    pub grad_loss: f32,
    /// `(rows, C)`
    pub grad_input: Option<(ViewMut<'a, f32>, Write)>,
    /// `(V, C)`
    pub grad_weight: Option<(ViewMut<'a, f32>, Write)>,
    /// `(V)`; `None` where there is no bias.
    pub grad_bias: Option<(ViewMut<'a, f32>, Write)>,
}

/// Arguments of [`forward`].
pub struct Forward<'a> {
    /// `(rows, C)`
    pub input: View<'a, f32>,
    /// `(V, C)`
    pub weight: View<'a, f32>,
    /// `(V)`
    pub bias: Option<View<'a, f32>>,
    /// `(rows)`
    pub targets: View<'a, i32>,
    /// `(min(chunk_rows, rows), V)`: memory for a chunk's logits.
    pub logits: ViewMut<'a, f32>,
    /// `(rows)`
    pub losses: ViewMut<'a, f32>,
    /// `None` for evaluation.
    pub gradients: Option<Gradients<'a>>,
}

/// Computes the loss of every row, and the gradients where they are asked for.
///
/// # Errors
/// An argument's length does not fit `shape`, or a target is outside the classes.
pub fn forward(device: &Device, shape: &Shape, arguments: Forward<'_>) -> Result<(), Error> {
    let (rows, vocabulary, channels) = (shape.loss.rows, shape.loss.vocabulary, shape.channels);
    if shape.chunk_rows == 0 {
        return Err(Error::new(NAME, "chunks of 0 rows"));
    }
    check_len(NAME, "input", arguments.input.len(), rows * channels)?;
    check_len(NAME, "weight", arguments.weight.len(), vocabulary * channels)?;
    if let Some(bias) = &arguments.bias {
        check_len(NAME, "bias", bias.len(), vocabulary)?;
    }
    check_len(NAME, "targets", arguments.targets.len(), rows)?;
    check_len(NAME, "logits", arguments.logits.len(), shape.chunk_rows.min(rows) * vocabulary)?;
    check_len(NAME, "losses", arguments.losses.len(), rows)?;
    if let Some(gradients) = &arguments.gradients {
        if let Some((grad, _)) = &gradients.grad_input {
            check_len(NAME, "grad_input", grad.len(), rows * channels)?;
        }
        if let Some((grad, _)) = &gradients.grad_weight {
            check_len(NAME, "grad_weight", grad.len(), vocabulary * channels)?;
        }
        if let Some((grad, _)) = &gradients.grad_bias {
            check_len(NAME, "grad_bias", grad.len(), vocabulary)?;
        }
    }
    check_targets(NAME, device, &shape.loss, &arguments.targets)?;
    match device {
        Device::Cpu(cpu) => cpu::linear_cross_entropy::forward(cpu, shape, arguments),
        Device::Gpu(gpu) => {
            gpu::linear_cross_entropy::forward(gpu, shape, arguments).map_err(Error::of_device(NAME))?
        }
    }
    Ok(())
}

/// The operation in plain f64 loops, all logits at once.
pub mod reference {
    use super::Shape;

    /// Losses, and gradients of `grad_loss · Σ losses`.
    pub struct Result {
        pub losses: Vec<f64>,
        pub grad_input: Vec<f64>,
        pub grad_weight: Vec<f64>,
        pub grad_bias: Vec<f64>,
    }

    /// Computes losses and all gradients.
    pub fn forward(
        shape: &Shape,
        input: &[f64],
        weight: &[f64],
        bias: Option<&[f64]>,
        targets: &[i32],
        grad_loss: f64,
    ) -> Result {
        let (rows, vocabulary, channels) = (shape.loss.rows, shape.loss.vocabulary, shape.channels);
        let smoothing = f64::from(shape.loss.label_smoothing);
        let mut result = Result {
            losses: vec![0.0; rows],
            grad_input: vec![0.0; rows * channels],
            grad_weight: vec![0.0; vocabulary * channels],
            grad_bias: vec![0.0; vocabulary],
        };
        for row in 0..rows {
            if targets[row] == shape.loss.ignored {
                continue;
            }
            let x = &input[row * channels..][..channels];
            let logit = |(class, w): (usize, &[f64])| -> f64 {
                bias.map_or(0.0, |bias| bias[class]) + w.iter().zip(x).map(|(w, x)| w * x).sum::<f64>()
            };
            let logits: Vec<f64> = weight.chunks_exact(channels).enumerate().map(logit).collect();
            let largest = logits.iter().fold(f64::NEG_INFINITY, |a, &b| a.max(b));
            let log_sum_exp = largest + logits.iter().map(|z| (z - largest).exp()).sum::<f64>().ln();
            for (class, logit) in logits.iter().enumerate() {
                let hit = if class == targets[row] as usize { 1.0 - smoothing } else { 0.0 };
                let wanted = hit + smoothing / vocabulary as f64;
                result.losses[row] += wanted * (log_sum_exp - logit);
                let grad_logit = grad_loss * ((logit - log_sum_exp).exp() - wanted);
                result.grad_bias[class] += grad_logit;
                for i in 0..channels {
                    result.grad_input[row * channels + i] += grad_logit * weight[class * channels + i];
                    result.grad_weight[class * channels + i] += grad_logit * x[i];
                }
            }
        }
        result
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Random, assert_close, assert_gradient, cpu_devices, double, poisoned};
    use super::*;

    /// Operands of one case.
    struct Case {
        shape: Shape,
        input: Vec<f32>,
        weight: Vec<f32>,
        bias: Option<Vec<f32>>,
        targets: Vec<i32>,
    }

    impl Case {
        fn new(random: &mut Random, rows: usize, vocabulary: usize, channels: usize, chunk_rows: usize) -> Self {
            let loss = softmax_cross_entropy::Shape { rows, vocabulary, label_smoothing: 0.1, ignored: -100 };
            let target = |row| if row % 5 == 3 { -100 } else { random.below(vocabulary) as i32 };
            let targets = (0..rows).map(target).collect();
            let scale = 1.0 / (channels as f32).sqrt();
            Self {
                shape: Shape { loss, channels, chunk_rows },
                input: random.normal(rows * channels),
                weight: random.normal(vocabulary * channels).iter().map(|w| w * scale).collect(),
                bias: None,
                targets,
            }
        }

        fn with_bias(self, random: &mut Random) -> Self {
            Self { bias: Some(random.normal(self.shape.loss.vocabulary)), ..self }
        }

        fn reference(&self) -> reference::Result {
            let bias = self.bias.as_ref().map(|bias| double(bias));
            let (input, weight) = (double(&self.input), double(&self.weight));
            reference::forward(&self.shape, &input, &weight, bias.as_deref(), &self.targets, 0.25)
        }

        /// Losses, and the gradients of input, weight and bias; `before` is what they hold, or they are overwritten.
        fn forward(&self, device: &Device, before: Option<f32>) -> [Vec<f32>; 4] {
            let fill = |length| before.map_or_else(|| poisoned(length), |value| vec![value; length]);
            let write = if before.is_some() { Write::Add } else { Write::Set };
            let (mut losses, mut logits) = (poisoned(self.shape.loss.rows), self.logits());
            let (mut grad_input, mut grad_weight) = (fill(self.input.len()), fill(self.weight.len()));
            let mut grad_bias = fill(self.bias.as_ref().map_or(0, Vec::len));
            let gradients = Gradients {
                grad_loss: 0.25,
                grad_input: Some(((&mut grad_input).into(), write)),
                grad_weight: Some(((&mut grad_weight).into(), write)),
                grad_bias: self.bias.is_some().then(|| ((&mut grad_bias).into(), write)),
            };
            self.call(device, &mut logits, &mut losses, Some(gradients));
            [losses, grad_input, grad_weight, grad_bias]
        }

        fn logits(&self) -> Vec<f32> {
            poisoned(self.shape.chunk_rows.min(self.shape.loss.rows) * self.shape.loss.vocabulary)
        }

        fn call(
            &self,
            device: &Device,
            logits: &mut Vec<f32>,
            losses: &mut Vec<f32>,
            gradients: Option<Gradients<'_>>,
        ) {
            let arguments = Forward {
                input: (&self.input).into(),
                weight: (&self.weight).into(),
                bias: self.bias.as_ref().map(View::from),
                targets: self.targets.as_slice().into(),
                logits: logits.into(),
                losses: losses.into(),
                gradients,
            };
            forward(device, &self.shape, arguments).unwrap();
        }
    }

    #[test]
    fn reference_gradients_match_finite_differences() {
        let mut random = Random::fresh();
        let case = Case::new(&mut random, 5, 7, 4, 5).with_bias(&mut random);
        let (x, w, b) = (double(&case.input), double(&case.weight), double(case.bias.as_ref().unwrap()));
        let loss = |x: &[f64], w: &[f64], b: &[f64]| {
            0.25 * reference::forward(&case.shape, x, w, Some(b), &case.targets, 0.25).losses.iter().sum::<f64>()
        };
        let result = case.reference();
        assert_gradient("input", |x| loss(x, &w, &b), &x, &result.grad_input);
        assert_gradient("weight", |w| loss(&x, w, &b), &w, &result.grad_weight);
        assert_gradient("bias", |b| loss(&x, &w, b), &b, &result.grad_bias);
    }

    #[test]
    fn chunks_of_any_size_match_the_reference() {
        let mut random = Random::fresh();
        for (rows, vocabulary, channels) in [(1, 3, 1), (17, 113, 33), (40, 1023, 17), (203, 65, 48)] {
            for (chunk_rows, has_bias) in [(1, false), (7, false), (7, true), (64, true), (1000, false), (1000, true)] {
                let mut case = Case::new(&mut random, rows, vocabulary, channels, chunk_rows);
                if has_bias {
                    case = case.with_bias(&mut random);
                }
                let expected = case.reference();
                for (name, device) in &cpu_devices() {
                    for before in [None, Some(0.5)] {
                        let name = format!(
                            "{name} {rows} {vocabulary} {channels} by {chunk_rows}, bias {has_bias}, added to {before:?}"
                        );
                        let added = |grad: &[f64]| -> Vec<f64> {
                            grad.iter().map(|g| g + f64::from(before.unwrap_or(0.0))).collect()
                        };
                        let [losses, grad_input, grad_weight, grad_bias] = case.forward(device, before);
                        assert_close(&format!("{name}: losses"), &losses, &expected.losses, 1e-5, 1e-7);
                        let (input, weight) = (added(&expected.grad_input), added(&expected.grad_weight));
                        assert_close(&format!("{name}: grad_input"), &grad_input, &input, 1e-5, 1e-7);
                        assert_close(&format!("{name}: grad_weight"), &grad_weight, &weight, 1e-5, 1e-7);
                        if has_bias {
                            let bias = added(&expected.grad_bias);
                            assert_close(&format!("{name}: grad_bias"), &grad_bias, &bias, 1e-5, 1e-7);
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn evaluation_gives_the_losses_of_training() {
        let mut random = Random::fresh();
        let case = Case::new(&mut random, 50, 113, 33, 16);
        for (name, device) in &cpu_devices() {
            let [training, ..] = case.forward(device, None);
            let mut evaluation = poisoned(50);
            case.call(device, &mut case.logits(), &mut evaluation, None);
            assert_close(name, &evaluation, &double(&training), 1e-6, 0.0);
        }
    }

    #[test]
    fn one_and_three_threads_give_equal_bits() {
        let mut random = Random::fresh();
        let case = Case::new(&mut random, 203, 1023, 48, 64).with_bias(&mut random);
        for pair in cpu_devices().chunks_exact(2) {
            let run = |device: &Device| {
                case.forward(device, None).map(|values| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>())
            };
            assert!(run(&pair[0].1) == run(&pair[1].1), "{} and {}: bits differ", pair[0].0, pair[1].0);
        }
    }
}
