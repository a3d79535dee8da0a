//! The HTTP client of control API and simulated agents.

/// A client that speaks HTTP/1.1 as Microsoft's SDK does, and ignores proxies: a simulator is
/// near.
pub(crate) fn client() -> reqwest::Client {
    // Somebody else in the process may have installed a provider first, which is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder()
        .http1_only()
        .no_proxy()
        .build()
        .expect("a client without certificates of its own can always be built")
}
