//! What happened, of one RunnerPool: its jobs by the simulator's books and its Pods by the watch. Figures and picture are
//! computed from it, after the fact and without sampling.

use azure_devops_simulator::JobView;
use jiff::Timestamp;

use crate::pods::PodLife;

/// The history of one RunnerPool.
#[derive(Clone, Debug)]
pub(crate) struct History {
    pub(crate) runner_pool: String,
    pub(crate) agent_pool: String,
    pub(crate) min_agents: usize,
    pub(crate) max_agents: usize,
    /// The most agents at any time.
    pub(crate) most_agents: usize,
    pub(crate) jobs: Vec<JobView>,
    pub(crate) pods: Vec<PodLife>,
}

impl History {
    /// Jobs that waited for an agent.
    pub(crate) fn queued_at(&self, time: Timestamp) -> usize {
        self.jobs
            .iter()
            .filter(|job| job.queued <= time && waited_until(job).is_none_or(|end| end > time))
            .count()
    }

    /// Agents that existed: Pods that were not finished.
    pub(crate) fn agents_at(&self, time: Timestamp) -> usize {
        self.pods
            .iter()
            .filter(|pod| pod.created <= time && pod.ended.is_none_or(|end| end > time))
            .count()
    }

    /// Every moment at which one of the numbers changed, in order.
    pub(crate) fn changes(&self) -> Vec<Timestamp> {
        let jobs = self
            .jobs
            .iter()
            .flat_map(|job| [Some(job.queued), waited_until(job)]);
        let pods = self
            .pods
            .iter()
            .flat_map(|pod| [Some(pod.created), pod.ended]);
        let mut times: Vec<Timestamp> = jobs.chain(pods).flatten().collect();
        times.sort_unstable();
        times.dedup();
        times
    }

    /// The Pod of the agent that got the job.
    pub(crate) fn pod_of(&self, job: &JobView) -> Option<&PodLife> {
        let (agent, assigned) = (job.agent.as_deref()?, job.assigned?);
        // Names are used again: it is the last one before.
        self.pods
            .iter()
            .filter(|pod| pod.name == agent && pod.created <= assigned)
            .max_by_key(|pod| pod.created)
    }

    /// Whether there was room for one more agent when the job was queued: the agents of that time, and those that the
    /// jobs before it were waiting for, left one under `maxAgents`.
    pub(crate) fn had_room(&self, job: &JobView) -> bool {
        let before = self.jobs.iter().filter(|other| {
            (other.queued, other.id) < (job.queued, job.id)
                && waited_until(other).is_none_or(|end| end > job.queued)
        });
        self.agents_at(job.queued) + before.count() < self.max_agents
    }
}

/// When a job's wait ended: an agent was reserved, or the job ended without one.
fn waited_until(job: &JobView) -> Option<Timestamp> {
    job.assigned.or(job.finished)
}

#[cfg(test)]
pub(super) mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may panic")]

    use azure_devops_simulator::Outcome;

    use super::*;

    pub(crate) fn at(millisecond: i64) -> Timestamp {
        Timestamp::from_millisecond(millisecond).unwrap()
    }

    /// A job with the times of its queueing, assignment and end, that started half a second after its assignment.
    pub(crate) fn job(id: i64, agent: &str, times: [i64; 3]) -> JobView {
        let [queued, assigned, finished] = times;
        JobView {
            id,
            name: "job".into(),
            demands: Vec::new(),
            outcome: Outcome::Succeeded,
            result: None,
            agent: Some(agent.into()),
            queued: at(queued),
            assigned: Some(at(assigned)),
            received: Some(at(assigned + 500)),
            finished: Some(at(finished)),
            message: None,
        }
    }

    pub(crate) fn pod(name: &str, created: i64, ended: i64) -> PodLife {
        let ended = Some(at(ended));
        PodLife {
            runner_pool: "a".into(),
            name: name.into(),
            created: at(created),
            ended,
            gone: ended,
            ..PodLife::default()
        }
    }

    /// Two agents at most; the third job waits for room and gets a new Pod of an old name.
    pub(crate) fn history() -> History {
        History {
            runner_pool: "a".into(),
            agent_pool: "linux".into(),
            min_agents: 0,
            max_agents: 2,
            most_agents: 2,
            jobs: vec![
                job(1, "a-agent-0", [0, 3000, 6000]),
                job(2, "a-agent-1", [0, 3000, 6000]),
                job(3, "a-agent-0", [0, 9000, 12_000]),
            ],
            pods: vec![
                pod("a-agent-0", 1000, 6000),
                pod("a-agent-1", 2000, 6000),
                pod("a-agent-0", 7000, 12_000),
            ],
        }
    }

    #[test]
    fn numbers_at_a_time_count_what_was_there_then() {
        let history = history();
        let numbers = [0, 1000, 2999, 3000, 6000, 9000, 12_000]
            .map(|time| (history.queued_at(at(time)), history.agents_at(at(time))));
        assert_eq!(
            numbers,
            [(3, 0), (3, 1), (3, 2), (1, 2), (1, 0), (0, 1), (0, 0)]
        );
        assert_eq!(
            history.changes(),
            [0, 1000, 2000, 3000, 6000, 7000, 9000, 12_000].map(at)
        );
    }

    #[test]
    fn a_job_belongs_to_the_last_pod_of_its_agents_name() {
        let history = history();
        let created = |job: usize| history.pod_of(&history.jobs[job]).map(|pod| pod.created);
        assert_eq!(
            [0, 1, 2].map(created),
            [1000, 2000, 7000].map(|time| Some(at(time)))
        );
    }

    #[test]
    fn jobs_beyond_the_maximum_had_no_room() {
        let history = history();
        assert_eq!(
            [0, 1, 2].map(|job| history.had_room(&history.jobs[job])),
            [true, true, false]
        );
    }
}
