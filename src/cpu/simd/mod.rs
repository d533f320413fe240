//! SIMD in one place: a small vector trait, its implementations, and run-time dispatch.
//!
//! Every numeric loop of the CPU backend is written once, generic over [`Vector`]. [`Level::run`] then calls it
//! through a function compiled for the instruction set that the machine has:
//!
//! ```text
//!   struct Scale<'a> { x: &'a mut [f32], by: f32 }
//!   impl Kernel for Scale<'_> {
//!       type Output = ();
//!       #[inline(always)]
//!       fn run<V: Vector>(self) { ... V::load(..) ... }
//!   }
//!   level.run(Scale { x, by });        // -> run::<Avx512>, run::<Avx2> or run::<Portable>
//! ```
//!
//! Two rules make that fast, and breaking either costs a factor of ten without any error:
//! 1. Everything that a kernel calls with a `V` must be `#[inline(always)]`, or it is compiled without the instruction
//!    set and each intrinsic becomes a call.
//! 2. Closures handed to the thread pool are compiled without it as well. So: split over threads first, dispatch
//!    inside each task.
//!
//! The bits of a result may differ between levels (lane counts and fused operations differ), never between runs or
//! thread counts at one level.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
pub mod math;
pub mod philox;
mod portable;
#[cfg(test)]
mod tests;
pub mod turn;

#[cfg(target_arch = "x86_64")]
pub use avx2::Avx2;
#[cfg(target_arch = "x86_64")]
pub use avx512::Avx512;
pub use portable::Portable;

/// A vector of `f32` lanes: the whole vocabulary that the CPU kernels are written in.
///
/// # Safety
/// Methods other than the pointer ones are safe to call only where the implementing instruction set exists;
/// [`Level::run`] is what guarantees that. Pointers need no alignment.
pub trait Vector: Copy {
    /// Number of `f32` lanes.
    const LANES: usize;
    /// Number of architectural vector registers, which bounds the tile of a register-blocked kernel.
    const REGISTERS: usize;
    /// Integer vector with as many 32-bit lanes.
    type Int: Copy;
    /// One truth value per lane.
    type Mask: Copy;

    /// All lanes equal to `value`.
    fn splat(value: f32) -> Self;
    /// All lanes zero.
    #[inline(always)]
    fn zero() -> Self {
        Self::splat(0.0)
    }
    /// Reads `LANES` values.
    ///
    /// # Safety
    /// `pointer` must be valid for reads of `LANES` values.
    unsafe fn load(pointer: *const f32) -> Self;
    /// Reads the first `count <= LANES` values; the other lanes are zero and their memory is not touched.
    ///
    /// # Safety
    /// `pointer` must be valid for reads of `count` values.
    unsafe fn load_partial(pointer: *const f32, count: usize) -> Self;
    /// Reads `min(count, LANES)` values; the other lanes are zero. For loops whose last vector is not full.
    ///
    /// # Safety
    /// `pointer` must be valid for reads of `min(count, LANES)` values.
    #[inline(always)]
    unsafe fn load_up_to(pointer: *const f32, count: usize) -> Self {
        // SAFETY: the caller's contract.
        unsafe { if count >= Self::LANES { Self::load(pointer) } else { Self::load_partial(pointer, count) } }
    }
    /// Reads `LANES / 8` values, which is one or two, and repeats them over all lanes.
    ///
    /// # Safety
    /// `pointer` must be valid for reads of `LANES / 8` values.
    #[inline(always)]
    unsafe fn load_repeated(pointer: *const f32) -> Self {
        const { assert!(Self::LANES == 8) };
        // SAFETY: the caller's contract.
        Self::splat(unsafe { *pointer })
    }
    /// Asks for the cache line at `pointer` ahead of its use. Any address will do: it is not accessed.
    #[inline(always)]
    fn prefetch(_pointer: *const f32) {}
    /// Writes `LANES` values.
    ///
    /// # Safety
    /// `pointer` must be valid for writes of `LANES` values.
    unsafe fn store(self, pointer: *mut f32);
    /// Writes the first `count <= LANES` lanes; memory behind them is not touched.
    ///
    /// # Safety
    /// `pointer` must be valid for writes of `count` values.
    unsafe fn store_partial(self, pointer: *mut f32, count: usize);
    /// Writes the first `min(count, LANES)` lanes. For loops whose last vector is not full.
    ///
    /// # Safety
    /// `pointer` must be valid for writes of `min(count, LANES)` values.
    #[inline(always)]
    unsafe fn store_up_to(self, pointer: *mut f32, count: usize) {
        // SAFETY: the caller's contract.
        unsafe { if count >= Self::LANES { self.store(pointer) } else { self.store_partial(pointer, count) } }
    }
    /// Writes `LANES` values past the caches where the machine can; for data that is not read again soon. Such writes
    /// are ordered by nothing but [`Vector::streaming_fence`], which the task that makes them must end with.
    ///
    /// # Safety
    /// `pointer` must be valid for writes of `LANES` values and aligned to `4 * LANES` bytes.
    unsafe fn store_streaming(self, pointer: *mut f32);
    /// Makes all streaming stores of this thread visible before anything that it writes later.
    #[inline(always)]
    fn streaming_fence() {}

    fn add(self, other: Self) -> Self;
    fn sub(self, other: Self) -> Self;
    fn mul(self, other: Self) -> Self;
    fn div(self, other: Self) -> Self;
    /// `self * a + b`, rounded once where the machine fuses.
    fn mul_add(self, a: Self, b: Self) -> Self;
    /// `b - self * a`, rounded once where the machine fuses.
    fn neg_mul_add(self, a: Self, b: Self) -> Self;
    /// Lane-wise `if self < other { self } else { other }`: a NaN in either gives `other`.
    fn min(self, other: Self) -> Self;
    /// Lane-wise `if self > other { self } else { other }`: a NaN in either gives `other`.
    fn max(self, other: Self) -> Self;
    fn sqrt(self) -> Self;
    fn abs(self) -> Self;
    /// Nearest integer, ties to even.
    fn round(self) -> Self;

    /// Sum of all lanes, in a fixed order (halves are added until one lane is left).
    fn reduce_add(self) -> f32;
    /// Largest lane.
    fn reduce_max(self) -> f32;

    fn less(self, other: Self) -> Self::Mask;
    /// Per lane `if mask { a } else { b }`.
    fn select(mask: Self::Mask, a: Self, b: Self) -> Self;
    /// Lanes `0..count` true, the others false.
    fn first_lanes(count: usize) -> Self::Mask;

    /// Nearest integer of each lane; the lane must fit an `i32`.
    fn to_int(self) -> Self::Int;
    fn from_int(value: Self::Int) -> Self;
    fn int_splat(value: i32) -> Self::Int;
    /// Reads `LANES` integers.
    ///
    /// # Safety
    /// `pointer` must be valid for reads of `LANES` integers.
    #[inline(always)]
    unsafe fn int_load(pointer: *const i32) -> Self::Int {
        // SAFETY: the caller's contract; a load moves bits whatever they mean.
        unsafe { Self::load(pointer.cast()).to_bits() }
    }
    /// Wraps around on overflow.
    fn int_add(a: Self::Int, b: Self::Int) -> Self::Int;
    fn int_and(a: Self::Int, b: Self::Int) -> Self::Int;
    fn int_xor(a: Self::Int, b: Self::Int) -> Self::Int;
    /// Low and high halves of the 64-bit products of lanes taken as unsigned.
    fn int_multiply_wide(a: Self::Int, b: Self::Int) -> (Self::Int, Self::Int);
    /// Per lane `a < b`, both taken as unsigned.
    fn int_less_unsigned(a: Self::Int, b: Self::Int) -> Self::Mask;
    fn int_shift_left<const N: i32>(a: Self::Int) -> Self::Int;
    /// Logical shift right.
    fn int_shift_right<const N: i32>(a: Self::Int) -> Self::Int;
    /// The lanes' bits, unchanged, as integers.
    fn to_bits(self) -> Self::Int;
    /// The lanes' bits, unchanged, as floats.
    fn from_bits(value: Self::Int) -> Self;

    /// Transposes a `LANES x LANES` tile of `f32`: row `i` of the source starts at `source + i * source_stride`.
    ///
    /// # Safety
    /// `source` must be valid for reads of `LANES` rows of `LANES` values, `target` likewise for writes.
    unsafe fn transpose(source: *const f32, source_stride: usize, target: *mut f32, target_stride: usize);
}

/// A computation that is generic over the vector type; see the module's documentation.
pub trait Kernel {
    type Output;
    /// Must be `#[inline(always)]` in every implementation.
    fn run<V: Vector>(self) -> Self::Output;
}

/// An instruction set that kernels are compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Plain Rust that LLVM vectorises for whatever the target has.
    Portable,
    /// AVX2 with FMA: 8 lanes, 16 registers.
    Avx2,
    /// AVX-512 F/BW/DQ/VL: 16 lanes, 32 registers.
    Avx512,
}

impl Level {
    /// Every level that this machine can run, lowest first.
    pub fn available() -> Vec<Level> {
        let mut levels = vec![Level::Portable];
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                levels.push(Level::Avx2);
                if is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
                {
                    levels.push(Level::Avx512);
                }
            }
        }
        levels
    }

    /// The highest available level, or the one that `ENGINE_SIMD` names.
    ///
    /// # Errors
    /// `ENGINE_SIMD` names an unknown level, or one that this machine cannot run.
    pub fn detect() -> Result<Level, String> {
        let available = Level::available();
        let best = *available.last().expect("portable is always available");
        let Some(wanted) = std::env::var_os("ENGINE_SIMD").filter(|v| !v.is_empty()) else {
            return Ok(best);
        };
        let wanted = wanted.to_string_lossy().into_owned();
        let level = match wanted.as_str() {
            "portable" => Level::Portable,
            "avx2" => Level::Avx2,
            "avx512" => Level::Avx512,
            _ => {
                return Err(format!("ENGINE_SIMD is {wanted:?}: use portable, avx2 or avx512, or unset it"));
            }
        };
        if available.contains(&level) {
            Ok(level)
        } else {
            Err(format!("ENGINE_SIMD asks for {wanted}, which this machine lacks: the highest here is {}", best.name()))
        }
    }

    /// The name that `ENGINE_SIMD` takes.
    pub fn name(self) -> &'static str {
        match self {
            Level::Portable => "portable",
            Level::Avx2 => "avx2",
            Level::Avx512 => "avx512",
        }
    }

    /// Number of `f32` lanes of this level's vectors.
    pub fn lanes(self) -> usize {
        match self {
            Level::Portable => Portable::LANES,
            Level::Avx2 => 8,
            Level::Avx512 => 16,
        }
    }

    /// Runs `kernel` with this level's vector type.
    #[inline]
    pub fn run<K: Kernel>(self, kernel: K) -> K::Output {
        match self {
            Level::Portable => kernel.run::<Portable>(),
            // SAFETY: a `Level` above portable is only made by `available`/`detect`, which asked the CPU.
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => unsafe { run_avx2(kernel) },
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => unsafe { run_avx512(kernel) },
            #[cfg(not(target_arch = "x86_64"))]
            _ => unreachable!("only x86-64 has levels above portable"),
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn run_avx2<K: Kernel>(kernel: K) -> K::Output {
    kernel.run::<Avx2>()
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
fn run_avx512<K: Kernel>(kernel: K) -> K::Output {
    kernel.run::<Avx512>()
}
