//! What tests and demos do to the world behind the protocol's back, as methods; as routes they are
//! in [`super::remote`].

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{
    ActiveFault, Entry, Fault, FaultKind, Organization, PatSpec, PoolKey, RateLimit, RequestCounts,
    Switches, World,
    access::Pat,
    agent::{Agent, AgentBody},
    job::{JobSpec, JobView, Outcome},
    message::Topic,
    pool::Pool,
};

/// Why a control request was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ControlError {
    /// No organization of that name.
    #[error("no organization named {0}")]
    NoOrganization(String),
    /// The organization's name is taken or cannot stand in a URL.
    #[error("organization name {0} is taken or not usable")]
    BadOrganization(String),
    /// No pool of that name.
    #[error("no agent pool named {0}")]
    NoPool(String),
    /// The pool's name is taken.
    #[error("an agent pool named {0} exists")]
    PoolExists(String),
    /// No agent of that name.
    #[error("no agent named {0}")]
    NoAgent(String),
    /// The agent cannot be registered.
    #[error("agent {0} exists or has no name")]
    BadAgent(String),
    /// No such job, or it is over.
    #[error("no unfinished job {0}")]
    NoJob(i64),
    /// No such personal access token.
    #[error("no such personal access token")]
    NoPat,
    /// A value is out of range.
    #[error("{0}")]
    BadValue(String),
}

/// An agent that somebody registers by hand, without a key and without a process.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct AgentSpec {
    /// Name.
    pub name: String,
    /// Version.
    pub version: String,
    /// System capabilities.
    pub capabilities: BTreeMap<String, String>,
    /// Whether it may get jobs.
    pub enabled: bool,
}

impl Default for AgentSpec {
    fn default() -> Self {
        Self {
            name: String::new(),
            version: "4.0.0".to_owned(),
            capabilities: BTreeMap::new(),
            enabled: true,
        }
    }
}

/// An agent as the control API shows it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AgentView {
    /// Id.
    pub id: i64,
    /// Name.
    pub name: String,
    /// Version.
    pub version: String,
    /// Whether it may get jobs.
    pub enabled: bool,
    /// Whether it has a session that was heard of lately.
    pub online: bool,
    /// Whether it registered a public key, thus can open sessions.
    pub has_key: bool,
    /// System capabilities.
    pub system_capabilities: BTreeMap<String, String>,
    /// User capabilities.
    pub user_capabilities: BTreeMap<String, String>,
    /// The job that it has.
    pub assigned_request: Option<i64>,
}

/// A list with the revision of the pool that it shows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Changed<T> {
    /// Grows with every change of the pool; `?after=` waits for a greater one.
    pub revision: u64,
    /// The list.
    pub value: Vec<T>,
}

/// How a pool stands, in numbers: cheap to ask for where there are thousands of agents and jobs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Summary {
    /// See [`Changed::revision`].
    pub revision: u64,
    /// Registered agents.
    pub agents: usize,
    /// Of these, online.
    pub online: usize,
    /// Of the registered ones, with a job.
    pub busy: usize,
    /// Jobs by outcome; what none has is absent.
    pub jobs: BTreeMap<Outcome, usize>,
}

impl Summary {
    /// How many jobs have an outcome.
    pub fn jobs_with(&self, outcome: Outcome) -> usize {
        self.jobs.get(&outcome).copied().unwrap_or(0)
    }

    /// How many jobs are not over.
    pub fn unfinished(&self) -> usize {
        let open = self
            .jobs
            .iter()
            .filter(|(outcome, _)| !outcome.is_finished());
        open.map(|(_, count)| count).sum()
    }
}

impl World {
    /// Adds an organization (or collection) without pools.
    pub fn create_organization(&mut self, name: &str) -> Result<(), ControlError> {
        let bad = name.is_empty()
            || name.contains('/')
            || name.starts_with('_')
            || name.eq_ignore_ascii_case("tfs")
            || uuid::Uuid::parse_str(name).is_ok();
        if bad || self.organization_index(name).is_some() {
            return Err(ControlError::BadOrganization(name.to_owned()));
        }
        self.organizations.push(Organization {
            name: name.to_owned(),
            id: self.random.uuid(),
            project: self.random.uuid(),
            pools: Vec::new(),
            pats: Vec::new(),
            last_pool: 0,
            last_agent: 0,
            last_request: 0,
        });
        Ok(())
    }

    /// Adds an agent pool and gives its id.
    pub fn create_pool(
        &mut self,
        now: Timestamp,
        organization: &str,
        pool: &str,
    ) -> Result<i64, ControlError> {
        let index = self.index(organization)?;
        self.add_pool(now, index, pool)
            .ok_or_else(|| ControlError::PoolExists(pool.to_owned()))
    }

    /// Removes an agent pool with its agents and jobs.
    pub fn delete_pool(
        &mut self,
        now: Timestamp,
        organization: &str,
        pool: &str,
    ) -> Result<(), ControlError> {
        let key = self.key(organization, pool)?;
        self.remove_pool(now, key);
        Ok(())
    }

    pub(super) fn add_pool(&mut self, now: Timestamp, index: usize, name: &str) -> Option<i64> {
        let topic = Topic(self.random.uuid());
        let organization = self.organizations.get_mut(index)?;
        if name.is_empty() || organization.pool_named(name).is_some() {
            return None;
        }
        organization.last_pool += 1;
        let key = PoolKey {
            organization: index,
            pool: organization.last_pool,
        };
        organization.pools.push(Pool::new(key, topic, name, now));
        Some(key.pool)
    }

    pub(super) fn remove_pool(&mut self, now: Timestamp, key: PoolKey) -> bool {
        let removed = self.within(now, key, |pool, context| {
            let agents: Vec<i64> = pool.agents.keys().copied().collect();
            for agent in agents {
                pool.remove_agent(agent, context);
            }
        });
        if let Some(organization) = self.organizations.get_mut(key.organization) {
            organization.pools.retain(|pool| pool.key != key);
        }
        removed.is_some()
    }

    /// Adds a personal access token and gives it back.
    pub fn create_pat(
        &mut self,
        organization: &str,
        spec: PatSpec,
    ) -> Result<String, ControlError> {
        let index = self.index(organization)?;
        let token = spec.token.unwrap_or_else(|| self.random.token());
        let pat = Pat {
            name: spec.name,
            token: token.clone(),
            scopes: spec.scopes,
            expires: spec.expires,
            revoked: false,
        };
        if let Some(organization) = self.organizations.get_mut(index) {
            organization.pats.retain(|known| known.token != token);
            organization.pats.push(pat);
        }
        Ok(token)
    }

    /// Makes a personal access token dead.
    pub fn revoke_pat(&mut self, organization: &str, token: &str) -> Result<(), ControlError> {
        self.set_revoked(organization, token, true)
    }

    /// Brings a dead personal access token back.
    pub fn restore_pat(&mut self, organization: &str, token: &str) -> Result<(), ControlError> {
        self.set_revoked(organization, token, false)
    }

    fn set_revoked(
        &mut self,
        organization: &str,
        token: &str,
        revoked: bool,
    ) -> Result<(), ControlError> {
        let index = self.index(organization)?;
        let mut pats = self
            .organizations
            .get_mut(index)
            .into_iter()
            .flat_map(|known| &mut known.pats);
        let pat = pats
            .find(|pat| pat.token == token)
            .ok_or(ControlError::NoPat)?;
        pat.revoked = revoked;
        Ok(())
    }

    /// Queues jobs and gives their request ids.
    pub fn queue_jobs(
        &mut self,
        now: Timestamp,
        organization: &str,
        pool: &str,
        spec: &JobSpec,
    ) -> Result<Vec<i64>, ControlError> {
        self.tick(now);
        let key = self.key(organization, pool)?;
        let Some(known) = self.organizations.get_mut(key.organization) else {
            return Err(ControlError::NoOrganization(organization.to_owned()));
        };
        let first = known.last_request + 1;
        let count = i64::try_from(spec.count)
            .map_err(|_| ControlError::BadValue("count is too great".to_owned()))?;
        known.last_request += count;
        self.within(now, key, |pool, context| pool.queue(first, spec, context))
            .ok_or_else(|| ControlError::NoPool(pool.to_owned()))
    }

    /// Cancels a job as a user would.
    pub fn cancel_job(
        &mut self,
        now: Timestamp,
        organization: &str,
        request: i64,
    ) -> Result<(), ControlError> {
        self.tick(now);
        let index = self.index(organization)?;
        let mut pools = self
            .organizations
            .get(index)
            .into_iter()
            .flat_map(|known| &known.pools);
        let key = pools
            .find(|pool| pool.jobs.contains_key(&request))
            .map(|pool| pool.key);
        let canceled = key
            .and_then(|key| self.within(now, key, |pool, context| pool.cancel(request, context)));
        if canceled == Some(true) {
            Ok(())
        } else {
            Err(ControlError::NoJob(request))
        }
    }

    /// All jobs of a pool, oldest first.
    pub fn jobs(&self, organization: &str, pool: &str) -> Result<Vec<JobView>, ControlError> {
        let pool = self.pool_by_name(organization, pool)?;
        Ok(pool.jobs.values().map(super::job::Job::view).collect())
    }

    /// All agents of a pool, oldest first.
    pub fn agents(&self, organization: &str, pool: &str) -> Result<Vec<AgentView>, ControlError> {
        let pool = self.pool_by_name(organization, pool)?;
        Ok(pool.agents.values().map(AgentView::of).collect())
    }

    /// How a pool stands, in numbers.
    pub fn summary(&self, organization: &str, pool: &str) -> Result<Summary, ControlError> {
        let pool = self.pool_by_name(organization, pool)?;
        let mut jobs = BTreeMap::new();
        for job in pool.jobs.values() {
            *jobs.entry(job.outcome()).or_default() += 1;
        }
        let count = |is: fn(&&Agent) -> bool| pool.agents.values().filter(is).count();
        Ok(Summary {
            revision: pool.revision,
            agents: pool.agents.len(),
            online: count(|agent| agent.online),
            busy: count(|agent| agent.assigned.is_some()),
            jobs,
        })
    }

    /// Registers an agent that has no process, and gives its id.
    pub fn add_agent_by_hand(
        &mut self,
        now: Timestamp,
        organization: &str,
        pool: &str,
        spec: AgentSpec,
    ) -> Result<i64, ControlError> {
        let key = self.key(organization, pool)?;
        let name = spec.name.clone();
        let body = AgentBody {
            name: Some(spec.name),
            version: Some(spec.version),
            enabled: Some(spec.enabled),
            system_capabilities: Some(spec.capabilities),
            ..AgentBody::default()
        };
        self.register(now, key, body)
            .map_err(|_| ControlError::BadAgent(name))
    }

    /// An agent by its id.
    pub fn agent(
        &self,
        organization: &str,
        pool: &str,
        id: i64,
    ) -> Result<AgentView, ControlError> {
        let agents = &self.pool_by_name(organization, pool)?.agents;
        let agent = agents.get(&id).map(AgentView::of);
        agent.ok_or_else(|| ControlError::NoAgent(id.to_string()))
    }

    /// Enables or disables an agent as a person does on the agent's page: it may get a job at once.
    pub fn enable_agent_by_hand(
        &mut self,
        now: Timestamp,
        organization: &str,
        pool: &str,
        id: i64,
        enabled: bool,
    ) -> Result<(), ControlError> {
        self.tick(now);
        let key = self.key(organization, pool)?;
        let changed = self.within(now, key, |pool, context| {
            pool.agents.get_mut(&id)?.enabled = enabled;
            pool.reconsider(id, context);
            Some(())
        });
        changed
            .flatten()
            .ok_or_else(|| ControlError::NoAgent(id.to_string()))
    }

    /// Removes an agent, whatever it is doing; a job that it runs is lost.
    pub fn delete_agent_by_hand(
        &mut self,
        now: Timestamp,
        organization: &str,
        pool: &str,
        agent: &str,
    ) -> Result<(), ControlError> {
        let key = self.key(organization, pool)?;
        let removed = self.within(now, key, |pool, context| {
            let id = pool.agent_named(agent)?.id;
            pool.remove_agent(id, context);
            Some(())
        });
        removed
            .flatten()
            .ok_or_else(|| ControlError::NoAgent(agent.to_owned()))
    }

    /// Makes something go wrong from now on.
    pub fn add_fault(&mut self, now: Timestamp, fault: Fault) -> Result<(), ControlError> {
        if !(0.0..=1.0).contains(&fault.probability) {
            return Err(ControlError::BadValue(
                "probability is not between 0 and 1".to_owned(),
            ));
        }
        if let FaultKind::ServerError { status } = fault.kind
            && !(500..600).contains(&status)
        {
            return Err(ControlError::BadValue(format!(
                "status {status} is not 5xx"
            )));
        }
        let until = fault.duration.map(|duration| now + duration);
        self.faults.push(ActiveFault { fault, until });
        // A stale read may need the state of this moment.
        self.tick(now);
        Ok(())
    }

    /// Ends all faults.
    pub fn clear_faults(&mut self) {
        self.faults.clear();
    }

    /// The faults in force.
    pub fn faults(&self, now: Timestamp) -> Vec<Fault> {
        let active = self
            .faults
            .iter()
            .filter(|active| active.until.is_none_or(|until| until > now));
        active.map(|active| active.fault.clone()).collect()
    }

    /// How many requests came since the start or the last reset, to one organization or to all.
    pub fn requests(&self, organization: Option<&str>) -> RequestCounts {
        self.journal.counts(organization)
    }

    /// The latest requests, oldest first.
    pub fn request_log(&self) -> Vec<Entry> {
        self.journal.entries().cloned().collect()
    }

    /// Forgets all requests.
    pub fn reset_requests(&mut self) {
        self.journal.clear();
    }

    /// Changes behaviours on the fly. Timings hold for what begins from now on.
    pub fn set_switches(&mut self, now: Timestamp, switches: Switches) {
        self.settings.switches = switches;
        let keys: Vec<PoolKey> = self
            .organizations
            .iter()
            .flat_map(|known| &known.pools)
            .map(|pool| pool.key)
            .collect();
        for key in keys {
            self.within(now, key, |pool, context| {
                let agents: Vec<i64> = pool.agents.keys().copied().collect();
                for agent in agents {
                    pool.rematch(agent, context);
                }
            });
        }
    }

    /// Turns rate limiting on or off.
    pub fn set_rate_limit(&mut self, rules: Option<RateLimit>) {
        self.settings.rate_limit = rules;
    }

    fn index(&self, organization: &str) -> Result<usize, ControlError> {
        self.organization_index(organization)
            .ok_or_else(|| ControlError::NoOrganization(organization.to_owned()))
    }

    pub(super) fn pool_by_name(
        &self,
        organization: &str,
        pool: &str,
    ) -> Result<&Pool, ControlError> {
        let known = self.organizations.get(self.index(organization)?);
        known
            .and_then(|known| known.pool_named(pool))
            .ok_or_else(|| ControlError::NoPool(pool.to_owned()))
    }

    fn key(&self, organization: &str, pool: &str) -> Result<PoolKey, ControlError> {
        self.pool_by_name(organization, pool).map(|pool| pool.key)
    }
}

impl AgentView {
    fn of(agent: &Agent) -> Self {
        let owned = |(name, value): (&str, &str)| (name.to_owned(), value.to_owned());
        Self {
            id: agent.id,
            name: agent.name.clone(),
            version: agent.version.clone(),
            enabled: agent.enabled,
            online: agent.online,
            has_key: agent.authorization.is_some(),
            system_capabilities: agent.system_capabilities.pairs().map(owned).collect(),
            user_capabilities: agent.user_capabilities.pairs().map(owned).collect(),
            assigned_request: agent.assigned,
        }
    }
}
