//! The live display: redrawn in place on a terminal, a plain line now and then elsewhere.

use std::{
    io::{self, IsTerminal as _},
    time::{Duration, Instant},
};

use crate::output;

/// How things stand at a moment.
#[derive(Clone, Debug)]
pub(crate) struct View {
    pub(crate) pools: Vec<PoolView>,
    /// As `kubectl get runnerpools` prints it.
    pub(crate) table: Vec<String>,
}

/// How one RunnerPool stands.
#[derive(Clone, Debug, Default)]
pub(crate) struct PoolView {
    pub(crate) name: String,
    pub(crate) min: usize,
    pub(crate) max: usize,
    /// All jobs so far.
    pub(crate) jobs: usize,
    pub(crate) queued: usize,
    /// Jobs that have an agent.
    pub(crate) busy: usize,
    /// Agents that Azure DevOps shows online.
    pub(crate) online: usize,
    /// Pods that are not finished.
    pub(crate) agents: usize,
    /// All Pods.
    pub(crate) pods: usize,
    /// Registered agents, placeholders apart.
    pub(crate) registrations: usize,
}

impl PoolView {
    fn finished(&self) -> usize {
        self.jobs - self.queued - self.busy
    }

    /// No work left, and exactly the warm agents.
    pub(crate) fn is_settled(&self) -> bool {
        let warm = [self.agents, self.pods, self.registrations, self.online]
            .iter()
            .all(|count| *count == self.min);
        warm && self.queued + self.busy == 0
    }
}

impl View {
    pub(crate) fn is_settled(&self) -> bool {
        self.pools.iter().all(PoolView::is_settled)
    }

    /// Changes whenever something moves.
    pub(crate) fn progress(&self) -> Vec<[usize; 6]> {
        let numbers = |pool: &PoolView| {
            [
                pool.jobs,
                pool.queued,
                pool.busy,
                pool.agents,
                pool.pods,
                pool.registrations,
            ]
        };
        self.pools.iter().map(numbers).collect()
    }

    fn sum(&self, number: impl Fn(&PoolView) -> usize) -> usize {
        self.pools.iter().map(number).sum()
    }
}

/// Between two lines where there is no terminal.
const LOG_INTERVAL: Duration = Duration::from_secs(5);
/// Width of the progress bar.
const BAR: usize = 40;
/// Most signs in a row of agents or of queued jobs; beyond it a number tells.
const MOST_SIGNS: usize = 30;

/// Draws views. Dropping it leaves the cursor below the last one.
pub(crate) struct Screen {
    started: Instant,
    total: usize,
    /// Lines of the last frame; `None` where there is no terminal.
    drawn: Option<usize>,
    next_line: Duration,
}

impl Screen {
    /// `total` jobs will be queued in all.
    pub(crate) fn start(total: usize) -> Self {
        output::line("\nRunning");
        let drawn = io::stdout().is_terminal().then_some(0);
        Self {
            started: Instant::now(),
            total,
            drawn,
            next_line: Duration::ZERO,
        }
    }

    pub(crate) fn show(&mut self, view: &View) {
        let elapsed = self.started.elapsed();
        if let Some(drawn) = self.drawn {
            let lines = frame(view, elapsed, self.total);
            let up = if drawn == 0 {
                String::new()
            } else {
                format!("\x1b[{drawn}A")
            };
            // Lines are cut at the right edge instead of wrapped (?7l), or going up would go to the wrong place.
            let body = lines.join("\n\r\x1b[K");
            output::write(format_args!("\x1b[?7l{up}\r\x1b[K{body}\n\x1b[J\x1b[?7h"));
            self.drawn = Some(lines.len());
        } else if elapsed >= self.next_line {
            self.next_line = elapsed + LOG_INTERVAL;
            output::line(format_args!("  {}", summary(view, elapsed, self.total)));
        }
    }
}

fn summary(view: &View, elapsed: Duration, total: usize) -> String {
    format!(
        "{:>5}   {} of {total} jobs finished, {} running, {} queued, {} agents",
        output::clock(elapsed),
        view.sum(PoolView::finished),
        view.sum(|pool| pool.busy),
        view.sum(|pool| pool.queued),
        view.sum(|pool| pool.agents),
    )
}

/// The lines of one picture.
fn frame(view: &View, elapsed: Duration, total: usize) -> Vec<String> {
    let finished = view.sum(PoolView::finished);
    let filled = (BAR * finished).checked_div(total).unwrap_or(BAR).min(BAR);
    let state = if finished < total {
        ""
    } else {
        ", scaling back"
    };
    let mut lines = vec![
        format!("  {}{state}", summary(view, elapsed, total).trim_start()),
        format!("  {}{}", "█".repeat(filled), "░".repeat(BAR - filled)),
        String::new(),
    ];
    lines.extend(view.table.iter().map(|line| format!("  {line}")));
    lines.push(String::new());
    let width = view
        .pools
        .iter()
        .map(|pool| pool.name.chars().count())
        .max()
        .unwrap_or(0);
    let slots = view
        .pools
        .iter()
        .map(|pool| pool.max.min(MOST_SIGNS))
        .max()
        .unwrap_or(0);
    lines.extend(view.pools.iter().map(|pool| {
        let agents = agents(pool);
        let pad = " ".repeat(slots.saturating_sub(agents.chars().count()));
        format!(
            "  {:<width$}   {agents}{pad}   {}",
            pool.name,
            repeat("▪", pool.queued)
        )
        .trim_end()
        .to_owned()
    }));
    lines
        .push("  agents: ● busy ○ idle ◌ starting or stopping · room    queued jobs: ▪".to_owned());
    lines
}

/// One sign for each agent that may be.
fn agents(pool: &PoolView) -> String {
    let busy = pool.busy.min(pool.agents);
    let idle = pool.online.saturating_sub(busy).min(pool.agents - busy);
    let starting = pool.agents - busy - idle;
    let room = pool.max.saturating_sub(pool.agents);
    if pool.max > MOST_SIGNS {
        return format!("● {busy} ○ {idle} ◌ {starting} · {room}");
    }
    [
        "●".repeat(busy),
        "○".repeat(idle),
        "◌".repeat(starting),
        "·".repeat(room),
    ]
    .concat()
}

fn repeat(sign: &str, count: usize) -> String {
    if count <= MOST_SIGNS {
        sign.repeat(count)
    } else {
        format!("{} {count}", sign.repeat(MOST_SIGNS))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool() -> PoolView {
        PoolView {
            name: "basic-runners".into(),
            min: 0,
            max: 5,
            jobs: 8,
            queued: 3,
            busy: 2,
            online: 3,
            agents: 4,
            pods: 4,
            registrations: 4,
        }
    }

    #[test]
    fn a_frame_shows_bar_table_agents_and_queue() {
        let view = View {
            pools: vec![pool()],
            table: vec!["NAME".into()],
        };
        let lines = frame(&view, Duration::from_secs(65), 8);
        let bar = format!("  {}{}", "█".repeat(15), "░".repeat(25));
        let expected = [
            "  1:05   3 of 8 jobs finished, 2 running, 3 queued, 4 agents",
            &bar,
            "",
            "  NAME",
            "",
            "  basic-runners   ●●○◌·   ▪▪▪",
            "  agents: ● busy ○ idle ◌ starting or stopping · room    queued jobs: ▪",
        ];
        assert_eq!(lines, expected);
    }

    #[test]
    fn many_are_numbers() {
        let many = PoolView {
            max: 500,
            agents: 400,
            online: 300,
            busy: 100,
            queued: 77,
            jobs: 177,
            ..pool()
        };
        assert_eq!(agents(&many), "● 100 ○ 200 ◌ 100 · 100");
        assert!(repeat("▪", 77).ends_with("▪ 77"));
    }

    #[test]
    fn settled_means_exactly_the_warm_agents_and_no_work() {
        let warm = PoolView {
            min: 1,
            agents: 1,
            pods: 1,
            registrations: 1,
            online: 1,
            jobs: 3,
            ..PoolView::default()
        };
        assert!(warm.is_settled());
        for other in [
            PoolView {
                queued: 1,
                ..warm.clone()
            },
            PoolView {
                busy: 1,
                ..warm.clone()
            },
            PoolView {
                pods: 2,
                ..warm.clone()
            },
            PoolView {
                registrations: 2,
                ..warm.clone()
            },
            PoolView {
                online: 0,
                ..warm.clone()
            },
        ] {
            assert!(!other.is_settled(), "{other:?}");
        }
    }
}
