//! Writing one token at a time: every weight and every cached key and value is read once, so bandwidth is the limit.

use super::attention::causal;
use super::{Call, Case, Error, Family, Floats, Work, rotation};
use crate::model::ModelConfig;
use crate::model::Transformer;
use crate::ops::attention::{Forward, Inputs};
use crate::ops::linear::{self, Activation, Shape};
use crate::ops::{Device, attention};
use crate::profile::training;
use crate::tape::{Mode, RunOptions, Tape};
use std::sync::Arc;

/// (inputs, outputs) of GPT-2 124M's feed-forward network and output projection.
const LAYERS: [(usize, usize); 3] = [(768, 3072), (3072, 768), (768, 50257)];
/// What rotates takes 512 MiB together, as a model does. Of less, a part stays in the caches from turn to turn: with
/// 96 MiB the products "read" 120 % of the bandwidth of memory.
const ROTATION_FLOATS: usize = 128 << 20;
const HEADS: usize = 12;
const HEAD_SIZE: usize = 64;
const KEYS: usize = 1024;
/// Where in the block the measured token is: half of the longest text.
const POSITION: usize = 512;

pub(super) fn cases() -> Vec<Case> {
    let mut cases: Vec<Case> = LAYERS
        .iter()
        .map(|&(inputs, outputs)| Case {
            family: Family::Decode,
            name: format!("linear 1x{inputs}x{outputs}"),
            work: Work::Read(4.0 * (inputs * outputs) as f64),
            pytorch: Some(format!("linear forward 1 {inputs} {outputs}")),
            prepare: Box::new(move |device| prepare_linear(Arc::clone(device), Shape { rows: 1, inputs, outputs })),
        })
        .collect();
    cases.push(Case {
        family: Family::Decode,
        name: format!("attention B1 H{HEADS} T{KEYS} D{HEAD_SIZE}"),
        work: Work::Read((4 * KEYS * 2 * HEADS * HEAD_SIZE) as f64),
        pytorch: Some(format!("attention decode 1 {HEADS} {KEYS} {HEAD_SIZE}")),
        prepare: Box::new(|device| prepare_attention(Arc::clone(device))),
    });
    let gpt2 = ModelConfig::gpt2();
    let positions = gpt2.block * gpt2.channels;
    let weights: usize = gpt2.parameters().iter().map(|spec| spec.elements()).sum::<usize>() - positions;
    let cached = POSITION * 2 * gpt2.channels * gpt2.layers;
    cases.push(Case {
        family: Family::Decode,
        name: format!("token gpt2-124m at {POSITION}"),
        work: Work::Read((4 * (weights + cached)) as f64),
        pytorch: None,
        prepare: Box::new(move |device| prepare_token(Arc::clone(device), gpt2.clone())),
    });
    cases
}

fn prepare_linear(device: Arc<Device>, shape: Shape) -> Result<Call, Error> {
    let copies = rotation(shape.inputs * shape.outputs, ROTATION_FLOATS);
    let weights: Vec<Floats> = Floats::many(&device, copies, shape.inputs * shape.outputs)?;
    let (input, mut output) = (Floats::numbers(&device, shape.inputs)?, Floats::zeros(&device, shape.outputs)?);
    let mut turn = 0;
    Ok(Box::new(move || {
        turn = (turn + 1) % copies;
        let arguments = linear::Forward {
            input: (&input).into(),
            weight: (&weights[turn]).into(),
            bias: None,
            residual: None,
            activation: Activation::Identity,
            pre_activation: None,
            output: (&mut output).into(),
        };
        Ok(linear::forward(&device, &shape, arguments)?)
    }))
}

fn prepare_attention(device: Arc<Device>) -> Result<Call, Error> {
    let shape = causal(1, HEADS, 1, KEYS, HEAD_SIZE);
    let floats = KEYS * 2 * shape.key_columns();
    let caches: Vec<Floats> = Floats::many(&device, rotation(floats, ROTATION_FLOATS), floats)?;
    let (query, mut output) =
        (Floats::numbers(&device, shape.query_columns())?, Floats::zeros(&device, shape.query_columns())?);
    let mut turn = 0;
    Ok(Box::new(move || {
        turn = (turn + 1) % caches.len();
        let inputs = Inputs::Separate {
            query: (&query).into(),
            query_row: shape.query_columns(),
            key_value: (&caches[turn]).into(),
            capacity: KEYS,
        };
        let arguments = Forward {
            inputs,
            key_lengths: None,
            documents: None,
            bias: None,
            relative_bias: None,
            dropout: None,
            output: (&mut output).into(),
            log_sum_exp: None,
        };
        Ok(attention::forward(&device, &shape, arguments)?)
    }))
}

/// The whole model, one token of one text.
fn prepare_token(device: Arc<Device>, config: ModelConfig) -> Result<Call, Error> {
    let (model, mut parameters) = Transformer::new(&device, config, 1).map_err(training::Error::from)?;
    let caches = model.caches(&device, 1, model.config().block).map_err(training::Error::from)?;
    let mut tape = Tape::new(device, &parameters, Mode::Inference);
    let ids = tape.input_ids("ids", &[1, 1]);
    let logits = model.record_next(&mut tape, ids, &caches).map_err(training::Error::from)?;
    tape.keep(logits);
    let mut program = tape.finish().map_err(training::Error::from)?;
    let options = RunOptions { positions: vec![POSITION], ..RunOptions::default() };
    Ok(Box::new(move || {
        program.write_ids(ids, &[1]).map_err(training::Error::from)?;
        Ok(program.run(&mut parameters, &options).map_err(training::Error::from)?)
    }))
}
