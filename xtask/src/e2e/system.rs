//! Whether this machine can run it, and what has to be installed first.

use std::{env, process::Command};

use anyhow::Result;
use control_plane::node::requirements::{self, NODE, Requirement};

use crate::{image, output, repository};

/// Besides what a node needs: to isolate it, and for the images.
const MORE: [Requirement; 4] = [
    Requirement::new("setpriv", "util-linux"),
    Requirement::new("debootstrap", "debootstrap"),
    Requirement::new("openssl", "openssl"),
    Requirement::new("tar", "tar"),
];

/// An engine to build images with, if there is none.
const ENGINE: Requirement = Requirement::new("buildah", "buildah");

/// Whether it can run here; if not, why. Where `CI` is set, what is missing is installed, and what cannot be had is an
/// error.
pub(super) fn prepare() -> Result<Result<(), String>> {
    let in_ci = env::var_os("CI").is_some();
    let reason = match obstacle() {
        None => return Ok(Ok(())),
        Some(Obstacle::Missing(packages)) if in_ci && is_root() => {
            output::line(format_args!("Installing {}", packages.join(", ")));
            install(&packages)?;
            match obstacle() {
                None => return Ok(Ok(())),
                Some(obstacle) => obstacle.describe(),
            }
        }
        Some(obstacle) => obstacle.describe(),
    };
    if in_ci {
        anyhow::bail!("it cannot run here, and CI must not go without it: {reason}");
    }
    Ok(Err(reason))
}

enum Obstacle {
    NotRoot,
    Missing(Vec<&'static str>),
}

impl Obstacle {
    fn describe(&self) -> String {
        match self {
            Self::NotRoot => "a node with containers needs root".to_owned(),
            Self::Missing(packages) => format!(
                "programs are missing: apt-get install --no-install-recommends {}",
                packages.join(" ")
            ),
        }
    }
}

fn obstacle() -> Option<Obstacle> {
    if !is_root() {
        return Some(Obstacle::NotRoot);
    }
    let mut missing = requirements::missing(NODE.iter().chain(&MORE));
    if !image::has_engine() {
        missing.extend(requirements::missing([&ENGINE]));
    }
    missing.sort_unstable();
    missing.dedup();
    (!missing.is_empty()).then_some(Obstacle::Missing(missing))
}

fn is_root() -> bool {
    let id = repository::output(repository::command("id", &["--user"]));
    id.is_ok_and(|id| id.trim() == "0")
}

fn install(packages: &[&str]) -> Result<()> {
    let apt = |arguments: &[&str]| {
        let mut command = Command::new("apt-get");
        command
            .args(arguments)
            .args(["--yes", "--quiet"])
            .env("DEBIAN_FRONTEND", "noninteractive");
        repository::output(command).map(drop)
    };
    apt(&["update"])?;
    apt(&[&["install", "--no-install-recommends"], packages].concat())
}
