//! What is known of the chart's values: the comments and defaults of `values.yaml`, the rules of `values.schema.json`.

use std::fs;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use super::{folder, read};

/// A value with a comment.
pub(crate) struct Documented {
    /// `image.tag`
    pub(crate) path: String,
    /// Its comment.
    pub(crate) meaning: String,
    pub(crate) default: Value,
    /// What the schema says of it.
    pub(crate) schema: Value,
}

/// The values in the order of `values.yaml`.
///
/// # Errors
/// When a value has neither a comment nor values below it that have one, or is not in the schema.
pub(crate) fn documented() -> Result<Vec<Documented>> {
    let text = fs::read_to_string(folder().join("values.yaml"))?;
    let (values, schema) = (read("values.yaml")?, read("values.schema.json")?);
    let commented = comments(&text);
    every_leaf(&values, "", &commented)?;
    let mut documented = Vec::new();
    for (path, meaning) in commented {
        let default = values
            .pointer(&format!("/{}", path.replace('.', "/")))
            .with_context(|| format!("values.yaml has a comment at {path}, but no such value"))?;
        documented.push(Documented {
            default: default.clone(),
            schema: rule(&schema, &path)?.clone(),
            path,
            meaning,
        });
    }
    Ok(documented)
}

/// The paths of all keys with a comment above them, and these comments. What is below such a key belongs to its default.
fn comments(text: &str) -> Vec<(String, String)> {
    let mut found: Vec<(String, String)> = Vec::new();
    let mut above: Vec<(usize, String)> = Vec::new();
    let mut comment: Vec<&str> = Vec::new();
    for line in text.lines() {
        let content = line.trim_start();
        let indent = line.len() - content.len();
        if let Some(text) = content.strip_prefix('#') {
            comment.push(text.trim());
            continue;
        }
        let key = content.split_once(':').map(|(key, _)| key);
        if let Some(key) = key.filter(|key| key.chars().all(char::is_alphanumeric)) {
            above.retain(|(outer, _)| *outer < indent);
            above.push((indent, key.to_owned()));
            let path: Vec<&str> = above.iter().map(|(_, key)| key.as_str()).collect();
            if !comment.is_empty() {
                found.push((path.join("."), comment.join(" ")));
            }
        }
        comment.clear();
    }
    found
}

fn every_leaf(value: &Value, path: &str, commented: &[(String, String)]) -> Result<()> {
    if commented.iter().any(|(known, _)| known == path) {
        return Ok(());
    }
    let Some(inner) = value.as_object().filter(|inner| !inner.is_empty()) else {
        bail!("values.yaml has no comment above {path}");
    };
    for (key, value) in inner {
        every_leaf(value, &join(path, key), commented)?;
    }
    Ok(())
}

/// What the schema says of the value at this path.
fn rule<'a>(schema: &'a Value, path: &str) -> Result<&'a Value> {
    let mut rule = schema;
    for key in path.split('.') {
        rule = resolve(schema, &rule["properties"][key]);
        ensure!(!rule.is_null(), "values.schema.json does not know {path}");
    }
    Ok(rule)
}

fn resolve<'a>(schema: &'a Value, rule: &'a Value) -> &'a Value {
    let definition = rule["$ref"].as_str();
    let definition = definition.and_then(|name| schema.pointer(name.trim_start_matches('#')));
    definition.unwrap_or(rule)
}

/// Fails if the schema names a value that `values.yaml` does not have, as far down as `values.yaml` has groups.
#[cfg(test)]
pub(super) fn compare(whole: &Value, rule: &Value, value: &Value, path: &str) -> Result<()> {
    for (key, inner) in rule["properties"].as_object().into_iter().flatten() {
        // Helm's own.
        if path.is_empty() && key == "global" {
            continue;
        }
        let path = join(path, key);
        let inner_value = value
            .get(key)
            .with_context(|| format!("values.yaml does not have {path}"))?;
        let is_default = documented()?.iter().any(|known| known.path == path);
        if !is_default {
            compare(whole, resolve(whole, inner), inner_value, &path)?;
        }
    }
    Ok(())
}

fn join(path: &str, key: &str) -> String {
    if path.is_empty() {
        key.to_owned()
    } else {
        format!("{path}.{key}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_belong_to_the_key_below_them() {
        let text = "# Head.\n\n# One.\n# More.\none: 1\ngroup:\n  # Two.\n  two:\n    - a: 1\n      b: 2\n# Three.\nthree: {}\n";
        let found = comments(text);
        let found: Vec<(&str, &str)> = found
            .iter()
            .map(|(path, text)| (path.as_str(), text.as_str()))
            .collect();
        assert_eq!(
            found,
            [
                ("one", "One. More."),
                ("group.two", "Two."),
                ("three", "Three.")
            ]
        );
    }
}
