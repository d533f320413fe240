//! `dataset.json`: what a packed folder holds and how it was made.

use super::error::{Error, Result};
use super::pack::Document;
use crate::util::atomic_file::write_atomically;
use serde::{Deserialize, Serialize};
use std::io::Write;
use std::path::Path;

/// Name of the file inside a packed folder.
pub const FILE: &str = "dataset.json";

/// Name of the tokenizer beside it.
pub const TOKENIZER_FILE: &str = "tokenizer.json";

/// Stands in a folder while shards are given their names; after that only if the packer was killed in that moment.
pub(crate) const UNFINISHED_FILE: &str = "unfinished";

/// What a packed folder holds.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Manifest {
    /// `u16` or `u32`.
    pub token_type: String,
    /// Number of ids of the tokenizer.
    pub vocabulary: usize,
    /// Kind of the tokenizer: `byte`, `char` or `tokenizer.json`.
    pub tokenizer: String,
    /// The id that ends a document, where there is one.
    pub end_of_text: Option<u32>,
    /// What a document is.
    pub document: Document,
    /// The last fraction of each source that went to validation.
    pub val_fraction: f64,
    /// The training split.
    pub train: SplitEntry,
    /// The validation split.
    pub val: Option<SplitEntry>,
    /// The text files, in order.
    pub sources: Vec<Source>,
}

/// One split.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SplitEntry {
    /// Number of tokens.
    pub tokens: usize,
    /// As [`Dataset::fingerprint`](super::Dataset::fingerprint).
    pub fingerprint: String,
    /// The shards, in order.
    pub shards: Vec<ShardEntry>,
}

/// One shard.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ShardEntry {
    /// Name of the file.
    pub file: String,
    /// Number of tokens.
    pub tokens: usize,
    /// Hash of all its tokens: see [`Shard::checksum`](super::shard::Shard::checksum).
    pub checksum: String,
}

/// One text file.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Source {
    /// Path as it was given.
    pub name: String,
    /// Size in bytes.
    pub bytes: u64,
}

impl Manifest {
    /// Reads the description of a folder; None where it has none, as folders that other tools wrote.
    ///
    /// # Errors
    /// The file cannot be read or is not a description.
    pub fn load(folder: impl AsRef<Path>) -> Result<Option<Self>> {
        let path = folder.as_ref().join(FILE);
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Error::read(&path)(error)),
        };
        let parsed = serde_json::from_slice(&bytes);
        parsed.map(Some).map_err(|error| {
            Error::shard(
                &path,
                format!("not a description of a data set ({error})"),
                "write the folder again with `engine-data pack`",
            )
        })
    }

    /// Writes the description into a folder.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn save(&self, folder: impl AsRef<Path>) -> Result<()> {
        Ok(write_atomically(folder.as_ref().join(FILE), |file| {
            serde_json::to_writer_pretty(&mut *file, self)?;
            file.write_all(b"\n")
        })?)
    }

    /// The splits that there are, with their names.
    pub fn splits(&self) -> impl Iterator<Item = (&'static str, &SplitEntry)> {
        std::iter::once(("train", &self.train)).chain(self.val.iter().map(|val| ("val", val)))
    }
}
