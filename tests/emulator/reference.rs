//! Rounding written without the emulator's: by searching the neighbours of an exact value.
//!
//! An exact value is given as an f64 and the sign of what it lacks (`tail`), which is smaller than half a unit in the last
//! place of the f64. Error-free transformations (two-sum, fused residuals) give such pairs for sums, products, quotients
//! and roots.

/// A binary format by the widths of its fields.
#[derive(Clone, Copy, PartialEq)]
pub struct Format {
    pub mantissa: u32,
    pub exponent: u32,
}

pub const F16: Format = Format { mantissa: 10, exponent: 5 };
pub const BF16: Format = Format { mantissa: 7, exponent: 8 };
pub const TF32: Format = Format { mantissa: 10, exponent: 8 };
pub const F32: Format = Format { mantissa: 23, exponent: 8 };

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Mode {
    Nearest,
    Away,
    Zero,
    Down,
    Up,
}

/// The directed and nearest modes with their names in PTX.
pub const MODES: [(&str, Mode); 4] = [("rn", Mode::Nearest), ("rz", Mode::Zero), ("rm", Mode::Down), ("rp", Mode::Up)];

impl Format {
    pub fn infinity(self) -> u64 {
        ((1 << self.exponent) - 1) << self.mantissa
    }

    pub fn sign(self) -> u64 {
        1 << (self.mantissa + self.exponent)
    }

    pub fn is_nan(self, bits: u64) -> bool {
        bits & !self.sign() > self.infinity()
    }

    /// The value of a magnitude; infinity counts as the next power of two.
    fn magnitude(self, bits: u64) -> f64 {
        let bias = (1i32 << (self.exponent - 1)) - 1;
        let (field, fraction) = ((bits >> self.mantissa) as i32, bits & ((1 << self.mantissa) - 1));
        let mantissa = if field == 0 { fraction } else { fraction | 1 << self.mantissa };
        mantissa as f64 * 2f64.powi(field.max(1) - bias - self.mantissa as i32)
    }

    pub fn value(self, bits: u64) -> f64 {
        let magnitude = bits & !self.sign();
        let value = if magnitude > self.infinity() {
            f64::NAN
        } else if magnitude == self.infinity() {
            f64::INFINITY
        } else {
            self.magnitude(magnitude)
        };
        if bits & self.sign() != 0 { -value } else { value }
    }

    /// The bits of `x + tail`, rounded. NaN is some NaN.
    pub fn round(self, x: f64, tail: f64, mode: Mode) -> u64 {
        let sign = if x.is_sign_negative() { self.sign() } else { 0 };
        if x.is_nan() {
            return self.infinity() | 1;
        }
        if x.is_infinite() {
            return sign | self.infinity();
        }
        let (m, tail) = (x.abs(), if x.is_sign_negative() { -tail } else { tail });
        // The greatest magnitude that is not above the exact one.
        let is_above = |bits: u64| self.magnitude(bits) > m || (self.magnitude(bits) == m && tail < 0.0);
        let (mut low, mut high) = (0, self.infinity());
        while high - low > 1 {
            let middle = (low + high) / 2;
            if is_above(middle) { high = middle } else { low = middle }
        }
        if self.magnitude(low) == m && tail == 0.0 {
            return sign | low;
        }
        let middle = (self.magnitude(low) + self.magnitude(high)) / 2.0;
        let (beyond, tied) = (m > middle || (m == middle && tail > 0.0), m == middle && tail == 0.0);
        let up = match mode {
            Mode::Nearest => beyond || (tied && low & 1 != 0),
            Mode::Away => beyond || tied,
            Mode::Zero => false,
            Mode::Down => sign != 0,
            Mode::Up => sign == 0,
        };
        sign | if up { high } else { low }
    }
}

/// `x + tail` rounded to f64, where `x` is the nearest.
pub fn round_f64(x: f64, tail: f64, mode: Mode) -> f64 {
    match mode {
        Mode::Down if tail < 0.0 => x.next_down(),
        Mode::Up if tail > 0.0 => x.next_up(),
        Mode::Zero if tail != 0.0 && (tail < 0.0) == (x > 0.0) => {
            if x > 0.0 {
                x.next_down()
            } else {
                x.next_up()
            }
        }
        _ => x,
    }
}

/// The nearest f64 of an integer, and what it lacks.
pub fn of_integer(x: i128) -> (f64, f64) {
    (x as f64, (x - (x as f64) as i128) as f64)
}

/// `a + b` as nearest and rest; the zero of a cancellation has the sign that the mode asks for.
pub fn sum(a: f64, b: f64, mode: Mode) -> (f64, f64) {
    let s = a + b;
    if !s.is_finite() {
        return (s, 0.0);
    }
    if s == 0.0 && a.is_sign_negative() != b.is_sign_negative() {
        return (if mode == Mode::Down { -0.0 } else { 0.0 }, 0.0);
    }
    let back = s - a;
    (s, (a - (s - back)) + (b - back))
}

/// `a / b` as nearest and the sign of the rest.
pub fn quotient(a: f64, b: f64) -> (f64, f64) {
    let q = a / b;
    let rest = if q.is_finite() && b.is_finite() { (-q).mul_add(b, a) * b.signum() } else { 0.0 };
    (q, rest)
}

/// The square root as nearest and the sign of the rest.
pub fn root(a: f64) -> (f64, f64) {
    let r = a.sqrt();
    (r, if r.is_finite() && r > 0.0 { (-r).mul_add(r, a) } else { 0.0 })
}
