//! What an answer says: heads, pages of lists, refusals and waits. Pure: no connection, no clock, whatever the bytes.

use std::{io::Read, time::Duration};

use reqwest::{
    StatusCode,
    header::{CONTENT_TYPE, HeaderMap},
};
use serde::{Deserialize, de::DeserializeOwned};

use crate::{Error, RateLimit, pacing};

/// What an answer is, by its status and headers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Head {
    /// The service wants to be left alone.
    Throttled,
    /// A sign-in page or the way to one: the token was not accepted.
    SignIn,
    /// It can be read as JSON, or is empty.
    Readable,
    /// Any other status; the body tells why.
    Refusal,
}

/// What an answer with this status and these headers is. `empty` tells that it has no body.
pub fn head(status: StatusCode, headers: &HeaderMap, empty: bool) -> Head {
    if status == StatusCode::TOO_MANY_REQUESTS {
        Head::Throttled
    } else if status.is_redirection() || status == StatusCode::NON_AUTHORITATIVE_INFORMATION {
        Head::SignIn
    } else if !status.is_success() {
        Head::Refusal
    } else if status != StatusCode::NO_CONTENT && !empty && !is_json(headers) {
        // An empty answer, as to a DELETE, has no type.
        Head::SignIn
    } else {
        Head::Readable
    }
}

fn is_json(headers: &HeaderMap) -> bool {
    let content_type = headers
        .get(CONTENT_TYPE)
        .and_then(|value| value.to_str().ok());
    content_type.is_some_and(|value| {
        value
            .trim_start()
            .to_ascii_lowercase()
            .starts_with("application/json")
    })
}

/// How long the service asks to wait before the next request, at most as long as it is taken at its word.
pub fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    pacing::retry_after(headers)
}

/// What the service says of the identity's budget; `None` when it says nothing.
pub fn rate_limit(headers: &HeaderMap) -> Option<RateLimit> {
    RateLimit::read(headers)
}

#[derive(Deserialize)]
struct Page<T> {
    count: usize,
    value: Vec<T>,
}

/// One page of a list. A page that is not whole is an error: what it lacks must not be taken for gone.
pub fn page<T: DeserializeOwned>(
    operation: &'static str,
    body: impl Read,
) -> Result<Vec<T>, Error> {
    let Page { count, value } = object(operation, body)?;
    if count != value.len() {
        let detail = format!("{count} announced, {} sent", value.len());
        return Err(Error::Incomplete { operation, detail });
    }
    Ok(value)
}

/// One object.
pub fn object<T: DeserializeOwned>(operation: &'static str, body: impl Read) -> Result<T, Error> {
    serde_json::from_reader(body).map_err(|source| Error::Unreadable { operation, source })
}

/// Microsoft's error body.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct WrappedException {
    message: String,
    type_key: String,
}

/// Why the service refused. A gateway's page is no JSON; its status alone speaks then.
pub fn refusal(operation: &'static str, status: StatusCode, body: &[u8]) -> Error {
    let WrappedException { message, type_key } = serde_json::from_slice(body).unwrap_or_default();
    let message = if message.is_empty() {
        status
            .canonical_reason()
            .unwrap_or("no reason given")
            .into()
    } else {
        message
    };
    match status {
        StatusCode::UNAUTHORIZED => Error::Unauthorized {
            operation,
            detail: format!("the token was refused ({message}); renew it in the Secret"),
        },
        StatusCode::FORBIDDEN => Error::Unauthorized {
            operation,
            detail: format!(
                "the token may not do this ({message}); it needs the scope Agent Pools (read, manage)"
            ),
        },
        _ => Error::Status {
            operation,
            status,
            type_key,
            message,
        },
    }
}
