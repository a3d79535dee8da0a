//! What users write: RunnerPools, URLs, quantities, flags.

use api::{OrganizationUrl, RunnerPool, in_force, names, validate};
use clap::Parser as _;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::{Resource as _, ResourceExt as _};
use operator::{
    cli::{Cli, Command},
    decode,
};
use serde_json::json;

/// Id of the cluster that all of this is in.
pub(crate) const CLUSTER: &str = "cluster";

/// The URL of an organization: what was read reads the same again, and holds no credentials.
pub(crate) fn organization_urls(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let Ok(url) = OrganizationUrl::parse(text) else {
        return;
    };
    assert_eq!(OrganizationUrl::parse(url.as_str()).as_ref(), Ok(&url));
    assert!(!url.name().is_empty() && !url.as_str().ends_with('/'));
    let authority = url.as_str().split('/').nth(2).unwrap_or_default();
    assert!(!authority.contains('@'), "credentials");
    let canonical = OrganizationUrl::parse(&url.canonical()).map(|url| url.canonical());
    assert_eq!(canonical, Ok(url.canonical()), "of {text:?}");
}

/// A RunnerPool: it has wishes if it breaks no rule, and what is made of them reads back as it was meant.
pub(crate) fn runner_pools(data: &[u8]) {
    let Ok(pool) = serde_json::from_slice::<RunnerPool>(data) else {
        return;
    };
    let violations = validate(&pool.spec);
    let now = Timestamp::UNIX_EPOCH;
    let wishes = match decode::wishes(&pool, CLUSTER, now) {
        Ok(wishes) => wishes,
        Err(text) => {
            assert!(!violations.is_empty() && !text.is_empty());
            return;
        }
    };
    assert!(violations.is_empty(), "{violations:?}");
    assert!(!wishes.profiles.is_empty());
    let mut time = now;
    for _ in 0..3 {
        let bounds = in_force(&pool.spec, time);
        assert!(bounds.min_agents <= bounds.max_agents, "{bounds:?}");
        let Some(until) = bounds.until else {
            break;
        };
        assert!(until > time, "{bounds:?}");
        assert_eq!(in_force(&pool.spec, until).schedule, bounds.next);
        time = until;
    }
    for profile in &wishes.profiles {
        let pod = decode::built_pod(&pool, CLUSTER, 7, profile);
        let mut pod: Pod = serde_json::from_value(json!(pod)).expect("what is written is readable");
        if pool.controller_owner_ref(&()).is_none() {
            continue;
        }
        pod.meta_mut().uid = Some("uid".to_owned());
        pod.meta_mut().namespace = Some("ci".to_owned());
        let read = decode::pod(&pod).expect("a Pod of a RunnerPool");
        assert_eq!(read.name, names::agent(&pool.name_any(), 7));
        assert_eq!(wishes.index_of(&read.name), Some(7));
        assert_eq!(
            (&read.profile, read.shape.as_ref()),
            (&profile.name, Some(&profile.shape))
        );
        assert!(read.run_once && read.marked && !read.min_agent);
    }
}

/// A quantity: what is accepted is a number that Kubernetes reads.
pub(crate) fn quantities(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let pool: RunnerPool = serde_json::from_value(json!({
        "apiVersion": "devops.opentools.mf/v1",
        "kind": "RunnerPool",
        "metadata": { "name": "web" },
        "spec": {
            "azDoUrl": "https://dev.azure.com/a", "pool": "p", "patSecretName": "s", "image": "i",
            "pvcs": [{ "name": "cache", "mountPath": "/cache", "createPvc": true, "storage": text }],
        },
    }))
    .expect("a RunnerPool");
    let violations = validate(&pool.spec);
    assert!(
        violations
            .iter()
            .all(|violation| violation.field == "spec.pvcs[0].storage")
    );
    let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text);
    let number = unsigned.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    if unsigned.bytes().all(|byte| byte.is_ascii_digit()) && !unsigned.is_empty() {
        assert_eq!(violations, [], "a plain number");
    }
    if violations.is_empty() {
        let number = number.split(['e', 'E']).next().unwrap_or_default();
        // `5.` and `.5` are numbers to Kubernetes as well.
        let padded = format!("0{number}0");
        assert!(padded.parse::<f64>().is_ok(), "{text:?}");
    }
}

/// A command line, an argument a line.
pub(crate) fn flags(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let arguments = ["azdo-runner-operator"].into_iter().chain(text.lines());
    let Ok(Cli {
        command: Command::Run(run),
    }) = Cli::try_parse_from(arguments)
    else {
        return;
    };
    for namespace in &run.namespaces {
        let name = namespace.as_str();
        assert!((1..=63).contains(&name.len()), "{name:?}");
        assert_eq!(name.parse().as_ref(), Ok(namespace));
    }
    assert_eq!(run.log_level.as_str().parse(), Ok(run.log_level.clone()));
}
