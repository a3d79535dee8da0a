//! Clients that we did not write: Microsoft's packages for Python and Node, pinned, against the
//! simulator. They are installed once, below the cache folder.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use azure_devops_simulator::{JobSpec, Outcome, Switches};
use tokio::process::Command;

use crate::bench::{ORGANIZATION, PAT, POOL, job_when, online, simulator, start};

#[tokio::test]
async fn the_python_client_works_as_with_the_service() {
    const PACKAGES: [&str; 2] = ["azure-devops==7.1.0b4", "msrest==0.7.1"];
    let installed = install("python-azure-devops-7.1.0b4-msrest-0.7.1", async |folder| {
        run(Command::new("python3").args(["-m", "venv"]).arg(&folder)).await?;
        let pip = [
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
        ];
        run(Command::new(folder.join("bin/python"))
            .args(pip)
            .args(PACKAGES))
        .await
    });
    let Some(folder) = or_skip(installed.await) else {
        return;
    };
    let mut command = Command::new(folder.join("bin/python"));
    drive(command.arg(script("python/pools.py"))).await;
}

#[tokio::test]
async fn the_node_client_works_as_with_the_service() {
    let installed = install("node-azure-devops-node-api-17.0.1", async |folder| {
        let npm = [
            "install",
            "--silent",
            "--no-audit",
            "--no-fund",
            "--ignore-scripts",
            "--prefix",
        ];
        run(Command::new("npm")
            .args(npm)
            .arg(folder)
            .arg("azure-devops-node-api@17.0.1"))
        .await
    });
    let Some(folder) = or_skip(installed.await) else {
        return;
    };
    let mut command = Command::new("node");
    drive(
        command
            .arg(script("node/pools.cjs"))
            .env("NODE_PATH", folder.join("node_modules")),
    )
    .await;
}

fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests")
        .join(name)
}

/// Runs a script against a pool whose agent `worker` runs one of two jobs.
async fn drive(command: &mut Command) {
    let (simulator, control) = simulator(Switches::default()).await;
    let _agent = start(&simulator, "worker");
    online(&control, 1).await;
    let spec = JobSpec {
        count: 2,
        demands: vec!["java".to_owned()],
        duration: Duration::from_hours(1),
        ..JobSpec::default()
    };
    let ids = control.queue_jobs(ORGANIZATION, POOL, &spec).await.unwrap();
    job_when(&control, ids[0], |outcome| outcome == Outcome::Running).await;
    command
        .env(
            "AZURE_DEVOPS_URL",
            format!("{}{ORGANIZATION}", simulator.url()),
        )
        .env("AZURE_DEVOPS_PAT", PAT)
        .env("NO_PROXY", "127.0.0.1");
    run(command).await.unwrap();
}

/// Where there is no Python, no Node or no registry, the proof is skipped, but never in CI.
fn or_skip(installed: Result<PathBuf, String>) -> Option<PathBuf> {
    installed
        .inspect_err(|reason| {
            let ci = std::env::var("CI").is_ok_and(|ci| ci == "true");
            assert!(!ci, "cannot be skipped in CI: {reason}");
            eprintln!("skipped: {reason}");
        })
        .ok()
}

/// The folder of that name below the cache, filled if it is not there.
async fn install(
    name: &str,
    fill: impl AsyncFnOnce(PathBuf) -> Result<(), String>,
) -> Result<PathBuf, String> {
    let cache = match (std::env::var_os("XDG_CACHE_HOME"), std::env::var_os("HOME")) {
        (Some(cache), _) if !cache.is_empty() => PathBuf::from(cache),
        (_, Some(home)) => PathBuf::from(home).join(".cache"),
        _ => return Err("no home folder for the cache".to_owned()),
    };
    let folder = cache.join("azdo-runner-operator").join(name);
    if folder.exists() {
        return Ok(folder);
    }
    // Filled under another name first: nothing half done ever stands in the right place, and two
    // runs at once do not meet. A virtual environment knows its old path only in scripts that
    // nobody starts.
    let draft = folder.with_file_name(format!("{name}-draft-{}", std::process::id()));
    let made = match tokio::fs::create_dir_all(&draft).await {
        Ok(()) => fill(draft.clone()).await,
        Err(error) => Err(format!("failed to make {}: {error}", draft.display())),
    };
    let moved = match made {
        Ok(()) => tokio::fs::rename(&draft, &folder)
            .await
            .map_err(|error| error.to_string()),
        Err(error) => Err(error),
    };
    if moved.is_err() {
        let _ = tokio::fs::remove_dir_all(&draft).await;
    }
    // Somebody else may have been faster.
    if folder.exists() {
        Ok(folder)
    } else {
        moved.map(|()| folder)
    }
}

async fn run(command: &mut Command) -> Result<(), String> {
    let output = command
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await;
    let output =
        output.map_err(|error| format!("failed to start {:?}: {error}", command.as_std()))?;
    if output.status.success() {
        return Ok(());
    }
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Err(format!(
        "{:?} failed: {}{}",
        command.as_std(),
        text(&output.stdout),
        text(&output.stderr)
    ))
}
