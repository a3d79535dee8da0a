//! Gathers what a plan is made from. The only requests are a read of the Secret, and only when the token is not known
//! or was refused.

use std::{collections::BTreeSet, sync::Arc};

use api::{InForce, RunnerPool, conditions::Reason, names};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Secret;
use kube::{Api, Resource as _};
use planner::{Cluster, Look, Pool, Snapshot};
use secrecy::SecretString;

use super::{Context, Error, Finding, Identity, Known, resolve::Resolved};
use crate::{
    manifest::pod::AgentPod,
    mirror::PoolKey,
    reader::Outcome,
    subscriptions::{Subscription, Subscriptions, Wanted, Wishes},
};

/// What was observed.
#[derive(Clone, Debug)]
pub(crate) struct Observed {
    pub(crate) snapshot: Snapshot,
    pub(crate) organization: String,
    pub(crate) in_force: InForce,
    pub(crate) subscription: Subscription,
    /// Id of the agent pool, once it is known.
    pub(crate) pool_id: Option<i64>,
    pub(crate) outcome: Outcome,
    /// The Pods of this RunnerPool.
    pub(crate) pods: Vec<AgentPod>,
}

/// Everything that is to be known; a finding when there is no token to ask with.
pub(crate) async fn observe(
    pool: &RunnerPool,
    identity: &Identity,
    resolved: &Resolved,
    context: &Context,
) -> Result<Result<Observed, Finding>, Error> {
    let subscription = match subscribe(pool, identity, resolved, context).await? {
        Ok(subscription) => subscription,
        Err(finding) => return Ok(Err(finding)),
    };
    Ok(Ok(gather(
        pool,
        identity,
        resolved,
        subscription,
        context.known(),
    )))
}

/// What the mirrors and the last look say. No requests.
pub(crate) fn gather(
    pool: &RunnerPool,
    identity: &Identity,
    resolved: &Resolved,
    subscription: Subscription,
    known: Known<'_>,
) -> Observed {
    let (pool_id, outcome) = subscription.reader.outcome();
    known.subscriptions.release(&identity.key);
    let (pods, former) = known
        .pods
        .of(&identity.key)
        .into_iter()
        .partition::<Vec<_>, _>(|pod| pod.owner == identity.uid);
    let claims = known.claims.of(&identity.key).into_iter();
    let cluster = Cluster {
        pods: pods.iter().map(|pod| Arc::clone(&pod.pod)).collect(),
        claims: claims.filter_map(|claim| claim.going(pool)).collect(),
        shown_after: known.pods.gone_until(&identity.key),
        taken: taken(
            identity,
            &resolved.wishes,
            &subscription,
            known,
            &former,
            &outcome,
        ),
    };
    let look = outcome.look();
    let wishes = Wishes {
        uid: identity.uid.clone(),
        pool: Arc::clone(&resolved.wishes),
    };
    known.subscriptions.describe(&identity.key, Some(wishes));
    let snapshot = Snapshot {
        pool: Arc::clone(&resolved.wishes),
        cluster,
        siblings: siblings(identity, &subscription, known, &look),
        look,
    };
    let organization = resolved.organization.name().to_owned();
    Observed {
        snapshot,
        organization,
        in_force: resolved.in_force.clone(),
        subscription,
        pool_id,
        outcome,
        pods,
    }
}

/// The other RunnerPools of the agent pool, as they wished and as their Pods are. They matter only while jobs are queued.
fn siblings(
    identity: &Identity,
    subscription: &Subscription,
    known: Known<'_>,
    look: &Look,
) -> Vec<Snapshot> {
    if !look.has_queued_jobs() {
        return Vec::new();
    }
    let siblings = known
        .subscriptions
        .siblings(&identity.key, &subscription.agent_pool);
    let snapshot = |(key, subscription): (PoolKey, Subscription)| {
        // One that is gone from the cluster need not have been seen to go.
        let wishes = subscription
            .wishes
            .filter(|_| subscription.reader.is_subscribed(&key))?;
        let pods = known.pods.of(&key).into_iter();
        let pods = pods.filter(|pod| pod.owner == wishes.uid);
        let cluster = Cluster {
            pods: pods.map(|pod| pod.pod).collect(),
            ..Cluster::default()
        };
        Some(Snapshot {
            pool: wishes.pool,
            cluster,
            // Each token has a reader of its own, which remembers what it saw.
            look: subscription.reader.remembering(look),
            siblings: Vec::new(),
        })
    };
    siblings.into_iter().filter_map(snapshot).collect()
}

/// Names that agents of others have in the agent pool, or are about to have: RunnerPools of the same name in other
/// namespaces, and a former RunnerPool of this name whose Pods are still on their way out. And those of Pods that went
/// after the look, or shortly before it without taking leave: it may be too old to show that their agents have registered, and
/// are online. And those of others' Pods that may be there, as their creation had no answer.
fn taken(
    identity: &Identity,
    wishes: &Pool,
    subscription: &Subscription,
    known: Known<'_>,
    former: &[AgentPod],
    outcome: &Outcome,
) -> BTreeSet<String> {
    // Warm agents are made while Azure DevOps cannot be looked at, too.
    let look = outcome.last_look();
    let taken_at = look.map_or(Timestamp::MIN, |look| look.taken_at);
    let mut taken = known
        .subscriptions
        .reserved_by_others(&identity.key, &subscription.agent_pool);
    taken.extend(former.iter().map(|pod| pod.pod.name.clone()));
    taken.extend(known.pods.gone_from(&identity.key, taken_at));
    let prefix = &wishes.agent_prefix;
    for (sibling, _) in known
        .subscriptions
        .siblings(&identity.key, &subscription.agent_pool)
    {
        let pods = known.pods.of(&sibling).into_iter();
        taken.extend(
            pods.map(|pod| pod.pod.name.clone())
                .chain(known.pods.gone_from(&sibling, taken_at))
                .chain(known.pods.doubted(&sibling))
                .filter(|name| name.starts_with(prefix)),
        );
    }
    taken
}

/// The subscription that fits the spec and the token. The Secret is read when the spec changed and while Azure DevOps
/// refuses the token, or hides the agent pool from it; a token that works is not asked for again.
async fn subscribe(
    pool: &RunnerPool,
    identity: &Identity,
    resolved: &Resolved,
    context: &Context,
) -> Result<Result<Subscription, Finding>, Error> {
    if let Some(current) = current(pool, identity, resolved, &context.subscriptions) {
        return Ok(Ok(current));
    }
    let token = match token(identity, &resolved.secret, context).await? {
        Ok(token) => token,
        Err(finding) => {
            context.subscriptions.unsubscribe(&identity.key);
            return Ok(Err(finding));
        }
    };
    let (subscription, new) = context.subscriptions.subscribe(
        &identity.key,
        wanted(pool, resolved, token),
        &context.connections,
    );
    if let Some(reader) = new {
        (context.start_reader)(Arc::clone(&reader));
    }
    Ok(Ok(subscription))
}

/// The subscription that the RunnerPool has, if it fits the spec and its token is not to be read again.
pub(crate) fn current(
    pool: &RunnerPool,
    identity: &Identity,
    resolved: &Resolved,
    subscriptions: &Subscriptions,
) -> Option<Subscription> {
    let deleting = pool.meta().deletion_timestamp.is_some();
    let current = subscriptions.of(&identity.key).filter(|current| {
        // The end of a RunnerPool may find its Secret gone already, as with its namespace; the token still works.
        let unchanged = deleting || current.generation == pool.meta().generation;
        unchanged
            && current.reader.is_subscribed(&identity.key)
            && current.secret == resolved.secret
            && current.agent_pool == resolved.agent_pool
            && current.interval == resolved.interval
    });
    current.filter(|current| !current.reader.wants_token())
}

/// What the RunnerPool wants to look at.
pub(crate) fn wanted<'a>(
    pool: &RunnerPool,
    resolved: &'a Resolved,
    token: SecretString,
) -> Wanted<'a> {
    Wanted {
        agent_pool: resolved.agent_pool.clone(),
        organization: resolved.organization.as_str(),
        pool_name: &resolved.pool_name,
        token,
        secret: &resolved.secret,
        generation: pool.meta().generation,
        interval: resolved.interval,
    }
}

/// The token in the Secret, without the line end that editors leave.
async fn token(
    identity: &Identity,
    name: &str,
    context: &Context,
) -> Result<Result<SecretString, Finding>, Error> {
    let secrets: Api<Secret> = Api::namespaced(context.client.clone(), &identity.key.namespace);
    let unusable = |what: String| Ok(Err(Finding::new(Reason::SecretUnusable, what)));
    let secret = match secrets.get_opt(name).await {
        Ok(secret) => secret,
        Err(kube::Error::Api(status)) if status.is_forbidden() => {
            return unusable(format!(
                "spec.patSecretName: the operator may not read the Secret {name:?}; give it the verb get on secrets"
            ));
        }
        Err(source) => {
            return Err(Error::Secret {
                name: name.to_owned(),
                source,
            });
        }
    };
    let key = names::SECRET_TOKEN_KEY;
    let Some(secret) = secret else {
        return unusable(format!(
            "spec.patSecretName: there is no Secret {name:?} in this namespace; create it with the key {key:?}"
        ));
    };
    let Some(bytes) = secret.data.as_ref().and_then(|data| data.get(key)) else {
        return unusable(format!(
            "spec.patSecretName: the Secret {name:?} has no key {key:?}; put the token there"
        ));
    };
    match token_in(&bytes.0) {
        Some(token) => Ok(Ok(token)),
        None => unusable(format!(
            "spec.patSecretName: the key {key:?} of the Secret {name:?} is empty or holds characters that no token has"
        )),
    }
}

/// The token, without blanks around it; `None`: it is empty or holds characters that no token has.
pub(crate) fn token_in(bytes: &[u8]) -> Option<SecretString> {
    let token = std::str::from_utf8(bytes).ok()?.trim();
    let usable = !token.is_empty() && token.chars().all(|c| c.is_ascii_graphic());
    usable.then(|| SecretString::from(token))
}
