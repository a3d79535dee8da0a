//! The listener, `run.sh`: token, session, message loop (protocol sections 6.1 to 6.3).

use std::{
    ops::RangeInclusive,
    time::{Duration, Instant},
};

use reqwest::Method;
use serde_json::{Value, json};
use tokio::sync::{Mutex, watch};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{
    Launch, Pace, capabilities,
    configure::Registration,
    connection::{self, Credential, Error},
    exit_code,
    job::{self, Job},
    key,
};

/// Why the listener stops.
enum Stop {
    /// SIGTERM.
    Terminated,
    /// Nothing will help.
    GaveUp,
    /// The one job is done.
    Once,
}

/// Runs until told to stop, or until it gives up. Gives the exit code.
pub(super) async fn listen(
    registration: &Registration,
    launch: &Launch,
    terminate: &CancellationToken,
    worker: &watch::Sender<bool>,
) -> i32 {
    let once = launch.args.iter().any(|argument| argument == "--once");
    let agent = Listener {
        registration,
        pace: &launch.pace,
        host_name: &launch.host_name,
        once,
        token: Mutex::new(None),
    };
    match agent.run(terminate, worker).await {
        Stop::GaveUp => exit_code::TERMINATED,
        Stop::Terminated | Stop::Once => exit_code::SUCCESS,
    }
}

/// A configured agent that runs.
pub(super) struct Listener<'a> {
    pub(super) registration: &'a Registration,
    pub(super) pace: &'a Pace,
    host_name: &'a str,
    pub(super) once: bool,
    /// The access token and until when it is good.
    token: Mutex<Option<(String, Instant)>>,
}

impl Listener<'_> {
    async fn run(&self, terminate: &CancellationToken, worker: &watch::Sender<bool>) -> Stop {
        loop {
            let opened = tokio::select! {
                opened = self.open_session() => opened,
                () = terminate.cancelled() => return Stop::Terminated,
            };
            let session = match opened {
                Ok(session) => session,
                Err(error) => {
                    tracing::info!(
                        agent = self.registration.name,
                        error = &error as &dyn std::error::Error,
                        "Agent could not open a session"
                    );
                    return Stop::GaveUp;
                }
            };
            let stopped = tokio::select! {
                stopped = self.converse(&session, terminate, worker) => stopped,
                () = self.keep_alive(&session) => None,
            };
            let Some(stop) = stopped else { continue };
            let url = self.registration.pool_url(&format!("sessions/{session}"));
            if let Err(error) = self.call(Method::DELETE, &url, None).await {
                tracing::debug!(
                    error = &error as &dyn std::error::Error,
                    "Session was not closed"
                );
            }
            return stop;
        }
    }

    /// Repeats while another session of the same agent is alive, or the service has trouble.
    async fn open_session(&self) -> Result<String, Error> {
        let body = json!({
            "ownerName": self.host_name,
            "agent": {
                "id": self.registration.id,
                "name": self.registration.name,
                "version": capabilities::VERSION,
                "osDescription": capabilities::OS_DESCRIPTION,
            },
            "systemCapabilities": self.registration.capabilities,
        });
        let begin = Instant::now();
        loop {
            let url = self.registration.pool_url("sessions");
            let pause = match self.call(Method::POST, &url, Some(&body)).await {
                Ok(session) => {
                    if let Some(id) = session["sessionId"].as_str() {
                        return Ok(id.to_owned());
                    }
                    random(&self.pace.error_pause)
                }
                Err(error) if error.is("TaskAgentSessionConflictException") => {
                    if begin.elapsed() >= self.pace.session_patience {
                        return Err(error);
                    }
                    self.pace.session_retry
                }
                Err(error) if is_final(&error) => return Err(error),
                Err(_) => random(&self.pace.error_pause),
            };
            tokio::time::sleep(pause).await;
        }
    }

    /// Reads messages until there is a reason to stop; none means that a new session is needed.
    async fn converse(
        &self,
        session: &str,
        terminate: &CancellationToken,
        worker: &watch::Sender<bool>,
    ) -> Option<Stop> {
        let mut running: Option<Running<'_>> = None;
        // A poll outlives the end of a job: it is not cut off and sent again.
        let mut polled = std::pin::pin!(self.next_reply(session, 0));
        loop {
            let work = async {
                match &mut running {
                    Some(running) => (&mut running.work).await,
                    None => std::future::pending().await,
                }
            };
            let (reply, last_message) = tokio::select! {
                biased;
                () = work => {
                    running = None;
                    worker.send_replace(false);
                    if self.once {
                        return Some(Stop::Once);
                    }
                    continue;
                }
                () = terminate.cancelled() => {
                    if let Some(running) = running {
                        running.cancel.cancel();
                        running.work.await;
                        worker.send_replace(false);
                    }
                    return Some(Stop::Terminated);
                }
                polled = &mut polled => polled,
            };
            match reply {
                Ok(message) => {
                    let id = message["messageId"].as_i64().unwrap_or(last_message);
                    if id > last_message && self.take(&message, &mut running, worker).await {
                        self.delete_message(session, id).await;
                    }
                    polled.set(self.next_reply(session, id));
                }
                Err(error) if error.is("TaskAgentSessionExpiredException") => {
                    // A new session comes after the job that runs, if one does.
                    if let Some(running) = running {
                        running.work.await;
                        worker.send_replace(false);
                        if self.once {
                            return Some(Stop::Once);
                        }
                    }
                    return None;
                }
                Err(error) if is_final(&error) => return Some(Stop::GaveUp),
                Err(_) => polled.set(self.next_reply(session, last_message)),
            }
        }
    }

    /// Polls once, with the pause that follows where nothing came; gives back what it was asked
    /// to read after.
    async fn next_reply(&self, session: &str, last_message: i64) -> (Result<Value, Error>, i64) {
        let reply = self.poll(session, Some(last_message)).await;
        match &reply {
            Ok(Value::Null) => tokio::time::sleep(random(&self.pace.idle_pause)).await,
            Err(error) if !error.is("TaskAgentSessionExpiredException") && !is_final(error) => {
                tokio::time::sleep(random(&self.pace.error_pause)).await;
            }
            _ => {}
        }
        (reply, last_message)
    }

    /// Acts on a message; false where it is to stay with the service.
    async fn take<'a>(
        &'a self,
        message: &Value,
        running: &mut Option<Running<'a>>,
        worker: &watch::Sender<bool>,
    ) -> bool {
        let body = message["body"].as_str().unwrap_or_default();
        match (message["messageType"].as_str(), running.as_ref()) {
            // One job in its life; the service gives what is not deleted to another agent.
            (Some("PipelineAgentJobRequest"), Some(_)) if self.once => false,
            (Some("PipelineAgentJobRequest"), _) => {
                // For the service the earlier job is over: at most its report is still under way.
                if let Some(earlier) = running.take() {
                    earlier.cancel.cancel();
                    earlier.work.await;
                    worker.send_replace(false);
                }
                if let Some(job) = Job::read(body)
                    && self.lock(&job).await
                {
                    worker.send_replace(true);
                    *running = Some(Running::start(self, job));
                }
                true
            }
            (Some("JobCancellation"), Some(running)) => {
                if job::id_in(body) == Some(running.job_id) {
                    running.cancel.cancel();
                }
                true
            }
            // Unknown types are deleted (protocol section 6.3).
            _ => true,
        }
    }

    async fn delete_message(&self, session: &str, id: i64) {
        let url = self
            .registration
            .pool_url(&format!("messages/{id}?sessionId={session}"));
        if let Err(error) = self.call(Method::DELETE, &url, None).await {
            tracing::debug!(
                error = &error as &dyn std::error::Error,
                "Message was not deleted"
            );
        }
    }

    /// The second loop: reads without saying what was read last, and drops what it gets.
    async fn keep_alive(&self, session: &str) {
        let Some(pause) = self.pace.keep_alive else {
            return std::future::pending().await;
        };
        loop {
            tokio::time::sleep(pause).await;
            if let Err(error) = self.poll(session, None).await {
                tracing::debug!(
                    error = &error as &dyn std::error::Error,
                    "Keep-alive failed"
                );
            }
        }
    }

    async fn poll(&self, session: &str, last_message: Option<i64>) -> Result<Value, Error> {
        let last = last_message.map_or_else(String::new, |id| format!("&lastMessageId={id}"));
        let url = self
            .registration
            .pool_url(&format!("messages?sessionId={session}{last}"));
        self.call(Method::GET, &url, None).await
    }

    /// A request with the agent's own token; a refused token is renewed once.
    pub(super) async fn call(
        &self,
        method: Method,
        url: &str,
        body: Option<&Value>,
    ) -> Result<Value, Error> {
        let mut fresh = false;
        loop {
            let token = self.token(fresh).await?;
            let request = connection::request(method.clone(), url, Credential::Bearer(&token));
            let request = match body {
                Some(body) => request.json(body),
                None => request,
            };
            match connection::send(request).await {
                Err(Error::Unauthorized) if !fresh => fresh = true,
                result => return result,
            }
        }
    }

    /// The access token; a new one when the old one is about to end, or is no good.
    async fn token(&self, fresh: bool) -> Result<String, Error> {
        let mut known = self.token.lock().await;
        if let Some((token, good_until)) = &*known
            && !fresh
            && *good_until > Instant::now()
        {
            return Ok(token.clone());
        }
        let Registration {
            client_id,
            token_url,
            ..
        } = self.registration;
        let form = url::form_urlencoded::Serializer::new(String::new())
            .append_pair("grant_type", "client_credentials")
            .append_pair(
                "client_assertion_type",
                "urn:ietf:params:oauth:client-assertion-type:jwt-bearer",
            )
            .append_pair("client_assertion", &key::assertion(client_id, token_url))
            .finish();
        let request = connection::anonymous(Method::POST, token_url)
            .header("Content-Type", "application/x-www-form-urlencoded")
            .body(form);
        let reply = connection::send(request).await?;
        let token = reply["access_token"]
            .as_str()
            .ok_or(Error::Unauthorized)?
            .to_owned();
        let life = Duration::from_secs(reply["expires_in"].as_u64().unwrap_or(0));
        // Renewed a little early, so that a request under way does not meet its end.
        *known = Some((token.clone(), Instant::now() + life.mul_f64(0.9)));
        Ok(token)
    }
}

/// A job at work.
struct Running<'a> {
    job_id: Uuid,
    cancel: CancellationToken,
    work: std::pin::Pin<Box<dyn Future<Output = ()> + Send + 'a>>,
}

impl<'a> Running<'a> {
    fn start(listener: &'a Listener<'a>, job: Job) -> Self {
        let cancel = CancellationToken::new();
        Self {
            job_id: job.id,
            cancel: cancel.clone(),
            work: Box::pin(listener.work(job, cancel)),
        }
    }
}

/// What ends an agent rather than making it try again: it was deleted, or its pool was, or it
/// lost its rights (protocol section 6.2).
fn is_final(error: &Error) -> bool {
    [
        "TaskAgentNotFoundException",
        "TaskAgentPoolNotFoundException",
        "AccessDeniedException",
        "invalid_client",
    ]
    .iter()
    .any(|type_key| error.is(type_key))
}

fn random(range: &RangeInclusive<Duration>) -> Duration {
    let spread = range.end().saturating_sub(*range.start());
    // A fresh GUID is as good a source of chance as any here.
    let [byte, ..] = *Uuid::new_v4().as_bytes();
    *range.start() + spread.mul_f64(f64::from(byte) / 255.0)
}
