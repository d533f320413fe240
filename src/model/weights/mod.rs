//! Tensors on disk: the safetensors format, read by memory map and written as a stream.
//!
//! A file is an 8-byte little-endian length, that many bytes of JSON (`name -> dtype, shape, byte range`), then the
//! values of all tensors end to end (<https://github.com/huggingface/safetensors>). The crate of that name gives us
//! the words of the format; the checks are here, because a file comes from anywhere and each complaint must name the
//! file, the tensor and the figures. Everything is checked once, in [`WeightFile::open`]; what is handed out
//! afterwards is a range of the map, so opening 500 MB costs a few pages and no copy.
//!
//! Writing streams each tensor from where it lies, transposing on the way where asked, under a temporary name that is
//! renamed only when all bytes are on disk.

mod file;
mod folder;
#[cfg(test)]
mod tests;
mod write;

pub use file::{TensorView, WeightFile};
pub use folder::WeightFolder;
pub use safetensors::Dtype;
pub(crate) use write::transpose;
pub use write::{NewTensor, write};

use crate::util::atomic_file::WriteError;
use std::path::{Path, PathBuf};
use std::{fs, io};

#[cfg(target_endian = "big")]
compile_error!("weights are little-endian on disk and used in place: port src/model/weights before building here");

/// Longest header that is believed: the format's own limit. GPT-2's is 15 kB.
const LONGEST_HEADER_BYTES: u64 = 100_000_000;
/// Most dimensions that a tensor may have; no model comes near it.
const MOST_DIMENSIONS: usize = 16;
/// File name of the weights in a model folder.
pub const WEIGHTS_FILE: &str = "model.safetensors";
/// File name of the table of contents where the weights of a model folder are cut into several files.
pub const INDEX_FILE: &str = "model.safetensors.index.json";

/// What is wrong with a weight file, in one line: what, where, what to do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The operating system refused.
    #[error("cannot {action} {}: {source}{}", path.display(), remedy(source))]
    Io {
        /// What was tried: `open`, `write`...
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// A file cannot be written.
    #[error(transparent)]
    Write(#[from] WriteError),
    /// The file as a whole is not what it should be.
    #[error("{}: {what}; the file is damaged or of another kind: copy or export it again", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong, with the figures.
        what: String,
    },
    /// The header's entry for one tensor makes no sense.
    #[error("{}: tensor {tensor}: {what}; the file is damaged: copy or export it again", path.display())]
    Header {
        /// The file.
        path: PathBuf,
        /// The tensor, escaped.
        tensor: String,
        /// What is wrong, with the figures.
        what: String,
    },
    /// A tensor that is not in the file.
    #[error("{}: there is no tensor {tensor} among its {count}; use a file of the same kind of model", path.display())]
    Missing {
        /// The file or folder.
        path: PathBuf,
        /// The tensor, escaped.
        tensor: String,
        /// How many tensors there are.
        count: usize,
    },
    /// A tensor whose values cannot be read as what the caller wants.
    #[error("{}: tensor {tensor} holds {found:?}, not {wanted}; convert it first", path.display())]
    Dtype {
        /// The file.
        path: PathBuf,
        /// The tensor, escaped.
        tensor: String,
        /// What it holds.
        found: Dtype,
        /// What would do.
        wanted: &'static str,
    },
    /// A folder without weights that can be read.
    #[error("{}: no {WEIGHTS_FILE} and no {INDEX_FILE} in this folder; {remedy}", folder.display())]
    NoWeights {
        /// The folder.
        folder: PathBuf,
        /// What to do about it.
        remedy: &'static str,
    },
    /// Tensors that cannot be written as they were described: a mistake of the caller, found before writing.
    #[error("cannot write {}: tensor {tensor}: {what}", path.display())]
    Unwritable {
        /// The file.
        path: PathBuf,
        /// The tensor, escaped.
        tensor: String,
        /// What does not fit.
        what: String,
    },
}

/// What to do about a refusal of the operating system, where that is clear.
fn remedy(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::NotFound => "; check the path",
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => "; choose another place or allow it",
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => "; free some space there or choose another place",
        _ => "",
    }
}

/// `text` for a one-line message: control characters escaped, the end of a very long one left out.
pub(crate) fn one_line(text: &str) -> String {
    let limit = 240;
    let mut line: String = text.chars().take(limit).flat_map(char::escape_debug).collect();
    // `escape_debug` also escapes quotes, which are harmless and common in messages.
    line = line.replace("\\\"", "\"").replace("\\'", "'");
    if text.chars().nth(limit).is_some() {
        line.push_str("...");
    }
    line
}

/// A shape as people write it: `(3, 4)`.
pub(crate) fn show_shape(shape: &[usize]) -> String {
    let sizes: Vec<String> = shape.iter().map(usize::to_string).collect();
    format!("({})", sizes.join(", "))
}

/// The bytes of a file that must not be longer than `limit_bytes`.
pub(crate) fn read_limited(path: &Path, limit_bytes: u64) -> Result<Vec<u8>, Error> {
    let failed = |source| Error::Io { action: "read", path: path.to_owned(), source };
    let kind = fs::metadata(path).map_err(failed)?;
    if !kind.is_file() || kind.len() > limit_bytes {
        let what = format!("not a regular file of at most {limit_bytes} bytes");
        return Err(Error::File { path: path.to_owned(), what });
    }
    fs::read(path).map_err(failed)
}
