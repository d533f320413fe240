//! What the tests of every backend try: packed documents with gaps between their contexts.

use super::{NO_POSITION, Shape, Span, reference};
use crate::ops::testing::{Random, double};

/// Lengths of contexts: one position, less than a vector, more than a block of threads.
pub const LENGTHS: [&[usize]; 6] = [&[], &[1], &[3, 1, 2], &[17, 64, 5, 113], &[1023, 203, 0, 7], &[5003]];

/// Logits, spans and targets.
pub struct Case {
    pub shape: Shape,
    pub logits: Vec<f32>,
    pub spans: Vec<i32>,
    pub targets: Vec<i32>,
}

impl Case {
    /// Contexts of these lengths: every second can have no answer, every fifth is not counted, and neither is an empty
    /// one. Logits vary by `spread`.
    pub fn new(random: &mut Random, lengths: &[usize], spread: f32) -> Self {
        let (mut spans, mut targets, mut position) = (Vec::new(), Vec::new(), 0i32);
        for (index, &length) in lengths.iter().enumerate() {
            let may_have_no_answer = index % 2 == 0;
            let no_answer = if may_have_no_answer { position } else { NO_POSITION };
            // A question between "no answer" and the context.
            let first = position + 1 + random.below(4) as i32;
            let end = first + length as i32;
            spans.extend([no_answer, first, end]);
            targets.extend(match random.below(4) {
                _ if index % 5 == 4 || length == 0 => [-100; 2],
                0 if may_have_no_answer => [no_answer; 2],
                _ => [0; 2].map(|_| first + random.below(length) as i32),
            });
            position = end + random.below(3) as i32;
        }
        let positions = position as usize + 2;
        let logits = random.normal(2 * positions).iter().map(|x| x * spread - 3.0).collect();
        Self { shape: Shape { positions, spans: lengths.len(), ignored: -100 }, logits, spans, targets }
    }

    /// Losses and gradient, for a gradient of the losses of 1/4.
    pub fn reference(&self) -> (Vec<f64>, Vec<f64>) {
        reference::forward_backward(&self.shape, &double(&self.logits), &self.spans, &self.targets, 0.25)
    }

    /// One span, in a batch of its own.
    #[cfg(test)]
    pub fn alone(&self, index: usize) -> Self {
        let span = Span::of(&self.spans[3 * index..][..3]);
        let start = span.start();
        let moved = |&place: &i32| if place < 0 { place } else { place - start as i32 };
        Self {
            shape: Shape { positions: span.end - start, spans: 1, ..self.shape },
            logits: self.logits[2 * start..2 * span.end].to_vec(),
            spans: self.spans[3 * index..][..3].iter().map(moved).collect(),
            targets: self.targets[2 * index..][..2].iter().map(moved).collect(),
        }
    }

    /// Demands that positions outside the spans have no gradient.
    pub fn assert_zero_outside(&self, gradient: &[f32]) {
        let spans: Vec<Span> = self.spans.chunks(3).map(Span::of).collect();
        for (position, pair) in gradient.chunks(2).enumerate() {
            let contains = |span: &Span| span.contains(position as i32);
            assert!(spans.iter().any(contains) || pair == [0.0; 2], "position {position} has a gradient of {pair:?}");
        }
    }
}
