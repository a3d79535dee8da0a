//! The command line. Every flag is an environment variable as well.

use std::{io::Write as _, net::SocketAddr, str::FromStr};

use clap::{Args, Parser, Subcommand, ValueEnum};

/// Runs self-hosted Azure Pipelines agents as Pods.
#[derive(Clone, Debug, Parser)]
#[command(name = "azdo-runner-operator", version, about)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What the program can do.
#[derive(Clone, Debug, Subcommand)]
pub enum Command {
    /// Watch RunnerPools and keep the agents that their jobs need, until SIGTERM or SIGINT.
    Run(RunArgs),
    /// Print the CustomResourceDefinition as YAML, for `kubectl apply -f -`.
    Crd,
}

/// Flags of `run`.
#[derive(Clone, Debug, Args)]
pub struct RunArgs {
    /// Namespaces to watch, separated by commas; none: all.
    #[arg(long, env = "WATCH_NAMESPACES", value_delimiter = ',')]
    pub namespaces: Vec<Namespace>,

    /// Address that serves /healthz and /readyz.
    #[arg(long, env = "HEALTH_ADDRESS", default_value = "0.0.0.0:8081")]
    pub health_address: SocketAddr,

    /// How log lines are written.
    #[arg(long, env = "LOG_FORMAT", value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,

    /// What is logged, as directives like `info` or `info,operator=debug`.
    #[arg(long, env = "LOG_LEVEL", default_value = "info")]
    pub log_level: LogLevel,
}

/// How log lines are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// One JSON object a line.
    Json,
    /// For people.
    Text,
}

/// Name of a namespace: a DNS label.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Namespace(String);

impl Namespace {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Namespace {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        let label = !text.is_empty()
            && text.len() <= 63
            && text.chars().all(inner)
            && !text.starts_with('-')
            && !text.ends_with('-');
        if label {
            Ok(Self(text.to_owned()))
        } else {
            Err("a namespace is a DNS label: lower-case letters, digits and dashes, at most 63; separate several by commas".into())
        }
    }
}

/// Log directives that are known to be valid.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogLevel(String);

impl LogLevel {
    /// The directives.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for LogLevel {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        tracing_subscriber::EnvFilter::try_new(text)
            .map(|_| Self(text.to_owned()))
            .map_err(|error| format!("{error}; write it like info or info,operator=debug"))
    }
}

/// Prints the CustomResourceDefinition.
pub fn print_crd() -> anyhow::Result<()> {
    let yaml = serde_saphyr::to_string(&api::crd())?;
    std::io::stdout().write_all(yaml.as_bytes())?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_flag_of_run_is_an_environment_variable() {
        let command = Cli::command();
        let run = command.find_subcommand("run").expect("the command exists");
        for flag in run.get_arguments().filter(|flag| flag.get_id() != "help") {
            assert!(
                flag.get_env().is_some(),
                "{} has no environment variable",
                flag.get_id()
            );
        }
    }

    #[test]
    fn nonsense_is_refused_with_a_remedy() {
        for args in [
            ["--namespaces", "A"],
            ["--namespaces", "a,,b"],
            ["--log-level", "a=b=c"],
            ["--health-address", "8081"],
        ] {
            let error =
                Cli::try_parse_from(["azdo-runner-operator", "run"].into_iter().chain(args))
                    .expect_err(args[1]);
            assert!(error.to_string().contains(args[0]), "{error}");
        }
    }
}
