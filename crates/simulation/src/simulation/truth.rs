//! The judge: compares what happened with what is allowed. It knows both models and who did what, and uses no rule of
//! the planner.

use std::sync::Arc;

use api::RunnerPool;
use azure_devops_simulator::{Outcome, world::direct::PoolHandle};
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use kube::{ResourceExt as _, api::Preconditions};

use super::{Machine, Simulation};
use crate::{
    book::Breach,
    clock::{Millis, SECOND},
    cluster::{Name, goes, has_ended, is_waiting, mounts, owner},
    scenario::AGENT_POOLS,
};

/// Who registered an agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// The agent in this Pod.
    Agent(usize),
    /// The operator, for this RunnerPool.
    Placeholder(usize),
    /// Somebody else.
    Stranger { since: Millis },
}

impl Simulation {
    /// Jobs that ended: none may have been ended by the operator.
    pub(crate) fn judge_jobs(&mut self, agent_pool: usize) {
        let state = &self.agent_pools[agent_pool];
        let ended: Vec<(i64, Option<i64>, Outcome)> = self
            .world
            .finished_jobs(state.handle, state.judged)
            .map(|job| (job.id, job.agent, job.outcome))
            .collect();
        self.agent_pools[agent_pool].judged += ended.len();
        for (job, agent, outcome) in ended {
            let counts = &mut self.book.counts;
            match outcome {
                Outcome::Succeeded | Outcome::Failed => counts.jobs_run += 1,
                Outcome::Canceled => counts.jobs_canceled += 1,
                Outcome::Refused => {
                    counts.jobs_refused += 1;
                    self.book
                        .tell(self.now, "Azure DevOps", || format!("refuses job {job}"));
                    self.judge_refusal(agent_pool, job);
                }
                _ => self.judge_loss(job, agent),
            }
            self.book.effect(self.now, outcome_name(outcome), "");
        }
    }

    /// Azure DevOps refused a job, as no agent is registered that has what it demands.
    fn judge_refusal(&mut self, agent_pool: usize, job: i64) {
        let pools = self.cluster.pools.values();
        let pools = pools.filter(|pool| pool.spec.pool == AGENT_POOLS[agent_pool]);
        let intervals = pools.map(|pool| pool.spec.poll_interval_seconds);
        let look = SECOND * Millis::from(intervals.max().unwrap_or_default());
        let demands = self.world.job_line(self.handle(agent_pool), job);
        let demands = demands.map(|job| job.demands.to_vec()).unwrap_or_default();
        if self.troubles.are_settled(self.now, look) && self.is_promised(agent_pool, &demands) {
            let detail = format!("job {job}, which demands {demands:?}");
            self.book.fail(Breach::JobRefused, self.now, detail);
        }
    }

    fn judge_loss(&mut self, job: i64, agent: Option<i64>) {
        let origin = agent.and_then(|agent| self.origins.get(&agent)).copied();
        let machine = match origin {
            Some(Origin::Agent(number)) => Some(&self.machines[number]),
            _ => None,
        };
        let what = match origin {
            Some(Origin::Stranger { .. }) if agent.is_some_and(|id| self.is_gone(id)) => {
                Some("was a stranger's, and failed")
            }
            _ => machine.and_then(|machine| machine.outside),
        };
        if let Some(what) = what {
            self.book.counts.jobs_lost_outside += 1;
            self.book.tell(self.now, "Azure DevOps", || {
                format!("job {job} is lost: its agent {what}")
            });
            return;
        }
        self.book.counts.jobs_killed += 1;
        let whose = machine.map_or_else(String::new, |machine| machine.name.1.clone());
        let detail = format!("job {job} on {whose}");
        self.book.fail(Breach::JobKilled, self.now, detail);
    }

    /// A Pod was created: there must not be too many.
    pub(crate) fn judge_creation(&mut self, operator: usize, object: &Arc<RunnerPool>, pod: &Pod) {
        let uid = object.metadata.uid.as_deref();
        let pods = self.cluster.pods.values();
        let alive = pods
            .filter(|pod| owner(pod) == uid && !has_ended(pod))
            .count();
        // Of all schedules: the operator's clock may be wrong, and the creation on its way when one ends.
        let schedules = object.spec.schedules.iter();
        let most = schedules
            .filter_map(|schedule| schedule.max_agents)
            .fold(object.spec.max_agents, u32::max);
        let most = usize::try_from(most).unwrap_or(usize::MAX);
        if alive <= most {
            return;
        }
        let others = self.others_act(operator);
        if others && alive <= most * 2 {
            let above = u64::try_from(alive - most).unwrap_or_default();
            let counts = &mut self.book.counts;
            counts.above_maximum_with_two = counts.above_maximum_with_two.max(above);
            return;
        }
        let detail = format!("{alive} of {most} with {}", pod.name_any());
        self.book.fail(Breach::AboveMaximum, self.now, detail);
    }

    /// Whether another operator acts, or something that a former one sent is still on its way or not yet told.
    pub(super) fn others_act(&self, operator: usize) -> bool {
        let asked = self.asks.iter().flatten();
        let asked = asked.filter(|ask| ask.operator != operator);
        self.living().iter().any(|&other| other != operator) || asked.count() > 0
    }

    /// The operator deletes a Pod. `seen_at`: when it last saw which agents are registered.
    pub(crate) fn judge_deletion(
        &mut self,
        object: &Arc<RunnerPool>,
        name: &Name,
        uid: &str,
        seen_at: Millis,
    ) {
        let Some(&number) = self.by_uid.get(uid) else {
            let detail = format!("Pod {}", name.1);
            self.book.fail(Breach::StrangerTouched, self.now, detail);
            return;
        };
        self.deletion_asked(number);
        if object.metadata.uid.as_deref() != Some(&self.machines[number].owner) {
            let detail = format!("Pod {} of another RunnerPool", name.1);
            self.book.fail(Breach::StrangerTouched, self.now, detail);
        }
        let stored = self.cluster.pods.get(name);
        let silent = object.metadata.deletion_timestamp.is_some()
            || object.spec.mode == api::Mode::Drained
            || stored.is_some_and(|pod| is_waiting(pod));
        self.judge_end(number, silent, seen_at);
    }

    /// The operator ends a Pod, be it that it lets its RunnerPool go. `silent`: it did not wait for its agent any more, or its
    /// node has not told that it runs.
    pub(crate) fn judge_end(&mut self, number: usize, silent: bool, seen_at: Millis) {
        self.machines[number].ended_by_operator = true;
        let machine = &self.machines[number];
        let Some(job) = self.job_of(machine) else {
            return;
        };
        if silent && machine.registered_at >= seen_at {
            // Nobody could know, as no look shows its agent. If the job did not end well now, that would count.
            self.book.counts.stopped_unheard += 1;
            return;
        }
        let detail = format!("Pod {} ended while it has job {job}", machine.name.1);
        self.book.fail(Breach::BusyDisturbed, self.now, detail);
    }

    /// The job that an agent has.
    fn job_of(&self, machine: &Machine) -> Option<i64> {
        if !machine.is_running() || self.nodes[machine.node].lost {
            return None;
        }
        let handle = self.handle(machine.agent_pool);
        let assigned = machine
            .registration
            .and_then(|id| self.world.agent_line(handle, id))
            .and_then(|agent| agent.assigned);
        // A job that the service has given up may still run, to no avail.
        let runs = |job: &i64| {
            let job = self.world.job_line(handle, *job);
            job.is_some_and(|job| !job.outcome.is_finished())
        };
        machine.worker.or(assigned).filter(runs)
    }

    /// The operator declares a Pod failed. Its node tears down what has begun to run meanwhile.
    pub(crate) fn judge_giving_up(
        &mut self,
        object: &Arc<RunnerPool>,
        name: &Name,
        uid: &str,
        seen_at: Millis,
    ) {
        let number = self.by_uid.get(uid);
        if number.is_none_or(|&number| self.machines[number].is_running()) {
            self.judge_deletion(object, name, uid, seen_at);
        }
    }

    /// The operator marks a Pod.
    pub(crate) fn judge_mark(&mut self, name: &Name) {
        if self.strangers_pods.contains_key(name) {
            let detail = format!("Pod {} marked", name.1);
            self.book.fail(Breach::StrangerTouched, self.now, detail);
        }
    }

    /// The operator disables an agent.
    pub(crate) fn judge_disabling(&mut self, id: i64) {
        if self.strangers.contains_key(&id) {
            let detail = format!("registration {id} disabled");
            self.book.fail(Breach::StrangerTouched, self.now, detail);
        }
    }

    /// The operator changes what a registration carries: only a placeholder's, and only its own.
    pub(crate) fn judge_update(&mut self, pool: usize, id: i64) {
        let own = matches!(self.origins.get(&id), Some(Origin::Placeholder(of)) if *of == pool);
        if !own {
            let detail = format!("registration {id} overwritten");
            self.book.fail(Breach::StrangerTouched, self.now, detail);
        }
    }

    /// The operator deletes a registration: what would be wrong with that.
    pub(crate) fn judge_removal(
        &self,
        pool: usize,
        handle: PoolHandle,
        id: i64,
    ) -> Option<(Breach, String)> {
        if self.strangers.contains_key(&id) {
            return Some((
                Breach::StrangerTouched,
                format!("registration {id} deleted"),
            ));
        }
        match self.origins.get(&id) {
            Some(Origin::Agent(number)) => {
                let machine = &self.machines[*number];
                let lost = self.nodes[machine.node].lost;
                if self.scenario.pools[machine.pool].metadata.namespace
                    != self.scenario.pools[pool].metadata.namespace
                    || machine.pool != pool
                {
                    return Some((
                        Breach::StrangerTouched,
                        format!(
                            "registration of {} deleted for another RunnerPool",
                            machine.agent
                        ),
                    ));
                }
                let runs = |job: i64| {
                    let job = self.world.job_line(handle, job);
                    job.is_some_and(|job| !job.outcome.is_finished())
                };
                let busy = machine.is_running() && !lost && machine.worker.is_some_and(runs);
                busy.then(|| {
                    (
                        Breach::BusyDisturbed,
                        format!("registration of {} deleted while it works", machine.agent),
                    )
                })
            }
            Some(Origin::Placeholder(of)) if *of != pool => Some((
                Breach::StrangerTouched,
                format!("placeholder {id} of another RunnerPool deleted"),
            )),
            _ => {
                let busy = self.world.agent_line(handle, id)?.assigned?;
                Some((Breach::BusyDisturbed, format!("{id} had job {busy}")))
            }
        }
    }

    pub(crate) fn fail_if(&mut self, judged: Option<(Breach, String)>) {
        if let Some((breach, detail)) = judged {
            self.book.fail(breach, self.now, detail);
        }
    }

    /// An agent of ours registers over another registration.
    pub(crate) fn judge_replacement(&mut self, number: usize, id: i64) {
        let Some(Origin::Stranger { since }) = self.origins.get(&id).copied() else {
            return;
        };
        self.strangers.remove(&id);
        let machine = &self.machines[number];
        // Who registered after the operator looked was overlooked by nobody.
        if since < machine.maker.names_seen_at {
            let detail = format!("{} registered over a stranger's agent", machine.agent);
            self.book.fail(Breach::StrangerTouched, self.now, detail);
        } else {
            self.book.counts.trouble("name taken meanwhile");
        }
    }

    /// A container starts: no other one may run an agent of that name.
    pub(crate) fn judge_identity(&mut self, number: usize) {
        let machine = &self.machines[number];
        let twin = self.machines.iter().position(|other| {
            other.uid != machine.uid
                && other.is_running()
                && other.agent_pool == machine.agent_pool
                && other.agent == machine.agent
                && !self.nodes[other.node].lost
        });
        let Some(twin) = twin else { return };
        if self.machines[twin].outside.is_some() && self.machines[twin].gone {
            return;
        }
        if self.made_at_once(number, twin) {
            self.book.counts.identities_shared_with_two += 1;
            return;
        }
        let detail = format!(
            "{} in {} and in {}",
            machine.agent, machine.name.0, self.machines[twin].name.0
        );
        self.book.fail(Breach::IdentityShared, self.now, detail);
    }

    /// An agent gave up as another session of its name is alive.
    pub(crate) fn judge_session_conflict(&mut self, number: usize) {
        let machine = &self.machines[number];
        let twins = 0..self.machines.len();
        let mut twins = twins.filter(|&twin| {
            let twin = &self.machines[twin];
            twin.is_running()
                && twin.uid != machine.uid
                && twin.registration == machine.registration
        });
        if twins.any(|twin| self.made_at_once(number, twin)) {
            // Counted when the second of them started.
            return;
        }
        let detail = format!("{} met a live session", machine.agent);
        self.book.fail(Breach::IdentityShared, self.now, detail);
    }

    /// Whether two Pods of different RunnerPools were made by two operators that acted at the same time.
    fn made_at_once(&self, number: usize, twin: usize) -> bool {
        let (one, other) = (&self.machines[number], &self.machines[twin]);
        one.pool != other.pool
            && one.maker.operator != other.maker.operator
            && (one.maker.with_others || other.maker.with_others)
    }

    /// A claim was created.
    pub(crate) fn note_claim(&mut self, claim: &PersistentVolumeClaim) {
        if !goes(claim) {
            let name = (claim.namespace().unwrap_or_default(), claim.name_any());
            self.kept.insert(name, claim.uid().unwrap_or_default());
        }
    }

    /// The operator deletes a claim.
    pub(crate) fn judge_claim_deletion(&mut self, name: &Name, preconditions: &Preconditions) {
        let Some(claim) = self.cluster.claims.get(name) else {
            return;
        };
        if preconditions.uid.is_some() && preconditions.uid != claim.metadata.uid {
            return;
        }
        if self.strangers_claims.contains_key(name) {
            let detail = format!("claim {} deleted", name.1);
            self.book.fail(Breach::StrangerTouched, self.now, detail);
        } else if !goes(claim) {
            self.book
                .fail(Breach::KeptClaimDeleted, self.now, name.1.clone());
        }
    }

    /// A container starts: the claims that it mounts have to be there. One that is deleted while a Pod mounts it stays as
    /// long as the Pod, so deleting it is no harm; deleting it before the Pod was created is. Whether they are there.
    pub(crate) fn judge_mounts(&mut self, number: usize) -> bool {
        let name = &self.machines[number].name;
        let Some(pod) = self.cluster.pods.get(name) else {
            return true;
        };
        let claims: Vec<Name> = mounts(pod)
            .map(|claim| (name.0.clone(), claim.to_owned()))
            .collect();
        let mut strangers = claims.iter();
        let stranger = strangers.find(|claim| self.strangers_claims.contains_key(claim));
        self.fail_if(stranger.map(|claim| {
            let detail = format!("claim {} mounted", claim.1);
            (Breach::StrangerTouched, detail)
        }));
        let mut claims = claims.iter();
        let missing = claims.find(|claim| !self.cluster.claims.contains_key(claim));
        match &missing {
            // Between the claim that one operator made and its Pod, another may take the claim for one that nobody has.
            Some(claim) if self.contested_claims.contains(claim) => {
                self.book.counts.claims_missing_with_two += 1;
            }
            Some((_, claim)) => {
                self.book
                    .fail(Breach::ClaimInUseDeleted, self.now, claim.clone());
            }
            None => {}
        }
        missing.is_none()
    }
}

fn outcome_name(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Queued | Outcome::Assigned | Outcome::Running => "open",
        Outcome::Succeeded => "succeeded",
        Outcome::Failed => "failed",
        Outcome::Canceled => "canceled",
        Outcome::Refused => "refused",
        Outcome::Killed => "killed",
    }
}
