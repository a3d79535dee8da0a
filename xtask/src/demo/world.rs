//! The world of the demonstration: what runs, and how it is asked.

mod end;
mod start;

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result};
use api::RunnerPool;
use azure_devops_simulator::{JobSpec, JobView, Outcome, Simulator, world::Entry};
use control_plane::ControlPlane;
use hollow_node::HollowNode;
use jiff::{SignedDuration, Timestamp};
use kube::{Api, Client, Resource, core::NamespaceResourceScope, runtime::reflector::Store};
use serde_json::Value;
use tokio::task::AbortHandle;

pub(crate) use self::end::Leftovers;
use crate::{
    demo::{
        examples::Example,
        history::History,
        screen::{PoolView, View},
        table::Columns,
    },
    operator::Operator,
    pods::PodWatch,
};

/// Where the RunnerPools are: kubectl's own default, so that no one has to type it.
const NAMESPACE: &str = "default";
/// The name of the token that the examples get.
const OPERATOR: &str = "operator";
/// How the simulator books requests with that token, those apart that agents make to register themselves.
pub(crate) const OPERATOR_IDENTITY: &str = "pat:operator";
/// Everything is done in seconds; a machine that compiles at the same time takes longer.
const TIMEOUT: Duration = Duration::from_secs(90);
/// Between two looks at something that is about to happen.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// Everything that runs.
pub(crate) struct World {
    examples: Vec<Example>,
    columns: Columns,
    client: Client,
    runner_pools: Store<RunnerPool>,
    follower: AbortHandle,
    pods: PodWatch,
    operator: Operator,
    node: HollowNode,
    simulator: Simulator,
    control_plane: ControlPlane,
}

impl World {
    /// Fails if something has died that should run.
    pub(crate) fn check(&self) -> Result<()> {
        self.operator.check()
    }

    /// Queues jobs in the agent pool of a RunnerPool and gives their request ids.
    pub(crate) fn queue(&self, runner_pool: &str, spec: &JobSpec) -> Result<Vec<i64>> {
        let example = self.example(runner_pool)?;
        let (organization, pool) = (example.organization(), &example.spec().pool);
        Ok(self
            .simulator
            .with_world(|world| world.queue_jobs(Timestamp::now(), organization, pool, spec))?)
    }

    /// Cancels a job as a user would.
    pub(crate) fn cancel(&self, runner_pool: &str, job: i64) -> Result<()> {
        let organization = self.example(runner_pool)?.organization();
        Ok(self
            .simulator
            .with_world(|world| world.cancel_job(Timestamp::now(), organization, job))?)
    }

    pub(crate) fn outcome(&self, runner_pool: &str, job: i64) -> Option<Outcome> {
        let example = self.example(runner_pool).ok()?;
        self.jobs(example)
            .into_iter()
            .find(|known| known.id == job)
            .map(|job| job.outcome)
    }

    /// How things stand.
    pub(crate) fn view(&self) -> View {
        let mut objects: Vec<Value> = self
            .runner_pools
            .state()
            .iter()
            .filter_map(|pool| serde_json::to_value(&**pool).ok())
            .collect();
        objects.sort_by_key(|object| object["metadata"]["name"].to_string());
        let mut pools: Vec<PoolView> = self
            .examples
            .iter()
            .map(|example| self.pool_view(example))
            .collect();
        pools.sort_by(|one, other| one.name.cmp(&other.name));
        View {
            pools,
            table: self.columns.table(&objects, Timestamp::now()),
        }
    }

    /// What happened so far.
    pub(crate) fn history(&self) -> Vec<History> {
        let histories = self.examples.iter().map(|example| {
            let (name, spec) = (example.name(), example.spec());
            self.pods.read(|pods| History {
                runner_pool: name.to_owned(),
                agent_pool: spec.pool.clone(),
                min_agents: example.least(),
                max_agents: spec.max_agents as usize,
                most_agents: pods.most(name),
                jobs: self.jobs(example),
                pods: pods
                    .lives()
                    .iter()
                    .filter(|life| life.runner_pool == name)
                    .cloned()
                    .collect(),
            })
        });
        histories.collect()
    }

    /// All requests to Azure DevOps so far.
    pub(crate) fn request_log(&self) -> Vec<Entry> {
        self.simulator.with_world(|world| world.request_log())
    }

    /// The interval at which the operator looks at each agent pool.
    pub(crate) fn poll_interval(&self) -> SignedDuration {
        let seconds = self
            .examples
            .iter()
            .map(|example| example.spec().poll_interval_seconds)
            .min();
        SignedDuration::from_secs(i64::from(seconds.unwrap_or_default()))
    }

    pub(crate) fn operator_memory(&self) -> Result<u64> {
        self.operator.most_memory()
    }

    pub(crate) fn operator_log(&self) -> &Path {
        self.operator.log()
    }

    pub(crate) fn kubeconfig(&self) -> PathBuf {
        self.control_plane.kubeconfig()
    }

    /// The root URL of the simulator, and each organization with an agent pool in it.
    pub(crate) fn agent_pools(&self) -> (String, Vec<(&str, &str)>) {
        let pools = self
            .examples
            .iter()
            .map(|example| (example.organization(), example.spec().pool.as_str()));
        (self.simulator.url().to_string(), pools.collect())
    }

    fn pool_view(&self, example: &Example) -> PoolView {
        let (name, organization, spec) = (example.name(), example.organization(), example.spec());
        let jobs = self.jobs(example);
        let registered = self
            .simulator
            .with_world(|world| world.agents(organization, &spec.pool))
            .unwrap_or_default();
        let placeholder = api::names::placeholder(name, "");
        let (agents, present) = self
            .pods
            .read(|pods| (pods.agents(name), pods.present(name)));
        let count = |outcomes: &[Outcome]| {
            jobs.iter()
                .filter(|job| outcomes.contains(&job.outcome))
                .count()
        };
        PoolView {
            name: name.to_owned(),
            min: example.least(),
            max: spec.max_agents as usize,
            jobs: jobs.len(),
            queued: count(&[Outcome::Queued]),
            busy: count(&[Outcome::Assigned, Outcome::Running]),
            online: registered.iter().filter(|agent| agent.online).count(),
            agents,
            pods: present,
            registrations: registered
                .iter()
                .filter(|agent| !agent.name.starts_with(&placeholder))
                .count(),
        }
    }

    fn jobs(&self, example: &Example) -> Vec<JobView> {
        // The pools were made at the start and nobody deletes them.
        self.simulator
            .with_world(|world| world.jobs(example.organization(), &example.spec().pool))
            .unwrap_or_default()
    }

    fn example(&self, runner_pool: &str) -> Result<&Example> {
        let mut examples = self.examples.iter();
        examples
            .find(|example| example.name() == runner_pool)
            .with_context(|| format!("no example is named {runner_pool}"))
    }

    fn namespaced<K>(&self) -> Api<K>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
    {
        Api::namespaced(self.client.clone(), NAMESPACE)
    }
}
