//! How long one plan takes for the largest RunnerPool that there may be: 10 000 agents and 10 000 queued jobs. At most
//! 20 ms are allowed, and the check that follows each plan is measured beside it.

use std::sync::Arc;

use divan::{Bencher, black_box};
use jiff::{SignedDuration, Timestamp};
use planner::{
    AgentPool, Cluster, Intake, JobRequest, KnownLook, Look, Pod, PodPhase, Pool, Profile,
    Registration, Reported, Snapshot,
    assignment::{Kind, assign},
    check, plan,
};

const SIZE: i64 = 10_000;

fn main() {
    divan::main();
}

#[derive(Clone, Copy, Debug)]
enum Shape {
    /// Every agent idle, and a job for each.
    Idle,
    /// Every agent idle, nothing to do: all are surplus.
    Surplus,
    /// Every agent busy, and as many jobs queued.
    Busy,
    /// No agent, and room for all.
    Empty,
    /// 64 profiles, agents in every state, jobs with several demands.
    Mixed,
    /// As mixed, and the RunnerPool describes other Pods by now.
    Outdated,
}

const SHAPES: [Shape; 6] = [
    Shape::Idle,
    Shape::Surplus,
    Shape::Busy,
    Shape::Empty,
    Shape::Mixed,
    Shape::Outdated,
];

#[divan::bench(args = SHAPES)]
fn planning(bencher: Bencher, shape: Shape) {
    let snapshot = snapshot(shape);
    bencher.bench_local(|| plan(black_box(&snapshot), now()));
}

#[divan::bench(args = SHAPES)]
fn checking(bencher: Bencher, shape: Shape) {
    let snapshot = snapshot(shape);
    let plan = plan(&snapshot, now());
    bencher.bench_local(|| check(black_box(&snapshot), &plan, now()));
}

/// Jobs that no agent is there for, each of one of 50 profiles, beside the rest of a plan.
#[divan::bench]
fn assigning_10_000_jobs_to_50_profiles(bencher: Bencher) {
    // Every other class of jobs may have agents of two profiles, so that some have to give way.
    let classes: Vec<Vec<usize>> = (0..200)
        .map(|class| match class % 2 {
            0 => vec![2 * (class % 50) + 1],
            _ => vec![2 * (class % 50) + 1, 2 * (class * 7 % 50) + 1],
        })
        .collect();
    let kinds: Vec<Kind> = (0..100)
        .map(|kind| Kind {
            size: if kind % 2 == 0 { 0 } else { 190 },
            made_in: (kind % 2 == 1).then_some(0),
        })
        .collect();
    let jobs: Vec<usize> = (0..10_000).map(|job| job * 13 % 200).collect();
    bencher.bench_local(|| assign(black_box(&jobs), &classes, &kinds, &[9_000]));
}

fn now() -> Timestamp {
    Timestamp::UNIX_EPOCH + SignedDuration::from_hours(500_000)
}

fn ago(seconds: i64) -> Timestamp {
    now() - SignedDuration::from_secs(seconds)
}

const MARK: &str = "0b1f3a52-6d1e-4a6e-9f0e-6d2f0c6c4d11/team/web";

impl Shape {
    fn is_mixed(self) -> bool {
        matches!(self, Self::Mixed | Self::Outdated)
    }

    fn is_busy(self, index: i64) -> bool {
        matches!(self, Self::Busy) || (self.is_mixed() && index % 3 == 0)
    }

    fn agents(self) -> i64 {
        if matches!(self, Self::Empty) { 0 } else { SIZE }
    }

    fn jobs(self) -> i64 {
        if matches!(self, Self::Surplus) {
            0
        } else {
            SIZE
        }
    }

    fn profiles(self) -> i64 {
        if self.is_mixed() { 64 } else { 1 }
    }
}

fn snapshot(shape: Shape) -> Snapshot {
    let agents = 0..shape.agents();
    let unregistered = |i: &i64| shape.is_mixed() && i % 5 == 0;
    let registrations = agents.clone().filter(|i| !unregistered(i));
    let placeholders = (0..shape.profiles()).map(placeholder);
    Snapshot {
        pool: Arc::new(pool(shape)),
        cluster: Cluster {
            pods: agents.map(|i| pod(shape, i).into()).collect(),
            ..Cluster::default()
        },
        look: Look::Known(KnownLook {
            taken_at: ago(1),
            fresh_until: now() + SignedDuration::from_secs(10),
            memory: Arc::default(),
            agent_pool: Arc::new(AgentPool {
                registrations: registrations
                    .map(|i| registration(shape, i))
                    .chain(placeholders)
                    .map(Arc::new)
                    .collect(),
                requests: (0..shape.jobs()).map(|i| request(shape, i)).collect(),
            }),
        }),
        siblings: Vec::new(),
    }
}

fn pool(shape: Shape) -> Pool {
    let current = if matches!(shape, Shape::Outdated) {
        "new"
    } else {
        "old"
    };
    let profile = |i| Profile {
        name: format!("capability-{i}"),
        declared: (i > 0)
            .then(|| (format!("capability-{i}"), ""))
            .into_iter()
            .collect(),
        min_agents: if i == 0 && shape.is_mixed() { 5_000 } else { 0 },
        image: "agent:1".into(),
        shape: current.into(),
        ..Profile::default()
    };
    Pool {
        name: "team/web".to_owned(),
        priority: 0,
        agent_prefix: "web-agent-".into(),
        placeholder_prefix: "web-placeholder-".into(),
        placeholder_suffix: ".mark".into(),
        owner_mark: MARK.into(),
        max_agents: 10_000,
        ttl_idle: None,
        profiles: (0..shape.profiles()).map(profile).collect(),
        mode: planner::Mode::Active,
        placeholders: true,
        keep: planner::Keep::default(),
        deleting: false,
    }
}

fn pod(shape: Shape, i: i64) -> Pod {
    let mixed = shape.is_mixed();
    Pod {
        name: format!("web-agent-{i}"),
        uid: format!("5b0c7a30-37a4-4f2d-9f57-{i:012}"),
        phase: match i % 13 {
            0 if mixed => PodPhase::Pending,
            1 if mixed => PodPhase::Succeeded { at: ago(30) },
            2 if mixed => PodPhase::Failed { at: ago(30) },
            _ => PodPhase::Running,
        },
        stopping: mixed && i % 17 == 0,
        created_at: ago(600),
        started_at: None,
        profile: format!("capability-{}", i % shape.profiles()),
        shape: Some("old".into()),
        min_agent: mixed && i % 2 == 0,
        run_once: true,
        marked: true,
        request: shape.is_busy(i).then_some(SIZE + i),
        guarded: shape.is_busy(i),
        attempt: 0,
        waiting: None,
    }
}

fn registration(shape: Shape, i: i64) -> Registration {
    let mixed = shape.is_mixed();
    Registration {
        id: i,
        name: format!("web-agent-{i}"),
        owner_mark: Some(MARK.into()),
        capabilities: Reported::default(),
        online: !mixed || i % 7 != 0,
        intake: if mixed && i % 11 == 0 {
            Intake::Disabled
        } else {
            Intake::Enabled
        },
        assigned: shape.is_busy(i).then_some(SIZE + i),
        created_on: Some(ago(600)),
        last_finished: None,
        abandoned: None,
    }
}

fn placeholder(i: i64) -> Registration {
    Registration {
        id: 1_000_000 + i,
        name: format!("web-placeholder-capability-{i}"),
        owner_mark: Some(MARK.into()),
        capabilities: Reported::default(),
        online: false,
        intake: Intake::Enabled,
        assigned: None,
        created_on: Some(ago(600)),
        last_finished: None,
        abandoned: None,
    }
}

fn request(shape: Shape, id: i64) -> JobRequest {
    let mut demands = vec!["Agent.Version -gtVersion 2.163.1".to_owned()];
    if shape.is_mixed() {
        // A few of them have no profile of their own.
        let capability = id % (shape.profiles() + 6);
        demands.push(format!("capability-{capability} -equals 1"));
    }
    JobRequest {
        id,
        demands,
        // The service names placeholders for each job.
        matched: Some((0..shape.profiles()).map(|i| 1_000_000 + i).collect()),
        reserved_agent: None,
    }
}
