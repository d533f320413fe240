//! Layer norm and RMS norm with an optional fused residual add, `s = x + r`:
//!
//! ```text
//! layer norm (Ba, Kiros, Hinton 2016)     y = (s - mean(s)) / √(var(s) + ε) · w + b
//! RMS norm (Zhang and Sennrich 2019)      y = s / √(mean(s²) + ε) · w
//! ```
//!
//! Variance is the biased one, as PyTorch's. RMS norm is layer norm with a mean of zero: one operation does both.

use super::{Device, Error, View, ViewMut, Write, check_len};
use crate::{cpu, gpu};

const NAME: &str = "layer_norm";

/// What a row is normalised by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Norm {
    /// Its mean and standard deviation.
    #[default]
    Layer,
    /// Its root mean square; without a bias.
    Rms,
}

/// Sizes of a norm.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Shape {
    pub kind: Norm,
    /// `B·T`
    pub rows: usize,
    /// `C`
    pub channels: usize,
    /// Added to the variance, or to the mean square.
    pub epsilon: f32,
}

/// What the forward pass leaves for the backward pass.
#[derive(Clone, Copy)]
pub struct Statistics<V> {
    /// `(rows)`; of a layer norm only.
    pub mean: Option<V>,
    /// `(rows)`: one over the standard deviation, or over the root mean square.
    pub reciprocal_deviation: V,
}

/// Arguments of [`forward`].
pub struct Forward<'a> {
    /// `(rows, channels)`
    pub input: View<'a, f32>,
    /// `(rows, channels)` to add to the input first, and where to keep the sum (which the backward pass then takes
    /// as its `input`).
    pub residual: Option<(View<'a, f32>, ViewMut<'a, f32>)>,
    /// `(channels)`
    pub weight: View<'a, f32>,
    /// `(channels)`; of a layer norm only.
    pub bias: Option<View<'a, f32>>,
    /// `(rows, channels)`
    pub output: ViewMut<'a, f32>,
    pub statistics: Option<Statistics<ViewMut<'a, f32>>>,
}

/// Arguments of [`backward`].
pub struct Backward<'a> {
    /// `(rows, channels)`: what was normalised, that is the sum where there was a residual.
    pub input: View<'a, f32>,
    /// `(channels)`
    pub weight: View<'a, f32>,
    pub statistics: Statistics<View<'a, f32>>,
    /// `(rows, channels)`
    pub grad_output: View<'a, f32>,
    /// `(rows, channels)`: gradient of what was normalised. With [`Write::Add`], the gradient that arrives at the
    /// residual stream by other ways is in it already, which fuses that sum.
    pub grad_input: Option<(ViewMut<'a, f32>, Write)>,
    /// `(channels)`
    pub grad_weight: Option<(ViewMut<'a, f32>, Write)>,
    /// `(channels)`; of a layer norm only.
    pub grad_bias: Option<(ViewMut<'a, f32>, Write)>,
}

/// Fails unless a layer norm has a mean, and an RMS norm neither mean nor bias.
fn check_kind(shape: &Shape, has_mean: bool, has_bias: bool) -> Result<(), Error> {
    match shape.kind {
        Norm::Layer if !has_mean => Err(Error::new(NAME, "the statistics of a layer norm have a mean")),
        Norm::Rms if has_mean => Err(Error::new(NAME, "the statistics of an RMS norm have no mean")),
        Norm::Rms if has_bias => Err(Error::new(NAME, "an RMS norm has no bias")),
        _ => Ok(()),
    }
}

/// Normalises each row.
///
/// # Errors
/// An argument's length does not fit `shape`, or is not one of this kind of norm.
pub fn forward(device: &Device, shape: &Shape, arguments: Forward<'_>) -> Result<(), Error> {
    let Shape { rows, channels, .. } = *shape;
    check_len(NAME, "input", arguments.input.len(), rows * channels)?;
    check_len(NAME, "weight", arguments.weight.len(), channels)?;
    check_len(NAME, "output", arguments.output.len(), rows * channels)?;
    if let Some(bias) = &arguments.bias {
        check_len(NAME, "bias", bias.len(), channels)?;
    }
    if let Some((residual, sum)) = &arguments.residual {
        check_len(NAME, "residual", residual.len(), rows * channels)?;
        check_len(NAME, "sum", sum.len(), rows * channels)?;
    }
    if let Some(statistics) = &arguments.statistics {
        check_len(NAME, "reciprocal_deviation", statistics.reciprocal_deviation.len(), rows)?;
        if let Some(mean) = &statistics.mean {
            check_len(NAME, "mean", mean.len(), rows)?;
        }
    }
    let has_mean = arguments.statistics.as_ref().map_or(shape.kind == Norm::Layer, |found| found.mean.is_some());
    check_kind(shape, has_mean, arguments.bias.is_some())?;
    match device {
        Device::Cpu(cpu) => cpu::layer_norm::forward(cpu, shape, arguments),
        Device::Gpu(gpu) => gpu::layer_norm::forward(gpu, shape, arguments).map_err(Error::of_device(NAME))?,
    }
    Ok(())
}

/// Computes the gradients that are asked for.
///
/// # Errors
/// An argument's length does not fit `shape`, or is not one of this kind of norm.
pub fn backward(device: &Device, shape: &Shape, arguments: Backward<'_>) -> Result<(), Error> {
    let Shape { rows, channels, .. } = *shape;
    check_len(NAME, "input", arguments.input.len(), rows * channels)?;
    check_len(NAME, "weight", arguments.weight.len(), channels)?;
    let Statistics { mean, reciprocal_deviation } = &arguments.statistics;
    check_kind(shape, mean.is_some(), arguments.grad_bias.is_some())?;
    if let Some(mean) = mean {
        check_len(NAME, "mean", mean.len(), rows)?;
    }
    check_len(NAME, "reciprocal_deviation", reciprocal_deviation.len(), rows)?;
    check_len(NAME, "grad_output", arguments.grad_output.len(), rows * channels)?;
    for (name, grad, expected) in [
        ("grad_input", &arguments.grad_input, rows * channels),
        ("grad_weight", &arguments.grad_weight, channels),
        ("grad_bias", &arguments.grad_bias, channels),
    ] {
        if let Some((view, _)) = grad {
            check_len(NAME, name, view.len(), expected)?;
        }
    }
    match device {
        Device::Cpu(cpu) => cpu::layer_norm::backward(cpu, shape, arguments),
        Device::Gpu(gpu) => gpu::layer_norm::backward(gpu, shape, arguments).map_err(Error::of_device(NAME))?,
    }
    Ok(())
}

/// Both norms in f64, from the formulas: what every backend is measured against.
pub mod reference {
    use super::{Norm, Shape};

    /// What the forward pass gives.
    pub struct Output {
        /// `(rows, channels)`: what was normalised.
        pub sum: Vec<f64>,
        /// `(rows, channels)`
        pub output: Vec<f64>,
        /// `(rows)`; zeros for an RMS norm.
        pub mean: Vec<f64>,
        /// `(rows)`
        pub reciprocal_deviation: Vec<f64>,
    }

    /// See [`super::forward`].
    pub fn forward(
        shape: &Shape,
        input: &[f64],
        residual: Option<&[f64]>,
        weight: &[f64],
        bias: Option<&[f64]>,
    ) -> Output {
        let (c, count) = (shape.channels, shape.channels as f64);
        let sum: Vec<f64> = (0..input.len()).map(|i| input[i] + residual.map_or(0.0, |r| r[i])).collect();
        let mean = |row: &[f64]| match shape.kind {
            Norm::Layer => row.iter().sum::<f64>() / count,
            Norm::Rms => 0.0,
        };
        let mean: Vec<f64> = sum.chunks(c).map(mean).collect();
        let variance = |(row, mean): (&[f64], &f64)| row.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>() / count;
        let reciprocal_deviation: Vec<f64> =
            sum.chunks(c).zip(&mean).map(|row| 1.0 / (variance(row) + f64::from(shape.epsilon)).sqrt()).collect();
        let normalised = |i: usize| (sum[i] - mean[i / c]) * reciprocal_deviation[i / c];
        let output =
            (0..sum.len()).map(|i| normalised(i) * weight[i % c] + bias.map_or(0.0, |bias| bias[i % c])).collect();
        Output { sum, output, mean, reciprocal_deviation }
    }

    /// What the backward pass gives.
    pub struct Gradients {
        /// `(rows, channels)`
        pub input: Vec<f64>,
        /// `(channels)`
        pub weight: Vec<f64>,
        /// `(channels)`
        pub bias: Vec<f64>,
    }

    /// See [`super::backward`]; `input` is what was normalised, and the statistics are computed from it.
    pub fn backward(shape: &Shape, input: &[f64], weight: &[f64], grad_output: &[f64]) -> Gradients {
        let (c, count) = (shape.channels, shape.channels as f64);
        let forward = forward(shape, input, None, weight, None);
        let normalised = |i: usize| (input[i] - forward.mean[i / c]) * forward.reciprocal_deviation[i / c];
        let mut gradients = Gradients { input: vec![0.0; input.len()], weight: vec![0.0; c], bias: vec![0.0; c] };
        for row in 0..shape.rows {
            let places = row * c..(row + 1) * c;
            let g = |i: usize| grad_output[i] * weight[i % c];
            // What a mean that is taken off every value takes off every gradient.
            let mean_g = match shape.kind {
                Norm::Layer => places.clone().map(g).sum::<f64>() / count,
                Norm::Rms => 0.0,
            };
            let mean_g_normalised = places.clone().map(|i| g(i) * normalised(i)).sum::<f64>() / count;
            for i in places {
                gradients.input[i] =
                    forward.reciprocal_deviation[row] * (g(i) - mean_g - normalised(i) * mean_g_normalised);
                gradients.weight[i % c] += grad_output[i] * normalised(i);
                gradients.bias[i % c] += grad_output[i];
            }
        }
        gradients
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Random, assert_close, assert_gradient, cpu_devices, double, poisoned};
    use super::*;

    const EPSILON: f32 = 1e-5;
    const KINDS: [Norm; 2] = [Norm::Layer, Norm::Rms];

    #[test]
    fn reference_gradients_match_finite_differences() {
        let mut random = Random::fresh();
        for kind in KINDS {
            let shape = Shape { kind, rows: 3, channels: 7, epsilon: EPSILON };
            let [input, grad_output] = [0; 2].map(|_| double(&random.normal(21)));
            let [weight, bias] = [0; 2].map(|_| double(&random.normal(7)));
            let loss = |input: &[f64], weight: &[f64], bias: &[f64]| -> f64 {
                let output = reference::forward(&shape, input, None, weight, Some(bias)).output;
                output.iter().zip(&grad_output).map(|(y, g)| y * g).sum()
            };
            let gradients = reference::backward(&shape, &input, &weight, &grad_output);
            assert_gradient("input", |x| loss(x, &weight, &bias), &input, &gradients.input);
            assert_gradient("weight", |w| loss(&input, w, &bias), &weight, &gradients.weight);
            assert_gradient("bias", |b| loss(&input, &weight, b), &bias, &gradients.bias);
        }
    }

    #[test]
    fn what_is_not_part_of_a_kind_of_norm_is_named() {
        let (_, device) = cpu_devices().remove(0);
        let message = |kind: Norm, has_mean: bool, has_bias: bool| {
            let shape = Shape { kind, rows: 1, channels: 1, epsilon: EPSILON };
            let ([input, weight, bias], [mut output, mut mean, mut rstd]) = ([[1.0]; 3], [[0.0]; 3]);
            let arguments = Forward {
                input: input[..].into(),
                residual: None,
                weight: weight[..].into(),
                bias: has_bias.then(|| bias[..].into()),
                output: (&mut output[..]).into(),
                statistics: Some(Statistics {
                    mean: has_mean.then(|| (&mut mean[..]).into()),
                    reciprocal_deviation: (&mut rstd[..]).into(),
                }),
            };
            forward(&device, &shape, arguments).unwrap_err().to_string()
        };
        let found = message(Norm::Layer, false, true);
        assert_eq!(found, "layer_norm: the statistics of a layer norm have a mean");
        assert_eq!(message(Norm::Rms, true, false), "layer_norm: the statistics of an RMS norm have no mean");
        assert_eq!(message(Norm::Rms, false, true), "layer_norm: an RMS norm has no bias");
    }

    #[test]
    fn forward_matches_reference_over_odd_sizes_and_options() {
        let mut random = Random::fresh();
        for (rows, channels) in [(1, 1), (3, 3), (5, 17), (7, 113), (2, 203), (3, 768), (2, 1023), (113, 64)] {
            let [input, residual] = [0; 2].map(|_| random.normal(rows * channels));
            // A mean far from zero is where a one-pass variance would lose its digits. (A row of three may happen to
            // hold nearly equal values; far from zero their differences would be rounding.)
            let shift = if channels > 3 { 8.0 } else { 0.0 };
            let input: Vec<f32> = input.iter().map(|x| x + shift).collect();
            let [weight, bias] = [0; 2].map(|_| random.normal(channels));
            for options in 0..6 {
                let (has_residual, has_bias, is_rms) = (options & 1 > 0, options & 2 > 0, options & 4 > 0);
                let kind = if is_rms { Norm::Rms } else { Norm::Layer };
                let shape = Shape { kind, rows, channels, epsilon: EPSILON };
                let (residual_double, bias_double) = (double(&residual), double(&bias));
                let expected = reference::forward(
                    &shape,
                    &double(&input),
                    has_residual.then_some(&residual_double),
                    &double(&weight),
                    has_bias.then_some(&bias_double),
                );
                for (name, device) in cpu_devices() {
                    let name = format!("{rows}x{channels}, options {options}, {name}");
                    let [mut output, mut sum] = [0; 2].map(|_| poisoned(rows * channels));
                    let [mut mean, mut rstd] = [0; 2].map(|_| poisoned(rows));
                    let arguments = Forward {
                        input: (&input).into(),
                        residual: has_residual.then(|| ((&residual).into(), (&mut sum).into())),
                        weight: (&weight).into(),
                        bias: has_bias.then(|| (&bias).into()),
                        output: (&mut output).into(),
                        statistics: Some(Statistics {
                            mean: (!is_rms).then(|| (&mut mean).into()),
                            reciprocal_deviation: (&mut rstd).into(),
                        }),
                    };
                    forward(&device, &shape, arguments).unwrap();
                    assert_close(&format!("output, {name}"), &output, &expected.output, 1e-5, 0.0);
                    if !is_rms {
                        assert_close(&format!("mean, {name}"), &mean, &expected.mean, 1e-6, 0.0);
                    }
                    assert_close(&format!("deviation, {name}"), &rstd, &expected.reciprocal_deviation, 1e-5, 0.0);
                    if has_residual {
                        assert_close(&format!("sum, {name}"), &sum, &expected.sum, 1e-6, 0.0);
                    }
                }
            }
        }
    }

    #[test]
    fn backward_matches_reference_over_odd_sizes_and_options() {
        let mut random = Random::fresh();
        let sizes = [(1, 1), (3, 3), (5, 17), (7, 113), (113, 203), (6, 768), (2, 1023), (1023, 64)];
        for ((rows, channels), is_rms) in sizes.into_iter().flat_map(|size| [(size, false), (size, true)]) {
            let kind = KINDS[usize::from(is_rms)];
            let shape = Shape { kind, rows, channels, epsilon: EPSILON };
            let [input, grad_output, before] = [0; 3].map(|_| random.normal(rows * channels));
            let [weight, before_weight, before_bias] = [0; 3].map(|_| random.normal(channels));
            let statistics = reference::forward(&shape, &double(&input), None, &double(&weight), None);
            let mean: Vec<f32> = statistics.mean.iter().map(|&v| v as f32).collect();
            let rstd: Vec<f32> = statistics.reciprocal_deviation.iter().map(|&v| v as f32).collect();
            let expected = reference::backward(&shape, &double(&input), &double(&weight), &double(&grad_output));
            let plus = |gradient: &[f64], before: &[f32]| -> Vec<f64> {
                gradient.iter().zip(before).map(|(g, &b)| g + f64::from(b)).collect()
            };
            for (name, device) in cpu_devices() {
                for write in [Write::Set, Write::Add] {
                    let name = format!("{kind:?}, {rows}x{channels}, {write:?}, {name}");
                    let start = |before: &[f32]| match write {
                        Write::Set => poisoned(before.len()),
                        Write::Add => before.to_vec(),
                    };
                    let (mut grad_input, mut grad_weight, mut grad_bias) =
                        (start(&before), start(&before_weight), start(&before_bias));
                    let arguments = Backward {
                        input: (&input).into(),
                        weight: (&weight).into(),
                        statistics: Statistics {
                            mean: (!is_rms).then(|| (&mean).into()),
                            reciprocal_deviation: (&rstd).into(),
                        },
                        grad_output: (&grad_output).into(),
                        grad_input: Some(((&mut grad_input).into(), write)),
                        grad_weight: Some(((&mut grad_weight).into(), write)),
                        grad_bias: (!is_rms).then(|| ((&mut grad_bias).into(), write)),
                    };
                    backward(&device, &shape, arguments).unwrap();
                    for (what, found, gradient, before) in [
                        ("input", &grad_input, &expected.input, &before),
                        ("weight", &grad_weight, &expected.weight, &before_weight),
                        ("bias", &grad_bias, &expected.bias, &before_bias),
                    ] {
                        if is_rms && what == "bias" {
                            continue;
                        }
                        let expected = if write == Write::Add { plus(gradient, before) } else { gradient.clone() };
                        // With one channel everything cancels: the floor is what rounding leaves of 1/√ε.
                        assert_close(&format!("{what}, {name}"), found, &expected, 1e-5, 1e-6 * f64::from(rstd[0]));
                    }
                }
            }
        }
    }

    #[test]
    fn each_gradient_can_be_asked_for_alone_and_threads_do_not_change_a_bit() {
        let mut random = Random::fresh();
        let shape = Shape { kind: Norm::Layer, rows: 203, channels: 384, epsilon: EPSILON };
        let [input, grad_output] = [0; 2].map(|_| random.normal(203 * 384));
        let weight = random.normal(384);
        let [mean, rstd] = [random.normal(203), vec![1.0; 203]];
        let mut all = Vec::new();
        for (name, device) in cpu_devices() {
            let run = |wanted: [bool; 3]| {
                let (mut grad_input, mut grad_weight, mut grad_bias) =
                    (poisoned(203 * 384), poisoned(384), poisoned(384));
                let arguments = Backward {
                    input: (&input).into(),
                    weight: (&weight).into(),
                    statistics: Statistics { mean: Some((&mean).into()), reciprocal_deviation: (&rstd).into() },
                    grad_output: (&grad_output).into(),
                    grad_input: wanted[0].then(|| ((&mut grad_input).into(), Write::Set)),
                    grad_weight: wanted[1].then(|| ((&mut grad_weight).into(), Write::Set)),
                    grad_bias: wanted[2].then(|| ((&mut grad_bias).into(), Write::Set)),
                };
                backward(&device, &shape, arguments).unwrap();
                [grad_input, grad_weight, grad_bias].map(|v| v.iter().map(|x| x.to_bits()).collect::<Vec<_>>())
            };
            let together = run([true; 3]);
            for (i, expected) in together.iter().enumerate() {
                assert_eq!(run(std::array::from_fn(|j| j == i))[i], *expected, "gradient {i}, {name}");
            }
            all.push((name, together));
        }
        for pair in all.chunks(2) {
            assert_eq!(pair[0].1, pair[1].1, "{} and {}", pair[0].0, pair[1].0);
        }
    }

    #[test]
    fn large_outputs_that_are_written_past_the_caches_are_the_same() {
        let mut random = Random::fresh();
        let (few, rows, channels) = (64, 5696, 768);
        let input = random.normal(few * channels).repeat(rows / few);
        let weight = random.normal(channels);
        for (name, device) in cpu_devices() {
            // Whether a row can be written past the caches depends on where it starts.
            for offset in [0, 1] {
                let run = |rows: usize| {
                    let shape = Shape { kind: Norm::Layer, rows, channels, epsilon: EPSILON };
                    let values = rows * channels;
                    let [mut output, mut grad_input] = [0; 2].map(|_| poisoned(values + 17));
                    let start = |memory: &[f32]| memory.as_ptr().align_offset(64) + offset;
                    let (first, first_grad) = (start(&output), start(&grad_input));
                    let [mut mean, mut rstd] = [0; 2].map(|_| poisoned(rows));
                    let arguments = Forward {
                        input: input[..values].into(),
                        residual: None,
                        weight: (&weight).into(),
                        bias: None,
                        output: (&mut output[first..first + values]).into(),
                        statistics: Some(Statistics {
                            mean: Some((&mut mean).into()),
                            reciprocal_deviation: (&mut rstd).into(),
                        }),
                    };
                    forward(&device, &shape, arguments).unwrap();
                    let arguments = Backward {
                        input: input[..values].into(),
                        weight: (&weight).into(),
                        statistics: Statistics { mean: Some((&mean).into()), reciprocal_deviation: (&rstd).into() },
                        grad_output: output[first..first + values].into(),
                        grad_input: Some(((&mut grad_input[first_grad..first_grad + values]).into(), Write::Set)),
                        grad_weight: None,
                        grad_bias: None,
                    };
                    backward(&device, &shape, arguments).unwrap();
                    let part = |memory: Vec<f32>, first: usize| memory[first..first + values].to_vec();
                    (part(output, first), part(grad_input, first_grad))
                };
                let (output, grad_input) = run(rows);
                let (expected_output, expected_grad) = run(few);
                for (place, part) in output.chunks(few * channels).enumerate() {
                    assert!(part == expected_output, "output, part {place}, offset {offset}, {name}");
                }
                for (place, part) in grad_input.chunks(few * channels).enumerate() {
                    assert!(part == expected_grad, "grad_input, part {place}, offset {offset}, {name}");
                }
            }
        }
    }

    #[test]
    fn lengths_that_do_not_fit_are_named() {
        let (_, device) = cpu_devices().remove(0);
        let shape = Shape { kind: Norm::Layer, rows: 2, channels: 3, epsilon: EPSILON };
        let (input, weight, mut output) = (vec![0.0; 6], vec![0.0; 4], vec![0.0; 6]);
        let arguments = Forward {
            input: (&input).into(),
            residual: None,
            weight: (&weight).into(),
            bias: None,
            output: (&mut output).into(),
            statistics: None,
        };
        let message = forward(&device, &shape, arguments).unwrap_err().to_string();
        assert_eq!(message, "layer_norm: weight has 4 elements, expected 3");
    }
}
