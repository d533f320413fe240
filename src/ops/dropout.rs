//! Dropout with a fused residual add: `y = mask ⊙ x / (1 - p) + residual`. Its backward pass is the same operation on
//! the gradient, without the residual.

use super::{Device, Dropout, Error, View, ViewMut, Write, check_len};
use crate::{cpu, gpu};

const NAME: &str = "dropout";

/// Arguments of [`forward`]. All have the same number of elements; element `i` is masked by index `i`.
pub struct Forward<'a> {
    pub input: View<'a, f32>,
    pub residual: Option<View<'a, f32>>,
    pub output: ViewMut<'a, f32>,
}

/// Arguments of [`backward`].
pub struct Backward<'a> {
    pub grad_output: View<'a, f32>,
    pub grad_input: (ViewMut<'a, f32>, Write),
}

fn check(dropout: &Dropout) -> Result<(), Error> {
    if (0.0..1.0).contains(&dropout.probability) {
        Ok(())
    } else {
        Err(Error::new(NAME, format!("probability {} is not in 0..1", dropout.probability)))
    }
}

/// Zeroes elements at random, scales the others, adds the residual.
///
/// # Errors
/// Lengths that differ, or a probability outside `0..1`.
pub fn forward(device: &Device, dropout: &Dropout, arguments: Forward<'_>) -> Result<(), Error> {
    check(dropout)?;
    check_len(NAME, "output", arguments.output.len(), arguments.input.len())?;
    if let Some(residual) = &arguments.residual {
        check_len(NAME, "residual", residual.len(), arguments.input.len())?;
    }
    match device {
        Device::Cpu(cpu) => cpu::dropout::forward(cpu, dropout, arguments),
        Device::Gpu(gpu) => gpu::dropout::forward(gpu, dropout, arguments).map_err(Error::of_device(NAME))?,
    }
    Ok(())
}

/// Applies the forward pass's mask and scale to the gradient.
///
/// # Errors
/// Lengths that differ, or a probability outside `0..1`.
pub fn backward(device: &Device, dropout: &Dropout, arguments: Backward<'_>) -> Result<(), Error> {
    check(dropout)?;
    check_len(NAME, "grad_input", arguments.grad_input.0.len(), arguments.grad_output.len())?;
    match device {
        Device::Cpu(cpu) => cpu::dropout::backward(cpu, dropout, arguments),
        Device::Gpu(gpu) => gpu::dropout::backward(gpu, dropout, arguments).map_err(Error::of_device(NAME))?,
    }
    Ok(())
}

/// Dropout in f64, element by element: what every backend is measured against.
pub mod reference {
    use super::Dropout;
    use crate::ops::philox::{keep_threshold, stream, word};

    /// Factor of each of `length` elements: zero, or the scale in f64.
    pub fn factors(dropout: &Dropout, length: usize) -> Vec<f64> {
        let stream = stream(dropout.seed, dropout.step, dropout.site);
        let threshold = keep_threshold(dropout.probability);
        let scale = 1.0 / (1.0 - f64::from(dropout.probability));
        (0..length as u64).map(|i| if word(stream, i) < threshold { 0.0 } else { scale }).collect()
    }

    /// See [`super::forward`]; without the residual it is the backward pass as well.
    pub fn forward(dropout: &Dropout, input: &[f64], residual: Option<&[f64]>) -> Vec<f64> {
        let factors = factors(dropout, input.len());
        (0..input.len()).map(|i| input[i] * factors[i] + residual.map_or(0.0, |r| r[i])).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Random, assert_close, assert_gradient, cpu_devices, double, poisoned};
    use super::*;

    fn dropout(probability: f32) -> Dropout {
        Dropout { probability, seed: 0xDEAD_BEEF_0123, step: 1 << 40, site: 7 }
    }

    #[test]
    fn reference_is_linear_so_its_backward_pass_is_itself() {
        let mut random = Random::fresh();
        let (input, grad_output) = (double(&random.normal(40)), double(&random.normal(40)));
        let loss = |x: &[f64]| -> f64 {
            reference::forward(&dropout(0.4), x, None).iter().zip(&grad_output).map(|(y, g)| y * g).sum()
        };
        assert_gradient("input", loss, &input, &reference::forward(&dropout(0.4), &grad_output, None));
    }

    #[test]
    fn both_passes_match_reference_and_threads_do_not_change_a_bit() {
        let mut random = Random::fresh();
        for length in [1, 3, 17, 113, 1023, 1024, 40_001] {
            let [input, residual] = [0; 2].map(|_| random.normal(length));
            for probability in [0.0, 0.1, 0.9] {
                let dropout = dropout(probability);
                // Of the numbers that are added: all that is left where a single one cancels.
                let rounding = 3e-7 / (1.0 - f64::from(probability));
                let plain = reference::forward(&dropout, &double(&input), None);
                let summed = reference::forward(&dropout, &double(&input), Some(&double(&residual)));
                let mut previous: Option<Vec<f32>> = None;
                for (name, device) in cpu_devices() {
                    let name = format!("{length} elements, p {probability}, {name}");
                    let mut output = poisoned(length);
                    let arguments = Forward { input: (&input).into(), residual: None, output: (&mut output).into() };
                    forward(&device, &dropout, arguments).unwrap();
                    assert_close(&format!("forward, {name}"), &output, &plain, 1e-6, 0.0);
                    if let Some(previous) = &previous {
                        assert!(*previous == output, "{name}: bits differ");
                    }
                    previous = Some(output);

                    let mut output = poisoned(length);
                    let arguments = Forward {
                        input: (&input).into(),
                        residual: Some((&residual).into()),
                        output: (&mut output).into(),
                    };
                    forward(&device, &dropout, arguments).unwrap();
                    assert_close(&format!("with residual, {name}"), &output, &summed, 1e-6, rounding);

                    for (write, mut grad_input, expected) in
                        [(Write::Set, poisoned(length), &plain), (Write::Add, residual.clone(), &summed)]
                    {
                        let arguments =
                            Backward { grad_output: (&input).into(), grad_input: ((&mut grad_input).into(), write) };
                        backward(&device, &dropout, arguments).unwrap();
                        assert_close(&format!("backward, {write:?}, {name}"), &grad_input, expected, 1e-6, rounding);
                    }
                }
            }
        }
    }

    #[test]
    fn as_many_are_dropped_as_asked_and_every_site_and_step_has_its_own_mask() {
        let base = dropout(0.3);
        let length = 100_000;
        let mask = |dropout: &Dropout| -> Vec<bool> {
            reference::factors(dropout, length).iter().map(|&factor| factor == 0.0).collect()
        };
        let dropped = |mask: &[bool]| mask.iter().filter(|&&dropped| dropped).count() as f64 / length as f64;
        let first = mask(&base);
        // Five standard deviations of the share.
        assert!((dropped(&first) - 0.3).abs() < 5.0 * (0.3f64 * 0.7 / length as f64).sqrt(), "{}", dropped(&first));
        for other in [
            Dropout { site: base.site + 1, ..base },
            Dropout { step: base.step + 1, ..base },
            Dropout { seed: base.seed + 1, ..base },
        ] {
            let both: Vec<bool> = mask(&other).iter().zip(&first).map(|(&a, &b)| a && b).collect();
            // Independent masks share 0.09 of their zeros.
            assert!((dropped(&both) - 0.09).abs() < 0.005, "{other:?}: {}", dropped(&both));
        }
    }

    #[test]
    fn a_probability_of_one_is_refused() {
        let (_, device) = cpu_devices().remove(0);
        for probability in [1.0, -0.1, f32::NAN] {
            let (input, mut output) = (vec![0.0; 2], vec![0.0; 2]);
            let arguments = Forward { input: (&input).into(), residual: None, output: (&mut output).into() };
            let message = forward(&device, &dropout(probability), arguments).unwrap_err().to_string();
            assert_eq!(message, format!("dropout: probability {probability} is not in 0..1"));
        }
    }
}
