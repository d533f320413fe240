//! An activation by itself, for where it cannot be part of the product before it: a layer whose result is the sum of two
//! products, as with LoRA. Same functions and same bits as in [`linear`](super::linear).

use super::linear::Activation;
use super::{Device, Error, View, ViewMut, Write, check_len};
use crate::{cpu, gpu};

const NAME: &str = "activation";

/// Sizes and the function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    pub rows: usize,
    /// Columns of the result; the input has `outputs · activation.width()`.
    pub outputs: usize,
    pub activation: Activation,
}

/// Arguments of [`forward`].
pub struct Forward<'a> {
    /// `(rows, outputs · width)`
    pub input: View<'a, f32>,
    /// `(rows, outputs)`
    pub output: ViewMut<'a, f32>,
}

/// Arguments of [`backward`].
pub struct Backward<'a> {
    /// `(rows, outputs · width)`
    pub input: View<'a, f32>,
    /// `(rows, outputs)`
    pub grad_output: View<'a, f32>,
    /// `(rows, outputs · width)`
    pub grad_input: (ViewMut<'a, f32>, Write),
}

/// Computes `y = activation(x)`.
///
/// # Errors
/// An argument's length does not fit `shape`.
pub fn forward(device: &Device, shape: &Shape, arguments: Forward<'_>) -> Result<(), Error> {
    check_len(NAME, "input", arguments.input.len(), shape.rows * shape.outputs * shape.activation.width())?;
    check_len(NAME, "output", arguments.output.len(), shape.rows * shape.outputs)?;
    match device {
        Device::Cpu(cpu) => cpu::activation::forward(cpu, shape, arguments),
        Device::Gpu(gpu) => gpu::activation::forward(gpu, shape, arguments).map_err(Error::of_device(NAME))?,
    }
    Ok(())
}

/// Computes `dx = dy ⊙ activation'(x)`.
///
/// # Errors
/// An argument's length does not fit `shape`.
pub fn backward(device: &Device, shape: &Shape, arguments: Backward<'_>) -> Result<(), Error> {
    let inputs = shape.rows * shape.outputs * shape.activation.width();
    check_len(NAME, "input", arguments.input.len(), inputs)?;
    check_len(NAME, "grad_output", arguments.grad_output.len(), shape.rows * shape.outputs)?;
    check_len(NAME, "grad_input", arguments.grad_input.0.len(), inputs)?;
    match device {
        Device::Cpu(cpu) => cpu::activation::backward(cpu, shape, arguments),
        Device::Gpu(gpu) => gpu::activation::backward(gpu, shape, arguments).map_err(Error::of_device(NAME))?,
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::linear::cases::ACTIVATIONS;
    use super::super::linear::reference::{activate, activate_backward};
    use super::super::testing::{Random, assert_close, cpu_devices, double, poisoned};
    use super::*;

    #[test]
    fn results_and_gradients_match_reference_over_odd_sizes() {
        let mut random = Random::fresh();
        for activation in ACTIVATIONS {
            for (rows, outputs) in [(1, 1), (3, 17), (113, 203), (5, 20_011)] {
                let shape = Shape { rows, outputs, activation };
                let input = random.normal(rows * outputs * activation.width());
                let grad_output = random.normal(rows * outputs);
                let expected = activate(activation, outputs, &double(&input));
                let slopes = activate_backward(activation, outputs, &double(&input), &double(&grad_output));
                for (name, device) in cpu_devices() {
                    let name = format!("{activation:?}, {rows}x{outputs}, {name}");
                    let mut output = poisoned(rows * outputs);
                    let arguments = Forward { input: (&input).into(), output: (&mut output).into() };
                    forward(&device, &shape, arguments).unwrap();
                    assert_close(&name, &output, &expected, 1e-5, 1e-7);
                    for before in [None, Some(0.5)] {
                        let mut grad = before.map_or_else(|| poisoned(input.len()), |value| vec![value; input.len()]);
                        let write = if before.is_some() { Write::Add } else { Write::Set };
                        let grad_input = ((&mut grad).into(), write);
                        let (input, grad_output) = ((&input).into(), (&grad_output).into());
                        backward(&device, &shape, Backward { input, grad_output, grad_input }).unwrap();
                        let added: Vec<f64> = slopes.iter().map(|g| g + f64::from(before.unwrap_or(0.0))).collect();
                        assert_close(&format!("{name}, added to {before:?}"), &grad, &added, 1e-5, 1e-7);
                    }
                }
            }
        }
    }
}
