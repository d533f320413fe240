//! Atomic operations and reductions, lane by lane in lane order.
//!
//! Within a block that order makes results repeatable. Between blocks the host's atomics are used, in whatever order the
//! threads come: sums of integers do not depend on it, and blocks that add floats share one thread (see `grid`).

use std::sync::Mutex;
use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering::SeqCst};

use super::Outcome;
use super::access::{Nearby, Request, lane_addresses};
use super::observe::{Observe, Order};
use super::run::Worker;
use crate::ast::Type;
use crate::decode::program::{Atomic, AtomicOp, NONE};
use crate::error::Access;
use crate::execute::half;
use crate::lanes::{Plane, Word};

/// The new value of the place, from its old one and the operands.
fn apply(op: AtomicOp, ty: Type, old: u64, b: u64, c: u64) -> u64 {
    let bits = ty.bits();
    let sign_extend = |value: u64| ((value << (64 - bits)) as i64) >> (64 - bits);
    let halves = |f: fn(u16, u16, bool) -> u16, is_bf16: bool| {
        let low = f(old as u16, b as u16, is_bf16);
        let high = if bits == 32 { f((old >> 16) as u16, (b >> 16) as u16, is_bf16) } else { 0 };
        u64::from(low) | u64::from(high) << 16
    };
    match (op, ty) {
        (AtomicOp::Add, Type::F32) => u64::from((f32::from_bits(old as u32) + f32::from_bits(b as u32)).to_bits()),
        (AtomicOp::Add, Type::F64) => (f64::from_bits(old) + f64::from_bits(b)).to_bits(),
        (AtomicOp::Add, Type::F16 | Type::F16x2) => halves(half::add, false),
        (AtomicOp::Add, Type::Bf16 | Type::Bf16x2) => halves(half::add, true),
        (AtomicOp::Min, Type::F16 | Type::F16x2) => halves(half::minimum, false),
        (AtomicOp::Min, Type::Bf16 | Type::Bf16x2) => halves(half::minimum, true),
        (AtomicOp::Max, Type::F16 | Type::F16x2) => halves(half::maximum, false),
        (AtomicOp::Max, Type::Bf16 | Type::Bf16x2) => halves(half::maximum, true),
        (AtomicOp::Add, _) => old.wrapping_add(b),
        (AtomicOp::And, _) => old & b,
        (AtomicOp::Or, _) => old | b,
        (AtomicOp::Xor, _) => old ^ b,
        (AtomicOp::Exchange, _) => b,
        (AtomicOp::CompareSwap, _) => {
            if old == b {
                c
            } else {
                old
            }
        }
        (AtomicOp::Min, _) if ty.is_signed() => sign_extend(old).min(sign_extend(b)) as u64,
        (AtomicOp::Max, _) if ty.is_signed() => sign_extend(old).max(sign_extend(b)) as u64,
        (AtomicOp::Min, _) => old.min(b),
        (AtomicOp::Max, _) => old.max(b),
        (AtomicOp::Increment, _) => {
            if old >= b {
                0
            } else {
                old + 1
            }
        }
        (AtomicOp::Decrement, _) => {
            if old == 0 || old > b {
                b
            } else {
                old - 1
            }
        }
    }
}

/// # Safety
/// `pointer` must lead to the type's bytes, aligned to them.
unsafe fn update(pointer: *mut u8, ty: Type, f: impl Fn(u64) -> u64) -> u64 {
    // SAFETY: the caller's.
    unsafe {
        match ty.bits() {
            16 => {
                let place = AtomicU16::from_ptr(pointer.cast());
                u64::from(place.fetch_update(SeqCst, SeqCst, |old| Some(f(old.into()) as u16)).unwrap_or(0))
            }
            32 => {
                let place = AtomicU32::from_ptr(pointer.cast());
                u64::from(place.fetch_update(SeqCst, SeqCst, |old| Some(f(old.into()) as u32)).unwrap_or(0))
            }
            _ => AtomicU64::from_ptr(pointer.cast()).fetch_update(SeqCst, SeqCst, |old| Some(f(old))).unwrap_or(0),
        }
    }
}

fn read_register(planes: &[Plane], slot: u32, lane: usize, bits: u32) -> u64 {
    if bits == 64 { u64::view(planes, slot)[lane] } else { u64::from(u32::view(planes, slot)[lane]) }
}

/// Exchange and compare-and-swap of 128 bits, which the host has no portable operation for: one at a time. Narrower atomic
/// operations on the same bytes at the same time are not kept apart from them.
///
/// # Safety
/// `pointer` must lead to 16 bytes, aligned to them.
unsafe fn update_wide(pointer: *mut u8, f: impl Fn(u128) -> u128) -> u128 {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let place = pointer.cast::<u128>();
    // SAFETY: the caller's.
    unsafe {
        let old = place.read_volatile();
        place.write_volatile(f(old));
        old
    }
}

impl<O: Observe> Worker<'_, O> {
    pub fn atomic(&mut self, planes: &mut [Plane], nearby: &mut Nearby<'_>, op: &Atomic, active: u32) -> Outcome<()> {
        let (bits, bytes) = (op.ty.bits(), op.ty.bytes());
        let total = bytes * u32::from(op.count);
        let mut addresses = lane_addresses(planes, &op.address);
        self.check_alignment(&addresses, active, total, Access::Atomic)?;
        let request = Request::new(op.address.space, total, Access::Atomic).with_order(Order::Synchronizing);
        if bits == 128 {
            return self.each_lane(nearby, request, &mut addresses, active, |lane, pointer| {
                let b = u128::view(planes, op.b[0])[lane];
                let swap = |old: u128| match op.c {
                    NONE => b,
                    c if old == b => u128::view(planes, c)[lane],
                    _ => old,
                };
                // SAFETY: the bytes and their alignment were checked; parameters are refused.
                let old = unsafe { update_wide(pointer, swap) };
                if op.d[0] != NONE {
                    u128::view_mut(planes, op.d[0])[lane] = old;
                }
            });
        }
        self.each_lane(nearby, request, &mut addresses, active, |lane, pointer| {
            for element in 0..usize::from(op.count) {
                let b = read_register(planes, op.b[element], lane, bits);
                let c = if op.c == NONE { 0 } else { read_register(planes, op.c, lane, bits) };
                let place = pointer.wrapping_add(element * bytes as usize);
                // SAFETY: the bytes and their alignment were checked; parameters are refused.
                let old = unsafe { update(place, op.ty, |old| apply(op.op, op.ty, old, b, c)) };
                let d = op.d[element];
                if d == NONE {
                } else if bits == 64 {
                    u64::view_mut(planes, d)[lane] = old;
                } else {
                    u32::view_mut(planes, d)[lane] = old as u32;
                }
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn increments_and_decrements_wrap_at_their_bound() {
        let step = |op, old, b| apply(op, Type::U32, old, b, 0);
        assert_eq!((step(AtomicOp::Increment, 4, 5), step(AtomicOp::Increment, 5, 5)), (5, 0));
        assert_eq!(
            (step(AtomicOp::Decrement, 0, 5), step(AtomicOp::Decrement, 6, 5), step(AtomicOp::Decrement, 3, 5)),
            (5, 5, 2)
        );
    }

    #[test]
    fn signed_extremes_and_packed_halves_are_taken_by_their_type() {
        assert_eq!(apply(AtomicOp::Min, Type::S32, 5, 0xFFFF_FFFF, 0) as u32, u32::MAX);
        assert_eq!(apply(AtomicOp::Min, Type::U32, 5, 0xFFFF_FFFF, 0), 5);
        // 1.0 + 1.0 in both halves.
        assert_eq!(apply(AtomicOp::Add, Type::F16x2, 0x3C00_3C00, 0x3C00_4000, 0), 0x4000_4200);
    }
}
