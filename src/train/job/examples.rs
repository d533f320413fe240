//! Tasks with examples: texts with labels, or texts of which something is hidden. Examples come in batches of a few
//! shapes, packed or padded; programs of all shapes take turns over one arena.

use super::drawing::{self, Drawing};
use super::objective::{self, Objective, Recorded, Wanted};
use super::translated::Generating;
use super::{Amount, Data, DrawState, Evaluation, Job, Learned, not_finite};
use crate::data::batch::{Arrangement, Halves};
use crate::data::tokenizer::SpecialTokens;
use crate::data::{Batch, LabelledSet, Tokenizer};
use crate::model::Transformer;
use crate::model::transformer::Inputs;
use crate::ops::Device;
use crate::tape::{self, MemoryUse, Mode, NonFinite, Parameters, Programs, RunOptions, Tape, Value};
use crate::train::config::{Config, DataFacts, Task};
use crate::train::trainer::Error;
use std::sync::Arc;

struct Examples {
    drawing: Drawing,
    facts: DataFacts,
    objective: Box<dyn Objective>,
}

pub(super) fn open(config: &Config) -> Result<Box<dyn Data>, Error> {
    let drawing = Drawing::open(config, Halves::Together)?;
    let objective = objective::new(config, &drawing.source)?;
    let classes = match config.train.task {
        Task::Regression => vec![config.data.label.clone()],
        _ => drawing.source.train.classes().to_vec(),
    };
    let special = match config.train.task {
        Task::Translation => Some(SpecialTokens::of(&drawing.source.tokenizer)?),
        _ => None,
    };
    let (start, end) = (special.map(|special| special.start), special.map(|special| special.end));
    let facts = DataFacts { start, end, vocabulary: drawing.vocabulary, classes, ..DataFacts::default() };
    Ok(Box::new(Examples { drawing, facts, objective }))
}

/// Inputs and results of a program.
struct Shape {
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
        let record = |(mode, rows, time)| {
            let mut tape = Tape::new(Arc::clone(device), parameters, mode);
            let mut input = |name: &str, shape: &[usize]| tape.input_ids(name, shape);
            let (ids, positions) = (input("ids", &[rows, time]), input("position ids", &[rows, time]));
            let (types, documents) = (input("token types", &[rows, time]), input("documents", &[rows, time, 2]));
            let inputs =
                Inputs { ids, position_ids: Some(positions), type_ids: Some(types), documents: Some(documents) };
            let trunk = model.record_trunk(&mut tape, &inputs, config.train.recompute && mode == Mode::Training)?;
            let examples = match &self.drawing.arrangement {
                Arrangement::Padded { .. } => rows,
                Arrangement::Packed { max_documents, .. } => *max_documents,
            };
            let capacity = self.objective.capacity(rows, time, examples);
            let recorded = self.objective.record(&mut tape, model, trunk, documents, capacity)?;
            Ok((tape, Shape { ids, positions, types, documents, capacity, recorded }))
        };
        self.drawing.programs().into_iter().map(record).collect()
    }
}

impl Data for Examples {
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
        Ok((largest, self.objective.generating_bytes(model.config(), examples)))
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
        let Self { drawing, objective, .. } = *self;
        Ok(Box::new(WithExamples {
            programs: Programs::new(tapes)?,
            shapes,
            device: Arc::clone(device),
            drawing,
            objective,
            batch: Batch::default(),
            wanted: Wanted::default(),
        }))
    }
}

struct WithExamples {
    drawing: Drawing,
    objective: Box<dyn Objective>,
    programs: Programs,
    shapes: Vec<Shape>,
    device: Arc<Device>,
    /// The last batch, and what is to be learned from it.
    batch: Batch,
    wanted: Wanted,
}

impl WithExamples {
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
        let index = self.drawing.program_of(mode, &self.batch);
        self.write(index)?;
        let program = self.programs.select(index)?;
        program.run(parameters, options)?;
        Ok(program.loss_sum(self.shapes[index].recorded.loss)?)
    }

    fn prepare(&mut self, mode: Mode, step: u64) -> Result<(), Error> {
        let index = self.drawing.program_of(mode, &self.batch);
        let capacity = self.shapes[index].capacity;
        let set = match (mode, &self.drawing.source.val) {
            (Mode::Inference, Some(val)) => val,
            _ => &self.drawing.source.train,
        };
        self.objective.prepare(set, &mut self.batch, step, capacity, &mut self.wanted)
    }
}

impl Job for WithExamples {
    fn learn(&mut self, parameters: &mut Parameters, options: &RunOptions) -> Result<Learned, Error> {
        self.drawing.next(&mut self.batch)?;
        self.prepare(Mode::Training, options.step)?;
        let (loss_sum, weight) = self.run(Mode::Training, parameters, options)?;
        Ok(Learned { loss_sum, weight, tokens: self.batch.tokens() })
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
            self.prepare(Mode::Inference, 0)?;
            let (batch_sum, batch_counted) = self.run(Mode::Inference, parameters, &options)?;
            if !batch_sum.is_finite() {
                let found = self.find(Mode::Inference, parameters, &options);
                return Err(not_finite(step, batch_sum, found));
            }
            let index = self.drawing.program_of(Mode::Inference, &self.batch);
            if let Some(output) = self.shapes[index].recorded.output {
                let program = self.programs.select(index)?;
                self.objective.observe(&val, &self.batch, &program.read(output)?);
            }
            sum += batch_sum;
            counted += batch_counted;
        }
        let loss = sum / counted.max(f64::MIN_POSITIVE);
        let mut evaluation = Evaluation { loss, ..self.objective.judge(&val)? };
        let (device, tokenizer) = (&self.device, &self.drawing.source.tokenizer);
        let mut with = Generating { device, model, parameters, tokenizer };
        self.objective.judge_generated(&mut with, &val, &mut evaluation)?;
        Ok(Some(evaluation))
    }

    fn sample(&mut self, model: &Transformer, parameters: &mut Parameters) -> Result<Option<String>, Error> {
        let source = &self.drawing.source;
        let mut with = Generating { device: &self.device, model, parameters, tokenizer: &source.tokenizer };
        self.objective.sample(&mut with, source.val.as_ref().unwrap_or(&source.train))
    }

    fn state(&self) -> DrawState {
        self.drawing.state()
    }

    fn restore(&mut self, state: &DrawState) -> Result<(), Error> {
        self.drawing.restore(state)
    }

    fn fingerprint(&self) -> String {
        self.drawing.source.train.fingerprint()
    }

    fn tokenizer(&self) -> Option<&Tokenizer> {
        Some(&self.drawing.source.tokenizer)
    }
}

impl WithExamples {
    fn find(&mut self, mode: Mode, parameters: &mut Parameters, options: &RunOptions) -> String {
        let index = self.drawing.program_of(mode, &self.batch);
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
