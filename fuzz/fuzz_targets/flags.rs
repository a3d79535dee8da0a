//! `fuzz_targets::TARGETS`, flags.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz_targets::run("flags", data));
