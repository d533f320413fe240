//! Launches the kernels/layer_norm.cu.

use super::Gpu;
use crate::driver::{Error, Result};
use crate::ops::layer_norm::{Backward, Forward, Shape};

/// See [`crate::ops::layer_norm::forward`].
pub fn forward(_gpu: &Gpu, _shape: &Shape, _arguments: Forward<'_>) -> Result<()> {
    Err(Error::Unavailable("layer_norm has no GPU kernel yet".into()))
}

/// See [`crate::ops::layer_norm::backward`].
pub fn backward(_gpu: &Gpu, _shape: &Shape, _arguments: Backward<'_>) -> Result<()> {
    Err(Error::Unavailable("layer_norm has no GPU kernel yet".into()))
}
