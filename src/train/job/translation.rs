//! Translation: an encoder reads a text, and a decoder predicts each token of its translation from that and from those
//! before it (Vaswani et al. 2017).
//!
//! Both sides of a batch are padded to one length. The decoder reads `[CLS] b` and predicts `b [SEP]`, so it has one
//! position less than its rows. An evaluation translates some of the examples, greedily, for BLEU and chrF.

use super::drawing::{self, Drawing, Drawn};
use super::examples::name_of_non_finite;
use super::translated::{self, Generating};
use super::{Amount, Data, DrawState, Evaluation, Job, Learned, not_finite};
use crate::data::batch::Halves;
use crate::data::masking::IGNORED;
use crate::data::tokenizer::SpecialTokens;
use crate::data::{Batch, LabelledSet, Tokenizer};
use crate::model::Transformer;
use crate::model::transformer::Inputs;
use crate::ops::Device;
use crate::tape::{self, Loss, MemoryUse, Mode, Parameters, Programs, RunOptions, Tape, Value};
use crate::train::config::{Config, DataFacts};
use crate::train::trainer::Error;
use std::sync::Arc;

struct Pairs {
    drawing: Drawing,
    facts: DataFacts,
}

pub(super) fn open(config: &Config) -> Result<Box<dyn Data>, Error> {
    let drawing = Drawing::open(config, Halves::Apart)?;
    let special = SpecialTokens::of(drawing.source.tokenizer()?)?;
    let facts = DataFacts {
        vocabulary: drawing.vocabulary,
        start: Some(special.start),
        end: Some(special.end),
        ..DataFacts::default()
    };
    Ok(Box::new(Pairs { drawing, facts }))
}

/// Inputs and loss of a program.
struct Shape {
    source: Value,
    documents: Value,
    lengths: Value,
    target: Value,
    predicted: Value,
    loss: Loss,
}

impl Shape {
    fn record(
        config: &Config,
        model: &Transformer,
        tape: &mut Tape<'_>,
        rows: usize,
        time: usize,
    ) -> Result<Self, Error> {
        let is_training = tape.mode() == Mode::Training;
        let mut input = |name: &str, shape: &[usize]| tape.input_ids(name, shape);
        let (source, documents) = (input("source", &[rows, time]), input("documents", &[rows, time, 2]));
        let lengths = input("source lengths", &[rows]);
        let (target, predicted) = (input("target", &[rows, time - 1]), input("predicted", &[rows, time - 1]));
        let from = Inputs { documents: Some(documents), ..Inputs::rows(source) };
        let recompute = config.train.recompute && is_training;
        let trunk = model.record_translation_trunk(tape, &from, lengths, &Inputs::rows(target), recompute)?;
        let smoothing = if is_training { config.train.label_smoothing as f32 } else { 0.0 };
        let chunk_rows = Some(config.train.chunk_rows.max(1));
        let loss = model.record_token_loss(tape, trunk, predicted, smoothing, chunk_rows)?;
        Ok(Self { source, documents, lengths, target, predicted, loss })
    }
}

impl Pairs {
    /// The tapes of all programs.
    fn tapes<'p>(
        &self,
        config: &Config,
        device: &Arc<Device>,
        model: &Transformer,
        parameters: &'p Parameters,
    ) -> Result<Vec<(Tape<'p>, Shape)>, Error> {
        let record = |(mode, rows, time)| {
            let mut tape = Tape::new(Arc::clone(device), parameters, mode);
            let shape = Shape::record(config, model, &mut tape, rows, time)?;
            Ok((tape, shape))
        };
        self.drawing.programs().into_iter().map(record).collect()
    }
}

impl Data for Pairs {
    fn facts(&self) -> &DataFacts {
        &self.facts
    }

    fn amount(&self) -> Amount {
        self.drawing.amount()
    }

    fn steps(&self, config: &Config, epochs: f64) -> usize {
        self.drawing.steps(config, epochs)
    }

    fn measure(
        &self,
        config: &Config,
        device: &Arc<Device>,
        model: &Transformer,
        parameters: &Parameters,
    ) -> Result<(MemoryUse, usize), Error> {
        let tapes = self.tapes(config, device, model, parameters)?;
        let largest = drawing::largest(tapes.iter().map(|(tape, _)| tape))?;
        let examples = self.drawing.source.val.as_ref().map_or(0, LabelledSet::len);
        Ok((largest, translated::bytes(config, model.config(), examples)))
    }

    fn start(
        self: Box<Self>,
        config: &Config,
        device: &Arc<Device>,
        model: &Transformer,
        parameters: &Parameters,
    ) -> Result<Box<dyn Job>, Error> {
        let (tapes, shapes): (Vec<Tape<'_>>, Vec<Shape>) =
            self.tapes(config, device, model, parameters)?.into_iter().unzip();
        Ok(Box::new(Translation {
            programs: Programs::new(tapes)?,
            shapes,
            settings: config.clone(),
            device: Arc::clone(device),
            drawing: self.drawing,
            drawn: Drawn::new(),
            batch: Batch::default(),
            written: Written::default(),
        }))
    }
}

/// A batch as a program takes it.
#[derive(Default)]
struct Written {
    lengths: Vec<i32>,
    target: Vec<i32>,
    predicted: Vec<i32>,
    /// Tokens that are no padding, of both sides.
    tokens: usize,
}

impl Written {
    fn fill(&mut self, batch: &Batch) {
        let Some(target) = &batch.target else { unreachable!("the texts of these batches are kept apart") };
        self.lengths.clear();
        self.lengths.resize(batch.rows, 0);
        batch.examples.iter().for_each(|placed| self.lengths[placed.row] = placed.end as i32);
        self.target.clear();
        self.predicted.clear();
        self.predicted.resize(target.rows * (target.time - 1), IGNORED);
        for row in target.ids.chunks_exact(target.time) {
            self.target.extend_from_slice(&row[..target.time - 1]);
        }
        for placed in &target.examples {
            let (from, to) = (placed.row * target.time, placed.row * (target.time - 1));
            let tokens = &target.ids[from + 1..from + placed.end];
            self.predicted[to..to + tokens.len()].copy_from_slice(tokens);
        }
        self.tokens = batch.tokens() + target.tokens();
    }
}

struct Translation {
    settings: Config,
    device: Arc<Device>,
    drawing: Drawing,
    programs: Programs,
    shapes: Vec<Shape>,
    drawn: Drawn<(Batch, Written)>,
    /// The last batch.
    batch: Batch,
    written: Written,
}

impl Translation {
    /// Writes the batch into its program, whose number is the result.
    fn write(&mut self, mode: Mode) -> Result<usize, tape::Error> {
        let index = self.drawing.program_of(mode, &self.batch);
        let (shape, program) = (&self.shapes[index], self.programs.select(index)?);
        program.write_ids(shape.source, &self.batch.ids)?;
        program.write_ids(shape.documents, &self.batch.documents)?;
        program.write_ids(shape.lengths, &self.written.lengths)?;
        program.write_ids(shape.target, &self.written.target)?;
        program.write_ids(shape.predicted, &self.written.predicted)?;
        Ok(index)
    }

    /// Runs the batch; the sum of its losses and the number of tokens that were predicted.
    fn run(&mut self, mode: Mode, parameters: &mut Parameters, options: &RunOptions) -> Result<(f64, f64), Error> {
        let index = self.write(mode)?;
        let program = self.programs.select(index)?;
        program.run(parameters, options)?;
        Ok(program.loss_sum(self.shapes[index].loss)?)
    }

    fn find(&mut self, mode: Mode, parameters: &mut Parameters, options: &RunOptions) -> String {
        let written = self.write(mode);
        name_of_non_finite(written.and_then(|index| self.programs.select(index)?.find_non_finite(parameters, options)))
    }

    fn generating<'a>(&'a self, model: &'a Transformer, parameters: &'a mut Parameters) -> Generating<'a> {
        Generating { device: &self.device, model, parameters, source: &self.drawing.source }
    }
}

impl Job for Translation {
    fn draw(&mut self, _first: u64, count: usize) -> Result<(), Error> {
        self.drawn = Drawn::new();
        for _ in 0..count {
            let (mut batch, mut written) = (Batch::default(), Written::default());
            self.drawing.next(&mut batch)?;
            written.fill(&batch);
            let weight = written.predicted.iter().filter(|&&target| target != IGNORED).count() as f64;
            self.drawn.push((batch, written), weight);
        }
        Ok(())
    }

    fn learn(&mut self, parameters: &mut Parameters, options: &RunOptions) -> Result<Learned, Error> {
        let mut options = options.clone();
        match self.drawn.pop() {
            Some(drawn) => {
                (self.batch, self.written) = drawn;
                let loss = self.shapes[self.drawing.program_of(Mode::Training, &self.batch)].loss;
                self.drawn.count_rows_alike(std::iter::once(loss), &mut options);
            }
            None => {
                self.drawing.next(&mut self.batch)?;
                self.written.fill(&self.batch);
            }
        }
        let tokens = self.written.tokens;
        let (loss_sum, weight) = self.run(Mode::Training, parameters, &options)?;
        Ok(Learned { loss_sum, weight, tokens, beside: Vec::new() })
    }

    fn find_non_finite(&mut self, parameters: &mut Parameters, options: &RunOptions) -> String {
        self.find(Mode::Training, parameters, options)
    }

    fn evaluate(
        &mut self,
        model: &Transformer,
        parameters: &mut Parameters,
        step: usize,
    ) -> Result<Option<Evaluation>, Error> {
        let Some((val, mut batcher)) = self.drawing.evaluation()? else { return Ok(None) };
        let (mut sum, mut counted) = (0.0, 0.0);
        let options = RunOptions::default();
        for _ in 0..batcher.batches_of_epoch() {
            batcher.next_batch(&val, &mut self.batch)?;
            self.written.fill(&self.batch);
            let (batch_sum, batch_counted) = self.run(Mode::Inference, parameters, &options)?;
            if !batch_sum.is_finite() {
                let found = self.find(Mode::Inference, parameters, &options);
                return Err(not_finite(step, batch_sum, found));
            }
            sum += batch_sum;
            counted += batch_counted;
        }
        let mut evaluation = Evaluation { loss: sum / counted.max(f64::MIN_POSITIVE), ..Evaluation::default() };
        translated::judge(&mut self.generating(model, parameters), &self.settings, &val, &mut evaluation)?;
        Ok(Some(evaluation))
    }

    fn sample(&mut self, model: &Transformer, parameters: &mut Parameters) -> Result<Option<String>, Error> {
        let set = self.drawing.source.val.clone().unwrap_or_else(|| self.drawing.source.train.clone());
        Ok(Some(translated::sample(&mut self.generating(model, parameters), &self.settings, &set)?))
    }

    fn state(&self) -> DrawState {
        DrawState::Examples(self.drawing.state())
    }

    fn restore(&mut self, state: &DrawState) -> Result<(), Error> {
        self.drawing.restore(state.only()?)
    }

    fn fingerprint(&self) -> String {
        self.drawing.source.fingerprint()
    }

    fn tokenizer(&self) -> Option<&Tokenizer> {
        self.drawing.source.tokenizer.as_ref()
    }
}
