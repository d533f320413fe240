//! What the tests of operations share: seeded random data, one comparison that names the worst element, finite
//! differences, and the list of devices to try.

use super::Device;
use super::philox::{philox, uniform};
use crate::cpu::{Cpu, Level};

/// Random numbers with a logged seed: failing tests print it.
pub struct Random {
    seed: u64,
    count: u64,
}

impl Random {
    /// A fresh seed, or the one in `ENGINE_TEST_SEED`; tests print it, so that a failure can be repeated.
    pub fn fresh() -> Self {
        let seed = std::env::var("ENGINE_TEST_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or_else(|| {
            std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(1, |d| d.as_nanos() as u64)
        });
        // A tool that runs the checks of kernels has lines of its own to show.
        if cfg!(test) {
            println!("ENGINE_TEST_SEED={seed}");
        }
        Self { seed, count: 0 }
    }

    /// The next random word.
    pub fn word(&mut self) -> u32 {
        let key = [self.seed as u32, (self.seed >> 32) as u32];
        self.count += 1;
        philox([self.count as u32, (self.count >> 32) as u32, 0x7465_7374, 0], key)[0]
    }

    /// Uniform in `0..bound`.
    pub fn below(&mut self, bound: usize) -> usize {
        self.word() as usize % bound
    }

    /// Approximately normal numbers (sum of four uniforms, variance 1).
    pub fn normal(&mut self, length: usize) -> Vec<f32> {
        let mut one = || (0..4).map(|_| uniform(self.word())).sum::<f32>();
        (0..length).map(|_| (one() - 2.0) * 1.732_050_8).collect()
    }
}

/// A CPU device for every SIMD level that this machine has, with one and with three threads.
pub fn cpu_devices() -> Vec<(String, Device)> {
    let mut devices = Vec::new();
    for level in Level::available() {
        for threads in [1, 3] {
            let cpu = Cpu::with(threads, level).expect("an available level");
            devices.push((format!("cpu {} {threads} threads", level.name()), Device::Cpu(cpu)));
        }
    }
    devices
}

/// The values as f64, for the references.
pub fn double(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&value| f64::from(value)).collect()
}

/// `length` NaNs: what outputs hold before a call, so that an element left out is seen.
pub fn poisoned(length: usize) -> Vec<f32> {
    vec![f32::NAN; length]
}

/// Demands `|found - expected| <= relative · scale + absolute` for every element, where `scale` is the largest
/// magnitude in `expected` (sums cancel, so a single small element says nothing about its own accuracy).
/// On failure names the worst element, its index and both values.
#[track_caller]
pub fn assert_close(name: &str, found: &[f32], expected: &[f64], relative: f64, absolute: f64) {
    assert_eq!(found.len(), expected.len(), "{name}: lengths");
    let scale = expected.iter().filter(|value| value.is_finite()).fold(0.0f64, |a, &b| a.max(b.abs()));
    let limit = relative * scale + absolute;
    let mut worst = (0usize, 0.0f64);
    for (index, (&f, &e)) in found.iter().zip(expected).enumerate() {
        let error = if f64::from(f) == e { 0.0 } else { (f64::from(f) - e).abs() };
        // NaN compares false with everything, so it is looked for by itself.
        if error.is_nan() {
            panic!("{name}: element {index} is {f}, expected {e}");
        }
        if error > worst.1 {
            worst = (index, error);
        }
    }
    let (index, error) = worst;
    assert!(
        error <= limit,
        "{name}: element {index} of {} is {}, expected {}: error {error:.3e}, allowed {limit:.3e}",
        found.len(),
        found[index],
        expected[index]
    );
}

/// Checks a gradient against central differences of `function` at `point`, in f64.
///
/// `function` must be smooth at `point`. Elements are sampled where there are more than 200.
#[cfg(test)]
#[track_caller]
pub fn assert_gradient(name: &str, function: impl Fn(&[f64]) -> f64, point: &[f64], gradient: &[f64]) {
    assert_eq!(point.len(), gradient.len(), "{name}: lengths");
    let step = 1e-5;
    let stride = (point.len() / 200).max(1);
    let scale = gradient.iter().fold(0.0f64, |a, &b| a.max(b.abs())).max(1e-3);
    let mut moved = point.to_vec();
    for index in (0..point.len()).step_by(stride) {
        moved[index] = point[index] + step;
        let above = function(&moved);
        moved[index] = point[index] - step;
        let below = function(&moved);
        moved[index] = point[index];
        let difference = (above - below) / (2.0 * step);
        let error = (difference - gradient[index]).abs();
        assert!(
            error <= 1e-6 * scale + 1e-8,
            "{name}: element {index}: gradient {}, finite difference {difference}, error {error:.3e}",
            gradient[index]
        );
    }
}
