//! The node as a whole: its Node object, its lease, its watch for pods, and what can be asked of it.

use std::{sync::Arc, time::Duration};

use anyhow::Context as _;
use jiff::Timestamp;
use k8s_openapi::{
    api::{coordination::v1::Lease, core::v1::Node as NodeObject},
    apimachinery::pkg::apis::meta::v1::{MicroTime, Time},
};
use kube::{
    Api, Client,
    api::{DeleteParams, Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};
use tokio::{sync::watch, time};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    Rule, RuleId, Settings,
    api::Cluster,
    housekeeping,
    misbehaviour::Rules,
    pod::{Command, Node},
    pods::{self, Pods},
};

/// Kubelet's own interval: a quarter of the lease's 40 s, after which the node counts as lost.
const LEASE_RENEWAL: Duration = Duration::from_secs(10);
const LEASE_SECONDS: u32 = 40;
const LEASE_NAMESPACE: &str = "kube-node-lease";

const FIELD_MANAGER: &str = "hollow-node";

/// Addresses of a net that is reserved for benchmarks (RFC 2544), so that nobody is ever behind one of them.
const HOST_IP: &str = "198.18.0.1";

/// A node that runs. [`HollowNode::stop`] ends it; dropping it does so too, but then its Node object stays behind.
pub struct HollowNode {
    node: Arc<Node>,
    pods: Pods,
    /// The tasks of pods, which end with their entries in `pods`.
    lives: TaskTracker,
    /// The watch and the lease, which end with `stop`.
    duties: TaskTracker,
    stop: CancellationToken,
}

impl HollowNode {
    /// Registers the node, ready, and begins to take pods.
    ///
    /// # Errors
    /// When the API server refuses the Node object.
    pub async fn start(client: Client, settings: Settings) -> anyhow::Result<Self> {
        let node = Arc::new(Node {
            cluster: Cluster::new(client),
            settings,
            rules: Rules::new(),
            lost: watch::Sender::new(false),
            host_ip: HOST_IP.into(),
        });
        register(&node).await?;
        let hollow = Self {
            node,
            pods: Pods::default(),
            lives: TaskTracker::new(),
            duties: TaskTracker::new(),
            stop: CancellationToken::new(),
        };
        let watching = pods::follow(
            hollow.node.clone(),
            hollow.pods.clone(),
            hollow.lives.clone(),
        );
        hollow
            .duties
            .spawn(hollow.stop.clone().run_until_cancelled_owned(watching));
        let keeping = housekeeping::keep(hollow.node.clone());
        hollow
            .duties
            .spawn(hollow.stop.clone().run_until_cancelled_owned(keeping));
        let renewing = renew_lease(hollow.node.clone());
        hollow
            .duties
            .spawn(hollow.stop.clone().run_until_cancelled_owned(renewing));
        Ok(hollow)
    }

    /// From now on, pods that the rule matches go wrong. Pods that the node has already seen do not.
    pub fn inject(&self, rule: Rule) -> RuleId {
        self.node.rules.inject(rule)
    }

    /// Ends a rule. Pods that it holds up go on.
    pub fn retract(&self, rule: RuleId) {
        self.node.rules.retract(rule);
    }

    /// The pod's process dies and the pod object disappears, with no goodbye to anyone. Whether the node has such a pod.
    pub fn vanish(&self, namespace: &str, name: &str) -> bool {
        self.pods.tell(namespace, name, Command::Vanish)
    }

    /// The pod's agent dies with this exit code. Whether the node has such a pod.
    pub fn crash(&self, namespace: &str, name: &str, exit_code: i32) -> bool {
        self.pods.tell(namespace, name, Command::Crash(exit_code))
    }

    /// The kernel kills the pod's agent, as it needs more memory than it may have. Whether the node has such a pod.
    pub fn kill_for_memory(&self, namespace: &str, name: &str) -> bool {
        self.pods.tell(namespace, name, Command::KillForMemory)
    }

    /// The kubelet ends the pod, as the node is short of something; the pod object stays. Whether the node has such a pod.
    pub fn evict(&self, namespace: &str, name: &str) -> bool {
        self.pods.tell(namespace, name, Command::Evict)
    }

    /// The node is lost: all processes die, the node is no longer ready, nothing is reported, and pods stay as they are
    /// until they are removed by force or the node is back.
    ///
    /// # Errors
    /// When the Node object cannot be changed.
    pub async fn lose(&self) -> anyhow::Result<()> {
        self.node.lost.send_replace(true);
        self.pods.tell_all(Command::Lose);
        // The node lifecycle controller would say the same, after the 50 s of its grace period.
        let condition = ready(
            "Unknown",
            "NodeStatusUnknown",
            "Kubelet stopped posting node status.",
        );
        set_ready(&self.node, condition).await
    }

    /// The node is back: it reports the pods that it had as failed, and takes new ones.
    ///
    /// # Errors
    /// When the Node object cannot be changed.
    pub async fn recover(&self) -> anyhow::Result<()> {
        set_ready(&self.node, is_ready()).await?;
        self.node.lost.send_replace(false);
        self.pods.tell_all(Command::Recover);
        Ok(())
    }

    /// The number of pods that the node has, waiting ones included and finished ones not.
    pub fn pod_count(&self) -> usize {
        self.pods.count()
    }

    /// Ends the node: processes die, pods stay as they are, the Node object goes.
    ///
    /// # Errors
    /// When the Node object cannot be deleted.
    pub async fn stop(self) -> anyhow::Result<()> {
        self.stop.cancel();
        // Only when the watch has ended will no pod be taken any more.
        self.duties.close();
        self.duties.wait().await;
        self.pods.clear();
        self.lives.close();
        self.lives.wait().await;
        let (client, name) = (self.node.cluster.client.clone(), &self.node.settings.name);
        let leases: Api<Lease> = Api::namespaced(client.clone(), LEASE_NAMESPACE);
        let nodes: Api<NodeObject> = Api::all(client);
        leases
            .delete(name, &DeleteParams::default())
            .await
            .map(drop)
            .or_else(not_found_is_fine)?;
        nodes
            .delete(name, &DeleteParams::default())
            .await
            .map(drop)
            .or_else(not_found_is_fine)?;
        Ok(())
    }
}

impl Drop for HollowNode {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

fn not_found_is_fine(error: kube::Error) -> kube::Result<()> {
    match error {
        kube::Error::Api(status) if status.code == 404 => Ok(()),
        error => Err(error),
    }
}

async fn register(node: &Node) -> anyhow::Result<()> {
    let name = &node.settings.name;
    let resources =
        json!({ "cpu": "100000", "memory": "1Pi", "ephemeral-storage": "1Pi", "pods": "100000" });
    let object: NodeObject = serde_json::from_value(json!({
        "metadata": { "name": name, "labels": { "kubernetes.io/hostname": name, "kubernetes.io/os": "linux" } },
        "status": {
            "capacity": resources,
            "allocatable": resources,
            "addresses": [{ "type": "InternalIP", "address": node.host_ip }, { "type": "Hostname", "address": name }],
            "conditions": [is_ready()],
        },
    }))?;
    let nodes: Api<NodeObject> = Api::all(node.cluster.client.clone());
    match nodes.create(&PostParams::default(), &object).await {
        // A node of that name was left behind: it is this one now.
        Err(kube::Error::Api(status)) if status.code == 409 => set_ready(node, is_ready()).await,
        result => result
            .map(drop)
            .with_context(|| format!("cannot register node {name}")),
    }
}

async fn set_ready(node: &Node, condition: Value) -> anyhow::Result<()> {
    let nodes: Api<NodeObject> = Api::all(node.cluster.client.clone());
    let patch = Patch::Strategic(json!({ "status": { "conditions": [condition] } }));
    let name = &node.settings.name;
    let patched = nodes
        .patch_status(name, &PatchParams::default(), &patch)
        .await;
    patched
        .map(drop)
        .with_context(|| format!("cannot change the status of node {name}"))
}

fn is_ready() -> Value {
    ready("True", "KubeletReady", "hollow node is ready")
}

fn ready(status: &str, reason: &str, message: &str) -> Value {
    let now = Time(Timestamp::now());
    json!({
        "type": "Ready", "status": status, "reason": reason, "message": message,
        "lastHeartbeatTime": now, "lastTransitionTime": now,
    })
}

/// Keeps the node lifecycle controller from taking the node for lost, as long as it is not.
async fn renew_lease(node: Arc<Node>) {
    let leases: Api<Lease> = Api::namespaced(node.cluster.client.clone(), LEASE_NAMESPACE);
    let name = &node.settings.name;
    let mut interval = time::interval(LEASE_RENEWAL);
    loop {
        interval.tick().await;
        if *node.lost.borrow() {
            continue;
        }
        let lease = Patch::Apply(json!({
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": { "name": name },
            "spec": {
                "holderIdentity": name,
                "leaseDurationSeconds": LEASE_SECONDS,
                "renewTime": MicroTime(Timestamp::now()),
            },
        }));
        if let Err(error) = leases
            .patch(name, &PatchParams::apply(FIELD_MANAGER).force(), &lease)
            .await
        {
            tracing::warn!(%error, "Cannot renew the lease of the hollow node, trying again");
        }
    }
}
