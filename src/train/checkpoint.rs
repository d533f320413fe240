//! Checkpoints: `checkpoints/step-00000123/` is a Hugging Face style model folder plus the optimizer's state and
//! `trainer.json`, everything that an exact resume needs.
//!
//! A checkpoint is written into a folder with a name of its own and renamed when it is whole and on the disk, so a
//! folder called `step-…` is whole whatever happened. `best` is a link to the one with the lowest evaluation loss.

use super::job::DrawState;
use super::optimizer::Optimizer;
use super::outliers::Detector;
use crate::data::Tokenizer;
use crate::model::Transformer;
use crate::model::huggingface::{self, ParameterSpec, Wanted};
use crate::model::lora;
use crate::tape::{ParameterId, Parameters, Specification};
use crate::util::atomic_file::{PARTIAL_SUFFIX, WriteError, plainly, write_atomically};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

/// Name of the folder of checkpoints in a run's folder.
pub const CHECKPOINTS: &str = "checkpoints";
/// Name of the link to the best checkpoint.
pub const BEST: &str = "best";
const TRAINER_FILE: &str = "trainer.json";
const TOKENIZER_FILE: &str = "tokenizer.json";

/// Where a run stands; `trainer.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainerState {
    /// Updates made.
    pub step: usize,
    /// Updates that the optimizer counts.
    pub optimizer_updates: u64,
    /// Tokens learned from.
    pub tokens: u64,
    /// Seconds of training so far.
    pub seconds: f64,
    pub seed: u64,
    pub sampler: DrawState,
    /// [`crate::data::Dataset::fingerprint`] of the training data.
    pub data_fingerprint: String,
    /// The best evaluation.
    pub best: Option<Best>,
    /// Evaluations since then.
    #[serde(default)]
    pub evaluations_without_best: usize,
    pub loss_detector: Detector,
    pub norm_detector: Detector,
}

/// The best evaluation so far: by the task's own figure, or the lowest loss where it has none.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Best {
    pub step: usize,
    pub val_loss: f64,
    #[serde(default)]
    pub score: Option<Score>,
}

/// A figure of a task; the higher the better.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Score {
    pub name: String,
    pub value: f64,
}

impl Best {
    /// Whether this evaluation is better than another, which came before.
    pub fn is_better_than(&self, other: &Self) -> bool {
        match (&self.score, &other.score) {
            (Some(ours), Some(theirs)) if ours.value != theirs.value => ours.value > theirs.value,
            _ => self.val_loss < other.val_loss,
        }
    }
}

/// A checkpoint cannot be written or read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Model(#[from] huggingface::Error),
    #[error(transparent)]
    Write(#[from] WriteError),
    #[error("cannot {action} {}: {}", path.display(), plainly(source))]
    Io { action: &'static str, path: PathBuf, source: std::io::Error },
    #[error("{}: not the state of a trainer ({what}); resume from another checkpoint", path.display())]
    State { path: PathBuf, what: String },
    #[error(
        "{} is the state of another optimizer: resume with the run's own optimizer.name and optimizer.momentum",
        .0.display()
    )]
    Optimizer(PathBuf),
    #[error("{} holds no checkpoint; check the path", .0.display())]
    None(PathBuf),
}

fn io(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::Io { action, path, source }
}

/// Everything that a checkpoint holds.
pub struct Contents<'a> {
    pub model: &'a Transformer,
    pub parameters: &'a Parameters,
    pub optimizer: &'a Optimizer,
    pub tokenizer: Option<&'a Tokenizer>,
    pub state: &'a TrainerState,
}

/// The checkpoints of one run.
pub struct Checkpoints {
    folder: PathBuf,
}

impl Checkpoints {
    /// Those of the run in `run_folder`; leftovers of a killed run are removed.
    ///
    /// # Errors
    /// The folder cannot be made or read.
    pub fn open(run_folder: &Path) -> Result<Self, Error> {
        let folder = run_folder.join(CHECKPOINTS);
        fs::create_dir_all(&folder).map_err(io("make the folder", &folder))?;
        for entry in fs::read_dir(&folder).map_err(io("read the folder", &folder))? {
            let path = entry.map_err(io("read the folder", &folder))?.path();
            if path.file_name().is_some_and(|name| name.to_string_lossy().ends_with(PARTIAL_SUFFIX)) && path.is_dir() {
                fs::remove_dir_all(&path).map_err(io("remove", &path))?;
            }
        }
        Ok(Self { folder })
    }

    /// Where the checkpoint of a step is or would be.
    pub fn path(&self, step: usize) -> PathBuf {
        self.folder.join(format!("step-{step:08}"))
    }

    /// Steps of all checkpoints, ascending.
    ///
    /// # Errors
    /// The folder cannot be read.
    pub fn steps(&self) -> Result<Vec<usize>, Error> {
        steps(&self.folder)
    }

    /// Writes a checkpoint; an existing one of the same step is replaced.
    ///
    /// # Errors
    /// A file cannot be written; the checkpoints that were there are untouched.
    pub fn write(&self, contents: &Contents<'_>) -> Result<PathBuf, Error> {
        let state = contents.state;
        let path = self.path(state.step);
        let partial = self.folder.join(format!("step-{:08}{PARTIAL_SUFFIX}", state.step));
        if partial.exists() {
            fs::remove_dir_all(&partial).map_err(io("remove", &partial))?;
        }
        let written = write_files(&partial, contents);
        if written.is_err() {
            // The first error is the one to report; what is left is removed by the next run.
            let _ = fs::remove_dir_all(&partial);
        }
        written?;
        // A run that was resumed from an older checkpoint comes to the same step again.
        let old = if path.exists() { Some(self.set_aside(state.step)?) } else { None };
        fs::rename(&partial, &path).map_err(io("name the checkpoint", &path))?;
        sync_folder(&self.folder)?;
        if let Some(old) = old {
            fs::remove_dir_all(&old).map_err(io("remove", &old))?;
        }
        Ok(path)
    }

    /// Takes a checkpoint's name away, so that a kill while it is being removed leaves nothing that looks whole.
    fn set_aside(&self, step: usize) -> Result<PathBuf, Error> {
        let (path, aside) = (self.path(step), self.folder.join(format!("step-{step:08}.old{PARTIAL_SUFFIX}")));
        fs::rename(&path, &aside).map_err(io("remove", &path))?;
        Ok(aside)
    }

    /// Points the link `best` at the checkpoint of a step; does nothing where that is not there.
    ///
    /// # Errors
    /// The link cannot be made.
    pub fn mark_best(&self, step: usize) -> Result<(), Error> {
        if !self.path(step).is_dir() {
            return Ok(());
        }
        let (link, partial) = (self.folder.join(BEST), self.folder.join(format!("{BEST}{PARTIAL_SUFFIX}")));
        let _ = fs::remove_file(&partial);
        std::os::unix::fs::symlink(format!("step-{step:08}"), &partial).map_err(io("make the link", &link))?;
        fs::rename(&partial, &link).map_err(io("make the link", &link))
    }

    /// Removes all but the newest `keep_last` checkpoints and the one of step `best`.
    ///
    /// # Errors
    /// A folder cannot be removed.
    pub fn prune(&self, keep_last: usize, best: Option<usize>) -> Result<(), Error> {
        let steps = self.steps()?;
        for &step in steps.iter().rev().skip(keep_last.max(1)).filter(|&&step| Some(step) != best) {
            let aside = self.set_aside(step)?;
            fs::remove_dir_all(&aside).map_err(io("remove", &aside))?;
        }
        Ok(())
    }

    /// The folder of the newest checkpoint, where there is one.
    ///
    /// # Errors
    /// The folder cannot be read.
    pub fn newest(&self) -> Result<Option<PathBuf>, Error> {
        Ok(self.steps()?.last().map(|&step| self.path(step)))
    }
}

fn steps(folder: &Path) -> Result<Vec<usize>, Error> {
    let mut steps = Vec::new();
    for entry in fs::read_dir(folder).map_err(io("read the folder", folder))? {
        let name = entry.map_err(io("read the folder", folder))?.file_name();
        let digits = name.to_str().and_then(|name| name.strip_prefix("step-"));
        steps.extend(digits.filter(|digits| digits.len() >= 8).and_then(|digits| digits.parse::<usize>().ok()));
    }
    steps.sort_unstable();
    Ok(steps)
}

/// The model folder that a path of the user means: itself, or the newest checkpoint where it is a run's folder.
///
/// # Errors
/// A run's folder without a checkpoint.
pub fn resolve(path: &Path) -> Result<PathBuf, Error> {
    let checkpoints = if path.ends_with(CHECKPOINTS) { path.to_owned() } else { path.join(CHECKPOINTS) };
    if path.join("config.json").exists() || !checkpoints.is_dir() {
        return Ok(path.to_owned());
    }
    let newest = steps(&checkpoints)?.last().map(|step| checkpoints.join(format!("step-{step:08}")));
    newest.ok_or_else(|| Error::None(path.to_owned()))
}

fn write_files(folder: &Path, contents: &Contents<'_>) -> Result<(), Error> {
    let Contents { model, parameters, optimizer, tokenizer, state } = contents;
    model.save(folder, parameters)?;
    lora::save(folder, model, parameters)?;
    let (specs, ids) = trainable(parameters);
    let metadata = BTreeMap::from([("updates".to_owned(), optimizer.updates().to_string())]);
    huggingface::save_optimizer(folder, &specs, optimizer.states(), &metadata, |index, state| {
        Ok(optimizer.state(parameters, ids[index], state)?)
    })?;
    if let Some(tokenizer) = tokenizer {
        let path = folder.join(TOKENIZER_FILE);
        write_atomically(&path, |file| file.write_all(tokenizer.to_json().as_bytes()))?;
    }
    let mut text = serde_json::to_vec_pretty(state).expect("the state has a JSON form");
    text.push(b'\n');
    write_atomically(folder.join(TRAINER_FILE), |file| file.write_all(&text))?;
    sync_folder(folder)
}

/// The parameters that the optimizer has a state for: their names and shapes, and which they are.
fn trainable(parameters: &Parameters) -> (Vec<ParameterSpec>, Vec<ParameterId>) {
    let trainable = parameters.ids().filter(|&id| parameters.specification(id).trainable);
    let spec = |id: ParameterId| {
        let Specification { name, shape, .. } = parameters.specification(id);
        ParameterSpec { name: name.clone(), shape: shape.clone(), stored: Vec::new(), is_head: false }
    };
    trainable.map(|id| (spec(id), id)).unzip()
}

fn sync_folder(folder: &Path) -> Result<(), Error> {
    fs::File::open(folder).and_then(|file| file.sync_all()).map_err(io("sync the folder", folder))
}

/// The tokenizer of a model folder, where there is one.
///
/// # Errors
/// A file that is not a tokenizer.
pub fn tokenizer(folder: &Path) -> crate::data::Result<Option<Tokenizer>> {
    let path = folder.join(TOKENIZER_FILE);
    if path.is_file() { Tokenizer::load(path).map(Some) } else { Ok(None) }
}

/// Reads where the run of a checkpoint stood.
///
/// # Errors
/// The file cannot be read or is damaged.
pub fn read_state(folder: &Path) -> Result<TrainerState, Error> {
    let path = folder.join(TRAINER_FILE);
    let text = fs::read(&path).map_err(io("read", &path))?;
    serde_json::from_slice(&text).map_err(|error| Error::State { path, what: error.to_string() })
}

/// Fills parameters and optimizer from a checkpoint of the same model.
///
/// # Errors
/// A damaged checkpoint, or one of a model of other sizes.
pub fn read(
    folder: &Path,
    model: &Transformer,
    parameters: &mut Parameters,
    optimizer: &mut Optimizer,
    state: &TrainerState,
) -> Result<(), Error> {
    model.load_parameters(folder, Wanted::All, parameters)?;
    lora::load(folder, model, parameters)?;
    let (specs, ids) = trainable(parameters);
    huggingface::load_optimizer(folder, &specs, optimizer.states(), |index, state, values| {
        Ok(optimizer.set_state(parameters, ids[index], state, values)?)
    })
    .map_err(|error| match error {
        huggingface::Error::Missing { folder, .. } | huggingface::Error::Extra { folder, .. } => {
            Error::Optimizer(folder.join(huggingface::OPTIMIZER_FILE))
        }
        other => Error::Model(other),
    })?;
    optimizer.resume_at(state.optimizer_updates);
    Ok(())
}
