//! Warns of spikes: how many standard deviations a value lies above the mean of those before it.
//!
//! The window slides over the last 128 values and takes outliers in too, so a lasting change of level stops being news
//! after a while. Mean and deviation are computed from the window each time: nothing drifts, and the state to save
//! is the window itself.

use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::fmt;

/// Values that are remembered.
const WINDOW: usize = 128;
/// Values that have to be known before any is called an outlier.
const LEAST: usize = 32;

/// Watches one quantity. Serialises exactly (as bits, since decimal JSON numbers need not read back exactly), so that
/// a resumed run warns where an uninterrupted one would.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(from = "State", into = "State")]
pub struct Detector {
    /// What is watched, as a warning names it.
    name: String,
    /// Deviations above the mean that make an outlier; 0 for none ever.
    threshold: f64,
    window: VecDeque<f64>,
}

#[derive(Serialize, Deserialize)]
struct State {
    name: String,
    threshold_bits: u64,
    window_bits: Vec<u64>,
}

impl From<Detector> for State {
    fn from(detector: Detector) -> Self {
        Self {
            name: detector.name,
            threshold_bits: detector.threshold.to_bits(),
            window_bits: detector.window.iter().map(|value| value.to_bits()).collect(),
        }
    }
}

impl From<State> for Detector {
    fn from(state: State) -> Self {
        let start = state.window_bits.len().saturating_sub(WINDOW);
        Self {
            name: state.name,
            threshold: f64::from_bits(state.threshold_bits),
            window: state.window_bits[start..].iter().map(|&bits| f64::from_bits(bits)).collect(),
        }
    }
}

/// A value far above those before it.
#[derive(Clone, Debug, PartialEq)]
pub struct Outlier {
    /// What was watched.
    pub name: String,
    pub value: f64,
    /// Mean of the values before.
    pub mean: f64,
    /// Standard deviations above the mean.
    pub z: f64,
}

impl fmt::Display for Outlier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, value, mean, z } = self;
        write!(f, "{name} {value:.4} is {z:.1} standard deviations above its recent mean of {mean:.4}")
    }
}

impl Detector {
    /// Watches `name`; warns above `threshold` standard deviations, or never where it is 0.
    pub fn new(name: impl Into<String>, threshold: f64) -> Self {
        Self { name: name.into(), threshold, window: VecDeque::with_capacity(WINDOW) }
    }

    /// Changes the threshold, for a run that goes on with another configuration.
    pub fn set_threshold(&mut self, threshold: f64) {
        self.threshold = threshold;
    }

    /// Compares `value` with those before, then remembers it. Values that are not finite are the business of whoever
    /// stops the run; they are neither reported nor remembered.
    pub fn observe(&mut self, value: f64) -> Option<Outlier> {
        if !value.is_finite() {
            return None;
        }
        let outlier = self.compare(value);
        if self.window.len() == WINDOW {
            self.window.pop_front();
        }
        self.window.push_back(value);
        outlier
    }

    fn compare(&self, value: f64) -> Option<Outlier> {
        if self.threshold == 0.0 || self.window.len() < LEAST {
            return None;
        }
        let count = self.window.len() as f64;
        let mean = self.window.iter().sum::<f64>() / count;
        let variance = self.window.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / (count - 1.0);
        // Values that are all alike have no spread to compare with, but the last bits of their mean must not count.
        let deviation = variance.sqrt().max(1e-6 * mean.abs());
        let z = (value - mean) / deviation;
        (z > self.threshold).then(|| Outlier { name: self.name.clone(), value, mean, z })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values around 2 that vary by a tenth, without a pattern that matters.
    fn ordinary(index: usize) -> f64 {
        2.0 + 0.1 * ((index * 37 % 19) as f64 / 9.0 - 1.0)
    }

    fn warmed_up(count: usize) -> Detector {
        let mut detector = Detector::new("loss", 6.0);
        assert!((0..count).all(|index| detector.observe(ordinary(index)).is_none()));
        detector
    }

    #[test]
    fn a_spike_is_reported_with_its_figures() {
        let outlier = warmed_up(200).observe(3.0).expect("reported");
        assert!((outlier.mean - 2.0).abs() < 0.01 && outlier.z > 6.0);
        let message = outlier.to_string();
        assert!(
            message.starts_with("loss 3.0000 is ") && message.contains("above its recent mean of 2.0"),
            "{message}"
        );
    }

    #[test]
    fn z_is_the_textbook_figure() {
        let mut detector = Detector::new("loss", 2.0);
        (0..32).for_each(|index| assert_eq!(detector.observe(if index % 2 == 0 { 1.0 } else { 3.0 }), None));
        let deviation = (32.0f64 / 31.0).sqrt();
        let outlier = detector.observe(2.0 + 2.5 * deviation).expect("reported");
        assert!((outlier.z - 2.5).abs() < 1e-12 && outlier.mean == 2.0);
    }

    #[test]
    fn nothing_is_reported_before_32_values_or_below_the_mean_or_when_switched_off() {
        assert_eq!(warmed_up(31).observe(1e6), None);
        assert!(warmed_up(32).observe(1e6).is_some());
        assert_eq!(warmed_up(100).observe(-1e6), None);
        let mut silent = Detector::new("loss", 0.0);
        assert!((0..100).all(|index| silent.observe(ordinary(index)).is_none()) && silent.observe(1e9).is_none());
    }

    #[test]
    fn a_lasting_change_stops_being_news() {
        let mut detector = warmed_up(128);
        let reported = (0..128).filter(|&index| detector.observe(5.0 + ordinary(index)).is_some()).count();
        assert!((1..20).contains(&reported), "{reported} reports");
    }

    #[test]
    fn values_that_are_all_alike_have_no_outliers_among_them() {
        let mut detector = Detector::new("grad_norm", 6.0);
        assert!((0..300).all(|_| detector.observe(0.1).is_none()));
    }

    #[test]
    fn what_is_not_finite_is_not_remembered() {
        let mut detector = warmed_up(100);
        assert_eq!(detector.observe(f64::NAN), None);
        assert_eq!(detector.observe(f64::INFINITY), None);
        assert_eq!(detector, warmed_up(100));
    }

    #[test]
    fn a_saved_detector_goes_on_exactly() {
        let mut detector = warmed_up(300);
        let mut restored: Detector = serde_json::from_str(&serde_json::to_string(&detector).unwrap()).unwrap();
        assert_eq!(restored, detector);
        assert_eq!(restored.observe(2.9), detector.observe(2.9));
    }
}
