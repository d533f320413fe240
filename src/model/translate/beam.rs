//! Beam search on one sentence: which hypotheses go on after each step, and which of those that ended is best. Nothing is
//! computed here; what comes in are logits.
//!
//! Hypotheses are compared by `ln p(Y) / ((5 + |Y|) / 6)^α` (Wu et al. 2016), with `|Y|` counting the end. At each step
//! the `K` likeliest continuations are looked at: those that end are kept aside, and `K` others, the next likeliest, go
//! on. The search is over when `K` hypotheses have ended, when none that goes on can beat the best of these, or at the
//! limit of tokens, where what has not ended competes as it is.

use super::{Translation, log_sum_exp};

/// A search under way.
pub(super) struct Beam {
    width: usize,
    length_penalty: f64,
    /// The token that ends a translation.
    end: u32,
    /// Tokens of a translation at most, its end included.
    limit: usize,
    /// By row of the decoder; one that has no hypothesis yet has the log-probability minus infinity.
    alive: Vec<Hypothesis>,
    ended: usize,
    best: Option<Translation>,
}

#[derive(Clone, Debug)]
struct Hypothesis {
    tokens: Vec<u32>,
    log_probability: f64,
}

/// A token that may follow a hypothesis.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Candidate {
    log_probability: f64,
    parent: usize,
    token: u32,
}

/// What a step decided.
pub(super) struct Decision {
    /// `(from, to)`: rows that become copies of others, before the next token.
    pub(super) copies: Vec<(usize, usize)>,
    pub(super) is_over: bool,
}

impl Beam {
    pub(super) fn new(width: usize, length_penalty: f64, end: u32, limit: usize) -> Self {
        let mut alive = vec![Hypothesis { tokens: Vec::new(), log_probability: f64::NEG_INFINITY }; width];
        alive[0].log_probability = 0.0;
        Self { width, length_penalty, end, limit, alive, ended: 0, best: None }
    }

    /// The last token of each row; None before the first step.
    pub(super) fn last_token(&self, row: usize) -> Option<u32> {
        self.alive[row].tokens.last().copied()
    }

    fn score(&self, log_probability: f64, length: usize) -> f64 {
        log_probability / ((5.0 + length as f64) / 6.0).powf(self.length_penalty)
    }

    /// Takes the logits `(K, V)` that follow.
    pub(super) fn advance(&mut self, logits: &[f32]) -> Decision {
        let candidates = self.candidates(logits);
        let length = self.alive[0].tokens.len() + 1;
        let mut chosen: Vec<Candidate> = Vec::with_capacity(self.width);
        for (rank, &candidate) in candidates.iter().enumerate() {
            if candidate.token != self.end {
                chosen.push(candidate);
            } else if rank < self.width {
                self.ended += 1;
                let tokens = self.alive[candidate.parent].tokens.clone();
                self.offer(tokens, candidate.log_probability, length, true);
            }
            if chosen.len() == self.width {
                break;
            }
        }
        let copies = self.go_on(&chosen);
        let is_over = self.is_over(length);
        if length >= self.limit && (self.ended < self.width) {
            for row in 0..self.width {
                let Hypothesis { tokens, log_probability } = self.alive[row].clone();
                if log_probability > f64::NEG_INFINITY {
                    self.offer(tokens, log_probability, length, false);
                }
            }
        }
        Decision { copies, is_over }
    }

    fn is_over(&self, length: usize) -> bool {
        let most = self.alive.iter().map(|alive| alive.log_probability).fold(f64::NEG_INFINITY, f64::max);
        // The longest gain most from a penalty that is positive, and the shortest from a negative one.
        let bound = self.score(most, self.limit).max(self.score(most, length + 1));
        let is_beaten = self.best.as_ref().is_some_and(|best| best.score >= bound);
        length >= self.limit || self.ended >= self.width || is_beaten || most == f64::NEG_INFINITY
    }

    /// The likeliest continuations of all rows, likeliest first: enough that `K` remain if every row could end.
    fn candidates(&self, logits: &[f32]) -> Vec<Candidate> {
        let vocabulary = logits.len() / self.width;
        let wanted = 2 * self.width;
        let mut found: Vec<Candidate> = Vec::with_capacity(wanted + 1);
        for (parent, (alive, logits)) in self.alive.iter().zip(logits.chunks_exact(vocabulary)).enumerate() {
            if alive.log_probability == f64::NEG_INFINITY {
                continue;
            }
            let base = alive.log_probability - log_sum_exp(logits);
            // Compared in f32 first: nearly every token is below what was found so far.
            let threshold = |found: &Vec<Candidate>| match found.get(wanted - 1) {
                Some(last) => (last.log_probability - base) as f32,
                None => f32::NEG_INFINITY,
            };
            let mut least = threshold(&found);
            for (token, &logit) in logits.iter().enumerate() {
                if logit < least {
                    continue;
                }
                let candidate = Candidate { log_probability: base + f64::from(logit), parent, token: token as u32 };
                let place = found.partition_point(|other| other.log_probability >= candidate.log_probability);
                if place < wanted {
                    found.insert(place, candidate);
                    found.truncate(wanted);
                    least = threshold(&found);
                }
            }
        }
        found
    }

    /// Puts the chosen into rows, each into that of its parent where no other has taken it, so that few rows are copied
    /// and none is written before it is read.
    fn go_on(&mut self, chosen: &[Candidate]) -> Vec<(usize, usize)> {
        let mut rows: Vec<Option<Candidate>> = vec![None; self.width];
        let (mut copies, mut others) = (Vec::new(), Vec::new());
        for &candidate in chosen {
            match &mut rows[candidate.parent] {
                row @ None => *row = Some(candidate),
                Some(_) => others.push(candidate),
            }
        }
        let free: Vec<usize> = (0..self.width).filter(|&row| rows[row].is_none()).collect();
        for (candidate, row) in others.into_iter().zip(free) {
            copies.push((candidate.parent, row));
            rows[row] = Some(candidate);
        }
        let next = rows.into_iter().map(|candidate| match candidate {
            Some(Candidate { log_probability, parent, token }) => {
                let mut tokens = self.alive[parent].tokens.clone();
                tokens.push(token);
                Hypothesis { tokens, log_probability }
            }
            // Fewer tokens than rows: this one stays empty, of the same length as the others.
            None => Hypothesis {
                tokens: vec![self.end; self.alive[0].tokens.len() + 1],
                log_probability: f64::NEG_INFINITY,
            },
        });
        self.alive = next.collect();
        copies
    }

    /// A hypothesis that goes no further.
    fn offer(&mut self, tokens: Vec<u32>, log_probability: f64, length: usize, is_complete: bool) {
        let score = self.score(log_probability, length);
        if self.best.as_ref().is_none_or(|best| score > best.score) {
            self.best = Some(Translation { tokens, log_probability, score, is_complete });
        }
    }

    /// The best of what has ended.
    pub(super) fn finish(self) -> Translation {
        self.best.unwrap_or_default()
    }
}
