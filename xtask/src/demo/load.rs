//! The jobs that are queued, and when.

use std::time::Duration;

use anyhow::Result;
use azure_devops_simulator::{JobSpec, Outcome};

use crate::demo::world::World;

/// Jobs that are queued together.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Batch {
    at: Duration,
    /// The name of the RunnerPool; the jobs go to its agent pool.
    runner_pool: &'static str,
    demand: Option<&'static str>,
    count: usize,
    duration: Duration,
}

/// What is still to be queued, in order of time, and the job that is to be cancelled.
#[derive(Debug)]
pub(crate) struct Load {
    batches: Vec<Batch>,
    total: usize,
    canceled: Option<Canceled>,
}

/// The job that somebody cancels while it runs.
#[derive(Debug)]
enum Canceled {
    Queued { runner_pool: &'static str, id: i64 },
    Done,
}

/// Name of the job that gets cancelled.
const TO_BE_CANCELED: &str = "to be cancelled";

/// In the mixed load: when (seconds), where, what it demands, its share, and how long each job takes (seconds). The second
/// wave meets agents that have not gone yet.
const MIX: [(u64, &str, Option<&str>, usize, u64); 15] = [
    (0, "basic-runners", None, 8, 4), // at most three agents: the others wait for room
    (0, "corporate-runners", None, 5, 6),
    (0, "advanced-runners", Some("docker"), 4, 5),
    (0, "advanced-runners", Some("kubernetes"), 2, 5),
    (0, "advanced-runners", None, 3, 5),
    (0, "capability-runners", Some("java"), 4, 6),
    (0, "capability-runners", None, 2, 3),
    (0, "profiled-runners", Some("GPU -equals a100"), 4, 5), // at most two agents have one
    (0, "profiled-runners", None, 2, 4),
    (22, "basic-runners", None, 2, 4),
    (22, "corporate-runners", None, 2, 4),
    (22, "advanced-runners", Some("docker"), 3, 8),
    (22, "capability-runners", Some("java"), 2, 4),
    (22, "capability-runners", Some("nodejs"), 2, 4),
    (22, "profiled-runners", Some("large"), 2, 5),
];

/// Long enough to be still running when it is cancelled, whatever happens.
const UNTIL_CANCELED: Duration = Duration::from_secs(3600);

impl Load {
    /// One job that is cancelled while it runs, and all others as the mix has them.
    pub(crate) fn mixed(jobs: usize) -> Self {
        let others = jobs.saturating_sub(1);
        let whole: usize = MIX.iter().map(|(_, _, _, share, _)| share).sum();
        let mut before = 0;
        let mut batches: Vec<Batch> = MIX
            .iter()
            .map(|&(at, runner_pool, demand, share, duration)| {
                // Rounding the running total keeps the sum exact.
                let count = (before + share) * others / whole - before * others / whole;
                before += share;
                let (at, duration) = (Duration::from_secs(at), Duration::from_secs(duration));
                Batch {
                    at,
                    runner_pool,
                    demand,
                    count,
                    duration,
                }
            })
            .filter(|batch| batch.count > 0)
            .collect();
        let at = Duration::ZERO;
        let canceled = Batch {
            at,
            runner_pool: "advanced-runners",
            demand: None,
            count: 1,
            duration: UNTIL_CANCELED,
        };
        batches.insert(0, canceled);
        Self {
            batches,
            total: jobs,
            canceled: None,
        }
    }

    /// All jobs at once.
    pub(crate) fn burst(jobs: usize) -> Self {
        let batch = Batch {
            at: Duration::ZERO,
            runner_pool: "basic-runners",
            demand: None,
            count: jobs,
            duration: Duration::from_secs(10),
        };
        Self {
            batches: vec![batch],
            total: jobs,
            canceled: Some(Canceled::Done),
        }
    }

    pub(crate) fn total(&self) -> usize {
        self.total
    }

    /// Queues what is due, and cancels the job that is to be cancelled once it runs.
    pub(crate) fn advance(&mut self, elapsed: Duration, world: &World) -> Result<()> {
        let due = self.batches.partition_point(|batch| batch.at <= elapsed);
        for batch in self.batches.drain(..due) {
            let Batch {
                at: _,
                runner_pool,
                demand,
                count,
                duration,
            } = batch;
            let cancel = duration == UNTIL_CANCELED;
            let name = if cancel {
                TO_BE_CANCELED
            } else {
                demand.unwrap_or("plain")
            };
            let demands = demand.into_iter().map(str::to_owned).collect();
            let spec = JobSpec {
                count,
                name: name.to_owned(),
                demands,
                duration,
                ..JobSpec::default()
            };
            let ids = world.queue(runner_pool, &spec)?;
            if let (true, [id]) = (cancel, ids.as_slice()) {
                self.canceled = Some(Canceled::Queued {
                    runner_pool,
                    id: *id,
                });
            }
        }
        if let Some(Canceled::Queued { runner_pool, id }) = self.canceled {
            match world.outcome(runner_pool, id) {
                Some(Outcome::Queued | Outcome::Assigned) => {}
                Some(Outcome::Running) => {
                    world.cancel(runner_pool, id)?;
                    self.canceled = Some(Canceled::Done);
                }
                // It ended otherwise; the figures will tell.
                _ => self.canceled = Some(Canceled::Done),
            }
        }
        Ok(())
    }

    /// Whether there is nothing left to do.
    pub(crate) fn is_done(&self) -> bool {
        self.batches.is_empty() && matches!(self.canceled, Some(Canceled::Done))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mixed_load_has_exactly_as_many_jobs_as_asked_for_in_order_of_time() {
        for jobs in [1, 2, 16, 40, 41, 1000] {
            let load = Load::mixed(jobs);
            assert_eq!(
                load.batches.iter().map(|batch| batch.count).sum::<usize>(),
                jobs
            );
            assert!(
                load.batches.is_sorted_by_key(|batch| batch.at),
                "{:?}",
                load.batches
            );
            assert_eq!(
                load.batches
                    .iter()
                    .filter(|batch| batch.duration == UNTIL_CANCELED)
                    .count(),
                1
            );
        }
    }
}
