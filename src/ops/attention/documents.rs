//! Several documents in one row: where each begins and ends, as attention is told, checked and read.
//!
//! Position `t` of row `b` holds two numbers: the first position of its document and the end, exclusive, both inside
//! the row. `(0, 0)` is padding, wherever it stands. So each position by itself says which keys its query may see, which
//! is all that a GPU looks at; and a row read from left to right is a list of runs, which is what the CPU works on.

use super::{NAME, Shape};
use crate::ops::Error;
use std::ops::Range;

/// Positions of one row that lie together: a document, or padding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    /// Row of the batch.
    pub row: usize,
    /// Positions inside the row.
    pub positions: Range<usize>,
    pub is_padding: bool,
}

/// The runs of all rows, in order, up to the first position that does not fit; `documents` is `(rows, time, 2)`.
pub fn runs(documents: &[i32], time: usize) -> impl Iterator<Item = Run> {
    let mut at = 0;
    std::iter::from_fn(move || {
        let rest = documents.get(2 * at..).filter(|rest| !rest.is_empty())?;
        let (row, start) = (at / time, at % time);
        let pair = &rest[..2];
        let left = time - start;
        let same = rest.chunks_exact(2).take(left).take_while(|next| next == &pair).count();
        let is_padding = pair == [0, 0];
        let is_document = usize::try_from(pair[0]) == Ok(start) && usize::try_from(pair[1]) == Ok(start + same);
        if !is_padding && !is_document {
            return None;
        }
        at += same;
        Some(Run { row, positions: start..start + same, is_padding })
    })
}

/// The value of [`Forward::documents`](super::Forward::documents) for rows of `time` positions: for each row the
/// lengths of its documents in order, a negative one for that much padding; what is left of a row is padding.
///
/// ```
/// use engine::ops::attention::documents;
///
/// assert_eq!(documents::of_lengths(4, [&[1, 2][..]]), [0, 1, 1, 3, 1, 3, 0, 0]);
/// ```
///
/// # Panics
/// A row's lengths are more than `time` together.
pub fn of_lengths<'a>(time: usize, rows: impl IntoIterator<Item = &'a [i32]>) -> Vec<i32> {
    let mut documents = Vec::new();
    for lengths in rows {
        let row = documents.len();
        let mut start = 0;
        for &length in lengths {
            let end = start + length.unsigned_abs() as usize;
            let pair = if length < 0 { [0, 0] } else { [start as i32, end as i32] };
            (start..end).for_each(|_| documents.extend(pair));
            start = end;
        }
        assert!(start <= time, "{start} positions in a row of {time}");
        documents.resize(row + 2 * time, 0);
    }
    documents
}

/// Fails unless every position belongs to the document that it says, or is padding.
pub(super) fn check(shape: &Shape, documents: &[i32]) -> Result<(), Error> {
    let time = shape.query_time;
    let seen: usize = runs(documents, time).map(|run| run.positions.len()).sum();
    let Some(pair) = documents.get(2 * seen..2 * seen + 2) else { return Ok(()) };
    let (row, position) = (seen / time, seen % time);
    let (first, end) = (pair[0], pair[1]);
    let what = format!(
        "documents say that position {position} of row {row} belongs to {first}..{end}: each position of a document \
         must hold the document's first position and its end, inside the row of {time}, and padding 0 and 0"
    );
    Err(Error::new(NAME, what))
}
