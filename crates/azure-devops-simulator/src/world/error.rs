//! Errors as the service words them: status, `typeKey` and text (protocol sections 1.4 to 1.6).

use serde_json::json;

use super::message::Reply;

/// A refusal with a JSON body.
#[derive(Clone, Debug)]
pub(crate) struct ApiError {
    pub(crate) status: u16,
    type_key: &'static str,
    namespace: &'static str,
    message: String,
}

const POOLS: &str = "Microsoft.TeamFoundation.DistributedTask.WebApi";
const FRAMEWORK: &str = "Microsoft.TeamFoundation.Framework.Server";
const WEB_API: &str = "Microsoft.VisualStudio.Services.WebApi";
const COMMON: &str = "Microsoft.VisualStudio.Services.Common";

impl ApiError {
    fn new(status: u16, namespace: &'static str, type_key: &'static str, message: String) -> Self {
        Self {
            status,
            type_key,
            namespace,
            message,
        }
    }

    pub(crate) fn pool_not_found(pool: i64) -> Self {
        let message = format!("No agent pool found with identifier {pool}.");
        Self::new(404, POOLS, "TaskAgentPoolNotFoundException", message)
    }

    pub(crate) fn pool_exists(name: &str) -> Self {
        let message = format!("Agent pool {name} already exists.");
        Self::new(409, POOLS, "TaskAgentPoolExistsException", message)
    }

    pub(crate) fn agent_not_found(status: u16, pool: i64, agent: i64) -> Self {
        let message = format!("No agent found for pool {pool} with identifier {agent}.");
        Self::new(status, POOLS, "TaskAgentNotFoundException", message)
    }

    pub(crate) fn agent_exists(pool: &str, agent: &str) -> Self {
        let message = format!("Pool {pool} already contains an agent with name {agent}.");
        Self::new(409, POOLS, "TaskAgentExistsException", message)
    }

    pub(crate) fn agent_busy(status: u16, type_key: BusyTypeKey, agent: &str, pool: &str) -> Self {
        let message = format!("Agent \"{agent}\" is running a job for pool \"{pool}\"");
        Self::new(status, POOLS, type_key.name(), message)
    }

    pub(crate) fn session_conflict(agent: &str, owner: &str) -> Self {
        let message =
            format!("The task agent {agent} already has an active session for owner {owner}.");
        Self::new(409, POOLS, "TaskAgentSessionConflictException", message)
    }

    pub(crate) fn session_expired(status: u16) -> Self {
        let message = "The session has expired. Create a new session to receive messages.";
        Self::new(
            status,
            POOLS,
            "TaskAgentSessionExpiredException",
            message.to_owned(),
        )
    }

    pub(crate) fn job_not_found(request: i64) -> Self {
        let message = format!("No job request found with identifier {request}.");
        Self::new(404, POOLS, "TaskAgentJobNotFoundException", message)
    }

    pub(crate) fn job_token_expired(status: u16, request: i64) -> Self {
        let message = format!("The lock of job request {request} has expired or is not yours.");
        Self::new(status, POOLS, "TaskAgentJobTokenExpiredException", message)
    }

    pub(crate) fn access_denied(who: &str, permission: &str) -> Self {
        let message = format!(
            "Access denied. {who} needs {permission} permissions to perform the action. \
             For more information, contact the Azure DevOps Server administrator."
        );
        Self::new(403, FRAMEWORK, "AccessDeniedException", message)
    }

    pub(crate) fn unauthorized() -> Self {
        let message = "TF400813: The user '' is not authorized to access this resource.";
        Self::new(
            401,
            FRAMEWORK,
            "UnauthorizedRequestException",
            message.to_owned(),
        )
    }

    pub(crate) fn token_expired() -> Self {
        let message = "Access Denied: The Personal Access Token used has expired.";
        Self::new(401, FRAMEWORK, "AccessCheckException", message.to_owned())
    }

    pub(crate) fn blocked() -> Self {
        let message = "TF400733: The request has been canceled: Request was blocked due to \
                       exceeding usage of resource Concurrency in namespace User.";
        Self::new(
            429,
            FRAMEWORK,
            "RequestBlockedException",
            message.to_owned(),
        )
    }

    pub(crate) fn server_error(status: u16) -> Self {
        let message = "TF400898: An Internal Error Occurred. Activity Id: simulated.";
        Self::new(
            status,
            FRAMEWORK,
            "TeamFoundationServiceException",
            message.to_owned(),
        )
    }

    pub(crate) fn version_missing(method: &str) -> Self {
        let message = format!(
            "No api-version was supplied for the \"{method}\" request. The version must be \
             supplied either as part of the Accept header (e.g. \"application/json; \
             api-version=1.0\") or as a query parameter (e.g. \"?api-version=1.0\")."
        );
        Self::new(400, WEB_API, "VssVersionNotSpecifiedException", message)
    }

    pub(crate) fn version_invalid(version: &str) -> Self {
        let message = format!("The api-version \"{version}\" is not a valid version.");
        Self::new(400, WEB_API, "VssInvalidApiVersionException", message)
    }

    pub(crate) fn preview_flag_missing(version: &str) -> Self {
        let message = format!(
            "The requested version \"{version}\" of the resource is under preview. The -preview \
             flag must be supplied in the api-version for such requests. For example: \
             \"{version}-preview\""
        );
        Self::new(400, WEB_API, "VssInvalidPreviewVersionException", message)
    }

    pub(crate) fn version_out_of_range(wanted: &str, latest: &str) -> Self {
        let message = format!(
            "The requested REST API version of {wanted} is out of range for this server. The \
             latest REST API version this server supports is {latest}."
        );
        Self::new(400, WEB_API, "VssVersionOutOfRangeException", message)
    }

    pub(crate) fn bad_request(message: String) -> Self {
        Self::new(400, COMMON, "VssPropertyValidationException", message)
    }

    pub(crate) fn no_such_resource(path: &str) -> Self {
        let message = format!("The resource cannot be found: {path}");
        Self::new(404, COMMON, "VssResourceNotFoundException", message)
    }

    pub(crate) fn into_reply(self) -> Reply {
        let body = json!({
            "$id": "1",
            "innerException": null,
            "message": self.message,
            "typeName": format!("{0}.{1}, {0}", self.namespace, self.type_key),
            "typeKey": self.type_key,
            "errorCode": 0,
            "eventId": 3000,
        });
        let mut reply = Reply::with_json(self.status, &body);
        let text: String = url::form_urlencoded::byte_serialize(self.message.as_bytes()).collect();
        reply
            .headers
            .push(("X-TFS-ServiceError", text.replace('+', "%20")));
        reply
    }
}

/// Which `typeKey` the refusal to delete a busy agent carries: not known (protocol section 1.5).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum BusyTypeKey {
    /// `TaskAgentJobStillRunningException`, the nearest one that agents know.
    #[default]
    JobStillRunning,
    /// `InvalidOperationException`, which says nothing: only the text tells.
    InvalidOperation,
}

impl BusyTypeKey {
    fn name(self) -> &'static str {
        match self {
            Self::JobStillRunning => "TaskAgentJobStillRunningException",
            Self::InvalidOperation => "InvalidOperationException",
        }
    }
}
