//! Launches the kernels/sgd.cu.

use super::Gpu;
use crate::driver::{Error, Result};
use crate::ops::sgd::{Hyper, Update};

/// See [`crate::ops::sgd::update`].
pub fn update(_gpu: &Gpu, _hyper: &Hyper, _arguments: Update<'_>) -> Result<()> {
    Err(Error::Unavailable("sgd has no GPU kernel yet".into()))
}
