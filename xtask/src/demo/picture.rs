//! A picture of queue and agents over time: one panel per RunnerPool, as SVG, drawn from the times at which things
//! happened.

use std::fmt::Write as _;

use jiff::Timestamp;

use crate::demo::history::History;

const WIDTH: f64 = 960.0;
const LEFT: f64 = 64.0;
const RIGHT: f64 = 24.0;
const TOP: f64 = 96.0;
const BOTTOM: f64 = 52.0;
const PANEL: f64 = 130.0;
const GAP: f64 = 58.0;

/// Told apart by readers who see no difference between red and green (the palette of Okabe and Ito).
const QUEUED: &str = "#e69f00";
const AGENTS: &str = "#0072b2";
const INK: &str = "#24292f";
const FAINT: &str = "#d8dee4";

/// Most ticks on an axis: labels with some air between them.
const MOST_TIME_TICKS: f64 = 14.0;
const MOST_COUNT_TICKS: f64 = 5.0;

/// The picture, from the first job that was queued to the last thing that happened.
pub(crate) fn draw(histories: &[History]) -> String {
    let queued = histories
        .iter()
        .flat_map(|history| &history.jobs)
        .map(|job| job.queued);
    let changes = || histories.iter().flat_map(History::changes);
    let begin = queued.min().or_else(|| changes().min()).unwrap_or_default();
    let seconds = changes()
        .max()
        .map_or(0.0, |end| since(begin, end))
        .max(1.0);
    let panels = f64::from(u32::try_from(histories.len()).unwrap_or(u32::MAX));
    let height = TOP + panels * PANEL + (panels - 1.0) * GAP + BOTTOM;

    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" height=\"{height}\" \
         font-family=\"system-ui, 'DejaVu Sans', sans-serif\" font-size=\"12\" fill=\"{INK}\">\n\
         <title>Queued jobs and agents over time</title>\n\
         <rect width=\"{WIDTH}\" height=\"{height}\" fill=\"white\"/>\n\
         <text x=\"{LEFT}\" y=\"30\" font-size=\"17\" font-weight=\"600\">Queued jobs and agents over time</text>\n"
    );
    legend(&mut svg);
    let mut top = TOP;
    for history in histories {
        panel(&mut svg, history, begin, seconds, top);
        top += PANEL + GAP;
    }
    let (x, y) = (LEFT + plot_width() / 2.0, height - 14.0);
    line(
        &mut svg,
        format_args!(
            "<text x=\"{x}\" y=\"{y}\" text-anchor=\"middle\">seconds since the first job was queued</text>"
        ),
    );
    line(&mut svg, format_args!("</svg>"));
    svg
}

fn legend(svg: &mut String) {
    let y = 50.0;
    let middle = y - 4.0;
    line(
        svg,
        format_args!(
            "<rect x=\"{LEFT}\" y=\"{}\" width=\"22\" height=\"10\" fill=\"{QUEUED}\" fill-opacity=\"0.45\" stroke=\"{QUEUED}\"/>\
             <text x=\"{}\" y=\"{y}\">jobs that wait for an agent</text>",
            y - 9.0,
            LEFT + 30.0
        ),
    );
    for (x, style, text) in [
        (
            LEFT + 220.0,
            format!("stroke=\"{AGENTS}\" stroke-width=\"2.5\""),
            "agents (Pods that are not finished)",
        ),
        (
            LEFT + 482.0,
            format!("stroke=\"{INK}\" stroke-dasharray=\"5 4\""),
            "maxAgents",
        ),
    ] {
        line(
            svg,
            format_args!(
                "<line x1=\"{x}\" x2=\"{}\" y1=\"{middle}\" y2=\"{middle}\" {style}/><text x=\"{}\" y=\"{y}\">{text}</text>",
                x + 22.0,
                x + 30.0
            ),
        );
    }
}

fn panel(svg: &mut String, history: &History, begin: Timestamp, seconds: f64, top: f64) {
    let times = || {
        history
            .changes()
            .into_iter()
            .filter(|time| *time > begin)
            .chain([begin])
    };
    let peak = times()
        .map(|time| history.queued_at(time).max(history.agents_at(time)))
        .max()
        .unwrap_or(0);
    let most = count(peak.max(history.max_agents)).max(1.0);
    let scale = Scale {
        begin,
        seconds,
        top,
        most,
    };
    let bottom = top + PANEL;

    line(
        svg,
        format_args!(
            "<text x=\"{LEFT}\" y=\"{}\" font-weight=\"600\" font-size=\"13\">{}</text>",
            top - 10.0,
            escape(&history.runner_pool)
        ),
    );
    line(
        svg,
        format_args!(
            "<text x=\"{}\" y=\"{}\" text-anchor=\"end\" fill-opacity=\"0.75\">agent pool {}, {} to {} agents, {} jobs</text>",
            WIDTH - RIGHT,
            top - 10.0,
            escape(&history.agent_pool),
            history.min_agents,
            history.max_agents,
            history.jobs.len()
        ),
    );
    axes(svg, &scale);

    let queued = scale.steps(history, History::queued_at);
    line(
        svg,
        format_args!(
            "<path d=\"{queued}V{bottom:.1}H{LEFT}Z\" fill=\"{QUEUED}\" fill-opacity=\"0.45\"/>\
             <path d=\"{queued}\" fill=\"none\" stroke=\"{QUEUED}\"/>"
        ),
    );
    let limit = scale.y(count(history.max_agents));
    line(
        svg,
        format_args!(
            "<line x1=\"{LEFT}\" x2=\"{}\" y1=\"{limit:.1}\" y2=\"{limit:.1}\" stroke=\"{INK}\" stroke-dasharray=\"5 4\"/>",
            WIDTH - RIGHT
        ),
    );
    let agents = scale.steps(history, History::agents_at);
    line(
        svg,
        format_args!(
            "<path d=\"{agents}\" fill=\"none\" stroke=\"{AGENTS}\" stroke-width=\"2.5\"/>"
        ),
    );
}

fn axes(svg: &mut String, scale: &Scale) {
    let (bottom, right) = (scale.top + PANEL, WIDTH - RIGHT);
    for value in ticks(scale.most, MOST_COUNT_TICKS, &[1.0, 2.0, 5.0]) {
        let y = scale.y(value);
        line(
            svg,
            format_args!(
                "<line x1=\"{LEFT}\" x2=\"{right}\" y1=\"{y:.1}\" y2=\"{y:.1}\" stroke=\"{FAINT}\"/>\
                 <text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{value}</text>",
                LEFT - 8.0,
                y + 4.0
            ),
        );
    }
    for value in ticks(scale.seconds, MOST_TIME_TICKS, &[1.0, 2.0, 5.0]) {
        let x = scale.x(value);
        line(
            svg,
            format_args!(
                "<line x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{bottom}\" y2=\"{}\" stroke=\"{INK}\"/>\
                 <text x=\"{x:.1}\" y=\"{}\" text-anchor=\"middle\">{value}</text>",
                bottom + 5.0,
                bottom + 19.0
            ),
        );
    }
    line(
        svg,
        format_args!(
            "<path d=\"M{LEFT} {}V{bottom}H{right}\" fill=\"none\" stroke=\"{INK}\"/>",
            scale.top
        ),
    );
    let (x, y) = (20.0, scale.top + PANEL / 2.0);
    line(
        svg,
        format_args!(
            "<text x=\"{x}\" y=\"{y}\" text-anchor=\"middle\" transform=\"rotate(-90 {x} {y})\">jobs, agents</text>"
        ),
    );
}

/// Where a time and a number are in a panel.
struct Scale {
    begin: Timestamp,
    seconds: f64,
    top: f64,
    most: f64,
}

impl Scale {
    fn x(&self, second: f64) -> f64 {
        LEFT + plot_width() * second / self.seconds
    }

    fn y(&self, count: f64) -> f64 {
        // A little air above the highest line.
        self.top + PANEL - (PANEL - 6.0) * count / self.most
    }

    /// The line of a number that changes at once and stays, from the left edge to the right one.
    fn steps(&self, history: &History, number: impl Fn(&History, Timestamp) -> usize) -> String {
        let mut path = format!("M{LEFT} {:.1}", self.y(count(number(history, self.begin))));
        for time in history
            .changes()
            .into_iter()
            .filter(|time| *time > self.begin)
        {
            let (x, y) = (
                self.x(since(self.begin, time)),
                self.y(count(number(history, time))),
            );
            let _ = write!(path, "H{x:.1}V{y:.1}"); // a String takes everything
        }
        let _ = write!(path, "H{:.1}", WIDTH - RIGHT);
        path
    }
}

fn plot_width() -> f64 {
    WIDTH - LEFT - RIGHT
}

/// From 0 up to `end`, at most about `most` of them, whole and round: a step times a power of ten.
fn ticks(end: f64, most: f64, steps: &[f64]) -> Vec<f64> {
    let mut magnitude = 1.0;
    let step = loop {
        if let Some(step) = steps
            .iter()
            .map(|step| step * magnitude)
            .find(|step| end / step <= most)
        {
            break step;
        }
        magnitude *= 10.0;
    };
    std::iter::successors(Some(0.0), |value| Some(value + step))
        .take_while(|value| *value <= end)
        .collect()
}

fn since(begin: Timestamp, time: Timestamp) -> f64 {
    time.duration_since(begin).as_secs_f64()
}

#[expect(
    clippy::cast_precision_loss,
    reason = "counts of jobs and agents are far below 2^52"
)]
fn count(number: usize) -> f64 {
    number as f64
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

fn line(svg: &mut String, text: std::fmt::Arguments<'_>) {
    let _ = writeln!(svg, "{text}"); // a String takes everything
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::history::tests::{at, history};

    #[test]
    fn ticks_are_round_and_few() {
        assert_eq!(ticks(3.0, 5.0, &[1.0, 2.0, 5.0]), [0.0, 1.0, 2.0, 3.0]);
        assert_eq!(
            ticks(10.0, 5.0, &[1.0, 2.0, 5.0]),
            [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]
        );
        assert_eq!(
            ticks(500.0, 5.0, &[1.0, 2.0, 5.0]),
            [0.0, 100.0, 200.0, 300.0, 400.0, 500.0]
        );
        assert_eq!(ticks(95.0, 14.0, &[1.0, 2.0, 5.0]).last(), Some(&90.0));
    }

    #[test]
    fn steps_are_where_things_changed() {
        let scale = Scale {
            begin: at(0),
            seconds: 12.0,
            top: 0.0,
            most: 2.0,
        };
        let path = scale.steps(&history(), History::agents_at);
        let (none, one, two) = (scale.y(0.0), scale.y(1.0), scale.y(2.0));
        let first = format!(
            "M{LEFT} {none:.1}H{:.1}V{one:.1}H{:.1}V{two:.1}",
            scale.x(1.0),
            scale.x(2.0)
        );
        assert!(path.starts_with(&first), "{path}");
        assert!(
            path.ends_with(&format!("V{none:.1}H{:.1}", WIDTH - RIGHT)),
            "{path}"
        );
    }

    #[test]
    fn a_picture_has_a_panel_for_each_pool_and_escapes_names() {
        let odd = History {
            runner_pool: "b".into(),
            agent_pool: "R&D <1>".into(),
            ..history()
        };
        let svg = draw(&[history(), odd]);
        assert_eq!(svg.matches("jobs, agents</text>").count(), 2);
        assert!(svg.contains("agent pool R&amp;D &lt;1&gt;,"), "{svg}");
        assert!(
            draw(&[]).contains("</svg>"),
            "nothing to draw is no reason to fail"
        );
    }
}
