//! What kubectl says to whoever writes a RunnerPool that is wrong, or probably not meant.

use anyhow::{Context as _, Result, ensure};
use api::RunnerPoolSpec;
use serde_json::{Value, json};

use crate::e2e::world::{Team, World};

/// The webhooks name all that is wrong, each with its field and its remedy, and warn of what is risky.
pub(super) async fn refusal(world: &World) -> Result<String> {
    let team = world.team("refusal").await?;
    until_webhooks_answer(&team).await?;
    let wrong = json!({
        "azDoUrl": "dev.azure.com/my-org",
        "image": "my agent",
        "minAgents": 3,
        "maxAgents": 2,
        "pollIntervalSeconds": 1,
        "extraEnv": [{ "name": "AZP_TOKEN", "value": "x" }],
        "pvcs": [{ "name": "cache", "mountPath": "cache", "storage": "lots" }],
        "certTrustStore": [{ "secretName": "my ca" }],
        "podTemplate": { "spec": { "containers": [{ "name": "agent", "image": "other" }] } },
    });
    let violations = api::validate(&spec_of(&team, &wrong)?);
    let said = match team.apply("wrong", wrong).await {
        Ok(_) => anyhow::bail!("it was not refused"),
        Err(error) => format!("{error:#}"),
    };
    for violation in &violations {
        ensure!(
            said.contains(&violation.to_string()),
            "{violation}\nis missing in:\n{said}"
        );
    }
    let fields = violations.iter().map(|violation| &violation.field);
    let fields = fields.collect::<std::collections::BTreeSet<_>>().len();
    ensure!(fields >= 9, "only {fields} fields are wrong: {said}");

    let risky = json!({ "placeholders": "Disabled", "capabilityAware": true });
    let warnings = api::warnings(&spec_of(&team, &risky)?);
    ensure!(warnings.len() >= 3, "nothing is risky enough: {warnings:?}");
    let said = team.apply("risky", risky).await?;
    for warning in &warnings {
        ensure!(
            said.contains(&format!("Warning: {warning}")),
            "{warning}\nis missing in:\n{said}"
        );
    }
    team.delete("risky").await?;
    look_around(&team).await?;
    Ok(format!(
        "all of {} violations and all of {} warnings were told",
        violations.len(),
        warnings.len()
    ))
}

/// After an installation it takes them a moment to have a certificate that is trusted. Until then nothing is blocked.
async fn until_webhooks_answer(team: &Team<'_>) -> Result<()> {
    let label = api::names::LABEL_MANAGED_BY_RECOMMENDED;
    team.apply("first", json!({ "mode": "Paused" })).await?;
    let here = ["first", "--namespace", team.name];
    let mut looks = 0;
    team.world
        .until("a webhook has labelled a RunnerPool", async || {
            looks += 1;
            let look = format!("look={looks}");
            let touch = [
                &["annotate", "--overwrite", "runnerpool"],
                &here[..],
                &[&look],
            ]
            .concat();
            team.world.kubectl(&touch).await?;
            let pool = team
                .world
                .get(&[&["runnerpool"], &here[..]].concat())
                .await?;
            let labels = &pool["metadata"]["labels"];
            Ok((labels[label] == api::names::OPERATOR).then_some(()))
        })
        .await?;
    team.delete("first").await
}

/// The README's questions about webhooks.
async fn look_around(team: &Team<'_>) -> Result<()> {
    let ask = async |begin: &str| team.world.documented(begin, &[], "").await;
    let log = "kubectl logs --namespace azdo-operator --selector app.kubernetes.io/name=azdo-runner-operator --prefix --tail=-1 | grep ";
    ask(log).await?;
    let endpoints = ask("kubectl get endpointslices ").await?;
    ensure!(endpoints.contains("9443"), "{endpoints}");
    let trusted = ask("kubectl get validatingwebhookconfiguration ").await?;
    let made = ask("kubectl get secret --namespace ").await?;
    ensure!(
        !made.is_empty() && trusted == made,
        "the API server trusts {trusted:?}, and the Secret has {made:?}"
    );
    ask("kubectl auth can-i --list ").await.map(drop)
}

fn spec_of(team: &Team<'_>, more: &Value) -> Result<RunnerPoolSpec> {
    let object = team.object("any", more.clone());
    serde_json::from_value(object["spec"].clone()).context("it is not even a spec")
}
