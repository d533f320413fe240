//! [`Vector`] on AVX-512 (F, BW, DQ, VL): 16 lanes, 32 registers, true per-lane masks.

use super::Vector;
use std::arch::x86_64::*;

/// Sixteen `f32` lanes.
#[derive(Clone, Copy)]
pub struct Avx512(__m512);

// SAFETY (whole file): `Level::run` calls these only where the CPU has the instructions; pointer contracts are the
// trait's.
impl Vector for Avx512 {
    const LANES: usize = 16;
    const REGISTERS: usize = 32;
    type Int = __m512i;
    type Mask = __mmask16;

    #[inline(always)]
    fn splat(value: f32) -> Self {
        unsafe { Self(_mm512_set1_ps(value)) }
    }
    #[inline(always)]
    unsafe fn load(pointer: *const f32) -> Self {
        unsafe { Self(_mm512_loadu_ps(pointer)) }
    }
    #[inline(always)]
    unsafe fn load_partial(pointer: *const f32, count: usize) -> Self {
        unsafe { Self(_mm512_maskz_loadu_ps(Self::first_lanes(count), pointer)) }
    }
    #[inline(always)]
    unsafe fn load_repeated(pointer: *const f32) -> Self {
        // Moved as the bits of one f64, which nothing computes with.
        unsafe { Self(_mm512_castpd_ps(_mm512_set1_pd(pointer.cast::<f64>().read_unaligned()))) }
    }
    #[inline(always)]
    fn prefetch(pointer: *const f32) {
        unsafe { _mm_prefetch::<_MM_HINT_T0>(pointer.cast()) }
    }
    #[inline(always)]
    unsafe fn store(self, pointer: *mut f32) {
        unsafe { _mm512_storeu_ps(pointer, self.0) }
    }
    #[inline(always)]
    unsafe fn store_partial(self, pointer: *mut f32, count: usize) {
        unsafe { _mm512_mask_storeu_ps(pointer, Self::first_lanes(count), self.0) }
    }
    #[inline(always)]
    unsafe fn store_streaming(self, pointer: *mut f32) {
        unsafe { _mm512_stream_ps(pointer, self.0) }
    }
    #[inline(always)]
    fn streaming_fence() {
        unsafe { _mm_sfence() }
    }
    #[inline(always)]
    fn add(self, other: Self) -> Self {
        unsafe { Self(_mm512_add_ps(self.0, other.0)) }
    }
    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        unsafe { Self(_mm512_sub_ps(self.0, other.0)) }
    }
    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        unsafe { Self(_mm512_mul_ps(self.0, other.0)) }
    }
    #[inline(always)]
    fn div(self, other: Self) -> Self {
        unsafe { Self(_mm512_div_ps(self.0, other.0)) }
    }
    #[inline(always)]
    fn mul_add(self, a: Self, b: Self) -> Self {
        unsafe { Self(_mm512_fmadd_ps(self.0, a.0, b.0)) }
    }
    #[inline(always)]
    fn neg_mul_add(self, a: Self, b: Self) -> Self {
        unsafe { Self(_mm512_fnmadd_ps(self.0, a.0, b.0)) }
    }
    #[inline(always)]
    fn min(self, other: Self) -> Self {
        unsafe { Self(_mm512_min_ps(self.0, other.0)) }
    }
    #[inline(always)]
    fn max(self, other: Self) -> Self {
        unsafe { Self(_mm512_max_ps(self.0, other.0)) }
    }
    #[inline(always)]
    fn sqrt(self) -> Self {
        unsafe { Self(_mm512_sqrt_ps(self.0)) }
    }
    #[inline(always)]
    fn abs(self) -> Self {
        unsafe { Self(_mm512_abs_ps(self.0)) }
    }
    #[inline(always)]
    fn round(self) -> Self {
        unsafe { Self(_mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(self.0)) }
    }
    #[inline(always)]
    fn reduce_add(self) -> f32 {
        unsafe { _mm512_reduce_add_ps(self.0) }
    }
    #[inline(always)]
    fn reduce_max(self) -> f32 {
        unsafe { _mm512_reduce_max_ps(self.0) }
    }
    #[inline(always)]
    fn less(self, other: Self) -> Self::Mask {
        unsafe { _mm512_cmp_ps_mask::<_CMP_LT_OQ>(self.0, other.0) }
    }
    #[inline(always)]
    fn select(mask: Self::Mask, a: Self, b: Self) -> Self {
        unsafe { Self(_mm512_mask_blend_ps(mask, b.0, a.0)) }
    }
    #[inline(always)]
    fn first_lanes(count: usize) -> Self::Mask {
        debug_assert!(count <= 16);
        ((1u32 << count) - 1) as u16
    }
    #[inline(always)]
    fn to_int(self) -> Self::Int {
        unsafe { _mm512_cvtps_epi32(self.0) }
    }
    #[inline(always)]
    fn from_int(value: Self::Int) -> Self {
        unsafe { Self(_mm512_cvtepi32_ps(value)) }
    }
    #[inline(always)]
    fn int_splat(value: i32) -> Self::Int {
        unsafe { _mm512_set1_epi32(value) }
    }
    #[inline(always)]
    fn int_add(a: Self::Int, b: Self::Int) -> Self::Int {
        unsafe { _mm512_add_epi32(a, b) }
    }
    #[inline(always)]
    fn int_and(a: Self::Int, b: Self::Int) -> Self::Int {
        unsafe { _mm512_and_si512(a, b) }
    }
    #[inline(always)]
    fn int_xor(a: Self::Int, b: Self::Int) -> Self::Int {
        unsafe { _mm512_xor_si512(a, b) }
    }
    /// The instruction multiplies even lanes only, so the odd ones are shifted down, and both are put together again.
    #[inline(always)]
    fn int_multiply_wide(a: Self::Int, b: Self::Int) -> (Self::Int, Self::Int) {
        unsafe {
            let even = _mm512_mul_epu32(a, b);
            let odd = _mm512_mul_epu32(_mm512_srli_epi64::<32>(a), _mm512_srli_epi64::<32>(b));
            let low = _mm512_mask_blend_epi32(0xAAAA, even, _mm512_slli_epi64::<32>(odd));
            let high = _mm512_mask_blend_epi32(0xAAAA, _mm512_srli_epi64::<32>(even), odd);
            (low, high)
        }
    }
    #[inline(always)]
    fn int_less_unsigned(a: Self::Int, b: Self::Int) -> Self::Mask {
        unsafe { _mm512_cmplt_epu32_mask(a, b) }
    }
    #[inline(always)]
    fn int_shift_left<const N: i32>(a: Self::Int) -> Self::Int {
        unsafe { _mm512_sll_epi32(a, _mm_cvtsi32_si128(N)) }
    }
    #[inline(always)]
    fn int_shift_right<const N: i32>(a: Self::Int) -> Self::Int {
        unsafe { _mm512_srl_epi32(a, _mm_cvtsi32_si128(N)) }
    }
    #[inline(always)]
    fn to_bits(self) -> Self::Int {
        unsafe { _mm512_castps_si512(self.0) }
    }
    #[inline(always)]
    fn from_bits(value: Self::Int) -> Self {
        unsafe { Self(_mm512_castsi512_ps(value)) }
    }

    /// Four rounds: interleave 32-bit lanes, 64-bit lanes, then 128-bit quarters twice.
    #[inline(always)]
    unsafe fn transpose(source: *const f32, source_stride: usize, target: *mut f32, target_stride: usize) {
        unsafe {
            let mut r = [_mm512_setzero_ps(); 16];
            for (i, row) in r.iter_mut().enumerate() {
                *row = _mm512_loadu_ps(source.add(i * source_stride));
            }
            // After this round, t[4g + j] holds in each quarter q column 4q + j of rows 4g .. 4g + 4.
            let mut t = [_mm512_setzero_ps(); 16];
            for g in 0..4 {
                let ab_low = _mm512_unpacklo_ps(r[4 * g], r[4 * g + 1]);
                let ab_high = _mm512_unpackhi_ps(r[4 * g], r[4 * g + 1]);
                let cd_low = _mm512_unpacklo_ps(r[4 * g + 2], r[4 * g + 3]);
                let cd_high = _mm512_unpackhi_ps(r[4 * g + 2], r[4 * g + 3]);
                t[4 * g] = _mm512_shuffle_ps::<0x44>(ab_low, cd_low);
                t[4 * g + 1] = _mm512_shuffle_ps::<0xEE>(ab_low, cd_low);
                t[4 * g + 2] = _mm512_shuffle_ps::<0x44>(ab_high, cd_high);
                t[4 * g + 3] = _mm512_shuffle_ps::<0xEE>(ab_high, cd_high);
            }
            for j in 0..4 {
                let (a, b, c, d) = (t[j], t[4 + j], t[8 + j], t[12 + j]);
                let ab_even = _mm512_shuffle_f32x4::<0x88>(a, b);
                let ab_odd = _mm512_shuffle_f32x4::<0xDD>(a, b);
                let cd_even = _mm512_shuffle_f32x4::<0x88>(c, d);
                let cd_odd = _mm512_shuffle_f32x4::<0xDD>(c, d);
                _mm512_storeu_ps(target.add(j * target_stride), _mm512_shuffle_f32x4::<0x88>(ab_even, cd_even));
                _mm512_storeu_ps(target.add((4 + j) * target_stride), _mm512_shuffle_f32x4::<0x88>(ab_odd, cd_odd));
                _mm512_storeu_ps(target.add((8 + j) * target_stride), _mm512_shuffle_f32x4::<0xDD>(ab_even, cd_even));
                _mm512_storeu_ps(target.add((12 + j) * target_stride), _mm512_shuffle_f32x4::<0xDD>(ab_odd, cd_odd));
            }
        }
    }
}
