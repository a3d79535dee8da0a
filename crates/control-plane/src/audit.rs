//! The API server's audit log: who asked for what, so that a test can count requests.

use std::{fs, io, path::Path};

use anyhow::Context as _;
use jiff::Timestamp;
use serde::Deserialize;

/// Everything is logged, without bodies. The stage before the request is carried out says nothing that the others do not.
pub(crate) const POLICY: &str = "\
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules: [{level: Metadata}]
";

/// One line of the audit log. A watch has two: `ResponseStarted` when it begins and `ResponseComplete` when it ends; every
/// other request has one, written before the client gets its answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditEvent {
    /// `get`, `list`, `watch`, `create`, `update`, `patch`, `delete`, `deletecollection`; of other paths the HTTP method.
    pub verb: String,
    /// The API group, empty for the core group and for paths without a resource.
    pub group: String,
    /// The resource in the plural, empty for paths without one (`/readyz`).
    pub resource: String,
    /// `status`, `binding`, …; empty without one.
    pub subresource: String,
    /// Empty for a resource that has none, or a request across all.
    pub namespace: String,
    /// Empty for a list or watch, and for a create that leaves the name to the server.
    pub name: String,
    /// The name of the [`crate::User`], or of a service account. Empty where the API server did not find out: it was just
    /// starting, or the request was broken off.
    pub user: String,
    /// The client's `User-Agent` header, empty without one.
    pub user_agent: String,
    /// `ResponseStarted`, `ResponseComplete` or `Panic`.
    pub stage: String,
    /// The HTTP status.
    pub code: u16,
    /// When the API server received the request.
    pub time: Timestamp,
}

impl AuditEvent {
    /// Whether the request meant to change something.
    pub fn is_write(&self) -> bool {
        matches!(
            self.verb.as_str(),
            "create" | "update" | "patch" | "delete" | "deletecollection"
        )
    }
}

/// Reads the log as far as it is written. The API server makes the file with its first event.
pub(crate) fn read(file: &Path) -> anyhow::Result<Vec<AuditEvent>> {
    let log = match fs::read_to_string(file) {
        Ok(log) => log,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).context("cannot read the audit log"),
    };
    log.split_inclusive('\n')
        .filter(|line| line.ends_with('\n')) // the last line may be half written
        .map(|line| {
            serde_json::from_str::<Line>(line)
                .map(AuditEvent::from)
                .context("cannot read the audit log")
        })
        .collect()
}

/// The wire form, `audit.k8s.io/v1` `Event`, as far as it is used.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Line {
    verb: String,
    stage: String,
    user: LineUser,
    #[serde(default)]
    user_agent: String,
    #[serde(default)]
    object_ref: LineObject,
    #[serde(default)]
    response_status: LineStatus,
    request_received_timestamp: Timestamp,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct LineUser {
    username: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct LineObject {
    #[serde(rename = "apiGroup")]
    group: String,
    resource: String,
    subresource: String,
    namespace: String,
    name: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct LineStatus {
    code: u16,
}

impl From<Line> for AuditEvent {
    fn from(line: Line) -> Self {
        Self {
            verb: line.verb,
            group: line.object_ref.group,
            resource: line.object_ref.resource,
            subresource: line.object_ref.subresource,
            namespace: line.object_ref.namespace,
            name: line.object_ref.name,
            user: line.user.username,
            user_agent: line.user_agent,
            stage: line.stage,
            code: line.response_status.code,
            time: line.request_received_timestamp,
        }
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;

    #[test]
    fn a_request_of_nobody_is_read_too() {
        let line = r#"{"level":"Metadata","stage":"ResponseStarted","requestURI":"/api/v1/namespaces/a/pods/b","verb":"get",
            "user":{},"objectRef":{"resource":"pods","namespace":"a","name":"b","apiVersion":"v1"},
            "responseStatus":{"metadata":{},"code":401},"requestReceivedTimestamp":"2026-01-01T00:00:00.000000Z"}"#;
        let event = AuditEvent::from(serde_json::from_str::<Line>(line).unwrap());
        assert_eq!(
            (event.user.as_str(), event.name.as_str(), event.code),
            ("", "b", 401)
        );
    }
}
