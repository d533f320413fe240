//! Every method of [`Vector`] on every level of this machine, lane by lane against plain Rust.

use super::{Kernel, Level, Vector};
use crate::ops::testing::Random;

const LANES_MAX: usize = 16;

fn run_on_all(kernel: impl Kernel<Output = ()> + Copy) {
    for level in Level::available() {
        println!("level {}", level.name());
        level.run(kernel);
    }
}

/// Values that go wrong where something is: signed zeros, halves, denormals, huge values.
fn awkward() -> Vec<f32> {
    let mut values = vec![
        0.0,
        -0.0,
        0.5,
        -0.5,
        1.5,
        2.5,
        -2.5,
        1e-40,
        -1e-40,
        1e30,
        -1e30,
        0.499_999_97,
        4_194_304.5,
        8_388_609.0,
        -4_194_303.5,
        3.0,
    ];
    values.extend(Random::fresh().normal(240).iter().map(|v| v * 100.0));
    values
}

#[inline(always)]
fn lanes<V: Vector>(vector: V) -> [f32; LANES_MAX] {
    let mut out = [0.0; LANES_MAX];
    // SAFETY: no vector has more lanes.
    unsafe { vector.store(out.as_mut_ptr()) };
    out
}

#[inline(always)]
fn int_lanes<V: Vector>(value: V::Int) -> [u32; LANES_MAX] {
    lanes(V::from_bits(value)).map(f32::to_bits)
}

#[inline(always)]
fn mask_lanes<V: Vector>(mask: V::Mask) -> [bool; LANES_MAX] {
    lanes(V::select(mask, V::splat(1.0), V::zero())).map(|value| value == 1.0)
}

#[derive(Clone, Copy)]
struct Arithmetic<'a>(&'a [f32]);

impl Kernel for Arithmetic<'_> {
    type Output = ();
    #[inline(always)]
    fn run<V: Vector>(self) {
        let n = V::LANES;
        for start in 0..self.0.len() - 2 * n {
            let (a, b, c) = (&self.0[start..], &self.0[start + n / 2..], &self.0[start + n..]);
            // SAFETY: at least `n` values follow each start.
            let (x, y, z) = unsafe { (V::load(a.as_ptr()), V::load(b.as_ptr()), V::load(c.as_ptr())) };
            let found = [
                lanes(x.add(y)),
                lanes(x.sub(y)),
                lanes(x.mul(y)),
                lanes(x.div(z)),
                lanes(x.min(y)),
                lanes(x.max(y)),
                lanes(x.abs().sqrt()),
                lanes(x.abs()),
                lanes(x.round()),
                lanes(x.mul_add(y, z)),
                lanes(x.neg_mul_add(y, z)),
            ];
            let (less, chosen) = (mask_lanes::<V>(x.less(y)), lanes(V::select(x.less(y), x, z)));
            for i in 0..n {
                let (a, b, c) = (a[i], b[i], c[i]);
                let fused = a.mul_add(b, c);
                let expected = [
                    a + b,
                    a - b,
                    a * b,
                    a / c,
                    a.min(b),
                    a.max(b),
                    a.abs().sqrt(),
                    a.abs(),
                    a.round_ties_even(),
                    if found[9][i] == fused { fused } else { a * b + c },
                    if found[10][i] == (-a).mul_add(b, c) { (-a).mul_add(b, c) } else { c - a * b },
                ];
                for (operation, (found, expected)) in found.iter().zip(expected).enumerate() {
                    let same = found[i] == expected || (found[i].is_nan() && expected.is_nan());
                    assert!(same, "operation {operation} of {a}, {b}, {c}: {} for {expected}", found[i]);
                }
                assert_eq!(less[i], a < b, "{a} < {b}");
                assert_eq!(chosen[i].to_bits(), if a < b { a } else { c }.to_bits(), "select on {a} < {b}");
            }
        }
        assert_eq!(lanes(V::splat(7.5))[..n], [7.5; LANES_MAX][..n]);
        assert_eq!(lanes(V::zero())[..n], [0.0; LANES_MAX][..n]);
    }
}

#[test]
fn arithmetic_matches_scalar() {
    run_on_all(Arithmetic(&awkward()));
}

#[derive(Clone, Copy)]
struct Nan;

impl Kernel for Nan {
    type Output = ();
    #[inline(always)]
    fn run<V: Vector>(self) {
        let (nan, one) = (V::splat(f32::NAN), V::splat(1.0));
        assert!(lanes(nan.max(one))[0] == 1.0 && lanes(nan.min(one))[0] == 1.0, "a NaN on the left gives the right");
        assert!(lanes(one.max(nan))[0].is_nan() && lanes(one.min(nan))[0].is_nan(), "a NaN on the right is given");
        assert!(!mask_lanes::<V>(nan.less(one))[0] && !mask_lanes::<V>(one.less(nan))[0]);
        assert!(lanes(nan.round())[0].is_nan() && lanes(nan.abs())[0].is_nan());
        assert!(lanes(V::splat(-1.0).sqrt())[0].is_nan());
    }
}

#[test]
fn nan_follows_the_documented_rule() {
    run_on_all(Nan);
}

#[derive(Clone, Copy)]
struct Reductions<'a>(&'a [f32]);

impl Kernel for Reductions<'_> {
    type Output = ();
    #[inline(always)]
    fn run<V: Vector>(self) {
        for window in self.0.windows(V::LANES) {
            // SAFETY: the window has `LANES` values.
            let vector = unsafe { V::load(window.as_ptr()) };
            // Halves are added until one lane is left.
            let mut halves = window.to_vec();
            while halves.len() > 1 {
                let half = halves.len() / 2;
                halves = (0..half).map(|i| halves[i] + halves[i + half]).collect();
            }
            assert_eq!(vector.reduce_add(), halves[0]);
            assert_eq!(vector.reduce_max(), window.iter().copied().fold(f32::NEG_INFINITY, f32::max));
        }
    }
}

#[test]
fn reductions_add_halves_in_order_and_find_the_largest() {
    run_on_all(Reductions(&awkward()));
}

#[derive(Clone, Copy)]
struct Memory;

impl Kernel for Memory {
    type Output = ();
    #[inline(always)]
    fn run<V: Vector>(self) {
        let n = V::LANES;
        let source: [f32; LANES_MAX + 1] = std::array::from_fn(|i| i as f32 + 1.0);
        for count in 0..=n {
            // The part ends where the memory does, so that touching more is an error under a checker.
            let part = source[..count].to_vec();
            // SAFETY: `count` values.
            let loaded = lanes(unsafe { V::load_partial(part.as_ptr(), count) });
            let upto = lanes(unsafe { V::load_up_to(part.as_ptr(), count) });
            for i in 0..n {
                assert_eq!(loaded[i], if i < count { part[i] } else { 0.0 }, "lane {i} of {count}");
                assert_eq!(upto[i], loaded[i]);
                assert_eq!(mask_lanes::<V>(V::first_lanes(count))[i], i < count);
            }
            let mut target = [-1.0f32; LANES_MAX + 1];
            let mut target_up_to = target;
            // SAFETY: the targets and the source, one element in, have `LANES` values.
            unsafe {
                V::load(source.as_ptr().add(1)).store_partial(target.as_mut_ptr().add(1), count);
                V::load(source.as_ptr().add(1)).store_up_to(target_up_to.as_mut_ptr().add(1), count);
            }
            for i in 0..=LANES_MAX {
                assert_eq!(target[i], if (1..=count).contains(&i) { source[i] } else { -1.0 }, "place {i}, {count}");
            }
            assert_eq!(target, target_up_to);
        }
        #[repr(align(64))]
        struct Aligned([f32; LANES_MAX]);
        let mut aligned = Aligned([0.0; LANES_MAX]);
        // SAFETY: aligned to 64 bytes, as many as the widest vector has.
        unsafe { V::load(source.as_ptr()).store_streaming(aligned.0.as_mut_ptr()) };
        assert_eq!(aligned.0[..n], source[..n]);
    }
}

#[test]
fn loads_and_stores_touch_what_they_say() {
    run_on_all(Memory);
}

#[derive(Clone, Copy)]
struct Integers<'a>(&'a [i32]);

impl Kernel for Integers<'_> {
    type Output = ();
    #[inline(always)]
    fn run<V: Vector>(self) {
        let n = V::LANES;
        for start in 0..self.0.len() - 2 * n {
            let (a, b) = (&self.0[start..start + n], &self.0[start + n..start + 2 * n]);
            // SAFETY: `n` values each.
            let (x, y) = unsafe { (V::int_load(a.as_ptr()), V::int_load(b.as_ptr())) };
            let (low, high) = V::int_multiply_wide(x, y);
            let found = [
                int_lanes::<V>(V::int_add(x, y)),
                int_lanes::<V>(V::int_and(x, y)),
                int_lanes::<V>(V::int_xor(x, y)),
                int_lanes::<V>(V::int_shift_left::<5>(x)),
                int_lanes::<V>(V::int_shift_right::<5>(x)),
                int_lanes::<V>(low),
                int_lanes::<V>(high),
                int_lanes::<V>(V::from_bits(x).to_bits()),
            ];
            let less = mask_lanes::<V>(V::int_less_unsigned(x, y));
            let floats = lanes(V::from_int(x));
            for i in 0..n {
                let (u, v) = (a[i] as u32, b[i] as u32);
                let product = u64::from(u) * u64::from(v);
                let expected =
                    [u.wrapping_add(v), u & v, u ^ v, u << 5, u >> 5, product as u32, (product >> 32) as u32, u];
                for (operation, (found, expected)) in found.iter().zip(expected).enumerate() {
                    assert_eq!(found[i], expected, "operation {operation} of {u:#x}, {v:#x}");
                }
                assert_eq!(less[i], u < v, "{u} < {v}");
                assert_eq!(floats[i], a[i] as f32, "from_int({})", a[i]);
            }
        }
        for value in [0.0, 0.5, 1.5, -0.5, -2.5, 126.49, -126.51, 1e6, -4_000_000.0, 16_777_216.0] {
            let found = int_lanes::<V>(V::splat(value).to_int())[0] as i32;
            assert_eq!(found, value.round_ties_even() as i32, "to_int({value})");
        }
        assert_eq!(int_lanes::<V>(V::int_splat(-3))[n - 1] as i32, -3);
    }
}

#[test]
fn integer_operations_match_scalar() {
    let mut random = Random::fresh();
    let mut values = vec![0, 1, -1, i32::MAX, i32::MIN, 0x7F80_0001, 127];
    values.extend((0..200).map(|_| random.word() as i32));
    run_on_all(Integers(&values));
}

#[derive(Clone, Copy)]
struct Transpose;

impl Kernel for Transpose {
    type Output = ();
    #[inline(always)]
    fn run<V: Vector>(self) {
        let (n, source_stride, target_stride) = (V::LANES, V::LANES + 3, V::LANES + 1);
        let source: Vec<f32> = (0..n * source_stride).map(|i| i as f32).collect();
        let mut target = vec![-1.0; n * target_stride];
        // SAFETY: both hold `n` rows of `n` values at their strides.
        unsafe { V::transpose(source.as_ptr(), source_stride, target.as_mut_ptr(), target_stride) };
        for i in 0..n {
            for j in 0..n {
                assert_eq!(target[j * target_stride + i], source[i * source_stride + j], "row {i}, column {j}");
            }
            assert_eq!(target[i * target_stride + n], -1.0, "written past row {i}");
        }
    }
}

#[test]
fn transpose_swaps_rows_and_columns_and_leaves_the_rest() {
    run_on_all(Transpose);
}

#[test]
fn names_and_lanes_of_levels_are_those_of_their_vectors() {
    struct Lanes;
    impl Kernel for Lanes {
        type Output = usize;
        #[inline(always)]
        fn run<V: Vector>(self) -> usize {
            V::LANES
        }
    }
    for level in Level::available() {
        assert_eq!(level.run(Lanes), level.lanes(), "{}", level.name());
    }
}
