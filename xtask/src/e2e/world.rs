//! What runs, and how it is asked: with the commands that users have.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use azure_devops_simulator::{AgentView, JobSpec, JobView, Outcome, PatSpec, Settings, Simulator};
use control_plane::{ControlPlane, Options, helm, node, node::Node};
use jiff::Timestamp;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
use serde_json::{Value, json};
use tokio::{io::AsyncWriteExt as _, process::Command, task, time};

use super::{
    canary::Canaries,
    images::{self, Images},
};
use crate::{chart, output::step};

/// Name of the release, and of the operator's Deployment.
pub(super) const RELEASE: &str = "azdo-runner-operator";
/// The operator's namespace.
pub(super) const NAMESPACE: &str = "azdo-operator";
/// The agent pool of each organization.
pub(super) const POOL: &str = "my-pool";
/// Where the simulated Azure DevOps is.
const SIMULATOR_PORT: u16 = 8080;
/// Where the one is that speaks TLS.
const TLS_PORT: u16 = 8443;
/// For what takes seconds on a machine that has nothing else to do.
pub(super) const TIMEOUT: Duration = Duration::from_secs(180);
/// Between two looks at something that is about to happen.
const LOOK_AGAIN: Duration = Duration::from_millis(200);

/// Everything that runs.
pub(super) struct World {
    pub(super) simulator: Simulator,
    pub(super) canaries: Canaries,
    control_plane: ControlPlane,
    node: Node,
}

impl World {
    /// Starts everything but the operator.
    pub(super) async fn start(images: &Images) -> Result<Self> {
        let mut control_plane = step("Kubernetes control plane", async {
            let options = Options {
                audit: true,
                address: Some(node::ADDRESS),
            };
            let control_plane = ControlPlane::start(options).await?;
            let version = control_plane.client()?.apiserver_version().await?;
            Ok((control_plane, version.git_version))
        })
        .await?;
        let node = step("node with containers", async {
            let pause = (images::BASE, images.base.as_path());
            let node = Node::start(&mut control_plane, pause).await?;
            Ok((
                node,
                "containerd, kubelet, kube-proxy, kube-scheduler".to_owned(),
            ))
        })
        .await?;
        step("images", async {
            node.import(&images.operator).await?;
            node.import(&images.agent).await?;
            Ok(((), "imported from archives".to_owned()))
        })
        .await?;
        let simulator = step("simulated Azure DevOps", async {
            let address = SocketAddr::from((node::ADDRESS, SIMULATOR_PORT));
            let simulator = Simulator::start_on(address, Settings::default()).await?;
            let url = simulator.url().to_string();
            Ok((simulator, url))
        })
        .await?;
        Ok(Self {
            simulator,
            canaries: Canaries::start(),
            control_plane,
            node,
        })
    }

    /// What kubectl prints.
    pub(super) async fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        self.kubectl_with(arguments, "").await
    }

    /// What kubectl prints when it reads this.
    pub(super) async fn kubectl_with(&self, arguments: &[&str], input: &str) -> Result<String> {
        let shown = format!("kubectl {}", arguments.join(" "));
        let mut kubectl = Command::new(self.node.kubectl());
        kubectl
            .args(arguments)
            .env("KUBECONFIG", self.kubeconfig())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        let mut process = kubectl.spawn().context("cannot run kubectl")?;
        let mut stdin = process.stdin.take().context("kubectl has no input")?;
        // Where it does not read all, its message says why.
        let _ = stdin.write_all(input.as_bytes()).await;
        drop(stdin);
        let output = time::timeout(TIMEOUT, process.wait_with_output())
            .await
            .with_context(|| format!("does not end: {shown}"))??;
        let (out, error) = (
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr),
        );
        ensure!(output.status.success(), "{shown}: {}{}", out, error.trim());
        Ok(out.into_owned())
    }

    /// An object as JSON.
    pub(super) async fn get(&self, arguments: &[&str]) -> Result<Value> {
        let arguments = [&["get", "--output=json"], arguments].concat();
        let text = self.kubectl(&arguments).await?;
        serde_json::from_str(&text).context("kubectl printed no JSON")
    }

    /// As `kubectl apply --filename -`.
    pub(super) async fn apply(&self, object: &Value) -> Result<()> {
        self.kubectl_with(&["apply", "--filename", "-"], &object.to_string())
            .await
            .map(drop)
    }

    /// Runs Helm.
    pub(super) fn helm(&self, arguments: &[&str]) -> Result<String> {
        let kubeconfig = self.kubeconfig();
        let kubeconfig = kubeconfig.to_string_lossy();
        let all = [arguments, &["--kubeconfig", &kubeconfig]].concat();
        task::block_in_place(|| helm::run(&all, None))
            .with_context(|| format!("helm {}", arguments.join(" ")))
    }

    /// `helm install` or `helm upgrade` of a chart, with the image that was built.
    pub(super) fn deploy(&self, chart: &Path, arguments: &[&str]) -> Result<String> {
        let chart = chart.to_string_lossy();
        let repository = format!("image.repository={}", images::OPERATOR);
        let tag = format!("image.tag={}", images::TAG);
        let [command, more @ ..] = arguments else {
            bail!("install or upgrade?");
        };
        let head = [*command, RELEASE, &chart, "--namespace", NAMESPACE];
        let tail = [
            "--set",
            &repository,
            "--set",
            &tag,
            "--wait",
            "--timeout",
            "3m",
        ];
        self.helm(&[&head[..], &tail, more].concat())
    }

    /// The chart in this repository.
    pub(super) fn chart() -> PathBuf {
        chart::folder()
    }

    /// A simulated Azure DevOps that speaks TLS only, with this certificate.
    pub(super) async fn simulator_with_tls(certificate: &Path, key: &Path) -> Result<Simulator> {
        let address = SocketAddr::from((node::ADDRESS, TLS_PORT));
        let certificate = CertificateDer::from_pem_file(certificate)?;
        let key = PrivateKeyDer::from_pem_file(key)?;
        Simulator::start_with_tls(address, Settings::default(), certificate, key).await
    }

    /// A namespace with a token, for an organization with an agent pool of its own.
    pub(super) async fn team(&self, name: &'static str) -> Result<Team<'_>> {
        self.team_of(name, &self.simulator).await
    }

    /// The same, with an organization of this simulator.
    pub(super) async fn team_of<'a>(
        &'a self,
        name: &'static str,
        simulator: &'a Simulator,
    ) -> Result<Team<'a>> {
        let token = self.canaries.make(name);
        simulator.with_world(|world| -> Result<()> {
            world.create_organization(name)?;
            world.create_pool(Timestamp::now(), name, POOL)?;
            let spec = PatSpec {
                token: Some(token.clone()),
                ..PatSpec::default()
            };
            world.create_pat(name, spec)?;
            Ok(())
        })?;
        self.kubectl(&["create", "namespace", name]).await?;
        let literal = format!("--from-literal=token={token}");
        self.kubectl(&[
            "create",
            "secret",
            "generic",
            "pat-token",
            &literal,
            "--namespace",
            name,
        ])
        .await?;
        Ok(Team {
            world: self,
            name,
            simulator,
        })
    }

    /// Fails if there is a token in an object that is no Secret.
    pub(super) async fn look_for_tokens(&self) -> Result<()> {
        let kinds =
            "runnerpools,pods,configmaps,events,persistentvolumeclaims,deployments,leases,nodes";
        let objects = self
            .kubectl(&["get", kinds, "--all-namespaces", "--output=yaml"])
            .await?;
        let found = self.canaries.found_in(&objects);
        ensure!(
            found.is_empty(),
            "tokens are in objects for all to see: {found:?}"
        );
        Ok(())
    }

    /// Looks until there is something, and gives it.
    pub(super) async fn until<T>(
        &self,
        what: &str,
        mut look: impl AsyncFnMut() -> Result<Option<T>>,
    ) -> Result<T> {
        let looking = async {
            loop {
                if let Some(found) = look().await? {
                    return Ok(found);
                }
                time::sleep(LOOK_AGAIN).await;
            }
        };
        time::timeout(TIMEOUT, looking)
            .await
            .with_context(|| format!("gave up waiting until {what}"))?
    }

    fn kubeconfig(&self) -> PathBuf {
        self.control_plane.kubeconfig()
    }

    /// What somebody needs who wants to know how it came to that.
    pub(super) async fn keep_evidence(&self, folder: &Path) -> Result<()> {
        if folder.exists() {
            fs::remove_dir_all(folder).context("cannot remove former evidence")?;
        }
        fs::create_dir_all(folder).context("cannot make a folder for evidence")?;
        for entry in fs::read_dir(self.control_plane.folder())?.flatten() {
            let path = entry.path();
            if path.extension().is_some_and(|extension| extension == "log") {
                fs::copy(&path, folder.join(entry.file_name()))?;
            }
        }
        let everything = [
            "get",
            "pods,events,runnerpools,persistentvolumeclaims",
            "--all-namespaces",
        ];
        let objects = self
            .kubectl(&[&everything[..], &["--output=yaml"]].concat())
            .await;
        fs::write(
            folder.join("objects.yaml"),
            objects.unwrap_or_else(|error| error.to_string()),
        )?;
        self.canaries.write_logs(folder)
    }

    /// Stops the control plane; what else runs ends with this program.
    pub(super) async fn stop(self) -> Result<()> {
        self.simulator.shutdown().await;
        self.control_plane.stop()
    }
}

/// A namespace that has a token for an organization of the same name.
pub(super) struct Team<'a> {
    pub(super) world: &'a World,
    pub(super) name: &'static str,
    pub(super) simulator: &'a Simulator,
}

impl Team<'_> {
    /// Applies a RunnerPool with all that is required, and these fields, and waits until jobs can be queued.
    pub(super) async fn runner_pool(&self, name: &str, more: Value) -> Result<()> {
        self.apply(name, more).await?;
        self.until_ready(name).await
    }

    /// Waits until there is a placeholder, without which Azure DevOps refuses jobs.
    pub(super) async fn until_ready(&self, name: &str) -> Result<()> {
        let placeholder = api::names::placeholder(name, api::names::BASE);
        let what = format!("{placeholder} is registered");
        self.world
            .until(&what, async || {
                let agents = self
                    .simulator
                    .with_world(|world| world.agents(self.name, POOL))?;
                Ok(agents
                    .iter()
                    .any(|agent| agent.name == placeholder)
                    .then_some(()))
            })
            .await
    }

    /// Applies a RunnerPool with all that is required, and these fields.
    pub(super) async fn apply(&self, name: &str, more: Value) -> Result<()> {
        let mut spec = json!({
            "azDoUrl": format!("{}{}", self.simulator.url(), self.name),
            "pool": POOL,
            "patSecretName": "pat-token",
            "image": images::AGENT,
        });
        if let (Some(spec), Value::Object(more)) = (spec.as_object_mut(), more) {
            spec.extend(more);
        }
        let object = json!({
            "apiVersion": "devops.opentools.mf/v1",
            "kind": "RunnerPool",
            "metadata": { "name": name, "namespace": self.name },
            "spec": spec,
        });
        self.world.apply(&object).await
    }

    /// Queues jobs that last so long.
    pub(super) fn queue(&self, count: usize, duration: Duration) -> Result<()> {
        let spec = JobSpec {
            count,
            duration,
            ..JobSpec::default()
        };
        let now = Timestamp::now();
        self.simulator
            .with_world(|world| world.queue_jobs(now, self.name, POOL, &spec))?;
        Ok(())
    }

    /// All jobs so far.
    pub(super) fn jobs(&self) -> Vec<JobView> {
        self.simulator
            .with_world(|world| world.jobs(self.name, POOL))
            .unwrap_or_default()
    }

    /// All registered agents, placeholders left out.
    pub(super) fn agents(&self) -> Vec<AgentView> {
        let agents = self
            .simulator
            .with_world(|world| world.agents(self.name, POOL));
        let mut agents = agents.unwrap_or_default();
        agents.retain(|agent| !agent.name.contains("-placeholder-"));
        agents
    }

    /// Waits until so many jobs run at once.
    pub(super) async fn until_running(&self, count: usize) -> Result<()> {
        let running = || {
            let jobs = self.jobs();
            jobs.iter()
                .filter(|job| job.outcome == Outcome::Running)
                .count()
        };
        let what = format!("{count} jobs of {} run", self.name);
        self.world
            .until(&what, async || Ok((running() == count).then_some(())))
            .await
    }

    /// Waits until all jobs are over; none may have failed.
    pub(super) async fn until_finished(&self) -> Result<()> {
        let what = format!("the jobs of {} are over", self.name);
        let jobs = self
            .world
            .until(&what, async || {
                let jobs = self.jobs();
                Ok(jobs
                    .iter()
                    .all(|job| job.outcome.is_finished())
                    .then_some(jobs))
            })
            .await?;
        for job in jobs {
            ensure!(
                job.outcome == Outcome::Succeeded,
                "job {} of {} ended as {:?}: {}",
                job.id,
                self.name,
                job.outcome,
                job.message.unwrap_or_default()
            );
        }
        Ok(())
    }

    /// The agents' Pods, of all RunnerPools of the namespace.
    pub(super) async fn pods(&self) -> Result<Vec<Value>> {
        let list = self
            .world
            .get(&[
                "pods",
                "--namespace",
                self.name,
                "--selector",
                "app=azdo-runner",
            ])
            .await?;
        Ok(list["items"].as_array().cloned().unwrap_or_default())
    }

    /// Waits until there is no Pod and no registration of an agent.
    pub(super) async fn until_none(&self) -> Result<()> {
        let what = format!("{} has neither Pods nor agents", self.name);
        self.world
            .until(&what, async || {
                Ok((self.agents().is_empty() && self.pods().await?.is_empty()).then_some(()))
            })
            .await
    }

    /// Deletes a RunnerPool, and waits until it is gone. While it is still there, it is looked for tokens.
    pub(super) async fn delete(&self, runner_pool: &str) -> Result<()> {
        self.world.look_for_tokens().await?;
        let arguments = [
            "delete",
            "runnerpool",
            runner_pool,
            "--namespace",
            self.name,
            "--timeout=3m",
        ];
        self.world.kubectl(&arguments).await.map(drop)
    }
}
