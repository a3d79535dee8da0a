//! `fuzz_targets::TARGETS`, looks.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz_targets::run("looks", data));
fuzz::mutate_json!();
