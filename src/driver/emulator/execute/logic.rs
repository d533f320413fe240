//! Logic, shifts and byte permutation.

use crate::ast::{Instruction, Operand, Type};
use crate::decode::Decoder;
use crate::decode::modifiers::Modifiers;
use crate::error::Result;
use crate::lanes::{predicate, store_predicate, whole};

/// `prmt` without a mode: each selector nibble picks a byte of `b:a`, or with its high bit that byte's sign.
#[inline(always)]
fn permute(a: u32, b: u32, selector: u32) -> u32 {
    let bytes = (u64::from(b) << 32) | u64::from(a);
    (0..4).fold(0, |result, index| {
        let nibble = selector >> (4 * index) & 0xF;
        let byte = (bytes >> (8 * (nibble & 7))) as u8;
        let byte = if nibble & 8 != 0 { ((byte as i8) >> 7) as u8 } else { byte };
        result | u32::from(byte) << (8 * index)
    })
}

/// The selector that a mode of `prmt` stands for.
#[inline(always)]
fn mode_selector(mode: &str, c: u32) -> u32 {
    let c = c & 3;
    match mode {
        "f4e" => [0x3210, 0x4321, 0x5432, 0x6543][c as usize],
        "b4e" => [0x5670, 0x6701, 0x7012, 0x0123][c as usize],
        "rc8" => [0x0000, 0x1111, 0x2222, 0x3333][c as usize],
        "ecl" => [0x3210, 0x3211, 0x3222, 0x3333][c as usize],
        "ecr" => [0x0000, 0x1110, 0x2210, 0x3210][c as usize],
        _ => [0x1010, 0x3232, 0x1010, 0x3232][c as usize],
    }
}

impl<'e> Decoder<'e> {
    pub(super) fn logic(&mut self, i: &Instruction<'e>, m: &mut Modifiers<'_>) -> Result<()> {
        match i.opcode {
            "lop3" => self.lop3(i, m),
            "prmt" => {
                let ty = self.required_type(m)?;
                let mode = m.one_of(&["f4e", "b4e", "rc8", "ecl", "ecr", "rc16"]).map(str::to_owned);
                let [d, a, b, c] = self.operands(i)?;
                let d = self.destination(d, ty)?;
                let s = [self.source(a, Type::B32)?, self.source(b, Type::B32)?, self.source(c, Type::B32)?];
                match mode {
                    None => self.ternary(d, s, permute),
                    Some(mode) => {
                        let table = [0, 1, 2, 3].map(|c| mode_selector(&mode, c));
                        self.ternary(d, s, move |a: u32, b: u32, c: u32| permute(a, b, table[(c & 3) as usize]));
                    }
                }
                Ok(())
            }
            "shf" => {
                let Some(direction) = m.one_of(&["l", "r"]) else { return self.fail("expected .l or .r on shf") };
                let Some(mode) = m.one_of(&["clamp", "wrap"]) else {
                    return self.fail("expected .clamp or .wrap on shf");
                };
                let ty = self.required_type(m)?;
                let [d, a, b, c] = self.operands(i)?;
                let d = self.destination(d, ty)?;
                let s = [self.source(a, Type::B32)?, self.source(b, Type::B32)?, self.source(c, Type::U32)?];
                let (is_left, clamps) = (direction == "l", mode == "clamp");
                self.ternary(d, s, move |low: u32, high: u32, c: u32| {
                    let amount = if clamps { c.min(32) } else { c & 31 };
                    let both = (u64::from(high) << 32) | u64::from(low);
                    if is_left { ((both << amount) >> 32) as u32 } else { (both >> amount) as u32 }
                });
                Ok(())
            }
            "shl" | "shr" => self.shift(i, m),
            "not" | "cnot" => {
                let ty = self.required_type(m)?;
                let [d, a] = self.operands(i)?;
                if ty == Type::Pred {
                    let (d, (a, negated)) = (self.predicate_destination(d)?, self.predicate(a)?);
                    let alu = whole(self.level, move |planes, mask| {
                        store_predicate(planes, d, !predicate(planes, a, negated), mask);
                    });
                    self.emit_alu(alu);
                    return Ok(());
                }
                let (d, a) = (self.destination(d, ty)?, self.source(a, ty)?);
                match (i.opcode, ty.bits()) {
                    ("not", 16) => self.unary(d, a, |a: u16| !a),
                    ("not", 32) => self.unary(d, a, |a: u32| !a),
                    ("not", 64) => self.unary(d, a, |a: u64| !a),
                    (_, 16) => self.unary(d, a, |a: u16| u16::from(a == 0)),
                    (_, 32) => self.unary(d, a, |a: u32| u32::from(a == 0)),
                    (_, 64) => self.unary(d, a, |a: u64| u64::from(a == 0)),
                    _ => return self.wrong_type(i.opcode, ty),
                }
                Ok(())
            }
            _ => self.bitwise(i, m),
        }
    }

    fn bitwise(&mut self, i: &Instruction<'e>, m: &mut Modifiers<'_>) -> Result<()> {
        let ty = self.required_type(m)?;
        let [d, a, b] = self.operands(i)?;
        if ty == Type::Pred {
            let d = self.predicate_destination(d)?;
            let ((a, not_a), (b, not_b)) = (self.predicate(a)?, self.predicate(b)?);
            let f: fn(u32, u32) -> u32 = match i.opcode {
                "and" => |a, b| a & b,
                "or" => |a, b| a | b,
                _ => |a, b| a ^ b,
            };
            let alu = whole(self.level, move |planes, mask| {
                let value = f(predicate(planes, a, not_a), predicate(planes, b, not_b));
                store_predicate(planes, d, value, mask);
            });
            self.emit_alu(alu);
            return Ok(());
        }
        let (d, s) = (self.destination(d, ty)?, [self.source(a, ty)?, self.source(b, ty)?]);
        // 8- and 16-bit registers are zero-extended, so 32-bit logic serves them.
        match (i.opcode, ty.bits()) {
            ("and", 64) => self.binary(d, s, |a: u64, b: u64| a & b),
            ("or", 64) => self.binary(d, s, |a: u64, b: u64| a | b),
            ("xor", 64) => self.binary(d, s, |a: u64, b: u64| a ^ b),
            (_, 128) => return self.wrong_type(i.opcode, ty),
            ("and", _) => self.binary(d, s, |a: u32, b: u32| a & b),
            ("or", _) => self.binary(d, s, |a: u32, b: u32| a | b),
            _ => self.binary(d, s, |a: u32, b: u32| a ^ b),
        }
        Ok(())
    }

    fn shift(&mut self, i: &Instruction<'e>, m: &mut Modifiers<'_>) -> Result<()> {
        let ty = self.required_type(m)?;
        let [d, a, b] = self.operands(i)?;
        let (d, s) = (self.destination(d, ty)?, [self.source(a, ty)?, self.source(b, Type::U32)?]);
        let is_left = i.opcode == "shl";
        // Amounts beyond the width clamp to it.
        match (is_left, ty.is_signed(), ty.bits()) {
            (true, _, 16) => self.binary(d, s, |a: u16, b: u32| if b < 16 { a << b } else { 0 }),
            (true, _, 32) => self.binary(d, s, |a: u32, b: u32| if b < 32 { a << (b & 31) } else { 0 }),
            (true, _, 64) => self.binary(d, s, |a: u64, b: u32| if b < 64 { a << (b & 63) } else { 0 }),
            (false, true, 16) => self.binary(d, s, |a: i16, b: u32| a >> b.min(15)),
            (false, true, 32) => self.binary(d, s, |a: i32, b: u32| a >> b.min(31)),
            (false, true, 64) => self.binary(d, s, |a: i64, b: u32| a >> b.min(63)),
            (false, false, 16) => self.binary(d, s, |a: u16, b: u32| if b < 16 { a >> b } else { 0 }),
            (false, false, 32) => self.binary(d, s, |a: u32, b: u32| if b < 32 { a >> (b & 31) } else { 0 }),
            (false, false, 64) => self.binary(d, s, |a: u64, b: u32| if b < 64 { a >> (b & 63) } else { 0 }),
            _ => return self.wrong_type(i.opcode, ty),
        }
        Ok(())
    }

    fn lop3(&mut self, i: &Instruction<'e>, m: &mut Modifiers<'_>) -> Result<()> {
        let combine = m.one_of(&["and", "or"]).map(|name| name == "and");
        let ty = self.required_type(m)?;
        if ty != Type::B32 {
            return self.wrong_type("lop3", ty);
        }
        let Some(Operand::Integer(table)) = i.operands.get(4) else {
            return self.fail("expected a constant look-up table as lop3's fifth operand");
        };
        let table = *table as u32;
        let (d, p) = Self::pair(&i.operands[0]);
        let d = self.destination(d, ty)?;
        let s = [self.source(&i.operands[1], ty)?, self.source(&i.operands[2], ty)?, self.source(&i.operands[3], ty)?];
        let f = move |a: u32, b: u32, c: u32| {
            let mut result = 0;
            for row in 0..8u32 {
                if table >> row & 1 != 0 {
                    let a = if row & 4 != 0 { a } else { !a };
                    let b = if row & 2 != 0 { b } else { !b };
                    let c = if row & 1 != 0 { c } else { !c };
                    result |= a & b & c;
                }
            }
            result
        };
        // The tables that compilers make most: one or two operations instead of a sum over rows.
        match table {
            0x80 => self.ternary(d, s, |a: u32, b: u32, c: u32| a & b & c),
            0xFE => self.ternary(d, s, |a: u32, b: u32, c: u32| a | b | c),
            0x96 => self.ternary(d, s, |a: u32, b: u32, c: u32| a ^ b ^ c),
            0xEA => self.ternary(d, s, |a: u32, b: u32, c: u32| (a & b) | c),
            0xF8 => self.ternary(d, s, |a: u32, b: u32, c: u32| a | (b & c)),
            0xE0 => self.ternary(d, s, |a: u32, b: u32, c: u32| a & (b | c)),
            0x6A => self.ternary(d, s, |a: u32, b: u32, c: u32| (a & b) ^ c),
            0x78 => self.ternary(d, s, |a: u32, b: u32, c: u32| a ^ (b & c)),
            0xCA => self.ternary(d, s, |a: u32, b: u32, c: u32| (a & b) | (!a & c)),
            _ => self.ternary(d, s, f),
        }
        if let (Some(p), Some(is_and)) = (p, combine) {
            let Some(q) = i.operands.get(5) else { return self.fail("lop3 with a predicate takes six operands") };
            let (p, (q, negated)) = (self.predicate_destination(p)?, self.predicate(q)?);
            let level = self.level;
            let alu = crate::lanes::compare(
                level,
                [d, d],
                |a: u32, _: u32| a != 0,
                move |planes, truth, mask| {
                    let q = predicate(planes, q, negated);
                    store_predicate(planes, p, if is_and { truth & q } else { truth | q }, mask);
                },
            );
            self.emit_alu(alu);
        } else if i.operands.len() != 5 {
            return self.fail("lop3 takes five operands");
        }
        Ok(())
    }
}
