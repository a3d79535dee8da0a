//! Demands as Azure DevOps means them, and what becomes of the jobs that make them.

use std::sync::Arc;

use planner::{Action, AgentPool, Capabilities, Demand, Lacking, Look, Mode, Profile, Why};

use crate::world::{
    Sketch, World, agent, at, done, now, placeholder_of, profile, registration, web,
};

const NOTHING: [&str; 0] = [];
const LEARNS: [&str; 2] = [
    "remember web-placeholder-base.mark",
    "update placeholder web-placeholder-base",
];

fn met(demand: &str, capabilities: &[(&str, &str)]) -> bool {
    Demand::parse(demand).is_met_by(&capabilities.iter().copied().collect())
}

#[test]
fn names_and_values_are_compared_without_regard_to_case() {
    let has = [
        ("Java", "17"),
        ("Tool", "Visual Studio 2022"),
        ("empty", ""),
    ];
    assert!(met("java", &has) && met("  JAVA  ", &has) && met("empty", &has));
    assert!(met("java -equals 17", &has) && !met("java -equals 18", &has));
    assert!(met("tool -EQUALS  visual studio 2022", &has));
    assert!(!met("tool -equals visual", &has) && !met("javac", &has));
}

#[test]
fn versions_are_compared_number_by_number() {
    let has = [
        ("v", "4.255.0"),
        ("long", "1.2.3.4.5.6"),
        ("word", "latest"),
    ];
    for (wanted, is_met) in [
        ("4.255.0", true),
        ("4.255", true),
        ("4.99.9", true),
        ("4.255.1", false),
        ("5", false),
        ("04.0255.00.0", true),
        ("4.255.0.0.1", false),
        ("4.99999999999999999999999999", false),
    ] {
        assert_eq!(
            met(&format!("v -gtVersion {wanted}"), &has),
            is_met,
            "{wanted}"
        );
    }
    assert!(met("long -gtVersion 1.2.3.4.5.5", &has));
    assert!(!met("word -gtVersion 1", &has) && !met("none -gtVersion 1", &has));
}

#[test]
fn what_cannot_be_read_is_met_by_nobody() {
    for text in [
        "",
        " ",
        "java -ltVersion 3",
        "java 17",
        "java -equals",
        "java -gtVersion latest",
        "-equals x",
        r#"{"name":"java"}"#,
    ] {
        assert_eq!(Demand::parse(text), Demand::Unreadable, "{text:?}");
        let has = [("java", "17"), (text, "")];
        assert!(!met(text, &has), "{text:?}");
    }
}

fn image(names: &[&str]) -> Arc<Capabilities> {
    let all = names.iter().chain(&["Agent.OS"]);
    let mut all: Capabilities = all.map(|name| (*name, "/usr/bin")).collect();
    all.insert("AZP_CAPABILITY", "base");
    Arc::new(all)
}

#[test]
fn one_agent_finds_out_what_an_unknown_image_can_do() {
    let world = web()
        .queued_demanding(1, "npm")
        .queued_demanding(2, "npm")
        .queued_demanding(3, "cmake");
    assert_eq!(world.does(), ["create 0 base once"]);
    let starting = world.clone().with(agent(0));
    assert_eq!(starting.does(), NOTHING, "it is on its way");
    let plain = web().queued(1).queued_demanding(2, "npm");
    assert_eq!(plain.does(), ["create 0 base once"], "any agent finds out");
}

#[test]
fn what_an_agent_reports_is_learned_and_remembered() {
    let reports = |names: &[&str]| {
        let mut online = agent(0).online();
        let registration = online.registration.as_mut().unwrap();
        registration.capabilities.system = image(names);
        registration.assigned = Some(9);
        online.labelled(9)
    };
    let world = web().queued_demanding(1, "npm").queued_demanding(2, "npm");
    assert_eq!(
        world.clone().with(reports(&["npm"])).does(),
        [
            "create 1 base once",
            "create 2 base once",
            "remember web-placeholder-base.mark",
            "update placeholder web-placeholder-base"
        ]
    );
    let plan = world.clone().with(reports(&["cmake"])).plan();
    assert_eq!(done(&plan), LEARNS);
    let lacking = Lacking {
        demands: vec!["npm".into()],
        together: false,
        unreported: None,
    };
    let unserved = plan.unserved.iter().map(|job| (job.request, &job.lacking));
    assert_eq!(unserved.collect::<Vec<_>>(), [(1, &lacking), (2, &lacking)]);

    let base = profile("base", None);
    let remembering = |names: &[&str]| {
        let mut world = world.clone();
        world.agent_pool.registrations = vec![placeholder_of(&base, Some(&image(names))).into()];
        world
    };
    assert_eq!(
        remembering(&["npm"]).does(),
        ["create 0 base once", "create 1 base once"]
    );
    assert_eq!(remembering(&["cmake"]).does(), NOTHING);
    let mut other_image = remembering(&["cmake"]);
    other_image.pool.profiles[0].image = "another".into();
    assert_eq!(
        other_image.does(),
        ["create 0 base once"],
        "what another image could do says nothing, and stays on the placeholder until the new one is known"
    );
}

/// The world as the look shows it after a plan was carried out.
fn after(world: &World) -> World {
    let snapshot = crate::carry_out::carry_out(&world.snapshot(), &world.plan(), now());
    let Look::Known(look) = snapshot.look else {
        unreachable!("it was known before");
    };
    let mut world = world.clone();
    world.agent_pool = AgentPool::clone(&look.agent_pool);
    world.memory = planner::Memory::clone(&look.memory);
    world
}

fn reporting(index: u32, capabilities: &[(&str, &str)]) -> Sketch {
    let mut busy = agent(index).busy(i64::from(index) + 50);
    let mut reported = Capabilities::clone(&image(&[]));
    reported.extend(capabilities.iter().copied());
    busy.registration.as_mut().unwrap().capabilities.system = Arc::new(reported);
    busy
}

#[test]
fn learning_comes_to_rest() {
    let mut world = web().with(agent(0).busy(9));
    for (names, value) in [
        (&["npm"][..], "/usr/bin"),
        (&["npm", "cmake"], "/usr/bin"),
        (&["cmake"], "/usr/bin"),
        (&["cmake"], "/opt"),
    ] {
        let mut reported: Capabilities = names.iter().map(|name| (*name, value)).collect();
        reported.extend([
            ("Agent.OS", "Linux"),
            ("Agent.Version", "4.255.0"),
            ("AZP_CAPABILITY", "base"),
            ("AZP_POOL", "ci"),
        ]);
        Arc::make_mut(&mut world.agent_pool.registrations[1])
            .capabilities
            .system = Arc::new(reported.clone());
        assert_eq!(world.does(), LEARNS);
        world = after(&world);
        assert_eq!(world.does(), NOTHING);
        reported.insert("AGENT.VERSION", "4.256.0");
        Arc::make_mut(&mut world.agent_pool.registrations[1])
            .capabilities
            .system = Arc::new(reported);
        assert_eq!(
            world.does(),
            ["remember web-placeholder-base.mark"],
            "agents update themselves, and the placeholder's version is its own"
        );
        world = after(&world);
    }
}

#[test]
fn what_two_agents_of_one_image_differ_in_comes_to_rest() {
    let (old, new) = (
        [("tool", "8.0.1")],
        [("tool", "9.0.0"), ("npm", "/usr/bin")],
    );
    let mut world = after(&web().with(reporting(0, &old)));
    assert_eq!(world.does(), NOTHING);
    world = world.with(reporting(1, &new));
    assert_eq!(world.does(), LEARNS, "the newest counts");
    world = after(&world);
    assert_eq!(world.does(), NOTHING);
    for demand in ["npm", "tool -gtVersion 9"] {
        let queued = world.clone().queued_demanding(1, demand);
        assert_eq!(queued.does(), ["create 2 base once"]);
    }
    let older = world.clone().queued_demanding(1, "tool -equals 8.0.1");
    assert_eq!(older.plan().unserved.len(), 1);
    // It goes before the older one.
    world.cluster.pods.remove(1);
    world.agent_pool.registrations.remove(2);
    assert_eq!(world.does(), NOTHING);
    assert_eq!(
        world.queued_demanding(1, "npm").does(),
        ["create 1 base once"]
    );
}

#[test]
fn what_a_placeholder_must_not_tell_is_remembered() {
    let secret = [("flavor", "full"), ("TEAM", "blue")];
    let mut world = web();
    world.pool.profiles[0].given.insert("TEAM", "");
    let asking = |world: &World, demand: &str| {
        let plan = world.clone().queued_demanding(1, demand).plan();
        let created = plan.actions.iter();
        let created =
            created.filter(|planned| matches!(planned.action, Action::CreateAgent { .. }));
        (created.count(), plan.unserved.len())
    };
    let mut taught = after(&world.clone().with(reporting(0, &secret)));
    taught.cluster.pods.clear();
    taught.agent_pool.registrations.truncate(1);
    let mut restarted = taught.clone();
    restarted.memory = planner::Memory::default();
    for (demand, is_met) in [
        ("flavor -equals full", true),
        ("flavor -equals slim", false),
        ("TEAM -equals blue", true),
        ("TEAM -equals red", false),
    ] {
        assert_eq!(asking(&world, demand), (1, 0), "{demand}: nothing is known");
        let known = (usize::from(is_met), usize::from(!is_met));
        assert_eq!(asking(&taught, demand), known, "{demand}");
        assert_eq!(asking(&restarted, demand), (1, 0), "{demand}, to find out");
    }
}

#[test]
fn a_registration_of_a_former_agent_teaches_nothing() {
    let mut busy = agent(0).busy(9);
    let registration = busy.registration.as_mut().unwrap();
    registration.capabilities.system = image(&["npm"]);
    let of_another_profile = web().serving("java").with(busy.clone().of("java"));
    assert_eq!(of_another_profile.does(), NOTHING);
    busy.registration.as_mut().unwrap().created_on = Some(at(-90));
    assert_eq!(web().with(busy).does(), NOTHING, "older than its Pod");
}

#[test]
fn a_value_that_may_be_secret_is_not_copied() {
    let mut busy = agent(0).busy(9);
    let registration = busy.registration.as_mut().unwrap();
    let reported = [
        ("PASSWORD", "hunter2"),
        ("java", "/usr/bin/java"),
        ("tool", "1.20.3"),
        ("HOSTNAME", "web-agent-0"),
        ("AZP_CAPABILITY", "base"),
    ];
    registration.capabilities.system = Arc::new(reported.into_iter().collect());
    let world = web().with(busy);
    let plan = world.plan();
    let mut updates = plan
        .actions
        .iter()
        .filter_map(|planned| match &planned.action {
            Action::UpdatePlaceholder { capabilities, .. } => Some(capabilities),
            _ => None,
        });
    let capabilities = updates.next().unwrap();
    let learned = &capabilities.system;
    assert_eq!(learned.get("PASSWORD"), Some("***"));
    assert_eq!(learned.get("java"), Some("/usr/bin/java"));
    assert_eq!(learned.get("tool"), Some("1.20.3"));
    assert_eq!(learned.get("HOSTNAME"), None);
    assert_eq!(learned.get("Agent.ComputerName"), Some(""));
    // Whether it has a value that is not remembered, an agent has to tell.
    let mut later = web().queued_demanding(1, "password -equals x");
    Arc::make_mut(&mut later.agent_pool.registrations[0]).capabilities = capabilities.clone();
    assert_eq!(later.does(), ["create 0 base once"]);
}

#[test]
fn a_placeholder_that_somebody_deleted_comes_back_with_what_it_knew() {
    let knew = placeholder_of(&profile("base", None), Some(&image(&["npm"])));
    let mut world = web();
    world.agent_pool.registrations = vec![knew.clone().into()];
    let mut memory = Arc::default();
    planner::Memory::take(&mut memory, &world.agent_pool, at(-60));
    world.agent_pool.registrations.clear();
    planner::Memory::take(&mut memory, &world.agent_pool, at(-2));
    world.memory = planner::Memory::clone(&memory);
    let plan = world.plan();
    let Action::AddPlaceholder { capabilities, .. } = &plan.actions[0].action else {
        unreachable!("{plan}");
    };
    assert_eq!(*capabilities, knew.capabilities);
}

#[test]
fn without_placeholders_one_agent_finds_out_once() {
    let world = web()
        .without_registrations()
        .without_placeholders()
        .queued_demanding(1, "npm");
    assert_eq!(world.does(), ["create 0 base once"]);
    let mut taught = world.clone().with(reporting(0, &[("cmake", "/usr/bin")]));
    assert_eq!(taught.does(), ["remember web-placeholder-base.mark"]);
    taught = after(&taught);
    assert_eq!(taught.does(), NOTHING, "it is remembered once");
    let mut later = world;
    later.memory = taught.memory;
    assert_eq!(later.does(), NOTHING, "the agent is gone, and known");
    assert_eq!(later.plan().unserved.len(), 1);
    later = later.queued_demanding(2, "cmake");
    assert_eq!(later.does(), ["create 0 base once"]);
    later.pool.profiles[0].image = "another".into();
    assert_eq!(later.plan().unserved, [], "another image may have npm");
}

#[test]
fn what_two_runner_pools_of_one_name_remember_is_apart() {
    let base = profile("base", None);
    let carries = |names: &[&str]| placeholder_of(&base, Some(&image(names))).capabilities;
    let mut world = web().without_registrations().queued_demanding(1, "npm");
    let [plain, own] = world.pool.placeholder_names("base");
    world.memory.placeholders = [(plain, carries(&["npm"])), (own, carries(&["cmake"]))].into();
    assert_eq!(world.does(), ["add placeholder web-placeholder-base"]);
    assert_eq!(world.plan().unserved.len(), 1);
}

#[test]
fn what_a_profile_declares_counts_until_its_agents_deny_it() {
    let world = web().serving("java").queued_demanding(1, "java -equals 17");
    assert_eq!(world.does(), ["create 0 java once"]);
    let java = profile("java", Some("java"));
    let mut denied = world.clone();
    denied.agent_pool.registrations[1] = placeholder_of(&java, Some(&image(&["npm"]))).into();
    // The base may have it, for all that is known.
    assert_eq!(denied.does(), ["create 0 base once"]);
    let base = profile("base", None);
    denied.agent_pool.registrations[0] = placeholder_of(&base, Some(&image(&[]))).into();
    let plan = denied.plan();
    assert_eq!(done(&plan), NOTHING);
    assert_eq!(
        plan.unserved[0].lacking.to_string(),
        "the agents of profile java do not report what it declares (java -equals 17)"
    );
}

#[test]
fn a_job_that_nobody_serves_holds_back_no_other() {
    let base = profile("base", None);
    let mut world = web()
        .max(1)
        .queued_demanding(1, "gpu")
        .queued_demanding(2, "{}")
        .queued(3);
    world.agent_pool.registrations[0] = placeholder_of(&base, Some(&image(&[]))).into();
    let plan = world.plan();
    assert_eq!(done(&plan), ["create 0 base once"]);
    assert_eq!(plan.actions[0].why, Why::JobQueued { request: 3 });
    assert_eq!(plan.unserved.len(), 2);
    assert_eq!(plan.shortage, None, "there is no want of room");
    let drained = world.mode(Mode::Drained).plan();
    assert_eq!(
        drained.unserved,
        [],
        "nor does it tell while there is to be no agent"
    );
}

#[test]
fn all_demands_are_met_by_one_profile() {
    let mut both = Profile {
        declared: [("java", ""), ("npm", "")].into_iter().collect(),
        ..profile("both", None)
    };
    both.max_agents = Some(1);
    let mut world = web().serving("java").serving("npm");
    for name in ["base", "java", "npm"] {
        let known = profile(name, (name != "base").then_some(name));
        let registrations = &mut world.agent_pool.registrations;
        registrations.retain(|placeholder| !placeholder.name.ends_with(name));
        registrations.push(placeholder_of(&known, Some(&image(&[name]))).into());
    }
    let demanding = |world: crate::world::World, id: i64| {
        world.job(id, &["java", "npm", "Agent.Version -gtVersion 99"], None)
    };
    let plan = demanding(world.clone(), 1).plan();
    assert_eq!(done(&plan), NOTHING);
    assert_eq!(
        plan.unserved[0].lacking.to_string(),
        "no profile meets all of java, npm"
    );
    world
        .agent_pool
        .registrations
        .push(placeholder_of(&both, None).into());
    world.pool.profiles.push(both);
    let served = demanding(demanding(world, 1), 2)
        .queued_demanding(3, "java")
        .plan();
    assert_eq!(done(&served), ["create 0 both once", "create 1 java once"]);
    let shortage = served.shortage.unwrap();
    assert_eq!(
        (shortage.wanted, shortage.granted),
        (3, 2),
        "a profile is full"
    );
}

#[test]
fn agents_of_others_are_left_their_jobs_for_a_while() {
    let mut stranger = registration(50, "buildbox");
    stranger.owner_mark = None;
    stranger.online = true;
    stranger.capabilities.user = Arc::new([("java", "17")].into_iter().collect());
    let mut world = web()
        .serving("java")
        .queued_demanding(1, "java -equals 17")
        .queued_demanding(2, "java -equals 17")
        .registered(stranger.clone());
    world = world.waiting_for(10);
    let plan = world.plan();
    assert_eq!(done(&plan), ["create 0 java once"], "it serves one of them");
    assert_eq!(plan.next, Some(at(20)), "and not for ever");
    world = world.waiting_for(30);
    assert_eq!(world.does(), ["create 0 java once", "create 1 java once"]);

    stranger.capabilities.user = Arc::new([("xcode", "")].into_iter().collect());
    stranger.assigned = Some(7);
    let elsewhere = web().queued_demanding(1, "xcode").registered(stranger);
    let base = profile("base", None);
    let mut elsewhere = elsewhere;
    elsewhere.agent_pool.registrations[0] = placeholder_of(&base, Some(&image(&[]))).into();
    let plan = elsewhere.plan();
    assert_eq!((done(&plan), plan.unserved), (vec![], vec![]));
}

#[test]
fn a_job_that_wants_a_certain_agent_gets_no_other() {
    let pinned = |name: &str| format!("Agent.Name -equals {name}");
    let world = web().with(agent(0).busy(9));
    let waits = world
        .clone()
        .queued_demanding(1, &pinned("WEB-agent-0"))
        .plan();
    assert_eq!((done(&waits), waits.unserved), (vec![], vec![]));
    let vain = world.queued_demanding(1, &pinned("web-agent-7")).plan();
    assert_eq!(done(&vain), NOTHING);
    assert_eq!(vain.unserved.len(), 1);
}

#[test]
fn each_profile_has_its_own_minimum_and_maximum() {
    let mut world = web().max(4).serving("java").queued(1);
    world.pool.profiles[1].min_agents = 2;
    world.pool.profiles[1].max_agents = Some(2);
    assert_eq!(
        world.does(),
        [
            "create 0 base once",
            "create 1 java warm",
            "create 2 java warm"
        ]
    );
    world.pool.profiles[0].min_agents = 1;
    for request in 2..5 {
        world = world.queued_demanding(request, "java");
    }
    let plan = world.plan();
    assert_eq!(
        done(&plan),
        [
            "create 0 base warm",
            "create 1 java warm",
            "create 2 java warm"
        ]
    );
    assert_eq!(plan.shortage.unwrap().wanted, 4);
}

#[test]
fn where_the_service_judges_a_placeholder_otherwise_it_is_counted() {
    let placeholder = placeholder_of(&profile("base", None), Some(&image(&["npm"])));
    let id = placeholder.id;
    let mut world = web()
        .queued_demanding(1, "npm")
        .queued_demanding(2, "xcode");
    world.agent_pool.registrations = vec![placeholder.into()];
    let disputed = |matched: [Option<Vec<i64>>; 2]| {
        let mut world = world.clone();
        for (request, matched) in world.agent_pool.requests.iter_mut().zip(matched) {
            request.matched = matched;
        }
        world.plan().disputed
    };
    assert_eq!(disputed([None, None]), 0, "it does not say");
    assert_eq!(disputed([Some(vec![7, id]), Some(vec![7])]), 0);
    assert_eq!(disputed([Some(vec![7]), None]), 1, "it does not match");
    assert_eq!(disputed([Some(vec![]), Some(vec![id])]), 2, "it matches");
}
