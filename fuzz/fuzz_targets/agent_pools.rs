//! `fuzz_targets::TARGETS`, agent_pools.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz_targets::run("agent_pools", data));
fuzz::mutate_json!();
