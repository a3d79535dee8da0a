//! One run from the first event to the report: storm, calm, end.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    io::{self, IsTerminal as _},
    sync::PoisonError,
    time::{Duration, Instant},
};

use anyhow::Result;
use azure_devops_simulator::{JobSpec, Outcome};
use k8s_openapi::api::core::v1::Event as ClusterEvent;
use kube::{Api, api::ListParams};
use tokio::time;

use super::{
    LOOK_AGAIN, PATIENCE,
    leftovers::{self, Leftovers},
    load::{self, Batch},
    pools::NAMESPACES,
    proxy::Weather,
    random::Random,
    report::{Jobs, Report},
    schedule::{self, Event},
    strikes::Strikes,
    verdict::Evidence,
    world::{self, World},
};
use crate::output;

/// Where nobody watches a terminal, a run says once in so much time that it is alive.
const HEARTBEAT: Duration = Duration::from_secs(30);

/// A run.
pub(crate) struct Chaos {
    duration: Duration,
    events: VecDeque<Event>,
    batches: VecDeque<Batch>,
    strikes: Strikes,
    withheld: usize,
    /// Jobs that their user cancels as soon as they run, by agent pool.
    to_cancel: BTreeMap<&'static str, Vec<i64>>,
    started: Instant,
    next_heartbeat: Duration,
}

impl Chaos {
    pub(crate) fn new(mut random: Random, world: &World, duration: Duration) -> Self {
        Self {
            duration,
            events: schedule::events(random.fork(), duration).into(),
            batches: load::batches(random.fork(), &world.pools, duration).into(),
            strikes: Strikes::default(),
            withheld: 0,
            to_cancel: BTreeMap::new(),
            started: Instant::now(),
            next_heartbeat: HEARTBEAT,
        }
    }

    /// Runs to the end, whatever it finds.
    pub(crate) async fn run(&mut self, world: &mut World) -> Result<Report> {
        let mut complaints = Vec::new();
        self.started = Instant::now();
        self.storm(world).await?;
        if !self.calm(world).await? {
            complaints.push(format!(
                "a RunnerPool that was deleted was still there after {} s",
                PATIENCE.as_secs()
            ));
        }
        if !self.all_jobs_end(world).await? {
            complaints.push(format!("no job ended for {} s", PATIENCE.as_secs()));
        } else if !self.back_to_minimum(world).await? {
            complaints.push(format!(
                "a RunnerPool did not get back to its minimum within {} s",
                PATIENCE.as_secs()
            ));
        }
        let leftovers = self.end(world).await?;
        if !leftovers.is_none() {
            complaints.push(format!("left over: {leftovers}"));
        }
        complaints.extend(std::mem::take(&mut world.replicas.complaints));
        complaints.extend(world.replicas.panics()?);
        progress_is_over();
        self.report(world, leftovers, complaints).await
    }

    /// Everything goes wrong.
    async fn storm(&mut self, world: &mut World) -> Result<()> {
        output::line("\nStorm");
        while self.started.elapsed() < self.duration {
            let elapsed = self.started.elapsed();
            while let Some(event) = self.events.pop_front_if(|event| event.at <= elapsed) {
                tell(event);
                self.strikes.begin(event);
            }
            while let Some(batch) = self.batches.pop_front_if(|batch| batch.at <= elapsed) {
                self.queue(world, &batch)?;
            }
            self.step(world).await?;
        }
        Ok(())
    }

    /// What was broken is mended. Whether all of it could be.
    async fn calm(&mut self, world: &mut World) -> Result<bool> {
        tell_text("Calm");
        world.ambush.call_off();
        let deadline = Instant::now() + PATIENCE;
        while !self.strikes.are_over() && Instant::now() < deadline {
            self.step(world).await?;
        }
        world
            .simulator
            .with_world(azure_devops_simulator::World::clear_faults);
        world
            .replicas
            .weather(None, |weather| *weather = Weather::default());
        Ok(world::revive(&mut world.control_plane).await? && self.strikes.are_over())
    }

    /// Whether all jobs ended: each within the patience after the one before.
    async fn all_jobs_end(&mut self, world: &mut World) -> Result<bool> {
        let (mut open, mut last_change) = (usize::MAX, Instant::now());
        loop {
            let now_open = open_jobs(world)?;
            if now_open == 0 {
                return Ok(true);
            }
            if now_open != open {
                (open, last_change) = (now_open, Instant::now());
            } else if last_change.elapsed() > PATIENCE {
                return Ok(false);
            }
            self.step(world).await?;
        }
    }

    /// Whether all RunnerPools have as many agents as they are to have without work.
    async fn back_to_minimum(&mut self, world: &mut World) -> Result<bool> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let mut all = true;
            for pool in &world.pools {
                let current = world.runner_pools(pool).get(pool.name).await?;
                let uid = current.metadata.uid.unwrap_or_default();
                let agents = world.pods.read(|pods| {
                    let lives = pods.lives().iter();
                    lives
                        .filter(|life| life.owner == uid && life.ended.is_none())
                        .count()
                });
                all &= agents == current.spec.min_agents as usize;
            }
            if all || Instant::now() > deadline {
                return Ok(all);
            }
            self.step(world).await?;
        }
    }

    /// Deletes the RunnerPools and waits until nothing is left over, but not for ever.
    async fn end(&mut self, world: &mut World) -> Result<Leftovers> {
        tell_text("End");
        leftovers::delete_runner_pools(world).await?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            let leftovers = leftovers::count(world).await?;
            if leftovers.is_none() || Instant::now() > deadline {
                return Ok(leftovers);
            }
            self.step(world).await?;
        }
    }

    async fn step(&mut self, world: &mut World) -> Result<()> {
        self.strikes.advance(world).await?;
        self.cancel(world)?;
        world.tend().await?;
        self.show(world)?;
        time::sleep(LOOK_AGAIN).await;
        Ok(())
    }

    /// Queues jobs, unless their RunnerPool was deleted and nothing that could run them is registered: then Azure DevOps
    /// would refuse them, and nobody could help it.
    fn queue(&mut self, world: &World, batch: &Batch) -> Result<()> {
        let Batch {
            pool,
            demand,
            count,
            duration,
            canceled,
            at: _,
        } = *batch;
        if let Some(created) = self.strikes.absent.get(&pool).copied() {
            if !created || !can_run(world, pool, demand)? {
                self.withheld += count;
                return Ok(());
            }
            // Its placeholders come one by one.
            let mut all = true;
            for &demand in world.pools[pool].demands {
                all &= can_run(world, pool, Some(demand))?;
            }
            if all {
                self.strikes.absent.remove(&pool);
            }
        }
        let spec = JobSpec {
            count,
            name: demand.unwrap_or("plain").to_owned(),
            demands: demand.into_iter().map(str::to_owned).collect(),
            duration,
            ..JobSpec::default()
        };
        let queued = world.queue(pool, &spec)?;
        if canceled {
            let agent_pool = world.pools[pool].agent_pool;
            self.to_cancel.entry(agent_pool).or_default().extend(queued);
        }
        Ok(())
    }

    /// Cancels what is to be cancelled and runs. What ended otherwise is left alone.
    fn cancel(&mut self, world: &World) -> Result<()> {
        for (agent_pool, to_cancel) in &mut self.to_cancel {
            if to_cancel.is_empty() {
                continue;
            }
            for job in world.jobs(agent_pool)? {
                if !to_cancel.contains(&job.id) {
                    continue;
                }
                if job.outcome == Outcome::Running {
                    world.cancel(job.id)?;
                }
                if job.outcome == Outcome::Running || job.outcome.is_finished() {
                    to_cancel.retain(|id| *id != job.id);
                }
            }
        }
        Ok(())
    }

    async fn report(
        &self,
        world: &World,
        leftovers: Leftovers,
        complaints: Vec<String>,
    ) -> Result<Report> {
        let audit = world.control_plane.audit_log()?;
        let lives = world.pods.read(|pods| pods.lives().to_vec());
        let mut runner_pools: BTreeMap<_, BTreeSet<_>> = BTreeMap::new();
        for pool in &world.pools {
            runner_pools
                .entry(pool.agent_pool)
                .or_default()
                .insert((pool.namespace, pool.name));
        }
        let evidence = Evidence {
            pods: &lives,
            hits: &self.strikes.hits,
            audit: &audit,
            runner_pools: &runner_pools,
        };
        let mut judged = Vec::new();
        for agent_pool in world.agent_pools() {
            let jobs = world.jobs(agent_pool)?;
            judged.extend(jobs.iter().map(|job| evidence.judge(agent_pool, job)));
        }
        let told = lost_jobs_told(world).await?;
        let heights = world
            .limits
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .judge(&lives);
        let mut report = Report {
            replicas: world.replicas.count(),
            leader_changes: world.leases.leader_changes(),
            ends: world.replicas.ends.clone(),
            jobs: Jobs {
                right_after_a_look: world.ambush.jobs(),
                withheld: self.withheld,
                ..Jobs::default()
            },
            pods_created: lives.len(),
            leftovers,
            complaints,
            ..Report::default()
        };
        report.count_events(&self.strikes.counts);
        report.count_jobs(&judged, |job| told.contains(&job));
        report.count_agents(heights);
        Ok(report)
    }

    /// A line that tells how things stand.
    fn show(&mut self, world: &World) -> Result<()> {
        let elapsed = self.started.elapsed();
        let on_terminal = io::stdout().is_terminal();
        if !on_terminal && elapsed < self.next_heartbeat {
            return Ok(());
        }
        let (mut queued, mut running, mut ended, mut lost) = (0, 0, 0, 0);
        for agent_pool in world.agent_pools() {
            for job in world.jobs(agent_pool)? {
                match job.outcome {
                    Outcome::Queued => queued += 1,
                    Outcome::Assigned | Outcome::Running => running += 1,
                    Outcome::Killed => lost += 1,
                    _ => ended += 1,
                }
            }
        }
        let agents = world.pods.read(|pods| {
            let lives = pods.lives().iter();
            lives.filter(|life| life.ended.is_none()).count()
        });
        let line = format!(
            "…       {}  jobs: {queued} queued, {running} running, {ended} ended, {lost} lost; {agents} agents; {} of {} replicas; leader {}",
            output::clock(elapsed),
            world.replicas.running(),
            world.replicas.count(),
            world.leases.holder().as_deref().unwrap_or("none"),
        );
        if on_terminal {
            output::write(format_args!("\r\x1b[K{line}"));
        } else {
            self.next_heartbeat = elapsed + HEARTBEAT;
            output::line(line);
        }
        Ok(())
    }
}

/// Says what goes wrong now.
fn tell(event: Event) {
    let lasts = if event.lasts.is_zero() {
        String::new()
    } else {
        format!(", for {}", output::duration(event.lasts))
    };
    tell_text(&format!(
        "{:>6}  {}{lasts}",
        output::clock(event.at),
        event.kind
    ));
}

/// Writes a line in place of the one that tells how things stand.
fn tell_text(text: &str) {
    progress_is_over();
    output::line(text);
}

fn progress_is_over() {
    if io::stdout().is_terminal() {
        output::write("\r\x1b[K");
    }
}

/// How many jobs have not ended.
fn open_jobs(world: &World) -> Result<usize> {
    let mut open = 0;
    for agent_pool in world.agent_pools() {
        let jobs = world.jobs(agent_pool)?;
        open += jobs.iter().filter(|job| !job.outcome.is_finished()).count();
    }
    Ok(open)
}

/// Whether an agent is registered that could run such a job, as Azure DevOps asks when it takes the job.
fn can_run(world: &World, pool: usize, demand: Option<&str>) -> Result<bool> {
    let agents = world.agents(world.pools[pool].agent_pool)?;
    Ok(agents.iter().any(|agent| {
        demand.is_none_or(|demand| {
            let has = |capabilities: &BTreeMap<String, String>| {
                capabilities
                    .keys()
                    .any(|name| name.eq_ignore_ascii_case(demand))
            };
            has(&agent.system_capabilities) || has(&agent.user_capabilities)
        })
    }))
}

/// The job requests that events of the operator tell to be lost.
async fn lost_jobs_told(world: &World) -> Result<BTreeSet<i64>> {
    let mut told = BTreeSet::new();
    for namespace in NAMESPACES {
        let events: Api<ClusterEvent> = Api::namespaced(world.client.clone(), namespace);
        for event in events.list(&ListParams::default()).await?.items {
            if event.reason.as_deref() == Some("JobLost") {
                let message = event.message.unwrap_or_default();
                let number = message
                    .split_once("request ")
                    .and_then(|(_, rest)| rest.split(|c: char| !c.is_ascii_digit()).next());
                told.extend(number.and_then(|number| number.parse::<i64>().ok()));
            }
        }
    }
    Ok(told)
}
