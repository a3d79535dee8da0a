//! What is wrong with Pods and names, and which jobs are lost, as the plan and the cluster tell it. Pure.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fmt::Write as _,
};

use api::conditions::Reason;
use jiff::{SignedDuration, Timestamp};
use planner::{AgentState, Hold, Lacking, Plan, PodPhase, Why};

use super::Finding;
use crate::manifest::pod::AgentPod;

/// How long a Pod may wait for a node or a volume before it is trouble: a cluster that scales itself takes minutes.
const NODE_PATIENCE: SignedDuration = SignedDuration::from_mins(5);
/// Names that a message lists at the most.
const MOST_NAMED: usize = 3;

/// What is wrong with a Pod.
enum Trouble {
    /// It does not start, or failed.
    Failing(String),
    /// It keeps its place although nobody answers for it.
    Stuck(String),
    /// No node takes it.
    Unplaced(String),
}

/// Pods that do not start, fail, or do not end.
pub(super) fn of_pods(pods: &[AgentPod], plan: &Plan, now: Timestamp) -> Option<Finding> {
    let retried: HashSet<&str> = subjects(plan, |why| *why == Why::RetryLater).collect();
    let offline = plan.agents.iter();
    let offline: HashSet<&str> = offline
        .filter(|agent| agent.state == AgentState::Offline)
        .map(|agent| agent.name.as_str())
        .collect();
    let (mut failing, mut stuck, mut unplaced) = (Vec::new(), Vec::new(), Vec::new());
    for pod in pods {
        let name = pod.pod.name.as_str();
        let trouble = if pod.pod.phase.finished_at().is_none() {
            of_unfinished(pod, offline.contains(name), now)
        } else {
            retried
                .contains(name)
                .then(|| Trouble::Failing(failure(pod)))
        };
        match trouble {
            Some(Trouble::Failing(what)) => failing.push(format!("{name} ({what})")),
            Some(Trouble::Stuck(what)) => stuck.push(format!("{name} ({what})")),
            Some(Trouble::Unplaced(what)) => unplaced.push(format!("{name} ({what})")),
            None => {}
        }
    }
    let found = |reason, mut pods: Vec<String>, say: fn(&str) -> String| {
        pods.sort();
        (!pods.is_empty()).then(|| Finding::new(reason, say(&listed(&pods))))
    };
    let fails = |pods: &str| {
        format!(
            "Pods do not start or fail: {pods}; correct the cause; they are made again, each time after a longer wait of at \
             most 10 minutes, or at once when you delete them; kubectl describe pod and kubectl logs tell more"
        )
    };
    let stays = |pods: &str| {
        format!(
            "Pods keep their places although nobody answers for them: {pods}; when their node is surely gone, kubectl delete \
             pod --force"
        )
    };
    let waits = |pods: &str| {
        format!(
            "no node takes these Pods: {pods}; add nodes or free some; a job of another capability may have the place of one \
             that has waited for 15 minutes"
        )
    };
    found(Reason::PodFailing, failing, fails)
        .or_else(|| found(Reason::PodStuck, stuck, stays))
        .or_else(|| found(Reason::Unschedulable, unplaced, waits))
}

fn of_unfinished(pod: &AgentPod, offline: bool, now: Timestamp) -> Option<Trouble> {
    let hold = pod.pod.waiting.map(|waiting| waiting.hold);
    let since = pod
        .pod
        .waiting
        .map_or(pod.pod.created_at, |waiting| waiting.since);
    let waits = pod.pod.phase == PodPhase::Pending && now.duration_since(since) > NODE_PATIENCE;
    let text = || {
        pod.trouble
            .start
            .clone()
            .unwrap_or_else(|| "Pending".into())
    };
    if pod.trouble.is_overdue(now) {
        Some(Trouble::Stuck("it should be gone".into()))
    } else if pod.trouble.node_lost {
        Some(Trouble::Stuck("its node does not answer".into()))
    } else if offline {
        Some(Trouble::Failing("its agent is not online".into()))
    } else if hold == Some(Hold::Queued) {
        None
    } else if hold == Some(Hold::NoNode) {
        waits.then(|| Trouble::Unplaced(text()))
    } else if pod.trouble.start.is_some() {
        Some(Trouble::Failing(failure(pod)))
    } else {
        waits.then(|| Trouble::Failing(text()))
    }
}

/// Why a Pod does not start or failed, and how many did before it.
fn failure(pod: &AgentPod) -> String {
    let start = pod.trouble.start.as_deref().unwrap_or("Failed");
    match pod.pod.attempt {
        0 => start.to_owned(),
        before => format!("{start}; {before} before it failed too"),
    }
}

/// Names of ours that strangers hold.
pub(super) fn of_names(plan: &Plan) -> Option<Finding> {
    let names = subjects(plan, |why| *why == Why::NameTaken);
    let mut names: Vec<String> = names.map(str::to_owned).collect();
    names.sort();
    let message = || {
        format!(
            "agents of somebody else are registered under names of this RunnerPool, which go unused: {}; delete them in \
             Azure DevOps or rename the RunnerPool",
            listed(&names)
        )
    };
    (!names.is_empty()).then(|| Finding::new(Reason::NameTaken, message()))
}

/// Queued jobs that nobody can serve, by what they lack.
pub(super) fn of_jobs(plan: &Plan) -> Option<Finding> {
    let mut by_lack: BTreeMap<&Lacking, Vec<i64>> = BTreeMap::new();
    for job in &plan.unserved {
        by_lack.entry(&job.lacking).or_default().push(job.request);
    }
    let jobs: Vec<String> = by_lack
        .into_iter()
        .map(|(lacking, requests)| {
            let more = match requests.len() - 1 {
                0 => String::new(),
                more => format!(" and {more} more"),
            };
            format!("job request {}{more}, as {lacking}", requests[0])
        })
        .collect();
    let message = || {
        format!(
            "queued jobs get no agent: {}; add a profile that has what they demand, correct what a profile declares, or \
             cancel them",
            listed(&jobs)
        )
    };
    (!jobs.is_empty()).then(|| Finding::new(Reason::JobsUnserved, message()))
}

/// Jobs whose agent cannot end them any more, with its name: its Pod is gone or has ended, or its node does not answer and
/// Azure DevOps has lost sight of it too. And those that Azure DevOps has given up already, while nobody looked.
pub(super) fn lost_jobs<'a>(pods: &[AgentPod], plan: &'a Plan) -> HashMap<i64, &'a str> {
    let with_pod = plan.withheld.iter().filter_map(|left| match left.why {
        Why::JobLost { request } => Some((request, left.subject.as_str())),
        _ => None,
    });
    let lost = pods.iter().filter(|pod| pod.trouble.node_lost);
    let unreachable: HashSet<&str> = lost.map(|pod| pod.pod.name.as_str()).collect();
    let with_node = plan.agents.iter().filter_map(|agent| {
        let offline = !agent.registration.as_ref()?.online;
        let lost = offline && unreachable.contains(agent.name.as_str());
        Some((agent.request().filter(|_| lost)?, agent.name.as_str()))
    });
    let given_up = plan.agents.iter().filter_map(|agent| {
        let ended = matches!(agent.state, AgentState::Finished | AgentState::Orphaned);
        let request = agent.registration.as_ref()?.abandoned?;
        ended.then_some((request, agent.name.as_str()))
    });
    with_pod.chain(with_node).chain(given_up).collect()
}

/// What is left alone for such a reason.
fn subjects<'a>(
    plan: &'a Plan,
    wanted: impl Fn(&Why) -> bool + 'a,
) -> impl Iterator<Item = &'a str> {
    let withheld = plan.withheld.iter();
    withheld
        .filter(move |withheld| wanted(&withheld.why))
        .map(|withheld| withheld.subject.as_str())
}

fn listed(names: &[String]) -> String {
    let first = names.iter().take(MOST_NAMED).cloned();
    let mut text = first.collect::<Vec<_>>().join(", ");
    if names.len() > MOST_NAMED {
        let _ = write!(text, " and {} more", names.len() - MOST_NAMED);
    }
    text
}
