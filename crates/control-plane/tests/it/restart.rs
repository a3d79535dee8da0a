//! A control plane whose programs die and come back is the same one as before: same address, same objects, and in the end
//! nothing of it stays.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::ensure;
use control_plane::{ControlPlane, Options, Program};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{Api, api::PostParams};
use tokio::time::sleep;

/// Far more than a start takes, also on a machine that compiles at the same time.
const LONG: Duration = Duration::from_secs(180);
const LOOK_AGAIN: Duration = Duration::from_millis(50);

#[tokio::test]
async fn programs_that_were_killed_come_back_as_they_were() -> anyhow::Result<()> {
    let mut control_plane = ControlPlane::start(Options {
        audit: true,
        ..Options::default()
    })
    .await?;
    let maps: Api<ConfigMap> = Api::namespaced(control_plane.client()?, "default");
    for (round, program) in Program::ALL.into_iter().enumerate() {
        let name = format!("before-{round}");
        let mut map = ConfigMap::default();
        map.metadata.name = Some(name.clone());
        let made = maps.create(&PostParams::default(), &map).await?;

        assert!(control_plane.restart(program).is_err(), "it still runs");
        control_plane.kill(program).await?;
        assert!(!control_plane.is_running(program));
        if program != Program::ControllerManager {
            until(async || !control_plane.is_ready().await).await?;
        }
        control_plane.restart(program)?;
        until(async || control_plane.is_ready().await).await?;
        assert!(control_plane.is_running(program));
        assert_eq!(maps.get(&name).await?, made, "{} forgot it", program.name());
    }
    let log = control_plane.audit_log()?;
    let made = |name: &str| {
        log.iter()
            .any(|event| event.verb == "create" && event.name == name)
    };
    assert!(
        made("before-0") && made("before-2"),
        "the audit log goes on"
    );

    let (processes, folder) = (
        control_plane.process_ids(),
        control_plane.folder().to_owned(),
    );
    assert_eq!(
        processes.len(),
        7,
        "three programs, twice, and the watchdog"
    );
    control_plane.stop()?;
    let left: Vec<u32> = processes
        .into_iter()
        .filter(|id| PathBuf::from(format!("/proc/{id}")).exists())
        .collect();
    assert_eq!(left, [0; 0]);
    assert!(!folder.exists());
    Ok(())
}

async fn until(so: impl AsyncFn() -> bool) -> anyhow::Result<()> {
    let deadline = Instant::now() + LONG;
    while !so().await {
        ensure!(Instant::now() < deadline, "waited in vain");
        sleep(LOOK_AGAIN).await;
    }
    Ok(())
}
