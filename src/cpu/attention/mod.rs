//! Attention on the CPU: FlashAttention-2 (Dao 2023) in tiles that fit the caches, see `tile` for how they are laid
//! out and multiplied.
//!
//! Forward, for a chunk of queries of one head: for each block of keys, for each block of queries, `S = K Qᵀ`, running
//! maximum and sum, `O = rescale · O + P V`. Backward, for a range of keys of one key/value head: for each block of
//! queries, for each block of keys, `P` again from the log-sum-exp, then the four gradient products. With few queries
//! (decoding) lanes over queries would stay empty, so `decode` has its own, bandwidth-bound loop.
//!
//! Keys behind a sequence's length, and those that no query of a block may see, are not visited at all.

mod backward;
mod decode;
mod forward;
mod scores;
mod tile;

use super::{Cpu, scratch};
use crate::ops::View;
use crate::ops::attention::{Backward, Forward, Inputs, Mask, Shape};

/// Computes the attention; see [`crate::ops::attention::forward`].
pub fn forward(cpu: &Cpu, shape: &Shape, arguments: Forward<'_>) {
    let problem = Problem::new(shape, &arguments.inputs, arguments.key_lengths, arguments.bias, arguments.dropout);
    let output = arguments.output.host();
    if output.is_empty() {
        return;
    }
    let log_sum_exp = arguments.log_sum_exp.map(|view| view.host());
    if shape.query_time <= decode::MOST_QUERIES && problem.dropout.is_none() {
        decode::run(cpu, &problem, output, log_sum_exp);
    } else {
        forward::run(cpu, &problem, output, log_sum_exp);
    }
}

/// Computes the gradients; see [`crate::ops::attention::backward`].
pub fn backward(cpu: &Cpu, shape: &Shape, arguments: Backward<'_>) {
    let problem = Problem::new(shape, &arguments.inputs, arguments.key_lengths, arguments.bias, arguments.dropout);
    let results = backward::Results {
        output: arguments.output.host(),
        log_sum_exp: arguments.log_sum_exp.host(),
        grad_output: arguments.grad_output.host(),
    };
    backward::run(cpu, &problem, results, arguments.grad_inputs, arguments.grad_bias);
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
    /// Index of the row of time `t` and head `h` in sequence `b`.
    #[inline(always)]
    fn at(&self, b: usize, t: usize, h: usize) -> usize {
        self.offset + b * self.sequence + t * self.row + h * self.head
    }
}

/// What both directions read.
struct Problem<'a> {
    shape: Shape,
    query: &'a [f32],
    query_layout: Layout,
    /// Keys and values are parts of the same slice.
    key_value: &'a [f32],
    key_layout: Layout,
    value_layout: Layout,
    key_lengths: Option<&'a [i32]>,
    bias: Option<&'a [f32]>,
    dropout: Option<scores::Mask>,
}

impl<'a> Problem<'a> {
    fn new(
        shape: &Shape,
        inputs: &Inputs<'a>,
        key_lengths: Option<View<'a, i32>>,
        bias: Option<View<'a, f32>>,
        dropout: Option<crate::ops::Dropout>,
    ) -> Self {
        let (head, key_columns) = (shape.head_size, shape.key_columns());
        let layout = |offset, rows, row| Layout { offset, sequence: rows * row, row, head };
        let (query, query_layout, key_value, key_layout) = match *inputs {
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
            bias: bias.map(|view| view.host()),
            dropout: dropout.and_then(scores::Mask::new),
        }
    }

    /// Number of keys of sequence `b` that are not padding.
    fn key_length(&self, b: usize) -> usize {
        let time = self.shape.key_time;
        self.key_lengths.map_or(time, |lengths| lengths[b].clamp(0, time.min(i32::MAX as usize) as i32) as usize)
    }

    /// Number of keys that query `i` of sequence `b` sees.
    fn seen(&self, b: usize, i: usize) -> usize {
        let length = self.key_length(b);
        match self.shape.mask {
            Mask::Full => length,
            Mask::Causal => length.min(i + 1 + self.shape.key_time - self.shape.query_time),
        }
    }

    /// The tile of `queries` from `i` and of `keys` from `j` on.
    #[inline(always)]
    fn tile(&self, i: usize, queries: usize, j: usize, keys: usize) -> tile::Tile {
        let diagonal = match self.shape.mask {
            Mask::Full => keys as isize,
            Mask::Causal => (i + 1 + self.shape.key_time - self.shape.query_time) as isize - j as isize,
        };
        tile::Tile { queries, keys, diagonal }
    }

    /// Query heads that share a key/value head.
    fn group(&self) -> usize {
        self.shape.heads / self.shape.key_value_heads
    }

    /// Index of the element of query `i` and key `j` for bias (with `b = 0`) and dropout.
    #[inline(always)]
    fn element(&self, b: usize, h: usize, i: usize, j: usize) -> usize {
        ((b * self.shape.heads + h) * self.shape.query_time + i) * self.shape.key_time + j
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
