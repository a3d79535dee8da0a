//! A registration apart from the agent that uses it, for programs that configure an agent, run it later, and remove it, as
//! `config.sh` and `run.sh` do. It is kept as the real agent keeps it (protocol section 6.8); the token is not.

use reqwest::Method;
use serde_json::{Value, json};

use super::{
    Agent, Launch, capabilities,
    configure::{self, Registration},
    connection::{self, Credential, Error},
    listen,
};

/// An agent that is registered and need not run.
#[derive(Clone, Debug)]
pub struct Registered(Registration);

/// Why an agent was not registered, or its registration not removed.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct NotRegistered(#[from] Error);

impl NotRegistered {
    /// Whether the service refuses the credential.
    pub fn is_unauthorized(&self) -> bool {
        matches!(self.0, Error::Unauthorized)
    }
}

impl Registered {
    /// Registers an agent with the `AZP_*` variables of its launch, in place of one of the same name.
    ///
    /// # Errors
    /// Where the service does not take it.
    pub async fn register(launch: &Launch) -> Result<Self, NotRegistered> {
        Ok(Self(configure::configure(launch).await?))
    }

    /// Removes the registration, with a token that may do so. One that is gone counts as removed.
    ///
    /// # Errors
    /// Where the service does not do it, such as while a job runs.
    pub async fn remove(&self, token: &str) -> Result<(), NotRegistered> {
        let url = self.0.pool_url(&format!("agents/{}", self.0.id));
        let request = connection::request(Method::DELETE, &url, Credential::Pat(token));
        match connection::send(request).await {
            Err(error) if !error.is("TaskAgentNotFoundException") => Err(error.into()),
            _ => Ok(()),
        }
    }

    /// The contents of `.agent` and `.credentials`.
    pub fn files(&self) -> (Value, Value) {
        let Registration {
            server,
            pool,
            id,
            name,
            client_id,
            token_url,
            capabilities: _,
            token: _,
        } = &self.0;
        let agent =
            json!({ "agentId": id, "agentName": name, "poolId": pool, "serverUrl": server });
        let data = json!({ "clientId": client_id, "authorizationUrl": token_url });
        (agent, json!({ "scheme": "OAuth", "data": data }))
    }

    /// Reads [`Self::files`]; none where something is missing.
    pub fn from_files(agent: &Value, credentials: &Value) -> Option<Self> {
        let text = |value: &Value| value.as_str().map(str::to_owned);
        Some(Self(Registration {
            server: text(&agent["serverUrl"])?,
            pool: agent["poolId"].as_i64()?,
            id: agent["agentId"].as_i64()?,
            name: text(&agent["agentName"])?,
            client_id: text(&credentials["data"]["clientId"])?,
            token_url: text(&credentials["data"]["authorizationUrl"])?,
            capabilities: [].into(),
            token: String::new(),
        }))
    }

    /// Runs the agent on the current tokio runtime, as [`Agent::spawn`] does after it has registered one. Capabilities
    /// are what the launch has now.
    pub fn run(self, launch: Launch) -> Agent {
        let Self(mut registration) = self;
        registration.capabilities = capabilities::scan(&launch, &registration.name);
        Agent::start(|terminate, worker| async move {
            listen::listen(&registration, &launch, &terminate, &worker).await
        })
    }
}
