//! Stochastic gradient descent with momentum and weight decay, as PyTorch computes it (no dampening):
//! `g ← factor · g + decay · p`, `m ← μ m + g`, `p ← p - lr · m`.

use super::{Device, Error, View, ViewMut, check_len};
use crate::cpu;

const NAME: &str = "sgd";

/// Hyper-parameters of one update.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Hyper {
    pub learning_rate: f32,
    /// `μ`; 0 for plain descent, which then needs no momentum buffer.
    pub momentum: f32,
    pub weight_decay: f32,
    /// Multiplies the gradient as it is read: the clipping factor.
    pub grad_factor: f32,
}

/// Arguments of [`update`], all of one length.
pub struct Update<'a> {
    pub parameter: ViewMut<'a, f32>,
    pub gradient: View<'a, f32>,
    /// Needed where `momentum` is not 0; zeros before the first update.
    pub momentum: Option<ViewMut<'a, f32>>,
}

/// Updates parameters and momentum in place.
///
/// # Errors
/// Lengths that differ, or momentum without a buffer.
pub fn update(device: &Device, hyper: &Hyper, arguments: Update<'_>) -> Result<(), Error> {
    let length = arguments.parameter.len();
    check_len(NAME, "gradient", arguments.gradient.len(), length)?;
    match &arguments.momentum {
        Some(momentum) => check_len(NAME, "momentum", momentum.len(), length)?,
        None if hyper.momentum != 0.0 => return Err(Error::new(NAME, "momentum needs a buffer")),
        None => {}
    }
    match device {
        Device::Cpu(cpu) => cpu::sgd::update(cpu, hyper, arguments),
    }
    Ok(())
}
