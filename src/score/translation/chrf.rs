//! chrF: the F-score of character n-grams, in which recall counts twice as much as precision.
//!
//! ```text
//! chrF = 100 · (1 + β²) · P · R / (β² · P + R)        β = 2
//! ```
//!
//! `P` is the mean over orders 1 to 6 of the share of the hypotheses' n-grams that the reference has, `R` that of the
//! references' n-grams that the hypothesis has, white space left out. An order that one side has no n-gram of in the
//! whole corpus does not count. chrF++ adds words of orders 1 and 2 to the mean, with a mark at the end or else at the
//! beginning of a word as a word of its own. Of several references a sentence counts with the one whose figure is
//! best.
//!
//! # Source
//! M. Popović, "chrF: character n-gram F-score for automatic MT evaluation", 2015, and "chrF++: words helping
//! character n-grams", 2017.

use super::{SACREBLEU_VERSION, count_ngrams, pairs, reference_count};
use crate::score::Error;
use crate::score::white_space::words;
use serde::Serialize;
use std::hash::Hash;

/// The longest n-grams of characters.
const CHARACTER_ORDERS: usize = 6;
/// β², the weight of recall.
const RECALL_WEIGHT: f64 = 4.0;

/// The chrF of a corpus.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Chrf {
    /// From 0 to 100.
    pub score: f64,
    /// By what rules, as sacreBLEU writes it.
    pub signature: String,
}

/// chrF2 of a corpus: characters only; `references` holds the references of each hypothesis. 0 for no hypotheses.
///
/// # Errors
/// The lengths differ, or a hypothesis has no reference.
pub fn chrf<H, R, S>(hypotheses: &[H], references: &[R]) -> Result<Chrf, Error>
where
    H: AsRef<str>,
    R: AsRef<[S]>,
    S: AsRef<str>,
{
    with_word_orders(hypotheses, references, 0)
}

/// chrF2++ of a corpus: as [`chrf`], with single words and pairs of words.
///
/// # Errors
/// The lengths differ, or a hypothesis has no reference.
pub fn chrf_plus_plus<H, R, S>(hypotheses: &[H], references: &[R]) -> Result<Chrf, Error>
where
    H: AsRef<str>,
    R: AsRef<[S]>,
    S: AsRef<str>,
{
    with_word_orders(hypotheses, references, 2)
}

fn with_word_orders<H, R, S>(hypotheses: &[H], references: &[R], word_orders: usize) -> Result<Chrf, Error>
where
    H: AsRef<str>,
    R: AsRef<[S]>,
    S: AsRef<str>,
{
    let mut corpus = vec![Counts::default(); CHARACTER_ORDERS + word_orders];
    for (hypothesis, references) in pairs(hypotheses, references)? {
        let hypothesis = Segment::new(hypothesis);
        let candidates = references.iter().map(|reference| hypothesis.compare(&Segment::new(reference), word_orders));
        // The first of equals, so not `max_by`, which takes the last.
        let best = candidates
            .map(|counts| (f_score(&counts), counts))
            .reduce(|best, other| if other.0 > best.0 { other } else { best });
        for (sum, counts) in corpus.iter_mut().zip(best.map(|(_, counts)| counts).unwrap_or_default()) {
            sum.hypothesis += counts.hypothesis;
            sum.reference += counts.reference;
            sum.matches += counts.matches;
        }
    }
    let nrefs = reference_count(references);
    let orders = format!("nc:{CHARACTER_ORDERS}|nw:{word_orders}");
    let signature = format!("nrefs:{nrefs}|case:mixed|eff:yes|{orders}|space:no|version:{SACREBLEU_VERSION}");
    Ok(Chrf { score: f_score(&corpus), signature })
}

/// N-grams of one order.
#[derive(Clone, Copy, Default)]
struct Counts {
    hypothesis: u64,
    reference: u64,
    matches: u64,
}

impl Counts {
    fn new<T: Hash + Eq>(hypothesis: &[T], reference: &[T], order: usize) -> Self {
        let references = count_ngrams(reference, order);
        let hypotheses = count_ngrams(hypothesis, order);
        let of_both = |(ngram, count): (&&[T], &u64)| references.get(ngram).map_or(0, |other| *count.min(other));
        Self {
            // N-grams that there is nothing to compare with are not held against a hypothesis.
            hypothesis: if references.is_empty() { 0 } else { hypotheses.values().sum() },
            reference: references.values().sum(),
            matches: hypotheses.iter().map(of_both).sum(),
        }
    }
}

/// A text as what its n-grams are made of.
struct Segment<'a> {
    characters: Vec<char>,
    words: Vec<&'a str>,
}

impl<'a> Segment<'a> {
    fn new(text: &'a str) -> Self {
        Self {
            characters: words(text).flat_map(str::chars).collect(),
            words: words(text).flat_map(mark_apart).collect(),
        }
    }

    /// The counts of all orders, those of words last.
    fn compare(&self, reference: &Segment<'_>, word_orders: usize) -> Vec<Counts> {
        let characters =
            (1..=CHARACTER_ORDERS).map(|order| Counts::new(&self.characters, &reference.characters, order));
        let words = (1..=word_orders).map(|order| Counts::new(&self.words, &reference.words, order));
        characters.chain(words).collect()
    }
}

/// A word, and the mark at its end or else at its beginning. One mark only: `(hi)` gives `(hi` and `)`.
fn mark_apart(word: &str) -> impl Iterator<Item = &str> {
    let cut = if word.chars().nth(1).is_none() {
        0
    } else if word.ends_with(|last: char| last.is_ascii_punctuation()) {
        word.len() - 1
    } else if word.starts_with(|first: char| first.is_ascii_punctuation()) {
        1
    } else {
        0
    };
    let (left, right) = word.split_at(cut);
    [left, right].into_iter().filter(|part| !part.is_empty())
}

/// The F-score of the mean precision and recall over the orders that both sides have.
fn f_score(counts: &[Counts]) -> f64 {
    let (mut precision, mut recall, mut orders) = (0.0, 0.0, 0.0);
    for counts in counts.iter().filter(|counts| counts.hypothesis > 0 && counts.reference > 0) {
        precision += counts.matches as f64 / counts.hypothesis as f64;
        recall += counts.matches as f64 / counts.reference as f64;
        orders += 1.0;
    }
    if precision + recall == 0.0 {
        return 0.0;
    }
    let (precision, recall) = (precision / orders, recall / orders);
    100.0 * (1.0 + RECALL_WEIGHT) * precision * recall / (RECALL_WEIGHT * precision + recall)
}

#[cfg(test)]
mod tests {
    use super::super::goldens;
    use super::*;
    use crate::score::goldens::assert_close;

    #[test]
    fn figures_are_those_of_sacrebleu() {
        for corpus in goldens::corpora() {
            let (hypotheses, references) = (&corpus.hypotheses, &corpus.references);
            let ours = [("chrf", chrf(hypotheses, references)), ("chrf++", chrf_plus_plus(hypotheses, references))];
            for (name, ours) in ours {
                let (ours, golden) = (ours.unwrap(), &corpus.figures.chrf[name]);
                assert_close(ours.score, golden.score, 1e-12, &format!("{}, {name}", corpus.name));
                assert_eq!(ours.signature, golden.signature, "{}, {name}", corpus.name);
            }
        }
    }

    #[test]
    fn one_mark_is_set_apart() {
        let apart = |word| mark_apart(word).collect::<Vec<_>>();
        assert_eq!(apart("(hi)"), ["(hi", ")"]);
        assert_eq!(apart("(hi"), ["(", "hi"]);
        assert_eq!(apart(")"), [")"]);
        assert_eq!(apart("好。"), ["好。"]);
        assert_eq!(apart("好."), ["好", "."]);
    }

    #[test]
    fn recall_counts_more_than_precision() {
        let too_long = chrf(&["abcdef and more of it"], &[["abcdef"]]).unwrap().score;
        let too_short = chrf(&["abcdef"], &[["abcdef and more of it"]]).unwrap().score;
        assert!(too_long > too_short, "{too_long} {too_short}");
    }

    #[test]
    fn a_copy_has_100_and_nothing_has_0() {
        assert_close(chrf(&["好 ok"], &[["好ok"]]).unwrap().score, 100.0, 1e-15, "a copy");
        assert_eq!(chrf(&["", "x"], &[["好"], [""]]).unwrap().score, 0.0);
        assert_eq!(chrf_plus_plus(&[] as &[&str], &[] as &[[&str; 1]]).unwrap().score, 0.0);
    }

    #[test]
    fn hypotheses_without_references_are_refused() {
        let error = chrf(&["a", "b"], &[vec!["a"], vec![]]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "hypothesis 1 (counted from 0) has no reference; give at least one, which may be empty"
        );
    }
}
