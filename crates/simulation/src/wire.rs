//! The way from a pass to the models: each request of the operator becomes an [`Ask`] in an outbox, and its future waits
//! until the simulation answers. Nothing happens here; when and whether a request takes effect is the simulation's.

use std::{
    future::poll_fn,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicI64, Ordering},
    },
    task::{Poll, Waker},
    time::Duration,
};

use azure_devops::{NewAgent, TaskAgent};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use kube::api::{DeleteParams, Preconditions};
use operator::{
    outside::{Failure, Outside},
    replica::Finalizers,
};
use planner::Planned;
use serde_json::Value;

use crate::clock::{Millis, at};

/// A request of the operator.
#[derive(Debug)]
pub(crate) enum Request {
    CreatePod(Box<Pod>),
    GetPod(String),
    DeletePod(String, DeleteParams),
    PatchPod(String, Value),
    PatchPodStatus(String, Value),
    CreateClaim(Box<PersistentVolumeClaim>),
    GetClaim(String),
    DeleteClaim(String, Preconditions),
    Finalizers(Option<String>, Vec<String>),
    DisableAgent(i64, String),
    DeleteAgent(i64),
    AddAgent(Box<NewAgent>),
    ReplaceAgent(i64, Box<NewAgent>),
}

/// What came back.
#[derive(Debug)]
pub(crate) enum Answer {
    Pod(Result<Option<Box<Pod>>, Failure>),
    Claim(Result<Option<Box<PersistentVolumeClaim>>, Failure>),
    Kubernetes(Result<(), Failure>),
    Azure(Result<(), azure_devops::Error>),
    Agent(Result<Box<TaskAgent>, azure_devops::Error>),
}

/// Where an answer is put for the future that waits for it.
#[derive(Debug, Default)]
pub(crate) struct Slot(Mutex<(Option<Answer>, Option<Waker>)>);

impl Slot {
    pub(crate) fn fill(&self, answer: Answer) {
        let mut slot = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        slot.0 = Some(answer);
        if let Some(waker) = slot.1.take() {
            waker.wake();
        }
    }
}

/// A request and where its answer goes.
#[derive(Debug)]
pub(crate) struct Ask {
    pub(crate) request: Request,
    pub(crate) slot: Arc<Slot>,
}

/// What a pass asked for since the simulation last looked.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    pub(crate) asks: Vec<Ask>,
    pub(crate) done: Vec<Planned>,
}

/// The outside of one pass.
#[derive(Debug, Default)]
pub(crate) struct Wire {
    outbox: Mutex<Outbox>,
    /// The virtual time, set before each poll.
    now: AtomicI64,
    began: Millis,
}

impl Wire {
    pub(crate) fn new(now: Millis) -> Self {
        Self {
            now: AtomicI64::new(now),
            began: now,
            ..Self::default()
        }
    }

    pub(crate) fn set_now(&self, now: Millis) {
        self.now.store(now, Ordering::Relaxed);
    }

    pub(crate) fn take(&self) -> Outbox {
        std::mem::take(&mut *self.outbox())
    }

    fn outbox(&self) -> MutexGuard<'_, Outbox> {
        self.outbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn ask(&self, request: Request) -> Answer {
        let slot = Arc::new(Slot::default());
        self.outbox().asks.push(Ask {
            request,
            slot: slot.clone(),
        });
        poll_fn(|context| {
            let mut slot = slot.0.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(answer) = slot.0.take() {
                Poll::Ready(answer)
            } else {
                slot.1 = Some(context.waker().clone());
                Poll::Pending
            }
        })
        .await
    }

    async fn pod(&self, request: Request) -> Result<Option<Pod>, Failure> {
        match self.ask(request).await {
            Answer::Pod(answer) => answer.map(|pod| pod.map(|pod| *pod)),
            other => Err(unfit(&other)),
        }
    }

    async fn claim(&self, request: Request) -> Result<Option<PersistentVolumeClaim>, Failure> {
        match self.ask(request).await {
            Answer::Claim(answer) => answer.map(|claim| claim.map(|claim| *claim)),
            other => Err(unfit(&other)),
        }
    }

    async fn kubernetes(&self, request: Request) -> Result<(), Failure> {
        match self.ask(request).await {
            Answer::Kubernetes(answer) => answer,
            other => Err(unfit(&other)),
        }
    }

    async fn agent(&self, request: Request) -> Result<TaskAgent, azure_devops::Error> {
        match self.ask(request).await {
            Answer::Agent(answer) => answer.map(|agent| *agent),
            other => Err(azure_devops::Error::Incomplete {
                operation: "simulation",
                detail: format!("{other:?} does not fit the request"),
            }),
        }
    }

    async fn azure(&self, request: Request) -> Result<(), azure_devops::Error> {
        match self.ask(request).await {
            Answer::Azure(answer) => answer,
            other => Err(azure_devops::Error::Incomplete {
                operation: "simulation",
                detail: format!("{other:?} does not fit the request"),
            }),
        }
    }
}

fn unfit(answer: &Answer) -> Failure {
    Failure::Other(format!("{answer:?} does not fit the request"))
}

fn missing<T>(answer: Option<T>) -> Result<T, Failure> {
    answer.ok_or_else(|| Failure::Other("an object was expected".into()))
}

impl Outside for Wire {
    fn elapsed(&self) -> Duration {
        let elapsed = self.now.load(Ordering::Relaxed) - self.began;
        Duration::from_millis(u64::try_from(elapsed).unwrap_or_default())
    }

    fn now(&self) -> Timestamp {
        at(self.now.load(Ordering::Relaxed))
    }

    async fn create_pod(&self, pod: &Pod) -> Result<Pod, Failure> {
        missing(self.pod(Request::CreatePod(Box::new(pod.clone()))).await?)
    }

    async fn get_pod(&self, name: &str) -> Result<Option<Pod>, Failure> {
        self.pod(Request::GetPod(name.to_owned())).await
    }

    async fn delete_pod(&self, name: &str, params: DeleteParams) -> Result<(), Failure> {
        self.kubernetes(Request::DeletePod(name.to_owned(), params))
            .await
    }

    async fn patch_pod(&self, name: &str, patch: Value) -> Result<Pod, Failure> {
        missing(self.pod(Request::PatchPod(name.to_owned(), patch)).await?)
    }

    async fn patch_pod_status(&self, name: &str, patch: Value) -> Result<Pod, Failure> {
        missing(
            self.pod(Request::PatchPodStatus(name.to_owned(), patch))
                .await?,
        )
    }

    async fn create_claim(
        &self,
        claim: &PersistentVolumeClaim,
    ) -> Result<PersistentVolumeClaim, Failure> {
        let request = Request::CreateClaim(Box::new(claim.clone()));
        missing(self.claim(request).await?)
    }

    async fn get_claim(&self, name: &str) -> Result<Option<PersistentVolumeClaim>, Failure> {
        self.claim(Request::GetClaim(name.to_owned())).await
    }

    async fn delete_claim(&self, name: &str, preconditions: Preconditions) -> Result<(), Failure> {
        self.kubernetes(Request::DeleteClaim(name.to_owned(), preconditions))
            .await
    }

    async fn disable_agent(
        &self,
        _pool_id: i64,
        agent_id: i64,
        name: &str,
    ) -> Result<(), azure_devops::Error> {
        self.azure(Request::DisableAgent(agent_id, name.to_owned()))
            .await
    }

    async fn delete_agent(&self, _pool_id: i64, agent_id: i64) -> Result<(), azure_devops::Error> {
        self.azure(Request::DeleteAgent(agent_id)).await
    }

    async fn add_agent(
        &self,
        _pool_id: i64,
        agent: &NewAgent,
    ) -> Result<TaskAgent, azure_devops::Error> {
        self.agent(Request::AddAgent(Box::new(agent.clone()))).await
    }

    async fn replace_agent(
        &self,
        _pool_id: i64,
        agent_id: i64,
        agent: &NewAgent,
    ) -> Result<TaskAgent, azure_devops::Error> {
        self.agent(Request::ReplaceAgent(agent_id, Box::new(agent.clone())))
            .await
    }

    fn done(&self, planned: &Planned) {
        self.outbox().done.push(planned.clone());
    }
}

impl Finalizers for Wire {
    async fn write_finalizers(
        &self,
        version: Option<String>,
        finalizers: Vec<String>,
    ) -> Result<(), Failure> {
        self.kubernetes(Request::Finalizers(version, finalizers))
            .await
    }
}
