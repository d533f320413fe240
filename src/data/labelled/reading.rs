//! Files of rows -> examples, on all cores and in the order of the rows.

use super::super::Progress;
use super::super::error::{Error, Result};
use super::super::manifest::{Source, TOKENIZER_FILE};
use super::super::shard::TokenType;
use super::super::table::{Row, Table};
use super::super::tokenizer::{SpecialTokens, Tokenizer};
use super::classes::Classes;
use super::encode::{Columns, EncodedRow, Encoder, RowLabel};
use super::folder::{self, DESCRIPTION_FILE, Description, EXAMPLES_FILE};
use super::format::{Builder, Item, Layout, RawLabel, in_memory};
use super::{Keep, Kind, LabelledSet, Options, Task, fingerprint};
use crate::util::atomic_file::{AtomicFile, WriteError, remove_abandoned};
use rayon::prelude::*;
use std::io::{self, Cursor, Seek, Write};
use std::path::Path;
use std::sync::Arc;

/// Rows that are tokenised together; the result does not depend on it.
const BATCH_ROWS: usize = 4096;

/// Tokenises files of rows into a folder, which is created where it does not exist: `examples.bin`, `labels.json` and
/// `tokenizer.json`. Nothing appears under its name before everything is written.
///
/// # Errors
/// As [`LabelledSet::from_files`]; the folder already holds examples and `overwrite` is not set, or cannot be written.
pub fn write<P: AsRef<Path>>(
    paths: &[P],
    tokenizer: &Tokenizer,
    options: &Options,
    folder: impl AsRef<Path>,
    overwrite: bool,
    progress: Progress<'_>,
) -> Result<LabelledSet> {
    let folder = folder.as_ref();
    std::fs::create_dir_all(folder).map_err(|cause| WriteError { path: folder.to_path_buf(), cause })?;
    if LabelledSet::is_folder_of(folder) && !overwrite {
        return Err(Error::OutputExists { path: folder.to_path_buf() });
    }
    if folder.join(super::super::manifest::FILE).exists() {
        let remedy = "choose another folder";
        return Err(Error::shard(folder, "holds a data set of `engine-data pack`", remedy));
    }
    remove_abandoned(folder)?;
    let path = folder.join(EXAMPLES_FILE);
    let file = AtomicFile::create(&path)?;
    let fail = |cause| Error::from(WriteError { path: path.clone(), cause });
    let (mut file, description) = read(paths, tokenizer, options, progress, file, &fail)?;
    file.seal()?;

    // Without its description the folder is nothing that anybody opens: so that goes first and comes last.
    let description_path = folder.join(DESCRIPTION_FILE);
    match std::fs::remove_file(&description_path) {
        Err(cause) if cause.kind() != io::ErrorKind::NotFound => {
            return Err(WriteError { path: description_path, cause }.into());
        }
        _ => {}
    }
    tokenizer.save(folder.join(TOKENIZER_FILE))?;
    file.commit()?;
    description.save(folder)?;
    folder::open(folder)
}

pub(super) fn into_memory<P: AsRef<Path>>(
    paths: &[P],
    tokenizer: &Tokenizer,
    options: &Options,
    progress: Progress<'_>,
) -> Result<LabelledSet> {
    let (bytes, description) = read(paths, tokenizer, options, progress, Cursor::new(Vec::new()), &in_memory_fails)?;
    map(bytes, description)
}

pub(super) fn of_classes(tokens: &[u32], labels: &[u32], classes: &[String]) -> Result<LabelledSet> {
    let vocabulary = tokens.iter().max().map_or(0, |&largest| largest as usize + 1);
    let item = Item { tokens: tokens.to_vec(), second: tokens.len() as u32, offsets: Vec::new() };
    let out = Cursor::new(Vec::new());
    let token_type = TokenType::for_vocabulary(vocabulary);
    let mut builder = Builder::new(out, Kind::Classification, token_type).map_err(in_memory_fails)?;
    for &label in labels {
        builder.push_row("");
        builder.push(&item, RawLabel::Class(label)).map_err(in_memory_fails)?;
    }
    let examples = builder.examples();
    let (bytes, hash) = builder.finish(classes.len(), |class| class).map_err(in_memory_fails)?;
    let description = Description {
        kind: Kind::Classification,
        task: Task::Classification { text: String::new(), pair: None, label: String::new() },
        max_tokens: tokens.len(),
        keep: Keep::default(),
        vocabulary,
        tokenizer: String::new(),
        special: None,
        classes: classes.to_vec(),
        rows: examples,
        examples,
        tokens: examples * tokens.len(),
        skipped: 0,
        truncated: 0,
        fingerprint: fingerprint(examples, examples * tokens.len(), hash),
        sources: Vec::new(),
    };
    map(bytes, description)
}

/// What examples that are in no file are called in errors.
const IN_MEMORY: &str = "examples in memory";

fn in_memory_fails(cause: io::Error) -> Error {
    WriteError { path: IN_MEMORY.into(), cause }.into()
}

fn map(bytes: Cursor<Vec<u8>>, description: Description) -> Result<LabelledSet> {
    let place = Path::new(IN_MEMORY);
    let map = in_memory(bytes).map_err(Error::read(place))?;
    let layout = Layout::read(place, &map, description.classes.len())?;
    Ok(LabelledSet { map: Arc::new(map), layout, description: Arc::new(description), path: None })
}

/// Reads, tokenises and writes all rows; returns what they were written to, and their description.
fn read<P: AsRef<Path>, W: Write + Seek>(
    paths: &[P],
    tokenizer: &Tokenizer,
    options: &Options,
    progress: Progress<'_>,
    out: W,
    fail: &impl Fn(io::Error) -> Error,
) -> Result<(W, Description)> {
    let encoder = Encoder::new(tokenizer, options)?;
    let task = &options.task;
    let Some(first) = paths.first() else {
        return Err(Error::Argument("no file of rows given; name at least one".into()));
    };
    // Missing files and columns are found before any work.
    let mut sources = Vec::new();
    for path in paths {
        let path = path.as_ref();
        let table = Table::open(path, options.quotes)?;
        Columns::find(&table, task)?;
        sources.push(Source { name: path.display().to_string(), bytes: table.progress().1 });
    }
    let total: u64 = sources.iter().map(|source| source.bytes).sum();

    let token_type = TokenType::for_vocabulary(tokenizer.vocabulary());
    let mut builder = Builder::new(out, task.kind(), token_type).map_err(fail)?;
    let mut classes = Classes::new(options.classes.as_deref());
    let (mut before, mut skipped, mut truncated, mut tokens) = (0, 0, 0, 0);
    for path in paths {
        let mut table = Table::open(path, options.quotes)?;
        let columns = Columns::find(&table, task)?;
        loop {
            let rows = table.next_rows(BATCH_ROWS)?;
            if rows.is_empty() {
                break;
            }
            let encoded: Vec<Result<EncodedRow>> = rows.par_iter().map(|row| encoder.encode(row, &columns)).collect();
            for (row, encoded) in rows.iter().zip(encoded) {
                let EncodedRow { items, text, is_truncated } = encoded?;
                if items.is_empty() {
                    skipped += 1;
                    continue;
                }
                truncated += usize::from(is_truncated);
                builder.push_row(&text);
                for (item, label) in &items {
                    tokens += item.tokens.len();
                    builder.push(item, number(label, task.kind(), &mut classes, row)?).map_err(fail)?;
                }
            }
            progress(before + table.progress().0, total);
        }
        before += table.progress().1;
    }
    if builder.examples() == 0 {
        return Err(Error::table(first, "all rows were skipped: their texts have no tokens", "give it rows with text"));
    }
    let (names, numbers) = classes.finish();
    let (rows, examples) = (builder.rows(), builder.examples());
    let (out, hash) = builder.finish(names.len(), |class| numbers[class as usize]).map_err(fail)?;
    let description = Description {
        kind: task.kind(),
        task: task.clone(),
        max_tokens: options.max_tokens,
        keep: options.keep,
        vocabulary: tokenizer.vocabulary(),
        tokenizer: folder::hash_text(&tokenizer.to_json()),
        special: SpecialTokens::find(tokenizer),
        classes: names,
        rows,
        examples,
        tokens,
        skipped,
        truncated,
        fingerprint: fingerprint(examples, tokens, hash),
        sources,
    };
    Ok((out, description))
}

/// The label of an example with its names of classes numbered.
fn number(label: &RowLabel, kind: Kind, classes: &mut Classes, row: &Row) -> Result<RawLabel> {
    match label {
        RowLabel::Raw(raw) => Ok(raw.clone()),
        RowLabel::Names(names) if kind == Kind::Classification => {
            names.first().map_or(Ok(RawLabel::None), |name| classes.number(name, row).map(RawLabel::Class))
        }
        RowLabel::Names(names) => {
            let numbers = names.iter().map(|name| classes.number(name, row)).collect::<Result<_>>()?;
            Ok(RawLabel::Classes(numbers))
        }
    }
}
