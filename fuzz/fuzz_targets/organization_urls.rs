//! `fuzz_targets::TARGETS`, organization_urls.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz_targets::run("organization_urls", data));
