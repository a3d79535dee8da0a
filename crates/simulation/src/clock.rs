//! Virtual time: milliseconds since the start of a run.

use jiff::Timestamp;

/// A time, or a span, in milliseconds.
pub(crate) type Millis = i64;

pub(crate) const SECOND: Millis = 1000;
pub(crate) const MINUTE: Millis = 60 * SECOND;
pub(crate) const HOUR: Millis = 60 * MINUTE;

/// When every run starts, in Unix seconds: 2026-01-05T00:00:00Z.
const START: i64 = 1_767_571_200;

/// The time as people and programs write it.
pub(crate) fn at(time: Millis) -> Timestamp {
    Timestamp::from_millisecond(START * SECOND + time).unwrap_or(Timestamp::UNIX_EPOCH)
}

/// The same in whole seconds, as Kubernetes writes times.
pub(crate) fn second(time: Millis) -> Timestamp {
    at(time - time.rem_euclid(SECOND))
}

/// `12:03:04.567`, with days before it from the second day on.
pub(crate) fn show(time: Millis) -> String {
    let (days, rest) = (time / (24 * HOUR), time % (24 * HOUR));
    let day = if days > 0 {
        format!("{days}d ")
    } else {
        String::new()
    };
    let (hours, minutes) = (rest / HOUR, rest / MINUTE % 60);
    let (seconds, millis) = (rest / SECOND % 60, rest % SECOND);
    format!("{day}{hours:02}:{minutes:02}:{seconds:02}.{millis:03}")
}

/// The time of a run, rounded up to whole milliseconds.
pub(crate) fn millis(time: Timestamp) -> Millis {
    let whole = time.as_millisecond();
    let rest = i64::from(time.subsec_nanosecond().rem_euclid(1_000_000) > 0);
    whole + rest - START * SECOND
}
