//! Self-updates of the agent, which ends with 3, or with 4 if it runs one job.

use std::time::Duration;

use azure_devops_simulator::Outcome;
use stand_in_agent::{STEP, UPDATE};

use crate::service::Service;

#[tokio::test]
async fn an_updated_agent_goes_on() {
    for arguments in [&["--once"][..], &[]] {
        let Some(service) = Service::start().await else {
            return;
        };
        let mut image = service
            .image()
            .env(UPDATE, "succeed")
            .env(STEP, "readlink /opt/azure-pipelines-agent/bin");
        for argument in arguments {
            image = image.arg(argument);
        }
        let mut container = image.start();
        service.online(&mut container).await;
        let id = service.queue(Duration::from_secs(1));
        let job = service.job_when(id, Outcome::is_finished).await;
        assert_eq!(job.outcome, Outcome::Succeeded);
        container.wrote("azure-pipelines-agent/bin.999.0.0").await;
        if arguments.is_empty() {
            container.terminate();
        }
        assert_eq!(container.ended().await, 0);
    }
}

#[tokio::test]
async fn updates_that_come_to_nothing_end_the_agent() {
    let Some(service) = Service::start().await else {
        return;
    };
    for (kind, message) in [
        ("failed", "the update of the agent failed"),
        ("endless", "wants to update itself again and again"),
    ] {
        let mut container = service.image().env(UPDATE, kind).start();
        let code = container.ended().await;
        let output = container.output();
        assert_eq!(code, 1, "{output}");
        assert!(output.contains(message), "{output}");
    }
}
