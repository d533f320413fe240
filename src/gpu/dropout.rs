//! Launches the kernels/dropout.cu.

use super::Gpu;
use crate::driver::{Error, Result};
use crate::ops::Dropout;
use crate::ops::dropout::{Backward, Forward};

/// See [`crate::ops::dropout::forward`].
pub fn forward(_gpu: &Gpu, _dropout: &Dropout, _arguments: Forward<'_>) -> Result<()> {
    Err(Error::Unavailable("dropout has no GPU kernel yet".into()))
}

/// See [`crate::ops::dropout::backward`].
pub fn backward(_gpu: &Gpu, _dropout: &Dropout, _arguments: Backward<'_>) -> Result<()> {
    Err(Error::Unavailable("dropout has no GPU kernel yet".into()))
}
