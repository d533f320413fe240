//! Feed-forward network: two linear layers fused as a pair, `y = activation(x · W1ᵀ + b1) · W2ᵀ + b2 + residual`.
//!
//! Fused means: the hidden layer's activation runs inside the first product, and in the backward pass its derivative
//! is applied as the second product's input gradient is written. With `Hidden::Recompute` only the pre-activation is
//! kept between the passes; the hidden activation is computed from it again, which gives the same bits.

use super::linear::Activation;
use super::{Device, Error, View, ViewMut, Write, check_len};
use crate::cpu;

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
    }
    Ok(())
}
