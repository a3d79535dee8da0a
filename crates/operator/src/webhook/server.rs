//! The server of the webhooks: TLS, with whatever key is in use at the moment, and HTTP on top of it.

use std::{sync::Arc, time::Duration};

use axum::{
    Json, Router,
    body::Bytes,
    extract::DefaultBodyLimit,
    http::StatusCode,
    routing::{MethodRouter, post},
};
use hyper::server::conn::http1;
use hyper_util::{rt::TokioIo, service::TowerToHyperService};
use kube::core::admission::AdmissionReview;
use rustls::ServerConfig;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time,
};
use tokio_rustls::TlsAcceptor;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    admission::{self, Webhook},
    key::Key,
};
use crate::{metrics::Metrics, telemetry::chain};

/// Connections at the same time; further ones wait to be accepted.
const MOST_CONNECTIONS: usize = 256;

/// Longest time for all of a connection. The API server waits for an answer up to 30 s, by default 10 s.
const LONGEST: Duration = Duration::from_secs(10);

/// Longest wait, when the operator stops, for answers that are under way.
const LAST_ANSWERS: Duration = Duration::from_secs(1);

/// After a connection that could not be accepted, for want of file descriptors.
const BREATHE: Duration = Duration::from_millis(200);

/// Largest question: an object of etcd's limit of 1.5 MiB twice, as it is and as it was, with room for escapes.
const LARGEST: usize = 8 << 20;

/// Serves until `stop` is cancelled.
pub(super) async fn serve(
    listener: TcpListener,
    key: Arc<Key>,
    metrics: Arc<Metrics>,
    stop: CancellationToken,
) {
    let mut config = ServerConfig::builder()
        .with_no_client_auth()
        .with_cert_resolver(key);
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let (router, room) = (router(&metrics), Arc::new(Semaphore::new(MOST_CONNECTIONS)));
    let conversations = TaskTracker::new();
    let accept = async {
        loop {
            let permit = room.clone().acquire_owned().await;
            match listener.accept().await {
                Ok((stream, _)) => {
                    let conversation = converse(stream, acceptor.clone(), router.clone());
                    conversations.spawn(async move {
                        conversation.await;
                        drop(permit);
                    });
                }
                Err(error) => {
                    tracing::warn!(
                        error = chain(&error),
                        "Failed to accept a connection to the webhooks"
                    );
                    time::sleep(BREATHE).await;
                }
            }
        }
    };
    stop.run_until_cancelled(accept).await;
    conversations.close();
    let _ = time::timeout(LAST_ANSWERS, conversations.wait()).await;
}

/// One question and its answer. A connection is not kept: RunnerPools are seldom written, and one that is kept would tie the
/// API server to a replica that may be about to go.
async fn converse(stream: TcpStream, acceptor: TlsAcceptor, router: Router) {
    let talk = async {
        // The answer must not wait until what ended the handshake is acknowledged.
        stream.set_nodelay(true)?;
        let stream = acceptor.accept(stream).await?;
        http1::Builder::new()
            .keep_alive(false)
            .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router))
            .await
            .map_err(anyhow::Error::from)
    };
    match time::timeout(LONGEST, talk).await {
        Ok(Ok(())) => {}
        // Mostly somebody who looks whether the port is open, or does not trust the certificate yet.
        Ok(Err(error)) => tracing::debug!(
            error = format!("{error:#}"),
            "Lost a connection to the webhooks"
        ),
        Err(_) => tracing::debug!("Gave up on a connection to the webhooks"),
    }
}

/// The endpoints.
fn router(metrics: &Arc<Metrics>) -> Router {
    Router::new()
        .route("/mutate", answers(Webhook::Mutating, metrics.clone()))
        .route("/validate", answers(Webhook::Validating, metrics.clone()))
        .layer(DefaultBodyLimit::max(LARGEST))
}

fn answers(webhook: Webhook, metrics: Arc<Metrics>) -> MethodRouter {
    post(move |body: Bytes| async move {
        let answer = admission::answer(webhook, &body);
        if let Ok(AdmissionReview {
            response: Some(response),
            ..
        }) = &answer
        {
            metrics.reviewed(webhook, response.allowed);
        }
        answer
            .map(Json)
            .map_err(|error| (StatusCode::BAD_REQUEST, error.to_string()))
    })
}
