//! The Pod of an agent: how it is made, and what is read back from it.

use std::{collections::BTreeMap, sync::Arc};

use api::{CertificateSource, PodTemplateMetadata, Profile, RunnerPool, SecurityContext, names};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::{
    DeepMerge as _,
    api::core::v1::{
        Capabilities, Container, ContainerState, EnvVar, EnvVarSource, ExecAction, KeyToPath,
        Lifecycle, LifecycleHandler, ObjectReference, PersistentVolumeClaimVolumeSource, Pod,
        PodSecurityContext, PodSpec, PodStatus, ProjectedVolumeSource, ResourceRequirements,
        SecretKeySelector, SecretProjection, SecurityContext as ContainerSecurityContext, Volume,
        VolumeMount, VolumeProjection,
    },
    apimachinery::pkg::api::resource::Quantity,
};
use kube::{Resource as _, ResourceExt as _, api::ObjectMeta};
use planner::PodPhase;
use serde_json::{Value, json};

use crate::{
    manifest::{
        claim,
        trouble::{self, Trouble},
    },
    mirror::{Mirrored, PoolKey},
};

/// Longest time that a job may go on after its Pod was asked to stop, in seconds.
const GRACE_PERIOD_SECONDS: i64 = 3600;

/// The same where the operator itself deletes a Pod whose agent may be starting. The API server hears of a start a moment
/// after it, and the agent may get a job of any length before it is told to stop.
const GRACE_PERIOD_OF_STARTING_SECONDS: u32 = 24 * 3600;

/// How far Azure DevOps's lists may lag behind; unverified, see ADR 16.
const LAG: SignedDuration = SignedDuration::from_secs(30);

/// Waits while a job runs, then stops the agent. The agent itself would cancel its job on SIGTERM, and an image whose
/// first process is a plain shell would ignore it. Needs a POSIX shell and /proc.
///
/// Between two jobs there is a moment without a worker, and one between the arrival of a job and the start of its
/// worker; so the worker must be missing three times, a second apart.
const PRE_STOP: &str = r#"pids() {
  for comm in /proc/[0-9]*/comm; do
    name=
    { read -r name <"$comm"; } 2>/dev/null
    [ "$name" = "$1" ] || continue
    pid=${comm%/comm}
    echo "${pid##*/}"
  done
}
free=0
while [ "$free" -lt 3 ]; do
  if [ -n "$(pids Agent.Worker)" ]; then free=0; else free=$((free + 1)); fi
  sleep 1 2>/dev/null
done
for pid in $(pids Agent.Listener); do
  kill -TERM "$pid" 2>/dev/null
done
exit 0
"#;

/// Agents do not report a variable whose value has so many characters or more.
///
/// Source: the agent's code (`Capabilities/EnvironmentCapabilitiesProvider.cs`).
const UNREPORTED_LENGTH: usize = 1024;

/// An agent to build a Pod for.
#[derive(Clone, Debug)]
pub(crate) struct Blueprint<'a> {
    pub(crate) pool: &'a RunnerPool,
    /// Uid of the namespace `kube-system`.
    pub(crate) cluster: &'a str,
    pub(crate) index: u32,
    pub(crate) profile: &'a Profile<'a>,
    pub(crate) shape: &'a str,
    pub(crate) min_agent: bool,
    pub(crate) run_once: bool,
    /// How many Pods of the profile failed in a row before it.
    pub(crate) attempt: u32,
    /// Names in `spec.pvcs` whose claim is missing and optional.
    pub(crate) without: &'a [String],
}

/// What the RunnerPool describes for a profile, leaving out what differs from agent to agent.
pub(crate) struct Described {
    /// Digest of it.
    pub(crate) shape: String,
    /// What the agents report for certain, as it stands in their environment. Values that come from elsewhere, as from a
    /// Secret, or are an agent's own are empty.
    pub(crate) given: planner::Capabilities,
}

pub(crate) fn describe(pool: &RunnerPool, cluster: &str, profile: &Profile<'_>) -> Described {
    let spec = spec(&Blueprint {
        pool,
        cluster,
        index: 0,
        profile,
        shape: "",
        min_agent: false,
        run_once: false,
        attempt: 0,
        without: &[],
    });
    let json = |value: Value| serde_json::to_vec(&value).expect("plain data always serialises");
    let mut text = json(json!(spec));
    for metadata in metadata(profile) {
        text.extend(json(json!(metadata)));
    }
    Described {
        shape: digest(&text),
        given: given(spec),
    }
}

/// The environment of the agents as they report it, but for what is an agent's own, and for values from elsewhere.
fn given(spec: PodSpec) -> planner::Capabilities {
    const UNREPORTED: [&str; 3] = ["AZP_TOKEN", "AZP_AGENT_NAME", names::ENV_OWNER];
    let containers = spec.containers.into_iter();
    let agent = containers.filter(|container| container.name == names::AGENT_CONTAINER);
    let variables = agent.flat_map(|agent| agent.env.unwrap_or_default());
    let variables: Vec<(String, String)> = variables
        .map(|variable| (variable.name, variable.value.unwrap_or_default()))
        .collect();
    let ignored = variables
        .iter()
        .find(|(name, _)| name == names::ENV_IGNORE)
        .map_or_else(String::new, |(_, value)| value.clone());
    variables
        .into_iter()
        .filter(|(name, value)| {
            !UNREPORTED.contains(&name.as_str())
                && !names::ignores(&ignored, name)
                && value.chars().count() < UNREPORTED_LENGTH
        })
        .collect()
}

/// What the templates of a profile say of the Pod itself.
fn metadata<'a>(profile: &Profile<'a>) -> impl Iterator<Item = &'a PodTemplateMetadata> {
    let templates = profile.templates.clone().into_iter();
    templates.filter_map(|template| template.metadata.as_ref())
}

/// 64 bits of a digest, in hexadecimal: they tell the few shapes and Secrets of a RunnerPool apart.
pub(crate) fn digest(bytes: &[u8]) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA256, bytes);
    let first = digest.as_ref().iter().take(8);
    first.fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
}

/// The Pod to create.
pub(crate) fn build(blueprint: &Blueprint<'_>) -> Pod {
    let pool = blueprint.pool;
    let metadata: Vec<_> = metadata(blueprint.profile).collect();
    let own = |pairs: &BTreeMap<String, String>| pairs.clone().into_iter().collect::<Vec<_>>();
    let labels = [
        (names::LABEL_APP, names::APP.to_owned()),
        (names::LABEL_RUNNER_POOL, pool.name_any()),
        (names::LABEL_MANAGED_BY, names::OPERATOR.to_owned()),
        (names::LABEL_MIN_AGENT, blueprint.min_agent.to_string()),
        (names::LABEL_CAPABILITY, blueprint.profile.name.to_owned()),
        (
            names::LABEL_CAPABILITY_AWARE,
            pool.spec.capability_aware.to_string(),
        ),
    ];
    let mut annotations = guards(true);
    annotations.insert(names::ANNOTATION_SHAPE.into(), Some(blueprint.shape.into()));
    let attempt = Some(blueprint.attempt).filter(|attempt| *attempt > 0);
    annotations.insert(
        names::ANNOTATION_ATTEMPT.into(),
        attempt.map(|attempt| attempt.to_string()),
    );
    Pod {
        metadata: ObjectMeta {
            namespace: pool.namespace(),
            labels: Some(
                (metadata.iter().flat_map(|metadata| own(&metadata.labels)))
                    .chain(labels.map(|(key, value)| (key.to_owned(), value)))
                    .collect(),
            ),
            annotations: Some(
                (metadata
                    .iter()
                    .flat_map(|metadata| own(&metadata.annotations)))
                .chain((annotations.into_iter()).filter_map(|(key, value)| Some((key, value?))))
                .collect(),
            ),
            owner_references: pool.controller_owner_ref(&()).map(|owner| vec![owner]),
            name: Some(agent(blueprint)),
            ..ObjectMeta::default()
        },
        spec: Some(spec(blueprint)),
        status: None,
    }
}

/// The name of the agent and of its Pod.
fn agent(blueprint: &Blueprint<'_>) -> String {
    names::agent(blueprint.pool.agent_base(), blueprint.index)
}

/// The Pod of an agent as Events name it. Events that differ in nothing but their text count as one, so each has its Pod.
pub(crate) fn reference(namespace: &str, agent: &str) -> ObjectReference {
    ObjectReference {
        api_version: Some("v1".into()),
        kind: Some("Pod".into()),
        name: Some(agent.to_owned()),
        namespace: Some(namespace.to_owned()),
        ..ObjectReference::default()
    }
}

/// Annotations that keep a Pod from being evicted; `None` takes one away.
pub(crate) fn guards(guarded: bool) -> BTreeMap<String, Option<String>> {
    let value = |value: &str| guarded.then(|| value.to_owned());
    BTreeMap::from([
        (names::ANNOTATION_SAFE_TO_EVICT.into(), value("false")),
        (names::ANNOTATION_DO_NOT_DISRUPT.into(), value("true")),
    ])
}

/// What the operator wants, with what the user's template adds.
fn spec(blueprint: &Blueprint<'_>) -> PodSpec {
    let profile = blueprint.profile;
    let mut spec = own_spec(blueprint);
    // One that cannot be read breaks a rule, and then no Pod is made.
    for template in profile
        .templates
        .iter()
        .filter_map(|template| template.pod_spec().ok())
    {
        spec.merge_from(template);
    }
    spec
}

fn own_spec(blueprint: &Blueprint<'_>) -> PodSpec {
    let (pool, profile) = (blueprint.pool, blueprint.profile);
    // Windows has no user ids, no POSIX shell and no folder of certificates; the API server refuses most of that for it.
    let is_windows = profile.is_windows();
    let user = (pool.spec.security_context.clone()).or_else(|| {
        pool.spec
            .init_container
            .as_ref()
            .map(|_| SecurityContext::default())
    });
    let user = user.filter(|_| !is_windows);
    let (volumes, mounts) = volumes(blueprint);
    let certificates = || {
        pool.spec
            .cert_trust_store
            .iter()
            .filter(move |_| !is_windows)
    };
    let quantities = |cpu: &str, memory: &str| {
        Some(BTreeMap::from([
            ("cpu".to_owned(), Quantity(cpu.into())),
            ("memory".to_owned(), Quantity(memory.into())),
        ]))
    };
    let init = pool
        .spec
        .init_container
        .as_ref()
        .filter(|_| !mounts.is_empty());
    let mounted = certificates().flat_map(certificate_mounts);
    let projected = certificates().map(certificate_volume);
    PodSpec {
        init_containers: init
            .zip(user.as_ref())
            .map(|(init, user)| vec![init_container(&init.image, user, &mounts)]),
        containers: vec![Container {
            name: names::AGENT_CONTAINER.into(),
            image: Some(profile.image.to_owned()),
            image_pull_policy: Some(pool.spec.image_pull_policy.as_str().into()),
            args: blueprint.run_once.then(|| vec!["--once".into()]),
            env: Some(environment(blueprint)),
            volume_mounts: some(mounts.into_iter().chain(mounted).collect()),
            resources: Some(ResourceRequirements {
                requests: quantities("100m", "256Mi"),
                limits: quantities("2", "4Gi"),
                ..ResourceRequirements::default()
            }),
            security_context: user.as_ref().map(|user| ContainerSecurityContext {
                run_as_user: Some(user.run_as_user),
                run_as_group: Some(user.run_as_group),
                run_as_non_root: Some(true),
                allow_privilege_escalation: Some(false),
                ..ContainerSecurityContext::default()
            }),
            // The hook would save most of the jobs that a naive removal hits, and hide it so.
            lifecycle: (!cfg!(feature = "naive-removal") && !is_windows).then(lifecycle),
            ..Container::default()
        }],
        volumes: some(volumes.into_iter().chain(projected).collect()),
        security_context: user.map(|user| PodSecurityContext {
            fs_group: Some(user.fs_group),
            ..PodSecurityContext::default()
        }),
        restart_policy: Some("Never".into()),
        termination_grace_period_seconds: Some(GRACE_PERIOD_SECONDS),
        automount_service_account_token: Some(false),
        enable_service_links: Some(false),
        ..PodSpec::default()
    }
}

fn lifecycle() -> Lifecycle {
    Lifecycle {
        pre_stop: Some(LifecycleHandler {
            exec: Some(ExecAction {
                command: Some(vec!["/bin/sh".into(), "-c".into(), PRE_STOP.into()]),
            }),
            ..LifecycleHandler::default()
        }),
        ..Lifecycle::default()
    }
}

fn some<T>(items: Vec<T>) -> Option<Vec<T>> {
    (!items.is_empty()).then_some(items)
}

/// Volumes and mounts of the claims.
fn volumes(blueprint: &Blueprint<'_>) -> (Vec<Volume>, Vec<VolumeMount>) {
    let templates = blueprint
        .pool
        .spec
        .pvcs
        .iter()
        .filter(|template| !blueprint.without.contains(&template.name));
    templates
        .map(|template| {
            let volume = Volume {
                name: template.name.clone(),
                persistent_volume_claim: Some(PersistentVolumeClaimVolumeSource {
                    claim_name: claim::name(blueprint.pool, template, blueprint.index),
                    read_only: None,
                }),
                ..Volume::default()
            };
            let mount = VolumeMount {
                name: template.name.clone(),
                mount_path: template.mount_path.clone(),
                ..VolumeMount::default()
            };
            (volume, mount)
        })
        .unzip()
}

/// Name of a certificate's volume. A Secret may have dots in its name and be longer than a volume's name may be, so the
/// name is a digest, which also keeps it apart from the names of claims.
fn certificate_volume_name(secret: &str) -> String {
    let digest = digest(secret.as_bytes());
    format!("{}{digest}", names::CERTIFICATE_VOLUME_PREFIX)
}

/// `tls.crt`, and `ca.crt` where the Secret has one. Never `tls.key`.
fn certificate_volume(source: &CertificateSource) -> Volume {
    let secret = &source.secret_name;
    let key = |key: &str, optional: bool| VolumeProjection {
        secret: Some(SecretProjection {
            name: secret.clone(),
            items: Some(vec![KeyToPath {
                key: key.into(),
                path: key.into(),
                ..KeyToPath::default()
            }]),
            optional: Some(optional),
        }),
        ..VolumeProjection::default()
    };
    Volume {
        name: certificate_volume_name(secret),
        projected: Some(ProjectedVolumeSource {
            sources: Some(vec![key("tls.crt", false), key("ca.crt", true)]),
            ..ProjectedVolumeSource::default()
        }),
        ..Volume::default()
    }
}

fn certificate_mounts(source: &CertificateSource) -> [VolumeMount; 2] {
    let secret = &source.secret_name;
    let mount = |path: String, sub_path: Option<&str>| VolumeMount {
        name: certificate_volume_name(secret),
        mount_path: path,
        sub_path: sub_path.map(Into::into),
        read_only: Some(true),
        ..VolumeMount::default()
    };
    [
        mount(format!("/etc/ssl/certs/{secret}"), None),
        mount(format!("/etc/ssl/certs/{secret}.crt"), Some("tls.crt")),
    ]
}

/// Gives the mount path of each claim to the agent's user. It runs as root, and only so far as that needs.
fn init_container(image: &str, user: &SecurityContext, mounts: &[VolumeMount]) -> Container {
    let script = format!(
        "for path in \"$@\"; do chown {user}:{group} \"$path\" && chmod u+rwx,g+rwx \"$path\" || exit 1; done",
        user = user.run_as_user,
        group = user.run_as_group,
    );
    let command = ["/bin/sh".into(), "-c".into(), script, "chown".into()];
    Container {
        name: names::INIT_CONTAINER.into(),
        image: Some(image.into()),
        command: Some(
            command
                .into_iter()
                .chain(mounts.iter().map(|mount| mount.mount_path.clone()))
                .collect(),
        ),
        volume_mounts: Some(mounts.to_vec()),
        security_context: Some(ContainerSecurityContext {
            run_as_user: Some(0),
            run_as_group: Some(0),
            run_as_non_root: Some(false),
            allow_privilege_escalation: Some(false),
            capabilities: Some(Capabilities {
                add: Some(["CHOWN", "DAC_OVERRIDE", "FOWNER"].map(Into::into).to_vec()),
                drop: Some(vec!["ALL".into()]),
            }),
            ..ContainerSecurityContext::default()
        }),
        ..Container::default()
    }
}

fn environment(blueprint: &Blueprint<'_>) -> Vec<EnvVar> {
    let (pool, profile) = (blueprint.pool, blueprint.profile);
    let mark = names::owner_mark(
        blueprint.cluster,
        &pool.namespace().unwrap_or_default(),
        &pool.name_any(),
    );
    let plain = |name: &str, value: String| EnvVar {
        name: name.into(),
        value: Some(value),
        value_from: None,
    };
    let token = EnvVar {
        name: "AZP_TOKEN".into(),
        value: None,
        value_from: Some(EnvVarSource {
            secret_key_ref: Some(SecretKeySelector {
                name: pool.spec.pat_secret_name.clone(),
                key: names::SECRET_TOKEN_KEY.into(),
                optional: None,
            }),
            ..EnvVarSource::default()
        }),
    };
    let own = [
        plain(
            "AZP_URL",
            pool.spec.az_do_url.trim().trim_end_matches('/').to_owned(),
        ),
        plain("AZP_POOL", pool.spec.pool.trim().to_owned()),
        token,
        plain("AZP_AGENT_NAME", agent(blueprint)),
        plain(names::ENV_PROFILE, blueprint.profile.name.to_owned()),
        plain(names::ENV_OWNER, mark),
    ];
    let extra = pool.spec.extra_env.iter().map(|env| EnvVar {
        name: env.name.clone(),
        value: env.value.clone(),
        value_from: env.value_from.clone(),
    });
    let users = &pool.spec.extra_env;
    let capabilities = profile.environment();
    // What the user sets says more.
    let capabilities = capabilities.filter(|(name, _)| users.iter().all(|env| env.name != *name));
    let capabilities = capabilities.map(|(name, value)| plain(name, value.to_owned()));
    own.into_iter().chain(capabilities).chain(extra).collect()
}

/// What the operator keeps of a Pod.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct AgentPod {
    /// Uid of the RunnerPool that owns it.
    pub(crate) owner: String,
    /// For the planner.
    pub(crate) pod: Arc<planner::Pod>,
    /// Version of the object, for a deletion that must not meet a newer one.
    pub(crate) resource_version: Option<String>,
    /// Seconds that a deletion is to give it; `None`: those that it asks for.
    pub(crate) grace: Option<u32>,
    /// When its agent ended without being asked to, and so without taking leave of Azure DevOps.
    pub(crate) broke_off_at: Option<Timestamp>,
    /// What Kubernetes tells of its troubles.
    pub(crate) trouble: Trouble,
}

impl Mirrored for AgentPod {
    type Object = Pod;

    fn read(pod: &Pod) -> Option<(PoolKey, Self)> {
        let owner = pod.owner_references().iter().find(|owner| {
            owner.kind == "RunnerPool"
                && owner.controller == Some(true)
                && owner.api_version.starts_with("devops.opentools.mf/")
        })?;
        let key = PoolKey {
            namespace: pod.namespace()?,
            name: owner.name.clone(),
        };
        let agent = pod.spec.as_ref().and_then(|spec| {
            spec.containers
                .iter()
                .find(|container| container.name == names::AGENT_CONTAINER)
        });
        let label = |name: &str| pod.labels().get(name).cloned();
        let created_at = pod
            .creation_timestamp()
            .map(|time| time.0)
            .unwrap_or_default();
        let phase = phase(pod, created_at);
        let attempt = pod.annotations().get(names::ANNOTATION_ATTEMPT);
        let view = planner::Pod {
            name: pod.name_any(),
            uid: pod.uid()?,
            phase,
            stopping: pod.meta().deletion_timestamp.is_some(),
            created_at,
            started_at: pod
                .status
                .as_ref()
                .and_then(agent_state)
                .and_then(started_at),
            profile: label(names::LABEL_CAPABILITY).unwrap_or_else(|| names::BASE.into()),
            shape: pod.annotations().get(names::ANNOTATION_SHAPE).cloned(),
            min_agent: label(names::LABEL_MIN_AGENT).is_some_and(|value| value == "true"),
            run_once: agent
                .is_some_and(|agent| agent.args.iter().flatten().any(|arg| arg == "--once")),
            marked: agent.is_some_and(|agent| {
                agent
                    .env
                    .iter()
                    .flatten()
                    .any(|env| env.name == names::ENV_OWNER)
            }),
            request: label(names::LABEL_JOB_REQUEST_ID).and_then(|id| id.parse().ok()),
            guarded: pod
                .annotations()
                .contains_key(names::ANNOTATION_SAFE_TO_EVICT),
            attempt: attempt
                .and_then(|attempt| attempt.parse().ok())
                .unwrap_or(0),
            waiting: trouble::waiting(pod, phase, created_at),
        };
        let resource_version = pod.resource_version();
        Some((
            key,
            Self {
                owner: owner.uid.clone(),
                pod: Arc::new(view),
                resource_version,
                grace: agent.and_then(|agent| grace(pod, agent, phase)),
                broke_off_at: broke_off_at(pod, phase),
                trouble: Trouble::read(pod, phase),
            },
        ))
    }

    fn uid(&self) -> &str {
        &self.pod.uid
    }

    fn version(&self) -> Option<u64> {
        self.resource_version.as_ref()?.parse().ok()
    }

    fn matters_until(&self, now: Timestamp, watched: bool) -> Option<Timestamp> {
        // When its agent may last have registered, or opened a session, without taking that back.
        let last = match self.pod.phase {
            PodPhase::Running => Some(now),
            // It may have started where nobody looked.
            PodPhase::Pending => (!watched).then_some(now),
            PodPhase::Succeeded { .. } | PodPhase::Failed { .. } => self.broke_off_at,
        };
        // A node's clock may be wrong, but nothing has happened after now.
        let shown = last.and_then(|last| last.min(now).checked_add(LAG).ok());
        Some(shown.map_or(now, |shown| shown.max(now)))
    }
}

/// The grace period, in seconds, of a deletion that may meet an agent which is just starting; `None`: what the Pod asks for.
///
/// It is for a job, so the agent must be the only container that can use it: others may not mind being stopped, and would
/// sit it out. And without the hook, nothing waits for a job. Who asks for less than an hour wants less.
fn grace(pod: &Pod, agent: &Container, phase: PodPhase) -> Option<u32> {
    let spec = pod.spec.as_ref()?;
    let mut init = spec.init_containers.iter().flatten();
    let alone =
        spec.containers.len() == 1 && init.all(|container| container.name == names::INIT_CONTAINER);
    let lifecycle = agent.lifecycle.as_ref()?;
    let waits = lifecycle.pre_stop.is_some();
    let asked = spec.termination_grace_period_seconds?;
    let starting = phase == PodPhase::Pending && alone && waits;
    (starting && asked >= GRACE_PERIOD_SECONDS).then(|| {
        let asked = u32::try_from(asked).unwrap_or(u32::MAX);
        asked.max(GRACE_PERIOD_OF_STARTING_SECONDS)
    })
}

/// When the agent of a Pod that failed ended by itself, or was killed. The exit code after SIGTERM is 143.
fn broke_off_at(pod: &Pod, phase: PodPhase) -> Option<Timestamp> {
    let PodPhase::Failed { at } = phase else {
        return None;
    };
    let state = pod.status.as_ref().and_then(agent_state);
    let ended = state.and_then(|state| state.terminated.as_ref());
    (ended.map(|ended| ended.exit_code) != Some(143)).then_some(at)
}

fn agent_state(status: &PodStatus) -> Option<&ContainerState> {
    status
        .container_statuses
        .iter()
        .flatten()
        .find(|container| container.name == names::AGENT_CONTAINER)?
        .state
        .as_ref()
}

fn started_at(state: &ContainerState) -> Option<Timestamp> {
    let running = state
        .running
        .as_ref()
        .and_then(|running| running.started_at.as_ref());
    let ended = state
        .terminated
        .as_ref()
        .and_then(|ended| ended.started_at.as_ref());
    running.or(ended).map(|time| time.0)
}

fn phase(pod: &Pod, created_at: Timestamp) -> PodPhase {
    let Some(status) = &pod.status else {
        return PodPhase::Pending;
    };
    let state = agent_state(status);
    let ended = || {
        let container = state.and_then(|state| state.terminated.as_ref()?.finished_at.as_ref());
        let conditions = status
            .conditions
            .iter()
            .flatten()
            .filter_map(|condition| condition.last_transition_time.as_ref());
        // An evicted Pod may have no container status: its last change of state tells.
        let ended = container.or_else(|| conditions.max_by_key(|time| time.0));
        let given_up = trouble::given_up_at(status);
        given_up.unwrap_or_else(|| ended.map_or(created_at, |time| time.0))
    };
    let exit_code = state.and_then(|state| Some(state.terminated.as_ref()?.exit_code));
    match (status.phase.as_deref(), exit_code) {
        // Without its agent a Pod is of no use, even when a sidecar that somebody injected runs on.
        (Some("Succeeded"), _) | (_, Some(0)) => PodPhase::Succeeded { at: ended() },
        (Some("Failed"), _) | (_, Some(_)) => PodPhase::Failed { at: ended() },
        // A kubelet that does not answer says nothing of the agent: `Unknown` may well be running.
        (Some("Running" | "Unknown"), _) => PodPhase::Running,
        _ if state.is_some_and(|state| state.running.is_some()) => PodPhase::Running,
        _ => PodPhase::Pending,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agent_that_may_be_starting_is_given_the_time_of_a_job_where_nothing_else_takes_it() {
        const DAY: u32 = 24 * 3600;
        let agent = || json!({ "name": "agent", "lifecycle": { "preStop": { "exec": { "command": ["sh"] } } } });
        let given = |spec: Value, status: Value| {
            let pod = json!({
                "metadata": { "name": "web-agent-0", "namespace": "ci", "uid": "2", "ownerReferences": [{
                    "apiVersion": "devops.opentools.mf/v1", "kind": "RunnerPool", "name": "web", "uid": "1", "controller": true,
                }] },
                "spec": spec,
                "status": status,
            });
            let pod: Pod = serde_json::from_value(pod).expect("a Pod");
            AgentPod::read(&pod).expect("one of ours").1.grace
        };
        let of = |asked: i64, containers: Value, init: Value| json!({ "terminationGracePeriodSeconds": asked, "containers": containers, "initContainers": init });
        let asks = |asked: i64| of(asked, json!([agent()]), json!([]));
        assert_eq!(given(asks(3600), json!({})), Some(DAY));
        assert_eq!(given(asks(3600), json!({ "phase": "Pending" })), Some(DAY));
        assert_eq!(given(asks(2 * 24 * 3600), json!({})), Some(2 * DAY));
        assert_eq!(given(asks(i64::MAX), json!({})), Some(u32::MAX));
        assert_eq!(given(asks(60), json!({})), None, "who wants less gets less");
        assert_eq!(given(asks(3600), json!({ "phase": "Running" })), None);
        // What others do with so much time is not known; our own init container ends by itself.
        let with = |init: &str| of(3600, json!([agent()]), json!([{ "name": init }]));
        assert_eq!(given(with("prepare"), json!({})), None);
        assert_eq!(given(with(names::INIT_CONTAINER), json!({})), Some(DAY));
        let sidecar = of(3600, json!([agent(), { "name": "docker" }]), json!([]));
        assert_eq!(given(sidecar, json!({})), None);
        let without_hook = of(3600, json!([{ "name": "agent" }]), json!([]));
        assert_eq!(given(without_hook, json!({})), None);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn the_pre_stop_hook_waits_for_the_worker_and_stops_the_listener() {
        use std::{os::unix::fs::PermissionsExt as _, process::Command, time::Instant};

        // A namespace of its own for processes: the hook looks at all that it can see.
        let isolated = [
            "--user",
            "--map-root-user",
            "--pid",
            "--fork",
            "--mount-proc",
        ];
        let possible = Command::new("unshare").args(isolated).arg("true").status();
        if !possible.is_ok_and(|status| status.success()) {
            assert!(
                std::env::var_os("CI").is_none(),
                "unshare has to work where CI is set"
            );
            eprintln!("skipped: unshare cannot make a process namespace here");
            return;
        }
        let folder = std::env::temp_dir().join(format!("pre-stop-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a folder");
        let sleep = std::fs::read("/bin/sleep").expect("a program to rename");
        for name in ["Agent.Worker", "Agent.Listener"] {
            let path = folder.join(name);
            std::fs::write(&path, &sleep).expect("a copy");
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755))
                .expect("a mode");
        }
        std::fs::write(folder.join("hook"), PRE_STOP).expect("a file");
        // The first process ignores SIGTERM, as a plain shell that is process 1 does.
        let script = format!(
            "cd {}; ./Agent.Listener 1000 & listener=$!; ./Agent.Worker 4 & worker=$!\n\
             sh hook; kill -0 $worker 2>/dev/null && echo worker-running\n\
             wait $listener; echo listener-ended-with $?",
            folder.display()
        );
        let started = Instant::now();
        let output = Command::new("unshare")
            .args(isolated)
            .args(["sh", "-c", &script])
            .output();
        std::fs::remove_dir_all(&folder).expect("the folder is still there");
        let output = String::from_utf8(output.expect("a run").stdout).expect("text");
        assert_eq!(
            output.trim(),
            "listener-ended-with 143",
            "128 + SIGTERM, and no worker is left"
        );
        assert!(
            started.elapsed().as_secs() >= 4,
            "it waited for the worker: {:?}",
            started.elapsed()
        );
    }
}
