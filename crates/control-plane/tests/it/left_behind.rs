//! However the process ends that started a control plane, no process and no folder stays behind.
//!
//! Each test runs this test program once more, as a child that starts a control plane and then ends in its own way.

use std::{
    env, fs,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use control_plane::{ControlPlane, Options, binaries};
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use kube::{Api, api::PostParams};
use serde_json::json;

/// Names the file to which the child reports, and how it is to end.
const REPORT: &str = "CONTROL_PLANE_TEST_REPORT";
const ENDING: &str = "CONTROL_PLANE_TEST_ENDING";

/// Far more than a start and a stop take, also on a machine that compiles at the same time.
const LONG: Duration = Duration::from_secs(180);

#[tokio::test]
async fn after_stop() -> anyhow::Result<()> {
    let control_plane = ControlPlane::start(Options::default()).await?;
    let trace = Trace {
        processes: control_plane.process_ids(),
        folders: vec![control_plane.folder().to_owned()],
    };
    trace.assert_there();
    control_plane.stop()?;
    trace.assert_gone("when stop returns");
    Ok(())
}

#[test]
fn after_a_panic() {
    let child = Parent::start("panic");
    child.wait_until_gone();
}

#[test]
fn after_the_end_of_the_process_that_keeps_it_in_a_static() {
    let child = Parent::start("static");
    child.wait_until_gone();
}

#[test]
fn after_an_abort() {
    let child = Parent::start("abort");
    child.wait_until_gone();
}

#[test]
fn after_sigterm() {
    let child = Parent::start("wait");
    signal("TERM", &child.process.id().to_string());
    child.wait_until_gone();
}

#[test]
fn after_sigkill() {
    let child = Parent::start("wait");
    signal("KILL", &child.process.id().to_string());
    child.wait_until_gone();
}

#[test]
fn after_ctrl_c() {
    let child = Parent::start("wait");
    // A terminal sends the signal to the whole foreground process group.
    signal("INT", &format!("-{}", child.process.id()));
    child.wait_until_gone();
}

#[tokio::test]
#[ignore = "the other tests run it as their child"]
async fn child() -> anyhow::Result<()> {
    let (report, ending) = (
        PathBuf::from(env::var_os(REPORT).unwrap()),
        env::var(ENDING)?,
    );
    if ending == "static" {
        write_report(&report, ControlPlane::shared().await?).await?;
        return Ok(());
    }
    let control_plane = ControlPlane::start(Options::default()).await?;
    write_report(&report, &control_plane).await?;
    // Only to go on once the parent has seen that all is there; it removes the report then.
    while report.exists() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    match ending.as_str() {
        "panic" => panic!("as asked for"),
        "abort" => std::process::abort(),
        _ => std::future::pending().await,
    }
}

/// Reports the processes and folders, a folder that a volume brings included.
async fn write_report(report: &Path, control_plane: &ControlPlane) -> anyhow::Result<()> {
    let client = control_plane.client()?;
    let claims: Api<PersistentVolumeClaim> = Api::default_namespaced(client.clone());
    let claim = serde_json::from_value(json!({
        "metadata": { "name": "work" },
        "spec": { "accessModes": ["ReadWriteOnce"], "resources": { "requests": { "storage": "1Gi" } } },
    }))?;
    claims.create(&PostParams::default(), &claim).await?;
    let volume = loop {
        let volumes = Api::<PersistentVolume>::all(client.clone())
            .list(&kube::api::ListParams::default())
            .await?;
        let path = |volume: PersistentVolume| Some(volume.spec?.host_path?.path);
        if let Some(path) = volumes.items.into_iter().find_map(path) {
            break path;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    let trace = Trace {
        processes: control_plane.process_ids(),
        folders: vec![control_plane.folder().to_owned(), PathBuf::from(volume)],
    };
    let unfinished = report.with_extension("unfinished");
    fs::write(
        &unfinished,
        serde_json::to_vec(&(trace.processes, trace.folders))?,
    )?;
    fs::rename(unfinished, report)?;
    Ok(())
}

/// A command whose SIGINT does what it does in a terminal: a shell that runs the tests in the background makes them, and
/// all that they start, ignore it.
fn with_default_signals(program: PathBuf) -> Command {
    const RESET: [&str; 2] = ["--default-signal=INT", "--default-signal=QUIT"];
    let reset = Command::new("env")
        .args(RESET)
        .arg("true")
        .stderr(Stdio::null())
        .status();
    if reset.is_ok_and(|status| status.success()) {
        let mut command = Command::new("env");
        command.args(RESET).arg(program);
        command
    } else {
        Command::new(program)
    }
}

/// The process that started a control plane, and what came of that.
struct Parent {
    process: Child,
    trace: Trace,
}

impl Parent {
    fn start(ending: &str) -> Self {
        // Building the programs takes minutes where there are none, and the child would seem to be stuck.
        binaries::ensure(&mut binaries::terminal()).unwrap();
        let report = env::temp_dir().join(format!("azdo-report-{}", uuid::Uuid::new_v4()));
        let process = with_default_signals(env::current_exe().unwrap())
            .args(["--exact", "left_behind::child", "--ignored", "--nocapture"])
            .env(REPORT, &report)
            .env(ENDING, ending)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .unwrap();
        let mut parent = Self {
            process,
            trace: Trace::default(),
        };
        let started = Instant::now();
        while !report.exists() {
            assert!(
                parent.process.try_wait().unwrap().is_none(),
                "the child failed before it had a control plane"
            );
            assert!(started.elapsed() < LONG, "the child is stuck");
            thread::sleep(Duration::from_millis(20));
        }
        let (processes, folders) = serde_json::from_slice(&fs::read(&report).unwrap()).unwrap();
        parent.trace = Trace { processes, folders };
        if ending != "static" {
            parent.trace.assert_there();
        }
        fs::remove_file(report).unwrap();
        parent
    }

    fn wait_until_gone(mut self) {
        self.process.wait().unwrap();
        let ended = Instant::now();
        while !self.trace.left().is_empty() {
            assert!(
                ended.elapsed() < LONG,
                "left behind: {:?}",
                self.trace.left()
            );
            thread::sleep(Duration::from_millis(20));
        }
    }
}

/// A test that fails leaves no child behind either.
impl Drop for Parent {
    fn drop(&mut self) {
        let killed = self.process.kill();
        let waited = killed.and_then(|()| self.process.wait());
        if let Err(error) = waited {
            eprintln!("the child cannot be ended: {error}");
        }
    }
}

fn signal(signal: &str, target: &str) {
    let status = Command::new("kill")
        .args([&format!("-{signal}"), "--", target])
        .status()
        .unwrap();
    assert!(status.success(), "cannot send {signal} to {target}");
}

#[derive(Default)]
struct Trace {
    processes: Vec<u32>,
    folders: Vec<PathBuf>,
}

impl Trace {
    fn assert_there(&self) {
        assert_eq!(
            self.left().len(),
            self.processes.len() + self.folders.len(),
            "only {:?}",
            self.left()
        );
        assert_eq!(self.processes.len(), 4, "three programs and the watchdog");
    }

    fn assert_gone(&self, when: &str) {
        assert_eq!(self.left(), Vec::<String>::new(), "left behind {when}");
    }

    fn left(&self) -> Vec<String> {
        let processes = self
            .processes
            .iter()
            .filter(|id| is_running(**id))
            .map(|id| format!("process {id}"));
        let folders = self
            .folders
            .iter()
            .filter(|folder| folder.exists())
            .map(|folder| folder.display().to_string());
        processes.chain(folders).collect()
    }
}

/// Not counting a dead process that nobody has reaped yet, which is the business of the system's first process.
fn is_running(id: u32) -> bool {
    let output = Command::new("ps")
        .args(["-o", "stat=", "-p", &id.to_string()])
        .output()
        .unwrap();
    let state = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    !state.is_empty() && !state.starts_with('Z')
}
