//! `simulate`: runs seeds, prints a line per failing one with the command that replays it, and a summary.
#![expect(clippy::print_stdout, reason = "the program's output")]

use std::{
    collections::BTreeMap,
    io::{IsTerminal as _, Write as _},
    process::ExitCode,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use clap::Parser;
use simulation::{Breach, Control, Counts, Options, Run, Simulator};

/// A quarter faster than the system's: a simulated day is made of millions of small objects.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Run the operator's logic against models of Azure DevOps and Kubernetes, under a virtual clock.
#[derive(Debug, Parser)]
#[command(name = "simulate")]
struct Args {
    /// How many seeds, counted from --first.
    #[arg(long, default_value_t = 100)]
    seeds: u64,
    /// The first seed.
    #[arg(long, default_value_t = 0)]
    first: u64,
    /// Run this seed alone.
    #[arg(long)]
    seed: Option<u64>,
    /// Virtual hours of each seed.
    #[arg(long, default_value_t = 24)]
    hours: i64,
    /// Tell the story of the seed.
    #[arg(long, requires = "seed")]
    trace: bool,
    /// Run an operator that does what must not be done; it has to fail.
    #[arg(long)]
    control: Option<Control>,
    /// Also run each control over a twentieth of the seeds, and print what it did beside what ours does with these.
    #[arg(long, conflicts_with_all = ["seed", "control"])]
    controls: bool,
    /// Make every look, also those that cannot change anything.
    #[arg(long)]
    every_look: bool,
    /// Threads.
    #[arg(long, default_value_t = threads())]
    threads: usize,
}

fn threads() -> usize {
    thread::available_parallelism().map_or(1, usize::from)
}

/// Failing seeds that are printed at the most.
const MOST_PRINTED: usize = 20;

fn main() -> anyhow::Result<ExitCode> {
    let args = Args::parse();
    let simulator = Simulator::new()?;
    let options = Options {
        hours: args.hours,
        control: args.control,
        trace: args.trace,
        skip: !args.every_look,
    };
    let (first, count) = match args.seed {
        Some(seed) => (seed, 1),
        None => (args.first, args.seeds),
    };
    let ours = Batch::run(&simulator, first, count, options, args.threads);
    ours.print(options);
    let mut failed = !ours.failing.is_empty();
    if args.controls {
        let share = (count / 20).max(1);
        println!(
            "\nNo agent and in vain: jobs left without an agent, and agents without a job, for 1000 jobs.\n\
             Caught: failing seeds in which a control did what it is there for.\n\
             {:<18} {:>6} {:>8} {:>8} {:>8} {:>9} {:>9} {:>8}  failures",
            "operator", "seeds", "failing", "caught", "killed", "left over", "no agent", "in vain"
        );
        let ours = Batch::run(&simulator, first, share, options, args.threads);
        ours.print_row(None);
        for control in Control::ALL {
            let options = Options {
                control: Some(control),
                ..options
            };
            let batch = Batch::run(&simulator, first, share, options, args.threads);
            batch.print_row(Some(control));
            // Some do it seldom.
            let mut more = (share..count).map(|seed| simulator.run(first + seed, options));
            let caught =
                batch.caught(control) > 0 || more.any(|run| control.is_caught(&run.failures));
            failed |= !caught;
        }
    }
    Ok(if failed {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

/// Many runs.
struct Batch {
    seeds: u64,
    hours: i64,
    pool_hours: u64,
    counts: Counts,
    /// Equal for equal batches, in whatever order they ran.
    digest: u64,
    failing: Vec<Run>,
    took: Duration,
    threads: usize,
}

impl Batch {
    fn run(
        simulator: &Simulator,
        first: u64,
        count: u64,
        options: Options,
        threads: usize,
    ) -> Self {
        let started = Instant::now();
        let next = AtomicU64::new(0);
        let batch = Mutex::new(Self {
            seeds: 0,
            hours: options.hours,
            pool_hours: 0,
            counts: Counts::default(),
            digest: 0,
            failing: Vec::new(),
            took: Duration::ZERO,
            threads,
        });
        thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(|| {
                    loop {
                        let seed = next.fetch_add(1, Ordering::Relaxed);
                        if seed >= count {
                            return;
                        }
                        let run = simulator.run(first + seed, options);
                        let mut batch = batch.lock().unwrap_or_else(PoisonError::into_inner);
                        batch.take(run);
                        batch.progress(count, started.elapsed());
                    }
                });
            }
        });
        let mut batch = batch.into_inner().unwrap_or_else(PoisonError::into_inner);
        batch.failing.sort_by_key(|run| run.seed);
        batch.took = started.elapsed();
        batch
    }

    fn take(&mut self, run: Run) {
        self.seeds += 1;
        self.pool_hours += run.pools * u64::try_from(self.hours).unwrap_or_default();
        self.counts.add(&run.counts);
        self.digest ^= run.digest.rotate_left((run.seed % 64) as u32);
        if !run.failures.is_empty() {
            self.failing.push(run);
        }
    }

    /// A line that shows how far it is: in place on a terminal, else now and then.
    fn progress(&self, of: u64, elapsed: Duration) {
        let terminal = std::io::stderr().is_terminal();
        if of < 50 || !terminal && !self.seeds.is_multiple_of(1000) {
            return;
        }
        let (start, end) = if terminal { ("\r", "") } else { ("", "\n") };
        let mut stderr = std::io::stderr();
        // Nobody is there to read it.
        let _ = write!(
            stderr,
            "{start}{} of {of} seeds, {} failing, {} s{end}",
            self.seeds,
            self.failing.len(),
            elapsed.as_secs()
        );
        if terminal && self.seeds == of {
            let _ = writeln!(stderr);
        }
    }

    fn print(&self, options: Options) {
        for run in self.failing.iter().take(MOST_PRINTED) {
            let first = &run.failures[0];
            let control = options.control.map_or_else(String::new, |control| {
                format!(" --control {}", control.name())
            });
            println!(
                "seed {} failed: {} ({}; {} failures); replay: cargo xtask simulate --seed {} --hours {}{control} --trace",
                run.seed,
                first.breach.name(),
                first.detail,
                run.failures.len(),
                run.seed,
                self.hours,
            );
        }
        let counts = &self.counts;
        let millis = u64::try_from(self.took.as_millis())
            .unwrap_or(u64::MAX)
            .max(1);
        println!(
            "{} seeds x {} h: {} failing, {} killed, {} left over",
            self.seeds,
            self.hours,
            self.failing.len(),
            counts.jobs_killed,
            counts.leaked
        );
        println!(
            "{} jobs ({} ran, {} cancelled, {} refused for want of an agent, {} lost from outside)",
            counts.jobs,
            counts.jobs_run,
            counts.jobs_canceled,
            counts.jobs_refused,
            counts.jobs_lost_outside
        );
        println!(
            "{} Pods ({} agents had no job), {} passes, {} requests, {} looks that were made; {} s to rest at the longest; with two leaders {} above the maximum, {} claims missing and {} names given twice; {} stopped with a job that nobody could know of",
            counts.pods,
            counts.in_vain,
            counts.passes,
            counts.requests,
            counts.looks,
            counts.longest_to_rest / 1000,
            counts.above_maximum_with_two,
            counts.claims_missing_with_two,
            counts.identities_shared_with_two,
            counts.stopped_unheard
        );
        let troubles: Vec<String> = counts
            .troubles
            .iter()
            .map(|(kind, count)| format!("{kind} {count}"))
            .collect();
        println!("troubles: {}", troubles.join(", "));
        println!(
            "{} pool-hours in {:.1} s on {} threads: {} pool-hours a second; digest {:016x}",
            self.pool_hours,
            self.took.as_secs_f64(),
            self.threads,
            self.pool_hours * 1000 / millis,
            self.digest
        );
    }

    /// Failing seeds in which a control did what it is there for.
    fn caught(&self, control: Control) -> usize {
        let runs = self.failing.iter();
        runs.filter(|run| control.is_caught(&run.failures)).count()
    }

    /// What an operator came to. Its failures are printed by kind, those first that a control is there for.
    fn print_row(&self, control: Option<Control>) {
        let own = control.map_or(&[][..], Control::breaches);
        let mut kinds: BTreeMap<(bool, Breach), u64> = BTreeMap::new();
        for failure in self.failing.iter().flat_map(|run| &run.failures) {
            let kind = (!own.contains(&failure.breach), failure.breach);
            *kinds.entry(kind).or_default() += 1;
        }
        let kinds: Vec<String> = kinds
            .iter()
            .map(|((_, breach), count)| format!("{} {count}", breach.name()))
            .collect();
        println!(
            "{:<18} {:>6} {:>8} {:>8} {:>8} {:>9} {:>9} {:>8}  {}",
            control.map_or("ours", Control::name),
            self.seeds,
            self.failing.len(),
            control.map_or(0, |control| self.caught(control)),
            self.counts.jobs_killed,
            self.counts.leaked,
            self.of_1000_jobs(self.counts.jobs_left),
            self.of_1000_jobs(self.counts.in_vain),
            kinds.join(", ")
        );
    }

    fn of_1000_jobs(&self, count: u64) -> String {
        let tenths = count * 10_000 / self.counts.jobs.max(1);
        format!("{}.{}", tenths / 10, tenths % 10)
    }
}
