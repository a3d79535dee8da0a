//! What a job demands of an agent, read and compared as Azure DevOps does: names and values without regard to case,
//! `-gtVersion` as "at least this version".
//!
//! Source: Microsoft's pages on demands, and observations of the service where they are silent; see `docs/demands.md`.

use std::cmp::Ordering;

use crate::Capabilities;

/// One demand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Demand<'a> {
    /// `name`: the capability is there, whatever its value.
    Exists {
        /// Its name.
        name: &'a str,
    },
    /// `name -equals value`.
    Equals {
        /// Name of the capability.
        name: &'a str,
        /// Its value; may hold blanks.
        value: &'a str,
    },
    /// `name -gtVersion version`.
    AtLeast {
        /// Name of the capability.
        name: &'a str,
        /// Numbers separated by points, as many as there are.
        version: &'a str,
    },
    /// Something else. No agent is known to meet it.
    Unreadable,
}

impl<'a> Demand<'a> {
    /// Reads a demand. The first word is the name; what follows the operator is the value.
    pub fn parse(text: &'a str) -> Self {
        let text = text.trim();
        let (name, rest) = split_word(text);
        if name.is_empty() || name.starts_with(['-', '{', '[', '"']) {
            return Self::Unreadable;
        }
        if rest.is_empty() {
            return Self::Exists { name };
        }
        let (operator, value) = split_word(rest);
        if operator.eq_ignore_ascii_case("-equals") && !value.is_empty() {
            Self::Equals { name, value }
        } else if operator.eq_ignore_ascii_case("-gtVersion") && numbers(value).is_some() {
            let version = value;
            Self::AtLeast { name, version }
        } else {
            Self::Unreadable
        }
    }

    /// Name of the capability that it is about; `None` for one that cannot be read.
    pub fn name(self) -> Option<&'a str> {
        match self {
            Self::Exists { name } | Self::Equals { name, .. } | Self::AtLeast { name, .. } => {
                Some(name)
            }
            Self::Unreadable => None,
        }
    }

    /// Whether an agent of these capabilities meets it.
    pub fn is_met_by(self, capabilities: &Capabilities) -> bool {
        match self {
            Self::Exists { name } => capabilities.has(name),
            Self::Equals { name, value } => capabilities
                .get(name)
                .is_some_and(|has| has.to_lowercase() == value.to_lowercase()),
            Self::AtLeast { name, version } => capabilities
                .get(name)
                .is_some_and(|has| is_at_least(has, version)),
            Self::Unreadable => false,
        }
    }
}

/// The first word, and the rest without the blanks between them.
fn split_word(text: &str) -> (&str, &str) {
    match text.split_once(char::is_whitespace) {
        Some((word, rest)) => (word, rest.trim()),
        None => (text, ""),
    }
}

/// The numbers of a version, without leading zeros; `None`: it is none.
fn numbers(version: &str) -> Option<Vec<&str>> {
    let number = |text: &'_ str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    version
        .trim()
        .split('.')
        .map(|part| number(part).then(|| part.trim_start_matches('0')))
        .collect()
}

fn is_at_least(has: &str, version: &str) -> bool {
    let (Some(has), Some(version)) = (numbers(has), numbers(version)) else {
        return false;
    };
    let parts = has.len().max(version.len());
    let part = |numbers: &[&str], index: usize| {
        let number = numbers.get(index).copied().unwrap_or_default();
        (number.len(), number.to_owned())
    };
    let order = (0..parts)
        .map(|index| part(&has, index).cmp(&part(&version, index)))
        .find(|order| order.is_ne());
    order != Some(Ordering::Less)
}
