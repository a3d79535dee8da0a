//! The commands in the documentation. Stories run these, word for word but for what users replace, so that a command that
//! is wrong fails here; in the end none may be left that nobody ran.

use std::{
    collections::BTreeSet,
    fs,
    sync::{Mutex, PoisonError},
};

use anyhow::{Context as _, Result, bail};

use crate::repository;

/// Where the commands are.
const GUIDES: [&str; 3] = [
    "README.md",
    "docs/migrate-from-original.md",
    "docs/agent-image.md",
];

/// What the commands are of.
const PROGRAMS: [&str; 2] = ["kubectl ", "helm "];

/// Commands that no story runs, and why.
const NOT_RUN: [(&str, &str); 7] = [
    ("kubectl get runnerpools --watch", "it does not end"),
    (
        "kubectl delete pod POD --grace-period=60",
        "it is for a Pod that waits for a job, which it ends",
    ),
    (
        "kubectl delete pod POD --force",
        "it is for a node that is gone, and there is only one",
    ),
    (
        "target/release/azdo-runner-operator crd | kubectl apply --server-side -f -",
        "the program is in an image here, and what it prints is deploy/crd.yaml",
    ),
    ("kubectl exec", NAME),
    ("kubectl patch", NAME),
    ("helm uninstall", NAME),
];
const NAME: &str = "it is the name of a command, for readers";

/// All commands of `kubectl` and `helm` in the guides.
#[derive(Debug)]
pub(super) struct Guides {
    commands: BTreeSet<String>,
    run: Mutex<BTreeSet<String>>,
}

impl Guides {
    /// Reads the guides.
    pub(super) fn read() -> Result<Self> {
        let mut commands = BTreeSet::new();
        for guide in GUIDES {
            let text = fs::read_to_string(repository::root().join(guide))
                .with_context(|| format!("cannot read {guide}"))?;
            commands.extend(commands_in(&text));
        }
        Ok(Self {
            commands,
            run: Mutex::default(),
        })
    }

    /// The command that begins so, or is just this one; it is about to be run.
    pub(super) fn command(&self, begin: &str) -> Result<String> {
        let mut found: Vec<&String> = self.commands.get(begin).into_iter().collect();
        if found.is_empty() {
            let commands = self.commands.iter();
            found = commands.filter(|one| one.starts_with(begin)).collect();
        }
        let [command] = found[..] else {
            bail!(
                "{} commands of the guides begin with {begin:?} instead of one",
                found.len()
            );
        };
        let mut run = self.run.lock().unwrap_or_else(PoisonError::into_inner);
        run.insert(command.clone());
        Ok(command.clone())
    }

    /// How many were run, and those that should have been and were not.
    pub(super) fn run(&self) -> (usize, Vec<&str>) {
        let run = self.run.lock().unwrap_or_else(PoisonError::into_inner);
        let excused = |command: &String| NOT_RUN.iter().any(|(one, _)| one == command);
        let left = self.commands.iter();
        let left = left.filter(|command| !run.contains(*command) && !excused(command));
        (run.len(), left.map(String::as_str).collect())
    }
}

/// The commands in a text in Markdown: lines of shell blocks that have them in it, and code between backticks that begins
/// so. A backslash at the end of a line continues it.
fn commands_in(text: &str) -> Vec<String> {
    let mut commands = Vec::new();
    let (mut block, mut begun, mut prose) = (None, String::new(), String::new());
    for line in text.lines().map(str::trim) {
        if let Some(language) = line.strip_prefix("```") {
            block = block.is_none().then_some(language);
            continue;
        }
        match block {
            None => {
                prose.push_str(line);
                prose.push(if line.is_empty() { '\n' } else { ' ' });
            }
            Some("sh") => {
                if let Some(part) = line.strip_suffix('\\') {
                    begun.push_str(part);
                    continue;
                }
                let command = std::mem::take(&mut begun) + line;
                let mut parts = command.split(['|', ';', '&', '(']).map(str::trim_start);
                if !command.starts_with('#') && parts.any(is_command) {
                    commands.push(command);
                }
            }
            Some(_) => {}
        }
    }
    let paragraphs = prose.lines();
    let code = paragraphs.flat_map(|paragraph| paragraph.split('`').skip(1).step_by(2));
    commands.extend(code.filter(|code| is_command(code)).map(str::to_owned));
    commands
}

fn is_command(text: &str) -> bool {
    PROGRAMS.iter().any(|program| text.starts_with(program))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;

    #[test]
    fn commands_are_taken_from_shell_blocks_and_prose_and_put_together() {
        let text = "`helm list`, and `kubectl get\na`, `kubectl`; an odd `\n\n`cargo kubectl x`\n\n\
            1. Like this:\n\n   ```sh\n   # kubectl why\n   helm install a \\\n     --set b=c\n   cargo x\n   \
            a crd | kubectl apply -f -\n   kubectl get d\n   ```\n\n```yaml\nkubectl e `kubectl f`\n```\n\n`helm g`\n";
        assert_eq!(
            commands_in(text),
            [
                "helm install a --set b=c",
                "a crd | kubectl apply -f -",
                "kubectl get d",
                "helm list",
                "kubectl get a",
                "helm g",
            ]
        );
    }

    #[test]
    fn what_is_not_run_is_in_the_guides() {
        let guides = Guides::read().unwrap();
        assert!(guides.commands.len() > 20, "{:?}", guides.commands);
        for (command, _) in NOT_RUN {
            assert!(guides.commands.contains(command), "{command}");
        }
    }

    #[test]
    fn a_command_is_found_by_a_beginning_that_is_no_other_ones() {
        let guides = Guides::read().unwrap();
        guides.command("helm install ").unwrap();
        guides.command("kubectl ").unwrap_err();
        guides.command("kubectl no-such-command ").unwrap_err();
        let (run, left) = guides.run();
        assert_eq!(run, 1);
        assert!(!left.is_empty() && left.iter().all(|one| !one.starts_with("helm install ")));
    }
}
