//! Sessions and polls as requests; what they do to a pool is in [`super::session`].

use std::time::Duration;

use jiff::Timestamp;
use serde_json::json;
use uuid::Uuid;

use super::{
    PoolKey, Served, World,
    access::{Caller, Holder},
    agent::MessageKind,
    body,
    error::ApiError,
    message::{Reply, Request},
    session::SessionBody,
};

impl World {
    pub(super) fn create_session(
        &mut self,
        now: Timestamp,
        key: PoolKey,
        caller: &Caller,
        request: &Request,
    ) -> Result<Reply, ApiError> {
        let wanted: SessionBody = body(request)?;
        if !may_act_for(caller, key, wanted.agent.id) {
            return Err(ApiError::access_denied(&caller.identity(), "Listen"));
        }
        let (owner, agent) = (wanted.owner_name.clone(), wanted.agent.id);
        self.in_pool(now, key, |pool, context| {
            let session = pool.open_session(wanted, context)?;
            let name = pool.agents.get(&agent).map(|agent| agent.name.clone());
            Ok(Reply::ok(&json!({
                "sessionId": session,
                "ownerName": owner,
                "agent": { "id": agent, "name": name },
            })))
        })
    }

    pub(super) fn start_poll(
        &mut self,
        now: Timestamp,
        key: PoolKey,
        caller: &Caller,
        request: &Request,
        base: &str,
    ) -> Result<Served, ApiError> {
        let session = session_parameter(request)?;
        let last_message = request
            .parameter("lastMessageId")
            .and_then(|id| id.parse().ok())
            .unwrap_or(0);
        let Some(pool) = self.pool(key) else {
            return Err(ApiError::pool_not_found(key.pool));
        };
        if let Some(known) = pool.sessions.get(&session)
            && !may_act_for(caller, key, known.agent)
        {
            return Err(ApiError::access_denied(&caller.identity(), "Listen"));
        }
        Ok(
            match self.poll_messages(now, key, session, last_message, base) {
                Some(reply) => Served::Reply(reply),
                None => Served::Hold {
                    pool: key,
                    session,
                    last_message,
                },
            },
        )
    }

    /// The next message or the end of the session; none as long as there is nothing to say.
    pub(super) fn poll_messages(
        &mut self,
        now: Timestamp,
        key: PoolKey,
        session: Uuid,
        last_message: i64,
        base: &str,
    ) -> Option<Reply> {
        let Some(alive) = self.within(now, key, |pool, context| {
            pool.touch_session(session, context)
        }) else {
            return Some(ApiError::pool_not_found(key.pool).into_reply());
        };
        if !alive {
            let status = self.settings.switches.expired_session_status;
            return Some(ApiError::session_expired(status).into_reply());
        }
        let pool = self.pool(key)?;
        let message = pool.next_message(session, last_message)?.clone();
        let (kind, text) = match message.kind {
            MessageKind::Job => {
                let holder = Holder::Job {
                    pool: key,
                    request: message.request,
                };
                // Longer than any job: six hours is the service's default limit for one.
                let token = self.issue(holder, now, now + Duration::from_hours(48));
                let project = self.organizations.get(key.organization)?.project;
                let job = self.pool(key)?.jobs.get(&message.request)?;
                (
                    "PipelineAgentJobRequest",
                    job.message_body(base, project, &token),
                )
            }
            MessageKind::Cancellation => {
                let job = pool.jobs.get(&message.request)?;
                let text = json!({ "jobId": job.job_id, "timeout": "00:05:00" }).to_string();
                ("JobCancellation", text)
            }
        };
        Some(Reply::ok(
            &json!({ "messageId": message.id, "messageType": kind, "body": text }),
        ))
    }
}

pub(super) fn session_parameter(request: &Request) -> Result<Uuid, ApiError> {
    let text = request.parameter("sessionId").unwrap_or_default();
    Uuid::parse_str(text)
        .map_err(|_| ApiError::bad_request("sessionId is missing or no GUID.".to_owned()))
}

/// An agent acts for itself only; a token with manage rights may act for any.
fn may_act_for(caller: &Caller, key: PoolKey, agent: i64) -> bool {
    match caller {
        Caller::Token(Holder::Agent {
            pool,
            agent: holder,
        }) => *pool == key && *holder == agent,
        _ => true,
    }
}
