//! The operator's bill of materials, as `CycloneDX` JSON: what `cargo metadata` says is compiled into it.

use std::{
    collections::{BTreeMap, BTreeSet},
    env, fs,
    path::Path,
};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use crate::{output, repository};

/// Writes the bill of materials.
pub(crate) fn write(file: &Path) -> Result<()> {
    let platform = format!("{}-unknown-linux-gnu", env::consts::ARCH);
    let arguments = [
        "metadata",
        "--format-version=1",
        "--locked",
        "--filter-platform",
        &platform,
    ];
    let metadata = repository::output(repository::cargo(&arguments))?;
    let metadata = serde_json::from_str(&metadata).context("cargo metadata wrote no JSON")?;
    let bill = bill(&metadata).context("cargo metadata lacks what a bill of materials needs")?;
    fs::write(file, serde_json::to_string_pretty(&bill)? + "\n")
        .with_context(|| format!("cannot write {}", file.display()))?;
    output::line(file.display());
    Ok(())
}

/// The bill of the package `operator`: itself, and all that it is built from, but for what only its tests or build scripts
/// need.
fn bill(metadata: &Value) -> Option<Value> {
    let packages: BTreeMap<&str, &Value> = metadata["packages"]
        .as_array()?
        .iter()
        .filter_map(|package| Some((package["id"].as_str()?, package)))
        .collect();
    let nodes: BTreeMap<&str, BTreeSet<&str>> = metadata["resolve"]["nodes"]
        .as_array()?
        .iter()
        .filter_map(|node| Some((node["id"].as_str()?, linked(node))))
        .collect();
    let (root, operator) = packages
        .iter()
        .find(|(_, package)| package["name"] == "operator")?;
    let mut reached = BTreeSet::new();
    let mut open = vec![*root];
    while let Some(id) = open.pop() {
        if reached.insert(id) {
            open.extend(nodes.get(id)?);
        }
    }
    let components: Vec<Value> = reached
        .iter()
        .filter(|id| *id != root)
        .map(|id| {
            packages
                .get(id)
                .and_then(|package| component(package, "library"))
        })
        .collect::<Option<_>>()?;
    let dependencies: Vec<Value> = reached
        .iter()
        .map(|id| {
            let on: Option<BTreeSet<String>> = nodes
                .get(id)?
                .iter()
                .map(|id| packages.get(id).and_then(|package| purl(package)))
                .collect();
            Some(json!({ "ref": purl(packages.get(id)?)?, "dependsOn": on? }))
        })
        .collect::<Option<_>>()?;
    Some(json!({
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": { "component": component(operator, "application")? },
        "components": components,
        "dependencies": dependencies,
    }))
}

/// What a package links: neither `dev` nor `build` dependencies.
fn linked(node: &Value) -> BTreeSet<&str> {
    let is_normal = |dependency: &&Value| {
        let mut kinds = dependency["dep_kinds"].as_array().into_iter().flatten();
        kinds.any(|kind| kind["kind"].is_null())
    };
    let dependencies = node["deps"].as_array().into_iter().flatten();
    dependencies
        .filter(is_normal)
        .filter_map(|dependency| dependency["pkg"].as_str())
        .collect()
}

fn component(package: &Value, kind: &str) -> Option<Value> {
    let purl = purl(package)?;
    let mut component = json!({
        "type": kind,
        "bom-ref": purl,
        "name": package["name"],
        "version": package["version"],
        "purl": purl,
    });
    if let Some(license) = package["license"].as_str() {
        // The old way to write OR is still in use.
        component["licenses"] = json!([{ "expression": license.replace('/', " OR ") }]);
    }
    Some(component)
}

/// <https://github.com/package-url/purl-spec>
fn purl(package: &Value) -> Option<String> {
    let (name, version) = (package["name"].as_str()?, package["version"].as_str()?);
    Some(format!("pkg:cargo/{name}@{version}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_linked_is_listed_and_what_only_tests_need_is_not() {
        let package = |name: &str| json!({ "id": name, "name": name, "version": "1.0.0", "license": "MIT/Apache-2.0" });
        let dependency =
            |name: &str, kind: Value| json!({ "pkg": name, "dep_kinds": [{ "kind": kind }] });
        let metadata = json!({
            "packages": [package("operator"), package("linked"), package("deeper"), package("tests"), package("other")],
            "resolve": { "nodes": [
                { "id": "operator", "deps": [dependency("linked", Value::Null), dependency("tests", json!("dev"))] },
                { "id": "linked", "deps": [dependency("deeper", Value::Null)] },
                { "id": "deeper", "deps": [] },
                { "id": "tests", "deps": [dependency("other", Value::Null)] },
                { "id": "other", "deps": [] },
            ] },
        });
        let bill = bill(&metadata).unwrap_or_default();
        let names: Vec<&Value> = bill["components"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|component| &component["name"])
            .collect();
        assert_eq!(names, ["deeper", "linked"]);
        assert_eq!(
            bill["metadata"]["component"]["purl"],
            "pkg:cargo/operator@1.0.0"
        );
        assert_eq!(
            bill["components"][0]["licenses"][0]["expression"],
            "MIT OR Apache-2.0"
        );
        assert_eq!(bill["dependencies"][1]["ref"], "pkg:cargo/linked@1.0.0");
        assert_eq!(
            bill["dependencies"][1]["dependsOn"],
            json!(["pkg:cargo/deeper@1.0.0"])
        );
    }
}
