//! What the targets that read JSON share.

/// Lets libFuzzer change JSON as JSON in half of the cases.
#[macro_export]
macro_rules! mutate_json {
    () => {
        libfuzzer_sys::fuzz_mutator!(|data: &mut [u8], size: usize, most: usize, seed: u32| {
            if seed % 2 == 0 {
                return libfuzzer_sys::fuzzer_mutate(data, size, most);
            }
            let mut dice = fuzz_targets::mutate::Dice::new(seed.into());
            let mutated = fuzz_targets::mutate::mutate(&data[..size], &data[..size], &mut dice);
            let kept = mutated.len().min(most);
            data[..kept].copy_from_slice(&mutated[..kept]);
            kept
        });
    };
}
