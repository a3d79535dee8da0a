//! How pods end that are deleted.

use std::time::{Duration, Instant};

use control_plane::{AuditEvent, ControlPlane, User};
use serde_json::{Value, json};

use crate::{
    bed::{Bed, LONG, exit_code, phase},
    puppet::AGENT_TERMINATED,
};

/// A pod's last status can only be seen when something keeps the object.
fn held() -> (&'static str, Value) {
    ("/metadata/finalizers", json!(["example.org/hold"]))
}

fn pre_stop() -> (&'static str, Value) {
    (
        "/spec/containers/0/lifecycle",
        json!({ "preStop": { "exec": { "command": ["sh", "-c", "wait"] } } }),
    )
}

fn grace(seconds: u32) -> (&'static str, Value) {
    ("/spec/terminationGracePeriodSeconds", seconds.into())
}

#[tokio::test]
async fn an_idle_agent_goes_well_before_its_grace_period_is_over() -> anyhow::Result<()> {
    let bed = Bed::new().await?;
    for (name, changes) in [
        ("hook", vec![pre_stop(), grace(3600)]),
        ("no-hook", vec![grace(3600)]),
    ] {
        bed.create(name, &changes).await?;
        bed.until_phase(name, "Running").await?;
        bed.delete(name).await?;
        bed.until_gone(name).await?; // gives up long before 3600 s
        assert_eq!(
            bed.puppets.state(name).borrow().exit_code,
            Some(AGENT_TERMINATED),
            "{name}"
        );
    }
    bed.node.stop().await
}

#[tokio::test]
async fn the_pre_stop_hook_waits_for_the_job() -> anyhow::Result<()> {
    let bed = Bed::new().await?;
    bed.create("agent-0", &[pre_stop(), held()]).await?;
    bed.until_phase("agent-0", "Running").await?;
    let state = bed.puppets.state("agent-0");
    state.send_modify(|state| state.busy = true);
    bed.delete("agent-0").await?;
    // A second pod that comes and goes shows that the node has seen the deletion of the first by now.
    bed.create("agent-1", &[]).await?;
    bed.until_phase("agent-1", "Running").await?;
    bed.delete("agent-1").await?;
    bed.until_gone("agent-1").await?;
    assert_eq!(state.borrow().terminated_while_busy, None);

    state.send_modify(|state| state.busy = false);
    let pod = bed.until_phase("agent-0", "Succeeded").await?;
    assert_eq!(exit_code(&pod), Some(AGENT_TERMINATED));
    assert_eq!(state.borrow().terminated_while_busy, Some(false));
    bed.node.stop().await
}

#[tokio::test]
async fn without_a_hook_a_job_is_hit_at_once() -> anyhow::Result<()> {
    let bed = Bed::new().await?;
    bed.create("agent-0", &[]).await?;
    bed.until_phase("agent-0", "Running").await?;
    let state = bed.puppets.state("agent-0");
    state.send_modify(|state| state.busy = true);
    bed.delete("agent-0").await?;
    bed.until_gone("agent-0").await?;
    assert_eq!(state.borrow().terminated_while_busy, Some(true));
    bed.node.stop().await
}

#[tokio::test]
async fn the_grace_period_ends_with_a_kill() -> anyhow::Result<()> {
    let bed = Bed::new().await?;
    bed.create("agent-0", &[grace(2), held()]).await?;
    bed.until_phase("agent-0", "Running").await?;
    bed.puppets
        .state("agent-0")
        .send_modify(|state| state.stubborn = true);
    let deleted = Instant::now();
    bed.delete("agent-0").await?;
    let pod = bed.until_phase("agent-0", "Failed").await?;
    assert_eq!(exit_code(&pod), Some(137));
    assert!(
        deleted.elapsed() >= Duration::from_secs(2),
        "{:?}",
        deleted.elapsed()
    );
    bed.node.stop().await
}

#[tokio::test]
async fn the_grace_period_covers_the_pre_stop_hook() -> anyhow::Result<()> {
    let bed = Bed::new().await?;
    bed.create("agent-0", &[grace(1), pre_stop(), held()])
        .await?;
    bed.until_phase("agent-0", "Running").await?;
    let state = bed.puppets.state("agent-0");
    state.send_modify(|state| state.busy = true);
    let deleted = Instant::now();
    bed.delete("agent-0").await?;
    let pod = bed.until_phase("agent-0", "Succeeded").await?;
    assert!(
        deleted.elapsed() >= Duration::from_secs(1),
        "{:?}",
        deleted.elapsed()
    );
    assert_eq!(exit_code(&pod), Some(AGENT_TERMINATED));
    assert_eq!(
        state.borrow().terminated_while_busy,
        Some(true),
        "the hook's time was up"
    );
    bed.node.stop().await
}

#[tokio::test]
async fn a_pod_that_has_not_started_goes_at_once() -> anyhow::Result<()> {
    let bed = Bed::with(|settings| settings.start_delay(Duration::from_secs(3600))).await?;
    bed.create("agent-0", &[]).await?;
    let pod = bed.until_waiting("agent-0", "ContainerCreating").await?;
    assert_eq!(phase(&pod), "Pending");
    bed.delete("agent-0").await?;
    bed.until_gone("agent-0").await?;
    bed.node.stop().await
}

#[tokio::test]
async fn a_finished_pod_whose_deletion_was_left_half_done_is_removed() -> anyhow::Result<()> {
    let bed = Bed::new().await?;
    // The API server carries a deletion of a finished pod out by itself, unless it is cut off or, as here, held up.
    bed.create("agent-0", &[held()]).await?;
    bed.until_phase("agent-0", "Running").await?;
    bed.puppets
        .state("agent-0")
        .send_modify(|state| state.exit_code = Some(0));
    bed.until_phase("agent-0", "Succeeded").await?;
    bed.delete("agent-0").await?;
    let removed = async || -> anyhow::Result<bool> {
        let log = ControlPlane::shared().await?.audit_log()?;
        let by_node = |event: &AuditEvent| {
            event.user == User::HollowNode.name()
                && event.verb == "delete"
                && event.namespace == bed.namespace
                && event.name == "agent-0"
        };
        Ok(log.iter().any(by_node))
    };
    tokio::time::timeout(LONG, async {
        while !removed().await? {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        anyhow::Ok(())
    })
    .await??;
    bed.node.stop().await
}
