//! All tests, one after the other.

use std::env;

use control_plane::binaries;

use crate::{repository, simulate, stages::Stages};

/// Jobs of the demonstration that ends the tests: enough for each kind of job and for a wait for room, and done in about a
/// minute.
const DEMO_JOBS: &str = "24";

/// Minutes of chaos, and their seed: always the same events, so that a failure is about the change at hand. Longer runs with
/// other seeds are for people.
const CHAOS: [&str; 5] = ["chaos", "--minutes", "1", "--seed", "1"];

/// Seeds of the simulation: a day each, within five minutes on two processors, with the controls.
const SEEDS: &str = "2000";

pub(crate) fn run(stages: &mut Stages) {
    // Asked for now: a build may put another file in its place.
    let program = env::current_exe();
    let control_plane = stages.function("control-plane programs", || {
        binaries::ensure(&mut binaries::terminal()).map(drop)
    });
    let helm = stages.function("Helm", || {
        binaries::helm(&mut binaries::terminal()).map(drop)
    });
    let tests = stages.command(
        "build",
        repository::cargo(&["test", "--workspace", "--no-run"]),
    );
    if tests {
        stages.command(
            "tests",
            repository::cargo(&["test", "--workspace", "--no-fail-fast"]),
        );
    }
    stages.test(
        "simulation",
        simulate::command(&["--seeds", SEEDS, "--hours", "24", "--controls"]),
    );
    let operator = stages.command(
        "operator, release build",
        repository::cargo(&["build", "--release", "-p", "operator"]),
    );
    if !control_plane || !helm || !operator {
        return;
    }
    match program {
        Ok(program) => {
            let program = program.to_string_lossy();
            stages.test(
                "demo",
                repository::command(&program, &["demo", "--jobs", DEMO_JOBS]),
            );
            stages.test("chaos", repository::command(&program, &CHAOS));
            stages.test("e2e", repository::command(&program, &["e2e"]));
        }
        Err(error) => {
            for stage in ["demo", "chaos", "e2e"] {
                stages.skip(stage, &error.to_string());
            }
        }
    }
}
