//! `cargo xtask e2e`: the operator as users have it, on a real node with real containers.
//!
//! The chart is installed by Helm, the images run as containers, and kubectl says and asks what a user would. Only Azure
//! DevOps is simulated, and what the agent's package does with it. Everything that runs, and whoever tells the stories,
//! runs in namespaces of Linux (see `control_plane::node`), so that nothing is left, whatever happens. Images and
//! programs are built before, outside.

mod canary;
mod guides;
mod images;
pub(crate) mod rights;
mod stories;
mod system;
mod world;

use std::{
    env, fs,
    path::PathBuf,
    process::{Command, ExitCode, Stdio},
    time::Instant,
};

use anyhow::{Context as _, Result, ensure};
use control_plane::{binaries, node::isolation};

use self::{images::Images, stories::Told, world::World};
use crate::{
    interrupt::{self, Interrupt},
    output, repository,
    stages::SKIPPED,
};

/// Flags of the end-to-end run.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    /// Tell only stories whose name has this in it, and what they need.
    #[arg(long, value_name = "TEXT", default_value = "")]
    story: String,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    interrupt::run(async |interrupt| {
        if isolation::is_isolated() {
            return tell(args).await.map(Some);
        }
        if let Some(reason) = system::obstacle() {
            // As with linters: what CI leaves out, nobody runs.
            ensure!(env::var_os("CI").is_none(), "{reason}");
            output::line(reason);
            return Ok(Some(ExitCode::from(SKIPPED)));
        }
        tokio::select! {
            built = build() => built?,
            () = interrupt.received() => return Ok(None),
        }
        isolate(args, interrupt).await
    })
}

async fn build() -> Result<()> {
    output::line("Building what is missing");
    output::step("programs of Kubernetes", async {
        tokio::task::spawn_blocking(|| {
            binaries::ensure(&mut binaries::terminal())?;
            binaries::helm(&mut binaries::terminal())?;
            binaries::node(&mut binaries::terminal())
        })
        .await??;
        Ok(((), "the control plane, Helm, a node".to_owned()))
    })
    .await?;
    images::build().await
}

/// Runs this program once more, isolated. `None`: interrupted.
async fn isolate(args: &Args, interrupt: &mut Interrupt) -> Result<Option<ExitCode>> {
    let memory = folder()?.join("memory");
    fs::create_dir_all(&memory).with_context(|| format!("cannot create {}", memory.display()))?;
    let mut again = Command::new(env::current_exe().context("cannot tell where this program is")?);
    again.args(["e2e", "--story", &args.story]);
    let kept = [
        repository::root(),
        repository::target()?,
        repository::cache()?,
    ];
    let isolated = isolation::isolated(&again, &memory, &kept);
    let mut isolated = tokio::process::Command::from(isolated)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .context("cannot run setpriv")?;
    let status = tokio::select! {
        status = isolated.wait() => Some(status?),
        () = interrupt.received() => None,
    };
    if status.is_none() {
        isolated.kill().await?;
    }
    isolation::remove_cgroups().await?;
    Ok(status.map(|status| {
        let code = status.code().and_then(|code| u8::try_from(code).ok());
        code.map_or(ExitCode::FAILURE, ExitCode::from)
    }))
}

/// Starts everything and tells the stories.
async fn tell(args: &Args) -> Result<ExitCode> {
    let started = Instant::now();
    let images = Images::built()?;
    output::line("\nStarting");
    let world = World::start(&images).await?;
    output::line("\nStories");
    let Told { told, failed } = stories::tell(&world, &args.story).await?;
    output::line(format_args!(
        "\n{told} stories in {}, {} failed",
        output::duration(started.elapsed()),
        failed.len()
    ));
    if failed.is_empty() {
        world.stop().await?;
        return Ok(ExitCode::SUCCESS);
    }
    output::line(format_args!("failed: {}", failed.join(", ")));
    let evidence = folder()?.join("evidence");
    world.keep_evidence(&evidence).await?;
    output::line(format_args!("logs: {}", evidence.display()));
    Ok(ExitCode::FAILURE)
}

/// Where the end-to-end run has its files.
fn folder() -> Result<PathBuf> {
    Ok(repository::target()?.join("e2e"))
}
