//! The data that a configuration names: bundled text, text files or token shards, as a tokenizer and two data sets.

use super::config::{Config, Paths, TokenizerChoice};
use super::presets;
use crate::data::{self, Dataset, Format, Tokenizer};
use std::path::{Path, PathBuf};

/// What a run learns from.
pub struct Source {
    /// Missing where shards came without one: such a run cannot write samples.
    pub tokenizer: Option<Tokenizer>,
    pub train: Dataset,
    /// Empty where nothing was kept back.
    pub val: Dataset,
    /// Whether the tokens were made from text and lie in memory; shards are read in place from their files.
    is_in_memory: bool,
}

impl Source {
    /// Bytes of memory that the tokens take.
    pub fn bytes(&self, vocabulary: usize) -> u64 {
        let token = data::shard::TokenType::for_vocabulary(vocabulary).bytes();
        if self.is_in_memory { ((self.train.len() + self.val.len()) * token) as u64 } else { 0 }
    }
}

/// The data cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Data(#[from] data::Error),
    #[error("{0}")]
    Path(String),
    #[error("model.vocabulary is not set, and {0} holds no tokenizer.json that would tell: set model.vocabulary")]
    NoVocabulary(String),
}

/// Opens what `config` names and checks every token against the vocabulary.
///
/// # Errors
/// Files that cannot be read, are damaged, or hold tokens that the model does not know.
pub fn open(config: &Config) -> Result<(Source, usize), Error> {
    let paths = config
        .data
        .path
        .as_ref()
        .ok_or_else(|| Error::Path("data.path is not set: name a text or token shards".into()))?;
    let source = match paths.bundled() {
        Some(name) => bundled(config, name)?,
        None => from_files(config, paths)?,
    };
    let vocabulary = match (config.model.vocabulary, &source.tokenizer) {
        (Some(vocabulary), _) => vocabulary,
        (None, Some(tokenizer)) => tokenizer.vocabulary(),
        (None, None) => return Err(Error::NoVocabulary(display(paths))),
    };
    source.train.check_vocabulary(vocabulary)?;
    source.val.check_vocabulary(vocabulary)?;
    Ok((source, vocabulary))
}

fn display(paths: &Paths) -> String {
    paths.as_slice().iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
}

/// The tokenizer that `choice` means; `from_text` makes that of the characters of the text.
fn tokenizer(
    choice: &TokenizerChoice,
    from_text: impl FnOnce() -> data::Result<Tokenizer>,
) -> Result<Tokenizer, Error> {
    Ok(match (choice, choice.bundled()) {
        (TokenizerChoice::Char, _) => from_text()?,
        (TokenizerChoice::Byte, _) => Tokenizer::byte(),
        (TokenizerChoice::File(_), Some(name)) => {
            let text = presets::bundled_text(name).ok_or_else(|| unknown_text("data.tokenizer", name))?;
            Tokenizer::from_json(text.tokenizer.to_owned(), &format!("bundled:{name}"))?
        }
        (TokenizerChoice::File(path), None) => Tokenizer::load(path)?,
    })
}

fn unknown_text(key: &str, name: &str) -> Error {
    let known: Vec<&str> = presets::BUNDLED_TEXTS.iter().map(|text| text.name).collect();
    Error::Path(format!("{key}: there is no bundled text {name:?}; there is {}", known.join(", ")))
}

fn bundled(config: &Config, name: &str) -> Result<Source, Error> {
    let text = presets::bundled_text(name).ok_or_else(|| unknown_text("data.path", name))?;
    let whole: String = text.files.iter().map(|(_, content)| *content).collect();
    let tokenizer = tokenizer(&config.data.tokenizer, || Tokenizer::char_from(&whole))?;
    // The end of each file is kept back, as for text files.
    let (mut train, mut val) = (Vec::new(), Vec::new());
    for (_, content) in text.files {
        let tokens = tokenizer.encode(content)?;
        let head = tokens.len() - (tokens.len() as f64 * config.data.val_fraction) as usize;
        train.extend_from_slice(&tokens[..head]);
        val.extend_from_slice(&tokens[head..]);
    }
    let (train, val) = (Dataset::from_tokens(train), Dataset::from_tokens(val));
    Ok(Source { tokenizer: Some(tokenizer), train, val, is_in_memory: true })
}

fn from_files(config: &Config, paths: &Paths) -> Result<Source, Error> {
    let files = expand(paths)?;
    let val_files = config.data.val_path.as_ref().map(expand).transpose()?;
    let has_val_files = val_files.is_some();
    if files.iter().any(|file| file.is_shard) {
        if let Some(text) = files.iter().find(|file| !file.is_shard) {
            return Err(Error::Path(format!(
                "{} is text, but others are token shards: use one kind",
                text.path.display()
            )));
        }
        return from_shards(config, paths, &files, val_files);
    }
    let texts: Vec<PathBuf> = files.into_iter().map(|file| file.path).collect();
    let val_texts: Vec<PathBuf> = val_files.into_iter().flatten().map(|file| file.path).collect();
    let tokenizer = tokenizer(&config.data.tokenizer, || {
        let all: Vec<&PathBuf> = texts.iter().chain(&val_texts).collect();
        Tokenizer::char_from_files(&all)
    })?;
    let fraction = if has_val_files { 0.0 } else { config.data.val_fraction };
    let (train, mut val) = Dataset::from_text_files(&texts, &tokenizer, fraction)?;
    if has_val_files {
        val = Dataset::from_text_files(&val_texts, &tokenizer, 0.0)?.0;
    }
    Ok(Source { tokenizer: Some(tokenizer), train, val, is_in_memory: true })
}

fn from_shards(config: &Config, paths: &Paths, files: &[File], val_files: Option<Vec<File>>) -> Result<Source, Error> {
    let format = if config.data.raw_u16 { Format::RawU16 } else { Format::Shard };
    let tokenizer = match &config.data.tokenizer {
        choice @ TokenizerChoice::File(_) => Some(tokenizer(choice, || unreachable!("this choice is a file"))?),
        // Shards are made with a tokenizer of their own, which `engine-data pack` puts beside them.
        _ => paths.as_slice().iter().filter_map(|path| beside(path)).next().map(Tokenizer::load).transpose()?,
    };
    let open = |is_val: bool| -> Result<Option<Dataset>, Error> {
        let chosen: Vec<&PathBuf> = files.iter().filter(|file| file.is_val == is_val).map(|file| &file.path).collect();
        Ok(if chosen.is_empty() { None } else { Some(Dataset::open_files(&chosen, format)?) })
    };
    let train =
        open(false)?.ok_or_else(|| Error::Path(format!("data.path: {} holds only val shards", display(paths))))?;
    let (train, val) = match val_files {
        Some(files) => {
            let files: Vec<PathBuf> = files.into_iter().map(|file| file.path).collect();
            (train, Dataset::open_files(&files, format)?)
        }
        None => match open(true)? {
            Some(val) => (train, val),
            None => train.split_tail(config.data.val_fraction)?,
        },
    };
    Ok(Source { tokenizer, train, val, is_in_memory: false })
}

/// `tokenizer.json` in a folder, or beside a file.
fn beside(path: &Path) -> Option<PathBuf> {
    let folder = if path.is_dir() { path } else { path.parent()? };
    Some(folder.join("tokenizer.json")).filter(|file| file.is_file())
}

struct File {
    path: PathBuf,
    is_shard: bool,
    is_val: bool,
}

/// The files that paths name: a folder stands for its shards, or for its texts where it holds no shard.
fn expand(paths: &Paths) -> Result<Vec<File>, Error> {
    let mut files = Vec::new();
    for path in paths.as_slice() {
        if !path.is_dir() {
            files.push(file(path.clone(), false));
            continue;
        }
        let read = |cause| data::Error::Read { path: path.clone(), cause };
        let mut inside = Vec::new();
        for entry in std::fs::read_dir(path).map_err(read)? {
            inside.push(entry.map_err(read)?.path());
        }
        inside.sort();
        let with_ending = |ending: &str| -> Vec<PathBuf> {
            inside.iter().filter(|path| path.extension().is_some_and(|e| e == ending)).cloned().collect()
        };
        let (shards, texts) = (with_ending("bin"), with_ending("txt"));
        if shards.is_empty() && texts.is_empty() {
            return Err(Error::Path(format!("data.path: {} holds neither .bin shards nor .txt files", path.display())));
        }
        let chosen = if shards.is_empty() { texts } else { shards };
        files.extend(chosen.into_iter().map(|path| file(path, true)));
    }
    Ok(files)
}

/// A shard is for validation by its name only where it was found in a folder: a file named outright is meant.
fn file(path: PathBuf, is_found: bool) -> File {
    let is_shard = path.extension().is_some_and(|ending| ending == "bin");
    let is_val = is_found && data::Split::of(&path) == Some(data::Split::Val);
    File { path, is_shard, is_val }
}
