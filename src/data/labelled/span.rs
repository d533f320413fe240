//! Questions about a context: windows over it, and where the answer is (SQuAD, Rajpurkar et al. 2016).
//!
//! Answers are given by characters, and asked for by tokens. A context that is too long for one example is read through
//! windows that overlap by `stride` tokens, so that an answer at the edge of one is in the middle of the next. Only a window
//! that holds all tokens of the first answer is labelled with it.

use super::super::error::Result;
use super::super::table::{Cell, Row};
use super::encode::{Columns, EncodedRow, Encoder, RowLabel, in_row};
use super::format::{Item, RawLabel};
use serde::{Deserialize, Serialize};

/// A question with all that is needed to score answers to it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Question {
    /// Names it.
    pub id: String,
    /// The question.
    pub question: String,
    /// What it is about.
    pub context: String,
    /// The answers that count as right; none where the context does not answer.
    pub answers: Vec<String>,
    /// First character of each answer in the context, or of the first only.
    pub answer_starts: Vec<usize>,
}

impl Question {
    /// Reads the answers of a row and checks that they are where they are said to be.
    pub(super) fn read(row: &Row, columns: &Columns, question: String, context: String) -> Result<Self> {
        let list = |cell: &Cell| match cell {
            Cell::List(cells) => cells.clone(),
            Cell::Missing => Vec::new(),
            Cell::Text(text) if text.is_empty() => Vec::new(),
            other => vec![other.clone()],
        };
        let mut answers: Vec<String> = list(&row.cells[columns.answers]).iter().filter_map(Cell::text).collect();
        if answers.iter().all(String::is_empty) {
            answers.clear();
        }
        let starts = list(&row.cells[columns.answer_start]);
        let is_start = |start: &f64| *start >= 0.0 && start.fract() == 0.0;
        let mut answer_starts = Vec::new();
        if !answers.is_empty() {
            for start in &starts {
                let start = start.number().filter(is_start).ok_or_else(|| {
                    let shown = start.text().unwrap_or_else(|| start.kind().to_string());
                    row.error(format!("answer_start {shown} is no place in the context"), "count characters from 0")
                })?;
                answer_starts.push(start as usize);
            }
            if answer_starts.is_empty() || (answer_starts.len() > 1 && answer_starts.len() != answers.len()) {
                let what = format!("{} answers, but {} places of answers", answers.len(), answer_starts.len());
                return Err(row.error(what, "give each answer, or the first one, the place where it starts"));
            }
        }
        let length = context.chars().count();
        for (answer, &start) in answers.iter().zip(&answer_starts) {
            let end = start.saturating_add(answer.chars().count());
            if end > length {
                let what = format!("answer {answer:?} at characters {start}..{end} is outside its context of {length}");
                return Err(row.error(what, "correct answer_start; it counts characters, not bytes"));
            }
            let there: String = context.chars().skip(start).take(end - start).collect();
            if there != *answer {
                let what = format!("answer {answer:?} is not at character {start}, where the context has {there:?}");
                return Err(row.error(what, "correct answer_start; it counts characters, not bytes"));
            }
        }
        let id = columns.id.and_then(|column| row.cells[column].text()).unwrap_or_else(|| row.number.to_string());
        Ok(Self { id, question, context, answers, answer_starts })
    }
}

/// The windows of a question.
pub(super) fn encode(
    encoder: &Encoder<'_>,
    row: &Row,
    question_tokens: Vec<u32>,
    question: Question,
    context_column: &str,
    stride: usize,
) -> Result<EncodedRow> {
    let encoded = encoder.tokenizer.encode_with_offsets(&question.context).map_err(|error| in_row(error, row))?;
    let (ids, characters) = (&encoded.ids, &encoded.characters);
    if ids.is_empty() {
        encoder.refuse_empty(row, context_column)?;
        return Ok(EncodedRow::skipped());
    }
    let room = encoder.room(2).saturating_sub(question_tokens.len());
    if room <= stride {
        let what = format!(
            "a question of {} tokens leaves {room} for the context, which must be more than the stride of {stride}",
            question_tokens.len()
        );
        return Err(row.error(what, "raise max tokens, lower the stride, or shorten the question"));
    }
    let answer = match (question.answers.first(), question.answer_starts.first()) {
        (Some(answer), Some(&start)) if !answer.is_empty() => {
            let end = start + answer.chars().count();
            let first = characters.iter().position(|&(_, token_end)| token_end as usize > start);
            let last = characters.iter().rposition(|&(token_first, _)| (token_first as usize) < end);
            match first.zip(last).filter(|(first, last)| first <= last) {
                Some((first, last)) => Some((first, last + 1)),
                None => {
                    let what = format!("answer {answer:?} has no tokens");
                    return Err(row.error(what, "use a tokenizer that keeps its characters, or take the row out"));
                }
            }
        }
        _ => None,
    };
    let context_start = encoder.second_start(question_tokens.len());
    let mut items = Vec::new();
    let mut start = 0;
    loop {
        let end = ids.len().min(start + room);
        let tokens = encoder.framed(&[&question_tokens, &ids[start..end]]);
        let mut offsets = vec![(0, 0); context_start as usize];
        offsets.extend_from_slice(&characters[start..end]);
        offsets.resize(tokens.len(), (0, 0));
        let within = answer.filter(|&(first, last)| start <= first && last <= end);
        let label = within.map_or(RawLabel::Span(0, 0), |(first, last)| {
            RawLabel::Span(context_start + (first - start) as u32, context_start + (last - start) as u32)
        });
        items.push((Item { tokens, second: context_start, offsets }, RowLabel::Raw(label)));
        if end == ids.len() {
            break;
        }
        start = end - stride;
    }
    let text = serde_json::to_string(&question).map_err(|error| row.error(error.to_string(), "report this"))?;
    Ok(EncodedRow { items, text, is_truncated: false })
}
