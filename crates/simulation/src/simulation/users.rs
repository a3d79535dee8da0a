//! Users: jobs come, jobs are cancelled, RunnerPools come back, and garbage collection does its part.

use api::RunnerPool;
use azure_devops_simulator::{JobResult, JobSpec, Outcome};
use kube::api::Preconditions;

use super::{Event, Simulation};
use crate::{
    clock::{HOUR, Millis, SECOND},
    scenario::{AGENT_POOLS, ORGANIZATION, demands},
};

impl Simulation {
    pub(crate) fn next_arrival(&mut self, agent_pool: usize) {
        let rate = self.scenario.jobs_an_hour[agent_pool];
        // Every third arrival is a burst of four on average.
        let mean = HOUR * 2 / i64::try_from(rate.max(1)).unwrap_or(1);
        let wait = self.random.wait(mean);
        self.after(wait, Event::Arrival(agent_pool));
    }

    /// Jobs are queued.
    pub(crate) fn arrival(&mut self, agent_pool: usize) {
        if self.now >= self.end {
            return;
        }
        self.next_arrival(agent_pool);
        let mut pools = self.scenario.pools.iter();
        if !pools.any(|pool| pool.spec.pool == AGENT_POOLS[agent_pool]) {
            return;
        }
        let count = if self.random.permille(330) {
            self.random.between(2, 6)
        } else {
            1
        };
        let offered = self.offered(agent_pool);
        for _ in 0..count {
            let demands = demands(&mut self.random, &offered);
            let duration = self.random.wait(self.scenario.job_duration);
            let fails = self.random.permille(80);
            self.queue_job(agent_pool, &demands, duration, fails);
        }
    }

    /// Capabilities that RunnerPools offer in an agent pool now.
    pub(crate) fn offered(&self, agent_pool: usize) -> Vec<String> {
        let pools = self.cluster.pools.values();
        let mut offered: Vec<String> = pools
            .filter(|pool| pool.spec.pool == AGENT_POOLS[agent_pool] && pool.spec.capability_aware)
            .flat_map(|pool| pool.spec.capability_images.keys().cloned())
            .collect();
        offered.sort();
        offered.dedup();
        offered
    }

    /// What every RunnerPool of an agent pool offers. A job is not yet brought to the one that offers what it demands: the
    /// others make agents of their own for it, in vain, and where these fill their maximum it may wait for ever.
    fn offered_by_all(&self, agent_pool: usize) -> Vec<String> {
        let pools = self.cluster.pools.values();
        let pools = pools.filter(|pool| pool.spec.pool == AGENT_POOLS[agent_pool]);
        let offers = |pool: &RunnerPool, demand: &String| {
            pool.spec.capability_aware && pool.spec.capability_images.contains_key(demand)
        };
        let mut offered = self.offered(agent_pool);
        offered.retain(|demand| pools.clone().all(|pool| offers(pool, demand)));
        offered
    }

    pub(crate) fn queue_job(
        &mut self,
        agent_pool: usize,
        demands: &[String],
        duration: Millis,
        fails: bool,
    ) {
        let spec = JobSpec {
            demands: demands.to_vec(),
            duration: std::time::Duration::from_millis(u64::try_from(duration).unwrap_or_default()),
            result: if fails {
                JobResult::Failed
            } else {
                JobResult::Succeeded
            },
            ..JobSpec::default()
        };
        let now = self.time();
        let queued = self
            .world
            .queue_jobs(now, ORGANIZATION, AGENT_POOLS[agent_pool], &spec);
        self.book.counts.jobs += 1;
        self.effect_of("job", &demands.join(","));
        self.book.tell(self.now, "user", || {
            format!(
                "queues job {queued:?} in {} for {} s, demands {demands:?}",
                AGENT_POOLS[agent_pool],
                duration / SECOND
            )
        });
    }

    /// A user cancels a job.
    pub(crate) fn cancel_job(&mut self) -> bool {
        let agent_pool = self.random.index(self.agent_pools.len());
        let handle = self.handle(agent_pool);
        let jobs: Vec<i64> = self
            .world
            .unfinished_jobs(handle)
            .map(|job| job.id)
            .collect();
        if jobs.is_empty() {
            return false;
        }
        let job = *self.random.pick(&jobs);
        self.effect_of("cancel", "");
        self.book
            .tell(self.now, "user", || format!("cancels job {job}"));
        let now = self.time();
        self.world.cancel_job(now, ORGANIZATION, job).is_ok()
    }

    /// Users cancel what not every RunnerPool of its agent pool offers: it might wait for ever.
    pub(crate) fn cancel_what_not_all_offer(&mut self) {
        for agent_pool in 0..self.agent_pools.len() {
            let offered = self.offered_by_all(agent_pool);
            let handle = self.handle(agent_pool);
            let vain: Vec<i64> = self
                .world
                .unfinished_jobs(handle)
                .filter(|job| job.outcome == Outcome::Queued)
                .filter(|job| !job.demands.iter().all(|demand| offered.contains(demand)))
                .map(|job| job.id)
                .collect();
            let now = self.time();
            for job in vain {
                // It may end in this very moment.
                let _ = self.world.cancel_job(now, ORGANIZATION, job);
            }
        }
    }

    /// A RunnerPool that was deleted is created again, under the same name; as long as the former one is there, later.
    pub(crate) fn pool_again(&mut self, pool: usize) {
        if !self.troubles.deleted[pool] {
            return;
        }
        let wanted = self.scenario.pools[pool].clone();
        let key = crate::cluster::key(&wanted);
        if self.cluster.pools.contains_key(&key) {
            self.after(20 * SECOND, Event::PoolAgain(pool));
            return;
        }
        self.troubles.deleted[pool] = false;
        self.effect_of("create", &key.to_string());
        self.book
            .tell(self.now, "user", || format!("creates {key} again"));
        self.cluster.put_pool(wanted, self.now);
    }

    /// Garbage collection: what a RunnerPool owned goes after it.
    pub(crate) fn collect(&mut self, uid: &str) {
        let (pods, claims) = self.cluster.owned_by(uid);
        for name in pods {
            let Some(pod) = self.cluster.pods.get(&name) else {
                continue;
            };
            let pod = pod.metadata.uid.clone().unwrap_or_default();
            let Some(&number) = self.by_uid.get(&pod) else {
                continue;
            };
            let deleted = self
                .cluster
                .delete_pod(&name, &Preconditions::default(), self.now);
            if deleted.is_ok() {
                self.machines[number].ended_by_operator = true;
                self.tell_pod(number, "is collected after its RunnerPool");
                self.deletion_asked(number);
            }
        }
        for name in claims {
            // One that is gone already is as good.
            let _ = self
                .cluster
                .delete_claim(&name, &Preconditions::default(), self.now);
        }
    }

    /// Index of the agent pool that a RunnerPool looks at.
    pub(crate) fn agent_pool_of(&self, pool: usize) -> usize {
        let wanted = &self.scenario.pools[pool].spec.pool;
        let mut known = AGENT_POOLS.iter();
        known.position(|name| name == wanted).unwrap_or_default()
    }
}
