//! What a run will need before anything of it exists: for `--dry-run`, and to refuse what does not fit.

use super::config::Config;
use super::job::{self, Amount, Data};
use super::memory::MemoryTable;
use super::trainer::Error;
use crate::model::Transformer;
use crate::ops::Device;
use std::sync::Arc;

/// What a run will need.
pub struct Estimate {
    pub memory: MemoryTable,
    pub parameters: usize,
    pub flops_per_token: f64,
    pub amount: Amount,
    pub vocabulary: usize,
}

/// What a run will need. Nothing of its size is allocated.
///
/// # Errors
/// Data that cannot be used.
pub fn estimate_run(config: &Config, device: &Arc<Device>) -> Result<Estimate, Error> {
    estimate(config, device, job::open(config)?.as_ref())
}

pub(super) fn estimate(config: &Config, device: &Arc<Device>, data: &dyn Data) -> Result<Estimate, Error> {
    let facts = data.facts();
    let (model, parameters) = Transformer::unallocated(config.model_config(facts), &config.treatment())?;
    let (training, evaluation) = data.measure(config, device, &model, &parameters)?;
    let amount = data.amount();
    let mut memory = MemoryTable::of_step(&config.optimizer, &parameters, &training);
    memory.add("evaluation", evaluation as u64).add("data", amount.bytes);
    Ok(Estimate {
        memory,
        parameters: parameters.count(),
        flops_per_token: model.flops_per_token(amount.time, amount.predicted),
        vocabulary: facts.vocabulary,
        amount,
    })
}
