//! [`Vector`] on AVX2 with FMA: 8 lanes, 16 registers.

use super::Vector;
use std::arch::x86_64::*;

/// Eight `f32` lanes.
#[derive(Clone, Copy)]
pub struct Avx2(__m256);

/// `MASKS[8 - n ..]` starts with `n` all-ones lanes: masks for partial loads without a branch.
static MASKS: [i32; 16] = [-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0];

// SAFETY (whole file): `Level::run` calls these only where the CPU has the instructions; pointer contracts are the
// trait's.
impl Vector for Avx2 {
    const LANES: usize = 8;
    const REGISTERS: usize = 16;
    type Int = __m256i;
    type Mask = __m256;

    #[inline(always)]
    fn splat(value: f32) -> Self {
        unsafe { Self(_mm256_set1_ps(value)) }
    }
    #[inline(always)]
    unsafe fn load(pointer: *const f32) -> Self {
        unsafe { Self(_mm256_loadu_ps(pointer)) }
    }
    #[inline(always)]
    unsafe fn load_partial(pointer: *const f32, count: usize) -> Self {
        unsafe { Self(_mm256_maskload_ps(pointer, _mm256_castps_si256(Self::first_lanes(count)))) }
    }
    #[inline(always)]
    fn prefetch(pointer: *const f32) {
        unsafe { _mm_prefetch::<_MM_HINT_T0>(pointer.cast()) }
    }
    #[inline(always)]
    unsafe fn store(self, pointer: *mut f32) {
        unsafe { _mm256_storeu_ps(pointer, self.0) }
    }
    #[inline(always)]
    unsafe fn store_partial(self, pointer: *mut f32, count: usize) {
        // maskstore is microcoded (18 or more operations) on Zen 2 to Zen 4, so full vectors avoid it.
        if count == 8 {
            unsafe { self.store(pointer) }
        } else {
            unsafe { _mm256_maskstore_ps(pointer, _mm256_castps_si256(Self::first_lanes(count)), self.0) }
        }
    }
    #[inline(always)]
    unsafe fn store_streaming(self, pointer: *mut f32) {
        unsafe { _mm256_stream_ps(pointer, self.0) }
    }
    #[inline(always)]
    fn streaming_fence() {
        unsafe { _mm_sfence() }
    }
    #[inline(always)]
    fn add(self, other: Self) -> Self {
        unsafe { Self(_mm256_add_ps(self.0, other.0)) }
    }
    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        unsafe { Self(_mm256_sub_ps(self.0, other.0)) }
    }
    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        unsafe { Self(_mm256_mul_ps(self.0, other.0)) }
    }
    #[inline(always)]
    fn div(self, other: Self) -> Self {
        unsafe { Self(_mm256_div_ps(self.0, other.0)) }
    }
    #[inline(always)]
    fn mul_add(self, a: Self, b: Self) -> Self {
        unsafe { Self(_mm256_fmadd_ps(self.0, a.0, b.0)) }
    }
    #[inline(always)]
    fn neg_mul_add(self, a: Self, b: Self) -> Self {
        unsafe { Self(_mm256_fnmadd_ps(self.0, a.0, b.0)) }
    }
    #[inline(always)]
    fn min(self, other: Self) -> Self {
        unsafe { Self(_mm256_min_ps(self.0, other.0)) }
    }
    #[inline(always)]
    fn max(self, other: Self) -> Self {
        unsafe { Self(_mm256_max_ps(self.0, other.0)) }
    }
    #[inline(always)]
    fn sqrt(self) -> Self {
        unsafe { Self(_mm256_sqrt_ps(self.0)) }
    }
    #[inline(always)]
    fn abs(self) -> Self {
        unsafe { Self(_mm256_andnot_ps(_mm256_set1_ps(-0.0), self.0)) }
    }
    #[inline(always)]
    fn round(self) -> Self {
        unsafe { Self(_mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(self.0)) }
    }
    #[inline(always)]
    fn reduce_add(self) -> f32 {
        unsafe {
            let four = _mm_add_ps(_mm256_castps256_ps128(self.0), _mm256_extractf128_ps::<1>(self.0));
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps::<1>(two, two)))
        }
    }
    #[inline(always)]
    fn reduce_max(self) -> f32 {
        unsafe {
            let four = _mm_max_ps(_mm256_castps256_ps128(self.0), _mm256_extractf128_ps::<1>(self.0));
            let two = _mm_max_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_max_ss(two, _mm_shuffle_ps::<1>(two, two)))
        }
    }
    #[inline(always)]
    fn less(self, other: Self) -> Self::Mask {
        unsafe { _mm256_cmp_ps::<_CMP_LT_OQ>(self.0, other.0) }
    }
    #[inline(always)]
    fn select(mask: Self::Mask, a: Self, b: Self) -> Self {
        unsafe { Self(_mm256_blendv_ps(b.0, a.0, mask)) }
    }
    #[inline(always)]
    fn first_lanes(count: usize) -> Self::Mask {
        debug_assert!(count <= 8);
        unsafe { _mm256_castsi256_ps(_mm256_loadu_si256(MASKS.as_ptr().add(8 - count).cast())) }
    }
    #[inline(always)]
    fn to_int(self) -> Self::Int {
        unsafe { _mm256_cvtps_epi32(self.0) }
    }
    #[inline(always)]
    fn from_int(value: Self::Int) -> Self {
        unsafe { Self(_mm256_cvtepi32_ps(value)) }
    }
    #[inline(always)]
    fn int_splat(value: i32) -> Self::Int {
        unsafe { _mm256_set1_epi32(value) }
    }
    #[inline(always)]
    fn int_add(a: Self::Int, b: Self::Int) -> Self::Int {
        unsafe { _mm256_add_epi32(a, b) }
    }
    #[inline(always)]
    fn int_and(a: Self::Int, b: Self::Int) -> Self::Int {
        unsafe { _mm256_and_si256(a, b) }
    }
    #[inline(always)]
    fn int_xor(a: Self::Int, b: Self::Int) -> Self::Int {
        unsafe { _mm256_xor_si256(a, b) }
    }
    /// The instruction multiplies even lanes only, so the odd ones are shifted down, and both are put together again.
    #[inline(always)]
    fn int_multiply_wide(a: Self::Int, b: Self::Int) -> (Self::Int, Self::Int) {
        unsafe {
            let even = _mm256_mul_epu32(a, b);
            let odd = _mm256_mul_epu32(_mm256_srli_epi64::<32>(a), _mm256_srli_epi64::<32>(b));
            let low = _mm256_blend_epi32::<0xAA>(even, _mm256_slli_epi64::<32>(odd));
            let high = _mm256_blend_epi32::<0xAA>(_mm256_srli_epi64::<32>(even), odd);
            (low, high)
        }
    }
    /// There is a signed comparison only; moving both by 2^31 keeps the order.
    #[inline(always)]
    fn int_less_unsigned(a: Self::Int, b: Self::Int) -> Self::Mask {
        unsafe {
            let half = _mm256_set1_epi32(i32::MIN);
            _mm256_castsi256_ps(_mm256_cmpgt_epi32(_mm256_xor_si256(b, half), _mm256_xor_si256(a, half)))
        }
    }
    #[inline(always)]
    fn int_shift_left<const N: i32>(a: Self::Int) -> Self::Int {
        unsafe { _mm256_slli_epi32::<N>(a) }
    }
    #[inline(always)]
    fn int_shift_right<const N: i32>(a: Self::Int) -> Self::Int {
        unsafe { _mm256_srli_epi32::<N>(a) }
    }
    #[inline(always)]
    fn to_bits(self) -> Self::Int {
        unsafe { _mm256_castps_si256(self.0) }
    }
    #[inline(always)]
    fn from_bits(value: Self::Int) -> Self {
        unsafe { Self(_mm256_castsi256_ps(value)) }
    }

    /// Three rounds: interleave 32-bit lanes, 64-bit lanes, then 128-bit halves.
    #[inline(always)]
    unsafe fn transpose(source: *const f32, source_stride: usize, target: *mut f32, target_stride: usize) {
        unsafe {
            let mut t = [_mm256_setzero_ps(); 8];
            for g in 0..2 {
                let row = |i: usize| _mm256_loadu_ps(source.add((4 * g + i) * source_stride));
                let (a, b, c, d) = (row(0), row(1), row(2), row(3));
                let (ab_low, ab_high) = (_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
                let (cd_low, cd_high) = (_mm256_unpacklo_ps(c, d), _mm256_unpackhi_ps(c, d));
                t[4 * g] = _mm256_shuffle_ps::<0x44>(ab_low, cd_low);
                t[4 * g + 1] = _mm256_shuffle_ps::<0xEE>(ab_low, cd_low);
                t[4 * g + 2] = _mm256_shuffle_ps::<0x44>(ab_high, cd_high);
                t[4 * g + 3] = _mm256_shuffle_ps::<0xEE>(ab_high, cd_high);
            }
            for j in 0..4 {
                let low = _mm256_permute2f128_ps::<0x20>(t[j], t[4 + j]);
                let high = _mm256_permute2f128_ps::<0x31>(t[j], t[4 + j]);
                _mm256_storeu_ps(target.add(j * target_stride), low);
                _mm256_storeu_ps(target.add((4 + j) * target_stride), high);
            }
        }
    }
}
