//! Dropout with a fused residual add: `y = mask ⊙ x / (1 - p) + residual`. Its backward pass is the same operation on
//! the gradient, without the residual.

use super::{Device, Dropout, Error, View, ViewMut, Write, check_len};
use crate::cpu;

const NAME: &str = "dropout";

/// Arguments of [`forward`]. All have the same number of elements; element `i` is masked by index `i`.
pub struct Forward<'a> {
    pub input: View<'a, f32>,
    pub residual: Option<View<'a, f32>>,
    pub output: ViewMut<'a, f32>,
}

/// Arguments of [`backward`].
pub struct Backward<'a> {
    pub grad_output: View<'a, f32>,
    pub grad_input: (ViewMut<'a, f32>, Write),
}

fn check(dropout: &Dropout) -> Result<(), Error> {
    if (0.0..1.0).contains(&dropout.probability) {
        Ok(())
    } else {
        Err(Error::new(NAME, format!("probability {} is not in 0..1", dropout.probability)))
    }
}

/// Zeroes elements at random, scales the others, adds the residual.
///
/// # Errors
/// Lengths that differ, or a probability outside `0..1`.
pub fn forward(device: &Device, dropout: &Dropout, arguments: Forward<'_>) -> Result<(), Error> {
    check(dropout)?;
    check_len(NAME, "output", arguments.output.len(), arguments.input.len())?;
    if let Some(residual) = &arguments.residual {
        check_len(NAME, "residual", residual.len(), arguments.input.len())?;
    }
    match device {
        Device::Cpu(cpu) => cpu::dropout::forward(cpu, dropout, arguments),
    }
    Ok(())
}

/// Applies the forward pass's mask and scale to the gradient.
///
/// # Errors
/// Lengths that differ, or a probability outside `0..1`.
pub fn backward(device: &Device, dropout: &Dropout, arguments: Backward<'_>) -> Result<(), Error> {
    check(dropout)?;
    check_len(NAME, "grad_input", arguments.grad_input.0.len(), arguments.grad_output.len())?;
    match device {
        Device::Cpu(cpu) => cpu::dropout::backward(cpu, dropout, arguments),
    }
    Ok(())
}
