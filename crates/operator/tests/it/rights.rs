//! The rights that the chart gives: enough for what the operator does, and none that it does not use.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use azure_devops_simulator::world::Outcome;
use control_plane::AuditEvent;
use k8s_openapi::api::core::v1::Pod;
use kube::{ResourceExt as _, api::DeleteParams, core::DynamicObject};
use operator::webhook::certificate::Lifetimes;
use serde_json::{Value, json};

use crate::{
    bed::{Bed, chart, control_plane, jobs, long_job},
    storage::claim_of_the_former_operator,
    stuck::{GIVEN_UP, age, has_condition},
    webhooks::Service,
};

/// API group, resource with subresource, and verb.
type Right = (String, String, String);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_chart_gives_the_rights_that_are_used_and_no_others() {
    let mut bed = Bed::make().await;
    let namespaces = json!({ "watchNamespaces": [bed.namespace] });
    let release = chart("rights", &bed.namespace, namespaces).await;
    let account = control_plane().await.grant(&release).await.unwrap();
    let service = Service::of(&bed, &release, Lifetimes::default(), "Ignore").await;
    bed.webhooks = Some(service.endpoint().await);
    bed.start_operator_as(&account, &[&bed.namespace.clone()])
        .await;
    from_nothing_to_jobs_and_back(&bed).await;
    bed.stop_operator().await;

    let log = control_plane().await.audit_log().unwrap();
    let ours = log.iter().filter(|event| event.user == account.user());
    let requests: Vec<&AuditEvent> = ours.collect();
    let refused: Vec<_> = requests
        .iter()
        .filter(|request| matches!(request.code, 401 | 403))
        .collect();
    assert!(refused.is_empty(), "refused: {refused:#?}");

    let mut used: BTreeMap<Right, usize> = BTreeMap::new();
    for request in requests {
        // A watch that goes on has been answered as well.
        if request.verb != "watch" || request.stage == "ResponseStarted" {
            *used.entry(right(request)).or_default() += 1;
        }
    }
    let granted = granted(&release);
    let table = granted.iter().map(|right| {
        let times = used.get(right).copied().unwrap_or_default();
        let (group, resource, verb) = right;
        format!("{times:>6}  {verb:<7} {resource:<24} {group}")
    });
    let table: Vec<String> = table.collect();
    eprintln!("requests by right:\n{}", table.join("\n"));
    let unused = granted.iter().filter(|right| !used.contains_key(*right));
    let unused: Vec<&Right> = unused.filter(|right| !is_for_trouble(right)).collect();
    assert!(unused.is_empty(), "granted and never used: {unused:#?}");
}

/// What makes the operator do everything that it does: a claim of the former operator; a Pod that does not start and is
/// given up; agents for jobs, with claims of both kinds; a Pod that is lost; the end.
async fn from_nothing_to_jobs_and_back(bed: &Bed) {
    let pvcs = json!([
        { "name": "kept", "mountPath": "/kept", "storage": "1Gi" },
        { "name": "work", "mountPath": "/work", "storage": "1Gi", "deleteWithAgent": true },
    ]);
    let env = json!([{ "name": "KEY", "valueFrom": { "secretKeyRef": { "name": "late", "key": "key" } } }]);
    bed.secret("late", &[("other", "value")]).await;
    bed.create("web", json!({ "pvcs": pvcs, "extraEnv": env }))
        .await;
    bed.ready("web").await;
    claim_of_the_former_operator(bed, "web", "kept").await;
    bed.claims_when("its owner is taken away", |claims| {
        claims.len() == 1 && claims[0].owner_references().is_empty()
    })
    .await;
    bed.queue(jobs(1, Duration::from_millis(200))).await;
    let first = bed.waiting("CreateContainerConfigError").await;
    age(bed, &first, "PodScheduled", 120).await;
    bed.pods_when("the Pod is given up", |pods| {
        pods.iter().any(|pod| has_condition(pod, GIVEN_UP))
    })
    .await;
    bed.secret("late", &[("key", "value")]).await;
    age(bed, &first, GIVEN_UP, 35).await;
    bed.all_succeed().await;
    for _ in 0..2 {
        bed.queue(jobs(1, Duration::from_millis(200))).await;
        bed.all_succeed().await;
        bed.pods_when("the Pod is gone", <[_]>::is_empty).await;
        // Of each index that was used: a name is not given again before a later look.
        bed.claims_when("only kept claims are left", |claims| {
            let mut claims = claims.iter();
            claims.all(|claim| claim.name_any().ends_with("-kept"))
        })
        .await;
    }
    // Azure DevOps is to give the next job up soon, if its agent cannot tell of its end.
    let mut switches = bed.control.switches().await.unwrap();
    switches.lock = Duration::from_secs(20);
    bed.control.set_switches(&switches).await.unwrap();
    let job = bed.run(long_job()).await;
    let lost = job.agent.unwrap();
    let now = DeleteParams::default().grace_period(0);
    bed.api::<Pod>().delete(&lost, &now).await.unwrap();
    bed.jobs_when("its job is given up", |jobs| {
        jobs.iter()
            .any(|seen| seen.id == job.id && seen.outcome != Outcome::Running)
    })
    .await;
    bed.agents_when("only the placeholder is registered", |agents| {
        agents.len() == 1
    })
    .await;
    bed.delete("web").await;
    bed.gone("web").await;
}

/// Whether the right is for what does not happen here.
fn is_for_trouble((group, resource, verb): &Right) -> bool {
    // The Lease is read after a write of it that was refused or got no answer, and by whoever has not seen it for long.
    (group.as_str(), resource.as_str(), verb.as_str()) == ("coordination.k8s.io", "leases", "get")
}

fn right(request: &AuditEvent) -> Right {
    let resource = [&request.resource, &request.subresource]
        .map(String::as_str)
        .join("/");
    (
        request.group.clone(),
        resource.trim_end_matches('/').to_owned(),
        request.verb.clone(),
    )
}

/// Every right in the rules of a release.
fn granted(release: &[DynamicObject]) -> BTreeSet<Right> {
    let rules = release
        .iter()
        .filter_map(|object| object.data.get("rules")?.as_array());
    let texts = |rule: &Value, key: &str| -> Vec<String> {
        serde_json::from_value(rule[key].clone()).unwrap_or_else(|_| panic!("{key} of {rule}"))
    };
    let mut rights = BTreeSet::new();
    for rule in rules.flatten() {
        for group in texts(rule, "apiGroups") {
            for resource in texts(rule, "resources") {
                for verb in texts(rule, "verbs") {
                    rights.insert((group.clone(), resource.clone(), verb));
                }
            }
        }
    }
    assert!(rights.len() > 10, "{rights:?}");
    rights
}
