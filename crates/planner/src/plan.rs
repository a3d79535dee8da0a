//! A plan: data that can be printed, compared and checked before anything is done.

use std::fmt;

use jiff::Timestamp;

use crate::{Agent, Lesson, Reported};

/// What to do, why, and why not more.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// What to do. The actions do not depend on each other and may be carried out in parallel.
    pub actions: Vec<Planned>,
    /// What was considered and left alone.
    pub withheld: Vec<Withheld>,
    /// Jobs that get no agent now.
    pub shortage: Option<Shortage>,
    /// Jobs that nothing of ours can serve, oldest first.
    pub unserved: Vec<Unserved>,
    /// Queued jobs of which the service says otherwise than we whether a placeholder of ours meets their demands.
    pub disputed: usize,
    /// When to plan again at the latest, if nothing changes by then.
    pub next: Option<Timestamp>,
    /// The RunnerPool is being deleted and nothing of it is left.
    pub finished: bool,
    /// The agents as the plan saw them, by index.
    pub agents: Vec<Agent>,
}

/// An action and its reason.
#[derive(Clone, Debug, PartialEq)]
pub struct Planned {
    /// What to do.
    pub action: Action,
    /// Why.
    pub why: Why,
}

/// One thing to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Create an agent: its claims, then its Pod.
    CreateAgent {
        /// Its index.
        index: u32,
        /// Its name.
        name: String,
        /// Name of its profile.
        profile: String,
        /// Whether it counts towards the minimum.
        min_agent: bool,
        /// Whether it ends after one job.
        run_once: bool,
        /// How many Pods of its profile failed in a row before it.
        attempt: u32,
    },
    /// Stop Azure DevOps from giving jobs to an agent.
    Disable {
        /// Id of the registration.
        agent_id: i64,
        /// Name of the agent.
        name: String,
    },
    /// Delete a registration and, once that succeeded, its Pod.
    Remove {
        /// Id of the registration.
        agent_id: i64,
        /// Name of the agent.
        name: String,
        /// Uid of the Pod; `None`: there must be none, which is to be confirmed by a look of its own.
        pod_uid: Option<String>,
    },
    /// Delete a Pod whose agent has no registration.
    DeletePod {
        /// Its name.
        name: String,
        /// Its uid.
        uid: String,
    },
    /// Declare a Pod failed that has never run, so that its place is free and what it waited for stays to be seen.
    GiveUpPod {
        /// Its name.
        name: String,
        /// Its uid.
        uid: String,
    },
    /// Delete a claim that went with an agent that is gone.
    DeleteClaim {
        /// Its name.
        name: String,
        /// Its uid.
        uid: String,
    },
    /// Show on a Pod what its agent does.
    MarkPod {
        /// Its name.
        name: String,
        /// Its uid.
        uid: String,
        /// The request that it runs.
        request: Option<i64>,
        /// Whether it must not be evicted.
        guarded: bool,
    },
    /// Register a placeholder, so that jobs are queued while there is no agent.
    AddPlaceholder {
        /// Its name.
        name: String,
        /// What it is to carry, besides the owner mark.
        capabilities: Reported,
    },
    /// Change what a placeholder carries.
    UpdatePlaceholder {
        /// Id of its registration.
        agent_id: i64,
        /// Its name.
        name: String,
        /// What it is to carry, besides the owner mark.
        capabilities: Reported,
    },
    /// Remember what an agent reports, with all that its profile's placeholder must not, or is not there to, tell.
    Remember {
        /// What the profile goes by.
        name: String,
        /// What it taught.
        lesson: Lesson,
    },
    /// Delete a registration alone: that of a placeholder, or of an agent whose Pod has ended and stays.
    RemoveRegistration {
        /// Id of the registration.
        agent_id: i64,
        /// Its name.
        name: String,
    },
}

impl Action {
    /// Name of the agent, Pod, claim or placeholder that it is about.
    pub fn subject(&self) -> &str {
        match self {
            Self::CreateAgent { name, .. }
            | Self::Disable { name, .. }
            | Self::Remove { name, .. }
            | Self::DeletePod { name, .. }
            | Self::GiveUpPod { name, .. }
            | Self::DeleteClaim { name, .. }
            | Self::MarkPod { name, .. }
            | Self::AddPlaceholder { name, .. }
            | Self::UpdatePlaceholder { name, .. }
            | Self::Remember { name, .. }
            | Self::RemoveRegistration { name, .. } => name,
        }
    }

    fn verb(&self) -> &'static str {
        match self {
            Self::CreateAgent { .. } => "create agent",
            Self::Disable { .. } => "disable agent",
            Self::Remove { .. } => "remove agent",
            Self::DeletePod { .. } => "delete Pod",
            Self::GiveUpPod { .. } => "give up Pod",
            Self::DeleteClaim { .. } => "delete claim",
            Self::MarkPod { .. } => "mark Pod",
            Self::AddPlaceholder { .. } => "add placeholder",
            Self::UpdatePlaceholder { .. } => "update placeholder",
            Self::Remember { .. } => "remember what agents report",
            Self::RemoveRegistration { .. } => "remove registration",
        }
    }
}

/// Something that was considered and left alone.
#[derive(Clone, Debug, PartialEq)]
pub struct Withheld {
    /// The agent, Pod or name that it is about.
    pub subject: String,
    /// Why nothing is done about it.
    pub why: Why,
}

/// Jobs that get no agent because the RunnerPool, or their profile, may have no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shortage {
    /// Agents that would have been created.
    pub wanted: u32,
    /// Of these, how many are created.
    pub granted: u32,
}

/// A queued job that nothing of ours can serve.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unserved {
    /// The request.
    pub request: i64,
    /// What keeps it from an agent.
    pub lacking: Lacking,
}

/// What no agent of ours has. Displays as a fragment that goes on after "as".
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Lacking {
    /// Demands as Azure DevOps writes them.
    pub demands: Vec<String>,
    /// Each is met by some profile, and no profile meets all of them.
    pub together: bool,
    /// A profile that declares what is demanded, although its agents do not report it.
    pub unreported: Option<String>,
}

impl fmt::Display for Lacking {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let demands = self.demands.join(", ");
        match (&self.unreported, self.together) {
            (Some(profile), _) => write!(
                f,
                "the agents of profile {profile} do not report what it declares ({demands})"
            ),
            (None, true) => write!(f, "no profile meets all of {demands}"),
            (None, false) => write!(f, "no profile meets {demands}"),
        }
    }
}

/// Why something is done, or not done. Displays as a fragment that goes on after "because".
#[derive(Clone, Debug, PartialEq)]
pub enum Why {
    /// A job request is queued and no agent is there or on its way for it.
    JobQueued {
        /// The request.
        request: i64,
    },
    /// There are fewer agents than the minimum.
    BelowMinimum,
    /// It is idle and nothing is queued for it.
    NotNeeded,
    /// It has been idle for `ttlIdleSeconds`.
    IdleTooLong,
    /// There are more agents than `maxAgents`, which was lowered.
    AboveMaximum,
    /// Its container runs, but it has had no session for longer than a start takes.
    NotOnline,
    /// Its Pod has a node and does not start.
    NotStarting,
    /// No node takes its Pod, and a job that another kind of agent could run has no place.
    NoNode,
    /// The RunnerPool describes another Pod by now.
    Outdated,
    /// The RunnerPool is being deleted.
    Deleting,
    /// The RunnerPool is to have no agents.
    ModeDrained,
    /// The RunnerPool is paused.
    Paused,
    /// Its Pod is being deleted.
    PodStopping,
    /// It is disabled and free.
    Drained,
    /// Its Pod has ended.
    PodFinished,
    /// Its Pod is gone.
    PodGone,
    /// Its agent is gone.
    AgentGone,
    /// It started or ended a job.
    StateChanged,
    /// It is among the newest that ended, which `terminatedPods` keeps.
    Kept,
    /// Its profile has none.
    PlaceholderMissing,
    /// It carries something else than its profile's agents have.
    PlaceholderOutdated,
    /// No profile needs it.
    ProfileGone,
    /// It reports what no agent of its profile was seen to report.
    Taught,
    /// There are to be no placeholders.
    PlaceholdersDisabled,
    /// A job is assigned to it.
    Busy {
        /// The request.
        request: i64,
    },
    /// A job is assigned to it but its Pod is gone: the job is lost, and Azure DevOps gives it up in its own time.
    JobLost {
        /// The request.
        request: i64,
    },
    /// A later look must confirm that it has no job.
    AwaitingLook,
    /// Somebody else's registration has this name.
    NameTaken,
    /// It failed before it ran a job, and is made again after a delay.
    RetryLater,
    /// It is starting.
    Starting,
    /// Azure DevOps could not be looked at.
    Unknown {
        /// Why not.
        reason: String,
    },
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::JobQueued { request } => {
                write!(f, "job request {request} is queued and has no agent")
            }
            Self::BelowMinimum => f.write_str("there are fewer agents than minAgents"),
            Self::NotNeeded => f.write_str("it is idle and no queued job needs it"),
            Self::IdleTooLong => f.write_str("it has been idle for ttlIdleSeconds"),
            Self::AboveMaximum => f.write_str("there are more agents than maxAgents"),
            Self::NotOnline => f.write_str("it has not been online for longer than a start takes"),
            Self::NotStarting => f.write_str("its Pod does not start on its node"),
            Self::NoNode => f.write_str("no node takes its Pod, and another job needs the place"),
            Self::Outdated => f.write_str("the RunnerPool describes another Pod by now"),
            Self::Deleting => f.write_str("the RunnerPool is being deleted"),
            Self::ModeDrained => f.write_str("spec.mode is Drained"),
            Self::Paused => f.write_str("spec.mode is Paused"),
            Self::PodStopping => f.write_str("its Pod is being deleted"),
            Self::Drained => f.write_str("it is disabled and has no job"),
            Self::PodFinished => f.write_str("its Pod has ended"),
            Self::PodGone => f.write_str("its Pod is gone"),
            Self::AgentGone => f.write_str("its agent is gone"),
            Self::StateChanged => f.write_str("its agent started or ended a job"),
            Self::Kept => f.write_str("spec.terminatedPods keeps the newest ones that ended"),
            Self::PlaceholderMissing => {
                f.write_str("without a registered agent Azure DevOps refuses jobs")
            }
            Self::PlaceholderOutdated => {
                f.write_str("it carries something else than its profile's agents have")
            }
            Self::ProfileGone => f.write_str("no profile of the RunnerPool needs it"),
            Self::Taught => f.write_str("no agent of its profile was seen to report the same"),
            Self::PlaceholdersDisabled => f.write_str("spec.placeholders is Disabled"),
            Self::Busy { request } => write!(f, "job request {request} is assigned to it"),
            Self::JobLost { request } => {
                write!(
                    f,
                    "job request {request} was assigned to it when its Pod went; Azure DevOps has not given it up yet"
                )
            }
            Self::AwaitingLook => f.write_str("a later look must confirm that it has no job"),
            Self::NameTaken => f.write_str("somebody else's agent has this name"),
            Self::RetryLater => {
                f.write_str("it failed before it ran a job and is made again after a delay")
            }
            Self::Starting => f.write_str("it is starting"),
            Self::Unknown { reason } => write!(f, "Azure DevOps could not be looked at: {reason}"),
        }
    }
}

impl fmt::Display for Plan {
    /// One line an action and one a thing withheld, with reasons.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Planned { action, why } in &self.actions {
            writeln!(
                f,
                "{:<20} {:<32} because {why}",
                action.verb(),
                action.subject()
            )?;
        }
        for Withheld { subject, why } in &self.withheld {
            writeln!(f, "{:<20} {subject:<32} because {why}", "leave alone")?;
        }
        Ok(())
    }
}

impl Plan {
    pub(crate) fn act(&mut self, action: Action, why: Why) {
        self.actions.push(Planned { action, why });
    }

    pub(crate) fn withhold(&mut self, subject: &str, why: Why) {
        self.withheld.push(Withheld {
            subject: subject.to_owned(),
            why,
        });
    }

    /// Leaves everything as it is, and only shows on Pods what their agents do.
    pub(crate) fn pause(&mut self) {
        let stays = |planned: &Planned| {
            matches!(
                planned.action,
                Action::MarkPod { .. } | Action::Remember { .. }
            )
        };
        let (stay, leave) = self.actions.drain(..).partition(stays);
        self.actions = stay;
        for Planned { action, .. } in leave {
            self.withhold(action.subject(), Why::Paused);
        }
        (self.shortage, self.next) = (None, None);
    }

    /// Asks to be made again at this time, if nothing changes before.
    pub(crate) fn again_at(&mut self, time: Timestamp) {
        self.next = Some(self.next.map_or(time, |next| next.min(time)));
    }
}
