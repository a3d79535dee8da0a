//! What each command does. Everything that it does to a simulator goes through the control API.

use std::{collections::BTreeMap, io::Write as _, process::ExitCode};

use anyhow::{Context as _, Result};
use azure_devops_simulator::{
    Control, Fault, FaultKind, JobResult, JobSpec, PatSpec, Settings, Simulator,
    agent::{Agent, Launch, Pace},
};
use tokio::signal::unix::{SignalKind, signal};

use crate::cli::{
    AgentArgs, Cli, CliPace, CliResult, Command, FaultFilter, Faults, Jobs, Kind, Serve, Server,
    Target,
};

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

fn print(line: std::fmt::Arguments<'_>) -> Result<()> {
    writeln!(std::io::stdout(), "{line}").context("failed to write to standard output")
}
