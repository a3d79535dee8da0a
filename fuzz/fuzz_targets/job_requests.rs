//! `fuzz_targets::TARGETS`, job_requests.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz_targets::run("job_requests", data));
fuzz::mutate_json!();
