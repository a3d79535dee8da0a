//! What goes wrong on demand.

use hollow_node::{Rule, What};
use k8s_openapi::api::core::v1::Node;
use kube::{Api, api::DeleteParams};

use crate::bed::{Bed, agent_state, condition, exit_code, phase};

#[tokio::test]
async fn an_image_cannot_be_pulled_until_the_rule_is_retracted() -> anyhow::Result<()> {
    let bed = Bed::new().await?;
    let rule = bed
        .node
        .inject(Rule::new(What::ImagePullBackOff).named("agent-0"));
    bed.create("agent-0", &[]).await?;
    bed.create("agent-1", &[]).await?;
    bed.until_phase("agent-1", "Running").await?;
    let pod = bed.until_waiting("agent-0", "ImagePullBackOff").await?;
    assert_eq!(phase(&pod), "Pending");
    let message = agent_state(&pod).unwrap().waiting.unwrap().message;
    assert_eq!(
        message.as_deref(),
        Some("Back-off pulling image \"agent:java\"")
    );
    bed.node.retract(rule);
    bed.until_phase("agent-0", "Running").await?;
    bed.node.stop().await
}

#[tokio::test]
async fn a_pod_hangs_in_pending_and_can_be_deleted_there() -> anyhow::Result<()> {
    let bed = Bed::new().await?;
    bed.node.inject(Rule::new(What::HangPending).first(1));
    bed.create("agent-0", &[]).await?;
    let unschedulable =
        |pod: &_| condition(pod, "PodScheduled") == Some(("False", "Unschedulable"));
    bed.until("agent-0", "unschedulable", unschedulable).await?;
    bed.create("agent-1", &[]).await?;
    bed.until_phase("agent-1", "Running").await?;
    bed.delete("agent-0").await?;
    bed.until_gone("agent-0").await?;
    bed.node.stop().await
}

#[tokio::test]
async fn agents_crash_and_exit_as_told() -> anyhow::Result<()> {
    let bed = Bed::new().await?;
    bed.node
        .inject(Rule::new(What::CrashAtStart).named("at-start"));
    bed.node.inject(Rule::new(What::ExitCode(7)).named("code"));
    for name in ["at-start", "code", "crash"] {
        bed.create(name, &[]).await?;
    }
    assert_eq!(
        exit_code(&bed.until_phase("at-start", "Failed").await?),
        Some(1)
    );
    bed.until_phase("code", "Running").await?;
    bed.puppets
        .state("code")
        .send_modify(|state| state.exit_code = Some(0));
    assert_eq!(
        exit_code(&bed.until_phase("code", "Failed").await?),
        Some(7)
    );
    bed.until_phase("crash", "Running").await?;
    assert!(bed.node.crash(&bed.namespace, "crash", 42));
    assert_eq!(
        exit_code(&bed.until_phase("crash", "Failed").await?),
        Some(42)
    );
    assert_eq!(
        bed.puppets.state("crash").borrow().exit_code,
        Some(137),
        "the process died of it"
    );
    assert!(!bed.node.crash(&bed.namespace, "no-such-pod", 1));
    bed.node.stop().await
}

#[tokio::test]
async fn agents_are_killed_from_outside() -> anyhow::Result<()> {
    let bed = Bed::new().await?;
    for name in ["hungry", "evicted"] {
        bed.create(name, &[]).await?;
        bed.until_phase(name, "Running").await?;
    }
    assert!(bed.node.kill_for_memory(&bed.namespace, "hungry"));
    let pod = bed.until_phase("hungry", "Failed").await?;
    let ended = agent_state(&pod).unwrap().terminated.unwrap();
    assert_eq!(
        (ended.exit_code, ended.reason.as_deref()),
        (137, Some("OOMKilled"))
    );
    assert!(bed.node.evict(&bed.namespace, "evicted"));
    let pod = bed.until_phase("evicted", "Failed").await?;
    assert_eq!(
        pod.status.as_ref().unwrap().reason.as_deref(),
        Some("Evicted")
    );
    assert_eq!(
        condition(&pod, "DisruptionTarget"),
        Some(("True", "TerminationByKubelet"))
    );
    for name in ["hungry", "evicted"] {
        assert_eq!(bed.puppets.state(name).borrow().exit_code, Some(137));
    }
    bed.node.stop().await
}

#[tokio::test]
async fn a_pod_vanishes_without_a_goodbye() -> anyhow::Result<()> {
    let bed = Bed::new().await?;
    bed.node.inject(Rule::new(What::Vanish).named("by-rule"));
    bed.create("by-rule", &[]).await?;
    bed.create("on-demand", &[]).await?;
    bed.until_phase("on-demand", "Running").await?;
    assert!(bed.node.vanish(&bed.namespace, "on-demand"));
    for name in ["by-rule", "on-demand"] {
        bed.until_gone(name).await?;
        let state = bed.puppets.state(name).borrow().clone();
        assert_eq!(
            (state.exit_code, state.terminated_while_busy),
            (Some(137), None),
            "{name}"
        );
    }
    bed.node.stop().await
}

#[tokio::test]
async fn a_lost_node_leaves_its_pods_until_they_are_forced_away_or_it_is_back() -> anyhow::Result<()>
{
    let bed = Bed::new().await?;
    for name in ["forced", "deleted", "kept"] {
        bed.create(name, &[]).await?;
        bed.until_phase(name, "Running").await?;
    }
    bed.node.lose().await?;
    let nodes: Api<Node> = Api::all(bed.client.clone());
    let node = nodes.get(&format!("node-of-{}", bed.namespace)).await?;
    let conditions = node.status.unwrap().conditions.unwrap();
    assert_eq!(
        conditions
            .iter()
            .find(|condition| condition.type_ == "Ready")
            .unwrap()
            .status,
        "Unknown"
    );

    bed.create("late", &[]).await?;
    bed.delete("deleted").await?;
    bed.pods
        .delete("forced", &DeleteParams::default().grace_period(0))
        .await?;
    bed.until_gone("forced").await?;
    bed.until("kept", "not ready", |pod| {
        condition(pod, "Ready").is_some_and(|(status, _)| status == "False")
    })
    .await?;
    assert_eq!(phase(&bed.pods.get("kept").await?), "Running");
    assert!(
        bed.pods
            .get("deleted")
            .await?
            .metadata
            .deletion_timestamp
            .is_some()
    );
    assert_eq!(bed.pods.get("late").await?.spec.unwrap().node_name, None);

    bed.node.recover().await?;
    bed.until_gone("deleted").await?;
    assert_eq!(
        exit_code(&bed.until_phase("kept", "Failed").await?),
        Some(137)
    );
    bed.until_phase("late", "Running").await?;
    bed.node.stop().await
}

#[tokio::test]
async fn a_pod_whose_node_seems_lost_stays_running() -> anyhow::Result<()> {
    let bed = Bed::new().await?;
    bed.node.inject(Rule::new(What::NodeLost));
    bed.create("agent-0", &[]).await?;
    bed.until_phase("agent-0", "Running").await?;
    let mut state = bed.puppets.state("agent-0").subscribe();
    tokio::time::timeout(
        crate::bed::LONG,
        state.wait_for(|state| state.exit_code == Some(137)),
    )
    .await??;
    bed.delete("agent-0").await?;
    assert_eq!(phase(&bed.pods.get("agent-0").await?), "Running");
    bed.pods
        .delete("agent-0", &DeleteParams::default().grace_period(0))
        .await?;
    bed.until_gone("agent-0").await?;
    bed.node.stop().await
}
