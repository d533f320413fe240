//! Registers as structure of arrays, and the loops over lanes that every arithmetic instruction is made of.
//!
//! A 32-bit register of a warp is one [`Plane`]: the values of its 32 lanes side by side. A 64-bit register takes two
//! planes, a 128-bit one four; 8- and 16-bit values are kept zero-extended in one; a predicate is a lane mask in word 0
//! of one. An instruction becomes a closure over plane numbers ([`Alu`]), built from a scalar function by [`unary`],
//! [`binary`] and [`ternary`]; the loop around it is compiled once per instruction set, so that LLVM vectorises it with
//! what the machine has. Inactive lanes are computed too and dropped by the masked store.

use std::marker::PhantomData;

use bytemuck::{Pod, Zeroable};
use half::{bf16, f16};

pub const LANES: usize = 32;

/// One 32-bit value for each lane of a warp.
#[repr(C, align(128))]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
pub struct Plane(pub [u32; LANES]);

impl Plane {
    pub const ZERO: Self = Self([0; LANES]);
}

/// An instruction that touches registers only: takes the planes of the frame and the mask of active lanes.
pub type Alu = Box<dyn Fn(&mut [Plane], u32) + Send + Sync>;

const fn lane_bits() -> [u32; LANES] {
    let mut bits = [0; LANES];
    let mut lane = 0;
    while lane < LANES {
        bits[lane] = 1 << lane;
        lane += 1;
    }
    bits
}

/// `1 << lane` for each lane.
pub const LANE_BIT: [u32; LANES] = lane_bits();

/// A machine word that planes hold: u32, u64 or u128.
pub trait Word: Pod + PartialEq {
    fn view(planes: &[Plane], slot: u32) -> &[Self; LANES];
    fn view_mut(planes: &mut [Plane], slot: u32) -> &mut [Self; LANES];
}

impl Word for u32 {
    #[inline(always)]
    fn view(planes: &[Plane], slot: u32) -> &[Self; LANES] {
        &planes[slot as usize].0
    }
    #[inline(always)]
    fn view_mut(planes: &mut [Plane], slot: u32) -> &mut [Self; LANES] {
        &mut planes[slot as usize].0
    }
}

macro_rules! wide_word {
    ($word:ty, $planes:literal) => {
        impl Word for $word {
            #[inline(always)]
            fn view(planes: &[Plane], slot: u32) -> &[Self; LANES] {
                let slot = slot as usize;
                match planes[slot..slot + $planes].first_chunk::<$planes>() {
                    Some(chunk) => bytemuck::cast_ref(chunk),
                    None => unreachable!("the slice has that many planes"),
                }
            }
            #[inline(always)]
            fn view_mut(planes: &mut [Plane], slot: u32) -> &mut [Self; LANES] {
                let slot = slot as usize;
                match planes[slot..slot + $planes].first_chunk_mut::<$planes>() {
                    Some(chunk) => bytemuck::cast_mut(chunk),
                    None => unreachable!("the slice has that many planes"),
                }
            }
        }
    };
}
wide_word!(u64, 2);
wide_word!(u128, 4);

/// A scalar type that instructions compute with, as it lies in a plane.
pub trait Value: Copy + Default + Send + Sync + 'static {
    type Word: Word;
    fn from_word(word: Self::Word) -> Self;
    fn to_word(self) -> Self::Word;
}

macro_rules! value {
    ($type:ty, $word:ty, |$w:ident| $from:expr, |$v:ident| $to:expr) => {
        impl Value for $type {
            type Word = $word;
            #[inline(always)]
            fn from_word($w: $word) -> Self {
                $from
            }
            #[inline(always)]
            fn to_word(self) -> $word {
                let $v = self;
                $to
            }
        }
    };
}
value!(u8, u32, |w| w as u8, |v| u32::from(v));
value!(i8, u32, |w| w as i8, |v| u32::from(v as u8));
value!(u16, u32, |w| w as u16, |v| u32::from(v));
value!(i16, u32, |w| w as i16, |v| u32::from(v as u16));
value!(u32, u32, |w| w, |v| v);
value!(i32, u32, |w| w as i32, |v| v as u32);
value!(u64, u64, |w| w, |v| v);
value!(i64, u64, |w| w as i64, |v| v as u64);
value!(u128, u128, |w| w, |v| v);
value!(f32, u32, |w| f32::from_bits(w), |v| v.to_bits());
value!(f64, u64, |w| f64::from_bits(w), |v| v.to_bits());
value!(f16, u32, |w| f16::from_bits(w as u16), |v| u32::from(v.to_bits()));
value!(bf16, u32, |w| bf16::from_bits(w as u16), |v| u32::from(v.to_bits()));

/// The instruction sets that the lane loops are compiled for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    Portable,
    #[cfg(target_arch = "x86_64")]
    Avx2,
}

impl Level {
    /// The best level that this machine has.
    pub fn detect() -> Self {
        #[cfg(target_arch = "x86_64")]
        if ["avx2", "fma", "bmi2", "lzcnt", "popcnt", "f16c"].iter().all(|feature| has(feature)) {
            return Self::Avx2;
        }
        Self::Portable
    }
}

#[cfg(target_arch = "x86_64")]
fn has(feature: &str) -> bool {
    match feature {
        "avx2" => is_x86_feature_detected!("avx2"),
        "fma" => is_x86_feature_detected!("fma"),
        "bmi2" => is_x86_feature_detected!("bmi2"),
        "lzcnt" => is_x86_feature_detected!("lzcnt"),
        "popcnt" => is_x86_feature_detected!("popcnt"),
        _ => is_x86_feature_detected!("f16c"),
    }
}

/// Writes the active lanes of `values` to a register.
#[inline(always)]
pub fn store_lanes<D: Value>(planes: &mut [Plane], slot: u32, values: &[D; LANES], mask: u32) {
    let target = D::Word::view_mut(planes, slot);
    if mask == u32::MAX {
        for lane in 0..LANES {
            target[lane] = values[lane].to_word();
        }
    } else {
        for lane in 0..LANES {
            target[lane] = if mask & LANE_BIT[lane] != 0 { values[lane].to_word() } else { target[lane] };
        }
    }
}

/// Writes the active lanes of a predicate.
#[inline(always)]
pub fn store_predicate(planes: &mut [Plane], slot: u32, value: u32, mask: u32) {
    let word = &mut planes[slot as usize].0[0];
    *word = (*word & !mask) | (value & mask);
}

/// A predicate's lanes, negated where asked.
#[inline(always)]
pub fn predicate(planes: &[Plane], slot: u32, is_negated: bool) -> u32 {
    planes[slot as usize].0[0] ^ if is_negated { u32::MAX } else { 0 }
}

/// The 8x8 matrix of halves that lies row after row in a plane, transposed.
#[inline(always)]
pub fn transpose_halves(words: &[u32; LANES]) -> [u32; LANES] {
    let matrix: [[u16; 8]; 8] = bytemuck::cast(*words);
    let mut result = [[0; 8]; 8];
    for row in 0..8 {
        for column in 0..8 {
            result[column][row] = matrix[row][column];
        }
    }
    bytemuck::cast(result)
}

/// Four rows of four words, transposed.
#[inline(always)]
pub fn transpose_words(rows: [[u32; 4]; 4]) -> [[u32; 4]; 4] {
    // LLVM makes scalar moves of the plain loops. SSE2 is part of x86-64.
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{
            __m128i, _mm_unpackhi_epi32, _mm_unpackhi_epi64, _mm_unpacklo_epi32, _mm_unpacklo_epi64,
        };
        let [a, b, c, d]: [__m128i; 4] = bytemuck::cast(rows);
        // SAFETY: every x86-64 has SSE2.
        let columns = unsafe {
            let (ab_low, ab_high) = (_mm_unpacklo_epi32(a, b), _mm_unpackhi_epi32(a, b));
            let (cd_low, cd_high) = (_mm_unpacklo_epi32(c, d), _mm_unpackhi_epi32(c, d));
            [
                _mm_unpacklo_epi64(ab_low, cd_low),
                _mm_unpackhi_epi64(ab_low, cd_low),
                _mm_unpacklo_epi64(ab_high, cd_high),
                _mm_unpackhi_epi64(ab_high, cd_high),
            ]
        };
        bytemuck::cast(columns)
    }
    #[cfg(not(target_arch = "x86_64"))]
    std::array::from_fn(|column| std::array::from_fn(|row| rows[row][column]))
}

/// Four words for each lane, as four registers.
#[inline(always)]
pub fn columns_of(rows: &[[u32; 4]; LANES]) -> [[u32; LANES]; 4] {
    let mut columns = [[0; LANES]; 4];
    for first in (0..LANES).step_by(4) {
        let block = transpose_words([rows[first], rows[first + 1], rows[first + 2], rows[first + 3]]);
        for (column, words) in columns.iter_mut().zip(block) {
            column[first..first + 4].copy_from_slice(&words);
        }
    }
    columns
}

/// What an instruction does to the registers; `#[inline(always)]`, so that it is compiled for each [`Level`].
pub trait LaneLoop: Send + Sync + 'static {
    fn run(&self, planes: &mut [Plane], mask: u32);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,bmi2,lzcnt,popcnt,f16c")]
fn with_avx2<L: LaneLoop>(body: &L, planes: &mut [Plane], mask: u32) {
    body.run(planes, mask);
}

/// The operation, compiled for the level.
pub fn at_level<L: LaneLoop>(level: Level, body: L) -> Alu {
    match level {
        Level::Portable => Box::new(move |planes, mask| body.run(planes, mask)),
        #[cfg(target_arch = "x86_64")]
        // SAFETY: `Level::detect` has seen that the machine has these features.
        Level::Avx2 => Box::new(move |planes, mask| unsafe { with_avx2(&body, planes, mask) }),
    }
}

struct Unary<A, D, F> {
    d: u32,
    sources: [u32; 1],
    f: F,
    types: PhantomData<fn(A) -> D>,
}

impl<A: Value, D: Value, F: Fn(A) -> D + Send + Sync + 'static> LaneLoop for Unary<A, D, F> {
    #[inline(always)]
    fn run(&self, planes: &mut [Plane], mask: u32) {
        let mut result = [D::default(); LANES];
        let a = A::Word::view(planes, self.sources[0]);
        for lane in 0..LANES {
            result[lane] = (self.f)(A::from_word(a[lane]));
        }
        store_lanes(planes, self.d, &result, mask);
    }
}

/// `d = f(a)` on every lane.
pub fn unary<A: Value, D: Value>(
    level: Level,
    d: u32,
    sources: [u32; 1],
    f: impl Fn(A) -> D + Send + Sync + 'static,
) -> Alu {
    at_level(level, Unary { d, sources, f, types: PhantomData })
}

struct Binary<A, B, D, F> {
    d: u32,
    sources: [u32; 2],
    f: F,
    types: PhantomData<fn(A, B) -> D>,
}

impl<A: Value, B: Value, D: Value, F: Fn(A, B) -> D + Send + Sync + 'static> LaneLoop for Binary<A, B, D, F> {
    #[inline(always)]
    fn run(&self, planes: &mut [Plane], mask: u32) {
        let mut result = [D::default(); LANES];
        let a = A::Word::view(planes, self.sources[0]);
        let b = B::Word::view(planes, self.sources[1]);
        for lane in 0..LANES {
            result[lane] = (self.f)(A::from_word(a[lane]), B::from_word(b[lane]));
        }
        store_lanes(planes, self.d, &result, mask);
    }
}

/// `d = f(a, b)` on every lane.
pub fn binary<A: Value, B: Value, D: Value>(
    level: Level,
    d: u32,
    sources: [u32; 2],
    f: impl Fn(A, B) -> D + Send + Sync + 'static,
) -> Alu {
    at_level(level, Binary { d, sources, f, types: PhantomData })
}

struct Ternary<A, B, C, D, F> {
    d: u32,
    sources: [u32; 3],
    f: F,
    types: PhantomData<fn(A, B, C) -> D>,
}

impl<A: Value, B: Value, C: Value, D: Value, F: Fn(A, B, C) -> D + Send + Sync + 'static> LaneLoop
    for Ternary<A, B, C, D, F>
{
    #[inline(always)]
    fn run(&self, planes: &mut [Plane], mask: u32) {
        let mut result = [D::default(); LANES];
        let a = A::Word::view(planes, self.sources[0]);
        let b = B::Word::view(planes, self.sources[1]);
        let c = C::Word::view(planes, self.sources[2]);
        for lane in 0..LANES {
            result[lane] = (self.f)(A::from_word(a[lane]), B::from_word(b[lane]), C::from_word(c[lane]));
        }
        store_lanes(planes, self.d, &result, mask);
    }
}

/// `d = f(a, b, c)` on every lane.
pub fn ternary<A: Value, B: Value, C: Value, D: Value>(
    level: Level,
    d: u32,
    sources: [u32; 3],
    f: impl Fn(A, B, C) -> D + Send + Sync + 'static,
) -> Alu {
    at_level(level, Ternary { d, sources, f, types: PhantomData })
}

struct Compare<A, B, F, G> {
    sources: [u32; 2],
    test: F,
    then: G,
    types: PhantomData<fn(A, B)>,
}

impl<A: Value, B: Value, F, G> LaneLoop for Compare<A, B, F, G>
where
    F: Fn(A, B) -> bool + Send + Sync + 'static,
    G: Fn(&mut [Plane], u32, u32) + Send + Sync + 'static,
{
    #[inline(always)]
    fn run(&self, planes: &mut [Plane], mask: u32) {
        let a = A::Word::view(planes, self.sources[0]);
        let b = B::Word::view(planes, self.sources[1]);
        let mut truth = 0;
        for lane in 0..LANES {
            truth |= if (self.test)(A::from_word(a[lane]), B::from_word(b[lane])) { LANE_BIT[lane] } else { 0 };
        }
        (self.then)(planes, truth, mask);
    }
}

/// Evaluates `test(a, b)` on every lane and hands the lane mask of truths (and of active lanes) to `then`.
pub fn compare<A: Value, B: Value>(
    level: Level,
    sources: [u32; 2],
    test: impl Fn(A, B) -> bool + Send + Sync + 'static,
    then: impl Fn(&mut [Plane], u32, u32) + Send + Sync + 'static,
) -> Alu {
    at_level(level, Compare { sources, test, then, types: PhantomData })
}

struct Whole<F>(F);

impl<F: Fn(&mut [Plane], u32) + Send + Sync + 'static> LaneLoop for Whole<F> {
    #[inline(always)]
    fn run(&self, planes: &mut [Plane], mask: u32) {
        (self.0)(planes, mask);
    }
}

/// An instruction on the warp as a whole.
pub fn whole(level: Level, f: impl Fn(&mut [Plane], u32) + Send + Sync + 'static) -> Alu {
    at_level(level, Whole(f))
}
