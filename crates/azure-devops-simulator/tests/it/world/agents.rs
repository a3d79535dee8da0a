//! Pools and agents: come, change, go.

use azure_devops_simulator::{Outcome, Switches, world::Method};
use serde_json::json;

use super::{MINUTE, names};
use crate::bench::{Bench, ORGANIZATION, POOL};

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
