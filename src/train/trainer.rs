//! The training loop: batches, forward and backward, clipping, optimizer; and around each update what a run needs:
//! evaluation, samples, checkpoints, records, warnings, and a clean stop on a signal.
//!
//! The loop prints nothing. It tells an [`Observer`] what happens, which a tool turns into lines on a terminal.

use super::checkpoint::{self, Best, Checkpoints, Contents, Score, TrainerState};
use super::config::Config;
use super::estimate::{Estimate, estimate};
use super::job::{self, Amount, Job};
use super::memory::MemoryTable;
use super::metrics::{EvaluationRecord, JsonLines, METRICS_FILE, NOTES_FILE, Note, NoteKind, StepRecord};
use super::optimizer::Optimizer;
use super::outliers::Detector;
use super::run_folder;
use super::schedule::Schedule;
use super::signals::{self, Signal};
use super::source;
use super::tensorboard::EventWriter;
use crate::data;
use crate::model::huggingface::Wanted;
use crate::model::{ModelConfig, Transformer};
use crate::ops::Device;
use crate::tape::{self, Parameters, RunOptions};
use std::collections::BTreeMap;
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
    fn evaluation(&mut self, step: usize, val_loss: f64, figures: &[(&'static str, f64)]);
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
    #[error(transparent)]
    Score(#[from] crate::score::Error),
    #[error(transparent)]
    Translation(#[from] crate::model::translate::Error),
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
    job: Box<dyn Job>,
    amount: Amount,
    model: Transformer,
    parameters: Parameters,
    optimizer: Optimizer,
    schedule: Schedule,
    checkpoints: Checkpoints,
    metrics: JsonLines,
    notes: JsonLines,
    events: EventWriter,
    state: TrainerState,
    memory: MemoryTable,
    /// The last evaluation in detail: a table for the terminal, and a part of the report.
    judged: Option<(String, String)>,
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
    pub fn new(mut config: Config, folder: &Path, device: Arc<Device>, resume: bool) -> Result<Self, Error> {
        // Before anything in the folder is touched; that of a new run is made when all else is known to be right.
        let resumed = resume.then(|| run_folder::lock(folder)).transpose()?;
        let data = job::open(&config)?;
        if config.train.epochs > 0.0 {
            config.train.steps = data.steps(&config, config.train.epochs).max(1);
        }
        let Estimate { memory, amount, .. } = estimate(&config, &device, data.as_ref())?;
        memory.check(&device)?;

        let (model, mut parameters) =
            Transformer::treated(&device, config.model_config(data.facts()), &config.treatment(), config.train.seed)?;
        let mut optimizer = Optimizer::new(&device, &config.optimizer, &parameters)?;
        let z = config.train.outlier_z;
        let mut job = data.start(&config, &device, &model, &parameters)?;
        let mut state = TrainerState {
            step: 0,
            optimizer_updates: 0,
            tokens: 0,
            seconds: 0.0,
            seed: config.train.seed,
            sampler: job.state(),
            data_fingerprint: job.fingerprint(),
            best: None,
            evaluations_without_best: 0,
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
            job.restore(&saved.sampler)?;
            checkpoint::read(&newest, &model, &mut parameters, &mut optimizer, &saved)?;
            state = saved;
            state.loss_detector.set_threshold(z);
            state.norm_detector.set_threshold(z);
        } else if let Some(initial) = &config.model.initial {
            let refuse = |error: crate::model::huggingface::Error| Error::Initial(error.to_string());
            let initial = checkpoint::resolve(initial)?;
            ModelConfig::load(&initial).map_err(refuse)?;
            model.load_parameters(&initial, Wanted::Trunk, &mut parameters).map_err(refuse)?;
        }
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
        if let Some(best) = state.best.as_ref().filter(|_| config.train.keep_best) {
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
            job,
            amount,
            model,
            parameters,
            optimizer,
            checkpoints,
            state,
            memory,
            judged: None,
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

    /// How much data there is.
    pub fn amount(&self) -> &Amount {
        &self.amount
    }

    /// The last evaluation in detail, where the task has any: a table for the terminal, and a part of the report.
    pub fn judged(&self) -> Option<&(String, String)> {
        self.judged.as_ref()
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
    pub fn best(&self) -> Option<&Best> {
        self.state.best.as_ref()
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
            let patience = self.config.train.early_stop;
            if self.state.step >= steps || (patience > 0 && self.state.evaluations_without_best >= patience) {
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
        let (mut sum, mut counted, mut tokens) = (0.0, 0.0, 0);
        let mut beside: BTreeMap<&str, (f64, f64)> = BTreeMap::new();
        if accumulate > 1 {
            self.job.draw((self.state.step * accumulate) as u64, accumulate)?;
        }
        for micro in 0..accumulate {
            let options = self.run_options(micro);
            let learned = self.job.learn(&mut self.parameters, &options)?;
            if !learned.loss_sum.is_finite() {
                return Err(self.not_finite(micro, format!("loss is {}", learned.loss_sum)));
            }
            sum += learned.loss_sum;
            counted += learned.weight;
            tokens += learned.tokens;
            for (name, sum, weight) in learned.beside {
                if !sum.is_finite() {
                    return Err(self.not_finite(micro, format!("loss of {name} is {sum}")));
                }
                let both = beside.entry(name).or_default();
                *both = (both.0 + sum, both.1 + weight);
            }
        }
        let mean = |(name, (sum, weight)): (&str, (f64, f64))| (name.to_owned(), sum / weight.max(f64::MIN_POSITIVE));
        let beside: BTreeMap<String, f64> = beside.into_iter().map(mean).collect();
        let loss = sum / counted.max(f64::MIN_POSITIVE);
        let learning_rate = self.config.optimizer.learning_rate * self.schedule.factor(self.state.step);
        let update =
            self.optimizer.update(&self.device, &mut self.parameters, learning_rate, self.config.train.clip)?;
        if !update.is_finite {
            return Err(self.not_finite(accumulate - 1, format!("gradient's norm is {}", update.grad_norm)));
        }
        let seconds = start.elapsed().as_secs_f64();
        self.state.step += 1;
        self.state.tokens += tokens as u64;
        self.state.seconds += seconds;
        self.state.optimizer_updates = self.optimizer.updates();
        let (step, grad_norm, tokens_per_second) = (self.state.step, update.grad_norm, tokens as f64 / seconds);
        let mfu = tokens_per_second * self.flops_per_token() / self.peak_flops;
        self.record(observer, StepRecord { step, loss, lr: learning_rate, grad_norm, tokens_per_second, mfu, beside })
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

    /// Floating-point operations of training on a token of this data.
    fn flops_per_token(&self) -> f64 {
        self.model.flops_per_token(self.amount.time, self.amount.predicted)
    }

    /// Writes down an update, and warns of outliers.
    fn record(&mut self, observer: &mut dyn Observer, record: StepRecord) -> Result<(), Error> {
        let StepRecord { step, loss, lr, grad_norm, tokens_per_second, mfu, .. } = record;
        let outliers = [self.state.loss_detector.observe(loss), self.state.norm_detector.observe(grad_norm)];
        for outlier in outliers.into_iter().flatten() {
            self.note(observer, NoteKind::Warning, format!("step {step}: {outlier}"))?;
        }
        let scalars = [
            ("train/loss", loss),
            ("train/learning_rate", lr),
            ("train/grad_norm", grad_norm),
            ("speed/tokens_per_second", tokens_per_second),
            ("speed/mfu", mfu),
        ];
        self.events.scalars(step, &scalars)?;
        for (name, value) in &record.beside {
            self.events.scalars(step, &[(&format!("train/{name}"), *value)])?;
        }
        self.metrics.append(&record)?;
        observer.step(&StepReport {
            step,
            steps: self.config.train.steps,
            loss,
            learning_rate: lr,
            grad_norm,
            tokens_per_second,
            flops_per_second: tokens_per_second * self.flops_per_token(),
            mfu,
        });
        Ok(())
    }

    fn note(&mut self, observer: &mut dyn Observer, kind: NoteKind, text: String) -> Result<(), Error> {
        observer.message(&text);
        self.notes.append(&Note { step: self.state.step, kind, text })?;
        Ok(())
    }

    /// Evaluates; whether that was the best so far.
    ///
    /// A loss that is not finite ends the run: no update can make such a model better.
    fn evaluate(&mut self, observer: &mut dyn Observer) -> Result<bool, Error> {
        let step = self.state.step;
        let Some(found) = self.job.evaluate(&self.model, &mut self.parameters, step)? else { return Ok(false) };
        let mut record = EvaluationRecord::new(step, found.loss);
        record.more.extend(found.figures.iter().map(|&(name, value)| (name.to_owned(), value)));
        self.events.scalars(step, &[("val/loss", found.loss), ("val/perplexity", record.perplexity)])?;
        for (name, value) in &found.figures {
            self.events.scalars(step, &[(&format!("val/{name}"), *value)])?;
        }
        self.metrics.append(&record)?;
        observer.evaluation(step, found.loss, &found.figures);
        let score = found.best_by.and_then(|wanted| found.figures.iter().find(|(name, _)| *name == wanted));
        let now = Best {
            step,
            val_loss: found.loss,
            score: score.map(|&(name, value)| Score { name: name.to_owned(), value }),
        };
        let is_best = self.state.best.as_ref().is_none_or(|best| now.is_better_than(best));
        if is_best {
            if !found.predictions.is_empty() {
                run_folder::write_predictions(&self.folder, &found.predictions)?;
            }
            self.state.best = Some(now);
            self.state.evaluations_without_best = 0;
        } else {
            self.state.evaluations_without_best += 1;
        }
        self.judged = found.table.zip(found.section).or(self.judged.take());
        Ok(is_best)
    }

    /// Writes some text, to see what the model has learned.
    fn sample(&mut self, observer: &mut dyn Observer) -> Result<(), Error> {
        let Some(text) = self.job.sample(&self.model, &mut self.parameters)? else { return Ok(()) };
        let step = self.state.step;
        observer.message(&format!("--- sample after step {step}\n{}\n---", text.trim()));
        self.notes.append(&Note { step, kind: NoteKind::Sample, text: text.clone() })?;
        self.events.text(step, "sample", &text)?;
        Ok(())
    }

    fn save(&mut self, is_best: bool) -> Result<(), Error> {
        self.state.sampler = self.job.state();
        // Records are cut back to the checkpoint on resume, so they must be on the disk before it is.
        self.metrics.sync()?;
        self.notes.sync()?;
        let contents = Contents {
            model: &self.model,
            parameters: &self.parameters,
            optimizer: &self.optimizer,
            tokenizer: self.job.tokenizer(),
            state: &self.state,
        };
        self.checkpoints.write(&contents)?;
        if is_best && self.config.train.keep_best {
            self.checkpoints.mark_best(self.state.step)?;
        }
        let best = self.state.best.as_ref().filter(|_| self.config.train.keep_best).map(|best| best.step);
        self.checkpoints.prune(self.config.train.keep_last, best)?;
        Ok(())
    }

    /// Finds the first tensor that is not finite, by running the batch again.
    fn not_finite(&mut self, micro: usize, what: String) -> Error {
        let options = self.run_options(micro);
        let found = self.job.find_non_finite(&mut self.parameters, &options);
        Error::NotFinite { step: self.state.step + 1, what, found }
    }
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
    if saved_model.image != ours.image {
        return differs("the input of images", format!("{:?}", saved_model.image), format!("{:?}", ours.image));
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
