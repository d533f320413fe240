//! What a set of labelled examples holds, for people to look at.

use super::{Description, Label, LabelledSet};
use crate::data::tokenizer::Tokenizer;
use serde::Serialize;

/// Lines of the histogram at most.
const BUCKETS: usize = 10;

/// What a set holds.
#[derive(Debug, Serialize)]
pub struct Summary {
    /// The folder; None in memory.
    pub path: Option<String>,
    /// What it is and how it was made.
    #[serde(flatten)]
    pub description: Description,
    /// How many examples each class has, in the order of their numbers.
    pub class_counts: Vec<u64>,
    /// Of regression: the smallest label, the mean and the largest.
    pub values: Option<[f64; 3]>,
    /// Of spans: examples with an answer in them.
    pub answered: Option<usize>,
    /// Tokens of the shortest example, the mean, and those of the longest.
    pub lengths: (usize, f64, usize),
    /// How many examples have how many tokens.
    pub histogram: Vec<Bucket>,
    /// The first examples.
    pub samples: Vec<Sample>,
}

/// A line of the histogram.
#[derive(Debug, Serialize)]
pub struct Bucket {
    /// Tokens from here on.
    pub from: usize,
    /// Tokens up to here.
    pub to: usize,
    /// Examples of such a length.
    pub examples: usize,
}

/// An example as text.
#[derive(Debug, Serialize)]
pub struct Sample {
    /// Its text, special tokens included.
    pub text: String,
    /// Its label as text; for spans the answer as the tokenizer decodes it.
    pub label: Option<String>,
}

/// Summarises a set; its first `samples` examples as text where there is a tokenizer.
pub fn summary(set: &LabelledSet, tokenizer: Option<&Tokenizer>, samples: usize) -> Summary {
    let lengths: Vec<usize> = (0..set.len()).map(|example| set.length(example)).collect();
    let (shortest, longest) = (lengths.iter().min().copied().unwrap_or(0), lengths.iter().max().copied().unwrap_or(0));
    let mean = lengths.iter().sum::<usize>() as f64 / lengths.len().max(1) as f64;
    let labels = || (0..set.len()).map(|example| set.label(example));
    let values: Vec<f64> = labels()
        .filter_map(|label| if let Label::Value(value) = label { Some(f64::from(value)) } else { None })
        .collect();
    let answered = labels().filter(|label| matches!(label, Label::Span(Some(_)))).count();
    let width = (longest + 1 - shortest.min(longest)).div_ceil(BUCKETS);
    let histogram = (0..BUCKETS).map(|bucket| {
        let (from, to) = (shortest + bucket * width, (shortest + (bucket + 1) * width - 1).min(longest));
        let examples = lengths.iter().filter(|length| (from..=to).contains(length)).count();
        Bucket { from, to, examples }
    });
    Summary {
        path: set.path().map(|path| path.display().to_string()),
        description: set.description().clone(),
        class_counts: set.class_counts(),
        values: (!values.is_empty()).then(|| {
            let smallest = values.iter().copied().fold(f64::INFINITY, f64::min);
            let largest = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            [smallest, values.iter().sum::<f64>() / values.len() as f64, largest]
        }),
        answered: (set.kind() == super::Kind::Span).then_some(answered),
        lengths: (shortest, mean, longest),
        histogram: histogram.filter(|bucket| bucket.from <= bucket.to).collect(),
        samples: tokenizer
            .map(|tokenizer| (0..samples.min(set.len())).map(|example| sample(set, tokenizer, example)).collect())
            .unwrap_or_default(),
    }
}

fn sample(set: &LabelledSet, tokenizer: &Tokenizer, example: usize) -> Sample {
    let mut ids = Vec::with_capacity(set.length(example));
    set.tokens(example).for_each(|id| ids.push(id));
    let label = match set.label(example) {
        Label::None => None,
        Label::Class(class) => Some(set.classes()[class].clone()),
        Label::Classes(classes) => {
            Some(classes.iter().map(|&class| set.classes()[class].as_str()).collect::<Vec<_>>().join(", "))
        }
        Label::Value(value) => Some(value.to_string()),
        Label::Span(answer) => Some(answer.map_or("no answer here".into(), |range| tokenizer.decode(&ids[range]))),
    };
    Sample { text: tokenizer.decode(&ids), label }
}
