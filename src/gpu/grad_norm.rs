//! Launches `kernels/grad_norm.cu`: the squares of each gradient's pieces, then their sum, which the host waits for.

use super::rows::WARP;
use super::{Arguments, Gpu, Source, source};
use crate::driver::{LaunchConfig, Result};
use crate::ops::View;

static SOURCE: Source = source!("grad_norm");

/// Elements of a block, and its most threads, as in the kernel file.
const PIECE: usize = 16_384;
const THREADS: usize = 256;

/// Threads for `count` things: whole warps, no more than are needed.
fn threads(count: usize) -> u32 {
    count.next_multiple_of(WARP).clamp(WARP, THREADS) as u32
}

/// See [`crate::ops::grad_norm::forward`].
pub fn forward(gpu: &Gpu, gradients: &[View<'_, f32>]) -> Result<f64> {
    const SUM_BYTES: u64 = size_of::<f64>() as u64;
    let parts: usize = gradients.iter().map(|gradient| gradient.len().div_ceil(PIECE)).sum();
    if parts == 0 {
        return Ok(0.0);
    }
    // The total, then each piece's sum.
    let total = gpu.workspace(SUM_BYTES * (parts as u64 + 1))?;
    let partials = total + SUM_BYTES;
    let mut place = partials;
    for gradient in gradients {
        let pieces = gradient.len().div_ceil(PIECE);
        let config = LaunchConfig::new([pieces as u32, 1, 1], [threads(gradient.len().div_ceil(4)), 1, 1]);
        let list = Arguments::new().view(gradient).count(gradient.len()).address(place);
        gpu.launch(&SOURCE, "grad_norm_squares", config, list)?;
        place += SUM_BYTES * pieces as u64;
    }
    let list = Arguments::new().address(partials).size(parts).address(total);
    gpu.launch(&SOURCE, "grad_norm_total", LaunchConfig::new([1; 3], [threads(parts), 1, 1]), list)?;
    let mut bytes = [0; size_of::<f64>()];
    gpu.driver().read(gpu.stream(), total, &mut bytes)?;
    Ok(f64::from_le_bytes(bytes).sqrt())
}

pub(crate) mod checks {
    use super::*;
    use crate::gpu::checks::Check;
    use crate::gpu::testing::Buffer;
    use crate::ops::testing::{Random, double};
    use crate::ops::{Device, grad_norm};

    fn norm(device: &Device, gradients: &[Vec<f32>]) -> f64 {
        let buffers: Vec<_> = gradients.iter().map(|gradient| Buffer::upload(device, gradient)).collect();
        let views: Vec<_> = buffers.iter().map(Buffer::view).collect();
        grad_norm::forward(device, &views).unwrap()
    }

    fn norm_matches_reference_with_the_same_bits_wherever_the_gradients_lie(device: &Device) {
        let mut random = Random::fresh();
        let lengths = [1, 3, 0, 17, 113, 203, 1023, PIECE, 70_001];
        let gradients: Vec<Vec<f32>> = lengths.iter().map(|&length| random.normal(length)).collect();
        let doubles: Vec<Vec<f64>> = gradients.iter().map(|gradient| double(gradient)).collect();
        let expected = grad_norm::reference::forward(&doubles.iter().map(Vec::as_slice).collect::<Vec<_>>());
        let found = norm(device, &gradients);
        assert!((found - expected).abs() <= 1e-12 * expected, "{found}, expected {expected}");

        // All in one array, so that most of them start at no multiple of 16 bytes.
        let together = Buffer::upload(device, &gradients.concat());
        let mut address = together.view().address();
        let views: Vec<View<'_, f32>> = lengths
            .iter()
            .map(|&length| {
                // SAFETY: the ranges lie one after the other in the buffer.
                let view = unsafe { View::on_device(address, length) };
                address += 4 * length as u64;
                view
            })
            .collect();
        assert_eq!(grad_norm::forward(device, &views).unwrap().to_bits(), found.to_bits());
        assert_eq!(norm(device, &[]), 0.0);
        assert_eq!(norm(device, &[vec![]]), 0.0);
    }

    fn huge_gradients_do_not_overflow_and_tiny_ones_do_not_vanish(device: &Device) {
        for (value, expected) in [(1e30f32, 2e30), (1e-30, 2e-30), (f32::MAX, 2.0 * f64::from(f32::MAX))] {
            let found = norm(device, &[vec![value; 3], vec![value]]);
            assert!((found - expected).abs() < 1e-6 * expected, "{found}, expected {expected}");
        }
    }

    fn nan_and_infinity_anywhere_reach_the_norm(device: &Device) {
        for place in [0, 31, 16_384, 39_999] {
            let mut gradient = vec![0.5f32; 40_000];
            gradient[place] = f32::NAN;
            assert!(norm(device, &[vec![1.0], gradient.clone()]).is_nan(), "NaN at {place}");
            gradient[place] = f32::NEG_INFINITY;
            assert!(norm(device, &[vec![1.0], gradient]) == f64::INFINITY, "-inf at {place}");
        }
    }

    /// What holds on every GPU.
    pub(crate) const ALL: &[Check] = &[
        Check {
            name: "grad_norm: norm matches reference with the same bits wherever the gradients lie",
            claim: norm_matches_reference_with_the_same_bits_wherever_the_gradients_lie,
        },
        Check {
            name: "grad_norm: huge gradients do not overflow and tiny ones do not vanish",
            claim: huge_gradients_do_not_overflow_and_tiny_ones_do_not_vanish,
        },
        Check {
            name: "grad_norm: nan and infinity anywhere reach the norm",
            claim: nan_and_infinity_anywhere_reach_the_norm,
        },
    ];

    #[test]
    fn hold_on_the_emulator() {
        crate::gpu::checks::hold(ALL);
    }
}
