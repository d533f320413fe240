//! Launches the kernels/adamw.cu.

use super::Gpu;
use crate::driver::{Error, Result};
use crate::ops::adamw::{Hyper, Update};

/// See [`crate::ops::adamw::update`].
pub fn update(_gpu: &Gpu, _hyper: &Hyper, _arguments: Update<'_>) -> Result<()> {
    Err(Error::Unavailable("adamw has no GPU kernel yet".into()))
}
