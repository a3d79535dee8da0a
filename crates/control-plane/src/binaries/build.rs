//! The one build: pinned modules in, programs in the cache folder out.

use std::{
    fs::{self, File, TryLockError},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};

use super::{
    CONTAINERD, CONTAINERD_SHIM, CTR, ETCD, HELM, KUBE_APISERVER, KUBE_CONTROLLER_MANAGER,
    KUBE_PROXY, KUBE_SCHEDULER, KUBECTL, KUBELET, Progress,
};

/// The oldest Go that upstream's modules accept, as in their `go` lines.
const OLDEST_GO: u32 = 26;

/// Without the version flags the API server calls itself v0.0.0, and kubectl and Helm refuse it. They must match the
/// version in `go/kubernetes/go.mod`; a test compares them.
const KUBERNETES_VERSION_FLAGS: &str = "-s -w \
    -X k8s.io/component-base/version.gitVersion=v1.36.3 \
    -X k8s.io/component-base/version.gitMajor=1 \
    -X k8s.io/component-base/version.gitMinor=36";

/// Without it Helm calls itself by its branch. It must match the version in `go/helm/go.mod`; a test compares them.
const HELM_VERSION_FLAGS: &str = "-s -w -X helm.sh/helm/v4/internal/version.version=v4.3.1";

/// Programs that are wanted together, in one folder of the cache.
pub(super) struct Set {
    /// What its folder is called, followed by a digest.
    name: &'static str,
    /// What to do without a usable Go.
    remedy: &'static str,
    modules: &'static [Module],
}

/// A pinned Go module and the programs that are built from it.
struct Module {
    name: &'static str,
    go_mod: &'static str,
    go_sum: &'static str,
    linker_flags: &'static str,
    /// Output file and package; a package's own last path element is not always the program's name (`server/v3`).
    programs: &'static [(&'static str, &'static str)],
}

/// etcd, kube-apiserver and kube-controller-manager.
pub(super) const CONTROL_PLANE: Set = Set {
    name: "control-plane",
    remedy: "install Go 1.26 or newer from https://go.dev/dl/, or point KUBEBUILDER_ASSETS at a folder that holds etcd, \
        kube-apiserver and kube-controller-manager",
    modules: &[
        Module {
            name: "etcd",
            go_mod: include_str!("../../go/etcd/go.mod"),
            go_sum: include_str!("../../go/etcd/go.sum"),
            linker_flags: "-s -w",
            programs: &[(ETCD, "go.etcd.io/etcd/server/v3")],
        },
        kubernetes(&[
            (KUBE_APISERVER, "k8s.io/kubernetes/cmd/kube-apiserver"),
            (
                KUBE_CONTROLLER_MANAGER,
                "k8s.io/kubernetes/cmd/kube-controller-manager",
            ),
        ]),
    ],
};

/// What a node runs, and kubectl.
pub(super) const NODE: Set = Set {
    name: "node",
    remedy: "install Go 1.26 or newer from https://go.dev/dl/",
    modules: &[
        kubernetes(&[
            (KUBE_SCHEDULER, "k8s.io/kubernetes/cmd/kube-scheduler"),
            (KUBELET, "k8s.io/kubernetes/cmd/kubelet"),
            (KUBE_PROXY, "k8s.io/kubernetes/cmd/kube-proxy"),
            (KUBECTL, "k8s.io/kubernetes/cmd/kubectl"),
        ]),
        Module {
            name: "containerd",
            go_mod: include_str!("../../go/containerd/go.mod"),
            go_sum: include_str!("../../go/containerd/go.sum"),
            linker_flags: "-s -w",
            programs: &[
                (
                    CONTAINERD,
                    "github.com/containerd/containerd/v2/cmd/containerd",
                ),
                (
                    CONTAINERD_SHIM,
                    "github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2",
                ),
                (CTR, "github.com/containerd/containerd/v2/cmd/ctr"),
            ],
        },
    ],
};

/// Programs of Kubernetes. All are pinned together, so that they are of one version.
const fn kubernetes(programs: &'static [(&'static str, &'static str)]) -> Module {
    Module {
        name: "kubernetes",
        go_mod: include_str!("../../go/kubernetes/go.mod"),
        go_sum: include_str!("../../go/kubernetes/go.sum"),
        linker_flags: KUBERNETES_VERSION_FLAGS,
        programs,
    }
}

/// Helm.
pub(super) const HELM_ALONE: Set = Set {
    name: "helm",
    remedy: "install Go 1.26 or newer from https://go.dev/dl/",
    modules: &[Module {
        name: "helm",
        go_mod: include_str!("../../go/helm/go.mod"),
        go_sum: include_str!("../../go/helm/go.sum"),
        linker_flags: HELM_VERSION_FLAGS,
        programs: &[(HELM, "helm.sh/helm/v4/cmd/helm")],
    }],
};

/// The folder of the cache that holds the programs, built there first if they are missing.
///
/// A lock file keeps other processes out while one builds; it builds beside the final place and renames into it, so a
/// folder that is there is complete.
pub(super) fn once(
    set: &Set,
    cache: &Path,
    go: &Path,
    progress: &mut dyn FnMut(Progress),
) -> anyhow::Result<PathBuf> {
    let started = Instant::now();
    let toolchain = go_version(go, set.remedy)?;
    let finished = cache.join(format!("{}-{:016x}", set.name, set.digest(&toolchain)));
    if set.is_in(&finished) {
        return Ok(finished);
    }

    fs::create_dir_all(cache)
        .with_context(|| format!("cannot create the cache folder {}", cache.display()))?;
    let _lock = lock(&finished.with_extension("lock"), progress)?;
    if set.is_in(&finished) {
        return Ok(finished); // built by the process that we waited for
    }
    let unfinished = finished.with_extension("unfinished");
    for leftover in [&unfinished, &finished] {
        if leftover.exists() {
            fs::remove_dir_all(leftover)
                .with_context(|| format!("cannot remove {}", leftover.display()))?;
        }
    }
    for module in set.modules {
        module.build(go, &unfinished, &mut |what| {
            progress(Progress::Building {
                what,
                elapsed: started.elapsed(),
            });
        })?;
    }
    fs::rename(&unfinished, &finished)
        .with_context(|| format!("cannot rename to {}", finished.display()))?;
    progress(Progress::Built {
        elapsed: started.elapsed(),
    });
    ensure!(
        set.is_in(&finished),
        "the build left {} incomplete",
        finished.display()
    );
    Ok(finished)
}

impl Set {
    fn is_in(&self, folder: &Path) -> bool {
        let mut programs = self.modules.iter().flat_map(|module| module.programs);
        programs.all(|(program, _)| folder.join(program).is_file())
    }

    /// FNV-1a, 64 bits, of everything that decides what is built. A hash that tells versions apart is all that a cache key
    /// needs, and unlike the standard library's it is the same for every compiler.
    fn digest(&self, toolchain: &str) -> u64 {
        let modules = self
            .modules
            .iter()
            .flat_map(|module| [module.go_mod, module.go_sum, module.linker_flags]);
        let mut hash = 0xcbf2_9ce4_8422_2325_u64;
        for part in modules.chain([toolchain]) {
            for byte in part.bytes().chain([0]) {
                hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
            }
        }
        hash
    }
}

impl Module {
    fn build(
        &self,
        go: &Path,
        output: &Path,
        progress: &mut dyn FnMut(&'static str),
    ) -> anyhow::Result<()> {
        let source = output.join("modules").join(self.name);
        fs::create_dir_all(&source)
            .with_context(|| format!("cannot create {}", source.display()))?;
        fs::write(source.join("go.mod"), self.go_mod)?;
        fs::write(source.join("go.sum"), self.go_sum)?;
        for (program, package) in self.programs {
            let log = source.join(format!("{program}.log"));
            let status = wait(
                Command::new(go)
                    .args([
                        "build",
                        "-mod=readonly",
                        "-trimpath",
                        "-buildvcs=false",
                        "-ldflags",
                        self.linker_flags,
                        "-o",
                    ])
                    .arg(output.join(program))
                    .arg(package)
                    .current_dir(&source)
                    // A workspace file of the user must not change what is pinned, and no C compiler is needed.
                    .env("GOWORK", "off")
                    .env("CGO_ENABLED", "0"),
                &log,
                &mut || progress(program),
            )?;
            if !status {
                let output = fs::read_to_string(&log).unwrap_or_default();
                bail!(
                    "cannot build {program} ({package}); if modules could not be fetched, check the network and GOPROXY.\n{}",
                    output.trim_end()
                );
            }
        }
        Ok(())
    }
}

/// Runs a command with its output in a file, calling `tick` about once a second; whether it succeeded.
fn wait(command: &mut Command, log: &Path, tick: &mut dyn FnMut()) -> anyhow::Result<bool> {
    let output = File::create(log).with_context(|| format!("cannot write {}", log.display()))?;
    let mut child = command
        .stdin(Stdio::null())
        .stdout(output.try_clone()?)
        .stderr(output)
        .spawn()
        .with_context(|| format!("cannot run {}", command.get_program().display()))?;
    let mut last_tick: Option<Instant> = None;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status.success());
        }
        if last_tick.is_none_or(|tick| tick.elapsed() >= Duration::from_secs(1)) {
            tick();
            last_tick = Some(Instant::now());
        }
        thread::sleep(Duration::from_millis(100));
    }
}

fn lock(file: &Path, progress: &mut dyn FnMut(Progress)) -> anyhow::Result<File> {
    let started = Instant::now();
    let lock = File::create(file).with_context(|| format!("cannot write {}", file.display()))?;
    loop {
        match lock.try_lock() {
            Ok(()) => return Ok(lock),
            Err(TryLockError::WouldBlock) => {
                progress(Progress::Waiting {
                    elapsed: started.elapsed(),
                });
                thread::sleep(Duration::from_secs(1));
            }
            Err(TryLockError::Error(error)) => {
                return Err(error).with_context(|| format!("cannot lock {}", file.display()));
            }
        }
    }
}

/// The version line of the Go toolchain (`go version go1.26.8 linux/amd64`), which is part of the cache key: it names the
/// platform too.
fn go_version(go: &Path, remedy: &str) -> anyhow::Result<String> {
    let output = Command::new(go)
        .arg("version")
        .current_dir(std::env::temp_dir())
        .output()
        .with_context(|| format!("cannot run Go, which builds it: {remedy}"))?;
    let line = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    let minor = line
        .split_once("go1.")
        .and_then(|(_, rest)| rest.split(|c: char| !c.is_ascii_digit()).next())
        .and_then(|minor| minor.parse::<u32>().ok());
    match minor {
        Some(minor) if minor >= OLDEST_GO => Ok(line),
        Some(_) => bail!("this Go is too old ({line}): {remedy}"),
        // A development build of Go says `devel`; it is newer than any release.
        None if line.contains("devel") => Ok(line),
        None => bail!("cannot tell the version of Go ({line:?}): {remedy}"),
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may panic")]

    use std::{
        env,
        os::unix::fs::PermissionsExt as _,
        sync::{Mutex, MutexGuard, PoisonError},
    };

    use super::*;

    /// A cache folder and a program that answers like `go`: each build writes its `-o` file and a line to `builds`.
    struct Fixture {
        folder: PathBuf,
        go: PathBuf,
        _alone: MutexGuard<'static, ()>,
    }

    /// A program that one test writes while another starts its own is held open by that child for a moment, and cannot be
    /// run then (`ETXTBSY`); so one test at a time.
    static ALONE: Mutex<()> = Mutex::new(());

    impl Fixture {
        fn new(version: &str, build: &str) -> Self {
            let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
            let folder = env::temp_dir().join(format!("azdo-build-{}", uuid::Uuid::new_v4()));
            fs::create_dir(&folder).unwrap();
            let go = folder.join("go");
            let builds = folder.join("builds");
            fs::write(
                &go,
                format!(
                    "#!/bin/sh\nif [ $1 = version ]; then echo go version {version} linux/amd64; exit; fi\n\
                     for argument; do [ \"$last\" = -o ] && output=$argument; last=$argument; done\n\
                     echo $last >>{}\n{build}\n",
                    builds.display()
                ),
            )
            .unwrap();
            fs::set_permissions(&go, fs::Permissions::from_mode(0o755)).unwrap();
            Self {
                folder,
                go,
                _alone: alone,
            }
        }

        fn once(&self) -> anyhow::Result<PathBuf> {
            self.once_of(&CONTROL_PLANE)
        }

        fn once_of(&self, set: &Set) -> anyhow::Result<PathBuf> {
            once(set, &self.folder.join("cache"), &self.go, &mut |_| {})
        }

        fn builds(&self) -> usize {
            fs::read_to_string(self.folder.join("builds")).map_or(0, |log| log.lines().count())
        }
    }

    impl Drop for Fixture {
        fn drop(&mut self) {
            fs::remove_dir_all(&self.folder).unwrap();
        }
    }

    #[test]
    fn two_at_once_build_once() {
        let fixture = Fixture::new("go1.26.0", "sleep 0.2; echo >$output");
        thread::scope(|scope| {
            let both = [
                scope.spawn(|| fixture.once()),
                scope.spawn(|| fixture.once()),
            ];
            let [first, second] = both.map(|thread| thread.join().unwrap().unwrap());
            assert_eq!(first, second);
            assert!(first.join(ETCD).is_file());
        });
        assert_eq!(fixture.builds(), 3, "one build per program");
        fixture.once().unwrap();
        assert_eq!(fixture.builds(), 3, "and none later");
    }

    #[test]
    fn another_set_is_built_apart() {
        let fixture = Fixture::new("go1.26.0", "echo >$output");
        let helm = fixture.once_of(&HELM_ALONE).unwrap();
        assert!(helm.join(HELM).is_file());
        assert_eq!(fixture.builds(), 1);
        assert_ne!(fixture.once().unwrap(), helm);
        assert_eq!(fixture.builds(), 4);
    }

    #[test]
    fn another_go_version_builds_anew() {
        let fixture = Fixture::new("go1.26.0", "echo >$output");
        fixture.once().unwrap();
        let newer = fs::read_to_string(&fixture.go)
            .unwrap()
            .replace("go1.26.0", "go1.27.1");
        fs::write(&fixture.go, newer).unwrap();
        fixture.once().unwrap();
        assert_eq!(fixture.builds(), 6);
    }

    #[test]
    fn a_failed_build_shows_its_output_and_leaves_nothing_that_looks_finished() {
        let fixture = Fixture::new("go1.26.0", "echo no such module >&2; exit 1");
        for _ in 0..2 {
            let error = fixture.once().unwrap_err().to_string();
            assert!(
                error.contains("cannot build etcd") && error.contains("no such module"),
                "{error}"
            );
        }
        assert_eq!(fixture.builds(), 2, "tried again the second time");
    }

    #[test]
    fn a_missing_or_old_go_names_the_remedy() {
        let old = Fixture::new("go1.25.9", "");
        let error = old.once().unwrap_err().to_string();
        assert!(
            error.contains("too old") && error.contains("https://go.dev/dl/"),
            "{error}"
        );
        let missing = old.folder.join("missing");
        let error = once(&CONTROL_PLANE, &old.folder, &missing, &mut |_| {})
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("https://go.dev/dl/") && error.contains("KUBEBUILDER_ASSETS"),
            "{error}"
        );
    }

    #[test]
    fn the_version_flags_match_the_pinned_modules() {
        let pinned = |module: &'static Module, name: &str| {
            let lines = module.go_mod.lines();
            let mut versions = lines.filter_map(|line| line.trim().strip_prefix(name));
            versions.next().unwrap().split(' ').next().unwrap()
        };
        let helm = pinned(&HELM_ALONE.modules[0], "helm.sh/helm/v4 v");
        assert!(HELM_VERSION_FLAGS.ends_with(&format!("=v{helm}")), "{helm}");
        let version = pinned(&CONTROL_PLANE.modules[1], "k8s.io/kubernetes v");
        assert!(
            KUBERNETES_VERSION_FLAGS.contains(&format!("gitVersion=v{version} ")),
            "{version}"
        );
        let minor = version.split('.').nth(1).unwrap();
        assert!(
            KUBERNETES_VERSION_FLAGS.ends_with(&format!("gitMinor={minor}")),
            "{version}"
        );
    }
}
