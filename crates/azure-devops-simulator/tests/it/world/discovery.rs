//! What every client meets first: discovery, shapes, credentials, versions, budgets.

use std::time::Duration;

use azure_devops_simulator::{
    JobSpec, PatSpec, RateLimit, Scope, Settings, Switches, World,
    world::{Method, Request},
};
use serde_json::json;

use super::{MINUTE, SECOND, names};
use crate::bench::{Bench, ORGANIZATION, PAT, POOL, populate, request};

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
