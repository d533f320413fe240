//! Layer norm with an optional fused residual add: `s = x + r`, `y = (s - mean(s)) / √(var(s) + ε) · w + b`.
//!
//! Ba, Kiros, Hinton 2016. Variance is the biased one, as PyTorch's.

use super::{Device, Error, View, ViewMut, Write, check_len};
use crate::cpu;

const NAME: &str = "layer_norm";

/// Sizes of a layer norm.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Shape {
    /// `B·T`
    pub rows: usize,
    /// `C`
    pub channels: usize,
    /// Added to the variance.
    pub epsilon: f32,
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
    /// `(channels)`
    pub bias: Option<View<'a, f32>>,
    /// `(rows, channels)`
    pub output: ViewMut<'a, f32>,
    /// `(rows)` mean and `(rows)` reciprocal standard deviation, for the backward pass.
    pub statistics: Option<(ViewMut<'a, f32>, ViewMut<'a, f32>)>,
}

/// Arguments of [`backward`].
pub struct Backward<'a> {
    /// `(rows, channels)`: what was normalised, that is the sum where there was a residual.
    pub input: View<'a, f32>,
    /// `(channels)`
    pub weight: View<'a, f32>,
    /// `(rows)`
    pub mean: View<'a, f32>,
    /// `(rows)`
    pub reciprocal_deviation: View<'a, f32>,
    /// `(rows, channels)`
    pub grad_output: View<'a, f32>,
    /// `(rows, channels)`: gradient of what was normalised. With [`Write::Add`], the gradient that arrives at the
    /// residual stream by other ways is in it already, which fuses that sum.
    pub grad_input: Option<(ViewMut<'a, f32>, Write)>,
    /// `(channels)`
    pub grad_weight: Option<(ViewMut<'a, f32>, Write)>,
    /// `(channels)`
    pub grad_bias: Option<(ViewMut<'a, f32>, Write)>,
}

/// Normalises each row.
///
/// # Errors
/// An argument's length does not fit `shape`.
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
    if let Some((mean, reciprocal_deviation)) = &arguments.statistics {
        check_len(NAME, "mean", mean.len(), rows)?;
        check_len(NAME, "reciprocal_deviation", reciprocal_deviation.len(), rows)?;
    }
    match device {
        Device::Cpu(cpu) => cpu::layer_norm::forward(cpu, shape, arguments),
    }
    Ok(())
}

/// Computes the gradients that are asked for.
///
/// # Errors
/// An argument's length does not fit `shape`.
pub fn backward(device: &Device, shape: &Shape, arguments: Backward<'_>) -> Result<(), Error> {
    let Shape { rows, channels, .. } = *shape;
    check_len(NAME, "input", arguments.input.len(), rows * channels)?;
    check_len(NAME, "weight", arguments.weight.len(), channels)?;
    check_len(NAME, "mean", arguments.mean.len(), rows)?;
    check_len(NAME, "reciprocal_deviation", arguments.reciprocal_deviation.len(), rows)?;
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
    }
    Ok(())
}
