//! Comparison and selection: setp, set, selp, slct.

use super::half_float::{bf16_to_f32, f16_to_f32};
use crate::ast::{Instruction, Type};
use crate::decode::Decoder;
use crate::decode::modifiers::Modifiers;
use crate::error::Result;
use crate::lanes::{Alu, LANE_BIT, LANES, Plane, Value, Word, compare, predicate, store_lanes, store_predicate, whole};

/// What `then` of a comparison gets: planes, truth per lane, active lanes.
type Then = Box<dyn Fn(&mut [Plane], u32, u32) + Send + Sync>;

const COMPARISONS: [&str; 18] = [
    "eq", "ne", "lt", "le", "gt", "ge", "lo", "ls", "hi", "hs", "equ", "neu", "ltu", "leu", "gtu", "geu", "num", "nan",
];

#[derive(Clone, Copy, PartialEq)]
enum Combine {
    Plain,
    And,
    Or,
    Xor,
}

impl Combine {
    fn apply(self, truth: u32, c: u32) -> u32 {
        match self {
            Self::Plain => truth,
            Self::And => truth & c,
            Self::Or => truth | c,
            Self::Xor => truth ^ c,
        }
    }
}

/// Floating-point values that compare: everything is compared as f32 or f64.
trait Comparable: Value + PartialOrd {
    fn unordered(self, other: Self) -> bool;
}
impl Comparable for f32 {
    #[inline(always)]
    fn unordered(self, other: Self) -> bool {
        self.is_nan() || other.is_nan()
    }
}
impl Comparable for f64 {
    #[inline(always)]
    fn unordered(self, other: Self) -> bool {
        self.is_nan() || other.is_nan()
    }
}

impl<'e> Decoder<'e> {
    pub(super) fn compare(&mut self, i: &Instruction<'e>, m: &mut Modifiers<'_>) -> Result<()> {
        match i.opcode {
            "setp" => self.set_predicate(i, m),
            "set" => self.set_register(i, m),
            "selp" => {
                let ty = self.required_type(m)?;
                let [d, a, b, p] = self.operands(i)?;
                let (d, s) = (self.destination(d, ty)?, [self.source(a, ty)?, self.source(b, ty)?]);
                let (p, negated) = self.predicate(p)?;
                let alu = match ty.bits() {
                    64 => self.select::<u64>(d, s, p, negated),
                    16 | 32 => self.select::<u32>(d, s, p, negated),
                    _ => return self.wrong_type("selp", ty),
                };
                self.emit_alu(alu);
                Ok(())
            }
            _ => {
                let is_flushed = m.flag("ftz");
                let (ty, by) = (self.required_type(m)?, self.required_type(m)?);
                let [d, a, b, c] = self.operands(i)?;
                let d = self.destination(d, ty)?;
                let s = [self.source(a, ty)?, self.source(b, ty)?, self.source(c, by)?];
                let _ = is_flushed; // Zeros of either sign are >= 0, and so is what flushes to them... except -subnormals.
                match (by, ty.bits()) {
                    (Type::S32, 64) => self.ternary(d, s, |a: u64, b: u64, c: i32| if c >= 0 { a } else { b }),
                    (Type::S32, _) => self.ternary(d, s, |a: u32, b: u32, c: i32| if c >= 0 { a } else { b }),
                    (Type::F32, 64) => {
                        self.ternary(
                            d,
                            s,
                            move |a: u64, b: u64, c: f32| {
                                if c >= 0.0 || (is_flushed && c > -f32::MIN_POSITIVE) { a } else { b }
                            },
                        )
                    }
                    (Type::F32, _) => {
                        self.ternary(
                            d,
                            s,
                            move |a: u32, b: u32, c: f32| {
                                if c >= 0.0 || (is_flushed && c > -f32::MIN_POSITIVE) { a } else { b }
                            },
                        )
                    }
                    _ => return self.wrong_type("slct", by),
                }
                Ok(())
            }
        }
    }

    fn select<W: Word + Value<Word = W>>(&self, d: u32, s: [u32; 2], p: u32, negated: bool) -> Alu {
        whole(self.level, move |planes, mask| {
            let chosen = predicate(planes, p, negated);
            let mut result = [W::default(); LANES];
            let (a, b) = (W::view(planes, s[0]), W::view(planes, s[1]));
            for lane in 0..LANES {
                result[lane] = if chosen & LANE_BIT[lane] != 0 { a[lane] } else { b[lane] };
            }
            store_lanes(planes, d, &result, mask);
        })
    }

    fn ordered_test<T: Value + PartialOrd>(&self, name: &str, s: [u32; 2], then: Then) -> Option<Alu> {
        let level = self.level;
        Some(match name {
            "eq" => compare(level, s, |a: T, b: T| a == b, then),
            "ne" => compare(level, s, |a: T, b: T| a != b, then),
            "lt" | "lo" => compare(level, s, |a: T, b: T| a < b, then),
            "le" | "ls" => compare(level, s, |a: T, b: T| a <= b, then),
            "gt" | "hi" => compare(level, s, |a: T, b: T| a > b, then),
            "ge" | "hs" => compare(level, s, |a: T, b: T| a >= b, then),
            _ => return None,
        })
    }

    fn float_test<T: Comparable>(&self, name: &str, s: [u32; 2], then: Then) -> Option<Alu> {
        let level = self.level;
        Some(match name {
            // Ordered: false with a NaN, `ne` included.
            "ne" => compare(level, s, |a: T, b: T| a != b && !a.unordered(b), then),
            "equ" => compare(level, s, |a: T, b: T| a == b || a.unordered(b), then),
            "neu" => compare(level, s, |a: T, b: T| a != b, then),
            "ltu" => compare(level, s, |a: T, b: T| a < b || a.unordered(b), then),
            "leu" => compare(level, s, |a: T, b: T| a <= b || a.unordered(b), then),
            "gtu" => compare(level, s, |a: T, b: T| a > b || a.unordered(b), then),
            "geu" => compare(level, s, |a: T, b: T| a >= b || a.unordered(b), then),
            "num" => compare(level, s, |a: T, b: T| !a.unordered(b), then),
            "nan" => compare(level, s, |a: T, b: T| a.unordered(b), then),
            _ => return self.ordered_test::<T>(name, s, then),
        })
    }

    /// The comparison `name` of two registers of type `ty`.
    fn test(&mut self, name: &str, ty: Type, s: [u32; 2], is_flushed: bool, then: Then) -> Result<Alu> {
        let s = match ty {
            Type::F32 if is_flushed => {
                let flushed = [self.allocate(1)?, self.allocate(1)?];
                for (&to, from) in flushed.iter().zip(s) {
                    self.unary(to, from, super::float::flush);
                }
                flushed
            }
            Type::F16 | Type::Bf16 => {
                let widened = [self.allocate(1)?, self.allocate(1)?];
                for (&to, from) in widened.iter().zip(s) {
                    match ty {
                        Type::F16 => self.unary(to, from, |bits: u16| f16_to_f32(bits)),
                        _ => self.unary(to, from, |bits: u16| bf16_to_f32(bits)),
                    }
                }
                widened
            }
            _ => s,
        };
        let alu = match ty {
            Type::U16 | Type::B16 => self.ordered_test::<u16>(name, s, then),
            Type::S16 => self.ordered_test::<i16>(name, s, then),
            Type::U32 | Type::B32 => self.ordered_test::<u32>(name, s, then),
            Type::S32 => self.ordered_test::<i32>(name, s, then),
            Type::U64 | Type::B64 => self.ordered_test::<u64>(name, s, then),
            Type::S64 => self.ordered_test::<i64>(name, s, then),
            Type::F32 | Type::F16 | Type::Bf16 => self.float_test::<f32>(name, s, then),
            Type::F64 => self.float_test::<f64>(name, s, then),
            _ => None,
        };
        match alu {
            Some(alu) => Ok(alu),
            None => self.fail(format!("unsupported comparison .{name} on .{}", format!("{ty:?}").to_lowercase())),
        }
    }

    fn comparison_head(&mut self, m: &mut Modifiers<'_>) -> Result<(String, Combine, bool)> {
        let Some(name) = m.one_of(&COMPARISONS) else { return self.fail("expected a comparison such as .lt") };
        let combine = match m.one_of(&["and", "or", "xor"]) {
            Some("and") => Combine::And,
            Some("or") => Combine::Or,
            Some(_) => Combine::Xor,
            None => Combine::Plain,
        };
        Ok((name.to_owned(), combine, m.flag("ftz")))
    }

    fn set_predicate(&mut self, i: &Instruction<'e>, m: &mut Modifiers<'_>) -> Result<()> {
        let (name, combine, is_flushed) = self.comparison_head(m)?;
        let ty = self.required_type(m)?;
        let count = if combine == Combine::Plain { 3 } else { 4 };
        if i.operands.len() != count {
            return self.fail(format!("setp takes {count} operands here, found {}", i.operands.len()));
        }
        let (p, q) = Self::pair(&i.operands[0]);
        let p = self.predicate_destination(p)?;
        let q = q.map(|q| self.predicate_destination(q)).transpose()?;
        let s = [self.source(&i.operands[1], ty)?, self.source(&i.operands[2], ty)?];
        let c = if count == 4 { Some(self.predicate(&i.operands[3])?) } else { None };
        if matches!(ty, Type::F16x2 | Type::Bf16x2) {
            return self.set_packed_predicate(&name, ty, s, combine, p, q, c, is_flushed);
        }
        let then: Then = match (c, q) {
            (None, None) => Box::new(move |planes, truth, mask| store_predicate(planes, p, truth, mask)),
            _ => Box::new(move |planes, truth, mask| {
                let c = c.map_or(0, |(c, negated)| predicate(planes, c, negated));
                store_predicate(planes, p, combine.apply(truth, c), mask);
                if let Some(q) = q {
                    store_predicate(planes, q, combine.apply(!truth, c), mask);
                }
            }),
        };
        let alu = self.test(&name, ty, s, is_flushed, then)?;
        self.emit_alu(alu);
        Ok(())
    }

    /// setp on pairs of halves: `p` from the lower halves, `q` from the upper ones.
    #[allow(clippy::too_many_arguments)]
    fn set_packed_predicate(
        &mut self,
        name: &str,
        ty: Type,
        s: [u32; 2],
        combine: Combine,
        p: u32,
        q: Option<u32>,
        c: Option<(u32, bool)>,
        is_flushed: bool,
    ) -> Result<()> {
        let element = if ty == Type::F16x2 { Type::F16 } else { Type::Bf16 };
        let upper = [self.allocate(1)?, self.allocate(1)?];
        for (&to, from) in upper.iter().zip(s) {
            self.unary(to, from, |word: u32| word >> 16);
        }
        // `p` may be `c`: read it before it is overwritten.
        let kept = self.allocate(1)?;
        if let Some((c, negated)) = c {
            let alu = whole(self.level, move |planes, mask| {
                let value = predicate(planes, c, negated);
                store_predicate(planes, kept, value, mask);
            });
            self.emit_alu(alu);
        }
        for (target, sources) in [(Some(p), s), (q, upper)] {
            let Some(target) = target else { continue };
            let then: Then = Box::new(move |planes, truth, mask| {
                let c = predicate(planes, kept, false);
                store_predicate(planes, target, combine.apply(truth, c), mask);
            });
            let alu = self.test(name, element, sources, is_flushed, then)?;
            self.emit_alu(alu);
        }
        Ok(())
    }

    fn set_register(&mut self, i: &Instruction<'e>, m: &mut Modifiers<'_>) -> Result<()> {
        let (name, combine, is_flushed) = self.comparison_head(m)?;
        let (d_type, ty) = (self.required_type(m)?, self.required_type(m)?);
        let count = if combine == Combine::Plain { 3 } else { 4 };
        if i.operands.len() != count {
            return self.fail(format!("set takes {count} operands here, found {}", i.operands.len()));
        }
        let c = if count == 4 { Some(self.predicate(&i.operands[3])?) } else { None };
        let s = [self.source(&i.operands[1], ty)?, self.source(&i.operands[2], ty)?];
        let d = self.destination(&i.operands[0], d_type)?;
        let is_packed = matches!(ty, Type::F16x2 | Type::Bf16x2);
        // True is 1.0 for floating-point destinations, all ones for integers.
        let yes: u32 = match d_type {
            Type::F32 => 0x3F80_0000,
            Type::F16 | Type::F16x2 => 0x3C00,
            Type::Bf16 | Type::Bf16x2 => 0x3F80,
            Type::U16 | Type::S16 => 0xFFFF,
            Type::U32 | Type::S32 if is_packed => 0xFFFF,
            Type::U32 | Type::S32 => u32::MAX,
            _ => return self.wrong_type("set", d_type),
        };
        let store = move |shift: u32, keep: u32| -> Then {
            Box::new(move |planes, truth, mask| {
                let c = c.map_or(0, |(c, negated)| predicate(planes, c, negated));
                let truth = combine.apply(truth, c);
                let old = u32::view(planes, d);
                let result: [u32; LANES] =
                    std::array::from_fn(|l| (old[l] & keep) | if truth & LANE_BIT[l] != 0 { yes << shift } else { 0 });
                store_lanes(planes, d, &result, mask);
            })
        };
        if is_packed {
            let element = if ty == Type::F16x2 { Type::F16 } else { Type::Bf16 };
            let upper = [self.allocate(1)?, self.allocate(1)?];
            let lower = [self.allocate(1)?, self.allocate(1)?];
            for ((&to, &low), from) in upper.iter().zip(&lower).zip(s) {
                self.unary(to, from, |word: u32| word >> 16);
                self.unary(low, from, |word: u32| word & 0xFFFF);
            }
            let alu = self.test(&name, element, lower, is_flushed, store(0, 0))?;
            self.emit_alu(alu);
            let alu = self.test(&name, element, upper, is_flushed, store(16, 0xFFFF))?;
            self.emit_alu(alu);
            return Ok(());
        }
        let alu = self.test(&name, ty, s, is_flushed, store(0, 0))?;
        self.emit_alu(alu);
        Ok(())
    }
}
