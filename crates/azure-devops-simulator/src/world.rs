//! The service as a synchronous state machine.
//!
//! [`World::handle`] takes a request and the time and gives the response; [`World::tick`] lets
//! time pass. There is no clock in here, no socket, no task, and randomness comes from a seed:
//! whoever drives the world with the same requests at the same times gets the same answers.

mod access;
mod agent;
mod answer;
mod call;
mod control;
mod demand;
pub mod direct;
mod discovery;
mod error;
mod fault;
mod job;
mod journal;
mod listening;
mod message;
mod millis;
mod oauth;
mod pool;
mod random;
mod read;
mod registration;
mod remote;
mod session;
mod switches;
mod throttle;
mod wire;
mod work;

use std::{
    cmp::Reverse,
    collections::{BTreeSet, BinaryHeap, HashMap, VecDeque},
    time::Duration,
};

use jiff::Timestamp;
use serde_json::Value;
use uuid::Uuid;

pub(crate) use self::job::{DURATION_VARIABLE, RESULT_VARIABLE};
use self::{
    access::{Caller, Pat, Token},
    call::{Address, Call},
    fault::{ActiveFault, Verdict},
    journal::Journal,
    message::{MessagePoll, Poll},
    pool::Pool,
    random::Random,
    throttle::Usage,
};
pub use self::{
    access::{PatSpec, Scope},
    call::Asked,
    control::{AgentSpec, AgentView, Changed, ControlError, Summary},
    fault::{Fault, FaultKind},
    job::{JobResult, JobSpec, JobView, Outcome},
    journal::{Entry, RequestCounts},
    message::{Method, Reply, Request, Response, Topic, Wait},
    switches::{
        AgentVersion, BusyTypeKey, CapabilityPrecedence, ExpiredLockResult, JobRequestOrder,
        MatchedAgents, Switches,
    },
    throttle::RateLimit,
};

/// How a world starts.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Seed of ids, tokens and dice.
    pub seed: u64,
    /// Behaviours that the sources leave open, and timings.
    pub switches: Switches,
    /// Rate limiting per identity; off if absent.
    pub rate_limit: Option<RateLimit>,
    /// The newest api-version served: 7.2 by default, 7.0 for a Server 2022.
    pub latest_api_version: String,
    /// How many requests the log keeps; counts are exact whatever this is.
    pub request_log: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            seed: 1,
            switches: Switches::default(),
            rate_limit: None,
            latest_api_version: "7.2".to_owned(),
            request_log: 10_000,
        }
    }
}

/// The whole service.
#[derive(Debug)]
pub struct World {
    settings: Settings,
    organizations: Vec<Organization>,
    tokens: HashMap<String, Token>,
    /// Client ids of agents' own OAuth.
    clients: HashMap<Uuid, (PoolKey, i64)>,
    faults: Vec<ActiveFault>,
    /// Past states, kept while a fault makes reads stale.
    history: VecDeque<(Timestamp, Vec<Organization>)>,
    usage: Usage,
    journal: Journal,
    agenda: Agenda,
    random: Random,
}

#[derive(Clone, Debug)]
struct Organization {
    name: String,
    id: Uuid,
    project: Uuid,
    pools: Vec<Pool>,
    pats: Vec<Pat>,
    last_pool: i64,
    last_agent: i64,
    last_request: i64,
}

/// Which pool: organizations by index (they are never removed), pools by id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct PoolKey {
    organization: usize,
    pool: i64,
}

/// What operations on a pool need besides the pool.
#[derive(Debug)]
struct Context<'a> {
    now: Timestamp,
    switches: &'a Switches,
    random: &'a mut Random,
    agenda: &'a mut Agenda,
}

/// What is to be done later, and who is to be told now.
#[derive(Debug, Default)]
struct Agenda {
    /// Entries may be out of date: whoever takes one looks again.
    deadlines: BinaryHeap<Reverse<(Timestamp, Deadline)>>,
    woken: BTreeSet<Topic>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Deadline {
    Session { pool: PoolKey, session: Uuid },
    Lock { pool: PoolKey, request: i64 },
}

impl Agenda {
    fn at(&mut self, time: Timestamp, deadline: Deadline) {
        self.deadlines.push(Reverse((time, deadline)));
    }

    fn wake(&mut self, topic: Topic) {
        self.woken.insert(topic);
    }
}

/// States for stale reads are kept at most this densely: fine enough for ages of seconds.
const HISTORY_STEP: Duration = Duration::from_millis(100);

impl World {
    /// A world without organizations.
    pub fn new(settings: Settings) -> Self {
        Self {
            organizations: Vec::new(),
            tokens: HashMap::new(),
            clients: HashMap::new(),
            faults: Vec::new(),
            history: VecDeque::new(),
            usage: Usage::default(),
            journal: Journal::new(settings.request_log),
            agenda: Agenda::default(),
            random: Random::new(settings.seed),
            settings,
        }
    }

    /// Answers a request, or says that it is to be held open.
    pub fn handle(&mut self, now: Timestamp, request: &Request) -> Response {
        self.tick(now);
        if request
            .segments
            .first()
            .is_some_and(|segment| segment == "_simulator")
        {
            return self.control(now, request);
        }
        let Some(address) = Address::parse(&request.segments) else {
            return Response::Reply(not_found_page());
        };
        let addressed = address
            .organization
            .map(|name| self.organization_index(name));
        if addressed == Some(None) {
            return Response::Reply(not_found_page());
        }
        let caller = self.identify(now, addressed.flatten(), request);
        let organization = addressed.flatten().or(caller.organization()).unwrap_or(0);
        let Some(name) = self
            .organizations
            .get(organization)
            .map(|known| known.name.clone())
        else {
            return Response::Reply(not_found_page());
        };
        let call = Call::parse(request, address.rest);
        let operation = call.as_ref().map_or("Unknown", Call::operation);
        self.journal.count(&name, caller.identity(), operation);
        let entry = Entry {
            time: now,
            organization: name.clone(),
            identity: caller.identity(),
            operation: operation.to_owned(),
            method: request.method.name().to_owned(),
            path: request.path(),
            status: 0,
        };
        let mut verdict = self.judge(now, call.as_ref(), &name, &caller, request);
        let blocked = self.throttle(now, &caller, &mut verdict);
        let reply = match (verdict.replacement(request).or(blocked), call) {
            (Some(reply), _) => reply,
            (None, None) => error::ApiError::no_such_resource(&request.path()).into_reply(),
            (None, Some(call)) => {
                match self.serve(now, organization, &caller, &call, request, &verdict) {
                    Served::Reply(reply) => reply,
                    Served::Hold {
                        pool,
                        session,
                        last_message,
                    } => {
                        let base_url = self.base(organization, request);
                        let poll = MessagePoll {
                            pool,
                            session,
                            last_message,
                            base_url,
                            entry,
                            verdict,
                        };
                        let poll = Poll::Messages(Box::new(poll));
                        let until = now + self.settings.switches.long_poll;
                        return Response::Wait(Wait {
                            until,
                            topic: Topic(session),
                            poll,
                        });
                    }
                }
            }
        };
        Response::Reply(self.send(reply, verdict, entry))
    }

    /// Looks again at a request that was held open.
    pub fn resume(&mut self, now: Timestamp, wait: Wait) -> Response {
        self.tick(now);
        let Wait { until, topic, poll } = wait;
        match poll {
            Poll::Pool(request) if now >= until => self.control_at(now, &request, false),
            Poll::Pool(request) => match self.control_at(now, &request, true) {
                Response::Wait(again) => Response::Wait(Wait { until, ..again }),
                reply @ Response::Reply(_) => reply,
            },
            Poll::Messages(poll) => {
                let MessagePoll {
                    pool,
                    session,
                    last_message,
                    ..
                } = *poll;
                let found = self.poll_messages(now, pool, session, last_message, &poll.base_url);
                match found.or_else(|| (now >= until).then(|| Reply::empty(202))) {
                    Some(reply) => Response::Reply(self.send(reply, poll.verdict, poll.entry)),
                    None => Response::Wait(Wait {
                        until,
                        topic,
                        poll: Poll::Messages(poll),
                    }),
                }
            }
        }
    }

    /// Does what is due: locks and sessions that ran out.
    pub fn tick(&mut self, now: Timestamp) {
        self.remember(now);
        while let Some(&Reverse((due, deadline))) = self.agenda.deadlines.peek()
            && due <= now
        {
            self.agenda.deadlines.pop();
            let (Deadline::Session { pool, .. } | Deadline::Lock { pool, .. }) = deadline;
            self.within(now, pool, |pool, context| match deadline {
                Deadline::Session { session, .. } => pool.check_session(session, context),
                Deadline::Lock { request, .. } => pool.check_lock(request, context),
            });
        }
    }

    /// When [`World::tick`] has something to do next.
    pub fn next_due(&self) -> Option<Timestamp> {
        self.agenda.deadlines.peek().map(|Reverse((due, _))| *due)
    }

    /// What stirred since the last call: waits for these topics are to be resumed.
    pub fn take_woken(&mut self) -> BTreeSet<Topic> {
        std::mem::take(&mut self.agenda.woken)
    }

    /// The behaviours in force.
    pub fn switches(&self) -> &Switches {
        &self.settings.switches
    }

    fn organization_index(&self, name: &str) -> Option<usize> {
        self.organizations
            .iter()
            .position(|known| known.name.eq_ignore_ascii_case(name))
    }

    fn pool(&self, key: PoolKey) -> Option<&Pool> {
        self.organizations.get(key.organization)?.pool(key.pool)
    }

    /// Does something to a pool, if it is there.
    fn within<T>(
        &mut self,
        now: Timestamp,
        key: PoolKey,
        change: impl FnOnce(&mut Pool, &mut Context<'_>) -> T,
    ) -> Option<T> {
        let organization = self.organizations.get_mut(key.organization)?;
        let pool = organization.pools.iter_mut().find(|pool| pool.key == key)?;
        let mut context = Context {
            now,
            switches: &self.settings.switches,
            random: &mut self.random,
            agenda: &mut self.agenda,
        };
        Some(change(pool, &mut context))
    }

    /// Where links of an organization start, in the form in which the client addressed it.
    fn base(&self, organization: usize, request: &Request) -> String {
        let name = self
            .organizations
            .get(organization)
            .map_or("", |known| known.name.as_str());
        let tfs = request
            .segments
            .first()
            .is_some_and(|segment| segment.eq_ignore_ascii_case("tfs"));
        let prefix = if tfs { "/tfs" } else { "" };
        format!("{}{prefix}/{name}", request.base_url.trim_end_matches('/'))
    }

    fn throttle(
        &mut self,
        now: Timestamp,
        caller: &Caller,
        verdict: &mut Verdict,
    ) -> Option<Reply> {
        let rules = self.settings.rate_limit.as_ref()?;
        let charge = self.usage.charge(now, caller.account()?, rules);
        verdict.delay += charge.delay;
        verdict.headers = charge.headers;
        charge.blocked.map(|reply| *reply)
    }

    /// Gives a reply its common headers, the marks of its faults, and a line in the log.
    fn send(&mut self, mut reply: Reply, verdict: Verdict, entry: Entry) -> Reply {
        let activity = self.random.uuid().to_string();
        reply.headers.extend([
            ("X-TFS-ProcessId", Uuid::from_u128(3).to_string()),
            ("ActivityId", activity.clone()),
            ("X-TFS-Session", activity.clone()),
            ("X-VSS-E2EID", activity),
        ]);
        verdict.apply(&mut reply);
        self.journal.push(Entry {
            status: reply.status,
            ..entry
        });
        reply
    }

    /// Keeps the present state for stale reads later, where a fault asks for them.
    fn remember(&mut self, now: Timestamp) {
        let ages = self
            .faults
            .iter()
            .filter_map(|active| match active.fault.kind {
                FaultKind::StaleRead { age } if active.until.is_none_or(|until| until > now) => {
                    Some(age)
                }
                _ => None,
            });
        let Some(oldest) = ages.max() else {
            self.history.clear();
            return;
        };
        if self
            .history
            .back()
            .is_none_or(|(last, _)| *last + HISTORY_STEP <= now)
        {
            self.history.push_back((now, self.organizations.clone()));
        }
        // The newest state that is old enough stays.
        while self
            .history
            .get(1)
            .is_some_and(|(at, _)| *at + oldest <= now)
        {
            self.history.pop_front();
        }
    }

    /// The organization as it was some time ago, as far back as it was kept.
    fn past(&self, now: Timestamp, age: Duration, organization: usize) -> Option<&Organization> {
        let old_enough = self.history.iter().rev().find(|(at, _)| *at + age <= now);
        let (_, state) = old_enough.or(self.history.front())?;
        state.get(organization)
    }
}

impl Organization {
    fn pool(&self, id: i64) -> Option<&Pool> {
        self.pools.iter().find(|pool| pool.key.pool == id)
    }

    fn pool_named(&self, name: &str) -> Option<&Pool> {
        self.pools
            .iter()
            .find(|pool| pool.name.eq_ignore_ascii_case(name))
    }
}

/// What serving a call leads to.
enum Served {
    Reply(Reply),
    /// A poll without a message so far.
    Hold {
        pool: PoolKey,
        session: Uuid,
        last_message: i64,
    },
}

fn not_found_page() -> Reply {
    Reply::html(
        404,
        "<!DOCTYPE html><html><body>Page not found</body></html>",
    )
}

/// Reads a body, or says why not.
fn body<T: serde::de::DeserializeOwned>(request: &Request) -> Result<T, error::ApiError> {
    let value: Value = serde_json::from_slice(&request.body)
        .map_err(|error| error::ApiError::bad_request(format!("The body is no JSON: {error}")))?;
    serde_json::from_value(value).map_err(|error| {
        error::ApiError::bad_request(format!("The body is not as expected: {error}"))
    })
}
