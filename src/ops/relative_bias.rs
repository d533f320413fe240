//! Tables of relative-position biases, as attention adds them: one number for each head and each distance of key and
//! query, `(H, 2·radius - 1)`, in which the distance 0 stands in the middle and keys behind the query to the right.
//!
//! Two kinds. *Buckets* (Raffel et al. 2020, T5): distances fall into buckets, each of its own up to half of them, the
//! rest in logarithmic steps up to a largest distance, and a learned parameter has a bias for each bucket and head.
//! *ALiBi* (Press et al. 2022): `-slope·|distance|`, with a slope for each head and nothing to learn.
//!
//! The table has no more than one number for each distance, so a bucket is a run of neighbouring columns: [`buckets`].
//! Filling the table is writing runs, the gradient is their sums, and no device needs a logarithm.

use super::{Device, Error, View, ViewMut, Write, check_len};
use crate::{cpu, gpu};
use std::ops::Range;

const NAME: &str = "relative_bias";

/// What a bias is made from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The buckets of T5, exactly as its implementation in `transformers` has them.
    Buckets {
        /// How many, at least two for each direction.
        buckets: usize,
        /// Distances from this on share the last bucket of their direction; more than half of the buckets of one.
        max_distance: usize,
        /// Keys behind the query have half of the buckets. Otherwise they share the bucket of distance 0.
        bidirectional: bool,
    },
    /// `-slope·|distance|`, with the slopes `2^(-8k/n)` for `k = 1 ..= n` where the number of heads `n` is a power of
    /// two; else those of the next smaller power, and then every other slope of twice that.
    Alibi,
}

/// Sizes of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    pub kind: Kind,
    /// `H`
    pub heads: usize,
    /// One more than the largest distance.
    pub radius: usize,
}

impl Shape {
    /// Columns of the table: `2·radius - 1`.
    pub fn columns(&self) -> usize {
        2 * self.radius - 1
    }
}

/// Arguments of [`forward`].
pub struct Forward<'a> {
    /// `(buckets, H)`; none for ALiBi.
    pub weight: Option<View<'a, f32>>,
    /// `(H, 2·radius - 1)`
    pub table: ViewMut<'a, f32>,
}

/// Arguments of [`backward`].
pub struct Backward<'a> {
    /// `(H, 2·radius - 1)`
    pub grad_table: View<'a, f32>,
    /// `(buckets, H)`
    pub grad_weight: ViewMut<'a, f32>,
    pub write: Write,
}

/// Fails where a kind and its sizes make no table.
///
/// # Errors
/// What is wrong with which number.
pub fn check(shape: &Shape) -> Result<(), Error> {
    let Shape { kind, heads, radius } = *shape;
    if heads == 0 || radius == 0 {
        return Err(Error::new(NAME, format!("{heads} heads and a radius of {radius}: both must be at least 1")));
    }
    let Kind::Buckets { buckets, max_distance, bidirectional } = kind else { return Ok(()) };
    let directions = if bidirectional { 2 } else { 1 };
    if buckets < 2 * directions || !buckets.is_multiple_of(directions) {
        let what = format!("{buckets} buckets for {directions} directions: each needs the same number, at least two");
        return Err(Error::new(NAME, what));
    }
    let exact = buckets / directions / 2;
    if max_distance <= exact {
        let what = format!("a largest distance of {max_distance}, but {exact} distances have buckets of their own");
        return Err(Error::new(NAME, what));
    }
    Ok(())
}

/// The bucket of a distance in one direction, of `count` buckets. In f32 as `transformers` computes it, because that is
/// what decides where a step lies.
fn bucket(distance: usize, count: usize, max_distance: usize) -> usize {
    let exact = count / 2;
    if distance < exact {
        return distance;
    }
    let range = (max_distance as f64 / exact as f64).ln() as f32;
    let step = (distance as f32 / exact as f32).ln() / range * (count - exact) as f32;
    count.min(exact.saturating_add(step as usize) + 1) - 1
}

/// The columns of the table that belong to each bucket: runs that may be empty and together are the whole table.
/// Empty for ALiBi.
pub fn buckets(shape: &Shape) -> Vec<Range<usize>> {
    let Kind::Buckets { buckets, max_distance, bidirectional } = shape.kind else { return Vec::new() };
    let Shape { radius, .. } = *shape;
    let count = if bidirectional { buckets / 2 } else { buckets };
    // The first distance of each bucket, and of one more. Buckets do not fall as distances rise.
    let starts: Vec<usize> = (0..=count)
        .map(|wanted| {
            let (mut low, mut high) = (if wanted < count { 0 } else { radius }, radius);
            while low < high {
                let middle = low + (high - low) / 2;
                if bucket(middle, count, max_distance) < wanted { low = middle + 1 } else { high = middle }
            }
            low
        })
        .collect();
    let before = starts.windows(2).map(|pair| radius - pair[1]..radius - pair[0]);
    if !bidirectional {
        let mut ranges: Vec<Range<usize>> = before.collect();
        ranges[0].end = 2 * radius - 1;
        return ranges;
    }
    // Distance 0 counts as before the query.
    let behind = starts.windows(2).map(|pair| radius - 1 + pair[0].max(1)..radius - 1 + pair[1].max(1));
    before.chain(behind).collect()
}

/// The slope of a head of `heads`, for ALiBi.
pub fn slope(head: usize, heads: usize) -> f64 {
    let power = 1 << heads.ilog2();
    let exponent = if head < power {
        8.0 * (head + 1) as f64 / power as f64
    } else {
        4.0 * (2 * (head - power) + 1) as f64 / power as f64
    };
    (-exponent).exp2()
}

/// Fills the table.
///
/// # Errors
/// A kind and sizes that make no table, a weight that is missing or too much, or a length that does not fit.
pub fn forward(device: &Device, shape: &Shape, arguments: Forward<'_>) -> Result<(), Error> {
    check(shape)?;
    check_len(NAME, "table", arguments.table.len(), shape.heads * shape.columns())?;
    match (shape.kind, &arguments.weight) {
        (Kind::Buckets { buckets, .. }, Some(weight)) => {
            check_len(NAME, "weight", weight.len(), buckets * shape.heads)?;
        }
        (Kind::Alibi, None) => {}
        (Kind::Buckets { .. }, None) => return Err(Error::new(NAME, "buckets need a weight")),
        (Kind::Alibi, Some(_)) => return Err(Error::new(NAME, "ALiBi has no weight")),
    }
    match device {
        Device::Cpu(cpu) => cpu::relative_bias::forward(cpu, shape, arguments),
        Device::Gpu(gpu) => gpu::relative_bias::forward(gpu, shape, arguments).map_err(Error::of_device(NAME))?,
    }
    Ok(())
}

/// Computes the gradient of the weight: for each bucket and head the sum over the bucket's distances.
///
/// # Errors
/// As [`forward`]; ALiBi, which has no weight.
pub fn backward(device: &Device, shape: &Shape, arguments: Backward<'_>) -> Result<(), Error> {
    check(shape)?;
    let Kind::Buckets { buckets, .. } = shape.kind else { return Err(Error::new(NAME, "ALiBi has no gradient")) };
    check_len(NAME, "grad_table", arguments.grad_table.len(), shape.heads * shape.columns())?;
    check_len(NAME, "grad_weight", arguments.grad_weight.len(), buckets * shape.heads)?;
    match device {
        Device::Cpu(cpu) => cpu::relative_bias::backward(cpu, shape, arguments),
        Device::Gpu(gpu) => gpu::relative_bias::backward(gpu, shape, arguments).map_err(Error::of_device(NAME))?,
    }
    Ok(())
}

/// What the operation means, one distance at a time in f64.
pub mod reference {
    use super::{Kind, Shape};

    /// The bucket of `position`, which is the key's less the query's.
    pub fn bucket_of(kind: Kind, position: i64) -> usize {
        let Kind::Buckets { buckets, max_distance, bidirectional } = kind else { return 0 };
        let mut first = 0;
        let mut count = buckets;
        let distance = if bidirectional {
            count /= 2;
            first = if position > 0 { count } else { 0 };
            position.abs()
        } else {
            (-position).max(0)
        } as usize;
        first + super::bucket(distance, count, max_distance)
    }

    /// The table.
    pub fn forward(shape: &Shape, weight: &[f64]) -> Vec<f64> {
        let mut table = Vec::new();
        for head in 0..shape.heads {
            for column in 0..shape.columns() {
                let position = column as i64 - (shape.radius as i64 - 1);
                table.push(match shape.kind {
                    Kind::Buckets { .. } => weight[bucket_of(shape.kind, position) * shape.heads + head],
                    Kind::Alibi => -super::slope(head, shape.heads) * position.abs() as f64,
                });
            }
        }
        table
    }

    /// The gradient of the weight.
    pub fn backward(shape: &Shape, grad_table: &[f64]) -> Vec<f64> {
        let Kind::Buckets { buckets, .. } = shape.kind else { return Vec::new() };
        let mut grad = vec![0.0; buckets * shape.heads];
        for (index, value) in grad_table.iter().enumerate() {
            let (head, column) = (index / shape.columns(), index % shape.columns());
            let position = column as i64 - (shape.radius as i64 - 1);
            grad[bucket_of(shape.kind, position) * shape.heads + head] += value;
        }
        grad
    }
}

/// What every backend tries.
pub(crate) fn cases() -> Vec<Shape> {
    let kinds = [
        Kind::Buckets { buckets: 32, max_distance: 128, bidirectional: true },
        Kind::Buckets { buckets: 32, max_distance: 128, bidirectional: false },
        Kind::Buckets { buckets: 4, max_distance: 2, bidirectional: true },
        Kind::Buckets { buckets: 5, max_distance: 20, bidirectional: false },
        Kind::Alibi,
    ];
    let sizes = [(1, 1), (2, 3), (3, 17), (12, 113), (5, 203), (8, 600)];
    kinds.into_iter().flat_map(|kind| sizes.map(|(heads, radius)| Shape { kind, heads, radius })).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{Random, assert_close, assert_gradient, cpu_devices, double, poisoned};

    #[test]
    fn reference_gradient_matches_finite_differences() {
        let mut random = Random::fresh();
        for shape in cases().into_iter().filter(|shape| shape.kind != Kind::Alibi && shape.radius < 200) {
            let Kind::Buckets { buckets, .. } = shape.kind else { unreachable!() };
            let weight = double(&random.normal(buckets * shape.heads));
            let factors = double(&random.normal(shape.heads * shape.columns()));
            let loss = |weight: &[f64]| -> f64 {
                reference::forward(&shape, weight).iter().zip(&factors).map(|(value, factor)| value * factor).sum()
            };
            let gradient = reference::backward(&shape, &factors);
            assert_gradient(&format!("{shape:?}"), loss, &weight, &gradient);
        }
    }

    #[test]
    fn both_directions_match_the_reference() {
        let mut random = Random::fresh();
        for shape in cases() {
            let has_weight = shape.kind != Kind::Alibi;
            let weights = if let Kind::Buckets { buckets, .. } = shape.kind { buckets * shape.heads } else { 0 };
            let weight = random.normal(weights);
            let grad_table = random.normal(shape.heads * shape.columns());
            let before = random.normal(weights);
            let expected = reference::forward(&shape, &double(&weight));
            let expected_grad = reference::backward(&shape, &double(&grad_table));
            for (name, device) in cpu_devices() {
                let name = format!("{name}: {shape:?}");
                let mut table = poisoned(grad_table.len());
                let arguments = Forward { weight: has_weight.then(|| (&weight).into()), table: (&mut table).into() };
                forward(&device, &shape, arguments).unwrap();
                assert_close(&name, &table, &expected, 1e-7, 0.0);
                for write in [Write::Set, Write::Add] {
                    if !has_weight {
                        continue;
                    }
                    let mut grad = if write == Write::Set { poisoned(weights) } else { before.clone() };
                    let arguments =
                        Backward { grad_table: (&grad_table).into(), grad_weight: (&mut grad).into(), write };
                    backward(&device, &shape, arguments).unwrap();
                    let mut expected = expected_grad.clone();
                    if write == Write::Add {
                        expected.iter_mut().zip(&before).for_each(|(sum, &value)| *sum += f64::from(value));
                    }
                    assert_close(&name, &grad, &expected, 1e-5, 0.0);
                }
            }
        }
    }

    #[test]
    fn buckets_cover_every_distance_once_as_the_reference_has_them() {
        for shape in cases() {
            let ranges = buckets(&shape);
            for column in 0..shape.columns() {
                let position = column as i64 - (shape.radius as i64 - 1);
                let found: Vec<usize> = (0..ranges.len()).filter(|&b| ranges[b].contains(&column)).collect();
                if shape.kind != Kind::Alibi {
                    assert_eq!(found, [reference::bucket_of(shape.kind, position)], "{position} of {shape:?}");
                }
            }
        }
    }

    /// Buckets of one direction, the largest distance, and where the buckets begin that transformers 5.23 makes of them
    /// (`T5Attention._relative_position_bucket`).
    const TRANSFORMERS: &[(usize, usize, &[usize])] = &[
        (16, 128, &[0, 1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 23, 32, 46, 64, 91]),
        (
            32,
            128,
            &[
                0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 19, 21, 24, 27, 31, 35, 40, 46, 52, 59, 67,
                77, 87, 99, 113,
            ],
        ),
        (5, 20, &[0, 1, 2, 5, 10]),
        (2, 128, &[0, 1]),
        (8, 64, &[0, 1, 2, 3, 4, 8, 16, 32]),
        (16, 800, &[0, 1, 2, 3, 4, 5, 6, 7, 8, 15, 26, 45, 80, 143, 253, 450]),
        (
            32,
            4096,
            &[
                0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 23, 32, 46, 64, 91, 128, 182, 256, 363, 512,
                725, 1024, 1449, 2048, 2897,
            ],
        ),
        (10, 77, &[0, 1, 2, 3, 4, 5, 9, 15, 26, 45]),
        (12, 1024, &[0, 1, 2, 3, 4, 5, 6, 15, 34, 79, 185, 435]),
    ];

    #[test]
    fn buckets_begin_where_those_of_transformers_do() {
        for &(count, max_distance, expected) in TRANSFORMERS {
            let starts: Vec<usize> = (0..count)
                .map(|wanted| (0..=max_distance).find(|&d| bucket(d, count, max_distance) >= wanted).unwrap())
                .collect();
            assert_eq!(starts, expected, "{count} buckets up to {max_distance}");
        }
    }

    #[test]
    fn slopes_are_those_of_the_paper() {
        let slopes = |heads| (0..heads).map(|head| slope(head, heads)).collect::<Vec<_>>();
        assert_eq!(slopes(8), [0.5, 0.25, 0.125, 0.0625, 0.03125, 0.015625, 0.0078125, 0.00390625]);
        assert_eq!(slopes(1), [1.0 / 256.0]);
        // Three heads: those of two, then the first of four.
        assert_eq!(slopes(3), [1.0 / 16.0, 1.0 / 256.0, 0.25]);
        assert!((slopes(12)[8] - 0.5f64.sqrt()).abs() < 1e-15 && (slopes(12)[9] - 0.5f64.powf(1.5)).abs() < 1e-15);
    }

    #[test]
    fn kinds_that_make_no_table_are_refused_with_the_number() {
        let refused = |buckets, max_distance, bidirectional| {
            let kind = Kind::Buckets { buckets, max_distance, bidirectional };
            check(&Shape { kind, heads: 2, radius: 4 }).unwrap_err().to_string()
        };
        assert!(refused(3, 128, true).contains("3 buckets for 2 directions"));
        assert!(refused(1, 128, false).contains("1 buckets for 1 directions"));
        assert!(refused(32, 8, true).contains("largest distance of 8, but 8 distances"));
        assert!(check(&Shape { kind: Kind::Alibi, heads: 2, radius: 0 }).is_err());
    }
}
