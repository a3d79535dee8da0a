//! What must hold whatever bytes come from outside: one function for each decoder, and for all of them together.
//!
//! Each takes any bytes, hands them to the decoder that ships, and panics where something does not hold. `fuzz/` runs
//! them under libFuzzer; the tests here replay its corpora and mutations of them. Nothing here ships, and nothing here
//! decodes anything by itself.
#![expect(
    clippy::missing_panics_doc,
    reason = "a target tells what it found by panicking"
)]

mod azure;
mod cluster;
mod look;
pub mod mutate;
mod plan;
mod random;
mod settings;

/// One decoder with what must hold of it.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Its name, and that of its corpus.
    pub name: &'static str,
    /// Panics where something does not hold.
    pub run: fn(&[u8]),
}

macro_rules! targets {
    ($($module:ident::$name:ident,)*) => {
        /// All targets. Each has a program in `fuzz/fuzz_targets` and a corpus in `fuzz/corpus`.
        pub const TARGETS: &[Target] = &[
            $(Target { name: stringify!($name), run: $module::$name },)*
        ];
    };
}

targets! {
    azure::agents,
    azure::job_requests,
    azure::agent_pools,
    azure::answers,
    azure::demands,
    azure::agent_names,
    cluster::pods,
    cluster::claims,
    cluster::tokens,
    cluster::certificates,
    cluster::admission_reviews,
    settings::organization_urls,
    settings::runner_pools,
    settings::quantities,
    settings::flags,
    look::looks,
    plan::plans,
}

/// Runs the target of this name. libFuzzer's programs call it.
pub fn run(name: &str, data: &[u8]) {
    let target = TARGETS.iter().find(|target| target.name == name);
    (target.expect("the name of a target").run)(data);
}
