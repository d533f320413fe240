//! Matrix products: right, and fast enough to be of use. `cargo test --release --test emulator speed -- --nocapture` prints figures.

use engine::driver::emulator::{DeviceFacts, Emulator, LaunchConfig, Params};

fn random(seed: &mut u64) -> f32 {
    *seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
    (*seed >> 40) as f32 / (1u64 << 24) as f32 - 0.5
}

#[test]
fn gemm_f32_is_right() {
    let emulator = Emulator::new(DeviceFacts::default()).with_threads(1);
    let module = emulator.load("gemm.ptx", include_str!("gemm.ptx")).unwrap();
    let (m, n, k) = (256usize, 256usize, 256usize);
    let mut seed = 7;
    let a: Vec<f32> = (0..m * k).map(|_| random(&mut seed)).collect();
    let b: Vec<f32> = (0..k * n).map(|_| random(&mut seed)).collect();
    let (da, db) = (emulator.upload(&a).unwrap(), emulator.upload(&b).unwrap());
    let dc = emulator.upload(&vec![f32::NAN; m * n]).unwrap();
    let params = Params::new().u64(da).u64(db).u64(dc).i32(m as i32).i32(n as i32).i32(k as i32);
    let start = std::time::Instant::now();
    let report =
        emulator.launch(&module, "gemm_f32", LaunchConfig::new([4, 4, 1], [256, 1, 1]), params.as_bytes()).unwrap();
    let seconds = start.elapsed().as_secs_f64();
    let rate = report.warp_instructions as f64 * 32.0 / seconds / 1e6;
    println!(
        "gemm_f32: {} warp instructions, {rate:.0} million thread instructions per second",
        report.warp_instructions
    );
    let c = emulator.download::<f32>(dc, m * n).unwrap();
    for (row, column) in [(0, 0), (17, 200), (255, 255), (100, 3)] {
        let exact: f64 = (0..k).map(|i| f64::from(a[row * k + i]) * f64::from(b[i * n + column])).sum();
        assert!((f64::from(c[row * n + column]) - exact).abs() < 1e-5, "{row} {column}");
    }
}

#[test]
fn gemm_bf16_through_tensor_cores_is_right() {
    let emulator = Emulator::new(DeviceFacts::default()).with_threads(1);
    let module = emulator.load("gemm.ptx", include_str!("gemm.ptx")).unwrap();
    let (m, n, k) = (256usize, 256usize, 256usize);
    let mut seed = 9;
    let mut matrix =
        |count: usize| -> Vec<u16> { (0..count).map(|_| half::bf16::from_f32(random(&mut seed)).to_bits()).collect() };
    let (a, b) = (matrix(m * k), matrix(n * k));
    let (da, db) = (emulator.upload(&a).unwrap(), emulator.upload(&b).unwrap());
    let dc = emulator.upload(&vec![f32::NAN; m * n]).unwrap();
    let params = Params::new().u64(da).u64(db).u64(dc).i32(m as i32).i32(n as i32).i32(k as i32);
    let start = std::time::Instant::now();
    emulator.launch(&module, "gemm_bf16", LaunchConfig::new([4, 4, 1], [128, 1, 1]), params.as_bytes()).unwrap();
    let rate = 2.0 * (m * n * k) as f64 / start.elapsed().as_secs_f64() / 1e9;
    println!("gemm_bf16: {rate:.1} GFLOP/s");
    let c = emulator.download::<f32>(dc, m * n).unwrap();
    let value = |bits: u16| half::bf16::from_bits(bits).to_f64();
    for (row, column) in [(0, 0), (17, 200), (255, 255), (100, 3)] {
        let exact: f64 = (0..k).map(|i| value(a[row * k + i]) * value(b[column * k + i])).sum();
        assert!((f64::from(c[row * n + column]) - exact).abs() < 1e-4, "{row} {column}");
    }
}
