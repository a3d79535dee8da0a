//! The operator where it cannot work: a cluster that does not know RunnerPools.

use control_plane::{ControlPlane, Options, User};
use operator::run::{Operator, operate};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::bed::{election, within};

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
