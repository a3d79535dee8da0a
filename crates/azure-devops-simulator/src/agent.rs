//! A simulated agent: Microsoft's documented start script, `config.sh` and `run.sh` in one task.
//!
//! It registers, opens a session, polls for messages, renews locks, reports results, and behaves
//! as the real one where that hurts. Instead of running steps it sleeps for as long as the job
//! message says. It never starts a thread or a process: thousands of agents run in one process.

mod capabilities;
mod configure;
mod connection;
mod job;
mod key;
mod listen;
mod registered;

use std::{collections::BTreeMap, ops::RangeInclusive, time::Duration};

use tokio::{sync::watch, task::AbortHandle, time::timeout};
use tokio_util::sync::CancellationToken;

pub use registered::{NotRegistered, Registered};

/// An image whose start script removes the registration when the agent ends, as Microsoft's
/// sample does with a trap, sets this to `true`. Without it the registration stays, as `run.sh`
/// leaves it (protocol section 3.4).
pub const REMOVE_ON_EXIT: &str = "SIMULATED_AGENT_REMOVE_ON_EXIT";

/// A worker starts a moment after its job was taken, so a hook that looks only once may look too early. The operator's
/// hook looks three times, a second apart; simulated workers start faster.
const SETTLED: Duration = Duration::from_millis(500);

/// What the start script sees: a container's environment and arguments.
#[derive(Clone, Debug)]
pub struct Launch {
    /// Environment variables: `AZP_URL`, `AZP_TOKEN` or `AZP_TOKEN_FILE`, `AZP_POOL`,
    /// `AZP_AGENT_NAME`, `AZP_WORK`, `VSO_AGENT_IGNORE`; all of them become capabilities, as a
    /// real agent's do.
    pub env: BTreeMap<String, String>,
    /// Arguments of the start script; `--once` is understood.
    pub args: Vec<String>,
    /// Capabilities that a scan of the image would find, such as `java` with its path.
    pub tools: BTreeMap<String, String>,
    /// The machine's name: default of the agent's name, and owner of its session.
    pub host_name: String,
    /// How long the agent pauses between steps.
    pub pace: Pace,
}

/// The agent's pauses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pace {
    /// How long `config.sh` and start-up take before the first request.
    pub start_up: Duration,
    /// After an empty poll.
    pub idle_pause: RangeInclusive<Duration>,
    /// After a failed poll.
    pub error_pause: RangeInclusive<Duration>,
    /// Between tries to open a session that another one blocks.
    pub session_retry: Duration,
    /// How long it tries.
    pub session_patience: Duration,
    /// Between renewals of a job's lock.
    pub renewal: Duration,
    /// Between tries to report the end of a job.
    pub report_retry: Duration,
    /// Between reads of the second loop, which keeps the session alive; none leaves it out and
    /// saves a connection.
    pub keep_alive: Option<Duration>,
}

impl Pace {
    /// As the real agent does it (protocol sections 6.2 to 6.6).
    pub fn real() -> Self {
        let seconds = Duration::from_secs;
        Self {
            start_up: seconds(2),
            idle_pause: seconds(5)..=seconds(15),
            error_pause: seconds(15)..=seconds(30),
            session_retry: seconds(30),
            session_patience: seconds(240),
            renewal: seconds(60),
            report_retry: seconds(5),
            keep_alive: Some(seconds(30)),
        }
    }

    /// As fast as tests like it. A message sets no pause off, so jobs start as they do for real;
    /// only what waits for time to pass is shorter.
    pub fn fast() -> Self {
        let millis = Duration::from_millis;
        Self {
            start_up: Duration::ZERO,
            idle_pause: millis(1)..=millis(10),
            error_pause: millis(50)..=millis(100),
            session_retry: millis(100),
            session_patience: millis(2_000),
            renewal: millis(1_000),
            report_retry: millis(100),
            keep_alive: None,
        }
    }
}

/// How a simulated agent ended, as the exit code of its container.
pub mod exit_code {
    /// The agent ended as it should (protocol section 6.9).
    pub const SUCCESS: i32 = 0;
    /// The agent gave up.
    pub const TERMINATED: i32 = 1;
    /// A shell that SIGTERM ended: the agent had no session yet.
    pub const SIGTERM: i32 = 143;
    /// SIGKILL.
    pub const SIGKILL: i32 = 137;
}

/// A running simulated agent. Dropping it is a [`Agent::kill`].
#[derive(Debug)]
pub struct Agent {
    terminate: CancellationToken,
    task: AbortHandle,
    worker: watch::Receiver<bool>,
    exit: watch::Receiver<Option<i32>>,
}

impl Agent {
    /// Starts an agent on the current tokio runtime.
    pub fn spawn(launch: Launch) -> Self {
        Self::start(|terminate, worker| run(launch, terminate, worker))
    }

    fn start<Run>(run: impl FnOnce(CancellationToken, watch::Sender<bool>) -> Run) -> Self
    where
        Run: Future<Output = i32> + Send + 'static,
    {
        let terminate = CancellationToken::new();
        let (worker_sender, worker) = watch::channel(false);
        let (exit_sender, exit) = watch::channel(None);
        let run = run(terminate.clone(), worker_sender.clone());
        // The guard tells of the end of a task that was aborted, too.
        let ending = Ending {
            exit: exit_sender,
            worker: worker_sender,
        };
        let task = tokio::spawn(async move {
            let code = run.await;
            ending.exit.send_replace(Some(code));
        });
        Self {
            terminate,
            task: task.abort_handle(),
            worker,
            exit,
        }
    }

    /// SIGTERM: a running job is cancelled and reported so, the session is closed, the agent
    /// ends.
    pub fn terminate(&self) {
        self.terminate.cancel();
    }

    /// SIGKILL: nobody is told anything.
    pub fn kill(&self) {
        self.task.abort();
    }

    /// Whether a job runs: what `pgrep Agent.Worker` tells in a real container.
    pub fn worker_running(&self) -> bool {
        *self.worker.borrow()
    }

    /// Waits until no job has run for half a second: what a pre-stop hook does.
    pub async fn worker_idle(&self) {
        let mut worker = self.worker.clone();
        // A closed channel means that the agent is gone, and its worker with it.
        while worker.wait_for(|running| !running).await.is_ok() {
            if !matches!(
                timeout(SETTLED, worker.wait_for(|running| *running)).await,
                Ok(Ok(_))
            ) {
                return;
            }
        }
    }

    /// Tells whether a job runs, and when that changes; closed when the agent is gone.
    pub fn watch_worker(&self) -> watch::Receiver<bool> {
        self.worker.clone()
    }

    /// Waits for the end and gives the exit code.
    pub async fn wait(&mut self) -> i32 {
        let code = self
            .exit
            .wait_for(Option::is_some)
            .await
            .ok()
            .and_then(|code| *code);
        code.unwrap_or(exit_code::SIGKILL)
    }

    /// The exit code, if the agent has ended.
    pub fn exit_code(&self) -> Option<i32> {
        *self.exit.borrow()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.kill();
    }
}

#[derive(Debug)]
struct Ending {
    exit: watch::Sender<Option<i32>>,
    worker: watch::Sender<bool>,
}

impl Drop for Ending {
    fn drop(&mut self) {
        self.worker.send_replace(false);
        self.exit.send_if_modified(|code| {
            let killed = code.is_none();
            code.get_or_insert(exit_code::SIGKILL);
            killed
        });
    }
}

/// The start script: configure, run, and tidy up where the image does so.
async fn run(launch: Launch, terminate: CancellationToken, worker: watch::Sender<bool>) -> i32 {
    tokio::time::sleep(launch.pace.start_up).await;
    let registration = match configure::configure(&launch).await {
        Ok(registration) => registration,
        Err(error) => {
            tracing::info!(
                error = &error as &dyn std::error::Error,
                "Agent could not be configured"
            );
            return exit_code::TERMINATED;
        }
    };
    // `config.sh` ignores SIGTERM, so it counts only now.
    let code = if terminate.is_cancelled() {
        exit_code::SIGTERM
    } else {
        listen::listen(&registration, &launch, &terminate, &worker).await
    };
    if launch
        .env
        .get(REMOVE_ON_EXIT)
        .is_some_and(|value| value == "true")
    {
        configure::remove(&registration, &launch.pace).await;
    }
    code
}
