//! Clients of the API server: one for everything but the Lease, whose writes pass the gate, and one for the Lease.

use anyhow::Context as _;
use axum::http::{HeaderValue, header::USER_AGENT};
use kube::{
    Client, Config,
    client::{ClientBuilder, retry::RetryPolicy},
};
use tower::{buffer::BufferLayer, retry::RetryLayer};

use crate::lease::Gate;

/// Requests to the API server that may wait for a connection: as many as kube's own client takes.
const REQUEST_QUEUE: usize = 1024;

const FAILED: &str = "failed to set up the Kubernetes client";

/// A client that repeats a refused request a few times only: a pass has better things to do than to wait, and the next
/// one repeats what is still wanted. The gate is below: each attempt passes it, when its turn comes.
pub(crate) fn gated(config: Config, gate: &Gate) -> anyhow::Result<Client> {
    let retry = RetryLayer::new(RetryPolicy::default());
    let client = ClientBuilder::try_from(without_repetitions(config)).context(FAILED)?;
    Ok(client
        .with_layer(gate)
        .with_layer(&BufferLayer::new(REQUEST_QUEUE))
        .with_layer(&retry)
        .build())
}

/// A client with connections of its own, so that a renewal does not queue behind a burst of Pods, and without repetitions:
/// whoever renews counts the time itself.
pub(crate) fn ungated(config: Config) -> anyhow::Result<Client> {
    let client = ClientBuilder::try_from(without_repetitions(config)).context(FAILED)?;
    Ok(client.build())
}

/// kube's own repetitions would be below the gate, and many.
fn without_repetitions(mut config: Config) -> Config {
    config.default_retry = false;
    config
}

/// Tells the replicas apart in the API server's audit log.
pub(crate) fn name(config: &mut Config, identity: &str) {
    let agent = concat!("azdo-runner-operator/", env!("CARGO_PKG_VERSION"));
    if let Ok(value) = HeaderValue::from_str(&format!("{agent} ({identity})")) {
        config.headers.push((USER_AGENT, value));
    }
}
