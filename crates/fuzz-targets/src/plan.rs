//! The planner on snapshots that no world would show, but that decoders could.

use std::{collections::BTreeSet, sync::Arc};

use jiff::{SignedDuration, Timestamp};
use planner::{
    AgentPool, Capabilities, Claim, Cluster, Hold, Intake, JobRequest, Keep, KnownLook, Look,
    Memory, Mode, Pod, PodPhase, Pool, Profile, Registration, Reported, Snapshot, Waiting,
};

use crate::{look::assert_lawful, random::Choices};

/// When all of this happens, in seconds since 1970.
const NOW: i64 = 1_795_500_000;
const MARK: &str = "cluster/ci/web";
const PROFILES: [&str; 3] = ["base", "java", "node"];
const DEMANDS: [&str; 5] = [
    "java",
    "Node -equals 20",
    "docker",
    "Agent.Version -gtVersion 2.1",
    "",
];

/// Whatever the snapshot, there is a plan, and it breaks no invariant.
pub(crate) fn plans(data: &[u8]) {
    let now = Timestamp::from_second(NOW).expect("a time in this century");
    assert_lawful(&snapshot(&mut Choices::new(data), now), now);
}

fn snapshot(choices: &mut Choices<'_>, now: Timestamp) -> Snapshot {
    let pool = pool(choices);
    let indexes: BTreeSet<u32> = choices
        .list(8, |choices| index(choices))
        .into_iter()
        .collect();
    let mut pods = Vec::new();
    let mut registrations = Vec::new();
    for (id, index) in (100..).zip(indexes) {
        let name = format!("web-agent-{index}");
        if choices.flag() {
            pods.push(pod(choices, name.clone(), now).into());
        }
        if choices.flag() {
            let name = if choices.below(8) == 7 {
                name.to_uppercase()
            } else {
                name
            };
            registrations.push(registration(choices, id, name, now).into());
        }
    }
    let others = [
        "web-placeholder-base",
        "web-placeholder-java",
        "web-placeholder-former",
        "web-agent-00",
        "buildbox",
    ];
    for (id, name) in (500..).zip(others) {
        if choices.flag() {
            registrations.push(registration(choices, id, name.to_owned(), now).into());
        }
    }
    let requests = (1..).zip(choices.list(12, request));
    let requests = requests.map(|(id, request)| JobRequest { id, ..request });
    let agent_pool = Arc::new(AgentPool {
        registrations,
        requests: requests.collect(),
    });
    let cluster = Cluster {
        pods,
        claims: choices.list(4, |choices| claim(choices, now)),
        shown_after: choices.option(|choices| choices.time(now)),
        taken: choices
            .list(3, |choices| format!("web-agent-{}", index(choices)))
            .into_iter()
            .collect(),
    };
    Snapshot {
        pool: Arc::new(pool),
        cluster,
        look: look(choices, agent_pool, now),
        siblings: Vec::new(),
    }
}

fn pool(choices: &mut Choices<'_>) -> Pool {
    let size = |choices: &mut Choices<'_>| match choices.below(8) {
        7 => u32::MAX,
        _ => u32::from(choices.below(12)),
    };
    let max_agents = size(choices).max(1);
    let count = usize::from(1 + choices.below(3));
    let profile = |name: &&str| Profile {
        name: (*name).to_owned(),
        declared: (*name != "base")
            .then_some((*name, ""))
            .into_iter()
            .collect(),
        image: format!("{name}-image"),
        shape: format!("{name}-shape"),
        ..Profile::default()
    };
    let mut profiles: Vec<Profile> = PROFILES.iter().take(count).map(profile).collect();
    profiles[0].min_agents = size(choices).min(max_agents);
    if choices.flag() {
        let last = profiles.len() - 1;
        profiles[last].max_agents = Some(size(choices).max(1));
    }
    Pool {
        name: "team/web".to_owned(),
        priority: 0,
        agent_prefix: "web-agent-".to_owned(),
        placeholder_prefix: "web-placeholder-".to_owned(),
        placeholder_suffix: ".mark".to_owned(),
        owner_mark: MARK.to_owned(),
        max_agents,
        ttl_idle: choices.option(|choices| {
            SignedDuration::from_secs(match choices.below(4) {
                0 => i64::from(u32::MAX),
                _ => i64::from(choices.byte()),
            })
        }),
        profiles,
        mode: [Mode::Active, Mode::Paused, Mode::Drained][usize::from(choices.below(3))],
        placeholders: choices.flag(),
        keep: Keep {
            failed: usize::from(choices.below(3)),
            succeeded: usize::from(choices.below(3)),
        },
        deleting: choices.below(4) == 3,
    }
}

fn index(choices: &mut Choices<'_>) -> u32 {
    match choices.below(8) {
        7 => u32::MAX,
        few => u32::from(few),
    }
}

fn profile(choices: &mut Choices<'_>) -> String {
    choices.pick(&PROFILES).unwrap_or_default().to_owned()
}

fn pod(choices: &mut Choices<'_>, name: String, now: Timestamp) -> Pod {
    let profile = profile(choices);
    Pod {
        uid: format!("uid-{name}"),
        name,
        phase: match choices.below(4) {
            0 => PodPhase::Running,
            1 => PodPhase::Pending,
            2 => PodPhase::Succeeded {
                at: choices.time(now),
            },
            _ => PodPhase::Failed {
                at: choices.time(now),
            },
        },
        stopping: choices.below(8) == 7,
        created_at: choices.time(now),
        started_at: choices.option(|choices| choices.time(now)),
        shape: match choices.below(4) {
            0 => None,
            1 => Some("former".to_owned()),
            _ => Some(format!("{profile}-shape")),
        },
        profile,
        min_agent: choices.flag(),
        run_once: choices.flag(),
        marked: choices.below(4) != 3,
        request: choices.option(|choices| i64::from(choices.below(20))),
        guarded: choices.flag(),
        attempt: match choices.below(8) {
            7 => u32::MAX,
            few => u32::from(few),
        },
        waiting: choices.option(|choices| Waiting {
            hold: match choices.below(3) {
                0 => Hold::NoNode,
                1 => Hold::NotStarted,
                _ => Hold::Failing,
            },
            since: choices.time(now),
        }),
    }
}

fn registration(choices: &mut Choices<'_>, id: i64, name: String, now: Timestamp) -> Registration {
    Registration {
        id,
        name,
        owner_mark: match choices.below(8) {
            7 => None,
            6 => Some("cluster/ci/other".to_owned()),
            _ => Some(MARK.to_owned()),
        },
        capabilities: Reported {
            system: Arc::new(capabilities(choices)),
            user: Arc::new(capabilities(choices)),
        },
        online: choices.flag(),
        intake: match choices.below(4) {
            2 => Intake::Disabled,
            3 => Intake::DisableSent,
            _ => Intake::Enabled,
        },
        assigned: choices.option(|choices| i64::from(choices.below(20))),
        created_on: choices.option(|choices| choices.time(now)),
        last_finished: choices.option(|choices| choices.time(now)),
        abandoned: None,
    }
}

fn request(choices: &mut Choices<'_>) -> JobRequest {
    let demand = |choices: &mut Choices<'_>| choices.pick(&DEMANDS).unwrap_or_default().to_owned();
    JobRequest {
        id: 0,
        demands: choices.list(3, demand),
        matched: choices
            .option(|choices| choices.list(3, |choices| 500 + i64::from(choices.below(8)))),
        reserved_agent: choices.option(|choices| match choices.below(12) {
            11 => choices.number(),
            10 => 500,
            near => 100 + i64::from(near),
        }),
    }
}

fn capabilities(choices: &mut Choices<'_>) -> Capabilities {
    let pairs = choices.list(3, |choices| {
        let name = choices.pick(&["java", "Node", "docker", "Agent.OS", "AZDO_RUNNER_IMAGE"]);
        let value = choices.pick(&["", "20", "base-image", "java-image"]);
        (name.unwrap_or_default(), value.unwrap_or_default())
    });
    pairs.into_iter().collect()
}

fn claim(choices: &mut Choices<'_>, now: Timestamp) -> Claim {
    let index = index(choices);
    Claim {
        name: format!("web-agent-{index}-cache"),
        uid: format!("claim-{index}"),
        index,
        created_at: choices.time(now),
        stopping: choices.flag(),
    }
}

fn look(choices: &mut Choices<'_>, agent_pool: Arc<AgentPool>, now: Timestamp) -> Look {
    let unknown = |last| Look::Unknown {
        reason: "it is down".to_owned(),
        last,
    };
    let age = match choices.below(8) {
        7 => return unknown(None),
        6 => return unknown(Some(agent_pool)),
        5 => 100,
        _ => 2,
    };
    let taken_at = now - SignedDuration::from_secs(age);
    Look::Known(KnownLook {
        taken_at,
        fresh_until: taken_at + SignedDuration::from_secs(50),
        memory: memory(choices, &agent_pool, now),
        agent_pool,
    })
}

/// Requests were seen before, or not.
fn memory(choices: &mut Choices<'_>, seen: &AgentPool, now: Timestamp) -> Arc<Memory> {
    let mut memory = Arc::default();
    if choices.flag() {
        Memory::take(&mut memory, seen, choices.time(now));
    }
    memory
}
