//! Output projection and cross-entropy on a GPU: each chunk of rows goes through all of its products while its logits
//! are there.
//!
//! A chunk: `logits = x · Wᵀ + b`; the loss turns them into their gradient in place; `dx = dlogits · W` and
//! `dW += dlogitsᵀ · x`. The kernels are those of `linear` and `softmax_cross_entropy`.

use super::linear::{self, Grads};
use super::{Gpu, softmax_cross_entropy};
use crate::driver::Result;
use crate::ops::linear::Activation;
use crate::ops::linear_cross_entropy::{Forward, Gradients, Shape};
use crate::ops::softmax_cross_entropy as loss;
use crate::ops::{self, Write};

/// Computes losses and gradients; see [`crate::ops::linear_cross_entropy::forward`].
pub fn forward(gpu: &Gpu, shape: &Shape, arguments: Forward<'_>) -> Result<()> {
    let (rows, vocabulary, channels) = (shape.loss.rows, shape.loss.vocabulary, shape.channels);
    let Forward { input, weight, bias, targets, mut logits, mut losses, mut gradients } = arguments;
    if rows == 0
        && let Some(Gradients { grad_weight, grad_bias, .. }) = &gradients
    {
        for (grad, write) in [grad_weight, grad_bias].into_iter().flatten() {
            if *write == Write::Set && !grad.is_empty() {
                gpu.driver().fill(gpu.stream(), grad.address(), 0, grad.len() as u64)?;
            }
        }
    }
    for start in (0..rows).step_by(shape.chunk_rows) {
        let chunk = start..rows.min(start + shape.chunk_rows);
        let elements = chunk.len() * vocabulary;
        let of_channels = chunk.start * channels..chunk.end * channels;
        let input = input.slice(of_channels.clone());
        let layer = ops::linear::Shape { rows: chunk.len(), inputs: channels, outputs: vocabulary };
        let product = ops::linear::Forward {
            input,
            weight,
            bias,
            residual: None,
            activation: Activation::Identity,
            pre_activation: None,
            output: logits.reborrow().slice(0..elements),
        };
        linear::forward(gpu, &layer, product)?;
        let loss_shape = loss::Shape { rows: chunk.len(), ..shape.loss };
        let targets = targets.slice(chunk.clone());
        let losses = losses.reborrow().slice(chunk);
        let Some(gradients) = &mut gradients else {
            let logits = logits.reborrow().slice(0..elements);
            let arguments = loss::Forward { logits: logits.as_view(), targets, class_weights: None, losses };
            softmax_cross_entropy::forward(gpu, &loss_shape, arguments)?;
            continue;
        };
        let arguments = loss::ForwardBackward {
            logits: logits.reborrow().slice(0..elements),
            targets,
            class_weights: None,
            losses,
            grad_loss: gradients.grad_loss,
        };
        softmax_cross_entropy::forward_backward(gpu, &loss_shape, arguments)?;
        // The first chunk does with these gradients what the caller asks for, the others add to them.
        let of_all = |write| if start == 0 { write } else { Write::Add };
        let grads = Grads {
            rows: layer.rows,
            columns: vocabulary,
            inputs: channels,
            input,
            weight,
            grad_input: gradients.grad_input.as_mut().map(|(grad, write)| (grad.reborrow().slice(of_channels), *write)),
            grad_weight: gradients
                .grad_weight
                .as_mut()
                .map(|(grad, write)| (grad.reborrow().slice(0..vocabulary * channels), of_all(*write))),
            grad_bias: gradients
                .grad_bias
                .as_mut()
                .map(|(grad, write)| (grad.reborrow().slice(0..vocabulary), of_all(*write))),
        };
        let workspace = gpu.workspace(grads.workspace_bytes())?;
        grads.compute(gpu, logits.reborrow().slice(0..elements).as_view(), workspace)?;
    }
    Ok(())
}

pub(crate) mod checks {
    use super::*;
    use crate::gpu::checks::Check;
    use crate::gpu::testing::Buffer;
    use crate::ops::Device;
    use crate::ops::linear_cross_entropy::{forward, reference};
    use crate::ops::testing::{Random, assert_close, double};

    fn chunks_of_any_size_match_the_reference(device: &Device) {
        let mut random = Random::fresh();
        for (rows, vocabulary, channels) in [(1, 3, 1), (17, 113, 33), (203, 65, 48)] {
            let input = random.normal(rows * channels);
            let scale = 1.0 / (channels as f32).sqrt();
            let weight: Vec<f32> = random.normal(vocabulary * channels).iter().map(|w| w * scale).collect();
            let bias = random.normal(vocabulary);
            let targets: Vec<i32> =
                (0..rows).map(|row| if row % 5 == 3 { -100 } else { random.below(vocabulary) as i32 }).collect();
            let loss = loss::Shape { rows, vocabulary, label_smoothing: 0.1, ignored: -100 };
            let cases = [(7, None, true), (7, Some(0.5), true), (64, None, false), (1000, Some(0.5), true)];
            for (chunk_rows, before, has_bias) in cases.into_iter().chain([(1000, None, false)]) {
                let shape = Shape { loss, channels, chunk_rows };
                let expected = {
                    let bias = has_bias.then(|| double(&bias));
                    reference::forward(&shape, &double(&input), &double(&weight), bias.as_deref(), &targets, 0.25)
                };
                let grad_of = |length| match before {
                    None => Buffer::poisoned(device, length),
                    Some(value) => Buffer::upload(device, &vec![value; length]),
                };
                let (mut grad_input, mut grad_weight) = (grad_of(input.len()), grad_of(weight.len()));
                let write = if before.is_some() { Write::Add } else { Write::Set };
                let (x, w) = (Buffer::upload(device, &input), Buffer::upload(device, &weight));
                let (t, b) = (Buffer::upload(device, &targets), Buffer::upload(device, &bias));
                let mut grad_bias = grad_of(vocabulary);
                let mut evaluated = Buffer::poisoned(device, rows);
                let mut losses = Buffer::poisoned(device, rows);
                let mut logits = Buffer::poisoned(device, chunk_rows.min(rows) * vocabulary);
                let gradients = Gradients {
                    grad_loss: 0.25,
                    grad_input: Some((grad_input.view_mut(), write)),
                    grad_weight: Some((grad_weight.view_mut(), write)),
                    grad_bias: has_bias.then(|| (grad_bias.view_mut(), write)),
                };
                for (losses, gradients) in [(losses.view_mut(), Some(gradients)), (evaluated.view_mut(), None)] {
                    let (input, weight, targets) = (x.view(), w.view(), t.view());
                    let (bias, logits) = (has_bias.then(|| b.view()), logits.view_mut());
                    let arguments = Forward { input, weight, bias, targets, logits, losses, gradients };
                    forward(device, &shape, arguments).unwrap();
                }
                let name =
                    format!("{rows} {vocabulary} {channels} by {chunk_rows}, bias {has_bias}, added to {before:?}");
                let added =
                    |grad: &[f64]| -> Vec<f64> { grad.iter().map(|g| g + f64::from(before.unwrap_or(0.0))).collect() };
                assert_close(&format!("{name}: losses"), &losses.download(), &expected.losses, 1e-5, 1e-7);
                assert_close(&format!("{name}: evaluated"), &evaluated.download(), &expected.losses, 1e-5, 1e-7);
                let (dx, dw) = (added(&expected.grad_input), added(&expected.grad_weight));
                assert_close(&format!("{name}: grad_input"), &grad_input.download(), &dx, 1e-5, 1e-7);
                assert_close(&format!("{name}: grad_weight"), &grad_weight.download(), &dw, 1e-5, 1e-7);
                if has_bias {
                    let db = added(&expected.grad_bias);
                    assert_close(&format!("{name}: grad_bias"), &grad_bias.download(), &db, 1e-5, 1e-7);
                }
            }
        }
    }

    /// What holds on every GPU.
    pub(crate) const ALL: &[Check] = &[Check {
        name: "linear_cross_entropy: chunks of any size match the reference",
        claim: chunks_of_any_size_match_the_reference,
    }];

    #[test]
    fn hold_on_the_emulator() {
        crate::gpu::checks::hold(ALL);
    }
}
