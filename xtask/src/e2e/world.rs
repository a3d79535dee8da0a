//! What runs, and how it is asked: with the commands that users have.

use std::{
    env, fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use azure_devops_simulator::{AgentView, JobSpec, JobView, Outcome, PatSpec, Settings, Simulator};
use control_plane::{AuditEvent, ControlPlane, Options, binaries, node, node::Node};
use jiff::Timestamp;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
use serde_json::{Value, json};
use tokio::{io::AsyncWriteExt as _, process::Command, time};

use super::{
    canary::Canaries,
    guides::Guides,
    images::{self, Images},
};
use crate::{chart, output::step, repository};

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
/// For a command: longer than Helm waits.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(330);
/// What the guides have for the operator's image, and what it is here.
pub(super) const OWN_IMAGE: [(&str, &str); 2] = [
    (
        "my-registry.example.com/azdo-runner-operator",
        images::OPERATOR,
    ),
    ("my-tag", images::TAG),
];
/// How the command begins that upgrades the release.
const UPGRADE: &str = "helm upgrade azdo-runner-operator ";
/// Between two looks at something that is about to happen.
const LOOK_AGAIN: Duration = Duration::from_millis(200);

/// Everything that runs.
pub(super) struct World {
    pub(super) simulator: Simulator,
    pub(super) canaries: Canaries,
    pub(super) guides: Guides,
    control_plane: ControlPlane,
    node: Node,
    /// Where kubectl and Helm are found first.
    path: String,
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
            guides: Guides::read()?,
            path: path(&node)?,
            control_plane,
            node,
        })
    }

    /// What kubectl prints.
    pub(super) async fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        Ok(self.kubectl_with(arguments, "").await?.text)
    }

    async fn kubectl_with(&self, arguments: &[&str], input: &str) -> Result<Printed> {
        let mut kubectl = Command::new(self.node.kubectl());
        kubectl.args(arguments);
        let shown = format!("kubectl {}", arguments.join(" "));
        self.run(kubectl, &shown, input).await
    }

    /// An object as JSON.
    pub(super) async fn get(&self, arguments: &[&str]) -> Result<Value> {
        let arguments = [&["get", "--output=json"], arguments].concat();
        let text = self.kubectl(&arguments).await?;
        serde_json::from_str(&text).context("kubectl printed no JSON")
    }

    /// As `kubectl apply --filename -`; gives the warnings.
    pub(super) async fn apply(&self, object: &Value) -> Result<String> {
        let arguments = ["apply", "--filename", "-"];
        let printed = self.kubectl_with(&arguments, &object.to_string()).await?;
        Ok(printed.warnings)
    }

    /// Runs Helm.
    pub(super) async fn helm(&self, arguments: &[&str]) -> Result<String> {
        let mut helm = Command::new("helm");
        helm.args(arguments);
        let shown = format!("helm {}", arguments.join(" "));
        Ok(self.run(helm, &shown, "").await?.text)
    }

    /// Runs the command of the guides that begins so. Users replace words of it by their own, and some write more.
    pub(super) async fn documented(
        &self,
        begin: &str,
        replaced: &[(&str, &str)],
        more: &str,
    ) -> Result<String> {
        let documented = self.guides.command(begin)?;
        self.shell(&documented, replaced, more).await
    }

    /// The same with any command, in a shell at the root of the repository.
    pub(super) async fn shell(
        &self,
        command: &str,
        replaced: &[(&str, &str)],
        more: &str,
    ) -> Result<String> {
        let mut line = command.to_owned();
        for (word, own) in replaced {
            ensure!(line.contains(word), "there is no {word:?} in {command}");
            line = line.replace(word, own);
        }
        let mut shell = Command::new("sh");
        shell
            .args(["-c", &format!("{line} {more}")])
            .current_dir(repository::root());
        Ok(self.run(shell, command, "").await?.text)
    }

    /// Installs the chart, with the image that was built; what Helm tells.
    pub(super) async fn install(&self) -> Result<String> {
        self.documented("helm install ", &OWN_IMAGE, "").await
    }

    /// Upgrades the release, with these further values.
    pub(super) async fn upgrade(&self, values: &str) -> Result<String> {
        self.documented(UPGRADE, &[], values).await
    }

    async fn run(&self, mut command: Command, shown: &str, input: &str) -> Result<Printed> {
        command
            .env("PATH", &self.path)
            .env("KUBECONFIG", self.kubeconfig())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        let mut process = command
            .spawn()
            .with_context(|| format!("cannot run {shown}"))?;
        let mut stdin = process.stdin.take().context("it has no input")?;
        // Where it does not read all, its message says why.
        let _ = stdin.write_all(input.as_bytes()).await;
        drop(stdin);
        let output = time::timeout(COMMAND_TIMEOUT, process.wait_with_output())
            .await
            .with_context(|| format!("does not end: {shown}"))??;
        let (out, error) = (
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr),
        );
        ensure!(output.status.success(), "{shown}: {}{}", out, error.trim());
        Ok(Printed {
            text: out.into_owned(),
            warnings: error.into_owned(),
        })
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
        let team = self.organization(name, simulator)?;
        self.kubectl(&["create", "namespace", name]).await?;
        let own = [("YOUR_PAT_TOKEN", team.token.as_str())];
        team.documented("kubectl create secret generic pat-token ", &own, "")
            .await?;
        Ok(team)
    }

    /// An organization with an agent pool of its own, and a token that is not in the cluster yet.
    pub(super) fn organization<'a>(
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
        Ok(Team {
            world: self,
            name,
            token,
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

    /// What the API server was asked.
    pub(super) fn audit_log(&self) -> Result<Vec<AuditEvent>> {
        self.control_plane.audit_log()
    }

    /// Stops the control plane; what else runs ends with this program.
    pub(super) async fn stop(self) -> Result<()> {
        self.simulator.shutdown().await;
        self.control_plane.stop()
    }
}

/// What a command printed.
struct Printed {
    text: String,
    /// What went to standard error.
    warnings: String,
}

/// The folders of kubectl and Helm, and those of the system.
fn path(node: &Node) -> Result<String> {
    let (kubectl, helm) = (node.kubectl(), binaries::helm(&mut binaries::terminal())?);
    let own = [kubectl, helm];
    let own = own.iter().filter_map(|program| program.parent());
    let system = env::var_os("PATH").unwrap_or_default();
    let all = env::join_paths(own.map(Path::to_owned).chain(env::split_paths(&system)))?;
    all.into_string()
        .ok()
        .context("a folder on the PATH has an odd name")
}

/// A namespace that has a token for an organization of the same name.
pub(super) struct Team<'a> {
    pub(super) world: &'a World,
    pub(super) name: &'static str,
    pub(super) token: String,
    pub(super) simulator: &'a Simulator,
}

impl Team<'_> {
    /// As [`World::documented`], with kubectl in the team's namespace.
    pub(super) async fn documented(
        &self,
        begin: &str,
        replaced: &[(&str, &str)],
        more: &str,
    ) -> Result<String> {
        let here = format!("kubectl --namespace {} ", self.name);
        let replaced = [&[("kubectl ", here.as_str())], replaced].concat();
        self.world.documented(begin, &replaced, more).await
    }

    /// As [`Team::documented`]; the answer has this in it.
    pub(super) async fn ask(
        &self,
        begin: &str,
        replaced: &[(&str, &str)],
        answer: &str,
    ) -> Result<()> {
        let text = self.documented(begin, replaced, "").await?;
        ensure!(
            text.contains(answer),
            "{begin} does not tell {answer}: {text}"
        );
        Ok(())
    }

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

    /// Applies a RunnerPool with all that is required, and these fields; gives the warnings.
    pub(super) async fn apply(&self, name: &str, more: Value) -> Result<String> {
        self.world.apply(&self.object(name, more)).await
    }

    /// A RunnerPool with all that is required, and these fields.
    pub(super) fn object(&self, name: &str, more: Value) -> Value {
        let mut spec = json!({
            "azDoUrl": format!("{}{}", self.simulator.url(), self.name),
            "pool": POOL,
            "patSecretName": "pat-token",
            "image": images::AGENT,
        });
        if let (Some(spec), Value::Object(more)) = (spec.as_object_mut(), more) {
            spec.extend(more);
        }
        json!({
            "apiVersion": "devops.opentools.mf/v1",
            "kind": "RunnerPool",
            "metadata": { "name": name, "namespace": self.name },
            "spec": spec,
        })
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
