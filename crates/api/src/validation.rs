//! Rules of a spec that go beyond its types. The schema states most of them as well, so that the API server refuses
//! a violation; they are here because an object may be older than the schema, and because a webhook reports them all.

use std::{collections::BTreeSet, fmt};

use crate::{
    AgentPoolStatus, OrganizationUrl, RunnerPoolSpec, RunnerPoolStatus, SecurityContext, names,
    pod_template, schedule,
};

/// Variables that the operator sets on every agent; `extraEnv` may not redefine them.
pub const RESERVED_ENV: [&str; 7] = [
    "AZP_URL",
    "AZP_POOL",
    "AZP_TOKEN",
    "AZP_TOKEN_FILE",
    "AZP_AGENT_NAME",
    names::ENV_PROFILE,
    names::ENV_OWNER,
];

/// A rule that a spec breaks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Path of the field, like `spec.pvcs[0].storage`.
    pub field: String,
    /// What is wrong with it and what to write instead.
    pub message: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.message)
    }
}

/// All violations of a spec beside the status that the RunnerPool has already: it must not lead to another agent pool than
/// before, and then what [`validate`] says of it alone.
pub fn validate_with(spec: &RunnerPoolSpec, status: Option<&RunnerPoolStatus>) -> Vec<Violation> {
    let mut found = Violations::default();
    let former = status.and_then(|status| status.agent_pool.as_ref());
    if let (Some(former), Some(new)) = (former, AgentPoolStatus::of(spec)) {
        const REMEDY: &str = "put it back; for another agent pool, or one that was renamed, see Deletion in the README";
        if new.organization != former.organization {
            let organization = &former.organization;
            found.add(
                "azDoUrl",
                format!(
                    "must lead to {organization}, where this RunnerPool has its agents; {REMEDY}"
                ),
            );
        }
        if new.name != former.name {
            let name = &former.name;
            found.add(
                "pool",
                format!("must be {name:?}, where this RunnerPool has its agents; {REMEDY}"),
            );
        }
    }
    found.0.extend(validate(spec));
    found.0
}

/// All violations of a spec, in the order of its fields; none for a valid one.
pub fn validate(spec: &RunnerPoolSpec) -> Vec<Violation> {
    let mut found = Violations::default();
    if let Err(error) = OrganizationUrl::parse(&spec.az_do_url) {
        found.add("azDoUrl", error.to_string());
    }
    if spec.pool.trim().is_empty() {
        found.add("pool", "must name an agent pool");
    }
    if spec.pat_secret_name.trim().is_empty() {
        found.add(
            "patSecretName",
            "must name a Secret of this namespace with the key `token`",
        );
    }
    check_image(&mut found, "image", &spec.image);
    if spec.max_agents == 0 {
        found.add("maxAgents", "must be at least 1");
    }
    if spec.min_agents > spec.max_agents {
        found.add(
            "minAgents",
            format!("must not be above maxAgents, which is {}", spec.max_agents),
        );
    }
    check_schedules(&mut found, spec);
    if spec.poll_interval_seconds < 5 {
        found.add("pollIntervalSeconds", "must be at least 5");
    }
    for (capability, image) in &spec.capability_images {
        if !is_label_value(capability) {
            found.add(
                format!("capabilityImages[{capability:?}]"),
                "a capability is one word of letters, digits, - _ and ., at most 63, as it becomes the value of a label",
            );
        }
        check_image(
            &mut found,
            format!("capabilityImages[{capability:?}]"),
            image,
        );
    }
    check_profiles(&mut found, spec);
    check_env(&mut found, spec);
    check_claims(&mut found, spec);
    let mut secrets = BTreeSet::new();
    for (i, source) in spec.cert_trust_store.iter().enumerate() {
        let field = format!("certTrustStore[{i}].secretName");
        if !is_object_name(&source.secret_name) {
            found.add(field, "must name a Secret of this namespace");
        } else if !secrets.insert(&source.secret_name) {
            found.add(field, "is listed twice");
        }
    }
    if let Some(init) = &spec.init_container {
        check_image(&mut found, "initContainer.image", &init.image);
    }
    if let Some(context) = &spec.security_context {
        check_ids(&mut found, context);
    }
    if let Some(prefix) = &spec.agent_name_prefix
        && !is_label(prefix)
    {
        found.add("agentNamePrefix", LABEL);
    }
    if let Some(template) = &spec.pod_template {
        for (field, message) in pod_template::check(template, spec) {
            found.add(format!("podTemplate.{field}"), message);
        }
    }
    found.0
}

fn check_profiles(found: &mut Violations, spec: &RunnerPoolSpec) {
    let mut known: BTreeSet<String> = BTreeSet::from([names::BASE.to_owned()]);
    if spec.capability_aware {
        known.extend(
            spec.capability_images
                .keys()
                .map(|name| name.to_lowercase()),
        );
    }
    let mut least = u64::from(spec.min_agents);
    for (i, profile) in spec.profiles.iter().enumerate() {
        let field = |name: &str| format!("profiles[{i}].{name}");
        if !is_label_value(&profile.name) {
            found.add(
                field("name"),
                "must be one word of letters, digits, - _ and ., at most 63, as it becomes the value of a label",
            );
        } else if !known.insert(profile.name.to_lowercase()) {
            found.add(
                field("name"),
                "must differ, in more than case, from base, from every other name and, where capabilityAware is true, \
                 from the entries of capabilityImages",
            );
        }
        for name in profile.capabilities.keys() {
            let one_word = !name.contains(char::is_whitespace) && !name.starts_with('-');
            if name.is_empty() || name.len() > 256 || !one_word {
                found.add(
                    format!("{}[{name:?}]", field("capabilities")),
                    "a capability is named by one word, which does not begin with -",
                );
            } else if RESERVED_ENV
                .iter()
                .any(|own| own.eq_ignore_ascii_case(name))
            {
                found.add(
                    format!("{}[{name:?}]", field("capabilities")),
                    "is set by the operator; leave it out",
                );
            }
        }
        if let Some(image) = &profile.image {
            check_image(found, field("image"), image);
        }
        let most = profile.max_agents.unwrap_or(spec.max_agents);
        if profile.max_agents == Some(0) {
            found.add(field("maxAgents"), "must be at least 1");
        }
        if profile.min_agents > most {
            found.add(
                field("minAgents"),
                format!("must not be above maxAgents, which is {most}"),
            );
        }
        least += u64::from(profile.min_agents);
        if let Some(template) = &profile.pod_template {
            for (path, message) in pod_template::check(template, spec) {
                found.add(field(&format!("podTemplate.{path}")), message);
            }
        }
    }
    if least > u64::from(spec.max_agents) && spec.min_agents <= spec.max_agents {
        found.add(
            "profiles",
            format!(
                "minAgents of the RunnerPool and its profiles are {least} together, more than maxAgents, which is {}",
                spec.max_agents
            ),
        );
    }
}

fn check_schedules(found: &mut Violations, spec: &RunnerPoolSpec) {
    let mut names = BTreeSet::new();
    for (i, schedule) in spec.schedules.iter().enumerate() {
        let field = format!("schedules[{i}]");
        check_name(found, &field, &schedule.name, &mut names);
        for (inner, message) in schedule::check(schedule) {
            let dot = if inner.is_empty() { "" } else { "." };
            found.add(format!("{field}{dot}{inner}"), message);
        }
        if schedule.max_agents == Some(0) {
            found.add(format!("{field}.maxAgents"), "must be at least 1");
        }
        let (min, max) = (schedule.min_agents(spec), schedule.max_agents(spec));
        let beside: u64 = spec
            .profiles
            .iter()
            .map(|profile| u64::from(profile.min_agents))
            .sum();
        if min <= max && u64::from(min) + beside > u64::from(max) {
            found.add(
                field.clone(),
                format!(
                    "its minAgents and those of the profiles are {} together, more than maxAgents, which is {max} then",
                    u64::from(min) + beside
                ),
            );
        }
        match (schedule.min_agents, schedule.max_agents) {
            (None, None) => {
                let remedy = "at least one of minAgents and maxAgents must be given";
                found.add(field, remedy);
            }
            (Some(_), Some(_)) if min > max => {
                let remedy = format!("must not be above maxAgents, which is {max}");
                found.add(format!("{field}.minAgents"), remedy);
            }
            (Some(_), None) if min > max => {
                let remedy = format!(
                    "must not be above spec.maxAgents, which is {max}; give maxAgents here as well"
                );
                found.add(format!("{field}.minAgents"), remedy);
            }
            (None, Some(_)) if min > max => {
                let remedy = format!(
                    "must not be below spec.minAgents, which is {min}; give minAgents here as well"
                );
                found.add(format!("{field}.maxAgents"), remedy);
            }
            _ => {}
        }
    }
}

fn check_ids(found: &mut Violations, context: &SecurityContext) {
    if context.run_as_user < 1 {
        let remedy = "must be at least 1: agents do not run as root";
        found.add("securityContext.runAsUser", remedy);
    }
    for (field, id) in [
        ("securityContext.runAsGroup", context.run_as_group),
        ("securityContext.fsGroup", context.fs_group),
    ] {
        if id < 0 {
            found.add(field, "must not be negative");
        }
    }
}

/// What a label may have for a value, except nothing.
fn is_label_value(text: &str) -> bool {
    let inner = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let end = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    text.len() <= 63
        && text.chars().all(inner)
        && end(text.chars().next())
        && end(text.chars().last())
}

fn check_image(found: &mut Violations, field: impl Into<String>, image: &str) {
    if image.is_empty() || image.contains(char::is_whitespace) {
        found.add(field, "must name an image, without blanks");
    }
}

fn check_env(found: &mut Violations, spec: &RunnerPoolSpec) {
    let mut names = BTreeSet::new();
    for (i, env) in spec.extra_env.iter().enumerate() {
        let field = format!("extraEnv[{i}]");
        if !is_env_name(&env.name) {
            found.add(
                format!("{field}.name"),
                "must begin with a letter, - . or _ and go on with these or digits",
            );
        } else if RESERVED_ENV.contains(&env.name.as_str()) {
            found.add(
                format!("{field}.name"),
                format!("{} is set by the operator; choose another name", env.name),
            );
        } else if !names.insert(&env.name) {
            found.add(
                format!("{field}.name"),
                format!("{} is given twice", env.name),
            );
        }
        if env.value.is_some() == env.value_from.is_some() {
            found.add(&field, "exactly one of value and valueFrom must be given");
        }
        if let Some(message) = unrecognizable(&env.name, env.value.as_deref()) {
            found.add(format!("{field}.value"), message);
        }
    }
}

/// What is wrong with a variable that keeps agents from reporting what the operator knows them and their profile by.
pub(crate) fn unrecognizable(name: &str, value: Option<&str>) -> Option<String> {
    let value = value.filter(|_| name == names::ENV_IGNORE)?;
    let mut needed = [names::ENV_OWNER, names::ENV_PROFILE].into_iter();
    let hidden = needed.find(|needed| names::ignores(value, needed))?;
    Some(format!(
        "must not list {hidden}, by which the operator knows its agents; take it out"
    ))
}

/// The names that a Pod takes (Kubernetes: `IsEnvVarName`).
fn is_env_name(name: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
    !name.is_empty()
        && name.chars().all(allowed)
        && !name.starts_with(|c: char| c.is_ascii_digit())
        && name != "."
        && !name.starts_with("..")
}

fn check_claims(found: &mut Violations, spec: &RunnerPoolSpec) {
    let (mut names, mut paths) = (BTreeSet::new(), BTreeSet::new());
    for (i, claim) in spec.pvcs.iter().enumerate() {
        let field = format!("pvcs[{i}]");
        check_name(found, &field, &claim.name, &mut names);
        if !claim.mount_path.starts_with('/') || claim.mount_path.contains(':') {
            found.add(
                format!("{field}.mountPath"),
                "must be an absolute path without a colon",
            );
        } else if !paths.insert(&claim.mount_path) {
            found.add(
                format!("{field}.mountPath"),
                "must differ from every other mountPath",
            );
        }
        match &claim.storage {
            None if claim.create_pvc => {
                let remedy = "is required when the claim is created; write it like 10Gi, or set createPvc to false";
                found.add(format!("{field}.storage"), remedy);
            }
            Some(storage) if !is_quantity(storage) => {
                found.add(format!("{field}.storage"), "must be a quantity like 10Gi");
            }
            _ => {}
        }
        if !claim.create_pvc && claim.delete_with_agent {
            let remedy = "needs createPvc: a claim that the operator did not create is not deleted";
            found.add(format!("{field}.deleteWithAgent"), remedy);
        }
    }
}

/// The name of an entry of a list, which no other one has.
fn check_name<'a>(
    found: &mut Violations,
    entry: &str,
    name: &'a str,
    names: &mut BTreeSet<&'a str>,
) {
    if !is_label(name) {
        found.add(format!("{entry}.name"), LABEL);
    } else if !names.insert(name) {
        found.add(format!("{entry}.name"), "must differ from every other name");
    }
}

/// What [`is_label`] asks for.
const LABEL: &str = "must be lower-case letters, digits and - inside, at most 63 of them";

/// A name that may be part of the name of a volume (Kubernetes: RFC 1123 label).
fn is_label(name: &str) -> bool {
    name.len() <= 63 && !name.contains('.') && is_object_name(name)
}

/// A name that an object may have: lower-case letters, digits, and - and . inside.
fn is_object_name(name: &str) -> bool {
    let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '.');
    let outer = |c: char| inner(c) && !matches!(c, '-' | '.');
    name.len() <= 253 && name.starts_with(outer) && name.ends_with(outer) && name.chars().all(inner)
}

/// A number with a suffix or an exponent, as Kubernetes writes quantities (`apimachinery/pkg/api/resource`).
fn is_quantity(text: &str) -> bool {
    let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text);
    let suffix = unsigned.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.');
    let number = &unsigned[..unsigned.len() - suffix.len()];
    let is_number =
        number.contains(|c: char| c.is_ascii_digit()) && number.matches('.').count() < 2;
    let is_exponent = suffix.strip_prefix(['e', 'E']).is_some_and(|exponent| {
        let digits = exponent.strip_prefix(['+', '-']).unwrap_or(exponent);
        !digits.is_empty() && digits.chars().all(|c| c.is_ascii_digit())
    });
    let is_suffix = matches!(
        suffix,
        "" | "n"
            | "u"
            | "m"
            | "k"
            | "M"
            | "G"
            | "T"
            | "P"
            | "E"
            | "Ki"
            | "Mi"
            | "Gi"
            | "Ti"
            | "Pi"
            | "Ei"
    );
    is_number && (is_suffix || is_exponent)
}

#[derive(Default)]
struct Violations(Vec<Violation>);

impl Violations {
    fn add(&mut self, field: impl Into<String>, message: impl Into<String>) {
        self.0.push(Violation {
            field: format!("spec.{}", field.into()),
            message: message.into(),
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(yaml: &str) -> RunnerPoolSpec {
        let base = "azDoUrl: https://dev.azure.com/acme\npool: p\npatSecretName: pat\n";
        let image = if yaml.contains("\nimage:") || yaml.starts_with("image:") {
            ""
        } else {
            "image: agent:1\n"
        };
        serde_saphyr::from_str(&format!("{base}{image}{yaml}")).expect("a spec")
    }

    fn fields(spec: &RunnerPoolSpec) -> Vec<String> {
        validate(spec)
            .into_iter()
            .map(|violation| violation.field)
            .collect()
    }

    #[test]
    fn a_minimal_spec_is_valid_and_has_the_documented_defaults() {
        let spec = spec("");
        assert_eq!(validate(&spec), []);
        assert_eq!(
            (spec.max_agents, spec.min_agents, spec.ttl_idle_seconds),
            (10, 0, 0)
        );
        assert_eq!(spec.poll_interval_seconds, 5);
        assert_eq!(spec.image_pull_policy, crate::ImagePullPolicy::IfNotPresent);
    }

    #[test]
    fn an_explicit_zero_stays_zero() {
        assert_eq!(spec("ttlIdleSeconds: 0\n").ttl_idle_seconds, 0);
    }

    #[test]
    fn all_violations_are_reported_at_once() {
        let spec = spec(
            "image: 'two words'\nminAgents: 3\nmaxAgents: 2\nextraEnv:\n- {name: AZP_URL, value: x}\n- {name: A}\n\
             - {name: VSO_AGENT_IGNORE, value: 'A, azdo_runner_owner'}\n\
             pvcs:\n- {name: a, mountPath: rel, createPvc: false, deleteWithAgent: true}\n- {name: a, mountPath: /b}\n\
             certTrustStore: [{secretName: c}, {secretName: c}]\n",
        );
        assert_eq!(
            fields(&spec),
            [
                "spec.image",
                "spec.minAgents",
                "spec.extraEnv[0].name",
                "spec.extraEnv[1]",
                "spec.extraEnv[2].value",
                "spec.pvcs[0].mountPath",
                "spec.pvcs[0].deleteWithAgent",
                "spec.pvcs[1].name",
                "spec.pvcs[1].storage",
                "spec.certTrustStore[1].secretName",
            ]
        );
    }

    fn status(url: &str, pool: &str) -> RunnerPoolStatus {
        let spec = RunnerPoolSpec {
            az_do_url: url.to_owned(),
            pool: pool.to_owned(),
            ..spec("")
        };
        RunnerPoolStatus {
            agent_pool: AgentPoolStatus::of(&spec),
            ..RunnerPoolStatus::default()
        }
    }

    #[test]
    fn another_agent_pool_than_before_is_refused_with_field_and_remedy() {
        const ACME: &str = "https://dev.azure.com/acme";
        let refused = |url: &str, pool: &str| {
            let found = validate_with(&spec(""), Some(&status(url, pool)));
            found.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        let pool = "spec.pool: must be \"q\", where this RunnerPool has its agents; put it back; for another agent pool, \
                    or one that was renamed, see Deletion in the README";
        let url = "spec.azDoUrl: must lead to dev.azure.com/other, where this RunnerPool has its agents; put it back; for \
                   another agent pool, or one that was renamed, see Deletion in the README";
        assert_eq!(refused(ACME, "Q"), [pool]);
        assert_eq!(refused("https://dev.azure.com/other", "p"), [url]);
        assert_eq!(refused("https://other.visualstudio.com", "q"), [url, pool]);
    }

    #[test]
    fn an_agent_pool_may_be_named_in_another_form() {
        for (url, pool) in [
            ("https://dev.azure.com/acme", "p"),
            (" https://dev.azure.com/Acme/ ", " P "),
            ("https://acme.visualstudio.com/DefaultCollection", "p"),
        ] {
            let found = validate_with(&spec(""), Some(&status(url, pool)));
            assert_eq!(found, [], "{url} {pool:?}");
        }
    }

    #[test]
    fn what_was_never_found_can_be_corrected() {
        let nowhere = RunnerPoolStatus::default();
        for status in [None, Some(&nowhere)] {
            assert_eq!(validate_with(&spec(""), status), []);
        }
    }

    #[test]
    fn another_agent_pool_is_reported_beside_all_else() {
        let status = status("https://dev.azure.com/acme", "q");
        let found = validate_with(&spec("image: ''\nminAgents: 11\n"), Some(&status));
        let fields: Vec<&str> = found.iter().map(|found| found.field.as_str()).collect();
        assert_eq!(fields, ["spec.pool", "spec.image", "spec.minAgents"]);
        // What names no agent pool is told of once.
        let mut bare = spec("");
        bare.pool = " ".to_owned();
        assert_eq!(validate_with(&bare, Some(&status)), validate(&bare));
    }
}
