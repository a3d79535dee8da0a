//! Carries out what the schedule says, and brings back what is to come back. What a strike is to kill is noted before it
//! can have happened. Together with the API server's audit log, which tells whether it did, that is the evidence which
//! tells an outside loss from one by the operator.

use std::{
    collections::BTreeMap,
    sync::PoisonError,
    time::{Duration, Instant},
};

use anyhow::Result;
use api::RunnerPool;
use azure_devops_simulator::Fault;
use control_plane::Program;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api,
    api::{DeleteParams, EvictParams, Patch, PatchParams, Preconditions},
};
use tokio::time;

use super::{
    pools::{self, NAMESPACES},
    random::Random,
    schedule::{Event, Kind},
    world::World,
};
use crate::pods::PodLife;

/// The identity of the operator's own requests to Azure DevOps. What agents ask for themselves is spared: a job that is lost
/// with Azure DevOps itself would tell nothing about the operator.
const OPERATORS_IDENTITY: &str = "pat:operator";
/// How likely a request is hit while Azure DevOps is in trouble.
const FAULT_PROBABILITY: f64 = 0.3;
/// How long a strike may take, most of which are a request.
const ANSWER: Duration = Duration::from_secs(5);
/// Before something that did not work is tried again.
const TRY_AGAIN: Duration = Duration::from_millis(500);
/// A strike that cannot be carried out for so long is left out: there may be no victim, or no API server.
const GIVE_UP: Duration = Duration::from_secs(10);

/// What a strike was to do to a Pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Hit {
    /// Uid of the Pod.
    pub(crate) pod: String,
    /// Just before it was done.
    pub(crate) time: Timestamp,
    pub(crate) kind: Kind,
}

/// How often a kind of event was carried out, and how often not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Count {
    pub(crate) done: usize,
    pub(crate) left_out: usize,
}

/// What was done and what is still to be done.
#[derive(Debug, Default)]
pub(crate) struct Strikes {
    pub(crate) counts: BTreeMap<Kind, Count>,
    pub(crate) hits: Vec<Hit>,
    /// RunnerPools that were deleted and are not yet ready again, by index, with whether they were created again.
    pub(crate) absent: BTreeMap<usize, bool>,
    pending: Vec<Pending>,
}

#[derive(Debug)]
struct Pending {
    at: Instant,
    until: Instant,
    what: What,
}

/// Something to be done as soon as it can be.
#[derive(Clone, Copy, Debug)]
enum What {
    Strike(Event),
    Thaw(usize),
    Reconnect(usize),
    Revive(Program),
    WatchesLast,
    Fast,
    Accept,
    RecoverNode(usize),
    Recreate(usize),
}

impl Strikes {
    /// Takes an event that is due.
    pub(crate) fn begin(&mut self, event: Event) {
        self.later(Duration::ZERO, GIVE_UP, What::Strike(event));
    }

    /// Whether nothing is still to be done or to be brought back.
    pub(crate) fn are_over(&self) -> bool {
        self.pending.is_empty()
    }

    /// Does what is due.
    pub(crate) async fn advance(&mut self, world: &mut World) -> Result<()> {
        let now = Instant::now();
        let (due, rest) = std::mem::take(&mut self.pending)
            .into_iter()
            .partition(|pending| pending.at <= now);
        self.pending = rest;
        for pending in due {
            let done = match time::timeout(ANSWER, self.perform(pending.what, world)).await {
                Ok(done) => done?,
                // An API server without etcd answers late.
                Err(_) => false,
            };
            let event = match pending.what {
                What::Strike(event) => Some(event),
                _ => None,
            };
            if let (true, Some(event)) = (done, event) {
                self.counts.entry(event.kind).or_default().done += 1;
            } else if !done && (event.is_none() || now < pending.until) {
                self.pending.push(Pending {
                    at: now + TRY_AGAIN,
                    ..pending
                });
            } else if let Some(event) = event {
                self.counts.entry(event.kind).or_default().left_out += 1;
            }
        }
        Ok(())
    }

    /// Whether it could be done.
    async fn perform(&mut self, what: What, world: &mut World) -> Result<bool> {
        match what {
            What::Strike(event) => return self.strike(event, world).await,
            What::Thaw(replica) => world.replicas.thaw(replica).await?,
            What::Reconnect(replica) => world
                .replicas
                .weather(Some(replica), |weather| weather.cut_off = false),
            // It is started as everything that ended.
            What::Revive(program) => world.struck.retain(|struck| *struck != program),
            What::WatchesLast => world
                .replicas
                .weather(None, |weather| weather.watches_expire = false),
            What::Fast => world
                .replicas
                .weather(None, |weather| weather.latency = Duration::ZERO),
            What::Accept => world
                .replicas
                .weather(None, |weather| weather.refused_percent = 0),
            What::RecoverNode(node) => return Ok(world.nodes[node].recover().await.is_ok()),
            What::Recreate(index) => return self.recreate(index, world).await,
        }
        Ok(true)
    }

    async fn strike(&mut self, event: Event, world: &mut World) -> Result<bool> {
        let Event {
            kind,
            lasts,
            number,
            ..
        } = event;
        let mut random = Random::new(number);
        match kind {
            Kind::ReplicaKilled => {
                return world
                    .replicas
                    .kill(replica(world, &mut random), lasts)
                    .await;
            }
            Kind::ReplicaRestarted => {
                let replica = replica(world, &mut random);
                return Ok(world.replicas.restart(replica));
            }
            Kind::ReplicaFrozenBriefly | Kind::ReplicaFrozenLong => {
                let replica = replica(world, &mut random);
                if !world.replicas.freeze(replica).await? {
                    return Ok(false);
                }
                self.after(lasts, What::Thaw(replica));
            }
            Kind::ReplicaCutOff => {
                let replica = replica(world, &mut random);
                world
                    .replicas
                    .weather(Some(replica), |weather| weather.cut_off = true);
                self.after(lasts, What::Reconnect(replica));
            }
            Kind::ApiServerRestarted => return self.outage(Program::ApiServer, lasts, world).await,
            Kind::EtcdRestarted => return self.outage(Program::Etcd, lasts, world).await,
            Kind::WatchesCut => world.replicas.cut_connections(),
            Kind::WatchesExpired => {
                world
                    .replicas
                    .weather(None, |weather| weather.watches_expire = true);
                world.replicas.cut_connections();
                self.after(lasts, What::WatchesLast);
            }
            Kind::ApiServerSlow => {
                let latency = random.millis(200, 1_500);
                world
                    .replicas
                    .weather(None, |weather| weather.latency = latency);
                self.after(lasts, What::Fast);
            }
            Kind::ApiServerBusy => {
                let percent = random.between(20, 60);
                world
                    .replicas
                    .weather(None, |weather| weather.refused_percent = percent);
                self.after(lasts, What::Accept);
            }
            Kind::AzureDevOps(trouble) => {
                let fault = Fault {
                    probability: FAULT_PROBABILITY,
                    duration: Some(lasts),
                    identity: Some(OPERATORS_IDENTITY.to_owned()),
                    ..Fault::new(trouble.fault())
                };
                world
                    .simulator
                    .with_world(|world| world.add_fault(Timestamp::now(), fault))?;
            }
            Kind::PodDeleted | Kind::PodDeletedByForce | Kind::PodEvicted => {
                return self.take_pod(kind, &mut random, world).await;
            }
            Kind::NodeLost => {
                let node = random.below(world.nodes.len());
                let time = Timestamp::now();
                let living = living(world).into_iter();
                let on_it = living.filter(|pod| pod.namespace == NAMESPACES[node]);
                self.hits.extend(on_it.map(|pod| Hit {
                    pod: pod.uid,
                    time,
                    kind,
                }));
                self.after(lasts, What::RecoverNode(node));
                // It is lost at once; that the cluster does not hear of it is part of the trouble.
                let _ = world.nodes[node].lose().await;
            }
            Kind::ImageEdited
            | Kind::MaximumEdited
            | Kind::MinimumEdited
            | Kind::EnvironmentEdited
            | Kind::IdleTimeEdited => return edit(kind, number, &mut random, world).await,
            Kind::RunnerPoolRecreated => return self.delete_pool(&mut random, world).await,
        }
        Ok(true)
    }

    async fn outage(
        &mut self,
        program: Program,
        lasts: Duration,
        world: &mut World,
    ) -> Result<bool> {
        if world.struck.contains(&program) || !world.control_plane.is_running(program) {
            return Ok(false);
        }
        world.struck.push(program);
        self.after(lasts, What::Revive(program));
        world.control_plane.kill(program).await?;
        Ok(true)
    }

    async fn take_pod(&mut self, kind: Kind, random: &mut Random, world: &World) -> Result<bool> {
        let living = living(world);
        let Some(pod) = living.get(random.below(living.len())) else {
            return Ok(false);
        };
        self.hits.push(Hit {
            pod: pod.uid.clone(),
            time: Timestamp::now(),
            kind,
        });
        let pods: Api<Pod> = Api::namespaced(world.stranger.clone(), &pod.namespace);
        // Another Pod may have the name by now.
        let deletion = DeleteParams {
            preconditions: Some(Preconditions {
                uid: Some(pod.uid.clone()),
                resource_version: None,
            }),
            ..DeleteParams::default()
        };
        let taken = match kind {
            Kind::PodEvicted => {
                let eviction = EvictParams {
                    delete_options: Some(deletion),
                    ..EvictParams::default()
                };
                pods.evict(&pod.name, &eviction).await.map(drop)
            }
            Kind::PodDeletedByForce => pods
                .delete(&pod.name, &deletion.grace_period(0))
                .await
                .map(drop),
            _ => pods.delete(&pod.name, &deletion).await.map(drop),
        };
        // The note stays also if it failed: the request may have taken effect without an answer.
        Ok(taken.is_ok())
    }

    async fn delete_pool(&mut self, random: &mut Random, world: &World) -> Result<bool> {
        let index = random.below(world.pools.len());
        if self.absent.contains_key(&index) {
            return Ok(false);
        }
        let pool = &world.pools[index];
        // Without an answer it may be deleted all the same, and then it is to be created again.
        self.absent.insert(index, false);
        self.after(TRY_AGAIN, What::Recreate(index));
        let deleted = world
            .runner_pools(pool)
            .delete(pool.name, &DeleteParams::background())
            .await;
        Ok(deleted.is_ok())
    }

    /// Creates a RunnerPool again once its predecessor is gone, which takes as long as its agents have jobs.
    async fn recreate(&mut self, index: usize, world: &World) -> Result<bool> {
        let pool = &world.pools[index];
        let gone = match world.runner_pools(pool).get_opt(pool.name).await {
            // The deletion itself was lost.
            Ok(Some(current)) if current.metadata.deletion_timestamp.is_none() => {
                self.absent.remove(&index);
                return Ok(true);
            }
            Ok(current) => current.is_none(),
            Err(_) => false,
        };
        let created = gone && world.create(index).await.is_ok();
        if created {
            self.absent.insert(index, true);
        }
        Ok(created)
    }

    /// Something that has to be done in any case, however long it takes.
    fn after(&mut self, delay: Duration, what: What) {
        self.later(delay, Duration::ZERO, what);
    }

    fn later(&mut self, delay: Duration, patience: Duration, what: What) {
        let at = Instant::now() + delay;
        let until = at + patience;
        self.pending.push(Pending { at, until, what });
    }
}

/// The leader in two of three cases, since that is where it hurts.
fn replica(world: &World, random: &mut Random) -> usize {
    let leader = world
        .leases
        .holder()
        .and_then(|holder| world.replicas.named(&holder));
    let any = random.below(world.replicas.count());
    match leader {
        Some(leader) if random.percent(66) => leader,
        _ => any,
    }
}

/// Pods that are neither finished nor gone, in an order that does not depend on when they were seen.
fn living(world: &World) -> Vec<PodLife> {
    let mut living: Vec<PodLife> = world.pods.read(|pods| {
        let living = pods.lives().iter().filter(|life| life.ended.is_none());
        living.cloned().collect()
    });
    living.sort_by(|one, other| (&one.namespace, &one.name).cmp(&(&other.namespace, &other.name)));
    living
}

async fn edit(kind: Kind, number: u64, random: &mut Random, world: &World) -> Result<bool> {
    let pool = &world.pools[random.below(world.pools.len())];
    let runner_pools = world.runner_pools(pool);
    let Ok(Some(current)) = runner_pools.get_opt(pool.name).await else {
        return Ok(false);
    };
    let Some(patch) = pools::edit(kind, &current, number) else {
        return Ok(false);
    };
    let edited: kube::Result<RunnerPool> = runner_pools
        .patch(pool.name, &PatchParams::default(), &Patch::Merge(patch))
        .await;
    if let Ok(edited) = &edited {
        world
            .limits
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .note(edited);
    }
    Ok(edited.is_ok())
}
