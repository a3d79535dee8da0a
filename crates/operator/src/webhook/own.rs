//! Certificates that the operator makes itself, in a Secret that all replicas read and the leader writes.

use std::{
    collections::BTreeMap,
    fmt::Debug,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use k8s_openapi::{
    ByteString,
    api::{
        admissionregistration::v1::{MutatingWebhookConfiguration, ValidatingWebhookConfiguration},
        core::v1::Secret,
    },
};
use kube::{
    Api, Client, Resource,
    api::{Patch, PatchParams, PostParams},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};
use tokio::time;

use super::{
    certificate::{self, Certificates, Lifetimes, NotMade, Useless},
    key::Key,
};
use crate::telemetry::chain;

/// Longest time between two looks at the Secret.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// Between two looks while there is no certificate to serve with.
const IMPATIENCE: Duration = Duration::from_secs(1);

/// Longest time that a new authority is trusted before it signs. Every API server learns of a changed configuration by a
/// watch, within a second; one that has just lost its watch needs longer.
const LONGEST_SETTLING: Duration = Duration::from_secs(60);

/// Longest wait for an answer of the API server.
const DEADLINE: Duration = Duration::from_secs(10);

/// Where the certificates are, and what they are for.
#[derive(Clone, Debug)]
pub struct OwnCertificates {
    /// Namespace of the Secret.
    pub namespace: String,
    /// Name of the Secret, which has to exist.
    pub secret: String,
    /// Name of the webhook configurations that are to trust the authority: one of either kind.
    pub configuration: String,
    /// DNS name or IP address at which the API server finds the webhooks.
    pub host: String,
    /// How long certificates are valid, and when they are renewed.
    pub lifetimes: Lifetimes,
}

/// Why a look at the Secret, or its renewal, came to nothing.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("the Secret {0} does not exist; make an empty one of that name, as the chart does")]
    NoSecret(String),
    #[error("the Secret {0} holds no certificates yet")]
    Empty(String),
    #[error("the Secret {0} is of no use")]
    Useless(String, #[source] Useless),
    #[error("failed to {0}")]
    Request(&'static str, #[source] kube::Error),
    #[error("got no answer in time from the API server")]
    NoAnswer,
    #[error(transparent)]
    NotMade(#[from] NotMade),
}

impl OwnCertificates {
    /// Serves with what the Secret holds, and looks again and again, for ever.
    pub(super) async fn follow(&self, client: Client, key: &Key) {
        let secrets: Api<Secret> = Api::namespaced(client, &self.namespace);
        let mut told = Told::default();
        loop {
            let held = match within(self.secret(&secrets)).await {
                Ok(secret) => self.read(&secret),
                Err(failure) => Err(failure),
            };
            match held {
                Ok(held) => {
                    if key.swap(held.served()) {
                        tracing::info!(until = %held.until(), "Serving webhooks with a new certificate");
                    }
                    told.all_is_well();
                }
                // The leader is about to fill it.
                Err(Failure::Empty(_)) => {}
                Err(failure) => told.trouble(
                    &failure,
                    &self.namespace,
                    "Failed to read the certificate of the webhooks",
                ),
            }
            time::sleep(if key.is_there() {
                self.pause()
            } else {
                self.pause().min(IMPATIENCE)
            })
            .await;
        }
    }

    /// Keeps the Secret filled with certificates that do not expire, and the configurations trusting them, for ever.
    pub(super) async fn renew(&self, client: Client) {
        let (mut told, mut trusted) = (Told::default(), Trusted::default());
        loop {
            match within(self.pass(&client, &mut trusted)).await {
                Ok(()) => told.all_is_well(),
                Err(failure) => told.trouble(
                    &failure,
                    &self.namespace,
                    "Failed to renew the certificate of the webhooks",
                ),
            }
            time::sleep(self.pause()).await;
        }
    }

    /// One look at everything. Whatever a new leaf needs is trusted before the leaf is written; whoever of the replicas
    /// serves with which leaf, the API server trusts both.
    async fn pass(&self, client: &Client, trusted: &mut Trusted) -> Result<(), Failure> {
        let secrets: Api<Secret> = Api::namespaced(client.clone(), &self.namespace);
        let secret = self.secret(&secrets).await?;
        let now = Timestamp::now();
        let (mut held, mut changed) = match self.read(&secret) {
            Ok(held) => (held, false),
            Err(failure) => {
                if !matches!(failure, Failure::Empty(_)) {
                    tracing::warn!(
                        namespace = self.namespace,
                        error = chain(&failure),
                        "Replacing what the Secret of the webhooks holds"
                    );
                }
                (certificate::make(&self.host, self.lifetimes, now)?, true)
            }
        };
        // What goes wrong here must not keep a leaf from being renewed that nobody takes any more.
        let mut published = if changed {
            Ok(())
        } else {
            self.publish(client, &held, trusted).await
        };
        // At most one of each kind.
        for _ in 0..3 {
            let settled = trusted.is_settled(&held.trusted(), self.settling());
            let step = certificate::decide(&held, &self.host, self.lifetimes, now, settled);
            let Some(step) = step else { break };
            tracing::info!(?step, "Renewing the certificates of the webhooks");
            held = certificate::take(step, held, &self.host, self.lifetimes, now)?;
            changed = true;
        }
        if changed {
            self.write(&secrets, secret, held.data()).await?;
            published = self.publish(client, &held, trusted).await;
        }
        published
    }

    async fn secret(&self, secrets: &Api<Secret>) -> Result<Secret, Failure> {
        let secret = secrets.get_opt(&self.secret).await;
        let secret = secret.map_err(|error| Failure::Request("read the Secret", error))?;
        secret.ok_or_else(|| Failure::NoSecret(self.secret.clone()))
    }

    fn read(&self, secret: &Secret) -> Result<Certificates, Failure> {
        match &secret.data {
            Some(data) if !data.is_empty() => Certificates::read(data)
                .map_err(|useless| Failure::Useless(self.secret.clone(), useless)),
            _ => Err(Failure::Empty(self.secret.clone())),
        }
    }

    /// Replaces the very version of the Secret that the new data is based on.
    async fn write(
        &self,
        secrets: &Api<Secret>,
        mut secret: Secret,
        data: BTreeMap<String, ByteString>,
    ) -> Result<(), Failure> {
        secret.data = Some(data);
        secret.metadata.managed_fields = None;
        let params = PostParams {
            field_manager: Some(api::names::OPERATOR.to_owned()),
            ..PostParams::default()
        };
        let written = secrets.replace(&self.secret, &params, &secret).await;
        written
            .map(drop)
            .map_err(|error| Failure::Request("write the Secret", error))
    }

    /// Lets both configurations trust the authorities.
    async fn publish(
        &self,
        client: &Client,
        held: &Certificates,
        trusted: &mut Trusted,
    ) -> Result<(), Failure> {
        let authorities = held.trusted();
        let mutating: Api<MutatingWebhookConfiguration> = Api::all(client.clone());
        let validating: Api<ValidatingWebhookConfiguration> = Api::all(client.clone());
        let [mutating, validating] = [
            self.publish_in(mutating, &authorities).await,
            self.publish_in(validating, &authorities).await,
        ];
        let (mutating, validating) =
            mutating
                .and_then(|one| Ok((one, validating?)))
                .map_err(|error| {
                    Failure::Request("keep the authority in the webhook configurations", error)
                })?;
        trusted.note(authorities, mutating && validating);
        Ok(())
    }

    /// Whether the authorities were trusted there already. A configuration that does not exist calls nobody.
    async fn publish_in<K>(&self, configurations: Api<K>, authorities: &str) -> kube::Result<bool>
    where
        K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Serialize,
    {
        let Some(found) = configurations.get_opt(&self.configuration).await? else {
            return Ok(true);
        };
        let found = serde_json::to_value(found).map_err(kube::Error::SerdeError)?;
        let webhooks = found["webhooks"]
            .as_array()
            .map(Vec::as_slice)
            .unwrap_or_default();
        let bundle = json!(ByteString(authorities.as_bytes().to_vec()));
        if webhooks
            .iter()
            .all(|webhook| webhook["clientConfig"]["caBundle"] == bundle)
        {
            return Ok(true);
        }
        let entry = |webhook: &Value| json!({ "name": webhook["name"], "clientConfig": { "caBundle": bundle } });
        let entries: Vec<Value> = webhooks.iter().map(entry).collect();
        let configuration = json!({
            "apiVersion": K::api_version(&()), "kind": K::kind(&()), "webhooks": entries,
        });
        let params = PatchParams::apply(api::names::OPERATOR).force();
        let patch = Patch::Apply(configuration);
        let applied = configurations.patch(&self.configuration, &params, &patch);
        applied.await.map(|_| false)
    }

    /// Often enough that a leaf is seen long before the former one ends.
    fn pause(&self) -> Duration {
        LONGEST_PAUSE.min(self.lifetimes.leaf.renewed_after / 20)
    }

    fn settling(&self) -> Duration {
        LONGEST_SETTLING.min(self.lifetimes.leaf.renewed_after / 2)
    }
}

/// What this process has seen to be trusted, and since when. A new leader begins anew, which only takes longer.
#[derive(Debug, Default)]
struct Trusted(Option<(String, Instant)>);

impl Trusted {
    /// `already`: nothing had to be changed for it.
    fn note(&mut self, authorities: String, already: bool) {
        let known = self
            .0
            .as_ref()
            .is_some_and(|(known, _)| *known == authorities);
        if !(known && already) {
            self.0 = Some((authorities, Instant::now()));
        }
    }

    fn is_settled(&self, authorities: &str, settling: Duration) -> bool {
        let trusted = self.0.as_ref();
        trusted.is_some_and(|(known, since)| known == authorities && since.elapsed() >= settling)
    }
}

/// Tells each trouble once, however often it is met.
#[derive(Debug, Default)]
struct Told(Option<String>);

impl Told {
    fn trouble(&mut self, failure: &Failure, namespace: &str, message: &str) {
        let error = chain(failure);
        if self.0.as_ref() != Some(&error) {
            tracing::warn!(namespace, error, "{message}");
        }
        self.0 = Some(error);
    }

    fn all_is_well(&mut self) {
        self.0 = None;
    }
}

async fn within<T>(request: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    time::timeout(DEADLINE, request)
        .await
        .unwrap_or(Err(Failure::NoAnswer))
}
