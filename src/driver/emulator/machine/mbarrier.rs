//! mbarrier objects: 64-bit words in shared memory.
//!
//! Pending count in bits 0 to 19, expected count in 20 to 39, bytes that are still to come (a signed number) in 40 to 60,
//! phase in bit 63. The manual leaves the layout open.

use super::access::{Nearby, Request, lane_addresses};
use super::observe::{Observe, Order};
use super::run::Worker;
use super::{Outcome, Stopped};
use crate::decode::program::{CopyFence, MbarrierKind, MbarrierOp, NONE};
use crate::error::{Access, FaultKind};
use crate::lanes::{Plane, Word, store_predicate};

const COUNT: u64 = 0xF_FFFF;
const PHASE: u64 = 1 << 63;

const BYTES_SHIFT: u32 = 40;
const BYTES: u64 = 0x1F_FFFF;
/// Most bytes that may be to come, or to have come too early.
const MAX_BYTES: i64 = (1 << 20) - 1;

/// The word after `count` arrivals, `dropped` of which will not come again, and with `bytes` more to come.
/// An error, the number of bytes then to come, if there are too many of them.
fn arrive(state: u64, count: u64, dropped: u64, bytes: i64) -> Result<u64, i64> {
    let expected = (state >> 20 & COUNT).saturating_sub(dropped);
    let pending = (state & COUNT).saturating_sub(count);
    let phase = state & PHASE;
    // From 21 bits with a sign.
    let before = ((state >> BYTES_SHIFT & BYTES) << BYTES.leading_zeros()) as i64 >> BYTES.leading_zeros();
    let bytes = before + bytes;
    if !(-MAX_BYTES..=MAX_BYTES).contains(&bytes) {
        return Err(bytes);
    }
    Ok(if pending == 0 && bytes == 0 {
        (phase ^ PHASE) | expected << 20 | expected
    } else {
        phase | (bytes as u64 & BYTES) << BYTES_SHIFT | expected << 20 | pending
    })
}

impl<O: Observe> Worker<'_, O> {
    /// Returns true if a wait failed and the group should give way.
    pub fn mbarrier(
        &mut self,
        planes: &mut [Plane],
        nearby: &mut Nearby<'_>,
        op: &MbarrierOp,
        active: u32,
    ) -> Outcome<bool> {
        let mut addresses = lane_addresses(planes, &op.address);
        // What was there before does not matter to an init.
        let access = if op.kind == MbarrierKind::Init { Access::Write } else { Access::Atomic };
        self.check_alignment(&addresses, active, 8, access)?;
        if O::IS_ON && matches!(op.kind, MbarrierKind::ArriveAfterCopies { .. }) {
            // Who waits for this arrival waits for the copies.
            self.observer.copies(self.block, self.warp, active, CopyFence::WaitAll);
        }
        let mut must_wait = false;
        let mut overflow = None;
        let request = Request::new(op.address.space, 8, access).with_order(Order::Synchronizing);
        self.each_lane(nearby, request, &mut addresses, active, |lane, pointer| {
            let pointer = pointer.cast::<u64>();
            // SAFETY: these 8 bytes were checked.
            let old = unsafe { pointer.read_unaligned() };
            let count =
                |default: u64| if op.operand == NONE { default } else { u32::view(planes, op.operand)[lane].into() };
            let new = match op.kind {
                MbarrierKind::Init => {
                    let count = count(0) & COUNT;
                    Ok(count << 20 | count)
                }
                MbarrierKind::Invalidate => Ok(0),
                MbarrierKind::Arrive { drops, expects, .. } => {
                    let (count, bytes) = if expects { (1, count(0) as i64) } else { (count(1), 0) };
                    if op.d != NONE {
                        u64::view_mut(planes, op.d)[lane] = old;
                    }
                    arrive(old, count, if drops { count } else { 0 }, bytes)
                }
                MbarrierKind::ArriveAfterCopies { is_counted: false } => arrive(old, 1, 0, 0),
                MbarrierKind::Transaction { completes } => {
                    let bytes = count(0) as i64;
                    arrive(old, 0, 0, if completes { -bytes } else { bytes })
                }
                // Counted: the pending count goes up by one and down by one when the copies are done, which they are.
                MbarrierKind::ArriveAfterCopies { is_counted: true } => Ok(old),
                MbarrierKind::TestWait { is_parity } => {
                    let waited = if is_parity {
                        u64::from(u32::view(planes, op.operand)[lane] & 1)
                    } else {
                        u64::view(planes, op.operand)[lane] >> 63
                    };
                    let is_done = old >> 63 != waited;
                    store_predicate(planes, op.d, if is_done { u32::MAX } else { 0 }, 1 << lane);
                    must_wait |= !is_done;
                    Ok(old)
                }
            };
            let new = new.unwrap_or_else(|bytes| {
                overflow.get_or_insert((lane, bytes));
                old
            });
            // SAFETY: as above. Shared memory belongs to one host thread at a time.
            unsafe { pointer.write_unaligned(new) };
        })?;
        if let Some((lane, bytes)) = overflow {
            let message = format!(
                "mbarrier with {bytes} bytes to come; its transaction count goes from {} to {MAX_BYTES}",
                -MAX_BYTES
            );
            return Err(Stopped::new(FaultKind::Illegal(message), lane as u32));
        }
        Ok(must_wait)
    }
}
