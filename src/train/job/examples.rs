//! Tasks with examples: texts or images with labels, or texts of which something is hidden. Examples come in batches of a
//! few shapes, packed or padded; programs of all shapes take turns over one arena.
//!
//! Several tasks may be learned together (`train.mix`): each update then takes a batch of each, and their losses are added
//! with weights (Caruana 1997, "Multitask Learning"). Only the first is evaluated.

use super::drawing::{self, Drawing, Drawn};
use super::objective::{self, Objective, Recorded, Wanted};
use super::translated::Generating;
use super::{Amount, Data, DrawState, Evaluation, Job, Learned, not_finite};
use crate::data::batch::{Arrangement, Halves};
use crate::data::tokenizer::SpecialTokens;
use crate::data::{Batch, LabelledSet, Tokenizer};
use crate::model::Transformer;
use crate::model::transformer::Inputs;
use crate::ops::Device;
use crate::tape::{self, MemoryUse, Mode, NonFinite, Parameters, Program, Programs, RunOptions, Tape, Value};
use crate::train::config::{Config, DataFacts, Task};
use crate::train::trainer::Error;
use std::mem::take;
use std::sync::Arc;

/// A task, its data, and what its loss weighs beside the others.
struct Part {
    name: &'static str,
    drawing: Drawing,
    objective: Box<dyn Objective>,
    weight: f64,
}

struct Examples {
    parts: Vec<Part>,
    facts: DataFacts,
    predicted: f64,
}

pub(super) fn open(config: &Config) -> Result<Box<dyn Data>, Error> {
    let mut parts = Vec::new();
    let mut facts = DataFacts::default();
    let (mut predicted, mut update_tokens) = (0.0, 0.0);
    for (config, weight) in config.tasks() {
        let drawing = Drawing::open(&config, Halves::Together)?;
        let objective = objective::new(&config, &drawing.source)?;
        match config.train.task {
            Task::Regression => facts.classes = vec![config.data.label.clone()],
            Task::Classification | Task::ImageClassification | Task::MultiLabel => {
                facts.classes = drawing.source.train.classes().to_vec()
            }
            Task::Translation => {
                let special = SpecialTokens::of(drawing.source.tokenizer()?)?;
                (facts.start, facts.end) = (Some(special.start), Some(special.end));
            }
            _ => {}
        }
        facts.image = facts.image.or(drawing.source.pictures.as_ref().map(|pictures| pictures.input));
        facts.vocabulary = facts.vocabulary.max(drawing.vocabulary);
        let tokens = drawing.amount().update_tokens as f64;
        predicted += tokens * predictions_per_token(&config, &drawing);
        update_tokens += tokens;
        let tokenizer = |drawing: &Drawing| drawing.source.tokenizer.as_ref().map(Tokenizer::to_json);
        if parts.first().is_some_and(|main: &Part| tokenizer(&main.drawing) != tokenizer(&drawing)) {
            let what = format!("train.mix: the tokenizer of {} is not that of the main task", config.train.task.name());
            return Err(Error::Unsupported(format!("{what}; name one for both, as data.tokenizer")));
        }
        parts.push(Part { name: config.train.task.name(), drawing, objective, weight });
    }
    Ok(Box::new(Examples { parts, facts, predicted: predicted / update_tokens.max(1.0) }))
}

/// How many predictions among the vocabulary a task makes for each token that it sees.
fn predictions_per_token(config: &Config, drawing: &Drawing) -> f64 {
    match config.train.task {
        Task::MaskedLm => config.train.mask_share * if config.train.losses.csm > 0.0 { 2.0 } else { 1.0 },
        // All rows take part in the product, whether something is learned there or not.
        Task::Translation => 1.0 / (1.0 - drawing.padding()).max(f64::MIN_POSITIVE),
        _ => 0.0,
    }
}

/// Inputs and results of a program.
struct Shape {
    ids: Value,
    positions: Value,
    types: Value,
    documents: Value,
    patches: Option<Value>,
    capacity: usize,
    recorded: Recorded,
}

impl Part {
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
            let image = model.config().image;
            let patches = image.map(|image| tape.input("patches", &[rows, time, image.numbers()]));
            let inputs = Inputs {
                ids,
                position_ids: Some(positions),
                type_ids: Some(types),
                documents: Some(documents),
                patches,
            };
            let trunk = model.record_trunk(&mut tape, &inputs, config.train.recompute && mode == Mode::Training)?;
            let examples = match &self.drawing.arrangement {
                Arrangement::Padded { .. } => rows,
                Arrangement::Packed { max_documents, .. } => *max_documents,
            };
            let capacity = self.objective.capacity(rows, time, examples);
            let recorded = self.objective.record(&mut tape, model, trunk, documents, capacity)?;
            Ok((tape, Shape { ids, positions, types, documents, patches, capacity, recorded }))
        };
        self.drawing.programs().into_iter().map(record).collect()
    }
}

impl Data for Examples {
    fn facts(&self) -> &DataFacts {
        &self.facts
    }

    fn amount(&self) -> Amount {
        let mut amount = Amount { predicted: self.predicted, ..self.parts[0].drawing.amount() };
        for part in &self.parts[1..] {
            let other = part.drawing.amount();
            amount.train_tokens += other.train_tokens;
            amount.bytes += other.bytes;
            amount.update_tokens += other.update_tokens;
            let train = &part.drawing.source.train;
            amount.line.push_str(&format!(
                "; beside them {} of {} for {}",
                train.len(),
                train.total_tokens(),
                part.name
            ));
        }
        amount
    }

    fn steps(&self, config: &Config, epochs: f64) -> usize {
        self.parts[0].drawing.steps(config, epochs)
    }

    fn measure(
        &self,
        config: &Config,
        device: &Arc<Device>,
        model: &Transformer,
        parameters: &Parameters,
    ) -> Result<(MemoryUse, usize), Error> {
        let mut tapes = Vec::new();
        for part in &self.parts {
            tapes.extend(part.tapes(config, device, model, parameters)?);
        }
        let largest = drawing::largest(tapes.iter().map(|(tape, _)| tape))?;
        let Part { drawing, objective, .. } = &self.parts[0];
        let examples = drawing.source.val.as_ref().map_or(0, LabelledSet::len);
        Ok((largest, objective.generating_bytes(model.config(), examples)))
    }

    fn start(
        self: Box<Self>,
        config: &Config,
        device: &Arc<Device>,
        model: &Transformer,
        parameters: &Parameters,
    ) -> Result<Box<dyn Job>, Error> {
        let (mut tapes, mut learners) = (Vec::new(), Vec::new());
        for part in self.parts {
            let first_program = tapes.len();
            let (of_part, shapes): (Vec<Tape<'_>>, Vec<Shape>) =
                part.tapes(config, device, model, parameters)?.into_iter().unzip();
            tapes.extend(of_part);
            learners.push(Learner {
                part,
                first_program,
                shapes,
                device: Arc::clone(device),
                drawn: Drawn::new(),
                batch: Batch::default(),
                patches: Vec::new(),
                wanted: Wanted::default(),
            });
        }
        Ok(Box::new(WithExamples { programs: Programs::new(tapes)?, learners }))
    }
}

/// A task under way.
struct Learner {
    part: Part,
    /// Number of its first program among all.
    first_program: usize,
    shapes: Vec<Shape>,
    device: Arc<Device>,
    drawn: Drawn<(Batch, Vec<f32>, Wanted)>,
    /// The last batch, the patches of its images, and what is to be learned from it.
    batch: Batch,
    patches: Vec<f32>,
    wanted: Wanted,
}

impl Learner {
    /// Writes the batch into its program.
    fn write<'p>(&self, programs: &'p mut Programs, mode: Mode) -> Result<(&'p mut Program, &Recorded), tape::Error> {
        let index = self.part.drawing.program_of(mode, &self.batch);
        let (shape, batch) = (&self.shapes[index], &self.batch);
        let program = programs.select(self.first_program + index)?;
        program.write_ids(shape.ids, &batch.ids)?;
        program.write_ids(shape.positions, &batch.positions)?;
        program.write_ids(shape.types, &batch.token_types)?;
        program.write_ids(shape.documents, &batch.documents)?;
        if let Some(patches) = shape.patches {
            program.write(patches, &self.patches)?;
        }
        self.wanted.write(program, &shape.recorded)?;
        Ok((program, &shape.recorded))
    }

    /// Draws a batch to learn from; `number` is its number.
    fn next(&mut self, number: u64) -> Result<(), Error> {
        self.part.drawing.next(&mut self.batch)?;
        self.prepare(Mode::Training, number)
    }

    fn prepare(&mut self, mode: Mode, number: u64) -> Result<(), Error> {
        let Part { drawing, objective, .. } = &mut self.part;
        let capacity = self.shapes[drawing.program_of(mode, &self.batch)].capacity;
        if let Some(pictures) = &drawing.source.pictures {
            pictures.write(mode, drawing.epoch(), &self.batch, &mut self.patches)?;
        }
        let set = match (mode, &drawing.source.val) {
            (Mode::Inference, Some(val)) => val,
            _ => &drawing.source.train,
        };
        objective.prepare(set, &mut self.batch, number, capacity, &mut self.wanted)
    }

    fn draw(&mut self, programs: &mut Programs, first: u64, count: usize) -> Result<(), Error> {
        self.drawn = Drawn::new();
        for number in first..first + count as u64 {
            self.next(number)?;
            let index = self.part.drawing.program_of(Mode::Training, &self.batch);
            let program = programs.select(self.first_program + index)?;
            let weight = self.wanted.weigh(program, &self.shapes[index].recorded);
            self.drawn.push((take(&mut self.batch), take(&mut self.patches), take(&mut self.wanted)), weight);
        }
        Ok(())
    }

    /// Learns from the next batch: the sum of its losses and what its counted rows weigh, and the same of what is beside.
    fn learn(
        &mut self,
        programs: &mut Programs,
        parameters: &mut Parameters,
        mut options: RunOptions,
    ) -> Result<Learned, Error> {
        let drawn = self.drawn.pop();
        let is_drawn = drawn.is_some();
        match drawn {
            Some(drawn) => (self.batch, self.patches, self.wanted) = drawn,
            None => self.next(options.step)?,
        }
        let (program, recorded) = self.write(programs, Mode::Training)?;
        if is_drawn {
            let losses = std::iter::once(recorded.loss).chain(recorded.beside.map(|(_, loss)| loss));
            self.drawn.count_rows_alike(losses, &mut options);
        }
        options.loss_factor *= self.part.weight;
        program.run(parameters, &options)?;
        let (loss_sum, weight) = program.loss_sum(recorded.loss)?;
        let mut beside = Vec::new();
        if let Some((name, loss)) = recorded.beside {
            let (sum, weight) = program.loss_sum(loss)?;
            beside.push((name, sum, weight));
        }
        Ok(Learned { loss_sum, weight, tokens: self.batch.tokens(), beside })
    }

    /// Lets the model write about the examples to evaluate on, or those to learn from where there are none.
    fn generating<T>(
        &mut self,
        model: &Transformer,
        parameters: &mut Parameters,
        write: impl FnOnce(&mut dyn Objective, &mut Generating<'_>, &LabelledSet) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let Part { drawing, objective, .. } = &mut self.part;
        let source = &drawing.source;
        let mut with = Generating { device: &self.device, model, parameters, source };
        write(objective.as_mut(), &mut with, source.val.as_ref().unwrap_or(&source.train))
    }

    fn find(&self, programs: &mut Programs, mode: Mode, parameters: &mut Parameters, options: &RunOptions) -> String {
        let written = self.write(programs, mode);
        name_of_non_finite(written.and_then(|(program, _)| program.find_non_finite(parameters, options)))
    }

    fn evaluate(
        &mut self,
        programs: &mut Programs,
        parameters: &mut Parameters,
        step: usize,
    ) -> Result<Option<Evaluation>, Error> {
        let Some((val, mut batcher)) = self.part.drawing.evaluation()? else { return Ok(None) };
        let (mut sum, mut counted) = (0.0, 0.0);
        let options = RunOptions::default();
        for _ in 0..batcher.batches_of_epoch() {
            batcher.next_batch(&val, &mut self.batch)?;
            self.prepare(Mode::Inference, 0)?;
            let (program, recorded) = self.write(programs, Mode::Inference)?;
            program.run(parameters, &options)?;
            let (batch_sum, batch_counted) = program.loss_sum(recorded.loss)?;
            if !batch_sum.is_finite() {
                let found = self.find(programs, Mode::Inference, parameters, &options);
                return Err(not_finite(step, batch_sum, found));
            }
            if let Some(output) = recorded.output {
                let output = program.read(output)?;
                self.part.objective.observe(&val, &self.batch, &output);
            }
            sum += batch_sum;
            counted += batch_counted;
        }
        let loss = sum / counted.max(f64::MIN_POSITIVE);
        Ok(Some(Evaluation { loss, ..self.part.objective.judge(&val)? }))
    }
}

/// All tasks of a run; the first is the one that is evaluated.
struct WithExamples {
    programs: Programs,
    learners: Vec<Learner>,
}

impl Job for WithExamples {
    fn draw(&mut self, first: u64, count: usize) -> Result<(), Error> {
        self.learners.iter_mut().try_for_each(|learner| learner.draw(&mut self.programs, first, count))
    }

    fn learn(&mut self, parameters: &mut Parameters, options: &RunOptions) -> Result<Learned, Error> {
        let is_mixed = self.learners.len() > 1;
        if is_mixed && !options.accumulate {
            // Each task leaves the gradients of the others' heads alone.
            parameters.clear_gradients().map_err(tape::Error::from)?;
        }
        let options = RunOptions { accumulate: options.accumulate || is_mixed, ..options.clone() };
        let mut learned = Learned::default();
        for (number, learner) in self.learners.iter_mut().enumerate() {
            let found = learner.learn(&mut self.programs, parameters, options.clone())?;
            if number == 0 {
                learned = found;
                continue;
            }
            learned.tokens += found.tokens;
            learned.beside.push((learner.part.name, found.loss_sum, found.weight));
            learned.beside.extend(found.beside);
        }
        Ok(learned)
    }

    fn find_non_finite(&mut self, parameters: &mut Parameters, options: &RunOptions) -> String {
        let find = |learner: &Learner| learner.find(&mut self.programs, Mode::Training, parameters, options);
        let found: Vec<String> = self.learners.iter().map(find).collect();
        found.iter().find(|found| *found != SUM_OVERFLOWS).unwrap_or(&found[0]).clone()
    }

    fn evaluate(
        &mut self,
        model: &Transformer,
        parameters: &mut Parameters,
        step: usize,
    ) -> Result<Option<Evaluation>, Error> {
        let found = self.learners[0].evaluate(&mut self.programs, parameters, step)?;
        let Some(mut evaluation) = found else { return Ok(None) };
        self.learners[0].generating(model, parameters, |objective, with, set| {
            objective.judge_generated(with, set, &mut evaluation)
        })?;
        Ok(Some(evaluation))
    }

    fn sample(&mut self, model: &Transformer, parameters: &mut Parameters) -> Result<Option<String>, Error> {
        self.learners[0].generating(model, parameters, |objective, with, set| objective.sample(with, set))
    }

    fn state(&self) -> DrawState {
        match &self.learners[..] {
            [only] => DrawState::Examples(only.part.drawing.state()),
            all => DrawState::Mixed(all.iter().map(|learner| learner.part.drawing.state()).collect()),
        }
    }

    fn restore(&mut self, state: &DrawState) -> Result<(), Error> {
        let states = match state {
            DrawState::Examples(state) => std::slice::from_ref(state),
            DrawState::Mixed(states) => states,
            DrawState::Windows(_) => &[],
        };
        if states.len() != self.learners.len() {
            let (was, now) = (states.len(), self.learners.len());
            let what = format!("the run learned {was} tasks with examples, and now there are {now}");
            return Err(Error::Resume(what));
        }
        self.learners.iter_mut().zip(states).try_for_each(|(learner, state)| learner.part.drawing.restore(state))
    }

    fn fingerprint(&self) -> String {
        let all = self.learners.iter().map(|learner| learner.part.drawing.source.fingerprint());
        all.collect::<Vec<_>>().join("+")
    }

    fn tokenizer(&self) -> Option<&Tokenizer> {
        self.learners[0].part.drawing.source.tokenizer.as_ref()
    }
}

/// What is said where no tensor is to blame.
const SUM_OVERFLOWS: &str = "no single tensor holds one: their sum overflows";

/// What a search for a tensor that is not finite found, in words.
pub(super) fn name_of_non_finite(found: Result<Option<NonFinite>, tape::Error>) -> String {
    match found {
        Ok(Some(found)) => {
            format!("the first tensor that holds one is {}, element {}: {}", found.tensor, found.index, found.value)
        }
        _ => SUM_OVERFLOWS.to_owned(),
    }
}
