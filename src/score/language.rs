//! How well a language model predicts: perplexity, bits, and the entropy that a model without context cannot beat.
//!
//! Losses are natural logarithms, summed over what was predicted: `-Σ ln p(token | context)`. A perplexity depends on
//! the tokenizer, as a coarser one has fewer and harder tokens; bits per byte or character of the text do not.
//!
//! # Source
//! C. E. Shannon, "A Mathematical Theory of Communication", 1948, and "Prediction and Entropy of Printed English", 1951.

use std::f64::consts::LN_2;

/// `exp(summed_loss / tokens)`: the number of equally likely tokens that would be as hard to guess between.
///
/// NaN for no tokens; infinite where the mean loss is above 709.
pub fn perplexity(summed_loss: f64, tokens: u64) -> f64 {
    per(summed_loss, tokens).exp()
}

/// `summed_loss / (bytes · ln 2)`: the bits that an ideal coder with this model needs for each byte of the text.
///
/// NaN for no bytes.
pub fn bits_per_byte(summed_loss: f64, bytes: u64) -> f64 {
    per(summed_loss, bytes) / LN_2
}

/// `summed_loss / (characters · ln 2)`, as [`bits_per_byte`]; a character is a Unicode scalar value.
///
/// NaN for no characters.
pub fn bits_per_character(summed_loss: f64, characters: u64) -> f64 {
    per(summed_loss, characters) / LN_2
}

/// `-Σ p ln p` with `p = count / Σ counts`, in nats: the mean loss of the best predictor that knows how frequent each
/// token is but not its context. A model whose loss is above this has learned less than counting.
///
/// 0 where there are no tokens or only one kind of them.
pub fn unigram_entropy(counts: &[u64]) -> f64 {
    let total: u128 = counts.iter().map(|&count| u128::from(count)).sum();
    let term = |count: u64| {
        let probability = count as f64 / total as f64;
        probability * -probability.ln()
    };
    counts.iter().filter(|&&count| count > 0).map(|&count| term(count)).fold(0.0, |sum, term| sum + term)
}

/// A mean; NaN over nothing, whatever the sum.
fn per(sum: f64, count: u64) -> f64 {
    if count == 0 { f64::NAN } else { sum / count as f64 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::score::goldens::assert_close;

    #[test]
    fn a_uniform_guess_over_v_tokens_has_perplexity_v() {
        assert_close(perplexity(10.0 * 50_f64.ln(), 10), 50.0, 1e-14, "perplexity");
        assert_eq!(perplexity(0.0, 3), 1.0);
        assert_eq!(perplexity(1e6, 1), f64::INFINITY);
    }

    #[test]
    fn a_loss_of_ln_2_is_a_bit() {
        assert_close(bits_per_byte(8.0 * LN_2, 4), 2.0, 1e-15, "bits per byte");
        assert_close(bits_per_character(8.0 * LN_2, 16), 0.5, 1e-15, "bits per character");
    }

    #[test]
    fn the_entropy_of_equal_counts_is_the_logarithm_of_their_number() {
        assert_close(unigram_entropy(&[7; 64]), 64_f64.ln(), 1e-14, "64 equal");
        assert_close(unigram_entropy(&[1, 0, 3]), 2.0 * LN_2 - 0.75 * 3_f64.ln(), 1e-15, "1 and 3");
        assert_close(unigram_entropy(&[u64::MAX, u64::MAX]), LN_2, 1e-15, "counts whose sum has more than 64 bits");
    }

    #[test]
    fn nothing_has_no_mean_and_no_entropy() {
        for mean in [perplexity(0.0, 0), bits_per_byte(1.0, 0), bits_per_character(1.0, 0)] {
            assert!(mean.is_nan());
        }
        for counts in [&[][..], &[0, 0], &[5], &[0, 9, 0]] {
            assert_eq!(unigram_entropy(counts).to_bits(), 0.0_f64.to_bits(), "{counts:?}");
        }
    }
}
