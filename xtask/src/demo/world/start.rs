//! The beginning: everything is built, started and applied.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use api::RunnerPool;
use azure_devops_simulator::{PatSpec, Settings as SimulatorSettings, Simulator, agent::Pace};
use control_plane::{ControlPlane, Options, User, binaries};
use futures::StreamExt as _;
use hollow_node::{HollowNode, Settings as NodeSettings, SimulatedAgents};
use jiff::Timestamp;
use k8s_openapi::api::{core::v1::Secret, storage::v1::StorageClass};
use kube::{
    Api, Client,
    runtime::{
        WatchStreamExt as _,
        reflector::{self, ObjectRef, Store},
        watcher,
    },
};
use serde_json::json;
use tokio::{task::AbortHandle, time};

use super::{LOOK_AGAIN, NAMESPACE, OPERATOR, TIMEOUT, World};
use crate::{
    chart, cluster,
    demo::{examples::Example, table::Columns},
    operator::{self, Operator},
    output::{self, step},
    pods::PodWatch,
    repository,
};

/// What image pulls and mounts take on a node that has the image.
const START_DELAY: Duration = Duration::from_secs(1);
/// Requests that the simulator's log keeps: an agent makes about ten, and a burst has thousands of agents.
const REQUEST_LOG: usize = 200_000;

impl World {
    /// Builds what is missing, starts everything and applies the examples; returns when all RunnerPools are ready.
    pub(crate) async fn start(examples: Vec<Example>) -> Result<Self> {
        output::line("Building what is missing");
        step("programs of Kubernetes", async {
            tokio::task::spawn_blocking(|| {
                binaries::ensure(&mut binaries::terminal())?;
                binaries::helm(&mut binaries::terminal())
            })
            .await??;
            let names = "etcd, kube-apiserver, kube-controller-manager, helm";
            Ok(((), names.to_owned()))
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
            let crd = cluster::install_crd(&client, &operator::crd(&program)?).await?;
            let kubeconfig = rights(&control_plane).await?;
            let log = repository::target()?.join("demo-operator.log");
            File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
            let operator = Operator::start(&program, &kubeconfig, log, &[])?;
            let shown = format!(
                "a process of its own, with the rights of the chart; its log is {}",
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
            cluster::put(&self.namespaced::<Secret>(), &name, &secret).await?;
        }
        for name in classes {
            let class = json!({
                "apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "metadata": { "name": name },
                "provisioner": "kubernetes.io/host-path",
            });
            cluster::put(
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
                cluster::put(&self.namespaced::<RunnerPool>(), name, &manifest).await?;
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
        let reference = ObjectRef::new(example.name()).within(NAMESPACE);
        let status = self
            .runner_pools
            .get(&reference)
            .and_then(|pool| pool.status.clone());
        let ready = status.is_some_and(|status| {
            let mut conditions = status.conditions.iter();
            conditions.any(|condition| condition.type_ == "Ready" && condition.status == "True")
        });
        ready && self.pool_view(example).is_settled()
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

/// A kubeconfig with the rights that the chart gives the operator.
async fn rights(control_plane: &ControlPlane) -> Result<PathBuf> {
    let release = tokio::task::spawn_blocking(|| chart::release(NAMESPACE)).await??;
    let account = control_plane.grant(&release).await?;
    control_plane.kubeconfig_of(&account).await
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
