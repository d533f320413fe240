//! Constant expressions: C's operators on 64-bit integers, and signs on floating-point literals.

use super::{MAX_DEPTH, Parser};
use crate::error::Result;
use crate::lexer::TokenKind;

#[derive(Debug, Clone, Copy)]
pub(super) enum Constant {
    /// `is_signed` decides division, remainder, right shift and comparison, as in C.
    Integer {
        bits: u64,
        is_signed: bool,
    },
    Float(f64),
    FloatBits(u32),
}

impl Constant {
    pub(super) fn as_bits(self) -> u64 {
        match self {
            Self::Integer { bits, .. } => bits,
            Self::Float(value) => value.to_bits(),
            Self::FloatBits(bits) => u64::from(bits),
        }
    }

    pub(super) fn as_f64(self) -> f64 {
        match self {
            Self::Integer { bits, is_signed: true } => bits as i64 as f64,
            Self::Integer { bits, .. } => bits as f64,
            Self::Float(value) => value,
            Self::FloatBits(bits) => f64::from(f32::from_bits(bits)),
        }
    }

    pub(super) fn as_f32_bits(self) -> u32 {
        match self {
            Self::FloatBits(bits) => bits,
            other => (other.as_f64() as f32).to_bits(),
        }
    }
}

fn precedence(operator: &str) -> Option<u8> {
    Some(match operator {
        "||" => 1,
        "&&" => 2,
        "|" => 3,
        "^" => 4,
        "&" => 5,
        "==" | "!=" => 6,
        "<" | ">" | "<=" | ">=" => 7,
        "<<" | ">>" => 8,
        "+" | "-" => 9,
        "*" | "/" | "%" => 10,
        _ => return None,
    })
}

fn apply(operator: &str, (left, left_signed): (u64, bool), (right, right_signed): (u64, bool)) -> Option<(u64, bool)> {
    let is_signed = left_signed && right_signed;
    let (signed_left, signed_right) = (left as i64, right as i64);
    let truth = |value: bool| (u64::from(value), true);
    Some(match operator {
        "||" => truth(left != 0 || right != 0),
        "&&" => truth(left != 0 && right != 0),
        "|" => (left | right, is_signed),
        "^" => (left ^ right, is_signed),
        "&" => (left & right, is_signed),
        "==" => truth(left == right),
        "!=" => truth(left != right),
        "<" => truth(if is_signed { signed_left < signed_right } else { left < right }),
        ">" => truth(if is_signed { signed_left > signed_right } else { left > right }),
        "<=" => truth(if is_signed { signed_left <= signed_right } else { left <= right }),
        ">=" => truth(if is_signed { signed_left >= signed_right } else { left >= right }),
        "<<" => (if right < 64 { left << right } else { 0 }, left_signed),
        ">>" if left_signed => ((signed_left >> right.min(63)) as u64, true),
        ">>" => (if right < 64 { left >> right } else { 0 }, false),
        "+" => (left.wrapping_add(right), is_signed),
        "-" => (left.wrapping_sub(right), is_signed),
        "*" => (left.wrapping_mul(right), is_signed),
        "/" if is_signed => (signed_left.checked_div(signed_right)? as u64, true),
        "/" => (left.checked_div(right)?, false),
        "%" if is_signed => (signed_left.checked_rem(signed_right)? as u64, true),
        _ => (left.checked_rem(right)?, false),
    })
}

impl Parser<'_, '_> {
    /// A constant expression that must be an integer.
    pub(super) fn constant_integer(&mut self) -> Result<u64> {
        let at = self.at;
        match self.constant()? {
            Constant::Integer { bits, .. } => Ok(bits),
            _ => self.error_at(at, "an integer"),
        }
    }

    pub(super) fn constant(&mut self) -> Result<Constant> {
        let condition = self.binary(0, 0)?;
        if !self.accept("?") {
            return Ok(condition);
        }
        let yes = self.binary(0, 0)?;
        self.expect(":")?;
        let no = self.binary(0, 0)?;
        Ok(if condition.as_bits() != 0 { yes } else { no })
    }

    fn binary(&mut self, least: u8, depth: usize) -> Result<Constant> {
        let mut left = self.unary(depth)?;
        loop {
            let at = self.at;
            let TokenKind::Punctuation(operator) = self.kind() else { return Ok(left) };
            let Some(level) = precedence(operator).filter(|&level| level > least) else { return Ok(left) };
            self.advance();
            let right = self.binary(level, depth + 1)?;
            let (Constant::Integer { bits: a, is_signed: sa }, Constant::Integer { bits: b, is_signed: sb }) =
                (left, right)
            else {
                return self.error_at(at, "no operator (floating-point constants take only a sign)");
            };
            left = match apply(operator, (a, sa), (b, sb)) {
                Some((bits, is_signed)) => Constant::Integer { bits, is_signed },
                None => return self.error_at(at, "a division that is defined"),
            };
        }
    }

    fn unary(&mut self, depth: usize) -> Result<Constant> {
        if depth > MAX_DEPTH {
            return self.error("at most 64 nested operators");
        }
        let at = self.at;
        match self.advance() {
            TokenKind::Integer(bits) => Ok(Constant::Integer { bits, is_signed: bits <= i64::MAX as u64 }),
            TokenKind::Float(value) => Ok(Constant::Float(value)),
            TokenKind::FloatBits(bits) => Ok(Constant::FloatBits(bits)),
            TokenKind::Word("WARP_SZ") => Ok(Constant::Integer { bits: 32, is_signed: true }),
            TokenKind::Punctuation("(") => {
                let cast = match self.kind() {
                    TokenKind::Dotted("s64") => Some(true),
                    TokenKind::Dotted("u64") => Some(false),
                    _ => None,
                };
                if let Some(is_signed) = cast {
                    self.advance();
                    self.expect(")")?;
                    let value = self.unary(depth + 1)?;
                    return Ok(Constant::Integer { bits: value.as_bits(), is_signed });
                }
                let inside = self.binary(0, depth + 1)?;
                self.expect(")")?;
                Ok(inside)
            }
            TokenKind::Punctuation("+") => self.unary(depth + 1),
            TokenKind::Punctuation("-") => Ok(match self.unary(depth + 1)? {
                Constant::Integer { bits, .. } => Constant::Integer { bits: bits.wrapping_neg(), is_signed: true },
                Constant::Float(value) => Constant::Float(-value),
                Constant::FloatBits(bits) => Constant::FloatBits(bits ^ 0x8000_0000),
            }),
            TokenKind::Punctuation(operator @ ("!" | "~")) => match self.unary(depth + 1)? {
                Constant::Integer { bits, is_signed } => Ok(if operator == "!" {
                    Constant::Integer { bits: u64::from(bits == 0), is_signed: true }
                } else {
                    Constant::Integer { bits: !bits, is_signed }
                }),
                _ => self.error_at(at, "an integer after this operator"),
            },
            _ => self.error_at(at, "a constant"),
        }
    }
}
