//! Standard output. A reader that goes away early, like `head`, is no reason to fail.

use std::{
    fmt::Display,
    io::{self, Write as _},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};

/// Writes a line.
pub(crate) fn line(text: impl Display) {
    write(format_args!("{text}\n"));
}

/// Writes without a line's end.
pub(crate) fn write(text: impl Display) {
    let mut stdout = io::stdout().lock();
    let _ = write!(stdout, "{text}").and_then(|()| stdout.flush());
}

/// Does a step and prints its name, its time and what it has to say.
pub(crate) async fn step<T>(
    name: &str,
    work: impl Future<Output = Result<(T, String)>>,
) -> Result<T> {
    let started = Instant::now();
    let (value, remark) = work.await.with_context(|| format!("failed: {name}"))?;
    let text = format!("  {name:<30} {:>9}   {remark}", duration(started.elapsed()));
    self::line(text.trim_end());
    Ok(value)
}

/// `4.1 s` below a minute, `2:05 min` above.
pub(crate) fn duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    if seconds < 60 {
        format!("{:.1} s", duration.as_secs_f64())
    } else {
        format!("{} min", clock(duration))
    }
}

/// `0:07`: minutes and seconds.
pub(crate) fn clock(duration: Duration) -> String {
    let seconds = duration.as_secs();
    format!("{}:{:02}", seconds / 60, seconds % 60)
}
