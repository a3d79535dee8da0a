//! Whether this machine can run it, and what has to be installed first.

use std::process::Command;

use control_plane::node::requirements::{self, NODE, Requirement};

use crate::{image, repository};

/// Besides what a node needs: to isolate it, and for the images. `.ci/run` installs the packages of all of them.
const MORE: [Requirement; 4] = [
    Requirement::new("setpriv", "util-linux"),
    Requirement::new("debootstrap", "debootstrap"),
    Requirement::new("openssl", "openssl"),
    Requirement::new("tar", "tar"),
];

/// An engine to build images with, if there is none.
const ENGINE: Requirement = Requirement::new("buildah", "buildah");

/// Why it cannot run here, if it cannot.
pub(super) fn obstacle() -> Option<String> {
    if !is_root() {
        return Some("a node with containers needs root".to_owned());
    }
    let mut missing = requirements::missing(NODE.iter().chain(&MORE));
    if !image::has_engine() {
        missing.extend(requirements::missing([&ENGINE]));
    }
    missing.sort_unstable();
    missing.dedup();
    if !missing.is_empty() {
        return Some(format!(
            "programs are missing: apt-get install --no-install-recommends {}",
            missing.join(" ")
        ));
    }
    let refused = forbidden()?;
    Some(format!(
        "this machine does not allow namespaces and mounts: {refused}"
    ))
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

/// An error as the reason of a stage that is skipped.
fn one_line(error: &anyhow::Error) -> String {
    format!("{error:#}").replace('\n', " ")
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may panic")]

    use std::{collections::BTreeSet, fs};

    use super::*;

    #[test]
    fn continuous_integration_installs_just_what_may_be_missing() {
        let script = fs::read_to_string(repository::root().join(".ci/run")).unwrap();
        let (_, list) = script.split_once("local packages=(\n").unwrap();
        let (list, _) = list.split_once(')').unwrap();
        let installed: BTreeSet<&str> = list.split_whitespace().collect();
        let required = NODE.iter().chain(&MORE).chain([&ENGINE]);
        let required: BTreeSet<&str> = required.map(|one| one.package).collect();
        assert_eq!(installed, required);
    }
}
