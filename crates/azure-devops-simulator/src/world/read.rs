//! Reads of pools, agents and job requests. They see one organization and nothing else, so that a
//! past state can be read like the present one.

use std::{cmp::Reverse, collections::BTreeMap};

use jiff::Timestamp;
use serde_json::{Value, json};
use uuid::Uuid;

use super::{
    Organization,
    access::Caller,
    agent::{Agent, Include, Links},
    call::Call,
    demand,
    error::ApiError,
    job::{Job, Surroundings},
    message::{Reply, Request},
    pool::Pool,
    switches::{JobRequestOrder, MatchedAgents, Switches},
    wire,
};

/// Answers reads; none where the call is no read of pools, agents or job requests.
pub(super) fn read(
    switches: &Switches,
    organization: &Organization,
    caller: &Caller,
    call: &Call,
    request: &Request,
    base: &str,
) -> Option<Result<Reply, ApiError>> {
    let reader = Reader {
        switches,
        organization,
        request,
        base,
    };
    let pool = |id: i64| {
        organization
            .pool(id)
            .ok_or_else(|| ApiError::pool_not_found(id))
    };
    Some(match *call {
        Call::ListPools => Ok(reader.pools(caller)),
        Call::GetPool { pool: id } => pool(id).map(|pool| Reply::ok(&pool.json())),
        Call::ListAgents { pool: id } => pool(id).map(|pool| reader.agents(pool)),
        Call::GetAgent { pool: id, agent } => pool(id).and_then(|pool| {
            let not_found = || ApiError::agent_not_found(switches.unknown_agent_status, id, agent);
            let agent = pool.agents.get(&agent).ok_or_else(not_found)?;
            Ok(Reply::ok(&reader.agent(pool, agent)))
        }),
        Call::ListJobRequests { pool: id } => pool(id).and_then(|pool| reader.job_requests(pool)),
        Call::GetJobRequest { pool: id, request } => pool(id).and_then(|pool| {
            let job = pool
                .jobs
                .get(&request)
                .ok_or_else(|| ApiError::job_not_found(request))?;
            Ok(Reply::ok(&reader.job(pool, job, true)))
        }),
        Call::Packages => Ok(Reply::list(&[reader.package()])),
        _ => return None,
    })
}

struct Reader<'a> {
    switches: &'a Switches,
    organization: &'a Organization,
    request: &'a Request,
    base: &'a str,
}

/// The service returns at most this many with `$top` (protocol section 4.1).
const TOP_LIMIT: usize = 200;

impl Reader<'_> {
    fn pools(&self, caller: &Caller) -> Reply {
        let request = self.request;
        let ids = request.parameter("poolIds").map(numbers);
        let automation = request
            .parameter("poolType")
            .is_none_or(|kind| kind.eq_ignore_ascii_case("automation"));
        let manage = request
            .parameter("actionFilter")
            .is_some_and(|action| action.eq_ignore_ascii_case("manage"));
        let allowed = !manage || matches!(caller, Caller::Pat { manage: true, .. });
        let named = |name: &str, wanted: &str| {
            name == wanted
                || self.switches.pool_name_ignores_case && name.eq_ignore_ascii_case(wanted)
        };
        let wanted = self.organization.pools.iter().filter(|pool| {
            automation
                && allowed
                && request
                    .parameter("poolName")
                    .is_none_or(|name| named(&pool.name, name))
                && ids.as_ref().is_none_or(|ids| ids.contains(&pool.key.pool))
        });
        Reply::list(&wanted.map(Pool::json).collect::<Vec<_>>())
    }

    fn agents(&self, pool: &Pool) -> Reply {
        let demands = self
            .request
            .parameter("demands")
            .map(|csv| demand::normalise(&csv.split(',').map(str::to_owned).collect::<Vec<_>>()));
        let name = self.request.parameter("agentName");
        let wanted = pool.agents.values().filter(|agent| {
            name.is_none_or(|name| agent.name.eq_ignore_ascii_case(name))
                && demands
                    .as_ref()
                    .is_none_or(|demands| agent.satisfies(demands, self.switches))
        });
        Reply::list(
            &wanted
                .map(|agent| self.agent(pool, agent))
                .collect::<Vec<_>>(),
        )
    }

    fn agent(&self, pool: &Pool, agent: &Agent) -> Value {
        let shown = |flag: &str, id: Option<i64>| {
            let job = id
                .filter(|_| self.request.flag(flag))
                .and_then(|id| pool.jobs.get(&id));
            job.map(|job| self.job(pool, job, false))
        };
        let assigned = shown("includeAssignedRequest", agent.assigned);
        let last_completed = shown("includeLastCompletedRequest", agent.last_completed);
        let include = Include {
            capabilities: self.request.flag("includeCapabilities"),
            assigned: assigned.as_ref(),
            last_completed: last_completed.as_ref(),
        };
        agent.json(
            Links {
                base: self.base,
                pool: pool.key.pool,
            },
            include,
        )
    }

    /// Each parameter's effect as protocol section 4.1 has it.
    fn job_requests(&self, pool: &Pool) -> Result<Reply, ApiError> {
        let count = |name: &str| -> Result<Option<usize>, ApiError> {
            let bad = |text: &str| ApiError::bad_request(format!("{name} is no number: {text}"));
            self.request
                .parameter(name)
                .map(|text| text.parse().map_err(|_| bad(text)))
                .transpose()
        };
        let top = count("$top")?;
        let completed =
            count("completedRequestCount")?.unwrap_or(self.switches.default_completed_requests);
        let agents = self
            .request
            .parameter("agentIds")
            .or(self.request.parameter("agentId"))
            .map(numbers);
        let of_agent = |job: &&Job| {
            let agent = job.agent.as_ref().map(|agent| agent.id);
            agents
                .as_ref()
                .is_none_or(|ids| agent.is_some_and(|id| ids.contains(&id)))
        };
        let known = |id: &i64| pool.jobs.get(id);
        if let Some(top) = top {
            let after = self
                .request
                .parameter("continuationToken")
                .and_then(|text| text.parse().ok());
            let below = after.unwrap_or(i64::MAX);
            let page: Vec<&Job> = pool
                .jobs
                .range(..below)
                .rev()
                .map(|(_, job)| job)
                .take(top.min(TOP_LIMIT))
                .collect();
            let next = page
                .last()
                .map(|job| job.id)
                .filter(|id| pool.jobs.range(..id).next().is_some());
            let items: Vec<_> = page
                .into_iter()
                .map(|job| self.job(pool, job, false))
                .collect();
            let mut reply = Reply::list(&items);
            reply
                .headers
                .extend(next.map(|id| ("X-MS-ContinuationToken", id.to_string())));
            return Ok(reply);
        }
        let unfinished = pool.unfinished.iter().filter_map(known).filter(of_agent);
        let finished = pool
            .finished
            .iter()
            .rev()
            .filter_map(known)
            .filter(of_agent)
            .take(completed);
        let mut jobs: Vec<&Job> = unfinished.chain(finished).collect();
        match self.switches.job_request_order {
            JobRequestOrder::NewestFirst => jobs.sort_by_key(|job| Reverse(job.id)),
            JobRequestOrder::OldestFirst => jobs.sort_by_key(|job| job.id),
            // Multiplying by an odd constant scatters the ids, and always in the same way.
            JobRequestOrder::Mixed => {
                jobs.sort_by_key(|job| job.id.wrapping_mul(0x1e37_79b9_7f4a_7c15));
            }
        }
        let (plan, job_id) = (
            self.request.parameter("planId"),
            self.request.parameter("jobId"),
        );
        jobs.retain(|job| {
            let is = |wanted: Option<&str>, id: Uuid| {
                wanted.is_none_or(|text| Uuid::parse_str(text) == Ok(id))
            };
            is(plan, job.plan_id) && is(job_id, job.job_id)
        });
        // Many jobs with equal demands match the same agents: work them out once.
        let mut known = BTreeMap::new();
        let items = jobs.into_iter().map(|job| {
            let matched = match self.switches.matched_agents {
                MatchedAgents::Frozen => &self.matched(pool, job),
                MatchedAgents::Recomputed => &*known
                    .entry(&job.needs)
                    .or_insert_with(|| self.matched(pool, job)),
            };
            job.json(self.around(pool, Some(matched)))
        });
        Ok(Reply::list(&items.collect::<Vec<_>>()))
    }

    fn job(&self, pool: &Pool, job: &Job, with_matched: bool) -> Value {
        let matched = with_matched.then(|| self.matched(pool, job));
        job.json(self.around(pool, matched.as_deref()))
    }

    fn around<'a>(&'a self, pool: &Pool, matched_agents: Option<&'a [Value]>) -> Surroundings<'a> {
        Surroundings {
            base: self.base,
            host_id: self.organization.id,
            project: self.organization.project,
            pool: pool.key.pool,
            matched_agents,
        }
    }

    fn matched(&self, pool: &Pool, job: &Job) -> Vec<Value> {
        let ids = match self.switches.matched_agents {
            MatchedAgents::Recomputed => pool.matching(job, self.switches),
            MatchedAgents::Frozen => job.matched.to_vec(),
        };
        let links = Links {
            base: self.base,
            pool: pool.key.pool,
        };
        let agents = ids.iter().filter_map(|id| pool.agents.get(id));
        agents
            .map(|agent| agent.reference().json(links, false))
            .collect()
    }

    /// The agent's package, for start scripts that ask where to download it from.
    fn package(&self) -> Value {
        let version = json!({ "major": 4, "minor": 0, "patch": 0 });
        let platform = self.request.parameter("platform").unwrap_or("linux-x64");
        json!({
            "type": "agent",
            "platform": platform,
            "createdOn": wire::time(Timestamp::UNIX_EPOCH),
            "version": version,
            "downloadUrl": format!("{}/_packages/agent-{platform}.tar.gz", self.base),
            "filename": format!("agent-{platform}.tar.gz"),
        })
    }
}

fn numbers(csv: &str) -> Vec<i64> {
    csv.split(',')
        .filter_map(|text| text.trim().parse().ok())
        .collect()
}
