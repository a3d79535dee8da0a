//! A container without an engine: namespaces for users, mounts and processes, and a root folder that has what the image
//! has.

use std::{
    collections::BTreeMap,
    fs,
    io::Write as _,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use tempfile::TempDir;

use crate::service::PATIENCE;

const ENTRYPOINT: &str = include_str!("../../../../images/agent/entrypoint.sh");
const PROGRAM: &str = env!("CARGO_BIN_EXE_stand-in-agent");

const SYSTEM_CERTIFICATES: &str = include_str!("certificates/unrelated.crt");

/// Lays the root folder out on a file system of its own and starts the first process there, as user 1000. The folders of
/// the system are those of this machine, read-only.
const SET_UP: &str = r#"set -euo pipefail
image=$1 program=$2 read_only=$3
shift 3
root=$(mktemp --directory)
mount -t tmpfs -o mode=0755 root "$root"
cp -R --preserve=mode,links "$image/." "$root"
cp -R --preserve=mode,links /etc/alternatives "$root/etc"
for folder in /etc/java*; do if [ -d "$folder" ]; then cp -RL "$folder" "$root/etc"; fi; done
if [ -d /etc/ssl/certs/java ]; then cp -RL /etc/ssl/certs/java "$root/etc/ssl/certs"; fi
for folder in usr bin sbin lib lib64; do
  if [ -L "/$folder" ]; then
    cp -P "/$folder" "$root"
  elif [ -d "/$folder" ]; then
    mkdir "$root/$folder"
    mount --rbind "/$folder" "$root/$folder"
    mount -o remount,bind,ro "$root/$folder"
  fi
done
mkdir "$root"/{dev,proc,programs}
mount --rbind /dev "$root/dev"
mount -t proc proc "$root/proc"
mount --bind "$(dirname "$program")" "$root/programs"
mount -o remount,bind,ro "$root/programs"
case $read_only in
  volume) mount -t tmpfs volume "$root/azp" ;;&
  volume | nothing) mount -o remount,ro "$root" ;;
esac
exec unshare --root="$root" --wd=/azp --user --map-user=1000 --map-group=1000 "$@"
"#;

/// Whether namespaces can be made here; they have to, where `CI` is set. Says so if not.
pub(crate) fn possible() -> bool {
    let mut unshare = Command::new("unshare");
    unshare.args([
        "--user",
        "--map-root-user",
        "--mount",
        "--pid",
        "--fork",
        "true",
    ]);
    let possible = unshare.status().is_ok_and(|status| status.success());
    assert!(
        possible || std::env::var_os("CI").is_none(),
        "unshare has to work where CI is set"
    );
    if !possible {
        let _ = writeln!(
            std::io::stderr(),
            "skipped: unshare cannot make namespaces here"
        );
    }
    possible
}

/// What may be written to.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) enum Root {
    /// The agent's folders, as in an image's container.
    #[default]
    Writable,
    /// A volume at `/azp` alone.
    Volume,
    /// Nothing.
    ReadOnly,
}

/// What the container is made of.
#[derive(Default)]
pub(crate) struct Image {
    pub(crate) env: BTreeMap<String, String>,
    pub(crate) args: Vec<String>,
    /// Files besides those of the image, by their path from the root.
    pub(crate) files: BTreeMap<String, String>,
    pub(crate) root: Root,
    /// Another entry point, to compare with.
    pub(crate) entrypoint: Option<&'static str>,
}

impl Image {
    pub(crate) fn env(mut self, name: &str, value: impl Into<String>) -> Self {
        self.env.insert(name.to_owned(), value.into());
        self
    }

    pub(crate) fn arg(mut self, argument: &str) -> Self {
        self.args.push(argument.to_owned());
        self
    }

    pub(crate) fn file(mut self, path: &str, text: impl Into<String>) -> Self {
        self.files.insert(path.to_owned(), text.into());
        self
    }

    pub(crate) fn root(mut self, root: Root) -> Self {
        self.root = root;
        self
    }

    pub(crate) fn entrypoint(mut self, text: &'static str) -> Self {
        self.entrypoint = Some(text);
        self
    }

    pub(crate) fn start(self) -> Container {
        Container::start(&self)
    }
}

pub(crate) struct Container {
    process: Child,
    /// What the image is made from, and what it wrote.
    folder: TempDir,
}

impl Container {
    fn start(image: &Image) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("image");
        let program = Path::new(PROGRAM);
        let package = root.join("opt/azure-pipelines-agent");
        let link = Path::new("/programs").join(program.file_name().unwrap());
        stand_in_agent::lay_out(&package, program, Some(&link)).unwrap();
        fs::write(package.join("capabilities.txt"), "java=true\n.net=true\n").unwrap();
        for path in ["azp", "tmp", "etc/ssl/certs"] {
            fs::create_dir_all(root.join(path)).unwrap();
        }
        for (path, text) in [
            ("etc/passwd", "azureuser:x:1000:1000::/azp:/bin/bash\n"),
            ("etc/group", "azureuser:x:1000:\n"),
            ("etc/hosts", "127.0.0.1 localhost\n"),
            // All that the system trusts. Programs do not start where that is nothing.
            ("etc/ssl/certs/ca-certificates.crt", SYSTEM_CERTIFICATES),
            (
                "azure-pipelines-agent",
                image.entrypoint.unwrap_or(ENTRYPOINT),
            ),
        ] {
            fs::write(root.join(path), text).unwrap();
        }
        for (path, text) in &image.files {
            let path = root.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let entrypoint = root.join("azure-pipelines-agent");
        fs::set_permissions(&entrypoint, fs::Permissions::from_mode(0o755)).unwrap();
        let output = fs::File::create(folder.path().join("output")).unwrap();
        let process = Command::new("unshare")
            .args([
                "--user",
                "--map-root-user",
                "--mount",
                "--pid",
                "--fork",
                "--kill-child",
            ])
            .args(["bash", "-c", SET_UP, "set-up"])
            .arg(&root)
            .arg(program)
            .arg(match image.root {
                Root::Writable => "",
                Root::Volume => "volume",
                Root::ReadOnly => "nothing",
            })
            .arg("/azure-pipelines-agent")
            .args(&image.args)
            .env_clear()
            .env("PATH", "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin")
            .env("HOME", "/azp")
            .env("TMPDIR", "/tmp")
            .envs(&image.env)
            .stdin(Stdio::null())
            .stdout(output.try_clone().unwrap())
            .stderr(output)
            .spawn()
            .expect("unshare is there");
        Self { process, folder }
    }

    /// What the container has written so far.
    pub(crate) fn output(&self) -> String {
        let output = fs::read(self.folder.path().join("output")).unwrap();
        String::from_utf8_lossy(&output).into_owned()
    }

    /// SIGTERM to the first process, as a kubelet sends it.
    pub(crate) fn terminate(&self) {
        let outside = self.process.id();
        let children = format!("/proc/{outside}/task/{outside}/children");
        let first = fs::read_to_string(children).unwrap();
        let status = Command::new("kill").args(["-TERM", first.trim()]).status();
        assert!(status.unwrap().success(), "the first process is there");
    }

    /// The exit code, if the first process has ended.
    pub(crate) fn exit_code(&mut self) -> Option<i32> {
        self.process.try_wait().unwrap()?.code()
    }

    /// Waits for the end and gives the exit code.
    pub(crate) async fn ended(&mut self) -> i32 {
        let begin = Instant::now();
        loop {
            if let Some(code) = self.exit_code() {
                return code;
            }
            assert!(
                begin.elapsed() < PATIENCE,
                "the container goes on: {}",
                self.output()
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Waits until the container has written this.
    pub(crate) async fn wrote(&mut self, text: &str) {
        let begin = Instant::now();
        while !self.output().contains(text) {
            assert_eq!(self.exit_code(), None, "the container has ended");
            assert!(
                begin.elapsed() < PATIENCE,
                "no {text:?} in {}",
                self.output()
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        // The first process goes with the one that made its namespaces, and the others with the first.
        let _ = self.process.kill();
        let _ = self.process.wait();
        if std::thread::panicking() {
            let _ = writeln!(
                std::io::stderr(),
                "--- the container wrote:\n{}",
                self.output()
            );
        }
    }
}
