//! Tasks with examples: texts with labels, or texts of which something is hidden. Examples come in batches of a few
//! shapes, packed or padded; programs of all shapes take turns over one arena.

use super::objective::{self, Objective, Recorded, Wanted};
use super::{Amount, Data, DrawState, Evaluation, Job, Learned, not_finite};
use crate::data::batch::{Arrangement, BatchSize, Halves, Visit};
use crate::data::{Batch, Batcher, LabelledSet, Tokenizer};
use crate::model::Transformer;
use crate::model::transformer::Inputs;
use crate::ops::Device;
use crate::tape::{self, MemoryUse, Mode, NonFinite, Parameters, Programs, RunOptions, Tape, Value};
use crate::train::config::{Config, DataFacts, Layout, Task};
use crate::train::example_source::{self, ExampleSource};
use crate::train::trainer::Error;
use std::sync::Arc;

struct Examples {
    source: ExampleSource,
    facts: DataFacts,
    arrangement: Arrangement,
    batcher: Batcher,
    objective: Box<dyn Objective>,
    update_tokens: usize,
}

pub(super) fn open(config: &Config) -> Result<Box<dyn Data>, Error> {
    let source = example_source::open(config)?;
    let max_tokens = config.data.max_tokens.unwrap_or(config.model.block);
    let arrangement = arrangement(config, max_tokens);
    let visit = Visit::Shuffled { seed: config.train.seed };
    let batcher = Batcher::new(&source.train, arrangement.clone(), visit, Halves::Together)?;
    let objective = objective::new(config, &source)?;
    let classes = match config.train.task {
        Task::Regression => vec![config.data.label.clone()],
        _ => source.train.classes().to_vec(),
    };
    let vocabulary = config.model.vocabulary.unwrap_or_else(|| source.tokenizer.vocabulary());
    source.train.check_vocabulary(vocabulary)?;
    if let Some(val) = &source.val {
        val.check_vocabulary(vocabulary)?;
    }
    let facts = DataFacts { vocabulary, end_of_text: None, classes };
    let update_tokens = config.train.batch * max_tokens * config.train.accumulate;
    Ok(Box::new(Examples { source, facts, arrangement, batcher, objective, update_tokens }))
}

/// Batches of as many tokens as `train.batch` of the longest examples have.
fn arrangement(config: &Config, max_tokens: usize) -> Arrangement {
    let (rows, time) = (config.train.batch, max_tokens);
    match config.data.layout {
        Layout::Packed => Arrangement::Packed { rows, time, max_documents: rows.max(rows * time / 16) },
        Layout::Padded => {
            let buckets = config.data.buckets;
            let lengths = (1..=buckets).map(|bucket| (time * bucket).div_ceil(buckets)).collect();
            Arrangement::Padded { buckets: lengths, size: BatchSize::Tokens(rows * time) }
        }
    }
}

/// Inputs and results of a program.
struct Shape {
    rows: usize,
    time: usize,
    ids: Value,
    positions: Value,
    types: Value,
    documents: Value,
    capacity: usize,
    recorded: Recorded,
}

impl Examples {
    /// The tapes of all shapes: those for training, then those for evaluation.
    fn tapes<'p>(
        &self,
        config: &Config,
        device: &Arc<Device>,
        model: &Transformer,
        parameters: &'p Parameters,
    ) -> Result<Vec<(Tape<'p>, Shape)>, Error> {
        let modes = [Mode::Training, Mode::Inference];
        let modes = if self.source.val.is_some() { &modes[..] } else { &modes[..1] };
        let shapes = self.arrangement.shapes();
        let each = modes.iter().flat_map(|&mode| shapes.iter().map(move |&shape| (mode, shape)));
        each.map(|(mode, (rows, time))| {
            let mut tape = Tape::new(Arc::clone(device), parameters, mode);
            let mut input = |name: &str, shape: &[usize]| tape.input_ids(name, shape);
            let (ids, positions) = (input("ids", &[rows, time]), input("position ids", &[rows, time]));
            let (types, documents) = (input("token types", &[rows, time]), input("documents", &[rows, time, 2]));
            let inputs =
                Inputs { ids, position_ids: Some(positions), type_ids: Some(types), documents: Some(documents) };
            let trunk = model.record_trunk(&mut tape, &inputs, config.train.recompute && mode == Mode::Training)?;
            let examples = match &self.arrangement {
                Arrangement::Padded { .. } => rows,
                Arrangement::Packed { max_documents, .. } => *max_documents,
            };
            let capacity = self.objective.capacity(rows, time, examples);
            let recorded = self.objective.record(&mut tape, model, trunk, documents, capacity)?;
            Ok((tape, Shape { rows, time, ids, positions, types, documents, capacity, recorded }))
        })
        .collect()
    }
}

impl Data for Examples {
    fn facts(&self) -> &DataFacts {
        &self.facts
    }

    fn amount(&self) -> Amount {
        let (train, val) = (&self.source.train, &self.source.val);
        let val_tokens = val.as_ref().map_or(0, LabelledSet::total_tokens);
        let mut line = format!("{} examples of {} tokens to learn from", train.len(), train.total_tokens());
        match val {
            Some(val) => line.push_str(&format!(", {} of {val_tokens} kept back", val.len())),
            None => line.push_str(", none kept back"),
        }
        line.push_str(&format!("; {:.1} % of the batches is padding", 100.0 * self.batcher.padding()));
        Amount {
            train_tokens: train.total_tokens(),
            val_tokens,
            bytes: self.source.bytes(),
            time: train.total_tokens() / train.len().max(1),
            update_tokens: self.update_tokens,
            line,
            warning: val.is_none().then(|| "nothing is kept back for an evaluation; see data.val_path".into()),
        }
    }

    fn steps(&self, config: &Config, epochs: f64) -> usize {
        (epochs * self.batcher.batches_of_epoch() as f64 / config.train.accumulate as f64).ceil() as usize
    }

    fn measure(
        &self,
        config: &Config,
        device: &Arc<Device>,
        model: &Transformer,
        parameters: &Parameters,
    ) -> Result<(MemoryUse, usize), Error> {
        let tapes = self.tapes(config, device, model, parameters)?;
        let uses: Result<Vec<MemoryUse>, tape::Error> = tapes.iter().map(|(tape, _)| tape.measure()).collect();
        let largest = uses?.into_iter().max_by_key(|memory| memory.arena);
        Ok((largest.expect("there is a shape at least"), 0))
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
        let Self { source, arrangement, batcher, objective, .. } = *self;
        let training_shapes = arrangement.shapes().len();
        Ok(Box::new(WithExamples {
            programs: Programs::new(tapes)?,
            shapes,
            training_shapes,
            arrangement,
            source,
            batcher,
            objective,
            batch: Batch::default(),
            wanted: Wanted::default(),
        }))
    }
}

struct WithExamples {
    source: ExampleSource,
    arrangement: Arrangement,
    batcher: Batcher,
    objective: Box<dyn Objective>,
    programs: Programs,
    shapes: Vec<Shape>,
    /// The first so many shapes are for training, the others for evaluation.
    training_shapes: usize,
    /// The last batch, and what is to be learned from it.
    batch: Batch,
    wanted: Wanted,
}

impl WithExamples {
    /// Which program is for the batch.
    fn shape_of_batch(&self, mode: Mode) -> usize {
        let shapes = match mode {
            Mode::Training => 0..self.training_shapes,
            Mode::Inference => self.training_shapes..self.shapes.len(),
        };
        let is_fit =
            |&index: &usize| (self.shapes[index].rows, self.shapes[index].time) == (self.batch.rows, self.batch.time);
        shapes.into_iter().find(is_fit).expect("batches come in the shapes of their arrangement")
    }

    /// Writes the batch into its program.
    fn write(&mut self, index: usize) -> Result<(), tape::Error> {
        let (shape, batch) = (&self.shapes[index], &self.batch);
        let program = self.programs.select(index)?;
        program.write_ids(shape.ids, &batch.ids)?;
        program.write_ids(shape.positions, &batch.positions)?;
        program.write_ids(shape.types, &batch.token_types)?;
        program.write_ids(shape.documents, &batch.documents)?;
        self.wanted.write(program, &shape.recorded)
    }

    /// Runs the batch; the sum of its losses and what its counted rows weigh.
    fn run(&mut self, mode: Mode, parameters: &mut Parameters, options: &RunOptions) -> Result<(f64, f64), Error> {
        let index = self.shape_of_batch(mode);
        self.write(index)?;
        let program = self.programs.select(index)?;
        program.run(parameters, options)?;
        Ok(program.loss_sum(self.shapes[index].recorded.loss)?)
    }

    fn prepare(&mut self, mode: Mode, step: u64) -> Result<(), Error> {
        let index = self.shape_of_batch(mode);
        let capacity = self.shapes[index].capacity;
        let set = match (mode, &self.source.val) {
            (Mode::Inference, Some(val)) => val,
            _ => &self.source.train,
        };
        self.objective.prepare(set, &mut self.batch, step, capacity, &mut self.wanted)
    }
}

impl Job for WithExamples {
    fn learn(&mut self, parameters: &mut Parameters, options: &RunOptions) -> Result<Learned, Error> {
        self.batcher.next_batch(&self.source.train, &mut self.batch)?;
        self.prepare(Mode::Training, options.step)?;
        let (loss_sum, weight) = self.run(Mode::Training, parameters, options)?;
        Ok(Learned { loss_sum, weight, tokens: self.batch.tokens() })
    }

    fn find_non_finite(&mut self, parameters: &mut Parameters, options: &RunOptions) -> String {
        self.find(Mode::Training, parameters, options)
    }

    fn evaluate(&mut self, parameters: &mut Parameters, step: usize) -> Result<Option<Evaluation>, Error> {
        let Some(val) = self.source.val.clone() else { return Ok(None) };
        let mut batcher = Batcher::new(&val, self.arrangement.clone(), Visit::InOrder, Halves::Together)?;
        let (mut sum, mut counted) = (0.0, 0.0);
        let options = RunOptions::default();
        for _ in 0..batcher.batches_of_epoch() {
            batcher.next_batch(&val, &mut self.batch)?;
            self.prepare(Mode::Inference, 0)?;
            let (batch_sum, batch_counted) = self.run(Mode::Inference, parameters, &options)?;
            if !batch_sum.is_finite() {
                let found = self.find(Mode::Inference, parameters, &options);
                return Err(not_finite(step, batch_sum, found));
            }
            let index = self.shape_of_batch(Mode::Inference);
            if let Some(output) = self.shapes[index].recorded.output {
                let program = self.programs.select(index)?;
                self.objective.observe(&val, &self.batch, &program.read(output)?);
            }
            sum += batch_sum;
            counted += batch_counted;
        }
        let loss = sum / counted.max(f64::MIN_POSITIVE);
        Ok(Some(Evaluation { loss, ..self.objective.judge(&val)? }))
    }

    fn state(&self) -> DrawState {
        DrawState::Examples(self.batcher.state())
    }

    fn restore(&mut self, state: &DrawState) -> Result<(), Error> {
        match state {
            DrawState::Examples(state) => Ok(self.batcher.restore(state)?),
            DrawState::Windows(_) => Err(Error::Resume("the checkpoint is of a task without examples".into())),
        }
    }

    fn fingerprint(&self) -> String {
        self.source.train.fingerprint()
    }

    fn tokenizer(&self) -> Option<&Tokenizer> {
        Some(&self.source.tokenizer)
    }
}

impl WithExamples {
    fn find(&mut self, mode: Mode, parameters: &mut Parameters, options: &RunOptions) -> String {
        let index = self.shape_of_batch(mode);
        let written = self.write(index);
        name_of_non_finite(written.and_then(|()| self.programs.select(index)?.find_non_finite(parameters, options)))
    }
}

/// What a search for a tensor that is not finite found, in words.
pub(super) fn name_of_non_finite(found: Result<Option<NonFinite>, tape::Error>) -> String {
    match found {
        Ok(Some(found)) => {
            format!("the first tensor that holds one is {}, element {}: {}", found.tensor, found.index, found.value)
        }
        _ => "no single tensor holds one: their sum overflows".to_owned(),
    }
}
