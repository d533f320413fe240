//! Device memory: allocated, written, read, copied, filled, freed, and told of.

use crate::{assert_refused, download, upload};
use engine::driver::{Driver, Error, Stream};

pub fn the_device_has_limits_that_kernels_need(driver: &dyn Driver) {
    let facts = driver.facts();
    assert!(!facts.name.is_empty());
    assert!((80..1000).contains(&facts.architecture), "{facts:?}");
    assert!(facts.multiprocessors > 0 && facts.max_blocks_per_multiprocessor >= 16, "{facts:?}");
    assert_eq!((facts.max_threads_per_block, facts.max_block), (1024, [1024, 1024, 64]));
    assert_eq!(facts.max_grid, [i32::MAX as u32, 65535, 65535]);
    assert!(facts.max_shared_bytes_per_block >= 99 << 10, "{facts:?}");
    assert!(facts.shared_bytes_per_multiprocessor > facts.max_shared_bytes_per_block, "{facts:?}");
    assert_eq!(facts.memory_bytes, driver.memory_info().unwrap().1);
}

pub fn memory_holds_what_is_written(driver: &dyn Driver) {
    let bytes: Vec<u8> = (0..1000).map(|index| (index % 251) as u8).collect();
    let address = driver.allocate(1000).unwrap();
    assert_eq!(address % 256, 0);
    driver.write(Stream::DEFAULT, address, &bytes).unwrap();
    let mut found = vec![0; 1000];
    driver.read(Stream::DEFAULT, address, &mut found).unwrap();
    assert_eq!(found, bytes);
    // Unaligned parts of it.
    driver.write(Stream::DEFAULT, address + 3, &[9; 5]).unwrap();
    let mut found = [0; 7];
    driver.read(Stream::DEFAULT, address + 2, &mut found).unwrap();
    assert_eq!(found, [2, 9, 9, 9, 9, 9, 8]);
    driver.free(address).unwrap();
}

pub fn copies_and_fills_reach_what_they_name_and_no_more(driver: &dyn Driver) {
    let (source, target) = (upload(driver, &[1, 2, 3, 4, 5]), upload(driver, &[0; 5]));
    driver.copy(Stream::DEFAULT, target + 4, source + 8, 8).unwrap();
    assert_eq!(download(driver, Stream::DEFAULT, target, 5), [0, 3, 4, 0, 0]);
    driver.fill(Stream::DEFAULT, target + 8, 0xDEAD_BEEF, 2).unwrap();
    assert_eq!(download(driver, Stream::DEFAULT, target, 5), [0, 3, 0xDEAD_BEEF, 0xDEAD_BEEF, 0]);
    assert_eq!(download(driver, Stream::DEFAULT, source, 5), [1, 2, 3, 4, 5]);
}

pub fn memory_info_follows_allocations(driver: &dyn Driver) {
    const BYTES: u64 = 64 << 20;
    let (before, total) = driver.memory_info().unwrap();
    assert!(before <= total);
    let address = driver.allocate(BYTES).unwrap();
    let (held, same_total) = driver.memory_info().unwrap();
    assert_eq!(same_total, total);
    assert!(held + BYTES <= before, "{before} free before, {held} after {BYTES}");
    driver.free(address).unwrap();
    assert!(driver.memory_info().unwrap().0 >= held + BYTES);
}

pub fn what_does_not_fit_is_refused_with_figures(driver: &dyn Driver) {
    let (_, total) = driver.memory_info().unwrap();
    for wanted in [total + 1, 3 * total, 1 << 50] {
        match driver.allocate(wanted).unwrap_err() {
            Error::OutOfMemory { bytes, free, total: told } => {
                assert_eq!((bytes, told), (wanted, total));
                assert!(free <= total);
            }
            other => panic!("{other}"),
        }
    }
    assert_refused(driver.allocate(2 * total), &[&format!("{} bytes", 2 * total), &format!("of {total} are free")]);
    // That was no fault of the device.
    let address = driver.allocate(1 << 20).unwrap();
    driver.free(address).unwrap();
}

pub fn addresses_of_nothing_are_refused(driver: &dyn Driver) {
    let address = upload(driver, &[1, 2]);
    let nothing = 0x1000;
    assert_refused(driver.write(Stream::DEFAULT, nothing, &[1; 8]), &[]);
    assert_refused(driver.read(Stream::DEFAULT, nothing, &mut [1; 8]), &[]);
    assert_refused(driver.copy(Stream::DEFAULT, address, nothing, 8), &[]);
    assert_refused(driver.copy(Stream::DEFAULT, nothing, address, 8), &[]);
    assert_refused(driver.fill(Stream::DEFAULT, nothing, 1, 2), &[]);
    assert_refused(driver.free(nothing), &[]);
    assert_eq!(download(driver, Stream::DEFAULT, address, 2), [1, 2]);
    driver.free(address).unwrap();
    assert_refused(driver.free(address), &[]);
}

pub fn transfers_of_nothing_are_no_work(driver: &dyn Driver) {
    let address = upload(driver, &[1, 2]);
    driver.write(Stream::DEFAULT, address, &[]).unwrap();
    driver.read(Stream::DEFAULT, address, &mut []).unwrap();
    driver.copy(Stream::DEFAULT, address, address + 4, 0).unwrap();
    driver.fill(Stream::DEFAULT, address, 9, 0).unwrap();
    assert_eq!(download(driver, Stream::DEFAULT, address, 2), [1, 2]);
}
