//! Pods that do not start, that are refused, or that are ended from outside, and what becomes of their jobs.

use std::time::Duration;

use azure_devops_simulator::world::{Fault, FaultKind, JobSpec, JobView, Outcome};
use hollow_node::{Rule, What};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::{
    api::{
        core::v1::{Namespace, Pod},
        events::v1::Event,
    },
    apimachinery::pkg::apis::meta::v1::Time,
};
use kube::{
    Api, ResourceExt as _,
    api::{DeleteParams, Patch, PatchParams, PostParams},
};
use serde_json::json;

use crate::bed::{Bed, ORGANIZATION, agent_names, jobs, long_job, names, objects_when};

const SHORT: Duration = Duration::from_millis(200);
pub(crate) const GIVEN_UP: &str = "devops.opentools.mf/GivenUp";

/// Moves a condition of a Pod into the past, as if it had lasted for so long.
pub(crate) async fn age(bed: &Bed, pod: &str, type_: &str, seconds: i64) {
    let since = Time(Timestamp::now() - SignedDuration::from_secs(seconds));
    let status = json!({ "conditions": [{ "type": type_, "lastTransitionTime": since }] });
    let patch = Patch::Strategic(json!({ "status": status }));
    let pods: Api<Pod> = bed.api();
    let params = PatchParams::default();
    pods.patch_status(pod, &params, &patch).await.unwrap();
}

pub(crate) fn has_condition(pod: &Pod, type_: &str) -> bool {
    let status = pod.status.as_ref();
    let conditions = status.and_then(|status| status.conditions.as_ref());
    conditions.is_some_and(|conditions| conditions.iter().any(|condition| condition.type_ == type_))
}

fn waits_for(pod: &Pod, reason: &str) -> bool {
    let status = pod.status.as_ref();
    let mut containers = status
        .iter()
        .flat_map(|status| status.container_statuses.iter().flatten());
    containers.any(|container| {
        let waiting = container
            .state
            .as_ref()
            .and_then(|state| state.waiting.as_ref());
        waiting.and_then(|waiting| waiting.reason.as_deref()) == Some(reason)
    })
}

fn phase(pod: &Pod) -> &str {
    let status = pod.status.as_ref();
    status
        .and_then(|status| status.phase.as_deref())
        .unwrap_or_default()
}

fn attempt(pod: &Pod) -> Option<&str> {
    pod.annotations()
        .get("devops.opentools.mf/attempt")
        .map(String::as_str)
}

fn demanding(demand: &str, count: usize) -> JobSpec {
    JobSpec {
        demands: vec![demand.to_owned()],
        ..jobs(count, SHORT)
    }
}

fn succeeded(jobs: &[JobView], ids: &[i64]) -> bool {
    let done = |id: &i64| {
        let mut jobs = jobs.iter();
        jobs.any(|job| job.id == *id && job.outcome == Outcome::Succeeded)
    };
    ids.iter().all(done)
}

impl Bed {
    pub(crate) async fn events_when(
        &self,
        what: &str,
        wanted: impl Fn(&[Event]) -> bool,
    ) -> Vec<Event> {
        objects_when(self.api(), what, wanted).await
    }

    /// The condition `Degraded` is true for this reason and its message says this. What an earlier pass said may stand there
    /// until the next one.
    async fn degraded(&self, reason: &str, said: &[&str]) {
        self.status_when("web", &format!("Degraded for {reason}: {said:?}"), |seen| {
            let mut conditions = seen.conditions.iter();
            let degraded = conditions.find(|condition| condition.type_ == "Degraded");
            degraded.is_some_and(|degraded| {
                (degraded.status.as_str(), degraded.reason.as_str()) == ("True", reason)
                    && said.iter().all(|said| degraded.message.contains(said))
            })
        })
        .await;
    }

    /// The name of a Pod that waits for this reason, as soon as there is one.
    pub(crate) async fn waiting(&self, reason: &str) -> String {
        let waits = |pod: &Pod| phase(pod) == "Pending" && waits_for(pod, reason);
        let pods = self.pods_when(reason, |pods| pods.iter().any(waits)).await;
        pods.into_iter().find(waits).unwrap().name_any()
    }
}

pub(crate) fn notes<'a>(events: &'a [Event], reason: &'a str) -> impl Iterator<Item = &'a str> {
    let wanted = move |event: &&Event| event.reason.as_deref() == Some(reason);
    events
        .iter()
        .filter(wanted)
        .filter_map(|event| event.note.as_deref())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_whose_secret_lacks_a_key_is_given_up_and_made_again_when_the_key_is_there() {
    let bed = Bed::start().await;
    bed.secret("late", &[("other", "value")]).await;
    let env = json!([{ "name": "KEY", "valueFrom": { "secretKeyRef": { "name": "late", "key": "key" } } }]);
    bed.create("web", json!({ "extraEnv": env, "maxAgents": 1 }))
        .await;
    bed.ready("web").await;
    bed.queue(jobs(1, SHORT)).await;
    let first = bed.waiting("CreateContainerConfigError").await;
    let cause = "CreateContainerConfigError";
    bed.degraded("PodFailing", &[&first, cause, "late"]).await;
    age(&bed, &first, "PodScheduled", 120).await;
    let pods = bed
        .pods_when("it is given up", |pods| {
            pods.iter().any(|pod| has_condition(pod, GIVEN_UP))
        })
        .await;
    assert_eq!(
        (names(&pods), phase(&pods[0])),
        (vec![first.clone()], "Failed")
    );
    bed.events_when("an event tells of it", |events| {
        notes(events, "AgentGivenUp").next().is_some()
    })
    .await;
    bed.degraded("PodFailing", &[&format!("did not start: {cause}")])
        .await;
    bed.secret("late", &[("key", "value")]).await;
    age(&bed, &first, GIVEN_UP, 35).await;
    bed.pods_when("another is made in its place", |pods| {
        pods.iter().any(|pod| attempt(pod) == Some("1"))
    })
    .await;
    bed.all_succeed().await;
    bed.condition_when("web", "Degraded", "False", "AsExpected")
        .await;
    bed.pods_when("nothing is left", <[_]>::is_empty).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broken_image_leaves_its_place_to_jobs_of_other_images() {
    let bed = Bed::start().await;
    let broken = bed
        .node
        .inject(Rule::new(What::ImagePullBackOff).labelled("capability", "java"));
    let images = json!({ "java": "agent:java" });
    let fields = json!({ "capabilityAware": true, "capabilityImages": images, "maxAgents": 1 });
    bed.create("web", fields).await;
    bed.agents_when("the placeholders are there", |agents| agents.len() == 2)
        .await;
    let java = bed.queue(demanding("java", 3)).await;
    let first = bed.waiting("ImagePullBackOff").await;
    let base = bed.queue(jobs(1, SHORT)).await;
    age(&bed, &first, "PodScheduled", 120).await;
    // The other jobs for java are older, so one of them is tried next; after that, all of them wait.
    let pods = bed
        .pods_when("the next attempt", |pods| {
            pods.iter().any(|pod| attempt(pod) == Some("1"))
        })
        .await;
    let second = pods
        .iter()
        .find(|pod| attempt(pod) == Some("1"))
        .unwrap()
        .name_any();
    bed.pods_when("it waits as well", |pods| {
        let mut pods = pods.iter();
        pods.any(|pod| pod.name_any() == second && waits_for(pod, "ImagePullBackOff"))
    })
    .await;
    age(&bed, &second, "PodScheduled", 120).await;
    let seen = bed
        .jobs_when("the other job has run", |jobs| succeeded(jobs, &base))
        .await;
    let wait = |job: &&JobView| java.contains(&job.id) && job.outcome == Outcome::Queued;
    assert_eq!(seen.iter().filter(wait).count(), 3, "{seen:#?}");
    bed.node.retract(broken);
    bed.api::<Pod>()
        .delete(&second, &DeleteParams::default())
        .await
        .unwrap();
    bed.all_succeed().await;
    bed.condition_when("web", "Degraded", "False", "AsExpected")
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_without_a_node_keeps_its_turn_until_a_job_of_another_image_needs_its_place() {
    let bed = Bed::start().await;
    bed.node
        .inject(Rule::new(What::HangPending).labelled("capability", "java"));
    let images = json!({ "java": "agent:java" });
    let fields = json!({ "capabilityAware": true, "capabilityImages": images, "maxAgents": 1 });
    bed.create("web", fields).await;
    bed.agents_when("the placeholders are there", |agents| agents.len() == 2)
        .await;
    bed.queue(demanding("java", 2)).await;
    let hangs = |pod: &Pod| has_condition(pod, "PodScheduled");
    let pods = bed
        .pods_when("a Pod that no node takes", |pods| pods.iter().any(hangs))
        .await;
    age(&bed, &pods[0].name_any(), "PodScheduled", 1200).await;
    bed.degraded("Unschedulable", &["Insufficient cpu"]).await;
    let lists = || async {
        let counts = bed.control.requests(Some(ORGANIZATION)).await.unwrap();
        counts.of("pat:default", "JobRequests.List")
    };
    let before = lists().await;
    crate::bed::within("two more looks", async {
        while lists().await < before + 3 {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    })
    .await;
    let still = bed.pods().await;
    assert_eq!(
        (still.len(), still[0].uid()),
        (1, pods[0].uid()),
        "it is the same Pod"
    );
    let base = bed.queue(jobs(1, SHORT)).await;
    let second = |pod: &Pod| attempt(pod) == Some("1") && has_condition(pod, "PodScheduled");
    let pods = bed
        .pods_when("the older job is tried", |pods| pods.iter().any(second))
        .await;
    let second = pods.into_iter().find(second).unwrap().name_any();
    age(&bed, &second, "PodScheduled", 1200).await;
    bed.jobs_when("the other job has run", |jobs| succeeded(jobs, &base))
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_pod_makes_jobs_wait_until_it_is_let_in() {
    let bed = Bed::make().await;
    let namespaces: Api<Namespace> = Api::all(bed.client.clone());
    let label = |level: Option<&str>| {
        Patch::Merge(
            json!({ "metadata": { "labels": { "pod-security.kubernetes.io/enforce": level } } }),
        )
    };
    let params = PatchParams::default();
    namespaces
        .patch(&bed.namespace, &params, &label(Some("restricted")))
        .await
        .unwrap();
    let mut bed = bed;
    bed.start_operator().await;
    bed.create("web", json!({})).await;
    bed.ready("web").await;
    let job = bed.queue(jobs(1, SHORT)).await;
    bed.degraded("PodRefused", &["PodSecurity"]).await;
    assert_eq!(bed.jobs().await[0].outcome, Outcome::Queued);
    bed.events_when("an event tells of it", |events| {
        notes(events, "PodRefused").next().is_some()
    })
    .await;
    namespaces
        .patch(&bed.namespace, &params, &label(None))
        .await
        .unwrap();
    bed.jobs_when("the job has run", |jobs| succeeded(jobs, &job))
        .await;
    bed.condition_when("web", "Degraded", "False", "AsExpected")
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_job_that_is_lost_with_its_pod_is_told_once_with_the_reason() {
    let bed = Bed::start().await;
    let mut switches = bed.control.switches().await.unwrap();
    switches.lock = Duration::from_secs(90);
    bed.control.set_switches(&switches).await.unwrap();
    bed.create("web", json!({ "maxAgents": 5 })).await;
    bed.ready("web").await;
    bed.queue(JobSpec {
        count: 4,
        ..long_job()
    })
    .await;
    let running = bed
        .jobs_when("four jobs run", |jobs| {
            jobs.iter()
                .filter(|job| job.outcome == Outcome::Running)
                .count()
                == 4
        })
        .await;
    bed.status_when("web", "four busy agents", |status| {
        status
            .agents
            .iter()
            .filter(|agent| agent.status == "Busy")
            .count()
            == 4
    })
    .await;
    let of = |index: usize| {
        let name = format!("web-agent-{index}");
        let mut jobs = running.iter();
        jobs.find(|job| job.agent.as_ref() == Some(&name))
            .unwrap()
            .id
    };
    assert!(bed.node.evict(&bed.namespace, "web-agent-0"));
    assert!(bed.node.kill_for_memory(&bed.namespace, "web-agent-1"));
    assert!(bed.node.vanish(&bed.namespace, "web-agent-2"));
    let force = DeleteParams::default().grace_period(0);
    bed.api::<Pod>()
        .delete("web-agent-3", &force)
        .await
        .unwrap();
    let told = |events: &[Event], index: usize, reason: &str| {
        let lost = format!("Job request {} was lost", of(index));
        let mut notes = notes(events, "JobLost");
        notes.any(|note| note.starts_with(&lost) && note.contains(reason))
    };
    // Of a Pod that goes at once, the operator may or may not see that it is going.
    let went = |events: &[Event], index| {
        told(events, index, "the Pod is gone") || told(events, index, "somebody deleted the Pod")
    };
    bed.events_when("each is told of", |events| {
        told(events, 0, "low on resource: ephemeral-storage")
            && told(events, 1, "OOMKilled")
            && went(events, 2)
            && went(events, 3)
    })
    .await;
    // Nothing waits for what is lost: the next job has an agent under a name that is free.
    let next = bed.queue(jobs(1, SHORT)).await;
    let seen = bed
        .jobs_when("another job runs", |jobs| succeeded(jobs, &next))
        .await;
    let agent = seen
        .iter()
        .find(|job| job.id == next[0])
        .unwrap()
        .agent
        .clone();
    // An agent that is deleted by force has two seconds, in which it may give up its job and its name.
    let free = ["web-agent-3", "web-agent-4"];
    assert!(
        agent.as_deref().is_some_and(|agent| free.contains(&agent)),
        "{agent:?}"
    );
    bed.jobs_when("Azure DevOps gives them up", |jobs| {
        jobs.iter().all(|job| job.finished.is_some())
    })
    .await;
    bed.agents_when("their registrations go", |agents| {
        agent_names(agents).is_empty()
    })
    .await;
    bed.pods_when("and their Pods", <[_]>::is_empty).await;
    let events = bed.events_when("the events", |_| true).await;
    let lost: Vec<_> = events
        .iter()
        .filter(|event| event.reason.as_deref() == Some("JobLost"))
        .collect();
    assert_eq!(lost.len(), 4, "{lost:#?}");
    assert!(
        lost.iter().all(|event| event.series.is_none()),
        "each once: {lost:#?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_on_a_lost_node_keeps_its_own_place_and_no_other() {
    let bed = Bed::start().await;
    let mut switches = bed.control.switches().await.unwrap();
    switches.long_poll = Duration::from_secs(2);
    switches.offline_after = Duration::from_secs(6);
    switches.session_expiry = Duration::from_secs(6);
    switches.lock = Duration::from_secs(60);
    bed.control.set_switches(&switches).await.unwrap();
    bed.create("web", json!({ "maxAgents": 2 })).await;
    bed.ready("web").await;
    let lost = bed.run(long_job()).await;
    bed.node.lose().await.unwrap();
    bed.degraded("PodStuck", &["web-agent-0 (its node does not answer)"])
        .await;
    let note = format!("Job request {} was lost", lost.id);
    bed.events_when("the job is lost", |events| {
        let mut notes = notes(events, "JobLost");
        notes.any(|told| told.starts_with(&note) && told.contains("node does not answer"))
    })
    .await;
    let next = bed.queue(jobs(2, SHORT)).await;
    bed.pods_when("a Pod beside it", |pods| pods.len() == 2)
        .await;
    bed.condition_when("web", "ScalingLimited", "True", "MaxAgentsReached")
        .await;
    bed.node.recover().await.unwrap();
    bed.jobs_when("the others run", |jobs| succeeded(jobs, &next))
        .await;
    bed.agents_when("no registration is left", |agents| {
        agent_names(agents).is_empty()
    })
    .await;
    bed.pods_when("no Pod is left", <[_]>::is_empty).await;
}

/// Whether an agent met a live session of its name.
async fn conflicts(bed: &Bed) -> usize {
    let log = bed.control.request_log().await.unwrap();
    let sessions = log
        .iter()
        .filter(|entry| entry.operation == "Sessions.Create");
    sessions.filter(|entry| entry.status == 409).count()
}

/// A Pod as that of another agent, under a name of our choice and of nobody's.
fn namesake(of: &Pod, name: &str) -> Pod {
    let mut pod = of.clone();
    let labels = pod.metadata.labels.take();
    pod.metadata = kube::api::ObjectMeta {
        name: Some(format!("copy-of-{name}")),
        labels,
        ..Default::default()
    };
    pod.status = None;
    let spec = pod.spec.as_mut().unwrap();
    spec.node_name = None;
    let env = spec.containers[0].env.iter_mut().flatten();
    for env in env.filter(|env| env.name == "AZP_AGENT_NAME") {
        env.value = Some(name.to_owned());
    }
    pod
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_agent_never_meets_a_live_session_of_an_old_one() {
    let bed = Bed::start().await;
    bed.create("web", json!({ "minAgents": 1 })).await;
    bed.online(1).await;
    bed.status_when("web", "a look shows it", |status| {
        status.running_agents == 1
    })
    .await;
    let fault = Fault::new(FaultKind::DroppedConnection).on("JobRequests.List");
    bed.control.add_fault(&fault).await.unwrap();
    bed.condition_when("web", "Connected", "False", "Unreachable")
        .await;
    // While nobody can look, an agent of the minimum is made, comes online, and its Pod vanishes: no look ever shows it.
    assert!(bed.node.vanish(&bed.namespace, "web-agent-0"));
    bed.pods_when("the second", |pods| names(pods) == ["web-agent-1"])
        .await;
    bed.online(2).await;
    assert!(bed.node.vanish(&bed.namespace, "web-agent-1"));
    let pods = bed
        .pods_when("the third", |pods| names(pods) == ["web-agent-2"])
        .await;
    bed.online(3).await;
    assert_eq!(conflicts(&bed).await, 0);
    // The control: an agent of a name whose session is alive does meet it.
    let pods_api: Api<Pod> = bed.api();
    let copy = namesake(&pods[0], "web-agent-1");
    pods_api
        .create(&PostParams::default(), &copy)
        .await
        .unwrap();
    bed.pods_when("it gives up", |pods| {
        pods.iter().any(|pod| phase(pod) == "Failed")
    })
    .await;
    assert!(conflicts(&bed).await > 0);
    bed.control.clear_faults().await.unwrap();
    bed.agents_when("what is left of the old ones goes", |agents| {
        agent_names(agents) == ["web-agent-2"]
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_that_was_given_up_while_nobody_looked_is_told_of() {
    let mut bed = Bed::start().await;
    let mut switches = bed.control.switches().await.unwrap();
    switches.lock = Duration::from_secs(20);
    bed.control.set_switches(&switches).await.unwrap();
    bed.create("web", json!({ "maxAgents": 1 })).await;
    bed.ready("web").await;
    let lost = bed.run(long_job()).await;
    bed.kill_operator().await;
    assert!(bed.node.kill_for_memory(&bed.namespace, "web-agent-0"));
    bed.jobs_when("Azure DevOps gives it up", |jobs| {
        jobs[0].outcome == Outcome::Killed
    })
    .await;
    bed.start_operator().await;
    let lost = format!("Job request {} was lost", lost.id);
    bed.events_when("it is told of", |events| {
        notes(events, "JobLost").any(|note| note.starts_with(&lost) && note.contains("OOMKilled"))
    })
    .await;
    bed.pods_when("nothing is left", <[_]>::is_empty).await;
    bed.events_when("an event tells how the Pod ended", |events| {
        let ended = "web-agent-0: its Pod has ended (exit code 137, OOMKilled)";
        notes(events, "AgentRemoved").any(|note| note.ends_with(ended))
    })
    .await;
}
