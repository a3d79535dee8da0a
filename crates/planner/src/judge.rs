//! Who can serve a job: which profiles of the RunnerPools of an agent pool, and which agents of strangers, meet its
//! demands, and in which order they are tried.

use std::{
    cmp::Reverse,
    collections::{HashMap, HashSet},
    rc::Rc,
    sync::Arc,
};

use crate::{
    Demand, Intake, Lacking, Profile, Reported,
    agents::is_ours,
    assignment::Kind,
    capabilities::is_of_one_agent,
    learned::{Knowledge, Verdict, is_met_by_update},
    party::Party,
    placeholders::ENV_DIGEST,
};

/// Jobs that may have the same agents.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(crate) struct Eligible {
    /// Who serves them, the preferred first: profiles of all parties, numbered from those of the first on, then sorts of
    /// strangers' agents.
    pub(crate) met: Vec<usize>,
    /// The first profile of which it is not known whether it serves them.
    pub(crate) unknown: Option<usize>,
    /// They are new: others than our own may be about to serve them.
    pub(crate) young: bool,
}

/// A profile of a party.
struct Candidate<'a> {
    party: usize,
    known: Knowledge<'a>,
}

/// Who serves a list of demands.
#[derive(Clone)]
pub(crate) enum Judged {
    /// Agents of ours, or may.
    Served(usize),
    /// Agents of somebody else only, or a certain one that is there.
    Elsewhere,
    /// Nobody.
    Nobody(Lacking),
}

/// Agents of somebody else that report the same.
struct Stranger<'a> {
    capabilities: &'a Reported,
    /// How many of them take a job.
    free: usize,
}

impl Stranger<'_> {
    fn verdict(&self, demand: Demand<'_>) -> Verdict {
        if is_met_by_update(demand) || self.capabilities.meets(demand) {
            Verdict::Met
        } else {
            Verdict::Unmet
        }
    }
}

/// Judges lists of demands; each list, and each demand, once.
pub(crate) struct Judge<'p, 'a> {
    parties: &'p [Party<'a>],
    own: &'p Party<'a>,
    candidates: Vec<Candidate<'a>>,
    strangers: Vec<Stranger<'a>>,
    verdicts: HashMap<&'a str, Rc<[Verdict]>>,
    by_demands: HashMap<(&'a [String], bool), Judged>,
    numbers: HashMap<Eligible, usize>,
    classes: Vec<Eligible>,
}

impl<'p, 'a> Judge<'p, 'a> {
    pub(crate) fn new(parties: &'p [Party<'a>], own: &'p Party<'a>) -> Self {
        let candidates = parties.iter().enumerate().flat_map(|(number, party)| {
            let profiles = party.profiles().iter();
            profiles.map(move |profile| Candidate {
                party: number,
                known: Knowledge::of(profile, &party.known.taught, &party.known.placeholders),
            })
        });
        let agents = || parties.iter().flat_map(|party| party.agents.values());
        let mut judge = Self {
            parties,
            own,
            candidates: candidates.collect(),
            strangers: Vec::new(),
            verdicts: HashMap::new(),
            by_demands: HashMap::new(),
            numbers: HashMap::new(),
            classes: Vec::new(),
        };
        let known = agents().filter_map(|agent| Some(agent.registration.as_ref()?.id));
        judge.find_strangers(&known.collect());
        judge
    }

    fn find_strangers(&mut self, known: &HashSet<i64>) {
        let mut positions = HashMap::new();
        for registration in &self.own.known.look.agent_pool.registrations {
            let mut parties = self.parties.iter();
            if known.contains(&registration.id)
                || parties.any(|party| is_ours(party.pool(), registration, None))
            {
                continue;
            }
            let capabilities = &registration.capabilities;
            // Placeholders of RunnerPools of other operators stand for agents that may come.
            if !registration.online && !capabilities.user.has(ENV_DIGEST) {
                continue;
            }
            let Reported { system, user } = capabilities;
            let key = (Arc::as_ptr(system), Arc::as_ptr(user));
            let strangers = &mut self.strangers;
            let position = *positions.entry(key).or_insert_with(|| {
                strangers.push(Stranger {
                    capabilities,
                    free: 0,
                });
                strangers.len() - 1
            });
            let free = registration.online
                && registration.intake == Intake::Enabled
                && registration.assigned.is_none();
            strangers[position].free += usize::from(free);
        }
    }

    /// Two kinds of each profile, agents that are there and such as may be made, and two of each sort of strangers' agents,
    /// of which none can be made.
    pub(crate) fn kinds(&self) -> Vec<Kind> {
        let profiles = self.candidates.iter().flat_map(|candidate| {
            let party = &self.parties[candidate.party];
            let there = Kind {
                size: party.there(candidate.known.profile),
                made_in: None,
            };
            let new = Kind {
                size: party.room_of(candidate.known.profile),
                made_in: Some(candidate.party),
            };
            [there, new]
        });
        let strangers = self.strangers.iter().flat_map(|stranger| {
            let there = Kind {
                size: stranger.free,
                made_in: None,
            };
            [there, Kind::default()]
        });
        profiles.chain(strangers).collect()
    }

    /// The kinds that serve the jobs of each class: what is there first, then what may be made. Jobs wait for a profile
    /// that fails rather than to get agents of another one, as they would get those whenever it fails.
    pub(crate) fn kinds_of_classes(&self) -> Vec<Vec<usize>> {
        let held_back = |met: &&usize| {
            let candidate = self.candidates.get(**met);
            candidate.is_some_and(|candidate| {
                self.parties[candidate.party].holds_back(candidate.known.profile)
            })
        };
        // What keeps another RunnerPool from making an agent need not be known here.
        let makes = |met: usize, young: bool| young || self.is_own(met);
        let classes = self.classes.iter().map(|class| {
            let there = class.met.iter().map(|met| 2 * met);
            let new = class.met.iter();
            let new = new.take_while(|met| !(self.is_own(**met) && held_back(met)));
            let new = new.filter(|met| !held_back(met) && makes(**met, class.young));
            there.chain(new.map(|met| 2 * met + 1)).collect()
        });
        classes.collect()
    }

    pub(crate) fn eligible(&self, class: usize) -> &Eligible {
        &self.classes[class]
    }

    /// The profile behind a number, if the RunnerPool that is planned for has it.
    pub(crate) fn own_profile(&self, number: usize) -> Option<&'a Profile> {
        let candidate = self.candidates.get(number)?;
        self.parties[candidate.party]
            .is_own
            .then_some(candidate.known.profile)
    }

    pub(crate) fn is_own(&self, candidate: usize) -> bool {
        self.own_profile(candidate).is_some()
    }

    /// Whether a profile has an agent that will take a job.
    fn is_there(&self, candidate: usize) -> bool {
        let candidate = self.candidates.get(candidate);
        candidate.is_some_and(|candidate| {
            self.parties[candidate.party].there(candidate.known.profile) > 0
        })
    }

    /// Whether a profile may have an agent, or more.
    pub(crate) fn has_room(&self, candidate: usize) -> bool {
        let candidate = self.candidates.get(candidate);
        candidate.is_some_and(|candidate| {
            let (party, profile) = (&self.parties[candidate.party], candidate.known.profile);
            party.there(profile) + party.room_of(profile) > 0
        })
    }

    pub(crate) fn class(&mut self, demands: &'a [String], young: bool) -> Judged {
        if let Some(judged) = self.by_demands.get(&(demands, young)) {
            return judged.clone();
        }
        let judged = self.judge(demands, young);
        self.by_demands.insert((demands, young), judged.clone());
        judged
    }

    fn judge(&mut self, demands: &'a [String], young: bool) -> Judged {
        let parsed: Vec<Demand<'a>> = demands.iter().map(|text| Demand::parse(text)).collect();
        // No new agent has what is another one's own.
        let pinned = |demand: &Demand<'_>| match demand {
            Demand::Equals { name, value } if name.eq_ignore_ascii_case("Agent.Name") => {
                self.is_named(value)
            }
            Demand::Equals { name, .. } => is_of_one_agent(&name.to_lowercase()),
            _ => false,
        };
        if parsed.iter().any(pinned) {
            return Judged::Elsewhere;
        }
        let read = demands.iter().zip(&parsed);
        let verdicts: Vec<_> = read
            .map(|(text, demand)| self.verdicts(text, *demand))
            .collect();
        let of = |candidate: usize| {
            let verdicts = verdicts.iter().map(|verdicts| verdicts[candidate]);
            verdicts.min().unwrap_or(Verdict::Met)
        };
        let is = |verdict: Verdict| move |candidate: &usize| of(*candidate) == verdict;
        let order = self.order(&parsed);
        let mut met: Vec<usize> = order.iter().copied().filter(is(Verdict::Met)).collect();
        let mut unknown = order.iter().copied().filter(is(Verdict::Unknown));
        let unknown = unknown.find(|candidate| {
            self.is_own(*candidate)
                || (young && self.has_room(*candidate))
                // An agent of another RunnerPool is about to tell.
                || self.is_there(*candidate)
        });
        let others = self.candidates.len()..self.candidates.len() + self.strangers.len();
        let strangers: Vec<usize> = others.filter(is(Verdict::Met)).collect();
        if met.is_empty() && unknown.is_none() {
            let elsewhere = order
                .iter()
                .any(|candidate| of(*candidate) != Verdict::Unmet);
            return if strangers.is_empty() && !elsewhere {
                Judged::Nobody(self.lacking(demands, &parsed, &verdicts))
            } else {
                Judged::Elsewhere
            };
        }
        if young {
            met.extend(strangers);
        }
        let eligible = Eligible {
            met,
            unknown,
            young,
        };
        let classes = &mut self.classes;
        let number = self.numbers.entry(eligible).or_insert_with_key(|eligible| {
            classes.push(eligible.clone());
            classes.len() - 1
        });
        Judged::Served(*number)
    }

    /// Whether there is an agent of this name, be it a stranger's.
    fn is_named(&self, name: &str) -> bool {
        let mut parties = self.parties.iter();
        if parties.any(|party| party.pool().placeholder_of(name).is_some()) {
            return false;
        }
        let named = |other: &str| other.eq_ignore_ascii_case(name);
        let mut agents = self.parties.iter().flat_map(|party| party.agents.values());
        let mut registrations = self.own.known.look.agent_pool.registrations.iter();
        agents.any(|agent| agent.is_alive() && named(&agent.name))
            || registrations.any(|registration| {
                let mut parties = self.parties.iter();
                named(&registration.name)
                    && !parties.any(|party| is_ours(party.pool(), registration, None))
            })
    }

    fn verdicts(&mut self, text: &'a str, demand: Demand<'a>) -> Rc<[Verdict]> {
        let (candidates, strangers) = (&self.candidates, &self.strangers);
        let verdicts = self.verdicts.entry(text).or_insert_with(|| {
            let profiles = candidates
                .iter()
                .map(|candidate| candidate.known.verdict(demand));
            let strangers = strangers.iter().map(|stranger| stranger.verdict(demand));
            profiles.chain(strangers).collect()
        });
        Rc::clone(verdicts)
    }

    /// Profiles in the order in which they are tried: those of the RunnerPool with the highest priority; of these, those
    /// that declare something that is demanded, the base, the others; then by the name of the RunnerPool and as it lists
    /// them. So nobody gets an agent that can do more than is asked for as long as another is there.
    fn order(&self, demands: &[Demand<'_>]) -> Vec<usize> {
        let rank = |number: &usize| {
            let candidate = &self.candidates[*number];
            let pool = self.parties[candidate.party].pool();
            let is_base = pool.profiles.first() == Some(candidate.known.profile);
            let tier = match candidate.known.is_for(demands) {
                true => 0,
                false if is_base => 1,
                false => 2,
            };
            (Reverse(pool.priority), tier, pool.name.as_str(), *number)
        };
        let mut order: Vec<usize> = (0..self.candidates.len()).collect();
        order.sort_by_cached_key(rank);
        order
    }

    /// What keeps every profile of ours from serving the demands.
    fn lacking(
        &self,
        texts: &[String],
        demands: &[Demand<'_>],
        verdicts: &[Rc<[Verdict]>],
    ) -> Lacking {
        let own = self
            .candidates
            .iter()
            .position(|candidate| self.parties[candidate.party].is_own);
        let own = own.unwrap_or_default();
        let own = own..own + self.own.profiles().len();
        let all = || {
            texts
                .iter()
                .zip(verdicts.iter().map(|verdicts| &verdicts[own.clone()]))
        };
        let listed = |lacks: fn(&[Verdict]) -> bool| {
            let demands = all().filter(|(_, verdicts)| lacks(verdicts));
            demands.map(|(text, _)| text.clone()).collect::<Vec<_>>()
        };
        let by_all = listed(|verdicts| verdicts.iter().all(|verdict| *verdict == Verdict::Unmet));
        let by_some = listed(|verdicts| verdicts.contains(&Verdict::Unmet));
        let contradicted = |candidate: &&Candidate<'_>| {
            let mut demands = demands.iter();
            demands.any(|demand| candidate.known.is_contradicted(*demand))
        };
        let unreported = self.candidates[own].iter().find(contradicted);
        Lacking {
            together: by_all.is_empty(),
            demands: if by_all.is_empty() { by_some } else { by_all },
            unreported: unreported.map(|candidate| candidate.known.profile.name.clone()),
        }
    }
}
