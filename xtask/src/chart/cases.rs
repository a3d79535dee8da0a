//! Cases: values, and how each changes what the chart renders to.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Map, Value, json};

use super::{read, render};
use crate::repository;

/// Values that the chart is rendered with.
pub(crate) struct Case {
    /// The value that it is about, as a path.
    pub(crate) name: String,
    /// The values.
    pub(crate) values: Value,
}

/// The cases of `tests/cases.yaml`. There, a case is either the value of its name's path, or a map from several paths.
pub(crate) fn cases() -> Result<Vec<Case>> {
    let file = read("tests/cases.yaml")?;
    let cases = file.as_object().context("the cases are no map")?;
    let case = |(name, value): (&String, &Value)| {
        let several = value
            .as_object()
            .filter(|paths| paths.contains_key(name.as_str()));
        let mut values = json!({});
        match several {
            Some(paths) => paths
                .iter()
                .for_each(|(path, value)| put(&mut values, path, value)),
            None => put(&mut values, name, value),
        }
        Case {
            name: name.clone(),
            values,
        }
    };
    Ok(cases.iter().map(case).collect())
}

/// For each case its name and how its rendering differs from that of the defaults: removed lines with `-`, added ones with
/// `+`, and the line before and after.
pub(crate) fn differences() -> Result<Vec<(String, String)>> {
    let defaults = without_schema(&render(&json!({}))?);
    let mut differences = Vec::new();
    for Case { name, values } in cases()? {
        let rendered = render(&values).with_context(|| format!("with {name}"))?;
        let difference = difference(&defaults, &without_schema(&rendered))?;
        differences.push((name, difference));
    }
    Ok(differences)
}

fn put(values: &mut Value, path: &str, value: &Value) {
    let mut place = values;
    for key in path.split('.') {
        if !place.is_object() {
            *place = Value::Object(Map::new());
        }
        place = &mut place[key];
    }
    *place = value.clone();
}

/// The schema of the CustomResourceDefinition does not depend on values, but for one default, and is checked elsewhere;
/// here it would be in the way.
fn without_schema(manifests: &str) -> String {
    let mut in_definition = false;
    let mut kept = String::new();
    let mut former = "";
    for line in manifests.lines() {
        match line {
            "kind: CustomResourceDefinition" => in_definition = true,
            "---" => in_definition = false,
            _ => {}
        }
        let chosen = [former, line]
            .map(str::trim)
            .contains(&"pollIntervalSeconds:");
        if !in_definition || !line.starts_with("  ") || is_metadata(line) || chosen {
            kept.push_str(line);
            kept.push('\n');
        }
        former = line;
    }
    kept
}

/// Whether an indented line of the CustomResourceDefinition belongs to what the chart adds to it.
fn is_metadata(line: &str) -> bool {
    let key = line.trim_start();
    [
        "annotations:",
        "helm.sh/",
        "labels:",
        "app.kubernetes.io/",
        "name: runnerpools.",
    ]
    .iter()
    .any(|start| key.starts_with(start))
}

fn difference(before: &str, after: &str) -> Result<String> {
    let folder = repository::target()?.join(format!("chart-{}", std::process::id()));
    fs::create_dir_all(&folder)?;
    let files = [folder.join("before"), folder.join("after")];
    fs::write(&files[0], before)?;
    fs::write(&files[1], after)?;
    let [before, after] = files.map(|file| file.display().to_string());
    let arguments = [
        "diff",
        "--no-index",
        "--no-color",
        "--no-ext-diff",
        "--diff-algorithm=myers",
        "--unified=1",
        "--",
        &before,
        &after,
    ];
    let output = repository::command("git", &arguments)
        .output()
        .context("cannot run git")?;
    fs::remove_dir_all(&folder)?;
    // git ends with 1 if there is a difference.
    ensure!(
        output.stderr.is_empty(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let hunks = text.lines().skip_while(|line| !line.starts_with("@@"));
    // Where a hunk begins depends on what else the chart renders.
    let mut difference = String::new();
    for line in hunks {
        difference.push_str(if line.starts_with("@@") { "@@" } else { line });
        difference.push('\n');
    }
    Ok(difference)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_become_nested_values() {
        let mut values = json!({});
        put(&mut values, "a.b", &json!(1));
        put(&mut values, "a.c", &json!([2]));
        assert_eq!(values, json!({ "a": { "b": 1, "c": [2] } }));
    }
}
