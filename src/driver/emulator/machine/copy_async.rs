//! cp.async: 4, 8 or 16 bytes per lane from global to shared memory.

use super::Outcome;
use super::access::{Nearby, Request, lane_addresses};
use super::observe::{Observe, Order};
use super::run::Worker;
use crate::decode::program::{CopyAsync, NONE};
use crate::error::Access;
use crate::lanes::{LANES, Plane, Word, predicate};

impl<O: Observe> Worker<'_, O> {
    /// The copy is done when it is issued; that a program must not count on it is the sanitizer's business.
    #[inline(always)]
    pub fn copy_async(
        &mut self,
        planes: &mut [Plane],
        nearby: &mut Nearby<'_>,
        copy: &CopyAsync,
        active: u32,
    ) -> Outcome<()> {
        let mut from = lane_addresses(planes, &copy.source);
        let mut to = lane_addresses(planes, &copy.destination);
        let ignored = copy.ignore.map_or(0, |(slot, negated)| predicate(planes, slot, negated));
        self.check_alignment(&to, active, copy.bytes, Access::Write)?;
        let mut values = [0u128; LANES];
        // Lanes that read nothing do not touch their source.
        let read_bytes: [u32; LANES] = std::array::from_fn(|lane| {
            let wanted = if copy.source_bytes == NONE {
                copy.bytes
            } else {
                u32::view(planes, copy.source_bytes)[lane].min(copy.bytes)
            };
            if ignored >> lane & 1 != 0 { 0 } else { wanted }
        });
        let lanes_that = |test: &dyn Fn(u32) -> bool| {
            (0..LANES).fold(0, |mask, lane| mask | u32::from(test(read_bytes[lane])) << lane) & active
        };
        let mut remaining = lanes_that(&|bytes| bytes != 0);
        self.check_alignment(&from, remaining, copy.bytes, Access::Read)?;
        while remaining != 0 {
            let length = read_bytes[remaining.trailing_zeros() as usize];
            let same = lanes_that(&|bytes| bytes == length);
            let request = Request::new(copy.source.space, length, Access::Read);
            self.each_lane(nearby, request, &mut from, same, |lane, source| {
                // SAFETY: `length` bytes were checked, at most the 16 of the value.
                unsafe { std::ptr::copy_nonoverlapping(source, (&raw mut values[lane]).cast(), length as usize) };
            })?;
            remaining &= !same;
        }
        let request = Request::new(copy.destination.space, copy.bytes, Access::Write).with_order(Order::Asynchronous);
        self.each_lane(nearby, request, &mut to, active, |lane, target| {
            // SAFETY: `bytes` bytes were checked, at most the 16 of the value.
            unsafe { std::ptr::copy_nonoverlapping((&raw const values[lane]).cast(), target, copy.bytes as usize) };
        })
    }
}
