//! Adapters beside a model: `lora.safetensors`, what an exact resume needs of them.
//!
//! `model.safetensors` holds merged weights, so that every program that reads the folder has the model as it is. From them
//! the frozen weights cannot be had back to the bit; these are therefore here as well, under their own names, and the
//! matrices of the adapters under theirs.

use crate::model::Transformer;
use crate::model::huggingface::Error;
use crate::model::weights::{self, NewTensor, WeightFile};
use crate::tape::{ParameterId, Parameters};
use std::collections::BTreeMap;
use std::path::Path;

/// File name of the adapters in a checkpoint.
pub const LORA_FILE: &str = "lora.safetensors";

/// The weights that have adapters, and the adapters' matrices.
fn tensors(model: &Transformer) -> Vec<ParameterId> {
    model.adapted().flat_map(|(weight, adapter)| [weight, adapter.down, adapter.up]).collect()
}

/// Writes the adapters of a model and the weights below them; nothing for a model without.
///
/// # Errors
/// [`Error::Weights`] where the file cannot be written.
pub fn save(folder: &Path, model: &Transformer, parameters: &Parameters) -> Result<(), Error> {
    let ids = tensors(model);
    if ids.is_empty() {
        return Ok(());
    }
    let new = |&id: &ParameterId| -> Result<NewTensor<'_>, Error> {
        let specification = parameters.specification(id);
        let (name, shape) = (specification.name.as_str().into(), specification.shape.clone());
        Ok(NewTensor { name, shape, values: parameters.values(id)?, transposed: false })
    };
    let tensors: Result<Vec<NewTensor<'_>>, Error> = ids.iter().map(new).collect();
    Ok(weights::write(&folder.join(LORA_FILE), &tensors?, &BTreeMap::new())?)
}

/// Reads what [`save`] wrote, after the model itself was read; nothing for a model without adapters.
///
/// # Errors
/// [`Error::Weights`] for a file that is missing or damaged; [`Error::Shape`] for adapters of another rank.
pub fn load(folder: &Path, model: &Transformer, parameters: &mut Parameters) -> Result<(), Error> {
    let ids = tensors(model);
    if ids.is_empty() {
        return Ok(());
    }
    let file = WeightFile::open(&folder.join(LORA_FILE))?;
    for &id in &ids {
        let specification = parameters.specification(id);
        let (view, expected) = (file.get(&specification.name)?, specification.shape.clone());
        if view.shape() != expected {
            let (tensor, found) = (specification.name.clone(), view.shape().to_vec());
            return Err(Error::Shape { folder: folder.to_owned(), tensor, found, expected });
        }
        view.check_float()?;
    }
    for id in ids {
        let values = file.get(&parameters.specification(id).name)?.to_f32()?;
        parameters.set_values(id, &values)?;
    }
    Ok(())
}
