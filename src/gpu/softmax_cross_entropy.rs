//! Launches the kernels/softmax_cross_entropy.cu.

use super::Gpu;
use crate::driver::{Error, Result};
use crate::ops::softmax_cross_entropy::{Forward, ForwardBackward, Shape};

/// See [`crate::ops::softmax_cross_entropy::forward`].
pub fn forward(_gpu: &Gpu, _shape: &Shape, _arguments: Forward<'_>) -> Result<()> {
    Err(Error::Unavailable("softmax_cross_entropy has no GPU kernel yet".into()))
}

/// See [`crate::ops::softmax_cross_entropy::forward_backward`].
pub fn forward_backward(_gpu: &Gpu, _shape: &Shape, _arguments: ForwardBackward<'_>) -> Result<()> {
    Err(Error::Unavailable("softmax_cross_entropy has no GPU kernel yet".into()))
}
