//! Controls: planners that do what must not be done, and the check that catches them. Laws that these do not break
//! would be worth nothing.

use std::sync::Arc;

use planner::{
    Action, AgentPool, AgentState, Breach, Intake, Look, Plan, Planned, Snapshot, Why, check, plan,
};

use crate::world::{World, agent, at, known, now, placeholder, registration, web};

/// Deletes idle agents that nothing needs at once, without disabling them first.
fn hasty(snapshot: &Snapshot) -> Plan {
    let mut plan = plan(snapshot, now());
    for agent in &plan.agents {
        if let (AgentState::Idle { .. }, Some(registration), Some(pod)) =
            (agent.state, &agent.registration, &agent.pod)
        {
            plan.actions.push(Planned {
                action: Action::Remove {
                    agent_id: registration.id,
                    name: agent.name.clone(),
                    pod_uid: Some(pod.uid.clone()),
                },
                why: Why::NotNeeded,
            });
        }
    }
    plan
}

/// Takes an agent pool that could not be looked at for an empty one.
fn credulous(snapshot: &Snapshot) -> Plan {
    let mut snapshot = snapshot.clone();
    if let Look::Unknown { .. } = snapshot.look {
        snapshot.look = known(Arc::new(AgentPool::default()), at(-1));
    }
    plan(&snapshot, now())
}

fn breaches(snapshot: &Snapshot, plan: &Plan) -> Vec<Breach> {
    check(snapshot, plan, now())
}

fn named(name: &str) -> String {
    name.into()
}

#[test]
fn a_planner_that_does_not_disable_first_is_caught() {
    let snapshot = web().with(agent(0).idle_for(9999)).snapshot();
    let name = named("web-agent-0");
    assert_eq!(
        breaches(&snapshot, &hasty(&snapshot)),
        [Breach::NotDisabled { name }]
    );
    let sent = web().with(agent(0).online().disable_sent()).snapshot();
    let plan = only(Action::Remove {
        agent_id: 100,
        name: named("web-agent-0"),
        pod_uid: Some(named("pod-0")),
    });
    assert_eq!(breaches(&sent, &plan).len(), 1, "no look saw it disabled");
}

#[test]
fn a_planner_that_takes_unknown_for_empty_is_caught() {
    let world = web()
        .with(agent(0).running())
        .with(agent(1))
        .with(agent(2).succeeded(-60));
    let snapshot = world.unknown().snapshot();
    let removal = |name| Breach::RemovalWithoutLook { name: named(name) };
    assert_eq!(
        breaches(&snapshot, &credulous(&snapshot)),
        [removal("web-agent-1"), removal("web-agent-2")]
    );
}

fn only(action: Action) -> Plan {
    Plan {
        actions: vec![Planned {
            action,
            why: Why::NotNeeded,
        }],
        ..Plan::default()
    }
}

/// What the check says of one action.
fn verdict(world: &World, action: Action) -> Vec<Breach> {
    breaches(&world.snapshot(), &only(action))
}

fn remove(index: i64, pod_uid: Option<&str>) -> Action {
    Action::Remove {
        agent_id: 100 + index,
        name: format!("web-agent-{index}"),
        pod_uid: pod_uid.map(named),
    }
}

fn create(index: u32) -> Action {
    Action::CreateAgent {
        index,
        name: format!("web-agent-{index}"),
        profile: "base".into(),
        min_agent: false,
        run_once: true,
        attempt: 0,
    }
}

fn delete_pod(index: u32) -> Action {
    Action::DeletePod {
        name: format!("web-agent-{index}"),
        uid: format!("pod-{index}"),
    }
}

#[test]
fn each_invariant_is_checked() {
    let name = || named("web-agent-0");
    let world = web().max(1).with(agent(0).running());
    assert_eq!(
        verdict(&world, create(1)),
        [Breach::AboveMaximum { agents: 2 }]
    );
    let world = web().with(agent(0).succeeded(-60));
    assert_eq!(
        verdict(&world, create(0)),
        [Breach::NameInUse { name: name() }]
    );
    assert_eq!(
        verdict(&web().taken("web-agent-0"), create(0)),
        [Breach::NameInUse { name: name() }]
    );
    assert_eq!(
        verdict(&web().deleting(), create(0)),
        [Breach::CreatedWhileEnding { name: name() }]
    );
    let disabled = web().with(agent(0).idle_for(60).disabled());
    assert_eq!(
        verdict(&disabled.clone().seen(-60), remove(0, Some("pod-0"))),
        [Breach::RemovalWithoutLook { name: name() }]
    );
    assert_eq!(
        verdict(&disabled.reserved(7, 100), remove(0, Some("pod-0"))),
        [Breach::BusyRemoved { name: name() }]
    );
    let busy = web().with(agent(0).busy(7).disabled());
    assert_eq!(
        verdict(&busy, remove(0, Some("pod-0"))),
        [Breach::BusyRemoved { name: name() }]
    );
    let mut stranger = registration(100, "web-agent-0");
    stranger.owner_mark = None;
    stranger.intake = Intake::Disabled;
    assert_eq!(
        verdict(&web().registered(stranger), remove(0, None)),
        [Breach::NotOurs { name: name() }]
    );
    assert_eq!(
        verdict(&web().with(agent(0).running()), delete_pod(0)),
        [Breach::LivePodDeleted { name: name() }]
    );
    assert_eq!(
        verdict(&web().with(agent(0).registered()), delete_pod(0)),
        [Breach::LivePodDeleted { name: name() }]
    );
    assert_eq!(
        verdict(&web().with(agent(0)).unknown(), delete_pod(0)),
        [Breach::RemovalWithoutLook { name: name() }]
    );
}

#[test]
fn a_pod_is_given_up_only_when_it_never_ran_and_a_recent_look_shows_no_registration() {
    let give_up = || Action::GiveUpPod {
        name: named("web-agent-0"),
        uid: named("pod-0"),
    };
    let name = || named("web-agent-0");
    assert_eq!(verdict(&web().with(agent(0)), give_up()), []);
    for sketch in [
        agent(0).running(),
        agent(0).registered(),
        agent(0).failed(-60),
    ] {
        assert_eq!(
            verdict(&web().with(sketch), give_up()),
            [Breach::LivePodDeleted { name: name() }]
        );
    }
    assert_eq!(
        verdict(&web().with(agent(0)).seen(-60), give_up()),
        [Breach::RemovalWithoutLook { name: name() }]
    );
    assert_eq!(verdict(&web(), give_up()).len(), 1, "no such Pod");
}

#[test]
fn a_live_agent_is_not_removed_by_leaving_its_pod_out() {
    let starting = web().with(agent(0).running().registered());
    let name = named("web-agent-0");
    assert_eq!(
        verdict(&starting, remove(0, None)),
        [Breach::NotDisabled { name: name.clone() }]
    );
    assert_eq!(
        verdict(&starting, remove(0, Some("another-uid"))),
        [Breach::NotDisabled { name }]
    );
}

#[test]
fn an_agent_is_not_removed_under_the_name_of_a_placeholder() {
    let remove_placeholder = |agent_id, name: &str| Action::RemoveRegistration {
        agent_id,
        name: named(name),
    };
    let idle = web().with(agent(0).idle_for(60));
    assert_eq!(
        verdict(&idle, remove_placeholder(100, "web-agent-0")).len(),
        1
    );
    let base = placeholder("base");
    let action = remove_placeholder(base.id, &base.name);
    assert_eq!(verdict(&web(), action.clone()), []);
    assert_eq!(verdict(&web().seen(-60), action.clone()).len(), 1);
    assert_eq!(verdict(&web().unknown(), action).len(), 1);
}
