//! cvt between all pairs of types, and cvt.pack.
//!
//! Integers go through i64 (i128 where they saturate), floating point through f64, which holds every narrower format
//! exactly. The common pairs have their own loops.

use super::float::flush;
use super::half_float::{bf16_to_f32, f16_to_f32, f32_to_bf16, f32_to_f16};
use crate::ast::{Instruction, Operand, Type};
use crate::decode::Decoder;
use crate::decode::modifiers::Modifiers;
use crate::error::Result;
use crate::lanes::{Value, unary};
use crate::soft_float::{self, BF16, F16, F32, F64, Format, Rounding, TF32};

fn format_of(ty: Type) -> Option<Format> {
    Some(match ty {
        Type::F16 => F16,
        Type::Bf16 => BF16,
        Type::Tf32 => TF32,
        Type::F32 => F32,
        Type::F64 => F64,
        _ => return None,
    })
}

fn is_integer(ty: Type) -> bool {
    ty.is_signed() || ty.is_unsigned()
}

/// Least and greatest value of an integer type.
fn range(ty: Type) -> (i128, i128) {
    let bits = ty.bits();
    if ty.is_signed() { (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) } else { (0, (1 << bits) - 1) }
}

/// `.sat`: NaN and -0 become 0.
#[inline(always)]
fn unit_interval(value: f64) -> f64 {
    if value > 0.0 { value.min(1.0) } else { 0.0 }
}

#[inline(always)]
fn round_to_integer(value: f64, rounding: Rounding) -> f64 {
    match rounding {
        Rounding::Nearest => value.round_ties_even(),
        Rounding::NearestAway => value.round(),
        Rounding::Zero => value.trunc(),
        Rounding::Down => value.floor(),
        Rounding::Up => value.ceil(),
    }
}

/// Puts the low bits of a result into a register: the type's bits, extended by its sign to the register's width.
#[derive(Clone, Copy)]
struct Fit {
    shift: u32,
    is_signed: bool,
    register_mask: u64,
}

impl Fit {
    #[inline(always)]
    fn apply(self, value: i64) -> u64 {
        let extended = if self.is_signed {
            ((value << self.shift) >> self.shift) as u64
        } else {
            ((value as u64) << self.shift) >> self.shift
        };
        extended & self.register_mask
    }
}

/// Runs `$body` with `$T` naming the Rust type of a PTX integer type.
macro_rules! for_integer {
    ($ty:expr, $T:ident => $body:expr) => {
        match $ty {
            Type::U8 => for_integer!(@ u8, $T, $body),
            Type::S8 => for_integer!(@ i8, $T, $body),
            Type::U16 => for_integer!(@ u16, $T, $body),
            Type::S16 => for_integer!(@ i16, $T, $body),
            Type::U32 => for_integer!(@ u32, $T, $body),
            Type::S32 => for_integer!(@ i32, $T, $body),
            Type::U64 => for_integer!(@ u64, $T, $body),
            _ => for_integer!(@ i64, $T, $body),
        }
    };
    (@ $rust:ty, $T:ident, $body:expr) => {{
        type $T = $rust;
        $body
    }};
}

struct Conversion {
    to: Type,
    from: Type,
    rounding: Option<Rounding>,
    rounds_to_integer: bool,
    flush: bool,
    saturate: bool,
    relu: bool,
    finite: bool,
}

impl<'e> Decoder<'e> {
    pub(super) fn convert(&mut self, i: &Instruction<'e>, m: &mut Modifiers<'_>) -> Result<()> {
        if m.flag("pack") {
            return self.convert_pack(i, m);
        }
        if m.has("e4m3x2") || m.has("e5m2x2") {
            return self.convert_eight_bit(i, m);
        }
        let integer_rounding = m.one_of(&["rni", "rzi", "rmi", "rpi"]);
        let rounding = integer_rounding.and_then(Rounding::parse).or_else(|| m.rounding());
        let (flush, saturate) = (m.flag("ftz"), m.flag("sat"));
        let (relu, finite) = (m.flag("relu"), m.flag("satfinite"));
        let (to, from) = (self.required_type(m)?, self.required_type(m)?);
        let c = Conversion {
            to,
            from,
            rounding,
            rounds_to_integer: integer_rounding.is_some(),
            flush,
            saturate,
            relu,
            finite,
        };
        if matches!(to, Type::F16x2 | Type::Bf16x2) {
            return self.convert_pair(i, &c);
        }
        let [d, a] = self.operands(i)?;
        let a = self.relaxed_source(a, if from == Type::Tf32 { Type::B32 } else { from })?;
        let (d, register_bits) = match d {
            Operand::Register(index) if self.register_type(*index).bits() >= to.bits() => {
                (self.slot(*index), self.register_type(*index).bits())
            }
            Operand::Sink => (self.allocate(2)?, to.bits()),
            _ => return self.fail(format!("expected a register of at least {} bits to write", to.bits())),
        };
        let register_mask = if register_bits >= 64 { u64::MAX } else { (1 << register_bits) - 1 };
        let fit = Fit { shift: 64 - to.bits().min(64), is_signed: to.is_signed(), register_mask };
        match (is_integer(from), is_integer(to)) {
            (true, true) => self.integer_to_integer(d, a, &c, fit),
            (true, false) => self.integer_to_float(d, a, &c),
            (false, true) => self.float_to_integer(d, a, &c, fit),
            (false, false) => self.float_to_float(d, a, &c),
        }
    }

    fn store_fitted<T: Value>(&mut self, d: u32, a: u32, fit: Fit, f: impl Fn(T) -> i64 + Send + Sync + 'static) {
        if fit.register_mask == u64::MAX {
            self.unary(d, a, move |value: T| fit.apply(f(value)));
        } else {
            self.unary(d, a, move |value: T| fit.apply(f(value)) as u32);
        }
    }

    fn integer_to_integer(&mut self, d: u32, a: u32, c: &Conversion, fit: Fit) -> Result<()> {
        let (low, high) = range(c.to);
        for_integer!(c.from, T => if c.saturate {
            self.store_fitted(d, a, fit, move |v: T| i128::from(v).clamp(low, high) as i64);
        } else {
            self.store_fitted(d, a, fit, |v: T| i128::from(v) as i64);
        });
        Ok(())
    }

    fn integer_to_float(&mut self, d: u32, a: u32, c: &Conversion) -> Result<()> {
        let Some(rounding) = c.rounding else { return self.fail("expected a rounding mode such as .rn on cvt") };
        let Some(format) = format_of(c.to) else { return self.wrong_type("cvt", c.to) };
        let is_saturated = c.saturate;
        // The host rounds these the same way.
        if rounding == Rounding::Nearest && !is_saturated && c.from.bits() >= 32 {
            match c.to {
                Type::F32 => {
                    for_integer!(c.from, T => self.unary(d, a, |v: T| v as f32));
                    return Ok(());
                }
                Type::F64 => {
                    for_integer!(c.from, T => self.unary(d, a, |v: T| v as f64));
                    return Ok(());
                }
                _ => {}
            }
        }
        let convert = move |value: i128| {
            let bits = soft_float::from_integer(value, format, rounding);
            if is_saturated {
                return soft_float::from_f64(
                    unit_interval(soft_float::to_f64(bits, format)),
                    format,
                    Rounding::Nearest,
                );
            }
            bits
        };
        for_integer!(c.from, T => if format.mantissa_bits == 52 {
            self.unary(d, a, move |v: T| convert(v.into()));
        } else {
            self.unary(d, a, move |v: T| convert(v.into()) as u32);
        });
        Ok(())
    }

    /// Emits `f` on the source, read as f64.
    fn float_source<D: Value>(
        &mut self,
        d: u32,
        a: u32,
        c: &Conversion,
        f: impl Fn(f64) -> D + Send + Sync + 'static,
    ) -> Result<()> {
        match c.from {
            Type::F64 => self.unary(d, a, f),
            Type::F32 | Type::Tf32 if c.flush => self.unary(d, a, move |v: f32| f(flush(v).into())),
            Type::F32 | Type::Tf32 => self.unary(d, a, move |v: f32| f(v.into())),
            Type::F16 => self.unary(d, a, move |v: u16| f(f16_to_f32(v).into())),
            Type::Bf16 => self.unary(d, a, move |v: u16| f(bf16_to_f32(v).into())),
            other => return self.wrong_type("cvt", other),
        }
        Ok(())
    }

    fn float_to_integer(&mut self, d: u32, a: u32, c: &Conversion, fit: Fit) -> Result<()> {
        let Some(rounding) = c.rounding.filter(|_| c.rounds_to_integer) else {
            return self.fail("expected an integer rounding mode such as .rzi on cvt");
        };
        // Rust's casts saturate, as PTX asks. NaN becomes 0, but the top bit alone where 64 bits are involved.
        let nan = if c.from == Type::F64 || c.to.bits() == 64 { 1i64 << (c.to.bits() - 1) } else { 0 };
        let is_wide = fit.register_mask == u64::MAX;
        for_integer!(c.to, T => {
            let convert = move |v: f64| {
                let whole = if v.is_nan() { nan } else { i128::from(round_to_integer(v, rounding) as T) as i64 };
                fit.apply(whole)
            };
            if is_wide {
                self.float_source(d, a, c, convert)
            } else {
                self.float_source(d, a, c, move |v| convert(v) as u32)
            }
        })
    }

    fn float_to_float(&mut self, d: u32, a: u32, c: &Conversion) -> Result<()> {
        let Some(format) = format_of(c.to) else { return self.wrong_type("cvt", c.to) };
        let plain = !(c.saturate || c.relu || c.finite || c.flush || c.rounds_to_integer);
        let nearest = matches!(c.rounding, None | Some(Rounding::Nearest));
        if plain && nearest {
            let alu = match (c.from, c.to) {
                (Type::F32, Type::F16) => Some(unary(self.level, d, [a], f32_to_f16)),
                (Type::F32, Type::Bf16) => Some(unary(self.level, d, [a], f32_to_bf16)),
                (Type::F16, Type::F32) => Some(unary(self.level, d, [a], f16_to_f32)),
                (Type::Bf16, Type::F32) => Some(unary(self.level, d, [a], bf16_to_f32)),
                (Type::F32, Type::F64) => Some(unary(self.level, d, [a], |v: f32| f64::from(v))),
                (Type::F64, Type::F32) => Some(unary(self.level, d, [a], |v: f64| v as f32)),
                (Type::F32, Type::F32) => Some(unary(self.level, d, [a], |v: f32| v)),
                _ => None,
            };
            if let Some(alu) = alu {
                self.emit_alu(alu);
                return Ok(());
            }
        }
        let narrow = self.narrow(c, format);
        if c.to == Type::F64 {
            self.float_source(d, a, c, narrow)
        } else {
            self.float_source(d, a, c, move |value| narrow(value) as u32)
        }
    }

    /// f64 to bits of the destination format, with everything the modifiers ask for.
    fn narrow(&self, c: &Conversion, format: Format) -> impl Fn(f64) -> u64 + Send + Sync + Copy + 'static {
        let (rounding, to_integer) = (c.rounding.unwrap_or(Rounding::Nearest), c.rounds_to_integer);
        let (is_saturated, relu, finite) = (c.saturate, c.relu, c.finite);
        let flushes = c.flush && c.to == Type::F32;
        let is_tf32 = c.to == Type::Tf32;
        move |value: f64| {
            let value = if to_integer { round_to_integer(value, rounding) } else { value };
            let value = if is_saturated { unit_interval(value) } else { value };
            let value = if relu && value <= 0.0 { 0.0 } else { value };
            let mode = if to_integer { Rounding::Nearest } else { rounding };
            let mut bits = soft_float::from_f64(value, format, mode);
            let top = ((1u64 << format.exponent_bits) - 1) << format.mantissa_bits;
            if finite && bits & top == top && !value.is_nan() {
                bits -= 1;
            }
            if flushes {
                bits = u64::from(flush(f32::from_bits(bits as u32)).to_bits());
            }
            // A tf32 is kept as the f32 with the same value.
            if is_tf32 { bits << 13 } else { bits }
        }
    }

    /// `cvt.rn.bf16x2.f32 d, a, b`: a to the upper half, b to the lower.
    fn convert_pair(&mut self, i: &Instruction<'e>, c: &Conversion) -> Result<()> {
        if c.from != Type::F32 {
            return self.wrong_type("a cvt to a pair", c.from);
        }
        let [d, a, b] = self.operands(i)?;
        let (d, s) = (self.destination(d, Type::B32)?, [self.source(a, Type::F32)?, self.source(b, Type::F32)?]);
        let is_bf16 = c.to == Type::Bf16x2;
        let pack = |upper: u16, lower: u16| u32::from(upper) << 16 | u32::from(lower);
        match (c.relu || c.finite || c.rounding != Some(Rounding::Nearest), is_bf16) {
            (false, true) => self.binary(d, s, move |a: f32, b: f32| pack(f32_to_bf16(a), f32_to_bf16(b))),
            (false, false) => self.binary(d, s, move |a: f32, b: f32| pack(f32_to_f16(a), f32_to_f16(b))),
            _ => {
                let narrow = self.narrow(c, if is_bf16 { BF16 } else { F16 });
                self.binary(d, s, move |a: f32, b: f32| pack(narrow(a.into()) as u16, narrow(b.into()) as u16));
            }
        }
        Ok(())
    }

    fn convert_pack(&mut self, i: &Instruction<'e>, m: &mut Modifiers<'_>) -> Result<()> {
        m.flag("sat");
        let small = m.one_of(&["u2", "s2", "u4", "s4"]);
        let (bits, is_signed) = match small {
            Some(name) => (u32::from(name.as_bytes()[1] - b'0'), name.starts_with('s')),
            None => {
                let ty = self.required_type(m)?;
                (ty.bits(), ty.is_signed())
            }
        };
        if self.required_type(m)? != Type::S32 || bits > 16 {
            return self.fail("cvt.pack converts .s32 to at most 16 bits");
        }
        let (low, high) = if is_signed { (-(1i32 << (bits - 1)), (1 << (bits - 1)) - 1) } else { (0, (1 << bits) - 1) };
        let clamp = move |value: i32| value.clamp(low, high) as u32 & ((1 << bits) - 1);
        if bits == 16 {
            let [d, a, b] = self.operands(i)?;
            let (d, s) = (self.destination(d, Type::B32)?, [self.source(a, Type::S32)?, self.source(b, Type::S32)?]);
            self.binary(d, s, move |a: i32, b: i32| clamp(a) << 16 | clamp(b));
            return Ok(());
        }
        m.ty();
        let [d, a, b, c] = self.operands(i)?;
        let d = self.destination(d, Type::B32)?;
        let s = [self.source(a, Type::S32)?, self.source(b, Type::S32)?, self.source(c, Type::B32)?];
        self.ternary(d, s, move |a: i32, b: i32, c: u32| c << (2 * bits) | clamp(a) << bits | clamp(b));
        Ok(())
    }
}
