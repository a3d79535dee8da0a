//! The documented start script and `config.sh --unattended --replace` (protocol sections 3.3 and
//! 6.9), and `config.sh remove`.

use std::collections::BTreeMap;

use reqwest::Method;
use serde_json::{Value, json};
use url::Url;

use super::{
    Launch, Pace, capabilities,
    connection::{self, Credential, Error},
    key,
};

/// What a configured agent knows: the files `.agent` and `.credentials`.
#[derive(Clone, Debug)]
pub(super) struct Registration {
    /// The organization, without a slash at the end.
    pub(super) server: String,
    pub(super) pool: i64,
    pub(super) id: i64,
    pub(super) name: String,
    pub(super) client_id: String,
    pub(super) token_url: String,
    pub(super) capabilities: BTreeMap<String, String>,
    /// Kept by the start script, not by the agent.
    pub(super) token: String,
}

impl Registration {
    pub(super) fn pool_url(&self, rest: &str) -> String {
        format!(
            "{}/_apis/distributedtask/pools/{}/{rest}",
            self.server, self.pool
        )
    }
}

pub(super) async fn configure(launch: &Launch) -> Result<Registration, Error> {
    let missing =
        |name: &str| Error::Configuration(format!("error: missing {name} environment variable"));
    let variable = |name: &str| launch.env.get(name).filter(|value| !value.is_empty());
    let server = variable("AZP_URL").ok_or_else(|| missing("AZP_URL"))?;
    let server = server.trim_end_matches('/').to_owned();
    let token = match (variable("AZP_TOKEN_FILE"), variable("AZP_TOKEN")) {
        (Some(file), _) => tokio::fs::read_to_string(file)
            .await
            .map_err(|error| Error::Configuration(format!("failed to read {file}: {error}")))?,
        (None, Some(token)) => token.clone(),
        (None, None) => return Err(missing("AZP_TOKEN")),
    };
    let token = token.trim().to_owned();
    let pool_name = variable("AZP_POOL").map_or("Default", String::as_str);
    let name = variable("AZP_AGENT_NAME")
        .unwrap_or(&launch.host_name)
        .clone();
    let pat = Credential::Pat(&token);

    let pools = format!("{server}/_apis/distributedtask/pools");
    let data = connection::request(Method::GET, &format!("{server}/_apis/connectionData"), pat);
    connection::send(data).await?;
    let query = [("poolName", pool_name), ("poolType", "Automation")];
    let found = list(&pools, &query, pat).await?;
    let not_found = || Error::Configuration(format!("Agent pool not found: '{pool_name}'"));
    let pool = found
        .first()
        .and_then(|pool| pool["id"].as_i64())
        .ok_or_else(not_found)?;

    let agents = format!("{pools}/{pool}/agents");
    let known = list(
        &agents,
        &[("agentName", &name), ("includeCapabilities", "true")],
        pat,
    )
    .await?;
    let capabilities = capabilities::scan(launch, &name);
    let mut agent = known
        .into_iter()
        .next()
        .unwrap_or_else(|| json!({ "name": name }));
    let replaced = agent["id"].as_i64();
    agent["authorization"] = json!({ "publicKey": key::public_key() });
    agent["version"] = json!(capabilities::VERSION);
    agent["osDescription"] = json!(capabilities::OS_DESCRIPTION);
    agent["maxParallelism"] = json!(1);
    agent["provisioningState"] = json!("Provisioned");
    agent["systemCapabilities"] = json!(capabilities);
    let request = match replaced {
        Some(id) => connection::request(Method::PUT, &format!("{agents}/{id}"), pat),
        None => connection::request(Method::POST, &agents, pat),
    };
    let registered = connection::send(request.json(&agent)).await?;
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let unusable = || Error::Configuration("the registration came back incomplete".to_owned());
    let authorization = &registered["authorization"];
    Ok(Registration {
        id: registered["id"].as_i64().ok_or_else(unusable)?,
        client_id: text(&authorization["clientId"]).ok_or_else(unusable)?,
        token_url: text(&authorization["authorizationUrl"]).ok_or_else(unusable)?,
        server,
        pool,
        name,
        capabilities,
        token,
    })
}

/// Repeats until it works, as the documented script does, which waits 30 s in between; a
/// container that is to stop is killed meanwhile.
pub(super) async fn remove(registration: &Registration, pace: &Pace) {
    // Five minutes at the real pace: longer than containers are given to stop.
    const TRIES: usize = 10;
    let url = registration.pool_url(&format!("agents/{}", registration.id));
    for _ in 0..TRIES {
        let request =
            connection::request(Method::DELETE, &url, Credential::Pat(&registration.token));
        match connection::send(request).await {
            Ok(_) => return,
            Err(error) if error.is("TaskAgentNotFoundException") => return,
            Err(error) => {
                tracing::debug!(
                    error = &error as &dyn std::error::Error,
                    "Agent could not be removed"
                );
                tokio::time::sleep(pace.session_retry).await;
            }
        }
    }
}

async fn list(
    url: &str,
    query: &[(&str, &str)],
    credential: Credential<'_>,
) -> Result<Vec<Value>, Error> {
    let url = Url::parse_with_params(url, query)
        .map_err(|error| Error::Configuration(format!("AZP_URL is no URL: {error}")))?;
    let mut reply =
        connection::send(connection::request(Method::GET, url.as_str(), credential)).await?;
    match reply["value"].take() {
        Value::Array(items) => Ok(items),
        _ => Err(Error::Configuration(
            "the service answered no list".to_owned(),
        )),
    }
}
