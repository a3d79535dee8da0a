//! Random snapshots: consistent ones, and such as no world should ever show.

use std::sync::Arc;

use jiff::Timestamp;
use planner::{
    AgentPool, Claim, Cluster, Hold, Intake, JobRequest, Keep, Look, Mode, Pod, PodPhase, Pool,
    Profile, Registration, Reported, Snapshot, Waiting,
};
use proptest::{collection::vec, option, prelude::*, sample::subsequence};

use crate::world::{FOREIGN_MARK, MARK, at, known, profile};

/// Indexes that random snapshots use: few, so that Pods, registrations, claims and strangers meet.
const INDEXES: u32 = 8;

const PROFILES: [&str; 3] = ["base", "java", "node"];

fn pool() -> impl Strategy<Value = Pool> {
    (
        1_u32..8,
        0_u32..4,
        option::of(prop_oneof![Just(5), Just(60), Just(3600)]),
        1..=PROFILES.len(),
        prop::bool::weighted(0.2),
        mode(),
        (0_usize..3, 0_usize..3),
        prop::bool::weighted(0.8),
    )
        .prop_map(
            |(
                max_agents,
                min_agents,
                ttl,
                profiles,
                deleting,
                mode,
                (failed, succeeded),
                placeholders,
            )| Pool {
                name: "team/web".to_owned(),
                priority: 0,
                agent_prefix: "web-agent-".into(),
                placeholder_prefix: "web-placeholder-".into(),
                placeholder_suffix: ".mark".into(),
                owner_mark: MARK.into(),
                max_agents,
                ttl_idle: ttl.map(jiff::SignedDuration::from_secs),
                profiles: PROFILES[..profiles]
                    .iter()
                    .map(|&name| Profile {
                        min_agents: if name == "base" {
                            min_agents.min(max_agents)
                        } else {
                            0
                        },
                        ..profile(name, (name != "base").then_some(name))
                    })
                    .collect(),
                mode,
                keep: Keep { failed, succeeded },
                placeholders,
                deleting,
            },
        )
}

fn mode() -> impl Strategy<Value = Mode> {
    prop_oneof![8 => Just(Mode::Active), 1 => Just(Mode::Paused), 1 => Just(Mode::Drained)]
}

/// Seconds before or after now at which things happened; the look began at -2.
fn moment() -> impl Strategy<Value = Timestamp> {
    prop_oneof![
        Just(-5000_i64),
        Just(-700),
        Just(-40),
        -31_i64..-28,
        -6_i64..1
    ]
    .prop_map(at)
}

fn phase() -> impl Strategy<Value = PodPhase> {
    prop_oneof![
        2 => Just(PodPhase::Pending),
        4 => Just(PodPhase::Running),
        1 => moment().prop_map(|at| PodPhase::Succeeded { at }),
        1 => moment().prop_map(|at| PodPhase::Failed { at }),
    ]
}

fn waiting() -> impl Strategy<Value = Waiting> {
    let hold = prop_oneof![
        Just(Hold::NoNode),
        Just(Hold::NotStarted),
        Just(Hold::Failing)
    ];
    (hold, moment()).prop_map(|(hold, since)| Waiting { hold, since })
}

fn pod(index: u32) -> impl Strategy<Value = Pod> {
    let times = (phase(), moment(), prop::bool::weighted(0.15));
    let flags = (
        any::<bool>(),
        any::<bool>(),
        prop::bool::weighted(0.85),
        any::<bool>(),
    );
    let rest = (
        0..PROFILES.len(),
        option::weighted(0.85, prop::bool::weighted(0.85)),
        option::weighted(0.3, 1_i64..20),
        (0_u32..7, option::of(waiting())),
    );
    (times, flags, rest).prop_map(
        move |(times, flags, (profile, shape, request, retry))| Pod {
            name: format!("web-agent-{index}"),
            uid: format!("pod-{index}"),
            phase: times.0,
            created_at: times.1,
            started_at: None,
            stopping: times.2,
            profile: PROFILES[profile].into(),
            shape: shape.map(|current| {
                let name = PROFILES[profile];
                if current {
                    format!("{name}-shape")
                } else {
                    "former-shape".into()
                }
            }),
            min_agent: flags.0,
            run_once: flags.1,
            marked: flags.2,
            guarded: flags.3,
            request,
            attempt: retry.0,
            waiting: retry.1.filter(|_| times.0 == PodPhase::Pending),
        },
    )
}

fn mark() -> impl Strategy<Value = Option<String>> {
    prop_oneof![
        6 => Just(Some(MARK.to_owned())),
        1 => Just(Some(FOREIGN_MARK.to_owned())),
        1 => Just(None),
    ]
}

fn registration(id: i64, name: String) -> impl Strategy<Value = Registration> {
    let intake = prop_oneof![
        4 => Just(Intake::Enabled),
        1 => Just(Intake::Disabled),
        1 => Just(Intake::DisableSent),
    ];
    (
        mark(),
        prop::bool::weighted(0.7),
        intake,
        option::weighted(0.3, 1_i64..20),
        option::of(moment()),
        option::weighted(0.3, moment()),
    )
        .prop_map(move |fields| {
            let (owner_mark, online, intake, assigned, created_on, last_finished) = fields;
            Registration {
                id,
                name: name.clone(),
                owner_mark,
                capabilities: Reported::default(),
                online,
                intake,
                assigned,
                created_on,
                last_finished,
                abandoned: None,
            }
        })
}

/// Pods and registrations that fit together, or do not: either may be missing, in any state.
fn agents() -> impl Strategy<Value = (Vec<Pod>, Vec<Registration>)> {
    let each = |index: u32| {
        let id = 100 + i64::from(index);
        let case = prop_oneof![
            9 => Just(format!("web-agent-{index}")),
            1 => Just(format!("WEB-agent-{index}")),
        ];
        let registration = case.prop_flat_map(move |name| registration(id, name));
        (
            option::weighted(0.7, pod(index)),
            option::weighted(0.7, registration),
        )
    };
    (0..INDEXES)
        .map(each)
        .collect::<Vec<_>>()
        .prop_flat_map(|agents| {
            let count = agents.len();
            subsequence(agents, 0..=count)
        })
        .prop_map(|agents| {
            let (pods, registrations): (Vec<_>, Vec<_>) = agents.into_iter().unzip();
            (
                pods.into_iter().flatten().collect(),
                registrations.into_iter().flatten().collect(),
            )
        })
}

/// Registrations that are no agents of ours: placeholders, those of another RunnerPool and of nobody we know.
fn others() -> impl Strategy<Value = Vec<Registration>> {
    let names = [
        "web-placeholder-base",
        "web-placeholder-java",
        "web-placeholder-former",
        "api-agent-0",
        "web-agent-00",
        "web-agent-01",
        "buildbox",
    ];
    let all: Vec<_> = names
        .iter()
        .zip(500..)
        .map(|(name, id)| registration(id, (*name).into()))
        .collect();
    let count = all.len();
    all.prop_flat_map(move |all| subsequence(all, 0..=count))
}

fn requests() -> impl Strategy<Value = Vec<JobRequest>> {
    let demand = prop_oneof![
        Just("java"),
        Just("Node -equals 20"),
        Just("docker"),
        Just("Agent.Version -gtVersion 2.163.1")
    ];
    let request = (
        vec(demand, 0..3),
        option::weighted(0.3, prop_oneof![100_i64..108, Just(500), Just(999)]),
    );
    vec(request, 0..12).prop_map(|requests| {
        requests
            .into_iter()
            .zip(1..)
            .map(|((demands, reserved_agent), id)| JobRequest {
                id,
                demands: demands.into_iter().map(Into::into).collect(),
                matched: None,
                reserved_agent,
            })
            .collect()
    })
}

fn claims() -> impl Strategy<Value = Vec<Claim>> {
    vec((0..INDEXES, -20_i64..0, prop::bool::weighted(0.3)), 0..3).prop_map(|claims| {
        claims
            .into_iter()
            .enumerate()
            .map(|(i, (index, created, stopping))| Claim {
                name: format!("web-agent-{index}-cache{i}"),
                uid: format!("claim-{i}"),
                index,
                created_at: at(created),
                stopping,
            })
            .collect()
    })
}

#[derive(Clone, Copy, Debug)]
enum Seen {
    Fresh,
    Stale,
    Unknown,
    Never,
}

fn snapshot_seen(seen: impl Strategy<Value = Seen>) -> impl Strategy<Value = Snapshot> {
    let taken = subsequence(vec!["web-agent-1", "web-agent-6", "api-agent-0"], 0..=3);
    let cluster = (agents(), claims(), taken);
    (pool(), cluster, others(), requests(), seen).prop_map(
        |(pool, ((pods, mut registrations), claims, taken), others, requests, seen)| {
            registrations.extend(others);
            let agent_pool = Arc::new(AgentPool {
                registrations: registrations.into_iter().map(Arc::new).collect(),
                requests,
            });
            let unknown = |last| Look::Unknown {
                reason: "it is down".into(),
                last,
            };
            Snapshot {
                pool: Arc::new(pool),
                cluster: Cluster {
                    pods: pods.into_iter().map(Arc::new).collect(),
                    claims,
                    shown_after: None,
                    taken: taken.into_iter().map(Into::into).collect(),
                },
                look: match seen {
                    Seen::Fresh => known(agent_pool, at(-2)),
                    Seen::Stale => known(agent_pool, at(-30)),
                    Seen::Unknown => unknown(Some(agent_pool)),
                    Seen::Never => unknown(None),
                },
                siblings: Vec::new(),
            }
        },
    )
}

/// Any snapshot.
pub(crate) fn snapshot() -> impl Strategy<Value = Snapshot> {
    snapshot_seen(prop_oneof![
        6 => Just(Seen::Fresh),
        1 => Just(Seen::Stale),
        1 => Just(Seen::Unknown),
        1 => Just(Seen::Never),
    ])
}

/// Any snapshot with a fresh look.
pub(crate) fn seen_snapshot() -> impl Strategy<Value = Snapshot> {
    snapshot_seen(Just(Seen::Fresh))
}
