//! What the tests of every backend try: shapes, documents with padding, and what the reference makes of them.

use super::{Shape, Window, reference};
use crate::ops::Write;
use crate::ops::testing::{Random, double};

/// Arguments of both passes.
pub struct Case {
    pub shape: Shape,
    pub input: Vec<f32>,
    pub weight: Vec<f32>,
    pub bias: Vec<f32>,
    pub documents: Option<Vec<i32>>,
    pub grad_output: Vec<f32>,
}

/// Single values, odd sizes, every window, one tap and the most, dilations beyond the row; one document or several.
pub fn cases(random: &mut Random) -> Vec<Case> {
    const CAUSAL: Window = Window::Causal;
    const CENTRED: Window = Window::Centred { excludes_self: false };
    const SURROUNDINGS: Window = Window::Centred { excludes_self: true };
    let shapes = [
        (1, 1, 1, 1, 1, CAUSAL),
        (2, 5, 3, 3, 1, SURROUNDINGS),
        (3, 113, 17, 7, 1, CENTRED),
        (1, 203, 70, 31, 1, CAUSAL),
        (2, 97, 33, 5, 3, SURROUNDINGS),
        (1, 60, 130, 4, 16, CAUSAL),
        (2, 40, 5, 3, 1000, CENTRED),
        (1, 9, 64, 31, 2, CENTRED),
        (2, 70, 8, 1, 1, SURROUNDINGS),
        (0, 4, 3, 3, 1, CAUSAL),
    ];
    let mut cases = Vec::new();
    for (batch, time, channels, taps, dilation, window) in shapes {
        for has_documents in [false, true] {
            let shape = Shape { batch, time, channels, taps, dilation, window };
            cases.push(Case::new(random, shape, has_documents));
        }
    }
    cases
}

impl Case {
    /// Random values; documents of random lengths, some of them padding.
    pub fn new(random: &mut Random, shape: Shape, has_documents: bool) -> Self {
        let Shape { batch, time, channels, taps, .. } = shape;
        let documents = has_documents.then(|| {
            let mut documents = Vec::with_capacity(2 * batch * time);
            for _ in 0..batch {
                let mut first = 0;
                while first < time {
                    let end = time.min(first + 1 + random.below(time.div_ceil(2)));
                    let range = if random.below(4) == 0 { [0, 0] } else { [first as i32, end as i32] };
                    documents.extend((first..end).flat_map(|_| range));
                    first = end;
                }
            }
            documents
        });
        Self {
            shape,
            input: random.normal(2 * batch * time * channels),
            weight: random.normal(channels * taps),
            bias: random.normal(channels),
            documents,
            grad_output: random.normal(batch * time * channels),
        }
    }

    /// Lengths of the gradients of input, weight and bias.
    pub fn gradient_lengths(&self) -> [usize; 3] {
        [self.input.len(), self.weight.len(), self.bias.len()]
    }

    /// `(B, T, C)`
    pub fn expected_output(&self, has_bias: bool) -> Vec<f64> {
        let bias = double(&self.bias);
        let (input, weight, bias) = (double(&self.input), double(&self.weight), has_bias.then_some(bias.as_slice()));
        reference::forward(&self.shape, &input, &weight, bias, self.documents.as_deref())
    }

    /// Gradients of input, weight and bias, of which those that are added to hold `before` first.
    pub fn expected_gradients(&self, write: Write, before: &[Vec<f32>; 3]) -> [Vec<f64>; 3] {
        let (input, weight, grad_output) = (double(&self.input), double(&self.weight), double(&self.grad_output));
        let found = reference::backward(&self.shape, &input, &weight, self.documents.as_deref(), &grad_output);
        let mut gradients = [found.input, found.weight, found.bias];
        if write == Write::Add {
            for (gradient, before) in gradients.iter_mut().zip(before) {
                gradient.iter_mut().zip(before).for_each(|(sum, &before)| *sum += f64::from(before));
            }
        }
        gradients
    }
}

impl std::fmt::Display for Case {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{:?}, documents {}", self.shape, self.documents.is_some())
    }
}
