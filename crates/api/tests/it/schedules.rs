//! Which schedule is in force, and until when.

use api::{InForce, RunnerPoolSpec, in_force, validate};
use jiff::{SignedDuration, Timestamp, tz::TimeZoneDatabase};
use proptest::{
    collection::{btree_set, vec},
    option,
    prelude::*,
    sample::select,
};
use serde_json::{Value, json};

use crate::rules::spec;

fn read(value: Value) -> RunnerPoolSpec {
    let spec: RunnerPoolSpec = serde_json::from_value(value).unwrap();
    assert_eq!(validate(&spec), []);
    spec
}

/// A spec with `minAgents` 1 and `maxAgents` 10 and these schedules, in flow style.
fn with(schedules: &str) -> RunnerPoolSpec {
    read(spec(&format!(
        "{{minAgents: 1, maxAgents: 10, schedules: [{schedules}]}}"
    )))
}

fn at(time: &str) -> Timestamp {
    time.parse().unwrap()
}

fn show(bounds: &InForce) -> String {
    let name = bounds.schedule.as_deref().unwrap_or("-");
    format!("{name} {}..{}", bounds.min_agents, bounds.max_agents)
}

/// What is in force at `from`, and after so many changes, each with its time.
fn course(schedules: &str, from: &str, changes: usize) -> Vec<String> {
    let spec = with(schedules);
    let mut bounds = in_force(&spec, at(from));
    let mut course = vec![show(&bounds)];
    for _ in 0..changes {
        let Some(until) = bounds.until else {
            break;
        };
        assert_ne!(bounds.next, bounds.schedule, "at {until}: no change");
        let then = in_force(&spec, until);
        assert_eq!(then.schedule, bounds.next);
        course.push(format!("{until} {}", show(&then)));
        bounds = then;
    }
    course
}

#[test]
fn without_schedules_the_spec_holds_for_ever() {
    let bounds = in_force(&with(""), at("2026-01-01T00:00:00Z"));
    let expected = InForce {
        schedule: None,
        min_agents: 1,
        max_agents: 10,
        until: None,
        next: None,
        coming: None,
    };
    assert_eq!(bounds, expected);
}

#[test]
fn working_days_follow_the_clock_of_their_time_zone() {
    let office = "{name: office, start: 0 8 * * MON-FRI, duration: 10h, timeZone: Europe/Berlin, minAgents: 5, maxAgents: 20}";
    // Clocks change on Sunday the 29th.
    assert_eq!(
        course(office, "2026-03-27T06:59:59.999Z", 4),
        [
            "- 1..10",
            "2026-03-27T07:00:00Z office 5..20",
            "2026-03-27T17:00:00Z - 1..10",
            "2026-03-30T06:00:00Z office 5..20",
            "2026-03-30T16:00:00Z - 1..10",
        ]
    );
}

#[test]
fn what_is_not_given_is_that_of_the_spec() {
    assert_eq!(
        course(
            "{name: few, start: 0 0 * * *, duration: 1h, maxAgents: 2}, {name: none, start: 0 2 * * *, duration: 1h, minAgents: 0}",
            "2026-01-01T00:00:00Z",
            3
        ),
        [
            "few 1..2",
            "2026-01-01T01:00:00Z - 1..10",
            "2026-01-01T02:00:00Z none 0..10",
            "2026-01-01T03:00:00Z - 1..10",
        ]
    );
}

#[test]
fn a_time_that_is_left_out_comes_when_the_clock_has_jumped_over_it() {
    assert_eq!(
        course(
            "{name: a, start: 30 2 * * *, duration: 10m, timeZone: Europe/Berlin, minAgents: 5}",
            "2026-03-28T12:00:00Z",
            4
        ),
        [
            "- 1..10",
            "2026-03-29T01:00:00Z a 5..10",
            "2026-03-29T01:10:00Z - 1..10",
            "2026-03-30T00:30:00Z a 5..10",
            "2026-03-30T00:40:00Z - 1..10",
        ]
    );
    assert_eq!(
        course(
            "{name: a, start: 0 1 * * *, end: 30 2 * * *, timeZone: America/New_York, minAgents: 5}",
            "2026-03-08T05:59:00Z",
            4
        ),
        [
            "- 1..10",
            "2026-03-08T06:00:00Z a 5..10",
            "2026-03-08T07:00:00Z - 1..10",
            "2026-03-09T05:00:00Z a 5..10",
            "2026-03-09T06:30:00Z - 1..10",
        ]
    );
}

#[test]
fn a_time_that_is_there_twice_comes_the_first_time() {
    assert_eq!(
        course(
            "{name: a, start: 30 2 * * *, duration: 10m, timeZone: Europe/Berlin, minAgents: 5}",
            "2026-10-24T12:00:00Z",
            4
        ),
        [
            "- 1..10",
            "2026-10-25T00:30:00Z a 5..10",
            "2026-10-25T00:40:00Z - 1..10",
            "2026-10-26T01:30:00Z a 5..10",
            "2026-10-26T01:40:00Z - 1..10",
        ]
    );
    assert_eq!(
        course(
            "{name: a, start: 0 0 * * *, end: 30 1 * * *, timeZone: America/New_York, minAgents: 5}",
            "2026-11-01T03:00:00Z",
            4
        ),
        [
            "- 1..10",
            "2026-11-01T04:00:00Z a 5..10",
            "2026-11-01T05:30:00Z - 1..10",
            "2026-11-02T05:00:00Z a 5..10",
            "2026-11-02T06:30:00Z - 1..10",
        ]
    );
}

#[test]
fn several_times_come_as_often_as_the_clock_shows_them() {
    let twice =
        "{name: a, start: '0,30 2 * * *', duration: 10m, timeZone: Europe/Berlin, minAgents: 5}";
    assert_eq!(
        course(twice, "2026-03-28T12:00:00Z", 1),
        ["- 1..10", "2026-03-30T00:00:00Z a 5..10"],
        "not at all"
    );
    let begins: Vec<String> = course(twice, "2026-10-24T12:00:00Z", 9)
        .into_iter()
        .filter(|line| line.ends_with(" a 5..10"))
        .collect();
    assert_eq!(
        begins,
        [
            "2026-10-25T00:00:00Z a 5..10",
            "2026-10-25T00:30:00Z a 5..10",
            "2026-10-25T01:00:00Z a 5..10",
            "2026-10-25T01:30:00Z a 5..10",
            "2026-10-26T01:00:00Z a 5..10",
        ]
    );
}

#[test]
fn a_duration_is_time_that_passes() {
    let day = "{name: day, start: 0 0 * * *, duration: 24h, timeZone: Europe/Berlin, minAgents: 5}";
    // A day of 23 hours leaves no gap, one of 25 does.
    assert_eq!(
        course(day, "2026-03-01T00:00:00Z", 2),
        [
            "day 5..10",
            "2026-10-25T22:00:00Z - 1..10",
            "2026-10-25T23:00:00Z day 5..10",
        ]
    );
}

#[test]
fn leap_days_come_when_there_is_one() {
    let leap = "{name: leap, start: 0 0 29 2 *, duration: 24h, minAgents: 5}";
    assert_eq!(
        course(leap, "2026-01-01T00:00:00Z", 3),
        [
            "- 1..10",
            "2028-02-29T00:00:00Z leap 5..10",
            "2028-03-01T00:00:00Z - 1..10",
            "2032-02-29T00:00:00Z leap 5..10",
        ]
    );
    assert_eq!(
        course(leap, "2096-03-01T00:00:00Z", 1)[1],
        "2104-02-29T00:00:00Z leap 5..10"
    );
    let after = "{name: after, start: 0 0 28 2 *, end: 0 0 1 3 *, minAgents: 5}";
    for (year, end) in [("2026", "2026-03-01"), ("2028", "2028-03-01")] {
        let from = format!("{year}-02-28T12:00:00Z");
        assert_eq!(
            course(after, &from, 1)[1],
            format!("{end}T00:00:00Z - 1..10")
        );
    }
    let last = "{name: last, start: 0 0 L * *, duration: 24h, minAgents: 5}";
    assert_eq!(
        course(last, "2028-02-01T00:00:00Z", 1)[1],
        "2028-02-29T00:00:00Z last 5..10"
    );
}

#[test]
fn an_end_may_be_on_the_next_day() {
    let night = "{name: night, start: 0 22 * * *, end: 0 6 * * *, minAgents: 0}";
    for inside in ["2026-01-01T23:00:00Z", "2026-01-02T03:00:00Z"] {
        assert_eq!(
            course(night, inside, 2),
            [
                "night 0..10",
                "2026-01-02T06:00:00Z - 1..10",
                "2026-01-02T22:00:00Z night 0..10",
            ]
        );
    }
    let weekend = "{name: weekend, start: 0 18 * * FRI, end: 0 6 * * MON, minAgents: 0}";
    assert_eq!(
        course(weekend, "2026-01-03T00:00:00Z", 1),
        ["weekend 0..10", "2026-01-05T06:00:00Z - 1..10"]
    );
}

#[test]
fn a_start_meanwhile_prolongs_a_duration_and_does_not_move_an_end() {
    assert_eq!(
        course(
            "{name: a, start: '0 8,9,12 * * *', duration: 90m, minAgents: 5}",
            "2026-01-01T08:00:00Z",
            2
        ),
        [
            "a 5..10",
            "2026-01-01T10:30:00Z - 1..10",
            "2026-01-01T12:00:00Z a 5..10",
        ]
    );
    assert_eq!(
        course(
            "{name: a, start: '0 8,9 * * *', end: 0 10 * * *, minAgents: 5}",
            "2026-01-01T08:00:00Z",
            2
        ),
        [
            "a 5..10",
            "2026-01-01T10:00:00Z - 1..10",
            "2026-01-02T08:00:00Z a 5..10",
        ]
    );
}

#[test]
fn one_that_never_ends_has_no_change() {
    for always in [
        "{name: a, start: '* * * * *', duration: 1m, minAgents: 5}",
        "{name: a, start: 0 * * * *, duration: 1h, minAgents: 5}",
        "{name: a, start: 0 0 * * *, end: 0 0 * * *, minAgents: 5}",
    ] {
        let now = at("2026-01-01T00:00:30Z");
        let bounds = in_force(&with(always), now);
        assert_eq!(show(&bounds), "a 5..10");
        assert_eq!(bounds.next, bounds.schedule, "{bounds:?}");
        assert!(bounds.until.is_some_and(|until| until > now), "{bounds:?}");
    }
}

#[test]
fn the_next_start_is_told_while_one_is_in_force_and_while_none_is() {
    let coming = |schedules: &str, time: &str| {
        let bounds = in_force(&with(schedules), at(time));
        let coming = bounds.coming;
        coming.map_or_else(|| "-".to_owned(), |(name, time)| format!("{name} {time}"))
    };
    let two = "{name: day, start: 0 8 * * *, duration: 8h, minAgents: 5}, \
               {name: night, start: 0 20 * * *, duration: 12h, minAgents: 0}";
    // Before it begins, while another one will still follow it, and where one follows the other at once.
    for (time, expected) in [
        ("2026-01-01T07:00:00Z", "day 2026-01-01T08:00:00Z"),
        ("2026-01-01T08:00:00Z", "night 2026-01-01T20:00:00Z"),
        ("2026-01-01T17:00:00Z", "night 2026-01-01T20:00:00Z"),
        ("2026-01-01T21:00:00Z", "day 2026-01-02T08:00:00Z"),
    ] {
        assert_eq!(coming(two, time), expected, "at {time}");
    }
    let alone = "{name: day, start: 0 8 * * *, duration: 8h, minAgents: 5}";
    assert_eq!(
        coming(alone, "2026-01-01T09:00:00Z"),
        "day 2026-01-02T08:00:00Z"
    );
    let always = "{name: always, start: '* * * * *', duration: 2m, minAgents: 5}";
    assert_eq!(coming(always, "2026-01-01T09:00:00Z"), "-");
}

#[test]
fn of_several_the_one_with_the_largest_minimum_gives_both_values() {
    let three = "{name: low, start: 0 8 * * *, duration: 8h, minAgents: 2, maxAgents: 30}, \
                 {name: high, start: 0 10 * * *, duration: 2h, minAgents: 5, maxAgents: 6}, \
                 {name: spec, start: 0 6 * * *, duration: 5h, maxAgents: 3}";
    assert_eq!(
        course(three, "2026-01-01T00:00:00Z", 6),
        [
            "- 1..10",
            "2026-01-01T06:00:00Z spec 1..3",
            "2026-01-01T08:00:00Z low 2..30",
            "2026-01-01T10:00:00Z high 5..6",
            "2026-01-01T12:00:00Z low 2..30",
            "2026-01-01T16:00:00Z - 1..10",
            "2026-01-02T06:00:00Z spec 1..3",
        ]
    );
}

#[test]
fn of_equal_ones_the_first_is_in_force() {
    assert_eq!(
        course(
            "{name: a, start: 0 8 * * *, duration: 2h, minAgents: 5, maxAgents: 5}, \
             {name: b, start: 0 7 * * *, duration: 4h, minAgents: 5, maxAgents: 6}",
            "2026-01-01T07:00:00Z",
            3
        ),
        [
            "b 5..6",
            "2026-01-01T08:00:00Z a 5..5",
            "2026-01-01T10:00:00Z b 5..6",
            "2026-01-01T11:00:00Z - 1..10",
        ]
    );
}

#[test]
fn one_that_breaks_a_rule_is_never_active() {
    let spec = spec("schedules: [{name: a, start: never, duration: 1h, minAgents: 1}]");
    let spec: RunnerPoolSpec = serde_json::from_value(spec).unwrap();
    let bounds = in_force(&spec, at("2026-01-01T00:00:00Z"));
    assert_eq!((bounds.schedule, bounds.until), (None, None));
}

const ZONES: [&str; 6] = [
    "Etc/UTC",
    "Europe/Berlin",
    "America/New_York",
    "Australia/Lord_Howe",
    "Asia/Kolkata",
    "America/Santiago",
];

/// Hours around some changes of clocks, and any hour of some years.
fn times() -> impl Strategy<Value = Timestamp> {
    let changes = [
        "2026-03-29T01:00:00Z",
        "2026-10-25T01:00:00Z",
        "2026-03-08T07:00:00Z",
        "2026-11-01T06:00:00Z",
        "2026-04-04T15:00:00Z",
        "2026-10-03T15:30:00Z",
    ];
    let near = (select(changes.to_vec()), -7200_i64..7200)
        .prop_map(|(change, seconds)| at(change) + SignedDuration::from_mins(seconds));
    let any = (1_700_000_000_000_i64..1_900_000_000_000)
        .prop_map(|time| Timestamp::from_millisecond(time).unwrap());
    prop_oneof![near, any]
}

fn cron() -> impl Strategy<Value = String> {
    let minute = select(vec!["0", "30", "59", "*/20", "0,45", "*"]);
    let hour = select(vec!["0", "1", "2", "3", "12", "23", "*", "1-3", "*/7"]);
    let day = select(vec!["* *", "* *", "* *", "1 *", "29 2", "L *", "* 3,10"]);
    let weekday = select(vec!["*", "*", "SUN", "1-5", "SUN#1", "0L"]);
    (minute, hour, day, weekday)
        .prop_map(|(minute, hour, day, weekday)| format!("{minute} {hour} {day} {weekday}"))
}

fn schedule() -> impl Strategy<Value = Value> {
    let duration = select(vec!["1m", "45m", "1h", "10h", "24h", "100h30m"]);
    let end = prop_oneof![
        duration.prop_map(|duration| ("duration", duration.to_owned())),
        cron().prop_map(|cron| ("end", cron)),
    ];
    (
        cron(),
        end,
        select(ZONES.to_vec()),
        option::of(0_u32..5),
        5_u32..9,
    )
        .prop_map(|(start, (field, end), zone, min, max)| {
            let mut schedule =
                json!({"start": start, field: end, "timeZone": zone, "maxAgents": max});
            if let Some(min) = min {
                schedule["minAgents"] = min.into();
            }
            schedule
        })
}

fn schedules(mut schedules: Vec<Value>) -> RunnerPoolSpec {
    for (i, schedule) in schedules.iter_mut().enumerate() {
        schedule["name"] = format!("s{i}").into();
    }
    let mut spec = spec("{minAgents: 1, maxAgents: 10}");
    spec["schedules"] = schedules.into();
    read(spec)
}

proptest! {
    #[test]
    fn what_is_in_force_holds_until_the_next_change_and_not_longer(
        schedules in vec(schedule(), 0..4).prop_map(schedules),
        now in times(),
        shares in vec(0.0..1.0, 8),
    ) {
        let bounds = in_force(&schedules, now);
        if let Some(until) = bounds.until {
            prop_assert!(until > now);
            let then = in_force(&schedules, until);
            prop_assert_eq!(&then.schedule, &bounds.next);
            let span = until.duration_since(now);
            let between = shares.iter().map(|&share| now + span.mul_f64(share));
            for time in between.chain([until - SignedDuration::from_nanos(1)]) {
                let same = in_force(&schedules, time);
                prop_assert_eq!(show(&same), show(&bounds), "at {}", time);
                if bounds.next != bounds.schedule {
                    prop_assert_eq!(same.until, bounds.until, "at {}", time);
                    prop_assert_eq!(&same.coming, &bounds.coming, "at {}", time);
                }
            }
            if let Some((name, time)) = &bounds.coming {
                let then = in_force(&schedules, *time);
                prop_assert_eq!(then.schedule.as_ref(), Some(name));
                prop_assert!(*time >= until);
                if *time > until {
                    for share in shares {
                        let time = until + time.duration_since(until).mul_f64(share);
                        prop_assert_eq!(in_force(&schedules, time).schedule, None, "at {}", time);
                    }
                }
            }
        } else {
            prop_assert_eq!(&bounds.next, &bounds.schedule);
        }
    }

    /// Minute by minute, by what the clock shows.
    #[test]
    fn several_times_a_day_are_those_that_the_clock_shows(
        minutes in btree_set(0_i8..60, 2..4),
        hours in btree_set(0_i8..24, 1..4),
        hours_long in 1_i64..30,
        zone in select(ZONES.to_vec()),
        now in times(),
    ) {
        let list = |items: &std::collections::BTreeSet<i8>| {
            items.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
        };
        let spec = schedules(vec![json!({
            "start": format!("{} {} * * *", list(&minutes), list(&hours)),
            "duration": format!("{hours_long}h"), "timeZone": zone, "minAgents": 5,
        })]);
        let zone = TimeZoneDatabase::bundled().get(zone).unwrap();
        let minute = now.as_second().div_euclid(60);
        let active = (minute - hours_long * 60 + 1..=minute).any(|minute| {
            let clock = Timestamp::from_second(minute * 60).unwrap().to_zoned(zone.clone());
            minutes.contains(&clock.minute()) && hours.contains(&clock.hour())
        });
        prop_assert_eq!(in_force(&spec, now).schedule.is_some(), active);
    }
}
