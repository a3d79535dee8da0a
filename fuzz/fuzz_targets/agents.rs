//! `fuzz_targets::TARGETS`, agents.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz_targets::run("agents", data));
fuzz::mutate_json!();
