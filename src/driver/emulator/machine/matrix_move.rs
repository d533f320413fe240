//! ldmatrix and stmatrix: 8x8 matrices of halves between memory and a register each.
//!
//! Lane `8 m + r` names the 16 bytes of row `r` of matrix `m`; lane `4 r + c` of its register holds columns 2c and 2c + 1 of
//! row r. So the plane of a register is the matrix as it lies, row after row.

use super::Outcome;
use super::access::{Nearby, Request, lane_addresses};
use super::observe::Observe;
use super::run::Worker;
use crate::decode::program::MatrixMove;
use crate::error::Access;
use crate::lanes::{LANES, Plane, Word, store_lanes, transpose_halves};

/// Rows of a matrix.
const ROWS: usize = 8;
const ROW_BYTES: u32 = 16;

type Row = [u32; 4];

impl<O: Observe> Worker<'_, O> {
    #[inline(always)]
    pub fn matrix_move(
        &mut self,
        planes: &mut [Plane],
        nearby: &mut Nearby<'_>,
        op: &MatrixMove,
        mask: u32,
    ) -> Outcome<()> {
        let count = usize::from(op.count);
        let row_lanes = u32::MAX >> (LANES - ROWS * count);
        let access = if op.is_store { Access::Write } else { Access::Read };
        let mut addresses = lane_addresses(planes, &op.address);
        self.check_alignment(&addresses, row_lanes, ROW_BYTES, access)?;
        let orient = |words: &[u32; LANES]| if op.is_transposed { transpose_halves(words) } else { *words };
        let mut rows = [[0; 4]; LANES];
        if op.is_store {
            for (rows, &register) in rows.chunks_exact_mut(ROWS).zip(&op.registers[..count]) {
                let matrix: [Row; ROWS] = bytemuck::cast(orient(u32::view(planes, register)));
                rows.copy_from_slice(&matrix);
            }
        }
        let request = Request::new(op.address.space, ROW_BYTES, access);
        self.each_lane(nearby, request, &mut addresses, row_lanes, |lane, pointer| {
            let pointer = pointer.cast::<Row>();
            // SAFETY: these 16 bytes were checked.
            unsafe {
                if op.is_store {
                    pointer.write_unaligned(rows[lane]);
                } else {
                    rows[lane] = pointer.read_unaligned();
                }
            }
        })?;
        if !op.is_store {
            let matrices: &[[u32; LANES]; LANES / ROWS] = bytemuck::cast_ref(&rows);
            for (matrix, &register) in matrices.iter().zip(&op.registers[..count]) {
                store_lanes(planes, register, &orient(matrix), mask);
            }
        }
        Ok(())
    }
}
