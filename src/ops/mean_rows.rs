//! Means of ranges of rows: how token vectors become sentence vectors, and, with ranges of one row, how the vectors of
//! masked tokens or of the first tokens are picked.
//!
//! ```text
//! y[m] = 1 / (end - first) · Σ_{first ≤ n < end} x[n],  (first, end) = ranges[m];  0 where the range is empty
//! ```
//!
//! Ranges that are not empty come in order and do not overlap, so that each row of the gradient has one source.

pub(crate) mod cases;

use super::{Device, Error, View, ViewMut, Write, check_len};
use crate::{cpu, gpu};

const NAME: &str = "mean_rows";

/// Sizes of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// `N`: rows of the input.
    pub rows: usize,
    /// `C`
    pub channels: usize,
    /// `M`: ranges, and rows of the output.
    pub ranges: usize,
}

/// Arguments of [`forward`].
pub struct Forward<'a> {
    /// `(N, C)`
    pub input: View<'a, f32>,
    /// `(M, 2)`: first row, and the row behind the last; see the module.
    pub ranges: View<'a, i32>,
    /// `(M, C)`
    pub output: ViewMut<'a, f32>,
}

/// Arguments of [`backward`].
pub struct Backward<'a> {
    /// `(M, 2)`
    pub ranges: View<'a, i32>,
    /// `(M, C)`
    pub grad_output: View<'a, f32>,
    /// `(N, C)`; rows in no range get zero, or are left alone where it is added to.
    pub grad_input: (ViewMut<'a, f32>, Write),
}

/// Takes the mean of each range.
///
/// # Errors
/// An argument's length does not fit `shape`. On the CPU: a range that is not inside, ends before it begins, or begins
/// before the end of one in front of it. Ranges of a GPU are not read back: there, one that is not inside counts as empty,
/// and ranges must not overlap.
pub fn forward(device: &Device, shape: &Shape, arguments: Forward<'_>) -> Result<(), Error> {
    check_len(NAME, "input", arguments.input.len(), shape.rows * shape.channels)?;
    check_len(NAME, "output", arguments.output.len(), shape.ranges * shape.channels)?;
    check_ranges(device, shape, &arguments.ranges)?;
    match device {
        Device::Cpu(cpu) => cpu::mean_rows::forward(cpu, shape, arguments),
        Device::Gpu(gpu) => gpu::mean_rows::forward(gpu, shape, arguments).map_err(Error::of_device(NAME))?,
    }
    Ok(())
}

/// Gives each row its share of its range's gradient.
///
/// # Errors
/// As [`forward`].
pub fn backward(device: &Device, shape: &Shape, arguments: Backward<'_>) -> Result<(), Error> {
    check_len(NAME, "grad_output", arguments.grad_output.len(), shape.ranges * shape.channels)?;
    check_len(NAME, "grad_input", arguments.grad_input.0.len(), shape.rows * shape.channels)?;
    check_ranges(device, shape, &arguments.ranges)?;
    match device {
        Device::Cpu(cpu) => cpu::mean_rows::backward(cpu, shape, arguments),
        Device::Gpu(gpu) => gpu::mean_rows::backward(gpu, shape, arguments).map_err(Error::of_device(NAME))?,
    }
    Ok(())
}

fn check_ranges(device: &Device, shape: &Shape, ranges: &View<'_, i32>) -> Result<(), Error> {
    check_len(NAME, "ranges", ranges.len(), 2 * shape.ranges)?;
    if let Device::Gpu(_) = device {
        return Ok(());
    }
    let mut free = 0;
    for (index, range) in ranges.host().chunks_exact(2).enumerate() {
        let (first, end) = (i64::from(range[0]), i64::from(range[1]));
        if first == end {
            continue;
        }
        if first < free || end < first || end > shape.rows as i64 {
            let rows = shape.rows;
            let what = format!(
                "range {index} is rows {first}..{end}: ranges must lie inside 0..{rows}, in order, and not overlap"
            );
            return Err(Error::new(NAME, what));
        }
        free = end;
    }
    Ok(())
}

/// Means of rows in f64, from the formula: what every backend is measured against.
pub mod reference {
    use super::Shape;

    /// `(M, C)`; see [`super::forward`].
    pub fn forward(shape: &Shape, input: &[f64], ranges: &[i32]) -> Vec<f64> {
        let mean = |range: &[i32], c: usize| {
            let rows = (range[0]..range[1]).map(|row| row as usize);
            let count = rows.len().max(1) as f64;
            rows.map(|row| input[row * shape.channels + c]).sum::<f64>() / count
        };
        ranges.chunks_exact(2).flat_map(|range| (0..shape.channels).map(move |c| mean(range, c))).collect()
    }

    /// `(N, C)`; see [`super::backward`].
    pub fn backward(shape: &Shape, ranges: &[i32], grad_output: &[f64]) -> Vec<f64> {
        let mut gradient = vec![0.0; shape.rows * shape.channels];
        for (m, range) in ranges.chunks_exact(2).enumerate() {
            for row in range[0]..range[1] {
                for c in 0..shape.channels {
                    gradient[row as usize * shape.channels + c] +=
                        grad_output[m * shape.channels + c] / f64::from(range[1] - range[0]);
                }
            }
        }
        gradient
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Random, assert_close, assert_gradient, cpu_devices, double, poisoned};
    use super::cases::cases;
    use super::*;

    #[test]
    fn reference_gradients_match_finite_differences() {
        let mut random = Random::fresh();
        let shape = Shape { rows: 6, channels: 3, ranges: 4 };
        let ranges = [0, 2, 0, 0, 3, 6, 6, 6];
        let (input, grad_output) = (double(&random.normal(18)), double(&random.normal(12)));
        let loss = |input: &[f64]| -> f64 {
            reference::forward(&shape, input, &ranges).iter().zip(&grad_output).map(|(y, g)| y * g).sum()
        };
        assert_gradient("input", loss, &input, &reference::backward(&shape, &ranges, &grad_output));
    }

    #[test]
    fn both_passes_match_reference_and_threads_do_not_change_a_bit() {
        let mut random = Random::fresh();
        for (shape, ranges) in cases(&mut random) {
            let input = random.normal(shape.rows * shape.channels);
            let grad_output = random.normal(shape.ranges * shape.channels);
            let before = random.normal(input.len());
            let expected = reference::forward(&shape, &double(&input), &ranges);
            let gradient = reference::backward(&shape, &ranges, &double(&grad_output));
            let mut previous: Option<[Vec<f32>; 3]> = None;
            for (index, (name, device)) in cpu_devices().into_iter().enumerate() {
                let name = format!("{shape:?}, {name}");
                let mut output = poisoned(expected.len());
                let arguments =
                    Forward { input: (&input).into(), ranges: (&ranges).into(), output: (&mut output).into() };
                forward(&device, &shape, arguments).unwrap();
                assert_close(&format!("forward, {name}"), &output, &expected, 1e-6, 0.0);

                let run = |mut grad_input: Vec<f32>, write: Write| {
                    let arguments = Backward {
                        ranges: (&ranges).into(),
                        grad_output: (&grad_output).into(),
                        grad_input: ((&mut grad_input).into(), write),
                    };
                    backward(&device, &shape, arguments).unwrap();
                    grad_input
                };
                let (set, added) = (run(poisoned(input.len()), Write::Set), run(before.clone(), Write::Add));
                let sum: Vec<f64> = gradient.iter().zip(&before).map(|(g, &b)| g + f64::from(b)).collect();
                assert_close(&format!("set, {name}"), &set, &gradient, 1e-6, 0.0);
                assert_close(&format!("added, {name}"), &added, &sum, 1e-6, 0.0);

                // Devices come in pairs, with one and with three threads.
                let found = [output, set, added];
                if let Some(previous) = previous.filter(|_| index % 2 == 1) {
                    assert!(previous == found, "{name}: bits differ");
                }
                previous = Some(found);
            }
        }
    }

    #[test]
    fn a_range_of_one_row_is_a_copy_of_it() {
        let input = Random::fresh().normal(5 * 7);
        let shape = Shape { rows: 5, channels: 7, ranges: 2 };
        for (name, device) in cpu_devices() {
            let mut output = poisoned(14);
            let arguments =
                Forward { input: (&input).into(), ranges: [1, 2, 4, 5][..].into(), output: (&mut output).into() };
            forward(&device, &shape, arguments).unwrap();
            assert!(output[..7] == input[7..14] && output[7..] == input[28..], "{name}");
        }
    }

    #[test]
    fn ranges_that_overlap_or_lie_outside_are_named() {
        let (_, device) = cpu_devices().remove(0);
        let shape = Shape { rows: 4, channels: 1, ranges: 2 };
        for (ranges, named) in [
            ([0, 2, 1, 3], "range 1 is rows 1..3"),
            ([2, 4, 0, 1], "range 1 is rows 0..1"),
            ([-1, 1, 2, 3], "range 0 is rows -1..1"),
            ([0, 1, 3, 5], "range 1 is rows 3..5"),
            ([2, 1, 3, 4], "range 0 is rows 2..1"),
        ] {
            let mut gradient = vec![0.0; 4];
            let arguments = Backward {
                ranges: ranges[..].into(),
                grad_output: [0.0; 2][..].into(),
                grad_input: ((&mut gradient).into(), Write::Set),
            };
            let message = backward(&device, &shape, arguments).unwrap_err().to_string();
            let rule = "ranges must lie inside 0..4, in order, and not overlap";
            assert_eq!(message, format!("mean_rows: {named}: {rule}"));
        }
    }
}
