//! The configuration files of a node. JSON is YAML, and needs no second serializer; only containerd wants TOML.

use std::{fs, path::Path};

use anyhow::Context as _;
use serde_json::{Value, json};

use super::{ADDRESS, SOCKET, isolation};

/// Where Debian has the plugins for the network of Pods.
pub(super) const PLUGINS: &str = "/usr/lib/cni";

/// Writes all files into a new folder. `pause` is the image that keeps the namespaces of a Pod.
pub(super) fn write(folder: &Path, pause: &str) -> anyhow::Result<()> {
    let network = folder.join("network");
    fs::create_dir_all(&network)?;
    let files = [
        (folder.join("containerd.toml"), containerd(pause, &network)),
        (network.join("bridge.conflist"), bridge().to_string()),
        // Pods take the machine's own otherwise, which leads nowhere from here.
        (folder.join("resolv.conf"), String::new()),
        (
            folder.join("kubelet.yaml"),
            kubelet(&folder.join("resolv.conf")).to_string(),
        ),
    ];
    for (file, text) in files {
        fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))?;
    }
    Ok(())
}

fn containerd(pause: &str, network: &Path) -> String {
    format!(
        "version = 3
disabled_plugins = ['io.containerd.nri.v1.nri']
[grpc]
address = '{SOCKET}'
[plugins.'io.containerd.cri.v1.images'.pinned_images]
sandbox = '{pause}'
[plugins.'io.containerd.cri.v1.runtime']
# Where this runs in a container itself, that may have no right to lower it.
restrict_oom_score_adj = true
[plugins.'io.containerd.cri.v1.runtime'.cni]
bin_dirs = ['{PLUGINS}']
conf_dir = '{}'
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
runtime_type = 'io.containerd.runc.v2'
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
SystemdCgroup = false
",
        network.display()
    )
}

fn bridge() -> Value {
    let [a, b, c, _] = ADDRESS.octets();
    json!({
        "cniVersion": "1.0.0",
        "name": "bridge",
        "plugins": [
            {
                "type": "bridge",
                "bridge": isolation::BRIDGE,
                "isDefaultGateway": true,
                "hairpinMode": true,
                "ipam": {
                    "type": "host-local",
                    "ranges": [[{ "subnet": format!("{a}.{b}.{c}.0/24"), "gateway": ADDRESS.to_string() }]],
                },
            },
            { "type": "loopback" },
        ],
    })
}

fn kubelet(resolv_conf: &Path) -> Value {
    json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "containerRuntimeEndpoint": format!("unix://{SOCKET}"),
        "resolvConf": resolv_conf,
        // Nobody else is in this network.
        "authentication": { "anonymous": { "enabled": true }, "webhook": { "enabled": false } },
        "authorization": { "mode": "AlwaysAllow" },
        // All cgroups below one, which can be found and removed.
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": isolation::cgroup(),
        "cgroupsPerQOS": false,
        "enforceNodeAllocatable": [],
        "failCgroupV1": false,
        "failSwapOn": false,
        "localStorageCapacityIsolation": false,
        "evictionHard": { "memory.available": "50Mi", "nodefs.available": "1%" },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_get_addresses_beside_the_nodes_own() {
        let ranges = &bridge()["plugins"][0]["ipam"]["ranges"][0][0];
        assert_eq!(ranges["subnet"], "10.88.0.0/24");
        assert_eq!(ranges["gateway"], ADDRESS.to_string());
    }

    #[test]
    fn containerd_takes_the_image_and_the_network_that_it_is_given() {
        let text = containerd("busybox", Path::new("/folder/network"));
        assert!(text.contains("\nsandbox = 'busybox'\n"), "{text}");
        assert!(text.contains("\nconf_dir = '/folder/network'\n"), "{text}");
    }
}
