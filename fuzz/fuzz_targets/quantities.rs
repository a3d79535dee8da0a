//! `fuzz_targets::TARGETS`, quantities.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz_targets::run("quantities", data));
