//! Names of classes <-> numbers.

use super::super::error::Result;
use super::super::table::{Cell, Row};
use crate::util::edit_distance::nearest_first;
use std::collections::HashMap;

/// How many of the known names an error lists.
const NAMED: usize = 20;

/// Numbers names as they come; sorted at the end unless they were given.
pub(super) struct Classes {
    names: Vec<String>,
    numbers: HashMap<String, u32>,
    are_given: bool,
}

impl Classes {
    /// With the names that there may be, or none yet.
    pub(super) fn new(given: Option<&[String]>) -> Self {
        let names = given.unwrap_or_default().to_vec();
        let numbers = names.iter().cloned().zip(0..).collect();
        Self { names, numbers, are_given: given.is_some() }
    }

    /// The number of a name, for now: [`finish`](Self::finish) may sort them.
    ///
    /// # Errors
    /// The names are given and this is none of them.
    pub(super) fn number(&mut self, name: &str, row: &Row) -> Result<u32> {
        if let Some(&number) = self.numbers.get(name) {
            return Ok(number);
        }
        if self.are_given {
            let mut known = nearest_first(name, &self.names);
            let more = known.len().saturating_sub(NAMED);
            known.truncate(NAMED);
            let more = if more > 0 { format!(" and {more} more") } else { String::new() };
            let what = format!("label {name:?} is none of the known ones, {}{more}", known.join(", "));
            return Err(row.error(what, "correct it, or make the training set again with this row in it"));
        }
        let number = self.names.len() as u32;
        self.names.push(name.to_string());
        self.numbers.insert(name.to_string(), number);
        Ok(number)
    }

    /// The names in their final order, and the final number of each number that [`number`](Self::number) gave.
    pub(super) fn finish(self) -> (Vec<String>, Vec<u32>) {
        let mut order: Vec<usize> = (0..self.names.len()).collect();
        if !self.are_given {
            let are_numbers = self.names.iter().all(|name| name.parse::<i64>().is_ok());
            let value = |index: usize| if are_numbers { self.names[index].parse::<i64>().unwrap_or(0) } else { 0 };
            order.sort_by_key(|&index| (value(index), &self.names[index]));
        }
        let mut numbers = vec![0; order.len()];
        for (number, &index) in order.iter().enumerate() {
            numbers[index] = number as u32;
        }
        (order.into_iter().map(|index| self.names[index].clone()).collect(), numbers)
    }
}

/// The name of a class in a cell.
pub(super) fn name_of(cell: &Cell, column: &str, row: &Row) -> Result<String> {
    let name = cell.text().map(|name| name.trim().to_string()).filter(|name| !name.is_empty());
    name.ok_or_else(|| {
        let what = match cell {
            Cell::Text(_) | Cell::Missing => format!("empty label in column {column:?}"),
            other => format!("the label in column {column:?} is {}, not a name", other.kind()),
        };
        row.error(what, "give the row a label, or take it out")
    })
}

/// The names of classes in a cell: a list, or text in which `separator` parts them. Empty where there are none.
pub(super) fn names_of(cell: &Cell, column: &str, separator: &str, row: &Row) -> Result<Vec<String>> {
    match cell {
        Cell::Missing => Ok(Vec::new()),
        Cell::List(cells) => cells.iter().map(|cell| name_of(cell, column, row)).collect(),
        Cell::Text(text) if text.trim_start().starts_with('[') => {
            let names: Option<Vec<String>> = serde_json::from_str(text).ok();
            names.ok_or_else(|| {
                let what = format!("the labels in column {column:?} start as a JSON array, but are none of texts");
                row.error(what, "write them as [\"one\", \"two\"], or parted by the separator")
            })
        }
        other => {
            let text = other.text().unwrap_or_default();
            Ok(text.split(separator).map(str::trim).filter(|name| !name.is_empty()).map(String::from).collect())
        }
    }
}
