//! Which registers an instruction reads and writes, from its text: what the sanitizer needs to follow values.

use super::Decoder;
use super::program::{Flow, NONE, RegisterUse, Role, Rule};
use crate::ast::{Base, Instruction, Operand};

impl<'e> Decoder<'e> {
    /// Notes the registers of `i`, and how its results come from them.
    pub(super) fn flow(&mut self, i: &Instruction<'e>) -> Flow {
        let start = self.register_uses.len() as u32;
        if let Some((register, _)) = i.guard {
            self.note_register(register, Role::Guard);
        }
        let has = |name: &str| i.modifiers.contains(&name);
        let rule = match i.opcode {
            "mov" if self.packs_a_word(i) => Rule::Pack,
            "mov" | "cvta" => Rule::Copy,
            "prmt" if matches!(i.operands[..], [_, _, _, Operand::Integer(_)]) => Rule::Pack,
            "and" if has("pred") => Rule::And,
            "or" if has("pred") => Rule::Or,
            "and" if matches!(i.operands[..], [_, _, Operand::Integer(_)]) => Rule::Mask,
            "bfi" => Rule::Mask,
            "selp" => Rule::Select,
            "vote" | "match" | "redux" | "elect" => Rule::Warp,
            "mma" | "wmma" | "movmatrix" | "ldmatrix" | "stmatrix" => Rule::WholeWarp,
            _ => Rule::Compute,
        };
        let has_result = match i.opcode {
            "st" | "red" | "stmatrix" | "cp" | "prefetch" | "prefetchu" | "applypriority" | "discard" | "bra"
            | "brx" | "ret" | "exit" | "trap" | "brkpt" | "pmevent" | "nanosleep" | "membar" | "fence"
            | "griddepcontrol" | "stackrestore" | "setmaxnreg" => false,
            "bar" | "barrier" => has("red"),
            "mbarrier" => {
                has("arrive") || has("arrive_drop") || has("test_wait") || has("try_wait") || has("pending_count")
            }
            "wmma" => !has("store"),
            "call" => matches!(i.operands.first(), Some(Operand::List(_))) && i.operands.len() > 1,
            _ => true,
        };
        // Whether what is read ends in a register, where it may yet turn out not to matter.
        let role = match i.opcode {
            "st" => Role::Stored,
            "ld" | "ldu" | "atom" | "bar" | "barrier" | "mbarrier" | "elect" | "ldmatrix" | "createpolicy"
            | "alloca" => Role::Needed,
            "wmma" if !has("mma") => Role::Needed,
            _ if has_result => Role::Read,
            _ => Role::Needed,
        };
        // `x - x` and `x ^ x` are zero whatever x is.
        let cancels = matches!(i.opcode, "xor" | "sub")
            && matches!(i.operands[..], [_, Operand::Register(a), Operand::Register(b)] if a == b);
        let last = i.operands.len().saturating_sub(1);
        for (index, operand) in i.operands.iter().enumerate() {
            match (index, i.opcode) {
                (0, _) if has_result => self.note(operand, Role::Written),
                // What a function does with its arguments is not followed.
                (_, "call") if matches!(operand, Operand::List(_)) => {}
                (3, "selp") => self.note(operand, Role::Choice { is_negated: matches!(operand, Operand::Not(_)) }),
                (2.., "shfl") => self.note(operand, Role::Needed),
                (2.., "vote" | "match" | "redux") if index == last && has("sync") => self.note(operand, Role::Needed),
                _ if cancels => {}
                _ => self.note(operand, role),
            }
        }
        Flow { start, count: self.register_uses.len() as u32 - start, rule }
    }

    /// True for `mov.b32 %r, {%h0, %h1}` and its like: parts of one 32-bit word, where wider ones are words by themselves.
    fn packs_a_word(&self, i: &Instruction<'e>) -> bool {
        match i.operands[..] {
            [Operand::Register(d), Operand::Vector(ref parts)] => {
                (self.register_type(d).bits() as usize) < 32 * parts.len()
            }
            _ => false,
        }
    }

    fn note(&mut self, operand: &Operand<'e>, role: Role) {
        match operand {
            Operand::Register(register) => self.note_register(*register, role),
            Operand::Part(register, _) => self.note_register(*register, role),
            Operand::Address(Base::Register(register), _) => self.note_register(*register, Role::Address),
            Operand::Vector(list) | Operand::List(list) => list.iter().for_each(|operand| self.note(operand, role)),
            Operand::Pair(pair) => {
                self.note(&pair.0, role);
                self.note(&pair.1, role);
            }
            Operand::Not(inner) => self.note(inner, role),
            // Keeps the place of an element that nobody wants, and of a constant that is stored or copied.
            Operand::Sink | Operand::Integer(_) | Operand::Float(_) | Operand::FloatBits(_) | Operand::Special(_) => {
                self.register_uses.push(RegisterUse { slot: NONE, planes: 1, role });
            }
            _ => {}
        }
    }

    fn note_register(&mut self, register: u32, role: Role) {
        let planes = self.register_type(register).bits().div_ceil(32) as u8;
        self.register_uses.push(RegisterUse { slot: self.slot(register), planes, role });
    }
}
