//! The calls.

use std::{
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use futures::TryStreamExt as _;
use reqwest::{Method, Request, RequestBuilder, Response, redirect};
use secrecy::{ExposeSecret as _, SecretString};
use serde::de::DeserializeOwned;
use serde_json::json;
use tokio_util::io::{StreamReader, SyncIoBridge};

use crate::{
    Answer, Error, NewAgent, Observer, RateLimit, TaskAgent, TaskAgentJobRequest, TaskAgentPool,
    Withheld, WriteGate,
    decode::{self, Head},
    pacing::Pacing,
};

/// The service delays a throttled request by up to 30 s ("Rate and usage limits"); a shorter limit would give up on
/// answers that are on their way.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(40);
/// A host that cannot be reached in this time is down.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// The agent's own versions (`TaskAgentHttpClient`): every server that current agents can talk to knows them.
const POOLS_VERSION: &str = "5.1-preview.1";
const AGENTS_VERSION: &str = "6.0-preview.2";
/// More pages than any pool has: a token that never ends must not be followed for ever.
const MOST_PAGES: usize = 1000;
/// Wait after a 429 that does not say how long.
const UNSTATED_WAIT: Duration = Duration::from_secs(30);

/// The connections of a process, shared by all of its [`Client`]s, and the gate that their writes pass.
#[derive(Clone, Debug)]
pub struct Connections {
    http: reqwest::Client,
    gate: Arc<dyn WriteGate>,
    observer: Option<Arc<dyn Observer>>,
}

impl Connections {
    /// Connections whose writes pass this gate. None is made yet.
    pub fn new(gate: impl WriteGate + 'static) -> Result<Self, reqwest::Error> {
        let http = reqwest::Client::builder()
            .user_agent(concat!("azdo-runner-operator/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(ANSWER_TIMEOUT)
            // A redirect leads to a sign-in page; following it would turn a refusal into a page with status 200.
            .redirect(redirect::Policy::none())
            .http1_only()
            .build()?;
        let gate = Arc::new(gate);
        Ok(Self {
            http,
            gate,
            observer: None,
        })
    }

    /// The same connections, with somebody who hears of each request.
    #[must_use]
    pub fn observed_by(self, observer: Arc<dyn Observer>) -> Self {
        Self {
            observer: Some(observer),
            ..self
        }
    }

    /// Sends a request; one that is no read only through the gate.
    async fn send(
        &self,
        operation: &'static str,
        request: Request,
    ) -> Result<Result<Response, reqwest::Error>, Withheld> {
        let (reads, started) = (*request.method() == Method::GET, Instant::now());
        let sending = self.http.execute(request);
        let sent = if reads {
            Ok(sending.await)
        } else {
            self.gate.carry_out(Box::pin(sending)).await
        };
        if let Some(observer) = &self.observer {
            let answer = match &sent {
                Ok(Ok(response)) => Answer::Status(response.status().as_u16()),
                Ok(Err(_)) => Answer::Failed,
                Err(_) => Answer::Withheld,
            };
            observer.answered(operation, answer, started.elapsed());
        }
        sent
    }
}

/// Client of one organization under one token. Clones share the pace that the service asks for.
#[derive(Clone, Debug)]
pub struct Client {
    connections: Connections,
    organization: String,
    token: SecretString,
    pacing: Arc<Mutex<Pacing>>,
}

impl Client {
    /// A client of the organization or collection at this URL (without trailing slash). Nothing is sent yet.
    pub fn new(
        connections: Connections,
        organization: impl Into<String>,
        token: SecretString,
    ) -> Self {
        Self {
            connections,
            organization: organization.into(),
            token,
            pacing: Arc::default(),
        }
    }

    /// Agent pools of this name, or all; not the pools of deployment groups. The service answers an unknown name with an
    /// empty list. Whether it has regard to the case of the name is not documented.
    pub async fn get_agent_pools(&self, name: Option<&str>) -> Result<Vec<TaskAgentPool>, Error> {
        let fixed = [("poolType", "automation"), ("api-version", POOLS_VERSION)];
        let query: Vec<_> = name
            .map(|name| ("poolName", name))
            .into_iter()
            .chain(fixed)
            .collect();
        self.list("get_agent_pools", "", &query).await
    }

    /// Every agent of a pool with its capabilities, the request it holds and the one it ended last.
    pub async fn get_agents(&self, pool_id: i64) -> Result<Vec<TaskAgent>, Error> {
        let query = [
            ("includeCapabilities", "true"),
            ("includeAssignedRequest", "true"),
            ("includeLastCompletedRequest", "true"),
            ("api-version", AGENTS_VERSION),
        ];
        self.list("get_agents", &format!("/{pool_id}/agents"), &query)
            .await
    }

    /// Every job request of a pool that has no result.
    ///
    /// `completedRequestCount=0` without `$top`: `$top` would bring finished ones back and cut the list at 200.
    pub async fn get_agent_requests(
        &self,
        pool_id: i64,
    ) -> Result<Vec<TaskAgentJobRequest>, Error> {
        let query = [
            ("completedRequestCount", "0"),
            ("api-version", POOLS_VERSION),
        ];
        let mut requests: Vec<TaskAgentJobRequest> = self
            .list(
                "get_agent_requests",
                &format!("/{pool_id}/jobrequests"),
                &query,
            )
            .await?;
        requests.retain(|request| request.result.is_none());
        Ok(requests)
    }

    /// Registers an agent without a key.
    pub async fn add_agent(&self, pool_id: i64, agent: &NewAgent) -> Result<TaskAgent, Error> {
        let request = self
            .request(Method::POST, &format!("/{pool_id}/agents"))
            .json(&body(agent));
        let response = self
            .send(
                "add_agent",
                request.query(&[("api-version", AGENTS_VERSION)]),
            )
            .await?;
        read("add_agent", response, decode::object).await
    }

    /// Registers an agent of this name in place of the one that has the id: all that is known of that one is replaced.
    pub async fn replace_agent(
        &self,
        pool_id: i64,
        agent_id: i64,
        agent: &NewAgent,
    ) -> Result<TaskAgent, Error> {
        let mut body = body(agent);
        merge(&mut body, json!({ "id": agent_id }));
        let request = self
            .request(Method::PUT, &format!("/{pool_id}/agents/{agent_id}"))
            .json(&body);
        let response = self
            .send(
                "replace_agent",
                request.query(&[("api-version", AGENTS_VERSION)]),
            )
            .await?;
        read("replace_agent", response, decode::object).await
    }

    /// Lets the service give an agent jobs, or not. A running job goes on.
    pub async fn update_agent(
        &self,
        pool_id: i64,
        agent_id: i64,
        name: &str,
        enabled: bool,
    ) -> Result<(), Error> {
        let body = json!({ "id": agent_id, "name": name, "enabled": enabled });
        let request = self
            .request(Method::PATCH, &format!("/{pool_id}/agents/{agent_id}"))
            .json(&body);
        self.send(
            "update_agent",
            request.query(&[("api-version", AGENTS_VERSION)]),
        )
        .await
        .map(drop)
    }

    /// Deletes a registration. The service refuses while a job runs on the agent.
    pub async fn delete_agent(&self, pool_id: i64, agent_id: i64) -> Result<(), Error> {
        let request = self.request(Method::DELETE, &format!("/{pool_id}/agents/{agent_id}"));
        self.send(
            "delete_agent",
            request.query(&[("api-version", AGENTS_VERSION)]),
        )
        .await
        .map(drop)
    }

    /// How long the service still wants to be left alone; `None`: it may be asked.
    pub fn remaining_wait(&self) -> Option<Duration> {
        self.pacing().remaining_wait(Instant::now())
    }

    /// What the service last said of this token's budget.
    pub fn rate_limit(&self) -> Option<RateLimit> {
        self.pacing().rate_limit
    }

    fn pacing(&self) -> MutexGuard<'_, Pacing> {
        self.pacing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.connections
            .http
            .request(
                method,
                format!("{}/_apis/distributedtask/pools{path}", self.organization),
            )
            .basic_auth("", Some(self.token.expose_secret()))
            .header("Accept", "application/json")
            // Ask for 401 instead of a sign-in page, as Microsoft's clients do.
            .header("X-TFS-FedAuthRedirect", "Suppress")
    }

    /// A whole list, page after page.
    async fn list<T: DeserializeOwned + Send + 'static>(
        &self,
        operation: &'static str,
        path: &str,
        query: &[(&str, &str)],
    ) -> Result<Vec<T>, Error> {
        let mut items = Vec::new();
        let mut continuation: Option<String> = None;
        for _ in 0..MOST_PAGES {
            let mut request = self.request(Method::GET, path).query(query);
            if let Some(token) = &continuation {
                request = request.query(&[("continuationToken", token)]);
            }
            let response = self.send(operation, request).await?;
            let next = response.headers().get("x-ms-continuationtoken");
            continuation = next
                .and_then(|token| token.to_str().ok())
                .filter(|token| !token.is_empty())
                .map(Into::into);
            items.extend(read(operation, response, decode::page).await?);
            if continuation.is_none() {
                return Ok(items);
            }
        }
        Err(Error::Incomplete {
            operation,
            detail: format!("it goes on after {MOST_PAGES} pages"),
        })
    }

    /// Sends a request and classes the answer; an `Ok` is one that can be read as JSON.
    async fn send(
        &self,
        operation: &'static str,
        request: RequestBuilder,
    ) -> Result<Response, Error> {
        if let Some(retry_after) = self.remaining_wait() {
            return Err(Error::Throttled {
                operation,
                retry_after,
            });
        }
        let transport = |source: reqwest::Error| Error::Transport {
            operation,
            source: source.without_url(),
        };
        let request = request.build().map_err(transport)?;
        let sent = self.connections.send(operation, request).await;
        let response = sent
            .map_err(|Withheld(reason)| Error::Withheld { operation, reason })?
            .map_err(transport)?;
        let status = response.status();
        let wait = self.pacing().note(response.headers(), Instant::now());
        let empty = response.content_length() == Some(0);
        match decode::head(status, response.headers(), empty) {
            Head::Readable => Ok(response),
            Head::SignIn => Err(sign_in(operation)),
            Head::Throttled => {
                let retry_after = wait.unwrap_or(UNSTATED_WAIT);
                self.pacing().wait(retry_after, Instant::now());
                Err(Error::Throttled {
                    operation,
                    retry_after,
                })
            }
            Head::Refusal => Err(match response.bytes().await {
                Ok(body) => decode::refusal(operation, status, &body),
                Err(source) => Error::Transport {
                    operation,
                    source: source.without_url(),
                },
            }),
        }
    }
}

fn sign_in(operation: &'static str) -> Error {
    let detail = "the service answered with a sign-in page: the token is wrong or expired; renew it in the Secret";
    Error::Unauthorized {
        operation,
        detail: detail.into(),
    }
}

/// Decodes an answer while it arrives. A list of job requests names every agent that matches, for each request: with a
/// few hundred of both that is tens of megabytes, of which hardly anything is wanted.
async fn read<T: Send + 'static>(
    operation: &'static str,
    response: Response,
    decode: fn(&'static str, Body) -> Result<T, Error>,
) -> Result<T, Error> {
    let chunks = response
        .bytes_stream()
        .map_err(|source| io::Error::other(source.without_url()));
    let body: Box<dyn io::Read + Send> = Box::new(SyncIoBridge::new(StreamReader::new(chunks)));
    let body = io::BufReader::new(body);
    let decoded = tokio::task::spawn_blocking(move || decode(operation, body));
    decoded.await.unwrap_or_else(|ended| {
        Err(Error::Incomplete {
            operation,
            detail: ended.to_string(),
        })
    })
}

/// A body as it arrives.
type Body = io::BufReader<Box<dyn io::Read + Send>>;

/// A registration without a key, as it is sent.
fn body(agent: &NewAgent) -> serde_json::Value {
    let mut body = json!({ "enabled": true, "maxParallelism": 1, "provisioningState": "Provisioned", "status": "offline" });
    merge(&mut body, json!(agent));
    body
}

fn merge(into: &mut serde_json::Value, from: serde_json::Value) {
    if let (serde_json::Value::Object(into), serde_json::Value::Object(from)) = (into, from) {
        into.extend(from);
    }
}
