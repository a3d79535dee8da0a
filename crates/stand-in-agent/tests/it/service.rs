//! The simulator with one organization and one pool, and what tests ask of it.

use std::time::Duration;

use azure_devops_simulator::{
    AgentView, Control, JobSpec, JobView, Outcome, PatSpec, Settings, Simulator, Summary, Switches,
};
use jiff::Timestamp;

use crate::container::{self, Container, Image};

pub(crate) const ORGANIZATION: &str = "acme";
pub(crate) const POOL: &str = "linux";
/// In no file and no environment of this machine otherwise.
pub(crate) const PAT: &str = "canary-of-the-token";
/// No test waits longer for anything.
pub(crate) const PATIENCE: Duration = Duration::from_secs(90);

pub(crate) struct Service {
    pub(crate) simulator: Simulator,
    pub(crate) control: Control,
}

impl Service {
    /// None where containers cannot be made.
    pub(crate) async fn start() -> Option<Self> {
        if !container::possible() {
            return None;
        }
        Some(Self::of(Simulator::start(settings()).await.unwrap()))
    }

    pub(crate) fn of(simulator: Simulator) -> Self {
        simulator.with_world(|world| {
            world.create_organization(ORGANIZATION).unwrap();
            world
                .create_pool(Timestamp::now(), ORGANIZATION, POOL)
                .unwrap();
            let pat = PatSpec {
                token: Some(PAT.to_owned()),
                ..PatSpec::default()
            };
            world.create_pat(ORGANIZATION, pat).unwrap();
        });
        let control = simulator.control();
        Self { simulator, control }
    }

    /// An image with the environment that the operator gives.
    pub(crate) fn image(&self) -> Image {
        Image::default()
            .env("AZP_URL", format!("{}{ORGANIZATION}", self.simulator.url()))
            .env("AZP_POOL", POOL)
            .env("AZP_TOKEN", PAT)
            .env("AZP_AGENT_NAME", "agent-0")
            .env("AZP_CAPABILITY", "java")
            .env("AZDO_RUNNER_OWNER", "cluster/namespace/pool")
            .env(stand_in_agent::PACE, "fast")
    }

    /// Lets an agent run one job, and waits for the end of both. Gives what the container wrote.
    pub(crate) async fn run_one(&self, image: Image, duration: Duration) -> String {
        let mut container = image.arg("--once").start();
        self.online(&mut container).await;
        let id = self.queue(duration);
        let code = container.ended().await;
        let output = container.output();
        assert_eq!(code, 0, "{output}");
        let job = self.job_when(id, Outcome::is_finished).await;
        assert_eq!(job.outcome, Outcome::Succeeded, "{output}");
        output
    }

    pub(crate) fn queue(&self, duration: Duration) -> i64 {
        let spec = JobSpec {
            duration,
            ..JobSpec::default()
        };
        self.simulator.with_world(|world| {
            let ids = world.queue_jobs(Timestamp::now(), ORGANIZATION, POOL, &spec);
            ids.unwrap()[0]
        })
    }

    pub(crate) async fn job_when(&self, id: i64, wanted: fn(Outcome) -> bool) -> JobView {
        let is = |jobs: &[JobView]| jobs.iter().any(|job| job.id == id && wanted(job.outcome));
        let wait = self.control.jobs_when(ORGANIZATION, POOL, is);
        let Ok(jobs) = tokio::time::timeout(PATIENCE, wait).await else {
            panic!("waited in vain for job {id}")
        };
        jobs.unwrap().into_iter().find(|job| job.id == id).unwrap()
    }

    /// Waits until the container's agent can take jobs: those that no registered agent can run fail at once.
    pub(crate) async fn online(&self, container: &mut Container) {
        let is = |summary: &Summary| summary.online == 1;
        let wait = self.control.summary_when(ORGANIZATION, POOL, is);
        tokio::select! {
            summary = wait => drop(summary.unwrap()),
            code = container.ended() => panic!("the container ended with {code}"),
        }
    }

    pub(crate) async fn agents(&self) -> Vec<AgentView> {
        self.control.agents(ORGANIZATION, POOL).await.unwrap()
    }
}

pub(crate) fn settings() -> Settings {
    let switches = Switches {
        long_poll: Duration::from_secs(5),
        ..Switches::default()
    };
    Settings {
        switches,
        ..Settings::default()
    }
}
