//! Programs that cargo installs: taken from the PATH, else built once and kept in the cache folder.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::Result;

use crate::repository;

/// Whether the program of a tool has to be installed first.
pub(crate) fn is_missing(program: &Path) -> bool {
    program.is_absolute() && !program.exists()
}

/// A program by its package, and the version that is installed where none is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tool {
    pub(crate) package: &'static str,
    pub(crate) version: &'static str,
}

impl Tool {
    /// Where the program is, or will be once it is installed.
    pub(crate) fn path(self) -> Result<PathBuf> {
        let on_path = Command::new(self.package).arg("--version").output();
        if on_path.is_ok() {
            return Ok(self.package.into());
        }
        Ok(folder()?.join("bin").join(self.package))
    }

    /// Installs it.
    pub(crate) fn install(self) -> Result<Command> {
        let folder = folder()?;
        let folder = folder.to_string_lossy();
        let mut command = repository::cargo(&[
            "install",
            self.package,
            "--version",
            self.version,
            "--locked",
            "--quiet",
            "--root",
            &folder,
        ]);
        // Built apart, so that it shares neither settings nor lock with the workspace.
        command.current_dir("/").env_remove("CARGO_TARGET_DIR");
        Ok(command)
    }
}

fn folder() -> Result<PathBuf> {
    Ok(repository::cache()?.join("tools"))
}
