//! Names that the operator puts on what it makes: labels, annotations, environment variables, object names.
//!
//! Labels and object names are those of the operator that this one succeeds, so that its users' scripts keep working.

/// Label of every Pod and claim; its value is [`APP`].
pub const LABEL_APP: &str = "app";
/// Value of [`LABEL_APP`].
pub const APP: &str = "azdo-runner";
/// Label: name of the RunnerPool.
pub const LABEL_RUNNER_POOL: &str = "runner-pool";
/// Label: who made the object; its value is [`OPERATOR`].
pub const LABEL_MANAGED_BY: &str = "managed-by";
/// Name of the operator: value of [`LABEL_MANAGED_BY`], field manager and event reporter.
pub const OPERATOR: &str = "azdo-runner-operator";
/// Recommended label of Kubernetes, on a RunnerPool that has none from its author: who acts upon it; its value is
/// [`OPERATOR`].
pub const LABEL_MANAGED_BY_RECOMMENDED: &str = "app.kubernetes.io/managed-by";
/// Label: `true` on an agent that belongs to `minAgents`, else `false`.
pub const LABEL_MIN_AGENT: &str = "min-agent";
/// Label: the capability that the agent's image was chosen for, [`BASE`] for `spec.image`.
pub const LABEL_CAPABILITY: &str = "capability";
/// Label: whether the RunnerPool is capability aware, `true` or `false`.
pub const LABEL_CAPABILITY_AWARE: &str = "capability-aware";
/// Label: id of the job request that the agent runs, or ran last.
pub const LABEL_JOB_REQUEST_ID: &str = "job-request-id";
/// Label of a claim: index of its agent.
pub const LABEL_AGENT_INDEX: &str = "agent-index";
/// Label of a claim: its `name` in `spec.pvcs`.
pub const LABEL_PVC_NAME: &str = "pvc-name";
/// Capability name of `spec.image`.
pub const BASE: &str = "base";

/// Annotation of a Pod: digest of the shape it was made in; another digest today means it is outdated.
pub const ANNOTATION_SHAPE: &str = "devops.opentools.mf/shape";
/// Annotation of a Pod: how many Pods of its capability failed in a row before it; absent on a first attempt.
pub const ANNOTATION_ATTEMPT: &str = "devops.opentools.mf/attempt";
/// Condition of a Pod that the operator declared failed because it did not start; the message says what it waited for.
pub const CONDITION_GIVEN_UP: &str = "devops.opentools.mf/GivenUp";
/// Annotation of a claim that goes with its agent (`deleteWithAgent`).
pub const ANNOTATION_DELETE_WITH_AGENT: &str = "devops.opentools.mf/delete-with-agent";
/// Annotation of a RunnerPool: `"true"` lets its deletion go on without waiting for agents and Azure DevOps.
pub const ANNOTATION_FORCE_DELETE: &str = "devops.opentools.mf/force-delete";
/// Annotation that keeps the cluster autoscaler from evicting a Pod while its value is `"false"`.
pub const ANNOTATION_SAFE_TO_EVICT: &str = "cluster-autoscaler.kubernetes.io/safe-to-evict";
/// Annotation that keeps Karpenter from disrupting a Pod while its value is `"true"`.
pub const ANNOTATION_DO_NOT_DISRUPT: &str = "karpenter.sh/do-not-disrupt";

/// Our finalizer on a RunnerPool: registrations outlive the cluster's objects and must be removed first.
pub const FINALIZER: &str = "devops.opentools.mf/registrations";
/// Every finalizer that begins so is ours or the former operator's.
pub const FINALIZER_PREFIX: &str = "devops.opentools.mf/";

/// Environment variable that marks an agent as ours; agents report it as a system capability.
pub const ENV_OWNER: &str = "AZDO_RUNNER_OWNER";
/// Environment variable that holds the name of the agent's profile; agents report it, too.
pub const ENV_PROFILE: &str = "AZP_CAPABILITY";
/// Environment variable that tells an agent which variables not to report as capabilities: names with commas in between,
/// without regard to case.
///
/// Source: the agent's code (`Capabilities/EnvironmentCapabilitiesProvider.cs`).
pub const ENV_IGNORE: &str = "VSO_AGENT_IGNORE";
/// Name of the container that runs the agent.
pub const AGENT_CONTAINER: &str = "agent";
/// Name of the init container that prepares the volumes.
pub const INIT_CONTAINER: &str = "init-permissions";
/// What the names of the volumes with certificates begin with.
pub const CERTIFICATE_VOLUME_PREFIX: &str = "certificate-";
/// Key of the token in the Secret that `spec.patSecretName` names.
pub const SECRET_TOKEN_KEY: &str = "token";

/// Value of [`ENV_OWNER`]: the cluster (uid of namespace `kube-system`), the namespace and the RunnerPool.
pub fn owner_mark(cluster: &str, namespace: &str, runner_pool: &str) -> String {
    format!("{cluster}/{namespace}/{runner_pool}")
}

/// Whether a value of [`ENV_IGNORE`] lists a variable.
pub fn ignores(value: &str, variable: &str) -> bool {
    let mut listed = value.split(',').map(str::trim);
    listed.any(|name| name.eq_ignore_ascii_case(variable))
}

/// What the names of a RunnerPool's agents begin with; their index follows. The base is its name, unless its spec gives
/// another.
pub fn agent_prefix(base: &str) -> String {
    format!("{base}-agent-")
}

/// Name of the Pod and of the agent with this index.
pub fn agent(base: &str, index: u32) -> String {
    format!("{}{index}", agent_prefix(base))
}

/// Name of the claim `pvc` of the agent with this index.
pub fn claim(runner_pool: &str, index: u32, pvc: &str) -> String {
    format!("{}-{pvc}", agent(runner_pool, index))
}

/// What follows in the name of a placeholder whose plain name somebody else holds.
pub fn placeholder_suffix(digest: &str) -> String {
    format!(".{}", digest.get(..8).unwrap_or(digest))
}

/// Name of the placeholder registration of a profile.
pub fn placeholder(base: &str, profile: &str) -> String {
    format!("{base}-placeholder-{profile}")
}
