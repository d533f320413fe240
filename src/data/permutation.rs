//! A random permutation of `0..n` in constant memory: element `i` of it is computed, not looked up.
//!
//! A balanced Feistel network permutes the smallest `4^k >= n` numbers (Luby and Rackoff 1988); where it leads out of
//! `0..n`, it is applied again until it comes back, which stays a permutation ("cycle walking", Black and Rogaway
//! 2002). Fewer than four steps are needed on average, since `4^k < 4n`.

use crate::ops::philox::philox;

/// Luby and Rackoff ask for four rounds; six also mix the very small domains of tiny data sets well.
const ROUNDS: u32 = 6;

/// Marks the random words of this use, so that no other use of the same seed draws the same ones.
const DOMAIN: u32 = 0x7368_7566;

/// A permutation of `0..size`, one for each `(seed, number)`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Permutation {
    size: u64,
    half_bits: u32,
    key: [u32; 2],
    number: u64,
}

impl Permutation {
    pub(crate) fn new(size: u64, seed: u64, number: u64) -> Self {
        let bits = u64::BITS - size.saturating_sub(1).leading_zeros();
        Self { size, half_bits: bits.div_ceil(2), key: [seed as u32, (seed >> 32) as u32], number }
    }

    /// Where `index` goes.
    pub(crate) fn apply(&self, index: u64) -> u64 {
        debug_assert!(index < self.size);
        let mut value = index;
        loop {
            value = self.network(value);
            if value < self.size {
                return value;
            }
        }
    }

    fn network(&self, value: u64) -> u64 {
        let mask = (1u64 << self.half_bits) - 1;
        let (mut left, mut right) = (value >> self.half_bits, value & mask);
        for round in 0..ROUNDS {
            // Halves have at most 32 bits; the round takes the upper byte of the domain word.
            let counter = [right as u32, self.number as u32, (self.number >> 32) as u32, DOMAIN ^ (round << 28)];
            (left, right) = (right, left ^ (u64::from(philox(counter, self.key)[0]) & mask));
        }
        (left << self.half_bits) | right
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_size_is_permuted() {
        for size in (1..70).chain([255, 256, 257, 1000, 4097]) {
            let permutation = Permutation::new(size, 3, 9);
            let mut seen = vec![false; size as usize];
            for index in 0..size {
                let to = permutation.apply(index) as usize;
                assert!(!std::mem::replace(&mut seen[to], true), "{size}: {to} twice");
            }
        }
    }

    #[test]
    fn every_element_goes_everywhere_about_equally_often() {
        const SIZE: usize = 10;
        const DRAWS: usize = 20_000;
        let mut counts = [[0usize; SIZE]; SIZE];
        for number in 0..DRAWS {
            let permutation = Permutation::new(SIZE as u64, 1, number as u64);
            for (index, row) in counts.iter_mut().enumerate() {
                row[permutation.apply(index as u64) as usize] += 1;
            }
        }
        // Expected 2000, standard deviation 42: six of them.
        for (index, row) in counts.iter().enumerate() {
            assert!(row.iter().all(|&count| (1750..2250).contains(&count)), "{index}: {row:?}");
        }
    }

    #[test]
    fn large_sizes_stay_in_range() {
        let size = u64::from(u32::MAX) * 1000 + 7;
        let permutation = Permutation::new(size, 5, 0);
        let images: std::collections::BTreeSet<u64> = (0..1000).map(|index| permutation.apply(index)).collect();
        assert_eq!(images.len(), 1000);
        assert!(images.iter().all(|&image| image < size));
    }
}
