//! What the tests of every backend try: shapes, and ids as text has them.

use super::Shape;
use crate::ops::testing::Random;

/// A shape of `(batch, time, channels, vocabulary, positions, first_position)`.
pub fn shape(
    (batch, time, channels, vocabulary, positions, first_position): (usize, usize, usize, usize, usize, usize),
) -> Shape {
    Shape { batch, time, channels, vocabulary, positions, first_position }
}

/// Single elements, odd sizes, tables without and with positions, more tokens than places.
pub fn shapes() -> Vec<Shape> {
    [
        (1, 1, 1, 1, 0, 0),
        (3, 5, 3, 7, 5, 0),
        (2, 17, 113, 65, 40, 20),
        (2, 113, 203, 300, 113, 0),
        (3, 64, 1023, 1500, 64, 0),
        (2, 50, 24, 70_000, 60, 5),
    ]
    .map(shape)
    .to_vec()
}

/// Random ids, of which half are one of three tokens, as in text.
pub fn ids(random: &mut Random, shape: &Shape) -> Vec<i32> {
    let bound = |i: usize| if i.is_multiple_of(2) { shape.vocabulary } else { shape.vocabulary.min(3) };
    (0..shape.batch * shape.time).map(|i| random.below(bound(i)) as i32).collect()
}
