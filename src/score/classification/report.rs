//! A classification on one page: figures, classes, and what was taken for what.

use super::{ClassFigures, ConfusionMatrix, html, text};
use serde::Serialize;
use std::fmt;

/// Confusions listed where there are too many classes for a matrix.
const LISTED_CONFUSIONS: usize = 10;

/// The figures of a classification; as JSON by serde, as text by `Display`, as HTML by [`Self::to_html`].
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    pub examples: u64,
    pub accuracy: f64,
    pub macro_f1: f64,
    pub weighted_f1: f64,
    /// F1 of the second of two classes; left out for more or fewer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub binary_f1: Option<f64>,
    pub matthews_correlation: f64,
    pub classes: Vec<ClassFigures>,
    /// Row: what examples are; column: what they were called; in the order of `classes`.
    pub confusion: Vec<Vec<u64>>,
}

/// Examples of one class that were taken for another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Confusion {
    pub truth: usize,
    pub prediction: usize,
    pub count: u64,
}

impl From<&ConfusionMatrix> for Report {
    fn from(matrix: &ConfusionMatrix) -> Self {
        Self {
            examples: matrix.examples(),
            accuracy: matrix.accuracy(),
            macro_f1: matrix.macro_f1(),
            weighted_f1: matrix.weighted_f1(),
            binary_f1: matrix.binary_f1(),
            matthews_correlation: matrix.matthews_correlation(),
            classes: matrix.class_figures(),
            confusion: matrix.rows().map(<[u64]>::to_vec).collect(),
        }
    }
}

impl Report {
    /// A fragment of HTML, in the colours of a run's report: figures, classes, and the confusion matrix, shaded by the
    /// share of its row. Instead of a matrix of very many classes, the most frequent confusions.
    pub fn to_html(&self) -> String {
        html::figures(&self.figures()) + &html::classes(&self.classes) + &html::confusion(self)
    }

    /// The figures over all classes, by name.
    fn figures(&self) -> Vec<(String, String)> {
        let mut figures = vec![("examples".to_owned(), self.examples.to_string())];
        let mut figure = |name: String, value: f64| figures.push((name, text::figure(value)));
        figure("accuracy".into(), self.accuracy);
        figure("macro F1".into(), self.macro_f1);
        figure("weighted F1".into(), self.weighted_f1);
        if let (Some(f1), [_, positive]) = (self.binary_f1, self.classes.as_slice()) {
            figure(format!("F1 of {}", positive.name), f1);
        }
        figure("Matthews correlation".into(), self.matthews_correlation);
        figures
    }

    /// What was taken for something else, most frequent first.
    pub(super) fn most_frequent_confusions(&self) -> Vec<Confusion> {
        let mut confusions: Vec<Confusion> = Vec::new();
        for (truth, row) in self.confusion.iter().enumerate() {
            let wrong = row.iter().enumerate().filter(|&(prediction, &count)| prediction != truth && count > 0);
            confusions.extend(wrong.map(|(prediction, &count)| Confusion { truth, prediction, count }));
        }
        // Stable: equals stay in the order of their classes.
        confusions.sort_by_key(|confusion| std::cmp::Reverse(confusion.count));
        confusions.truncate(LISTED_CONFUSIONS);
        confusions
    }

    /// The name of a class; empty if there is none.
    pub(super) fn name(&self, class: usize) -> &str {
        self.classes.get(class).map_or("", |class| &class.name)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}\n\n{}", text::figures(&self.figures()), text::classes(&self.classes))?;
        match text::confusion(self) {
            confusion if confusion.is_empty() => Ok(()),
            confusion => write!(f, "\n\n{confusion}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        let truths = [0, 0, 0, 1, 1, 2];
        let predictions = [0, 0, 1, 1, 1, 1];
        let classes = ["好评 <b>", "bad & \"ugly\"", "x"];
        Report::from(&ConfusionMatrix::from_labels(classes, &truths, &predictions).unwrap())
    }

    fn of_many(classes: usize) -> Report {
        let mut matrix = ConfusionMatrix::new((0..classes).map(|class| format!("class {class}")));
        for (truth, prediction) in [(3, 4), (7, 9), (3, 4), (1, 1)] {
            matrix.add(truth, prediction).unwrap();
        }
        Report::from(&matrix)
    }

    #[test]
    fn the_text_is_aligned_by_what_a_terminal_shows() {
        assert_eq!(
            report().to_string(),
            "examples                   6\n\
             accuracy              0.6667\n\
             macro F1              0.4889\n\
             weighted F1           0.6222\n\
             Matthews correlation  0.5330\n\
             \n\
             class         precision  recall      F1  support\n\
             好评 <b>         1.0000  0.6667  0.8000        3\n\
             bad & \"ugly\"     0.5000  1.0000  0.6667        2\n\
             x                0.0000  0.0000  0.0000        1\n\
             \n\
             is \\ called   好评 <b>  bad & \"ugly\"  x\n\
             好评 <b>             2             1  0\n\
             bad & \"ugly\"         0             2  0\n\
             x                    0             1  0"
        );
    }

    #[test]
    fn json_has_every_figure_by_name() {
        let value = serde_json::to_value(report()).unwrap();
        assert_eq!(value["examples"], 6);
        assert_eq!(value["accuracy"], 4.0 / 6.0);
        assert_eq!(value["classes"][1]["name"], "bad & \"ugly\"");
        assert_eq!(value["classes"][1]["support"], 2);
        assert_eq!(value["confusion"], serde_json::json!([[2, 1, 0], [0, 2, 0], [0, 1, 0]]));
        assert!(value.get("binary_f1").is_none());
        let two = Report::from(&ConfusionMatrix::from_labels(["no", "yes"], &[0, 1], &[1, 1]).unwrap());
        assert_eq!(serde_json::to_value(&two).unwrap()["binary_f1"], 2.0 / 3.0);
        assert!(two.to_string().contains("F1 of yes"));
    }

    #[test]
    fn names_cannot_become_markup_or_break_lines() {
        let html = report().to_html();
        assert!(html.contains("好评 &lt;b&gt;") && html.contains("bad &amp; &quot;ugly&quot;"));
        assert!(!html.contains("<b>") && !html.contains("\"ugly\""));
        let odd = Report::from(&ConfusionMatrix::from_labels(["a\nb\u{1b}[31m"], &[0], &[0]).unwrap());
        assert!(!odd.to_string().contains("a\nb") && !odd.to_string().contains('\u{1b}'));
        assert!(!odd.to_html().contains('\u{1b}'));
    }

    #[test]
    fn the_matrix_is_shaded_by_the_share_of_its_row() {
        let html = report().to_html();
        assert_eq!(html.matches("color-mix(in srgb,var(--ink) 50%,var(--card))").count(), 2, "whole rows: {html}");
        assert!(html.contains("var(--ink) 33%") && html.contains("var(--ink) 17%") && html.contains("var(--ink) 0%"));
        assert!(html.contains("title=\"好评 &lt;b&gt; called bad &amp; &quot;ugly&quot;: 1 of 3\""));
    }

    #[test]
    fn html_closes_every_tag_and_needs_nothing_from_outside() {
        for html in [report().to_html(), of_many(100).to_html(), of_many(10).to_html()] {
            for tag in ["table", "tr", "td", "th", "dl", "div", "dt", "dd", "h3"] {
                let open = html.matches(&format!("<{tag}>")).count() + html.matches(&format!("<{tag} ")).count();
                assert_eq!(open, html.matches(&format!("</{tag}>")).count(), "{tag}");
            }
            assert!(["http:", "src=", "href", "url(", "<script"].iter().all(|sign| !html.contains(sign)));
        }
    }

    #[test]
    fn of_many_classes_the_most_frequent_confusions_are_shown() {
        let report = of_many(100);
        assert!(report.to_string().ends_with(
            "most frequent confusions\n\
             class 3 called class 4  2\n\
             class 7 called class 9  1"
        ));
        assert!(report.to_html().contains(">class 3</td>") && !report.to_html().contains("color-mix"));
    }

    #[test]
    fn a_classification_without_examples_or_classes_has_a_report() {
        for classes in [&[][..], &["only"]] {
            let report = Report::from(&ConfusionMatrix::new(classes.iter().copied()));
            assert!(report.to_string().contains("accuracy") && report.to_html().contains("accuracy"));
        }
    }
}
