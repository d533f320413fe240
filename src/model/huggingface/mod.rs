//! Hugging Face model folders: `config.json` to and from our configuration, tensors to and from our layout.
//!
//! GPT-2 as `transformers` stores it (`GPT2LMHeadModel`) has three habits: its linear weights are `Conv1D`, that is
//! `(in, out)`, the transpose of ours; names may lack the prefix `transformer.` (files of the bare `GPT2Model`); old
//! files carry attention masks as buffers. A list of [`ParameterSpec`] says which tensor becomes which parameter;
//! loading checks all of a folder against the list before the first value is handed out, so that a model is never half
//! loaded.

mod gpt2;
mod optimizer_state;
#[cfg(test)]
mod tests;

pub use gpt2::Gpt2Config;
pub use optimizer_state::{ADAMW_STATES, OPTIMIZER_FILE, load_optimizer, save_optimizer};

use super::weights::{self, NewTensor, WeightFolder, one_line, show_shape};
use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

/// File name of the configuration in a model folder.
pub const CONFIG_FILE: &str = "config.json";
/// What tensor names of a whole model begin with, and those of the bare `GPT2Model` do not.
const PREFIX: &str = "transformer.";
/// The output projection, which is the token embedding where the two are tied.
const HEAD: &str = "lm_head.weight";
const TOKEN_EMBEDDING: &str = "transformer.wte.weight";

/// Why a model folder cannot be used, in one line: what, where, what to do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file of tensors is damaged, or cannot be read or written.
    #[error(transparent)]
    Weights(#[from] weights::Error),
    #[error(transparent)]
    Device(#[from] crate::driver::Error),
    /// `config.json` asks for something that this engine does not do, or makes no sense.
    #[error("{}: {key} is {found}: {expected}", path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
        /// Its value there.
        found: String,
        /// What it would have to be.
        expected: String,
    },
    /// Parameters of the model that are not in the folder.
    #[error("{}: tensor {tensor} {} is missing{}; use weights that belong to this config.json",
        folder.display(), show_shape(shape), and_more(*others))]
    Missing {
        /// The folder.
        folder: PathBuf,
        /// The first of them.
        tensor: String,
        /// The shape it should have.
        shape: Vec<usize>,
        /// How many more are missing.
        others: usize,
    },
    /// Tensors in the folder that are no parameters of the model.
    #[error("{}: tensor {tensor} {} is no part of the model that config.json describes{}; use weights that belong to it",
        folder.display(), show_shape(shape), and_more(*others))]
    Extra {
        /// The folder.
        folder: PathBuf,
        /// The first of them.
        tensor: String,
        /// Its shape.
        shape: Vec<usize>,
        /// How many more there are.
        others: usize,
    },
    /// A tensor of another size than the model has.
    #[error("{}: tensor {tensor} has shape {}, but the model expects {}; use weights of the model's size, or change the model's configuration",
        folder.display(), show_shape(found), show_shape(expected))]
    Shape {
        /// The folder.
        folder: PathBuf,
        /// The tensor.
        tensor: String,
        /// Its shape in the folder.
        found: Vec<usize>,
        /// The shape that the configuration implies.
        expected: Vec<usize>,
    },
    /// The same parameter under two names, with no telling which is meant.
    #[error("{}: both {first} and {second} could be {meaning}; {remedy}", folder.display())]
    Ambiguous {
        /// The folder.
        folder: PathBuf,
        /// One tensor.
        first: String,
        /// The other.
        second: String,
        /// What both could be.
        meaning: &'static str,
        /// What to do about it.
        remedy: &'static str,
    },
}

fn and_more(others: usize) -> String {
    if others == 0 { String::new() } else { format!(" (and {others} more)") }
}

/// One parameter, here and in a Hugging Face folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParameterSpec {
    /// Our name: `blocks.0.attention.qkv.weight`.
    pub name: String,
    /// Our shape; linear weights are `(out, in)`.
    pub shape: Vec<usize>,
    /// Its name in the folder, prefix included: `transformer.h.0.attn.c_attn.weight`.
    pub huggingface_name: String,
    /// The folder holds the transpose.
    pub transposed: bool,
}

impl ParameterSpec {
    /// The shape in the folder.
    pub fn huggingface_shape(&self) -> Vec<usize> {
        let mut shape = self.shape.clone();
        if self.transposed {
            shape.reverse();
        }
        shape
    }

    /// Number of elements.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }
}

/// True for what old versions of `transformers` stored beside the parameters: causal masks and their fill value.
fn is_buffer(name: &str) -> bool {
    name.ends_with(".attn.bias") || name.ends_with(".attn.masked_bias")
}

/// Hands the values of each parameter of a model folder to `set(index in specs, values)`, in our layout, as f32.
///
/// The folder is checked as a whole first: `set` is called for every parameter or for none. `lm_head.weight` may be
/// there although the model is tied, provided that it is the token embedding.
///
/// # Errors
/// [`Error::Weights`] for damaged files; [`Error::Missing`], [`Error::Extra`], [`Error::Shape`] and
/// [`Error::Ambiguous`] where the tensors are not those of `specs`.
pub fn load_parameters(
    folder: &Path,
    specs: &[ParameterSpec],
    mut set: impl FnMut(usize, &[f32]) -> Result<(), Error>,
) -> Result<(), Error> {
    let weights = WeightFolder::open(folder)?;
    let tensors = match_tensors(&weights, specs)?;
    for (_, name) in &tensors {
        weights.get(name)?.check_float()?;
    }
    let mut turned = Vec::new();
    for (index, name) in tensors {
        let values = weights.get(&name)?.to_f32()?;
        if specs[index].transposed {
            let (rows, columns) = (specs[index].shape[1], specs[index].shape[0]);
            turned.resize(values.len(), 0.0);
            weights::transpose(&values, rows, columns, &mut turned);
            set(index, &turned)?;
        } else {
            set(index, &values)?;
        }
    }
    Ok(())
}

/// Which tensor of the folder is which parameter: `(index in specs, name in the folder)`, one for each parameter.
fn match_tensors(weights: &WeightFolder, specs: &[ParameterSpec]) -> Result<Vec<(usize, String)>, Error> {
    let folder = weights.path();
    let by_name: HashMap<&str, usize> =
        specs.iter().enumerate().map(|(index, spec)| (spec.huggingface_name.as_str(), index)).collect();
    let mut found: Vec<Option<&str>> = vec![None; specs.len()];
    let mut extra: Vec<&str> = Vec::new();
    let mut head = None;
    for name in weights.names() {
        let full_name = if name.starts_with(PREFIX) || name == HEAD {
            Cow::Borrowed(name)
        } else {
            format!("{PREFIX}{name}").into()
        };
        let Some(&index) = by_name.get(full_name.as_ref()) else {
            match name {
                HEAD => head = Some(name),
                _ if is_buffer(name) => {}
                _ => extra.push(name),
            }
            continue;
        };
        if let Some(other) = found[index].replace(name) {
            return Err(Error::Ambiguous {
                folder: folder.to_owned(),
                first: one_line(other),
                second: one_line(name),
                meaning: "the same parameter",
                remedy: "remove one of them",
            });
        }
        let (shape, expected) = (weights.get(name)?.shape(), specs[index].huggingface_shape());
        if shape != expected {
            let (folder, tensor) = (folder.to_owned(), one_line(name));
            return Err(Error::Shape { folder, tensor, found: shape.to_vec(), expected });
        }
    }
    let missing: Vec<usize> = (0..specs.len()).filter(|&index| found[index].is_none()).collect();
    if let Some(&first) = missing.first() {
        return Err(Error::Missing {
            folder: folder.to_owned(),
            tensor: specs[first].huggingface_name.clone(),
            shape: specs[first].huggingface_shape(),
            others: missing.len() - 1,
        });
    }
    if let Some(&first) = extra.first() {
        let shape = weights.get(first)?.shape().to_vec();
        let (folder, tensor) = (folder.to_owned(), one_line(first));
        return Err(Error::Extra { folder, tensor, shape, others: extra.len() - 1 });
    }
    let embedding = by_name.get(TOKEN_EMBEDDING).and_then(|&index| found[index]);
    if let (Some(head), Some(embedding)) = (head, embedding) {
        let (ours, theirs) = (weights.get(embedding)?, weights.get(head)?);
        if ours.shape() != theirs.shape() || ours.dtype() != theirs.dtype() || ours.bytes() != theirs.bytes() {
            return Err(Error::Ambiguous {
                folder: folder.to_owned(),
                first: one_line(embedding),
                second: head.into(),
                meaning: "the output projection, and they differ although tie_word_embeddings is true",
                remedy: "set it to false in config.json to use both",
            });
        }
    }
    Ok(found.into_iter().flatten().map(str::to_owned).enumerate().collect())
}

/// Writes `config.json` and `model.safetensors` into `folder`, which is made if need be, as `transformers` reads them.
///
/// `values(index in specs)` gives a parameter in our layout.
///
/// # Errors
/// [`Error::Weights`] where a file cannot be written or values do not fill their shape.
pub fn save_parameters<'a>(
    folder: &Path,
    config: &Gpt2Config,
    specs: &[ParameterSpec],
    values: impl Fn(usize) -> Result<Cow<'a, [f32]>, Error>,
) -> Result<(), Error> {
    std::fs::create_dir_all(folder).map_err(|source| weights::Error::Io {
        action: "make the folder",
        path: folder.to_owned(),
        source,
    })?;
    let tensors: Result<Vec<NewTensor>, Error> = specs
        .iter()
        .enumerate()
        .map(|(index, spec)| {
            Ok(NewTensor {
                name: spec.huggingface_name.as_str().into(),
                shape: spec.huggingface_shape(),
                values: values(index)?,
                transposed: spec.transposed,
            })
        })
        .collect();
    // `transformers` refuses files that do not say which framework's layout they have.
    let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
    weights::write(&folder.join(weights::WEIGHTS_FILE), &tensors?, &metadata)?;
    config.save(folder)
}
