//! Faults on demand: each with a kind, a probability, an end and a filter.

use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{
    World,
    access::{self, Caller},
    call::Call,
    error::ApiError,
    message::{Reply, Request},
    millis,
};

/// Something that goes wrong.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Fault {
    /// What goes wrong.
    #[serde(flatten)]
    pub kind: FaultKind,
    /// How likely each request is hit, from 0 to 1.
    pub probability: f64,
    /// How long the fault lasts from when it is added; for ever if absent. Milliseconds on the
    /// wire.
    #[serde(with = "optional_millis", skip_serializing_if = "Option::is_none")]
    pub duration: Option<Duration>,
    /// Only this operation (`Agents.List`) or, ending in a dot, these (`Agents.`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub operation: Option<String>,
    /// Only requests to this organization.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub organization: Option<String>,
    /// Only requests of this identity as the request counts name it (`agent`, `pat:default`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub identity: Option<String>,
}

/// What a fault does.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(
    rename_all = "camelCase",
    rename_all_fields = "camelCase",
    tag = "kind"
)]
pub enum FaultKind {
    /// The reply comes late.
    Latency {
        /// How late; on the wire `delay`, in milliseconds.
        #[serde(with = "millis")]
        delay: Duration,
    },
    /// The request is not served; a 5xx comes back. 502 to 504 carry a gateway's HTML.
    ServerError {
        /// The status.
        status: u16,
    },
    /// The request is not served; 429 with `Retry-After`.
    TooManyRequests {
        /// `Retry-After` in seconds.
        retry_after: u64,
    },
    /// The request is served, and the reply asks to wait before the next one.
    RetryAfter {
        /// `Retry-After` in seconds.
        retry_after: u64,
    },
    /// The request is not served; 203 with a sign-in page.
    SignInPage,
    /// The request is not served; 401.
    Unauthorized,
    /// The request is served; half of the reply's JSON arrives, in a well-formed reply.
    TruncatedBody,
    /// The request is not served; the connection is closed.
    DroppedConnection,
    /// A list is empty, with status 200.
    EmptyList,
    /// A read of pools, agents or job requests shows the state of some time ago, or, for that long
    /// after the fault began, the state at its beginning.
    StaleRead {
        /// How old; on the wire `age`, in milliseconds.
        #[serde(with = "millis")]
        age: Duration,
    },
    /// A write takes effect; then the connection is closed without a reply.
    LostReply,
}

impl Default for Fault {
    fn default() -> Self {
        Self::new(FaultKind::SignInPage)
    }
}

impl Fault {
    /// A fault that hits every request until it is cleared.
    pub fn new(kind: FaultKind) -> Self {
        Self {
            kind,
            probability: 1.0,
            duration: None,
            operation: None,
            organization: None,
            identity: None,
        }
    }

    /// The same fault for one operation, or for those that start with a name ending in a dot.
    #[must_use]
    pub fn on(self, operation: &str) -> Self {
        Self {
            operation: Some(operation.to_owned()),
            ..self
        }
    }

    fn hits(&self, operation: &str, organization: &str, identity: &str) -> bool {
        let operation_fits = self.operation.as_ref().is_none_or(|wanted| {
            operation == wanted || wanted.ends_with('.') && operation.starts_with(wanted.as_str())
        });
        operation_fits
            && self
                .organization
                .as_ref()
                .is_none_or(|wanted| wanted.eq_ignore_ascii_case(organization))
            && self
                .identity
                .as_ref()
                .is_none_or(|wanted| wanted == identity)
    }
}

/// A fault at work.
#[derive(Clone, Debug)]
pub(crate) struct ActiveFault {
    pub(crate) fault: Fault,
    pub(crate) until: Option<Timestamp>,
}

/// What faults and rate limiting decided about one request.
#[derive(Clone, Debug, Default)]
pub(crate) struct Verdict {
    pub(crate) delay: Duration,
    pub(crate) instead: Option<FaultKind>,
    pub(crate) stale: Option<Duration>,
    retry_after: Option<u64>,
    truncate: bool,
    lose_reply: bool,
    pub(crate) headers: Vec<(&'static str, String)>,
}

impl World {
    /// Rolls the dice of every fault for a request.
    pub(crate) fn judge(
        &mut self,
        now: Timestamp,
        call: Option<&Call>,
        organization: &str,
        caller: &Caller,
        request: &Request,
    ) -> Verdict {
        let mut verdict = Verdict::default();
        self.faults
            .retain(|active| active.until.is_none_or(|until| until > now));
        let operation = call.map_or("Unknown", Call::operation);
        let identity = caller.identity();
        for active in &self.faults {
            if !active.fault.hits(operation, organization, &identity)
                || !self.random.chance(active.fault.probability)
            {
                continue;
            }
            match active.fault.kind {
                FaultKind::Latency { delay } => verdict.delay += delay,
                FaultKind::RetryAfter { retry_after } => verdict.retry_after = Some(retry_after),
                FaultKind::TruncatedBody => verdict.truncate = true,
                FaultKind::StaleRead { age } => verdict.stale = Some(age),
                FaultKind::LostReply => verdict.lose_reply = request.method.is_write(),
                FaultKind::EmptyList if !call.is_some_and(Call::is_list) => {}
                _ => verdict.instead = verdict.instead.or_else(|| Some(active.fault.kind.clone())),
            }
        }
        verdict
    }
}

impl Verdict {
    /// The reply that stands in for the service's, if the request is not to be served.
    pub(crate) fn replacement(&self, request: &Request) -> Option<Reply> {
        Some(match *self.instead.as_ref()? {
            FaultKind::ServerError { status } if (502..=504).contains(&status) => Reply::html(
                status,
                "<html><body><h1>Service unavailable</h1></body></html>",
            ),
            FaultKind::ServerError { status } => ApiError::server_error(status).into_reply(),
            FaultKind::TooManyRequests { retry_after } => {
                let mut reply = ApiError::blocked().into_reply();
                reply.headers.push(("Retry-After", retry_after.to_string()));
                reply
            }
            FaultKind::SignInPage => access::sign_in_page(),
            FaultKind::Unauthorized => access::unauthorized(request),
            FaultKind::EmptyList => Reply::list(&[]),
            FaultKind::DroppedConnection => Reply {
                dropped: true,
                ..Reply::empty(500)
            },
            _ => return None,
        })
    }

    /// What happens to a finished reply on its way.
    pub(crate) fn apply(self, reply: &mut Reply) {
        reply.delay += self.delay;
        reply.dropped |= self.lose_reply;
        reply.headers.extend(self.headers);
        if let Some(seconds) = self.retry_after {
            reply.headers.push(("Retry-After", seconds.to_string()));
        }
        if self.truncate {
            reply.body.truncate(reply.body.len() / 2);
        }
    }
}

mod optional_millis {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer};

    use super::millis;

    #[derive(Deserialize)]
    struct Millis(#[serde(with = "millis")] Duration);

    #[expect(clippy::ref_option, reason = "the signature that serde asks for")]
    pub(super) fn serialize<S: Serializer>(
        value: &Option<Duration>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        match value {
            Some(duration) => millis::serialize(duration, serializer),
            None => serializer.serialize_none(),
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<Duration>, D::Error> {
        Ok(Option::<Millis>::deserialize(deserializer)?.map(|millis| millis.0))
    }
}
