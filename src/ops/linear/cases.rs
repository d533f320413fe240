//! What the tests of every backend try: random operands of one linear layer.

use super::{Activation, Shape};
use crate::ops::testing::Random;

/// All of them.
pub const ACTIVATIONS: [Activation; 6] = [
    Activation::Identity,
    Activation::Relu,
    Activation::GeluTanh,
    Activation::GeluErf,
    Activation::SwiGlu,
    Activation::Tanh,
];

/// Operands of one case.
pub struct Case {
    pub shape: Shape,
    pub activation: Activation,
    pub input: Vec<f32>,
    pub weight: Vec<f32>,
    pub bias: Vec<f32>,
    pub residual: Vec<f32>,
    pub grad_output: Vec<f32>,
}

impl Case {
    pub fn new(random: &mut Random, (rows, inputs, outputs): (usize, usize, usize), activation: Activation) -> Self {
        let columns = outputs * activation.width();
        // Scaled so that pre-activations are of order one, where activations bend.
        let scale = 1.0 / (inputs as f32).sqrt();
        Self {
            shape: Shape { rows, inputs, outputs },
            activation,
            input: random.normal(rows * inputs),
            weight: random.normal(columns * inputs).iter().map(|w| w * scale).collect(),
            bias: random.normal(columns),
            residual: random.normal(rows * outputs),
            grad_output: random.normal(rows * outputs),
        }
    }

    /// Columns of the pre-activation.
    pub fn columns(&self) -> usize {
        self.shape.outputs * self.activation.width()
    }
}
