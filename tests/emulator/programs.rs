//! Programs of many kinds, against plain Rust.

use engine::driver::emulator::{
    DeviceFacts, Emulator, EmulatorError, FaultKind, LaunchConfig, LaunchReport, Module, Params,
};

/// A device that runs programs plainly, or under the sanitizer, which must find nothing.
struct Device {
    emulator: Emulator,
    is_sanitizing: bool,
}

impl std::ops::Deref for Device {
    type Target = Emulator;
    fn deref(&self) -> &Emulator {
        &self.emulator
    }
}

impl Device {
    fn launch(
        &self,
        module: &Module,
        kernel: &str,
        config: LaunchConfig,
        params: &[u8],
    ) -> Result<LaunchReport, EmulatorError> {
        if !self.is_sanitizing {
            return self.emulator.launch(module, kernel, config, params);
        }
        let (report, findings) = self.emulator.launch_sanitized(module, kernel, config, params)?;
        assert!(findings.is_empty(), "{kernel}: {findings:#?}");
        Ok(report)
    }
}

fn load_on(emulator: Emulator, is_sanitizing: bool) -> (Device, Module) {
    let module = emulator.load("programs.ptx", include_str!("programs.ptx")).unwrap();
    (Device { emulator, is_sanitizing }, module)
}

fn load() -> (Device, Module) {
    load_on(Emulator::new(DeviceFacts::default()), false)
}

/// Without and with the sanitizer.
fn both_ways() -> [(Device, Module); 2] {
    let tracking = Emulator::new(DeviceFacts::default()).with_initialisation_tracking();
    [load(), load_on(tracking, true)]
}

fn hash(index: u32) -> u32 {
    let x = index.wrapping_mul(0x9E37_79B9) ^ 0x1234_5678;
    (x ^ (x >> 15)).wrapping_mul(0x85EB_CA6B)
}

#[test]
fn vector_add_handles_a_ragged_end() {
    for (emulator, module) in both_ways() {
        let n = 1023;
        let a: Vec<f32> = (0..n).map(|i| i as f32).collect();
        let b: Vec<f32> = (0..n).map(|i| (i * i) as f32).collect();
        let (da, db, dc) =
            (emulator.upload(&a).unwrap(), emulator.upload(&b).unwrap(), emulator.allocate(4 * n as u64).unwrap());
        let params = Params::new().u64(da).u64(db).u64(dc).i32(n);
        emulator.launch(&module, "vector_add", LaunchConfig::linear(n as u32, 128), params.as_bytes()).unwrap();
        let c = emulator.download::<f32>(dc, n as usize).unwrap();
        assert!((0..n as usize).all(|i| c[i] == a[i] + b[i]));
    }
}

#[test]
fn block_sums_by_shuffles_and_shared_memory() {
    for (emulator, module) in both_ways() {
        let values: Vec<f32> = (0..10_000).map(|i| (i % 17) as f32).collect();
        let (input, out) = (emulator.upload(&values).unwrap(), emulator.allocate(4 * 7).unwrap());
        let params = Params::new().u64(input).u64(out).i32(10_000);
        emulator.launch(&module, "block_sum", LaunchConfig::new([7, 1, 1], [256, 1, 1]), params.as_bytes()).unwrap();
        let sums = emulator.download::<f32>(out, 7).unwrap();
        assert_eq!(sums.iter().sum::<f32>(), values.iter().sum::<f32>());
    }
}

#[test]
fn histogram_by_shared_and_global_atomics() {
    for (emulator, module) in both_ways() {
        let bytes: Vec<u8> = (0..50_000).map(|i| hash(i) as u8).collect();
        let (input, bins) = (emulator.upload(&bytes).unwrap(), emulator.upload(&[0u32; 256]).unwrap());
        let params = Params::new().u64(input).u64(bins).i32(50_000);
        emulator.launch(&module, "histogram", LaunchConfig::new([5, 1, 1], [192, 1, 1]), params.as_bytes()).unwrap();
        let counted = emulator.download::<u32>(bins, 256).unwrap();
        assert!(
            (0..256).all(|bin| counted[bin] as usize == bytes.iter().filter(|&&byte| byte as usize == bin).count())
        );
    }
}

#[test]
fn scan_and_sort_in_dynamic_shared_memory() {
    for (emulator, module) in both_ways() {
        let values: Vec<i32> = (0..500).map(|i| hash(i) as i32 % 100).collect();
        let data = emulator.upload(&values).unwrap();
        let config = LaunchConfig::new([1, 1, 1], [512, 1, 1]).shared(2048);
        emulator.launch(&module, "inclusive_scan", config, Params::new().u64(data).i32(500).as_bytes()).unwrap();
        let scanned = emulator.download::<i32>(data, 500).unwrap();
        let mut sum = 0;
        assert!(values.iter().zip(&scanned).all(|(value, scanned)| {
            sum += value;
            sum == *scanned
        }));
        let mut keys: Vec<u32> = (0..512).map(hash).collect();
        let data = emulator.upload(&keys).unwrap();
        emulator.launch(&module, "bitonic_sort", config, Params::new().u64(data).as_bytes()).unwrap();
        keys.sort_unstable();
        assert_eq!(emulator.download::<u32>(data, 512).unwrap(), keys);
    }
}

#[test]
fn stencil_in_two_dimensions_and_double_precision() {
    for (emulator, module) in both_ways() {
        let (w, h) = (45usize, 31usize);
        let values: Vec<f64> = (0..w * h).map(|i| f64::from(hash(i as u32)) / 1e9).collect();
        let (input, out) = (emulator.upload(&values).unwrap(), emulator.upload(&vec![0f64; w * h]).unwrap());
        let params = Params::new().u64(input).u64(out).i32(w as i32).i32(h as i32);
        emulator.launch(&module, "stencil", LaunchConfig::new([3, 4, 1], [16, 8, 1]), params.as_bytes()).unwrap();
        let got = emulator.download::<f64>(out, w * h).unwrap();
        for y in 1..h - 1 {
            for x in 1..w - 1 {
                let at = |x: usize, y: usize| values[y * w + x];
                let expected = 0.25 * (at(x - 1, y) + at(x + 1, y) + at(x, y - 1) + at(x, y + 1));
                assert!((got[y * w + x] - expected).abs() < 1e-12);
            }
        }
    }
}

#[test]
fn device_side_printf_comes_out_in_block_order() {
    for (emulator, module) in both_ways() {
        let values = emulator.upload(&[5i32, -3]).unwrap();
        let report = emulator
            .launch(&module, "say", LaunchConfig::new([3, 1, 1], [32, 1, 1]), Params::new().u64(values).as_bytes())
            .unwrap();
        let text = String::from_utf8(report.output).unwrap();
        let expected: String = (0..3)
            .map(|b| {
                format!(
                    "block {b} thread 0: 5 1.250 text 1099511627776\nblock {b} thread 1: -3 -0.750 text 1099511627776\n"
                )
            })
            .collect();
        assert_eq!(text, expected);
    }
}

#[test]
fn recursion_indirect_calls_switches_and_local_arrays() {
    for (emulator, module) in both_ways() {
        let one = LaunchConfig::new([1, 1, 1], [64, 1, 1]);
        let out = emulator.upload(&[0i32; 64]).unwrap();
        emulator.launch(&module, "recurse", one, Params::new().u64(out).as_bytes()).unwrap();
        fn fibonacci(n: i32) -> i32 {
            if n < 2 { n } else { fibonacci(n - 1) + fibonacci(n - 2) }
        }
        let expected: Vec<i32> = (0..64).map(|i| fibonacci(i % 13)).collect();
        assert_eq!(emulator.download::<i32>(out, 64).unwrap(), expected);

        emulator.launch(&module, "indirect", one, Params::new().u64(out).as_bytes()).unwrap();
        let expected: Vec<i32> = (0..64).map(|i| [2 * i, i * i, -i][i as usize % 3]).collect();
        assert_eq!(emulator.download::<i32>(out, 64).unwrap(), expected);

        let choices: Vec<i32> = (0..64).map(|i| hash(i) as i32 & 15).collect();
        let input = emulator.upload(&choices).unwrap();
        emulator.launch(&module, "switches", one, Params::new().u64(input).u64(out).as_bytes()).unwrap();
        let expected: Vec<i32> = choices
            .iter()
            .map(|&v| match v {
                0 => 11,
                1 => v * 7 + 3,
                2 => v ^ 0x55,
                3 => 1000 - v,
                4 => v << 4,
                5 => -v,
                6 => v * v,
                7 => 77,
                _ => 5,
            })
            .collect();
        assert_eq!(emulator.download::<i32>(out, 64).unwrap(), expected);

        let input = emulator.upload(&[3i32, 6]).unwrap();
        emulator.launch(&module, "local_arrays", one, Params::new().u64(input).u64(out).as_bytes()).unwrap();
        let expected: Vec<i32> = (0..64i32)
            .map(|t| {
                let mut buffer = [0i32; 16];
                (0..16).for_each(|i| buffer[((i * 3 + t) & 15) as usize] = i + t);
                (0..16).fold(0i32, |sum, i| sum.wrapping_mul(3).wrapping_add(buffer[(i ^ 6) & 15]))
            })
            .collect();
        assert_eq!(emulator.download::<i32>(out, 64).unwrap(), expected);
    }
}

#[test]
fn a_spin_lock_between_lanes_and_blocks_ends() {
    for (emulator, module) in both_ways() {
        let (lock, counter) = (emulator.upload(&[0u32]).unwrap(), emulator.upload(&[0i32]).unwrap());
        let params = Params::new().u64(lock).u64(counter);
        emulator.launch(&module, "spin_lock", LaunchConfig::new([3, 1, 1], [64, 1, 1]), params.as_bytes()).unwrap();
        assert_eq!(emulator.download::<i32>(counter, 1).unwrap(), [192]);
    }
}

#[test]
fn blocks_that_wait_for_later_blocks_take_turns() {
    let one = Emulator::new(DeviceFacts::default()).with_threads(1);
    for (emulator, module) in [load_on(one, false), load_on(Emulator::new(DeviceFacts::default()), true)] {
        let (flags, out) = (emulator.upload(&[0i32; 8]).unwrap(), emulator.upload(&[0i32; 8]).unwrap());
        let params = Params::new().u64(flags).u64(out);
        emulator
            .launch(&module, "wait_for_next_block", LaunchConfig::new([8, 1, 1], [32, 1, 1]), params.as_bytes())
            .unwrap();
        assert_eq!(emulator.download::<i32>(out, 8).unwrap(), [8, 7, 6, 5, 4, 3, 2, 1]);
    }
}

#[test]
fn wmma_fragments_multiply() {
    for (emulator, module) in both_ways() {
        let number = |i: u32| half::f16::from_f32((hash(i) % 9) as f32 - 4.0);
        let a: Vec<u16> = (0..256).map(|i| number(i).to_bits()).collect();
        let b: Vec<u16> = (0..256).map(|i| number(i + 1000).to_bits()).collect();
        let (da, db, dc) =
            (emulator.upload(&a).unwrap(), emulator.upload(&b).unwrap(), emulator.allocate(1024).unwrap());
        let params = Params::new().u64(da).u64(db).u64(dc);
        emulator.launch(&module, "wmma_half", LaunchConfig::new([1, 1, 1], [32, 1, 1]), params.as_bytes()).unwrap();
        let c = emulator.download::<f32>(dc, 256).unwrap();
        let value = |bits: u16| half::f16::from_bits(bits).to_f32();
        for row in 0..16 {
            for column in 0..16 {
                let sum: f32 = (0..16).map(|k| value(a[row * 16 + k]) * value(b[column * 16 + k])).sum();
                assert_eq!(c[row * 16 + column], 2.0 * (sum + 1.0), "{row} {column}");
            }
        }
    }
}

#[test]
fn library_mathematics_agree_with_the_host() {
    for (emulator, module) in both_ways() {
        let x: Vec<f64> = (0..64).map(|i| f64::from(hash(i) as i32) / 4e8).collect();
        let y: Vec<f32> = x.iter().map(|&x| x as f32 + 0.25).collect();
        let (dx, dy) = (emulator.upload(&x).unwrap(), emulator.upload(&y).unwrap());
        let (d, f) = (emulator.allocate(64 * 32).unwrap(), emulator.allocate(64 * 24).unwrap());
        let params = Params::new().u64(dx).u64(dy).u64(d).u64(f);
        emulator.launch(&module, "mathematics", LaunchConfig::new([1, 1, 1], [64, 1, 1]), params.as_bytes()).unwrap();
        let (d, f) = (emulator.download::<f64>(d, 256).unwrap(), emulator.download::<f32>(f, 384).unwrap());
        for i in 0..64 {
            let (a, b) = (x[i], f64::from(y[i]));
            let near = |got: f64, expected: f64, relative: f64| {
                assert!(
                    (got - expected).abs() <= relative * (1.0 + expected.abs()),
                    "{i}: x {a} y {b}: {got} {expected}"
                );
            };
            near(d[4 * i], a.exp(), 1e-14);
            near(d[4 * i + 1], (a.abs() + 1.0).ln(), 1e-14);
            near(d[4 * i + 2], a.sin() * a.abs().powf(0.3), 1e-14);
            near(f[6 * i].into(), b.exp(), 1e-6);
            near(f[6 * i + 1].into(), (b.abs() + 1.0).ln(), 1e-6);
            near(f[6 * i + 2].into(), f64::from((y[i]) * 1000.0).sin(), 1e-6);
            near(f[6 * i + 3].into(), b.tanh(), 1e-6);
            near(f[6 * i + 4].into(), 1.0 / b.abs().sqrt() + b.cbrt(), 1e-6);
            near(f[6 * i + 5].into(), f64::from(y[i] / 3.7f32) + f64::from(y[i] % 0.7f32), 1e-6);
        }
    }
}

#[test]
fn long_integers_divide_and_multiply() {
    for (emulator, module) in both_ways() {
        let number = |i: u32| (i64::from(hash(i)) << 31) ^ i64::from(hash(i + 99)) | 1;
        let a: Vec<i64> = (0..64).map(|i| number(i) * if i % 2 == 0 { 1 } else { -1 }).collect();
        let b: Vec<i64> = (0..64).map(|i| (number(i + 500) >> (i % 50)) | 1).collect();
        let (da, db, out) =
            (emulator.upload(&a).unwrap(), emulator.upload(&b).unwrap(), emulator.allocate(64 * 48).unwrap());
        let params = Params::new().u64(da).u64(db).u64(out);
        emulator.launch(&module, "long_integers", LaunchConfig::new([1, 1, 1], [64, 1, 1]), params.as_bytes()).unwrap();
        let out = emulator.download::<i64>(out, 384).unwrap();
        for i in 0..64 {
            let (a, b) = (a[i], b[i]);
            assert_eq!(out[6 * i], a / b);
            assert_eq!(out[6 * i + 1], a % b);
            assert_eq!(out[6 * i + 2], ((i128::from(a) * i128::from(b)) >> 64) as i64);
            assert_eq!(out[6 * i + 3], (a as u64 / u64::from(b as u32)) as i64);
            assert_eq!(out[6 * i + 4], i64::from(a.count_ones() + b.leading_zeros() + a.trailing_zeros() + 1));
            assert_eq!(out[6 * i + 5], (i128::from(a).wrapping_mul(i128::from(b)) >> 40) as i64);
        }
    }
}

#[test]
fn packed_halves_round_once() {
    use half::{bf16, f16};
    for (emulator, module) in both_ways() {
        let halves = |salt: u32| -> Vec<u16> {
            (0..64).map(|i| f16::from_f32((hash(i + salt) as i32 % 4000) as f32 / 37.0).to_bits()).collect()
        };
        let (a, b) = (halves(0), halves(777));
        let c: Vec<u16> = (0..64).map(|i| bf16::from_f32((hash(i) as i32 % 4000) as f32 / 37.0).to_bits()).collect();
        let (da, db, dc) = (emulator.upload(&a).unwrap(), emulator.upload(&b).unwrap(), emulator.upload(&c).unwrap());
        let (out, e) = (emulator.allocate(32 * 16).unwrap(), emulator.allocate(32 * 8).unwrap());
        let params = Params::new().u64(da).u64(db).u64(out).u64(dc).u64(e);
        emulator.launch(&module, "halves", LaunchConfig::new([1, 1, 1], [32, 1, 1]), params.as_bytes()).unwrap();
        let (out, e) = (emulator.download::<u16>(out, 256).unwrap(), emulator.download::<u16>(e, 128).unwrap());
        for i in 0..64 {
            let (x, y) = (f16::from_bits(a[i]).to_f64(), f16::from_bits(b[i]).to_f64());
            let at = |k: usize| out[8 * (i / 2) + 2 * k + i % 2];
            assert_eq!(at(0), f16::from_f64(x + y).to_bits());
            assert_eq!(at(1), f16::from_f64(x * y).to_bits());
            assert_eq!(at(2), f16::from_f64(x * y + x).to_bits());
            assert_eq!(at(3), f16::from_f64(x.max(-y)).to_bits());
            let z = bf16::from_bits(c[i]).to_f64();
            let at = |k: usize| e[4 * (i / 2) + 2 * k + i % 2];
            assert_eq!(at(0), bf16::from_f64(z * z + z).to_bits(), "{z}");
            assert_eq!(at(1), bf16::from_f64(z + 1.5).to_bits());
        }
    }
}

#[test]
fn structures_by_value() {
    for (emulator, module) in both_ways() {
        let out = emulator.allocate(8 * 32).unwrap();
        let mut big = vec![0u8; 56];
        big[0..4].copy_from_slice(&7i32.to_le_bytes());
        big[8..16].copy_from_slice(&1.5f64.to_le_bytes());
        for i in 0..8 {
            big[16 + 4 * i..20 + 4 * i].copy_from_slice(&(i as f32 * 2.0).to_le_bytes());
        }
        big[48] = 3;
        let params = Params::new().bytes(&big, 8).u64(out);
        emulator.launch(&module, "by_value", LaunchConfig::new([1, 1, 1], [32, 1, 1]), params.as_bytes()).unwrap();
        let got = emulator.download::<f64>(out, 32).unwrap();
        assert!((0..32).all(|t| got[t] == (t % 8) as f64 * 3.0 + 10.0));
    }
}

#[test]
fn votes_matches_reductions_and_segmented_shuffles() {
    for (emulator, module) in both_ways() {
        let values: Vec<i32> = (0..32).map(|i| (hash(i) % 9) as i32).collect();
        let (input, out) = (emulator.upload(&values).unwrap(), emulator.allocate(32 * 20).unwrap());
        emulator
            .launch(
                &module,
                "votes",
                LaunchConfig::new([1, 1, 1], [32, 1, 1]),
                Params::new().u64(input).u64(out).as_bytes(),
            )
            .unwrap();
        let out = emulator.download::<u32>(out, 160).unwrap();
        let ballot = (0..32).fold(0u32, |b, l| b | ((values[l] & 1) as u32) << l);
        for lane in 0..32 {
            assert_eq!(out[5 * lane], ballot);
            assert_eq!(out[5 * lane + 1], 1 + 2 * u32::from(values.contains(&7)));
            assert_eq!(out[5 * lane + 2], (0..32).fold(0u32, |m, l| m | u32::from(values[l] == values[lane]) << l));
            assert_eq!(out[5 * lane + 3], values.iter().sum::<i32>() as u32 ^ *values.iter().max().unwrap() as u32);
            let from = if lane % 8 >= 3 { lane - 3 } else { lane };
            assert_eq!(out[5 * lane + 4], values[from] as u32);
        }
    }
}

#[test]
fn cooperative_groups_of_a_block() {
    for (emulator, module) in both_ways() {
        let values: Vec<i32> = (0..64).collect();
        let (input, out) = (emulator.upload(&values).unwrap(), emulator.upload(&[0i32; 101]).unwrap());
        emulator
            .launch(
                &module,
                "group_sums",
                LaunchConfig::new([1, 1, 1], [64, 1, 1]),
                Params::new().u64(input).u64(out).as_bytes(),
            )
            .unwrap();
        let out = emulator.download::<i32>(out, 101).unwrap();
        assert!((0..8).all(|g| out[g] == (0..8).map(|i| (8 * g + i) as i32).sum::<i32>()));
        assert_eq!(out[100], 22);
    }
}

#[test]
fn divergent_loops_reconverge_with_the_right_values() {
    for (emulator, module) in both_ways() {
        let out = emulator.allocate(4 * 128).unwrap();
        emulator
            .launch(
                &module,
                "divergent_barrier_free",
                LaunchConfig::new([1, 1, 1], [128, 1, 1]),
                Params::new().u64(out).as_bytes(),
            )
            .unwrap();
        let expected: Vec<i32> = (0..128i32)
            .map(|start| {
                let (mut x, mut steps) = (start, 0);
                while x != 1 && steps < 500 {
                    x = if x & 1 != 0 { 3 * x + 1 } else { x / 2 };
                    steps += 1;
                    if x == 0 {
                        break;
                    }
                }
                steps
            })
            .collect();
        assert_eq!(emulator.download::<i32>(out, 128).unwrap(), expected);
    }
}

#[test]
fn a_failed_assertion_names_its_text_block_and_thread() {
    let (emulator, module) = load();
    emulator
        .launch(&module, "asserts", LaunchConfig::new([2, 1, 1], [32, 1, 1]), Params::new().i32(32).as_bytes())
        .unwrap();
    let error = emulator
        .launch(&module, "asserts", LaunchConfig::new([2, 1, 1], [32, 1, 1]), Params::new().i32(20).as_bytes())
        .unwrap_err();
    let EmulatorError::Fault(fault) = error else { panic!("{error}") };
    assert_eq!((fault.block, fault.thread), ([0, 0, 0], [20, 0, 0]));
    assert!(matches!(&fault.kind, FaultKind::Assertion(text) if text.contains("threadIdx.x < limit")), "{fault}");
}

#[test]
fn asynchronous_copies_land_in_shared_memory() {
    for (emulator, module) in both_ways() {
        let values: Vec<f32> = (0..1024).map(|i| i as f32).collect();
        let (input, out) = (emulator.upload(&values).unwrap(), emulator.allocate(4096).unwrap());
        emulator
            .launch(
                &module,
                "async_copy",
                LaunchConfig::new([1, 1, 1], [64, 1, 1]),
                Params::new().u64(input).u64(out).as_bytes(),
            )
            .unwrap();
        let out = emulator.download::<f32>(out, 1024).unwrap();
        for stage in 0..4 {
            for t in 0..256 {
                assert_eq!(out[stage * 256 + t], values[stage * 256 + 255 - t]);
            }
        }
    }
}

#[test]
fn atomics_of_all_kinds() {
    for (emulator, module) in both_ways() {
        let (f, d, h) = (
            emulator.upload(&[0f32]).unwrap(),
            emulator.upload(&[0f64]).unwrap(),
            emulator.upload(&[0u16; 2]).unwrap(),
        );
        let (ints, longs) = (emulator.upload(&[0i32; 4]).unwrap(), emulator.upload(&[0u64; 2]).unwrap());
        let params = Params::new().u64(f).u64(d).u64(h).u64(ints).u64(longs);
        emulator.launch(&module, "float_atomics", LaunchConfig::new([2, 1, 1], [64, 1, 1]), params.as_bytes()).unwrap();
        assert_eq!(emulator.download::<f32>(f, 1).unwrap(), [64.0]);
        assert_eq!(emulator.download::<f64>(d, 1).unwrap(), [32.0]);
        let h = emulator.download::<u16>(h, 2).unwrap();
        assert_eq!([h[0], h[1]], [half::f16::from_f32(128.0).to_bits(), half::f16::from_f32(256.0).to_bits()]);
        assert_eq!(emulator.download::<i32>(ints, 4).unwrap(), [-63, 63, 0, 8]);
        assert_eq!(emulator.download::<u64>(longs, 2).unwrap(), [128 << 33, 63 << 40]);
    }
}

#[test]
fn a_grid_wide_barrier_brings_all_blocks_together() {
    let (emulator, module) = load();
    for threads in [1, 3] {
        let emulator = Emulator::new(DeviceFacts::default()).with_threads(threads);
        let module = emulator.load("programs.ptx", include_str!("programs.ptx")).unwrap();
        let (count, rounds) = (6 * 64usize, 5);
        let mut values: Vec<i32> = (0..count as i32).collect();
        let data = emulator.upload(&values).unwrap();
        let config = LaunchConfig { is_cooperative: true, ..LaunchConfig::new([6, 1, 1], [64, 1, 1]) };
        emulator.launch(&module, "grid_wide", config, Params::new().u64(data).i32(rounds).as_bytes()).unwrap();
        for _ in 0..rounds {
            values = (0..count).map(|i| values[(i + 1) % count] + 1).collect();
        }
        assert_eq!(emulator.download::<i32>(data, count).unwrap(), values, "{threads} threads");
    }
    let config = LaunchConfig { is_cooperative: true, ..LaunchConfig::new([100_000, 1, 1], [64, 1, 1]) };
    let error = emulator.launch(&module, "grid_wide", config, Params::new().u64(0).i32(1).as_bytes()).unwrap_err();
    assert!(error.to_string().contains("3456 fit"), "{error}");
    let config = LaunchConfig::new([6, 1, 1], [64, 1, 1]);
    let data = emulator.upload(&[0i32; 384]).unwrap();
    let error = emulator.launch(&module, "grid_wide", config, Params::new().u64(data).i32(1).as_bytes()).unwrap_err();
    assert!(error.to_string().contains("cuLaunchCooperativeKernel; --cooperative"), "{error}");
}

#[test]
fn results_are_the_same_for_any_number_of_threads() {
    let run = |threads| {
        let emulator = Emulator::new(DeviceFacts::default()).with_threads(threads);
        let module = emulator.load("programs.ptx", include_str!("programs.ptx")).unwrap();
        let values: Vec<f32> = (0..20_000).map(|i| hash(i) as f32 / 1e9).collect();
        let (input, out) = (emulator.upload(&values).unwrap(), emulator.allocate(4 * 40).unwrap());
        let params = Params::new().u64(input).u64(out).i32(20_000);
        emulator.launch(&module, "block_sum", LaunchConfig::new([40, 1, 1], [96, 1, 1]), params.as_bytes()).unwrap();
        let said = emulator
            .launch(&module, "say", LaunchConfig::new([30, 1, 1], [32, 1, 1]), Params::new().u64(input).as_bytes())
            .unwrap();
        (emulator.download::<u32>(out, 40).unwrap(), said)
    };
    let one = run(1);
    assert!((2..6).all(|threads| run(threads) == one));
}

#[test]
fn a_store_from_a_wide_register_writes_its_low_half() {
    let emulator = Emulator::new(DeviceFacts::default());
    // As NVVM emits it for an array of int indexed by a 64-bit number.
    let text = ".version 7.0\n.target sm_80\n.address_size 64\n.visible .entry k(.param .u64 out) {\n\
        .reg .b32 %r<2>;\n.reg .b64 %rd<5>;\nld.param.u64 %rd1, [out];\nmov.u32 %r1, %tid.x;\ncvt.u64.u32 %rd2, %r1;\n\
        mad.wide.u32 %rd3, %r1, 4, %rd1;\nst.global.u32 [%rd3], %rd2;\nret;\n}\n";
    let module = emulator.load("k.ptx", text).unwrap();
    for threads in [10, 32, 50] {
        let out = emulator.upload(&[u32::MAX; 51]).unwrap();
        let config = LaunchConfig::new([1, 1, 1], [threads, 1, 1]);
        emulator.launch(&module, "k", config, Params::new().u64(out).as_bytes()).unwrap();
        let values = emulator.download::<u32>(out, threads as usize + 1).unwrap();
        let expected: Vec<u32> = (0..threads).chain([u32::MAX]).collect();
        assert_eq!(values, expected);
    }
}
