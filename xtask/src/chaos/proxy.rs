//! What stands between one replica of the operator and the API server, so that only the operator meets bad weather there:
//! a slow network, a server that is too busy, watches that end or expire, no network at all.
//!
//! It passes on what the operator sends, its token included, and has no rights of its own.

use std::{
    fs,
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context as _, Result};
use control_plane::{ControlPlane, User};
use http_body_util::{BodyExt as _, Either, Full};
use hyper::{
    Request, Response, StatusCode,
    body::{Bytes, Incoming},
    header,
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use kube::{
    Client, Config,
    client::Body,
    config::{AuthInfo, KubeConfigOptions, Kubeconfig},
};
use serde_json::{Value, json};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
    task::{AbortHandle, JoinSet},
    time,
};

use super::random::Random;

/// The weather on the way to the API server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Weather {
    /// How long each request is on its way.
    pub(crate) latency: Duration,
    /// How many of a hundred requests are refused with 429.
    pub(crate) refused_percent: u32,
    /// Whether the resource version of every watch is too old.
    pub(crate) watches_expire: bool,
    /// Whether nothing gets through: requests hang, which is how a lost network looks from inside.
    pub(crate) cut_off: bool,
}

/// The way of one replica to the API server. It closes when dropped.
pub(crate) struct Proxy {
    weather: watch::Sender<Weather>,
    /// Its number grows with each cut of all connections.
    cuts: watch::Sender<u64>,
    kubeconfig: PathBuf,
    task: AbortHandle,
}

/// What all connections share.
struct Way {
    server: Client,
    weather: watch::Receiver<Weather>,
    random: Mutex<Random>,
}

impl Proxy {
    /// Opens a way to the API server for user [`User::Operator`]. The kubeconfig file is gone with the control plane.
    pub(crate) async fn open(
        control_plane: &ControlPlane,
        name: &str,
        random: Random,
    ) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")
            .await
            .context("cannot find a free port")?;
        let address = listener.local_addr()?;
        let original = control_plane.kubeconfig_as(User::Operator);
        let kubeconfig = control_plane
            .folder()
            .join(format!("operator-{name}.kubeconfig"));
        write_kubeconfig(&original, &kubeconfig, address)?;
        let (weather, cuts) = (
            watch::Sender::new(Weather::default()),
            watch::Sender::new(0),
        );
        let way = Arc::new(Way {
            server: without_credentials(&original).await?,
            weather: weather.subscribe(),
            random: Mutex::new(random),
        });
        let task = tokio::spawn(accept(listener, way, cuts.subscribe())).abort_handle();
        Ok(Self {
            weather,
            cuts,
            kubeconfig,
            task,
        })
    }

    pub(crate) fn kubeconfig(&self) -> &PathBuf {
        &self.kubeconfig
    }

    pub(crate) fn change(&self, change: impl FnOnce(&mut Weather)) {
        self.weather.send_modify(change);
    }

    /// Cuts all connections, and with them all watches.
    pub(crate) fn cut(&self) {
        self.cuts.send_modify(|cuts| *cuts += 1);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The same file with another address, which speaks plain HTTP.
fn write_kubeconfig(original: &PathBuf, copy: &PathBuf, address: SocketAddr) -> Result<()> {
    let text = fs::read_to_string(original).context("cannot read the operator's kubeconfig")?;
    let mut kubeconfig: Value =
        serde_json::from_str(&text).context("the operator's kubeconfig is no JSON")?;
    kubeconfig["clusters"][0]["cluster"] = json!({ "server": format!("http://{address}") });
    fs::write(copy, format!("{kubeconfig:#}\n")).context("cannot write a kubeconfig")
}

/// A client of the API server that adds nothing to a request.
async fn without_credentials(kubeconfig: &PathBuf) -> Result<Client> {
    let kubeconfig = Kubeconfig::read_from(kubeconfig)?;
    let mut config =
        Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
    config.auth_info = AuthInfo::default();
    config.default_retry = false;
    Client::try_from(config).context("cannot make a client for the proxy")
}

async fn accept(listener: TcpListener, way: Arc<Way>, cuts: watch::Receiver<u64>) {
    // Connections end with this task.
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    let mut cuts = cuts.clone();
                    cuts.mark_unchanged();
                    connections.spawn(serve(stream, way.clone(), cuts));
                }
                // Out of file descriptors: closing connections gives some back.
                Err(_) => time::sleep(Duration::from_millis(20)).await,
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn serve(stream: TcpStream, way: Arc<Way>, mut cuts: watch::Receiver<u64>) {
    // Without it small answers wait for an acknowledgement; a system that refuses it is only slower.
    let _ = stream.set_nodelay(true);
    let service = service_fn(|request| pass(way.clone(), request));
    let connection = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
    tokio::select! {
        // The error is either side having gone away.
        _ = connection => {}
        _ = cuts.changed() => {}
    }
}

/// The connection is closed without an answer.
#[derive(Debug)]
struct Dropped;

impl std::fmt::Display for Dropped {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("the API server cannot be reached")
    }
}

impl std::error::Error for Dropped {}

type Answer = Response<Either<Full<Bytes>, Body>>;

async fn pass(way: Arc<Way>, request: Request<Incoming>) -> Result<Answer, Dropped> {
    let mut weather = way.weather.clone();
    let now = *weather.borrow_and_update();
    if now.cut_off {
        // An answer comes late, if whoever asks still waits for it.
        weather
            .wait_for(|weather| !weather.cut_off)
            .await
            .map_err(|_| Dropped)?;
    }
    time::sleep(now.latency).await;
    let refused = now.refused_percent > 0
        && way
            .random
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .percent(now.refused_percent);
    if refused {
        return too_many_requests();
    }
    let is_watch = request
        .uri()
        .query()
        .is_some_and(|query| query.split('&').any(|part| part == "watch=true"));
    if now.watches_expire && is_watch {
        return expired();
    }
    let (mut head, body) = request.into_parts();
    for name in [header::HOST, header::CONNECTION, header::TRANSFER_ENCODING] {
        head.headers.remove(name);
    }
    let body = body.collect().await.map_err(|_| Dropped)?.to_bytes();
    let answer = way
        .server
        .send(Request::from_parts(head, Body::from(body)))
        .await
        .map_err(|_| Dropped)?;
    let (mut head, body) = answer.into_parts();
    for name in [header::CONNECTION, header::TRANSFER_ENCODING] {
        head.headers.remove(name);
    }
    Ok(Response::from_parts(head, Either::Right(body)))
}

/// As the API server's own priority and fairness refuses a request.
fn too_many_requests() -> Result<Answer, Dropped> {
    let status = status(
        429,
        "TooManyRequests",
        "too many requests, please try again later",
    );
    answer(StatusCode::TOO_MANY_REQUESTS)
        .header(header::RETRY_AFTER, "1")
        .body(Either::Left(Full::from(status.to_string())))
        .map_err(|_| Dropped)
}

/// As the API server answers a watch from a version that it no longer has: the stream begins, with an error in it.
fn expired() -> Result<Answer, Dropped> {
    let status = status(410, "Expired", "too old resource version");
    let event = json!({ "type": "ERROR", "object": status });
    answer(StatusCode::OK)
        .body(Either::Left(Full::from(format!("{event}\n"))))
        .map_err(|_| Dropped)
}

fn answer(code: StatusCode) -> hyper::http::response::Builder {
    Response::builder()
        .status(code)
        .header(header::CONTENT_TYPE, "application/json")
}

fn status(code: u16, reason: &str, message: &str) -> Value {
    json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "reason": reason, "message": message, "code": code,
    })
}
