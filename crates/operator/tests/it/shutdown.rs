//! How the operator stops where it cannot work, or where others do not let it go.

use std::time::Duration;

use control_plane::{ControlPlane, Options, User};
use kube::Config;
use operator::run::{Operator, operate};
use tokio::{
    io::AsyncWriteExt as _,
    net::{TcpListener, TcpStream},
    time,
};
use tokio_util::sync::CancellationToken;

use crate::bed::{control_plane, election, within};

/// A third of the grace period that the chart gives, after which the kubelet kills.
const SOON: Duration = Duration::from_secs(10);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_the_crd_it_is_not_ready_and_stops_when_it_is_told_to() {
    // A control plane of its own: the shared one has the CRD.
    let control_plane = ControlPlane::start(Options::default()).await.unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let stop = CancellationToken::new();
    let config = control_plane.config_as(User::Operator).unwrap();
    let operator = Operator {
        config,
        namespaces: Vec::new(),
        listener,
        webhooks: None,
        election: Some(election("default")),
        decide: &operator::decide::checked,
    };
    let running = tokio::spawn(operate(operator, stop.clone()));
    let answer = |path: &'static str| async move {
        let answer = reqwest::get(format!("http://{address}{path}"))
            .await
            .unwrap();
        answer.status().as_u16()
    };
    assert_eq!(answer("/healthz").await, 200);
    assert_eq!(answer("/readyz").await, 503);
    stop.cancel();
    within("the operator stops", running)
        .await
        .unwrap()
        .unwrap();
    // And where it is stopped before it could read anything.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let config = control_plane.config_as(User::Operator).unwrap();
    let operator = Operator {
        config,
        namespaces: Vec::new(),
        listener,
        webhooks: None,
        election: Some(election("default")),
        decide: &operator::decide::checked,
    };
    within(
        "the operator stops at once",
        Box::pin(operate(operator, stop)),
    )
    .await
    .ok();
    control_plane.stop().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_api_server_that_does_not_answer_does_not_keep_it_from_stopping() {
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", silent.local_addr().unwrap());
    let stop = CancellationToken::new();
    let operator = operator(
        Config::new(url.parse().unwrap()),
        TcpListener::bind("127.0.0.1:0").await.unwrap(),
    );
    let running = tokio::spawn(operate(operator, stop.clone()));
    let asked = within("it asks", silent.accept()).await.unwrap();
    stop.cancel();
    let stopped = time::timeout(SOON, running).await;
    stopped.expect("it stops").unwrap().unwrap();
    drop(asked);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_question_about_its_health_that_never_ends_does_not_keep_it_from_stopping() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let config = control_plane().await.config_as(User::Operator).unwrap();
    let stop = CancellationToken::new();
    let running = tokio::spawn(operate(operator(config, listener), stop.clone()));
    let mut question = TcpStream::connect(address).await.unwrap();
    question
        .write_all(b"GET /healthz HTTP/1.1\r\n")
        .await
        .unwrap();
    // Later connections are accepted later.
    let answer = reqwest::get(format!("http://{address}/healthz")).await;
    assert_eq!(answer.unwrap().status(), 200);
    stop.cancel();
    let stopped = time::timeout(SOON, running).await;
    stopped.expect("it stops").unwrap().unwrap();
}

fn operator(config: Config, listener: TcpListener) -> Operator {
    Operator {
        config,
        namespaces: vec!["default".into()],
        listener,
        webhooks: None,
        election: None,
        decide: &operator::decide::checked,
    }
}
