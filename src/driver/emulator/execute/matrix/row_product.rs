//! The product by way of ordinary row-major matrices: gather the fragments, multiply, scatter the result.
//!
//! For every layout and type; wmma and f64 go this way, and the tests hold `lane_product` against it.

use super::fragment::{Element, Fragment};
use crate::execute::half_float::f32_to_f16;
use crate::lanes::{Alu, LaneLoop, Level, Plane, at_level, whole};

/// The largest integer matrix: 16x64 of 4-bit elements.
const MOST: usize = 16 * 64;

/// Columns that are multiplied at once: one vector of the host.
const STRIP: usize = 8;

/// `d = a * b + c` of matrices of `m` by `k`, `k` by `n` and `m` by `n` elements.
#[derive(Debug, Clone)]
pub struct Product {
    pub m: usize,
    pub n: usize,
    pub k: usize,
    pub a: Fragment,
    pub b: Fragment,
    pub c: Fragment,
    pub d: Fragment,
    pub saturates: bool,
    /// For one-bit matrices: combine with AND instead of XOR.
    pub uses_and: bool,
}

impl Product {
    /// `SIZE` bounds the elements of each matrix.
    #[inline(always)]
    fn floats<const SIZE: usize>(&self, planes: &mut [Plane], mask: u32) {
        let (mut a, mut b, mut c) = ([0f32; SIZE], [0f32; SIZE], [0f32; SIZE]);
        macro_rules! gather {
            ($fragment:expr, $matrix:expr) => {
                match $fragment.element {
                    Element::Bf16 => $fragment.gather(planes, $matrix, |word, e| Element::Bf16.float(word, e)),
                    Element::F16 => $fragment.gather(planes, $matrix, |word, e| Element::F16.float(word, e)),
                    Element::Tf32 => $fragment.gather(planes, $matrix, |word, e| Element::Tf32.float(word, e)),
                    _ => $fragment.gather(planes, $matrix, |word, _| f32::from_bits(word)),
                }
            };
        }
        gather!(self.a, &mut a);
        gather!(self.b, &mut b);
        gather!(self.c, &mut c);
        for row in 0..self.m {
            for strip in (0..self.n).step_by(STRIP) {
                let place = row * self.n + strip;
                let Some(target) = c[place..].first_chunk_mut::<STRIP>() else { continue };
                let mut sums = *target;
                for k in 0..self.k {
                    let left = a[row * self.k + k];
                    let Some(right) = b[k * self.n + strip..].first_chunk::<STRIP>() else { continue };
                    for column in 0..STRIP {
                        sums[column] = left.mul_add(right[column], sums[column]);
                    }
                }
                *target = sums;
            }
        }
        match self.d.element {
            Element::F16 => self.d.scatter(planes, &c, mask, |value| u32::from(f32_to_f16(value))),
            _ => self.d.scatter(planes, &c, mask, f32::to_bits),
        }
    }

    fn integers(&self, planes: &mut [Plane], mask: u32) {
        let (mut a, mut b, mut c) = ([0i32; MOST], [0i32; MOST], [0i32; MOST]);
        let (a_element, b_element) = (self.a.element, self.b.element);
        self.a.gather(planes, &mut a, |word, e| a_element.integer(word, e));
        self.b.gather(planes, &mut b, |word, e| b_element.integer(word, e));
        self.c.gather(planes, &mut c, |word, _| word as i32);
        let is_bits = a_element == Element::Bits;
        for row in 0..self.m {
            for column in 0..self.n {
                let mut sum = i64::from(c[row * self.n + column]);
                for k in 0..self.k {
                    let (left, right) = (a[row * self.k + k], b[k * self.n + column]);
                    sum += match (is_bits, self.uses_and) {
                        (false, _) => i64::from(left) * i64::from(right),
                        (true, true) => i64::from((left & right).count_ones()),
                        (true, false) => i64::from((left ^ right).count_ones()),
                    };
                }
                c[row * self.n + column] =
                    if self.saturates { sum.clamp(i32::MIN.into(), i32::MAX.into()) as i32 } else { sum as i32 };
            }
        }
        self.d.scatter(planes, &c, mask, |value| value as u32);
    }

    fn doubles(&self, planes: &mut [Plane], mask: u32) {
        let (mut a, mut b, mut c) = ([0f64; 64], [0f64; 64], [0f64; 64]);
        self.a.gather_wide(planes, &mut a);
        self.b.gather_wide(planes, &mut b);
        self.c.gather_wide(planes, &mut c);
        for row in 0..self.m {
            for column in 0..self.n {
                let place = row * self.n + column;
                c[place] =
                    (0..self.k).fold(c[place], |sum, k| a[row * self.k + k].mul_add(b[k * self.n + column], sum));
            }
        }
        self.d.scatter_wide(planes, &c, mask);
    }
}

/// A product in f32 whose matrices have at most `SIZE` elements.
struct FloatProduct<const SIZE: usize>(Product);

impl<const SIZE: usize> LaneLoop for FloatProduct<SIZE> {
    #[inline(always)]
    fn run(&self, planes: &mut [Plane], mask: u32) {
        self.0.floats::<SIZE>(planes, mask);
    }
}

impl Product {
    /// The instruction, compiled for the level.
    pub fn into_alu(self, level: Level) -> Alu {
        if self.a.element == Element::F64 {
            return whole(level, move |planes, mask| self.doubles(planes, mask));
        }
        if !self.a.element.is_float() {
            return whole(level, move |planes, mask| self.integers(planes, mask));
        }
        let largest = (self.m * self.k).max(self.k * self.n).max(self.m * self.n);
        if largest <= 256 {
            at_level(level, FloatProduct::<256>(self))
        } else {
            at_level(level, FloatProduct::<512>(self))
        }
    }
}
