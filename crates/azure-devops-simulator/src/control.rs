//! A client of the control API, for tests and the command line, in this process or another.

use std::sync::Arc;

use reqwest::RequestBuilder;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::{Value, json};
use url::Url;

use crate::world::{
    AgentSpec, AgentView, Changed, Entry, Fault, JobSpec, JobView, PatSpec, RateLimit,
    RequestCounts, Summary, Switches,
};

/// A client of the control API. Clones share their connections.
#[derive(Clone, Debug)]
pub struct Control {
    client: reqwest::Client,
    root: Arc<Url>,
}

/// Why a control request failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The simulator cannot be reached, or what it said cannot be read.
    #[error("failed to reach the simulator")]
    Request(#[from] reqwest::Error),
    /// The simulator said no.
    #[error("the simulator refused: {message} (status {status})")]
    Refused {
        /// HTTP status.
        status: u16,
        /// Why.
        message: String,
    },
}

/// Short for this module's results.
pub type Result<T> = std::result::Result<T, Error>;

impl Control {
    /// A client for the simulator at a root URL.
    pub fn new(root: Url) -> Self {
        Self {
            client: crate::http::client(),
            root: Arc::new(root),
        }
    }

    /// Adds an organization.
    pub async fn create_organization(&self, name: &str) -> Result<()> {
        self.post(&["organizations"], &json!({ "name": name }))
            .await
            .map(|Done {}| ())
    }

    /// Adds an agent pool and gives its id.
    pub async fn create_pool(&self, organization: &str, pool: &str) -> Result<i64> {
        #[derive(Deserialize)]
        struct Created {
            id: i64,
        }
        let path = ["organizations", organization, "pools"];
        self.post(&path, &json!({ "name": pool }))
            .await
            .map(|Created { id }| id)
    }

    /// Removes an agent pool.
    pub async fn delete_pool(&self, organization: &str, pool: &str) -> Result<()> {
        self.delete(&["organizations", organization, "pools", pool])
            .await
    }

    /// Adds a personal access token and gives it back.
    pub async fn create_pat(&self, organization: &str, spec: &PatSpec) -> Result<String> {
        #[derive(Deserialize)]
        struct Created {
            token: String,
        }
        let path = ["organizations", organization, "pats"];
        self.post(&path, spec).await.map(|Created { token }| token)
    }

    /// Makes a personal access token dead.
    pub async fn revoke_pat(&self, organization: &str, token: &str) -> Result<()> {
        let path = ["organizations", organization, "pats", "revoke"];
        self.post(&path, &json!({ "token": token }))
            .await
            .map(|Done {}| ())
    }

    /// Brings a dead personal access token back.
    pub async fn restore_pat(&self, organization: &str, token: &str) -> Result<()> {
        let path = ["organizations", organization, "pats", "restore"];
        self.post(&path, &json!({ "token": token }))
            .await
            .map(|Done {}| ())
    }

    /// Queues jobs and gives their request ids.
    pub async fn queue_jobs(
        &self,
        organization: &str,
        pool: &str,
        spec: &JobSpec,
    ) -> Result<Vec<i64>> {
        #[derive(Deserialize)]
        struct Queued {
            ids: Vec<i64>,
        }
        let path = ["organizations", organization, "pools", pool, "jobs"];
        self.post(&path, spec).await.map(|Queued { ids }| ids)
    }

    /// Cancels a job as a user would.
    pub async fn cancel_job(&self, organization: &str, id: i64) -> Result<()> {
        let path = [
            "organizations",
            organization,
            "jobs",
            &id.to_string(),
            "cancel",
        ];
        self.post(&path, &json!({})).await.map(|Done {}| ())
    }

    /// All jobs of a pool, oldest first.
    pub async fn jobs(&self, organization: &str, pool: &str) -> Result<Vec<JobView>> {
        let path = ["organizations", organization, "pools", pool, "jobs"];
        self.get(&path, &[])
            .await
            .map(|list: Changed<JobView>| list.value)
    }

    /// The jobs of a pool as soon as they are as wanted. Waits for as long as it takes.
    pub async fn jobs_when(
        &self,
        organization: &str,
        pool: &str,
        wanted: impl Fn(&[JobView]) -> bool,
    ) -> Result<Vec<JobView>> {
        let path = ["organizations", organization, "pools", pool, "jobs"];
        self.when_list(&path, wanted).await
    }

    /// All agents of a pool, oldest first.
    pub async fn agents(&self, organization: &str, pool: &str) -> Result<Vec<AgentView>> {
        let path = ["organizations", organization, "pools", pool, "agents"];
        self.get(&path, &[])
            .await
            .map(|list: Changed<AgentView>| list.value)
    }

    /// The agents of a pool as soon as they are as wanted. Waits for as long as it takes.
    pub async fn agents_when(
        &self,
        organization: &str,
        pool: &str,
        wanted: impl Fn(&[AgentView]) -> bool,
    ) -> Result<Vec<AgentView>> {
        let path = ["organizations", organization, "pools", pool, "agents"];
        self.when_list(&path, wanted).await
    }

    /// How a pool stands, in numbers.
    pub async fn summary(&self, organization: &str, pool: &str) -> Result<Summary> {
        self.get(
            &["organizations", organization, "pools", pool, "summary"],
            &[],
        )
        .await
    }

    /// How a pool stands as soon as it stands as wanted. Waits for as long as it takes, and costs
    /// less than [`Self::jobs_when`] and [`Self::agents_when`].
    pub async fn summary_when(
        &self,
        organization: &str,
        pool: &str,
        wanted: impl Fn(&Summary) -> bool,
    ) -> Result<Summary> {
        let path = ["organizations", organization, "pools", pool, "summary"];
        self.when(&path, |summary: &Summary| summary.revision, wanted)
            .await
    }

    /// Registers an agent that has no process, and gives its id.
    pub async fn add_agent(&self, organization: &str, pool: &str, spec: &AgentSpec) -> Result<i64> {
        #[derive(Deserialize)]
        struct Created {
            id: i64,
        }
        let path = ["organizations", organization, "pools", pool, "agents"];
        self.post(&path, spec).await.map(|Created { id }| id)
    }

    /// Removes an agent, whatever it is doing.
    pub async fn delete_agent(&self, organization: &str, pool: &str, agent: &str) -> Result<()> {
        self.delete(&[
            "organizations",
            organization,
            "pools",
            pool,
            "agents",
            agent,
        ])
        .await
    }

    /// Makes something go wrong from now on.
    pub async fn add_fault(&self, fault: &Fault) -> Result<()> {
        self.post(&["faults"], fault).await.map(|Done {}| ())
    }

    /// The faults in force.
    pub async fn faults(&self) -> Result<Vec<Fault>> {
        self.get(&["faults"], &[]).await
    }

    /// Ends all faults.
    pub async fn clear_faults(&self) -> Result<()> {
        self.delete(&["faults"]).await
    }

    /// How many requests came since the start or the last reset, to one organization or to all.
    pub async fn requests(&self, organization: Option<&str>) -> Result<RequestCounts> {
        let query = organization.map(|name| ("organization", name.to_owned()));
        self.get(&["requests"], query.as_slice()).await
    }

    /// The latest requests, oldest first.
    pub async fn request_log(&self) -> Result<Vec<Entry>> {
        self.get(&["requests", "log"], &[]).await
    }

    /// Forgets all requests.
    pub async fn reset_requests(&self) -> Result<()> {
        self.delete(&["requests"]).await
    }

    /// The behaviours in force.
    pub async fn switches(&self) -> Result<Switches> {
        self.get(&["switches"], &[]).await
    }

    /// Changes behaviours on the fly.
    pub async fn set_switches(&self, switches: &Switches) -> Result<()> {
        let request = self.client.put(self.url(&["switches"])).json(switches);
        send(request).await.map(|Done {}| ())
    }

    /// Turns rate limiting on or off.
    pub async fn set_rate_limit(&self, rules: Option<&RateLimit>) -> Result<()> {
        let request = self.client.put(self.url(&["rate-limit"])).json(&rules);
        send(request).await.map(|Done {}| ())
    }

    async fn when_list<T: DeserializeOwned>(
        &self,
        path: &[&str],
        wanted: impl Fn(&[T]) -> bool,
    ) -> Result<Vec<T>> {
        let revision = |list: &Changed<T>| list.revision;
        let list = self
            .when(path, revision, |list| wanted(&list.value))
            .await?;
        Ok(list.value)
    }

    /// Looks at each change, until what it sees is as wanted.
    async fn when<T: DeserializeOwned>(
        &self,
        path: &[&str],
        revision: impl Fn(&T) -> u64,
        wanted: impl Fn(&T) -> bool,
    ) -> Result<T> {
        let mut after = 0;
        loop {
            let seen: T = self.get(path, &[("after", after.to_string())]).await?;
            if wanted(&seen) {
                return Ok(seen);
            }
            after = revision(&seen);
        }
    }

    async fn get<T: DeserializeOwned>(&self, path: &[&str], query: &[(&str, String)]) -> Result<T> {
        let mut url = self.url(path);
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        send(self.client.get(url)).await
    }

    async fn post<T: DeserializeOwned>(&self, path: &[&str], body: &impl Serialize) -> Result<T> {
        send(self.client.post(self.url(path)).json(body)).await
    }

    async fn delete(&self, path: &[&str]) -> Result<()> {
        send(self.client.delete(self.url(path)))
            .await
            .map(|Done {}| ())
    }

    fn url(&self, path: &[&str]) -> Url {
        let mut url = Url::clone(&self.root);
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().push("_simulator").extend(path);
        }
        url
    }
}

/// The reply of operations that have nothing to tell.
#[derive(Deserialize)]
struct Done {}

async fn send<T: DeserializeOwned>(request: RequestBuilder) -> Result<T> {
    let response = request.send().await?;
    let status = response.status();
    if status.is_success() {
        return Ok(response.json().await?);
    }
    let body: Value = response.json().await?;
    let message = body["message"]
        .as_str()
        .unwrap_or("no reason given")
        .to_owned();
    Err(Error::Refused {
        status: status.as_u16(),
        message,
    })
}
