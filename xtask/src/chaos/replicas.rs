//! The replicas of the operator, and whoever starts them again: what a Deployment and a kubelet do, and what may happen to
//! any process.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::ExitStatus,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow};
use control_plane::ControlPlane;
use tokio::task::JoinHandle;

use super::{
    proxy::{Proxy, Weather},
    random::Random,
};
use crate::operator::Operator;

/// What a kubelet lets pass before it starts a container again that ended by itself for the first time: next to nothing.
const RESTART_AFTER: Duration = Duration::from_millis(500);
/// An operator that lost its lease ends its process with this exit code, and expects to be started again.
const LOST_LEASE: i32 = 75;

/// All replicas.
pub(crate) struct Replicas {
    program: PathBuf,
    all: Vec<Replica>,
    /// How processes ended that nobody had asked to: how often, by what is shown of it.
    pub(crate) ends: BTreeMap<String, usize>,
    /// What no replica may do.
    pub(crate) complaints: Vec<String>,
}

struct Replica {
    name: String,
    proxy: Proxy,
    log: PathBuf,
    state: State,
}

enum State {
    Running(Box<Operator>),
    /// Was asked to end, and will be started again.
    Stopping(JoinHandle<Result<ExitStatus>>),
    /// To be started at that time.
    Down(Instant),
}

impl Replicas {
    /// Starts so many replicas, each with a way of its own to the API server.
    pub(crate) async fn start(
        program: &Path,
        control_plane: &ControlPlane,
        folder: &Path,
        count: usize,
        mut random: Random,
    ) -> Result<Self> {
        let mut replicas = Vec::new();
        for number in 0..count {
            let name = format!("replica-{number}");
            let proxy = Proxy::open(control_plane, &name, random.fork()).await?;
            let log = folder.join(format!("{name}.log"));
            replicas.push(Replica {
                name,
                proxy,
                log,
                state: State::Down(Instant::now()),
            });
        }
        let mut started = Self {
            program: program.to_owned(),
            all: replicas,
            ends: BTreeMap::new(),
            complaints: Vec::new(),
        };
        started.tend().await?;
        Ok(started)
    }

    pub(crate) fn count(&self) -> usize {
        self.all.len()
    }

    /// The replica that holds the lease, if the holder is one of them.
    pub(crate) fn named(&self, holder: &str) -> Option<usize> {
        self.all
            .iter()
            .position(|replica| holder.starts_with(&replica.name))
    }

    /// How many run, frozen ones included.
    pub(crate) fn running(&self) -> usize {
        self.all
            .iter()
            .filter(|replica| matches!(replica.state, State::Running(_)))
            .count()
    }

    /// Looks after the processes: starts what is to be started, notes what ended. To be called all the time.
    pub(crate) async fn tend(&mut self) -> Result<()> {
        for replica in &mut self.all {
            match &mut replica.state {
                State::Running(operator) => {
                    let Some(status) = operator.ended()? else {
                        continue;
                    };
                    let how = if status.code() == Some(LOST_LEASE) {
                        "lost the lease".to_owned()
                    } else {
                        self.complaints
                            .push(format!("{} ended by itself: {status}", replica.name));
                        status.to_string()
                    };
                    *self.ends.entry(how).or_default() += 1;
                    replica.state = State::Down(Instant::now() + RESTART_AFTER);
                }
                State::Stopping(stop) if stop.is_finished() => {
                    let complaint = complaint_of_stop(stop.await?);
                    self.complaints.extend(
                        complaint.map(|complaint| format!("{}: {complaint}", replica.name)),
                    );
                    replica.state = State::Down(Instant::now());
                }
                State::Stopping(_) | State::Down(_) => {}
            }
            if matches!(replica.state, State::Down(time) if time <= Instant::now()) {
                replica.state = State::Running(Box::new(Operator::start(
                    &self.program,
                    replica.proxy.kubeconfig(),
                    replica.log.clone(),
                    &[("POD_NAME", &replica.name)],
                )?));
            }
        }
        Ok(())
    }

    /// SIGKILL; started again after a while. Whether it ran.
    pub(crate) async fn kill(&mut self, index: usize, down: Duration) -> Result<bool> {
        let Some(operator) = self.take(index, State::Down(Instant::now() + down)) else {
            return Ok(false);
        };
        operator.kill().await?;
        Ok(true)
    }

    /// SIGTERM; started again as soon as it has ended. Whether it ran.
    pub(crate) fn restart(&mut self, index: usize) -> bool {
        let Some(mut operator) = self.take(index, State::Down(Instant::now())) else {
            return false;
        };
        if let Some(replica) = self.all.get_mut(index) {
            replica.state = State::Stopping(tokio::spawn(async move { operator.end().await }));
        }
        true
    }

    /// SIGSTOP. Whether it ran.
    pub(crate) async fn freeze(&self, index: usize) -> Result<bool> {
        match self.operator(index) {
            Some(operator) => operator.freeze().await.map(|()| true),
            None => Ok(false),
        }
    }

    /// SIGCONT; nothing to one that is not frozen.
    pub(crate) async fn thaw(&self, index: usize) -> Result<()> {
        match self.operator(index) {
            Some(operator) => operator.thaw().await,
            None => Ok(()),
        }
    }

    /// Changes the weather on the way of one replica, or of all.
    pub(crate) fn weather(&self, index: Option<usize>, change: impl Fn(&mut Weather)) {
        for (number, replica) in self.all.iter().enumerate() {
            if index.is_none_or(|index| index == number) {
                replica.proxy.change(&change);
            }
        }
    }

    /// Cuts all connections to the API server.
    pub(crate) fn cut_connections(&self) {
        for replica in &self.all {
            replica.proxy.cut();
        }
    }

    /// Stops all replicas. The first that does not stop as it should is the error, after all have been stopped.
    pub(crate) async fn stop(self) -> Result<()> {
        self.weather(None, |weather| *weather = Weather::default());
        let mut result = Ok(());
        for replica in self.all {
            let stopped = match replica.state {
                State::Running(mut operator) => operator.end().await,
                State::Stopping(stop) => stop.await?,
                State::Down(_) => continue,
            };
            if let Some(complaint) = complaint_of_stop(stopped) {
                result = result.and(Err(anyhow!("{}: {complaint}", replica.name)));
            }
        }
        result
    }

    /// Panics in the logs: a program that goes on after one is not fine.
    pub(crate) fn panics(&self) -> Result<Vec<String>> {
        let mut panics = Vec::new();
        for replica in &self.all {
            let log = fs::read_to_string(&replica.log)
                .with_context(|| format!("cannot read {}", replica.log.display()))?;
            let found = log.lines().filter(|line| line.contains("panicked at"));
            panics.extend(found.map(|line| format!("{}: {line}", replica.name)));
        }
        Ok(panics)
    }

    fn operator(&self, index: usize) -> Option<&Operator> {
        match &self.all.get(index)?.state {
            State::Running(operator) => Some(operator.as_ref()),
            State::Stopping(_) | State::Down(_) => None,
        }
    }

    /// Takes the process of a replica that runs and leaves another state in its place.
    fn take(&mut self, index: usize, state: State) -> Option<Operator> {
        let replica = self.all.get_mut(index)?;
        if !matches!(replica.state, State::Running(_)) {
            return None;
        }
        match std::mem::replace(&mut replica.state, state) {
            State::Running(operator) => Some(*operator),
            State::Stopping(_) | State::Down(_) => None,
        }
    }
}

/// What is wrong with how a replica ended after SIGTERM. One that could not reach the API server at that moment may lose the
/// lease before it has released it.
fn complaint_of_stop(stopped: Result<ExitStatus>) -> Option<String> {
    match stopped {
        Ok(status) if status.success() || status.code() == Some(LOST_LEASE) => None,
        Ok(status) => Some(format!("ended with {status} after SIGTERM")),
        Err(error) => Some(format!("{error:#}")),
    }
}
