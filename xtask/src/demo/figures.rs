//! The figures: what the summary prints and `--json` writes.

use std::collections::BTreeMap;

use anyhow::Result;
use azure_devops_simulator::{JobView, Outcome, world::Entry};
use jiff::{SignedDuration, Timestamp};
use serde::Serialize;

use crate::demo::{
    history::History,
    world::{Leftovers, OPERATOR_IDENTITY, World},
};

/// The figures of one demonstration. Field names are those of the JSON file.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Figures {
    pub(crate) jobs_queued: usize,
    /// Ended by themselves or by their user: with success or cancelled.
    pub(crate) jobs_finished: usize,
    /// Cancelled by their user; part of `jobs_finished`.
    pub(crate) jobs_canceled: usize,
    /// Ended by themselves, with errors.
    pub(crate) jobs_failed: usize,
    /// Ended with their agent, or by its stop.
    pub(crate) jobs_killed: usize,
    /// Ended at once because no registered agent met their demands.
    pub(crate) jobs_refused: usize,
    /// How many RunnerPools had more agents than `maxAgents` at any time.
    pub(crate) max_agents_exceeded: usize,
    /// By RunnerPool.
    pub(crate) agents: BTreeMap<String, Agents>,
    /// From the queueing of a job to the creation of the Pod it ran in: of jobs that had room for an agent and found none
    /// waiting.
    pub(crate) queued_to_pod_seconds: Spread,
    /// From the queueing of a job to its start: of all jobs that started, waits for room included.
    pub(crate) queued_to_started_seconds: Spread,
    /// Read requests with the operator's token, per poll of an agent pool; one look-up of each pool's id apart.
    pub(crate) azure_devops_requests_per_poll: f64,
    pub(crate) azure_devops_polls: usize,
    #[serde(flatten)]
    pub(crate) leftovers: Leftovers,
    /// The most memory that the operator had resident.
    pub(crate) operator_rss_bytes: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) burst: Option<Burst>,
}

/// Agents of a RunnerPool.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Agents {
    pub(crate) most: usize,
    pub(crate) max: usize,
}

/// How times are spread, in seconds; zeros where there is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub(crate) struct Spread {
    pub(crate) count: usize,
    pub(crate) p50: f64,
    pub(crate) p95: f64,
    pub(crate) max: f64,
}

/// How fast the Pods of a burst were created.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Burst {
    pub(crate) pods: usize,
    /// From the arrival of the request that saw the jobs, at the simulator, to the last Pod.
    pub(crate) look_to_last_pod_seconds: f64,
    pub(crate) first_to_last_pod_seconds: f64,
}

impl Figures {
    pub(crate) fn take(world: &World, leftovers: Leftovers, measure_burst: bool) -> Result<Self> {
        let histories = world.history();
        let log = world.request_log();
        let jobs = || histories.iter().flat_map(|history| &history.jobs);
        let ended = |outcome: Outcome| jobs().filter(|job| job.outcome == outcome).count();
        let (requests, polls) = requests_and_polls(&log, world.poll_interval());
        let agents: BTreeMap<String, Agents> = histories
            .iter()
            .map(|history| {
                let agents = Agents {
                    most: history.most_agents,
                    max: history.max_agents,
                };
                (history.runner_pool.clone(), agents)
            })
            .collect();
        Ok(Self {
            jobs_queued: jobs().count(),
            jobs_finished: ended(Outcome::Succeeded) + ended(Outcome::Canceled),
            jobs_canceled: ended(Outcome::Canceled),
            jobs_failed: ended(Outcome::Failed),
            jobs_killed: ended(Outcome::Killed),
            jobs_refused: ended(Outcome::Refused),
            max_agents_exceeded: agents
                .values()
                .filter(|agents| agents.most > agents.max)
                .count(),
            agents,
            queued_to_pod_seconds: Spread::of(histories.iter().flat_map(waits_for_pod).collect()),
            queued_to_started_seconds: Spread::of(jobs().filter_map(wait_for_start).collect()),
            azure_devops_requests_per_poll: ratio(requests, polls),
            azure_devops_polls: polls,
            leftovers,
            operator_rss_bytes: world.operator_memory()?,
            burst: if measure_burst {
                histories.first().and_then(|history| burst(history, &log))
            } else {
                None
            },
        })
    }

    /// What should not be; none if all is well.
    pub(crate) fn complaints(&self) -> Vec<String> {
        let Leftovers {
            leftover_runner_pools,
            leftover_registrations,
            leftover_pods,
            leftover_claims,
            kept_claims: _,
        } = self.leftovers;
        let counts = [
            (self.jobs_failed, "jobs failed"),
            (self.jobs_killed, "jobs were killed"),
            (self.jobs_refused, "jobs were refused"),
            (
                self.max_agents_exceeded,
                "RunnerPools had more agents than maxAgents",
            ),
            (leftover_runner_pools, "RunnerPools were left over"),
            (leftover_registrations, "registrations were left over"),
            (leftover_pods, "Pods were left over"),
            (leftover_claims, "claims were left over"),
        ];
        counts
            .into_iter()
            .filter(|(count, _)| *count > 0)
            .map(|(count, what)| format!("{count} {what}"))
            .collect()
    }
}

impl Spread {
    /// Percentiles by nearest rank: each is a time that occurred.
    fn of(mut seconds: Vec<f64>) -> Self {
        seconds.sort_unstable_by(f64::total_cmp);
        let rank = |percent: usize| {
            let rank = (seconds.len() * percent).div_ceil(100).max(1);
            seconds.get(rank - 1).copied().unwrap_or_default()
        };
        Self {
            count: seconds.len(),
            p50: rank(50),
            p95: rank(95),
            max: rank(100),
        }
    }
}

/// From queueing to the creation of the Pod, in seconds. A job that an existing agent took needed no Pod; one that had no
/// room waited for another job's end, which is not the operator's time.
fn waits_for_pod(history: &History) -> Vec<f64> {
    let wait = |job: &JobView| {
        let pod = history.pod_of(job)?;
        (pod.created >= job.queued && history.had_room(job))
            .then(|| seconds(job.queued, pod.created))
    };
    history.jobs.iter().filter_map(wait).collect()
}

fn wait_for_start(job: &JobView) -> Option<f64> {
    job.received.map(|received| seconds(job.queued, received))
}

/// The operator's read requests, and the polls they make. Requests for one agent pool that follow each other within half
/// the interval are one poll, whatever they ask: a poll is known by the pause after it, not by what the operator calls one.
/// The first look-up of each pool's id is no part of a poll; all others count.
fn requests_and_polls(log: &[Entry], interval: SignedDuration) -> (usize, usize) {
    let mut last: BTreeMap<String, Timestamp> = BTreeMap::new();
    let (mut requests, mut look_ups, mut polls) = (0, 0, 0);
    let reads = |entry: &&Entry| entry.identity == OPERATOR_IDENTITY && entry.method == "GET";
    for entry in log.iter().filter(reads) {
        let path = entry.path.to_lowercase();
        // `…/pools/7/agents`: the pool's id.
        let pool = path
            .split_once("/pools/")
            .and_then(|(_, rest)| rest.split('/').next());
        let Some(pool) = pool else {
            look_ups += 1;
            continue;
        };
        requests += 1;
        let before = last.insert(pool.to_owned(), entry.time);
        polls += usize::from(
            before.is_none_or(|before| entry.time.duration_since(before) > interval / 2),
        );
    }
    (requests + look_ups.max(last.len()) - last.len(), polls)
}

fn burst(history: &History, log: &[Entry]) -> Option<Burst> {
    let created = || history.pods.iter().map(|pod| pod.created);
    let (first, last) = (created().min()?, created().take(history.jobs.len()).max()?);
    let look = log
        .iter()
        .filter(|entry| {
            entry.identity == OPERATOR_IDENTITY && entry.operation == "JobRequests.List"
        })
        .map(|entry| entry.time)
        .filter(|time| *time <= first)
        .max()?;
    Some(Burst {
        pods: created().count(),
        look_to_last_pod_seconds: seconds(look, last),
        first_to_last_pod_seconds: seconds(first, last),
    })
}

fn seconds(from: Timestamp, to: Timestamp) -> f64 {
    // Milliseconds are as precise as a watch event is.
    (to.duration_since(from).as_secs_f64() * 1000.0).round() / 1000.0
}

#[expect(
    clippy::cast_precision_loss,
    reason = "counts of requests are far below 2^52"
)]
fn ratio(dividend: usize, divisor: usize) -> f64 {
    if divisor == 0 {
        0.0
    } else {
        (dividend as f64 / divisor as f64 * 1000.0).round() / 1000.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::history::tests::{at, history};

    #[test]
    fn percentiles_are_times_that_occurred() {
        let hundred: Vec<f64> = (1..=100).rev().map(f64::from).collect();
        assert_eq!(
            Spread::of(hundred),
            Spread {
                count: 100,
                p50: 50.0,
                p95: 95.0,
                max: 100.0
            }
        );
        assert_eq!(
            Spread::of(vec![2.0, 1.0]),
            Spread {
                count: 2,
                p50: 1.0,
                p95: 2.0,
                max: 2.0
            }
        );
        assert_eq!(Spread::of(Vec::new()), Spread::default());
    }

    #[test]
    fn waits_for_room_are_not_waits_for_a_pod() {
        assert_eq!(waits_for_pod(&history()), [1.0, 2.0]);
        let starts: Vec<f64> = history().jobs.iter().filter_map(wait_for_start).collect();
        assert_eq!(starts, [3.5, 3.5, 9.5]);
    }

    #[test]
    fn a_poll_is_known_by_the_pause_after_it() {
        let entry = |time: i64, identity: &str, method: &str, path: &str| Entry {
            time: at(time),
            organization: "o".into(),
            identity: identity.into(),
            operation: String::new(),
            method: method.into(),
            path: path.into(),
            status: 200,
        };
        let read = |time, path| entry(time, OPERATOR_IDENTITY, "GET", path);
        let log = [
            read(0, "/o/_apis/distributedtask/pools"),
            read(1, "/o/_apis/distributedtask/pools"),
            read(2, "/o/_apis/distributedtask/pools"), // one more than there are pools
            read(10, "/o/_apis/distributedtask/pools/1/agents"),
            read(20, "/o/_apis/distributedtask/pools/1/jobrequests"),
            read(20, "/o/_apis/distributedtask/pools/2/agents"),
            entry(
                30,
                OPERATOR_IDENTITY,
                "PATCH",
                "/o/_apis/distributedtask/pools/1/agents/3",
            ),
            entry(
                40,
                "registration",
                "GET",
                "/o/_apis/distributedtask/pools/1/agents",
            ),
            read(5010, "/o/_apis/distributedtask/pools/1/agents"),
            read(5020, "/o/_apis/distributedtask/pools/1/jobrequests"),
        ];
        assert_eq!(
            requests_and_polls(&log, SignedDuration::from_secs(5)),
            (6, 3)
        );
    }
}
