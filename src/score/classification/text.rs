//! Reports for a terminal: names to the left, figures to the right, columns as wide as a terminal shows them.

use super::{ClassFigures, Report};

/// More classes than this do not fit side by side.
const MATRIX_CLASSES: usize = 16;

/// A share or a correlation.
pub(super) fn figure(value: f64) -> String {
    format!("{value:.4}")
}

pub(super) fn figures(figures: &[(String, String)]) -> String {
    aligned(&figures.iter().map(|(name, value)| vec![name.clone(), value.clone()]).collect::<Vec<_>>())
}

pub(super) fn classes(classes: &[ClassFigures]) -> String {
    let mut rows = vec![["class", "precision", "recall", "F1", "support"].map(str::to_owned).to_vec()];
    for class in classes {
        let figures = [class.precision, class.recall, class.f1].map(figure);
        rows.push([vec![class.name.clone()], figures.to_vec(), vec![class.support.to_string()]].concat());
    }
    aligned(&rows)
}

/// The matrix; of many classes, the most frequent confusions; empty if there is neither.
pub(super) fn confusion(report: &Report) -> String {
    if report.classes.len() <= MATRIX_CLASSES {
        let names = report.classes.iter().map(|class| class.name.clone());
        let mut rows: Vec<Vec<String>> = vec![["is \\ called".to_owned()].into_iter().chain(names).collect()];
        for (class, row) in report.confusion.iter().enumerate() {
            let name = report.name(class).to_owned();
            rows.push([name].into_iter().chain(row.iter().map(u64::to_string)).collect());
        }
        return if report.classes.is_empty() { String::new() } else { aligned(&rows) };
    }
    let listed = report.most_frequent_confusions();
    let row =
        |truth: &str, prediction: &str, count: u64| vec![format!("{truth} called {prediction}"), count.to_string()];
    let rows: Vec<Vec<String>> =
        listed.iter().map(|c| row(report.name(c.truth), report.name(c.prediction), c.count)).collect();
    if rows.is_empty() { String::new() } else { format!("most frequent confusions\n{}", aligned(&rows)) }
}

/// Rows as lines: the first column aligned left, the others right, two spaces between.
fn aligned(rows: &[Vec<String>]) -> String {
    let rows: Vec<Vec<String>> = rows.iter().map(|row| row.iter().map(|cell| printable(cell)).collect()).collect();
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let widest = |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|cell| width(cell)).max();
    let widths: Vec<usize> = (0..columns).map(|column| widest(column).unwrap_or(0)).collect();
    let line = |row: &Vec<String>| {
        let mut line = String::new();
        for (column, cell) in row.iter().enumerate() {
            let padding = " ".repeat(widths[column] - width(cell));
            match column {
                0 => line.extend([cell, padding.as_str()]),
                _ => line.extend(["  ", padding.as_str(), cell]),
            }
        }
        line.trim_end().to_owned()
    };
    rows.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// The text with a replacement mark for what would move a terminal's cursor or colour it.
fn printable(text: &str) -> String {
    text.chars().map(|character| if character.is_control() { '\u{fffd}' } else { character }).collect()
}

/// Cells of a terminal that a text takes.
fn width(text: &str) -> usize {
    text.chars().map(character_width).sum()
}

/// Two cells for what East Asian typography sets in a full square (Unicode's East Asian Width W and F, by block), and
/// none for marks that sit on the character before them.
fn character_width(character: char) -> usize {
    match character {
        '\u{300}'..='\u{36f}' | '\u{200b}'..='\u{200f}' | '\u{20d0}'..='\u{20ff}' | '\u{fe00}'..='\u{fe0f}' => 0,
        '\u{1100}'..='\u{115f}' // Hangul's leading consonants
        | '\u{2e80}'..='\u{303e}' // radicals, punctuation
        | '\u{3041}'..='\u{4dbf}' // kana, bopomofo, enclosed and squared, Extension A
        | '\u{4e00}'..='\u{a4cf}' // ideographs, Yi
        | '\u{a960}'..='\u{a97f}'
        | '\u{ac00}'..='\u{d7a3}' // Hangul's syllables
        | '\u{f900}'..='\u{faff}'
        | '\u{fe30}'..='\u{fe6f}'
        | '\u{ff01}'..='\u{ff60}' // full width forms
        | '\u{ffe0}'..='\u{ffe6}'
        | '\u{1f300}'..='\u{1f64f}' // pictures
        | '\u{1f680}'..='\u{1f6ff}'
        | '\u{1f900}'..='\u{1f9ff}'
        | '\u{20000}'..='\u{3fffd}' => 2,
        _ => 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chinese_takes_two_cells_a_character_and_accents_none() {
        assert_eq!(width("abc"), 3);
        assert_eq!(width("中文，한글かな"), 14);
        assert_eq!(width("e\u{301}"), 1);
        assert_eq!(width("ＡＢ𠀀😀ﾊ"), 9);
        assert_eq!(width(""), 0);
    }

    #[test]
    fn short_rows_and_no_rows_are_lines_too() {
        let rows = [vec!["a".to_owned(), "1".to_owned()], vec!["long name".to_owned()], vec![]];
        assert_eq!(aligned(&rows), "a          1\nlong name\n");
        assert_eq!(aligned(&[]), "");
    }
}
