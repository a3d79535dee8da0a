//! What a run is summed up to: a table for people, the same figures as JSON, and the verdict.

use std::{collections::BTreeMap, time::Duration};

use serde::Serialize;

use super::{
    leftovers::Leftovers,
    limits::Height,
    schedule::Kind,
    strikes::Count,
    verdict::{End, Judged},
};
use crate::output;

/// The figures of one run. Field names are those of the JSON file.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Report {
    pub(crate) seed: u64,
    pub(crate) minutes: u32,
    /// Whether the operator was built to delete a Pod after one look that says idle.
    pub(crate) naive: bool,
    pub(crate) replicas: usize,
    pub(crate) duration_seconds: f64,
    /// How often each kind of event happened, and how often one could not.
    pub(crate) events: BTreeMap<String, usize>,
    pub(crate) events_left_out: BTreeMap<String, usize>,
    pub(crate) leader_changes: usize,
    /// How replicas ended that nobody had asked to.
    pub(crate) ends: BTreeMap<String, usize>,
    pub(crate) jobs: Jobs,
    /// Most agents at any time and the greatest maximum, of each RunnerPool that there was.
    pub(crate) agents: Vec<Agents>,
    pub(crate) pods_created: usize,
    pub(crate) leftovers: Leftovers,
    /// What must not be; empty if all is well.
    pub(crate) complaints: Vec<String>,
}

/// What became of the jobs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Jobs {
    pub(crate) queued: usize,
    /// Of these, those that came when the operator had just looked at an agent pool with an idle agent.
    pub(crate) right_after_a_look: usize,
    pub(crate) finished: usize,
    pub(crate) unfinished: usize,
    pub(crate) refused: usize,
    pub(crate) killed_by_operator: usize,
    pub(crate) unexplained: usize,
    pub(crate) lost_outside: usize,
    /// Of these, those whose agent could still report the end itself.
    pub(crate) lost_outside_ended_by_agent: usize,
    /// Of these, those that an event of the operator tells of.
    pub(crate) lost_outside_reported: usize,
    pub(crate) lost_outside_by_kind: BTreeMap<String, usize>,
    /// Not queued: their RunnerPool had been deleted and there was nothing registered that could run them.
    pub(crate) withheld: usize,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Agents {
    pub(crate) runner_pool: String,
    pub(crate) most: usize,
    pub(crate) allowed: usize,
}

impl Report {
    /// Takes the events' counts in.
    pub(crate) fn count_events(&mut self, counts: &BTreeMap<Kind, Count>) {
        for (kind, count) in counts {
            if count.done > 0 {
                self.events.insert(kind.to_string(), count.done);
            }
            if count.left_out > 0 {
                self.events_left_out
                    .insert(kind.to_string(), count.left_out);
            }
        }
    }

    /// Takes the jobs in, and complains of those that ended as they must not.
    pub(crate) fn count_jobs(&mut self, judged: &[Judged], reported: impl Fn(i64) -> bool) {
        let jobs = &mut self.jobs;
        for job in judged {
            jobs.queued += 1;
            let complaint = match job.end {
                End::Finished => {
                    jobs.finished += 1;
                    None
                }
                End::Unfinished => {
                    jobs.unfinished += 1;
                    Some("did not end")
                }
                End::Refused => {
                    jobs.refused += 1;
                    Some("was refused")
                }
                End::Killed => {
                    jobs.killed_by_operator += 1;
                    Some("was killed by the operator")
                }
                End::Unexplained => {
                    jobs.unexplained += 1;
                    Some("was lost without an explanation")
                }
                End::LostOutside(kind) => {
                    jobs.lost_outside += 1;
                    *jobs
                        .lost_outside_by_kind
                        .entry(kind.to_string())
                        .or_default() += 1;
                    let reported = reported(job.job);
                    jobs.lost_outside_reported += usize::from(reported);
                    jobs.lost_outside_ended_by_agent += usize::from(!job.abandoned);
                    (job.abandoned && !reported)
                        .then_some("was lost from outside, and the operator told nobody")
                }
            };
            self.complaints.extend(complaint.map(|complaint| {
                format!(
                    "job {} of {} {complaint}: {}",
                    job.job, job.agent_pool, job.evidence
                )
            }));
        }
    }

    /// Takes in how many agents there were.
    pub(crate) fn count_agents(&mut self, heights: Vec<Height>) {
        for height in heights {
            self.complaints.extend(height.violations);
            self.agents.push(Agents {
                runner_pool: height.title,
                most: height.most,
                allowed: height.allowed,
            });
        }
        self.agents
            .sort_by(|one, other| one.runner_pool.cmp(&other.runner_pool));
    }

    /// The verdict in a word.
    pub(crate) fn verdict(&self) -> &'static str {
        match (self.naive, self.complaints.is_empty()) {
            (false, true) => "clean",
            (false, false) => "FAILED",
            (true, _) if self.jobs.killed_by_operator > 0 => "caught",
            (true, _) => "NOT CAUGHT",
        }
    }

    /// Whether the run shows what it is to show.
    pub(crate) fn is_as_expected(&self) -> bool {
        matches!(self.verdict(), "clean" | "caught")
    }

    pub(crate) fn print(&self) {
        for line in self.lines() {
            output::line(line);
        }
    }

    fn lines(&self) -> Vec<String> {
        /// Complaints beyond so many tell nothing new; the JSON file has all.
        const COMPLAINTS: usize = 20;
        let mut lines = vec![String::new(), "What was thrown at it".to_owned()];
        for (kind, count) in &self.events {
            lines.push(format!("  {kind:<36} {count:>5}"));
        }
        let left_out: usize = self.events_left_out.values().sum();
        lines.push(format!(
            "  {:<36} {:>5}   ({left_out} more had no victim or no API server)",
            "events",
            self.events.values().sum::<usize>()
        ));
        lines.extend([String::new(), "What came of it".to_owned()]);
        let mut add = |name: &str, value: String| {
            lines.push(format!("  {name:<36} {value}").trim_end().to_owned());
        };
        let jobs = &self.jobs;
        add(
            "jobs queued",
            format!(
                "{}, of which {} right after a look",
                jobs.queued, jobs.right_after_a_look
            ),
        );
        add("jobs finished", jobs.finished.to_string());
        add(
            "jobs killed by the operator",
            jobs.killed_by_operator.to_string(),
        );
        add(
            "jobs lost without an explanation",
            jobs.unexplained.to_string(),
        );
        add("jobs refused", jobs.refused.to_string());
        add("jobs unfinished", jobs.unfinished.to_string());
        add(
            "jobs lost with a Pod killed outside",
            format!(
                "{}, of which {} were reported by events, {} ended by their agent",
                jobs.lost_outside, jobs.lost_outside_reported, jobs.lost_outside_ended_by_agent
            ),
        );
        for (kind, count) in &jobs.lost_outside_by_kind {
            add("", format!("{count} {kind}"));
        }
        for (runner_pool, (most, allowed)) in self.heights() {
            add(
                &format!("most agents of {runner_pool}"),
                format!("{most} of at most {allowed}"),
            );
        }
        add("Pods created", self.pods_created.to_string());
        add("leader changes", self.leader_changes.to_string());
        for (how, count) in &self.ends {
            add(
                "replicas that ended by themselves",
                format!("{count} {how}"),
            );
        }
        add("left over", self.leftovers.to_string());
        add(
            "duration",
            output::duration(Duration::from_secs_f64(self.duration_seconds)),
        );
        lines.push(String::new());
        let hidden = self.complaints.len().saturating_sub(COMPLAINTS);
        lines.extend(self.complaints.iter().take(COMPLAINTS).cloned());
        if hidden > 0 {
            lines.push(format!("… and {hidden} more"));
        }
        lines.push(format!("seed {}: {}", self.seed, self.verdict()));
        lines
    }

    /// By name: a RunnerPool that was recreated was several.
    fn heights(&self) -> BTreeMap<&str, (usize, usize)> {
        let mut heights: BTreeMap<&str, (usize, usize)> = BTreeMap::new();
        for agents in &self.agents {
            let (most, allowed) = heights.entry(&agents.runner_pool).or_default();
            *most = (*most).max(agents.most);
            *allowed = (*allowed).max(agents.allowed);
        }
        heights
    }
}
