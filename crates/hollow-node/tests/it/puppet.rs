//! Agents on strings: they do what the test says, and remember what was done to them.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

use futures::{FutureExt as _, future::BoxFuture};
use hollow_node::{Launch, Process, Runtime};
use tokio::sync::watch;

/// The exit code of an agent that was asked to end.
pub(crate) const AGENT_TERMINATED: i32 = 0;

/// What became of one agent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct State {
    /// A job runs.
    pub(crate) busy: bool,
    /// It takes no notice of SIGTERM.
    pub(crate) stubborn: bool,
    /// SIGTERM came; whether a job ran at that moment.
    pub(crate) terminated_while_busy: Option<bool>,
    /// It has ended.
    pub(crate) exit_code: Option<i32>,
}

/// All agents that were launched, by host name.
#[derive(Clone, Default)]
pub(crate) struct Puppets(Arc<Mutex<HashMap<String, Launched>>>);

type Launched = (Launch, watch::Sender<State>);

impl Puppets {
    pub(crate) fn launch_of(&self, name: &str) -> Launch {
        self.0.lock().unwrap()[name].0.clone()
    }

    /// The state of an agent, to be read and changed.
    pub(crate) fn state(&self, name: &str) -> watch::Sender<State> {
        self.0.lock().unwrap()[name].1.clone()
    }
}

impl Runtime for Puppets {
    fn launch(&self, launch: Launch) -> Box<dyn Process> {
        let state = watch::Sender::new(State::default());
        self.0
            .lock()
            .unwrap()
            .insert(launch.host_name.clone(), (launch, state.clone()));
        Box::new(Puppet(state))
    }
}

struct Puppet(watch::Sender<State>);

impl Process for Puppet {
    fn terminate(&self) {
        self.0.send_modify(|state| {
            state.terminated_while_busy.get_or_insert(state.busy);
            if !state.stubborn {
                state.exit_code.get_or_insert(AGENT_TERMINATED);
            }
        });
    }

    fn kill(&self) {
        self.0.send_modify(|state| {
            state.exit_code.get_or_insert(137);
        });
    }

    fn worker_idle(&self) -> BoxFuture<'_, ()> {
        async {
            let mut state = self.0.subscribe();
            state
                .wait_for(|state| !state.busy || state.exit_code.is_some())
                .await
                .unwrap();
        }
        .boxed()
    }

    fn wait(&mut self) -> BoxFuture<'_, i32> {
        async {
            let mut state = self.0.subscribe();
            state
                .wait_for(|state| state.exit_code.is_some())
                .await
                .unwrap()
                .exit_code
                .unwrap()
        }
        .boxed()
    }
}
