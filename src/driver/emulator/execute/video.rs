//! Video instructions: bytes and half words picked out of registers, and the same operation on the 2 or 4 of a register.
//!
//! `vadd.s32.u32.u32.sat d.b1, a.h0, b, c` takes parts of `a` and `b`, widens them, computes exactly, saturates to the
//! part of `d` and merges with `c`. `vabsdiff4.u32.u32.u32.add d, a, b, c` does so for 4 bytes and adds the results to `c`;
//! nvcc makes that of `__vsadu4` and its like. Only registers are touched, so each is one closure.

use crate::ast::{Instruction, Operand, Type};
use crate::decode::Decoder;
use crate::decode::modifiers::Modifiers;
use crate::error::Result;
use crate::lanes::{LANES, Word, store_lanes, whole};

#[derive(Clone, Copy)]
enum Action {
    Add,
    Subtract,
    Average,
    Distance,
    Least,
    Most,
    ShiftLeft {
        wraps: bool,
    },
    ShiftRight {
        wraps: bool,
    },
    Multiply {
        shift: u32,
        rounds: bool,
    },
    /// Holds for results -1, 0 and 1 of the comparison.
    Compare([bool; 3]),
}

impl Action {
    /// Exact: parts have 33 bits with their sign at most.
    fn apply(self, a: i64, b: i64, c: i64) -> i64 {
        let amount = |wraps: bool| if wraps { b & 31 } else { b.clamp(0, 32) };
        match self {
            Self::Add => a + b,
            Self::Subtract => a - b,
            Self::Average => (a + b + i64::from(a + b >= 0)) >> 1,
            Self::Distance => (a - b).abs(),
            Self::Least => a.min(b),
            Self::Most => a.max(b),
            Self::ShiftLeft { wraps } => a << amount(wraps),
            Self::ShiftRight { wraps } => a >> amount(wraps),
            Self::Multiply { shift, rounds } => {
                ((i128::from(a) * i128::from(b) + i128::from(c) + i128::from(rounds)) >> shift) as i64
            }
            Self::Compare(holds) => i64::from(holds[(a.cmp(&b) as i8 + 1) as usize]),
        }
    }
}

/// What follows the saturated result.
#[derive(Clone, Copy, PartialEq)]
enum Second {
    /// The parts that the instruction does not write come from `c`.
    Merge,
    Add,
    Least,
    Most,
}

fn widen(value: u32, bits: u32, is_signed: bool) -> i64 {
    let shift = 64 - bits;
    let high = u64::from(value) << shift;
    if is_signed { (high as i64) >> shift } else { (high >> shift) as i64 }
}

fn saturate(value: i64, bits: u32, is_signed: bool) -> i64 {
    if is_signed { value.clamp(-(1 << (bits - 1)), (1 << (bits - 1)) - 1) } else { value.clamp(0, (1 << bits) - 1) }
}

/// The parts that `.b3210` or `.h10` names, the lowest first, and their width.
fn parts(selector: &str) -> Option<(u32, Vec<u32>)> {
    let bits = match selector.as_bytes().first()? {
        b'b' => 8,
        b'h' => 16,
        _ => return None,
    };
    let indices: Option<Vec<u32>> = selector[1..].chars().rev().map(|digit| digit.to_digit(64 / bits)).collect();
    indices.filter(|indices| !indices.is_empty() && indices.len() <= 4).map(|indices| (bits, indices))
}

fn insert(word: u32, value: i64, index: u32, bits: u32) -> u32 {
    let mask = (u32::MAX >> (32 - bits)) << (index * bits);
    (word & !mask) | (((value as u32) << (index * bits)) & mask)
}

impl<'e> Decoder<'e> {
    pub(super) fn video(&mut self, i: &Instruction<'e>, m: &mut Modifiers<'_>) -> Result<()> {
        let (name, count) = match i.opcode.strip_suffix(['2', '4']) {
            Some(name) => (name, if i.opcode.ends_with('2') { 2 } else { 4 }),
            None => (i.opcode, 1),
        };
        let wraps = m.one_of(&["clamp", "wrap"]) == Some("wrap");
        let action = match name {
            "vadd" => Action::Add,
            "vsub" => Action::Subtract,
            "vavrg" => Action::Average,
            "vabsdiff" => Action::Distance,
            "vmin" => Action::Least,
            "vmax" => Action::Most,
            "vshl" => Action::ShiftLeft { wraps },
            "vshr" => Action::ShiftRight { wraps },
            "vmad" => {
                let shift = m.find(|modifier| match modifier {
                    "shr7" => Some(7),
                    "shr15" => Some(15),
                    _ => None,
                });
                Action::Multiply { shift: shift.unwrap_or(0), rounds: m.flag("po") }
            }
            _ => Action::Compare(match m.one_of(&["eq", "ne", "lt", "le", "gt", "ge"]) {
                Some("eq") => [false, true, false],
                Some("ne") => [true, false, true],
                Some("lt") => [true, false, false],
                Some("le") => [true, true, false],
                Some("gt") => [false, false, true],
                Some("ge") => [false, true, true],
                _ => return self.fail(format!("expected a comparison such as .lt on {}", i.opcode)),
            }),
        };
        let d_type = if name == "vset" { Type::U32 } else { self.required_type(m)? };
        let (a_type, b_type) = (self.required_type(m)?, self.required_type(m)?);
        if let Some(&wrong) = [d_type, a_type, b_type].iter().find(|ty| !matches!(ty, Type::U32 | Type::S32)) {
            return self.wrong_type(i.opcode, wrong);
        }
        let saturates = m.flag("sat");
        let second = match m.one_of(if count == 1 { &["add", "min", "max"] } else { &["add"] }) {
            Some("add") => Second::Add,
            Some("min") => Second::Least,
            Some("max") => Second::Most,
            _ => Second::Merge,
        };
        let [d, a, b] = match &i.operands[..] {
            [d, a, b] | [d, a, b, _] => [d, a, b],
            _ => return self.fail(format!("{} takes 3 or 4 operands, found {}", i.opcode, i.operands.len())),
        };
        let c = match i.operands.get(3) {
            Some(c) => self.source(c, Type::B32)?,
            None if count > 1 || name == "vmad" || second != Second::Merge => {
                return self.fail(format!("{} takes 4 operands here, found 3", i.opcode));
            }
            None => self.constant(0, 1)?,
        };
        let whole_word = (32, vec![0]);
        let (d_default, a_default, b_default) = match count {
            1 => (whole_word.clone(), whole_word.clone(), whole_word),
            2 => ((16, vec![0, 1]), (16, vec![0, 1]), (16, vec![2, 3])),
            _ => ((8, vec![0, 1, 2, 3]), (8, vec![0, 1, 2, 3]), (8, vec![4, 5, 6, 7])),
        };
        let (d, (d_bits, d_parts)) = self.selected(d, d_default, 1, count)?;
        let d = self.destination(&d, Type::B32)?;
        let (a, (a_bits, a_parts)) = self.selected(a, a_default, count, count)?;
        let (b, (b_bits, b_parts)) = self.selected(b, b_default, count, count)?;
        let (a, b) = (self.source(&a, Type::B32)?, self.source(&b, Type::B32)?);
        let (d_signed, a_signed, b_signed) = (d_type.is_signed(), a_type.is_signed(), b_type.is_signed());
        let is_multiply = matches!(action, Action::Multiply { .. });
        let one = move |a: u32, b: u32, c: u32| {
            // Parts beyond the first register are those of the second.
            let pick = |index: u32, bits: u32| {
                let per_word = 32 / bits;
                (if index < per_word { a } else { b }) >> (index % per_word * bits)
            };
            let c_value = widen(c, 32, d_signed);
            let mut word = c;
            let mut sum = c_value;
            for &part in &d_parts {
                // The scalar forms write part `part` of `d` with their one result.
                let lane = if count == 1 { 0 } else { part as usize };
                let x = widen(pick(a_parts[lane], a_bits), a_bits, a_signed);
                let y = match count {
                    1 => widen(b >> (b_parts[0] * b_bits), b_bits, b_signed),
                    _ => widen(pick(b_parts[lane], b_bits), b_bits, b_signed),
                };
                let mut result = action.apply(x, y, c_value);
                if saturates {
                    result = saturate(result, d_bits, d_signed);
                }
                if is_multiply {
                    word = result as u32;
                    continue;
                }
                // A secondary operation sees the result as a word of the destination's type.
                let as_word = widen(result as u32, 32, d_signed);
                match second {
                    Second::Merge => word = insert(word, result, part, d_bits),
                    Second::Add => sum = sum.wrapping_add(result),
                    Second::Least => sum = as_word.min(c_value),
                    Second::Most => sum = as_word.max(c_value),
                }
            }
            if second == Second::Merge { word } else { sum as u32 }
        };
        let alu = whole(self.level, move |planes, mask| {
            let [a, b, c] = [a, b, c].map(|slot| *u32::view(planes, slot));
            let result: [u32; LANES] = std::array::from_fn(|lane| one(a[lane], b[lane], c[lane]));
            store_lanes(planes, d, &result, mask);
        });
        self.emit_alu(alu);
        Ok(())
    }

    /// An operand without its selector, and the `least` to `most` parts that the selector or `default` names.
    fn selected(
        &self,
        operand: &Operand<'e>,
        default: (u32, Vec<u32>),
        least: usize,
        most: usize,
    ) -> Result<(Operand<'e>, (u32, Vec<u32>))> {
        let Operand::Part(register, selector) = *operand else { return Ok((operand.clone(), default)) };
        let is_packed = most > 1;
        match parts(selector) {
            Some((bits, parts))
                if (least..=most).contains(&parts.len())
                    && (!is_packed || bits == default.0)
                    // Only packed sources reach into the second register.
                    && (is_packed && least > 1 || parts.iter().all(|&part| part < 32 / bits)) =>
            {
                Ok((Operand::Register(register), (bits, parts)))
            }
            _ => self.fail(format!("unknown selector .{selector}")),
        }
    }
}
