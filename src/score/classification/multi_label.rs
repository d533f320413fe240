//! Examples with any number of labels: each class is a question of its own, answered yes from a threshold on.

use super::{ClassFigures, Outcomes, html, text};
use crate::score::{Error, check_lengths, share};
use serde::Serialize;
use std::fmt;

/// The figures of multi-label predictions; as JSON by serde, as text by `Display`, as HTML by [`Self::to_html`].
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct MultiLabelReport {
    pub examples: u64,
    /// From which score on a class counts as predicted.
    pub threshold: f32,
    /// The share of examples that have every label right, those that are there and those that are not.
    pub subset_accuracy: f64,
    /// F1 of all labels of all examples together: frequent classes count more.
    pub micro_f1: f64,
    /// The mean F1 of all classes: each counts the same, with 0 if it never occurs.
    pub macro_f1: f64,
    pub classes: Vec<ClassFigures>,
}

impl MultiLabelReport {
    /// Judges scores, such as probabilities: a class is predicted where `score >= threshold`; NaN never is.
    ///
    /// # Shapes
    /// `scores` and `truths`: `(examples, classes)`, row-major, with as many classes as there are names.
    ///
    /// # Errors
    /// The lengths differ, or are not whole rows.
    pub fn at_threshold(
        classes: &[impl AsRef<str>],
        scores: &[f32],
        truths: &[bool],
        threshold: f32,
    ) -> Result<Self, Error> {
        check_lengths(scores.len(), "labels", truths.len())?;
        let columns = classes.len();
        // Only without classes can there be values that are not rows of anything.
        if scores.len().checked_rem(columns).unwrap_or(scores.len()) != 0 {
            return Err(Error::BrokenRow { values: scores.len(), classes: columns });
        }
        let mut outcomes = vec![Outcomes::default(); columns];
        let (mut examples, mut right) = (0, 0);
        for (scores, truths) in scores.chunks(columns.max(1)).zip(truths.chunks(columns.max(1))) {
            let mut is_right = true;
            for ((&score, &truth), outcomes) in scores.iter().zip(truths).zip(&mut outcomes) {
                let is_predicted = score >= threshold;
                is_right &= is_predicted == truth;
                outcomes.true_positives += u64::from(is_predicted && truth);
                outcomes.false_positives += u64::from(is_predicted && !truth);
                outcomes.false_negatives += u64::from(!is_predicted && truth);
            }
            examples += 1;
            right += u64::from(is_right);
        }
        let all = outcomes.iter().fold(Outcomes::default(), |sum, class| Outcomes {
            true_positives: sum.true_positives + class.true_positives,
            false_positives: sum.false_positives + class.false_positives,
            false_negatives: sum.false_negatives + class.false_negatives,
        });
        let sum_f1 = outcomes.iter().map(|class| class.f1()).fold(0.0, |sum, f1| sum + f1);
        Ok(Self {
            examples,
            threshold,
            subset_accuracy: share(right, examples),
            micro_f1: all.f1(),
            macro_f1: if columns == 0 { 0.0 } else { sum_f1 / columns as f64 },
            classes: classes.iter().zip(outcomes).map(|(name, class)| class.figures(name.as_ref())).collect(),
        })
    }

    /// The figures over all classes, by name.
    fn figures(&self) -> Vec<(String, String)> {
        let figure = |name: &str, value: f64| (name.to_owned(), text::figure(value));
        vec![
            ("examples".into(), self.examples.to_string()),
            ("threshold".into(), self.threshold.to_string()),
            figure("subset accuracy", self.subset_accuracy),
            figure("micro F1", self.micro_f1),
            figure("macro F1", self.macro_f1),
        ]
    }

    /// A fragment of HTML: figures and classes, in the colours of a run's report.
    pub fn to_html(&self) -> String {
        html::figures(&self.figures()) + &html::classes(&self.classes)
    }
}

impl fmt::Display for MultiLabelReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}\n\n{}", text::figures(&self.figures()), text::classes(&self.classes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::score::goldens::{self, assert_close};

    #[derive(serde::Deserialize)]
    struct Golden {
        multi: Vec<Multi>,
    }

    #[derive(serde::Deserialize)]
    struct Multi {
        name: String,
        classes: Vec<String>,
        scores: Vec<f32>,
        truths: Vec<bool>,
        threshold: f32,
        subset_accuracy: f64,
        micro_f1: f64,
        macro_f1: f64,
        precision: Vec<f64>,
        recall: Vec<f64>,
        f1: Vec<f64>,
        support: Vec<u64>,
    }

    #[test]
    fn figures_are_those_of_scikit_learn() {
        let golden: Golden = goldens::load("classification.json");
        assert!(golden.multi.len() >= 6);
        for golden in golden.multi {
            let report =
                MultiLabelReport::at_threshold(&golden.classes, &golden.scores, &golden.truths, golden.threshold)
                    .expect("whole rows");
            let check = |figure: f64, expected: f64, what: &str| {
                assert_close(figure, expected, 1e-14, &format!("{}: {what}", golden.name));
            };
            check(report.subset_accuracy, golden.subset_accuracy, "subset accuracy");
            check(report.micro_f1, golden.micro_f1, "micro F1");
            check(report.macro_f1, golden.macro_f1, "macro F1");
            for (class, figures) in report.classes.iter().enumerate() {
                assert_eq!(figures.support, golden.support[class], "{}: support of {}", golden.name, figures.name);
                check(figures.precision, golden.precision[class], &format!("precision of {}", figures.name));
                check(figures.recall, golden.recall[class], &format!("recall of {}", figures.name));
                check(figures.f1, golden.f1[class], &format!("F1 of {}", figures.name));
            }
        }
    }

    #[test]
    fn a_score_on_the_threshold_counts_and_nan_does_not() {
        let report = MultiLabelReport::at_threshold(&["a", "b"], &[0.5, f32::NAN], &[true, false], 0.5).unwrap();
        assert_eq!((report.subset_accuracy, report.micro_f1, report.macro_f1), (1.0, 1.0, 0.5));
    }

    #[test]
    fn without_examples_or_classes_all_figures_are_0() {
        for classes in [&[][..], &["a", "b"]] {
            let report = MultiLabelReport::at_threshold(classes, &[], &[], 0.5).unwrap();
            let figures = (report.examples, report.subset_accuracy, report.micro_f1, report.macro_f1);
            assert_eq!(figures, (0, 0.0, 0.0, 0.0));
        }
    }

    #[test]
    fn broken_rows_and_lengths_that_differ_are_refused() {
        let error = MultiLabelReport::at_threshold(&["a", "b"], &[0.0; 3], &[true; 3], 0.5).unwrap_err();
        assert_eq!(
            error.to_string(),
            "3 values are not whole rows of 2 classes; there must be one for each class and example"
        );
        let error = MultiLabelReport::at_threshold(&[] as &[&str], &[0.0], &[true], 0.5).unwrap_err();
        assert_eq!(error, Error::BrokenRow { values: 1, classes: 0 });
        let error = MultiLabelReport::at_threshold(&["a"], &[0.0; 2], &[true], 0.5).unwrap_err();
        assert_eq!(error, Error::Lengths { predictions: 2, what: "labels", expected: 1 });
    }

    #[test]
    fn the_text_and_the_html_show_figures_and_classes() {
        let report = MultiLabelReport::at_threshold(&["a<b", "c"], &[0.9, 0.1], &[true, true], 0.25).unwrap();
        assert_eq!(
            report.to_string(),
            "examples              1\n\
             threshold          0.25\n\
             subset accuracy  0.0000\n\
             micro F1         0.6667\n\
             macro F1         0.5000\n\
             \n\
             class  precision  recall      F1  support\n\
             a<b       1.0000  1.0000  1.0000        1\n\
             c         0.0000  0.0000  0.0000        1"
        );
        let html = report.to_html();
        assert!(html.contains("a&lt;b") && html.contains("subset accuracy") && !html.contains("a<b"));
    }
}
