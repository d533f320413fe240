//! mma.sync without leaving the lane layout.
//!
//! In the manual's layouts lane = 4 * group + t, and a register of A or B holds `PER` neighbours in k, so the plane of a
//! register is a matrix of words as it lies, 8 groups by 4 words:
//! - A: a group is a row, its 4 words are a block of k. Nothing to move: k is read from it number by number.
//! - C and D: a group is a row; one register has its even columns, the next its odd ones. Side by side they are a vector of
//!   the 8 columns in the order 0 2 4 6 1 3 5 7.
//! - B: a group is a column. Transposed, it is one vector of 8 columns for each word of k; with the columns in the order
//!   above, that is two transpositions of 4x4 words, which stay within 128 bits.
//!
//! The product is then `sums[row] += a[row][k] * b[k]` over vectors of 8 columns, 8 rows in flight. For each element of D
//! that adds the products in order of k, as the plain product (`row_product`) does: the tests compare the bits.

use super::fragment::Element;
use super::row_product::Product;
use crate::execute::half_float::{bf16_to_f32, f16_to_f32, f32_to_f16};
use crate::lanes::{LANES, LaneLoop, Plane, Word, store_lanes, transpose_words};

/// Rows, or columns, that a register spreads over: lane / 4.
const GROUPS: usize = 8;
/// Words of k in a register: lane % 4.
const WORDS: usize = 4;
/// Most registers of B.
const MOST_BLOCKS: usize = 2;

/// The numbers in A and B, `PER` to a word, and how they are multiplied.
pub trait Arithmetic<const PER: usize>: Copy + Send + Sync + 'static {
    type Number: Copy + Default;
    /// The number at `index` in a word of A.
    fn left(self, word: u32, index: usize) -> Self::Number;
    /// The number at `index` in a word of B.
    fn right(self, word: u32, index: usize) -> Self::Number;
    fn from_word(word: u32) -> Self::Number;
    fn to_word(number: Self::Number) -> u32;
    fn multiply_add(self, left: Self::Number, right: Self::Number, sum: Self::Number) -> Self::Number;
    /// What the sums start from, given C.
    fn start(c: Self::Number) -> Self::Number;
    /// D, given C and the sum.
    fn finish(self, c: Self::Number, sum: Self::Number) -> Self::Number;
}

macro_rules! float_arithmetic {
    ($name:ident, $per:literal, |$word:ident, $index:ident| $unpack:expr) => {
        #[derive(Debug, Clone, Copy)]
        pub struct $name;

        impl Arithmetic<$per> for $name {
            type Number = f32;
            #[inline(always)]
            fn left(self, $word: u32, $index: usize) -> f32 {
                $unpack
            }
            #[inline(always)]
            fn right(self, word: u32, index: usize) -> f32 {
                self.left(word, index)
            }
            #[inline(always)]
            fn from_word(word: u32) -> f32 {
                f32::from_bits(word)
            }
            #[inline(always)]
            fn to_word(number: f32) -> u32 {
                number.to_bits()
            }
            #[inline(always)]
            fn multiply_add(self, left: f32, right: f32, sum: f32) -> f32 {
                left.mul_add(right, sum)
            }
            #[inline(always)]
            fn start(c: f32) -> f32 {
                c
            }
            #[inline(always)]
            fn finish(self, _: f32, sum: f32) -> f32 {
                sum
            }
        }
    };
}
float_arithmetic!(Bf16, 2, |word, index| bf16_to_f32((word >> (16 * index)) as u16));
float_arithmetic!(F16, 2, |word, index| f16_to_f32((word >> (16 * index)) as u16));
// The tensor cores ignore the low 13 bits.
float_arithmetic!(Tf32, 1, |word, _index| f32::from_bits(word & 0xFFFF_E000));

/// The sum of the products fits in 32 bits (64 products of 8-bit numbers have 22); C comes to it at the end.
macro_rules! integer_arithmetic {
    ($name:ident, [$($per:literal),*], |$own:ident, $l:ident, $r:ident| $multiply:expr, $left:expr, $right:expr) => {
        $(
            impl Arithmetic<$per> for $name {
                type Number = i32;
                #[inline(always)]
                fn left(self, word: u32, index: usize) -> i32 {
                    $left(self).integer(word, index)
                }
                #[inline(always)]
                fn right(self, word: u32, index: usize) -> i32 {
                    $right(self).integer(word, index)
                }
                #[inline(always)]
                fn from_word(word: u32) -> i32 {
                    word as i32
                }
                #[inline(always)]
                fn to_word(number: i32) -> u32 {
                    number as u32
                }
                #[inline(always)]
                fn multiply_add(self, $l: i32, $r: i32, sum: i32) -> i32 {
                    let $own = self;
                    sum.wrapping_add($multiply)
                }
                #[inline(always)]
                fn start(_: i32) -> i32 {
                    0
                }
                #[inline(always)]
                fn finish(self, c: i32, sum: i32) -> i32 {
                    if self.saturates { c.saturating_add(sum) } else { c.wrapping_add(sum) }
                }
            }
        )*
    };
}

/// 4- and 8-bit numbers; A and B may differ in sign.
#[derive(Debug, Clone, Copy)]
pub struct Integers {
    pub a: Element,
    pub b: Element,
    pub saturates: bool,
}
integer_arithmetic!(Integers, [4, 8], |_own, l, r| l.wrapping_mul(r), |own: Self| own.a, |own: Self| own.b);

/// Words of one-bit numbers.
#[derive(Debug, Clone, Copy)]
pub struct Bits {
    pub uses_and: bool,
    pub saturates: bool,
}
integer_arithmetic!(
    Bits,
    [1],
    |own, l, r| if own.uses_and { (l & r).count_ones() as i32 } else { (l ^ r).count_ones() as i32 },
    |_: Self| Element::Bits,
    |_: Self| Element::Bits
);

/// `a * b + c` of one mma.sync: A of 8 or 16 rows, sums in f32 or i32.
#[derive(Debug)]
pub struct LaneProduct<const PER: usize, M> {
    /// Registers of A: for each block of k, one for each 8 rows.
    a: Vec<u32>,
    /// Registers of B: one for each block of k.
    b: Vec<u32>,
    c: Vec<u32>,
    d: Vec<u32>,
    /// C and D are packed f16.
    c_is_half: bool,
    d_is_half: bool,
    arithmetic: M,
}

impl<const PER: usize, M: Arithmetic<PER>> LaneProduct<PER, M> {
    /// Takes the registers of a product whose fragments are mma's.
    pub fn new(product: Product, arithmetic: M) -> Self {
        Self {
            c_is_half: product.c.element == Element::F16,
            d_is_half: product.d.element == Element::F16,
            a: product.a.registers,
            b: product.b.registers,
            c: product.c.registers,
            d: product.d.registers,
            arithmetic,
        }
    }
}

/// 8 columns by 4 words to 4 words by 8 columns, even ones first.
#[inline(always)]
fn transpose(words: &[u32; LANES]) -> [[u32; GROUPS]; WORDS] {
    let columns: [[u32; WORDS]; GROUPS] = bytemuck::cast(*words);
    let even = transpose_words([columns[0], columns[2], columns[4], columns[6]]);
    let odd = transpose_words([columns[1], columns[3], columns[5], columns[7]]);
    let mut result = [[0; GROUPS]; WORDS];
    for t in 0..WORDS {
        result[t][..WORDS].copy_from_slice(&even[t]);
        result[t][WORDS..].copy_from_slice(&odd[t]);
    }
    result
}

/// 8 rows of C: even columns, then odd ones.
type Rows = [[u32; GROUPS]; GROUPS];

#[inline(always)]
fn load_rows(planes: &[Plane], registers: &[u32], half: usize, is_packed: bool) -> Rows {
    let mut rows = [[0; GROUPS]; GROUPS];
    if is_packed {
        let words = u32::view(planes, registers[half]);
        for row in 0..GROUPS {
            for t in 0..WORDS {
                let word = words[WORDS * row + t];
                rows[row][t] = f16_to_f32(word as u16).to_bits();
                rows[row][WORDS + t] = f16_to_f32((word >> 16) as u16).to_bits();
            }
        }
    } else {
        let even = u32::view(planes, registers[2 * half]);
        let odd = u32::view(planes, registers[2 * half + 1]);
        for row in 0..GROUPS {
            for t in 0..WORDS {
                rows[row][t] = even[WORDS * row + t];
                rows[row][WORDS + t] = odd[WORDS * row + t];
            }
        }
    }
    rows
}

#[inline(always)]
fn store_rows(planes: &mut [Plane], registers: &[u32], half: usize, is_packed: bool, rows: &Rows, mask: u32) {
    let (mut even, mut odd) = ([0; LANES], [0; LANES]);
    for row in 0..GROUPS {
        for t in 0..WORDS {
            even[WORDS * row + t] = rows[row][t];
            odd[WORDS * row + t] = rows[row][WORDS + t];
        }
    }
    if is_packed {
        let pack = |word: u32| u32::from(f32_to_f16(f32::from_bits(word)));
        let mut packed = [0; LANES];
        for lane in 0..LANES {
            packed[lane] = pack(even[lane]) | pack(odd[lane]) << 16;
        }
        store_lanes(planes, registers[half], &packed, mask);
    } else {
        store_lanes(planes, registers[2 * half], &even, mask);
        store_lanes(planes, registers[2 * half + 1], &odd, mask);
    }
}

impl<const PER: usize, M: Arithmetic<PER>> LaneLoop for LaneProduct<PER, M> {
    #[inline(always)]
    fn run(&self, planes: &mut [Plane], mask: u32) {
        let arithmetic = self.arithmetic;
        let blocks = self.b.len().min(MOST_BLOCKS);
        let halves = self.a.len() / self.b.len().max(1);
        // By block, word and number: a vector of columns.
        let mut right = [[[[M::Number::default(); GROUPS]; PER]; WORDS]; MOST_BLOCKS];
        for (right, &register) in right.iter_mut().zip(&self.b) {
            let columns = transpose(u32::view(planes, register));
            for t in 0..WORDS {
                for (e, right) in right[t].iter_mut().enumerate() {
                    for place in 0..GROUPS {
                        right[place] = arithmetic.right(columns[t][place], e);
                    }
                }
            }
        }
        // Registers of D may be ones of A, so nothing is written before everything is read.
        let mut results = [[[0; GROUPS]; GROUPS]; 2];
        for (half, result) in results.iter_mut().enumerate().take(halves) {
            let c = load_rows(planes, &self.c, half, self.c_is_half);
            let mut sums = [[M::Number::default(); GROUPS]; GROUPS];
            for row in 0..GROUPS {
                for place in 0..GROUPS {
                    sums[row][place] = M::start(M::from_word(c[row][place]));
                }
            }
            for block in 0..blocks {
                let words = u32::view(planes, self.a[block * halves + half]);
                let mut left = [[M::Number::default(); LANES]; PER];
                for (e, left) in left.iter_mut().enumerate() {
                    for lane in 0..LANES {
                        left[lane] = arithmetic.left(words[lane], e);
                    }
                }
                for t in 0..WORDS {
                    for e in 0..PER {
                        let right = right[block][t][e];
                        for row in 0..GROUPS {
                            let left = left[e][WORDS * row + t];
                            for place in 0..GROUPS {
                                sums[row][place] = arithmetic.multiply_add(left, right[place], sums[row][place]);
                            }
                        }
                    }
                }
            }
            for row in 0..GROUPS {
                for place in 0..GROUPS {
                    result[row][place] = M::to_word(arithmetic.finish(M::from_word(c[row][place]), sums[row][place]));
                }
            }
        }
        for (half, result) in results.iter().enumerate().take(halves) {
            store_rows(planes, &self.d, half, self.d_is_half, result, mask);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::fragment::{Fragment, Role};
    use super::super::mma::in_lanes;
    use super::*;
    use crate::lanes::Level;

    /// A product over planes 0..16; D lies on top of A where `aliases`.
    fn product(shape: (usize, usize, usize), [d, a, b, c]: [Element; 4], aliases: bool) -> Product {
        let (m, n, k) = shape;
        let registers = |first: u32, element: Element, size: usize| -> Vec<u32> {
            (first..).take(size / LANES / element.per_register()).collect()
        };
        let of = |role, element, rows: usize, columns: usize, first| {
            Fragment::of_mma(role, element, rows, columns, registers(first, element, rows * columns))
        };
        Product {
            m,
            n,
            k,
            a: of(Role::A, a, m, k, 0),
            b: of(Role::B, b, k, n, 4),
            c: of(Role::Accumulator, c, m, n, 6),
            d: of(Role::Accumulator, d, m, n, if aliases { 0 } else { 10 }),
            saturates: false,
            uses_and: false,
        }
    }

    /// The same bits, or NaNs in both: which of several NaNs survives, and its sign, is left open.
    fn is_same(element: Element, left: u32, right: u32) -> bool {
        let is_same_half = |shift: u32| {
            let (left, right) = (left >> shift & 0xFFFF, right >> shift & 0xFFFF);
            left == right || left & 0x7FFF > 0x7C00 && right & 0x7FFF > 0x7C00
        };
        match element {
            Element::F16 => is_same_half(0) && is_same_half(16),
            Element::F32 => left == right || f32::from_bits(left).is_nan() && f32::from_bits(right).is_nan(),
            _ => left == right,
        }
    }

    fn compare(product: &Product, seed: &mut u32, mask: u32) {
        for level in [Level::detect(), Level::Portable] {
            for is_small in [true, false] {
                let mut planes = vec![Plane::ZERO; 16];
                for (register, plane) in planes.iter_mut().enumerate() {
                    for word in &mut plane.0 {
                        *seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                        let noise = *seed ^ *seed >> 15;
                        // Numbers near one in every float type, or any pattern at all.
                        *word = match (is_small, register) {
                            (true, 6..10) if product.c.element == Element::F32 => (noise as i32 as f32 / 1e9).to_bits(),
                            (true, _) if product.a.element.is_float() => noise & 0xBFFF_BFFF | 0x3000_3000,
                            _ => noise,
                        };
                    }
                }
                let mut expected = planes.clone();
                product.clone().into_alu(level)(&mut expected, mask);
                in_lanes(level, product.clone())(&mut planes, mask);
                for (register, (plane, expected)) in planes.iter().zip(&expected).enumerate() {
                    for lane in 0..LANES {
                        let (got, wanted) = (plane.0[lane], expected.0[lane]);
                        assert!(
                            is_same(product.d.element, got, wanted),
                            "{:?} m{}n{}k{} register {register} lane {lane}: {got:#x} instead of {wanted:#x}",
                            product.a.element,
                            product.m,
                            product.n,
                            product.k
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn every_shape_gives_the_bits_of_the_row_major_product() {
        use Element::{Bf16, Bits, F16, F32, S4, S8, S32, Tf32, U4, U8};
        let floats = [
            ((16, 8, 16), [F32, Bf16, Bf16, F32]),
            ((16, 8, 8), [F32, Bf16, Bf16, F32]),
            ((16, 8, 16), [F32, F16, F16, F32]),
            ((16, 8, 16), [F16, F16, F16, F16]),
            ((16, 8, 8), [F16, F16, F16, F32]),
            ((16, 8, 8), [F32, F16, F16, F16]),
            ((16, 8, 8), [F32, Tf32, Tf32, F32]),
            ((16, 8, 4), [F32, Tf32, Tf32, F32]),
        ];
        let integers = [
            ((16, 8, 32), [S32, S8, S8, S32]),
            ((16, 8, 16), [S32, U8, S8, S32]),
            ((8, 8, 16), [S32, S8, U8, S32]),
            ((16, 8, 64), [S32, S4, U4, S32]),
            ((16, 8, 32), [S32, U4, U4, S32]),
            ((8, 8, 32), [S32, S4, S4, S32]),
            // One-bit matrices go by words.
            ((16, 8, 8), [S32, Bits, Bits, S32]),
            ((16, 8, 4), [S32, Bits, Bits, S32]),
            ((8, 8, 4), [S32, Bits, Bits, S32]),
        ];
        let mut seed = 1;
        for (shape, types) in floats.into_iter().chain(integers) {
            for mask in [u32::MAX, 0x0FF0_7FFF] {
                for aliases in [false, true] {
                    for flag in [false, true] {
                        let product = product(shape, types, aliases);
                        compare(&Product { saturates: flag, uses_and: flag, ..product }, &mut seed, mask);
                    }
                }
            }
        }
    }
}
