//! RunnerPools that are paused or drained, and such as have no placeholders.

use planner::{Mode, Why};

use crate::world::{World, agent, done, placeholder, web, withheld};

/// One agent of each kind, a job that waits, and a minimum that is not met.
fn busy_place() -> World {
    web()
        .min(4)
        .queued(1)
        .with(agent(0).idle_for(10_000))
        .with(agent(1).online())
        .reserved(7, 101)
        .with(agent(2))
        .with(agent(3).failed(-3600))
}

#[test]
fn while_it_is_paused_nothing_is_created_or_removed() {
    let plan = busy_place().mode(Mode::Paused).plan();
    assert_eq!(done(&plan), ["mark 1 job 7 guarded"]);
    assert_eq!((plan.shortage, plan.next), (None, None));
    assert_eq!(withheld(&plan, "web-agent-3"), [&Why::Paused]);
    assert!(
        busy_place().plan().actions.len() > 2,
        "otherwise there is much to do"
    );
    let without_placeholder = web().mode(Mode::Paused).without_registrations();
    assert_eq!(without_placeholder.does(), [""; 0]);
}

#[test]
fn deletion_does_not_wait_for_the_end_of_a_pause() {
    let deleted = busy_place().deleting();
    assert_eq!(deleted.clone().mode(Mode::Paused).does(), deleted.does());
}

#[test]
fn a_drained_one_lets_busy_agents_finish_and_has_none_then() {
    let drained = busy_place().mode(Mode::Drained);
    assert_eq!(
        drained.does(),
        [
            "delete pod 2",
            "delete pod 3",
            "disable 0",
            "disable 1",
            "mark 1 job 7 guarded"
        ]
    );
    assert_eq!(web().mode(Mode::Drained).min(2).queued(1).does(), [""; 0]);
}

#[test]
fn jobs_wait_while_it_is_drained() {
    let without_placeholder = web().mode(Mode::Drained).without_registrations();
    assert_eq!(
        without_placeholder.does(),
        ["add placeholder web-placeholder-base"]
    );
}

#[test]
fn without_placeholders_none_is_added_and_ours_go() {
    assert_eq!(
        web().without_registrations().without_placeholders().does(),
        [""; 0]
    );
    assert_eq!(
        web().without_placeholders().does(),
        ["remove registration web-placeholder-base"]
    );
    let mut foreign = web().without_registrations().without_placeholders();
    let mut registration = placeholder("base");
    registration.owner_mark = Some("cluster/other/web".into());
    foreign.agent_pool.registrations.push(registration.into());
    assert_eq!(foreign.does(), [""; 0]);
}
