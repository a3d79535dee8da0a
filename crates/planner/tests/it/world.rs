//! A small language for snapshots, so that each case reads as a sentence.

use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use planner::{
    Action, AgentPool, Capabilities, Claim, Cluster, Hold, Intake, JobRequest, Keep, KnownLook,
    Learned, Look, Memory, Mode, Plan, Pod, PodPhase, Pool, Profile, Registration, Reported,
    Snapshot, Waiting, Why, check, placeholder_capabilities, plan,
};

pub(crate) const MARK: &str = "cluster/team/web";
pub(crate) const FOREIGN_MARK: &str = "cluster/other/web";

/// The moment at which every case plans, unless it says otherwise; a whole second.
pub(crate) fn now() -> Timestamp {
    Timestamp::from_second(1_800_000_000).unwrap()
}

/// A moment before or after [`now`].
pub(crate) fn at(seconds: i64) -> Timestamp {
    now() + SignedDuration::from_secs(seconds)
}

/// When the look of a case began, relative to [`now`].
pub(crate) const LOOK: i64 = -2;

/// A RunnerPool `web` with the profile `base`, whose placeholder is registered, and nothing else.
pub(crate) fn web() -> World {
    World {
        pool: Pool {
            name: "team/web".to_owned(),
            priority: 0,
            agent_prefix: "web-agent-".into(),
            placeholder_prefix: "web-placeholder-".into(),
            placeholder_suffix: ".mark".into(),
            owner_mark: MARK.into(),
            max_agents: 10,
            ttl_idle: None,
            profiles: vec![profile("base", None)],
            mode: Mode::Active,
            placeholders: true,
            keep: Keep::default(),
            deleting: false,
        },
        cluster: Cluster::default(),
        agent_pool: AgentPool {
            registrations: vec![placeholder("base").into()],
            requests: Vec::new(),
        },
        siblings: Vec::new(),
        memory: Memory::default(),
        look: Seen::At(LOOK),
    }
}

pub(crate) fn profile(name: &str, capability: Option<&str>) -> Profile {
    Profile {
        name: name.into(),
        declared: capability.map(|name| (name, "")).into_iter().collect(),
        image: format!("{name}-image"),
        shape: format!("{name}-shape"),
        ..Profile::default()
    }
}

/// The placeholder of a profile that declares its own name, or nothing if it is the base.
pub(crate) fn placeholder(name: &str) -> Registration {
    placeholder_of(&profile(name, (name != "base").then_some(name)), None)
}

pub(crate) fn placeholder_of(
    profile: &Profile,
    learned: Option<&Arc<Capabilities>>,
) -> Registration {
    let learned = learned.map(|capabilities| Learned {
        image: &profile.image,
        capabilities,
        user: None,
        whole: false,
    });
    let id = 9000 + i64::try_from(profile.name.len()).unwrap();
    Registration {
        capabilities: placeholder_capabilities(profile, learned),
        ..registration(id, &format!("web-placeholder-{}", profile.name))
    }
}

/// A registration of ours that is offline, enabled and free.
pub(crate) fn registration(id: i64, name: &str) -> Registration {
    Registration {
        id,
        name: name.into(),
        owner_mark: Some(MARK.into()),
        capabilities: Reported::default(),
        online: false,
        intake: Intake::Enabled,
        assigned: None,
        created_on: Some(at(-60)),
        last_finished: None,
        abandoned: None,
    }
}

#[derive(Clone)]
enum Seen {
    At(i64),
    Unknown,
    Never,
}

/// A snapshot in the making.
#[derive(Clone)]
pub(crate) struct World {
    pub(crate) pool: Pool,
    pub(crate) cluster: Cluster,
    pub(crate) agent_pool: AgentPool,
    pub(crate) siblings: Vec<World>,
    pub(crate) memory: Memory,
    look: Seen,
}

impl World {
    pub(crate) fn max(mut self, agents: u32) -> Self {
        self.pool.max_agents = agents;
        self
    }

    pub(crate) fn min(mut self, agents: u32) -> Self {
        self.pool.profiles[0].min_agents = agents;
        self
    }

    pub(crate) fn ttl(mut self, seconds: i64) -> Self {
        self.pool.ttl_idle = Some(SignedDuration::from_secs(seconds));
        self
    }

    /// Adds a profile, with its placeholder.
    pub(crate) fn serving(mut self, capability: &str) -> Self {
        self.pool
            .profiles
            .push(profile(capability, Some(capability)));
        self.agent_pool
            .registrations
            .push(placeholder(capability).into());
        self
    }

    pub(crate) fn mode(mut self, mode: Mode) -> Self {
        self.pool.mode = mode;
        self
    }

    pub(crate) fn keeping(mut self, failed: usize, succeeded: usize) -> Self {
        self.pool.keep = Keep { failed, succeeded };
        self
    }

    pub(crate) fn without_placeholders(mut self) -> Self {
        self.pool.placeholders = false;
        self
    }

    pub(crate) fn deleting(mut self) -> Self {
        self.pool.deleting = true;
        self
    }

    pub(crate) fn queued(self, request: i64) -> Self {
        self.job(request, &[], None)
    }

    pub(crate) fn queued_demanding(self, request: i64, demand: &str) -> Self {
        self.job(request, &[demand], None)
    }

    pub(crate) fn reserved(self, request: i64, agent: i64) -> Self {
        self.job(request, &[], Some(agent))
    }

    pub(crate) fn job(mut self, id: i64, demands: &[&str], reserved_agent: Option<i64>) -> Self {
        self.agent_pool.requests.push(JobRequest {
            id,
            demands: demands.iter().map(|&demand| demand.into()).collect(),
            matched: None,
            reserved_agent,
        });
        self
    }

    /// Adds an agent as it is sketched.
    pub(crate) fn with(mut self, sketch: Sketch) -> Self {
        self.cluster.pods.extend(sketch.pod.map(Arc::new));
        let registration = sketch.registration.map(Arc::new);
        self.agent_pool.registrations.extend(registration);
        self
    }

    pub(crate) fn registered(mut self, registration: Registration) -> Self {
        self.agent_pool.registrations.push(registration.into());
        self
    }

    pub(crate) fn without_registrations(mut self) -> Self {
        self.agent_pool.registrations.clear();
        self
    }

    pub(crate) fn claim(mut self, index: u32) -> Self {
        self.cluster.claims.push(Claim {
            name: format!("web-agent-{index}-cache"),
            uid: format!("claim-{index}"),
            index,
            created_at: at(-60),
            stopping: false,
        });
        self
    }

    pub(crate) fn taken(mut self, name: &str) -> Self {
        self.cluster.taken.insert(name.into());
        self
    }

    /// Its queued jobs were seen first so many seconds ago.
    pub(crate) fn waiting_for(mut self, seconds: i64) -> Self {
        for request in &self.agent_pool.requests {
            self.memory.first_seen.insert(request.id, at(-seconds));
        }
        self
    }

    /// The look began at this moment, relative to [`now`].
    pub(crate) fn seen(mut self, seconds: i64) -> Self {
        self.look = Seen::At(seconds);
        self
    }

    /// Azure DevOps was seen once and does not answer now.
    pub(crate) fn unknown(mut self) -> Self {
        self.look = Seen::Unknown;
        self
    }

    /// Azure DevOps never answered.
    pub(crate) fn never_seen(mut self) -> Self {
        self.look = Seen::Never;
        self
    }

    pub(crate) fn snapshot(&self) -> Snapshot {
        let agent_pool = Arc::new(self.agent_pool.clone());
        let unknown = |last| Look::Unknown {
            reason: "it is down".into(),
            last,
        };
        Snapshot {
            pool: Arc::new(self.pool.clone()),
            cluster: self.cluster.clone(),
            look: match self.look {
                Seen::At(seconds) => remembering(agent_pool, at(seconds), self.memory.clone()),
                Seen::Unknown => unknown(Some(agent_pool)),
                Seen::Never => unknown(None),
            },
            siblings: self.siblings.iter().map(Self::snapshot).collect(),
        }
    }

    /// The plan of this moment, which must break no invariant.
    pub(crate) fn plan(&self) -> Plan {
        self.plan_at(now())
    }

    pub(crate) fn plan_at(&self, now: Timestamp) -> Plan {
        let snapshot = self.snapshot();
        let plan = plan(&snapshot, now);
        assert_eq!(check(&snapshot, &plan, now), [], "{plan}");
        plan
    }

    /// What the plan of this moment does, sorted.
    pub(crate) fn does(&self) -> Vec<String> {
        done(&self.plan())
    }
}

pub(crate) fn known(agent_pool: Arc<AgentPool>, taken_at: Timestamp) -> Look {
    remembering(agent_pool, taken_at, Memory::default())
}

fn remembering(agent_pool: Arc<AgentPool>, taken_at: Timestamp, memory: Memory) -> Look {
    Look::Known(KnownLook {
        taken_at,
        fresh_until: taken_at + SignedDuration::from_secs(10),
        agent_pool,
        memory: Arc::new(memory),
    })
}

/// The actions of a plan as short sentences, sorted.
pub(crate) fn done(plan: &Plan) -> Vec<String> {
    let mut lines: Vec<String> = plan
        .actions
        .iter()
        .map(|planned| sentence(&planned.action))
        .collect();
    lines.sort();
    lines
}

fn sentence(action: &Action) -> String {
    match action {
        Action::CreateAgent {
            index,
            name,
            profile,
            min_agent,
            run_once,
            attempt,
        } => {
            assert_eq!(name, &format!("web-agent-{index}"));
            let kind = match (min_agent, run_once) {
                (true, false) => "warm",
                (false, true) => "once",
                (false, false) => "ttl",
                (true, true) => "warm once",
            };
            let again = match attempt {
                0 => String::new(),
                attempt => format!(" attempt {attempt}"),
            };
            format!("create {index} {profile} {kind}{again}")
        }
        Action::Disable { name, .. } => format!("disable {}", short(name)),
        Action::Remove { name, pod_uid, .. } => {
            let pod = pod_uid.as_ref().map_or("", |_| " and its pod");
            format!("remove {}{pod}", short(name))
        }
        Action::DeletePod { name, .. } => format!("delete pod {}", short(name)),
        Action::GiveUpPod { name, .. } => format!("give up {}", short(name)),
        Action::DeleteClaim { name, .. } => format!("delete claim {}", short(name)),
        Action::MarkPod {
            name,
            request,
            guarded,
            ..
        } => {
            let request = request.map_or("free".into(), |request| format!("job {request}"));
            let guarded = if *guarded { "guarded" } else { "evictable" };
            format!("mark {} {request} {guarded}", short(name))
        }
        Action::AddPlaceholder { name, .. } => format!("add placeholder {name}"),
        Action::UpdatePlaceholder { name, .. } => format!("update placeholder {name}"),
        Action::Remember { name, .. } => format!("remember {name}"),
        Action::RemoveRegistration { name, .. } => format!("remove registration {name}"),
    }
}

fn short(name: &str) -> &str {
    name.strip_prefix("web-agent-").unwrap_or(name)
}

/// What the plan says of one subject that it leaves alone.
pub(crate) fn withheld<'a>(plan: &'a Plan, subject: &str) -> Vec<&'a Why> {
    plan.withheld
        .iter()
        .filter(|withheld| withheld.subject == subject)
        .map(|withheld| &withheld.why)
        .collect()
}

/// An agent in the making: its Pod and its registration.
#[derive(Clone)]
pub(crate) struct Sketch {
    index: u32,
    pub(crate) pod: Option<Pod>,
    pub(crate) registration: Option<Registration>,
}

/// A run-once agent whose Pod is pending since a minute before now.
pub(crate) fn agent(index: u32) -> Sketch {
    Sketch {
        index,
        pod: Some(Pod {
            name: format!("web-agent-{index}"),
            uid: format!("pod-{index}"),
            phase: PodPhase::Pending,
            stopping: false,
            created_at: at(-60),
            started_at: None,
            profile: "base".into(),
            shape: Some("base-shape".into()),
            min_agent: false,
            run_once: true,
            marked: true,
            request: None,
            guarded: true,
            attempt: 0,
            waiting: None,
        }),
        registration: None,
    }
}

impl Sketch {
    fn on_pod(mut self, change: impl FnOnce(&mut Pod)) -> Self {
        change(self.pod.as_mut().unwrap());
        self
    }

    fn on_registration(mut self, change: impl FnOnce(&mut Registration)) -> Self {
        let name = format!("web-agent-{}", self.index);
        let id = 100 + i64::from(self.index);
        change(
            self.registration
                .get_or_insert_with(|| registration(id, &name)),
        );
        self
    }

    /// Names the Pod, not a registration.
    pub(crate) fn named(self, name: &str) -> Self {
        self.on_pod(|pod| pod.name = name.into())
    }

    pub(crate) fn of(self, profile: &str) -> Self {
        self.on_pod(|pod| {
            pod.profile = profile.into();
            pod.shape = Some(format!("{profile}-shape"));
        })
    }

    pub(crate) fn warm(self) -> Self {
        self.on_pod(|pod| (pod.min_agent, pod.run_once) = (true, false))
    }

    pub(crate) fn continuous(self) -> Self {
        self.on_pod(|pod| pod.run_once = false)
    }

    pub(crate) fn outdated(self) -> Self {
        self.on_pod(|pod| pod.shape = Some("former-shape".into()))
    }

    pub(crate) fn created(self, seconds: i64) -> Self {
        self.on_pod(|pod| pod.created_at = at(seconds))
    }

    /// A Pod that was made after so many failures in a row.
    pub(crate) fn attempt(self, attempt: u32) -> Self {
        self.on_pod(|pod| pod.attempt = attempt)
    }

    /// A Pod that has waited since this moment.
    pub(crate) fn waiting(self, hold: Hold, seconds: i64) -> Self {
        let since = at(seconds);
        self.on_pod(|pod| pod.waiting = Some(Waiting { hold, since }))
    }

    pub(crate) fn running_since(self, seconds: i64) -> Self {
        self.running()
            .on_pod(|pod| pod.started_at = Some(at(seconds)))
    }

    pub(crate) fn running(self) -> Self {
        self.on_pod(|pod| pod.phase = PodPhase::Running)
    }

    pub(crate) fn stopping(self) -> Self {
        self.on_pod(|pod| pod.stopping = true)
    }

    pub(crate) fn succeeded(self, seconds: i64) -> Self {
        self.on_pod(|pod| pod.phase = PodPhase::Succeeded { at: at(seconds) })
    }

    pub(crate) fn failed(self, seconds: i64) -> Self {
        self.on_pod(|pod| pod.phase = PodPhase::Failed { at: at(seconds) })
    }

    pub(crate) fn labelled(self, request: i64) -> Self {
        self.on_pod(|pod| pod.request = Some(request))
    }

    pub(crate) fn evictable(self) -> Self {
        self.on_pod(|pod| pod.guarded = false)
    }

    pub(crate) fn registered(self) -> Self {
        self.on_registration(|_| {})
    }

    pub(crate) fn online(self) -> Self {
        self.running()
            .on_registration(|registration| registration.online = true)
    }

    /// Online, free, evictable, registered so many seconds ago.
    pub(crate) fn idle_for(self, seconds: i64) -> Self {
        self.online()
            .evictable()
            .on_registration(|registration| registration.created_on = Some(at(-seconds)))
    }

    pub(crate) fn finished_a_job(self, seconds: i64) -> Self {
        self.on_registration(|registration| registration.last_finished = Some(at(seconds)))
    }

    /// Online with a job, and marked so.
    pub(crate) fn busy(self, request: i64) -> Self {
        self.online()
            .labelled(request)
            .on_registration(|registration| registration.assigned = Some(request))
    }

    pub(crate) fn disabled(self) -> Self {
        self.on_registration(|registration| registration.intake = Intake::Disabled)
    }

    pub(crate) fn disable_sent(self) -> Self {
        self.on_registration(|registration| registration.intake = Intake::DisableSent)
    }

    /// Made by the former operator: no mark, no note of its shape.
    pub(crate) fn legacy(mut self) -> Self {
        if let Some(registration) = &mut self.registration {
            registration.owner_mark = None;
        }
        self.on_pod(|pod| {
            pod.marked = false;
            pod.shape = None;
        })
    }

    pub(crate) fn without_pod(mut self) -> Self {
        self.pod = None;
        self
    }
}
