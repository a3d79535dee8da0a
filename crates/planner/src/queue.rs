//! What becomes of each queued job: which profile's agents serve it, whether they are there or to be made, and which jobs
//! nothing of ours can serve.

use std::collections::HashSet;

use jiff::Timestamp;

use crate::{
    JobRequest, Plan, STRANGER_PATIENCE, Unserved,
    assignment::assign,
    judge::{Judge, Judged},
    later,
    party::{Made, Party},
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
    /// How many the service judges in another way than we do.
    pub(crate) disputed: usize,
}

/// Every queued job that a look shows. The parties are the RunnerPools of the agent pool, in any order: planned for any of
/// them the result is the same, and each carries out its own part.
pub(crate) fn queue<'a>(mut parties: Vec<Party<'a>>, now: Timestamp, plan: &mut Plan) -> Queue<'a> {
    parties.sort_by_key(|party| party.pool().rank());
    let Some(own) = parties.iter().find(|party| party.is_own) else {
        return Queue::default();
    };
    let requests = own.known.look.agent_pool.requests.iter();
    let mut requests: Vec<&JobRequest> = requests
        .filter(|request| request.reserved_agent.is_none())
        .collect();
    requests.sort_by_key(|request| request.id);
    let disputed = own.known.placeholders.disputed(&requests);

    let mut judge = Judge::new(&parties, own);
    let mut jobs = Vec::new();
    let mut unserved = Vec::new();
    for request in requests {
        let first_seen = own.known.look.memory.first_seen.get(&request.id);
        let until = first_seen.map(|at| later(*at, STRANGER_PATIENCE));
        let until = until.filter(|until| now < *until);
        match judge.class(&request.demands, until.is_some()) {
            Judged::Served(class) => jobs.push((request.id, until, class)),
            Judged::Elsewhere => {}
            Judged::Nobody(lacking) => unserved.push(Unserved {
                request: request.id,
                lacking,
            }),
        }
    }

    let kinds = judge.kinds();
    let classes = judge.kinds_of_classes();
    let rooms: Vec<usize> = parties.iter().map(|party| party.room).collect();
    let of: Vec<usize> = jobs.iter().map(|(.., class)| *class).collect();
    let places = assign(&of, &classes, &kinds, &rooms);

    let new = places.iter().flatten();
    let new = new.filter(|kind| kinds[**kind].made_in.is_some());
    let mut made = Made::default();
    for profile in new.filter_map(|kind| judge.own_profile(kind / 2)) {
        made.add(profile);
    }
    let mut used: HashSet<usize> = places.iter().flatten().map(|kind| kind / 2).collect();
    let mut served = Vec::new();
    for ((request, until, class), place) in jobs.into_iter().zip(places) {
        let eligible = judge.eligible(class);
        let met = eligible.met.iter();
        let own_met = met.filter_map(|met| judge.own_profile(*met));
        let (profile, place) = if let Some(kind) = place {
            let new = kinds[kind].made_in.is_some();
            let place = if new { Served::New } else { Served::There };
            (judge.own_profile(kind / 2), place)
        } else if let Some(profile) = own.waits_for(own_met, &made) {
            let why = own.why_none(profile, &made);
            (Some(profile), why.unwrap_or(Served::NoRoom))
        } else if let Some(unknown) = eligible.unknown
            // Others that could serve it are left to do so for a while, and as long as they may.
            && !(eligible.young && eligible.met.iter().any(|met| judge.has_room(*met)))
            // One agent finds out for all, be it made for another job.
            && used.insert(unknown)
        {
            let profile = judge.own_profile(unknown);
            let there = kinds[2 * unknown].size > 0;
            let why = if there {
                Some(Served::There)
            } else {
                profile.and_then(|profile| own.why_none(profile, &made))
            };
            if let (None, Some(profile)) = (why, profile) {
                made.add(profile);
            }
            (profile, why.unwrap_or(Served::New))
        } else {
            continue;
        };
        match profile {
            Some(profile) => served.push(QueuedJob {
                request,
                profile: &profile.name,
                place,
            }),
            // It is left to others, and for a while only.
            None => until.into_iter().for_each(|until| plan.again_at(until)),
        }
    }
    Queue {
        jobs: served,
        unserved,
        disputed,
    }
}
