//! Output projection and cross-entropy on the CPU: each chunk of rows goes through all of its products while its
//! logits are there.
//!
//! A chunk: `logits = x · Wᵀ + b`; the loss turns them into their gradient in place; `dx = dlogits · W` and
//! `dW += dlogitsᵀ · x`, with `db` summed on the way.

use super::gemm::{self, Epilogue, Matrix, Product};
use super::linear::Grads;
use super::{Cpu, softmax_cross_entropy};
use crate::ops::linear_cross_entropy::{Forward, Shape};
use crate::ops::softmax_cross_entropy as loss;
use crate::ops::{View, ViewMut, Write};

/// Computes losses and gradients; see [`crate::ops::linear_cross_entropy::forward`].
pub fn forward(cpu: &Cpu, shape: &Shape, arguments: Forward<'_>) {
    let (rows, vocabulary, channels) = (shape.loss.rows, shape.loss.vocabulary, shape.channels);
    let (input, weight, targets) = (arguments.input.host(), arguments.weight.host(), arguments.targets.host());
    let bias = arguments.bias.map(|bias| bias.host());
    let (logits, losses) = (arguments.logits.host(), arguments.losses.host());
    let mut gradients = arguments.gradients.map(|gradients| {
        let grad_input = gradients.grad_input.map(|(grad, write)| (grad.host(), write));
        let grad_weight = gradients.grad_weight.map(|(grad, write)| (grad.host(), write));
        let grad_bias = gradients.grad_bias.map(|(grad, write)| (grad.host(), write));
        (gradients.grad_loss, grad_input, grad_weight, grad_bias)
    });
    if rows == 0
        && let Some((_, _, grad_weight, grad_bias)) = &mut gradients
    {
        for (grad, write) in [grad_weight, grad_bias].into_iter().flatten() {
            if *write == Write::Set {
                grad.fill(0.0);
            }
        }
    }
    for start in (0..rows).step_by(shape.chunk_rows) {
        let chunk = start..rows.min(start + shape.chunk_rows);
        let logits = &mut logits[..chunk.len() * vocabulary];
        let input = &input[chunk.start * channels..chunk.end * channels];
        let product = gemm::Shape { rows: chunk.len(), columns: vocabulary, depth: channels };
        gemm::run(
            cpu,
            Product {
                shape: product,
                left: Matrix::straight(input, channels),
                right: Matrix::transposed(weight, channels),
                target: &mut *logits,
                target_stride: vocabulary,
                write: Write::Set,
                epilogue: Epilogue { bias, ..Epilogue::default() },
                left_sums: None,
            },
        );
        let loss_shape = loss::Shape { rows: chunk.len(), ..shape.loss };
        let targets = View::from(&targets[chunk.clone()]);
        let losses = ViewMut::from(&mut losses[chunk.clone()]);
        let Some((grad_loss, grad_input, grad_weight, grad_bias)) = &mut gradients else {
            let logits = View::from(&*logits);
            softmax_cross_entropy::forward(
                cpu,
                &loss_shape,
                loss::Forward { logits, targets, class_weights: None, losses },
            );
            continue;
        };
        let arguments = loss::ForwardBackward {
            logits: (&mut *logits).into(),
            targets,
            class_weights: None,
            losses,
            grad_loss: *grad_loss,
        };
        softmax_cross_entropy::forward_backward(cpu, &loss_shape, arguments);
        let grad_input = grad_input.as_mut();
        // The first chunk does what the caller asks for, the others add to it.
        let of_all = |write| if start == 0 { write } else { Write::Add };
        Grads {
            shape: product,
            input,
            weight,
            grad_input: grad_input
                .map(|(grad, write)| (&mut grad[chunk.start * channels..chunk.end * channels], *write)),
            grad_weight: grad_weight.as_mut().map(|(grad, write)| (&mut **grad, of_all(*write))),
            grad_bias: grad_bias.as_mut().map(|(grad, write)| (&mut **grad, of_all(*write))),
        }
        .compute(cpu, logits);
    }
}
