//! Hugging Face model folders: `config.json` to and from our configuration, tensors to and from our layout.
//!
//! Each family of models in `transformers` has a file here that reads and writes its `config.json`, and says where a
//! folder has each of our parameters: a list of [`ParameterSpec`]. Loading checks all of a folder against the list
//! before the first value is handed out, so that a model is never half loaded. What no family can express is written
//! in a form of our own.

mod bert;
mod gpt2;
mod llama;
mod native;
mod optimizer_state;
mod reader;
#[cfg(test)]
mod tests;

pub use optimizer_state::{ADAMW_STATES, OPTIMIZER_FILE, load_optimizer, save_optimizer};

use super::config::ModelConfig;
use super::layout::{Layout, layouts};
use super::weights::{self, NewTensor, WeightFolder, one_line, show_shape};
use crate::util::atomic_file::write_atomically;
use reader::ConfigReader;
use serde_json::Value;
use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::io::Write;
use std::path::{Path, PathBuf};

/// File name of the configuration in a model folder.
pub const CONFIG_FILE: &str = "config.json";

/// Bounds far above any model, so that no product of sizes overflows and no list of layers fills the memory.
struct Limits {
    vocabulary: u64,
    block: u64,
    channels: u64,
    layers: u64,
    heads: u64,
    ffn: u64,
}

const LIMITS: Limits =
    Limits { vocabulary: 1 << 28, block: 1 << 28, channels: 1 << 20, layers: 1 << 14, heads: 1 << 20, ffn: 1 << 24 };

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

/// Families of models in `transformers`, and our own form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Family {
    Gpt2,
    Bert,
    Llama,
    Native,
}

impl Family {
    /// The family whose configuration can say all that this one does.
    fn of(config: &ModelConfig) -> Self {
        if gpt2::fits(config) {
            Self::Gpt2
        } else if bert::fits(config) {
            Self::Bert
        } else if llama::fits(config) {
            Self::Llama
        } else {
            Self::Native
        }
    }

    /// What tensor names of a whole model begin with, and those of the bare one do not.
    fn prefix(self) -> &'static str {
        match self {
            Self::Gpt2 => "transformer.",
            Self::Bert => "bert.",
            Self::Llama => "model.",
            Self::Native => "",
        }
    }

    /// Where the output projection is stored once more although it is the token embedding.
    fn tied_head(self) -> Option<(&'static str, &'static str)> {
        match self {
            Self::Gpt2 => Some(("lm_head.weight", "transformer.wte.weight")),
            Self::Bert => Some(("cls.predictions.decoder.weight", "bert.embeddings.word_embeddings.weight")),
            Self::Llama => Some(("lm_head.weight", "model.embed_tokens.weight")),
            Self::Native => None,
        }
    }

    fn stored(self, config: &ModelConfig, name: &str, shape: &[usize]) -> Vec<Stored> {
        match self {
            Self::Gpt2 => gpt2::stored(name, shape),
            Self::Bert => bert::stored(config, name, shape),
            Self::Llama => llama::stored(config, name, shape),
            Self::Native => vec![Stored::whole(name.to_owned(), shape)],
        }
    }

    /// True for what is put on top of the last block, by any class of the family.
    fn is_head(self, name: &str) -> bool {
        let beginnings: &[&str] = match self {
            Self::Gpt2 | Self::Llama => &["lm_head.", "score."],
            Self::Bert => &["cls.", "classifier.", "qa_outputs.", "bert.pooler.", "surroundings."],
            Self::Native => &["head.", "pooler.", "classifier.", "spans.", "surroundings."],
        };
        beginnings.iter().any(|beginning| name.starts_with(beginning))
    }
}

/// True for what versions of `transformers` store beside the parameters: causal masks and their fill value, tables of
/// position ids and of rotary frequencies, the bias of a tied head under a second name.
fn is_buffer(name: &str) -> bool {
    let endings = [".attn.bias", ".attn.masked_bias", "embeddings.position_ids", ".rotary_emb.inv_freq"];
    endings.iter().any(|ending| name.ends_with(ending)) || name == "cls.predictions.decoder.bias"
}

/// The layer and the rest of `blocks.LAYER.PART`.
fn block_part(module: &str) -> (&str, &str) {
    let inside = module.strip_prefix("blocks.").and_then(|rest| rest.split_once('.'));
    inside.unwrap_or_else(|| unreachable!("{module} is a part of a block"))
}

/// Copies what every family can say from one configuration to another.
fn copy_sizes(from: &ModelConfig, to: &mut ModelConfig) {
    (to.vocabulary, to.block, to.channels) = (from.vocabulary, from.block, from.channels);
    (to.layers, to.heads, to.kv_heads, to.ffn) = (from.layers, from.heads, from.kv_heads, from.ffn);
    to.embedding_dropout = from.embedding_dropout;
    to.attention_dropout = from.attention_dropout;
    to.residual_dropout = from.residual_dropout;
    to.initializer_range = from.initializer_range;
    (to.bos, to.eos) = (from.bos, from.eos);
    to.other.clone_from(&from.other);
}

/// A tensor of a folder: a whole parameter, or some of its rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// Its name in the folder, prefix included: `transformer.h.0.attn.c_attn.weight`.
    pub name: String,
    /// How many rows of the parameter it holds; elements of a vector.
    pub rows: usize,
    /// The folder holds the transpose.
    pub transposed: bool,
}

impl Stored {
    fn whole(name: String, shape: &[usize]) -> Self {
        Self { name, rows: shape[0], transposed: false }
    }

    fn rows(name: String, rows: usize) -> Self {
        Self { name, rows, transposed: false }
    }
}

/// One parameter, here and in a Hugging Face folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParameterSpec {
    /// Our name: `blocks.0.attention.qkv.weight`.
    pub name: String,
    /// Our shape; linear weights are `(out, in)`.
    pub shape: Vec<usize>,
    /// The tensors of the folder that hold it, one below the other.
    pub stored: Vec<Stored>,
    /// Whether it belongs to what is put on top of the last block.
    pub is_head: bool,
}

impl ParameterSpec {
    /// The shape of one of its tensors in the folder.
    pub fn stored_shape(&self, stored: &Stored) -> Vec<usize> {
        let mut shape = self.shape.clone();
        shape[0] = stored.rows;
        if stored.transposed {
            shape.reverse();
        }
        shape
    }

    /// Number of elements.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// Elements of a row.
    fn columns(&self) -> usize {
        self.shape[1..].iter().product()
    }
}

impl ModelConfig {
    /// Reads `config.json` of `folder`.
    ///
    /// # Errors
    /// [`Error::Weights`] where the file cannot be read; [`Error::Config`] where it is not JSON, describes another kind
    /// of model or an option that changes the mathematics, or has a value of the wrong type or out of range.
    pub fn load(folder: &Path) -> Result<Self, Error> {
        let mut reader = ConfigReader::open(folder)?;
        let read = match reader.object.remove("model_type") {
            None => gpt2::read,
            Some(Value::String(name)) if name == "gpt2" => gpt2::read,
            Some(Value::String(name)) if name == "bert" => bert::read,
            Some(Value::String(name)) if name == "llama" => llama::read,
            Some(Value::String(name)) if name == native::MODEL_TYPE => native::read,
            Some(found) => return Err(reader.wrong("model_type", &found, "gpt2, bert and llama are read here")),
        };
        reader.common()?;
        read(reader)
    }

    /// Writes `config.json` into `folder`, as `transformers` writes it.
    ///
    /// # Errors
    /// [`Error::Weights`] where the file cannot be written.
    pub fn save(&self, folder: &Path) -> Result<(), Error> {
        let written = match Family::of(self) {
            Family::Gpt2 => gpt2::write(self),
            Family::Bert => bert::write(self),
            Family::Llama => llama::write(self),
            Family::Native => native::write(self),
        };
        let mut object = self.other.clone();
        if let Value::Object(ours) = written {
            object.extend(ours);
        }
        let mut text = serde_json::to_string_pretty(&object).expect("a JSON value has a JSON form");
        text.push('\n');
        let path = folder.join(CONFIG_FILE);
        Ok(write_atomically(&path, |writer| writer.write_all(text.as_bytes())).map_err(weights::Error::from)?)
    }

    /// The model's parameters, in the order in which they are used: names and shapes here and in the folder.
    pub fn parameters(&self) -> Vec<ParameterSpec> {
        let family = Family::of(self);
        let spec = |Layout { name, shape, is_head }: Layout| {
            let mut stored = family.stored(self, &name, &shape);
            if family == Family::Bert && !self.has_prefix() {
                stored.iter_mut().for_each(|stored| {
                    stored.name = stored.name.strip_prefix(family.prefix()).unwrap_or(&stored.name).to_owned();
                });
            }
            ParameterSpec { name, shape, stored, is_head }
        };
        layouts(self).into_iter().map(spec).collect()
    }

    /// A bare encoder is stored without a prefix.
    fn has_prefix(&self) -> bool {
        let heads = &self.predictions;
        heads.language.is_some() || heads.classes.is_some() || heads.spans
    }
}

/// Which parameters a folder has to hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// All of the model's, and no others.
    All,
    /// Those up to the last block. What is put on top is taken where it is there; heads that the model has not are
    /// left out. For fine-tuning.
    Trunk,
}

/// Which parameters were not found and keep the values they have: heads of [`Wanted::Trunk`].
pub type Untouched = Vec<String>;

/// Hands the values of each parameter of a model folder to `set(index in specs, values)`, in our layout, as f32.
///
/// The folder is checked as a whole first: `set` is called for every parameter that is wanted, or for none. The output
/// projection may be there although the model is tied, provided that it is the token embedding.
///
/// # Errors
/// [`Error::Weights`] for damaged files; [`Error::Missing`], [`Error::Extra`], [`Error::Shape`] and
/// [`Error::Ambiguous`] where the tensors are not those of `config`.
pub fn load_parameters(
    folder: &Path,
    config: &ModelConfig,
    wanted: Wanted,
    mut set: impl FnMut(usize, &[f32]) -> Result<(), Error>,
) -> Result<Untouched, Error> {
    let (specs, family) = (config.parameters(), Family::of(config));
    let weights = WeightFolder::open(folder)?;
    let found = match_tensors(&weights, &specs, family, wanted)?;
    for name in found.iter().flatten().flatten() {
        weights.get(name)?.check_float()?;
    }
    let (mut whole, mut untouched) = (Vec::new(), Vec::new());
    for (index, (spec, names)) in specs.iter().zip(&found).enumerate() {
        let Some(names) = names else {
            untouched.push(spec.name.clone());
            continue;
        };
        whole.resize(spec.elements(), 0.0);
        let mut rest = whole.as_mut_slice();
        for (stored, name) in spec.stored.iter().zip(names) {
            let values = weights.get(name)?.to_f32()?;
            let (part, others) = rest.split_at_mut(values.len());
            if stored.transposed {
                weights::transpose(&values, spec.columns(), stored.rows, part);
            } else {
                part.copy_from_slice(&values);
            }
            rest = others;
        }
        set(index, &whole)?;
    }
    Ok(untouched)
}

/// The tensors of the folder that hold each parameter; `None` for a head that may be missing and is.
fn match_tensors(
    weights: &WeightFolder,
    specs: &[ParameterSpec],
    family: Family,
    wanted: Wanted,
) -> Result<Vec<Option<Vec<String>>>, Error> {
    let folder = weights.path();
    let full = |name: &str| -> String {
        if name.starts_with(family.prefix()) || family.is_head(name) {
            name.to_owned()
        } else {
            format!("{}{name}", family.prefix())
        }
    };
    let mut places: HashMap<String, (usize, usize)> = HashMap::new();
    for (index, spec) in specs.iter().enumerate() {
        places.extend(spec.stored.iter().enumerate().map(|(part, stored)| (full(&stored.name), (index, part))));
    }
    let mut found: Vec<Vec<Option<&str>>> = specs.iter().map(|spec| vec![None; spec.stored.len()]).collect();
    let (mut extra, mut head) = (Vec::new(), None);
    for name in weights.names() {
        let full_name = full(name);
        let Some(&(index, part)) = places.get(&full_name) else {
            match family.tied_head() {
                Some((tied, _)) if tied == name => head = Some(name),
                _ if is_buffer(name) => {}
                _ if wanted == Wanted::Trunk && family.is_head(&full_name) => {}
                _ => extra.push(name),
            }
            continue;
        };
        if let Some(other) = found[index][part].replace(name) {
            return Err(Error::Ambiguous {
                folder: folder.to_owned(),
                first: one_line(other),
                second: one_line(name),
                meaning: "the same parameter",
                remedy: "remove one of them",
            });
        }
        let (shape, expected) = (weights.get(name)?.shape(), specs[index].stored_shape(&specs[index].stored[part]));
        if shape != expected {
            let is_replaced = wanted == Wanted::Trunk && specs[index].is_head;
            if is_replaced {
                // Classes of another task: these start afresh.
                found[index][part] = None;
                continue;
            }
            let (folder, tensor) = (folder.to_owned(), one_line(name));
            return Err(Error::Shape { folder, tensor, found: shape.to_vec(), expected });
        }
    }
    let may_be_missing = |index: usize| wanted == Wanted::Trunk && specs[index].is_head;
    let missing: Vec<(usize, usize)> = found
        .iter()
        .enumerate()
        .filter(|&(index, _)| !may_be_missing(index))
        .flat_map(|(index, parts)| {
            parts.iter().enumerate().filter(|(_, name)| name.is_none()).map(move |(part, _)| (index, part))
        })
        .collect();
    if let Some(&(index, part)) = missing.first() {
        let stored = &specs[index].stored[part];
        return Err(Error::Missing {
            folder: folder.to_owned(),
            tensor: stored.name.clone(),
            shape: specs[index].stored_shape(stored),
            others: missing.len() - 1,
        });
    }
    if let Some(&first) = extra.first() {
        let shape = weights.get(first)?.shape().to_vec();
        let (folder, tensor) = (folder.to_owned(), one_line(first));
        return Err(Error::Extra { folder, tensor, shape, others: extra.len() - 1 });
    }
    if let (Some(head), Some((_, embedding))) = (head, family.tied_head()) {
        let place = places.get(embedding).and_then(|&(index, part)| found[index][part]);
        check_tied(weights, head, place)?;
    }
    let whole = |names: Vec<Option<&str>>| names.into_iter().map(|name| name.map(str::to_owned)).collect();
    Ok(found.into_iter().map(whole).collect())
}

/// Refuses a head that is not the token embedding in a model where the two are one.
fn check_tied(weights: &WeightFolder, head: &str, embedding: Option<&str>) -> Result<(), Error> {
    let Some(embedding) = embedding else { return Ok(()) };
    let (ours, theirs) = (weights.get(embedding)?, weights.get(head)?);
    if ours.shape() == theirs.shape() && ours.dtype() == theirs.dtype() && ours.bytes() == theirs.bytes() {
        return Ok(());
    }
    Err(Error::Ambiguous {
        folder: weights.path().to_owned(),
        first: one_line(embedding),
        second: head.into(),
        meaning: "the output projection, and they differ although tie_word_embeddings is true",
        remedy: "set it to false in config.json to use both",
    })
}

/// Writes `config.json` and `model.safetensors` into `folder`, which is made if need be, as `transformers` reads them.
///
/// `values(index in config.parameters())` gives a parameter in our layout.
///
/// # Errors
/// [`Error::Weights`] where a file cannot be written or values do not fill their shape.
pub fn save_parameters<'a>(
    folder: &Path,
    config: &ModelConfig,
    values: impl Fn(usize) -> Result<Cow<'a, [f32]>, Error>,
) -> Result<(), Error> {
    std::fs::create_dir_all(folder).map_err(|source| weights::Error::Io {
        action: "make the folder",
        path: folder.to_owned(),
        source,
    })?;
    let specs = config.parameters();
    let mut tensors: Vec<NewTensor> = Vec::with_capacity(specs.len());
    for (index, spec) in specs.iter().enumerate() {
        let (whole, mut first) = (values(index)?, 0);
        for stored in &spec.stored {
            let range = first * spec.columns()..(first + stored.rows) * spec.columns();
            first += stored.rows;
            // Only a parameter of the wrong length has no such rows; writing it refuses that by name.
            let part = match &whole {
                Cow::Borrowed(values) => Cow::Borrowed(values.get(range).unwrap_or(values)),
                Cow::Owned(values) => Cow::Owned(values.get(range).unwrap_or(values).to_vec()),
            };
            tensors.push(NewTensor {
                name: stored.name.as_str().into(),
                shape: spec.stored_shape(stored),
                values: part,
                transposed: stored.transposed,
            });
        }
    }
    // `transformers` refuses files that do not say which framework's layout they have.
    let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
    weights::write(&folder.join(weights::WEIGHTS_FILE), &tensors, &metadata)?;
    config.save(folder)
}
