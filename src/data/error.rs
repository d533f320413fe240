//! What can go wrong between bytes on disk and batches of token ids: each error is one line that says what, where,
//! and what to do.

use crate::util::atomic_file::{WriteError, plainly};
use std::io;
use std::path::{Path, PathBuf};

/// Result of the data part.
pub type Result<T> = std::result::Result<T, Error>;

/// An error of the data part.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or folder cannot be read.
    #[error("cannot read {}: {}", path.display(), plainly(cause))]
    Read { path: PathBuf, cause: io::Error },

    /// A file cannot be written.
    #[error(transparent)]
    Write(#[from] WriteError),

    /// A file of tokens, or a folder of them, is not what it should be.
    #[error("{}: {what}; {remedy}", path.display())]
    Shard { path: PathBuf, what: String, remedy: String },

    /// A token id that the model has no row for.
    #[error(
        "{place}: token {token} at position {position} is not below the vocabulary of {vocabulary}; \
         use the tokenizer that the shards were made with, or a model with a larger vocabulary"
    )]
    TokenOutOfVocabulary { place: String, position: usize, token: u32, vocabulary: usize },

    /// A file of rows (TSV, CSV, JSONL, text) cannot be read, or holds no rows.
    #[error("{}: {what}; {remedy}", path.display())]
    Table { path: PathBuf, what: String, remedy: String },

    /// A row of a file is not what it should be. Rows count from 1, without the header.
    #[error("{}: row {row} (line {line}): {what}; {remedy}", path.display())]
    Row { path: PathBuf, row: u64, line: u64, what: String, remedy: String },

    /// A file of rows has no column of that name; those that it has, the nearest first.
    #[error(
        "{}: no column {column:?}; it has {}",
        path.display(), there.iter().map(|name| format!("{name:?}")).collect::<Vec<_>>().join(", ")
    )]
    Column { path: PathBuf, column: String, there: Vec<String> },

    /// Text that is not UTF-8.
    #[error("{}: not UTF-8 at byte {offset}; convert the file (for example with iconv) or leave it out", path.display())]
    InvalidUtf8 { path: PathBuf, offset: u64 },

    /// A character that a character tokenizer has never seen.
    #[error(
        "{}line {line}, column {column}: character {character:?} (U+{:04X}) is not in the tokenizer's vocabulary; \
         make the tokenizer from all texts, or use --tokenizer byte",
        path.as_ref().map(|path| format!("{}: ", path.display())).unwrap_or_default(), u32::from(*character)
    )]
    UnknownCharacter { path: Option<PathBuf>, line: u64, column: u64, character: char },

    /// A tokenizer file cannot be used, or a tokenizer cannot do what was asked.
    #[error("{place}: {what}")]
    Tokenizer { place: String, what: String },

    /// Fewer tokens than one window needs.
    #[error(
        "the data holds {tokens} tokens, but a block of {block} needs at least {}; use more text or a smaller block",
        block + 1
    )]
    TooShort { tokens: usize, block: usize },

    /// A sampler cannot go on from a saved state.
    #[error("cannot resume: {what} was {saved} and is now {current}; use the same data and settings as the saved run")]
    Resume { what: &'static str, saved: String, current: String },

    /// An argument out of its range: bad usage.
    #[error("{0}")]
    Argument(String),

    /// The output folder already holds a data set.
    #[error("{} already holds a data set; choose another folder, or pass --overwrite to replace it", path.display())]
    OutputExists { path: PathBuf },
}

impl Error {
    pub(crate) fn read(path: impl AsRef<Path>) -> impl FnOnce(io::Error) -> Self {
        let path = path.as_ref().to_path_buf();
        move |cause| Self::Read { path, cause }
    }

    pub(crate) fn shard(path: impl AsRef<Path>, what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::Shard { path: path.as_ref().to_path_buf(), what: what.into(), remedy: remedy.into() }
    }

    pub(crate) fn table(path: impl AsRef<Path>, what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::Table { path: path.as_ref().to_path_buf(), what: what.into(), remedy: remedy.into() }
    }

    pub(crate) fn tokenizer(place: impl std::fmt::Display, what: impl std::fmt::Display) -> Self {
        // One line: parsers like to quote their input over several.
        Self::Tokenizer { place: place.to_string(), what: what.to_string().replace('\n', " ") }
    }

    /// The same error, for text that starts on line `first_line` of the file `path`.
    pub(crate) fn within(self, file: &Path, first_line: u64) -> Self {
        match self {
            Self::UnknownCharacter { path: None, line, column, character } => Self::UnknownCharacter {
                path: Some(file.to_path_buf()),
                line: line + first_line - 1,
                column,
                character,
            },
            other => other,
        }
    }
}
