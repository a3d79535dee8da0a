//! Agent pools and the assignment of jobs to agents.
//!
//! Jobs are grouped by what they demand. Each group knows which registered agents meet it, which
//! of them are free, and which jobs wait; so an event costs about as much as there are groups,
//! never jobs times agents.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use jiff::Timestamp;
use serde_json::{Value, json};
use uuid::Uuid;

use super::{
    Context, Deadline, PoolKey,
    agent::{Agent, Message, MessageKind},
    demand::{self, Demand},
    job::{End, Job, JobResult, JobSpec},
    message::Topic,
    session::Session,
    switches::{ExpiredLockResult, MatchedAgents, Switches},
    wire,
};

#[derive(Clone, Debug)]
pub(crate) struct Pool {
    pub(crate) key: PoolKey,
    pub(crate) topic: Topic,
    pub(crate) name: String,
    pub(crate) created_on: Timestamp,
    pub(crate) auto_provision: bool,
    pub(crate) agents: BTreeMap<i64, Agent>,
    pub(crate) names: HashMap<String, i64>,
    pub(crate) sessions: BTreeMap<Uuid, Session>,
    pub(crate) jobs: BTreeMap<i64, Job>,
    pub(crate) unfinished: BTreeSet<i64>,
    /// In the order in which they ended.
    pub(crate) finished: Vec<i64>,
    pub(crate) groups: BTreeMap<Needs, DemandGroup>,
    pub(crate) last_message: i64,
    /// Grows with every change; the control API's long poll compares it.
    pub(crate) revision: u64,
}

/// What a job demands, in its one canonical form.
pub(crate) type Needs = Arc<[Demand]>;

/// All waiting jobs with the same needs.
#[derive(Clone, Debug)]
pub(crate) struct DemandGroup {
    /// Registered agents that meet the demands: offline and disabled ones count.
    registered: BTreeSet<i64>,
    free: BTreeSet<i64>,
    waiting: BTreeSet<i64>,
}

/// Groups without waiting jobs are kept so that a steady trickle of equal jobs does not look at
/// every agent each time; beyond this many they are dropped (jobs that name one agent each).
const GROUP_LIMIT: usize = 256;

impl Pool {
    pub(crate) fn new(key: PoolKey, topic: Topic, name: &str, now: Timestamp) -> Self {
        Self {
            key,
            topic,
            name: name.to_owned(),
            created_on: now,
            auto_provision: false,
            agents: BTreeMap::new(),
            names: HashMap::new(),
            sessions: BTreeMap::new(),
            jobs: BTreeMap::new(),
            unfinished: BTreeSet::new(),
            finished: Vec::new(),
            groups: BTreeMap::new(),
            last_message: 0,
            revision: 1,
        }
    }

    pub(crate) fn json(&self) -> Value {
        json!({
            "id": self.key.pool,
            "name": self.name,
            "createdOn": wire::time(self.created_on),
            "autoProvision": self.auto_provision,
            "autoSize": true,
            "autoUpdate": true,
            "isHosted": false,
            "isLegacy": false,
            "poolType": "automation",
            "scope": self.topic.0,
            "size": self.agents.len(),
            "options": "none",
        })
    }

    pub(crate) fn agent_named(&self, name: &str) -> Option<&Agent> {
        self.names
            .get(&name.to_lowercase())
            .and_then(|id| self.agents.get(id))
    }

    pub(crate) fn changed(&mut self, context: &mut Context<'_>) {
        self.revision += 1;
        context.agenda.wake(self.topic);
    }

    /// Puts jobs into the queue. One that no registered agent can run fails at once, as the
    /// service does it (protocol section 3.5).
    pub(crate) fn queue(
        &mut self,
        first_id: i64,
        spec: &JobSpec,
        context: &mut Context<'_>,
    ) -> Vec<i64> {
        let needs: Needs = demand::normalise(&spec.demands).into();
        let registered = &self.group(&needs, context.switches).registered;
        let refused = registered.is_empty();
        let matched: Arc<[i64]> = match context.switches.matched_agents {
            MatchedAgents::Frozen => registered.iter().copied().collect(),
            MatchedAgents::Recomputed => Arc::default(),
        };
        let mut ids = Vec::with_capacity(spec.count);
        for id in (first_id..).take(spec.count) {
            self.jobs.insert(
                id,
                Job {
                    id,
                    name: spec.name.clone(),
                    demands: spec.demands.clone(),
                    needs: Arc::clone(&needs),
                    duration: spec.duration,
                    planned: spec.result,
                    queue_time: context.now,
                    assign_time: None,
                    receive_time: None,
                    locked_until: None,
                    finish_time: None,
                    result: None,
                    end: None,
                    agent: None,
                    matched: Arc::clone(&matched),
                    plan_id: context.random.uuid(),
                    job_id: context.random.uuid(),
                    cancel_requested: false,
                    message: None,
                },
            );
            self.unfinished.insert(id);
            if refused {
                self.refuse(id, context);
            } else {
                self.wait_or_assign(id, context);
            }
            ids.push(id);
        }
        self.changed(context);
        ids
    }

    fn refuse(&mut self, id: i64, context: &mut Context<'_>) {
        let message = self.jobs.get(&id).map(|job| {
            format!(
                "No agent found in pool {} which satisfies the specified demands: {}",
                self.name,
                job.demands.join(", ")
            )
        });
        self.finish(id, JobResult::Failed, End::NoMatch, context);
        if let Some(job) = self.jobs.get_mut(&id) {
            job.message = message;
        }
    }

    fn wait_or_assign(&mut self, id: i64, context: &mut Context<'_>) {
        let Some(job) = self.jobs.get(&id) else {
            return;
        };
        let needs = Arc::clone(&job.needs);
        let group = self.group(&needs, context.switches);
        group.waiting.insert(id);
        if let Some(&agent) = group.free.first() {
            self.assign(id, agent, context);
        }
    }

    fn group(&mut self, needs: &Needs, switches: &Switches) -> &mut DemandGroup {
        if self.groups.len() >= GROUP_LIMIT && !self.groups.contains_key(needs) {
            self.groups.retain(|_, group| !group.waiting.is_empty());
        }
        self.groups.entry(Arc::clone(needs)).or_insert_with(|| {
            let meets = |agent: &&Agent| agent.satisfies(needs, switches);
            let registered = self.agents.values().filter(meets);
            let free = registered.clone().filter(|agent| agent.is_free());
            DemandGroup {
                free: free.map(|agent| agent.id).collect(),
                registered: registered.map(|agent| agent.id).collect(),
                waiting: BTreeSet::new(),
            }
        })
    }

    fn assign(&mut self, id: i64, agent_id: i64, context: &mut Context<'_>) {
        let (Some(job), Some(agent)) = (self.jobs.get_mut(&id), self.agents.get_mut(&agent_id))
        else {
            return;
        };
        if let Some(group) = self.groups.get_mut(&job.needs) {
            group.waiting.remove(&id);
        }
        for group in self.groups.values_mut() {
            group.free.remove(&agent_id);
        }
        agent.assigned = Some(id);
        job.assign_time = Some(context.now);
        job.agent = Some(agent.reference());
        self.last_message += 1;
        agent.messages.push_back(Message {
            id: self.last_message,
            request: id,
            kind: MessageKind::Job,
        });
        if let Some(session) = agent.session {
            context.agenda.wake(Topic(session));
        }
    }

    /// Looks again at whether an agent can take work, and gives it the oldest job that waits for
    /// one like it.
    pub(crate) fn reconsider(&mut self, agent_id: i64, context: &mut Context<'_>) {
        let free = self.agents.get(&agent_id).is_some_and(Agent::is_free);
        let mut oldest: Option<i64> = None;
        for group in self.groups.values_mut() {
            if free && group.registered.contains(&agent_id) {
                group.free.insert(agent_id);
                let candidate = group.waiting.first().copied();
                oldest = [oldest, candidate].into_iter().flatten().min();
            } else {
                group.free.remove(&agent_id);
            }
        }
        if let Some(job) = oldest {
            self.assign(job, agent_id, context);
        }
        self.changed(context);
    }

    /// Looks again at which demands an agent meets: it is new, or its capabilities changed.
    pub(crate) fn rematch(&mut self, agent_id: i64, context: &mut Context<'_>) {
        let agent = self.agents.get(&agent_id);
        for (needs, group) in &mut self.groups {
            if agent.is_some_and(|agent| agent.satisfies(needs, context.switches)) {
                group.registered.insert(agent_id);
            } else {
                group.registered.remove(&agent_id);
            }
        }
        self.reconsider(agent_id, context);
    }

    /// All agents that meet a job's demands now. The group is gone only where no job waits.
    pub(crate) fn matching(&self, job: &Job, switches: &Switches) -> Vec<i64> {
        if let Some(group) = self.groups.get(&job.needs) {
            return group.registered.iter().copied().collect();
        }
        let meets = |agent: &&Agent| agent.satisfies(&job.needs, switches);
        self.agents
            .values()
            .filter(meets)
            .map(|agent| agent.id)
            .collect()
    }

    /// The agent has the job now: from here the lock counts.
    pub(crate) fn receive(&mut self, id: i64, context: &mut Context<'_>) {
        let Some(job) = self.jobs.get_mut(&id) else {
            return;
        };
        if job.receive_time.is_some() || job.is_finished() {
            return;
        }
        let until = context.now + context.switches.lock;
        job.receive_time = Some(context.now);
        job.locked_until = Some(until);
        context.agenda.at(
            until,
            Deadline::Lock {
                pool: self.key,
                request: id,
            },
        );
        self.changed(context);
    }

    /// The lock may have run out; renewals since then moved it.
    pub(crate) fn check_lock(&mut self, id: i64, context: &mut Context<'_>) {
        let Some(job) = self.jobs.get(&id).filter(|job| !job.is_finished()) else {
            return;
        };
        match job.locked_until {
            Some(until) if until <= context.now => self.lose(id, context),
            Some(until) => context.agenda.at(
                until,
                Deadline::Lock {
                    pool: self.key,
                    request: id,
                },
            ),
            None => {}
        }
    }

    /// Ends a job of whose agent nobody will hear again.
    pub(crate) fn lose(&mut self, id: i64, context: &mut Context<'_>) {
        let result = match context.switches.expired_lock_result {
            ExpiredLockResult::Abandoned => JobResult::Abandoned,
            ExpiredLockResult::Failed => JobResult::Failed,
        };
        if let Some(job) = self.jobs.get_mut(&id) {
            job.message = job.agent.as_ref().map(|agent| {
                format!(
                    "We stopped hearing from agent {}. Verify the agent machine is running and \
                     has a healthy network connection.",
                    agent.name
                )
            });
        }
        self.finish(id, result, End::Lost, context);
    }

    /// A user cancels a job: at once where no agent has it, otherwise the agent is asked.
    /// False where there is nothing left to cancel.
    pub(crate) fn cancel(&mut self, id: i64, context: &mut Context<'_>) -> bool {
        let Some(job) = self.jobs.get_mut(&id).filter(|job| !job.is_finished()) else {
            return false;
        };
        job.cancel_requested = true;
        if job.receive_time.is_none() {
            self.finish(id, JobResult::Canceled, End::User, context);
            return true;
        }
        let agent = job
            .agent
            .as_ref()
            .and_then(|agent| self.agents.get_mut(&agent.id));
        if let Some(agent) = agent.filter(|agent| agent.assigned == Some(id)) {
            self.last_message += 1;
            let kind = MessageKind::Cancellation;
            agent.messages.push_back(Message {
                id: self.last_message,
                request: id,
                kind,
            });
            if let Some(session) = agent.session {
                context.agenda.wake(Topic(session));
            }
        }
        self.changed(context);
        true
    }

    pub(crate) fn finish(
        &mut self,
        id: i64,
        result: JobResult,
        end: End,
        context: &mut Context<'_>,
    ) {
        let Some(job) = self.jobs.get_mut(&id).filter(|job| !job.is_finished()) else {
            return;
        };
        job.result = Some(result);
        job.end = Some(end);
        job.finish_time = Some(context.now);
        job.locked_until = None;
        self.unfinished.remove(&id);
        self.finished.push(id);
        if let Some(group) = self.groups.get_mut(&job.needs) {
            group.waiting.remove(&id);
        }
        let agent_id = job.agent.as_ref().map(|agent| agent.id);
        if let Some(agent) = agent_id.and_then(|agent| self.agents.get_mut(&agent))
            && agent.assigned == Some(id)
        {
            agent.assigned = None;
            agent.last_completed = Some(id);
            agent.drop_messages_of(job);
            let agent_id = agent.id;
            self.reconsider(agent_id, context);
        }
        self.changed(context);
    }

    /// Takes a job back from an agent that never received it.
    pub(crate) fn requeue(&mut self, id: i64, context: &mut Context<'_>) {
        let Some(job) = self
            .jobs
            .get_mut(&id)
            .filter(|job| job.receive_time.is_none() && !job.is_finished())
        else {
            return;
        };
        job.assign_time = None;
        if let Some(agent) = job
            .agent
            .take()
            .and_then(|agent| self.agents.get_mut(&agent.id))
        {
            agent.assigned = None;
            agent.drop_messages_of(job);
        }
        self.wait_or_assign(id, context);
        self.changed(context);
    }

    /// Removes an agent for good. Its received job is lost, one not yet received goes back.
    pub(crate) fn remove_agent(&mut self, agent_id: i64, context: &mut Context<'_>) {
        let Some(agent) = self.agents.remove(&agent_id) else {
            return;
        };
        self.names.remove(&agent.name.to_lowercase());
        for group in self.groups.values_mut() {
            group.registered.remove(&agent_id);
            group.free.remove(&agent_id);
        }
        if let Some(session) = agent.session {
            self.sessions.remove(&session);
            context.agenda.wake(Topic(session));
        }
        if let Some(id) = agent.assigned {
            if self
                .jobs
                .get(&id)
                .is_some_and(|job| job.receive_time.is_some())
            {
                self.lose(id, context);
            } else {
                self.requeue(id, context);
            }
        }
        self.changed(context);
    }
}
