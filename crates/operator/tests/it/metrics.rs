//! `/metrics`, read as Prometheus reads it.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use api::RunnerPool;
use kube::api::PostParams;
use operator::webhook::certificate::Lifetimes;
use serde_json::json;
use tokio::time;

use crate::{
    bed::{Bed, long_job, within},
    webhooks::Service,
};

const REFERENCE: &str = include_str!("../../../../docs/reference/metrics.md");
/// Between two scrapes.
const AGAIN: Duration = Duration::from_millis(50);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn figures_move_with_what_happens_and_go_with_the_runner_pool() {
    let bed = Bed::start().await;
    bed.create("first", json!({ "maxAgents": 3, "priority": 1 }))
        .await;
    bed.create("second", json!({})).await;
    bed.ready("first").await;
    bed.ready("second").await;
    let of = |name: &str, pool: &str, more: &str| {
        let namespace = &bed.namespace;
        format!("azdo_runner_{name}{{namespace=\"{namespace}\",pool=\"{pool}\"{more}}}")
    };
    let quiet = scraped_when(&bed, "nothing to do", |seen| {
        let is = |series: &str, value| seen.get(series) == Some(&value);
        is(&of("agents_max", "first", ""), 3)
            && is(&of("agents_min", "first", ""), 0)
            && is(&of("agents", "first", ",state=\"busy\""), 0)
            && is(&of("job_requests", "first", ",state=\"running\""), 0)
            && is(
                &of("condition", "first", ",condition=\"Ready\",status=\"True\""),
                1,
            )
            && seen.contains_key(&of("agents_max", "second", ""))
    })
    .await;
    assert_eq!(quiet["azdo_runner_leader"], 1);
    let looks = "azdo_runner_azure_devops_requests_total{operation=\"get_agents\",code=\"200\"}";
    let passes = "azdo_runner_reconcile_duration_seconds_count";
    assert!(quiet[looks] >= 1 && quiet[passes] >= 2, "{quiet:#?}");

    bed.run(long_job()).await;
    let busy = scraped_when(
        &bed,
        "an agent of the one with the priority works",
        |seen| {
            let is = |series: &str, value| seen.get(series) == Some(&value);
            is(&of("agents", "first", ",state=\"busy\""), 1)
                && is(&of("agents", "second", ",state=\"busy\""), 0)
                && is(&of("job_requests", "first", ",state=\"running\""), 1)
                && is(&of("job_requests", "first", ",state=\"queued\""), 0)
        },
    )
    .await;
    assert!(busy[looks] > quiet[looks] && busy[passes] > quiet[passes]);
    let added = "azdo_runner_azure_devops_request_duration_seconds_count{operation=\"add_agent\"}";
    assert_eq!(busy[added], 2, "a placeholder each");

    // What cannot be planned for has no figures, and what is gone has nothing.
    bed.change("first", json!({ "patSecretName": "none" }))
        .await;
    scraped_when(&bed, "only the condition of the first is left", |seen| {
        let ready = of(
            "condition",
            "first",
            ",condition=\"Ready\",status=\"False\"",
        );
        seen.contains_key(&ready) && !seen.contains_key(&of("agents_max", "first", ""))
    })
    .await;
    bed.delete("second").await;
    scraped_when(&bed, "the series of the second are gone", |seen| {
        !seen.keys().any(|series| series.contains("pool=\"second\""))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_reference_tells_of_each_metric_and_of_no_other() {
    let mut bed = Bed::make().await;
    let service = Service::start(&bed, Lifetimes::default(), "Fail").await;
    bed.webhooks = Some(service.endpoint().await);
    bed.start_operator().await;
    // The webhooks answer: the label is theirs.
    within("the webhooks are asked", async {
        let pools = bed.api::<RunnerPool>();
        let pool = bed.runner_pool("web", json!({ "maxAgents": 0 }));
        while !matches!(pools.create(&PostParams::default(), &pool).await, Err(kube::Error::Api(refusal)) if refusal.code == 422)
        {
            time::sleep(AGAIN).await;
        }
    })
    .await;
    bed.create("web", json!({})).await;
    bed.ready("web").await;
    let (reference, _) = REFERENCE.split_once("\n## ").unwrap();
    let rows = reference.lines();
    let told: BTreeMap<_, _> = rows
        .filter(|line| line.starts_with("| `"))
        .map(|row| {
            let cells: Vec<&str> = row.split('|').map(str::trim).collect();
            let name = cells[1].trim_matches('`').to_owned();
            let labels = cells[3].split(", ").map(|label| label.trim_matches('`'));
            let labels: BTreeSet<_> = labels
                .filter(|label| !label.is_empty())
                .map(str::to_owned)
                .collect();
            (name, (cells[2].to_owned(), labels))
        })
        .collect();
    assert!(told.len() > 10, "the reference has a table: {told:?}");
    let text = within("each has a series", async {
        loop {
            let text = scrape(&bed).await;
            if told
                .keys()
                .all(|name| samples(&text, name).next().is_some())
            {
                return text;
            }
            time::sleep(AGAIN).await;
        }
    })
    .await;
    let refused = "azdo_runner_webhook_requests_total{webhook=\"mutate\",allowed=\"false\"} ";
    let refused = text.lines().find_map(|line| line.strip_prefix(refused));
    assert!(refused.is_some_and(|count| count != "0"), "{refused:?}");
    let mut served = BTreeMap::new();
    for line in text.lines().filter_map(|line| line.strip_prefix("# TYPE ")) {
        let (name, kind) = line.split_once(' ').unwrap();
        let suffix = match kind {
            "counter" => "_total",
            "info" => "_info",
            _ => "",
        };
        let name = format!("{name}{suffix}");
        let labels: BTreeSet<_> = samples(&text, &name).flat_map(labels).collect();
        served.insert(name, (kind.to_owned(), labels));
    }
    assert_eq!(served, told);
}

/// The samples of a metric.
fn samples<'a>(text: &'a str, metric: &'a str) -> impl Iterator<Item = &'a str> {
    text.lines().filter(move |line| {
        let name = line.split(['{', ' ']).next().unwrap_or_default();
        let parts = ["", "_bucket", "_sum", "_count"];
        parts
            .iter()
            .any(|part| name.strip_suffix(part) == Some(metric))
    })
}

/// Names of the labels of a sample, but for the bounds of buckets.
fn labels(sample: &str) -> Vec<String> {
    let labels = sample
        .split_once('{')
        .and_then(|(_, rest)| rest.split_once('}'));
    let labels = labels.map_or("", |(labels, _)| labels).split(',');
    let names = labels.filter_map(|label| label.split_once('='));
    names
        .map(|(name, _)| name.to_owned())
        .filter(|name| name != "le")
        .collect()
}

async fn scrape(bed: &Bed) -> String {
    let url = format!("http://{}/metrics", bed.operator_address());
    let answer = reqwest::get(url).await.unwrap();
    assert_eq!(answer.status(), 200);
    let format = answer.headers()["content-type"].to_str().unwrap();
    assert!(
        format.starts_with("application/openmetrics-text"),
        "{format}"
    );
    let text = answer.text().await.unwrap();
    assert!(text.ends_with("# EOF\n"), "{text}");
    text
}

/// The value of each series that is a whole number, as soon as they are as wanted.
async fn scraped_when(
    bed: &Bed,
    what: &str,
    wanted: impl Fn(&BTreeMap<String, u64>) -> bool,
) -> BTreeMap<String, u64> {
    within(what, async {
        loop {
            let text = scrape(bed).await;
            let samples = text.lines().filter(|line| !line.starts_with('#'));
            let samples = samples.filter_map(|line| {
                let (series, value) = line.rsplit_once(' ').unwrap();
                Some((series.to_owned(), value.parse().ok()?))
            });
            let seen = samples.collect();
            if wanted(&seen) {
                return seen;
            }
            time::sleep(AGAIN).await;
        }
    })
    .await
}
