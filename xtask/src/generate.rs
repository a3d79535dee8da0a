//! Files that are generated from the code and committed, so that readers and users have them without a build.

mod command_line;
mod resource;

use std::{fs, path::Path};

use anyhow::{Context as _, Result, bail};

use crate::{output, repository};

/// A generated file: its path from the root and its text.
type Generated = (&'static str, String);

/// Writes all generated files.
pub(crate) fn write() -> Result<()> {
    for (path, text) in generate()? {
        let file = repository::root().join(path);
        let written = file
            .parent()
            .map_or(Ok(()), fs::create_dir_all)
            .and_then(|()| fs::write(&file, &text));
        written.with_context(|| format!("cannot write {path}"))?;
        output::line(path);
    }
    Ok(())
}

/// Fails, with the difference, if a file is not what it would be if it were generated now.
pub(crate) fn check() -> Result<()> {
    let mut differences = String::new();
    for (path, text) in generate()? {
        if fs::read_to_string(repository::root().join(path))
            .ok()
            .as_ref()
            != Some(&text)
        {
            differences += &difference(path, &text)?;
        }
    }
    if differences.is_empty() {
        return Ok(());
    }
    bail!("generated files are out of step with the code; run cargo xtask generate\n{differences}")
}

fn generate() -> Result<Vec<Generated>> {
    let crd = operator(&["crd"])?;
    let resource = resource::document(
        &serde_saphyr::from_str(&crd).context("the operator's crd is no YAML")?,
    )?;
    let command_line = command_line::document(operator)?;
    Ok(vec![
        ("deploy/crd.yaml", crd),
        ("docs/reference/runnerpool.md", resource),
        ("docs/reference/cli.md", command_line),
    ])
}

/// What the operator prints, when it finds no environment variable of its own set.
fn operator(arguments: &[&str]) -> Result<String> {
    // The release build, as the demonstration needs it, too: one build less.
    let mut command =
        repository::cargo(&["run", "--quiet", "--release", "--package", "operator", "--"]);
    for variable in [
        "WATCH_NAMESPACES",
        "HEALTH_ADDRESS",
        "LEADER_ELECTION",
        "LEASE_NAMESPACE",
        "LEASE_NAME",
        "LEASE_DURATION_SECONDS",
        "LEASE_RENEW_DEADLINE_SECONDS",
        "LEASE_RENEW_SECONDS",
        "LOG_FORMAT",
        "LOG_LEVEL",
    ] {
        command.env_remove(variable);
    }
    command.args(arguments);
    repository::output(command)
}

fn difference(path: &str, text: &str) -> Result<String> {
    let committed = repository::root().join(path);
    if !committed.exists() {
        return Ok(format!("{path} is missing\n"));
    }
    let generated = repository::target()?
        .join("generated")
        .join(Path::new(path).file_name().context("no name")?);
    generated.parent().map_or(Ok(()), fs::create_dir_all)?;
    fs::write(&generated, text)?;
    let (committed, generated) = (
        committed.display().to_string(),
        generated.display().to_string(),
    );
    let output = repository::command(
        "git",
        &[
            "diff",
            "--no-index",
            "--no-color",
            "--",
            &committed,
            &generated,
        ],
    )
    .output()
    .context("cannot run git")?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
