//! A 64-bit running hash of token values: it notices that data changed by accident, and withstands no adversary.
//!
//! Each value is folded in by xor, multiplication by an odd constant and a shift (the mixing step of splitmix64), so
//! every bit of the input reaches every bit of the result. It sees values, not bytes: the same tokens stored as u16
//! and as u32 hash alike. Stable for ever: it is stored in `dataset.json` and in checkpoints.

/// Running hash; equal for equal sequences of values, however they are cut into calls.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Hash(u64);

impl Hash {
    pub(crate) fn new() -> Self {
        Self(0x6A09_E667_F3BC_C908)
    }

    #[inline]
    pub(crate) fn add(&mut self, value: u64) {
        let mixed = (self.0 ^ value).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        self.0 = mixed ^ (mixed >> 31);
    }

    pub(crate) fn add_tokens(&mut self, tokens: impl IntoIterator<Item = u32>) {
        tokens.into_iter().for_each(|token| self.add(u64::from(token)));
    }

    pub(crate) fn finish(self) -> u64 {
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 29)
    }

    /// Sixteen hexadecimal digits.
    pub(crate) fn text(self) -> String {
        format!("{:016x}", self.finish())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(tokens: &[u32]) -> u64 {
        let mut hash = Hash::new();
        hash.add_tokens(tokens.iter().copied());
        hash.finish()
    }

    #[test]
    fn order_length_and_every_value_matter() {
        let base = [1, 2, 3, 0];
        for other in [&[2, 1, 3, 0][..], &[1, 2, 3], &[1, 2, 3, 0, 0], &[1, 2, 3, 1], &[]] {
            assert_ne!(of(&base), of(other), "{other:?}");
        }
    }

    /// The value is stored in files, so it must never change.
    #[test]
    fn the_value_is_stable() {
        assert_eq!(of(&[1, 2, 3, 65535, 70000]), 0x8b3e_9618_41e9_7f4d);
    }
}
