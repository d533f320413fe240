//! Variable declarations: alignment, type, vector, array bounds, initialisers.

use super::{MAX_DEPTH, Parser};
use crate::ast::{InitialValue, InitialWord, Linkage, Space, Type, Variable};
use crate::error::Result;
use crate::lexer::TokenKind;

/// Larger than any device's memory: a declaration beyond it is a mistake, and stops before it can overflow.
const MAX_VARIABLE_BYTES: u64 = 1 << 40;

impl<'a> Parser<'a, '_> {
    /// The comma-separated variables after a state space.
    pub(super) fn variables(&mut self, space: Space, linkage: Linkage) -> Result<Vec<Variable<'a>>> {
        let (align, ty, vector) = self.declared_type()?;
        let mut variables = Vec::new();
        loop {
            let name = self.word("a variable name")?;
            if self.is("<") {
                return self.error("a plain variable name (ranges are for registers)");
            }
            variables.push(self.array_and_initialiser(name, space, linkage, align, ty, vector)?);
            if !self.accept(",") {
                return Ok(variables);
            }
        }
    }

    /// A single variable, as in a parameter list.
    pub(super) fn one_variable(&mut self, space: Space) -> Result<Variable<'a>> {
        let (align, ty, vector) = self.declared_type()?;
        let name = self.word("a parameter name")?;
        self.array_and_initialiser(name, space, Linkage::Internal, align, ty, vector)
    }

    pub(super) fn bounded_count(&mut self) -> Result<u32> {
        self.small_integer("a count")
    }

    /// `.align N`, type, `.v2`/`.v4`, `.ptr .global .align N`, `.attribute(...)`, in any order around the type.
    fn declared_type(&mut self) -> Result<(u64, Type, u64)> {
        let mut align = 0u64;
        let mut vector = 1u64;
        let mut ty: Option<Type> = None;
        let mut is_pointer = false;
        while let TokenKind::Dotted(word) = self.kind() {
            match word {
                "align" => {
                    self.advance();
                    let at = self.at;
                    let value = self.integer("an alignment")?;
                    if !value.is_power_of_two() || value > 1 << 20 {
                        return self.error_at(at, "an alignment that is a power of two up to 2^20");
                    }
                    // The alignment after `.ptr` is that of what it points to.
                    if !is_pointer {
                        align = value;
                    }
                }
                "v2" | "v4" | "v8" => {
                    self.advance();
                    vector = u64::from(word.as_bytes()[1] - b'0');
                }
                "ptr" => {
                    self.advance();
                    is_pointer = true;
                }
                "global" | "shared" | "const" | "local" if is_pointer => {
                    self.advance();
                }
                "attribute" => {
                    self.advance();
                    self.expect("(")?;
                    while !self.accept(")") {
                        if self.kind() == TokenKind::End {
                            return self.error("')'");
                        }
                        self.advance();
                    }
                }
                "unified" | "managed" | "noalias" => {
                    self.advance();
                }
                _ if ty.is_none() => ty = Some(self.scalar_type()?),
                _ => return self.error("a variable name"),
            }
        }
        let Some(ty) = ty else { return self.error("a type such as .b32") };
        let natural = u64::from(ty.bytes()) * vector;
        Ok((if align == 0 { natural } else { align }, ty, vector))
    }

    fn array_and_initialiser(
        &mut self,
        name: &'a str,
        space: Space,
        linkage: Linkage,
        align: u64,
        ty: Type,
        vector: u64,
    ) -> Result<Variable<'a>> {
        let line = self.line();
        let mut dims: Vec<u64> = Vec::new();
        let mut is_unsized = false;
        while self.accept("[") {
            if self.accept("]") {
                is_unsized |= dims.is_empty();
                dims.push(0);
                continue;
            }
            let at = self.at;
            let size = self.constant_integer()?;
            if size > MAX_VARIABLE_BYTES {
                return self.error_at(at, "an array of at most 2^40 bytes");
            }
            dims.push(size);
            self.expect("]")?;
            if dims.len() > MAX_DEPTH {
                return self.error("at most 64 array dimensions");
            }
        }
        let element = u64::from(ty.bytes()) * vector;
        if vector > 1 {
            dims.push(vector);
        }
        let mut init = Vec::new();
        if self.accept("=") {
            let scalar = ty.bytes();
            let mut strides = vec![u64::from(scalar); dims.len()];
            for axis in (0..dims.len().saturating_sub(1)).rev() {
                strides[axis] = strides[axis + 1].saturating_mul(dims[axis + 1].max(1)).min(MAX_VARIABLE_BYTES);
            }
            let end = self.initialiser(&mut init, &dims, &strides, 0, ty, 0)?;
            if is_unsized {
                dims[0] = end.div_ceil(strides.first().copied().unwrap_or(1).max(1));
                is_unsized = false;
            }
        }
        let mut bytes = if vector > 1 { u64::from(ty.bytes()) } else { element };
        for &size in &dims {
            bytes = bytes.saturating_mul(size);
        }
        if bytes > MAX_VARIABLE_BYTES {
            return self.error("a variable of at most 2^40 bytes");
        }
        let element_bytes = ty.bytes();
        Ok(Variable { name, space, linkage, bytes, element_bytes, align, init, is_unsized, line })
    }

    /// One value, or a braced list for the next dimension; returns the offset behind the last element written.
    fn initialiser(
        &mut self,
        init: &mut Vec<InitialValue<'a>>,
        dims: &[u64],
        strides: &[u64],
        offset: u64,
        ty: Type,
        depth: usize,
    ) -> Result<u64> {
        if depth > MAX_DEPTH {
            return self.error("at most 64 nested braces");
        }
        if self.accept("{") {
            let stride = strides.first().copied().unwrap_or(u64::from(ty.bytes()));
            let limit = dims.first().copied().unwrap_or(1);
            let mut index = 0u64;
            let mut end = offset;
            while !self.accept("}") {
                if index > 0 {
                    self.expect(",")?;
                    if self.accept("}") {
                        break;
                    }
                }
                if limit != 0 && index >= limit {
                    return self.error(format!("at most {limit} values"));
                }
                let inner_dims = dims.get(1..).unwrap_or(&[]);
                let inner_strides = strides.get(1..).unwrap_or(&[]);
                end = self.initialiser(init, inner_dims, inner_strides, offset + index * stride, ty, depth + 1)?;
                index += 1;
            }
            return Ok(end);
        }
        let bytes = ty.bytes();
        let value = self.initial_word(ty)?;
        init.push(InitialValue { offset, bytes, value });
        Ok(offset + u64::from(bytes))
    }

    fn initial_word(&mut self, ty: Type) -> Result<InitialWord<'a>> {
        // `0xFF00(name)` takes one byte of an address.
        if let (TokenKind::Integer(mask), TokenKind::Punctuation("(")) = (self.kind(), self.kind_ahead(1)) {
            self.advance();
            self.advance();
            let word = self.address_word()?;
            self.expect(")")?;
            let InitialWord::Address { name, addend, is_generic, .. } = word else { return self.error("a name") };
            return Ok(InitialWord::Address { name, addend, is_generic, shift: mask.trailing_zeros().min(63) });
        }
        if let TokenKind::Word(_) = self.kind() {
            return self.address_word();
        }
        let constant = self.constant()?;
        Ok(InitialWord::Bits(match ty {
            Type::F64 => constant.as_f64().to_bits(),
            Type::F32 => u64::from(constant.as_f32_bits()),
            Type::F16 => u64::from(half::f16::from_f64(constant.as_f64()).to_bits()),
            Type::Bf16 => u64::from(half::bf16::from_f64(constant.as_f64()).to_bits()),
            _ => constant.as_bits(),
        }))
    }

    /// `name`, `name + 4`, `generic(name) + 4`.
    fn address_word(&mut self) -> Result<InitialWord<'a>> {
        let mut name = self.word("a variable or function name")?;
        let mut is_generic = false;
        if name == "generic" && self.accept("(") {
            is_generic = true;
            name = self.word("a variable name")?;
            self.expect(")")?;
        }
        let mut addend = 0i64;
        loop {
            let sign = if self.accept("+") {
                1i64
            } else if self.accept("-") {
                -1
            } else {
                break;
            };
            addend = addend.wrapping_add(sign.wrapping_mul(self.integer("an offset")? as i64));
        }
        Ok(InitialWord::Address { name, addend, is_generic, shift: 0 })
    }
}
