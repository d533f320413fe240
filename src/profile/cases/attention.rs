//! Causal self-attention from packed queries, keys and values, as the models have it.
//!
//! Only the scores that the mask leaves are counted as work: 2 products of them forward, 5 backward. PyTorch gets its
//! queries, keys and values as separate contiguous tensors, which suits it best.
//!
//! And an encoder's attention, over all keys: plain, with a relative bias and its gradient, and over rows that hold
//! several documents each.

use super::{Call, Case, Error, Family, Floats, Ids, Work};
use crate::ops::attention::documents::of_lengths;
use crate::ops::attention::{Backward, Forward, GradInputs, Inputs, Mask, RelativeBias, Shape, backward, forward};
use crate::ops::{Device, Write};
use std::sync::Arc;

/// `(B, H, T, D)`
const SHAPES: [[usize; 4]; 3] = [[4, 6, 256, 64], [1, 12, 1024, 64], [12, 4, 64, 32]];

/// `(B, H, T, D)` of the encoder, and the documents of each of its rows.
const ENCODER: [usize; 4] = [8, 12, 256, 32];
const DOCUMENTS: [i32; 6] = [100, 7, 60, 33, 1, 55];

/// What an encoder's attention has besides.
#[derive(Clone, Copy)]
enum Feature {
    None,
    RelativeBias,
    Documents,
}

pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for [batch, heads, time, head_size] in SHAPES {
        let product = 2.0 * (batch * heads * time * (time + 1) / 2 * head_size) as f64;
        for (kind, products, with_backward) in [("forward", 2.0, false), ("forward+backward", 7.0, true)] {
            cases.push(Case {
                family: Family::Attention,
                name: format!("{kind} B{batch} H{heads} T{time} D{head_size}"),
                work: Work::Flops(products * product),
                pytorch: Some(format!("attention {kind} {batch} {heads} {time} {head_size}")),
                prepare: Box::new(move |device| {
                    let shape = causal(batch, heads, time, time, head_size);
                    prepare(Arc::clone(device), shape, Feature::None, with_backward)
                }),
            });
        }
    }
    cases.extend(encoder_cases());
    cases
}

fn encoder_cases() -> impl Iterator<Item = Case> {
    let [batch, heads, time, head_size] = ENCODER;
    let features = [
        ("full", Feature::None),
        ("full with a relative bias", Feature::RelativeBias),
        ("full over documents", Feature::Documents),
    ];
    let pairs = move |feature| match feature {
        Feature::Documents => DOCUMENTS.iter().map(|&length| (length * length) as usize).sum(),
        _ => time * time,
    };
    features.into_iter().flat_map(move |(feature_name, feature)| {
        [("forward", 2.0, false), ("forward+backward", 7.0, true)].map(|(kind, products, with_backward)| Case {
            family: Family::Attention,
            name: format!("{kind} B{batch} H{heads} T{time} D{head_size} {feature_name}"),
            work: Work::Flops(products * 2.0 * (batch * heads * pairs(feature) * head_size) as f64),
            pytorch: None,
            prepare: Box::new(move |device| {
                let shape = Shape { mask: Mask::Full, ..causal(batch, heads, time, time, head_size) };
                prepare(Arc::clone(device), shape, feature, with_backward)
            }),
        })
    })
}

/// An ordinary causal attention.
pub(super) fn causal(batch: usize, heads: usize, query_time: usize, key_time: usize, head_size: usize) -> Shape {
    Shape {
        batch,
        query_time,
        key_time,
        heads,
        key_value_heads: heads,
        head_size,
        scale: 1.0 / (head_size as f32).sqrt(),
        mask: Mask::Causal,
    }
}

fn prepare(device: Arc<Device>, shape: Shape, feature: Feature, with_backward: bool) -> Result<Call, Error> {
    let rows = shape.batch * shape.query_time;
    let packed = rows * (shape.query_columns() + 2 * shape.key_columns());
    let (qkv, grad_output) =
        (Floats::numbers(&device, packed)?, Floats::numbers(&device, rows * shape.query_columns())?);
    let (mut output, mut log_sum_exp) =
        (Floats::zeros(&device, grad_output.len())?, Floats::zeros(&device, rows * shape.heads)?);
    let mut grad_qkv = Floats::zeros(&device, packed)?;
    let documents = match feature {
        Feature::Documents => {
            let rows = (0..shape.batch).map(|_| &DOCUMENTS[..]);
            Some(Ids::of(&device, &of_lengths(shape.query_time, rows))?)
        }
        _ => None,
    };
    let radius = shape.key_time;
    let table = match feature {
        Feature::RelativeBias => Some(Floats::numbers(&device, shape.heads * (2 * radius - 1))?),
        _ => None,
    };
    let mut grad_table = table.as_ref().map(|table| Floats::zeros(&device, table.len())).transpose()?;
    Ok(Box::new(move || {
        let relative_bias =
            table.as_ref().map(|table| RelativeBias { table: table.into(), radius, queries_are_last: false });
        let arguments = Forward {
            inputs: Inputs::Packed((&qkv).into()),
            key_lengths: None,
            documents: documents.as_ref().map(Into::into),
            bias: None,
            relative_bias,
            dropout: None,
            output: (&mut output).into(),
            log_sum_exp: Some((&mut log_sum_exp).into()),
        };
        forward(&device, &shape, arguments)?;
        if !with_backward {
            return Ok(());
        }
        let arguments = Backward {
            inputs: Inputs::Packed((&qkv).into()),
            key_lengths: None,
            documents: documents.as_ref().map(Into::into),
            bias: None,
            relative_bias,
            dropout: None,
            output: (&output).into(),
            log_sum_exp: (&log_sum_exp).into(),
            grad_output: (&grad_output).into(),
            grad_inputs: GradInputs::Packed((&mut grad_qkv).into(), Write::Set),
            grad_bias: None,
            grad_relative_bias: grad_table.as_mut().map(|grad| (grad.into(), Write::Set)),
        };
        Ok(backward(&device, &shape, arguments)?)
    }))
}
