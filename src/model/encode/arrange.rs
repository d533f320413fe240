//! Where each text goes: a few shapes of batches, and a plan that puts texts into them.
//!
//! Padded: a text has a row of its own, in the smallest length that holds it; texts of like lengths go together.
//! Packed: texts lie side by side in rows of one length, each in the first row of the batch with room for it, the longest
//! first: the rows are nearly full. A batch takes the smallest shape that holds it, so that a single short text does not
//! pay for a full one.

use super::super::config::Pooling;

/// A text, or an image, as a model reads it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Example {
    /// Token ids, special ones included.
    pub ids: Vec<u32>,
    /// Where the second text begins, whose tokens are of kind 1; the length where there is none.
    pub second: usize,
    /// For [`Output::Tokens`](super::Output::Tokens): where tokens are to be predicted, in order.
    pub positions: Vec<usize>,
    /// Of an image: the numbers of each place's patch.
    pub patches: Vec<f32>,
}

impl Example {
    /// One text.
    pub fn new(ids: Vec<u32>) -> Self {
        Self { second: ids.len(), ids, ..Self::default() }
    }
}

/// How texts are laid out; the number is that of tokens of a batch, padding included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrangement {
    Padded { batch_tokens: usize },
    Packed { batch_tokens: usize },
}

impl Default for Arrangement {
    /// Packed, in batches that keep all cores busy and stay near the caches.
    fn default() -> Self {
        Self::Packed { batch_tokens: 2048 }
    }
}

/// Sizes of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shape {
    pub rows: usize,
    pub time: usize,
    /// Most examples.
    pub examples: usize,
}

/// The shortest rows.
const SHORTEST: usize = 16;

/// Packed rows are at least this long, so that several short texts share one.
const PACKED: usize = 128;

/// After so many texts that a batch has no room for, it counts as full.
const LOOK_AHEAD: usize = 256;

impl Arrangement {
    /// The shapes of batches: for each length of rows, of falling numbers of rows down to one. `most` is the longest
    /// text that may come, `block` the longest that the model takes.
    pub(super) fn shapes(&self, most: usize, block: usize) -> Vec<Shape> {
        let shorter_than = |longest: usize| {
            std::iter::successors(Some(SHORTEST), |time| Some(2 * time)).take_while(move |&time| time < longest)
        };
        match *self {
            Self::Padded { batch_tokens } => {
                let of_length =
                    |time: usize| falling(batch_tokens / time).map(move |rows| Shape { rows, time, examples: rows });
                shorter_than(most).chain([most]).flat_map(of_length).collect()
            }
            Self::Packed { batch_tokens } => {
                let longest = most.max(PACKED.min(block));
                let shape = |rows: usize, time: usize| Shape { rows, time, examples: (rows * time).div_ceil(8) };
                let single = shorter_than(longest).map(|time| shape(1, time));
                falling(batch_tokens / longest).map(|rows| shape(rows, longest)).chain(single).collect()
            }
        }
    }

    /// The length of the rows of a batch that begins with a text of this length.
    fn time(&self, shapes: &[Shape], length: usize) -> usize {
        let lengths = shapes.iter().map(|shape| shape.time).filter(|&time| time >= length);
        let time = match self {
            Self::Padded { .. } => lengths.min(),
            Self::Packed { .. } => lengths.max(),
        };
        time.expect("the longest rows hold every example")
    }
}

/// `rows` (one at least), a quarter of it, and so on to one.
fn falling(rows: usize) -> impl Iterator<Item = usize> {
    std::iter::successors(Some(rows.max(1)), |&rows| (rows > 1).then(|| (rows / 4).max(1)))
}

/// Where an example lies in a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Placed {
    pub example: usize,
    pub row: usize,
    pub start: usize,
}

/// A batch: the number of its shape, and its examples by rows and from the left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Planned {
    pub shape: usize,
    pub placed: Vec<Placed>,
}

/// Puts every example, none longer than the longest rows, into a batch; no batch has more than `slots` positions.
pub(super) fn plan(
    arrangement: &Arrangement,
    shapes: &[Shape],
    examples: &[Example],
    slots: Option<usize>,
) -> Vec<Planned> {
    let mut order: Vec<usize> = (0..examples.len()).collect();
    order.sort_by_key(|&example| (std::cmp::Reverse(examples[example].ids.len()), example));
    let mut planned = Vec::new();
    while let Some(&first) = order.first() {
        let time = arrangement.time(shapes, examples[first].ids.len());
        let largest = shapes.iter().find(|shape| shape.time == time).expect("a shape of this length");
        let mut filling = Filling::new(*largest, matches!(arrangement, Arrangement::Padded { .. }), slots);
        let mut later = Vec::new();
        for &example in &order {
            if later.len() >= LOOK_AHEAD || !filling.add(example, &examples[example]) {
                later.push(example);
            }
        }
        assert!(later.len() < order.len(), "the first example fits into an empty batch");
        order = later;
        let Filling { used, mut placed, .. } = filling;
        placed.sort_by_key(|placed| (placed.row, placed.start));
        let fullest = used.iter().copied().max().unwrap_or(0);
        let fits = |shape: &Shape| shape.rows >= used.len() && shape.time >= fullest && shape.examples >= placed.len();
        let fitting = shapes.iter().enumerate().filter(|(_, shape)| fits(shape));
        let (shape, _) = fitting.min_by_key(|(_, shape)| shape.rows * shape.time).expect("the largest fits");
        planned.push(Planned { shape, placed });
    }
    planned
}

/// A batch that is being filled.
struct Filling {
    shape: Shape,
    is_padded: bool,
    slots: Option<usize>,
    /// Tokens of each row that has any.
    used: Vec<usize>,
    placed: Vec<Placed>,
}

impl Filling {
    fn new(shape: Shape, is_padded: bool, slots: Option<usize>) -> Self {
        Self { shape, is_padded, slots, used: Vec::new(), placed: Vec::new() }
    }

    /// Places an example where there is room for it.
    fn add(&mut self, example: usize, of: &Example) -> bool {
        let (length, Shape { rows, time, examples }) = (of.ids.len(), self.shape);
        let slots = self.slots.map(|slots| slots.checked_sub(of.positions.len()));
        if self.placed.len() == examples || slots == Some(None) {
            return false;
        }
        let row = if self.is_padded { None } else { self.used.iter().position(|used| used + length <= time) };
        let row = match row {
            Some(row) => row,
            None if self.used.len() < rows && length <= time => {
                self.used.push(0);
                self.used.len() - 1
            }
            None => return false,
        };
        self.placed.push(Placed { example, row, start: self.used[row] });
        self.used[row] += length;
        self.slots = slots.flatten();
        true
    }
}

/// What a program is given; all lists are `(rows, time)`, row by row.
#[derive(Clone, Debug, Default)]
pub(super) struct Batch {
    pub ids: Vec<i32>,
    pub positions: Vec<i32>,
    pub types: Vec<i32>,
    /// `(rows, time, 2)`
    pub documents: Vec<i32>,
    /// `(rows, time, numbers)`
    pub patches: Vec<f32>,
    placed: Vec<Placed>,
}

impl Batch {
    pub(super) fn fill(&mut self, shape: Shape, placed: &[Placed], examples: &[Example]) {
        let size = shape.rows * shape.time;
        for (list, size) in [
            (&mut self.ids, size),
            (&mut self.positions, size),
            (&mut self.types, size),
            (&mut self.documents, 2 * size),
        ] {
            list.clear();
            list.resize(size, 0);
        }
        for &Placed { example, row, start } in placed {
            let example = &examples[example];
            let (at, length) = (row * shape.time + start, example.ids.len());
            for (index, &id) in example.ids.iter().enumerate() {
                self.ids[at + index] = id as i32;
                self.positions[at + index] = index as i32;
                self.types[at + index] = i32::from(index >= example.second);
                self.documents[2 * (at + index)] = start as i32;
                self.documents[2 * (at + index) + 1] = (start + length) as i32;
            }
        }
        self.placed = placed.to_vec();
    }

    /// Puts the patches of the examples, of so many `numbers` each, in their places.
    pub(super) fn fill_patches(&mut self, shape: Shape, examples: &[Example], numbers: usize) {
        self.patches.clear();
        self.patches.resize(shape.rows * shape.time * numbers, 0.0);
        for &Placed { example, row, start } in &self.placed {
            let (at, patches) = ((row * shape.time + start) * numbers, &examples[example].patches);
            self.patches[at..at + patches.len()].copy_from_slice(patches);
        }
    }

    /// The ranges of rows that are picked, `count` of them; (0, 0) for those that are left over.
    pub(super) fn ranges(&self, pick: Pick, shape: Shape, examples: &[Example], count: usize) -> Vec<i32> {
        let mut ranges = Vec::with_capacity(2 * count);
        for placed in &self.placed {
            let start = placed.row * shape.time + placed.start;
            let example = &examples[placed.example];
            match pick {
                Pick::Pooled(pooling) => ranges.extend(pooling.range(start, start + example.ids.len())),
                Pick::Positions => {
                    ranges.extend(example.positions.iter().flat_map(|position| {
                        let row = (start + position) as i32;
                        [row, row + 1]
                    }));
                }
            }
        }
        ranges.resize(2 * count, 0);
        ranges
    }
}

/// Which rows of a trunk a head is for.
#[derive(Clone, Copy, Debug)]
pub(super) enum Pick {
    /// The vector of each text.
    Pooled(Pooling),
    /// [`Example::positions`].
    Positions,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(lengths: &[usize]) -> Vec<Example> {
        lengths.iter().map(|&length| Example::new(vec![7; length])).collect()
    }

    #[test]
    fn every_text_has_a_place_of_its_own_and_no_batch_more_than_its_shape() {
        let lengths: Vec<usize> = (0..300).map(|index| 2 + index * 7919 % 199).collect();
        let mut examples = texts(&lengths);
        examples.iter_mut().for_each(|example| example.positions = vec![0, 1]);
        let longest = *lengths.iter().max().unwrap();
        for arrangement in [Arrangement::Padded { batch_tokens: 1000 }, Arrangement::Packed { batch_tokens: 1000 }] {
            let shapes = arrangement.shapes(longest, 512);
            let plan = plan(&arrangement, &shapes, &examples, Some(12));
            let mut seen = vec![0; examples.len()];
            for Planned { shape, placed } in &plan {
                let Shape { rows, time, examples: most } = shapes[*shape];
                assert!(placed.len() <= most.min(6), "two positions of twelve each");
                let mut taken = vec![false; rows * time];
                for &Placed { example, row, start } in placed {
                    seen[example] += 1;
                    assert!(row < rows && start + lengths[example] <= time);
                    for place in &mut taken[row * time + start..][..lengths[example]] {
                        assert!(!std::mem::replace(place, true), "two texts in one place");
                    }
                }
            }
            assert!(seen.iter().all(|&count| count == 1));
        }
    }

    #[test]
    fn packed_rows_are_nearly_full_and_one_short_text_takes_a_short_row() {
        let lengths: Vec<usize> = (0..400).map(|index| 5 + index * 31 % 60).collect();
        let (examples, packed) = (texts(&lengths), Arrangement::default());
        let shapes = packed.shapes(64, 512);
        let plan = plan(&packed, &shapes, &examples, None);
        let room: usize = plan.iter().map(|planned| shapes[planned.shape].rows * shapes[planned.shape].time).sum();
        let tokens: usize = lengths.iter().sum();
        assert!(tokens as f64 > 0.9 * room as f64, "{tokens} tokens in {room} places");
        for arrangement in [Arrangement::default(), Arrangement::Padded { batch_tokens: 2048 }] {
            let shapes = arrangement.shapes(300, 512);
            let one = super::plan(&arrangement, &shapes, &texts(&[9]), None);
            assert_eq!((shapes[one[0].shape].rows, shapes[one[0].shape].time), (1, 16));
        }
    }
}
