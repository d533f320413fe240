//! PTX that Triton makes for sm_80 (`triton_kernels.py`), run against f64 and under the sanitizer.
//!
//! Triton adds two pointers behind a kernel's own parameters (global and profile scratch), which these kernels do not use.

use engine::driver::emulator::{DeviceFacts, Emulator, LaunchConfig, Params};

struct Setup {
    emulator: Emulator,
    seed: u64,
}

impl Setup {
    fn new() -> Self {
        Self { emulator: Emulator::new(DeviceFacts::default()), seed: 3 }
    }

    fn floats(&mut self, count: usize) -> Vec<f32> {
        (0..count)
            .map(|_| {
                self.seed = self.seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                (self.seed >> 40) as f32 / (1u64 << 23) as f32 - 1.0
            })
            .collect()
    }

    fn up<T: bytemuck::Pod>(&self, values: &[T]) -> u64 {
        self.emulator.upload(values).unwrap()
    }

    /// Launches plainly and under the sanitizer.
    fn launch(&self, text: &str, name: &str, grid: [u32; 3], shared: u32, params: Params) {
        let module = self.emulator.load("triton.ptx", text).unwrap_or_else(|error| panic!("{name}: {error}"));
        let params = params.u64(0).u64(0);
        let config = LaunchConfig::new(grid, [128, 1, 1]).shared(shared);
        let findings = self.emulator.launch_sanitized(&module, name, config, params.as_bytes()).unwrap().1;
        assert!(findings.is_empty(), "{name}: {findings:#?}");
        self.emulator
            .launch(&module, name, config, params.as_bytes())
            .unwrap_or_else(|error| panic!("{name}: {error}"));
    }
}

fn near(got: &[f32], expected: &[f64], tolerance: f64) {
    for (index, (got, expected)) in got.iter().zip(expected).enumerate() {
        assert!(
            (f64::from(*got) - expected).abs() <= tolerance * (1.0 + expected.abs()),
            "element {index}: {got} {expected}"
        );
    }
}

fn bf16(values: &[f32]) -> (Vec<u16>, Vec<f64>) {
    let bits: Vec<u16> = values.iter().map(|&v| half::bf16::from_f32(v).to_bits()).collect();
    let rounded = bits.iter().map(|&b| half::bf16::from_bits(b).to_f64()).collect();
    (bits, rounded)
}

#[test]
fn vector_add() {
    let mut s = Setup::new();
    let (x, y) = (s.floats(3000), s.floats(3000));
    let (dx, dy, out) = (s.up(&x), s.up(&y), s.up(&[f32::NAN; 3000]));
    let params = Params::new().u64(dx).u64(dy).u64(out).i32(3000);
    s.launch(include_str!("triton_vector_add.ptx"), "vector_add", [3, 1, 1], 0, params);
    let expected: Vec<f64> = x.iter().zip(&y).map(|(x, y)| f64::from(x + y)).collect();
    near(&s.emulator.download(out, 3000).unwrap(), &expected, 0.0);
}

#[test]
fn softmax_and_layer_norm() {
    let mut s = Setup::new();
    let (rows, columns) = (5usize, 203usize);
    let x = s.floats(rows * columns);
    let (dx, out) = (s.up(&x), s.up(&vec![f32::NAN; rows * columns]));
    let params = Params::new().u64(dx).u64(out).i32(columns as i32);
    s.launch(include_str!("triton_softmax.ptx"), "softmax", [rows as u32, 1, 1], 16, params);
    let mut expected = Vec::new();
    for row in x.chunks(columns) {
        let sum: f64 = row.iter().map(|&v| f64::from(v).exp()).sum();
        expected.extend(row.iter().map(|&v| f64::from(v).exp() / sum));
    }
    near(&s.emulator.download(out, rows * columns).unwrap(), &expected, 1e-6);

    let (weight, bias) = (s.floats(columns), s.floats(columns));
    let (dw, db) = (s.up(&weight), s.up(&bias));
    let params = Params::new().u64(dx).u64(dw).u64(db).u64(out).i32(columns as i32).f32(1e-5);
    s.launch(include_str!("triton_layer_norm.ptx"), "layer_norm", [rows as u32, 1, 1], 1024, params);
    let mut expected = Vec::new();
    for row in x.chunks(columns) {
        let mean = row.iter().map(|&v| f64::from(v)).sum::<f64>() / columns as f64;
        let variance = row.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum::<f64>() / columns as f64;
        expected.extend((0..columns).map(|i| {
            (f64::from(row[i]) - mean) / (variance + 1e-5).sqrt() * f64::from(weight[i]) + f64::from(bias[i])
        }));
    }
    near(&s.emulator.download(out, rows * columns).unwrap(), &expected, 1e-5);
}

#[test]
fn matrix_products_in_bf16_and_tf32() {
    let mut s = Setup::new();
    let (m, n, k) = (80usize, 96usize, 112usize);
    let (a, b) = (s.floats(m * k), s.floats(k * n));
    let product = |a: &[f64], b: &[f64]| -> Vec<f64> {
        (0..m * n).map(|i| (0..k).map(|j| a[i / n * k + j] * b[j * n + i % n]).sum()).collect()
    };
    let ((ab, av), (bb, bv)) = (bf16(&a), bf16(&b));
    let out = s.up(&vec![f32::NAN; m * n]);
    let params = |a, b| Params::new().u64(a).u64(b).u64(out).i32(m as i32).i32(n as i32).i32(k as i32);
    s.launch(include_str!("triton_matmul_bf16.ptx"), "matmul", [2, 2, 1], 16384, params(s.up(&ab), s.up(&bb)));
    near(&s.emulator.download(out, m * n).unwrap(), &product(&av, &bv), 1e-5);

    s.launch(include_str!("triton_matmul_tf32.ptx"), "matmul", [2, 2, 1], 32768, params(s.up(&a), s.up(&b)));
    let wide = |values: &[f32]| values.iter().map(|&v| f64::from(v)).collect::<Vec<_>>();
    near(&s.emulator.download(out, m * n).unwrap(), &product(&wide(&a), &wide(&b)), 3e-3);
}

#[test]
fn fused_causal_attention() {
    let mut s = Setup::new();
    let (t, d) = (150usize, 64usize);
    let ((qb, q), (kb, k), (vb, v)) = (bf16(&s.floats(t * d)), bf16(&s.floats(t * d)), bf16(&s.floats(t * d)));
    let out = s.up(&vec![f32::NAN; t * d]);
    let params = Params::new().u64(s.up(&qb)).u64(s.up(&kb)).u64(s.up(&vb)).u64(out).i32(t as i32).f32(0.125);
    s.launch(include_str!("triton_attention.ptx"), "attention", [3, 1, 1], 40960, params);
    let mut expected = Vec::new();
    for row in 0..t {
        let weights: Vec<f64> =
            (0..=row).map(|c| ((0..d).map(|i| q[row * d + i] * k[c * d + i]).sum::<f64>() * 0.125).exp()).collect();
        let total: f64 = weights.iter().sum();
        expected.extend((0..d).map(|i| weights.iter().enumerate().map(|(c, w)| w * v[c * d + i]).sum::<f64>() / total));
    }
    near(&s.emulator.download(out, t * d).unwrap(), &expected, 1e-2);
}
