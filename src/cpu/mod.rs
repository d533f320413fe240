//! The operations on the CPU: one file per operation, named as in `ops`, multi-threaded SIMD.
//!
//! Everything here is generic over [`simd::Vector`] and cut into tasks by the problem's size alone, so the bits of a
//! result depend on the SIMD level but not on the number of threads. Arguments were checked by `ops`; functions here
//! assert only what a bug of ours could break. No state outlives a call except the thread pool and scratch memory.

pub mod activation;
pub mod adamw;
pub mod add;
pub mod attention;
pub mod dropout;
pub mod embedding;
pub mod ffn;
pub mod gated_conv;
pub mod gemm;
pub mod grad_norm;
pub mod key_value_cache;
pub mod layer_norm;
pub mod linear;
pub mod linear_cross_entropy;
pub mod low_rank;
pub mod mean_rows;
pub mod peak;
pub mod pointwise_loss;
pub mod pool;
pub mod relative_bias;
pub mod rotary;
mod rows;
pub mod scale;
pub mod scratch;
pub mod sgd;
pub mod simd;
pub mod softmax_cross_entropy;
pub mod span_cross_entropy;

pub use pool::Pool;
pub use simd::Level;

/// A CPU as a compute device: a thread pool and an instruction set.
pub struct Cpu {
    pool: Pool,
    level: Level,
}

impl Cpu {
    /// All cores, or as many as `ENGINE_THREADS` says; the best instruction set, or what `ENGINE_SIMD` says.
    ///
    /// # Errors
    /// One of the two variables has a value that cannot be followed; the message says what to change.
    pub fn new() -> Result<Self, String> {
        let threads = match std::env::var("ENGINE_THREADS") {
            Err(_) => std::thread::available_parallelism().map_or(1, |n| n.get()),
            Ok(text) => match text.parse::<usize>() {
                Ok(n) if (1..=1024).contains(&n) => n,
                _ => return Err(format!("ENGINE_THREADS is {text:?}: use a number from 1 to 1024, or unset it")),
            },
        };
        Self::with(threads, Level::detect()?)
    }

    /// A device of `threads` threads that uses `level`, which must be one of [`Level::available`].
    ///
    /// # Errors
    /// The machine lacks `level`, or a thread could not be started.
    pub fn with(threads: usize, level: Level) -> Result<Self, String> {
        if !Level::available().contains(&level) {
            return Err(format!("this machine cannot run {} code", level.name()));
        }
        let pool = Pool::new(threads).map_err(|error| format!("cannot start {threads} threads: {error}"))?;
        Ok(Self { pool, level })
    }

    /// The threads that loops run on.
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    /// The instruction set in use.
    pub fn level(&self) -> Level {
        self.level
    }
}

/// A mutable slice that the tasks of one loop write to at disjoint places.
#[derive(Clone, Copy)]
pub struct Disjoint<'a, T> {
    pointer: *mut T,
    length: usize,
    lifetime: std::marker::PhantomData<&'a mut [T]>,
}

// SAFETY: it is a `&mut [T]` split among threads; `get` makes its callers promise that they do not overlap.
unsafe impl<T: Send> Send for Disjoint<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Disjoint<'_, T> {}

impl<'a, T> Disjoint<'a, T> {
    /// Shares `slice` among the tasks of one loop.
    pub fn new(slice: &'a mut [T]) -> Self {
        Self { pointer: slice.as_mut_ptr(), length: slice.len(), lifetime: std::marker::PhantomData }
    }

    /// The part `range`.
    ///
    /// # Safety
    /// No two parts that are alive at the same time may overlap.
    #[inline(always)]
    #[allow(clippy::mut_from_ref)]
    pub unsafe fn get(&self, range: std::ops::Range<usize>) -> &'a mut [T] {
        assert!(range.start <= range.end && range.end <= self.length, "part {range:?} of {}", self.length);
        // SAFETY: in bounds by the assertion, exclusive by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.pointer.add(range.start), range.end - range.start) }
    }

    /// Start of the slice, for kernels that address it with strides.
    ///
    /// Writing through it is subject to the same rule as [`Disjoint::get`].
    #[inline(always)]
    pub fn as_ptr(&self) -> *mut T {
        self.pointer
    }

    /// Length of the whole slice.
    #[inline(always)]
    pub fn len(&self) -> usize {
        self.length
    }

    /// True where the slice has no elements.
    #[inline(always)]
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }
}
