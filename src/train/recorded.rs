//! The programs of a run, recorded from its configuration: one for training, one for evaluation.

use super::config::Config;
use super::trainer::Error;
use crate::model::ModelConfig;
use crate::model::{LossOptions, Transformer};
use crate::ops::Device;
use crate::tape::{self, Loss, Mode, Parameters, Program, RunOptions, Tape, Value};
use std::sync::Arc;

/// A program with its inputs and loss.
pub(super) struct Recorded {
    program: Program,
    ids: Value,
    targets: Value,
    loss: Loss,
}

impl Recorded {
    pub(super) fn tape<'p>(
        config: &Config,
        device: &Arc<Device>,
        model: &Transformer,
        parameters: &'p Parameters,
        mode: Mode,
    ) -> Result<(Tape<'p>, Value, Value, Loss), Error> {
        let shape = [config.train.batch, config.model.block];
        let mut tape = Tape::new(Arc::clone(device), parameters, mode);
        let (ids, targets) = (tape.input_ids("ids", &shape), tape.input_ids("targets", &shape));
        let options =
            LossOptions { recompute: config.train.recompute, chunk_rows: Some(config.train.chunk_rows.max(1)) };
        let loss = model.record_loss(&mut tape, ids, targets, options)?;
        Ok((tape, ids, targets, loss))
    }

    pub(super) fn new(
        config: &Config,
        device: &Arc<Device>,
        model: &Transformer,
        parameters: &Parameters,
        mode: Mode,
    ) -> Result<Self, Error> {
        let (tape, ids, targets, loss) = Self::tape(config, device, model, parameters, mode)?;
        Ok(Self { program: tape.finish()?, ids, targets, loss })
    }

    /// Runs a batch; the sum of its losses and what its counted rows weigh.
    pub(super) fn run(
        &mut self,
        parameters: &mut Parameters,
        ids: &[i32],
        targets: &[i32],
        options: &RunOptions,
    ) -> Result<(f64, f64), Error> {
        self.write(ids, targets)?;
        self.program.run(parameters, options)?;
        Ok(self.program.loss_sum(self.loss)?)
    }

    fn write(&mut self, ids: &[i32], targets: &[i32]) -> Result<(), tape::Error> {
        self.program.write_ids(self.ids, ids)?;
        self.program.write_ids(self.targets, targets)
    }

    /// Runs a batch again and says which tensor is the first that is not finite.
    pub(super) fn find_non_finite(
        &mut self,
        parameters: &mut Parameters,
        ids: &[i32],
        targets: &[i32],
        options: &RunOptions,
    ) -> String {
        let found = self.write(ids, targets).and_then(|()| self.program.find_non_finite(parameters, options));
        match found {
            Ok(Some(found)) => {
                format!("the first tensor that holds one is {}, element {}: {}", found.tensor, found.index, found.value)
            }
            _ => "no single tensor holds one: their sum overflows".to_owned(),
        }
    }
}

/// The model that a configuration describes.
pub(super) fn model_config(config: &Config, vocabulary: usize, end_of_text: Option<u32>) -> ModelConfig {
    let model = &config.model;
    let dropout = model.dropout as f32;
    ModelConfig {
        vocabulary,
        block: model.block,
        channels: model.channels,
        layers: model.layers,
        heads: model.heads,
        kv_heads: model.kv_heads(),
        ffn: model.ffn(),
        tied: model.tied,
        embedding_dropout: dropout,
        attention_dropout: dropout,
        residual_dropout: dropout,
        bos: end_of_text,
        eos: end_of_text,
        ..ModelConfig::gpt2()
    }
}
