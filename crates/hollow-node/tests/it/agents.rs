//! With simulated agents and the simulator of Azure DevOps: a pod runs jobs.

use std::{sync::Arc, time::Duration};

use azure_devops_simulator::{
    JobSpec, JobView, Outcome, PatSpec, Settings, Simulator, agent::Pace,
};
use hollow_node::SimulatedAgents;
use k8s_openapi::api::core::v1::Secret;
use kube::{Api, api::PostParams};
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::bed::{Bed, LONG};

const ORGANIZATION: &str = "contoso";
const POOL: &str = "linux";

/// A pool in Azure DevOps, and a namespace with a PAT for it.
struct World {
    simulator: Simulator,
    bed: Bed,
}

impl World {
    async fn new() -> anyhow::Result<Self> {
        let simulator = Simulator::start(Settings::default()).await?;
        let control = simulator.control();
        control.create_organization(ORGANIZATION).await?;
        control.create_pool(ORGANIZATION, POOL).await?;
        let token = control
            .create_pat(ORGANIZATION, &PatSpec::default())
            .await?;
        let bed = Bed::with(|mut settings| {
            settings.runtime = Arc::new(SimulatedAgents { pace: Pace::fast() });
            settings
        })
        .await?;
        let secret = json!({ "metadata": { "name": "pat" }, "stringData": { "token": token } });
        Api::<Secret>::namespaced(bed.client.clone(), &bed.namespace)
            .create(&PostParams::default(), &serde_json::from_value(secret)?)
            .await?;
        Ok(Self { simulator, bed })
    }

    /// A pod as the operator makes them, whose agent is online.
    async fn agent(&self, name: &str, args: Value, lifecycle: Value) -> anyhow::Result<()> {
        let env = json!([
            { "name": "AZP_URL", "value": format!("{}{ORGANIZATION}", self.simulator.url()) },
            { "name": "AZP_POOL", "value": POOL },
            { "name": "AZP_TOKEN", "valueFrom": { "secretKeyRef": { "name": "pat", "key": "token" } } },
            { "name": "AZP_AGENT_NAME", "valueFrom": { "fieldRef": { "fieldPath": "metadata.name" } } },
        ]);
        let container = "/spec/containers/0";
        let changes = [
            (format!("{container}/env"), env),
            (format!("{container}/args"), args),
            (format!("{container}/lifecycle"), lifecycle),
        ];
        self.bed
            .create(
                name,
                &changes
                    .each_ref()
                    .map(|(pointer, value)| (pointer.as_str(), value.clone())),
            )
            .await?;
        let control = self.simulator.control();
        let online = control.agents_when(ORGANIZATION, POOL, |agents| {
            agents
                .iter()
                .any(|agent| agent.name == name && agent.online)
        });
        timeout(LONG, online).await??;
        Ok(())
    }

    async fn queue(&self, duration: Duration) -> anyhow::Result<()> {
        let demands = vec!["java".to_owned()];
        let job = JobSpec {
            demands,
            duration,
            ..JobSpec::default()
        };
        self.simulator
            .control()
            .queue_jobs(ORGANIZATION, POOL, &job)
            .await?;
        Ok(())
    }

    async fn job_when(&self, wanted: impl Fn(&JobView) -> bool) -> anyhow::Result<JobView> {
        let control = self.simulator.control();
        let jobs = control.jobs_when(ORGANIZATION, POOL, |jobs| jobs.iter().any(&wanted));
        let jobs = timeout(LONG, jobs).await??;
        Ok(jobs.into_iter().find(&wanted).unwrap())
    }
}

#[tokio::test]
async fn an_agent_registers_runs_one_job_and_its_pod_succeeds() -> anyhow::Result<()> {
    let world = World::new().await?;
    world
        .agent("agent-0", json!(["--once"]), Value::Null)
        .await?;
    world.queue(Duration::ZERO).await?;
    let job = world.job_when(|job| job.finished.is_some()).await?;
    assert_eq!(
        (job.outcome, job.agent.as_deref()),
        (Outcome::Succeeded, Some("agent-0"))
    );
    world.bed.until_phase("agent-0", "Succeeded").await?;
    world.bed.node.stop().await
}

#[tokio::test]
async fn a_pre_stop_hook_saves_a_running_job_and_nothing_else_does() -> anyhow::Result<()> {
    let hook = json!({ "preStop": { "exec": { "command": ["sh", "-c", "wait"] } } });
    for (lifecycle, saved) in [(hook, true), (Value::Null, false)] {
        let world = World::new().await?;
        world.agent("agent-0", json!([]), lifecycle).await?;
        world.queue(Duration::from_secs(2)).await?;
        world
            .job_when(|job| job.outcome == Outcome::Running)
            .await?;
        // The API server gives no grace to a Pod of which its cache does not know yet that it has a node.
        world.bed.until_phase("agent-0", "Running").await?;
        world.bed.delete("agent-0").await?;
        world.bed.until_gone("agent-0").await?;
        let job = world.job_when(|job| job.finished.is_some()).await?;
        assert_eq!(job.outcome == Outcome::Succeeded, saved, "{job:?}");
        world.bed.node.stop().await?;
    }
    Ok(())
}
