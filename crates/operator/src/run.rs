//! Wires the parts together and owns their end. Nothing else starts a task that outlives a pass.

use std::{
    collections::{BTreeSet, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::Context as _;
use futures::{StreamExt as _, channel::mpsc, stream};
use k8s_openapi::api::core::v1::{Namespace, PersistentVolumeClaim, Pod};
use kube::{
    Api, Client, ResourceExt as _,
    client::{ClientBuilder, retry::RetryPolicy},
    runtime::{
        Controller, WatchStreamExt as _, controller,
        reflector::{ObjectRef, Store},
        watcher,
    },
};
use tokio::net::TcpListener;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tower::{buffer::BufferLayer, retry::RetryLayer};

use crate::{
    cli::RunArgs,
    events::Events,
    http::{self, Readiness},
    mirror::{Mirror, PoolKey},
    reader::Reader,
    reconcile::{self, Guarded},
    subscriptions::Subscriptions,
    telemetry,
};

/// Changes in the cluster within this time make one pass: a burst of Pods comes in hundreds. Counted from the first of
/// them (kube's own debounce counts from the last, so that a busy RunnerPool would wait for ever).
const GATHER: Duration = Duration::from_millis(20);

/// Longest wait for the last Events to be written when the operator stops.
const LAST_EVENTS: Duration = Duration::from_secs(5);

/// Requests to the API server that may wait for a connection: as many as kube's own client takes.
const REQUEST_QUEUE: usize = 1024;

/// Runs the operator until SIGTERM or SIGINT.
pub async fn run(args: RunArgs) -> anyhow::Result<()> {
    let RunArgs {
        namespaces,
        health_address,
        log_format,
        log_level,
    } = args;
    telemetry::start(log_format, &log_level);
    let stop = CancellationToken::new();
    tokio::spawn(stop_on_signal(stop.clone()));
    let listener = TcpListener::bind(health_address)
        .await
        .with_context(|| format!("--health-address: failed to listen on {health_address}"))?;
    let client = client().await?;
    // A set: a namespace that is named twice is watched once.
    let namespaces: BTreeSet<String> = namespaces
        .iter()
        .map(|namespace| namespace.as_str().to_owned())
        .collect();
    let namespaces = namespaces.into_iter().collect();
    operate(
        Operator {
            client,
            namespaces,
            listener,
        },
        stop,
    )
    .await
}

/// What [`operate`] needs.
pub struct Operator {
    /// Client of the cluster.
    pub client: Client,
    /// Namespaces to watch; none: all.
    pub namespaces: Vec<String>,
    /// Where `/healthz` and `/readyz` are served.
    pub listener: TcpListener,
}

/// Operates until `stop` is cancelled, then lets running passes finish.
pub async fn operate(operator: Operator, stop: CancellationToken) -> anyhow::Result<()> {
    let Operator {
        client,
        namespaces,
        listener,
    } = operator;
    // A second provider would be an error; the first one to be installed serves all.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let scopes: Vec<Option<String>> = if namespaces.is_empty() {
        vec![None]
    } else {
        namespaces.into_iter().map(Some).collect()
    };
    let readiness = Readiness::default();
    let tasks = TaskTracker::new();
    tasks.spawn(serve(listener, readiness.clone(), stop.clone()));

    let (triggers, queues): (Vec<_>, Vec<_>) = scopes
        .iter()
        .map(|_| mpsc::unbounded::<ObjectRef<Guarded>>())
        .unzip();
    let router = Arc::new(Router {
        scopes: scopes.clone(),
        triggers,
        changed: Mutex::default(),
    });
    let controllers: Vec<_> = scopes
        .iter()
        .map(|scope| Controller::new(api(&client, scope.as_deref()), watcher::Config::default()))
        .collect();
    let stores: Vec<Store<Guarded>> = controllers.iter().map(Controller::store).collect();
    let (ready, ready_stores) = (readiness.clone(), stores.clone());

    // Events that wait when the operator stops are still written: their writers stop last.
    let written = CancellationToken::new();
    let writers = TaskTracker::new();
    let subscriptions = Arc::new(Subscriptions::default());
    let context = Arc::new(reconcile::Context {
        cluster: cluster_id(&client, &stop).await?,
        http: azure_devops::http_client().context("failed to set up HTTP")?,
        pods: Mirror::default(),
        claims: Mirror::default(),
        start_reader: start_readers(
            subscriptions.clone(),
            router.clone(),
            stores,
            stop.clone(),
            tasks.clone(),
        ),
        subscriptions,
        events: Events::start(&client, &writers, written.clone()),
        reports: reconcile::Reports::default(),
        backoff: reconcile::Backoff::default(),
        client,
    });

    let mirrored = follow(&context, &scopes, &router, &stop, &tasks);
    tokio::select! {
        () = mirrored => {}
        () = stop.cancelled() => {}
    }
    tracing::info!(namespaces = ?scopes.iter().flatten().collect::<Vec<_>>(), "Started");
    tasks.spawn(stop.clone().run_until_cancelled_owned(async move {
        let known = ready_stores.iter().map(Store::wait_until_ready);
        if futures::future::try_join_all(known).await.is_ok() {
            ready.set(true);
        }
    }));

    reconcile_all(controllers, queues, context, &readiness, &stop).await;

    readiness.set(false);
    stop.cancel();
    tasks.close();
    tasks.wait().await;
    written.cancel();
    writers.close();
    if tokio::time::timeout(LAST_EVENTS, writers.wait())
        .await
        .is_err()
    {
        tracing::warn!("Gave up on Events that still wait to be written");
    }
    tracing::info!("Stopped");
    Ok(())
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
    let running = stream::select_all(controllers)
        .for_each(|outcome| async move {
            // A failed pass is logged by its error policy; an object that went before its pass is none.
            if let Err(controller::Error::QueueError(error)) = outcome {
                tracing::warn!(
                    error = telemetry::chain(&error),
                    "Failed to watch RunnerPools; if they are not known, apply `azdo-runner-operator crd`"
                );
            }
        });
    tokio::select! {
        () = running => {}
        () = stopped_early => {}
    }
}

/// Brings a change to the controller that watches its namespace.
struct Router {
    scopes: Vec<Option<String>>,
    triggers: Vec<mpsc::UnboundedSender<ObjectRef<Guarded>>>,
    /// RunnerPools whose changes are being gathered.
    changed: Mutex<HashSet<PoolKey>>,
}

impl Router {
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

/// Uid of the namespace `kube-system`: it lives as long as the cluster. Tried until it is known or the operator stops.
async fn cluster_id(client: &Client, stop: &CancellationToken) -> anyhow::Result<String> {
    let namespaces: Api<Namespace> = Api::all(client.clone());
    loop {
        match namespaces.get("kube-system").await {
            Ok(namespace) => {
                return namespace
                    .uid()
                    .context("the namespace kube-system has no uid");
            }
            Err(error) => tracing::warn!(
                error = telemetry::chain(&error),
                "Failed to read the namespace kube-system"
            ),
        }
        tokio::select! {
            () = tokio::time::sleep(Duration::from_secs(2)) => {}
            () = stop.cancelled() => anyhow::bail!("stopped before the API server answered"),
        }
    }
}

/// A client that repeats a refused request a few times only: a pass has better things to do than to wait, and the next
/// one repeats what is still wanted.
async fn client() -> anyhow::Result<Client> {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut config = kube::Config::infer().await.context(
        "failed to find a cluster; set KUBECONFIG, or run in a Pod with a service account",
    )?;
    config.default_retry = false;
    let client =
        ClientBuilder::try_from(config).context("failed to set up the Kubernetes client")?;
    let retry = RetryLayer::new(RetryPolicy::default());
    Ok(client
        .with_layer(&BufferLayer::new(REQUEST_QUEUE))
        .with_layer(&retry)
        .build())
}

async fn serve(listener: TcpListener, readiness: Readiness, stop: CancellationToken) {
    let served = axum::serve(listener, http::router(readiness))
        .with_graceful_shutdown(stop.cancelled_owned())
        .await;
    if let Err(error) = served {
        tracing::error!(
            error = telemetry::chain(&error),
            "Failed to serve /healthz and /readyz"
        );
    }
}

async fn stop_on_signal(stop: CancellationToken) {
    use tokio::signal::unix::{SignalKind, signal};
    let Ok(mut terminate) = signal(SignalKind::terminate()) else {
        return;
    };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = tokio::signal::ctrl_c() => {}
    }
    tracing::info!("Stopping");
    stop.cancel();
}
