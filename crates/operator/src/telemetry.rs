//! Logs.

use std::error::Error;

use tracing_subscriber::{EnvFilter, filter::ParseError};

use crate::cli::{LogFormat, LogLevel};

/// Which lines are written. Values of fields are compared as they are: taken for a regular expression, a short text may
/// keep the program busy for seconds.
pub(crate) fn filter(directives: &str) -> Result<EnvFilter, ParseError> {
    EnvFilter::builder().with_regex(false).parse(directives)
}

/// Starts logging to standard error. A second call in one process is ignored, as tests make it.
pub fn start(format: LogFormat, level: &LogLevel) {
    let filter = filter(level.as_str()).unwrap_or_default();
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    let started = match format {
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
        LogFormat::Text => builder.try_init(),
    };
    if started.is_err() {
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
