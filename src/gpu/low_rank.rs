//! Low-rank adaptation on a GPU, out of the kernels of linear layers: merging is the gradient of an input by A, added to a
//! copy of the weight, and each matrix's gradient that of a layer's weight.

use super::linear::{self, Grads};
use super::{Gpu, add, scale};
use crate::driver::Result;
use crate::ops;
use crate::ops::linear::Activation;
use crate::ops::low_rank::{Backward, Factors, Shape};
use crate::ops::{View, ViewMut, Write};

/// Bytes of a buffer in the workspace.
fn bytes_of(elements: usize) -> u64 {
    (elements * size_of::<f32>()).next_multiple_of(256) as u64
}

/// Computes `merged = weight + s · B · A`; see [`crate::ops::low_rank::merge`].
pub fn merge(
    gpu: &Gpu,
    shape: &Shape,
    factors: Factors<'_>,
    weight: View<'_, f32>,
    mut merged: ViewMut<'_, f32>,
) -> Result<()> {
    let Shape { inputs, outputs, rank, .. } = *shape;
    let elements = merged.len();
    add::accumulate(gpu, weight, merged.reborrow(), Write::Set)?;
    let product = Grads {
        rows: outputs,
        columns: rank,
        inputs,
        // Of no use to the gradient of an input.
        input: weight.slice(0..0),
        weight: factors.down,
        grad_input: Some((merged.slice(0..elements), Write::Add)),
        grad_weight: None,
        grad_bias: None,
    };
    let scaled_bytes = bytes_of(outputs * rank);
    let workspace = gpu.workspace(scaled_bytes + product.workspace_bytes())?;
    // SAFETY: the start of the workspace, which nothing else uses before the next operation.
    let mut scaled = unsafe { ViewMut::on_device(workspace, outputs * rank) };
    scale::forward(gpu, factors.scale, factors.up, scaled.reborrow(), Write::Set)?;
    product.compute(gpu, scaled.as_view(), workspace + scaled_bytes)
}

/// Computes the gradients of both matrices; see [`crate::ops::low_rank::backward`].
pub fn backward(gpu: &Gpu, shape: &Shape, arguments: Backward<'_>) -> Result<()> {
    let Shape { rows, inputs, outputs, rank } = *shape;
    let Backward { factors, input, grad_output, grad_down, grad_up } = arguments;
    // What the workspace holds: the scaled matrices, the rows' products with them, then partial results.
    let lengths = [rank * inputs, outputs * rank, rows * rank, rows * rank];
    let [scaled_down, scaled_up, products, grad_products] = [0, 1, 2, 3];
    let offset = |index: usize| lengths[..index].iter().copied().map(bytes_of).sum::<u64>();
    let (written, read) = (
        // SAFETY: parts of the workspace, which nothing else uses before the next operation; each is written by one launch
        // and read by later ones.
        |base: u64, index: usize| unsafe { ViewMut::on_device(base + offset(index), lengths[index]) },
        // SAFETY: as above.
        |base: u64, index: usize| unsafe { View::on_device(base + offset(index), lengths[index]) },
    );
    let of_up = |base: u64, grad_weight| Grads {
        rows,
        columns: outputs,
        inputs: rank,
        input: read(base, products),
        weight: read(base, scaled_up),
        grad_input: Some((written(base, grad_products), Write::Set)),
        grad_weight: Some(grad_weight),
        grad_bias: None,
    };
    let of_down = Grads {
        rows,
        columns: rank,
        inputs,
        input,
        weight: factors.down,
        grad_input: None,
        grad_weight: Some(grad_down),
        grad_bias: None,
    };
    // The same sizes at any address.
    let mut grads_of_up = of_up(0, grad_up);
    let partial_bytes = grads_of_up.workspace_bytes().max(of_down.workspace_bytes());
    let base = gpu.workspace(offset(lengths.len()) + partial_bytes)?;
    grads_of_up = of_up(base, grads_of_up.grad_weight.take().expect("as given"));
    let partial = base + offset(lengths.len());

    scale::forward(gpu, factors.scale, factors.down, written(base, scaled_down), Write::Set)?;
    scale::forward(gpu, factors.scale, factors.up, written(base, scaled_up), Write::Set)?;
    let narrow = ops::linear::Forward {
        input,
        weight: read(base, scaled_down),
        bias: None,
        residual: None,
        activation: Activation::Identity,
        pre_activation: None,
        output: written(base, products),
    };
    linear::forward(gpu, &ops::linear::Shape { rows, inputs, outputs: rank }, narrow)?;
    grads_of_up.compute(gpu, grad_output, partial)?;
    of_down.compute(gpu, read(base, grad_products), partial)
}

pub(crate) mod checks {
    use crate::gpu::checks::Check;
    use crate::gpu::testing::Buffer;
    use crate::ops::low_rank::cases::{Case, SIZES};
    use crate::ops::low_rank::{Backward, Factors, backward, merge};
    use crate::ops::testing::{Random, assert_close};
    use crate::ops::{Device, Write};

    fn merged_weights_and_gradients_match_reference_over_odd_sizes(device: &Device) {
        let mut random = Random::fresh();
        let upload = |values: &[f32]| Buffer::upload(device, values);
        for sizes in SIZES {
            let case = Case::new(&mut random, sizes);
            let (down, up, weight) = (upload(&case.down), upload(&case.up), upload(&case.weight));
            let (input, grad_output) = (upload(&case.input), upload(&case.grad_output));
            let factors = Factors { down: down.view(), up: up.view(), scale: case.scale };
            let mut merged = Buffer::poisoned(device, case.weight.len());
            merge(device, &case.shape, factors, weight.view(), merged.view_mut()).unwrap();
            assert_close(&format!("{sizes:?}: merged"), &merged.download(), &case.merged(), 1e-6, 0.0);

            for before in [None, Some(0.5f32)] {
                let mut grads = [&case.down, &case.up].map(|like| match before {
                    None => Buffer::poisoned(device, like.len()),
                    Some(value) => upload(&vec![value; like.len()]),
                });
                let write = if before.is_some() { Write::Add } else { Write::Set };
                let [grad_down, grad_up] = grads.each_mut().map(|grad| (grad.view_mut(), write));
                let (input, grad_output) = (input.view(), grad_output.view());
                let arguments = Backward { factors, input, grad_output, grad_down, grad_up };
                backward(device, &case.shape, arguments).unwrap();
                for ((part, found), expected) in ["down", "up"].into_iter().zip(&grads).zip(case.gradients()) {
                    let expected: Vec<f64> = expected.iter().map(|g| g + f64::from(before.unwrap_or(0.0))).collect();
                    let name = format!("{sizes:?}, added to {before:?}: grad_{part}");
                    assert_close(&name, &found.download(), &expected, 1e-5, 1e-7);
                }
            }
        }
    }

    /// What holds on every GPU.
    pub(crate) const ALL: &[Check] = &[Check {
        name: "low_rank: merged weights and gradients match reference over odd sizes",
        claim: merged_weights_and_gradients_match_reference_over_odd_sizes,
    }];

    #[test]
    fn hold_on_the_emulator() {
        crate::gpu::checks::hold(ALL);
    }
}
