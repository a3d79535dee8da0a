//! The programs as processes which do not outlive whoever started them, however that ends.
//!
//! A watchdog, a few lines of POSIX shell in a process of its own, reads process ids from a pipe until the pipe closes; then
//! it kills what it was told of and removes the folder. The operating system closes the pipe whatever ends us: a return, a
//! panic, a signal, SIGKILL. So there is no handler to install and nothing to forget, not even for a value in a static,
//! which is never dropped.
//!
//! - A program's own shell reports its process id before it becomes the program and lets go of the pipe, so there is no
//!   moment at which a program runs and the watchdog does not know of it.
//! - Each process leads a process group of its own: a Ctrl-C in the terminal reaches only us, and the watchdog does its work.
//! - Nobody reaps a program before the watchdog has ended, so an id that it kills belongs to no other process. That holds
//!   for a program that was killed and started again, too: what is left of its former process stays until the end.

use std::{
    fs, io,
    io::PipeWriter,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
};

use anyhow::{Context as _, ensure};

/// `$1` is the folder. The hostpath provisioner makes a folder in `/tmp/hostpath_pv` per volume, whatever TMPDIR says; its
/// path is in etcd's files, which hold objects as plain protocol buffers. Killed programs may still finish a write, hence
/// the repeated removal.
const WATCHDOG: &str = r#"
while read -r process; do processes="$processes $process"; done
[ -z "$processes" ] || kill -KILL $processes 2>/dev/null
if [ -d /tmp/hostpath_pv ]; then
  cat "$1"/etcd/member/wal/*.wal "$1"/etcd/member/snap/db 2>/dev/null | LC_ALL=C tr -cs 'a-z0-9/_-' '\n' |
    LC_ALL=C sed -n 's#.*\(/tmp/hostpath_pv/[0-9a-f-]\{36\}\).*#\1#p' | sort -u | xargs rm -rf
  rmdir /tmp/hostpath_pv 2>/dev/null
fi
tries=0
until rm -rf "$1" 2>/dev/null || [ "$tries" -ge 50 ]; do tries=$((tries + 1)); sleep 0.1; done
"#;

/// `$1` is the log, the rest the program and its arguments.
const PROGRAM: &str = r#"log=$1; shift; echo $$; exec "$@" >>"$log" 2>&1"#;

/// Running programs and the folder that holds all their files. Dropping it ends the programs and removes the folder.
#[derive(Debug)]
pub(crate) struct Processes {
    folder: PathBuf,
    /// Closing it is what ends everything; `None` once that is done.
    lifeline: Option<PipeWriter>,
    watchdog: Child,
    programs: Vec<Program>,
    /// Killed or ended, and started again since; not reaped.
    former: Vec<Child>,
}

#[derive(Debug)]
struct Program {
    name: &'static str,
    file: PathBuf,
    arguments: Vec<String>,
    process: Child,
}

impl Processes {
    /// Takes charge of an existing folder.
    pub(crate) fn guard(folder: PathBuf) -> anyhow::Result<Self> {
        let spawn = || -> io::Result<(PipeWriter, Child)> {
            let (reader, writer) = io::pipe()?;
            let watchdog = Command::new("sh")
                .args(["-c", WATCHDOG, "control-plane-watchdog"])
                .arg(&folder)
                .current_dir("/")
                .stdin(reader)
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .process_group(0)
                .spawn()?;
            Ok((writer, watchdog))
        };
        match spawn() {
            Ok((writer, watchdog)) => Ok(Self {
                folder,
                lifeline: Some(writer),
                watchdog,
                programs: Vec::new(),
                former: Vec::new(),
            }),
            Err(error) => {
                let _ = fs::remove_dir_all(&folder); // the error that matters is the other one
                Err(error).context("cannot start the watchdog of the control plane")
            }
        }
    }

    /// Starts a program; its output goes to `{name}.log` in the folder.
    pub(crate) fn spawn(
        &mut self,
        name: &'static str,
        file: &Path,
        arguments: &[String],
    ) -> anyhow::Result<()> {
        let process = self.run(name, file, arguments)?;
        self.programs.push(Program {
            name,
            file: file.to_owned(),
            arguments: arguments.to_vec(),
            process,
        });
        Ok(())
    }

    /// Kills a program. It may take a moment until [`Processes::is_running`] says so.
    pub(crate) fn kill(&mut self, name: &str) -> anyhow::Result<()> {
        self.program(name)?
            .process
            .kill()
            .with_context(|| format!("cannot kill {name}"))
    }

    /// Starts a program anew that has ended, with the same arguments and the same log.
    pub(crate) fn restart(&mut self, name: &'static str) -> anyhow::Result<()> {
        let Program {
            file, arguments, ..
        } = self.program(name)?;
        let (file, arguments) = (file.clone(), arguments.clone());
        let process = self.run(name, &file, &arguments)?;
        let former = std::mem::replace(&mut self.program(name)?.process, process);
        self.former.push(former);
        Ok(())
    }

    /// Whether the program has not ended. It reaps nothing, so the answer is the system's own view of the process.
    pub(crate) fn is_running(&self, name: &str) -> bool {
        self.programs
            .iter()
            .find(|program| program.name == name)
            .is_some_and(|program| !is_zombie(program.process.id()))
    }

    fn program(&mut self, name: &str) -> anyhow::Result<&mut Program> {
        self.programs
            .iter_mut()
            .find(|program| program.name == name)
            .with_context(|| format!("{name} was never started"))
    }

    fn run(&self, name: &'static str, file: &Path, arguments: &[String]) -> anyhow::Result<Child> {
        let lifeline = self
            .lifeline
            .as_ref()
            .context("the control plane is being stopped")?;
        Command::new("sh")
            .args(["-c", PROGRAM, name])
            .arg(self.log(name))
            .arg(file)
            .args(arguments)
            .current_dir(&self.folder)
            .stdin(Stdio::null())
            .stdout(lifeline.try_clone()?)
            .process_group(0)
            .spawn()
            .with_context(|| format!("cannot start {name}"))
    }

    /// Fails if a program has ended. To be called only while starting up, and then followed by a stop: it reaps.
    pub(crate) fn check(&mut self) -> anyhow::Result<()> {
        for program in &mut self.programs {
            if let Some(status) = program.process.try_wait()? {
                let name = program.name;
                return Err(self.ended(name, status));
            }
        }
        Ok(())
    }

    /// The end of each program's log, for the message of an error.
    pub(crate) fn logs(&self) -> String {
        let log =
            |program: &Program| format!("--- {}\n{}", program.name, self.log_end(program.name));
        self.programs.iter().map(log).collect::<Vec<_>>().join("\n")
    }

    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    pub(crate) fn ids(&self) -> Vec<u32> {
        self.programs
            .iter()
            .map(|program| &program.process)
            .chain(&self.former)
            .chain([&self.watchdog])
            .map(Child::id)
            .collect()
    }

    /// Ends everything and waits until it is gone, a fraction of a second.
    pub(crate) fn stop(&mut self) -> anyhow::Result<()> {
        if self.lifeline.take().is_none() {
            return Ok(());
        }
        self.watchdog
            .wait()
            .context("cannot wait for the watchdog of the control plane")?;
        for program in &mut self.programs {
            program
                .process
                .wait()
                .with_context(|| format!("cannot wait for {}", program.name))?;
        }
        for process in &mut self.former {
            process
                .wait()
                .context("cannot wait for a program that was started again")?;
        }
        ensure!(
            !self.folder.exists(),
            "cannot remove {}",
            self.folder.display()
        );
        Ok(())
    }

    fn ended(&self, name: &str, status: ExitStatus) -> anyhow::Error {
        anyhow::anyhow!("{name} ended ({status}):\n{}", self.log_end(name))
    }

    fn log_end(&self, name: &str) -> String {
        /// Enough for a Go program's last words, which are long lines.
        const LINES: usize = 15;
        let log = fs::read(self.log(name)).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(LINES)..].join("\n")
    }

    fn log(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{name}.log"))
    }
}

/// Whether a child of ours has ended, by the state in `/proc/{id}/stat`, which follows the name in brackets (proc(5)).
fn is_zombie(id: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
    let state = stat
        .rsplit_once(") ")
        .and_then(|(_, rest)| rest.chars().next());
    matches!(state, None | Some('Z' | 'X'))
}

impl Drop for Processes {
    fn drop(&mut self) {
        // Whoever wants to know calls `stop`; here there is nobody to tell.
        let _ = self.stop();
    }
}
