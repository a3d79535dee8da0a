//! Metrics, as `/metrics` gives them: what of them there is stands in `docs/reference/metrics.md`.
//!
//! Figures of RunnerPools are those of the last pass over each, never counted along, and a RunnerPool that is gone has
//! none. Only the leader makes passes, so only it has them.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use azure_devops::{Answer, Observer};
use kube::runtime::reflector::Store;
use planner::{Agent, AgentState, Look, Plan, Snapshot};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric as _, text},
    metrics::{
        MetricType,
        counter::Counter,
        family::Family,
        gauge::{ConstGauge, Gauge},
        histogram::Histogram,
        info::Info,
    },
    registry::{Registry, Unit},
};

use crate::{
    mirror::PoolKey,
    reconcile::{Error, Guarded},
    webhook::admission::Webhook,
};

/// The format that [`Metrics::text`] gives.
pub(crate) const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Upper bounds of the durations of passes, in seconds: milliseconds when nothing is to be done, up to their deadline.
const PASS_SECONDS: [f64; 10] = [0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 30.0, 180.0];

/// Upper bounds of the durations of requests, in seconds: up to when they are given up.
const REQUEST_SECONDS: [f64; 10] = [0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 40.0];

/// Why a pass was not carried out as planned, besides [`Error::CATEGORIES`]: an action failed or was put off, or the plan
/// broke an invariant.
pub(crate) const UNFINISHED: [&str; 2] = ["action", "plan"];

/// All metrics of a process.
#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Registry,
    leader: Gauge,
    reconcile_duration: Histogram,
    reconcile_errors: Family<Failed, Counter>,
    webhook_requests: Family<Reviewed, Counter>,
    azure_devops: Arc<Requests>,
    pools: Arc<Pools>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Failed {
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Reviewed {
    webhook: &'static str,
    allowed: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Sent {
    operation: &'static str,
    code: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Of {
    operation: &'static str,
}

impl Metrics {
    /// Those of a process that has just started, and watches RunnerPools into these stores.
    pub(crate) fn new(stores: Vec<Store<Guarded>>) -> Self {
        let mut registry = Registry::with_prefix("azdo_runner");
        let leader: Gauge = Gauge::default();
        let reconcile_duration = Histogram::new(PASS_SECONDS);
        let (reconcile_errors, webhook_requests) = (Family::default(), Family::default());
        let azure_devops = Arc::new(Requests::default());
        let pools = Arc::new(Pools {
            stores,
            leader: leader.clone(),
            figures: Mutex::default(),
        });
        registry.register(
            "build",
            "Version of the operator",
            Info::new([("version", env!("CARGO_PKG_VERSION"))]),
        );
        registry.register(
            "leader",
            "Whether this replica leads, and makes passes: 1 or 0",
            leader.clone(),
        );
        registry.register_with_unit(
            "reconcile_duration",
            "Time that passes over a RunnerPool took",
            Unit::Seconds,
            reconcile_duration.clone(),
        );
        registry.register(
            "reconcile_errors",
            "Passes that failed or were not carried out as planned, by what failed",
            reconcile_errors.clone(),
        );
        registry.register(
            "webhook_requests",
            "Admission reviews that were answered",
            webhook_requests.clone(),
        );
        registry.register(
            "azure_devops_requests",
            "Requests to Azure DevOps, by the status of the answer; `failed`: none came, `withheld`: not sent, as another replica leads or is about to",
            azure_devops.total.clone(),
        );
        registry.register_with_unit(
            "azure_devops_request_duration",
            "Time until Azure DevOps began to answer",
            Unit::Seconds,
            azure_devops.duration.clone(),
        );
        registry.register_collector(Box::new(pools.clone()));
        let metrics = Self {
            registry,
            leader,
            reconcile_duration,
            reconcile_errors,
            webhook_requests,
            azure_devops,
            pools,
        };
        // There from the start, or the first one of a kind would be no rise.
        for reason in Error::CATEGORIES.into_iter().chain(UNFINISHED) {
            drop(metrics.failures(reason));
        }
        for webhook in [Webhook::Mutating, Webhook::Validating] {
            for allowed in [true, false] {
                drop(metrics.reviews(webhook, allowed));
            }
        }
        metrics
    }

    /// All of them, as [`CONTENT_TYPE`] says.
    pub(crate) fn text(&self) -> Result<String, fmt::Error> {
        let mut text = String::new();
        text::encode(&mut text, &self.registry)?;
        Ok(text)
    }

    /// This replica leads from now on.
    pub(crate) fn leads(&self) {
        self.leader.set(1);
    }

    /// A pass is over.
    pub(crate) fn reconciled(&self, after: Duration) {
        self.reconcile_duration.observe(after.as_secs_f64());
    }

    /// A pass failed for this reason, or was not carried out as planned.
    pub(crate) fn failed(&self, reason: &'static str) {
        self.failures(reason).inc();
    }

    fn failures(&self, reason: &'static str) -> Counter {
        self.reconcile_errors
            .get_or_create_owned(&Failed { reason })
    }

    /// An admission review was answered.
    pub(crate) fn reviewed(&self, webhook: Webhook, allowed: bool) {
        self.reviews(webhook, allowed).inc();
    }

    fn reviews(&self, webhook: Webhook, allowed: bool) -> Counter {
        let webhook = match webhook {
            Webhook::Mutating => "mutate",
            Webhook::Validating => "validate",
        };
        let allowed = if allowed { "true" } else { "false" };
        self.webhook_requests
            .get_or_create_owned(&Reviewed { webhook, allowed })
    }

    /// Who hears of the requests to Azure DevOps.
    pub(crate) fn azure_devops(&self) -> Arc<dyn Observer> {
        self.azure_devops.clone()
    }

    /// A pass over a RunnerPool made this plan.
    pub(crate) fn planned(&self, pool: &PoolKey, snapshot: &Snapshot, plan: &Plan) {
        let figures = Figures::of(snapshot, plan);
        self.pools.figures().insert(pool.clone(), figures);
    }

    /// Nothing can be planned for a RunnerPool.
    pub(crate) fn forget(&self, pool: &PoolKey) {
        self.pools.figures().remove(pool);
    }
}

/// Requests to Azure DevOps.
#[derive(Debug)]
struct Requests {
    total: Family<Sent, Counter>,
    duration: Family<Of, Histogram, fn() -> Histogram>,
}

impl Default for Requests {
    fn default() -> Self {
        Self {
            total: Family::default(),
            duration: Family::new_with_constructor(|| Histogram::new(REQUEST_SECONDS)),
        }
    }
}

impl Observer for Requests {
    fn answered(&self, operation: &'static str, answer: Answer, after: Duration) {
        let code = match answer {
            Answer::Status(status) => status.to_string(),
            Answer::Failed => "failed".to_owned(),
            Answer::Withheld => "withheld".to_owned(),
        };
        self.total.get_or_create(&Sent { operation, code }).inc();
        if matches!(answer, Answer::Status(_)) {
            self.duration
                .get_or_create(&Of { operation })
                .observe(after.as_secs_f64());
        }
    }
}

/// What the last pass over a RunnerPool saw.
#[derive(Debug)]
struct Figures {
    min: u32,
    max: u32,
    /// By state.
    agents: BTreeMap<&'static str, u32>,
    /// `None`: Azure DevOps could not be looked at.
    jobs: Option<[(&'static str, u32); 3]>,
}

impl Figures {
    fn of(snapshot: &Snapshot, plan: &Plan) -> Self {
        const STATES: [&str; 9] = [
            "starting", "offline", "idle", "busy", "draining", "stopping", "finished", "orphaned",
            "unknown",
        ];
        let mut agents = BTreeMap::from(STATES.map(|state| (state, 0)));
        for agent in &plan.agents {
            *agents.entry(state(agent)).or_default() += 1;
        }
        let jobs = match &snapshot.look {
            Look::Known(look) => {
                let requests = look.agent_pool.requests.iter();
                let queued = requests.filter(|request| request.reserved_agent.is_none());
                let unserved = plan.unserved.len();
                let running = plan.agents.iter().filter(|agent| agent.request().is_some());
                let number = |jobs: usize| u32::try_from(jobs).unwrap_or(u32::MAX);
                Some([
                    ("queued", number(queued.count().saturating_sub(unserved))),
                    ("unserved", number(unserved)),
                    ("running", number(running.count())),
                ])
            }
            Look::Unknown { .. } => None,
        };
        let profiles = snapshot.pool.profiles.iter();
        Self {
            min: profiles.map(|profile| profile.min_agents).sum(),
            max: snapshot.pool.max_agents,
            agents,
            jobs,
        }
    }
}

fn state(agent: &Agent) -> &'static str {
    match agent.state {
        AgentState::Starting => "starting",
        AgentState::Offline => "offline",
        AgentState::Idle { .. } => "idle",
        AgentState::Busy { .. } => "busy",
        AgentState::Draining | AgentState::Drained | AgentState::Exiting => "draining",
        AgentState::Stopping => "stopping",
        AgentState::Finished => "finished",
        AgentState::Orphaned => "orphaned",
        AgentState::Unknown => "unknown",
    }
}

/// Figures of RunnerPools.
#[derive(Debug)]
struct Pools {
    /// Which there are.
    stores: Vec<Store<Guarded>>,
    leader: Gauge,
    figures: Mutex<HashMap<PoolKey, Figures>>,
}

impl Pools {
    fn figures(&self) -> MutexGuard<'_, HashMap<PoolKey, Figures>> {
        self.figures.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Collector for Pools {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let leads = self.leader.get() == 1;
        let stored = self.stores.iter().filter(|_| leads).flat_map(Store::state);
        let pools: BTreeMap<PoolKey, Arc<Guarded>> =
            stored.map(|pool| (PoolKey::of(&*pool), pool)).collect();
        let mut figures = self.figures();
        figures.retain(|pool, _| pools.contains_key(pool));
        let of = || {
            let pools = pools.keys();
            pools.filter_map(|pool| Some((labels(pool), figures.get(pool)?)))
        };

        let agents = of().flat_map(|(pool, figures)| {
            let agents = figures.agents.iter();
            agents.map(move |(state, agents)| (with(pool, [("state", *state)]), *agents))
        });
        gauge(&mut encoder, "agents", "Agents, by what they do.", agents)?;
        let bounds = of().map(|(pool, figures)| (pool.to_vec(), figures.min));
        let help = "Agents that are kept, of all profiles, by the spec or the schedule in force.";
        gauge(&mut encoder, "agents_min", help, bounds)?;
        let bounds = of().map(|(pool, figures)| (pool.to_vec(), figures.max));
        let help = "Most agents that there may be, by the spec or the schedule in force.";
        gauge(&mut encoder, "agents_max", help, bounds)?;
        let jobs = of().flat_map(|(pool, figures)| {
            let jobs = figures.jobs.iter().flatten();
            jobs.map(move |(state, jobs)| (with(pool, [("state", *state)]), *jobs))
        });
        let help =
            "Jobs, by what they wait for; none is told of while Azure DevOps cannot be looked at.";
        gauge(&mut encoder, "job_requests", help, jobs)?;

        let conditions = pools.iter().flat_map(|(key, pool)| {
            let conditions = conditions(pool).into_iter();
            conditions.map(|(condition, status)| {
                let stands = [("condition", condition), ("status", status)];
                (with(labels(key), stands), 1)
            })
        });
        let help = "Conditions of a RunnerPool, each with the status that it has; always 1.";
        gauge(&mut encoder, "condition", help, conditions)
    }
}

/// The conditions of a RunnerPool, each with its status; of one that cannot be read, those that it was told of that.
fn conditions(pool: &Guarded) -> Vec<(&str, &str)> {
    match &pool.0 {
        Ok(pool) => {
            let conditions = pool.status.iter().flat_map(|status| &status.conditions);
            conditions
                .map(|condition| (condition.type_.as_str(), condition.status.as_str()))
                .collect()
        }
        Err(_) => vec![("Ready", "False"), ("Degraded", "True")],
    }
}

type Label<'a> = (&'static str, &'a str);

fn labels(pool: &PoolKey) -> [Label<'_>; 2] {
    [
        ("namespace", pool.namespace.as_str()),
        ("pool", pool.name.as_str()),
    ]
}

fn with<'a, const N: usize>(pool: [Label<'a>; 2], more: [Label<'a>; N]) -> Vec<Label<'a>> {
    pool.into_iter().chain(more).collect()
}

fn gauge<'a>(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    series: impl Iterator<Item = (Vec<Label<'a>>, u32)>,
) -> fmt::Result {
    let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
    for (labels, value) in series {
        let value = ConstGauge::new(i64::from(value));
        value.encode(metric.encode_family(&labels)?)?;
    }
    Ok(())
}
