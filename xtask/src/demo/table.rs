//! The table that `kubectl get runnerpools` prints, from the same columns: those of the `CustomResourceDefinition`.

use anyhow::{Context as _, Result};
use jiff::Timestamp;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceColumnDefinition, CustomResourceDefinition,
};
use serde_json::Value;

/// Blanks between two columns, as kubectl has them.
const GAP: usize = 3;

/// The columns that are printed without `-o wide`.
#[derive(Clone, Debug)]
pub(crate) struct Columns(Vec<CustomResourceColumnDefinition>);

impl Columns {
    pub(crate) fn of(crd: &CustomResourceDefinition) -> Result<Self> {
        let version = crd
            .spec
            .versions
            .iter()
            .find(|version| version.served)
            .context("no version of the CRD is served")?;
        let columns = version.additional_printer_columns.iter().flatten();
        Ok(Self(
            columns
                .filter(|column| column.priority.unwrap_or_default() == 0)
                .cloned()
                .collect(),
        ))
    }

    /// The lines of the table, the header first.
    pub(crate) fn table<'a>(
        &self,
        objects: impl IntoIterator<Item = &'a Value>,
        now: Timestamp,
    ) -> Vec<String> {
        let header = ["NAME".to_owned()]
            .into_iter()
            .chain(self.0.iter().map(|column| column.name.to_uppercase()));
        let mut rows = vec![header.collect::<Vec<_>>()];
        rows.extend(objects.into_iter().map(|object| {
            let name = cell(object, ".metadata.name");
            [name]
                .into_iter()
                .chain(
                    self.0
                        .iter()
                        .map(|column| self::column(object, column, now)),
                )
                .collect()
        }));
        let widths: Vec<usize> = (0..=self.0.len())
            .map(|index| {
                rows.iter()
                    .filter_map(|row| row.get(index))
                    .map(|cell| cell.chars().count())
                    .max()
                    .unwrap_or(0)
            })
            .collect();
        let line = |row: &Vec<String>| {
            let cells = row
                .iter()
                .zip(&widths)
                .map(|(cell, width)| format!("{cell:<width$}", width = width + GAP));
            cells.collect::<String>().trim_end().to_owned()
        };
        rows.iter().map(line).collect()
    }
}

fn column(object: &Value, column: &CustomResourceColumnDefinition, now: Timestamp) -> String {
    let cell = cell(object, &column.json_path);
    if column.type_ != "date" {
        return cell;
    }
    let since = cell
        .parse::<Timestamp>()
        .map(|time| now.duration_since(time).as_secs());
    since.map_or_else(|_| "<unknown>".to_owned(), age)
}

/// What a JSON path of plain fields, like `.status.queuedJobs`, leads to; empty where it leads nowhere.
fn cell(object: &Value, path: &str) -> String {
    match object.pointer(&path.replace('.', "/")) {
        None | Some(Value::Null) => String::new(),
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
    }
}

/// As kubectl prints it (`HumanDuration` of apimachinery), as far as a demonstration lasts.
fn age(seconds: i64) -> String {
    let (minutes, rest) = (seconds / 60, seconds % 60);
    match seconds {
        ..120 => format!("{}s", seconds.max(0)),
        120..600 if rest > 0 => format!("{minutes}m{rest}s"),
        120..10_800 => format!("{minutes}m"),
        _ => format!("{}h", minutes / 60),
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may panic")]

    use serde_json::json;

    use super::*;

    #[test]
    fn the_table_is_kubectls() {
        let columns = Columns::of(&api::crd()).unwrap();
        let now: Timestamp = "2026-01-01T00:01:05Z".parse().unwrap();
        let seen = json!({
            "metadata": { "name": "basic-runners", "creationTimestamp": "2026-01-01T00:00:00Z" },
            "spec": { "pool": "default" },
            "status": {
                "connectionStatus": "Connected", "organizationName": "my-org", "queuedJobs": 2,
                "agentsSummary": "1/3", "runningAgents": 1,
            },
        });
        let new = json!({ "metadata": { "name": "new" }, "spec": { "pool": "production" } });
        let expected = [
            "NAME            STATUS      POOL         ORGANIZATION   QUEUED   AGENTS   RUNNING   AGE",
            "basic-runners   Connected   default      my-org         2        1/3      1         65s",
            "new                         production                                              <unknown>",
        ];
        assert_eq!(columns.table([&seen, &new], now), expected);
    }

    #[test]
    fn ages_are_kubectls() {
        let ages = [0, 119, 120, 125, 599, 600, 659, 10_799, 10_800].map(age);
        assert_eq!(
            ages,
            [
                "0s", "119s", "2m", "2m5s", "9m59s", "10m", "10m", "179m", "3h"
            ]
        );
    }
}
