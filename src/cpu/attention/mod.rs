//! Attention on the CPU: FlashAttention-2 (Dao 2023) in tiles that fit the caches, see `tile` for how they are laid
//! out and multiplied.
//!
//! Forward, for a chunk of queries of one head: for each block of keys, for each block of queries, `S = K Qᵀ`, running
//! maximum and sum, `O = rescale · O + P V`. Backward, for a range of keys of one key/value head: for each block of
//! queries, for each block of keys, `P` again from the log-sum-exp, then the four gradient products. With few queries
//! (decoding) lanes over queries would stay empty, so `decode` has its own, bandwidth-bound loop.
//!
//! Keys behind a sequence's length, and those that no query of a block may see, are not visited at all.
//!
//! All that works on a `Sequence`: one of the batch, or one document of several in a row. Blocks are cut from its own
//! first position on, so a document's results are the same bits wherever it lies, and the work is what its documents
//! are, not what the row is.

mod backward;
mod decode;
mod forward;
mod relative;
mod scores;
mod tile;

use super::{Cpu, scratch};
use crate::ops::attention::{Backward, Common, Forward, Inputs, Mask, Shape, documents};

/// Computes the attention; see [`crate::ops::attention::forward`].
pub fn forward(cpu: &Cpu, shape: &Shape, arguments: Forward<'_>) {
    let problem = Problem::new(shape, arguments.common());
    let output = arguments.output.host();
    if output.is_empty() {
        return;
    }
    let log_sum_exp = arguments.log_sum_exp.map(|view| view.host());
    // Self-attention goes by tiles however short it is, so that a document has the same bits alone and in a row.
    let is_decoding = shape.query_time <= decode::MOST_QUERIES && shape.query_time < shape.key_time;
    if is_decoding && problem.dropout.is_none() {
        decode::run(cpu, &problem, output, log_sum_exp);
    } else {
        relative::with_reversed(&problem, |problem| forward::run(cpu, problem, output, log_sum_exp));
    }
}

/// Computes the gradients; see [`crate::ops::attention::backward`].
pub fn backward(cpu: &Cpu, shape: &Shape, arguments: Backward<'_>) {
    let problem = Problem::new(shape, arguments.common());
    let results = backward::Results {
        output: arguments.output.host(),
        log_sum_exp: arguments.log_sum_exp.host(),
        grad_output: arguments.grad_output.host(),
    };
    let Backward { grad_inputs, grad_bias, grad_relative_bias, .. } = arguments;
    relative::with_reversed(&problem, |problem| {
        backward::run(cpu, problem, results, grad_inputs, grad_bias, grad_relative_bias);
    });
}

/// Queries and keys that belong together: a sequence of the batch, or a document (or padding) inside one.
#[derive(Clone, Copy)]
struct Sequence {
    batch: usize,
    /// Position of its first query, and of its first key, in the row of the batch.
    first: usize,
    queries: usize,
    keys: usize,
    /// The first so many keys are not padding.
    length: usize,
}

/// Where the rows of queries, keys or values lie in their slice; everything in elements.
#[derive(Clone, Copy)]
struct Layout {
    offset: usize,
    sequence: usize,
    row: usize,
    head: usize,
}

impl Layout {
    /// Index of the row of time `t` and head `h` of a sequence.
    #[inline(always)]
    fn at(&self, sequence: &Sequence, t: usize, h: usize) -> usize {
        self.offset + sequence.batch * self.sequence + (sequence.first + t) * self.row + h * self.head
    }
}

/// What both directions read.
#[derive(Clone, Copy)]
struct Problem<'a> {
    shape: Shape,
    query: &'a [f32],
    query_layout: Layout,
    /// Keys and values are parts of the same slice.
    key_value: &'a [f32],
    key_layout: Layout,
    value_layout: Layout,
    key_lengths: Option<&'a [i32]>,
    documents: Option<&'a [i32]>,
    bias: Option<&'a [f32]>,
    relative: Option<relative::Relative<'a>>,
    dropout: Option<scores::Mask>,
}

impl<'a> Problem<'a> {
    fn new(shape: &Shape, common: Common<'a>) -> Self {
        let Common { inputs, key_lengths, documents, bias, relative_bias, dropout } = common;
        let (head, key_columns) = (shape.head_size, shape.key_columns());
        let layout = |offset, rows, row| Layout { offset, sequence: rows * row, row, head };
        let (query, query_layout, key_value, key_layout) = match inputs {
            Inputs::Packed(qkv) => {
                let row = shape.query_columns() + 2 * key_columns;
                let keys = layout(shape.query_columns(), shape.key_time, row);
                (qkv, layout(0, shape.query_time, row), qkv, keys)
            }
            Inputs::Separate { query, query_row, key_value, capacity } => {
                (query, layout(0, shape.query_time, query_row), key_value, layout(0, capacity, 2 * key_columns))
            }
        };
        Self {
            shape: *shape,
            query: query.host(),
            query_layout,
            key_value: key_value.host(),
            key_layout,
            value_layout: Layout { offset: key_layout.offset + key_columns, ..key_layout },
            key_lengths: key_lengths.map(|view| view.host()),
            documents: documents.map(|view| view.host()),
            bias: bias.map(|view| view.host()),
            relative: relative_bias.map(relative::Relative::new),
            dropout: dropout.and_then(scores::Mask::new),
        }
    }

    /// Sequence `batch` of the batch as a whole.
    fn sequence(&self, batch: usize) -> Sequence {
        let Shape { query_time: queries, key_time: keys, .. } = self.shape;
        let length = self.key_lengths.map_or(keys, |lengths| usize::try_from(lengths[batch]).unwrap_or(0).min(keys));
        Sequence { batch, first: 0, queries, keys, length }
    }

    /// Everything that attends to itself alone, in the order of the batch.
    fn sequences(&self) -> Vec<Sequence> {
        let Some(documents) = self.documents else {
            return (0..self.shape.batch).map(|batch| self.sequence(batch)).collect();
        };
        let sequence = |run: documents::Run| {
            let count = run.positions.len();
            let length = if run.is_padding { 0 } else { count };
            Sequence { batch: run.row, first: run.positions.start, queries: count, keys: count, length }
        };
        documents::runs(documents, self.shape.query_time).map(sequence).collect()
    }

    /// Number of keys that query `i` of the sequence sees.
    fn seen(&self, sequence: &Sequence, i: usize) -> usize {
        match self.shape.mask {
            Mask::Full => sequence.length,
            Mask::Causal => sequence.length.min(i + 1 + sequence.keys - sequence.queries),
        }
    }

    /// The tile of `queries` from `i` and of `keys` from `j` on.
    #[inline(always)]
    fn tile(&self, sequence: &Sequence, [i, queries]: [usize; 2], [j, keys]: [usize; 2]) -> tile::Tile {
        let diagonal = match self.shape.mask {
            Mask::Full => keys as isize,
            Mask::Causal => (i + 1 + sequence.keys - sequence.queries) as isize - j as isize,
        };
        tile::Tile { queries, keys, diagonal }
    }

    /// Query heads that share a key/value head.
    fn group(&self) -> usize {
        self.shape.heads / self.shape.key_value_heads
    }

    /// Index of the element of query `i` and key `j` of a sequence, for dropout.
    #[inline(always)]
    fn element(&self, sequence: &Sequence, h: usize, i: usize, j: usize) -> usize {
        self.statistic(sequence, h, i) * self.shape.key_time + sequence.first + j
    }

    /// Index of the bias of query `i` and key `j` of a sequence.
    #[inline(always)]
    fn bias_element(&self, sequence: &Sequence, h: usize, i: usize, j: usize) -> usize {
        self.element(&Sequence { batch: 0, ..*sequence }, h, i, j)
    }

    /// Index of the log-sum-exp of query `i` of a sequence.
    #[inline(always)]
    fn statistic(&self, sequence: &Sequence, h: usize, i: usize) -> usize {
        (sequence.batch * self.shape.heads + h) * self.shape.query_time + sequence.first + i
    }

    /// Index of the output of query `i` of a sequence.
    #[inline(always)]
    fn output(&self, sequence: &Sequence, h: usize, i: usize) -> usize {
        let position = sequence.batch * self.shape.query_time + sequence.first + i;
        position * self.shape.query_columns() + h * self.shape.head_size
    }
}

/// A pointer into scratch memory that a task may use on whatever thread runs it.
type Scratch = *mut f32;

/// Calls `body` with one piece of this thread's scratch memory for each of `sizes`, aligned to cache lines.
fn with_scratch<const N: usize, R>(sizes: [usize; N], body: impl FnOnce([Scratch; N]) -> R) -> R {
    let total = sizes.iter().map(|size| size.next_multiple_of(16)).sum();
    scratch::with(total, |memory| {
        let mut next = 0;
        body(sizes.map(|size| {
            let piece = memory[next..].as_mut_ptr();
            next += size.next_multiple_of(16);
            piece
        }))
    })
}
