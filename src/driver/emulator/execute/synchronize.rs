//! Barriers, fences, mbarriers.

use crate::ast::{Instruction, Operand, Type};
use crate::decode::Decoder;
use crate::decode::modifiers::Modifiers;
use crate::decode::program::{BarrierOp, BarrierReduction, MbarrierKind, MbarrierOp, NONE, Op};
use crate::error::Result;

impl<'e> Decoder<'e> {
    pub(super) fn synchronize(&mut self, i: &Instruction<'e>, m: &mut Modifiers<'_>) -> Result<()> {
        match i.opcode {
            "bar" | "barrier" => self.barrier(i, m),
            "mbarrier" => self.mbarrier(i, m),
            "setmaxnreg" => {
                // Registers are not scarce here.
                let has_action = m.one_of(&["inc", "dec"]).is_some();
                if !(has_action && m.flag("sync") && m.flag("aligned") && m.flag("u32")) {
                    return self.fail("expected .inc or .dec, then .sync.aligned.u32 on setmaxnreg");
                }
                if !matches!(i.operands.as_slice(), [Operand::Integer(count @ 24..=256)] if count % 8 == 0) {
                    return self.fail("setmaxnreg takes a number of registers: a multiple of 8 from 24 to 256");
                }
                self.emit(Op::Nothing);
                Ok(())
            }
            "nanosleep" => {
                m.flag("u32");
                self.emit(Op::Yield);
                Ok(())
            }
            "griddepcontrol" => {
                while m.find(|_| Some(())).is_some() {}
                self.emit(Op::Nothing);
                Ok(())
            }
            _ => {
                // membar.level, fence.sem.scope, fence.proxy.*: one strong fence serves all.
                while m.find(|_| Some(())).is_some() {}
                self.emit(Op::Fence);
                Ok(())
            }
        }
    }

    fn barrier(&mut self, i: &Instruction<'e>, m: &mut Modifiers<'_>) -> Result<()> {
        if m.flag("warp") {
            m.flag("sync");
            let [members] = self.operands(i)?;
            let members = self.source(members, Type::B32)?;
            self.emit(Op::Collective { members, alu: Box::new(|_, _| {}), is_barrier: true });
            return Ok(());
        }
        if m.flag("cluster") {
            return self.cluster_barrier(i, m);
        }
        m.flag("cta");
        let kind = m.one_of(&["sync", "arrive", "red"]);
        let is_aligned = m.flag("aligned") || i.opcode == "bar";
        match kind {
            Some(kind @ ("sync" | "arrive")) => {
                let (Some(id), true) = (i.operands.first(), i.operands.len() <= 2) else {
                    return self.fail("a barrier takes its number and maybe a thread count");
                };
                let id = self.source(id, Type::U32)?;
                let count = match i.operands.get(1) {
                    Some(count) => self.source(count, Type::U32)?,
                    None if kind == "arrive" => return self.fail("bar.arrive takes a thread count"),
                    None => NONE,
                };
                let waits = kind == "sync";
                self.emit(Op::Barrier(Box::new(BarrierOp { id, count, waits, reduction: None, is_aligned })));
            }
            Some(_) => {
                let operation = match m.one_of(&["popc", "and", "or"]) {
                    Some("popc") => BarrierReduction::Popcount,
                    Some("and") => BarrierReduction::And,
                    Some(_) => BarrierReduction::Or,
                    None => return self.fail("expected .popc, .and or .or on a barrier reduction"),
                };
                let ty = self.required_type(m)?;
                let [d, id, rest @ ..] = i.operands.as_slice() else {
                    return self.fail("a barrier reduction takes 3 or 4 operands");
                };
                let (count, predicate) = match rest {
                    [predicate] => (None, predicate),
                    [count, predicate] => (Some(count), predicate),
                    _ => return self.fail("a barrier reduction takes 3 or 4 operands"),
                };
                let d = match operation {
                    BarrierReduction::Popcount => self.destination(d, ty)?,
                    _ => self.predicate_destination(d)?,
                };
                let id = self.source(id, Type::U32)?;
                let count = match count {
                    Some(count) => self.source(count, Type::U32)?,
                    None => NONE,
                };
                let (p, negated) = self.predicate(predicate)?;
                let reduction = Some((operation, d, p, negated));
                self.emit(Op::Barrier(Box::new(BarrierOp { id, count, waits: true, reduction, is_aligned })));
            }
            None => return self.fail(format!("expected .sync, .arrive or .red on {}", i.opcode)),
        }
        Ok(())
    }

    /// barrier.cluster, in a cluster of one block.
    fn cluster_barrier(&mut self, i: &Instruction<'e>, m: &mut Modifiers<'_>) -> Result<()> {
        let Some(kind) = m.one_of(&["arrive", "wait"]) else {
            return self.fail("expected .arrive or .wait on barrier.cluster");
        };
        m.one_of(&["release", "acquire", "relaxed"]);
        m.flag("aligned");
        let [] = self.operands(i)?;
        self.emit(Op::ClusterBarrier { waits: kind == "wait" });
        Ok(())
    }

    fn mbarrier(&mut self, i: &Instruction<'e>, m: &mut Modifiers<'_>) -> Result<()> {
        let Some(name) = m.one_of(&[
            "init",
            "inval",
            "arrive",
            "arrive_drop",
            "test_wait",
            "try_wait",
            "pending_count",
            "expect_tx",
            "complete_tx",
        ]) else {
            return self.fail("unsupported mbarrier operation");
        };
        let completes = !m.flag("noComplete");
        let is_parity = m.flag("parity");
        let expects = m.flag("expect_tx");
        m.take_memory_hints();
        let space = self.space(m);
        m.flag("b64");
        let shape = |expected: &str| format!("mbarrier.{name} takes {expected}");
        let (kind, d, address, operand) = match (name, i.operands.as_slice()) {
            ("pending_count", [d, state]) => {
                let (d, state) = (self.destination(d, Type::B32)?, self.source(state, Type::B64)?);
                self.unary(d, state, |state: u64| (state & 0xF_FFFF) as u32);
                return Ok(());
            }
            ("init", [address, count]) => (MbarrierKind::Init, NONE, address, self.source(count, Type::U32)?),
            ("inval", [address]) => (MbarrierKind::Invalidate, NONE, address, NONE),
            ("arrive" | "arrive_drop", [d, address, rest @ ..]) if rest.len() < 2 => {
                let operand = rest.first().map_or(Ok(NONE), |count| self.source(count, Type::U32))?;
                if expects && operand == NONE {
                    return self.fail(shape("a number of bytes with .expect_tx"));
                }
                let kind = MbarrierKind::Arrive { drops: name == "arrive_drop", completes, expects };
                (kind, self.destination(d, Type::B64)?, address, operand)
            }
            ("expect_tx" | "complete_tx", [address, bytes]) => (
                MbarrierKind::Transaction { completes: name == "complete_tx" },
                NONE,
                address,
                self.source(bytes, Type::U32)?,
            ),
            ("test_wait" | "try_wait", [d, address, state, ..]) => {
                let operand = self.source(state, if is_parity { Type::U32 } else { Type::B64 })?;
                (MbarrierKind::TestWait { is_parity }, self.predicate_destination(d)?, address, operand)
            }
            _ => return self.fail(shape("other operands")),
        };
        let address = self.address(address, space)?;
        self.emit(Op::Mbarrier(Box::new(MbarrierOp {
            kind,
            address,
            d,
            operand,
            may_yield: matches!(kind, MbarrierKind::TestWait { .. }),
        })));
        Ok(())
    }
}
