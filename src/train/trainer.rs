//! The training loop: batches, forward and backward, clipping, optimizer; and around each update what a run needs:
//! evaluation, samples, checkpoints, records, warnings, and a clean stop on a signal.
//!
//! The loop prints nothing. It tells an [`Observer`] what happens, which a tool turns into lines on a terminal.

use super::checkpoint::{self, Best, Checkpoints, Contents, TrainerState};
use super::config::{Config, Order, Train};
use super::estimate::{estimate, has_evaluation};
use super::memory::MemoryTable;
use super::metrics::{EvaluationRecord, JsonLines, METRICS_FILE, NOTES_FILE, Note, NoteKind, StepRecord};
use super::optimizer::Optimizer;
use super::outliers::Detector;
use super::recorded::{Recorded, model_config};
use super::run_folder;
use super::schedule::Schedule;
use super::signals::{self, Signal};
use super::source::{self, Source};
use super::tensorboard::EventWriter;
use crate::data::{self, Sampler};
use crate::model::generate::{Generator, Sampling};
use crate::model::huggingface::Wanted;
use crate::model::{ModelConfig, Transformer};
use crate::ops::Device;
use crate::tape::{self, Mode, Parameters, RunOptions};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

/// Told what happens in a run.
pub trait Observer {
    /// One line for a person.
    fn message(&mut self, text: &str);
    /// An update was made.
    fn step(&mut self, report: &StepReport);
    /// An evaluation was made.
    fn evaluation(&mut self, step: usize, val_loss: f64);
}

/// Figures of an update, for a progress line.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepReport {
    /// Updates made, and to be made in all.
    pub step: usize,
    pub steps: usize,
    pub loss: f64,
    pub learning_rate: f64,
    pub grad_norm: f64,
    pub tokens_per_second: f64,
    pub flops_per_second: f64,
    /// Share of the machine's measured peak.
    pub mfu: f64,
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All updates were made.
    Done,
    /// A signal stopped it; a checkpoint was written.
    Stopped(Signal),
}

/// Why a run cannot start or go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Source(#[from] source::Error),
    #[error(transparent)]
    Data(#[from] data::Error),
    #[error(transparent)]
    Checkpoint(#[from] checkpoint::Error),
    #[error(transparent)]
    Model(#[from] crate::model::huggingface::Error),
    #[error(transparent)]
    Tape(#[from] tape::Error),
    #[error(transparent)]
    Parameters(#[from] tape::ParameterError),
    #[error(transparent)]
    OutOfMemory(#[from] tape::OutOfMemory),
    #[error(transparent)]
    Operation(#[from] crate::ops::Error),
    #[error(transparent)]
    Device(#[from] crate::driver::Error),
    #[error(transparent)]
    Memory(#[from] super::memory::MemoryError),
    #[error(transparent)]
    Write(#[from] crate::util::atomic_file::WriteError),
    #[error(transparent)]
    Folder(#[from] run_folder::Error),
    #[error("cannot resume: {0}")]
    Resume(String),
    #[error("{0}")]
    Unsupported(String),
    #[error("train.sample_prompt: {0}")]
    Prompt(String),
    #[error("model.initial: {0}")]
    Initial(String),
    #[error(
        "step {step}: the {what}; {found}; lower optimizer.learning_rate or set train.clip, and go on from the last \
         checkpoint with --resume"
    )]
    NotFinite { step: usize, what: String, found: String },
}

/// A run: data, model, optimizer, and where they stand.
pub struct Trainer {
    config: Config,
    folder: PathBuf,
    /// Keeps other processes out of the folder.
    _lock: run_folder::Lock,
    device: Arc<Device>,
    peak_flops: f64,
    source: Source,
    model: Transformer,
    parameters: Parameters,
    optimizer: Optimizer,
    schedule: Schedule,
    sampler: Sampler,
    training: Recorded,
    evaluation: Option<Recorded>,
    checkpoints: Checkpoints,
    metrics: JsonLines,
    notes: JsonLines,
    events: EventWriter,
    state: TrainerState,
    memory: MemoryTable,
    /// What samples go on from; empty where none are written.
    prompt: Vec<u32>,
    ids: Vec<i32>,
    targets: Vec<i32>,
}

impl Trainer {
    /// Sets a run up in `folder`: a fresh one, which makes the folder, or one that goes on from the newest checkpoint
    /// there with `resume` (from the start where the run was stopped before its first).
    ///
    /// What can be refused is refused before anything is allocated, and that before anything is written.
    ///
    /// # Errors
    /// Data that cannot be used, a run that does not fit into memory, a checkpoint that does not fit the
    /// configuration, a folder that is in use or cannot be written to.
    pub fn new(config: Config, folder: &Path, device: Arc<Device>, resume: bool) -> Result<Self, Error> {
        // Before anything in the folder is touched; that of a new run is made when all else is known to be right.
        let resumed = resume.then(|| run_folder::lock(folder)).transpose()?;
        let (source, vocabulary) = source::open(&config)?;
        let block = config.model.block;
        let mut sampler = sampler(&config, &source)?;
        let prompt = prompt(&config, &source, vocabulary)?;
        let end_of_text = source.tokenizer.as_ref().and_then(|tokenizer| tokenizer.end_of_text());
        let memory = estimate(&config, &device, &source, vocabulary)?.memory;
        memory.check(&device)?;

        let (model, mut parameters) =
            Transformer::new(&device, model_config(&config, vocabulary, end_of_text), config.train.seed)?;
        let mut optimizer = Optimizer::new(&device, &config.optimizer, &parameters)?;
        let z = config.train.outlier_z;
        let mut state = TrainerState {
            step: 0,
            optimizer_updates: 0,
            tokens: 0,
            seconds: 0.0,
            seed: config.train.seed,
            sampler: sampler.state(),
            data_fingerprint: source.train.fingerprint(),
            best: None,
            loss_detector: Detector::new("loss", z),
            norm_detector: Detector::new("gradient norm", z),
        };
        if resume {
            run_folder::remove_leftovers(folder)?;
        }
        let newest = if resume { Checkpoints::open(folder)?.newest()? } else { None };
        if let Some(newest) = newest {
            let saved = checkpoint::read_state(&newest)?;
            check_resumable(&config, &model, &newest, &saved, &state)?;
            sampler.restore(&saved.sampler)?;
            checkpoint::read(&newest, &model, &mut parameters, &mut optimizer, &saved)?;
            state = saved;
            state.loss_detector.set_threshold(z);
            state.norm_detector.set_threshold(z);
        } else if let Some(initial) = &config.model.initial {
            let initial = checkpoint::resolve(initial)?;
            model
                .load_parameters(&initial, Wanted::All, &mut parameters)
                .map_err(|error| Error::Initial(error.to_string()))?;
        }
        let training = Recorded::new(&config, &device, &model, &parameters, Mode::Training)?;
        let evaluation = has_evaluation(&config, &source)
            .then(|| Recorded::new(&config, &device, &model, &parameters, Mode::Inference));
        let evaluation = evaluation.transpose()?;
        let size = config.train.batch * block;
        let lock = match resumed {
            Some(lock) => lock,
            None => {
                run_folder::create(folder)?;
                run_folder::lock(folder)?
            }
        };
        // First of all: a folder with a configuration can be resumed, whenever the run is killed.
        run_folder::write_config(folder, &config)?;
        let checkpoints = Checkpoints::open(folder)?;
        if let Some(best) = state.best.filter(|_| config.train.keep_best) {
            // The run may have been killed between the checkpoint and the link.
            checkpoints.mark_best(best.step)?;
        }
        Ok(Self {
            peak_flops: device.measure_flops()?,
            schedule: Schedule::new(&config),
            metrics: JsonLines::resume(folder.join(METRICS_FILE), state.step)?,
            notes: JsonLines::resume(folder.join(NOTES_FILE), state.step)?,
            events: EventWriter::create(folder, state.step)?,
            folder: folder.to_owned(),
            _lock: lock,
            config,
            device,
            source,
            model,
            parameters,
            optimizer,
            sampler,
            training,
            evaluation,
            checkpoints,
            state,
            memory,
            prompt,
            ids: vec![0; size],
            targets: vec![0; size],
        })
    }

    /// Memory by category.
    pub fn memory(&self) -> &MemoryTable {
        &self.memory
    }

    /// The run's configuration.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The run's folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The model.
    pub fn model(&self) -> &Transformer {
        &self.model
    }

    /// The data.
    pub fn source(&self) -> &Source {
        &self.source
    }

    /// Updates made so far.
    pub fn step(&self) -> usize {
        self.state.step
    }

    /// Floating-point operations a second of this machine, as measured.
    pub fn peak_flops(&self) -> f64 {
        self.peak_flops
    }

    /// The best evaluation so far.
    pub fn best(&self) -> Option<Best> {
        self.state.best
    }

    /// Seconds of training so far, those before a resume included.
    pub fn seconds(&self) -> f64 {
        self.state.seconds
    }

    /// Makes the updates that are left, until they are done or a signal arrives. A checkpoint is there afterwards.
    ///
    /// # Errors
    /// A loss or gradient that is not finite; a file that cannot be written.
    pub fn run(&mut self, observer: &mut dyn Observer) -> Result<Outcome, Error> {
        let steps = self.config.train.steps;
        let mut is_saved = self.state.step > 0;
        let outcome = loop {
            if let Some(signal) = signals::received() {
                break Outcome::Stopped(signal);
            }
            if self.state.step >= steps {
                break Outcome::Done;
            }
            self.update(observer)?;
            is_saved = false;
            let is_due = |every: usize| every > 0 && self.state.step.is_multiple_of(every);
            let is_last = self.state.step >= steps;
            let (evaluate, save) = (is_due(self.config.train.eval_every), is_due(self.config.train.checkpoint_every));
            let sample = self.config.train.sample_every > 0 && (is_due(self.config.train.sample_every) || is_last);
            let is_best = if evaluate || is_last { self.evaluate(observer)? } else { false };
            if sample {
                self.sample(observer)?;
            }
            if save || (is_best && self.config.train.keep_best) {
                self.save(is_best)?;
                is_saved = true;
            }
        };
        if !is_saved {
            self.save(false)?;
        }
        Ok(outcome)
    }

    /// One update.
    fn update(&mut self, observer: &mut dyn Observer) -> Result<(), Error> {
        let start = Instant::now();
        let accumulate = self.config.train.accumulate;
        let (mut sum, mut counted) = (0.0, 0.0f64);
        for micro in 0..accumulate {
            self.sampler.next_batch(&self.source.train, &mut self.ids, &mut self.targets)?;
            let options = self.run_options(micro);
            let (batch_sum, batch_counted) =
                self.training.run(&mut self.parameters, &self.ids, &self.targets, &options)?;
            if !batch_sum.is_finite() {
                return Err(self.not_finite(micro, format!("loss is {batch_sum}")));
            }
            sum += batch_sum;
            counted += batch_counted;
        }
        let loss = sum / counted.max(f64::MIN_POSITIVE);
        let learning_rate = self.config.optimizer.learning_rate * self.schedule.factor(self.state.step);
        let update =
            self.optimizer.update(&self.device, &mut self.parameters, learning_rate, self.config.train.clip)?;
        if !update.is_finite {
            return Err(self.not_finite(accumulate - 1, format!("gradient's norm is {}", update.grad_norm)));
        }
        let seconds = start.elapsed().as_secs_f64();
        let tokens = self.config.tokens_per_step();
        self.state.step += 1;
        self.state.tokens += tokens as u64;
        self.state.seconds += seconds;
        self.state.optimizer_updates = self.optimizer.updates();
        self.record(observer, loss, learning_rate, update.grad_norm, tokens as f64 / seconds)
    }

    fn run_options(&self, micro: usize) -> RunOptions {
        let accumulate = self.config.train.accumulate;
        RunOptions {
            seed: self.config.train.seed,
            step: (self.state.step * accumulate + micro) as u64,
            accumulate: micro > 0,
            loss_factor: 1.0 / accumulate as f64,
            ..RunOptions::default()
        }
    }

    /// Writes down an update, and warns of outliers.
    fn record(
        &mut self,
        observer: &mut dyn Observer,
        loss: f64,
        lr: f64,
        grad_norm: f64,
        tokens_per_second: f64,
    ) -> Result<(), Error> {
        let step = self.state.step;
        let flops_per_second = tokens_per_second * self.model.flops_per_token(self.config.model.block);
        let mfu = flops_per_second / self.peak_flops;
        let outliers = [self.state.loss_detector.observe(loss), self.state.norm_detector.observe(grad_norm)];
        for outlier in outliers.into_iter().flatten() {
            self.note(observer, NoteKind::Warning, format!("step {step}: {outlier}"))?;
        }
        self.metrics.append(&StepRecord { step, loss, lr, grad_norm, tokens_per_second, mfu })?;
        let scalars = [
            ("train/loss", loss),
            ("train/learning_rate", lr),
            ("train/grad_norm", grad_norm),
            ("speed/tokens_per_second", tokens_per_second),
            ("speed/mfu", mfu),
        ];
        self.events.scalars(step, &scalars)?;
        observer.step(&StepReport {
            step,
            steps: self.config.train.steps,
            loss,
            learning_rate: lr,
            grad_norm,
            tokens_per_second,
            flops_per_second,
            mfu,
        });
        Ok(())
    }

    fn note(&mut self, observer: &mut dyn Observer, kind: NoteKind, text: String) -> Result<(), Error> {
        observer.message(&text);
        self.notes.append(&Note { step: self.state.step, kind, text })?;
        Ok(())
    }

    /// Mean loss on the same windows of the validation data each time; whether it is the lowest so far.
    ///
    /// A loss that is not finite ends the run: no update can make such a model better.
    fn evaluate(&mut self, observer: &mut dyn Observer) -> Result<bool, Error> {
        let Some(evaluation) = &mut self.evaluation else { return Ok(false) };
        let (batch, block) = (self.config.train.batch, self.config.model.block);
        let mut sampler =
            Sampler::new(self.source.val.len(), data::Order::Shuffled, batch, block, self.config.train.seed)?;
        let batches = self.config.train.eval_batches.max(1).min(sampler.windows_per_epoch().div_ceil(batch));
        let (mut sum, mut counted) = (0.0, 0.0f64);
        for _ in 0..batches {
            sampler.next_batch(&self.source.val, &mut self.ids, &mut self.targets)?;
            let options = RunOptions::default();
            let (batch_sum, batch_counted) =
                evaluation.run(&mut self.parameters, &self.ids, &self.targets, &options)?;
            if !batch_sum.is_finite() {
                let found = evaluation.find_non_finite(&mut self.parameters, &self.ids, &self.targets, &options);
                let what = format!("validation loss is {batch_sum}");
                return Err(Error::NotFinite { step: self.state.step, what, found });
            }
            sum += batch_sum;
            counted += batch_counted;
        }
        let (step, val_loss) = (self.state.step, sum / counted.max(f64::MIN_POSITIVE));
        let record = EvaluationRecord::new(step, val_loss);
        self.events.scalars(step, &[("val/loss", val_loss), ("val/perplexity", record.perplexity)])?;
        self.metrics.append(&record)?;
        observer.evaluation(step, val_loss);
        let is_best = self.state.best.is_none_or(|best| val_loss < best.val_loss);
        if is_best {
            self.state.best = Some(Best { step, val_loss });
        }
        Ok(is_best)
    }

    /// Writes some text, to see what the model has learned.
    fn sample(&mut self, observer: &mut dyn Observer) -> Result<(), Error> {
        let Some(tokenizer) = &self.source.tokenizer else { return Ok(()) };
        let train = &self.config.train;
        let sampling = Sampling { temperature: train.sample_temperature, seed: train.seed, ..Sampling::default() };
        let device = Arc::clone(&self.device);
        let mut generator =
            Generator::new(device, &self.model, &mut self.parameters, std::slice::from_ref(&self.prompt))?;
        for draw in 0..train.sample_tokens {
            let token = sampling.choose(generator.logits(0), 0, draw as u64);
            if Some(token) == tokenizer.end_of_text() || draw + 1 == train.sample_tokens {
                break;
            }
            generator.push(&mut self.parameters, &[token])?;
        }
        let text = tokenizer.decode(generator.tokens(0));
        let step = self.state.step;
        observer.message(&format!("--- sample after step {step}\n{}\n---", text.trim()));
        self.notes.append(&Note { step, kind: NoteKind::Sample, text: text.clone() })?;
        self.events.text(step, "sample", &text)?;
        Ok(())
    }

    fn save(&mut self, is_best: bool) -> Result<(), Error> {
        self.state.sampler = self.sampler.state();
        // Records are cut back to the checkpoint on resume, so they must be on the disk before it is.
        self.metrics.sync()?;
        self.notes.sync()?;
        let contents = Contents {
            model: &self.model,
            parameters: &self.parameters,
            optimizer: &self.optimizer,
            tokenizer: self.source.tokenizer.as_ref(),
            state: &self.state,
        };
        self.checkpoints.write(&contents)?;
        if is_best && self.config.train.keep_best {
            self.checkpoints.mark_best(self.state.step)?;
        }
        let best = self.state.best.filter(|_| self.config.train.keep_best).map(|best| best.step);
        self.checkpoints.prune(self.config.train.keep_last, best)?;
        Ok(())
    }

    /// Finds the first tensor that is not finite, by running the batch again.
    fn not_finite(&mut self, micro: usize, what: String) -> Error {
        let options = self.run_options(micro);
        let found = self.training.find_non_finite(&mut self.parameters, &self.ids, &self.targets, &options);
        Error::NotFinite { step: self.state.step + 1, what, found }
    }
}

/// Draws training batches.
pub(super) fn sampler(config: &Config, source: &Source) -> Result<Sampler, Error> {
    let order = match config.data.order {
        Order::Shuffled => data::Order::Shuffled,
        Order::Random => data::Order::Random,
        Order::Sequential => data::Order::Sequential,
    };
    Ok(Sampler::new(source.train.len(), order, config.train.batch, config.model.block, config.train.seed)?)
}

/// Tokens that samples go on from. Where the text lacks the default, a newline, the first token of the text stands in.
pub(super) fn prompt(config: &Config, source: &Source, vocabulary: usize) -> Result<Vec<u32>, Error> {
    let Some(tokenizer) = source.tokenizer.as_ref().filter(|_| config.train.sample_every > 0) else {
        return Ok(Vec::new());
    };
    let text = &config.train.sample_prompt;
    let refused = match tokenizer.encode(text) {
        Ok(tokens) if tokens.is_empty() => None,
        Ok(tokens) if tokens.iter().all(|&token| (token as usize) < vocabulary) => return Ok(tokens),
        Ok(_) => Some(format!("{text:?} has tokens beyond model.vocabulary = {vocabulary}; choose another")),
        Err(error) => Some(format!("{error}; or choose a prompt of characters that occur in the text")),
    };
    if let Some(what) = refused.filter(|_| *text != Train::default().sample_prompt) {
        return Err(Error::Prompt(what));
    }
    let mut first = [0];
    source.train.read(0, &mut first);
    let stand_in = tokenizer.end_of_text().filter(|&token| (token as usize) < vocabulary);
    Ok(vec![stand_in.unwrap_or(first[0] as u32)])
}

/// Refuses to go on with another model or other data.
fn check_resumable(
    config: &Config,
    model: &Transformer,
    folder: &Path,
    saved: &TrainerState,
    fresh: &TrainerState,
) -> Result<(), Error> {
    let saved_model = ModelConfig::load(folder)?;
    let differs = |what: &str, saved: String, now: String| {
        Err(Error::Resume(format!(
            "{what} was {saved} and is now {now}; use the values of the run, or start a new one"
        )))
    };
    let ours = model.config();
    for (key, saved, now) in [
        ("model.layers", saved_model.layers, ours.layers),
        ("model.heads", saved_model.heads, ours.heads),
        ("model.channels", saved_model.channels, ours.channels),
        ("model.ffn", saved_model.ffn, ours.ffn),
        ("model.block", saved_model.block, ours.block),
        ("the vocabulary", saved_model.vocabulary, ours.vocabulary),
    ] {
        if saved != now {
            return differs(key, saved.to_string(), now.to_string());
        }
    }
    if saved_model.tied != ours.tied {
        return differs("model.tied", saved_model.tied.to_string(), ours.tied.to_string());
    }
    if saved.seed != config.train.seed {
        return differs("train.seed", saved.seed.to_string(), config.train.seed.to_string());
    }
    if saved.data_fingerprint != fresh.data_fingerprint {
        return Err(Error::Resume(
            "the training data is not what the run learned from; put the old data back, or start a new run".into(),
        ));
    }
    Ok(())
}
