//! Runs the fuzz targets under libFuzzer, one after the other, and says what came of each. What they find on the way is
//! kept in cargo's target folder; the corpora in the tree are only read, unless they are to grow.

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};

use crate::{
    output, repository,
    tools::{self, Tool},
};

const CARGO_FUZZ: Tool = Tool {
    package: "cargo-fuzz",
    version: "0.13.2",
};

/// An input that takes longer is a finding: a decoder takes a few milliseconds.
const SLOWEST_SECONDS: u32 = 10;
/// An input that takes more memory is a finding.
const MOST_MEGABYTES: u32 = 2048;

/// Run the fuzz targets under libFuzzer.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// How long each target runs.
    #[arg(long, default_value_t = 60)]
    seconds: u64,

    /// Afterwards, add to the corpora in the tree what reaches code that they do not.
    #[arg(long)]
    keep: bool,

    /// Targets; none: all.
    targets: Vec<String>,
}

/// What came of a target.
#[derive(Debug, Default)]
struct Run {
    /// `number_of_executed_units` and others, by name.
    figures: BTreeMap<String, u64>,
    coverage: u64,
    /// Where the input lies that failed.
    failed_upon: Option<PathBuf>,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let program = CARGO_FUZZ.path()?;
    if tools::is_missing(&program) {
        output::line("installing cargo-fuzz, once");
        succeed(CARGO_FUZZ.install()?)?;
    }
    let all = targets()?;
    for wanted in &args.targets {
        ensure!(
            all.contains(wanted),
            "there is no target {wanted}; there are {}",
            all.join(", ")
        );
    }
    let chosen = if args.targets.is_empty() {
        &all
    } else {
        &args.targets
    };
    output::line("building the targets");
    succeed(cargo_fuzz(&program, "build")?)?;
    output::line(format_args!(
        "{:<20} {:>12} {:>9} {:>9} {:>7}  result",
        "target", "executions", "a second", "coverage", "corpus"
    ));
    let mut failed = 0;
    for target in chosen {
        let corpus = found(target)?;
        let run = fuzz(&program, target, &corpus, args.seconds)?;
        let figure = |name: &str| run.figures.get(name).copied().unwrap_or(0);
        let result = match &run.failed_upon {
            Some(input) => format!("FAILED upon {}", input.display()),
            None => "ok".to_owned(),
        };
        output::line(format_args!(
            "{target:<20} {:>12} {:>9} {:>9} {:>7}  {result}",
            figure("number_of_executed_units"),
            figure("average_exec_per_sec"),
            run.coverage,
            fs::read_dir(&corpus)?.count(),
        ));
        failed += usize::from(run.failed_upon.is_some());
        if args.keep {
            keep(&program, target, &corpus)?;
        }
    }
    output::line(format_args!(
        "{} targets, {} each, {failed} failed",
        chosen.len(),
        output::duration(Duration::from_secs(args.seconds))
    ));
    Ok(if failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// The names of all targets, by their programs.
fn targets() -> Result<Vec<String>> {
    let folder = repository::root().join("fuzz/fuzz_targets");
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).context("cannot list the fuzz targets")? {
        let path = entry?.path();
        names.extend(path.file_stem().map(|name| name.to_string_lossy().into()));
    }
    names.sort();
    Ok(names)
}

/// The folder of what libFuzzer found for a target, on this machine.
fn found(target: &str) -> Result<PathBuf> {
    let folder = repository::target()?.join("fuzz/corpus").join(target);
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    Ok(folder)
}

/// The corpus of a target in the tree.
fn corpus(target: &str) -> PathBuf {
    repository::root().join("fuzz/corpus").join(target)
}

/// `cargo fuzz`. Without a sanitizer, as nothing of ours is unsafe; so it needs no nightly compiler.
fn cargo_fuzz(program: &Path, subcommand: &str) -> Result<Command> {
    let mut command = repository::command(&program.to_string_lossy(), &[subcommand]);
    command
        .args(["--fuzz-dir", "fuzz", "--sanitizer", "none", "--target-dir"])
        .arg(repository::target()?.join("fuzz"));
    Ok(command)
}

fn fuzz(program: &Path, target: &str, found: &Path, seconds: u64) -> Result<Run> {
    let mut command = cargo_fuzz(program, "run")?;
    command.arg(target).arg(found).arg(corpus(target));
    command.args([
        "--".to_owned(),
        format!("-max_total_time={seconds}"),
        format!("-timeout={SLOWEST_SECONDS}"),
        format!("-rss_limit_mb={MOST_MEGABYTES}"),
        "-print_final_stats=1".to_owned(),
    ]);
    let mut process = command
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot run cargo-fuzz")?;
    let mut run = Run::default();
    let mut tail = Vec::new();
    for line in BufReader::new(process.stderr.take().context("no output")?).lines() {
        let line = line?;
        run.read(&line);
        tail.push(line);
    }
    if !process.wait()?.success() && run.failed_upon.is_none() {
        bail!("{target} did not run:\n{}", tail.join("\n"));
    }
    if run.failed_upon.is_some() {
        output::line(tail.join("\n"));
    }
    Ok(run)
}

impl Run {
    /// Reads a line of libFuzzer's.
    fn read(&mut self, line: &str) {
        if let Some((name, value)) = line
            .strip_prefix("stat::")
            .and_then(|stat| stat.split_once(':'))
        {
            if let Ok(value) = value.trim().parse() {
                self.figures.insert(name.to_owned(), value);
            }
        } else if let Some((_, path)) = line.split_once("Test unit written to ") {
            self.failed_upon = Some(path.into());
        } else if let Some((_, rest)) = line.split_once(" cov: ")
            && let Some(Ok(coverage)) = rest.split(' ').next().map(str::parse)
        {
            self.coverage = coverage;
        }
    }
}

/// Adds to the corpus in the tree the fewest inputs that reach what it does not.
fn keep(program: &Path, target: &str, found: &Path) -> Result<()> {
    let mut command = cargo_fuzz(program, "run")?;
    command.arg(target).arg(corpus(target)).arg(found);
    command.args(["--", "-merge=1"]);
    succeed(command)
}

fn succeed(mut command: Command) -> Result<()> {
    let status = command
        .status()
        .with_context(|| format!("cannot run {command:?}"))?;
    ensure!(status.success(), "{command:?} failed ({status})");
    Ok(())
}
