//! Launches `kernels/attention_forward.cu` and `kernels/attention_backward.cu`.
//!
//! The kernels exist for a few head sizes; a head takes the next larger one, and what it lacks is read as zeros.

mod backward;
pub(crate) mod checks;
#[cfg(test)]
mod counters;
mod forward;

pub use backward::backward;
pub use forward::forward;

use super::Arguments;
use crate::driver::{Error, LaunchConfig, Result};
use crate::ops::attention::{Common, Inputs, Mask, Shape};

/// Threads of every block: 8 groups of 16.
const BLOCK: u32 = 128;

/// The largest head that the kernels take.
const LARGEST_HEAD: usize = 256;

/// A kernel's tiles: each thread has `thread_rows x thread_columns` scores. As `Tiles` in `attention.cuh`.
#[derive(Clone, Copy)]
struct Tiles {
    /// Head size that the kernel was made for.
    padded: usize,
    thread_rows: usize,
    thread_columns: usize,
}

impl Tiles {
    const fn rows(&self) -> usize {
        8 * self.thread_rows
    }

    const fn columns(&self) -> usize {
        16 * self.thread_columns
    }

    /// Shared memory for tiles of heads, `row_tiles` with as many rows as the tile of scores, `column_tiles` with as
    /// many as it has columns, and for the tile of weights.
    fn shared_bytes(&self, row_tiles: usize, column_tiles: usize) -> u32 {
        let rows = row_tiles * self.rows() + column_tiles * self.columns();
        let elements = rows * (self.padded + 4) + self.rows() * self.columns();
        (elements * size_of::<f32>()) as u32
    }
}

/// A kernel for some head sizes, by its tiles and its name.
struct Kernel {
    tiles: Tiles,
    name: &'static str,
}

const fn kernel(name: &'static str, padded: usize, thread_rows: usize, thread_columns: usize) -> Kernel {
    Kernel { tiles: Tiles { padded, thread_rows, thread_columns }, name }
}

/// The kernel of `family`, smallest first, for this head size.
fn kernel_for(family: &'static [Kernel], head_size: usize) -> Result<&'static Kernel> {
    family.iter().find(|kernel| head_size <= kernel.tiles.padded).ok_or_else(|| {
        let message = format!("heads of size {head_size}: the kernels take at most {LARGEST_HEAD}; use more heads");
        Error::failed("attention", message)
    })
}

/// Blocks in x, each of 128 threads.
fn grid(blocks: usize) -> Result<LaunchConfig> {
    let too_many =
        |_| Error::failed("attention", format!("{blocks} blocks: more than a launch takes; use a smaller batch"));
    let blocks = i32::try_from(blocks).map_err(too_many)?;
    Ok(LaunchConfig::new([blocks as u32, 1, 1], [BLOCK, 1, 1]))
}

/// What both directions read.
struct Problem<'a> {
    shape: Shape,
    common: Common<'a>,
}

impl Problem<'_> {
    /// Query heads that share a key/value head.
    fn group(&self) -> usize {
        self.shape.heads / self.shape.key_value_heads
    }

    /// Queries of all heads that share a key/value head: rows of its tiles.
    fn packed_rows(&self) -> usize {
        self.group() * self.shape.query_time
    }

    /// Pairs of a sequence and a key/value head.
    fn pairs(&self) -> usize {
        self.shape.batch * self.shape.key_value_heads
    }

    /// Rows of scores: `B · H · query_time`.
    fn rows(&self) -> usize {
        self.shape.batch * self.shape.heads * self.shape.query_time
    }

    /// Row strides of queries and of keys, rows of each sequence, and elements before the first key.
    fn layout(&self) -> Layout {
        let shape = &self.shape;
        match self.common.inputs {
            Inputs::Packed(_) => {
                let row = shape.query_columns() + 2 * shape.key_columns();
                let first_key = shape.query_columns();
                Layout { query_row: row, key_row: row, capacity: shape.key_time, first_key }
            }
            Inputs::Separate { query_row, capacity, .. } => {
                Layout { query_row, key_row: 2 * shape.key_columns(), capacity, first_key: 0 }
            }
        }
    }

    /// The kernels' first parameter, `Attention` of `attention.cuh`.
    fn arguments(&self) -> Arguments {
        let shape = &self.shape;
        let layout = self.layout();
        let (query, key_value) = match self.common.inputs {
            Inputs::Packed(qkv) => (qkv.address(), qkv.address()),
            Inputs::Separate { query, key_value, .. } => (query.address(), key_value.address()),
        };
        let [key, value] = layout.keys_and_values(key_value, shape);
        Arguments::new()
            .address(query)
            .address(key)
            .address(value)
            .optional(self.common.key_lengths.as_ref())
            .optional(self.common.documents.as_ref())
            .optional(self.common.bias.as_ref())
            .optional(self.common.relative_bias.as_ref().map(|bias| &bias.table))
            .count(shape.query_time * layout.query_row)
            .count(layout.capacity * layout.key_row)
            .dropout(self.common.dropout.as_ref())
            .size(layout.query_row)
            .size(layout.key_row)
            .size(shape.batch)
            .size(shape.query_time)
            .size(shape.key_time)
            .size(shape.key_value_heads)
            .size(self.group())
            .size(shape.head_size)
            .float(shape.scale)
            .flag(shape.mask == Mask::Causal)
            .size(self.common.relative_bias.map_or(1, |bias| bias.radius))
            .flag(self.common.relative_bias.is_some_and(|bias| bias.queries_are_last))
    }
}

/// Where rows of queries, keys and values lie, in elements.
struct Layout {
    query_row: usize,
    key_row: usize,
    /// Rows of keys in each sequence.
    capacity: usize,
    /// Elements before the first key.
    first_key: usize,
}

impl Layout {
    /// Addresses of the first key and the first value of what begins at `start`.
    fn keys_and_values(&self, start: u64, shape: &Shape) -> [u64; 2] {
        [self.first_key, self.first_key + shape.key_columns()]
            .map(|element| start + (element * size_of::<f32>()) as u64)
    }
}
