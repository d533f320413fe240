//! The optimizer's state beside a model: `optimizer.safetensors`, one tensor per parameter and kind of state.
//!
//! Named `<our name>.<state>`, in our layout: no other program reads it, and a resumed run must find the same bits.

use super::{Error, ParameterSpec};
use crate::model::weights::{self, NewTensor, WeightFile, one_line};
use std::borrow::Cow;
use std::collections::{BTreeMap, HashSet};
use std::path::Path;

/// File name of the optimizer's state in a checkpoint folder.
pub const OPTIMIZER_FILE: &str = "optimizer.safetensors";
/// What AdamW keeps for each parameter: running means of the gradient and of its square.
pub const ADAMW_STATES: [&str; 2] = ["first_moment", "second_moment"];

/// Writes `optimizer.safetensors` into `folder`, all of it or nothing.
///
/// `values(index in specs, index in states)` gives a tensor of the parameter's shape. `metadata` is kept in the header.
///
/// # Errors
/// [`Error::Weights`] where the file cannot be written or values do not fill their shape.
pub fn save_optimizer<'a>(
    folder: &Path,
    specs: &[ParameterSpec],
    states: &[&str],
    metadata: &BTreeMap<String, String>,
    values: impl Fn(usize, usize) -> Result<Cow<'a, [f32]>, Error>,
) -> Result<(), Error> {
    let mut tensors = Vec::with_capacity(states.len() * specs.len());
    for (index, spec) in specs.iter().enumerate() {
        for (state, suffix) in states.iter().enumerate() {
            let name = format!("{}.{suffix}", spec.name).into();
            tensors.push(NewTensor {
                name,
                shape: spec.shape.clone(),
                values: values(index, state)?,
                transposed: false,
            });
        }
    }
    Ok(weights::write(&folder.join(OPTIMIZER_FILE), &tensors, metadata)?)
}

/// Hands the state of each parameter to `set(index in specs, index in states, values)`, after checking all of it, and
/// returns the metadata that it was saved with.
///
/// # Errors
/// [`Error::Weights`] for a damaged file; [`Error::Missing`], [`Error::Extra`] and [`Error::Shape`] where it belongs to
/// another model or optimizer.
pub fn load_optimizer(
    folder: &Path,
    specs: &[ParameterSpec],
    states: &[&str],
    mut set: impl FnMut(usize, usize, &[f32]) -> Result<(), Error>,
) -> Result<BTreeMap<String, String>, Error> {
    let file = WeightFile::open(&folder.join(OPTIMIZER_FILE))?;
    let mut found = Vec::with_capacity(states.len() * specs.len());
    let mut known = HashSet::with_capacity(states.len() * specs.len());
    for (index, spec) in specs.iter().enumerate() {
        for (state, suffix) in states.iter().enumerate() {
            let name = format!("{}.{suffix}", spec.name);
            let Ok(view) = file.get(&name) else {
                let (folder, shape) = (folder.to_owned(), spec.shape.clone());
                return Err(Error::Missing { folder, tensor: name, shape, others: 0 });
            };
            if view.shape() != spec.shape {
                let (folder, found) = (folder.to_owned(), view.shape().to_vec());
                return Err(Error::Shape { folder, tensor: name, found, expected: spec.shape.clone() });
            }
            view.check_float()?;
            found.push((index, state, view));
            known.insert(name);
        }
    }
    if let Some(extra) = file.names().find(|&name| !known.contains(name)) {
        let (folder, shape) = (folder.to_owned(), file.get(extra)?.shape().to_vec());
        return Err(Error::Extra { folder, tensor: one_line(extra), shape, others: file.len() - known.len() - 1 });
    }
    for (index, state, view) in found {
        set(index, state, &view.to_f32()?)?;
    }
    Ok(file.metadata().clone())
}
