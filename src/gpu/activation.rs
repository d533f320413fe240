//! An activation by itself on a GPU: launches the kernels that `kernels/linear.cu` has for it.

use super::{Gpu, add, linear};
use crate::driver::Result;
use crate::ops::activation::{Backward, Forward, Shape};
use crate::ops::{ViewMut, Write};

/// See [`crate::ops::activation::forward`].
pub fn forward(gpu: &Gpu, shape: &Shape, arguments: Forward<'_>) -> Result<()> {
    linear::activate(gpu, shape.activation, shape.rows, shape.outputs, arguments.input, arguments.output)
}

/// See [`crate::ops::activation::backward`].
pub fn backward(gpu: &Gpu, shape: &Shape, arguments: Backward<'_>) -> Result<()> {
    let Backward { input, grad_output, grad_input: (mut grad_input, write) } = arguments;
    let sizes = [shape.rows, shape.outputs];
    if write == Write::Set {
        return linear::activation_backward(gpu, shape.activation, sizes, input, grad_output, grad_input);
    }
    // Rare: somebody else uses the input too.
    let workspace = gpu.workspace(size_of::<f32>() as u64 * input.len() as u64)?;
    // SAFETY: the workspace, which nothing else uses before the next operation.
    let mut gradient = unsafe { ViewMut::on_device(workspace, input.len()) };
    linear::activation_backward(gpu, shape.activation, sizes, input, grad_output, gradient.reborrow())?;
    add::accumulate(gpu, gradient.as_view(), grad_input.reborrow(), Write::Add)
}

pub(crate) mod checks {
    use super::*;
    use crate::gpu::checks::Check;
    use crate::gpu::testing::Buffer;
    use crate::ops::linear::cases::ACTIVATIONS;
    use crate::ops::linear::reference::{activate, activate_backward};
    use crate::ops::testing::{Random, assert_close, double};
    use crate::ops::{Device, activation};

    fn results_and_gradients_match_reference_over_odd_sizes(device: &Device) {
        let mut random = Random::fresh();
        for activation in ACTIVATIONS {
            for (rows, outputs) in [(1, 1), (3, 17), (113, 203)] {
                let shape = Shape { rows, outputs, activation };
                let input = random.normal(rows * outputs * activation.width());
                let grad_output = random.normal(rows * outputs);
                let expected = activate(activation, outputs, &double(&input));
                let slopes = activate_backward(activation, outputs, &double(&input), &double(&grad_output));
                let (x, dy) = (Buffer::upload(device, &input), Buffer::upload(device, &grad_output));
                let (mut y, mut dx) = (Buffer::poisoned(device, rows * outputs), Buffer::poisoned(device, input.len()));
                let arguments = Forward { input: x.view(), output: y.view_mut() };
                activation::forward(device, &shape, arguments).unwrap();
                let name = format!("{activation:?}, {rows}x{outputs}");
                assert_close(&name, &y.download(), &expected, 1e-5, 1e-7);
                for (write, times) in [(Write::Set, 1.0), (Write::Add, 2.0)] {
                    let grad_input = (dx.view_mut(), write);
                    let arguments = Backward { input: x.view(), grad_output: dy.view(), grad_input };
                    activation::backward(device, &shape, arguments).unwrap();
                    let expected: Vec<f64> = slopes.iter().map(|slope| slope * times).collect();
                    assert_close(&format!("{name}, {write:?}"), &dx.download(), &expected, 1e-5, 1e-7);
                }
            }
        }
    }

    /// What holds on every GPU.
    pub(crate) const ALL: &[Check] = &[Check {
        name: "activation: results and gradients match reference over odd sizes",
        claim: results_and_gradients_match_reference_over_odd_sizes,
    }];

    #[test]
    fn hold_on_the_emulator() {
        crate::gpu::checks::hold(ALL);
    }
}
