//! Masked language modelling: tokens that were hidden are predicted from all others (Devlin et al. 2019). Beside it, with
//! a weight of its own, convolutional sequence modelling: the same tokens from what a convolution makes of the trunk
//! around them, without their own positions.

use super::{Objective, Recorded, Targets, Wanted};
use crate::data::masking::{Masked, Masker, Masking, Unit};
use crate::data::{Batch, LabelledSet};
use crate::model::Transformer;
use crate::tape::{Mode, Tape, Value};
use crate::train::config::{Config, LossWeights, MaskUnit};
use crate::train::example_source::ExampleSource;
use crate::train::trainer::Error;

pub(super) struct MaskedLm {
    masker: Masker,
    masked: Masked,
    chunk_rows: usize,
    label_smoothing: f32,
    losses: LossWeights,
}

impl MaskedLm {
    pub(super) fn new(config: &Config, source: &ExampleSource) -> Result<Self, Error> {
        let train = &config.train;
        let unit = match train.mask_unit {
            MaskUnit::Token => Unit::Token,
            MaskUnit::Word => Unit::Word,
            MaskUnit::Span => Unit::Span,
        };
        let masking = Masking { probability: train.mask_share as f32, unit, seed: train.seed, ..Masking::default() };
        Ok(Self {
            masker: Masker::new(source.tokenizer()?, masking)?,
            masked: Masked::default(),
            chunk_rows: train.chunk_rows.max(1),
            label_smoothing: train.label_smoothing as f32,
            losses: train.losses,
        })
    }
}

impl Objective for MaskedLm {
    fn capacity(&self, rows: usize, time: usize, examples: usize) -> usize {
        self.masker.capacity(rows, time, examples)
    }

    fn record(
        &self,
        tape: &mut Tape<'_>,
        model: &Transformer,
        trunk: Value,
        documents: Value,
        capacity: usize,
    ) -> Result<Recorded, Error> {
        let (ranges, targets) = (tape.input_ids("ranges", &[capacity, 2]), tape.input_ids("targets", &[capacity]));
        let rows = tape.mean_rows(trunk, ranges)?;
        let smoothing = if tape.mode() == Mode::Training { self.label_smoothing } else { 0.0 };
        let loss = model.record_token_loss(tape, rows, targets, smoothing, Some(self.chunk_rows))?;
        tape.scale_loss(loss, self.losses.masked_lm)?;
        let mut beside = None;
        if self.losses.csm > 0.0 && tape.mode() == Mode::Training {
            let around = model.record_surroundings(tape, trunk, Some(documents))?;
            let rows = tape.mean_rows(around, ranges)?;
            let csm = model.record_token_loss(tape, rows, targets, smoothing, Some(self.chunk_rows))?;
            tape.scale_loss(csm, self.losses.csm)?;
            beside = Some(("csm", csm));
        }
        Ok(Recorded { ranges, targets: Targets::Ids(targets), loss, beside, output: None })
    }

    fn prepare(
        &mut self,
        _set: &LabelledSet,
        batch: &mut Batch,
        step: u64,
        capacity: usize,
        wanted: &mut Wanted,
    ) -> Result<(), Error> {
        self.masker.apply(step, batch, capacity, &mut self.masked)?;
        wanted.clear(capacity);
        wanted.ids.extend_from_slice(&self.masked.targets);
        for (range, &position) in wanted.ranges.chunks_exact_mut(2).zip(&self.masked.positions[..self.masked.count]) {
            range.copy_from_slice(&[position, position + 1]);
        }
        Ok(())
    }
}
