//! Angles that grow with the position, `position · base^(-2i/n)` radians for the pairs `i` of `n` columns: what
//! sinusoidal (Vaswani et al. 2017) and rotary positions (Su et al. 2021) have in common.
//!
//! As a product of floats the angle of position 100,000 has lost half of its digits before a sine sees it. Here a
//! frequency is a fraction of a turn in 64-bit fixed point, so that multiplying it by a whole position and letting the
//! product wrap around *is* the reduction to one turn, and exact: only the rounding of the frequency is left, 2^-53 of
//! itself for each position. The upper 32 bits of the product are the angle that sines are taken of.

/// Most pairs of columns that have frequencies.
pub(crate) const PAIRS_MAX: usize = 1 << POWERS;
/// Bits of a pair's number.
pub(crate) const POWERS: usize = 16;
/// A quarter of a turn in the upper 32 bits: what a cosine is ahead of a sine.
pub(crate) const QUARTER: u32 = 1 << 30;

/// A whole turn, or one.
const TURN: f64 = 18_446_744_073_709_551_616.0;

/// Turns for each position of a pair of `columns` columns, times 2^64.
pub(crate) fn frequency(base: f64, columns: usize, pair: usize) -> u64 {
    let radians = base.powf(-2.0 * pair as f64 / columns as f64);
    (radians / std::f64::consts::TAU * TURN).round() as u64
}

/// `base^(-2·2^j/columns)` times 2^64 for each bit `j`: a kernel multiplies those of a pair's bits, and 2^64 / 2π.
pub(crate) fn powers(base: f64, columns: usize) -> [u64; POWERS] {
    std::array::from_fn(|bit| (base.powf(-2.0 * (1u64 << bit) as f64 / columns as f64) * TURN).round() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The angle that a position's upper 32 bits stand for, in radians.
    fn angle(position: u32, frequency: u64) -> f64 {
        let turn = (u64::from(position).wrapping_mul(frequency) >> 32) as f64;
        turn / 4_294_967_296.0 * std::f64::consts::TAU
    }

    /// What `kernels/turn.cuh` computes.
    fn product(powers: &[u64; POWERS], pair: usize) -> u64 {
        let whole = (TURN / std::f64::consts::TAU).round() as u64;
        let set = (0..POWERS).filter(|bit| pair >> bit & 1 == 1);
        set.fold(whole, |product, bit| ((u128::from(product) * u128::from(powers[bit])) >> 64) as u64)
    }

    #[test]
    fn angles_are_those_of_f64_up_to_a_million_positions() {
        for (base, columns) in [(10_000.0, 2), (10_000.0, 384), (500_000.0, 128), (1e6, 7)] {
            let powers = powers(base, columns);
            for pair in [0, 1, 2, columns / 4, columns / 2] {
                for position in [0u32, 1, 2, 1023, 99_999, 1_000_000] {
                    let expected = f64::from(position) * base.powf(-2.0 * pair as f64 / columns as f64);
                    for frequency in [frequency(base, columns, pair), product(&powers, pair)] {
                        let found = angle(position, frequency);
                        let error = (found - expected).rem_euclid(std::f64::consts::TAU);
                        let error = error.min(std::f64::consts::TAU - error);
                        assert!(error < 3e-9, "base {base}, pair {pair} of {columns}, position {position}: {error}");
                    }
                }
            }
        }
    }
}
