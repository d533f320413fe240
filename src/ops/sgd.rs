//! Stochastic gradient descent with momentum and weight decay, as PyTorch computes it (no dampening):
//! `g ← factor · g + decay · p`, `m ← μ m + g`, `p ← p - lr · m`.

use super::{Device, Error, View, ViewMut, check_len};
use crate::{cpu, gpu};

const NAME: &str = "sgd";

/// Hyper-parameters of one update.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Hyper {
    pub learning_rate: f32,
    /// `μ`; 0 for plain descent, which then needs no momentum buffer.
    pub momentum: f32,
    pub weight_decay: f32,
    /// Multiplies the gradient as it is read: the clipping factor.
    pub grad_factor: f32,
}

/// Arguments of [`update`], all of one length.
pub struct Update<'a> {
    pub parameter: ViewMut<'a, f32>,
    pub gradient: View<'a, f32>,
    /// Needed where `momentum` is not 0; zeros before the first update.
    pub momentum: Option<ViewMut<'a, f32>>,
}

/// Updates parameters and momentum in place.
///
/// # Errors
/// Lengths that differ, or momentum without a buffer.
pub fn update(device: &Device, hyper: &Hyper, arguments: Update<'_>) -> Result<(), Error> {
    let length = arguments.parameter.len();
    check_len(NAME, "gradient", arguments.gradient.len(), length)?;
    match &arguments.momentum {
        Some(momentum) => check_len(NAME, "momentum", momentum.len(), length)?,
        None if hyper.momentum != 0.0 => return Err(Error::new(NAME, "momentum needs a buffer")),
        None => {}
    }
    match device {
        Device::Cpu(cpu) => cpu::sgd::update(cpu, hyper, arguments),
        Device::Gpu(gpu) => gpu::sgd::update(gpu, hyper, arguments).map_err(Error::of_device(NAME))?,
    }
    Ok(())
}

/// SGD in f64, from the formulas: what every backend is measured against.
pub mod reference {
    use super::Hyper;

    /// See [`super::update`]; the momentum buffer may be left out where `momentum` is 0.
    pub fn update(hyper: &Hyper, parameter: &mut [f64], gradient: &[f64], mut momentum: Option<&mut [f64]>) {
        let [rate, keep] = [hyper.learning_rate, hyper.momentum].map(f64::from);
        let [decay, factor] = [hyper.weight_decay, hyper.grad_factor].map(f64::from);
        for i in 0..parameter.len() {
            let mut direction = factor * gradient[i] + decay * parameter[i];
            if let Some(momentum) = &mut momentum {
                direction += keep * momentum[i];
                momentum[i] = direction;
            }
            parameter[i] -= rate * direction;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Random, assert_close, cpu_devices, double};
    use super::*;

    /// Half a unit in the last place of the numbers that are added: all that is left where a single one cancels.
    const ROUNDING: f64 = 3e-7;

    const HYPER: Hyper = Hyper { learning_rate: 0.1, momentum: 0.9, weight_decay: 0.01, grad_factor: 1.0 };

    /// Three steps of PyTorch 2.15 in f64, with the f32 values of the hyper-parameters, without and with momentum:
    ///
    /// ```python
    /// torch.set_default_dtype(torch.float64)
    /// f = lambda x: torch.tensor(x, dtype=torch.float32).item()
    /// for mu in (0.0, 0.9):
    ///     p = torch.tensor([0.5, -1.25, 2.0, 0.0], requires_grad=True)
    ///     o = torch.optim.SGD([p], lr=f(0.1), momentum=f(mu), weight_decay=f(0.01))
    ///     for g in ([0.1, -0.2, 0.3, 0.0], [1.0, 0.5, -0.25, 1e-4], [-0.3, 0.05, 0.0, -2.0]):
    ///         p.grad = torch.tensor(g); o.step()
    ///     print(p.tolist(), o.state[p].get("momentum_buffer"))
    /// ```
    #[test]
    fn reference_takes_the_steps_that_pytorch_takes() {
        let gradients = [[0.1, -0.2, 0.3, 0.0], [1.0, 0.5, -0.25, 1e-4], [-0.3, 0.05, 0.0, -2.0]];
        let plain = [0.41862148831995466, -1.2812437292993502, 1.9890409679703691, 0.19999001298008331];
        let with_momentum = [0.3102353898304407, -1.2888194797401116, 1.955078569166798, 0.1999810129801876];
        let buffer = [0.6932510762450638, 0.304232285741778, 0.07153431056116738, -1.9999101000023836];
        let close = |found: &[f64], expected: [f64; 4]| {
            for (found, expected) in found.iter().zip(expected) {
                assert!((found - expected).abs() < 1e-14, "{found}, expected {expected}");
            }
        };
        let (mut p, start) = ([0.5, -1.25, 2.0, 0.0], [0.5, -1.25, 2.0, 0.0]);
        for gradient in &gradients {
            reference::update(&Hyper { momentum: 0.0, ..HYPER }, &mut p, gradient, None);
        }
        close(&p, plain);
        let (mut p, mut m) = (start, [0.0; 4]);
        for gradient in &gradients {
            reference::update(&HYPER, &mut p, gradient, Some(&mut m));
        }
        close(&p, with_momentum);
        close(&m, buffer);
    }

    #[test]
    fn updates_match_reference_and_threads_do_not_change_a_bit() {
        let mut random = Random::fresh();
        for length in [1, 3, 17, 113, 203, 1023, 70_001] {
            let [start, m_start, gradient] = [0; 3].map(|_| random.normal(length));
            for (momentum, weight_decay, grad_factor) in [(0.0, 0.0, 1.0), (0.0, 0.01, 0.5), (0.9, 0.01, 0.5)] {
                let hyper = Hyper { momentum, weight_decay, grad_factor, ..HYPER };
                let has_momentum = momentum != 0.0;
                let (mut p, mut m) = (double(&start), double(&m_start));
                reference::update(&hyper, &mut p, &double(&gradient), has_momentum.then_some(&mut m));
                let mut results = Vec::new();
                for (name, device) in cpu_devices() {
                    let name = format!("{length} elements, momentum {momentum}, {name}");
                    let (mut parameter, mut buffer) = (start.clone(), m_start.clone());
                    let arguments = Update {
                        parameter: (&mut parameter).into(),
                        gradient: (&gradient).into(),
                        momentum: has_momentum.then(|| (&mut buffer).into()),
                    };
                    update(&device, &hyper, arguments).unwrap();
                    assert_close(&format!("parameter, {name}"), &parameter, &p, 1e-6, ROUNDING);
                    assert_close(&format!("momentum, {name}"), &buffer, &m, 1e-6, ROUNDING);
                    results.push((name, parameter));
                }
                for pair in results.chunks(2) {
                    assert!(pair[0].1 == pair[1].1, "bits differ: {} and {}", pair[0].0, pair[1].0);
                }
            }
        }
    }

    #[test]
    fn momentum_without_a_buffer_is_refused() {
        let (_, device) = cpu_devices().remove(0);
        let mut p = vec![0.0];
        let arguments = Update { parameter: (&mut p).into(), gradient: [0.0][..].into(), momentum: None };
        assert_eq!(update(&device, &HYPER, arguments).unwrap_err().to_string(), "sgd: momentum needs a buffer");
    }
}
