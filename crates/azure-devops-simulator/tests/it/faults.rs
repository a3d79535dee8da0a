//! Each fault as a plain client meets it.

use std::time::{Duration, Instant};

use azure_devops_simulator::{Control, Fault, FaultKind, Simulator, Switches};
use reqwest::{Client, Response};
use serde_json::{Value, json};

use crate::bench::{ORGANIZATION, PAT, POOL, simulator, soon};

struct Setting {
    simulator: Simulator,
    control: Control,
    client: Client,
}

impl Setting {
    async fn new(fault: Fault) -> Self {
        let (simulator, control) = simulator(Switches::default()).await;
        control.add_fault(&fault).await.unwrap();
        assert_eq!(
            control.faults().await.unwrap(),
            [fault],
            "it travels unchanged"
        );
        let _ = rustls::crypto::ring::default_provider().install_default();
        Self {
            simulator,
            control,
            client: Client::builder().no_proxy().build().unwrap(),
        }
    }

    fn agents(&self) -> String {
        format!(
            "{}acme/_apis/distributedtask/pools/1/agents?api-version=7.0",
            self.simulator.url()
        )
    }

    async fn try_list(&self) -> reqwest::Result<Response> {
        self.client
            .get(self.agents())
            .basic_auth("", Some(PAT))
            .send()
            .await
    }

    async fn list(&self) -> Response {
        self.try_list().await.unwrap()
    }

    async fn add(&self, name: &str) -> reqwest::Result<Response> {
        let request = self.client.post(self.agents()).basic_auth("", Some(PAT));
        request.json(&json!({ "name": name })).send().await
    }

    async fn names(&self) -> Vec<String> {
        let agents = self.control.agents(ORGANIZATION, POOL).await.unwrap();
        agents.into_iter().map(|agent| agent.name).collect()
    }
}

#[tokio::test]
async fn latency() {
    let delay = Duration::from_millis(150);
    let setting = Setting::new(Fault::new(FaultKind::Latency { delay })).await;
    let begin = Instant::now();
    assert_eq!(setting.list().await.status(), 200);
    assert!(begin.elapsed() >= delay);
}

#[tokio::test]
async fn server_error() {
    let setting = Setting::new(Fault::new(FaultKind::ServerError { status: 503 })).await;
    assert_eq!(setting.list().await.status(), 503);
    assert_eq!(setting.add("agent").await.unwrap().status(), 503);
    assert!(setting.names().await.is_empty(), "nothing was served");
    setting.control.clear_faults().await.unwrap();
    assert_eq!(setting.list().await.status(), 200);
}

#[tokio::test]
async fn too_many_requests() {
    let setting = Setting::new(Fault::new(FaultKind::TooManyRequests { retry_after: 7 })).await;
    let reply = setting.list().await;
    assert_eq!(
        (reply.status().as_u16(), &reply.headers()["Retry-After"]),
        (429, &"7".parse().unwrap())
    );
    assert!(reply.text().await.unwrap().contains("TF400733"));
}

#[tokio::test]
async fn retry_after_on_success() {
    let setting = Setting::new(Fault::new(FaultKind::RetryAfter { retry_after: 3 })).await;
    let reply = setting.add("agent").await.unwrap();
    assert_eq!(
        (reply.status().as_u16(), &reply.headers()["Retry-After"]),
        (200, &"3".parse().unwrap())
    );
    assert_eq!(setting.names().await, ["agent"]);
}

#[tokio::test]
async fn sign_in_page() {
    let setting = Setting::new(Fault::new(FaultKind::SignInPage)).await;
    let reply = setting.list().await;
    assert_eq!(reply.status(), 203);
    assert!(reply.text().await.unwrap().starts_with("<!DOCTYPE html>"));
}

#[tokio::test]
async fn unauthorized() {
    let setting = Setting::new(Fault::new(FaultKind::Unauthorized)).await;
    let reply = setting.list().await;
    assert_eq!(reply.status(), 401);
    assert!(reply.headers().contains_key("WWW-Authenticate"));
}

#[tokio::test]
async fn truncated_body() {
    let setting = Setting::new(Fault::new(FaultKind::TruncatedBody)).await;
    let reply = setting.list().await;
    assert_eq!(reply.status(), 200);
    let text = reply.text().await.unwrap();
    assert!(
        text.starts_with('{') && serde_json::from_str::<Value>(&text).is_err(),
        "{text}"
    );
}

#[tokio::test]
async fn dropped_connection() {
    let setting = Setting::new(Fault::new(FaultKind::DroppedConnection)).await;
    assert!(setting.add("agent").await.is_err());
    assert!(setting.names().await.is_empty(), "nothing was served");
}

#[tokio::test]
async fn lost_reply() {
    let setting = Setting::new(Fault::new(FaultKind::LostReply)).await;
    assert!(setting.add("agent").await.is_err());
    assert_eq!(setting.names().await, ["agent"], "the write took effect");
    assert_eq!(setting.list().await.status(), 200, "reads are spared");
}

#[tokio::test]
async fn empty_list() {
    let setting = Setting::new(Fault::new(FaultKind::EmptyList).on("Agents.List")).await;
    assert_eq!(setting.add("agent").await.unwrap().status(), 200);
    let reply = setting.list().await;
    assert_eq!(reply.status(), 200);
    assert_eq!(
        reply.json::<Value>().await.unwrap(),
        json!({ "count": 0, "value": [] })
    );
}

#[tokio::test]
async fn stale_read() {
    let age = Duration::from_millis(400);
    let setting = Setting::new(Fault::new(FaultKind::StaleRead { age })).await;
    let begin = Instant::now();
    setting.add("agent").await.unwrap();
    let count = async || {
        setting.list().await.json::<Value>().await.unwrap()["count"]
            .as_i64()
            .unwrap()
    };
    assert_eq!(count().await, 0, "the state of before");
    assert_eq!(setting.names().await, ["agent"], "the truth");
    soon("the read to catch up", async {
        while count().await == 0 {}
    })
    .await;
    assert!(begin.elapsed() >= age);
}

#[tokio::test]
async fn faults_hit_only_whom_and_what_they_name() {
    let fault = Fault {
        organization: Some("ACME".to_owned()),
        identity: Some("pat:operator".to_owned()),
        ..Fault::new(FaultKind::ServerError { status: 500 }).on("Agents.")
    };
    let setting = Setting::new(fault).await;
    assert_eq!(setting.list().await.status(), 500);
    let pools = format!(
        "{}acme/_apis/distributedtask/pools",
        setting.simulator.url()
    );
    let request = setting.client.get(pools).basic_auth("", Some(PAT));
    assert_eq!(request.send().await.unwrap().status(), 200);
    let other = setting
        .client
        .get(setting.agents())
        .basic_auth("VstsAgent", Some(PAT));
    assert_eq!(other.send().await.unwrap().status(), 200);
}

#[tokio::test]
async fn probability_and_duration_bound_a_fault() {
    let fault = Fault {
        probability: 0.5,
        ..Fault::new(FaultKind::ServerError { status: 502 })
    };
    let setting = Setting::new(fault).await;
    let mut hits = 0;
    for _ in 0..100 {
        hits += i32::from(setting.list().await.status() == 502);
    }
    assert!((25..=75).contains(&hits), "{hits} of 100");
    setting.control.clear_faults().await.unwrap();
    let brief = Fault {
        duration: Some(Duration::from_millis(200)),
        ..Fault::new(FaultKind::SignInPage)
    };
    setting.control.add_fault(&brief).await.unwrap();
    assert_eq!(setting.list().await.status(), 203);
    soon("the end of the fault", async {
        while setting.list().await.status() != 200 {}
    })
    .await;
    let wrong = Fault {
        probability: 1.5,
        ..Fault::new(FaultKind::SignInPage)
    };
    assert!(setting.control.add_fault(&wrong).await.is_err());
}
