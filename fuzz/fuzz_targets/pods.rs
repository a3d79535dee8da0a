//! `fuzz_targets::TARGETS`, pods.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz_targets::run("pods", data));
fuzz::mutate_json!();
