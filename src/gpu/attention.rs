//! Launches the kernels/attention.cu.

use super::Gpu;
use crate::driver::{Error, Result};
use crate::ops::attention::{Backward, Forward, Shape};

/// See [`crate::ops::attention::forward`].
pub fn forward(_gpu: &Gpu, _shape: &Shape, _arguments: Forward<'_>) -> Result<()> {
    Err(Error::Unavailable("attention has no GPU kernel yet".into()))
}

/// See [`crate::ops::attention::backward`].
pub fn backward(_gpu: &Gpu, _shape: &Shape, _arguments: Backward<'_>) -> Result<()> {
    Err(Error::Unavailable("attention has no GPU kernel yet".into()))
}
