//! Placeholders: one registration that is never online for each profile, so that Azure DevOps queues the jobs that its
//! agents would serve instead of refusing them. It carries what they can do, and so remembers it while there is none.

use std::{
    collections::{HashMap, HashSet},
    hash::{DefaultHasher, Hash as _, Hasher as _},
    sync::Arc,
};

use jiff::Timestamp;

use crate::{
    Action, Capabilities, Demand, Intake, JobRequest, KnownLook, Lesson, Memory, Plan, Pool,
    Profile, Registration, Reported, Snapshot, Why,
    agents::is_ours,
    capabilities::is_of_one_agent,
    learned::{OF_EVERY_AGENT, Taught},
    remove::{act_if_fresh, disable},
};

const VERSION: &str = "Agent.Version";

/// Above every version that a job demands, so that a placeholder meets each such demand.
pub const PLACEHOLDER_VERSION: &str = "99.999.9";

/// Capability of a placeholder: the image whose agents reported what it carries.
pub const ENV_IMAGE: &str = "AZDO_RUNNER_IMAGE";

/// Capability of a placeholder: a digest of all that it carries, to see whether that is out of date.
pub const ENV_DIGEST: &str = "AZDO_RUNNER_DIGEST";

/// What stands on a placeholder for a value that is nobody's business, or may be.
const HIDDEN: &str = "***";

/// What agents of an image report.
#[derive(Clone, Copy, Debug)]
pub struct Learned<'a> {
    /// The image.
    pub image: &'a str,
    /// What they report.
    pub capabilities: &'a Capabilities,
    /// What somebody gave one of them in Azure DevOps; `None`: it is remembered, and no agent is there.
    pub user: Option<&'a Capabilities>,
    /// Whether it is all that they report, with all values.
    pub whole: bool,
}

impl Learned<'_> {
    pub(crate) fn meets(self, demand: Demand<'_>) -> bool {
        demand.is_met_by(self.capabilities) || self.user.is_some_and(|user| demand.is_met_by(user))
    }

    /// Whether a capability is remembered without its value, or given with a value that is not known here.
    pub(crate) fn hides(self, name: &str, profile: &Profile) -> bool {
        let hidden = || self.capabilities.get(name) == Some(HIDDEN);
        !self.whole && (hidden() || profile.given.get(name) == Some(""))
    }
}

/// The placeholders that a look shows.
pub(crate) struct Placeholders<'a> {
    /// Ours, by the profile that they stand for.
    ours: HashMap<&'a str, &'a Registration>,
    /// Ours that stand for no profile.
    idle: Vec<&'a Registration>,
    /// Names that somebody else holds, in lower case.
    held: HashSet<String>,
    memory: &'a Memory,
    pool: &'a Pool,
}

impl<'a> Placeholders<'a> {
    pub(crate) fn of(snapshot: &'a Snapshot, look: &'a KnownLook) -> Self {
        let pool = &snapshot.pool;
        let mut found = Self {
            ours: HashMap::new(),
            idle: Vec::new(),
            held: HashSet::new(),
            memory: &look.memory,
            pool,
        };
        for registration in &look.agent_pool.registrations {
            let Some(name) = pool.placeholder_of(&registration.name) else {
                continue;
            };
            if !is_ours(pool, registration, None) {
                found.held.insert(registration.name.to_ascii_lowercase());
                continue;
            }
            let mut profiles = pool.profiles.iter();
            match profiles.find(|profile| profile.name.eq_ignore_ascii_case(name)) {
                Some(profile) if !found.ours.contains_key(profile.name.as_str()) => {
                    found.ours.insert(&profile.name, registration);
                }
                _ => found.idle.push(registration),
            }
        }
        found
    }

    /// Whether there is none of ours.
    pub(crate) fn is_empty(&self) -> bool {
        self.ours.is_empty() && self.idle.is_empty()
    }

    /// Of how many jobs the service says otherwise than we which placeholders meet their demands.
    pub(crate) fn disputed(&self, requests: &[&JobRequest]) -> usize {
        // Thousands of jobs demand the same, and the service says the same of them.
        let mut last: HashMap<&[String], (&[i64], bool)> = HashMap::new();
        let disputed = requests.iter().filter(|request| {
            let (demands, Some(matched)) = (&request.demands, request.matched.as_deref()) else {
                return false;
            };
            match last.get(demands.as_slice()) {
                Some((known, disputed)) if *known == matched => *disputed,
                _ => {
                    let disputed = self.are_disputed(demands, matched);
                    last.insert(demands, (matched, disputed));
                    disputed
                }
            }
        });
        disputed.count()
    }

    fn are_disputed(&self, demands: &[String], matched: &[i64]) -> bool {
        let demands: Vec<Demand<'_>> = demands.iter().map(|text| Demand::parse(text)).collect();
        let disputed = |placeholder: &&Registration| {
            let mut demands = demands.iter();
            let meets = demands.all(|demand| placeholder.capabilities.meets(*demand));
            meets != matched.contains(&placeholder.id)
        };
        self.ours.values().any(disputed)
    }

    /// What a profile's placeholder remembers, of whatever image; of one that is gone, what it remembered.
    fn remembered(&self, profile: &Profile) -> Option<Learned<'a>> {
        let ours = self.ours.get(profile.name.as_str());
        let reported = ours
            .map(|ours| &ours.capabilities)
            .or_else(|| self.former(profile))?;
        Some(Learned {
            image: reported.user.get(ENV_IMAGE)?,
            capabilities: &reported.system,
            user: None,
            whole: false,
        })
    }

    /// What an agent of a profile and its image taught last, with the id of its registration.
    fn recalled(&self, profile: &Profile) -> Option<(i64, Learned<'a>)> {
        let lesson = self
            .memory
            .lessons
            .get(&self.pool.lesson_name(&profile.name))?;
        let learned = Learned {
            image: &lesson.image,
            capabilities: &lesson.reported,
            user: None,
            whole: true,
        };
        (lesson.image == profile.image).then_some((lesson.agent_id, learned))
    }

    /// What a profile's placeholder carried when it was seen last. Of the two names that it may have had, the plain one may
    /// have been somebody else's.
    fn former(&self, profile: &Profile) -> Option<&'a Reported> {
        let [plain, own] = self.pool.placeholder_names(&profile.name);
        let mut names = [own, plain].into_iter();
        names.find_map(|name| self.memory.placeholders.get(&name.to_lowercase()))
    }

    /// What is known of a profile's agents, of whatever image, and what its placeholder is to remember: what the newest
    /// reports, be it there or gone. What another image can do stands until its own is known, or jobs would be refused
    /// meanwhile.
    pub(crate) fn learned(&self, profile: &'a Profile, taught: &Taught<'a>) -> Option<Learned<'a>> {
        let of_agents = [self.recalled(profile), taught.newest(profile)];
        let last = of_agents.into_iter().flatten().max_by_key(|(id, _)| *id);
        last.map(|(_, learned)| learned)
            .or_else(|| self.remembered(profile))
    }

    /// Adds those that are missing, updates those that carry something else than they should, and removes those of no
    /// profile.
    pub(crate) fn plan(
        &self,
        snapshot: &Snapshot,
        look: &KnownLook,
        taught: &Taught<'a>,
        now: Timestamp,
        plan: &mut Plan,
    ) {
        let pool = self.pool;
        let end = if pool.deleting {
            Some(Why::Deleting)
        } else if pool.placeholders {
            None
        } else {
            Some(Why::PlaceholdersDisabled)
        };
        for profile in &pool.profiles {
            match (self.ours.get(profile.name.as_str()), &end) {
                (None, None) => self.add(profile, taught, plan),
                (Some(registration), None) => {
                    self.keep(profile, registration, look, taught, plan);
                }
                (Some(registration), Some(why)) => {
                    remove(snapshot, registration, why.clone(), look, now, plan);
                }
                (None, Some(_)) => {}
            }
            self.remember(profile, taught, plan);
        }
        for registration in &self.idle {
            let why = end.clone().unwrap_or(Why::ProfileGone);
            remove(snapshot, registration, why, look, now, plan);
        }
    }

    fn add(&self, profile: &'a Profile, taught: &Taught<'a>, plan: &mut Plan) {
        let names = self.pool.placeholder_names(&profile.name);
        let free = |name: &&String| !self.held.contains(&name.to_ascii_lowercase());
        let Some(name) = names.iter().find(free) else {
            plan.withhold(&names[0], Why::NameTaken);
            return;
        };
        let action = Action::AddPlaceholder {
            name: name.clone(),
            capabilities: placeholder_capabilities(profile, self.learned(profile, taught)),
        };
        plan.act(action, Why::PlaceholderMissing);
    }

    /// Has remembered what the newest agent of a profile teaches, or a job that demands what no placeholder tells would get
    /// an agent again and again.
    fn remember(&self, profile: &'a Profile, taught: &Taught<'a>, plan: &mut Plan) {
        let Some((agent_id, reported)) = taught.newest_report(profile) else {
            return;
        };
        let name = self.pool.lesson_name(&profile.name);
        let is_known = |lesson: &Lesson| {
            lesson.image == profile.image
                && (lesson.agent_id > agent_id || lesson.reported == *reported)
        };
        if !self.memory.lessons.get(&name).is_some_and(is_known) {
            let lesson = Lesson {
                agent_id,
                image: profile.image.clone(),
                reported: Arc::clone(reported),
            };
            plan.act(Action::Remember { name, lesson }, Why::Taught);
        }
    }

    fn keep(
        &self,
        profile: &'a Profile,
        registration: &Registration,
        look: &KnownLook,
        taught: &Taught<'a>,
        plan: &mut Plan,
    ) {
        let carried = registration.capabilities.user.get(ENV_DIGEST);
        let learned = self.learned(profile, taught);
        if carried == Some(digest(profile, learned).as_str()) {
            return;
        }
        // Somebody may run an agent in its place.
        if !registration.online && request(look, registration).is_none() {
            let action = Action::UpdatePlaceholder {
                agent_id: registration.id,
                name: registration.name.clone(),
                capabilities: placeholder_capabilities(profile, learned),
            };
            plan.act(action, Why::PlaceholderOutdated);
        }
    }
}

/// All that the placeholder of a profile is to carry, but for the owner mark.
pub fn placeholder_capabilities(profile: &Profile, learned: Option<Learned<'_>>) -> Reported {
    let mut system = Capabilities::default();
    let promised = profile.declared.iter().chain(profile.given.iter());
    let mut user: Capabilities = promised.collect();
    // Which of two of one name counts is not known, so there is one only.
    if let Some(learned) = learned {
        system.extend(of_image(profile, learned).map(|(_, capability)| capability));
        user.remove_all(&system);
        user.insert(ENV_IMAGE, learned.image);
        let own = OF_EVERY_AGENT
            .iter()
            .filter(|name| is_of_one_agent(&name.to_lowercase()));
        system.extend(own.map(|name| (*name, "")));
    } else {
        // Jobs that demand these are not to be refused before an agent was seen.
        system.extend(OF_EVERY_AGENT.map(|name| (name, "")));
        system.insert(
            "Agent.OS",
            if profile.windows {
                "Windows_NT"
            } else {
                "Linux"
            },
        );
        system.remove_all(&user);
    }
    system.insert(VERSION, PLACEHOLDER_VERSION);
    user.insert(ENV_DIGEST, digest(profile, learned));
    Reported {
        system: Arc::new(system),
        user: Arc::new(user),
    }
}

/// Digest of all that a placeholder is made from. Another one, as of another version of the operator, costs one request.
fn digest(profile: &Profile, learned: Option<Learned<'_>>) -> String {
    let mut hasher = DefaultHasher::new();
    (&profile.declared, &profile.given, profile.windows).hash(&mut hasher);
    OF_EVERY_AGENT.hash(&mut hasher);
    if let Some(learned) = learned {
        learned.image.hash(&mut hasher);
        for (_, capability) in of_image(profile, learned) {
            capability.hash(&mut hasher);
        }
    }
    format!("{:016x}", hasher.finish())
}

/// What comes from the image itself: not from the environment that the operator gives, nor what is an agent's own, nor the
/// version, which is the placeholder's. A value that might be secret is left out: environment variables come from anywhere.
fn of_image<'a>(
    profile: &'a Profile,
    learned: Learned<'a>,
) -> impl Iterator<Item = (&'a str, (&'a str, &'a str))> {
    let own = |key: &str| {
        key.starts_with("azp_")
            || key.starts_with("azdo_runner_")
            || key == "agent.version"
            || is_of_one_agent(key)
    };
    learned
        .capabilities
        .by_key()
        .filter(move |(key, _)| !own(key) && !profile.given.has_key(key))
        .map(|(key, (name, value))| {
            let shown = if is_shown(key, value) { value } else { HIDDEN };
            (key, (name, shown))
        })
}

/// Whether a value is what agents tell of themselves, a path or a version.
fn is_shown(key: &str, value: &str) -> bool {
    let mut parts = value.split('.');
    let number = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    let version = value.contains('.') && parts.all(number);
    let path = value.starts_with('/') || value.get(1..3) == Some(":\\");
    key.starts_with("agent.") || key == "interactivesession" || path || version
}

/// A placeholder has no session and no job, unless somebody runs an agent in its place: then it goes as an agent does.
fn remove(
    snapshot: &Snapshot,
    registration: &Registration,
    why: Why,
    look: &KnownLook,
    now: Timestamp,
    plan: &mut Plan,
) {
    let request = request(look, registration);
    let (agent_id, name) = (registration.id, registration.name.clone());
    let mut pods = snapshot.cluster.pods.iter();
    let runs = pods.any(|pod| pod.name == name && pod.phase.finished_at().is_none());
    match (request, registration.online || runs, registration.intake) {
        (Some(request), ..) => plan.withhold(&name, Why::Busy { request }),
        (None, true, Intake::Enabled) => disable(registration, why, plan),
        (None, true, Intake::DisableSent) => plan.withhold(&name, Why::AwaitingLook),
        (None, ..) => {
            let remove = Action::RemoveRegistration { agent_id, name };
            act_if_fresh(remove, why, look, now, plan);
        }
    }
}

/// The request that is assigned to a registration, by either list of Azure DevOps.
fn request(look: &KnownLook, registration: &Registration) -> Option<i64> {
    let reserved = |request: &&JobRequest| request.reserved_agent == Some(registration.id);
    registration.assigned.or_else(|| {
        let requests = look.agent_pool.requests.iter().filter(reserved);
        requests.map(|request| request.id).min()
    })
}
