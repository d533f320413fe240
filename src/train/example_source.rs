//! The examples that a configuration names: folders of labelled shards, files of rows that are tokenised at start, or images.

use super::config::{Architecture, Config, Paths, Task as Learned, TokenizerChoice};
use super::pictures::{self, Pictures};
use super::trainer::Error;
use crate::data::labelled::{Empty, Kind, Long, Options, Task};
use crate::data::{LabelledSet, Tokenizer};
use crate::model::image::ImageInput;
use std::path::{Path, PathBuf};

/// What a task with examples learns from.
pub(super) struct ExampleSource {
    /// Of texts.
    pub(super) tokenizer: Option<Tokenizer>,
    pub(super) train: LabelledSet,
    pub(super) val: Option<LabelledSet>,
    /// The images that the examples stand for, if any.
    pub(super) pictures: Option<Pictures>,
}

impl ExampleSource {
    /// Bytes of memory that the examples take; folders are read in place.
    pub(super) fn bytes(&self) -> u64 {
        let sets = [Some(&self.train), self.val.as_ref()];
        let in_memory = sets.into_iter().flatten().filter(|set| set.path().is_none());
        let tokens: u64 = in_memory.map(|set| 4 * set.total_tokens() as u64).sum();
        tokens + self.pictures.as_ref().map_or(0, Pictures::bytes)
    }

    /// The tokenizer of the texts.
    ///
    /// # Errors
    /// The examples are no texts.
    pub(super) fn tokenizer(&self) -> Result<&Tokenizer, Error> {
        self.tokenizer.as_ref().ok_or_else(|| unsupported("these examples are images, and the task is one of texts"))
    }

    /// Number of token ids that the examples may have.
    pub(super) fn vocabulary(&self, config: &Config) -> usize {
        match (&self.pictures, &self.tokenizer) {
            (None, Some(tokenizer)) => config.model.vocabulary.unwrap_or_else(|| tokenizer.vocabulary()),
            _ => ImageInput::vocabulary(config.model.pooling),
        }
    }

    /// Changes when the training data does.
    pub(super) fn fingerprint(&self) -> String {
        self.pictures.as_ref().map_or_else(|| self.train.fingerprint(), Pictures::fingerprint)
    }
}

/// Opens what `config` names.
///
/// # Errors
/// Files that cannot be read, or rows that are not what the task needs.
pub(super) fn open(config: &Config) -> Result<ExampleSource, Error> {
    let paths =
        config.data.path.as_ref().ok_or_else(|| unsupported("data.path is not set: name a file of examples"))?;
    if config.train.task == Learned::ImageClassification {
        return pictures::open(config, paths);
    }
    let tokenizer = tokenizer(config, paths)?;
    if let Some(vocabulary) = config.model.vocabulary
        && tokenizer.vocabulary() > vocabulary
    {
        let found = tokenizer.vocabulary();
        let what =
            format!("the tokenizer has {found} tokens, and the model {vocabulary}: use the tokenizer of the model");
        return Err(unsupported(&what));
    }
    let train = set(config, paths, &tokenizer, None)?;
    let classes = (!train.classes().is_empty()).then(|| train.classes().to_vec());
    let val = config.data.val_path.as_ref().map(|paths| set(config, paths, &tokenizer, classes)).transpose()?;
    if let Some(val) = &val {
        val.check_same_labels(&train)?;
    }
    Ok(ExampleSource { tokenizer: Some(tokenizer), train, val, pictures: None })
}

pub(super) fn unsupported(what: &str) -> Error {
    Error::Unsupported(what.to_owned())
}

fn set(
    config: &Config,
    paths: &Paths,
    tokenizer: &Tokenizer,
    classes: Option<Vec<String>>,
) -> Result<LabelledSet, Error> {
    let folders: Vec<&PathBuf> = paths.as_slice().iter().filter(|path| LabelledSet::is_folder_of(path)).collect();
    let task = task(config)?;
    if let ([folder], [_]) = (&folders[..], paths.as_slice()) {
        let set = LabelledSet::open(folder)?;
        if set.kind() != task.kind() {
            let (found, wanted) = (set.kind().name(), task.kind().name());
            let folder = folder.display();
            return Err(unsupported(&format!("{folder} holds examples for {found}, and train.task needs {wanted}")));
        }
        return Ok(set);
    }
    if !folders.is_empty() {
        let names: Vec<String> = paths.as_slice().iter().map(|path| path.display().to_string()).collect();
        let names = names.join(", ");
        return Err(unsupported(&format!("{names}: name one folder of examples alone, or files of rows")));
    }
    let max_tokens = config.data.max_tokens.unwrap_or(config.model.block);
    // A decoder alone has both texts in one row.
    let shares_row = task.kind() == Kind::Pair && config.model.architecture == Architecture::Decoder;
    let max_tokens = if shares_row { max_tokens / 2 } else { max_tokens };
    let empty = if task.kind() == Kind::Text { Empty::Skip } else { Empty::Refuse };
    let options = Options { classes, empty, keep: config.data.keep, ..Options::new(task, max_tokens) };
    Ok(LabelledSet::from_files(paths.as_slice(), tokenizer, &options, &|_, _| {})?)
}

/// What the columns mean.
fn task(config: &Config) -> Result<Task, Error> {
    let data = &config.data;
    let (text, pair, label) = (data.text.clone(), data.text_pair.clone(), data.label.clone());
    Ok(match config.train.task {
        Learned::Translation => Task::Pair { source: text, target: pair.unwrap_or_default() },
        Learned::CausalLm | Learned::MaskedLm => Task::Text { text, long: Long::Cut },
        Learned::Classification => Task::Classification { text, pair, label },
        Learned::ImageClassification => unreachable!("images have no columns"),
        Learned::MultiLabel => Task::MultiLabel { text, pair, label, separator: ",".into() },
        Learned::Regression => Task::Regression { text, pair, label },
        Learned::QuestionAnswering => Task::Span {
            question: if text == "text" { "question".into() } else { text },
            context: pair.unwrap_or_else(|| "context".into()),
            answers: "answers".into(),
            answer_start: "answer_start".into(),
            id: Some("id".into()),
            stride: data.stride,
        },
    })
}

/// The tokenizer that is named, or else the one beside the data or the first weights.
fn tokenizer(config: &Config, paths: &Paths) -> Result<Tokenizer, Error> {
    if let TokenizerChoice::File(path) = &config.data.tokenizer {
        return Ok(Tokenizer::load(path)?);
    }
    let initial = config.model.initial.as_deref().map(super::checkpoint::resolve).transpose()?;
    let folders = paths.as_slice().iter().filter(|path| path.is_dir()).map(PathBuf::as_path);
    let beside = folders.chain(initial.as_deref()).map(|folder: &Path| folder.join("tokenizer.json"));
    let found = beside.into_iter().find(|file| file.is_file()).ok_or_else(|| {
        unsupported(
            "data.tokenizer: tasks with examples need a tokenizer.json with special tokens; name one, or make one with \
             engine-data tokenizer --model wordpiece",
        )
    })?;
    Ok(Tokenizer::load(found)?)
}
