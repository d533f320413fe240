//! Kernels that are stopped: the error comes with a later call at the latest, and the device is lost.

use crate::{KERNELS, assert_refused, download, kernel, upload};
use engine::driver::{Driver, Function, LaunchConfig, Params, Stream};

/// Launches what will be stopped, and asserts that this is told when waiting, and by every call from then on.
#[track_caller]
fn assert_lost(driver: &dyn Driver, faulty: Function, params: &Params) {
    let (data, sound) = (upload(driver, &[1, 2]), kernel(driver, "step"));
    let event = driver.create_event().unwrap();
    let config = LaunchConfig::linear(1, 1);
    let told =
        driver.launch(Stream::DEFAULT, faulty, config, params).and_then(|()| driver.synchronize(Stream::DEFAULT));
    assert_refused(told, &[]);
    for _ in 0..2 {
        let params = Params::new().u64(data).u32(1);
        assert_refused(driver.launch(Stream::DEFAULT, sound, config, &params), &[]);
        assert_refused(driver.synchronize(Stream::DEFAULT), &[]);
        assert_refused(driver.read(Stream::DEFAULT, data, &mut [0; 4]), &[]);
        assert_refused(driver.write(Stream::DEFAULT, data, &[0; 4]), &[]);
        assert_refused(driver.copy(Stream::DEFAULT, data, data + 4, 4), &[]);
        assert_refused(driver.fill(Stream::DEFAULT, data, 1, 1), &[]);
        assert_refused(driver.allocate(256), &[]);
        assert_refused(driver.free(data), &[]);
        assert_refused(driver.memory_info(), &[]);
        assert_refused(driver.load("kernels.ptx", KERNELS), &[]);
        assert_refused(driver.create_stream(), &[]);
        assert_refused(driver.create_event(), &[]);
        assert_refused(driver.record(event, Stream::DEFAULT), &[]);
    }
    assert!(driver.facts().multiprocessors > 0);
}

pub fn a_wild_write_is_an_error_and_the_device_is_lost(driver: &dyn Driver) {
    assert_lost(driver, kernel(driver, "step"), &Params::new().u64(0x10_0000).u32(1));
}

pub fn a_trap_is_an_error_and_the_device_is_lost(driver: &dyn Driver) {
    let data = upload(driver, &[5]);
    assert_eq!(download(driver, Stream::DEFAULT, data, 1), [5]);
    assert_lost(driver, kernel(driver, "trapped"), &Params::new());
}
