//! The corpora under `fuzz/corpus`, and mutations of them, on every target: a short run that needs no fuzzer.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

use std::{
    collections::BTreeSet,
    fs,
    panic::{self, AssertUnwindSafe},
    path::{Path, PathBuf},
};

use fuzz_targets::{
    TARGETS,
    mutate::{Dice, mutate},
};

/// Mutations a target: as many as a few seconds are enough for.
const MUTATIONS: u64 = 3000;

macro_rules! replay {
    ($($name:ident)*) => {
        $(#[test]
        fn $name() {
            replay(stringify!($name));
        })*

        const REPLAYED: &[&str] = &[$(stringify!($name)),*];
    };
}

replay! {
    agents
    job_requests
    agent_pools
    answers
    demands
    agent_names
    pods
    claims
    tokens
    certificates
    admission_reviews
    organization_urls
    runner_pools
    quantities
    flags
    looks
    plans
}

fn replay(name: &str) {
    let inputs = corpus(name);
    assert!(!inputs.is_empty(), "the corpus of {name} is empty");
    for input in &inputs {
        run(name, input);
    }
    let mut dice = Dice::new(1);
    for _ in 0..MUTATIONS {
        let (one, other) = (dice.below(inputs.len()), dice.below(inputs.len()));
        run(name, &mutate(&inputs[one], &inputs[other], &mut dice));
    }
}

/// Runs a target and says upon which input it failed.
fn run(name: &str, input: &[u8]) {
    let run = AssertUnwindSafe(|| fuzz_targets::run(name, input));
    assert!(
        panic::catch_unwind(run).is_ok(),
        "{name} failed upon {}",
        String::from_utf8_lossy(input)
    );
}

/// The inputs of a target, always in the same order.
fn corpus(name: &str) -> Vec<Vec<u8>> {
    let mut files = files(&fuzz().join("corpus").join(name));
    files.sort();
    files.iter().map(|file| fs::read(file).unwrap()).collect()
}

fn fuzz() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz")
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let entries =
        fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    entries.map(|entry| entry.unwrap().path()).collect()
}

#[test]
fn every_target_has_a_program_and_is_replayed() {
    let targets: BTreeSet<String> = TARGETS.iter().map(|target| target.name.into()).collect();
    let replayed: BTreeSet<String> = REPLAYED.iter().map(|name| (*name).into()).collect();
    assert_eq!(targets, replayed);
    let programs = files(&fuzz().join("fuzz_targets"));
    let programs = programs.iter().map(|file| file.file_stem().unwrap());
    let programs: BTreeSet<String> = programs.map(|name| name.to_str().unwrap().into()).collect();
    assert_eq!(targets, programs);
    let manifest = fs::read_to_string(fuzz().join("Cargo.toml")).unwrap();
    for name in targets {
        assert!(manifest.contains(&format!("name = \"{name}\"")), "{name}");
    }
}
