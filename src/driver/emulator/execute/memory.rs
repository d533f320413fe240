//! Loads, stores, atomics, asynchronous copies and matrix moves: their operands. `machine` carries them out.

use crate::ast::{Instruction, Operand, Space, Type};
use crate::decode::Decoder;
use crate::decode::modifiers::Modifiers;
use crate::decode::program::{
    Atomic, AtomicOp, CopyAsync, CopyFence, DataRegister, Extend, Load, MAX_VECTOR, MatrixMove, MbarrierKind,
    MbarrierOp, NONE, Op, Store,
};
use crate::error::Result;

impl<'e> Decoder<'e> {
    pub(super) fn memory(&mut self, i: &Instruction<'e>, m: &mut Modifiers<'_>) -> Result<()> {
        match i.opcode {
            "ld" | "ldu" => self.load(i, m),
            "st" => self.store(i, m),
            "atom" | "red" => self.atomic(i, m),
            "cp" => self.copy_async(i, m),
            "ldmatrix" | "stmatrix" => self.matrix_move(i, m),
            "createpolicy" => {
                while m.find(|_| Some(())).is_some() {}
                let Some(d) = i.operands.first() else { return self.fail("expected a destination on createpolicy") };
                let (d, zero) = (self.destination(d, Type::B64)?, self.constant(0, 2)?);
                self.unary(d, zero, |a: u64| a);
                Ok(())
            }
            _ => {
                // Hints: they may move data between caches, which there are none of.
                while m.find(|_| Some(())).is_some() {}
                self.emit(Op::Nothing);
                Ok(())
            }
        }
    }

    /// Vector length, hints and ordering; true if other threads may write the place at the same time.
    fn access_modifiers(&mut self, m: &mut Modifiers<'_>) -> (usize, bool, bool) {
        let is_volatile = ["volatile", "relaxed", "acquire", "release", "mmio"].iter().any(|name| m.has(name));
        let has_policy = m.flag("L2::cache_hint");
        let count = m.one_of(&["v2", "v4", "v8"]).map_or(1, |name| usize::from(name.as_bytes()[1] - b'0'));
        m.take_memory_hints();
        (count, is_volatile, has_policy)
    }

    fn data_registers(
        &mut self,
        operand: &Operand<'e>,
        ty: Type,
        count: usize,
        is_write: bool,
    ) -> Result<[DataRegister; MAX_VECTOR]> {
        let elements = Self::elements(operand);
        if elements.len() != count {
            return self.fail(format!("expected {count} registers, found {}", elements.len()));
        }
        let mut registers = [DataRegister::SINK; MAX_VECTOR];
        for (register, element) in registers.iter_mut().zip(elements) {
            *register = self.data_register(element, ty, is_write)?;
        }
        Ok(registers)
    }

    fn check_access(
        &self,
        i: &Instruction<'e>,
        ty: Type,
        count: usize,
        operands: usize,
        has_policy: bool,
    ) -> Result<()> {
        if matches!(ty, Type::Pred | Type::Tf32 | Type::F16x2 | Type::Bf16x2 | Type::U16x2 | Type::S16x2) {
            return self.wrong_type(i.opcode, ty);
        }
        if ty.bytes() as usize * count > 32 {
            return self.fail("a vector access has at most 32 bytes");
        }
        let expected = operands + usize::from(has_policy);
        if i.operands.len() != expected {
            return self.fail(format!("{} takes {expected} operands here, found {}", i.opcode, i.operands.len()));
        }
        Ok(())
    }

    fn load(&mut self, i: &Instruction<'e>, m: &mut Modifiers<'_>) -> Result<()> {
        let (count, is_volatile, has_policy) = self.access_modifiers(m);
        let space = self.space(m);
        let ty = self.required_type(m)?;
        self.check_access(i, ty, count, 2, has_policy)?;
        let registers = self.data_registers(&i.operands[0], ty, count, true)?;
        let address = self.address(&i.operands[1], space)?;
        let extend = if ty.is_signed() { Extend::Sign } else { Extend::Zero };
        self.emit(Op::Load(Load {
            address,
            bytes: ty.bytes() as u8,
            count: count as u8,
            extend,
            is_volatile,
            registers,
        }));
        Ok(())
    }

    fn store(&mut self, i: &Instruction<'e>, m: &mut Modifiers<'_>) -> Result<()> {
        let (count, is_volatile, has_policy) = self.access_modifiers(m);
        let space = self.space(m);
        if space == Space::Const {
            return self.fail("constant memory cannot be written");
        }
        let ty = self.required_type(m)?;
        self.check_access(i, ty, count, 2, has_policy)?;
        let address = self.address(&i.operands[0], space)?;
        let registers = self.data_registers(&i.operands[1], ty, count, false)?;
        self.emit(Op::Store(Store { address, bytes: ty.bytes() as u8, count: count as u8, is_volatile, registers }));
        Ok(())
    }

    fn atomic(&mut self, i: &Instruction<'e>, m: &mut Modifiers<'_>) -> Result<()> {
        let (count, _, has_policy) = self.access_modifiers(m);
        let space = self.space(m);
        m.flag("noftz");
        let op = m.find(|modifier| {
            Some(match modifier {
                "add" => AtomicOp::Add,
                "and" => AtomicOp::And,
                "or" => AtomicOp::Or,
                "xor" => AtomicOp::Xor,
                "exch" => AtomicOp::Exchange,
                "cas" => AtomicOp::CompareSwap,
                "min" => AtomicOp::Min,
                "max" => AtomicOp::Max,
                "inc" => AtomicOp::Increment,
                "dec" => AtomicOp::Decrement,
                _ => return None,
            })
        });
        let Some(op) = op else { return self.fail(format!("expected an operation such as .add on {}", i.opcode)) };
        let ty = self.required_type(m)?;
        use AtomicOp as A;
        use Type as T;
        let is_known = match op {
            A::Add => matches!(
                ty,
                T::U32 | T::S32 | T::U64 | T::S64 | T::F32 | T::F64 | T::F16 | T::F16x2 | T::Bf16 | T::Bf16x2
            ),
            A::And | A::Or | A::Xor => matches!(ty, T::B32 | T::B64),
            A::Exchange => matches!(ty, T::B32 | T::B64 | T::B128),
            A::CompareSwap => matches!(ty, T::B16 | T::B32 | T::B64 | T::B128),
            A::Min | A::Max => {
                matches!(ty, T::U32 | T::S32 | T::U64 | T::S64)
                    || (count > 1 && matches!(ty, T::F16 | T::F16x2 | T::Bf16 | T::Bf16x2))
            }
            A::Increment | A::Decrement => ty == T::U32,
        };
        if !is_known {
            return self.wrong_type(&format!("{}.{op:?}", i.opcode).to_lowercase(), ty);
        }
        let returns = i.opcode == "atom";
        let sources = if op == A::CompareSwap { 2 } else { 1 };
        let expected = usize::from(returns) + 1 + sources + usize::from(has_policy);
        if i.operands.len() != expected {
            return self.fail(format!("{} takes {expected} operands here, found {}", i.opcode, i.operands.len()));
        }
        let mut operands = i.operands.iter();
        let mut d = [NONE; MAX_VECTOR];
        if returns && let Some(operand) = operands.next() {
            let elements = Self::elements(operand);
            if elements.len() != count {
                return self.fail(format!("expected {count} registers, found {}", elements.len()));
            }
            for (slot, element) in d.iter_mut().zip(elements) {
                if !matches!(element, Operand::Sink) {
                    *slot = self.destination(element, ty)?;
                }
            }
        }
        let (Some(address), Some(value)) = (operands.next(), operands.next()) else {
            return self.fail("expected an address and a value");
        };
        let address = self.address(address, space)?;
        let mut b = [NONE; MAX_VECTOR];
        let elements = Self::elements(value);
        if elements.len() != count {
            return self.fail(format!("expected {count} registers, found {}", elements.len()));
        }
        for (slot, element) in b.iter_mut().zip(elements) {
            *slot = self.source(element, ty)?;
        }
        let c = match operands.next() {
            Some(operand) if sources == 2 => self.source(operand, ty)?,
            _ => NONE,
        };
        self.emit(Op::Atomic(Box::new(Atomic { address, op, ty, count: count as u8, d, b, c, flush: false })));
        Ok(())
    }

    fn copy_async(&mut self, i: &Instruction<'e>, m: &mut Modifiers<'_>) -> Result<()> {
        if !m.flag("async") {
            return self.fail("expected .async on cp");
        }
        if m.flag("commit_group") {
            self.emit(Op::CopyFence(CopyFence::Commit));
            return Ok(());
        }
        if m.flag("wait_all") {
            self.emit(Op::CopyFence(CopyFence::WaitAll));
            return Ok(());
        }
        if m.flag("wait_group") {
            let [Operand::Integer(groups)] = i.operands[..] else {
                return self.fail("cp.async.wait_group takes a constant number of groups");
            };
            self.emit(Op::CopyFence(CopyFence::WaitGroups(groups.min(u64::from(u32::MAX)) as u32)));
            return Ok(());
        }
        if m.flag("mbarrier::arrive::one") || m.flag("mbarrier") {
            m.flag("arrive");
            let is_counted = !m.flag("noinc");
            let space = self.space(m);
            m.flag("b64");
            let [address] = self.operands(i)?;
            let address = self.address(address, space)?;
            let kind = MbarrierKind::ArriveAfterCopies { is_counted };
            self.emit(Op::Mbarrier(Box::new(MbarrierOp { kind, address, d: NONE, operand: NONE, may_yield: false })));
            return Ok(());
        }
        let has_policy = m.flag("L2::cache_hint");
        m.take_memory_hints();
        let (to, from) = (self.space(m), self.space(m));
        if to != Space::Shared || from != Space::Global {
            return self.fail("cp.async copies from .global to .shared");
        }
        let count = i.operands.len() - usize::from(has_policy && !i.operands.is_empty());
        if !(3..=4).contains(&count) {
            return self.fail(format!("cp.async takes 3 or 4 operands, found {count}"));
        }
        let (destination, source) = (self.address(&i.operands[0], to)?, self.address(&i.operands[1], from)?);
        let Operand::Integer(bytes @ (4 | 8 | 16)) = i.operands[2] else {
            return self.fail("cp.async copies 4, 8 or 16 bytes");
        };
        let (mut source_bytes, mut ignore) = (NONE, None);
        if count == 4 {
            match &i.operands[3] {
                operand @ (Operand::Integer(_) | Operand::Special(_)) => {
                    source_bytes = self.source(operand, Type::U32)?
                }
                operand @ Operand::Register(index) if self.register_type(*index) != Type::Pred => {
                    source_bytes = self.source(operand, Type::U32)?;
                }
                operand => ignore = Some(self.predicate(operand)?),
            }
        }
        self.emit(Op::CopyAsync(Box::new(CopyAsync {
            destination,
            source,
            bytes: bytes as u32,
            source_bytes,
            ignore,
        })));
        Ok(())
    }

    fn matrix_move(&mut self, i: &Instruction<'e>, m: &mut Modifiers<'_>) -> Result<()> {
        m.flag("sync");
        m.flag("aligned");
        if !m.flag("m8n8") {
            return self.fail(format!("expected .m8n8 on {}", i.opcode));
        }
        let Some(count) = m.one_of(&["x1", "x2", "x4"]).map(|name| name.as_bytes()[1] - b'0') else {
            return self.fail(format!("expected .x1, .x2 or .x4 on {}", i.opcode));
        };
        let is_transposed = m.flag("trans");
        let space = self.space(m);
        if self.required_type(m)? != Type::B16 {
            return self.fail(format!("{} moves .b16", i.opcode));
        }
        let [first, second] = self.operands(i)?;
        let is_store = i.opcode == "stmatrix";
        let (data, address) = if is_store { (second, first) } else { (first, second) };
        let address = self.address(address, space)?;
        let elements = Self::elements(data);
        if elements.len() != usize::from(count) {
            return self.fail(format!("expected {count} registers, found {}", elements.len()));
        }
        let mut registers = [NONE; 4];
        for (slot, element) in registers.iter_mut().zip(elements) {
            *slot = if is_store { self.source(element, Type::B32)? } else { self.destination(element, Type::B32)? };
        }
        self.emit(Op::MatrixMove(Box::new(MatrixMove { address, registers, count, is_store, is_transposed })));
        Ok(())
    }
}
