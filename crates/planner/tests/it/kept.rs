//! Pods that ended and stay for inspection.

use planner::{Mode, Why};

use crate::world::{agent, web, withheld};

#[test]
fn the_newest_of_each_kind_stay() {
    let ended = web()
        .keeping(1, 2)
        .with(agent(0).failed(-7200))
        .with(agent(1).failed(-3600))
        .with(agent(2).succeeded(-30))
        .with(agent(3).succeeded(-20))
        .with(agent(4).succeeded(-10));
    assert_eq!(ended.does(), ["delete pod 0", "delete pod 2"]);
    let plan = ended.plan();
    assert_eq!(withheld(&plan, "web-agent-1"), [&Why::Kept]);
    assert_eq!(withheld(&plan, "web-agent-4"), [&Why::Kept]);
}

#[test]
fn their_registrations_go_and_their_claims_stay_with_them() {
    let kept = web()
        .keeping(0, 1)
        .claim(0)
        .with(agent(0).registered().finished_a_job(-20).succeeded(-10));
    assert_eq!(kept.does(), ["remove registration web-agent-0"]);
    let busy = web().keeping(1, 0).with(agent(0).busy(7).failed(-3600));
    assert_eq!(
        busy.does(),
        ["disable 0"],
        "its job is lost, and not given up yet"
    );
}

#[test]
fn they_keep_their_index_and_nobodys_place() {
    let full = web()
        .max(1)
        .keeping(0, 1)
        .queued(1)
        .with(agent(0).succeeded(-10));
    assert_eq!(full.does(), ["create 1 base once"]);
}

#[test]
fn none_stays_where_there_are_to_be_no_agents() {
    let ended = web().keeping(1, 1).with(agent(0).succeeded(-10));
    assert_eq!(ended.clone().mode(Mode::Drained).does(), ["delete pod 0"]);
    assert!(ended.deleting().does().contains(&"delete pod 0".to_owned()));
}
