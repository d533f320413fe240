//! Launches the kernels/linear.cu.

use super::Gpu;
use crate::driver::{Error, Result};
use crate::ops::linear::{Backward, Forward, Shape};

/// See [`crate::ops::linear::forward`].
pub fn forward(_gpu: &Gpu, _shape: &Shape, _arguments: Forward<'_>) -> Result<()> {
    Err(Error::Unavailable("linear has no GPU kernel yet".into()))
}

/// See [`crate::ops::linear::backward`].
pub fn backward(_gpu: &Gpu, _shape: &Shape, _arguments: Backward<'_>) -> Result<()> {
    Err(Error::Unavailable("linear has no GPU kernel yet".into()))
}
