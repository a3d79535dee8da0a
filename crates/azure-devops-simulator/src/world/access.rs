//! Who asks: personal access tokens, agents' own tokens, jobs' tokens; and what a refusal looks
//! like (protocol sections 1.6 and 7).

use base64::{Engine as _, engine::general_purpose::STANDARD};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{
    PoolKey, World,
    call::Access,
    error::ApiError,
    message::{Method, Reply, Request},
};

/// What a personal access token may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Scope {
    /// Agent Pools (read).
    #[serde(rename = "vso.agentpools")]
    Read,
    /// Agent Pools (read, manage).
    #[serde(rename = "vso.agentpools_manage")]
    Manage,
}

/// A personal access token to be created.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct PatSpec {
    /// Under which name its requests are counted: `pat:{name}`.
    pub name: String,
    /// The token itself; made up if absent.
    pub token: Option<String>,
    /// What it may do.
    pub scopes: Vec<Scope>,
    /// When it stops working.
    pub expires: Option<Timestamp>,
}

impl Default for PatSpec {
    fn default() -> Self {
        Self {
            name: "default".to_owned(),
            token: None,
            scopes: vec![Scope::Read, Scope::Manage],
            expires: None,
        }
    }
}

#[derive(Clone, Debug)]
pub(crate) struct Pat {
    pub(crate) name: String,
    pub(crate) token: String,
    pub(crate) scopes: Vec<Scope>,
    pub(crate) expires: Option<Timestamp>,
    pub(crate) revoked: bool,
}

/// A token that the simulator handed out itself.
#[derive(Clone, Debug)]
pub(crate) struct Token {
    pub(crate) holder: Holder,
    pub(crate) expires: Timestamp,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Holder {
    Agent { pool: PoolKey, agent: i64 },
    Job { pool: PoolKey, request: i64 },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Caller {
    /// No credential at all.
    Anonymous,
    /// A personal access token that is unknown, revoked or another organization's.
    DeadPat,
    ExpiredPat,
    /// A bearer token that is unknown or expired.
    DeadToken,
    Pat {
        organization: usize,
        name: String,
        read: bool,
        manage: bool,
        /// Agents register with the user name `VstsAgent` (protocol section 7.1).
        registration: bool,
    },
    Token(Holder),
}

impl Caller {
    /// The name under which requests are counted.
    pub(crate) fn identity(&self) -> String {
        match self {
            Self::Anonymous => "anonymous".to_owned(),
            Self::DeadPat | Self::ExpiredPat | Self::DeadToken => "unauthorized".to_owned(),
            Self::Pat {
                registration: true, ..
            } => "registration".to_owned(),
            Self::Pat { name, .. } => format!("pat:{name}"),
            Self::Token(Holder::Agent { .. }) => "agent".to_owned(),
            Self::Token(Holder::Job { .. }) => "job".to_owned(),
        }
    }

    /// Whose budget rate limiting charges. Agents count one by one; a token is one identity for
    /// everything that it is used for.
    pub(crate) fn account(&self) -> Option<String> {
        match self {
            Self::Pat {
                organization, name, ..
            } => Some(format!("{organization}/{name}")),
            Self::Token(holder) => Some(format!("{holder:?}")),
            Self::Anonymous | Self::DeadPat | Self::ExpiredPat | Self::DeadToken => None,
        }
    }

    pub(crate) fn organization(&self) -> Option<usize> {
        match self {
            Self::Pat { organization, .. } => Some(*organization),
            Self::Token(Holder::Agent { pool, .. } | Holder::Job { pool, .. }) => {
                Some(pool.organization)
            }
            _ => None,
        }
    }
}

impl World {
    /// Reads the credential. `organization` is the addressed one; at the deployment root any will
    /// do and the credential tells which is meant.
    pub(crate) fn identify(
        &self,
        now: Timestamp,
        organization: Option<usize>,
        request: &Request,
    ) -> Caller {
        let Some((scheme, value)) = request
            .header("authorization")
            .and_then(|header| header.split_once(' '))
        else {
            return Caller::Anonymous;
        };
        if scheme.eq_ignore_ascii_case("bearer") {
            return match self.tokens.get(value.trim()) {
                Some(token) if token.expires > now => Caller::Token(token.holder),
                Some(_) => Caller::DeadToken,
                // A personal access token as bearer stands in for a token of Entra.
                None => match self.identify_pat(now, organization, "", value.trim()) {
                    Caller::DeadPat => Caller::DeadToken,
                    caller => caller,
                },
            };
        }
        let decoded = STANDARD
            .decode(value.trim())
            .ok()
            .and_then(|bytes| String::from_utf8(bytes).ok());
        match decoded.as_deref().and_then(|text| text.split_once(':')) {
            Some((user, password)) => self.identify_pat(now, organization, user, password),
            None => Caller::DeadPat,
        }
    }

    fn identify_pat(
        &self,
        now: Timestamp,
        organization: Option<usize>,
        user: &str,
        password: &str,
    ) -> Caller {
        let addressed = self.organizations.iter().enumerate();
        let mut pats = addressed
            .filter(|(index, _)| organization.is_none_or(|wanted| wanted == *index))
            .flat_map(|(index, organization)| {
                organization.pats.iter().map(move |pat| (index, pat))
            });
        match pats.find(|(_, pat)| pat.token == password) {
            Some((_, pat)) if pat.revoked => Caller::DeadPat,
            Some((_, pat)) if pat.expires.is_some_and(|at| at <= now) => Caller::ExpiredPat,
            Some((index, pat)) => Caller::Pat {
                organization: index,
                name: pat.name.clone(),
                read: !pat.scopes.is_empty(),
                manage: pat.scopes.contains(&Scope::Manage),
                registration: user.eq_ignore_ascii_case("VstsAgent"),
            },
            None => Caller::DeadPat,
        }
    }

    /// Refuses a caller that lacks what a call needs.
    pub(crate) fn authorize(
        &self,
        caller: &Caller,
        access: Access,
        request: &Request,
    ) -> Result<(), Reply> {
        let denied = |permission: &str| {
            Err(ApiError::access_denied(&caller.identity(), permission).into_reply())
        };
        match (access, caller) {
            (Access::Anonymous, _) => Ok(()),
            (_, Caller::Anonymous | Caller::DeadToken) => Err(unauthorized(request)),
            (_, Caller::ExpiredPat) if self.settings.switches.expired_pat_says_so => {
                Err(ApiError::token_expired().into_reply())
            }
            (_, Caller::DeadPat | Caller::ExpiredPat) => Err(self.dead_credential(request)),
            (_, Caller::Pat { read, manage, .. }) => {
                let allowed = if access == Access::Read {
                    *read
                } else {
                    *manage
                };
                if allowed {
                    Ok(())
                } else {
                    denied(access.permission())
                }
            }
            (_, Caller::Token(holder)) => {
                let job = matches!(holder, Holder::Job { .. });
                let allowed = match access {
                    Access::Manage => false,
                    Access::Read | Access::Agent => !job,
                    Access::Anonymous | Access::Job => true,
                };
                if allowed {
                    Ok(())
                } else {
                    denied(access.permission())
                }
            }
        }
    }

    /// What a dead personal access token gets: a sign-in page for GET and POST, unless the client
    /// asked for none.
    pub(crate) fn dead_credential(&self, request: &Request) -> Reply {
        let suppressed = self.settings.switches.suppress_redirect
            && request
                .header("x-tfs-fedauthredirect")
                .is_some_and(|value| value.eq_ignore_ascii_case("suppress"));
        match request.method {
            Method::Get | Method::Head | Method::Post if !suppressed => sign_in_page(),
            Method::Get | Method::Head | Method::Post => unauthorized(request),
            _ => ApiError::unauthorized().into_reply(),
        }
    }
}

pub(crate) fn sign_in_page() -> Reply {
    Reply::html(
        203,
        "<!DOCTYPE html><html><head><title>Azure DevOps Services | Sign In</title></head>\
         <body><form action=\"/_signin\">Sign in to Azure DevOps</form></body></html>",
    )
}

/// The 401 for callers without a credential, with all its headers (protocol section 1.6).
pub(crate) fn unauthorized(request: &Request) -> Reply {
    const TENANT: &str = "00000000-0000-0000-0000-000000000001";
    let base = &request.base_url;
    let mut reply = Reply::html(
        401,
        "TF400813: Resource not available for anonymous access. Client authentication required.",
    );
    let authority = format!("Bearer authorization_uri=https://login.microsoftonline.com/{TENANT}");
    reply.headers.extend([
        ("WWW-Authenticate", authority),
        ("WWW-Authenticate", format!("Basic realm=\"{base}/\"")),
        ("WWW-Authenticate", "TFS-Federated".to_owned()),
        ("X-TFS-FedAuthRealm", format!("{base}/")),
        ("X-TFS-FedAuthIssuer", format!("{base}/")),
        (
            "X-TFS-FedAuthRedirect",
            format!("{base}/_signin?realm=dev.azure.com&reply_to={base}/"),
        ),
        ("X-VSS-ResourceTenant", TENANT.to_owned()),
    ]);
    reply
}
