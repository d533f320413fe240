//! Philox 4x32-10 over vectors: the bits of [`crate::ops::philox`], a cache line of random words at a time.
//!
//! Each lane runs the generator for one block of four elements. The four words of a block then have to end up side
//! by side, which is a transposition: with `LANES / 4` groups, where lane `l` of group `g` takes block
//! `l · LANES/4 + g`, the words of all groups are the rows of a square tile whose columns are `LANES` consecutive
//! elements each. The groups are independent, which also hides the latency of the multiplications.

use super::Vector;
use crate::ops::philox::{MULTIPLIERS, WEYL, word};

/// Key and upper counter words, as [`crate::ops::philox::stream`] gives them.
pub type Stream = ([u32; 2], [u32; 2]);

/// Most lanes that any [`Vector`] has.
const LANES_MAX: usize = 16;

/// `0, 1, 2, …` for the counters of a vector's lanes.
static LANE_INDEX: [i32; LANES_MAX] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15];

/// Ten rounds for `LANES` counters at once.
#[inline(always)]
fn rounds<V: Vector>(mut counter: [V::Int; 4], mut key: [u32; 2]) -> [V::Int; 4] {
    let multipliers = MULTIPLIERS.map(|multiplier| V::int_splat(multiplier as i32));
    for _ in 0..10 {
        let (a_low, a_high) = V::int_multiply_wide(multipliers[0], counter[0]);
        let (b_low, b_high) = V::int_multiply_wide(multipliers[1], counter[2]);
        let keys = key.map(|word| V::int_splat(word as i32));
        counter = [
            V::int_xor(V::int_xor(b_high, counter[1]), keys[0]),
            b_low,
            V::int_xor(V::int_xor(a_high, counter[3]), keys[1]),
            a_low,
        ];
        key = [key[0].wrapping_add(WEYL[0]), key[1].wrapping_add(WEYL[1])];
    }
    counter
}

/// Writes the factor of `LANES * LANES` elements from `first` on, a multiple of 4: `scale` or zero.
///
/// # Safety
/// `out` must be valid for writes of that many values.
#[inline(always)]
unsafe fn factors_tile<V: Vector>(stream: Stream, first: u64, threshold: u32, scale: f32, out: *mut f32) {
    const { assert!(V::LANES <= LANES_MAX && V::LANES % 4 == 0) };
    let groups = V::LANES / 4;
    let mut tile = [0.0f32; LANES_MAX * LANES_MAX];
    let block = first / 4;
    // SAFETY: LANE_INDEX has LANES_MAX entries.
    let lane = unsafe { V::int_load(LANE_INDEX.as_ptr()) };
    let (threshold, scale) = (V::int_splat(threshold as i32), V::splat(scale));
    for group in 0..groups {
        let start = V::int_splat((block as u32).wrapping_add(group as u32) as i32);
        // LANES / 4 is 2 or 4.
        let offset = if groups == 4 { V::int_shift_left::<2>(lane) } else { V::int_shift_left::<1>(lane) };
        let words = rounds::<V>(
            [
                V::int_add(start, offset),
                V::int_splat((block >> 32) as i32),
                V::int_splat(stream.1[0] as i32),
                V::int_splat(stream.1[1] as i32),
            ],
            stream.0,
        );
        for (i, &word) in words.iter().enumerate() {
            let factor = V::select(V::int_less_unsigned(word, threshold), V::zero(), scale);
            // SAFETY: row `4 group + i < LANES` of the tile.
            unsafe { factor.store(tile.as_mut_ptr().add((4 * group + i) * V::LANES)) };
        }
    }
    // SAFETY: the tile has LANES rows of LANES values; `out` by the caller's contract.
    unsafe { V::transpose(tile.as_ptr(), V::LANES, out, V::LANES) };
}

/// Dropout's factors of the elements `first ..` of a stream: `scale` where the element's word is at least
/// `threshold`, zero where it is below (see [`crate::ops::philox::keep_threshold`]).
///
/// Fastest where `first` is a multiple of 4.
#[inline(always)]
pub fn dropout_factors<V: Vector>(stream: Stream, first: u64, threshold: u32, scale: f32, factors: &mut [f32]) {
    let tile = V::LANES * V::LANES;
    let mut at = 0;
    // Elements before the first whole block, one by one.
    let head = factors.len().min((first.wrapping_neg() % 4) as usize);
    while at < head {
        factors[at] = if word(stream, first + at as u64) < threshold { 0.0 } else { scale };
        at += 1;
    }
    let mut rest = [0.0f32; LANES_MAX * LANES_MAX];
    while at < factors.len() {
        let index = first + at as u64;
        let count = tile.min(factors.len() - at);
        // The counters of a tile share their upper word, unless the lower one wraps around inside it, which it does
        // once in 2^34 elements.
        if (index / 4) as u32 > u32::MAX - (tile / 4) as u32 {
            for (i, factor) in factors[at..at + count].iter_mut().enumerate() {
                *factor = if word(stream, index + i as u64) < threshold { 0.0 } else { scale };
            }
        } else if count == tile {
            // SAFETY: `tile` values are left.
            unsafe { factors_tile::<V>(stream, index, threshold, scale, factors.as_mut_ptr().add(at)) };
        } else {
            // SAFETY: `rest` holds the largest tile.
            unsafe { factors_tile::<V>(stream, index, threshold, scale, rest.as_mut_ptr()) };
            factors[at..at + count].copy_from_slice(&rest[..count]);
        }
        at += count;
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Kernel, Level};
    use super::*;
    use crate::ops::philox::{keep_threshold, stream};
    use crate::ops::testing::poisoned;

    struct Fill<'a>(Stream, u64, u32, &'a mut [f32]);

    impl Kernel for Fill<'_> {
        type Output = ();
        #[inline(always)]
        fn run<V: Vector>(self) {
            dropout_factors::<V>(self.0, self.1, self.2, 1.25, self.3);
        }
    }

    #[test]
    fn vector_masks_equal_the_scalar_generator_for_every_start_and_length() {
        let stream = stream(0x0123_4567_89AB_CDEF, 77, 5);
        let threshold = keep_threshold(0.3);
        let wrap = 1u64 << 34;
        for level in Level::available() {
            for first in [0, 1, 2, 3, 4, 1023, wrap - 3, wrap - 70, wrap - 400, wrap, 5 * wrap + 9] {
                for length in [0, 1, 3, 17, 64, 113, 256, 1023] {
                    let mut factors = poisoned(length);
                    level.run(Fill(stream, first, threshold, &mut factors));
                    for (i, &factor) in factors.iter().enumerate() {
                        let kept = word(stream, first + i as u64) >= threshold;
                        let expected = if kept { 1.25 } else { 0.0 };
                        assert_eq!(factor, expected, "{} element {first} + {i} of {length}", level.name());
                    }
                }
            }
        }
    }
}
