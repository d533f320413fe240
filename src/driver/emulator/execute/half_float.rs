//! f16, f16x2, bf16 and bf16x2 arithmetic: computed in f32 and rounded once.
//!
//! f32 carries more than twice the bits of a half plus two, so rounding a sum or product to f32 and then to the half is the
//! same as rounding once. A fused multiply-add needs more care, see [`Half::fused`].

use super::float::{exp2, least, most, saturate};
use crate::ast::{Instruction, Type};
use crate::decode::Decoder;
use crate::decode::modifiers::Modifiers;
use crate::error::Result;
use crate::soft_float::{self, BF16, F16, Rounding};

/// f16 bits to f32 without branches, so that the lane loop vectorises.
#[inline(always)]
pub(crate) fn f16_to_f32(bits: u16) -> f32 {
    let sign = u32::from(bits & 0x8000) << 16;
    let magnitude = u32::from(bits & 0x7FFF) << 13;
    // Rebias by multiplying: subnormals come out normalised. Infinity and NaN keep a full exponent.
    let scaled = f32::from_bits(magnitude) * f32::from_bits(0x7780_0000);
    let special = if magnitude >= 0x7C00 << 13 { 0x7F80_0000 } else { 0 };
    f32::from_bits(scaled.to_bits() | sign | special)
}

/// f32 to f16 bits, to nearest even.
#[inline(always)]
pub(crate) fn f32_to_f16(value: f32) -> u16 {
    let bits = value.to_bits();
    let sign = (bits >> 16) as u16 & 0x8000;
    let magnitude = bits & 0x7FFF_FFFF;
    if magnitude >= 0x4780_0000 {
        // Infinity, overflow, NaN.
        return sign | if magnitude > 0x7F80_0000 { 0x7FFF } else { 0x7C00 };
    }
    if magnitude < 0x3880_0000 {
        // Subnormal result: let the adder round at 2^-24.
        let rounded = f32::from_bits(magnitude) + 0.5;
        return sign | (rounded.to_bits().wrapping_sub(0x3F00_0000)) as u16;
    }
    let odd = magnitude >> 13 & 1;
    sign | ((magnitude.wrapping_sub(0x3800_0000) + 0xFFF + odd) >> 13) as u16
}

#[inline(always)]
pub(crate) fn bf16_to_f32(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

/// f32 to bf16 bits, to nearest even; NaN becomes 0x7FFF.
#[inline(always)]
pub(crate) fn f32_to_bf16(value: f32) -> u16 {
    let bits = value.to_bits();
    let rounded = (bits.wrapping_add(0x7FFF + (bits >> 16 & 1)) >> 16) as u16;
    if value.is_nan() { 0x7FFF } else { rounded }
}

#[derive(Clone, Copy)]
pub(super) struct Half {
    is_bf16: bool,
    flush: bool,
    saturate: bool,
    relu: bool,
}

impl Half {
    #[inline(always)]
    fn read(self, bits: u16) -> f32 {
        let flushed = if self.flush && bits & 0x7C00 == 0 { bits & 0x8000 } else { bits };
        if self.is_bf16 { bf16_to_f32(bits) } else { f16_to_f32(flushed) }
    }

    /// Rounds a value that is exact, or rounded to odd.
    #[inline(always)]
    fn write(self, value: f64) -> u16 {
        let value = if self.saturate { f64::from(saturate(value as f32)) } else { value };
        let value = if self.relu && value <= 0.0 { 0.0 } else { value };
        let format = if self.is_bf16 { BF16 } else { F16 };
        let bits = soft_float::from_f64(value, format, Rounding::Nearest) as u16;
        if self.flush && !self.is_bf16 && bits & 0x7C00 == 0 { bits & 0x8000 } else { bits }
    }

    /// Rounds an f32 whose own rounding cannot matter.
    #[inline(always)]
    fn write_f32(self, value: f32) -> u16 {
        if self.saturate || self.relu || self.flush {
            return self.write(f64::from(value));
        }
        if self.is_bf16 { f32_to_bf16(value) } else { f32_to_f16(value) }
    }
}

/// Applies a function of halves to both halves of a word.
#[inline(always)]
fn both(a: u32, b: u32, c: u32, f: impl Fn(u16, u16, u16) -> u16) -> u32 {
    u32::from(f(a as u16, b as u16, c as u16))
        | u32::from(f((a >> 16) as u16, (b >> 16) as u16, (c >> 16) as u16)) << 16
}

impl<'e> Decoder<'e> {
    /// `d = f(a, b, c)` on halves or pairs of halves; missing sources repeat the first.
    fn halves(
        &mut self,
        i: &Instruction<'e>,
        ty: Type,
        f: impl Fn(u16, u16, u16) -> u16 + Send + Sync + Copy + 'static,
    ) -> Result<()> {
        let Some((d, sources)) = i.operands.split_first() else { return self.fail("expected operands") };
        let d = self.destination(d, ty)?;
        let mut slots = [0; 3];
        for (index, slot) in slots.iter_mut().enumerate() {
            let Some(operand) = sources.get(index).or(sources.first()) else {
                return self.fail("expected a source operand");
            };
            *slot = self.source(operand, ty)?;
        }
        if ty.bits() == 32 {
            self.ternary(d, slots, move |a: u32, b: u32, c: u32| both(a, b, c, f));
        } else {
            self.ternary(d, slots, f);
        }
        Ok(())
    }

    pub(super) fn half_float(&mut self, i: &Instruction<'e>, m: &mut Modifiers<'_>) -> Result<()> {
        m.flag("approx");
        let flush = m.flag("ftz");
        let saturate = m.flag("sat");
        let relu = m.flag("relu");
        m.flag("oob");
        let keeps_nan = m.flag("NaN");
        let takes_sign = m.flag("xorsign") && m.flag("abs");
        if let Some(rounding) = m.rounding()
            && rounding != Rounding::Nearest
        {
            return self.fail("half precision rounds with .rn only");
        }
        let ty = self.required_type(m)?;
        let is_bf16 = matches!(ty, Type::Bf16 | Type::Bf16x2);
        if !is_bf16 && !matches!(ty, Type::F16 | Type::F16x2) {
            return self.wrong_type(i.opcode, ty);
        }
        let half = Half { is_bf16, flush, saturate, relu };
        let expected = match i.opcode {
            "fma" | "mad" => 4,
            "abs" | "neg" | "ex2" | "tanh" => 2,
            _ => 3,
        };
        if i.operands.len() != expected {
            return self.fail(format!("{} takes {expected} operands here, found {}", i.opcode, i.operands.len()));
        }
        match i.opcode {
            "add" => self.halves(i, ty, move |a, b, _| half.write_f32(half.read(a) + half.read(b))),
            "sub" => self.halves(i, ty, move |a, b, _| half.write_f32(half.read(a) - half.read(b))),
            // A product of bf16 may be subnormal in f32, where rounding twice shows.
            "mul" if is_bf16 => {
                self.halves(i, ty, move |a, b, _| half.write(f64::from(half.read(a)) * f64::from(half.read(b))))
            }
            "mul" => self.halves(i, ty, move |a, b, _| half.write_f32(half.read(a) * half.read(b))),
            "fma" | "mad" => self.halves(i, ty, move |a, b, c| half.fused(a, b, c)),
            "abs" => self.halves(i, ty, move |a, _, _| a & 0x7FFF),
            "neg" => self.halves(i, ty, move |a, _, _| a ^ 0x8000),
            "min" | "max" => {
                let is_least = i.opcode == "min";
                self.halves(i, ty, move |a, b, _| {
                    let (x, y) = (half.read(a), half.read(b));
                    if keeps_nan && (x.is_nan() || y.is_nan()) || (x.is_nan() && y.is_nan()) {
                        return 0x7FFF;
                    }
                    let sign = if takes_sign { (a ^ b) & 0x8000 } else { 0 };
                    let (x, y) = if takes_sign { (x.abs(), y.abs()) } else { (x, y) };
                    half.write_f32(if is_least { least(x, y) } else { most(x, y) }) | sign
                })
            }
            "ex2" => self.halves(i, ty, move |a, _, _| half.write_f32(exp2(half.read(a)))),
            "tanh" => self.halves(i, ty, move |a, _, _| half.write_f32(half.read(a).tanh())),
            _ => self.wrong_type(i.opcode, ty),
        }
    }
}

impl Half {
    /// `a * b + c` with one rounding: the product is exact in f64, the sum is rounded to odd before the half.
    #[inline(always)]
    fn fused(self, a: u16, b: u16, c: u16) -> u16 {
        let product = f64::from(self.read(a)) * f64::from(self.read(b));
        let c = f64::from(self.read(c));
        let sum = product + c;
        // What the sum lost (two-sum); if anything, make the last bit odd so that the second rounding cannot be fooled.
        let virtual_c = sum - product;
        let lost = (product - (sum - virtual_c)) + (c - virtual_c);
        if lost != 0.0 && sum.is_finite() && sum.to_bits() & 1 == 0 {
            let towards = if (lost > 0.0) == (sum > 0.0) { sum.to_bits() + 1 } else { sum.to_bits() - 1 };
            return self.write(f64::from_bits(towards));
        }
        self.write(sum)
    }
}

#[cfg(test)]
mod tests {
    use half::{bf16, f16};

    use super::*;

    #[test]
    fn conversions_agree_with_the_half_crate_on_every_pattern() {
        for bits in 0..=u16::MAX {
            let (ours, theirs) = (f16_to_f32(bits), f16::from_bits(bits).to_f32());
            assert!(ours.to_bits() == theirs.to_bits() || (ours.is_nan() && theirs.is_nan()), "{bits:#x}");
        }
        for index in 0..2_000_000u32 {
            let value = f32::from_bits(index.wrapping_mul(2_654_435_761));
            let (ours, theirs) = (f32_to_f16(value), f16::from_f32(value).to_bits());
            assert!(ours == theirs || value.is_nan(), "{value:e}: {ours:#x} {theirs:#x}");
            let (ours, theirs) = (f32_to_bf16(value), bf16::from_f32(value).to_bits());
            assert!(ours == theirs || value.is_nan(), "{value:e}");
        }
    }
}
