//! What happened in a run, as JSON lines: `metrics.jsonl` (one object per update, one per evaluation) and
//! `notes.jsonl` (samples and warnings).
//!
//! Files only ever grow, by whole lines, each with one `write`. A process that is killed can leave at most half of the
//! last line; going on from a checkpoint cuts the file back to the lines that the checkpoint knows of, so that a
//! resumed run's file reads like that of a run that was never interrupted.

use super::WriteError;
use serde::{Deserialize, Deserializer, Serialize};
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

/// Name of the file of [`Record`]s in a run's folder.
pub const METRICS_FILE: &str = "metrics.jsonl";
/// Name of the file of [`Note`]s in a run's folder.
pub const NOTES_FILE: &str = "notes.jsonl";

/// Figures of one update.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepRecord {
    /// Updates made so far, this one included.
    pub step: usize,
    /// Mean loss of the batch, before the update.
    #[serde(deserialize_with = "null_is_nan")]
    pub loss: f64,
    /// Learning rate of the update.
    #[serde(deserialize_with = "null_is_nan")]
    pub lr: f64,
    /// Global norm of the gradient, before clipping.
    #[serde(deserialize_with = "null_is_nan")]
    pub grad_norm: f64,
    #[serde(deserialize_with = "null_is_nan")]
    pub tokens_per_second: f64,
    /// Model FLOPs per second as a share of the machine's measured peak.
    #[serde(deserialize_with = "null_is_nan")]
    pub mfu: f64,
    /// Losses that are learned beside `loss`, by name: `csm`, or other tasks of train.mix.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub beside: BTreeMap<String, f64>,
}

/// Figures of one evaluation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EvaluationRecord {
    /// Updates made so far.
    pub step: usize,
    /// Mean loss on text that is not learned from.
    #[serde(deserialize_with = "null_is_nan")]
    pub val_loss: f64,
    /// `exp(val_loss)`.
    #[serde(deserialize_with = "null_is_nan")]
    pub perplexity: f64,
    /// The task's own figures: `accuracy`, `f1`, `bleu`...
    #[serde(flatten)]
    pub more: BTreeMap<String, f64>,
}

impl EvaluationRecord {
    /// An evaluation with its perplexity and no further figures.
    pub fn new(step: usize, val_loss: f64) -> Self {
        Self { step, val_loss, perplexity: val_loss.exp(), more: BTreeMap::new() }
    }
}

/// One line of `metrics.jsonl`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Record {
    Step(StepRecord),
    Evaluation(EvaluationRecord),
}

impl From<StepRecord> for Record {
    fn from(record: StepRecord) -> Self {
        Self::Step(record)
    }
}

impl From<EvaluationRecord> for Record {
    fn from(record: EvaluationRecord) -> Self {
        Self::Evaluation(record)
    }
}

/// Kinds of notes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NoteKind {
    /// Text that the model wrote.
    Sample,
    /// Something unusual: an outlier, a resumed run.
    Warning,
}

/// One line of `notes.jsonl`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Note {
    /// Updates made so far.
    pub step: usize,
    pub kind: NoteKind,
    pub text: String,
}

/// JSON has no NaN: serde_json writes `null` for what is not finite.
fn null_is_nan<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    Ok(Option::<f64>::deserialize(deserializer)?.unwrap_or(f64::NAN))
}

/// A file of records cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    #[error("cannot read {}: {source}; check that it is a file that you may read", .path.display())]
    Unreadable { path: PathBuf, source: io::Error },
    #[error("{} line {line} is not a record of a run ({what}): remove the line, or the file", .path.display())]
    NotARecord { path: PathBuf, line: usize, what: String },
}

/// A file of JSON objects, one a line, each with a `step`, that only grows.
#[derive(Debug)]
pub struct JsonLines {
    path: PathBuf,
    file: File,
}

impl JsonLines {
    /// Starts a new file.
    ///
    /// # Errors
    /// The file exists already, or cannot be created.
    pub fn create(path: impl Into<PathBuf>) -> Result<Self, WriteError> {
        let path = path.into();
        match OpenOptions::new().append(true).create_new(true).open(&path) {
            Ok(file) => Ok(Self { path, file }),
            Err(cause) => Err(WriteError { path, cause }),
        }
    }

    /// Goes on with the file of an interrupted run whose newest checkpoint was written after `step` updates: what
    /// came later, and half a line at the end, is cut off. A file that does not exist is created.
    ///
    /// # Errors
    /// The file cannot be read or written.
    pub fn resume(path: impl Into<PathBuf>, step: usize) -> Result<Self, WriteError> {
        let path = path.into();
        let open = || -> io::Result<File> {
            let file = OpenOptions::new().read(true).append(true).create(true).open(&path)?;
            file.set_len(length_until(&file, step)?)?;
            Ok(file)
        };
        match open() {
            Ok(file) => Ok(Self { path, file }),
            Err(cause) => Err(WriteError { path, cause }),
        }
    }

    /// Adds one line.
    ///
    /// # Errors
    /// The disk is full, or another failure of the file system.
    pub fn append(&mut self, record: &impl Serialize) -> Result<(), WriteError> {
        let write = |file: &mut File| -> io::Result<()> {
            let mut line = serde_json::to_vec(record)?;
            line.push(b'\n');
            file.write_all(&line)
        };
        write(&mut self.file).map_err(|cause| WriteError { path: self.path.clone(), cause })
    }

    /// Waits until all lines are on the disk; to be called before a checkpoint that counts on them.
    ///
    /// # Errors
    /// A failure of the file system.
    pub fn sync(&self) -> Result<(), WriteError> {
        self.file.sync_data().map_err(|cause| WriteError { path: self.path.clone(), cause })
    }
}

/// Bytes of the whole lines at the start of `file` that belong to the first `step` updates.
fn length_until(file: &File, step: usize) -> io::Result<u64> {
    #[derive(Deserialize)]
    struct Line {
        step: usize,
    }
    let mut reader = BufReader::new(file);
    let (mut kept, mut line) = (0, Vec::new());
    loop {
        line.clear();
        let length = reader.read_until(b'\n', &mut line)?;
        let is_kept =
            line.ends_with(b"\n") && serde_json::from_slice::<Line>(&line).is_ok_and(|line| line.step <= step);
        if !is_kept {
            return Ok(kept);
        }
        kept += length as u64;
    }
}

/// All records of a file: [`Record`]s of `metrics.jsonl`, [`Note`]s of `notes.jsonl`. Half a line at the end is left
/// out, and a file that does not exist has no records.
///
/// # Errors
/// The file cannot be read, or a whole line of it is not a record.
pub fn read<T: for<'de> Deserialize<'de>>(path: &Path) -> Result<Vec<T>, ReadError> {
    let bytes = match std::fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(|source| ReadError::Unreadable { path: path.into(), source })?,
    };
    let whole = bytes.iter().rposition(|&byte| byte == b'\n').map_or(0, |at| at + 1);
    let lines = bytes[..whole].split_inclusive(|&byte| byte == b'\n');
    lines
        .enumerate()
        .map(|(index, line)| {
            serde_json::from_slice(line).map_err(|error| ReadError::NotARecord {
                path: path.into(),
                line: index + 1,
                what: error.to_string(),
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(step: usize) -> Record {
        StepRecord {
            step,
            loss: 4.25,
            lr: 1e-3,
            grad_norm: 0.5,
            tokens_per_second: 1e4,
            mfu: 0.25,
            beside: BTreeMap::new(),
        }
        .into()
    }

    fn evaluation(step: usize) -> Record {
        EvaluationRecord::new(step, 2.0).into()
    }

    fn written(records: &[Record]) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(METRICS_FILE);
        let mut file = JsonLines::create(&path).unwrap();
        records.iter().for_each(|record| file.append(record).unwrap());
        (folder, path)
    }

    #[test]
    fn lines_have_the_names_of_the_contract() {
        let line = |record: &Record| serde_json::to_string(record).unwrap();
        assert_eq!(
            line(&step(3)),
            r#"{"step":3,"loss":4.25,"lr":0.001,"grad_norm":0.5,"tokens_per_second":10000.0,"mfu":0.25}"#
        );
        let mut record = EvaluationRecord::new(7, 0.0);
        record.more.insert("accuracy".into(), 0.5);
        assert_eq!(line(&record.into()), r#"{"step":7,"val_loss":0.0,"perplexity":1.0,"accuracy":0.5}"#);
    }

    #[test]
    fn what_is_written_reads_back() {
        let records = [evaluation(0), step(1), step(2), evaluation(2)];
        let (_folder, path) = written(&records);
        assert_eq!(read::<Record>(&path).unwrap(), records);
    }

    #[test]
    fn a_loss_that_is_not_a_number_reads_back_as_one() {
        let mut record = StepRecord {
            step: 1,
            loss: 0.0,
            lr: 1.0,
            grad_norm: 1.0,
            tokens_per_second: 1.0,
            mfu: 1.0,
            beside: BTreeMap::new(),
        };
        (record.loss, record.grad_norm) = (f64::NAN, f64::INFINITY);
        let (_folder, path) = written(&[record.into()]);
        let [Record::Step(back)] = &read::<Record>(&path).unwrap()[..] else { panic!("one step") };
        assert!(back.loss.is_nan() && back.grad_norm.is_nan() && back.lr == 1.0);
    }

    #[test]
    fn a_resumed_file_is_that_of_a_run_without_interruption() {
        let (_straight_folder, straight) = written(&[evaluation(0), step(1), step(2), evaluation(2), step(3)]);
        let (_folder, path) = written(&[evaluation(0), step(1), step(2), evaluation(2), step(3), step(4)]);
        std::fs::OpenOptions::new().append(true).open(&path).unwrap().write_all(b"{\"step\":5,\"lo").unwrap();
        let mut file = JsonLines::resume(&path, 2).unwrap();
        file.append(&step(3)).unwrap();
        file.sync().unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), std::fs::read(&straight).unwrap());
    }

    /// Wherever a crash cuts the file, the whole lines before stay, and nothing else.
    #[test]
    fn any_cut_resumes_to_whole_lines() {
        let (_folder, path) = written(&[step(1), evaluation(1), step(2), step(3)]);
        let whole = std::fs::read(&path).unwrap();
        for length in 0..=whole.len() {
            std::fs::write(&path, &whole[..length]).unwrap();
            drop(JsonLines::resume(&path, 2).unwrap());
            let kept = std::fs::read(&path).unwrap();
            assert!(kept.is_empty() || kept.ends_with(b"\n"), "cut at {length}");
            let lines = whole[..length].iter().filter(|&&byte| byte == b'\n').count();
            assert_eq!(read::<Record>(&path).unwrap().len(), lines.min(3), "cut at {length}");
        }
    }

    #[test]
    fn resuming_without_a_file_starts_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(METRICS_FILE);
        JsonLines::resume(&path, 10).unwrap().append(&step(11)).unwrap();
        assert_eq!(read::<Record>(&path).unwrap(), [step(11)]);
    }

    #[test]
    fn half_a_line_at_the_end_is_left_out_and_a_bad_line_named() {
        let (_folder, path) = written(&[step(1)]);
        let mut text = std::fs::read(&path).unwrap();
        text.extend_from_slice(b"{\"step\":2");
        std::fs::write(&path, &text).unwrap();
        assert_eq!(read::<Record>(&path).unwrap(), [step(1)]);
        text.extend_from_slice(b"\n");
        std::fs::write(&path, &text).unwrap();
        let message = read::<Record>(&path).unwrap_err().to_string();
        assert!(message.contains("metrics.jsonl line 2 is not a record") && message.lines().count() == 1, "{message}");
    }

    #[test]
    fn a_new_file_never_replaces_one_that_exists() {
        let (_folder, path) = written(&[step(1)]);
        let message = JsonLines::create(&path).unwrap_err().to_string();
        assert!(message.contains("metrics.jsonl"), "{message}");
        assert_eq!(read::<Record>(&path).unwrap(), [step(1)]);
    }

    #[test]
    fn notes_keep_any_text() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(NOTES_FILE);
        let note = Note { step: 5, kind: NoteKind::Sample, text: "\"two\nlines\"\u{0}\u{FFFD}".into() };
        JsonLines::create(&path).unwrap().append(&note).unwrap();
        assert_eq!(read::<Note>(&path).unwrap(), [note]);
    }
}
