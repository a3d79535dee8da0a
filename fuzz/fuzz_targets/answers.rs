//! `fuzz_targets::TARGETS`, answers.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz_targets::run("answers", data));
