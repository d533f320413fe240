//! Instructions on the lanes of a warp together: shfl, vote, match, redux, activemask, elect.

use crate::ast::{Instruction, Operand, Type};
use crate::decode::Decoder;
use crate::decode::modifiers::Modifiers;
use crate::decode::program::{Op, Rule, Shuffle};
use crate::error::Result;
use crate::lanes::{Alu, LANES, Word, predicate, store_lanes, store_predicate, whole};

/// The lane that `lane` reads from, and whether it lies in range.
#[inline(always)]
pub(crate) fn shuffle_source(mode: Shuffle, lane: u32, b: u32, c: u32) -> (u32, bool) {
    let (b, clamp, segment) = (b & 31, c & 31, c >> 8 & 31);
    let last = (lane & segment) | (clamp & !segment & 31);
    let first = lane & segment;
    let (source, in_range) = match mode {
        Shuffle::Up => (lane.wrapping_sub(b), lane as i32 - b as i32 >= last as i32),
        Shuffle::Down => (lane + b, lane + b <= last),
        Shuffle::Butterfly => (lane ^ b, (lane ^ b) <= last),
        Shuffle::Index => {
            let source = first | (b & !segment & 31);
            (source, source <= last)
        }
    };
    if in_range { (source & 31, true) } else { (lane, false) }
}

impl<'e> Decoder<'e> {
    /// Emits a closure that all lanes of the member mask run together; without a mask, the active lanes run it.
    fn collective(&mut self, members: Option<u32>, alu: Alu) {
        match members {
            Some(members) => self.emit(Op::Collective { members, alu, is_barrier: false }),
            None => self.emit_alu(alu),
        }
    }

    fn members(&mut self, operand: &Operand<'e>) -> Result<u32> {
        self.source(operand, Type::B32)
    }

    pub(super) fn warp(&mut self, i: &Instruction<'e>, m: &mut Modifiers<'_>) -> Result<()> {
        let is_sync = m.flag("sync");
        match i.opcode {
            "shfl" => self.shuffle(i, m, is_sync),
            "vote" => self.vote(i, m, is_sync),
            "match" => self.match_values(i, m),
            "redux" => self.reduce(i, m),
            "activemask" => {
                m.flag("b32");
                let [d] = self.operands(i)?;
                let d = self.destination(d, Type::B32)?;
                let alu = whole(self.level, move |planes, mask| store_lanes(planes, d, &[mask; LANES], mask));
                self.emit_alu(alu);
                Ok(())
            }
            _ => {
                let [d, members] = self.operands(i)?;
                let (d, p) = Self::pair(d);
                let Some(p) = p else { return self.fail("expected d|p on elect") };
                let (d, p) = (self.destination(d, Type::B32)?, self.predicate_destination(p)?);
                let members = self.members(members)?;
                let alu = whole(self.level, move |planes, mask| {
                    let leader = mask.trailing_zeros();
                    store_lanes(planes, d, &[leader; LANES], mask);
                    store_predicate(planes, p, 1u32.wrapping_shl(leader), mask);
                });
                self.collective(Some(members), alu);
                Ok(())
            }
        }
    }

    fn shuffle(&mut self, i: &Instruction<'e>, m: &mut Modifiers<'_>, is_sync: bool) -> Result<()> {
        let mode = match m.one_of(&["up", "down", "bfly", "idx"]) {
            Some("up") => Shuffle::Up,
            Some("down") => Shuffle::Down,
            Some("bfly") => Shuffle::Butterfly,
            Some(_) => Shuffle::Index,
            None => return self.fail("expected .up, .down, .bfly or .idx on shfl"),
        };
        if !m.flag("b32") {
            return self.fail("shfl moves .b32");
        }
        if i.operands.len() != 4 + usize::from(is_sync) {
            return self.fail(format!(
                "shfl takes {} operands here, found {}",
                4 + usize::from(is_sync),
                i.operands.len()
            ));
        }
        let (d, p) = Self::pair(&i.operands[0]);
        let d = self.destination(d, Type::B32)?;
        let p = p.map(|p| self.predicate_destination(p)).transpose()?;
        let a = self.source(&i.operands[1], Type::B32)?;
        let (b, c) = (self.source(&i.operands[2], Type::B32)?, self.source(&i.operands[3], Type::B32)?);
        let members = if is_sync { Some(self.members(&i.operands[4])?) } else { None };
        self.set_rule(Rule::Shuffle { mode, amount: b, clamp: c });
        let alu = whole(self.level, move |planes, mask| {
            let (values, b, c) = (u32::view(planes, a), u32::view(planes, b), u32::view(planes, c));
            let mut result = [0; LANES];
            let mut in_range = 0;
            for lane in 0..LANES {
                let (source, is_valid) = shuffle_source(mode, lane as u32, b[lane], c[lane]);
                result[lane] = values[source as usize];
                in_range |= u32::from(is_valid) << lane;
            }
            store_lanes(planes, d, &result, mask);
            if let Some(p) = p {
                store_predicate(planes, p, in_range, mask);
            }
        });
        self.collective(members, alu);
        Ok(())
    }

    fn vote(&mut self, i: &Instruction<'e>, m: &mut Modifiers<'_>, is_sync: bool) -> Result<()> {
        let Some(mode) = m.one_of(&["all", "any", "uni", "ballot"]) else {
            return self.fail("expected .all, .any, .uni or .ballot on vote");
        };
        let is_ballot = mode == "ballot";
        let ty = self.required_type(m)?;
        if (ty == Type::B32) != is_ballot || (ty != Type::B32 && ty != Type::Pred) {
            return self.wrong_type("vote", ty);
        }
        if i.operands.len() != 2 + usize::from(is_sync) {
            return self.fail(format!(
                "vote takes {} operands here, found {}",
                2 + usize::from(is_sync),
                i.operands.len()
            ));
        }
        let d =
            if is_ballot { self.destination(&i.operands[0], ty)? } else { self.predicate_destination(&i.operands[0])? };
        let (a, negated) = self.predicate(&i.operands[1])?;
        let members = if is_sync { Some(self.members(&i.operands[2])?) } else { None };
        let decide: fn(u32, u32) -> bool = match mode {
            "all" => |ballot, mask| ballot == mask,
            "any" => |ballot, _| ballot != 0,
            _ => |ballot, mask| ballot == 0 || ballot == mask,
        };
        let alu = whole(self.level, move |planes, mask| {
            let ballot = predicate(planes, a, negated) & mask;
            if is_ballot {
                store_lanes(planes, d, &[ballot; LANES], mask);
            } else {
                store_predicate(planes, d, if decide(ballot, mask) { u32::MAX } else { 0 }, mask);
            }
        });
        self.collective(members, alu);
        Ok(())
    }

    fn match_values(&mut self, i: &Instruction<'e>, m: &mut Modifiers<'_>) -> Result<()> {
        let Some(mode) = m.one_of(&["any", "all"]) else { return self.fail("expected .any or .all on match") };
        let is_any = mode == "any";
        let ty = self.required_type(m)?;
        if ty != Type::B32 && ty != Type::B64 {
            return self.wrong_type("match", ty);
        }
        let [d, a, members] = self.operands(i)?;
        let (d, p) = Self::pair(d);
        let d = self.destination(d, Type::B32)?;
        let p = p.map(|p| self.predicate_destination(p)).transpose()?;
        let (a, members) = (self.source(a, ty)?, self.members(members)?);
        let is_wide = ty == Type::B64;
        let alu = whole(self.level, move |planes, mask| {
            let values: [u64; LANES] =
                if is_wide { *u64::view(planes, a) } else { u32::view(planes, a).map(u64::from) };
            let mut result = [0u32; LANES];
            for lane in (0..LANES).filter(|lane| mask >> lane & 1 != 0) {
                result[lane] =
                    (0..LANES).fold(0, |same, other| same | u32::from(values[other] == values[lane]) << other) & mask;
            }
            if !is_any {
                let first = mask.trailing_zeros() as usize % LANES;
                let all = result[first] == mask;
                result = [if all { mask } else { 0 }; LANES];
                if let Some(p) = p {
                    store_predicate(planes, p, if all { u32::MAX } else { 0 }, mask);
                }
            }
            store_lanes(planes, d, &result, mask);
        });
        self.collective(Some(members), alu);
        Ok(())
    }

    fn reduce(&mut self, i: &Instruction<'e>, m: &mut Modifiers<'_>) -> Result<()> {
        let Some(op) = m.one_of(&["add", "min", "max", "and", "or", "xor"]) else {
            return self.fail("expected an operation such as .add on redux");
        };
        let ty = self.required_type(m)?;
        let f: fn(u32, u32) -> u32 = match (op, ty) {
            ("add", Type::U32 | Type::S32) => |a, b| a.wrapping_add(b),
            ("min", Type::U32) => |a, b| a.min(b),
            ("max", Type::U32) => |a, b| a.max(b),
            ("min", Type::S32) => |a, b| (a as i32).min(b as i32) as u32,
            ("max", Type::S32) => |a, b| (a as i32).max(b as i32) as u32,
            ("and", Type::B32) => |a, b| a & b,
            ("or", Type::B32) => |a, b| a | b,
            ("xor", Type::B32) => |a, b| a ^ b,
            _ => return self.wrong_type("redux", ty),
        };
        let [d, a, members] = self.operands(i)?;
        let d = self.destination(d, ty)?;
        let (a, members) = (self.source(a, ty)?, self.members(members)?);
        let alu = whole(self.level, move |planes, mask| {
            let values = u32::view(planes, a);
            let active = (0..LANES).filter(|lane| mask >> lane & 1 != 0).map(|lane| values[lane]);
            let result = active.reduce(f).unwrap_or(0);
            store_lanes(planes, d, &[result; LANES], mask);
        });
        self.collective(Some(members), alu);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shuffles_stay_in_their_segment() {
        // c of a full-width down shuffle is 0x1F; of a width-8 one 0x181F (segment mask 24 in bits 8 to 12).
        assert_eq!(shuffle_source(Shuffle::Down, 30, 1, 0x1F), (31, true));
        assert_eq!(shuffle_source(Shuffle::Down, 31, 1, 0x1F), (31, false));
        assert_eq!(shuffle_source(Shuffle::Down, 7, 1, 0x181F), (7, false));
        assert_eq!(shuffle_source(Shuffle::Down, 6, 1, 0x181F), (7, true));
        assert_eq!(shuffle_source(Shuffle::Up, 0, 1, 0), (0, false));
        assert_eq!(shuffle_source(Shuffle::Up, 9, 1, 0x1800), (8, true));
        assert_eq!(shuffle_source(Shuffle::Up, 8, 1, 0x1800), (8, false));
        assert_eq!(shuffle_source(Shuffle::Index, 13, 2, 0x181F), (10, true));
        assert_eq!(shuffle_source(Shuffle::Butterfly, 5, 16, 0x1F), (21, true));
    }
}
