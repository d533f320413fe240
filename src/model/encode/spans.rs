//! Answers from the logits of their first and last tokens (Devlin et al. 2019, section 4.3): the score of a span is the sum
//! of its two logits, and the first token's own span, `[CLS]`, says that there is no answer.

use super::figures::top;
use std::ops::Range;

/// Which spans count.
#[derive(Clone, Copy, Debug)]
pub struct SpanOptions {
    /// Most tokens of an answer.
    pub most_tokens: usize,
    /// Starts and ends that are paired, and spans that are returned: the best of each.
    pub best: usize,
}

impl Default for SpanOptions {
    /// As the scripts of SQuAD have it.
    fn default() -> Self {
        Self { most_tokens: 30, best: 20 }
    }
}

/// A span of a window.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Candidate {
    /// Its first token.
    pub first: usize,
    /// Its last token, included.
    pub last: usize,
    /// Sum of the two logits.
    pub score: f64,
}

/// The best spans inside `context` of a window of `T` tokens with logits `(T, 2)`; the best first.
pub fn best_spans(logits: &[f32], context: Range<usize>, options: SpanOptions) -> Vec<Candidate> {
    let inside =
        |which: usize| -> Vec<f64> { context.clone().map(|token| f64::from(logits[2 * token + which])).collect() };
    let (starts, ends) = (inside(0), inside(1));
    let mut found = Vec::new();
    for &first in &top(&starts, options.best) {
        for &last in &top(&ends, options.best) {
            if last >= first && last - first < options.most_tokens {
                let score = starts[first] + ends[last];
                found.push(Candidate { first: context.start + first, last: context.start + last, score });
            }
        }
    }
    found.sort_by(|a, b| b.score.total_cmp(&a.score).then((a.first, a.last).cmp(&(b.first, b.last))));
    found.truncate(options.best);
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_span_is_the_best_of_all_pairs_that_are_spans_of_the_context() {
        // Starts 9 and ends 9 outside of the context; an end before every start; a pair that is too long.
        let starts = [9.0f32, 1.0, 4.0, 0.0, 2.0, 9.0];
        let ends = [9.0f32, 7.0, 0.0, 1.0, 6.0, 9.0];
        let logits: Vec<f32> = starts.iter().zip(ends).flat_map(|(&start, end)| [start, end]).collect();
        let options = |most_tokens| SpanOptions { most_tokens, best: 10 };
        let best = |most_tokens| best_spans(&logits, 1..5, options(most_tokens))[0];
        assert_eq!(best(30), Candidate { first: 2, last: 4, score: 10.0 });
        assert_eq!(best(2), Candidate { first: 1, last: 1, score: 8.0 });
        assert!(best_spans(&logits, 3..3, options(30)).is_empty());
        let all = best_spans(&logits, 1..5, options(30));
        assert_eq!(all.len(), 10, "four tokens have ten spans");
        assert!(all.windows(2).all(|pair| pair[0].score >= pair[1].score));
    }
}
