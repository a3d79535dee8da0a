//! RunnerPools that share an agent pool: a job starts one agent in one of them.

use planner::Hold;

use crate::world::{World, agent, placeholder_of, profile, web};

/// A RunnerPool `team/{name}` of the agent pool, whose agents and placeholders are named by it.
fn pool(name: &str) -> World {
    let mut world = web();
    world.pool.name = format!("team/{name}");
    world.pool.agent_prefix = format!("{name}-agent-");
    world.pool.placeholder_prefix = format!("{name}-placeholder-");
    world.pool.owner_mark = format!("cluster/team/{name}");
    world
}

fn having(mut world: World, capability: &str) -> World {
    world
        .pool
        .profiles
        .push(profile(capability, Some(capability)));
    world
}

/// What each RunnerPool does about its agents when all of them share these jobs, which were queued so many seconds ago.
fn share(mut pools: Vec<World>, demands: &[&[&str]], age: i64) -> Vec<Vec<String>> {
    let mut registrations = Vec::new();
    for world in &pools {
        for profile in &world.pool.profiles {
            let mut placeholder = placeholder_of(profile, None);
            placeholder.id += 100 * i64::try_from(registrations.len()).unwrap();
            placeholder.name = format!("{}{}", world.pool.placeholder_prefix, profile.name);
            placeholder.owner_mark = Some(world.pool.owner_mark.clone());
            registrations.push(placeholder.into());
        }
    }
    for world in &mut pools {
        world.agent_pool.registrations.clone_from(&registrations);
        for (demands, id) in demands.iter().zip(1..) {
            *world = world.clone().job(id, demands, None);
        }
        *world = world.clone().waiting_for(age);
    }
    let plan = |own: usize| {
        let mut world = pools[own].clone();
        let siblings = pools.iter().enumerate().filter(|(other, _)| *other != own);
        world.siblings = siblings.map(|(_, sibling)| sibling.clone()).collect();
        let plan = world.plan();
        let created = plan
            .actions
            .iter()
            .map(|planned| planned.action.subject().to_owned());
        created.collect()
    };
    (0..pools.len()).map(plan).collect()
}

#[test]
fn a_job_starts_one_agent_in_one_of_them() {
    let made = share(vec![pool("b"), pool("a")], &[&[], &[]], 5);
    assert_eq!(made, [vec![], vec!["a-agent-0", "a-agent-1"]], "by name");
    let mut first = pool("b");
    first.pool.priority = 1;
    let made = share(vec![first, pool("a")], &[&[]], 5);
    assert_eq!(made, [vec!["b-agent-0"], vec![]], "by priority");
    let made = share(
        vec![having(pool("b"), "java"), pool("a")],
        &[&["java"], &[]],
        5,
    );
    assert_eq!(
        made,
        [["b-agent-0"], ["a-agent-0"]],
        "the one that declares it"
    );
}

#[test]
fn where_one_has_no_room_another_serves() {
    let made = share(vec![pool("a").max(1), pool("b")], &[&[], &[], &[]], 5);
    assert_eq!(made, [vec!["a-agent-0"], vec!["b-agent-0", "b-agent-1"]]);
    let paused = pool("a").mode(planner::Mode::Paused);
    assert_eq!(share(vec![paused, pool("b")], &[&[]], 5)[1], ["b-agent-0"]);
    let drained = pool("a").mode(planner::Mode::Drained);
    assert_eq!(share(vec![drained, pool("b")], &[&[]], 5)[1], ["b-agent-0"]);
}

#[test]
fn what_one_does_not_do_another_does_after_a_while() {
    let made = share(vec![pool("a"), pool("b")], &[&[]], 31);
    assert_eq!(made[1], ["b-agent-0"], "something keeps the other from it");
}

#[test]
fn one_whose_agents_do_not_start_is_not_waited_for() {
    let stuck = agent(0).created(-20).waiting(Hold::Failing, -20);
    let failed = agent(0).created(-20).failed(-5).attempt(1);
    for sketch in [stuck, failed] {
        let first = pool("a").with(sketch.named("a-agent-0"));
        let made = share(vec![first, pool("b")], &[&[]], 31);
        assert_eq!(made[1], ["b-agent-0"]);
    }
}

#[test]
fn who_knows_and_does_nothing_keeps_nobody_from_finding_out() {
    let knows = pool("a").mode(planner::Mode::Paused);
    let knows = having(knows, "npm");
    for age in [5, 31] {
        let made = share(vec![knows.clone(), pool("b")], &[&["npm"]], age);
        assert_eq!(made[1], ["b-agent-0"], "after {age} s");
    }
}

#[test]
fn an_unknown_demand_starts_one_agent_in_all() {
    let made = share(vec![pool("b"), pool("a")], &[&["npm"], &["npm"]], 5);
    assert_eq!(made, [vec![], vec!["a-agent-0"]]);
}

#[test]
fn one_that_is_finding_out_is_waited_for() {
    for (sketch, waits) in [
        (agent(0).created(-40).waiting(Hold::NoNode, -40), true),
        (agent(0).created(-40).waiting(Hold::NotStarted, -30), true),
        (agent(0).created(-40).waiting(Hold::Failing, -30), false),
        (agent(0).created(-40).waiting(Hold::Queued, -40), false),
        (agent(0).created(-2000).waiting(Hold::NoNode, -2000), false),
    ] {
        let first = pool("a").with(sketch.named("a-agent-0"));
        for demands in [&["npm"][..], &[]] {
            let made = share(vec![first.clone(), pool("b")], &[demands], 31);
            assert_eq!(
                made[1].is_empty(),
                waits,
                "{demands:?}, {:?}",
                first.cluster
            );
        }
    }
}

#[test]
fn without_siblings_each_starts_an_agent_of_its_own() {
    let alone = |name: &str| {
        let plan = pool(name).queued(1).plan();
        let created = |planned: &&planner::Planned| {
            matches!(planned.action, planner::Action::CreateAgent { .. })
        };
        plan.actions.iter().filter(created).count()
    };
    assert_eq!((alone("a"), alone("b")), (1, 1));
}
