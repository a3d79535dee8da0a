//! Laws that every plan obeys, over random snapshots.

use std::{collections::HashSet, sync::Arc};

use jiff::Timestamp;
use planner::{
    Action, AgentPool, AgentState, JobRequest, Look, Mode, Plan, Pod, PodPhase, Snapshot, check,
    plan,
};
use proptest::{collection::vec, prelude::*};

use crate::{
    carry_out::{carry_out, look_again},
    oracle::{Wants, queued, starving},
    random::{seen_snapshot, snapshot},
    world::{MARK, at, now},
};

/// A plan as sets: the order of its lists carries no meaning.
fn as_sets(plan: &Plan) -> (Vec<String>, Vec<String>, String) {
    let sorted = |mut lines: Vec<String>| {
        lines.sort();
        lines
    };
    (
        sorted(
            plan.actions
                .iter()
                .map(|action| format!("{action:?}"))
                .collect(),
        ),
        sorted(
            plan.withheld
                .iter()
                .map(|left| format!("{left:?}"))
                .collect(),
        ),
        format!(
            "{:?}",
            (plan.shortage, plan.next, plan.finished, &plan.agents)
        ),
    )
}

fn alive(snapshot: &Snapshot) -> usize {
    let pods = snapshot.cluster.pods.iter();
    pods.filter(|pod| pod.phase.finished_at().is_none()).count()
}

fn creates(plan: &Plan) -> usize {
    let actions = plan.actions.iter();
    actions
        .filter(|planned| matches!(planned.action, Action::CreateAgent { .. }))
        .count()
}

/// Names and ids of registrations that a job is assigned to, by either list of Azure DevOps.
fn busy(agent_pool: &AgentPool) -> (HashSet<&str>, HashSet<i64>) {
    agent_pool
        .registrations
        .iter()
        .filter(|registration| {
            let reserved = |request: &JobRequest| request.reserved_agent == Some(registration.id);
            registration.assigned.is_some() || agent_pool.requests.iter().any(reserved)
        })
        .map(|registration| (registration.name.as_str(), registration.id))
        .unzip()
}

/// The laws that need nothing but one plan.
fn assert_lawful(snapshot: &Snapshot, plan: &Plan, now: Timestamp) -> Result<(), TestCaseError> {
    prop_assert_eq!(check(snapshot, plan, now), [], "{}", plan);
    let created = creates(plan);
    if created > 0 {
        let max = snapshot.pool.max_agents as usize;
        prop_assert!(alive(snapshot) + created <= max, "{}", plan);
    }
    let removals = plan.actions.iter().filter(|planned| {
        matches!(
            planned.action,
            Action::Remove { .. }
                | Action::DeletePod { .. }
                | Action::RemoveRegistration { .. }
                | Action::DeleteClaim { .. }
                | Action::Disable { .. }
        )
    });
    let Look::Known(look) = &snapshot.look else {
        prop_assert_eq!(removals.count(), 0, "{}", plan);
        return Ok(());
    };
    let (names, ids) = busy(&look.agent_pool);
    let ours = |name: &str| {
        look.agent_pool
            .registrations
            .iter()
            .any(|r| r.name == name && r.owner_mark.as_deref() == Some(MARK))
    };
    for planned in removals {
        match &planned.action {
            Action::Remove { agent_id, .. } | Action::RemoveRegistration { agent_id, .. } => {
                prop_assert!(!ids.contains(agent_id), "{}", plan);
            }
            Action::DeletePod { name, .. } => {
                let busy = names.contains(name.as_str()) && ours(name);
                prop_assert!(!busy, "{}", plan);
            }
            _ => {}
        }
    }
    Ok(())
}

/// Carries plans out, each followed by a fresh look, until two in a row are empty. The clock moves by a second a round,
/// and to the time that an empty plan asks for.
fn settle(
    mut snapshot: Snapshot,
    mut now: Timestamp,
) -> Result<(Snapshot, Plan, Timestamp), Box<Plan>> {
    // A removal takes two looks, what it makes room for one more, and a Pod that failed waits for 30 s.
    const ROUNDS: usize = 60;
    let mut last = Plan::default();
    let mut quiet = 0;
    for _ in 0..ROUNDS {
        last = plan(&snapshot, now);
        quiet = if last.actions.is_empty() {
            quiet + 1
        } else {
            0
        };
        if quiet > 1 && last.next.is_none() {
            return Ok((snapshot, last, now));
        }
        snapshot = carry_out(&snapshot, &last, now);
        now += jiff::SignedDuration::from_secs(1);
        if last.actions.is_empty() {
            now = now.max(last.next.unwrap_or(now));
        }
        snapshot = look_again(&snapshot, now);
    }
    Err(Box::new(last))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn every_plan_is_lawful(snapshot in snapshot()) {
        assert_lawful(&snapshot, &plan(&snapshot, now()), now())?;
    }

    #[test]
    fn every_plan_on_the_way_is_lawful(snapshot in seen_snapshot()) {
        let (mut snapshot, mut now) = (snapshot, now());
        for _ in 0..8 {
            let made = plan(&snapshot, now);
            assert_lawful(&snapshot, &made, now)?;
            snapshot = carry_out(&snapshot, &made, now);
            let again = plan(&snapshot, now);
            assert_lawful(&snapshot, &again, now)?;
            for planned in &again.actions {
                let repeated = made.actions.iter().any(|done| done.action == planned.action);
                prop_assert!(!repeated, "what was done is not done again: {:?}", planned);
            }
            now += jiff::SignedDuration::from_secs(1);
            snapshot = look_again(&snapshot, now);
        }
    }

    #[test]
    fn the_order_of_lists_does_not_matter(snapshot in snapshot(), by in 1_usize..6) {
        let mut other = snapshot.clone();
        other.cluster.pods.reverse();
        other.cluster.claims.reverse();
        let shuffle = |agent_pool: &Arc<AgentPool>| {
            let mut agent_pool = AgentPool::clone(agent_pool);
            agent_pool.registrations.reverse();
            if !agent_pool.requests.is_empty() {
                let by = by % agent_pool.requests.len();
                agent_pool.requests.rotate_left(by);
            }
            Arc::new(agent_pool)
        };
        match &mut other.look {
            Look::Known(look) => look.agent_pool = shuffle(&look.agent_pool),
            Look::Unknown { last, .. } => *last = last.as_ref().map(shuffle),
        }
        prop_assert_eq!(as_sets(&plan(&snapshot, now())), as_sets(&plan(&other, now())));
        prop_assert_eq!(plan(&snapshot, now()), plan(&snapshot.clone(), now()));
    }

    #[test]
    fn carried_out_plans_come_to_an_end_and_leave_an_empty_one(snapshot in seen_snapshot()) {
        let settled = settle(snapshot, now());
        let (snapshot, empty, now) = match settled {
            Ok(settled) => settled,
            Err(last) => return Err(TestCaseError::fail(format!("still at it:\n{last}"))),
        };
        let later = look_again(&snapshot, now + jiff::SignedDuration::from_secs(1));
        let again = plan(&later, now + jiff::SignedDuration::from_secs(1));
        prop_assert_eq!(&again.actions, &[], "it does not begin anew; before, next at {:?}\n{}", empty.next, empty);
        prop_assert_eq!(empty.shortage, again.shortage);
    }

    #[test]
    fn in_the_end_every_job_within_the_maximum_has_an_agent(snapshot in seen_snapshot()) {
        prop_assume!(!snapshot.pool.deleting && snapshot.pool.mode == Mode::Active);
        let Ok((snapshot, empty, _)) = settle(snapshot, now()) else {
            return Err(TestCaseError::fail("it does not settle"));
        };
        let missing = starving(&snapshot, &empty);
        let orphans = empty.agents.iter().filter(|agent| agent.pod.is_none() && agent.is_alive());
        let full = alive(&snapshot) + orphans.count() >= snapshot.pool.max_agents as usize;
        prop_assert!(missing == 0 || full, "{} jobs starve\n{}\n{:#?}", missing, empty, empty.agents);
        let idle = |agent: &&planner::Agent| {
            let warm = agent.pod.as_ref().is_some_and(|pod| pod.min_agent);
            !warm && matches!(agent.state, AgentState::Idle { .. })
        };
        let demanded = empty.agents.iter().filter(idle).all(|agent| {
            let name = &agent.pod.as_ref().unwrap().profile;
            let own = Wants::Profile(name.clone());
            queued(&snapshot).iter().any(|wants| *wants == own || !matches!(wants, Wants::Profile(_)))
        });
        prop_assert!(missing == 0 || demanded, "an idle agent keeps a job from its room\n{}", empty);
    }

    #[test]
    fn one_look_never_makes_a_second_agent_for_a_job(
        jobs in 1_usize..6,
        changes in vec((0_usize..6, 0_u8..5), 0..40),
    ) {
        let mut world = crate::world::web().max(20);
        for id in 1..=i64::try_from(jobs).unwrap() {
            world = world.queued(id);
        }
        let mut snapshot = world.snapshot();
        let mut total = 0;
        for (seconds, (which, change)) in (0..).zip(changes) {
            let now = at(seconds % 7);
            let made = plan(&snapshot, now);
            assert_lawful(&snapshot, &made, now)?;
            total += creates(&made);
            prop_assert!(total <= jobs, "{} agents for {} jobs\n{}", total, jobs, made);
            snapshot = carry_out(&snapshot, &made, now);
            if let Some(pod) = snapshot.cluster.pods.get_mut(which) {
                change_pod(Arc::make_mut(pod), change, now);
            }
        }
    }
}

/// What may become of a Pod between two looks, except that it goes without having run.
fn change_pod(pod: &mut Pod, change: u8, now: Timestamp) {
    match (change, pod.phase) {
        (0, PodPhase::Pending) => pod.phase = PodPhase::Running,
        (1, PodPhase::Running) => pod.phase = PodPhase::Succeeded { at: now },
        (2, PodPhase::Running) => pod.phase = PodPhase::Failed { at: now },
        (3, PodPhase::Running | PodPhase::Succeeded { .. } | PodPhase::Failed { .. }) => {
            pod.stopping = true;
        }
        (4, PodPhase::Running) => (pod.request, pod.guarded) = (Some(1), true),
        _ => {}
    }
}
