//! One row -> the tokens of its examples.

use super::super::error::{Error, Result};
use super::super::table::{Cell, Row, Table};
use super::super::tokenizer::{SpecialTokens, Tokenizer};
use super::classes::{name_of, names_of};
use super::format::{Item, RawLabel};
use super::{Empty, Kind, Long, Options, Sides, Task, span};

/// Where the columns of a task are in a file.
pub(super) struct Columns {
    first: usize,
    second: Option<usize>,
    label: Option<usize>,
    pub answers: usize,
    pub answer_start: usize,
    pub id: Option<usize>,
}

impl Columns {
    /// # Errors
    /// The file lacks one of them.
    pub(super) fn find(table: &Table, task: &Task) -> Result<Self> {
        let find = |name: &str| table.column(name);
        let (answers, answer_start, id) = match task {
            Task::Span { answers, answer_start, id, .. } => {
                // As the Hugging Face version of SQuAD nests them.
                let nested = table.column(&format!("{answers}.text"));
                let nested_start = table.column(&format!("{answers}.{answer_start}"));
                let answers = find(answers).or_else(|error| nested.map_err(|_| error))?;
                let start = find(answer_start).or_else(|error| nested_start.map_err(|_| error))?;
                (answers, start, id.as_deref().map(find).transpose()?)
            }
            _ => (0, 0, None),
        };
        Ok(Self {
            first: find(task.first())?,
            second: task.second().map(find).transpose()?,
            label: task.label().map(find).transpose()?,
            answers,
            answer_start,
            id,
        })
    }
}

/// The label of a row: names of classes are numbered later, in the order of the rows.
#[derive(Clone, Debug)]
pub(super) enum RowLabel {
    Names(Vec<String>),
    Raw(RawLabel),
}

/// What a row made.
pub(super) struct EncodedRow {
    /// Its examples; none where it was skipped.
    pub items: Vec<(Item, RowLabel)>,
    /// Its text as JSON, where the kind keeps it.
    pub text: String,
    /// A part of it was cut off.
    pub is_truncated: bool,
}

impl EncodedRow {
    /// A row that is left out.
    pub(super) fn skipped() -> Self {
        Self { items: Vec::new(), text: String::new(), is_truncated: false }
    }
}

/// Turns rows into examples; used from many threads.
pub(super) struct Encoder<'a> {
    pub tokenizer: &'a Tokenizer,
    pub options: &'a Options,
    frame: Frame,
}

/// What stands around a text; documents may do without.
#[derive(Clone, Copy)]
struct Frame {
    start: Option<u32>,
    end: Option<u32>,
}

impl<'a> Encoder<'a> {
    /// # Errors
    /// An option is out of range, or the tokenizer has no special tokens although the task needs them.
    pub(super) fn new(tokenizer: &'a Tokenizer, options: &'a Options) -> Result<Self> {
        options.check()?;
        let framed = |special: SpecialTokens| Frame { start: Some(special.start), end: Some(special.end) };
        let frame = if options.task.kind() == Kind::Text {
            let bare = Frame { start: None, end: tokenizer.end_of_text() };
            SpecialTokens::find(tokenizer).map_or(bare, framed)
        } else {
            framed(SpecialTokens::of(tokenizer)?)
        };
        Ok(Self { tokenizer, options, frame })
    }

    /// # Errors
    /// The row is not what the task needs; each error names file and row.
    pub(super) fn encode(&self, row: &Row, columns: &Columns) -> Result<EncodedRow> {
        let first_text = self.text(row, columns.first, self.options.task.first())?;
        let Some(first) = self.tokens(&first_text, row, self.options.task.first())? else {
            return Ok(EncodedRow::skipped());
        };
        let Some(second_column) = columns.second else {
            let label = self.label(row, columns)?;
            let is_cut = matches!(self.options.task, Task::Text { long: Long::Cut, .. });
            let is_truncated = !is_cut && first.len() > self.room(1);
            let first = if is_cut { first } else { self.options.keep.cut(first, self.room(1)) };
            let items = self.single(&first).into_iter().map(|item| (item, label.clone())).collect();
            return Ok(EncodedRow { items, text: String::new(), is_truncated });
        };
        let second_name = self.options.task.second().unwrap_or_default();
        let second_text = self.text(row, second_column, second_name)?;
        if let Task::Span { stride, .. } = &self.options.task {
            let question = span::Question::read(row, columns, first_text, second_text)?;
            return span::encode(self, row, first, question, second_name, *stride);
        }
        let Some(second) = self.tokens(&second_text, row, second_name)? else { return Ok(EncodedRow::skipped()) };
        if self.options.task.kind() == Kind::Pair {
            let sides = Sides { source: first_text, target: second_text };
            let text = serde_json::to_string(&sides).map_err(|error| row.error(error.to_string(), "report this"))?;
            let room = self.room(1);
            let mut tokens = self.framed(&[&first[..first.len().min(room)]]);
            let split = tokens.len() as u32;
            tokens.extend(self.framed(&[&second[..second.len().min(room)]]));
            let item = Item { tokens, second: split, offsets: Vec::new() };
            let is_truncated = first.len().max(second.len()) > room;
            return Ok(EncodedRow { items: vec![(item, RowLabel::Raw(RawLabel::None))], text, is_truncated });
        }
        let (a, b) = longest_first(first.len(), second.len(), self.room(2));
        let tokens = self.framed(&[&first[..a], &second[..b]]);
        let item = Item { tokens, second: self.second_start(a), offsets: Vec::new() };
        let is_truncated = a + b < first.len() + second.len();
        Ok(EncodedRow { items: vec![(item, self.label(row, columns)?)], text: String::new(), is_truncated })
    }

    /// Tokens that fit beside the special ones around `texts` texts.
    pub(super) fn room(&self, texts: usize) -> usize {
        let special = usize::from(self.frame.start.is_some()) + texts * usize::from(self.frame.end.is_some());
        self.options.max_tokens - special
    }

    /// `[CLS] a [SEP]`, or `[CLS] a [SEP] b [SEP]`.
    pub(super) fn framed(&self, texts: &[&[u32]]) -> Vec<u32> {
        let mut tokens = Vec::with_capacity(texts.iter().map(|text| text.len() + 1).sum::<usize>() + 1);
        tokens.extend(self.frame.start);
        for text in texts {
            tokens.extend_from_slice(text);
            tokens.extend(self.frame.end);
        }
        tokens
    }

    /// Where the second text starts after a first of `first` tokens.
    pub(super) fn second_start(&self, first: usize) -> u32 {
        (usize::from(self.frame.start.is_some()) + first + usize::from(self.frame.end.is_some())) as u32
    }

    /// A text by itself, in as many examples as it takes.
    fn single(&self, tokens: &[u32]) -> Vec<Item> {
        let pieces = tokens.chunks(self.room(1));
        pieces
            .map(|piece| {
                let tokens = self.framed(&[piece]);
                Item { second: tokens.len() as u32, tokens, offsets: Vec::new() }
            })
            .collect()
    }

    /// The text of a cell.
    fn text(&self, row: &Row, column: usize, name: &str) -> Result<String> {
        match &row.cells[column] {
            Cell::Missing => Ok(String::new()),
            cell => cell.text().ok_or_else(|| {
                row.error(format!("column {name:?} holds {}, not a text", cell.kind()), "give it a text")
            }),
        }
    }

    /// The tokens of a text; None where it has none and such rows are skipped.
    pub(super) fn tokens(&self, text: &str, row: &Row, column: &str) -> Result<Option<Vec<u32>>> {
        let tokens = self.tokenizer.encode(text).map_err(|error| in_row(error, row))?;
        if !tokens.is_empty() {
            return Ok(Some(tokens));
        }
        self.refuse_empty(row, column).map(|()| None)
    }

    /// Fails unless rows with empty texts are skipped.
    pub(super) fn refuse_empty(&self, row: &Row, column: &str) -> Result<()> {
        match self.options.empty {
            Empty::Skip => Ok(()),
            Empty::Refuse => {
                let what = format!("the text in column {column:?} has no tokens");
                Err(row.error(what, "give it a text, take the row out, or skip such rows (--skip-empty)"))
            }
        }
    }

    fn label(&self, row: &Row, columns: &Columns) -> Result<RowLabel> {
        let Some(index) = columns.label else { return Ok(RowLabel::Raw(RawLabel::None)) };
        let (cell, column) = (&row.cells[index], self.options.task.label().unwrap_or_default());
        match &self.options.task {
            Task::Classification { .. } => Ok(RowLabel::Names(vec![name_of(cell, column, row)?])),
            Task::MultiLabel { separator, .. } => Ok(RowLabel::Names(names_of(cell, column, separator, row)?)),
            _ => {
                let value = cell.number().map(|value| value as f32).filter(|value| value.is_finite());
                let value = value.ok_or_else(|| {
                    let shown = cell.text().map_or(cell.kind().to_string(), |text| format!("{text:?}"));
                    row.error(format!("the label in column {column:?} is {shown}, not a number"), "give it a number")
                })?;
                Ok(RowLabel::Raw(RawLabel::Value(value)))
            }
        }
    }
}

/// An error of the tokenizer, with the row that it is about.
pub(super) fn in_row(error: Error, row: &Row) -> Error {
    row.error(error.to_string(), "use a tokenizer that knows this text, or take the row out")
}

/// How much of two texts is kept in `room` tokens, as the `tokenizers` library cuts "longest first": the shorter one is
/// left whole while the longer one can give; two long ones get half each, the longer one the odd token.
pub fn longest_first(first: usize, second: usize, room: usize) -> (usize, usize) {
    if first + second <= room {
        return (first, second);
    }
    let shorter = first.min(second).min(room / 2);
    if first > second { (room - shorter, shorter) } else { (shorter, room - shorter) }
}
