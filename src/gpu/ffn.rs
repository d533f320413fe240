//! The feed-forward network on a GPU: two products in each direction, plus the two weight gradients, all of
//! `kernels/linear.cu`.
//!
//! The hidden layer's activation is the first product's epilogue, its derivative the epilogue of `dy · W2`, SwiGLU's
//! included: neither takes a pass over memory.

use super::Gpu;
use super::linear::{self, Grads};
use crate::driver::Result;
use crate::ops;
use crate::ops::ffn::{Backward, Forward, Hidden, Shape};
use crate::ops::linear::Activation;

/// Computes the network's output; see [`crate::ops::ffn::forward`].
pub fn forward(gpu: &Gpu, shape: &Shape, mut arguments: Forward<'_>) -> Result<()> {
    let Shape { rows, channels, hidden } = *shape;
    let elements = arguments.activated.len();
    linear::forward(
        gpu,
        &ops::linear::Shape { rows, inputs: channels, outputs: hidden },
        ops::linear::Forward {
            input: arguments.input,
            weight: arguments.weight_in,
            bias: arguments.bias_in,
            residual: None,
            activation: arguments.activation,
            pre_activation: Some(arguments.pre_activation),
            output: arguments.activated.reborrow().slice(0..elements),
        },
    )?;
    linear::forward(
        gpu,
        &ops::linear::Shape { rows, inputs: hidden, outputs: channels },
        ops::linear::Forward {
            input: arguments.activated.as_view(),
            weight: arguments.weight_out,
            bias: arguments.bias_out,
            residual: arguments.residual,
            activation: Activation::Identity,
            pre_activation: None,
            output: arguments.output,
        },
    )
}

/// Computes the gradients that are asked for; see [`crate::ops::ffn::backward`].
pub fn backward(gpu: &Gpu, shape: &Shape, arguments: Backward<'_>) -> Result<()> {
    let Shape { rows, channels, hidden } = *shape;
    let Backward { input, weight_in, weight_out, activation, pre_activation: z, grad_output, .. } = arguments;
    let mut grad_z = arguments.grad_pre_activation;
    let wants_inner =
        arguments.grad_input.is_some() || arguments.grad_weight_in.is_some() || arguments.grad_bias_in.is_some();

    let mut recomputed;
    let activated = match arguments.activated {
        Hidden::Kept(activated) => activated,
        Hidden::Recompute(memory) => {
            recomputed = memory;
            // Only the gradient of the second weight reads it.
            if arguments.grad_weight_out.is_some() {
                let elements = recomputed.len();
                linear::activate(gpu, activation, rows, hidden, z, recomputed.reborrow().slice(0..elements))?;
            }
            recomputed.as_view()
        }
    };
    let outer = Grads {
        rows,
        columns: channels,
        inputs: hidden,
        input: activated,
        weight: weight_out,
        grad_input: None,
        grad_weight: arguments.grad_weight_out,
        grad_bias: arguments.grad_bias_out,
    };
    let inner = Grads {
        rows,
        columns: hidden * activation.width(),
        inputs: channels,
        input,
        weight: weight_in,
        grad_input: arguments.grad_input,
        grad_weight: arguments.grad_weight_in,
        grad_bias: arguments.grad_bias_in,
    };
    let workspace = gpu.workspace(outer.workspace_bytes().max(inner.workspace_bytes()))?;
    outer.compute(gpu, grad_output, workspace)?;
    if !(wants_inner || arguments.wants_grad_pre_activation) {
        return Ok(());
    }
    let (sizes, elements) = ([rows, channels, hidden], grad_z.len());
    linear::grad_hidden(gpu, sizes, grad_output, weight_out, (activation, z), grad_z.reborrow().slice(0..elements))?;
    inner.compute(gpu, grad_z.as_view(), workspace)
}

pub(crate) mod checks {
    use crate::gpu::checks::Check;
    use crate::gpu::testing::Buffer;
    use crate::ops::ffn::cases::{Case, GRAD_NAMES};
    use crate::ops::ffn::reference::{self, Parameters};
    use crate::ops::ffn::{Backward, Forward, Hidden, Shape, backward, forward};
    use crate::ops::linear::cases::ACTIVATIONS;
    use crate::ops::testing::{Random, assert_close, double};
    use crate::ops::{Device, Write};

    /// Pre-activation, hidden activation and output.
    fn forward_of(case: &Case, device: &Device) -> [Vec<f32>; 3] {
        let Shape { rows, channels, hidden } = case.shape;
        let upload = |values: &[f32]| Buffer::upload(device, values);
        let (input, residual) = (upload(&case.input), upload(&case.residual));
        let (weight_in, bias_in) = (upload(&case.weight_in), upload(&case.bias_in));
        let (weight_out, bias_out) = (upload(&case.weight_out), upload(&case.bias_out));
        let [mut z, mut activated, mut output] =
            [rows * hidden * case.activation.width(), rows * hidden, rows * channels]
                .map(|length| Buffer::poisoned(device, length));
        let arguments = Forward {
            input: input.view(),
            weight_in: weight_in.view(),
            bias_in: Some(bias_in.view()),
            weight_out: weight_out.view(),
            bias_out: Some(bias_out.view()),
            residual: Some(residual.view()),
            activation: case.activation,
            pre_activation: z.view_mut(),
            activated: activated.view_mut(),
            output: output.view_mut(),
        };
        forward(device, &case.shape, arguments).unwrap();
        [z, activated, output].map(|buffer| buffer.download())
    }

    /// Gradients in the order of `GRAD_NAMES`; the hidden activation is computed again where it is not given.
    fn backward_of(
        case: &Case,
        device: &Device,
        z: &[f32],
        kept: Option<&[f32]>,
        before: Option<f32>,
    ) -> [Vec<f32>; 6] {
        let upload = |values: &[f32]| Buffer::upload(device, values);
        let (input, grad_output, z) = (upload(&case.input), upload(&case.grad_output), upload(z));
        let (weight_in, weight_out) = (upload(&case.weight_in), upload(&case.weight_out));
        let mut memory = Buffer::poisoned(device, case.shape.rows * case.shape.hidden);
        let kept = kept.map(upload);
        let activated = match &kept {
            Some(kept) => Hidden::Kept(kept.view()),
            None => Hidden::Recompute(memory.view_mut()),
        };
        let mut grads =
            [&case.input, &case.weight_in, &case.bias_in, &case.weight_out, &case.bias_out].map(|like| match before {
                None => Buffer::poisoned(device, like.len()),
                Some(value) => upload(&vec![value; like.len()]),
            });
        let mut grad_z = Buffer::poisoned(device, z.view().len());
        let write = if before.is_some() { Write::Add } else { Write::Set };
        let [dx, dw_in, db_in, dw_out, db_out] = grads.each_mut().map(|grad| Some((grad.view_mut(), write)));
        let arguments = Backward {
            input: input.view(),
            weight_in: weight_in.view(),
            weight_out: weight_out.view(),
            activation: case.activation,
            pre_activation: z.view(),
            activated,
            grad_output: grad_output.view(),
            grad_pre_activation: grad_z.view_mut(),
            wants_grad_pre_activation: false,
            grad_input: dx,
            grad_weight_in: dw_in,
            grad_bias_in: db_in,
            grad_weight_out: dw_out,
            grad_bias_out: db_out,
        };
        backward(device, &case.shape, arguments).unwrap();
        let [dx, dw_in, db_in, dw_out, db_out] = grads.map(|grad| grad.download());
        [dx, dw_in, db_in, dw_out, db_out, grad_z.download()]
    }

    fn network_and_gradients_match_reference_for_odd_sizes(device: &Device) {
        let mut random = Random::fresh();
        for activation in ACTIVATIONS {
            for sizes in [[1, 3, 5], [17, 33, 65], [70, 36, 132]] {
                let case = Case::new(&mut random, sizes, activation);
                let (x, r, dy) = (double(&case.input), double(&case.residual), double(&case.grad_output));
                let (w_in, b_in) = (double(&case.weight_in), double(&case.bias_in));
                let (w_out, b_out) = (double(&case.weight_out), double(&case.bias_out));
                let parameters =
                    Parameters { weight_in: &w_in, bias_in: Some(&b_in), weight_out: &w_out, bias_out: Some(&b_out) };
                let expected = reference::forward(&case.shape, activation, &x, parameters, Some(&r));
                let [z, activated, output] = forward_of(&case, device);
                let name = format!("{activation:?} {sizes:?}");
                assert_close(&format!("{name}: z"), &z, &expected.pre_activation, 1e-5, 1e-7);
                assert_close(&format!("{name}: activated"), &activated, &expected.activated, 1e-5, 1e-7);
                assert_close(&format!("{name}: output"), &output, &expected.output, 1e-5, 1e-7);

                // The same z for both, because ReLU's derivative jumps where rounding may change a sign.
                let z: Vec<f32> = expected.pre_activation.iter().map(|&z| z as f32).collect();
                let grads = reference::backward(&case.shape, activation, &x, parameters, &double(&z), &dy);
                let grads = [
                    &grads.input,
                    &grads.weight_in,
                    &grads.bias_in,
                    &grads.weight_out,
                    &grads.bias_out,
                    &grads.pre_activation,
                ];
                for before in [None, Some(-0.25)] {
                    let found = backward_of(&case, device, &z, None, before);
                    for (i, part) in GRAD_NAMES.into_iter().enumerate() {
                        // The pre-activation's gradient is memory of the operation: always overwritten.
                        let before = if i < 5 { f64::from(before.unwrap_or(0.0)) } else { 0.0 };
                        let expected: Vec<f64> = grads[i].iter().map(|g| g + before).collect();
                        assert_close(
                            &format!("{name} added to {before}: grad_{part}"),
                            &found[i],
                            &expected,
                            1e-5,
                            1e-7,
                        );
                    }
                }
            }
        }
    }

    fn a_recomputed_hidden_layer_gives_equal_bits(device: &Device) {
        let mut random = Random::fresh();
        let bits = |grads: [Vec<f32>; 6]| grads.map(|grad| grad.iter().map(|g| g.to_bits()).collect::<Vec<_>>());
        for activation in ACTIVATIONS {
            for sizes in [[3, 20, 65], [113, 17, 66]] {
                let case = Case::new(&mut random, sizes, activation);
                let [z, activated, _] = forward_of(&case, device);
                let kept = backward_of(&case, device, &z, Some(&activated), None);
                let recomputed = backward_of(&case, device, &z, None, None);
                assert!(bits(kept) == bits(recomputed), "{activation:?} {sizes:?}: bits differ");
            }
        }
    }

    /// What holds on every GPU.
    pub(crate) const ALL: &[Check] = &[
        Check {
            name: "ffn: network and gradients match reference for odd sizes",
            claim: network_and_gradients_match_reference_for_odd_sizes,
        },
        Check {
            name: "ffn: a recomputed hidden layer gives equal bits",
            claim: a_recomputed_hidden_layer_gives_equal_bits,
        },
    ];

    #[test]
    fn hold_on_the_emulator() {
        crate::gpu::checks::hold(ALL);
    }
}
