//! Users: jobs come, jobs are cancelled, RunnerPools come back, and garbage collection does its part.

use std::collections::BTreeSet;

use api::{Mode, Placeholders, Profile, RunnerPool};
use azure_devops_simulator::{JobResult, JobSpec};
use kube::api::{DeleteParams, Preconditions};

use super::{Apart, Event, Simulation};
use crate::{
    clock::{HOUR, Millis, SECOND},
    cluster::Deletion,
    scenario::{
        AGENT_POOLS, ORGANIZATION, can_run, capabilities, demands, of_templates, programs, spelled,
    },
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
        self.cancel_hopeless_jobs(agent_pool);
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
        let whom = u64::try_from(agent_pool).unwrap_or_default();
        let mut spelling = self.apart(self.now, whom, Apart::Spelling);
        for _ in 0..count {
            let demands: Vec<String> = (demands(&mut self.random, &offered).iter())
                .map(|demand| spelled(&mut spelling, demand))
                .collect();
            let duration = self.random.wait(self.scenario.job_duration);
            let fails = self.random.permille(80);
            self.queue_job(agent_pool, &demands, duration, fails);
        }
    }

    /// The RunnerPools of an agent pool.
    fn pools_of(&self, agent_pool: usize) -> impl Iterator<Item = &RunnerPool> {
        let pools = self.cluster.pools.values().map(|pool| &**pool);
        pools.filter(move |pool| pool.spec.pool == AGENT_POOLS[agent_pool])
    }

    /// The profiles of all RunnerPools of an agent pool.
    fn profiles(&self, agent_pool: usize) -> impl Iterator<Item = Profile<'_>> {
        let pools = self.pools_of(agent_pool);
        pools.flat_map(|pool| pool.spec.all_profiles())
    }

    /// Those of them that have placeholders.
    pub(crate) fn announced(&self, agent_pool: usize) -> impl Iterator<Item = Profile<'_>> {
        let pools = self.pools_of(agent_pool).filter(|pool| announces(pool));
        pools.flat_map(|pool| pool.spec.all_profiles())
    }

    /// What users demand in an agent pool: what its RunnerPools declare, be it true or not, what their agents have, and what
    /// hosts of strangers have.
    pub(crate) fn offered(&self, agent_pool: usize) -> Vec<String> {
        let mut offered = Vec::new();
        for profile in self.profiles(agent_pool) {
            let names = profile.capabilities.keys().map(|name| (*name).to_owned());
            offered.extend(names);
            let values = profile.environment().chain(of_templates(&profile));
            let values = values.filter(|(_, value)| !value.is_empty());
            offered.extend(values.map(|(name, value)| format!("{name} -equals {value}")));
            let programs = programs(profile.image).iter();
            offered.extend(programs.map(|name| (*name).to_owned()));
        }
        offered.extend(self.offered_by_hosts(agent_pool));
        offered.sort();
        offered.dedup();
        offered
    }

    /// Demands that are declared and true, so that Azure DevOps queues them even if no agent ran yet.
    pub(crate) fn promised(&self, agent_pool: usize) -> Vec<String> {
        let true_of_some = |name: &String| {
            let mut profiles = self.announced(agent_pool);
            profiles.any(|profile| can_run(&capabilities(&profile), std::slice::from_ref(name)))
        };
        let mut promised: Vec<String> = self
            .announced(agent_pool)
            .flat_map(|profile| profile.capabilities.into_keys())
            .map(str::to_owned)
            .filter(true_of_some)
            .collect();
        promised.sort();
        promised.dedup();
        promised
    }

    /// Whether a placeholder says that agents can run a job: a profile's agents have what it demands, and all of that is
    /// declared or given to them, so that it need not be learned first. A RunnerPool that is paused may lack some.
    pub(crate) fn is_promised(&self, agent_pool: usize, demands: &[String]) -> bool {
        let pools = self.pools_of(agent_pool).filter(|pool| {
            let gone = pool.metadata.deletion_timestamp.is_some();
            announces(pool) && pool.spec.mode != Mode::Paused && !gone
        });
        let mut profiles = pools.flat_map(|pool| pool.spec.all_profiles());
        profiles.any(|profile| {
            let known = profile.capabilities.keys().copied();
            let known: BTreeSet<String> = known
                .chain(profile.environment().map(|(name, _)| name))
                .map(str::to_lowercase)
                .collect();
            let mut truth = capabilities(&profile);
            truth.retain(|name, _| known.contains(name));
            can_run(&truth, demands)
        })
    }

    /// Whether some RunnerPool of an agent pool has agents that can run a job.
    pub(crate) fn can_run(&self, agent_pool: usize, demands: &[String]) -> bool {
        let mut profiles = self.profiles(agent_pool);
        profiles.any(|profile| can_run(&capabilities(&profile), demands))
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

    /// Users cancel the jobs that nobody can run where a RunnerPool has no placeholders: only memory remembers it there, and
    /// each new leader starts agents to find it out once more.
    pub(crate) fn cancel_hopeless_jobs(&mut self, agent_pool: usize) {
        let here = |pool: &&RunnerPool| pool.spec.pool == AGENT_POOLS[agent_pool];
        let to_come = self.scenario.pools.iter().filter(here);
        if self.pools_of(agent_pool).chain(to_come).all(announces) {
            return;
        }
        let jobs = self.world.unfinished_jobs(self.handle(agent_pool));
        let hopeless: Vec<i64> = jobs
            .filter(|job| job.agent.is_none() && !self.can_run(agent_pool, job.demands))
            .map(|job| job.id)
            .collect();
        let now = self.time();
        for job in hopeless {
            self.effect_of("cancel", "");
            self.book
                .tell(self.now, "user", || format!("cancels job {job}"));
            // One that ended just now is as good.
            let _ = self.world.cancel_job(now, ORGANIZATION, job);
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
        self.troubles.disturbed_at = self.now;
        self.effect_of("create", &key.to_string());
        self.book
            .tell(self.now, "user", || format!("creates {key} again"));
        self.cluster.put_pool(wanted, self.now);
    }

    /// Garbage collection: what a RunnerPool owned goes after it. `seen_at`: when who let it go last saw which agents are
    /// registered.
    pub(crate) fn collect(&mut self, uid: &str, seen_at: Millis) {
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
                .delete_pod(&name, &DeleteParams::default(), self.now);
            if matches!(deleted, Ok(Deletion::Asked)) {
                self.judge_end(number, true, seen_at);
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

/// Whether a RunnerPool has placeholders.
pub(crate) fn announces(pool: &RunnerPool) -> bool {
    pool.spec.placeholders == Placeholders::Enabled
}
