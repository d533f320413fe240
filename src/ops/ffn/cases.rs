//! What the tests of every backend try: random operands of one network.

use super::Shape;
use crate::ops::linear::Activation;
use crate::ops::testing::Random;

/// What gradients are called, in the order in which tests have them.
pub const GRAD_NAMES: [&str; 6] = ["input", "weight_in", "bias_in", "weight_out", "bias_out", "pre_activation"];

/// Operands of one case.
pub struct Case {
    pub shape: Shape,
    pub activation: Activation,
    pub input: Vec<f32>,
    pub weight_in: Vec<f32>,
    pub bias_in: Vec<f32>,
    pub weight_out: Vec<f32>,
    pub bias_out: Vec<f32>,
    pub residual: Vec<f32>,
    pub grad_output: Vec<f32>,
}

impl Case {
    pub fn new(random: &mut Random, [rows, channels, hidden]: [usize; 3], activation: Activation) -> Self {
        let z = hidden * activation.width();
        let mut scaled = |length: usize, inputs: usize| -> Vec<f32> {
            random.normal(length).iter().map(|w| w / (inputs as f32).sqrt()).collect()
        };
        let (weight_in, weight_out) = (scaled(z * channels, channels), scaled(channels * hidden, hidden));
        Self {
            shape: Shape { rows, channels, hidden },
            activation,
            input: random.normal(rows * channels),
            weight_in,
            bias_in: random.normal(z),
            weight_out,
            bias_out: random.normal(channels),
            residual: random.normal(rows * channels),
            grad_output: random.normal(rows * channels),
        }
    }
}
