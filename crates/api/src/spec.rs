//! `spec` of a RunnerPool.
#![expect(
    unreachable_pub,
    reason = "the derive of KubeSchema repeats each type inside a function"
)]

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::EnvVarSource;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{PodTemplate, ProfileSpec, RunnerPoolStatus};

/// A RunnerPool keeps agents of one Azure DevOps agent pool running as Pods: as many as its queued jobs need.
#[derive(CustomResource, KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[kube(
    group = "devops.opentools.mf",
    version = "v1",
    kind = "RunnerPool",
    plural = "runnerpools",
    doc = "A RunnerPool keeps agents of one Azure DevOps agent pool running as Pods: as many as its queued jobs need.",
    namespaced,
    status = "RunnerPoolStatus",
    derive = "PartialEq",
    category = "azure-devops",
    printcolumn(
        name = "Status",
        type_ = "string",
        json_path = ".status.connectionStatus",
        description = "Whether Azure DevOps answers"
    ),
    printcolumn(name = "Pool", type_ = "string", json_path = ".spec.pool", description = "Agent pool in Azure DevOps"),
    printcolumn(
        name = "Organization",
        type_ = "string",
        json_path = ".status.organizationName",
        description = "Organization or collection"
    ),
    printcolumn(
        name = "Queued",
        type_ = "integer",
        json_path = ".status.queuedJobs",
        description = "Job requests that wait for an agent"
    ),
    printcolumn(
        name = "Agents",
        type_ = "string",
        json_path = ".status.agentsSummary",
        description = "Registered agents of this RunnerPool and the most it may have"
    ),
    printcolumn(
        name = "Running",
        type_ = "integer",
        json_path = ".status.runningAgents",
        description = "Agents of this RunnerPool that are online"
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    validation = Rule::new("size(self.metadata.name) <= 63")
        .message("metadata.name must be at most 63 characters, as it becomes the value of a label")
)]
#[x_kube(
    validation = Rule::new("self.minAgents <= self.maxAgents")
        .message("minAgents must not be above maxAgents")
        .field_path(".minAgents"),
    validation = Rule::new(
        "!has(self.schedules) || self.schedules.all(s, (has(s.minAgents) ? s.minAgents : self.minAgents) \
         <= (has(s.maxAgents) ? s.maxAgents : self.maxAgents))"
    )
    .message(
        "while a schedule is in force, minAgents must not be above maxAgents; what a schedule does not give is that of spec"
    )
    .field_path(".schedules"),
    validation = Rule::new(
        "(has(self.agentNamePrefix) ? self.agentNamePrefix : '') == \
         (has(oldSelf.agentNamePrefix) ? oldSelf.agentNamePrefix : '')"
    )
    .message("agentNamePrefix cannot be changed, as agents are found by it; create another RunnerPool")
    .field_path(".agentNamePrefix")
)]
pub struct RunnerPoolSpec {
    /// URL of the organization or collection: `https://dev.azure.com/{org}`, `https://{org}.visualstudio.com` or
    /// `https://host[/tfs]/{Collection}`.
    #[schemars(regex(pattern = r"^\s*https?://\S+\s*$"), length(max = 2048))]
    pub az_do_url: String,
    /// Name of the agent pool in Azure DevOps, matched without regard to case.
    #[schemars(regex(pattern = r"\S"), length(min = 1, max = 256))]
    pub pool: String,
    /// Secret of the same namespace that holds the personal access token under the key `token`. The token needs the
    /// scope Agent Pools (read, manage).
    #[schemars(length(min = 1, max = 253))]
    pub pat_secret_name: String,
    /// Image of the agents.
    #[schemars(regex(pattern = r"^\S+$"), length(max = 1024))]
    pub image: String,
    /// When the kubelet pulls the image.
    #[serde(default)]
    pub image_pull_policy: ImagePullPolicy,
    /// Most agents that exist at any time: Pods that are not finished.
    #[serde(default = "default_max_agents")]
    #[schemars(range(min = 1, max = 10_000))]
    pub max_agents: u32,
    /// Agents that are kept whether or not there is work for them.
    #[serde(default)]
    #[schemars(range(max = 10_000))]
    pub min_agents: u32,
    /// Other values of `minAgents` and `maxAgents` for some of the time. One schedule is in force at a time: of those that
    /// are active the one with the largest minimum, of equal ones the first. It gives both values.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 32),
        extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"])
    )]
    pub schedules: Vec<Schedule>,
    /// 0: agents above the minimum run one job and are replaced. Above 0: they run on and are removed once they have
    /// been idle for so many seconds.
    #[serde(default)]
    #[schemars(range(max = 31_536_000))]
    pub ttl_idle_seconds: u32,
    /// Seconds between two looks at the agent pool. Of RunnerPools that share one, the shortest counts.
    #[serde(default = "default_poll_interval_seconds")]
    #[schemars(range(min = 5, max = 86_400))]
    pub poll_interval_seconds: u32,
    /// Whether the image of an agent is chosen by the demands of the job that it is started for.
    #[serde(default)]
    pub capability_aware: bool,
    /// Image by demanded capability; a job that demands none of them gets `image`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 64))]
    #[x_kube(
        validation = Rule::new(
            "self.all(name, size(name) <= 63 && name.matches('^[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$'))"
        )
        .message("a capability must be one word of letters, digits, - _ and ., at most 63, as it becomes the value of a label")
    )]
    pub capability_images: BTreeMap<String, String>,
    /// Further kinds of agents, each with an image and what it can do.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 64),
        extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"])
    )]
    pub profiles: Vec<ProfileSpec>,
    /// Of several RunnerPools of one agent pool that could serve a job, the one with the highest priority does; of equal
    /// ones, the one that declares what the job demands, then the first by namespace and name.
    #[serde(default)]
    pub priority: i32,
    /// Environment variables of the agents.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 256),
        extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"])
    )]
    pub extra_env: Vec<ExtraEnv>,
    /// Volumes of the agents.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 32),
        extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"])
    )]
    #[x_kube(
        validation = Rule::new("self.all(a, self.exists_one(b, a.mountPath == b.mountPath))")
            .message("mountPath must differ from every other mountPath")
    )]
    pub pvcs: Vec<ClaimTemplate>,
    /// Secrets whose certificates are mounted under `/etc/ssl/certs`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 32),
        extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["secretName"])
    )]
    pub cert_trust_store: Vec<CertificateSource>,
    /// Present: an init container gives the mount path of each volume to the user and group of the security context.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub init_container: Option<InitContainer>,
    /// User and groups of the agent. Applied when it or `initContainer` is given; otherwise the image's own user.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub security_context: Option<SecurityContext>,
    /// Whether agents come and go; for maintenance.
    #[serde(default)]
    pub mode: Mode,
    /// Whether jobs wait while there is no agent.
    #[serde(default)]
    pub placeholders: Placeholders,
    /// Pods that ended and stay for inspection. They do not count against `maxAgents`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub terminated_pods: Option<TerminatedPods>,
    /// What agents and placeholders are named by instead of the RunnerPool, as in `{agentNamePrefix}-agent-0`: for
    /// RunnerPools of one name in two clusters that share an agent pool. Cannot be changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"), length(max = 63))]
    pub agent_name_prefix: Option<String>,
    /// Merged over the Pod of each agent, for what no other field says: nodes, resources, sidecars, service account.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod_template: Option<PodTemplate>,
}

impl RunnerPool {
    /// What its agents and placeholders are named by: the prefix that it gives, or its name.
    pub fn agent_base(&self) -> &str {
        let name = self.metadata.name.as_deref().unwrap_or_default();
        self.spec.agent_name_prefix.as_deref().unwrap_or(name)
    }
}

fn default_max_agents() -> u32 {
    10
}

fn default_poll_interval_seconds() -> u32 {
    5
}

/// When the kubelet pulls an image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ImagePullPolicy {
    /// At every start.
    Always,
    /// When the node does not have it.
    #[default]
    IfNotPresent,
    /// Never; the node must have it.
    Never,
}

impl ImagePullPolicy {
    /// The spelling of a Pod.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Always => "Always",
            Self::IfNotPresent => "IfNotPresent",
            Self::Never => "Never",
        }
    }
}

/// Values of `minAgents` and `maxAgents` for some of the time: from each `start` on, for `duration` or until the next
/// `end`.
///
/// When clocks change, what names one hour and one minute comes once: a time that is left out comes when the clock has
/// jumped over it, a time that is there twice comes the first time. What names several hours or minutes comes as often as
/// the clock shows it. A duration is the time that passes, whatever clocks show.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("has(self.duration) != has(self.end)")
        .message("exactly one of duration and end must be given"),
    validation = Rule::new(
        "!has(self.duration) || (duration(self.duration) > duration('0s') && duration(self.duration) <= duration('8784h'))"
    )
    .message("duration must be longer than zero and at most 8784h")
    .field_path(".duration"),
    validation = Rule::new("has(self.minAgents) || has(self.maxAgents)")
        .message("at least one of minAgents and maxAgents must be given")
)]
pub struct Schedule {
    /// Name of the schedule, for the status.
    #[schemars(regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"), length(max = 63))]
    pub name: String,
    /// When it begins: minute, hour, day of the month, month and day of the week as for cron, like `0 8 * * 1-5`.
    #[schemars(regex(pattern = r"^\s*\S+(\s+\S+){4}\s*$"), length(max = 256))]
    pub start: String,
    /// How long it is active from each start on, in hours, minutes and seconds, like `10h` or `8h30m`; at most `8784h`. A
    /// start meanwhile prolongs it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^([0-9]{1,5}[hms])+$"), length(max = 32))]
    pub duration: Option<String>,
    /// When it ends, instead of `duration`, written like `start`: the first such time after each start. That may be on
    /// another day: a start at `0 22 * * *` and an end at `0 6 * * *` make a night.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^\s*\S+(\s+\S+){4}\s*$"), length(max = 256))]
    pub end: Option<String>,
    /// Time zone of `start` and `end`, by its name in the IANA database, like `Europe/Berlin`.
    #[serde(default = "default_time_zone")]
    #[schemars(length(min = 1, max = 64))]
    pub time_zone: String,
    /// Instead of `spec.minAgents`; absent: that holds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(max = 10_000))]
    pub min_agents: Option<u32>,
    /// Instead of `spec.maxAgents`; absent: that holds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 10_000))]
    pub max_agents: Option<u32>,
}

fn default_time_zone() -> String {
    "Etc/UTC".into()
}

/// How many Pods that ended stay: the newest of each kind, with their claims and without their registrations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TerminatedPods {
    /// Of those that failed.
    #[serde(default)]
    #[schemars(range(max = 100))]
    pub keep_failed: u32,
    /// Of those that ended well.
    #[serde(default)]
    #[schemars(range(max = 100))]
    pub keep_succeeded: u32,
}

/// Whether agents come and go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Mode {
    /// As jobs need them.
    #[default]
    Active,
    /// Nothing is created or removed. Agents that are there work on.
    Paused,
    /// No agent is created. Those that are busy finish their job, and all are removed.
    Drained,
}

/// Whether jobs wait while there is no agent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Placeholders {
    /// One registration without an agent stands for each kind of agent, or Azure DevOps would refuse jobs.
    #[default]
    Enabled,
    /// There are none: Azure DevOps refuses a job that no registered agent could run.
    Disabled,
}

/// An environment variable of the agents: exactly one of `value` and `valueFrom`.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("has(self.value) != has(self.valueFrom)")
        .message("exactly one of value and valueFrom must be given"),
    validation = Rule::new(
        "!(self.name in ['AZP_URL', 'AZP_POOL', 'AZP_TOKEN', 'AZP_TOKEN_FILE', 'AZP_AGENT_NAME', 'AZP_CAPABILITY', \
         'AZDO_RUNNER_OWNER'])"
    )
    .message("is set by the operator; choose another name")
    .field_path(".name")
)]
pub struct ExtraEnv {
    /// Name of the variable.
    #[schemars(regex(pattern = r"^[-._a-zA-Z][-._a-zA-Z0-9]*$"), length(max = 253))]
    pub name: String,
    /// Its value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
    /// Where its value comes from: any source that a Pod knows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value_from: Option<EnvVarSource>,
}

/// A volume of each agent, from a persistent volume claim.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("self.createPvc || !self.deleteWithAgent")
        .message("deleteWithAgent needs createPvc: a claim that the operator did not create is not deleted")
        .field_path(".deleteWithAgent"),
    validation = Rule::new("!self.createPvc || has(self.storage)")
        .message("storage is required when the claim is created; write it like 10Gi, or set createPvc to false"),
    validation = Rule::new("!has(self.storage) || isQuantity(self.storage)")
        .message("storage must be a quantity like 10Gi")
        .field_path(".storage")
)]
pub struct ClaimTemplate {
    /// Name of the volume; the claim of agent 0 is `{RunnerPool}-agent-0-{name}`. With `createPvc: false` the name of
    /// the existing claim.
    #[schemars(regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"), length(max = 63))]
    pub name: String,
    /// Absolute path in the agent's container.
    #[schemars(regex(pattern = r"^/[^:]*$"), length(max = 1024))]
    pub mount_path: String,
    /// Size of the claim, like `10Gi`. Required when the claim is created.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub storage: Option<String>,
    /// Storage class; absent: the cluster's default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub storage_class: Option<String>,
    /// Whether the operator creates the claim. `false`: a claim of that name exists already.
    #[serde(default = "default_true")]
    pub create_pvc: bool,
    /// Whether an agent may start without the volume when the claim is missing or cannot be created.
    #[serde(default)]
    pub optional: bool,
    /// Whether the claim is deleted with its agent. `false`: the next agent of that index takes it up, and it outlives
    /// the RunnerPool.
    #[serde(default)]
    pub delete_with_agent: bool,
}

fn default_true() -> bool {
    true
}

/// A Secret with certificates to trust.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CertificateSource {
    /// Name of the Secret: its `tls.crt` and `ca.crt` are mounted, never its `tls.key`.
    #[schemars(
        regex(pattern = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"),
        length(max = 253)
    )]
    pub secret_name: String,
}

/// The container that prepares the volumes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct InitContainer {
    /// Its image: anything with a POSIX shell, chown and chmod.
    #[serde(default = "default_init_image")]
    #[schemars(regex(pattern = r"^\S+$"), length(max = 1024))]
    pub image: String,
}

fn default_init_image() -> String {
    "busybox:latest".into()
}

impl Default for InitContainer {
    fn default() -> Self {
        Self {
            image: default_init_image(),
        }
    }
}

/// User and groups of the agent's container, which runs without root and without privilege escalation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SecurityContext {
    /// User id.
    #[serde(default = "default_id")]
    #[schemars(range(min = 1))]
    pub run_as_user: i64,
    /// Group id.
    #[serde(default = "default_id")]
    #[schemars(range(min = 0))]
    pub run_as_group: i64,
    /// Group that owns the volumes.
    #[serde(default = "default_id")]
    #[schemars(range(min = 0))]
    pub fs_group: i64,
}

/// `azureuser` of the published agent images.
fn default_id() -> i64 {
    1000
}

impl Default for SecurityContext {
    fn default() -> Self {
        Self {
            run_as_user: default_id(),
            run_as_group: default_id(),
            fs_group: default_id(),
        }
    }
}
