//! Clients of the API server: one for everything but the Lease, whose writes pass the gate, and those for the Lease.

mod connection;

use std::{
    task::{Context, Poll},
    time::Duration,
};

use anyhow::Context as _;
use axum::http::{HeaderValue, Method, Request, Response, header::USER_AGENT};
use futures::future::{BoxFuture, FutureExt as _};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use kube::{
    Client, Config,
    client::{Body, ClientBuilder, ConfigExt as _, retry::RetryPolicy},
};
use tower::{BoxError, Service, ServiceBuilder, buffer::BufferLayer, retry::RetryLayer};

use crate::lease::Gate;

/// Requests to the API server that may wait for a connection: as many as kube's own client takes.
const REQUEST_QUEUE: usize = 1024;

/// How long an idle connection for writes is kept: well below the 90 s after which the API server closes it, which would
/// otherwise fail a write now and then that goes out at that moment. hyper itself waits 90 s as well.
const KEEP_IDLE: Duration = Duration::from_secs(45);

const FAILED: &str = "failed to set up the Kubernetes client";

/// How to reach the cluster, from the environment. Never through a proxy: `HTTPS_PROXY`, which is read along with a
/// kubeconfig, is meant for Azure DevOps.
pub(crate) async fn infer() -> anyhow::Result<Config> {
    let mut config = Config::infer().await.context(
        "failed to find a cluster; set KUBECONFIG, or run in a Pod with a service account",
    )?;
    config.proxy_url = None;
    Ok(config)
}

/// A client that repeats a refused request a few times only: a pass has better things to do than to wait, and the next
/// one repeats what is still wanted. The gate is below: each attempt passes it, when its turn comes.
pub(crate) fn gated(config: Config, gate: &Gate) -> anyhow::Result<Client> {
    let namespace = config.default_namespace.clone();
    let gated = Gated {
        writes: while_held(&config, gate)?,
        reads: ungated(config)?,
        gate: gate.clone(),
    };
    Ok(ClientBuilder::new(gated, namespace)
        .with_layer(&BufferLayer::new(REQUEST_QUEUE))
        .with_layer(&RetryLayer::new(RetryPolicy::default()))
        .build())
}

/// A client without repetitions: whoever renews a lease counts the time itself. It has connections of its own, so that a
/// renewal does not queue behind a burst of Pods.
pub(crate) fn ungated(mut config: Config) -> anyhow::Result<Client> {
    config.default_retry = false;
    Client::try_from(config).context(FAILED)
}

/// A client whose connections send nothing while the lease is not held.
pub(crate) fn while_held(config: &Config, gate: &Gate) -> anyhow::Result<Client> {
    let connector = connection::Connector::new(config.connect_timeout, gate.clone());
    let connector = config
        .rustls_https_connector_with_connector(connector)
        .context(FAILED)?;
    let http = hyper_util::client::legacy::Client::builder(TokioExecutor::new())
        .pool_idle_timeout(KEEP_IDLE)
        .pool_timer(TokioTimer::new())
        .build(connector);
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .option_layer(config.auth_layer().context(FAILED)?)
        .layer(config.extra_headers_layer().context(FAILED)?)
        .map_err(BoxError::from)
        .service(http);
    Ok(Client::new(service, config.default_namespace.clone()))
}

/// Tells the replicas apart in the API server's audit log.
pub(crate) fn name(config: &mut Config, identity: &str) {
    let agent = concat!("azdo-runner-operator/", env!("CARGO_PKG_VERSION"));
    if let Ok(value) = HeaderValue::from_str(&format!("{agent} ({identity})")) {
        config.headers.push((USER_AGENT, value));
    }
}

/// Sends reads at once, and what may change something through the gate.
#[derive(Clone)]
struct Gated {
    gate: Gate,
    reads: Client,
    writes: Client,
}

impl Service<Request<Body>> for Gated {
    type Response = Response<Body>;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<Response<Body>, BoxError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        // The clients have queues of their own.
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let Self {
            gate,
            reads,
            writes,
        } = self.clone();
        async move {
            let sent = match *request.method() {
                Method::GET | Method::HEAD | Method::OPTIONS => reads.send(request).await,
                _ => gate.carry_out(writes.send(request)).await?,
            };
            Ok(sent?)
        }
        .boxed()
    }
}
