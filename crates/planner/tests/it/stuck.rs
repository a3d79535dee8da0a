//! Pods that fail before they run a job, and Pods that do not start: how long they are waited for, and when another is
//! made in their place.

use std::sync::Arc;

use planner::{Action, Hold, Pod, PodPhase, Waiting, Why, check, plan};

use crate::{
    carry_out::{carry_out, look_again},
    world::{Sketch, World, agent, at, done, web, withheld},
};

const NOTHING: [&str; 0] = [];
const MINUTE: i64 = 60;

/// What is done so many seconds from now, by a look of that moment.
fn does_at(world: &World, seconds: i64) -> Vec<String> {
    done(&world.clone().seen(seconds).plan_at(at(seconds)))
}

#[test]
fn the_wait_after_a_failure_doubles_up_to_ten_minutes() {
    for (attempt, wait) in [30, 60, 120, 240, 480, 600, 600].into_iter().enumerate() {
        let attempt = u32::try_from(attempt).unwrap();
        let failed = agent(0).failed(-5).attempt(attempt);
        let world = web().with(failed.clone()).queued(1);
        assert_eq!(does_at(&world, wait - 6), NOTHING, "attempt {attempt}");
        assert_eq!(world.plan().next, Some(at(wait - 5)));
        let again = format!("create 1 base once attempt {}", attempt + 1);
        assert_eq!(does_at(&world, wait - 5), [again]);
        let warm = web().min(1).with(failed.warm());
        assert_eq!(does_at(&warm, wait - 6), NOTHING);
        let again = format!("create 1 base warm attempt {}", attempt + 1);
        assert_eq!(does_at(&warm, wait - 5), [again]);
    }
}

#[test]
fn a_wait_is_finite_whatever_a_pod_says_of_its_attempt() {
    let world = web().with(agent(0).failed(-5).attempt(u32::MAX)).queued(1);
    assert_eq!(
        does_at(&world, 595),
        [format!("create 1 base once attempt {}", u32::MAX)]
    );
}

#[test]
fn a_failure_is_remembered_until_the_next_attempt_went_well_or_badly() {
    let failed = agent(0).failed(-900).created(-1000).attempt(1);
    let next = agent(1).created(-800).attempt(2);
    let world = |next: Sketch| web().with(failed.clone()).with(next).queued(1);
    assert_eq!(world(next.clone()).does(), NOTHING);
    assert_eq!(world(next.clone().running_since(-100)).does(), NOTHING);
    assert_eq!(
        world(next.clone().idle_for(5)).does(),
        ["delete pod 0"],
        "it came online"
    );
    assert_eq!(
        world(next.clone().busy(7)).does(),
        ["create 2 base once", "delete pod 0"],
        "the next job is the first attempt again"
    );
    assert_eq!(
        world(next.failed(-50)).does(),
        ["delete pod 0"],
        "the later failure tells more"
    );
}

#[test]
fn a_failure_without_another_attempt_is_forgotten_after_twice_its_delay() {
    let failed = web().with(agent(0).failed(-5).attempt(1));
    let plan = failed.clone().seen(60).plan_at(at(60));
    assert_eq!(done(&plan), NOTHING);
    assert_eq!(withheld(&plan, "web-agent-0"), [&Why::RetryLater]);
    assert_eq!(plan.next, Some(at(115)));
    assert_eq!(does_at(&failed, 114), NOTHING);
    assert_eq!(does_at(&failed, 115), ["delete pod 0"]);
    let late = failed.queued(1);
    assert_eq!(
        does_at(&late, 115),
        ["create 1 base once", "delete pod 0"],
        "it begins anew"
    );
}

#[test]
fn of_several_failures_each_waits_its_time_and_the_last_is_remembered() {
    let world = web()
        .with(agent(0).failed(-40))
        .with(agent(1).failed(-35))
        .with(agent(2).failed(-5))
        .queued(1);
    assert_eq!(world.does(), ["delete pod 0", "delete pod 1"]);
    assert_eq!(
        does_at(&world, 25),
        [
            "create 3 base once attempt 1",
            "delete pod 0",
            "delete pod 1"
        ]
    );
}

#[test]
fn a_profile_that_works_again_begins_anew_at_once() {
    let failed = agent(0).failed(-5).created(-100).attempt(4);
    let world = web().with(failed).queued(1);
    assert_eq!(world.does(), NOTHING);
    let recovered = world.clone().with(agent(1).busy(7).created(-10));
    assert_eq!(
        recovered.does(),
        ["create 2 base once", "delete pod 0"],
        "a later Pod came online"
    );
    let earlier = world.with(agent(1).busy(7).created(-300));
    assert_eq!(
        earlier.does(),
        NOTHING,
        "one that was there before proves nothing"
    );
}

#[test]
fn another_profile_or_shape_is_not_delayed() {
    let failed = agent(0).failed(-5).created(-100).attempt(4);
    let java = web().serving("java").with(failed.clone());
    assert_eq!(
        java.queued_demanding(1, "java").does(),
        ["create 1 java once"]
    );
    assert_eq!(
        web().with(failed.outdated()).queued(1).does(),
        ["create 1 base once", "delete pod 0"]
    );
}

#[test]
fn the_second_failure_in_a_row_holds_back_the_jobs_of_its_profile() {
    let jobs = || {
        web()
            .serving("java")
            .queued(1)
            .queued(2)
            .queued_demanding(3, "java")
    };
    let first = jobs().with(agent(0).failed(-5));
    assert_eq!(
        first.does(),
        ["create 1 base once attempt 1", "create 2 java once"]
    );
    let second = jobs().with(agent(0).failed(-5).attempt(1));
    assert_eq!(second.does(), ["create 1 java once"]);
    let warm = web().min(2).with(agent(0).warm().failed(-5).attempt(1));
    assert_eq!(warm.does(), NOTHING);
}

#[test]
fn a_pod_that_its_node_cannot_start_is_given_up_after_a_minute() {
    let stuck = |since| {
        web()
            .with(agent(0).waiting(Hold::Failing, since))
            .queued(1)
            .plan()
    };
    let plan = stuck(-59);
    assert_eq!((done(&plan), plan.next), (vec![], Some(at(1))));
    let plan = stuck(-60);
    assert_eq!(done(&plan), ["give up 0"]);
    assert_eq!(plan.actions[0].why, Why::NotStarting);
}

#[test]
fn a_pod_that_starts_without_an_error_gets_more_time_with_each_attempt() {
    for (attempt, minutes) in [15, 30, 60, 60].into_iter().enumerate() {
        let attempt = u32::try_from(attempt).unwrap();
        let waiting = agent(0).waiting(Hold::NotStarted, 0).attempt(attempt);
        let world = web().with(waiting).queued(1);
        assert_eq!(does_at(&world, minutes * MINUTE - 1), NOTHING);
        assert_eq!(does_at(&world, minutes * MINUTE), ["give up 0"]);
    }
}

#[test]
fn a_pod_without_a_node_keeps_its_place_in_the_queue_of_the_scheduler() {
    let unplaced = agent(0).waiting(Hold::NoNode, -9999);
    let world = web().max(1).serving("java").with(unplaced);
    let plan = world.clone().queued(1).queued(2).plan();
    assert_eq!((done(&plan), plan.next), (vec![], None));
    let java = world.clone().queued(1).queued_demanding(2, "java");
    assert_eq!(
        java.clone().max(2).does(),
        ["create 1 java once"],
        "there is room"
    );
    let plan = java.plan();
    assert_eq!(done(&plan), ["give up 0"]);
    assert_eq!(plan.actions[0].why, Why::NoNode);
    let lately = web()
        .max(1)
        .serving("java")
        .with(agent(0).waiting(Hold::NoNode, 10 - 15 * MINUTE))
        .queued(1)
        .queued_demanding(2, "java")
        .plan();
    assert_eq!((done(&lately), lately.next), (vec![], Some(at(10))));
}

#[test]
fn only_as_many_pods_without_a_node_give_way_as_others_need() {
    let mut world = web().max(3).serving("java");
    for index in 0..3 {
        let since = -9000 + i64::from(index);
        world = world
            .with(agent(index).waiting(Hold::NoNode, since))
            .queued(i64::from(index));
    }
    assert_eq!(
        world.clone().queued_demanding(9, "java").does(),
        ["give up 0"],
        "the one that waits the longest"
    );
    assert_eq!(
        world.clone().queued(8).queued_demanding(9, "java").does(),
        ["give up 0"]
    );
    assert_eq!(
        world
            .with(agent(3).of("java").failed(-5).attempt(2))
            .queued_demanding(9, "java")
            .does(),
        NOTHING,
        "its profile waits for its next attempt"
    );
}

#[test]
fn what_is_not_needed_goes_and_is_not_given_up() {
    let stuck = agent(0).waiting(Hold::Failing, -300);
    assert_eq!(web().with(stuck.clone()).does(), ["delete pod 0"]);
    assert_eq!(
        web().with(stuck.clone().outdated()).queued(1).does(),
        ["create 1 base once", "delete pod 0"]
    );
    let deleting = web().without_registrations().with(stuck).deleting();
    assert_eq!(deleting.does(), ["delete pod 0"]);
}

#[test]
fn what_may_run_a_job_is_not_given_up() {
    for (what, sketch) in [
        ("runs", agent(0).running()),
        ("is registered", agent(0).registered()),
        ("is being deleted", agent(0).stopping()),
    ] {
        let world = web().with(sketch.waiting(Hold::Failing, -300)).queued(1);
        let given_up = world.does().contains(&"give up 0".to_owned());
        assert!(!given_up, "a Pod that {what}");
    }
    let stuck = web().with(agent(0).waiting(Hold::Failing, -300)).queued(1);
    assert_eq!(stuck.does(), ["give up 0"]);
    assert_eq!(stuck.clone().seen(-11).does(), NOTHING, "an old look");
    assert_eq!(stuck.unknown().does(), NOTHING);
}

/// What became of an hour in which Pods of the profile `base` never start while 40 of its jobs wait, and one job of `java`
/// behind them.
struct Hour {
    /// How many Pods were made for `base`.
    made: usize,
    /// After how many seconds the job of `java` had an agent.
    java: Option<i64>,
}

/// Lives through the hour, five seconds a step. Without memory, Pods that are given up are gone, as if they had been
/// deleted.
fn hour(with_memory: bool) -> Hour {
    let mut world = web().max(3).serving("java");
    for request in 1..=40 {
        world = world.queued(request);
    }
    let mut snapshot = world.queued_demanding(99, "java").snapshot();
    let mut hour = Hour {
        made: 0,
        java: None,
    };
    for step in 0..720 {
        let now = at(step * 5);
        snapshot = look_again(&snapshot, now);
        let made = plan(&snapshot, now);
        assert_eq!(check(&snapshot, &made, now), [], "{made}");
        for planned in &made.actions {
            match &planned.action {
                Action::CreateAgent { profile, .. } if profile == "base" => hour.made += 1,
                Action::CreateAgent { .. } => {
                    hour.java.get_or_insert(step * 5);
                }
                _ => {}
            }
        }
        snapshot = carry_out(&snapshot, &made, now);
        if !with_memory {
            let pods = &mut snapshot.cluster.pods;
            pods.retain(|pod| pod.phase.finished_at().is_none());
        }
        snapshot
            .cluster
            .pods
            .iter_mut()
            .for_each(|pod| live(Arc::make_mut(pod), now));
    }
    hour
}

/// A node has each Pod at once and never starts those of `base`.
fn live(pod: &mut Pod, now: jiff::Timestamp) {
    if pod.phase != PodPhase::Pending {
        return;
    }
    if pod.profile == "java" {
        pod.phase = PodPhase::Running;
    } else if pod.waiting.is_none() {
        let hold = Hold::Failing;
        pod.waiting = Some(Waiting { hold, since: now });
    }
}

#[test]
fn a_broken_profile_holds_no_place_for_ever_and_is_tried_ever_more_seldom() {
    let hour = hour(true);
    assert!(
        hour.java.is_some_and(|after| after <= 5 * MINUTE),
        "{:?}",
        hour.java
    );
    // Three places, of which agents of `java` take some, and 1, 1.5, 2, … 10 minutes from one attempt to the next.
    assert!((4..=36).contains(&hour.made), "{}", hour.made);
}

#[test]
fn a_planner_without_memory_of_failures_is_caught() {
    let hour = hour(false);
    assert_eq!(
        hour.java, None,
        "older jobs of the broken profile come first"
    );
    assert!(hour.made > 100, "{}", hour.made);
}
