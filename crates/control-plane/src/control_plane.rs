//! The control plane as a whole: start, use, stop.

use std::{
    env,
    fs::DirBuilder,
    net::{Ipv4Addr, TcpListener},
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use k8s_openapi::{
    api::{
        core::v1::{Namespace, ServiceAccount},
        storage::v1::StorageClass,
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{
    Api, Client, Config,
    api::{GetParams, PostParams},
    client::{ClientBuilder, ConfigExt as _, retry::RetryPolicy},
};
use tokio::{sync::OnceCell, task, time};
use tower::{BoxError, ServiceBuilder, buffer::BufferLayer, retry::RetryLayer};

use crate::{
    AuditEvent, User, audit,
    binaries::{self, Binaries},
    credentials::Credentials,
    processes::Processes,
};

/// A start takes about 4 s on two cores; a machine that is busy compiling takes a multiple of it.
const START_TIMEOUT: Duration = Duration::from_secs(120);
/// Between two looks at something that is about to happen: short beside the 4 s of a start.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// Requests to the API server that may wait for a connection: as many as kube's own client takes.
const REQUEST_QUEUE: usize = 1024;
/// Well below the 90 s after which the API server closes an idle connection, which is also what hyper waits by default.
const KEEP_IDLE: Duration = Duration::from_secs(45);

/// A running control plane. Dropping it stops it and removes everything that it made; so does any end of the process that
/// started it, a panic, Ctrl-C, SIGTERM and SIGKILL included.
#[derive(Debug)]
pub struct ControlPlane {
    server: String,
    credentials: Credentials,
    pub(crate) processes: Processes,
}

/// A program of the control plane, to be killed and started again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    /// The database.
    Etcd,
    /// The API server.
    ApiServer,
    /// The controllers of Kubernetes.
    ControllerManager,
}

impl Program {
    /// All of them, in the order in which they need each other.
    pub const ALL: [Self; 3] = [Self::Etcd, Self::ApiServer, Self::ControllerManager];

    /// Its name, also that of its log in [`ControlPlane::folder`].
    pub const fn name(self) -> &'static str {
        match self {
            Self::Etcd => "etcd",
            Self::ApiServer => "kube-apiserver",
            Self::ControllerManager => "kube-controller-manager",
        }
    }
}

/// What a control plane does besides its work.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Keep an audit log, for [`ControlPlane::audit_log`].
    pub audit: bool,
    /// Where the API server listens, and where Pods find it: an address of this machine. 127.0.0.1 if absent, which no Pod
    /// can reach.
    pub address: Option<Ipv4Addr>,
}

impl ControlPlane {
    /// Starts a control plane: on free ports of 127.0.0.1, in a new folder of the system's folder for temporary files.
    /// Returns when the API server is ready and pods can be created in namespace `default`. Builds the programs first if
    /// need be, and displays that on standard error.
    ///
    /// # Errors
    /// When the programs cannot be had, or do not start; the message holds the end of their logs.
    pub async fn start(options: Options) -> anyhow::Result<Self> {
        let binaries =
            task::spawn_blocking(|| binaries::ensure(&mut binaries::terminal())).await??;
        // A port that was free may be taken by the time the program binds it. That is rare, so a few attempts are plenty.
        let mut attempts = 5;
        loop {
            attempts -= 1;
            match Self::start_once(&binaries, options).await {
                Err(error)
                    if attempts > 0 && format!("{error:#}").contains("address already in use") => {}
                result => return result,
            }
        }
    }

    /// The control plane of this process, started by the first caller, with an audit log; every test can have its own
    /// [`ControlPlane::namespace`] in it. It belongs to no runtime, so it outlives the test that started it, and goes with
    /// the process.
    ///
    /// # Errors
    /// As [`ControlPlane::start`]; the next caller then tries again.
    pub async fn shared() -> anyhow::Result<&'static Self> {
        static SHARED: OnceCell<ControlPlane> = OnceCell::const_new();
        SHARED
            .get_or_try_init(|| {
                Self::start(Options {
                    audit: true,
                    ..Options::default()
                })
            })
            .await
    }

    /// A new client of user [`User::Admin`]; see [`ControlPlane::client_as`].
    ///
    /// # Errors
    /// As [`ControlPlane::client_as`].
    pub fn client(&self) -> anyhow::Result<Client> {
        self.client_as(User::Admin)
    }

    /// A new client, without any limit of its own. It belongs to the runtime that it is made in: make one per test.
    ///
    /// # Errors
    /// When the API server's certificate cannot be used.
    pub fn client_as(&self, user: User) -> anyhow::Result<Client> {
        client_of(&self.config_as(user)?).context("cannot make a client of the control plane")
    }

    /// What a client of the user is made from, for those that are made in another way.
    ///
    /// # Errors
    /// When the API server's address cannot be used.
    pub fn config_as(&self, user: User) -> anyhow::Result<Config> {
        self.config_with(self.credentials.token(user))
    }

    pub(crate) fn config_with(&self, token: String) -> anyhow::Result<Config> {
        install_tls();
        let mut config = Config::new(self.server.parse().context("not a URL")?);
        config.root_cert_file = Some(self.credentials.certificate());
        config.auth_info.token = Some(token.into());
        Ok(config)
    }

    /// A kubeconfig file of user [`User::Admin`], for kubectl and other processes. Gone with the control plane.
    pub fn kubeconfig(&self) -> PathBuf {
        self.kubeconfig_as(User::Admin)
    }

    /// A kubeconfig file of the user.
    pub fn kubeconfig_as(&self, user: User) -> PathBuf {
        self.credentials.kubeconfig(user)
    }

    pub(crate) fn kubeconfig_with(&self, user: &str, token: &str) -> anyhow::Result<String> {
        self.credentials.kubeconfig_with(&self.server, user, token)
    }

    /// The URL of the API server.
    pub fn server(&self) -> &str {
        &self.server
    }

    /// Creates a namespace, `{prefix}-` and a random suffix, and returns its name once pods can be created in it, which
    /// need its default service account.
    ///
    /// # Errors
    /// When the API server refuses, or the service account does not appear.
    pub async fn namespace(&self, prefix: &str) -> anyhow::Result<String> {
        let client = self.client()?;
        let namespace = Namespace {
            metadata: ObjectMeta {
                generate_name: Some(format!("{prefix}-")),
                ..ObjectMeta::default()
            },
            ..Namespace::default()
        };
        let created = Api::all(client.clone())
            .create(&PostParams::default(), &namespace)
            .await?;
        let name = created
            .metadata
            .name
            .context("the API server gave the namespace no name")?;
        let deadline = Instant::now() + START_TIMEOUT;
        while !has_service_account(&client, &name).await? {
            if Instant::now() >= deadline {
                bail!("namespace {name} got no default service account");
            }
            time::sleep(LOOK_AGAIN).await;
        }
        Ok(name)
    }

    /// Every request that the API server has answered so far, in the order of the answers.
    ///
    /// # Errors
    /// When the log was not asked for ([`Options::audit`]), or cannot be read.
    pub fn audit_log(&self) -> anyhow::Result<Vec<AuditEvent>> {
        if !self.audit_policy().exists() {
            bail!("there is no audit log: start the control plane with Options::audit");
        }
        audit::read(&self.audit_file())
    }

    /// Kills a program (SIGKILL), and returns once it is dead. What it has written stays, and so does its port, which nobody
    /// is told of: [`ControlPlane::restart`] brings it back.
    ///
    /// # Errors
    /// When it cannot be killed.
    pub async fn kill(&mut self, program: Program) -> anyhow::Result<()> {
        self.processes.kill(program.name())?;
        let deadline = Instant::now() + START_TIMEOUT;
        while self.is_running(program) {
            if Instant::now() >= deadline {
                bail!("{} does not die", program.name());
            }
            time::sleep(LOOK_AGAIN).await;
        }
        Ok(())
    }

    /// Starts a program that has ended, on the same port and with the same files. It does not wait until the program is
    /// ready: see [`ControlPlane::is_ready`].
    ///
    /// # Errors
    /// When the program still runs, or cannot be started.
    pub fn restart(&mut self, program: Program) -> anyhow::Result<()> {
        ensure!(!self.is_running(program), "{} still runs", program.name());
        self.processes.restart(program.name())
    }

    /// Whether a program has not ended.
    pub fn is_running(&self, program: Program) -> bool {
        self.processes.is_running(program.name())
    }

    /// Whether the API server says that it is ready, which it is not without etcd.
    pub async fn is_ready(&self) -> bool {
        let Ok(request) = kube::core::Request::new("").get("readyz", &GetParams::default()) else {
            return false;
        };
        let Ok(client) = self.client() else {
            return false;
        };
        // It refuses connections, then requests, before it is ready: every answer but a success means "not yet".
        client.request_text(request).await.is_ok()
    }

    /// Stops the control plane, and waits until all its processes and files are gone; a fraction of a second.
    ///
    /// # Errors
    /// When something is left behind.
    pub fn stop(mut self) -> anyhow::Result<()> {
        self.processes.stop()
    }

    /// The folder of all files: logs as `{program}.log`, kubeconfigs, etcd's data.
    pub fn folder(&self) -> &Path {
        self.processes.folder()
    }

    /// The ids of all processes that were started.
    pub fn process_ids(&self) -> Vec<u32> {
        self.processes.ids()
    }

    async fn start_once(binaries: &Binaries, options: Options) -> anyhow::Result<Self> {
        let folder = env::temp_dir().join(format!(
            "azdo-control-plane-{}",
            uuid::Uuid::new_v4().simple()
        ));
        // The tokens in it give access to everything, so nobody else may look.
        DirBuilder::new()
            .mode(0o700)
            .create(&folder)
            .with_context(|| format!("cannot create {}", folder.display()))?;
        let processes = Processes::guard(folder.clone())?;
        let credentials = Credentials::create(&folder)?;
        let address = options.address.unwrap_or(Ipv4Addr::LOCALHOST);
        let [client_port, peer_port, secure_port] = free_ports()?;
        let server = format!("https://{address}:{secure_port}");
        let mut control_plane = Self {
            server,
            credentials,
            processes,
        };
        if options.audit {
            std::fs::write(control_plane.audit_policy(), audit::POLICY)?;
        }

        let etcd = format!("http://127.0.0.1:{client_port}");
        let etcd_arguments =
            control_plane.etcd_arguments(&etcd, &format!("http://127.0.0.1:{peer_port}"));
        control_plane
            .processes
            .spawn(Program::Etcd.name(), &binaries.etcd, &etcd_arguments)?;
        let arguments = control_plane.apiserver_arguments(&etcd, secure_port, options);
        control_plane.processes.spawn(
            Program::ApiServer.name(),
            &binaries.kube_apiserver,
            &arguments,
        )?;
        control_plane
            .until("the API server is ready", async |this| this.ready().await)
            .await?;

        let arguments = control_plane.controller_manager_arguments();
        control_plane.processes.spawn(
            Program::ControllerManager.name(),
            &binaries.kube_controller_manager,
            &arguments,
        )?;
        let client = control_plane.client()?;
        create_storage_class(&client).await?;
        control_plane
            .until("the default service account exists", async |_| {
                has_service_account(&client, "default").await
            })
            .await?;
        Ok(control_plane)
    }

    /// Looks until it is so, but not longer than a start may take, nor longer than the programs live.
    pub(crate) async fn until(
        &mut self,
        what: &str,
        mut so: impl AsyncFnMut(&Self) -> anyhow::Result<bool>,
    ) -> anyhow::Result<()> {
        let deadline = Instant::now() + START_TIMEOUT;
        while !so(self).await? {
            self.processes.check()?;
            if Instant::now() >= deadline {
                bail!("gave up waiting until {what}\n{}", self.processes.logs());
            }
            time::sleep(LOOK_AGAIN).await;
        }
        Ok(())
    }

    async fn ready(&self) -> anyhow::Result<bool> {
        if !self.credentials.certificate_written() {
            return Ok(false);
        }
        self.credentials.write_kubeconfigs(&self.server)?;
        Ok(self.is_ready().await)
    }

    fn etcd_arguments(&self, client: &str, peer: &str) -> Vec<String> {
        let data = self.folder().join("etcd");
        vec![
            format!("--data-dir={}", data.display()),
            format!("--listen-client-urls={client}"),
            format!("--advertise-client-urls={client}"),
            format!("--listen-peer-urls={peer}"),
            format!("--initial-advertise-peer-urls={peer}"),
            format!("--initial-cluster=default={peer}"),
            "--log-level=warn".into(),
            "--unsafe-no-fsync".into(), // the data does not outlive the process anyway
        ]
    }

    fn apiserver_arguments(&self, etcd: &str, port: u16, options: Options) -> Vec<String> {
        let credentials = &self.credentials;
        let address = options.address.unwrap_or(Ipv4Addr::LOCALHOST);
        let mut arguments = vec![
            format!("--etcd-servers={etcd}"),
            format!("--secure-port={port}"),
            format!("--bind-address={address}"),
            // Given, so that a machine without a default route will do.
            format!("--advertise-address={address}"),
            format!("--cert-dir={}", credentials.certificates().display()),
            format!("--token-auth-file={}", credentials.tokens().display()),
            "--authorization-mode=RBAC".into(),
            "--service-account-issuer=https://kubernetes.default.svc".into(),
            format!(
                "--service-account-key-file={}",
                credentials.public_key().display()
            ),
            format!(
                "--service-account-signing-key-file={}",
                credentials.private_key().display()
            ),
            "--service-cluster-ip-range=10.0.0.0/24".into(),
            "--allow-privileged=true".into(),
            // Bursts of pods are what is tested; upstream's 400 and 200 are made for a shared cluster.
            "--max-requests-inflight=4000".into(),
            "--max-mutating-requests-inflight=2000".into(),
        ];
        if address.is_loopback() {
            // It is no endpoint of a service.
            arguments.push("--endpoint-reconciler-type=none".into());
        } else {
            arguments.extend([
                "--kubelet-preferred-address-types=InternalIP".into(),
                // Webhooks are called at the addresses of their Pods, so that no name service is needed.
                "--enable-aggregator-routing=true".into(),
            ]);
        }
        if options.audit {
            arguments.extend([
                format!("--audit-policy-file={}", self.audit_policy().display()),
                format!("--audit-log-path={}", self.audit_file().display()),
                "--audit-log-maxsize=10000".into(), // MB: never rotated
            ]);
        }
        arguments
    }

    fn controller_manager_arguments(&self) -> Vec<String> {
        vec![
            format!(
                "--kubeconfig={}",
                self.kubeconfig_as(User::ControllerManager).display()
            ),
            "--leader-elect=false".into(),
            "--secure-port=0".into(), // nobody asks it for metrics
            format!(
                "--service-account-private-key-file={}",
                self.credentials.private_key().display()
            ),
            "--use-service-account-credentials=true".into(),
            format!(
                "--root-ca-file={}",
                self.credentials.certificate().display()
            ),
            "--enable-hostpath-provisioner=true".into(),
            // Upstream's 20 and 30 a second would take 25 s to collect the pods of a burst of 500.
            "--kube-api-qps=2000".into(),
            "--kube-api-burst=4000".into(),
        ]
    }

    fn audit_policy(&self) -> PathBuf {
        self.folder().join("audit-policy.yaml")
    }

    fn audit_file(&self) -> PathBuf {
        self.folder().join("audit.log")
    }
}

/// Claims that name no class get this one, and bind by themselves.
async fn create_storage_class(client: &Client) -> anyhow::Result<()> {
    let class = StorageClass {
        metadata: ObjectMeta {
            name: Some("hostpath".into()),
            annotations: Some(
                [(
                    "storageclass.kubernetes.io/is-default-class".into(),
                    "true".into(),
                )]
                .into(),
            ),
            ..ObjectMeta::default()
        },
        provisioner: "kubernetes.io/host-path".into(),
        ..StorageClass::default()
    };
    Api::all(client.clone())
        .create(&PostParams::default(), &class)
        .await
        .context("cannot create the storage class")?;
    Ok(())
}

async fn has_service_account(client: &Client, namespace: &str) -> anyhow::Result<bool> {
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), namespace);
    Ok(accounts.get_opt("default").await?.is_some())
}

/// Three different ports that nobody listens on, as the system hands them out.
fn free_ports() -> anyhow::Result<[u16; 3]> {
    let listen = || TcpListener::bind("127.0.0.1:0").context("cannot find a free port");
    let listeners = [listen()?, listen()?, listen()?]; // all held until all are chosen
    let port = |listener: &TcpListener| anyhow::Ok(listener.local_addr()?.port());
    let [first, second, third] = &listeners;
    Ok([port(first)?, port(second)?, port(third)?])
}

/// A client like kube's own, but for one thing: it gives up an idle connection before the API server does, which would
/// otherwise close it now and then just as a request goes out.
fn client_of(config: &Config) -> anyhow::Result<Client> {
    let http = hyper_util::client::legacy::Client::builder(TokioExecutor::new())
        .pool_idle_timeout(KEEP_IDLE)
        .pool_timer(TokioTimer::new())
        .build(config.rustls_https_connector()?);
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .option_layer(config.auth_layer()?)
        .map_err(BoxError::from)
        .service(http);
    Ok(ClientBuilder::new(service, &config.default_namespace)
        .with_layer(&BufferLayer::new(REQUEST_QUEUE))
        .with_layer(&RetryLayer::new(RetryPolicy::server_retry()))
        .build())
}

/// rustls wants one provider of cryptography per process; whoever comes first chooses, and all of ours choose ring.
fn install_tls() {
    let _ = rustls::crypto::ring::default_provider().install_default();
}
