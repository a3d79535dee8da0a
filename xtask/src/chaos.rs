//! `cargo xtask chaos`: the operator as it ships, on a real Kubernetes control plane, while everything that may go wrong does.
//!
//! Two replicas of the release binary run several RunnerPools under a steady load. From one seed come the jobs and the
//! events: replicas, API server and etcd die, the network and Azure DevOps misbehave, Pods and nodes are taken away,
//! RunnerPools are edited and recreated. Afterwards everything is checked from outside: a watch of Pods, the API server's
//! audit log and the books of the simulated Azure DevOps. Nothing here looks into the operator.
//!
//! The seed fixes what happens and when; how the parts interleave is up to the machine.

mod ambush;
mod drive;
mod leases;
mod leftovers;
mod limits;
mod load;
mod pools;
mod proxy;
mod random;
mod replicas;
mod report;
mod schedule;
mod strikes;
mod verdict;
mod world;

use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result};

use self::{
    drive::Chaos,
    random::Random,
    report::Report,
    world::{Setup, World},
};
use crate::{
    interrupt::{self, Interrupt},
    operator, output, repository,
};

/// Between two looks at something that is about to happen.
const LOOK_AGAIN: Duration = Duration::from_millis(100);
/// How long it may take until the next step forward when nothing goes wrong any more. More than the locks and sessions of
/// the simulated Azure DevOps, the operator's longest wait after failures, and whatever a busy machine adds.
const PATIENCE: Duration = Duration::from_secs(300);
/// As in production.
const REPLICAS: usize = 2;

/// Flags of the chaos.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    /// How long things go wrong. The way back to calm and the checks come on top.
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=600))]
    minutes: u32,
    /// Decides what goes wrong, and when; made up if absent.
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Build an operator that deletes a Pod after one look that says idle, as a control: the run succeeds if it catches
    /// that operator killing jobs.
    #[arg(long)]
    naive: bool,
    /// Put this program to the test instead of the one that is built otherwise.
    #[arg(long, value_name = "FILE")]
    operator: Option<PathBuf>,
    /// Write the figures to this file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    interrupt::run(async |interrupt| unleash(args, interrupt).await)
}

/// None: interrupted.
async fn unleash(args: &Args, interrupt: &mut Interrupt) -> Result<Option<ExitCode>> {
    let seed = args.seed.unwrap_or_else(made_up);
    let naive = if args.naive { " --naive" } else { "" };
    let replay = format!(
        "cargo xtask chaos --minutes {} --seed {seed}{naive}",
        args.minutes
    );
    output::line(format_args!("{replay}\n"));
    let folder = world::fresh_folder(&repository::target()?.join(format!("chaos/{seed}")))?;
    let started = Instant::now();
    let program = tokio::select! {
        program = program(args, &folder) => program?,
        () = interrupt.received() => return Ok(None),
    };
    let mut random = Random::new(seed);
    let setup = Setup {
        program: &program,
        replicas: REPLICAS,
        folder: &folder,
        random: random.fork(),
    };
    let mut world = tokio::select! {
        world = World::start(setup) => world?,
        () = interrupt.received() => return Ok(None),
    };
    let duration = Duration::from_secs(60 * u64::from(args.minutes));
    let mut chaos = Chaos::new(random, &world, duration);
    let report = tokio::select! {
        report = chaos.run(&mut world) => Some(report),
        () = interrupt.received() => None,
    };
    let kept = match &report {
        Some(Ok(report)) if report.complaints.is_empty() => Ok(()),
        Some(_) => keep_evidence(&world, &folder, &replay),
        None => Ok(()),
    };
    world.stop().await?;
    kept?;
    let Some(report) = report else {
        return Ok(None);
    };
    let report = Report {
        seed,
        minutes: args.minutes,
        naive: args.naive,
        duration_seconds: started.elapsed().as_secs_f64(),
        ..report?
    };
    finish(&report, args, &folder, &replay).map(Some)
}

/// The operator that is put to the test: a copy, since another build may put another program in its place meanwhile, and
/// replicas are started again and again.
async fn program(args: &Args, folder: &Path) -> Result<PathBuf> {
    let built = if let Some(program) = &args.operator {
        program.clone()
    } else {
        output::step("operator, release build", async {
            if args.naive {
                let remark = "the control, which must be caught".to_owned();
                Ok((operator::build_naive().await?, remark))
            } else {
                Ok((operator::build().await?, String::new()))
            }
        })
        .await?
    };
    let copy = folder.join("azdo-runner-operator");
    fs::copy(&built, &copy).with_context(|| format!("cannot copy {}", built.display()))?;
    Ok(copy)
}

/// What somebody needs who wants to know how it came to that.
fn keep_evidence(world: &World, folder: &Path, replay: &str) -> Result<()> {
    for name in ["audit.log", "kube-apiserver.log", "etcd.log"] {
        let source = world.control_plane.folder().join(name);
        fs::copy(&source, folder.join(name))
            .with_context(|| format!("cannot copy {}", source.display()))?;
    }
    fs::write(folder.join("replay.txt"), format!("{replay}\n"))
        .context("cannot write the replay command")
}

fn finish(report: &Report, args: &Args, folder: &Path, replay: &str) -> Result<ExitCode> {
    report.print();
    if let Some(file) = &args.json {
        let text = format!("{:#}\n", serde_json::to_value(report)?);
        fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))?;
    }
    if report.is_as_expected() {
        return Ok(ExitCode::SUCCESS);
    }
    output::line(format_args!("logs: {}", folder.display()));
    output::line(format_args!("again: {replay}"));
    Ok(ExitCode::FAILURE)
}

/// Any number will do; this one differs from run to run.
fn made_up() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(1, |since| since.as_secs())
}
