//! From a call to its reply: rights, version, then the read or the change itself.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::Deserialize;

use super::{
    Context, PoolKey, Served, World,
    access::Caller,
    body,
    call::{Access, Call},
    discovery,
    error::ApiError,
    fault::Verdict,
    listening::session_parameter,
    message::{Reply, Request},
    pool::Pool,
    read::read,
    work::{JobBody, parse_result},
};

impl World {
    pub(super) fn serve(
        &mut self,
        now: Timestamp,
        organization: usize,
        caller: &Caller,
        call: &Call,
        request: &Request,
        verdict: &Verdict,
    ) -> Served {
        if let Err(refusal) = self.authorize(caller, call.access(), request) {
            return Served::Reply(refusal);
        }
        let served = self.check_version(call, request).and_then(|()| {
            let base = self.base(organization, request);
            if let Call::GetMessage { pool } = *call {
                return self.start_poll(
                    now,
                    PoolKey { organization, pool },
                    caller,
                    request,
                    &base,
                );
            }
            let state = match verdict.stale {
                Some(age) if call.access() == Access::Read => self.past(now, age, organization),
                _ => None,
            };
            let state = state.or_else(|| self.organizations.get(organization));
            let read = state.and_then(|state| {
                read(&self.settings.switches, state, caller, call, request, &base)
            });
            let reply = match read {
                Some(reply) => reply?,
                None => self.act(now, organization, caller, call, request, &base)?,
            };
            Ok(Served::Reply(reply))
        });
        served.unwrap_or_else(|error| Served::Reply(error.into_reply()))
    }

    /// The api-version rules of protocol section 1.4.
    fn check_version(&self, call: &Call, request: &Request) -> Result<(), ApiError> {
        if matches!(call, Call::Token | Call::Locations { .. }) {
            return Ok(());
        }
        let of_header = |name: &str| {
            let parameters = request.header(name)?.split([';', ',']);
            let mut pairs = parameters.filter_map(|parameter| parameter.split_once('='));
            pairs
                .find(|(key, _)| key.trim().eq_ignore_ascii_case("api-version"))
                .map(|(_, value)| value.trim())
        };
        let version = request
            .parameter("api-version")
            .or_else(|| of_header("accept"))
            .or_else(|| of_header("content-type"));
        let Some(version) = version else {
            return if request.method.is_write() {
                Err(ApiError::version_missing(request.method.name()))
            } else {
                Ok(())
            };
        };
        let (number, preview) = match version.split_once('-') {
            Some((number, stage)) => (number, stage.starts_with("preview")),
            None => (version, false),
        };
        let parse = |text: &str| {
            let (major, minor) = text.split_once('.').unwrap_or((text, "0"));
            Some((major.parse::<u32>().ok()?, minor.parse::<u32>().ok()?))
        };
        let wanted = parse(number).ok_or_else(|| ApiError::version_invalid(version))?;
        let latest = &self.settings.latest_api_version;
        if parse(latest).is_some_and(|latest| wanted > latest) {
            return Err(ApiError::version_out_of_range(number, latest));
        }
        if self.settings.switches.preview_flag_required && !preview && call.pool().is_some() {
            return Err(ApiError::preview_flag_missing(number));
        }
        Ok(())
    }

    /// Everything that is not a read of pools, agents or job requests.
    fn act(
        &mut self,
        now: Timestamp,
        organization: usize,
        caller: &Caller,
        call: &Call,
        request: &Request,
        base: &str,
    ) -> Result<Reply, ApiError> {
        let key = |pool: i64| PoolKey { organization, pool };
        match *call {
            Call::ConnectionData => {
                let instance = self.organizations.get(organization).map(|known| known.id);
                let data = discovery::connection_data(
                    instance.unwrap_or_default(),
                    base,
                    &caller.identity(),
                );
                Ok(Reply::ok(&data))
            }
            Call::Locations { ref area } => {
                let latest = &self.settings.latest_api_version;
                Ok(Reply::list(&discovery::locations(area.as_deref(), latest)))
            }
            Call::ResourceAreas | Call::PlanRecords { .. } => Ok(Reply::list(&[])),
            Call::Token => Ok(self.token(now, request)),
            Call::AddPool => {
                let wanted: PoolBody = body(request)?;
                let id = self
                    .add_pool(now, organization, &wanted.name)
                    .ok_or_else(|| ApiError::pool_exists(&wanted.name))?;
                let auto_provision = wanted.auto_provision;
                let pool = self.within(now, key(id), |pool, _| {
                    pool.auto_provision = auto_provision;
                    pool.json()
                });
                pool.map(|pool| Reply::ok(&pool))
                    .ok_or_else(|| ApiError::pool_not_found(id))
            }
            Call::DeletePool { pool } => {
                if self.remove_pool(now, key(pool)) {
                    Ok(Reply::empty(204))
                } else {
                    Err(ApiError::pool_not_found(pool))
                }
            }
            Call::AddAgent { pool } => self.add_agent(now, key(pool), body(request)?, base),
            Call::ReplaceAgent { pool, agent } => {
                self.replace_agent(now, key(pool), agent, body(request)?, base)
            }
            Call::UpdateAgent { pool, agent } => {
                self.update_agent(now, key(pool), agent, body(request)?, base)
            }
            Call::SetUserCapabilities { pool, agent } => {
                let capabilities: BTreeMap<String, String> = body(request)?;
                self.change_agent(now, key(pool), agent, base, |agent| {
                    agent.user_capabilities = capabilities.into_iter().collect();
                })
            }
            Call::DeleteAgent { pool, agent } => self.delete_agent(now, key(pool), agent),
            Call::CreateSession { pool } => self.create_session(now, key(pool), caller, request),
            Call::DeleteSession { pool, session } => {
                self.in_pool(now, key(pool), |pool, context| {
                    pool.end_session(session, context);
                    Ok(Reply::empty(200))
                })
            }
            Call::DeleteMessage { pool, message } => {
                let session = session_parameter(request)?;
                self.in_pool(now, key(pool), |pool, context| {
                    if !pool.touch_session(session, context) {
                        return Err(ApiError::session_expired(
                            context.switches.expired_session_status,
                        ));
                    }
                    pool.delete_message(session, message, context);
                    Ok(Reply::empty(200))
                })
            }
            Call::UpdateJobRequest { pool, request: id } => {
                let change: JobBody = body(request)?;
                self.update_job(now, key(pool), caller, id, &change, request, base)
            }
            Call::FinishJobRequest { pool, request: id } => {
                let result = request.parameter("result").unwrap_or("canceled");
                let result = parse_result(result)?;
                let shutting_down = request.flag("agentShuttingDown");
                self.complete(now, key(pool), caller, id, result, shutting_down)?;
                Ok(Reply::empty(204))
            }
            Call::PlanEvent { plan } => {
                self.plan_event(now, organization, caller, plan, &body(request)?)
            }
            _ => Err(ApiError::no_such_resource(&request.path())),
        }
    }

    /// Does something to a pool that must be there.
    pub(super) fn in_pool<T>(
        &mut self,
        now: Timestamp,
        key: PoolKey,
        change: impl FnOnce(&mut Pool, &mut Context<'_>) -> Result<T, ApiError>,
    ) -> Result<T, ApiError> {
        self.within(now, key, change)
            .unwrap_or_else(|| Err(ApiError::pool_not_found(key.pool)))
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct PoolBody {
    name: String,
    #[serde(default)]
    auto_provision: bool,
}
