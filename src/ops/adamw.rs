//! AdamW (Loshchilov and Hutter 2019): Adam (Kingma and Ba 2015) with decoupled weight decay, as PyTorch computes it.
//!
//! ```text
//! g ← factor · g          m ← β1 m + (1 - β1) g          v ← β2 v + (1 - β2) g²
//! p ← p - lr · decay · p  p ← p - lr / (1 - β1ᵗ) · m / (√v / √(1 - β2ᵗ) + ε)
//! ```

use super::{Device, Error, View, ViewMut, check_len};
use crate::cpu;

const NAME: &str = "adamw";

/// Hyper-parameters of one update.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Hyper {
    pub learning_rate: f32,
    pub beta1: f32,
    pub beta2: f32,
    pub epsilon: f32,
    pub weight_decay: f32,
    /// Number of this update, from 1.
    pub step: u64,
    /// Multiplies the gradient as it is read: the clipping factor.
    pub grad_factor: f32,
}

/// Arguments of [`update`], all of one length.
pub struct Update<'a> {
    pub parameter: ViewMut<'a, f32>,
    pub gradient: View<'a, f32>,
    pub first_moment: ViewMut<'a, f32>,
    pub second_moment: ViewMut<'a, f32>,
}

/// Updates parameters and moments in place.
///
/// # Errors
/// Lengths that differ, or `step` 0.
pub fn update(device: &Device, hyper: &Hyper, arguments: Update<'_>) -> Result<(), Error> {
    let length = arguments.parameter.len();
    check_len(NAME, "gradient", arguments.gradient.len(), length)?;
    check_len(NAME, "first_moment", arguments.first_moment.len(), length)?;
    check_len(NAME, "second_moment", arguments.second_moment.len(), length)?;
    if hyper.step == 0 {
        return Err(Error::new(NAME, "updates are numbered from 1"));
    }
    match device {
        Device::Cpu(cpu) => cpu::adamw::update(cpu, hyper, arguments),
    }
    Ok(())
}
