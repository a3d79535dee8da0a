//! `fuzz_targets::TARGETS`, admission_reviews.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz_targets::run("admission_reviews", data));
fuzz::mutate_json!();
