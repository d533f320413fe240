//! Memory of the device that a program runs on: allocated once, zeroed, never moved.

use crate::ops::{View, ViewMut};
use memmap2::MmapMut;
use std::ops::Range;
use std::ptr::NonNull;

/// Every allocation and every buffer inside one starts on a cache line.
pub(crate) const ALIGNMENT: usize = 64;

/// From this size on an allocation asks for huge pages: a product that walks a matrix by columns touches a page a row,
/// and 4 KiB pages would miss the TLB every time.
const HUGE_FROM_BYTES: usize = 4 << 20;
const HUGE_BYTES: usize = 2 << 20;

/// Gives the empty block an aligned address.
#[repr(align(64))]
struct Line;

/// The machine would not give the memory.
#[derive(Debug, thiserror::Error)]
#[error("cannot allocate {bytes} bytes for {what}")]
pub struct OutOfMemory {
    /// What the memory was for.
    pub what: String,
    /// How much was asked for.
    pub bytes: usize,
}

/// A fixed block of memory, zeroed when made.
///
/// Views are handed out through a shared reference: the program that owns the block knows which of its ranges are
/// alive when, and that is what makes each view exclusive.
pub(crate) struct Memory {
    start: NonNull<u8>,
    bytes: usize,
    /// Keeps the pages; `start` lies inside.
    _pages: Option<MmapMut>,
}

// SAFETY: plain memory; who reads and writes it when is the owner's business (see `view_mut`).
unsafe impl Send for Memory {}
// SAFETY: as above.
unsafe impl Sync for Memory {}

impl Memory {
    pub(crate) fn allocate(what: &str, bytes: usize) -> Result<Self, OutOfMemory> {
        let out_of_memory = || OutOfMemory { what: what.to_owned(), bytes };
        if bytes == 0 {
            return Ok(Self { start: NonNull::<Line>::dangling().cast(), bytes, _pages: None });
        }
        // Fresh pages rather than the allocator: they are zero without being touched, and can still become huge.
        let length = bytes.checked_add(HUGE_BYTES).ok_or_else(out_of_memory)?;
        let mut pages = MmapMut::map_anon(length).map_err(|_| out_of_memory())?;
        #[cfg(target_os = "linux")]
        if bytes >= HUGE_FROM_BYTES {
            // Only advice: without huge pages everything works, more slowly.
            let _ = pages.advise(memmap2::Advice::HugePage);
        }
        let offset = pages.as_ptr().align_offset(HUGE_BYTES);
        // SAFETY: `offset < HUGE_BYTES`, so `bytes` more fit into the mapping.
        let start = unsafe { NonNull::new_unchecked(pages.as_mut_ptr().add(offset)) };
        Ok(Self { start, bytes, _pages: Some(pages) })
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    fn address<T>(&self, range: &Range<usize>) -> *mut T {
        assert!(range.start <= range.end && range.end <= self.bytes, "bytes {range:?} of {}", self.bytes);
        assert!(range.start.is_multiple_of(size_of::<T>()), "elements at byte {}", range.start);
        // SAFETY: in bounds by the assertion.
        unsafe { self.start.as_ptr().add(range.start).cast() }
    }

    /// The elements in the byte range.
    ///
    /// # Safety
    /// Nobody may write to the range while the view is alive.
    pub(crate) unsafe fn view<T: bytemuck::Pod>(&self, range: Range<usize>) -> View<'_, T> {
        // SAFETY: in bounds and aligned by `address`, initialised (zeroed at first), unwritten by the caller's promise.
        unsafe { View::from_raw(self.address(&range), range.len() / size_of::<T>()) }
    }

    /// The elements in the byte range, to write.
    ///
    /// # Safety
    /// Nobody else may use the range while the view is alive.
    pub(crate) unsafe fn view_mut<T: bytemuck::Pod>(&self, range: Range<usize>) -> ViewMut<'_, T> {
        // SAFETY: in bounds and aligned by `address`, exclusive by the caller's promise.
        unsafe { ViewMut::from_raw(self.address(&range), range.len() / size_of::<T>()) }
    }
}
