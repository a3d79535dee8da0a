//! One program under several names: `Agent.Listener` and `Agent.Worker` in a package, and under its own name the maker of
//! packages.

use std::{
    env,
    io::Write as _,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context as _, Result, bail};
use stand_in_agent::{archive, listener, worker};

fn main() -> Result<ExitCode> {
    let mut arguments = env::args_os();
    let called = PathBuf::from(arguments.next().context("a program has a name")?);
    let arguments: Vec<String> = arguments
        .map(|argument| argument.to_string_lossy().into_owned())
        .collect();
    match called.file_name().and_then(|name| name.to_str()) {
        Some("Agent.Listener") => {
            let code = listener::main(&root(&called)?, &arguments)?;
            Ok(ExitCode::from(code))
        }
        Some("Agent.Worker") => Ok(ExitCode::from(worker::main()?)),
        _ => {
            let [command, file] = arguments.as_slice() else {
                bail!("usage: stand-in-agent archive FILE.tar.gz")
            };
            if command != "archive" {
                bail!("the only command is archive, not {command}");
            }
            archive(Path::new(file), &env::current_exe()?)?;
            writeln!(std::io::stdout(), "{file}")?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// The agent's folder, where `bin` lies that the program was called in. Links of the program itself do not count: where
/// several packages share it, each has a folder of its own.
fn root(called: &Path) -> Result<PathBuf> {
    let bin = called
        .parent()
        .context("the program was called by name, not by path")?;
    let bin = bin.canonicalize().context("failed to find bin")?;
    Ok(bin.parent().context("bin lies in no folder")?.to_owned())
}
