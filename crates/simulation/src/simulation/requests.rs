//! The operator's requests on their way: how long each takes, whether it arrives, whether its answer comes back, and
//! what it does to the models.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use api::RunnerPool;
use azure_devops::{Error, TaskAgent, TaskAgentStatus};
use azure_devops_simulator::world::direct::{NewAgent, Refusal};
use kube::ResourceExt as _;
use operator::outside::Failure;
use reqwest::StatusCode;

use super::{Event, Simulation, agents::Maker, owned, truth::Origin};
use crate::{
    clock::{Millis, SECOND},
    cluster::{Deletion, key, refusal},
    random::Random,
    scenario::Kind,
    wire::{Answer, Ask, Request, Slot},
};

/// The program waits so long for an answer of the API server.
const KUBERNETES_TIMEOUT: Millis = 30 * SECOND;
/// And so long for one of Azure DevOps.
const AZURE_TIMEOUT: Millis = 40 * SECOND;

/// A request that has no answer yet.
pub(crate) struct InFlight {
    pub(crate) operator: usize,
    pool: usize,
    /// The RunnerPool as the pass knew it.
    object: Arc<RunnerPool>,
    /// `None` once it took effect, or was lost.
    request: Option<Request>,
    pub(crate) fate: Fate,
    answer: Option<Answer>,
    slot: Arc<Slot>,
    azure: bool,
    /// When the list of agents that the plan knew was true.
    names_seen_at: Millis,
    replied: bool,
    /// When it arrives.
    pub(crate) arrives: Millis,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    Served,
    /// It fails before it takes effect.
    Fails,
    /// It takes effect; the answer is lost.
    LosesAnswer,
    /// It never takes effect: whoever sent it ended, or gave up, while it was on its way.
    Dropped,
}

impl Simulation {
    /// A pass sends a request.
    pub(crate) fn send(
        &mut self,
        operator: usize,
        pool: usize,
        object: &Arc<RunnerPool>,
        ask: Ask,
    ) {
        let azure = matches!(
            ask.request,
            Request::DisableAgent(..)
                | Request::DeleteAgent(_)
                | Request::AddAgent(_)
                | Request::ReplaceAgent(..)
        );
        let slow = self.troubles.is(if azure {
            Kind::AzureSlow
        } else {
            Kind::KubeSlow
        });
        let (there, back) = match (azure, slow) {
            (true, false) => (self.random.between(20, 200), self.random.between(20, 200)),
            (false, false) => (self.random.between(2, 30), self.random.between(2, 30)),
            (_, true) => (
                self.random.wait(6 * SECOND),
                self.random.between(20, 2 * SECOND),
            ),
        };
        let fate = self.fate(azure);
        let limit = if azure {
            AZURE_TIMEOUT
        } else {
            KUBERNETES_TIMEOUT
        };
        let reply = (there + back).min(limit);
        self.book.counts.requests += 1;
        let agent_pool = self.agent_pool_of(pool);
        let flight = InFlight {
            operator,
            pool,
            object: object.clone(),
            request: Some(ask.request),
            fate,
            answer: None,
            slot: ask.slot,
            azure,
            names_seen_at: self.seen_until(operator, agent_pool),
            replied: false,
            arrives: self.now + there,
        };
        let number = if let Some(number) = self.free_asks.pop() {
            self.asks[number] = Some(flight);
            number
        } else {
            self.asks.push(Some(flight));
            self.asks.len() - 1
        };
        self.after(there, Event::Effect(number));
        self.after(reply, Event::Reply(number));
    }

    fn fate(&mut self, azure: bool) -> Fate {
        let (fails, loses) = if azure {
            (Kind::AzureDown, Kind::AzureLostReply)
        } else {
            (Kind::KubeErrors, Kind::KubeLostReply)
        };
        // Even on a good day a request may fail; most do not.
        let always = if self.scenario.troubles.is_empty() {
            0
        } else {
            2
        };
        let fails = if self.troubles.is(fails) { 400 } else { always };
        let loses = if self.troubles.is(loses) { 400 } else { always };
        if self.random.permille(fails) {
            self.book.counts.trouble("request failed");
            Fate::Fails
        } else if self.random.permille(loses) {
            self.book.counts.trouble("answer lost");
            Fate::LosesAnswer
        } else {
            Fate::Served
        }
    }

    /// A request arrives and takes effect, or not.
    pub(crate) fn effect(&mut self, number: usize) {
        let Some(flight) = self.asks[number].as_mut() else {
            return;
        };
        let (operator, pool, fate, azure) =
            (flight.operator, flight.pool, flight.fate, flight.azure);
        let Some(request) = flight.request.take() else {
            self.drop_ask(number);
            return;
        };
        let (object, names_seen_at) = (flight.object.clone(), flight.names_seen_at);
        let name = format!("{}", Shown(&request));
        let answer = if matches!(fate, Fate::Fails | Fate::Dropped) {
            no_answer(&request, "the request was lost")
        } else if azure {
            self.serve_azure(operator, pool, request)
        } else {
            self.serve_kubernetes(operator, pool, &object, names_seen_at, request)
        };
        let result = if fails(&answer) { "refused" } else { "done" };
        self.effect_of(&name, result);
        self.tell_of(operator, || {
            let how = match fate {
                Fate::LosesAnswer => ", but the answer is lost",
                _ => "",
            };
            format!("{name}: {result}{how}")
        });
        let answer = match fate {
            Fate::LosesAnswer => lost(&answer),
            Fate::Fails | Fate::Dropped | Fate::Served => answer,
        };
        if let Some(flight) = self.asks[number].as_mut() {
            flight.answer = Some(answer);
        }
        self.drop_ask(number);
    }

    /// The answer to a request comes, or the operator gives up waiting for it.
    pub(crate) fn reply(&mut self, number: usize) {
        let Some(flight) = self.asks[number].as_mut() else {
            return;
        };
        flight.replied = true;
        if flight.request.is_some() {
            // The connection is closed, and the other side drops what still waits for its turn.
            flight.fate = Fate::Dropped;
        }
        let (operator, pool, azure) = (flight.operator, flight.pool, flight.azure);
        let slot = flight.slot.clone();
        let answer = flight.answer.take().unwrap_or_else(|| {
            flight
                .request
                .as_ref()
                .map_or(Answer::Kubernetes(Ok(())), |request| {
                    no_answer(request, "no answer in time")
                })
        });
        self.drop_ask(number);
        if self.operators[operator].is_none() {
            return;
        }
        slot.fill(answer);
        if azure {
            self.noted(operator);
        }
        self.poll(operator, pool);
    }

    /// Forgets a request that took effect and was answered.
    fn drop_ask(&mut self, number: usize) {
        let over = self.asks[number]
            .as_ref()
            .is_some_and(|flight| flight.replied && flight.request.is_none());
        if over {
            self.asks[number] = None;
            self.free_asks.push(number);
        }
    }

    fn serve_kubernetes(
        &mut self,
        operator: usize,
        pool: usize,
        object: &Arc<RunnerPool>,
        names_seen_at: Millis,
        request: Request,
    ) -> Answer {
        let now = self.now;
        let namespace = object.namespace().unwrap_or_default();
        match request {
            Request::CreatePod(pod) => {
                if self.troubles.is(Kind::Quota) {
                    return Answer::Pod(Err(refusal(403, "Forbidden", "exceeded quota")));
                }
                let created = self.cluster.create_pod(*pod, now);
                if let Ok(pod) = &created {
                    let maker = Maker {
                        operator,
                        with_others: self.others_act(operator),
                        names_seen_at,
                    };
                    self.place(pod, pool, maker);
                    self.judge_creation(operator, object, pod);
                }
                Answer::Pod(created.map(|pod| Some(Box::new(owned(&pod)))))
            }
            Request::GetPod(name) => {
                let found = self.cluster.pods.get(&(namespace, name));
                Answer::Pod(Ok(found.map(|found| Box::new(owned(found)))))
            }
            Request::DeletePod(name, params) => {
                let name = (namespace, name);
                let uid = self.cluster.pods.get(&name).and_then(|pod| pod.uid());
                let deleted = self.cluster.delete_pod(&name, &params, now);
                if let (Ok(Deletion::Asked), Some(uid)) = (&deleted, uid) {
                    self.judge_deletion(object, &name, &uid, names_seen_at);
                }
                Answer::Kubernetes(deleted.map(drop))
            }
            Request::PatchPod(name, patch) => {
                let name = (namespace, name);
                let patched = self.cluster.patch_pod(&name, &patch);
                if patched.is_ok() {
                    self.judge_mark(&name);
                }
                Answer::Pod(patched.map(|pod| Some(Box::new(owned(&pod)))))
            }
            Request::PatchPodStatus(name, patch) => {
                let name = (namespace, name);
                let given_up = self.cluster.end_pod(&name, &patch);
                if let Ok(pod) = &given_up {
                    let uid = pod.uid().unwrap_or_default();
                    self.judge_giving_up(object, &name, &uid, names_seen_at);
                }
                Answer::Pod(given_up.map(|pod| Some(Box::new(owned(&pod)))))
            }
            Request::CreateClaim(claim) => {
                let created = self.cluster.create_claim(*claim, now);
                if let Ok(claim) = &created {
                    self.note_claim(claim);
                }
                Answer::Claim(created.map(|claim| Some(Box::new(owned(&claim)))))
            }
            Request::GetClaim(name) => {
                let found = self.cluster.claims.get(&(namespace, name));
                Answer::Claim(Ok(found.map(|found| Box::new(owned(found)))))
            }
            Request::DeleteClaim(name, preconditions) => {
                let name = (namespace, name);
                self.judge_claim_deletion(&name, &preconditions);
                let deleted = self.cluster.delete_claim(&name, &preconditions, now);
                if deleted.is_ok() && self.others_act(operator) {
                    self.contested_claims.insert(name);
                }
                Answer::Kubernetes(deleted)
            }
            Request::Finalizers(version, finalizers) => {
                let key = key(object);
                match self
                    .cluster
                    .write_finalizers(&key, version.as_deref(), finalizers)
                {
                    Ok(Some(uid)) => {
                        let wait = self.random.between(100, 3 * SECOND);
                        self.after(wait, Event::Collected(uid, names_seen_at));
                        Answer::Kubernetes(Ok(()))
                    }
                    Ok(None) => Answer::Kubernetes(Ok(())),
                    Err(failure) => Answer::Kubernetes(Err(failure)),
                }
            }
            azure => no_answer(&azure, "not for Kubernetes"),
        }
    }

    fn serve_azure(&mut self, operator: usize, pool: usize, request: Request) -> Answer {
        let mut random = Random::new(self.random.next());
        let token = self.token_of(operator, pool);
        if let Some(error) = self.refuse_read(operator, token.as_deref(), &mut random) {
            return match request {
                Request::AddAgent(_) | Request::ReplaceAgent(..) => Answer::Agent(Err(error)),
                _ => Answer::Azure(Err(error)),
            };
        }
        let agent_pool = self.agent_pool_of(pool);
        let (handle, now) = (self.handle(agent_pool), self.time());
        match request {
            Request::DisableAgent(id, _) => {
                self.judge_disabling(id);
                let changed = self.world.enable_agent(now, handle, id, false);
                Answer::Azure(changed.map_err(refused))
            }
            Request::DeleteAgent(id) => {
                let judged = self.judge_removal(pool, handle, id);
                let removed = self.world.unregister_agent(now, handle, id);
                if removed.is_ok() {
                    self.fail_if(judged);
                }
                Answer::Azure(removed.map_err(refused))
            }
            Request::AddAgent(agent) => {
                let name = agent.name.clone();
                let added = self.world.register_agent(now, handle, registration(*agent));
                if let Ok(id) = added {
                    self.origins.insert(id, Origin::Placeholder(pool));
                }
                let shown = |id| Box::new(shown(id, name, now));
                Answer::Agent(added.map(shown).map_err(refused))
            }
            Request::ReplaceAgent(id, agent) => {
                self.judge_update(pool, id);
                let name = agent.name.clone();
                let replaced =
                    self.world
                        .replace_registration(now, handle, id, registration(*agent));
                let shown = |()| Box::new(shown(id, name, now));
                Answer::Agent(replaced.map(shown).map_err(refused))
            }
            other => no_answer(&other, "not for Azure DevOps"),
        }
    }

    /// The token that an operator uses for a RunnerPool: that of its latest reader for the agent pool.
    fn token_of(&self, operator: usize, pool: usize) -> Option<String> {
        let agent_pool = self.agent_pool_of(pool);
        let process = self.operators.get(operator)?.as_ref()?;
        let mut sights = process.sights.iter().flatten().rev();
        sights
            .find(|state| state.agent_pool == agent_pool)
            .and_then(|state| state.token.clone())
    }

    /// Why a request to Azure DevOps is not served, if it is not.
    pub(crate) fn refuse_read(
        &mut self,
        operator: usize,
        token: Option<&str>,
        random: &mut Random,
    ) -> Option<Error> {
        let now = self.now;
        let process = self.process(operator)?;
        if process.not_before > now {
            let wait = process.not_before - now;
            return Some(throttled(wait));
        }
        if self.troubles.is(Kind::ServiceDown)
            || self.troubles.is(Kind::AzureDown) && random.permille(700)
        {
            return Some(transient("the service is down"));
        }
        if self.troubles.is(Kind::AzureSlow) && random.permille(100) {
            return Some(transient("no answer in time"));
        }
        if self.troubles.is(Kind::AzureSignIn) && random.permille(700)
            || !self.troubles.works(token)
        {
            return Some(Error::Unauthorized {
                operation: "simulation",
                detail: "a sign-in page".into(),
            });
        }
        if self.troubles.is(Kind::AzureThrottled) && random.permille(300) {
            let wait = random.between(SECOND, 60 * SECOND);
            if let Some(process) = self.process(operator) {
                process.not_before = now + wait;
            }
            return Some(throttled(wait));
        }
        None
    }
}

fn transient(detail: &str) -> Error {
    Error::Incomplete {
        operation: "simulation",
        detail: detail.into(),
    }
}

fn throttled(wait: Millis) -> Error {
    Error::Throttled {
        operation: "simulation",
        retry_after: Duration::from_millis(u64::try_from(wait).unwrap_or_default()),
    }
}

/// The service's refusal, as the client tells it.
fn refused(refusal: Refusal) -> Error {
    let (status, type_key) = match refusal {
        Refusal::NotFound => (StatusCode::NOT_FOUND, "TaskAgentNotFoundException"),
        Refusal::NameTaken => (StatusCode::CONFLICT, "TaskAgentExistsException"),
        Refusal::Busy => (StatusCode::BAD_REQUEST, "TaskAgentJobStillRunningException"),
        Refusal::SessionConflict => (StatusCode::CONFLICT, "TaskAgentSessionConflictException"),
        Refusal::Expired => (StatusCode::FORBIDDEN, "TaskAgentSessionExpiredException"),
    };
    Error::Status {
        operation: "simulation",
        status,
        type_key: type_key.into(),
        message: refusal.to_string(),
    }
}

/// The operator gets no answer.
fn registration(agent: azure_devops::NewAgent) -> NewAgent {
    NewAgent {
        name: agent.name,
        version: agent.version,
        system_capabilities: agent.system_capabilities,
        user_capabilities: agent.user_capabilities,
    }
}

/// A registration in an answer, which need not repeat what was sent.
fn shown(id: i64, name: String, now: jiff::Timestamp) -> TaskAgent {
    TaskAgent {
        id,
        name,
        enabled: Some(true),
        status: TaskAgentStatus::Offline,
        created_on: Some(now),
        system_capabilities: BTreeMap::new(),
        user_capabilities: BTreeMap::new(),
        assigned_request: None,
        last_completed_request: None,
    }
}

fn no_answer(request: &Request, why: &str) -> Answer {
    match request {
        Request::CreatePod(_)
        | Request::GetPod(_)
        | Request::PatchPod(..)
        | Request::PatchPodStatus(..) => Answer::Pod(Err(Failure::Other(why.into()))),
        Request::CreateClaim(_) | Request::GetClaim(_) => {
            Answer::Claim(Err(Failure::Other(why.into())))
        }
        Request::DeletePod(..) | Request::DeleteClaim(..) | Request::Finalizers(..) => {
            Answer::Kubernetes(Err(Failure::Other(why.into())))
        }
        Request::DisableAgent(..) | Request::DeleteAgent(_) => Answer::Azure(Err(transient(why))),
        Request::AddAgent(_) | Request::ReplaceAgent(..) => Answer::Agent(Err(transient(why))),
    }
}

/// An answer that gets lost.
fn lost(answer: &Answer) -> Answer {
    let why = || Failure::Other("the connection broke".into());
    match answer {
        Answer::Pod(_) => Answer::Pod(Err(why())),
        Answer::Claim(_) => Answer::Claim(Err(why())),
        Answer::Kubernetes(_) => Answer::Kubernetes(Err(why())),
        Answer::Azure(_) => Answer::Azure(Err(transient("the connection broke"))),
        Answer::Agent(_) => Answer::Agent(Err(transient("the connection broke"))),
    }
}

fn fails(answer: &Answer) -> bool {
    match answer {
        Answer::Pod(answer) => answer.is_err(),
        Answer::Claim(answer) => answer.is_err(),
        Answer::Kubernetes(answer) => answer.is_err(),
        Answer::Azure(answer) => answer.is_err(),
        Answer::Agent(answer) => answer.is_err(),
    }
}

/// A request in words.
struct Shown<'a>(&'a Request);

impl std::fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            Request::CreatePod(pod) => write!(f, "create Pod {}", pod.name_any()),
            Request::GetPod(name) => write!(f, "get Pod {name}"),
            Request::DeletePod(name, _) => write!(f, "delete Pod {name}"),
            Request::PatchPod(name, _) => write!(f, "mark Pod {name}"),
            Request::PatchPodStatus(name, _) => write!(f, "give up Pod {name}"),
            Request::CreateClaim(claim) => write!(f, "create claim {}", claim.name_any()),
            Request::GetClaim(name) => write!(f, "get claim {name}"),
            Request::DeleteClaim(name, _) => write!(f, "delete claim {name}"),
            Request::Finalizers(_, list) => write!(f, "write finalizers {list:?}"),
            Request::DisableAgent(id, name) => write!(f, "disable agent {name} ({id})"),
            Request::DeleteAgent(id) => write!(f, "delete registration {id}"),
            Request::AddAgent(agent) => write!(f, "register placeholder {}", agent.name),
            Request::ReplaceAgent(_, agent) => write!(f, "update placeholder {}", agent.name),
        }
    }
}
