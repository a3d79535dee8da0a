//! A leader that is frozen in the middle of its work, loses the lease meanwhile, and wakes.

use std::{
    process::ExitStatus,
    time::{Duration, Instant},
};

use axum::http::{HeaderValue, header::USER_AGENT};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::{
    api::{coordination::v1::Lease, core::v1::Pod},
    apimachinery::pkg::apis::meta::v1::MicroTime,
};
use kube::{
    Api, Client, Config,
    api::{ListParams, Patch, PatchParams},
};
use operator::{
    lease,
    run::{Operator, operate},
};
use serde_json::json;
use tokio::{net::TcpListener, process::Command};
use tokio_util::sync::CancellationToken;

use crate::{
    bed::{Bed, ORGANIZATION, POOL, long_job, within},
    replica::{Process, all_writes, give, held_by, holder},
};

/// Agents of the burst in which it is frozen.
const BURST: usize = 300;

/// What a process did after it woke.
#[derive(Debug)]
struct Awake {
    /// Requests to change something that the API server received from it.
    kubernetes: usize,
    /// The same, of Azure DevOps.
    azure_devops: usize,
    status: ExitStatus,
}

/// Freezes a leader while it creates agents, takes its lease as another replica would, wakes it and waits for its end.
async fn freeze(bed: &Bed, process: Process) -> Awake {
    held_by(bed, &process.name).await;
    let _hang = bed
        .node
        .inject(hollow_node::Rule::new(hollow_node::What::HangPending));
    bed.create("web", json!({ "maxAgents": BURST })).await;
    bed.ready("web").await;
    let jobs = azure_devops_simulator::world::JobSpec {
        count: BURST,
        ..long_job()
    };
    bed.queue(jobs).await;
    bed.pods_when("the burst has begun", |pods| pods.len() > 10)
        .await;
    process.signal("STOP").await;
    let asleep = asleep(bed, &process).await;
    assert!(asleep < BURST, "it was frozen after the burst, not in it");
    take_over(bed).await;
    // Both sides give it something to do.
    bed.control
        .delete_agent(ORGANIZATION, POOL, "web-placeholder-base")
        .await
        .unwrap();
    let before = (all_writes(bed, &process.name).await.len(), azure(bed).await);
    let name = process.name.clone();
    process.signal("CONT").await;
    let status = tokio::select! {
        status = process.ended() => status,
        () = keep(bed) => unreachable!("it is kept for ever"),
    };
    let after = (all_writes(bed, &name).await.len(), azure(bed).await);
    Awake {
        kubernetes: after.0 - before.0,
        azure_devops: after.1 - before.1,
        status,
    }
}

/// Waits until the kernel says that the process is stopped, and what it sent is answered; gives the number of Pods.
async fn asleep(bed: &Bed, process: &Process) -> usize {
    let pods: Api<Pod> = bed.api();
    let count = async || pods.list(&ListParams::default()).await.unwrap().items.len();
    within("it sleeps", async {
        while !process.is_stopped() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let mut last = count().await;
        loop {
            tokio::time::sleep(Duration::from_millis(500)).await;
            let now = count().await;
            if now == last {
                return now;
            }
            last = now;
        }
    })
    .await
}

/// Takes the lease when its record has not changed for its duration.
async fn take_over(bed: &Bed) {
    let leases: Api<Lease> = bed.api();
    let (mut seen, mut since) = (None, Instant::now());
    within("the lease expires", async {
        loop {
            let lease = leases
                .list(&ListParams::default())
                .await
                .unwrap()
                .items
                .remove(0);
            let seconds = lease.spec.as_ref().unwrap().lease_duration_seconds.unwrap();
            if seen != Some(lease.spec.clone()) {
                (seen, since) = (Some(lease.spec), Instant::now());
            } else if since.elapsed() > Duration::from_secs(u64::try_from(seconds).unwrap()) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    })
    .await;
    give(bed, "another").await;
}

/// Renews the lease that was taken, whoever took it back meanwhile.
async fn keep(bed: &Bed) {
    loop {
        tokio::time::sleep(Duration::from_secs(1)).await;
        give(bed, "another").await;
    }
}

/// Writes to Azure DevOps with the operator's token; agents have tokens of their own.
async fn azure(bed: &Bed) -> usize {
    let log = bed.control.request_log().await.unwrap();
    log.iter()
        .filter(|entry| entry.identity.starts_with("pat:") && entry.method != "GET")
        .count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_was_frozen_writes_nothing_when_it_wakes() {
    let bed = Bed::make().await;
    let process = Process::start(&bed, "frozen", &[]).await;
    let awake = freeze(&bed, process).await;
    println!("{awake:?}");
    assert_eq!((awake.kubernetes, awake.azure_devops), (0, 0), "{awake:?}");
    assert_eq!(awake.status.code(), Some(lease::EXIT_CODE));
    // The control: one that writes without asking.
    let bed = Bed::make().await;
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args([
            "--exact",
            "frozen::naive_leader",
            "--ignored",
            "--nocapture",
        ])
        .env("WATCH_NAMESPACES", &bed.namespace);
    let process = Process::spawn(&bed, "naive", command).await;
    let naive = freeze(&bed, process).await;
    println!("the control: {naive:?}");
    assert!(naive.kubernetes > 0, "the check finds nothing: {naive:?}");
}

/// The operator under a lease as it is easily written: it compares clocks, writes the Lease whatever has become of it, and
/// stops in order when whoever renews it finds that it is lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a program of its own: the control of the frozen leader"]
async fn naive_leader() {
    const DURATION: SignedDuration = SignedDuration::from_secs(4);
    let set = |name: &str| std::env::var(name).unwrap();
    let (name, namespace) = (set("POD_NAME"), set("WATCH_NAMESPACES"));
    let mut config = Config::infer().await.unwrap();
    let agent = HeaderValue::from_str(&format!("control ({name})")).unwrap();
    config.headers.push((USER_AGENT, agent));
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client = Client::try_from(config.clone()).unwrap();
    let leases: Api<Lease> = Api::namespaced(client, &namespace);
    let write = async || {
        let record = json!({
            "apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": { "name": "naive" },
            "spec": { "holderIdentity": name, "leaseDurationSeconds": DURATION.as_secs(),
                "renewTime": MicroTime(Timestamp::now()) },
        });
        let params = PatchParams::apply("naive").force();
        let written = leases.patch("naive", &params, &Patch::Apply(record)).await;
        written.unwrap();
    };
    write().await;
    let operator = Operator {
        config,
        namespaces: vec![namespace],
        listener: TcpListener::bind(set("HEALTH_ADDRESS")).await.unwrap(),
        webhooks: None,
        election: None,
        decide: &operator::decide::checked,
    };
    let stop = CancellationToken::new();
    let running = tokio::spawn(operate(operator, stop.clone()));
    loop {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let seen = leases.get("naive").await.unwrap();
        let renewed = seen
            .spec
            .as_ref()
            .and_then(|record| record.renew_time.clone());
        let expired = renewed.is_none_or(|time| time.0 + DURATION < Timestamp::now());
        if holder(&seen) != name && !expired {
            stop.cancel();
            running.await.unwrap().unwrap();
            std::process::exit(lease::EXIT_CODE);
        }
        write().await;
    }
}
