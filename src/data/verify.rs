//! Checks a file or folder of tokens from end to end: every length, every id, every checksum.

use super::dataset::{Dataset, Format, split_files};
use super::error::{Error, Result};
use super::inspect::find_tokenizer;
use super::manifest::{FILE, Manifest, ShardEntry};
use super::shard::Shard;
use rayon::prelude::*;
use serde::Serialize;
use std::path::{Path, PathBuf};

/// What was checked and what was found.
#[derive(Debug, Serialize)]
pub struct Report {
    /// The file or folder.
    pub path: String,
    /// Shards looked at.
    pub shards: usize,
    /// Tokens in those that could be opened.
    pub tokens: usize,
    /// Number of ids that tokens were checked against, where it is known.
    pub vocabulary: Option<usize>,
    /// What is wrong, one line each; empty where all is well.
    pub findings: Vec<String>,
}

/// Checks a file or folder. Ids are checked against `vocabulary`, else against the tokenizer beside the tokens.
///
/// # Errors
/// The path cannot be read at all; everything else is a finding.
pub fn verify(path: &Path, format: Format, vocabulary: Option<usize>) -> Result<Report> {
    std::fs::metadata(path).map_err(Error::read(path))?;
    let mut findings = Vec::new();
    let mut note = |result: Result<()>| findings.extend(result.err().map(|error| error.to_string()));

    let is_folder = path.is_dir();
    let manifest = if is_folder { Manifest::load(path) } else { Ok(None) };
    let manifest = manifest.unwrap_or_else(|error| {
        note(Err(error));
        None
    });
    let tokenizer = find_tokenizer(path).unwrap_or_else(|error| {
        note(Err(error));
        None
    });
    if let (Some(manifest), Some(tokenizer)) = (&manifest, &tokenizer)
        && manifest.vocabulary != tokenizer.vocabulary()
    {
        let what = format!("names {} ids, but the tokenizer has {}", manifest.vocabulary, tokenizer.vocabulary());
        note(Err(Error::shard(path.join(FILE), what, "put the right tokenizer.json back, or pack again")));
    }
    let vocabulary = vocabulary
        .or(tokenizer.as_ref().map(|tokenizer| tokenizer.vocabulary()))
        .or(manifest.as_ref().map(|manifest| manifest.vocabulary));

    let mut files = if is_folder {
        let (train, val) = split_files(path).unwrap_or_else(|error| {
            note(Err(error));
            Default::default()
        });
        [train, val].concat()
    } else {
        vec![path.to_path_buf()]
    };
    let entries: Vec<&ShardEntry> =
        manifest.iter().flat_map(Manifest::splits).flat_map(|(_, split)| &split.shards).collect();
    for file in &files {
        if manifest.is_some() && !entries.iter().any(|entry| path.join(&entry.file) == *file) {
            note(Err(Error::shard(file, format!("is not in {FILE}"), "remove it, or pack again")));
        }
    }
    files.extend(entries.iter().map(|entry| path.join(&entry.file)).filter(|file| !file.exists()));

    let checked: Vec<(usize, Vec<Error>)> = files
        .par_iter()
        .map(|file| {
            let entry = entries.iter().find(|entry| path.join(&entry.file) == *file);
            match Shard::open(file, format) {
                Ok(shard) => check_shard(shard, file, entry.copied(), vocabulary),
                Err(error) => (0, vec![error]),
            }
        })
        .collect();
    let tokens = checked.iter().map(|(tokens, _)| tokens).sum();
    let shards_are_whole = checked.iter().all(|(_, errors)| errors.is_empty());
    checked.into_iter().flat_map(|(_, errors)| errors).for_each(|error| note(Err(error)));

    // Whole shards can still be the wrong ones, or in the wrong order; a damaged one has been named already.
    for (name, split) in manifest.iter().flat_map(Manifest::splits).filter(|_| shards_are_whole) {
        let paths: Vec<PathBuf> = split.shards.iter().map(|entry| path.join(&entry.file)).collect();
        note(Dataset::open_files(&paths, format).and_then(|dataset| {
            if dataset.fingerprint() == split.fingerprint && dataset.len() == split.tokens {
                return Ok(());
            }
            let what = format!("{name} has fingerprint {}, not {}", dataset.fingerprint(), split.fingerprint);
            Err(Error::shard(path.join(FILE), what, "copy the folder again, or pack again"))
        }));
    }
    Ok(Report { path: path.display().to_string(), shards: files.len(), tokens, vocabulary, findings })
}

/// Number of tokens of a shard, and all that is wrong with them.
fn check_shard(
    shard: Shard,
    file: &Path,
    entry: Option<&ShardEntry>,
    vocabulary: Option<usize>,
) -> (usize, Vec<Error>) {
    const REMEDY: &str = "copy the file again, or pack again";
    let mut errors = Vec::new();
    let tokens = shard.tokens().len();
    if let Some(entry) = entry {
        if entry.tokens != tokens {
            errors.push(Error::shard(file, format!("has {tokens} tokens, but {FILE} names {}", entry.tokens), REMEDY));
        } else if entry.checksum != shard.checksum() {
            errors.push(Error::shard(file, format!("its content does not match the checksum in {FILE}"), REMEDY));
        }
    }
    if let Some(vocabulary) = vocabulary {
        errors.extend(Dataset::from_shards(vec![shard]).check_vocabulary(vocabulary).err());
    }
    (tokens, errors)
}
