//! The world of the demonstration: what is started, how it is asked, and how it is all taken down again.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use api::RunnerPool;
use azure_devops_simulator::{
    JobSpec, JobView, Outcome, PatSpec, Settings as SimulatorSettings, Simulator, agent::Pace,
    world::Entry,
};
use control_plane::{ControlPlane, Options, User, binaries};
use futures::StreamExt as _;
use hollow_node::{HollowNode, Settings as NodeSettings, SimulatedAgents};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::{
    api::{
        core::v1::{PersistentVolumeClaim, Pod, Secret},
        storage::v1::StorageClass,
    },
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
};
use kube::{
    Api, Client, Resource, ResourceExt as _,
    api::{DeleteParams, ListParams, Patch, PatchParams},
    core::NamespaceResourceScope,
    runtime::{
        WatchStreamExt as _, conditions,
        reflector::{self, Store},
        wait::await_condition,
        watcher,
    },
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};
use tokio::{task::AbortHandle, time};

use crate::{
    demo::{
        examples::Example,
        history::History,
        operator::{self, Operator},
        pods::PodWatch,
        screen::{PoolView, View},
        table::Columns,
    },
    output, repository,
};

/// Where the RunnerPools are: kubectl's own default, so that no one has to type it.
const NAMESPACE: &str = "default";
/// The name of the token that the examples get.
const OPERATOR: &str = "operator";
/// How the simulator books requests with that token, those apart that agents make to register themselves.
pub(crate) const OPERATOR_IDENTITY: &str = "pat:operator";
const FIELD_MANAGER: &str = "xtask-demo";

/// What image pulls and mounts take on a node that has the image.
const START_DELAY: Duration = Duration::from_secs(1);
/// Everything is done in seconds; a machine that compiles at the same time takes longer.
const TIMEOUT: Duration = Duration::from_secs(90);
/// Between two looks at something that is about to happen.
const LOOK_AGAIN: Duration = Duration::from_millis(100);
/// Requests that the simulator's log keeps: an agent makes about ten, and a burst has thousands of agents.
const REQUEST_LOG: usize = 200_000;

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

/// What was still there after the RunnerPools had been deleted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Leftovers {
    pub(crate) leftover_runner_pools: usize,
    pub(crate) leftover_registrations: usize,
    pub(crate) leftover_pods: usize,
    /// Claims that should have gone with their agent.
    pub(crate) leftover_claims: usize,
    /// Claims that are meant to stay: `deleteWithAgent: false`.
    pub(crate) kept_claims: usize,
}

impl World {
    /// Builds what is missing, starts everything and applies the examples; returns when all RunnerPools are ready.
    pub(crate) async fn start(examples: Vec<Example>) -> Result<Self> {
        output::line("Building what is missing");
        step("control-plane programs", async {
            tokio::task::spawn_blocking(|| binaries::ensure(&mut binaries::terminal())).await??;
            Ok((
                (),
                "etcd, kube-apiserver, kube-controller-manager".to_owned(),
            ))
        })
        .await?;
        let program = step("operator, release build", async {
            let program = operator::build().await?;
            let shown = shorten(&program);
            Ok((program, shown))
        })
        .await?;

        output::line("\nStarting");
        let control_plane = step("Kubernetes control plane", async {
            let control_plane = ControlPlane::start(Options::default()).await?;
            let version = control_plane
                .client()?
                .apiserver_version()
                .await?
                .git_version;
            Ok((control_plane, version))
        })
        .await?;
        let client = control_plane.client()?;
        let (simulator, token) = step("simulated Azure DevOps", async {
            let settings = SimulatorSettings {
                request_log: REQUEST_LOG,
                ..SimulatorSettings::default()
            };
            let simulator = Simulator::start(settings).await?;
            let token = furnish(&simulator, &examples)?;
            let url = simulator.url().to_string();
            Ok(((simulator, token), url))
        })
        .await?;
        let node = step("simulated node and agents", async {
            let node_client = control_plane.client_as(User::HollowNode)?;
            let node = HollowNode::start(node_client, node_settings(&examples)).await?;
            let delay = output::duration(START_DELAY);
            Ok((
                node,
                format!("containers start after {delay}, agents as fast as real ones"),
            ))
        })
        .await?;
        let (operator, columns) = step("operator", async {
            let crd = install_crd(&client, &operator::crd(&program)?).await?;
            let kubeconfig = control_plane.kubeconfig_as(User::Operator);
            let log = repository::target()?.join("demo-operator.log");
            let operator = Operator::start(&program, &kubeconfig, log)?;
            let shown = format!(
                "a process of its own; its log is {}",
                shorten(operator.log())
            );
            Ok(((operator, Columns::of(&crd)?), shown))
        })
        .await?;
        let pods = PodWatch::start(client.clone()).await;
        let (runner_pools, follower) = follow(&client);
        let world = Self {
            examples,
            columns,
            client,
            runner_pools,
            follower,
            pods,
            operator,
            node,
            simulator,
            control_plane,
        };
        world.apply(&token).await?;
        Ok(world)
    }

    async fn apply(&self, token: &str) -> Result<()> {
        output::line("\nApplying the examples");
        let root = self.simulator.url();
        output::line(format_args!(
            "  changed for the demonstration: azDoUrl: {root}…; created: Secrets and storage classes that they name;\n  \
             images are not pulled, a simulated agent runs in their place"
        ));
        let (mut secrets, mut classes) = (BTreeMap::new(), Vec::new());
        for example in &self.examples {
            secrets.extend(example.secrets(token));
            classes.extend(example.storage_classes());
        }
        for (name, values) in secrets {
            let secret = json!({ "apiVersion": "v1", "kind": "Secret", "metadata": { "name": name }, "stringData": values });
            self.put(&self.namespaced::<Secret>(), &name, &secret)
                .await?;
        }
        for name in classes {
            let class = json!({
                "apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "metadata": { "name": name },
                "provisioner": "kubernetes.io/host-path",
            });
            self.put(
                &Api::<StorageClass>::all(self.client.clone()),
                &name,
                &class,
            )
            .await?;
        }
        for example in &self.examples {
            let (manifest, name) = (example.at(root.as_str()), example.name());
            let what = format!("examples/{}", example.file);
            step(&what, async {
                self.put(&self.namespaced::<RunnerPool>(), name, &manifest)
                    .await?;
                let remark = [&[name.to_owned()], example.changes.as_slice()].concat();
                Ok(((), remark.join(", with ")))
            })
            .await?;
        }
        step("all RunnerPools ready", async {
            self.until("all RunnerPools are ready", || {
                self.examples.iter().all(|example| self.is_ready(example))
            })
            .await?;
            Ok(((), String::new()))
        })
        .await
    }

    /// Whether the operator says that all is well, and the warm agents are there.
    fn is_ready(&self, example: &Example) -> bool {
        let reference = reflector::ObjectRef::new(example.name()).within(NAMESPACE);
        let conditions = self
            .runner_pools
            .get(&reference)
            .and_then(|pool| pool.status.clone())
            .map(|status| status.conditions);
        let ready = |conditions: Vec<k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition>| {
            conditions
                .iter()
                .any(|condition| condition.type_ == "Ready" && condition.status == "True")
        };
        conditions.is_some_and(ready) && self.pool_view(example).is_settled()
    }

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
                min_agents: spec.min_agents as usize,
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

    /// Deletes the RunnerPools and waits until all that should go with them is gone, but not for ever.
    pub(crate) async fn delete_runner_pools(&self) -> Result<Leftovers> {
        output::line("\nEnding");
        step("delete the RunnerPools", async {
            let pools = self.namespaced::<RunnerPool>();
            for example in &self.examples {
                pools
                    .delete(example.name(), &DeleteParams::background())
                    .await?;
            }
            let deadline = Instant::now() + TIMEOUT;
            loop {
                let leftovers = self.leftovers().await?;
                let gone = Leftovers {
                    kept_claims: leftovers.kept_claims,
                    ..Leftovers::default()
                };
                if leftovers == gone || Instant::now() > deadline {
                    return Ok((leftovers, String::new()));
                }
                time::sleep(LOOK_AGAIN).await;
            }
        })
        .await
    }

    /// Stops everything and removes it.
    pub(crate) async fn stop(self) -> Result<()> {
        let Self {
            operator,
            node,
            simulator,
            control_plane,
            follower,
            pods,
            ..
        } = self;
        let stopped = operator.stop().await;
        follower.abort();
        drop(pods);
        node.stop().await?;
        simulator.shutdown().await;
        control_plane.stop()?;
        stopped
    }

    async fn leftovers(&self) -> Result<Leftovers> {
        let labelled = ListParams::default().labels(api::names::LABEL_RUNNER_POOL);
        let claims = self
            .namespaced::<PersistentVolumeClaim>()
            .list(&labelled)
            .await?
            .items;
        let (kept_claims, leftover_claims) = claims
            .iter()
            .partition::<Vec<_>, _>(|claim| self.is_to_stay(claim));
        let registrations = |example: &Example| {
            let agents = self
                .simulator
                .with_world(|world| world.agents(example.organization(), &example.spec().pool));
            agents.map_or(0, |agents| agents.len())
        };
        Ok(Leftovers {
            leftover_runner_pools: self
                .namespaced::<RunnerPool>()
                .list(&ListParams::default())
                .await?
                .items
                .len(),
            leftover_registrations: self.examples.iter().map(registrations).sum(),
            leftover_pods: self.namespaced::<Pod>().list(&labelled).await?.items.len(),
            leftover_claims: leftover_claims.len(),
            kept_claims: kept_claims.len(),
        })
    }

    fn is_to_stay(&self, claim: &PersistentVolumeClaim) -> bool {
        let label = |name: &str| claim.labels().get(name).map(String::as_str);
        let example = self
            .examples
            .iter()
            .find(|example| label(api::names::LABEL_RUNNER_POOL) == Some(example.name()));
        let mut templates = example.into_iter().flat_map(|example| &example.spec().pvcs);
        templates.any(|template| {
            label(api::names::LABEL_PVC_NAME) == Some(template.name.as_str())
                && !template.delete_with_agent
        })
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
            min: spec.min_agents as usize,
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

    /// As `kubectl apply --server-side`.
    async fn put<K>(&self, api: &Api<K>, name: &str, manifest: &Value) -> Result<()>
    where
        K: Clone + DeserializeOwned + std::fmt::Debug,
    {
        let patched = api
            .patch(
                name,
                &PatchParams::apply(FIELD_MANAGER),
                &Patch::Apply(manifest),
            )
            .await;
        patched
            .map(drop)
            .with_context(|| format!("cannot apply {name}"))
    }

    async fn until(&self, what: &str, so: impl Fn() -> bool) -> Result<()> {
        let deadline = Instant::now() + TIMEOUT;
        while !so() {
            self.check()?;
            ensure!(
                Instant::now() < deadline,
                "gave up waiting until {what}; the operator's log is {}\n{}",
                self.operator.log().display(),
                self.view().table.join("\n")
            );
            time::sleep(LOOK_AGAIN).await;
        }
        Ok(())
    }
}

/// Does a step and prints its name, its time and what it has to say.
async fn step<T>(name: &str, work: impl Future<Output = Result<(T, String)>>) -> Result<T> {
    let started = Instant::now();
    let (value, remark) = work.await.with_context(|| format!("failed: {name}"))?;
    let line = format!(
        "  {name:<30} {:>9}   {remark}",
        output::duration(started.elapsed())
    );
    output::line(line.trim_end());
    Ok(value)
}

/// A path as a user at the root of the repository would write it.
fn shorten(path: &Path) -> String {
    path.strip_prefix(repository::root())
        .unwrap_or(path)
        .display()
        .to_string()
}

/// Organizations, agent pools and a token for all of them.
fn furnish(simulator: &Simulator, examples: &[Example]) -> Result<String> {
    simulator.with_world(|world| {
        let mut token = None;
        let organizations: BTreeSet<&str> = examples.iter().map(Example::organization).collect();
        for organization in organizations {
            world.create_organization(organization)?;
            let spec = PatSpec {
                name: OPERATOR.to_owned(),
                token,
                ..PatSpec::default()
            };
            token = Some(world.create_pat(organization, spec)?);
        }
        for example in examples {
            world.create_pool(
                Timestamp::now(),
                example.organization(),
                &example.spec().pool,
            )?;
        }
        token.context("there is no example")
    })
}

fn node_settings(examples: &[Example]) -> NodeSettings {
    let runtime = Arc::new(SimulatedAgents { pace: Pace::real() });
    let mut settings = NodeSettings::new("hollow-node", runtime).start_delay(START_DELAY);
    for (image, capability) in examples.iter().flat_map(Example::tools) {
        let path = format!("/usr/bin/{capability}");
        settings
            .tools
            .entry(image)
            .or_default()
            .insert(capability, path);
    }
    settings
}

async fn install_crd(client: &Client, yaml: &str) -> Result<CustomResourceDefinition> {
    let crd: CustomResourceDefinition =
        serde_saphyr::from_str(yaml).context("the operator's crd is no YAML")?;
    let (crds, name) = (
        Api::<CustomResourceDefinition>::all(client.clone()),
        crd.name_any(),
    );
    crds.create(&kube::api::PostParams::default(), &crd)
        .await
        .context("cannot create the CRD")?;
    let established = await_condition(crds, &name, conditions::is_crd_established());
    time::timeout(TIMEOUT, established)
        .await
        .context("the CRD was not established")??;
    Ok(crd)
}

/// Keeps a copy of all RunnerPools.
fn follow(client: &Client) -> (Store<RunnerPool>, AbortHandle) {
    let (store, writer) = reflector::store();
    let events = watcher(
        Api::<RunnerPool>::namespaced(client.clone(), NAMESPACE),
        watcher::Config::default(),
    );
    let following = reflector::reflector(writer, events.default_backoff()).for_each(async |_| {});
    (store, tokio::spawn(following).abort_handle())
}
