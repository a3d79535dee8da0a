//! The life of one pod on the node, from its binding to its removal: one task, which owns the pod's process.

use std::{sync::Arc, time::Duration};

use futures::{FutureExt as _, future::BoxFuture};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, Pod, PodSpec};
use serde_json::Value;
use tokio::{
    sync::{mpsc::UnboundedReceiver, watch},
    time::{self, Instant},
};

use crate::{
    Process, RuleId, Settings, What,
    api::{Cluster, PodId},
    misbehaviour::Rules,
    status::{self, AGENT, Addresses, Ends},
};

mod prepare;

/// What a process gets between SIGTERM and SIGKILL when its pre-stop hook has used up the grace period: the kubelet's
/// `minimumGracePeriodInSeconds`.
const LEAST_GRACE: Duration = Duration::from_secs(2);

/// The exit code of a process that ended by SIGKILL.
const KILLED: i32 = 137;

/// The exit code of a process that ended by SIGTERM.
const TERMINATED: i32 = 143;

/// What all pods of a node share.
pub(crate) struct Node {
    pub(crate) cluster: Cluster,
    pub(crate) settings: Settings,
    pub(crate) rules: Rules,
    pub(crate) lost: watch::Sender<bool>,
    pub(crate) host_ip: String,
}

/// What happens to a pod from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Command {
    /// The pod was marked for deletion, with this grace period from now on.
    Delete(Duration),
    /// The pod object is no more, or has reached its end.
    Gone,
    /// The process is to die and the pod object to disappear.
    Vanish,
    /// The agent is to die with this exit code.
    Crash(i32),
    /// The kernel kills the agent, as it needs more memory than it may have.
    KillForMemory,
    /// The kubelet ends the pod, as the node is short of something: everything dies, and the pod object stays.
    Evict,
    /// The node is lost.
    Lose,
    /// The node is back.
    Recover,
}

type Commands = UnboundedReceiver<Command>;

/// Lives the life of a pod; returns when it is over, and kills the process when the commands' sender is dropped.
pub(crate) async fn live(
    node: Arc<Node>,
    pod: Pod,
    id: PodId,
    pod_ip: String,
    mut commands: Commands,
) {
    let fault = node.rules.claim(&pod);
    let bound = pod
        .spec
        .as_ref()
        .is_some_and(|spec| spec.node_name.is_some());
    let addresses = Addresses {
        host: node.host_ip.clone(),
        pod: pod_ip,
    };
    let mut life = Life {
        node,
        pod: Box::new(pod),
        id,
        addresses,
        fault,
        bound,
        started: Timestamp::now(),
    };
    let agent = loop {
        let command = tokio::select! {
            biased;
            command = commands.recv() => command,
            agent = life.start() => match agent {
                Some(agent) => break agent,
                None => return,
            },
        };
        match command {
            None | Some(Command::Gone) => return,
            Some(Command::Delete(_) | Command::Vanish) => return life.remove().await,
            Some(Command::Crash(code)) => {
                life.report_end(code, code).await;
                return life.ended(commands).await;
            }
            Some(Command::Evict) => {
                life.report_eviction().await;
                return life.ended(commands).await;
            }
            // Nothing runs yet that could need memory; starting waits for the node, so it only has to begin again.
            Some(Command::KillForMemory | Command::Lose | Command::Recover) => {}
        }
    };
    life.run(agent, commands).await;
}

struct Life {
    node: Arc<Node>,
    pod: Box<Pod>,
    id: PodId,
    addresses: Addresses,
    fault: Option<(RuleId, What)>,
    bound: bool,
    started: Timestamp,
}

/// A container `agent`, or none in a pod that has no such container.
type Agent = Option<Box<dyn Process>>;

impl Life {
    /// The containers run, until they end or something ends them.
    async fn run(self, mut agent: Agent, mut commands: Commands) {
        self.node
            .cluster
            .report(
                &self.id,
                status::running(&self.pod, &self.addresses, self.started),
            )
            .await;
        match self.fault {
            Some((_, What::Vanish)) => {
                kill(&agent);
                return self.remove().await;
            }
            Some((_, What::NodeLost)) => {
                kill(&agent);
                return self.lost(commands).await;
            }
            _ => {}
        }
        let mut agent_code = 0;
        loop {
            let command = tokio::select! {
                biased;
                command = commands.recv() => command,
                code = exit(&mut agent) => {
                    agent_code = self.reported_code(code);
                    if !self.has_other_containers() {
                        self.report_end(agent_code, 0).await;
                        return self.ended(commands).await;
                    }
                    agent = None;
                    self.report_agent_end(agent_code).await;
                    continue;
                }
            };
            match command {
                None | Some(Command::Gone) => return kill(&agent),
                Some(Command::Vanish) => {
                    kill(&agent);
                    return self.remove().await;
                }
                Some(Command::Crash(code)) => {
                    kill(&agent);
                    agent = Some(Box::new(Exited(code)));
                }
                Some(Command::KillForMemory) => {
                    kill(&agent);
                    self.report_out_of_memory().await;
                    return self.ended(commands).await;
                }
                Some(Command::Evict) => {
                    kill(&agent);
                    self.report_eviction().await;
                    return self.ended(commands).await;
                }
                Some(Command::Lose) => {
                    kill(&agent);
                    return self.lost(commands).await;
                }
                Some(Command::Recover) => {}
                Some(Command::Delete(grace)) => {
                    return self.terminate(agent, agent_code, grace, commands).await;
                }
            }
        }
    }

    /// The pod is being deleted: pre-stop hook, SIGTERM, SIGKILL when the grace period is over, last status, removal.
    async fn terminate(
        self,
        mut agent: Agent,
        mut agent_code: i32,
        grace: Duration,
        mut commands: Commands,
    ) {
        let mut deadline = Instant::now() + grace;
        let mut in_hook = agent.is_some() && self.has_pre_stop_hook();
        if let Some(agent) = agent.as_ref().filter(|_| !in_hook) {
            agent.terminate();
        }
        while let Some(process) = &mut agent {
            enum Step {
                HookEnded,
                Exited(i32),
                TimedOut,
                Told(Option<Command>),
            }
            let step = {
                let progress: BoxFuture<'_, Step> = if in_hook {
                    process.worker_idle().map(|()| Step::HookEnded).boxed()
                } else {
                    process.wait().map(Step::Exited).boxed()
                };
                tokio::select! {
                    biased;
                    command = commands.recv() => Step::Told(command),
                    step = progress => step,
                    () = time::sleep_until(deadline) => Step::TimedOut,
                }
            };
            match step {
                Step::HookEnded => {
                    in_hook = false;
                    process.terminate();
                }
                Step::TimedOut if in_hook => {
                    in_hook = false;
                    process.terminate();
                    deadline = Instant::now() + LEAST_GRACE;
                }
                Step::TimedOut => {
                    process.kill();
                    agent_code = KILLED;
                    agent = None;
                }
                Step::Exited(code) => {
                    agent_code = self.reported_code(code);
                    agent = None;
                }
                Step::Told(None | Some(Command::Gone)) => return process.kill(),
                Step::Told(Some(Command::Vanish)) => {
                    process.kill();
                    return self.remove().await;
                }
                Step::Told(Some(Command::Crash(code))) => {
                    process.kill();
                    agent_code = code;
                    agent = None;
                }
                Step::Told(Some(Command::Lose)) => {
                    process.kill();
                    self.node
                        .cluster
                        .report(&self.id, status::not_ready())
                        .await;
                    return self.lost_while_deleted(commands).await;
                }
                Step::Told(Some(Command::KillForMemory)) => {
                    process.kill();
                    self.report_out_of_memory().await;
                    return self.remove().await;
                }
                Step::Told(Some(Command::Evict)) => {
                    process.kill();
                    self.report_eviction().await;
                    return self.remove().await;
                }
                Step::Told(Some(Command::Recover)) => {}
                Step::Told(Some(Command::Delete(grace))) => {
                    deadline = deadline.min(Instant::now() + grace);
                }
            }
        }
        self.report_end(agent_code, TERMINATED).await;
        self.remove().await;
    }

    /// The node is lost, and the process with it: nobody reports anything until the node is back, except that the node
    /// lifecycle controller marks the pods of a lost node as not ready. It does so only where it found out by itself, 50 s
    /// later, so it is done here in its name.
    async fn lost(self, mut commands: Commands) {
        self.node
            .cluster
            .report(&self.id, status::not_ready())
            .await;
        loop {
            match commands.recv().await {
                None | Some(Command::Gone) => return,
                Some(Command::Vanish) => return self.remove().await,
                Some(Command::Recover) => return self.report_lost_end().await,
                Some(Command::Delete(_)) => return self.lost_while_deleted(commands).await,
                Some(
                    Command::Crash(_) | Command::KillForMemory | Command::Evict | Command::Lose,
                ) => {}
            }
        }
    }

    /// The same, with a deletion that only a node that is back can carry out.
    async fn lost_while_deleted(self, mut commands: Commands) {
        loop {
            match commands.recv().await {
                None | Some(Command::Gone) => return,
                Some(Command::Vanish) => return self.remove().await,
                Some(Command::Recover) => {
                    self.report_lost_end().await;
                    return self.remove().await;
                }
                Some(
                    Command::Crash(_)
                    | Command::KillForMemory
                    | Command::Evict
                    | Command::Lose
                    | Command::Delete(_),
                ) => {}
            }
        }
    }

    /// A kubelet that comes back finds none of its containers, and says so.
    async fn report_lost_end(&self) {
        let ends = Ends {
            agent: KILLED,
            others: KILLED,
            reason: Some("ContainerStatusUnknown"),
        };
        self.report_last(status::ended(&self.pod, self.started, ends))
            .await;
    }

    /// The containers have ended. A deletion that was asked for while they still ran waits for the node to carry it out;
    /// one that comes later does not.
    async fn ended(self, mut commands: Commands) {
        loop {
            match commands.recv().await {
                None | Some(Command::Gone) => return,
                Some(Command::Delete(_) | Command::Vanish) => return self.remove().await,
                Some(
                    Command::Crash(_)
                    | Command::KillForMemory
                    | Command::Evict
                    | Command::Lose
                    | Command::Recover,
                ) => {}
            }
        }
    }

    async fn report_end(&self, agent: i32, others: i32) {
        let ends = Ends {
            agent,
            others,
            reason: None,
        };
        self.report_last(status::ended(&self.pod, self.started, ends))
            .await;
    }

    async fn report_out_of_memory(&self) {
        let ends = Ends {
            agent: KILLED,
            others: KILLED,
            reason: Some("OOMKilled"),
        };
        self.report_last(status::ended(&self.pod, self.started, ends))
            .await;
    }

    async fn report_eviction(&self) {
        let message = "The node was low on resource: ephemeral-storage.";
        self.report_last(status::evicted(message)).await;
    }

    /// Says that all containers have ended. A deletion that the node has not heard of yet is carried out here: a pod that has
    /// ended is no longer watched.
    async fn report_last(&self, status: Value) {
        if self.node.cluster.report(&self.id, status).await {
            self.remove().await;
        }
    }

    async fn report_agent_end(&self, code: i32) {
        self.node
            .cluster
            .report(&self.id, status::agent_ended(&self.pod, self.started, code))
            .await;
    }

    async fn report_waiting(&self, reason: &str, message: &str) {
        let status = status::waiting(
            &self.pod,
            &self.addresses.host,
            self.started,
            reason,
            message,
        );
        self.node.cluster.report(&self.id, status).await;
    }

    async fn remove(&self) {
        self.node.cluster.remove(&self.id).await;
    }

    fn reported_code(&self, code: i32) -> i32 {
        match self.fault {
            Some((_, What::ExitCode(instead))) => instead,
            _ => code,
        }
    }

    fn agent_container(&self) -> Option<&Container> {
        spec(&self.pod)?
            .containers
            .iter()
            .find(|container| container.name == AGENT)
    }

    fn has_other_containers(&self) -> bool {
        spec(&self.pod).is_some_and(|spec| {
            spec.containers
                .iter()
                .any(|container| container.name != AGENT)
        })
    }

    fn has_pre_stop_hook(&self) -> bool {
        let hook = |agent: &Container| agent.lifecycle.as_ref()?.pre_stop.as_ref()?.exec.clone();
        self.agent_container().and_then(hook).is_some()
    }
}

fn spec(pod: &Pod) -> Option<&PodSpec> {
    pod.spec.as_ref()
}

fn kill(agent: &Agent) {
    if let Some(agent) = agent {
        agent.kill();
    }
}

/// The exit code of the agent; never, if there is no agent that could exit.
async fn exit(agent: &mut Agent) -> i32 {
    match agent {
        Some(agent) => agent.wait().await,
        None => std::future::pending().await,
    }
}

/// A process that has already ended.
struct Exited(i32);

impl Process for Exited {
    fn terminate(&self) {}

    fn kill(&self) {}

    fn worker_idle(&self) -> BoxFuture<'_, ()> {
        std::future::ready(()).boxed()
    }

    fn wait(&mut self) -> BoxFuture<'_, i32> {
        std::future::ready(self.0).boxed()
    }
}
