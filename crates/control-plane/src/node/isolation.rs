//! Namespaces of Linux for a node and for whoever uses it: network, mounts, processes, host name.
//!
//! The first process of a namespace of processes takes all others along when it ends, and with the last process go
//! mounts and network. What is written to `/tmp`, `/run` and `/var` is kept in memory and goes as well. Only cgroups are left,
//! which are empty then.

use std::{
    fs,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{self, Command},
    time::{Duration, Instant},
};

use anyhow::Context as _;
use tokio::time;

use super::{ADDRESS, NAME};

/// The bridge to which Pods are tied.
pub(super) const BRIDGE: &str = "cni0";

/// Names the cgroup below which all those of a node are.
const CGROUP: &str = "AZDO_RUNNER_OPERATOR_CGROUP";

/// The kernel kills all processes of a namespace at once; a busy machine takes a moment.
const END_TIMEOUT: Duration = Duration::from_secs(30);
/// Between two looks at whether they are gone.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// `$1` is an empty folder, to mount memory upon; `$2` is how many folders follow that are to stay as they are; then
/// comes the command. The memory is the working directory, since those folders may hide where it is mounted. Images are kept on
/// a file system of their own, as an overlay cannot lie upon an overlay.
const SETUP: &str = r#"
set -eu
memory=$1 kept=$2 here=$PWD
shift 2
mount -t tmpfs -o mode=0755 azdo-runner-operator "$memory"
cd "$memory"
number=0
while [ "$number" -lt "$kept" ]; do
  number=$((number + 1))
  eval "folder=\${$number}"
  mkdir "kept$number"
  mount --bind "$folder" "kept$number"
done
for folder in /tmp /run /var; do
  mkdir -p "upper$folder" "work$folder"
  chmod --reference="$folder" "upper$folder"
  mount -t overlay -o "lowerdir=$folder,upperdir=upper$folder,workdir=work$folder" azdo-runner-operator "$folder"
done
number=0
while [ "$number" -lt "$kept" ]; do
  number=$((number + 1))
  mount --bind "kept$number" "$1"
  shift
done
cd "$here"
mkdir -p /var/lib/containerd
mount -t tmpfs -o mode=0711 azdo-runner-operator /var/lib/containerd
echo "$NODE_NAME" >/proc/sys/kernel/hostname
ip link set lo up
ip link add "$BRIDGE" type bridge
ip address add "$ADDRESS/24" dev "$BRIDGE"
ip link set "$BRIDGE" up
exec "$@"
"#;

/// Whether this process is the first one of namespaces of its own.
pub fn is_isolated() -> bool {
    process::id() == 1 && std::env::var_os(CGROUP).is_some()
}

/// The command as the first process of new namespaces, with a network in which [`ADDRESS`] is this machine's only
/// address. It has to be run by root. The folders in `kept` stay as they are, also below `/tmp`, `/run` and `/var`;
/// `memory` is an empty folder, on which nothing will ever be seen from outside.
///
/// When whoever runs the command is killed, all that it started is killed as well.
pub fn isolated(command: &Command, memory: &Path, kept: &[PathBuf]) -> Command {
    // unshare ends with whoever started it, and what it started with unshare.
    let mut isolated = Command::new("setpriv");
    isolated
        .args(["--pdeathsig", "KILL", "unshare"])
        .args(["--mount", "--net", "--pid", "--uts", "--ipc"])
        .args(["--fork", "--kill-child", "--mount-proc"])
        .args(["sh", "-c", SETUP, "isolation"])
        .arg(memory)
        .arg(kept.len().to_string())
        .args(kept)
        .arg(command.get_program())
        .args(command.get_args())
        .env("NODE_NAME", NAME)
        .env("BRIDGE", BRIDGE)
        .env("ADDRESS", ADDRESS.to_string())
        .env(CGROUP, format!("/azdo-runner-operator-{}", process::id()))
        // A Ctrl-C in the terminal is for whoever runs the command to handle.
        .process_group(0);
    isolated
}

/// The cgroup below which all those of this node are.
pub(super) fn cgroup() -> String {
    std::env::var(CGROUP).unwrap_or_default()
}

/// Removes the cgroups of an isolated command of this process that has ended. The last processes in them may take a moment
/// to go.
///
/// # Errors
/// When there are processes left in one.
pub async fn remove_cgroups() -> anyhow::Result<()> {
    let name = format!("azdo-runner-operator-{}", process::id());
    let root = Path::new("/sys/fs/cgroup");
    // One tree, or one for each controller.
    let controllers = fs::read_dir(root).into_iter().flatten().flatten();
    let trees = controllers.map(|entry| entry.path());
    for tree in trees.chain([root.to_owned()]) {
        let folder = tree.join(&name);
        let deadline = Instant::now() + END_TIMEOUT;
        while let Err(error) = remove_tree(&folder) {
            if Instant::now() >= deadline {
                return Err(error).with_context(|| format!("cannot remove {}", folder.display()));
            }
            time::sleep(LOOK_AGAIN).await;
        }
    }
    Ok(())
}

/// The files of a cgroup go with it; its children have to go first.
fn remove_tree(folder: &Path) -> std::io::Result<()> {
    if !folder.is_dir() {
        return Ok(());
    }
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path())?;
        }
    }
    fs::remove_dir(folder)
}
