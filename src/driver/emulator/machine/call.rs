//! Calls: frames, parameters, returns.

use super::access::lanes_of;
use super::block::SharedMemory;
use super::observe::{CallEvent, Observe, PassEvent, PassPlace};
use super::run::Worker;
use super::warp::{Frame, Group, NO_FRAME, Warp};
use super::{Outcome, Stopped};
use crate::decode::FUNCTION_BASE;
use crate::decode::program::{Call, CallTarget, CallValue, FormalParameter, NONE, Op};
use crate::error::FaultKind;
use crate::lanes::{LANES, Word};

pub enum CallResult {
    /// A host function ran; the group goes on behind the call.
    Continue,
    /// The group's place has changed, or it was split.
    Moved,
}

/// The bytes of a parameter, by lane.
fn read_value(warp: &mut Warp, frame: u32, value: CallValue, lane: usize, target: &mut [u8]) {
    let frame = warp.frames[frame as usize];
    match value {
        CallValue::Local { offset, bytes } => {
            let stride = warp.local.stride;
            let start = (lane as u64 * stride + frame.local_base + u64::from(offset)) as usize;
            let length = target.len().min(bytes as usize);
            target[..length].copy_from_slice(&warp.local.bytes()[start..start + length]);
        }
        CallValue::Plane { slot, planes } if slot != NONE => {
            let planes_of_frame = &warp.planes[frame.base as usize..];
            for plane in 0..usize::from(planes).min(target.len().div_ceil(4)) {
                let word = if planes == 2 {
                    (u64::view(planes_of_frame, slot)[lane] >> (32 * plane)) as u32
                } else {
                    u32::view(planes_of_frame, slot)[lane]
                };
                let length = (target.len() - 4 * plane).min(4);
                target[4 * plane..4 * plane + length].copy_from_slice(&word.to_le_bytes()[..length]);
            }
        }
        CallValue::Plane { .. } => {}
    }
}

fn write_value(warp: &mut Warp, frame: u32, value: CallValue, lane: usize, source: &[u8]) {
    let frame = warp.frames[frame as usize];
    match value {
        CallValue::Local { offset, bytes } => {
            let stride = warp.local.stride;
            let start = (lane as u64 * stride + frame.local_base + u64::from(offset)) as usize;
            let length = source.len().min(bytes as usize);
            warp.local.bytes()[start..start + length].copy_from_slice(&source[..length]);
        }
        CallValue::Plane { slot, planes } if slot != NONE => {
            let mut bytes = [0; 8];
            let length = source.len().min(8);
            bytes[..length].copy_from_slice(&source[..length]);
            let planes_of_frame = &mut warp.planes[frame.base as usize..];
            if planes == 2 {
                u64::view_mut(planes_of_frame, slot)[lane] = u64::from_le_bytes(bytes);
            } else {
                u32::view_mut(planes_of_frame, slot)[lane] = u64::from_le_bytes(bytes) as u32;
            }
        }
        CallValue::Plane { .. } => {}
    }
}

fn formal_value(formal: &FormalParameter) -> CallValue {
    if formal.plane == NONE {
        CallValue::Local { offset: formal.offset, bytes: formal.bytes }
    } else {
        CallValue::Plane { slot: formal.plane, planes: formal.bytes.div_ceil(4) as u8 }
    }
}

impl<O: Observe> Worker<'_, O> {
    pub fn call(
        &mut self,
        warp: &mut Warp,
        shared: &mut SharedMemory,
        block: [u32; 3],
        index: usize,
        call: &Call,
        pc: u32,
    ) -> Outcome<CallResult> {
        let group = warp.groups[index];
        let first = group.mask.trailing_zeros() as usize;
        let function = match call.target {
            CallTarget::Function(function) => function,
            CallTarget::Register(slot) => {
                let base = warp.frames[group.frame as usize].base as usize;
                let addresses = *u64::view(&warp.planes[base..], slot);
                let chosen = addresses[first % LANES];
                let same =
                    (0..LANES).fold(0, |same, lane| same | u32::from(addresses[lane] == chosen) << lane) & group.mask;
                if same != group.mask {
                    // Lanes that call another function call it after these.
                    warp.groups[index] = Group { mask: same, ..group };
                    warp.groups[index].pc = pc;
                    warp.groups.push(Group { mask: group.mask & !same, pc, ..group });
                }
                let number = chosen.wrapping_sub(FUNCTION_BASE);
                let known = number
                    .is_multiple_of(16)
                    .then_some(number / 16)
                    .filter(|&n| n < self.launch.program.functions.len() as u64);
                match known {
                    Some(number) => number as u32,
                    None => {
                        let message = format!("call of {chosen:#x}, which is no function");
                        return Err(Stopped::new(FaultKind::Illegal(message), first as u32));
                    }
                }
            }
        };
        let mask = warp.groups[index].mask;
        let launch = self.launch;
        let info = &launch.program.functions[function as usize];
        if let Some(host) = info.host_function {
            self.host_call(warp, shared, group.frame, host, call, mask)?;
            if mask == group.mask {
                return Ok(CallResult::Continue);
            }
            warp.groups[index].pc = pc + 1;
            return Ok(CallResult::Moved);
        }
        if let Some(refusal) = &info.refusal {
            return Err(Stopped::new(FaultKind::Illegal(refusal.to_string()), first as u32));
        }
        if !info.is_defined || info.is_entry || call.args.len() < info.params.len() {
            let message = format!("call of {} with {} parameters, which it cannot take", info.name, call.args.len());
            return Err(Stopped::new(FaultKind::Illegal(message), first as u32));
        }
        let frame = warp.push_frame(launch, block, function, group.frame, pc, mask)?;
        if O::IS_ON {
            let Frame { base, local_base, .. } = warp.frames[frame as usize];
            let event = CallEvent { block, warp: warp.index, lanes: mask, base, local_base, function: info };
            self.observer.called(&event);
        }
        let mut buffer = Vec::new();
        for (formal, actual) in info.params.iter().zip(&call.args) {
            buffer.resize(formal.bytes as usize, 0);
            for lane in lanes_of(mask) {
                buffer.fill(0);
                read_value(warp, group.frame, *actual, lane, &mut buffer);
                write_value(warp, frame, formal_value(formal), lane, &buffer);
            }
            let (from, to) = ((group.frame, *actual), (frame, formal_value(formal)));
            self.tell_passed(warp, block, mask, formal.bytes, from, to);
        }
        let moved = &mut warp.groups[index];
        (moved.frame, moved.pc) = (frame, info.entry_pc);
        Ok(CallResult::Moved)
    }

    /// Returns the group to its caller; false if it was the kernel's own frame, and the lanes have exited.
    pub fn return_from(&mut self, warp: &mut Warp, block: [u32; 3], index: usize) -> bool {
        let group = warp.groups[index];
        let frame = warp.frames[group.frame as usize];
        if frame.parent == NO_FRAME {
            warp.groups.swap_remove(index);
            warp.exit_lanes(group.frame, group.mask);
            return false;
        }
        let launch = self.launch;
        let info = &launch.program.functions[frame.function as usize];
        if let Op::Call(call) = &launch.program.code[frame.call_pc as usize].op {
            let mut buffer = Vec::new();
            for (formal, actual) in info.returns.iter().zip(&call.returns) {
                buffer.resize(formal.bytes as usize, 0);
                for lane in lanes_of(group.mask) {
                    read_value(warp, group.frame, formal_value(formal), lane, &mut buffer);
                    write_value(warp, frame.parent, *actual, lane, &buffer);
                }
                let (from, to) = ((group.frame, formal_value(formal)), (frame.parent, *actual));
                self.tell_passed(warp, block, group.mask, formal.bytes, from, to);
            }
        }
        warp.leave_frame(group.frame, group.mask);
        let moved = &mut warp.groups[index];
        (moved.frame, moved.pc) = (frame.parent, frame.call_pc + 1);
        true
    }

    fn tell_passed(
        &mut self,
        warp: &Warp,
        block: [u32; 3],
        lanes: u32,
        bytes: u32,
        from: (u32, CallValue),
        to: (u32, CallValue),
    ) {
        if O::IS_ON {
            let [from, to] = [from, to].map(|(frame, value)| {
                let Frame { base, local_base, .. } = warp.frames[frame as usize];
                PassPlace { base, local_base, value }
            });
            self.observer.passed(&PassEvent { block, warp: warp.index, lanes, from, to, bytes });
        }
    }

    /// A 64-bit argument of a host call.
    pub(super) fn argument(&self, warp: &mut Warp, frame: u32, call: &Call, index: usize, lane: usize) -> u64 {
        let mut bytes = [0; 8];
        if let Some(&value) = call.args.get(index) {
            read_value(warp, frame, value, lane, &mut bytes);
        }
        u64::from_le_bytes(bytes)
    }

    pub(super) fn set_result(&self, warp: &mut Warp, frame: u32, call: &Call, lane: usize, value: u64) {
        if let Some(&target) = call.returns.first() {
            write_value(warp, frame, target, lane, &value.to_le_bytes());
        }
    }
}
