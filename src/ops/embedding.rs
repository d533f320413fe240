//! Token embedding plus learned positions: `y[b, t] = tokens_table[id[b, t]] + positions_table[first_position + t]`.
//!
//! The gradient of a table row is a sum over the places where its token occurs. It is taken in order of place,
//! whatever the number of threads, so it is the same bits every time.

use super::{Device, Error, View, ViewMut, Write, check_len};
use crate::cpu;

const NAME: &str = "embedding";

/// Sizes of an embedding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    pub batch: usize,
    pub time: usize,
    pub channels: usize,
    pub vocabulary: usize,
    /// Rows of the table of positions; 0 where there is none.
    pub positions: usize,
    /// Position of each sequence's first token: not 0 when decoding from a cache.
    pub first_position: usize,
}

/// Arguments of [`forward`].
pub struct Forward<'a> {
    /// `(B, T)`, each in `0..vocabulary`.
    pub ids: View<'a, i32>,
    /// `(V, C)`
    pub token_table: View<'a, f32>,
    /// `(positions, C)`
    pub position_table: Option<View<'a, f32>>,
    /// `(B, T, C)`
    pub output: ViewMut<'a, f32>,
}

/// Arguments of [`backward`].
pub struct Backward<'a> {
    /// `(B, T)`
    pub ids: View<'a, i32>,
    /// `(B, T, C)`
    pub grad_output: View<'a, f32>,
    /// `(V, C)`
    pub grad_token_table: Option<(ViewMut<'a, f32>, Write)>,
    /// `(positions, C)`
    pub grad_position_table: Option<(ViewMut<'a, f32>, Write)>,
}

fn check(shape: &Shape, ids: &View<'_, i32>, has_positions: bool) -> Result<(), Error> {
    let Shape { batch, time, vocabulary, positions, first_position, .. } = *shape;
    check_len(NAME, "ids", ids.len(), batch * time)?;
    if has_positions && first_position + time > positions {
        return Err(Error::new(NAME, format!("position {} is needed of {positions}", first_position + time - 1)));
    }
    let Some(place) = ids.host().iter().position(|&id| id < 0 || id as usize >= vocabulary) else { return Ok(()) };
    let id = ids.host()[place];
    Err(Error::new(NAME, format!("token id {id} at {place} is outside the vocabulary of {vocabulary}")))
}

/// Looks up and adds.
///
/// # Errors
/// An argument's length does not fit `shape`; an id outside the vocabulary; more positions than the table has.
pub fn forward(device: &Device, shape: &Shape, arguments: Forward<'_>) -> Result<(), Error> {
    check(shape, &arguments.ids, arguments.position_table.is_some())?;
    check_len(NAME, "token_table", arguments.token_table.len(), shape.vocabulary * shape.channels)?;
    check_len(NAME, "output", arguments.output.len(), shape.batch * shape.time * shape.channels)?;
    if let Some(table) = &arguments.position_table {
        check_len(NAME, "position_table", table.len(), shape.positions * shape.channels)?;
    }
    match device {
        Device::Cpu(cpu) => cpu::embedding::forward(cpu, shape, arguments),
    }
    Ok(())
}

/// Sums the gradient of each table's rows.
///
/// # Errors
/// An argument's length does not fit `shape`; an id outside the vocabulary.
pub fn backward(device: &Device, shape: &Shape, arguments: Backward<'_>) -> Result<(), Error> {
    check(shape, &arguments.ids, arguments.grad_position_table.is_some())?;
    check_len(NAME, "grad_output", arguments.grad_output.len(), shape.batch * shape.time * shape.channels)?;
    if let Some((grad, _)) = &arguments.grad_token_table {
        check_len(NAME, "grad_token_table", grad.len(), shape.vocabulary * shape.channels)?;
    }
    if let Some((grad, _)) = &arguments.grad_position_table {
        check_len(NAME, "grad_position_table", grad.len(), shape.positions * shape.channels)?;
    }
    match device {
        Device::Cpu(cpu) => cpu::embedding::backward(cpu, shape, arguments),
    }
    Ok(())
}
