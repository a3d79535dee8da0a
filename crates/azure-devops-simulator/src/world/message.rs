//! What goes into the world and what comes out of it: requests and responses as plain data.
//!
//! Nothing here knows sockets. A response may ask its carrier to misbehave (wait, cut the
//! connection), since a state machine cannot do that itself.

use std::time::Duration;

use base64::Engine as _;
use jiff::Timestamp;
use serde_json::Value;
use uuid::Uuid;

use super::{PoolKey, fault::Verdict, journal::Entry};

/// The HTTP methods that Azure DevOps' clients use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Method {
    /// Reads.
    Get,
    /// Reads without a body in the reply.
    Head,
    /// Creates, or hands something over.
    Post,
    /// Replaces.
    Put,
    /// Changes parts.
    Patch,
    /// Removes.
    Delete,
    /// Discovery of API locations.
    Options,
}

impl Method {
    /// The method of that name in upper case, if it is one that the protocol knows.
    pub fn parse(name: &str) -> Option<Self> {
        Some(match name {
            "GET" => Self::Get,
            "HEAD" => Self::Head,
            "POST" => Self::Post,
            "PUT" => Self::Put,
            "PATCH" => Self::Patch,
            "DELETE" => Self::Delete,
            "OPTIONS" => Self::Options,
            _ => return None,
        })
    }

    /// The name as it stands in a request line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::Head => "HEAD",
            Self::Post => "POST",
            Self::Put => "PUT",
            Self::Patch => "PATCH",
            Self::Delete => "DELETE",
            Self::Options => "OPTIONS",
        }
    }

    pub(crate) fn is_write(self) -> bool {
        matches!(self, Self::Post | Self::Put | Self::Patch | Self::Delete)
    }
}

/// One request.
#[derive(Clone, Debug)]
pub struct Request {
    /// The method.
    pub method: Method,
    /// Scheme, host and port as the client addressed them; links in replies start with it.
    pub base_url: String,
    /// The path, decoded per segment, without empty segments.
    pub segments: Vec<String>,
    /// The query's parameters, decoded, in order.
    pub query: Vec<(String, String)>,
    /// Header names in lower case with their values.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: Vec<u8>,
}

impl Request {
    /// A request for `target`, a path with an optional query, as on a request line.
    pub fn new(method: Method, base_url: &str, target: &str) -> Self {
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        Self {
            method,
            base_url: base_url.to_owned(),
            segments: path
                .split('/')
                .filter(|segment| !segment.is_empty())
                .map(decode)
                .collect(),
            query: url::form_urlencoded::parse(query.as_bytes())
                .into_owned()
                .collect(),
            headers: Vec::new(),
            body: Vec::new(),
        }
    }

    /// The same request with a header more.
    #[must_use]
    pub fn with_header(mut self, name: &str, value: &str) -> Self {
        self.headers
            .push((name.to_ascii_lowercase(), value.to_owned()));
        self
    }

    /// The same request with Basic authentication by a personal access token.
    #[must_use]
    pub fn with_pat(self, token: &str) -> Self {
        let value = base64::engine::general_purpose::STANDARD.encode(format!(":{token}"));
        self.with_header("authorization", &format!("Basic {value}"))
    }

    /// The same request with a JSON body.
    #[must_use]
    pub fn with_json(mut self, body: &Value) -> Self {
        self.body = body.to_string().into_bytes();
        self.with_header("content-type", "application/json; charset=utf-8")
    }

    /// The first value of a header; `name` in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.as_str())
    }

    /// The first value of a query parameter; names are compared without regard to case, as the
    /// service seems to do (protocol section 2).
    pub fn parameter(&self, name: &str) -> Option<&str> {
        let found = self
            .query
            .iter()
            .find(|(key, _)| key.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }

    pub(crate) fn flag(&self, name: &str) -> bool {
        self.parameter(name)
            .is_some_and(|value| value.eq_ignore_ascii_case("true"))
    }

    pub(crate) fn path(&self) -> String {
        format!("/{}", self.segments.join("/"))
    }
}

/// Decodes the percent escapes of one path segment. A plus sign stays: it means a blank in
/// queries only.
fn decode(segment: &str) -> String {
    let escaped = segment.replace('+', "%2B");
    let mut pairs = url::form_urlencoded::parse(escaped.as_bytes());
    pairs.next().map_or_else(String::new, |(name, value)| {
        if segment.contains('=') {
            format!("{name}={value}")
        } else {
            name.into_owned()
        }
    })
}

/// What the world says to a request.
#[derive(Clone, Debug)]
pub enum Response {
    /// The answer.
    Reply(Reply),
    /// No answer yet: a long poll.
    Wait(Wait),
}

impl Response {
    /// The reply, unless the request is held open.
    pub fn reply(self) -> Option<Reply> {
        match self {
            Self::Reply(reply) => Some(reply),
            Self::Wait(_) => None,
        }
    }
}

/// A finished answer.
#[derive(Clone, Debug)]
pub struct Reply {
    /// HTTP status code.
    pub status: u16,
    /// Header names with their values; a name may occur more than once.
    pub headers: Vec<(&'static str, String)>,
    /// The body, possibly empty.
    pub body: Vec<u8>,
    /// How long the carrier must hold the reply back: rate limiting or a latency fault.
    pub delay: Duration,
    /// The carrier must close the connection without sending anything.
    pub dropped: bool,
}

impl Reply {
    /// The body as JSON, `Null` where it is none.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or(Value::Null)
    }

    /// The first value of a header, its name compared without regard to case.
    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self
            .headers
            .iter()
            .find(|(key, _)| key.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }

    pub(crate) fn empty(status: u16) -> Self {
        Self {
            status,
            headers: Vec::new(),
            body: Vec::new(),
            delay: Duration::ZERO,
            dropped: false,
        }
    }

    pub(crate) fn ok(body: &Value) -> Self {
        Self::with_json(200, body)
    }

    pub(crate) fn with_json(status: u16, body: &Value) -> Self {
        let mut reply = Self::empty(status);
        reply.headers.push((
            "Content-Type",
            "application/json; charset=utf-8; api-version=7.1".to_owned(),
        ));
        reply.body = body.to_string().into_bytes();
        reply
    }

    pub(crate) fn html(status: u16, body: &str) -> Self {
        let mut reply = Self::empty(status);
        reply
            .headers
            .push(("Content-Type", "text/html; charset=utf-8".to_owned()));
        reply.body = body.as_bytes().to_vec();
        reply
    }

    /// The wrapper around each list (protocol section 1.4).
    pub(crate) fn list(items: &[Value]) -> Self {
        Self::ok(&serde_json::json!({ "count": items.len(), "value": items }))
    }
}

/// A request held open: [`crate::World::resume`] asks again when [`Wait::topic`] stirs and at
/// [`Wait::until`].
#[derive(Clone, Debug)]
pub struct Wait {
    /// When the wait ends at the latest.
    pub until: Timestamp,
    /// What it waits for.
    pub topic: Topic,
    pub(crate) poll: Poll,
}

/// Something that changes: an agent's session (a message came, the session ended) or a pool
/// (any change that the control API shows).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Topic(pub(crate) Uuid);

#[derive(Clone, Debug)]
pub(crate) enum Poll {
    Messages(Box<MessagePoll>),
    Pool(Box<Request>),
}

/// An agent's poll for messages.
#[derive(Clone, Debug)]
pub(crate) struct MessagePoll {
    pub(crate) pool: PoolKey,
    pub(crate) session: Uuid,
    pub(crate) last_message: i64,
    pub(crate) base_url: String,
    /// Written down only when the poll ends.
    pub(crate) entry: Entry,
    /// What faults and rate limiting decided when the request came.
    pub(crate) verdict: Verdict,
}
