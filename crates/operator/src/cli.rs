//! The command line. Every flag is an environment variable as well.

use std::{io::Write as _, net::SocketAddr, path::PathBuf, str::FromStr};

use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum};
use rustls::pki_types::ServerName;

use crate::{
    lease::{self, Election, Times},
    telemetry,
    webhook::{CertificateSource, OwnCertificates, certificate::Lifetimes},
};

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
    Run(Box<RunArgs>),
    /// Print the CustomResourceDefinition as YAML, for `kubectl apply -f -`.
    Crd,
}

/// Flags of `run`.
#[derive(Clone, Debug, Args)]
pub struct RunArgs {
    /// Namespaces to watch, separated by commas; none: all.
    #[arg(long, env = "WATCH_NAMESPACES", value_delimiter = ',')]
    pub namespaces: Vec<Namespace>,

    /// Address that serves /healthz, /readyz and /metrics.
    #[arg(long, env = "HEALTH_ADDRESS", default_value = "0.0.0.0:8081")]
    pub health_address: SocketAddr,

    /// Who acts, where several replicas run.
    #[command(flatten)]
    pub election: ElectionArgs,

    /// The admission webhooks.
    #[command(flatten)]
    pub webhooks: WebhookArgs,

    /// How log lines are written.
    #[arg(long, env = "LOG_FORMAT", value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,

    /// What is logged, as directives like `info` or `info,operator=debug`.
    #[arg(long, env = "LOG_LEVEL", default_value = "info")]
    pub log_level: LogLevel,
}

/// Flags of the election of a leader.
#[derive(Clone, Debug, Args)]
pub struct ElectionArgs {
    /// Act only while holding a Lease, so that several replicas can run and one takes over from another. With `false` it
    /// acts at once, and there must never be a second one.
    #[arg(long, env = "LEADER_ELECTION", action = ArgAction::Set, default_value_t = true)]
    pub leader_election: bool,

    /// Namespace of the Lease; absent: the operator's own, which is that of the Pod (`POD_NAMESPACE`, or its service
    /// account's), or of the kubeconfig's context.
    #[arg(long, env = "LEASE_NAMESPACE")]
    pub lease_namespace: Option<Namespace>,

    /// Name of the Lease. Replicas with the same one take turns; it must differ between operators that watch different
    /// namespaces.
    #[arg(long, env = "LEASE_NAME", default_value = api::names::OPERATOR)]
    pub lease_name: ObjectName,

    /// Seconds after which the others take the place of a leader that does not renew the Lease: how long nobody acts
    /// after a crash. A leader that stops in order releases the Lease, and nobody waits.
    ///
    /// Short, as a change of hands costs little: nothing is kept in memory that is not read again. Raise it, with the
    /// deadline, where the API server is often silent for longer.
    #[arg(long, env = "LEASE_DURATION_SECONDS", value_name = "SECONDS", default_value_t = 4,
        value_parser = clap::value_parser!(u16).range(1..=3600))]
    pub lease_duration_seconds: u16,

    /// Seconds after which a leader that could not renew the Lease stops, counted from before its last renewal; less than
    /// the duration, so that it has stopped before another starts.
    ///
    /// Three by default, for two more attempts after one that failed.
    #[arg(long, env = "LEASE_RENEW_DEADLINE_SECONDS", value_name = "SECONDS", default_value_t = 3,
        value_parser = clap::value_parser!(u16).range(1..=3600))]
    pub lease_renew_deadline_seconds: u16,

    /// Seconds between two renewals of the Lease; less than the deadline. Each is one small write.
    #[arg(long, env = "LEASE_RENEW_SECONDS", value_name = "SECONDS", default_value_t = 1,
        value_parser = clap::value_parser!(u16).range(1..=3600))]
    pub lease_renew_seconds: u16,
}

impl ElectionArgs {
    /// The election to take part in, if any; `namespace`: the operator's own.
    pub fn resolve(self, namespace: &str) -> anyhow::Result<Option<Election>> {
        let Self {
            leader_election,
            lease_namespace,
            lease_name,
            lease_duration_seconds,
            lease_renew_deadline_seconds,
            lease_renew_seconds,
        } = self;
        let times = Times::new(
            lease_duration_seconds,
            lease_renew_deadline_seconds,
            lease_renew_seconds,
        );
        let times = times.map_err(|reason| {
            anyhow::anyhow!(
                "--lease-duration-seconds, --lease-renew-deadline-seconds, --lease-renew-seconds: {reason}"
            )
        })?;
        let named = lease_namespace.map(|namespace| namespace.0);
        Ok(leader_election.then(|| Election {
            namespace: named.unwrap_or_else(|| namespace.to_owned()),
            name: lease_name.0,
            identity: lease::identity(),
            times,
        }))
    }
}

/// Flags of the admission webhooks.
#[derive(Clone, Debug, Args)]
pub struct WebhookArgs {
    /// Address that serves the admission webhooks over TLS. They are served if there is a certificate for them: from a
    /// folder, or the operator's own.
    #[arg(long, env = "WEBHOOK_ADDRESS", default_value = "0.0.0.0:9443")]
    pub webhook_address: SocketAddr,

    /// Folder with the certificate of the webhooks (`tls.crt`) and its key (`tls.key`), as a Secret is mounted; read again
    /// when they change.
    #[arg(
        long,
        env = "WEBHOOK_CERTIFICATE_DIR",
        value_name = "FOLDER",
        conflicts_with = "webhook_secret"
    )]
    pub webhook_certificate_dir: Option<PathBuf>,

    /// Secret of the operator's own namespace for certificates that the operator makes. It has to exist, and may be empty.
    #[arg(long, env = "WEBHOOK_SECRET", value_name = "NAME", requires_all = ["webhook_host", "webhook_configuration"])]
    pub webhook_secret: Option<ObjectName>,

    /// DNS name, like `my-service.my-namespace.svc`, or IP address at which the API server finds the webhooks: what the
    /// operator's own certificate is for.
    #[arg(
        long,
        env = "WEBHOOK_HOST",
        value_name = "HOST",
        requires = "webhook_secret"
    )]
    pub webhook_host: Option<Host>,

    /// Name of the `MutatingWebhookConfiguration` and of the `ValidatingWebhookConfiguration` that are to trust the operator's
    /// own certificate.
    #[arg(
        long,
        env = "WEBHOOK_CONFIGURATION",
        value_name = "NAME",
        requires = "webhook_secret"
    )]
    pub webhook_configuration: Option<ObjectName>,
}

impl WebhookArgs {
    /// Where the webhooks are served, if they are, and where their certificate comes from; `namespace`: the operator's own.
    pub fn resolve(self, namespace: &str) -> Option<(SocketAddr, CertificateSource)> {
        let Self {
            webhook_address,
            webhook_certificate_dir,
            webhook_secret,
            webhook_host,
            webhook_configuration,
        } = self;
        let own = || {
            Some(OwnCertificates {
                namespace: namespace.to_owned(),
                secret: webhook_secret?.0,
                configuration: webhook_configuration?.0,
                host: webhook_host?.0,
                lifetimes: Lifetimes::default(),
            })
        };
        let source = match webhook_certificate_dir {
            Some(folder) => CertificateSource::Folder(folder),
            None => CertificateSource::Own(own()?),
        };
        Some((webhook_address, source))
    }
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
        if text.len() <= 63 && is_label(text) {
            Ok(Self(text.to_owned()))
        } else {
            Err("a namespace is a DNS label: lower-case letters, digits and dashes, at most 63; separate several by commas".into())
        }
    }
}

/// Lower-case letters, digits and dashes; these not at the ends.
fn is_label(text: &str) -> bool {
    let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    !text.is_empty() && text.chars().all(inner) && !text.starts_with('-') && !text.ends_with('-')
}

/// Name of an object: a DNS subdomain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectName(String);

impl FromStr for ObjectName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.len() <= 253 && text.split('.').all(is_label) {
            Ok(Self(text.to_owned()))
        } else {
            Err(
                "an object has a DNS name: lower-case letters, digits, dashes and dots, at most 253"
                    .into(),
            )
        }
    }
}

/// Where a server is found: a DNS name or an IP address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host(String);

impl FromStr for Host {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match ServerName::try_from(text) {
            Ok(host) => Ok(Self(host.to_str().into_owned())),
            Err(_) => Err("a host is a DNS name or an IP address, without a port".into()),
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
        telemetry::targets(text)
            .map(|_| Self(text.to_owned()))
            .ok_or_else(|| "write it like info or info,operator=debug; levels are error, warn, info, debug, trace and off".into())
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
            ["--log-level", "inf"],
            ["--log-level", "info,[reconciling]=debug"],
            ["--health-address", "8081"],
            ["--leader-election", "perhaps"],
            ["--lease-namespace", "a.b"],
            ["--lease-name", "a..b"],
            ["--lease-duration-seconds", "0"],
            ["--lease-renew-deadline-seconds", "3601"],
            ["--lease-renew-seconds", "0.5"],
            ["--webhook-address", "9443"],
            ["--webhook-secret", "a/b"],
            ["--webhook-host", "a:443"],
            ["--webhook-configuration", "ns:name"],
        ] {
            let error =
                Cli::try_parse_from(["azdo-runner-operator", "run"].into_iter().chain(args))
                    .expect_err(args[1]);
            assert!(error.to_string().contains(args[0]), "{error}");
        }
    }

    #[test]
    fn webhooks_are_served_if_there_is_a_certificate_from_one_place() {
        let resolve = |flags: &[&str]| {
            let args = ["azdo-runner-operator", "run"];
            let args = Cli::try_parse_from(args.iter().chain(flags))?;
            let Command::Run(args) = args.command else {
                unreachable!("it is `run`");
            };
            let webhooks = args.webhooks.resolve("here");
            Ok::<_, clap::Error>(webhooks.map(|(_, source)| source))
        };
        let own = [
            "--webhook-secret=s",
            "--webhook-host=a.b.svc",
            "--webhook-configuration=c.d",
        ];
        let folder = ["--webhook-certificate-dir=/certificates"];
        assert!(matches!(resolve(&[]), Ok(None)));
        assert!(matches!(
            resolve(&folder),
            Ok(Some(CertificateSource::Folder(_)))
        ));
        let Ok(Some(CertificateSource::Own(made))) = resolve(&own) else {
            unreachable!("it is the operator's own");
        };
        assert_eq!(
            (made.namespace.as_str(), made.host.as_str()),
            ("here", "a.b.svc")
        );
        for (flags, said) in [
            (&own[..2], "--webhook-configuration"),
            (&own[1..], "--webhook-secret"),
            (&[&own[..], &folder].concat(), "cannot be used with"),
        ] {
            let error = resolve(flags).expect_err(said).to_string();
            assert!(error.contains(said), "{error}");
        }
    }

    #[test]
    fn times_of_the_lease_must_go_together() {
        let resolve = |deadline: &str| {
            let args = [
                "azdo-runner-operator",
                "run",
                "--lease-renew-deadline-seconds",
                deadline,
            ];
            let Command::Run(args) = Cli::try_parse_from(args)
                .expect("each by itself is valid")
                .command
            else {
                unreachable!("it is `run`");
            };
            args.election.resolve("here")
        };
        let election = resolve("2")
            .expect("they go together")
            .expect("on by default");
        assert_eq!(election.name, "azdo-runner-operator");
        let error = resolve("4").expect_err("as long as the duration");
        assert!(
            error.to_string().contains("--lease-duration-seconds"),
            "{error}"
        );
    }
}
