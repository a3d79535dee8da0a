//! Agents come, change and go (protocol sections 3.3 and 3.4).

use jiff::Timestamp;

use super::{
    Context, PoolKey, World,
    agent::{Agent, AgentBody, Include, Links},
    error::ApiError,
    job::Job,
    message::Reply,
    pool::Pool,
};

impl World {
    pub(super) fn add_agent(
        &mut self,
        now: Timestamp,
        key: PoolKey,
        wanted: AgentBody,
        base: &str,
    ) -> Result<Reply, ApiError> {
        let id = self.register(now, key, wanted)?;
        self.change_agent(now, key, id, base, |_| {})
    }

    pub(super) fn register(
        &mut self,
        now: Timestamp,
        key: PoolKey,
        wanted: AgentBody,
    ) -> Result<i64, ApiError> {
        let Some(organization) = self.organizations.get_mut(key.organization) else {
            return Err(ApiError::pool_not_found(key.pool));
        };
        let id = organization.last_agent + 1;
        let client = self.random.uuid();
        self.in_pool(now, key, |pool, context| {
            let name = wanted.name.clone().unwrap_or_default();
            if name.is_empty() {
                return Err(ApiError::bad_request("The agent has no name.".to_owned()));
            }
            if pool.agent_named(&name).is_some() {
                return Err(ApiError::agent_exists(&pool.name, &name));
            }
            pool.names.insert(name.to_lowercase(), id);
            pool.agents.insert(id, Agent::new(id, wanted, client, now));
            pool.rematch(id, context);
            Ok(())
        })?;
        if let Some(organization) = self.organizations.get_mut(key.organization) {
            organization.last_agent = id;
        }
        self.clients.insert(client, (key, id));
        Ok(id)
    }

    pub(super) fn replace_agent(
        &mut self,
        now: Timestamp,
        key: PoolKey,
        id: i64,
        wanted: AgentBody,
        base: &str,
    ) -> Result<Reply, ApiError> {
        let client = self.random.uuid();
        self.in_pool(now, key, |pool, context| {
            let name = wanted.name.clone().unwrap_or_default();
            pool.rename(id, &name, context)?;
            if context.switches.replace_ends_session
                && let Some(session) = pool.agents.get(&id).and_then(|agent| agent.session)
            {
                pool.end_session(session, context);
            }
            if let Some(agent) = pool.agents.get_mut(&id) {
                agent.replace(wanted, client);
            }
            Ok(())
        })?;
        // Only a first key makes the agent use it; otherwise nobody ever asks for it.
        self.clients.insert(client, (key, id));
        self.change_agent(now, key, id, base, |_| {})
    }

    pub(super) fn update_agent(
        &mut self,
        now: Timestamp,
        key: PoolKey,
        id: i64,
        wanted: AgentBody,
        base: &str,
    ) -> Result<Reply, ApiError> {
        self.in_pool(now, key, |pool, context| match &wanted.name {
            Some(name) => pool.rename(id, name, context),
            None if context.switches.patch_needs_name => {
                Err(ApiError::bad_request("The agent has no name.".to_owned()))
            }
            None => Ok(()),
        })?;
        let capabilities = self.settings.switches.patch_changes_capabilities;
        self.change_agent(now, key, id, base, |agent| {
            let set = |field: &mut String, value: Option<String>| {
                if let Some(value) = value {
                    *field = value;
                }
            };
            set(&mut agent.version, wanted.version);
            set(&mut agent.provisioning_state, wanted.provisioning_state);
            agent.enabled = wanted.enabled.unwrap_or(agent.enabled);
            agent.max_parallelism = wanted.max_parallelism.unwrap_or(agent.max_parallelism);
            agent.os_description = wanted
                .os_description
                .or_else(|| agent.os_description.take());
            if capabilities && let Some(system) = wanted.system_capabilities {
                agent.system_capabilities = system.into_iter().collect();
            }
            if capabilities && let Some(user) = wanted.user_capabilities {
                agent.user_capabilities = user.into_iter().collect();
            }
        })
    }

    /// Changes an agent, looks again at what it can do, and shows it.
    pub(super) fn change_agent(
        &mut self,
        now: Timestamp,
        key: PoolKey,
        id: i64,
        base: &str,
        change: impl FnOnce(&mut Agent),
    ) -> Result<Reply, ApiError> {
        self.in_pool(now, key, |pool, context| {
            let unknown = context.switches.unknown_agent_status;
            let not_found = || ApiError::agent_not_found(unknown, key.pool, id);
            change(pool.agents.get_mut(&id).ok_or_else(not_found)?);
            pool.rematch(id, context);
            let agent = pool.agents.get(&id).ok_or_else(not_found)?;
            let include = Include {
                capabilities: true,
                ..Include::default()
            };
            Ok(Reply::ok(&agent.json(
                Links {
                    base,
                    pool: key.pool,
                },
                include,
            )))
        })
    }

    pub(super) fn delete_agent(
        &mut self,
        now: Timestamp,
        key: PoolKey,
        id: i64,
    ) -> Result<Reply, ApiError> {
        self.in_pool(now, key, |pool, context| {
            let switches = context.switches;
            let not_found = ApiError::agent_not_found(switches.unknown_agent_status, key.pool, id);
            let agent = pool.agents.get(&id).ok_or(not_found)?;
            let job = agent.assigned.and_then(|request| pool.jobs.get(&request));
            let blocks =
                |job: &Job| job.receive_time.is_some() || switches.assigned_job_blocks_delete;
            if job.is_some_and(blocks) {
                let (status, type_key) =
                    (switches.busy_delete_status, switches.busy_delete_type_key);
                return Err(ApiError::agent_busy(
                    status,
                    type_key,
                    &agent.name,
                    &pool.name,
                ));
            }
            pool.remove_agent(id, context);
            Ok(Reply::empty(204))
        })
    }
}

impl Pool {
    fn rename(&mut self, id: i64, name: &str, context: &Context<'_>) -> Result<(), ApiError> {
        let unknown = context.switches.unknown_agent_status;
        let not_found = || ApiError::agent_not_found(unknown, self.key.pool, id);
        if name.is_empty() {
            return Err(ApiError::bad_request("The agent has no name.".to_owned()));
        }
        if !self.agents.contains_key(&id) {
            return Err(not_found());
        }
        if self.agent_named(name).is_some_and(|other| other.id != id) {
            return Err(ApiError::agent_exists(&self.name, name));
        }
        if let Some(agent) = self.agents.get_mut(&id) {
            self.names.remove(&agent.name.to_lowercase());
            name.clone_into(&mut agent.name);
            self.names.insert(name.to_lowercase(), id);
        }
        Ok(())
    }
}
