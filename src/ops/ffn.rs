//! Feed-forward network: two linear layers fused as a pair, `y = activation(x · W1ᵀ + b1) · W2ᵀ + b2 + residual`.
//!
//! Fused means: the hidden layer's activation runs inside the first product, and in the backward pass its derivative
//! is applied as the second product's input gradient is written. With `Hidden::Recompute` only the pre-activation is
//! kept between the passes; the hidden activation is computed from it again, which gives the same bits.

pub(crate) mod cases;

use super::linear::Activation;
use super::{Device, Error, View, ViewMut, Write, check_len};
use crate::{cpu, gpu};

const NAME: &str = "ffn";

/// Sizes of a feed-forward network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// `B·T`
    pub rows: usize,
    /// `C`
    pub channels: usize,
    /// `F`: columns of the hidden layer after the activation.
    pub hidden: usize,
}

/// Arguments of [`forward`]. `z_columns` is `hidden · activation.width()`.
pub struct Forward<'a> {
    /// `(rows, channels)`
    pub input: View<'a, f32>,
    /// `(z_columns, channels)`
    pub weight_in: View<'a, f32>,
    /// `(z_columns)`
    pub bias_in: Option<View<'a, f32>>,
    /// `(channels, hidden)`
    pub weight_out: View<'a, f32>,
    /// `(channels)`
    pub bias_out: Option<View<'a, f32>>,
    /// `(rows, channels)`, added last.
    pub residual: Option<View<'a, f32>>,
    pub activation: Activation,
    /// `(rows, z_columns)`: the pre-activation, always written.
    pub pre_activation: ViewMut<'a, f32>,
    /// `(rows, hidden)`: the hidden activation, always written (its memory may be reused right after the call where
    /// the backward pass recomputes it).
    pub activated: ViewMut<'a, f32>,
    /// `(rows, channels)`
    pub output: ViewMut<'a, f32>,
}

/// What the backward pass has of the hidden activation.
pub enum Hidden<'a> {
    /// `(rows, hidden)`, kept by the forward pass.
    Kept(View<'a, f32>),
    /// `(rows, hidden)`: memory to compute it into again, from the pre-activation.
    Recompute(ViewMut<'a, f32>),
}

/// Arguments of [`backward`]. Every gradient that is not wanted is `None` and costs nothing.
pub struct Backward<'a> {
    /// `(rows, channels)`
    pub input: View<'a, f32>,
    /// `(z_columns, channels)`
    pub weight_in: View<'a, f32>,
    /// `(channels, hidden)`
    pub weight_out: View<'a, f32>,
    pub activation: Activation,
    /// `(rows, z_columns)`
    pub pre_activation: View<'a, f32>,
    pub activated: Hidden<'a>,
    /// `(rows, channels)`; also the gradient of the residual.
    pub grad_output: View<'a, f32>,
    /// `(rows, z_columns)`: memory for the gradient of the pre-activation.
    pub grad_pre_activation: ViewMut<'a, f32>,
    /// Computes that gradient even where none of the first layer's is asked for: somebody reads it afterwards.
    pub wants_grad_pre_activation: bool,
    /// `(rows, channels)`
    pub grad_input: Option<(ViewMut<'a, f32>, Write)>,
    /// `(z_columns, channels)`
    pub grad_weight_in: Option<(ViewMut<'a, f32>, Write)>,
    /// `(z_columns)`
    pub grad_bias_in: Option<(ViewMut<'a, f32>, Write)>,
    /// `(channels, hidden)`
    pub grad_weight_out: Option<(ViewMut<'a, f32>, Write)>,
    /// `(channels)`
    pub grad_bias_out: Option<(ViewMut<'a, f32>, Write)>,
}

/// Computes the network's output and what its backward pass needs.
///
/// # Errors
/// An argument's length does not fit `shape`.
pub fn forward(device: &Device, shape: &Shape, arguments: Forward<'_>) -> Result<(), Error> {
    let Shape { rows, channels, hidden } = *shape;
    let z = hidden * arguments.activation.width();
    check_len(NAME, "input", arguments.input.len(), rows * channels)?;
    check_len(NAME, "weight_in", arguments.weight_in.len(), z * channels)?;
    check_len(NAME, "weight_out", arguments.weight_out.len(), channels * hidden)?;
    check_len(NAME, "pre_activation", arguments.pre_activation.len(), rows * z)?;
    check_len(NAME, "activated", arguments.activated.len(), rows * hidden)?;
    check_len(NAME, "output", arguments.output.len(), rows * channels)?;
    for (name, view, expected) in [
        ("bias_in", &arguments.bias_in, z),
        ("bias_out", &arguments.bias_out, channels),
        ("residual", &arguments.residual, rows * channels),
    ] {
        if let Some(view) = view {
            check_len(NAME, name, view.len(), expected)?;
        }
    }
    match device {
        Device::Cpu(cpu) => cpu::ffn::forward(cpu, shape, arguments),
        Device::Gpu(gpu) => gpu::ffn::forward(gpu, shape, arguments).map_err(Error::of_device(NAME))?,
    }
    Ok(())
}

/// Computes the gradients that are asked for.
///
/// # Errors
/// An argument's length does not fit `shape`.
pub fn backward(device: &Device, shape: &Shape, arguments: Backward<'_>) -> Result<(), Error> {
    let Shape { rows, channels, hidden } = *shape;
    let z = hidden * arguments.activation.width();
    check_len(NAME, "input", arguments.input.len(), rows * channels)?;
    check_len(NAME, "weight_in", arguments.weight_in.len(), z * channels)?;
    check_len(NAME, "weight_out", arguments.weight_out.len(), channels * hidden)?;
    check_len(NAME, "pre_activation", arguments.pre_activation.len(), rows * z)?;
    let activated = match &arguments.activated {
        Hidden::Kept(view) => view.len(),
        Hidden::Recompute(view) => view.len(),
    };
    check_len(NAME, "activated", activated, rows * hidden)?;
    check_len(NAME, "grad_output", arguments.grad_output.len(), rows * channels)?;
    check_len(NAME, "grad_pre_activation", arguments.grad_pre_activation.len(), rows * z)?;
    for (name, grad, expected) in [
        ("grad_input", &arguments.grad_input, rows * channels),
        ("grad_weight_in", &arguments.grad_weight_in, z * channels),
        ("grad_bias_in", &arguments.grad_bias_in, z),
        ("grad_weight_out", &arguments.grad_weight_out, channels * hidden),
        ("grad_bias_out", &arguments.grad_bias_out, channels),
    ] {
        if let Some((view, _)) = grad {
            check_len(NAME, name, view.len(), expected)?;
        }
    }
    match device {
        Device::Cpu(cpu) => cpu::ffn::backward(cpu, shape, arguments),
        Device::Gpu(gpu) => gpu::ffn::backward(gpu, shape, arguments).map_err(Error::of_device(NAME))?,
    }
    Ok(())
}

/// The operation in plain f64 loops.
pub mod reference {
    use super::super::linear::{self, reference as layer};
    use super::{Activation, Shape};

    /// What the forward pass computes.
    pub struct Result {
        pub pre_activation: Vec<f64>,
        pub activated: Vec<f64>,
        pub output: Vec<f64>,
    }

    /// Gradients of `Σ output · grad_output`.
    pub struct Gradients {
        pub pre_activation: Vec<f64>,
        pub input: Vec<f64>,
        pub weight_in: Vec<f64>,
        pub bias_in: Vec<f64>,
        pub weight_out: Vec<f64>,
        pub bias_out: Vec<f64>,
    }

    /// Weights and biases of the two layers.
    #[derive(Clone, Copy)]
    pub struct Parameters<'a> {
        pub weight_in: &'a [f64],
        pub bias_in: Option<&'a [f64]>,
        pub weight_out: &'a [f64],
        pub bias_out: Option<&'a [f64]>,
    }

    fn layers(shape: &Shape) -> (linear::Shape, linear::Shape) {
        let Shape { rows, channels, hidden } = *shape;
        (
            linear::Shape { rows, inputs: channels, outputs: hidden },
            linear::Shape { rows, inputs: hidden, outputs: channels },
        )
    }

    /// Computes the output and what leads to it.
    pub fn forward(
        shape: &Shape,
        activation: Activation,
        input: &[f64],
        parameters: Parameters<'_>,
        residual: Option<&[f64]>,
    ) -> Result {
        let (first, second) = layers(shape);
        let Parameters { weight_in, bias_in, weight_out, bias_out } = parameters;
        let (pre_activation, activated) = layer::forward(&first, activation, input, weight_in, bias_in, None);
        let (_, output) = layer::forward(&second, Activation::Identity, &activated, weight_out, bias_out, residual);
        Result { pre_activation, activated, output }
    }

    /// Computes all gradients, from the pre-activation of the forward pass.
    pub fn backward(
        shape: &Shape,
        activation: Activation,
        input: &[f64],
        parameters: Parameters<'_>,
        pre_activation: &[f64],
        grad_output: &[f64],
    ) -> Gradients {
        let (first, second) = layers(shape);
        let activated = layer::activate(activation, shape.hidden, pre_activation);
        let outer = layer::backward(
            &second,
            Activation::Identity,
            &activated,
            parameters.weight_out,
            grad_output, // not read: the layer is linear
            grad_output,
        );
        let inner = layer::backward(&first, activation, input, parameters.weight_in, pre_activation, &outer.input);
        Gradients {
            pre_activation: layer::activate_backward(activation, shape.hidden, pre_activation, &outer.input),
            input: inner.input,
            weight_in: inner.weight,
            bias_in: inner.bias,
            weight_out: outer.weight,
            bias_out: outer.bias,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::linear::cases::ACTIVATIONS;
    use super::super::testing::{Random, assert_close, assert_gradient, cpu_devices, double, poisoned};
    use super::cases::{Case, GRAD_NAMES};
    use super::reference::Parameters;
    use super::*;

    /// Gradients in the order input, weight_in, bias_in, weight_out, bias_out; behind them the pre-activation's.
    type Grads = [Vec<f32>; 6];

    impl Case {
        /// Pre-activation, hidden activation and output; biases and residual if `extras`.
        fn forward(&self, device: &Device, extras: bool) -> [Vec<f32>; 3] {
            let Shape { rows, channels, hidden } = self.shape;
            let mut z = poisoned(rows * hidden * self.activation.width());
            let (mut activated, mut output) = (poisoned(rows * hidden), poisoned(rows * channels));
            let arguments = Forward {
                input: (&self.input).into(),
                weight_in: (&self.weight_in).into(),
                bias_in: extras.then(|| (&self.bias_in).into()),
                weight_out: (&self.weight_out).into(),
                bias_out: extras.then(|| (&self.bias_out).into()),
                residual: extras.then(|| (&self.residual).into()),
                activation: self.activation,
                pre_activation: (&mut z).into(),
                activated: (&mut activated).into(),
                output: (&mut output).into(),
            };
            forward(device, &self.shape, arguments).unwrap();
            [z, activated, output]
        }

        /// All gradients; `kept` is the hidden activation, or it is recomputed; `before` is what gradients hold, or
        /// they are overwritten.
        fn backward(&self, device: &Device, z: &[f32], kept: Option<&[f32]>, before: Option<f32>) -> Grads {
            let fill = |length| before.map_or_else(|| poisoned(length), |value| vec![value; length]);
            let write = if before.is_some() { Write::Add } else { Write::Set };
            let mut grads: Grads = [
                fill(self.input.len()),
                fill(self.weight_in.len()),
                fill(self.bias_in.len()),
                fill(self.weight_out.len()),
                fill(self.bias_out.len()),
                poisoned(z.len()),
            ];
            let mut recomputed = poisoned(self.shape.rows * self.shape.hidden);
            let [input, weight_in, bias_in, weight_out, bias_out, pre_activation] = &mut grads;
            let arguments = Backward {
                input: (&self.input).into(),
                weight_in: (&self.weight_in).into(),
                weight_out: (&self.weight_out).into(),
                activation: self.activation,
                pre_activation: z.into(),
                activated: match kept {
                    Some(kept) => Hidden::Kept(kept.into()),
                    None => Hidden::Recompute((&mut recomputed).into()),
                },
                grad_output: (&self.grad_output).into(),
                grad_pre_activation: pre_activation.into(),
                wants_grad_pre_activation: false,
                grad_input: Some((input.into(), write)),
                grad_weight_in: Some((weight_in.into(), write)),
                grad_bias_in: Some((bias_in.into(), write)),
                grad_weight_out: Some((weight_out.into(), write)),
                grad_bias_out: Some((bias_out.into(), write)),
            };
            backward(device, &self.shape, arguments).unwrap();
            grads
        }

        fn doubles(&self) -> [Vec<f64>; 7] {
            let parts = [
                &self.input,
                &self.weight_in,
                &self.bias_in,
                &self.weight_out,
                &self.bias_out,
                &self.residual,
                &self.grad_output,
            ];
            parts.map(|part| double(part))
        }
    }

    fn parameters<'a>(
        weight_in: &'a [f64],
        bias_in: &'a [f64],
        weight_out: &'a [f64],
        bias_out: &'a [f64],
    ) -> Parameters<'a> {
        Parameters { weight_in, bias_in: Some(bias_in), weight_out, bias_out: Some(bias_out) }
    }

    #[test]
    fn reference_gradients_match_finite_differences() {
        let mut random = Random::fresh();
        for activation in ACTIVATIONS {
            let case = Case::new(&mut random, [3, 4, 5], activation);
            let [x, w1, b1, w2, b2, _, dy] = case.doubles();
            let loss = |x: &[f64], parameters: Parameters<'_>| -> f64 {
                let result = reference::forward(&case.shape, activation, x, parameters, None);
                result.output.iter().zip(&dy).map(|(y, dy)| y * dy).sum()
            };
            let all = parameters(&w1, &b1, &w2, &b2);
            let z = reference::forward(&case.shape, activation, &x, all, None).pre_activation;
            let grads = reference::backward(&case.shape, activation, &x, all, &z, &dy);
            assert_gradient("input", |x| loss(x, all), &x, &grads.input);
            assert_gradient("weight_in", |w1| loss(&x, parameters(w1, &b1, &w2, &b2)), &w1, &grads.weight_in);
            assert_gradient("bias_in", |b1| loss(&x, parameters(&w1, b1, &w2, &b2)), &b1, &grads.bias_in);
            assert_gradient("weight_out", |w2| loss(&x, parameters(&w1, &b1, w2, &b2)), &w2, &grads.weight_out);
            assert_gradient("bias_out", |b2| loss(&x, parameters(&w1, &b1, &w2, b2)), &b2, &grads.bias_out);
        }
    }

    #[test]
    fn forward_and_backward_match_reference_for_odd_sizes() {
        let mut random = Random::fresh();
        let devices = cpu_devices();
        for activation in ACTIVATIONS {
            for (rows, channels, hidden) in [(1, 3, 5), (3, 17, 50), (17, 65, 203), (113, 33, 17), (203, 48, 113)] {
                let case = Case::new(&mut random, [rows, channels, hidden], activation);
                let [x, w1, b1, w2, b2, r, dy] = case.doubles();
                for extras in [false, true] {
                    let mut given = parameters(&w1, &b1, &w2, &b2);
                    if !extras {
                        (given.bias_in, given.bias_out) = (None, None);
                    }
                    let expected =
                        reference::forward(&case.shape, activation, &x, given, extras.then_some(r.as_slice()));
                    // The same z for both, because ReLU's derivative jumps where rounding may change a sign.
                    let z: Vec<f32> = expected.pre_activation.iter().map(|&z| z as f32).collect();
                    let grads = reference::backward(&case.shape, activation, &x, given, &double(&z), &dy);
                    let grads = [
                        &grads.input,
                        &grads.weight_in,
                        &grads.bias_in,
                        &grads.weight_out,
                        &grads.bias_out,
                        &grads.pre_activation,
                    ];
                    for (name, device) in &devices {
                        let name = format!("{name} {activation:?} {rows} {channels} {hidden} extras {extras}");
                        let [found_z, activated, output] = case.forward(device, extras);
                        assert_close(&format!("{name}: z"), &found_z, &expected.pre_activation, 1e-5, 1e-7);
                        assert_close(&format!("{name}: activated"), &activated, &expected.activated, 1e-5, 1e-7);
                        assert_close(&format!("{name}: output"), &output, &expected.output, 1e-5, 1e-7);
                        for before in [None, Some(-0.25)] {
                            let found = case.backward(device, &z, None, before);
                            for (i, part) in GRAD_NAMES.into_iter().enumerate() {
                                // The pre-activation's gradient is memory of the operation: always overwritten.
                                let before = if i < 5 { f64::from(before.unwrap_or(0.0)) } else { 0.0 };
                                let expected: Vec<f64> = grads[i].iter().map(|g| g + before).collect();
                                let name = format!("{name} added to {before}: grad_{part}");
                                assert_close(&name, &found[i], &expected, 1e-5, 1e-7);
                            }
                        }
                    }
                }
            }
        }
    }

    fn bits(values: &[Vec<f32>]) -> Vec<Vec<u32>> {
        values.iter().map(|values| values.iter().map(|v| v.to_bits()).collect()).collect()
    }

    #[test]
    fn a_recomputed_hidden_layer_gives_equal_bits() {
        let mut random = Random::fresh();
        for activation in ACTIVATIONS {
            // A hidden layer that no vector length divides: edges of tiles fall elsewhere than those of pieces.
            let case = Case::new(&mut random, [203, 33, 113], activation);
            for (name, device) in &cpu_devices() {
                let [z, activated, _] = case.forward(device, true);
                let kept = case.backward(device, &z, Some(&activated), None);
                let recomputed = case.backward(device, &z, None, None);
                assert!(bits(&kept) == bits(&recomputed), "{name} {activation:?}: bits differ");
            }
        }
    }

    #[test]
    fn one_and_three_threads_give_equal_bits() {
        let mut random = Random::fresh();
        for activation in [Activation::GeluTanh, Activation::SwiGlu] {
            let case = Case::new(&mut random, [700, 96, 203], activation);
            for pair in cpu_devices().chunks_exact(2) {
                let run = |device: &Device| {
                    let forward = case.forward(device, true);
                    let backward = case.backward(device, &forward[0], None, None);
                    (bits(&forward), bits(&backward))
                };
                assert!(run(&pair[0].1) == run(&pair[1].1), "{} and {}: bits differ", pair[0].0, pair[1].0);
            }
        }
    }
}
