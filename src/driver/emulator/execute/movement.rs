//! mov (with packing and unpacking of vectors), cvta, isspacep; mapa and getctarank, in a cluster of one block.

use crate::ast::{Instruction, Operand, Space, Type};
use crate::decode::modifiers::Modifiers;
use crate::decode::program::{AddressSpace, Op};
use crate::decode::{Decoder, LOCAL_WINDOW, PARAM_WINDOW, SHARED_WINDOW};
use crate::error::Result;
use crate::lanes::{LANES, Word, predicate, store_lanes, store_predicate, whole};

impl<'e> Decoder<'e> {
    pub(super) fn movement(&mut self, i: &Instruction<'e>, m: &mut Modifiers<'_>) -> Result<()> {
        match i.opcode {
            "mov" => self.move_value(i, m),
            "cvta" => self.convert_address(i, m),
            "mapa" => self.map_address(i, m),
            "getctarank" => self.block_of_address(i, m),
            _ => {
                let space = match self.space(m) {
                    Space::Const => None,
                    Space::Global => Some(AddressSpace::Global),
                    Space::Shared => Some(AddressSpace::Shared),
                    Space::Local => Some(AddressSpace::Local),
                    Space::Param => Some(AddressSpace::Param),
                    Space::Generic => return self.fail("expected a state space such as .global on isspacep"),
                };
                let [p, a] = self.operands(i)?;
                let is_wide = matches!(a, Operand::Register(index) if self.register_type(*index).bits() == 64);
                let d = self.predicate_destination(p)?;
                let address = self.source(a, if is_wide { Type::U64 } else { Type::U32 })?;
                let constants = self.environment.constants.into();
                self.emit(Op::AddressTest { d, address, is_wide, space, constants });
                Ok(())
            }
        }
    }

    /// mapa: the place of an address in the shared memory of another block of the cluster, which has no other.
    fn map_address(&mut self, i: &Instruction<'e>, m: &mut Modifiers<'_>) -> Result<()> {
        m.flag("shared::cluster");
        let ty = self.required_type(m)?;
        let [d, a, rank] = self.operands(i)?;
        let rank = self.source(rank, Type::U32)?;
        self.emit(Op::OwnBlock { rank });
        let (d, a) = (self.destination(d, ty)?, self.relaxed_source(a, ty)?);
        self.copy(d, a, ty.bits());
        Ok(())
    }

    fn block_of_address(&mut self, i: &Instruction<'e>, m: &mut Modifiers<'_>) -> Result<()> {
        m.flag("shared::cluster");
        let ty = self.required_type(m)?;
        let [d, a] = self.operands(i)?;
        self.relaxed_source(a, ty)?;
        let (d, zero) = (self.destination(d, Type::U32)?, self.constant(0, 1)?);
        self.copy(d, zero, 32);
        Ok(())
    }

    fn move_value(&mut self, i: &Instruction<'e>, m: &mut Modifiers<'_>) -> Result<()> {
        m.one_of(&["v2", "v4"]);
        let ty = self.required_type(m)?;
        let [d, a] = self.operands(i)?;
        match (d, a) {
            (Operand::Vector(to), Operand::Vector(from)) if to.len() == from.len() => {
                // Through fresh planes, so that a permutation of the same registers works.
                let planes = ty.bits().div_ceil(32);
                let mut kept = Vec::new();
                for operand in from {
                    let (source, middle) = (self.source(operand, ty)?, self.allocate(planes)?);
                    self.copy(middle, source, ty.bits());
                    kept.push(middle);
                }
                for (operand, middle) in to.iter().zip(kept) {
                    let target = self.destination(operand, ty)?;
                    self.copy(target, middle, ty.bits());
                }
                Ok(())
            }
            (Operand::Vector(parts), _) => self.unpack(parts, a, ty),
            (_, Operand::Vector(parts)) => self.pack(d, parts, ty),
            _ if ty == Type::Pred => {
                let (d, (a, negated)) = (self.predicate_destination(d)?, self.predicate(a)?);
                let alu = whole(self.level, move |planes, mask| {
                    store_predicate(planes, d, predicate(planes, a, negated), mask);
                });
                self.emit_alu(alu);
                Ok(())
            }
            _ => {
                // Special registers and addresses may be moved to narrower registers (`mov.u16 %rh, %tid.x`).
                let d = self.destination(d, ty)?;
                let a = match a {
                    Operand::Register(_) => self.source(a, ty)?,
                    _ => self.relaxed_source(a, ty)?,
                };
                self.copy(d, a, ty.bits());
                Ok(())
            }
        }
    }

    fn copy(&mut self, d: u32, a: u32, bits: u32) {
        match bits {
            64 => self.unary(d, a, |a: u64| a),
            128 => self.unary(d, a, |a: u128| a),
            16 => self.unary(d, a, |a: u16| a),
            _ => self.unary(d, a, |a: u32| a),
        }
    }

    /// The width of each part of a vector that makes up `ty`.
    fn part_type(&self, ty: Type, parts: usize) -> Result<Type> {
        Ok(match (ty.bits(), parts) {
            (16, 2) => Type::B8,
            (32, 4) => Type::B8,
            (32, 2) => Type::B16,
            (64, 4) => Type::B16,
            (64, 2) => Type::B32,
            (128, 4) => Type::B32,
            (128, 2) => Type::B64,
            (64, 8) => Type::B8,
            (bits, parts) => return self.fail(format!("cannot make {bits} bits of {parts} parts")),
        })
    }

    fn pack(&mut self, d: &Operand<'e>, parts: &[Operand<'e>], ty: Type) -> Result<()> {
        let part = self.part_type(ty, parts.len())?;
        let d = self.destination(d, ty)?;
        let mut sources = Vec::new();
        for operand in parts {
            sources.push(self.source(operand, part)?);
        }
        let part_bits = part.bits();
        match (ty.bits(), part_bits) {
            (32, 16) => self.binary(d, [sources[0], sources[1]], |low: u32, high: u32| low | high << 16),
            (64, 32) => {
                self.binary(d, [sources[0], sources[1]], |low: u32, high: u32| u64::from(low) | u64::from(high) << 32)
            }
            (bits, _) => {
                let alu = whole(self.level, move |planes, mask| {
                    let mut result = [0u128; LANES];
                    for (index, &source) in sources.iter().enumerate() {
                        for (lane, word) in result.iter_mut().enumerate() {
                            let value = if part_bits == 64 {
                                u64::view(planes, source)[lane]
                            } else {
                                u64::from(u32::view(planes, source)[lane])
                            };
                            *word |= u128::from(value) << (index as u32 * part_bits);
                        }
                    }
                    match bits {
                        128 => store_lanes(planes, d, &result, mask),
                        64 => store_lanes(planes, d, &result.map(|word| word as u64), mask),
                        _ => store_lanes(planes, d, &result.map(|word| word as u32), mask),
                    }
                });
                self.emit_alu(alu);
            }
        }
        Ok(())
    }

    fn unpack(&mut self, parts: &[Operand<'e>], a: &Operand<'e>, ty: Type) -> Result<()> {
        let part = self.part_type(ty, parts.len())?;
        let part_bits = part.bits();
        let a = self.source(a, ty)?;
        let mut targets = Vec::new();
        for operand in parts {
            targets.push(match operand {
                Operand::Sink => None,
                _ => Some(self.destination(operand, part)?),
            });
        }
        let bits = ty.bits();
        let alu = whole(self.level, move |planes, mask| {
            let source: [u128; LANES] = match bits {
                128 => *u128::view(planes, a),
                64 => u64::view(planes, a).map(u128::from),
                _ => u32::view(planes, a).map(u128::from),
            };
            for (index, target) in targets.iter().enumerate() {
                let Some(target) = *target else { continue };
                let shift = index as u32 * part_bits;
                match part_bits {
                    64 => store_lanes(planes, target, &source.map(|word| (word >> shift) as u64), mask),
                    32 => store_lanes(planes, target, &source.map(|word| (word >> shift) as u32), mask),
                    16 => store_lanes(planes, target, &source.map(|word| (word >> shift) as u16), mask),
                    _ => store_lanes(planes, target, &source.map(|word| (word >> shift) as u8), mask),
                }
            }
        });
        self.emit_alu(alu);
        Ok(())
    }

    /// cvta: windows of the generic address space are a base plus the address in the space.
    fn convert_address(&mut self, i: &Instruction<'e>, m: &mut Modifiers<'_>) -> Result<()> {
        let is_to = m.flag("to");
        let base = match self.space(m) {
            Space::Shared => SHARED_WINDOW,
            Space::Local => LOCAL_WINDOW,
            Space::Param if self.function.is_entry => PARAM_WINDOW,
            // Parameters of functions lie in local memory.
            Space::Param => LOCAL_WINDOW,
            Space::Global | Space::Const => 0,
            Space::Generic => return self.fail("expected a state space such as .global on cvta"),
        };
        let ty = self.required_type(m)?;
        if ty != Type::U64 {
            return self.wrong_type("cvta (addresses have 64 bits here)", ty);
        }
        let [d, a] = self.operands(i)?;
        let d = self.destination(d, ty)?;
        let a = match a {
            // `cvta.shared.u64 %rd, symbol + 4` has its address in brackets or plain.
            Operand::Address(crate::ast::Base::Variable(variable), offset) => {
                self.variable_address(*variable, *offset, 2)?
            }
            _ => self.source(a, ty)?,
        };
        match (base, is_to) {
            (0, _) => self.unary(d, a, |a: u64| a),
            (_, false) => self.unary(d, a, move |a: u64| a.wrapping_add(base)),
            (_, true) => self.unary(d, a, move |a: u64| a.wrapping_sub(base)),
        }
        Ok(())
    }
}
