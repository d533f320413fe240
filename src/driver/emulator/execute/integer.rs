//! Integer arithmetic, bit fields and dot products.

use crate::ast::{Instruction, Type};
use crate::decode::Decoder;
use crate::decode::modifiers::Modifiers;
use crate::error::Result;
use crate::lanes::Value;

/// The machine integers, with the operations that PTX has on them.
pub(super) trait Integer: Value + Ord {
    type Wide: Value;
    fn add(self, other: Self) -> Self;
    fn subtract(self, other: Self) -> Self;
    fn low(self, other: Self) -> Self;
    fn high(self, other: Self) -> Self;
    fn wide(self, other: Self) -> Self::Wide;
    fn add_wide(wide: Self::Wide, other: Self::Wide) -> Self::Wide;
    fn divide(self, other: Self) -> Self;
    fn remainder(self, other: Self) -> Self;
    fn distance(self, other: Self) -> Self;
    fn negate(self) -> Self;
    fn magnitude(self) -> Self;
}

macro_rules! integer {
    ($type:ty, $wide:ty, $double:ty) => {
        impl Integer for $type {
            type Wide = $wide;
            #[inline(always)]
            fn add(self, other: Self) -> Self {
                self.wrapping_add(other)
            }
            #[inline(always)]
            fn subtract(self, other: Self) -> Self {
                self.wrapping_sub(other)
            }
            #[inline(always)]
            fn low(self, other: Self) -> Self {
                self.wrapping_mul(other)
            }
            #[inline(always)]
            fn high(self, other: Self) -> Self {
                ((self as $double * other as $double) >> <$type>::BITS) as Self
            }
            #[inline(always)]
            fn wide(self, other: Self) -> $wide {
                (self as $wide).wrapping_mul(other as $wide)
            }
            #[inline(always)]
            fn add_wide(wide: $wide, other: $wide) -> $wide {
                wide.wrapping_add(other)
            }
            /// Division by zero is unspecified; hardware gives all ones.
            #[inline(always)]
            fn divide(self, other: Self) -> Self {
                if other == 0 { !0 } else { self.wrapping_div(other) }
            }
            #[inline(always)]
            fn remainder(self, other: Self) -> Self {
                if other == 0 { self } else { self.wrapping_rem(other) }
            }
            #[inline(always)]
            fn distance(self, other: Self) -> Self {
                if self < other { other.wrapping_sub(self) } else { self.wrapping_sub(other) }
            }
            #[inline(always)]
            fn negate(self) -> Self {
                self.wrapping_neg()
            }
            #[inline(always)]
            #[allow(unused_comparisons)]
            fn magnitude(self) -> Self {
                if self < 0 { self.wrapping_neg() } else { self }
            }
        }
    };
}
integer!(u16, u32, u32);
integer!(i16, i32, i32);
integer!(u32, u64, u64);
integer!(i32, i64, i64);
// The wide products of 64-bit numbers do not exist in PTX.
integer!(u64, u64, u128);
integer!(i64, i64, i128);

/// Runs `$body` with `$T` naming the Rust type of a PTX integer type.
macro_rules! for_integer {
    ($decoder:expr, $opcode:expr, $ty:expr, $T:ident => $body:expr) => {
        match $ty {
            Type::U16 => {
                type $T = u16;
                $body
            }
            Type::S16 => {
                type $T = i16;
                $body
            }
            Type::U32 => {
                type $T = u32;
                $body
            }
            Type::S32 => {
                type $T = i32;
                $body
            }
            Type::U64 => {
                type $T = u64;
                $body
            }
            Type::S64 => {
                type $T = i64;
                $body
            }
            other => return $decoder.wrong_type($opcode, other),
        }
    };
}

/// `bfe` on 64 bits; `bits` is the operand's width.
#[inline(always)]
pub(super) fn extract_field(value: u64, position: u32, length: u32, bits: u32, is_signed: bool) -> u64 {
    let (position, length) = (position & 0xFF, length & 0xFF);
    if length == 0 {
        return 0;
    }
    let sign_position = (position + length - 1).min(bits - 1);
    let sign = is_signed && (value >> sign_position) & 1 != 0;
    let fill = if sign { u64::MAX } else { 0 };
    // Bits beyond the operand's end come from the sign.
    let extended = if position >= 64 {
        fill
    } else if position == 0 {
        (value & mask_of(bits)) | (fill & !mask_of(bits))
    } else {
        ((value & mask_of(bits)) >> position) | (fill << bits.saturating_sub(position).min(63))
    };
    let extended = if position >= bits { fill } else { extended };
    let kept = mask_of(length.min(64));
    (extended & kept) | (fill & !kept)
}

#[inline(always)]
fn mask_of(bits: u32) -> u64 {
    if bits >= 64 { u64::MAX } else { (1u64 << bits) - 1 }
}

/// `bfi`: the low `length` bits of `field` into `base` at `position`.
#[inline(always)]
fn insert_field(field: u64, base: u64, position: u32, length: u32, bits: u32) -> u64 {
    let (position, length) = (position & 0xFF, length & 0xFF);
    if position >= bits || length == 0 {
        return base;
    }
    let mask = mask_of(length.min(bits - position)) << position;
    (base & !mask) | ((field << position) & mask)
}

#[inline(always)]
fn find_set(mask: u32, base: u32, offset: i32) -> u32 {
    let mut position = base as i32;
    if offset == 0 {
        return if base < 32 && mask >> base & 1 != 0 { base } else { u32::MAX };
    }
    let mut remaining = offset.unsigned_abs();
    while (0..32).contains(&position) {
        if mask >> position & 1 != 0 {
            remaining -= 1;
            if remaining == 0 {
                return position as u32;
            }
        }
        position += offset.signum();
    }
    u32::MAX
}

#[inline(always)]
fn bit_mask(a: u32, b: u32, clamps: bool) -> u32 {
    let (start, width) = (a & 31, b & 31);
    let first = if clamps && a >= 32 { 0 } else { u32::MAX << start };
    let end = start + width;
    let overflows = end >= 32 || (clamps && (a >= 32 || b >= 32));
    let last = if overflows {
        0
    } else if width == 0 {
        u32::MAX
    } else {
        u32::MAX << end
    };
    first & !last
}

#[inline(always)]
fn extend(a: u32, b: u32, clamps: bool, is_signed: bool) -> u32 {
    let width = b & 31;
    let is_too_large = b >= 32 && clamps;
    let mask = if is_too_large { 0 } else { u32::MAX << width };
    let sign = width != 0 && !is_too_large && is_signed && (a >> (width - 1)) & 1 != 0;
    (a & !mask) | if sign { mask } else { 0 }
}

#[inline(always)]
fn low_24(value: u32, is_signed: bool) -> i64 {
    if is_signed { i64::from((value << 8) as i32 >> 8) } else { i64::from(value & 0xFF_FFFF) }
}

#[inline(always)]
fn byte(value: u32, index: u32, is_signed: bool) -> i32 {
    let byte = (value >> (8 * index)) as u8;
    if is_signed { i32::from(byte as i8) } else { i32::from(byte) }
}

impl<'e> Decoder<'e> {
    pub(super) fn integer(&mut self, i: &Instruction<'e>, m: &mut Modifiers<'_>) -> Result<()> {
        match i.opcode {
            "add" | "sub" | "min" | "max" => self.integer_binary(i, m),
            "mul" | "mad" => self.integer_multiply(i, m),
            "div" | "rem" | "sad" => self.integer_divide(i, m),
            "abs" | "neg" => {
                let ty = self.required_type(m)?;
                let [d, a] = self.operands(i)?;
                let (d, a) = (self.destination(d, ty)?, self.source(a, ty)?);
                for_integer!(self, i.opcode, ty, T => match i.opcode {
                    "abs" => self.unary(d, a, |a: T| a.magnitude()),
                    _ => self.unary(d, a, |a: T| a.negate()),
                });
                Ok(())
            }
            "mul24" | "mad24" => self.multiply_24(i, m),
            "dp4a" | "dp2a" => self.dot_product(i, m),
            _ => self.bits(i, m),
        }
    }

    fn integer_binary(&mut self, i: &Instruction<'e>, m: &mut Modifiers<'_>) -> Result<()> {
        let ty = self.required_type(m)?;
        let saturates = m.flag("sat");
        let rectifies = m.flag("relu");
        let [d, a, b] = self.operands(i)?;
        let (d, s) = (self.destination(d, ty)?, [self.source(a, ty)?, self.source(b, ty)?]);
        if saturates {
            match (ty, i.opcode) {
                (Type::S32, "add") => self.binary(d, s, |a: i32, b: i32| a.saturating_add(b)),
                (Type::S32, "sub") => self.binary(d, s, |a: i32, b: i32| a.saturating_sub(b)),
                _ => return self.wrong_type("a saturating operation", ty),
            }
            return Ok(());
        }
        if rectifies {
            match (ty, i.opcode) {
                (Type::S32, "min") => self.binary(d, s, |a: i32, b: i32| a.min(b).max(0)),
                (Type::S32, "max") => self.binary(d, s, |a: i32, b: i32| a.max(b).max(0)),
                _ => return self.wrong_type("an operation with .relu", ty),
            }
            return Ok(());
        }
        if matches!(ty, Type::U16x2 | Type::S16x2) {
            let is_signed = ty == Type::S16x2;
            let opcode = i.opcode.chars().next().unwrap_or('a');
            let is_least = i.opcode == "min";
            let is_add = opcode == 'a';
            let half = move |a: u16, b: u16| match (is_add, is_signed) {
                (true, _) => a.wrapping_add(b),
                (_, true) if is_least => (a as i16).min(b as i16) as u16,
                (_, true) => (a as i16).max(b as i16) as u16,
                _ if is_least => a.min(b),
                _ => a.max(b),
            };
            if i.opcode == "sub" {
                return self.wrong_type("sub", ty);
            }
            self.binary(d, s, move |a: u32, b: u32| {
                u32::from(half(a as u16, b as u16)) | u32::from(half((a >> 16) as u16, (b >> 16) as u16)) << 16
            });
            return Ok(());
        }
        for_integer!(self, i.opcode, ty, T => match i.opcode {
            "add" => self.binary(d, s, |a: T, b: T| a.add(b)),
            "sub" => self.binary(d, s, |a: T, b: T| a.subtract(b)),
            "min" => self.binary(d, s, |a: T, b: T| a.min(b)),
            _ => self.binary(d, s, |a: T, b: T| a.max(b)),
        });
        Ok(())
    }

    fn integer_multiply(&mut self, i: &Instruction<'e>, m: &mut Modifiers<'_>) -> Result<()> {
        let part = m.one_of(&["lo", "hi", "wide"]);
        let saturates = m.flag("sat");
        let ty = self.required_type(m)?;
        let wide_type = match (part, ty) {
            (Some("wide"), Type::U16) => Type::U32,
            (Some("wide"), Type::S16) => Type::S32,
            (Some("wide"), Type::U32) => Type::U64,
            (Some("wide"), Type::S32) => Type::S64,
            (Some("wide"), _) => return self.wrong_type("a wide product", ty),
            (Some(_), _) => ty,
            (None, _) => return self.fail(format!("expected .lo, .hi or .wide on {}", i.opcode)),
        };
        if i.opcode == "mul" {
            let [d, a, b] = self.operands(i)?;
            let (d, s) = (self.destination(d, wide_type)?, [self.source(a, ty)?, self.source(b, ty)?]);
            for_integer!(self, i.opcode, ty, T => match part {
                Some("lo") => self.binary(d, s, |a: T, b: T| a.low(b)),
                Some("hi") => self.binary(d, s, |a: T, b: T| a.high(b)),
                _ => self.binary(d, s, |a: T, b: T| a.wide(b)),
            });
            return Ok(());
        }
        let [d, a, b, c] = self.operands(i)?;
        let d = self.destination(d, wide_type)?;
        let s = [self.source(a, ty)?, self.source(b, ty)?, self.source(c, wide_type)?];
        if saturates {
            if ty != Type::S32 || part != Some("hi") {
                return self.wrong_type("mad.sat (it needs .hi)", ty);
            }
            self.ternary(d, s, |a: i32, b: i32, c: i32| Integer::high(a, b).saturating_add(c));
            return Ok(());
        }
        for_integer!(self, i.opcode, ty, T => match part {
            Some("lo") => self.ternary(d, s, |a: T, b: T, c: T| a.low(b).add(c)),
            Some("hi") => self.ternary(d, s, |a: T, b: T, c: T| Integer::high(a, b).add(c)),
            _ => self.ternary(d, s, |a: T, b: T, c: <T as Integer>::Wide| T::add_wide(a.wide(b), c)),
        });
        Ok(())
    }

    fn integer_divide(&mut self, i: &Instruction<'e>, m: &mut Modifiers<'_>) -> Result<()> {
        let ty = self.required_type(m)?;
        if i.opcode == "sad" {
            let [d, a, b, c] = self.operands(i)?;
            let d = self.destination(d, ty)?;
            let s = [self.source(a, ty)?, self.source(b, ty)?, self.source(c, ty)?];
            for_integer!(self, i.opcode, ty, T => self.ternary(d, s, |a: T, b: T, c: T| c.add(a.distance(b))));
            return Ok(());
        }
        let [d, a, b] = self.operands(i)?;
        let (d, s) = (self.destination(d, ty)?, [self.source(a, ty)?, self.source(b, ty)?]);
        for_integer!(self, i.opcode, ty, T => match i.opcode {
            "div" => self.binary(d, s, |a: T, b: T| a.divide(b)),
            _ => self.binary(d, s, |a: T, b: T| a.remainder(b)),
        });
        Ok(())
    }

    fn multiply_24(&mut self, i: &Instruction<'e>, m: &mut Modifiers<'_>) -> Result<()> {
        let Some(part) = m.one_of(&["lo", "hi"]) else {
            return self.fail(format!("expected .lo or .hi on {}", i.opcode));
        };
        let saturates = m.flag("sat");
        let ty = self.required_type(m)?;
        if ty != Type::U32 && ty != Type::S32 {
            return self.wrong_type(i.opcode, ty);
        }
        // `.hi` is bits 16 to 47 of the 48-bit product.
        let (is_signed, shift) = (ty.is_signed(), if part == "hi" { 16 } else { 0 });
        let product = move |a: u32, b: u32| ((low_24(a, is_signed).wrapping_mul(low_24(b, is_signed))) >> shift) as u32;
        if i.opcode == "mul24" {
            let [d, a, b] = self.operands(i)?;
            let (d, s) = (self.destination(d, ty)?, [self.source(a, ty)?, self.source(b, ty)?]);
            self.binary(d, s, product);
            return Ok(());
        }
        let [d, a, b, c] = self.operands(i)?;
        let d = self.destination(d, ty)?;
        let s = [self.source(a, ty)?, self.source(b, ty)?, self.source(c, ty)?];
        if saturates {
            self.ternary(d, s, move |a: u32, b: u32, c: i32| (product(a, b) as i32).saturating_add(c));
        } else {
            self.ternary(d, s, move |a: u32, b: u32, c: u32| product(a, b).wrapping_add(c));
        }
        Ok(())
    }

    fn dot_product(&mut self, i: &Instruction<'e>, m: &mut Modifiers<'_>) -> Result<()> {
        let half = m.one_of(&["lo", "hi"]);
        let (a_type, b_type) = (self.required_type(m)?, self.required_type(m)?);
        if ![a_type, b_type].iter().all(|ty| matches!(ty, Type::U32 | Type::S32)) {
            return self.wrong_type(i.opcode, a_type);
        }
        let [d, a, b, c] = self.operands(i)?;
        let d = self.destination(d, Type::B32)?;
        let s = [self.source(a, Type::B32)?, self.source(b, Type::B32)?, self.source(c, Type::B32)?];
        let (a_signed, b_signed) = (a_type.is_signed(), b_type.is_signed());
        match (i.opcode, half) {
            ("dp4a", None) => self.ternary(d, s, move |a: u32, b: u32, c: i32| {
                (0..4).fold(c, |sum, k| sum.wrapping_add(byte(a, k, a_signed) * byte(b, k, b_signed)))
            }),
            ("dp2a", Some(half)) => {
                let first = if half == "hi" { 2 } else { 0 };
                self.ternary(d, s, move |a: u32, b: u32, c: i32| {
                    (0..2).fold(c, |sum, k| {
                        let word = (a >> (16 * k)) as u16;
                        let word = if a_signed { i32::from(word as i16) } else { i32::from(word) };
                        sum.wrapping_add(word * byte(b, first + k, b_signed))
                    })
                });
            }
            _ => return self.fail("expected dp4a, dp2a.lo or dp2a.hi"),
        }
        Ok(())
    }

    fn bits(&mut self, i: &Instruction<'e>, m: &mut Modifiers<'_>) -> Result<()> {
        let mode = m.one_of(&["clamp", "wrap"]);
        let wants_shift = m.flag("shiftamt");
        let ty = self.required_type(m)?;
        let bits = ty.bits();
        if bits != 32 && bits != 64 {
            return self.wrong_type(i.opcode, ty);
        }
        let (is_wide, is_signed) = (bits == 64, ty.is_signed());
        match i.opcode {
            "popc" | "clz" | "bfind" => {
                let [d, a] = self.operands(i)?;
                let (d, a) = (self.destination(d, Type::U32)?, self.source(a, ty)?);
                match (i.opcode, is_wide) {
                    ("popc", false) => self.unary(d, a, |a: u32| a.count_ones()),
                    ("popc", true) => self.unary(d, a, |a: u64| a.count_ones()),
                    ("clz", false) => self.unary(d, a, |a: u32| a.leading_zeros()),
                    ("clz", true) => self.unary(d, a, |a: u64| a.leading_zeros()),
                    _ => {
                        let find = move |a: u64| {
                            let width_mask = mask_of(bits);
                            let a =
                                if is_signed && a >> (bits - 1) & 1 != 0 { !a & width_mask } else { a & width_mask };
                            match a.checked_ilog2() {
                                None => u32::MAX,
                                Some(position) if wants_shift => bits - 1 - position,
                                Some(position) => position,
                            }
                        };
                        if is_wide {
                            self.unary(d, a, find);
                        } else {
                            self.unary(d, a, move |a: u32| find(u64::from(a)));
                        }
                    }
                }
            }
            "brev" => {
                let [d, a] = self.operands(i)?;
                let (d, a) = (self.destination(d, ty)?, self.source(a, ty)?);
                if is_wide {
                    self.unary(d, a, |a: u64| a.reverse_bits());
                } else {
                    self.unary(d, a, |a: u32| a.reverse_bits());
                }
            }
            "bfe" => {
                let [d, a, b, c] = self.operands(i)?;
                let d = self.destination(d, ty)?;
                let s = [self.source(a, ty)?, self.source(b, Type::U32)?, self.source(c, Type::U32)?];
                if is_wide {
                    self.ternary(d, s, move |a: u64, b: u32, c: u32| extract_field(a, b, c, 64, is_signed));
                } else {
                    self.ternary(d, s, move |a: u32, b: u32, c: u32| {
                        extract_field(a.into(), b, c, 32, is_signed) as u32
                    });
                }
            }
            "bfi" => {
                let [d, a, b, c, e] = self.operands(i)?;
                let d = self.destination(d, ty)?;
                let s = [self.source(a, ty)?, self.source(b, ty)?, self.source(c, Type::U32)?];
                let length = self.source(e, Type::U32)?;
                self.insert(d, s, length, is_wide);
            }
            "fns" => {
                let [d, a, b, c] = self.operands(i)?;
                let d = self.destination(d, Type::B32)?;
                let s = [self.source(a, Type::B32)?, self.source(b, Type::B32)?, self.source(c, Type::B32)?];
                self.ternary(d, s, find_set);
            }
            _ => {
                let Some(mode) = mode else { return self.fail(format!("expected .clamp or .wrap on {}", i.opcode)) };
                let clamps = mode == "clamp";
                let [d, a, b] = self.operands(i)?;
                let (d, s) =
                    (self.destination(d, Type::B32)?, [self.source(a, Type::B32)?, self.source(b, Type::B32)?]);
                if i.opcode == "bmsk" {
                    self.binary(d, s, move |a: u32, b: u32| bit_mask(a, b, clamps));
                } else {
                    self.binary(d, s, move |a: u32, b: u32| extend(a, b, clamps, is_signed));
                }
            }
        }
        Ok(())
    }

    fn insert(&mut self, d: u32, s: [u32; 3], length: u32, is_wide: bool) {
        use crate::lanes::{LANES, Word, store_lanes, whole};
        let alu = whole(self.level, move |planes, mask| {
            let (position, length) = (u32::view(planes, s[2]), u32::view(planes, length));
            if is_wide {
                let (field, base) = (u64::view(planes, s[0]), u64::view(planes, s[1]));
                let result: [u64; LANES] =
                    std::array::from_fn(|l| insert_field(field[l], base[l], position[l], length[l], 64));
                store_lanes(planes, d, &result, mask);
            } else {
                let (field, base) = (u32::view(planes, s[0]), u32::view(planes, s[1]));
                let result: [u32; LANES] = std::array::from_fn(|l| {
                    insert_field(field[l].into(), base[l].into(), position[l], length[l], 32) as u32
                });
                store_lanes(planes, d, &result, mask);
            }
        });
        self.emit_alu(alu);
    }
}
