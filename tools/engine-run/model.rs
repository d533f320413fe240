//! Which model, on which device, with which tokenizer.

use anyhow::{Context, bail};
use clap::Args;
use engine::data::Tokenizer;
use engine::model::{ModelConfig, Transformer};
use engine::ops::Device;
use engine::tape::Parameters;
use engine::train::config::{self, DeviceKind};
use engine::train::{checkpoint, device};
use std::path::{Path, PathBuf};
use std::sync::Arc;

#[derive(Args)]
pub struct ModelArguments {
    /// A Hugging Face folder, a checkpoint, or a run's folder, which stands for its newest checkpoint.
    #[arg(value_name = "CHECKPOINT")]
    pub model: PathBuf,
    /// How text becomes tokens, where the folder has no tokenizer.json.
    #[arg(long, value_name = "FILE|byte")]
    pub tokenizer: Option<String>,
    /// auto, cpu, cuda, cuda:N or emulator.
    #[arg(long, value_name = "DEVICE", default_value = "auto", value_parser = parse_device)]
    pub device: DeviceKind,
}

fn parse_device(text: &str) -> Result<DeviceKind, String> {
    DeviceKind::try_from(text.to_owned()).map_err(str::to_owned)
}

/// A model that is ready to use.
pub struct Loaded {
    pub model: Transformer,
    pub parameters: Parameters,
    pub device: Arc<Device>,
    /// Which device, and why.
    pub description: String,
}

impl ModelArguments {
    /// The folder of the model that a path of the user means.
    pub fn folder(&self) -> anyhow::Result<PathBuf> {
        const WANTED: &str = "give a Hugging Face model folder, a checkpoint, or a run's folder";
        let (path, shown) = (&self.model, self.model.display());
        if !path.exists() {
            bail!("{shown}: there is no such folder; {WANTED}");
        }
        if !path.is_dir() {
            bail!("{shown} is a file; {WANTED}");
        }
        let folder = checkpoint::resolve(path).map_err(|error| match error {
            checkpoint::Error::None(_) => anyhow::anyhow!("{shown}: this run has no checkpoint yet; {WANTED}"),
            other => other.into(),
        })?;
        if !folder.join("config.json").is_file() {
            bail!("{shown}: no config.json, so this is no model; {WANTED}");
        }
        Ok(folder)
    }

    pub fn load(&self, folder: &Path) -> anyhow::Result<Loaded> {
        let chosen = device::open(&config::Device { kind: self.device, ..config::Device::default() })?;
        let (model, parameters) = Transformer::load(&chosen.device, folder)?;
        Ok(Loaded { model, parameters, device: chosen.device, description: chosen.description })
    }

    /// The tokenizer that was asked for, or the folder's own.
    pub fn tokenizer(&self, folder: &Path) -> anyhow::Result<Tokenizer> {
        match self.tokenizer.as_deref() {
            Some("byte") => Ok(Tokenizer::byte()),
            Some(path) => Ok(Tokenizer::load(path)?),
            None => checkpoint::tokenizer(folder)?.with_context(|| {
                format!(
                    "{}: no tokenizer.json; give the model's own with --tokenizer FILE, or --tokenizer byte if it was \
                     trained on bytes",
                    folder.display()
                )
            }),
        }
    }
}

/// Refuses a tokenizer with more tokens than the model has. A model may have more: tables are often rounded up.
pub fn check_vocabulary(tokenizer: &Tokenizer, config: &ModelConfig) -> anyhow::Result<()> {
    let (tokens, rows) = (tokenizer.vocabulary(), config.vocabulary);
    if tokens > rows {
        bail!(
            "the tokenizer has {tokens} tokens, the model {rows}; use the tokenizer that the model was trained with \
             (--tokenizer)"
        );
    }
    Ok(())
}
