//! Hints to the memory system. The address need not be valid: a hint never faults.

/// Asks for the cache line at `pointer`, into all caches.
#[inline(always)]
pub fn prefetch_l1(pointer: *const f32) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a hint, and part of SSE, which every x86-64 has.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(pointer.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = pointer;
}

/// Asks for the cache line at `pointer`, into L2 and what lies behind it.
#[inline(always)]
pub fn prefetch_l2(pointer: *const f32) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: as above.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T1>(pointer.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = pointer;
}

/// Asks for the cache line at `pointer`, which will be used once: it goes past the outer caches, so that it displaces
/// nothing there and they need not be searched for room.
#[inline(always)]
pub fn prefetch_once(pointer: *const f32) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: as above.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_NTA, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_NTA>(pointer.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = pointer;
}
