//! The service without HTTP and JSON: the same pools, agents, sessions and jobs, as calls with typed arguments. For
//! tests that drive the world millions of times.
//!
//! Whatever changes here changes by the code that also serves requests. Left out is what belongs to the way there:
//! tokens and rights, faults, limits, the request log. Whoever calls plays these.

use std::collections::BTreeMap;

use jiff::Timestamp;
use uuid::Uuid;

use super::{
    ControlError, PoolKey, World,
    agent::{Agent, AgentBody, MessageKind},
    error::ApiError,
    job::{End, Job, JobResult, Outcome},
    session::{SessionAgent, SessionBody},
};

/// An agent pool, found once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PoolHandle(PoolKey);

impl PoolHandle {
    /// The pool's id in its organization.
    pub fn id(self) -> i64 {
        self.0.pool
    }
}

/// Why the service refuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The agent, or the pool, does not exist.
    #[error("no such agent")]
    NotFound,
    /// Another agent of the pool has that name.
    #[error("the name is taken")]
    NameTaken,
    /// A job is assigned to the agent.
    #[error("the agent is running a job")]
    Busy,
    /// The agent has a session already.
    #[error("the agent has a session")]
    SessionConflict,
    /// The session, or the lock of the job, has ended, or is another's.
    #[error("it has ended")]
    Expired,
}

/// An agent that registers.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct NewAgent {
    /// Name.
    pub name: String,
    /// Version.
    pub version: String,
    /// What it reports of itself.
    pub system_capabilities: BTreeMap<String, String>,
    /// What a user gave it.
    pub user_capabilities: BTreeMap<String, String>,
}

/// An agent as a list shows it.
#[derive(Clone, Copy, Debug)]
pub struct AgentLine<'a> {
    /// Id.
    pub id: i64,
    /// Name.
    pub name: &'a str,
    /// Whether it may get jobs.
    pub enabled: bool,
    /// Whether it has a session that was heard of lately.
    pub online: bool,
    /// When it was registered.
    pub created_on: Timestamp,
    /// The job request that it has.
    pub assigned: Option<i64>,
    /// When the job request that it completed last ended, and its id.
    pub last_completed: Option<(i64, Timestamp)>,
    agent: &'a Agent,
}

impl AgentLine<'_> {
    /// Its capabilities, which a user gave it (`true`) or which it reported.
    pub fn capabilities(&self, user: bool) -> impl Iterator<Item = (&str, &str)> {
        let capabilities = if user {
            &self.agent.user_capabilities
        } else {
            &self.agent.system_capabilities
        };
        capabilities.pairs()
    }
}

/// A job request as a list shows it.
#[derive(Clone, Copy, Debug)]
pub struct JobLine<'a> {
    /// Id.
    pub id: i64,
    /// Demands as given.
    pub demands: &'a [String],
    /// The agent that it is reserved for.
    pub agent: Option<i64>,
    /// Where it stands.
    pub outcome: Outcome,
    /// When it was queued.
    pub queued: Timestamp,
    /// When it ended.
    pub finished: Option<Timestamp>,
}

/// What an agent reads from its session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Notice {
    /// Id of the message.
    pub message: i64,
    /// The job request that it is about.
    pub request: i64,
    /// Whether it asks to cancel the job, rather than to begin it.
    pub cancel: bool,
}

impl World {
    /// The handle of an agent pool.
    pub fn pool_handle(&self, organization: &str, pool: &str) -> Result<PoolHandle, ControlError> {
        Ok(PoolHandle(self.pool_by_name(organization, pool)?.key))
    }

    /// Grows with every change of the pool that a list can show.
    pub fn revision(&self, handle: PoolHandle) -> u64 {
        self.pool(handle.0).map_or(0, |pool| pool.revision)
    }

    /// Every agent of a pool, by id.
    pub fn agent_lines(&self, handle: PoolHandle) -> impl Iterator<Item = AgentLine<'_>> {
        let pool = self.pool(handle.0);
        pool.into_iter().flat_map(|pool| {
            pool.agents.values().map(|agent| AgentLine {
                id: agent.id,
                name: &agent.name,
                enabled: agent.enabled,
                online: agent.online,
                created_on: agent.created_on,
                assigned: agent.assigned,
                last_completed: agent
                    .last_completed
                    .and_then(|id| Some((id, pool.jobs.get(&id)?.finish_time?))),
                agent,
            })
        })
    }

    /// One agent of a pool.
    pub fn agent_line(&self, handle: PoolHandle, id: i64) -> Option<AgentLine<'_>> {
        let pool = self.pool(handle.0)?;
        let agent = pool.agents.get(&id)?;
        Some(AgentLine {
            id,
            name: &agent.name,
            enabled: agent.enabled,
            online: agent.online,
            created_on: agent.created_on,
            assigned: agent.assigned,
            last_completed: None,
            agent,
        })
    }

    /// The id of the agent of this name.
    pub fn agent_id(&self, handle: PoolHandle, name: &str) -> Option<i64> {
        Some(self.pool(handle.0)?.agent_named(name)?.id)
    }

    /// Every job request of a pool that has no result, oldest first.
    pub fn unfinished_jobs(&self, handle: PoolHandle) -> impl Iterator<Item = JobLine<'_>> {
        let pool = self.pool(handle.0);
        pool.into_iter().flat_map(|pool| {
            let jobs = pool.unfinished.iter();
            jobs.filter_map(|id| pool.jobs.get(id)).map(JobLine::of)
        })
    }

    /// Job requests of a pool in the order in which they ended, without the first `skip`.
    pub fn finished_jobs(
        &self,
        handle: PoolHandle,
        skip: usize,
    ) -> impl Iterator<Item = JobLine<'_>> {
        let pool = self.pool(handle.0);
        pool.into_iter().flat_map(move |pool| {
            let jobs = pool.finished.iter().skip(skip);
            jobs.filter_map(|id| pool.jobs.get(id)).map(JobLine::of)
        })
    }

    /// One job request.
    pub fn job_line(&self, handle: PoolHandle, id: i64) -> Option<JobLine<'_>> {
        self.pool(handle.0)?.jobs.get(&id).map(JobLine::of)
    }

    /// How long a job takes, and how it is planned to end.
    pub fn job_plan(
        &self,
        handle: PoolHandle,
        id: i64,
    ) -> Option<(std::time::Duration, JobResult)> {
        let job = self.pool(handle.0)?.jobs.get(&id)?;
        Some((job.duration, job.planned))
    }

    /// Registers an agent; one that can open sessions, or one without a key.
    pub fn register_agent(
        &mut self,
        now: Timestamp,
        handle: PoolHandle,
        agent: NewAgent,
    ) -> Result<i64, Refusal> {
        self.tick(now);
        self.register(now, handle.0, agent.into_body())
            .map_err(|_| Refusal::NameTaken)
    }

    /// Registers an agent in the place of another, as `config.sh --replace` does: what it may get stays as it was.
    pub fn replace_registration(
        &mut self,
        now: Timestamp,
        handle: PoolHandle,
        id: i64,
        agent: NewAgent,
    ) -> Result<(), Refusal> {
        self.tick(now);
        let known = self.pool(handle.0).and_then(|pool| pool.agents.get(&id));
        let body = AgentBody {
            enabled: Some(known.ok_or(Refusal::NotFound)?.enabled),
            ..agent.into_body()
        };
        self.replace_agent(now, handle.0, id, body, "")
            .map(drop)
            .map_err(|_| Refusal::NotFound)
    }

    /// Lets an agent get jobs, or not.
    pub fn enable_agent(
        &mut self,
        now: Timestamp,
        handle: PoolHandle,
        id: i64,
        enabled: bool,
    ) -> Result<(), Refusal> {
        self.tick(now);
        self.in_pool(now, handle.0, |pool, context| {
            let agent = pool.agents.get_mut(&id);
            let agent = agent.ok_or_else(|| ApiError::agent_not_found(404, handle.0.pool, id))?;
            agent.enabled = enabled;
            pool.reconsider(id, context);
            Ok(())
        })
        .map_err(|_| Refusal::NotFound)
    }

    /// Deletes a registration, unless a job is assigned to it.
    pub fn unregister_agent(
        &mut self,
        now: Timestamp,
        handle: PoolHandle,
        id: i64,
    ) -> Result<(), Refusal> {
        self.tick(now);
        let known = self
            .pool(handle.0)
            .is_some_and(|pool| pool.agents.contains_key(&id));
        if !known {
            return Err(Refusal::NotFound);
        }
        self.delete_agent(now, handle.0, id)
            .map(drop)
            .map_err(|_| Refusal::Busy)
    }

    /// Opens an agent's session: it is online from here.
    pub fn open_session(
        &mut self,
        now: Timestamp,
        handle: PoolHandle,
        id: i64,
    ) -> Result<Uuid, Refusal> {
        self.tick(now);
        let known = self
            .pool(handle.0)
            .is_some_and(|pool| pool.agents.contains_key(&id));
        if !known {
            return Err(Refusal::NotFound);
        }
        let body = SessionBody {
            agent: SessionAgent {
                id,
                ..SessionAgent::default()
            },
            ..SessionBody::default()
        };
        self.in_pool(now, handle.0, |pool, context| {
            pool.open_session(body, context)
        })
        .map_err(|_| Refusal::SessionConflict)
    }

    /// Ends a session.
    pub fn close_session(&mut self, now: Timestamp, handle: PoolHandle, session: Uuid) {
        self.tick(now);
        self.within(now, handle.0, |pool, context| {
            pool.end_session(session, context);
        });
    }

    /// A sign of life of an agent; `false`: its session has ended.
    pub fn keep_session(&mut self, now: Timestamp, handle: PoolHandle, session: Uuid) -> bool {
        self.tick(now);
        self.within(now, handle.0, |pool, context| {
            pool.touch_session(session, context)
        }) == Some(true)
    }

    /// The oldest message that waits in a session.
    pub fn notice(&self, handle: PoolHandle, session: Uuid) -> Option<Notice> {
        let message = self.pool(handle.0)?.next_message(session, 0)?;
        Some(Notice {
            message: message.id,
            request: message.request,
            cancel: message.kind == MessageKind::Cancellation,
        })
    }

    /// An agent takes a message; if it is a job, the lock counts from here.
    pub fn take_notice(&mut self, now: Timestamp, handle: PoolHandle, session: Uuid, message: i64) {
        self.tick(now);
        self.within(now, handle.0, |pool, context| {
            pool.delete_message(session, message, context);
        });
    }

    /// Renews the lock of a job that an agent runs.
    pub fn renew_job(
        &mut self,
        now: Timestamp,
        handle: PoolHandle,
        agent: i64,
        request: i64,
    ) -> Result<(), Refusal> {
        self.tick(now);
        let lock = self.settings.switches.lock;
        self.within(now, handle.0, |pool, _| {
            let job = pool.jobs.get_mut(&request);
            let job = job.filter(|job| job.is_held_by(agent))?;
            job.locked_until = Some(now + lock);
            Some(())
        })
        .flatten()
        .ok_or(Refusal::Expired)
    }

    /// An agent reports the end of its job, and whether it ends with it.
    pub fn complete_job(
        &mut self,
        now: Timestamp,
        handle: PoolHandle,
        agent: i64,
        request: i64,
        result: JobResult,
        shutting_down: bool,
    ) -> Result<(), Refusal> {
        self.tick(now);
        self.within(now, handle.0, |pool, context| {
            pool.jobs
                .get(&request)
                .filter(|job| job.is_held_by(agent))?;
            if let Some(agent) = pool.agents.get_mut(&agent) {
                agent.shutting_down |= shutting_down;
            }
            pool.finish(request, result, End::Agent, context);
            Some(())
        })
        .flatten()
        .ok_or(Refusal::Expired)
    }

    /// Sessions in which something waits to be read, or that ended, since the last call.
    pub fn take_stirred(&mut self) -> impl Iterator<Item = Uuid> {
        self.take_woken().into_iter().map(|topic| topic.0)
    }
}

impl NewAgent {
    fn into_body(self) -> AgentBody {
        AgentBody {
            name: Some(self.name),
            version: Some(self.version),
            enabled: Some(true),
            system_capabilities: Some(self.system_capabilities),
            user_capabilities: Some(self.user_capabilities),
            ..AgentBody::default()
        }
    }
}

impl<'a> JobLine<'a> {
    fn of(job: &'a Job) -> Self {
        Self {
            id: job.id,
            demands: &job.demands,
            agent: job.agent.as_ref().map(|agent| agent.id),
            outcome: job.outcome(),
            queued: job.queue_time,
            finished: job.finish_time,
        }
    }
}

impl Job {
    fn is_held_by(&self, agent: i64) -> bool {
        !self.is_finished() && self.agent.as_ref().is_some_and(|held| held.id == agent)
    }
}
