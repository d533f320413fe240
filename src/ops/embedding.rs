//! Token embedding plus learned positions: `y[b, t] = tokens_table[id[b, t]] + positions_table[first_position + t]`.
//!
//! The gradient of a table row is a sum over the places where its token occurs. It is taken in order of place,
//! whatever the number of threads, so it is the same bits every time.

pub(crate) mod cases;

use super::{Device, Error, View, ViewMut, Write, check_len};
use crate::{cpu, gpu};

const NAME: &str = "embedding";

/// Sizes of an embedding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    pub batch: usize,
    pub time: usize,
    pub channels: usize,
    pub vocabulary: usize,
    /// Rows of the table of positions; 0 where there is none.
    pub positions: usize,
    /// Position of each sequence's first token: not 0 when decoding from a cache.
    pub first_position: usize,
}

/// Arguments of [`forward`].
pub struct Forward<'a> {
    /// `(B, T)`, each in `0..vocabulary`.
    pub ids: View<'a, i32>,
    /// `(V, C)`
    pub token_table: View<'a, f32>,
    /// `(positions, C)`
    pub position_table: Option<View<'a, f32>>,
    /// `(B, T, C)`
    pub output: ViewMut<'a, f32>,
}

/// Arguments of [`backward`].
pub struct Backward<'a> {
    /// `(B, T)`
    pub ids: View<'a, i32>,
    /// `(B, T, C)`
    pub grad_output: View<'a, f32>,
    /// `(V, C)`
    pub grad_token_table: Option<(ViewMut<'a, f32>, Write)>,
    /// `(positions, C)`
    pub grad_position_table: Option<(ViewMut<'a, f32>, Write)>,
}

/// Ids of a GPU are not read back for a check: its kernels give a row whose id is outside the vocabulary NaNs.
fn check(device: &Device, shape: &Shape, ids: &View<'_, i32>, has_positions: bool) -> Result<(), Error> {
    let Shape { batch, time, vocabulary, positions, first_position, .. } = *shape;
    check_len(NAME, "ids", ids.len(), batch * time)?;
    if has_positions && first_position + time > positions {
        return Err(Error::new(NAME, format!("position {} is needed of {positions}", first_position + time - 1)));
    }
    if let Device::Gpu(_) = device {
        return Ok(());
    }
    let Some(place) = ids.host().iter().position(|&id| id < 0 || id as usize >= vocabulary) else { return Ok(()) };
    let id = ids.host()[place];
    Err(Error::new(NAME, format!("token id {id} at {place} is outside the vocabulary of {vocabulary}")))
}

/// Looks up and adds.
///
/// # Errors
/// An argument's length does not fit `shape`; an id outside the vocabulary; more positions than the table has.
pub fn forward(device: &Device, shape: &Shape, arguments: Forward<'_>) -> Result<(), Error> {
    check(device, shape, &arguments.ids, arguments.position_table.is_some())?;
    check_len(NAME, "token_table", arguments.token_table.len(), shape.vocabulary * shape.channels)?;
    check_len(NAME, "output", arguments.output.len(), shape.batch * shape.time * shape.channels)?;
    if let Some(table) = &arguments.position_table {
        check_len(NAME, "position_table", table.len(), shape.positions * shape.channels)?;
    }
    match device {
        Device::Cpu(cpu) => cpu::embedding::forward(cpu, shape, arguments),
        Device::Gpu(gpu) => gpu::embedding::forward(gpu, shape, arguments).map_err(Error::of_device(NAME))?,
    }
    Ok(())
}

/// Sums the gradient of each table's rows.
///
/// # Errors
/// An argument's length does not fit `shape`; an id outside the vocabulary.
pub fn backward(device: &Device, shape: &Shape, arguments: Backward<'_>) -> Result<(), Error> {
    check(device, shape, &arguments.ids, arguments.grad_position_table.is_some())?;
    check_len(NAME, "grad_output", arguments.grad_output.len(), shape.batch * shape.time * shape.channels)?;
    if let Some((grad, _)) = &arguments.grad_token_table {
        check_len(NAME, "grad_token_table", grad.len(), shape.vocabulary * shape.channels)?;
    }
    if let Some((grad, _)) = &arguments.grad_position_table {
        check_len(NAME, "grad_position_table", grad.len(), shape.positions * shape.channels)?;
    }
    match device {
        Device::Cpu(cpu) => cpu::embedding::backward(cpu, shape, arguments),
        Device::Gpu(gpu) => gpu::embedding::backward(gpu, shape, arguments).map_err(Error::of_device(NAME))?,
    }
    Ok(())
}

/// Embedding in f64, from the formulas: what every backend is measured against.
pub mod reference {
    use super::Shape;

    /// `(B, T, C)`; see [`super::forward`].
    pub fn forward(shape: &Shape, ids: &[i32], token_table: &[f64], position_table: Option<&[f64]>) -> Vec<f64> {
        let mut output = Vec::with_capacity(ids.len() * shape.channels);
        for (place, &id) in ids.iter().enumerate() {
            let position = shape.first_position + place % shape.time;
            output.extend((0..shape.channels).map(|c| {
                let positional = position_table.map_or(0.0, |table| table[position * shape.channels + c]);
                token_table[id as usize * shape.channels + c] + positional
            }));
        }
        output
    }

    /// `(V, C)` gradient of the table of tokens and `(positions, C)` gradient of the table of positions.
    pub fn backward(shape: &Shape, ids: &[i32], grad_output: &[f64]) -> (Vec<f64>, Vec<f64>) {
        let c = shape.channels;
        let mut tokens = vec![0.0; shape.vocabulary * c];
        let mut positions = vec![0.0; shape.positions * c];
        for (i, grad) in grad_output.iter().enumerate() {
            let place = i / c;
            tokens[ids[place] as usize * c + i % c] += grad;
            if shape.positions > 0 {
                positions[(shape.first_position + place % shape.time) * c + i % c] += grad;
            }
        }
        (tokens, positions)
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Random, assert_close, assert_gradient, cpu_devices, double, poisoned};
    use super::cases::{ids, shapes};
    use super::*;

    #[test]
    fn reference_gradients_match_finite_differences() {
        let mut random = Random::fresh();
        let shape = Shape { batch: 2, time: 3, channels: 5, vocabulary: 4, positions: 6, first_position: 2 };
        let ids = ids(&mut random, &shape);
        let (tokens, positions) = (double(&random.normal(20)), double(&random.normal(30)));
        let grad_output = double(&random.normal(30));
        let loss = |tokens: &[f64], positions: &[f64]| -> f64 {
            reference::forward(&shape, &ids, tokens, Some(positions)).iter().zip(&grad_output).map(|(y, g)| y * g).sum()
        };
        let (grad_tokens, grad_positions) = reference::backward(&shape, &ids, &grad_output);
        assert_gradient("tokens", |x| loss(x, &positions), &tokens, &grad_tokens);
        assert_gradient("positions", |x| loss(&tokens, x), &positions, &grad_positions);
    }

    #[test]
    fn forward_matches_reference() {
        let mut random = Random::fresh();
        for shape in shapes() {
            let ids = ids(&mut random, &shape);
            let tokens = random.normal(shape.vocabulary * shape.channels);
            let positions = random.normal(shape.positions * shape.channels);
            for has_positions in [false, shape.positions > 0] {
                let positions_double = double(&positions);
                let expected = reference::forward(
                    &shape,
                    &ids,
                    &double(&tokens),
                    has_positions.then_some(positions_double.as_slice()),
                );
                for (name, device) in cpu_devices() {
                    let mut output = poisoned(expected.len());
                    let arguments = Forward {
                        ids: (&ids).into(),
                        token_table: (&tokens).into(),
                        position_table: has_positions.then(|| (&positions).into()),
                        output: (&mut output).into(),
                    };
                    forward(&device, &shape, arguments).unwrap();
                    assert_close(&format!("{shape:?}, {name}"), &output, &expected, 1e-6, 0.0);
                }
            }
        }
    }

    #[test]
    fn backward_matches_reference_and_threads_do_not_change_a_bit() {
        let mut random = Random::fresh();
        for shape in shapes() {
            let ids = ids(&mut random, &shape);
            let grad_output = random.normal(ids.len() * shape.channels);
            let before_tokens = random.normal(shape.vocabulary * shape.channels);
            let before_positions = random.normal(shape.positions * shape.channels);
            let (tokens, positions) = reference::backward(&shape, &ids, &double(&grad_output));
            let plus = |gradient: &[f64], before: &[f32]| -> Vec<f64> {
                gradient.iter().zip(before).map(|(g, &b)| g + f64::from(b)).collect()
            };
            for write in [Write::Set, Write::Add] {
                let mut previous: Option<Vec<f32>> = None;
                for (name, device) in cpu_devices() {
                    let name = format!("{shape:?}, {write:?}, {name}");
                    let start = |before: &[f32]| match write {
                        Write::Set => poisoned(before.len()),
                        Write::Add => before.to_vec(),
                    };
                    let (mut grad_tokens, mut grad_positions) = (start(&before_tokens), start(&before_positions));
                    let arguments = Backward {
                        ids: (&ids).into(),
                        grad_output: (&grad_output).into(),
                        grad_token_table: Some(((&mut grad_tokens).into(), write)),
                        grad_position_table: (shape.positions > 0).then(|| ((&mut grad_positions).into(), write)),
                    };
                    backward(&device, &shape, arguments).unwrap();
                    let [expected_tokens, expected_positions] = match write {
                        Write::Set => [tokens.clone(), positions.clone()],
                        Write::Add => [plus(&tokens, &before_tokens), plus(&positions, &before_positions)],
                    };
                    assert_close(&format!("tokens, {name}"), &grad_tokens, &expected_tokens, 1e-5, 0.0);
                    assert_close(&format!("positions, {name}"), &grad_positions, &expected_positions, 1e-5, 0.0);
                    // Additions in one order have the same bits on every level as well.
                    if let Some(previous) = &previous {
                        assert!(*previous == grad_tokens, "{name}: bits differ");
                    }
                    previous = Some(grad_tokens);
                }
            }
        }
    }

    #[test]
    fn ids_and_positions_out_of_range_are_named() {
        let (_, device) = cpu_devices().remove(0);
        let shape = Shape { batch: 1, time: 2, channels: 1, vocabulary: 3, positions: 4, first_position: 3 };
        let (tokens, positions, mut output) = (vec![0.0; 3], vec![0.0; 4], vec![0.0; 2]);
        let mut message = |ids: &[i32], positions: Option<&Vec<f32>>| {
            let arguments = Forward {
                ids: ids.into(),
                token_table: (&tokens).into(),
                position_table: positions.map(|positions| positions.into()),
                output: (&mut output).into(),
            };
            forward(&device, &shape, arguments).unwrap_err().to_string()
        };
        assert_eq!(message(&[0, 3], None), "embedding: token id 3 at 1 is outside the vocabulary of 3");
        assert_eq!(message(&[-1, 0], None), "embedding: token id -1 at 0 is outside the vocabulary of 3");
        assert_eq!(message(&[0, 0], Some(&positions)), "embedding: position 4 is needed of 4");
    }
}
