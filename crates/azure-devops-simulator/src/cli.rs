//! Commands and flags. Every flag is an environment variable as well.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context as _, Result, bail};
use azure_devops_simulator::Switches;
use clap::{Args, Parser, Subcommand, ValueEnum};
use url::Url;

/// A stand-in for the agent-pool side of Azure DevOps, and for the agents that talk to it.
#[derive(Debug, Parser)]
#[command(version)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
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
pub(crate) struct Serve {
    /// Address to listen on; port 0 picks a free one.
    #[arg(
        long,
        env = "AZURE_DEVOPS_SIMULATOR_LISTEN",
        default_value = "127.0.0.1:8080"
    )]
    pub(crate) listen: SocketAddr,
    /// Organizations (or collections) to start with.
    #[arg(
        long,
        env = "AZURE_DEVOPS_SIMULATOR_ORGANIZATION",
        value_delimiter = ',',
        default_value = "demo"
    )]
    pub(crate) organization: Vec<String>,
    /// Agent pools of each organization.
    #[arg(
        long,
        env = "AZURE_DEVOPS_SIMULATOR_POOL",
        value_delimiter = ',',
        default_value = "Default"
    )]
    pub(crate) pool: Vec<String>,
    /// Personal access token with all rights, for each organization; made up and printed if
    /// absent.
    #[arg(long, env = "AZURE_DEVOPS_SIMULATOR_PAT", hide_env_values = true)]
    pub(crate) pat: Option<String>,
    /// Seed of ids, tokens and dice.
    #[arg(long, env = "AZURE_DEVOPS_SIMULATOR_SEED", default_value_t = 1)]
    pub(crate) seed: u64,
    /// Behaviours that differ from the defaults, as a JSON object; names as `GET
    /// /_simulator/switches` shows them.
    #[arg(long, env = "AZURE_DEVOPS_SIMULATOR_SWITCHES", default_value = "{}", value_parser = parse_switches)]
    pub(crate) switches: Switches,
    /// Limit each identity as the service does: 200 units in five minutes.
    #[arg(long, env = "AZURE_DEVOPS_SIMULATOR_RATE_LIMIT")]
    pub(crate) rate_limit: bool,
}

#[derive(Clone, Debug, Args)]
pub(crate) struct Server {
    /// Where the simulator serves.
    #[arg(
        long,
        env = "AZURE_DEVOPS_SIMULATOR_URL",
        default_value = "http://127.0.0.1:8080"
    )]
    pub(crate) url: Url,
}

#[derive(Clone, Debug, Args)]
pub(crate) struct Target {
    #[command(flatten)]
    pub(crate) server: Server,
    /// The organization.
    #[arg(
        long,
        env = "AZURE_DEVOPS_SIMULATOR_ORGANIZATION",
        default_value = "demo"
    )]
    pub(crate) organization: String,
    /// The agent pool.
    #[arg(long, env = "AZURE_DEVOPS_SIMULATOR_POOL", default_value = "Default")]
    pub(crate) pool: String,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Jobs {
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
pub(crate) enum CliResult {
    Succeeded,
    SucceededWithIssues,
    Failed,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Faults {
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
pub(crate) struct FaultFilter {
    /// How likely each request is hit.
    #[arg(
        long,
        env = "AZURE_DEVOPS_SIMULATOR_PROBABILITY",
        default_value_t = 1.0,
        global = true
    )]
    pub(crate) probability: f64,
    /// How long the fault lasts; until cleared if absent.
    #[arg(long, env = "AZURE_DEVOPS_SIMULATOR_LASTS", value_parser = parse_duration, global = true)]
    pub(crate) lasts: Option<Duration>,
    /// Only this operation (`Agents.List`) or, ending in a dot, these (`Agents.`).
    #[arg(long, env = "AZURE_DEVOPS_SIMULATOR_OPERATION", global = true)]
    pub(crate) operation: Option<String>,
    /// Only requests to this organization.
    #[arg(long, env = "AZURE_DEVOPS_SIMULATOR_FAULT_ORGANIZATION", global = true)]
    pub(crate) organization: Option<String>,
    /// Only requests of this identity, as `requests` shows it.
    #[arg(long, env = "AZURE_DEVOPS_SIMULATOR_IDENTITY", global = true)]
    pub(crate) identity: Option<String>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Kind {
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
pub(crate) struct AgentArgs {
    /// End after one job.
    #[arg(long, env = "SIMULATED_AGENT_ONCE")]
    pub(crate) once: bool,
    /// A capability that the image's tools give, as NAME=VALUE; may be repeated.
    #[arg(long = "tool", env = "SIMULATED_AGENT_TOOLS", value_delimiter = ',')]
    pub(crate) tools: Vec<String>,
    /// Pauses as the real agent has them, or shorter ones.
    #[arg(long, env = "SIMULATED_AGENT_PACE", value_enum, default_value_t = CliPace::Real)]
    pub(crate) pace: CliPace,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum CliPace {
    Real,
    Fast,
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
