//! Sessions and the messages that wait for their agents (protocol section 6).

use std::time::Duration;

use jiff::Timestamp;
use serde::Deserialize;
use uuid::Uuid;

use super::{
    Context, Deadline,
    agent::{AgentBody, Message},
    error::ApiError,
    message::Topic,
    pool::Pool,
};

#[derive(Clone, Debug)]
pub(crate) struct Session {
    pub(crate) agent: i64,
    pub(crate) owner: String,
    pub(crate) last_seen: Timestamp,
}

/// What an agent sends to open a session.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct SessionBody {
    pub(crate) owner_name: String,
    pub(crate) agent: SessionAgent,
    pub(crate) system_capabilities: Option<std::collections::BTreeMap<String, String>>,
}

/// The agent that a session is for.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct SessionAgent {
    pub(crate) id: i64,
    #[serde(flatten)]
    pub(crate) about: AgentBody,
}

impl Pool {
    /// Opens a session: the agent is online from here, with the capabilities that it sends.
    pub(crate) fn open_session(
        &mut self,
        body: SessionBody,
        context: &mut Context<'_>,
    ) -> Result<Uuid, ApiError> {
        let agent_id = body.agent.id;
        let unknown = context.switches.unknown_agent_status;
        let not_found = || ApiError::agent_not_found(unknown, self.key.pool, agent_id);
        let agent = self.agents.get_mut(&agent_id).ok_or_else(not_found)?;
        if let Some(session) = agent
            .session
            .and_then(|session| self.sessions.get(&session))
        {
            return Err(ApiError::session_conflict(&agent.name, &session.owner));
        }
        let session = context.random.uuid();
        agent.session = Some(session);
        agent.online = true;
        agent.shutting_down = false;
        agent.status_changed_on = Some(context.now);
        if let Some(version) = body.agent.about.version {
            agent.version = version;
        }
        if let Some(os) = body.agent.about.os_description {
            agent.os_description = Some(os);
        }
        if let Some(capabilities) = body.system_capabilities {
            agent.system_capabilities = capabilities.into_iter().collect();
        }
        let owner = body.owner_name;
        self.sessions.insert(
            session,
            Session {
                agent: agent_id,
                owner,
                last_seen: context.now,
            },
        );
        self.watch_session(session, context.switches.offline_after, context);
        self.rematch(agent_id, context);
        Ok(session)
    }

    /// Ends a session: the agent is offline at once, and a job that it never received goes back.
    pub(crate) fn end_session(&mut self, session: Uuid, context: &mut Context<'_>) {
        let Some(ended) = self.sessions.remove(&session) else {
            return;
        };
        context.agenda.wake(Topic(session));
        if let Some(agent) = self.agents.get_mut(&ended.agent) {
            agent.session = None;
            agent.online = false;
            agent.status_changed_on = Some(context.now);
            let assigned = agent.assigned;
            self.reconsider(ended.agent, context);
            if let Some(request) = assigned {
                self.requeue(request, context);
            }
        }
    }

    /// The agent behind a session gave a sign of life.
    pub(crate) fn touch_session(&mut self, session: Uuid, context: &mut Context<'_>) -> bool {
        let Some(known) = self.sessions.get_mut(&session) else {
            return false;
        };
        known.last_seen = context.now;
        let agent_id = known.agent;
        if let Some(agent) = self.agents.get_mut(&agent_id).filter(|agent| !agent.online) {
            agent.online = true;
            agent.status_changed_on = Some(context.now);
            self.watch_session(session, context.switches.offline_after, context);
            self.reconsider(agent_id, context);
        }
        true
    }

    /// A session may have been silent for too long: first its agent shows offline, then it ends.
    pub(crate) fn check_session(&mut self, session: Uuid, context: &mut Context<'_>) {
        let Some(known) = self.sessions.get(&session) else {
            return;
        };
        let (agent_id, last_seen) = (known.agent, known.last_seen);
        if last_seen + context.switches.session_expiry <= context.now {
            self.end_session(session, context);
            return;
        }
        let offline_at = last_seen + context.switches.offline_after;
        if offline_at > context.now {
            context.agenda.at(
                offline_at,
                Deadline::Session {
                    pool: self.key,
                    session,
                },
            );
            return;
        }
        let expiry_at = last_seen + context.switches.session_expiry;
        context.agenda.at(
            expiry_at,
            Deadline::Session {
                pool: self.key,
                session,
            },
        );
        if let Some(agent) = self.agents.get_mut(&agent_id).filter(|agent| agent.online) {
            agent.online = false;
            agent.status_changed_on = Some(context.now);
            self.reconsider(agent_id, context);
        }
    }

    fn watch_session(&self, session: Uuid, after: Duration, context: &mut Context<'_>) {
        context.agenda.at(
            context.now + after,
            Deadline::Session {
                pool: self.key,
                session,
            },
        );
    }

    /// The oldest message above `last_message` that was not deleted. It stays: agents read with
    /// two loops and drop what the second one gets (protocol section 6.3).
    pub(crate) fn next_message(&self, session: Uuid, last_message: i64) -> Option<&Message> {
        let agent = self.agents.get(&self.sessions.get(&session)?.agent)?;
        agent
            .messages
            .iter()
            .find(|message| message.id > last_message)
    }

    /// Removes a message: the agent has taken it.
    pub(crate) fn delete_message(&mut self, session: Uuid, id: i64, context: &mut Context<'_>) {
        let Some(agent_id) = self.sessions.get(&session).map(|session| session.agent) else {
            return;
        };
        let Some(agent) = self.agents.get_mut(&agent_id) else {
            return;
        };
        let Some(at) = agent.messages.iter().position(|message| message.id == id) else {
            return;
        };
        if let Some(message) = agent.messages.remove(at) {
            self.receive(message.request, context);
        }
    }
}
