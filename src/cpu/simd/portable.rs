//! [`Vector`] in plain Rust: arrays that LLVM turns into whatever the target has (SSE2, NEON, nothing).
//!
//! `mul_add` multiplies and adds with two roundings: a fused one without hardware support is a library call.

use super::Vector;

const N: usize = 8;

/// Eight `f32` lanes in an array.
#[derive(Clone, Copy)]
#[repr(align(32))]
pub struct Portable([f32; N]);

impl Portable {
    #[inline(always)]
    fn map(self, f: impl Fn(f32) -> f32) -> Self {
        let mut out = self.0;
        for value in &mut out {
            *value = f(*value);
        }
        Self(out)
    }
    #[inline(always)]
    fn zip(self, other: Self, f: impl Fn(f32, f32) -> f32) -> Self {
        let mut out = self.0;
        for (value, o) in out.iter_mut().zip(other.0) {
            *value = f(*value, o);
        }
        Self(out)
    }
    #[inline(always)]
    fn fold(self, f: impl Fn(f32, f32) -> f32) -> f32 {
        let v = self.0;
        let four = [f(v[0], v[4]), f(v[1], v[5]), f(v[2], v[6]), f(v[3], v[7])];
        f(f(four[0], four[2]), f(four[1], four[3]))
    }
}

#[inline(always)]
fn map_int(a: [i32; N], f: impl Fn(i32) -> i32) -> [i32; N] {
    let mut out = a;
    for value in &mut out {
        *value = f(*value);
    }
    out
}

impl Vector for Portable {
    const LANES: usize = N;
    // SSE2's 16 registers of 4 lanes hold 8 of these.
    const REGISTERS: usize = 8;
    type Int = [i32; N];
    type Mask = [bool; N];

    #[inline(always)]
    fn splat(value: f32) -> Self {
        Self([value; N])
    }
    #[inline(always)]
    unsafe fn load(pointer: *const f32) -> Self {
        // SAFETY: the caller's contract; `[f32; N]` needs no more alignment than f32.
        unsafe { Self(pointer.cast::<[f32; N]>().read_unaligned()) }
    }
    #[inline(always)]
    unsafe fn load_partial(pointer: *const f32, count: usize) -> Self {
        let mut out = [0.0; N];
        // SAFETY: the caller's contract: `count` readable values.
        out[..count].copy_from_slice(unsafe { std::slice::from_raw_parts(pointer, count) });
        Self(out)
    }
    #[inline(always)]
    unsafe fn store(self, pointer: *mut f32) {
        // SAFETY: the caller's contract.
        unsafe { pointer.cast::<[f32; N]>().write_unaligned(self.0) }
    }
    #[inline(always)]
    unsafe fn store_partial(self, pointer: *mut f32, count: usize) {
        // SAFETY: the caller's contract: `count` writable values.
        unsafe { std::slice::from_raw_parts_mut(pointer, count) }.copy_from_slice(&self.0[..count]);
    }
    #[inline(always)]
    unsafe fn store_streaming(self, pointer: *mut f32) {
        // SAFETY: the caller's contract.
        unsafe { self.store(pointer) }
    }
    #[inline(always)]
    fn add(self, other: Self) -> Self {
        self.zip(other, |a, b| a + b)
    }
    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        self.zip(other, |a, b| a - b)
    }
    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        self.zip(other, |a, b| a * b)
    }
    #[inline(always)]
    fn div(self, other: Self) -> Self {
        self.zip(other, |a, b| a / b)
    }
    #[inline(always)]
    fn mul_add(self, a: Self, b: Self) -> Self {
        self.mul(a).add(b)
    }
    #[inline(always)]
    fn neg_mul_add(self, a: Self, b: Self) -> Self {
        b.sub(self.mul(a))
    }
    #[inline(always)]
    fn min(self, other: Self) -> Self {
        self.zip(other, |a, b| if a < b { a } else { b })
    }
    #[inline(always)]
    fn max(self, other: Self) -> Self {
        self.zip(other, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    fn sqrt(self) -> Self {
        self.map(f32::sqrt)
    }
    #[inline(always)]
    fn abs(self) -> Self {
        self.map(f32::abs)
    }
    /// Adds and takes away 2^23, whose last bit is worth one, with the sign of x; from there on floats are integers.
    /// (`round_ties_even` would be a library call for each lane.)
    #[inline(always)]
    fn round(self) -> Self {
        self.map(|x| {
            let unit = 8_388_608f32.copysign(x);
            if x.abs() < 8_388_608.0 { (x + unit) - unit } else { x }
        })
    }
    #[inline(always)]
    fn reduce_add(self) -> f32 {
        self.fold(|a, b| a + b)
    }
    #[inline(always)]
    fn reduce_max(self) -> f32 {
        self.fold(|a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    fn less(self, other: Self) -> Self::Mask {
        std::array::from_fn(|i| self.0[i] < other.0[i])
    }
    #[inline(always)]
    fn select(mask: Self::Mask, a: Self, b: Self) -> Self {
        Self(std::array::from_fn(|i| if mask[i] { a.0[i] } else { b.0[i] }))
    }
    #[inline(always)]
    fn first_lanes(count: usize) -> Self::Mask {
        debug_assert!(count <= N);
        std::array::from_fn(|i| i < count)
    }
    #[inline(always)]
    fn to_int(self) -> Self::Int {
        let rounded = self.round();
        std::array::from_fn(|i| {
            let value = rounded.0[i];
            let value = if value.abs() < 2_147_483_648.0 { value } else { 0.0 };
            // SAFETY: a whole number of 31 bits. (`as` would saturate, which LLVM does lane by lane.)
            unsafe { value.to_int_unchecked::<i32>() }
        })
    }
    #[inline(always)]
    fn from_int(value: Self::Int) -> Self {
        Self(std::array::from_fn(|i| value[i] as f32))
    }
    #[inline(always)]
    fn int_splat(value: i32) -> Self::Int {
        [value; N]
    }
    #[inline(always)]
    fn int_add(a: Self::Int, b: Self::Int) -> Self::Int {
        std::array::from_fn(|i| a[i].wrapping_add(b[i]))
    }
    #[inline(always)]
    fn int_and(a: Self::Int, b: Self::Int) -> Self::Int {
        std::array::from_fn(|i| a[i] & b[i])
    }
    #[inline(always)]
    fn int_xor(a: Self::Int, b: Self::Int) -> Self::Int {
        std::array::from_fn(|i| a[i] ^ b[i])
    }
    #[inline(always)]
    fn int_multiply_wide(a: Self::Int, b: Self::Int) -> (Self::Int, Self::Int) {
        let wide: [u64; N] = std::array::from_fn(|i| u64::from(a[i] as u32) * u64::from(b[i] as u32));
        (wide.map(|product| product as u32 as i32), wide.map(|product| (product >> 32) as u32 as i32))
    }
    #[inline(always)]
    fn int_less_unsigned(a: Self::Int, b: Self::Int) -> Self::Mask {
        std::array::from_fn(|i| (a[i] as u32) < b[i] as u32)
    }
    #[inline(always)]
    fn int_shift_left<const S: i32>(a: Self::Int) -> Self::Int {
        map_int(a, |v| ((v as u32) << S) as i32)
    }
    #[inline(always)]
    fn int_shift_right<const S: i32>(a: Self::Int) -> Self::Int {
        map_int(a, |v| ((v as u32) >> S) as i32)
    }
    #[inline(always)]
    fn to_bits(self) -> Self::Int {
        std::array::from_fn(|i| self.0[i].to_bits() as i32)
    }
    #[inline(always)]
    fn from_bits(value: Self::Int) -> Self {
        Self(std::array::from_fn(|i| f32::from_bits(value[i] as u32)))
    }
    #[inline(always)]
    unsafe fn transpose(source: *const f32, source_stride: usize, target: *mut f32, target_stride: usize) {
        for i in 0..N {
            for j in 0..N {
                // SAFETY: the caller's contract covers both N x N tiles.
                unsafe { *target.add(j * target_stride + i) = *source.add(i * source_stride + j) };
            }
        }
    }
}
