//! Matrix products of linear layers: forward and both gradients, without bias or activation.
//!
//! Rows and layers are those of the three models of the training-step figures; the last one of GPT-2 is the output
//! projection.

use super::{Call, Case, Error, Family, Floats, ROTATION_FLOATS, Work, rotation};
use crate::ops::linear::{Activation, Backward, Forward, Shape, backward, forward};
use crate::ops::{Device, Write};
use std::sync::Arc;

/// Rows, and the (inputs, outputs) of each layer that sees as many.
const MODELS: [(usize, &[(usize, usize)]); 3] = [
    (768, &[(128, 384), (128, 128), (128, 512), (512, 128)]),
    (3072, &[(384, 1152), (384, 384), (384, 1536), (1536, 384)]),
    (256, &[(768, 2304), (768, 768), (768, 3072), (3072, 768), (768, 50257)]),
];

#[derive(Clone, Copy)]
enum Product {
    Forward,
    GradInput,
    GradWeight,
}

pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (rows, layers) in MODELS {
        for &(inputs, outputs) in layers {
            let shape = Shape { rows, inputs, outputs };
            for (product, kind) in [
                (Product::Forward, "forward"),
                (Product::GradInput, "grad_input"),
                (Product::GradWeight, "grad_weight"),
            ] {
                cases.push(Case {
                    family: Family::Linear,
                    name: format!("{kind} {rows}x{inputs}x{outputs}"),
                    work: Work::Flops(2.0 * (rows * inputs * outputs) as f64),
                    pytorch: Some(format!("linear {kind} {rows} {inputs} {outputs}")),
                    prepare: Box::new(move |device| prepare(Arc::clone(device), shape, product)),
                });
            }
        }
    }
    cases
}

fn prepare(device: Arc<Device>, shape: Shape, product: Product) -> Result<Call, Error> {
    let copies = rotation(shape.inputs * shape.outputs, ROTATION_FLOATS);
    let mut weights: Vec<Floats> = Floats::many(&device, copies, shape.inputs * shape.outputs)?;
    let input = Floats::numbers(&device, shape.rows * shape.inputs)?;
    let mut turn = 0;
    if let Product::Forward = product {
        let mut output = Floats::zeros(&device, shape.rows * shape.outputs)?;
        return Ok(Box::new(move || {
            turn = (turn + 1) % copies;
            let arguments = Forward {
                input: (&input).into(),
                weight: (&weights[turn]).into(),
                bias: None,
                residual: None,
                activation: Activation::Identity,
                pre_activation: None,
                output: (&mut output).into(),
            };
            Ok(forward(&device, &shape, arguments)?)
        }));
    }
    let grad_output = Floats::numbers(&device, shape.rows * shape.outputs)?;
    let mut grad_input = Floats::zeros(&device, shape.rows * shape.inputs)?;
    // The weight is not read for its own gradient, so any will do.
    let weight = Floats::numbers(&device, shape.inputs * shape.outputs)?;
    Ok(Box::new(move || {
        turn = (turn + 1) % copies;
        let is_weight = matches!(product, Product::GradWeight);
        let (weight, grad_input, grad_weight) = if is_weight {
            (&weight, None, Some(((&mut weights[turn]).into(), Write::Set)))
        } else {
            (&weights[turn], Some(((&mut grad_input).into(), Write::Set)), None)
        };
        let arguments = Backward {
            input: (&input).into(),
            weight: weight.into(),
            activation: Activation::Identity,
            pre_activation: None,
            grad_output: (&grad_output).into(),
            grad_input,
            grad_weight,
            grad_bias: None,
        };
        Ok(backward(&device, &shape, arguments)?)
    }))
}
