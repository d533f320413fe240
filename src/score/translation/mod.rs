//! Translations against references: BLEU and chrF of a corpus, as sacreBLEU defines them.
//!
//! Both count n-grams that a hypothesis and its reference share: [`bleu`] of words, by a [`Tokenizer`] that is part of
//! the figure, [`chrf`] of characters, [`chrf_plus_plus`] also of words. Counts are added up over the corpus before
//! anything is divided, so the figure of a corpus is not the mean over its sentences. Figures go from 0 to 100 and come
//! with the signature that sacreBLEU gives them, by which figures of different papers can be compared.
//!
//! # Source
//! M. Post, "A Call for Clarity in Reporting BLEU Scores", 2018; sacreBLEU 2.6.0.

mod bleu;
mod chrf;
mod tokenizer;

pub use bleu::{Bleu, bleu};
pub use chrf::{Chrf, chrf, chrf_plus_plus};
pub use tokenizer::Tokenizer;

use super::{Error, check_lengths};
use std::collections::HashMap;
use std::hash::Hash;

/// The version of sacreBLEU whose definitions these are, as its signatures name it.
const SACREBLEU_VERSION: &str = "2.6.0";

/// How often each run of `order` items occurs.
fn count_ngrams<T: Hash + Eq>(items: &[T], order: usize) -> HashMap<&[T], u64> {
    let mut counts = HashMap::with_capacity((items.len() + 1).saturating_sub(order));
    for ngram in items.windows(order) {
        *counts.entry(ngram).or_default() += 1;
    }
    counts
}

/// Each hypothesis with its references, of which there is at least one.
fn pairs<'a, H, R, S>(
    hypotheses: &'a [H],
    references: &'a [R],
) -> Result<impl Iterator<Item = (&'a str, Vec<&'a str>)>, Error>
where
    H: AsRef<str>,
    R: AsRef<[S]>,
    S: AsRef<str> + 'a,
{
    check_lengths(hypotheses.len(), "lists of references", references.len())?;
    if let Some(hypothesis) = references.iter().position(|listed| listed.as_ref().is_empty()) {
        return Err(Error::NoReference { hypothesis });
    }
    let texts = |listed: &'a R| listed.as_ref().iter().map(AsRef::as_ref).collect();
    Ok(hypotheses.iter().zip(references).map(move |(hypothesis, listed)| (hypothesis.as_ref(), texts(listed))))
}

/// The number of references of each hypothesis, as signatures have it: `var` where it varies.
fn reference_count<R: AsRef<[S]>, S>(references: &[R]) -> String {
    let mut counts = references.iter().map(|listed| listed.as_ref().len());
    let first = counts.next().unwrap_or(0);
    if counts.all(|count| count == first) { first.to_string() } else { "var".to_owned() }
}

/// Hypotheses and references with sacreBLEU's figures.
#[cfg(test)]
mod goldens {
    use crate::score::goldens;
    use serde::Deserialize;
    use std::collections::HashMap;

    #[derive(Deserialize)]
    pub struct Golden {
        pub corpora: Vec<Corpus>,
        pub every_character: Figures,
    }

    #[derive(Deserialize)]
    pub struct Corpus {
        pub name: String,
        pub hypotheses: Vec<String>,
        pub references: Vec<Vec<String>>,
        #[serde(flatten)]
        pub figures: Figures,
    }

    #[derive(Deserialize)]
    pub struct Figures {
        pub bleu: HashMap<String, Bleu>,
        pub chrf: HashMap<String, Chrf>,
    }

    #[derive(Deserialize)]
    pub struct Bleu {
        pub score: f64,
        pub matches: [u64; 4],
        pub totals: [u64; 4],
        pub precisions: [f64; 4],
        pub brevity_penalty: f64,
        pub hypothesis_length: u64,
        pub reference_length: u64,
        pub signature: String,
    }

    #[derive(Deserialize)]
    pub struct Chrf {
        pub score: f64,
        pub signature: String,
    }

    /// All corpora, also the one that the script does not write out: every character of some blocks in a sentence.
    pub fn corpora() -> Vec<Corpus> {
        let Golden { mut corpora, every_character } = goldens::load("translation.json");
        let codes = (1..0x3400).chain(0xf8f0..0xfb10).chain(0xfe00..0x10000).chain([0x1f600, 0x20000, 0x2f801]);
        let characters = codes.filter_map(char::from_u32);
        let hypotheses: Vec<String> = characters.map(|c| format!("a{c}b 1{c}2")).collect();
        let references = vec![vec!["a b 1 2".to_owned()]; hypotheses.len()];
        corpora.push(Corpus { name: "every character".into(), hypotheses, references, figures: every_character });
        assert!(corpora.len() >= 50);
        corpora
    }
}
