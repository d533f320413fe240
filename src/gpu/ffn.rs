//! Launches the kernels of `linear`.

use super::Gpu;
use crate::driver::{Error, Result};
use crate::ops::ffn::{Backward, Forward, Shape};

/// See [`crate::ops::ffn::forward`].
pub fn forward(_gpu: &Gpu, _shape: &Shape, _arguments: Forward<'_>) -> Result<()> {
    Err(Error::Unavailable("ffn has no GPU kernel yet".into()))
}

/// See [`crate::ops::ffn::backward`].
pub fn backward(_gpu: &Gpu, _shape: &Shape, _arguments: Backward<'_>) -> Result<()> {
    Err(Error::Unavailable("ffn has no GPU kernel yet".into()))
}
