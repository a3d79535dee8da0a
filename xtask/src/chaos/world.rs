//! What runs, and how it is started, asked and stopped.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use api::RunnerPool;
use azure_devops_simulator::{
    AgentSpec, AgentView, JobSpec, JobView, PatSpec, Settings as SimulatorSettings, Simulator,
    Switches, agent::Pace,
};
use control_plane::{ControlPlane, Options, Program, User, binaries};
use futures::TryStreamExt as _;
use hollow_node::{HollowNode, Settings as NodeSettings, SimulatedAgents};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Namespace, Secret};
use kube::{Api, Client, runtime::watcher};
use serde_json::json;
use tokio::{task::AbortHandle, time};

use super::{
    LOOK_AGAIN, PATIENCE,
    ambush::Ambush,
    leases::LeaseWatch,
    limits::Limits,
    pools::{self, NAMESPACES, ORGANIZATION, Pool, SECRET},
    random::Random,
    replicas::Replicas,
};
use crate::{cluster, operator, output::step, pods::PodWatch};

/// The name of the operator's token: its requests count as `pat:operator`.
const OPERATOR: &str = "operator";
/// What image pulls and mounts take on a node that has the image.
const START_DELAY: Duration = Duration::from_millis(500);
/// An agent whose name looks like one of ours, but which is a stranger's: it holds an index of `blue/warm`, has no process,
/// and must still be there in the end.
pub(crate) const STRANGERS_AGENT: &str = "warm-agent-1";
pub(crate) const STRANGERS_AGENT_POOL: &str = "warm";

/// Everything that runs.
pub(crate) struct World {
    pub(crate) pools: Vec<Pool>,
    pub(crate) client: Client,
    /// Of the user who deletes what belongs to others.
    pub(crate) stranger: Client,
    pub(crate) pods: PodWatch,
    pub(crate) leases: LeaseWatch,
    pub(crate) replicas: Replicas,
    /// One for each of [`NAMESPACES`], so that not everything is lost with one.
    pub(crate) nodes: Vec<HollowNode>,
    pub(crate) simulator: Simulator,
    pub(crate) ambush: Ambush,
    pub(crate) control_plane: ControlPlane,
    /// Programs of the control plane that are meant to be down.
    pub(crate) struck: Vec<Program>,
    pub(crate) limits: Arc<Mutex<Limits>>,
    pool_watch: AbortHandle,
}

/// How a world is made.
pub(crate) struct Setup<'a> {
    /// The operator to be put to the test.
    pub(crate) program: &'a Path,
    pub(crate) replicas: usize,
    /// Where logs go.
    pub(crate) folder: &'a Path,
    pub(crate) random: Random,
}

impl World {
    /// Starts everything and applies the RunnerPools; returns when all of them are ready.
    pub(crate) async fn start(setup: Setup<'_>) -> Result<Self> {
        let Setup {
            program,
            replicas,
            folder,
            mut random,
        } = setup;
        step("control-plane programs", async {
            tokio::task::spawn_blocking(|| binaries::ensure(&mut binaries::terminal())).await??;
            Ok(((), String::new()))
        })
        .await?;
        let control_plane = step("Kubernetes control plane", async {
            let control_plane = ControlPlane::start(Options {
                audit: true,
                ..Options::default()
            })
            .await?;
            let server = control_plane.server().to_owned();
            Ok((control_plane, server))
        })
        .await?;
        let client = control_plane.client()?;
        let ambushes = random.fork();
        let (simulator, token, ambush) = step("simulated Azure DevOps", async {
            let simulator = Simulator::start(simulator_settings()).await?;
            let (token, agent_pools) = furnish(&simulator, &pools::all())?;
            let ambush = Ambush::lay(&simulator, agent_pools, ambushes);
            let url = simulator.url().to_string();
            Ok(((simulator, token, ambush), url))
        })
        .await?;
        cluster::install_crd(&client, &operator::crd(program)?).await?;
        prepare_namespaces(&client, &token).await?;
        let nodes = step("simulated nodes and agents", async {
            let mut nodes = Vec::new();
            for namespace in NAMESPACES {
                let runtime = Arc::new(SimulatedAgents { pace: pace() });
                let settings = NodeSettings::new(format!("{namespace}-node"), runtime)
                    .namespace(namespace)
                    .start_delay(START_DELAY);
                let client = control_plane.client_as(User::HollowNode)?;
                nodes.push(HollowNode::start(client, settings).await?);
            }
            let remark = format!("{} nodes", nodes.len());
            Ok((nodes, remark))
        })
        .await?;
        let pods = PodWatch::start(client.clone()).await;
        let leases = LeaseWatch::start(client.clone());
        let limits = Arc::new(Mutex::new(Limits::default()));
        let pool_watch = tokio::spawn(follow_pools(client.clone(), limits.clone())).abort_handle();
        let replicas = step("operator", async {
            let started =
                Replicas::start(program, &control_plane, folder, replicas, random).await?;
            let remark = format!("{replicas} replicas");
            Ok((started, remark))
        })
        .await?;
        let mut world = Self {
            pools: pools::all(),
            stranger: control_plane.client_as(User::Stranger)?,
            client,
            pods,
            leases,
            replicas,
            nodes,
            simulator,
            ambush,
            control_plane,
            struck: Vec::new(),
            limits,
            pool_watch,
        };
        world.apply().await?;
        Ok(world)
    }

    async fn apply(&mut self) -> Result<()> {
        for index in 0..self.pools.len() {
            self.create(index).await?;
        }
        step("all RunnerPools connected", async {
            let deadline = Instant::now() + PATIENCE;
            while !self.are_connected().await? {
                self.tend().await?;
                ensure!(
                    Instant::now() < deadline,
                    "gave up waiting until all RunnerPools are connected"
                );
                time::sleep(LOOK_AGAIN).await;
            }
            Ok((
                (),
                self.pools
                    .iter()
                    .map(Pool::title)
                    .collect::<Vec<_>>()
                    .join(", "),
            ))
        })
        .await
    }

    /// Creates a RunnerPool.
    pub(crate) async fn create(&self, index: usize) -> Result<()> {
        let pool = &self.pools[index];
        let manifest = pool.manifest(self.simulator.url().as_str());
        cluster::put(&self.runner_pools(pool), pool.name, &manifest).await
    }

    /// Whether the operator has seen the agent pool of every RunnerPool. That all is well it cannot say of one for which a
    /// stranger holds a name.
    async fn are_connected(&self) -> Result<bool> {
        for pool in &self.pools {
            let current = self.runner_pools(pool).get(pool.name).await?;
            let ready = current.status.is_some_and(|status| {
                let mut conditions = status.conditions.iter();
                conditions
                    .any(|condition| condition.type_ == "Connected" && condition.status == "True")
            });
            if !ready {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Starts again what ended: replicas as a kubelet does, and programs of the control plane that could not get their port
    /// back.
    pub(crate) async fn tend(&mut self) -> Result<()> {
        for program in Program::ALL {
            if !self.struck.contains(&program) && !self.control_plane.is_running(program) {
                self.control_plane.restart(program)?;
            }
        }
        self.replicas.tend().await
    }

    pub(crate) fn runner_pools(&self, pool: &Pool) -> Api<RunnerPool> {
        Api::namespaced(self.client.clone(), pool.namespace)
    }

    /// Queues jobs, and gives their request ids.
    pub(crate) fn queue(&self, pool: usize, spec: &JobSpec) -> Result<Vec<i64>> {
        let agent_pool = self.pools[pool].agent_pool;
        Ok(self.simulator.with_world(|world| {
            world.queue_jobs(Timestamp::now(), ORGANIZATION, agent_pool, spec)
        })?)
    }

    /// Cancels a job as its user would.
    pub(crate) fn cancel(&self, job: i64) -> Result<()> {
        Ok(self
            .simulator
            .with_world(|world| world.cancel_job(Timestamp::now(), ORGANIZATION, job))?)
    }

    /// The jobs of an agent pool.
    pub(crate) fn jobs(&self, agent_pool: &str) -> Result<Vec<JobView>> {
        Ok(self
            .simulator
            .with_world(|world| world.jobs(ORGANIZATION, agent_pool))?)
    }

    /// The agents of an agent pool.
    pub(crate) fn agents(&self, agent_pool: &str) -> Result<Vec<AgentView>> {
        Ok(self
            .simulator
            .with_world(|world| world.agents(ORGANIZATION, agent_pool))?)
    }

    /// The names of all agent pools, each once.
    pub(crate) fn agent_pools(&self) -> Vec<&'static str> {
        let mut names: Vec<_> = self.pools.iter().map(|pool| pool.agent_pool).collect();
        names.sort_unstable();
        names.dedup();
        names
    }

    /// Stops everything and removes it.
    pub(crate) async fn stop(self) -> Result<()> {
        let Self {
            pods,
            leases,
            replicas,
            nodes,
            simulator,
            mut control_plane,
            pool_watch,
            ..
        } = self;
        let stopped = replicas.stop().await;
        pool_watch.abort();
        drop((pods, leases));
        // A node takes its leave of an API server, which an early end may have left dead.
        let mut left = Ok(());
        if revive(&mut control_plane).await? {
            for node in nodes {
                left = left.and(node.stop().await);
            }
        }
        simulator.shutdown().await;
        control_plane.stop()?;
        stopped.and(left)
    }
}

/// Starts what is dead of a control plane and waits until it is ready, but not for ever. Whether it is.
pub(crate) async fn revive(control_plane: &mut ControlPlane) -> Result<bool> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        for program in Program::ALL {
            if !control_plane.is_running(program) {
                control_plane.restart(program)?;
            }
        }
        if control_plane.is_ready().await {
            return Ok(true);
        }
        if Instant::now() > deadline {
            return Ok(false);
        }
        time::sleep(LOOK_AGAIN).await;
    }
}

/// How long Azure DevOps believes in a session that it does not hear of.
pub(super) const SESSION: Duration = Duration::from_secs(40);

/// Azure DevOps with a tenth of its times or so, all in the same proportion: a lock outlasts several renewals, a session
/// several polls.
fn simulator_settings() -> SimulatorSettings {
    SimulatorSettings {
        request_log: 0,
        switches: Switches {
            long_poll: Duration::from_secs(15),
            lock: Duration::from_secs(60),
            offline_after: SESSION,
            session_expiry: SESSION,
            ..Switches::default()
        },
        ..SimulatorSettings::default()
    }
}

/// Agents with a tenth of the real times, likewise.
fn pace() -> Pace {
    let seconds = Duration::from_secs;
    Pace {
        start_up: seconds(1),
        idle_pause: seconds(0)..=seconds(1),
        error_pause: seconds(1)..=seconds(3),
        session_retry: seconds(3),
        session_patience: seconds(240),
        renewal: seconds(6),
        report_retry: seconds(1),
        keep_alive: Some(seconds(10)),
    }
}

/// The organization, its agent pools, the operator's token, and a stranger's agent. Gives the token, and the agent pools by
/// id.
fn furnish(simulator: &Simulator, pools: &[Pool]) -> Result<(String, BTreeMap<i64, &'static str>)> {
    simulator.with_world(|world| {
        world.create_organization(ORGANIZATION)?;
        let spec = PatSpec {
            name: OPERATOR.to_owned(),
            ..PatSpec::default()
        };
        let token = world.create_pat(ORGANIZATION, spec)?;
        let mut agent_pools = BTreeMap::new();
        for pool in pools {
            if !agent_pools.values().any(|name| *name == pool.agent_pool) {
                let id = world.create_pool(Timestamp::now(), ORGANIZATION, pool.agent_pool)?;
                agent_pools.insert(id, pool.agent_pool);
            }
        }
        let stranger = AgentSpec {
            name: STRANGERS_AGENT.to_owned(),
            ..AgentSpec::default()
        };
        world.add_agent_by_hand(
            Timestamp::now(),
            ORGANIZATION,
            STRANGERS_AGENT_POOL,
            stranger,
        )?;
        Ok((token, agent_pools))
    })
}

async fn prepare_namespaces(client: &Client, token: &str) -> Result<()> {
    for name in NAMESPACES {
        let namespace =
            json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": name } });
        let namespaces: Api<Namespace> = Api::all(client.clone());
        cluster::put(&namespaces, name, &namespace).await?;
        let secret = json!({
            "apiVersion": "v1", "kind": "Secret", "metadata": { "name": SECRET },
            "stringData": { api::names::SECRET_TOKEN_KEY: token },
        });
        let secrets: Api<Secret> = Api::namespaced(client.clone(), name);
        cluster::put(&secrets, SECRET, &secret).await?;
    }
    Ok(())
}

/// Keeps account of what every RunnerPool allows.
async fn follow_pools(client: Client, limits: Arc<Mutex<Limits>>) {
    let pools: Api<RunnerPool> = Api::all(client);
    let mut events = std::pin::pin!(kube::runtime::watcher(pools, watcher::Config::default()));
    loop {
        match events.try_next().await {
            Ok(Some(
                watcher::Event::Apply(pool)
                | watcher::Event::InitApply(pool)
                | watcher::Event::Delete(pool),
            )) => limits
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .note(&pool),
            Ok(Some(_)) => {}
            Ok(None) => return,
            Err(_) => time::sleep(LOOK_AGAIN).await,
        }
    }
}

/// The folder of a run's logs, empty.
pub(crate) fn fresh_folder(folder: &Path) -> Result<PathBuf> {
    if folder.exists() {
        fs::remove_dir_all(folder).with_context(|| format!("cannot empty {}", folder.display()))?;
    }
    fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    Ok(folder.to_owned())
}
