//! alloca, stacksave, stackrestore. `machine` moves the stack; its pointer is a register like others.

use crate::ast::{Instruction, Operand, Type};
use crate::decode::Decoder;
use crate::decode::modifiers::Modifiers;
use crate::decode::program::{Op, StackKind, StackOp};
use crate::error::Result;

impl<'e> Decoder<'e> {
    pub(super) fn stack(&mut self, i: &Instruction<'e>, m: &mut Modifiers<'_>) -> Result<()> {
        let ty = self.required_type(m)?;
        if !matches!(ty, Type::U32 | Type::U64) {
            return self.wrong_type(i.opcode, ty);
        }
        let is_wide = ty == Type::U64;
        let pointer = self.stack_pointer()?;
        let kind = match (i.opcode, i.operands.as_slice()) {
            ("stacksave", [d]) => {
                let d = self.destination(d, ty)?;
                if is_wide {
                    self.unary(d, pointer, |pointer: u32| u64::from(pointer));
                } else {
                    self.unary(d, pointer, |pointer: u32| pointer);
                }
                return Ok(());
            }
            ("stackrestore", [source]) => StackKind::Restore { source: self.source(source, ty)? },
            ("alloca", [d, size, rest @ ..]) if rest.len() < 2 => {
                let align = match rest.first() {
                    None => 1,
                    Some(&Operand::Integer(align)) if align.is_power_of_two() && align <= 1 << 23 => align,
                    Some(_) => return self.fail("the alignment of alloca is a power of 2 up to 8388608"),
                };
                StackKind::Allocate { d: self.destination(d, ty)?, size: self.source(size, ty)?, align }
            }
            _ => return self.fail(format!("{} has too few or too many operands", i.opcode)),
        };
        self.emit(Op::Stack(StackOp { pointer, kind, is_wide }));
        Ok(())
    }
}
