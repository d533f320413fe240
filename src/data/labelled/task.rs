//! What a row means: its columns, its kind of label, and how its texts become tokens.

use super::super::error::{Error, Result};
use super::super::table::Quotes;
use serde::{Deserialize, Serialize};
use std::str::FromStr;

/// What a row means for a task; names are those of columns.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Task {
    /// A document without a label, for pretraining.
    Text {
        /// The document.
        text: String,
        /// What becomes of a document of more than `max_tokens`.
        long: Long,
    },
    /// One class for a text or a pair of texts.
    Classification {
        /// The text.
        text: String,
        /// The second text.
        pair: Option<String>,
        /// The name of its class: text or number.
        label: String,
    },
    /// Any number of classes for a text or a pair of texts.
    MultiLabel {
        /// The text.
        text: String,
        /// The second text.
        pair: Option<String>,
        /// The names of its classes: a JSON array, or text in which they are parted.
        label: String,
        /// What parts them in text.
        separator: String,
    },
    /// A number for a text or a pair of texts.
    Regression {
        /// The text.
        text: String,
        /// The second text.
        pair: Option<String>,
        /// The number.
        label: String,
    },
    /// An answer within a context (SQuAD, Rajpurkar et al. 2016).
    Span {
        /// The question.
        question: String,
        /// The context.
        context: String,
        /// The answers, or the one answer; none or an empty text where the context does not answer.
        answers: String,
        /// The first character of each answer, or of the first, counted in characters of the context.
        answer_start: String,
        /// Names the question in predictions; else it is the number of the row.
        id: Option<String>,
        /// How many tokens of the context two windows share.
        stride: usize,
    },
    /// A text and its translation.
    Pair {
        /// The text.
        source: String,
        /// Its translation.
        target: String,
    },
}

/// The kinds of [`Task`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// See [`Task::Text`].
    Text,
    /// See [`Task::Classification`].
    Classification,
    /// See [`Task::MultiLabel`].
    MultiLabel,
    /// See [`Task::Regression`].
    Regression,
    /// See [`Task::Span`].
    Span,
    /// See [`Task::Pair`].
    Pair,
}

/// What becomes of a document that is longer than an example.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Long {
    /// It is cut into several examples.
    #[default]
    Cut,
    /// A part of it is kept, see [`Keep`].
    Truncate,
}

/// Which tokens of a text that is too long are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Keep {
    /// The first ones.
    #[default]
    Start,
    /// The last ones.
    End,
    /// A quarter of them from the start and the others from the end: reviews and articles say at both what they are about
    /// (Sun et al. 2019, "How to Fine-Tune BERT for Text Classification?", section 5.3.1).
    Both,
}

impl FromStr for Keep {
    type Err = String;

    fn from_str(name: &str) -> std::result::Result<Self, String> {
        match name {
            "start" => Ok(Self::Start),
            "end" => Ok(Self::End),
            "both" => Ok(Self::Both),
            _ => Err("expected start, end or both".into()),
        }
    }
}

impl Keep {
    /// What is left of `tokens` where `room` of them fit.
    pub fn cut(self, mut tokens: Vec<u32>, room: usize) -> Vec<u32> {
        if tokens.len() > room {
            let start = match self {
                Self::Start => room,
                Self::End => 0,
                Self::Both => room / 4,
            };
            tokens.drain(start..tokens.len() - (room - start));
        }
        tokens
    }
}

/// What becomes of a row with a text of no tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Empty {
    /// It is an error.
    #[default]
    Refuse,
    /// It is left out and counted.
    Skip,
}

/// How rows become examples.
#[derive(Clone, Debug)]
pub struct Options {
    /// What a row means.
    pub task: Task,
    /// Tokens of an example at most, special ones included; of a translation, of each side.
    pub max_tokens: usize,
    /// What is kept of a text without a second one that is too long. Of pairs, the starts are kept.
    pub keep: Keep,
    /// What becomes of rows with empty texts.
    pub empty: Empty,
    /// The names of the classes in the order of their numbers, as the training set has them; any other is an error. Where
    /// there are none, they are those of the rows, sorted (numbers by value).
    pub classes: Option<Vec<String>>,
    /// Whether fields of TSV may be quoted.
    pub quotes: Quotes,
}

impl Options {
    /// Usual options for a task.
    pub fn new(task: Task, max_tokens: usize) -> Self {
        Self { task, max_tokens, keep: Keep::Start, empty: Empty::Refuse, classes: None, quotes: Quotes::InCsv }
    }

    /// Checks what does not depend on any file.
    ///
    /// # Errors
    /// Names the option and what it may be.
    pub(super) fn check(&self) -> Result<()> {
        let least = if self.task.second().is_some() && self.task.kind() != Kind::Pair { 5 } else { 3 };
        if !(least..=1 << 24).contains(&self.max_tokens) {
            let what = format!("max tokens {} is not in {least}..=16777216", self.max_tokens);
            return Err(Error::Argument(what));
        }
        if let Task::MultiLabel { separator, .. } = &self.task
            && separator.is_empty()
        {
            return Err(Error::Argument("the separator of labels is empty; pass for example \",\"".into()));
        }
        let mut names = self.classes.clone().unwrap_or_default();
        names.sort();
        if let Some(pair) = names.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(Error::Argument(format!("class {:?} is given twice", pair[0])));
        }
        Ok(())
    }
}

impl Task {
    /// Its kind.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Text { .. } => Kind::Text,
            Self::Classification { .. } => Kind::Classification,
            Self::MultiLabel { .. } => Kind::MultiLabel,
            Self::Regression { .. } => Kind::Regression,
            Self::Span { .. } => Kind::Span,
            Self::Pair { .. } => Kind::Pair,
        }
    }

    /// The column of the first text.
    pub fn first(&self) -> &str {
        match self {
            Self::Text { text, .. }
            | Self::Classification { text, .. }
            | Self::MultiLabel { text, .. }
            | Self::Regression { text, .. } => text,
            Self::Span { question, .. } => question,
            Self::Pair { source, .. } => source,
        }
    }

    /// The column of the second text, where there is one.
    pub fn second(&self) -> Option<&str> {
        match self {
            Self::Text { .. } => None,
            Self::Classification { pair, .. } | Self::MultiLabel { pair, .. } | Self::Regression { pair, .. } => {
                pair.as_deref()
            }
            Self::Span { context, .. } => Some(context),
            Self::Pair { target, .. } => Some(target),
        }
    }

    /// The column of the label, where there is one that is not a span.
    pub fn label(&self) -> Option<&str> {
        match self {
            Self::Classification { label, .. } | Self::MultiLabel { label, .. } | Self::Regression { label, .. } => {
                Some(label)
            }
            Self::Text { .. } | Self::Span { .. } | Self::Pair { .. } => None,
        }
    }
}

impl Kind {
    const ALL: [Self; 6] =
        [Self::Text, Self::Classification, Self::MultiLabel, Self::Regression, Self::Span, Self::Pair];

    /// Its name, as in `labels.json`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Classification => "classification",
            Self::MultiLabel => "multi-label",
            Self::Regression => "regression",
            Self::Span => "span",
            Self::Pair => "pair",
        }
    }

    /// Its number in `examples.bin`.
    pub(super) fn number(self) -> u32 {
        self as u32
    }

    pub(super) fn from_number(number: u32) -> Option<Self> {
        Self::ALL.get(number as usize).copied()
    }

    /// True where the texts of the rows are kept, since predictions are scored against them.
    pub(super) fn keeps_texts(self) -> bool {
        matches!(self, Self::Span | Self::Pair)
    }
}
