//! Launches `kernels/adamw.cu`.

use super::rows::{Launch, packed};
use super::{Arguments, Gpu, Source, source};
use crate::driver::Result;
use crate::ops::adamw::{Factors, Hyper, Update};

static SOURCE: Source = source!("adamw");

/// See [`crate::ops::adamw::update`].
pub fn update(gpu: &Gpu, hyper: &Hyper, arguments: Update<'_>) -> Result<()> {
    let (kernel, config, list) = launch(hyper, &arguments);
    gpu.launch(&SOURCE, kernel, config, list)
}

fn launch(hyper: &Hyper, arguments: &Update<'_>) -> Launch {
    let Update { parameter, gradient, first_moment, second_moment } = arguments;
    let Factors {
        grad,
        keep,
        beta1,
        one_minus_beta1,
        beta2,
        one_minus_beta2,
        step_size,
        reciprocal_correction,
        epsilon,
    } = Factors::new(hyper);
    let list = Arguments::new().view_mut(parameter).view(gradient).view_mut(first_moment).view_mut(second_moment);
    // `Factors` of the kernel, field by field.
    let list = [grad, keep, beta1, one_minus_beta1, beta2, one_minus_beta2, step_size, reciprocal_correction, epsilon]
        .into_iter()
        .fold(list, Arguments::float)
        .count(parameter.len());
    ("adamw_update", packed(parameter.len()), list)
}

pub(crate) mod checks {
    #[cfg(test)]
    use super::super::counting::CountingDevice;
    use super::*;
    use crate::gpu::checks::Check;
    use crate::gpu::testing::Buffer;
    use crate::ops::testing::{Random, assert_close, cpu_devices, double};
    use crate::ops::{Device, View, ViewMut, adamw};

    const HYPER: Hyper = Hyper {
        learning_rate: 0.01,
        beta1: 0.9,
        beta2: 0.95,
        epsilon: 1e-8,
        weight_decay: 0.1,
        step: 1,
        grad_factor: 1.0,
    };

    /// Half a unit in the last place of the numbers that are added: all that is left where a single one cancels.
    const ROUNDING: f64 = 3e-7;

    fn updates_match_reference_and_have_the_bits_of_a_cpu_that_fuses(device: &Device) {
        let mut random = Random::fresh();
        // Portable code rounds between multiplication and addition.
        let cpus: Vec<_> = cpu_devices().into_iter().filter(|(name, _)| !name.contains("portable")).collect();
        for length in [1, 3, 113, 203, 1023, 20_001] {
            // Where an array starts at no multiple of 16 bytes, packs are read value by value.
            for offset in [0, 1] {
                let [start, m_start, gradient] = [0; 3].map(|_| random.normal(length));
                let v_start: Vec<f32> = random.normal(length).iter().map(|x| x * x).collect();
                for (step, weight_decay, grad_factor) in [(1, 0.0, 1.0), (2, 0.1, 0.25), (100_000, 0.1, 1.0)] {
                    let hyper = Hyper { step, weight_decay, grad_factor, ..HYPER };
                    let name = format!("{length} elements, step {step}, offset {offset}");
                    let (mut p, mut m, mut v) = (double(&start), double(&m_start), double(&v_start));
                    adamw::reference::update(&hyper, &mut p, &double(&gradient), &mut m, &mut v);

                    let shifted = |values: &[f32]| [&vec![0.0; offset], values].concat();
                    let on_device =
                        [&start, &m_start, &v_start, &gradient].map(|x| Buffer::upload(device, &shifted(x)));
                    let address = |i: usize| on_device[i].view().address() + 4 * offset as u64;
                    // SAFETY: each range lies in its own buffer, which is read only afterwards.
                    let of = |i: usize| unsafe { ViewMut::on_device(address(i), length) };
                    let arguments = Update {
                        parameter: of(0),
                        // SAFETY: as above.
                        gradient: unsafe { View::on_device(address(3), length) },
                        first_moment: of(1),
                        second_moment: of(2),
                    };
                    adamw::update(device, &hyper, arguments).unwrap();
                    let found = on_device.map(|buffer| buffer.download()[offset..].to_vec());
                    assert_close(&format!("parameter, {name}"), &found[0], &p, 1e-6, ROUNDING);
                    assert_close(&format!("first moment, {name}"), &found[1], &m, 1e-6, ROUNDING);
                    assert_close(&format!("second moment, {name}"), &found[2], &v, 1e-6, 0.0);

                    for (cpu_name, cpu) in &cpus {
                        let (mut parameter, mut first, mut second) = (start.clone(), m_start.clone(), v_start.clone());
                        let arguments = Update {
                            parameter: (&mut parameter).into(),
                            gradient: (&gradient).into(),
                            first_moment: (&mut first).into(),
                            second_moment: (&mut second).into(),
                        };
                        adamw::update(cpu, &hyper, arguments).unwrap();
                        let same = parameter == found[0] && first == found[1] && second == found[2];
                        assert!(same, "bits differ, {name}, {cpu_name}");
                    }
                }
            }
        }
    }

    #[test]
    fn every_value_is_moved_once() {
        let counting = CountingDevice::new();
        let values = vec![1.0f32; 4096];
        let arguments = Update {
            parameter: counting.upload_mut(&values),
            gradient: counting.upload(&values),
            first_moment: counting.upload_mut(&values),
            second_moment: counting.upload_mut(&values),
        };
        let counts = counting.count(&SOURCE, launch(&HYPER, &arguments));
        assert_eq!((counts.dram_read_bytes, counts.dram_write_bytes), (16 * 4096, 12 * 4096));
        assert_eq!((32 * counts.global_load_sectors, 32 * counts.global_store_sectors), (16 * 4096, 12 * 4096));
    }

    #[test]
    fn nothing_to_update_is_no_launch() {
        let Device::Gpu(gpu) = crate::gpu::testing::device() else { unreachable!() };
        let none = || ViewMut::from(&mut [][..]);
        let arguments =
            Update { parameter: none(), gradient: [][..].into(), first_moment: none(), second_moment: none() };
        update(&gpu, &HYPER, arguments).unwrap();
    }

    /// What holds on every GPU.
    pub(crate) const ALL: &[Check] = &[Check {
        name: "adamw: updates match reference and have the bits of a cpu that fuses",
        claim: updates_match_reference_and_have_the_bits_of_a_cpu_that_fuses,
    }];

    #[test]
    fn hold_on_the_emulator() {
        crate::gpu::checks::hold(ALL);
    }
}
