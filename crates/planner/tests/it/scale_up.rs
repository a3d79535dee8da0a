//! What is created, when, and under which name.

use planner::{Shortage, Why};

use crate::world::{FOREIGN_MARK, agent, at, done, registration, web, withheld};

#[test]
fn a_quiet_pool_needs_nothing() {
    let plan = web().plan();
    assert_eq!((plan.actions, plan.withheld), (vec![], vec![]));
    assert_eq!(
        (plan.shortage, plan.next, plan.finished),
        (None, None, false)
    );
}

#[test]
fn each_queued_job_gets_an_agent_at_once() {
    assert_eq!(
        web().queued(1).queued(2).does(),
        ["create 0 base once", "create 1 base once"]
    );
    assert_eq!(web().ttl(300).queued(1).does(), ["create 0 base ttl"]);
}

#[test]
fn the_maximum_is_reached_and_not_passed_and_the_oldest_jobs_come_first() {
    let plan = web().max(2).queued(9).queued(4).queued(5).plan();
    assert_eq!(done(&plan), ["create 0 base once", "create 1 base once"]);
    let why: Vec<_> = plan
        .actions
        .into_iter()
        .map(|planned| planned.why)
        .collect();
    assert_eq!(
        why,
        [Why::JobQueued { request: 4 }, Why::JobQueued { request: 5 }]
    );
    let (wanted, granted) = (3, 2);
    assert_eq!(plan.shortage, Some(Shortage { wanted, granted }));
}

#[test]
fn every_pod_that_has_not_ended_counts_against_the_maximum() {
    for sketch in [
        agent(5).created(0),
        agent(5).running(),
        agent(5).busy(7),
        agent(5).stopping(),
        agent(5).running().stopping(),
        agent(5).busy(7).stopping(),
        agent(5).idle_for(5).finished_a_job(-1),
        agent(5).online().disable_sent(),
    ] {
        let plan = web().max(1).with(sketch.clone()).queued(1).queued(2).plan();
        let created: Vec<_> = done(&plan)
            .into_iter()
            .filter(|l| l.starts_with("create"))
            .collect();
        assert!(created.is_empty(), "{created:?} beside {:?}", sketch.pod);
        assert!(plan.shortage.is_some(), "{:?}", sketch.pod);
    }
}

#[test]
fn a_session_without_a_pod_counts_against_the_maximum() {
    let world = web().max(1).with(agent(0).online().without_pod()).queued(1);
    assert_eq!(world.does(), ["disable 0"], "its Pod may not be seen yet");
}

#[test]
fn a_pod_whose_name_we_do_not_give_counts_against_the_maximum_too() {
    let unknown = agent(0).running().named("web-agent-00");
    let world = web().max(1).with(unknown).queued(1);
    assert_eq!(world.does(), [""; 0]);
}

#[test]
fn a_running_job_is_not_a_queued_one() {
    assert_eq!(
        web().with(agent(0).busy(7)).reserved(7, 100).does(),
        [""; 0]
    );
    assert_eq!(web().reserved(7, 55).does(), [""; 0], "a stranger runs it");
}

#[test]
fn agents_that_start_or_idle_are_supply() {
    for sketch in [
        agent(0),
        agent(0).running(),
        agent(0).running().registered(),
        agent(0).idle_for(5),
        agent(0).idle_for(500),
    ] {
        let plan = web().with(sketch.clone()).queued(1).plan();
        assert_eq!(done(&plan), [""; 0], "{:?}", sketch.pod);
    }
}

#[test]
fn agents_that_cannot_take_the_job_are_no_supply() {
    for sketch in [
        agent(0).busy(7),
        agent(0).online().finished_a_job(-5),
        agent(0).online().disable_sent(),
        agent(0).running().created(-601),
        agent(0).succeeded(-10),
        agent(0).stopping(),
        agent(0).running().created(-30).stopping(),
    ] {
        let plan = web().with(sketch.clone()).queued(8).plan();
        let created = done(&plan).contains(&"create 1 base once".to_owned());
        assert!(created, "{plan} for {:?}", sketch.pod);
    }
}

#[test]
fn the_minimum_is_kept_whether_or_not_there_is_work() {
    assert_eq!(
        web().min(2).does(),
        ["create 0 base warm", "create 1 base warm"]
    );
    for sketch in [
        agent(0).warm(),
        agent(0).warm().running(),
        agent(0).warm().idle_for(9999),
        agent(0).warm().busy(7),
        agent(0).warm().idle_for(9999).finished_a_job(-9999),
    ] {
        let plan = web().min(1).with(sketch.clone()).plan();
        assert_eq!(done(&plan), [""; 0], "{:?}", sketch.pod);
    }
    let gone = web().min(1).with(agent(0).warm().running().stopping());
    assert_eq!(gone.does(), ["create 1 base warm"]);
}

#[test]
fn an_agent_of_the_minimum_serves_a_queued_job() {
    assert_eq!(web().min(1).queued(1).does(), ["create 0 base warm"]);
    let idle = web().min(1).with(agent(0).warm().idle_for(5));
    assert_eq!(idle.clone().queued(1).does(), [""; 0]);
    assert_eq!(idle.queued(1).queued(2).does(), ["create 1 base once"]);
}

#[test]
fn a_minimum_that_fills_the_maximum_leaves_room_for_a_job_of_another_profile() {
    let world = web().serving("java").max(1).min(1);
    let full = world.clone().with(agent(0).warm().idle_for(60));
    assert_eq!(full.clone().does(), [""; 0]);
    assert_eq!(full.clone().queued(1).does(), [""; 0], "it serves the job");
    assert_eq!(full.queued_demanding(1, "java").does(), ["disable 0"]);
    let gone = world.queued_demanding(1, "java");
    assert_eq!(gone.does(), ["create 0 java once"], "the job goes first");
}

#[test]
fn the_lowest_free_index_is_taken() {
    let world = web().with(agent(0).busy(7)).with(agent(2).busy(8));
    assert_eq!(
        world.queued(9).queued(10).does(),
        ["create 1 base once", "create 3 base once"]
    );
}

#[test]
fn an_index_is_free_only_when_its_former_registration_is_gone() {
    let world = web().with(agent(0).registered().without_pod()).queued(1);
    assert_eq!(world.does(), ["create 1 base once", "remove 0"]);
    assert_eq!(web().queued(1).does(), ["create 0 base once"]);
}

#[test]
fn an_index_is_free_only_when_its_former_claim_is_gone() {
    let mut world = web().claim(0).queued(1);
    assert_eq!(world.does(), ["create 1 base once", "delete claim 0-cache"]);
    world.cluster.claims[0].stopping = true;
    assert_eq!(world.does(), ["create 1 base once"]);
}

#[test]
fn a_name_of_another_runner_pool_is_skipped() {
    let world = web().taken("web-agent-0").taken("api-agent-1").queued(1);
    assert_eq!(world.does(), ["create 1 base once"]);
}

#[test]
fn a_name_of_a_stranger_is_skipped_in_any_case_and_reported() {
    for (name, mark) in [
        ("web-agent-0", None),
        ("WEB-Agent-0", None),
        ("web-agent-0", Some(FOREIGN_MARK)),
    ] {
        let mut stranger = registration(55, name);
        stranger.owner_mark = mark.map(Into::into);
        let plan = web().registered(stranger).queued(1).plan();
        assert_eq!(done(&plan), ["create 1 base once"], "{name}");
        assert_eq!(withheld(&plan, name), [&Why::NameTaken], "{name}");
    }
}

#[test]
fn a_job_goes_to_the_first_profile_that_it_demands() {
    let world = web().serving("java").serving("node");
    let demands = |demand| world.clone().queued_demanding(1, demand).does();
    assert_eq!(demands("java"), ["create 0 java once"]);
    assert_eq!(demands("JAVA -equals 21"), ["create 0 java once"]);
    assert_eq!(demands("node -gtVersion 2.0"), ["create 0 node once"]);
    assert_eq!(demands("javascript"), ["create 0 base once"]);
    assert_eq!(demands("docker"), ["create 0 base once"]);
}

#[test]
fn an_agent_of_one_profile_does_not_stand_for_a_job_of_another() {
    let world = web().serving("java").with(agent(0).idle_for(5));
    assert_eq!(
        world.queued_demanding(1, "java").does(),
        ["create 1 java once"]
    );
    let world = web().serving("java").with(agent(0).of("java").idle_for(5));
    assert_eq!(world.queued_demanding(1, "java").does(), [""; 0]);
}

#[test]
fn nothing_is_created_before_azure_devops_was_ever_seen() {
    let plan = web().min(1).never_seen().plan();
    assert_eq!(done(&plan), [""; 0]);
    assert!(matches!(
        withheld(&plan, "web-agent-")[..],
        [Why::Unknown { .. }]
    ));
}

#[test]
fn on_unknown_the_minimum_is_kept_and_no_demand_is_invented() {
    let world = web().min(2).with(agent(0).warm().running());
    assert_eq!(
        world.clone().queued(1).queued(2).unknown().does(),
        ["create 1 base warm"]
    );
    let full = world.with(agent(1).warm().running().outdated());
    assert_eq!(full.queued(1).unknown().does(), [""; 0]);
    let stranger = web().min(1).registered(registration(5, "web-agent-0"));
    assert_eq!(
        stranger.unknown().does(),
        ["create 1 base warm"],
        "the last answer still says which names are in use"
    );
}

#[test]
fn on_unknown_an_agent_of_the_minimum_that_ended_is_not_made_again() {
    let world = web().min(1).with(agent(0).warm().failed(-500));
    assert_eq!(world.unknown().does(), [""; 0]);
}

#[test]
fn a_pod_that_fails_at_once_is_made_again_after_a_delay() {
    let failed = [
        agent(0).failed(-10),
        agent(0).failed(-10).registered(),
        agent(0).failed(-10).registered().disabled(),
    ];
    for sketch in failed {
        let world = web().with(sketch.clone()).queued(1);
        let plan = world.plan();
        assert_eq!(done(&plan), [""; 0], "{:?}", sketch.registration);
        assert_eq!(withheld(&plan, "web-agent-0"), [&Why::RetryLater]);
        assert_eq!(plan.next, Some(at(20)));
        let plan = world.seen(19).plan_at(at(20));
        assert_eq!(done(&plan), ["create 1 base once attempt 1"]);
    }
    let warm = web().min(1).with(agent(0).warm().failed(-10));
    assert_eq!(warm.does(), [""; 0]);
    assert_eq!(
        done(&warm.seen(19).plan_at(at(20))),
        ["create 1 base warm attempt 1"]
    );
}

#[test]
fn a_failed_pod_that_may_still_get_jobs_is_disabled_while_it_waits() {
    let mut sketch = agent(0).online();
    sketch = sketch.failed(-10);
    assert_eq!(web().with(sketch).queued(1).does(), ["disable 0"]);
}

#[test]
fn what_failed_after_a_job_does_not_stand_for_another() {
    let labelled = agent(0).failed(-10).labelled(7);
    assert_eq!(
        web().with(labelled).queued(8).does(),
        ["create 1 base once", "delete pod 0"]
    );
    let unlabelled = agent(0).registered().finished_a_job(-11).failed(-10);
    assert_eq!(
        web().with(unlabelled).queued(8).does(),
        ["create 1 base once", "remove 0 and its pod"],
        "its whole job fell between two looks"
    );
}

#[test]
fn what_failed_in_a_former_shape_does_not_delay_the_mended_one() {
    let world = web().with(agent(0).failed(-10).outdated()).queued(1);
    assert_eq!(world.does(), ["create 1 base once", "delete pod 0"]);
}

#[test]
fn a_minimum_of_billions_is_approached_in_steps() {
    let plan = web().min(u32::MAX).max(u32::MAX).plan();
    assert_eq!(plan.actions.len(), 1000);
}
