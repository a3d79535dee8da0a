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

/// Whether it can run here; if not, why. Where `CI` is set, what is missing is installed.
pub(super) fn prepare() -> Result<(), String> {
    let in_ci = env::var_os("CI").is_some();
    match obstacle() {
        Some(Obstacle::Missing(packages)) if in_ci => {
            output::line(format_args!("Installing {}", packages.join(", ")));
            install(&packages).map_err(|error| one_line(&error))?;
        }
        Some(obstacle) => return Err(obstacle.describe()),
        None => {}
    }
    obstacle().map_or(Ok(()), |obstacle| Err(obstacle.describe()))
}

enum Obstacle {
    NotRoot,
    Missing(Vec<&'static str>),
    Forbidden(String),
}

impl Obstacle {
    fn describe(&self) -> String {
        match self {
            Self::NotRoot => "a node with containers needs root".to_owned(),
            Self::Missing(packages) => format!(
                "programs are missing: apt-get install --no-install-recommends {}",
                packages.join(" ")
            ),
            Self::Forbidden(why) => {
                format!("this machine does not allow namespaces and mounts: {why}")
            }
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
    if missing.is_empty() {
        forbidden().map(Obstacle::Forbidden)
    } else {
        Some(Obstacle::Missing(missing))
    }
}

/// What the kernel refuses of that which a node is made from, as in a container without privileges.
fn forbidden() -> Option<String> {
    let script = "mount -t tmpfs none /mnt && mkdir /mnt/upper /mnt/work && \
                  mount -t overlay -o lowerdir=/run,upperdir=/mnt/upper,workdir=/mnt/work none /run && \
                  iptables --table nat --list --numeric >/dev/null && \
                  mkdir /sys/fs/cgroup/azdo-runner-operator-probe && rmdir /sys/fs/cgroup/azdo-runner-operator-probe";
    let mut command = Command::new("unshare");
    command.args([
        "--mount", "--net", "--pid", "--uts", "--fork", "sh", "-c", script,
    ]);
    let error = repository::output(command).err()?;
    Some(one_line(&error))
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

/// An error as the reason of a stage that is skipped.
fn one_line(error: &anyhow::Error) -> String {
    format!("{error:#}").replace('\n', " ")
}
