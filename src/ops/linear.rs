//! Linear layer: `z = x · Wᵀ + b`, `y = activation(z) + residual`, and its gradients.

pub(crate) mod cases;

use super::{Device, Error, View, ViewMut, Write, check_len};
use crate::{cpu, gpu};

const NAME: &str = "linear";

/// What is applied to a linear layer's result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// Nothing.
    Identity,
    /// `max(z, 0)`.
    Relu,
    /// GELU by its tanh approximation: `z/2 · (1 + tanh(√(2/π) (z + 0.044715 z³)))` (Hendrycks and Gimpel 2016).
    GeluTanh,
    /// GELU exactly: `z/2 · (1 + erf(z/√2))`.
    GeluErf,
    /// `silu(gate) · up` (Shazeer 2020). The weight holds `2·outputs` rows, those of the gate first, and so do the
    /// bias and the columns of the pre-activation; `y` has `outputs` columns.
    SwiGlu,
    /// `tanh(z)`, as in BERT's pooler (Devlin et al. 2019).
    Tanh,
}

impl Activation {
    /// Columns of the pre-activation for each column of the output: 2 for SwiGLU, else 1.
    pub fn width(self) -> usize {
        if self == Activation::SwiGlu { 2 } else { 1 }
    }
}

/// Sizes of a linear layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Rows of the input: `B·T`.
    pub rows: usize,
    /// Columns of the input.
    pub inputs: usize,
    /// Columns of the output `y`.
    pub outputs: usize,
}

/// Arguments of [`forward`]. `z_columns` is `outputs · activation.width()`.
pub struct Forward<'a> {
    /// `(rows, inputs)`
    pub input: View<'a, f32>,
    /// `(z_columns, inputs)`
    pub weight: View<'a, f32>,
    /// `(z_columns)`
    pub bias: Option<View<'a, f32>>,
    /// `(rows, outputs)`, added last.
    pub residual: Option<View<'a, f32>>,
    /// Applied after the bias.
    pub activation: Activation,
    /// `(rows, z_columns)`: keeps `z` for the backward pass. Must be given for SwiGLU.
    pub pre_activation: Option<ViewMut<'a, f32>>,
    /// `(rows, outputs)`
    pub output: ViewMut<'a, f32>,
}

/// Arguments of [`backward`]. Every gradient that is not wanted is `None` and costs nothing.
///
/// The gradient of the residual is `grad_output` itself, so it is not an argument.
pub struct Backward<'a> {
    /// `(rows, inputs)`
    pub input: View<'a, f32>,
    /// `(z_columns, inputs)`
    pub weight: View<'a, f32>,
    /// As in the forward pass.
    pub activation: Activation,
    /// `(rows, z_columns)`: needed unless the activation is the identity.
    pub pre_activation: Option<View<'a, f32>>,
    /// `(rows, outputs)`
    pub grad_output: View<'a, f32>,
    /// `(rows, inputs)`
    pub grad_input: Option<(ViewMut<'a, f32>, Write)>,
    /// `(z_columns, inputs)`
    pub grad_weight: Option<(ViewMut<'a, f32>, Write)>,
    /// `(z_columns)`
    pub grad_bias: Option<(ViewMut<'a, f32>, Write)>,
}

/// Computes `y = activation(x · Wᵀ + b) + residual`.
///
/// # Errors
/// An argument's length does not fit `shape`.
pub fn forward(device: &Device, shape: &Shape, arguments: Forward<'_>) -> Result<(), Error> {
    let z = shape.outputs * arguments.activation.width();
    check_len(NAME, "input", arguments.input.len(), shape.rows * shape.inputs)?;
    check_len(NAME, "weight", arguments.weight.len(), z * shape.inputs)?;
    check_len(NAME, "output", arguments.output.len(), shape.rows * shape.outputs)?;
    if let Some(bias) = &arguments.bias {
        check_len(NAME, "bias", bias.len(), z)?;
    }
    if let Some(residual) = &arguments.residual {
        check_len(NAME, "residual", residual.len(), shape.rows * shape.outputs)?;
    }
    match &arguments.pre_activation {
        Some(pre_activation) => check_len(NAME, "pre_activation", pre_activation.len(), shape.rows * z)?,
        None if arguments.activation == Activation::SwiGlu => {
            return Err(Error::new(NAME, "SwiGLU needs a place for the pre-activation"));
        }
        None => {}
    }
    match device {
        Device::Cpu(cpu) => cpu::linear::forward(cpu, shape, arguments),
        Device::Gpu(gpu) => gpu::linear::forward(gpu, shape, arguments).map_err(Error::of_device(NAME))?,
    }
    Ok(())
}

/// Computes `dz = dy ⊙ activation'(z)`, then `dx = dz · W`, `dW = dzᵀ · x` and `db = Σ_rows dz`.
///
/// # Errors
/// An argument's length does not fit `shape`, or the pre-activation is missing where it is needed.
pub fn backward(device: &Device, shape: &Shape, arguments: Backward<'_>) -> Result<(), Error> {
    let z = shape.outputs * arguments.activation.width();
    check_len(NAME, "input", arguments.input.len(), shape.rows * shape.inputs)?;
    check_len(NAME, "weight", arguments.weight.len(), z * shape.inputs)?;
    check_len(NAME, "grad_output", arguments.grad_output.len(), shape.rows * shape.outputs)?;
    match &arguments.pre_activation {
        Some(pre_activation) => check_len(NAME, "pre_activation", pre_activation.len(), shape.rows * z)?,
        None if arguments.activation != Activation::Identity => {
            return Err(Error::new(NAME, "the backward pass needs the pre-activation"));
        }
        None => {}
    }
    if let Some((grad, _)) = &arguments.grad_input {
        check_len(NAME, "grad_input", grad.len(), shape.rows * shape.inputs)?;
    }
    if let Some((grad, _)) = &arguments.grad_weight {
        check_len(NAME, "grad_weight", grad.len(), z * shape.inputs)?;
    }
    if let Some((grad, _)) = &arguments.grad_bias {
        check_len(NAME, "grad_bias", grad.len(), z)?;
    }
    match device {
        Device::Cpu(cpu) => cpu::linear::backward(cpu, shape, arguments),
        Device::Gpu(gpu) => gpu::linear::backward(gpu, shape, arguments).map_err(Error::of_device(NAME))?,
    }
    Ok(())
}

/// The operation in plain f64 loops.
pub mod reference {
    use super::{Activation, Shape};

    /// Gradients of one linear layer.
    pub struct Gradients {
        pub input: Vec<f64>,
        pub weight: Vec<f64>,
        pub bias: Vec<f64>,
    }

    /// Returns the pre-activation and the output.
    pub fn forward(
        shape: &Shape,
        activation: Activation,
        input: &[f64],
        weight: &[f64],
        bias: Option<&[f64]>,
        residual: Option<&[f64]>,
    ) -> (Vec<f64>, Vec<f64>) {
        let columns = shape.outputs * activation.width();
        let mut pre_activation = vec![0.0; shape.rows * columns];
        for row in 0..shape.rows {
            for column in 0..columns {
                let mut sum = bias.map_or(0.0, |bias| bias[column]);
                for i in 0..shape.inputs {
                    sum += input[row * shape.inputs + i] * weight[column * shape.inputs + i];
                }
                pre_activation[row * columns + column] = sum;
            }
        }
        let mut output = activate(activation, shape.outputs, &pre_activation);
        if let Some(residual) = residual {
            for (y, r) in output.iter_mut().zip(residual) {
                *y += r;
            }
        }
        (pre_activation, output)
    }

    /// Gradients of `Σ output · grad_output`.
    pub fn backward(
        shape: &Shape,
        activation: Activation,
        input: &[f64],
        weight: &[f64],
        pre_activation: &[f64],
        grad_output: &[f64],
    ) -> Gradients {
        let columns = shape.outputs * activation.width();
        let grad_z = activate_backward(activation, shape.outputs, pre_activation, grad_output);
        let mut grads = Gradients {
            input: vec![0.0; shape.rows * shape.inputs],
            weight: vec![0.0; columns * shape.inputs],
            bias: vec![0.0; columns],
        };
        for row in 0..shape.rows {
            for column in 0..columns {
                let grad = grad_z[row * columns + column];
                grads.bias[column] += grad;
                for i in 0..shape.inputs {
                    grads.input[row * shape.inputs + i] += grad * weight[column * shape.inputs + i];
                    grads.weight[column * shape.inputs + i] += grad * input[row * shape.inputs + i];
                }
            }
        }
        grads
    }

    /// `activation(z)` for rows of `outputs · width` pre-activations.
    pub fn activate(activation: Activation, outputs: usize, pre_activation: &[f64]) -> Vec<f64> {
        if activation != Activation::SwiGlu {
            return pre_activation.iter().map(|&z| value_and_slope(activation, z).0).collect();
        }
        let mut output = Vec::with_capacity(pre_activation.len() / 2);
        for row in pre_activation.chunks_exact((2 * outputs).max(1)) {
            output.extend((0..outputs).map(|j| row[j] * sigmoid(row[j]) * row[outputs + j]));
        }
        output
    }

    /// Gradient of `z` from the gradient of `activation(z)`.
    pub fn activate_backward(
        activation: Activation,
        outputs: usize,
        pre_activation: &[f64],
        grad_output: &[f64],
    ) -> Vec<f64> {
        if activation != Activation::SwiGlu {
            return pre_activation
                .iter()
                .zip(grad_output)
                .map(|(&z, g)| value_and_slope(activation, z).1 * g)
                .collect();
        }
        let mut grads = vec![0.0; pre_activation.len()];
        for (row, z) in pre_activation.chunks_exact((2 * outputs).max(1)).enumerate() {
            for j in 0..outputs {
                let (gate, up, grad) = (z[j], z[outputs + j], grad_output[row * outputs + j]);
                let s = sigmoid(gate);
                grads[row * 2 * outputs + j] = grad * up * (s + gate * s * (1.0 - s));
                grads[row * 2 * outputs + outputs + j] = grad * gate * s;
            }
        }
        grads
    }

    /// An activation of one variable, and its derivative.
    fn value_and_slope(activation: Activation, z: f64) -> (f64, f64) {
        match activation {
            Activation::Identity | Activation::SwiGlu => (z, 1.0),
            Activation::Relu => (z.max(0.0), if z > 0.0 { 1.0 } else { 0.0 }),
            Activation::GeluTanh => {
                let c = (2.0 / std::f64::consts::PI).sqrt();
                let t = (c * (z + 0.044715 * z.powi(3))).tanh();
                let slope = 0.5 * (1.0 + t) + 0.5 * z * (1.0 - t * t) * c * (1.0 + 3.0 * 0.044715 * z * z);
                (0.5 * z * (1.0 + t), slope)
            }
            Activation::GeluErf => {
                let distribution = 0.5 * (1.0 + erf(z / std::f64::consts::SQRT_2));
                let density = (-0.5 * z * z).exp() / (2.0 * std::f64::consts::PI).sqrt();
                (z * distribution, distribution + z * density)
            }
            Activation::Tanh => (z.tanh(), 1.0 - z.tanh().powi(2)),
        }
    }

    fn sigmoid(x: f64) -> f64 {
        1.0 / (1.0 + (-x).exp())
    }

    /// The error function, by the series `2/√π · e^(-x²) · Σ 2ⁿ x^(2n+1) / (2n+1)!!`, whose terms have one sign.
    fn erf(x: f64) -> f64 {
        if x.abs() > 6.0 {
            return x.signum();
        }
        let (mut term, mut sum) = (x, x);
        for n in 1..200 {
            term *= 2.0 * x * x / (2 * n + 1) as f64;
            sum += term;
        }
        2.0 / std::f64::consts::PI.sqrt() * (-x * x).exp() * sum
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Random, assert_close, assert_gradient, cpu_devices, double, poisoned};
    use super::cases::{ACTIVATIONS, Case};
    use super::*;

    /// Every kind of edge: less than a vector, more than a panel, deeper than a block, few rows and many.
    const SHAPES: [(usize, usize, usize); 14] = [
        (1, 1, 1),
        (1, 203, 113),
        (2, 17, 33),
        (3, 64, 203),
        (5, 3, 50),
        (8, 40, 4),
        (9, 1, 17),
        (17, 113, 3),
        (13, 300, 65),
        (25, 203, 31),
        (113, 17, 203),
        (203, 113, 17),
        (203, 515, 49),
        (40, 31, 563),
    ];

    impl Case {
        /// Pre-activation and output, with bias and residual if `extras`.
        fn forward(&self, device: &Device, activation: Activation, extras: bool) -> (Vec<f32>, Vec<f32>) {
            let mut z = poisoned(self.shape.rows * self.shape.outputs * activation.width());
            let mut y = poisoned(self.shape.rows * self.shape.outputs);
            let arguments = Forward {
                input: (&self.input).into(),
                weight: (&self.weight).into(),
                bias: extras.then(|| (&self.bias).into()),
                residual: extras.then(|| (&self.residual).into()),
                activation,
                pre_activation: Some((&mut z).into()),
                output: (&mut y).into(),
            };
            forward(device, &self.shape, arguments).unwrap();
            (z, y)
        }

        /// Gradients of input, weight and bias; `before` is what they hold, or they are overwritten.
        fn backward(&self, device: &Device, activation: Activation, z: &[f32], before: Option<f32>) -> [Vec<f32>; 3] {
            let fill = |length| before.map_or_else(|| poisoned(length), |value| vec![value; length]);
            let (mut dx, mut dw, mut db) = (fill(self.input.len()), fill(self.weight.len()), fill(self.bias.len()));
            let write = if before.is_some() { Write::Add } else { Write::Set };
            let arguments = Backward {
                input: (&self.input).into(),
                weight: (&self.weight).into(),
                activation,
                pre_activation: Some(z.into()),
                grad_output: (&self.grad_output).into(),
                grad_input: Some(((&mut dx).into(), write)),
                grad_weight: Some(((&mut dw).into(), write)),
                grad_bias: Some(((&mut db).into(), write)),
            };
            backward(device, &self.shape, arguments).unwrap();
            [dx, dw, db]
        }
    }

    #[test]
    fn reference_gradients_match_finite_differences() {
        let mut random = Random::fresh();
        for activation in ACTIVATIONS {
            let case = Case::new(&mut random, (3, 4, 5), activation);
            let shape = case.shape;
            let (x, w, b, dy) =
                (double(&case.input), double(&case.weight), double(&case.bias), double(&case.grad_output));
            let loss = |x: &[f64], w: &[f64], b: &[f64]| -> f64 {
                let (_, y) = reference::forward(&shape, activation, x, w, Some(b), None);
                y.iter().zip(&dy).map(|(y, dy)| y * dy).sum()
            };
            let (z, _) = reference::forward(&shape, activation, &x, &w, Some(&b), None);
            let grads = reference::backward(&shape, activation, &x, &w, &z, &dy);
            assert_gradient(&format!("{activation:?} input"), |x| loss(x, &w, &b), &x, &grads.input);
            assert_gradient(&format!("{activation:?} weight"), |w| loss(&x, w, &b), &w, &grads.weight);
            assert_gradient(&format!("{activation:?} bias"), |b| loss(&x, &w, b), &b, &grads.bias);
        }
    }

    #[test]
    fn forward_matches_reference_for_odd_sizes() {
        let mut random = Random::fresh();
        let devices = cpu_devices();
        for activation in ACTIVATIONS {
            for sizes in SHAPES {
                let case = Case::new(&mut random, sizes, activation);
                let (x, w) = (double(&case.input), double(&case.weight));
                let (b, r) = (double(&case.bias), double(&case.residual));
                for extras in [false, true] {
                    let bias = extras.then_some(b.as_slice());
                    let residual = extras.then_some(r.as_slice());
                    let (z, y) = reference::forward(&case.shape, activation, &x, &w, bias, residual);
                    for (name, device) in &devices {
                        let (found_z, found_y) = case.forward(device, activation, extras);
                        let name = format!("{name} {activation:?} {sizes:?} extras {extras}");
                        assert_close(&format!("{name}: pre-activation"), &found_z, &z, 1e-5, 1e-7);
                        assert_close(&format!("{name}: output"), &found_y, &y, 1e-5, 1e-7);
                    }
                }
            }
        }
    }

    #[test]
    fn backward_matches_reference_for_odd_sizes() {
        let mut random = Random::fresh();
        let devices = cpu_devices();
        for activation in ACTIVATIONS {
            for sizes in SHAPES {
                let case = Case::new(&mut random, sizes, activation);
                let (x, w, dy) = (double(&case.input), double(&case.weight), double(&case.grad_output));
                let (z, _) = reference::forward(&case.shape, activation, &x, &w, Some(&double(&case.bias)), None);
                // The same z for both, because ReLU's derivative jumps where rounding may change a sign.
                let z: Vec<f32> = z.iter().map(|&z| z as f32).collect();
                let grads = reference::backward(&case.shape, activation, &x, &w, &double(&z), &dy);
                for (name, device) in &devices {
                    for before in [None, Some(0.5)] {
                        let found = case.backward(device, activation, &z, before);
                        for (part, found, expected) in [
                            ("input", &found[0], &grads.input),
                            ("weight", &found[1], &grads.weight),
                            ("bias", &found[2], &grads.bias),
                        ] {
                            // What was there before is taken off again: where it cancels the gradient, the sum's
                            // size says nothing about the errors to expect.
                            let found: Vec<f32> = found.iter().map(|g| g - before.unwrap_or(0.0)).collect();
                            let name = format!("{name} {activation:?} {sizes:?} added to {before:?}: grad_{part}");
                            assert_close(&name, &found, expected, 1e-5, 1e-7);
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn a_gradient_that_is_not_wanted_does_not_change_the_others() {
        let mut random = Random::fresh();
        let case = Case::new(&mut random, (30, 20, 70), Activation::GeluTanh);
        for (name, device) in &cpu_devices() {
            let (z, _) = case.forward(device, Activation::GeluTanh, true);
            let all = case.backward(device, Activation::GeluTanh, &z, None);
            let mut bias = poisoned(case.bias.len());
            let arguments = Backward {
                input: (&case.input).into(),
                weight: (&case.weight).into(),
                activation: Activation::GeluTanh,
                pre_activation: Some((&z).into()),
                grad_output: (&case.grad_output).into(),
                grad_input: None,
                grad_weight: None,
                grad_bias: Some(((&mut bias).into(), Write::Set)),
            };
            backward(device, &case.shape, arguments).unwrap();
            assert_close(name, &bias, &double(&all[2]), 1e-6, 0.0);
        }
    }

    #[test]
    fn one_and_three_threads_give_equal_bits() {
        let mut random = Random::fresh();
        // Large enough for many tasks, deep enough for two parallel loops in the gradients.
        for (sizes, activation) in [
            ((2500, 70, 130), Activation::GeluErf),
            ((203, 2100, 130), Activation::SwiGlu),
            ((4, 300, 900), Activation::Relu),
        ] {
            let case = Case::new(&mut random, sizes, activation);
            for pair in cpu_devices().chunks_exact(2) {
                let run = |device: &Device| {
                    let (z, y) = case.forward(device, activation, true);
                    let [dx, dw, db] = case.backward(device, activation, &z, None);
                    [z, y, dx, dw, db].map(|values| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>())
                };
                assert!(run(&pair[0].1) == run(&pair[1].1), "{} and {}: bits differ", pair[0].0, pair[1].0);
            }
        }
    }

    #[test]
    fn arguments_that_do_not_fit_are_refused() {
        let device = &cpu_devices()[0].1;
        let shape = Shape { rows: 2, inputs: 3, outputs: 4 };
        let (input, weight) = (vec![0.0; 6], vec![0.0; 11]);
        let mut output = vec![0.0; 8];
        let arguments = Forward {
            input: (&input).into(),
            weight: (&weight).into(),
            bias: None,
            residual: None,
            activation: Activation::Identity,
            pre_activation: None,
            output: (&mut output).into(),
        };
        let error = forward(device, &shape, arguments).unwrap_err();
        assert_eq!(error.to_string(), "linear: weight has 11 elements, expected 12");
    }
}
