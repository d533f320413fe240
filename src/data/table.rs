//! Files of rows with named columns: TSV, CSV, JSONL, and text with one row a line; each plain or gzipped.
//!
//! The name of a file says what it is: `reviews.tsv.gz` is gzipped TSV. In TSV and CSV the first line names the columns;
//! in JSONL the keys of the first object do, and those of nested objects are joined with a dot (`answers.text`). A text
//! file has the one column `text`. Empty lines hold no row.
//!
//! CSV is RFC 4180: fields may be quoted, and quoted ones hold line breaks. TSV is read without quotes, as most of it is
//! written, unless [`Quotes::InTsv`] says otherwise: then as CSV with tabs. Rows are numbered from 1, the header not
//! counted, and know their line: whoever reads them can say where something is wrong ([`Row::error`]).

mod lines;

use super::error::{Error, Result};
use crate::util::edit_distance::nearest_first;
use lines::{Counted, LineReader, open, reading};
use serde_json::Value;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// How files of rows are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Fields parted by tabs.
    Tsv,
    /// Fields parted by commas, RFC 4180.
    Csv,
    /// A JSON object on each line.
    Jsonl,
    /// A text on each line.
    Text,
}

/// Where a quotation mark at the start of a field quotes it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Quotes {
    /// In CSV; in TSV it is a character like any other.
    #[default]
    InCsv,
    /// In TSV as well.
    InTsv,
}

impl Format {
    /// The format that a file's name tells, and whether the file is gzipped.
    ///
    /// # Errors
    /// The name ends in nothing that is known.
    pub fn of(path: &Path) -> Result<(Self, bool)> {
        let name = path.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
        let (stem, is_gzipped) = name.strip_suffix(".gz").map_or((name.as_str(), false), |stem| (stem, true));
        let format = match stem.rsplit_once('.').map(|(_, extension)| extension) {
            Some("tsv" | "tab") => Self::Tsv,
            Some("csv") => Self::Csv,
            Some("jsonl" | "ndjson") => Self::Jsonl,
            Some("txt" | "text") => Self::Text,
            _ => {
                let what = "its name does not tell the format of its rows";
                return Err(Error::table(path, what, "name it .tsv, .csv, .jsonl or .txt, or one of these and .gz"));
            }
        };
        Ok((format, is_gzipped))
    }
}

/// What stands in one column of a row.
#[derive(Clone, Debug, PartialEq)]
pub enum Cell {
    /// Nothing: `null`, or a key that the object lacks.
    Missing,
    /// Text; all cells of TSV, CSV and text files are.
    Text(String),
    /// A number of JSONL.
    Number(serde_json::Number),
    /// A boolean of JSONL.
    Bool(bool),
    /// An array of JSONL.
    List(Vec<Cell>),
}

impl Cell {
    /// Text as it is, numbers and booleans as JSON writes them; None of what is missing or a list.
    pub fn text(&self) -> Option<String> {
        match self {
            Self::Text(text) => Some(text.clone()),
            Self::Number(number) => Some(number.to_string()),
            Self::Bool(value) => Some(value.to_string()),
            Self::Missing | Self::List(_) => None,
        }
    }

    /// A number, or text that is one; None of all else, and of what is not finite.
    pub fn number(&self) -> Option<f64> {
        let number = match self {
            Self::Number(number) => number.as_f64(),
            Self::Text(text) => text.trim().parse().ok(),
            _ => None,
        };
        number.filter(|number: &f64| number.is_finite())
    }

    /// What it is, for messages.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Missing => "nothing",
            Self::Text(_) => "a text",
            Self::Number(_) => "a number",
            Self::Bool(_) => "true or false",
            Self::List(_) => "a list",
        }
    }

    fn from_json(value: Value) -> Self {
        match value {
            Value::Null | Value::Object(_) => Self::Missing,
            Value::Bool(value) => Self::Bool(value),
            Value::Number(number) => Self::Number(number),
            Value::String(text) => Self::Text(text),
            Value::Array(items) => Self::List(items.into_iter().map(Self::from_json).collect()),
        }
    }
}

/// One row: a cell for each column of its [`Table`].
#[derive(Clone, Debug)]
pub struct Row {
    /// The file.
    pub path: Arc<Path>,
    /// Number of the row, from 1, the header not counted.
    pub number: u64,
    /// Line of the file on which it starts, from 1.
    pub line: u64,
    /// The cells, in the order of the columns.
    pub cells: Vec<Cell>,
}

impl Row {
    /// An error that names this row.
    pub fn error(&self, what: impl Into<String>, remedy: impl Into<String>) -> Error {
        row_error(&self.path, self.number, self.line, what, remedy)
    }
}

fn row_error(path: &Path, row: u64, line: u64, what: impl Into<String>, remedy: impl Into<String>) -> Error {
    Error::Row { path: path.to_path_buf(), row, line, what: what.into(), remedy: remedy.into() }
}

/// A file of rows, read from its start to its end.
pub struct Table {
    path: Arc<Path>,
    columns: Vec<String>,
    rows: Rows,
    /// Rows read so far.
    count: u64,
    /// Bytes of the file (compressed, where it is) read so far, and all of them.
    consumed: Arc<AtomicU64>,
    size: u64,
}

enum Rows {
    Tsv(LineReader),
    /// The object of the first line is read when the file is opened, for its keys.
    Jsonl {
        lines: LineReader,
        first: Option<(u64, serde_json::Map<String, Value>)>,
    },
    Text(LineReader),
    Csv(Box<csv::Reader<Box<dyn Read + Send>>>),
}

impl Table {
    /// Opens a file and reads the names of its columns.
    ///
    /// # Errors
    /// The file cannot be read or is empty, its name does not tell the format, or the header is no header.
    pub fn open(path: impl AsRef<Path>, quotes: Quotes) -> Result<Self> {
        let path: Arc<Path> = Arc::from(path.as_ref());
        let (format, is_gzipped) = Format::of(&path)?;
        let Counted { read, consumed, size } = open(&path, is_gzipped)?;
        let empty = || Error::table(&*path, "the file is empty", "give a file with rows");
        let (columns, rows) = match (format, quotes) {
            (Format::Tsv, Quotes::InCsv) => {
                let mut lines = LineReader::new(&path, read);
                let (_, header) = lines.next_line()?.ok_or_else(empty)?;
                let columns = header.split('\t').map(String::from).collect();
                lines.count_from_here();
                (columns, Rows::Tsv(lines))
            }
            (Format::Tsv | Format::Csv, _) => {
                // The last line gets a line break where it lacks one; an empty line more is no row.
                let read: Box<dyn Read + Send> = Box::new(read.chain(&b"\n"[..]));
                let delimiter = if format == Format::Tsv { b'\t' } else { b',' };
                let mut reader =
                    csv::ReaderBuilder::new().delimiter(delimiter).flexible(true).has_headers(false).from_reader(read);
                let mut header = csv::ByteRecord::new();
                let found = reader.read_byte_record(&mut header).map_err(|error| csv_error(&path, error, 0))?;
                if !found {
                    return Err(empty());
                }
                let columns: Vec<String> =
                    header.iter().map(|name| utf8(&path, 0, 1, name).map(String::from)).collect::<Result<_>>()?;
                (columns, Rows::Csv(Box::new(reader)))
            }
            (Format::Jsonl, _) => {
                let mut lines = LineReader::new(&path, read);
                let (line, text) = lines.next_line()?.ok_or_else(empty)?;
                let object = parse_object(&path, 1, line, text)?;
                (object.keys().cloned().collect(), Rows::Jsonl { lines, first: Some((line, object)) })
            }
            (Format::Text, _) => (vec!["text".to_string()], Rows::Text(LineReader::new(&path, read))),
        };
        let mut table = Self { path, columns, rows, count: 0, consumed, size };
        table.check_header()?;
        Ok(table)
    }

    fn check_header(&mut self) -> Result<()> {
        if let Some(first) = self.columns.first_mut()
            && let Some(rest) = first.strip_prefix('\u{FEFF}')
        {
            *first = rest.to_string();
        }
        for (index, name) in self.columns.iter().enumerate() {
            if self.columns[..index].contains(name) {
                let what = format!("two columns are called {name:?}");
                return Err(Error::table(&*self.path, what, "give each column a name of its own in the first line"));
            }
        }
        Ok(())
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The names of the columns, in order.
    pub fn columns(&self) -> &[String] {
        &self.columns
    }

    /// Index of a column by its name.
    ///
    /// # Errors
    /// There is none of that name; the error names those that there are, the nearest first.
    pub fn column(&self, name: &str) -> Result<usize> {
        self.columns.iter().position(|column| column == name).ok_or_else(|| Error::Column {
            path: self.path.to_path_buf(),
            column: name.to_string(),
            there: nearest_first(name, &self.columns),
        })
    }

    /// Bytes of the file that were read so far (compressed, where it is gzipped), and its size.
    pub fn progress(&self) -> (u64, u64) {
        (self.consumed.load(Ordering::Relaxed).min(self.size), self.size)
    }

    /// The next row; None at the end.
    ///
    /// # Errors
    /// The file cannot be read or is broken, or the row is: not UTF-8, not JSON, another number of fields than columns.
    pub fn next_row(&mut self) -> Result<Option<Row>> {
        let number = self.count + 1;
        let path = &self.path;
        let (line, cells) = match &mut self.rows {
            Rows::Tsv(lines) => {
                let Some((line, text)) = lines.next_line()? else { return self.end() };
                (line, text.split('\t').map(|field| Cell::Text(field.to_string())).collect())
            }
            Rows::Text(lines) => {
                let Some((line, text)) = lines.next_line()? else { return self.end() };
                (line, vec![Cell::Text(text.to_string())])
            }
            Rows::Jsonl { lines, first } => {
                let (line, mut object) = match first.take() {
                    Some(first) => first,
                    None => {
                        let Some((line, text)) = lines.next_line()? else { return self.end() };
                        (line, parse_object(path, number, line, text)?)
                    }
                };
                let take = |name: &String| object.remove(name).map_or(Cell::Missing, Cell::from_json);
                (line, self.columns.iter().map(take).collect::<Vec<_>>())
            }
            Rows::Csv(reader) => {
                let mut record = csv::ByteRecord::new();
                if !reader.read_byte_record(&mut record).map_err(|error| csv_error(path, error, number - 1))? {
                    return self.end();
                }
                // The record's own position is that of the empty lines before it, so count from its end: the reader stands on
                // the line after it.
                let breaks = record.iter().flatten().filter(|&&byte| byte == b'\n').count() as u64;
                let line = reader.position().line().saturating_sub(breaks + 1);
                let text = |field| utf8(path, number, line, field).map(|text| Cell::Text(text.to_string()));
                (line, record.iter().map(text).collect::<Result<_>>()?)
            }
        };
        if cells.len() != self.columns.len() {
            let what = format!("{} fields, but the file has {} columns", cells.len(), self.columns.len());
            let remedy = match &self.rows {
                Rows::Tsv(_) => "check its tabs, or say that fields are quoted (--quoted-tsv)",
                _ => "check its delimiters and quotation marks",
            };
            return Err(row_error(path, number, line, what, remedy));
        }
        self.count = number;
        Ok(Some(Row { path: Arc::clone(&self.path), number, line, cells }))
    }

    /// Up to `count` rows; none at the end.
    ///
    /// # Errors
    /// As [`next_row`](Self::next_row).
    pub fn next_rows(&mut self, count: usize) -> Result<Vec<Row>> {
        let mut rows = Vec::new();
        while rows.len() < count {
            match self.next_row()? {
                Some(row) => rows.push(row),
                None => break,
            }
        }
        Ok(rows)
    }

    fn end(&self) -> Result<Option<Row>> {
        if self.count > 0 {
            return Ok(None);
        }
        Err(Error::table(&*self.path, "the file has no rows", "give a file with at least one row"))
    }
}

/// The content of a file, decompressed where its name ends in `.gz`.
pub(super) fn open_bytes(path: &Path) -> Result<Box<dyn Read + Send>> {
    let is_gzipped = path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gz"));
    Ok(open(path, is_gzipped)?.read)
}

/// Opens several files, which must all have the columns `wanted`: missing files and columns are found before any work.
///
/// # Errors
/// There is no file, or one of them cannot be opened or lacks a column.
pub fn check_files<P: AsRef<Path>>(paths: &[P], quotes: Quotes, wanted: &[&str]) -> Result<Vec<PathBuf>> {
    if paths.is_empty() {
        return Err(Error::Argument("no file of rows given; name at least one".into()));
    }
    for path in paths {
        let table = Table::open(path, quotes)?;
        wanted.iter().try_for_each(|name| table.column(name).map(|_| ()))?;
    }
    Ok(paths.iter().map(|path| path.as_ref().to_path_buf()).collect())
}

/// The object of a line, nested ones flattened.
fn parse_object(path: &Path, row: u64, line: u64, text: &str) -> Result<serde_json::Map<String, Value>> {
    const REMEDY: &str = "each line must be one JSON object such as {\"text\": \"...\", \"label\": \"...\"}";
    let value: Value = serde_json::from_str(text).map_err(|error| {
        // The parser counts lines inside this one, which says nothing; its column does.
        let what = error.to_string();
        let what = what.split(" at line ").next().unwrap_or_default();
        row_error(path, row, line, format!("not JSON: {what} at column {}", error.column()), REMEDY)
    })?;
    let Value::Object(object) = value else {
        return Err(row_error(path, row, line, "JSON, but not an object", REMEDY));
    };
    let mut flat = serde_json::Map::new();
    flatten("", object, &mut flat);
    Ok(flat)
}

fn flatten(prefix: &str, object: serde_json::Map<String, Value>, flat: &mut serde_json::Map<String, Value>) {
    for (key, value) in object {
        let name = format!("{prefix}{key}");
        match value {
            Value::Object(inner) => flatten(&format!("{name}."), inner, flat),
            value => {
                flat.insert(name, value);
            }
        }
    }
}

fn utf8<'a>(path: &Path, row: u64, line: u64, bytes: &'a [u8]) -> Result<&'a str> {
    std::str::from_utf8(bytes).map_err(|error| {
        let what = format!("not UTF-8 at byte {} of a field", error.valid_up_to());
        row_error(path, row, line, what, "convert the file (for example with iconv)")
    })
}

fn csv_error(path: &Path, error: csv::Error, row: u64) -> Error {
    match error.into_kind() {
        csv::ErrorKind::Io(cause) => reading(path, cause, row),
        other => Error::table(path, format!("not CSV near row {row} ({other:?})"), "check its quotation marks"),
    }
}

#[cfg(test)]
mod tests;
