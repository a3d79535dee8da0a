//! What the entry point does with its environment, and what it says when it cannot go on.

use std::time::Duration;

use azure_devops_simulator::{AgentView, Fault, FaultKind};

use crate::{
    container::Root,
    service::{ORGANIZATION, POOL, Service},
};

#[tokio::test]
async fn runs_one_job_and_ends() {
    let Some(service) = Service::start().await else {
        return;
    };
    let image = service
        .image()
        .env("VSO_AGENT_IGNORE", "MINE,AZDO_RUNNER_OWNER")
        .env("MINE", "not for others")
        .arg("--replace");
    service.run_one(image, Duration::from_millis(200)).await;
    let [agent] = &service.agents().await[..] else {
        panic!("one agent is registered")
    };
    assert!(!agent.online, "its session is closed");
    let capabilities = &agent.system_capabilities;
    for (name, value) in [
        ("AZDO_RUNNER_OWNER", "cluster/namespace/pool"),
        ("AZP_CAPABILITY", "java"),
        ("java", "true"),
        (".net", "true"),
        ("Agent.WorkFolder", "/azp/_work"),
    ] {
        assert_eq!(
            capabilities.get(name).map(String::as_str),
            Some(value),
            "{name}"
        );
    }
    let ignored = &capabilities["VSO_AGENT_IGNORE"];
    assert!(
        ignored.contains("MINE") && ignored.contains("AZP_TOKEN"),
        "{ignored}"
    );
    assert!(!capabilities.contains_key("MINE"));
}

#[tokio::test]
async fn starts_again_where_it_was_registered_before() {
    let Some(service) = Service::start().await else {
        return;
    };
    let image = service
        .image()
        .file("opt/azure-pipelines-agent/.agent", "{}");
    service.run_one(image, Duration::ZERO).await;
}

#[tokio::test]
async fn works_with_a_read_only_root_and_a_volume() {
    let Some(service) = Service::start().await else {
        return;
    };
    let image = service
        .image()
        .env(
            stand_in_agent::STEP,
            "touch /tmp/x || echo root-is-read-only; ls -l /azp",
        )
        .root(Root::Volume);
    let output = service.run_one(image, Duration::from_secs(1)).await;
    assert!(output.contains("root-is-read-only"), "{output}");
    assert!(
        output.contains("externals -> /opt/azure-pipelines-agent/externals"),
        "{output}"
    );
}

#[tokio::test]
async fn hands_the_proxy_to_the_agent() {
    let Some(service) = Service::start().await else {
        return;
    };
    let image = service
        .image()
        .env("http_proxy", "http://some%20body:p%40ss@proxy.example:3128")
        .env("https_proxy", "http://other.example:1")
        .env("NO_PROXY", ".cluster.local")
        .env(
            stand_in_agent::STEP,
            "cd /opt/azure-pipelines-agent; cat .proxy .proxycredentials; echo \"/$no_proxy/\"",
        );
    let output = service.run_one(image, Duration::from_secs(1)).await;
    for wanted in [
        "http://proxy.example:3128{",
        r#""username":"some body""#,
        r#""password":"p@ss""#,
        "/.cluster.local/",
    ] {
        assert!(output.contains(wanted), "{wanted} is not in {output}");
    }
}

#[tokio::test]
async fn says_what_is_wrong_and_what_to_do() {
    let Some(service) = Service::start().await else {
        return;
    };
    let missing_organization = format!("{}nobody", service.simulator.url());
    let cases = [
        (service.image().env("AZP_URL", ""), 64, "AZP_URL is missing"),
        (
            service.image().env("AZP_TOKEN", ""),
            64,
            "AZP_TOKEN is missing",
        ),
        (
            service.image().env("AZP_TOKEN_FILE", "/nowhere"),
            64,
            "which cannot be read",
        ),
        (
            service.image().env("AZP_TOKEN", "expired"),
            77,
            "refuses the token",
        ),
        (
            service.image().env("AZP_POOL", "elsewhere"),
            78,
            "no agent pool 'elsewhere'",
        ),
        (
            service.image().env("AZP_URL", missing_organization),
            78,
            "no such organization",
        ),
        (
            service.image().env("AZP_URL", "http://127.0.0.1:9/acme"),
            69,
            "cannot be reached",
        ),
        (
            service.image().root(Root::ReadOnly),
            73,
            "mount a volume at /azp",
        ),
    ];
    for (image, code, message) in cases {
        let mut container = image.start();
        let ended = container.ended().await;
        let output = container.output();
        assert_eq!(ended, code, "{output}");
        let errors: Vec<&str> = output
            .lines()
            .filter(|line| line.starts_with("error: "))
            .collect();
        assert!(
            matches!(errors[..], [error] if error.contains(message)),
            "{output}"
        );
    }
    assert_eq!(service.agents().await.len(), 0);
}

#[tokio::test]
async fn takes_the_registration_back_if_it_is_stopped_meanwhile() {
    let Some(service) = Service::start().await else {
        return;
    };
    let fault = Fault {
        kind: FaultKind::Latency {
            delay: Duration::from_secs(3),
        },
        probability: 1.0,
        duration: None,
        operation: Some("Agents.Add".to_owned()),
        organization: Some(ORGANIZATION.to_owned()),
        identity: None,
    };
    service.control.add_fault(&fault).await.unwrap();
    let mut container = service.image().start();
    // It is known to the service before the agent is told so.
    let is = |agents: &[AgentView]| agents.len() == 1;
    let wait = service.control.agents_when(ORGANIZATION, POOL, is);
    wait.await.unwrap();
    container.terminate();
    assert_eq!(container.ended().await, 0);
    assert_eq!(service.agents().await.len(), 0);
}
