//! Removals under attack: jobs that arrive at the worst moments, while the operator takes agents back over real HTTP.
//!
//! The simulator sees every request right before and right after it takes effect. For each agent a seed picks one moment
//! of its removal; there the simulator gives the agent a job, by its own rules: an agent that is disabled gets none, so
//! somebody enables it again first. A job counts as killed when it does not end well, and also when its Pod was asked to
//! stop while Azure DevOps held the job for its agent, whatever came of it.
//!
//! `REMOVALS` is how many removals a run makes at least, `SEED` what picks the moments.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    env, fmt,
    sync::{Arc, Mutex, MutexGuard},
    time::{Duration, Instant},
};

use azure_devops_simulator::{
    Moment, Passing, Simulator, World,
    agent::Pace,
    world::{AgentView, JobSpec, JobView, Outcome},
};
use futures::{FutureExt as _, future::BoxFuture};
use hollow_node::{Launch, Process, Runtime, SimulatedAgents};
use jiff::Timestamp;
use operator::decide::{self, Decide};
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::bed::{Bed, ORGANIZATION, jobs};

#[path = "../../src/decide/naive.rs"]
mod naive;

/// Removals of a run in the ordinary tests.
const REMOVALS: usize = 200;
/// Agent pools, each with a RunnerPool of its own, whose agents come and go in waves.
const POOLS: usize = 4;
/// Most agents of a RunnerPool at a time.
const WAVE: usize = 150;
/// What the jobs of a wave take: two looks, so that few of them wait, of which each look brings every agent that matches.
const WAVE_JOB: Duration = Duration::from_secs(10);
/// What the jobs of an attack take: longer than a machine that is busy needs to delete a Pod.
const ATTACK_JOB: Duration = Duration::from_secs(10);
/// From when on an idle agent is not needed any more, in seconds: the least there is.
const TTL: i64 = 1;
/// Patience with a wave: it takes a handful of looks, 5 s apart.
const PATIENCE: Duration = Duration::from_secs(400);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_job_is_killed_wherever_in_a_removal_it_arrives() {
    let seen = run("two looks", &decide::checked, Hook::Runs).await;
    assert_eq!(seen.stories, Vec::<String>::new(), "{seen}");
    assert!(seen.removed >= seen.wanted, "{seen}");
    assert!(seen.refused > 0, "the service had to refuse none:\n{seen}");
    for point in Point::ALL {
        assert!(
            seen.arrived.contains_key(&point),
            "none at {point}:\n{seen}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removal_after_one_look_kills_jobs() {
    let seen = run("one look", &naive::unchecked, Hook::Missing).await;
    assert!(seen.removed >= seen.wanted, "{seen}");
    assert!(!seen.killed().is_empty(), "the control: {seen}");
}

/// When a job arrives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Point {
    /// The operator was just told that the agent is idle, for so long that it is not needed.
    FirstLook,
    /// The request to disable the agent has come.
    Disable,
    /// It took effect.
    Disabled,
    /// The operator was just told that the agent is disabled and free.
    SecondLook,
    /// The request to delete the agent has come.
    Delete,
}

impl Point {
    const ALL: [Self; 5] = [
        Self::FirstLook,
        Self::Disable,
        Self::Disabled,
        Self::SecondLook,
        Self::Delete,
    ];

    /// The point of an agent's removal that the seed picks.
    fn of(seed: u64, agent: i64) -> Self {
        // SplitMix64: neighbouring agents get points that have nothing to do with each other.
        let mut mixed = (seed ^ agent.cast_unsigned()).wrapping_add(0x9e37_79b9_7f4a_7c15);
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let count = Self::ALL.len() as u64;
        let picked = usize::try_from((mixed ^ (mixed >> 31)) % count);
        Self::ALL[picked.expect("few points")]
    }
}

impl fmt::Display for Point {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::FirstLook => "between first look and disable",
            Self::Disable => "as the disable arrives",
            Self::Disabled => "between disable and second look",
            Self::SecondLook => "between second look and delete",
            Self::Delete => "as the delete arrives",
        })
    }
}

/// Whether Pods have the hook that lets a job end before its agent is stopped. Those of the former operator have none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Hook {
    Runs,
    Missing,
}

/// What the simulator does and saw.
#[derive(Default)]
struct Attack {
    seed: u64,
    /// Agent pools by id.
    pools: HashMap<i64, String>,
    /// Agents that were seen by a look, by pool and name.
    agents: HashMap<(String, String), i64>,
    /// When agents registered, by pool and name.
    registered: HashMap<(String, String), Timestamp>,
    /// Agents whose removal was attacked already.
    struck: HashSet<i64>,
    /// Jobs of attacks.
    jobs: HashSet<i64>,
    /// Jobs that were cancelled before any agent got them.
    withdrawn: BTreeSet<i64>,
    arrived: BTreeMap<Point, usize>,
    /// Agents whose deletion is being served.
    going: HashSet<i64>,
    removed: BTreeMap<String, usize>,
    refused: usize,
    /// Jobs whose Pod was asked to stop.
    stopped: BTreeSet<i64>,
    /// Jobs that an agent was given and that came back to the queue.
    taken_back: BTreeSet<i64>,
}

impl Attack {
    /// Looks at a request of the operator.
    fn see(&mut self, world: &mut World, now: Timestamp, passing: &Passing<'_>) {
        let asked = passing.asked;
        let Some(pool) = asked.pool.and_then(|id| self.pools.get(&id).cloned()) else {
            return;
        };
        let agent = asked
            .agent
            .and_then(|id| world.agent(ORGANIZATION, &pool, id).ok());
        match (asked.operation, passing.moment) {
            // Agents ask for themselves by name.
            ("Agents.List", Moment::After { status: 200 })
                if passing.request.parameter("agentName").is_none() =>
            {
                self.withdraw(world, now, &pool);
                let idle = self.idle(world, now, &pool);
                for agent in world.agents(ORGANIZATION, &pool).unwrap() {
                    self.agents
                        .insert((pool.clone(), agent.name.clone()), agent.id);
                    let point = match agent.enabled {
                        true if idle.contains(&agent.name) => Point::FirstLook,
                        true => continue,
                        false => Point::SecondLook,
                    };
                    self.strike(world, now, &pool, Some(&agent), point);
                }
            }
            ("Agents.Add", Moment::After { status: 200 }) => {
                let body: Value = serde_json::from_slice(&passing.request.body).unwrap();
                let name = body["name"].as_str().unwrap().to_owned();
                self.registered.insert((pool, name), now);
            }
            ("Agents.Update", Moment::Before) => {
                self.strike(world, now, &pool, agent.as_ref(), Point::Disable);
            }
            ("Agents.Update", Moment::After { status: 200 }) => {
                self.strike(world, now, &pool, agent.as_ref(), Point::Disabled);
            }
            ("Agents.Delete", Moment::Before) => {
                let real = agent
                    .as_ref()
                    .filter(|agent| agent.name.contains("-agent-"));
                self.going.extend(real.map(|agent| agent.id));
                self.strike(world, now, &pool, agent.as_ref(), Point::Delete);
            }
            ("Agents.Delete", Moment::After { status }) => {
                let was_there = asked.agent.is_some_and(|id| self.going.remove(&id));
                match status {
                    204 if was_there => *self.removed.entry(pool).or_default() += 1,
                    400 | 409 => self.refused += 1,
                    _ => {}
                }
            }
            _ => {}
        }
    }

    /// Agents that ended a job long enough ago to be taken back.
    fn idle(&self, world: &World, now: Timestamp, pool: &str) -> HashSet<String> {
        let long_ago = |job: &JobView| {
            let finished = job.finished?;
            let key = (pool.to_owned(), job.agent.clone()?);
            let own = finished > *self.registered.get(&key)?;
            let due = now.as_second() - finished.as_second() > TTL;
            (own && due).then_some(key.1)
        };
        let jobs = world.jobs(ORGANIZATION, pool).unwrap();
        jobs.iter().filter_map(long_ago).collect()
    }

    /// Gives an agent a job, if it is free and this is the point of its removal.
    fn strike(
        &mut self,
        world: &mut World,
        now: Timestamp,
        pool: &str,
        agent: Option<&AgentView>,
        point: Point,
    ) {
        let free = |agent: &&AgentView| agent.online && agent.assigned_request.is_none();
        let Some(agent) = agent.filter(free) else {
            return;
        };
        if Point::of(self.seed, agent.id) != point || !self.struck.insert(agent.id) {
            return;
        }
        let has = |world: &World| {
            let agent = world.agent(ORGANIZATION, pool, agent.id).unwrap();
            agent.assigned_request
        };
        if !agent.enabled {
            // A job that waits may be faster than the one below.
            world
                .enable_agent_by_hand(now, ORGANIZATION, pool, agent.id, true)
                .unwrap();
        }
        if has(world).is_none() {
            let job = JobSpec {
                demands: vec![format!("Agent.Name -equals {}", agent.name)],
                ..jobs(1, ATTACK_JOB)
            };
            let job = world.queue_jobs(now, ORGANIZATION, pool, &job).unwrap()[0];
            self.jobs.insert(job);
            if has(world) != Some(job) {
                world.cancel_job(now, ORGANIZATION, job).unwrap();
                self.withdrawn.insert(job);
            }
        }
        if has(world).is_some() {
            *self.arrived.entry(point).or_default() += 1;
        }
    }

    /// Cancels jobs that went back to the queue: they ask for an agent that is gone.
    fn withdraw(&mut self, world: &mut World, now: Timestamp, pool: &str) {
        for job in world.jobs(ORGANIZATION, pool).unwrap() {
            if job.outcome == Outcome::Queued && self.jobs.contains(&job.id) {
                world.cancel_job(now, ORGANIZATION, job.id).unwrap();
                self.taken_back.insert(job.id);
            }
        }
    }
}

/// What came of a run.
#[derive(Debug)]
struct Seen {
    control: &'static str,
    wanted: usize,
    took: Duration,
    removed: usize,
    refused: usize,
    arrived: BTreeMap<Point, usize>,
    jobs: usize,
    stopped: BTreeSet<i64>,
    /// Jobs that did not end well.
    lost: BTreeSet<i64>,
    /// What became of each job that was killed.
    stories: Vec<String>,
}

impl Seen {
    fn killed(&self) -> BTreeSet<i64> {
        self.stopped.union(&self.lost).copied().collect()
    }
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut line = |what: &str, count: usize| writeln!(f, "  {what:<36}{count:>7}");
        line("removals", self.removed)?;
        line("jobs", self.jobs)?;
        for point in Point::ALL {
            let count = self.arrived.get(&point).copied().unwrap_or(0);
            line(&format!("assigned {point}"), count)?;
        }
        line("deletions refused, as a job was there", self.refused)?;
        line("jobs whose Pod was asked to stop", self.stopped.len())?;
        line("jobs that did not end well", self.lost.len())?;
        line("killed", self.killed().len())?;
        write!(f, "  {} in {:.0} s", self.control, self.took.as_secs_f64())
    }
}

/// Makes agents and lets the operator remove them, until there were enough removals.
async fn run(control: &'static str, decide: &'static Decide, hook: Hook) -> Seen {
    let wanted = number("REMOVALS").unwrap_or(REMOVALS);
    let attack = Arc::new(Mutex::new(Attack {
        seed: number("SEED").unwrap_or(1),
        ..Attack::default()
    }));
    let begin = Instant::now();
    let mut bed = Bed::make_with(|simulator| {
        Arc::new(Witnessed {
            agents: SimulatedAgents { pace: Pace::fast() },
            witness: Witness {
                simulator: simulator.clone(),
                attack: attack.clone(),
                hook,
            },
        })
    })
    .await;
    let (stir, stirred) = watch::channel(());
    let see = attack.clone();
    bed.simulator.on_request(move |world, now, passing| {
        lock(&see).see(world, now, passing);
        // What is waited for shows here, or at the next look.
        if let "Agents.List" | "Agents.Delete" | "Sessions.Create" = passing.asked.operation {
            stir.send_replace(());
        }
    });
    bed.decide = decide;
    bed.start_operator().await;
    let share = wanted.div_ceil(POOLS);
    let waves = (0..POOLS).map(|index| {
        let (bed, attack, stirred) = (&bed, &attack, stirred.clone());
        async move { waves(bed, attack, stirred, &format!("pool-{index}"), share).await }
    });
    futures::future::join_all(waves).await;
    let seen = verdict(&bed, &attack, control, wanted, begin);
    bed.stop_operator().await;
    report(&seen);
    seen
}

/// Waves of agents in one agent pool: each is called for by jobs, and idle when these are done.
async fn waves(
    bed: &Bed,
    attack: &Mutex<Attack>,
    mut stirred: watch::Receiver<()>,
    name: &str,
    share: usize,
) {
    let id = bed.control.create_pool(ORGANIZATION, name).await.unwrap();
    lock(attack).pools.insert(id, name.to_owned());
    let wave = WAVE.min(share);
    let fields = json!({ "pool": name, "maxAgents": wave, "ttlIdleSeconds": TTL });
    bed.create(name, fields).await;
    let placeholder = |agents: &[AgentView]| !agents.is_empty();
    bed.control
        .agents_when(ORGANIZATION, name, placeholder)
        .await
        .unwrap();
    while lock(attack).removed.get(name).copied().unwrap_or(0) < share {
        // As long as agents start there is more to do than they can: none of them is taken back before it ran.
        until(bed, attack, &mut stirred, |world| {
            let summary = world.summary(ORGANIZATION, name).unwrap();
            let missing = wave.saturating_sub(summary.jobs_with(Outcome::Queued));
            if summary.online < wave && missing > 0 {
                let jobs = jobs(missing, WAVE_JOB);
                world
                    .queue_jobs(Timestamp::now(), ORGANIZATION, name, &jobs)
                    .unwrap();
            }
            summary.online == wave
        })
        .await;
        bed.simulator.with_world(|world| {
            for job in world.jobs(ORGANIZATION, name).unwrap() {
                if job.outcome == Outcome::Queued {
                    world
                        .cancel_job(Timestamp::now(), ORGANIZATION, job.id)
                        .unwrap();
                    lock(attack).withdrawn.insert(job.id);
                }
            }
        });
        until(bed, attack, &mut stirred, |world| {
            let summary = world.summary(ORGANIZATION, name).unwrap();
            summary.agents == 1 && summary.unfinished() == 0
        })
        .await;
    }
}

/// Waits until the world is as wanted, looking at it after each look of the operator, and whenever an agent comes or goes.
async fn until(
    bed: &Bed,
    attack: &Mutex<Attack>,
    stirred: &mut watch::Receiver<()>,
    wanted: impl Fn(&mut World) -> bool,
) {
    // Not `wait_for`: it would look at the world under a lock that the hook takes the other way round.
    let seen = async {
        while !bed.simulator.with_world(&wanted) {
            stirred.changed().await.unwrap();
        }
    };
    let outcome = tokio::time::timeout(PATIENCE, seen).await;
    outcome.unwrap_or_else(|_| {
        let summaries: Vec<_> = bed.simulator.with_world(|world| {
            let pools = lock(attack).pools.clone();
            let pools = pools.values();
            pools
                .map(|pool| world.summary(ORGANIZATION, pool))
                .collect()
        });
        panic!("waited in vain for agents to come, work and go: {summaries:#?}")
    });
}

fn verdict(
    bed: &Bed,
    attack: &Mutex<Attack>,
    control: &'static str,
    wanted: usize,
    begin: Instant,
) -> Seen {
    bed.simulator.with_world(|world| {
        let attack = lock(attack);
        let pools = attack.pools.values();
        let jobs: Vec<_> = pools
            .flat_map(|pool| world.jobs(ORGANIZATION, pool).unwrap())
            .filter(|job| !attack.withdrawn.contains(&job.id))
            .collect();
        let lost = jobs.iter().filter(|job| job.outcome != Outcome::Succeeded);
        let lost: BTreeSet<i64> = lost
            .map(|job| job.id)
            .chain(attack.taken_back.iter().copied())
            .collect();
        let hit = jobs
            .iter()
            .filter(|job| lost.contains(&job.id) || attack.stopped.contains(&job.id));
        Seen {
            control,
            wanted,
            took: begin.elapsed(),
            removed: attack.removed.values().sum(),
            refused: attack.refused,
            arrived: attack.arrived.clone(),
            jobs: jobs.len(),
            stopped: attack.stopped.clone(),
            stories: hit.map(|job| format!("{job:?}")).collect(),
            lost,
        }
    })
}

#[expect(clippy::print_stdout, reason = "the table is what a long run is for")]
fn report(seen: &Seen) {
    println!("{seen}");
}

fn number<T: std::str::FromStr>(variable: &str) -> Option<T>
where
    T::Err: fmt::Debug,
{
    env::var(variable)
        .ok()
        .map(|text| text.parse().expect("a number"))
}

fn lock(attack: &Mutex<Attack>) -> MutexGuard<'_, Attack> {
    attack.lock().unwrap()
}

/// Simulated agents, with a witness of how each is asked to stop.
struct Witnessed {
    agents: SimulatedAgents,
    witness: Witness,
}

#[derive(Clone)]
struct Witness {
    simulator: Arc<Simulator>,
    attack: Arc<Mutex<Attack>>,
    hook: Hook,
}

struct WitnessedProcess {
    process: Box<dyn Process>,
    /// Its agent pool and its name.
    agent: (String, String),
    witness: Witness,
}

impl Runtime for Witnessed {
    fn launch(&self, launch: Launch) -> Box<dyn Process> {
        let agent = (launch.env["AZP_POOL"].clone(), launch.host_name.clone());
        Box::new(WitnessedProcess {
            process: self.agents.launch(launch),
            agent,
            witness: self.witness.clone(),
        })
    }
}

impl WitnessedProcess {
    /// The Pod is being deleted: does Azure DevOps hold a job for its agent?
    fn stopping(&self) {
        let Witness {
            simulator, attack, ..
        } = &self.witness;
        simulator.with_world(|world| {
            let mut attack = lock(attack);
            let id = attack.agents.get(&self.agent).copied();
            let agent = id.and_then(|id| world.agent(ORGANIZATION, &self.agent.0, id).ok());
            let job = agent.and_then(|agent| agent.assigned_request);
            attack.stopped.extend(job);
        });
    }
}

impl Process for WitnessedProcess {
    fn terminate(&self) {
        self.stopping();
        self.process.terminate();
    }

    fn kill(&self) {
        self.stopping();
        self.process.kill();
    }

    fn worker_idle(&self) -> BoxFuture<'_, ()> {
        self.stopping();
        match self.witness.hook {
            Hook::Runs => self.process.worker_idle(),
            Hook::Missing => futures::future::ready(()).boxed(),
        }
    }

    fn wait(&mut self) -> BoxFuture<'_, i32> {
        self.process.wait()
    }
}
