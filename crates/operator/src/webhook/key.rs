//! The key that the webhooks are served with. It is chosen anew for each connection, so that another one takes its place
//! while the server runs.

use std::sync::{Arc, PoisonError, RwLock};

use rustls::{
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};

/// The key in use, if there is one yet. Connections are refused until then.
#[derive(Debug, Default)]
pub(super) struct Key(RwLock<Option<Arc<CertifiedKey>>>);

impl Key {
    /// Serves with this key from the next connection on; says whether that is another certificate than before.
    pub(super) fn swap(&self, key: Arc<CertifiedKey>) -> bool {
        let mut current = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let another = current
            .as_ref()
            .is_none_or(|former| former.cert != key.cert);
        *current = Some(key);
        another
    }

    /// Whether there is a key.
    pub(super) fn is_there(&self) -> bool {
        self.current().is_some()
    }

    fn current(&self) -> Option<Arc<CertifiedKey>> {
        let current = self.0.read().unwrap_or_else(PoisonError::into_inner);
        current.clone()
    }
}

impl ResolvesServerCert for Key {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.current()
    }
}

/// Why PEM texts are no key to serve with.
#[derive(Debug, thiserror::Error)]
pub enum Unusable {
    /// No certificates in PEM.
    #[error("tls.crt holds no certificate in PEM")]
    Certificate,
    /// No private key in PEM.
    #[error("tls.key holds no private key in PEM")]
    Key,
    /// Two that do not go together, or of a kind that cannot be used.
    #[error("tls.key does not fit tls.crt: {0}")]
    Pair(rustls::Error),
}

/// Reads a chain of certificates, the server's own first, and its private key.
pub(super) fn read(certificates: &[u8], key: &[u8]) -> Result<Arc<CertifiedKey>, Unusable> {
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(certificates).collect();
    let chain = chain.ok().filter(|chain| !chain.is_empty());
    let chain = chain.ok_or(Unusable::Certificate)?;
    let key = PrivateKeyDer::from_pem_slice(key).map_err(|_| Unusable::Key)?;
    CertifiedKey::from_der(chain, key, &ring::default_provider())
        .map(Arc::new)
        .map_err(Unusable::Pair)
}
