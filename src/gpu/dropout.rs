//! Launches `kernels/dropout.cu`: one kernel, since the backward pass is the forward pass on the gradient.

use super::rows::packed;
use super::{Arguments, Gpu, Source, source};
use crate::driver::Result;
use crate::ops::dropout::{Backward, Forward};
use crate::ops::{Dropout, View, ViewMut, Write};

static SOURCE: Source = source!("dropout");

/// See [`crate::ops::dropout::forward`].
pub fn forward(gpu: &Gpu, dropout: &Dropout, arguments: Forward<'_>) -> Result<()> {
    let addend = arguments.residual.as_ref().map_or(0, View::address);
    apply(gpu, dropout, &arguments.input, addend, &arguments.output)
}

/// See [`crate::ops::dropout::backward`].
pub fn backward(gpu: &Gpu, dropout: &Dropout, arguments: Backward<'_>) -> Result<()> {
    let (grad_input, write) = arguments.grad_input;
    let addend = if write == Write::Add { grad_input.address() } else { 0 };
    apply(gpu, dropout, &arguments.grad_output, addend, &grad_input)
}

fn apply(gpu: &Gpu, dropout: &Dropout, input: &View<'_, f32>, addend: u64, output: &ViewMut<'_, f32>) -> Result<()> {
    let count = input.len();
    let list = Arguments::new().view(input).address(addend).view_mut(output).dropout(Some(dropout)).count(count);
    gpu.launch(&SOURCE, "dropout_apply", packed(count), list)
}

pub(crate) mod checks {
    use super::*;
    use crate::gpu::checks::Check;
    use crate::gpu::testing::Buffer;
    use crate::ops::Device;
    use crate::ops::dropout;
    use crate::ops::testing::{Random, assert_close, cpu_devices, double, poisoned};

    fn both_passes_match_reference_with_the_masks_of_the_cpu(device: &Device) {
        let mut random = Random::fresh();
        let (_, cpu) = cpu_devices().remove(0);
        for length in [0, 1, 3, 113, 203, 1023, 20_001] {
            let [input, residual] = [0; 2].map(|_| random.normal(length));
            let [on_input, on_residual] = [&input, &residual].map(|values| Buffer::upload(device, values));
            for probability in [0.0, 0.1, 0.9] {
                let mask = Dropout { probability, seed: 0xDEAD_BEEF_0123, step: 1 << 40, site: 7 };
                let name = format!("{length} elements, p {probability}");
                // Of the numbers that are added: all that is left where a single one cancels.
                let rounding = 3e-7 / (1.0 - f64::from(probability));
                let plain = dropout::reference::forward(&mask, &double(&input), None);
                let summed = dropout::reference::forward(&mask, &double(&input), Some(&double(&residual)));

                let mut output = Buffer::poisoned(device, length);
                let arguments = Forward { input: on_input.view(), residual: None, output: output.view_mut() };
                dropout::forward(device, &mask, arguments).unwrap();
                let found = output.download();
                assert_close(&format!("forward, {name}"), &found, &plain, 1e-6, 0.0);
                let mut on_cpu = poisoned(length);
                let arguments = Forward { input: (&input).into(), residual: None, output: (&mut on_cpu).into() };
                dropout::forward(&cpu, &mask, arguments).unwrap();
                assert!(on_cpu == found, "the CPU's bits differ, {name}");

                let mut output = Buffer::poisoned(device, length);
                let arguments =
                    Forward { input: on_input.view(), residual: Some(on_residual.view()), output: output.view_mut() };
                dropout::forward(device, &mask, arguments).unwrap();
                assert_close(&format!("with residual, {name}"), &output.download(), &summed, 1e-6, rounding);

                for (write, mut gradient, expected) in [
                    (Write::Set, Buffer::poisoned(device, length), &plain),
                    (Write::Add, Buffer::upload(device, &residual), &summed),
                ] {
                    let grad_input = (gradient.view_mut(), write);
                    dropout::backward(device, &mask, Backward { grad_output: on_input.view(), grad_input }).unwrap();
                    assert_close(
                        &format!("backward, {write:?}, {name}"),
                        &gradient.download(),
                        expected,
                        1e-6,
                        rounding,
                    );
                }
            }
        }
    }

    /// What holds on every GPU.
    pub(crate) const ALL: &[Check] = &[Check {
        name: "dropout: both passes match reference with the masks of the cpu",
        claim: both_passes_match_reference_with_the_masks_of_the_cpu,
    }];

    #[test]
    fn hold_on_the_emulator() {
        crate::gpu::checks::hold(ALL);
    }
}
