//! The end of a RunnerPool.

use planner::{STARTUP_WINDOW, Why};

use crate::world::{FOREIGN_MARK, LOOK, World, agent, at, done, registration, web, withheld};

/// A RunnerPool that is being deleted and whose placeholder is gone.
fn ending() -> World {
    web().deleting().without_registrations()
}

#[test]
fn deletion_creates_nothing_and_drains() {
    let plan = web()
        .deleting()
        .min(2)
        .queued(1)
        .with(agent(0).idle_for(1))
        .with(agent(1).busy(7))
        .with(agent(2))
        .with(agent(3).running())
        .with(agent(4).running().registered())
        .plan();
    assert_eq!(
        done(&plan),
        [
            "delete pod 2",
            "disable 0",
            "disable 1",
            "disable 4",
            "remove registration web-placeholder-base",
        ]
    );
    assert_eq!(withheld(&plan, "web-agent-1"), [&Why::Busy { request: 7 }]);
    assert_eq!(withheld(&plan, "web-agent-3"), [&Why::Starting]);
    assert!(!plan.finished);
}

#[test]
fn an_agent_that_never_registers_holds_deletion_up_for_one_startup_window() {
    let window = STARTUP_WINDOW.as_secs();
    let started = |seconds: i64| ending().with(agent(0).running().created(-seconds));
    assert_eq!(started(window).does(), [""; 0]);
    assert_eq!(started(window + 1).does(), ["delete pod 0"]);
}

#[test]
fn a_pod_that_was_pending_for_long_has_its_whole_startup_window_when_it_runs() {
    let long_ago = -2 * STARTUP_WINDOW.as_secs();
    let late = ending().with(agent(0).created(long_ago).running_since(-60));
    assert_eq!(late.does(), [""; 0]);
    let queued = web()
        .queued(1)
        .with(agent(0).created(long_ago).running_since(-60));
    assert_eq!(queued.does(), [""; 0], "it still stands for its job");
    let silent = web()
        .queued(1)
        .with(agent(0).created(long_ago).running_since(long_ago));
    assert_eq!(silent.does(), ["create 1 base once"]);
}

#[test]
fn the_end_waits_for_a_look_that_shows_what_agents_did_whose_pods_are_gone() {
    // Its agent may have registered between the look and its end.
    let mut world = ending();
    world.cluster.shown_after = Some(at(LOOK));
    assert!(!world.plan().finished);
    world.cluster.shown_after = Some(at(LOOK - 1));
    assert!(world.plan().finished);
}

#[test]
fn a_pod_that_just_failed_does_not_hold_deletion_up() {
    let world = ending().with(agent(0).failed(-5));
    assert_eq!(world.does(), ["delete pod 0"]);
    let world = ending().with(agent(0).failed(-5).registered());
    assert_eq!(world.does(), ["remove 0 and its pod"]);
}

#[test]
fn deletion_is_finished_when_nothing_is_left() {
    assert!(ending().plan().finished);
    assert!(!web().plan().finished, "it is not being deleted");
    let mut strangers = registration(5, "web-agent-0");
    strangers.owner_mark = Some(FOREIGN_MARK.into());
    assert!(
        ending().registered(strangers).queued(1).plan().finished,
        "strangers are none of its business"
    );
    for (left, world) in [
        ("a Pod", ending().with(agent(0))),
        ("a Pod that stops", ending().with(agent(0).stopping())),
        ("a Pod that ended", ending().with(agent(0).succeeded(0))),
        ("an agent", ending().with(agent(0).busy(7))),
        (
            "a registration",
            ending().with(agent(0).registered().without_pod()),
        ),
        ("a placeholder", web().deleting()),
        ("a claim", ending().claim(0)),
        ("an unknown", ending().unknown()),
        ("a stale look", ending().seen(-11)),
    ] {
        assert!(!world.plan().finished, "{left} is left");
    }
}
