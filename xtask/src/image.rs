//! Builds the images, with whichever of docker, podman and buildah is there, and writes them as archives that
//! `ctr images import` and `docker load` take. It never pushes, and reaches a registry only for a base that is not here.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
    time::Instant,
};

use anyhow::{Context as _, Result, bail, ensure};

use crate::{output, repository};

/// The largest operator's image, compressed: what a node has to fetch before the operator can come up on it.
const LARGEST_OPERATOR: u64 = 15 << 20;

/// The variants of the agent's image.
const VARIANTS: [&str; 4] = ["base", "java", "dotnet", "nodejs"];

/// What to build.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    /// Build this variant of the agent's image instead of the operator's image.
    #[arg(long, value_parser = VARIANTS)]
    agent: Option<String>,
    /// Base of the agent's image, if not that of its Dockerfile.
    #[arg(long, requires = "agent")]
    base: Option<String>,
    /// An agent's package (.tar.gz) to use instead of Microsoft's.
    #[arg(long, requires = "agent", conflicts_with = "stand_in")]
    package: Option<PathBuf>,
    /// Use a package whose agent is a simulated one.
    #[arg(long, requires = "agent")]
    stand_in: bool,
    /// Name and tag of the image.
    #[arg(long)]
    tag: Option<String>,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let begin = Instant::now();
    let engine = Engine::find()?;
    let folder = repository::target()?.join("images");
    let (context, tag, arguments) = match &args.agent {
        Some(variant) => agent(args, variant, &folder)?,
        None => operator(args, &folder)?,
    };
    run_command(engine.build(&context, &tag, &arguments))?;
    let archive = context.with_extension("tar");
    engine.save(&tag, &archive)?;
    let (whole, compressed) = (fs::metadata(&archive)?.len(), compressed(&archive)?);
    output::line(format_args!(
        "{tag}: {} compressed, {} whole, built with {} in {}\n{}",
        mebibytes(compressed),
        mebibytes(whole),
        engine.program(),
        output::duration(begin.elapsed()),
        archive.display()
    ));
    ensure!(
        args.agent.is_some() || compressed <= LARGEST_OPERATOR,
        "the operator's image is larger than {}",
        mebibytes(LARGEST_OPERATOR)
    );
    Ok(ExitCode::SUCCESS)
}

/// The folder that the image is built from, its name, and its build arguments.
type Plan = (PathBuf, String, Vec<(&'static str, String)>);

fn operator(args: &Args, folder: &Path) -> Result<Plan> {
    let triple = format!("{}-unknown-linux-gnu", env::consts::ARCH);
    // Static, since the image has no C library. The C runtime in it finds names through files and DNS alone, which is what
    // containers have.
    let arguments = [
        "build",
        "--release",
        "--locked",
        "--package",
        "operator",
        "--target",
        &triple,
    ];
    let mut build = repository::cargo(&arguments);
    build.env("RUSTFLAGS", "-C target-feature=+crt-static");
    run_command(build)?;
    let context = folder.join("operator");
    fresh(&context)?;
    let binary = repository::target()?
        .join(&triple)
        .join("release/azdo-runner-operator");
    copy(&binary, &context.join("azdo-runner-operator"))?;
    copy(&certificates()?, &context.join("ca-certificates.crt"))?;
    let dockerfile = repository::root().join("images/operator/Dockerfile");
    copy(&dockerfile, &context.join("Dockerfile"))?;
    let tag = "azdo-runner-operator:latest".to_owned();
    Ok((context, args.tag.clone().unwrap_or(tag), labels()))
}

fn agent(args: &Args, variant: &str, folder: &Path) -> Result<Plan> {
    let context = folder.join("agent");
    fresh(&context)?;
    let source = repository::root().join("images/agent");
    run_command({
        let mut copy = Command::new("cp");
        copy.arg("-R").arg(source.join(".")).arg(&context);
        copy
    })?;
    let mut arguments = labels();
    arguments.push(("RUNTIME_TYPE", variant.to_owned()));
    if let Some(base) = &args.base {
        arguments.push(("BASE", base.clone()));
    }
    let package = context.join("package/given.tar.gz");
    if args.stand_in {
        let program = "run --quiet --package stand-in-agent -- archive";
        let mut make = repository::cargo(&program.split(' ').collect::<Vec<_>>());
        make.arg(&package).stdout(Stdio::null());
        run_command(make)?;
    } else if let Some(given) = &args.package {
        copy(given, &package)?;
    }
    if package.exists() {
        let sum = repository::output(repository::command(
            "sha256sum",
            &[&package.to_string_lossy()],
        ))?;
        let sum = sum.split_whitespace().next().unwrap_or_default();
        arguments.push(("AGENT_PACKAGE", "given.tar.gz".to_owned()));
        arguments.push(("AGENT_SHA256", sum.to_owned()));
    }
    let tag = format!("azdo-runner-operator-agent:{variant}");
    Ok((context, args.tag.clone().unwrap_or(tag), arguments))
}

fn labels() -> Vec<(&'static str, String)> {
    let revision = repository::output(repository::command("git", &["rev-parse", "HEAD"]));
    vec![
        ("VERSION", env!("CARGO_PKG_VERSION").to_owned()),
        (
            "REVISION",
            revision.map_or_else(|_| "unknown".to_owned(), |text| text.trim().to_owned()),
        ),
    ]
}

/// The certificates that this machine trusts, where distributions have them.
fn certificates() -> Result<PathBuf> {
    let places = [
        "/etc/ssl/certs/ca-certificates.crt",
        "/etc/pki/tls/certs/ca-bundle.crt",
        "/etc/ssl/ca-bundle.pem",
    ];
    let found = places.iter().map(PathBuf::from).find(|path| path.exists());
    found.context("this machine has no bundle of certificates: install ca-certificates")
}

/// Whether there is a program that builds images.
pub(crate) fn has_engine() -> bool {
    Engine::find().is_ok()
}

/// A program that builds images.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Engine {
    Docker,
    Podman,
    Buildah,
}

impl Engine {
    /// The one that works here.
    pub(crate) fn find() -> Result<Self> {
        // A client without its service is no engine.
        let works = |program: &str, argument: &str| {
            let mut command = Command::new(program);
            command
                .arg(argument)
                .stdout(Stdio::null())
                .stderr(Stdio::null());
            command.status().is_ok_and(|status| status.success())
        };
        if works("docker", "info") {
            Ok(Self::Docker)
        } else if works("podman", "info") {
            Ok(Self::Podman)
        } else if works("buildah", "--version") {
            Ok(Self::Buildah)
        } else {
            bail!("none of docker, podman and buildah works here")
        }
    }

    fn program(self) -> &'static str {
        match self {
            Self::Docker => "docker",
            Self::Podman => "podman",
            Self::Buildah => "buildah",
        }
    }

    /// Builds an image from the Dockerfile in a folder.
    pub(crate) fn build(self, context: &Path, tag: &str, arguments: &[(&str, String)]) -> Command {
        let mut command = Command::new(self.program());
        command.args(["build", "--tag", tag]);
        if let Self::Buildah = self {
            command.arg("--layers"); // so that what is built stays for the next time, as with the others
        }
        for (name, value) in arguments {
            command.arg("--build-arg").arg(format!("{name}={value}"));
        }
        command.arg(context);
        command
    }

    /// Writes an image as an archive.
    pub(crate) fn save(self, tag: &str, archive: &Path) -> Result<()> {
        if archive.exists() {
            fs::remove_file(archive).context("cannot remove the former archive")?;
        }
        let mut command = Command::new(self.program());
        if let Self::Buildah = self {
            let target = format!("docker-archive:{}:{tag}", archive.display());
            command.args(["push", "--quiet", tag, &target]);
        } else {
            command.args(["save", "--output"]).arg(archive).arg(tag);
        }
        run_command(command)
    }
}

/// The size after gzip, which is how registries keep layers.
fn compressed(archive: &Path) -> Result<u64> {
    let mut gzip = Command::new("gzip")
        .args(["--stdout", "--"])
        .arg(archive)
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot run gzip")?;
    let mut stdout = gzip.stdout.take().context("gzip has no output")?;
    let size = std::io::copy(&mut stdout, &mut std::io::sink()).context("cannot read from gzip")?;
    ensure!(gzip.wait()?.success(), "gzip failed");
    Ok(size)
}

fn fresh(folder: &Path) -> Result<()> {
    if folder.exists() {
        fs::remove_dir_all(folder).with_context(|| format!("cannot empty {}", folder.display()))?;
    }
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::copy(from, to)
        .map(drop)
        .with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))
}

fn run_command(mut command: Command) -> Result<()> {
    let shown = format!("{command:?}");
    let status = command
        .status()
        .with_context(|| format!("cannot run {shown}"))?;
    ensure!(status.success(), "{shown} failed ({status})");
    Ok(())
}

#[expect(
    clippy::cast_precision_loss,
    reason = "two decimals of a size are shown"
)]
fn mebibytes(bytes: u64) -> String {
    format!("{:.2} MiB", bytes as f64 / f64::from(1 << 20))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;

    /// Their scripts and the Dockerfile are parsed by the linters of `cargo xtask check`.
    #[test]
    fn each_variant_has_a_branch_capabilities_and_a_release() {
        let read = |path: &str| fs::read_to_string(repository::root().join(path)).unwrap();
        let script = read("images/agent/runtimes/install.sh");
        let workflow = read(".github/workflows/release.yaml");
        let matrix = format!("variant: [{}]", VARIANTS.join(", "));
        assert!(workflow.contains(&matrix), "{matrix}");
        for variant in VARIANTS {
            assert!(script.contains(&format!("\n  {variant})")), "{variant}");
            let capabilities = read(&format!("images/agent/runtimes/{variant}.capabilities"));
            let lines = capabilities.lines();
            assert!(
                lines.clone().count() > 0 && lines.clone().all(|line| line.contains('=')),
                "{variant}: {capabilities}"
            );
        }
    }
}
