//! Demands: what a job asks of an agent, and whether an agent's capabilities give it.
//!
//! Names and values are compared without regard to case (protocol section 5).

use std::collections::BTreeMap;

use super::switches::{AgentVersion, Switches};

/// One demand, kept in lower case for comparison.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Demand {
    Exists(String),
    Equals(String, String),
    MinimumVersion(String, String),
}

impl Demand {
    /// Reads `name`, `name -equals value` or `name -gtVersion version`. Nothing is refused: an
    /// unknown operator makes a name that no agent has.
    pub(crate) fn parse(text: &str) -> Self {
        let text = text.trim().to_lowercase();
        let Some((name, rest)) = text.split_once(char::is_whitespace) else {
            return Self::Exists(text);
        };
        let rest = rest.trim_start();
        match rest.split_once(char::is_whitespace) {
            Some(("-equals", value)) => Self::Equals(name.to_owned(), value.trim().to_owned()),
            Some(("-gtversion", value)) => {
                Self::MinimumVersion(name.to_owned(), value.trim().to_owned())
            }
            _ if rest == "-equals" => Self::Equals(name.to_owned(), String::new()),
            _ => Self::Exists(text),
        }
    }

    /// `capabilities` have names and values in lower case; `version` is the agent's field.
    pub(crate) fn is_met(
        &self,
        capabilities: &BTreeMap<String, String>,
        version: &str,
        switches: &Switches,
    ) -> bool {
        match self {
            Self::Exists(name) => capabilities.contains_key(name),
            Self::Equals(name, value) => capabilities.get(name) == Some(value),
            Self::MinimumVersion(name, wanted) => {
                let field = switches.agent_version == AgentVersion::Field;
                let offered = if field && name == "agent.version" {
                    Some(version)
                } else {
                    capabilities.get(name).map(String::as_str)
                };
                offered.is_some_and(|offered| match compare(offered, wanted) {
                    std::cmp::Ordering::Less => false,
                    std::cmp::Ordering::Equal => switches.minimum_version_inclusive,
                    std::cmp::Ordering::Greater => true,
                })
            }
        }
    }
}

/// The demands of a job in one canonical order: equal keys mean equal needs.
pub(crate) fn normalise(demands: &[String]) -> Vec<Demand> {
    let mut parsed: Vec<_> = demands.iter().map(|text| Demand::parse(text)).collect();
    parsed.sort();
    parsed.dedup();
    parsed
}

/// Compares dotted versions by number; what is missing or not a number counts as zero.
fn compare(left: &str, right: &str) -> std::cmp::Ordering {
    let parts = |text: &str| -> Vec<u64> {
        let mut parts: Vec<_> = text
            .split('.')
            .map(|part| part.parse().unwrap_or(0))
            .collect();
        while parts.last() == Some(&0) {
            parts.pop();
        }
        parts
    };
    parts(left).cmp(&parts(right))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn met(demand: &str, switches: &Switches) -> bool {
        let capabilities = [
            ("java", ""),
            ("os", "windows nt"),
            ("agent.version", "3.1.0"),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into();
        Demand::parse(demand).is_met(&capabilities, "4.0.0", switches)
    }

    #[test]
    fn names_and_values_ignore_case_and_values_may_hold_blanks() {
        let switches = Switches::default();
        assert!(met("JAVA", &switches));
        assert!(met("Java -equals", &switches));
        assert!(met("OS -EQUALS Windows NT", &switches));
        assert!(!met("OS -equals Windows", &switches));
        assert!(!met("java17", &switches));
        assert!(!met("java -matches x", &switches));
    }

    #[test]
    fn minimum_version_follows_its_switches() {
        let field = Switches::default();
        assert!(met("Agent.Version -gtVersion 4.0.0", &field));
        assert!(met("Agent.Version -gtVersion 3.999.10", &field));
        assert!(!met("Agent.Version -gtVersion 4.0.1", &field));
        let exclusive = Switches {
            minimum_version_inclusive: false,
            ..Switches::default()
        };
        assert!(!met("Agent.Version -gtVersion 4.0", &exclusive));
        let capability = Switches {
            agent_version: AgentVersion::Capability,
            ..Switches::default()
        };
        assert!(!met("Agent.Version -gtVersion 3.2", &capability));
        assert!(met("Agent.Version -gtVersion 3.1", &capability));
    }

    #[test]
    fn equal_needs_have_one_form() {
        let needs =
            |texts: &[&str]| normalise(&texts.iter().map(|&t| t.to_owned()).collect::<Vec<_>>());
        assert_eq!(
            needs(&["b", "A -equals X"]),
            needs(&["a -EQUALS x", "B", "b"])
        );
    }
}
