//! One replica acts, and which.

use std::{
    cell::RefCell,
    time::{Duration, Instant},
};

use control_plane::User;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::{
    api::{
        coordination::v1::Lease,
        rbac::v1::{ClusterRole, ClusterRoleBinding},
    },
    apimachinery::pkg::apis::meta::v1::MicroTime,
};
use kube::{
    Api, Client,
    api::{DeleteParams, PostParams},
};
use operator::lease::{Election, Lost, Times};
use serde_json::json;

use crate::{
    bed::{Bed, control_plane, election, jobs, objects_when, within},
    replica::{Process, Replica, give, held_by, holder, lease_when, writes},
};

const SHORT: Duration = Duration::from_millis(200);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_acts_the_other_is_ready_and_takes_over_when_the_lease_is_released() {
    let bed = Bed::make().await;
    let mut leader = Replica::start(&bed).await;
    held_by(&bed, leader.identity()).await;
    leader.ready().await;
    bed.create("web", json!({})).await;
    bed.ready("web").await;
    // Each is the one that waits once, and the one that leads once.
    for round in 1..=2 {
        let standby = Replica::start(&bed).await;
        standby.ready().await;
        bed.queue(jobs(2, SHORT)).await;
        bed.all_succeed().await;
        bed.pods_when("the Pods are gone", <[_]>::is_empty).await;
        assert!(!writes(&bed, leader.identity()).await.is_empty());
        assert_eq!(writes(&bed, standby.identity()).await, []);
        let started = Instant::now();
        leader.stop().await;
        let lease = held_by(&bed, standby.identity()).await;
        let took = started.elapsed();
        assert_eq!(lease.spec.unwrap().lease_transitions, Some(round));
        assert!(
            took < election("").times.duration() / 2,
            "a handover took {took:?}, as if the lease had expired"
        );
        leader = standby;
        leader.ready().await;
    }
    bed.delete("web").await;
    bed.gone("web").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_whose_lease_another_took_ends_and_writes_nothing_more() {
    let bed = Bed::make().await;
    let leader = Replica::start(&bed).await;
    bed.create("web", json!({})).await;
    bed.ready("web").await;
    give(&bed, "another").await;
    let (name, identity) = (leader.election.name.clone(), leader.identity().to_owned());
    let error = leader.ended().await.unwrap_err();
    assert!(error.is::<Lost>(), "{error:#}");
    assert!(error.to_string().contains("held by another"), "{error:#}");
    let before = writes(&bed, &identity).await;
    bed.queue(jobs(1, SHORT)).await;
    // Who comes next has to wait for the one that never renews, and does the work.
    let next = Replica::start(&bed).await;
    bed.all_succeed().await;
    assert_eq!(writes(&bed, &identity).await, before);
    let lease = bed.api::<Lease>().get(&name).await.unwrap();
    assert_eq!(holder(&lease), next.identity());
    next.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_that_somebody_deletes_is_made_anew_by_its_holder() {
    let bed = Bed::make().await;
    let leader = Replica::start(&bed).await;
    held_by(&bed, leader.identity()).await;
    let standby = Replica::start(&bed).await;
    standby.ready().await;
    let leases: Api<Lease> = bed.api();
    let name = leader.election.name.as_str();
    for _ in 0..3 {
        let old = leases.get(name).await.unwrap().metadata.uid;
        leases.delete(name, &DeleteParams::default()).await.unwrap();
        let new = lease_when(&bed, "there is another", |lease| lease.metadata.uid != old).await;
        assert_eq!(holder(&new), leader.identity());
    }
    leader.stop().await;
    held_by(&bed, standby.identity()).await;
    standby.stop().await;
}

/// Plays a holder whose clock is wrong, and says whether the candidate robbed it while it lived, and whether it took the
/// lease within twice its duration after it had died.
async fn with_a_wrong_clock(
    bed: &Bed,
    wrong_by: SignedDuration,
    candidate: impl AsyncFnOnce(&Bed),
) -> (bool, bool) {
    const DURATION: Duration = Duration::from_secs(3);
    let leases: Api<Lease> = bed.api();
    let name = api::names::OPERATOR;
    let record = |time: Timestamp| {
        json!({
            "metadata": { "name": name },
            "spec": { "holderIdentity": "other", "leaseDurationSeconds": DURATION.as_secs(),
                "renewTime": MicroTime(time + wrong_by) },
        })
    };
    let lease: Lease = serde_json::from_value(record(Timestamp::now())).unwrap();
    let mut lease = leases.create(&PostParams::default(), &lease).await.unwrap();
    candidate(bed).await;
    let started = Instant::now();
    while started.elapsed() < DURATION * 3 {
        tokio::time::sleep(DURATION / 6).await;
        let spec = record(Timestamp::now())["spec"].take();
        lease.spec = serde_json::from_value(spec).unwrap();
        match leases.replace(name, &PostParams::default(), &lease).await {
            Ok(renewed) => lease = renewed,
            Err(kube::Error::Api(status)) if status.is_conflict() => return (true, true),
            Err(error) => panic!("{error}"),
        }
    }
    let taken = objects_when(leases, "the lease is taken", |leases| {
        leases.iter().any(|lease| holder(lease) != "other")
    });
    let patience = DURATION * 2;
    (false, tokio::time::timeout(patience, taken).await.is_ok())
}

/// A candidate that compares the time in the Lease with its own clock: the control.
async fn naive_candidate(bed: &Bed) {
    let leases: Api<Lease> = bed.api();
    tokio::spawn(async move {
        loop {
            let mut lease = leases.get(api::names::OPERATOR).await.unwrap();
            let record = lease.spec.as_mut().unwrap();
            let seconds = record.lease_duration_seconds.unwrap();
            let renewed = record.renew_time.as_ref().unwrap().0;
            if renewed + SignedDuration::from_secs(seconds.into()) < Timestamp::now() {
                record.holder_identity = Some("naive".into());
                let replaced = leases
                    .replace(api::names::OPERATOR, &PostParams::default(), &lease)
                    .await;
                if replaced.is_ok() {
                    return;
                }
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_clock_neither_costs_a_holder_its_lease_nor_keeps_others_from_it() {
    for hours in [-1, 1] {
        let wrong_by = SignedDuration::from_hours(hours);
        let replica = RefCell::new(None);
        let bed = Bed::make().await;
        let start = async |bed: &Bed| {
            let started = Replica::start(bed).await;
            started.ready().await;
            replica.replace(Some(started));
        };
        assert_eq!(
            with_a_wrong_clock(&bed, wrong_by, start).await,
            (false, true),
            "{hours} h"
        );
        let replica = replica.take().expect("it was started");
        replica.stop().await;
        // The control robs a living holder, or waits for a dead one.
        let bed = Bed::make().await;
        let naive = with_a_wrong_clock(&bed, wrong_by, naive_candidate).await;
        assert_eq!(
            naive,
            if hours < 0 {
                (true, true)
            } else {
                (false, false)
            }
        );
    }
}

/// Lets a user who is nobody so far do these things, under a name of its own.
async fn allow(client: &Client, user: &str, rules: serde_json::Value) -> String {
    let name = format!("{user}-{}", rules.as_array().unwrap().len());
    let role: ClusterRole =
        serde_json::from_value(json!({ "metadata": { "name": name }, "rules": rules })).unwrap();
    let binding: ClusterRoleBinding = serde_json::from_value(json!({
        "metadata": { "name": name },
        "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": name },
        "subjects": [{ "apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": user }],
    }))
    .unwrap();
    let params = PostParams::default();
    Api::all(client.clone())
        .create(&params, &role)
        .await
        .unwrap();
    Api::all(client.clone())
        .create(&params, &binding)
        .await
        .unwrap();
    name
}

/// The rules of the `ClusterRole` and of the `Role` that the chart renders to: what the operator is said to need.
fn documented_rules() -> (serde_json::Value, serde_json::Value) {
    let objects: Vec<serde_json::Value> = include_str!("../../../../deploy/operator.yaml")
        .split("---\n")
        .map(|object| serde_saphyr::from_str(object).unwrap())
        .collect();
    let rules = |kind: &str| {
        let object = objects.iter().find(|object| object["kind"] == kind);
        object.unwrap()["rules"].clone()
    };
    (rules("ClusterRole"), rules("Role"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_may_not_renew_stops_before_another_may_start() {
    let bed = Bed::make().await;
    let user = format!("operator-of-{}", bed.namespace);
    let (rules, lease_rules) = documented_rules();
    allow(&bed.client, &user, rules).await;
    let lease_rights = allow(&bed.client, &user, lease_rules).await;
    let mut config = control_plane().await.config_as(User::Admin).unwrap();
    config.auth_info.impersonate = Some(user);
    let terms = Election {
        times: Times::new(8, 5, 1).unwrap(),
        ..election(&bed.namespace)
    };
    let leader = Replica::start_with(&bed, config, terms, None).await;
    bed.create("web", json!({ "maxAgents": 4 })).await;
    bed.ready("web").await;
    // It has something to write all the time.
    bed.queue(jobs(400, SHORT)).await;
    bed.jobs_when("some jobs are done", |jobs| {
        jobs.iter().filter(|job| job.finished.is_some()).count() > 4
    })
    .await;
    let bindings: Api<ClusterRoleBinding> = Api::all(bed.client.clone());
    bindings
        .delete(&lease_rights, &DeleteParams::default())
        .await
        .unwrap();
    let (identity, times) = (leader.identity().to_owned(), leader.election.times);
    let error = leader.ended().await.unwrap_err();
    assert!(error.is::<Lost>(), "{error:#}");
    let log = crate::replica::all_writes(&bed, &identity).await;
    let renewals = log.iter().filter(|event| event.resource == "leases");
    let (renewed, refused): (Vec<_>, Vec<_>) = renewals.partition(|event| event.code < 300);
    assert!(!refused.is_empty(), "the API server refused to renew it");
    let renewed = renewed.last().unwrap().time;
    let last = writes(&bed, &identity).await.pop().unwrap().time;
    let after = last.duration_since(renewed);
    println!("last write {after:#} after the last renewal");
    assert!(after > SignedDuration::ZERO, "it had something to write");
    let expiry = SignedDuration::try_from(times.duration()).unwrap();
    assert!(after < expiry, "it wrote {after} after the last renewal");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sigterm_hands_over_without_a_wait_for_the_end_of_the_lease() {
    let bed = Bed::make().await;
    let times = [
        "--lease-duration-seconds=20",
        "--lease-renew-deadline-seconds=15",
    ];
    let mut leader = Process::start(&bed, "replica-0", &times).await;
    held_by(&bed, "replica-0").await;
    bed.create("web", json!({ "maxAgents": 5 })).await;
    bed.ready("web").await;
    for round in 1..=3 {
        let name = format!("replica-{round}");
        let standby = Process::start(&bed, &name, &times).await;
        standby.ready().await;
        bed.queue(jobs(20, SHORT)).await;
        let done = |jobs: &[azure_devops_simulator::world::JobView]| {
            jobs.iter().filter(|job| job.finished.is_some()).count() > 20 * (round - 1) + 5
        };
        bed.jobs_when("some are done", done).await;
        let told = Timestamp::now();
        leader.signal("TERM").await;
        held_by(&bed, &name).await;
        let status = leader.ended().await;
        assert!(status.success(), "{status}");
        bed.all_succeed().await;
        let first = writes(&bed, &name).await.remove(0).time;
        let took = first.duration_since(told);
        println!("handover {round}: {took:#} from SIGTERM to the first write of the next");
        assert!(took < SignedDuration::from_secs(10), "it took {took}");
        leader = standby;
    }
    within("the last one stops", async {
        leader.signal("TERM").await;
        assert!(leader.ended().await.success());
    })
    .await;
}
