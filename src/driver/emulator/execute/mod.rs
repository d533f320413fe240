//! What each instruction means, one file per family.
//!
//! A family takes its modifiers and operands and emits an operation: a closure for those that only touch registers, data
//! for those that the machine must carry out (memory, barriers, control).

mod carry;
mod compare;
mod control;
mod convert;
mod eight_bit_float;
mod float;
mod half_float;
mod integer;
mod logic;
mod matrix;
mod memory;
mod movement;
mod refused;
mod stack;
mod synchronize;
mod video;
pub(super) mod warp;

use super::ast::{Instruction, Type};
use super::decode::Decoder;
use super::decode::modifiers::Modifiers;
use super::error::Result;

impl<'e> Decoder<'e> {
    /// Decodes one instruction that is not a branch.
    pub(super) fn instruction(&mut self, instruction: &Instruction<'e>) -> Result<()> {
        let mut modifiers = Modifiers::new(&instruction.modifiers);
        let m = &mut modifiers;
        if let Some(what) = refused::beyond(instruction.opcode, &instruction.modifiers) {
            return self.fail(refused::refusal(instruction, what));
        }
        let is_float = m.peek_type().is_some_and(Type::is_float);
        match instruction.opcode {
            "add" | "sub" | "mul" | "mad" | "fma" | "div" | "abs" | "neg" | "min" | "max" if is_float => {
                match m.peek_type() {
                    Some(Type::F32 | Type::F64) if !(m.has("f16") || m.has("bf16")) => self.float(instruction, m)?,
                    _ => self.half_float(instruction, m)?,
                }
            }
            "add" | "sub" | "mad" if m.has("cc") => self.carry(instruction, m)?,
            "addc" | "subc" | "madc" => self.carry(instruction, m)?,
            "add" | "sub" | "mul" | "mad" | "div" | "rem" | "abs" | "neg" | "min" | "max" | "mul24" | "mad24"
            | "sad" | "popc" | "clz" | "bfind" | "brev" | "bfe" | "bfi" | "szext" | "bmsk" | "fns" | "dp4a"
            | "dp2a" => {
                self.integer(instruction, m)?;
            }
            "and" | "or" | "xor" | "not" | "cnot" | "shl" | "shr" | "shf" | "lop3" | "prmt" => {
                self.logic(instruction, m)?
            }
            "rcp" | "sqrt" | "rsqrt" | "sin" | "cos" | "lg2" | "ex2" | "tanh" | "copysign" | "testp" => {
                match m.peek_type() {
                    Some(Type::F32 | Type::F64) => self.float(instruction, m)?,
                    _ => self.half_float(instruction, m)?,
                }
            }
            "set" | "setp" | "selp" | "slct" => self.compare(instruction, m)?,
            "cvt" => self.convert(instruction, m)?,
            "mov" | "cvta" | "isspacep" | "mapa" | "getctarank" => self.movement(instruction, m)?,
            "ld" | "ldu" | "st" | "atom" | "red" | "prefetch" | "prefetchu" | "createpolicy" | "applypriority"
            | "discard" | "cp" | "ldmatrix" | "stmatrix" => self.memory(instruction, m)?,
            "shfl" | "vote" | "match" | "redux" | "activemask" | "elect" => self.warp(instruction, m)?,
            "bar" | "barrier" | "membar" | "fence" | "nanosleep" | "mbarrier" | "griddepcontrol" | "setmaxnreg" => {
                self.synchronize(instruction, m)?;
            }
            "alloca" | "stacksave" | "stackrestore" => self.stack(instruction, m)?,
            "call" | "ret" | "exit" | "trap" | "brkpt" | "pmevent" => self.control(instruction, m)?,
            "mma" | "wmma" | "movmatrix" => self.matrix(instruction, m)?,
            "vadd" | "vsub" | "vabsdiff" | "vmin" | "vmax" | "vset" | "vshl" | "vshr" | "vmad" | "vadd2" | "vsub2"
            | "vavrg2" | "vabsdiff2" | "vmin2" | "vmax2" | "vset2" | "vadd4" | "vsub4" | "vavrg4" | "vabsdiff4"
            | "vmin4" | "vmax4" | "vset4" => self.video(instruction, m)?,
            other => {
                return self.fail(format!("unsupported instruction '{}'", other.chars().take(40).collect::<String>()));
            }
        }
        self.finish(instruction, m)
    }
}

/// Arithmetic on single halves, for atomics.
pub(super) mod half {
    use super::float::{least, most};
    use super::half_float::{bf16_to_f32, f16_to_f32, f32_to_bf16, f32_to_f16};

    fn read(bits: u16, is_bf16: bool) -> f32 {
        if is_bf16 { bf16_to_f32(bits) } else { f16_to_f32(bits) }
    }

    fn write(value: f32, is_bf16: bool) -> u16 {
        if is_bf16 { f32_to_bf16(value) } else { f32_to_f16(value) }
    }

    pub fn add(a: u16, b: u16, is_bf16: bool) -> u16 {
        write(read(a, is_bf16) + read(b, is_bf16), is_bf16)
    }

    pub fn minimum(a: u16, b: u16, is_bf16: bool) -> u16 {
        write(least(read(a, is_bf16), read(b, is_bf16)), is_bf16)
    }

    pub fn maximum(a: u16, b: u16, is_bf16: bool) -> u16 {
        write(most(read(a, is_bf16), read(b, is_bf16)), is_bf16)
    }
}
