//! Batches of whole examples: padded to a few lengths, or packed several to a row.
//!
//! A program is recorded for fixed shapes, so batches come in few of them. [`Arrangement::Padded`] gives each example a row of
//! the smallest bucket that holds it, and a batch holds examples of one bucket: examples of like lengths together, little
//! padding. [`Arrangement::Packed`] puts examples side by side into rows of one length (first-fit, with a small look-ahead):
//! next to no padding, for attention that stays inside each document.
//!
//! Every example comes exactly once an epoch, in an order that is a function of seed and epoch, so a [`Batcher`]'s state is a
//! few numbers and goes on exactly where it was. In the order of the data ([`Visit::InOrder`]) nothing is random: for
//! evaluation. The last batches may have empty rows; no example is lost.

mod plan;

use super::error::{Error, Result};
use super::labelled::{Kind, LabelledSet};
use plan::Plan;
use serde::{Deserialize, Serialize};

/// How examples are laid out in batches.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Arrangement {
    /// One example a row, padded to the smallest bucket that fits.
    Padded {
        /// Lengths of rows.
        buckets: Vec<usize>,
        /// Rows of a batch.
        size: BatchSize,
    },
    /// Several examples a row.
    Packed {
        /// Rows of a batch.
        rows: usize,
        /// Length of a row.
        time: usize,
        /// Examples of a batch at most.
        max_documents: usize,
    },
}

/// How many rows a batch has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BatchSize {
    /// This many, whatever their length.
    Rows(usize),
    /// As many as make up this many tokens, padding included; one at least.
    Tokens(usize),
}

/// In which order examples come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Visit {
    /// That of the data.
    InOrder,
    /// A new random one each epoch.
    Shuffled {
        /// Key of the random orders.
        seed: u64,
    },
}

/// What becomes of the two texts of an example.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Halves {
    /// They stay one sequence.
    #[default]
    Together,
    /// The second goes into [`Batch::target`], laid out as the first: for an encoder and a decoder.
    Apart,
}

/// Where an example lies in a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placed {
    /// Which example of the data.
    pub example: usize,
    /// Its row.
    pub row: usize,
    /// Position of its first token in the row.
    pub start: usize,
    /// Position after its last token.
    pub end: usize,
}

/// A batch; all its lists are `(rows, time)`, row by row.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Batch {
    /// Number of rows.
    pub rows: usize,
    /// Length of a row.
    pub time: usize,
    /// Token ids; the padding token where there is none.
    pub ids: Vec<i32>,
    /// Position of each token in its document, from 0; 0 in padding.
    pub positions: Vec<i32>,
    /// 1 in the second text of an example, else 0.
    pub token_types: Vec<i32>,
    /// `(rows, time, 2)`: the position in the row where the document of each token starts, and where it ends; (0, 0) in
    /// padding.
    pub documents: Vec<i32>,
    /// The examples: by rows, and in a row from the left.
    pub examples: Vec<Placed>,
    /// The second texts, where they are kept apart: example `i` here is example `i` there, and in the same row.
    pub target: Option<Box<Batch>>,
}

impl Batch {
    /// Tokens that are no padding.
    pub fn tokens(&self) -> usize {
        self.examples.iter().map(|placed| placed.end - placed.start).sum()
    }

    fn clear(&mut self, rows: usize, time: usize, pad: i32) {
        (self.rows, self.time) = (rows, time);
        self.examples.clear();
        let size = rows * time;
        for (list, size, value) in [
            (&mut self.ids, size, pad),
            (&mut self.positions, size, 0),
            (&mut self.token_types, size, 0),
            (&mut self.documents, 2 * size, 0),
        ] {
            list.clear();
            list.resize(size, value);
        }
    }

    /// Places a document of `length` at `start` of a row.
    fn place(&mut self, example: usize, length: usize, row: usize, start: usize) {
        let at = row * self.time + start;
        self.positions[at..at + length].iter_mut().zip(0..).for_each(|(position, index)| *position = index);
        for document in self.documents[2 * at..2 * (at + length)].chunks_exact_mut(2) {
            document.copy_from_slice(&[start as i32, (start + length) as i32]);
        }
        self.examples.push(Placed { example, row, start, end: start + length });
    }

    /// Fills in the tokens of the examples: a part of each.
    fn fill(&mut self, set: &LabelledSet, part: Part) -> Result<()> {
        for placed in &self.examples {
            let (second, length) = (set.second(placed.example), set.length(placed.example));
            let range = match part {
                Part::Whole => 0..length,
                Part::First => 0..second,
                Part::Second => second..length,
            };
            let at = placed.row * self.time + placed.start;
            let end = at + range.len();
            if range.len() != placed.end - placed.start {
                let what = format!("example {} is not as long as when the batcher was made", placed.example);
                return Err(Error::Argument(format!("{what}; give it the data that it was made for")));
            }
            set.tokens(placed.example).range(range).copy_to(&mut self.ids[at..end]);
            if part == Part::Whole {
                self.token_types[at + second..end].fill(1);
            }
        }
        Ok(())
    }
}

/// Which of an example's texts are meant.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    Whole,
    First,
    Second,
}

/// Where a batcher is; enough to go on exactly from there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BatcherState {
    /// Number of examples of the data.
    pub examples: usize,
    /// How they are laid out.
    pub arrangement: Arrangement,
    /// The order.
    pub visit: Visit,
    /// Whether texts are kept apart.
    pub halves: Halves,
    /// Whole epochs drawn so far.
    pub epoch: u64,
    /// Batches drawn of the epoch that has begun.
    pub batch: usize,
}

/// Draws batches.
pub struct Batcher {
    state: BatcherState,
    /// Lengths of both texts, or of the whole and 0.
    lengths: Vec<[u32; 2]>,
    pad: i32,
    plan: Plan,
}

impl Batcher {
    /// A batcher at the start of the first epoch.
    ///
    /// # Errors
    /// The set is empty or an example does not fit; a number is zero; texts are to be kept apart that are no translations.
    pub fn new(set: &LabelledSet, arrangement: Arrangement, visit: Visit, halves: Halves) -> Result<Self> {
        if halves == Halves::Apart && set.kind() != Kind::Pair {
            let what = format!("only texts of pairs can be kept apart, not those for {}", set.kind().name());
            return Err(Error::Argument(what));
        }
        let lengths = (0..set.len()).map(|example| {
            let (length, second) = (set.length(example) as u32, set.second(example) as u32);
            if halves == Halves::Apart { [second, length - second] } else { [length, 0] }
        });
        let pad = set.description().special.map_or(0, |special| special.pad as i32);
        Self::of(lengths.collect(), arrangement, visit, halves, pad)
    }

    /// A batcher of things that are not tokens, such as images of so many patches: see [`next_places`](Self::next_places).
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn of_lengths(lengths: &[usize], arrangement: Arrangement, visit: Visit) -> Result<Self> {
        let lengths = lengths.iter().map(|&length| [u32::try_from(length).unwrap_or(u32::MAX), 0]).collect();
        Self::of(lengths, arrangement, visit, Halves::Together, 0)
    }

    fn of(
        lengths: Vec<[u32; 2]>,
        mut arrangement: Arrangement,
        visit: Visit,
        halves: Halves,
        pad: i32,
    ) -> Result<Self> {
        check(&mut arrangement)?;
        if lengths.is_empty() || u32::try_from(lengths.len()).is_err() {
            return Err(Error::Argument(format!("{} examples are not in 1..2^32", lengths.len())));
        }
        let longest = arrangement.longest();
        let too_long = lengths.iter().enumerate().find(|(_, [a, b])| *a.max(b) as usize > longest);
        if let Some((example, [a, b])) = too_long {
            let what = format!(
                "example {example} has {} tokens, but the longest rows have {longest}; \
                 use longer rows, or make the examples with fewer max tokens",
                a.max(b)
            );
            return Err(Error::Argument(what));
        }
        let state = BatcherState { examples: lengths.len(), arrangement, visit, halves, epoch: 0, batch: 0 };
        let plan = Plan::new(&state, &lengths);
        Ok(Self { state, lengths, pad, plan })
    }

    /// Whole epochs drawn so far.
    pub fn epoch(&self) -> u64 {
        self.state.epoch
    }

    /// Batches drawn of the epoch that has begun.
    pub fn batch_of_epoch(&self) -> usize {
        self.state.batch
    }

    /// Batches of the epoch that has begun. Packed epochs may differ by a few.
    pub fn batches_of_epoch(&self) -> usize {
        self.plan.batches.len()
    }

    /// The share of all positions of this epoch's batches that hold no token: of both texts, where they are kept apart.
    pub fn padding(&self) -> f64 {
        let sides = if self.state.halves == Halves::Apart { 2 } else { 1 };
        let positions: usize = self.plan.batches.iter().map(|batch| sides * batch.rows * batch.time).sum();
        let tokens: u64 = self.lengths.iter().map(|[a, b]| u64::from(*a) + u64::from(*b)).sum();
        1.0 - tokens as f64 / positions as f64
    }

    /// The next batch, into `batch`, whose memory is used again. After the last of an epoch comes the first of the next.
    ///
    /// # Errors
    /// `set` is not the one that the batcher was made for.
    pub fn next_batch(&mut self, set: &LabelledSet, batch: &mut Batch) -> Result<()> {
        if set.len() != self.state.examples {
            let what = format!("the batcher was made for {} examples, the data has {}", self.state.examples, set.len());
            return Err(Error::Argument(what));
        }
        self.next_places(batch);
        match self.state.halves {
            Halves::Together => batch.fill(set, Part::Whole),
            Halves::Apart => {
                batch.fill(set, Part::First)?;
                batch.target.as_mut().map_or(Ok(()), |target| target.fill(set, Part::Second))
            }
        }
    }

    /// The next batch with its examples in their places, but without tokens: ids are padding, token types 0.
    pub fn next_places(&mut self, batch: &mut Batch) {
        if self.state.batch == self.plan.batches.len() {
            self.state.epoch += 1;
            self.state.batch = 0;
            if self.state.visit != Visit::InOrder {
                self.plan = Plan::new(&self.state, &self.lengths);
            }
        }
        let planned = &self.plan.batches[self.state.batch];
        let mut target = (self.state.halves == Halves::Apart).then(|| batch.target.take().unwrap_or_default());
        batch.clear(planned.rows, planned.time, self.pad);
        if let Some(target) = &mut target {
            target.clear(planned.rows, planned.time, self.pad);
        }
        for slot in &self.plan.slots[planned.slots.clone()] {
            let (example, row) = (slot.example as usize, slot.row as usize);
            let [a, b] = self.lengths[example].map(|length| length as usize);
            batch.place(example, a, row, slot.starts[0] as usize);
            if let Some(target) = &mut target {
                target.place(example, b, row, slot.starts[1] as usize);
            }
        }
        batch.target = target;
        self.state.batch += 1;
    }

    /// Where the batcher is.
    pub fn state(&self) -> BatcherState {
        self.state.clone()
    }

    /// Goes on from a saved state.
    ///
    /// # Errors
    /// The state is of other data or other settings; the batcher stays as it was.
    pub fn restore(&mut self, state: &BatcherState) -> Result<()> {
        let same = |what, saved: String, current: String| {
            if saved == current { Ok(()) } else { Err(Error::Resume { what, saved, current }) }
        };
        let mine = &self.state;
        same("the number of examples", state.examples.to_string(), mine.examples.to_string())?;
        same("the order of examples", format!("{:?}", state.visit), format!("{:?}", mine.visit))?;
        same("the layout of batches", format!("{:?}", state.arrangement), format!("{:?}", mine.arrangement))?;
        same("the layout of texts", format!("{:?}", state.halves), format!("{:?}", mine.halves))?;
        let plan = Plan::new(state, &self.lengths);
        if state.batch > plan.batches.len() {
            let current = format!("at most {}", plan.batches.len());
            return Err(Error::Resume { what: "the batch of the epoch", saved: state.batch.to_string(), current });
        }
        (self.plan, self.state) = (plan, state.clone());
        Ok(())
    }
}

impl Arrangement {
    /// The shapes `(rows, time)` that batches may have.
    pub fn shapes(&self) -> Vec<(usize, usize)> {
        match self {
            Self::Padded { buckets, size } => buckets.iter().map(|&time| (size.rows(time), time)).collect(),
            Self::Packed { rows, time, .. } => vec![(*rows, *time)],
        }
    }

    /// Examples of a batch at most.
    pub fn most_examples(&self) -> usize {
        match self {
            Self::Padded { .. } => self.shapes().into_iter().map(|(rows, _)| rows).max().unwrap_or(0),
            Self::Packed { max_documents, .. } => *max_documents,
        }
    }

    /// Length of the longest row.
    pub fn longest(&self) -> usize {
        self.shapes().into_iter().map(|(_, time)| time).max().unwrap_or(0)
    }
}

impl BatchSize {
    /// Rows of a batch whose rows have this length.
    pub fn rows(self, time: usize) -> usize {
        match self {
            Self::Rows(rows) => rows,
            Self::Tokens(tokens) => (tokens / time.max(1)).max(1),
        }
    }
}

/// Fails where a number is zero or out of range; sorts buckets.
fn check(arrangement: &mut Arrangement) -> Result<()> {
    let numbers = match arrangement {
        Arrangement::Padded { buckets, size } => {
            buckets.sort_unstable();
            buckets.dedup();
            let (BatchSize::Rows(number) | BatchSize::Tokens(number)) = *size;
            [buckets.as_slice(), &[number]].concat()
        }
        Arrangement::Packed { rows, time, max_documents } => vec![*rows, *time, *max_documents],
    };
    let fits = |(rows, time): (usize, usize)| rows.checked_mul(time).is_some_and(|size| size < 1 << 30);
    if numbers.len() < 2 || numbers.contains(&0) || !arrangement.shapes().into_iter().all(fits) {
        let what = format!("batches of {arrangement:?}: all numbers must be at least 1, rows times length below 2^30");
        return Err(Error::Argument(what));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
