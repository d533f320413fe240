//! Numbers against numbers: how far off, and how well in step.
//!
//! With predictions `p` and targets `t`, and means written `p̄`, `t̄`:
//!
//! ```text
//! mean squared error    Σ (p - t)² / n
//! mean absolute error   Σ |p - t| / n
//! Pearson               Σ (p - p̄)(t - t̄) / √(Σ (p - p̄)² · Σ (t - t̄)²)
//! Spearman              Pearson of the ranks; those that tie share the mean of their ranks
//! R²                    1 - Σ (p - t)² / Σ (t - t̄)²
//! ```
//!
//! Figures that are not defined are NaN: all of them for no examples, the last three for one, correlations where one
//! side is constant, and whatever is not finite leads to. R² of constant targets is 1 if all are met and 0 otherwise.
//!
//! # Source
//! As scikit-learn (`mean_squared_error`, `mean_absolute_error`, `r2_score`) and scipy (`pearsonr`, `spearmanr`)
//! compute them. STS-B and other similarity tasks of GLUE report Pearson and Spearman.

use super::{Error, check_lengths};
use serde::Serialize;

/// All figures of one set of predictions.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Report {
    pub examples: u64,
    pub mean_squared_error: f64,
    pub mean_absolute_error: f64,
    pub pearson: f64,
    pub spearman: f64,
    pub r_squared: f64,
}

impl Report {
    /// Judges predictions by their targets.
    ///
    /// # Errors
    /// The lengths differ.
    pub fn new(predictions: &[f64], targets: &[f64]) -> Result<Self, Error> {
        Ok(Self {
            mean_squared_error: mean_squared_error(predictions, targets)?,
            mean_absolute_error: mean_absolute_error(predictions, targets)?,
            pearson: pearson(predictions, targets)?,
            spearman: spearman(predictions, targets)?,
            r_squared: r_squared(predictions, targets)?,
            examples: targets.len() as u64,
        })
    }
}

/// `Σ (p - t)² / n`; NaN for no examples.
///
/// # Errors
/// The lengths differ.
pub fn mean_squared_error(predictions: &[f64], targets: &[f64]) -> Result<f64, Error> {
    check_lengths(predictions.len(), "targets", targets.len())?;
    Ok(mean(&pairwise(predictions, targets, |p, t| (p - t) * (p - t))))
}

/// `Σ |p - t| / n`; NaN for no examples.
///
/// # Errors
/// The lengths differ.
pub fn mean_absolute_error(predictions: &[f64], targets: &[f64]) -> Result<f64, Error> {
    check_lengths(predictions.len(), "targets", targets.len())?;
    Ok(mean(&pairwise(predictions, targets, |p, t| (p - t).abs())))
}

/// The linear correlation, from -1 to 1; NaN where a side does not vary.
///
/// # Errors
/// The lengths differ.
pub fn pearson(predictions: &[f64], targets: &[f64]) -> Result<f64, Error> {
    check_lengths(predictions.len(), "targets", targets.len())?;
    let (Some(predictions), Some(targets)) = (direction(predictions), direction(targets)) else {
        return Ok(f64::NAN);
    };
    Ok(pairwise(&predictions, &targets, |p, t| p * t).iter().sum::<f64>().clamp(-1.0, 1.0))
}

/// The correlation of the ranks, from -1 to 1; NaN where a side does not vary, or has a NaN, which has no rank.
///
/// # Errors
/// The lengths differ.
pub fn spearman(predictions: &[f64], targets: &[f64]) -> Result<f64, Error> {
    check_lengths(predictions.len(), "targets", targets.len())?;
    if predictions.iter().chain(targets).any(|value| value.is_nan()) {
        return Ok(f64::NAN);
    }
    pearson(&ranks(predictions), &ranks(targets))
}

/// The share of the targets' variance that the predictions explain: at most 1, negative where the targets' mean would
/// have been a better prediction; NaN for fewer than two examples.
///
/// # Errors
/// The lengths differ.
pub fn r_squared(predictions: &[f64], targets: &[f64]) -> Result<f64, Error> {
    check_lengths(predictions.len(), "targets", targets.len())?;
    if targets.len() < 2 {
        return Ok(f64::NAN);
    }
    let centre = mean(targets);
    let missed: f64 = pairwise(predictions, targets, |p, t| (p - t) * (p - t)).iter().sum();
    let variation: f64 = targets.iter().map(|t| (t - centre) * (t - centre)).sum();
    Ok(match (missed == 0.0, variation == 0.0) {
        (true, _) => 1.0,
        (false, true) => 0.0,
        (false, false) => 1.0 - missed / variation,
    })
}

fn pairwise(predictions: &[f64], targets: &[f64], of: impl Fn(f64, f64) -> f64) -> Vec<f64> {
    predictions.iter().zip(targets).map(|(&prediction, &target)| of(prediction, target)).collect()
}

fn mean(values: &[f64]) -> f64 {
    if values.is_empty() { f64::NAN } else { values.iter().sum::<f64>() / values.len() as f64 }
}

/// Deviations from the mean, scaled to a vector of length 1; none where they are all 0, or not finite.
fn direction(values: &[f64]) -> Option<Vec<f64>> {
    // By comparison, as the mean of equal values can be off by a rounding, which would then be all there is.
    if values.iter().all(|value| *value == values[0]) {
        return None;
    }
    let centre = mean(values);
    let deviations: Vec<f64> = values.iter().map(|value| value - centre).collect();
    // Divided by the largest first: squares of 1e200 and of 1e-200 are not numbers that f64 has.
    let largest = deviations.iter().fold(0.0_f64, |largest, deviation| largest.max(deviation.abs()));
    let scaled: Vec<f64> = deviations.iter().map(|deviation| deviation / largest).collect();
    let length = scaled.iter().map(|deviation| deviation * deviation).sum::<f64>().sqrt();
    length.is_finite().then(|| scaled.iter().map(|deviation| deviation / length).collect())
}

/// Ranks from 1, the mean of their ranks for those that tie; 0 and -0 tie.
fn ranks(values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&a, &b| values[a].total_cmp(&values[b]));
    let mut ranks = vec![0.0; values.len()];
    let mut below = 0;
    for tied in order.chunk_by(|&a, &b| values[a] == values[b]) {
        let rank = below as f64 + (tied.len() as f64 + 1.0) / 2.0;
        tied.iter().for_each(|&position| ranks[position] = rank);
        below += tied.len();
    }
    ranks
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::score::goldens;

    #[derive(serde::Deserialize)]
    struct Golden {
        name: String,
        predictions: Vec<f64>,
        targets: Vec<f64>,
        mean_squared_error: Option<f64>,
        mean_absolute_error: Option<f64>,
        pearson: Option<f64>,
        spearman: Option<f64>,
        r_squared: Option<f64>,
    }

    #[test]
    fn figures_are_those_of_scikit_learn_and_scipy() {
        let cases: Vec<Golden> = goldens::load("regression.json");
        assert!(cases.len() >= 15);
        for golden in cases {
            let report = Report::new(&golden.predictions, &golden.targets).unwrap();
            let check = |figure: f64, expected: Option<f64>, what: &str| {
                let what = format!("{}: {what}", golden.name);
                match expected {
                    Some(expected) => goldens::assert_close(figure, expected, 1e-12, &what),
                    None => assert!(!figure.is_finite(), "{what}: {figure} is undefined in the golden"),
                }
            };
            check(report.mean_squared_error, golden.mean_squared_error, "mean squared error");
            check(report.mean_absolute_error, golden.mean_absolute_error, "mean absolute error");
            check(report.pearson, golden.pearson, "Pearson");
            check(report.spearman, golden.spearman, "Spearman");
            check(report.r_squared, golden.r_squared, "R²");
        }
    }

    #[test]
    fn ties_share_the_mean_of_their_ranks() {
        assert_eq!(ranks(&[3.0, 1.0, 3.0, -0.0, 3.0, 0.0]), [5.0, 3.0, 5.0, 1.5, 5.0, 1.5]);
    }

    #[test]
    fn nothing_and_what_is_not_finite_give_no_figures_but_no_panic() {
        let report = Report::new(&[], &[]).unwrap();
        let figures = |report: Report| {
            [report.mean_squared_error, report.mean_absolute_error, report.pearson, report.spearman, report.r_squared]
        };
        assert!(figures(report).iter().all(|figure| figure.is_nan()));
        for odd in [f64::NAN, f64::INFINITY, f64::MAX] {
            let report = Report::new(&[1.0, odd, -odd], &[1.0, 2.0, 3.0]).unwrap();
            assert!(!report.mean_squared_error.is_finite(), "{odd}");
        }
        let report = Report::new(&[1.0, f64::NAN, 2.0], &[1.0, 2.0, 3.0]).unwrap();
        assert!(figures(report).iter().all(|figure| figure.is_nan()), "{report:?}");
    }

    #[test]
    fn lengths_that_differ_are_refused() {
        let error = Report::new(&[1.0], &[1.0, 2.0]).unwrap_err();
        assert_eq!(error, Error::Lengths { predictions: 1, what: "targets", expected: 2 });
        assert_eq!(error.to_string(), "1 predictions for 2 targets; there must be one for each");
        assert!(pearson(&[], &[1.0]).is_err() && spearman(&[], &[1.0]).is_err() && r_squared(&[], &[1.0]).is_err());
    }
}
