//! The way through the proxy that the environment names. A process has one environment, so whoever asks is a process of its
//! own.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use azure_devops_simulator::world::PatSpec;
use reqwest::Url;
use tokio::{
    io::{self, AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    net::{TcpListener, TcpStream},
    process::Command,
};

use crate::{Bed, Gate, ORGANIZATION, POOL, bed, client_of};

const URL: &str = "ORGANIZATION_URL";
const TOKEN: &str = "TOKEN";

/// A proxy for http, and how many connections it has handed on.
async fn proxy() -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, handed_on) = (
        listener.local_addr().unwrap(),
        Arc::<AtomicUsize>::default(),
    );
    let counter = handed_on.clone();
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            counter.fetch_add(1, Ordering::SeqCst);
            tokio::spawn(hand_on(client));
        }
    });
    (address, handed_on)
}

/// Hands on a connection to the host that its first request names. Requests are left as they are: a server takes a whole URL
/// as well as a path.
async fn hand_on(client: TcpStream) {
    let mut client = BufReader::new(client);
    let mut request = String::new();
    client.read_line(&mut request).await.unwrap();
    let url = request.split(' ').nth(1).unwrap();
    let url: Url = url.parse().expect("a proxy is told the whole URL");
    let addresses = url.socket_addrs(|| None).unwrap();
    let mut server = TcpStream::connect(&*addresses).await.unwrap();
    server.write_all(request.as_bytes()).await.unwrap();
    let _ = io::copy_bidirectional(&mut client, &mut server).await;
}

#[tokio::test]
async fn requests_take_the_proxy_that_the_environment_names() {
    let Bed {
        simulator, control, ..
    } = bed().await;
    let token = control
        .create_pat(ORGANIZATION, &PatSpec::default())
        .await
        .unwrap();
    let (address, handed_on) = proxy().await;
    let proxy = format!("http://{address}");
    for (environment, expected) in [
        (vec![], 0),
        (vec![("HTTP_PROXY", proxy.as_str())], 1),
        (vec![("http_proxy", &proxy)], 1),
        (vec![("HTTP_PROXY", &proxy), ("NO_PROXY", "127.0.0.1")], 0),
        (vec![("HTTPS_PROXY", &proxy)], 0), // the URL begins with http
    ] {
        control.reset_requests().await.unwrap();
        let before = handed_on.load(Ordering::SeqCst);
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "proxy::asks_for_a_pool", "--ignored"])
            .env_clear()
            .env(URL, format!("{}{ORGANIZATION}", simulator.url()))
            .env(TOKEN, &token)
            .envs(environment.iter().copied())
            .output()
            .await
            .unwrap();
        assert!(output.status.success(), "{environment:?}: {output:?}");
        let asked = control.requests(Some(ORGANIZATION)).await.unwrap();
        assert_eq!(asked.total, 1, "{environment:?}");
        let handed_on = handed_on.load(Ordering::SeqCst) - before;
        assert_eq!(handed_on, expected, "{environment:?}");
    }
}

#[tokio::test]
#[ignore = "a program of its own: it has the environment that another test gives it"]
async fn asks_for_a_pool() {
    let set = |name: &str| std::env::var(name).unwrap();
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client = client_of(Gate { open: true }, set(URL), &set(TOKEN));
    assert_eq!(client.get_agent_pools(Some(POOL)).await.unwrap().len(), 1);
}
