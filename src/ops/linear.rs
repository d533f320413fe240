//! Linear layer: `z = x · Wᵀ + b`, `y = activation(z) + residual`, and its gradients.

use super::{Device, Error, View, ViewMut, Write, check_len};
use crate::cpu;

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
    }
    Ok(())
}
