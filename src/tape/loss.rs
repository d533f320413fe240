//! What all losses have in common: each gives one number a row, and is averaged over the rows that count.
//!
//! A tape may hold several, each with a factor: what is differentiated is `Σ factor · (Σ losses / weight)`. The weight
//! is what the operation says of the targets as they are written: how many rows count, or what their classes weigh.

use super::run::Run;
use super::{Error, Tape, Value};
use crate::ops::{self, ViewMut, Write};

/// A loss of the recorded computation: one number a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Loss(pub(super) usize);

/// What the tape and its program know of a loss.
pub(super) struct LossInfo {
    /// The node that computes it.
    pub(super) node: usize,
    pub(super) losses: Value,
    pub(super) targets: Value,
    /// Of this loss's mean in the sum of all.
    pub(super) factor: f64,
}

/// Targets of a loss on the host, to be weighed.
#[derive(Clone, Copy, Debug)]
pub enum Targets<'a> {
    /// Classes or positions.
    Ids(&'a [i32]),
    /// Numbers.
    Floats(&'a [f32]),
}

impl<'a> Targets<'a> {
    /// The ids; none where they are numbers.
    pub(super) fn ids(self) -> &'a [i32] {
        match self {
            Self::Ids(ids) => ids,
            Self::Floats(_) => &[],
        }
    }

    /// The numbers; none where they are ids.
    pub(super) fn floats(self) -> &'a [f32] {
        match self {
            Self::Floats(values) => values,
            Self::Ids(_) => &[],
        }
    }
}

/// The memory in which a loss replaces its first input by the gradient: the input's own, where nobody else needs that,
/// or a copy. `None` where no gradient is wanted.
///
/// # Errors
/// There is a gradient already, which would be overwritten; or the device failed.
pub(super) fn values_to_replace<'r>(
    run: &Run<'r>,
    operation: &'static str,
) -> Result<Option<ViewMut<'r, f32>>, ops::Error> {
    let Some((mut gradient, write)) = run.grad_input(0) else { return Ok(None) };
    if write == Write::Add {
        let what = "these logits have a gradient from elsewhere already: give each loss logits of its own";
        return Err(ops::Error { operation, what: what.to_owned() });
    }
    if !run.is_in_place(0) {
        ops::add::accumulate(run.device, run.input(0), gradient.reborrow(), Write::Set)?;
    }
    Ok(Some(gradient))
}

impl Tape<'_> {
    /// Gives a loss a factor, in place of 1: its share in what is differentiated where the tape has several.
    ///
    /// # Errors
    /// A factor that is not finite.
    pub fn scale_loss(&mut self, loss: Loss, factor: f64) -> Result<(), Error> {
        if !factor.is_finite() {
            let what = format!("a loss's factor is {factor}: it must be finite");
            return Err(Error::Shape { operation: "scale_loss", what });
        }
        self.losses[loss.0].factor = factor;
        Ok(())
    }

    /// Makes the node that was recorded last a loss.
    pub(super) fn push_loss(&mut self, losses: Value, targets: Value) -> Loss {
        self.losses.push(LossInfo { node: self.nodes.len() - 1, losses, targets, factor: 1.0 });
        Loss(self.losses.len() - 1)
    }

    /// Fails unless the value holds one element a row.
    pub(super) fn check_rows(&self, operation: &'static str, value: Value, rows: usize) -> Result<(), Error> {
        let info = &self.values[value.0];
        if info.length() == rows {
            return Ok(());
        }
        let what = format!("{} has {} elements for {rows} rows", info.name, info.length());
        Err(Error::Shape { operation, what })
    }
}
