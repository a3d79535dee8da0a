//! The worker: holds the lock, works by sleeping, reports the end (protocol sections 6.4 to 6.6).

use std::time::Duration;

use reqwest::Method;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{
    connection::{self, Credential, Error},
    listen::Listener,
};
use crate::world::{DURATION_VARIABLE, RESULT_VARIABLE};

/// What of a job message the worker needs.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) id: Uuid,
    request: i64,
    plan: String,
    project: String,
    server: String,
    token: String,
    duration: Duration,
    result: String,
}

impl Job {
    pub(super) fn read(body: &str) -> Option<Self> {
        let message: Value = serde_json::from_str(body).ok()?;
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let endpoints = message["resources"]["endpoints"].as_array()?;
        let server = endpoints
            .iter()
            .find(|endpoint| endpoint["name"] == "SystemVssConnection")?;
        let variable = |name: &str| message["variables"][name]["value"].as_str();
        Some(Self {
            id: id_in(body)?,
            request: message["requestId"].as_i64()?,
            plan: text(&message["plan"]["planId"])?,
            project: text(&message["plan"]["scopeIdentifier"])?,
            server: text(&server["url"])?,
            token: text(&server["authorization"]["parameters"]["AccessToken"])?,
            duration: Duration::from_millis(
                variable(DURATION_VARIABLE)
                    .and_then(|text| text.parse().ok())
                    .unwrap_or(0),
            ),
            result: variable(RESULT_VARIABLE).unwrap_or("succeeded").to_owned(),
        })
    }
}

/// The job that a message is about.
pub(super) fn id_in(body: &str) -> Option<Uuid> {
    let message: Value = serde_json::from_str(body).ok()?;
    Uuid::parse_str(message["jobId"].as_str()?).ok()
}

impl Listener<'_> {
    /// The first renewal, before anything starts: without it the job is left alone.
    pub(super) async fn lock(&self, job: &Job) -> bool {
        const TRIES: usize = 5;
        for _ in 0..TRIES {
            match self.renew(job).await {
                Ok(()) => return true,
                Err(error) if is_gone(&error) => return false,
                Err(_) => tokio::time::sleep(self.pace.report_retry).await,
            }
        }
        false
    }

    pub(super) async fn work(&self, job: Job, cancel: CancellationToken) {
        let renewals = async {
            loop {
                tokio::time::sleep(self.pace.renewal).await;
                if let Err(error) = self.renew(&job).await
                    && is_gone(&error)
                {
                    return;
                }
            }
        };
        let result = tokio::select! {
            () = tokio::time::sleep(job.duration) => job.result.as_str(),
            () = cancel.cancelled() => "canceled",
            // The job is another's now: silence.
            () = renewals => return,
        };
        self.report(&job, result).await;
    }

    async fn renew(&self, job: &Job) -> Result<(), Error> {
        let url = format!("jobrequests/{}?lockToken={}", job.request, Uuid::nil());
        let body = json!({ "requestId": job.request });
        let reply = self
            .call(
                Method::PATCH,
                &self.registration.pool_url(&url),
                Some(&body),
            )
            .await?;
        if reply["lockedUntil"].is_string() {
            Ok(())
        } else {
            Err(Error::Configuration(
                "the renewal came back without lockedUntil".to_owned(),
            ))
        }
    }

    async fn report(&self, job: &Job, result: &str) {
        const TRIES: usize = 5;
        let url = format!(
            "{}/{}/_apis/distributedtask/hubs/build/plans/{}/events",
            job.server, job.project, job.plan
        );
        let body = json!({
            "name": "JobCompleted",
            "requestId": job.request,
            "jobId": job.id,
            "result": result,
            "agentShuttingDown": self.once,
        });
        for _ in 0..TRIES {
            let request = connection::request(Method::POST, &url, Credential::Bearer(&job.token));
            match connection::send(request.json(&body)).await {
                Ok(_) => return,
                Err(error) if is_gone(&error) => return,
                Err(error) => {
                    tracing::debug!(
                        error = &error as &dyn std::error::Error,
                        "Job was not reported"
                    );
                    tokio::time::sleep(self.pace.report_retry).await;
                }
            }
        }
    }
}

fn is_gone(error: &Error) -> bool {
    error.is("TaskAgentJobNotFoundException") || error.is("TaskAgentJobTokenExpiredException")
}
