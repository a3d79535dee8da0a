//! The HTTP face: what a plain client sees on the wire.

use std::time::{Duration, Instant};

use azure_devops_simulator::{AgentSpec, JobSpec, Outcome, PatSpec, Switches};
use reqwest::{Client, Method, StatusCode};
use serde_json::{Value, json};

use crate::bench::{ORGANIZATION, PAT, POOL, job_when, launch, online, simulator, soon, start};

fn client() -> Client {
    let _ = rustls::crypto::ring::default_provider().install_default();
    Client::builder().no_proxy().build().unwrap()
}

async fn get(client: &Client, url: &str) -> reqwest::Response {
    client
        .get(url)
        .basic_auth("", Some(PAT))
        .send()
        .await
        .unwrap()
}

#[tokio::test]
async fn on_premises_and_root_urls_reach_the_same_pool() {
    let (simulator, control) = simulator(Switches::default()).await;
    let spec = AgentSpec {
        name: "by hand".to_owned(),
        ..AgentSpec::default()
    };
    control.add_agent(ORGANIZATION, POOL, &spec).await.unwrap();
    let root = simulator.url();
    for base in [
        format!("{root}acme"),
        format!("{root}tfs/Acme"),
        root.as_str().trim_end_matches('/').to_owned(),
    ] {
        let reply: Value = get(
            &client(),
            &format!("{base}/_apis/distributedtask/pools/1/agents"),
        )
        .await
        .json()
        .await
        .unwrap();
        assert_eq!(reply["value"][0]["name"], "by hand", "{base}");
        let link = reply["value"][0]["_links"]["self"]["href"]
            .as_str()
            .unwrap();
        let followed: Value = get(&client(), link).await.json().await.unwrap();
        assert_eq!(followed["name"], "by hand", "{link}");
    }
}

#[tokio::test]
async fn long_polls_are_held_and_woken() {
    let (simulator, control) = simulator(Switches {
        long_poll: Duration::from_millis(400),
        ..Switches::default()
    })
    .await;
    let agents = format!("{}acme/_apis/distributedtask/pools/1", simulator.url());
    let client = client();
    let added = client
        .post(format!("{agents}/agents?api-version=7.0"))
        .basic_auth("", Some(PAT));
    let id = added
        .json(&json!({ "name": "raw" }))
        .send()
        .await
        .unwrap()
        .json::<Value>()
        .await
        .unwrap()["id"]
        .clone();
    let session = client
        .post(format!("{agents}/sessions?api-version=7.0"))
        .basic_auth("", Some(PAT));
    let session: Value = session
        .json(&json!({ "ownerName": "me", "agent": { "id": id } }))
        .send()
        .await
        .unwrap()
        .json()
        .await
        .unwrap();
    let messages = format!(
        "{agents}/messages?sessionId={}",
        session["sessionId"].as_str().unwrap()
    );
    let begin = Instant::now();
    let empty = get(&client, &messages).await;
    assert_eq!(empty.status(), StatusCode::ACCEPTED);
    assert!(begin.elapsed() >= Duration::from_millis(400));

    control.set_switches(&Switches::default()).await.unwrap();
    let queue = async {
        // The two polls below are in flight once the simulator counts them.
        while control.requests(None).await.unwrap().by_operation["Messages.Get"] < 3 {
            tokio::task::yield_now().await;
        }
        control
            .queue_jobs(ORGANIZATION, POOL, &JobSpec::default())
            .await
            .unwrap()
    };
    let both = async { tokio::join!(get(&client, &messages), get(&client, &messages), queue) };
    let (first, second, ids) = soon("the message", both).await;
    let (first, second): (Value, Value) =
        (first.json().await.unwrap(), second.json().await.unwrap());
    assert_eq!(
        first["messageId"], second["messageId"],
        "the second loop's GET takes nothing away"
    );
    let gone = client.delete(format!(
        "{agents}/messages/{}?sessionId={}&api-version=7.0",
        first["messageId"],
        session["sessionId"].as_str().unwrap()
    ));
    assert_eq!(
        gone.basic_auth("", Some(PAT))
            .send()
            .await
            .unwrap()
            .status(),
        200
    );
    job_when(&control, ids[0], |outcome| outcome == Outcome::Running).await;
}

#[tokio::test]
async fn jobs_are_not_lost_to_the_keep_alive_loop() {
    let (simulator, control) = simulator(Switches::default()).await;
    let mut launch = launch(&simulator, "agent-1");
    launch.pace.keep_alive = Some(Duration::from_millis(1));
    let _agent = azure_devops_simulator::agent::Agent::spawn(launch);
    online(&control, 1).await;
    let spec = JobSpec {
        count: 20,
        ..JobSpec::default()
    };
    for id in control.queue_jobs(ORGANIZATION, POOL, &spec).await.unwrap() {
        assert_eq!(
            job_when(&control, id, Outcome::is_finished).await.outcome,
            Outcome::Succeeded
        );
    }
}

#[tokio::test]
async fn agents_prove_who_they_are() {
    let (simulator, control) = simulator(Switches::default()).await;
    let _agent = start(&simulator, "agent-1");
    online(&control, 1).await;
    let client = client();
    let agents = format!(
        "{}acme/_apis/distributedtask/pools/1/agents",
        simulator.url()
    );
    let list: Value = get(&client, &agents).await.json().await.unwrap();
    let authorization = &list["value"][0]["authorization"];
    let post = |assertion: String| {
        let form = format!("grant_type=client_credentials&client_assertion={assertion}");
        client
            .post(authorization["authorizationUrl"].as_str().unwrap())
            .body(form)
            .send()
    };
    // Header and claims are right, the signature is not.
    let claims = json!({
        "iss": authorization["clientId"], "sub": authorization["clientId"], "nbf": 0, "exp": 9_999_999_999_i64,
    });
    let encode = |text: &str| {
        base64::Engine::encode(&base64::engine::general_purpose::URL_SAFE_NO_PAD, text)
    };
    let forged = format!(
        "{}.{}.{}",
        encode("{}"),
        encode(&claims.to_string()),
        encode(&"x".repeat(256))
    );
    let refused = post(forged).await.unwrap();
    assert_eq!(refused.status(), StatusCode::BAD_REQUEST);
    let refused: Value = refused.json().await.unwrap();
    assert!(
        refused["error_description"]
            .as_str()
            .unwrap()
            .contains("signature"),
        "{refused}"
    );
    let other = claims.to_string().replace(
        authorization["clientId"].as_str().unwrap(),
        &uuid::Uuid::nil().to_string(),
    );
    let unknown = post(format!(
        "{}.{}.{}",
        encode("{}"),
        encode(&other),
        encode("x")
    ))
    .await
    .unwrap();
    let unknown: Value = unknown.json().await.unwrap();
    assert!(
        unknown["error_description"]
            .as_str()
            .unwrap()
            .ends_with("was not found."),
        "{unknown}"
    );
}

#[tokio::test]
async fn requests_are_counted_and_logged() {
    let (simulator, control) = simulator(Switches::default()).await;
    let other = control
        .create_pat(
            ORGANIZATION,
            &PatSpec {
                name: "other".to_owned(),
                ..PatSpec::default()
            },
        )
        .await
        .unwrap();
    let client = client();
    let pools = format!("{}acme/_apis/distributedtask/pools", simulator.url());
    for _ in 0..3 {
        get(&client, &pools).await;
    }
    client
        .get(&pools)
        .basic_auth("VstsAgent", Some(PAT))
        .send()
        .await
        .unwrap();
    client
        .get(&pools)
        .basic_auth("x", Some(&other))
        .send()
        .await
        .unwrap();
    client.get(&pools).send().await.unwrap();
    client
        .get(&pools)
        .bearer_auth("wrong")
        .send()
        .await
        .unwrap();
    client.request(Method::PATCH, &pools).send().await.unwrap();
    let counts = control.requests(Some("ACME")).await.unwrap();
    assert_eq!(counts.total, 8);
    assert_eq!(counts.by_operation["Pools.List"], 7);
    for (identity, count) in [
        ("pat:operator", 3),
        ("registration", 1),
        ("pat:other", 1),
        ("anonymous", 2),
        ("unauthorized", 1),
    ] {
        assert_eq!(counts.by(identity), count, "{identity}: {counts:?}");
    }
    let log = control.request_log().await.unwrap();
    let statuses: Vec<u16> = log.iter().map(|entry| entry.status).collect();
    assert_eq!(statuses, [200, 200, 200, 200, 200, 401, 401, 404]);
    control.reset_requests().await.unwrap();
    assert_eq!(control.requests(None).await.unwrap().total, 0);
}

#[tokio::test]
async fn control_refusals_say_why() {
    let (simulator, control) = simulator(Switches::default()).await;
    let refused = control.create_pool("nobody", POOL).await.unwrap_err();
    assert!(
        refused.to_string().contains("no organization named nobody"),
        "{refused}"
    );
    for name in ["acme", "tfs", "_simulator", "a/b", ""] {
        assert!(control.create_organization(name).await.is_err(), "{name}");
    }
    assert!(control.cancel_job(ORGANIZATION, 9).await.is_err());
    simulator.shutdown().await;
    assert!(control.requests(None).await.is_err(), "it stops");
}
