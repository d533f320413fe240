//! Bytes of a plain or gzipped file, and lines of text from them.

use super::super::error::{Error, Result};
use super::row_error;
use flate2::read::MultiGzDecoder;
use std::fs::File;
use std::io::{self, BufRead, BufReader, ErrorKind, Read};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

const BUFFER_BYTES: usize = 1 << 18;

/// The content of a file, with a count of how much of the file it took.
pub(super) struct Counted {
    pub read: Box<dyn Read + Send>,
    pub consumed: Arc<AtomicU64>,
    pub size: u64,
}

struct CountingFile {
    file: File,
    consumed: Arc<AtomicU64>,
}

impl Read for CountingFile {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.file.read(buffer)?;
        self.consumed.fetch_add(count as u64, Ordering::Relaxed);
        Ok(count)
    }
}

/// Opens a file, through a decompressor where it is gzipped (several gzip members after each other count as one).
pub(super) fn open(path: &Path, is_gzipped: bool) -> Result<Counted> {
    let file = File::open(path).map_err(Error::read(path))?;
    let metadata = file.metadata().map_err(Error::read(path))?;
    if metadata.is_dir() {
        return Err(Error::table(path, "is a folder, not a file", "name the files inside it"));
    }
    let consumed = Arc::new(AtomicU64::new(0));
    let buffered = BufReader::with_capacity(BUFFER_BYTES, CountingFile { file, consumed: Arc::clone(&consumed) });
    // A pipe has no size, but may well have content.
    if metadata.is_file() && metadata.len() == 0 {
        return Err(Error::table(path, "the file is empty", "give a file with something in it"));
    }
    let read: Box<dyn Read + Send> =
        if is_gzipped { Box::new(MultiGzDecoder::new(buffered)) } else { Box::new(buffered) };
    Ok(Counted { read, consumed, size: metadata.len() })
}

/// The error of reading on after `row` rows: those of the decompressor are about the file's content.
pub(super) fn reading(path: &Path, cause: io::Error, row: u64) -> Error {
    match cause.kind() {
        ErrorKind::InvalidData | ErrorKind::InvalidInput | ErrorKind::UnexpectedEof => {
            Error::table(path, format!("broken gz after row {row} ({cause})"), "copy or download the file again")
        }
        _ => Error::read(path)(cause),
    }
}

/// Lines of UTF-8 text, without their line breaks; empty ones are passed over.
pub(super) struct LineReader {
    path: Arc<Path>,
    read: BufReader<Box<dyn Read + Send>>,
    buffer: Vec<u8>,
    line: u64,
    /// Lines that were not empty.
    count: u64,
}

impl LineReader {
    pub(super) fn new(path: &Arc<Path>, read: Box<dyn Read + Send>) -> Self {
        let read = BufReader::with_capacity(BUFFER_BYTES, read);
        Self { path: Arc::clone(path), read, buffer: Vec::new(), line: 0, count: 0 }
    }

    /// Counts rows from here on: the lines so far were a header.
    pub(super) fn count_from_here(&mut self) {
        self.count = 0;
    }

    /// The next line and its number, from 1; None at the end.
    pub(super) fn next_line(&mut self) -> Result<Option<(u64, &str)>> {
        loop {
            self.buffer.clear();
            let count = self.read.read_until(b'\n', &mut self.buffer);
            if count.map_err(|cause| reading(&self.path, cause, self.count))? == 0 {
                return Ok(None);
            }
            self.line += 1;
            while matches!(self.buffer.last(), Some(b'\n' | b'\r')) {
                self.buffer.pop();
            }
            if !self.buffer.is_empty() {
                break;
            }
        }
        self.count += 1;
        match std::str::from_utf8(&self.buffer) {
            Ok(text) => Ok(Some((self.line, text.strip_prefix('\u{FEFF}').filter(|_| self.line == 1).unwrap_or(text)))),
            Err(error) => {
                let what = format!("not UTF-8 at byte {} of the line", error.valid_up_to());
                Err(row_error(&self.path, self.count, self.line, what, "convert the file (for example with iconv)"))
            }
        }
    }
}
