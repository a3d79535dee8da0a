//! Operator processes: their watches, when they make passes, their end. What they decide is the operator's own code;
//! here is what kube's controller does around it.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use api::RunnerPool;
use kube::api::ObjectMeta;
use operator::replica::{Made, Passed, PoolKey, Replica, wait_after};
use planner::{AgentState, Look, Why};

use super::{Event, Simulation, looks::SightState, requests::Fate};
use crate::{
    book::Breach,
    clock::{Millis, SECOND, at, millis},
    cluster::{Change, key},
    control::{Control, Maker, maker},
    scenario::Kind,
    wire::Wire,
};

/// Changes within this time make one pass, as in the program.
const GATHER: Millis = 20;

/// One operator.
pub(crate) struct Process {
    pub(crate) replica: Arc<Replica>,
    maker: Maker,
    /// By RunnerPool.
    pub(crate) pools: Vec<Desk>,
    pub(crate) sights: Vec<Option<SightState>>,
    /// How far its clock is off.
    pub(crate) skew: Millis,
    /// Azure DevOps asked to be left alone until then.
    pub(crate) not_before: Millis,
    /// Its present watch; what an earlier one was about to tell is lost.
    stream: u32,
    /// What it is told next comes at this time at the earliest, as watches keep the order.
    told_at: Millis,
    /// Its watch is cut.
    deaf: bool,
    /// Waits are spread by this.
    share: f64,
}

/// What an operator keeps for one RunnerPool beside its memory.
#[derive(Default)]
pub(crate) struct Desk {
    /// As the watch last told.
    pub(crate) object: Option<Arc<RunnerPool>>,
    pub(crate) running: Option<Running>,
    again: bool,
    gathering: bool,
    timer: u32,
    failures: u32,
    pub(crate) last: Conclusion,
}

/// What a pass came to that is over.
#[derive(Default)]
pub(crate) struct Conclusion {
    /// What it saw, if nothing but a change can make the next one do something.
    pub(crate) quiet: Option<u64>,
    /// It saw nothing that lasts for a time and that other RunnerPools of its agent pool plan with.
    pub(crate) steady: bool,
    /// It wanted nothing.
    pub(crate) content: bool,
}

impl Desk {
    /// Whether no pass runs or is called for, but for one at a certain time.
    pub(crate) fn is_idle(&self) -> bool {
        self.running.is_none() && !self.again && !self.gathering
    }

    /// Whether other RunnerPools plan with the same of it until something of it changes.
    pub(crate) fn is_steady(&self) -> bool {
        self.object.is_none() || self.last.steady
    }

    /// Whether a pass upon what this version of a reader saw would do what the last one did: nothing.
    pub(crate) fn is_quiet(&self, version: u64) -> bool {
        self.is_idle() && self.last.quiet == Some(version)
    }
}

type Pass = Pin<Box<dyn Future<Output = Passed> + Send>>;

pub(crate) struct Running {
    pass: Pass,
    wire: Arc<Wire>,
    token: Option<String>,
    pub(crate) object: Arc<RunnerPool>,
}

impl Simulation {
    pub(crate) fn process(&mut self, operator: usize) -> Option<&mut Process> {
        self.operators.get_mut(operator)?.as_mut()
    }

    /// Operators that are alive.
    pub(crate) fn living(&self) -> Vec<usize> {
        let operators = self.operators.iter().enumerate();
        operators
            .filter(|(_, process)| process.is_some())
            .map(|(number, _)| number)
            .collect()
    }

    pub(crate) fn pool_index(&self, key: &PoolKey) -> Option<usize> {
        let mut pools = self.scenario.pools.iter();
        pools.position(|pool| {
            pool.metadata.name.as_ref() == Some(&key.name)
                && pool.metadata.namespace.as_ref() == Some(&key.namespace)
        })
    }

    /// The RunnerPool of a Pod or a claim, by its labels.
    fn pool_of(&self, meta: &ObjectMeta) -> Option<usize> {
        self.pool_index(&PoolKey {
            namespace: meta.namespace.clone()?,
            name: label(meta)?.to_owned(),
        })
    }

    pub(crate) fn operator_starts(&mut self) {
        let operator = self.operators.len();
        let share = f64::from(u32::try_from(self.random.below(1000)).unwrap_or(0)) / 1000.0;
        let pools = (0..self.scenario.pools.len()).map(|_| Desk::default());
        self.operators.push(Some(Process {
            replica: Arc::new(Replica::new("cluster", self.connections.clone())),
            maker: maker(self.options.control),
            pools: pools.collect(),
            sights: Vec::new(),
            skew: 0,
            not_before: 0,
            stream: 0,
            told_at: 0,
            deaf: true,
            share,
        }));
        self.troubles.disturbed_at = self.now;
        self.effect_of("operator starts", "");
        self.tell_of(operator, || "starts".into());
        let wait = self.random.between(100, 3 * SECOND);
        self.after(wait, Event::Listed(operator, 0));
    }

    pub(crate) fn tell_of(&self, operator: usize, what: impl FnOnce() -> String) {
        self.book
            .tell(self.now, &format!("operator {operator}"), what);
    }

    /// The end of a process: all that it remembers is lost, and nobody waits for its answers.
    pub(crate) fn operator_stops(&mut self, operator: usize) {
        if self.process(operator).is_none() {
            return;
        }
        self.operators[operator] = None;
        self.troubles.disturbed_at = self.now;
        self.effect_of("operator stops", "");
        self.tell_of(operator, || "ends; all that it remembered is lost".into());
        // Each request that is on its way takes effect or is lost; one that would wait for long is lost.
        let now = self.now;
        for ask in self.asks.iter_mut().flatten() {
            let late = ask.arrives > now + SECOND;
            if ask.operator == operator && (late || self.random.permille(500)) {
                ask.fate = Fate::Dropped;
            }
        }
        if self.living().is_empty() {
            let wait = self.random.between(SECOND, 40 * SECOND);
            self.after(wait, Event::OperatorStarts);
        }
    }

    /// A watch is cut: what happens meanwhile shows in the list that it begins with again.
    pub(crate) fn cut_watch(&mut self, operator: usize, wait: Millis) {
        let Some(process) = self.process(operator) else {
            return;
        };
        process.deaf = true;
        process.stream += 1;
        let stream = process.stream;
        self.after(wait, Event::Listed(operator, stream));
    }

    /// The watches begin with a complete list.
    pub(crate) fn listed(&mut self, operator: usize, stream: u32) {
        let now = self.now;
        let pods: Vec<_> = self.cluster.pods.values().cloned().collect();
        let claims: Vec<_> = self.cluster.claims.values().cloned().collect();
        let objects: Vec<_> = (self.scenario.pools.iter())
            .map(|pool| self.cluster.pools.get(&key(pool)).cloned())
            .collect();
        let Some(process) = self
            .process(operator)
            .filter(|process| process.stream == stream)
        else {
            return;
        };
        process.deaf = false;
        process.told_at = now;
        let time = at(now + process.skew);
        let pods = pods.iter().filter(|pod| is_watched(&pod.metadata));
        process.replica.pods_listed(pods.map(|pod| &**pod), time);
        let claims = claims.iter();
        let claims = claims.filter(|claim| is_watched(&claim.metadata));
        process
            .replica
            .claims_listed(claims.map(|claim| &**claim), time);
        for (desk, object) in process.pools.iter_mut().zip(objects) {
            desk.object = object;
        }
        self.unsettle(operator);
        for pool in 0..self.scenario.pools.len() {
            self.call_pass(operator, pool);
        }
    }

    /// Tells a change to every operator that listens.
    pub(crate) fn publish(&mut self, change: &Change) {
        let lag = self.troubles.is(Kind::WatchLag);
        let now = self.now;
        for operator in 0..self.operators.len() {
            let wait = if self.operators[operator].is_none() {
                continue;
            } else if lag {
                self.random.between(SECOND, 20 * SECOND)
            } else {
                self.random.between(2, 40)
            };
            let Some(process) = self.process(operator).filter(|process| !process.deaf) else {
                continue;
            };
            let time = (now + wait).max(process.told_at);
            process.told_at = time;
            let stream = process.stream;
            self.after(time - now, Event::Told(operator, stream, change.clone()));
        }
    }

    pub(crate) fn told(&mut self, operator: usize, stream: u32, change: &Change) {
        let now = self.now;
        let pool = match change {
            Change::Pool(pool) => self.pool_index(&key(pool)),
            Change::PoolGone(key) => self.pool_index(key),
            Change::Pod(pod) | Change::PodGone(pod) => self.pool_of(&pod.metadata),
            Change::Claim(claim) | Change::ClaimGone(claim) => self.pool_of(&claim.metadata),
        };
        // What comes now is planned upon with the look that would have ended last.
        match pool {
            Some(pool) => self.unsettle_sharing(operator, self.agent_pool_of(pool)),
            None => self.unsettle(operator),
        }
        let Some(process) = self
            .process(operator)
            .filter(|process| process.stream == stream)
        else {
            return;
        };
        let time = at(now + process.skew);
        let key = match change {
            Change::Pod(pod) if is_watched(&pod.metadata) => process.replica.pod_applied(pod),
            Change::PodGone(pod) if is_watched(&pod.metadata) => {
                process.replica.pod_deleted(pod, time)
            }
            Change::Claim(claim) if is_watched(&claim.metadata) => {
                process.replica.claim_applied(claim);
                None
            }
            Change::ClaimGone(claim) if is_watched(&claim.metadata) => {
                process.replica.claim_deleted(claim, time);
                None
            }
            Change::Pool(object) => {
                let Some(pool) = pool else { return };
                if let Some(desk) = process.pools.get_mut(pool) {
                    desk.object = Some(object.clone());
                }
                self.call_pass(operator, pool);
                return;
            }
            Change::PoolGone(_) => {
                if let Some(desk) = pool.and_then(|pool| process.pools.get_mut(pool)) {
                    desk.object = None;
                }
                return;
            }
            _ => None,
        };
        let Some(pool) = key.and_then(|key| self.pool_index(&key)) else {
            return;
        };
        let Some(desk) = self.desk(operator, pool) else {
            return;
        };
        if !std::mem::replace(&mut desk.gathering, true) {
            self.after(GATHER, Event::Gathered(operator, pool));
        }
    }

    fn desk(&mut self, operator: usize, pool: usize) -> Option<&mut Desk> {
        self.process(operator)?.pools.get_mut(pool)
    }

    pub(crate) fn gathered(&mut self, operator: usize, pool: usize) {
        if let Some(desk) = self.desk(operator, pool) {
            desk.gathering = false;
            self.call_pass(operator, pool);
        }
    }

    pub(crate) fn timer(&mut self, operator: usize, pool: usize, number: u32) {
        if self
            .desk(operator, pool)
            .is_some_and(|desk| desk.timer == number)
        {
            self.unsettle_sharing(operator, self.agent_pool_of(pool));
            self.call_pass(operator, pool);
        }
    }

    /// A pass begins, or another one after the one that runs.
    pub(crate) fn call_pass(&mut self, operator: usize, pool: usize) {
        match self.desk(operator, pool) {
            Some(desk) if desk.running.is_some() => desk.again = true,
            Some(desk) if desk.object.is_some() => self.begin_pass(operator, pool),
            _ => {}
        }
    }

    fn begin_pass(&mut self, operator: usize, pool: usize) {
        self.wake_all(operator);
        let now = self.now;
        let token = Some(self.troubles.secret());
        let Some(process) = self.process(operator) else {
            return;
        };
        let (replica, maker) = (process.replica.clone(), process.maker.clone());
        let time = at(now + process.skew);
        let Some(desk) = process.pools.get_mut(pool) else {
            return;
        };
        let Some(object) = desk.object.clone() else {
            return;
        };
        desk.timer += 1;
        desk.again = false;
        desk.last = Conclusion::default();
        let wire = Arc::new(Wire::new(now));
        let pass = {
            let (object, wire, token) = (object.clone(), wire.clone(), token.clone());
            async move {
                replica
                    .pass(&object, token.as_deref(), time, &*maker, &*wire)
                    .await
            }
        };
        desk.running = Some(Running {
            pass: Box::pin(pass),
            wire,
            token,
            object,
        });
        self.book.counts.passes += 1;
        self.poll(operator, pool);
        // It subscribes before it first waits.
        self.mind_intervals(operator);
    }

    /// Lets a pass go on until it waits for answers, or ends.
    pub(crate) fn poll(&mut self, operator: usize, pool: usize) {
        let now = self.now;
        let desk = self.desk(operator, pool);
        let Some(mut running) = desk.and_then(|desk| desk.running.take()) else {
            return;
        };
        running.wire.set_now(now);
        let mut context = Context::from_waker(Waker::noop());
        let polled = running.pass.as_mut().poll(&mut context);
        let outbox = running.wire.take();
        for planned in &outbox.done {
            self.tell_of(operator, || {
                format!("did {:?} because {}", planned.action, planned.why)
            });
        }
        for ask in outbox.asks {
            self.send(operator, pool, &running.object, ask);
        }
        match polled {
            Poll::Pending => {
                if let Some(desk) = self.desk(operator, pool) {
                    desk.running = Some(running);
                }
            }
            Poll::Ready(passed) => self.end_pass(operator, pool, running.token, passed),
        }
    }

    fn end_pass(&mut self, operator: usize, pool: usize, token: Option<String>, passed: Passed) {
        let now = self.now;
        let tick = |duration: Duration| Millis::try_from(duration.as_millis()).unwrap_or_default();
        let mut wait: Option<Millis> = None;
        let mut new_sight = None;
        let Some(process) = self.process(operator) else {
            return;
        };
        let (skew, share) = (process.skew, process.share);
        let Some(desk) = process.pools.get_mut(pool) else {
            return;
        };
        let key = desk.object.as_deref().map(key);
        let mut failed = false;
        let mut breaches = Vec::new();
        match passed {
            Passed::Nothing | Passed::Released => desk.last.steady = true,
            Passed::NoToken(interval) => {
                desk.last.steady = true;
                wait = Some(tick(interval));
            }
            Passed::Failed => failed = true,
            Passed::Planned(made) => {
                failed = made.unfinished;
                wait = made.next.map(|next| millis(next) - skew - now);
                breaches = made.breaches.iter().map(ToString::to_string).collect();
                desk.last.content = made.plan.actions.is_empty() && !made.unfinished;
                let mut sights = process.sights.iter().flatten();
                match sights.find(|known| known.sight == made.sight) {
                    Some(known) => {
                        let replica = &process.replica;
                        let look = &made.snapshot.look;
                        desk.last.steady = is_steady(&made)
                            && key.is_some_and(|key| !replica.keeps_names(&key, look));
                        let quiet = desk.last.steady && is_quiet(&made);
                        desk.last.quiet = quiet.then_some(known.version);
                    }
                    None => new_sight = Some(made.sight.clone()),
                }
            }
        }
        if failed {
            desk.failures = desk.failures.saturating_add(1);
            let retry = tick(wait_after(desk.failures, share));
            wait = Some(wait.map_or(retry, |wait| wait.min(retry)));
        } else {
            desk.failures = 0;
        }
        let (again, number) = (desk.again, desk.timer);
        if let Some(wait) = wait {
            self.after(wait, Event::Timer(operator, pool, number));
        }
        for breach in breaches {
            self.book.fail(Breach::PlanRefused, now, breach);
        }
        if let Some(sight) = new_sight {
            self.new_sight(operator, pool, sight, token);
        }
        self.mind_intervals(operator);
        if again {
            self.call_pass(operator, pool);
        } else {
            self.park(operator);
        }
    }

    pub(crate) fn set_skew(&mut self, operator: usize, skew: Millis) {
        self.unsettle(operator);
        self.troubles.disturbed_at = self.now;
        if let Some(process) = self.process(operator) {
            process.skew = skew;
        }
    }

    pub(crate) fn takes_failed_for_empty(&self) -> bool {
        self.options.control == Some(Control::FailedIsEmpty)
    }
}

/// Whether the operator's watches, which select by label, show an object.
fn is_watched(meta: &ObjectMeta) -> bool {
    label(meta).is_some()
}

/// The name of the RunnerPool that an object is labelled with.
fn label(meta: &ObjectMeta) -> Option<&str> {
    let labels = meta.labels.as_ref()?;
    labels
        .get(api::names::LABEL_RUNNER_POOL)
        .map(String::as_str)
}

/// Whether nothing of the RunnerPool is about to change, and no agent of it is in a state that lasts for a time: others
/// plan with it.
fn is_steady(made: &Made) -> bool {
    let (mut agents, mut withheld) = (made.plan.agents.iter(), made.plan.withheld.iter());
    made.plan.actions.is_empty()
        && agents.all(|agent| agent.state != AgentState::Starting)
        && !withheld.any(|left| left.why == Why::RetryLater)
}

/// Whether only a change, or the time that the pass itself names, can make the next pass do something: the same look
/// taken later would give the same plan. Rules that depend on time look at Pods that start, end or failed not long ago,
/// and at removals that wait for a look; so none of these may be there, and nothing may be so recent that it shares a
/// second with the look. Pods that ended and are kept stay as they are.
fn is_quiet(made: &Made) -> bool {
    let before = |time: jiff::Timestamp| match &made.snapshot.look {
        Look::Known(look) => time.as_second() < look.taken_at.as_second(),
        Look::Unknown { .. } => true,
    };
    let (plan, cluster) = (&made.plan, &made.snapshot.cluster);
    let mut agents = plan.agents.iter();
    let mut withheld = plan.withheld.iter();
    let mut pods = cluster.pods.iter();
    plan.actions.is_empty()
        && !made.unfinished
        && made.breaches.is_empty()
        && !plan.finished
        && agents.all(|agent| {
            matches!(
                agent.state,
                AgentState::Idle { .. }
                    | AgentState::Busy { .. }
                    | AgentState::Finished
                    | AgentState::Offline
                    | AgentState::Unknown
            )
        })
        && !withheld.any(|left| matches!(left.why, Why::AwaitingLook | Why::RetryLater))
        && cluster.claims.iter().all(|claim| !claim.stopping)
        && cluster.shown_after.is_none_or(before)
        && pods.all(|pod| {
            before(pod.created_at)
                && pod.started_at.is_none_or(before)
                && pod.phase.finished_at().is_none_or(before)
                && !pod.stopping
        })
}
