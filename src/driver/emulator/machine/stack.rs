//! The stack that each thread has in local memory: alloca and stackrestore.
//!
//! A frame's variables come first, at the same place for all of its lanes; what a lane takes by alloca lies behind them.
//! Its end, the stack pointer, is a plane of the frame: lanes may take different sizes, and all of it is gone with the
//! frame. Frames of called functions start behind the highest pointer.

use super::access::lanes_of;
use super::observe::{Observe, StackEvent};
use super::run::Worker;
use super::warp::{LocalMemory, MAX_LOCAL_BYTES};
use super::{Outcome, Stopped};
use crate::decode::program::{StackKind, StackOp};
use crate::error::FaultKind;
use crate::lanes::{LANES, Plane, Word, store_lanes};

/// Least distance of two blocks that alloca gives, so that the sanitizer sees who runs out of one into the next.
pub const STACK_GAP: u64 = 16;
/// Least alignment of such a block.
const STACK_ALIGNMENT: u64 = 8;

fn words(planes: &[Plane], slot: u32, is_wide: bool) -> [u64; LANES] {
    if is_wide { *u64::view(planes, slot) } else { u32::view(planes, slot).map(u64::from) }
}

impl<O: Observe> Worker<'_, O> {
    /// `fixed_end` is where the frame's variables end.
    pub fn move_stack(
        &mut self,
        planes: &mut [Plane],
        local: &mut LocalMemory,
        op: &StackOp,
        fixed_end: u64,
        active: u32,
    ) -> Outcome<()> {
        let before = words(planes, op.pointer, false);
        match op.kind {
            StackKind::Allocate { d, size, align } => {
                let sizes = words(planes, size, op.is_wide);
                let (mut start, mut end) = ([0; LANES], [0; LANES]);
                for lane in lanes_of(active) {
                    start[lane] = (before[lane] + STACK_GAP).next_multiple_of(align.max(STACK_ALIGNMENT));
                    end[lane] = start[lane].saturating_add(sizes[lane]);
                    if end[lane] > MAX_LOCAL_BYTES {
                        let message = format!(
                            "stack overflow: alloca of {} bytes where {} of the thread's {MAX_LOCAL_BYTES} bytes of local \
                             memory are in use",
                            sizes[lane], before[lane]
                        );
                        return Err(Stopped::new(FaultKind::Illegal(message), lane as u32));
                    }
                }
                let highest = lanes_of(active).map(|lane| end[lane]).max().unwrap_or(0);
                // With the gap behind it, which the sanitizer marks.
                local.reserve(&self.launch.resident, (highest + STACK_GAP).min(MAX_LOCAL_BYTES))?;
                store_lanes(planes, op.pointer, &end.map(|end| end as u32), active);
                if op.is_wide {
                    store_lanes(planes, d, &start, active);
                } else {
                    store_lanes(planes, d, &start.map(|start| start as u32), active);
                }
                if O::IS_ON {
                    let (block, warp, before) = (self.block, self.warp, &before);
                    let event = StackEvent { block, warp, lanes: active, before, start: &start, end: &end };
                    self.observer.stack_grew(&event);
                }
            }
            StackKind::Restore { source } => {
                let pointers = words(planes, source, op.is_wide);
                let is_known = |&lane: &usize| (fixed_end..=before[lane]).contains(&pointers[lane]);
                if let Some(lane) = lanes_of(active).find(|lane| !is_known(lane)) {
                    let message = format!(
                        "stackrestore of {:#x}, which no stacksave of this function gave (its stack is {fixed_end:#x} to {:#x})",
                        pointers[lane], before[lane]
                    );
                    return Err(Stopped::new(FaultKind::Illegal(message), lane as u32));
                }
                store_lanes(planes, op.pointer, &pointers.map(|pointer| pointer as u32), active);
            }
        }
        Ok(())
    }
}
