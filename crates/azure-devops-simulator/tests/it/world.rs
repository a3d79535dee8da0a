//! The rules of the world at virtual times: the simulator checklist of the protocol page.

use std::time::Duration;

use azure_devops_simulator::{
    JobResult, JobSpec, Outcome, PatSpec, RateLimit, Scope, Settings, Switches, World,
    world::{
        AgentVersion, CapabilityPrecedence, ExpiredLockResult, JobRequestOrder, MatchedAgents,
        Method, Request, Response,
    },
};
use serde_json::{Value, json};

use crate::bench::{Bench, ORGANIZATION, PAT, POOL, populate, request};

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_mins(1);

fn names(list: &Value, field: &str) -> Vec<String> {
    let items = list["value"].as_array().unwrap();
    items
        .iter()
        .map(|item| {
            item[field]
                .as_str()
                .map_or_else(|| item[field].to_string(), str::to_owned)
        })
        .collect()
}

#[test]
fn discovery_answers_all_three_client_families_without_a_credential() {
    let mut bench = Bench::new();
    let ask = |bench: &mut Bench, method, target: &str| {
        bench
            .ask(&Request::new(method, "http://simulator", target))
            .reply()
            .unwrap()
    };
    for base in ["/acme", "/ACME", "/tfs/acme", ""] {
        let data = ask(
            &mut bench,
            Method::Get,
            &format!("{base}/_apis/connectionData?connectOptions=1"),
        );
        assert_eq!(data.status, 200, "{base}");
        let data = data.json();
        let definitions = data["locationServiceData"]["serviceDefinitions"]
            .as_array()
            .unwrap();
        let agents = definitions
            .iter()
            .find(|d| d["displayName"] == "agents")
            .unwrap();
        assert_eq!(
            agents["relativePath"],
            "/_apis/distributedtask/pools/{poolId}/agents/{agentId}"
        );
        assert!(agents["resourceVersion"].as_i64().unwrap() > 0);
        let all = ask(&mut bench, Method::Options, &format!("{base}/_apis")).json();
        let area = ask(
            &mut bench,
            Method::Options,
            &format!("{base}/_apis/distributedtask"),
        )
        .json();
        assert!(all["count"].as_i64() > area["count"].as_i64());
        assert!(names(&area, "resourceName").contains(&"jobrequests".to_owned()));
        let areas = ask(
            &mut bench,
            Method::Get,
            &format!("{base}/_apis/resourceAreas"),
        );
        assert_eq!(areas.json(), json!({ "count": 0, "value": [] }));
    }
    assert_eq!(
        ask(&mut bench, Method::Get, "/nobody/_apis/connectionData").status,
        404
    );
}

#[test]
fn replies_have_the_shape_of_the_service() {
    let mut bench = Bench::new();
    bench.pass(Duration::from_nanos(120_456_700));
    let agent = bench.add_agent("agent-1", &[("java", "17")]);
    let reply = bench.call(Method::Get, "pools/1/agents", None);
    for header in [
        "ActivityId",
        "X-VSS-E2EID",
        "X-TFS-Session",
        "X-TFS-ProcessId",
    ] {
        assert!(reply.header(header).is_some(), "{header} is missing");
    }
    let list = reply.json();
    assert_eq!(list["count"], 1);
    let shown = &list["value"][0];
    assert_eq!(shown["createdOn"], "2026-01-01T00:00:00.1204567Z");
    assert_eq!(shown["status"], "offline");
    assert_eq!(shown["id"], agent);
    for absent in [
        "systemCapabilities",
        "userCapabilities",
        "assignedRequest",
        "osDescription",
    ] {
        assert!(
            shown.get(absent).is_none(),
            "{absent} shows without being asked for"
        );
    }
    let full = bench.get(&format!("pools/1/agents/{agent}?includeCapabilities=TRUE"));
    assert_eq!(full["systemCapabilities"], json!({ "java": "17" }));
    bench.pass(Duration::from_nanos(79_543_300));
    assert_eq!(bench.queue(1, &["java"]), [1]);
    let requests = bench.get("pools/1/jobrequests");
    assert_eq!(requests["value"][0]["queueTime"], "2026-01-01T00:00:00.2Z");
    assert_eq!(requests["value"][0]["matchedAgents"][0]["name"], "agent-1");
    assert!(requests["value"][0].get("result").is_none());
}

#[test]
fn unknown_pool_names_give_an_empty_list_and_unknown_ids_an_error() {
    let mut bench = Bench::new();
    bench
        .world
        .create_pool(bench.now, ORGANIZATION, "other pool")
        .unwrap();
    assert_eq!(
        names(&bench.get("pools?poolName=OTHER%20pool"), "id"),
        ["2"]
    );
    assert_eq!(
        names(
            &bench.get("pools?poolname=other+pool&poolType=Automation"),
            "id"
        ),
        ["2"]
    );
    assert_eq!(names(&bench.get("pools?poolIds=1,3"), "name"), [POOL]);
    assert_eq!(bench.get("pools?poolName=none")["count"], 0);
    let error = bench.call(Method::Get, "pools/3", None);
    assert_eq!(
        (error.status, &error.json()["typeKey"]),
        (404, &json!("TaskAgentPoolNotFoundException"))
    );
    assert_eq!(
        error.json()["message"],
        "No agent pool found with identifier 3."
    );
    assert!(
        error
            .header("X-TFS-ServiceError")
            .unwrap()
            .starts_with("No%20agent%20pool")
    );
    let error = bench.call(Method::Get, "pools/1/agents/2884", None);
    assert_eq!(
        error.json()["message"],
        "No agent found for pool 1 with identifier 2884."
    );
    assert_eq!(error.json()["typeKey"], "TaskAgentNotFoundException");
}

#[test]
fn credentials_decide_what_a_caller_sees() {
    let mut bench = Bench::new();
    let ask = |bench: &mut Bench, method, pat: Option<&str>, suppress: bool| {
        let path = if method == Method::Put {
            "pools/1/agents/1"
        } else {
            "pools/1/agents"
        };
        let mut asked = request(method, path).with_json(&json!({ "name": "new" }));
        if let Some(pat) = pat {
            asked = asked.with_pat(pat);
        }
        if suppress {
            asked = asked.with_header("X-TFS-FedAuthRedirect", "Suppress");
        }
        bench.ask(&asked).reply().unwrap()
    };
    let anonymous = ask(&mut bench, Method::Get, None, false);
    assert_eq!(anonymous.status, 401);
    let challenges = anonymous
        .headers
        .iter()
        .filter(|(name, _)| *name == "WWW-Authenticate");
    assert_eq!(challenges.count(), 3);
    let page = ask(&mut bench, Method::Get, Some("wrong"), false);
    assert_eq!(
        (page.status, page.header("Content-Type")),
        (203, Some("text/html; charset=utf-8"))
    );
    assert_eq!(
        ask(&mut bench, Method::Post, Some("wrong"), false).status,
        203
    );
    assert_eq!(
        ask(&mut bench, Method::Get, Some("wrong"), true).status,
        401
    );
    assert_eq!(
        ask(&mut bench, Method::Put, Some("wrong"), false).status,
        401
    );

    bench.world.revoke_pat(ORGANIZATION, PAT).unwrap();
    assert_eq!(ask(&mut bench, Method::Get, Some(PAT), false).status, 203);
    bench.world.restore_pat(ORGANIZATION, PAT).unwrap();
    assert_eq!(ask(&mut bench, Method::Get, Some(PAT), false).status, 200);

    let soon = PatSpec {
        scopes: vec![Scope::Read],
        expires: Some(bench.now + MINUTE),
        ..PatSpec::default()
    };
    let reader = bench.world.create_pat(ORGANIZATION, soon).unwrap();
    assert_eq!(
        ask(&mut bench, Method::Get, Some(&reader), false).status,
        200
    );
    let denied = ask(&mut bench, Method::Post, Some(&reader), false);
    assert_eq!(
        (denied.status, &denied.json()["typeKey"]),
        (403, &json!("AccessDeniedException"))
    );
    bench.pass(MINUTE);
    assert_eq!(
        ask(&mut bench, Method::Get, Some(&reader), false).status,
        203
    );
    let says_so = Switches {
        expired_pat_says_so: true,
        ..Switches::default()
    };
    bench.world.set_switches(bench.now, says_so);
    let expired = ask(&mut bench, Method::Get, Some(&reader), false);
    assert_eq!(
        (expired.status, &expired.json()["typeKey"]),
        (401, &json!("AccessCheckException"))
    );

    bench.world.create_organization("other").unwrap();
    let foreign = Request::new(
        Method::Get,
        "http://simulator",
        "/other/_apis/distributedtask/pools",
    );
    assert_eq!(
        bench.ask(&foreign.with_pat(PAT)).reply().unwrap().status,
        203
    );
    let root = Request::new(
        Method::Get,
        "http://simulator",
        "/_apis/distributedtask/pools",
    );
    assert_eq!(
        bench.ask(&root.with_pat(PAT)).reply().unwrap().json()["count"],
        1
    );
}

#[test]
fn writes_need_an_api_version_that_the_server_knows() {
    let mut bench = Bench::new();
    let mut post = |query: &str, header: Option<(&str, &str)>| {
        let target = format!("/acme/_apis/distributedtask/pools/1/agents{query}");
        let name = format!("agent{query}{header:?}");
        let mut request = Request::new(Method::Post, "http://simulator", &target).with_pat(PAT);
        if let Some((name, value)) = header {
            request = request.with_header(name, value);
        }
        let reply = bench
            .ask(&request.with_json(&json!({ "name": name })))
            .reply()
            .unwrap();
        (
            reply.status,
            reply.json()["typeKey"]
                .as_str()
                .unwrap_or_default()
                .to_owned(),
        )
    };
    assert_eq!(
        post("", None),
        (400, "VssVersionNotSpecifiedException".to_owned())
    );
    assert_eq!(post("?api-version=7.0", None).0, 200);
    assert_eq!(
        post(
            "",
            Some((
                "accept",
                "application/json; api-version=7.1-preview.1; excludeUrls=true"
            ))
        )
        .0,
        200
    );
    assert_eq!(
        post(
            "",
            Some((
                "content-type",
                "application/json; charset=utf-8; api-version=5.1"
            ))
        )
        .0,
        200
    );
    assert_eq!(
        post("?api-version=9.1", None),
        (400, "VssVersionOutOfRangeException".to_owned())
    );
    assert_eq!(post("?api-version=new", None).0, 400);
    let no_version = Request::new(
        Method::Get,
        "http://simulator",
        "/acme/_apis/distributedtask/pools",
    );
    assert_eq!(
        bench.ask(&no_version.with_pat(PAT)).reply().unwrap().status,
        200
    );
}

#[test]
fn agents_are_added_replaced_changed_and_deleted() {
    let mut bench = Bench::new();
    let body = json!({
        "name": "agent-1",
        "version": "4.1.0",
        "osDescription": "Linux",
        "authorization": { "publicKey": { "exponent": "AQAB", "modulus": "AAAA" } },
        "systemCapabilities": { "java": "17" },
    });
    let added = bench
        .call(Method::Post, "pools/1/agents", Some(&body))
        .json();
    let id = added["id"].as_i64().unwrap();
    let client = added["authorization"]["clientId"].clone();
    assert_eq!(
        added["authorization"]["authorizationUrl"],
        "http://simulator/acme/_apis/oauth2/token"
    );
    assert!(client.is_string());
    let again = bench.call(
        Method::Post,
        "pools/1/agents",
        Some(&json!({ "name": "AGENT-1" })),
    );
    assert_eq!(
        (again.status, &again.json()["typeKey"]),
        (409, &json!("TaskAgentExistsException"))
    );

    let path = format!("pools/1/agents/{id}");
    let user = bench.call(
        Method::Put,
        &format!("{path}/usercapabilities"),
        Some(&json!({ "team": "a" })),
    );
    assert_eq!(user.json()["userCapabilities"], json!({ "team": "a" }));
    let patched = bench.call(
        Method::Patch,
        &path,
        Some(&json!({ "id": id, "enabled": false })),
    );
    assert_eq!(
        (patched.status, &patched.json()["enabled"]),
        (200, &json!(false))
    );
    assert_eq!(
        patched.json()["userCapabilities"],
        json!({ "team": "a" }),
        "PATCH leaves the rest"
    );
    let ignored = bench.call(
        Method::Patch,
        &path,
        Some(&json!({ "systemCapabilities": {} })),
    );
    assert_eq!(
        ignored.json()["systemCapabilities"],
        json!({ "java": "17" })
    );

    let replaced = bench
        .call(
            Method::Put,
            &path,
            Some(&json!({ "name": "agent-1", "version": "4.2.0" })),
        )
        .json();
    assert_eq!(
        (&replaced["enabled"], &replaced["systemCapabilities"]),
        (&json!(true), &json!({}))
    );
    assert!(replaced.get("userCapabilities").is_none() && replaced.get("authorization").is_none());

    assert_eq!(
        names(&bench.get("pools/1/agents?agentName=Agent-1"), "version"),
        ["4.2.0"]
    );
    assert_eq!(bench.get("pools/1/agents?demands=java")["count"], 0);
    assert_eq!(bench.call(Method::Delete, &path, None).status, 204);
    assert_eq!(bench.call(Method::Delete, &path, None).status, 404);
    let next = bench.add_agent("agent-1", &[]);
    assert!(next > id, "ids are not reused");

    let strict = Switches {
        patch_needs_name: true,
        patch_changes_capabilities: true,
        ..Switches::default()
    };
    bench.world.set_switches(bench.now, strict);
    let path = format!("pools/1/agents/{next}");
    assert_eq!(
        bench
            .call(Method::Patch, &path, Some(&json!({ "enabled": false })))
            .status,
        400
    );
    let change = json!({ "name": "agent-1", "systemCapabilities": { "go": "1" } });
    assert_eq!(
        bench.call(Method::Patch, &path, Some(&change)).json()["systemCapabilities"],
        json!({ "go": "1" })
    );
}

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
fn messages_are_held_for_fifty_seconds_and_redelivered_until_deleted() {
    let mut bench = Bench::new();
    let agent = bench.add_agent("agent-1", &[]);
    let session = bench.open_session(agent);
    let wait = bench.held(&session);
    assert_eq!(wait.until, bench.now + 50 * SECOND);
    bench.pass(49 * SECOND);
    let Response::Wait(wait) = bench.world.resume(bench.now, wait) else {
        panic!("ended early")
    };
    bench.pass(SECOND);
    let empty = bench.world.resume(bench.now, wait).reply().unwrap();
    assert_eq!((empty.status, empty.body.len()), (202, 0));

    let wait = bench.held(&session);
    bench.world.take_woken();
    let id = bench.queue(1, &[])[0];
    assert!(
        bench.world.take_woken().contains(&wait.topic),
        "the poll is woken"
    );
    let first = bench.world.resume(bench.now, wait).reply().unwrap().json();
    assert_eq!(first["messageType"], "PipelineAgentJobRequest");
    // The keep-alive loop reads without lastMessageId and drops what it gets.
    let second = bench.ask(
        &request(
            Method::Get,
            &format!("pools/1/messages?sessionId={session}"),
        )
        .with_pat(PAT),
    );
    assert_eq!(
        second.reply().unwrap().json()["messageId"],
        first["messageId"]
    );
    assert_eq!(bench.outcome(id), Outcome::Assigned);
    let taken = bench.take_job(&session);
    assert_eq!(bench.outcome(id), Outcome::Running);
    bench.held(&session);
    bench.world.cancel_job(bench.now, ORGANIZATION, id).unwrap();
    let cancellation = bench.poll(&session, 0).reply().unwrap().json();
    assert_eq!(cancellation["messageType"], "JobCancellation");
    bench.report(&taken, "canceled", false);
    assert_eq!(bench.outcome(id), Outcome::Canceled);
    bench.held(&session);
}

#[test]
fn sessions_conflict_until_they_end_or_expire() {
    let mut bench = Bench::new();
    let agent = bench.add_agent("agent-1", &[]);
    let session = bench.open_session(agent);
    assert_eq!(names(&bench.get("pools/1/agents"), "status"), ["online"]);
    let conflict = bench.try_session(agent);
    assert_eq!(conflict.status, 409);
    assert_eq!(
        conflict.json()["typeKey"],
        "TaskAgentSessionConflictException"
    );
    assert_eq!(
        conflict.json()["message"],
        "The task agent agent-1 already has an active session for owner host."
    );
    // A job given to an agent that is dead, for which nobody knows yet, waits for the expiry.
    let job = bench.queue(1, &[])[0];
    assert_eq!(bench.outcome(job), Outcome::Assigned);
    bench.pass(299 * SECOND);
    assert_eq!(bench.try_session(agent).status, 409);
    bench.pass(SECOND);
    assert_eq!(names(&bench.get("pools/1/agents"), "status"), ["offline"]);
    assert_eq!(bench.outcome(job), Outcome::Queued);
    let expired = bench.poll(&session, 0).reply().unwrap();
    assert_eq!(
        (expired.status, &expired.json()["typeKey"]),
        (403, &json!("TaskAgentSessionExpiredException"))
    );
    let session = bench.open_session(agent);
    bench.take_job(&session);
    assert_eq!(bench.outcome(job), Outcome::Running);
    assert_eq!(
        bench
            .call(Method::Delete, &format!("pools/1/sessions/{session}"), None)
            .status,
        200
    );
    assert_eq!(names(&bench.get("pools/1/agents"), "status"), ["offline"]);
    assert_eq!(
        bench.try_session(agent + 1).json()["typeKey"],
        "TaskAgentNotFoundException"
    );
}

#[test]
fn an_agent_shows_offline_before_its_session_expires() {
    let offline_first = Switches {
        offline_after: 2 * MINUTE,
        ..Switches::default()
    };
    let mut bench = Bench::with(offline_first);
    let agent = bench.add_agent("agent-1", &[]);
    let session = bench.open_session(agent);
    bench.pass(2 * MINUTE);
    assert_eq!(names(&bench.get("pools/1/agents"), "status"), ["offline"]);
    assert_eq!(bench.try_session(agent).status, 409);
    let job = bench.queue(1, &[])[0];
    assert_eq!(bench.outcome(job), Outcome::Queued);
    bench.poll(&session, 0);
    assert_eq!(names(&bench.get("pools/1/agents"), "status"), ["online"]);
    assert_eq!(bench.outcome(job), Outcome::Assigned);
}

#[test]
fn replacing_an_agent_may_end_its_session() {
    for (ends, status) in [(false, 409), (true, 200)] {
        let mut bench = Bench::with(Switches {
            replace_ends_session: ends,
            ..Switches::default()
        });
        let agent = bench.add_agent("agent-1", &[]);
        bench.open_session(agent);
        bench.call(
            Method::Put,
            &format!("pools/1/agents/{agent}"),
            Some(&json!({ "name": "agent-1" })),
        );
        assert_eq!(bench.try_session(agent).status, status);
    }
}

#[test]
fn locks_are_renewed_with_the_zero_token_and_run_out_after_ten_minutes() {
    for (switch, result) in [
        (ExpiredLockResult::Abandoned, JobResult::Abandoned),
        (ExpiredLockResult::Failed, JobResult::Failed),
    ] {
        let mut bench = Bench::with(Switches {
            expired_lock_result: switch,
            ..Switches::default()
        });
        let agent = bench.add_agent("agent-1", &[]);
        let session = bench.open_session(agent);
        let id = bench.queue(1, &[])[0];
        let taken = bench.take_job(&session);
        let foreign =
            format!("pools/1/jobrequests/{id}?lockToken=00000000-0000-0000-0000-000000000001");
        let refused = bench.call(Method::Patch, &foreign, Some(&json!({ "requestId": id })));
        assert_eq!(
            refused.json()["typeKey"],
            "TaskAgentJobTokenExpiredException"
        );
        bench.pass(9 * MINUTE);
        assert_eq!(
            bench.renew(id).json()["lockedUntil"],
            "2026-01-01T00:19:00Z"
        );
        bench.pass(599 * SECOND);
        assert_eq!(bench.outcome(id), Outcome::Running);
        bench.pass(SECOND);
        let job = bench.job(id);
        assert_eq!((job.outcome, job.result), (Outcome::Killed, Some(result)));
        assert!(
            job.message
                .unwrap()
                .starts_with("We stopped hearing from agent agent-1.")
        );
        assert_eq!(
            bench.renew(id).json()["typeKey"],
            "TaskAgentJobNotFoundException"
        );
        assert_eq!(bench.report(&taken, "succeeded", false).status, 404);
    }
}

#[test]
fn the_lock_counts_from_receipt_at_the_first_renewal_too() {
    let mut bench = Bench::new();
    let agent = bench.add_agent("agent-1", &[]);
    bench.open_session(agent);
    let id = bench.queue(1, &[])[0];
    assert!(bench.job(id).assigned.is_some() && bench.job(id).received.is_none());
    bench.pass(SECOND);
    bench.renew(id);
    assert_eq!(bench.job(id).received, Some(bench.now));
    let busy = bench.get(&format!(
        "pools/1/agents/{agent}?includeAssignedRequest=true"
    ));
    assert_eq!(busy["assignedRequest"]["requestId"], id);
    let zero = uuid::Uuid::nil();
    let finish = json!({ "requestId": id, "result": "succeeded" });
    let path = format!("pools/1/jobrequests/{id}?lockToken={zero}");
    assert_eq!(
        bench.call(Method::Patch, &path, Some(&finish)).status,
        200,
        "plans below version 8"
    );
    assert_eq!(bench.outcome(id), Outcome::Succeeded);
    let last = bench.get(&format!(
        "pools/1/agents/{agent}?includeLastCompletedRequest=true"
    ));
    assert_eq!(last["lastCompletedRequest"]["requestId"], id);
}

#[test]
fn deletion_is_refused_while_a_job_is_there() {
    let mut bench = Bench::new();
    let agent = bench.add_agent("agent-1", &[]);
    let path = format!("pools/1/agents/{agent}");
    let session = bench.open_session(agent);
    let id = bench.queue(1, &[])[0];
    let refused = bench.call(Method::Delete, &path, None);
    assert_eq!(
        (refused.status, &refused.json()["typeKey"]),
        (400, &json!("TaskAgentJobStillRunningException"))
    );
    assert_eq!(
        refused.json()["message"],
        "Agent \"agent-1\" is running a job for pool \"linux\""
    );

    let lenient = Switches {
        assigned_job_blocks_delete: false,
        busy_delete_status: 409,
        ..Switches::default()
    };
    bench.world.set_switches(bench.now, lenient);
    let taken = bench.take_job(&session);
    assert_eq!(
        bench.call(Method::Delete, &path, None).status,
        409,
        "a running job blocks always"
    );
    bench.report(&taken, "succeeded", false);
    let next = bench.queue(1, &[])[0];
    assert_eq!(bench.outcome(next), Outcome::Assigned);
    assert_eq!(bench.call(Method::Delete, &path, None).status, 204);
    assert_eq!(bench.outcome(next), Outcome::Queued, "back in the queue");
    assert_eq!(bench.outcome(id), Outcome::Succeeded);
    assert_eq!(bench.poll(&session, 0).reply().unwrap().status, 403);
}

#[test]
fn a_disabled_agent_keeps_its_session_and_job() {
    let mut bench = Bench::new();
    let agent = bench.add_agent("agent-1", &[]);
    let session = bench.open_session(agent);
    let id = bench.queue(2, &[])[0];
    let taken = bench.take_job(&session);
    bench.call(
        Method::Patch,
        &format!("pools/1/agents/{agent}"),
        Some(&json!({ "enabled": false })),
    );
    assert_eq!(bench.outcome(id), Outcome::Running);
    bench.report(&taken, "succeeded", false);
    assert_eq!(
        (bench.outcome(id), bench.outcome(id + 1)),
        (Outcome::Succeeded, Outcome::Queued)
    );
    bench.held(&session);
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
fn a_budget_per_identity_warns_delays_and_blocks() {
    let limit = RateLimit {
        limit: 10.0,
        cost: 1.0,
        ..RateLimit::default()
    };
    let mut bench = Bench::new();
    bench.world.set_rate_limit(Some(limit));
    let get = |bench: &mut Bench| bench.call(Method::Get, "pools", None);
    for _ in 0..4 {
        assert!(get(&mut bench).header("X-RateLimit-Limit").is_none());
    }
    let warned = get(&mut bench);
    assert_eq!(
        (warned.status, warned.header("X-RateLimit-Remaining")),
        (200, Some("5"))
    );
    assert!(warned.header("Retry-After").is_some() && warned.header("X-RateLimit-Delay").is_none());
    assert_eq!(warned.delay, Duration::ZERO);
    for _ in 0..10 {
        get(&mut bench);
    }
    let delayed = get(&mut bench);
    assert_eq!(
        (delayed.status, delayed.header("X-RateLimit-Remaining")),
        (200, Some("0"))
    );
    assert!(
        delayed.delay > 10 * SECOND && delayed.delay <= 30 * SECOND,
        "{:?}",
        delayed.delay
    );
    for _ in 0..4 {
        get(&mut bench);
    }
    let blocked = get(&mut bench);
    assert_eq!(blocked.status, 429);
    assert!(
        blocked.json()["message"]
            .as_str()
            .unwrap()
            .starts_with("TF400733")
    );
    let other = bench
        .world
        .create_pat(ORGANIZATION, PatSpec::default())
        .unwrap();
    let of_other = bench
        .ask(&request(Method::Get, "pools").with_pat(&other))
        .reply()
        .unwrap();
    assert_eq!(of_other.status, 200, "each identity has its own");
    let wait = Duration::from_secs(blocked.header("Retry-After").unwrap().parse().unwrap());
    bench.pass(wait);
    let again = get(&mut bench);
    assert_eq!(
        (again.status, again.delay < SECOND * 4),
        (200, true),
        "waiting as told helps: {:?}",
        again.delay
    );
}

#[test]
fn pools_come_and_go() {
    let mut bench = Bench::new();
    let agent = bench.add_agent("agent-1", &[]);
    let session = bench.open_session(agent);
    let wait = bench.held(&session);
    let added = bench
        .call(Method::Post, "pools", Some(&json!({ "name": "new" })))
        .json();
    assert_eq!(added["id"], 2);
    assert_eq!(
        bench
            .call(Method::Post, "pools", Some(&json!({ "name": "NEW" })))
            .status,
        409
    );
    assert_eq!(bench.call(Method::Delete, "pools/1", None).status, 204);
    let gone = bench.world.resume(bench.now, wait).reply().unwrap();
    assert_eq!(gone.json()["typeKey"], "TaskAgentPoolNotFoundException");
    assert_eq!(names(&bench.get("pools"), "name"), ["new"]);
    assert_eq!(
        bench
            .world
            .create_pool(bench.now, ORGANIZATION, POOL)
            .unwrap(),
        3,
        "ids are not reused"
    );
}

#[test]
fn equal_seeds_and_requests_give_equal_worlds() {
    let run = |seed| {
        let now = "2026-01-01T00:00:00Z".parse().unwrap();
        let mut world = World::new(Settings {
            seed,
            ..Settings::default()
        });
        populate(&mut world, now);
        let body = json!({ "name": "agent-1", "authorization": { "publicKey": { "exponent": "AQAB", "modulus": "AA" } } });
        let add = request(Method::Post, "pools/1/agents")
            .with_pat(PAT)
            .with_json(&body);
        world.handle(now, &add);
        world
            .queue_jobs(
                now,
                ORGANIZATION,
                POOL,
                &JobSpec {
                    count: 3,
                    ..JobSpec::default()
                },
            )
            .unwrap();
        let list = world.handle(
            now,
            &request(Method::Get, "pools/1/jobrequests").with_pat(PAT),
        );
        let list = list.reply().unwrap();
        (list.headers.clone(), list.json())
    };
    assert_eq!(run(7), run(7));
    assert_ne!(run(7), run(8));
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
