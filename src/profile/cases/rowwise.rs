//! Operations that take each row by itself and that memory limits: layer norm, loss, embedding, dropout.

use super::{Call, Case, Error, Family, Floats, Ids, Work};
use crate::ops::{Device, Dropout, IGNORED, Write, dropout, embedding, layer_norm, softmax_cross_entropy};
use std::sync::Arc;

const NORM: layer_norm::Shape =
    layer_norm::Shape { kind: layer_norm::Norm::Layer, rows: 8192, channels: 768, epsilon: 1e-5 };
const LOSS: softmax_cross_entropy::Shape =
    softmax_cross_entropy::Shape { rows: 2048, vocabulary: 50257, label_smoothing: 0.0, ignored: IGNORED };
const EMBEDDING: embedding::Shape = embedding::Shape {
    batch: 4,
    time: 1024,
    channels: 768,
    vocabulary: 50257,
    positions: 1024,
    types: 0,
    first_position: 0,
};
const DROPPED: usize = 8192 * 768;

pub(super) fn cases() -> Vec<Case> {
    let norm = (4 * NORM.rows * NORM.channels) as f64;
    let logits = (4 * LOSS.rows * LOSS.vocabulary) as f64;
    let embedded = (4 * EMBEDDING.batch * EMBEDDING.time * EMBEDDING.channels) as f64;
    let table = (4 * EMBEDDING.vocabulary * EMBEDDING.channels) as f64;
    let case = |name: &str, work: Work, pytorch: &str, prepare: fn(Arc<Device>) -> Result<Call, Error>| Case {
        family: Family::Rowwise,
        name: name.to_owned(),
        work,
        pytorch: Some(pytorch.to_owned()),
        prepare: Box::new(move |device| prepare(Arc::clone(device))),
    };
    vec![
        // Reads x, writes y; backward reads x and dy and writes dx.
        case("layer_norm forward 8192x768", Work::Moved(2.0 * norm), "layer_norm forward 8192 768", |device| {
            prepare_norm(device, false)
        }),
        case(
            "layer_norm forward+backward 8192x768",
            Work::Moved(5.0 * norm),
            "layer_norm forward+backward 8192 768",
            |device| prepare_norm(device, true),
        ),
        case(
            "softmax_cross_entropy forward 2048x50257",
            Work::Read(logits),
            "softmax_cross_entropy forward 2048 50257",
            prepare_loss,
        ),
        // In place: the gradient replaces the logits.
        case(
            "softmax_cross_entropy forward+backward 2048x50257",
            Work::Moved(2.0 * logits),
            "softmax_cross_entropy forward+backward 2048 50257",
            prepare_loss_and_gradient,
        ),
        case(
            "embedding forward 4x1024x768",
            Work::Moved(2.0 * embedded),
            "embedding forward 4 1024 768 50257",
            prepare_embedding,
        ),
        // Reads the rows' gradients; writes the gradient of the whole table, most of it zeros.
        case(
            "embedding backward 4x1024x768",
            Work::Moved(embedded + table),
            "embedding backward 4 1024 768 50257",
            prepare_embedding_gradient,
        ),
        case(
            "dropout forward 8192x768",
            Work::Moved(8.0 * DROPPED as f64),
            "dropout forward 8192 768",
            prepare_dropout,
        ),
    ]
}

fn prepare_norm(device: Arc<Device>, with_backward: bool) -> Result<Call, Error> {
    let values = NORM.rows * NORM.channels;
    let (input, grad_output) = (Floats::numbers(&device, values)?, Floats::numbers(&device, values)?);
    let (weight, bias) = (Floats::numbers(&device, NORM.channels)?, Floats::numbers(&device, NORM.channels)?);
    let (mut output, mut grad_input) = (Floats::zeros(&device, values)?, Floats::zeros(&device, values)?);
    let (mut grad_weight, mut grad_bias) =
        (Floats::zeros(&device, NORM.channels)?, Floats::zeros(&device, NORM.channels)?);
    let (mut mean, mut reciprocal_deviation) = (Floats::zeros(&device, NORM.rows)?, Floats::zeros(&device, NORM.rows)?);
    Ok(Box::new(move || {
        let arguments = layer_norm::Forward {
            input: (&input).into(),
            residual: None,
            weight: (&weight).into(),
            bias: Some((&bias).into()),
            output: (&mut output).into(),
            statistics: Some(layer_norm::Statistics {
                mean: Some((&mut mean).into()),
                reciprocal_deviation: (&mut reciprocal_deviation).into(),
            }),
        };
        layer_norm::forward(&device, &NORM, arguments)?;
        if !with_backward {
            return Ok(());
        }
        let arguments = layer_norm::Backward {
            input: (&input).into(),
            weight: (&weight).into(),
            statistics: layer_norm::Statistics {
                mean: Some((&mean).into()),
                reciprocal_deviation: (&reciprocal_deviation).into(),
            },
            grad_output: (&grad_output).into(),
            grad_input: Some(((&mut grad_input).into(), Write::Set)),
            grad_weight: Some(((&mut grad_weight).into(), Write::Set)),
            grad_bias: Some(((&mut grad_bias).into(), Write::Set)),
        };
        Ok(layer_norm::backward(&device, &NORM, arguments)?)
    }))
}

/// Logits, targets, and a place for the losses.
fn loss_arguments(device: &Arc<Device>) -> Result<(Floats, Ids, Floats), Error> {
    let targets: Vec<i32> = (0..LOSS.rows as i32).map(|row| row * 24).collect();
    Ok((
        Floats::numbers(device, LOSS.rows * LOSS.vocabulary)?,
        Ids::of(device, &targets)?,
        Floats::zeros(device, LOSS.rows)?,
    ))
}

fn prepare_loss(device: Arc<Device>) -> Result<Call, Error> {
    let (logits, targets, mut losses) = loss_arguments(&device)?;
    Ok(Box::new(move || {
        let arguments = softmax_cross_entropy::Forward {
            logits: (&logits).into(),
            targets: (&targets).into(),
            class_weights: None,
            losses: (&mut losses).into(),
        };
        Ok(softmax_cross_entropy::forward(&device, &LOSS, arguments)?)
    }))
}

fn prepare_loss_and_gradient(device: Arc<Device>) -> Result<Call, Error> {
    // The gradient replaces the logits, so every run but the first has other logits; the work is the same.
    let (mut logits, targets, mut losses) = loss_arguments(&device)?;
    Ok(Box::new(move || {
        let arguments = softmax_cross_entropy::ForwardBackward {
            logits: (&mut logits).into(),
            targets: (&targets).into(),
            class_weights: None,
            losses: (&mut losses).into(),
            grad_loss: 1.0,
        };
        Ok(softmax_cross_entropy::forward_backward(&device, &LOSS, arguments)?)
    }))
}

/// Token ids spread over the vocabulary, some of them repeated.
fn ids(device: &Arc<Device>) -> Result<Ids, Error> {
    let count = EMBEDDING.batch * EMBEDDING.time;
    let id = |place| ((place * place * 31 + 7 * place) % EMBEDDING.vocabulary) as i32;
    Ids::of(device, &(0..count).map(id).collect::<Vec<i32>>())
}

fn prepare_embedding(device: Arc<Device>) -> Result<Call, Error> {
    let (ids, table) = (ids(&device)?, Floats::numbers(&device, EMBEDDING.vocabulary * EMBEDDING.channels)?);
    let positions = Floats::numbers(&device, EMBEDDING.positions * EMBEDDING.channels)?;
    let mut output = Floats::zeros(&device, ids.len() * EMBEDDING.channels)?;
    Ok(Box::new(move || {
        let arguments = embedding::Forward {
            ids: embedding::Ids::of_tokens((&ids).into()),
            token_table: (&table).into(),
            positions: Some(embedding::Positions::Learned((&positions).into())),
            type_table: None,
            output: (&mut output).into(),
        };
        Ok(embedding::forward(&device, &EMBEDDING, arguments)?)
    }))
}

fn prepare_embedding_gradient(device: Arc<Device>) -> Result<Call, Error> {
    let (ids, mut table) = (ids(&device)?, Floats::zeros(&device, EMBEDDING.vocabulary * EMBEDDING.channels)?);
    let grad_output = Floats::numbers(&device, ids.len() * EMBEDDING.channels)?;
    Ok(Box::new(move || {
        let arguments = embedding::Backward {
            ids: embedding::Ids::of_tokens((&ids).into()),
            grad_output: (&grad_output).into(),
            grad_token_table: Some(((&mut table).into(), Write::Set)),
            grad_position_table: None,
            grad_type_table: None,
        };
        Ok(embedding::backward(&device, &EMBEDDING, arguments)?)
    }))
}

fn prepare_dropout(device: Arc<Device>) -> Result<Call, Error> {
    let (input, mut output) = (Floats::numbers(&device, DROPPED)?, Floats::zeros(&device, DROPPED)?);
    let mut step = 0;
    Ok(Box::new(move || {
        step += 1;
        let settings = Dropout { probability: 0.1, seed: 1, step, site: 0 };
        let arguments = dropout::Forward { input: (&input).into(), residual: None, output: (&mut output).into() };
        Ok(dropout::forward(&device, &settings, arguments)?)
    }))
}
