//! AdamW (Loshchilov and Hutter 2019): Adam (Kingma and Ba 2015) with decoupled weight decay, as PyTorch computes it.
//!
//! ```text
//! g ← factor · g          m ← β1 m + (1 - β1) g          v ← β2 v + (1 - β2) g²
//! p ← p - lr · decay · p  p ← p - lr / (1 - β1ᵗ) · m / (√v / √(1 - β2ᵗ) + ε)
//! ```

use super::{Device, Error, View, ViewMut, check_len};
use crate::{cpu, gpu};

const NAME: &str = "adamw";

/// Hyper-parameters of one update.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Hyper {
    pub learning_rate: f32,
    pub beta1: f32,
    pub beta2: f32,
    pub epsilon: f32,
    pub weight_decay: f32,
    /// Number of this update, from 1.
    pub step: u64,
    /// Multiplies the gradient as it is read: the clipping factor.
    pub grad_factor: f32,
}

/// Arguments of [`update`], all of one length.
pub struct Update<'a> {
    pub parameter: ViewMut<'a, f32>,
    pub gradient: View<'a, f32>,
    pub first_moment: ViewMut<'a, f32>,
    pub second_moment: ViewMut<'a, f32>,
}

/// What is the same for all parameters, computed in f64 and rounded once, for every backend alike.
#[derive(Clone, Copy)]
pub(crate) struct Factors {
    pub(crate) grad: f32,
    pub(crate) keep: f32,
    pub(crate) beta1: f32,
    pub(crate) one_minus_beta1: f32,
    pub(crate) beta2: f32,
    pub(crate) one_minus_beta2: f32,
    pub(crate) step_size: f32,
    pub(crate) reciprocal_correction: f32,
    pub(crate) epsilon: f32,
}

impl Factors {
    pub(crate) fn new(hyper: &Hyper) -> Self {
        let (beta1, beta2, rate) = (f64::from(hyper.beta1), f64::from(hyper.beta2), f64::from(hyper.learning_rate));
        let step = hyper.step as f64;
        Self {
            grad: hyper.grad_factor,
            keep: (1.0 - rate * f64::from(hyper.weight_decay)) as f32,
            beta1: hyper.beta1,
            one_minus_beta1: (1.0 - beta1) as f32,
            beta2: hyper.beta2,
            one_minus_beta2: (1.0 - beta2) as f32,
            step_size: (rate / (1.0 - beta1.powf(step))) as f32,
            reciprocal_correction: (1.0 / (1.0 - beta2.powf(step)).sqrt()) as f32,
            epsilon: hyper.epsilon,
        }
    }
}

/// Updates parameters and moments in place.
///
/// # Errors
/// Lengths that differ, or `step` 0.
pub fn update(device: &Device, hyper: &Hyper, arguments: Update<'_>) -> Result<(), Error> {
    let length = arguments.parameter.len();
    check_len(NAME, "gradient", arguments.gradient.len(), length)?;
    check_len(NAME, "first_moment", arguments.first_moment.len(), length)?;
    check_len(NAME, "second_moment", arguments.second_moment.len(), length)?;
    if hyper.step == 0 {
        return Err(Error::new(NAME, "updates are numbered from 1"));
    }
    match device {
        Device::Cpu(cpu) => cpu::adamw::update(cpu, hyper, arguments),
        Device::Gpu(gpu) => gpu::adamw::update(gpu, hyper, arguments).map_err(Error::of_device(NAME))?,
    }
    Ok(())
}

/// AdamW in f64, from the formulas: what every backend is measured against.
pub mod reference {
    use super::Hyper;

    /// See [`super::update`].
    pub fn update(
        hyper: &Hyper,
        parameter: &mut [f64],
        gradient: &[f64],
        first_moment: &mut [f64],
        second_moment: &mut [f64],
    ) {
        let [beta1, beta2, rate] = [hyper.beta1, hyper.beta2, hyper.learning_rate].map(f64::from);
        let [epsilon, decay, factor] = [hyper.epsilon, hyper.weight_decay, hyper.grad_factor].map(f64::from);
        let correction = |beta: f64| 1.0 - beta.powf(hyper.step as f64);
        for i in 0..parameter.len() {
            let g = factor * gradient[i];
            first_moment[i] = beta1 * first_moment[i] + (1.0 - beta1) * g;
            second_moment[i] = beta2 * second_moment[i] + (1.0 - beta2) * g * g;
            parameter[i] -= rate * decay * parameter[i];
            let denominator = second_moment[i].sqrt() / correction(beta2).sqrt() + epsilon;
            parameter[i] -= rate / correction(beta1) * first_moment[i] / denominator;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Random, assert_close, cpu_devices, double};
    use super::*;

    /// Half a unit in the last place of the numbers that are added: all that is left where a single one cancels.
    const ROUNDING: f64 = 3e-7;

    const HYPER: Hyper = Hyper {
        learning_rate: 0.01,
        beta1: 0.9,
        beta2: 0.95,
        epsilon: 1e-8,
        weight_decay: 0.1,
        step: 1,
        grad_factor: 1.0,
    };

    /// Three steps of PyTorch 2.15 in f64, with the f32 values of the hyper-parameters:
    ///
    /// ```python
    /// torch.set_default_dtype(torch.float64)
    /// f = lambda x: torch.tensor(x, dtype=torch.float32).item()
    /// p = torch.tensor([0.5, -1.25, 2.0, 0.0], requires_grad=True)
    /// o = torch.optim.AdamW([p], lr=f(0.01), betas=(f(0.9), f(0.95)), eps=f(1e-8), weight_decay=f(0.1))
    /// for g in ([0.1, -0.2, 0.3, 0.0], [1.0, 0.5, -0.25, 1e-4], [-0.3, 0.05, 0.0, -2.0]):
    ///     p.grad = torch.tensor(g); o.step()
    /// s = o.state[p]; print(p.tolist(), s["exp_avg"].tolist(), s["exp_avg_sq"].tolist())
    /// ```
    #[test]
    fn reference_takes_the_steps_that_pytorch_takes() {
        let gradients = [[0.1, -0.2, 0.3, 0.0], [1.0, 0.5, -0.25, 1e-4], [-0.3, 0.05, 0.0, -2.0]];
        let (mut p, mut m, mut v) = ([0.5, -1.25, 2.0, 0.0], [0.0; 4], [0.0; 4]);
        for (i, gradient) in gradients.iter().enumerate() {
            reference::update(&Hyper { step: i as u64 + 1, ..HYPER }, &mut p, gradient, &mut m, &mut v);
        }
        let expected = [
            [0.47641239409830116, -1.2446607282273219, 1.9833451097791017, -0.0011092748107475545],
            [0.06810001342296534, 0.033800007724761875, 0.001799999737739416, -0.1999910476818085],
            [0.05245126189798102, 0.013805003097057298, 0.007030001536905733, 0.20000004815871592],
        ];
        for (found, expected) in [p, m, v].iter().zip(expected) {
            for (found, expected) in found.iter().zip(expected) {
                assert!((found - expected).abs() < 1e-14, "{found}, expected {expected}");
            }
        }
    }

    #[test]
    fn updates_match_reference_and_threads_do_not_change_a_bit() {
        let mut random = Random::fresh();
        for length in [1, 3, 17, 113, 203, 1023, 70_001] {
            let [start, m_start, gradient] = [0; 3].map(|_| random.normal(length));
            let v_start: Vec<f32> = random.normal(length).iter().map(|x| x * x).collect();
            for (step, weight_decay, grad_factor) in [(1, 0.0, 1.0), (2, 0.1, 0.25), (100_000, 0.1, 1.0)] {
                let hyper = Hyper { step, weight_decay, grad_factor, ..HYPER };
                let (mut p, mut m, mut v) = (double(&start), double(&m_start), double(&v_start));
                reference::update(&hyper, &mut p, &double(&gradient), &mut m, &mut v);
                let mut results = Vec::new();
                for (name, device) in cpu_devices() {
                    let name = format!("{length} elements, step {step}, {name}");
                    let (mut parameter, mut first, mut second) = (start.clone(), m_start.clone(), v_start.clone());
                    let arguments = Update {
                        parameter: (&mut parameter).into(),
                        gradient: (&gradient).into(),
                        first_moment: (&mut first).into(),
                        second_moment: (&mut second).into(),
                    };
                    update(&device, &hyper, arguments).unwrap();
                    assert_close(&format!("parameter, {name}"), &parameter, &p, 1e-6, ROUNDING);
                    assert_close(&format!("first moment, {name}"), &first, &m, 1e-6, ROUNDING);
                    assert_close(&format!("second moment, {name}"), &second, &v, 1e-6, 0.0);
                    results.push((name, parameter));
                }
                for pair in results.chunks(2) {
                    assert!(pair[0].1 == pair[1].1, "bits differ: {} and {}", pair[0].0, pair[1].0);
                }
            }
        }
    }

    #[test]
    fn step_zero_is_refused() {
        let (_, device) = cpu_devices().remove(0);
        let [mut p, mut m, mut v] = [0.0; 3].map(|x| vec![x]);
        let arguments = Update {
            parameter: (&mut p).into(),
            gradient: [0.0][..].into(),
            first_moment: (&mut m).into(),
            second_moment: (&mut v).into(),
        };
        let message = update(&device, &Hyper { step: 0, ..HYPER }, arguments).unwrap_err().to_string();
        assert_eq!(message, "adamw: updates are numbered from 1");
    }
}
