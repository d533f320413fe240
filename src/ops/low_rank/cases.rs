//! What the tests of every backend try: random operands of one adapted layer.

use super::{Shape, reference};
use crate::ops::testing::{Random, double};

/// Rows, inputs, outputs and rank: single elements, less than a vector, no whole number of vectors, tiles or blocks of
/// ranks, more than one task of rows, and no rows at all.
pub const SIZES: [[usize; 4]; 9] = [
    [1, 1, 1, 1],
    [0, 5, 3, 2],
    [2, 3, 17, 1],
    [7, 33, 5, 3],
    [65, 50, 48, 8],
    [64, 96, 31, 4],
    [131, 113, 203, 9],
    [1030, 37, 20, 17],
    [203, 12, 130, 33],
];

/// Operands of one case.
pub struct Case {
    pub shape: Shape,
    pub input: Vec<f32>,
    pub weight: Vec<f32>,
    pub grad_output: Vec<f32>,
    pub down: Vec<f32>,
    pub up: Vec<f32>,
    pub scale: f32,
}

impl Case {
    pub fn new(random: &mut Random, [rows, inputs, outputs, rank]: [usize; 4]) -> Self {
        Self {
            shape: Shape { rows, inputs, outputs, rank },
            input: random.normal(rows * inputs),
            weight: random.normal(outputs * inputs),
            grad_output: random.normal(rows * outputs),
            down: random.normal(rank * inputs),
            up: random.normal(outputs * rank),
            scale: 1.7,
        }
    }

    /// As arguments of the CPU.
    #[cfg(test)]
    pub fn factors(&self) -> super::Factors<'_> {
        super::Factors { down: (&self.down).into(), up: (&self.up).into(), scale: self.scale }
    }

    /// The merged weight, from the reference.
    pub fn merged(&self) -> Vec<f64> {
        let [weight, down, up] = [&self.weight, &self.down, &self.up].map(|values| double(values));
        reference::merge(&self.shape, &weight, &down, &up, f64::from(self.scale))
    }

    /// The gradients of A and B, from the reference.
    pub fn gradients(&self) -> [Vec<f64>; 2] {
        let [input, grad_output] = [&self.input, &self.grad_output].map(|values| double(values));
        let [down, up] = [&self.down, &self.up].map(|values| double(values));
        let scale = f64::from(self.scale);
        reference::backward(&self.shape, &input, &grad_output, &down, &up, scale).into()
    }
}
