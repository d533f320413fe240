//! The heap that kernels allocate from: device-side malloc and free.
//!
//! One allocation of device memory, cut up first fit from where the last one ended, so that freed bytes stay unused as long
//! as others are left and a stale pointer is found. What is allocated lives on from launch to launch, until it is freed or
//! the device goes. Threads of all blocks take turns at one lock.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, MutexGuard};

/// Alignment of what malloc returns.
const ALIGNMENT: u64 = 16;
/// How many freed blocks are remembered, to say that an address was freed.
const FREED_REMEMBERED: usize = 4096;

/// Bytes of the heap unless told otherwise, as CUDA has it.
pub const DEFAULT_HEAP_BYTES: u64 = 8 << 20;

/// A heap within an allocation of device memory.
pub struct Heap {
    start: u64,
    bytes: u64,
    blocks: Mutex<Blocks>,
}

struct Blocks {
    /// Start and size of what is free; neighbours are joined.
    free: BTreeMap<u64, u64>,
    /// Start and size, as asked for, of what is allocated.
    live: BTreeMap<u64, u64>,
    freed: VecDeque<(u64, u64)>,
    cursor: u64,
}

fn granted(bytes: u64) -> u64 {
    bytes.max(1).next_multiple_of(ALIGNMENT)
}

impl Heap {
    pub fn new(start: u64, bytes: u64) -> Self {
        let free = BTreeMap::from([(start, bytes)]);
        let blocks = Blocks { free, live: BTreeMap::new(), freed: VecDeque::new(), cursor: start };
        Self { start, bytes, blocks: Mutex::new(blocks) }
    }

    // Nothing panics while it holds the lock; if something did, the maps would still be whole.
    fn blocks(&self) -> MutexGuard<'_, Blocks> {
        self.blocks.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    pub fn contains(&self, address: u64) -> bool {
        address.wrapping_sub(self.start) < self.bytes
    }

    /// The address of `bytes` bytes; none if they are not left in one piece.
    pub fn allocate(&self, bytes: u64) -> Option<u64> {
        if bytes > self.bytes {
            return None;
        }
        let size = granted(bytes);
        let mut blocks = self.blocks();
        let fits = |(&start, &length): (&u64, &u64)| (length >= size).then_some((start, length));
        let cursor = blocks.cursor;
        let found = blocks.free.range(cursor..).find_map(fits).or_else(|| blocks.free.range(..cursor).find_map(fits));
        let (start, length) = found?;
        blocks.free.remove(&start);
        if length > size {
            blocks.free.insert(start + size, length - size);
        }
        blocks.live.insert(start, bytes);
        blocks.cursor = start + size;
        Some(start)
    }

    /// Frees what was allocated at `address`.
    ///
    /// # Errors
    /// What is there instead.
    pub fn free(&self, address: u64) -> Result<(), String> {
        let mut blocks = self.blocks();
        let Some(bytes) = blocks.live.remove(&address) else {
            return Err(match blocks.freed.iter().rev().find(|(start, _)| *start == address) {
                Some((_, bytes)) => format!("whose {bytes} bytes were freed before"),
                None => "which malloc did not return".into(),
            });
        };
        if blocks.freed.len() == FREED_REMEMBERED {
            blocks.freed.pop_front();
        }
        blocks.freed.push_back((address, bytes));
        let (mut start, mut length) = (address, granted(bytes));
        if let Some(after) = blocks.free.remove(&(start + length)) {
            length += after;
        }
        let before = blocks.free.range(..start).next_back().map(|(&start, &length)| (start, length));
        if let Some((before, size)) = before.filter(|(before, size)| before + size == start) {
            (start, length) = (before, size + length);
        }
        blocks.free.insert(start, length);
        Ok(())
    }

    /// What is wrong with an access of heap bytes: nothing, or where they lie.
    pub fn complaint(&self, address: u64, bytes: u32) -> Option<String> {
        let blocks = self.blocks();
        let end = address + u64::from(bytes);
        let before = blocks.live.range(..=address).next_back();
        if before.is_some_and(|(start, size)| end <= start + size) {
            return None;
        }
        let freed = blocks.freed.iter().rev().find(|(start, size)| address.wrapping_sub(*start) < (*size).max(1));
        Some(match (freed, before) {
            (Some((start, size)), _) => format!("in the {size} bytes at {start:#x} that were freed"),
            (None, Some((start, size))) => {
                let past = end - (start + size);
                format!("{past} bytes past the end of the {size} bytes that malloc returned at {start:#x}")
            }
            (None, None) => "in no block that malloc returned".into(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_apart_and_come_back_when_nothing_else_is_left() {
        let heap = Heap::new(4096, 256);
        let a = heap.allocate(20).unwrap();
        let b = heap.allocate(0).unwrap();
        let c = heap.allocate(100).unwrap();
        assert!(a.is_multiple_of(16) && b >= a + 20 && c > b && heap.contains(c + 99));
        assert_eq!((heap.complaint(a, 16), heap.complaint(c + 96, 4)), (None, None));
        assert!(heap.complaint(a + 16, 8).unwrap().contains("4 bytes past the end of the 20"));
        heap.free(a).unwrap();
        assert!(heap.complaint(a + 4, 4).unwrap().contains("freed"));
        assert!(heap.free(a).unwrap_err().contains("freed before") && heap.free(c + 16).is_err());
        // 96 bytes are left behind c; a's 32 are used only when they do not do.
        let d = heap.allocate(80).unwrap();
        assert!(d > c);
        assert_eq!(heap.allocate(32), Some(a));
        assert_eq!((heap.allocate(64), heap.allocate(u64::MAX)), (None, None));
    }

    #[test]
    fn what_is_freed_grows_together() {
        let heap = Heap::new(1 << 48, 1024);
        let blocks: Vec<u64> = (0..64).map(|_| heap.allocate(16).unwrap()).collect();
        assert_eq!(heap.allocate(1), None);
        blocks.iter().step_by(2).chain(blocks.iter().skip(1).step_by(2)).for_each(|&block| heap.free(block).unwrap());
        assert_eq!(heap.allocate(1024), Some(1 << 48));
    }
}
