//! Tables for a terminal: names to the left, figures to the right, columns as wide as they need to be.

use std::fmt;

/// Rows of text under a header. The first column is aligned left, the others right.
#[derive(Clone, Debug)]
pub struct Table {
    header: Vec<String>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table without rows.
    pub fn new(header: &[&str]) -> Self {
        Self { header: header.iter().map(|&name| name.to_owned()).collect(), rows: Vec::new() }
    }

    /// Adds a row; cells that are missing are empty.
    pub fn row(&mut self, cells: Vec<String>) -> &mut Self {
        self.rows.push(cells);
        self
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines = || std::iter::once(&self.header).chain(&self.rows);
        let cell_width = |line: &Vec<String>, column: usize| line.get(column).map_or(0, |cell| cell.chars().count());
        let widths: Vec<usize> = (0..self.header.len())
            .map(|column| lines().map(|line| cell_width(line, column)).max().unwrap_or(0))
            .collect();
        for (index, line) in lines().enumerate() {
            let mut text = String::new();
            for (column, &width) in widths.iter().enumerate() {
                let cell = line.get(column).map_or("", String::as_str);
                match column {
                    0 => text.push_str(&format!("{cell:<width$}")),
                    _ => text.push_str(&format!("  {cell:>width$}")),
                }
            }
            let end = if index < self.rows.len() { "\n" } else { "" };
            write!(f, "{}{end}", text.trim_end())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stand_left_and_figures_right() {
        let mut table = Table::new(&["case", "ms", "ratio"]);
        table.row(vec!["a".into(), "12.5".into()]);
        table.row(vec!["longer".into(), "1".into(), "0.5".into()]);
        assert_eq!(table.to_string(), "case      ms  ratio\na       12.5\nlonger     1    0.5");
    }
}
