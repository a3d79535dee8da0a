//! Nodes, and the agents in the containers of Pods: a kubelet that starts, stops and reports, and a process that
//! configures itself, opens a session, takes jobs, and ends. As thin as the properties need.

use std::collections::BTreeMap;

use azure_devops_simulator::{
    JobResult,
    world::direct::{NewAgent, Refusal},
};
use k8s_openapi::{
    api::core::v1::{
        ContainerState, ContainerStateRunning, ContainerStateTerminated, ContainerStateWaiting,
        ContainerStatus, Pod, PodCondition, PodStatus,
    },
    apimachinery::pkg::apis::meta::v1::Time,
};
use kube::{
    ResourceExt as _,
    api::{DeleteParams, Preconditions},
};
use uuid::Uuid;

use super::{Event, Simulation, truth::Origin};
use crate::{
    clock::{MINUTE, Millis, SECOND, second},
    cluster::{Deletion, Name, has_ended, owner},
    control::Control,
    scenario::{AGENT_POOLS, Kind, programs},
};

/// An agent gives a sign of life this often; a real one polls for up to 50 s at a time.
const KEEP: Millis = 100 * SECOND;
/// How long an agent waits before it tries again, when Azure DevOps could not be reached.
const KEEP_AGAIN: Millis = 30 * SECOND;
/// An agent tries this long to open a session while another one of its name is alive.
const SESSION_PATIENCE: Millis = 4 * MINUTE;
/// A control plane takes a node for lost after 40 s and waits 5 minutes before it has its Pods deleted.
const UNREACHABLE: Millis = 340 * SECOND;
/// How long the pre-stop hook has to find no worker.
const HOOK: Millis = 3 * SECOND;

/// A node.
#[derive(Debug, Default)]
pub(crate) struct Node {
    /// Grows when it is replaced.
    pub(crate) life: u32,
    pub(crate) lost: bool,
    /// It and the API server do not hear each other until then.
    pub(crate) cut_until: Millis,
}

/// A Pod's place on a node, and what runs there.
#[derive(Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
pub(crate) struct Machine {
    pub(crate) name: Name,
    pub(crate) uid: String,
    /// Index of the RunnerPool.
    pub(crate) pool: usize,
    pub(crate) owner: String,
    pub(crate) agent_pool: usize,
    pub(crate) agent: String,
    /// What its agent reports.
    capabilities: BTreeMap<String, String>,
    run_once: bool,
    pub(crate) node: usize,
    pub(crate) container: Container,
    /// Since when it has its node.
    placed_at: Millis,
    /// Its image cannot be pulled.
    no_image: bool,
    pub(crate) maker: Maker,
    pub(crate) registration: Option<i64>,
    /// When it registered itself.
    pub(crate) registered_at: Millis,
    session: Option<Uuid>,
    session_wanted_since: Option<Millis>,
    pub(crate) worker: Option<i64>,
    /// It had a job.
    pub(crate) worked: bool,
    worker_ended_at: Millis,
    stopping: bool,
    /// It hangs and never opens a session.
    hangs: bool,
    /// The first thing that somebody other than the operator did to it.
    pub(crate) outside: Option<&'static str>,
    /// The operator asked for its end, or let it go with its RunnerPool.
    pub(crate) ended_by_operator: bool,
    /// Its object is gone.
    pub(crate) gone: bool,
}

/// The operator that made a Pod.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Maker {
    pub(crate) operator: usize,
    /// Another one acted at the same time.
    pub(crate) with_others: bool,
    /// What it knew of names: this is when its list of agents was true.
    pub(crate) names_seen_at: Millis,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Container {
    Waiting,
    Running {
        since: Millis,
    },
    Ended {
        since: Millis,
        at: Millis,
        code: i32,
    },
}

impl Machine {
    pub(crate) fn is_running(&self) -> bool {
        matches!(self.container, Container::Running { .. })
    }

    pub(crate) fn is_hanging(&self) -> bool {
        self.hangs
    }

    /// Its one job is over: it opens no session and takes no message any more, and is about to exit.
    fn has_run_once(&self) -> bool {
        self.run_once && self.worker.is_none() && self.worker_ended_at > 0
    }
}

/// What happens to a Pod next.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Step {
    /// Its container starts.
    Starts,
    /// Its agent registers.
    Configures,
    /// Its agent opens a session.
    Opens,
    /// Its agent looks for messages.
    Reads,
    /// Its agent gives a sign of life.
    Keeps,
    /// Its job is done.
    JobEnds(i64),
    /// Its agent ends by itself.
    Exits(i32),
    /// The kubelet tells the API server how it is.
    Reported,
    /// The kubelet learns that it is to end.
    ToldToStop,
    /// The pre-stop hook looks whether a job runs.
    HookLooks,
    /// Its grace period is over.
    GraceEnds,
}

/// What an agent finds in its session.
pub(super) enum Message {
    /// Nothing, be it that the service does not answer, or no longer knows the job.
    None,
    /// The session has ended.
    SessionLost,
    /// Its job is cancelled.
    Cancels(i64),
    /// A job.
    Job { request: i64, duration: Millis },
    /// Another job while it works, or that a job is cancelled which it does not have.
    OfNoUse,
}

/// What an agent reports: its environment, the programs of its image, and what every agent has.
fn reported(container: Option<&k8s_openapi::api::core::v1::Container>) -> BTreeMap<String, String> {
    let container = container.into_iter();
    let environment = container
        .clone()
        .flat_map(|agent| agent.env.iter().flatten());
    let environment = environment
        .filter(|env| env.name != "AZP_TOKEN")
        .map(|env| (env.name.clone(), env.value.clone().unwrap_or_default()));
    let images = container.filter_map(|agent| agent.image.as_deref());
    let programs = images.flat_map(programs);
    let programs = programs.map(|name| ((*name).to_owned(), format!("/usr/bin/{name}")));
    let own = [("Agent.OS", "Linux"), ("Agent.Version", "4.255.0")];
    let own = own.map(|(name, value)| (name.to_owned(), value.to_owned()));
    environment.chain(programs).chain(own).collect()
}

impl Simulation {
    /// A Pod was created: it is put on a node and starts.
    pub(crate) fn place(&mut self, pod: &Pod, pool: usize, maker: Maker) {
        let agent = &pod.spec.as_ref().map(|spec| &spec.containers[0]);
        let variable = |name: &str| {
            let env = agent.iter().flat_map(|agent| agent.env.iter().flatten());
            let mut named = env.filter(|env| env.name == name);
            named
                .next()
                .and_then(|env| env.value.clone())
                .unwrap_or_default()
        };
        let pool_name = variable("AZP_POOL");
        let mut agent_pools = AGENT_POOLS.iter();
        let usable: Vec<usize> = (0..self.nodes.len())
            .filter(|&node| !self.nodes[node].lost && self.nodes[node].cut_until <= self.now)
            .collect();
        // A cluster without a usable node is not modelled: the scheduler would wait for one.
        let node = if usable.is_empty() {
            0
        } else {
            *self.random.pick(&usable)
        };
        let machine = Machine {
            name: (pod.namespace().unwrap_or_default(), pod.name_any()),
            uid: pod.uid().unwrap_or_default(),
            pool,
            owner: owner(pod).unwrap_or_default().to_owned(),
            agent_pool: agent_pools
                .position(|name| *name == pool_name)
                .unwrap_or_default(),
            agent: variable("AZP_AGENT_NAME"),
            capabilities: reported(*agent),
            run_once: agent.is_some_and(|agent| {
                let mut args = agent.args.iter().flatten();
                args.any(|arg| arg == "--once")
            }),
            node,
            container: Container::Waiting,
            placed_at: self.now,
            no_image: false,
            maker,
            registration: None,
            registered_at: 0,
            session: None,
            session_wanted_since: None,
            worker: None,
            worked: false,
            worker_ended_at: 0,
            stopping: false,
            hangs: false,
            outside: None,
            ended_by_operator: false,
            gone: false,
        };
        let number = self.machines.len();
        self.by_uid.insert(machine.uid.clone(), number);
        self.machines.push(machine);
        self.book.counts.pods += 1;
        if self.troubles.is(Kind::StartsHang) {
            // Some say why.
            self.machines[number].no_image = self.random.permille(500);
            self.report_soon(number);
            return;
        }
        let wait = 300 + self.random.wait(self.scenario.start_time);
        self.after(wait, Event::Pod(number, Step::Starts));
    }

    pub(crate) fn step(&mut self, number: usize, step: Step) {
        let machine = &self.machines[number];
        let running = machine.is_running();
        if self.nodes[machine.node].lost && !matches!(step, Step::Reported) && running {
            return;
        }
        match step {
            Step::Starts => self.container_starts(number),
            Step::Configures if running => self.configure(number),
            Step::Opens if running => self.open_session(number),
            Step::Reads if running => self.read(number),
            Step::Keeps if running => self.keep(number),
            Step::JobEnds(request) if running => self.job_ends(number, request),
            Step::Exits(code) if running => self.exit(number, code),
            Step::Reported => self.report(number),
            Step::ToldToStop => self.told_to_stop(number),
            Step::HookLooks if running => self.hook_looks(number),
            Step::GraceEnds if running => {
                if !machine.ended_by_operator {
                    self.blame(number, "outlived its grace period");
                }
                self.die(number, 137);
            }
            _ => {}
        }
    }

    fn container_starts(&mut self, number: usize) {
        let machine = &self.machines[number];
        if machine.gone || machine.stopping || machine.container != Container::Waiting {
            return;
        }
        // One that was given up is torn down.
        if self
            .cluster
            .pods
            .get(&machine.name)
            .is_none_or(|pod| has_ended(pod))
        {
            return;
        }
        if self.nodes[machine.node].lost {
            return;
        }
        if !self.judge_mounts(number) {
            // It waits for its claim, and tells so.
            self.report_soon(number);
            return;
        }
        let since = self.now;
        self.machines[number].container = Container::Running { since };
        self.mark_effect("container starts", number);
        self.tell_pod(number, "its container starts");
        self.judge_identity(number);
        self.report_soon(number);
        if self.troubles.is(Kind::StartsFail) {
            let wait = self.random.between(200, 3 * SECOND);
            self.blame(number, "failed to start");
            self.after(wait, Event::Pod(number, Step::Exits(1)));
            return;
        }
        if self.troubles.is(Kind::AgentHang) && self.random.permille(500) {
            self.machines[number].hangs = true;
            self.blame(number, "hangs");
            return;
        }
        let wait = self.random.between(2 * SECOND, 9 * SECOND);
        self.after(wait, Event::Pod(number, Step::Configures));
    }

    /// `config.sh --unattended --replace`.
    fn configure(&mut self, number: usize) {
        let token_works = self.troubles.secret_works();
        if self.troubles.is(Kind::ServiceDown) || !token_works {
            self.tell_pod(number, "cannot register its agent, and ends");
            self.blame(number, "could not register");
            self.exit(number, 1);
            return;
        }
        let machine = &self.machines[number];
        let handle = self.handle(machine.agent_pool);
        let now = self.time();
        let agent = NewAgent {
            name: machine.agent.clone(),
            version: "4.255.0".to_owned(),
            system_capabilities: machine.capabilities.clone(),
            user_capabilities: BTreeMap::new(),
        };
        let id = match self.world.agent_id(handle, &agent.name) {
            None => self.world.register_agent(now, handle, agent).ok(),
            Some(id) => {
                self.judge_replacement(number, id);
                let replaced = self.world.replace_registration(now, handle, id, agent);
                replaced.ok().map(|()| id)
            }
        };
        let Some(id) = id else {
            self.exit(number, 1);
            return;
        };
        self.origins.insert(id, Origin::Agent(number));
        let machine = &mut self.machines[number];
        machine.registration = Some(id);
        machine.registered_at = self.now;
        machine.session_wanted_since = Some(self.now);
        self.mark_effect("registers", number);
        self.tell_pod(number, "its agent registers");
        let wait = self.random.between(500, 2500);
        self.after(wait, Event::Pod(number, Step::Opens));
    }

    fn open_session(&mut self, number: usize) {
        let machine = &self.machines[number];
        let (Some(id), None) = (machine.registration, machine.session) else {
            return;
        };
        if machine.has_run_once() {
            return;
        }
        if self.troubles.is(Kind::ServiceDown) {
            self.after(15 * SECOND, Event::Pod(number, Step::Opens));
            return;
        }
        let handle = self.handle(machine.agent_pool);
        let waited = self.now - machine.session_wanted_since.unwrap_or(self.now);
        let now = self.time();
        match self.world.open_session(now, handle, id) {
            Ok(session) => {
                let machine = &mut self.machines[number];
                machine.session = Some(session);
                machine.session_wanted_since = None;
                self.sessions.insert(session, number);
                self.mark_effect("online", number);
                self.tell_pod(number, "its agent is online");
                self.after(KEEP, Event::Pod(number, Step::Keeps));
                self.after(100, Event::Pod(number, Step::Reads));
            }
            Err(Refusal::SessionConflict) if waited < SESSION_PATIENCE => {
                self.after(30 * SECOND, Event::Pod(number, Step::Opens));
            }
            Err(refusal) => {
                if refusal == Refusal::SessionConflict {
                    self.judge_session_conflict(number);
                }
                self.tell_pod(number, "its agent gives up");
                self.exit(number, 1);
            }
        }
    }

    fn read(&mut self, number: usize) {
        let machine = &self.machines[number];
        let Some(session) = machine.session.filter(|_| !machine.has_run_once()) else {
            return;
        };
        let (agent_pool, worker) = (machine.agent_pool, machine.worker);
        match self.next_message(agent_pool, session, worker) {
            Message::None => return,
            Message::SessionLost => {
                self.lose_session(number);
                return;
            }
            Message::Cancels(request) => {
                self.finish_job(number, request, JobResult::Canceled);
            }
            Message::Job { request, duration } => {
                let machine = &mut self.machines[number];
                (machine.worker, machine.worked) = (Some(request), true);
                self.mark_effect("job begins", number);
                self.tell_pod(number, &format!("begins job {request}"));
                self.after(duration, Event::Pod(number, Step::JobEnds(request)));
            }
            Message::OfNoUse => {}
        }
        self.after(700, Event::Pod(number, Step::Reads));
    }

    /// What an agent with this job finds when it looks for messages, which is a sign of life. It takes what it can act on.
    pub(super) fn next_message(
        &mut self,
        agent_pool: usize,
        session: Uuid,
        worker: Option<i64>,
    ) -> Message {
        if self.troubles.is(Kind::ServiceDown) {
            // It reads again with its next sign of life.
            return Message::None;
        }
        let (handle, now) = (self.handle(agent_pool), self.time());
        if !self.world.keep_session(now, handle, session) {
            return Message::SessionLost;
        }
        let Some(notice) = self.world.notice(handle, session) else {
            return Message::None;
        };
        let request = notice.request;
        if !notice.cancel && worker.is_some() {
            return Message::OfNoUse;
        }
        let plan = self.world.job_plan(handle, request);
        self.world.take_notice(now, handle, session, notice.message);
        match plan {
            _ if notice.cancel && worker == Some(request) => Message::Cancels(request),
            _ if notice.cancel => Message::OfNoUse,
            Some((duration, _)) => {
                let duration = Millis::try_from(duration.as_millis()).unwrap_or(MINUTE);
                Message::Job { request, duration }
            }
            None => Message::None,
        }
    }

    /// How a job is to end.
    pub(super) fn planned_result(&self, agent_pool: usize, request: i64) -> JobResult {
        let planned = self.world.job_plan(self.handle(agent_pool), request);
        planned.map_or(JobResult::Succeeded, |(_, result)| result)
    }

    fn lose_session(&mut self, number: usize) {
        let now = self.now;
        let machine = &mut self.machines[number];
        if let Some(session) = machine.session.take() {
            self.sessions.remove(&session);
        }
        machine.session_wanted_since = Some(now);
        // A new session comes after the job that runs.
        if machine.worker.is_none() {
            self.after(SECOND, Event::Pod(number, Step::Opens));
        }
    }

    fn keep(&mut self, number: usize) {
        let machine = &self.machines[number];
        let handle = self.handle(machine.agent_pool);
        let now = self.time();
        if let (Some(request), Some(id), false) = (
            machine.worker,
            machine.registration,
            self.troubles.is(Kind::ServiceDown),
        ) && self.world.renew_job(now, handle, id, request).is_err()
        {
            // The job is over for the service: the worker is stopped.
            self.worker_ends(number);
        }
        if self.machines[number].session.is_some() {
            self.read(number);
        }
        // What cannot be sent is tried again soon, as agents do.
        let down = self.troubles.is(Kind::ServiceDown);
        let wait = if down { KEEP_AGAIN } else { KEEP };
        self.after(wait, Event::Pod(number, Step::Keeps));
    }

    fn job_ends(&mut self, number: usize, request: i64) {
        let machine = &self.machines[number];
        if machine.worker != Some(request) {
            return;
        }
        if self.troubles.is(Kind::ServiceDown) {
            self.after(10 * SECOND, Event::Pod(number, Step::JobEnds(request)));
            return;
        }
        let result = self.planned_result(machine.agent_pool, request);
        self.finish_job(number, request, result);
    }

    fn finish_job(&mut self, number: usize, request: i64, result: JobResult) {
        let machine = &self.machines[number];
        let (handle, now) = (self.handle(machine.agent_pool), self.time());
        let (id, once) = (machine.registration.unwrap_or_default(), machine.run_once);
        let reported = self
            .world
            .complete_job(now, handle, id, request, result, once);
        self.tell_pod(
            number,
            &format!("ends job {request}: {result:?} {reported:?}"),
        );
        self.worker_ends(number);
    }

    fn worker_ends(&mut self, number: usize) {
        let now = self.now;
        let machine = &mut self.machines[number];
        machine.worker = None;
        machine.worker_ended_at = now;
        let (once, session) = (machine.run_once, machine.session);
        self.mark_effect("job ends", number);
        if once {
            let wait = self.random.between(200, 4 * SECOND);
            self.after(wait, Event::Pod(number, Step::Exits(0)));
        } else if session.is_none() {
            self.after(SECOND, Event::Pod(number, Step::Opens));
        } else {
            self.after(200, Event::Pod(number, Step::Reads));
        }
    }

    /// The agent ends in order: a job that runs is cancelled, its session is closed, and where the image does so, its
    /// registration is removed.
    fn exit(&mut self, number: usize, code: i32) {
        if let Some(request) = self.machines[number].worker {
            self.finish_job(number, request, JobResult::Canceled);
        }
        let machine = &mut self.machines[number];
        let (session, registration) = (machine.session.take(), machine.registration);
        let handle = self.agent_pools[machine.agent_pool].handle;
        let (now, down) = (self.time(), self.troubles.is(Kind::ServiceDown));
        if let Some(session) = session {
            self.sessions.remove(&session);
            if !down {
                self.world.close_session(now, handle, session);
            }
        }
        if let Some(id) = registration
            && self.scenario.removes_itself
            && !down
            && self.troubles.secret_works()
        {
            // A refusal, as a job is assigned, leaves it to the operator.
            let _ = self.world.unregister_agent(now, handle, id);
        }
        self.die(number, code);
    }

    /// The container ends, whatever its agent is doing; nobody is told.
    pub(crate) fn die(&mut self, number: usize, code: i32) {
        let at = self.now;
        let machine = &mut self.machines[number];
        let Container::Running { since } = machine.container else {
            return;
        };
        machine.container = Container::Ended { since, at, code };
        if let Some(session) = machine.session.take() {
            self.sessions.remove(&session);
            // The last poll of an agent began within the time that a poll is held.
            let handle = self.agent_pools[machine.agent_pool].handle;
            let now = self.time();
            if !self.troubles.is(Kind::ServiceDown) {
                self.world.keep_session(now, handle, session);
            }
        }
        self.mark_effect("container ends", number);
        self.tell_pod(number, &format!("its container ends with {code}"));
        self.report_soon(number);
    }

    /// Somebody other than the operator ended, or harmed, an agent.
    pub(crate) fn blame(&mut self, number: usize, what: &'static str) {
        self.machines[number].outside.get_or_insert(what);
    }

    pub(crate) fn report_soon(&mut self, number: usize) {
        let wait = self.random.between(50, 1500);
        self.after(wait, Event::Pod(number, Step::Reported));
    }

    /// The kubelet writes what it knows into the Pod's status, and confirms the end of a Pod that is to be deleted.
    fn report(&mut self, number: usize) {
        let machine = &self.machines[number];
        let node = &self.nodes[machine.node];
        if machine.gone || node.lost {
            return;
        }
        if node.cut_until > self.now {
            let wait = node.cut_until - self.now + SECOND;
            self.after(wait, Event::Pod(number, Step::Reported));
            return;
        }
        let (name, uid, container) = (machine.name.clone(), machine.uid.clone(), machine.container);
        let ended = matches!(container, Container::Ended { .. });
        let stored = self.cluster.pods.get(&name);
        let deleted = stored.is_some_and(|pod| pod.metadata.deletion_timestamp.is_some());
        // A kubelet leaves the phase of a Pod that has ended as it is.
        if stored.is_some_and(|pod| !has_ended(pod)) {
            let status = status(machine);
            self.cluster
                .change_pod(&name, &uid, |pod| pod.status = Some(status));
        }
        if deleted && (ended || container == Container::Waiting) {
            self.remove_pod(number);
        }
    }

    /// The object of a Pod goes.
    pub(crate) fn remove_pod(&mut self, number: usize) {
        let machine = &mut self.machines[number];
        machine.gone = true;
        let (name, uid) = (machine.name.clone(), machine.uid.clone());
        self.cluster.remove_pod(&name, &uid);
        self.mark_effect("pod gone", number);
        self.tell_pod(number, "is gone");
    }

    /// Somebody asked for the end of a Pod.
    pub(crate) fn deletion_asked(&mut self, number: usize) {
        let wait = self.random.between(20, 800);
        self.after(wait, Event::Pod(number, Step::ToldToStop));
    }

    fn told_to_stop(&mut self, number: usize) {
        let machine = &self.machines[number];
        let node = &self.nodes[machine.node];
        if machine.gone || node.lost {
            return;
        }
        if node.cut_until > self.now {
            let wait = node.cut_until - self.now + SECOND;
            self.after(wait, Event::Pod(number, Step::ToldToStop));
            return;
        }
        let told_before = std::mem::replace(&mut self.machines[number].stopping, true);
        if !self.machines[number].is_running() {
            self.report_soon(number);
            return;
        }
        if told_before {
            return;
        }
        if self.options.control == Some(Control::OneLook) {
            // The original operator's Pods have no hook: the agent gets SIGTERM and cancels its job.
            self.exit(number, 0);
            return;
        }
        // One that was declared failed is stopped as well, and nobody gave it any other time.
        let grace = self.cluster.pods.get(&self.machines[number].name);
        let grace = grace.and_then(|pod| {
            let given = pod.metadata.deletion_grace_period_seconds;
            given.or(pod.spec.as_ref()?.termination_grace_period_seconds)
        });
        let grace = grace.unwrap_or_default() * SECOND;
        self.after(grace, Event::Pod(number, Step::GraceEnds));
        self.after(HOOK, Event::Pod(number, Step::HookLooks));
    }

    fn hook_looks(&mut self, number: usize) {
        let machine = &self.machines[number];
        if machine.worker.is_none() && machine.worker_ended_at + HOOK <= self.now {
            self.exit(number, 0);
        } else {
            self.after(SECOND, Event::Pod(number, Step::HookLooks));
        }
    }

    /// Asks for the end of a Pod as somebody other than the operator does.
    pub(crate) fn delete_from_outside(&mut self, number: usize, what: &'static str) {
        let name = self.machines[number].name.clone();
        let uid = Some(self.machines[number].uid.clone());
        let params = DeleteParams::default().preconditions(Preconditions {
            uid,
            resource_version: None,
        });
        let deleted = self.cluster.delete_pod(&name, &params, self.now);
        if matches!(deleted, Ok(Deletion::Asked)) {
            self.blame(number, what);
        }
        if deleted.is_ok() {
            self.mark_effect(what, number);
            self.tell_pod(number, what);
            self.deletion_asked(number);
        }
    }

    /// The control plane has not heard of a node for too long.
    pub(crate) fn node_unreachable(&mut self, node: usize, life: u32) {
        let state = &self.nodes[node];
        if state.life != life || !state.lost && state.cut_until <= self.now {
            return;
        }
        for number in self.pods_on(node) {
            self.delete_from_outside(number, "its node is unreachable");
        }
    }

    /// A lost node is taken out of the cluster, its Pods with it, and another one comes.
    pub(crate) fn node_removed(&mut self, node: usize, life: u32) {
        if self.nodes[node].life != life || !self.nodes[node].lost {
            return;
        }
        for number in self.pods_on(node) {
            self.remove_pod(number);
        }
        self.nodes[node] = Node {
            life: life + 1,
            ..Node::default()
        };
    }

    pub(crate) fn lose_node(&mut self, node: usize) {
        let life = self.nodes[node].life;
        for number in self.pods_on(node) {
            self.blame(number, "its node was lost");
            self.die(number, 137);
        }
        self.nodes[node].lost = true;
        self.after(UNREACHABLE, Event::NodeUnreachable(node, life));
        let removed = UNREACHABLE + self.random.between(MINUTE, 15 * MINUTE);
        self.after(removed, Event::NodeRemoved(node, life));
    }

    pub(crate) fn cut_node(&mut self, node: usize, wait: Millis) {
        let state = &mut self.nodes[node];
        state.cut_until = self.now + wait;
        let life = state.life;
        self.after(UNREACHABLE, Event::NodeUnreachable(node, life));
    }

    /// Pods whose objects exist on a node.
    fn pods_on(&self, node: usize) -> Vec<usize> {
        self.present()
            .filter(|&number| self.machines[number].node == node)
            .collect()
    }

    /// Pods whose objects exist.
    pub(crate) fn present(&self) -> impl Iterator<Item = usize> {
        let pods = self.cluster.pods.values();
        pods.filter_map(|pod| self.by_uid.get(pod.metadata.uid.as_deref()?).copied())
    }

    pub(crate) fn tell_pod(&self, number: usize, what: &str) {
        let machine = &self.machines[number];
        self.book.tell(self.now, "pod", || {
            format!("{}/{} {what}", machine.name.0, machine.name.1)
        });
    }

    pub(crate) fn mark_effect(&mut self, what: &str, number: usize) {
        let (now, uid) = (self.now, &self.machines[number].uid);
        self.book.effect(now, what, uid);
    }
}

/// A status as a kubelet writes it.
fn status(machine: &Machine) -> PodStatus {
    let waits_for = if machine.no_image {
        "ImagePullBackOff"
    } else {
        "ContainerCreating"
    };
    let (phase, state) = match machine.container {
        Container::Waiting => (
            "Pending",
            ContainerState {
                waiting: Some(ContainerStateWaiting {
                    reason: Some(waits_for.into()),
                    message: None,
                }),
                ..ContainerState::default()
            },
        ),
        Container::Running { since } => (
            "Running",
            ContainerState {
                running: Some(ContainerStateRunning {
                    started_at: Some(Time(second(since))),
                }),
                ..ContainerState::default()
            },
        ),
        Container::Ended { since, at, code } => (
            if code == 0 { "Succeeded" } else { "Failed" },
            ContainerState {
                terminated: Some(ContainerStateTerminated {
                    exit_code: code,
                    started_at: Some(Time(second(since))),
                    finished_at: Some(Time(second(at))),
                    ..ContainerStateTerminated::default()
                }),
                ..ContainerState::default()
            },
        ),
    };
    PodStatus {
        phase: Some(phase.into()),
        conditions: Some(vec![PodCondition {
            type_: "PodScheduled".into(),
            status: "True".into(),
            last_transition_time: Some(Time(second(machine.placed_at))),
            ..PodCondition::default()
        }]),
        container_statuses: Some(vec![ContainerStatus {
            name: "agent".into(),
            state: Some(state),
            ..ContainerStatus::default()
        }]),
        ..PodStatus::default()
    }
}
