//! What a hollow node does wrong on demand.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
};

use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;
use tokio::sync::watch;

/// A way in which a pod goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// The image cannot be pulled, until the rule is retracted.
    ImagePullBackOff,
    /// No node can be found, until the rule is retracted.
    HangPending,
    /// The agent ends at once, with exit code 1.
    CrashAtStart,
    /// The agent runs, and its container is then said to have ended with this exit code.
    ExitCode(i32),
    /// As soon as the pod is Running, its process dies and the pod object disappears, with no goodbye.
    Vanish,
    /// As soon as the pod is Running, its process dies and the pod object stays as it is until it is removed by force:
    /// what a lost node looks like to its pods. [`crate::HollowNode::lose`] does it to the whole node.
    NodeLost,
}

/// A way to go wrong and the pods that it hits. The first rule that matches a pod when the node first sees it is the pod's.
#[derive(Clone, Debug)]
pub struct Rule {
    what: What,
    namespace: Option<String>,
    name: Option<String>,
    labels: BTreeMap<String, String>,
    probability: f64,
    remaining: Option<usize>,
}

impl Rule {
    /// Hits every pod.
    pub fn new(what: What) -> Self {
        Self {
            what,
            namespace: None,
            name: None,
            labels: BTreeMap::new(),
            probability: 1.0,
            remaining: None,
        }
    }

    /// Only pods of the namespace.
    #[must_use]
    pub fn in_namespace(mut self, namespace: impl Into<String>) -> Self {
        self.namespace = Some(namespace.into());
        self
    }

    /// Only pods of the name.
    #[must_use]
    pub fn named(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// Only pods with the label; with several calls, all of them.
    #[must_use]
    pub fn labelled(mut self, label: impl Into<String>, value: impl Into<String>) -> Self {
        self.labels.insert(label.into(), value.into());
        self
    }

    /// Only this share of the pods, 0 to 1. Decided by the pod's uid, which is random.
    #[must_use]
    pub fn with_probability(mut self, probability: f64) -> Self {
        self.probability = probability;
        self
    }

    /// Only the first so many pods.
    #[must_use]
    pub fn first(mut self, pods: usize) -> Self {
        self.remaining = Some(pods);
        self
    }

    fn matches(&self, pod: &Pod) -> bool {
        self.remaining != Some(0)
            && self
                .namespace
                .as_ref()
                .is_none_or(|namespace| pod.metadata.namespace.as_ref() == Some(namespace))
            && self
                .name
                .as_ref()
                .is_none_or(|name| pod.metadata.name.as_ref() == Some(name))
            && self
                .labels
                .iter()
                .all(|(label, value)| pod.labels().get(label) == Some(value))
            && fraction(pod.metadata.uid.as_deref().unwrap_or_default()) < self.probability
    }
}

/// A rule in force, to be retracted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RuleId(u64);

/// The rules in force, oldest first.
#[derive(Debug)]
pub(crate) struct Rules {
    rules: Mutex<BTreeMap<RuleId, Rule>>,
    /// How many rules there were ever; a change of it tells that rules changed.
    changes: watch::Sender<u64>,
}

impl Rules {
    pub(crate) fn new() -> Self {
        Self {
            rules: Mutex::default(),
            changes: watch::Sender::new(0),
        }
    }

    pub(crate) fn inject(&self, rule: Rule) -> RuleId {
        let mut rules = self.lock();
        self.changes.send_modify(|changes| *changes += 1);
        let id = RuleId(*self.changes.borrow());
        rules.insert(id, rule);
        id
    }

    pub(crate) fn retract(&self, id: RuleId) {
        self.lock().remove(&id);
        self.changes.send_modify(|changes| *changes += 1);
    }

    /// The rule that hits the pod, to be asked once per pod since it counts.
    pub(crate) fn claim(&self, pod: &Pod) -> Option<(RuleId, What)> {
        let mut rules = self.lock();
        let (id, rule) = rules.iter_mut().find(|(_, rule)| rule.matches(pod))?;
        if let Some(remaining) = &mut rule.remaining {
            *remaining -= 1;
        }
        Some((*id, rule.what))
    }

    /// Waits until the rule is retracted.
    pub(crate) async fn retracted(&self, id: RuleId) {
        let mut changes = self.changes.subscribe();
        // The sender is ours, so the wait cannot fail.
        let _ = changes.wait_for(|_| !self.lock().contains_key(&id)).await;
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<RuleId, Rule>> {
        self.rules.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Between 0 and 1, the same for the same text: the top bits of its FNV-1a hash, mixed once more, since uids differ little
/// in their last bytes.
fn fraction(text: &str) -> f64 {
    let fnv = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    let hash = text.bytes().fold(0xcbf2_9ce4_8422_2325, fnv);
    let mixed = (hash ^ (hash >> 32)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    f64::from(u32::try_from(mixed >> 32).unwrap_or(u32::MAX)) / (f64::from(u32::MAX) + 1.0)
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

    use super::*;

    fn pod(name: &str, uid: &str) -> Pod {
        Pod {
            metadata: ObjectMeta {
                name: Some(name.into()),
                namespace: Some("build".into()),
                uid: Some(uid.into()),
                labels: Some([("capability".into(), "java".into())].into()),
                ..ObjectMeta::default()
            },
            ..Pod::default()
        }
    }

    #[test]
    fn a_rule_hits_whom_it_names() {
        let one = pod("one", "1");
        assert!(Rule::new(What::Vanish).matches(&one));
        assert!(
            Rule::new(What::Vanish)
                .named("one")
                .in_namespace("build")
                .matches(&one)
        );
        assert!(!Rule::new(What::Vanish).named("two").matches(&one));
        assert!(!Rule::new(What::Vanish).in_namespace("other").matches(&one));
        assert!(
            Rule::new(What::Vanish)
                .labelled("capability", "java")
                .matches(&one)
        );
        assert!(
            !Rule::new(What::Vanish)
                .labelled("capability", "nodejs")
                .matches(&one)
        );
    }

    #[test]
    fn first_counts_and_the_oldest_rule_wins() {
        let rules = Rules::new();
        rules.inject(Rule::new(What::CrashAtStart).first(2));
        let second = rules.inject(Rule::new(What::Vanish));
        let claimed = |uid: &str| rules.claim(&pod("one", uid)).map(|(_, what)| what);
        let expected = [
            Some(What::CrashAtStart),
            Some(What::CrashAtStart),
            Some(What::Vanish),
        ];
        assert_eq!(["1", "2", "3"].map(claimed), expected);
        rules.retract(second);
        assert_eq!(claimed("4"), None);
    }

    #[test]
    fn a_probability_hits_about_its_share() {
        let rule = Rule::new(What::Vanish).with_probability(0.3);
        let hit = (0..10_000)
            .filter(|n| rule.matches(&pod("one", &format!("5f0c-{n}"))))
            .count();
        // Ten standard deviations (46) on either side of 3000.
        assert!((2540..3460).contains(&hit), "{hit}");
        assert!(
            !Rule::new(What::Vanish)
                .with_probability(0.0)
                .matches(&pod("one", "1"))
        );
    }
}
