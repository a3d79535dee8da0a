//! Agents of strangers on hosts of their own, outside the cluster: they take the jobs of an agent pool that they can run, as
//! ours do, and go when their owner likes, in order or not.

use std::collections::BTreeMap;

use azure_devops_simulator::{JobResult, world::direct::NewAgent};
use uuid::Uuid;

use super::{Apart, Event, Simulation, agents::Message, truth::Origin};
use crate::{
    clock::{HOUR, MINUTE, Millis, SECOND},
    scenario::Kind,
};

/// It gives a sign of life this often.
const KEEP: Millis = 100 * SECOND;
/// How soon it tries again what the service could not do.
const AGAIN: Millis = 15 * SECOND;
/// What no agent of ours has, and users demand where a host has it.
const RARE: &str = "xcode";

/// A host, and the agent on it.
#[derive(Debug)]
pub(crate) struct Host {
    agent_pool: usize,
    name: String,
    registration: i64,
    session: Option<Uuid>,
    worker: Option<i64>,
    /// What only it can do.
    rare: bool,
    /// It left, or failed.
    gone: bool,
}

/// What happens to a host next.
#[derive(Clone, Copy, Debug)]
pub(crate) enum HostStep {
    /// Its agent looks for messages.
    Reads,
    /// Its agent gives a sign of life, with a new session if the last one has ended.
    Keeps,
    /// Its job is done.
    JobEnds(i64),
    /// Its owner takes it away as soon as no job runs there.
    Leaves,
    /// It fails.
    Fails,
}

impl Simulation {
    /// Somebody brings a host, with some of what agents of ours have.
    pub(crate) fn host_comes(&mut self) -> bool {
        let number = self.hosts.len();
        let whom = u64::try_from(number).unwrap_or_default();
        let mut random = self.apart(self.now, whom, Apart::Host);
        let agent_pool = random.index(self.agent_pools.len());
        let name = format!("host-{number}");
        let mut capabilities: BTreeMap<String, String> = (self.offered(agent_pool).iter())
            .filter(|offered| random.permille(500) && *offered != RARE)
            .map(|offered| offered.split_once(" -equals ").unwrap_or((offered, "1")))
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect();
        capabilities.insert("Agent.Version".to_owned(), "4.255.0".to_owned());
        let rare = random.permille(500);
        if rare {
            capabilities.insert(RARE.to_owned(), "16".to_owned());
        }
        let (handle, now) = (self.handle(agent_pool), self.time());
        let agent = NewAgent {
            name: name.clone(),
            version: "4.255.0".to_owned(),
            system_capabilities: capabilities,
            user_capabilities: BTreeMap::new(),
        };
        let Ok(registration) = self.world.register_agent(now, handle, agent) else {
            return false;
        };
        let since = self.now;
        self.origins
            .insert(registration, Origin::Stranger { since });
        self.strangers.insert(registration, (agent_pool, true));
        self.tell_host("comes", &name);
        self.hosts.push(Host {
            agent_pool,
            name,
            registration,
            session: None,
            worker: None,
            rare,
            gone: false,
        });
        let stays = random.between(10 * MINUTE, 8 * HOUR);
        let end = if random.permille(300) {
            HostStep::Fails
        } else {
            HostStep::Leaves
        };
        self.after(stays, Event::Host(number, end));
        self.after(SECOND, Event::Host(number, HostStep::Keeps));
        true
    }

    pub(crate) fn host_does(&mut self, number: usize, step: HostStep) {
        let host = &mut self.hosts[number];
        if host.gone {
            return;
        }
        match step {
            HostStep::Reads => self.host_reads(number),
            HostStep::Keeps => self.host_keeps(number),
            HostStep::JobEnds(request) => self.host_ends_job(number, request),
            HostStep::Leaves => self.host_leaves(number),
            HostStep::Fails => {
                host.gone = true;
                let name = host.name.clone();
                self.tell_host("fails", &name);
            }
        }
    }

    fn host_keeps(&mut self, number: usize) {
        let down = self.troubles.is(Kind::ServiceDown);
        let wait = if down { AGAIN } else { KEEP };
        self.after(wait, Event::Host(number, HostStep::Keeps));
        if down {
            return;
        }
        let host = &self.hosts[number];
        let (handle, now) = (self.handle(host.agent_pool), self.time());
        let (id, session, worker) = (host.registration, host.session, host.worker);
        if let Some(request) = worker
            && self.world.renew_job(now, handle, id, request).is_err()
        {
            // The job is over for the service: the worker is stopped.
            self.hosts[number].worker = None;
        }
        if session.is_none() {
            // One that is refused is asked for again with the next sign of life.
            self.hosts[number].session = self.world.open_session(now, handle, id).ok();
        }
        self.host_reads(number);
    }

    fn host_reads(&mut self, number: usize) {
        let host = &self.hosts[number];
        let Some(session) = host.session else { return };
        let (agent_pool, worker) = (host.agent_pool, host.worker);
        match self.next_message(agent_pool, session, worker) {
            Message::None => return,
            Message::SessionLost => {
                self.hosts[number].session = None;
                return;
            }
            Message::Cancels(request) => self.host_reports(number, request, JobResult::Canceled),
            Message::Job { request, duration } => {
                self.hosts[number].worker = Some(request);
                self.after(duration, Event::Host(number, HostStep::JobEnds(request)));
            }
            Message::OfNoUse => {}
        }
        self.after(SECOND, Event::Host(number, HostStep::Reads));
    }

    fn host_ends_job(&mut self, number: usize, request: i64) {
        let host = &self.hosts[number];
        if host.worker != Some(request) {
            return;
        }
        if self.troubles.is(Kind::ServiceDown) {
            self.after(AGAIN, Event::Host(number, HostStep::JobEnds(request)));
            return;
        }
        let result = self.planned_result(host.agent_pool, request);
        self.host_reports(number, request, result);
    }

    fn host_reports(&mut self, number: usize, request: i64, result: JobResult) {
        let host = &self.hosts[number];
        let (handle, now, id) = (self.handle(host.agent_pool), self.time(), host.registration);
        // What the service has given up already is over as well.
        let _ = self
            .world
            .complete_job(now, handle, id, request, result, false);
        self.hosts[number].worker = None;
        self.after(SECOND, Event::Host(number, HostStep::Reads));
    }

    fn host_leaves(&mut self, number: usize) {
        let host = &self.hosts[number];
        let (handle, now, id) = (self.handle(host.agent_pool), self.time(), host.registration);
        let down = self.troubles.is(Kind::ServiceDown);
        // A job that was just assigned keeps it as well.
        if host.worker.is_some() || down || self.world.unregister_agent(now, handle, id).is_err() {
            self.after(AGAIN, Event::Host(number, HostStep::Leaves));
            return;
        }
        self.strangers.remove(&id);
        let host = &mut self.hosts[number];
        host.gone = true;
        let name = host.name.clone();
        self.tell_host("leaves", &name);
    }

    /// What users demand as there is a host that has it.
    pub(crate) fn offered_by_hosts(&self, agent_pool: usize) -> Option<String> {
        let mut hosts = self.hosts.iter();
        let has = |host: &Host| host.rare && !host.gone && host.agent_pool == agent_pool;
        hosts.any(has).then(|| RARE.to_owned())
    }

    /// The host whose agent has this session.
    pub(crate) fn host_of(&self, session: Uuid) -> Option<usize> {
        let mut hosts = self.hosts.iter();
        hosts.position(|host| host.session == Some(session) && !host.gone)
    }

    /// Whether the host with this registration is gone. One that left had no job.
    pub(crate) fn is_gone(&self, registration: i64) -> bool {
        let mut hosts = self.hosts.iter();
        hosts.any(|host| host.registration == registration && host.gone)
    }

    fn tell_host(&mut self, what: &'static str, name: &str) {
        self.effect_of(what, name);
        self.book
            .tell(self.now, "stranger", || format!("{name} {what}"));
    }
}
