//! Low-rank adaptation (Hu et al. 2021): a frozen weight that learns by a product of two small matrices,
//!
//! ```text
//! W' = W + s · B · A        A (rank, inputs), B (outputs, rank)
//! ```
//!
//! The layer itself computes with `W'` as with any other weight, forward and for the gradient of its input. What is left
//! is to make `W'`, and the gradients of the two matrices, for which the gradient of `W'` never has to exist:
//!
//! ```text
//! t = s · x · Aᵀ      dB = dyᵀ · t
//! u = s · dy · B      dA = uᵀ · x
//! ```

pub(crate) mod cases;

use super::{Device, Error, View, ViewMut, Write, check_len};
use crate::{cpu, gpu};

const NAME: &str = "low_rank";

/// Sizes of an adapted layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Rows of the layer's input: `B·T`. Merging does not depend on them.
    pub rows: usize,
    /// Columns of the layer's input.
    pub inputs: usize,
    /// Columns of the product with the weight.
    pub outputs: usize,
    /// Rows of A.
    pub rank: usize,
}

/// The two matrices.
#[derive(Clone, Copy)]
pub struct Factors<'a> {
    /// A: `(rank, inputs)`
    pub down: View<'a, f32>,
    /// B: `(outputs, rank)`
    pub up: View<'a, f32>,
    /// `s`
    pub scale: f32,
}

/// Arguments of [`backward`].
pub struct Backward<'a> {
    pub factors: Factors<'a>,
    /// `(rows, inputs)`
    pub input: View<'a, f32>,
    /// `(rows, outputs)`: of the product, before the bias.
    pub grad_output: View<'a, f32>,
    /// `(rank, inputs)`
    pub grad_down: (ViewMut<'a, f32>, Write),
    /// `(outputs, rank)`
    pub grad_up: (ViewMut<'a, f32>, Write),
}

fn check_factors(shape: &Shape, factors: &Factors<'_>) -> Result<(), Error> {
    check_len(NAME, "down", factors.down.len(), shape.rank * shape.inputs)?;
    check_len(NAME, "up", factors.up.len(), shape.outputs * shape.rank)
}

/// Computes `merged = weight + s · B · A`, both `(outputs, inputs)`.
///
/// # Errors
/// An argument's length does not fit `shape`.
pub fn merge(
    device: &Device,
    shape: &Shape,
    factors: Factors<'_>,
    weight: View<'_, f32>,
    merged: ViewMut<'_, f32>,
) -> Result<(), Error> {
    check_factors(shape, &factors)?;
    check_len(NAME, "weight", weight.len(), shape.outputs * shape.inputs)?;
    check_len(NAME, "merged", merged.len(), shape.outputs * shape.inputs)?;
    match device {
        Device::Cpu(cpu) => cpu::low_rank::merge(cpu, shape, factors, weight, merged),
        Device::Gpu(gpu) => {
            gpu::low_rank::merge(gpu, shape, factors, weight, merged).map_err(Error::of_device(NAME))?;
        }
    }
    Ok(())
}

/// Computes the gradients of the two matrices.
///
/// # Errors
/// An argument's length does not fit `shape`.
pub fn backward(device: &Device, shape: &Shape, arguments: Backward<'_>) -> Result<(), Error> {
    check_factors(shape, &arguments.factors)?;
    check_len(NAME, "input", arguments.input.len(), shape.rows * shape.inputs)?;
    check_len(NAME, "grad_output", arguments.grad_output.len(), shape.rows * shape.outputs)?;
    check_len(NAME, "grad_down", arguments.grad_down.0.len(), shape.rank * shape.inputs)?;
    check_len(NAME, "grad_up", arguments.grad_up.0.len(), shape.outputs * shape.rank)?;
    match device {
        Device::Cpu(cpu) => cpu::low_rank::backward(cpu, shape, arguments),
        Device::Gpu(gpu) => gpu::low_rank::backward(gpu, shape, arguments).map_err(Error::of_device(NAME))?,
    }
    Ok(())
}

/// The operation in plain f64 loops.
pub mod reference {
    use super::Shape;

    /// `(outputs, inputs)`; see [`super::merge`].
    pub fn merge(shape: &Shape, weight: &[f64], down: &[f64], up: &[f64], scale: f64) -> Vec<f64> {
        let Shape { inputs, outputs, rank, .. } = *shape;
        let product = |o: usize, i: usize| (0..rank).map(|r| up[o * rank + r] * down[r * inputs + i]).sum::<f64>();
        (0..outputs * inputs).map(|at| weight[at] + scale * product(at / inputs, at % inputs)).collect()
    }

    /// Gradients of A and of B, by way of the gradient of the merged weight: `dA = s · Bᵀ · dW'`, `dB = s · dW' · Aᵀ`.
    pub fn backward(
        shape: &Shape,
        input: &[f64],
        grad_output: &[f64],
        down: &[f64],
        up: &[f64],
        scale: f64,
    ) -> (Vec<f64>, Vec<f64>) {
        let Shape { rows, inputs, outputs, rank } = *shape;
        let mut grad_weight = vec![0.0; outputs * inputs];
        for row in 0..rows {
            for o in 0..outputs {
                for i in 0..inputs {
                    grad_weight[o * inputs + i] += grad_output[row * outputs + o] * input[row * inputs + i];
                }
            }
        }
        let (mut grad_down, mut grad_up) = (vec![0.0; rank * inputs], vec![0.0; outputs * rank]);
        for o in 0..outputs {
            for r in 0..rank {
                for i in 0..inputs {
                    let grad = scale * grad_weight[o * inputs + i];
                    grad_down[r * inputs + i] += up[o * rank + r] * grad;
                    grad_up[o * rank + r] += down[r * inputs + i] * grad;
                }
            }
        }
        (grad_down, grad_up)
    }
}

#[cfg(test)]
mod tests {
    use super::super::linear::{self, Activation};
    use super::super::testing::{Random, assert_close, assert_gradient, cpu_devices, double, poisoned};
    use super::cases::{Case, SIZES};
    use super::*;

    #[test]
    fn reference_gradients_match_finite_differences() {
        let mut random = Random::fresh();
        let case = Case::new(&mut random, [5, 4, 6, 3]);
        let shape = linear::Shape { rows: 5, inputs: 4, outputs: 6 };
        let (x, w, dy) = (double(&case.input), double(&case.weight), double(&case.grad_output));
        let (a, b, s) = (double(&case.down), double(&case.up), f64::from(case.scale));
        let loss = |a: &[f64], b: &[f64]| -> f64 {
            let merged = reference::merge(&case.shape, &w, a, b, s);
            let (_, y) = linear::reference::forward(&shape, Activation::Identity, &x, &merged, None, None);
            y.iter().zip(&dy).map(|(y, g)| y * g).sum()
        };
        let (grad_down, grad_up) = reference::backward(&case.shape, &x, &dy, &a, &b, s);
        assert_gradient("down", |a| loss(a, &b), &a, &grad_down);
        assert_gradient("up", |b| loss(&a, b), &b, &grad_up);
    }

    #[test]
    fn merged_weights_match_reference_and_threads_do_not_change_a_bit() {
        let mut random = Random::fresh();
        for sizes in SIZES {
            let case = Case::new(&mut random, sizes);
            let expected = case.merged();
            let mut previous: Option<Vec<f32>> = None;
            for (index, (name, device)) in cpu_devices().into_iter().enumerate() {
                let mut merged = poisoned(expected.len());
                merge(&device, &case.shape, case.factors(), (&case.weight).into(), (&mut merged).into()).unwrap();
                let name = format!("{sizes:?}, {name}");
                assert_close(&name, &merged, &expected, 1e-6, 0.0);
                // Devices come in pairs, with one and with three threads.
                assert!(previous.is_none_or(|previous| index % 2 == 0 || previous == merged), "{name}: bits differ");
                previous = Some(merged);
            }
        }
    }

    #[test]
    fn gradients_match_reference_and_threads_do_not_change_a_bit() {
        let mut random = Random::fresh();
        for sizes in SIZES {
            let case = Case::new(&mut random, sizes);
            let expected = case.gradients();
            let mut previous: Option<Vec<[Vec<f32>; 2]>> = None;
            for (index, (name, device)) in cpu_devices().into_iter().enumerate() {
                let mut found = Vec::new();
                for before in [None, Some(0.5f32)] {
                    let name = format!("{sizes:?}, {name}, added to {before:?}");
                    let mut grads = [&case.down, &case.up].map(|like| match before {
                        None => poisoned(like.len()),
                        Some(value) => vec![value; like.len()],
                    });
                    let write = if before.is_some() { Write::Add } else { Write::Set };
                    let [grad_down, grad_up] = grads.each_mut().map(|grad| (grad.into(), write));
                    let arguments = Backward {
                        factors: case.factors(),
                        input: (&case.input).into(),
                        grad_output: (&case.grad_output).into(),
                        grad_down,
                        grad_up,
                    };
                    backward(&device, &case.shape, arguments).unwrap();
                    for ((part, found), expected) in ["down", "up"].into_iter().zip(&grads).zip(&expected) {
                        let expected: Vec<f64> =
                            expected.iter().map(|g| g + f64::from(before.unwrap_or(0.0))).collect();
                        assert_close(&format!("{name}: grad_{part}"), found, &expected, 1e-5, 1e-7);
                    }
                    found.push(grads);
                }
                assert!(
                    previous.is_none_or(|previous| index % 2 == 0 || previous == found),
                    "{sizes:?}, {name}: bits differ"
                );
                previous = Some(found);
            }
        }
    }

    #[test]
    fn arguments_that_do_not_fit_are_named() {
        let case = Case::new(&mut Random::fresh(), [3, 5, 4, 2]);
        let (_, device) = cpu_devices().remove(0);
        let mut merged = vec![0.0; 19];
        let error = merge(&device, &case.shape, case.factors(), (&case.weight).into(), (&mut merged).into());
        assert_eq!(error.unwrap_err().to_string(), "low_rank: merged has 19 elements, expected 20");
        let (mut grad_down, mut grad_up) = (vec![0.0; 10], vec![0.0; 9]);
        let arguments = Backward {
            factors: case.factors(),
            input: (&case.input).into(),
            grad_output: (&case.grad_output).into(),
            grad_down: ((&mut grad_down).into(), Write::Set),
            grad_up: ((&mut grad_up).into(), Write::Set),
        };
        let error = backward(&device, &case.shape, arguments).unwrap_err().to_string();
        assert_eq!(error, "low_rank: grad_up has 9 elements, expected 8");
    }
}
