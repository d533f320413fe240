//! Element-wise sum, and accumulation of one gradient into another.

use super::{Device, Error, View, ViewMut, Write, check_len};
use crate::{cpu, gpu};

const NAME: &str = "add";

/// Arguments of [`forward`], all of one length.
pub struct Forward<'a> {
    pub left: View<'a, f32>,
    pub right: View<'a, f32>,
    pub output: ViewMut<'a, f32>,
}

/// Computes `output = left + right`.
///
/// # Errors
/// Lengths that differ.
pub fn forward(device: &Device, arguments: Forward<'_>) -> Result<(), Error> {
    check_len(NAME, "right", arguments.right.len(), arguments.left.len())?;
    check_len(NAME, "output", arguments.output.len(), arguments.left.len())?;
    match device {
        Device::Cpu(cpu) => cpu::add::forward(cpu, arguments),
        Device::Gpu(gpu) => gpu::add::forward(gpu, arguments).map_err(Error::of_device(NAME))?,
    }
    Ok(())
}

/// Copies `source` to `target`, or adds it.
///
/// # Errors
/// Lengths that differ.
pub fn accumulate(device: &Device, source: View<'_, f32>, target: ViewMut<'_, f32>, write: Write) -> Result<(), Error> {
    check_len(NAME, "target", target.len(), source.len())?;
    match device {
        Device::Cpu(cpu) => cpu::add::accumulate(cpu, source, target, write),
        Device::Gpu(gpu) => gpu::add::accumulate(gpu, source, target, write).map_err(Error::of_device(NAME))?,
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{Random, assert_close, cpu_devices, poisoned};

    #[test]
    fn sum_and_accumulation_match_plain_addition() {
        let mut random = Random::fresh();
        for length in [1, 3, 17, 1023, 40_001] {
            let (left, right) = (random.normal(length), random.normal(length));
            let sum: Vec<f64> = left.iter().zip(&right).map(|(&a, &b)| f64::from(a) + f64::from(b)).collect();
            for (name, device) in cpu_devices() {
                let mut output = poisoned(length);
                let arguments = Forward { left: (&left).into(), right: (&right).into(), output: (&mut output).into() };
                forward(&device, arguments).unwrap();
                assert_close(&name, &output, &sum, 1e-6, 0.0);
                let mut target = poisoned(length);
                accumulate(&device, (&left).into(), (&mut target).into(), Write::Set).unwrap();
                assert_eq!(target, left, "{name}");
                accumulate(&device, (&right).into(), (&mut target).into(), Write::Add).unwrap();
                assert_eq!(target, output, "{name}");
            }
        }
    }
}
