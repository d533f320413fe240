//! Elementary functions over [`Vector`]: exp, tanh, erf, log, and the activations built from them.

use super::Vector;

/// `2^n` for integer lanes n in -126..=127, built in the exponent field.
#[inline(always)]
fn power_of_two<V: Vector>(n: V::Int) -> V {
    V::from_bits(V::int_shift_left::<23>(V::int_add(n, V::int_splat(127))))
}

/// e^x, within 2 units in the last place for results that are normal numbers; 0 below -87.3, and +inf above 88.72.
///
/// x = n ln 2 + r with |r| <= ln 2 / 2, r in two parts (Cody and Waite), e^r by its Taylor polynomial of degree 7
/// (remainder below 2^-26), then scaled by 2^n in two halves so that n = 128 does not overflow early.
#[inline(always)]
pub fn exp<V: Vector>(x: V) -> V {
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    let clamped = V::splat(-104.0).max(V::splat(89.0).min(x));
    let n = clamped.mul(V::splat(std::f32::consts::LOG2_E)).round();
    let r = n.neg_mul_add(V::splat(LN2_HIGH), clamped);
    let r = n.neg_mul_add(V::splat(LN2_LOW), r);
    let mut p = V::splat(1.0 / 5040.0);
    for c in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        p = p.mul_add(r, V::splat(c));
    }
    let n = V::splat(-126.0).max(n);
    let half = n.mul(V::splat(0.5)).round();
    let result = p.mul(power_of_two::<V>(half.to_int())).mul(power_of_two::<V>(n.sub(half).to_int()));
    V::select(x.less(V::splat(-87.3)), V::zero(), result)
}
