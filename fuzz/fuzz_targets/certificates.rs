//! `fuzz_targets::TARGETS`, certificates.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz_targets::run("certificates", data));
fuzz::mutate_json!();
