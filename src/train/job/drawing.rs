//! Examples, and how they come in batches: what all tasks with examples share.

use super::Amount;
use crate::data::batch::{Arrangement, BatchSize, Halves, Visit};
use crate::data::{Batch, Batcher, BatcherState, LabelledSet};
use crate::tape::{self, Loss, MemoryUse, Mode, RunOptions, Tape};
use crate::train::config::{Config, Layout};
use crate::train::example_source::{self, ExampleSource};
use crate::train::trainer::Error;
use std::collections::VecDeque;

/// Batches of an update that were drawn in advance, and what their rows weigh together.
pub(super) struct Drawn<B> {
    batches: VecDeque<B>,
    weight: f64,
}

impl<B> Drawn<B> {
    /// None yet.
    pub(super) fn new() -> Self {
        Self { batches: VecDeque::new(), weight: 0.0 }
    }

    /// Adds a batch whose rows weigh so much.
    pub(super) fn push(&mut self, batch: B, weight: f64) {
        self.batches.push_back(batch);
        self.weight += weight;
    }

    /// The next one.
    pub(super) fn pop(&mut self) -> Option<B> {
        self.batches.pop_front()
    }

    /// Has `losses` divided by what the rows of all these batches weigh, instead of each batch by its own and by how many
    /// they are.
    pub(super) fn count_rows_alike(&self, losses: impl Iterator<Item = Loss>, options: &mut RunOptions) {
        options.loss_weights = losses.map(|loss| (loss, self.weight)).collect();
        options.loss_factor = 1.0;
    }
}

/// The examples of a run, and where their drawing stands.
pub(super) struct Drawing {
    pub(super) source: ExampleSource,
    pub(super) arrangement: Arrangement,
    halves: Halves,
    batcher: Batcher,
    update_tokens: usize,
    pub(super) vocabulary: usize,
}

impl Drawing {
    /// Opens what `config` names.
    ///
    /// # Errors
    /// Data that cannot be used.
    pub(super) fn open(config: &Config, halves: Halves) -> Result<Self, Error> {
        let source = example_source::open(config)?;
        let arrangement = arrangement(config, &source);
        let visit = Visit::Shuffled { seed: config.train.seed };
        let batcher = Batcher::new(&source.train, arrangement.clone(), visit, halves)?;
        let vocabulary = source.vocabulary(config);
        source.train.check_vocabulary(vocabulary)?;
        if let Some(val) = &source.val {
            val.check_vocabulary(vocabulary)?;
        }
        let sides = if halves == Halves::Apart { 2 } else { 1 };
        let update_tokens = sides * config.train.batch * arrangement.longest() * config.train.accumulate;
        Ok(Self { source, arrangement, halves, batcher, update_tokens, vocabulary })
    }

    pub(super) fn amount(&self) -> Amount {
        let (train, val) = (&self.source.train, &self.source.val);
        let val_tokens = val.as_ref().map_or(0, LabelledSet::total_tokens);
        let mut line = format!("{} examples of {} tokens to learn from", train.len(), train.total_tokens());
        match val {
            Some(val) => line.push_str(&format!(", {} of {val_tokens} kept back", val.len())),
            None => line.push_str(", none kept back"),
        }
        line.push_str(&format!("; {:.1} % of the batches is padding", 100.0 * self.batcher.padding()));
        let sides = if self.halves == Halves::Apart { 2 } else { 1 };
        Amount {
            train_tokens: train.total_tokens(),
            val_tokens,
            bytes: self.source.bytes(),
            time: train.total_tokens() / (sides * train.len().max(1)),
            predicted: 1.0,
            update_tokens: self.update_tokens,
            line,
            warning: val.is_none().then(|| "nothing is kept back for an evaluation; see data.val_path".into()),
        }
    }

    /// Updates that `epochs` passes over the data make.
    pub(super) fn steps(&self, config: &Config, epochs: f64) -> usize {
        (epochs * self.batcher.batches_of_epoch() as f64 / config.train.accumulate as f64).ceil() as usize
    }

    /// What programs are needed: all shapes `(rows, time)` for training, then, where there is something to evaluate on,
    /// all for that.
    pub(super) fn programs(&self) -> Vec<(Mode, usize, usize)> {
        let modes = [Mode::Training, Mode::Inference];
        let modes = if self.source.val.is_some() { &modes[..] } else { &modes[..1] };
        let shapes = self.arrangement.shapes();
        modes.iter().flat_map(|&mode| shapes.iter().map(move |&(rows, time)| (mode, rows, time))).collect()
    }

    /// Which of the [`programs`](Self::programs) is for a batch.
    pub(super) fn program_of(&self, mode: Mode, batch: &Batch) -> usize {
        let wanted = (mode, batch.rows, batch.time);
        let found = self.programs().into_iter().position(|program| program == wanted);
        found.expect("batches come in the shapes of their arrangement")
    }

    /// Draws the next batch to learn from.
    pub(super) fn next(&mut self, batch: &mut Batch) -> Result<(), Error> {
        Ok(self.batcher.next_batch(&self.source.train, batch)?)
    }

    /// The examples to evaluate on, and their batches in order; None where there are none.
    pub(super) fn evaluation(&self) -> Result<Option<(LabelledSet, Batcher)>, Error> {
        let Some(val) = self.source.val.clone() else { return Ok(None) };
        let batcher = Batcher::new(&val, self.arrangement.clone(), Visit::InOrder, self.halves)?;
        Ok(Some((val, batcher)))
    }

    /// The share of this epoch's batches that holds no token.
    pub(super) fn padding(&self) -> f64 {
        self.batcher.padding()
    }

    /// The epoch that the last batch to learn from is of.
    pub(super) fn epoch(&self) -> u64 {
        self.batcher.epoch()
    }

    pub(super) fn state(&self) -> BatcherState {
        self.batcher.state()
    }

    pub(super) fn restore(&mut self, state: &BatcherState) -> Result<(), Error> {
        Ok(self.batcher.restore(state)?)
    }
}

/// Memory of the largest of programs that take turns.
///
/// # Panics
/// There are no tapes.
pub(super) fn largest<'t, 'p: 't>(tapes: impl Iterator<Item = &'t Tape<'p>>) -> Result<MemoryUse, tape::Error> {
    let uses: Result<Vec<MemoryUse>, tape::Error> = tapes.map(Tape::measure).collect();
    Ok(uses?.into_iter().max_by_key(|memory| memory.arena).expect("there is a shape at least"))
}

/// The shortest rows: a token between those that frame it.
const SHORTEST: usize = 3;

/// Batches of as many tokens as `train.batch` of the longest examples have; of images, which are all alike, a row for each.
fn arrangement(config: &Config, source: &ExampleSource) -> Arrangement {
    let rows = config.train.batch;
    if source.pictures.is_some() {
        return Arrangement::Padded { buckets: vec![source.train.longest()], size: BatchSize::Rows(rows) };
    }
    let time = config.data.max_tokens.unwrap_or(config.model.block);
    match config.data.layout {
        Layout::Packed => Arrangement::Packed { rows, time, max_documents: rows.max(rows * time / 16) },
        Layout::Padded => {
            let count = config.data.buckets;
            let length = |bucket: usize| (time * bucket).div_ceil(count).max(SHORTEST.min(time));
            let mut buckets: Vec<usize> = (1..=count).map(length).collect();
            buckets.dedup();
            Arrangement::Padded { buckets, size: BatchSize::Tokens(rows * time) }
        }
    }
}
