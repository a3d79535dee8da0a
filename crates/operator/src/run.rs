//! Wires the parts together and owns their end. Nothing else starts a task that outlives a pass.

use std::{
    collections::{BTreeSet, HashSet},
    convert::Infallible,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::Context as _;
use futures::{
    StreamExt as _,
    channel::mpsc,
    stream::{self, BoxStream},
};
use k8s_openapi::api::core::v1::{Namespace, PersistentVolumeClaim, Pod};
use kube::{
    Api, Client, Config, ResourceExt as _,
    runtime::{
        Controller, WatchStreamExt as _, controller,
        reflector::{self, ObjectRef, Store},
        watcher,
    },
};
use tokio::{
    net::TcpListener,
    signal::unix::{Signal, SignalKind, signal},
    time,
};
use tokio_util::{
    sync::CancellationToken,
    task::{AbortOnDropHandle, TaskTracker},
};

use crate::{
    cli::RunArgs,
    client,
    decide::{self, Decide},
    events::Events,
    http::{self, Readiness},
    lease::{Candidate, Election, Gate, Holder, Lost},
    metrics::Metrics,
    mirror::{Mirror, PoolKey},
    reader::Reader,
    reconcile::{self, Guarded},
    subscriptions::Subscriptions,
    telemetry,
    webhook::{self, Webhooks},
};

/// Changes in the cluster within this time make one pass: a burst of Pods comes in hundreds. Counted from the first of
/// them (kube's own debounce counts from the last, so that a busy RunnerPool would wait for ever).
const GATHER: Duration = Duration::from_millis(20);

/// Longest wait for the last Events to be written when the operator stops.
const LAST_EVENTS: Duration = Duration::from_secs(5);

/// Longest wait for tasks that end by themselves when the operator stops: whoever asks for its health may never end the
/// question.
const LAST_TASKS: Duration = Duration::from_secs(2);

/// For a leader that is to hand over: how long running passes may go on, then the Events that wait, then the writes that
/// are under way. Together less than a second, as nobody acts meanwhile.
const LAST_PASSES: Duration = Duration::from_millis(400);
const LAST_EVENTS_OF_A_LEADER: Duration = Duration::from_millis(200);
const LAST_WRITES: Duration = Duration::from_millis(300);

/// Runs the operator until SIGTERM or SIGINT.
pub async fn run(args: RunArgs) -> anyhow::Result<()> {
    let RunArgs {
        namespaces,
        health_address,
        election,
        webhooks,
        log_format,
        log_level,
    } = args;
    telemetry::start(log_format, &log_level);
    let stop = CancellationToken::new();
    tokio::spawn(stop_on(signals()?, stop.clone()));
    let listener = TcpListener::bind(health_address)
        .await
        .with_context(|| format!("--health-address: failed to listen on {health_address}"))?;
    install_tls();
    let config = client::infer().await?;
    let own = std::env::var("POD_NAMESPACE")
        .ok()
        .filter(|own| !own.is_empty());
    let own = own.unwrap_or_else(|| config.default_namespace.clone());
    let election = election.resolve(&own)?;
    let webhooks = match webhooks.resolve(&own) {
        Some((address, source)) => Some(Webhooks {
            listener: TcpListener::bind(address)
                .await
                .with_context(|| format!("--webhook-address: failed to listen on {address}"))?,
            source,
        }),
        None => None,
    };
    // A set: a namespace that is named twice is watched once.
    let namespaces: BTreeSet<String> = namespaces
        .iter()
        .map(|namespace| namespace.as_str().to_owned())
        .collect();
    let namespaces = namespaces.into_iter().collect();
    let operator = Operator {
        config,
        namespaces,
        listener,
        webhooks,
        election,
        decide: decide::of_this_build(),
    };
    operate(operator, stop).await
}

/// What [`operate`] needs.
pub struct Operator {
    /// How to reach the cluster.
    pub config: Config,
    /// Namespaces to watch; none: all.
    pub namespaces: Vec<String>,
    /// Where `/healthz`, `/readyz` and `/metrics` are served.
    pub listener: TcpListener,
    /// The admission webhooks, if they are served.
    pub webhooks: Option<Webhooks>,
    /// The election that it takes part in; `None`: it is the only one, and acts at once.
    pub election: Option<Election>,
    /// How plans come about.
    pub decide: &'static Decide,
}

/// Operates until `stop` is cancelled, then hands over; with an election, only while it is won. Fails with [`Lost`] when
/// the lease was lost: then the process is to end, as whatever it still holds may be out of date.
pub async fn operate(operator: Operator, stop: CancellationToken) -> anyhow::Result<()> {
    let Operator {
        config,
        namespaces,
        listener,
        webhooks,
        election,
        decide,
    } = operator;
    install_tls();
    let (client, gate, candidate) = take_part(config, election)?;
    let scopes = scopes(namespaces);
    let readiness = Readiness::default();
    let tasks = TaskTracker::new();
    let (router, queues) = Router::new(&scopes);
    let known: Vec<_> = scopes.iter().map(|_| CancellationToken::new()).collect();
    let (stores, mut watches): (Vec<_>, Vec<_>) = scopes
        .iter()
        .zip(&known)
        .map(|(scope, known)| runner_pools(&client, scope.as_deref(), known.clone()))
        .unzip();

    let metrics = Arc::new(Metrics::new(stores.clone()));
    let endpoints = http::router(readiness.clone(), metrics.clone());
    tasks.spawn(serve(listener, endpoints, stop.clone()));
    let certificates = webhooks.as_ref().map(|webhooks| webhooks.source.clone());
    if let Some(webhooks) = webhooks {
        let (client, metrics) = (client.clone(), metrics.clone());
        tasks.spawn(webhook::serve(webhooks, client, metrics, stop.clone()));
    }

    // Events that wait when the operator stops are still written: their writers stop last.
    let written = CancellationToken::new();
    let Some(cluster) = cluster_id(&client, &stop).await? else {
        tracing::info!("Stopped before the API server answered");
        return Ok(());
    };
    let writers = TaskTracker::new();
    let subscriptions = Arc::new(Subscriptions::default());
    let context = Arc::new(reconcile::Context {
        cluster,
        connections: azure_devops::Connections::new(gate.clone())
            .context("failed to set up HTTP")?
            .observed_by(metrics.azure_devops()),
        pods: Mirror::default(),
        claims: Mirror::default(),
        start_reader: start_readers(
            subscriptions.clone(),
            router.clone(),
            stores.clone(),
            stop.clone(),
            tasks.clone(),
        ),
        subscriptions,
        decide,
        events: Events::start(&client, &writers, written.clone()),
        reports: reconcile::Reports::default(),
        metrics: metrics.clone(),
        backoff: reconcile::Backoff::default(),
        client,
    });

    let mirrored = follow(&context, &scopes, &router, &stop, &tasks);
    tokio::select! {
        () = mirrored => {}
        () = stop.cancelled() => {}
    }
    tracing::info!(namespaces = ?scopes.iter().flatten().collect::<Vec<_>>(), "Started");
    tasks.spawn(
        stop.clone()
            .run_until_cancelled_owned(get_ready(known.clone(), readiness.clone())),
    );

    let Some(leadership) = lead(candidate, &mut watches, &stop).await else {
        end(&readiness, &tasks).await;
        return Ok(());
    };
    metrics.leads();
    if let Some(source) = certificates {
        let renewal = webhook::renew(source, context.client.clone());
        tasks.spawn(stop.clone().run_until_cancelled_owned(renewal));
    }
    let controllers = stores
        .iter()
        .zip(watches)
        .map(|(store, watch)| Controller::for_stream(watch, store.clone()))
        .collect();
    tasks.spawn(
        stop.clone()
            .run_until_cancelled_owned(reconcile_known(stores, known, router)),
    );
    let passes = reconcile_all(controllers, queues, context, &readiness, &stop);
    let last_events = async {
        written.cancel();
        writers.close();
        writers.wait().await;
    };
    let outcome = act(leadership, passes, last_events, &gate, &stop).await;
    stop.cancel();
    outcome?;
    end(&readiness, &tasks).await;
    Ok(())
}

/// What is watched: each of these namespaces, or all of the cluster.
fn scopes(namespaces: Vec<String>) -> Vec<Option<String>> {
    if namespaces.is_empty() {
        vec![None]
    } else {
        namespaces.into_iter().map(Some).collect()
    }
}

/// Waits until this replica leads; `None`: it is to stop before. Whoever waits keeps its copies of the cluster up to date
/// meanwhile, so that it can act at once.
async fn lead(
    candidate: Option<Candidate>,
    watches: &mut [RunnerPools],
    stop: &CancellationToken,
) -> Option<Leadership> {
    let Some(candidate) = candidate else {
        return Some(Leadership::keep(None));
    };
    tokio::select! {
        holder = candidate.win() => Some(Leadership::keep(Some(holder))),
        never = stand_by(watches) => match never {},
        () = stop.cancelled() => None,
    }
}

/// Waits for the tasks that stop by themselves.
async fn end(readiness: &Readiness, tasks: &TaskTracker) {
    readiness.set(false);
    tasks.close();
    if time::timeout(LAST_TASKS, tasks.wait()).await.is_err() {
        tracing::warn!("Gave up on connections that others keep open");
    }
    tracing::info!("Stopped");
}

/// The client for everything, the gate that its writes pass, and the part in the election.
fn take_part(
    mut config: Config,
    election: Option<Election>,
) -> anyhow::Result<(Client, Gate, Option<Candidate>)> {
    let Some(election) = election else {
        let gate = Gate::open();
        return Ok((client::gated(config, &gate)?, gate, None));
    };
    client::name(&mut config, &election.identity);
    let gate = Gate::closed();
    let client = client::gated(config.clone(), &gate)?;
    let while_held = client::while_held(&config, &gate)?;
    let candidate = Candidate::new(client::ungated(config)?, while_held, election, gate.clone());
    Ok((client, gate, Some(candidate)))
}

/// Runs the passes until they end after a stop, or the lease is lost. A leader hands over then.
async fn act(
    mut leadership: Leadership,
    passes: impl Future<Output = ()>,
    last_events: impl Future<Output = ()>,
    gate: &Gate,
    stop: &CancellationToken,
) -> Result<(), Lost> {
    let hand_over = leadership.task.is_some();
    let work = async {
        let mut passes = std::pin::pin!(passes);
        let late = async {
            stop.cancelled().await;
            if !hand_over {
                std::future::pending::<()>().await;
            }
            time::sleep(LAST_PASSES).await;
        };
        let finished = tokio::select! {
            () = &mut passes => true,
            () = late => false,
        };
        stop.cancel();
        let patience = match (finished, hand_over) {
            (true, false) => LAST_EVENTS,
            (true, true) => LAST_EVENTS_OF_A_LEADER,
            (false, _) => Duration::ZERO,
        };
        if time::timeout(patience, last_events).await.is_err() {
            tracing::warn!("Gave up on Events that still wait to be written");
        }
        gate.shut();
        let under_way = async {
            // A pass takes note of what it still hears, and begins nothing.
            if !finished {
                passes.await;
            }
            gate.quiet().await;
        };
        if time::timeout(LAST_WRITES, under_way).await.is_err() {
            tracing::warn!("Gave up on writes that have no answer yet");
        }
    };
    tokio::select! {
        () = work => leadership.release().await,
        lost = leadership.lost() => Err(lost),
    }
}

/// A lease that is held, or not needed.
struct Leadership {
    release: CancellationToken,
    /// Renews it, apart from the passes, so that none of them delays it.
    task: Option<AbortOnDropHandle<Result<(), Lost>>>,
}

impl Leadership {
    fn keep(holder: Option<Holder>) -> Self {
        let release = CancellationToken::new();
        let task =
            holder.map(|holder| AbortOnDropHandle::new(tokio::spawn(holder.hold(release.clone()))));
        Self { release, task }
    }

    /// Ends when the lease is lost.
    async fn lost(&mut self) -> Lost {
        match &mut self.task {
            Some(task) => match task.await {
                Ok(Err(lost)) => lost,
                Ok(Ok(())) => Lost("it was released too early".into()),
                Err(ended) => Lost(format!("the task that renews it has ended ({ended})")),
            },
            None => std::future::pending().await,
        }
    }

    async fn release(&mut self) -> Result<(), Lost> {
        self.release.cancel();
        match &mut self.task {
            Some(task) => task
                .await
                .unwrap_or_else(|ended| Err(Lost(format!("its task has ended ({ended})")))),
            None => Ok(()),
        }
    }
}

/// Watches RunnerPools into a store; `known`: all of them have been read once.
///
/// The store says that as well, but wakes only one of those who wait for it, and its Controller does.
fn runner_pools(
    client: &Client,
    namespace: Option<&str>,
    known: CancellationToken,
) -> (Store<Guarded>, RunnerPools) {
    let (store, writer) = reflector::store();
    let watch = watcher(api(client, namespace), watcher::Config::default())
        .default_backoff()
        .reflect(writer)
        .inspect(move |event| {
            if matches!(event, Ok(watcher::Event::InitDone)) {
                known.cancel();
            }
        })
        .applied_objects()
        .boxed();
    (store, watch)
}

/// A watch that feeds a store as it is read.
type RunnerPools = BoxStream<'static, watcher::Result<Guarded>>;

/// Reads the watches, for ever, without a pass.
async fn stand_by(watches: &mut [RunnerPools]) -> Infallible {
    stream::select_all(watches.iter_mut())
        .for_each(|change| async {
            if let Err(error) = change {
                warn_of_watch(&error);
            }
        })
        .await;
    std::future::pending().await
}

/// Is ready when all RunnerPools have been read.
async fn get_ready(known: Vec<CancellationToken>, readiness: Readiness) {
    futures::future::join_all(known.iter().map(CancellationToken::cancelled)).await;
    readiness.set(true);
}

/// Calls for a pass over each RunnerPool that was read before there were passes.
async fn reconcile_known(
    stores: Vec<Store<Guarded>>,
    known: Vec<CancellationToken>,
    router: Arc<Router>,
) {
    for (store, known) in stores.iter().zip(&known) {
        known.cancelled().await;
        for pool in store.state() {
            router.reconcile(&PoolKey::of(&*pool));
        }
    }
}

/// Makes passes until `stop` is cancelled and the last one is over.
async fn reconcile_all(
    controllers: Vec<Controller<Guarded>>,
    queues: Vec<mpsc::UnboundedReceiver<ObjectRef<Guarded>>>,
    context: Arc<reconcile::Context>,
    readiness: &Readiness,
    stop: &CancellationToken,
) {
    let controllers = controllers
        .into_iter()
        .zip(queues)
        .map(|(controller, queue)| {
            controller
                .reconcile_on(queue)
                .graceful_shutdown_on(stop.clone().cancelled_owned())
                .run(
                    reconcile::reconcile,
                    reconcile::error_policy,
                    context.clone(),
                )
                .boxed()
        });
    // A controller whose RunnerPools were never read does not end by itself.
    let stopped_early = async {
        stop.cancelled().await;
        if readiness.get() {
            std::future::pending::<()>().await;
        }
    };
    let running = stream::select_all(controllers).for_each(|outcome| async move {
        // A failed pass is logged by its error policy; an object that went before its pass is none.
        if let Err(controller::Error::QueueError(error)) = outcome {
            warn_of_watch(&error);
        }
    });
    tokio::select! {
        () = running => {}
        () = stopped_early => {}
    }
}

fn warn_of_watch(error: &dyn std::error::Error) {
    tracing::warn!(
        error = telemetry::chain(error),
        "Failed to watch RunnerPools; if they are not known, apply `azdo-runner-operator crd`"
    );
}

/// Brings a change to the controller that watches its namespace.
struct Router {
    scopes: Vec<Option<String>>,
    triggers: Vec<mpsc::UnboundedSender<ObjectRef<Guarded>>>,
    /// RunnerPools whose changes are being gathered.
    changed: Mutex<HashSet<PoolKey>>,
}

impl Router {
    /// For these scopes; gives the queue of each, in their order.
    fn new(
        scopes: &[Option<String>],
    ) -> (Arc<Self>, Vec<mpsc::UnboundedReceiver<ObjectRef<Guarded>>>) {
        let (triggers, queues) = scopes.iter().map(|_| mpsc::unbounded()).unzip();
        let router = Self {
            scopes: scopes.to_vec(),
            triggers,
            changed: Mutex::default(),
        };
        (Arc::new(router), queues)
    }

    /// Calls for a pass upon a change in the cluster, together with the changes that follow within [`GATHER`].
    fn changed(self: &Arc<Self>, pool: PoolKey) {
        if self.gathering().insert(pool.clone()) {
            let router = self.clone();
            // At most one for each RunnerPool, gone in a moment; when the operator stops, nobody waits for it.
            tokio::spawn(async move {
                tokio::time::sleep(GATHER).await;
                router.gathering().remove(&pool);
                router.reconcile(&pool);
            });
        }
    }

    fn gathering(&self) -> MutexGuard<'_, HashSet<PoolKey>> {
        self.changed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Calls for a pass.
    fn reconcile(&self, pool: &PoolKey) {
        for (scope, trigger) in self.scopes.iter().zip(&self.triggers) {
            if scope
                .as_ref()
                .is_none_or(|namespace| *namespace == pool.namespace)
            {
                // The receiver is gone when the operator stops.
                let _ = trigger.unbounded_send(reference(pool));
            }
        }
    }
}

fn reference(pool: &PoolKey) -> ObjectRef<Guarded> {
    ObjectRef::new(&pool.name).within(&pool.namespace)
}

fn api<K>(client: &Client, namespace: Option<&str>) -> Api<K>
where
    K: kube::Resource<DynamicType = (), Scope = kube::core::NamespaceResourceScope>,
{
    match namespace {
        Some(namespace) => Api::namespaced(client.clone(), namespace),
        None => Api::all(client.clone()),
    }
}

/// Starts the watches of Pods and claims; ends when everything has been read once.
async fn follow(
    context: &Arc<reconcile::Context>,
    scopes: &[Option<String>],
    router: &Arc<Router>,
    stop: &CancellationToken,
    tasks: &TaskTracker,
) {
    let mut ready = Vec::new();
    for scope in scopes {
        let labelled = |labels: &str| watcher::Config::default().labels(labels);
        let pods = watcher(
            api::<Pod>(&context.client, scope.as_deref()),
            labelled("runner-pool"),
        );
        let claims = watcher(
            api::<PersistentVolumeClaim>(&context.client, scope.as_deref()),
            labelled("runner-pool"),
        );
        let (context_of_pods, context_of_claims) = (context.clone(), context.clone());
        let router = router.clone();
        let (scope_of_pods, scope_of_claims) = (scope.clone(), scope.clone());
        let (pods_ready, claims_ready) = (CancellationToken::new(), CancellationToken::new());
        ready.extend([pods_ready.clone(), claims_ready.clone()]);
        tasks.spawn(stop.clone().run_until_cancelled_owned(async move {
            let changed = |pool| router.changed(pool);
            let done = || pods_ready.cancel();
            context_of_pods
                .pods
                .follow(
                    pods.default_backoff(),
                    scope_of_pods.as_deref(),
                    changed,
                    done,
                )
                .await;
        }));
        tasks.spawn(stop.clone().run_until_cancelled_owned(async move {
            // No call for a pass: a claim comes and goes with what passes do, so one whose Pod is refused would call for
            // the next try. What becomes of claims is seen to when a Pod changes, or with the next look.
            let changed = |_| ();
            let done = || claims_ready.cancel();
            context_of_claims
                .claims
                .follow(
                    claims.default_backoff(),
                    scope_of_claims.as_deref(),
                    changed,
                    done,
                )
                .await;
        }));
    }
    futures::future::join_all(ready.iter().map(CancellationToken::cancelled)).await;
}

/// Starts readers, each a task that ends when nobody is subscribed to it any more.
fn start_readers(
    subscriptions: Arc<Subscriptions>,
    router: Arc<Router>,
    stores: Vec<Store<Guarded>>,
    stop: CancellationToken,
    tasks: TaskTracker,
) -> Box<dyn Fn(Arc<Reader>) + Send + Sync> {
    let stores = Arc::new(stores);
    Box::new(move |reader| {
        let (subscriptions, router, stores) =
            (subscriptions.clone(), router.clone(), stores.clone());
        tasks.spawn(stop.clone().run_until_cancelled_owned(async move {
            let exists = |pool: &PoolKey| {
                stores
                    .iter()
                    .any(|store| store.get(&reference(pool)).is_some())
            };
            loop {
                reader.run(exists, |pool| router.reconcile(&pool)).await;
                if subscriptions.forget(&reader) {
                    return;
                }
            }
        }));
    })
}

/// Uid of the namespace `kube-system`: it lives as long as the cluster. Tried until it is known; `None`: the operator is to
/// stop.
async fn cluster_id(client: &Client, stop: &CancellationToken) -> anyhow::Result<Option<String>> {
    let namespaces: Api<Namespace> = Api::all(client.clone());
    let known = async {
        loop {
            match namespaces.get("kube-system").await {
                Ok(namespace) => break namespace.uid(),
                Err(error) => tracing::warn!(
                    error = telemetry::chain(&error),
                    "Failed to read the namespace kube-system"
                ),
            }
            time::sleep(Duration::from_secs(2)).await;
        }
    };
    let Some(uid) = stop.run_until_cancelled(known).await else {
        return Ok(None);
    };
    uid.context("the namespace kube-system has no uid")
        .map(Some)
}

/// A second provider would be an error; the first one to be installed serves all.
fn install_tls() {
    let _ = rustls::crypto::ring::default_provider().install_default();
}

async fn serve(listener: TcpListener, router: axum::Router, stop: CancellationToken) {
    let served = axum::serve(listener, router)
        .with_graceful_shutdown(stop.cancelled_owned())
        .await;
    if let Err(error) = served {
        tracing::error!(
            error = telemetry::chain(&error),
            "Failed to serve /healthz, /readyz and /metrics"
        );
    }
}

/// SIGTERM and SIGINT. From here on they are heard: the first process of a container would not even die of them before.
fn signals() -> anyhow::Result<[Signal; 2]> {
    let both = [SignalKind::terminate(), SignalKind::interrupt()].map(signal);
    let [terminate, interrupt] = both.map(|signal| signal.context("failed to listen to signals"));
    Ok([terminate?, interrupt?])
}

async fn stop_on([mut terminate, mut interrupt]: [Signal; 2], stop: CancellationToken) {
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::info!("Stopping");
    stop.cancel();
}
