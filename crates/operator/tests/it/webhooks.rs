//! Admission webhooks, as the API server calls them, and the certificates that they are served with.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use api::{RunnerPool, RunnerPoolStatus};
use control_plane::apply;
use k8s_openapi::{ByteString, api::core::v1::Secret};
use kube::{
    Api, ResourceExt as _,
    api::{DeleteParams, Patch, PatchParams, PostParams},
    core::DynamicObject,
};
use operator::{
    lease::Times,
    webhook::{
        CertificateSource, OwnCertificates, Webhooks, admission,
        certificate::{Lifetime, Lifetimes},
    },
};
use serde_json::{Value, json};
use tokio::{
    io,
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    task::{JoinHandle, JoinSet},
    time::{self, MissedTickBehavior},
};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use crate::{
    bed::{Bed, OPERATORS, chart, control_plane, election, objects_when, within},
    replica::Replica,
};

const HOST: &str = "127.0.0.1";
const LABEL: &str = "app.kubernetes.io/managed-by";

/// What the chart makes for the webhooks, for RunnerPools of the bed's namespace. There is nothing on this machine that
/// makes Services work, so the API server is sent to a port that hands connections to the replicas in turn.
pub(crate) struct Service {
    own: OwnCertificates,
    endpoints: Arc<Mutex<Vec<SocketAddr>>>,
    _door: AbortOnDropHandle<()>,
}

impl Service {
    /// Takes the objects from a release, which has to be of `watchNamespaces`.
    pub(crate) async fn of(
        bed: &Bed,
        release: &[DynamicObject],
        lifetimes: Lifetimes,
        failure_policy: &str,
    ) -> Self {
        let kind = |object: &DynamicObject| object.types.as_ref().unwrap().kind.clone();
        let door = TcpListener::bind((HOST, 0)).await.unwrap();
        let port = door.local_addr().unwrap().port();
        let secret = release
            .iter()
            .find(|object| kind(object) == "Secret")
            .unwrap();
        apply(&bed.client, secret, false).await.unwrap();
        let mut configuration = None;
        for object in release
            .iter()
            .filter(|object| kind(object).ends_with("WebhookConfiguration"))
        {
            let mut object = object.clone();
            let webhook = &mut object.data["webhooks"][0];
            assert_eq!(
                webhook["namespaceSelector"]["matchExpressions"][0]["values"],
                json!([bed.namespace])
            );
            let path = webhook["clientConfig"]["service"]["path"].as_str().unwrap();
            webhook["clientConfig"] = json!({ "url": format!("https://{HOST}:{port}{path}") });
            webhook["failurePolicy"] = json!(failure_policy);
            webhook["timeoutSeconds"] = json!(30); // a busy machine
            apply(&bed.client, &object, false).await.unwrap();
            configuration = Some(object.name_any());
        }
        let endpoints = Arc::<Mutex<Vec<SocketAddr>>>::default();
        Self {
            own: OwnCertificates {
                namespace: secret.namespace().unwrap(),
                secret: secret.name_any(),
                configuration: configuration.unwrap(),
                host: HOST.to_owned(),
                lifetimes,
            },
            _door: AbortOnDropHandle::new(tokio::spawn(hand_over(door, endpoints.clone()))),
            endpoints,
        }
    }

    pub(crate) async fn start(bed: &Bed, lifetimes: Lifetimes, failure_policy: &str) -> Self {
        // Named as the bed's own release, whose account has the rights.
        let values = json!({ "watchNamespaces": [bed.namespace] });
        let release = chart(&bed.namespace, OPERATORS, values).await;
        Self::of(bed, &release, lifetimes, failure_policy).await
    }

    /// One more replica's webhooks.
    pub(crate) async fn endpoint(&self) -> Webhooks {
        let listener = TcpListener::bind((HOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        self.endpoints.lock().unwrap().push(address);
        Webhooks {
            listener,
            source: CertificateSource::Own(self.own.clone()),
        }
    }

    /// A replica with the rights of the chart.
    async fn replica(&self, bed: &Bed) -> Replica {
        let config = control_plane().await.config_of(&bed.account).await.unwrap();
        let mut election = election(&bed.account.namespace);
        election.name.clone_from(&bed.account.name);
        // Nothing is to be seen of a change of hands here, however busy the machine is.
        election.times = Times::new(60, 50, 2).unwrap();
        Replica::start_with(bed, config, election, Some(self.endpoint().await)).await
    }

    fn secrets(&self, bed: &Bed) -> Api<Secret> {
        Api::namespaced(bed.client.clone(), &self.own.namespace)
    }

    /// The Secret's data, as soon as it is as wanted.
    async fn secret_when(&self, bed: &Bed, what: &str, wanted: impl Fn(&Secret) -> bool) -> Secret {
        let is_it = |secret: &&Secret| secret.name_any() == self.own.secret;
        let secrets = objects_when(self.secrets(bed), what, |secrets| {
            secrets.iter().find(is_it).is_some_and(&wanted)
        });
        secrets
            .await
            .into_iter()
            .find(|secret| is_it(&secret))
            .unwrap()
    }
}

async fn hand_over(door: TcpListener, endpoints: Arc<Mutex<Vec<SocketAddr>>>) {
    let turn = AtomicUsize::new(0);
    loop {
        let (mut from, _) = door.accept().await.unwrap();
        let endpoint = {
            let endpoints = endpoints.lock().unwrap();
            endpoints
                .get(turn.fetch_add(1, Ordering::Relaxed) % endpoints.len().max(1))
                .copied()
        };
        let Some(endpoint) = endpoint else { continue };
        tokio::spawn(async move {
            if let Ok(mut to) = TcpStream::connect(endpoint).await {
                from.set_nodelay(true).unwrap();
                to.set_nodelay(true).unwrap();
                let _ = io::copy_bidirectional(&mut from, &mut to).await;
            }
        });
    }
}

fn entry(secret: &Secret, name: &str) -> String {
    let data = secret.data.as_ref().and_then(|data| data.get(name));
    let bytes = data
        .map(|ByteString(bytes)| bytes.clone())
        .unwrap_or_default();
    String::from_utf8(bytes).unwrap()
}

/// Asks the API server for a RunnerPool that is not kept.
async fn try_out(bed: &Bed, fields: Value) -> kube::Result<RunnerPool> {
    on_trial(bed.api(), bed.runner_pool("trial", fields)).await
}

async fn on_trial(pools: Api<RunnerPool>, pool: RunnerPool) -> kube::Result<RunnerPool> {
    let on_trial = PostParams {
        dry_run: true,
        ..PostParams::default()
    };
    pools.create(&on_trial, &pool).await
}

/// The API server calls the webhooks: until then they refuse everything, as their failure policy says.
async fn called(bed: &Bed) {
    within("the webhooks are called", async {
        while try_out(bed, json!({})).await.is_err() {
            time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bad_spec_is_refused_with_every_violation_and_a_good_one_gets_the_label() {
    let bed = Bed::make().await;
    // What was written before there were webhooks.
    bed.create("old", json!({ "azDoUrl": "https://dev.azure.com" }))
        .await;
    let service = Service::start(&bed, Lifetimes::default(), "Fail").await;
    let replicas = [service.replica(&bed).await, service.replica(&bed).await];
    called(&bed).await;

    let bad = json!({
        "azDoUrl": "https://dev.azure.com",                       // only the program knows
        "pollIntervalSeconds": 1,                                 // a plain rule of the schema
        "minAgents": 11,                                          // a rule of the schema in CEL
        "extraEnv": [{ "name": "AZP_URL", "value": "x" }],
        "schedules": [{ "name": "night", "start": "0 25 * * *", "duration": "0s", "timeZone": "Mars", "maxAgents": 10 }],
    });
    let refusal = try_out(&bed, bad).await.unwrap_err();
    let kube::Error::Api(status) = &refusal else {
        unreachable!("{refusal}");
    };
    assert_eq!((status.code, status.reason.as_str()), (422, "Invalid"));
    for told in [
        "spec.azDoUrl: ",
        "spec.pollIntervalSeconds: must be at least 5",
        "spec.minAgents: must not be above maxAgents, which is 10",
        "spec.schedules[0].start: must be minute, hour, day of the month, month and day of the week, like `0 8 * * 1-5`",
        "spec.schedules[0].duration: must be longer than zero",
        "spec.schedules[0].timeZone: must be a time zone of the IANA database, like Europe/Berlin",
        "spec.schedules[0].maxAgents: must not be below spec.minAgents, which is 11; give minAgents here as well",
        "spec.extraEnv[0].name: AZP_URL is set by the operator; choose another name",
    ] {
        assert!(status.message.contains(told), "{told}: {}", status.message);
    }
    // A good one gets the label and keeps everything else, once and again.
    let made = bed.create("web", json!({ "ttlIdleSeconds": 0 })).await;
    assert_eq!(made.labels()[LABEL], "azdo-runner-operator");
    assert_eq!(
        made.spec,
        bed.runner_pool("web", json!({})).spec,
        "all defaults are those of the schema"
    );
    let pools: Api<RunnerPool> = bed.api();
    let note = Patch::Merge(json!({ "metadata": { "annotations": { "note": "x" } } }));
    let params = PatchParams::default();
    let again = pools.patch("web", &params, &note).await.unwrap();
    assert_eq!((again.labels(), &again.spec), (made.labels(), &made.spec));
    let mut theirs = bed.runner_pool("theirs", json!({}));
    theirs
        .labels_mut()
        .insert(LABEL.to_owned(), "Helm".to_owned());
    let made = pools.create(&PostParams::default(), &theirs).await.unwrap();
    assert_eq!(made.labels()[LABEL], "Helm");

    // Once its agent pool was found it cannot be led to another one.
    let found = |status: &RunnerPoolStatus| status.agent_pool.is_some();
    bed.status_when("web", "its agent pool was found", found)
        .await;
    let moved = Patch::Merge(json!({ "spec": { "pool": "Other" } }));
    let refusal = pools.patch("web", &params, &moved).await.unwrap_err();
    assert!(
        refusal
            .to_string()
            .contains("spec.pool: must be \"linux pool\""),
        "{refusal}"
    );

    // The one that was invalid before can be labelled and deleted, the operator's own finalizer included.
    let noted = pools.patch("old", &PatchParams::default(), &note).await;
    noted.unwrap();
    let worse = Patch::Merge(json!({ "spec": { "maxAgents": 9 } }));
    let refusal = pools
        .patch("old", &PatchParams::default(), &worse)
        .await
        .unwrap_err();
    assert!(refusal.to_string().contains("spec.azDoUrl: "), "{refusal}");
    for name in ["old", "web", "theirs"] {
        pools.delete(name, &DeleteParams::default()).await.unwrap();
        bed.gone(name).await;
    }
    for replica in replicas {
        replica.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn webhooks_that_nobody_answers_block_nothing() {
    let bed = Bed::make().await;
    let service = Service::start(&bed, Lifetimes::default(), "Ignore").await;
    // No certificate is trusted, and nobody listens.
    bed.create("web", json!({})).await;
    let replica = service.replica(&bed).await;
    within("the webhooks are called", async {
        while try_out(&bed, json!({ "azDoUrl": "https://dev.azure.com" }))
            .await
            .is_ok()
        {
            time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
    replica.stop().await;
    // The certificate is trusted, but nobody listens any more.
    let bad = try_out(&bed, json!({ "azDoUrl": "https://dev.azure.com" })).await;
    bad.expect("it is taken, and a condition will tell");
    bed.delete("web").await;
}

/// Most requests at a time, so that a machine that cannot keep up is not buried under them.
const IN_FLIGHT: usize = 32;

/// What became of requests for RunnerPools, so many a second, until there were enough or `stop` is cancelled.
fn load(
    bed: &Bed,
    rate: u32,
    enough: usize,
    stop: CancellationToken,
) -> JoinHandle<Vec<kube::Result<Duration>>> {
    let (pools, pool): (Api<RunnerPool>, _) = (bed.api(), bed.runner_pool("trial", json!({})));
    tokio::spawn(async move {
        let mut ticks = time::interval(Duration::from_secs(1) / rate);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let room = Arc::new(Semaphore::new(IN_FLIGHT));
        let mut requests = JoinSet::new();
        while requests.len() < enough && stop.run_until_cancelled(ticks.tick()).await.is_some() {
            let permit = room.clone().acquire_owned().await.unwrap();
            let request = on_trial(pools.clone(), pool.clone());
            requests.spawn(async move {
                let begun = Instant::now();
                let answer = request.await;
                drop(permit);
                answer.map(|_| begun.elapsed())
            });
        }
        requests.join_all().await
    })
}

/// Those that came to nothing, with the first reason.
fn lost(answers: &[kube::Result<Duration>]) -> (usize, String) {
    let errors: Vec<_> = answers
        .iter()
        .filter_map(|answer| answer.as_ref().err())
        .collect();
    (
        errors.len(),
        errors.first().map(ToString::to_string).unwrap_or_default(),
    )
}

/// Fifty requests a second, each with two connections of its own to one of two replicas, while leaf and authority are
/// renewed within seconds instead of months. And the control: all of it made anew at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rotation_loses_no_request_and_a_naive_one_does() {
    const HOUR: Duration = Duration::from_secs(3600);
    let bed = Bed::make().await;
    let lifetimes = Lifetimes {
        authority: Lifetime {
            valid: 2 * HOUR,
            renewed_after: Duration::from_secs(8),
        },
        leaf: Lifetime {
            valid: HOUR,
            renewed_after: Duration::from_secs(6),
        },
    };
    let service = Service::start(&bed, lifetimes, "Fail").await;
    let replicas = [service.replica(&bed).await, service.replica(&bed).await];
    let filled = |secret: &Secret| !entry(secret, "tls.key").is_empty();
    let mut held = service
        .secret_when(&bed, "the Secret is filled", filled)
        .await;
    called(&bed).await;

    let stop = CancellationToken::new();
    let answers = load(&bed, 50, usize::MAX, stop.clone());
    for _ in 0..2 {
        let former = entry(&held, "ca.crt");
        let trusted = |secret: &Secret| {
            let now = entry(secret, "ca.crt");
            now.len() > former.len() && now.ends_with(&former)
        };
        let next = service
            .secret_when(&bed, "another authority is trusted", trusted)
            .await;
        assert_ne!(entry(&next, "ca.key"), entry(&held, "ca.key"));
        let served = |secret: &Secret| entry(secret, "tls.key") != entry(&next, "tls.key");
        held = service
            .secret_when(&bed, "and has signed a leaf", served)
            .await;
    }
    for _ in 0..50 {
        try_out(&bed, json!({})).await.unwrap();
    }
    stop.cancel();
    let answers = answers.await.unwrap();
    let (losses, error) = lost(&answers);
    println!("rotation: {losses} of {} requests lost", answers.len());
    assert_eq!(losses, 0, "{error}");

    let stop = CancellationToken::new();
    let answers = load(&bed, 50, usize::MAX, stop.clone());
    for _ in 0..5 {
        // What cannot be read is made anew, with nothing of the former authority.
        let before = service
            .secrets(&bed)
            .get(&service.own.secret)
            .await
            .unwrap();
        let garbage =
            Patch::Merge(json!({ "data": { "ca.key": ByteString(b"garbage".to_vec()) } }));
        let secrets = service.secrets(&bed);
        secrets
            .patch(&service.own.secret, &PatchParams::default(), &garbage)
            .await
            .unwrap();
        let anew = |secret: &Secret| {
            entry(secret, "ca.key").contains("PRIVATE KEY")
                && entry(secret, "tls.crt") != entry(&before, "tls.crt")
        };
        service
            .secret_when(&bed, "all of it is made anew", anew)
            .await;
    }
    called(&bed).await;
    stop.cancel();
    let answers = answers.await.unwrap();
    let (losses, error) = lost(&answers);
    println!(
        "naive rotation: {losses} of {} requests lost: {error}",
        answers.len()
    );
    assert!(losses > 0, "the test would not have noticed");
    for replica in replicas {
        replica.stop().await;
    }
}

/// Printed, not asserted: it is the machine's. For figures, run it alone with `ADMISSIONS=2000`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn how_long_an_admission_takes() {
    const RATE: u32 = 200;
    let requests = std::env::var("ADMISSIONS").map_or(20, |number| number.parse().unwrap());
    let bed = Bed::make().await;
    let measure = async |what: &str| {
        let answers = load(&bed, RATE, requests, CancellationToken::new());
        let answers = answers.await.unwrap();
        assert_eq!(lost(&answers).0, 0, "{}", lost(&answers).1);
        print(what, answers.into_iter().map(Result::unwrap).collect());
    };
    // The API server makes ready for a kind when it is first asked for it.
    try_out(&bed, json!({})).await.unwrap();
    measure("creation without webhooks").await;
    let service = Service::start(&bed, Lifetimes::default(), "Fail").await;
    let replicas = [service.replica(&bed).await, service.replica(&bed).await];
    called(&bed).await;
    measure("creation with both webhooks").await;

    // One answer by itself, with a connection of its own.
    let secret = service
        .secrets(&bed)
        .get(&service.own.secret)
        .await
        .unwrap();
    let authority = reqwest::Certificate::from_pem(entry(&secret, "ca.crt").as_bytes()).unwrap();
    let client = reqwest::Client::builder()
        .tls_certs_only([authority])
        .build()
        .unwrap();
    let address = service.endpoints.lock().unwrap()[0];
    let object = bed.runner_pool("web", json!({}));
    let review = json!({
        "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
        "request": {
            "uid": "1", "operation": "CREATE", "name": "web", "userInfo": {}, "object": object, "oldObject": null,
            "kind": { "group": "devops.opentools.mf", "version": "v1", "kind": "RunnerPool" },
            "resource": { "group": "devops.opentools.mf", "version": "v1", "resource": "runnerpools" },
        },
    });
    let review = review.to_string();
    admission::answer(admission::Webhook::Validating, review.as_bytes()).unwrap();
    let mut ticks = time::interval(Duration::from_secs(1) / RATE);
    let mut answers = JoinSet::new();
    for _ in 0..requests {
        ticks.tick().await;
        let request = client
            .post(format!("https://{address}/validate"))
            .body(review.clone());
        answers.spawn(async move {
            let begun = Instant::now();
            let answer = request.send().await.unwrap().text().await.unwrap();
            assert!(answer.contains("\"allowed\":true"), "{answer}");
            begun.elapsed()
        });
    }
    print("one webhook, called directly", answers.join_all().await);
    for replica in replicas {
        replica.stop().await;
    }
}

fn print(what: &str, mut times: Vec<Duration>) {
    times.sort_unstable();
    let at = |share: usize| times[(times.len() - 1) * share / 100].as_secs_f64() * 1000.0;
    println!(
        "{what}: p50 {:.1} ms, p99 {:.1} ms of {} at 200 a second",
        at(50),
        at(99),
        times.len()
    );
}
