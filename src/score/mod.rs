//! The figures by which predictions are judged: pure functions over plain data.
//!
//! [`classification`] and [`regression`] are defined as in scikit-learn and scipy, [`squad`] as in the official
//! scripts of SQuAD and MLQA, [`translation`] as in sacreBLEU, [`language`] by information theory; the tests compare
//! each with what those compute (`tests/goldens/make_scores.py`). Nothing here knows a model, a tape or a file: what
//! comes in are labels, numbers and texts, what goes out are numbers, and reports of them.
//!
//! All functions are total. A share of nothing is 0, as scikit-learn's `zero_division=0` has it: precision where
//! nothing was predicted, the accuracy of no examples. A mean over nothing, and a correlation with something that
//! does not vary, is NaN, as in scipy.

pub mod classification;
pub mod language;
pub mod prediction;
mod punctuation;
pub mod regression;
pub mod squad;
pub mod translation;
mod white_space;

/// Why predictions cannot be judged.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// There is not one prediction for each thing to predict.
    #[error("{predictions} predictions for {expected} {what}; there must be one for each")]
    Lengths { predictions: usize, what: &'static str, expected: usize },

    /// A class that has no name.
    #[error("example {example}: {role} is class {class}, but there are {classes} classes, counted from 0")]
    Class { example: u64, role: &'static str, class: usize, classes: usize },

    /// A matrix of examples by classes with a broken row.
    #[error("{values} values are not whole rows of {classes} classes; there must be one for each class and example")]
    BrokenRow { values: usize, classes: usize },

    /// A translation that there is nothing to compare with.
    #[error("hypothesis {hypothesis} (counted from 0) has no reference; give at least one, which may be empty")]
    NoReference { hypothesis: usize },

    /// A name that no tokenizer of [`translation`] has.
    #[error("no tokenizer is called {name:?}; there are 13a, zh, char and none")]
    UnknownTokenizer { name: String },
}

/// `part / whole`, and 0 of nothing.
fn share(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

/// Whether most of these texts have a Chinese character.
fn are_mostly_chinese<'a>(texts: impl IntoIterator<Item = &'a str>) -> bool {
    let (mut chinese, mut others) = (0, 0);
    for text in texts {
        match text.chars().any(|c| ('\u{4E00}'..='\u{9FFF}').contains(&c)) {
            true => chinese += 1,
            false => others += 1,
        }
    }
    chinese > others
}

fn check_lengths(predictions: usize, what: &'static str, expected: usize) -> Result<(), Error> {
    if predictions == expected { Ok(()) } else { Err(Error::Lengths { predictions, what, expected }) }
}

/// What the tests compare with.
#[cfg(test)]
mod goldens {
    /// A file of `tests/goldens/scores`.
    pub fn load<T: serde::de::DeserializeOwned>(name: &str) -> T {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens/scores");
        let text = std::fs::read_to_string(folder.join(name)).expect("the golden can be read");
        serde_json::from_str(&text).expect("the golden is what the test expects")
    }

    /// Fails if a figure is off by more than `tolerance`, relative where it is larger than 1.
    #[track_caller]
    pub fn assert_close(figure: f64, golden: f64, tolerance: f64, what: &str) {
        let bound = tolerance * golden.abs().max(1.0);
        assert!((figure - golden).abs() <= bound, "{what}: {figure} is not the golden's {golden}");
    }
}
