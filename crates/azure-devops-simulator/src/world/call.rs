//! Which operation a request asks for: addresses and routes, nothing of what they do.

use uuid::Uuid;

use super::message::{Method, Request};

/// A request's path, taken apart: `{organization}/{project}/_apis/{rest}`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Address<'a> {
    /// The organization or collection; none at the deployment root (protocol section 1.1).
    pub(crate) organization: Option<&'a str>,
    pub(crate) rest: &'a [String],
}

impl<'a> Address<'a> {
    /// None where the path has no `_apis`, which makes it a web page rather than an API.
    pub(crate) fn parse(segments: &'a [String]) -> Option<Self> {
        let at = segments
            .iter()
            .position(|segment| segment.eq_ignore_ascii_case("_apis"))?;
        let (prefix, rest) = (&segments[..at], &segments[at + 1..]);
        let prefix = match prefix {
            [first, more @ ..] if first.eq_ignore_ascii_case("tfs") => more,
            _ => prefix,
        };
        // A GUID is a project at the root: jobs of the deployment address their plan so.
        let organization = match prefix {
            [scope] if Uuid::parse_str(scope).is_ok() => None,
            [organization] | [organization, _] => Some(organization.as_str()),
            [] => None,
            _ => return None,
        };
        Some(Self { organization, rest })
    }
}

/// The operations that the simulator serves, with what their paths name.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Call {
    ConnectionData,
    Locations { area: Option<String> },
    ResourceAreas,
    Token,
    Packages,
    ListPools,
    AddPool,
    GetPool { pool: i64 },
    DeletePool { pool: i64 },
    ListAgents { pool: i64 },
    AddAgent { pool: i64 },
    GetAgent { pool: i64, agent: i64 },
    ReplaceAgent { pool: i64, agent: i64 },
    UpdateAgent { pool: i64, agent: i64 },
    DeleteAgent { pool: i64, agent: i64 },
    SetUserCapabilities { pool: i64, agent: i64 },
    ListJobRequests { pool: i64 },
    GetJobRequest { pool: i64, request: i64 },
    UpdateJobRequest { pool: i64, request: i64 },
    FinishJobRequest { pool: i64, request: i64 },
    CreateSession { pool: i64 },
    DeleteSession { pool: i64, session: Uuid },
    GetMessage { pool: i64 },
    DeleteMessage { pool: i64, message: i64 },
    PlanEvent { plan: Uuid },
    PlanRecords { plan: Uuid },
}

/// What a caller needs in order to make a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    Anonymous,
    /// Scope `vso.agentpools`.
    Read,
    /// Scope `vso.agentpools_manage`.
    Manage,
    /// The agent itself.
    Agent,
    /// The job's own token, or its agent.
    Job,
}

impl Access {
    /// The permission that a refusal names (protocol section 1.5).
    pub(crate) fn permission(self) -> &'static str {
        match self {
            Self::Anonymous | Self::Read => "View",
            Self::Manage => "Manage",
            Self::Agent | Self::Job => "Listen",
        }
    }
}

/// What a request asks for, as those who watch requests need it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asked {
    /// The operation, named as request counts name it (`Agents.Delete`).
    pub operation: &'static str,
    /// Id of the agent pool that it is about.
    pub pool: Option<i64>,
    /// Id of the agent that it is about.
    pub agent: Option<i64>,
}

impl Request {
    /// What the request asks for; `None` for what the service does not serve.
    pub fn asked(&self) -> Option<Asked> {
        let call = Call::parse(self, Address::parse(&self.segments)?.rest)?;
        Some(Asked {
            operation: call.operation(),
            pool: call.pool(),
            agent: call.agent(),
        })
    }
}

impl Call {
    pub(crate) fn parse(request: &Request, rest: &[String]) -> Option<Self> {
        use Method::{Delete, Get, Head, Options, Patch, Post, Put};
        let lower: Vec<String> = rest.iter().map(|segment| segment.to_lowercase()).collect();
        let path: Vec<&str> = lower.iter().map(String::as_str).collect();
        let number = |text: &str| text.parse::<i64>().ok();
        let guid = |text: &str| Uuid::parse_str(text).ok();
        Some(match (request.method, path.as_slice()) {
            (Options, []) => Self::Locations { area: None },
            (Options, [area, ..]) => Self::Locations {
                area: Some((*area).to_owned()),
            },
            (Get | Head, ["connectiondata"]) => Self::ConnectionData,
            (Get, ["resourceareas", ..]) => Self::ResourceAreas,
            (Post, ["oauth2", "token"]) => Self::Token,
            (_, ["distributedtask", "hubs", _, "plans", plan, "events"]) => {
                Self::PlanEvent { plan: guid(plan)? }
            }
            (_, ["distributedtask", "hubs", _, "plans", plan, ..]) => {
                Self::PlanRecords { plan: guid(plan)? }
            }
            (Get, ["distributedtask", "packages", ..]) => Self::Packages,
            (Get, ["distributedtask", "pools"]) => Self::ListPools,
            (Post, ["distributedtask", "pools"]) => Self::AddPool,
            (method, ["distributedtask", "pools", pool, path @ ..]) => {
                let pool = number(pool)?;
                match (method, path) {
                    (Get, []) => Self::GetPool { pool },
                    (Delete, []) => Self::DeletePool { pool },
                    (Get, ["agents"]) => Self::ListAgents { pool },
                    (Post, ["agents"]) => Self::AddAgent { pool },
                    (Get, ["agents", id]) => Self::GetAgent {
                        pool,
                        agent: number(id)?,
                    },
                    (Put, ["agents", id]) => Self::ReplaceAgent {
                        pool,
                        agent: number(id)?,
                    },
                    (Patch, ["agents", id]) => Self::UpdateAgent {
                        pool,
                        agent: number(id)?,
                    },
                    (Delete, ["agents", id]) => Self::DeleteAgent {
                        pool,
                        agent: number(id)?,
                    },
                    (Put, ["agents", id, "usercapabilities"]) => Self::SetUserCapabilities {
                        pool,
                        agent: number(id)?,
                    },
                    (Get, ["jobrequests"]) => Self::ListJobRequests { pool },
                    (Get, ["jobrequests", id]) => Self::GetJobRequest {
                        pool,
                        request: number(id)?,
                    },
                    (Patch, ["jobrequests", id]) => Self::UpdateJobRequest {
                        pool,
                        request: number(id)?,
                    },
                    (Delete, ["jobrequests", id]) => Self::FinishJobRequest {
                        pool,
                        request: number(id)?,
                    },
                    (Post, ["sessions"]) => Self::CreateSession { pool },
                    (Delete, ["sessions", id]) => Self::DeleteSession {
                        pool,
                        session: guid(id)?,
                    },
                    (Get, ["messages"]) => Self::GetMessage { pool },
                    (Delete, ["messages", id]) => Self::DeleteMessage {
                        pool,
                        message: number(id)?,
                    },
                    _ => return None,
                }
            }
            _ => return None,
        })
    }

    /// The name under which requests are counted, in the style of Microsoft's reference.
    pub(crate) fn operation(&self) -> &'static str {
        match self {
            Self::ConnectionData => "Location.ConnectionData",
            Self::Locations { .. } => "Location.Options",
            Self::ResourceAreas => "Location.ResourceAreas",
            Self::Token => "OAuth.Token",
            Self::Packages => "Packages.List",
            Self::ListPools => "Pools.List",
            Self::AddPool => "Pools.Add",
            Self::GetPool { .. } => "Pools.Get",
            Self::DeletePool { .. } => "Pools.Delete",
            Self::ListAgents { .. } => "Agents.List",
            Self::AddAgent { .. } => "Agents.Add",
            Self::GetAgent { .. } => "Agents.Get",
            Self::ReplaceAgent { .. } => "Agents.Replace",
            Self::UpdateAgent { .. } => "Agents.Update",
            Self::DeleteAgent { .. } => "Agents.Delete",
            Self::SetUserCapabilities { .. } => "UserCapabilities.Update",
            Self::ListJobRequests { .. } => "JobRequests.List",
            Self::GetJobRequest { .. } => "JobRequests.Get",
            Self::UpdateJobRequest { .. } => "JobRequests.Update",
            Self::FinishJobRequest { .. } => "JobRequests.Delete",
            Self::CreateSession { .. } => "Sessions.Create",
            Self::DeleteSession { .. } => "Sessions.Delete",
            Self::GetMessage { .. } => "Messages.Get",
            Self::DeleteMessage { .. } => "Messages.Delete",
            Self::PlanEvent { .. } => "Events.Post",
            Self::PlanRecords { .. } => "Plans.Records",
        }
    }

    pub(crate) fn access(&self) -> Access {
        match self {
            Self::ConnectionData | Self::Locations { .. } | Self::ResourceAreas | Self::Token => {
                Access::Anonymous
            }
            Self::Packages
            | Self::ListPools
            | Self::GetPool { .. }
            | Self::ListAgents { .. }
            | Self::GetAgent { .. }
            | Self::ListJobRequests { .. }
            | Self::GetJobRequest { .. } => Access::Read,
            Self::AddPool
            | Self::DeletePool { .. }
            | Self::AddAgent { .. }
            | Self::ReplaceAgent { .. }
            | Self::UpdateAgent { .. }
            | Self::DeleteAgent { .. }
            | Self::SetUserCapabilities { .. } => Access::Manage,
            Self::UpdateJobRequest { .. }
            | Self::FinishJobRequest { .. }
            | Self::CreateSession { .. }
            | Self::DeleteSession { .. }
            | Self::GetMessage { .. }
            | Self::DeleteMessage { .. } => Access::Agent,
            Self::PlanEvent { .. } | Self::PlanRecords { .. } => Access::Job,
        }
    }

    pub(crate) fn is_list(&self) -> bool {
        matches!(
            self,
            Self::ListPools
                | Self::ListAgents { .. }
                | Self::ListJobRequests { .. }
                | Self::Packages
        )
    }

    pub(crate) fn pool(&self) -> Option<i64> {
        match *self {
            Self::GetPool { pool }
            | Self::DeletePool { pool }
            | Self::ListAgents { pool }
            | Self::AddAgent { pool }
            | Self::GetAgent { pool, .. }
            | Self::ReplaceAgent { pool, .. }
            | Self::UpdateAgent { pool, .. }
            | Self::DeleteAgent { pool, .. }
            | Self::SetUserCapabilities { pool, .. }
            | Self::ListJobRequests { pool }
            | Self::GetJobRequest { pool, .. }
            | Self::UpdateJobRequest { pool, .. }
            | Self::FinishJobRequest { pool, .. }
            | Self::CreateSession { pool }
            | Self::DeleteSession { pool, .. }
            | Self::GetMessage { pool }
            | Self::DeleteMessage { pool, .. } => Some(pool),
            _ => None,
        }
    }

    fn agent(&self) -> Option<i64> {
        match *self {
            Self::GetAgent { agent, .. }
            | Self::ReplaceAgent { agent, .. }
            | Self::UpdateAgent { agent, .. }
            | Self::DeleteAgent { agent, .. }
            | Self::SetUserCapabilities { agent, .. } => Some(agent),
            _ => None,
        }
    }
}
