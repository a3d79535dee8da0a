//! What a seed means: which RunnerPools there are, what load they get, and how often which trouble comes.

use std::collections::BTreeMap;

use api::{
    ClaimTemplate, Placeholders, PodTemplate, ProfileSpec, RunnerPool, RunnerPoolSpec, Schedule,
    TerminatedPods, names,
};
use kube::ResourceExt as _;
use serde_json::{Map, Value, json};

use crate::{
    clock::{HOUR, MINUTE, Millis, SECOND},
    random::Random,
};

/// The organization of every run.
pub(crate) const ORGANIZATION: &str = "acme";
/// Most agent pools of a run.
pub(crate) const AGENT_POOLS: [&str; 2] = ["ci", "release"];
const NAMESPACES: [&str; 2] = ["blue", "green"];
const NAMES: [&str; 3] = ["web", "api", "web-agent"];
const CAPABILITIES: [&str; 3] = ["java", "node", "docker"];

#[derive(Clone, Debug)]
pub(crate) struct Scenario {
    /// As they are first created.
    pub(crate) pools: Vec<RunnerPool>,
    /// By agent pool, how many jobs come in an hour.
    pub(crate) jobs_an_hour: Vec<u64>,
    /// Mean duration of a job.
    pub(crate) job_duration: Millis,
    /// Nodes of the cluster.
    pub(crate) nodes: usize,
    /// Mean time from a Pod's creation to its container's start.
    pub(crate) start_time: Millis,
    /// Whether the image removes its registration at its end.
    pub(crate) removes_itself: bool,
    /// Mean time between two troubles of a kind; kinds that are absent never come.
    pub(crate) troubles: Vec<(Kind, Millis)>,
}

/// A kind of trouble.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Kind {
    AzureDown,
    AzureThrottled,
    AzureSignIn,
    AzureEmptyList,
    AzureStale,
    AzureLostReply,
    AzureSlow,
    ServiceDown,
    TokenRevoked,
    TokenRotated,
    KubeErrors,
    KubeLostReply,
    KubeSlow,
    Quota,
    WatchLag,
    WatchCut,
    StartsFail,
    StartsHang,
    AgentCrash,
    AgentHang,
    NodePressure,
    PodDeleted,
    PodForced,
    NodeLost,
    NodePartitioned,
    StrangerRegisters,
    StrangerCreates,
    HostComes,
    RegistrationDeleted,
    AgentDisabled,
    SpecEdited,
    PoolDeleted,
    JobCanceled,
    OperatorCrash,
    TwoLeaders,
    ClockJump,
}

impl Kind {
    /// Strangers in the cluster, with the mean time between two of them in a run of usual trouble.
    const IN_THE_CLUSTER: (Self, Millis) = (Self::StrangerCreates, 6 * HOUR);
    /// And outside of it.
    const OUTSIDE: (Self, Millis) = (Self::HostComes, 6 * HOUR);

    /// All others, each with that time.
    pub(crate) const ALL: [(Self, Millis); 34] = [
        (Self::AzureDown, 6 * HOUR),
        (Self::AzureThrottled, 8 * HOUR),
        (Self::AzureSignIn, 10 * HOUR),
        (Self::AzureEmptyList, 8 * HOUR),
        (Self::AzureStale, 6 * HOUR),
        (Self::AzureLostReply, 6 * HOUR),
        (Self::AzureSlow, 8 * HOUR),
        (Self::ServiceDown, 16 * HOUR),
        (Self::TokenRevoked, 20 * HOUR),
        (Self::TokenRotated, 20 * HOUR),
        (Self::KubeErrors, 6 * HOUR),
        (Self::KubeLostReply, 6 * HOUR),
        (Self::KubeSlow, 8 * HOUR),
        (Self::Quota, 12 * HOUR),
        (Self::WatchLag, 6 * HOUR),
        (Self::WatchCut, 4 * HOUR),
        (Self::StartsFail, 10 * HOUR),
        (Self::StartsHang, 12 * HOUR),
        (Self::AgentCrash, 5 * HOUR),
        (Self::AgentHang, 24 * HOUR),
        (Self::NodePressure, 8 * HOUR),
        (Self::PodDeleted, 6 * HOUR),
        (Self::PodForced, 10 * HOUR),
        (Self::NodeLost, 24 * HOUR),
        (Self::NodePartitioned, 16 * HOUR),
        (Self::StrangerRegisters, 8 * HOUR),
        (Self::RegistrationDeleted, 8 * HOUR),
        (Self::AgentDisabled, 8 * HOUR),
        (Self::SpecEdited, 6 * HOUR),
        (Self::PoolDeleted, 20 * HOUR),
        (Self::JobCanceled, 2 * HOUR),
        (Self::OperatorCrash, 4 * HOUR),
        (Self::TwoLeaders, 10 * HOUR),
        (Self::ClockJump, 16 * HOUR),
    ];
}

impl Scenario {
    pub(crate) fn of(seed: u64) -> Self {
        let mut random = Random::new(seed ^ 0x5ce0_a210);
        // Drawn apart, so that seeds from before there were schedules mean what they meant.
        let mut of_schedules = Random::new(seed ^ 0x0c70_c4d1);
        // And from before strangers made Pods and claims, and before there were rare options.
        let mut of_strangers = Random::new(seed ^ 0x51a7_b0d5);
        let mut of_options = Random::new(seed ^ 0x07c1_4e93);
        // And from before strangers had hosts, and Pods templates.
        let mut of_hosts = Random::new(seed ^ 0x6d02_b7f9);
        let mut of_templates = Random::new(seed ^ 0x2c95_41de);
        let agent_pools = if random.permille(600) { 1 } else { 2 };
        let count = 1 + random.index(3);
        let mut pools: Vec<RunnerPool> = Vec::new();
        while pools.len() < count {
            let namespace = *random.pick(&NAMESPACES);
            let name = *random.pick(&NAMES);
            let taken = pools.iter().any(|pool| {
                pool.name_any() == name && pool.namespace().as_deref() == Some(namespace)
            });
            if taken {
                continue;
            }
            let mut pool = RunnerPool::new(name, spec(&mut random, agent_pools));
            pool.metadata.namespace = Some(namespace.to_owned());
            // Together with minimums of profiles it would not be simple to say how many agents there are to be.
            if pool.spec.profiles.is_empty() {
                pool.spec.schedules = schedules(&mut of_schedules);
            }
            rare_options(&mut of_options, &mut pool.spec);
            pool.spec.pod_template = pod_template(&mut of_templates);
            pools.push(pool);
        }
        prefixes(&mut of_options, &mut pools);
        let jobs_an_hour = (0..agent_pools)
            .map(|_| *random.pick(&[1, 2, 4, 8]))
            .collect();
        // One run in eight is calm, some have a lot of few kinds, most have some of everything.
        let intensity = random.below(8);
        let comes = |random: &mut Random, (kind, mean): (Kind, Millis)| match intensity {
            0 => None,
            1 | 2 => random.permille(150).then_some((kind, mean / 6)),
            3 => Some((kind, mean / 3)),
            _ => random.permille(700).then_some((kind, mean)),
        };
        let mut troubles: Vec<_> = (Kind::ALL.into_iter())
            .filter_map(|kind| comes(&mut random, kind))
            .collect();
        troubles.extend(comes(&mut of_strangers, Kind::IN_THE_CLUSTER));
        troubles.extend(comes(&mut of_hosts, Kind::OUTSIDE));
        Self {
            pools,
            jobs_an_hour,
            job_duration: *random.pick(&[MINUTE, 4 * MINUTE, 12 * MINUTE]),
            nodes: 2 + random.index(4),
            start_time: *random.pick(&[2 * SECOND, 8 * SECOND, 25 * SECOND]),
            removes_itself: random.permille(400),
            troubles,
        }
    }
}

/// A random spec.
pub(crate) fn spec(random: &mut Random, agent_pools: usize) -> RunnerPoolSpec {
    let max_agents = u32::try_from(random.between(1, 8)).unwrap_or(1);
    let min_agents = if random.permille(350) {
        u32::try_from(random.between(1, 2))
            .unwrap_or(0)
            .min(max_agents)
    } else {
        0
    };
    let ttl_idle_seconds = *random.pick(&[0, 0, 0, 60, 300, 1200]);
    let capability_aware = random.permille(500);
    let mut capability_images = BTreeMap::new();
    if capability_aware {
        for name in CAPABILITIES {
            if random.permille(500) {
                capability_images.insert(name.to_owned(), format!("registry.example/{name}:1"));
            }
        }
    }
    let profiles = profiles(random, max_agents - min_agents);
    let mut pvcs = Vec::new();
    for (name, delete_with_agent) in [("work", true), ("cache", false)] {
        if random.permille(250) {
            pvcs.push(ClaimTemplate {
                name: name.to_owned(),
                mount_path: format!("/{name}"),
                storage: Some("10Gi".to_owned()),
                create_pvc: true,
                optional: random.permille(200),
                delete_with_agent,
                ..ClaimTemplate::default()
            });
        }
    }
    RunnerPoolSpec {
        az_do_url: format!("https://dev.azure.com/{ORGANIZATION}"),
        pool: AGENT_POOLS[random.index(agent_pools)].to_owned(),
        pat_secret_name: "azure-devops".to_owned(),
        image: format!("registry.example/agent:{}", random.between(1, 3)),
        max_agents,
        min_agents,
        ttl_idle_seconds,
        poll_interval_seconds: *random.pick(&[5, 5, 5, 10, 30]),
        capability_aware,
        capability_images,
        profiles,
        pvcs,
        terminated_pods: random.permille(250).then(|| TerminatedPods {
            keep_failed: u32::try_from(random.between(0, 2)).unwrap_or(0),
            keep_succeeded: u32::try_from(random.between(0, 2)).unwrap_or(0),
        }),
        ..RunnerPoolSpec::default()
    }
}

/// What most RunnerPools leave as it is.
pub(crate) fn rare_options(random: &mut Random, spec: &mut RunnerPoolSpec) {
    if random.permille(150) {
        spec.placeholders = Placeholders::Disabled;
    }
    spec.priority = *random.pick(&[0, 0, 0, 1, -5]);
}

/// A template for Pods, sometimes: it tells one shape of Pods from another, and lets agents of one image report different
/// things.
pub(crate) fn pod_template(random: &mut Random) -> Option<PodTemplate> {
    if !random.permille(250) {
        return None;
    }
    let flavour = random.pick(&["plain", "salted"]);
    let agent = json!({
        "name": names::AGENT_CONTAINER,
        "env": [{ "name": "FLAVOUR", "value": flavour }],
    });
    let mut spec = Map::new();
    spec.insert("containers".to_owned(), json!([agent]));
    if random.permille(300) {
        let sidecar = json!({
            "name": "buildkit",
            "image": "registry.example/buildkit:1",
            "restartPolicy": "Always",
        });
        spec.insert("initContainers".to_owned(), json!([sidecar]));
    }
    Some(PodTemplate {
        spec,
        ..PodTemplate::default()
    })
}

/// Other names for agents, sometimes those that another RunnerPool gives. In one namespace Pods of two agent pools would be
/// in each other's way.
fn prefixes(random: &mut Random, pools: &mut [RunnerPool]) {
    for number in 0..pools.len() {
        let prefix = *random.pick(&["team", "web", "api"]);
        let mut others = pools.iter().enumerate();
        let taken = others.any(|(other, pool)| {
            other != number
                && pool.agent_base() == prefix
                && pool.metadata.namespace == pools[number].metadata.namespace
                && pool.spec.pool != pools[number].spec.pool
        });
        if random.permille(200) && !taken {
            pools[number].spec.agent_name_prefix = Some(prefix.to_owned());
        }
    }
}

/// Further kinds of agents.
fn profiles(random: &mut Random, spare: u32) -> Vec<ProfileSpec> {
    let mut profiles = Vec::new();
    if random.permille(250) {
        let capabilities = [
            ("gpu", "a100"),
            ("docker", "27.1"),
            ("Mixed_Case", "Some value"),
        ];
        let min_agents = u32::try_from(random.between(0, 1)).unwrap_or(0).min(spare);
        profiles.push(ProfileSpec {
            name: "special".to_owned(),
            capabilities: capabilities
                .into_iter()
                .filter(|_| random.permille(600))
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .collect(),
            image: random
                .permille(500)
                .then(|| "registry.example/agent:3".to_owned()),
            min_agents,
            max_agents: random
                .permille(300)
                .then(|| min_agents.max(u32::try_from(random.between(1, 3)).unwrap_or(1))),
            ..ProfileSpec::default()
        });
    }
    profiles
}

/// Schedules that come every day, sometimes.
fn schedules(random: &mut Random) -> Vec<Schedule> {
    let count = *random.pick(&[0, 0, 0, 1, 2]);
    (0..count)
        .map(|number| {
            let max_agents = random.between(1, 8);
            let min_agents = random.between(0, max_agents.min(3));
            Schedule {
                name: format!("hours-{number}"),
                start: format!(
                    "{} {} * * *",
                    random.between(0, 59),
                    random.pick(&["*/4", "3,15", "9"])
                ),
                duration: Some(format!("{}m", random.between(10, 300))),
                end: None,
                time_zone: (*random.pick(&["Etc/UTC", "Asia/Kolkata"])).to_owned(),
                min_agents: u32::try_from(min_agents).ok(),
                max_agents: u32::try_from(max_agents).ok(),
            }
        })
        .collect()
}

/// The demands of a job: what some profile offers, mostly.
pub(crate) fn demands(random: &mut Random, offered: &[String]) -> Vec<String> {
    let mut demands = Vec::new();
    if !offered.is_empty() && random.permille(350) {
        demands.push(random.pick(offered).clone());
        if random.permille(150) {
            demands.push(random.pick(offered).clone());
        }
    }
    if random.permille(500) {
        demands.push("Agent.Version -gtVersion 2.163.1".to_owned());
    }
    demands
}

/// A demand as this or that user writes it: Azure DevOps has no regard to case, nor to blanks between and around words.
pub(crate) fn spelled(random: &mut Random, demand: &str) -> String {
    match random.below(8) {
        0 => demand.to_uppercase(),
        1 => demand.to_lowercase(),
        2 => format!(" {demand} "),
        3 => demand.replacen(" -equals ", "  -Equals   ", 1),
        _ => demand.to_owned(),
    }
}

/// What agents of an image can do, whatever their RunnerPool says: programs that they find.
pub(crate) fn programs(image: &str) -> &'static [&'static str] {
    match image {
        "registry.example/agent:2" => &["make"],
        "registry.example/agent:3" => &["make", "node"],
        "registry.example/java:1" => &["java", "ant"],
        "registry.example/node:1" => &["node"],
        // The agents of `docker:1` have none, whatever `capabilityImages` promises.
        _ => &[],
    }
}

/// What agents of a profile truly can do, by names in lower case.
pub(crate) fn capabilities(profile: &api::Profile<'_>) -> BTreeMap<String, String> {
    let programs = programs(profile.image).iter().map(|name| (*name, ""));
    let capabilities = profile
        .environment()
        .chain(of_templates(profile))
        .chain(programs);
    let lower = |(name, value): (&str, &str)| (name.to_lowercase(), value.to_lowercase());
    capabilities.map(lower).collect()
}

/// Environment variables that the templates of a profile give its agents.
pub(crate) fn of_templates<'a>(
    profile: &'a api::Profile<'_>,
) -> impl Iterator<Item = (&'a str, &'a str)> {
    let templates = profile.templates.iter();
    let containers = templates.filter_map(|template| template.spec.get("containers")?.as_array());
    let variables = containers
        .flatten()
        .filter_map(|container| container.get("env")?.as_array());
    let text = |variable: &'a Value, field: &str| variable.get(field)?.as_str();
    variables
        .flatten()
        .filter_map(move |variable| Some((text(variable, "name")?, text(variable, "value")?)))
}

/// Whether agents of such capabilities can run a job, by another way of reading demands than the operator's.
pub(crate) fn can_run(capabilities: &BTreeMap<String, String>, demands: &[String]) -> bool {
    demands.iter().all(|demand| {
        let demand = demand.to_lowercase();
        let words: Vec<&str> = demand.split_whitespace().collect();
        match words[..] {
            ["agent.version", ..] => true,
            [name, "-equals", ref value @ ..] => capabilities.get(name) == Some(&value.join(" ")),
            _ => capabilities.contains_key(&words.join(" ")),
        }
    })
}
