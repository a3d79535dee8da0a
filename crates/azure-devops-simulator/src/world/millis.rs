//! Durations as whole milliseconds in JSON: exact, and easy to type in a shell.

use std::time::Duration;

use serde::{Deserialize as _, Deserializer, Serializer};

pub(crate) fn serialize<S: Serializer>(value: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u64(u64::try_from(value.as_millis()).unwrap_or(u64::MAX))
}

pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Duration, D::Error> {
    // A century: more would leave the range of timestamps when added to one.
    const LIMIT: u64 = 100 * 366 * 86_400_000;
    let millis = u64::deserialize(deserializer)?;
    if millis > LIMIT {
        return Err(serde::de::Error::custom("duration above a hundred years"));
    }
    Ok(Duration::from_millis(millis))
}
