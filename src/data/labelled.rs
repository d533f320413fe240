//! Labelled examples: rows of TSV, CSV, JSONL or text -> token ids with labels, in memory or memory-mapped.
//!
//! A [`Task`] says which columns a row has and what they mean. [`LabelledSet::from_files`] tokenises rows on all cores into
//! memory, [`write()`] into a folder that [`LabelledSet::open`] maps: `examples.bin` (see `labelled/format.rs`),
//! `labels.json` ([`Description`]) and `tokenizer.json`. Rows keep their order, so the result does not depend on the number
//! of threads.
//!
//! An example is `[CLS] a [SEP]`, or `[CLS] a [SEP] b [SEP]` with token type 1 from `b` on (Devlin et al. 2019), cut to
//! `max_tokens`. A row makes one example, but a long document may be cut into several, and a question has one for each window
//! of its context. Both sides of a translation are framed by themselves: `[CLS] a [SEP]` then `[CLS] b [SEP]`, so that a
//! decoder reads the second without its last token and predicts it without its first.

mod classes;
mod encode;
mod folder;
mod format;
mod reading;
mod span;
mod summary;
mod task;

pub use encode::longest_first;
pub use folder::{DESCRIPTION_FILE, Description, EXAMPLES_FILE};
pub use reading::write;
pub use span::Question;
pub use summary::{Bucket, Sample, Summary, summary};
pub use task::{Empty, Keep, Kind, Long, Options, Task};

use super::error::{Error, Result};
use super::shard::TokenSlice;
use super::tokenizer::Tokenizer;
use format::{Layout, Section};
use memmap2::Mmap;
use serde::{Deserialize, Serialize};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Examples of one task. A cheap handle: clones share the map.
#[derive(Clone)]
pub struct LabelledSet {
    map: Arc<Mmap>,
    layout: Layout,
    description: Arc<Description>,
    path: Option<PathBuf>,
}

/// What an example is labelled with.
#[derive(Clone, Debug, PartialEq)]
pub enum Label {
    /// Nothing: documents and translations.
    None,
    /// One class.
    Class(usize),
    /// Any number of classes, ascending.
    Classes(Vec<usize>),
    /// A number.
    Value(f32),
    /// The tokens of the answer within the example; None where this window does not hold it, or there is none.
    Span(Option<Range<usize>>),
}

/// The two texts of a translation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sides {
    /// What is translated.
    pub source: String,
    /// Its translation.
    pub target: String,
}

impl LabelledSet {
    /// Tokenises files of rows into memory. `progress` is told bytes of the files.
    ///
    /// # Errors
    /// A file cannot be read, lacks a column or has no rows; a row is not what the task needs (each error names file and row);
    /// an option is out of range, or the tokenizer lacks the special tokens that the task needs.
    pub fn from_files<P: AsRef<Path>>(
        paths: &[P],
        tokenizer: &Tokenizer,
        options: &Options,
        progress: super::Progress<'_>,
    ) -> Result<Self> {
        reading::into_memory(paths, tokenizer, options, progress)
    }

    /// Examples that all have these tokens, and one of `classes` each.
    ///
    /// # Errors
    /// There are none, or a label is none of the classes.
    pub fn of_classes(tokens: &[u32], labels: &[u32], classes: &[String]) -> Result<Self> {
        reading::of_classes(tokens, labels, classes)
    }

    /// Maps a folder that [`write()`] made. Every length, offset and label is checked, and that its files belong together;
    /// token ids are not: see [`check_vocabulary`](Self::check_vocabulary).
    ///
    /// # Errors
    /// The folder is not one of labelled examples, or is damaged.
    pub fn open(folder: impl AsRef<Path>) -> Result<Self> {
        folder::open(folder.as_ref())
    }

    /// True of a folder that [`open`](Self::open) is for.
    pub fn is_folder_of(path: &Path) -> bool {
        path.join(EXAMPLES_FILE).exists() || path.join(DESCRIPTION_FILE).exists()
    }

    /// What the set is and how it was made.
    pub fn description(&self) -> &Description {
        &self.description
    }

    /// The folder, or None in memory.
    pub fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// The kind of task.
    pub fn kind(&self) -> Kind {
        self.layout.kind
    }

    /// Number of examples.
    pub fn len(&self) -> usize {
        self.layout.examples
    }

    /// True where there are none; those that were made have one at least.
    pub fn is_empty(&self) -> bool {
        self.layout.examples == 0
    }

    /// Number of source rows that examples were made of.
    pub fn rows(&self) -> usize {
        self.layout.rows
    }

    /// The names of the classes, in the order of their numbers.
    pub fn classes(&self) -> &[String] {
        &self.description.classes
    }

    /// The tokens of an example, special ones included; of a translation, both sides after each other.
    ///
    /// # Panics
    /// Here and below: where there is no such example.
    pub fn tokens(&self, example: usize) -> TokenSlice<'_> {
        self.all_tokens().range(self.range(example))
    }

    /// Number of tokens of an example.
    pub fn length(&self, example: usize) -> usize {
        self.range(example).len()
    }

    /// Where in an example its second text starts (token type 1, the context of a question, the target of a translation);
    /// its length where there is none.
    pub fn second(&self, example: usize) -> usize {
        u32::from_le(self.values::<u32>(Section::Second)[example]) as usize
    }

    /// The token types of an example: 0 in the first text, 1 in the second.
    pub fn types(&self, example: usize) -> impl Iterator<Item = u32> + use<> {
        let (second, length) = (self.second(example), self.length(example));
        (0..length).map(move |index| u32::from(index >= second))
    }

    /// The row that an example was made of, counted over all files, skipped rows left out; from 0.
    pub fn row(&self, example: usize) -> usize {
        u32::from_le(self.values::<u32>(Section::Rows)[example]) as usize
    }

    /// The label of an example.
    pub fn label(&self, example: usize) -> Label {
        let word = |index| self.layout.word(&self.map, index);
        match self.kind() {
            Kind::Text | Kind::Pair => Label::None,
            Kind::Classification => Label::Class(word(example) as usize),
            Kind::Regression => Label::Value(f32::from_bits(word(example))),
            Kind::MultiLabel => {
                let words = &self.values::<u64>(Section::Labels)[example * self.layout.words..][..self.layout.words];
                let has = |class: &usize| u64::from_le(words[class / 64]) >> (class % 64) & 1 == 1;
                Label::Classes((0..self.classes().len()).filter(has).collect())
            }
            Kind::Span => {
                let (first, end) = (word(2 * example) as usize, word(2 * example + 1) as usize);
                Label::Span((end > 0).then_some(first..end))
            }
        }
    }

    /// The tokens of an example that are its context, of [`Kind::Span`]: the second text without the token that ends it.
    pub fn context(&self, example: usize) -> Range<usize> {
        let end = self.length(example);
        self.second(example)..end.saturating_sub(1).max(self.second(example))
    }

    /// The characters of the row's context that token `token` of an example came from, of [`Kind::Span`]: first and end.
    /// An answer of tokens `a..b` is the context from the first character of `a` to the end of `b - 1`.
    pub fn characters(&self, example: usize, token: usize) -> (usize, usize) {
        let index = self.range(example).start + token;
        let offsets: &[u32] = self.values(Section::Offsets);
        (u32::from_le(offsets[2 * index]) as usize, u32::from_le(offsets[2 * index + 1]) as usize)
    }

    /// The question of a row, of [`Kind::Span`], with its context and the answers that count as right.
    ///
    /// # Errors
    /// The set is of another kind, or damaged.
    pub fn question(&self, row: usize) -> Result<Question> {
        self.text(row, Kind::Span)
    }

    /// Both texts of a row, of [`Kind::Pair`].
    ///
    /// # Errors
    /// The set is of another kind, or damaged.
    pub fn sides(&self, row: usize) -> Result<Sides> {
        self.text(row, Kind::Pair)
    }

    fn text<T: for<'a> Deserialize<'a>>(&self, row: usize, kind: Kind) -> Result<T> {
        if self.kind() != kind {
            let what = format!("examples for {} keep no texts of {}", self.kind().name(), kind.name());
            return Err(Error::Argument(what));
        }
        let starts: &[u64] = self.values(Section::TextStarts);
        let range = u64::from_le(starts[row]) as usize..u64::from_le(starts[row + 1]) as usize;
        serde_json::from_slice(&self.layout.bytes(&self.map, Section::Texts)[range]).map_err(|error| {
            let path = self.path.as_deref().unwrap_or(Path::new("examples in memory"));
            Error::shard(path, format!("the text of row {row} is damaged ({error})"), "make it again")
        })
    }

    /// Tokens of all examples.
    pub fn total_tokens(&self) -> usize {
        self.all_tokens().len()
    }

    /// Tokens of the longest example.
    pub fn longest(&self) -> usize {
        (0..self.len()).map(|example| self.length(example)).max().unwrap_or(0)
    }

    /// How many examples each class has.
    pub fn class_counts(&self) -> Vec<u64> {
        let mut counts = vec![0; self.classes().len()];
        for example in 0..self.len() {
            match self.label(example) {
                Label::Class(class) => counts[class] += 1,
                Label::Classes(classes) => classes.into_iter().for_each(|class| counts[class] += 1),
                _ => {}
            }
        }
        counts
    }

    /// How often each token occurs, by id, for a vocabulary of this size; larger ids are not counted.
    pub fn token_counts(&self, vocabulary: usize) -> Vec<u64> {
        let mut counts = vec![0; vocabulary];
        self.all_tokens().for_each(|token| {
            if let Some(count) = counts.get_mut(token as usize) {
                *count += 1;
            }
        });
        counts
    }

    /// Checks that every token is below `vocabulary`.
    ///
    /// # Errors
    /// Names the first token that is not.
    pub fn check_vocabulary(&self, vocabulary: usize) -> Result<()> {
        let tokens = self.all_tokens();
        let Some(position) = tokens.first_at_or_above(vocabulary) else { return Ok(()) };
        let mut token = 0;
        tokens.range(position..position + 1).for_each(|found| token = found);
        let place = self.path.as_ref().map_or("examples in memory".into(), |path| path.display().to_string());
        Err(Error::TokenOutOfVocabulary { place, position, token, vocabulary })
    }

    /// Checks that classes mean the same here and in `training`.
    ///
    /// # Errors
    /// Their names or their order differ, or the kinds of task do.
    pub fn check_same_labels(&self, training: &Self) -> Result<()> {
        if self.kind() == training.kind() && self.classes() == training.classes() {
            return Ok(());
        }
        let what = format!(
            "these examples are for {} into {:?}, those for training for {} into {:?}; \
             make them with --classes-from and the folder for training",
            self.kind().name(),
            self.classes(),
            training.kind().name(),
            training.classes()
        );
        Err(Error::Argument(what))
    }

    /// A short text that changes when the data does: number of examples and of tokens, and a hash of all of it.
    pub fn fingerprint(&self) -> String {
        fingerprint(self.len(), self.total_tokens(), self.layout.hash)
    }

    fn range(&self, example: usize) -> Range<usize> {
        let starts: &[u64] = self.values(Section::Starts);
        u64::from_le(starts[example]) as usize..u64::from_le(starts[example + 1]) as usize
    }

    fn all_tokens(&self) -> TokenSlice<'_> {
        match self.layout.token_type {
            super::shard::TokenType::U16 => TokenSlice::U16(self.values(Section::Tokens)),
            super::shard::TokenType::U32 => TokenSlice::U32(self.values(Section::Tokens)),
        }
    }

    fn values<T: bytemuck::AnyBitPattern>(&self, section: Section) -> &[T] {
        self.layout.values(&self.map, section)
    }
}

fn fingerprint(examples: usize, tokens: usize, hash: u64) -> String {
    format!("{examples}-{tokens}-{hash:016x}")
}

#[cfg(test)]
mod tests;
