//! The control API over HTTP: routes below `/_simulator`, in JSON, without a credential.

use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Value, json};

use super::{
    Changed, ControlError, World,
    message::{Method, Poll, Reply, Request, Response, Wait},
};

/// A wait for a change of a pool ends after that long at the latest: below the usual patience of
/// proxies.
const LONGEST_WAIT: Duration = Duration::from_secs(30);

/// Why a control request over HTTP fails.
enum Refusal {
    NoRoute,
    BadBody(String),
    Refused(ControlError),
}

impl From<ControlError> for Refusal {
    fn from(error: ControlError) -> Self {
        Self::Refused(error)
    }
}

#[derive(Deserialize)]
struct Named {
    name: String,
}

#[derive(Deserialize)]
struct TokenBody {
    token: String,
}

impl World {
    pub(super) fn control(&mut self, now: Timestamp, request: &Request) -> Response {
        self.control_at(now, request, true)
    }

    /// `hold` says whether a wait for a change may go on.
    pub(super) fn control_at(&mut self, now: Timestamp, request: &Request, hold: bool) -> Response {
        if let Some(wait) = self.hold_for_change(now, request).filter(|_| hold) {
            return Response::Wait(wait);
        }
        let (status, message) = match self.control_call(now, request) {
            Ok(value) => return Response::Reply(Reply::ok(&value)),
            Err(Refusal::NoRoute) => (404, "no such control operation".to_owned()),
            Err(Refusal::BadBody(message)) => (400, message),
            Err(Refusal::Refused(error)) => {
                let status = match error {
                    ControlError::BadOrganization(_)
                    | ControlError::PoolExists(_)
                    | ControlError::BadAgent(_) => 409,
                    ControlError::BadValue(_) => 400,
                    _ => 404,
                };
                (status, error.to_string())
            }
        };
        Response::Reply(Reply::with_json(status, &json!({ "message": message })))
    }

    /// A read of a pool with `?after={revision}` waits until the pool has a greater one.
    fn hold_for_change(&self, now: Timestamp, request: &Request) -> Option<Wait> {
        let after: u64 = request.parameter("after")?.parse().ok()?;
        let [_, _, organization, _, pool, ..] = request.segments.as_slice() else {
            return None;
        };
        let pool = self.pool_by_name(organization, pool).ok()?;
        (pool.revision <= after).then(|| Wait {
            until: now + LONGEST_WAIT,
            topic: pool.topic,
            poll: Poll::Pool(Box::new(request.clone())),
        })
    }

    fn control_call(&mut self, now: Timestamp, request: &Request) -> Result<Value, Refusal> {
        use Method::{Delete, Get, Post, Put};
        let segments: Vec<&str> = request
            .segments
            .iter()
            .skip(1)
            .map(String::as_str)
            .collect();
        let done = json!({});
        Ok(match (request.method, segments.as_slice()) {
            (Post, ["organizations"]) => {
                self.create_organization(&read::<Named>(request)?.name)?;
                done
            }
            (Post, ["organizations", organization, "pools"]) => {
                let name = read::<Named>(request)?.name;
                json!({ "id": self.create_pool(now, organization, &name)? })
            }
            (Delete, ["organizations", organization, "pools", pool]) => {
                self.delete_pool(now, organization, pool)?;
                done
            }
            (Post, ["organizations", organization, "pats"]) => {
                json!({ "token": self.create_pat(organization, read(request)?)? })
            }
            (Post, ["organizations", organization, "pats", "revoke"]) => {
                self.revoke_pat(organization, &read::<TokenBody>(request)?.token)?;
                done
            }
            (Post, ["organizations", organization, "pats", "restore"]) => {
                self.restore_pat(organization, &read::<TokenBody>(request)?.token)?;
                done
            }
            (Get, ["organizations", organization, "pools", pool, "jobs"]) => {
                let revision = self.pool_by_name(organization, pool)?.revision;
                json!(Changed {
                    revision,
                    value: self.jobs(organization, pool)?
                })
            }
            (Post, ["organizations", organization, "pools", pool, "jobs"]) => {
                json!({ "ids": self.queue_jobs(now, organization, pool, &read(request)?)? })
            }
            (Post, ["organizations", organization, "jobs", id, "cancel"]) => {
                let id = id.parse().map_err(|_| Refusal::NoRoute)?;
                self.cancel_job(now, organization, id)?;
                done
            }
            (Get, ["organizations", organization, "pools", pool, "agents"]) => {
                let revision = self.pool_by_name(organization, pool)?.revision;
                json!(Changed {
                    revision,
                    value: self.agents(organization, pool)?
                })
            }
            (Post, ["organizations", organization, "pools", pool, "agents"]) => {
                json!({ "id": self.add_agent_by_hand(now, organization, pool, read(request)?)? })
            }
            (
                Delete,
                [
                    "organizations",
                    organization,
                    "pools",
                    pool,
                    "agents",
                    agent,
                ],
            ) => {
                self.delete_agent_by_hand(now, organization, pool, agent)?;
                done
            }
            (Get, ["organizations", organization, "pools", pool, "summary"]) => {
                json!(self.summary(organization, pool)?)
            }
            (Get, ["faults"]) => json!(self.faults(now)),
            (Post, ["faults"]) => {
                self.add_fault(now, read(request)?)?;
                done
            }
            (Delete, ["faults"]) => {
                self.clear_faults();
                done
            }
            (Get, ["requests"]) => json!(self.requests(request.parameter("organization"))),
            (Get, ["requests", "log"]) => json!(self.request_log()),
            (Delete, ["requests"]) => {
                self.reset_requests();
                done
            }
            (Get, ["switches"]) => json!(self.switches()),
            (Put, ["switches"]) => {
                self.set_switches(now, read(request)?);
                done
            }
            (Put, ["rate-limit"]) => {
                self.set_rate_limit(read(request)?);
                done
            }
            _ => return Err(Refusal::NoRoute),
        })
    }
}

fn read<T: DeserializeOwned>(request: &Request) -> Result<T, Refusal> {
    serde_json::from_slice(&request.body).map_err(|error| Refusal::BadBody(error.to_string()))
}
