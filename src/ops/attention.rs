//! Scaled dot-product multi-head attention, fused: `softmax(scale · Q Kᵀ + bias + mask) · V` without a `T × T` matrix.
//!
//! The algorithm is FlashAttention (Dao et al. 2022, Dao 2023): tiles of queries and keys, a running maximum and sum
//! (online softmax, Milakov and Gimelshein 2018), and only the log-sum-exp of each row kept for the backward pass.
//! Queries, keys and values are read in place from packed projections, so nothing is permuted or copied.
//!
//! A row of the batch may hold several documents, each of which attends to itself alone ([`documents`]).

pub(crate) mod cases;
pub mod documents;
pub mod reference;
#[cfg(test)]
mod tests;

use super::{Device, Dropout, Error, View, ViewMut, Write, check_len};
use crate::{cpu, gpu};

const NAME: &str = "attention";

/// Which keys a query may see, besides the limit that `key_lengths` sets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mask {
    /// All of them.
    Full,
    /// Query `i` of `query_time` sees keys `0 ..= i + key_time - query_time`: the last query sees the last key.
    Causal,
}

/// Sizes of an attention.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Shape {
    /// `B`
    pub batch: usize,
    /// Queries in each sequence.
    pub query_time: usize,
    /// Keys and values in each sequence.
    pub key_time: usize,
    /// `H`
    pub heads: usize,
    /// `HK`, which divides `H`: query head `h` uses key/value head `h / (H / HK)`.
    pub key_value_heads: usize,
    /// `D`
    pub head_size: usize,
    /// Factor of `Q Kᵀ`, usually `1/√D`.
    pub scale: f32,
    pub mask: Mask,
}

impl Shape {
    /// Columns of the queries and of the output: `H · D`.
    pub fn query_columns(&self) -> usize {
        self.heads * self.head_size
    }
    /// Columns of the keys, and of the values: `HK · D`.
    pub fn key_columns(&self) -> usize {
        self.key_value_heads * self.head_size
    }
}

/// Where queries, keys and values are read from, in place.
#[derive(Clone, Copy)]
pub enum Inputs<'a> {
    /// Self-attention: `(B, T, (H + 2·HK)·D)`, queries, keys, values side by side; `query_time == key_time`.
    Packed(View<'a, f32>),
    /// Cross-attention, and decoding from a cache: queries `(B, query_time, query_row)` of which the first `H·D`
    /// columns are used; keys and values side by side `(B, capacity, 2·HK·D)` of which the first `key_time` rows are.
    Separate { query: View<'a, f32>, query_row: usize, key_value: View<'a, f32>, capacity: usize },
}

/// Where the gradients of the inputs go: same layouts as [`Inputs`]; columns and rows not used there are left alone.
pub enum GradInputs<'a> {
    Packed(ViewMut<'a, f32>, Write),
    Separate { query: Option<(ViewMut<'a, f32>, Write)>, key_value: Option<(ViewMut<'a, f32>, Write)> },
}

/// A bias that depends only on how far key and query are apart.
#[derive(Clone, Copy)]
pub struct RelativeBias<'a> {
    /// `(H, 2·radius - 1)`: element `(j - p) + radius - 1` of row `h` is added to the scaled score of key `j` and the
    /// query that stands at position `p` among the keys. That is `i + key_time - query_time` for query `i` under a
    /// causal mask (so that decoding from a cache uses the same table), else `i`.
    pub table: View<'a, f32>,
    /// One more than the largest distance: at least `key_time` and `query_time`.
    pub radius: usize,
    /// The queries stand at the end of each sequence's keys instead, also where its key length is less than `key_time`:
    /// `p = length - query_time + i`. For decoding sequences of different lengths together.
    pub queries_are_last: bool,
}

/// Arguments of [`forward`].
pub struct Forward<'a> {
    pub inputs: Inputs<'a>,
    /// `(B)`: keys at and behind this position of the sequence are masked.
    pub key_lengths: Option<View<'a, i32>>,
    /// `(B, T, 2)`, for self-attention and instead of `key_lengths`: for each position of a row the first position of
    /// the document that it belongs to and the end, exclusive, both inside the row; `(0, 0)` marks padding. A query
    /// sees keys of its own document only. Padding has an output of zero and a log-sum-exp of minus infinity; what it
    /// holds is not read on the CPU, and must be finite on a GPU. On the CPU the results are, bit for bit, those of each
    /// document by itself, as a batch of one sequence of its length.
    pub documents: Option<View<'a, i32>>,
    /// `(H, query_time, key_time)`: added to the scaled scores of every sequence.
    pub bias: Option<View<'a, f32>>,
    pub relative_bias: Option<RelativeBias<'a>>,
    /// Applied to the probabilities; element index `((b·H + h)·query_time + i)·key_time + j`.
    pub dropout: Option<Dropout>,
    /// `(B, query_time, H·D)`. A row whose keys are all masked is zero.
    pub output: ViewMut<'a, f32>,
    /// `(B, H, query_time)`: natural logarithm of the sum of exponentials of each row of masked, scaled and biased
    /// scores; minus infinity where all keys are masked. `None` where no backward pass follows.
    pub log_sum_exp: Option<ViewMut<'a, f32>>,
}

/// Arguments of [`backward`]; the first six as they were in the forward pass.
pub struct Backward<'a> {
    pub inputs: Inputs<'a>,
    pub key_lengths: Option<View<'a, i32>>,
    /// Gradients of padding are zero.
    pub documents: Option<View<'a, i32>>,
    pub bias: Option<View<'a, f32>>,
    pub relative_bias: Option<RelativeBias<'a>>,
    pub dropout: Option<Dropout>,
    /// `(B, query_time, H·D)`: the forward pass's result.
    pub output: View<'a, f32>,
    /// `(B, H, query_time)`: the forward pass's result.
    pub log_sum_exp: View<'a, f32>,
    /// `(B, query_time, H·D)`
    pub grad_output: View<'a, f32>,
    pub grad_inputs: GradInputs<'a>,
    /// `(H, query_time, key_time)`: summed over the batch. Not together with `documents`.
    pub grad_bias: Option<(ViewMut<'a, f32>, Write)>,
    /// `(H, 2·radius - 1)`: summed over the batch and along diagonals, in an order that depends on the sizes alone.
    pub grad_relative_bias: Option<(ViewMut<'a, f32>, Write)>,
}

fn check_shape(shape: &Shape) -> Result<(), Error> {
    let Shape { heads, key_value_heads, head_size, query_time, key_time, .. } = *shape;
    if heads == 0 || key_value_heads == 0 || head_size == 0 || !heads.is_multiple_of(key_value_heads) {
        return Err(Error::new(
            NAME,
            format!("{heads} heads of size {head_size} cannot share {key_value_heads} key/value heads"),
        ));
    }
    if shape.mask == Mask::Causal && query_time > key_time {
        return Err(Error::new(NAME, format!("a causal mask over {query_time} queries but only {key_time} keys")));
    }
    Ok(())
}

/// What both directions are given.
#[derive(Clone, Copy)]
pub(crate) struct Common<'a> {
    pub inputs: Inputs<'a>,
    pub key_lengths: Option<View<'a, i32>>,
    pub documents: Option<View<'a, i32>>,
    pub bias: Option<View<'a, f32>>,
    pub relative_bias: Option<RelativeBias<'a>>,
    pub dropout: Option<Dropout>,
}

impl<'a> Forward<'a> {
    pub(crate) fn common(&self) -> Common<'a> {
        let Self { inputs, key_lengths, documents, bias, relative_bias, dropout, .. } = *self;
        Common { inputs, key_lengths, documents, bias, relative_bias, dropout }
    }
}

impl<'a> Backward<'a> {
    pub(crate) fn common(&self) -> Common<'a> {
        let Self { inputs, key_lengths, documents, bias, relative_bias, dropout, .. } = *self;
        Common { inputs, key_lengths, documents, bias, relative_bias, dropout }
    }
}

fn check_common(device: &Device, shape: &Shape, common: &Common<'_>) -> Result<(), Error> {
    check_shape(shape)?;
    let Shape { batch, query_time, key_time, heads, .. } = *shape;
    let Common { inputs, key_lengths, documents, bias, relative_bias, dropout } = common;
    match inputs {
        Inputs::Packed(qkv) => {
            if query_time != key_time {
                return Err(Error::new(NAME, format!("packed inputs with {query_time} queries and {key_time} keys")));
            }
            let row = shape.query_columns() + 2 * shape.key_columns();
            check_len(NAME, "qkv", qkv.len(), batch * query_time * row)?;
        }
        Inputs::Separate { query, query_row, key_value, capacity } => {
            if *query_row < shape.query_columns() || *capacity < key_time {
                return Err(Error::new(
                    NAME,
                    format!(
                        "rows of {query_row} queries for {} columns, room for {capacity} of {key_time} keys",
                        shape.query_columns()
                    ),
                ));
            }
            check_len(NAME, "query", query.len(), batch * query_time * query_row)?;
            check_len(NAME, "key_value", key_value.len(), batch * capacity * 2 * shape.key_columns())?;
        }
    }
    if let Some(lengths) = key_lengths {
        check_len(NAME, "key_lengths", lengths.len(), batch)?;
    }
    if let Some(documents) = documents {
        if query_time != key_time || key_lengths.is_some() {
            let what = "documents are for self-attention, and say themselves where padding is: leave key_lengths away";
            return Err(Error::new(NAME, what));
        }
        check_len(NAME, "documents", documents.len(), batch * query_time * 2)?;
        // A GPU's memory is not read back for this: there, what does not fit gives wrong numbers, but stays in bounds.
        if let Device::Cpu(_) = device {
            documents::check(shape, documents.host())?;
        }
    }
    if let Some(bias) = bias {
        check_len(NAME, "bias", bias.len(), heads * query_time * key_time)?;
    }
    if let Some(RelativeBias { table, radius, .. }) = relative_bias {
        let longest = query_time.max(key_time).max(1);
        if *radius < longest {
            let what = format!("a relative bias of radius {radius} over {longest} positions: it must be at least that");
            return Err(Error::new(NAME, what));
        }
        check_len(NAME, "relative_bias", table.len(), heads * (2 * radius - 1))?;
    }
    if let Some(dropout) = dropout
        && !(0.0..1.0).contains(&dropout.probability)
    {
        return Err(Error::new(NAME, format!("dropout probability {} is not in 0..1", dropout.probability)));
    }
    Ok(())
}

/// Computes `O = dropout(softmax(scale · Q Kᵀ + bias + mask)) · V` for every head.
///
/// # Errors
/// Sizes that do not fit together, or an argument's length that does not fit `shape`.
pub fn forward(device: &Device, shape: &Shape, arguments: Forward<'_>) -> Result<(), Error> {
    check_common(device, shape, &arguments.common())?;
    check_len(NAME, "output", arguments.output.len(), shape.batch * shape.query_time * shape.query_columns())?;
    if let Some(log_sum_exp) = &arguments.log_sum_exp {
        check_len(NAME, "log_sum_exp", log_sum_exp.len(), shape.batch * shape.heads * shape.query_time)?;
    }
    match device {
        Device::Cpu(cpu) => cpu::attention::forward(cpu, shape, arguments),
        Device::Gpu(gpu) => gpu::attention::forward(gpu, shape, arguments).map_err(Error::of_device(NAME))?,
    }
    Ok(())
}

/// Computes the gradients of queries, keys, values and bias, recomputing probabilities from the log-sum-exp.
///
/// # Errors
/// Sizes that do not fit together, or an argument's length that does not fit `shape`.
pub fn backward(device: &Device, shape: &Shape, arguments: Backward<'_>) -> Result<(), Error> {
    check_common(device, shape, &arguments.common())?;
    let output = shape.batch * shape.query_time * shape.query_columns();
    check_len(NAME, "output", arguments.output.len(), output)?;
    check_len(NAME, "grad_output", arguments.grad_output.len(), output)?;
    check_len(NAME, "log_sum_exp", arguments.log_sum_exp.len(), shape.batch * shape.heads * shape.query_time)?;
    match (&arguments.inputs, &arguments.grad_inputs) {
        (Inputs::Packed(qkv), GradInputs::Packed(grad, _)) => check_len(NAME, "grad_qkv", grad.len(), qkv.len())?,
        (
            Inputs::Separate { query, key_value, .. },
            GradInputs::Separate { query: grad_query, key_value: grad_key_value },
        ) => {
            if let Some((grad, _)) = grad_query {
                check_len(NAME, "grad_query", grad.len(), query.len())?;
            }
            if let Some((grad, _)) = grad_key_value {
                check_len(NAME, "grad_key_value", grad.len(), key_value.len())?;
            }
        }
        _ => return Err(Error::new(NAME, "inputs and gradients have different layouts")),
    }
    if let Some((grad, _)) = &arguments.grad_bias {
        if arguments.bias.is_none() {
            return Err(Error::new(NAME, "a gradient of the bias is asked for, but there is no bias"));
        }
        if arguments.documents.is_some() {
            return Err(Error::new(NAME, "a bias has no gradient over documents: use a relative bias"));
        }
        check_len(NAME, "grad_bias", grad.len(), shape.heads * shape.query_time * shape.key_time)?;
    }
    if let Some((grad, _)) = &arguments.grad_relative_bias {
        let Some(bias) = &arguments.relative_bias else {
            return Err(Error::new(NAME, "a gradient of the relative bias is asked for, but there is none"));
        };
        check_len(NAME, "grad_relative_bias", grad.len(), bias.table.len())?;
    }
    match device {
        Device::Cpu(cpu) => cpu::attention::backward(cpu, shape, arguments),
        Device::Gpu(gpu) => gpu::attention::backward(gpu, shape, arguments).map_err(Error::of_device(NAME))?,
    }
    Ok(())
}
