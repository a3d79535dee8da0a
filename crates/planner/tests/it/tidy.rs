//! Keeps the planner pure: what a crate cannot name it cannot use.

/// The names under `[dependencies]` of a manifest.
fn dependencies(manifest: &str) -> Vec<&str> {
    manifest
        .lines()
        .skip_while(|line| line.trim() != "[dependencies]")
        .skip(1)
        .take_while(|line| !line.starts_with('['))
        .filter_map(|line| line.split(['.', '=', ' ']).next())
        .filter(|name| !name.is_empty() && !name.starts_with('#'))
        .collect()
}

const PLANNER: &str = include_str!("../../Cargo.toml");
const API: &str = include_str!("../../../api/Cargo.toml");

#[test]
fn the_planner_depends_on_jiff_alone() {
    assert_eq!(dependencies(PLANNER), ["jiff"]);
    assert!(
        !PLANNER.contains("[dependencies.") && !PLANNER.contains("[target."),
        "dependencies stand in one table"
    );
}

#[test]
fn the_api_depends_on_nothing_of_ours() {
    let ours = include_str!("../../../../Cargo.toml");
    let ours: Vec<&str> = ours
        .lines()
        .filter(|line| line.contains("path = \"crates/"))
        .filter_map(|line| line.split_whitespace().next())
        .collect();
    assert!(ours.contains(&"planner"), "{ours:?}");
    let dependencies = dependencies(API);
    assert!(dependencies.contains(&"kube"), "{dependencies:?}");
    for name in dependencies {
        assert!(!ours.contains(&name), "api depends on {name}");
    }
}
