//! call, ret, exit, trap, brkpt. (Branches are decoded with the blocks.)

use crate::ast::{Instruction, Operand, Space, Type, VariableRef};
use crate::decode::Decoder;
use crate::decode::modifiers::Modifiers;
use crate::decode::program::{Call, CallTarget, CallValue, NONE, Op};
use crate::error::Result;

impl<'e> Decoder<'e> {
    pub(super) fn control(&mut self, i: &Instruction<'e>, m: &mut Modifiers<'_>) -> Result<()> {
        m.flag("uni");
        if i.opcode == "call" {
            return self.call(i);
        }
        if i.opcode == "pmevent" {
            m.flag("mask");
        }
        self.emit(match i.opcode {
            "ret" => Op::Return,
            "exit" => Op::Exit,
            "trap" => Op::Trap,
            "brkpt" => Op::Breakpoint,
            _ => Op::Nothing,
        });
        Ok(())
    }

    fn call(&mut self, i: &Instruction<'e>) -> Result<()> {
        let mut operands = i.operands.iter().peekable();
        let mut returns = Vec::new();
        if let Some(Operand::List(list)) = operands.peek() {
            operands.next();
            for operand in list {
                returns.push(self.call_value(operand, true)?);
            }
        }
        let Some(callee) = operands.next() else { return self.fail("expected a function to call") };
        let mut args = Vec::new();
        if let Some(Operand::List(list)) = operands.peek() {
            operands.next();
            for operand in list {
                args.push(self.call_value(operand, false)?);
            }
        }
        let target = match callee {
            Operand::Name(name) => match self.environment.functions.get(name) {
                Some(&index) => {
                    self.check_call(index, &args, &returns)?;
                    CallTarget::Function(index)
                }
                None => return self.fail(format!("call of unknown function '{name}'")),
            },
            Operand::Register(_) => CallTarget::Register(self.source(callee, Type::B64)?),
            _ => return self.fail("expected a function name or a register to call"),
        };
        self.emit(Op::Call(Box::new(Call { target, args, returns })));
        Ok(())
    }

    fn check_call(&self, index: u32, args: &[CallValue], returns: &[CallValue]) -> Result<()> {
        let callee = &self.environment.signatures[index as usize];
        if callee.is_entry {
            return self.fail(format!("{} is a kernel and cannot be called", callee.name));
        }
        // A variadic declaration (`.param .b8 rest[]`) may take more.
        if args.len() < callee.params.len() || returns.len() > callee.returns.len() {
            return self.fail(format!(
                "{} takes {} parameters and returns {}; the call gives {} and expects {}",
                callee.name,
                callee.params.len(),
                callee.returns.len(),
                args.len(),
                returns.len()
            ));
        }
        if !callee.is_defined && callee.host_function.is_none() {
            let what = match callee.name.as_str() {
                name if name.starts_with("__cudaCDP") || name.starts_with("cudaLaunchDevice") => {
                    " (dynamic parallelism: the emulator has no kernels that launch kernels)"
                }
                _ => "",
            };
            return self.fail(format!("call of '{}', which is declared but not defined{what}", callee.name));
        }
        Ok(())
    }

    fn call_value(&mut self, operand: &Operand<'e>, is_write: bool) -> Result<CallValue> {
        match operand {
            Operand::Variable(reference @ VariableRef::Local(index), 0) => {
                let variable = &self.body.variables[*index as usize];
                if variable.space != Space::Param {
                    return self.fail("expected a .param variable or a register in a call");
                }
                let offset = self.local_offset(*reference)?;
                Ok(CallValue::Local { offset, bytes: variable.bytes as u32 })
            }
            Operand::Register(index) => {
                let planes = self.register_type(*index).bits().div_ceil(32) as u8;
                Ok(CallValue::Plane { slot: self.slot(*index), planes })
            }
            Operand::Sink if is_write => Ok(CallValue::Plane { slot: NONE, planes: 1 }),
            Operand::Integer(_) | Operand::Float(_) | Operand::FloatBits(_) if !is_write => {
                Ok(CallValue::Plane { slot: self.relaxed_source(operand, Type::B32)?, planes: 1 })
            }
            _ => self.fail("expected a .param variable or a register in a call"),
        }
    }

    /// Offset of a `.param` variable in the frame's local memory.
    fn local_offset(&self, variable: VariableRef) -> Result<u32> {
        let VariableRef::Local(index) = variable else { return self.fail("expected a variable of this function") };
        if self.function.is_entry && self.function.params.iter().any(|p| p.register.is_none() && p.variable == index) {
            return self.fail("a kernel's own parameter cannot be passed on; load it first");
        }
        match u32::try_from(self.variable_offsets[index as usize]) {
            Ok(offset) => Ok(offset),
            Err(_) => self.fail("too much .param memory"),
        }
    }
}
