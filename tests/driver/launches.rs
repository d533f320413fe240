//! Launches: arguments, limits, shared memory, many threads at once.

use crate::{add, assert_refused, download, kernel, upload};
use engine::driver::{Driver, LaunchConfig, Params, Stream};
use std::thread;

pub fn arguments_of_all_sizes_arrive(driver: &dyn Driver) {
    let out = upload(driver, &[0; 16]);
    let params = Params::new().u8(0xA1).u16(0xB1B2).u32(0xC1C2_C3C4).u8(0xD1).u64(0xE1E2_E3E4_E5E6_E7E8);
    let structure = [[0; 8].as_slice(), &[1, 2, 3, 4]].concat();
    let params = params.f32(1.5).f64(-2.5).bytes(&structure, 4).u64(out);
    driver.launch(Stream::DEFAULT, kernel(driver, "pack"), LaunchConfig::linear(1, 1), &params).unwrap();
    let mut found = [0u64; 8];
    driver.read(Stream::DEFAULT, out, bytemuck::cast_slice_mut(&mut found)).unwrap();
    let bits = [u64::from(1.5f32.to_bits()), (-2.5f64).to_bits(), 0x0403_0201];
    assert_eq!(found[..5], [0xA1, 0xB1B2, 0xC1C2_C3C4, 0xD1, 0xE1E2_E3E4_E5E6_E7E8]);
    assert_eq!(found[5..], bits);
}

pub fn launches_beyond_the_limits_are_refused_and_harmless(driver: &dyn Driver) {
    let data = upload(driver, &[0; 64]);
    let (step, limited) = (kernel(driver, "step"), kernel(driver, "limited"));
    let facts = driver.facts();
    let params = Params::new().u64(data).u32(1);
    let small = LaunchConfig::linear(64, 64);
    let cooperative = LaunchConfig {
        is_cooperative: true,
        ..LaunchConfig::new([facts.multiprocessors * facts.max_blocks_per_multiprocessor + 1, 1, 1], [64, 1, 1])
    };
    for (config, figure) in [
        (LaunchConfig::new([1; 3], [2048, 1, 1]), "2048"),
        (LaunchConfig::new([1; 3], [32, 64, 1]), ""),
        (LaunchConfig::new([1; 3], [1, 1, 65]), "65"),
        (LaunchConfig::new([1; 3], [0, 1, 1]), "0"),
        (LaunchConfig::new([0, 1, 1], [1; 3]), "0"),
        (LaunchConfig::new([1, 65536, 1], [1; 3]), "65536"),
        (small.shared(facts.max_shared_bytes_per_block + 1), ""),
        (small.shared(u32::MAX), ""),
        (cooperative, ""),
    ] {
        assert_refused(driver.launch(Stream::DEFAULT, step, config, &params), &["step", figure]);
    }
    // More threads than the kernel was compiled for; fewer arguments than it takes.
    let fits = LaunchConfig::linear(65, 65);
    assert_refused(driver.launch(Stream::DEFAULT, limited, fits, &Params::new().u64(data)), &["limited", "65"]);
    assert_refused(driver.launch(Stream::DEFAULT, step, small, &Params::new().u64(data)), &["step"]);
    driver.synchronize(Stream::DEFAULT).unwrap();
    add(driver, Stream::DEFAULT, step, data, 64, 3);
    assert_eq!(download(driver, Stream::DEFAULT, data, 64), [3; 64]);
}

pub fn a_cooperative_launch_runs_all_blocks_at_once(driver: &dyn Driver) {
    let blocks = 16;
    let data = upload(driver, &[0; 17]);
    let config = LaunchConfig { is_cooperative: true, ..LaunchConfig::new([blocks, 1, 1], [1; 3]) };
    driver.launch(Stream::DEFAULT, kernel(driver, "meet"), config, &Params::new().u64(data)).unwrap();
    assert_eq!(download(driver, Stream::DEFAULT, data, 17), [blocks; 17]);
}

/// Launches the kernel that reaches for the last of so many bytes; what it found there.
fn reach(driver: &dyn Driver, stream: Stream, out: u64, bytes: u32) -> u32 {
    let config = LaunchConfig::linear(1, 1).shared(bytes);
    let params = Params::new().u64(out).u32(bytes);
    driver.launch(stream, kernel(driver, "reach"), config, &params).unwrap();
    download(driver, stream, out, 1)[0]
}

pub fn dynamic_shared_memory_goes_beyond_48_kib(driver: &dyn Driver) {
    let out = upload(driver, &[0]);
    // With 16 KiB of static memory: below the 48 KiB that need no asking, only with both above them, above them, all.
    let most = driver.facts().max_shared_bytes_per_block - (16 << 10);
    for bytes in [1 << 10, 40 << 10, 64 << 10, most, 2 << 10] {
        assert_eq!(reach(driver, Stream::DEFAULT, out, bytes), bytes);
    }
    let config = LaunchConfig::linear(1, 1).shared(most + 4);
    let params = Params::new().u64(out).u32(most + 4);
    let result = driver.launch(Stream::DEFAULT, kernel(driver, "reach"), config, &params);
    assert_refused(result, &["reach", "shared memory"]);
}

pub fn threads_that_ask_for_different_shared_memory_all_get_theirs(driver: &dyn Driver) {
    let function = kernel(driver, "reach");
    thread::scope(|scope| {
        for size in 1..=4 {
            scope.spawn(move || {
                let (stream, out, bytes) = (driver.create_stream().unwrap(), upload(driver, &[0]), size * (20 << 10));
                for _ in 0..20 {
                    let params = Params::new().u64(out).u32(bytes);
                    driver.launch(stream, function, LaunchConfig::linear(1, 1).shared(bytes), &params).unwrap();
                    assert_eq!(download(driver, stream, out, 1), [bytes]);
                }
            });
        }
    });
}

pub fn many_threads_share_one_driver(driver: &dyn Driver) {
    let shared = kernel(driver, "step");
    thread::scope(|scope| {
        for thread in 0..8u32 {
            scope.spawn(move || {
                let stream = driver.create_stream().unwrap();
                let own = kernel(driver, "step");
                for round in 0..10 {
                    let data = driver.allocate(4 * 96).unwrap();
                    driver.fill(stream, data, thread, 96).unwrap();
                    add(driver, stream, shared, data, 96, round);
                    add(driver, stream, own, data, 96, 1000);
                    assert_eq!(download(driver, stream, data, 96), [thread + round + 1000; 96]);
                    driver.free(data).unwrap();
                }
                driver.destroy_stream(stream).unwrap();
            });
        }
    });
}
