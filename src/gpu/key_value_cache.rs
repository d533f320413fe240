//! Launches the kernels/key_value_cache.cu.

use super::Gpu;
use crate::driver::{Error, Result};
use crate::ops::key_value_cache::{Append, Shape};

/// See [`crate::ops::key_value_cache::append`].
pub fn append(_gpu: &Gpu, _shape: &Shape, _arguments: Append<'_>) -> Result<()> {
    Err(Error::Unavailable("key_value_cache has no GPU kernel yet".into()))
}
