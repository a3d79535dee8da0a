//! Jobs that come at the worst moment: right after the operator has looked at an agent pool in which an agent has been idle
//! for a while. What it decides upon that look, it decides without knowing of them.
//!
//! Without them a removal meets an arriving job once in hundreds of removals, and a run of minutes would show nothing.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use azure_devops_simulator::{JobSpec, Moment, Passing, Simulator, World};
use jiff::{SignedDuration, Timestamp};

use super::{pools::ORGANIZATION, random::Random};

/// An agent that has been idle for so long may be about to be removed.
const IDLE: SignedDuration = SignedDuration::from_secs(4);
/// In how many of a hundred such moments a job comes. Not in all, or no agent would ever be idle for long.
const PERCENT: u32 = 25;
/// How long such a job takes: longer than an agent that is stopped needs to end.
const MILLIS: (u32, u32) = (2_000, 8_000);

/// What lies in wait, until it is called off.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ambush {
    over: Arc<AtomicBool>,
    jobs: Arc<AtomicUsize>,
}

impl Ambush {
    /// Lies in wait for looks at agent pools, given by id with their names.
    pub(crate) fn lay(
        simulator: &Simulator,
        agent_pools: BTreeMap<i64, &'static str>,
        mut random: Random,
    ) -> Self {
        let ambush = Self::default();
        let Self { over, jobs } = ambush.clone();
        simulator.on_request(move |world, now, passing| {
            let pool = looked_at(passing).and_then(|id| agent_pools.get(&id));
            let Some(pool) = pool.filter(|_| !over.load(Ordering::Relaxed)) else {
                return;
            };
            if !has_idle_agent(world, now, pool) || !random.percent(PERCENT) {
                return;
            }
            let spec = JobSpec {
                name: "right after a look".to_owned(),
                duration: random.millis(MILLIS.0, MILLIS.1),
                ..JobSpec::default()
            };
            // The pool is there, as an agent is in it.
            if world.queue_jobs(now, ORGANIZATION, pool, &spec).is_ok() {
                jobs.fetch_add(1, Ordering::Relaxed);
            }
        });
        ambush
    }

    /// No more of it.
    pub(crate) fn call_off(&self) {
        self.over.store(true, Ordering::Relaxed);
    }

    /// How many jobs came that way.
    pub(crate) fn jobs(&self) -> usize {
        self.jobs.load(Ordering::Relaxed)
    }
}

/// The agent pool that a look of the operator was at. A look has two requests; which of them is the last is open. Agents
/// ask for themselves by name.
fn looked_at(passing: &Passing<'_>) -> Option<i64> {
    let is_look = match passing.asked.operation {
        "Agents.List" => passing.request.parameter("agentName").is_none(),
        "JobRequests.List" => true,
        _ => false,
    };
    let pool = passing.asked.pool;
    pool.filter(|_| is_look && passing.moment == Moment::After { status: 200 })
}

fn has_idle_agent(world: &World, now: Timestamp, pool: &str) -> bool {
    let (Ok(agents), Ok(jobs)) = (
        world.agents(ORGANIZATION, pool),
        world.jobs(ORGANIZATION, pool),
    ) else {
        return false;
    };
    agents.iter().any(|agent| {
        let free = agent.online && agent.enabled && agent.assigned_request.is_none();
        let of_this_agent = jobs
            .iter()
            .filter(|job| job.agent.as_ref() == Some(&agent.name));
        let last_end = of_this_agent.filter_map(|job| job.finished).max();
        free && last_end.is_none_or(|end| end + IDLE <= now)
    })
}
