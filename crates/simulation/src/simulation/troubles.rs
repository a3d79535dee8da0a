//! Troubles: when they come, what they do, when they end.

use std::collections::HashMap;

use api::{Mode, RunnerPool, names};
use azure_devops_simulator::AgentSpec;
use kube::{ResourceExt as _, api::DeleteParams};

use super::{Apart, Event, HostStep, Simulation, truth::Origin};
use crate::{
    clock::{HOUR, MINUTE, Millis, SECOND},
    scenario::{AGENT_POOLS, Kind, ORGANIZATION, pod_template, rare_options, spec},
};

/// When the last trouble is this long over, nothing of it is left.
const SETTLED: Millis = 15 * MINUTE;
/// How long a look takes at the most while nothing is wrong, and what is done upon it.
const FOR_A_LOOK: Millis = 3 * SECOND;

/// What is wrong at present.
#[derive(Debug)]
pub(crate) struct Troubles {
    /// By kind, the number of its present episode.
    active: HashMap<Kind, u32>,
    numbers: u32,
    /// Number of the token in the Secret.
    token: u32,
    /// Tokens up to this one were revoked for good.
    rotated: u32,
    /// By RunnerPool, whether a user will create it again.
    pub(crate) deleted: Vec<bool>,
    /// When something last happened, or might have, that is no deletion of a registration. Much of it keeps no placeholder
    /// away; what is left between is enough to judge by.
    pub(crate) disturbed_at: Millis,
    /// When somebody last deleted a registration.
    deregistered_at: Millis,
    over: bool,
}

impl Troubles {
    pub(crate) fn new(pools: usize) -> Self {
        Self {
            active: HashMap::new(),
            numbers: 0,
            token: 1,
            rotated: 0,
            deleted: vec![false; pools],
            disturbed_at: 0,
            deregistered_at: 0,
            over: false,
        }
    }

    pub(crate) fn is(&self, kind: Kind) -> bool {
        self.active.contains_key(&kind)
    }

    /// Whether nothing has been wrong for a while, and whoever looks so often has looked since a registration was deleted.
    pub(crate) fn are_settled(&self, now: Millis, look: Millis) -> bool {
        self.active.is_empty()
            && now > self.disturbed_at + SETTLED
            && now > self.deregistered_at + look + FOR_A_LOOK
    }

    /// Whether nothing is wrong on the way to Azure DevOps.
    pub(crate) fn azure_is_well(&self) -> bool {
        !self.active.keys().any(|kind| {
            matches!(
                kind,
                Kind::AzureDown
                    | Kind::AzureThrottled
                    | Kind::AzureSignIn
                    | Kind::AzureEmptyList
                    | Kind::AzureStale
                    | Kind::AzureSlow
                    | Kind::ServiceDown
                    | Kind::TokenRevoked
                    | Kind::TokenRotated
            )
        })
    }

    /// What the Secret holds.
    pub(crate) fn secret(&self) -> String {
        format!("token{}", self.token)
    }

    /// Whether the service takes a token.
    pub(crate) fn works(&self, token: Option<&str>) -> bool {
        let number = token.and_then(|token| token.strip_prefix("token")?.parse::<u32>().ok());
        number.is_some_and(|number| number > self.rotated) && !self.is(Kind::TokenRevoked)
    }

    pub(crate) fn secret_works(&self) -> bool {
        self.works(Some(&self.secret()))
    }
}

impl Simulation {
    pub(crate) fn trouble_comes(&mut self, kind: Kind) {
        let known = self
            .scenario
            .troubles
            .iter()
            .find(|(known, _)| *known == kind);
        if let Some(&(_, mean)) = known {
            let wait = self.random.wait(mean);
            self.after(wait, Event::Trouble(kind));
        }
        if self.troubles.over || self.troubles.is(kind) {
            return;
        }
        if kind == Kind::RegistrationDeleted {
            self.troubles.deregistered_at = self.now;
        } else {
            self.troubles.disturbed_at = self.now;
        }
        if let Some(lasts) = self.episode(kind) {
            self.begin_episode(kind, lasts);
        } else if self.strike(kind) {
            self.book.counts.trouble(name(kind));
        }
    }

    /// How long a trouble of this kind lasts; `None`: it is over as soon as it came.
    fn episode(&mut self, kind: Kind) -> Option<Millis> {
        let (low, high) = match kind {
            Kind::AzureDown | Kind::AzureSignIn | Kind::AzureThrottled => (5 * SECOND, 15 * MINUTE),
            Kind::AzureEmptyList | Kind::AzureStale | Kind::AzureLostReply => {
                (20 * SECOND, 20 * MINUTE)
            }
            Kind::AzureSlow | Kind::KubeSlow => (20 * SECOND, 5 * MINUTE),
            // Agents lose a job whose lock they cannot renew for ten minutes.
            Kind::ServiceDown => (5 * SECOND, 4 * MINUTE),
            Kind::TokenRevoked => (MINUTE, 40 * MINUTE),
            // The new token is in the Secret some time after the old one died.
            Kind::TokenRotated => (SECOND, 10 * MINUTE),
            Kind::KubeErrors | Kind::KubeLostReply => (10 * SECOND, 20 * MINUTE),
            Kind::Quota => (MINUTE, 30 * MINUTE),
            Kind::WatchLag => (10 * SECOND, 10 * MINUTE),
            Kind::StartsFail => (20 * SECOND, 15 * MINUTE),
            Kind::StartsHang | Kind::AgentHang => (20 * SECOND, 10 * MINUTE),
            _ => return None,
        };
        Some(self.random.between(low, high))
    }

    fn begin_episode(&mut self, kind: Kind, lasts: Millis) {
        for operator in 0..self.operators.len() {
            self.unsettle(operator);
        }
        self.troubles.numbers += 1;
        let number = self.troubles.numbers;
        self.troubles.active.insert(kind, number);
        self.book.counts.trouble(name(kind));
        self.book.tell(self.now, "trouble", || {
            format!("{} for {} s", name(kind), lasts / SECOND)
        });
        if kind == Kind::TokenRotated {
            self.troubles.rotated = self.troubles.token;
        }
        if kind == Kind::AzureStale {
            for index in 0..self.agent_pools.len() {
                self.remember(index);
            }
        }
        self.after(lasts, Event::TroubleEnds(kind, number));
    }

    pub(crate) fn trouble_ends(&mut self, kind: Kind, number: u32) {
        if self.troubles.active.get(&kind) != Some(&number) {
            return;
        }
        self.troubles.active.remove(&kind);
        self.troubles.disturbed_at = self.now;
        for operator in 0..self.operators.len() {
            self.unsettle(operator);
        }
        self.book
            .tell(self.now, "trouble", || format!("{} is over", name(kind)));
        match kind {
            Kind::TokenRotated => self.troubles.token += 1,
            Kind::AzureStale => self.forget_history(),
            Kind::StartsHang => self.start_what_hangs(),
            _ => {}
        }
    }

    /// Something happens once. Whether there was anything for it to happen to.
    fn strike(&mut self, kind: Kind) -> bool {
        match kind {
            Kind::AgentCrash => self.strike_pod("crashed", true, Self::crash),
            Kind::NodePressure => self.strike_pod("was evicted by its node", true, Self::crash),
            Kind::PodDeleted => {
                let what = "was deleted by somebody";
                self.strike_pod(what, false, |run, pod, what| {
                    run.delete_from_outside(pod, what);
                })
            }
            Kind::PodForced => self.strike_pod("was deleted by force", false, Self::force),
            Kind::NodeLost | Kind::NodePartitioned => self.strike_node(kind),
            Kind::WatchCut => self.strike_operator(|run, operator| {
                let wait = run.random.between(200, 20 * SECOND);
                run.cut_watch(operator, wait);
            }),
            Kind::OperatorCrash => self.strike_operator(Self::operator_stops),
            Kind::ClockJump => self.strike_operator(|run, operator| {
                let skew = run.random.between(-20 * MINUTE, 20 * MINUTE);
                run.tell_of(operator, || {
                    format!("its clock jumps by {} s", skew / SECOND)
                });
                run.set_skew(operator, skew);
                let wait = run.random.between(10 * SECOND, 30 * MINUTE);
                run.after(wait, Event::ClockReturns(operator));
            }),
            Kind::TwoLeaders => {
                let alive = self.living();
                if alive.len() != 1 {
                    return false;
                }
                self.operator_starts();
                // One of them stops after a while, the old one more often.
                let new = self.operators.len() - 1;
                let stops = if self.random.permille(700) {
                    alive[0]
                } else {
                    new
                };
                let wait = self.random.between(20 * SECOND, 20 * MINUTE);
                self.after(wait, Event::OperatorStops(stops));
                true
            }
            Kind::StrangerRegisters => self.stranger_registers(),
            Kind::StrangerCreates => self.stranger_creates(),
            Kind::HostComes => self.host_comes(),
            Kind::RegistrationDeleted => self.registration_deleted(),
            Kind::AgentDisabled => self.agent_disabled(),
            Kind::SpecEdited => self.edit_spec(),
            Kind::PoolDeleted => self.delete_pool(),
            Kind::JobCanceled => self.cancel_job(),
            _ => false,
        }
    }

    fn strike_pod(
        &mut self,
        what: &'static str,
        running: bool,
        strike: impl FnOnce(&mut Self, usize, &'static str),
    ) -> bool {
        let candidates: Vec<usize> = self
            .present()
            .filter(|&pod| !running || self.machines[pod].is_running())
            .filter(|&pod| !self.nodes[self.machines[pod].node].lost)
            .collect();
        if candidates.is_empty() {
            return false;
        }
        let pod = *self.random.pick(&candidates);
        strike(self, pod, what);
        true
    }

    fn crash(&mut self, pod: usize, what: &'static str) {
        self.blame(pod, what);
        self.tell_pod(pod, what);
        self.die(pod, 137);
    }

    /// `kubectl delete --force`: the object goes at once; its node ends the container soon after.
    fn force(&mut self, pod: usize, what: &'static str) {
        self.blame(pod, what);
        self.tell_pod(pod, what);
        // The API server marks it before it goes, also with no grace period.
        let name = &self.machines[pod].name;
        let force = DeleteParams::default().grace_period(0);
        let _ = self.cluster.delete_pod(name, &force, self.now);
        self.remove_pod(pod);
        self.die(pod, 137);
    }

    fn strike_node(&mut self, kind: Kind) -> bool {
        let node = self.random.index(self.nodes.len());
        let state = &self.nodes[node];
        let alone = self.nodes.iter().filter(|node| !node.lost).count() <= 1;
        if state.lost || state.cut_until > self.now || alone {
            return false;
        }
        if kind == Kind::NodeLost {
            self.book
                .tell(self.now, "trouble", || format!("node {node} is lost"));
            self.lose_node(node);
        } else {
            let wait = self.random.between(5 * SECOND, 12 * MINUTE);
            self.book.tell(self.now, "trouble", || {
                format!("node {node} is cut off for {} s", wait / SECOND)
            });
            self.cut_node(node, wait);
        }
        true
    }

    fn strike_operator(&mut self, strike: impl FnOnce(&mut Self, usize)) -> bool {
        let alive = self.living();
        if alive.is_empty() {
            return false;
        }
        let operator = *self.random.pick(&alive);
        strike(self, operator);
        true
    }

    /// Somebody registers an agent, mostly under a name that could be ours.
    fn stranger_registers(&mut self) -> bool {
        let pool = self.random.index(self.scenario.pools.len());
        let name = self.scenario.pools[pool].agent_base();
        let number = self.random.between(0, 5);
        let number = u32::try_from(number).unwrap_or_default();
        let name = match self.random.below(4) {
            0 => format!("someone-{}", self.random.below(1000)),
            1 => names::placeholder(name, "base").to_uppercase(),
            2 => names::agent(name, number).to_uppercase(),
            _ => names::agent(name, number),
        };
        let agent_pool = self.agent_pool_of(pool);
        let spec = AgentSpec {
            name: name.clone(),
            ..AgentSpec::default()
        };
        let now = self.time();
        let added = self
            .world
            .add_agent_by_hand(now, ORGANIZATION, AGENT_POOLS[agent_pool], spec);
        let Ok(id) = added else { return false };
        self.origins
            .insert(id, Origin::Stranger { since: self.now });
        self.strangers.insert(id, (agent_pool, true));
        self.effect_of("stranger registers", &name);
        self.book
            .tell(self.now, "stranger", || format!("registers {name} ({id})"));
        true
    }

    /// Somebody deletes a registration of ours.
    fn registration_deleted(&mut self) -> bool {
        let Some((agent_pool, id, name)) = self.any_registration_of_ours() else {
            return false;
        };
        if let Some(Origin::Agent(pod)) = self.origins.get(&id).copied() {
            self.blame(pod, "its registration was deleted by somebody");
        }
        let now = self.time();
        let pool = AGENT_POOLS[agent_pool];
        self.effect_of("stranger deletes", &name);
        self.book.tell(self.now, "stranger", || {
            format!("deletes the registration of {name}")
        });
        self.world
            .delete_agent_by_hand(now, ORGANIZATION, pool, &name)
            .is_ok()
    }

    /// Somebody disables an agent of ours.
    fn agent_disabled(&mut self) -> bool {
        let Some((agent_pool, id, name)) = self.any_registration_of_ours() else {
            return false;
        };
        let (handle, now) = (self.handle(agent_pool), self.time());
        self.effect_of("stranger disables", &name);
        self.book
            .tell(self.now, "stranger", || format!("disables {name}"));
        self.world.enable_agent(now, handle, id, false).is_ok()
    }

    fn any_registration_of_ours(&mut self) -> Option<(usize, i64, String)> {
        let agent_pool = self.random.index(self.agent_pools.len());
        let handle = self.handle(agent_pool);
        let ours: Vec<(i64, String)> = self
            .world
            .agent_lines(handle)
            .filter(|agent| !self.strangers.contains_key(&agent.id))
            .map(|agent| (agent.id, agent.name.to_owned()))
            .collect();
        if ours.is_empty() {
            return None;
        }
        let (id, name) = self.random.pick(&ours).clone();
        Some((agent_pool, id, name))
    }

    fn any_pool(&mut self) -> Option<(usize, std::sync::Arc<RunnerPool>)> {
        let pool = self.random.index(self.scenario.pools.len());
        let key = crate::cluster::key(&self.scenario.pools[pool]);
        let object = self.cluster.pools.get(&key)?.clone();
        object
            .metadata
            .deletion_timestamp
            .is_none()
            .then_some((pool, object))
    }

    /// A user edits a RunnerPool. It stays with its agent pool: moving it leaves registrations behind, as the README
    /// says. What agents are named by cannot be changed.
    fn edit_spec(&mut self) -> bool {
        let Some((pool, object)) = self.any_pool() else {
            return false;
        };
        let mut edited = (*object).clone();
        let mut other = spec(&mut self.random, 1);
        other.pool.clone_from(&edited.spec.pool);
        let prefix = &edited.spec.agent_name_prefix;
        other.agent_name_prefix.clone_from(prefix);
        let whom = u64::try_from(pool).unwrap_or_default();
        let mut options = self.apart(self.now, whom, Apart::Options);
        rare_options(&mut options, &mut other);
        other.pod_template = pod_template(&mut options);
        match self.random.below(4) {
            0 => {
                let modes = [Mode::Active, Mode::Paused, Mode::Drained];
                edited.spec.mode = *self.random.pick(&modes);
            }
            1 => {
                edited.spec.max_agents = other.max_agents;
                edited.spec.min_agents = edited.spec.min_agents.min(other.max_agents);
                edited.spec.profiles.clear();
            }
            2 => edited.spec.image = other.image,
            _ => edited.spec = other,
        }
        self.effect_of("edit", &object.name_any());
        self.book.tell(self.now, "user", || {
            format!("edits {pool}: {:?}", edited.spec)
        });
        self.cluster.put_pool(edited, self.now);
        true
    }

    /// A user deletes a RunnerPool, and mostly creates it again.
    fn delete_pool(&mut self) -> bool {
        let Some((pool, object)) = self.any_pool() else {
            return false;
        };
        let key = crate::cluster::key(&object);
        self.effect_of("delete", &key.to_string());
        self.book
            .tell(self.now, "user", || format!("deletes {key}"));
        if let Some(uid) = self.cluster.delete_pool(&key, self.now) {
            self.after(SECOND, Event::Collected(uid, self.now));
        }
        let wait = self.random.between(SECOND, 2 * HOUR);
        // One that comes again finds what its namesake left, and takes it for its own.
        let whom = u64::try_from(pool).unwrap_or_default();
        if !self.apart(self.now, whom, Apart::Deletion).permille(300) {
            self.troubles.deleted[pool] = true;
            self.after(wait, Event::PoolAgain(pool));
        }
        true
    }

    /// All that is wrong ends; nothing more comes.
    pub(crate) fn end_troubles(&mut self) {
        self.book
            .tell(self.now, "trouble", || "all trouble and load ends".into());
        self.troubles.over = true;
        let mut active: Vec<(Kind, u32)> =
            self.troubles.active.iter().map(|(k, n)| (*k, *n)).collect();
        active.sort_unstable();
        for operator in 0..self.operators.len() {
            self.unsettle(operator);
        }
        for (kind, number) in active {
            self.trouble_ends(kind, number);
        }
        let pools: Vec<_> = self.cluster.pools.values().cloned().collect();
        for pool in pools.iter().filter(|pool| pool.spec.mode != Mode::Active) {
            let mut active = (**pool).clone();
            active.spec.mode = Mode::Active;
            self.cluster.put_pool(active, self.now);
        }
        for node in &mut self.nodes {
            node.cut_until = node.cut_until.min(self.now);
        }
        let alive = self.living();
        for &operator in &alive {
            self.set_skew(operator, 0);
        }
        for agent_pool in 0..self.agent_pools.len() {
            self.cancel_hopeless_jobs(agent_pool);
        }
        for &operator in alive.iter().skip(1) {
            self.operator_stops(operator);
        }
        for name in self.in_the_way.clone() {
            self.stranger_leaves(&name);
        }
        // What serves from here on is the operator's.
        for host in 0..self.hosts.len() {
            self.after(0, Event::Host(host, HostStep::Leaves));
        }
        // Agents that hang are somebody else's to end.
        let hanging: Vec<usize> = self.present().filter(|&pod| self.hangs(pod)).collect();
        for pod in hanging {
            self.die(pod, 137);
        }
    }
}

pub(crate) fn name(kind: Kind) -> &'static str {
    match kind {
        Kind::AzureDown => "Azure DevOps down",
        Kind::AzureThrottled => "Azure DevOps throttled",
        Kind::AzureSignIn => "sign-in pages",
        Kind::AzureEmptyList => "wrong empty lists",
        Kind::AzureStale => "stale lists",
        Kind::AzureLostReply => "Azure DevOps answers lost",
        Kind::AzureSlow => "Azure DevOps slow",
        Kind::ServiceDown => "Azure DevOps down for all",
        Kind::TokenRevoked => "token revoked",
        Kind::TokenRotated => "token rotated",
        Kind::KubeErrors => "API server errors",
        Kind::KubeLostReply => "API server answers lost",
        Kind::KubeSlow => "API server slow",
        Kind::Quota => "quota exceeded",
        Kind::WatchLag => "watches late",
        Kind::WatchCut => "watch cut",
        Kind::StartsFail => "agents fail to start",
        Kind::StartsHang => "containers hang",
        Kind::AgentCrash => "agent crash",
        Kind::AgentHang => "agents hang",
        Kind::NodePressure => "node pressure",
        Kind::PodDeleted => "Pod deleted",
        Kind::PodForced => "Pod deleted by force",
        Kind::NodeLost => "node lost",
        Kind::NodePartitioned => "node cut off",
        Kind::StrangerRegisters => "stranger registers",
        Kind::StrangerCreates => "stranger creates",
        Kind::HostComes => "host comes",
        Kind::RegistrationDeleted => "registration deleted",
        Kind::AgentDisabled => "agent disabled",
        Kind::SpecEdited => "spec edited",
        Kind::PoolDeleted => "RunnerPool deleted",
        Kind::JobCanceled => "job cancelled",
        Kind::OperatorCrash => "operator crash",
        Kind::TwoLeaders => "two leaders",
        Kind::ClockJump => "clock jump",
    }
}
