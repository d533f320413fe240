//! Text to train a tokenizer on: plain files in chunks, or a column of files of rows.

use super::super::error::Result;
use super::super::table::{Format, Quotes, Table};
use super::super::text::TextReader;
use std::path::{Path, PathBuf};

/// Texts that are read together: enough for all cores. Rows are short, so many make up a text.
const BATCH: usize = 64;
const TEXT_BYTES: usize = 1 << 16;

/// Where text is read from, bit by bit.
pub struct TrainingText {
    paths: std::vec::IntoIter<PathBuf>,
    column: Option<String>,
    current: Option<Source>,
    done: u64,
    total: u64,
}

enum Source {
    Text(TextReader),
    Rows(Table, usize),
}

impl TrainingText {
    /// The text of some files. Those called `.tsv`, `.csv` or `.jsonl` give their column `column` (else `text`), gzipped ones
    /// too; all others are plain text.
    ///
    /// # Errors
    /// A file cannot be opened or has no such column.
    pub fn open<P: AsRef<Path>>(paths: &[P], column: Option<&str>) -> Result<Self> {
        let paths: Vec<PathBuf> = paths.iter().map(|path| path.as_ref().to_path_buf()).collect();
        let column = column.map(String::from);
        let mut total = 0;
        // Missing files and columns are found before any work.
        for path in &paths {
            total += match open(path, column.as_deref())? {
                Source::Text(reader) => reader.size(),
                Source::Rows(table, _) => table.progress().1,
            };
        }
        Ok(Self { paths: paths.into_iter(), column, current: None, done: 0, total })
    }

    /// Bytes of the files read so far, and all of them.
    pub(super) fn progress(&self) -> (u64, u64) {
        let current = match &self.current {
            Some(Source::Text(reader)) => reader.size() - reader.remaining(),
            Some(Source::Rows(table, _)) => table.progress().0,
            None => 0,
        };
        (self.done + current, self.total)
    }

    /// Some texts more; none at the end.
    pub(super) fn next_batch(&mut self) -> Result<Vec<String>> {
        let mut batch = Vec::new();
        while batch.len() < BATCH {
            match self.next_text()? {
                Some(text) => batch.push(text),
                None => break,
            }
        }
        Ok(batch)
    }

    /// The next text.
    pub(super) fn next_text(&mut self) -> Result<Option<String>> {
        loop {
            let text = match &mut self.current {
                Some(Source::Text(reader)) => reader.next_chunk()?.map(|chunk| chunk.text),
                Some(Source::Rows(table, column)) => rows(table, *column)?,
                None => None,
            };
            if text.is_some() {
                return Ok(text);
            }
            self.done = self.progress().0;
            self.current = None;
            let Some(path) = self.paths.next() else { return Ok(None) };
            self.current = Some(open(&path, self.column.as_deref())?);
        }
    }
}

fn open(path: &Path, column: Option<&str>) -> Result<Source> {
    let is_plain = match Format::of(path) {
        Ok((format, is_gzipped)) => format == Format::Text && !is_gzipped,
        // Whatever it is called, it may be text.
        Err(_) => true,
    };
    if is_plain {
        return Ok(Source::Text(TextReader::open(path)?));
    }
    let table = Table::open(path, Quotes::InCsv)?;
    let column = table.column(column.unwrap_or("text"))?;
    Ok(Source::Rows(table, column))
}

/// The texts of some rows, a line each.
fn rows(table: &mut Table, column: usize) -> Result<Option<String>> {
    let mut text = String::new();
    while text.len() < TEXT_BYTES {
        let Some(row) = table.next_row()? else { break };
        let cell = &row.cells[column];
        let Some(line) = cell.text() else {
            let what = format!("column {:?} holds {}, not a text", table.columns()[column], cell.kind());
            return Err(row.error(what, "give it a text, or name another column"));
        };
        text.push_str(&line);
        text.push('\n');
    }
    Ok((!text.is_empty()).then_some(text))
}
