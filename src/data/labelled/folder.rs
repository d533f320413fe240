//! A folder of labelled examples: its description, and opening it.

use super::super::error::{Error, Result};
use super::super::hash::Hash;
use super::super::manifest::{Source, TOKENIZER_FILE};
use super::super::tokenizer::SpecialTokens;
use super::format::Layout;
use super::{Keep, Kind, LabelledSet, Task, fingerprint};
use crate::util::atomic_file::write_atomically;
use memmap2::Mmap;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{ErrorKind, Write};
use std::path::Path;
use std::sync::Arc;

/// Name of the file of examples.
pub const EXAMPLES_FILE: &str = "examples.bin";

/// Name of the description beside it.
pub const DESCRIPTION_FILE: &str = "labels.json";

const AGAIN: &str = "copy the folder again, or make it again with `engine-data labelled`";

/// `labels.json`: what a set of examples is and how it was made.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Description {
    /// The kind of task.
    pub kind: Kind,
    /// The task with its columns.
    pub task: Task,
    /// Tokens of an example at most.
    pub max_tokens: usize,
    /// What was kept of texts that were too long.
    #[serde(default)]
    pub keep: Keep,
    /// Number of ids of the tokenizer.
    pub vocabulary: usize,
    /// Hash of the tokenizer's `tokenizer.json`.
    pub tokenizer: String,
    /// The special tokens around the texts; None where there are none.
    pub special: Option<SpecialTokens>,
    /// The names of the classes, in the order of their numbers.
    pub classes: Vec<String>,
    /// Rows that examples were made of.
    pub rows: usize,
    /// Number of examples.
    pub examples: usize,
    /// Number of tokens.
    pub tokens: usize,
    /// Rows left out because a text had no tokens.
    pub skipped: usize,
    /// Rows of which a part was cut off to keep to `max_tokens`.
    pub truncated: usize,
    /// As [`LabelledSet::fingerprint`].
    pub fingerprint: String,
    /// The files of rows, in order.
    pub sources: Vec<Source>,
}

impl Description {
    /// Reads that of a folder.
    ///
    /// # Errors
    /// There is none, or it is not a description of labelled examples.
    pub fn load(folder: impl AsRef<Path>) -> Result<Self> {
        let folder = folder.as_ref();
        let path = folder.join(DESCRIPTION_FILE);
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == ErrorKind::NotFound => {
                let what = format!("the folder has no {DESCRIPTION_FILE}, so it is no whole set of labelled examples");
                return Err(Error::shard(folder, what, AGAIN));
            }
            Err(error) => return Err(Error::read(&path)(error)),
        };
        serde_json::from_slice(&bytes)
            .map_err(|error| Error::shard(&path, format!("not a description of labelled examples ({error})"), AGAIN))
    }

    pub(super) fn save(&self, folder: &Path) -> Result<()> {
        Ok(write_atomically(folder.join(DESCRIPTION_FILE), |file| {
            serde_json::to_writer_pretty(&mut *file, self)?;
            file.write_all(b"\n")
        })?)
    }
}

/// Hash of a text.
pub(super) fn hash_text(text: &str) -> String {
    let mut hash = Hash::new();
    text.bytes().for_each(|byte| hash.add(u64::from(byte)));
    hash.text()
}

pub(super) fn open(folder: &Path) -> Result<LabelledSet> {
    let description = Description::load(folder)?;
    let path = folder.join(EXAMPLES_FILE);
    let file = File::open(&path).map_err(Error::read(&path))?;
    if file.metadata().map_err(Error::read(&path))?.len() == 0 {
        return Err(Error::shard(&path, "the file is empty", AGAIN));
    }
    // SAFETY: the map is read-only, and what it holds are plain numbers. They are checked here, and slices cut by them are
    // checked again as all slices are, so a process that changes the file meanwhile makes wrong numbers or a panic; one that
    // cuts it short ends this process.
    let map = unsafe { Mmap::map(&file) }.map_err(Error::read(&path))?;
    let layout = Layout::read(&path, &map, description.classes.len())?;
    let set = LabelledSet {
        map: Arc::new(map),
        layout,
        description: Arc::new(description),
        path: Some(folder.to_path_buf()),
    };
    if set.fingerprint() != set.description.fingerprint || set.kind() != set.description.kind {
        let what = format!("{EXAMPLES_FILE} is not the file that {DESCRIPTION_FILE} describes");
        return Err(Error::shard(folder, what, AGAIN));
    }
    Ok(set)
}

impl LabelledSet {
    /// Everything that opening a folder leaves out: the hash of all content, token ids, the tokenizer, and the texts of
    /// the rows. Returns what is wrong, one error each.
    pub fn verify(&self) -> Vec<Error> {
        let mut errors = Vec::new();
        let path = self.path.as_deref().unwrap_or(Path::new("examples in memory"));
        let held = fingerprint(self.len(), self.total_tokens(), Layout::hash_of(&self.map));
        if held != self.fingerprint() {
            let file = path.join(EXAMPLES_FILE);
            errors.push(Error::shard(file, "its content does not match the hash in its header", AGAIN));
        }
        errors.extend(self.check_vocabulary(self.description.vocabulary).err());
        if let Some(folder) = &self.path {
            let file = folder.join(TOKENIZER_FILE);
            match std::fs::read_to_string(&file) {
                Ok(text) if hash_text(&text) == self.description.tokenizer => {}
                Ok(_) => errors.push(Error::shard(&file, "is not the tokenizer that made the examples", AGAIN)),
                Err(error) => errors.push(Error::read(&file)(error)),
            }
        }
        let text = |row| match self.kind() {
            Kind::Span => self.question(row).err(),
            Kind::Pair => self.sides(row).err(),
            _ => None,
        };
        errors.extend((0..self.rows()).find_map(text));
        errors
    }
}
