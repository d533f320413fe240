//! What the tests of every backend try: shapes, and positions.

use super::Shape;
use crate::ops::testing::Random;

/// A shape of `(batch, time, heads, key_value_heads, head_size, rotary_columns, base, first_position)`.
pub fn shape(sizes: (usize, usize, usize, usize, usize, usize, f64, usize)) -> Shape {
    let (batch, time, heads, key_value_heads, head_size, rotary_columns, base, first_position) = sizes;
    Shape { batch, time, heads, key_value_heads, head_size, rotary_columns, base, first_position }
}

/// Single tokens, odd head sizes, shared keys, some and all columns turned, positions far out; with and without ids.
pub fn cases(random: &mut Random) -> Vec<(Shape, Option<Vec<i32>>)> {
    let shapes = [
        (1, 1, 1, 1, 2, 2, 10_000.0, 3),
        (2, 5, 3, 1, 7, 6, 10_000.0, 0),
        (1, 113, 2, 2, 17, 10, 10_000.0, 99_900),
        (3, 9, 12, 12, 64, 64, 10_000.0, 0),
        (2, 3, 9, 3, 64, 24, 500_000.0, 1_000),
        (1, 4, 4, 2, 128, 128, 500_000.0, 0),
        (1, 2, 1, 1, 203, 202, 1e6, 0),
        (1, 3, 2, 1, 8, 0, 10_000.0, 0),
        (0, 3, 2, 1, 8, 8, 10_000.0, 0),
    ];
    let mut cases = Vec::new();
    for shape in shapes.map(shape) {
        let ids = (0..shape.batch * shape.time).map(|_| random.below(100_000) as i32).collect();
        cases.extend([(shape, None), (shape, Some(ids))]);
    }
    cases
}
