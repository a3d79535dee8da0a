//! The images, built as users build them, upon a base that is made from packages: no registry is needed.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};

use crate::{image::Engine, output, repository};

/// The operator's image.
pub(super) const OPERATOR: &str = "localhost/azdo-runner-operator";
/// Its tag.
pub(super) const TAG: &str = "e2e";
/// The agent's image, whose agent is the simulated one.
pub(super) const AGENT: &str = "localhost/azdo-runner-operator-agent:e2e";
/// What the agent's image is built upon. It has a shell, and does nothing for as long as it may, so that it serves as
/// image of init containers and of the container that keeps a Pod's namespaces as well.
pub(super) const BASE: &str = "localhost/azdo-runner-operator-base:e2e";

/// Archives of the images.
#[derive(Clone, Debug)]
pub(super) struct Images {
    pub(super) operator: PathBuf,
    pub(super) agent: PathBuf,
    pub(super) base: PathBuf,
}

impl Images {
    /// Where they are.
    pub(super) fn built() -> Result<Self> {
        let folder = repository::target()?.join("images");
        Ok(Self {
            operator: folder.join("operator.tar"),
            agent: folder.join("agent.tar"),
            base: folder.join("base.tar"),
        })
    }
}

/// Builds them all.
pub(super) async fn build() -> Result<()> {
    output::step("base image", on_another_thread(base)).await?;
    let operator = format!("{OPERATOR}:{TAG}");
    output::step(
        "operator's image",
        on_another_thread(move || image(&["--tag", &operator])),
    )
    .await?;
    let agent = [
        "--agent",
        "base",
        "--stand-in",
        "--base",
        BASE,
        "--tag",
        AGENT,
    ];
    output::step("agent's image", on_another_thread(move || image(&agent))).await
}

async fn on_another_thread(
    work: impl FnOnce() -> Result<String> + Send + 'static,
) -> Result<((), String)> {
    Ok(((), tokio::task::spawn_blocking(work).await??))
}

/// `cargo xtask image`, and the sizes that it tells.
fn image(arguments: &[&str]) -> Result<String> {
    let program = env::current_exe().context("cannot tell where this program is")?;
    let mut command = repository::command(&program.to_string_lossy(), &["image"]);
    command.args(arguments);
    let told = repository::output(isolate(command))?;
    let line = told.lines().rev().nth(1).unwrap_or_default();
    let (_, remark) = line.split_once(": ").unwrap_or_default();
    Ok(remark.to_owned())
}

/// buildah may be in a container itself, where it cannot make one with everything of its own.
fn isolate(mut command: Command) -> Command {
    command.env("BUILDAH_ISOLATION", "chroot");
    command
}

/// Packages come from where this machine has its own from, once; the image is built from them each time.
fn base() -> Result<String> {
    let release = fs::read_to_string("/etc/os-release").context("cannot tell the distribution")?;
    let suite = suite(&release).context("this is neither Debian nor Ubuntu")?;
    let packages = repository::cache()?.join(format!("base-{suite}.tar"));
    if !packages.exists() {
        bootstrap(suite, &packages)?;
    }
    let images = repository::target()?.join("images");
    let context = images.join("base");
    fs::create_dir_all(&context)?;
    let link = context.join("base.tar");
    if link.exists() {
        fs::remove_file(&link)?;
    }
    if fs::hard_link(&packages, &link).is_err() {
        fs::copy(&packages, &link).context("cannot copy the packages")?;
    }
    fs::write(
        context.join("Dockerfile"),
        "FROM scratch\nADD base.tar /\nCMD [\"sleep\", \"infinity\"]\n",
    )?;
    let engine = Engine::find()?;
    repository::output(isolate(engine.build(&context, BASE, &[])))?;
    engine.save(BASE, &images.join("base.tar"))?;
    Ok(format!("{suite}, from {}", packages.display()))
}

fn bootstrap(suite: &str, packages: &Path) -> Result<()> {
    let folder = packages.with_extension("unfinished");
    if folder.exists() {
        fs::remove_dir_all(&folder).context("cannot remove what an attempt left")?;
    }
    let sources = sources();
    let mirror = mirror(&sources).context("no package source is named in /etc/apt")?;
    let mut command = Command::new("debootstrap");
    command
        .args(["--variant=minbase", "--include=ca-certificates", suite])
        .arg(&folder)
        .arg(mirror);
    repository::output(command)?;
    let archive = packages.with_extension("tar.unfinished");
    let mut tar = Command::new("tar");
    tar.args(["--create", "--numeric-owner", "--exclude=./dev/*"])
        .args(["--exclude=./var/cache/apt/archives/*.deb", "--file"])
        .arg(&archive)
        .arg("--directory")
        .arg(&folder)
        .arg(".");
    repository::output(tar)?;
    fs::remove_dir_all(&folder).context("cannot remove the folder of the packages")?;
    fs::rename(&archive, packages).context("cannot name the archive of the packages")?;
    ensure!(packages.exists(), "{} is not there", packages.display());
    Ok(())
}

/// All that names sources of packages, the main file first.
fn sources() -> String {
    let main = [
        "/etc/apt/sources.list",
        "/etc/apt/sources.list.d/debian.sources",
        "/etc/apt/sources.list.d/ubuntu.sources",
    ];
    let texts = main.iter().filter_map(|file| fs::read_to_string(file).ok());
    texts.collect::<Vec<_>>().join("\n")
}

/// The code name in `os-release(5)`.
fn suite(release: &str) -> Option<&str> {
    let name = release
        .lines()
        .find_map(|line| line.strip_prefix("VERSION_CODENAME="))?;
    Some(name.trim_matches('"')).filter(|name| !name.is_empty())
}

/// The first address in sources of either format (sources.list(5)).
fn mirror(sources: &str) -> Option<&str> {
    sources.lines().find_map(|line| {
        let line = line.trim();
        let words = line
            .strip_prefix("URIs:")
            .or_else(|| line.strip_prefix("deb "))?;
        words.split_whitespace().find(|word| word.contains("://"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_code_name_is_that_of_the_distribution() {
        let text = "ID=debian\nVERSION_CODENAME=bookworm\n";
        assert_eq!(suite(text), Some("bookworm"));
        assert_eq!(suite("VERSION_CODENAME=\"noble\"\n"), Some("noble"));
        assert_eq!(suite("ID=arch\n"), None);
    }

    #[test]
    fn the_mirror_is_found_in_both_formats() {
        let one_line = "# deb http://old.example.com/debian bookworm main\n\
            deb [signed-by=/a.gpg] http://one.example.com/debian bookworm main\n";
        assert_eq!(mirror(one_line), Some("http://one.example.com/debian"));
        let deb822 = "Types: deb\n# http://snapshot.example.com\n\
            URIs: http://two.example.com/debian\nSuites: bookworm\n";
        assert_eq!(mirror(deb822), Some("http://two.example.com/debian"));
        assert_eq!(mirror("# nothing\n"), None);
    }
}
