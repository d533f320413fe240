//! Output projection and cross-entropy as one operation, in chunks of rows: the logits of all positions never exist
//! at once. With gradients, each chunk goes through projection, loss, and both products of the backward pass while
//! its logits are there, so nothing is computed twice.
//!
//! Compare the fused classifier of llm.c and the fused linear cross-entropy of Liger Kernel (Hsu et al. 2024).

use super::softmax_cross_entropy::{self, check_targets};
use super::{Device, Error, View, ViewMut, Write, check_len};
use crate::cpu;

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
}

/// Arguments of [`forward`].
pub struct Forward<'a> {
    /// `(rows, C)`
    pub input: View<'a, f32>,
    /// `(V, C)`
    pub weight: View<'a, f32>,
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
    }
    check_targets(NAME, &shape.loss, &arguments.targets)?;
    match device {
        Device::Cpu(cpu) => cpu::linear_cross_entropy::forward(cpu, shape, arguments),
    }
    Ok(())
}
