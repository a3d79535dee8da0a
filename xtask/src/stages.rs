//! Stages: what is done one after the other, each with a name, a result and a time.
//!
//! A stage that fails does not keep the others from running, unless they need what it makes.

use std::{
    io::{self, BufRead as _, BufReader, IsTerminal as _},
    process::{Command, ExitCode, ExitStatus},
    sync::mpsc::{self, RecvTimeoutError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};

use crate::output;

/// Where nobody watches a terminal, a stage that takes long says so once in so much time: a CI service may take a job
/// that is silent for ten minutes for a dead one.
const HEARTBEAT: Duration = Duration::from_secs(60);

/// Exit code of a program that cannot run here: neither a success nor a failure, as test programs of many have it.
pub(crate) const SKIPPED: u8 = 77;

/// The stages so far.
pub(crate) struct Stages {
    started: Instant,
    count: usize,
    failed: Vec<&'static str>,
    tests: Tests,
}

/// How tests ended, in all test programs together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tests {
    passed: u64,
    failed: u64,
    skipped: u64,
}

impl Stages {
    pub(crate) fn start() -> Self {
        Self {
            started: Instant::now(),
            count: 0,
            failed: Vec::new(),
            tests: Tests::default(),
        }
    }

    /// A stage that is a function. Whether it succeeded.
    pub(crate) fn function(
        &mut self,
        name: &'static str,
        work: impl FnOnce() -> Result<()>,
    ) -> bool {
        let started = Instant::now();
        announce(name);
        let result = work();
        let succeeded = result.is_ok();
        self.note(name, started.elapsed(), succeeded, Tests::default());
        if let Err(error) = result {
            output::line(format_args!("    {error:#}\n"));
        }
        succeeded
    }

    /// A stage that is a program. What it writes is shown if it fails. Whether it succeeded.
    pub(crate) fn command(&mut self, name: &'static str, command: Command) -> bool {
        let started = Instant::now();
        announce(name);
        let mut log = Log::new(name, started);
        let result = log.follow(command);
        self.close(started, &log, result)
    }

    /// A stage that is one test. It is skipped if the program says that it cannot run here.
    pub(crate) fn test(&mut self, name: &'static str, command: Command) -> bool {
        let started = Instant::now();
        announce(name);
        let mut log = Log::new(name, started);
        let result = log.follow(command);
        if let Ok(status) = result
            && status.code() == Some(SKIPPED.into())
        {
            let why = log.text.trim_end().lines().last().unwrap_or_default();
            self.skip(name, why);
            return true;
        }
        let passed = self.close(started, &log, result);
        // A failure counts already, as that of a stage.
        self.tests.passed += u64::from(passed);
        passed
    }

    /// Takes note of the end of a program.
    fn close(&mut self, started: Instant, log: &Log, result: Result<ExitStatus>) -> bool {
        let succeeded = result.as_ref().is_ok_and(ExitStatus::success);
        self.note(log.name, started.elapsed(), succeeded, log.tests);
        if !succeeded {
            // Set in: lines of a test program must not be taken for ours by whoever reads this.
            output::line(format_args!(
                "    {}\n",
                log.text.trim_end().replace('\n', "\n    ")
            ));
        }
        if let Err(error) = result {
            output::line(format_args!("    {error:#}\n"));
        }
        succeeded
    }

    /// A stage that cannot run here. It counts as a skipped test.
    pub(crate) fn skip(&mut self, name: &'static str, why: &str) {
        self.tests.skipped += 1;
        output::line(format_args!("{}skipped {name:<28} {why}", start_of_line()));
    }

    /// Prints the summary; its last line counts the tests.
    pub(crate) fn finish(self) -> ExitCode {
        let Self {
            started,
            count,
            failed,
            tests,
        } = self;
        let Tests {
            passed,
            failed: failed_tests,
            skipped,
        } = tests;
        output::line(format_args!(
            "\n{count} stages in {}",
            output::duration(started.elapsed())
        ));
        if !failed.is_empty() {
            output::line(format_args!("failed: {}", failed.join(", ")));
        }
        output::line(format_args!(
            "{passed} passed, {failed_tests} failed, {skipped} skipped"
        ));
        if failed.is_empty() {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        }
    }

    fn note(&mut self, name: &'static str, elapsed: Duration, succeeded: bool, tests: Tests) {
        self.count += 1;
        self.tests.add(tests);
        if !succeeded {
            self.failed.push(name);
            // A stage that failed without a failed test, such as a build, counts as one: the last line must not look
            // as if all was well.
            self.tests.failed += u64::from(tests.failed == 0);
        }
        let result = if succeeded { "ok" } else { "FAILED" };
        let tests = if tests == Tests::default() {
            String::new()
        } else {
            format!("   {}", tests.describe())
        };
        let start = start_of_line();
        output::line(format_args!(
            "{start}{result:<7} {name:<28} {:>9}{tests}",
            output::duration(elapsed)
        ));
    }
}

impl Tests {
    fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }

    fn describe(self) -> String {
        let Self {
            passed,
            failed,
            skipped,
        } = self;
        format!("{passed} passed, {failed} failed, {skipped} skipped")
    }

    /// The counts in a line of libtest, `test result: ok. 5 passed; 0 failed; 1 ignored; 0 measured; …`.
    fn parse(line: &str) -> Option<Self> {
        let (_, counts) = line.strip_prefix("test result: ")?.split_once(". ")?;
        let mut tests = Self::default();
        for count in counts.split("; ") {
            let (number, what) = count.split_once(' ')?;
            match what {
                "passed" => tests.passed = number.parse().ok()?,
                "failed" => tests.failed = number.parse().ok()?,
                "ignored" => tests.skipped = number.parse().ok()?,
                _ => {}
            }
        }
        Some(tests)
    }
}

/// What a program writes, and what can be told from it while it runs.
struct Log {
    name: &'static str,
    started: Instant,
    text: String,
    tests: Tests,
    on_terminal: bool,
    next_heartbeat: Duration,
}

impl Log {
    fn new(name: &'static str, started: Instant) -> Self {
        let on_terminal = io::stdout().is_terminal();
        Self {
            name,
            started,
            text: String::new(),
            tests: Tests::default(),
            on_terminal,
            next_heartbeat: HEARTBEAT,
        }
    }

    /// Runs the program to its end.
    fn follow(&mut self, mut command: Command) -> Result<ExitStatus> {
        let shown = format!("{command:?}");
        let (reader, writer) = io::pipe()?;
        command.stdout(writer.try_clone()?).stderr(writer);
        let mut process = command
            .spawn()
            .with_context(|| format!("cannot run {shown}"))?;
        drop(command); // it holds the pipe open, which is to end with the program
        let (sender, lines) = mpsc::channel();
        thread::spawn(move || {
            for line in BufReader::new(reader).split(b'\n').map_while(Result::ok) {
                // Nobody listens any more: there is nothing left to do.
                let Ok(()) = sender.send(line) else { return };
            }
        });
        loop {
            match lines.recv_timeout(Duration::from_secs(1)) {
                Ok(line) => {
                    let line = String::from_utf8_lossy(&line);
                    self.tests.add(Tests::parse(&line).unwrap_or_default());
                    self.text.push_str(&line);
                    self.text.push('\n');
                }
                Err(RecvTimeoutError::Timeout) => self.live(),
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        Ok(process.wait()?)
    }

    fn live(&mut self) {
        let elapsed = self.started.elapsed();
        let tests = if self.tests == Tests::default() {
            String::new()
        } else {
            format!(", {}", self.tests.describe())
        };
        if self.on_terminal {
            output::write(format_args!(
                "\r\x1b[K…       {} ({}{tests})",
                self.name,
                output::clock(elapsed)
            ));
        } else if elapsed >= self.next_heartbeat {
            self.next_heartbeat += HEARTBEAT;
            output::line(format_args!(
                "…       {} ({}{tests})",
                self.name,
                output::clock(elapsed)
            ));
        }
    }
}

/// Takes away what was announced.
fn start_of_line() -> &'static str {
    if io::stdout().is_terminal() {
        "\r\x1b[K"
    } else {
        ""
    }
}

fn announce(name: &str) {
    if io::stdout().is_terminal() {
        output::write(format_args!("…       {name}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn lines_of_libtest_are_counted_and_others_are_not() {
        let line = "test result: FAILED. 5 passed; 2 failed; 1 ignored; 0 measured; 3 filtered out; finished in 0.01s";
        assert_eq!(
            Tests::parse(line),
            Some(Tests {
                passed: 5,
                failed: 2,
                skipped: 1
            })
        );
        for other in [
            "test a ... ok",
            "result: ok. 5 passed",
            "test result: nonsense",
            "",
        ] {
            assert_eq!(Tests::parse(other), None, "{other}");
        }
    }

    #[test]
    fn the_counts_of_all_programs_are_added_also_from_standard_error() {
        let mut stages = Stages::start();
        let script = "echo 'test result: ok. 2 passed; 0 failed; 1 ignored; 0 measured'
            echo 'test result: FAILED. 1 passed; 3 failed; 0 ignored; 0 measured' >&2; exit 1";
        assert!(!stages.command("tests", shell(script)));
        assert_eq!(
            stages.tests,
            Tests {
                passed: 3,
                failed: 3,
                skipped: 1
            }
        );
        assert_eq!(stages.failed, ["tests"]);
    }

    #[test]
    fn a_stage_that_fails_without_a_failed_test_counts_as_one() {
        let mut stages = Stages::start();
        assert!(!stages.command("build", shell("exit 1")));
        assert!(!stages.function("function", || anyhow::bail!("no")));
        assert!(!stages.test("demo", shell("exit 1")));
        assert!(stages.test("demo", shell("exit 0")));
        assert!(stages.test("e2e", shell("echo no root; exit 77")));
        assert_eq!(
            stages.tests,
            Tests {
                passed: 1,
                failed: 3,
                skipped: 1
            }
        );
        assert_eq!(stages.failed, ["build", "function", "demo"]);
    }
}
