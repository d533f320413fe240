//! Translation by a decoder alone: a row is a source and, after it, its translation, `[CLS] a [SEP] [CLS] b [SEP]`. Each
//! token sees those before it, so the source is a prompt that the translation goes on from; only the translation, its end
//! included, is learned. `[CLS]` in the middle says that the source is over and predicts the first token of `b`.

use super::{Evaluation, Objective, Recorded, Targets, Wanted};
use crate::data::masking::IGNORED;
use crate::data::{Batch, LabelledSet};
use crate::model::{ModelConfig, Transformer};
use crate::tape::{Mode, Tape, Value};
use crate::train::config::Config;
use crate::train::job::translated::{self, Generating};
use crate::train::trainer::Error;

pub(super) struct Continuation {
    settings: Config,
}

impl Continuation {
    pub(super) fn new(config: &Config) -> Self {
        Self { settings: config.clone() }
    }
}

impl Objective for Continuation {
    fn capacity(&self, rows: usize, time: usize, _examples: usize) -> usize {
        rows * time
    }

    fn record(
        &self,
        tape: &mut Tape<'_>,
        model: &Transformer,
        trunk: Value,
        _documents: Value,
        capacity: usize,
    ) -> Result<Recorded, Error> {
        let (ranges, targets) = (tape.input_ids("ranges", &[capacity, 2]), tape.input_ids("targets", &[capacity]));
        let rows = tape.mean_rows(trunk, ranges)?;
        let train = &self.settings.train;
        let smoothing = if tape.mode() == Mode::Training { train.label_smoothing as f32 } else { 0.0 };
        let loss = model.record_token_loss(tape, rows, targets, smoothing, Some(train.chunk_rows.max(1)))?;
        Ok(Recorded { ranges, targets: Targets::Ids(targets), loss, output: None, beside: None })
    }

    fn prepare(
        &mut self,
        set: &LabelledSet,
        batch: &mut Batch,
        _step: u64,
        capacity: usize,
        wanted: &mut Wanted,
    ) -> Result<(), Error> {
        wanted.clear(0);
        for placed in &batch.examples {
            let first = placed.row * batch.time;
            for position in first + placed.start + set.second(placed.example)..first + placed.end - 1 {
                wanted.ranges.extend([position as i32, position as i32 + 1]);
                wanted.ids.push(batch.ids[position + 1]);
            }
        }
        wanted.ranges.resize(2 * capacity, 0);
        wanted.ids.resize(capacity, IGNORED);
        Ok(())
    }

    fn generating_bytes(&self, model: &ModelConfig, examples: usize) -> usize {
        translated::bytes(&self.settings, model, examples)
    }

    fn judge_generated(
        &mut self,
        with: &mut Generating<'_>,
        set: &LabelledSet,
        evaluation: &mut Evaluation,
    ) -> Result<(), Error> {
        translated::judge(with, &self.settings, set, evaluation)
    }

    fn sample(&mut self, with: &mut Generating<'_>, set: &LabelledSet) -> Result<Option<String>, Error> {
        Ok(Some(translated::sample(with, &self.settings, set)?))
    }
}
