//! Matrix products: right, fast enough to be of use, and the same on any number of host threads. The figures are printed,
//! not asserted: `cargo test --release --test emulator speed -- --nocapture --test-threads 1`.

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

/// Processor time that this process has used, in seconds.
fn processor_seconds() -> f64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the call writes the time to the structure that it is given.
    unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &raw mut time) };
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

/// The best of several launches on so many host threads.
struct Timing {
    seconds: f64,
    processor_seconds: f64,
    c: Vec<u32>,
}

fn time_product(kernel: &str, threads: usize, operands: [&[u8]; 2], size: usize) -> Timing {
    let emulator = Emulator::new(DeviceFacts::default()).with_threads(threads);
    let module = emulator.load("gemm.ptx", include_str!("gemm.ptx")).unwrap();
    let [a, b] = operands.map(|operand| emulator.upload(operand).unwrap());
    let c = emulator.upload(&vec![f32::NAN; size * size]).unwrap();
    let n = size as i32;
    let params = Params::new().u64(a).u64(b).u64(c).i32(n).i32(n).i32(n);
    let (blocks, width) = ((size / 64) as u32, if kernel == "gemm_f32" { 256 } else { 128 });
    let config = LaunchConfig::new([blocks, blocks, 1], [width, 1, 1]);
    let mut best = Timing { seconds: f64::INFINITY, processor_seconds: f64::INFINITY, c: Vec::new() };
    for _ in 0..8 {
        let (start, used) = (std::time::Instant::now(), processor_seconds());
        emulator.launch(&module, kernel, config, params.as_bytes()).unwrap();
        best.seconds = best.seconds.min(start.elapsed().as_secs_f64());
        best.processor_seconds = best.processor_seconds.min(processor_seconds() - used);
    }
    best.c = emulator.download(c, size * size).unwrap();
    best
}

/// On a machine that others use too, the processor time is the better witness: if threads waited for each other's locks or
/// cache lines, they would use more of it together than one does alone.
#[test]
fn products_are_the_same_bits_on_any_number_of_threads() {
    const SIZE: usize = 512;
    let mut seed = 3;
    let mut numbers = || -> Vec<f32> { (0..SIZE * SIZE).map(|_| random(&mut seed)).collect() };
    let (a, b) = (numbers(), numbers());
    let halves =
        |values: &[f32]| -> Vec<u16> { values.iter().map(|&value| half::bf16::from_f32(value).to_bits()).collect() };
    let (a_half, b_half) = (halves(&a), halves(&b));
    for (kernel, operands) in [
        ("gemm_f32", [bytemuck::cast_slice(&a), bytemuck::cast_slice(&b)]),
        ("gemm_bf16", [bytemuck::cast_slice(&a_half), bytemuck::cast_slice(&b_half)]),
    ] {
        let one = time_product(kernel, 1, operands, SIZE);
        println!("{kernel}: {:.1} GFLOP/s on one thread", 2.0 * (SIZE as f64).powi(3) / one.seconds / 1e9);
        for threads in [2, 3] {
            let more = time_product(kernel, threads, operands, SIZE);
            println!(
                "{kernel}: {threads} threads are {:.2} times as fast as one, and use {:.2} times its processor time",
                one.seconds / more.seconds,
                more.processor_seconds / one.processor_seconds
            );
            assert!(one.c == more.c, "{kernel} on {threads} threads");
        }
    }
}
