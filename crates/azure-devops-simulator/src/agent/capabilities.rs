//! What an agent says that it can do: environment, tools, and facts about itself (protocol
//! section 5).

use std::collections::BTreeMap;

use super::Launch;

/// The version that simulated agents report.
pub(super) const VERSION: &str = "4.260.0";
pub(super) const OS_DESCRIPTION: &str = "Linux simulated";

/// Variables that a real agent leaves out, in lower case.
const SKIPPED: &[&str] = &[
    "comp_wordbreaks",
    "ls_colors",
    "term",
    "term_program",
    "term_program_version",
    "shlvl",
    "psmodulepath",
    "system_accesstoken",
];
/// Values of this length or more are left out.
const LENGTH_LIMIT: usize = 1024;
/// What the documented start script keeps to itself: it exports these as `VSO_AGENT_IGNORE`.
const IGNORED_BY_SCRIPT: &[&str] = &["AZP_TOKEN", "AZP_TOKEN_FILE"];

/// All capabilities. Later ones win over earlier ones of the same name in any case.
pub(super) fn scan(launch: &Launch, agent_name: &str) -> BTreeMap<String, String> {
    let ignored: Vec<String> = launch
        .env
        .get("VSO_AGENT_IGNORE")
        .map_or("", String::as_str)
        .split(',')
        .chain(IGNORED_BY_SCRIPT.iter().copied())
        .map(|name| name.trim().to_lowercase())
        .collect();
    let visible = |name: &str, value: &str| {
        let name = name.to_lowercase();
        !SKIPPED.contains(&name.as_str())
            && !ignored.contains(&name)
            && value.chars().count() < LENGTH_LIMIT
    };
    let environment = launch
        .env
        .iter()
        .filter(|(name, value)| visible(name, value));
    let work = launch.env.get("AZP_WORK").map_or("_work", String::as_str);
    let own = [
        ("Agent.Name", agent_name),
        ("Agent.OS", "Linux"),
        ("Agent.OSArchitecture", "X64"),
        ("InteractiveSession", "False"),
        ("Agent.Version", VERSION),
        ("Agent.ComputerName", &launch.host_name),
        ("Agent.HomeDirectory", "/azp"),
        ("Agent.WorkFolder", work),
    ];
    let pairs = environment
        .chain(&launch.tools)
        .map(|(name, value)| (name.as_str(), value.as_str()))
        .chain(own);
    let mut by_lower_name = BTreeMap::new();
    for (name, value) in pairs {
        by_lower_name.insert(name.to_lowercase(), (name.to_owned(), value.to_owned()));
    }
    by_lower_name.into_values().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::Pace;

    #[test]
    fn environment_shows_except_what_real_agents_skip() {
        let long = "x".repeat(LENGTH_LIMIT);
        let env = [
            ("JAVA_HOME", "/opt/java"),
            ("TERM", "xterm"),
            ("AZP_TOKEN", "secret"),
            ("MINE", "secret"),
            ("VSO_AGENT_IGNORE", "other, mine"),
            ("LONG", long.as_str()),
            ("AZP_POOL", "linux"),
        ];
        let launch = Launch {
            env: env
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .into(),
            args: Vec::new(),
            tools: [("java".to_owned(), "/usr/bin/java".to_owned())].into(),
            host_name: "pod".to_owned(),
            pace: Pace::fast(),
        };
        let found = scan(&launch, "agent-1");
        for name in [
            "JAVA_HOME",
            "AZP_POOL",
            "java",
            "VSO_AGENT_IGNORE",
            "Agent.Version",
        ] {
            assert!(found.contains_key(name), "{name} is missing");
        }
        for name in ["TERM", "AZP_TOKEN", "MINE", "LONG"] {
            assert!(!found.contains_key(name), "{name} shows");
        }
        assert_eq!(found["Agent.Name"], "agent-1");
    }
}
