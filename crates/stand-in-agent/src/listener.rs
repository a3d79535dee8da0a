//! `Agent.Listener`: configures, runs and removes the agent, with the arguments, files and exit codes of the real one.

use std::{
    collections::BTreeMap,
    env, fs,
    io::Write as _,
    path::Path,
    process::{Child, Command, Stdio},
};

use anyhow::{Context as _, Result};
use azure_devops_simulator::agent::{Launch, NotRegistered, Pace, Registered};
use serde_json::{Value, json};
use tokio::signal::unix::{SignalKind, signal};

/// Exit codes of the real agent.
mod exit_code {
    pub(super) const SUCCESS: u8 = 0;
    pub(super) const TERMINATED: u8 = 1;
    pub(super) const UPDATING: u8 = 3;
    pub(super) const ONCE_UPDATING: u8 = 4;
}

/// The version that an update leads to.
const NEXT_VERSION: &str = "999.0.0";
/// What a real agent keeps of its registration.
const FILES: [&str; 2] = [".agent", ".credentials"];

/// Does what the arguments say for the agent in this folder. Gives the exit code.
///
/// # Errors
/// Where files of the agent cannot be read or written.
pub fn main(root: &Path, arguments: &[String]) -> Result<u8> {
    let runtime = tokio::runtime::Runtime::new().context("failed to start a runtime")?;
    let Some((command, rest)) = arguments.split_first() else {
        say("a command is missing: configure, remove or run");
        return Ok(exit_code::TERMINATED);
    };
    let arguments = Arguments::parse(rest);
    runtime.block_on(async {
        match command.as_str() {
            "configure" => configure(root, &arguments).await,
            "remove" => remove(root, &arguments).await,
            "run" => run(root, &arguments).await,
            _ => {
                say(&format!(
                    "Unrecognized command-line input arguments: '{command}'"
                ));
                Ok(exit_code::TERMINATED)
            }
        }
    })
}

/// Flags and values, by name in lower case; values may come from the environment instead.
struct Arguments(BTreeMap<String, String>);

impl Arguments {
    fn parse(arguments: &[String]) -> Self {
        let mut found = BTreeMap::new();
        let mut rest = arguments.iter().peekable();
        while let Some(argument) = rest.next() {
            let Some(name) = argument.strip_prefix("--") else {
                continue;
            };
            let value = rest.next_if(|next| !next.starts_with("--"));
            found.insert(name.to_lowercase(), value.cloned().unwrap_or_default());
        }
        Self(found)
    }

    fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    fn value(&self, name: &str) -> Option<String> {
        let given = self.0.get(name).cloned();
        given
            .or_else(|| env::var(format!("VSTS_AGENT_INPUT_{}", name.to_uppercase())).ok())
            .filter(|value| !value.is_empty())
    }
}

async fn configure(root: &Path, arguments: &Arguments) -> Result<u8> {
    if root.join(".agent").exists() {
        say(
            "Cannot configure the agent because it is already configured. To reconfigure the agent, run './config.sh remove' first.",
        );
        return Ok(exit_code::TERMINATED);
    }
    let mut launch = launch(root, arguments);
    for (argument, variable) in [
        ("url", "AZP_URL"),
        ("pool", "AZP_POOL"),
        ("agent", "AZP_AGENT_NAME"),
        ("work", "AZP_WORK"),
        ("token", "AZP_TOKEN"),
    ] {
        if let Some(value) = arguments.value(argument) {
            launch.env.insert(variable.to_owned(), value);
        }
    }
    // What the start script may have left is not for the agent.
    launch.env.remove("AZP_TOKEN_FILE");
    if let Some(proxy) = arguments.value("proxyurl") {
        fs::write(root.join(".proxy"), proxy).context("failed to write .proxy")?;
        let credentials = json!({
            "username": arguments.value("proxyusername"),
            "password": arguments.value("proxypassword"),
        });
        write(root, ".proxycredentials", &credentials)?;
    }
    say("Connecting to server ...");
    match Registered::register(&launch).await {
        Ok(registered) => {
            let (agent, credentials) = registered.files();
            write(root, FILES[0], &agent)?;
            write(root, FILES[1], &credentials)?;
            say("Successfully added the agent");
            Ok(exit_code::SUCCESS)
        }
        Err(error) => Ok(report(&error)),
    }
}

async fn remove(root: &Path, arguments: &Arguments) -> Result<u8> {
    let Some(registered) = read(root)? else {
        say(
            "Cannot connect to server, because config files are missing. Skipping removing agent from the server.",
        );
        return Ok(exit_code::SUCCESS);
    };
    let token = arguments.value("token").unwrap_or_default();
    if let Err(error) = registered.remove(&token).await {
        return Ok(report(&error));
    }
    for file in FILES {
        fs::remove_file(root.join(file)).with_context(|| format!("failed to remove {file}"))?;
    }
    say("Removing agent from the server: succeeded");
    Ok(exit_code::SUCCESS)
}

async fn run(root: &Path, arguments: &Arguments) -> Result<u8> {
    let Some(registered) = read(root)? else {
        say("Not configured. Run config.sh to configure the agent.");
        return Ok(exit_code::TERMINATED);
    };
    if let Some(code) = update(root, arguments.has("once"))? {
        return Ok(code);
    }
    let mut terminate = signal(SignalKind::terminate()).context("failed to listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("failed to listen for SIGINT")?;
    let mut agent = registered.run(launch(root, arguments));
    let mut working = agent.watch_worker();
    say("Listening for Jobs");
    let mut worker: Option<Child> = None;
    let code = loop {
        tokio::select! {
            code = agent.wait() => break code,
            Ok(()) = working.changed() => {
                let now = *working.borrow_and_update();
                end(worker.take())?;
                if now {
                    worker = Some(start_worker(root)?);
                }
            }
            _ = terminate.recv() => agent.terminate(),
            _ = interrupt.recv() => agent.terminate(),
        }
    };
    end(worker)?;
    say("Exiting...");
    Ok(u8::try_from(code).unwrap_or(exit_code::TERMINATED))
}

fn start_worker(root: &Path) -> Result<Child> {
    say("Running job");
    Command::new(root.join("bin/Agent.Worker"))
        .stdin(Stdio::piped())
        .spawn()
        .context("failed to start the worker")
}

/// Closes the worker's standard input, which ends it, and what it started goes its own way.
fn end(worker: Option<Child>) -> Result<()> {
    if let Some(mut worker) = worker {
        drop(worker.stdin.take());
        worker.wait().context("failed to wait for the worker")?;
        say("Job completed");
    }
    Ok(())
}

/// Leaves an update behind, where one is asked for, and the exit code that says so.
fn update(root: &Path, once: bool) -> Result<Option<u8>> {
    let wanted = env::var(crate::UPDATE).unwrap_or_default();
    let updated = root.join("bin").is_symlink();
    let outcome = match wanted.as_str() {
        "succeed" if !updated => "succeed",
        "endless" => "succeed",
        "failed" => "failed",
        _ => return Ok(None),
    };
    say("Agent update in process");
    for part in ["bin", "externals"] {
        let next = root.join(format!("{part}.{NEXT_VERSION}"));
        if next.exists() {
            continue;
        }
        let status = Command::new("cp")
            .arg("-R")
            .arg(root.join(part))
            .arg(next)
            .status();
        status.context("failed to copy the programs")?;
    }
    Command::new("bash")
        .arg(root.join(format!("bin.{NEXT_VERSION}/update.sh")))
        .arg(std::process::id().to_string())
        .arg(root)
        .args([NEXT_VERSION, outcome])
        .spawn()
        .context("failed to start the update")?;
    Ok(Some(if once {
        exit_code::ONCE_UPDATING
    } else {
        exit_code::UPDATING
    }))
}

/// The environment, and what `.capabilities` adds to it.
fn launch(root: &Path, arguments: &Arguments) -> Launch {
    let capabilities = fs::read_to_string(root.join(".capabilities")).unwrap_or_default();
    let pace = match env::var(crate::PACE) {
        Ok(pace) if pace == "fast" => Pace::fast(),
        _ => Pace::real(),
    };
    Launch {
        env: env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            // Secrets that the real agent takes out of the environment when it has read them.
            .filter(|(name, _)| !name.starts_with("VSTS_AGENT_INPUT_"))
            .collect(),
        args: if arguments.has("once") {
            vec!["--once".to_owned()]
        } else {
            Vec::new()
        },
        tools: capabilities
            .lines()
            .filter_map(|line| line.split_once('='))
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect(),
        host_name: env::var("HOSTNAME").unwrap_or_else(|_| "localhost".to_owned()),
        pace,
    }
}

fn read(root: &Path) -> Result<Option<Registered>> {
    let mut values = [Value::Null, Value::Null];
    for (file, value) in FILES.iter().zip(&mut values) {
        match fs::read(root.join(file)) {
            Ok(text) => {
                *value = serde_json::from_slice(&text)
                    .with_context(|| format!("failed to read {file}"))?;
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).with_context(|| format!("failed to read {file}")),
        }
    }
    let [agent, credentials] = values;
    Ok(Registered::from_files(&agent, &credentials))
}

fn write(root: &Path, file: &str, value: &Value) -> Result<()> {
    fs::write(root.join(file), value.to_string()).with_context(|| format!("failed to write {file}"))
}

fn report(error: &NotRegistered) -> u8 {
    if error.is_unauthorized() {
        say("VS30063: You are not authorized to access the server.");
    } else {
        let mut text = error.to_string();
        let mut source = std::error::Error::source(error);
        while let Some(cause) = source {
            text.push_str(": ");
            text.push_str(&cause.to_string());
            source = cause.source();
        }
        say(&text);
    }
    exit_code::TERMINATED
}

/// Writes a line to standard output. Nobody who listens is no reason to fail.
fn say(text: &str) {
    let _ = writeln!(std::io::stdout(), "{text}");
}
