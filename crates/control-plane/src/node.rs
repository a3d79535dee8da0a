//! This machine as a node of a control plane: containerd, kubelet, kube-proxy and kube-scheduler, upstream's own
//! programs, so that Pods run as containers.
//!
//! A node changes the network, mounts and writes to many places, and its containers do not end with it. So all of that
//! happens in namespaces of Linux ([`isolation`]), which end with their first process and take everything along: there
//! is nothing to clean up, whatever happens. It needs root, and a few programs of the system ([`requirements`]). It never
//! pulls an image, as there is no way out: images are imported from files.

mod files;
pub mod isolation;
pub mod requirements;

use std::{
    net::Ipv4Addr,
    path::{Path, PathBuf},
    process::Stdio,
};

use anyhow::{Context as _, ensure};
use k8s_openapi::api::core::v1::Node as KubernetesNode;
use kube::Api;
use tokio::{process::Command, task};

use crate::{
    ControlPlane, User,
    binaries::{self, CONTAINERD, CTR, KUBE_PROXY, KUBE_SCHEDULER, KUBECTL, KUBELET},
};

/// The node's address, that of the bridge to which its Pods are tied: API server and kubelet are reached here, and so
/// is whatever else the Pods are to find outside of the cluster.
pub const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 88, 0, 1);

/// The node's name in the cluster.
pub const NAME: &str = "node";

/// Where containerd listens.
const SOCKET: &str = "/run/containerd/containerd.sock";

/// A running node. It ends with the control plane, its containers with the namespaces.
#[derive(Clone, Debug)]
pub struct Node {
    programs: PathBuf,
}

impl Node {
    /// Starts a node of a control plane that listens at [`ADDRESS`]. `pause` is the image of the container that keeps the
    /// namespaces of each Pod, by its name and its archive. Returns when the node is ready. Builds the programs first if
    /// need be, and displays that on standard error.
    ///
    /// # Errors
    /// When this process is not isolated, the programs cannot be had, or they do not start.
    pub async fn start(
        control_plane: &mut ControlPlane,
        pause: (&str, &Path),
    ) -> anyhow::Result<Self> {
        ensure!(
            isolation::is_isolated(),
            "a node is started in namespaces of its own only"
        );
        let programs = task::spawn_blocking(|| binaries::node(&mut binaries::terminal())).await??;
        let node = Self { programs };
        let folder = control_plane.folder().join("node");
        let kubeconfig = control_plane.kubeconfig_as(User::Node);
        files::write(&folder, pause.0)?;

        node.spawn(
            control_plane,
            CONTAINERD,
            &[&format!(
                "--config={}",
                folder.join("containerd.toml").display()
            )],
        )?;
        control_plane
            .until("containerd answers", async |_| {
                Ok(node.ctr(&["version"]).await.is_ok())
            })
            .await?;
        node.import(pause.1).await?;
        let kubeconfig = format!("--kubeconfig={}", kubeconfig.display());
        node.spawn(
            control_plane,
            KUBE_SCHEDULER,
            &[&kubeconfig, "--leader-elect=false", "--secure-port=0"],
        )?;
        node.spawn(
            control_plane,
            KUBE_PROXY,
            &[
                &kubeconfig,
                "--proxy-mode=iptables",
                // These belong to the whole machine, and cannot be set from namespaces.
                "--conntrack-max-per-core=0",
                "--conntrack-min=0",
                &format!("--hostname-override={NAME}"),
            ],
        )?;
        node.spawn(
            control_plane,
            KUBELET,
            &[
                &kubeconfig,
                &format!("--config={}", folder.join("kubelet.yaml").display()),
                &format!("--hostname-override={NAME}"),
                &format!("--node-ip={ADDRESS}"),
            ],
        )?;
        let nodes: Api<KubernetesNode> = Api::all(control_plane.client()?);
        control_plane
            .until("the node is ready", async |_| {
                Ok(nodes
                    .get_opt(NAME)
                    .await?
                    .is_some_and(|node| is_ready(&node)))
            })
            .await?;
        Ok(node)
    }

    /// Makes the images of an archive known, as `docker save` and `buildah push docker-archive:` write them.
    ///
    /// # Errors
    /// When it is no such archive.
    pub async fn import(&self, archive: &Path) -> anyhow::Result<()> {
        let file = archive.to_string_lossy();
        self.ctr(&["--namespace", "k8s.io", "images", "import", &file])
            .await
            .with_context(|| format!("cannot import {file}"))
    }

    /// kubectl of the control plane's version.
    pub fn kubectl(&self) -> PathBuf {
        self.programs.join(KUBECTL)
    }

    fn spawn(
        &self,
        control_plane: &mut ControlPlane,
        name: &'static str,
        arguments: &[&str],
    ) -> anyhow::Result<()> {
        // containerd looks for its shim on the PATH.
        let path = std::env::var("PATH").unwrap_or_default();
        let mut all = vec![
            format!("PATH={}:/usr/sbin:/sbin:{path}", self.programs.display()),
            self.programs.join(name).to_string_lossy().into_owned(),
        ];
        all.extend(arguments.iter().map(|argument| (*argument).to_owned()));
        control_plane.processes.spawn(name, Path::new("env"), &all)
    }

    async fn ctr(&self, arguments: &[&str]) -> anyhow::Result<()> {
        let output = Command::new(self.programs.join(CTR))
            .args(["--address", SOCKET])
            .args(arguments)
            .stdin(Stdio::null())
            .output()
            .await
            .context("cannot run ctr")?;
        let message = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{}", message.trim());
        Ok(())
    }
}

fn is_ready(node: &KubernetesNode) -> bool {
    let conditions = node
        .status
        .iter()
        .filter_map(|status| status.conditions.as_ref());
    conditions
        .flatten()
        .any(|condition| condition.type_ == "Ready" && condition.status == "True")
}
