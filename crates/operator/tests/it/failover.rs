//! How long nobody acts after the leader was killed, and that two never act for one agent.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::{Arc, Mutex},
    time::Duration,
};

use azure_devops_simulator::world::Outcome;
use futures::StreamExt as _;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, ResourceExt as _,
    runtime::{
        WatchStreamExt as _,
        watcher::{self, watcher},
    },
};
use serde_json::json;

use crate::{
    bed::{Bed, jobs, unfinished},
    replica::{Process, held_by, holder, writes},
};

const MOST: usize = 12;

/// Kills the leader again and again (`FAILOVER_KILLS`, or 3 times) while jobs are queued all the time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_kill_the_other_replica_acts_soon_and_no_agent_is_created_twice() {
    let kills: usize = std::env::var("FAILOVER_KILLS").map_or(3, |kills| kills.parse().unwrap());
    let bed = Bed::make().await;
    let mut replicas = [
        Process::start(&bed, "replica-a", &[]).await,
        Process::start(&bed, "replica-b", &[]).await,
    ];
    bed.create("web", json!({ "maxAgents": MOST })).await;
    bed.ready("web").await;
    let seen = Arc::new(Mutex::new(Seen::default()));
    let watch = tokio::spawn(follow(bed.api(), seen.clone()));
    let mut killed = Vec::new();
    let mut queued = 0;
    for _ in 0..kills {
        for replica in &replicas {
            replica.ready().await;
        }
        queued += bed.queue(jobs(15, Duration::from_millis(500))).await.len();
        progress(&bed, 5).await;
        let lease = held_by(&bed, "replica-").await;
        let leader = usize::from(!holder(&lease).starts_with(&replicas[0].name));
        let name = replicas[leader].name.clone();
        queued += bed.queue(jobs(15, Duration::from_millis(500))).await.len();
        let now = Timestamp::now();
        replicas[leader].signal("KILL").await;
        let restarted = Process::start(&bed, &name, &[]).await;
        let dead = std::mem::replace(&mut replicas[leader], restarted);
        dead.ended().await;
        let other = replicas[1 - leader].name.clone();
        let next = held_by(&bed, &other).await;
        killed.push((now, holder(&lease).to_owned(), holder(&next).to_owned()));
        // The next one creates Pods.
        progress(&bed, 12).await;
    }
    let ran = bed.all_succeed().await;
    assert_eq!(ran.len(), queued);
    assert!(ran.iter().all(|job| job.outcome == Outcome::Succeeded));
    bed.pods_when("the Pods are gone", <[_]>::is_empty).await;
    for replica in replicas {
        replica.signal("TERM").await;
        assert!(replica.ended().await.success());
    }
    watch.abort();
    let Seen { most, created } = std::mem::take(&mut *seen.lock().unwrap());
    let created = created.len();

    let mut latencies = Vec::new();
    for (time, _, next) in &killed {
        let log = writes(&bed, next).await;
        let first = log.iter().map(|event| event.time).find(|at| at > time);
        latencies.push(first.unwrap().duration_since(*time));
    }
    latencies.sort();
    let percentile = |share: usize| latencies[(latencies.len() * share).div_ceil(100) - 1];
    println!(
        "{} kills, {queued} jobs, {created} Pods, {most} at a time: from SIGKILL to the first write of the other p50 {:#}, p95 {:#}, most {:#}",
        killed.len(),
        percentile(50),
        percentile(95),
        percentile(100),
    );
    assert!(most > 0 && most <= MOST, "{most} agents at a time");
    // Each job was worth one agent, whoever created it.
    assert_eq!(created, queued);
    never_two_at_a_time(&bed).await;
    // The lease's four seconds, and as many again for a machine that is busy with other tests.
    let limit = SignedDuration::from_secs(12);
    assert!(percentile(95) < limit, "{latencies:#?}");
}

/// So many more jobs are done.
async fn progress(bed: &Bed, more: usize) {
    let finished = |jobs: &[azure_devops_simulator::world::JobView]| {
        jobs.iter().filter(|job| job.finished.is_some()).count()
    };
    let before = finished(&bed.jobs().await);
    bed.jobs_when("more jobs are done", |jobs| finished(jobs) >= before + more)
        .await;
}

/// What a watch of the Pods has told so far.
#[derive(Default)]
struct Seen {
    /// Most at a time that had not ended.
    most: usize,
    /// Uids of all.
    created: HashSet<String>,
}

async fn follow(pods: Api<Pod>, seen: Arc<Mutex<Seen>>) {
    let mut known: BTreeMap<String, Pod> = BTreeMap::new();
    let mut changes = std::pin::pin!(watcher(pods, watcher::Config::default()).default_backoff());
    while let Some(change) = changes.next().await {
        // A watch that fails is taken up again, and tells of what is there.
        let Ok(change) = change else { continue };
        let mut seen = seen.lock().unwrap();
        match change {
            watcher::Event::Apply(pod) | watcher::Event::InitApply(pod) => {
                seen.created.insert(pod.uid().unwrap());
                known.insert(pod.name_any(), pod);
            }
            watcher::Event::Delete(pod) => {
                known.remove(&pod.name_any());
            }
            watcher::Event::Init | watcher::Event::InitDone => {}
        }
        let now: Vec<Pod> = known.values().cloned().collect();
        seen.most = seen.most.max(unfinished(&now));
    }
}

/// The time in which a replica wrote ended before that of the next began.
async fn never_two_at_a_time(bed: &Bed) {
    let mut terms: HashMap<String, (Timestamp, Timestamp)> = HashMap::new();
    for event in writes(bed, "replica-").await {
        let (first, last) = terms
            .entry(event.user_agent)
            .or_insert((event.time, event.time));
        *first = event.time.min(*first);
        *last = event.time.max(*last);
    }
    let mut terms: Vec<_> = terms.into_iter().collect();
    terms.sort_by_key(|(_, (first, _))| *first);
    for pair in terms.windows(2) {
        let [(former, (_, last)), (next, (first, _))] = pair else {
            unreachable!("windows of two");
        };
        assert!(last < first, "{former} still wrote when {next} did");
    }
}
