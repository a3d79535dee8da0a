//! What goes, and what must not.

use std::sync::Arc;

use planner::{SURPLUS_GRACE, Why};

use crate::world::{Sketch, World, agent, at, done, placeholder, registration, web, withheld};

const NOTHING: [&str; 0] = [];

fn grace() -> i64 {
    SURPLUS_GRACE.as_secs()
}

#[test]
fn a_removal_takes_two_looks() {
    let due = agent(0).idle_for(grace());
    assert_eq!(web().with(due.clone()).does(), ["disable 0"]);
    let sent = web().with(due.clone().disable_sent()).plan();
    assert_eq!(done(&sent), NOTHING);
    assert_eq!(withheld(&sent, "web-agent-0"), [&Why::AwaitingLook]);
    assert_eq!(
        web().with(due.clone().disabled()).does(),
        ["remove 0 and its pod"]
    );
    assert_eq!(
        web().with(due.busy(7).disabled()).does(),
        ["mark 0 job 7 guarded"],
        "it got a job before it was disabled"
    );
}

#[test]
fn a_run_once_agent_that_got_no_job_goes_after_a_grace() {
    let plan = web().with(agent(0).idle_for(grace() - 1)).plan();
    assert_eq!((done(&plan), plan.next), (vec![], Some(at(1))));
    assert_eq!(web().with(agent(0).idle_for(grace())).does(), ["disable 0"]);
}

#[test]
fn an_idle_agent_goes_after_its_ttl_counted_from_its_last_job() {
    let idle = |seconds| agent(0).continuous().idle_for(seconds);
    let plan = web().ttl(300).with(idle(299)).plan();
    assert_eq!((done(&plan), plan.next), (vec![], Some(at(1))));
    let plan = web().ttl(300).with(idle(300)).plan();
    assert_eq!(done(&plan), ["disable 0"]);
    assert_eq!(plan.actions[0].why, Why::IdleTooLong);
    let worked = idle(9999).finished_a_job(-10);
    assert_eq!(web().ttl(300).with(worked).does(), NOTHING);
}

#[test]
fn an_idle_agent_that_a_queued_job_needs_stays_and_the_one_that_worked_last_serves() {
    let world = web()
        .ttl(300)
        .with(agent(0).continuous().idle_for(400))
        .with(agent(1).continuous().idle_for(900));
    assert_eq!(world.clone().queued(1).does(), ["disable 1"]);
    assert_eq!(world.queued(1).queued(2).does(), NOTHING);
}

#[test]
fn a_cancelled_job_takes_back_a_pod_that_never_ran() {
    assert_eq!(web().with(agent(0)).does(), ["delete pod 0"]);
    assert_eq!(
        web().with(agent(0).created(0)).does(),
        NOTHING,
        "it was made for a job that the look does not show any more"
    );
    assert_eq!(
        web().with(agent(0).running()).does(),
        NOTHING,
        "its agent may be about to get a job"
    );
    let two = web().with(agent(0)).with(agent(1).running()).queued(1);
    assert_eq!(two.does(), ["delete pod 0"], "the one that runs serves");
}

#[test]
fn more_agents_of_the_minimum_than_the_minimum_go() {
    let world = web()
        .min(1)
        .with(agent(0).warm().idle_for(grace()))
        .with(agent(1).warm().idle_for(grace()));
    assert_eq!(world.does(), ["disable 1"]);
}

#[test]
fn another_shape_replaces_idle_agents_first_and_busy_ones_after_their_job() {
    let world = web()
        .with(agent(0).idle_for(1).outdated())
        .with(agent(1).busy(7).outdated());
    let plan = world.plan();
    assert_eq!(done(&plan), ["disable 0", "disable 1"]);
    assert!(
        plan.actions
            .iter()
            .all(|planned| planned.why == Why::Outdated)
    );
    assert_eq!(withheld(&plan, "web-agent-1"), [&Why::Busy { request: 7 }]);
    let after = web()
        .with(agent(0).idle_for(1).outdated().disabled())
        .with(agent(1).busy(7).outdated().disabled());
    assert_eq!(after.does(), ["remove 0 and its pod"]);
    let ended = agent(1)
        .idle_for(60)
        .finished_a_job(-1)
        .outdated()
        .disabled();
    assert_eq!(web().with(ended).does(), ["remove 1 and its pod"]);
}

#[test]
fn another_shape_replaces_warm_agents_one_for_one() {
    let world = web().min(1).with(agent(0).warm().idle_for(1).outdated());
    assert_eq!(world.does(), ["create 1 base warm", "disable 0"]);
    let full = world.max(1);
    assert_eq!(full.does(), ["disable 0"]);
}

#[test]
fn another_shape_replaces_a_pod_that_never_ran_and_waits_for_one_that_runs() {
    let world = web().with(agent(0).outdated()).queued(1);
    assert_eq!(world.does(), ["create 1 base once", "delete pod 0"]);
    let plan = web().with(agent(0).running().outdated()).plan();
    assert_eq!(done(&plan), NOTHING);
    assert_eq!(withheld(&plan, "web-agent-0"), [&Why::Starting]);
}

#[test]
fn a_profile_that_is_gone_makes_its_agents_outdated() {
    let world = web().with(agent(0).of("java").idle_for(1));
    assert_eq!(world.does(), ["disable 0"]);
}

#[test]
fn a_lowered_maximum_takes_the_longest_idle_and_no_busy_agent() {
    let world = web()
        .ttl(9999)
        .with(agent(0).continuous().idle_for(50))
        .with(agent(1).continuous().idle_for(10))
        .with(agent(2).continuous().idle_for(90));
    assert_eq!(world.max(1).does(), ["disable 0", "disable 2"]);
    let busy = web()
        .with(agent(0).busy(7))
        .with(agent(1).busy(8))
        .with(agent(2).idle_for(1));
    assert_eq!(busy.max(1).does(), ["disable 2"]);
    let starting = web().with(agent(0).busy(7)).with(agent(1)).queued(1);
    assert_eq!(starting.max(1).does(), ["delete pod 1"]);
}

#[test]
fn a_lowered_maximum_of_a_profile_takes_its_own_agents_only() {
    let mut world = web().serving("java").ttl(9999);
    for (index, idle) in [(0, 50), (1, 10), (2, 90)] {
        world = world.with(agent(index).of("java").continuous().idle_for(idle));
    }
    world = world.with(agent(3).continuous().idle_for(99));
    assert_eq!(world.does(), NOTHING);
    world.pool.profiles[1].max_agents = Some(1);
    assert_eq!(world.does(), ["disable 0", "disable 2"]);
    let both = world.clone().max(2);
    assert_eq!(both.does(), ["disable 0", "disable 2"], "that is enough");
    assert_eq!(
        world.max(1).does(),
        ["disable 0", "disable 2", "disable 3"],
        "then the longest idle of all"
    );
}

#[test]
fn an_idle_agent_gives_way_to_a_job_that_it_cannot_serve_when_there_is_no_room() {
    let world = web()
        .serving("java")
        .ttl(3600)
        .with(agent(0).continuous().idle_for(50))
        .with(agent(1).continuous().idle_for(90))
        .queued_demanding(1, "java");
    assert_eq!(world.clone().does(), ["create 2 java ttl"]);
    let full = world.max(2);
    assert_eq!(full.does(), ["disable 1"], "the longest idle goes, not all");
    assert_eq!(
        full.clone().queued(2).queued(3).does(),
        NOTHING,
        "both are needed"
    );
    let mut capped = web().max(4).serving("java").ttl(3600);
    capped.pool.profiles[1].max_agents = Some(1);
    for index in 0..2 {
        capped = capped.with(agent(index).continuous().idle_for(50));
        capped = capped.queued_demanding(i64::from(index) + 1, "java");
    }
    assert_eq!(
        capped.queued_demanding(3, "java").does(),
        ["create 2 java ttl"],
        "more room would help no job of that profile"
    );
    let going = web()
        .max(2)
        .serving("java")
        .ttl(3600)
        .with(agent(0).continuous().idle_for(50))
        .with(agent(1).continuous().idle_for(90).disable_sent())
        .queued_demanding(1, "java");
    assert_eq!(going.does(), NOTHING, "one is on its way out already");
}

#[test]
fn an_orphaned_registration_goes() {
    let orphan = |sketch: Sketch| web().with(sketch.without_pod());
    assert_eq!(orphan(agent(0).registered()).does(), ["remove 0"]);
    assert_eq!(
        orphan(agent(0).online()).does(),
        ["disable 0"],
        "the server may still believe in it and give it a job"
    );
    assert_eq!(orphan(agent(0).online().disable_sent()).does(), NOTHING);
    assert_eq!(orphan(agent(0).online().disabled()).does(), ["remove 0"]);
}

#[test]
fn a_lost_job_is_reported_and_left_to_azure_devops() {
    let plan = web().with(agent(0).busy(7).without_pod()).plan();
    assert_eq!(done(&plan), ["disable 0"]);
    assert_eq!(
        withheld(&plan, "web-agent-0"),
        [&Why::JobLost { request: 7 }]
    );
    let ended = web()
        .with(agent(0).busy(7).succeeded(-10).disabled())
        .plan();
    assert_eq!(done(&ended), NOTHING);
    assert_eq!(
        withheld(&ended, "web-agent-0"),
        [&Why::JobLost { request: 7 }]
    );
}

#[test]
fn a_pod_that_ended_goes_only_by_a_look_that_began_later() {
    let ended = |seconds| agent(0).registered().succeeded(seconds);
    assert_eq!(web().with(ended(-3)).does(), ["remove 0 and its pod"]);
    for seconds in [-2, -1, 0] {
        let plan = web().with(ended(seconds)).plan();
        assert_eq!(done(&plan), NOTHING, "{seconds}");
        assert_eq!(withheld(&plan, "web-agent-0"), [&Why::AwaitingLook]);
    }
    assert_eq!(web().with(agent(0).succeeded(-3)).does(), ["delete pod 0"]);
    assert_eq!(web().with(agent(0).succeeded(-1)).does(), NOTHING);
    assert_eq!(
        web().with(agent(0).online().succeeded(-3)).does(),
        ["disable 0"],
        "the server still believes in it"
    );
}

#[test]
fn a_claim_goes_after_its_pod() {
    assert_eq!(web().with(agent(0).busy(7)).claim(0).does(), NOTHING);
    assert_eq!(web().claim(0).does(), ["delete claim 0-cache"]);
    let mut young = web().claim(0);
    young.cluster.claims[0].created_at = at(-9);
    let plan = young.plan();
    assert_eq!(done(&plan), NOTHING, "its Pod may be on its way");
    assert_eq!(plan.next, Some(at(1)));
}

#[test]
fn an_idle_agent_that_a_user_disabled_goes_and_a_busy_one_ends_its_job() {
    let idle = web().with(agent(0).idle_for(1).disabled()).queued(1);
    assert_eq!(idle.does(), ["create 1 base once", "remove 0 and its pod"]);
    assert_eq!(web().with(agent(0).busy(7).disabled()).does(), NOTHING);
}

#[test]
fn a_run_once_agent_that_ended_its_job_is_left_to_exit() {
    let exiting = agent(0).idle_for(999).finished_a_job(-1);
    assert_eq!(web().with(exiting).does(), NOTHING);
}

#[test]
fn a_pod_that_somebody_deletes_gets_no_new_job() {
    let idle = agent(0).idle_for(1).stopping();
    assert_eq!(web().with(idle.clone()).does(), ["disable 0"]);
    let busy = agent(0).busy(7).stopping();
    assert_eq!(web().with(busy.clone()).does(), ["disable 0"]);
    assert_eq!(web().with(busy.disabled()).does(), NOTHING);
}

#[test]
fn an_agent_whose_container_does_not_mind_being_stopped_ends_with_its_registration() {
    let idle = agent(0).idle_for(1).stopping();
    let sent = web().with(idle.clone().disable_sent());
    assert_eq!(sent.does(), NOTHING, "it may have got a job before");
    assert_eq!(web().with(idle.disabled()).does(), ["remove 0 and its pod"]);
}

#[test]
fn a_pod_shows_what_its_agent_does() {
    let started = agent(0).online();
    assert_eq!(
        web().with(started).queued(1).does(),
        ["mark 0 free evictable"]
    );
    let took = agent(0).busy(7).evictable();
    assert_eq!(web().with(took).does(), ["mark 0 job 7 guarded"]);
    let next = agent(0).busy(7).labelled(6);
    assert_eq!(web().with(next).does(), ["mark 0 job 7 guarded"]);
    let ended = agent(0)
        .continuous()
        .online()
        .labelled(7)
        .finished_a_job(-1);
    assert_eq!(web().ttl(300).with(ended).does(), ["mark 0 free evictable"]);
    assert_eq!(web().with(agent(0).busy(7)).does(), NOTHING);
    assert_eq!(
        web().with(agent(0).idle_for(1)).reserved(7, 100).does(),
        ["mark 0 job 7 guarded"],
        "the list of requests knew of it first"
    );
}

#[test]
fn pods_of_the_former_operator_are_replaced_as_any_outdated_one() {
    let world = web()
        .with(agent(0).idle_for(1).legacy())
        .with(agent(1).busy(7).legacy());
    assert_eq!(world.does(), ["disable 0", "disable 1"]);
    let world = web().with(agent(0).idle_for(1).disabled().legacy());
    assert_eq!(world.does(), ["remove 0 and its pod"]);
}

#[test]
fn without_mark_and_without_pod_nothing_proves_a_registration_ours() {
    let mut orphan = registration(55, "web-agent-0");
    orphan.owner_mark = None;
    assert_eq!(web().registered(orphan.clone()).does(), NOTHING);
    let marked_pod = web().registered(orphan).with(agent(0).running());
    assert_eq!(
        marked_pod.does(),
        NOTHING,
        "a Pod of ours would have registered with the mark"
    );
}

#[test]
fn a_pod_goes_even_when_a_stranger_registers_under_its_name() {
    let mut stranger = registration(55, "web-agent-0");
    stranger.owner_mark = None;
    let world = web().registered(stranger);
    assert_eq!(world.clone().with(agent(0)).does(), ["delete pod 0"]);
    assert_eq!(world.with(agent(0).succeeded(-9)).does(), ["delete pod 0"]);
}

/// Everything that would go if Azure DevOps had been looked at just now.
fn all_to_go() -> World {
    web()
        .with(agent(0).idle_for(999).disabled())
        .with(agent(1))
        .with(agent(2).succeeded(-60))
        .with(agent(3).succeeded(-60).registered())
        .with(agent(4).registered().without_pod())
        .registered(placeholder("former"))
        .claim(9)
}

#[test]
fn on_unknown_nothing_goes() {
    assert_eq!(
        all_to_go().does(),
        [
            "delete claim 9-cache",
            "delete pod 1",
            "delete pod 2",
            "remove 0 and its pod",
            "remove 3 and its pod",
            "remove 4",
            "remove registration web-placeholder-former",
        ]
    );
    assert_eq!(all_to_go().unknown().does(), NOTHING);
    assert_eq!(all_to_go().deleting().unknown().does(), NOTHING);
    assert_eq!(all_to_go().never_seen().does(), NOTHING);
}

#[test]
fn on_a_stale_look_nothing_goes_that_azure_devops_knows_of() {
    assert_eq!(all_to_go().seen(-10).does(), all_to_go().does());
    assert_eq!(all_to_go().seen(-11).does(), ["delete claim 9-cache"]);
    assert_eq!(
        all_to_go().deleting().seen(-11).does(),
        ["delete claim 9-cache"]
    );
}

#[test]
fn times_at_the_end_of_time_are_never_due() {
    let end = jiff::Timestamp::MAX;
    let mut world = web()
        .ttl(60)
        .with(agent(0).idle_for(60))
        .with(agent(1).failed(-60));
    for registration in &mut world.agent_pool.registrations {
        let registration = Arc::make_mut(registration);
        registration.created_on = Some(end);
        registration.last_finished = registration.last_finished.map(|_| end);
    }
    for pod in &mut world.cluster.pods {
        if let planner::PodPhase::Failed { at } = &mut Arc::make_mut(pod).phase {
            *at = end;
        }
    }
    assert_eq!(world.does(), NOTHING);
}
