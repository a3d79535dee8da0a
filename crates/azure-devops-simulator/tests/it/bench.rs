//! A small installation: one organization `acme` with pool `linux`, over HTTP or at virtual times.

use std::time::Duration;

use azure_devops_simulator::{
    AgentSpec, Control, JobSpec, JobView, Outcome, PatSpec, Settings, Simulator, Summary, Switches,
    World,
    agent::{Agent, Launch, Pace},
    world::{Method, Reply, Request, Response, Wait},
};
use jiff::Timestamp;
use serde_json::{Value, json};

pub(crate) const ORGANIZATION: &str = "acme";
pub(crate) const POOL: &str = "linux";
pub(crate) const PAT: &str = "pat-of-the-operator";
/// No test waits longer for anything.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) fn populate(world: &mut World, now: Timestamp) {
    world.create_organization(ORGANIZATION).unwrap();
    world.create_pool(now, ORGANIZATION, POOL).unwrap();
    let pat = PatSpec {
        name: "operator".to_owned(),
        token: Some(PAT.to_owned()),
        ..PatSpec::default()
    };
    world.create_pat(ORGANIZATION, pat).unwrap();
}

pub(crate) async fn simulator(switches: Switches) -> (Simulator, Control) {
    let simulator = Simulator::start(Settings {
        switches,
        ..Settings::default()
    })
    .await
    .unwrap();
    simulator.with_world(|world| populate(world, Timestamp::now()));
    let control = simulator.control();
    (simulator, control)
}

pub(crate) fn launch(simulator: &Simulator, name: &str) -> Launch {
    let env = [
        ("AZP_URL", format!("{}{ORGANIZATION}", simulator.url())),
        ("AZP_POOL", POOL.to_owned()),
        ("AZP_TOKEN", PAT.to_owned()),
        ("AZP_AGENT_NAME", name.to_owned()),
        ("FLAVOUR", "Vanilla".to_owned()),
    ];
    Launch {
        env: env.map(|(name, value)| (name.to_owned(), value)).into(),
        args: Vec::new(),
        tools: [("java".to_owned(), "/usr/bin/java".to_owned())].into(),
        host_name: format!("host-of-{name}"),
        pace: Pace::fast(),
    }
}

pub(crate) fn start(simulator: &Simulator, name: &str) -> Agent {
    Agent::spawn(launch(simulator, name))
}

pub(crate) async fn soon<T>(what: &str, wait: impl Future<Output = T>) -> T {
    let Ok(value) = tokio::time::timeout(PATIENCE, wait).await else {
        panic!("waited in vain for {what}")
    };
    value
}

pub(crate) async fn job_when(
    control: &Control,
    id: i64,
    wanted: impl Fn(Outcome) -> bool,
) -> JobView {
    let is = |jobs: &[JobView]| jobs.iter().any(|job| job.id == id && wanted(job.outcome));
    let jobs = soon("a job", control.jobs_when(ORGANIZATION, POOL, is))
        .await
        .unwrap();
    jobs.into_iter().find(|job| job.id == id).unwrap()
}

pub(crate) async fn online(control: &Control, count: usize) {
    let is = |summary: &Summary| summary.online == count;
    let wait = control.summary_when(ORGANIZATION, POOL, is);
    if tokio::time::timeout(PATIENCE, wait).await.is_err() {
        let requests = control.requests(None).await.unwrap();
        let summary = control.summary(ORGANIZATION, POOL).await.unwrap();
        panic!("waited in vain for {count} agents: {summary:?} {requests:?}");
    }
}

/// A world whose clock the test turns.
pub(crate) struct Bench {
    pub(crate) world: World,
    pub(crate) now: Timestamp,
}

impl Bench {
    pub(crate) fn new() -> Self {
        Self::with(Switches::default())
    }

    pub(crate) fn with(switches: Switches) -> Self {
        let now: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let mut world = World::new(Settings {
            switches,
            ..Settings::default()
        });
        populate(&mut world, now);
        Self { world, now }
    }

    pub(crate) fn pass(&mut self, time: Duration) {
        self.now += time;
        self.world.tick(self.now);
    }

    pub(crate) fn ask(&mut self, request: &Request) -> Response {
        self.world.handle(self.now, request)
    }

    /// A reply to a request with the operator's token.
    pub(crate) fn call(&mut self, method: Method, path: &str, body: Option<&Value>) -> Reply {
        let request = request(method, path).with_pat(PAT);
        let request = match body {
            Some(body) => request.with_json(body),
            None => request,
        };
        self.ask(&request).reply().unwrap()
    }

    pub(crate) fn get(&mut self, path: &str) -> Value {
        let reply = self.call(Method::Get, path, None);
        assert_eq!(reply.status, 200, "{path}: {}", reply.json());
        reply.json()
    }

    pub(crate) fn add_agent(&mut self, name: &str, capabilities: &[(&str, &str)]) -> i64 {
        let owned = |&(name, value): &(&str, &str)| (name.to_owned(), value.to_owned());
        let spec = AgentSpec {
            name: name.to_owned(),
            capabilities: capabilities.iter().map(owned).collect(),
            ..AgentSpec::default()
        };
        self.world
            .add_agent_by_hand(self.now, ORGANIZATION, POOL, spec)
            .unwrap()
    }

    /// Opens a session and gives its id.
    pub(crate) fn open_session(&mut self, agent: i64) -> String {
        let reply = self.try_session(agent);
        assert_eq!(reply.status, 200, "{}", reply.json());
        reply.json()["sessionId"].as_str().unwrap().to_owned()
    }

    pub(crate) fn try_session(&mut self, agent: i64) -> Reply {
        let body = json!({ "ownerName": "host", "agent": { "id": agent } });
        self.call(Method::Post, "pools/1/sessions", Some(&body))
    }

    pub(crate) fn poll(&mut self, session: &str, last_message: i64) -> Response {
        let path = format!("pools/1/messages?sessionId={session}&lastMessageId={last_message}");
        self.ask(&request(Method::Get, &path).with_pat(PAT))
    }

    pub(crate) fn held(&mut self, session: &str) -> Wait {
        match self.poll(session, 0) {
            Response::Wait(wait) => wait,
            Response::Reply(reply) => panic!("not held: {} {}", reply.status, reply.json()),
        }
    }

    /// Takes the waiting job as an agent does: reads, renews, deletes. Gives the message's body.
    pub(crate) fn take_job(&mut self, session: &str) -> Value {
        let message = self.poll(session, 0).reply().unwrap().json();
        let id = &message["messageId"];
        let path = format!("pools/1/messages/{id}?sessionId={session}");
        assert_eq!(self.call(Method::Delete, &path, None).status, 200);
        serde_json::from_str(message["body"].as_str().unwrap()).unwrap()
    }

    pub(crate) fn renew(&mut self, request: i64) -> Reply {
        let zero = "00000000-0000-0000-0000-000000000000";
        let path = format!("pools/1/jobrequests/{request}?lockToken={zero}");
        self.call(Method::Patch, &path, Some(&json!({ "requestId": request })))
    }

    pub(crate) fn report(&mut self, job: &Value, result: &str, shutting_down: bool) -> Reply {
        let scope = job["plan"]["scopeIdentifier"].as_str().unwrap();
        let plan = job["plan"]["planId"].as_str().unwrap();
        let token = &job["resources"]["endpoints"][0]["authorization"]["parameters"]["AccessToken"];
        let event = json!({
            "name": "JobCompleted",
            "requestId": job["requestId"],
            "jobId": job["jobId"],
            "result": result,
            "agentShuttingDown": shutting_down,
        });
        let target = format!(
            "/{ORGANIZATION}/{scope}/_apis/distributedtask/hubs/build/plans/{plan}/events?api-version=6.0-preview"
        );
        let request = Request::new(Method::Post, "http://simulator", &target)
            .with_header(
                "Authorization",
                &format!("Bearer {}", token.as_str().unwrap()),
            )
            .with_json(&event);
        self.ask(&request).reply().unwrap()
    }

    pub(crate) fn queue(&mut self, count: usize, demands: &[&str]) -> Vec<i64> {
        let demands = demands.iter().map(|&demand| demand.to_owned()).collect();
        let spec = JobSpec {
            count,
            demands,
            ..JobSpec::default()
        };
        self.world
            .queue_jobs(self.now, ORGANIZATION, POOL, &spec)
            .unwrap()
    }

    pub(crate) fn job(&self, id: i64) -> JobView {
        let jobs = self.world.jobs(ORGANIZATION, POOL).unwrap();
        jobs.into_iter().find(|job| job.id == id).unwrap()
    }

    pub(crate) fn outcome(&self, id: i64) -> Outcome {
        self.job(id).outcome
    }
}

/// A request below `_apis/distributedtask`, with a version where there is none.
pub(crate) fn request(method: Method, path: &str) -> Request {
    let mark = if path.contains('?') { '&' } else { '?' };
    let target = format!("/{ORGANIZATION}/_apis/distributedtask/{path}{mark}api-version=7.1");
    Request::new(method, "http://simulator", &target)
}
