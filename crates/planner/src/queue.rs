//! What becomes of each queued job: which profile's agents serve it, whether they are there or to be made, and which jobs
//! nothing of ours can serve.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    rc::Rc,
    sync::Arc,
};

use jiff::Timestamp;

use crate::{
    Agent, Capabilities, Demand, Intake, JobRequest, Known, Lacking, Plan, Profile, Reported,
    STRANGER_PATIENCE, Snapshot, Unserved,
    agents::{alive, is_ours},
    assignment::{Kind, assign},
    later,
    learned::{Knowledge, Verdict, is_met_by_update},
    placeholders::ENV_DIGEST,
    retry::Failures,
    supply::supply,
};

/// A queued job that agents of ours serve.
#[derive(Debug)]
pub(crate) struct QueuedJob<'a> {
    pub(crate) request: i64,
    /// Name of the profile whose agents serve it.
    pub(crate) profile: &'a str,
    pub(crate) place: Served,
}

/// How a job is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Served {
    /// By an agent that is there or on its way.
    There,
    /// By one that is to be made.
    New,
    /// By one that is to be made as soon as `maxAgents` of the RunnerPool lets it.
    NoRoom,
    /// By one that is to be made as soon as `maxAgents` of the profile lets it.
    ProfileFull,
    /// By one that is to be made when the delay after a failure is over.
    HeldBack,
}

impl Served {
    /// Whether it waits for an agent of ours that might be there: one that makes room would help it, or serve it.
    pub(crate) fn needs_agent(self) -> bool {
        self != Self::ProfileFull
    }
}

/// What becomes of every queued job.
#[derive(Debug, Default)]
pub(crate) struct Queue<'a> {
    /// Those that agents of ours serve, oldest first.
    pub(crate) jobs: Vec<QueuedJob<'a>>,
    /// Those that nothing of ours can serve, oldest first.
    pub(crate) unserved: Vec<Unserved>,
}

/// Every queued job that a look shows.
pub(crate) fn queue<'a>(
    snapshot: &'a Snapshot,
    agents: &BTreeMap<u32, Agent>,
    failures: &Failures,
    known: &Known<'a>,
    now: Timestamp,
    plan: &mut Plan,
) -> Queue<'a> {
    let look = known.look;
    let requests = look.agent_pool.requests.iter();
    let mut requests: Vec<&JobRequest> = requests
        .filter(|request| request.reserved_agent.is_none())
        .collect();
    if requests.is_empty() {
        return Queue::default();
    }
    requests.sort_by_key(|request| request.id);

    let mut judge = Judge::new(snapshot, known, agents);
    let mut jobs = Vec::new();
    let mut unserved = Vec::new();
    for request in requests {
        let until = request.queued_at.map(|at| later(at, STRANGER_PATIENCE));
        let young = until.is_some_and(|until| now < until);
        match judge.class(&request.demands, young) {
            Judged::Served(class) => jobs.push((request, class)),
            Judged::Elsewhere => {}
            Judged::Nobody(lacking) => unserved.push(Unserved {
                request: request.id,
                lacking,
            }),
        }
    }

    let profiles = &snapshot.pool.profiles;
    let supply = supply(snapshot, look, agents, failures);
    let rooms = Rooms::new(snapshot, agents);
    let kinds = judge.kinds(&supply, &rooms);
    let classes: Vec<Vec<usize>> = judge
        .classes
        .iter()
        .map(|class| judge.kinds_of(class, failures))
        .collect();
    let of: Vec<usize> = jobs.iter().map(|(_, class)| *class).collect();
    let places = assign(&of, &classes, &kinds, rooms.all);

    let new = |place: &&usize| kinds[**place].new;
    let mut room = rooms.all - places.iter().flatten().filter(new).count();
    let mut used: HashSet<usize> = places.iter().flatten().map(|kind| kind / 2).collect();
    let mut served = Vec::new();
    for ((request, class), place) in jobs.into_iter().zip(places) {
        let class = &judge.classes[class];
        let (profile, place) = match place {
            Some(kind) if kind / 2 >= profiles.len() => {
                if let Some(queued_at) = request.queued_at {
                    plan.again_at(later(queued_at, STRANGER_PATIENCE));
                }
                continue;
            }
            Some(kind) if kinds[kind].new => (kind / 2, Served::New),
            Some(kind) => (kind / 2, Served::There),
            None => {
                let mut own = class
                    .met
                    .iter()
                    .copied()
                    .filter(|met| *met < profiles.len());
                let Some(first) = own.next() else {
                    // One agent finds out for all, be it made for another job.
                    let Some(unknown) = class.unknown.filter(|unknown| used.insert(*unknown))
                    else {
                        continue;
                    };
                    let place = if kinds[2 * unknown].size > 0 {
                        Served::There
                    } else {
                        let why = rooms.why_none(&profiles[unknown], room, failures);
                        room -= usize::from(why.is_none());
                        why.unwrap_or(Served::New)
                    };
                    served.push(QueuedJob {
                        request: request.id,
                        profile: &profiles[unknown].name,
                        place,
                    });
                    continue;
                };
                let open = |profile: &usize| kinds[2 * profile + 1].size > 0;
                let profile = std::iter::once(first)
                    .chain(own)
                    .find(open)
                    .unwrap_or(first);
                let why = rooms.why_none(&profiles[profile], room, failures);
                (profile, why.unwrap_or(Served::NoRoom))
            }
        };
        served.push(QueuedJob {
            request: request.id,
            profile: &profiles[profile].name,
            place,
        });
    }
    Queue {
        jobs: served,
        unserved,
    }
}

/// How many agents may be made.
struct Rooms<'a> {
    alive: HashMap<&'a str, usize>,
    /// Of all profiles together.
    all: usize,
}

impl<'a> Rooms<'a> {
    fn new(snapshot: &'a Snapshot, agents: &BTreeMap<u32, Agent>) -> Self {
        Self {
            alive: snapshot.cluster.alive_by_profile(),
            all: (snapshot.pool.max_agents as usize).saturating_sub(alive(snapshot, agents)),
        }
    }

    /// As far as the profile's own maximum goes.
    fn of(&self, profile: &Profile) -> usize {
        let alive = self.alive.get(profile.name.as_str()).copied();
        let room = |most: u32| (most as usize).saturating_sub(alive.unwrap_or(0));
        profile.max_agents.map_or(usize::MAX, room)
    }

    /// Why no agent of the profile is made when there is room for so many more; `None`: one is.
    fn why_none(&self, profile: &Profile, room: usize, failures: &Failures) -> Option<Served> {
        if failures.hold_back(&profile.name) {
            Some(Served::HeldBack)
        } else if self.of(profile) == 0 {
            Some(Served::ProfileFull)
        } else {
            (room == 0).then_some(Served::NoRoom)
        }
    }
}

/// Jobs that may have the same agents.
struct Eligible {
    /// Who serves them, the preferred first: profiles by their index, then sorts of strangers' agents.
    met: Vec<usize>,
    /// The first profile of which it is not known whether it serves them.
    unknown: Option<usize>,
}

/// Who serves a list of demands.
#[derive(Clone)]
enum Judged {
    /// Agents of ours, or may.
    Served(usize),
    /// Agents of somebody else only, or a certain one that is there.
    Elsewhere,
    /// Nobody.
    Nobody(Lacking),
}

/// Agents of somebody else that report the same.
struct Stranger<'a> {
    capabilities: [&'a Capabilities; 2],
    /// How many of them take a job.
    free: usize,
}

impl Stranger<'_> {
    fn verdict(&self, demand: Demand<'_>) -> Verdict {
        let [system, user] = self.capabilities;
        if is_met_by_update(demand) || demand.is_met_by(system) || demand.is_met_by(user) {
            Verdict::Met
        } else {
            Verdict::Unmet
        }
    }
}

/// Judges lists of demands; each list, and each demand, once.
struct Judge<'a> {
    profiles: Vec<Knowledge<'a>>,
    strangers: Vec<Stranger<'a>>,
    /// Names of agents that a job may want, in lower case.
    names: HashSet<String>,
    verdicts: HashMap<&'a str, Rc<[Verdict]>>,
    by_demands: HashMap<(&'a [String], bool), Judged>,
    by_kinds: HashMap<(Vec<usize>, Option<usize>), usize>,
    classes: Vec<Eligible>,
}

impl<'a> Judge<'a> {
    fn new(snapshot: &'a Snapshot, known: &Known<'a>, agents: &BTreeMap<u32, Agent>) -> Self {
        let ours = agents.values();
        let ours = ours.filter_map(|agent| Some(agent.registration.as_ref()?.id));
        let ours: HashSet<i64> = ours.collect();
        let mut names: HashSet<String> = agents
            .values()
            .filter(|agent| agent.is_alive())
            .map(|agent| agent.name.to_lowercase())
            .collect();
        let mut strangers: Vec<Stranger<'a>> = Vec::new();
        let mut positions = HashMap::new();
        for registration in &known.look.agent_pool.registrations {
            if ours.contains(&registration.id) || is_ours(&snapshot.pool, registration, None) {
                continue;
            }
            names.insert(registration.name.to_lowercase());
            // Placeholders of other RunnerPools stand for agents that may come.
            let placeholder = registration.capabilities.user.has(ENV_DIGEST);
            if !registration.online && !placeholder {
                continue;
            }
            let Reported { system, user } = &registration.capabilities;
            let key = (Arc::as_ptr(system), Arc::as_ptr(user));
            let position = *positions.entry(key).or_insert_with(|| {
                strangers.push(Stranger {
                    capabilities: [system, user],
                    free: 0,
                });
                strangers.len() - 1
            });
            let free = registration.online
                && registration.intake == Intake::Enabled
                && registration.assigned.is_none();
            strangers[position].free += usize::from(free);
        }
        Self {
            profiles: snapshot
                .pool
                .profiles
                .iter()
                .map(|profile| Knowledge::of(profile, &known.taught, &known.placeholders))
                .collect(),
            strangers,
            names,
            verdicts: HashMap::new(),
            by_demands: HashMap::new(),
            by_kinds: HashMap::new(),
            classes: Vec::new(),
        }
    }

    /// Two of each profile, agents that are there and such as may be made, and two of each sort of strangers' agents, of
    /// which none can be made.
    fn kinds(&self, supply: &HashMap<&str, usize>, rooms: &Rooms<'_>) -> Vec<Kind> {
        let kinds = |there: usize, room: usize| {
            let new = |new: bool, size: usize| Kind { size, new };
            [new(false, there), new(true, room)]
        };
        let profiles = self.profiles.iter().flat_map(|known| {
            let there = supply.get(known.profile.name.as_str()).copied();
            kinds(there.unwrap_or(0), rooms.of(known.profile).min(rooms.all))
        });
        let strangers = self.strangers.iter();
        profiles
            .chain(strangers.flat_map(|stranger| kinds(stranger.free, 0)))
            .collect()
    }

    /// The kinds that serve jobs of a class: what is there first, then what may be made. Jobs wait for a profile that
    /// fails rather than to get agents of another one, as they would get those whenever it fails.
    fn kinds_of(&self, class: &Eligible, failures: &Failures) -> Vec<usize> {
        let held_back = |met: &&usize| {
            let known = self.profiles.get(**met);
            known.is_some_and(|known| failures.hold_back(&known.profile.name))
        };
        let there = class.met.iter().map(|met| 2 * met);
        let new = class.met.iter().take_while(|met| !held_back(met));
        there.chain(new.map(|met| 2 * met + 1)).collect()
    }

    fn class(&mut self, demands: &'a [String], young: bool) -> Judged {
        if let Some(judged) = self.by_demands.get(&(demands, young)) {
            return judged.clone();
        }
        let judged = self.judge(demands, young);
        self.by_demands.insert((demands, young), judged.clone());
        judged
    }

    fn judge(&mut self, demands: &'a [String], young: bool) -> Judged {
        let parsed: Vec<Demand<'a>> = demands.iter().map(|text| Demand::parse(text)).collect();
        let pinned = |demand: &Demand<'_>| {
            matches!(demand, Demand::Equals { name, value }
                if name.eq_ignore_ascii_case("Agent.Name") && self.names.contains(&value.to_lowercase()))
        };
        if parsed.iter().any(pinned) {
            return Judged::Elsewhere;
        }
        let verdicts: Vec<_> = demands.iter().map(|text| self.verdicts(text)).collect();
        let of = |kind: usize| {
            let verdicts = verdicts.iter().map(|verdicts| verdicts[kind]);
            verdicts.min().unwrap_or(Verdict::Met)
        };
        let is = |verdict: Verdict| move |kind: &usize| of(*kind) == verdict;
        let order = self.order(&parsed);
        let mut met: Vec<usize> = order.iter().copied().filter(is(Verdict::Met)).collect();
        let unknown = order.iter().copied().find(is(Verdict::Unknown));
        let kinds = self.profiles.len()..self.profiles.len() + self.strangers.len();
        let strangers: Vec<usize> = kinds.filter(is(Verdict::Met)).collect();
        if met.is_empty() && unknown.is_none() {
            if strangers.is_empty() {
                return Judged::Nobody(self.lacking(demands, &parsed, &verdicts));
            }
            return Judged::Elsewhere;
        }
        if young {
            met.extend(strangers);
        }
        let classes = &mut self.classes;
        let kinds = self.by_kinds.entry((met, unknown));
        Judged::Served(*kinds.or_insert_with_key(|(met, unknown)| {
            classes.push(Eligible {
                met: met.clone(),
                unknown: *unknown,
            });
            classes.len() - 1
        }))
    }

    fn verdicts(&mut self, text: &'a str) -> Rc<[Verdict]> {
        let (profiles, strangers) = (&self.profiles, &self.strangers);
        let verdicts = self.verdicts.entry(text).or_insert_with(|| {
            let demand = Demand::parse(text);
            let profiles = profiles.iter().map(|profile| profile.verdict(demand));
            let strangers = strangers.iter().map(|stranger| stranger.verdict(demand));
            profiles.chain(strangers).collect()
        });
        Rc::clone(verdicts)
    }

    /// Profiles in the order in which they are tried: those that declare something that is demanded, the base, the others.
    /// So nobody gets an agent that can do more than is asked for as long as another is there.
    fn order(&self, demands: &[Demand<'_>]) -> Vec<usize> {
        let rank = |kind: &usize| match self.profiles[*kind].is_for(demands) {
            true => 0,
            false if *kind == 0 => 1,
            false => 2,
        };
        let mut order: Vec<usize> = (0..self.profiles.len()).collect();
        order.sort_by_key(rank);
        order
    }

    /// What keeps every profile from serving the demands.
    fn lacking(
        &self,
        texts: &[String],
        demands: &[Demand<'_>],
        verdicts: &[Rc<[Verdict]>],
    ) -> Lacking {
        let own = |verdicts: &Rc<[Verdict]>| verdicts[..self.profiles.len()].to_vec();
        let nobody =
            |verdicts: &[Verdict]| verdicts.iter().all(|verdict| *verdict == Verdict::Unmet);
        let somebody_not =
            |verdicts: &[Verdict]| verdicts.iter().any(|verdict| *verdict == Verdict::Unmet);
        let all = || texts.iter().zip(verdicts.iter().map(own));
        let mut lacking: Vec<String> = all()
            .filter(|(_, verdicts)| nobody(verdicts))
            .map(|(text, _)| text.clone())
            .collect();
        let together = lacking.is_empty();
        if together {
            lacking = all()
                .filter(|(_, verdicts)| somebody_not(verdicts))
                .map(|(text, _)| text.clone())
                .collect();
        }
        let contradicted = |profile: &&Knowledge<'_>| {
            let mut demands = demands.iter();
            demands.any(|demand| profile.is_contradicted(*demand))
        };
        let unreported = self.profiles.iter().find(contradicted);
        Lacking {
            demands: lacking,
            together,
            unreported: unreported.map(|profile| profile.profile.name.clone()),
        }
    }
}
