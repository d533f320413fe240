//! f32 and f64 arithmetic.
//!
//! Rounding to nearest is the host's; the directed modes go through `soft_float`. `.ftz` flushes subnormal inputs and
//! results to zero of the same sign, `.sat` clamps to [0, 1] with NaN to 0. The approximations stay within the manual's
//! stated error: rcp, sqrt, rsqrt and div are rounded once or twice, ex2 is a polynomial (1.5 ulp), the rest goes through f64.

use crate::ast::{Instruction, Type};
use crate::decode::Decoder;
use crate::decode::modifiers::Modifiers;
use crate::error::Result;
use crate::lanes::{compare, store_predicate};
use crate::soft_float::{self, F32, F64, Rounding};

/// How an instruction rounds and what it does to its inputs and result.
#[derive(Clone, Copy)]
struct Mode {
    rounding: Rounding,
    flush: bool,
    saturate: bool,
}

#[inline(always)]
pub(super) fn flush(value: f32) -> f32 {
    let bits = value.to_bits();
    f32::from_bits(if bits & 0x7F80_0000 == 0 { bits & 0x8000_0000 } else { bits })
}

#[inline(always)]
fn flush_if(value: f32, is_on: bool) -> f32 {
    if is_on { flush(value) } else { value }
}

#[inline(always)]
pub(super) fn saturate(value: f32) -> f32 {
    // NaN fails both comparisons and becomes 0.
    if value > 0.0 { if value < 1.0 { value } else { 1.0 } } else { 0.0 }
}

/// 2^x: round to an integer and a rest in [-1/2, 1/2], a Taylor polynomial for the rest, the integer into the exponent.
#[inline(always)]
pub(super) fn exp2(x: f32) -> f32 {
    // Adding 1.5 * 2^23 leaves the nearest integer in the low mantissa bits.
    const MAGIC: f32 = 12_582_912.0;
    let x = if x > 129.0 { 129.0 } else { x };
    let x = if x < -151.0 { -151.0 } else { x };
    let shifted = x + MAGIC;
    let n = (shifted.to_bits() as i32).wrapping_sub(MAGIC.to_bits() as i32);
    let f = x - (shifted - MAGIC);
    let p = 1.525_273e-5f32;
    let p = p.mul_add(f, 1.540_353e-4);
    let p = p.mul_add(f, 1.333_355_8e-3);
    let p = p.mul_add(f, 9.618_129e-3);
    let p = p.mul_add(f, 5.550_411e-2);
    let p = p.mul_add(f, 2.402_265e-1);
    let p = p.mul_add(f, 6.931_472e-1);
    let p = p.mul_add(f, 1.0);
    // Two steps, so that subnormal results and 2^128 come out right.
    let half = n >> 1;
    let power = |n: i32| f32::from_bits((n.wrapping_add(127) as u32).wrapping_shl(23));
    p * power(half) * power(n.wrapping_sub(half))
}

macro_rules! least_and_most {
    ($type:ty, $least:ident, $most:ident) => {
        /// The smaller one; a number beats NaN, -0 is below +0.
        #[inline(always)]
        pub(super) fn $least(a: $type, b: $type) -> $type {
            let equal = <$type>::from_bits(a.to_bits() | b.to_bits());
            let chosen = if a < b {
                a
            } else if b < a {
                b
            } else {
                equal
            };
            let chosen = if b.is_nan() { a } else { chosen };
            if a.is_nan() { b } else { chosen }
        }

        /// The larger one; a number beats NaN, +0 is above -0.
        #[inline(always)]
        pub(super) fn $most(a: $type, b: $type) -> $type {
            let equal = <$type>::from_bits(a.to_bits() & b.to_bits());
            let chosen = if a > b {
                a
            } else if b > a {
                b
            } else {
                equal
            };
            let chosen = if b.is_nan() { a } else { chosen };
            if a.is_nan() { b } else { chosen }
        }
    };
}
least_and_most!(f32, least, most);
least_and_most!(f64, least_f64, most_f64);

impl<'e> Decoder<'e> {
    fn mode(m: &mut Modifiers<'_>) -> Mode {
        let flush = m.flag("ftz");
        let saturate = m.flag("sat");
        Mode { rounding: m.rounding().unwrap_or(Rounding::Nearest), flush, saturate }
    }

    pub(super) fn float(&mut self, i: &Instruction<'e>, m: &mut Modifiers<'_>) -> Result<()> {
        match i.opcode {
            "add" | "sub" | "mul" | "div" => self.float_binary(i, m),
            "fma" | "mad" => self.float_fma(i, m),
            "min" | "max" => self.float_extreme(i, m),
            "copysign" => {
                let ty = self.required_type(m)?;
                let [d, a, b] = self.operands(i)?;
                let (d, s) = (self.destination(d, ty)?, [self.source(a, ty)?, self.source(b, ty)?]);
                match ty {
                    Type::F32 => self.binary(d, s, |a: f32, b: f32| b.copysign(a)),
                    _ => self.binary(d, s, |a: f64, b: f64| b.copysign(a)),
                }
                Ok(())
            }
            "testp" => self.test_property(i, m),
            _ => self.float_unary(i, m),
        }
    }

    /// `d = f(a, b)` on f32, as the mode says; `exact` takes over for directed rounding.
    fn f32_binary(
        &mut self,
        d: u32,
        s: [u32; 2],
        mode: Mode,
        f: impl Fn(f32, f32) -> f32 + Send + Sync + Copy + 'static,
        exact: fn(f64, f64, soft_float::Format, Rounding) -> f64,
    ) {
        let Mode { rounding, flush: is_flushed, saturate: is_saturated } = mode;
        match (rounding, is_flushed, is_saturated) {
            (Rounding::Nearest, false, false) => self.binary(d, s, f),
            (Rounding::Nearest, true, false) => self.binary(d, s, move |a: f32, b: f32| flush(f(flush(a), flush(b)))),
            (Rounding::Nearest, false, true) => self.binary(d, s, move |a: f32, b: f32| saturate(f(a, b))),
            (Rounding::Nearest, true, true) => {
                self.binary(d, s, move |a: f32, b: f32| saturate(flush(f(flush(a), flush(b)))));
            }
            _ => self.binary(d, s, move |a: f32, b: f32| {
                let (a, b) = (flush_if(a, is_flushed), flush_if(b, is_flushed));
                let value = flush_if(exact(a.into(), b.into(), F32, rounding) as f32, is_flushed);
                if is_saturated { saturate(value) } else { value }
            }),
        }
    }

    fn float_binary(&mut self, i: &Instruction<'e>, m: &mut Modifiers<'_>) -> Result<()> {
        let approximation = m.one_of(&["approx", "full"]).is_some();
        let mode = Self::mode(m);
        let ty = self.required_type(m)?;
        // Mixed precision adds (`add.f32.f16`) belong to later architectures.
        let [d, a, b] = self.operands(i)?;
        let (d, s) = (self.destination(d, ty)?, [self.source(a, ty)?, self.source(b, ty)?]);
        if approximation && i.opcode != "div" {
            return self.fail(format!("unsupported modifier .approx on {}", i.opcode));
        }
        if ty == Type::F32 {
            match i.opcode {
                "add" => self.f32_binary(d, s, mode, |a, b| a + b, soft_float::add),
                "sub" => self.f32_binary(
                    d,
                    s,
                    mode,
                    |a, b| a - b,
                    |a, b, format, rounding| soft_float::add(a, -b, format, rounding),
                ),
                "mul" => self.f32_binary(d, s, mode, |a, b| a * b, soft_float::multiply),
                _ => self.f32_binary(d, s, mode, |a, b| a / b, soft_float::divide),
            }
            return Ok(());
        }
        if mode.flush || mode.saturate || approximation {
            return self.fail(format!("{} on .f64 takes no .ftz, .sat or .approx", i.opcode));
        }
        let rounding = mode.rounding;
        match (i.opcode, rounding == Rounding::Nearest) {
            ("add", true) => self.binary(d, s, |a: f64, b: f64| a + b),
            ("sub", true) => self.binary(d, s, |a: f64, b: f64| a - b),
            ("mul", true) => self.binary(d, s, |a: f64, b: f64| a * b),
            ("div", true) => self.binary(d, s, |a: f64, b: f64| a / b),
            ("add", _) => self.binary(d, s, move |a: f64, b: f64| soft_float::add(a, b, F64, rounding)),
            ("sub", _) => self.binary(d, s, move |a: f64, b: f64| soft_float::add(a, -b, F64, rounding)),
            ("mul", _) => self.binary(d, s, move |a: f64, b: f64| soft_float::multiply(a, b, F64, rounding)),
            _ => self.binary(d, s, move |a: f64, b: f64| soft_float::divide(a, b, F64, rounding)),
        }
        Ok(())
    }

    fn float_fma(&mut self, i: &Instruction<'e>, m: &mut Modifiers<'_>) -> Result<()> {
        let Mode { rounding, flush: is_flushed, saturate: is_saturated } = Self::mode(m);
        let ty = self.required_type(m)?;
        let [d, a, b, c] = self.operands(i)?;
        let d = self.destination(d, ty)?;
        let s = [self.source(a, ty)?, self.source(b, ty)?, self.source(c, ty)?];
        if ty == Type::F64 {
            match rounding {
                Rounding::Nearest => self.ternary(d, s, |a: f64, b: f64, c: f64| a.mul_add(b, c)),
                _ => self.ternary(d, s, move |a: f64, b: f64, c: f64| soft_float::fma(a, b, c, F64, rounding)),
            }
            return Ok(());
        }
        match (rounding, is_flushed, is_saturated) {
            (Rounding::Nearest, false, false) => self.ternary(d, s, |a: f32, b: f32, c: f32| a.mul_add(b, c)),
            (Rounding::Nearest, true, false) => {
                self.ternary(d, s, |a: f32, b: f32, c: f32| flush(flush(a).mul_add(flush(b), flush(c))));
            }
            _ => self.ternary(d, s, move |a: f32, b: f32, c: f32| {
                let [a, b, c] = [a, b, c].map(|value| f64::from(flush_if(value, is_flushed)));
                let value = flush_if(soft_float::fma(a, b, c, F32, rounding) as f32, is_flushed);
                if is_saturated { saturate(value) } else { value }
            }),
        }
        Ok(())
    }

    fn float_extreme(&mut self, i: &Instruction<'e>, m: &mut Modifiers<'_>) -> Result<()> {
        let is_flushed = m.flag("ftz");
        let keeps_nan = m.flag("NaN");
        let takes_sign = m.flag("xorsign");
        if m.flag("abs") != takes_sign {
            return self.fail("expected .xorsign.abs together");
        }
        let ty = self.required_type(m)?;
        let is_least = i.opcode == "min";
        if ty == Type::F64 {
            let [d, a, b] = self.operands(i)?;
            let (d, s) = (self.destination(d, ty)?, [self.source(a, ty)?, self.source(b, ty)?]);
            if is_least {
                self.binary(d, s, least_f64);
            } else {
                self.binary(d, s, most_f64);
            }
            return Ok(());
        }
        let select = move |a: f32, b: f32| if is_least { least(a, b) } else { most(a, b) };
        let full = move |a: f32, b: f32| {
            let (a, b) = (flush_if(a, is_flushed), flush_if(b, is_flushed));
            if keeps_nan && (a.is_nan() || b.is_nan()) {
                return f32::from_bits(0x7FFF_FFFF);
            }
            if takes_sign {
                let sign = (a.to_bits() ^ b.to_bits()) & 0x8000_0000;
                return f32::from_bits(select(a.abs(), b.abs()).to_bits() | sign);
            }
            select(a, b)
        };
        if i.operands.len() == 4 {
            let [d, a, b, c] = self.operands(i)?;
            let d = self.destination(d, ty)?;
            let s = [self.source(a, ty)?, self.source(b, ty)?, self.source(c, ty)?];
            self.ternary(d, s, move |a: f32, b: f32, c: f32| full(full(a, b), c));
            return Ok(());
        }
        let [d, a, b] = self.operands(i)?;
        let (d, s) = (self.destination(d, ty)?, [self.source(a, ty)?, self.source(b, ty)?]);
        match (is_flushed || keeps_nan || takes_sign, is_least) {
            (false, true) => self.binary(d, s, least),
            (false, false) => self.binary(d, s, most),
            _ => self.binary(d, s, full),
        }
        Ok(())
    }

    fn f32_unary(&mut self, d: u32, a: u32, is_flushed: bool, f: impl Fn(f32) -> f32 + Send + Sync + 'static) {
        if is_flushed {
            self.unary(d, a, move |a: f32| flush(f(flush(a))));
        } else {
            self.unary(d, a, f);
        }
    }

    fn float_unary(&mut self, i: &Instruction<'e>, m: &mut Modifiers<'_>) -> Result<()> {
        let is_approximate = m.flag("approx");
        let is_flushed = m.flag("ftz");
        let rounding = m.rounding();
        let ty = self.required_type(m)?;
        let [d, a] = self.operands(i)?;
        let (d, a) = (self.destination(d, ty)?, self.source(a, ty)?);
        let directed = rounding.filter(|&rounding| rounding != Rounding::Nearest);
        if rounding.is_none() && !is_approximate && !matches!(i.opcode, "abs" | "neg") {
            return self.fail(format!("expected .approx or a rounding mode on {}", i.opcode));
        }
        if ty == Type::F64 {
            match (i.opcode, directed) {
                ("abs", _) => self.unary(d, a, |a: f64| a.abs()),
                ("neg", _) => self.unary(d, a, |a: f64| -a),
                // The f64 approximations keep the upper 32 bits of the result.
                ("rcp", _) if is_approximate => {
                    self.unary(d, a, |a: f64| f64::from_bits((1.0 / a).to_bits() & !0xFFFF_FFFF))
                }
                ("rsqrt", _) if is_flushed => {
                    self.unary(d, a, |a: f64| f64::from_bits((1.0 / a.sqrt()).to_bits() & !0xFFFF_FFFF));
                }
                ("rsqrt", _) => self.unary(d, a, |a: f64| 1.0 / a.sqrt()),
                ("rcp", None) => self.unary(d, a, |a: f64| 1.0 / a),
                ("rcp", Some(mode)) => self.unary(d, a, move |a: f64| soft_float::divide(1.0, a, F64, mode)),
                ("sqrt", None) => self.unary(d, a, |a: f64| a.sqrt()),
                ("sqrt", Some(mode)) => self.unary(d, a, move |a: f64| soft_float::square_root(a, F64, mode)),
                _ => return self.wrong_type(i.opcode, ty),
            }
            return Ok(());
        }
        match (i.opcode, directed) {
            ("abs", _) => self.f32_unary(d, a, is_flushed, |a| a.abs()),
            ("neg", _) => self.f32_unary(d, a, is_flushed, |a| -a),
            ("rcp", None) => self.f32_unary(d, a, is_flushed, |a| 1.0 / a),
            ("rcp", Some(mode)) => {
                self.f32_unary(d, a, is_flushed, move |a| soft_float::divide(1.0, a.into(), F32, mode) as f32)
            }
            ("sqrt", None) => self.f32_unary(d, a, is_flushed, |a| a.sqrt()),
            ("sqrt", Some(mode)) => {
                self.f32_unary(d, a, is_flushed, move |a| soft_float::square_root(a.into(), F32, mode) as f32)
            }
            ("rsqrt", _) => self.f32_unary(d, a, is_flushed, |a| 1.0 / a.sqrt()),
            ("sin", _) => self.f32_unary(d, a, is_flushed, |a| f64::from(a).sin() as f32),
            ("cos", _) => self.f32_unary(d, a, is_flushed, |a| f64::from(a).cos() as f32),
            ("lg2", _) => self.f32_unary(d, a, is_flushed, |a| f64::from(a).log2() as f32),
            ("ex2", _) => self.f32_unary(d, a, is_flushed, exp2),
            ("tanh", _) => self.f32_unary(d, a, is_flushed, |a| f64::from(a).tanh() as f32),
            _ => return self.wrong_type(i.opcode, ty),
        }
        Ok(())
    }

    fn test_property(&mut self, i: &Instruction<'e>, m: &mut Modifiers<'_>) -> Result<()> {
        let Some(property) = m.one_of(&["finite", "infinite", "number", "notanumber", "normal", "subnormal"]) else {
            return self.fail("expected a property such as .finite on testp");
        };
        let property = property.to_owned();
        let ty = self.required_type(m)?;
        let [p, a] = self.operands(i)?;
        let (p, a) = (self.predicate_destination(p)?, self.source(a, ty)?);
        // Zero counts as normal for PTX.
        use std::num::FpCategory::{Infinite, Nan, Normal, Subnormal, Zero};
        let test = move |category| match property.as_str() {
            "finite" => !matches!(category, Nan | Infinite),
            "infinite" => category == Infinite,
            "number" => category != Nan,
            "notanumber" => category == Nan,
            "normal" => matches!(category, Normal | Zero),
            _ => category == Subnormal,
        };
        let then = move |planes: &mut [_], truth, mask| store_predicate(planes, p, truth, mask);
        let alu = match ty {
            Type::F32 => compare(self.level, [a, a], move |a: f32, _: f32| test(a.classify()), then),
            _ => compare(self.level, [a, a], move |a: f64, _: f64| test(a.classify()), then),
        };
        self.emit_alu(alu);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp2_stays_within_two_ulp_and_covers_the_range() {
        for index in -1_500_000..=1_300_000i32 {
            let x = index as f32 * 1e-4;
            let (ours, exact) = (f64::from(exp2(x)), f64::from(x).exp2());
            let ulp = f64::from((exact as f32).next_up()) - f64::from(exact as f32);
            assert!((ours - exact).abs() <= 2.0 * ulp || exact > f64::from(f32::MAX), "{x}: {ours:e} {exact:e}");
        }
        assert_eq!(exp2(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp2(f32::INFINITY), f32::INFINITY);
        assert!(exp2(f32::NAN).is_nan());
        assert_eq!(exp2(0.0), 1.0);
    }

    #[test]
    fn extremes_prefer_numbers_and_order_zeros() {
        assert_eq!(least(f32::NAN, 2.0), 2.0);
        assert_eq!(most(2.0, f32::NAN), 2.0);
        assert!(least(0.0, -0.0).is_sign_negative());
        assert!(most(-0.0, 0.0).is_sign_positive());
    }
}
