//! `cargo xtask demo`: the operator at work, for somebody who has neither a cluster nor Azure DevOps.
//!
//! Kubernetes is real (its API server and controllers; see the crate `control-plane`), and so is the operator: the release
//! binary, in a process of its own, with credentials of its own. Azure DevOps, the node and the agents are simulated. What
//! is shown and measured is seen from outside: by a watch of Pods and in the simulator's books, never in the operator.

mod examples;
mod figures;
mod history;
mod load;
mod picture;
mod screen;
mod summary;
mod table;
mod world;

use std::{
    fs,
    path::PathBuf,
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use tokio::time;

use crate::{
    demo::{figures::Figures, load::Load, screen::Screen, world::World},
    interrupt::{self, Interrupt},
    output, repository,
};

/// Flags of the demonstration.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    /// How many jobs are queued.
    #[arg(long, value_name = "N", default_value_t = 40, value_parser = clap::value_parser!(u16).range(1..=10_000))]
    jobs: u16,
    /// Instead of the mixed load, queue so many jobs at once in a pool that may have as many agents, and measure how
    /// long the creation of their Pods takes.
    #[arg(long, value_name = "N", conflicts_with = "jobs", value_parser = clap::value_parser!(u16).range(1..=10_000))]
    burst: Option<u16>,
    /// Leave everything up until Ctrl-C, for kubectl and jobs of your own.
    #[arg(long)]
    keep: bool,
    /// Write the figures of the summary to this file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Where the picture goes; `demo.svg` in the target folder if absent.
    #[arg(long, value_name = "FILE")]
    picture: Option<PathBuf>,
}

/// Nothing happened for so long, with work left: it will not end by itself. More than an agent's idle time and several
/// polls together.
const PATIENCE: Duration = Duration::from_secs(120);
/// Between two pictures on the screen: smooth for the eye, light for the machine.
const FRAME: Duration = Duration::from_millis(250);

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    interrupt::run(async |interrupt| demonstrate(args, interrupt).await)
}

/// None: interrupted.
async fn demonstrate(args: &Args, interrupt: &mut Interrupt) -> Result<Option<ExitCode>> {
    let (load, examples) = match args.burst {
        Some(jobs) => (Load::burst(usize::from(jobs)), examples::burst(jobs)?),
        None => (Load::mixed(usize::from(args.jobs)), examples::load()?),
    };
    let world = tokio::select! {
        world = World::start(examples) => world?,
        () = interrupt.received() => return Ok(None),
    };
    let outcome = play(args, &world, load, interrupt).await;
    world.stop().await?;
    outcome
}

async fn play(
    args: &Args,
    world: &World,
    load: Load,
    interrupt: &mut Interrupt,
) -> Result<Option<ExitCode>> {
    let started = Instant::now();
    let settled = tokio::select! {
        settled = carry_out(world, load) => settled?,
        () = interrupt.received() => return Ok(None),
    };
    if args.keep {
        summary::explain(world);
        interrupt.received().await;
        output::line("");
    }
    let deleted = tokio::select! {
        deleted = world.delete_runner_pools() => deleted,
        () = interrupt.received() => return Ok(None),
    };
    let figures = Figures::take(world, deleted?, args.burst.is_some())?;

    let picture = match &args.picture {
        Some(file) => file.clone(),
        None => repository::target()?.join("demo.svg"),
    };
    write(&picture, &picture::draw(&world.history()))?;
    if let Some(file) = &args.json {
        write(file, &format!("{:#}\n", serde_json::to_value(&figures)?))?;
    }
    let mut complaints = figures.complaints();
    if !settled {
        complaints.insert(
            0,
            format!(
                "nothing happened for {} s although work was left",
                PATIENCE.as_secs()
            ),
        );
    }
    summary::print(&figures, started.elapsed(), &picture, &complaints);
    Ok(Some(if complaints.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }))
}

/// Queues the load and shows what happens until all jobs are finished and all RunnerPools are back at their minimum.
/// Whether they got there.
async fn carry_out(world: &World, mut load: Load) -> Result<bool> {
    let mut screen = Screen::start(load.total());
    let started = Instant::now();
    let (mut last_progress, mut last_change) = (None, Instant::now());
    loop {
        load.advance(started.elapsed(), world)?;
        world.check()?;
        let view = world.view();
        screen.show(&view);
        let progress = Some(view.progress());
        if load.is_done() && view.is_settled() {
            return Ok(true);
        }
        if progress != last_progress {
            (last_progress, last_change) = (progress, Instant::now());
        } else if last_change.elapsed() > PATIENCE {
            return Ok(false);
        }
        time::sleep(FRAME).await;
    }
}

fn write(file: &PathBuf, text: &str) -> Result<()> {
    fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))
}
