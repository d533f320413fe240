//! Medians, and the pause between two programs that take turns.

use std::time::{Duration, Instant};

/// Lets the threads of one side go to sleep before the other side starts: our workers and OpenMP's spin for a few
/// milliseconds after their last loop, and would take cores away from the side that is being timed.
const PAUSE: Duration = Duration::from_millis(30);

/// Waits until the side that just ran has come to rest.
pub fn pause() {
    std::thread::sleep(PAUSE);
}

/// The middle value, or the mean of the two in the middle; NaN where there is none.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match (sorted.len(), sorted.len() / 2) {
        (0, _) => f64::NAN,
        (length, middle) if length.is_multiple_of(2) => (sorted[middle - 1] + sorted[middle]) / 2.0,
        (_, middle) => sorted[middle],
    }
}

/// The smallest value; infinity where there is none.
pub fn minimum(values: &[f64]) -> f64 {
    values.iter().copied().fold(f64::INFINITY, f64::min)
}

/// Seconds that a call takes.
///
/// # Errors
/// The call's own.
pub fn seconds<E>(call: impl FnOnce() -> Result<(), E>) -> Result<f64, E> {
    let start = Instant::now();
    call()?;
    Ok(start.elapsed().as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_median_is_the_middle_or_the_mean_of_the_two_around_it() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 3.0, 2.0]), 2.5);
        assert!(median(&[]).is_nan());
        assert_eq!(minimum(&[2.0, 1.0]), 1.0);
    }

    #[test]
    fn a_call_that_fails_has_no_time() {
        assert_eq!(seconds(|| Err::<(), _>("no")), Err("no"));
        assert!(seconds(|| Ok::<(), ()>(())).is_ok_and(|seconds| seconds >= 0.0));
    }
}
