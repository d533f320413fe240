//! Philox 4x32-10, the counter-based random generator (Salmon et al. 2011, "Parallel random numbers: as easy as
//! 1, 2, 3"): any element of any stream in constant time, so masks need no memory and no order of threads.

pub(crate) const MULTIPLIERS: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
pub(crate) const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];

/// Four random words for a counter and a key.
#[inline(always)]
pub fn philox(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for _ in 0..10 {
        let a = u64::from(MULTIPLIERS[0]) * u64::from(counter[0]);
        let b = u64::from(MULTIPLIERS[1]) * u64::from(counter[2]);
        counter = [(b >> 32) as u32 ^ counter[1] ^ key[0], b as u32, (a >> 32) as u32 ^ counter[3] ^ key[1], a as u32];
        key = [key[0].wrapping_add(WEYL[0]), key[1].wrapping_add(WEYL[1])];
    }
    counter
}

/// Key and upper counter words of the stream `(seed, step, site)`; the lower words count blocks of four elements.
///
/// The block index takes one word and a half: 2^48 blocks; site 2^16 of the rest would be too few, so step and seed
/// are mixed into the key by one Philox call of their own.
#[inline(always)]
pub fn stream(seed: u64, step: u64, site: u32) -> ([u32; 2], [u32; 2]) {
    let mixed = philox([step as u32, (step >> 32) as u32, site, 0x656E_6769], [seed as u32, (seed >> 32) as u32]);
    ([mixed[0], mixed[1]], [mixed[2], mixed[3]])
}

/// The random word of element `index` in a stream.
#[inline(always)]
pub fn word(stream: ([u32; 2], [u32; 2]), index: u64) -> u32 {
    let block = index >> 2;
    let counter = [block as u32, (block >> 32) as u32, stream.1[0], stream.1[1]];
    philox(counter, stream.0)[(index & 3) as usize]
}

/// Smallest random word for which dropout keeps the element: `probability · 2^32`, rounded.
#[inline(always)]
pub fn keep_threshold(probability: f32) -> u32 {
    (f64::from(probability) * 4_294_967_296.0).round().min(4_294_967_295.0) as u32
}

/// A uniform number in `[0, 1)` from the upper 24 bits of a word.
#[inline(always)]
pub fn uniform(word: u32) -> f32 {
    (word >> 8) as f32 * (1.0 / 16_777_216.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Known answers of the paper's own distribution (Random123, `kat_vectors`).
    #[test]
    fn philox_gives_the_published_known_answers() {
        assert_eq!(philox([0; 4], [0; 2]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(philox([u32::MAX; 4], [u32::MAX; 2]), [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
        assert_eq!(
            philox([0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344], [0xa409_3822, 0x299f_31d0]),
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]
        );
    }

    #[test]
    fn uniform_stays_below_one() {
        assert_eq!(uniform(0), 0.0);
        assert!(uniform(u32::MAX) < 1.0);
    }
}
