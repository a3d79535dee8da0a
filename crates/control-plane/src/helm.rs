//! Helm, which renders, checks and installs charts.

use std::{
    io::Write as _,
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context as _, bail};
use kube::core::DynamicObject;
use serde_json::Value;

use crate::binaries;

/// Renders a chart as an installation in this namespace with these values, and gives its manifests.
///
/// # Errors
/// When the chart refuses the values; the message is Helm's own.
pub fn template(
    chart: &Path,
    release: &str,
    namespace: &str,
    values: &Value,
) -> anyhow::Result<String> {
    let chart = chart.to_string_lossy();
    run(
        &["template", release, &chart, "--namespace", namespace],
        Some(values),
    )
}

/// Helm's own check of a chart, warnings included.
///
/// # Errors
/// When it finds something.
pub fn lint(chart: &Path, values: &Value) -> anyhow::Result<()> {
    let arguments = ["lint", "--strict", &chart.to_string_lossy()];
    run(&arguments, Some(values)).map(drop)
}

/// The objects in manifests.
///
/// # Errors
/// When these are not YAML, or one is no object of Kubernetes.
pub fn objects(manifests: &str) -> anyhow::Result<Vec<DynamicObject>> {
    serde_saphyr::from_multiple(manifests).context("cannot read the manifests")
}

/// Runs Helm, with values where the subcommand takes them, and gives what it prints.
///
/// # Errors
/// When it fails; the message is Helm's own.
pub fn run(arguments: &[&str], values: Option<&Value>) -> anyhow::Result<String> {
    let helm = binaries::helm(&mut binaries::terminal())?;
    let mut command = Command::new(&helm);
    command.args(arguments);
    if values.is_some() {
        command.args(["--values", "-"]);
    }
    let mut process = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run {}", helm.display()))?;
    if let (Some(mut stdin), Some(values)) = (process.stdin.take(), values) {
        // JSON is YAML. Helm reads all of it before it writes; if it ends without, its own message says why.
        let _ = stdin.write_all(values.to_string().as_bytes());
    }
    let output = process.wait_with_output()?;
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        bail!("{}", [stdout.trim(), stderr.trim()].join("\n").trim());
    }
    Ok(stdout)
}
