//! Arbitrary bytes as the text of a module, whose kernels then run.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| engine_fuzz::load_and_launch(&String::from_utf8_lossy(data)));
