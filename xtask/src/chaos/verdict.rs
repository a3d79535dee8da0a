//! What became of each job, and whose doing it was: from the simulator's books, the watch of Pods, the API server's audit
//! log and the strikes' own notes. The operator is not asked.
//!
//! A job that ended with its agent is the operator's doing if the operator deleted its Pod before the job ended. It is an
//! outside loss if a strike killed the Pod before that, with the job on it. What is neither has no explanation, and counts
//! against the operator as well. A strike counts only where the audit log shows that it was carried out.

use std::collections::{BTreeMap, BTreeSet};

use azure_devops_simulator::{JobResult, JobView, Outcome};
use control_plane::{AuditEvent, User};
use jiff::{SignedDuration, Timestamp};

use super::{schedule::Kind, strikes::Hit, world::SESSION};
use crate::pods::PodLife;

/// A Pod that a stranger deletes in order runs its job to the end. One that takes a job in the very moment in which it is
/// told to stop loses it: between the last look of the pre-stop hook and the end of the agent. Such a job has hardly begun,
/// if at all.
const LAST_MOMENT: SignedDuration = SignedDuration::from_secs(2);

/// How a job ended, or whose doing its end was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum End {
    /// As it should, or by its user.
    Finished,
    /// Not at all.
    Unfinished,
    /// No registered agent met its demands when it was queued.
    Refused,
    /// The Pod was killed from outside.
    LostOutside(Kind),
    /// The operator deleted the Pod.
    Killed,
    /// With its agent, nobody knows why.
    Unexplained,
}

/// A job with its end and what is known of it.
#[derive(Clone, Debug)]
pub(crate) struct Judged {
    pub(crate) agent_pool: &'static str,
    pub(crate) job: i64,
    pub(crate) end: End,
    /// Whether Azure DevOps waited for the end of the job's lock: nobody had told it. An agent that is stopped reports its
    /// job as cancelled itself, and then there is nothing for the operator to find out.
    pub(crate) abandoned: bool,
    /// For people.
    pub(crate) evidence: String,
}

/// What is known.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Evidence<'a> {
    pub(crate) pods: &'a [PodLife],
    pub(crate) hits: &'a [Hit],
    pub(crate) audit: &'a [AuditEvent],
    /// The namespace and name of the RunnerPools, by agent pool.
    pub(crate) runner_pools: &'a BTreeMap<&'static str, BTreeSet<(&'static str, &'static str)>>,
}

impl Evidence<'_> {
    /// Judges the end of a job.
    pub(crate) fn judge(&self, agent_pool: &'static str, job: &JobView) -> Judged {
        let (end, evidence) = match job.outcome {
            Outcome::Succeeded | Outcome::Canceled => (End::Finished, String::new()),
            // None of the jobs has an error in itself.
            Outcome::Failed => (End::Unexplained, "it failed".to_owned()),
            Outcome::Queued | Outcome::Assigned | Outcome::Running => {
                (End::Unfinished, format!("{:?}", job.outcome))
            }
            Outcome::Refused => (End::Refused, job.message.clone().unwrap_or_default()),
            Outcome::Killed => self.explain(agent_pool, job),
        };
        let agent = job.agent.as_deref().unwrap_or("none");
        Judged {
            agent_pool,
            job: job.id,
            end,
            abandoned: job.result == Some(JobResult::Abandoned),
            evidence: format!(
                "agent {agent}, assigned {}, ended {}: {evidence}",
                time(job.assigned),
                time(job.finished)
            ),
        }
    }

    fn explain(&self, agent_pool: &'static str, job: &JobView) -> (End, String) {
        let (Some(assigned), Some(finished)) = (job.assigned, job.finished) else {
            return (End::Unexplained, "it never had an agent".to_owned());
        };
        let pods = self.pods(agent_pool, job, assigned);
        let deletion = self
            .audit
            .iter()
            .filter(|event| event.user == User::Operator.name() && event.time <= finished)
            .filter(|event| pods.iter().any(|pod| is_deletion_of(event, pod)))
            .min_by_key(|event| event.time);
        let hardly_begun = job
            .received
            .is_none_or(|received| finished.duration_since(received) <= LAST_MOMENT);
        let hit = self
            .strikes(&pods)
            .filter(|hit| hit.time <= finished)
            .filter(|hit| is_fatal(hit.kind) || (hardly_begun && deletion.is_none()))
            .min_by_key(|hit| hit.time);
        match (hit, deletion) {
            (Some(hit), Some(deletion)) if deletion.time < hit.time => {
                (End::Killed, told(deletion))
            }
            (Some(hit), _) => (
                End::LostOutside(hit.kind),
                format!("{} at {}", hit.kind, time(Some(hit.time))),
            ),
            (None, Some(deletion)) => (End::Killed, told(deletion)),
            (None, None) => {
                let strikes = self.strikes(&pods).filter(|hit| hit.time <= finished);
                let strikes =
                    strikes.map(|hit| format!(", {} at {}", hit.kind, time(Some(hit.time))));
                let evidence = shown(&pods) + &strikes.collect::<String>();
                (End::Unexplained, evidence)
            }
        }
    }

    /// What strikes did to the Pods. A note says only what was tried. A node is lost whenever that is tried; of a deletion
    /// the API server tells whether it was carried out, and when. As strikes come one after the other, it is of the last
    /// one that was noted before.
    fn strikes(&self, pods: &[&PodLife]) -> impl Iterator<Item = Hit> {
        let hits = self.hits.iter();
        let noted = hits.filter(|hit| pods.iter().any(|pod| hit.pod == pod.uid));
        let (nodes, tried): (Vec<&Hit>, Vec<&Hit>) =
            noted.partition(|hit| hit.kind == Kind::NodeLost);
        let by_stranger = self.audit.iter();
        let by_stranger = by_stranger.filter(|event| event.user == User::Stranger.name());
        let carried_out = by_stranger.filter_map(move |event| {
            let pod = pods.iter().find(|pod| is_deletion_of(event, pod))?;
            let tried = tried.iter();
            let tried = tried.filter(|hit| hit.pod == pod.uid && hit.time <= event.time);
            let last = tried.max_by_key(|hit| hit.time)?;
            Some(Hit {
                time: event.time,
                ..(*last).clone()
            })
        });
        nodes.into_iter().cloned().chain(carried_out)
    }

    /// The Pod of the agent that had the job. Names are used again: it is the last one before. Where RunnerPools of one name
    /// in two namespaces share the agent pool, there may be one in each. If there is none, it went a moment before: Azure
    /// DevOps believes in a session for a while.
    fn pods(&self, agent_pool: &str, job: &JobView, assigned: Timestamp) -> Vec<&PodLife> {
        let runner_pools = self.runner_pools.get(agent_pool).into_iter().flatten();
        let last = |(namespace, runner_pool): &(&str, &str)| {
            let of_this_name = self.pods.iter().filter(|pod| {
                Some(&pod.name) == job.agent.as_ref()
                    && pod.namespace == *namespace
                    && pod.runner_pool == *runner_pool
                    && pod.created_at <= assigned
            });
            of_this_name.max_by_key(|pod| pod.created_at)
        };
        let last: Vec<&PodLife> = runner_pools.filter_map(last).collect();
        let there_at = |time: Timestamp| {
            let pods = last.iter().copied();
            pods.filter(move |pod| pod.gone.is_none_or(|gone| gone >= time))
        };
        let there: Vec<&PodLife> = there_at(assigned).collect();
        if there.is_empty() {
            there_at(assigned - SESSION).collect()
        } else {
            there
        }
    }
}

/// Whether a Pod does not outlive it, whatever it is doing.
fn is_fatal(kind: Kind) -> bool {
    matches!(kind, Kind::PodDeletedByForce | Kind::NodeLost)
}

fn is_deletion_of(event: &AuditEvent, pod: &PodLife) -> bool {
    event.resource == "pods"
        && event.namespace == pod.namespace
        && event.name == pod.name
        && (200..300).contains(&event.code)
        && (event.verb == "delete" || event.subresource == "eviction")
        && event.time >= pod.created_at
        && pod.gone.is_none_or(|gone| event.time <= gone)
}

fn shown(pods: &[&PodLife]) -> String {
    let shown = pods.iter().map(|pod| {
        format!(
            "Pod {}/{} ended {}, gone {}",
            pod.namespace,
            pod.name,
            time(pod.ended),
            time(pod.gone)
        )
    });
    if pods.is_empty() {
        "its agent had no Pod".to_owned()
    } else {
        shown.collect::<Vec<_>>().join("; ")
    }
}

fn told(deletion: &AuditEvent) -> String {
    format!(
        "{} deleted its Pod {}/{} at {}",
        deletion.user_agent,
        deletion.namespace,
        deletion.name,
        time(Some(deletion.time))
    )
}

fn time(time: Option<Timestamp>) -> String {
    time.map_or_else(|| "never".to_owned(), |time| format!("{time:.3}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap_or_default()
    }

    /// Assigned at 20, ended at 30.
    fn job(outcome: Outcome) -> JobView {
        JobView {
            id: 7,
            name: "plain".into(),
            demands: Vec::new(),
            outcome,
            result: Some(JobResult::Canceled),
            agent: Some("once-agent-0".into()),
            queued: at(10),
            assigned: Some(at(20)),
            received: Some(at(20)),
            finished: Some(at(30)),
            message: None,
        }
    }

    /// Two Pods of a name, one after the other; the second had the job.
    fn pods() -> [PodLife; 2] {
        [("first", 1), ("second", 15)].map(|(uid, created)| PodLife {
            namespace: "red".into(),
            runner_pool: "once".into(),
            name: "once-agent-0".into(),
            uid: uid.into(),
            created_at: at(created),
            ..PodLife::default()
        })
    }

    fn hit(pod: &str, second: i64, kind: Kind) -> Hit {
        Hit {
            pod: pod.into(),
            time: at(second),
            kind,
        }
    }

    fn deletion(user: &str, second: i64) -> AuditEvent {
        AuditEvent {
            verb: "delete".into(),
            group: String::new(),
            resource: "pods".into(),
            subresource: String::new(),
            namespace: "red".into(),
            name: "once-agent-0".into(),
            user: user.into(),
            user_agent: "kubectl".into(),
            stage: "ResponseComplete".into(),
            code: 200,
            time: at(second),
        }
    }

    fn end(outcome: Outcome, hits: &[Hit], audit: &[AuditEvent]) -> End {
        end_of(&job(outcome), hits, audit)
    }

    fn end_of(job: &JobView, hits: &[Hit], audit: &[AuditEvent]) -> End {
        let runner_pools = [("plain", [("red", "once")].into())].into();
        let evidence = Evidence {
            pods: &pods(),
            hits,
            audit,
            runner_pools: &runner_pools,
        };
        evidence.judge("plain", job).end
    }

    /// A killed job whose agent got it so late.
    fn job_received(second: i64) -> JobView {
        JobView {
            received: Some(at(second)),
            ..job(Outcome::Killed)
        }
    }

    #[test]
    fn what_ended_by_itself_is_finished() {
        assert_eq!(end(Outcome::Succeeded, &[], &[]), End::Finished);
        assert_eq!(end(Outcome::Canceled, &[], &[]), End::Finished);
        assert_eq!(end(Outcome::Queued, &[], &[]), End::Unfinished);
        assert_eq!(end(Outcome::Refused, &[], &[]), End::Refused);
    }

    #[test]
    fn a_job_whose_pod_the_operator_deleted_was_killed_by_it() {
        let by = |user, second| end(Outcome::Killed, &[], &[deletion(user, second)]);
        assert_eq!(by("operator", 25), End::Killed);
        // Asked for before the job came, and it came all the same.
        assert_eq!(by("operator", 19), End::Killed);
        // Of the Pod that had the name before, or too late to matter.
        assert_eq!(by("operator", 14), End::Unexplained);
        assert_eq!(by("operator", 31), End::Unexplained);
        assert_eq!(by("hollow-node", 25), End::Unexplained);
        let mut refused = deletion("operator", 25);
        refused.code = 409;
        assert_eq!(end(Outcome::Killed, &[], &[refused]), End::Unexplained);
    }

    #[test]
    fn a_job_whose_pod_was_killed_outside_was_lost_there_unless_the_operator_came_first() {
        let forced = Kind::PodDeletedByForce;
        // Carried out a second after it was noted.
        let lost = |pod: &str, second: i64, operator: &[i64]| {
            let operator = operator.iter().map(|second| deletion("operator", *second));
            let mut audit: Vec<AuditEvent> = operator.collect();
            audit.push(deletion("stranger", second + 1));
            end(Outcome::Killed, &[hit(pod, second, forced)], &audit)
        };
        assert_eq!(lost("second", 24, &[]), End::LostOutside(forced));
        assert_eq!(lost("first", 24, &[]), End::Unexplained);
        assert_eq!(lost("second", 30, &[]), End::Unexplained);
        assert_eq!(lost("second", 24, &[26]), End::LostOutside(forced));
        assert_eq!(lost("second", 24, &[24]), End::Killed);
    }

    #[test]
    fn a_strike_that_failed_excuses_nothing() {
        let forced = Kind::PodDeletedByForce;
        let tried = [hit("second", 21, forced)];
        let after = |audit: &[AuditEvent]| end(Outcome::Killed, &tried, audit);
        assert_eq!(after(&[]), End::Unexplained, "there was no API server");
        assert_eq!(after(&[deletion("operator", 25)]), End::Killed);
        let mut refused = deletion("stranger", 21);
        refused.code = 500;
        assert_eq!(after(&[refused.clone()]), End::Unexplained);
        assert_eq!(after(&[refused, deletion("operator", 25)]), End::Killed);
        // Tried again: what counts is when it was carried out.
        let operator = |second| [deletion("operator", second), deletion("stranger", 25)];
        assert_eq!(after(&operator(24)), End::Killed);
        assert_eq!(after(&operator(26)), End::LostOutside(forced));
        // Of the Pod that had the name before.
        assert_eq!(after(&[deletion("stranger", 14)]), End::Unexplained);
        // What was carried out is the later strike.
        let tried = [
            hit("second", 21, forced),
            hit("second", 22, Kind::PodDeleted),
        ];
        let audit = [deletion("stranger", 22), deletion("operator", 25)];
        assert_eq!(end(Outcome::Killed, &tried, &audit), End::Killed);
    }

    #[test]
    fn an_eviction_counts_as_the_deletion_that_it_is_and_a_lost_node_is_in_no_log() {
        let mut eviction = deletion("stranger", 29);
        eviction.verb = "create".into();
        eviction.subresource = "eviction".into();
        eviction.code = 201;
        let evicted = |received| {
            let tried = [hit("second", 29, Kind::PodEvicted)];
            end_of(&job_received(received), &tried, &[eviction.clone()])
        };
        assert_eq!(evicted(29), End::LostOutside(Kind::PodEvicted));
        let lost = [hit("second", 25, Kind::NodeLost)];
        let end = |audit: &[AuditEvent]| end(Outcome::Killed, &lost, audit);
        assert_eq!(end(&[]), End::LostOutside(Kind::NodeLost));
        assert_eq!(end(&[deletion("operator", 24)]), End::Killed);
    }

    #[test]
    fn a_job_that_came_while_azure_devops_believed_in_a_dead_agent_was_lost_as_its_agent() {
        let came = |gone: i64, hits: &[Hit], audit: &[AuditEvent]| {
            let [pod, _] = pods();
            let pods = [PodLife {
                gone: Some(at(gone)),
                ..pod
            }];
            let runner_pools = [("plain", [("red", "once")].into())].into();
            let evidence = Evidence {
                pods: &pods,
                hits,
                audit,
                runner_pools: &runner_pools,
            };
            evidence.judge("plain", &job(Outcome::Killed)).end
        };
        let forced = Kind::PodDeletedByForce;
        let hit = [hit("first", 18, forced)];
        let stranger = deletion("stranger", 18);
        assert_eq!(
            came(18, &hit, std::slice::from_ref(&stranger)),
            End::LostOutside(forced)
        );
        let both = [deletion("operator", 17), stranger];
        assert_eq!(came(18, &hit, &both), End::Killed);
        assert_eq!(came(-60, &hit, &both), End::Unexplained);
    }

    #[test]
    fn a_deletion_in_order_excuses_only_a_job_that_came_in_the_last_moment() {
        let lost = |received, audit: &[AuditEvent]| {
            let tried = [hit("second", 19, Kind::PodDeleted)];
            end_of(&job_received(received), &tried, audit)
        };
        let stranger = deletion("stranger", 19);
        assert_eq!(
            lost(29, std::slice::from_ref(&stranger)),
            End::LostOutside(Kind::PodDeleted)
        );
        assert_eq!(
            lost(25, std::slice::from_ref(&stranger)),
            End::Unexplained,
            "the hook waits for its end"
        );
        // It runs on, unless the operator ends it.
        for received in [25, 29] {
            let both = [stranger.clone(), deletion("operator", 30)];
            assert_eq!(lost(received, &both), End::Killed);
        }
    }
}
