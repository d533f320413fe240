//! Scratch memory of the CPU kernels: one growing, 64-byte aligned buffer per thread and nesting depth, reused for
//! ever, so that a training step allocates nothing.

use std::cell::RefCell;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Bytes that all threads' scratch buffers hold now; part of the memory table of a run.
static HELD_BYTES: AtomicUsize = AtomicUsize::new(0);

/// A cache line, so that a vector of them is aligned for every SIMD level.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([f32; 16]);

struct Buffers(Vec<Vec<Line>>);

impl Drop for Buffers {
    fn drop(&mut self) {
        let lines: usize = self.0.iter().map(Vec::len).sum();
        HELD_BYTES.fetch_sub(lines * size_of::<Line>(), Ordering::Relaxed);
    }
}

thread_local! {
    static FREE: RefCell<Buffers> = const { RefCell::new(Buffers(Vec::new())) };
}

/// Calls `body` with `length` floats of scratch memory, aligned to 64 bytes, contents unspecified. May be nested.
pub fn with<R>(length: usize, body: impl FnOnce(&mut [f32]) -> R) -> R {
    let mut buffer = FREE.with_borrow_mut(|free| free.0.pop()).unwrap_or_default();
    let lines = length.div_ceil(16);
    if buffer.len() < lines {
        HELD_BYTES.fetch_add((lines - buffer.len()) * size_of::<Line>(), Ordering::Relaxed);
        // A new vector rather than `resize`: the old contents need not be copied.
        buffer = vec![Line([0.0; 16]); lines];
    }
    // SAFETY: `lines * 16 >= length` initialised floats, exclusively ours until the call returns.
    let floats = unsafe { std::slice::from_raw_parts_mut(buffer.as_mut_ptr().cast::<f32>(), length) };
    let result = body(floats);
    FREE.with_borrow_mut(|free| free.0.push(buffer));
    result
}

/// Bytes that all threads' scratch buffers hold now.
pub fn held_bytes() -> usize {
    HELD_BYTES.load(Ordering::Relaxed)
}
