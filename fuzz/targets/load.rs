//! Arbitrary bytes as the text of a module.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let emulator = engine_fuzz::emulator();
    if let Ok(module) = emulator.load("fuzz.ptx", &String::from_utf8_lossy(data)) {
        emulator.unload(module);
        assert_eq!(emulator.memory_info().0, emulator.memory_info().1, "an unloaded module leaves nothing behind");
    }
});
