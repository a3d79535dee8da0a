//! Demands, profiles and RunnerPools that share an agent pool.

use std::time::Duration;

use azure_devops_simulator::world::{AgentSpec, AgentView, JobSpec, JobView, Outcome, PatSpec};
use k8s_openapi::api::{core::v1::Pod, events::v1::Event};
use kube::api::PostParams;
use serde_json::json;

use crate::bed::{Bed, ORGANIZATION, POOL, jobs, names, objects_when};

const SHORT: Duration = Duration::from_millis(500);

fn demanding(count: usize, demands: &[&str]) -> JobSpec {
    JobSpec {
        demands: demands.iter().map(|&demand| demand.to_owned()).collect(),
        ..jobs(count, SHORT)
    }
}

fn label<'a>(pod: &'a Pod, name: &str) -> &'a str {
    &pod.metadata.labels.as_ref().unwrap()[name]
}

fn of_profile<'a>(jobs: &'a [JobView], pods: &[Pod], profile: &str) -> Vec<&'a JobView> {
    let ran_there = |job: &&JobView| {
        let mut pods = pods.iter();
        pods.any(|pod| pod.metadata.name == job.agent && label(pod, "capability") == profile)
    };
    jobs.iter().filter(ran_there).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_profile_is_an_image_with_capabilities_a_template_and_a_maximum() {
    let bed = Bed::start().await;
    let profiles = json!([{
        "name": "gpu",
        "image": "agent:gpu",
        "capabilities": { "gpu": "a100", "cuda": "12.4" },
        "maxAgents": 1,
        "podTemplate": {
            "metadata": { "labels": { "team": "ml" } },
            "spec": { "nodeSelector": { "kubernetes.io/os": "linux" } },
        },
    }]);
    bed.create(
        "web",
        json!({ "profiles": profiles, "terminatedPods": { "keepSucceeded": 10 } }),
    )
    .await;
    bed.ready("web").await;
    let wanted = [
        "CUDA -equals 12.4",
        "gpu",
        "Agent.Version -gtVersion 2.163.1",
    ];
    // Long enough to be seen to wait for each other.
    let long = JobSpec {
        duration: Duration::from_secs(6),
        ..demanding(2, &wanted)
    };
    bed.queue(long).await;
    bed.queue(jobs(1, SHORT)).await;
    let limited = bed
        .condition_when("web", "ScalingLimited", "True", "MaxAgentsReached")
        .await;
    assert_eq!(limited.unserved_jobs, None);
    let ran = bed.all_succeed().await;
    let pods = bed
        .pods_when("each job had a Pod", |pods| pods.len() == 3)
        .await;
    assert_eq!(of_profile(&ran, &pods, "gpu").len(), 2);
    assert_eq!(of_profile(&ran, &pods, "base").len(), 1);
    let pod = pods
        .iter()
        .find(|pod| label(pod, "capability") == "gpu")
        .unwrap();
    assert_eq!(label(pod, "team"), "ml");
    let spec = pod.spec.as_ref().unwrap();
    assert!(spec.node_selector.is_some());
    let env = spec.containers[0].env.as_ref().unwrap();
    let value = |name: &str| {
        let mut named = env.iter().filter(|env| env.name == name);
        named.next().and_then(|env| env.value.clone())
    };
    assert_eq!(value("AZP_CAPABILITY").as_deref(), Some("gpu"));
    assert_eq!(value("cuda").as_deref(), Some("12.4"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_agents_can_do_is_learned_and_survives_the_operator() {
    let mut bed = Bed::start().await;
    bed.create("web", json!({})).await;
    bed.ready("web").await;
    let known_by_agents = "Agent.OSArchitecture -equals x64";
    bed.queue(demanding(1, &[known_by_agents])).await;
    bed.jobs_when("no registered agent meets it yet", |jobs| {
        jobs.iter().any(|job| job.outcome == Outcome::Refused)
    })
    .await;
    bed.run(jobs(1, SHORT)).await;
    bed.agents_when("the placeholder remembers", |agents| {
        let placeholder = agents
            .iter()
            .find(|agent| agent.name == "web-placeholder-base");
        placeholder.is_some_and(|placeholder| {
            let learned = &placeholder.system_capabilities;
            learned
                .get("Agent.OSArchitecture")
                .is_some_and(|value| value == "X64")
                && learned
                    .get("Agent.Version")
                    .is_some_and(|value| value == "99.999.9")
        })
    })
    .await;
    bed.pods_when("no agent is left", <[_]>::is_empty).await;
    bed.kill_operator().await;
    bed.start_operator().await;
    // From zero agents, all at once: nothing has to be found out any more.
    bed.queue(demanding(3, &[known_by_agents])).await;
    bed.pods_when("three agents at once", |pods| pods.len() == 3)
        .await;
    bed.jobs_when("all of them ran", |jobs| {
        let ran = jobs
            .iter()
            .filter(|job| !job.demands.is_empty() && job.agent.is_some());
        ran.count() == 3
    })
    .await;
}

/// Somebody's machine for which Azure DevOps queues jobs that demand `xcode`.
async fn switched_off_machine(bed: &Bed) {
    let machine = AgentSpec {
        name: "mac-mini".to_owned(),
        capabilities: [("xcode", "16"), ("swift", "6")]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into(),
        ..AgentSpec::default()
    };
    bed.control
        .add_agent(ORGANIZATION, POOL, &machine)
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_placeholders_one_agent_finds_out_once() {
    let bed = Bed::start().await;
    switched_off_machine(&bed).await;
    bed.create("web", json!({ "placeholders": "Disabled" }))
        .await;
    bed.condition_when("web", "Connected", "True", "Answered")
        .await;
    bed.queue(demanding(2, &["xcode -equals 16"])).await;
    bed.pods_when("an agent finds out", |pods| pods.len() == 1)
        .await;
    bed.pods_when("it goes", <[_]>::is_empty).await;
    bed.look_again(3).await;
    assert_eq!(names(&bed.pods().await), [""; 0], "what it taught stays");
    bed.condition_when("web", "Degraded", "True", "JobsUnserved")
        .await;
    assert_eq!(bed.agents().await.len(), 1, "the machine only");
    bed.run(jobs(1, SHORT)).await;
    let lost = bed.queue(demanding(1, &["cobol"])).await[0];
    bed.jobs_when("a job that no registered agent meets fails", |jobs| {
        let is_refused = |job: &JobView| job.id == lost && job.outcome == Outcome::Refused;
        jobs.iter().any(is_refused)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_that_nobody_serves_gets_no_agent_and_a_reason() {
    let bed = Bed::start().await;
    switched_off_machine(&bed).await;
    bed.create("web", json!({ "minAgents": 1, "maxAgents": 3 }))
        .await;
    bed.online(1).await;
    let waits = bed.queue(demanding(2, &["xcode -equals 16"])).await[0];
    let status = bed
        .condition_when("web", "Degraded", "True", "JobsUnserved")
        .await;
    let message = status.last_error.unwrap();
    assert!(
        message.contains(&format!(
            "job request {waits} and 1 more, as no profile meets xcode -equals 16"
        )),
        "{message}"
    );
    assert_eq!((status.unserved_jobs, status.queued_jobs), (Some(2), 2));
    bed.queue(demanding(1, &["swift"])).await;
    objects_when(bed.api(), "each reason is told of", |events: &[Event]| {
        let told = |demand: &str| {
            let notes = events
                .iter()
                .filter(|event| event.reason.as_deref() == Some("JobUnserved"));
            let mut notes = notes.filter_map(|event| event.note.as_deref());
            notes.any(|note| note.contains(&format!("gets no agent, as no profile meets {demand}")))
        };
        told("xcode -equals 16") && told("swift")
    })
    .await;
    let before = names(&bed.pods().await);
    bed.queue(jobs(1, SHORT)).await;
    bed.jobs_when("another job is not held back", |jobs| {
        jobs.iter().any(|job| job.agent.is_some())
    })
    .await;
    assert_eq!(names(&bed.pods().await), before, "the warm agent ran it");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_starts_one_agent_in_one_of_several_runner_pools() {
    let bed = Bed::start().await;
    let keep = json!({ "keepSucceeded": 20 });
    for (name, priority) in [("cheap", 1), ("dear", 0)] {
        let fields = json!({ "priority": priority, "maxAgents": 2, "terminatedPods": keep });
        bed.create(name, fields).await;
    }
    bed.ready("cheap").await;
    bed.ready("dear").await;
    bed.queue(jobs(3, Duration::from_secs(2))).await;
    bed.all_succeed().await;
    let pods = bed.pods_when("they ended", |pods| pods.len() == 3).await;
    let of = |pool: &str| {
        let of = pods.iter().filter(|pod| label(pod, "runner-pool") == pool);
        of.count()
    };
    assert_eq!(
        (of("cheap"), of("dear")),
        (2, 1),
        "the one of the higher priority first"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn runner_pools_of_several_namespaces_and_tokens_share_the_jobs_of_an_agent_pool() {
    let mut here = Bed::make().await;
    let there = Bed::make().await;
    // The other namespace's RunnerPool uses this organization, with a token of its own: another reader looks for it.
    let spec = PatSpec {
        name: "there".into(),
        ..PatSpec::default()
    };
    let token = here.control.create_pat(ORGANIZATION, &spec).await.unwrap();
    there.secret("pat-token", &[("token", &token)]).await;
    let namespaces = [here.namespace.clone(), there.namespace.clone()];
    here.start_operator_of(&[&namespaces[0], &namespaces[1]])
        .await;
    let keep = json!({ "keepSucceeded": 20 });
    for (bed, name, priority) in [(&here, "cheap", 1), (&there, "dear", 0)] {
        let fields = json!({ "priority": priority, "maxAgents": 2, "terminatedPods": keep });
        let pool = here.runner_pool(name, fields);
        bed.api()
            .create(&PostParams::default(), &pool)
            .await
            .unwrap();
    }
    here.ready("cheap").await;
    here.ready("dear").await;
    // Longer than both readers need to look, and agents to start.
    here.queue(jobs(3, Duration::from_secs(15))).await;
    here.all_succeed().await;
    here.pods_when("two ended", |pods| pods.len() == 2).await;
    there.pods_when("one ended", |pods| pods.len() == 1).await;
    let requests = here.control.requests(Some(ORGANIZATION)).await.unwrap();
    assert!(
        requests.of("pat:there", "JobRequests.List") > 0,
        "each token has a reader of its own: {requests:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_agent_of_a_stranger_is_supply_for_the_jobs_that_it_can_run() {
    let bed = Bed::start().await;
    bed.create("web", json!({ "maxAgents": 3 })).await;
    bed.ready("web").await;
    // What our own agents can do is known from here on.
    let ours = bed.run(jobs(1, SHORT)).await;
    bed.agents_when("it is learned, and no agent is left", |agents| {
        let learned = |agent: &AgentView| {
            let known = &agent.system_capabilities;
            known.contains_key("Agent.OSArchitecture")
        };
        agents.len() == 1 && learned(&agents[0])
    })
    .await;
    bed.pods_when("no Pod is left", <[_]>::is_empty).await;
    let machine = bed.machine("vm-1", &[("xcode", "/usr/bin/xcodebuild")]);
    bed.online(1).await;
    // What anybody can do is the stranger's while it is idle. What only the stranger can do waits for it. Neither starts an
    // agent of ours.
    let theirs = bed.run(jobs(1, SHORT)).await;
    let long = JobSpec {
        duration: Duration::from_secs(3600),
        ..demanding(2, &["xcode"])
    };
    bed.queue(long).await;
    bed.look_again(3).await;
    assert_eq!(names(&bed.pods().await), [""; 0]);
    // It is busy: what anybody can do gets an agent of ours.
    let other = bed.run(jobs(1, SHORT)).await;
    let by: Vec<_> = [ours, theirs, other].map(|job| job.agent.unwrap()).into();
    assert_eq!(by, ["web-agent-0", "vm-1", "web-agent-0"]);
    assert!(machine.exit_code().is_none(), "it was left alone");
    let agents = bed.agents().await;
    let machine = agents.iter().find(|agent| agent.name == "vm-1").unwrap();
    assert!(machine.enabled && machine.online);
}
