//! Looks at Azure DevOps: when they are made, what is read, what may be wrong with it, and which of them need not be
//! made.
//!
//! **Skipping.** Most looks of a day see what the one before saw, and the passes that they call for do nothing. Such
//! looks are not made. A reader is *parked* when its last look is certain to be repeated by the next one (the agent
//! pool has not changed since, nothing is wrong on the way there) and the last pass of each of its RunnerPools was quiet
//! (see `is_quiet`). Whatever could change that *wakes* it first: a change in the agent pool, a trouble, a change that
//! the operator is told of, a pass for another reason. Waking brings the reader to the state in which looks at each
//! interval would have left it: the last look that would have ended by now counts as made, and one that would be under
//! way is under way.
//!
//! Of looks that are made, those that see the same, or fail in the same way, call for no pass of a RunnerPool whose last
//! one was quiet, unless something else than a look has happened to a RunnerPool of the same agent pool since, or another
//! one of these is in a state that lasts for a time.
//!
//! A test runs the same seeds with and without skipping and compares all that took effect.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use azure_devops::{Class, TaskAgent, TaskAgentJobRequest, TaskAgentReference, TaskAgentStatus};
use azure_devops_simulator::{World, world::direct::PoolHandle};
use operator::replica::{Sight, agent_pool};
use planner::AgentPool;

use super::{Apart, Event, Process, Simulation};
use crate::{
    clock::{MINUTE, Millis, SECOND, at},
    random::Random,
    scenario::Kind,
};

type Agents = Arc<Vec<TaskAgent>>;
type Requests = Arc<Vec<TaskAgentJobRequest>>;

/// An agent pool, with the lists that it shows at present.
pub(crate) struct AgentPoolState {
    pub(crate) handle: PoolHandle,
    /// As far as the simulation took notice.
    revision: u64,
    /// Ended jobs that were judged.
    pub(crate) judged: usize,
    lists: Option<(u64, Agents, Requests)>,
    joined: Option<(Agents, Requests, Arc<AgentPool>)>,
    /// Former lists, kept while reads may be stale.
    history: VecDeque<(Millis, Agents, Requests)>,
}

impl AgentPoolState {
    pub(crate) fn new(handle: PoolHandle) -> Self {
        Self {
            handle,
            revision: 0,
            judged: 0,
            lists: None,
            joined: None,
            history: VecDeque::new(),
        }
    }

    /// Whether it changed since the last call.
    pub(crate) fn revise(&mut self, world: &World) -> bool {
        let revision = world.revision(self.handle);
        std::mem::replace(&mut self.revision, revision) != revision
    }

    /// The two lists as they are now.
    fn lists(&mut self, world: &World) -> (Agents, Requests) {
        let revision = world.revision(self.handle);
        if let Some((known, agents, requests)) = &self.lists
            && *known == revision
        {
            return (agents.clone(), requests.clone());
        }
        let agents = Arc::new(agents(world, self.handle));
        let requests = Arc::new(requests(world, self.handle));
        self.lists = Some((revision, agents.clone(), requests.clone()));
        (agents, requests)
    }

    /// What the planner needs of two lists.
    fn join(&mut self, agents: &Agents, requests: &Requests) -> Arc<AgentPool> {
        if let Some((known_agents, known_requests, joined)) = &self.joined
            && Arc::ptr_eq(known_agents, agents)
            && Arc::ptr_eq(known_requests, requests)
        {
            return joined.clone();
        }
        let joined = Arc::new(agent_pool((**agents).clone(), (**requests).clone()));
        self.joined = Some((agents.clone(), requests.clone(), joined.clone()));
        joined
    }
}

/// The agents as the service lists them.
fn agents(world: &World, handle: PoolHandle) -> Vec<TaskAgent> {
    let owned = |(name, value): (&str, &str)| (name.to_owned(), value.to_owned());
    world
        .agent_lines(handle)
        .map(|agent| TaskAgent {
            id: agent.id,
            name: agent.name.to_owned(),
            enabled: Some(agent.enabled),
            status: if agent.online {
                TaskAgentStatus::Online
            } else {
                TaskAgentStatus::Offline
            },
            created_on: Some(agent.created_on),
            system_capabilities: agent.capabilities(false).map(owned).collect(),
            user_capabilities: agent.capabilities(true).map(owned).collect(),
            assigned_request: agent.assigned.map(request),
            last_completed_request: agent.last_completed.map(|(id, finished)| {
                TaskAgentJobRequest {
                    finish_time: Some(finished),
                    result: Some("succeeded".to_owned()),
                    ..request(id)
                }
            }),
        })
        .collect()
}

fn request(id: i64) -> TaskAgentJobRequest {
    TaskAgentJobRequest {
        request_id: id,
        demands: Vec::new(),
        reserved_agent: None,
        matched_agents: None,
        result: None,
        queue_time: None,
        finish_time: None,
    }
}

fn requests(world: &World, handle: PoolHandle) -> Vec<TaskAgentJobRequest> {
    world
        .unfinished_jobs(handle)
        .map(|job| TaskAgentJobRequest {
            demands: job.demands.to_vec(),
            reserved_agent: job.agent.map(|id| TaskAgentReference { id }),
            queue_time: Some(job.queued),
            ..request(job.id)
        })
        .collect()
}

/// What one of the two requests of a look came to.
type Read<T> = Result<T, azure_devops::Error>;

/// A look that is under way.
struct Look {
    taken_at: jiff::Timestamp,
    agents: Option<Read<Agents>>,
    requests: Option<Read<Requests>>,
    /// The lists are those of the present, so that the next look is certain to see the same unless something changes.
    plain: bool,
    /// When the list of agents was true.
    true_at: Millis,
}

/// A reader.
pub(crate) struct SightState {
    pub(crate) sight: Sight,
    pub(crate) agent_pool: usize,
    pub(crate) token: Option<String>,
    /// When the last look began.
    started: Millis,
    /// When the next one is due.
    next: Millis,
    interval: Millis,
    /// Events of an earlier epoch do not count any more.
    epoch: u32,
    look: Option<Look>,
    /// What the last look saw, if it was plain.
    seen: Option<(Agents, Requests)>,
    /// When what the last list of agents says was true.
    pub(crate) true_at: Millis,
    /// Grows with each look that saw something else, and with each of our own writes.
    pub(crate) version: u64,
    /// Our own writes show in no look yet.
    noted: bool,
    content: Option<Arc<AgentPool>>,
    /// How the last look failed, as far as it matters to a pass: whether the token is to be read again.
    failure: Option<Class>,
    parked: bool,
}

impl Simulation {
    /// A RunnerPool sees its agent pool through a reader that did not exist: it looks at once.
    pub(crate) fn new_sight(
        &mut self,
        operator: usize,
        pool: usize,
        sight: Sight,
        token: Option<String>,
    ) {
        let agent_pool = self.agent_pool_of(pool);
        let now = self.now;
        let Some(process) = self.process(operator) else {
            return;
        };
        let number = process.sights.len();
        process.sights.push(Some(SightState {
            sight,
            agent_pool,
            token,
            started: now,
            next: now,
            interval: 0,
            epoch: 0,
            look: None,
            seen: None,
            true_at: -1,
            version: 0,
            noted: false,
            content: None,
            failure: None,
            parked: false,
        }));
        self.after(0, Event::LookBegins(operator, number, 0));
    }

    fn sight(&mut self, operator: usize, sight: usize) -> Option<&mut SightState> {
        self.process(operator)?.sights.get_mut(sight)?.as_mut()
    }

    pub(crate) fn look_begins(&mut self, operator: usize, number: usize, epoch: u32) {
        let now = self.now;
        let Some(process) = self.process(operator) else {
            return;
        };
        let (skew, not_before) = (process.skew, process.not_before);
        let keys: Vec<_> = process
            .pools
            .iter()
            .flat_map(|desk| &desk.object)
            .map(|object| crate::cluster::key(object))
            .collect();
        let replica = process.replica.clone();
        let Some(state) = process.sights.get_mut(number).and_then(Option::as_mut) else {
            return;
        };
        if state.epoch != epoch {
            return;
        }
        if not_before > now {
            self.after(not_before - now, Event::LookBegins(operator, number, epoch));
            return;
        }
        let Some(interval) = state.sight.interval(|key| keys.contains(key)) else {
            if replica.forget(&state.sight) {
                process.sights[number] = None;
            } else {
                self.after(0, Event::LookBegins(operator, number, epoch));
            }
            return;
        };
        state.interval = ticks(interval);
        state.started = now;
        state.sight.looks();
        state.look = Some(Look {
            taken_at: at(now + skew),
            agents: None,
            requests: None,
            plain: true,
            true_at: now,
        });
        let (agents, requests) = self.latencies(operator, number, now);
        self.after(agents, Event::LookReads(operator, number, epoch, true));
        self.after(requests, Event::LookReads(operator, number, epoch, false));
        let end = agents.max(requests);
        self.after(end, Event::LookEnds(operator, number, epoch));
        self.book.counts.looks += 1;
    }

    /// How long the two requests of a look take. Drawn for the occasion: it must not depend on whether other looks were
    /// skipped.
    fn latencies(&self, operator: usize, number: usize, started: Millis) -> (Millis, Millis) {
        let mut random = self.occasion(operator, number, started, Apart::Latency);
        if self.troubles.is(Kind::AzureSlow) {
            return (
                random.between(100, 35 * SECOND),
                random.between(100, 35 * SECOND),
            );
        }
        (random.between(20, 400), random.between(20, 400))
    }

    fn occasion(&self, operator: usize, number: usize, time: Millis, what: Apart) -> Random {
        let word = |number: usize| u64::try_from(number).unwrap_or_default();
        self.apart(time, word(operator) << 32 | word(number), what)
    }

    pub(crate) fn look_reads(&mut self, operator: usize, number: usize, epoch: u32, agents: bool) {
        let now = self.now;
        let Some(state) = self
            .sight(operator, number)
            .filter(|known| known.epoch == epoch)
        else {
            return;
        };
        let known = state.look.as_ref();
        if known.is_none_or(|look| {
            if agents {
                look.agents.is_some()
            } else {
                look.requests.is_some()
            }
        }) {
            return;
        }
        let (agent_pool, token) = (state.agent_pool, state.token.clone());
        let what = if agents {
            Apart::ReadOfAgents
        } else {
            Apart::ReadOfRequests
        };
        let mut random = self.occasion(operator, number, now, what);
        let mut plain = self.troubles.azure_is_well();
        let mut true_at = now;
        let refused = self.refuse_read(operator, token.as_deref(), &mut random);
        let (mut agent_list, mut request_list) = self.agent_pools[agent_pool].lists(&self.world);
        // A wrong list is repeated, but for less than a minute: that is what is assumed of the service. The truth is told
        // for long enough that every reader meets it in between.
        let lying = now.rem_euclid(2 * MINUTE) < 45 * SECOND && random.permille(600);
        if self.troubles.is(Kind::AzureEmptyList) && lying {
            agent_list = Arc::default();
            request_list = Arc::default();
            plain = false;
            true_at = -1;
        } else if self.troubles.is(Kind::AzureStale) {
            let age = random.between(0, 30 * SECOND);
            let history = &self.agent_pools[agent_pool].history;
            let mut old = history.iter().rev();
            if let Some((time, agents, requests)) = old.find(|(time, ..)| *time + age <= now) {
                (agent_list, request_list) = (agents.clone(), requests.clone());
                true_at = *time;
            }
            plain = false;
        }
        let Some(look) = self
            .sight(operator, number)
            .and_then(|state| state.look.as_mut())
        else {
            return;
        };
        look.plain &= plain && refused.is_none();
        match (agents, refused) {
            (true, Some(error)) => look.agents = Some(Err(error)),
            (true, None) => {
                look.agents = Some(Ok(agent_list));
                look.true_at = true_at;
            }
            (false, Some(error)) => look.requests = Some(Err(error)),
            (false, None) => look.requests = Some(Ok(request_list)),
        }
    }

    pub(crate) fn look_ends(&mut self, operator: usize, number: usize, epoch: u32) {
        let now = self.now;
        let Some(state) = self
            .sight(operator, number)
            .filter(|known| known.epoch == epoch)
        else {
            return;
        };
        let agent_pool = state.agent_pool;
        let Some(Look {
            taken_at,
            agents: Some(agents),
            requests: Some(requests),
            plain,
            true_at,
        }) = state.look.take()
        else {
            return;
        };
        let lists = agents.and_then(|agents| Ok((agents, requests?)));
        let pool = self.found(agent_pool);
        let empty = self.takes_failed_for_empty();
        let skew = self.process(operator).map_or(0, |process| process.skew);
        let joined = match &lists {
            Ok((agents, requests)) => Ok(self.agent_pools[agent_pool].join(agents, requests)),
            Err(_) if empty => Ok(Arc::default()),
            Err(error) => Err(error),
        };
        let Some(state) = self
            .process(operator)
            .and_then(|process| process.sights.get_mut(number)?.as_mut())
        else {
            return;
        };
        let same = !state.noted
            && match (&joined, &state.content) {
                (Ok(new), Some(old)) => Arc::ptr_eq(new, old) && state.sight.is_seen(),
                (Err(new), None) => state.failure == Some(new.class()),
                _ => false,
            };
        state.version += u64::from(!same);
        state.noted = false;
        state.failure = joined.as_ref().err().map(|error| error.class());
        state.content = joined.as_ref().ok().cloned();
        if joined.is_ok() && true_at >= 0 {
            state.true_at = state.true_at.max(true_at);
        }
        let interval = Duration::from_millis(u64::try_from(state.interval).unwrap_or_default());
        if lists.is_err() && joined.is_ok() {
            // A control that does not doubt either.
            let long_ago = taken_at - jiff::SignedDuration::from_hours(1);
            let empty = Ok(Arc::default());
            let then = (long_ago, long_ago);
            state.sight.looked(pool, then, interval, empty);
        }
        let time = (taken_at, at(now + skew));
        state.sight.looked(pool, time, interval, joined);
        state.seen = lists.ok().filter(|_| plain);
        let next = (state.started + state.interval).max(now);
        state.next = next;
        let (subscribers, version) = (state.sight.subscribers(), state.version);
        self.after(next - now, Event::LookBegins(operator, number, epoch));
        let skip = self.options.skip;
        let pools: Vec<usize> = (subscribers.iter())
            .filter_map(|key| self.pool_index(key))
            .collect();
        let sharing = self.sharing(agent_pool);
        let repeats = |process: &mut Process, pool: usize| {
            let mut others = sharing.iter().filter(|other| **other != pool);
            process.pools[pool].is_quiet(version)
                && others.all(|other| process.pools[*other].is_steady())
        };
        for pool in pools {
            let process = self.process(operator).filter(|_| skip);
            if process.is_none_or(|process| !repeats(process, pool)) {
                self.call_pass(operator, pool);
            }
        }
        self.park(operator);
    }

    /// What finding an agent pool by its name tells: its id, and whether it has agents.
    fn found(&self, agent_pool: usize) -> (i64, bool) {
        let handle = self.handle(agent_pool);
        let mut agents = self.world.agent_lines(handle);
        (handle.id(), agents.next().is_some())
    }

    /// One of our own writes was noted in what the readers of an operator saw.
    pub(crate) fn noted(&mut self, operator: usize) {
        let Some(process) = self.process(operator) else {
            return;
        };
        for state in process.sights.iter_mut().flatten() {
            state.version += 1;
            state.noted = true;
        }
    }

    /// The subscribers of a reader changed: another interval may be the shortest.
    pub(crate) fn mind_intervals(&mut self, operator: usize) {
        let now = self.now;
        let Some(process) = self.process(operator) else {
            return;
        };
        let mut begins = Vec::new();
        for (number, state) in process.sights.iter_mut().enumerate() {
            let Some(state) = state else { continue };
            let interval = state.sight.interval(|_| true).map(ticks);
            let due = match interval {
                // Nobody subscribes any more: it ends.
                None => now,
                Some(interval) if interval != state.interval && state.interval > 0 => {
                    state.started + interval
                }
                Some(_) => continue,
            };
            if state.look.is_some() {
                // The look that is under way ends first.
                continue;
            }
            state.interval = interval.unwrap_or(state.interval);
            state.parked = false;
            state.epoch += 1;
            state.next = due.max(now);
            begins.push((state.next, number, state.epoch));
        }
        for (due, number, epoch) in begins {
            self.after(due - now, Event::LookBegins(operator, number, epoch));
        }
    }

    /// Parks the readers whose next look, and the passes upon it, would change nothing.
    pub(crate) fn park(&mut self, operator: usize) {
        if !self.options.skip || !self.troubles.azure_is_well() {
            return;
        }
        let mut asks = self.asks.iter().flatten();
        let asked = asks.any(|ask| ask.operator == operator);
        let awake = |state: &SightState| !state.parked && state.look.is_none() && !state.noted;
        let may_park = self
            .process(operator)
            .is_some_and(|process| process.skew == 0 && process.sights.iter().flatten().any(awake));
        if asked || !may_park {
            return;
        }
        let revisions: Vec<u64> = (self.agent_pools.iter())
            .map(|state| self.world.revision(state.handle))
            .collect();
        let lists: Vec<_> = (self.agent_pools.iter())
            .map(|state| {
                state.lists.as_ref().map(|(revision, agents, requests)| {
                    (*revision, agents.clone(), requests.clone())
                })
            })
            .collect();
        let pools: Vec<_> = (self.scenario.pools.iter())
            .map(crate::cluster::key)
            .collect();
        let Some(process) = self.process(operator) else {
            return;
        };
        let Process {
            sights,
            pools: desks,
            ..
        } = process;
        for state in sights.iter_mut().flatten().filter(|state| awake(state)) {
            let present = match (&state.seen, &lists[state.agent_pool]) {
                (Some((agents, requests)), Some((revision, now_agents, now_requests))) => {
                    *revision == revisions[state.agent_pool]
                        && Arc::ptr_eq(agents, now_agents)
                        && Arc::ptr_eq(requests, now_requests)
                }
                _ => false,
            };
            // A list that is not believed yet takes another look.
            if !present || !state.sight.is_seen() {
                continue;
            }
            // No other reader of the agent pool has RunnerPools that are not steady: one token works at a time.
            let subscribers = state.sight.subscribers();
            let quiet = subscribers.iter().all(|key| {
                let desk = pools.iter().position(|known| known == key);
                desk.and_then(|desk| desks.get(desk))
                    .is_some_and(|desk| desk.is_quiet(state.version))
            });
            if quiet && !subscribers.is_empty() {
                state.parked = true;
                state.epoch += 1;
            }
        }
    }

    /// Wakes the readers of an agent pool that changed.
    pub(crate) fn wake_pool(&mut self, agent_pool: usize) {
        for operator in 0..self.operators.len() {
            self.wake(operator, Some(agent_pool));
        }
    }

    /// Wakes the readers of an operator.
    pub(crate) fn wake_all(&mut self, operator: usize) {
        self.wake(operator, None);
    }

    /// Something else than a look is to change what passes see, whatever their RunnerPool: none is certain to repeat the
    /// last one.
    pub(crate) fn unsettle(&mut self, operator: usize) {
        for agent_pool in 0..self.agent_pools.len() {
            self.unsettle_sharing(operator, agent_pool);
        }
    }

    /// Something else than a look is to change what passes see of a RunnerPool of this agent pool. The others of the agent
    /// pool plan with it.
    pub(crate) fn unsettle_sharing(&mut self, operator: usize, agent_pool: usize) {
        self.wake(operator, Some(agent_pool));
        let sharing = self.sharing(agent_pool);
        let Some(process) = self.process(operator) else {
            return;
        };
        for pool in sharing {
            process.pools[pool].last.quiet = None;
        }
    }

    /// The RunnerPools of an agent pool.
    fn sharing(&self, agent_pool: usize) -> Vec<usize> {
        let pools = 0..self.scenario.pools.len();
        pools
            .filter(|pool| self.agent_pool_of(*pool) == agent_pool)
            .collect()
    }

    fn wake(&mut self, operator: usize, agent_pool: Option<usize>) {
        let Some(process) = self.process(operator) else {
            return;
        };
        let parked: Vec<usize> = process
            .sights
            .iter()
            .enumerate()
            .filter_map(|(number, state)| {
                let state = state.as_ref()?;
                let concerned = agent_pool.is_none_or(|pool| pool == state.agent_pool);
                (state.parked && concerned).then_some(number)
            })
            .collect();
        for number in parked {
            self.catch_up(operator, number);
        }
    }

    /// Brings a parked reader to where looks at each interval would have brought it.
    fn catch_up(&mut self, operator: usize, number: usize) {
        let now = self.now;
        let Some(state) = self.sight(operator, number) else {
            return;
        };
        state.parked = false;
        let (next, interval, epoch) = (state.next, state.interval.max(1), state.epoch);
        if now < next {
            self.after(next - now, Event::LookBegins(operator, number, epoch));
            return;
        }
        let begun = (now - next) / interval;
        let last = next + begun * interval;
        let (agents, requests) = self.latencies(operator, number, last);
        let ends = last + agents.max(requests);
        if ends <= now {
            self.count_as_made(operator, number, last);
            let due = last + interval;
            if let Some(state) = self.sight(operator, number) {
                state.next = due;
            }
            self.after(due - now, Event::LookBegins(operator, number, epoch));
            return;
        }
        if begun > 0 {
            self.count_as_made(operator, number, last - interval);
        }
        let Some(state) = self.sight(operator, number) else {
            return;
        };
        let Some((agent_list, request_list)) = state.seen.clone() else {
            return;
        };
        state.started = last;
        state.look = Some(Look {
            taken_at: at(last),
            agents: (last + agents <= now).then_some(Ok(agent_list)),
            requests: (last + requests <= now).then_some(Ok(request_list)),
            plain: true,
            true_at: last + agents,
        });
        if last + agents > now {
            self.after(
                last + agents - now,
                Event::LookReads(operator, number, epoch, true),
            );
        }
        if last + requests > now {
            self.after(
                last + requests - now,
                Event::LookReads(operator, number, epoch, false),
            );
        }
        self.after(ends - now, Event::LookEnds(operator, number, epoch));
    }

    /// A look that was skipped counts as made: it saw what the one before saw.
    fn count_as_made(&mut self, operator: usize, number: usize, began: Millis) {
        let (agents, requests) = self.latencies(operator, number, began);
        let ended = began + agents.max(requests);
        let Some(state) = self.sight(operator, number) else {
            return;
        };
        let Some(content) = state.content.clone() else {
            return;
        };
        let (interval, agent_pool) = (state.interval, state.agent_pool);
        state.started = began;
        state.true_at = state.true_at.max(began + agents);
        let pool = self.found(agent_pool);
        let interval = Duration::from_millis(u64::try_from(interval).unwrap_or_default());
        if let Some(state) = self.sight(operator, number) {
            state.sight.looks();
            let time = (at(began), at(ended));
            state.sight.looked(pool, time, interval, Ok(content));
        }
    }

    /// Keeps the lists of a moment while reads may be stale.
    pub(crate) fn remember(&mut self, agent_pool: usize) {
        if !self.troubles.is(Kind::AzureStale) {
            return;
        }
        let now = self.now;
        let state = &mut self.agent_pools[agent_pool];
        let (agents, requests) = state.lists(&self.world);
        state.history.push_back((now, agents, requests));
        while state
            .history
            .get(1)
            .is_some_and(|(time, ..)| *time < now - 31 * SECOND)
        {
            state.history.pop_front();
        }
    }

    /// Reads may be stale from now on, or not any more.
    pub(crate) fn forget_history(&mut self) {
        for state in &mut self.agent_pools {
            state.history.clear();
        }
    }

    /// When what an operator last saw of a RunnerPool's registrations was true.
    pub(crate) fn seen_until(&self, operator: usize, agent_pool: usize) -> Millis {
        let sights = self.operators.get(operator).and_then(Option::as_ref);
        let sights = sights
            .iter()
            .flat_map(|process| process.sights.iter().flatten());
        sights
            .filter(|state| state.agent_pool == agent_pool)
            .map(|state| state.true_at)
            .max()
            .unwrap_or(-1)
    }
}

fn ticks(duration: Duration) -> Millis {
    Millis::try_from(duration.as_millis()).unwrap_or(Millis::MAX)
}
