//! Planning again upon one look while Pods change: no job gets a second agent.

use crate::world::{LOOK, Sketch, agent, at, done, web};

/// What is created for one queued job when the look shows what it shows and the agent's Pod has changed since.
fn created(sketch: Option<Sketch>) -> Vec<String> {
    let mut world = web().queued(1);
    if let Some(sketch) = sketch {
        world = world.with(sketch);
    }
    let plan = world.plan_at(at(4));
    let lines = done(&plan);
    lines
        .into_iter()
        .filter(|l| l.starts_with("create"))
        .collect()
}

#[test]
fn an_agent_that_was_made_for_a_job_counts_for_it_whatever_became_of_its_pod() {
    let made = agent(0).created(0);
    for (what, sketch) in [
        ("is pending", made.clone()),
        ("runs", made.clone().running()),
        ("ran the job and ended", made.clone().succeeded(3)),
        ("ran the job and failed", made.clone().failed(3)),
        (
            "ended in the second of the look",
            made.clone().created(LOOK).succeeded(LOOK),
        ),
        (
            "is deleted by a stranger and may run the job",
            made.clone().running().stopping(),
        ),
        (
            "was made in the second of the look and is deleted by a stranger",
            made.clone().created(LOOK).running().stopping(),
        ),
        (
            "was deleted by a stranger and ended",
            made.clone().succeeded(3).stopping(),
        ),
    ] {
        assert_eq!(created(Some(sketch)), [""; 0], "a Pod that {what}");
    }
    assert_eq!(
        created(Some(made.stopping())),
        ["create 1 base once"],
        "a Pod that is deleted before it ran cannot get the job"
    );
}

#[test]
fn an_agent_that_was_idle_counts_for_the_job_that_it_may_have_taken() {
    let idle = agent(0).idle_for(5);
    for (what, sketch) in [
        ("is idle", idle.clone()),
        ("ran the job and ended", idle.clone().succeeded(3)),
        ("ran the job and failed", idle.clone().failed(3)),
        (
            "is deleted by a stranger and may run the job",
            idle.clone().stopping(),
        ),
        (
            "is deleted by a stranger, and was disabled after the look",
            idle.clone().stopping().disable_sent(),
        ),
    ] {
        assert_eq!(created(Some(sketch)), [""; 0], "an agent that {what}");
    }
    assert_eq!(
        created(Some(idle.stopping().disabled())),
        ["create 1 base once"],
        "the look shows that it did not take the job"
    );
}

#[test]
fn an_agent_that_was_busy_does_not_count_for_another_job() {
    for sketch in [
        agent(0).busy(7),
        agent(0).busy(7).succeeded(3),
        agent(0).busy(7).stopping(),
        agent(0).online().finished_a_job(-5).stopping(),
    ] {
        assert_eq!(created(Some(sketch)), ["create 1 base once"]);
    }
}

/// The one sequence that nothing can tell apart from a Pod that was deleted before it could take the job.
#[test]
fn an_agent_whose_pod_is_gone_altogether_is_made_again() {
    assert_eq!(created(None), ["create 0 base once"]);
}
