//! One run: the models, the operators, and the queue of what happens next.

mod agents;
mod hosts;
mod looks;
mod operators;
mod requests;
mod rest;
mod strangers;
mod troubles;
mod truth;
mod users;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use azure_devops::Connections;
use azure_devops_simulator::{Settings, World, world::direct::PoolHandle};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use uuid::Uuid;

pub(crate) use self::{
    agents::{Machine, Node, Step},
    hosts::{Host, HostStep},
    looks::AgentPoolState,
    operators::Process,
    requests::InFlight,
    troubles::Troubles,
    truth::Origin,
};
use crate::{
    Options,
    book::{Book, Breach},
    clock::{HOUR, Millis, at},
    cluster::{Change, Cluster, Name},
    queue::Queue,
    random::Random,
    scenario::{AGENT_POOLS, Kind, ORGANIZATION, Scenario},
};

/// Longest time from the end of all trouble to rest, beside the time that the jobs take which are left: the longest
/// `ttlIdleSeconds`, a lost node, a lost job's lock, and what these wait for.
pub(crate) const BOUND: Millis = 2 * HOUR;

/// Failures after which a run ends. Controls have thousands.
const ENOUGH: usize = 50;
/// Pods after which a run ends, for controls that make them without end.
const FLOOD: u64 = 5000;

/// Something that happens. Numbers are indexes into the lists of [`Simulation`].
#[derive(Debug)]
pub(crate) enum Event {
    LookBegins(usize, usize, u32),
    LookReads(usize, usize, u32, bool),
    LookEnds(usize, usize, u32),
    Told(usize, u32, Change),
    Listed(usize, u32),
    Gathered(usize, usize),
    Timer(usize, usize, u32),
    Effect(usize),
    Reply(usize),
    OperatorStarts,
    OperatorStops(usize),
    ClockReturns(usize),
    Deadlines,
    Pod(usize, Step),
    Host(usize, HostStep),
    NodeUnreachable(usize, u32),
    NodeRemoved(usize, u32),
    Collected(String, Millis),
    Arrival(usize),
    Trouble(Kind),
    TroubleEnds(Kind, u32),
    PoolAgain(usize),
    StrangerLeaves(Name),
}

/// What is drawn by itself, so that it changes nothing else of a seed's story.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Apart {
    Latency,
    ReadOfRequests,
    ReadOfAgents,
    Deletion,
    Spelling,
    Options,
    Host,
}

pub(crate) struct Simulation {
    pub(crate) options: Options,
    pub(crate) seed: u64,
    pub(crate) now: Millis,
    pub(crate) queue: Queue<Event>,
    pub(crate) random: Random,
    pub(crate) scenario: Scenario,
    pub(crate) world: World,
    pub(crate) agent_pools: Vec<AgentPoolState>,
    pub(crate) cluster: Cluster,
    pub(crate) machines: Vec<Machine>,
    pub(crate) by_uid: HashMap<String, usize>,
    pub(crate) sessions: HashMap<Uuid, usize>,
    pub(crate) origins: HashMap<i64, Origin>,
    pub(crate) nodes: Vec<Node>,
    pub(crate) operators: Vec<Option<Process>>,
    pub(crate) asks: Vec<Option<InFlight>>,
    pub(crate) free_asks: Vec<usize>,
    pub(crate) connections: Connections,
    pub(crate) troubles: Troubles,
    pub(crate) book: Book,
    /// Claims that an operator deleted while another one acted.
    pub(crate) contested_claims: BTreeSet<Name>,
    /// Registrations of strangers that have to be there, with whether they are enabled.
    pub(crate) strangers: HashMap<i64, (usize, bool)>,
    pub(crate) hosts: Vec<Host>,
    /// Pods and claims of strangers, as they have to be there.
    pub(crate) strangers_pods: BTreeMap<Name, Arc<Pod>>,
    pub(crate) strangers_claims: BTreeMap<Name, Arc<PersistentVolumeClaim>>,
    /// Those of them whose name an agent of ours may want.
    pub(crate) in_the_way: BTreeSet<Name>,
    /// Kept claims that have to be there, by name, with their uid.
    pub(crate) kept: HashMap<(String, String), String>,
    next_deadline: Millis,
    /// When all trouble and load ends.
    pub(crate) end: Millis,
}

impl Simulation {
    pub(crate) fn new(seed: u64, options: Options, connections: Connections) -> Self {
        let scenario = Scenario::of(seed);
        let mut world = World::new(Settings {
            seed,
            request_log: 0,
            ..Settings::default()
        });
        let made = world.create_organization(ORGANIZATION);
        debug_assert!(made.is_ok());
        let mut agent_pools = Vec::new();
        for name in AGENT_POOLS.iter().take(scenario.jobs_an_hour.len()) {
            let made = world.create_pool(at(0), ORGANIZATION, name);
            debug_assert!(made.is_ok());
            if let Ok(handle) = world.pool_handle(ORGANIZATION, name) {
                agent_pools.push(AgentPoolState::new(handle));
            }
        }
        let nodes = (0..scenario.nodes).map(|_| Node::default()).collect();
        let mut simulation = Self {
            seed,
            now: 0,
            queue: Queue::new(),
            random: Random::new(seed),
            world,
            agent_pools,
            cluster: Cluster::default(),
            machines: Vec::new(),
            by_uid: HashMap::new(),
            sessions: HashMap::new(),
            origins: HashMap::new(),
            nodes,
            operators: Vec::new(),
            asks: Vec::new(),
            free_asks: Vec::new(),
            connections,
            troubles: Troubles::new(scenario.pools.len()),
            book: Book::new(options.trace),
            contested_claims: BTreeSet::new(),
            strangers: HashMap::new(),
            hosts: Vec::new(),
            strangers_pods: BTreeMap::new(),
            strangers_claims: BTreeMap::new(),
            in_the_way: BTreeSet::new(),
            kept: HashMap::new(),
            next_deadline: Millis::MAX,
            end: options.hours * HOUR,
            scenario,
            options,
        };
        simulation.begin();
        simulation
    }

    fn begin(&mut self) {
        for pool in self.scenario.pools.clone() {
            self.cluster.put_pool(pool, 0);
        }
        self.after(0, Event::OperatorStarts);
        for index in 0..self.agent_pools.len() {
            self.next_arrival(index);
        }
        for (kind, mean) in self.scenario.troubles.clone() {
            let wait = self.random.wait(mean);
            self.after(wait, Event::Trouble(kind));
        }
    }

    /// Runs to the end of all trouble and load, and then to rest.
    pub(crate) fn run(mut self) -> Book {
        self.until(self.end);
        if !self.is_given_up() {
            self.end_troubles();
            self.settle();
            self.come_to_rest();
        }
        if self.book.counts.pods >= FLOOD {
            let detail = format!("{FLOOD} Pods were made");
            self.book.fail(Breach::NotConverged, self.now, detail);
        }
        self.count_in_vain();
        self.book
    }

    /// Whether it went so wrong that more would tell nothing.
    fn is_given_up(&self) -> bool {
        self.book.failures.len() >= ENOUGH || self.book.counts.pods >= FLOOD
    }

    /// Runs up to a time.
    pub(crate) fn until(&mut self, end: Millis) {
        while !self.is_given_up()
            && let Some((time, event)) = self.queue.next(end)
        {
            self.now = time;
            self.happen(event);
            self.settle();
        }
        self.now = end;
    }

    /// Puts an event into the queue.
    pub(crate) fn after(&mut self, wait: Millis, event: Event) {
        // Looks happen before whatever else happens in the same millisecond, so that it does not matter whether one was
        // in the queue all the time or is caught up with. Nor does it matter how often a timer was set anew.
        let rank = match event {
            Event::LookBegins(..) | Event::LookReads(..) | Event::LookEnds(..) => 0,
            Event::Timer(operator, pool, _) => 2 + operator * self.scenario.pools.len() + pool,
            _ => 1,
        };
        self.queue.at(self.now + wait.max(0), rank, event);
    }

    /// Something took effect, with a name that equal runs give it too.
    pub(crate) fn effect_of(&mut self, what: &str, whom: &str) {
        self.book.effect(self.now, what, whom);
    }

    /// Chance for one occasion at a time.
    pub(crate) fn apart(&self, time: Millis, whom: u64, what: Apart) -> Random {
        let time = u64::try_from(time).unwrap_or_default();
        Random::of(self.seed, [time, whom, what as u64])
    }

    /// The time as the world has it.
    pub(crate) fn time(&self) -> Timestamp {
        at(self.now)
    }

    pub(crate) fn handle(&self, agent_pool: usize) -> PoolHandle {
        self.agent_pools[agent_pool].handle
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::LookBegins(operator, sight, epoch) => self.look_begins(operator, sight, epoch),
            Event::LookReads(operator, sight, epoch, agents) => {
                self.look_reads(operator, sight, epoch, agents);
            }
            Event::LookEnds(operator, sight, epoch) => self.look_ends(operator, sight, epoch),
            Event::Told(operator, stream, change) => self.told(operator, stream, &change),
            Event::Listed(operator, stream) => self.listed(operator, stream),
            Event::Gathered(operator, pool) => self.gathered(operator, pool),
            Event::Timer(operator, pool, number) => self.timer(operator, pool, number),
            Event::Effect(ask) => self.effect(ask),
            Event::Reply(ask) => self.reply(ask),
            Event::OperatorStarts => self.operator_starts(),
            Event::OperatorStops(operator) => self.operator_stops(operator),
            Event::ClockReturns(operator) => self.set_skew(operator, 0),
            Event::Deadlines => {
                self.next_deadline = Millis::MAX;
                self.world.tick(self.time());
            }
            Event::Pod(machine, step) => self.step(machine, step),
            Event::Host(host, step) => self.host_does(host, step),
            Event::NodeUnreachable(node, life) => self.node_unreachable(node, life),
            Event::NodeRemoved(node, life) => self.node_removed(node, life),
            Event::Collected(uid, seen_at) => self.collect(&uid, seen_at),
            Event::Arrival(agent_pool) => self.arrival(agent_pool),
            Event::Trouble(kind) => self.trouble_comes(kind),
            Event::TroubleEnds(kind, number) => self.trouble_ends(kind, number),
            Event::PoolAgain(pool) => self.pool_again(pool),
            Event::StrangerLeaves(name) => self.stranger_leaves(&name),
        }
    }

    /// Brings what just happened to those who watch it.
    pub(crate) fn settle(&mut self) {
        if !self.cluster.changes.is_empty() {
            for change in std::mem::take(&mut self.cluster.changes) {
                self.publish(&change);
            }
        }
        let stirred: Vec<Uuid> = self.world.take_stirred().collect();
        for session in stirred {
            if let Some(&machine) = self.sessions.get(&session) {
                let wait = self.random.between(30, 600);
                self.after(wait, Event::Pod(machine, Step::Reads));
            } else if let Some(host) = self.host_of(session) {
                self.after(200, Event::Host(host, HostStep::Reads));
            }
        }
        for index in 0..self.agent_pools.len() {
            if self.agent_pools[index].revise(&self.world) {
                self.judge_jobs(index);
                self.remember(index);
                self.wake_pool(index);
            }
        }
        if let Some(due) = self.world.next_due() {
            let due = crate::clock::millis(due);
            if due < self.next_deadline {
                self.next_deadline = due;
                self.after(due - self.now, Event::Deadlines);
            }
        }
    }
}

/// A copy of an object, for an answer.
pub(crate) fn owned<T: Clone>(object: &Arc<T>) -> T {
    (**object).clone()
}
