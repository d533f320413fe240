//! Launches the kernels/embedding.cu.

use super::Gpu;
use crate::driver::{Error, Result};
use crate::ops::embedding::{Backward, Forward, Shape};

/// See [`crate::ops::embedding::forward`].
pub fn forward(_gpu: &Gpu, _shape: &Shape, _arguments: Forward<'_>) -> Result<()> {
    Err(Error::Unavailable("embedding has no GPU kernel yet".into()))
}

/// See [`crate::ops::embedding::backward`].
pub fn backward(_gpu: &Gpu, _shape: &Shape, _arguments: Backward<'_>) -> Result<()> {
    Err(Error::Unavailable("embedding has no GPU kernel yet".into()))
}
