//! Flags and what each command does with them. Every flag is an environment variable as well.

use std::{
    collections::BTreeMap, io::Write as _, net::SocketAddr, process::ExitCode, time::Duration,
};

use anyhow::{Context as _, Result, bail};
use azure_devops_simulator::{
    Control, Fault, FaultKind, JobResult, JobSpec, PatSpec, Settings, Simulator, Switches,
    agent::{Agent, Launch, Pace},
};
use clap::{Args, Parser, Subcommand, ValueEnum};
use tokio::signal::unix::{SignalKind, signal};
use url::Url;

/// A stand-in for the agent-pool side of Azure DevOps, and for the agents that talk to it.
#[derive(Debug, Parser)]
#[command(version)]
pub(crate) struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve organizations with agent pools until SIGTERM or Ctrl-C.
    Serve(Serve),
    /// Queue, list and cancel jobs.
    Jobs {
        #[command(flatten)]
        target: Target,
        #[command(subcommand)]
        command: Jobs,
    },
    /// List the agents of a pool.
    Agents {
        #[command(flatten)]
        target: Target,
    },
    /// Make things go wrong.
    Faults {
        #[command(flatten)]
        server: Server,
        #[command(subcommand)]
        command: Faults,
    },
    /// Show how many requests came, by identity and operation.
    Requests {
        #[command(flatten)]
        server: Server,
        /// Only those to this organization.
        #[arg(long, env = "AZURE_DEVOPS_SIMULATOR_ORGANIZATION")]
        organization: Option<String>,
        /// Show the latest requests one by one instead.
        #[arg(long, env = "AZURE_DEVOPS_SIMULATOR_LOG")]
        log: bool,
        /// Forget all requests afterwards.
        #[arg(long, env = "AZURE_DEVOPS_SIMULATOR_RESET")]
        reset: bool,
    },
    /// Be a simulated agent: takes the `AZP_*` variables of the documented start script.
    Agent(AgentArgs),
}

#[derive(Debug, Args)]
struct Serve {
    /// Address to listen on; port 0 picks a free one.
    #[arg(
        long,
        env = "AZURE_DEVOPS_SIMULATOR_LISTEN",
        default_value = "127.0.0.1:8080"
    )]
    listen: SocketAddr,
    /// Organizations (or collections) to start with.
    #[arg(
        long,
        env = "AZURE_DEVOPS_SIMULATOR_ORGANIZATION",
        value_delimiter = ',',
        default_value = "demo"
    )]
    organization: Vec<String>,
    /// Agent pools of each organization.
    #[arg(
        long,
        env = "AZURE_DEVOPS_SIMULATOR_POOL",
        value_delimiter = ',',
        default_value = "Default"
    )]
    pool: Vec<String>,
    /// Personal access token with all rights, for each organization; made up and printed if
    /// absent.
    #[arg(long, env = "AZURE_DEVOPS_SIMULATOR_PAT", hide_env_values = true)]
    pat: Option<String>,
    /// Seed of ids, tokens and dice.
    #[arg(long, env = "AZURE_DEVOPS_SIMULATOR_SEED", default_value_t = 1)]
    seed: u64,
    /// Behaviours that differ from the defaults, as a JSON object; names as `GET
    /// /_simulator/switches` shows them.
    #[arg(long, env = "AZURE_DEVOPS_SIMULATOR_SWITCHES", default_value = "{}", value_parser = parse_switches)]
    switches: Switches,
    /// Limit each identity as the service does: 200 units in five minutes.
    #[arg(long, env = "AZURE_DEVOPS_SIMULATOR_RATE_LIMIT")]
    rate_limit: bool,
}

#[derive(Clone, Debug, Args)]
struct Server {
    /// Where the simulator serves.
    #[arg(
        long,
        env = "AZURE_DEVOPS_SIMULATOR_URL",
        default_value = "http://127.0.0.1:8080"
    )]
    url: Url,
}

#[derive(Clone, Debug, Args)]
struct Target {
    #[command(flatten)]
    server: Server,
    /// The organization.
    #[arg(
        long,
        env = "AZURE_DEVOPS_SIMULATOR_ORGANIZATION",
        default_value = "demo"
    )]
    organization: String,
    /// The agent pool.
    #[arg(long, env = "AZURE_DEVOPS_SIMULATOR_POOL", default_value = "Default")]
    pool: String,
}

#[derive(Debug, Subcommand)]
enum Jobs {
    /// Queue jobs and print their request ids.
    Queue {
        /// How many.
        #[arg(long, env = "AZURE_DEVOPS_SIMULATOR_COUNT", default_value_t = 1)]
        count: usize,
        /// Their name.
        #[arg(long, env = "AZURE_DEVOPS_SIMULATOR_NAME", default_value = "job")]
        name: String,
        /// A demand as a pipeline writes it; may be repeated.
        #[arg(
            long = "demand",
            env = "AZURE_DEVOPS_SIMULATOR_DEMAND",
            value_delimiter = ','
        )]
        demands: Vec<String>,
        /// How long each runs.
        #[arg(long, env = "AZURE_DEVOPS_SIMULATOR_DURATION", default_value = "10s", value_parser = parse_duration)]
        duration: Duration,
        /// How each ends.
        #[arg(long, env = "AZURE_DEVOPS_SIMULATOR_RESULT", value_enum, default_value_t = CliResult::Succeeded)]
        result: CliResult,
    },
    /// List all jobs of the pool.
    List {
        /// As JSON.
        #[arg(long, env = "AZURE_DEVOPS_SIMULATOR_JSON")]
        json: bool,
    },
    /// Cancel a job as a user would.
    Cancel {
        /// Request id.
        id: i64,
    },
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum CliResult {
    Succeeded,
    SucceededWithIssues,
    Failed,
}

#[derive(Debug, Subcommand)]
enum Faults {
    /// Add a fault.
    Add {
        #[command(flatten)]
        filter: FaultFilter,
        #[command(subcommand)]
        kind: Kind,
    },
    /// List the faults in force, as JSON.
    List,
    /// End all faults.
    Clear,
}

#[derive(Debug, Args)]
struct FaultFilter {
    /// How likely each request is hit.
    #[arg(
        long,
        env = "AZURE_DEVOPS_SIMULATOR_PROBABILITY",
        default_value_t = 1.0,
        global = true
    )]
    probability: f64,
    /// How long the fault lasts; until cleared if absent.
    #[arg(long, env = "AZURE_DEVOPS_SIMULATOR_LASTS", value_parser = parse_duration, global = true)]
    lasts: Option<Duration>,
    /// Only this operation (`Agents.List`) or, ending in a dot, these (`Agents.`).
    #[arg(long, env = "AZURE_DEVOPS_SIMULATOR_OPERATION", global = true)]
    operation: Option<String>,
    /// Only requests to this organization.
    #[arg(long, env = "AZURE_DEVOPS_SIMULATOR_FAULT_ORGANIZATION", global = true)]
    organization: Option<String>,
    /// Only requests of this identity, as `requests` shows it.
    #[arg(long, env = "AZURE_DEVOPS_SIMULATOR_IDENTITY", global = true)]
    identity: Option<String>,
}

#[derive(Debug, Subcommand)]
enum Kind {
    /// Replies come late.
    Latency {
        /// How late, such as `500ms`.
        #[arg(value_parser = parse_duration)]
        delay: Duration,
    },
    /// A 5xx instead of service.
    ServerError {
        /// The status.
        #[arg(default_value_t = 503, value_parser = clap::value_parser!(u16).range(500..600))]
        status: u16,
    },
    /// 429 instead of service.
    TooManyRequests {
        /// `Retry-After` in seconds.
        #[arg(default_value_t = 5)]
        retry_after: u64,
    },
    /// `Retry-After` on served requests.
    RetryAfter {
        /// Seconds.
        #[arg(default_value_t = 5)]
        retry_after: u64,
    },
    /// 203 with a sign-in page.
    SignInPage,
    /// 401.
    Unauthorized,
    /// Half of the JSON.
    TruncatedBody,
    /// No service, connection closed.
    DroppedConnection,
    /// Lists are empty, with status 200.
    EmptyList,
    /// Reads show an old state.
    StaleRead {
        /// How old, such as `10s`.
        #[arg(value_parser = parse_duration)]
        age: Duration,
    },
    /// Writes take effect, but the connection is closed without a reply.
    LostReply,
}

#[derive(Debug, Args)]
struct AgentArgs {
    /// End after one job.
    #[arg(long, env = "SIMULATED_AGENT_ONCE")]
    once: bool,
    /// A capability that the image's tools give, as NAME=VALUE; may be repeated.
    #[arg(long = "tool", env = "SIMULATED_AGENT_TOOLS", value_delimiter = ',')]
    tools: Vec<String>,
    /// Pauses as the real agent has them, or shorter ones.
    #[arg(long, env = "SIMULATED_AGENT_PACE", value_enum, default_value_t = CliPace::Real)]
    pace: CliPace,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum CliPace {
    Real,
    Fast,
}

impl Cli {
    pub(crate) async fn run(self) -> Result<ExitCode> {
        match self.command {
            Command::Serve(serve) => serve.run().await?,
            Command::Jobs { target, command } => jobs(target, command).await?,
            Command::Agents { target } => agents(target).await?,
            Command::Faults { server, command } => faults(server, command).await?,
            Command::Requests {
                server,
                organization,
                log,
                reset,
            } => {
                let control = Control::new(server.url);
                if log {
                    for entry in control.request_log().await? {
                        print(format_args!(
                            "{} {} {:<14} {:<24} {:<6} {}",
                            entry.time,
                            entry.status,
                            entry.identity,
                            entry.operation,
                            entry.method,
                            entry.path
                        ))?;
                    }
                } else {
                    let counts = control.requests(organization.as_deref()).await?;
                    for (identity, operations) in counts.by_identity {
                        for (operation, count) in operations {
                            print(format_args!("{identity:<20} {operation:<24} {count:>10}"))?;
                        }
                    }
                    print(format_args!(
                        "{:<20} {:<24} {:>10}",
                        "all", "", counts.total
                    ))?;
                }
                if reset {
                    control.reset_requests().await?;
                }
            }
            Command::Agent(args) => return args.run().await,
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl Serve {
    async fn run(self) -> Result<()> {
        let Self {
            listen,
            organization,
            pool,
            pat,
            seed,
            switches,
            rate_limit,
        } = self;
        let rate_limit = rate_limit.then(Default::default);
        let settings = Settings {
            seed,
            switches,
            rate_limit,
            ..Settings::default()
        };
        let simulator = Simulator::start_on(listen, settings).await?;
        for organization in &organization {
            let token = simulator.with_world(|world| {
                world.create_organization(organization)?;
                for pool in &pool {
                    world.create_pool(jiff::Timestamp::now(), organization, pool)?;
                }
                world.create_pat(
                    organization,
                    PatSpec {
                        token: pat.clone(),
                        ..PatSpec::default()
                    },
                )
            })?;
            let shown = if pat.is_some() { "as given" } else { &token };
            print(format_args!(
                "AZP_URL={}{organization} AZP_TOKEN={shown}",
                simulator.url()
            ))?;
        }
        stopped().await?;
        simulator.shutdown().await;
        Ok(())
    }
}

async fn jobs(target: Target, command: Jobs) -> Result<()> {
    let Target {
        server,
        organization,
        pool,
    } = target;
    let control = Control::new(server.url);
    match command {
        Jobs::Queue {
            count,
            name,
            demands,
            duration,
            result,
        } => {
            let result = match result {
                CliResult::Succeeded => JobResult::Succeeded,
                CliResult::SucceededWithIssues => JobResult::SucceededWithIssues,
                CliResult::Failed => JobResult::Failed,
            };
            let spec = JobSpec {
                count,
                name,
                demands,
                duration,
                result,
            };
            for id in control.queue_jobs(&organization, &pool, &spec).await? {
                print(format_args!("{id}"))?;
            }
        }
        Jobs::List { json: true } => {
            let jobs = control.jobs(&organization, &pool).await?;
            print(format_args!("{}", serde_json::to_string_pretty(&jobs)?))?;
        }
        Jobs::List { json: false } => {
            for job in control.jobs(&organization, &pool).await? {
                let (outcome, agent) =
                    (format!("{:?}", job.outcome), job.agent.unwrap_or_default());
                let demands = job.demands.join(", ");
                print(format_args!(
                    "{:>8} {outcome:<10} {:<20} {agent:<24} {demands}",
                    job.id, job.name
                ))?;
            }
        }
        Jobs::Cancel { id } => control.cancel_job(&organization, id).await?,
    }
    Ok(())
}

async fn agents(target: Target) -> Result<()> {
    let Target {
        server,
        organization,
        pool,
    } = target;
    for agent in Control::new(server.url)
        .agents(&organization, &pool)
        .await?
    {
        let online = if agent.online { "online" } else { "offline" };
        let enabled = if agent.enabled { "enabled" } else { "disabled" };
        let job = agent
            .assigned_request
            .map_or_else(String::new, |id| format!("job {id}"));
        print(format_args!(
            "{:>8} {online:<8} {enabled:<9} {:<32} {job}",
            agent.id, agent.name
        ))?;
    }
    Ok(())
}

async fn faults(server: Server, command: Faults) -> Result<()> {
    let control = Control::new(server.url);
    match command {
        Faults::Add { filter, kind } => {
            let FaultFilter {
                probability,
                lasts,
                operation,
                organization,
                identity,
            } = filter;
            let kind = match kind {
                Kind::Latency { delay } => FaultKind::Latency { delay },
                Kind::ServerError { status } => FaultKind::ServerError { status },
                Kind::TooManyRequests { retry_after } => FaultKind::TooManyRequests { retry_after },
                Kind::RetryAfter { retry_after } => FaultKind::RetryAfter { retry_after },
                Kind::SignInPage => FaultKind::SignInPage,
                Kind::Unauthorized => FaultKind::Unauthorized,
                Kind::TruncatedBody => FaultKind::TruncatedBody,
                Kind::DroppedConnection => FaultKind::DroppedConnection,
                Kind::EmptyList => FaultKind::EmptyList,
                Kind::StaleRead { age } => FaultKind::StaleRead { age },
                Kind::LostReply => FaultKind::LostReply,
            };
            let fault = Fault {
                kind,
                probability,
                duration: lasts,
                operation,
                organization,
                identity,
            };
            control.add_fault(&fault).await?;
        }
        Faults::List => {
            let faults = control.faults().await?;
            print(format_args!("{}", serde_json::to_string_pretty(&faults)?))?;
        }
        Faults::Clear => control.clear_faults().await?,
    }
    Ok(())
}

impl AgentArgs {
    async fn run(self) -> Result<ExitCode> {
        let pairs = self.tools.iter().map(|tool| match tool.split_once('=') {
            Some((name, value)) => (name.to_owned(), value.to_owned()),
            None => (tool.clone(), format!("/usr/bin/{tool}")),
        });
        let launch = Launch {
            env: std::env::vars_os()
                .filter_map(|(name, value)| {
                    Some((name.into_string().ok()?, value.into_string().ok()?))
                })
                .collect(),
            args: self.once.then(|| "--once".to_owned()).into_iter().collect(),
            tools: pairs.collect::<BTreeMap<_, _>>(),
            host_name: host_name().await,
            pace: match self.pace {
                CliPace::Real => Pace::real(),
                CliPace::Fast => Pace::fast(),
            },
        };
        let mut agent = Agent::spawn(launch);
        // Armed once and kept, so that a second signal finds no hole.
        let mut stopped = std::pin::pin!(stopped());
        let mut stopping = false;
        let code = loop {
            tokio::select! {
                code = agent.wait() => break code,
                result = &mut stopped, if !stopping => {
                    result?;
                    stopping = true;
                }
            }
            agent.terminate();
        };
        Ok(ExitCode::from(u8::try_from(code).unwrap_or(1)))
    }
}

async fn host_name() -> String {
    let name = match std::env::var("HOSTNAME") {
        Ok(name) => name,
        Err(_) => tokio::fs::read_to_string("/etc/hostname")
            .await
            .unwrap_or_default(),
    };
    let name = name.trim();
    if name.is_empty() {
        "localhost".to_owned()
    } else {
        name.to_owned()
    }
}

/// SIGTERM or Ctrl-C.
async fn stopped() -> Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("failed to listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("failed to listen for SIGINT")?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}

fn parse_duration(text: &str) -> Result<Duration> {
    let duration: jiff::SignedDuration = text.parse()?;
    match Duration::try_from(duration) {
        Ok(duration) => Ok(duration),
        Err(_) => bail!("a duration cannot be negative"),
    }
}

fn parse_switches(text: &str) -> Result<Switches> {
    serde_json::from_str(text).context("not an object of known switches")
}

fn print(line: std::fmt::Arguments<'_>) -> Result<()> {
    writeln!(std::io::stdout(), "{line}").context("failed to write to standard output")
}
