//! `fuzz_targets::TARGETS`, claims.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz_targets::run("claims", data));
fuzz::mutate_json!();
