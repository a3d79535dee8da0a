//! Logs.

use std::error::Error;

use tracing_subscriber::{
    Layer as _,
    filter::{LevelFilter, Targets},
    fmt,
    layer::SubscriberExt as _,
    registry,
    util::SubscriberInitExt as _,
};

use crate::cli::{LogFormat, LogLevel};

/// Which lines are written: a level for all, and others for those that come from certain modules. A word that is no level
/// is a mistake, and not the name of a module. Filters of spans and fields would let a short text keep the program busy for
/// seconds, as their values are patterns.
pub(crate) fn targets(directives: &str) -> Option<Targets> {
    let directive = |text: &str| {
        let (module, level) = text.split_once('=').unwrap_or(("operator", text));
        let of_module = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | ':');
        let named = !module.is_empty() && module.chars().all(of_module);
        named && level.parse::<LevelFilter>().is_ok()
    };
    let targets = directives.parse().ok();
    targets.filter(|_| directives.split(',').all(directive))
}

/// Starts logging to standard error. A second call in one process is ignored, as tests make it.
pub fn start(format: LogFormat, level: &LogLevel) {
    let lines = fmt::layer().with_writer(std::io::stderr);
    let lines = match format {
        LogFormat::Json => lines.json().flatten_event(true).boxed(),
        LogFormat::Text => lines.boxed(),
    };
    // A level is not made without valid directives.
    let targets = targets(level.as_str()).unwrap_or_default();
    if registry()
        .with(lines.with_filter(targets))
        .try_init()
        .is_err()
    {
        tracing::debug!("Kept the logging that was there");
    }
}

/// Reports the error that ends the program.
pub fn report_fatal(error: &anyhow::Error) {
    tracing::error!(error = chain(error.as_ref()), "Stopped");
    if !tracing::event_enabled!(tracing::Level::ERROR) {
        use std::io::Write as _;
        // Logging never started; nothing is left to report a failure of this to.
        let _ = writeln!(std::io::stderr(), "error: {}", chain(error.as_ref()));
    }
}

/// An error with all its causes, as one line.
pub(crate) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        // Some libraries repeat the cause in their own text.
        if !text.ends_with(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}
