//! Causal self-attention from packed queries, keys and values, as the models have it.
//!
//! Only the scores that the mask leaves are counted as work: 2 products of them forward, 5 backward. PyTorch gets its
//! queries, keys and values as separate contiguous tensors, which suits it best.

use super::{Call, Case, Error, Family, Floats, Work};
use crate::ops::attention::{Backward, Forward, GradInputs, Inputs, Mask, Shape, backward, forward};
use crate::ops::{Device, Write};
use std::sync::Arc;

/// `(B, H, T, D)`
const SHAPES: [[usize; 4]; 3] = [[4, 6, 256, 64], [1, 12, 1024, 64], [12, 4, 64, 32]];

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
                    prepare(Arc::clone(device), causal(batch, heads, time, time, head_size), with_backward)
                }),
            });
        }
    }
    cases
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

fn prepare(device: Arc<Device>, shape: Shape, with_backward: bool) -> Result<Call, Error> {
    let rows = shape.batch * shape.query_time;
    let packed = rows * (shape.query_columns() + 2 * shape.key_columns());
    let (qkv, grad_output) =
        (Floats::numbers(&device, packed)?, Floats::numbers(&device, rows * shape.query_columns())?);
    let (mut output, mut log_sum_exp) =
        (Floats::zeros(&device, grad_output.len())?, Floats::zeros(&device, rows * shape.heads)?);
    let mut grad_qkv = Floats::zeros(&device, packed)?;
    Ok(Box::new(move || {
        let arguments = Forward {
            inputs: Inputs::Packed((&qkv).into()),
            key_lengths: None,
            documents: None,
            bias: None,
            relative_bias: None,
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
            documents: None,
            bias: None,
            relative_bias: None,
            dropout: None,
            output: (&output).into(),
            log_sum_exp: (&log_sum_exp).into(),
            grad_output: (&grad_output).into(),
            grad_inputs: GradInputs::Packed((&mut grad_qkv).into(), Write::Set),
            grad_bias: None,
            grad_relative_bias: None,
        };
        Ok(backward(&device, &shape, arguments)?)
    }))
}
