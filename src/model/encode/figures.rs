//! What one makes of a model's numbers: probabilities, the largest of them, and the angle between vectors.

/// `exp(x_i) / Σ exp(x_j)`, from the largest down so that nothing overflows.
pub fn softmax(logits: &[f32]) -> Vec<f64> {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let weights: Vec<f64> = logits.iter().map(|&logit| f64::from(logit - largest).exp()).collect();
    let sum: f64 = weights.iter().sum();
    weights.into_iter().map(|weight| weight / sum).collect()
}

/// `1 / (1 + exp(-x))`
pub fn sigmoid(logit: f32) -> f64 {
    1.0 / (1.0 + (-f64::from(logit)).exp())
}

/// The places of the `count` largest values, the largest first; of equal ones the first.
pub fn top(values: &[f64], count: usize) -> Vec<usize> {
    let mut places: Vec<usize> = (0..values.len()).collect();
    let larger_first = |&a: &usize, &b: &usize| values[b].total_cmp(&values[a]).then(a.cmp(&b));
    if count < places.len() {
        places.select_nth_unstable_by(count, larger_first);
        places.truncate(count);
    }
    places.sort_unstable_by(larger_first);
    places
}

/// Scales a vector to length 1; one of zeros stays.
pub fn normalize(vector: &mut [f32]) {
    let length = dot(vector, vector).sqrt();
    if length > 0.0 {
        vector.iter_mut().for_each(|value| *value = (f64::from(*value) / length) as f32);
    }
}

/// The cosine of the angle between two vectors; 0 with one of zeros.
pub fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let lengths = (dot(a, a) * dot(b, b)).sqrt();
    if lengths > 0.0 { dot(a, b) / lengths } else { 0.0 }
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probabilities_sum_to_one_whatever_the_size_of_logits() {
        for logits in [vec![0.0f32], vec![1e4, 1e4 - 1.0, -1e4], vec![-3e38, 3e38]] {
            let found = softmax(&logits);
            assert!((found.iter().sum::<f64>() - 1.0).abs() < 1e-12, "{found:?}");
        }
        let found = softmax(&[1.0, 2.0]);
        assert!((found[1] - sigmoid(1.0)).abs() < 1e-12, "two classes are one logistic");
        assert_eq!((sigmoid(-1e30), sigmoid(1e30)), (0.0, 1.0));
    }

    #[test]
    fn the_largest_come_first_and_of_equal_ones_the_first() {
        let values = [0.1, 0.5, 0.5, 0.9, 0.2];
        assert_eq!(top(&values, 3), [3, 1, 2]);
        assert_eq!(top(&values, 9), [3, 1, 2, 4, 0]);
        assert!(top(&values, 0).is_empty() && top(&[], 2).is_empty());
    }

    #[test]
    fn angles_do_not_depend_on_lengths() {
        let (a, mut b) = ([3.0, 4.0], [6.0, 8.0]);
        assert!((cosine(&a, &b) - 1.0).abs() < 1e-12);
        assert_eq!((cosine(&a, &[-4.0, 3.0]), cosine(&a, &[0.0, 0.0])), (0.0, 0.0));
        normalize(&mut b);
        assert_eq!(b, [0.6, 0.8]);
        let mut zeros = [0.0; 2];
        normalize(&mut zeros);
        assert_eq!(zeros, [0.0; 2]);
    }
}
