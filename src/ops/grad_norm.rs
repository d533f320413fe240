//! Global gradient norm: the Euclidean norm of all gradients together, which clipping compares with its limit
//! (Pascanu et al. 2013). Clipping itself is a factor that the optimizer applies as it reads the gradients.

use super::{Device, Error, View};
use crate::{cpu, gpu};

const NAME: &str = "grad_norm";

/// Norm of all `gradients` as if they were one vector. Infinite or NaN where any element is.
///
/// Sums are taken over fixed pieces in f64 in order, so the result does not depend on the number of threads, and
/// squares do not overflow.
///
/// # Errors
/// The device failed.
pub fn forward(device: &Device, gradients: &[View<'_, f32>]) -> Result<f64, Error> {
    match device {
        Device::Cpu(cpu) => Ok(cpu::grad_norm::forward(cpu, gradients)),
        Device::Gpu(gpu) => gpu::grad_norm::forward(gpu, gradients).map_err(Error::of_device(NAME)),
    }
}

/// Factor that brings a gradient of this norm down to `limit`: `min(1, limit / norm)`.
pub fn clip_factor(norm: f64, limit: Option<f64>) -> f32 {
    match limit {
        Some(limit) if norm > limit => (limit / norm) as f32,
        _ => 1.0,
    }
}

/// The norm in f64, in one sum: what every backend is measured against.
pub mod reference {
    /// See [`super::forward`].
    pub fn forward(gradients: &[&[f64]]) -> f64 {
        gradients.iter().flat_map(|gradient| gradient.iter()).map(|g| g * g).sum::<f64>().sqrt()
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Random, cpu_devices, double};
    use super::*;

    fn norms(gradients: &[Vec<f32>]) -> Vec<(String, f64)> {
        let views: Vec<View<'_, f32>> = gradients.iter().map(|gradient| gradient.into()).collect();
        cpu_devices().into_iter().map(|(name, device)| (name, forward(&device, &views).unwrap())).collect()
    }

    #[test]
    fn norm_matches_reference_with_the_same_bits_on_every_device() {
        let mut random = Random::fresh();
        let gradients: Vec<Vec<f32>> =
            [1, 3, 0, 17, 113, 203, 1023, 65_536, 200_001].iter().map(|&length| random.normal(length)).collect();
        let doubles: Vec<Vec<f64>> = gradients.iter().map(|gradient| double(gradient)).collect();
        let expected = reference::forward(&doubles.iter().map(Vec::as_slice).collect::<Vec<_>>());
        let found = norms(&gradients);
        for (name, norm) in &found {
            assert!((norm - expected).abs() <= 1e-12 * expected, "{name}: {norm}, expected {expected}");
            assert_eq!(norm.to_bits(), found[0].1.to_bits(), "{name} and {}", found[0].0);
        }
    }

    #[test]
    fn huge_gradients_do_not_overflow_and_tiny_ones_do_not_vanish() {
        for (value, expected) in [(1e30f32, 2e30), (1e-30, 2e-30), (f32::MAX, 2.0 * f64::from(f32::MAX))] {
            for (name, norm) in norms(&[vec![value; 3], vec![value]]) {
                assert!((norm - expected).abs() < 1e-6 * expected, "{name}: {norm}, expected {expected}");
            }
        }
    }

    #[test]
    fn nan_and_infinity_anywhere_reach_the_norm() {
        for place in [0, 31, 32, 70_000, 99_999] {
            let mut gradient = vec![0.5f32; 100_000];
            gradient[place] = f32::NAN;
            assert!(norms(&[vec![1.0], gradient.clone()]).iter().all(|(_, norm)| norm.is_nan()), "NaN at {place}");
            gradient[place] = f32::NEG_INFINITY;
            assert!(norms(&[vec![1.0], gradient]).iter().all(|(_, norm)| *norm == f64::INFINITY), "-inf at {place}");
        }
    }

    #[test]
    fn clipping_shrinks_long_gradients_only() {
        assert_eq!(clip_factor(4.0, Some(1.0)), 0.25);
        assert_eq!(clip_factor(0.5, Some(1.0)), 1.0);
        assert_eq!(clip_factor(4.0, None), 1.0);
        assert_eq!(clip_factor(0.0, Some(1.0)), 1.0);
    }
}
