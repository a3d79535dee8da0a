//! How a build is shown: one line that keeps changing on a terminal, a line now and then in a log.

use std::{
    io::{self, IsTerminal as _, Write as _},
    time::Duration,
};

use super::Progress;

/// Between two lines of a log: often enough to see that it lives, rare enough not to fill a CI log in five minutes.
const LOG_INTERVAL: Duration = Duration::from_secs(30);

/// Each of them is the first to need most of what it is built from.
const SLOW: [&str; 4] = [
    super::KUBE_APISERVER,
    super::KUBE_CONTROLLER_MANAGER,
    super::HELM,
    super::KUBELET,
];

/// A receiver for [`super::ensure`] that displays the progress, with the elapsed time, on standard error.
pub fn terminal() -> impl FnMut(Progress) + Send + 'static {
    let on_terminal = io::stderr().is_terminal();
    let mut next_line = Duration::ZERO;
    let mut last_what = String::new();
    move |progress| {
        let (what, elapsed) = describe(progress);
        let finished = matches!(progress, Progress::Built { .. });
        let mut stderr = io::stderr().lock();
        // Nobody reads the progress if standard error is closed, so a failed write does not matter.
        let _ = if on_terminal {
            let end = if finished { "\n" } else { "" };
            write!(stderr, "\r\x1b[K{what} ({}){end}", minutes(elapsed))
                .and_then(|()| stderr.flush())
        } else if finished || what != last_what || elapsed >= next_line {
            next_line = elapsed + LOG_INTERVAL;
            writeln!(stderr, "{what} ({})", minutes(elapsed))
        } else {
            Ok(())
        };
        last_what = what;
    }
}

fn describe(progress: Progress) -> (String, Duration) {
    match progress {
        Progress::Waiting { elapsed } => (
            "Waiting for another process that builds the same programs".to_owned(),
            elapsed,
        ),
        Progress::Building { what, elapsed } => {
            let patience = if SLOW.contains(&what) {
                "; takes minutes"
            } else {
                ""
            };
            (format!("Building {what}, once{patience}"), elapsed)
        }
        Progress::Built { elapsed } => ("Built what was missing".to_owned(), elapsed),
    }
}

fn minutes(elapsed: Duration) -> String {
    let seconds = elapsed.as_secs();
    format!("{}:{:02}", seconds / 60, seconds % 60)
}
