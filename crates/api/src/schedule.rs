//! Schedules: when each is active, which of them is in force, until when, and what comes next. Times come in as arguments.

use std::iter;

use croner::{
    Cron,
    parser::{CronParser, Seconds, Year},
};
use jiff::{
    SignedDuration, Timestamp,
    tz::{TimeZone, TimeZoneDatabase},
};

use crate::{RunnerPoolSpec, Schedule};

/// Longest `duration` of a schedule: a leap year.
const LONGEST: SignedDuration = SignedDuration::from_hours(366 * 24);
/// How many starts and ends are looked at for what comes next. A schedule that is active day by day shows its end a year
/// ahead; one that never ends costs no more.
const LOOKAHEAD: usize = 400;

/// The bounds on agents at some time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InForce {
    /// The schedule that gives them; `None`: the spec itself.
    pub schedule: Option<String>,
    /// Agents that are kept.
    pub min_agents: u32,
    /// Most agents that exist.
    pub max_agents: u32,
    /// Until when all of this holds, at least; `None`: for ever.
    pub until: Option<Timestamp>,
    /// The schedule that gives the bounds from then on. The same again: a change is too far away to be foreseen.
    pub next: Option<String>,
    /// The schedule that comes into force after this, be it at once or later, and when; `None`: none, or that is too far
    /// away to be foreseen.
    pub coming: Option<(String, Timestamp)>,
}

/// What of a spec is in force at a time, and until when: of the active schedules the one with the largest minimum, of
/// equal ones the first; without one the spec's own bounds. A schedule that breaks a rule is never active.
pub fn in_force(spec: &RunnerPoolSpec, now: Timestamp) -> InForce {
    // All starts and ends are whole seconds.
    let now = Timestamp::from_second(now.as_second()).unwrap_or(now);
    let calendars: Vec<Calendar<'_>> = spec
        .schedules
        .iter()
        .filter_map(|schedule| Calendar::read(schedule).ok())
        .collect();
    let mut states: Vec<State> = calendars.iter().map(|calendar| calendar.at(now)).collect();
    let strongest = |states: &[State]| {
        let active = calendars
            .iter()
            .zip(states)
            .filter(|(_, state)| state.active);
        // Of equal ones the last is taken, which is the first from behind.
        active
            .rev()
            .map(|(calendar, _)| calendar.schedule)
            .max_by_key(|schedule| schedule.min_agents(spec))
    };
    let name = |schedule: Option<&Schedule>| schedule.map(|schedule| schedule.name.clone());
    let current = strongest(&states);
    // Each time at which a schedule begins or ends, with the one that is in force from then on.
    let mut course = iter::from_fn(|| {
        let time = states.iter().filter_map(|state| state.until).min()?;
        for (calendar, state) in calendars.iter().zip(&mut states) {
            if state.until == Some(time) {
                *state = calendar.at(time);
            }
        }
        Some((time, strongest(&states)))
    });
    let mut seen = None;
    let change = course
        .by_ref()
        .take(LOOKAHEAD)
        .inspect(|step| seen = Some(*step))
        .find(|(_, next)| name(*next) != name(current));
    let begins = |(time, next): (Timestamp, Option<&Schedule>)| Some((name(next)?, time));
    let coming = change
        .and_then(|change| begins(change).or_else(|| course.take(LOOKAHEAD).find_map(begins)));
    let (until, next) = change
        .or(seen)
        .map_or((None, current), |(time, next)| (Some(time), next));
    InForce {
        schedule: name(current),
        min_agents: current.map_or(spec.min_agents, |schedule| schedule.min_agents(spec)),
        max_agents: current.map_or(spec.max_agents, |schedule| schedule.max_agents(spec)),
        until,
        next: name(next),
        coming,
    }
}

/// All that is wrong with when a schedule is active: fields, and what to write instead.
pub(crate) fn check(schedule: &Schedule) -> Vec<(&'static str, String)> {
    Calendar::read(schedule).err().unwrap_or_default()
}

impl Schedule {
    /// Agents that are kept while it is in force.
    pub(crate) fn min_agents(&self, spec: &RunnerPoolSpec) -> u32 {
        self.min_agents.unwrap_or(spec.min_agents)
    }

    /// Most agents while it is in force.
    pub(crate) fn max_agents(&self, spec: &RunnerPoolSpec) -> u32 {
        self.max_agents.unwrap_or(spec.max_agents)
    }
}

/// A schedule as it was understood.
struct Calendar<'a> {
    schedule: &'a Schedule,
    zone: TimeZone,
    start: Cron,
    end: End,
}

enum End {
    After(SignedDuration),
    At(Box<Cron>),
}

/// Whether a schedule is active, and until when that is certain; `None`: for ever.
#[derive(Clone, Copy)]
struct State {
    active: bool,
    until: Option<Timestamp>,
}

impl<'a> Calendar<'a> {
    fn read(schedule: &'a Schedule) -> Result<Self, Vec<(&'static str, String)>> {
        let mut wrong = Vec::new();
        let start = cron(&schedule.start).map_err(|message| wrong.push(("start", message)));
        let end = match (&schedule.duration, &schedule.end) {
            (Some(text), None) => duration(text)
                .map(End::After)
                .map_err(|message| wrong.push(("duration", message))),
            (None, Some(text)) => cron(text)
                .map(|cron| End::At(Box::new(cron)))
                .map_err(|message| wrong.push(("end", message))),
            _ => {
                let message = "exactly one of duration and end must be given";
                wrong.push(("", message.to_owned()));
                Err(())
            }
        };
        // Not that of the machine, which may have none.
        let zone = TimeZoneDatabase::bundled().get(schedule.time_zone.trim());
        let zone = zone.map_err(|_| {
            let message =
                "must be a time zone of the IANA database, like Europe/Berlin or America/New_York";
            wrong.push(("timeZone", message.to_owned()));
        });
        match (start, end, zone) {
            (Ok(start), Ok(end), Ok(zone)) => Ok(Self {
                schedule,
                zone,
                start,
                end,
            }),
            _ => Err(wrong),
        }
    }

    /// At a whole second.
    fn at(&self, time: Timestamp) -> State {
        let started = before(&self.start, time, &self.zone);
        let end = started.map(|start| match &self.end {
            End::After(duration) => start.checked_add(*duration).ok(),
            End::At(cron) => after(cron, start, &self.zone),
        });
        match end {
            Some(end) if end.is_none_or(|end| end > time) => State {
                active: true,
                until: end,
            },
            _ => State {
                active: false,
                until: after(&self.start, time, &self.zone),
            },
        }
    }
}

/// The last time that matches, `time` included; `None`: there was none.
fn before(cron: &Cron, time: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
    let found = cron.find_previous_occurrence(&time.to_zoned(zone.clone()), true);
    found.ok().map(|found| found.timestamp())
}

/// The first time after `time` that matches; `None`: there will be none.
fn after(cron: &Cron, time: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
    let found = cron.find_next_occurrence(&time.to_zoned(zone.clone()), false);
    found.ok().map(|found| found.timestamp())
}

fn cron(text: &str) -> Result<Cron, String> {
    let parser = CronParser::builder()
        .seconds(Seconds::Disallowed)
        .year(Year::Disallowed)
        .build();
    let remedy = "minute, hour, day of the month, month and day of the week, like `0 8 * * 1-5`";
    if text.split_whitespace().count() != 5 {
        return Err(format!("must have five fields: {remedy}"));
    }
    let cron = parser
        .parse(text)
        .map_err(|error| format!("must be {remedy}: {error}"))?;
    match after(&cron, Timestamp::UNIX_EPOCH, &TimeZone::UTC) {
        Some(_) => Ok(cron),
        None => Err("names a day that no year has".to_owned()),
    }
}

/// Hours, minutes and seconds as in `8h30m`.
fn duration(text: &str) -> Result<SignedDuration, String> {
    let part = |part: &str| {
        let (number, unit) = part.split_at_checked(part.len().checked_sub(1)?)?;
        let seconds = match unit {
            "h" => 3600,
            "m" => 60,
            "s" => 1,
            _ => return None,
        };
        let digits = (1..=5).contains(&number.len()) && number.bytes().all(|b| b.is_ascii_digit());
        digits.then(|| number.parse::<i64>().ok().map(|number| number * seconds))?
    };
    let parts = text.split_inclusive(['h', 'm', 's']).map(part);
    let seconds: Option<i64> = parts.sum();
    match seconds.map(SignedDuration::from_secs) {
        Some(duration) if duration.is_zero() => Err("must be longer than zero".to_owned()),
        Some(duration) if duration > LONGEST => {
            Err(format!("must be at most {}h", LONGEST.as_hours()))
        }
        Some(duration) => Ok(duration),
        None => Err("must be hours, minutes and seconds, like 10h or 8h30m".to_owned()),
    }
}
