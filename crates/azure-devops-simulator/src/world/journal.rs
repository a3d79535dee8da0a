//! What was asked: exact counts by identity and operation, and the latest requests in full.

use std::collections::{BTreeMap, VecDeque};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// One request as it was answered.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Entry {
    /// When it came.
    pub time: Timestamp,
    /// The organization that it addressed.
    pub organization: String,
    /// Who asked: see [`RequestCounts::by_identity`].
    pub identity: String,
    /// The operation: see [`RequestCounts::by_operation`].
    pub operation: String,
    /// HTTP method.
    pub method: String,
    /// The path.
    pub path: String,
    /// Status of the reply. A long poll stands here when it ends, not before.
    pub status: u16,
}

/// How many requests came. Requests to the control API are not counted.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RequestCounts {
    /// All.
    pub total: u64,
    /// By operation: `Agents.List`, `JobRequests.List`, … or `Unknown`.
    pub by_operation: BTreeMap<String, u64>,
    /// By identity and operation. Identities: `pat:{name}`; `registration`, the same token used by
    /// agents while they register or remove themselves (user name `VstsAgent`); `agent` and `job`,
    /// agents with their own and their jobs' tokens; `anonymous`; `unauthorized`.
    pub by_identity: BTreeMap<String, BTreeMap<String, u64>>,
}

impl RequestCounts {
    /// How often an operation was asked for by one identity.
    pub fn of(&self, identity: &str, operation: &str) -> u64 {
        let counts = self.by_identity.get(identity);
        counts
            .and_then(|counts| counts.get(operation))
            .copied()
            .unwrap_or(0)
    }

    /// How many requests one identity made.
    pub fn by(&self, identity: &str) -> u64 {
        self.by_identity
            .get(identity)
            .map_or(0, |counts| counts.values().sum())
    }
}

#[derive(Clone, Debug)]
pub(crate) struct Journal {
    /// By organization in lower case.
    counts: BTreeMap<String, BTreeMap<(String, &'static str), u64>>,
    entries: VecDeque<Entry>,
    capacity: usize,
}

impl Journal {
    pub(crate) fn new(capacity: usize) -> Self {
        Self {
            counts: BTreeMap::new(),
            entries: VecDeque::new(),
            capacity,
        }
    }

    pub(crate) fn count(&mut self, organization: &str, identity: String, operation: &'static str) {
        let organization = self.counts.entry(organization.to_lowercase()).or_default();
        *organization.entry((identity, operation)).or_default() += 1;
    }

    pub(crate) fn push(&mut self, entry: Entry) {
        if self.capacity == 0 {
            return;
        }
        if self.entries.len() == self.capacity {
            self.entries.pop_front();
        }
        self.entries.push_back(entry);
    }

    pub(crate) fn counts(&self, organization: Option<&str>) -> RequestCounts {
        let wanted = organization.map(str::to_lowercase);
        let mut sum = RequestCounts::default();
        for (organization, counts) in &self.counts {
            if wanted.as_ref().is_some_and(|wanted| wanted != organization) {
                continue;
            }
            for ((identity, operation), count) in counts {
                sum.total += count;
                *sum.by_operation.entry((*operation).to_owned()).or_default() += count;
                let by_operation = sum.by_identity.entry(identity.clone()).or_default();
                *by_operation.entry((*operation).to_owned()).or_default() += count;
            }
        }
        sum
    }

    pub(crate) fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.entries.iter()
    }

    pub(crate) fn clear(&mut self) {
        self.counts.clear();
        self.entries.clear();
    }
}
