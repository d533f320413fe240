//! cvt to and from pairs of 8-bit floats (sm_89 and up).
//!
//! e5m2 is a small IEEE format. e4m3 has no infinities: its top exponent holds the numbers 256 to 448, and only the mantissa
//! of all ones there is NaN. Conversions to both saturate to their greatest number.

use super::half_float::{f16_to_f32, f32_to_f16};
use crate::ast::{Instruction, Type};
use crate::decode::Decoder;
use crate::decode::modifiers::Modifiers;
use crate::error::Result;
use crate::soft_float::{Format, Rounding, from_f64, to_f64};

const E5M2: Format = Format { mantissa_bits: 2, exponent_bits: 5 };
const E4M3: Format = Format { mantissa_bits: 3, exponent_bits: 4 };
const NAN: u8 = 0x7F;

fn narrow(value: f32, is_e4m3: bool, rectifies: bool) -> u8 {
    if value.is_nan() {
        return NAN;
    }
    let value = if rectifies && value <= 0.0 { 0.0 } else { value };
    let sign = if value.is_sign_negative() { 0x80 } else { 0 };
    let (format, greatest) = if is_e4m3 { (E4M3, 0x7E) } else { (E5M2, 0x7B) };
    let magnitude = value.abs();
    let bits = if is_e4m3 && magnitude >= 256.0 {
        // Eighths of 256, beyond what the format says by itself.
        0x78 + ((magnitude / 32.0).round_ties_even().min(14.0) as u8 - 8)
    } else {
        from_f64(magnitude.into(), format, Rounding::Nearest) as u8
    };
    sign | bits.min(greatest)
}

fn widen(bits: u8, is_e4m3: bool) -> f32 {
    let magnitude = bits & 0x7F;
    let value = match is_e4m3 {
        true if magnitude == NAN => f64::NAN,
        true if magnitude >= 0x78 => f64::from(magnitude - 0x70) * 32.0,
        true => to_f64(magnitude.into(), E4M3),
        false => to_f64(magnitude.into(), E5M2),
    };
    if bits & 0x80 != 0 { -value as f32 } else { value as f32 }
}

impl<'e> Decoder<'e> {
    /// `cvt.rn.satfinite.e4m3x2.f32 d, a, b` (a to the upper byte), `cvt...e4m3x2.f16x2 d, a`, `cvt.rn.f16x2.e4m3x2 d, a`.
    pub(super) fn convert_eight_bit(&mut self, i: &Instruction<'e>, m: &mut Modifiers<'_>) -> Result<()> {
        let is_narrowing = m.peek_type() != Some(Type::F16x2) || m.flag("satfinite");
        let is_e4m3 = m.one_of(&["e4m3x2", "e5m2x2"]) == Some("e4m3x2");
        let rectifies = m.flag("relu");
        if !m.flag("rn") {
            return self.fail("expected .rn on cvt of 8-bit floats");
        }
        m.flag("satfinite");
        let ty = self.required_type(m)?;
        let pack = move |upper: f32, lower: f32| {
            u16::from(narrow(upper, is_e4m3, rectifies)) << 8 | u16::from(narrow(lower, is_e4m3, rectifies))
        };
        match ty {
            Type::F32 => {
                let [d, a, b] = self.operands(i)?;
                let (d, s) = (self.destination(d, Type::B16)?, [self.source(a, ty)?, self.source(b, ty)?]);
                self.binary(d, s, pack);
            }
            Type::F16x2 if is_narrowing => {
                let [d, a] = self.operands(i)?;
                let (d, a) = (self.destination(d, Type::B16)?, self.source(a, Type::B32)?);
                self.unary(d, a, move |a: u32| pack(f16_to_f32((a >> 16) as u16), f16_to_f32(a as u16)));
            }
            Type::F16x2 => {
                let [d, a] = self.operands(i)?;
                let (d, a) = (self.destination(d, Type::B32)?, self.source(a, Type::B16)?);
                // Every 8-bit float is an f16.
                let half = move |bits: u8| {
                    let value = widen(bits, is_e4m3);
                    u32::from(f32_to_f16(if rectifies && value <= 0.0 { 0.0 } else { value }))
                };
                self.unary(d, a, move |a: u16| half((a >> 8) as u8) << 16 | half(a as u8));
            }
            other => return self.wrong_type("cvt of 8-bit floats", other),
        }
        Ok(())
    }
}
