//! Reports as fragments of HTML, for a page such as a run's `report.html`.
//!
//! Colours are that page's variables (`--ink` text, `--soft` lesser text, `--line` rules, `--card` areas), so that
//! they follow the reader's light or dark setting; all styles are inline. Names come from data and are escaped.

use super::{ClassFigures, Report, text};
use crate::util::html::escape;
use std::fmt::Write;

/// More classes than this are no matrix that anybody reads.
const MATRIX_CLASSES: usize = 40;
/// Percent of ink in the darkest cell of the matrix; figures in ink are still read on it, in light and in dark.
const DARKEST_PERCENT: f64 = 50.0;

const TABLE: &str = "border-collapse:collapse;margin:.75rem 0";
const NAME: &str = "padding:.25rem 1rem .25rem 0;border-bottom:1px solid var(--line);text-align:left";
const NUMBER: &str = "padding:.25rem .75rem;border-bottom:1px solid var(--line);text-align:right;\
                      font-variant-numeric:tabular-nums";

/// A list of figures over all classes.
pub(super) fn figures(figures: &[(String, String)]) -> String {
    let mut html = String::from("<dl style=\"display:flex;flex-wrap:wrap;gap:.75rem;margin:.75rem 0\">\n");
    for (name, value) in figures {
        push(
            &mut html,
            format_args!(
                "<div style=\"padding:.6rem .9rem;border-radius:.5rem;background:var(--card)\">\
                 <dt style=\"color:var(--soft);font-size:.85rem\">{}</dt>\
                 <dd style=\"margin:0;font-size:1.2rem\">{}</dd></div>\n",
                escape(name),
                escape(value)
            ),
        );
    }
    html + "</dl>\n"
}

/// A table with a row for each class.
pub(super) fn classes(classes: &[ClassFigures]) -> String {
    let mut html = format!("<table style=\"{TABLE}\">\n<tr><th style=\"{NAME}\">class</th>");
    for header in ["precision", "recall", "F1", "support"] {
        push(&mut html, format_args!("<th style=\"{NUMBER}\">{header}</th>"));
    }
    html.push_str("</tr>\n");
    for class in classes {
        push(&mut html, format_args!("<tr><td style=\"{NAME}\">{}</td>", escape(&class.name)));
        let figures = [class.precision, class.recall, class.f1].map(text::figure);
        for figure in figures.into_iter().chain([class.support.to_string()]) {
            push(&mut html, format_args!("<td style=\"{NUMBER}\">{figure}</td>"));
        }
        html.push_str("</tr>\n");
    }
    html + "</table>\n"
}

/// The confusion matrix; of many classes, the most frequent confusions; empty if there is neither.
pub(super) fn confusion(report: &Report) -> String {
    match report.classes.len() {
        0 => String::new(),
        1..=MATRIX_CLASSES => matrix(report),
        _ => most_frequent_confusions(report),
    }
}

fn matrix(report: &Report) -> String {
    let mut html = format!(
        "<h3>Confusion matrix</h3>\n<table style=\"{TABLE}\">\n\
         <tr><th style=\"{NAME};color:var(--soft);font-weight:500\">is \\ called</th>"
    );
    for class in &report.classes {
        push(&mut html, format_args!("<th style=\"{NUMBER}\">{}</th>", escape(&class.name)));
    }
    html.push_str("</tr>\n");
    for (truth, row) in report.confusion.iter().enumerate() {
        push(&mut html, format_args!("<tr><th style=\"{NAME}\">{}</th>", escape(report.name(truth))));
        let support: u64 = row.iter().sum();
        for (prediction, &count) in row.iter().enumerate() {
            let percent = DARKEST_PERCENT * crate::score::share(count, support);
            let (is, called) = (escape(report.name(truth)), escape(report.name(prediction)));
            push(
                &mut html,
                format_args!(
                    "<td style=\"{NUMBER};background:color-mix(in srgb,var(--ink) {percent:.0}%,var(--card))\" \
                     title=\"{is} called {called}: {count} of {support}\">{count}</td>"
                ),
            );
        }
        html.push_str("</tr>\n");
    }
    html + "</table>\n"
}

fn most_frequent_confusions(report: &Report) -> String {
    let mut html = format!(
        "<h3>Most frequent confusions</h3>\n<table style=\"{TABLE}\">\n\
         <tr><th style=\"{NAME}\">is</th><th style=\"{NAME}\">called</th><th style=\"{NUMBER}\">examples</th></tr>\n"
    );
    for confusion in report.most_frequent_confusions() {
        let (is, called) = (escape(report.name(confusion.truth)), escape(report.name(confusion.prediction)));
        push(
            &mut html,
            format_args!(
                "<tr><td style=\"{NAME}\">{is}</td><td style=\"{NAME}\">{called}</td>\
                 <td style=\"{NUMBER}\">{}</td></tr>\n",
                confusion.count
            ),
        );
    }
    html + "</table>\n"
}

fn push(html: &mut String, part: std::fmt::Arguments<'_>) {
    html.write_fmt(part).expect("a string takes all text");
}
