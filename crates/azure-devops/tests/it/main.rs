//! The client against the simulator, over HTTP.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod proxy;

use std::{collections::BTreeMap, time::Duration};

use azure_devops::{
    Class, Client, Connections, Error, NewAgent, Sending, Sent, TaskAgentStatus, Withheld,
    WriteGate,
};
use azure_devops_simulator::{
    Control, Simulator,
    world::{
        AgentSpec, BusyTypeKey, Fault, FaultKind, JobSpec, Outcome, PatSpec, Scope, Settings,
        Switches,
    },
};
use futures::future::BoxFuture;
use secrecy::SecretString;

const ORGANIZATION: &str = "acme";
const POOL: &str = "Linux Pool";

/// Lets everything through, or nothing.
#[derive(Debug)]
struct Gate {
    open: bool,
}

impl WriteGate for Gate {
    fn carry_out(&self, write: Sending) -> BoxFuture<'static, Result<Sent, Withheld>> {
        let open = self.open;
        Box::pin(async move {
            if open {
                Ok(write.await)
            } else {
                Err(Withheld("closed".into()))
            }
        })
    }
}

struct Bed {
    simulator: Simulator,
    control: Control,
    client: Client,
    pool: i64,
}

async fn bed() -> Bed {
    // The first test to come installs it.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let simulator = Simulator::start(Settings::default()).await.unwrap();
    let control = simulator.control();
    control.create_organization(ORGANIZATION).await.unwrap();
    let pool = control.create_pool(ORGANIZATION, POOL).await.unwrap();
    let token = control
        .create_pat(ORGANIZATION, &PatSpec::default())
        .await
        .unwrap();
    let client = client(&simulator, &token);
    Bed {
        simulator,
        control,
        client,
        pool,
    }
}

fn client(simulator: &Simulator, token: &str) -> Client {
    client_behind(Gate { open: true }, simulator, token)
}

fn client_behind(gate: Gate, simulator: &Simulator, token: &str) -> Client {
    let organization = format!("{}{ORGANIZATION}", simulator.url());
    client_of(gate, organization, token)
}

fn client_of(gate: Gate, organization: String, token: &str) -> Client {
    let connections = Connections::new(gate).unwrap();
    Client::new(connections, organization, SecretString::from(token))
}

fn new_agent(name: &str) -> NewAgent {
    NewAgent {
        name: name.into(),
        version: "99.999.9".into(),
        os_description: "nothing".into(),
        system_capabilities: BTreeMap::from([("java".into(), "17".into())]),
        user_capabilities: BTreeMap::from([("mark".into(), "ours".into())]),
    }
}

#[tokio::test]
async fn a_closed_gate_lets_reads_through_and_no_write() {
    let Bed {
        client,
        control,
        pool,
        simulator,
    } = bed().await;
    let agent = client.add_agent(pool, &new_agent("a")).await.unwrap();
    let token = control
        .create_pat(ORGANIZATION, &PatSpec::default())
        .await
        .unwrap();
    let gated = client_behind(Gate { open: false }, &simulator, &token);
    assert_eq!(gated.get_agents(pool).await.unwrap().len(), 1);
    control.reset_requests().await.unwrap();
    let refused = [
        gated.add_agent(pool, &new_agent("b")).await.map(drop),
        gated.update_agent(pool, agent.id, "a", false).await,
        gated.delete_agent(pool, agent.id).await,
    ];
    for outcome in refused {
        let error = outcome.unwrap_err();
        assert!(matches!(error, Error::Withheld { .. }), "{error:?}");
        assert_eq!(error.class(), Class::Transient);
    }
    assert_eq!(control.requests(None).await.unwrap().total, 0);
}

#[tokio::test]
async fn an_agent_is_added_seen_disabled_and_deleted() {
    let Bed {
        client,
        pool,
        simulator: _running,
        ..
    } = bed().await;
    let pools = client.get_agent_pools(Some(POOL)).await.unwrap();
    assert_eq!(
        (pools.len(), pools[0].id, pools[0].name.as_str()),
        (1, pool, POOL)
    );
    assert_eq!(client.get_agent_pools(Some("nowhere")).await.unwrap(), []);

    let added = client.add_agent(pool, &new_agent("a")).await.unwrap();
    let agents = client.get_agents(pool).await.unwrap();
    assert_eq!((agents.len(), agents[0].id), (1, added.id));
    assert_eq!(
        (agents[0].enabled, agents[0].status),
        (Some(true), TaskAgentStatus::Offline)
    );
    assert_eq!(agents[0].system_capabilities["java"], "17");
    assert_eq!(agents[0].user_capabilities["mark"], "ours");
    assert!(agents[0].created_on.is_some());

    client
        .update_agent(pool, added.id, "a", false)
        .await
        .unwrap();
    assert_eq!(
        client.get_agents(pool).await.unwrap()[0].enabled,
        Some(false)
    );
    client.delete_agent(pool, added.id).await.unwrap();
    assert_eq!(client.get_agents(pool).await.unwrap(), []);
}

#[tokio::test]
async fn only_requests_without_a_result_are_listed() {
    let Bed {
        control,
        client,
        pool,
        simulator: _running,
        ..
    } = bed().await;
    client.add_agent(pool, &new_agent("a")).await.unwrap();
    let spec = JobSpec {
        count: 250,
        demands: vec!["java".into()],
        ..JobSpec::default()
    };
    let ids = control.queue_jobs(ORGANIZATION, POOL, &spec).await.unwrap();
    control.cancel_job(ORGANIZATION, ids[0]).await.unwrap();
    let requests = client.get_agent_requests(pool).await.unwrap();
    // More than the 200 to which `$top` would cut them.
    assert_eq!(requests.len(), 249);
    assert!(
        requests
            .iter()
            .all(|request| request.request_id != ids[0] && request.reserved_agent.is_none())
    );
    assert!(requests[0].demands.contains(&"java".to_owned()) && requests[0].queue_time.is_some());
}

#[tokio::test]
async fn what_does_not_exist_and_what_exists_already() {
    let Bed {
        client,
        pool,
        simulator: _running,
        ..
    } = bed().await;
    let class = |error: Error| error.class();
    assert_eq!(
        client.get_agents(pool + 1).await.map_err(class).err(),
        Some(Class::NotFound)
    );
    assert_eq!(
        client.delete_agent(pool, 12345).await.map_err(class).err(),
        Some(Class::NotFound)
    );
    assert_eq!(
        client
            .update_agent(pool, 12345, "a", false)
            .await
            .map_err(class)
            .err(),
        Some(Class::NotFound)
    );
    client.add_agent(pool, &new_agent("a")).await.unwrap();
    assert_eq!(
        client
            .add_agent(pool, &new_agent("A"))
            .await
            .map_err(class)
            .err(),
        Some(Class::Conflict)
    );
}

#[tokio::test]
async fn an_agent_with_a_job_is_not_deleted_whatever_the_refusal_looks_like() {
    use azure_devops_simulator::agent::{Agent, Launch, Pace};
    for status in [400, 409] {
        for busy_delete_type_key in [BusyTypeKey::default()] {
            let Bed {
                simulator,
                control,
                client,
                pool,
            } = bed().await;
            let switches = Switches {
                busy_delete_status: status,
                busy_delete_type_key,
                ..Switches::default()
            };
            control.set_switches(&switches).await.unwrap();
            let token = control
                .create_pat(ORGANIZATION, &PatSpec::default())
                .await
                .unwrap();
            let env = [
                ("AZP_URL", format!("{}{ORGANIZATION}", simulator.url())),
                ("AZP_POOL", POOL.into()),
                ("AZP_TOKEN", token),
                ("AZP_AGENT_NAME", "a".into()),
            ];
            let _agent = Agent::spawn(Launch {
                env: env.map(|(name, value)| (name.to_owned(), value)).into(),
                args: Vec::new(),
                tools: BTreeMap::new(),
                host_name: "a".into(),
                pace: Pace::fast(),
            });
            let online = |agents: &[azure_devops_simulator::world::AgentView]| {
                agents.iter().any(|agent| agent.online)
            };
            control
                .agents_when(ORGANIZATION, POOL, online)
                .await
                .unwrap();
            let spec = JobSpec {
                duration: Duration::from_secs(600),
                ..JobSpec::default()
            };
            control.queue_jobs(ORGANIZATION, POOL, &spec).await.unwrap();
            let running = |jobs: &[azure_devops_simulator::world::JobView]| {
                jobs[0].outcome == Outcome::Running
            };
            control
                .jobs_when(ORGANIZATION, POOL, running)
                .await
                .unwrap();
            let agents = client.get_agents(pool).await.unwrap();
            let request = client.get_agent_requests(pool).await.unwrap().remove(0);
            assert_eq!(
                agents[0].assigned_request.as_ref().unwrap().request_id,
                request.request_id
            );
            assert_eq!(request.reserved_agent.unwrap().id, agents[0].id);
            let refused = client.delete_agent(pool, agents[0].id).await.unwrap_err();
            assert_eq!(refused.class(), Class::Conflict, "{refused}");
            assert_eq!(
                control.jobs(ORGANIZATION, POOL).await.unwrap()[0].outcome,
                Outcome::Running
            );
        }
    }
}

#[tokio::test]
async fn each_fault_is_classed_by_what_to_do_next() {
    let Bed {
        control,
        client,
        pool,
        simulator: _running,
        ..
    } = bed().await;
    control
        .add_agent(
            ORGANIZATION,
            POOL,
            &AgentSpec {
                name: "a".into(),
                ..AgentSpec::default()
            },
        )
        .await
        .unwrap();
    for (kind, class) in [
        (FaultKind::ServerError { status: 500 }, Class::Transient),
        (FaultKind::ServerError { status: 503 }, Class::Transient),
        (FaultKind::SignInPage, Class::Unauthorized),
        (FaultKind::Unauthorized, Class::Unauthorized),
        (FaultKind::TruncatedBody, Class::Transient),
        (FaultKind::DroppedConnection, Class::Transient),
    ] {
        control.clear_faults().await.unwrap();
        control.add_fault(&Fault::new(kind.clone())).await.unwrap();
        let error = client.get_agents(pool).await.unwrap_err();
        assert_eq!(error.class(), class, "{kind:?}: {error}");
    }
    control.clear_faults().await.unwrap();
    assert_eq!(client.get_agents(pool).await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_wait_is_kept_and_a_served_request_is_served() {
    let Bed {
        control,
        client,
        pool,
        simulator: _running,
        ..
    } = bed().await;
    control
        .add_fault(&Fault::new(FaultKind::RetryAfter { retry_after: 60 }))
        .await
        .unwrap();
    assert_eq!(
        client.get_agents(pool).await.unwrap(),
        [],
        "Retry-After on a 200: the answer counts"
    );
    control.clear_faults().await.unwrap();
    control.reset_requests().await.unwrap();
    let error = client.clone().get_agents(pool).await.unwrap_err();
    assert_eq!(error.class(), Class::Throttled);
    assert!(
        error.retry_after().unwrap() > Duration::from_secs(50),
        "{error}"
    );
    assert_eq!(
        control.requests(Some(ORGANIZATION)).await.unwrap().total,
        0,
        "nothing was sent meanwhile"
    );
}

#[tokio::test]
async fn a_429_says_how_long() {
    let Bed {
        control,
        client,
        pool,
        simulator: _running,
        ..
    } = bed().await;
    control
        .add_fault(&Fault::new(FaultKind::TooManyRequests { retry_after: 30 }))
        .await
        .unwrap();
    let error = client.get_agents(pool).await.unwrap_err();
    assert_eq!(
        (error.class(), error.retry_after()),
        (Class::Throttled, Some(Duration::from_secs(30)))
    );
}

#[tokio::test]
async fn tokens_that_are_wrong_or_may_too_little() {
    let Bed {
        simulator,
        control,
        pool,
        ..
    } = bed().await;
    let error = client(&simulator, "wrong")
        .get_agents(pool)
        .await
        .unwrap_err();
    assert_eq!(error.class(), Class::Unauthorized, "{error}");
    let reader = PatSpec {
        name: "reader".into(),
        scopes: vec![Scope::Read],
        ..PatSpec::default()
    };
    let token = control.create_pat(ORGANIZATION, &reader).await.unwrap();
    let reader = client(&simulator, &token);
    reader.get_agents(pool).await.unwrap();
    let error = reader.add_agent(pool, &new_agent("a")).await.unwrap_err();
    assert_eq!(error.class(), Class::Unauthorized, "{error}");
    assert!(
        error.to_string().contains("Agent Pools (read, manage)"),
        "{error}"
    );
}

#[tokio::test]
async fn a_token_shows_nowhere() {
    let Bed {
        simulator,
        control,
        pool,
        ..
    } = bed().await;
    let secret = "s3cr3t-s3cr3t-s3cr3t";
    let client = client(&simulator, secret);
    assert!(!format!("{client:?}").contains(secret));
    let error = client.get_agents(pool).await.unwrap_err();
    assert!(!format!("{error} {error:?}").contains(secret));
    let log = control.request_log().await.unwrap();
    assert!(!format!("{log:?}").contains(secret), "not in a URL");
}
