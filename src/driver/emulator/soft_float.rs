//! Binary floating point with every rounding mode, on exact integers.
//!
//! The host rounds to nearest even only. The directed modes of PTX (`.rz`, `.rm`, `.rp`), and conversions between formats,
//! are done here: a finite value is `(-1)^sign * mantissa * 2^exponent`, results are formed exactly in 128 bits plus a
//! sticky flag for what fell off the end, and [`Format::pack`] rounds once.

/// A rounding mode of PTX.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rounding {
    /// `.rn`: to nearest, ties to even.
    Nearest,
    /// `.rna`: to nearest, ties away from zero.
    NearestAway,
    /// `.rz`: towards zero.
    Zero,
    /// `.rm`: towards minus infinity.
    Down,
    /// `.rp`: towards plus infinity.
    Up,
}

impl Rounding {
    pub fn parse(name: &str) -> Option<Self> {
        Some(match name {
            "rn" | "rni" => Self::Nearest,
            "rna" => Self::NearestAway,
            "rz" | "rzi" => Self::Zero,
            "rm" | "rmi" => Self::Down,
            "rp" | "rpi" => Self::Up,
            _ => return None,
        })
    }
}

/// An exact value, or almost: `sticky` says that a nonzero amount below one unit of `mantissa` is missing.
#[derive(Debug, Clone, Copy)]
pub struct Exact {
    pub sign: bool,
    pub mantissa: u128,
    pub exponent: i32,
    pub sticky: bool,
}

/// An interchange format.
#[derive(Debug, Clone, Copy)]
pub struct Format {
    /// Stored mantissa bits.
    pub mantissa_bits: u32,
    pub exponent_bits: u32,
}

pub const F16: Format = Format { mantissa_bits: 10, exponent_bits: 5 };
pub const BF16: Format = Format { mantissa_bits: 7, exponent_bits: 8 };
pub const TF32: Format = Format { mantissa_bits: 10, exponent_bits: 8 };
pub const F32: Format = Format { mantissa_bits: 23, exponent_bits: 8 };
pub const F64: Format = Format { mantissa_bits: 52, exponent_bits: 11 };

impl Format {
    fn bias(self) -> i32 {
        (1 << (self.exponent_bits - 1)) - 1
    }

    /// Rounds to this format; overflow goes to infinity or the largest finite value, as the mode says.
    pub fn pack(self, value: Exact, rounding: Rounding) -> u64 {
        let Exact { sign, mut mantissa, mut exponent, mut sticky } = value;
        let sign_bit = u64::from(sign) << (self.mantissa_bits + self.exponent_bits);
        if mantissa == 0 && !sticky {
            return sign_bit;
        }
        if mantissa == 0 {
            // Only a sliver: far below the smallest subnormal.
            (mantissa, exponent) = (1, -100_000);
        }
        let precision = self.mantissa_bits as i32 + 1;
        let least = 1 - self.bias() - self.mantissa_bits as i32;
        let length = 128 - mantissa.leading_zeros() as i32;
        // The exponent of the last kept bit: as the precision asks, or the subnormals' fixed one.
        let unit = (exponent + length - precision).max(least);
        let shift = unit - exponent;
        let mut round_bit = false;
        if shift > 0 {
            let shift = shift as u32;
            if shift > 128 {
                sticky |= mantissa != 0;
                mantissa = 0;
            } else {
                round_bit = (mantissa >> (shift - 1)) & 1 != 0;
                sticky |= mantissa & ((1u128 << (shift - 1)) - 1) != 0;
                mantissa = if shift == 128 { 0 } else { mantissa >> shift };
            }
        } else {
            mantissa <<= (-shift) as u32;
        }
        let up = match rounding {
            Rounding::Nearest => round_bit && (sticky || mantissa & 1 != 0),
            Rounding::NearestAway => round_bit,
            Rounding::Zero => false,
            Rounding::Down => sign && (round_bit || sticky),
            Rounding::Up => !sign && (round_bit || sticky),
        };
        mantissa += u128::from(up);
        let mut unit = unit;
        if mantissa >> precision != 0 {
            mantissa >>= 1;
            unit += 1;
        }
        let is_normal = mantissa >> self.mantissa_bits != 0;
        let biased = if is_normal { unit + self.mantissa_bits as i32 + self.bias() } else { 0 };
        let top = (1 << self.exponent_bits) - 1;
        if biased >= top {
            let to_infinity = match rounding {
                Rounding::Nearest | Rounding::NearestAway => true,
                Rounding::Zero => false,
                Rounding::Down => sign,
                Rounding::Up => !sign,
            };
            let infinity = (top as u64) << self.mantissa_bits;
            return sign_bit | if to_infinity { infinity } else { infinity - 1 };
        }
        sign_bit | ((biased as u64) << self.mantissa_bits) | (mantissa as u64 & ((1 << self.mantissa_bits) - 1))
    }
}

/// The parts of a finite f64.
fn split(value: f64) -> Exact {
    let bits = value.to_bits();
    let biased = (bits >> 52 & 0x7FF) as i32;
    let fraction = bits & ((1 << 52) - 1);
    let mantissa = u128::from(if biased == 0 { fraction } else { fraction | 1 << 52 });
    Exact { sign: bits >> 63 != 0, mantissa, exponent: biased.max(1) - 1075, sticky: false }
}

/// Bits of `value` in `format`, rounded; NaN becomes the format's quiet NaN with all mantissa bits set.
pub fn from_f64(value: f64, format: Format, rounding: Rounding) -> u64 {
    let top = ((1u64 << format.exponent_bits) - 1) << format.mantissa_bits;
    if value.is_nan() {
        return top | ((1 << format.mantissa_bits) - 1);
    }
    if value.is_infinite() {
        return top | (u64::from(value < 0.0) << (format.mantissa_bits + format.exponent_bits));
    }
    format.pack(split(value), rounding)
}

/// Bits of an integer in `format`, rounded.
pub fn from_integer(value: i128, format: Format, rounding: Rounding) -> u64 {
    format.pack(Exact { sign: value < 0, mantissa: value.unsigned_abs(), exponent: 0, sticky: false }, rounding)
}

/// The value of `bits` in `format`, exactly.
pub fn to_f64(bits: u64, format: Format) -> f64 {
    let top = (1u64 << format.exponent_bits) - 1;
    let biased = bits >> format.mantissa_bits & top;
    let fraction = bits & ((1 << format.mantissa_bits) - 1);
    let sign = if bits >> (format.mantissa_bits + format.exponent_bits) & 1 != 0 { -1.0 } else { 1.0 };
    if biased == top {
        return if fraction != 0 { f64::NAN } else { sign * f64::INFINITY };
    }
    if format.mantissa_bits == 52 {
        return f64::from_bits(bits);
    }
    let mantissa = if biased == 0 { fraction } else { fraction | 1 << format.mantissa_bits };
    let exponent = biased.max(1) as i32 - format.bias() - format.mantissa_bits as i32;
    sign * mantissa as f64 * f64::from_bits(((exponent + 1023) as u64) << 52)
}

/// Shifts the leading bit to bit 124, which leaves room for a carry.
fn normalised(value: Exact) -> Exact {
    let shift = value.mantissa.leading_zeros() as i32 - 3;
    let mantissa = if shift >= 0 { value.mantissa << shift } else { value.mantissa >> -shift };
    Exact { mantissa, exponent: value.exponent - shift, ..value }
}

fn add_exact(a: Exact, b: Exact, rounding: Rounding) -> Exact {
    if a.mantissa == 0 || b.mantissa == 0 {
        let both_zero = a.mantissa == 0 && b.mantissa == 0;
        if both_zero {
            let sign = if a.sign == b.sign { a.sign } else { rounding == Rounding::Down };
            return Exact { sign, mantissa: 0, exponent: 0, sticky: false };
        }
        return if a.mantissa == 0 { b } else { a };
    }
    let (a, b) = (normalised(a), normalised(b));
    let (large, small) = if (a.exponent, a.mantissa) >= (b.exponent, b.mantissa) { (a, b) } else { (b, a) };
    let distance = (large.exponent - small.exponent) as u32;
    let (shifted, sticky) = if distance > 127 {
        (0, true)
    } else {
        (small.mantissa >> distance, small.mantissa & ((1u128 << distance) - 1) != 0)
    };
    let mantissa =
        if large.sign == small.sign { large.mantissa + shifted } else { large.mantissa - shifted - u128::from(sticky) };
    let sign = if mantissa == 0 && !sticky { rounding == Rounding::Down } else { large.sign };
    Exact { sign, mantissa, exponent: large.exponent, sticky }
}

/// `a * b + c` in `format` with one rounding.
pub fn fma(a: f64, b: f64, c: f64, format: Format, rounding: Rounding) -> f64 {
    if !(a.is_finite() && b.is_finite() && c.is_finite()) {
        return a.mul_add(b, c);
    }
    let (a, b) = (split(a), split(b));
    let product = Exact {
        sign: a.sign != b.sign,
        mantissa: a.mantissa * b.mantissa,
        exponent: a.exponent + b.exponent,
        sticky: false,
    };
    to_f64(format.pack(add_exact(product, split(c), rounding), rounding), format)
}

/// `a + b` in `format`.
pub fn add(a: f64, b: f64, format: Format, rounding: Rounding) -> f64 {
    if !(a.is_finite() && b.is_finite()) {
        return a + b;
    }
    to_f64(format.pack(add_exact(split(a), split(b), rounding), rounding), format)
}

/// `a * b` in `format`.
pub fn multiply(a: f64, b: f64, format: Format, rounding: Rounding) -> f64 {
    if !(a.is_finite() && b.is_finite()) {
        return a * b;
    }
    let (a, b) = (split(a), split(b));
    let (mantissa, exponent) = (a.mantissa * b.mantissa, a.exponent + b.exponent);
    to_f64(format.pack(Exact { sign: a.sign != b.sign, mantissa, exponent, sticky: false }, rounding), format)
}

/// `a / b` in `format`.
pub fn divide(a: f64, b: f64, format: Format, rounding: Rounding) -> f64 {
    if !(a.is_finite() && b.is_finite()) || b == 0.0 || a == 0.0 {
        return a / b;
    }
    let (a, b) = (normalised(split(a)), split(b));
    let (mantissa, sticky) = (a.mantissa / b.mantissa, a.mantissa % b.mantissa != 0);
    let exact = Exact { sign: a.sign != b.sign, mantissa, exponent: a.exponent - b.exponent, sticky };
    to_f64(format.pack(exact, rounding), format)
}

/// The square root of `a` in `format`.
pub fn square_root(a: f64, format: Format, rounding: Rounding) -> f64 {
    if a.is_nan() || a <= 0.0 || a.is_infinite() {
        return a.sqrt();
    }
    let mut value = normalised(split(a));
    if value.exponent & 1 != 0 {
        value.mantissa >>= 1;
        value.exponent += 1;
    }
    let root = value.mantissa.isqrt();
    let sticky = root * root != value.mantissa;
    let exact = Exact { sign: false, mantissa: root, exponent: value.exponent / 2, sticky };
    to_f64(format.pack(exact, rounding), format)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A cheap sequence of bit patterns that visits all exponents.
    fn patterns(count: u64) -> impl Iterator<Item = u64> {
        (1..=count).map(|index| index.wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left((index % 61) as u32))
    }

    #[test]
    fn nearest_rounding_is_the_hosts_for_f64_and_f32() {
        for (x, y) in patterns(20_000).zip(patterns(40_000).skip(20_000)) {
            let (a, b) = (f64::from_bits(x), f64::from_bits(y));
            let c = f64::from_bits(x.rotate_left(17) ^ y);
            for (ours, host) in [
                (add(a, b, F64, Rounding::Nearest), a + b),
                (multiply(a, b, F64, Rounding::Nearest), a * b),
                (divide(a, b, F64, Rounding::Nearest), a / b),
                (fma(a, b, c, F64, Rounding::Nearest), a.mul_add(b, c)),
                (square_root(a, F64, Rounding::Nearest), a.sqrt()),
            ] {
                assert!(
                    ours.to_bits() == host.to_bits() || (ours.is_nan() && host.is_nan()),
                    "{a:e} {b:e} {c:e}: {ours:e} {host:e}"
                );
            }
            let narrow = f32::from_bits(from_f64(a, F32, Rounding::Nearest) as u32);
            assert!(narrow.to_bits() == (a as f32).to_bits() || a.is_nan(), "{a:e}");
            let (a, b, c) = (f32::from_bits(x as u32), f32::from_bits(y as u32), f32::from_bits((x >> 32) as u32));
            let ours = fma(a.into(), b.into(), c.into(), F32, Rounding::Nearest) as f32;
            assert!(ours.to_bits() == a.mul_add(b, c).to_bits() || ours.is_nan(), "{a:e} {b:e} {c:e}");
        }
    }

    #[test]
    fn directed_roundings_bracket_the_exact_result() {
        for (x, y) in patterns(20_000).zip(patterns(40_000).skip(20_000)) {
            let (a, b) = (f32::from_bits(x as u32), f32::from_bits(y as u32));
            let exact = f64::from(a) * f64::from(b);
            if !exact.is_finite() || exact == 0.0 {
                continue;
            }
            let at = |mode| multiply(a.into(), b.into(), F32, mode);
            let (down, up) = (at(Rounding::Down), at(Rounding::Up));
            assert!(down <= exact && exact <= up, "{a:e} {b:e}");
            assert_eq!(at(Rounding::Zero), if exact < 0.0 { up } else { down });
            if down.is_finite() && up.is_finite() {
                let next = (down as f32).next_up();
                assert!(down == up || next == up as f32, "{a:e} {b:e}");
            }
        }
    }
}
