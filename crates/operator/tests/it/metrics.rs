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
    bed.create("web", json!({ "maxAgents": 3 })).await;
    bed.create("idle", json!({ "priority": 1 })).await;
    bed.ready("web").await;
    bed.ready("idle").await;
    let of = |name: &str, pool: &str, more: &str| {
        let namespace = &bed.namespace;
        format!("azdo_runner_{name}{{namespace=\"{namespace}\",pool=\"{pool}\"{more}}}")
    };
    let quiet = scraped_when(&bed, "nothing to do", |seen| {
        let is = |series: &str, value| seen.get(series) == Some(&value);
        is(&of("agents_max", "web", ""), 3)
            && is(&of("agents_min", "web", ""), 0)
            && is(&of("agents", "web", ",state=\"busy\""), 0)
            && is(&of("job_requests", "web", ",state=\"running\""), 0)
            && is(
                &of("condition", "web", ",condition=\"Ready\",status=\"True\""),
                1,
            )
            && seen.contains_key(&of("agents_max", "idle", ""))
    })
    .await;
    assert_eq!(quiet["azdo_runner_leader"], 1);
    let looks = "azdo_runner_azure_devops_requests_total{operation=\"get_agents\",code=\"200\"}";
    let passes = "azdo_runner_reconcile_duration_seconds_count";
    assert!(quiet[looks] >= 1 && quiet[passes] >= 2, "{quiet:#?}");

    bed.run(long_job()).await;
    let busy = scraped_when(&bed, "one agent of one of the two works", |seen| {
        let sum = |state: &str, name: &str| {
            let state = format!(",state=\"{state}\"");
            let pools = ["web", "idle"].into_iter();
            pools
                .map(|pool| seen.get(&of(name, pool, &state)).copied().unwrap_or(0))
                .sum::<u64>()
        };
        let (agents, running) = (sum("busy", "agents"), sum("running", "job_requests"));
        (agents, running, sum("queued", "job_requests")) == (1, 1, 0)
    })
    .await;
    assert!(busy[looks] > quiet[looks] && busy[passes] > quiet[passes]);
    let added = "azdo_runner_azure_devops_request_duration_seconds_count{operation=\"add_agent\"}";
    assert_eq!(busy[added], 2, "a placeholder each");

    let idle = ["web", "idle"].into_iter().find(|pool| {
        let state = of("agents", pool, ",state=\"busy\"");
        busy[&state] == 0
    });
    let idle = idle.unwrap();
    bed.delete(idle).await;
    scraped_when(&bed, "its series are gone", |seen| {
        let of_it = format!("pool=\"{idle}\"");
        !seen.keys().any(|series| series.contains(&of_it))
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
                .all(|name| text.lines().any(|line| line.starts_with(name.as_str())))
            {
                return text;
            }
            time::sleep(AGAIN).await;
        }
    })
    .await;
    let mut served = BTreeMap::new();
    for line in text.lines().filter_map(|line| line.strip_prefix("# TYPE ")) {
        let (name, kind) = line.split_once(' ').unwrap();
        let suffix = match kind {
            "counter" => "_total",
            "info" => "_info",
            _ => "",
        };
        let name = format!("{name}{suffix}");
        let samples = text.lines().filter(|line| line.starts_with(&name));
        let labels: BTreeSet<_> = samples.flat_map(labels).collect();
        served.insert(name, (kind.to_owned(), labels));
    }
    assert_eq!(served, told);
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
