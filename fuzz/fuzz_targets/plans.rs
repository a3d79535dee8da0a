//! `fuzz_targets::TARGETS`, plans.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz_targets::run("plans", data));
