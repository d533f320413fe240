//! What a run will need before anything of it exists: for `--dry-run`, and to refuse what does not fit.

use super::config::Config;
use super::memory::MemoryTable;
use super::recorded::{Recorded, model_config};
use super::source::{self, Source};
use super::trainer::{Error, prompt, sampler};
use crate::model::Transformer;
use crate::ops::Device;
use crate::tape::{self, Mode};
use std::sync::Arc;

/// What a run will need before anything of it exists: for `--dry-run`, and to refuse what does not fit.
pub struct Estimate {
    pub memory: MemoryTable,
    pub parameters: usize,
    pub flops_per_token: f64,
    pub train_tokens: usize,
    pub val_tokens: usize,
    pub vocabulary: usize,
}

/// What a run will need. Nothing of its size is allocated.
///
/// # Errors
/// Data that cannot be used.
pub fn estimate_run(config: &Config, device: &Arc<Device>) -> Result<Estimate, Error> {
    let (source, vocabulary) = source::open(config)?;
    sampler(config, &source)?;
    prompt(config, &source, vocabulary)?;
    estimate(config, device, &source, vocabulary)
}

/// Whether enough text was kept back for one window.
pub(super) fn has_evaluation(config: &Config, source: &Source) -> bool {
    source.val.len() > config.model.block
}

pub(super) fn estimate(
    config: &Config,
    device: &Arc<Device>,
    source: &Source,
    vocabulary: usize,
) -> Result<Estimate, Error> {
    if config.model.kv_heads() != config.model.heads {
        let (kv_heads, heads) = (config.model.kv_heads(), config.model.heads);
        return Err(Error::Unsupported(format!(
            "model.kv_heads is {kv_heads} and model.heads {heads}: a GPT-2 has as many of one as of the other, and its \
             files cannot say otherwise; leave model.kv_heads out"
        )));
    }
    let (model, parameters) = Transformer::unallocated(model_config(config, vocabulary, None))?;
    let measure = |mode| -> Result<tape::MemoryUse, Error> {
        Ok(Recorded::tape(config, device, &model, &parameters, mode)?.0.measure()?)
    };
    let training = measure(Mode::Training)?;
    let evaluation = if has_evaluation(config, source) { measure(Mode::Inference)?.arena } else { 0 };
    let mut memory = MemoryTable::of_step(&config.optimizer, &parameters, &training);
    memory.add("evaluation", evaluation as u64).add("data", source.bytes(vocabulary));
    Ok(Estimate {
        memory,
        parameters: parameters.count(),
        flops_per_token: model.flops_per_token(config.model.block),
        train_tokens: source.train.len(),
        val_tokens: source.val.len(),
        vocabulary,
    })
}
