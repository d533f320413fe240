//! Elementary functions over [`Vector`]: exp, tanh, erf, log, and the activations built from them.
//!
//! All are branch-free: one polynomial or one quotient of polynomials for the whole range, and at most a few selects
//! for the ends. The coefficients are minimax fits (Lawson's iteration) made for these formulas, then searched among
//! their f32 neighbours. The tests sweep the whole range on every level against f64 and state the errors; those given
//! here hold where multiply-add is fused, the portable level may be one unit worse. Everywhere NaN in gives NaN out,
//! which decides the order of the arguments of `min`, `max` and `less`.

use super::Vector;
use std::f32::consts::FRAC_2_SQRT_PI;

/// Evaluates `c[0] x^(n-1) + … + c[n-1]` by Horner's rule.
#[inline(always)]
fn polynomial<V: Vector, const N: usize>(x: V, coefficients: [f32; N]) -> V {
    let mut sum = V::splat(coefficients[0]);
    for &coefficient in &coefficients[1..] {
        sum = sum.mul_add(x, V::splat(coefficient));
    }
    sum
}

/// Splits e^x = p / unit · 2^n with n whole and p / unit in 0.70..1.42, for |x| <= 104; `unit` is a power of two.
///
/// x = n ln 2 + r with |r| <= ln 2 / 2, where ln 2 comes in two parts, of which n times the first is exact (Cody and
/// Waite). e^r is a polynomial of degree 5 that is exact at 0, fitted to within 1.05 units in the last place.
#[inline(always)]
fn exp_parts<V: Vector>(x: V, unit: f32) -> (V, V::Int) {
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    const COEFFICIENTS: [f32; 6] = [8.265_98e-3, 4.189_968_5e-2, 0.166_681_24, 0.499_991_24, 0.999_999_46, 1.0];
    let n = x.mul(V::splat(std::f32::consts::LOG2_E)).round();
    let r = n.neg_mul_add(V::splat(LN2_HIGH), x);
    let r = n.neg_mul_add(V::splat(LN2_LOW), r);
    (polynomial(r, COEFFICIENTS.map(|coefficient| coefficient * unit)), n.to_int())
}

/// `value · 2^n`, where that is a normal number, by adding to the exponent field.
#[inline(always)]
fn scale<V: Vector>(value: V, n: V::Int) -> V {
    V::from_bits(V::int_add(value.to_bits(), V::int_shift_left::<23>(n)))
}

/// e^x for x in -87.3..=88.7, unchecked: for arguments that are bounded by other means. At most 2 units in the last
/// place off.
#[inline(always)]
pub fn exp_bounded<V: Vector>(x: V) -> V {
    let (p, n) = exp_parts(x, 1.0);
    scale(p, n)
}

/// e^x for x <= 0 (-∞ gives 0), what a softmax needs: cheaper than [`exp`] by two selects, and denormal results are
/// right as well. At most 2 units in the last place off.
#[inline(always)]
pub fn exp_nonpositive<V: Vector>(x: V) -> V {
    // 2^n alone would leave the normal range, down to n = -150. Times 2^24 it does not, and undoing that rounds once.
    let (p, n) = exp_parts(V::splat(-104.0).max(x), 16_777_216.0);
    scale(p, n).mul(V::splat(1.0 / 16_777_216.0))
}

/// e^x: 0 below -87.34, where results stop being normal numbers, and +∞ above 88.72. At most 2 units in the last
/// place off between.
#[inline(always)]
pub fn exp<V: Vector>(x: V) -> V {
    // The largest x whose e^x is finite, and the smallest x with r >= 0 at n = -126.
    const LARGEST: f32 = 88.722_84;
    const SMALLEST: f32 = -87.336_54;
    let (p, n) = exp_parts(V::splat(-104.0).max(V::splat(LARGEST).min(x)), 1.0);
    let result = scale(p, n);
    let result = V::select(x.less(V::splat(SMALLEST)), V::zero(), result);
    V::select(V::splat(LARGEST).less(x), V::splat(f32::INFINITY), result)
}

/// 2^x for x of at most 127, within 2 units in the last place; exactly 0 at and below -127, exactly 1 at 0. NaN stays.
/// For loops that keep their arguments in units of log 2: less than half the work of [`exp`].
///
/// x = n + r with |r| <= 1/2. The polynomial 1 + r·q(r) of degree 5 is fitted to within 1.05 units in the last place. At
/// the lower clamp r = 0, hence 2^r = 1 and the exponent field becomes 0: a true zero without a select.
#[inline(always)]
pub fn exp2<V: Vector>(x: V) -> V {
    // The fitted coefficient of r is not ln 2, only near it.
    #[allow(clippy::approx_constant)]
    const COEFFICIENTS: [f32; 6] = [1.322_571_8e-3, 9.671_767e-3, 5.550_893e-2, 0.240_222_35, 0.693_146_8, 1.0];
    // In this order the maximum keeps a NaN.
    let x = V::splat(-127.0).max(x);
    let n = x.round();
    scale(polynomial(x.sub(n), COEFFICIENTS), n.to_int())
}

/// Gives `magnitude >= 0` the sign of `sign`.
#[inline(always)]
fn with_sign_of<V: Vector>(magnitude: V, sign: V) -> V {
    V::from_bits(V::int_add(magnitude.to_bits(), V::int_and(sign.to_bits(), V::int_splat(i32::MIN))))
}

/// tanh x, at most 5 units in the last place off, never beyond ±1, and exactly ±1 from |x| = 9.01 on.
///
/// x P(x²) / Q(x²) with P and Q of degree 4: relative error of the fit 2.1e-8. All coefficients are positive, so
/// nothing cancels.
#[inline(always)]
pub fn tanh<V: Vector>(x: V) -> V {
    let magnitude = x.abs();
    let square = x.mul(x);
    let p = polynomial(square, [1.331_902_7e-8, 2.058_345_1e-5, 3.494_032_4e-3, 0.133_797_15, 1.0]);
    let q = polynomial(square, [7.762_008e-7, 3.283_088_7e-4, 2.587_106_6e-2, 0.467_130_3, 1.0]);
    let result = V::splat(1.0).min(magnitude.mul(p).div(q));
    with_sign_of(V::select(V::splat(9.01).less(magnitude), V::splat(1.0), result), x)
}

/// Derivative of [`tanh`].
#[inline(always)]
pub fn tanh_gradient<V: Vector>(x: V) -> V {
    // tanh x = 2 sigmoid(2x) - 1, and nothing cancels on that side.
    sigmoid_gradient(x.add(x)).mul(V::splat(4.0))
}

/// erf x, at most 5 units in the last place off, never beyond ±1, and exactly ±1 from |x| = 3.925 on.
///
/// x P(x²) / Q(x²) with P and Q of degree 5: relative error of the fit 1.9e-8. All coefficients are positive, so
/// nothing cancels.
#[inline(always)]
pub fn erf<V: Vector>(x: V) -> V {
    let magnitude = x.abs();
    let square = x.mul(x);
    let p = polynomial(
        square,
        [2.041_999_3e-6, 2.848_072e-4, 3.779_502_6e-3, 5.278_996_8e-2, 0.190_781_19, FRAC_2_SQRT_PI],
    );
    let q = polynomial(square, [3.800_429e-5, 1.165_189_2e-3, 1.499_722_4e-2, 0.114_256_46, 0.502_408_15, 1.0]);
    let result = V::splat(1.0).min(magnitude.mul(p).div(q));
    with_sign_of(V::select(V::splat(3.925).less(magnitude), V::splat(1.0), result), x)
}

/// ln x, at most one unit in the last place off: -∞ at ±0, NaN below 0, +∞ at +∞.
///
/// x = 2^n m with m in √½..√2, f = m - 1, ln x = n ln 2 + f - f²/2 + f³ q(f) with q of degree 7.
#[inline(always)]
pub fn log<V: Vector>(x: V) -> V {
    const SMALLEST_NORMAL: f32 = f32::MIN_POSITIVE;
    const SQRT_HALF_BITS: i32 = 0x3F35_04F3;
    let is_denormal = x.less(V::splat(SMALLEST_NORMAL));
    let normal = V::select(is_denormal, x.mul(V::splat(8_388_608.0)), x);
    let offset = V::select(is_denormal, V::splat(-23.0), V::zero());
    // Counting exponents from √½ rather than from 1 puts m where f is smallest.
    let counted = V::int_add(normal.to_bits(), V::int_splat(0x3F80_0000 - SQRT_HALF_BITS));
    let exponent = V::int_add(V::int_shift_right::<23>(counted), V::int_splat(-127));
    let mantissa = V::int_add(V::int_and(counted, V::int_splat(0x007F_FFFF)), V::int_splat(SQRT_HALF_BITS));
    let n = V::from_int(exponent).add(offset);
    let f = V::from_bits(mantissa).sub(V::splat(1.0));
    let square = f.mul(f);
    let q = polynomial(
        f,
        [
            -7.859_616e-2,
            0.128_816_55,
            -0.131_287_56,
            0.141_811_9,
            -0.166_245_54,
            0.200_022_86,
            -0.250_008_1,
            0.333_333_16,
        ],
    );
    let tail = square.mul(V::splat(-0.5)).add(square.mul(f).mul(q));
    // The small parts first: n times the low half of ln 2 and the tail are far below f and n ln 2.
    let small = n.mul_add(V::splat(-2.121_944_4e-4), tail);
    let result = n.mul_add(V::splat(0.693_359_4), f.add(small));
    let at_zero = V::select(x.abs().less(V::splat(f32::from_bits(1))), V::splat(f32::NEG_INFINITY), result);
    let below = V::select(x.less(V::zero()), V::splat(f32::NAN), at_zero);
    // +∞ and NaN are not less than +∞, and give themselves.
    V::select(x.less(V::splat(f32::INFINITY)), below, x)
}

/// 1 / (1 + e^-x) and e^-x, for x >= -87.
#[inline(always)]
fn sigmoid_parts<V: Vector>(x: V) -> (V, V) {
    let e = exp_bounded(V::splat(-87.0).max(V::zero().sub(x)));
    (V::splat(1.0).div(V::splat(1.0).add(e)), e)
}

/// 1 / (1 + e^-x); below x = -87 it stays at 1.6e-38.
#[inline(always)]
pub fn sigmoid<V: Vector>(x: V) -> V {
    sigmoid_parts(V::splat(-87.0).max(x)).0
}

/// Derivative of [`sigmoid`].
#[inline(always)]
pub fn sigmoid_gradient<V: Vector>(x: V) -> V {
    let (s, e) = sigmoid_parts(V::splat(-87.0).max(x));
    // 1 - s = e s, without the cancellation, and s² would be a denormal far out.
    s.mul(e.mul(s))
}

/// x sigmoid(x) (Elfwing et al. 2017), the gate of SwiGLU.
#[inline(always)]
pub fn silu<V: Vector>(x: V) -> V {
    // Below -87 the value is that at -87, 1.4e-36: large negative x times a sigmoid that is not quite zero would not do.
    let x = V::splat(-87.0).max(x);
    x.mul(sigmoid_parts(x).0)
}

/// Derivative of [`silu`]: s (1 + x (1 - s)).
#[inline(always)]
pub fn silu_gradient<V: Vector>(x: V) -> V {
    let x = V::splat(-87.0).max(V::splat(87.0).min(x));
    let (s, e) = sigmoid_parts(x);
    s.mul(x.mul(e.mul(s)).add(V::splat(1.0)))
}

const TWO_SQRT_2_OVER_PI: f32 = 1.595_769;
const GELU_CUBE: f32 = 0.044_715;
/// From here down the tanh GELU is below 1e-36 and its exponential still finite.
const GELU_TANH_LOWEST: f32 = -10.0;

/// GELU by its tanh approximation (Hendrycks and Gimpel 2016), as GPT-2 has it:
/// x/2 (1 + tanh(√(2/π) (x + 0.044715 x³))) = x sigmoid(2 √(2/π) (x + 0.044715 x³)).
#[inline(always)]
pub fn gelu_tanh<V: Vector>(x: V) -> V {
    let x = V::splat(GELU_TANH_LOWEST).max(x);
    let inner = x.mul(x).mul_add(V::splat(GELU_CUBE * TWO_SQRT_2_OVER_PI), V::splat(TWO_SQRT_2_OVER_PI)).mul(x);
    x.mul(sigmoid_parts(inner).0)
}

/// Derivative of [`gelu_tanh`].
#[inline(always)]
pub fn gelu_tanh_gradient<V: Vector>(x: V) -> V {
    let x = V::splat(GELU_TANH_LOWEST).max(V::splat(10.0).min(x));
    let square = x.mul(x);
    let inner = square.mul_add(V::splat(GELU_CUBE * TWO_SQRT_2_OVER_PI), V::splat(TWO_SQRT_2_OVER_PI)).mul(x);
    let slope = square.mul_add(V::splat(3.0 * GELU_CUBE * TWO_SQRT_2_OVER_PI), V::splat(TWO_SQRT_2_OVER_PI));
    let (s, e) = sigmoid_parts(inner);
    // s + x s (1 - s) slope, with 1 - s = e s.
    s.mul(x.mul(slope).mul(e.mul(s)).add(V::splat(1.0)))
}

/// GELU exactly: x/2 (1 + erf(x/√2)) (Hendrycks and Gimpel 2016), as BERT has it.
#[inline(always)]
pub fn gelu_erf<V: Vector>(x: V) -> V {
    let half = x.mul(V::splat(0.5));
    half.mul_add(erf(x.mul(V::splat(std::f32::consts::FRAC_1_SQRT_2))), half)
}

/// Derivative of [`gelu_erf`]: Φ(x) + x φ(x).
#[inline(always)]
pub fn gelu_erf_gradient<V: Vector>(x: V) -> V {
    const FRAC_1_SQRT_2PI: f32 = 0.398_942_3;
    let x = V::splat(-13.0).max(V::splat(13.0).min(x));
    let cumulative = erf(x.mul(V::splat(std::f32::consts::FRAC_1_SQRT_2))).mul_add(V::splat(0.5), V::splat(0.5));
    let density = exp_bounded(x.mul(x).mul(V::splat(-0.5)));
    x.mul(V::splat(FRAC_1_SQRT_2PI)).mul_add(density, cumulative)
}

#[cfg(test)]
mod tests {
    use super::super::{Kernel, Level};
    use super::*;

    /// A function over vectors by name, so that one kernel maps any of them.
    #[derive(Clone, Copy, Debug)]
    enum Function {
        Exp,
        ExpNonpositive,
        Exp2,
        Tanh,
        TanhGradient,
        Erf,
        Log,
        Sigmoid,
        SigmoidGradient,
        Silu,
        SiluGradient,
        GeluTanh,
        GeluTanhGradient,
        GeluErf,
        GeluErfGradient,
    }

    struct Map<'a>(Function, &'a mut [f32]);

    impl Kernel for Map<'_> {
        type Output = ();
        #[inline(always)]
        fn run<V: Vector>(self) {
            for chunk in self.1.chunks_mut(V::LANES) {
                // SAFETY: within the chunk.
                let x = unsafe { V::load_partial(chunk.as_ptr(), chunk.len()) };
                let y = match self.0 {
                    Function::Exp => exp(x),
                    Function::ExpNonpositive => exp_nonpositive(x),
                    Function::Exp2 => exp2(x),
                    Function::Tanh => tanh(x),
                    Function::TanhGradient => tanh_gradient(x),
                    Function::Erf => erf(x),
                    Function::Log => log(x),
                    Function::Sigmoid => sigmoid(x),
                    Function::SigmoidGradient => sigmoid_gradient(x),
                    Function::Silu => silu(x),
                    Function::SiluGradient => silu_gradient(x),
                    Function::GeluTanh => gelu_tanh(x),
                    Function::GeluTanhGradient => gelu_tanh_gradient(x),
                    Function::GeluErf => gelu_erf(x),
                    Function::GeluErfGradient => gelu_erf_gradient(x),
                };
                // SAFETY: within the chunk.
                unsafe { y.store_partial(chunk.as_mut_ptr(), chunk.len()) };
            }
        }
    }

    fn map(level: Level, function: Function, x: &[f32]) -> Vec<f32> {
        let mut out = x.to_vec();
        level.run(Map(function, &mut out));
        out
    }

    fn one(level: Level, function: Function, x: f32) -> f32 {
        map(level, function, &[x])[0]
    }

    /// Every `stride`-th f32 in `from..=to`, by bits: dense where floats are dense.
    fn floats(from: f32, to: f32, stride: usize) -> Vec<f32> {
        assert!(from.to_bits() <= to.to_bits());
        (from.to_bits()..=to.to_bits()).step_by(stride).map(f32::from_bits).collect()
    }

    /// Floats of both signs with magnitudes from the denormals to `limit`, and an even grid up to `limit`.
    fn sweep(limit: f32) -> Vec<f32> {
        let mut x = floats(0.0, limit, 1013);
        x.extend((0..400_000).map(|i| limit * i as f32 / 400_000.0));
        let negative: Vec<f32> = x.iter().map(|&v| -v).collect();
        x.extend(negative);
        x
    }

    /// Distance of neighbouring f32 at `value`.
    fn unit_in_last_place(value: f64) -> f64 {
        let value = value.abs().max(f64::from(f32::MIN_POSITIVE));
        2f64.powi(value.log2().floor() as i32 - 23)
    }

    /// Demands that `function` is within so many units in the last place of `reference` over `x`, on every level: the
    /// first figure where multiply-add is fused, the second where it rounds twice.
    fn assert_units(function: Function, reference: impl Fn(f64) -> f64, x: &[f32], units: [f64; 2]) {
        let expected: Vec<f64> = x.iter().map(|&v| reference(f64::from(v))).collect();
        for level in Level::available() {
            let units = units[usize::from(level == Level::Portable)];
            let found = map(level, function, x);
            let mut worst = (0.0, 0);
            for (i, (&f, &e)) in found.iter().zip(&expected).enumerate() {
                let error = (f64::from(f) - e).abs() / unit_in_last_place(e);
                assert!(!error.is_nan(), "{function:?} on {}: {} gives {f}, expected {e}", level.name(), x[i]);
                if error > worst.0 {
                    worst = (error, i);
                }
            }
            let (error, i) = worst;
            println!("{function:?} on {}: at most {error:.3} units in the last place", level.name());
            let (name, at, f, e) = (level.name(), x[i], found[i], expected[i]);
            assert!(error <= units, "{function:?} on {name}: {at} gives {f}, expected {e}: {error:.3} units off");
        }
    }

    /// Demands an error below `relative · |value| + absolute` on every level.
    fn assert_error(function: Function, reference: impl Fn(f64) -> f64, x: &[f32], relative: f64, absolute: f64) {
        for level in Level::available() {
            for (&v, f) in x.iter().zip(map(level, function, x)) {
                let e = reference(f64::from(v));
                let error = (f64::from(f) - e).abs();
                let limit = relative * e.abs() + absolute;
                let name = level.name();
                assert!(
                    error <= limit,
                    "{function:?} on {name}: {v} gives {f}, expected {e}: {error:.3e} > {limit:.3e}"
                );
            }
        }
    }

    /// erf in f64 by its series near 0, and by the continued fraction of erfc far from it.
    fn reference_erf(x: f64) -> f64 {
        let a = x.abs();
        if a < 2.5 {
            let (mut term, mut sum, mut n) = (x, x, 0.0);
            while term.abs() > 1e-18 * sum.abs() {
                n += 1.0;
                term *= -x * x / n;
                sum += term / (2.0 * n + 1.0);
            }
            return sum * std::f64::consts::FRAC_2_SQRT_PI;
        }
        if a > 7.0 {
            return x.signum();
        }
        let fraction = (1..=120).rev().fold(a, |tail, n| a + 0.5 * f64::from(n) / tail);
        x.signum() * (1.0 - (-a * a).exp() / (fraction * std::f64::consts::PI.sqrt()))
    }

    fn reference_sigmoid(x: f64) -> f64 {
        1.0 / (1.0 + (-x).exp())
    }

    fn reference_gelu_tanh(x: f64) -> f64 {
        x * reference_sigmoid(2.0 * (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x))
    }

    fn reference_gelu_tanh_gradient(x: f64) -> f64 {
        let t = 2.0 * (2.0 / std::f64::consts::PI).sqrt();
        let s = reference_sigmoid(t * (x + 0.044715 * x * x * x));
        s + x * s * (1.0 - s) * t * (1.0 + 3.0 * 0.044715 * x * x)
    }

    fn reference_gelu_erf(x: f64) -> f64 {
        0.5 * x * (1.0 + reference_erf(x * std::f64::consts::FRAC_1_SQRT_2))
    }

    fn reference_gelu_erf_gradient(x: f64) -> f64 {
        0.5 * (1.0 + reference_erf(x * std::f64::consts::FRAC_1_SQRT_2))
            + x * (-0.5 * x * x).exp() / (2.0 * std::f64::consts::PI).sqrt()
    }

    #[test]
    fn exp_is_within_two_units_over_its_whole_range() {
        let mut x: Vec<f32> = sweep(88.722_83).into_iter().filter(|&v| v >= -87.336_54).collect();
        x.extend(floats(88.7, 88.722_83, 1));
        x.extend(floats(87.3, 87.336_54, 1).iter().map(|&v| -v));
        assert_units(Function::Exp, f64::exp, &x, [2.0, 2.2]);
    }

    #[test]
    fn exp_nonpositive_is_within_two_units_down_to_the_denormals() {
        let x: Vec<f32> = sweep(110.0).into_iter().filter(|&v| v <= 0.0).collect();
        assert_units(Function::ExpNonpositive, f64::exp, &x, [2.0, 2.2]);
        for level in Level::available() {
            assert_eq!(one(level, Function::ExpNonpositive, f32::NEG_INFINITY), 0.0);
            assert_eq!(one(level, Function::ExpNonpositive, -1e30), 0.0);
            assert_eq!(one(level, Function::ExpNonpositive, 0.0), 1.0);
            assert!(one(level, Function::ExpNonpositive, f32::NAN).is_nan());
        }
    }

    #[test]
    fn exp2_is_within_two_units_and_exact_where_it_says() {
        let x: Vec<f32> = sweep(127.0).into_iter().filter(|&v| v >= -125.5).collect();
        assert_units(Function::Exp2, f64::exp2, &x, [2.0, 2.2]);
        for level in Level::available() {
            let found = map(level, Function::Exp2, &[0.0, -127.0, -1e30, f32::NEG_INFINITY, f32::MIN, 127.0]);
            assert_eq!(found, [1.0, 0.0, 0.0, 0.0, 0.0, 127f32.exp2()], "{}", level.name());
        }
    }

    #[test]
    fn exp_saturates_at_both_ends() {
        for level in Level::available() {
            for (x, expected) in [
                (0.0, 1.0),
                (-0.0, 1.0),
                (f32::INFINITY, f32::INFINITY),
                (88.722_85, f32::INFINITY),
                (1e30, f32::INFINITY),
                (-87.34, 0.0),
                (-1e30, 0.0),
                (f32::NEG_INFINITY, 0.0),
            ] {
                assert_eq!(one(level, Function::Exp, x), expected, "exp({x}) on {}", level.name());
            }
        }
    }

    #[test]
    fn tanh_is_within_five_units() {
        assert_units(Function::Tanh, f64::tanh, &sweep(12.0), [5.0, 6.0]);
    }

    #[test]
    fn erf_is_within_five_units() {
        assert_units(Function::Erf, reference_erf, &sweep(6.0), [5.0, 6.0]);
    }

    #[test]
    fn tanh_and_erf_are_odd_and_saturate_exactly() {
        for level in Level::available() {
            for function in [Function::Tanh, Function::Erf] {
                for x in [0.0, 0.5, 20.0, 1e30, f32::INFINITY] {
                    let (plus, minus) = (one(level, function, x), one(level, function, -x));
                    assert_eq!(plus.to_bits(), (-minus).to_bits(), "{function:?}(±{x}) on {}", level.name());
                    assert!(x < 10.0 || plus == 1.0, "{function:?}({x}) is {plus} on {}", level.name());
                }
                assert!(map(level, function, &sweep(12.0)).iter().all(|v| v.abs() <= 1.0));
            }
        }
    }

    #[test]
    fn log_is_within_one_unit_from_the_denormals_to_the_largest_float() {
        let mut x = floats(f32::from_bits(1), f32::MAX, 1013);
        x.extend(floats(0.5, 2.0, 17));
        assert_units(Function::Log, f64::ln, &x, [1.0, 1.0]);
        for level in Level::available() {
            assert_eq!(one(level, Function::Log, 0.0), f32::NEG_INFINITY);
            assert_eq!(one(level, Function::Log, -0.0), f32::NEG_INFINITY);
            assert_eq!(one(level, Function::Log, f32::INFINITY), f32::INFINITY);
            assert_eq!(one(level, Function::Log, 1.0), 0.0);
            for x in [-1.0, -1e-40, f32::NEG_INFINITY, f32::NAN] {
                assert!(one(level, Function::Log, x).is_nan(), "log({x}) on {}", level.name());
            }
        }
    }

    #[test]
    fn activations_and_their_gradients_match_f64() {
        let x = sweep(40.0);
        assert_error(Function::Sigmoid, reference_sigmoid, &x, 1e-6, 0.0);
        assert_error(Function::SigmoidGradient, |x| reference_sigmoid(x) * reference_sigmoid(-x), &x, 1e-6, 1e-37);
        assert_error(Function::TanhGradient, |x| 1.0 / x.cosh().powi(2), &x, 1e-6, 1e-37);
        assert_error(Function::Silu, |x| x * reference_sigmoid(x), &x, 1e-6, 1e-37);
        let silu_gradient = |x: f64| reference_sigmoid(x) * (1.0 + x * reference_sigmoid(-x));
        assert_error(Function::SiluGradient, silu_gradient, &x, 1e-6, 2e-7);
        assert_error(Function::GeluTanh, reference_gelu_tanh, &x, 1e-6, 3e-7);
        assert_error(Function::GeluTanhGradient, reference_gelu_tanh_gradient, &x, 1e-6, 3e-7);
        assert_error(Function::GeluErf, reference_gelu_erf, &x, 1e-6, 1e-6);
        assert_error(Function::GeluErfGradient, reference_gelu_erf_gradient, &x, 1e-6, 3e-7);
    }

    #[test]
    fn activations_stay_right_far_out() {
        for level in Level::available() {
            for function in [Function::Silu, Function::GeluTanh, Function::GeluErf] {
                for x in [200.0, 1e30, f32::MAX] {
                    assert_eq!(one(level, function, x), x, "{function:?}({x}) on {}", level.name());
                    assert!(one(level, function, -x).abs() < 1e-30, "{function:?}(-{x}) on {}", level.name());
                }
            }
            for function in [Function::SiluGradient, Function::GeluTanhGradient, Function::GeluErfGradient] {
                for x in [200.0, 1e30, f32::MAX, f32::INFINITY] {
                    assert_eq!(one(level, function, x), 1.0, "{function:?}({x}) on {}", level.name());
                    assert!(one(level, function, -x).abs() < 1e-30, "{function:?}(-{x}) on {}", level.name());
                }
            }
        }
    }

    #[test]
    fn a_nan_comes_through_every_function() {
        use Function::*;
        for level in Level::available() {
            for function in [
                Exp,
                ExpNonpositive,
                Exp2,
                Tanh,
                Erf,
                Log,
                Sigmoid,
                SigmoidGradient,
                Silu,
                SiluGradient,
                GeluTanh,
                GeluTanhGradient,
                GeluErf,
                GeluErfGradient,
            ] {
                assert!(one(level, function, f32::NAN).is_nan(), "{function:?} on {}", level.name());
            }
        }
    }
}
