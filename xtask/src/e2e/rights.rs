//! The rights that the chart gives to the operator, what each is for, and where it is seen in use: the table that
//! `docs/reference/rights.md` shows is the one that the run compares with the API server's audit log.

use std::fmt::Write as _;

use anyhow::{Context as _, Result, ensure};
use control_plane::AuditEvent;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::world::{NAMESPACE, RELEASE, World};
use crate::chart;

use Seen::{Never, Story};

/// What a right is for.
struct Use {
    resource: &'static str,
    verbs: &'static [&'static str],
    /// Whether it is limited to objects of certain names.
    named: bool,
    purpose: &'static str,
    seen: Seen,
}

/// Whether the run sees a right in use.
#[derive(Clone, Copy)]
enum Seen {
    /// In this story at the latest.
    Story(&'static str),
    /// Not for certain, and why.
    Never(&'static str),
}

const fn used(
    resource: &'static str,
    verbs: &'static [&'static str],
    purpose: &'static str,
    seen: Seen,
) -> Use {
    Use {
        resource,
        verbs,
        named: false,
        purpose,
        seen,
    }
}

impl Use {
    /// Limited to objects of certain names.
    const fn by_name(self) -> Self {
        Self {
            named: true,
            ..self
        }
    }
}

/// Every verb of the chart's rules is here once; a test compares.
const USES: [Use; 24] = [
    used(
        "runnerpools",
        &["list", "watch"],
        "to know what is wanted",
        Story("install"),
    ),
    used(
        "runnerpools",
        &["patch"],
        "finalizers",
        Story("quick start"),
    ),
    used(
        "runnerpools/status",
        &["patch"],
        "status and conditions",
        Story("quick start"),
    ),
    used(
        "pods",
        &["list", "watch"],
        "to know the agents",
        Story("install"),
    ),
    used("pods", &["create"], "agents", Story("quick start")),
    used(
        "pods",
        &["patch"],
        "labels and annotations of busy agents",
        Story("quick start"),
    ),
    used(
        "pods",
        &["delete"],
        "agents that are done",
        Story("from 0 to 5 to 0"),
    ),
    used(
        "pods",
        &["get"],
        "to be sure that there is none, before its claims or its registration go",
        Story("kept data"),
    ),
    used(
        "pods/status",
        &["patch"],
        "to declare Pods failed that do not start",
        Never("such a Pod is given up after a minute and more; the operator's own tests show it"),
    ),
    used(
        "persistentvolumeclaims",
        &["list", "watch"],
        "to know the claims of agents",
        Story("install"),
    ),
    used(
        "persistentvolumeclaims",
        &["create", "get"],
        "claims of agents, and those that are there already",
        Story("kept data"),
    ),
    used(
        "persistentvolumeclaims",
        &["delete"],
        "claims that go with their agent",
        Story("kept data"),
    ),
    used(
        "persistentvolumeclaims",
        &["patch"],
        "owners of claims that are kept, as the former operator made them",
        Story("moving over"),
    ),
    used(
        "secrets",
        &["get"],
        "tokens, by the name in `patSecretName`",
        Story("quick start"),
    ),
    used(
        "events",
        &["create"],
        "what was done, and what went wrong",
        Story("quick start"),
    ),
    used(
        "events",
        &["patch"],
        "an Event that is repeated within minutes",
        Never("nothing need happen twice; the operator's own tests show it"),
    ),
    used(
        "namespaces",
        &["get"],
        "its uid names the cluster",
        Story("install"),
    )
    .by_name(),
    used(
        "leases",
        &["create"],
        "the lease of the replicas, the first time",
        Story("quick start"),
    ),
    used(
        "leases",
        &["list", "watch"],
        "to know which replica acts",
        Story("install"),
    )
    .by_name(),
    used(
        "leases",
        &["update"],
        "to take, renew and release the lease",
        Story("quick start"),
    )
    .by_name(),
    used(
        "leases",
        &["get"],
        "to read it again after a write that was refused or had no answer",
        Never("two replicas need not ask at the same moment"),
    )
    .by_name(),
    used(
        "secrets",
        &["get", "update"],
        "the certificate of the webhooks",
        Story("refused RunnerPool"),
    )
    .by_name(),
    used(
        "mutatingwebhookconfigurations",
        &["get", "patch"],
        "`caBundle`",
        Story("refused RunnerPool"),
    )
    .by_name(),
    used(
        "validatingwebhookconfigurations",
        &["get", "patch"],
        "`caBundle`",
        Story("refused RunnerPool"),
    )
    .by_name(),
];

/// A verb in the rules of the chart with its default values.
struct Right {
    group: String,
    resource: String,
    verb: String,
    names: Vec<String>,
    /// Whether it is given in all namespaces.
    everywhere: bool,
}

/// When a story was told.
pub(super) struct Chapter {
    pub(super) story: &'static str,
    pub(super) since: Timestamp,
    pub(super) until: Timestamp,
}

const HEAD: &str = "\
# Rights of the operator

<!-- Generated by `cargo xtask generate` from the chart's rules and the table in xtask/src/e2e/rights.rs: change these. -->

What the chart allows the operator to do, with its default values. With `watchNamespaces`, what is allowed in all namespaces
is allowed in these only, and `namespaces` and the webhook configurations remain. Without webhooks, or with certificates
that somebody else makes, the last rights are not given (`webhook`).

Every request of the operator is in the API server's audit log. `cargo xtask e2e` reads it at its end: no request was
refused as long as the release was there, and each right was used, at the latest in the story that is named here.

| Resource | Verbs | Where | What for | Seen in the story |
|---|---|---|---|---|
";

/// The document for users.
pub(crate) fn document() -> Result<String> {
    let granted = granted()?;
    for right in &granted {
        right.used()?;
    }
    let mut document = HEAD.to_owned();
    for one in &USES {
        let rights = one.verbs.iter().map(|verb| {
            let mut granted = granted.iter();
            let right = granted.find(|right| right.is(one, verb));
            right.with_context(|| format!("not granted: {verb} {}", one.resource))
        });
        let rights = rights.collect::<Result<Vec<_>>>()?;
        let right = rights.first().context("a use without verbs")?;
        let seen = match one.seen {
            Story(story) => story.to_owned(),
            Never(reason) => format!("none: {reason}"),
        };
        let group = match right.group.as_str() {
            "" => String::new(),
            group => format!(" ({group})"),
        };
        writeln!(
            document,
            "| `{}`{group} | {} | {} | {} | {seen} |",
            one.resource,
            one.verbs.join(", "),
            right.place(),
            one.purpose,
        )?;
    }
    Ok(document)
}

impl Right {
    fn is(&self, one: &Use, verb: &str) -> bool {
        let named = !self.names.is_empty();
        self.resource == one.resource && self.verb == verb && named == one.named
    }

    fn used(&self) -> Result<&'static Use> {
        let mut uses = USES.iter();
        let mut one = uses.find(|one| one.verbs.iter().any(|verb| self.is(one, verb)));
        one.take().with_context(|| {
            format!(
                "nothing says what it is for: {} {}",
                self.verb, self.resource
            )
        })
    }

    fn place(&self) -> String {
        let names = self.names.join("`, `");
        match (self.everywhere, self.names.is_empty()) {
            (true, true) => "all namespaces".to_owned(),
            (true, false) => format!("only `{names}`"),
            (false, true) => "its own namespace".to_owned(),
            (false, false) => format!("only `{names}` in its own namespace"),
        }
    }

    /// Whether a request needs this right.
    fn allows(&self, request: &AuditEvent) -> bool {
        let resource = [request.resource.as_str(), request.subresource.as_str()].join("/");
        self.group == request.group
            && self.resource == resource.trim_end_matches('/')
            && self.verb == request.verb
            && (self.names.is_empty() || self.names.contains(&request.name))
            && (self.everywhere || request.namespace == NAMESPACE)
    }
}

/// All rights, in the order of the chart.
fn granted() -> Result<Vec<Right>> {
    let mut rights = Vec::new();
    for object in chart::release(NAMESPACE)? {
        let Some(rules) = object.data.get("rules").and_then(Value::as_array) else {
            continue;
        };
        let everywhere = object.metadata.namespace.is_none();
        let texts = |rule: &Value, key: &str| -> Result<Vec<String>> {
            let texts = rule.get(key).cloned().unwrap_or_else(|| json!([]));
            serde_json::from_value(texts).with_context(|| format!("{key} of {rule}"))
        };
        for rule in rules {
            for group in texts(rule, "apiGroups")? {
                for resource in texts(rule, "resources")? {
                    for verb in texts(rule, "verbs")? {
                        rights.push(Right {
                            group: group.clone(),
                            resource: resource.clone(),
                            verb,
                            names: texts(rule, "resourceNames")?,
                            everywhere,
                        });
                    }
                }
            }
        }
    }
    Ok(rights)
}

/// A role or a binding of the chart, and when it was made or changed (true) and deleted (false).
struct Grant {
    resource: String,
    namespace: String,
    name: String,
    changes: Vec<(Timestamp, bool)>,
}

impl Grant {
    /// All of the chart.
    fn all() -> Result<Vec<Self>> {
        let grants = chart::release(NAMESPACE)?.into_iter().filter_map(|object| {
            let types = object.types?;
            let is_grant = types.api_version.starts_with("rbac.authorization.k8s.io/");
            is_grant.then_some(Self {
                resource: format!("{}s", types.kind.to_lowercase()),
                namespace: object.metadata.namespace.unwrap_or_default(),
                name: object.metadata.name?,
                changes: Vec::new(),
            })
        });
        Ok(grants.collect())
    }

    /// Whether a request has changed it. A namespace that is deleted takes all of them with it at once.
    fn is_changed_by(&self, request: &AuditEvent) -> bool {
        self.resource == request.resource
            && self.namespace == request.namespace
            && (self.name == request.name || request.verb == "deletecollection")
            && request.is_write()
            && request.code < 300
    }

    fn is_there(&self, time: Timestamp) -> bool {
        let before = self.changes.iter().take_while(|(since, _)| *since < time);
        before.last().is_some_and(|(_, there)| *there)
    }
}

/// When the operator had its rights, all of them: a release that is removed takes them away before its Pods have ended.
struct Given(Vec<Grant>);

impl Given {
    /// From what others asked for.
    fn from(mut grants: Vec<Grant>, requests: &[AuditEvent]) -> Self {
        for grant in &mut grants {
            let changes = requests.iter().filter(|one| grant.is_changed_by(one));
            let mut changes: Vec<_> = changes
                .map(|one| (one.time, !one.verb.starts_with("delete")))
                .collect();
            changes.sort();
            grant.changes = changes;
        }
        Self(grants)
    }

    fn at(&self, time: Timestamp) -> bool {
        self.0.iter().all(|grant| grant.is_there(time))
    }
}

/// Compares the rights with the requests of the operator.
pub(super) fn audit(world: &World, chapters: &[Chapter]) -> Result<String> {
    let account = format!("system:serviceaccount:{NAMESPACE}:{RELEASE}");
    let (requests, others): (Vec<_>, Vec<_>) = world
        .audit_log()?
        .into_iter()
        .partition(|request| request.user == account);
    let given = Given::from(Grant::all()?, &others);
    let story_at = |time: Timestamp| {
        let mut chapters = chapters.iter();
        let chapter = chapters.find(|chapter| chapter.since <= time && time <= chapter.until);
        chapter.map_or("between two stories", |chapter| chapter.story)
    };
    let refused = requests
        .iter()
        .filter(|request| matches!(request.code, 401 | 403) && given.at(request.time));
    let refused: Vec<String> = refused
        .map(|request| format!("{}: {request:?}", story_at(request.time)))
        .collect();
    ensure!(refused.is_empty(), "refused: {refused:#?}");

    let granted = granted()?;
    let mut unused = Vec::new();
    for right in &granted {
        let first = requests.iter().filter(|request| right.allows(request));
        let first = first.map(|request| request.time).min();
        let Story(story) = right.used()?.seen else {
            continue;
        };
        let chapter = chapters.iter().find(|chapter| chapter.story == story);
        let chapter = chapter.with_context(|| format!("there is no story {story:?}"))?;
        if first.is_none_or(|first| first > chapter.until) {
            let first = first.map_or("never", story_at);
            unused.push(format!(
                "{} {}: first used in {first:?} instead of {story:?}",
                right.verb, right.resource
            ));
        }
    }
    ensure!(unused.is_empty(), "granted and not used: {unused:#?}");
    let excused = USES.iter().filter(|one| matches!(one.seen, Never(_)));
    Ok(format!(
        "all {} were used but for {} with reasons, and none of {} requests was refused",
        granted.len(),
        excused.map(|one| one.verbs.len()).sum::<usize>(),
        requests.len(),
    ))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn event(verb: &str, resource: &str, name: &str, second: i64) -> AuditEvent {
        let namespaced = ["roles", "rolebindings"].contains(&resource);
        AuditEvent {
            verb: verb.to_owned(),
            group: "rbac.authorization.k8s.io".to_owned(),
            resource: resource.to_owned(),
            subresource: String::new(),
            namespace: if namespaced { NAMESPACE } else { "" }.to_owned(),
            name: name.to_owned(),
            user: "somebody".to_owned(),
            user_agent: String::new(),
            stage: "ResponseComplete".to_owned(),
            code: 200,
            time: at(second),
        }
    }

    /// The same for all that the chart has.
    fn events(verb: &str, second: i64) -> Vec<AuditEvent> {
        let grants = Grant::all().unwrap();
        let events = grants
            .iter()
            .map(|one| event(verb, &one.resource, &one.name, second));
        events.collect()
    }

    #[test]
    fn rights_are_given_while_all_roles_and_bindings_are_there() {
        let lease = format!("{RELEASE}-lease");
        let requests = [
            events("patch", 30),
            events("create", 10),
            vec![
                event("delete", "rolebindings", &lease, 20),
                event("delete", "rolebindings", "others", 35),
                event("deletecollection", "rolebindings", "", 40),
            ],
        ];
        let given = Given::from(Grant::all().unwrap(), &requests.concat());
        let seen = [5, 11, 16, 21, 31, 36, 41].map(|second| given.at(at(second)));
        assert_eq!(seen, [false, true, true, false, true, true, false]);
    }

    #[test]
    fn a_binding_that_only_looks_like_one_of_ours_gives_and_takes_nothing() {
        let look_alike =
            |verb: &str, second| vec![event(verb, "clusterrolebindings", RELEASE, second)];
        // As in the story "moving over".
        let requests = [
            events("create", 10),
            events("delete", 20),
            look_alike("create", 25),
            events("create", 30),
            look_alike("delete", 35),
        ];
        let given = Given::from(Grant::all().unwrap(), &requests.concat());
        let seen = [11, 21, 26, 31, 36].map(|second| given.at(at(second)));
        assert_eq!(seen, [true, false, false, true, true]);
    }
}
