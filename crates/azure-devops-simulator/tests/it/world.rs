//! The rules of the world at virtual times: the simulator checklist of the protocol page.

mod agents;
mod discovery;
mod jobs;
mod sessions;

use std::time::Duration;

use serde_json::Value;

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_mins(1);

/// One field of each element of a list.
fn names(list: &Value, field: &str) -> Vec<String> {
    let items = list["value"].as_array().unwrap();
    items
        .iter()
        .map(|item| {
            item[field]
                .as_str()
                .map_or_else(|| item[field].to_string(), str::to_owned)
        })
        .collect()
}
