//! The feed-forward network on the CPU: two products in each direction, plus the two weight gradients.
//!
//! The hidden layer's activation is the first product's epilogue, its derivative the epilogue of `dy · W2`; neither
//! takes a pass over memory. SwiGLU does, in place: `dy · W2` is written into the gate columns of `dz`, and one pass
//! makes both halves of `dz` from it.

use super::gemm::{self, Epilogue, Matrix, Product};
use super::linear::{self, Grads};
use super::{Cpu, Disjoint};
use crate::ops::ffn::{Backward, Forward, Hidden, Shape};
use crate::ops::linear::Activation;
use crate::ops::{self, Write};

/// Computes the network's output; see [`crate::ops::ffn::forward`].
pub fn forward(cpu: &Cpu, shape: &Shape, arguments: Forward<'_>) {
    let Shape { rows, channels, hidden } = *shape;
    let Forward {
        input,
        weight_in,
        bias_in,
        weight_out,
        bias_out,
        residual,
        activation,
        pre_activation,
        activated,
        output,
    } = arguments;
    let activated = activated.host();
    linear::forward(
        cpu,
        &ops::linear::Shape { rows, inputs: channels, outputs: hidden },
        ops::linear::Forward {
            input,
            weight: weight_in,
            bias: bias_in,
            residual: None,
            activation,
            pre_activation: Some(pre_activation),
            output: (&mut *activated).into(),
        },
    );
    linear::forward(
        cpu,
        &ops::linear::Shape { rows, inputs: hidden, outputs: channels },
        ops::linear::Forward {
            input: (&*activated).into(),
            weight: weight_out,
            bias: bias_out,
            residual,
            activation: Activation::Identity,
            pre_activation: None,
            output,
        },
    );
}

/// Computes the gradients that are asked for; see [`crate::ops::ffn::backward`].
pub fn backward(cpu: &Cpu, shape: &Shape, arguments: Backward<'_>) {
    let Shape { rows, channels, hidden } = *shape;
    let activation = arguments.activation;
    let is_swiglu = activation == Activation::SwiGlu;
    let columns = hidden * activation.width();
    let z = arguments.pre_activation.host();
    let grad_output = arguments.grad_output.host();
    let grad_z = arguments.grad_pre_activation.host();

    let activated: &[f32] = match arguments.activated {
        Hidden::Kept(activated) => activated.host(),
        // Only the gradient of the second weight reads it.
        Hidden::Recompute(memory) if arguments.grad_weight_out.is_some() => {
            let memory = memory.host();
            if is_swiglu {
                linear::swiglu(cpu, rows, hidden, z, None, memory);
            } else {
                linear::activate(cpu, activation, z, memory);
            }
            memory
        }
        Hidden::Recompute(memory) => memory.host(),
    };
    Grads {
        shape: gemm::Shape { rows, columns: channels, depth: hidden },
        input: activated,
        weight: arguments.weight_out.host(),
        grad_input: None,
        grad_weight: arguments.grad_weight_out.map(|(grad, write)| (grad.host(), write)),
        grad_bias: arguments.grad_bias_out.map(|(grad, write)| (grad.host(), write)),
    }
    .compute(cpu, grad_output);

    let wants_inner =
        arguments.grad_input.is_some() || arguments.grad_weight_in.is_some() || arguments.grad_bias_in.is_some();
    if !(wants_inner || arguments.wants_grad_pre_activation) {
        return;
    }
    let derivative_at = (!is_swiglu && activation != Activation::Identity).then_some((activation, z));
    gemm::run(
        cpu,
        Product {
            shape: gemm::Shape { rows, columns: hidden, depth: channels },
            left: Matrix::straight(grad_output, channels),
            right: Matrix::straight(arguments.weight_out.host(), hidden),
            target: &mut *grad_z,
            target_stride: columns,
            write: Write::Set,
            epilogue: Epilogue { derivative_at, ..Epilogue::default() },
            left_sums: None,
        },
    );
    if is_swiglu {
        let grad_z = Disjoint::new(&mut *grad_z);
        // SAFETY: the gradient of the hidden activation is the left half of `grad_z`, which the call rewrites in
        // place; nothing else uses it meanwhile.
        unsafe { linear::swiglu_backward(cpu, rows, hidden, z, grad_z.as_ptr(), columns, grad_z) };
    }
    Grads {
        shape: gemm::Shape { rows, columns, depth: channels },
        input: arguments.input.host(),
        weight: arguments.weight_in.host(),
        grad_input: arguments.grad_input.map(|(grad, write)| (grad.host(), write)),
        grad_weight: arguments.grad_weight_in.map(|(grad, write)| (grad.host(), write)),
        grad_bias: arguments.grad_bias_in.map(|(grad, write)| (grad.host(), write)),
    }
    .compute(cpu, grad_z);
}
