//! What the tests of every backend try: shapes, ids as text has them, and what the reference makes of them.

use super::{Shape, reference};
use crate::ops::Write;
use crate::ops::testing::{Random, double};

/// Where a case's position vectors come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sources {
    None,
    Learned,
    Sinusoidal,
}

/// Tables, and ids of their rows.
pub struct Case {
    pub shape: Shape,
    pub sources: Sources,
    pub token_ids: Vec<i32>,
    pub position_ids: Option<Vec<i32>>,
    pub type_ids: Option<Vec<i32>>,
    pub tokens: Vec<f32>,
    pub positions: Vec<f32>,
    pub types: Vec<f32>,
}

/// A shape of `(batch, time, channels, vocabulary, positions, types, first_position)`.
pub fn shape(sizes: (usize, usize, usize, usize, usize, usize, usize)) -> Shape {
    let (batch, time, channels, vocabulary, positions, types, first_position) = sizes;
    Shape { batch, time, channels, vocabulary, positions, types, first_position }
}

/// Single elements, odd sizes, tables without and with positions and types, more tokens than places; each with every
/// source of positions that its shape allows, with and without position ids.
pub fn cases(random: &mut Random) -> Vec<Case> {
    let shapes = [
        (1, 1, 1, 1, 0, 0, 0),
        (3, 5, 3, 7, 5, 2, 0),
        (2, 17, 113, 65, 40, 3, 20),
        (2, 113, 203, 300, 113, 0, 0),
        (3, 64, 1023, 1500, 64, 2, 0),
        (2, 50, 24, 70_000, 60, 1, 5),
    ];
    let mut cases = Vec::new();
    for shape in shapes.map(shape) {
        for sources in [Sources::None, Sources::Learned, Sources::Sinusoidal] {
            let positions = if sources == Sources::Learned { shape.positions } else { 0 };
            if sources == Sources::Learned && positions == 0 {
                continue;
            }
            for has_position_ids in [false, sources != Sources::None] {
                cases.push(Case::new(random, Shape { positions, ..shape }, has_position_ids, sources));
            }
        }
    }
    cases
}

impl Case {
    /// Random tables and ids, of which half are one of three tokens, as in text.
    pub fn new(random: &mut Random, shape: Shape, has_position_ids: bool, sources: Sources) -> Self {
        let places = shape.batch * shape.time;
        let bound = |i: usize| if i.is_multiple_of(2) { shape.vocabulary } else { shape.vocabulary.min(3) };
        let token_ids = (0..places).map(|i| random.below(bound(i)) as i32).collect();
        let positions_most = if sources == Sources::Learned { shape.positions } else { 100_000 };
        let mut ids = |most: usize| -> Vec<i32> { (0..places).map(|_| random.below(most) as i32).collect() };
        let position_ids = has_position_ids.then(|| ids(positions_most));
        let type_ids = (shape.types > 0).then(|| ids(shape.types));
        let [tokens, positions, types] =
            [shape.vocabulary, shape.positions, shape.types].map(|rows| random.normal(rows * shape.channels));
        Self { shape, sources, token_ids, position_ids, type_ids, tokens, positions, types }
    }

    /// Rows of the three tables.
    pub fn row_counts(&self) -> [usize; 3] {
        [self.shape.vocabulary, self.shape.positions, self.shape.types]
    }

    /// The ids, for the reference.
    pub fn reference_ids(&self) -> reference::Ids<'_> {
        let (positions, types) = (self.position_ids.as_deref(), self.type_ids.as_deref());
        reference::Ids { tokens: &self.token_ids, positions, types }
    }

    /// `(B, T, C)`
    pub fn expected_output(&self) -> Vec<f64> {
        let [tokens, positions, types] = [&self.tokens, &self.positions, &self.types].map(|table| double(table));
        let positions = match self.sources {
            Sources::None => None,
            Sources::Learned => Some(reference::Positions::Learned(&positions)),
            Sources::Sinusoidal => Some(reference::Positions::Sinusoidal),
        };
        let types = self.type_ids.as_ref().map(|_| types.as_slice());
        reference::forward(&self.shape, &self.reference_ids(), &reference::Tables { tokens: &tokens, positions, types })
    }

    /// Gradients of the three tables, of which those that are added to hold `before` first.
    pub fn expected_gradients(&self, grad_output: &[f32], write: Write, before: &[Vec<f32>; 3]) -> [Vec<f64>; 3] {
        let gradients = reference::backward(&self.shape, &self.reference_ids(), &double(grad_output));
        let mut gradients = [gradients.tokens, gradients.positions, gradients.types];
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
        let position_ids = if self.position_ids.is_some() { " by id" } else { "" };
        write!(formatter, "{:?}, {:?} positions{position_ids}", self.shape, self.sources)
    }
}
