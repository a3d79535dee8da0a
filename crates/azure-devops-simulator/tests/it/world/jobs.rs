//! Matching, assignment, and lists of job requests.

use azure_devops_simulator::{
    JobResult, Outcome, Switches,
    world::{AgentVersion, CapabilityPrecedence, JobRequestOrder, MatchedAgents, Method, Response},
};
use serde_json::json;

use super::{MINUTE, names};
use crate::bench::{Bench, ORGANIZATION, POOL};

#[test]
fn a_job_that_no_registered_agent_meets_fails_at_once() {
    let mut bench = Bench::new();
    let refused = bench.queue(1, &["java", "Agent.Version -gtVersion 2.163.1"])[0];
    let job = bench.job(refused);
    assert_eq!(
        (job.outcome, job.result),
        (Outcome::Refused, Some(JobResult::Failed))
    );
    assert_eq!(
        job.message.unwrap(),
        "No agent found in pool linux which satisfies the specified demands: java, Agent.Version -gtVersion 2.163.1"
    );
    let agent = bench.add_agent("offline-and-disabled", &[("JAVA", "")]);
    bench.call(
        Method::Patch,
        &format!("pools/1/agents/{agent}"),
        Some(&json!({ "enabled": false })),
    );
    let waiting = bench.queue(1, &["java"])[0];
    assert_eq!(bench.outcome(waiting), Outcome::Queued);
    assert_eq!(
        bench.outcome(refused),
        Outcome::Refused,
        "matching happens when the job is queued"
    );
    bench
        .world
        .delete_agent_by_hand(bench.now, ORGANIZATION, POOL, "offline-and-disabled")
        .unwrap();
    assert_eq!(bench.outcome(waiting), Outcome::Queued, "and not again");
}

#[test]
fn only_free_agents_that_meet_the_demands_get_jobs_the_oldest_first() {
    let mut bench = Bench::new();
    let java = bench.add_agent("java", &[("java", "17")]);
    let plain = bench.add_agent("plain", &[]);
    let disabled = bench.add_agent("disabled", &[("java", "17")]);
    bench.call(
        Method::Patch,
        &format!("pools/1/agents/{disabled}"),
        Some(&json!({ "enabled": false })),
    );
    bench.open_session(disabled);
    let plain_session = bench.open_session(plain);
    let wanting_java = bench.queue(2, &["java"]);
    let wanting_nothing = bench.queue(2, &[])[0];
    assert_eq!(bench.job(wanting_nothing).agent.as_deref(), Some("plain"));
    assert_eq!(bench.outcome(wanting_java[0]), Outcome::Queued);
    let java_session = bench.open_session(java);
    assert_eq!(bench.job(wanting_java[0]).agent.as_deref(), Some("java"));
    assert_eq!(bench.outcome(wanting_java[1]), Outcome::Queued);

    let taken = bench.take_job(&java_session);
    assert_eq!(bench.report(&taken, "succeeded", false).status, 200);
    assert_eq!(
        bench.job(wanting_java[1]).agent.as_deref(),
        Some("java"),
        "older than the other waiting one"
    );
    let taken = bench.take_job(&plain_session);
    assert_eq!(
        bench.report(&taken, "Failed", true).status,
        200,
        "results come in either case"
    );
    assert_eq!(bench.outcome(wanting_nothing), Outcome::Failed);
    assert_eq!(
        bench.outcome(wanting_nothing + 1),
        Outcome::Queued,
        "agentShuttingDown stops assignment"
    );
    bench.call(
        Method::Patch,
        &format!("pools/1/agents/{disabled}"),
        Some(&json!({ "enabled": true })),
    );
    assert_eq!(
        bench.job(wanting_nothing + 1).agent.as_deref(),
        Some("disabled")
    );
}

#[test]
fn capabilities_of_user_and_system_count_together() {
    let mut bench = Bench::new();
    let agent = bench.add_agent("agent-1", &[("size", "small")]);
    let path = format!("pools/1/agents/{agent}/usercapabilities");
    bench.call(Method::Put, &path, Some(&json!({ "Size": "LARGE" })));
    let large = bench.queue(1, &["SIZE -equals large"])[0];
    assert_eq!(bench.outcome(large), Outcome::Queued);
    let system = Switches {
        capability_precedence: CapabilityPrecedence::System,
        ..Switches::default()
    };
    bench.world.set_switches(bench.now, system);
    let large = bench.queue(1, &["size -equals large"])[0];
    assert_eq!(bench.outcome(large), Outcome::Refused);
}

#[test]
fn agent_version_comes_from_field_or_capability() {
    for (source, outcome) in [
        (AgentVersion::Field, Outcome::Queued),
        (AgentVersion::Capability, Outcome::Refused),
    ] {
        let mut bench = Bench::with(Switches {
            agent_version: source,
            ..Switches::default()
        });
        bench.add_agent("without-capability", &[]);
        let id = bench.queue(1, &["Agent.Version -gtVersion 4.0.0"])[0];
        assert_eq!(bench.outcome(id), outcome, "{source:?}");
    }
}

#[test]
fn job_request_lists_depend_on_their_parameters() {
    let mut bench = Bench::new();
    let agent = bench.add_agent("agent-1", &[]);
    let session = bench.open_session(agent);
    let ids = bench.queue(40, &[]);
    for _ in 0..30 {
        let job = bench.take_job(&session);
        bench.report(&job, "succeeded", false);
    }
    let count = |bench: &mut Bench, query: &str| {
        bench.get(&format!("pools/1/jobrequests{query}"))["count"].clone()
    };
    assert_eq!(count(&mut bench, "?completedRequestCount=0"), 10);
    assert_eq!(count(&mut bench, "?completedRequestCount=3"), 13);
    assert_eq!(count(&mut bench, ""), 10 + 25);
    assert_eq!(
        count(
            &mut bench,
            &format!("?agentId={agent}&completedRequestCount=0")
        ),
        1
    );
    assert_eq!(count(&mut bench, "?agentIds=77&completedRequestCount=9"), 0);
    let top = bench.call(
        Method::Get,
        "pools/1/jobrequests?$top=15&completedRequestCount=0",
        None,
    );
    assert_eq!(top.json()["count"], 15);
    assert!(
        top.json()["value"][14].get("result").is_some(),
        "$top overrides the filter"
    );
    assert!(top.json()["value"][0].get("matchedAgents").is_none());
    let token = top.header("X-MS-ContinuationToken").unwrap().to_owned();
    let rest = bench.get(&format!(
        "pools/1/jobrequests?$top=99&continuationToken={token}"
    ));
    assert_eq!(rest["count"], 25);
    bench.queue(300, &[]);
    assert_eq!(count(&mut bench, "?$top=250"), 200);
    let order = |bench: &mut Bench, order| {
        bench.world.set_switches(
            bench.now,
            Switches {
                job_request_order: order,
                ..Switches::default()
            },
        );
        names(&bench.get("pools/1/jobrequests"), "requestId")
    };
    let newest = order(&mut bench, JobRequestOrder::NewestFirst);
    let mut oldest = order(&mut bench, JobRequestOrder::OldestFirst);
    let mut mixed = order(&mut bench, JobRequestOrder::Mixed);
    assert!(mixed != newest && mixed != oldest);
    oldest.reverse();
    assert_eq!(newest, oldest);
    mixed.sort_by_key(|id| std::cmp::Reverse(id.parse::<i64>().unwrap()));
    assert_eq!(newest, mixed);
    let one = bench.get(&format!("pools/1/jobrequests/{}", ids[0]));
    assert_eq!(
        (&one["result"], &one["reservedAgent"]["name"]),
        (&json!("succeeded"), &json!("agent-1"))
    );
}

#[test]
fn matched_agents_are_recomputed_or_frozen() {
    for (switch, shown) in [(MatchedAgents::Recomputed, 2), (MatchedAgents::Frozen, 1)] {
        let mut bench = Bench::with(Switches {
            matched_agents: switch,
            ..Switches::default()
        });
        bench.add_agent("first", &[]);
        bench.queue(1, &[]);
        bench.add_agent("second", &[]);
        let requests = bench.get("pools/1/jobrequests?completedRequestCount=0");
        assert_eq!(
            requests["value"][0]["matchedAgents"]
                .as_array()
                .unwrap()
                .len(),
            shown,
            "{switch:?}"
        );
    }
}

#[test]
fn users_cancel_jobs_at_once_where_no_agent_has_them() {
    let mut bench = Bench::new();
    let agent = bench.add_agent("agent-1", &[]);
    let session = bench.open_session(agent);
    let ids = bench.queue(2, &[]);
    for &id in ids.iter().rev() {
        bench.world.cancel_job(bench.now, ORGANIZATION, id).unwrap();
        assert_eq!(bench.outcome(id), Outcome::Canceled);
        assert!(bench.world.cancel_job(bench.now, ORGANIZATION, id).is_err());
    }
    bench.held(&session);
}

#[test]
fn ten_thousand_jobs_and_a_thousand_agents_are_matched_quickly() {
    let mut bench = Bench::new();
    let agents: Vec<i64> = (0..1_000)
        .map(|index| {
            bench.add_agent(
                &format!("agent-{index}"),
                &[("java", "17"), ("slot", &index.to_string())],
            )
        })
        .collect();
    let begin = std::time::Instant::now();
    let sessions: Vec<String> = agents
        .iter()
        .map(|&agent| bench.open_session(agent))
        .collect();
    for index in 0..100 {
        bench.queue(99, &["java"]);
        bench.queue(1, &[&format!("slot -equals {index}")]);
    }
    let mut done = 0;
    while done < 10_000 {
        for session in &sessions {
            if let Response::Reply(reply) = bench.poll(session, 0)
                && reply.status == 200
            {
                let job = bench.take_job(session);
                bench.report(&job, "succeeded", false);
                done += 1;
            }
        }
    }
    // Unoptimised, next to other work, on slow machines; a product of jobs and agents at each
    // event takes minutes.
    assert!(begin.elapsed() < MINUTE, "took {:?}", begin.elapsed());
    let jobs = bench.world.jobs(ORGANIZATION, POOL).unwrap();
    assert!(jobs.iter().all(|job| job.outcome == Outcome::Succeeded));
}
