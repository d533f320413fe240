//! A tensor times a number.

use super::{Device, Error, View, ViewMut, Write, check_len};
use crate::{cpu, gpu};

const NAME: &str = "scale";

/// Computes `target = factor · source`, or adds that to the target. Its gradient is the same operation.
///
/// # Errors
/// Lengths that differ.
pub fn forward(
    device: &Device,
    factor: f32,
    source: View<'_, f32>,
    target: ViewMut<'_, f32>,
    write: Write,
) -> Result<(), Error> {
    check_len(NAME, "target", target.len(), source.len())?;
    match device {
        Device::Cpu(cpu) => cpu::scale::forward(cpu, factor, source, target, write),
        Device::Gpu(gpu) => gpu::scale::forward(gpu, factor, source, target, write).map_err(Error::of_device(NAME))?,
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{Random, assert_close, cpu_devices, double, poisoned};

    #[test]
    fn products_are_set_or_added() {
        let mut random = Random::fresh();
        for length in [1, 3, 17, 1023, 40_001] {
            let source = random.normal(length);
            let [once, twice] = [0.3f32, 0.6]
                .map(|factor| -> Vec<f64> { double(&source).iter().map(|x| x * f64::from(factor)).collect() });
            for (name, device) in cpu_devices() {
                let mut target = poisoned(length);
                forward(&device, 0.3, (&source).into(), (&mut target).into(), Write::Set).unwrap();
                assert_close(&name, &target, &once, 1e-6, 0.0);
                forward(&device, 0.3, (&source).into(), (&mut target).into(), Write::Add).unwrap();
                assert_close(&name, &target, &twice, 1e-6, 0.0);
            }
        }
    }
}
