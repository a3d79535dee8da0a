//! The programs of the control plane, taken from where the user has them, else built once from pinned Go modules; those of a
//! node; and Helm.
//!
//! The modules in `go/` hold no code of ours, only upstream's versions and checksums; they are part of this crate, so that
//! it works from anywhere. Nothing is ever written into the source tree: the programs live in a cache folder, keyed by the
//! modules and by the Go version, and a change of either builds anew.

use std::{
    env,
    ffi::OsStr,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::Context as _;

mod build;
mod display;

pub use display::terminal;

const ETCD: &str = "etcd";
const KUBE_APISERVER: &str = "kube-apiserver";
const KUBE_CONTROLLER_MANAGER: &str = "kube-controller-manager";
const HELM: &str = "helm";
pub(crate) const KUBE_SCHEDULER: &str = "kube-scheduler";
pub(crate) const KUBE_PROXY: &str = "kube-proxy";
pub(crate) const KUBELET: &str = "kubelet";
pub(crate) const KUBECTL: &str = "kubectl";
pub(crate) const CONTAINERD: &str = "containerd";
pub(crate) const CTR: &str = "ctr";
const CONTAINERD_SHIM: &str = "containerd-shim-runc-v2";

/// Where the three programs are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Binaries {
    /// The etcd server.
    pub etcd: PathBuf,
    /// The Kubernetes API server.
    pub kube_apiserver: PathBuf,
    /// The controllers of Kubernetes: garbage collection, namespaces, service accounts, volumes, node lifecycle, …
    pub kube_controller_manager: PathBuf,
}

/// What [`ensure`] is busy with; reported about once a second while it takes time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Another process builds the same programs.
    Waiting {
        /// Time since the waiting began.
        elapsed: Duration,
    },
    /// A program is being built.
    Building {
        /// What is built.
        what: &'static str,
        /// Time since the first build began.
        elapsed: Duration,
    },
    /// All programs are built.
    Built {
        /// Time that it took altogether.
        elapsed: Duration,
    },
}

/// Finds the programs, or builds them. Blocks: a first build takes about five minutes on two cores.
///
/// 1. the folder `$KUBEBUILDER_ASSETS`, if it holds all three;
/// 2. the folders of `$PATH`, if they hold all three (their version is the user's own affair);
/// 3. the cache folder: `$AZDO_RUNNER_OPERATOR_CACHE`, else `$XDG_CACHE_HOME/azdo-runner-operator`, else
///    `~/.cache/azdo-runner-operator`. What is missing there is built, once, however many processes ask at a time.
///
/// `progress` hears about a wait or a build, and nothing when neither is needed; [`terminal`] makes one that displays it.
///
/// # Errors
/// When Go is missing or too old, a build fails, or the cache folder cannot be written; each names the remedy.
pub fn ensure(progress: &mut dyn FnMut(Progress)) -> anyhow::Result<Binaries> {
    let assets = env::var_os("KUBEBUILDER_ASSETS");
    let path = env::var_os("PATH");
    if let Some(found) = locate(assets.as_deref(), path.as_deref()) {
        return Ok(found);
    }
    let folder = build_once(&build::CONTROL_PLANE, progress)?;
    Binaries::within(std::slice::from_ref(&folder))
        .with_context(|| format!("{} is incomplete", folder.display()))
}

/// Helm, built in the cache folder if it is not there. Blocks: a first build takes about two minutes on two cores.
///
/// One that the user has is not taken: what Helm renders and how it complains is compared with what is in the tree, so it
/// has to be this version.
///
/// # Errors
/// As [`ensure`].
pub fn helm(progress: &mut dyn FnMut(Progress)) -> anyhow::Result<PathBuf> {
    build_once(&build::HELM_ALONE, progress).map(|folder| folder.join(HELM))
}

/// The folder of what a node runs, and of kubectl, built in the cache folder if it is not there. Blocks: a first build takes
/// about three minutes on two cores.
///
/// # Errors
/// As [`ensure`].
pub fn node(progress: &mut dyn FnMut(Progress)) -> anyhow::Result<PathBuf> {
    build_once(&build::NODE, progress)
}

fn build_once(set: &build::Set, progress: &mut dyn FnMut(Progress)) -> anyhow::Result<PathBuf> {
    let cache = cache_folder(|name| env::var_os(name).map(PathBuf::from))?;
    build::once(set, &cache, Path::new("go"), progress)
}

fn locate(assets: Option<&OsStr>, path: Option<&OsStr>) -> Option<Binaries> {
    let assets = assets.map(|folder| vec![PathBuf::from(folder)]);
    let path = path.map(|folders| env::split_paths(folders).collect());
    [assets, path]
        .into_iter()
        .flatten()
        .find_map(|folders: Vec<PathBuf>| Binaries::within(&folders))
}

fn cache_folder(variable: impl Fn(&str) -> Option<PathBuf>) -> anyhow::Result<PathBuf> {
    // An empty variable counts as absent, as the XDG base directory specification has it.
    let variable = |name: &str| variable(name).filter(|value| !value.as_os_str().is_empty());
    variable("AZDO_RUNNER_OPERATOR_CACHE")
        .or_else(|| variable("XDG_CACHE_HOME").map(|cache| cache.join("azdo-runner-operator")))
        .or_else(|| variable("HOME").map(|home| home.join(".cache/azdo-runner-operator")))
        .context("no cache folder: set AZDO_RUNNER_OPERATOR_CACHE or HOME")
}

impl Binaries {
    /// The programs, each from the first of the folders that holds it; none if one is nowhere.
    fn within(folders: &[PathBuf]) -> Option<Self> {
        let find = |name: &str| {
            folders
                .iter()
                .map(|folder| folder.join(name))
                .find(|file| file.is_file())
        };
        Some(Self {
            etcd: find(ETCD)?,
            kube_apiserver: find(KUBE_APISERVER)?,
            kube_controller_manager: find(KUBE_CONTROLLER_MANAGER)?,
        })
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may panic")]

    use std::{collections::BTreeMap, fs};

    use super::*;

    fn folder_with(names: &[&str]) -> PathBuf {
        let folder = env::temp_dir().join(format!("azdo-binaries-{}", uuid::Uuid::new_v4()));
        fs::create_dir(&folder).unwrap();
        for name in names {
            fs::write(folder.join(name), "").unwrap();
        }
        folder
    }

    #[test]
    fn assets_win_over_the_path_and_count_only_when_complete() {
        let complete = folder_with(&[ETCD, KUBE_APISERVER, KUBE_CONTROLLER_MANAGER]);
        let partial = folder_with(&[ETCD, KUBE_APISERVER]);
        let rest = folder_with(&[KUBE_CONTROLLER_MANAGER]);
        let path = env::join_paths([&partial, &rest]).unwrap();

        let found = locate(Some(complete.as_os_str()), Some(&path)).unwrap();
        assert_eq!(found.etcd, complete.join(ETCD));
        let found = locate(Some(partial.as_os_str()), Some(&path)).unwrap();
        assert_eq!(
            found.kube_controller_manager,
            rest.join(KUBE_CONTROLLER_MANAGER)
        );
        assert_eq!(
            locate(Some(partial.as_os_str()), Some(rest.as_os_str())),
            None
        );
        assert_eq!(locate(None, None), None);

        for folder in [complete, partial, rest] {
            fs::remove_dir_all(folder).unwrap();
        }
    }

    #[test]
    fn the_cache_folder_follows_the_environment() {
        let with = |set: &[(&str, &str)]| {
            let set: BTreeMap<String, PathBuf> = set
                .iter()
                .map(|(key, value)| ((*key).into(), value.into()))
                .collect();
            cache_folder(|name| set.get(name).cloned())
        };
        let home = ("HOME", "/home/a");
        assert_eq!(
            with(&[("AZDO_RUNNER_OPERATOR_CACHE", "/c"), home]).unwrap(),
            Path::new("/c")
        );
        assert_eq!(
            with(&[("XDG_CACHE_HOME", "/x"), home]).unwrap(),
            Path::new("/x/azdo-runner-operator")
        );
        assert_eq!(
            with(&[("XDG_CACHE_HOME", ""), home]).unwrap(),
            Path::new("/home/a/.cache/azdo-runner-operator")
        );
        assert!(
            with(&[])
                .unwrap_err()
                .to_string()
                .contains("AZDO_RUNNER_OPERATOR_CACHE")
        );
    }
}
