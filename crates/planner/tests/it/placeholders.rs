//! Registrations that keep jobs queued while there is no agent.

use planner::{Registration, Why};

use crate::world::{FOREIGN_MARK, agent, done, placeholder, registration, web, withheld};

const NOTHING: [&str; 0] = [];

#[test]
fn each_profile_gets_one_and_gets_it_back() {
    assert_eq!(
        web().serving("java").without_registrations().does(),
        [
            "add placeholder web-placeholder-base",
            "add placeholder web-placeholder-java",
        ]
    );
    assert_eq!(web().serving("java").does(), NOTHING);
}

#[test]
fn it_is_neither_an_agent_nor_supply() {
    let plan = web().max(1).queued(1).plan();
    assert_eq!(done(&plan), ["create 0 base once"]);
    assert!(plan.agents.is_empty());
}

#[test]
fn it_goes_with_its_profile() {
    let plan = web().registered(placeholder("java")).plan();
    assert_eq!(done(&plan), ["remove registration web-placeholder-java"]);
    assert_eq!(plan.actions[0].why, Why::ProfileGone);
}

#[test]
fn it_does_not_go_while_a_job_is_assigned_or_may_be() {
    let mut taken_over = placeholder("java");
    taken_over.assigned = Some(7);
    let plan = web().registered(taken_over.clone()).plan();
    assert_eq!(done(&plan), NOTHING);
    assert_eq!(
        withheld(&plan, &taken_over.name),
        [&Why::Busy { request: 7 }]
    );
    let reserved = web().registered(placeholder("java"));
    assert_eq!(
        reserved.clone().reserved(7, placeholder("java").id).does(),
        NOTHING
    );
    let mut online = placeholder("java");
    online.online = true;
    assert_eq!(
        web().registered(online).does(),
        ["disable web-placeholder-java"]
    );
    let in_a_pod = web()
        .registered(placeholder("java"))
        .with(agent(0).running().named("web-placeholder-java"));
    assert_eq!(in_a_pod.does(), ["disable web-placeholder-java"]);
}

#[test]
fn those_of_strangers_are_left_alone_and_another_name_is_found() {
    for mark in [None, Some(FOREIGN_MARK)] {
        let strangers = |names: &[&str]| {
            let mut world = web().without_registrations();
            for name in names {
                world = world.registered(Registration {
                    owner_mark: mark.map(Into::into),
                    name: (*name).into(),
                    ..placeholder("base")
                });
            }
            world
        };
        let one = strangers(&["WEB-placeholder-base", "web-placeholder-former"]);
        assert_eq!(one.does(), ["add placeholder web-placeholder-base.mark"]);
        let own = Registration {
            name: "web-placeholder-base.mark".into(),
            ..placeholder("base")
        };
        assert_eq!(one.clone().registered(own.clone()).does(), NOTHING);
        let deleting = one.registered(own).deleting();
        assert_eq!(
            deleting.does(),
            ["remove registration web-placeholder-base.mark"]
        );
        let both = strangers(&["web-placeholder-base", "web-placeholder-base.mark"]);
        let plan = both.plan();
        assert_eq!(done(&plan), NOTHING);
        assert_eq!(withheld(&plan, "web-placeholder-base"), [&Why::NameTaken]);
        assert_eq!(both.deleting().does(), NOTHING);
    }
}

#[test]
fn agents_of_a_runner_pool_that_is_named_alike_are_none() {
    let mut alike = registration(5, "web-placeholder-agent-0");
    alike.owner_mark = Some("cluster/team/web-placeholder".into());
    assert_eq!(web().registered(alike).does(), NOTHING);
}

#[test]
fn on_unknown_none_is_added() {
    assert_eq!(web().without_registrations().unknown().does(), NOTHING);
}
