//! The test bed.

use std::{collections::BTreeMap, fmt, net::SocketAddr, path::Path, sync::Arc, time::Duration};

use api::{RunnerPool, RunnerPoolStatus};
use azure_devops_simulator::{
    Control, Simulator,
    agent::{self, Agent, Pace},
    world::{AgentView, JobSpec, JobView, Outcome, PatSpec, Settings},
};
use control_plane::{Account, ControlPlane, helm};
use futures::StreamExt as _;
use hollow_node::{HollowNode, Runtime, SimulatedAgents};
use k8s_openapi::{
    api::core::v1::{PersistentVolumeClaim, Pod, ResourceQuota, Secret},
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
};
use kube::{
    Api, Client, Resource, ResourceExt as _,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
    core::DynamicObject,
    runtime::{
        WatchStreamExt as _, conditions,
        wait::await_condition,
        watcher::{self, watcher},
    },
};
use operator::{
    decide::Decide,
    lease::{self, Election, Times},
    run::{Operator, operate},
    webhook::Webhooks,
};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::{net::TcpListener, sync::OnceCell, task::JoinHandle};
use tokio_util::sync::CancellationToken;

/// Patience of a test. Nothing takes so long; a busy machine may take a multiple of the usual.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

pub(crate) const ORGANIZATION: &str = "acme";
pub(crate) const POOL: &str = "Linux Pool";

/// A namespace with everything around it.
pub(crate) struct Bed {
    pub(crate) client: Client,
    pub(crate) namespace: String,
    pub(crate) simulator: Arc<Simulator>,
    pub(crate) control: Control,
    pub(crate) token: String,
    pub(crate) node: HollowNode,
    /// How the operator comes by its plans.
    pub(crate) decide: &'static Decide,
    /// The service account of the operator, with the rights that the chart gives it by default.
    pub(crate) account: Account,
    /// What the next operator serves its webhooks with.
    pub(crate) webhooks: Option<Webhooks>,
    operator: Option<Running>,
}

struct Running {
    address: SocketAddr,
    stop: CancellationToken,
    task: JoinHandle<anyhow::Result<()>>,
}

/// The chart.
pub(crate) const CHART: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../../charts/azdo-runner-operator"
);

/// The namespace of the operator's service accounts. Not the test's own: a test may delete that.
pub(crate) const OPERATORS: &str = "default";

/// The objects of a release of this name.
pub(crate) async fn chart(release: &str, namespace: &str, values: Value) -> Vec<DynamicObject> {
    let (release, namespace) = (release.to_owned(), namespace.to_owned());
    let work = move || helm::template(Path::new(CHART), &release, &namespace, &values);
    let manifests = tokio::task::spawn_blocking(work).await.unwrap().unwrap();
    helm::objects(&manifests).unwrap()
}

/// The control plane of the test program, with the CRD.
pub(crate) async fn control_plane() -> &'static ControlPlane {
    static CRD: OnceCell<()> = OnceCell::const_new();
    let control_plane = ControlPlane::shared().await.unwrap();
    CRD.get_or_init(|| async {
        let client = control_plane.client().unwrap();
        let crds: Api<CustomResourceDefinition> = Api::all(client);
        let crd = api::crd();
        let name = crd.name_any();
        crds.patch(&name, &PatchParams::apply("test"), &Patch::Apply(&crd))
            .await
            .unwrap();
        await_condition(crds, &name, conditions::is_crd_established())
            .await
            .unwrap();
    })
    .await;
    control_plane
}

/// A part in the election of a namespace's leader, for one operator. The times are a multiple of the defaults, as a busy
/// machine may keep a renewal from running for seconds.
pub(crate) fn election(namespace: &str) -> Election {
    Election {
        namespace: namespace.to_owned(),
        name: api::names::OPERATOR.to_owned(),
        identity: lease::identity(),
        times: Times::new(10, 8, 1).unwrap(),
    }
}

impl Bed {
    /// A bed without an operator.
    pub(crate) async fn make() -> Self {
        Self::make_with(|_| Arc::new(SimulatedAgents { pace: Pace::fast() })).await
    }

    /// A bed without an operator, with a container runtime of the test's own.
    pub(crate) async fn make_with(
        runtime: impl FnOnce(&Arc<Simulator>) -> Arc<dyn Runtime>,
    ) -> Self {
        let control_plane = control_plane().await;
        let namespace = control_plane.namespace("test").await.unwrap();
        let client = control_plane.client().unwrap();
        let simulator = Arc::new(Simulator::start(Settings::default()).await.unwrap());
        let control = simulator.control();
        control.create_organization(ORGANIZATION).await.unwrap();
        control.create_pool(ORGANIZATION, POOL).await.unwrap();
        let token = control
            .create_pat(ORGANIZATION, &PatSpec::default())
            .await
            .unwrap();
        let settings = hollow_node::Settings::new(&namespace, runtime(&simulator));
        let settings = settings.namespace(&namespace);
        let node = HollowNode::start(client.clone(), settings).await.unwrap();
        let release = chart(&namespace, OPERATORS, json!({})).await;
        let account = control_plane.grant(&release).await.unwrap();
        let bed = Self {
            client,
            namespace,
            simulator,
            control,
            token,
            node,
            decide: &operator::decide::checked,
            account,
            webhooks: None,
            operator: None,
        };
        bed.secret("pat-token", &[("token", &bed.token)]).await;
        bed
    }

    /// A bed with an operator of its namespace.
    pub(crate) async fn start() -> Self {
        let mut bed = Self::make().await;
        bed.start_operator().await;
        bed
    }

    pub(crate) async fn start_operator(&mut self) {
        self.start_operator_of(&[&self.namespace.clone()]).await;
    }

    pub(crate) async fn start_operator_of(&mut self, namespaces: &[&str]) {
        self.start_operator_as(&self.account.clone(), namespaces)
            .await;
    }

    pub(crate) async fn start_operator_as(&mut self, account: &Account, namespaces: &[&str]) {
        assert!(self.operator.is_none(), "the operator runs already");
        let config = control_plane().await.config_of(account).await.unwrap();
        let stop = CancellationToken::new();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let operator = Operator {
            config,
            namespaces: namespaces
                .iter()
                .map(|&namespace| namespace.to_owned())
                .collect(),
            listener,
            webhooks: self.webhooks.take(),
            // The chart names all of a release's objects alike.
            election: Some(Election {
                name: account.name.clone(),
                ..election(&account.namespace)
            }),
            decide: self.decide,
        };
        let task = tokio::spawn(operate(operator, stop.clone()));
        self.operator = Some(Running {
            address,
            stop,
            task,
        });
    }

    /// Where the operator serves its health and its metrics.
    pub(crate) fn operator_address(&self) -> SocketAddr {
        self.operator.as_ref().expect("an operator runs").address
    }

    /// Stops the operator as SIGTERM does.
    pub(crate) async fn stop_operator(&mut self) {
        let Running { stop, task, .. } = self.operator.take().expect("an operator runs");
        stop.cancel();
        within("the operator stops", task).await.unwrap().unwrap();
    }

    /// Ends the operator in the middle of whatever it does, as SIGKILL does.
    pub(crate) async fn kill_operator(&mut self) {
        let Running { stop, task, .. } = self.operator.take().expect("an operator runs");
        task.abort();
        // Its own tasks hear of nothing but this.
        stop.cancel();
        let _ = task.await;
    }

    pub(crate) fn api<K>(&self) -> Api<K>
    where
        K: Resource<DynamicType = (), Scope = kube::core::NamespaceResourceScope>,
    {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    pub(crate) fn organization_url(&self) -> String {
        format!("{}{ORGANIZATION}", self.simulator.url())
    }

    pub(crate) async fn secret(&self, name: &str, data: &[(&str, &str)]) {
        let secret: Secret = serde_json::from_value(json!({
            "metadata": { "name": name },
            "stringData": data.iter().copied().collect::<BTreeMap<_, _>>(),
        }))
        .unwrap();
        let secrets: Api<Secret> = self.api();
        secrets
            .patch(
                name,
                &PatchParams::apply("test").force(),
                &Patch::Apply(&named(secret)),
            )
            .await
            .unwrap();
    }

    /// A RunnerPool with these fields of its spec besides the required ones.
    pub(crate) fn runner_pool(&self, name: &str, fields: Value) -> RunnerPool {
        let mut spec = json!({
            "azDoUrl": self.organization_url(), "pool": POOL, "patSecretName": "pat-token", "image": "agent:base",
        });
        merge(&mut spec, fields);
        serde_json::from_value(json!({
            "apiVersion": "devops.opentools.mf/v1", "kind": "RunnerPool", "metadata": { "name": name }, "spec": spec,
        }))
        .unwrap()
    }

    /// Creates a RunnerPool.
    pub(crate) async fn create(&self, name: &str, fields: Value) -> RunnerPool {
        let pool = self.runner_pool(name, fields);
        self.api()
            .create(&PostParams::default(), &pool)
            .await
            .unwrap()
    }

    /// Changes fields of a RunnerPool's spec.
    pub(crate) async fn change(&self, name: &str, fields: Value) {
        let pools: Api<RunnerPool> = self.api();
        pools
            .patch(
                name,
                &PatchParams::default(),
                &Patch::Merge(json!({ "spec": fields })),
            )
            .await
            .unwrap();
    }

    /// Asks for the deletion of a RunnerPool.
    pub(crate) async fn delete(&self, name: &str) {
        self.api::<RunnerPool>()
            .delete(name, &DeleteParams::default())
            .await
            .unwrap();
    }

    /// The Pods, as soon as they are as wanted.
    pub(crate) async fn pods_when(&self, what: &str, wanted: impl Fn(&[Pod]) -> bool) -> Vec<Pod> {
        objects_when(self.api(), what, wanted).await
    }

    pub(crate) async fn claims_when(
        &self,
        what: &str,
        wanted: impl Fn(&[PersistentVolumeClaim]) -> bool,
    ) -> Vec<PersistentVolumeClaim> {
        objects_when(self.api(), what, wanted).await
    }

    /// Limits what the namespace may hold, by a quota of the name `few` that is in force when this returns.
    pub(crate) async fn quota(&self, hard: Value) {
        let quota = json!({ "metadata": { "name": "few" }, "spec": { "hard": hard } });
        let quota: ResourceQuota = serde_json::from_value(quota).unwrap();
        let quotas: Api<ResourceQuota> = self.api();
        quotas.create(&PostParams::default(), &quota).await.unwrap();
        objects_when(quotas, "the quota is in force", |quotas| {
            let status = quotas.first().and_then(|quota| quota.status.as_ref());
            status.is_some_and(|status| status.hard.is_some())
        })
        .await;
    }

    pub(crate) async fn pods(&self) -> Vec<Pod> {
        self.api().list(&ListParams::default()).await.unwrap().items
    }

    /// The status of a RunnerPool, as soon as it is as wanted.
    pub(crate) async fn status_when(
        &self,
        name: &str,
        what: &str,
        wanted: impl Fn(&RunnerPoolStatus) -> bool,
    ) -> RunnerPoolStatus {
        let pools = objects_when(self.api::<RunnerPool>(), what, |pools| {
            let pool = pools.iter().find(|pool| pool.name_any() == name);
            pool.and_then(|pool| pool.status.as_ref())
                .is_some_and(&wanted)
        })
        .await;
        let pool = pools.into_iter().find(|pool| pool.name_any() == name);
        pool.and_then(|pool| pool.status).unwrap()
    }

    /// A RunnerPool's condition of this type is so, for this reason.
    pub(crate) async fn condition_when(
        &self,
        name: &str,
        type_: &str,
        status: &str,
        reason: &str,
    ) -> RunnerPoolStatus {
        self.status_when(name, &format!("{type_} is {status} for {reason}"), |seen| {
            let condition = seen
                .conditions
                .iter()
                .find(|condition| condition.type_ == type_);
            condition
                .is_some_and(|condition| condition.status == status && condition.reason == reason)
        })
        .await
    }

    /// The RunnerPool is gone.
    pub(crate) async fn gone(&self, name: &str) {
        objects_when(
            self.api::<RunnerPool>(),
            "the RunnerPool is gone",
            |pools| pools.iter().all(|pool| pool.name_any() != name),
        )
        .await;
    }

    pub(crate) async fn queue(&self, spec: JobSpec) -> Vec<i64> {
        self.control
            .queue_jobs(ORGANIZATION, POOL, &spec)
            .await
            .unwrap()
    }

    pub(crate) async fn jobs(&self) -> Vec<JobView> {
        self.control.jobs(ORGANIZATION, POOL).await.unwrap()
    }

    pub(crate) async fn agents(&self) -> Vec<AgentView> {
        self.control.agents(ORGANIZATION, POOL).await.unwrap()
    }

    pub(crate) async fn jobs_when(
        &self,
        what: &str,
        wanted: impl Fn(&[JobView]) -> bool,
    ) -> Vec<JobView> {
        let seen = self.control.jobs_when(ORGANIZATION, POOL, wanted);
        self.in_time(what, seen).await
    }

    pub(crate) async fn agents_when(
        &self,
        what: &str,
        wanted: impl Fn(&[AgentView]) -> bool,
    ) -> Vec<AgentView> {
        let seen = self.control.agents_when(ORGANIZATION, POOL, wanted);
        self.in_time(what, seen).await
    }

    /// What Azure DevOps comes to; when it does not, the test tells what there is instead.
    async fn in_time<T, E: fmt::Debug>(
        &self,
        what: &str,
        seen: impl Future<Output = Result<T, E>>,
    ) -> T {
        if let Ok(seen) = tokio::time::timeout(PATIENCE, seen).await {
            return seen.unwrap();
        }
        let there = async { (self.jobs().await, self.agents().await, self.pods().await) };
        let there = tokio::time::timeout(Duration::from_secs(10), there).await;
        panic!("waited in vain: {what}; there is now: {there:#?}")
    }

    /// Until the operator has looked at Azure DevOps so many times more.
    pub(crate) async fn look_again(&self, times: u64) {
        let looks = || async {
            let requests = self.control.requests(Some(ORGANIZATION)).await.unwrap();
            requests.of("pat:default", "JobRequests.List")
        };
        let wanted = looks().await + times;
        within("the operator looks again", async {
            while looks().await < wanted {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        })
        .await;
    }

    /// Somebody's agent on a machine outside the cluster, in the same agent pool, with these tools.
    pub(crate) fn machine(&self, name: &str, tools: &[(&str, &str)]) -> Agent {
        let owned = |pairs: &[(&str, &str)]| {
            let pairs = pairs.iter();
            pairs
                .map(|&(key, value)| (key.to_owned(), value.to_owned()))
                .collect()
        };
        Agent::spawn(agent::Launch {
            env: owned(&[
                ("AZP_URL", &self.organization_url()),
                ("AZP_POOL", POOL),
                ("AZP_TOKEN", &self.token),
            ]),
            args: Vec::new(),
            tools: owned(tools),
            host_name: name.to_owned(),
            pace: Pace::fast(),
        })
    }

    /// So many agents are online, no more and no fewer.
    pub(crate) async fn online(&self, count: usize) -> Vec<AgentView> {
        let what = format!("{count} agents are online");
        self.agents_when(&what, |agents| {
            agents.iter().filter(|agent| agent.online).count() == count
        })
        .await
    }

    /// Queues one job and gives it as soon as it runs.
    pub(crate) async fn run(&self, spec: JobSpec) -> JobView {
        let id = self.queue(spec).await[0];
        // A short one may be over by the time that it is told of.
        let runs = |outcome| matches!(outcome, Outcome::Running | Outcome::Succeeded);
        let is_it = |job: &&JobView| job.id == id && runs(job.outcome);
        let jobs = self.jobs_when("the job runs", |jobs| jobs.iter().any(|job| is_it(&job)));
        jobs.await.into_iter().find(|job| is_it(&job)).unwrap()
    }

    /// Every job ended well.
    pub(crate) async fn all_succeed(&self) -> Vec<JobView> {
        let ended = |jobs: &[JobView]| jobs.iter().all(|job| job.finished.is_some());
        let jobs = self.jobs_when("every job ends", ended).await;
        assert!(
            jobs.iter().all(|job| job.outcome == Outcome::Succeeded),
            "{jobs:#?}"
        );
        jobs
    }

    /// The placeholder of the base image is registered, so that jobs can be queued.
    pub(crate) async fn ready(&self, name: &str) {
        let placeholder = format!("{name}-placeholder-base");
        self.agents_when("the placeholder is there", |agents| {
            agents.iter().any(|agent| agent.name == placeholder)
        })
        .await;
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        if let Some(Running { stop, .. }) = &self.operator {
            stop.cancel();
        }
    }
}

/// Jobs of this duration.
pub(crate) fn jobs(count: usize, duration: Duration) -> JobSpec {
    JobSpec {
        count,
        duration,
        ..JobSpec::default()
    }
}

/// A job that runs until the test lets it go, by its end.
pub(crate) fn long_job() -> JobSpec {
    jobs(1, Duration::from_secs(3600))
}

pub(crate) fn names<K: kube::ResourceExt>(objects: &[K]) -> Vec<String> {
    let mut names: Vec<String> = objects.iter().map(kube::ResourceExt::name_any).collect();
    names.sort();
    names
}

pub(crate) fn agent_names(agents: &[AgentView]) -> Vec<&str> {
    let mut names: Vec<&str> = agents
        .iter()
        .map(|agent| agent.name.as_str())
        .filter(|name| !name.contains("-placeholder-"))
        .collect();
    names.sort_unstable();
    names
}

pub(crate) fn unfinished(pods: &[Pod]) -> usize {
    let finished = |pod: &&Pod| {
        let phase = pod
            .status
            .as_ref()
            .and_then(|status| status.phase.as_deref());
        !matches!(phase, Some("Succeeded" | "Failed"))
    };
    pods.iter().filter(finished).count()
}

pub(crate) async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future)
        .await
        .unwrap_or_else(|_| panic!("waited in vain: {what}"))
}

/// The objects of a namespace, as soon as they are as wanted; judged at every change.
pub(crate) async fn objects_when<K>(
    api: Api<K>,
    what: &str,
    wanted: impl Fn(&[K]) -> bool,
) -> Vec<K>
where
    K: Resource<DynamicType = ()> + Clone + std::fmt::Debug + DeserializeOwned + Send + 'static,
{
    let mut objects: BTreeMap<String, K> = BTreeMap::new();
    let mut events = std::pin::pin!(watcher(api, watcher::Config::default()).default_backoff());
    let seen = async {
        let mut listing = true;
        loop {
            // A watch that fails is taken up again.
            let Ok(event) = events.next().await.expect("a watch never ends") else {
                continue;
            };
            match event {
                watcher::Event::Init => objects.clear(),
                watcher::Event::InitDone => listing = false,
                watcher::Event::InitApply(object) | watcher::Event::Apply(object) => {
                    objects.insert(object.name_any(), object);
                }
                watcher::Event::Delete(object) => {
                    objects.remove(&object.name_any());
                }
            }
            let now: Vec<K> = objects.values().cloned().collect();
            if !listing && wanted(&now) {
                return now;
            }
        }
    };
    let outcome = tokio::time::timeout(PATIENCE, seen).await;
    outcome.unwrap_or_else(|_| panic!("waited in vain: {what}; last seen: {objects:#?}"))
}

fn merge(into: &mut Value, from: Value) {
    if let (Value::Object(into), Value::Object(from)) = (into, from) {
        into.extend(from);
    }
}

fn named(mut secret: Secret) -> Value {
    secret.metadata.managed_fields = None;
    let mut value = serde_json::to_value(secret).unwrap();
    value["apiVersion"] = json!("v1");
    value["kind"] = json!("Secret");
    value
}
