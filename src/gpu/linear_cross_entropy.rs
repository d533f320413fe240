//! Launches the kernels of `linear` and `softmax_cross_entropy`.

use super::Gpu;
use crate::driver::{Error, Result};
use crate::ops::linear_cross_entropy::{Forward, Shape};

/// See [`crate::ops::linear_cross_entropy::forward`].
pub fn forward(_gpu: &Gpu, _shape: &Shape, _arguments: Forward<'_>) -> Result<()> {
    Err(Error::Unavailable("linear_cross_entropy has no GPU kernel yet".into()))
}
