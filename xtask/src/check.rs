//! What is checked besides tests: style, lints, documentation, dependencies, the chart, generated files, and the tree
//! itself.

use std::{env, fs, process::Command};

use anyhow::{Result, ensure};

use crate::{
    chart, generate, repository,
    stages::Stages,
    tools::{self, Tool},
};

const CARGO_DENY: Tool = Tool {
    package: "cargo-deny",
    version: "0.20.2",
};

pub(crate) fn run(stages: &mut Stages) {
    stages.command("format", repository::cargo(&["fmt", "--all", "--check"]));
    stages.function("no traces of a machine", traces);
    linters(stages);
    dependencies(stages);
    let clippy = [
        "clippy",
        "--workspace",
        "--all-targets",
        "--quiet",
        "--",
        "--deny",
        "warnings",
    ];
    stages.command("lints", repository::cargo(&clippy));
    // For the whole workspace, as its dependencies are checked already as they are for all of it.
    let naive = [
        "clippy",
        "--workspace",
        "--lib",
        "--features",
        "operator/naive-removal",
        "--quiet",
        "--",
        "--deny",
        "warnings",
    ];
    stages.command("lints, naive removal", repository::cargo(&naive));
    let mut documentation = repository::cargo(&["doc", "--workspace", "--no-deps", "--quiet"]);
    documentation.env("RUSTDOCFLAGS", "--deny warnings");
    stages.command("documentation", documentation);
    stages.function("chart", chart::lint);
    stages.function("generated files", generate::check);
}

/// Checkers of files that no compiler sees. They are skipped where they are not installed, but not where `CI` is set.
fn linters(stages: &mut Stages) {
    let named = |wanted: fn(&str) -> bool| -> Result<Vec<String>> {
        let mut files = repository::files()?;
        files.retain(|path| wanted(path));
        Ok(files)
    };
    let dockerfile = |path: &str| path.rsplit('/').next() == Some("Dockerfile");
    let workflow = |path: &str| path.starts_with(".github/workflows/");
    lint(
        stages,
        "shell scripts",
        &["shellcheck", "--enable=quote-safe-variables"],
        scripts(),
    );
    lint(stages, "Dockerfiles", &["hadolint"], named(dockerfile));
    lint(stages, "workflows", &["actionlint"], named(workflow));
}

fn lint(stages: &mut Stages, name: &'static str, command: &[&str], files: Result<Vec<String>>) {
    let Ok(files) = files else {
        return stages.skip(name, "git cannot list files");
    };
    let Some((program, arguments)) = command.split_first() else {
        return;
    };
    let installed = Command::new(program).arg("--version").output().is_ok();
    if !installed && env::var_os("CI").is_none() {
        return stages.skip(name, &format!("{program} is not installed"));
    }
    let files = files.iter().map(String::as_str);
    let arguments: Vec<&str> = arguments.iter().copied().chain(files).collect();
    stages.command(name, repository::command(program, &arguments));
}

/// The files that a shell runs, by their first line.
fn scripts() -> Result<Vec<String>> {
    let is_script = |path: &String| {
        let start = fs::read(repository::root().join(path)).unwrap_or_default();
        let first = start
            .split(|byte| *byte == b'\n')
            .next()
            .unwrap_or_default();
        first.starts_with(b"#!") && (first.ends_with(b"sh") || first.ends_with(b"bash"))
    };
    Ok(repository::files()?.into_iter().filter(is_script).collect())
}

fn dependencies(stages: &mut Stages) {
    let Ok(program) = CARGO_DENY.path() else {
        return stages.skip("dependencies", "there is no cache folder");
    };
    if tools::is_missing(&program) {
        let installed = match CARGO_DENY.install() {
            Ok(install) => stages.command("cargo-deny, once", install),
            Err(_) => false,
        };
        if !installed {
            return;
        }
    }
    // Advisories are left out: their database is a git repository of its own, and a check must not depend on a network.
    let arguments = ["--all-features", "check", "bans", "licenses", "sources"];
    let mut command = repository::command(&program.to_string_lossy(), &arguments);
    command.env(
        "CARGO",
        env::var_os("CARGO").unwrap_or_else(|| "cargo".into()),
    );
    stages.command("dependencies", command);
}

/// Nothing of the machine that something was written on may be in the tree: the paths of its clone and its home folder, and
/// the hosts of its package registries, where they are not the public ones.
fn traces() -> Result<()> {
    let traces = Traces::of_this_machine();
    let mut found = Vec::new();
    for path in repository::files()? {
        // What is not text has no such traces that one could see.
        let Ok(text) = fs::read_to_string(repository::root().join(&path)) else {
            continue;
        };
        for (number, line) in text.lines().enumerate() {
            if let Some(trace) = traces.in_line(line) {
                found.push(format!("{path}:{}: {trace}", number + 1));
            }
        }
    }
    ensure!(
        found.is_empty(),
        "the tree names things of this machine:\n{}",
        found.join("\n")
    );
    Ok(())
}

#[derive(Debug)]
struct Traces {
    folders: Vec<String>,
    hosts: Vec<String>,
}

/// Hosts that anybody may name.
const PUBLIC_HOSTS: [&str; 9] = [
    "proxy.golang.org",
    "sum.golang.org",
    "pypi.org",
    "files.pythonhosted.org",
    "crates.io",
    "index.crates.io",
    "static.crates.io",
    "static.rust-lang.org",
    "github.com",
];

impl Traces {
    fn of_this_machine() -> Self {
        let home = env::var("HOME").unwrap_or_default();
        let folders = [repository::root().display().to_string(), home.clone()];
        let read = |path: String| fs::read_to_string(path).unwrap_or_default();
        let settings = [
            read(format!("{home}/.cargo/config.toml")),
            read(format!("{home}/.config/pip/pip.conf")),
            read("/etc/pip.conf".to_owned()),
        ];
        let variables = [
            "GOPROXY",
            "GOSUMDB",
            "PIP_INDEX_URL",
            "PIP_EXTRA_INDEX_URL",
            "RUSTUP_DIST_SERVER",
        ];
        let variables = variables.iter().filter_map(|name| env::var(name).ok());
        let hosts = settings
            .into_iter()
            .chain(variables)
            .flat_map(|text| hosts(&text))
            .collect();
        Self {
            folders: folders
                .into_iter()
                .filter(|folder| folder.len() > 1)
                .collect(),
            hosts,
        }
    }

    fn in_line<'a>(&'a self, line: &str) -> Option<&'a str> {
        let folder = self
            .folders
            .iter()
            .find(|folder| names_folder(line, folder));
        folder
            .or_else(|| self.hosts.iter().find(|host| line.contains(host.as_str())))
            .map(String::as_str)
    }
}

/// Whether the line has a path below the folder: not as a part of a longer path, and with something after it.
fn names_folder(line: &str, folder: &str) -> bool {
    line.match_indices(folder).any(|(index, _)| {
        let before = line[..index].chars().next_back();
        let after = &line[index + folder.len()..];
        before.is_none_or(|sign| !sign.is_alphanumeric() && !"._-}/*".contains(sign))
            && after.starts_with('/')
    })
}

/// The hosts of all URLs in a text, public ones apart.
fn hosts(text: &str) -> Vec<String> {
    let mut hosts: Vec<String> = text
        .split("://")
        .skip(1)
        .map(|rest| {
            rest.split(|sign: char| !(sign.is_alphanumeric() || ".-@".contains(sign)))
                .next()
                .unwrap_or_default()
        })
        .map(|host| host.rsplit('@').next().unwrap_or_default().to_owned())
        .filter(|host| host.contains('.') && !PUBLIC_HOSTS.contains(&host.as_str()))
        .collect();
    hosts.sort_unstable();
    hosts.dedup();
    hosts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_named_only_by_paths_below_it() {
        for line in ["/src/a", "see \"/src/b\"", "path=/src/c"] {
            assert!(names_folder(line, "/src"), "{line}");
        }
        for line in [
            "xtask/src/main.rs",
            "./src/a",
            "/srcs/a",
            "{root}/src/a",
            "the folder /src",
        ] {
            assert!(!names_folder(line, "/src"), "{line}");
        }
    }

    #[test]
    fn hosts_of_registries_are_found_and_public_ones_are_not() {
        let text = "index = \"sparse+https://user@mirror.example.org:8443/index/\"\nhttps://index.crates.io/ http://localhost/";
        assert_eq!(hosts(text), ["mirror.example.org"]);
        let traces = Traces {
            folders: vec!["/home/someone".into()],
            hosts: hosts(text),
        };
        assert_eq!(
            traces.in_line("url = https://mirror.example.org/x"),
            Some("mirror.example.org")
        );
        assert_eq!(
            traces.in_line("cd /home/someone/clone"),
            Some("/home/someone")
        );
        assert_eq!(traces.in_line("nothing here"), None);
    }
}
