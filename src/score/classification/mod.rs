//! Classes against classes: the confusion matrix, and what follows from it.
//!
//! With `TP`, `FP`, `FN` the true positives, false positives and false negatives of a class:
//!
//! ```text
//! precision   TP / (TP + FP)           of the examples that were called so, those that are so
//! recall      TP / (TP + FN)           of the examples that are so, those that were called so
//! F1          2 TP / (2 TP + FP + FN)  the harmonic mean of both
//! macro F1    the mean of the classes' F1, weighted F1 the same weighted by the classes' support (TP + FN)
//! micro F1    F1 of the sums of TP, FP and FN over the classes (one label each: the same as accuracy)
//! ```
//!
//! Matthews correlation, of `n` examples of which `c` are right, with `tₖ` examples of class `k` and `pₖ` called so:
//! `(c n - Σ tₖ pₖ) / √((n² - Σ pₖ²) (n² - Σ tₖ²))`: 1 if all are right, 0 for guessing by frequency; it does not
//! reward calling everything by the most frequent class.
//!
//! # Source
//! As scikit-learn computes them with `zero_division=0`. B. W. Matthews, "Comparison of the predicted and observed
//! secondary structure of T4 phage lysozyme", 1975; for more than two classes J. Gorodkin, "Comparing two K-category
//! assignments by a K-category correlation coefficient", 2004.

mod html;
mod multi_label;
mod report;
mod text;

pub use multi_label::MultiLabelReport;
pub use report::Report;

use super::{Error, check_lengths, share};
use serde::Serialize;

/// How often each class was taken for each. Row: what an example is; column: what it was called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfusionMatrix {
    classes: Vec<String>,
    /// `(classes, classes)`, row-major.
    counts: Vec<u64>,
}

/// The figures of one class.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ClassFigures {
    pub name: String,
    pub precision: f64,
    pub recall: f64,
    pub f1: f64,
    /// Examples that are of this class.
    pub support: u64,
}

/// What the figures of a class, or of several together, are made of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Outcomes {
    true_positives: u64,
    false_positives: u64,
    false_negatives: u64,
}

impl Outcomes {
    fn f1(self) -> f64 {
        let hits = 2 * self.true_positives;
        share(hits, hits + self.false_positives + self.false_negatives)
    }

    fn support(self) -> u64 {
        self.true_positives + self.false_negatives
    }

    /// Whether there is no example of the class, and none was called so.
    fn is_absent(self) -> bool {
        self == Self::default()
    }

    fn figures(self, name: &str) -> ClassFigures {
        ClassFigures {
            name: name.to_owned(),
            precision: share(self.true_positives, self.true_positives + self.false_positives),
            recall: share(self.true_positives, self.support()),
            f1: self.f1(),
            support: self.support(),
        }
    }
}

impl ConfusionMatrix {
    /// Without examples, over classes of these names.
    pub fn new(classes: impl IntoIterator<Item = impl Into<String>>) -> Self {
        let classes: Vec<String> = classes.into_iter().map(Into::into).collect();
        Self { counts: vec![0; classes.len() * classes.len()], classes }
    }

    /// Of examples whose classes are given by position in `classes`.
    ///
    /// # Errors
    /// The lengths differ, or a class is not below the number of names.
    pub fn from_labels(
        classes: impl IntoIterator<Item = impl Into<String>>,
        truths: &[usize],
        predictions: &[usize],
    ) -> Result<Self, Error> {
        check_lengths(predictions.len(), "examples", truths.len())?;
        let mut matrix = Self::new(classes);
        for (&truth, &prediction) in truths.iter().zip(predictions) {
            matrix.add(truth, prediction)?;
        }
        Ok(matrix)
    }

    /// Adds an example of class `truth` that was called `prediction`.
    ///
    /// # Errors
    /// A class is not below the number of names.
    pub fn add(&mut self, truth: usize, prediction: usize) -> Result<(), Error> {
        let classes = self.classes.len();
        for (role, class) in [("the truth", truth), ("the prediction", prediction)] {
            if class >= classes {
                return Err(Error::Class { example: self.examples(), role, class, classes });
            }
        }
        self.counts[truth * classes + prediction] += 1;
        Ok(())
    }

    pub fn classes(&self) -> &[String] {
        &self.classes
    }

    /// For each class that an example can be, how often it was called what.
    pub fn rows(&self) -> impl Iterator<Item = &[u64]> {
        // Chunks of 0 would panic; without classes there are no counts to cut.
        self.counts.chunks(self.classes.len().max(1))
    }

    pub fn examples(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// The share of examples that are right; 0 for none.
    pub fn accuracy(&self) -> f64 {
        share(self.right(), self.examples())
    }

    /// Precision, recall, F1 and support of each class.
    pub fn class_figures(&self) -> Vec<ClassFigures> {
        self.classes.iter().zip(self.outcomes()).map(|(name, outcomes)| outcomes.figures(name)).collect()
    }

    /// The mean F1 of the classes. Those that no example is of or was called do not count, as in scikit-learn; a class
    /// that is only ever called so, or only ever missed, counts with 0.
    pub fn macro_f1(&self) -> f64 {
        let present = self.outcomes().into_iter().filter(|outcomes| !outcomes.is_absent());
        let f1: Vec<f64> = present.map(Outcomes::f1).collect();
        if f1.is_empty() { 0.0 } else { f1.iter().sum::<f64>() / f1.len() as f64 }
    }

    /// The mean F1 of the classes, each weighted by its support.
    pub fn weighted_f1(&self) -> f64 {
        let examples = self.examples();
        let weighted = |outcomes: Outcomes| outcomes.f1() * share(outcomes.support(), examples);
        // Not `sum`, which begins with -0: that would be the figure of no classes.
        self.outcomes().into_iter().map(weighted).fold(0.0, |sum, f1| sum + f1)
    }

    /// F1 of the second of two classes, which is "the positive one"; none for more or fewer classes.
    pub fn binary_f1(&self) -> Option<f64> {
        (self.classes.len() == 2).then(|| self.outcomes()[1].f1())
    }

    /// Matthews correlation, from -1 to 1; 0 where all examples are of one class or were called one.
    pub fn matthews_correlation(&self) -> f64 {
        // In f64, in which the square of any number of examples has room.
        let examples = self.examples() as f64;
        let (mut by_chance, mut truths, mut predictions) = (0.0, 0.0, 0.0);
        for outcomes in self.outcomes() {
            let truth = outcomes.support() as f64;
            let prediction = (outcomes.true_positives + outcomes.false_positives) as f64;
            by_chance += truth * prediction;
            truths += truth * truth;
            predictions += prediction * prediction;
        }
        let variation = (examples * examples - predictions) * (examples * examples - truths);
        if variation == 0.0 { 0.0 } else { (self.right() as f64 * examples - by_chance) / variation.sqrt() }
    }

    fn right(&self) -> u64 {
        self.rows().enumerate().map(|(class, row)| row[class]).sum()
    }

    fn outcomes(&self) -> Vec<Outcomes> {
        let mut outcomes = vec![Outcomes::default(); self.classes.len()];
        for (truth, row) in self.rows().enumerate() {
            for (prediction, &count) in row.iter().enumerate() {
                if truth == prediction {
                    outcomes[truth].true_positives += count;
                } else {
                    outcomes[truth].false_negatives += count;
                    outcomes[prediction].false_positives += count;
                }
            }
        }
        outcomes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::score::goldens::{self, assert_close};

    #[derive(serde::Deserialize)]
    struct Golden {
        single: Vec<Single>,
    }

    #[derive(serde::Deserialize)]
    struct Single {
        name: String,
        classes: Vec<String>,
        truths: Vec<usize>,
        predictions: Vec<usize>,
        confusion: Vec<Vec<u64>>,
        accuracy: f64,
        precision: Vec<f64>,
        recall: Vec<f64>,
        f1: Vec<f64>,
        support: Vec<u64>,
        macro_f1: f64,
        weighted_f1: f64,
        matthews_correlation: f64,
        binary_f1: Option<f64>,
    }

    #[test]
    fn figures_are_those_of_scikit_learn() {
        let golden: Golden = goldens::load("classification.json");
        assert!(golden.single.len() >= 11);
        for golden in golden.single {
            let matrix =
                ConfusionMatrix::from_labels(&golden.classes, &golden.truths, &golden.predictions).expect("labels");
            let check = |figure: f64, expected: f64, what: &str| {
                assert_close(figure, expected, 1e-14, &format!("{}: {what}", golden.name));
            };
            assert_eq!(matrix.rows().collect::<Vec<_>>(), golden.confusion, "{}", golden.name);
            check(matrix.accuracy(), golden.accuracy, "accuracy");
            check(matrix.macro_f1(), golden.macro_f1, "macro F1");
            check(matrix.weighted_f1(), golden.weighted_f1, "weighted F1");
            check(matrix.matthews_correlation(), golden.matthews_correlation, "Matthews correlation");
            assert_eq!(matrix.binary_f1().is_some(), golden.binary_f1.is_some(), "{}", golden.name);
            check(matrix.binary_f1().unwrap_or(0.0), golden.binary_f1.unwrap_or(0.0), "binary F1");
            for (class, figures) in matrix.class_figures().iter().enumerate() {
                assert_eq!(figures.support, golden.support[class], "{}: support of {}", golden.name, figures.name);
                check(figures.precision, golden.precision[class], &format!("precision of {}", figures.name));
                check(figures.recall, golden.recall[class], &format!("recall of {}", figures.name));
                check(figures.f1, golden.f1[class], &format!("F1 of {}", figures.name));
            }
        }
    }

    #[test]
    fn examples_one_by_one_are_the_same_as_all_at_once() {
        let mut matrix = ConfusionMatrix::new(["no", "yes"]);
        for (truth, prediction) in [(0, 1), (1, 1), (0, 1)] {
            matrix.add(truth, prediction).unwrap();
        }
        assert_eq!(Ok(matrix), ConfusionMatrix::from_labels(["no", "yes"], &[0, 1, 0], &[1, 1, 1]));
    }

    #[test]
    fn without_examples_or_classes_all_figures_are_0() {
        for classes in [&[][..], &["a"], &["a", "b"], &["a", "b", "c"]] {
            let matrix = ConfusionMatrix::new(classes.iter().copied());
            let figures = [matrix.accuracy(), matrix.macro_f1(), matrix.weighted_f1(), matrix.matthews_correlation()];
            assert_eq!(figures.map(f64::to_bits), [0; 4], "{classes:?}: {figures:?}");
            assert_eq!(matrix.rows().count(), classes.len());
            assert_eq!(matrix.binary_f1(), (classes.len() == 2).then_some(0.0));
        }
    }

    #[test]
    fn labels_without_a_name_and_lengths_that_differ_are_refused() {
        let error = ConfusionMatrix::from_labels(["a", "b"], &[0, 1], &[1, 2]).unwrap_err();
        assert_eq!(error.to_string(), "example 1: the prediction is class 2, but there are 2 classes, counted from 0");
        let error = ConfusionMatrix::from_labels([] as [&str; 0], &[0], &[0]).unwrap_err();
        assert_eq!(error, Error::Class { example: 0, role: "the truth", class: 0, classes: 0 });
        let error = ConfusionMatrix::from_labels(["a"], &[0, 0, 0], &[0]).unwrap_err();
        assert_eq!(error, Error::Lengths { predictions: 1, what: "examples", expected: 3 });
    }
}
