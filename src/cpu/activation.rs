//! An activation by itself on the CPU: the passes that the linear layer has for what its products cannot do.

use super::{Cpu, add, linear, scratch};
use crate::ops::activation::*;
use crate::ops::linear::Activation;
use crate::ops::{View, Write};

/// Computes `y = activation(x)`.
pub fn forward(cpu: &Cpu, shape: &Shape, arguments: Forward<'_>) {
    let (input, output) = (arguments.input.host(), arguments.output.host());
    if shape.activation == Activation::SwiGlu {
        linear::swiglu(cpu, shape.rows, shape.outputs, input, None, output);
    } else {
        linear::activate(cpu, shape.activation, input, output);
    }
}

/// Computes `dx = dy ⊙ activation'(x)`.
pub fn backward(cpu: &Cpu, shape: &Shape, arguments: Backward<'_>) {
    let Backward { input, grad_output, grad_input: (grad_input, write) } = arguments;
    let compute = |target: &mut [f32]| {
        let (input, grad_output) = (input.host(), grad_output.host());
        linear::multiply_by_derivative(cpu, shape.activation, shape.outputs, input, grad_output, target);
    };
    match write {
        Write::Set => compute(grad_input.host()),
        // Rare: somebody else uses the input too.
        Write::Add => scratch::with(input.len(), |gradient| {
            compute(gradient);
            add::accumulate(cpu, View::from(&*gradient), grad_input, Write::Add);
        }),
    }
}
