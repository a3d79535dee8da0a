//! Job requests as their agents see them: locks and ends (protocol sections 6.5 and 6.6).

use jiff::Timestamp;
use serde::{Deserialize, Deserializer};
use uuid::Uuid;

use super::{
    PoolKey, World,
    access::{Caller, Holder},
    error::ApiError,
    job::{End, JobResult, Surroundings},
    message::{Reply, Request},
};

impl World {
    /// Renewal of a lock, or, from agents of old plans, the end of a job (protocol section 6.5).
    #[expect(
        clippy::too_many_arguments,
        reason = "all of them are parts of one request"
    )]
    pub(super) fn update_job(
        &mut self,
        now: Timestamp,
        key: PoolKey,
        caller: &Caller,
        id: i64,
        change: &JobBody,
        request: &Request,
        base: &str,
    ) -> Result<Reply, ApiError> {
        let expired = self.settings.switches.expired_lock_status;
        let token = request
            .parameter("lockToken")
            .and_then(|text| Uuid::parse_str(text).ok());
        if token != Some(Uuid::nil()) {
            return Err(ApiError::job_token_expired(expired, id));
        }
        if let Some(result) = change.result {
            self.complete(now, key, caller, id, result, false)?;
        } else {
            let may = self.may_run(key, caller, id)?;
            self.in_pool(now, key, |pool, context| {
                pool.receive(id, context);
                let lock = context.now + context.switches.lock;
                let job = pool.jobs.get_mut(&id).filter(|job| !job.is_finished());
                let job = job.ok_or_else(|| ApiError::job_not_found(id))?;
                if !may {
                    return Err(ApiError::job_token_expired(expired, id));
                }
                job.locked_until = Some(lock);
                Ok(())
            })?;
        }
        let organization = self.organizations.get(key.organization);
        let shown = organization.and_then(|organization| {
            let job = organization.pool(key.pool)?.jobs.get(&id)?;
            let around = Surroundings {
                base,
                host_id: organization.id,
                project: organization.project,
                pool: key.pool,
                matched_agents: None,
            };
            Some(Reply::ok(&job.json(around)))
        });
        shown.ok_or_else(|| ApiError::job_not_found(id))
    }

    /// Whether the caller is the one to whom the job was given.
    fn may_run(&self, key: PoolKey, caller: &Caller, id: i64) -> Result<bool, ApiError> {
        let pool = self
            .pool(key)
            .ok_or_else(|| ApiError::pool_not_found(key.pool))?;
        let job = pool
            .jobs
            .get(&id)
            .ok_or_else(|| ApiError::job_not_found(id))?;
        let agent = job.agent.as_ref().map(|agent| agent.id);
        Ok(match caller {
            Caller::Token(Holder::Agent {
                pool,
                agent: holder,
            }) => *pool == key && agent == Some(*holder),
            Caller::Token(Holder::Job { pool, request }) => *pool == key && *request == id,
            _ => true,
        })
    }

    pub(super) fn complete(
        &mut self,
        now: Timestamp,
        key: PoolKey,
        caller: &Caller,
        id: i64,
        result: JobResult,
        shutting_down: bool,
    ) -> Result<(), ApiError> {
        if !self.may_run(key, caller, id)? {
            let status = self.settings.switches.expired_lock_status;
            return Err(ApiError::job_token_expired(status, id));
        }
        self.in_pool(now, key, |pool, context| {
            let job = pool.jobs.get(&id).filter(|job| !job.is_finished());
            let agent = job
                .ok_or_else(|| ApiError::job_not_found(id))?
                .agent
                .as_ref()
                .map(|agent| agent.id);
            if let Some(agent) = agent.and_then(|agent| pool.agents.get_mut(&agent)) {
                agent.shutting_down |= shutting_down;
            }
            pool.finish(id, result, End::Agent, context);
            Ok(())
        })
    }

    pub(super) fn plan_event(
        &mut self,
        now: Timestamp,
        organization: usize,
        caller: &Caller,
        plan: Uuid,
        event: &PlanEvent,
    ) -> Result<Reply, ApiError> {
        if !event.name.eq_ignore_ascii_case("JobCompleted") {
            return Ok(Reply::empty(200));
        }
        let pools = self
            .organizations
            .get(organization)
            .into_iter()
            .flat_map(|known| &known.pools);
        let mut of_plan = pools.filter(|pool| {
            let job = pool.jobs.get(&event.request_id);
            job.is_some_and(|job| job.plan_id == plan && job.job_id == event.job_id)
        });
        let key = of_plan.next().map(|pool| pool.key);
        let key = key.ok_or_else(|| ApiError::job_not_found(event.request_id))?;
        self.complete(
            now,
            key,
            caller,
            event.request_id,
            event.result,
            event.agent_shutting_down,
        )?;
        Ok(Reply::empty(200))
    }
}

#[derive(Deserialize)]
pub(super) struct JobBody {
    result: Option<JobResult>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct PlanEvent {
    name: String,
    #[serde(default)]
    request_id: i64,
    #[serde(default)]
    job_id: Uuid,
    #[serde(default = "succeeded", deserialize_with = "result_in_any_case")]
    result: JobResult,
    #[serde(default)]
    agent_shutting_down: bool,
}

fn succeeded() -> JobResult {
    JobResult::Succeeded
}

fn result_in_any_case<'de, D: Deserializer<'de>>(deserializer: D) -> Result<JobResult, D::Error> {
    let text = String::deserialize(deserializer)?;
    parse_result(&text).map_err(|_| serde::de::Error::custom("unknown result"))
}

pub(super) fn parse_result(text: &str) -> Result<JobResult, ApiError> {
    let mut letters = text.chars();
    let camel = letters
        .next()
        .map(|first| first.to_lowercase().chain(letters).collect::<String>());
    serde_json::from_value(camel.into())
        .map_err(|_| ApiError::bad_request(format!("{text} is no job result.")))
}
