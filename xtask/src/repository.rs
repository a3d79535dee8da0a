//! Where things are, and how programs are run there.

use std::{env, path::PathBuf, process::Command};

use anyhow::{Context as _, Result, ensure};

/// The root of the repository.
pub(crate) fn root() -> PathBuf {
    // At run time where cargo says so: a target folder may serve several clones.
    let package = env::var_os("CARGO_MANIFEST_DIR")
        .map_or_else(|| env!("CARGO_MANIFEST_DIR").into(), PathBuf::from);
    package.parent().map_or_else(|| ".".into(), PathBuf::from)
}

/// cargo's target folder, which this program lies in as `{target}/{profile}/xtask`.
pub(crate) fn target() -> Result<PathBuf> {
    let program = env::current_exe().context("cannot tell where this program is")?;
    program
        .ancestors()
        .nth(2)
        .map(PathBuf::from)
        .context("this program does not lie in cargo's target folder")
}

/// The folder for what is worth keeping between builds and does not belong into the tree; the same as that of the crate
/// `control-plane`.
pub(crate) fn cache() -> Result<PathBuf> {
    let set = |name: &str| {
        env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    set("AZDO_RUNNER_OPERATOR_CACHE")
        .or_else(|| set("XDG_CACHE_HOME").map(|cache| cache.join("azdo-runner-operator")))
        .or_else(|| set("HOME").map(|home| home.join(".cache/azdo-runner-operator")))
        .context("no cache folder: set AZDO_RUNNER_OPERATOR_CACHE or HOME")
}

/// A program, run at the root of the repository.
pub(crate) fn command(program: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(program);
    command.args(arguments).current_dir(root());
    command
}

/// cargo, as if a user had called it at the root of the repository.
pub(crate) fn cargo(arguments: &[&str]) -> Command {
    let program = env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let mut command = command(&program, arguments);
    // `cargo xtask` describes this package in the environment; build scripts that look at such variables (ring's does)
    // would take that for a change and build everything after them anew.
    for (name, _) in env::vars_os() {
        let of_a_package = name.to_str().is_some_and(|name| {
            [
                "CARGO_PKG_",
                "CARGO_MANIFEST_",
                "CARGO_BIN_",
                "CARGO_CRATE_",
                "CARGO_PRIMARY_",
            ]
            .iter()
            .any(|prefix| name.starts_with(prefix))
        });
        if of_a_package {
            command.env_remove(name);
        }
    }
    command
}

/// What the command writes to standard output.
pub(crate) fn output(mut command: Command) -> Result<String> {
    let shown = format!("{command:?}");
    let output = command
        .output()
        .with_context(|| format!("cannot run {shown}"))?;
    let (stdout, stderr) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    ensure!(
        output.status.success(),
        "{shown} failed ({}):\n{stdout}{stderr}",
        output.status
    );
    Ok(stdout.into_owned())
}

/// The paths of all files that are in version control or would be added to it, from the root.
pub(crate) fn files() -> Result<Vec<String>> {
    let list = output(command(
        "git",
        &[
            "ls-files",
            "-z",
            "--cached",
            "--others",
            "--exclude-standard",
        ],
    ))?;
    // A file that was deleted and not yet staged is listed, but is no more.
    Ok(list
        .split_terminator('\0')
        .filter(|path| root().join(path).is_file())
        .map(str::to_owned)
        .collect())
}
