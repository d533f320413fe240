//! Softmax cross-entropy in one pass and in place: the losses of all rows, and the gradient where the logits were.
//!
//! With label smoothing `s` the target distribution is `(1 - s)` on the target and `s / V` on every class, as in
//! PyTorch. A row whose target is the ignored index has loss 0 and gradient 0.

use super::{Device, Error, View, ViewMut, check_len};
use crate::cpu;

const NAME: &str = "softmax_cross_entropy";

/// Sizes and options of the loss.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Shape {
    pub rows: usize,
    /// `V`: classes.
    pub vocabulary: usize,
    pub label_smoothing: f32,
    /// Target that marks a row as not counted; -100 in PyTorch.
    pub ignored: i32,
}

/// Arguments of [`forward`].
pub struct Forward<'a> {
    /// `(rows, V)`
    pub logits: View<'a, f32>,
    /// `(rows)`: in `0..V`, or the ignored index.
    pub targets: View<'a, i32>,
    /// `(rows)`
    pub losses: ViewMut<'a, f32>,
}

/// Arguments of [`forward_backward`].
pub struct ForwardBackward<'a> {
    /// `(rows, V)`: logits before, their gradients after.
    pub logits: ViewMut<'a, f32>,
    /// `(rows)`
    pub targets: View<'a, i32>,
    /// `(rows)`
    pub losses: ViewMut<'a, f32>,
    /// Gradient of every counted row's loss: `1 / counted rows` for the mean.
    pub grad_loss: f32,
}

/// Fails where a target is neither a class nor the ignored index.
pub(crate) fn check_targets(name: &'static str, shape: &Shape, targets: &View<'_, i32>) -> Result<(), Error> {
    let outside = |&id: &i32| id != shape.ignored && (id < 0 || id as usize >= shape.vocabulary);
    let Some(row) = targets.host().iter().position(outside) else { return Ok(()) };
    let (id, classes) = (targets.host()[row], shape.vocabulary);
    Err(Error::new(name, format!("target {id} of row {row} is outside the {classes} classes")))
}

fn check(shape: &Shape, logits: usize, targets: &View<'_, i32>, losses: usize) -> Result<(), Error> {
    check_len(NAME, "logits", logits, shape.rows * shape.vocabulary)?;
    check_len(NAME, "targets", targets.len(), shape.rows)?;
    check_len(NAME, "losses", losses, shape.rows)?;
    check_targets(NAME, shape, targets)
}

/// Computes the loss of every row; the logits stay as they are.
///
/// # Errors
/// An argument's length does not fit `shape`, or a target is outside the classes.
pub fn forward(device: &Device, shape: &Shape, arguments: Forward<'_>) -> Result<(), Error> {
    check(shape, arguments.logits.len(), &arguments.targets, arguments.losses.len())?;
    match device {
        Device::Cpu(cpu) => cpu::softmax_cross_entropy::forward(cpu, shape, arguments),
    }
    Ok(())
}

/// Computes the loss of every row, and replaces the logits by their gradients.
///
/// # Errors
/// An argument's length does not fit `shape`, or a target is outside the classes.
pub fn forward_backward(device: &Device, shape: &Shape, arguments: ForwardBackward<'_>) -> Result<(), Error> {
    check(shape, arguments.logits.len(), &arguments.targets, arguments.losses.len())?;
    match device {
        Device::Cpu(cpu) => cpu::softmax_cross_entropy::forward_backward(cpu, shape, arguments),
    }
    Ok(())
}
