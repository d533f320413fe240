//! The training loop and all that belongs to a run.

pub mod config;
pub mod memory;
pub mod metrics;
pub mod optimizer;
pub mod outliers;
pub mod plot;
pub mod presets;
pub mod progress;
pub mod report;
pub mod schedule;
pub mod signals;
pub mod tensorboard;

use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// A file of a run could not be written.
#[derive(Debug, thiserror::Error)]
#[error("cannot write {}: {source}", .path.display())]
pub struct WriteError {
    pub path: PathBuf,
    pub source: io::Error,
}

/// Writes a whole file by `write` under a temporary name in the same folder, fsyncs it, and renames it.
fn write_atomically(
    path: impl AsRef<Path>,
    write: impl FnOnce(&mut io::BufWriter<std::fs::File>) -> io::Result<()>,
) -> Result<(), WriteError> {
    let path = path.as_ref();
    let fail = |source| WriteError { path: path.into(), source };
    let name = path.file_name().ok_or_else(|| fail(io::Error::other("this is not the name of a file")))?;
    let temporary = path.with_file_name(format!(".{}.{}.partial", name.to_string_lossy(), std::process::id()));
    let result = (|| {
        let mut writer = io::BufWriter::new(std::fs::File::create(&temporary)?);
        write(&mut writer)?;
        writer.flush()?;
        writer.get_ref().sync_all()?;
        std::fs::rename(&temporary, path)
    })();
    result.map_err(|source| {
        // The first error is the one to report; the leftover is harmless if it cannot be removed either.
        let _ = std::fs::remove_file(&temporary);
        fail(source)
    })
}
