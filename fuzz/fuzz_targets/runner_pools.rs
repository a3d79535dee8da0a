//! `fuzz_targets::TARGETS`, runner_pools.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz_targets::run("runner_pools", data));
fuzz::mutate_json!();
