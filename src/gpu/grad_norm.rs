//! Launches the kernels/grad_norm.cu.

use super::Gpu;
use crate::driver::{Error, Result};
use crate::ops::View;

/// See [`crate::ops::grad_norm::forward`].
pub fn forward(_gpu: &Gpu, _gradients: &[View<'_, f32>]) -> Result<f64> {
    Err(Error::Unavailable("grad_norm has no GPU kernel yet".into()))
}
