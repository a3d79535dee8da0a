//! Replicas of the operator, in this process or as processes of the program itself, and what the API server saw of them.

use std::{fs::File, net::SocketAddr, path::PathBuf, process::ExitStatus};

use control_plane::{AuditEvent, User};
use jiff::Timestamp;
use k8s_openapi::{api::coordination::v1::Lease, apimachinery::pkg::apis::meta::v1::MicroTime};
use kube::{
    Api, Config,
    api::{ListParams, PostParams},
};
use operator::{
    lease::Election,
    run::{Operator, operate},
    webhook::Webhooks,
};
use tokio::{
    net::TcpListener,
    process::{Child, Command},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

use crate::bed::{Bed, control_plane, election, objects_when, within};

/// A replica in this process.
pub(crate) struct Replica {
    pub(crate) election: Election,
    address: SocketAddr,
    stop: CancellationToken,
    task: JoinHandle<anyhow::Result<()>>,
}

impl Replica {
    pub(crate) async fn start(bed: &Bed) -> Self {
        let config = control_plane().await.config_as(User::Operator).unwrap();
        Self::start_with(bed, config, election(&bed.namespace), None).await
    }

    pub(crate) async fn start_with(
        bed: &Bed,
        config: Config,
        election: Election,
        webhooks: Option<Webhooks>,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        let operator = Operator {
            config,
            namespaces: vec![bed.namespace.clone()],
            listener,
            webhooks,
            election: Some(election.clone()),
            decide: &operator::decide::checked,
        };
        let task = tokio::spawn(operate(operator, stop.clone()));
        Self {
            election,
            address,
            stop,
            task,
        }
    }

    pub(crate) fn identity(&self) -> &str {
        &self.election.identity
    }

    /// It has read the cluster, and serves.
    pub(crate) async fn ready(&self) {
        ready(self.address).await;
    }

    /// Stops it as SIGTERM does.
    pub(crate) async fn stop(self) {
        self.stop.cancel();
        self.ended().await.unwrap();
    }

    /// Waits for its end.
    pub(crate) async fn ended(self) -> anyhow::Result<()> {
        within("the replica ends", self.task).await.unwrap()
    }
}

/// A replica as a process. Dropping it kills it.
pub(crate) struct Process {
    pub(crate) name: String,
    child: Child,
    address: SocketAddr,
    log: PathBuf,
}

impl Process {
    /// Starts the program with the default times and further arguments. `name` is its Pod's, and what its identity begins
    /// with.
    pub(crate) async fn start(bed: &Bed, name: &str, arguments: &[&str]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_azdo-runner-operator"));
        let namespace = bed.namespace.as_str();
        command.args(["run", "--namespaces", namespace]);
        command.args(["--lease-namespace", namespace]);
        command.args(arguments);
        Self::spawn(bed, name, command).await
    }

    /// Starts a program that takes what it needs from the operator's environment variables.
    pub(crate) async fn spawn(bed: &Bed, name: &str, mut command: Command) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        drop(listener);
        let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
        let log = folder.join(format!("{}-{name}.log", bed.namespace));
        let file = File::options()
            .create(true)
            .append(true)
            .open(&log)
            .unwrap();
        let child = command
            .env(
                "KUBECONFIG",
                control_plane().await.kubeconfig_as(User::Operator),
            )
            .env("POD_NAME", name)
            .env("HEALTH_ADDRESS", address.to_string())
            .env("NO_COLOR", "1")
            .stdout(file.try_clone().unwrap())
            .stderr(file)
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        Self {
            name: name.to_owned(),
            child,
            address,
            log,
        }
    }

    pub(crate) async fn ready(&self) {
        ready(self.address).await;
    }

    /// Sends it a signal, like `KILL`.
    pub(crate) async fn signal(&self, signal: &str) {
        let id = self.child.id().expect("it runs").to_string();
        let sent = Command::new("kill").args(["-s", signal, &id]).status();
        assert!(sent.await.unwrap().success());
    }

    /// Whether the kernel has stopped it.
    pub(crate) fn is_stopped(&self) -> bool {
        let id = self.child.id().expect("it runs");
        let status = std::fs::read_to_string(format!("/proc/{id}/status")).unwrap();
        status.lines().any(|line| line.starts_with("State:\tT"))
    }

    /// Waits for its end.
    pub(crate) async fn ended(mut self) -> ExitStatus {
        let what = format!("the process ends; its log is {}", self.log.display());
        within(&what, self.child.wait()).await.unwrap()
    }
}

async fn ready(address: SocketAddr) {
    within("it is ready", async {
        loop {
            // It refuses connections before it listens.
            if let Ok(answer) = reqwest::get(format!("http://{address}/readyz")).await
                && answer.status().is_success()
            {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    })
    .await;
}

/// The Lease, as soon as it is as wanted.
pub(crate) async fn lease_when(bed: &Bed, what: &str, wanted: impl Fn(&Lease) -> bool) -> Lease {
    let leases = objects_when(bed.api::<Lease>(), what, |leases| {
        leases.first().is_some_and(&wanted)
    });
    leases.await.remove(0)
}

/// The holder of a Lease begins with this name.
pub(crate) async fn held_by(bed: &Bed, name: &str) -> Lease {
    let what = format!("{name} holds the lease");
    lease_when(bed, &what, |lease| holder(lease).starts_with(name)).await
}

pub(crate) fn holder(lease: &Lease) -> &str {
    let record = lease.spec.as_ref();
    record
        .and_then(|record| record.holder_identity.as_deref())
        .unwrap_or_default()
}

/// What the API server was asked to change in the bed's namespace by identities that begin with this name, Leases apart.
pub(crate) async fn writes(bed: &Bed, name: &str) -> Vec<AuditEvent> {
    let writes = all_writes(bed, name).await;
    let others = writes
        .into_iter()
        .filter(|event| event.resource != "leases");
    others.collect()
}

/// As [`writes`], with those of Leases.
pub(crate) async fn all_writes(bed: &Bed, name: &str) -> Vec<AuditEvent> {
    let agent = format!("({name}");
    let log = control_plane().await.audit_log().unwrap();
    let ours = log.into_iter().filter(|event| {
        event.namespace == bed.namespace && event.is_write() && event.user_agent.contains(&agent)
    });
    ours.collect()
}

/// Makes the Lease another's, as a replica would that waited long enough.
pub(crate) async fn give(bed: &Bed, holder: &str) {
    let leases: Api<Lease> = bed.api();
    loop {
        let mut lease = leases
            .list(&ListParams::default())
            .await
            .unwrap()
            .items
            .remove(0);
        let record = lease.spec.as_mut().unwrap();
        record.holder_identity = Some(holder.to_owned());
        record.renew_time = Some(MicroTime(Timestamp::now()));
        let name = lease.metadata.name.clone().unwrap();
        match leases.replace(&name, &PostParams::default(), &lease).await {
            Err(kube::Error::Api(status)) if status.is_conflict() => {}
            other => {
                other.unwrap();
                return;
            }
        }
    }
}
