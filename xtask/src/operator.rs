//! The operator: built, started, stopped and otherwise treated as any other program. What happens to it is what a cluster
//! may do to it; nothing here looks into it.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use tokio::{
    process::{Child, Command},
    time,
};

use crate::repository;

/// Where cargo puts it, in a target folder.
const BINARY: &str = "release/azdo-runner-operator";

/// A stop takes a fraction of a second; a machine that is busy may take longer.
const STOP_TIMEOUT: Duration = Duration::from_secs(30);

/// Ends the operator if this program dies without a word: it waits for the end of a pipe that only we hold open. A frozen
/// process needs a SIGCONT to hear of it.
const WATCHDOG: &str = r#"read -r _; kill -TERM "$1"; kill -CONT "$1""#;

/// The operator as a process.
#[derive(Debug)]
pub(crate) struct Operator {
    process: Child,
    watchdog: Child,
    id: u32,
    log: PathBuf,
}

/// Builds the release binary, with cargo's own output, and gives its path.
pub(crate) async fn build() -> Result<PathBuf> {
    release(&[]).await
}

/// Builds the operator that removes agents after one look, which tests have to catch. It lies in a folder of its own, so
/// that nobody takes it for the release binary.
pub(crate) async fn build_naive() -> Result<PathBuf> {
    let target = repository::target()?.join("naive");
    let folder = target.to_string_lossy();
    let more = ["--features", "naive-removal", "--target-dir", &folder];
    release(&more).await?;
    Ok(target.join(BINARY))
}

async fn release(more: &[&str]) -> Result<PathBuf> {
    let arguments = [&["build", "--release", "--package", "operator"], more].concat();
    let mut command = Command::from(repository::cargo(&arguments));
    let status = command
        .kill_on_drop(true)
        .status()
        .await
        .context("cannot run cargo")?;
    ensure!(status.success(), "the operator cannot be built");
    Ok(repository::target()?.join(BINARY))
}

/// The `CustomResourceDefinition` that it prints.
pub(crate) fn crd(program: &Path) -> Result<String> {
    repository::output(repository::command(&program.to_string_lossy(), &["crd"]))
}

impl Operator {
    /// Starts it with the credentials of a kubeconfig and more of an environment. Its log goes to the end of a file.
    pub(crate) fn start(
        program: &Path,
        kubeconfig: &Path,
        log: PathBuf,
        environment: &[(&str, &str)],
    ) -> Result<Self> {
        let file = File::options()
            .create(true)
            .append(true)
            .open(&log)
            .with_context(|| format!("cannot write {}", log.display()))?;
        let mut command = Command::new(program);
        command
            // A free port: 8081 may be somebody else's.
            .args([
                "run",
                "--health-address",
                "127.0.0.1:0",
                "--log-format",
                "text",
                "--log-level",
                "info",
            ])
            .env_remove("WATCH_NAMESPACES")
            .env("KUBECONFIG", kubeconfig)
            .env("NO_COLOR", "1")
            .env("MALLOC_ARENA_MAX", "2") // as the image has it
            .envs(environment.iter().copied())
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .process_group(0) // a Ctrl-C in the terminal is for us to handle
            .kill_on_drop(true);
        let process = command
            .spawn()
            .with_context(|| format!("cannot start {}", program.display()))?;
        let id = process.id().context("the operator ended at once")?;
        let watchdog = Command::new("sh")
            .args(["-c", WATCHDOG, "operator-watchdog", &id.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .context("cannot start the watchdog of the operator")?;
        Ok(Self {
            process,
            watchdog,
            id,
            log,
        })
    }

    pub(crate) fn log(&self) -> &Path {
        &self.log
    }

    /// Fails if it has ended.
    pub(crate) fn check(&self) -> Result<()> {
        // A process that ended and was not waited for has no memory.
        if self.most_memory().is_ok() {
            return Ok(());
        }
        bail!(
            "the operator has ended; the end of its log, {}:\n{}",
            self.log.display(),
            self.log_end()
        )
    }

    /// The most memory that it had resident at any time, in bytes.
    pub(crate) fn most_memory(&self) -> Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.id))
            .context("the operator is gone")?;
        high_water_mark(&status).context("the operator has no memory any more")
    }

    /// Kills it (SIGKILL); it is gone when this returns.
    pub(crate) async fn kill(mut self) -> Result<()> {
        self.process
            .kill()
            .await
            .context("cannot kill the operator")?;
        self.dismiss_watchdog().await
    }

    /// Holds all its threads (SIGSTOP). It keeps what it has in memory and its connections, and knows nothing of it.
    pub(crate) async fn freeze(&self) -> Result<()> {
        self.signal("-STOP").await
    }

    /// Lets it go on after a [`Operator::freeze`] (SIGCONT).
    pub(crate) async fn thaw(&self) -> Result<()> {
        self.signal("-CONT").await
    }

    /// How it ended, if it did.
    pub(crate) fn ended(&mut self) -> Result<Option<ExitStatus>> {
        self.process
            .try_wait()
            .context("cannot tell whether the operator runs")
    }

    async fn dismiss_watchdog(&mut self) -> Result<()> {
        self.watchdog
            .kill()
            .await
            .context("cannot stop the watchdog of the operator")
    }

    /// Sends a signal. One that has ended already hears nothing, which whoever waits for it finds out.
    async fn signal(&self, signal: &str) -> Result<()> {
        let mut kill = Command::new("kill");
        kill.args([signal, &self.id.to_string()])
            .stderr(Stdio::null());
        kill.status().await.map(drop).context("cannot run kill")
    }

    /// Asks it to stop (SIGTERM) and waits for it. It has to end in order.
    pub(crate) async fn stop(mut self) -> Result<()> {
        let status = self.end().await?;
        ensure!(
            status.success(),
            "the operator ended with {status}; the end of its log:\n{}",
            self.log_end()
        );
        Ok(())
    }

    /// Asks it to stop (SIGTERM), waits for it, and gives how it ended. It has to end in time.
    pub(crate) async fn end(&mut self) -> Result<ExitStatus> {
        self.dismiss_watchdog().await?;
        self.signal("-TERM").await?;
        self.thaw().await?;
        let Ok(status) = time::timeout(STOP_TIMEOUT, self.process.wait()).await else {
            self.process
                .kill()
                .await
                .context("cannot kill the operator")?;
            bail!(
                "the operator did not stop within {} s",
                STOP_TIMEOUT.as_secs()
            );
        };
        status.context("cannot wait for the operator")
    }

    fn log_end(&self) -> String {
        /// Enough for an error with its causes and what led to it.
        const LINES: usize = 15;
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(LINES)..].join("\n")
    }
}

/// `VmHWM` of `/proc/{id}/status`, in bytes; proc(5) gives it in kB, which are 1024 bytes.
fn high_water_mark(status: &str) -> Option<u64> {
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kilobytes: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kilobytes * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_high_water_mark_is_read_in_bytes() {
        assert_eq!(
            high_water_mark("Name:\ta\nVmHWM:\t   20480 kB\nVmRSS:\t    1 kB\n"),
            Some(20 << 20)
        );
        assert_eq!(high_water_mark("Name:\ta\nState:\tZ (zombie)\n"), None);
    }
}
