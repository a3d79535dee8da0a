//! Looks at one agent pool with one credential, at an even pace, for all RunnerPools that use it.
//!
//! A look is two requests: the agents and the unfinished job requests. Nothing but time (or a new subscriber) makes one:
//! whatever happens in Kubernetes is planned upon with the last look.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use azure_devops::{
    Class, Client, Error, TaskAgent, TaskAgentJobRequest, TaskAgentReference, TaskAgentStatus,
};
use jiff::{SignedDuration, Timestamp};
use planner::{
    AgentPool, Capabilities, Intake, JobRequest, KnownLook, Lesson, Look, Memory, Registration,
    Reported,
};
use tokio::{sync::Notify, time::Instant};

use crate::mirror::PoolKey;

/// A look may be relied on for a removal for two intervals and this much longer: as long as an answer may take.
const FRESH_FOR: Duration = Duration::from_secs(40);

/// A list of agents that suddenly is empty, while the pool has agents by its size, has to stay so for this long before it is
/// believed.
const EMPTY_FOR: SignedDuration = SignedDuration::from_mins(1);

/// Result of a job whose agent was not heard of any more.
const ABANDONED: &str = "abandoned";

/// What the last look said.
#[derive(Clone, Debug)]
pub(crate) enum Outcome {
    /// There was none yet.
    Pending,
    /// It succeeded.
    Seen(KnownLook),
    /// It failed.
    Failed(Failure),
}

/// Why a look failed.
#[derive(Clone, Debug)]
pub(crate) struct Failure {
    pub(crate) kind: FailureKind,
    /// What is wrong and what to do; the same text for the same trouble.
    pub(crate) message: String,
    /// The last look that succeeded.
    pub(crate) last: Option<KnownLook>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FailureKind {
    Unauthorized,
    PoolNotFound,
    Throttled,
    Unreachable,
}

/// A write of ours that succeeded, to be seen without another look.
#[derive(Clone, Debug)]
pub(crate) enum Write {
    Disabled(i64),
    Removed(i64),
    Added(Registration),
    Updated(i64, Reported),
}

/// One agent pool seen through one credential.
#[derive(Debug)]
pub(crate) struct Reader {
    client: Client,
    pool_name: String,
    state: Mutex<State>,
    wake: Notify,
}

#[derive(Debug)]
struct State {
    outcome: Outcome,
    pool_id: Option<i64>,
    /// The pool had agents when it was found.
    inhabited: bool,
    /// What is remembered of all looks.
    memory: Arc<Memory>,
    /// Every look of late has succeeded and seen no agent.
    empty: Option<Empty>,
    /// Agents that the operator began to disable since the last look began.
    disabling: HashSet<i64>,
    /// A write was refused for want of rights since the token was last read.
    token_refused: bool,
    intervals: BTreeMap<PoolKey, Duration>,
}

/// Looks in a row that saw no agent.
#[derive(Clone, Copy, Debug)]
struct Empty {
    /// When the first of them ended.
    since: Timestamp,
    /// When the last of them began.
    seen_at: Timestamp,
}

impl Reader {
    pub(crate) fn new(client: Client, pool_name: String) -> Self {
        let state = State {
            outcome: Outcome::Pending,
            pool_id: None,
            inhabited: false,
            memory: Arc::default(),
            empty: None,
            disabling: HashSet::new(),
            token_refused: false,
            intervals: BTreeMap::new(),
        };
        Self {
            client,
            pool_name,
            state: Mutex::new(state),
            wake: Notify::new(),
        }
    }

    pub(crate) fn client(&self) -> &Client {
        &self.client
    }

    /// The pool's id and what the last look said.
    pub(crate) fn outcome(&self) -> (Option<i64>, Outcome) {
        let state = self.state();
        (state.pool_id, state.outcome.clone())
    }

    /// Whether an agent of this name, without regard to case, was registered when it was last looked.
    pub(crate) fn has_seen(&self, name: &str) -> bool {
        let state = self.state();
        let seen = state.outcome.last_seen().into_iter();
        let mut registrations = seen.flat_map(|seen| &seen.registrations);
        registrations.any(|registration| registration.name.eq_ignore_ascii_case(name))
    }

    pub(crate) fn subscribe(&self, pool: PoolKey, interval: Duration) {
        let mut state = self.state();
        let shorter = state
            .intervals
            .values()
            .min()
            .is_none_or(|shortest| interval < *shortest);
        state.intervals.insert(pool, interval);
        if shorter {
            self.wake.notify_one();
        }
    }

    /// Takes note that a write was refused for want of rights: another token may have them.
    pub(crate) fn refuse_token(&self) {
        self.state().token_refused = true;
    }

    /// Whether the token is to be read again: it, or what it may see and do, was refused. Asking takes note of it.
    pub(crate) fn wants_token(&self) -> bool {
        let mut state = self.state();
        let write_refused = std::mem::take(&mut state.token_refused);
        let look_refused = matches!(
            &state.outcome,
            Outcome::Failed(Failure {
                kind: FailureKind::Unauthorized | FailureKind::PoolNotFound,
                ..
            })
        );
        write_refused || look_refused
    }

    pub(crate) fn is_subscribed(&self, pool: &PoolKey) -> bool {
        self.state().intervals.contains_key(pool)
    }

    pub(crate) fn unsubscribe(&self, pool: &PoolKey) {
        self.state().intervals.remove(pool);
        self.wake.notify_one();
    }

    /// Adds a write of ours to what the last look said.
    pub(crate) fn note(&self, write: &Write) {
        let mut state = self.state();
        let Outcome::Seen(look) = &mut state.outcome else {
            return;
        };
        let seen = Arc::make_mut(&mut look.agent_pool);
        match write {
            // Even if it shows as disabled: that look began before the answer.
            Write::Disabled(id) => {
                let mut agents = seen.registrations.iter_mut();
                if let Some(agent) = agents.find(|agent| agent.id == *id) {
                    Arc::make_mut(agent).intake = Intake::DisableSent;
                }
            }
            Write::Updated(id, capabilities) => {
                let mut agents = seen.registrations.iter_mut();
                if let Some(agent) = agents.find(|agent| agent.id == *id) {
                    Arc::make_mut(agent).capabilities = capabilities.clone();
                }
            }
            Write::Removed(id) => seen.registrations.retain(|agent| agent.id != *id),
            Write::Added(registration) => {
                if seen
                    .registrations
                    .iter()
                    .all(|agent| agent.id != registration.id)
                {
                    seen.registrations.push(Arc::new(registration.clone()));
                }
            }
        }
    }

    /// What somebody else's look shows, with what is remembered here.
    pub(crate) fn remembering(&self, look: &Look) -> Look {
        let mut look = look.clone();
        if let Look::Known(look) = &mut look {
            look.memory = Arc::clone(&self.state().memory);
        }
        look
    }

    /// Remembers what an agent taught of the profile that goes by this name.
    pub(crate) fn remember(&self, name: &str, lesson: Lesson) {
        let mut state = self.state();
        let lessons = &mut Arc::make_mut(&mut state.memory).lessons;
        lessons.insert(name.to_owned(), lesson);
        let memory = Arc::clone(&state.memory);
        if let Outcome::Seen(look) = &mut state.outcome {
            look.memory = memory;
        }
    }

    /// Looks again and again as long as somebody is subscribed, and tells the subscribers after each look.
    ///
    /// `exists` tells whether a subscriber is still in the cluster; one that is not is forgotten.
    pub(crate) async fn run(&self, exists: impl Fn(&PoolKey) -> bool, seen: impl Fn(PoolKey)) {
        let mut last_start: Option<Instant> = None;
        loop {
            let Some(interval) = self.interval(&exists) else {
                return;
            };
            let asked_wait = self
                .client
                .remaining_wait()
                .map(|wait| Instant::now() + wait);
            if let Some(due) = last_start.map(|start| start + interval).max(asked_wait) {
                tokio::select! {
                    () = tokio::time::sleep_until(due) => {
                        // Another reader of this token may have been asked to wait meanwhile.
                        if self.client.remaining_wait().is_some() {
                            continue;
                        }
                    }
                    // The subscribers changed: another interval may be the shortest.
                    () = self.wake.notified() => continue,
                }
            }
            last_start = Some(Instant::now());
            self.look(interval).await;
            self.subscribers().into_iter().for_each(&seen);
        }
    }

    /// The shortest interval that is asked for, after forgetting the subscribers that do not exist; `None`: there are
    /// none.
    pub(crate) fn interval(&self, exists: impl Fn(&PoolKey) -> bool) -> Option<Duration> {
        let mut state = self.state();
        state.intervals.retain(|pool, _| exists(pool));
        state.intervals.values().min().copied()
    }

    pub(crate) fn subscribers(&self) -> Vec<PoolKey> {
        self.state().intervals.keys().cloned().collect()
    }

    /// Takes note of the pool's id, and whether it has agents by its size, with which a list that is empty is compared.
    pub(crate) fn found(&self, pool_id: i64, inhabited: bool) {
        let mut state = self.state();
        state.pool_id = Some(pool_id);
        state.inhabited = inhabited;
    }

    /// Takes note that an agent is about to be disabled, or that this was answered or given up. A look that has begun by
    /// then may show it disabled, and does not tell what became of it.
    pub(crate) fn disabling(&self, agent_id: i64) {
        self.state().disabling.insert(agent_id);
    }

    /// Takes note that a look begins.
    pub(crate) fn looks(&self) {
        self.state().disabling.clear();
    }

    async fn look(&self, interval: Duration) {
        self.looks();
        let taken_at = Timestamp::now();
        let result = self.read().await.map(Arc::new);
        self.looked(taken_at, Timestamp::now(), interval, result);
    }

    /// Takes over what a look that began at `taken_at` came to at `ended_at`.
    pub(crate) fn looked(
        &self,
        taken_at: Timestamp,
        ended_at: Timestamp,
        interval: Duration,
        result: Result<Arc<AgentPool>, (FailureKind, String)>,
    ) {
        let mut state = self.state();
        let last = state.outcome.last_look().cloned();
        let was_failing = matches!(state.outcome, Outcome::Failed(_));
        let empty = matches!(&result, Ok(seen) if seen.registrations.is_empty());
        // Two wrong answers with nobody looking in between are no proof.
        let gap =
            EMPTY_FOR.max(SignedDuration::try_from(interval * 2).unwrap_or(SignedDuration::MAX));
        let former = state
            .empty
            .filter(|empty| taken_at.duration_since(empty.seen_at) <= gap);
        state.empty = empty.then(|| Empty {
            // A slow answer may tell of a time long after the look began.
            since: former.map_or(ended_at.max(taken_at), |empty| empty.since),
            seen_at: taken_at,
        });
        let believed = |empty: Empty| taken_at.duration_since(empty.since) >= EMPTY_FOR;
        let doubtful = state.empty.is_some_and(|empty| !believed(empty));
        state.outcome = match result {
            // A pool of ours holds a placeholder at the least, so an empty list is more likely wrong than true.
            Ok(seen) if seen.registrations.is_empty() && doubtful && state.inhabited => {
                let message =
                    "the list of agents came back empty; waiting whether it stays so".into();
                Outcome::Failed(Failure {
                    kind: FailureKind::Unreachable,
                    message,
                    last,
                })
            }
            Ok(mut seen) => {
                let fresh_until = taken_at + (interval * 2 + FRESH_FOR);
                if !state.disabling.is_empty() {
                    doubt(Arc::make_mut(&mut seen), &state.disabling);
                }
                Memory::take(&mut state.memory, &seen, taken_at);
                Outcome::Seen(KnownLook {
                    taken_at,
                    fresh_until,
                    agent_pool: seen,
                    memory: Arc::clone(&state.memory),
                })
            }
            Err((kind, message)) => Outcome::Failed(Failure {
                kind,
                message,
                last,
            }),
        };
        if let (Outcome::Failed(failure), false) = (&state.outcome, was_failing) {
            tracing::warn!(pool = self.pool_name, kind = ?failure.kind, reason = failure.message, "Failed to look at the agent pool");
        } else if was_failing && matches!(state.outcome, Outcome::Seen(_)) {
            tracing::info!(pool = self.pool_name, "Looked at the agent pool again");
        }
    }

    /// Two requests; a few more when the pool's id is not known or turned out gone, or the list of agents is empty all of
    /// a sudden.
    async fn read(&self) -> Result<AgentPool, (FailureKind, String)> {
        let known = self.state().pool_id;
        if let Some(pool_id) = known {
            match self.read_pool(pool_id).await {
                Err(error) if error.class() == Class::NotFound => self.state().pool_id = None,
                Ok(seen) => {
                    if seen.registrations.is_empty() && self.knows_agents() {
                        self.find_pool().await?;
                    }
                    return Ok(seen);
                }
                Err(error) => return Err(failure(&error)),
            }
        }
        let pool_id = self.find_pool().await?;
        self.read_pool(pool_id)
            .await
            .map_err(|error| failure(&error))
    }

    /// Whether the last look that succeeded saw agents.
    fn knows_agents(&self) -> bool {
        let state = self.state();
        let last = state.outcome.last_seen();
        last.is_some_and(|last| !last.registrations.is_empty())
    }

    async fn read_pool(&self, pool_id: i64) -> Result<AgentPool, Error> {
        let (agents, requests) = tokio::join!(
            self.client.get_agents(pool_id),
            self.client.get_agent_requests(pool_id)
        );
        // Where both fail it is always the first that is told of, so that the same trouble has the same text.
        Ok(agent_pool(agents?, requests?))
    }

    /// Finds the pool by its name, or by all names where the service has regard to case, and takes note of it. Gives its id.
    async fn find_pool(&self) -> Result<i64, (FailureKind, String)> {
        let named = |name: &str| name.trim().to_lowercase() == self.pool_name.trim().to_lowercase();
        for name in [Some(self.pool_name.as_str()), None] {
            let pools = self
                .client
                .get_agent_pools(name)
                .await
                .map_err(|error| failure(&error))?;
            if let Some(pool) = pools.iter().find(|pool| named(&pool.name)) {
                self.found(pool.id, pool.size > 0);
                return Ok(pool.id);
            }
        }
        let message = format!(
            "there is no agent pool {:?} in this organization, or the token may not see it; correct spec.pool (the name \
             in the organization's settings, not a project's) or give the token's user access",
            self.pool_name
        );
        Err((FailureKind::PoolNotFound, message))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Takes it back of these agents that a look saw them disabled.
fn doubt(seen: &mut AgentPool, disabling: &HashSet<i64>) {
    let disabled = |agent: &&mut Arc<Registration>| {
        agent.intake == Intake::Disabled && disabling.contains(&agent.id)
    };
    for agent in seen.registrations.iter_mut().filter(disabled) {
        Arc::make_mut(agent).intake = Intake::DisableSent;
    }
}

impl Outcome {
    /// The last look that succeeded; `None`: none ever did.
    pub(crate) fn last_look(&self) -> Option<&KnownLook> {
        match self {
            Self::Pending => None,
            Self::Seen(look) => Some(look),
            Self::Failed(failure) => failure.last.as_ref(),
        }
    }

    /// What that look said.
    fn last_seen(&self) -> Option<&Arc<AgentPool>> {
        self.last_look().map(|look| &look.agent_pool)
    }

    /// The planner's view.
    pub(crate) fn look(&self) -> Look {
        match self {
            Self::Pending => Look::Unknown {
                reason: "it has not been looked at yet".into(),
                last: None,
            },
            Self::Seen(look) => Look::Known(look.clone()),
            Self::Failed(failure) => Look::Unknown {
                reason: failure.message.clone(),
                last: self.last_seen().cloned(),
            },
        }
    }
}

pub(crate) fn failure(error: &Error) -> (FailureKind, String) {
    match error.class() {
        Class::Unauthorized => (FailureKind::Unauthorized, error.to_string()),
        Class::NotFound => (FailureKind::PoolNotFound, error.to_string()),
        // Not how long: a number that counts down would be another message each time.
        Class::Throttled => (
            FailureKind::Throttled,
            "Azure DevOps asked to be left alone for a while".into(),
        ),
        // Not where an answer broke off: that is another place each time.
        Class::Transient if matches!(error, Error::Unreadable { .. }) => {
            (FailureKind::Unreachable, error.to_string())
        }
        Class::Transient | Class::Conflict | Class::Invalid => {
            (FailureKind::Unreachable, crate::telemetry::chain(error))
        }
    }
}

/// What the planner needs of the two lists. They are read one beside the other, so that an assignment may show in one
/// of them only: it counts in both.
pub(crate) fn agent_pool(agents: Vec<TaskAgent>, requests: Vec<TaskAgentJobRequest>) -> AgentPool {
    let holders: HashMap<i64, i64> = agents
        .iter()
        .filter_map(|agent| Some((agent.assigned_request.as_ref()?.request_id, agent.id)))
        .collect();
    // Placeholders, and few others. Each job may name every agent: thousands of both would be millions of ids.
    let offline: HashSet<i64> = agents
        .iter()
        .filter(|agent| agent.status == TaskAgentStatus::Offline)
        .map(|agent| agent.id)
        .collect();
    let matched = |agents: Vec<TaskAgentReference>| {
        let mut matched: Vec<i64> = agents.into_iter().map(|agent| agent.id).collect();
        matched.retain(|id| offline.contains(id));
        matched.shrink_to_fit();
        matched
    };
    let requests = requests
        .into_iter()
        .map(|request| JobRequest {
            id: request.request_id,
            reserved_agent: request
                .reserved_agent
                .map(|agent| agent.id)
                .or(holders.get(&request.request_id).copied()),
            demands: request.demands,
            matched: request.matched_agents.map(matched),
        })
        .collect();
    // Thousands of agents of one image report the same.
    let mut shared = HashSet::new();
    let mut share = |capabilities: &mut Arc<Capabilities>| match shared.get(capabilities) {
        Some(known) => *capabilities = Arc::clone(known),
        None => {
            shared.insert(Arc::clone(capabilities));
        }
    };
    let registrations = agents.into_iter().map(|agent| {
        let mut registration = registration(agent);
        share(&mut registration.capabilities.system);
        share(&mut registration.capabilities.user);
        Arc::new(registration)
    });
    AgentPool {
        registrations: registrations.collect(),
        requests,
    }
}

pub(crate) fn registration(agent: TaskAgent) -> Registration {
    let mark = |capabilities: &BTreeMap<String, String>| {
        let mut found = capabilities
            .iter()
            .filter(|(name, _)| name.eq_ignore_ascii_case(api::names::ENV_OWNER));
        found.next().map(|(_, mark)| mark.clone())
    };
    let last = agent.last_completed_request.as_ref();
    Registration {
        owner_mark: mark(&agent.system_capabilities).or_else(|| mark(&agent.user_capabilities)),
        capabilities: Reported {
            system: Arc::new(Capabilities::of_agent(agent.system_capabilities)),
            user: Arc::new(Capabilities::of_agent(agent.user_capabilities)),
        },
        online: agent.status == TaskAgentStatus::Online,
        // Only an explicit `false` is taken for disabled.
        intake: if agent.enabled == Some(false) {
            Intake::Disabled
        } else {
            Intake::Enabled
        },
        assigned: agent
            .assigned_request
            .filter(|request| request.result.is_none())
            .map(|request| request.request_id),
        created_on: agent.created_on,
        last_finished: last.and_then(|request| request.finish_time),
        abandoned: last
            .filter(|request| request.result.as_deref() == Some(ABANDONED))
            .map(|request| request.request_id),
        id: agent.id,
        name: agent.name,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::lease::Gate;

    #[test]
    fn of_the_agents_that_match_a_job_those_without_a_session_are_kept() {
        let agent = |id: i64, status: &str| {
            let agent = json!({ "id": id, "name": format!("agent-{id}"), "status": status });
            serde_json::from_value(agent).expect("an agent")
        };
        let matched = |matched: serde_json::Value| {
            let request = json!({ "requestId": 1, "matchedAgents": matched });
            let requests = vec![serde_json::from_value(request).expect("a job request")];
            let agents = vec![agent(1, "offline"), agent(2, "online"), agent(3, "offline")];
            agent_pool(agents, requests).requests.remove(0).matched
        };
        let all = json!([{ "id": 3 }, { "id": 2 }, { "id": 1 }]);
        assert_eq!(matched(all), Some(vec![3, 1]));
        assert_eq!(matched(json!([])), Some(Vec::new()));
        assert_eq!(matched(json!(null)), None);
    }

    fn reader() -> Reader {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let connections = azure_devops::Connections::new(Gate::open()).expect("connections");
        let client = Client::new(connections, "https://dev.azure.com/acme", "token".into());
        Reader::new(client, "linux".to_owned())
    }

    #[test]
    fn an_empty_list_is_believed_after_a_minute_from_the_end_of_the_look_that_saw_it_first() {
        let reader = reader();
        reader.found(1, true);
        let at = |second| Timestamp::from_second(second).expect("a time");
        let believed = |began: i64, ended: i64| {
            let empty = Ok(Arc::default());
            reader.looked(at(began), at(ended), Duration::from_secs(30), empty);
            matches!(reader.outcome().1, Outcome::Seen(_))
        };
        assert!(!believed(0, 35), "it was true at any time up to 35");
        assert!(!believed(60, 61));
        assert!(!believed(94, 95));
        assert!(believed(95, 96));
    }

    #[test]
    fn a_look_that_had_begun_does_not_tell_what_became_of_an_agent_that_was_disabled() {
        let reader = reader();
        let disabled = |id: i64| {
            let agent =
                json!({ "id": id, "name": "web-agent-0", "status": "online", "enabled": false });
            registration(serde_json::from_value(agent).expect("an agent"))
        };
        let shown = || {
            let Look::Known(look) = reader.outcome().1.look() else {
                unreachable!("it succeeded");
            };
            let registrations = look.agent_pool.registrations.iter();
            registrations.map(|agent| agent.intake).collect::<Vec<_>>()
        };
        let ends = || {
            let seen = AgentPool {
                registrations: [1, 2].map(|id| Arc::new(disabled(id))).into(),
                requests: Vec::new(),
            };
            let then = Timestamp::UNIX_EPOCH;
            reader.looked(then, then, Duration::from_secs(5), Ok(Arc::new(seen)));
            shown()
        };
        reader.looks();
        reader.disabling(1);
        assert_eq!(ends(), [Intake::DisableSent, Intake::Disabled]);
        reader.looks();
        assert_eq!(ends(), [Intake::Disabled, Intake::Disabled]);
        // The answer comes when a look is under way that began after the request was sent.
        reader.disabling(1);
        reader.looks();
        reader.disabling(1);
        assert_eq!(ends(), [Intake::DisableSent, Intake::Disabled]);
        // Or when it has ended.
        reader.looks();
        assert_eq!(ends(), [Intake::Disabled, Intake::Disabled]);
        reader.note(&Write::Disabled(2));
        assert_eq!(shown(), [Intake::Disabled, Intake::DisableSent]);
    }
}
