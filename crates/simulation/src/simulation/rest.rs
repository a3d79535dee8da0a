//! The end of a run: without trouble and load everything has to come to rest, and then to serve again.

use std::collections::{BTreeMap, BTreeSet};

use api::names;
use azure_devops_simulator::world::direct::JobLine;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;

use super::{BOUND, Simulation, agents::Container, users::announces};
use crate::{
    book::Breach,
    clock::{MINUTE, SECOND, at},
    cluster::{goes, has_ended, key, owner},
    scenario::AGENT_POOLS,
};

/// How often it is looked whether all is at rest.
const LOOK: i64 = 30 * SECOND;
/// How long it takes at the most to bring an agent up and down again.
const FOR_AN_AGENT: i64 = 12 * MINUTE;

impl Simulation {
    pub(crate) fn come_to_rest(&mut self) {
        if !self.rests_within(BOUND) {
            return;
        }
        let took = self.now - self.end;
        self.book.counts.longest_to_rest = took;
        // It still works: one more job for each kind of agent.
        for agent_pool in 0..self.agent_pools.len() {
            // Without placeholders jobs are refused.
            if self.announced(agent_pool).next().is_none() {
                continue;
            }
            for demand in self.promised(agent_pool) {
                self.queue_job(agent_pool, &[demand], MINUTE, false);
            }
            self.queue_job(agent_pool, &[], MINUTE, false);
        }
        self.settle();
        let refused = self.book.counts.jobs_refused;
        if self.rests_within(BOUND) && self.book.counts.jobs_refused > refused {
            let detail = "a job was refused although nothing was wrong".to_owned();
            self.book.fail(Breach::NotConverged, self.now, detail);
        }
    }

    /// Agents that no job was assigned to.
    pub(crate) fn count_in_vain(&mut self) {
        let idle = self.machines.iter();
        let idle = idle.filter(|machine| machine.registration.is_some() && !machine.worked);
        self.book.counts.in_vain = u64::try_from(idle.count()).unwrap_or(u64::MAX);
    }

    /// Whether everything is at rest in time; if not, that is a failure.
    fn rests_within(&mut self, bound: i64) -> bool {
        let end = self.now + bound + self.work_left();
        loop {
            self.until(self.now + LOOK);
            let left = self.unrest();
            if left.is_empty() {
                return true;
            }
            if self.now >= end {
                let waiting = self.waiting_jobs().count();
                self.book.counts.jobs_left += u64::try_from(waiting).unwrap_or(u64::MAX);
                for (breach, detail) in left {
                    self.book.counts.leaked += u64::from(breach == Breach::LeftOver);
                    self.book.fail(breach, self.now, detail);
                }
                return false;
            }
        }
    }

    /// How long the jobs that are left take one after the other, each with an agent of its own.
    fn work_left(&self) -> i64 {
        let duration = |handle, job| {
            self.world
                .job_plan(handle, job)
                .map(|(duration, _)| duration)
        };
        let jobs = self.agent_pools.iter().flat_map(|state| {
            let jobs = self.world.unfinished_jobs(state.handle);
            jobs.filter_map(|job| duration(state.handle, job.id))
        });
        jobs.map(|duration| i64::try_from(duration.as_millis()).unwrap_or_default() + FOR_AN_AGENT)
            .sum()
    }

    fn is_served(&self, agent_pool: usize) -> bool {
        let mut pools = self.cluster.pools.values();
        pools.any(|pool| pool.spec.pool == AGENT_POOLS[agent_pool])
    }

    /// What is not as it should be at rest.
    fn unrest(&self) -> Vec<(Breach, String)> {
        let mut left = Vec::new();
        let mut missing = |detail: String| left.push((Breach::NotConverged, detail));
        if self.living().len() != 1 {
            missing("there is not one operator".into());
        }
        if self.troubles.deleted.iter().any(|deleted| *deleted) {
            missing("a RunnerPool is to be created again".into());
        }
        for (agent_pool, job) in self.waiting_jobs() {
            missing(format!(
                "job {} with {:?} is {:?} in {}",
                job.id, job.demands, job.outcome, AGENT_POOLS[agent_pool]
            ));
        }
        for process in self.operators.iter().flatten() {
            for (desk, pool) in process.pools.iter().zip(&self.scenario.pools) {
                if self.cluster.pools.contains_key(&key(pool))
                    && !(desk.last.content && desk.is_idle())
                {
                    missing(format!("{} still has something to do", key(pool)));
                }
            }
        }
        self.unrest_of_pods(&mut left);
        self.unrest_of_registrations(&mut left);
        let touched = self.touched_strangers().into_iter();
        left.extend(touched.map(|detail| (Breach::StrangerTouched, detail)));
        for (name, uid) in &self.kept {
            let claim = self.cluster.claims.get(name);
            if claim.is_none_or(|claim| claim.metadata.uid.as_ref() != Some(uid)) {
                left.push((Breach::KeptClaimDeleted, name.1.clone()));
            }
        }
        left
    }

    /// Jobs that are not over, by agent pool. What nobody can run waits for ever, and is in nobody's way.
    fn waiting_jobs(&self) -> impl Iterator<Item = (usize, JobLine<'_>)> {
        let pools = self.agent_pools.iter().enumerate();
        let served = pools.filter(|(agent_pool, _)| self.is_served(*agent_pool));
        served.flat_map(move |(agent_pool, state)| {
            let jobs = self.world.unfinished_jobs(state.handle);
            let jobs = jobs.filter(move |job| self.can_run(agent_pool, job.demands));
            jobs.map(move |job| (agent_pool, job))
        })
    }

    fn unrest_of_pods(&self, left: &mut Vec<(Breach, String)>) {
        for pool in self.cluster.pools.values() {
            let uid = pool.metadata.uid.as_deref();
            let pods = self.cluster.pods.values();
            let alive = pods
                .filter(|pod| owner(pod) == uid && !has_ended(pod))
                .count();
            let keep = pool.spec.terminated_pods.unwrap_or_default();
            for (phase, most) in [
                ("Failed", keep.keep_failed),
                ("Succeeded", keep.keep_succeeded),
            ] {
                let pods = self.cluster.pods.values().filter(|pod| owner(pod) == uid);
                let phase_of =
                    |pod: &Pod| pod.status.as_ref().and_then(|status| status.phase.clone());
                let ended = pods
                    .filter(|pod| phase_of(pod).as_deref() == Some(phase))
                    .count();
                if ended > usize::try_from(most).unwrap_or(usize::MAX) {
                    let detail = format!(
                        "{} has {ended} Pods that {phase} instead of {most}",
                        key(pool)
                    );
                    left.push((Breach::LeftOver, detail));
                }
            }
            let profiles = &pool.spec.profiles;
            let beside: u32 = profiles.iter().map(|profile| profile.min_agents).sum();
            let wanted = api::in_force(&pool.spec, at(self.now)).min_agents + beside;
            let wanted = usize::try_from(wanted).unwrap_or_default();
            if alive != wanted {
                let breach = if alive > wanted {
                    Breach::LeftOver
                } else {
                    Breach::NotConverged
                };
                left.push((
                    breach,
                    format!("{} has {alive} agents instead of {wanted}", key(pool)),
                ));
            }
        }
        let uids: BTreeSet<&str> = self
            .cluster
            .pools
            .values()
            .filter_map(|pool| pool.metadata.uid.as_deref())
            .collect();
        let mut used = BTreeSet::new();
        for (name, pod) in &self.cluster.pods {
            let of_pool = owner(pod).is_some_and(|owner| uids.contains(owner));
            if !of_pool && !self.strangers_pods.contains_key(name) {
                left.push((Breach::LeftOver, format!("Pod {}", pod.name_any())));
            }
            let namespace = pod.namespace().unwrap_or_default();
            used.extend(
                crate::cluster::mounts(pod).map(|claim| (namespace.clone(), claim.to_owned())),
            );
        }
        for (name, claim) in &self.cluster.claims {
            let of_stranger = self.strangers_claims.contains_key(name);
            if goes(claim) && !used.contains(name) && !of_stranger {
                left.push((Breach::LeftOver, format!("claim {}", name.1)));
            }
        }
    }

    fn unrest_of_registrations(&self, left: &mut Vec<(Breach, String)>) {
        let online: BTreeSet<i64> = self
            .machines
            .iter()
            .filter(|machine| matches!(machine.container, Container::Running { .. }))
            .filter_map(|machine| machine.registration)
            .collect();
        for (agent_pool, state) in self.agent_pools.iter().enumerate() {
            // Of each RunnerPool and profile, whoever holds the plain name.
            let mut placeholders: BTreeMap<(String, String), usize> = BTreeMap::new();
            for pool in self.cluster.pools.values() {
                if pool.spec.pool != AGENT_POOLS[agent_pool] || !announces(pool) {
                    continue;
                }
                for profile in pool.spec.all_profiles() {
                    let name = names::placeholder(pool.agent_base(), profile.name);
                    placeholders.insert((key(pool).to_string(), name.to_lowercase()), 0);
                }
            }
            for agent in self.world.agent_lines(state.handle) {
                let name = agent.name.to_lowercase();
                let mut given = agent.capabilities(true);
                let owner = given.find(|(name, _)| *name == names::ENV_OWNER);
                let owner = owner.and_then(|(_, mark)| mark.split_once('/'));
                let plain = name.rsplit_once('.').map_or("", |(plain, _)| plain);
                let of = |name: &str| Some((owner?.1.to_owned(), name.to_owned()));
                let keys = [of(&name), of(plain)];
                if let Some(key) = keys
                    .into_iter()
                    .flatten()
                    .find(|key| placeholders.contains_key(key))
                {
                    *placeholders.entry(key).or_default() += 1;
                    continue;
                }
                if self.strangers.contains_key(&agent.id) {
                    continue;
                }
                if !online.contains(&agent.id) {
                    left.push((Breach::LeftOver, format!("registration {}", agent.name)));
                }
            }
            for ((pool, name), count) in placeholders {
                if count != 1 {
                    left.push((
                        Breach::NotConverged,
                        format!("there are {count} placeholders {name} of {pool}"),
                    ));
                }
            }
        }
        for (id, (agent_pool, enabled)) in &self.strangers {
            let agent = self.world.agent_line(self.handle(*agent_pool), *id);
            if agent.is_none_or(|agent| agent.enabled != *enabled) {
                left.push((Breach::StrangerTouched, format!("registration {id}")));
            }
        }
    }

    pub(crate) fn hangs(&self, pod: usize) -> bool {
        self.machines[pod].is_running() && self.machines[pod].is_hanging()
    }

    /// Containers that hung before their start go on.
    pub(crate) fn start_what_hangs(&mut self) {
        let waiting: Vec<usize> = self
            .present()
            .filter(|&pod| self.machines[pod].container == Container::Waiting)
            .collect();
        for pod in waiting {
            let wait = self.random.between(SECOND, MINUTE);
            self.after(wait, super::Event::Pod(pod, super::agents::Step::Starts));
        }
    }
}
