//! Sines of angles that are fractions of a turn in 32-bit fixed point, as `ops::turn` makes them: the reduction to a
//! half turn around zero is integer arithmetic and exact, and what is left is one polynomial.

use super::Vector;

/// Upper 32 bits of `position · frequency` modulo 2^64, where the frequency comes as its two halves.
#[inline(always)]
pub fn angle<V: Vector>(position: V::Int, high: V::Int, low: V::Int) -> V::Int {
    V::int_add(V::int_multiply_wide(position, high).0, V::int_multiply_wide(position, low).1)
}

/// The sine of `angle / 2^32` turns, at most two units in the last place of 1 off.
///
/// With `half` the nearest number of half turns, sin(x) = ±sin(x - half · π), where the argument is in -π/2..=π/2. The
/// polynomial x + x³ q(x²) is a minimax fit of the relative error (Lawson's iteration, 6e-9),
/// searched among its f32 neighbours for one that gives exactly 1 at a quarter turn, fused or not.
#[inline(always)]
pub fn sine<V: Vector>(angle: V::Int) -> V {
    const RADIANS: f32 = (std::f64::consts::TAU / 4_294_967_296.0) as f32;
    const COEFFICIENTS: [f32; 4] = [2.605_779_9e-6, -1.980_960_2e-4, 8.333_066_5e-3, -0.166_666_6];
    let half = V::int_shift_right::<31>(V::int_add(angle, V::int_splat(1 << 30)));
    let sign = V::int_shift_left::<31>(half);
    // Half a turn more or less is the same modulo a turn.
    let x = V::from_int(V::int_add(angle, sign)).mul(V::splat(RADIANS));
    let square = x.mul(x);
    let mut sum = V::splat(COEFFICIENTS[0]);
    for &coefficient in &COEFFICIENTS[1..] {
        sum = sum.mul_add(square, V::splat(coefficient));
    }
    let sine = x.mul(square).mul_add(sum, x);
    V::from_bits(V::int_xor(sine.to_bits(), sign))
}

/// The cosine of `angle / 2^32` turns.
#[inline(always)]
pub fn cosine<V: Vector>(angle: V::Int) -> V {
    sine(V::int_add(angle, V::int_splat(crate::ops::turn::QUARTER as i32)))
}

#[cfg(test)]
mod tests {
    use super::super::{Kernel, Level};
    use super::*;

    struct Sines<'a> {
        angles: &'a [i32],
        sines: &'a mut [f32],
        cosines: &'a mut [f32],
    }

    impl Kernel for Sines<'_> {
        type Output = ();

        #[inline(always)]
        fn run<V: Vector>(self) {
            for i in (0..self.angles.len()).step_by(V::LANES) {
                // SAFETY: all three have a multiple of 16 elements, which all lane counts divide.
                unsafe {
                    let angle = V::int_load(self.angles.as_ptr().add(i));
                    sine::<V>(angle).store(self.sines.as_mut_ptr().add(i));
                    cosine::<V>(angle).store(self.cosines.as_mut_ptr().add(i));
                }
            }
        }
    }

    #[test]
    fn sines_and_cosines_match_f64_around_the_whole_turn_and_are_exact_at_zero() {
        let angles: Vec<i32> = (0..1u32 << 20).map(|i| i.wrapping_mul(4096 + 37) as i32).collect();
        for level in Level::available() {
            let [mut sines, mut cosines] = [0; 2].map(|_| vec![f32::NAN; angles.len()]);
            level.run(Sines { angles: &angles, sines: &mut sines, cosines: &mut cosines });
            for (i, &angle) in angles.iter().enumerate() {
                let radians = f64::from(angle) / 4_294_967_296.0 * std::f64::consts::TAU;
                for (found, expected) in [(sines[i], radians.sin()), (cosines[i], radians.cos())] {
                    let error = (f64::from(found) - expected).abs();
                    assert!(error < 1.3e-7, "{}: {found} at {angle}, expected {expected}: {error}", level.name());
                }
            }
            assert_eq!((sines[0], cosines[0]), (0.0, 1.0), "{}", level.name());
        }
    }
}
