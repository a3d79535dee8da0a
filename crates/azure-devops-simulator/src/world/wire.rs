//! Small pieces of JSON that several replies share. The shapes are written out here and in the
//! modules of each resource, apart from any client's types: a shared type would hide a
//! misspelled field from every test.

use jiff::{Timestamp, tz::Offset};
use serde_json::{Map, Value};

/// A time as .NET writes it: up to seven fractional digits, trailing zeros left out, so that the
/// number of digits varies (protocol section 4.2).
pub(crate) fn time(at: Timestamp) -> Value {
    let civil = Offset::UTC.to_datetime(at);
    let ticks = civil.subsec_nanosecond() / 100;
    let whole = civil.strftime("%Y-%m-%dT%H:%M:%S");
    if ticks == 0 {
        return Value::String(format!("{whole}Z"));
    }
    let fraction = format!("{ticks:07}");
    Value::String(format!("{whole}.{}Z", fraction.trim_end_matches('0')))
}

/// The object without its null members: absent is how the service writes a default.
pub(crate) fn compact(object: Value) -> Value {
    match object {
        Value::Object(members) => Value::Object(
            members
                .into_iter()
                .filter(|(_, value)| !value.is_null())
                .collect::<Map<_, _>>(),
        ),
        other => other,
    }
}
