//! `report.html`: a run on one page that needs nothing but itself, to keep or to send.
//!
//! Drawings are inline SVG, styles inline CSS that follows the reader's light or dark setting; there are no scripts
//! and no external resources. All text from outside (samples, paths, configuration) is escaped.

use super::memory::{MemoryTable, human_bytes};
use super::metrics::{Note, NoteKind, Record};
use super::plot::{self, PlotError};
use super::write_atomically;
use crate::util::html::escape;
use std::io::Write;
use std::path::Path;

/// What a report shows; empty parts are left out.
#[derive(Clone, Debug, Default)]
pub struct Report<'a> {
    /// Such as the name of the run's folder.
    pub title: &'a str,
    /// One line below it: model, data, machine, how the run ended.
    pub summary: &'a str,
    /// Further final figures, name and value, shown after those that the records give.
    pub figures: &'a [(String, String)],
    pub records: &'a [Record],
    /// Samples and warnings.
    pub notes: &'a [Note],
    /// The resolved configuration.
    pub config_toml: &'a str,
    pub memory: Option<&'a MemoryTable>,
    /// The last evaluation in detail, as HTML; taken as it is.
    pub judged: Option<&'a str>,
}

const STYLE: &str = "\
:root { color-scheme: light dark; --ink: #1c1e21; --soft: #666d75; --line: #d9dce0; --card: #f5f6f8; --page: #fff; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e8ea; --soft: #9aa1a9; --line: #363b42; --card: #1d2126; --page: #14161a; }
}
body { margin: 0 auto; padding: 2rem 1.25rem 4rem; max-width: 62rem; background: var(--page); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; }
h1 { margin: 0; font-size: 1.6rem; } h2 { margin: 2.5rem 0 .75rem; font-size: 1.15rem; }
p.summary { margin: .25rem 0 0; color: var(--soft); }
svg { display: block; width: 100%; height: auto; }
.figures { display: grid; grid-template-columns: repeat(auto-fill, minmax(11rem, 1fr)); gap: .75rem; margin: 1.5rem 0; }
.figures div { padding: .6rem .9rem; border-radius: .5rem; background: var(--card); }
.figures dt { color: var(--soft); font-size: .85rem; } .figures dd { margin: 0; font-size: 1.2rem; }
table { border-collapse: collapse; } th, td { padding: .25rem 1.5rem .25rem 0; border-bottom: 1px solid var(--line);
  text-align: left; } td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; }
tr.total td { font-weight: 600; }
pre { margin: 0; padding: .75rem 1rem; border-radius: .5rem; background: var(--card); overflow-x: auto;
  white-space: pre-wrap; overflow-wrap: anywhere; font: .85rem/1.5 ui-monospace, monospace; }
h3 { margin: 1.25rem 0 .4rem; font-size: .95rem; color: var(--soft); font-weight: 500; }
details summary { cursor: pointer; color: var(--soft); margin: 1rem 0 .5rem; }
ul.warnings { padding-left: 1.2rem; }
";

/// The page.
///
/// # Errors
/// A drawing failed.
pub fn html(report: &Report<'_>) -> Result<String, PlotError> {
    let title = escape(report.title);
    let mut page = format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<title>{title}</title>\n\
         <style>\n{STYLE}</style>\n</head>\n<body>\n<h1>{title}</h1>\n"
    );
    if !report.summary.is_empty() {
        page.push_str(&format!("<p class=\"summary\">{}</p>\n", escape(report.summary)));
    }
    push_figures(&mut page, report);
    let warnings: Vec<&Note> = report.notes.iter().filter(|note| note.kind == NoteKind::Warning).collect();
    if !warnings.is_empty() {
        page.push_str("<h2>Warnings</h2>\n<ul class=\"warnings\">\n");
        for note in warnings {
            page.push_str(&format!("<li>step {}: {}</li>\n", note.step, escape(&note.text)));
        }
        page.push_str("</ul>\n");
    }
    page.push_str("<h2>Loss</h2>\n");
    page.push_str(&plot::loss_svg(report.records)?);
    page.push_str("<h2>Gradient and speed</h2>\n");
    page.push_str(&plot::grad_norm_svg(report.records)?);
    page.push_str(&plot::throughput_svg(report.records)?);
    push_evaluations(&mut page, report.records);
    if let Some(judged) = report.judged {
        page.push_str(&format!("<h2>Last evaluation</h2>\n{judged}\n"));
    }
    push_samples(&mut page, report.notes);
    if let Some(memory) = report.memory {
        push_memory(&mut page, memory);
    }
    if !report.config_toml.is_empty() {
        page.push_str(&format!("<h2>Configuration</h2>\n<pre>{}</pre>\n", escape(report.config_toml)));
    }
    page.push_str("</body>\n</html>\n");
    Ok(page)
}

/// Writes [`html`] to a file, whole or not at all.
///
/// # Errors
/// A drawing failed, or the file cannot be written.
pub fn write(path: &Path, report: &Report<'_>) -> Result<(), PlotError> {
    let page = html(report)?;
    Ok(write_atomically(path, |writer| writer.write_all(page.as_bytes()))?)
}

fn push_figures(page: &mut String, report: &Report<'_>) {
    let steps = report.records.iter().filter_map(|record| match record {
        Record::Step(step) => Some(step),
        Record::Evaluation(_) => None,
    });
    let evaluations = report.records.iter().filter_map(|record| match record {
        Record::Evaluation(evaluation) => Some(evaluation),
        Record::Step(_) => None,
    });
    let mut figures: Vec<(String, String)> = Vec::new();
    if let Some(last) = steps.clone().next_back() {
        figures.push(("steps".into(), last.step.to_string()));
        figures.push(("training loss, last step".into(), format!("{:.4}", last.loss)));
    }
    if let Some(last) = evaluations.clone().next_back() {
        figures.push(("validation loss, last".into(), format!("{:.4}", last.val_loss)));
        figures.push(("perplexity, last".into(), format!("{:.2}", last.perplexity)));
    }
    if let Some(best) = evaluations.min_by(|a, b| a.val_loss.total_cmp(&b.val_loss)) {
        figures.push(("validation loss, best".into(), format!("{:.4} at step {}", best.val_loss, best.step)));
    }
    if let Some(rate) = median(steps.clone().map(|step| step.tokens_per_second)) {
        figures.push(("tokens per second, median".into(), format!("{rate:.0}")));
    }
    if let Some(share) = median(steps.map(|step| step.mfu)).filter(|&share| share > 0.0) {
        figures.push(("share of peak, median".into(), format!("{:.0} %", 100.0 * share)));
    }
    page.push_str("<dl class=\"figures\">\n");
    for (name, value) in figures.iter().chain(report.figures) {
        page.push_str(&format!("<div><dt>{}</dt><dd>{}</dd></div>\n", escape(name), escape(value)));
    }
    page.push_str("</dl>\n");
}

fn push_evaluations(page: &mut String, records: &[Record]) {
    let mut rows = String::new();
    for record in records {
        let Record::Evaluation(evaluation) = record else { continue };
        let more: Vec<String> = evaluation.more.iter().map(|(name, value)| format!("{name} {value:.4}")).collect();
        rows.push_str(&format!(
            "<tr><td class=\"number\">{}</td><td class=\"number\">{:.4}</td><td class=\"number\">{:.2}</td><td>{}</td></tr>\n",
            evaluation.step,
            evaluation.val_loss,
            evaluation.perplexity,
            escape(&more.join(", "))
        ));
    }
    if !rows.is_empty() {
        page.push_str(&format!(
            "<h2>Evaluations</h2>\n<table>\n<tr><th class=\"number\">step</th><th class=\"number\">loss</th><th class=\"number\">perplexity</th><th></th></tr>\n{rows}</table>\n"
        ));
    }
}

/// The newest sample in full view, older ones folded away.
fn push_samples(page: &mut String, notes: &[Note]) {
    let block = |note: &Note| format!("<h3>step {}</h3>\n<pre>{}</pre>\n", note.step, escape(&note.text));
    let mut samples = notes.iter().filter(|note| note.kind == NoteKind::Sample).rev();
    let Some(newest) = samples.next() else { return };
    page.push_str(&format!("<h2>Samples</h2>\n{}", block(newest)));
    let older: String = samples.map(block).collect();
    if !older.is_empty() {
        page.push_str(&format!("<details><summary>earlier samples</summary>\n{older}</details>\n"));
    }
}

fn push_memory(page: &mut String, memory: &MemoryTable) {
    page.push_str("<h2>Memory</h2>\n<table>\n");
    for (name, bytes) in memory.rows() {
        let (name, size) = (escape(name), human_bytes(*bytes));
        page.push_str(&format!("<tr><td>{name}</td><td class=\"number\">{size}</td></tr>\n"));
    }
    let total = human_bytes(memory.total_bytes());
    page.push_str(&format!("<tr class=\"total\"><td>total</td><td class=\"number\">{total}</td></tr>\n</table>\n"));
}

fn median(values: impl Iterator<Item = f64>) -> Option<f64> {
    let mut values: Vec<f64> = values.filter(|value| value.is_finite()).collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}

#[cfg(test)]
mod tests {
    use super::super::metrics::{EvaluationRecord, StepRecord};
    use super::*;

    fn records() -> Vec<Record> {
        let mut records: Vec<Record> = vec![EvaluationRecord::new(0, 4.3).into()];
        for step in 1..=40 {
            let loss = 4.0 / (1.0 + step as f64 / 10.0);
            let (lr, grad_norm, tokens_per_second) = (1e-3, 0.5, 9000.0 + step as f64);
            records.push(
                StepRecord { step, loss, lr, grad_norm, tokens_per_second, mfu: 0.71, beside: Default::default() }
                    .into(),
            );
        }
        records.push(EvaluationRecord::new(20, 1.5).into());
        records.push(EvaluationRecord::new(40, 1.75).into());
        records
    }

    fn note(step: usize, kind: NoteKind, text: &str) -> Note {
        Note { step, kind, text: text.into() }
    }

    fn page() -> String {
        let mut memory = MemoryTable::new();
        memory.add("parameters", 7 << 20).add("activations", 20 << 20);
        let notes = [
            note(20, NoteKind::Sample, "Early sample"),
            note(33, NoteKind::Warning, "loss 9.0 is 7.1 standard deviations above its recent mean of 1.2"),
            note(40, NoteKind::Sample, "Mr. Darcy <script>alert(1)</script> & \"Jane\"\n\u{0}\u{1b}[31m"),
        ];
        let report = Report {
            title: "austen <1>",
            summary: "1.8 M parameters",
            figures: &[("peak memory".into(), "31.0 MiB".into())],
            records: &records(),
            notes: &notes,
            config_toml: "[data]\npath = \"a&b.txt\"\n",
            memory: Some(&memory),
            judged: None,
        };
        html(&report).unwrap()
    }

    #[test]
    fn the_page_shows_all_parts() {
        let page = page();
        let parts = [
            "<h1>austen &lt;1&gt;</h1>",
            "validation loss, best</dt><dd>1.5000 at step 20",
            "validation loss, last</dt><dd>1.7500",
            "tokens per second, median</dt><dd>9021",
            "share of peak, median</dt><dd>71 %",
            "peak memory</dt><dd>31.0 MiB",
            "step 33: loss 9.0 is 7.1 standard deviations",
            "earlier samples",
            "<td>activations</td><td class=\"number\">20.0 MiB</td>",
            "<td>total</td><td class=\"number\">27.0 MiB</td>",
            "path = &quot;a&amp;b.txt&quot;",
        ];
        parts.iter().for_each(|part| assert!(page.contains(part), "{part} is missing"));
        assert_eq!(page.matches("<svg").count(), 3);
    }

    #[test]
    fn text_from_outside_cannot_become_markup() {
        let page = page();
        assert!(page.contains("Mr. Darcy &lt;script&gt;alert(1)&lt;/script&gt; &amp; &quot;Jane&quot;"));
        assert!(!page.contains("<script") && !page.chars().any(|c| c.is_control() && c != '\n'));
    }

    #[test]
    fn the_page_needs_nothing_from_outside() {
        let page = page().replace("http://www.w3.org/2000/svg", "");
        for sign in ["http:", "https:", "src=", "href", "url(", "@import", "<link"] {
            assert!(!page.contains(sign), "{sign}");
        }
    }

    #[test]
    fn every_tag_is_closed() {
        let page = page();
        for tag in
            ["html", "head", "body", "style", "h1", "h2", "h3", "pre", "table", "tr", "td", "dl", "div", "ul", "svg"]
        {
            let open = page.matches(&format!("<{tag}>")).count() + page.matches(&format!("<{tag} ")).count();
            assert_eq!(open, page.matches(&format!("</{tag}>")).count(), "{tag}");
        }
    }

    #[test]
    fn a_run_without_anything_still_has_a_page() {
        let page = html(&Report { title: "empty", ..Report::default() }).unwrap();
        assert!(page.contains("<h1>empty</h1>") && !page.contains("<h2>Samples"));
    }

    #[test]
    fn the_file_is_written_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("report.html");
        write(&path, &Report { title: "run", ..Report::default() }).unwrap();
        assert!(std::fs::read_to_string(&path).unwrap().ends_with("</html>\n"));
    }
}
