//! Embedding: each place is the sum of a row of the table of tokens, a vector for its position, and a row of the table
//! of token types, the last two optional.
//!
//! ```text
//! y[b, t] = tokens[id[b, t]] + position vector[p] + types[type[b, t]],  p = position id[b, t], or first_position + t
//! ```
//!
//! Position vectors are rows of a learned table, or sines and cosines (Vaswani et al. 2017): `sin(p / 10000^(2i/C))` in
//! column `2i`, the cosine of the same angle in column `2i + 1`.
//!
//! The gradient of a table row is a sum over the places that it was added to. It is taken in order of place, whatever
//! the number of threads, so it is the same bits every time.

pub(crate) mod cases;

use super::{Device, Error, View, ViewMut, Write, check_len, turn};
use crate::{cpu, gpu};

const NAME: &str = "embedding";

/// Base of the frequencies of sinusoidal positions.
pub(crate) const SINUSOIDAL_BASE: f64 = 10_000.0;

/// Sizes of an embedding.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Shape {
    pub batch: usize,
    pub time: usize,
    pub channels: usize,
    pub vocabulary: usize,
    /// Rows of the table of positions; 0 where there is none.
    pub positions: usize,
    /// Rows of the table of token types; 0 where there is none.
    pub types: usize,
    /// Position of each sequence's first token, where there are no position ids: not 0 when decoding from a cache.
    pub first_position: usize,
}

/// Which rows of the tables a place adds up.
#[derive(Clone, Copy)]
pub struct Ids<'a> {
    /// `(B, T)`, each in `0..vocabulary`.
    pub tokens: View<'a, i32>,
    /// `(B, T)`, each in `0..positions`, or any number from 0 on where positions are sinusoidal; `first_position + t`
    /// where there are none.
    pub positions: Option<View<'a, i32>>,
    /// `(B, T)`, each in `0..types`.
    pub types: Option<View<'a, i32>>,
}

impl<'a> Ids<'a> {
    /// Tokens at consecutive positions, without types.
    pub fn of_tokens(tokens: View<'a, i32>) -> Self {
        Self { tokens, positions: None, types: None }
    }
}

/// Where position vectors come from.
#[derive(Clone, Copy)]
pub enum Positions<'a> {
    /// A table `(positions, C)`.
    Learned(View<'a, f32>),
    /// Sines and cosines of the position.
    Sinusoidal,
}

/// Arguments of [`forward`].
pub struct Forward<'a> {
    pub ids: Ids<'a>,
    /// `(V, C)`
    pub token_table: View<'a, f32>,
    pub positions: Option<Positions<'a>>,
    /// `(types, C)`
    pub type_table: Option<View<'a, f32>>,
    /// `(B, T, C)`
    pub output: ViewMut<'a, f32>,
}

/// Arguments of [`backward`].
pub struct Backward<'a> {
    pub ids: Ids<'a>,
    /// `(B, T, C)`
    pub grad_output: View<'a, f32>,
    /// `(V, C)`
    pub grad_token_table: Option<(ViewMut<'a, f32>, Write)>,
    /// `(positions, C)`
    pub grad_position_table: Option<(ViewMut<'a, f32>, Write)>,
    /// `(types, C)`
    pub grad_type_table: Option<(ViewMut<'a, f32>, Write)>,
}

/// Which vectors a pass reads or writes besides those of tokens.
struct Used {
    learned_positions: bool,
    sinusoidal_positions: bool,
    types: bool,
}

/// Ids of a GPU are not read back for a check: its kernels give a row with an id outside its table NaNs.
fn check(device: &Device, shape: &Shape, ids: &Ids<'_>, used: &Used) -> Result<(), Error> {
    let Shape { batch, time, channels, vocabulary, positions, types, first_position } = *shape;
    check_len(NAME, "token ids", ids.tokens.len(), batch * time)?;
    if let Some(ids) = &ids.positions {
        check_len(NAME, "position ids", ids.len(), batch * time)?;
    } else if used.learned_positions && first_position + time > positions {
        return Err(Error::new(NAME, format!("position {} is needed of {positions}", first_position + time - 1)));
    } else if used.sinusoidal_positions && first_position + time > i32::MAX as usize {
        return Err(Error::new(NAME, format!("position {} does not fit 31 bits", first_position + time - 1)));
    }
    if used.sinusoidal_positions && channels > 2 * turn::PAIRS_MAX {
        let what = format!("{channels} channels, but sinusoidal positions have at most {}", 2 * turn::PAIRS_MAX);
        return Err(Error::new(NAME, what));
    }
    match &ids.types {
        Some(ids) => check_len(NAME, "type ids", ids.len(), batch * time)?,
        None if used.types => return Err(Error::new(NAME, "a table of token types needs type ids")),
        None => {}
    }
    if let Device::Gpu(_) = device {
        return Ok(());
    }
    check_ids("token id", &ids.tokens, vocabulary, "vocabulary")?;
    if let Some(ids) = &ids.positions {
        if used.learned_positions {
            check_ids("position id", ids, positions, "table")?;
        } else if used.sinusoidal_positions {
            check_ids("position id", ids, 1 << 31, "range")?;
        }
    }
    match &ids.types {
        Some(ids) if used.types => check_ids("type id", ids, types, "table"),
        _ => Ok(()),
    }
}

/// Fails unless all ids are in `0..count`.
fn check_ids(name: &str, ids: &View<'_, i32>, count: usize, table: &str) -> Result<(), Error> {
    let Some(place) = ids.host().iter().position(|&id| id < 0 || id as usize >= count) else { return Ok(()) };
    let id = ids.host()[place];
    Err(Error::new(NAME, format!("{name} {id} at {place} is outside the {table} of {count}")))
}

/// Looks up and adds.
///
/// # Errors
/// An argument's length does not fit `shape`; an id outside its table; more positions than the table has.
pub fn forward(device: &Device, shape: &Shape, arguments: Forward<'_>) -> Result<(), Error> {
    let used = Used {
        learned_positions: matches!(arguments.positions, Some(Positions::Learned(_))),
        sinusoidal_positions: matches!(arguments.positions, Some(Positions::Sinusoidal)),
        types: arguments.type_table.is_some(),
    };
    check(device, shape, &arguments.ids, &used)?;
    check_len(NAME, "token_table", arguments.token_table.len(), shape.vocabulary * shape.channels)?;
    check_len(NAME, "output", arguments.output.len(), shape.batch * shape.time * shape.channels)?;
    if let Some(Positions::Learned(table)) = &arguments.positions {
        check_len(NAME, "position_table", table.len(), shape.positions * shape.channels)?;
    }
    if let Some(table) = &arguments.type_table {
        check_len(NAME, "type_table", table.len(), shape.types * shape.channels)?;
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
/// An argument's length does not fit `shape`; an id outside its table.
pub fn backward(device: &Device, shape: &Shape, arguments: Backward<'_>) -> Result<(), Error> {
    let used = Used {
        learned_positions: arguments.grad_position_table.is_some(),
        sinusoidal_positions: false,
        types: arguments.grad_type_table.is_some(),
    };
    check(device, shape, &arguments.ids, &used)?;
    check_len(NAME, "grad_output", arguments.grad_output.len(), shape.batch * shape.time * shape.channels)?;
    for (name, grad, rows) in [
        ("grad_token_table", &arguments.grad_token_table, shape.vocabulary),
        ("grad_position_table", &arguments.grad_position_table, shape.positions),
        ("grad_type_table", &arguments.grad_type_table, shape.types),
    ] {
        if let Some((view, _)) = grad {
            check_len(NAME, name, view.len(), rows * shape.channels)?;
        }
    }
    match device {
        Device::Cpu(cpu) => cpu::embedding::backward(cpu, shape, arguments),
        Device::Gpu(gpu) => gpu::embedding::backward(gpu, shape, arguments).map_err(Error::of_device(NAME))?,
    }
    Ok(())
}

/// Embedding in f64, from the formulas: what every backend is measured against.
pub mod reference {
    use super::{SINUSOIDAL_BASE, Shape};

    /// Ids as in [`super::Ids`].
    #[derive(Clone, Copy, Default)]
    pub struct Ids<'a> {
        pub tokens: &'a [i32],
        pub positions: Option<&'a [i32]>,
        pub types: Option<&'a [i32]>,
    }

    impl Ids<'_> {
        fn position(&self, shape: &Shape, place: usize) -> usize {
            self.positions.map_or(shape.first_position + place % shape.time, |ids| ids[place] as usize)
        }
    }

    /// As [`super::Positions`].
    #[derive(Clone, Copy)]
    pub enum Positions<'a> {
        Learned(&'a [f64]),
        Sinusoidal,
    }

    /// What is added up.
    #[derive(Clone, Copy)]
    pub struct Tables<'a> {
        pub tokens: &'a [f64],
        pub positions: Option<Positions<'a>>,
        pub types: Option<&'a [f64]>,
    }

    /// Column `c` of the sinusoidal vector of a position.
    fn sinusoid(shape: &Shape, position: usize, c: usize) -> f64 {
        let exponent = (c / 2 * 2) as f64 / shape.channels as f64;
        let angle = position as f64 / SINUSOIDAL_BASE.powf(exponent);
        if c.is_multiple_of(2) { angle.sin() } else { angle.cos() }
    }

    /// `(B, T, C)`; see [`super::forward`].
    pub fn forward(shape: &Shape, ids: &Ids<'_>, tables: &Tables<'_>) -> Vec<f64> {
        let columns = shape.channels;
        let value = |place: usize, c: usize| {
            let position = ids.position(shape, place);
            let positional = match tables.positions {
                None => 0.0,
                Some(Positions::Learned(table)) => table[position * columns + c],
                Some(Positions::Sinusoidal) => sinusoid(shape, position, c),
            };
            let kind = tables.types.zip(ids.types).map_or(0.0, |(table, ids)| table[ids[place] as usize * columns + c]);
            tables.tokens[ids.tokens[place] as usize * columns + c] + positional + kind
        };
        (0..ids.tokens.len() * columns).map(|i| value(i / columns, i % columns)).collect()
    }

    /// What the backward pass gives: of each table, all zero where it has no rows.
    pub struct Gradients {
        /// `(V, C)`
        pub tokens: Vec<f64>,
        /// `(positions, C)`
        pub positions: Vec<f64>,
        /// `(types, C)`
        pub types: Vec<f64>,
    }

    /// See [`super::backward`].
    pub fn backward(shape: &Shape, ids: &Ids<'_>, grad_output: &[f64]) -> Gradients {
        let c = shape.channels;
        let [tokens, positions, types] =
            [shape.vocabulary, shape.positions, shape.types].map(|rows| vec![0.0; rows * c]);
        let mut gradients = Gradients { tokens, positions, types };
        for (i, grad) in grad_output.iter().enumerate() {
            let place = i / c;
            gradients.tokens[ids.tokens[place] as usize * c + i % c] += grad;
            if shape.positions > 0 {
                gradients.positions[ids.position(shape, place) * c + i % c] += grad;
            }
            if let Some(types) = ids.types.filter(|_| shape.types > 0) {
                gradients.types[types[place] as usize * c + i % c] += grad;
            }
        }
        gradients
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Random, assert_close, assert_gradient, cpu_devices, double, poisoned};
    use super::cases::{Case, Sources, cases};
    use super::*;

    #[test]
    fn reference_gradients_match_finite_differences() {
        let mut random = Random::fresh();
        let shape = Shape { batch: 2, time: 3, channels: 5, vocabulary: 4, positions: 6, types: 2, first_position: 2 };
        for has_position_ids in [false, true] {
            let case = Case::new(&mut random, shape, has_position_ids, Sources::Learned);
            let [tokens, positions, types] = [&case.tokens, &case.positions, &case.types].map(|table| double(table));
            let grad_output = double(&random.normal(30));
            let loss = |tokens: &[f64], positions: &[f64], types: &[f64]| -> f64 {
                let positions = Some(reference::Positions::Learned(positions));
                let tables = reference::Tables { tokens, positions, types: Some(types) };
                let output = reference::forward(&shape, &case.reference_ids(), &tables);
                output.iter().zip(&grad_output).map(|(y, g)| y * g).sum()
            };
            let gradients = reference::backward(&shape, &case.reference_ids(), &grad_output);
            assert_gradient("tokens", |x| loss(x, &positions, &types), &tokens, &gradients.tokens);
            assert_gradient("positions", |x| loss(&tokens, x, &types), &positions, &gradients.positions);
            assert_gradient("types", |x| loss(&tokens, &positions, x), &types, &gradients.types);
        }
    }

    #[test]
    fn forward_matches_reference() {
        for case in cases(&mut Random::fresh()) {
            let expected = case.expected_output();
            for (name, device) in cpu_devices() {
                let mut output = poisoned(expected.len());
                let arguments = Forward {
                    ids: Ids {
                        tokens: (&case.token_ids).into(),
                        positions: case.position_ids.as_ref().map(View::from),
                        types: case.type_ids.as_ref().map(View::from),
                    },
                    token_table: (&case.tokens).into(),
                    positions: match case.sources {
                        Sources::None => None,
                        Sources::Learned => Some(Positions::Learned((&case.positions).into())),
                        Sources::Sinusoidal => Some(Positions::Sinusoidal),
                    },
                    type_table: case.type_ids.as_ref().map(|_| (&case.types).into()),
                    output: (&mut output).into(),
                };
                forward(&device, &case.shape, arguments).unwrap();
                assert_close(&format!("{case}, {name}"), &output, &expected, 1e-6, 0.0);
            }
        }
    }

    #[test]
    fn backward_matches_reference_and_threads_do_not_change_a_bit() {
        let mut random = Random::fresh();
        for case in cases(&mut random) {
            let shape = case.shape;
            let grad_output = random.normal(case.token_ids.len() * shape.channels);
            let before = case.row_counts().map(|rows| random.normal(rows * shape.channels));
            for write in [Write::Set, Write::Add] {
                let expected = case.expected_gradients(&grad_output, write, &before);
                let mut previous: Option<[Vec<f32>; 3]> = None;
                for (name, device) in cpu_devices() {
                    let name = format!("{case}, {write:?}, {name}");
                    let mut gradients = before.each_ref().map(|before| match write {
                        Write::Set => poisoned(before.len()),
                        Write::Add => before.clone(),
                    });
                    let [tokens, positions, types] =
                        gradients.each_mut().map(|gradient| Some((gradient.into(), write)));
                    let arguments = Backward {
                        ids: Ids {
                            tokens: (&case.token_ids).into(),
                            positions: case.position_ids.as_ref().map(View::from),
                            types: case.type_ids.as_ref().map(View::from),
                        },
                        grad_output: (&grad_output).into(),
                        grad_token_table: tokens,
                        grad_position_table: positions.filter(|_| case.sources == Sources::Learned),
                        grad_type_table: types.filter(|_| case.type_ids.is_some()),
                    };
                    backward(&device, &shape, arguments).unwrap();
                    for (i, table) in ["tokens", "positions", "types"].into_iter().enumerate() {
                        assert_close(&format!("{table}, {name}"), &gradients[i], &expected[i], 1e-5, 0.0);
                    }
                    // Additions in one order have the same bits on every level as well.
                    if let Some(previous) = &previous {
                        assert!(*previous == gradients, "{name}: bits differ");
                    }
                    previous = Some(gradients);
                }
            }
        }
    }

    #[test]
    fn sinusoidal_positions_are_accurate_a_hundred_thousand_tokens_in() {
        let channels = 384;
        let positions: Vec<i32> = (0..40).map(|i| 99_961 + i).chain([0, 1, 1_000_000]).collect();
        let shape = Shape { batch: 1, time: positions.len(), channels, vocabulary: 1, ..Shape::default() };
        let (tokens, table) = (vec![0; positions.len()], vec![0.0; channels]);
        let ids = reference::Ids { tokens: &tokens, positions: Some(&positions), types: None };
        let tables = reference::Tables {
            tokens: &double(&table),
            positions: Some(reference::Positions::Sinusoidal),
            types: None,
        };
        let expected = reference::forward(&shape, &ids, &tables);
        for (name, device) in cpu_devices() {
            let mut output = poisoned(expected.len());
            let arguments = Forward {
                ids: Ids { tokens: (&tokens).into(), positions: Some((&positions).into()), types: None },
                token_table: (&table).into(),
                positions: Some(Positions::Sinusoidal),
                type_table: None,
                output: (&mut output).into(),
            };
            forward(&device, &shape, arguments).unwrap();
            assert_close(&name, &output, &expected, 2e-7, 0.0);
        }
    }

    #[test]
    fn ids_and_positions_out_of_range_are_named() {
        let (_, device) = cpu_devices().remove(0);
        let shape = Shape { batch: 1, time: 2, channels: 1, vocabulary: 3, positions: 4, types: 2, first_position: 3 };
        let (tokens, positions, types, mut output) = (vec![0.0; 3], vec![0.0; 4], vec![0.0; 2], vec![0.0; 2]);
        let mut message = |ids: &[i32], positions: Option<Positions<'_>>, position_ids: Option<&[i32]>, type_ids| {
            let type_ids: Option<&[i32]> = type_ids;
            let arguments = Forward {
                ids: Ids {
                    tokens: ids.into(),
                    positions: position_ids.map(View::from),
                    types: type_ids.filter(|ids| !ids.is_empty()).map(View::from),
                },
                token_table: (&tokens).into(),
                positions,
                type_table: type_ids.map(|_| (&types).into()),
                output: (&mut output).into(),
            };
            forward(&device, &shape, arguments).unwrap_err().to_string()
        };
        let learned = Some(Positions::Learned((&positions).into()));
        let sinusoidal = Some(Positions::Sinusoidal);
        assert_eq!(message(&[0, 3], None, None, None), "embedding: token id 3 at 1 is outside the vocabulary of 3");
        assert_eq!(message(&[-1, 0], None, None, None), "embedding: token id -1 at 0 is outside the vocabulary of 3");
        assert_eq!(message(&[0, 0], learned, None, None), "embedding: position 4 is needed of 4");
        let found = message(&[0, 0], learned, Some(&[0, 4]), None);
        assert_eq!(found, "embedding: position id 4 at 1 is outside the table of 4");
        let found = message(&[0, 0], sinusoidal, Some(&[-2, 4]), None);
        assert_eq!(found, "embedding: position id -2 at 0 is outside the range of 2147483648");
        let found = message(&[0, 0], None, None, Some(&[0, 2]));
        assert_eq!(found, "embedding: type id 2 at 1 is outside the table of 2");
        let found = message(&[0, 0], None, None, Some(&[]));
        assert_eq!(found, "embedding: a table of token types needs type ids");
    }
}
