//! Turns a spec into what the planner wants, or says what is wrong with it. Pure.

use std::{sync::Arc, time::Duration};

use api::{InForce, Mode, OrganizationUrl, Placeholders, RunnerPool, TerminatedPods, names};
use jiff::{SignedDuration, Timestamp};
use kube::{Resource as _, ResourceExt as _};
use planner::{Keep, Plan, Pool, Profile};

use crate::{
    manifest::{self, pod::Described},
    subscriptions::AgentPoolKey,
};

/// A RunnerPool that can be carried out.
#[derive(Clone, Debug)]
pub(crate) struct Resolved {
    pub(crate) organization: OrganizationUrl,
    pub(crate) agent_pool: AgentPoolKey,
    pub(crate) pool_name: String,
    pub(crate) secret: String,
    pub(crate) interval: Duration,
    pub(crate) wishes: Arc<Pool>,
    /// What made the bounds in the wishes. They hold until it ends.
    pub(crate) in_force: InForce,
}

impl Resolved {
    /// When the next pass is due after this plan, if nothing happens before.
    pub(crate) fn due(&self, plan: &Plan) -> Option<Timestamp> {
        let due = [plan.next, self.in_force.until];
        due.into_iter().flatten().min()
    }
}

/// The RunnerPool's wishes at this time; or all violations of its spec, as one text.
pub(crate) fn resolve(
    pool: &RunnerPool,
    cluster: &str,
    now: Timestamp,
) -> Result<Resolved, String> {
    let violations = api::validate_with(&pool.spec, pool.status.as_ref());
    let organization = match OrganizationUrl::parse(&pool.spec.az_do_url) {
        Ok(organization) if violations.is_empty() => organization,
        _ => {
            return Err(violations
                .iter()
                .map(ToString::to_string)
                .collect::<Vec<_>>()
                .join("; "));
        }
    };
    let name = pool.name_any();
    let spec = &pool.spec;
    let pool_name = spec.pool.trim().to_owned();
    let owner_mark = names::owner_mark(cluster, &pool.namespace().unwrap_or_default(), &name);
    let in_force = api::in_force(spec, now);
    let wishes = Pool {
        name: format!("{}/{name}", pool.namespace().unwrap_or_default()),
        priority: spec.priority,
        agent_prefix: names::agent_prefix(pool.agent_base()),
        placeholder_prefix: names::placeholder(pool.agent_base(), ""),
        placeholder_suffix: names::placeholder_suffix(&manifest::pod::digest(
            owner_mark.as_bytes(),
        )),
        owner_mark,
        max_agents: in_force.max_agents,
        ttl_idle: (spec.ttl_idle_seconds > 0)
            .then(|| SignedDuration::from_secs(spec.ttl_idle_seconds.into())),
        profiles: profiles(pool, cluster, in_force.min_agents),
        mode: match spec.mode {
            Mode::Active => planner::Mode::Active,
            Mode::Paused => planner::Mode::Paused,
            Mode::Drained => planner::Mode::Drained,
        },
        placeholders: spec.placeholders == Placeholders::Enabled,
        keep: keep(spec.terminated_pods.unwrap_or_default()),
        deleting: pool.meta().deletion_timestamp.is_some(),
    };
    Ok(Resolved {
        agent_pool: AgentPoolKey {
            organization: organization.canonical(),
            pool: pool_name.to_lowercase(),
        },
        organization,
        pool_name,
        secret: spec.pat_secret_name.trim().to_owned(),
        interval: Duration::from_secs(spec.poll_interval_seconds.into()),
        wishes: Arc::new(wishes),
        in_force,
    })
}

fn keep(terminated: TerminatedPods) -> Keep {
    let count = |pods: u32| usize::try_from(pods).unwrap_or(usize::MAX);
    Keep {
        failed: count(terminated.keep_failed),
        succeeded: count(terminated.keep_succeeded),
    }
}

/// The base first, then those that the spec lists, then one for each entry of `capabilityImages`. The base keeps the
/// minimum that is in force.
fn profiles(pool: &RunnerPool, cluster: &str, min_agents: u32) -> Vec<Profile> {
    let mut profiles = pool.spec.all_profiles();
    profiles[0].min_agents = min_agents;
    let profiles = profiles.iter().map(|profile| {
        let Described { shape, given } = manifest::pod::describe(pool, cluster, profile);
        Profile {
            name: profile.name.to_owned(),
            declared: profile.capabilities.clone().into_iter().collect(),
            given,
            image: profile.image.to_owned(),
            min_agents: profile.min_agents,
            max_agents: profile.max_agents,
            windows: profile.is_windows(),
            shape,
        }
    });
    profiles.collect()
}
