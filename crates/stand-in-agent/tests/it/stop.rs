//! SIGTERM.

use std::time::{Duration, Instant};

use azure_devops_simulator::{JobResult, Outcome};

use crate::service::Service;

/// Longer than the entry point looks for a job.
const JOB: Duration = Duration::from_secs(4);

/// A start script as many write it: the agent is the first process and gets the signal itself.
const PLAIN: &str = r#"#!/bin/bash
cd /opt/azure-pipelines-agent
./config.sh --unattended --url "$AZP_URL" --pool "$AZP_POOL" --agent "$AZP_AGENT_NAME" --token "$AZP_TOKEN" || exit
exec ./bin/Agent.Listener run "$@"
"#;

#[tokio::test]
async fn an_idle_agent_stops_at_once() {
    let Some(service) = Service::start().await else {
        return;
    };
    let mut container = service.image().start();
    service.online(&mut container).await;
    container.wrote("Listening for Jobs").await;
    let begin = Instant::now();
    container.terminate();
    assert_eq!(container.ended().await, 0);
    // Three looks take little more than a second; the rest is for machines that are busy otherwise.
    assert!(
        begin.elapsed() < Duration::from_secs(15),
        "{:?}",
        begin.elapsed()
    );
    assert!(!service.agents().await[0].online, "the session is closed");
}

#[tokio::test]
async fn a_running_job_ends_well() {
    for arguments in [&["--once"][..], &[]] {
        let Some(service) = Service::start().await else {
            return;
        };
        let mut image = service.image();
        for argument in arguments {
            image = image.arg(argument);
        }
        let mut container = image.start();
        service.online(&mut container).await;
        let id = service.queue(JOB);
        service
            .job_when(id, |outcome| outcome == Outcome::Running)
            .await;
        container.wrote("Running job").await;
        container.terminate();
        assert_eq!(container.ended().await, 0);
        let job = service.job_when(id, Outcome::is_finished).await;
        assert_eq!(
            (job.outcome, job.result),
            (Outcome::Succeeded, Some(JobResult::Succeeded))
        );
        assert!(!service.agents().await[0].online, "the session is closed");
    }
}

/// Without it the test above could pass because nothing ever ends a job.
#[tokio::test]
async fn a_plain_script_loses_the_job() {
    let Some(service) = Service::start().await else {
        return;
    };
    let mut container = service.image().entrypoint(PLAIN).start();
    service.online(&mut container).await;
    let id = service.queue(JOB);
    service
        .job_when(id, |outcome| outcome == Outcome::Running)
        .await;
    container.wrote("Running job").await;
    container.terminate();
    container.ended().await;
    let job = service.job_when(id, Outcome::is_finished).await;
    assert_eq!(
        (job.outcome, job.result),
        (Outcome::Killed, Some(JobResult::Canceled))
    );
}
