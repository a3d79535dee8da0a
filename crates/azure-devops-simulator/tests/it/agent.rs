//! The simulated agent against the simulator over HTTP, end to end.

use std::time::{Duration, Instant};

use azure_devops_simulator::{
    AgentSpec, JobResult, JobSpec, Outcome, PatSpec, Scope, Switches,
    agent::{Agent, Pace, REMOVE_ON_EXIT, exit_code},
    world::Method,
};
use jiff::Timestamp;
use serde_json::json;

use crate::bench::{
    ORGANIZATION, PAT, POOL, job_when, launch, online, request, simulator, soon, start,
};

/// Long enough that a job that is to be stopped cannot end by itself.
const ENDLESS: Duration = Duration::from_hours(1);

fn spec(duration: Duration) -> JobSpec {
    JobSpec {
        duration,
        ..JobSpec::default()
    }
}

async fn queue(control: &azure_devops_simulator::Control, spec: &JobSpec) -> i64 {
    control.queue_jobs(ORGANIZATION, POOL, spec).await.unwrap()[0]
}

#[tokio::test]
async fn runs_jobs_that_its_capabilities_meet() {
    let (simulator, control) = simulator(Switches::default()).await;
    let agent = start(&simulator, "agent-1");
    online(&control, 1).await;
    let demands = [
        "java",
        "flavour -equals VANILLA",
        "Agent.Version -gtVersion 3.0",
    ];
    let mut wanted = spec(Duration::from_millis(30));
    wanted.demands = demands.map(str::to_owned).to_vec();
    let id = queue(&control, &wanted).await;
    let job = job_when(&control, id, Outcome::is_finished).await;
    assert_eq!(job.outcome, Outcome::Succeeded);
    assert_eq!(job.agent.as_deref(), Some("agent-1"));
    let worked = job.finished.unwrap().duration_since(job.received.unwrap());
    assert!(
        worked >= Duration::from_millis(30).try_into().unwrap(),
        "worked only {worked}"
    );
    wanted.result = JobResult::Failed;
    let id = queue(&control, &wanted).await;
    assert_eq!(
        job_when(&control, id, Outcome::is_finished).await.outcome,
        Outcome::Failed
    );
    let agents = control.agents(ORGANIZATION, POOL).await.unwrap();
    assert!(!agents[0].system_capabilities.contains_key("AZP_TOKEN"));
    let requests = control.requests(Some(ORGANIZATION)).await.unwrap();
    assert_eq!(requests.of("registration", "Agents.Add"), 1);
    assert_eq!(requests.of("agent", "Sessions.Create"), 1);
    assert_eq!(requests.of("job", "Events.Post"), 2);
    assert_eq!(requests.by("pat:operator"), 0);
    drop(agent);
}

#[tokio::test]
async fn sigterm_kills_the_running_job() {
    let (simulator, control) = simulator(Switches::default()).await;
    let mut agent = start(&simulator, "agent-1");
    online(&control, 1).await;
    let id = queue(&control, &spec(ENDLESS)).await;
    job_when(&control, id, |outcome| outcome == Outcome::Running).await;
    assert!(agent.worker_running());
    agent.terminate();
    assert_eq!(
        soon("the agent's end", agent.wait()).await,
        exit_code::SUCCESS
    );
    assert!(!agent.worker_running());
    let job = job_when(&control, id, Outcome::is_finished).await;
    assert_eq!(
        (job.outcome, job.result),
        (Outcome::Killed, Some(JobResult::Canceled))
    );
    let agents = control.agents(ORGANIZATION, POOL).await.unwrap();
    assert!(!agents[0].online, "the session was closed");
}

#[tokio::test]
async fn a_user_cancels_the_running_job() {
    let (simulator, control) = simulator(Switches::default()).await;
    let agent = start(&simulator, "agent-1");
    online(&control, 1).await;
    let id = queue(&control, &spec(ENDLESS)).await;
    job_when(&control, id, |outcome| outcome == Outcome::Running).await;
    control.cancel_job(ORGANIZATION, id).await.unwrap();
    assert_eq!(
        job_when(&control, id, Outcome::is_finished).await.outcome,
        Outcome::Canceled
    );
    soon("the worker's end", agent.worker_idle()).await;
    let next = queue(&control, &spec(Duration::ZERO)).await;
    assert_eq!(
        job_when(&control, next, Outcome::is_finished).await.outcome,
        Outcome::Succeeded
    );
}

#[tokio::test]
async fn sigkill_tells_nobody_until_the_lock_runs_out() {
    let switches = Switches {
        lock: Duration::from_millis(800),
        offline_after: Duration::from_millis(900),
        session_expiry: Duration::from_millis(900),
        long_poll: Duration::from_millis(300),
        ..Switches::default()
    };
    let (simulator, control) = simulator(switches).await;
    let mut renewing = launch(&simulator, "agent-1");
    renewing.pace.renewal = Duration::from_millis(200);
    let mut agent = Agent::spawn(renewing);
    online(&control, 1).await;
    let id = queue(&control, &spec(ENDLESS)).await;
    job_when(&control, id, |outcome| outcome == Outcome::Running).await;
    agent.kill();
    assert_eq!(
        soon("the agent's end", agent.wait()).await,
        exit_code::SIGKILL
    );
    let agents = control.agents(ORGANIZATION, POOL).await.unwrap();
    assert!(agents[0].online, "nobody told the service");
    let job = job_when(&control, id, Outcome::is_finished).await;
    assert_eq!(
        (job.outcome, job.result),
        (Outcome::Killed, Some(JobResult::Abandoned))
    );
    online(&control, 0).await;
}

#[tokio::test]
async fn once_runs_one_job_and_leaves_its_registration() {
    let (simulator, control) = simulator(Switches::default()).await;
    let mut once = launch(&simulator, "agent-1");
    once.args.push("--once".to_owned());
    let mut agent = Agent::spawn(once.clone());
    online(&control, 1).await;
    let ids = control
        .queue_jobs(
            ORGANIZATION,
            POOL,
            &JobSpec {
                count: 2,
                ..JobSpec::default()
            },
        )
        .await
        .unwrap();
    assert_eq!(
        soon("the agent's end", agent.wait()).await,
        exit_code::SUCCESS
    );
    let jobs = control.jobs(ORGANIZATION, POOL).await.unwrap();
    let outcomes: Vec<_> = jobs.iter().map(|job| job.outcome).collect();
    assert_eq!(
        outcomes,
        [Outcome::Succeeded, Outcome::Queued],
        "agentShuttingDown was ignored"
    );
    assert_eq!(control.agents(ORGANIZATION, POOL).await.unwrap().len(), 1);

    // The name is in use: --replace takes it over, and the trap of some images removes it.
    once.env
        .insert(REMOVE_ON_EXIT.to_owned(), "true".to_owned());
    let mut agent = Agent::spawn(once);
    assert_eq!(
        soon("the agent's end", agent.wait()).await,
        exit_code::SUCCESS
    );
    assert_eq!(
        job_when(&control, ids[1], Outcome::is_finished)
            .await
            .outcome,
        Outcome::Succeeded
    );
    assert!(control.agents(ORGANIZATION, POOL).await.unwrap().is_empty());
    let requests = control.requests(None).await.unwrap();
    assert_eq!(requests.of("registration", "Agents.Replace"), 1);
}

#[tokio::test]
async fn taking_over_a_name_keeps_what_users_said_about_it() {
    let (simulator, control) = simulator(Switches::default()).await;
    let stranger = AgentSpec {
        name: "Agent-1".to_owned(),
        ..AgentSpec::default()
    };
    let id = control
        .add_agent(ORGANIZATION, POOL, &stranger)
        .await
        .unwrap();
    simulator.with_world(|world| {
        let path = format!("pools/1/agents/{id}/usercapabilities");
        let request = request(Method::Put, &path)
            .with_pat(PAT)
            .with_json(&json!({ "team": "a" }));
        assert_eq!(
            world
                .handle(Timestamp::now(), &request)
                .reply()
                .unwrap()
                .status,
            200
        );
    });
    let _agent = start(&simulator, "agent-1");
    online(&control, 1).await;
    let agents = control.agents(ORGANIZATION, POOL).await.unwrap();
    assert_eq!(agents.len(), 1);
    assert_eq!((agents[0].id, agents[0].has_key), (id, true));
    assert_eq!(agents[0].user_capabilities["team"], "a");
    assert!(agents[0].system_capabilities.contains_key("java"));
}

#[tokio::test]
async fn a_second_agent_of_the_name_gives_up_on_the_session() {
    let (simulator, control) = simulator(Switches::default()).await;
    let first = start(&simulator, "agent-1");
    online(&control, 1).await;
    let mut rival = launch(&simulator, "agent-1");
    rival.pace = Pace {
        session_patience: Duration::from_millis(300),
        ..Pace::fast()
    };
    let mut second = Agent::spawn(rival);
    assert_eq!(
        soon("the agent's end", second.wait()).await,
        exit_code::TERMINATED
    );
    assert!(first.exit_code().is_none());
}

#[tokio::test]
async fn ends_when_its_registration_is_deleted() {
    let (simulator, control) = simulator(Switches::default()).await;
    let mut agent = start(&simulator, "agent-1");
    online(&control, 1).await;
    control
        .delete_agent(ORGANIZATION, POOL, "agent-1")
        .await
        .unwrap();
    assert_eq!(
        soon("the agent's end", agent.wait()).await,
        exit_code::TERMINATED
    );
}

#[tokio::test]
async fn bad_configuration_ends_it_at_once() {
    let (simulator, control) = simulator(Switches::default()).await;
    let read_only = PatSpec {
        scopes: vec![Scope::Read],
        ..PatSpec::default()
    };
    let read_only = control.create_pat(ORGANIZATION, &read_only).await.unwrap();
    for (name, value) in [
        ("AZP_TOKEN", "wrong"),
        ("AZP_TOKEN", &read_only),
        ("AZP_POOL", "none"),
        ("AZP_URL", ""),
    ] {
        let mut launch = launch(&simulator, "agent-1");
        launch.env.insert(name.to_owned(), value.to_owned());
        let code = soon("the agent's end", Agent::spawn(launch).wait()).await;
        assert_eq!(code, exit_code::TERMINATED, "with {name}={value}");
    }
    assert!(control.agents(ORGANIZATION, POOL).await.unwrap().is_empty());
}

#[tokio::test]
async fn lost_and_expired_tokens_are_renewed() {
    let switches = Switches {
        agent_token_life: Duration::from_secs(1),
        ..Switches::default()
    };
    let (simulator, control) = simulator(switches).await;
    let _agent = start(&simulator, "agent-1");
    online(&control, 1).await;
    let id = queue(&control, &spec(Duration::from_millis(2_500))).await;
    assert_eq!(
        job_when(&control, id, Outcome::is_finished).await.outcome,
        Outcome::Succeeded
    );
    let next = queue(&control, &spec(Duration::ZERO)).await;
    assert_eq!(
        job_when(&control, next, Outcome::is_finished).await.outcome,
        Outcome::Succeeded
    );
    let requests = control.requests(None).await.unwrap();
    assert!(requests.by_operation["OAuth.Token"] >= 2, "{requests:?}");
}

/// Agents in this process on two threads, each with a poll held open, share many short jobs.
async fn crowd(agents: usize, jobs: usize) {
    let (simulator, control) = simulator(Switches::default()).await;
    let begin = Instant::now();
    let running: Vec<Agent> = (0..agents)
        .map(|index| start(&simulator, &format!("agent-{index}")))
        .collect();
    online(&control, agents).await;
    let ready = begin.elapsed();
    let demands = vec!["java".to_owned()];
    let spec = JobSpec {
        count: jobs,
        demands,
        ..spec(Duration::from_millis(1))
    };
    control.queue_jobs(ORGANIZATION, POOL, &spec).await.unwrap();
    let done = control.summary_when(ORGANIZATION, POOL, |summary| summary.unfinished() == 0);
    let done = soon("all jobs", done).await.unwrap();
    eprintln!(
        "{agents} agents online after {ready:?}, {jobs} jobs done after {:?}",
        begin.elapsed()
    );
    assert_eq!(done.jobs_with(Outcome::Succeeded), jobs);
    assert!(running.iter().all(|agent| agent.exit_code().is_none()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crowd_shares_the_work() {
    crowd(250, 1_000).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "full size: for an optimised build, `cargo test --release -- --ignored`"]
async fn a_thousand_agents_run_ten_thousand_jobs() {
    crowd(1_000, 10_000).await;
}
