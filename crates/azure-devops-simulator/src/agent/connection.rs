//! Requests as an agent makes them, and how it sorts failures.

use std::sync::LazyLock;

use reqwest::{Method, RequestBuilder, StatusCode};
use serde_json::Value;

/// One client for all agents of the process: each client of its own would bring a connection
/// pool and a TLS configuration.
static CLIENT: LazyLock<reqwest::Client> = LazyLock::new(crate::http::client);

/// Why a request of an agent failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    /// Not configured as the start script wants it.
    #[error("{0}")]
    Configuration(String),
    /// No answer, or one that cannot be read.
    #[error("no usable answer")]
    Transport(#[from] reqwest::Error),
    /// The credential is refused: 401, or a sign-in page.
    #[error("the credential is refused")]
    Unauthorized,
    /// The service said no; agents go by the `typeKey`.
    #[error("{type_key}: {message} (status {status})")]
    Refused {
        status: u16,
        type_key: String,
        message: String,
    },
}

impl Error {
    pub(super) fn is(&self, wanted: &str) -> bool {
        matches!(self, Self::Refused { type_key, .. } if type_key == wanted)
    }
}

/// With what a request is signed.
#[derive(Clone, Copy, Debug)]
pub(super) enum Credential<'a> {
    /// Basic, with the user name that the real agent uses.
    Pat(&'a str),
    Bearer(&'a str),
}

/// A request with an api-version, as every one of the agent has.
pub(super) fn request(method: Method, url: &str, credential: Credential<'_>) -> RequestBuilder {
    let request = CLIENT
        .request(method, url)
        .header("Accept", "application/json;api-version=6.0-preview.2")
        .header(
            "User-Agent",
            "VSServices/4.260.0 (AzurePipelinesAgent; simulated)",
        )
        .header("X-TFS-FedAuthRedirect", "Suppress");
    match credential {
        Credential::Pat(token) => request.basic_auth("VstsAgent", Some(token)),
        Credential::Bearer(token) => request.bearer_auth(token),
    }
}

/// A request without a credential.
pub(super) fn anonymous(method: Method, url: &str) -> RequestBuilder {
    CLIENT.request(method, url)
}

/// Sends and reads: JSON, or `Null` where the reply has no body.
pub(super) async fn send(request: RequestBuilder) -> Result<Value, Error> {
    let response = request.send().await?;
    let status = response.status();
    if status == StatusCode::UNAUTHORIZED || status == StatusCode::NON_AUTHORITATIVE_INFORMATION {
        return Err(Error::Unauthorized);
    }
    let bytes = response.bytes().await?;
    let body: Option<Value> = if bytes.is_empty() {
        Some(Value::Null)
    } else {
        serde_json::from_slice(&bytes).ok()
    };
    let text = |name: &str| {
        let field = body.as_ref().and_then(|body| body[name].as_str());
        field.unwrap_or_default().to_owned()
    };
    match body {
        Some(body) if status.is_success() => Ok(body),
        _ => Err(Error::Refused {
            status: status.as_u16(),
            type_key: if text("error").is_empty() {
                text("typeKey")
            } else {
                text("error")
            },
            message: text("message") + &text("error_description"),
        }),
    }
}
