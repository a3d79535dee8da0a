//! `fuzz_targets::TARGETS`, agent_names.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz_targets::run("agent_names", data));
