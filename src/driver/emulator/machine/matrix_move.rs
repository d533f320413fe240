//! Moves that are more than one register each way: cp.async, ldmatrix and stmatrix.

use super::Outcome;
use super::access::{Nearby, Request, lane_addresses};
use super::observe::{Observe, Order};
use super::run::Worker;
use crate::driver::emulator::decode::program::{CopyAsync, MatrixMove, NONE};
use crate::driver::emulator::error::Access;
use crate::driver::emulator::lanes::{LANES, Plane, Word, predicate, store_lanes};

impl<O: Observe> Worker<'_, O> {
    /// cp.async: done when issued; that a program must not count on it is the sanitizer's business.
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

    /// ldmatrix and stmatrix: lane `8 m + r` names row `r` of matrix `m`; lane `4 r + c` holds columns 2c and 2c+1 of row r.
    pub fn matrix_move(
        &mut self,
        planes: &mut [Plane],
        nearby: &mut Nearby<'_>,
        op: &MatrixMove,
        mask: u32,
    ) -> Outcome<()> {
        let count = usize::from(op.count);
        let rows = 8 * count;
        let row_lanes = if rows == LANES { u32::MAX } else { (1 << rows) - 1 };
        let access = if op.is_store { Access::Write } else { Access::Read };
        let mut addresses = lane_addresses(planes, &op.address);
        self.check_alignment(&addresses, row_lanes, 16, access)?;
        let mut data = [[0u16; 8]; LANES];
        let place = |row: usize, column: usize| if op.is_transposed { (column, row) } else { (row, column) };
        if op.is_store {
            for matrix in 0..count {
                let words = u32::view(planes, op.registers[matrix]);
                for (lane, word) in words.iter().enumerate() {
                    for half in 0..2 {
                        let (row, column) = place(lane / 4, 2 * (lane % 4) + half);
                        data[8 * matrix + row][column] = (word >> (16 * half)) as u16;
                    }
                }
            }
        }
        let request = Request::new(op.address.space, 16, access);
        self.each_lane(nearby, request, &mut addresses, row_lanes, |lane, pointer| {
            let row = pointer.cast::<[u16; 8]>();
            // SAFETY: these 16 bytes were checked.
            unsafe {
                if op.is_store {
                    row.write_unaligned(data[lane]);
                } else {
                    data[lane] = row.read_unaligned();
                }
            }
        })?;
        if !op.is_store {
            for matrix in 0..count {
                let words: [u32; LANES] = std::array::from_fn(|lane| {
                    let half = |half: usize| {
                        let (row, column) = place(lane / 4, 2 * (lane % 4) + half);
                        u32::from(data[8 * matrix + row][column])
                    };
                    half(0) | half(1) << 16
                });
                store_lanes(planes, op.registers[matrix], &words, mask);
            }
        }
        Ok(())
    }
}
