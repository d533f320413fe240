//! The load that tiled kernels are made of: a full warp reads one or four words per lane from shared memory.
//!
//! With 32-bit addresses in one known region, all checks are a few operations on 32-bit lanes. Whatever does not fit the
//! pattern, faults included, is left to the general way in `access`.

use crate::decode::program::{AddressSpace, Load, NONE};
use crate::lanes::{LANES, Plane, Word, columns_of};

/// Loads all 32 lanes, or returns false and has done nothing.
#[inline(always)]
pub fn try_load(planes: &mut [Plane], shared: &[u8], load: &Load) -> bool {
    let count = usize::from(load.count);
    let is_plain = load.bytes == 4
        && (count == 1 || count == 4)
        && !load.is_volatile
        && !load.address.is_wide
        && load.address.space == AddressSpace::Shared
        && load.registers[..count].iter().all(|register| register.planes == 1 && register.slot != NONE);
    let bytes = 4 * count as u32;
    let last = (shared.len() as u64).checked_sub(u64::from(bytes)).and_then(|last| i32::try_from(last).ok());
    let (true, Some(last)) = (is_plain, last) else { return false };
    let last = last as u32;
    let base = u32::view(planes, load.address.base);
    let mut places = [0; LANES];
    let (mut low_bits, mut signs) = (0, 0);
    for lane in 0..LANES {
        let place = base[lane].wrapping_add(load.address.offset as u32);
        places[lane] = place;
        low_bits |= place;
        // Negative if the place is, or if it lies behind the last one that fits.
        signs |= place | last.wrapping_sub(place);
    }
    if low_bits & (bytes - 1) != 0 || signs >> 31 != 0 {
        return false;
    }
    let pointer = shared.as_ptr();
    if count == 1 {
        let target = u32::view_mut(planes, load.registers[0].slot);
        for lane in 0..LANES {
            // SAFETY: every place is at most `last`, which leaves room for the bytes of the load.
            target[lane] = unsafe { pointer.add(places[lane] as usize).cast::<u32>().read_unaligned() };
        }
        return true;
    }
    let mut rows = [[0u32; 4]; LANES];
    for lane in 0..LANES {
        // SAFETY: as above.
        rows[lane] = unsafe { pointer.add(places[lane] as usize).cast::<[u32; 4]>().read_unaligned() };
    }
    for (register, column) in load.registers.iter().zip(&columns_of(&rows)) {
        *u32::view_mut(planes, register.slot) = *column;
    }
    true
}
