//! Launches `kernels/sgd.cu`.

use super::rows::packed;
use super::{Arguments, Gpu, Source, source};
use crate::driver::Result;
use crate::ops::sgd::{Hyper, Update};

static SOURCE: Source = source!("sgd");

/// See [`crate::ops::sgd::update`].
pub fn update(gpu: &Gpu, hyper: &Hyper, arguments: Update<'_>) -> Result<()> {
    let Update { parameter, gradient, momentum } = arguments;
    // Plain descent leaves a buffer alone that it was given all the same.
    let momentum = momentum.filter(|_| hyper.momentum != 0.0);
    let count = parameter.len();
    let list = Arguments::new()
        .view_mut(&parameter)
        .view(&gradient)
        .optional_mut(momentum.as_ref())
        .float(hyper.grad_factor)
        .float(hyper.weight_decay)
        .float(hyper.momentum)
        .float(hyper.learning_rate)
        .count(count);
    gpu.launch(&SOURCE, "sgd_update", packed(count), list)
}

pub(crate) mod checks {
    use super::*;
    use crate::gpu::checks::Check;
    use crate::gpu::testing::Buffer;
    use crate::ops::Device;
    use crate::ops::sgd;
    use crate::ops::testing::{Random, assert_close, cpu_devices, double};

    fn updates_match_reference_and_have_the_bits_of_a_cpu_that_fuses(device: &Device) {
        const ROUNDING: f64 = 3e-7;
        let mut random = Random::fresh();
        // Portable code rounds between multiplication and addition.
        let cpus: Vec<_> = cpu_devices().into_iter().filter(|(name, _)| !name.contains("portable")).collect();
        for length in [0, 1, 3, 113, 203, 1023, 20_001] {
            let [start, m_start, gradient] = [0; 3].map(|_| random.normal(length));
            for (momentum, weight_decay, grad_factor) in [(0.0, 0.0, 1.0), (0.0, 0.01, 0.5), (0.9, 0.01, 0.5)] {
                let hyper = Hyper { learning_rate: 0.1, momentum, weight_decay, grad_factor };
                let name = format!("{length} elements, momentum {momentum}");
                let (mut p, mut m) = (double(&start), double(&m_start));
                sgd::reference::update(&hyper, &mut p, &double(&gradient), (momentum != 0.0).then_some(&mut m));
                let gradient_on_device = Buffer::upload(device, &gradient);
                let [mut parameter, mut buffer] = [&start, &m_start].map(|values| Buffer::upload(device, values));
                let arguments = Update {
                    parameter: parameter.view_mut(),
                    gradient: gradient_on_device.view(),
                    // Given in any case: plain descent must not touch it.
                    momentum: Some(buffer.view_mut()),
                };
                sgd::update(device, &hyper, arguments).unwrap();
                let (parameter, buffer) = (parameter.download(), buffer.download());
                assert_close(&format!("parameter, {name}"), &parameter, &p, 1e-6, ROUNDING);
                assert_close(&format!("momentum, {name}"), &buffer, &m, 1e-6, ROUNDING);
                assert!(momentum != 0.0 || buffer == m_start, "{name}: the momentum was written");
                for (cpu_name, cpu) in &cpus {
                    let (mut on_cpu, mut m) = (start.clone(), m_start.clone());
                    let arguments = Update {
                        parameter: (&mut on_cpu).into(),
                        gradient: (&gradient).into(),
                        momentum: Some((&mut m).into()),
                    };
                    sgd::update(cpu, &hyper, arguments).unwrap();
                    assert!(on_cpu == parameter && m == buffer, "bits differ, {name}, {cpu_name}");
                }
            }
        }
    }

    /// What holds on every GPU.
    pub(crate) const ALL: &[Check] = &[Check {
        name: "sgd: updates match reference and have the bits of a cpu that fuses",
        claim: updates_match_reference_and_have_the_bits_of_a_cpu_that_fuses,
    }];

    #[test]
    fn hold_on_the_emulator() {
        crate::gpu::checks::hold(ALL);
    }
}
