//! Admission webhooks for RunnerPools, served over TLS by every replica, and the certificate for that.
//!
//! What they answer is decided in `admission.rs`; nothing here judges a RunnerPool. They may be off, unreachable, or late:
//! passes apply the same rules.

pub mod admission;
pub mod certificate;
mod given;
mod key;
mod own;
mod server;

use std::{path::PathBuf, sync::Arc};

use kube::Client;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

pub use own::OwnCertificates;

use crate::metrics::Metrics;
use key::Key;

/// What is needed to serve webhooks.
#[derive(Debug)]
pub struct Webhooks {
    /// Where they are served.
    pub listener: TcpListener,
    /// Where their certificate comes from.
    pub source: CertificateSource,
}

/// Where the certificate of the webhooks comes from.
#[derive(Clone, Debug)]
pub enum CertificateSource {
    /// A folder with `tls.crt` and `tls.key`, filled by somebody else.
    Folder(PathBuf),
    /// The operator itself.
    Own(OwnCertificates),
}

/// Serves the webhooks until `stop` is cancelled, with the newest key that the source has. Every replica does.
pub(crate) async fn serve(
    webhooks: Webhooks,
    client: Client,
    metrics: Arc<Metrics>,
    stop: CancellationToken,
) {
    let Webhooks { listener, source } = webhooks;
    let key = Arc::new(Key::default());
    let follow = async {
        match source {
            CertificateSource::Folder(folder) => given::follow(&folder, &key).await,
            CertificateSource::Own(own) => own.follow(client, &key).await,
        }
    };
    tokio::join!(
        stop.run_until_cancelled(follow),
        server::serve(listener, key.clone(), metrics, stop.clone()),
    );
}

/// Keeps the operator's own certificates and what trusts them as they have to be, for ever. Only the leader does.
pub(crate) async fn renew(source: CertificateSource, client: Client) {
    if let CertificateSource::Own(own) = source {
        own.renew(client).await;
    }
}
