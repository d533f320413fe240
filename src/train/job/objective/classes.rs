//! Classification: one class for each text.

use super::{Evaluation, Objective, Predictions, Recorded, Targets, Wanted, in_order, kept_for_judging, pool};
use crate::data::labelled::Label;
use crate::data::masking::IGNORED;
use crate::data::{Batch, LabelledSet};
use crate::model::Transformer;
use crate::model::encode::{softmax, top};
use crate::score::classification::{ConfusionMatrix, Report};
use crate::score::prediction;
use crate::tape::{Mode, Tape, Value};
use crate::train::config::{ClassWeights, Config};
use crate::train::example_source::ExampleSource;
use crate::train::trainer::Error;

pub(super) struct Classes {
    settings: Config,
    /// Weights of the classes in the loss.
    weights: Option<Vec<f32>>,
    /// Truth and prediction of each example that was observed.
    seen: Vec<(usize, usize)>,
    predictions: Predictions,
}

impl Classes {
    pub(super) fn new(config: &Config, source: &ExampleSource) -> Self {
        let weights = (config.train.class_weights == ClassWeights::Balanced).then(|| {
            let counts = source.train.class_counts();
            let examples: u64 = counts.iter().sum();
            // As scikit-learn's "balanced": n / (classes · count).
            let weight = |&count: &u64| examples as f32 / (counts.len() as f32 * count.max(1) as f32);
            counts.iter().map(weight).collect()
        });
        Self { settings: config.clone(), weights, seen: Vec::new(), predictions: Predictions::default() }
    }
}

impl Objective for Classes {
    fn capacity(&self, _rows: usize, _time: usize, examples: usize) -> usize {
        examples
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
        let pooled = model.record_pooled(tape, trunk, ranges)?;
        let logits = model.record_class_logits(tape, pooled)?;
        let is_training = tape.mode() == Mode::Training;
        let smoothing = if is_training { self.settings.train.label_smoothing as f32 } else { 0.0 };
        let weights = self.weights.as_deref().filter(|_| is_training);
        let loss = match weights {
            Some(weights) => tape.softmax_cross_entropy_weighted(logits, targets, smoothing, weights)?,
            None => tape.softmax_cross_entropy(logits, targets, smoothing)?,
        };
        let output = kept_for_judging(tape, logits);
        Ok(Recorded { ranges, targets: Targets::Ids(targets), loss, beside: None, output })
    }

    fn prepare(
        &mut self,
        set: &LabelledSet,
        batch: &mut Batch,
        _step: u64,
        capacity: usize,
        wanted: &mut Wanted,
    ) -> Result<(), Error> {
        wanted.clear(capacity);
        pool(&self.settings, batch, wanted);
        wanted.ids.extend(batch.examples.iter().map(|placed| match set.label(placed.example) {
            Label::Class(class) => class as i32,
            _ => IGNORED,
        }));
        wanted.ids.resize(capacity, IGNORED);
        Ok(())
    }

    fn observe(&mut self, set: &LabelledSet, batch: &Batch, output: &[f32]) {
        let classes = set.classes().len();
        for (placed, logits) in batch.examples.iter().zip(output.chunks_exact(classes)) {
            let probabilities = softmax(logits);
            let best = top(&probabilities, 1)[0];
            if let Label::Class(truth) = set.label(placed.example) {
                self.seen.push((truth, best));
                let row = set.row(placed.example);
                self.predictions.insert(row, prediction::class(row, set.classes(), truth, &probabilities));
            }
        }
    }

    fn judge(&mut self, set: &LabelledSet) -> Result<Evaluation, Error> {
        let mut matrix = ConfusionMatrix::new(set.classes().iter().cloned());
        for (truth, predicted) in std::mem::take(&mut self.seen) {
            matrix.add(truth, predicted)?;
        }
        let report = Report::from(&matrix);
        let mut figures = vec![("accuracy", report.accuracy), ("macro_f1", report.macro_f1)];
        figures.extend(report.binary_f1.map(|f1| ("f1", f1)));
        Ok(Evaluation {
            figures,
            best_by: Some("accuracy"),
            section: Some(report.to_html()),
            table: Some(report.to_string()),
            predictions: in_order(&mut self.predictions),
            ..Evaluation::default()
        })
    }
}
