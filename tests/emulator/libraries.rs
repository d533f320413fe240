//! Programs on NVIDIA's device libraries, against plain Rust.

use engine::driver::emulator::{DeviceFacts, Emulator, Finding, FindingKind, LaunchConfig, Module, Params};

/// Runs a check without and with the sanitizer, which must find nothing.
fn both_ways(check: impl Fn(&Emulator, &dyn Fn(&str, LaunchConfig, Params))) {
    for sanitizes in [false, true] {
        let (emulator, module) = load();
        check(&emulator, &|kernel, config, params| {
            if sanitizes {
                let findings = sanitize(&emulator, &module, kernel, config, params);
                assert!(findings.is_empty(), "{kernel}: {findings:#?}");
            } else {
                emulator.launch(&module, kernel, config, params.as_bytes()).unwrap();
            }
        });
    }
}

fn load() -> (Emulator, Module) {
    let emulator = Emulator::new(DeviceFacts::default()).with_initialisation_tracking();
    let module = emulator.load("libraries.ptx", include_str!("libraries.ptx")).unwrap();
    (emulator, module)
}

fn sanitize(emulator: &Emulator, module: &Module, kernel: &str, config: LaunchConfig, params: Params) -> Vec<Finding> {
    emulator.launch_sanitized(module, kernel, config, params.as_bytes()).unwrap().1
}

fn noise(count: u32, bound: u32) -> Vec<i32> {
    (0..count).map(|i| ((i.wrapping_mul(0x9E37_79B9) ^ 0x5BD1) >> 7) as i32 % bound as i32).collect()
}

#[test]
fn labelled_groups_of_a_warp_reduce() {
    both_ways(|emulator, launch| {
        let (labels, values) = (noise(128, 5), noise(128, 99));
        let (a, b) = (emulator.upload(&labels).unwrap(), emulator.upload(&values).unwrap());
        let out = emulator.allocate(1024).unwrap();
        launch("labelled_sums", LaunchConfig::new([2, 1, 1], [64, 1, 1]), Params::new().u64(a).u64(b).u64(out));
        let sums = emulator.download::<[i32; 2]>(out, 128).unwrap();
        for (t, sum) in sums.iter().enumerate() {
            let same = (t / 32 * 32..t / 32 * 32 + 32).filter(|&other| labels[other] == labels[t]);
            assert_eq!(*sum, [same.clone().map(|other| values[other]).sum(), same.count() as i32], "thread {t}");
        }
    });
}

#[test]
fn tiles_of_a_warp_scan() {
    both_ways(|emulator, launch| {
        let values = noise(128, 1000);
        let (input, out) = (emulator.upload(&values).unwrap(), emulator.allocate(1024).unwrap());
        launch("tile_scans", LaunchConfig::new([2, 1, 1], [64, 1, 1]), Params::new().u64(input).u64(out));
        for (t, scans) in emulator.download::<[i32; 2]>(out, 128).unwrap().iter().enumerate() {
            let tile = &values[t / 8 * 8..=t];
            let before = tile[..tile.len() - 1].iter().max().copied().unwrap_or(values[t]);
            assert_eq!(*scans, [tile.iter().sum::<i32>() + (t % 64 / 8) as i32, before], "thread {t}");
        }
    });
}

#[test]
fn tiles_of_several_warps_reduce() {
    both_ways(|emulator, launch| {
        let values = noise(256, 1000);
        let (input, out) = (emulator.upload(&values).unwrap(), emulator.allocate(1024).unwrap());
        launch("wide_tiles", LaunchConfig::new([1, 1, 1], [256, 1, 1]), Params::new().u64(input).u64(out));
        for (t, sum) in emulator.download::<i32>(out, 256).unwrap().into_iter().enumerate() {
            let tile = t / 64;
            assert_eq!(sum, values[64 * tile..64 * (tile + 1)].iter().sum::<i32>() + tile as i32, "thread {t}");
        }
    });
}

#[test]
fn a_block_sorts_by_radix() {
    both_ways(|emulator, launch| {
        let keys: Vec<u32> = noise(512, 100).iter().map(|&key| key as u32).collect();
        let values: Vec<i32> = (0..512).collect();
        let (k, v) = (emulator.upload(&keys).unwrap(), emulator.upload(&values).unwrap());
        let sums = emulator.allocate(2048).unwrap();
        launch("radix_sort", LaunchConfig::new([1, 1, 1], [128, 1, 1]), Params::new().u64(k).u64(v).u64(sums));
        let mut sorted: Vec<(u32, i32)> = keys.into_iter().zip(values).collect();
        sorted.sort();
        let found = emulator.download::<u32>(k, 512).unwrap().into_iter().zip(emulator.download(v, 512).unwrap());
        assert!(found.eq(sorted));
        assert!((0..512).zip(emulator.download::<i32>(sums, 512).unwrap()).all(|(i, sum)| sum == i * (i + 1) / 2));
    });
}

#[test]
fn blocks_wait_for_what_one_of_them_publishes() {
    both_ways(|emulator, launch| {
        let (count, sum) = (emulator.upload(&[0i32]).unwrap(), emulator.upload(&[0f32]).unwrap());
        let (flag, data) = (emulator.upload(&[0i32]).unwrap(), emulator.upload(&[0i32; 5]).unwrap());
        let params = Params::new().u64(count).u64(sum).u64(flag).u64(data);
        launch("published", LaunchConfig::new([5, 1, 1], [64, 1, 1]), params);
        assert_eq!(emulator.download::<i32>(data, 5).unwrap(), [77, 78, 79, 80, 81]);
        assert_eq!(emulator.download::<i32>(count, 1).unwrap(), [320]);
        assert_eq!(emulator.download::<f32>(sum, 1).unwrap(), [480.0]);
    });
}

#[test]
fn a_barrier_is_arrived_at_and_waited_for_apart() {
    both_ways(|emulator, launch| {
        let mut values = noise(256, 9);
        let data = emulator.upload(&values).unwrap();
        launch("split_barrier", LaunchConfig::new([2, 1, 1], [128, 1, 1]), Params::new().u64(data).i32(5));
        for round in 1..=5 {
            let before = values.clone();
            for (t, value) in values.iter_mut().enumerate() {
                *value = 3 * before[t] + before[t / 128 * 128 + (t + round) % 128];
            }
        }
        assert_eq!(emulator.download::<i32>(data, 256).unwrap(), values);
    });
}

#[test]
fn a_pipeline_keeps_tiles_in_flight() {
    both_ways(|emulator, launch| {
        let values = noise(1280, 99);
        let (input, out) = (emulator.upload(&values).unwrap(), emulator.allocate(256).unwrap());
        let params = Params::new().u64(input).u64(out).i32(10);
        launch("pipelined", LaunchConfig::new([1, 1, 1], [64, 1, 1]), params);
        for (t, sum) in emulator.download::<i32>(out, 64).unwrap().into_iter().enumerate() {
            assert_eq!(sum, (0..10).map(|tile| values[tile * 128 + (t * 5 + tile) % 128]).sum::<i32>(), "thread {t}");
        }
    });
}

#[test]
fn lanes_call_virtual_functions_of_different_classes() {
    both_ways(|emulator, launch| {
        let out = emulator.allocate(256).unwrap();
        launch("virtual_functions", LaunchConfig::new([1, 1, 1], [64, 1, 1]), Params::new().u64(out));
        let area = |t: usize| if t.is_multiple_of(3) { 2 * t } else { t * t } as f32;
        assert!(emulator.download::<f32>(out, 64).unwrap().into_iter().eq((0..64).map(area)));
    });
}

#[test]
fn the_plain_read_beside_an_atomic_is_told_what_to_become() {
    let (emulator, module) = load();
    let values: Vec<f32> = noise(64, 1000).into_iter().map(|value| value as f32).collect();
    let (most, input) = (emulator.upload(&[0f32]).unwrap(), emulator.upload(&values).unwrap());
    let config = LaunchConfig::new([1, 1, 1], [64, 1, 1]);
    let findings = sanitize(&emulator, &module, "greatest", config, Params::new().u64(most).u64(input));
    assert_eq!(emulator.download::<f32>(most, 1).unwrap()[0], values.iter().copied().fold(0.0, f32::max));
    assert!(!findings.is_empty());
    for finding in findings {
        assert_eq!(finding.kind, FindingKind::GlobalRace);
        assert!(finding.detail.ends_with("; make the read volatile or atomic"), "{finding}");
    }
}
