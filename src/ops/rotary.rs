//! Rotary positions (Su et al. 2021): queries and keys are turned by angles that grow with their position, so that their
//! products depend on how far apart they are. Pairs are column `i` and column `i + R/2` of the first `R` columns of a
//! head, as in Llama in the transformers library:
//!
//! ```text
//! y[i]       = x[i] · cos α - x[i + R/2] · sin α
//! y[i + R/2] = x[i + R/2] · cos α + x[i] · sin α,     α = position · base^(-2i/R),  i < R/2
//! ```
//!
//! Other columns and the values are copied. The gradient is turned back by the same angles, which is done in place.

pub(crate) mod cases;

use super::{Device, Error, View, ViewMut, check_len, turn};
use crate::{cpu, gpu};

const NAME: &str = "rotary";

/// Sizes of packed qkv, and how far each pair of columns is turned.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Shape {
    pub batch: usize,
    pub time: usize,
    /// `H`
    pub heads: usize,
    /// `HK`
    pub key_value_heads: usize,
    /// `D`
    pub head_size: usize,
    /// `R`: columns of each head that are turned, an even number of at most `D`.
    pub rotary_columns: usize,
    /// Base of the frequencies: 10,000 in the paper, 500,000 in Llama 3.
    pub base: f64,
    /// Position of each sequence's first token, where there are no position ids.
    pub first_position: usize,
}

impl Shape {
    /// `(H + 2·HK)·D`
    pub fn columns(&self) -> usize {
        (self.heads + 2 * self.key_value_heads) * self.head_size
    }

    /// Heads that are turned: those of queries and keys, which come first.
    pub(crate) fn turned_heads(&self) -> usize {
        self.heads + self.key_value_heads
    }
}

/// Arguments of [`forward`].
pub struct Forward<'a> {
    /// `(B, T, (H + 2·HK)·D)`
    pub input: View<'a, f32>,
    /// `(B, T)`, from 0 on; `first_position + t` where there are none.
    pub position_ids: Option<View<'a, i32>>,
    /// `(B, T, (H + 2·HK)·D)`
    pub output: ViewMut<'a, f32>,
}

/// Arguments of [`backward`].
pub struct Backward<'a> {
    /// As in the forward pass.
    pub position_ids: Option<View<'a, i32>>,
    /// `(B, T, (H + 2·HK)·D)`: the output's gradient before the call, the input's after.
    pub gradient: ViewMut<'a, f32>,
}

/// Positions of a GPU are not read back for a check: its kernels give a token at a negative one NaNs.
fn check(device: &Device, shape: &Shape, position_ids: Option<&View<'_, i32>>) -> Result<(), Error> {
    let Shape { batch, time, head_size, rotary_columns, base, first_position, .. } = *shape;
    if !rotary_columns.is_multiple_of(2) || rotary_columns > head_size.min(2 * turn::PAIRS_MAX) {
        let what = format!("{rotary_columns} columns of {head_size}: turn an even number of them, at most all");
        return Err(Error::new(NAME, what));
    }
    if !(base >= 1.0 && base.is_finite()) {
        return Err(Error::new(NAME, format!("base {base} is below 1 or not finite")));
    }
    let Some(ids) = position_ids else {
        if first_position + time > i32::MAX as usize {
            return Err(Error::new(NAME, format!("position {} does not fit 31 bits", first_position + time - 1)));
        }
        return Ok(());
    };
    check_len(NAME, "position_ids", ids.len(), batch * time)?;
    if let Device::Cpu(_) = device
        && let Some(place) = ids.host().iter().position(|&id| id < 0)
    {
        return Err(Error::new(NAME, format!("position id {} at {place} is negative", ids.host()[place])));
    }
    Ok(())
}

/// Turns queries and keys.
///
/// # Errors
/// An argument's length does not fit `shape`; an odd number of columns to turn, or more than a head has; a base below 1;
/// a negative position.
pub fn forward(device: &Device, shape: &Shape, arguments: Forward<'_>) -> Result<(), Error> {
    check(device, shape, arguments.position_ids.as_ref())?;
    let length = shape.batch * shape.time * shape.columns();
    check_len(NAME, "input", arguments.input.len(), length)?;
    check_len(NAME, "output", arguments.output.len(), length)?;
    match device {
        Device::Cpu(cpu) => cpu::rotary::forward(cpu, shape, arguments),
        Device::Gpu(gpu) => gpu::rotary::forward(gpu, shape, arguments).map_err(Error::of_device(NAME))?,
    }
    Ok(())
}

/// Turns the gradients of queries and keys back, in place.
///
/// # Errors
/// As [`forward`].
pub fn backward(device: &Device, shape: &Shape, arguments: Backward<'_>) -> Result<(), Error> {
    check(device, shape, arguments.position_ids.as_ref())?;
    check_len(NAME, "gradient", arguments.gradient.len(), shape.batch * shape.time * shape.columns())?;
    match device {
        Device::Cpu(cpu) => cpu::rotary::backward(cpu, shape, arguments),
        Device::Gpu(gpu) => gpu::rotary::backward(gpu, shape, arguments).map_err(Error::of_device(NAME))?,
    }
    Ok(())
}

/// Rotary positions in f64, from the formulas: what every backend is measured against.
pub mod reference {
    use super::Shape;

    /// `(B, T, (H + 2·HK)·D)`; see [`super::forward`].
    pub fn forward(shape: &Shape, input: &[f64], position_ids: Option<&[i32]>) -> Vec<f64> {
        turned(shape, input, position_ids, 1.0)
    }

    /// Gradient of the input; see [`super::backward`].
    pub fn backward(shape: &Shape, grad_output: &[f64], position_ids: Option<&[i32]>) -> Vec<f64> {
        turned(shape, grad_output, position_ids, -1.0)
    }

    fn turned(shape: &Shape, input: &[f64], position_ids: Option<&[i32]>, sign: f64) -> Vec<f64> {
        let mut output = input.to_vec();
        let half = shape.rotary_columns / 2;
        for place in 0..shape.batch * shape.time {
            let position = position_ids.map_or(shape.first_position + place % shape.time, |ids| ids[place] as usize);
            for head in 0..shape.heads + shape.key_value_heads {
                let start = place * shape.columns() + head * shape.head_size;
                for i in 0..half {
                    let frequency = shape.base.powf(-2.0 * i as f64 / shape.rotary_columns as f64);
                    let (sine, cosine) = (sign * position as f64 * frequency).sin_cos();
                    let (x, y) = (input[start + i], input[start + i + half]);
                    output[start + i] = x * cosine - y * sine;
                    output[start + i + half] = y * cosine + x * sine;
                }
            }
        }
        output
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Random, assert_close, assert_gradient, cpu_devices, double, poisoned};
    use super::cases::{cases, shape};
    use super::*;

    #[test]
    fn reference_gradients_match_finite_differences() {
        let mut random = Random::fresh();
        let shape = shape((2, 3, 2, 1, 6, 4, 10_000.0, 5));
        let length = 6 * shape.columns();
        let (input, grad_output) = (double(&random.normal(length)), double(&random.normal(length)));
        for ids in [None, Some(&[3, 0, 7, 1, 1, 40][..])] {
            let loss = |input: &[f64]| -> f64 {
                reference::forward(&shape, input, ids).iter().zip(&grad_output).map(|(y, g)| y * g).sum()
            };
            assert_gradient("input", loss, &input, &reference::backward(&shape, &grad_output, ids));
        }
    }

    #[test]
    fn both_passes_match_reference_and_threads_do_not_change_a_bit() {
        let mut random = Random::fresh();
        for (shape, position_ids) in cases(&mut random) {
            let input = random.normal(shape.batch * shape.time * shape.columns());
            let ids = position_ids.as_deref();
            let expected = reference::forward(&shape, &double(&input), ids);
            let expected_gradient = reference::backward(&shape, &double(&input), ids);
            let mut previous: Option<[Vec<f32>; 2]> = None;
            for (index, (name, device)) in cpu_devices().into_iter().enumerate() {
                let name = format!("{shape:?}, position ids {}, {name}", ids.is_some());
                let mut output = poisoned(input.len());
                let arguments =
                    Forward { input: (&input).into(), position_ids: ids.map(View::from), output: (&mut output).into() };
                forward(&device, &shape, arguments).unwrap();
                assert_close(&format!("forward, {name}"), &output, &expected, 3e-7, 0.0);

                let mut gradient = input.clone();
                let arguments = Backward { position_ids: ids.map(View::from), gradient: (&mut gradient).into() };
                backward(&device, &shape, arguments).unwrap();
                assert_close(&format!("backward, {name}"), &gradient, &expected_gradient, 3e-7, 0.0);

                // Devices come in pairs, with one and with three threads.
                let found = [output, gradient];
                if let Some(previous) = previous.filter(|_| index % 2 == 1) {
                    assert!(previous == found, "{name}: bits differ");
                }
                previous = Some(found);
            }
        }
    }

    #[test]
    fn a_token_at_position_zero_is_left_as_it_is() {
        let shape = shape((1, 1, 2, 1, 10, 10, 500_000.0, 0));
        let input = Random::fresh().normal(shape.columns());
        for (name, device) in cpu_devices() {
            let mut output = poisoned(input.len());
            let arguments = Forward { input: (&input).into(), position_ids: None, output: (&mut output).into() };
            forward(&device, &shape, arguments).unwrap();
            assert!(output == input, "{name}");
        }
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let (_, device) = cpu_devices().remove(0);
        let message = |shape: &Shape, ids: &[i32]| {
            let mut gradient = vec![0.0; shape.batch * shape.time * shape.columns()];
            let arguments = Backward { position_ids: Some(ids.into()), gradient: (&mut gradient).into() };
            backward(&device, shape, arguments).unwrap_err().to_string()
        };
        let found = message(&shape((1, 1, 1, 1, 6, 3, 10_000.0, 0)), &[0]);
        assert_eq!(found, "rotary: 3 columns of 6: turn an even number of them, at most all");
        let found = message(&shape((1, 1, 1, 1, 6, 8, 10_000.0, 0)), &[0]);
        assert_eq!(found, "rotary: 8 columns of 6: turn an even number of them, at most all");
        assert_eq!(message(&shape((1, 1, 1, 1, 6, 6, 0.5, 0)), &[0]), "rotary: base 0.5 is below 1 or not finite");
        let found = message(&shape((1, 2, 1, 1, 6, 6, 1e4, 0)), &[0, -3]);
        assert_eq!(found, "rotary: position id -3 at 1 is negative");
    }
}
