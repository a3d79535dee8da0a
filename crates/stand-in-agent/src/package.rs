//! The package: its files, as a folder or as an archive.

use std::{
    fs,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::Path,
    process::Command,
};

use anyhow::{Context as _, Result, ensure};

const SCRIPTS: [(&str, &str); 2] = [
    ("config.sh", include_str!("../package/config.sh")),
    ("run.sh", include_str!("../package/run.sh")),
];

/// Lays the package out in a folder. `program` is this crate's; `link` says where it can be found when the package is used,
/// instead of a copy of it.
///
/// # Errors
/// Where a file cannot be written.
pub fn lay_out(folder: &Path, program: &Path, link: Option<&Path>) -> Result<()> {
    let bin = folder.join("bin");
    fs::create_dir_all(&bin).context("failed to make bin")?;
    fs::create_dir_all(folder.join("externals")).context("failed to make externals")?;
    fs::write(
        folder.join("externals/README"),
        "The real package has the runtimes of its tasks here.\n",
    )
    .context("failed to write to externals")?;
    for (name, text) in SCRIPTS {
        write_script(&folder.join(name), text)?;
    }
    write_script(&bin.join("update.sh"), include_str!("../package/update.sh"))?;
    let listener = bin.join("Agent.Listener");
    match link {
        Some(target) => symlink(target, &listener).context("failed to link the program")?,
        None => {
            fs::copy(program, &listener).context("failed to copy the program")?;
        }
    }
    // One program: it goes by its name.
    symlink(
        link.unwrap_or(Path::new("Agent.Listener")),
        bin.join("Agent.Worker"),
    )
    .context("failed to link the worker")
}

/// Makes an archive of the package, `.tar.gz` as the real one is.
///
/// # Errors
/// Where the package cannot be laid out, or `tar` does not work.
pub fn archive(file: &Path, program: &Path) -> Result<()> {
    let folder = file.with_extension("folder");
    lay_out(&folder, program, None)?;
    let status = Command::new("tar")
        .args(["--create", "--gzip", "--owner=0", "--group=0", "--file"])
        .arg(file)
        .arg("--directory")
        .arg(&folder)
        .arg(".")
        .status()
        .context("failed to run tar")?;
    fs::remove_dir_all(&folder).context("failed to remove what the archive was made of")?;
    ensure!(status.success(), "tar failed: {status}");
    Ok(())
}

fn write_script(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text)
        .and_then(|()| fs::set_permissions(path, fs::Permissions::from_mode(0o755)))
        .with_context(|| format!("failed to write {}", path.display()))
}
