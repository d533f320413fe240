//! Extended precision: add.cc, addc, sub.cc, subc, mad.cc, madc.
//!
//! The condition code's carry bit is a predicate of the frame. A subtraction leaves "no borrow" in it: hardware adds the
//! complement, and ptxas translates so. The manual says borrow, which chains of one kind cannot tell apart; but nvcc's
//! division of 128-bit integers reads the bit of a `subc.cc` with `addc`, and counts on hardware's sense.

use crate::ast::Instruction;
use crate::decode::Decoder;
use crate::decode::modifiers::Modifiers;
use crate::error::Result;
use crate::lanes::{LANE_BIT, LANES, Word, predicate, store_lanes, store_predicate, whole};

impl<'e> Decoder<'e> {
    pub(super) fn carry(&mut self, i: &Instruction<'e>, m: &mut Modifiers<'_>) -> Result<()> {
        let writes = m.flag("cc");
        let reads = i.opcode.ends_with('c');
        let part = m.one_of(&["lo", "hi"]);
        let ty = self.required_type(m)?;
        if ty.bits() != 32 && ty.bits() != 64 || ty.is_float() {
            return self.wrong_type(i.opcode, ty);
        }
        let is_subtraction = i.opcode.starts_with("sub");
        let is_multiply = i.opcode.starts_with("mad");
        let is_high = part == Some("hi");
        let (d, s) = if is_multiply {
            let [d, a, b, c] = self.operands(i)?;
            (self.destination(d, ty)?, [self.source(a, ty)?, self.source(b, ty)?, self.source(c, ty)?])
        } else {
            let [d, a, b] = self.operands(i)?;
            let (a, b) = (self.source(a, ty)?, self.source(b, ty)?);
            (self.destination(d, ty)?, [a, b, a])
        };
        let carry = self.carry_plane()?;
        let (is_wide, is_signed) = (ty.bits() == 64, ty.is_signed());
        let alu = whole(self.level, move |planes, mask| {
            let carry_in = predicate(planes, carry, false);
            let mut carry_out = 0;
            let mut result = [0u64; LANES];
            for lane in 0..LANES {
                let read = |planes: &[_], slot| {
                    if is_wide { u64::view(planes, slot)[lane] } else { u32::view(planes, slot)[lane].into() }
                };
                let (mut a, mut b) = (read(planes, s[0]), read(planes, s[1]));
                let carry_bit = carry_in & LANE_BIT[lane] != 0;
                if is_multiply {
                    let product = match (is_wide, is_signed) {
                        (true, true) => (i128::from(a as i64) * i128::from(b as i64)) as u128,
                        (true, false) => u128::from(a) * u128::from(b),
                        (false, true) => (i64::from(a as i32) * i64::from(b as i32)) as u64 as u128,
                        (false, false) => u128::from(a * b),
                    };
                    let bits = if is_wide { 64 } else { 32 };
                    a = if is_high { product >> bits } else { product } as u64;
                    b = read(planes, s[2]);
                    if !is_wide {
                        a &= 0xFFFF_FFFF;
                    }
                }
                if is_subtraction {
                    b = if is_wide { !b } else { !b & 0xFFFF_FFFF };
                }
                let initial = if reads { carry_bit } else { is_subtraction };
                let sum = u128::from(a) + u128::from(b) + u128::from(initial);
                result[lane] = sum as u64;
                if sum >> (if is_wide { 64 } else { 32 }) & 1 != 0 {
                    carry_out |= LANE_BIT[lane];
                }
            }
            if is_wide {
                store_lanes(planes, d, &result, mask);
            } else {
                store_lanes(planes, d, &result.map(|word| word as u32), mask);
            }
            if writes {
                store_predicate(planes, carry, carry_out, mask);
            }
        });
        self.emit_alu(alu);
        Ok(())
    }

    /// The frame's carry bit.
    fn carry_plane(&mut self) -> Result<u32> {
        match self.carry {
            Some(plane) => Ok(plane),
            None => {
                let plane = self.allocate(1)?;
                self.carry = Some(plane);
                Ok(plane)
            }
        }
    }
}
