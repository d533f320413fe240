//! BLEU: the geometric mean of the precisions of word n-grams, with a penalty for a translation that is too short.
//!
//! ```text
//! BLEU = BP · (p₁ · p₂ · p₃ · p₄)^(1/4)        BP = exp(1 - r / h) if h < r, else 1
//! ```
//!
//! `pₙ` in percent: of the corpus's n-grams of `n` words, those that a reference has, each at most as often as in the
//! reference that has it most often. `h` is the length of the corpus in words, `r` that of the references, of which
//! for each sentence the one closest in length counts, the shorter of two.
//!
//! An order without any match would make the figure 0; smoothing `exp` has the first such order count half a match, the
//! next a quarter, and so on. Where there is no match of any order, or no sentence has four words, BLEU is 0.
//!
//! # Source
//! K. Papineni et al., "BLEU: a Method for Automatic Evaluation of Machine Translation", 2002; the smoothing is
//! method 3 of B. Chen and C. Cherry, "A Systematic Comparison of Smoothing Techniques for Sentence-Level BLEU", 2014.

use super::{SACREBLEU_VERSION, Tokenizer, count_ngrams, pairs, reference_count};
use crate::score::Error;
use serde::Serialize;
use std::collections::HashMap;

/// The longest n-grams.
const ORDERS: usize = 4;

/// The BLEU of a corpus, and what it is made of.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Bleu {
    /// From 0 to 100.
    pub score: f64,
    /// N-grams of 1 to 4 words that a reference has.
    pub matches: [u64; ORDERS],
    /// N-grams of 1 to 4 words.
    pub totals: [u64; ORDERS],
    /// Of each order in percent, smoothed.
    pub precisions: [f64; ORDERS],
    pub brevity_penalty: f64,
    /// In words.
    pub hypothesis_length: u64,
    /// In words.
    pub reference_length: u64,
    /// By what rules, as sacreBLEU writes it.
    pub signature: String,
}

/// BLEU of a corpus; `references` holds the references of each hypothesis. 0 for no hypotheses.
///
/// # Errors
/// The lengths differ, or a hypothesis has no reference.
pub fn bleu<H, R, S>(hypotheses: &[H], references: &[R], tokenizer: Tokenizer) -> Result<Bleu, Error>
where
    H: AsRef<str>,
    R: AsRef<[S]>,
    S: AsRef<str>,
{
    let mut counts = Counts::default();
    for (hypothesis, references) in pairs(hypotheses, references)? {
        let references: Vec<Vec<String>> = references.iter().map(|text| tokenizer.words(text)).collect();
        counts.add(&tokenizer.words(hypothesis), &references);
    }
    let (nrefs, tok) = (reference_count(references), tokenizer.name());
    Ok(counts.bleu(format!("nrefs:{nrefs}|case:mixed|eff:no|tok:{tok}|smooth:exp|version:{SACREBLEU_VERSION}")))
}

#[derive(Default)]
struct Counts {
    matches: [u64; ORDERS],
    totals: [u64; ORDERS],
    hypothesis_length: u64,
    reference_length: u64,
}

impl Counts {
    /// Adds a sentence.
    fn add(&mut self, hypothesis: &[String], references: &[Vec<String>]) {
        for order in 1..=ORDERS {
            let mut most: HashMap<&[String], u64> = HashMap::new();
            for reference in references {
                for (ngram, count) in count_ngrams(reference, order) {
                    let highest = most.entry(ngram).or_default();
                    *highest = count.max(*highest);
                }
            }
            for (ngram, count) in count_ngrams(hypothesis, order) {
                self.totals[order - 1] += count;
                self.matches[order - 1] += most.get(ngram).map_or(0, |&highest| count.min(highest));
            }
        }
        let lengths = references.iter().map(Vec::len);
        let closest = lengths.min_by_key(|&length| (length.abs_diff(hypothesis.len()), length)).unwrap_or(0);
        self.hypothesis_length += hypothesis.len() as u64;
        self.reference_length += closest as u64;
    }

    fn bleu(self, signature: String) -> Bleu {
        let precisions = self.precisions();
        let brevity_penalty = self.brevity_penalty();
        // A precision of 0 has the logarithm -∞, of which the exponential is 0 again.
        let mean_logarithm = precisions.iter().map(|precision| precision.ln()).sum::<f64>() / ORDERS as f64;
        Bleu {
            score: brevity_penalty * mean_logarithm.exp(),
            matches: self.matches,
            totals: self.totals,
            precisions,
            brevity_penalty,
            hypothesis_length: self.hypothesis_length,
            reference_length: self.reference_length,
            signature,
        }
    }

    fn precisions(&self) -> [f64; ORDERS] {
        let mut precisions = [0.0; ORDERS];
        if self.matches == [0; ORDERS] {
            return precisions;
        }
        let mut smoothed = 1.0;
        for (order, precision) in precisions.iter_mut().enumerate() {
            *precision = match (self.matches[order], self.totals[order]) {
                (_, 0) => 0.0,
                (0, total) => {
                    smoothed /= 2.0;
                    100.0 * smoothed / total as f64
                }
                (matches, total) => 100.0 * matches as f64 / total as f64,
            };
        }
        precisions
    }

    fn brevity_penalty(&self) -> f64 {
        match (self.hypothesis_length, self.reference_length) {
            (hypothesis, reference) if hypothesis >= reference => 1.0,
            (0, _) => 0.0,
            (hypothesis, reference) => (1.0 - reference as f64 / hypothesis as f64).exp(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::goldens;
    use super::*;
    use crate::score::goldens::assert_close;

    #[test]
    fn figures_are_those_of_sacrebleu() {
        for corpus in goldens::corpora() {
            for tokenizer in Tokenizer::ALL {
                let golden = &corpus.figures.bleu[tokenizer.name()];
                let ours = bleu(&corpus.hypotheses, &corpus.references, tokenizer).unwrap();
                let what = format!("{}, {}", corpus.name, tokenizer.name());
                assert_eq!(ours.totals, golden.totals, "{what}: n-grams");
                assert_eq!(ours.matches, golden.matches, "{what}: matches");
                let lengths = (golden.hypothesis_length, golden.reference_length);
                assert_eq!((ours.hypothesis_length, ours.reference_length), lengths, "{what}: lengths");
                for (ours, golden) in ours.precisions.iter().zip(golden.precisions) {
                    assert_close(*ours, golden, 1e-13, &format!("{what}: precision"));
                }
                assert_close(ours.brevity_penalty, golden.brevity_penalty, 1e-14, &format!("{what}: brevity penalty"));
                assert_close(ours.score, golden.score, 1e-12, &what);
                assert_eq!(ours.signature, golden.signature, "{what}");
            }
        }
    }

    #[test]
    fn a_copy_has_100_and_nothing_has_0() {
        let text = ["A sentence of five words"];
        assert_close(bleu(&text, &[text], Tokenizer::V13a).unwrap().score, 100.0, 1e-14, "a copy");
        assert_eq!(bleu(&[""], &[text], Tokenizer::V13a).unwrap().score, 0.0);
        let none = bleu(&[] as &[&str], &[] as &[[&str; 1]], Tokenizer::Zh).unwrap();
        assert_eq!((none.score, none.brevity_penalty, none.hypothesis_length), (0.0, 1.0, 0));
    }

    #[test]
    fn a_corpus_is_not_the_mean_of_its_sentences() {
        let hypotheses = ["one two three four five six", "b"];
        let references = [["one two three four five six"], ["a"]];
        let corpus = bleu(&hypotheses, &references, Tokenizer::None).unwrap();
        assert_eq!((corpus.matches, corpus.totals), ([6, 5, 4, 3], [7, 5, 4, 3]));
        assert_close(corpus.score, 100.0 * (6.0_f64 / 7.0).powf(0.25), 1e-14, "corpus");
    }

    #[test]
    fn hypotheses_without_references_are_refused() {
        let error = bleu(&["a", "b"], &[["a"]], Tokenizer::None).unwrap_err();
        assert_eq!(error.to_string(), "2 predictions for 1 lists of references; there must be one for each");
        let error = bleu(&["a", "b"], &[vec!["a"], vec![]], Tokenizer::None).unwrap_err();
        assert_eq!(error, Error::NoReference { hypothesis: 1 });
    }
}
