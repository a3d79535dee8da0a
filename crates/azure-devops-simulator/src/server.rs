//! The thin HTTP face: reads requests off sockets, asks the world, holds long polls open, and
//! carries out what a reply asks of its carrier. It decides nothing about the protocol.

use std::{
    collections::HashMap,
    fmt,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::Context as _;
use http_body_util::{BodyExt as _, Full};
use hyper::{
    body::{Bytes, Incoming},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use jiff::Timestamp;
use rustls::{
    ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::{Notify, futures::OwnedNotified},
    task::JoinSet,
};
use tokio_rustls::TlsAcceptor;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use url::Url;

use crate::{
    control::Control,
    world::{Asked, Method, Reply, Request, Response, Settings, Topic, Wait, World},
};

/// A running simulator. It stops when dropped.
#[derive(Debug)]
pub struct Simulator {
    shared: Arc<Shared>,
    url: Url,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Simulator {
    /// Starts on a free port of the loopback interface.
    ///
    /// # Errors
    /// Where no socket can be bound.
    pub async fn start(settings: Settings) -> anyhow::Result<Self> {
        Self::start_on(SocketAddr::from(([127, 0, 0, 1], 0)), settings).await
    }

    /// Starts on a given address.
    ///
    /// # Errors
    /// Where the address cannot be bound.
    pub async fn start_on(address: SocketAddr, settings: Settings) -> anyhow::Result<Self> {
        Self::start_with(address, settings, None).await
    }

    /// Starts on a given address and speaks TLS only, with this certificate. The control API does so as well, so that
    /// what is not told of the certificate can do nothing here.
    ///
    /// # Errors
    /// Where the address cannot be bound, or the key is not that of the certificate.
    pub async fn start_with_tls(
        address: SocketAddr,
        settings: Settings,
        certificate: CertificateDer<'static>,
        key: PrivateKeyDer<'static>,
    ) -> anyhow::Result<Self> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let configuration = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .context("failed to choose versions of TLS")?
            .with_no_client_auth()
            .with_single_cert(vec![certificate], key)
            .context("failed to use the certificate")?;
        Self::start_with(
            address,
            settings,
            Some(TlsAcceptor::from(Arc::new(configuration))),
        )
        .await
    }

    async fn start_with(
        address: SocketAddr,
        settings: Settings,
        tls: Option<TlsAcceptor>,
    ) -> anyhow::Result<Self> {
        let listener = TcpListener::bind(address)
            .await
            .with_context(|| format!("failed to bind {address}"))?;
        let address = listener
            .local_addr()
            .context("failed to read the bound address")?;
        let scheme = if tls.is_some() { "https" } else { "http" };
        let url = Url::parse(&format!("{scheme}://{address}/")).context("failed to make a URL")?;
        let shared = Arc::new(Shared::new(World::new(settings)));
        let stop = CancellationToken::new();
        let tasks = TaskTracker::new();
        tasks.spawn(stop.clone().run_until_cancelled_owned(accept(
            listener,
            tls,
            Arc::clone(&shared),
        )));
        tasks.spawn(
            stop.clone()
                .run_until_cancelled_owned(pass_time(Arc::clone(&shared))),
        );
        tasks.close();
        Ok(Self {
            shared,
            url,
            stop,
            tasks,
        })
    }

    /// The root; an organization lives at `{url}{organization}`.
    pub fn url(&self) -> Url {
        self.url.clone()
    }

    /// A client of the control API.
    pub fn control(&self) -> Control {
        Control::new(self.url())
    }

    /// Direct access to the world. Whoever waits for what changes is woken afterwards.
    pub fn with_world<T>(&self, act: impl FnOnce(&mut World) -> T) -> T {
        self.shared.with_world(|world, _| act(world))
    }

    /// Lets `hook` look at every request that is served, right before and right after it takes effect, and do in the
    /// world what it likes: nothing else happens in between. The former hook is forgotten.
    pub fn on_request(
        &self,
        hook: impl FnMut(&mut World, Timestamp, &Passing<'_>) + Send + 'static,
    ) {
        self.shared.lock().hook = Some(Hook(Box::new(hook)));
    }

    /// Stops serving: open connections are closed.
    pub async fn shutdown(self) {
        self.stop.cancel();
        self.tasks.wait().await;
    }
}

impl Drop for Simulator {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// A request as a hook sees it.
#[derive(Debug)]
pub struct Passing<'a> {
    /// The request.
    pub request: &'a Request,
    /// What it asks for.
    pub asked: Asked,
    /// Where it is.
    pub moment: Moment,
}

/// Where a request is when a hook sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// It has come, and nothing was done about it.
    Before,
    /// It was served; the reply has not left.
    After {
        /// The reply's status.
        status: u16,
    },
}

struct Hook(Box<See>);

type See = dyn FnMut(&mut World, Timestamp, &Passing<'_>) + Send;

impl fmt::Debug for Hook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Hook")
    }
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// The next deadline moved closer.
    sooner: Notify,
}

#[derive(Debug)]
struct State {
    world: World,
    /// Long polls by what they wait for.
    waiting: HashMap<Topic, Arc<Notify>>,
    /// Until when the timer sleeps.
    timer: Option<Timestamp>,
    hook: Option<Hook>,
}

impl State {
    /// Lets the world handle a request, and the hook see it.
    fn handle(&mut self, now: Timestamp, request: &Request) -> Response {
        let (Some(Hook(hook)), Some(asked)) = (&mut self.hook, request.asked()) else {
            return self.world.handle(now, request);
        };
        let mut passing = Passing {
            request,
            asked,
            moment: Moment::Before,
        };
        hook(&mut self.world, now, &passing);
        let response = self.world.handle(now, request);
        // A poll that waits for a message changes nothing when it ends.
        if let Response::Reply(reply) = &response {
            passing.moment = Moment::After {
                status: reply.status,
            };
            hook(&mut self.world, now, &passing);
        }
        response
    }
}

impl Shared {
    fn new(world: World) -> Self {
        let state = State {
            world,
            waiting: HashMap::new(),
            timer: None,
            hook: None,
        };
        Self {
            state: Mutex::new(state),
            sooner: Notify::new(),
        }
    }

    fn with_world<T>(&self, act: impl FnOnce(&mut World, Timestamp) -> T) -> T {
        let mut state = self.lock();
        let value = act(&mut state.world, Timestamp::now());
        self.settle(&mut state);
        value
    }

    /// Like [`Self::with_world`]; where the response is to wait, the promise to be woken comes
    /// with it, made before anything else can change.
    fn ask(&self, act: impl FnOnce(&mut State, Timestamp) -> Response) -> Answer {
        let mut state = self.lock();
        let response = act(&mut state, Timestamp::now());
        self.settle(&mut state);
        match response {
            Response::Reply(reply) => Answer::Reply(reply),
            Response::Wait(wait) => {
                let notify = state.waiting.entry(wait.topic).or_default();
                Answer::Wait(Box::new(wait), Arc::clone(notify).notified_owned())
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic in a test's own closure must not take the simulator down with it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn settle(&self, state: &mut State) {
        for topic in state.world.take_woken() {
            if let Some(notify) = state.waiting.remove(&topic) {
                notify.notify_waiters();
            }
        }
        let due = state.world.next_due();
        if due.is_some_and(|due| state.timer.is_none_or(|timer| due < timer)) {
            self.sooner.notify_one();
        }
    }
}

enum Answer {
    Reply(Reply),
    Wait(Box<Wait>, OwnedNotified),
}

/// Lets the world do what is due when it is due.
async fn pass_time(shared: Arc<Shared>) {
    loop {
        let due = shared.with_world(|world, now| {
            world.tick(now);
            world.next_due()
        });
        shared.lock().timer = due;
        let sleep = async {
            match due {
                Some(due) => tokio::time::sleep(until(due)).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = sleep => {}
            () = shared.sooner.notified() => {}
        }
    }
}

/// The time left until then. A millisecond more, since timers may fire a fraction too early.
fn until(time: Timestamp) -> Duration {
    let left = Duration::try_from(time.duration_since(Timestamp::now())).unwrap_or_default();
    left + Duration::from_millis(1)
}

async fn accept(listener: TcpListener, tls: Option<TlsAcceptor>, shared: Arc<Shared>) {
    // Connections end with this task.
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    connections.spawn(connect(stream, tls.clone(), Arc::clone(&shared)));
                }
                // Out of file descriptors: closing connections gives some back.
                Err(error) => {
                    tracing::warn!(%error, "Failed to accept a connection");
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn connect(stream: TcpStream, tls: Option<TlsAcceptor>, shared: Arc<Shared>) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "Failed to set TCP_NODELAY");
    }
    match tls {
        None => serve(stream, "http", shared).await,
        Some(tls) => match tls.accept(stream).await {
            Ok(stream) => serve(stream, "https", shared).await,
            // A client that does not trust the certificate, or does not speak TLS.
            Err(error) => tracing::debug!(%error, "Handshake failed"),
        },
    }
}

async fn serve(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    scheme: &'static str,
    shared: Arc<Shared>,
) {
    let service = service_fn(|request| answer(Arc::clone(&shared), scheme, request));
    // The error is a client that went away, or a connection that a fault asked to drop.
    if let Err(error) = http1::Builder::new()
        .serve_connection(TokioIo::new(stream), service)
        .await
    {
        tracing::trace!(%error, "Connection ended");
    }
}

/// The connection is closed without a reply, as a fault demands.
#[derive(Debug, thiserror::Error)]
#[error("dropped on purpose")]
struct Dropped;

async fn answer(
    shared: Arc<Shared>,
    scheme: &str,
    request: hyper::Request<Incoming>,
) -> Result<hyper::Response<Full<Bytes>>, Dropped> {
    let Some(request) = read(scheme, request).await else {
        let mut response = hyper::Response::new(Full::default());
        *response.status_mut() = hyper::StatusCode::BAD_REQUEST;
        return Ok(response);
    };
    let mut answer = shared.ask(|state, now| state.handle(now, &request));
    let reply = loop {
        match answer {
            Answer::Reply(reply) => break reply,
            Answer::Wait(wait, notified) => {
                tokio::select! {
                    () = notified => {}
                    () = tokio::time::sleep(until(wait.until)) => {}
                }
                answer = shared.ask(|state, now| state.world.resume(now, *wait));
            }
        }
    };
    if !reply.delay.is_zero() {
        tokio::time::sleep(reply.delay).await;
    }
    if reply.dropped {
        return Err(Dropped);
    }
    let mut response = hyper::Response::builder().status(reply.status);
    for (name, value) in &reply.headers {
        response = response.header(*name, value);
    }
    let body = if request.method == Method::Head {
        Bytes::new()
    } else {
        Bytes::from(reply.body)
    };
    response.body(Full::new(body)).map_err(|_| Dropped)
}

/// Requests with larger bodies are refused: no client of ours sends anything near it.
const LARGEST_BODY: usize = 16 << 20;

async fn read(scheme: &str, request: hyper::Request<Incoming>) -> Option<Request> {
    let (head, body) = request.into_parts();
    let header = |value: &hyper::header::HeaderValue| value.to_str().ok().map(str::to_owned);
    let host = head
        .headers
        .get(hyper::header::HOST)
        .and_then(header)
        .unwrap_or_default();
    let target = head
        .uri
        .path_and_query()
        .map_or("/", |target| target.as_str());
    let mut read = Request::new(
        Method::parse(head.method.as_str())?,
        &format!("{scheme}://{host}"),
        target,
    );
    read.headers = head
        .headers
        .iter()
        .filter_map(|(name, value)| Some((name.as_str().to_owned(), header(value)?)))
        .collect();
    let limited = http_body_util::Limited::new(body, LARGEST_BODY);
    read.body = limited.collect().await.ok()?.to_bytes().to_vec();
    Some(read)
}
