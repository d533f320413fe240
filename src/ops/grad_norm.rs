//! Global gradient norm: the Euclidean norm of all gradients together, which clipping compares with its limit
//! (Pascanu et al. 2013). Clipping itself is a factor that the optimizer applies as it reads the gradients.

use super::{Device, View};
use crate::cpu;

/// Norm of all `gradients` as if they were one vector. Infinite or NaN where any element is.
///
/// Sums are taken over fixed pieces in f64 in order, so the result does not depend on the number of threads, and
/// squares do not overflow.
pub fn forward(device: &Device, gradients: &[View<'_, f32>]) -> f64 {
    match device {
        Device::Cpu(cpu) => cpu::grad_norm::forward(cpu, gradients),
    }
}

/// Factor that brings a gradient of this norm down to `limit`: `min(1, limit / norm)`.
pub fn clip_factor(norm: f64, limit: Option<f64>) -> f32 {
    match limit {
        Some(limit) if norm > limit => (limit / norm) as f32,
        _ => 1.0,
    }
}
